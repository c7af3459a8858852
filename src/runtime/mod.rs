//! Floor 1: time, randomness and tasks.
//!
//! Everything that differs from run to run enters here, so that a simulation can own it: the monotonic clock and the
//! wall clock ([`Clock`]), random numbers ([`random_u64`]), tasks and timers ([`spawn`], [`sleep`]). Clippy forbids the
//! direct calls elsewhere (`.clippy.toml`). Monotonic time measures ages and deadlines; wall time only seeds
//! timestamps, which a shard's log then orders by itself. In [`simulation`] all of it comes from one seed.
//! [`planted`] names the faults that a test build can be told to have.
//!
//! Both ports also take from here the stream that holds a place, and can be broken off from outside ([`Guarded`]).

mod clock;
mod guarded;
pub mod planted;
pub mod simulation;
mod tasks;

pub use clock::{Clock, ManualClock};
pub use guarded::{Guard, Guarded};
pub use tasks::{Task, random_u64, sleep, sleep_until, spawn, spawn_blocking, timeout, timeout_at, yield_now};
pub use tokio::time::Instant;
