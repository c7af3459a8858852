//! Writing a history down while it happens.
//!
//! Lines are stamped and appended under one lock, so the order of lines is the order of their times. The stamp of an
//! invocation is taken before the request leaves and that of a completion after its answer came: the lock can only
//! make an operation look longer than it was, which never makes a wrong verdict.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::Context as _;
use serde_json::Value;

use super::{Event, Extra, History, Kind};

/// The harness' clock: one start for all histories and faults of a run.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch {
    started: Instant,
}

impl Stopwatch {
    /// Starts at zero.
    pub fn start() -> Stopwatch {
        Stopwatch { started: Instant::now() }
    }

    /// Nanoseconds since the start.
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The history of one workload, being written.
pub struct Recorder {
    name: String,
    clock: Stopwatch,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    next_process: u64,
    file: Option<BufWriter<File>>,
    /// The first failure to write; the history in memory goes on.
    broken: Option<io::Error>,
}

impl Recorder {
    /// A history that is kept in memory only.
    pub fn new(name: &str, clock: Stopwatch) -> Arc<Recorder> {
        Arc::new(Recorder { name: name.to_owned(), clock, state: Mutex::default() })
    }

    /// A history that is written to `NAME.jsonl` in a directory as well.
    pub fn to_file(directory: &Path, name: &str, clock: Stopwatch) -> anyhow::Result<Arc<Recorder>> {
        let path = directory.join(format!("{name}.jsonl"));
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let state = State { file: Some(BufWriter::new(file)), ..State::default() };
        Ok(Arc::new(Recorder { name: name.to_owned(), clock, state: Mutex::new(state) }))
    }

    /// The workload's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A new process.
    pub fn process(self: &Arc<Recorder>) -> Process {
        let number = self.state().fresh();
        Process { recorder: self.clone(), number }
    }

    /// The history so far.
    pub fn history(&self) -> History {
        let events = self.state().events.clone();
        History::from_events(&self.name, events).expect("a recorder pairs what it writes")
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        self.state().events.len()
    }

    /// Whether nothing has been written yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sees to it that every line is in the file. Errors: the first failure to write that there was.
    pub fn flush(&self) -> anyhow::Result<()> {
        let mut state = self.state();
        if let Some(file) = &mut state.file {
            file.flush().with_context(|| format!("cannot write the history of {}", self.name))?;
        }
        match state.broken.take() {
            Some(error) => Err(error).with_context(|| format!("cannot write the history of {}", self.name)),
            None => Ok(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, process: u64, kind: Kind, f: &str, key: &str, value: Value, extra: Extra) {
        let mut state = self.state();
        let time = self.clock.now_ns();
        let event = Event { process, kind, f: f.to_owned(), key: key.to_owned(), value, time, extra };
        state.write(&event);
        state.events.push(event);
    }
}

impl State {
    fn fresh(&mut self) -> u64 {
        let number = self.next_process;
        self.next_process += 1;
        number
    }

    fn write(&mut self, event: &Event) {
        let Some(file) = &mut self.file else { return };
        let written = serde_json::to_writer(&mut *file, event).map_err(io::Error::from);
        if let Err(error) = written.and_then(|()| file.write_all(b"\n")) {
            self.file = None;
            self.broken = Some(error);
        }
    }
}

/// One client as the history knows it: one operation at a time.
pub struct Process {
    recorder: Arc<Recorder>,
    number: u64,
}

impl Process {
    /// Its number now; it changes after an `info`.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Notes that an operation is about to be sent.
    pub fn invoke(&mut self, f: &'static str, key: &str, value: Value) -> Pending<'_> {
        self.invoke_with(f, key, value, Extra::new())
    }

    /// The same with further fields.
    pub fn invoke_with(&mut self, f: &'static str, key: &str, value: Value, extra: Extra) -> Pending<'_> {
        self.recorder.push(self.number, Kind::Invoke, f, key, value.clone(), extra);
        Pending { process: self, f, key: key.to_owned(), asked: value, complete: false }
    }
}

/// An operation on its way. Dropped without a completion it ends as `info`: its client went away.
#[must_use = "an operation needs its completion"]
pub struct Pending<'a> {
    process: &'a mut Process,
    f: &'static str,
    key: String,
    asked: Value,
    complete: bool,
}

impl Pending<'_> {
    /// It took effect; `value` is the answer.
    pub fn ok(self, value: Value) {
        self.ok_with(value, Extra::new());
    }

    /// The same with further fields.
    pub fn ok_with(mut self, value: Value, extra: Extra) {
        self.complete(Kind::Ok, value, extra);
    }

    /// It certainly had no effect.
    pub fn fail(self, error: &str) {
        self.fail_with(error, Extra::new());
    }

    /// The same with further fields.
    pub fn fail_with(mut self, error: &str, extra: Extra) {
        let asked = self.asked.take();
        self.complete(Kind::Fail, asked, with_error(error, extra));
    }

    /// Whether it had or will have an effect is unknown.
    pub fn info(mut self, error: &str) {
        self.end_unknown(error);
    }

    fn end_unknown(&mut self, error: &str) {
        let asked = self.asked.take();
        self.complete(Kind::Info, asked, with_error(error, Extra::new()));
        self.process.number = self.process.recorder.state().fresh();
    }

    fn complete(&mut self, kind: Kind, value: Value, extra: Extra) {
        self.complete = true;
        self.process.recorder.push(self.process.number, kind, self.f, &self.key, value, extra);
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.complete {
            self.end_unknown("abandoned");
        }
    }
}

fn with_error(error: &str, mut extra: Extra) -> Extra {
    let mut all = Extra::new();
    all.insert("error".into(), error.into());
    all.append(&mut extra);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_operation_of_unknown_outcome_ends_its_process() {
        let recorder = Recorder::new("test", Stopwatch::start());
        let mut process = recorder.process();
        let first = process.number();
        process.invoke("write", "k", json!(1)).info("timeout");
        assert_ne!(process.number(), first);
        drop(process.invoke("write", "k", json!(2)));
        process.invoke("read", "k", Value::Null).ok(json!(2));
        let history = recorder.history();
        let outcomes: Vec<Kind> = history.operations.iter().map(|operation| operation.outcome).collect();
        assert_eq!(outcomes, [Kind::Info, Kind::Info, Kind::Ok]);
        assert_eq!(history.operations[1].text("error"), Some("abandoned"));
        let processes: std::collections::HashSet<u64> = history.operations.iter().map(|op| op.process).collect();
        assert_eq!(processes.len(), 3);
    }

    #[test]
    fn times_only_grow_and_what_is_written_can_be_read() {
        let directory = std::env::temp_dir().join(format!("trivet-history-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let recorder = Recorder::to_file(&directory, "test", Stopwatch::start()).expect("a file");
        let mut process = recorder.process();
        for value in 0..50 {
            process.invoke("write", "k", json!(value)).ok(json!(value));
        }
        recorder.flush().expect("written");
        let read = History::read(&directory.join("test.jsonl")).expect("readable");
        assert_eq!(read.operations, recorder.history().operations);
        assert!(read.operations.windows(2).all(|pair| pair[0].end.is_some_and(|end| end <= pair[1].start)));
        std::fs::remove_dir_all(&directory).expect("our own directory");
    }
}
