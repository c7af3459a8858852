//! `trivet batch`: many operations on keys of one tag (or group), all or none.
//!
//! The batch is a file of JSON lines. A line with `if` is a condition, any other an operation; all conditions must hold
//! for any operation to happen, wherever in the file they stand.

use std::io::Read;
use std::path::PathBuf;

use bytes::Bytes;
use serde::Deserialize;
use trivet::types::{Action, Condition, Operation, Test, Timestamp, Write};

use super::exit::{Ended, Exit, Stop};
use super::{Global, render, text, time};

/// Applies operations on keys of one tag or group atomically, if all conditions hold
///
/// FILE has one JSON object a line ('-' reads the standard input):
///
///   {"if": KEY, "version": "N"}   or "value": "V", "absent": true, "present": true
///   {"put": KEY, "value": "V"}    optionally "ttl": "30m"
///   {"delete": KEY}
///   {"increment": KEY, "by": 5}
///   {"rollback": KEY, "to": "N"}
///
/// Exits with 3, and says which condition failed, if one does not hold; nothing has changed then.
#[derive(Clone, Debug, clap::Args)]
#[command(verbatim_doc_comment)]
#[command(
    after_help = "Example:\n  trivet batch users - <<END\n  {\"if\": \"{u:42}:cart\", \"present\": true}\n  {\"delete\": \"{u:42}:cart\"}\n  {\"increment\": \"{u:42}:orders\", \"by\": 1}\n  END"
)]
pub struct Args {
    /// The table
    table: String,
    /// The file of JSON lines; '-' is the standard input
    file: PathBuf,
    /// Keys and values are hex digits
    #[arg(long)]
    hex: bool,
    /// Check the file and send nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs `batch`.
pub async fn run(args: Args, global: &Global) -> Ended {
    let mut input = String::new();
    if args.file.as_os_str() == "-" {
        std::io::stdin().lock().read_to_string(&mut input)?;
    } else {
        input = std::fs::read_to_string(&args.file)
            .map_err(|error| Stop::error(format!("cannot read {}: {error}", args.file.display())))?;
    }
    let write = parse(&input, args.hex).map_err(|error| Stop::error(format!("{}: {error}", args.file.display())))?;
    if args.dry_run {
        let conditions = text::count(write.conditions.len(), "condition");
        let operations = text::count(write.operations.len(), "operation");
        say!("{conditions}, {operations}; nothing sent (--dry-run)");
        return Ok(Exit::Ok);
    }
    let operations = text::count(write.operations.len(), "operation");
    let answer = global.connect().await?.table(&*args.table).batch(write).await?;
    let outcome = &answer.body;
    if global.json() {
        say!("{}", render::outcome_json(&answer));
    } else if outcome.applied {
        say!("applied {operations}, version {}", outcome.timestamp);
    } else {
        say!("{}", render::not_applied(outcome));
    }
    Ok(if outcome.applied { Exit::Ok } else { Exit::NotFound })
}

/// One line as it is written. Versions may be numbers or, as the command line prints them in JSON, text.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    r#if: Option<String>,
    version: Option<Version>,
    absent: Option<bool>,
    present: Option<bool>,
    put: Option<String>,
    value: Option<String>,
    ttl: Option<String>,
    delete: Option<String>,
    increment: Option<String>,
    by: Option<i64>,
    rollback: Option<String>,
    to: Option<Version>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Version {
    Number(u64),
    Text(String),
}

impl Version {
    fn timestamp(self) -> Result<Timestamp, String> {
        match self {
            Version::Number(number) => Ok(Timestamp(number)),
            Version::Text(text) => time::parse_version(&text),
        }
    }
}

fn parse(input: &str, as_hex: bool) -> Result<Write, String> {
    let mut write = Write::default();
    for (number, line) in input.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let parsed: Line = serde_json::from_str(line)
            .map_err(|error| format!("line {}: no condition and no operation: {error}", number + 1))?;
        parsed.add_to(&mut write, as_hex).map_err(|error| format!("line {}: {error}", number + 1))?;
    }
    if write.operations.is_empty() { Err("it has no operation".to_owned()) } else { Ok(write) }
}

impl Line {
    fn add_to(self, write: &mut Write, as_hex: bool) -> Result<(), String> {
        let bytes = |text: String| -> Result<Bytes, String> { text::argument(&text, as_hex) };
        let unused = |fields: &[bool]| fields.iter().all(|given| !given);
        let verbs = [&self.r#if, &self.put, &self.delete, &self.increment, &self.rollback];
        if verbs.iter().filter(|verb| verb.is_some()).count() != 1 {
            return Err("expected exactly one of if, put, delete, increment, rollback".to_owned());
        }
        let extra = || "a field that does not belong to this line".to_owned();
        let is_test = self.r#if.is_some();
        if !is_test && !unused(&[self.version.is_some(), self.absent.is_some(), self.present.is_some()])
            || (!is_test && self.put.is_none() && self.value.is_some())
            || (self.put.is_none() && self.ttl.is_some())
            || (self.increment.is_none() && self.by.is_some())
            || (self.rollback.is_none() && self.to.is_some())
        {
            return Err(extra());
        }
        if let Some(key) = self.r#if {
            let test = match (self.version, self.value, self.absent, self.present) {
                (Some(version), None, None, None) => Test::Version(version.timestamp()?),
                (None, Some(value), None, None) => Test::Value(bytes(value)?),
                (None, None, Some(true), None) => Test::Absent,
                (None, None, None, Some(true)) => Test::Present,
                _ => {
                    return Err(
                        "a condition needs exactly one of version, value, absent: true, present: true".to_owned()
                    );
                }
            };
            write.conditions.push(Condition { key: bytes(key)?, test });
            return Ok(());
        }
        let (key, action) = if let Some(key) = self.put {
            let value = bytes(self.value.ok_or("put needs a value")?)?;
            let ttl_ms = self.ttl.map(|ttl| time::parse_duration(&ttl)).transpose()?.map(|ttl| ttl.as_millis() as u64);
            (key, Action::Put { value, ttl_ms })
        } else if let Some(key) = self.increment {
            (key, Action::Increment { delta: self.by.unwrap_or(1) })
        } else if let Some(key) = self.rollback {
            (key, Action::Rollback { to: self.to.ok_or("rollback needs 'to', a version")?.timestamp()? })
        } else {
            (self.delete.unwrap_or_default(), Action::Delete)
        };
        write.operations.push(Operation { key: bytes(key)?, action });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_one_batch() {
        let input = r#"
{"if":"a","version":"7"}
{"if":"b","value":"x"}
{"if":"c","absent":true}
{"put":"a","value":"v","ttl":"2s"}
{"increment":"n"}
{"increment":"n","by":-5}

{"rollback":"r","to":9}
{"delete":"d"}
{"if":"e","present":true}
"#;
        let write = parse(input, false).expect("a batch");
        let tests: Vec<&Test> = write.conditions.iter().map(|condition| &condition.test).collect();
        assert_eq!(tests, [&Test::Version(Timestamp(7)), &Test::Value("x".into()), &Test::Absent, &Test::Present]);
        let actions: Vec<&Action> = write.operations.iter().map(|operation| &operation.action).collect();
        assert_eq!(
            actions,
            [
                &Action::Put { value: "v".into(), ttl_ms: Some(2_000) },
                &Action::Increment { delta: 1 },
                &Action::Increment { delta: -5 },
                &Action::Rollback { to: Timestamp(9) },
                &Action::Delete,
            ]
        );
        let hex = parse(r#"{"put":"ff","value":"0x00"}"#, true).expect("a batch");
        assert_eq!(hex.operations[0].key[..], [0xff]);
    }

    #[test]
    fn wrong_lines_are_named() {
        for (line, complaint) in [
            ("{}", "exactly one of if, put"),
            (r#"{"put":"a","value":"v","delete":"a"}"#, "exactly one of if, put"),
            (r#"{"put":"a"}"#, "put needs a value"),
            (r#"{"put":"a","value":"v","by":1}"#, "does not belong"),
            (r#"{"delete":"a","value":"v"}"#, "does not belong"),
            (r#"{"if":"a"}"#, "a condition needs"),
            (r#"{"if":"a","absent":false}"#, "a condition needs"),
            (r#"{"if":"a","absent":true,"version":"1"}"#, "a condition needs"),
            (r#"{"rollback":"a","to":"x"}"#, "no version"),
            (r#"{"put":"a","value":"v","ttl":"5"}"#, "no duration"),
            (r#"{"puts":"a"}"#, "no condition and no operation"),
            ("[", "no condition and no operation"),
        ] {
            let error = parse(&format!("{{\"delete\":\"x\"}}\n{line}\n"), false).expect_err(line);
            assert!(error.starts_with("line 2: ") && error.contains(complaint), "{line}: {error}");
        }
        assert_eq!(parse("\n", false), Err("it has no operation".to_owned()));
        assert!(parse(r#"{"if":"a","absent":true}"#, false).is_err());
    }
}
