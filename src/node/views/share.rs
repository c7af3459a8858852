//! How much of a thread's time a comparison of a view with its sources takes for itself.
//!
//! Somebody who waits for a comparison has all of it. Unasked it takes a small share, always. In between is the comparison that a view
//! awaits which has just been built: nobody is to wait for that longer than need be, and no client of this node is to notice it.
//! So it takes a small share while clients ask for much, and all of the time otherwise; and also at first, since a view of a few rows is
//! done then, as one over tables that are about to be filled, and once half of the time that it may take is gone: it is to come to
//! an end.
//!
//! A busy machine makes a share slower by itself, since the rests are in proportion to what a page takes.

use std::time::Duration;

use super::super::registry::Registry;
use super::verify::VERIFY_TIMEOUT;
use crate::runtime::{Clock, Instant, sleep, yield_now};
use crate::types::{Error, Reason, Result};

/// Rows read at once.
const PAGE_ROWS: usize = 1_000;
/// Rows read at once by who rests: a thread that serves others as well is not held for long.
const GENTLE_PAGE_ROWS: usize = 200;
/// The longest rest between two pages.
const REST_MAX: Duration = Duration::from_secs(5);
/// Clients who ask a node so often are not to notice a comparison. (Another node's comparison asks for fewer pages.)
const BUSY_PER_SECOND: f64 = 200.0;
/// Counted over at least this long.
const COUNTED_OVER: Duration = Duration::from_millis(100);
/// In percent of a thread's time, beside them, …
const BESIDE_CLIENTS: u32 = 10;
/// … after so much of it, which nobody notices.
const AT_FIRST: Duration = Duration::from_millis(250);

/// How much time a comparison takes for itself.
pub(in crate::node) struct Share {
    clock: Clock,
    page_began: Instant,
    deadline: Option<Instant>,
    /// In percent of the time; the rest it rests.
    percent: u32,
    beside: Option<Beside>,
}

/// What clients have asked, when it was counted last.
struct Beside {
    asked: u64,
    at: Instant,
    /// What is left of the time that it takes at first.
    at_first: Duration,
    /// All of the time is taken from then on.
    hurry_from: Instant,
}

impl Share {
    /// All of it, for somebody who waits.
    pub fn asked(clock: &Clock) -> Share {
        let now = clock.now();
        Share {
            clock: clock.clone(),
            page_began: now,
            deadline: Some(now + VERIFY_TIMEOUT),
            percent: 100,
            beside: None,
        }
    }

    /// All of it for somebody who waits, while clients ask these replicas for little.
    pub fn beside_clients(clock: &Clock, replicas: &Registry) -> Share {
        let now = clock.now();
        let hurry_from = now + VERIFY_TIMEOUT / 2;
        let beside = Beside { asked: asked(replicas), at: now, at_first: AT_FIRST, hurry_from };
        Share { beside: Some(beside), ..Share::asked(clock) }
    }

    /// So many percent of it.
    pub fn unasked(clock: &Clock, percent: u32) -> Share {
        Share { percent: percent.clamp(1, 100), deadline: None, ..Share::asked(clock) }
    }

    /// Rows to read at once.
    pub fn page_rows(&self) -> usize {
        if self.percent < 100 { GENTLE_PAGE_ROWS } else { PAGE_ROWS }
    }

    /// A page is done. Errors: `DEADLINE_EXCEEDED`.
    pub async fn rest(&mut self, replicas: &Registry) -> Result<()> {
        let now = self.clock.now();
        if self.deadline.is_some_and(|deadline| now > deadline) {
            return Err(Error::new(Reason::DeadlineExceeded, "the comparison of a view took too long"));
        }
        let took = now - self.page_began;
        if let Some(beside) = &mut self.beside {
            self.percent = beside.percent(now, took, self.percent, || asked(replicas));
        }
        let rest = rest_after(took, self.percent);
        if rest.is_zero() {
            // Pages may come one after the other without ever waiting, and others are to have their turn.
            yield_now().await;
        } else {
            sleep(rest).await;
        }
        self.page_began = self.clock.now();
        Ok(())
    }
}

impl Beside {
    /// The share from now on, which was `percent`, after a page that took so long.
    fn percent(&mut self, now: Instant, took: Duration, percent: u32, asked: impl Fn() -> u64) -> u32 {
        if self.at_first > Duration::ZERO || now >= self.hurry_from {
            self.at_first = self.at_first.saturating_sub(took);
            return 100;
        }
        let over = now.saturating_duration_since(self.at);
        if over < COUNTED_OVER {
            return percent;
        }
        let asked = asked();
        let rate = asked.saturating_sub(self.asked) as f64 / over.as_secs_f64();
        (self.asked, self.at) = (asked, now);
        if rate > BUSY_PER_SECOND { BESIDE_CLIENTS } else { 100 }
    }
}

/// The rest after a page that took so long.
fn rest_after(took: Duration, percent: u32) -> Duration {
    (took * (100 - percent) / percent).min(REST_MAX)
}

/// What clients have asked of replicas since these were started.
fn asked(replicas: &Registry) -> u64 {
    replicas.all().iter().map(|replica| replica.load().requests()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_is_in_proportion_to_what_a_page_took() {
        let ms = Duration::from_millis;
        assert_eq!(rest_after(ms(10), 100), Duration::ZERO);
        assert_eq!(rest_after(ms(10), 10), ms(90));
        assert_eq!(rest_after(ms(10), 5), ms(190));
        assert_eq!(rest_after(ms(1_000), 1), REST_MAX);
    }

    #[test]
    fn who_compares_beside_clients_takes_a_small_share_until_half_of_its_time_is_gone() {
        let began = Clock::system().now();
        let second = Duration::from_secs(1);
        let mut beside = Beside { asked: 7, at: began, at_first: AT_FIRST, hurry_from: began + 10 * second };
        // A little is for nothing.
        assert_eq!(beside.percent(began, AT_FIRST / 2, 100, || unreachable!()), 100);
        assert_eq!(beside.percent(began, AT_FIRST / 2, 100, || unreachable!()), 100);
        let page = Duration::from_millis(10);
        // Too early to say.
        assert_eq!(beside.percent(began + COUNTED_OVER / 2, page, 33, || unreachable!()), 33);
        // 300 in a second, then 100, then 300 again.
        assert_eq!(beside.percent(began + second, page, 100, || 307), BESIDE_CLIENTS);
        assert_eq!(beside.percent(began + 2 * second, page, BESIDE_CLIENTS, || 407), 100);
        assert_eq!(beside.percent(began + 3 * second, page, 100, || 707), BESIDE_CLIENTS);
        // A replica has gone, and what was asked of it.
        assert_eq!(beside.percent(began + 4 * second, page, BESIDE_CLIENTS, || 0), 100);
        assert_eq!(beside.percent(began + 10 * second, page, BESIDE_CLIENTS, || 1_000_000), 100);
    }
}
