//! What can be chosen about a client.

use std::time::Duration;

/// Which replica of a shard is asked to answer a read. How fresh the answer is does not depend on it: that is the read's
/// level. A replica that cannot prove it passes the read on to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ReadFrom {
    /// The leader; reads of levels that any copy may answer (`any`, `max_age`) are spread over all replicas.
    #[default]
    Leader,
    /// One in the client's zone if there is one, and of those the one that has answered the quickest. Others are tried
    /// now and then, so that one which has become quicker is found.
    Nearest,
    /// The one with the fewest calls of this client under way.
    LeastLoaded,
}

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
    /// Which replica answers reads, unless a table's handle says otherwise.
    pub read_from: ReadFrom,
    /// The zone that this client is in, for [`ReadFrom::Nearest`].
    pub zone: Option<String>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            deadline: Duration::from_secs(5),
            admin_deadline: Duration::from_secs(30),
            pipelined: true,
            read_from: ReadFrom::default(),
            zone: None,
        }
    }
}
