//! The two clocks of a node, as a value that tests can replace.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::simulation;

/// A source of monotonic and wall time. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    manual: Option<Arc<ManualClock>>,
}

/// A wall clock that stands where a test puts it. Monotonic time stays tokio's, which tests pause.
#[derive(Debug, Default)]
pub struct ManualClock {
    wall_ms: AtomicU64,
}

impl ManualClock {
    /// Sets the wall clock, in milliseconds since 1970. It may go backwards, as wall clocks do.
    pub fn set_wall_ms(&self, millis: u64) {
        self.wall_ms.store(millis, Ordering::Relaxed);
    }
}

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Clock {
        Clock::default()
    }

    /// A clock whose wall time is set by hand.
    pub fn manual(wall_ms: u64) -> (Clock, Arc<ManualClock>) {
        let manual = Arc::new(ManualClock::default());
        manual.set_wall_ms(wall_ms);
        (Clock { manual: Some(manual.clone()) }, manual)
    }

    /// Monotonic time: for ages, deadlines and timers.
    #[allow(clippy::disallowed_methods)]
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// Wall time in milliseconds since 1970: for stamping versions, never for safety.
    #[allow(clippy::disallowed_methods)]
    pub fn wall_ms(&self) -> u64 {
        match &self.manual {
            Some(manual) => manual.wall_ms.load(Ordering::Relaxed),
            None if simulation::active() => simulation::wall_ms(),
            None => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            }
        }
    }
}
