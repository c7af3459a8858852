//! One thread that makes the logs of all groups durable together.
//!
//! Groups submit appends, votes, truncations and purges; the queue is one FIFO, so the operations of a group keep their
//! order. The thread takes everything queued (up to a bound), writes it as one batch, publishes how far each group's
//! log is written, makes the log durable once, and then completes the operations in order. While it waits for the disk
//! the next batch gathers: the running sync is the batching window. Only when writers queue up anyway does it wait a
//! moment longer for the groups that are about to come ([`super::pace`]).
//!
//! *Written* is weaker than durable and is what apply waits for: once an entry is in the store's one log, effects written
//! later can never be durable without it.
//!
//! A failed write or sync calls the fatal hook, which ends the process: after a failed sync nobody knows what is on the
//! disk, so nothing more may be acknowledged. Back-pressure is not applied here, where it would stop heartbeats, but by
//! whoever admits proposals, after a look at [`LogWriter::queue_bytes`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::log_queue::{BATCH_BYTES_MAX, LogChange, LogOp, Queue, Queued};
use super::metrics::LogMetrics;
use super::pace::{Crowd, Pace};
use super::written::Written;
use super::{Batch, Change, Engine, Error, Family, FatalHook, Result, abort_on_fatal, log_keys};
use crate::runtime::planted::{self, Bug};
use crate::runtime::{Clock, Instant, simulation, spawn};
use crate::types::ShardId;

struct Shared {
    engine: Arc<dyn Engine>,
    crowd: Crowd,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Wakes the task that stands for the thread in a simulation.
    woken: Notify,
    bytes: AtomicUsize,
    /// Since when a batch has been on its way to the disk.
    outstanding: Mutex<Option<Instant>>,
}

impl Shared {
    fn stop(&self) {
        self.queue.lock().stopping = true;
        self.wake();
    }

    fn wake(&self) {
        self.wake.notify_one();
        self.woken.notify_one();
    }
}

/// Ends the thread when the last handle is gone.
struct Life {
    shared: Arc<Shared>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// A handle to the log writer; cheap to clone.
#[derive(Clone)]
pub struct LogWriter {
    shared: Arc<Shared>,
    life: Arc<Life>,
}

impl LogWriter {
    /// Starts the thread; a failed write or sync will end the process.
    pub fn start(engine: Arc<dyn Engine>) -> Result<LogWriter> {
        LogWriter::start_with(engine, abort_on_fatal())
    }

    /// The same with another fatal hook. If the hook returns, the writer closes: everything queued and everything
    /// submitted later is done with an error.
    pub fn start_with(engine: Arc<dyn Engine>, fatal: FatalHook) -> Result<LogWriter> {
        let shared = Arc::new(Shared {
            engine,
            crowd: Crowd::default(),
            queue: Mutex::default(),
            wake: Condvar::new(),
            woken: Notify::new(),
            bytes: AtomicUsize::new(0),
            outstanding: Mutex::new(None),
        });
        let worker = Worker { shared: shared.clone(), fatal, metrics: LogMetrics::new(), clock: Clock::system() };
        if simulation::active() {
            spawn(worker.run_as_task());
            return Ok(LogWriter { life: Arc::new(Life { shared: shared.clone(), thread: Mutex::default() }), shared });
        }
        let thread = std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || worker.run())
            .map_err(|error| Error::Io(format!("cannot start the log writer's thread: {error}")))?;
        let life = Arc::new(Life { shared: shared.clone(), thread: Mutex::new(Some(thread)) });
        Ok(LogWriter { shared, life })
    }

    /// Queues an operation; never blocks on the disk but for a group's very first, which looks up where its log ends.
    pub fn submit(&self, op: LogOp) {
        let group = op.group;
        let bytes = op.change.bytes();
        let mut queue = self.shared.queue.lock();
        if queue.closed {
            drop(queue);
            if let Some(done) = op.done {
                done(Err(Error::Stopped));
            }
            return;
        }
        let op = match op {
            LogOp { change: LogChange::Committed(hint), done: None, .. } => {
                queue.hints.insert(group, hint);
                return;
            }
            op => op,
        };
        let written = match queue.groups.get(&group) {
            Some(written) => written.clone(),
            None => {
                drop(queue);
                let written = self.written(group);
                queue = self.shared.queue.lock();
                written
            }
        };
        let (generation, reaches) = written.submit(&op.change);
        let queued = self.shared.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if !queue.awaited.is_empty() {
            queue.awaited.remove(&group);
            if op.change.is_urgent() || queued >= BATCH_BYTES_MAX {
                queue.awaited.clear();
            }
            queue.asleep |= queue.awaited.is_empty();
        }
        queue.ops.push_back(Queued { op, written, generation, reaches, bytes });
        if queue.asleep {
            queue.asleep = false;
            drop(queue);
            self.shared.wake();
        }
    }

    /// Tells that an append carries so many writes: the more they are, the longer they wait for one another anyway.
    pub fn note_crowd(&self, writes: usize) {
        self.shared.crowd.note(writes);
    }

    /// How far a group's log is written.
    pub fn written(&self, group: ShardId) -> Arc<Written> {
        if let Some(written) = self.shared.queue.lock().groups.get(&group) {
            return written.clone();
        }
        let last = last_index(&*self.shared.engine, group);
        let fresh = Written::new(last);
        self.shared.queue.lock().groups.entry(group).or_insert_with(|| Arc::new(fresh)).clone()
    }

    /// Forgets a group that has left this node, after its last operation is done.
    pub fn forget(&self, group: ShardId) {
        let mut queue = self.shared.queue.lock();
        queue.groups.remove(&group);
        queue.hints.remove(&group);
    }

    /// Bytes queued and not yet written: what whoever admits proposals looks at.
    pub fn queue_bytes(&self) -> usize {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Since when a batch has been on its way to the disk; none while there is nothing to write. A disk that stands still
    /// shows here, whatever the groups are waiting for.
    pub fn outstanding_since(&self) -> Option<Instant> {
        *self.shared.outstanding.lock()
    }

    /// Finishes what is queued and ends the thread; later operations are done with [`Error::Stopped`]. Blocks for as
    /// long as the last batch takes.
    pub fn stop(&self) {
        self.shared.stop();
        if let Some(thread) = self.life.thread.lock().take() {
            // A panic of the thread has already called the fatal hook.
            let _ = thread.join();
        }
    }
}

/// The last index in a group's stored log, 0 if there is none. A failure to read reads as none: the group's own start
/// reads the same entries and reports it.
fn last_index(engine: &dyn Engine, group: ShardId) -> u64 {
    let (start, end) = log_keys::entries_range(group, 0, u64::MAX);
    let mut cursor = engine.cursor(Family::Log, &start, &end);
    cursor.seek_last();
    cursor.entry().and_then(|(key, _)| log_keys::entry_split(key)).map_or(0, |(_, index)| index)
}

struct Worker {
    shared: Arc<Shared>,
    fatal: FatalHook,
    metrics: LogMetrics,
    clock: Clock,
}

impl Worker {
    fn run(self) {
        let alarm = PanicAlarm(&self);
        let mut pace = Pace::new(self.clock.now());
        while let Some((ops, hints)) = self.take(&mut pace) {
            if let Err((error, ops)) = self.process(ops, hints) {
                (self.fatal)(&error);
                self.close(ops, &error);
                break;
            }
        }
        self.close(Vec::new(), &Error::Stopped);
        drop(alarm);
    }

    /// The same as a task: in a simulation the disk takes its time between the steps.
    async fn run_as_task(self) {
        loop {
            let taken = {
                let mut queue = self.shared.queue.lock();
                let idle = queue.ops.is_empty();
                queue.asleep = idle;
                match idle {
                    false => Some(queue.take_batch()),
                    true if !queue.stopping => None,
                    true if queue.hints.is_empty() => break,
                    true => Some(queue.take_batch()),
                }
            };
            let Some((ops, hints)) = taken else {
                self.shared.woken.notified().await;
                continue;
            };
            *self.shared.outstanding.lock() = Some(self.clock.now());
            simulation::disk_writes().await;
            let written = match self.write(ops, hints) {
                Ok(written) => written,
                Err((error, ops)) => return self.close(ops, &error),
            };
            simulation::disk_syncs().await;
            if let Err((error, ops)) = self.finish(written) {
                return self.close(ops, &error);
            }
            *self.shared.outstanding.lock() = None;
        }
        self.close(Vec::new(), &Error::Stopped);
    }

    /// Everything queued, up to the bound; none when the writer is to end and nothing is left.
    fn take(&self, pace: &mut Pace) -> Option<(Vec<Queued>, HashMap<ShardId, Bytes>)> {
        let mut queue = self.shared.queue.lock();
        while queue.ops.is_empty() {
            if queue.stopping {
                if queue.hints.is_empty() {
                    return None;
                }
                break;
            }
            queue.asleep = true;
            self.shared.wake.wait(&mut queue);
            queue.asleep = false;
        }
        let now = self.clock.now();
        if let Some(due) = pace.due(&self.shared.crowd).filter(|&due| due > now)
            && queue.ops.iter().map(|queued| queued.bytes).sum::<usize>() < BATCH_BYTES_MAX
            && !queue.ops.iter().any(|queued| queued.op.change.is_urgent())
        {
            queue.awaited = pace.expected(queue.ops.iter().map(|queued| queued.op.group));
            while !queue.awaited.is_empty() && !queue.stopping {
                let left = due.saturating_duration_since(self.clock.now());
                if left.is_zero() || self.shared.wake.wait_for(&mut queue, left).timed_out() {
                    break;
                }
            }
            queue.awaited.clear();
        }
        let (ops, hints) = queue.take_batch();
        drop(queue);
        pace.took(ops.iter().map(|queued| queued.op.group), self.clock.now(), &self.shared.crowd);
        Some((ops, hints))
    }

    fn process(&self, ops: Vec<Queued>, hints: HashMap<ShardId, Bytes>) -> Result<(), (Error, Vec<Queued>)> {
        *self.shared.outstanding.lock() = Some(self.clock.now());
        let written = self.write(ops, hints)?;
        self.finish(written)?;
        *self.shared.outstanding.lock() = None;
        Ok(())
    }

    /// Writes a batch; afterwards it is readable and not yet durable.
    fn write(&self, ops: Vec<Queued>, hints: HashMap<ShardId, Bytes>) -> Result<WrittenBatch, (Error, Vec<Queued>)> {
        let bytes: usize = ops.iter().map(|queued| queued.bytes).sum();
        let needs_sync = ops.iter().any(|queued| queued.op.change.needs_sync());
        self.metrics.batch_operations.record(ops.len() as f64);
        self.metrics.batch_bytes.record(bytes as f64);

        let begun = self.clock.now();
        if let Err(error) = self.shared.engine.write(gather(&ops, hints)) {
            return Err((error, ops));
        }
        let left = self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        self.metrics.queue_bytes.set(left as f64);
        for queued in &ops {
            queued.written.publish(queued.generation, queued.reaches);
        }
        let written = self.clock.now();
        self.metrics.write_seconds.record(written.duration_since(begun));
        let mut ops = ops;
        if planted::is(Bug::AckBeforeSync) {
            complete(&mut ops);
        } else if planted::is(Bug::CallbacksOutOfOrder)
            && let Some(newest) = ops.last_mut()
        {
            complete(std::slice::from_mut(newest));
        }
        Ok(WrittenBatch { ops, needs_sync, written })
    }

    /// Makes a written batch durable and completes its operations in order.
    fn finish(&self, batch: WrittenBatch) -> Result<(), (Error, Vec<Queued>)> {
        let WrittenBatch { mut ops, needs_sync, written } = batch;
        if needs_sync {
            if let Err(error) = self.shared.engine.sync() {
                return Err((error, ops));
            }
            self.metrics.sync_seconds.record(written.elapsed());
        }
        complete(&mut ops);
        Ok(())
    }

    /// Accepts nothing more and refuses what is still there.
    fn close(&self, taken: Vec<Queued>, error: &Error) {
        let left = {
            let mut queue = self.shared.queue.lock();
            queue.closed = true;
            queue.hints.clear();
            std::mem::take(&mut queue.ops)
        };
        self.shared.bytes.store(0, Ordering::Relaxed);
        for queued in taken.into_iter().chain(left) {
            if let Some(done) = queued.op.done {
                done(Err(error.clone()));
            }
        }
    }
}

/// A batch between being written and being durable.
struct WrittenBatch {
    ops: Vec<Queued>,
    needs_sync: bool,
    written: Instant,
}

/// Tells those who wait, in order.
fn complete(ops: &mut [Queued]) {
    for queued in ops {
        if let Some(done) = queued.op.done.take() {
            done(Ok(()));
        }
    }
}

/// A writer that died without a word would leave every group waiting for ever.
struct PanicAlarm<'a>(&'a Worker);

impl Drop for PanicAlarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = Error::Io("the log writer panicked".to_owned());
            (self.0.fatal)(&error);
            self.0.close(Vec::new(), &error);
        }
    }
}

/// The operations as one batch, in their order; the values are shared, not copied.
fn gather(ops: &[Queued], hints: HashMap<ShardId, Bytes>) -> Batch {
    let entries: usize = ops
        .iter()
        .map(|queued| match &queued.op.change {
            LogChange::Append(entries) => entries.len(),
            _ => 1,
        })
        .sum();
    let mut batch = Batch { changes: Vec::with_capacity(entries + hints.len()) };
    // All entry keys share one allocation.
    let mut keys = BytesMut::with_capacity(entries * log_keys::ENTRY_BYTES);
    for Queued { op, .. } in ops {
        match &op.change {
            LogChange::Append(entries) => {
                for (index, entry) in entries {
                    keys.extend_from_slice(&log_keys::entry_array(op.group, *index));
                    batch.changes.push(Change::Put(Family::Log, keys.split().freeze(), entry.clone()));
                }
            }
            LogChange::Vote(vote) => batch.put(Family::Raft, log_keys::vote(op.group), vote.clone()),
            LogChange::Committed(hint) => batch.put(Family::Raft, log_keys::committed(op.group), hint.clone()),
            LogChange::Truncate { from } => {
                let (start, end) = log_keys::entries_range(op.group, *from, u64::MAX);
                batch.delete_range(Family::Log, start, end);
            }
            LogChange::Purge { upto, state } => {
                let (start, end) = log_keys::entries_range(op.group, 0, upto.saturating_add(1));
                batch.delete_range(Family::Log, start, end);
                batch.put(Family::Raft, log_keys::purged(op.group), state.clone());
            }
            LogChange::Barrier => {}
        }
    }
    for (group, hint) in hints {
        batch.put(Family::Raft, log_keys::committed(group), hint);
    }
    batch
}
