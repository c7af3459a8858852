//! Floor 7: what an operator sees: metrics, health, logs, and the small HTTP port that shows them.
//!
//! Every module counts through the `metrics` facade and declares its names with their descriptions beside the code
//! they measure; [`Recorder`] turns them into Prometheus text. [`Checks`] are named conditions: those of /livez say
//! whether the process should be left alone, those of /readyz whether the node should be sent requests. [`Http`]
//! serves both on a port of its own, so that a flood of data requests does not hide the cause of the flood. Logs go
//! to standard error. Nothing here knows what a node or a shard is; the composition root names the checks.

mod health;
mod http;
pub mod logs;
mod process;
mod recorder;

pub use health::{Checks, Finding};
pub use http::{Endpoints, Http};
pub use process::Usage;
pub use recorder::Recorder;

/// Names and descriptions of the metrics of this module.
pub mod metrics {
    pub use super::recorder::describe;
}
