//! What a benchmark notes of every operation, at a cost that does not show: a histogram, a few counters, one clock
//! reading of the caller.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::workload::Kind;

/// Longest latency told apart, in microseconds; longer ones count as this (no deadline is longer).
pub(super) const LATENCY_US_MAX: u64 = 3_600_000_000;
/// Significant digits of a latency: 0.1 %.
const LATENCY_DIGITS: u8 = 3;

/// How an operation that was answered ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It took effect, or was read.
    Effect,
    /// Its condition did not hold; somebody else was faster.
    Conflict,
}

/// Why an operation failed: the name of the reason.
pub type Failure = Cow<'static, str>;

/// Notes of one group of workers.
#[derive(Debug, Default)]
pub struct Recorder {
    kinds: BTreeMap<Kind, Notes>,
    errors: BTreeMap<Failure, u64>,
}

#[derive(Debug)]
struct Notes {
    latency_us: Histogram<u64>,
    /// Answers that came inside the measured window.
    in_window: u64,
    conflicts: u64,
}

impl Default for Notes {
    fn default() -> Notes {
        let latency_us = Histogram::new_with_bounds(1, LATENCY_US_MAX, LATENCY_DIGITS).expect("the bounds are valid");
        Notes { latency_us, in_window: 0, conflicts: 0 }
    }
}

impl Recorder {
    /// Notes an operation. `begun` says that it began (or was meant to begin) inside the measured window: then its
    /// latency counts, however late the answer; `ended` that the answer came inside the window: then it counts for the
    /// rate.
    pub fn note(&mut self, kind: Kind, latency: Duration, result: Result<Done, Failure>, begun: bool, ended: bool) {
        match result {
            Ok(done) => {
                let notes = self.kinds.entry(kind).or_default();
                if begun {
                    notes.latency_us.saturating_record(latency.as_micros() as u64);
                }
                notes.in_window += u64::from(ended);
                notes.conflicts += u64::from(done == Done::Conflict);
            }
            Err(reason) if begun || ended => *self.errors.entry(reason).or_default() += 1,
            Err(_) => {}
        }
    }

    /// Adds another group's notes.
    pub fn merge(&mut self, other: &Recorder) {
        for (kind, notes) in &other.kinds {
            let own = self.kinds.entry(*kind).or_default();
            own.latency_us.add(&notes.latency_us).expect("all histograms have the same bounds");
            own.in_window += notes.in_window;
            own.conflicts += notes.conflicts;
        }
        for (reason, count) in &other.errors {
            *self.errors.entry(reason.clone()).or_default() += count;
        }
    }

    /// The figures of a window of this length: by kind, and all together.
    pub fn figures(&self, window: Duration) -> (BTreeMap<&'static str, Figures>, Figures) {
        let mut all = Notes::default();
        let mut by_kind = BTreeMap::new();
        for (kind, notes) in &self.kinds {
            by_kind.insert(kind.name(), notes.figures(window));
            all.latency_us.add(&notes.latency_us).expect("all histograms have the same bounds");
            all.in_window += notes.in_window;
            all.conflicts += notes.conflicts;
        }
        (by_kind, all.figures(window))
    }

    /// Failed operations by reason.
    pub fn errors(&self) -> BTreeMap<String, u64> {
        self.errors.iter().map(|(reason, count)| (reason.to_string(), *count)).collect()
    }
}

/// The figures of one kind of operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Figures {
    /// Operations answered inside the window.
    pub ops: u64,
    /// The same per second.
    pub ops_per_s: f64,
    /// Answers that said a condition did not hold (part of `ops`).
    pub conflicts: u64,
    /// Mean latency in microseconds.
    pub mean_us: f64,
    /// Median latency in microseconds.
    pub p50_us: u64,
    /// 90th percentile.
    pub p90_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// 99.9th percentile.
    pub p99_9_us: u64,
    /// The slowest.
    pub max_us: u64,
}

impl Notes {
    fn figures(&self, window: Duration) -> Figures {
        let at = |quantile: f64| self.latency_us.value_at_quantile(quantile);
        let seconds = window.as_secs_f64().max(f64::MIN_POSITIVE);
        Figures {
            ops: self.in_window,
            ops_per_s: (self.in_window as f64 / seconds * 10.0).round() / 10.0,
            conflicts: self.conflicts,
            mean_us: (self.latency_us.mean() * 10.0).round() / 10.0,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p99_9_us: at(0.999),
            max_us: self.latency_us.max(),
        }
    }
}

/// The longest time without an acknowledged operation, over all workers. Lock-free: one exchange per operation.
#[derive(Debug, Default)]
pub struct Stall {
    /// When the last acknowledgement came, in microseconds since the start.
    last_us: AtomicU64,
    longest_us: AtomicU64,
}

impl Stall {
    /// Begins to watch at this time since the start: what went before does not count.
    pub fn begin(&self, since_start: Duration) {
        self.last_us.store(since_start.as_micros() as u64, Ordering::Relaxed);
        self.longest_us.store(0, Ordering::Relaxed);
    }

    /// An operation was acknowledged (or the watch ends) at this time since the start.
    pub fn acknowledged(&self, since_start: Duration) {
        let now = since_start.as_micros() as u64;
        let gap = now.saturating_sub(self.last_us.fetch_max(now, Ordering::Relaxed));
        if gap > self.longest_us.load(Ordering::Relaxed) {
            self.longest_us.fetch_max(gap, Ordering::Relaxed);
        }
    }

    /// The longest gap so far.
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_count_by_their_beginning_and_rates_by_their_end() {
        let mut recorder = Recorder::default();
        let ms = Duration::from_millis;
        for latency in 1..=100 {
            recorder.note(Kind::Read, ms(latency), Ok(Done::Effect), true, latency <= 50);
        }
        recorder.note(Kind::Read, ms(9_999), Ok(Done::Effect), false, false);
        recorder.note(Kind::Write, ms(1), Ok(Done::Conflict), true, true);
        recorder.note(Kind::Write, ms(1), Err("NO_QUORUM".into()), true, true);
        let mut merged = Recorder::default();
        merged.merge(&recorder);
        let (by_kind, all) = merged.figures(ms(2_000));
        let read = by_kind["read"];
        assert_eq!((read.ops, read.ops_per_s, read.p50_us / 1_000, read.max_us / 1_000), (50, 25.0, 50, 100));
        assert_eq!((all.ops, all.conflicts), (51, 1));
        assert_eq!(merged.errors(), BTreeMap::from([("NO_QUORUM".to_owned(), 1)]));
    }

    #[test]
    fn the_longest_gap_is_between_any_two_workers_acknowledgements() {
        let stall = Stall::default();
        let ms = Duration::from_millis;
        stall.acknowledged(ms(900));
        stall.begin(ms(1_000));
        for at in [1_010, 1_015, 1_400, 1_390, 1_410] {
            stall.acknowledged(ms(at));
        }
        assert_eq!(stall.longest(), ms(385));
        stall.acknowledged(ms(2_000));
        assert_eq!(stall.longest(), ms(590));
    }
}
