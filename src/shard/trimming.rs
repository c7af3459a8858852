//! When history goes, and who keeps it.
//!
//! The leader moves the horizon of its shard on, in steps and by an entry of the log, so that all replicas forget the same. It
//! moves to the table's history window before now; but not beyond what is *pinned*: a view that is being built reads its source
//! as it was at one moment, and then everything since, which may take longer than the window.
//!
//! A pin is a wish of somebody on this node, and ends by itself soon after it was last renewed: so nothing has to be undone when
//! that somebody is gone. It is not replicated. A leader that has just come knows none, and steps are so long that those who go
//! on reading there have told it theirs before it takes one, as a rule; otherwise they begin anew. However old, no pin holds
//! back more than [`PINNED_MAX_MS`] beyond what would be kept anyway.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;

use super::handle::Shard;
use super::proposer::PendingKind;
use crate::runtime::{Instant, spawn_blocking};
use crate::types::{TableId, Timestamp};

/// How long a checksum mark is kept for those who ask late.
const CHECKSUM_MARK_AGE_MAX: Duration = Duration::from_secs(60);
/// The horizon moves in steps of at least this, so that an idle table costs no log entries.
const HORIZON_STEP_MS: u64 = 30_000;
/// A pin lasts so long after it was last renewed.
const PIN_LASTS: Duration = Duration::from_secs(60);
/// A day: a view that takes longer to build should be built of a table with a longer history.
const PINNED_MAX_MS: u64 = 24 * 3_600_000;

/// What views that are being built still have to read of a shard's past.
#[derive(Default)]
pub(super) struct Pins(Mutex<HashMap<TableId, (Timestamp, Instant)>>);

impl Pins {
    fn set(&self, holder: TableId, from: Timestamp, now: Instant) {
        self.0.lock().insert(holder, (from, now));
    }

    /// How far the horizon may move that would move so far.
    fn bound(&self, wanted: Timestamp, now: Instant) -> Timestamp {
        let mut pins = self.0.lock();
        pins.retain(|_, (_, renewed)| now.saturating_duration_since(*renewed) < PIN_LASTS);
        let oldest = pins.values().map(|(from, _)| *from).min().unwrap_or(wanted);
        let floor = Timestamp::from_millis(wanted.millis().saturating_sub(PINNED_MAX_MS));
        oldest.max(floor).min(wanted)
    }
}

impl Shard {
    /// Keeps the shard's history from this version on, for a view that is being built, until a while after this was last
    /// said. Only the leader's counts.
    pub fn pin_history(&self, holder: TableId, from: Timestamp) {
        self.pins.set(holder, from, self.clock.now());
    }

    /// Regular upkeep: drops old checksum marks and, on the leader, proposes to trim history.
    pub async fn upkeep(&self, deadline: Instant) {
        let now = self.clock.now();
        self.shared.marks.lock().retain(|mark| now.saturating_duration_since(mark.noted) < CHECKSUM_MARK_AGE_MAX);
        if !self.is_leader() {
            return;
        }
        let state = self.state();
        if state.sealed_for.is_some() {
            return;
        }
        let (engine, start, end) = (self.engine.clone(), state.start.clone(), state.end.clone());
        if let Ok(Ok(bytes)) = spawn_blocking(move || engine.bytes_in(&start, &end)).await {
            self.load.set_bytes(bytes);
        }
        let horizon_ms = self.clock.wall_ms().saturating_sub(self.history_ms.load(Ordering::Relaxed));
        let horizon = Timestamp::from_millis(horizon_ms).min(state.last_timestamp);
        let horizon = self.pins.bound(horizon, now);
        // An idle table's last step is a short one: or its last deletions would never be behind the horizon.
        let moved = horizon.millis() >= state.horizon.millis() + HORIZON_STEP_MS;
        let comes_to_rest = horizon == state.last_timestamp && horizon > state.horizon && self.is_idle(horizon_ms);
        if moved || comes_to_rest {
            // Failing is fine: whoever leads next will ask again.
            let _ = self.enqueue(PendingKind::Horizon(horizon), 0, deadline).await;
        }
    }

    /// Whether the last write lies a whole step of the horizon before this moment.
    fn is_idle(&self, horizon_ms: u64) -> bool {
        horizon_ms >= self.state().last_timestamp.millis() + HORIZON_STEP_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Clock;

    #[test]
    fn the_horizon_stays_behind_the_oldest_pin_for_a_while() {
        let (pins, now) = (Pins::default(), Clock::system().now());
        let at = Timestamp::from_millis;
        let wanted = at(PINNED_MAX_MS * 2);
        assert_eq!(pins.bound(wanted, now), wanted);
        let (one, other) = (at(wanted.millis() - 5_000), at(wanted.millis() - 9_000));
        pins.set(TableId(7), one, now);
        pins.set(TableId(8), other, now);
        assert_eq!(pins.bound(wanted, now), other);
        // It is renewed with where its reader has come since.
        pins.set(TableId(8), at(wanted.millis() + 1), now + PIN_LASTS / 2);
        assert_eq!(pins.bound(wanted, now + PIN_LASTS / 2), one);
        assert_eq!(pins.bound(wanted, now + PIN_LASTS), wanted, "one has run out, and the other is ahead");
        // Not for ever.
        pins.set(TableId(9), at(1), now + PIN_LASTS);
        assert_eq!(pins.bound(wanted, now + PIN_LASTS), at(wanted.millis() - PINNED_MAX_MS));
    }
}
