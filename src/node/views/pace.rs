//! How hard upkeep of a view goes about it.
//!
//! What clients ask of a source comes first. A page is one burst of work for the nodes that hold the view's shards: it is
//! projected, proposed, written and applied as a whole, and whoever is asked for something at that moment waits. So upkeep that has
//! fallen behind a source which clients use meanwhile takes smaller pages, and rests after each full one: the longer, the more is
//! asked, but only so long that it takes changes in faster than clients make them, or it would never be there. The state that a view
//! begins with becomes no more meanwhile: there the rests may be longer, and are on a machine that has too much to do. Upkeep that
//! is nearly there keeps to large pages, which cost less for each change; it would fall behind otherwise where much is written.
//!
//! And it lets news gather for a moment between two pages, unless somebody waits for them: a page of one change makes its nodes as
//! much work as one of twenty.

use std::time::Duration;

use parking_lot::Mutex;

use crate::runtime::Instant;
use crate::shard::Shard;
use crate::storage::changes::PageLimits;
use crate::types::{Position, Timestamp};

/// The largest page.
const LARGE: PageLimits = PageLimits { changes_max: 2_000, bytes_max: 512 << 10 };
/// So much smaller is a page of who is behind a busy source.
const GENTLY: usize = 8;
/// What is older than the newest by this much is behind.
const BEHIND: Duration = Duration::from_millis(500);
/// A shard of a source that clients ask so often is busy, …
const BUSY_PER_SECOND: f64 = 50.0;
/// … counted over at least this long.
const COUNTED_OVER: Duration = Duration::from_millis(100);
/// After a full page of a busy source comes a rest: as long as the page took for every so many requests in a second, …
const REST_PER_SECOND: f64 = 8.0;
/// … up to so many times, …
const REST_TIMES: f64 = 60.0;
/// … never longer than this, …
const REST_MAX: Duration = Duration::from_secs(2);
/// … and so short that changes are taken in at least so many times as fast as keys are written, …
const CATCH_UP: f64 = 1.5;
/// … and rows of the state that a view begins with so many times as fast, where a rest takes half of the time in any case.
const TAKE_IN: f64 = 0.75;
/// From one page to the next of who has nothing left to catch up with, so that news gather meanwhile.
const GATHER: Duration = Duration::from_millis(100);

/// The pace of one worker.
pub(super) struct Pace(Mutex<Counted>);

/// What clients have asked of a source since its node started.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked {
    /// Requests.
    pub requests: u64,
    /// Keys written.
    pub written: u64,
}

impl Asked {
    /// Of a shard, where it is led.
    pub fn of(shard: &Shard) -> Asked {
        Asked { requests: shard.load().requests(), written: shard.load().written() }
    }
}

/// What was counted last.
struct Counted {
    at: Instant,
    asked: Asked,
    rates: Rates,
}

/// What clients ask in a second.
#[derive(Clone, Copy, Default)]
struct Rates {
    requests: f64,
    written: f64,
}

/// How a page is to be taken.
#[derive(Clone, Copy)]
pub(super) struct Gait {
    /// What the page may hold.
    pub limits: PageLimits,
    /// What is asked of the source, if it is busy.
    busy: Option<Rates>,
    /// The page is of the state that the view begins with.
    whole: bool,
}

impl Pace {
    /// From now on, when so much had been asked of the source.
    pub fn new(now: Instant, asked: Asked) -> Pace {
        Pace(Mutex::new(Counted { at: now, asked, rates: Rates::default() }))
    }

    /// For a page from this position on, while the source's newest version is `newest` and so much was asked of it.
    pub fn gait(&self, now: Instant, asked: Asked, position: &Position, newest: Timestamp) -> Gait {
        let mut counted = self.0.lock();
        let over = now.saturating_duration_since(counted.at);
        if over >= COUNTED_OVER {
            let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / over.as_secs_f64();
            let requests = rate(asked.requests, counted.asked.requests);
            let written = rate(asked.written, counted.asked.written);
            *counted = Counted { at: now, asked, rates: Rates { requests, written } };
        }
        let busy = Some(counted.rates).filter(|rates| rates.requests > BUSY_PER_SECOND);
        let late = Duration::from_millis(newest.millis().saturating_sub(position.after.millis())) >= BEHIND;
        let limits = match busy.is_some() && late {
            true => PageLimits { changes_max: LARGE.changes_max / GENTLY, bytes_max: LARGE.bytes_max / GENTLY },
            false => LARGE,
        };
        Gait { limits, busy, whole: position.after == Timestamp::ZERO }
    }
}

impl Gait {
    /// Until when news gather that nobody waits for, after a page that was read at `last` and left nothing to catch up with.
    pub fn gathers_until(&self, last: Instant) -> Instant {
        if self.busy.is_some() { last + GATHER } else { last }
    }

    /// Whether a page is as large as it may be: there is more to come. Of bytes it may be a document less than they allow.
    pub fn is_full(&self, changes: usize, bytes: usize) -> bool {
        changes >= self.limits.changes_max || bytes >= self.limits.bytes_max / 2
    }

    /// The rest after a full page of so many changes that took so long.
    pub fn rest(&self, changes: usize, took: Duration) -> Duration {
        let Some(Rates { requests, written }) = self.busy else { return Duration::ZERO };
        let took = took.as_secs_f64();
        let rest = took * (requests / REST_PER_SECOND).min(REST_TIMES);
        // Where nothing is written, there is time without end.
        let in_time = match self.whole {
            true => (changes as f64 / (TAKE_IN * written) - took).max(took),
            false => changes as f64 / (CATCH_UP * written) - took,
        };
        Duration::from_secs_f64(rest.min(in_time).clamp(0.0, REST_MAX.as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Clock;

    /// A pace over a second in which so many requests came and keys were written, and the gait of who is so many milliseconds late,
    /// or has yet to take in the state that it begins with.
    fn gait_of(requests: u64, written: u64, late_ms: Option<u64>) -> Gait {
        let began = Clock::system().now();
        let newest = Timestamp::from_millis(1_000_000);
        let position = late_ms.map(|late_ms| Position::after(Timestamp::from_millis(1_000_000 - late_ms)));
        let pace = Pace::new(began, Asked { requests: 7, written: 9 });
        pace.gait(
            began + Duration::from_secs(1),
            Asked { requests: 7 + requests, written: 9 + written },
            &position.unwrap_or(Position::BEGINNING),
            newest,
        )
    }

    /// The same of clients who only read.
    fn gait(requests: u64, late_ms: u64) -> Gait {
        gait_of(requests, 0, Some(late_ms))
    }

    #[test]
    fn beside_clients_who_is_behind_goes_gently_and_rests() {
        for gentle in [gait(80, 10_000), gait_of(80, 0, None)] {
            assert!(gentle.limits.changes_max < LARGE.changes_max && gentle.limits.bytes_max < LARGE.bytes_max);
            assert_eq!(gentle.rest(1_000_000, Duration::from_millis(10)), Duration::from_millis(100));
            assert_eq!(gentle.rest(1_000_000, Duration::from_secs(60)), REST_MAX);
        }
        // However much is asked.
        assert_eq!(gait(100_000, 10_000).rest(10_000_000, Duration::from_millis(10)), Duration::from_millis(600));
        // Full is what the small page allows.
        let gentle = gait(80, 10_000);
        assert!(gentle.is_full(LARGE.changes_max / GENTLY, 0) && gentle.is_full(1, LARGE.bytes_max / GENTLY));
        assert!(!gentle.is_full(LARGE.changes_max / GENTLY - 1, 0));
    }

    #[test]
    fn who_rests_gets_on_faster_than_clients_do() {
        for (written, changes, took_ms) in [(60, 20, 5), (1_000, 250, 10), (1_000, 250, 200), (20_000, 250, 10)] {
            let took = Duration::from_millis(took_ms);
            let all = took + gait_of(1_000, written, Some(10_000)).rest(changes, took);
            let meanwhile = all.as_secs_f64() * written as f64;
            // Pages that take that long by themselves leave no time for a rest.
            assert!(all == took || changes as f64 >= 1.49 * meanwhile, "{written} {changes} {took_ms}: {all:?}");
        }
        let rest = |requests, written, took_ms| {
            gait_of(requests, written, Some(10_000)).rest(240, Duration::from_millis(took_ms))
        };
        assert_eq!(rest(1_000, 1_000, 10), Duration::from_millis(150));
        assert_eq!(rest(1_000, 20_000, 10), Duration::ZERO);
        // In batches, too.
        assert_eq!(rest(100, 20_000, 10), Duration::ZERO);
    }

    #[test]
    fn who_has_yet_to_take_in_a_state_is_in_no_such_hurry() {
        let rest = |written, took_ms| gait_of(1_000, written, None).rest(240, Duration::from_millis(took_ms));
        // Three rows for four that are written, …
        assert_eq!(rest(1_000, 20), Duration::from_millis(300));
        // … and half of the time at the most, however slow it all is.
        assert_eq!(rest(1_000, 200), Duration::from_millis(200));
        assert_eq!(rest(20_000, 10), Duration::from_millis(10));
    }

    #[test]
    fn beside_clients_news_gather_for_a_moment() {
        let last = Clock::system().now();
        assert_eq!(gait(1_000, 10).gathers_until(last), last + GATHER);
        assert_eq!(gait(3, 10).gathers_until(last), last);
    }

    #[test]
    fn who_is_nearly_there_keeps_to_large_pages() {
        let nearly = gait(1_000, 499);
        assert_eq!(nearly.limits.changes_max, LARGE.changes_max);
        assert!(nearly.rest(2_000, Duration::from_millis(10)) > Duration::ZERO);
    }

    #[test]
    fn where_nobody_asks_nothing_is_held_back() {
        let alone = gait(3, 10_000);
        assert_eq!(alone.limits.changes_max, LARGE.changes_max);
        assert_eq!(alone.rest(2_000, Duration::from_secs(1)), Duration::ZERO);
    }

    #[test]
    fn what_was_counted_last_holds_until_it_is_counted_again() {
        let began = Clock::system().now();
        let pace = Pace::new(began, Asked::default());
        let (old, new) = (Position::after(Timestamp::from_millis(1)), Timestamp::from_millis(1_000_000));
        let asked = Asked { requests: 1_000, written: 0 };
        let busy = |at| pace.gait(at, asked, &old, new).busy.is_some();
        assert!(!busy(began + COUNTED_OVER / 2));
        assert!(busy(began + COUNTED_OVER));
        assert!(busy(began + COUNTED_OVER * 3 / 2));
        assert!(!busy(began + COUNTED_OVER * 2));
    }
}
