//! What a node says about itself and its replicas to those who ask.

use std::collections::BTreeSet;

use super::host::Node;
use crate::types::{Epoch, NodeId, ReplicaId, ReplicaRole, ShardDescriptor, ShardId, Timestamp};

/// One replica's report.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ShardReport {
    /// The shard.
    pub shard: ShardId,
    /// The member.
    pub replica: ReplicaId,
    /// `leader`, `follower`, `candidate`, `learner` or `stopped`.
    pub part: String,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// The highest term it has seen.
    pub term: u64,
    /// Its last log entry.
    pub last_log: u64,
    /// The last entry applied.
    pub applied: u64,
    /// The voters of its newest configuration.
    pub voters: Vec<ReplicaId>,
    /// The members without a vote.
    pub learners: Vec<ReplicaId>,
    /// Whether its members are being exchanged.
    #[serde(default)]
    pub joint: bool,
    /// Requests about it since this replica was started.
    #[serde(default)]
    pub requests: u64,
    /// Bytes stored of it, roughly; the leader knows.
    #[serde(default)]
    pub bytes: u64,
    /// The epoch it has applied.
    #[serde(default)]
    pub epoch: Epoch,
    /// It has applied the entry that set its members.
    #[serde(default)]
    pub members_applied: bool,
    /// Why it stopped, if it failed.
    pub failure: Option<String>,
}

impl ShardReport {
    /// Whether this leader's group has exactly the members that the catalog wants, and nothing else is wanted of it.
    pub fn is_settled(&self, wanted: &ShardDescriptor) -> bool {
        let of = |role: ReplicaRole| -> BTreeSet<ReplicaId> {
            wanted.replicas.iter().filter(|replica| replica.role == role).map(|replica| replica.id).collect()
        };
        let real = |members: &[ReplicaId]| members.iter().copied().collect::<BTreeSet<_>>();
        let as_wanted =
            real(&self.voters) == of(ReplicaRole::Voter) && real(&self.learners) == of(ReplicaRole::Learner);
        as_wanted && !self.joint && wanted.split.is_none() && wanted.merge.is_none() && wanted.merging_into.is_none()
    }
}

/// A node's report.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NodeReport {
    /// The node.
    pub node: NodeId,
    /// How much of the catalog it has seen.
    pub revision: Timestamp,
    /// The nodes it has heard from lately.
    pub hears: Vec<NodeId>,
    /// What is wrong with its disk, if something is.
    #[serde(default)]
    pub disk: Option<String>,
    /// Its replicas.
    pub shards: Vec<ShardReport>,
}

impl Node {
    /// This node's report of now.
    pub fn report(&self) -> NodeReport {
        let directory = self.directory();
        let replicas = self.replicas().all();
        let shards = replicas.iter().map(|shard| {
            let status = shard.group().status();
            ShardReport {
                shard: shard.id(),
                replica: shard.replica(),
                part: status.part.as_str().to_owned(),
                leader: status.leader.map(|(_, node)| node),
                term: status.term,
                last_log: status.last_log,
                applied: status.applied,
                voters: status.voters.keys().copied().collect(),
                learners: status.learners.keys().copied().collect(),
                joint: status.joint,
                requests: shard.load().requests(),
                bytes: shard.load().bytes(),
                epoch: shard.state().epoch,
                members_applied: !status.joint && status.members_at <= status.applied,
                failure: status.failure,
            }
        });
        NodeReport {
            node: self.id(),
            revision: directory.revision(),
            hears: directory.nodes().map(|node| node.id).filter(|&node| self.links().is_alive(node)).collect(),
            disk: self.check_disk().err().map(|error| error.message),
            shards: shards.collect(),
        }
    }
}
