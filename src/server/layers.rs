//! How defaults, file, environment and flags become one [`Config`].
//!
//! A later layer beats an earlier one, key by key. The file is read by serde against [`Config`], so its unknown keys
//! and wrong types are refused with their line; the environment is asked for exactly the keys that exist, under
//! `TRIVET_` and the key in capitals (`log.level` is `TRIVET_LOG_LEVEL`); of the flags only those given count. Each
//! key remembers where its value came from, so that a value which cannot stand is reported at its source.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::config::Config;
use super::flags::Flags;

/// Everything that is wrong with a configuration, one line each, with its source.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The lines: where (file and line, variable, flag or "configuration"), the key, what is wrong.
    pub problems: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    fn one(problem: impl Into<String>) -> ConfigError {
        ConfigError::all([problem.into()])
    }

    /// One line each, whatever stands in the values they repeat.
    fn all(problems: impl IntoIterator<Item = String>) -> ConfigError {
        let line = |problem: String| {
            let mut line = String::with_capacity(problem.len());
            for c in problem.chars() {
                if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
            }
            line
        };
        ConfigError { problems: problems.into_iter().map(line).collect() }
    }
}

/// Where the value of a key came from.
#[derive(Clone, Debug)]
enum Origin {
    Line(usize),
    Variable(String),
    Flag(String),
}

/// Reads the configuration that flags, environment and the file (which the first two may name) make together.
pub fn load(flags: &Flags, environment: &dyn Fn(&str) -> Option<OsString>) -> Result<Config, ConfigError> {
    let file = flags.config.clone().or_else(|| environment("TRIVET_CONFIG").map(PathBuf::from));
    let defaults = table_of(&Config::default());
    let mut merged = Merged { table: defaults.clone(), origins: BTreeMap::new(), file: file.clone() };

    if let Some(path) = &file {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::one(format!("{}: cannot be read: {error}", path.display())))?;
        merged.add_file(path, &text)?;
    }
    for key in leaves(&defaults) {
        let name = variable(&key);
        let Some(text) = environment(&name) else { continue };
        let text = text.into_string().map_err(|_| ConfigError::one(format!("{name}: is not valid UTF-8")))?;
        merged.add_text(&key, &text, Origin::Variable(name))?;
    }
    for (key, flag, value) in flags.given() {
        merged.add(key, value, Origin::Flag(flag.into()))?;
    }
    for setting in &flags.set {
        let Some((key, text)) = setting.split_once('=') else {
            return Err(ConfigError::one(format!("--set {setting}: is not of the form key=value")));
        };
        merged.add_text(key.trim(), text.trim(), Origin::Flag(format!("--set {}", key.trim())))?;
    }
    merged.finish()
}

/// The configuration as the text of a file that would make it.
pub fn print(config: &Config) -> String {
    toml::to_string(config).expect("a config of numbers, texts and tables can be written as TOML")
}

struct Merged {
    table: Table,
    origins: BTreeMap<String, Origin>,
    file: Option<PathBuf>,
}

impl Merged {
    fn add_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let at = |offset: usize| line_of(text, offset);
        let located = |error: &toml::de::Error, key: Option<String>| {
            let line = error.span().map_or(1, |span| at(span.start));
            let key = key.map(|key| format!("{key}: ")).unwrap_or_default();
            let message = error.message().replace('\n', " ");
            ConfigError::one(format!("{}:{line}: {key}{message}", path.display()))
        };
        let spans = DeTable::parse(text).map_err(|error| located(&error, None))?;
        // Refuses unknown keys and wrong types; what it makes is not needed, since other layers may still be added.
        let refuse = |error: toml::de::Error| {
            let key = error.span().and_then(|span| key_at(spans.get_ref(), span.start, String::new()));
            located(&error, key)
        };
        let config = toml::from_str::<Config>(text).map_err(refuse)?;
        // A number beyond 63 bits fits some fields of a config, but no value that layers are merged as.
        toml::from_str::<Table>(text).map_err(refuse)?;
        merge(&mut self.table, table_of(&config), &mut |key| given(spans.get_ref(), key));
        let mut lines = Vec::new();
        collect_lines(spans.get_ref(), "", &mut lines);
        for (key, offset) in lines {
            let key = if key == "peers" { "found".to_owned() } else { key };
            self.origins.insert(key, Origin::Line(at(offset)));
        }
        Ok(())
    }

    /// Adds a value written as text, by the type of the default.
    fn add_text(&mut self, key: &str, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let value = match get(&self.table, key) {
            None | Some(Value::Table(_)) => {
                return Err(ConfigError::one(format!("{}: there is no key `{key}`", self.place(Some(&origin)))));
            }
            Some(Value::Integer(_)) => text.trim().parse().map(Value::Integer).map_err(|_| {
                ConfigError::one(format!("{}: `{text}` is not a whole number", self.place(Some(&origin))))
            })?,
            Some(Value::Array(_)) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Value::Array(items.map(|item| Value::String(item.to_owned())).collect())
            }
            Some(_) => Value::String(text.to_owned()),
        };
        self.add(key, value, origin)
    }

    fn add(&mut self, key: &str, value: Value, origin: Origin) -> Result<(), ConfigError> {
        set(&mut self.table, key, value);
        // At once, so that a wrong type is blamed on this layer and not on the next.
        Config::deserialize_from(self.table.clone())
            .map_err(|message| ConfigError::one(format!("{}: {message}", self.place(Some(&origin)))))?;
        self.origins.insert(key.to_owned(), origin);
        Ok(())
    }

    fn finish(self) -> Result<Config, ConfigError> {
        let mut config = Config::deserialize_from(self.table.clone()).map_err(ConfigError::one)?;
        config.complete();
        let problems = config.problems();
        if problems.is_empty() {
            return Ok(config);
        }
        let problems = problems.into_iter().map(|problem| {
            let origin = self.origins.get(problem.key);
            format!("{}: {}: {}", self.place(origin), problem.key, problem.message)
        });
        Err(ConfigError::all(problems))
    }

    fn place(&self, origin: Option<&Origin>) -> String {
        match (origin, &self.file) {
            (Some(Origin::Line(line)), Some(path)) => format!("{}:{line}", path.display()),
            (Some(Origin::Variable(name) | Origin::Flag(name)), _) => name.clone(),
            _ => "configuration".into(),
        }
    }
}

impl Config {
    fn deserialize_from(table: Table) -> Result<Config, String> {
        table.try_into().map_err(|error: toml::de::Error| error.message().replace('\n', " "))
    }
}

/// The environment variable of a key.
fn variable(key: &str) -> String {
    format!("TRIVET_{}", key.replace('.', "_").to_uppercase())
}

fn table_of(config: &Config) -> Table {
    Table::try_from(config).expect("a config of numbers, texts and tables is a TOML table")
}

/// The dotted names of all values in a table.
fn leaves(table: &Table) -> Vec<String> {
    let mut found = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) => found.extend(leaves(inner).into_iter().map(|rest| format!("{name}.{rest}"))),
            _ => found.push(name.clone()),
        }
    }
    found
}

fn get<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((section, rest)) => get(table.get(section)?.as_table()?, rest),
        None => table.get(key),
    }
}

fn set(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        Some((section, rest)) => {
            if let Some(Value::Table(inner)) = table.get_mut(section) {
                set(inner, rest, value);
            }
        }
        None => {
            table.insert(key.to_owned(), value);
        }
    }
}

/// Takes the values of `from` over for the keys that `wanted` names.
fn merge(into: &mut Table, from: Table, wanted: &mut dyn FnMut(&str) -> bool) {
    for key in leaves(&from) {
        if wanted(&key)
            && let Some(value) = get(&from, &key)
        {
            set(into, &key, value.clone());
        }
    }
}

/// Whether a file sets this key.
fn given(table: &DeTable<'_>, key: &str) -> bool {
    let mut lines = Vec::new();
    collect_lines(table, "", &mut lines);
    lines.iter().any(|(name, _)| name == key || (key == "found" && name == "peers"))
}

/// The dotted names of all values in a file, with the offset where each name stands.
fn collect_lines(table: &DeTable<'_>, prefix: &str, lines: &mut Vec<(String, usize)>) {
    for (name, value) in table {
        let key = format!("{prefix}{}", name.get_ref());
        match value.get_ref() {
            DeValue::Table(inner) => collect_lines(inner, &format!("{key}."), lines),
            _ => lines.push((key, name.span().start)),
        }
    }
}

/// The key whose name or value lies at this offset of a file.
fn key_at(table: &DeTable<'_>, offset: usize, prefix: String) -> Option<String> {
    let holds = |name: &Spanned<_>, value: &Spanned<DeValue<'_>>| {
        name.span().contains(&offset) || value.span().contains(&offset)
    };
    table.iter().find_map(|(name, value)| {
        let key = format!("{prefix}{}", name.get_ref());
        if let DeValue::Table(inner) = value.get_ref()
            && let Some(found) = key_at(inner, offset, format!("{key}."))
        {
            return Some(found);
        }
        holds(name, value).then_some(key)
    })
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    struct Layers {
        file: &'static str,
        environment: &'static [(&'static str, &'static str)],
        flags: Flags,
    }

    impl Default for Layers {
        fn default() -> Layers {
            let flags = Flags { id: Some(1), data: Some("/d".into()), ..Flags::default() };
            Layers { file: "", environment: &[], flags }
        }
    }

    impl Layers {
        fn load(self) -> Result<Config, String> {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let path = directory.path().join("trivet.toml");
            std::fs::write(&path, self.file).expect("the directory takes a file");
            let flags = Flags { config: Some(path), ..self.flags };
            let environment = self.environment;
            let lookup = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, v)| OsString::from(v));
            let prefix = format!("{}/", directory.path().display());
            load(&flags, &lookup).map_err(|error| error.to_string().replace(&prefix, ""))
        }
    }

    #[test]
    fn flag_beats_environment_beats_file_beats_default() {
        let file = "zone = \"file\"\nlisten = \"file:1\"\nhttp = \"file:2\"\n[log]\nformat = \"json\"\n";
        let environment = &[("TRIVET_LISTEN", "env:1"), ("TRIVET_HTTP", "env:2"), ("TRIVET_TIMERS_DRAIN_MS", "7")];
        let flags = Flags {
            id: Some(4),
            data: Some("/d".into()),
            http: Some("flag:2".into()),
            set: vec!["limits.page_rows_max=9".into()],
            ..Flags::default()
        };
        let config = Layers { file, environment, flags }.load().expect("a good configuration");
        assert_eq!((config.zone.as_str(), config.listen.as_str(), config.http.as_str()), ("file", "env:1", "flag:2"));
        assert_eq!((config.id, config.advertise.as_str()), (NodeId(4), "env:1"));
        assert_eq!((config.timers.drain_ms, config.limits.page_rows_max), (7, 9));
        assert_eq!(config.log.format, crate::ops::logs::Format::Json);
        assert_eq!(config.block_cache_mb, Config::default().block_cache_mb);
    }

    #[test]
    fn lists_come_from_every_layer() {
        let file = "peers = [\"1=127.0.0.1:7401\", \"2=b:1\"]\n";
        assert_eq!(Layers { file, ..Layers::default() }.load().unwrap().founders().len(), 2);
        let environment = &[("TRIVET_JOIN", "a:1, b:2")];
        assert_eq!(Layers { environment, ..Layers::default() }.load().unwrap().join, ["a:1", "b:2"]);
    }

    #[test]
    fn the_file_is_refused_with_line_and_key() {
        let refused = |file| Layers { file, ..Layers::default() }.load().expect_err("a bad configuration");
        let unknown = refused("zone = \"a\"\n\nlisen = \"x:1\"\n");
        assert!(unknown.starts_with("trivet.toml:3: lisen: unknown field `lisen`, expected one of `id`"), "{unknown}");
        let nested = refused("[timers]\nheartbeat = 3\n");
        assert!(nested.starts_with("trivet.toml:2: timers.heartbeat: unknown field"), "{nested}");
        let large = refused("\nid = 9223372036854775808\n");
        assert!(large.starts_with("trivet.toml:2: id: "), "{large}");
        let kind = refused("[limits]\n\nkey_bytes_max = \"many\"\n");
        assert_eq!(kind, "trivet.toml:3: limits.key_bytes_max: invalid type: string \"many\", expected usize");
        let value = refused("zone = \"a\"\nlisten = \"nowhere\"\n");
        assert_eq!(value, "trivet.toml:2: listen: `nowhere` is not an address of the form host:port");
        let lines = refused("listen = \"a\\nb\"\n");
        assert_eq!(lines, "trivet.toml:1: listen: `a\\nb` is not an address of the form host:port");
        let syntax = refused("zone = \"a\"\nlisten = \n");
        assert!(syntax.starts_with("trivet.toml:2: "), "{syntax}");
        assert!(!syntax.contains('\n'), "{syntax}");
        let format = refused("[log]\nformat = \"xml\"\n");
        assert!(format.starts_with("trivet.toml:2: log.format: unknown variant `xml`"), "{format}");
    }

    #[test]
    fn variables_and_flags_are_refused_by_name() {
        let environment = &[("TRIVET_BLOCK_CACHE_MB", "much")];
        let refused = Layers { environment, ..Layers::default() }.load().expect_err("not a number");
        assert_eq!(refused, "TRIVET_BLOCK_CACHE_MB: `much` is not a whole number");
        let set = |setting: &str| {
            let flags = Flags { set: vec![setting.into()], ..Layers::default().flags };
            Layers { flags, ..Layers::default() }.load().expect_err("a bad setting")
        };
        assert_eq!(set("timers.heart=1"), "--set timers.heart: there is no key `timers.heart`");
        assert_eq!(set("timers=1"), "--set timers: there is no key `timers`");
        assert_eq!(set("zone"), "--set zone: is not of the form key=value");
        assert_eq!(
            set("timers.drain_ms=999999999"),
            "--set timers.drain_ms: timers.drain_ms: is 999999999, must be from 0 to 600000"
        );
        assert!(set("id=-1").starts_with("--set id: "), "{}", set("id=-1"));
        let format = Flags { log_format: Some("xml".into()), ..Layers::default().flags };
        let refused = Layers { flags: format, ..Layers::default() }.load().expect_err("no such format");
        assert!(refused.starts_with("--log-format: unknown variant `xml`"), "{refused}");
        let nothing = Layers { flags: Flags::default(), ..Layers::default() }.load().expect_err("no id, no directory");
        assert!(nothing.starts_with("configuration: id: is required"), "{nothing}");
        assert_eq!(nothing.lines().count(), 2);
    }

    #[test]
    fn a_printed_configuration_reads_back() {
        let config = Layers::default().load().unwrap();
        let again: Config = toml::from_str(&print(&config)).expect("printed configuration is a configuration");
        assert_eq!(again, config);
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let flags = Flags { config: Some("/nowhere/trivet.toml".into()), ..Flags::default() };
        let refused = load(&flags, &|_| None).expect_err("no file").to_string();
        assert!(refused.starts_with("/nowhere/trivet.toml: cannot be read: "), "{refused}");
    }
}
