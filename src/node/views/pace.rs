//! How hard upkeep of a view goes about it.
//!
//! What clients ask of a source comes first. A page is one burst of work for the nodes that hold the view's shards: it is
//! projected, proposed, written and applied as a whole, and whoever is asked for something at that moment waits. So upkeep that has
//! fallen behind a source which clients use meanwhile takes smaller pages, and rests after each full one: the longer, the more is
//! asked, but only so long that it takes changes in faster than clients make them, or it would never be there. The state that a view
//! begins with becomes no more meanwhile: there the rests may be longer, and are on a machine that has too much to do. Upkeep that
//! is nearly there keeps to large pages, which cost less for each change; it would fall behind otherwise where much is written. So would
//! upkeep whose small pages get on too slowly: on a busy machine a page takes its time however small it is. Its pages grow until they do.
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
/// So much smaller is a page of who is behind a busy source, if such pages get on fast enough.
const GENTLY: usize = 8;
/// They get on faster than need be if they take less than this part of the time that there is.
const EASILY: f64 = 0.25;
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
const GATHER: Duration = Duration::from_millis(50);

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
    /// By how much pages are smaller now of who is behind: 1 to [`GENTLY`].
    smaller: usize,
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
    /// Who takes it is behind: a rest after it is not cut short by who waits for the view, whom a page or two would not help.
    pub late: bool,
    /// What is asked of the source, if it is busy.
    busy: Option<Rates>,
    /// The page is of the state that the view begins with.
    whole: bool,
}

impl Pace {
    /// From now on, when so much had been asked of the source.
    pub fn new(now: Instant, asked: Asked) -> Pace {
        Pace(Mutex::new(Counted { at: now, asked, rates: Rates::default(), smaller: GENTLY }))
    }

    /// For a page from this position on, while the source's newest version is `newest` and so much was asked of it.
    pub fn gait(&self, now: Instant, asked: Asked, position: &Position, newest: Timestamp) -> Gait {
        let mut counted = self.0.lock();
        let over = now.saturating_duration_since(counted.at);
        if over >= COUNTED_OVER {
            let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / over.as_secs_f64();
            let requests = rate(asked.requests, counted.asked.requests);
            let written = rate(asked.written, counted.asked.written);
            *counted = Counted { at: now, asked, rates: Rates { requests, written }, ..*counted };
        }
        let busy = Some(counted.rates).filter(|rates| rates.requests > BUSY_PER_SECOND);
        let late = Duration::from_millis(newest.millis().saturating_sub(position.after.millis())) >= BEHIND;
        let whole = position.after == Timestamp::ZERO;
        let limits = match (busy.is_some() && late, whole) {
            (false, _) => LARGE,
            (true, true) => smaller(GENTLY),
            (true, false) => smaller(counted.smaller),
        };
        Gait { limits, late, busy, whole }
    }

    /// The rest after a full page of so many changes that took so long. The next one may be larger, or smaller, if need be.
    pub fn rest(&self, gait: &Gait, changes: usize, took: Duration) -> Duration {
        let Some(Rates { requests, written }) = gait.busy else { return Duration::ZERO };
        let took = took.as_secs_f64();
        let rest = took * (requests / REST_PER_SECOND).min(REST_TIMES);
        // Where nothing is written, there is time without end.
        let times = if gait.whole { TAKE_IN } else { CATCH_UP };
        let in_time = changes as f64 / (times * written);
        if !gait.whole {
            let smaller = &mut self.0.lock().smaller;
            *smaller = match took {
                took if took > in_time => (*smaller / 2).max(1),
                took if took < in_time * EASILY => (*smaller * 2).min(GENTLY),
                _ => *smaller,
            };
        }
        let least = if gait.whole { took } else { 0.0 };
        Duration::from_secs_f64(rest.min((in_time - took).max(least)).min(REST_MAX.as_secs_f64()))
    }
}

/// The limits of a page so many times smaller than a large one. Of rows with what they were before, as many bytes are half as many.
fn smaller(times: usize) -> PageLimits {
    PageLimits { changes_max: LARGE.changes_max / times, bytes_max: LARGE.bytes_max / times.div_ceil(2) }
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Clock;

    const NEWEST: Timestamp = Timestamp(1 << 40);

    /// A pace over a second in which so many requests came and keys were written, and the gait of who is so many milliseconds late,
    /// or has yet to take in the state that it begins with.
    fn pace_of(requests: u64, written: u64, late_ms: Option<u64>) -> (Pace, Gait) {
        let began = Clock::system().now();
        let pace = Pace::new(began, Asked { requests: 7, written: 9 });
        let asked = Asked { requests: 7 + requests, written: 9 + written };
        let gait = pace.gait(began + Duration::from_secs(1), asked, &position(late_ms), NEWEST);
        (pace, gait)
    }

    fn position(late_ms: Option<u64>) -> Position {
        let late = |late_ms| Position::after(Timestamp::from_millis(NEWEST.millis() - late_ms));
        late_ms.map_or(Position::BEGINNING, late)
    }

    /// The gait of who is so late beside clients who only read.
    fn gait(requests: u64, late_ms: u64) -> Gait {
        pace_of(requests, 0, Some(late_ms)).1
    }

    /// The rest after a page.
    fn rest((pace, gait): &(Pace, Gait), changes: usize, took_ms: u64) -> u128 {
        pace.rest(gait, changes, Duration::from_millis(took_ms)).as_millis()
    }

    #[test]
    fn beside_clients_who_is_behind_goes_gently_and_rests() {
        for late_ms in [Some(10_000), None] {
            let gentle = pace_of(80, 0, late_ms);
            assert_eq!(gentle.1.limits, smaller(GENTLY));
            assert_eq!(rest(&gentle, 1_000_000, 10), 100);
            assert_eq!(rest(&gentle, 1_000_000, 60_000), REST_MAX.as_millis());
        }
        // However much is asked.
        assert_eq!(rest(&pace_of(100_000, 0, Some(10_000)), 10_000_000, 10), 600);
        // Full is what the small page allows.
        let gentle = gait(80, 10_000);
        let PageLimits { changes_max, bytes_max } = smaller(GENTLY);
        assert!(changes_max < LARGE.changes_max && bytes_max < LARGE.bytes_max);
        assert!(gentle.is_full(changes_max, 0) && gentle.is_full(1, bytes_max));
        assert!(!gentle.is_full(changes_max - 1, 0));
    }

    #[test]
    fn who_rests_gets_on_faster_than_clients_do() {
        for (written, changes, took_ms) in [(60, 20, 5), (1_000, 250, 10), (1_000, 250, 200), (20_000, 250, 10)] {
            let all = took_ms as u128 + rest(&pace_of(1_000, written, Some(10_000)), changes, took_ms);
            let meanwhile = all as f64 * written as f64 / 1_000.0;
            // Pages that take that long by themselves leave no time for a rest.
            assert!(
                all == took_ms as u128 || changes as f64 >= 1.49 * meanwhile,
                "{written} {changes} {took_ms}: {all}"
            );
        }
        assert_eq!(rest(&pace_of(1_000, 1_000, Some(10_000)), 240, 10), 150);
        assert_eq!(rest(&pace_of(1_000, 20_000, Some(10_000)), 240, 10), 0);
        // In batches, too.
        assert_eq!(rest(&pace_of(100, 20_000, Some(10_000)), 240, 10), 0);
    }

    #[test]
    fn pages_that_get_on_too_slowly_grow_until_they_do_not() {
        let began = Clock::system().now();
        let (pace, mut gait) = pace_of(1_000, 1_000, Some(10_000));
        let mut sizes = Vec::new();
        // Each takes 300 ms however large it is: what is written 1.5 times as fast meanwhile are 450.
        for _ in 0..4 {
            sizes.push(gait.limits.changes_max);
            pace.rest(&gait, gait.limits.changes_max, Duration::from_millis(300));
            gait = pace.gait(began, Asked::default(), &position(Some(10_000)), NEWEST);
        }
        assert_eq!(sizes, [8, 4, 4, 4].map(|smaller| LARGE.changes_max / smaller));
        // The machine has got faster.
        pace.rest(&gait, gait.limits.changes_max, Duration::from_millis(20));
        gait = pace.gait(began, Asked::default(), &position(Some(10_000)), NEWEST);
        assert_eq!(gait.limits, smaller(GENTLY));
    }

    #[test]
    fn who_has_yet_to_take_in_a_state_is_in_no_such_hurry() {
        // Three rows for four that are written, …
        assert_eq!(rest(&pace_of(1_000, 1_000, None), 240, 20), 300);
        // … and half of the time at the most, however slow it all is; in small pages still.
        let slow = pace_of(1_000, 1_000, None);
        assert_eq!(rest(&slow, 240, 200), 200);
        assert_eq!(slow.0.0.lock().smaller, GENTLY);
        assert_eq!(rest(&pace_of(1_000, 20_000, None), 240, 10), 10);
    }

    #[test]
    fn beside_clients_news_gather_for_a_moment() {
        let last = Clock::system().now();
        assert_eq!(gait(1_000, 10).gathers_until(last), last + GATHER);
        assert_eq!(gait(3, 10).gathers_until(last), last);
    }

    #[test]
    fn who_is_nearly_there_keeps_to_large_pages() {
        let nearly = pace_of(1_000, 0, Some(499));
        assert_eq!(nearly.1.limits, LARGE);
        assert!(!nearly.1.late && gait(1_000, 500).late);
        assert!(rest(&nearly, 2_000, 10) > 0);
    }

    #[test]
    fn where_nobody_asks_nothing_is_held_back() {
        let alone = pace_of(3, 0, Some(10_000));
        assert_eq!(alone.1.limits, LARGE);
        assert_eq!(rest(&alone, 2_000, 1_000), 0);
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
