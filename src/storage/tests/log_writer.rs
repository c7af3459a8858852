//! The log writer: order, gathering, written against durable, failure.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::{Engine, Family, Reader, dump_all, found};
use crate::storage::{
    Batch, Cursor, Error, FatalHook, Horizons, LogChange, LogOp, LogWriter, Lookup, Memory, Ranges, Result,
    TableWriter, Tier, log_keys,
};
use crate::types::ShardId;

/// A twin whose syncs wait for permission and fail on demand.
struct Gated {
    memory: Arc<Memory>,
    permits: Mutex<usize>,
    changed: Condvar,
    writes: AtomicUsize,
    syncs: AtomicUsize,
    fails: Mutex<Option<(&'static str, Error)>>,
}

impl Gated {
    fn new(permits: usize) -> Arc<Gated> {
        Arc::new(Gated {
            memory: Memory::new().unwrap(),
            permits: Mutex::new(permits),
            changed: Condvar::new(),
            writes: AtomicUsize::new(0),
            syncs: AtomicUsize::new(0),
            fails: Mutex::new(None),
        })
    }

    fn permit(&self, syncs: usize) {
        *self.permits.lock() += syncs;
        self.changed.notify_all();
    }

    fn wait_for(&self, counter: &AtomicUsize, count: usize) {
        while counter.load(Ordering::SeqCst) < count {
            std::thread::yield_now();
        }
    }

    fn failure(&self, at: &str) -> Result<()> {
        match &*self.fails.lock() {
            Some((place, error)) if *place == at => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

impl Reader for Gated {
    fn get(&self, family: Family, key: &[u8], tier: Tier) -> Result<Lookup<Bytes>> {
        self.memory.get(family, key, tier)
    }

    fn first_version(&self, prefix: &[u8], from: &[u8], tier: Tier) -> Result<Lookup<(Bytes, Bytes)>> {
        self.memory.first_version(prefix, from, tier)
    }

    fn cursor<'a>(&'a self, family: Family, start: &[u8], end: &[u8]) -> Box<dyn Cursor + 'a> {
        self.memory.cursor(family, start, end)
    }
}

impl Engine for Gated {
    fn write(&self, batch: Batch) -> Result<()> {
        self.failure("write")?;
        self.memory.write(batch)?;
        self.writes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let mut permits = self.permits.lock();
        while *permits == 0 {
            self.changed.wait(&mut permits);
        }
        *permits -= 1;
        drop(permits);
        self.failure("sync")?;
        self.memory.sync()?;
        self.syncs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn snapshot(&self) -> Arc<dyn Reader> {
        self.memory.snapshot()
    }

    fn table_writer(&self, path: &Path) -> Result<Box<dyn TableWriter>> {
        self.memory.table_writer(path)
    }

    fn install(&self, name: &str, ranges: &Ranges, files: &[PathBuf]) -> Result<()> {
        self.memory.install(name, ranges, files)
    }

    fn horizons(&self) -> &Horizons {
        self.memory.horizons()
    }

    fn staging(&self) -> PathBuf {
        self.memory.staging()
    }

    fn compact(&self, start: &[u8], end: &[u8]) -> Result<()> {
        self.memory.compact(start, end)
    }

    fn free_bytes(&self) -> Result<u64> {
        self.memory.free_bytes()
    }

    fn bytes_in(&self, start: &[u8], end: &[u8]) -> Result<u64> {
        self.memory.bytes_in(start, end)
    }

    fn gauges(&self) -> Vec<(&'static str, f64)> {
        self.memory.gauges()
    }
}

fn no_fatality() -> FatalHook {
    Arc::new(|error| panic!("fatal: {error}"))
}

type Answers = mpsc::Receiver<(u32, Result<()>)>;

/// Submits, and has the answer sent under a number.
struct Asker {
    writer: LogWriter,
    answers: mpsc::Sender<(u32, Result<()>)>,
    asked: u32,
}

impl Asker {
    fn new(writer: &LogWriter) -> (Asker, Answers) {
        let (answers, received) = mpsc::channel();
        (Asker { writer: writer.clone(), answers, asked: 0 }, received)
    }

    fn ask(&mut self, group: u64, change: LogChange) -> u32 {
        self.asked += 1;
        let (number, answers) = (self.asked, self.answers.clone());
        let done = Box::new(move |result| {
            let _ = answers.send((number, result));
        });
        self.writer.submit(LogOp { group: ShardId(group), change, done: Some(done) });
        number
    }
}

fn append(indexes: std::ops::RangeInclusive<u64>, text: &str) -> LogChange {
    LogChange::Append(indexes.map(|index| (index, Bytes::from(format!("{text}{index}")))).collect())
}

fn entry(engine: &dyn Engine, group: u64, index: u64) -> Option<Bytes> {
    found(engine.get(Family::Log, &log_keys::entry(ShardId(group), index), Tier::Disk).unwrap())
}

#[test]
fn what_queues_during_a_sync_shares_the_next_one() {
    let engine = Gated::new(0);
    let writer = LogWriter::start_with(engine.clone(), no_fatality()).unwrap();
    let (mut asker, answers) = Asker::new(&writer);
    asker.ask(1, append(1..=1, "a"));
    engine.wait_for(&engine.writes, 1);
    assert!(answers.try_recv().is_err(), "written is not durable");
    assert_eq!(writer.written(ShardId(1)).index(), 1, "but it is published");

    // All of these wait behind the running sync, and share the next write and sync.
    for group in 1..=20 {
        asker.ask(group, append(2..=4, "b"));
        asker.ask(group, LogChange::Vote(Bytes::from(format!("vote of {group}"))));
    }
    assert!(writer.queue_bytes() > 20 * 3);
    engine.permit(2);
    for number in 1..=41 {
        assert_eq!(answers.recv().unwrap(), (number, Ok(())), "in the order submitted");
    }
    assert_eq!(engine.writes.load(Ordering::SeqCst), 2);
    assert_eq!(engine.syncs.load(Ordering::SeqCst), 2);
    assert_eq!(writer.queue_bytes(), 0);
    engine.memory.crash();
    for group in 1..=20 {
        assert_eq!(entry(&*engine, group, 4).unwrap(), b"b4"[..]);
        let vote = engine.get(Family::Raft, &log_keys::vote(ShardId(group)), Tier::Disk).unwrap();
        assert_eq!(found(vote).unwrap(), format!("vote of {group}"));
    }
}

#[test]
fn a_disk_that_stands_still_shows_in_what_is_outstanding() {
    let engine = Gated::new(0);
    let writer = LogWriter::start_with(engine.clone(), no_fatality()).unwrap();
    assert_eq!(writer.outstanding_since(), None);
    let (mut asker, answers) = Asker::new(&writer);
    asker.ask(1, append(1..=1, "a"));
    engine.wait_for(&engine.writes, 1);
    let since = writer.outstanding_since().expect("the sync is waited for");
    asker.ask(2, append(1..=1, "b"));
    assert_eq!(writer.outstanding_since(), Some(since), "what queues behind it changes nothing");
    engine.permit(1);
    answers.recv().unwrap().1.unwrap();
    engine.wait_for(&engine.writes, 2);
    assert!(writer.outstanding_since().is_some_and(|other| other > since), "the next batch has its own time");
    engine.permit(1);
    answers.recv().unwrap().1.unwrap();
    while writer.outstanding_since().is_some() {
        std::thread::yield_now();
    }
}

#[test]
fn in_a_crowd_groups_that_keep_step_share_a_batch_and_one_that_stays_away_holds_nobody_up() {
    let engine = Gated::new(0);
    let writer = LogWriter::start_with(engine.clone(), no_fatality()).unwrap();
    let (mut asker, answers) = Asker::new(&writer);
    for _ in 0..1_000 {
        writer.note_crowd(1_000);
    }
    asker.ask(1, append(1..=1, "a"));
    engine.wait_for(&engine.writes, 1);
    asker.ask(1, append(2..=2, "b"));
    asker.ask(2, append(1..=1, "b"));
    engine.permit(2);
    for number in 1..=3 {
        assert_eq!(answers.recv().unwrap(), (number, Ok(())));
    }
    assert_eq!(engine.writes.load(Ordering::SeqCst), 2);
    // Group 2 is waited for and does not come; nor does anyone after the last.
    engine.permit(usize::MAX / 2);
    for (number, index) in (4..).zip(3..=6) {
        asker.ask(1, append(index..=index, "c"));
        assert_eq!(answers.recv_timeout(std::time::Duration::from_secs(60)).unwrap(), (number, Ok(())));
    }
    // A vote waits for nobody, and the end neither.
    asker.ask(2, LogChange::Vote(Bytes::from_static(b"vote")));
    assert_eq!(answers.recv().unwrap(), (8, Ok(())));
    asker.ask(1, append(7..=7, "d"));
    writer.stop();
    assert_eq!(answers.recv().unwrap(), (9, Ok(())));
    assert_eq!(entry(&*engine, 1, 7).unwrap(), b"d7"[..]);
}

#[test]
fn truncation_and_purge_keep_their_place_in_the_queue() {
    let engine = Gated::new(usize::MAX / 2);
    let writer = LogWriter::start_with(engine.clone(), no_fatality()).unwrap();
    let (mut asker, answers) = Asker::new(&writer);
    asker.ask(7, append(1..=9, "old"));
    asker.ask(7, LogChange::Truncate { from: 5 });
    asker.ask(7, append(5..=6, "new"));
    asker.ask(7, LogChange::Purge { upto: 2, state: Bytes::from_static(b"state") });
    asker.ask(8, append(1..=2, "other"));
    asker.ask(7, LogChange::Barrier);
    for number in 1..=6 {
        assert_eq!(answers.recv().unwrap(), (number, Ok(())));
    }
    let values: Vec<_> = dump_all(&*engine, Family::Log)
        .into_iter()
        .map(|(key, value)| (log_keys::entry_split(&key).unwrap(), String::from_utf8(value.to_vec()).unwrap()))
        .collect();
    let expected = [(7, 3, "old3"), (7, 4, "old4"), (7, 5, "new5"), (7, 6, "new6"), (8, 1, "other1"), (8, 2, "other2")];
    let expected: Vec<_> =
        expected.iter().map(|(group, index, text)| ((ShardId(*group), *index), (*text).to_owned())).collect();
    assert_eq!(values, expected);
    let state = engine.get(Family::Raft, &log_keys::purged(ShardId(7)), Tier::Disk).unwrap();
    assert_eq!(found(state).unwrap(), b"state"[..]);
    assert_eq!(writer.written(ShardId(7)).index(), 6);
}

#[test]
fn an_index_truncated_is_not_written_until_it_is_written_anew() {
    let engine = Gated::new(0);
    let writer = LogWriter::start_with(engine.clone(), no_fatality()).unwrap();
    let (mut asker, answers) = Asker::new(&writer);
    let written = writer.written(ShardId(1));
    asker.ask(1, append(1..=5, "old"));
    // The write is done before it is published.
    while written.index() != 5 {
        std::thread::yield_now();
    }
    // Queued behind the sync: more of the old log, its truncation, and another entry 4.
    asker.ask(1, append(6..=8, "old"));
    asker.ask(1, LogChange::Truncate { from: 4 });
    assert_eq!(written.index(), 3, "at once, though nothing is written yet");
    asker.ask(1, append(4..=4, "new"));
    assert_eq!(written.index(), 3);
    engine.permit(1);
    engine.wait_for(&engine.writes, 2);
    engine.permit(1);
    for number in 1..=4 {
        assert_eq!(answers.recv().unwrap(), (number, Ok(())));
    }
    assert_eq!(written.index(), 4, "the old 6 to 8 do not count");
    assert_eq!(entry(&*engine, 1, 4).unwrap(), b"new4"[..]);
    assert_eq!(entry(&*engine, 1, 5), None);
}

#[test]
fn a_truncation_behind_the_end_writes_nothing() {
    let engine = Gated::new(usize::MAX / 2);
    let writer = LogWriter::start_with(engine.clone(), no_fatality()).unwrap();
    let (mut asker, answers) = Asker::new(&writer);
    asker.ask(1, append(1..=5, "x"));
    asker.ask(1, LogChange::Truncate { from: 100 });
    asker.ask(2, LogChange::Purge { upto: 30, state: Bytes::new() });
    for _ in 0..3 {
        answers.recv().unwrap().1.unwrap();
    }
    assert_eq!(writer.written(ShardId(1)).index(), 5);
    assert_eq!(writer.written(ShardId(2)).index(), 30, "what a snapshot covers need not be written");
}

#[tokio::test]
async fn waiting_for_written_ends_when_it_is() {
    let engine = Gated::new(usize::MAX / 2);
    let mut batch = Batch::new();
    batch.put(Family::Log, log_keys::entry(ShardId(1), 41), &b"from before"[..]);
    engine.write(batch).unwrap();
    let writer = LogWriter::start_with(engine.clone(), no_fatality()).unwrap();
    let written = writer.written(ShardId(1));
    assert_eq!(written.index(), 41, "what was stored before counts");
    written.wait(41).await;
    let waiting = crate::runtime::spawn(async move { written.wait(43).await });
    writer.submit(LogOp { group: ShardId(1), change: append(42..=42, "x"), done: None });
    writer.submit(LogOp { group: ShardId(1), change: append(43..=43, "x"), done: None });
    waiting.await.unwrap();
    assert_eq!(entry(&*engine, 1, 43).unwrap(), b"x43"[..]);
}

#[test]
fn hints_ride_along_and_cost_no_sync() {
    let engine = Gated::new(usize::MAX / 2);
    let writer = LogWriter::start_with(engine.clone(), no_fatality()).unwrap();
    let (mut asker, answers) = Asker::new(&writer);
    let hint = |text: &'static str| LogChange::Committed(Bytes::from_static(text.as_bytes()));
    let stored = || found(engine.get(Family::Raft, &log_keys::committed(ShardId(1)), Tier::Disk).unwrap());
    for text in ["1", "2", "3"] {
        writer.submit(LogOp { group: ShardId(1), change: hint(text), done: None });
    }
    assert_eq!(engine.writes.load(Ordering::SeqCst), 0);
    asker.ask(2, append(1..=1, "x"));
    answers.recv().unwrap().1.unwrap();
    assert_eq!(stored().unwrap(), b"3"[..], "only the newest, with the next batch");
    asker.ask(1, hint("4"));
    answers.recv().unwrap().1.unwrap();
    assert_eq!(stored().unwrap(), b"4"[..], "one that somebody waits for is written at once");
    asker.ask(1, LogChange::Purge { upto: 1, state: Bytes::new() });
    answers.recv().unwrap().1.unwrap();
    assert_eq!(engine.syncs.load(Ordering::SeqCst), 1, "neither needs a sync");
    writer.submit(LogOp { group: ShardId(1), change: hint("5"), done: None });
    writer.stop();
    assert_eq!(stored().unwrap(), b"5"[..], "and none is forgotten at the end");
}

#[test]
fn a_failure_calls_the_hook_once_and_acknowledges_nothing_more() {
    for place in ["write", "sync"] {
        let engine = Gated::new(1);
        let (fatal, fatalities) = mpsc::channel();
        let hook: FatalHook = Arc::new(move |error| fatal.send(error.clone()).unwrap());
        let writer = LogWriter::start_with(engine.clone(), hook).unwrap();
        let (mut asker, answers) = Asker::new(&writer);
        asker.ask(1, append(1..=1, "x"));
        assert_eq!(answers.recv().unwrap(), (1, Ok(())));
        let error = Error::DiskFull("no room".to_owned());
        *engine.fails.lock() = Some((place, error.clone()));
        asker.ask(1, append(2..=2, "x"));
        asker.ask(1, LogChange::Vote(Bytes::new()));
        engine.permit(5);
        assert_eq!(fatalities.recv().unwrap(), error);
        for number in [2, 3] {
            let (answered, result) = answers.recv().unwrap();
            assert_eq!(answered, number);
            assert!(result.is_err(), "{place}");
        }
        *engine.fails.lock() = None;
        // Refused at once or after the queue; never written.
        asker.ask(1, append(3..=3, "x"));
        assert!(answers.recv().unwrap().1.is_err());
        assert!(fatalities.recv().is_err(), "the hook is called once");
        assert_eq!(entry(&*engine, 1, 3), None);
    }
}

#[test]
fn stopping_finishes_what_is_queued_and_refuses_what_comes_later() {
    let engine = Gated::new(usize::MAX / 2);
    let writer = LogWriter::start_with(engine.clone(), no_fatality()).unwrap();
    let (mut asker, answers) = Asker::new(&writer);
    for index in 1..=50 {
        asker.ask(1, append(index..=index, "x"));
    }
    writer.stop();
    for number in 1..=50 {
        assert_eq!(answers.recv().unwrap(), (number, Ok(())));
    }
    asker.ask(1, append(51..=51, "x"));
    assert_eq!(answers.recv().unwrap(), (51, Err(Error::Stopped)));
    writer.stop();
    engine.memory.crash();
    assert!(entry(&*engine, 1, 50).is_some());
    assert!(entry(&*engine, 1, 51).is_none());
}

#[test]
fn a_large_queue_is_written_in_bounded_batches() {
    let engine = Gated::new(0);
    let writer = LogWriter::start_with(engine.clone(), no_fatality()).unwrap();
    let (mut asker, answers) = Asker::new(&writer);
    asker.ask(1, append(1..=1, "x"));
    engine.wait_for(&engine.writes, 1);
    for index in 2..=13 {
        asker.ask(1, LogChange::Append(vec![(index, Bytes::from(vec![0; 1 << 20]))]));
    }
    engine.permit(100);
    for number in 1..=13 {
        assert_eq!(answers.recv().unwrap(), (number, Ok(())));
    }
    assert_eq!(engine.writes.load(Ordering::SeqCst), 1 + 3, "four megabytes each");
}
