//! What a node is told when it is started.

use std::time::Duration;

use super::formation::Bootstrap;
use super::views::ScrubOptions;
use crate::placement::sizing::Sizes;
use crate::raft::{LogBounds, Timers};
use crate::runtime::Clock;
use crate::types::{Limits, NodeId};

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Its id, chosen by its operator.
    pub id: NodeId,
    /// Where others reach its gRPC server, host:port.
    pub address: String,
    /// Where its HTTP server listens, host:port.
    pub http_address: String,
    /// Its failure zone.
    pub zone: String,
    /// How it becomes a member if its directory is empty.
    pub bootstrap: Bootstrap,
    /// Raft's timers.
    pub timers: Timers,
    /// How much of each replica's log to keep.
    pub log: LogBounds,
    /// Bounds on requests.
    pub limits: Limits,
    /// How long a node may be silent before its replicas are made anew elsewhere.
    pub replace_lost_after: Duration,
    /// The sizes at which shards are split unasked.
    pub sizes: Sizes,
    /// How views are compared with their sources unasked.
    pub scrub: ScrubOptions,
    /// This program's version.
    pub version: String,
    /// Clocks.
    pub clock: Clock,
}
