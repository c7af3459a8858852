//! How hard upkeep of a view goes about it.
//!
//! What clients ask of a source comes first. A page is one burst of work for the nodes that hold the view's shards: it is
//! projected, proposed, written and applied as a whole, and whoever is asked for something at that moment waits. So upkeep that has
//! fallen behind a source which clients use meanwhile takes smaller pages, and rests after each full one. Upkeep that is nearly
//! there keeps to large pages, which cost less for each change; it would fall behind otherwise where much is written.

use std::time::Duration;

use parking_lot::Mutex;

use crate::runtime::Instant;
use crate::storage::changes::PageLimits;
use crate::types::Timestamp;

/// The largest page.
const LARGE: PageLimits = PageLimits { changes_max: 2_000, bytes_max: 512 << 10 };
/// So much smaller is a page of who is behind a busy source.
const GENTLY: usize = 4;
/// What is older than the newest by this much is behind.
const BEHIND: Duration = Duration::from_millis(500);
/// A shard of a source that clients ask so often is busy, …
const BUSY_PER_SECOND: f64 = 50.0;
/// … counted over at least this long.
const COUNTED_OVER: Duration = Duration::from_millis(100);
/// After a full page of a busy source comes a rest, so many times as long as the page took, …
const REST: u32 = 3;
/// … but not longer than this.
const REST_MAX: Duration = Duration::from_secs(2);

/// The pace of one worker.
pub(super) struct Pace(Mutex<Counted>);

/// Requests of clients, as counted last.
struct Counted {
    at: Instant,
    requests: u64,
    busy: bool,
}

/// How a page is to be taken.
#[derive(Clone, Copy)]
pub(super) struct Gait {
    /// What the page may hold.
    pub limits: PageLimits,
    busy: bool,
}

impl Pace {
    /// From now on, when so much had been asked of the source.
    pub fn new(now: Instant, requests: u64) -> Pace {
        Pace(Mutex::new(Counted { at: now, requests, busy: false }))
    }

    /// For a page from this position on, while the source's newest version is `newest` and so much was asked of it.
    pub fn gait(&self, now: Instant, requests: u64, position: Timestamp, newest: Timestamp) -> Gait {
        let mut counted = self.0.lock();
        let over = now.saturating_duration_since(counted.at);
        if over >= COUNTED_OVER {
            let asked = requests.saturating_sub(counted.requests);
            *counted = Counted { at: now, requests, busy: asked as f64 > BUSY_PER_SECOND * over.as_secs_f64() };
        }
        let busy = counted.busy;
        let late = Duration::from_millis(newest.millis().saturating_sub(position.millis())) >= BEHIND;
        let limits = match busy && late {
            true => PageLimits { changes_max: LARGE.changes_max / GENTLY, bytes_max: LARGE.bytes_max / GENTLY },
            false => LARGE,
        };
        Gait { limits, busy }
    }
}

impl Gait {
    /// Whether a page is as large as it may be: there is more to come. Of bytes it may be a document less than they allow.
    pub fn is_full(&self, changes: usize, bytes: usize) -> bool {
        changes >= self.limits.changes_max || bytes >= self.limits.bytes_max / 2
    }

    /// The rest after a full page that took so long.
    pub fn rest(&self, took: Duration) -> Duration {
        if self.busy { (took * REST).min(REST_MAX) } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Clock;

    /// A pace over a second in which so many requests came, and the gait of who is so many milliseconds late.
    fn gait(requests: u64, late_ms: u64) -> Gait {
        let began = Clock::system().now();
        let newest = Timestamp::from_millis(1_000_000);
        let position = Timestamp::from_millis(1_000_000 - late_ms);
        Pace::new(began, 7).gait(began + Duration::from_secs(1), 7 + requests, position, newest)
    }

    #[test]
    fn beside_clients_who_is_behind_goes_gently_and_rests() {
        let gentle = gait(1_000, 10_000);
        assert!(gentle.limits.changes_max < LARGE.changes_max && gentle.limits.bytes_max < LARGE.bytes_max);
        assert_eq!(gentle.rest(Duration::from_millis(10)), Duration::from_millis(30));
        assert_eq!(gentle.rest(Duration::from_secs(60)), REST_MAX);
        // Full is what the small page allows.
        assert!(gentle.is_full(LARGE.changes_max / GENTLY, 0) && gentle.is_full(1, LARGE.bytes_max / GENTLY));
        assert!(!gentle.is_full(LARGE.changes_max / GENTLY - 1, 0));
    }

    #[test]
    fn who_is_nearly_there_keeps_to_large_pages() {
        let nearly = gait(1_000, 499);
        assert_eq!(nearly.limits.changes_max, LARGE.changes_max);
        assert!(nearly.rest(Duration::from_millis(10)) > Duration::ZERO);
    }

    #[test]
    fn where_nobody_asks_nothing_is_held_back() {
        let alone = gait(3, 10_000);
        assert_eq!(alone.limits.changes_max, LARGE.changes_max);
        assert_eq!(alone.rest(Duration::from_secs(1)), Duration::ZERO);
    }

    #[test]
    fn what_was_counted_last_holds_until_it_is_counted_again() {
        let began = Clock::system().now();
        let pace = Pace::new(began, 0);
        let (old, new) = (Timestamp::from_millis(1), Timestamp::from_millis(1_000_000));
        assert!(!pace.gait(began + COUNTED_OVER / 2, 1_000, old, new).busy);
        assert!(pace.gait(began + COUNTED_OVER, 1_000, old, new).busy);
        assert!(pace.gait(began + COUNTED_OVER * 3 / 2, 1_000, old, new).busy);
        assert!(!pace.gait(began + COUNTED_OVER * 2, 1_000, old, new).busy);
    }
}
