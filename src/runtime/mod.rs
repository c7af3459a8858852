//! Floor 1: time, randomness and tasks.
//!
//! Everything that differs from run to run enters here, so that a simulation can own it: the monotonic clock and the
//! wall clock ([`Clock`]), random numbers ([`random_u64`]), tasks and timers ([`spawn`], [`sleep`]). Clippy forbids the
//! direct calls elsewhere (`.clippy.toml`). Monotonic time measures ages and deadlines; wall time only seeds
//! timestamps, which a shard's log then orders by itself.

mod clock;
mod tasks;

pub use clock::{Clock, ManualClock};
pub use tasks::{Task, random_u64, sleep, sleep_until, spawn, spawn_blocking, timeout, timeout_at, yield_now};
pub use tokio::time::Instant;
