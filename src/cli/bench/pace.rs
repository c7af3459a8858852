//! When each operation begins: at once after the one before (closed loop), or at its place in a fixed rate (open loop).
//!
//! In an open loop the latency counts from the intended beginning, so a server that stalls is charged for every
//! operation that should have run meanwhile (no coordinated omission). Timers wake at whole milliseconds, so up to
//! one millisecond of an open loop's latency is the benchmark's own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use trivet::runtime::{Clock, Instant, sleep_until};

/// How long a run lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// This long after the warm-up.
    Time(Duration),
    /// This many operations after the warm-up.
    Ops(u64),
}

/// Hands out the beginnings of operations to all workers.
#[derive(Debug)]
pub struct Pace {
    clock: Clock,
    start: Instant,
    measured_from: Instant,
    end: Option<Instant>,
    ops_max: u64,
    /// Nanoseconds between two beginnings; none in a closed loop.
    interval_ns: Option<f64>,
    /// Operations begun (open loop), or begun after the warm-up (closed loop with a number of operations).
    begun: AtomicU64,
}

/// One operation's beginning.
#[derive(Clone, Copy, Debug)]
pub struct Begin {
    /// When it began, or was meant to.
    pub at: Instant,
    /// Whether that lies inside the measured window.
    pub measured: bool,
}

impl Pace {
    /// A run that starts now; `rate` operations per second, or a closed loop.
    pub fn new(clock: Clock, warm_up: Duration, length: Length, rate: Option<f64>) -> Pace {
        let start = clock.now();
        let measured_from = start + warm_up;
        let (end, ops_max) = match length {
            Length::Time(time) => (Some(measured_from + time), u64::MAX),
            Length::Ops(ops) => (None, ops),
        };
        Pace {
            clock,
            start,
            measured_from,
            end,
            ops_max,
            interval_ns: rate.map(|rate| 1e9 / rate),
            begun: AtomicU64::new(0),
        }
    }

    /// When the run began.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// When the measured window begins.
    pub fn measured_from(&self) -> Instant {
        self.measured_from
    }

    /// When the measured window ends, if that is set in advance.
    pub fn end(&self) -> Option<Instant> {
        self.end
    }

    /// Whether the measured window has ended.
    pub fn is_over(&self) -> bool {
        self.end.is_some_and(|end| self.now() >= end)
    }

    /// Whether a moment lies inside the measured window.
    pub fn measures(&self, at: Instant) -> bool {
        at >= self.measured_from && self.end.is_none_or(|end| at < end)
    }

    /// The beginning of a worker's next operation, `now` being the time; waits for it in an open loop. None: the run is over.
    pub async fn next(&self, now: Instant) -> Option<Begin> {
        let Some(interval_ns) = self.interval_ns else {
            if self.end.is_some_and(|end| now >= end) {
                return None;
            }
            let measured = now >= self.measured_from;
            if self.ops_max < u64::MAX && measured && self.begun.fetch_add(1, Ordering::Relaxed) >= self.ops_max {
                return None;
            }
            return Some(Begin { at: now, measured });
        };
        let ticket = self.begun.fetch_add(1, Ordering::Relaxed);
        let at = self.start + Duration::from_nanos((ticket as f64 * interval_ns) as u64);
        let warm_up_ops = (self.measured_from - self.start).as_nanos() as f64 / interval_ns;
        if self.end.is_some_and(|end| at >= end) || ticket as f64 >= warm_up_ops + self.ops_max as f64 {
            return None;
        }
        if at > now {
            sleep_until(at).await;
        }
        Some(Begin { at, measured: at >= self.measured_from })
    }

    /// The time, from the run's clock.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn an_open_loop_begins_at_its_rate_whatever_the_answers_do() {
        let pace = Pace::new(Clock::system(), 10 * MS, Length::Time(20 * MS), Some(500.0));
        let mut begun = Vec::new();
        let mut now = pace.now();
        while let Some(begin) = pace.next(now).await {
            begun.push(((begin.at - pace.start()).as_millis(), begin.measured));
            // One slow answer: the operations meant for the time it took begin late, but count from when they were due.
            if begun.len() == 2 {
                trivet::runtime::sleep(7 * MS).await;
            }
            now = pace.now();
        }
        let at: Vec<u128> = begun.iter().map(|(at, _)| *at).collect();
        assert_eq!(at, (0..15).map(|n| n * 2).collect::<Vec<u128>>());
        assert_eq!(begun.iter().filter(|(_, measured)| *measured).count(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_loop_ends_after_its_time_or_its_operations() {
        let run = async |length| {
            let pace = Pace::new(Clock::system(), 3 * MS, length, None);
            let (mut warm, mut measured) = (0, 0);
            while let Some(begin) = pace.next(pace.now()).await {
                *(if begin.measured { &mut measured } else { &mut warm }) += 1;
                trivet::runtime::sleep(MS).await;
            }
            (warm, measured)
        };
        assert_eq!(run(Length::Time(5 * MS)).await, (3, 5));
        assert_eq!(run(Length::Ops(7)).await, (3, 7));
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_loop_can_be_bounded_by_operations() {
        let pace = Pace::new(Clock::system(), 4 * MS, Length::Ops(5), Some(1_000.0));
        let mut measured = 0;
        while let Some(begin) = pace.next(pace.now()).await {
            measured += u32::from(begin.measured);
        }
        assert_eq!(measured, 5);
    }
}
