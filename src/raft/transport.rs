//! How messages get from replica to replica. Groups hand over opaque frames; the node's transport carries them.

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::oneshot;

use super::machine::Cut;
use crate::types::{NodeId, ReplicaId, ShardId};
use crate::wire::proto::internal::{SnapshotHeader, Vote};

/// What a frame contains. The numbers are part of the protocol between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Kind {
    /// Log entries, or a heartbeat.
    Append = 1,
    /// A candidate asks for a vote.
    Vote = 2,
    /// A would-be candidate asks whether it would get a vote.
    PreVote = 3,
    /// A leader hands its leadership over.
    Transfer = 4,
    /// A replica asks its leader for an index that a quorum has confirmed. The owner of the group answers it.
    ReadIndex = 5,
}

impl Kind {
    /// The number on the wire.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// The kind with this number.
    pub fn from_number(number: u32) -> Option<Kind> {
        let all = [Kind::Append, Kind::Vote, Kind::PreVote, Kind::Transfer, Kind::ReadIndex];
        all.into_iter().find(|kind| kind.number() == number)
    }
}

/// A frame to another replica of the group.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The group.
    pub group: ShardId,
    /// The replica that sends.
    pub from: ReplicaId,
    /// The replica that is meant; a node that does not host it refuses the frame.
    pub to: ReplicaId,
    /// What is inside.
    pub kind: Kind,
    /// The message.
    pub payload: Bytes,
}

/// Why a frame was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// There is no connection and asking again at once will not help.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// The other side refused the frame: wrong cluster, no such replica, or the replica has stopped.
    #[error("refused: {0}")]
    Refused(String),
    /// The connection broke while the answer was awaited; a new one may be there already.
    #[error("the connection closed while the answer was awaited")]
    Closed,
}

/// Carries frames and snapshots between nodes.
pub trait Transport: Send + Sync + 'static {
    /// Queues a frame and never blocks. Frames from here to one replica arrive in the order sent. The answer, or why
    /// there is none, comes through the receiver; a dropped sender counts as [`TransportError::Closed`].
    fn send(&self, to: NodeId, frame: Outgoing) -> oneshot::Receiver<Result<Bytes, TransportError>>;

    /// Sends a cut on a connection of its own: the header (whose `cluster` the transport fills in), then the files as
    /// the cut writes them. Returns what [`Group::receive_snapshot`](super::Group::receive_snapshot) returned on the
    /// other side. Dropping the future abandons the transfer. The transport must fail when no progress is made for a
    /// while; there is no other deadline.
    fn send_snapshot(
        &self,
        to: NodeId,
        header: SnapshotHeader,
        cut: Box<dyn Cut>,
    ) -> BoxFuture<'static, Result<Vote, TransportError>>;
}
