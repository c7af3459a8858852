//! What a replica says about itself.

use std::collections::BTreeMap;

use crate::types::{NodeId, ReplicaId};

/// The part a replica plays in its group now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// It leads: a quorum has accepted it for this term.
    Leader,
    /// It votes and follows.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It follows without a vote (a read replica, or a replica that has not heard of its group yet).
    Learner,
    /// It has stopped, in order or because of a failure.
    Stopped,
}

impl Part {
    /// A name for logs and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Part::Leader => "leader",
            Part::Follower => "follower",
            Part::Candidate => "candidate",
            Part::Learner => "learner",
            Part::Stopped => "stopped",
        }
    }
}

/// A replica's view of its group. Log positions are indexes; 0 stands for "nothing yet" as well as for the first entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This replica.
    pub replica: ReplicaId,
    /// The highest term it has seen.
    pub term: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<(ReplicaId, NodeId)>,
    /// What it does itself.
    pub part: Part,
    /// Its last log entry.
    pub last_log: u64,
    /// The last entry it knows to be committed.
    pub committed: u64,
    /// The last entry its machine has applied.
    pub applied: u64,
    /// Everything up to here lies in a snapshot (its machine's durable state).
    pub snapshot: Option<u64>,
    /// Everything up to here was removed from its log.
    pub purged: Option<u64>,
    /// The voters in the newest configuration it knows, and where they are; while joint, those of both.
    pub voters: BTreeMap<ReplicaId, NodeId>,
    /// The replicas that follow without a vote.
    pub learners: BTreeMap<ReplicaId, NodeId>,
    /// The entry that set these members; 0 for the first.
    pub members_at: u64,
    /// Whether the group is between two configurations; the leader finishes that by itself, a new leader when asked
    /// ([`Group::finish_change`](super::Group::finish_change)).
    pub joint: bool,
    /// On the leader: how far each replica's log is known to agree with its own. Empty elsewhere.
    pub matched: BTreeMap<ReplicaId, Option<u64>>,
    /// Why it stopped, if it failed.
    pub failure: Option<String>,
}

impl Status {
    /// Whether it leads.
    pub fn is_leader(&self) -> bool {
        self.part == Part::Leader
    }

    /// Where a member is, voter or learner.
    pub fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.voters.get(&replica).or_else(|| self.learners.get(&replica)).copied()
    }
}
