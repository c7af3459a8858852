//! Histories by hand, for the tests of the checkers.

use serde_json::Value;

use crate::history::{Event, Extra, History, Kind};

/// One operation.
#[derive(Clone, Debug)]
pub struct Line {
    f: &'static str,
    key: String,
    input: Value,
    output: Value,
    kind: Kind,
    extra: Extra,
    pub start: u64,
    pub end: u64,
    process: Option<u64>,
}

impl Line {
    pub fn new(f: &'static str, key: &str, input: Value) -> Line {
        let output = input.clone();
        let extra = Extra::new();
        Line { f, key: key.into(), input, output, kind: Kind::Ok, extra, start: 0, end: 0, process: None }
    }

    pub fn is(&self, f: &str) -> bool {
        self.f == f
    }

    pub fn ok(self, output: Value) -> Line {
        Line { kind: Kind::Ok, output, ..self }
    }

    pub fn fail(self, error: &str) -> Line {
        Line { kind: Kind::Fail, ..self }.extra("error", error)
    }

    pub fn info(self, error: &str) -> Line {
        Line { kind: Kind::Info, ..self }.extra("error", error)
    }

    pub fn extra(mut self, field: &str, value: impl Into<Value>) -> Line {
        self.extra.insert(field.into(), value.into());
        self
    }

    pub fn version(self, version: u64) -> Line {
        self.extra("version", version)
    }

    pub fn at(self, start: u64, end: u64) -> Line {
        Line { start, end, ..self }
    }

    pub fn by(self, process: u64) -> Line {
        Line { process: Some(process), ..self }
    }
}

/// The history of these operations, in this order, each by a process of its own unless said otherwise.
pub fn history(lines: &[Line]) -> History {
    let mut operations = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let event = |kind, value: &Value, time, extra: &Extra| Event {
            process: line.process.unwrap_or(1_000 + at as u64),
            kind,
            f: line.f.into(),
            key: line.key.clone(),
            value: value.clone(),
            time,
            extra: extra.clone(),
        };
        let invoke = event(Kind::Invoke, &line.input, line.start, &Extra::new());
        let completion = event(line.kind, &line.output, line.end, &line.extra);
        operations.extend(History::from_events("test", vec![invoke, completion]).expect("a pair").operations);
    }
    History { name: "test".into(), operations, faults: Vec::new() }
}

/// The operations that a verdict names, of each finding.
pub fn named(verdict: super::Verdict) -> Vec<Vec<usize>> {
    match verdict {
        super::Verdict::Invalid { findings } => findings.into_iter().map(|finding| finding.operations).collect(),
        other => panic!("not found: {other:?}"),
    }
}
