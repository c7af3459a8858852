//! Floor 3: the routing client.
pub mod metrics;

mod backoff;
mod channel;

pub use channel::Connection;
