//! Histories as checkers read them: operations with a beginning, an end and an outcome.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;

use super::fault::{FaultSpan, is_history, read_faults};
use super::{Event, Extra, Kind};

/// One logical operation with its outcome.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// Who.
    pub process: u64,
    /// The verb.
    pub f: String,
    /// The key.
    pub key: String,
    /// What was asked.
    pub input: Value,
    /// What was answered; null unless the outcome is `Ok`.
    pub output: Value,
    /// Before it was sent, in nanoseconds.
    pub start: u64,
    /// After its answer came; none if it never did.
    pub end: Option<u64>,
    /// `Ok`, `Fail` or `Info`; never `Invoke`.
    pub outcome: Kind,
    /// Further fields of both lines; the completion's win.
    pub extra: Extra,
}

impl Operation {
    /// Whether it took effect.
    pub fn is_ok(&self) -> bool {
        self.outcome == Kind::Ok
    }

    /// Whether it may have taken effect.
    pub fn is_possible(&self) -> bool {
        self.outcome != Kind::Fail
    }

    /// When it was over for good: the end of an `ok` or `fail`, never for an `info`.
    pub fn settled(&self) -> Option<u64> {
        self.end.filter(|_| self.outcome != Kind::Info)
    }

    /// A further field that is a text.
    pub fn text(&self, field: &str) -> Option<&str> {
        self.extra.get(field).and_then(Value::as_str)
    }

    /// A further field that is a number.
    pub fn number(&self, field: &str) -> Option<u64> {
        self.extra.get(field).and_then(Value::as_u64)
    }

    /// The version it made or saw.
    pub fn version(&self) -> Option<u64> {
        self.number("version")
    }
}

/// One line for people.
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Longest text of a value shown whole.
        const SHOWN: usize = 120;
        let seconds = |ns: u64| ns as f64 / 1e9;
        write!(f, "{:9.3} s .. ", seconds(self.start))?;
        match self.settled() {
            Some(end) => write!(f, "{:9.3} s", seconds(end))?,
            None => write!(f, "{:>11}", "unknown")?,
        }
        let outcome = match self.outcome {
            Kind::Ok => "ok",
            Kind::Fail => "fail",
            Kind::Info | Kind::Invoke => "info",
        };
        write!(f, "  process {:<4} {outcome:<4} {} {} ", self.process, self.f, self.key)?;
        let mut text = self.input.to_string();
        if self.is_ok() && self.output != self.input {
            text = if self.input.is_null() { self.output.to_string() } else { format!("{text} -> {}", self.output) };
        }
        if text.chars().count() > SHOWN {
            text = text.chars().take(SHOWN).collect::<String>() + "…";
        }
        f.write_str(&text)?;
        for field in ["error", "observed", "version", "node"] {
            if let Some(value) = self.extra.get(field) {
                write!(f, "  {field} {value}")?;
            }
        }
        Ok(())
    }
}

/// The history of one workload. Findings name operations by their place in `operations`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// The workload's name.
    pub name: String,
    /// In the order of their beginnings.
    pub operations: Vec<Operation>,
    /// The faults that were at work meanwhile.
    pub faults: Vec<FaultSpan>,
}

/// A file that is no history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The line, from 1 on.
    pub line: usize,
    /// What is wrong with it.
    pub what: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for Malformed {}

impl History {
    /// Pairs lines to operations; an invocation without completion is an `info`.
    pub fn from_events(name: &str, events: Vec<Event>) -> Result<History, Malformed> {
        let mut operations: Vec<Operation> = Vec::with_capacity(events.len() / 2);
        let mut pending: HashMap<u64, usize> = HashMap::new();
        let mut ended: HashSet<u64> = HashSet::new();
        for (at, event) in events.into_iter().enumerate() {
            let wrong = |what| Malformed { line: at + 1, what };
            if event.kind == Kind::Invoke {
                if ended.contains(&event.process) {
                    return Err(wrong("a process goes on after an operation of unknown outcome"));
                }
                if pending.insert(event.process, operations.len()).is_some() {
                    return Err(wrong("a process begins an operation before its last one is over"));
                }
                operations.push(Operation {
                    process: event.process,
                    f: event.f,
                    key: event.key,
                    input: event.value,
                    output: Value::Null,
                    start: event.time,
                    end: None,
                    outcome: Kind::Info,
                    extra: event.extra,
                });
                continue;
            }
            let place = pending.remove(&event.process).ok_or_else(|| wrong("a completion without invocation"))?;
            let operation = &mut operations[place];
            if operation.f != event.f || operation.key != event.key {
                return Err(wrong("a completion of something else than was invoked"));
            }
            if event.time < operation.start {
                return Err(wrong("a completion before its invocation"));
            }
            if event.kind == Kind::Info {
                ended.insert(event.process);
            }
            if event.kind == Kind::Ok {
                operation.output = event.value;
            }
            operation.end = Some(event.time);
            operation.outcome = event.kind;
            operation.extra.extend(event.extra);
        }
        Ok(History { name: name.to_owned(), operations, faults: Vec::new() })
    }

    /// Reads the history of one workload; its name is that of the file. A last line that is cut off (the harness died
    /// over it) is left out.
    pub fn read(path: &Path) -> anyhow::Result<History> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let mut events = Vec::new();
        for (at, line) in text.split_inclusive('\n').enumerate() {
            match serde_json::from_str(line) {
                Ok(event) => events.push(event),
                Err(_) if !line.ends_with('\n') => break,
                Err(error) => return Err(error).with_context(|| format!("{}, line {}", path.display(), at + 1)),
            }
        }
        History::from_events(&name, events).with_context(|| format!("{} is no history", path.display()))
    }

    /// Those operations of a verb that took effect.
    pub fn oks<'a>(&'a self, f: &'a str) -> impl Iterator<Item = (usize, &'a Operation)> {
        self.all(f).filter(|(_, operation)| operation.is_ok())
    }

    /// All operations of a verb.
    pub fn all<'a>(&'a self, f: &'a str) -> impl Iterator<Item = (usize, &'a Operation)> {
        self.operations.iter().enumerate().filter(move |(_, operation)| operation.f == f)
    }

    /// When the last line was written.
    pub fn end(&self) -> u64 {
        self.operations.iter().map(|operation| operation.end.unwrap_or(operation.start)).max().unwrap_or(0)
    }
}

/// All histories of a run, each with the run's faults, by name.
pub fn read_dir(directory: &Path) -> anyhow::Result<Vec<History>> {
    let faults = read_faults(directory)?;
    let mut histories = Vec::new();
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", directory.display()))?.path();
        if is_history(&path) {
            histories.push(History { faults: faults.clone(), ..History::read(&path)? });
        }
    }
    histories.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(histories)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(process: u64, kind: Kind, value: Value, time: u64) -> Event {
        Event { process, kind, f: "write".into(), key: "k".into(), value, time, extra: Extra::new() }
    }

    #[test]
    fn lines_are_paired_and_what_is_left_open_is_unknown() {
        let history = History::from_events(
            "test",
            vec![
                event(0, Kind::Invoke, json!(1), 1),
                event(1, Kind::Invoke, json!(2), 2),
                event(0, Kind::Ok, json!(1), 3),
                event(0, Kind::Invoke, json!(3), 4),
            ],
        )
        .expect("a history");
        let outcomes: Vec<_> = history.operations.iter().map(|op| (op.outcome, op.settled())).collect();
        assert_eq!(outcomes, [(Kind::Ok, Some(3)), (Kind::Info, None), (Kind::Info, None)]);
    }

    #[test]
    fn what_is_no_history_is_said_to_be_none() {
        let invoke = |time| event(0, Kind::Invoke, json!(1), time);
        let reuse = vec![invoke(1), event(0, Kind::Info, json!(1), 2), invoke(3)];
        let double = vec![invoke(1), invoke(2)];
        let orphan = vec![event(0, Kind::Ok, json!(1), 1)];
        let backwards = vec![invoke(5), event(0, Kind::Ok, json!(1), 4)];
        for (events, line) in [(reuse, 3), (double, 2), (orphan, 1), (backwards, 2)] {
            assert_eq!(History::from_events("test", events).expect_err("no history").line, line);
        }
    }
}
