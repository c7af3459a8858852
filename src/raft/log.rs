//! The log of one group: openraft's log storage over the node's one log writer.
//!
//! Every change is queued at the writer in the order openraft asks for it: entries, votes, truncations, purges. What
//! is queued is readable at once, from the cache; completion is reported from the writer's thread, in order, when the
//! batch is durable. Nothing here waits for the disk except the vote, which must be durable before it is given, and
//! reads of entries that are no longer cached, which go to the blocking pool.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::future::Either;
use futures::{Stream, StreamExt};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::cache::{Cache, Sizes};
use super::codec;
use super::metrics;
use super::options::LogBounds;
use super::types::{Command, LogEntry, LogId, Payload, TypeConfig, Vote};
use crate::runtime;
use crate::storage::{self, Engine, Family, LogChange, LogOp, LogWriter, Lookup, Tier, Written, log_keys};
use crate::types::ShardId;

/// Bytes of decoded entries kept per group: what is on its way to followers and to the machine, many times over.
const CACHE_BYTES_MAX: usize = 2 << 20;
/// Bytes after which one read of entries ends, and so about the size of an append request or of a batch to apply.
pub(super) const READ_BYTES_MAX: usize = 1 << 20;
/// Newest entries looked at when the log is opened, to estimate its size.
const SAMPLE_ENTRIES: u64 = 64;

/// The log of one group. Cloning gives another handle of the same.
#[derive(Clone)]
pub struct LogStore {
    shared: Arc<Shared>,
}

struct Shared {
    group: ShardId,
    engine: Arc<dyn Engine>,
    writer: LogWriter,
    written: Arc<Written>,
    bounds: LogBounds,
    state: Mutex<State>,
    /// Told when there is more log than is to be kept.
    full: Notify,
    /// The last entry known to be held by every member of the group.
    held: AtomicU64,
    closed: CancellationToken,
}

struct State {
    vote: Option<Vote>,
    purged: Option<LogId>,
    /// The last entry, or the last purged one if there is none.
    last: Option<LogId>,
    cache: Cache,
    sizes: Sizes,
    /// Whether `full` was told since the last trimming.
    told: bool,
}

fn after(id: Option<LogId>) -> u64 {
    id.map_or(0, |id| id.index + 1)
}

fn io_error(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}

impl LogStore {
    /// Recovers the log of a group.
    pub fn open(
        group: ShardId,
        engine: Arc<dyn Engine>,
        writer: LogWriter,
        bounds: LogBounds,
    ) -> storage::Result<LogStore> {
        let corrupt = |error: codec::CodecError| storage::Error::corruption(format!("the log of {group}: {error}"));
        let stored = |key: Bytes| match engine.get(Family::Raft, &key, Tier::Disk)? {
            Lookup::Found(bytes) => Ok(Some(bytes)),
            Lookup::Missing | Lookup::NeedsDisk => Ok::<_, storage::Error>(None),
        };
        let vote = stored(log_keys::vote(group))?.map(codec::decode_vote).transpose().map_err(corrupt)?;
        let purged = stored(log_keys::purged(group))?.map(codec::decode_log_id).transpose().map_err(corrupt)?;
        let newest = newest_entry(&*engine, group).map_err(|error| storage::Error::corruption(error.to_string()))?;
        // Entries at or before the purged one can be left over from a purge that was cut short by a snapshot.
        let last = newest.map(|entry| entry.id).filter(|id| id.index >= after(purged)).or(purged);
        let state = State {
            vote,
            purged,
            last,
            cache: Cache::default(),
            sizes: Sizes::new(bounds.keep_bytes.min(bounds.held_keep_bytes)),
            told: false,
        };
        let written = writer.written(group);
        let shared = Shared {
            group,
            engine,
            writer,
            written,
            bounds,
            state: Mutex::new(state),
            full: Notify::new(),
            held: AtomicU64::new(0),
            closed: CancellationToken::new(),
        };
        let log = LogStore { shared: Arc::new(shared) };
        log.estimate_sizes().map_err(|error| storage::Error::corruption(error.to_string()))?;
        Ok(log)
    }

    /// Guesses from the newest entries how many bytes the recovered log holds.
    fn estimate_sizes(&self) -> io::Result<()> {
        let (first, end) = self.range();
        if first >= end {
            return Ok(());
        }
        let sample = self.read_stored(end.saturating_sub(SAMPLE_ENTRIES).max(first), end, READ_BYTES_MAX)?;
        let bytes: usize = sample.iter().map(|entry| entry.encoded.as_ref().map_or(0, Bytes::len)).sum();
        let average = (bytes / sample.len().max(1)) as u64;
        let mut state = self.shared.state.lock();
        (first..end).for_each(|index| state.sizes.push(index, average));
        Ok(())
    }

    /// Bytes of log kept.
    pub fn bytes(&self) -> u64 {
        self.shared.state.lock().sizes.bytes()
    }

    /// Waits until there is more log than is to be kept.
    pub async fn full(&self) {
        self.shared.full.notified().await;
    }

    /// The last entry known to be held by every member, 0 if none is.
    pub fn held(&self) -> u64 {
        self.shared.held.load(Ordering::Relaxed)
    }

    /// Every member of the group holds the entries up to and with `index`. A hint: if a member that joins later needs
    /// them, it gets a snapshot.
    pub fn note_held(&self, index: u64) {
        self.shared.held.fetch_max(index, Ordering::Relaxed);
    }

    /// The last applied entry that can be removed so that the tail to be kept stays, if that is worth the trouble. What
    /// some member lacks goes only if there is too much of it, or if `all` says so.
    pub fn purgeable(&self, applied: u64, all: bool) -> Option<u64> {
        let bounds = &self.shared.bounds;
        let mut state = self.shared.state.lock();
        state.told = false;
        let held = state.sizes.purgeable(bounds.held_keep_bytes, applied.min(self.held()));
        let any = (all || state.sizes.bytes() > bounds.bytes_max)
            .then(|| state.sizes.purgeable(bounds.keep_bytes, applied))
            .flatten();
        held.max(any)
    }

    /// Waits until the entry at `index`, as this log has it now, is in the write-ahead log: then whatever is written
    /// afterwards cannot become durable without it.
    pub async fn written(&self, index: u64) -> io::Result<()> {
        if index == 0 {
            // What an empty log has written is 0 as well.
            return self.barrier().await;
        }
        let closed = pin!(self.shared.closed.cancelled());
        match futures::future::select(pin!(self.shared.written.wait(index)), closed).await {
            Either::Left(_) => Ok(()),
            Either::Right(_) => Err(io_error(storage::Error::Stopped)),
        }
    }

    /// Ends those who wait for an entry that will never be written, because the replica or the log writer stopped.
    pub fn close(&self) {
        self.shared.closed.cancel();
    }

    /// Waits until everything queued so far is durable.
    pub async fn barrier(&self) -> io::Result<()> {
        self.submit_and_wait(LogChange::Barrier).await
    }

    fn submit(&self, change: LogChange, done: Option<Box<dyn FnOnce(storage::Result<()>) + Send>>) {
        self.shared.writer.submit(LogOp { group: self.shared.group, change, done });
    }

    async fn submit_and_wait(&self, change: LogChange) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        self.submit(
            change,
            Some(Box::new(move |result| {
                let _ = sender.send(result);
            })),
        );
        match receiver.await {
            Ok(result) => result.map_err(io_error),
            Err(_) => Err(io_error(storage::Error::Stopped)),
        }
    }

    /// The indexes of the entries there are, `[first, end)`.
    fn range(&self) -> (u64, u64) {
        let state = self.shared.state.lock();
        (after(state.purged), after(state.last))
    }

    /// The entries of `[start, end)` as far as there are, up to about `bytes_max`.
    async fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<LogEntry>> {
        let (start, end, boundary, cached) = {
            let state = self.shared.state.lock();
            let start = start.max(after(state.purged));
            let end = end.min(after(state.last));
            if start >= end {
                return Ok(Vec::new());
            }
            let boundary = state.cache.first().unwrap_or(end).min(end);
            let cached =
                if boundary < end { state.cache.read(start.max(boundary), end, bytes_max) } else { Vec::new() };
            (start, end, boundary, cached)
        };
        if start >= boundary {
            ::metrics::counter!(metrics::CACHE_READS).increment(1);
            return Ok(cached);
        }
        ::metrics::counter!(metrics::DISK_READS).increment(1);
        let log = self.clone();
        let mut entries = runtime::spawn_blocking(move || log.read_stored(start, boundary.min(end), bytes_max))
            .await
            .map_err(io_error)??;
        // Nothing there: a purge has overtaken us, or the log begins later. Otherwise there must be no hole.
        if entries.last().is_none_or(|last| last.id.index + 1 == boundary) {
            entries.extend(cached);
        }
        Ok(entries)
    }

    /// Refuses what does not begin at `start`, unless the log ends there: neither a machine nor a follower's log may
    /// skip an entry.
    fn complete(&self, start: u64, end: u64, entries: Vec<LogEntry>) -> io::Result<Vec<LogEntry>> {
        let begins = match entries.first() {
            Some(first) => first.id.index == start,
            None => start >= end.min(self.range().1),
        };
        if begins { Ok(entries) } else { Err(io_error(format!("entry {start} of {} is missing", self.shared.group))) }
    }

    /// Entries of `[start, end)` from storage, up to about `bytes_max` and at least one if there is one.
    fn read_stored(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<LogEntry>> {
        let (from, to) = log_keys::entries_range(self.shared.group, start, end);
        let mut cursor = self.shared.engine.cursor(Family::Log, &from, &to);
        cursor.seek_first();
        let (mut entries, mut bytes) = (Vec::<LogEntry>::new(), 0);
        while let Some((_, value)) = cursor.entry() {
            if bytes >= bytes_max && !entries.is_empty() {
                break;
            }
            bytes += value.len();
            let entry = codec::decode_entry(Bytes::copy_from_slice(value)).map_err(io_error)?;
            if entries.last().is_some_and(|last| last.id.index + 1 != entry.id.index) {
                return Err(io_error(format!("the log of {} has a hole before {}", self.shared.group, entry.id)));
            }
            entries.push(entry);
            cursor.next();
        }
        cursor.status().map_err(io_error)?;
        Ok(entries)
    }
}

/// The newest entry of a group in storage.
fn newest_entry(engine: &dyn Engine, group: ShardId) -> io::Result<Option<LogEntry>> {
    let (from, to) = log_keys::entries_range(group, 0, u64::MAX);
    let mut cursor = engine.cursor(Family::Log, &from, &to);
    cursor.seek_last();
    let entry = cursor.entry().map(|(_, value)| codec::decode_entry(Bytes::copy_from_slice(value)));
    cursor.status().map_err(io_error)?;
    entry.transpose().map_err(io_error)
}

/// Encodes an entry that is new here; what it holds is from then on a slice of the encoded bytes.
fn encoded(mut entry: LogEntry) -> (LogEntry, Bytes) {
    if let Some(bytes) = &entry.encoded {
        let bytes = bytes.clone();
        return (entry, bytes);
    }
    let bytes = codec::encode_entry(&entry);
    if let Payload::Normal(command) = &mut entry.payload {
        // The payload is the last field of the message.
        *command = Command(bytes.slice(bytes.len() - command.0.len()..));
    }
    entry.encoded = Some(bytes.clone());
    (entry, bytes)
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&end) => end.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<LogEntry>, io::Error> {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<LogEntry>, io::Error> {
        let entries = self.read(start, end, READ_BYTES_MAX).await?;
        self.complete(start, end, entries)
    }

    async fn entries_stream<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = Result<LogEntry, io::Error>> + OptionalSend {
        let (start, end) = bounds(&range);
        let log = self.clone();
        futures::stream::unfold(Some(start), move |next| {
            let log = log.clone();
            async move {
                let start = next.filter(|&start| start < end)?;
                let read = log.read(start, end, READ_BYTES_MAX).await;
                let (chunk, next) = match read.and_then(|entries| log.complete(start, end, entries)) {
                    Ok(entries) => {
                        let next = entries.last()?.id.index + 1;
                        (entries.into_iter().map(Ok).collect(), Some(next))
                    }
                    Err(error) => (vec![Err(error)], None),
                };
                Some((futures::stream::iter(chunk), next))
            }
        })
        .flatten()
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shared.state.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.shared.state.lock();
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.submit_and_wait(LogChange::Vote(codec::encode_vote(vote))).await?;
        self.shared.state.lock().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut appended = Vec::new();
        {
            let mut state = self.shared.state.lock();
            for entry in entries {
                let (entry, bytes) = encoded(entry);
                state.last = Some(entry.id);
                state.sizes.push(entry.id.index, bytes.len() as u64);
                appended.push((entry.id.index, bytes));
                state.cache.push(entry);
            }
            state.cache.shrink(CACHE_BYTES_MAX, self.shared.written.index());
            let LogBounds { bytes_max, held_bytes_max, .. } = self.shared.bounds;
            if !state.told && state.sizes.bytes() > bytes_max.min(held_bytes_max) {
                state.told = true;
                self.shared.full.notify_one();
            }
        }
        ::metrics::counter!(metrics::ENTRIES_APPENDED).increment(appended.len() as u64);
        self.submit(
            LogChange::Append(appended),
            Some(Box::new(move |result| callback.io_completed(result.map_err(io_error)))),
        );
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = after(last);
        {
            let mut state = self.shared.state.lock();
            if from >= after(state.last) {
                return Ok(());
            }
            state.last = last.max(state.purged);
            state.cache.truncate(from);
            state.sizes.truncate(from);
        }
        // From here on `written` no longer counts what was cut off, though it may still be queued.
        self.submit(LogChange::Truncate { from }, None);
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        {
            let mut state = self.shared.state.lock();
            if state.purged >= Some(upto) {
                return Ok(());
            }
            state.purged = Some(upto);
            state.last = state.last.max(Some(upto));
            state.cache.purge(upto.index);
            let empty = state.last == Some(upto);
            state.sizes.purge(upto.index, empty);
        }
        self.submit(LogChange::Purge { upto: upto.index, state: codec::encode_log_id(&upto) }, None);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use openraft::entry::RaftEntry;

    use super::super::types::LeaderId;
    use super::*;

    #[test]
    fn an_entry_is_encoded_once_and_its_payload_is_a_slice_of_that() {
        for length in [0, 1, 127, 128, 100_000] {
            let id = LogId::new(LeaderId { term: 3, node_id: 9 }, 70_000);
            let payload = Bytes::from((0..length).map(|i| i as u8).collect::<Vec<_>>());
            let (entry, bytes) = encoded(LogEntry::new(id, Payload::Normal(Command(payload.clone()))));
            assert_eq!(entry.payload, Payload::Normal(Command(payload)));
            let Payload::Normal(command) = &entry.payload else { unreachable!("it is what was put in") };
            assert!(length == 0 || command.0.as_ptr_range().end == bytes.as_ptr_range().end);
            let again = codec::decode_entry(bytes.clone()).expect("it was just encoded");
            assert_eq!(again, entry);
            assert_eq!(encoded(again).1, bytes);
        }
    }
}
