//! Pauses that grow, with jitter, so that many who wait do not come back together.

use std::time::Duration;

use crate::runtime::random_u64;

/// A growing pause: each is between half of and all of the current step, which doubles up to a limit.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    step: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { first, longest, step: first }
    }

    /// The next pause.
    pub(super) fn next(&mut self) -> Duration {
        let pause = jitter(self.step);
        self.step = (self.step * 2).min(self.longest);
        pause
    }

    /// Begins with the first step again.
    pub(super) fn reset(&mut self) {
        self.step = self.first;
    }
}

/// Between half of and all of `span`.
pub(super) fn jitter(span: Duration) -> Duration {
    let half = span / 2;
    let micros = u64::try_from(half.as_micros()).unwrap_or(u64::MAX);
    half + Duration::from_micros(random_u64() % micros.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_vary() {
        let millis = Duration::from_millis;
        let mut backoff = Backoff::new(millis(20), millis(100));
        for step in [20, 40, 80, 100, 100] {
            let pause = backoff.next();
            assert!(millis(step) / 2 <= pause && pause <= millis(step), "{pause:?} of {step} ms");
        }
        backoff.reset();
        assert!(backoff.next() <= millis(20));
        let pauses: std::collections::HashSet<_> = (0..20).map(|_| jitter(millis(100))).collect();
        assert!(pauses.len() > 10);
        assert_eq!(jitter(Duration::ZERO), Duration::ZERO);
    }
}
