//! The verbs on one key: get, put, del, cas, incr.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use trivet::client::{ReadFrom, Table};
use trivet::types::{Action, Condition, Operation, ReadLevel, Test, Timestamp, Token, Write as Batch};

use super::exit::{Ended, Exit, Stop};
use super::{Global, render, text, time};

/// How fresh a read must be, as typed: `linearizable`, `any`, `max-age=2s` or `at-least=VERSION`.
pub fn parse_level(text: &str) -> Result<ReadLevel, String> {
    match text {
        "linearizable" => Ok(ReadLevel::Linearizable),
        "any" => Ok(ReadLevel::Any),
        _ => match text.split_once('=') {
            Some(("max-age", age)) => time::parse_duration(age).map(ReadLevel::MaxAge),
            Some(("at-least", version)) => {
                time::parse_version(version).map(|timestamp| ReadLevel::AtLeast(Token { timestamp }))
            }
            _ => Err(format!("'{text}' is no level: write linearizable, any, max-age=2s or at-least=VERSION")),
        },
    }
}

/// Which replica answers reads, as typed.
pub fn parse_read_from(text: &str) -> Result<ReadFrom, String> {
    let all = [ReadFrom::Leader, ReadFrom::Nearest, ReadFrom::LeastLoaded];
    all.into_iter()
        .find(|which| show_read_from(*which) == text)
        .ok_or_else(|| format!("'{text}' names no replica: write leader, nearest or least-loaded"))
}

/// The same as [`parse_read_from`] reads it.
pub fn show_read_from(which: ReadFrom) -> &'static str {
    match which {
        ReadFrom::Leader => "leader",
        ReadFrom::Nearest => "nearest",
        ReadFrom::LeastLoaded => "least-loaded",
    }
}

/// A level the way [`parse_level`] reads it.
pub fn show_level(level: ReadLevel) -> String {
    match level {
        ReadLevel::Linearizable => "linearizable".to_owned(),
        ReadLevel::Any => "any".to_owned(),
        ReadLevel::MaxAge(age) => format!("max-age={}", time::show_duration_ms(age.as_millis() as u64)),
        ReadLevel::AtLeast(token) => format!("at-least={}", token.timestamp),
        ReadLevel::AsOf(at) => format!("as-of={at}"),
    }
}

/// How fresh an answer must be, and which replica gives it.
#[derive(Clone, Debug, clap::Args)]
pub struct Reading {
    /// The state at a version or a time, within the table's history
    #[arg(long, value_name = "VERSION|TIME", value_parser = time::parse_version_or_time, conflicts_with = "level")]
    as_of: Option<Timestamp>,
    /// How fresh: linearizable, any, max-age=DURATION or at-least=VERSION (of an earlier answer's header)
    #[arg(long, value_name = "LEVEL", default_value = "linearizable", value_parser = parse_level)]
    level: ReadLevel,
    /// Which replica answers if it can: leader, nearest or least-loaded
    #[arg(long, value_name = "REPLICA", default_value = "leader", value_parser = parse_read_from)]
    read_from: ReadFrom,
}

impl Reading {
    /// The table, as it is to be read.
    pub fn of(&self, table: &Table) -> Table {
        table.at(self.level()).read_from(self.read_from)
    }

    /// How fresh an answer must be.
    pub fn level(&self) -> ReadLevel {
        self.as_of.map_or(self.level, ReadLevel::AsOf)
    }
}

/// Reads the value of a key.
///
/// Prints the value alone; -o json adds version, time and which replica answered. Exits with 3 if the key is absent.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  trivet get orders o-1\n  trivet get orders o-1 --as-of 2026-01-31T12:00:00Z\n  trivet get orders o-1 --level max-age=2s --read-from nearest -o json"
)]
pub struct Get {
    /// The table
    table: String,
    /// The key
    key: String,
    #[command(flatten)]
    reading: Reading,
    /// The key is hex digits
    #[arg(long)]
    hex: bool,
    /// Print exactly the value's bytes, without a line end
    #[arg(long)]
    raw: bool,
}

/// Runs `get`.
pub async fn get(args: Get, global: &Global) -> Ended {
    let key = text::argument(&args.key, args.hex).map_err(Stop::usage)?;
    let table = global.connect().await?.table(&*args.table);
    let answer = args.reading.of(&table).get(key.clone()).await?;
    if global.json() {
        say!("{}", render::get_json(&key, &answer));
    }
    let Some(found) = &answer.body else {
        let message = if global.json() { String::new() } else { format!("no value for key {}", text::show(&key)) };
        return Err(Stop { exit: Exit::NotFound, message });
    };
    if args.raw {
        io::stdout().write_all(&found.value)?;
    } else if !global.json() {
        // Text is printed as it is, so that a pipe gets what was put; other bytes would harm a terminal.
        let shown = std::str::from_utf8(&found.value).map_or_else(|_| text::show(&found.value), str::to_owned);
        writeln!(io::stdout(), "{shown}")?;
    }
    Ok(Exit::Ok)
}

/// Sets the value of a key.
///
/// The value is the argument, the content of a file (--file), or the standard input (the value '-').
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  trivet put orders o-1 '{\"amount\": 1177}'\n  trivet put sessions s-9 token --ttl 30m\n  trivet put files logo --file logo.png\n  date | trivet put notes now -"
)]
pub struct Put {
    /// The table
    table: String,
    /// The key
    key: String,
    /// The value; '-' reads the standard input
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    value: Option<String>,
    /// Take the value from a file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Time to live: readable for so long only
    #[arg(long, value_name = "DURATION", value_parser = time::parse_duration)]
    ttl: Option<Duration>,
    /// The key, and the value if it is an argument, are hex digits
    #[arg(long)]
    hex: bool,
}

/// Runs `put`.
pub async fn put(args: Put, global: &Global) -> Ended {
    let key = text::argument(&args.key, args.hex).map_err(Stop::usage)?;
    let value = match (&args.value, &args.file) {
        (_, Some(file)) => std::fs::read(file)
            .map(Bytes::from)
            .map_err(|error| Stop::error(format!("cannot read {}: {error}", file.display())))?,
        (Some(value), None) if value == "-" => {
            let mut input = Vec::new();
            io::stdin().lock().read_to_end(&mut input)?;
            input.into()
        }
        (Some(value), None) => text::argument(value, args.hex).map_err(Stop::usage)?,
        (None, None) => return Err(Stop::usage("a value is missing")),
    };
    let ttl_ms = args.ttl.map(|ttl| ttl.as_millis() as u64);
    write(&args.table, vec![], Operation { key, action: Action::Put { value, ttl_ms } }, "version", global).await
}

/// Removes a key.
///
/// Removing an absent key is no failure. Earlier versions stay readable within the table's history.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  trivet del orders o-1")]
pub struct Del {
    /// The table
    table: String,
    /// The key
    key: String,
    /// The key is hex digits
    #[arg(long)]
    hex: bool,
}

/// Runs `del`.
pub async fn del(args: Del, global: &Global) -> Ended {
    let key = text::argument(&args.key, args.hex).map_err(Stop::usage)?;
    write(&args.table, vec![], Operation { key, action: Action::Delete }, "version", global).await
}

/// Sets a key if it is what you expect (compare-and-swap).
///
/// Exits with 3, and says what the key holds, if it is something else.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  trivet cas orders o-1 paid --expect open\n  trivet cas orders o-1 paid --expect-version 115928374655\n  trivet cas locks leader me --absent"
)]
#[command(group = clap::ArgGroup::new("expected").required(true).multiple(false))]
pub struct Cas {
    /// The table
    table: String,
    /// The key
    key: String,
    /// The new value
    #[arg(required_unless_present = "delete", conflicts_with = "delete")]
    value: Option<String>,
    /// The value it must have
    #[arg(long, value_name = "VALUE", group = "expected")]
    expect: Option<String>,
    /// The version it must have
    #[arg(long, value_name = "VERSION", group = "expected", value_parser = time::parse_version)]
    expect_version: Option<Timestamp>,
    /// It must have no value
    #[arg(long, group = "expected")]
    absent: bool,
    /// Delete the key instead of setting it
    #[arg(long)]
    delete: bool,
    /// Key and values are hex digits
    #[arg(long)]
    hex: bool,
}

/// Runs `cas`.
pub async fn cas(args: Cas, global: &Global) -> Ended {
    let key = text::argument(&args.key, args.hex).map_err(Stop::usage)?;
    let test = match (&args.expect, args.expect_version) {
        (Some(value), _) => Test::Value(text::argument(value, args.hex).map_err(Stop::usage)?),
        (None, Some(version)) => Test::Version(version),
        (None, None) => Test::Absent,
    };
    let action = match &args.value {
        Some(value) => Action::Put { value: text::argument(value, args.hex).map_err(Stop::usage)?, ttl_ms: None },
        None => Action::Delete,
    };
    let condition = Condition { key: key.clone(), test };
    write(&args.table, vec![condition], Operation { key, action }, "swapped, version", global).await
}

/// Adds to a decimal integer and prints the sum; an absent key counts as 0.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  trivet incr counters visits\n  trivet incr counters stock -3")]
pub struct Incr {
    /// The table
    table: String,
    /// The key
    key: String,
    /// What to add
    #[arg(default_value_t = 1, allow_negative_numbers = true)]
    by: i64,
    /// The key is hex digits
    #[arg(long)]
    hex: bool,
}

/// Runs `incr`.
pub async fn incr(args: Incr, global: &Global) -> Ended {
    let key = text::argument(&args.key, args.hex).map_err(Stop::usage)?;
    write(&args.table, vec![], Operation { key, action: Action::Increment { delta: args.by } }, "", global).await
}

/// Sends one operation and prints what became of it: `said` and the version, or the integer after an increment.
async fn write(table: &str, conditions: Vec<Condition>, operation: Operation, said: &str, global: &Global) -> Ended {
    let write = Batch { request: None, conditions, operations: vec![operation] };
    let answer = global.connect().await?.table(table).batch(write).await?;
    let outcome = &answer.body;
    if global.json() {
        say!("{}", render::outcome_json(&answer));
    } else if !outcome.applied {
        say!("{}", render::not_applied(outcome));
    } else if let Some(Some(integer)) = outcome.integers.first() {
        say!("{integer}");
    } else {
        say!("{said} {}", outcome.timestamp);
    }
    Ok(if outcome.applied { Exit::Ok } else { Exit::NotFound })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_typed_as_they_are_shown() {
        for text in ["linearizable", "any", "max-age=2s", "max-age=1h30m", "at-least=117637120008060935"] {
            assert_eq!(parse_level(text).map(show_level).as_deref(), Ok(text));
        }
        for wrong in
            ["", "strong", "max-age", "max-age=", "max-age=5", "at-least", "at-least=", "at-least=2s", "as-of=5"]
        {
            assert!(parse_level(wrong).is_err(), "{wrong}");
        }
    }
}
