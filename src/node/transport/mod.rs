//! Between nodes: one multiplexed stream per direction of asking carries the frames of all groups.
//!
//! A link to a peer is one gRPC stream: questions go out in batches (whatever has queued up becomes one flush),
//! answers come back on the same stream, matched by correlation numbers. The other node's own questions come over its
//! link. Snapshots travel on connections of their own, so that they delay no heartbeat. Rare questions
//! (`super::ask`) are plain calls.
//!
//! Order: frames of one link arrive in the order sent, and are handed to their groups in that order. A link that
//! breaks fails everything in flight at once, and everything asked while it is down, so that Raft backs off; and it is a
//! sign that the process at its other end may be gone (`super::takeover`).

mod link;
mod receive;
mod snapshot;
#[cfg(test)]
pub mod testing;

pub use link::{LinkTransport, Links, endpoint};
pub use receive::PeerService;
