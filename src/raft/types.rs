//! The one type configuration of openraft, and plain names for everything that it makes generic.
//!
//! A log entry keeps the bytes it has in the log and on the wire beside its decoded form: it is encoded once, where it
//! is proposed, and from then on only passed along.

use std::fmt;

use bytes::Bytes;
use openraft::entry::RaftEntry;
use openraft::impls::leader_id_adv;
use openraft::type_config::alias;

use super::apply::{Applier, SnapshotFiles};
use super::runtime::Runtime;
use crate::types::{NodeId, Outcomes};

openraft::declare_raft_types!(
    /// openraft's node id is our replica id, its node is the node that hosts the replica.
    pub TypeConfig:
        D = Command,
        R = Outcomes,
        NodeId = u64,
        Node = NodeId,
        Term = u64,
        LeaderId = leader_id_adv::LeaderId<u64, u64>,
        Entry = LogEntry,
        AsyncRuntime = Runtime,
);

/// Leader of a term. Two leaders of one term are told apart by their replica, so a vote is never split by a tie.
pub type LeaderId = leader_id_adv::LeaderId<u64, u64>;
/// A place in the log.
pub type LogId = alias::LogIdOf<TypeConfig>;
/// A vote.
pub type Vote = alias::VoteOf<TypeConfig>;
/// Voters and learners.
pub type Membership = openraft::Membership<u64, NodeId>;
/// Voters and learners with the entry that set them.
pub type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
/// What an entry holds.
pub type Payload = openraft::EntryPayload<Command, u64, NodeId>;
/// Position and members of a snapshot.
pub type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
/// openraft's handle of one group.
pub type Raft = openraft::Raft<TypeConfig, Applier>;
/// openraft's report on one group.
pub type Metrics = openraft::RaftMetrics<TypeConfig>;
/// The part of it that changes with leadership and members.
pub type ServerMetrics = openraft::metrics::RaftServerMetrics<TypeConfig>;
/// A snapshot with its data.
pub type Snapshot = openraft::Snapshot<LeaderId, u64, NodeId, SnapshotFiles>;
/// A request to append.
pub type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
/// Its answer.
pub type AppendResponse = openraft::raft::AppendEntriesResponse<TypeConfig>;
/// A request for a vote.
pub type VoteRequest = openraft::raft::VoteRequest<TypeConfig>;
/// Its answer.
pub type VoteResponse = openraft::raft::VoteResponse<TypeConfig>;
/// A leader's wish to hand over.
pub type TransferRequest = openraft::raft::TransferLeaderRequest<TypeConfig>;

/// What a client proposes: bytes that only the machine understands.
#[derive(Clone, PartialEq, Eq)]
pub struct Command(pub Bytes);

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A log entry. Cloning it copies no payload.
#[derive(Clone)]
pub struct LogEntry {
    /// Its place.
    pub id: LogId,
    /// What it holds.
    pub payload: Payload,
    /// The same, encoded; none until it is first written to a log.
    pub encoded: Option<Bytes>,
}

impl PartialEq for LogEntry {
    fn eq(&self, other: &LogEntry) -> bool {
        self.id == other.id && self.payload == other.payload
    }
}

impl fmt::Display for LogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.id, self.payload)
    }
}

impl fmt::Debug for LogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl RaftEntry for LogEntry {
    type CommittedLeaderId = LeaderId;
    type Payload = Payload;

    fn new(id: LogId, payload: Payload) -> LogEntry {
        LogEntry { id, payload, encoded: None }
    }

    fn log_id_parts(&self) -> (&LeaderId, u64) {
        (&self.id.leader_id, self.id.index)
    }

    fn set_log_id(&mut self, new: LogId) {
        self.id = new;
        self.encoded = None;
    }

    fn get_membership(&self) -> Option<Membership> {
        match &self.payload {
            Payload::Membership(membership) => Some(membership.clone()),
            Payload::Blank | Payload::Normal(_) => None,
        }
    }
}
