//! Whether somebody waits until what was written here has been taken into a view.
//!
//! Upkeep of views lets news gather for a moment, since many together cost little more than one. But a reader may be waiting for just
//! these: of a list that is to have the order which the reader has just made. Such a reader has the leaders of all shards of the
//! view's sources asked how new they are, and the question says that somebody waits. So whoever keeps a view up, beside the leader, knows of it as
//! early as can be, and nothing needs to be asked that would not be asked anyway.

use std::time::Duration;

use tokio::sync::watch;

use crate::runtime::{Clock, Instant, timeout_at};

/// So long after a question its asker may yet come to wait for more: for what was written before the answer was looked at.
const ANSWERED_WITHIN: Duration = Duration::from_millis(10);

/// When it was last said that somebody waits.
#[derive(Debug)]
pub struct Awaited {
    clock: Clock,
    last: watch::Sender<Option<Instant>>,
}

impl Awaited {
    /// Nobody has said so yet.
    pub fn new(clock: Clock) -> Awaited {
        Awaited { clock, last: watch::Sender::new(None) }
    }

    /// Somebody waits.
    pub(super) fn note(&self) {
        self.last.send_replace(Some(self.clock.now()));
    }

    /// Waits until somebody waits for what may not have been there to be read at that moment, at most until then. Whether somebody does.
    pub async fn since(&self, read: Instant, latest: Instant) -> bool {
        let mut last = self.last.subscribe();
        let waits = last.wait_for(|last| last.is_some_and(|last| last + ANSWERED_WITHIN > read));
        matches!(timeout_at(latest, waits).await, Some(Ok(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_is_heard_by_those_who_have_read_before() {
        let clock = Clock::system();
        let awaited = Awaited::new(clock.clone());
        let long = Duration::from_secs(600);
        let read = clock.now();
        assert!(!awaited.since(read, read).await, "nobody waits");
        let (waits, ()) = tokio::join!(awaited.since(read, read + long), async { awaited.note() });
        assert!(waits);
        // However late it is looked at, and also what was written right after the question.
        let noted = clock.now();
        assert!(awaited.since(read, read).await);
        assert!(awaited.since(noted + ANSWERED_WITHIN / 2, noted).await);
        // Who has read long after it has read all that is waited for.
        assert!(!awaited.since(noted + ANSWERED_WITHIN, noted).await);
    }
}
