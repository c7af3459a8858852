//! Floor 1: how much of something is allowed, as pure values.
//!
//! A limiter holds numbers and a past moment; the caller brings the present one. So limiters start nothing, wait for
//! nothing and read no clock, and a test moves time by adding to it. Whoever shares one between tasks puts it behind
//! a lock of his own and holds that for a few instructions.
//!
//! What there is: [`RetryBudget`], which keeps the retries of a client from making an outage worse; [`Reserve`], which
//! says what the room left on a disk allows.
//!
//! Left out: bounds on the size of single requests ([`Limits`](crate::types::Limits)), and deciding what to do when
//! something is refused; the caller knows whether to wait, to fail or to ask elsewhere.

mod reserve;
mod retry_budget;

pub use reserve::{Reserve, Room};
pub use retry_budget::RetryBudget;
