//! What waits for the log writer: the operations of all groups in one FIFO, and the hints that can wait longer.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::Result;
use super::written::Written;
use crate::types::ShardId;

/// Bytes gathered into one batch: beyond that a sync takes visibly longer than the waiting it saves.
pub(super) const BATCH_BYTES_MAX: usize = 4 << 20;

/// What happens to one group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogChange {
    /// Entries with their indexes, ascending and without gaps. Done when durable.
    Append(Vec<(u64, Bytes)>),
    /// The group's vote. Done when durable.
    Vote(Bytes),
    /// How far the group has committed, a hint for the next start. Without a `done` it waits for the next batch, and
    /// only the newest of a group is written.
    Committed(Bytes),
    /// Drops the entries from this index on. Done when written: a crash may bring the entries back, never out of order.
    Truncate {
        /// First index dropped.
        from: u64,
    },
    /// Drops the entries up to this index and keeps what is to be known of them. Done when written.
    Purge {
        /// Last index dropped.
        upto: u64,
        /// Opaque: what the group goes on from.
        state: Bytes,
    },
    /// Nothing; done when everything submitted before is durable.
    Barrier,
}

impl LogChange {
    pub(super) fn bytes(&self) -> usize {
        const FRAME: usize = 32;
        FRAME
            + match self {
                LogChange::Append(entries) => entries.iter().map(|(_, entry)| FRAME + entry.len()).sum(),
                LogChange::Vote(bytes) | LogChange::Committed(bytes) | LogChange::Purge { state: bytes, .. } => {
                    bytes.len()
                }
                LogChange::Truncate { .. } | LogChange::Barrier => 0,
            }
    }

    pub(super) fn needs_sync(&self) -> bool {
        matches!(self, LogChange::Append(_) | LogChange::Vote(_) | LogChange::Barrier)
    }

    /// Rare, and somebody waits for it alone: nothing is gathered beside it.
    pub(super) fn is_urgent(&self) -> bool {
        matches!(self, LogChange::Vote(_) | LogChange::Barrier)
    }
}

/// Called once with what became of an operation, on the writer's thread: it must not block.
pub type Done = Box<dyn FnOnce(Result<()>) + Send>;

/// One operation on one group's log.
pub struct LogOp {
    /// The group.
    pub group: ShardId,
    /// What happens.
    pub change: LogChange,
    /// Who wants to know.
    pub done: Option<Done>,
}

/// An operation in the queue.
pub(super) struct Queued {
    pub(super) op: LogOp,
    pub(super) written: Arc<Written>,
    pub(super) generation: u64,
    /// The group's last index once this is written.
    pub(super) reaches: u64,
    pub(super) bytes: usize,
}

/// The queue, behind the writer's lock.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) ops: VecDeque<Queued>,
    /// The newest committed hint of each group, for the next batch that empties the queue.
    pub(super) hints: HashMap<ShardId, Bytes>,
    pub(super) groups: HashMap<ShardId, Arc<Written>>,
    /// The thread sleeps and must be woken.
    pub(super) asleep: bool,
    /// The thread sleeps until these groups have come, or for a moment at most.
    pub(super) awaited: HashSet<ShardId>,
    pub(super) stopping: bool,
    /// Nothing is accepted any more.
    pub(super) closed: bool,
}

impl Queue {
    /// Everything queued, up to the bound.
    pub(super) fn take_batch(&mut self) -> (Vec<Queued>, HashMap<ShardId, Bytes>) {
        let mut bytes = 0;
        let mut count = 0;
        while count < self.ops.len() && bytes < BATCH_BYTES_MAX {
            bytes += self.ops[count].bytes;
            count += 1;
        }
        let ops = self.ops.drain(..count).collect();
        // A hint may name entries queued before it, so it is written only when none are left behind.
        let hints = if self.ops.is_empty() { std::mem::take(&mut self.hints) } else { HashMap::new() };
        (ops, hints)
    }
}
