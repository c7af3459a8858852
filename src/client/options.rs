//! What can be chosen about a client.

use std::time::Duration;

/// How a client behaves. `Options::default()` is right for programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long a data call may take, all its attempts together. An election of a leader takes about two seconds, so
    /// with much less than the default of five, calls fail while one is under way.
    pub deadline: Duration,
    /// How long a verb of the cluster (creating a table, a checksum) may take.
    pub admin_deadline: Duration,
    /// Send calls over one stream per node, batched (the default), or each as a unary call of its own, as clients in
    /// other languages do.
    pub pipelined: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { deadline: Duration::from_secs(5), admin_deadline: Duration::from_secs(30), pipelined: true }
    }
}
