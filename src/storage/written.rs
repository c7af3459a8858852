//! How far the log of one group is written, for those who must not be durable ahead of it.
//!
//! The log writer notes each operation when it is queued ([`Written::submit`]) and again when it is in the store's log
//! ([`Written::publish`]). A truncation counts from the moment it is queued: an append from before it is never published
//! after it.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::LogChange;

/// How far one group's log is written.
#[derive(Debug, Default)]
pub struct Written {
    index: AtomicU64,
    submitted: Mutex<Submitted>,
    changed: Notify,
}

/// Where a group's log will be when everything submitted is written.
#[derive(Debug, Default)]
struct Submitted {
    last: u64,
    /// Counts truncations: an append from before one must not be published after it.
    generation: u64,
}

impl Written {
    /// The highest index in the store's log (written, maybe not durable).
    pub fn index(&self) -> u64 {
        self.index.load(Ordering::Acquire)
    }

    /// Waits until the entry at `index` is written.
    pub async fn wait(&self, index: u64) {
        while self.index() < index {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.index() >= index {
                return;
            }
            changed.await;
        }
    }

    /// An operation is queued: its generation, and how far the log will reach once it is written. What lies behind a
    /// truncation no longer counts from now on, though it may still be queued.
    pub(super) fn submit(&self, change: &LogChange) -> (u64, u64) {
        let mut submitted = self.submitted.lock();
        match change {
            LogChange::Append(entries) => {
                if let Some((last, _)) = entries.last() {
                    submitted.last = *last;
                }
            }
            LogChange::Truncate { from } => {
                submitted.generation += 1;
                submitted.last = submitted.last.min(from.saturating_sub(1));
                self.index.fetch_min(submitted.last, Ordering::AcqRel);
            }
            LogChange::Purge { upto, .. } => submitted.last = submitted.last.max(*upto),
            LogChange::Vote(_) | LogChange::Committed(_) | LogChange::Barrier => {}
        }
        (submitted.generation, submitted.last)
    }

    /// An operation of this generation was written and the log now reaches this far.
    pub(super) fn publish(&self, generation: u64, reaches: u64) {
        let submitted = self.submitted.lock();
        if submitted.generation == generation && self.index.fetch_max(reaches, Ordering::AcqRel) < reaches {
            drop(submitted);
            self.changed.notify_waiters();
        }
    }
}

impl Written {
    /// Of a log whose last entry is this one (0: none).
    pub(super) fn new(last: u64) -> Written {
        let submitted = Mutex::new(Submitted { last, generation: 0 });
        Written { index: AtomicU64::new(last), submitted, changed: Notify::new() }
    }
}
