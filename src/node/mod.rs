//! Floor 5: a node hosts replicas, speaks with the other nodes, and is the one door for requests.
//!
//! Promise: whatever the catalog wants of this node (`reconcile`) comes to be, and resumes after a crash at any
//! point; a request given to any node reaches the replica that can answer it (`door`).
//!
//! - `identity`: which cluster, which node, which data directory; written once.
//! - `formation`: how an empty directory becomes a member: founding, joining, coming back.
//! - `lineage`: an old copy of a data directory is refused, because the others remember each start.
//! - [`recovery`]: what a node keeps of a recovery from a lost quorum.
//! - `registry`: the replicas hosted here.
//! - `transport`: one multiplexed stream per peer carries the frames of all groups; snapshots have their own.
//! - [`ask`]: rare questions between nodes.
//! - `follower`: turns the applied rows of shard 0 into the [`Directory`](crate::catalog::Directory).
//! - `reconcile`: creates and destroys replicas, and has the others take the next step; `busy`: what is under way.
//! - `members`: brings the members of a group to what the catalog wants; who is wanted no more goes.
//! - `splits`: brings about the splits that are wanted, hosts the children.
//! - `merges`: brings about the merges that are wanted, buries who was taken over.
//! - `takeover`: stands for election when another node's process is gone, without waiting for the timeout.
//! - `room`: yields before the disk is full; `stall`: yields while the disk stands still; `sweeper`: makes what was deleted leave it.
//! - `door`: `(table, Request) -> Response`: local replica, or forwarded to the node that can; `routing`: its attempts,
//!   one after the other, and what they leave to be said; `paging`: scans, `changes`: what has changed, page by page.
//!
//! Invariants: a frame names cluster, group and target replica and is refused on mismatch; a replica id that was
//! destroyed here never comes back; the truth about who owns a range is the shard's own log, the catalog proposes.
//!
//! Left out: deciding what the catalog should want (control).

pub mod ask;
mod busy;
mod changes;
mod door;
mod follower;
mod formation;
mod host;
mod identity;
mod lineage;
mod members;
mod merges;
pub mod metrics;
mod options;
mod paging;
mod reconcile;
pub mod recovery;
mod registry;
mod report;
mod room;
mod routing;
mod splits;
mod stall;
mod sweeper;
mod takeover;
mod transport;
mod views;

pub use ask::{AskHandler, ChecksumAnswer, IdentityAnswer, JoinAnswer, JoinAsk, ShardAsk};
pub use door::Context;
pub use formation::Bootstrap;
pub use host::Node;
pub use identity::Identity;
pub use members::{MemberAnswer, MemberAsk};
pub use merges::MergeNews;
pub use options::NodeOptions;
pub use registry::Registry;
pub use report::{NodeReport, ShardReport};
pub use splits::SplitNews;
pub use transport::PeerService;
#[cfg(test)]
pub(crate) use transport::testing;
pub use views::{
    CHANGE_VIEW, ChangeViewAsk, Difference, ScrubOptions, SourceLag, StandingAnswer, Unfit, VERIFY, VERIFY_TIMEOUT,
    VerifyAsk, ViewCheck,
};
