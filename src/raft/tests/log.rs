//! The log store alone, over a disk that stalls.

use std::sync::Arc;

use bytes::Bytes;
use openraft::RaftLogReader;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage, RaftLogStorageExt};
use openraft::type_config::TypeConfigExt;
use tokio::sync::oneshot;

use super::super::log::LogStore;
use super::super::types::{Command, LeaderId, LogEntry, LogId, Payload, TypeConfig, Vote};
use super::{Base, On, SHARD, Stall, writer};
use crate::raft::LogBounds;
use crate::runtime;
use crate::storage::{Engine, LogWriter};

fn id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId { term, node_id: 10 }, index)
}

fn entry(term: u64, index: u64, length: usize) -> LogEntry {
    let payload = Bytes::from(vec![u8::try_from(term).expect("small terms"); length]);
    LogEntry::new(id(term, index), Payload::Normal(Command(payload)))
}

struct Store {
    _base: Base,
    stall: Arc<Stall>,
    writer: LogWriter,
    log: LogStore,
}

impl Store {
    fn new(on: On) -> Store {
        let base = Base::new(on);
        let stall = Stall::new(base.engine());
        let engine: Arc<dyn Engine> = stall.clone();
        let writer = writer(engine.clone());
        let log = LogStore::open(SHARD, engine, writer.clone(), LogBounds::default()).expect("an empty log");
        Store { _base: base, stall, writer, log }
    }

    fn reopen(&self) -> LogStore {
        let engine: Arc<dyn Engine> = self.stall.clone();
        LogStore::open(SHARD, engine, self.writer.clone(), LogBounds::default()).expect("a log")
    }

    async fn append(&mut self, entries: Vec<LogEntry>) -> oneshot::Receiver<std::io::Result<()>> {
        let (sender, receiver) = TypeConfig::oneshot();
        self.log.append(entries, IOFlushed::signal(sender)).await.expect("appending does not wait");
        receiver
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stall.set(|disk| disk.dead = true);
        self.writer.stop();
    }
}

fn ids(entries: &[LogEntry]) -> Vec<LogId> {
    entries.iter().map(|entry| entry.id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_return_at_once_and_complete_in_order_when_durable() {
    let mut store = Store::new(On::Memory);
    store.stall.set(|disk| disk.syncs_stall = true);
    let mut done = Vec::new();
    for index in 1..=50 {
        done.push(store.append(vec![entry(1, index, 10)]).await);
        let read = store.log.clone().try_get_log_entries(index..=index).await.expect("it was appended");
        assert_eq!(ids(&read), [id(1, index)], "readable before it is durable");
    }
    runtime::sleep(std::time::Duration::from_millis(50)).await;
    assert!(done.iter_mut().all(|done| done.try_recv().is_err()), "nothing is durable while the disk stalls");
    store.stall.set(|disk| disk.syncs_stall = false);
    let last = done.pop().expect("there are fifty");
    last.await.expect("the callback is called").expect("and says it is durable");
    for mut done in done {
        done.try_recv().expect("all before the last were completed before it").expect("durable");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vote_is_durable_before_it_is_given() {
    let mut store = Store::new(On::Memory);
    let mut log = store.log.clone();
    store.stall.set(|disk| disk.syncs_stall = true);
    let vote = Vote::new(3, 10);
    let saving = runtime::spawn(async move { log.save_vote(&vote).await });
    runtime::sleep(std::time::Duration::from_millis(50)).await;
    assert!(!saving.is_finished());
    store.stall.set(|disk| disk.syncs_stall = false);
    saving.await.expect("no panic").expect("saved");
    assert_eq!(store.log.read_vote().await.expect("readable"), Some(vote));
    assert_eq!(store.reopen().read_vote().await.expect("readable"), Some(vote));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_took_the_place_of_a_truncated_one_is_not_taken_for_written() {
    let mut store = Store::new(On::Memory);
    let first = store.append((1..=9).map(|index| entry(1, index, 10)).collect()).await;
    first.await.expect("called").expect("durable");
    store.log.written(9).await.expect("it is");

    store.stall.set(|disk| disk.log_writes_stall = true);
    store.log.truncate_after(Some(id(1, 5))).await.expect("queued");
    drop(store.append(vec![entry(2, 6, 10), entry(2, 7, 10)]).await);
    let read = store.log.try_get_log_entries(4..20).await.expect("readable");
    assert_eq!(ids(&read), [id(1, 4), id(1, 5), id(2, 6), id(2, 7)], "readers see the new entries at once");
    store.log.written(5).await.expect("still there");
    let log = store.log.clone();
    let waiting = runtime::spawn(async move { log.written(6).await });
    runtime::sleep(std::time::Duration::from_millis(50)).await;
    assert!(!waiting.is_finished(), "the old entry 6 is written, the new one is not");
    store.stall.set(|disk| disk.log_writes_stall = false);
    waiting.await.expect("no panic").expect("written");
    store.log.barrier().await.expect("durable");
    let mut reopened = store.reopen();
    let read = reopened.try_get_log_entries(..).await.expect("readable");
    assert_eq!(
        ids(&read),
        [1, 2, 3, 4, 5].map(|index| id(1, index)).into_iter().chain([id(2, 6), id(2, 7)]).collect::<Vec<_>>()
    );
    let state = reopened.get_log_state().await.expect("known");
    assert_eq!((state.last_purged_log_id, state.last_log_id), (None, Some(id(2, 7))));
}

async fn large_logs_are_read_in_parts(on: On) {
    const COUNT: u64 = 400;
    let mut store = Store::new(on);
    let entries: Vec<LogEntry> = (0..COUNT).map(|index| entry(1, index, 20_000)).collect();
    let mut expected = ids(&entries);
    // In several steps, so that the cache, which holds a fraction of it, has something it may drop.
    for chunk in entries.chunks(50) {
        store.append(chunk.to_vec()).await.await.expect("called").expect("durable");
    }
    assert!(store.log.bytes() >= COUNT * 20_000);
    for mut log in [store.log.clone(), store.reopen()] {
        let all = log.try_get_log_entries(..).await.expect("readable");
        assert_eq!(ids(&all), expected);
        assert!(all.iter().all(|entry| entry.payload == Payload::Normal(Command(vec![1; 20_000].into()))));
        let (mut next, mut parts) = (0, 0);
        while next < COUNT {
            let part = log.limited_get_log_entries(next, COUNT).await.expect("readable");
            let bytes: usize = part.iter().map(|entry| entry.encoded.as_ref().map_or(0, |bytes| bytes.len())).sum();
            assert!(!part.is_empty() && bytes <= 3 << 20, "{bytes}");
            assert_eq!(part[0].id.index, next);
            next += part.len() as u64;
            parts += 1;
        }
        assert!(parts >= 4, "{parts}");
        let streamed: Vec<_> = {
            use futures::StreamExt;
            log.entries_stream(0..COUNT).await.map(|entry| entry.expect("readable").id).collect().await
        };
        assert_eq!(streamed, expected);
    }
    let estimated = store.reopen().bytes();
    assert!(estimated.abs_diff(store.log.bytes()) < COUNT * 100, "{estimated}");

    store.log.purge(id(1, 99)).await.expect("queued");
    store.log.barrier().await.expect("durable");
    expected.drain(..100);
    for mut log in [store.log.clone(), store.reopen()] {
        assert_eq!(ids(&log.try_get_log_entries(..).await.expect("readable")), expected);
        let state = log.get_log_state().await.expect("known");
        assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(1, 99)), Some(id(1, COUNT - 1))));
        assert!(log.limited_get_log_entries(50, COUNT).await.is_err(), "what was purged is not skipped in silence");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_logs_are_read_in_parts_from_memory() {
    large_logs_are_read_in_parts(On::Memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_logs_are_read_in_parts_from_rocksdb() {
    large_logs_are_read_in_parts(On::Rocks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_beyond_the_log_leaves_a_log_that_goes_on_after_it() {
    let mut store = Store::new(On::Memory);
    store.log.blocking_append((0..10).map(|index| entry(1, index, 10))).await.expect("durable");
    store.log.purge(id(2, 100)).await.expect("queued");
    for log in [store.log.clone(), {
        store.log.barrier().await.expect("durable");
        store.reopen()
    }] {
        let state = log.clone().get_log_state().await.expect("known");
        assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(2, 100)), Some(id(2, 100))));
        assert_eq!(log.bytes(), 0);
    }
    store.log.blocking_append([entry(3, 101, 10)]).await.expect("durable");
    assert_eq!(ids(&store.reopen().try_get_log_entries(..).await.expect("readable")), [id(3, 101)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_disk_fails_appends_and_never_completes_them() {
    let mut store = Store::new(On::Memory);
    store.stall.set(|disk| disk.dead = true);
    let done = store.append(vec![entry(1, 1, 10)]).await;
    assert!(done.await.expect("the callback is called").is_err());
    assert!(store.log.barrier().await.is_err());
    assert!(store.log.save_vote(&Vote::new(1, 10)).await.is_err());
}
