//! What is to become of each shard, from what all surviving nodes hold.

use std::collections::BTreeSet;

use super::collect::{Collected, refused};
use super::survey::Survey;
use crate::catalog::RecoveryRow;
use crate::raft::Position;
use crate::types::{ClusterId, Incarnation, NodeId, ReplicaId, Result, ShardId, Timestamp};

/// What the file says it is; another version of it is refused.
const FORMAT: &str = "trivet recovery plan 1";

/// A plan, for all nodes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Plan {
    format: String,
    /// The cluster.
    pub cluster: ClusterId,
    /// The surviving nodes.
    pub nodes: Vec<PlannedNode>,
    /// What is done: what every node stores, and the catalog notes.
    pub recovery: RecoveryRow,
    /// Every shard, for the report.
    pub shards: Vec<PlannedShard>,
    /// Shards on surviving nodes that the surviving catalog has not heard of; they are removed.
    pub unknown: Vec<ShardId>,
    /// Merges that are given up, for one of the two has lost its quorum: the shard that was to take over its right neighbour,
    /// and that one.
    pub merges: Vec<(ShardId, ShardId)>,
    /// Guards against a plan that was edited: its checksum while this is 0.
    sum: u32,
}

/// A surviving node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PlannedNode {
    /// The node.
    pub node: NodeId,
    /// Its data directory.
    pub incarnation: Incarnation,
    /// Of its store when the plan was made.
    pub digest: u32,
}

/// A shard and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PlannedShard {
    /// The shard.
    pub shard: ShardId,
    /// Its table's name.
    pub table: String,
    /// Its fate.
    pub fate: Fate,
    /// The nodes of the members of its group that are lost.
    pub lost: Vec<NodeId>,
    /// What is left of it, the most advanced first.
    pub rests: Vec<Rest>,
}

/// What becomes of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// A majority survives: it is left alone.
    Healthy,
    /// It goes on from its first rest.
    Recovered,
    /// Nothing is left of it.
    Gone,
}

/// What a surviving replica holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rest {
    /// Its node.
    pub node: NodeId,
    /// The replica.
    pub replica: ReplicaId,
    /// The end of its log.
    pub last: Option<Position>,
    /// Entries at the end of its log that are not known to be committed. They take effect if it is chosen.
    pub unapplied: u64,
    /// The newest version that it has applied.
    pub newest: Timestamp,
}

impl Plan {
    /// Makes a plan from the surviving nodes and the ids of those that are lost for good; `made_ms` is now, in milliseconds
    /// since 1970, and `id` a random number.
    ///
    /// Errors: the nodes are not those of one cluster, some node is neither there nor lost or is both, every shard has its
    /// quorum, or the surviving catalog and what is left of a shard do not agree on its range.
    pub fn make(survivors: &[Collected], lost: &BTreeSet<NodeId>, made_ms: u64, id: u64) -> Result<Plan> {
        let cluster = one_cluster(survivors)?;
        let survey = Survey::of(survivors)?;
        let lost = survey.everyone_is_accounted_for(lost)?;
        let shards = survey.judge_all();
        let unknown = survey.unknown_shards()?;
        survey.rows_are_no_guesses(&shards)?;
        let merges = survey.merges_given_up(&shards);
        let hopeless = shards.iter().any(|shard| shard.fate == Fate::Recovered);
        if !hopeless {
            let gone = shards.iter().filter(|shard| shard.fate == Fate::Gone).count();
            return Err(refused(if gone == 0 {
                "every shard has a majority of its replicas on these nodes: start them, there is nothing to recover"
                    .to_owned()
            } else {
                format!(
                    "no shard can be recovered: nothing is left of {gone} of them, and every other has a majority of its \
                     replicas on these nodes"
                )
            }));
        }
        let recovery = survey.recovery(&shards, lost, made_ms, id);
        let nodes = survivors.iter().map(|survivor| PlannedNode {
            node: survivor.node,
            incarnation: survivor.incarnation,
            digest: survivor.digest(),
        });
        let nodes = nodes.collect();
        let mut plan = Plan { format: FORMAT.to_owned(), cluster, nodes, recovery, shards, unknown, merges, sum: 0 };
        plan.sum = plan.checksum();
        Ok(plan)
    }

    fn checksum(&self) -> u32 {
        let unsummed = Plan { sum: 0, ..self.clone() };
        crc32fast::hash(&serde_json::to_vec(&unsummed).expect("plain data"))
    }

    /// Reads the file; one that was edited is refused.
    pub fn from_json(text: &str) -> Result<Plan> {
        let plan: Plan = serde_json::from_str(text)
            .map_err(|error| refused(format!("this is no file of `trivet debug recover plan`: {error}")))?;
        if plan.format != FORMAT {
            return Err(refused(format!(
                "the plan is of the format {:?}, this build knows {FORMAT:?}: plan and apply with one version",
                plan.format
            )));
        }
        if plan.sum != plan.checksum() {
            return Err(refused("the plan was changed or damaged after it was made: make it again"));
        }
        Ok(plan)
    }

    /// The file.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data")
    }

    /// The plan's word on the node that a store belongs to.
    pub(super) fn part_of(&self, collected: &Collected) -> Result<&PlannedNode> {
        if collected.cluster != self.cluster {
            return Err(refused(format!(
                "the plan is for cluster {}, and this data directory belongs to cluster {}",
                self.cluster, collected.cluster
            )));
        }
        let mine = |node: &&PlannedNode| node.node == collected.node && node.incarnation == collected.incarnation;
        self.nodes.iter().find(mine).ok_or_else(|| {
            refused(format!(
                "the plan was made without this data directory of {}: collect it, and plan again with all that survive",
                collected.node
            ))
        })
    }
}

/// The cluster that all of them belong to.
fn one_cluster(survivors: &[Collected]) -> Result<ClusterId> {
    let Some(first) = survivors.first() else {
        return Err(refused("name the files, or with --data the data directories, of all nodes that survive"));
    };
    for (at, survivor) in survivors.iter().enumerate() {
        if survivor.cluster != first.cluster {
            return Err(refused(format!(
                "{} is of cluster {} and {} of cluster {}: plan for one cluster at a time",
                first.node, first.cluster, survivor.node, survivor.cluster
            )));
        }
        if survivors[..at].iter().any(|other| other.node == survivor.node) {
            return Err(refused(format!("{} is given twice", survivor.node)));
        }
    }
    Ok(first.cluster)
}
