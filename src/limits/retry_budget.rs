//! A token bucket for retries: calls earn, retries spend, and time pays a small allowance.

use std::time::Instant;

/// How many retries a client may still make.
///
/// Every first attempt earns a fraction of a retry, so that in the long run retries stay that fraction of the calls
/// and a cluster in trouble is not asked much more than one that is well. Beyond that, `burst` retries a second are
/// allowed, and at most `burst` are saved up: enough to live through an election, or for a client that calls seldom.
#[derive(Clone, Debug)]
pub struct RetryBudget {
    /// Retries earned by one call.
    ratio: f64,
    /// Most retries saved up, and retries allowed per second whatever is earned.
    burst: f64,
    /// Retries that can be spent now; between 0 and `burst`.
    saved: f64,
    /// Up to when the allowance was paid.
    paid: Instant,
}

impl RetryBudget {
    /// A full budget. `ratio` is in retries per call, `burst` in retries (and in retries per second); what is negative or
    /// no number counts as 0.
    pub fn new(ratio: f64, burst: f64, now: impl Into<Instant>) -> RetryBudget {
        // `max` prefers the number to what is none.
        let (ratio, burst) = (ratio.max(0.0), burst.max(0.0));
        RetryBudget { ratio, burst, saved: burst, paid: now.into() }
    }

    /// Notes a call's first attempt.
    pub fn earn(&mut self, now: impl Into<Instant>) {
        self.pay(now.into());
        self.saved = (self.saved + self.ratio).min(self.burst);
    }

    /// Takes one retry out of the budget; false if there is none now.
    pub fn try_spend(&mut self, now: impl Into<Instant>) -> bool {
        self.pay(now.into());
        let affordable = self.saved >= 1.0;
        if affordable {
            self.saved -= 1.0;
        }
        affordable
    }

    fn pay(&mut self, now: Instant) {
        // Threads may come with moments slightly out of order; the later one has been paid for.
        if let Some(passed) = now.checked_duration_since(self.paid) {
            self.saved = (self.saved + passed.as_secs_f64() * self.burst).min(self.burst);
            self.paid = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Any moment will do; a test then adds to it.
    #[allow(clippy::disallowed_methods)]
    fn now() -> Instant {
        Instant::now()
    }

    fn spend_all(budget: &mut RetryBudget, at: Instant) -> usize {
        (0..10_000).take_while(|_| budget.try_spend(at)).count()
    }

    #[test]
    fn a_burst_is_allowed_at_once_and_again_after_a_second() {
        let start = now();
        let mut budget = RetryBudget::new(0.1, 20.0, start);
        assert_eq!(spend_all(&mut budget, start), 20);
        assert_eq!(spend_all(&mut budget, start + Duration::from_millis(250)), 5);
        assert_eq!(spend_all(&mut budget, start + Duration::from_secs(60)), 20);
    }

    #[test]
    fn calls_earn_their_share() {
        let start = now();
        let mut budget = RetryBudget::new(0.25, 10.0, start);
        spend_all(&mut budget, start);
        for _ in 0..3 {
            budget.earn(start);
        }
        assert!(!budget.try_spend(start), "three calls of four");
        budget.earn(start);
        assert!(budget.try_spend(start));
        for _ in 0..1_000 {
            budget.earn(start);
        }
        assert_eq!(spend_all(&mut budget, start), 10, "no more than a burst is saved up");
    }

    #[test]
    fn an_earlier_moment_is_not_paid_for_twice() {
        let start = now();
        let later = start + Duration::from_secs(1);
        let mut budget = RetryBudget::new(0.0, 8.0, start);
        spend_all(&mut budget, start);
        assert_eq!(spend_all(&mut budget, later), 8);
        assert_eq!(spend_all(&mut budget, start), 0);
        assert_eq!(spend_all(&mut budget, later), 0);
    }

    #[test]
    fn nonsense_allows_nothing() {
        let start = now();
        for (ratio, burst) in [(f64::NAN, f64::NAN), (-1.0, -1.0), (1.0, 0.0)] {
            let mut budget = RetryBudget::new(ratio, burst, start);
            budget.earn(start);
            assert!(!budget.try_spend(start + Duration::from_secs(9)));
        }
    }

    proptest! {
        #[test]
        fn retries_never_exceed_burst_and_share_and_allowance(steps in vec((0u64..200, 0u32..20, 0u32..40), 1..50)) {
            let (start, ratio, burst) = (now(), 0.1, 5.0);
            let mut budget = RetryBudget::new(ratio, burst, start);
            let (mut at, mut calls, mut retries) = (start, 0u32, 0u32);
            for (pause_ms, new_calls, wishes) in steps {
                at += Duration::from_millis(pause_ms);
                calls += new_calls;
                (0..new_calls).for_each(|_| budget.earn(at));
                retries += (0..wishes).filter(|_| budget.try_spend(at)).count() as u32;
                let allowed = burst + ratio * f64::from(calls) + burst * (at - start).as_secs_f64();
                prop_assert!(f64::from(retries) <= allowed + 1e-6, "{} > {}", retries, allowed);
            }
        }
    }
}
