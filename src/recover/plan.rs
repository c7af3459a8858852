//! What is to become of each shard, from what all surviving nodes hold.

use std::collections::{BTreeMap, BTreeSet};

use super::collect::{Collected, Replica, refused};
use crate::catalog::{Counter, Directory, LostNode, NextIds, RecoveredReplica, RecoveredShard, RecoveryRow};
use crate::raft::Position;
use crate::types::{
    ClusterId, Incarnation, NodeId, ReplicaId, Result, ShardDescriptor, ShardId, TableState, Timestamp,
};

/// What the file says it is; another version of it is refused.
const FORMAT: &str = "trivet recovery plan 1";
/// Replica ids left free above the highest one seen: the lost part of the catalog may have given out some, and the catalog
/// gives out more before it knows of the recovery.
const REPLICA_IDS_SKIPPED: u64 = 1_000;

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
    /// quorum, or the surviving catalog is older than a split.
    pub fn make(survivors: &[Collected], lost: &BTreeSet<NodeId>, made_ms: u64, id: u64) -> Result<Plan> {
        let cluster = one_cluster(survivors)?;
        let survey = Survey::of(survivors)?;
        let lost = survey.everyone_is_accounted_for(lost)?;
        let mut shards = Vec::new();
        for descriptor in survey.directory.shards() {
            let table = survey.directory.descriptor(descriptor.table);
            match table {
                Some(table) if table.state == TableState::Dropping => {}
                _ => shards.push(survey.judge(descriptor.id, table.map_or("?", |table| &table.name))),
            }
            // A split that the catalog wants may have happened already.
            if let Some(split) = descriptor.split.as_ref().filter(|split| survey.is_held(split.child)) {
                shards.push(survey.judge(split.child, table.map_or("?", |table| &table.name)));
            }
        }
        shards.sort_by_key(|shard| shard.shard);
        let unknown = survey.unknown_shards()?;
        survey.rows_are_no_guesses(&shards)?;
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
        let mut plan = Plan { format: FORMAT.to_owned(), cluster, nodes, recovery, shards, unknown, sum: 0 };
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

/// All survivors under one eye.
struct Survey<'a> {
    survivors: &'a [Collected],
    /// The newest copy of the catalog.
    directory: Directory,
}

impl<'a> Survey<'a> {
    fn of(survivors: &'a [Collected]) -> Result<Survey<'a>> {
        let newest = survivors.iter().max_by_key(|survivor| {
            survivor.replica(ShardId::SYSTEM).map(|system| (system.log.applied, system.log.last))
        });
        let directory = newest.map_or_else(|| Ok(Directory::empty()), Collected::directory)?;
        if directory.cluster().is_none() {
            return Err(refused(
                "no copy of the catalog survives on these nodes, so nobody can tell what there was: a backup is needed",
            ));
        }
        Ok(Survey { survivors, directory })
    }

    /// The lost nodes, when each node of the catalog is either here or among `lost`.
    fn everyone_is_accounted_for(&self, lost: &BTreeSet<NodeId>) -> Result<Vec<LostNode>> {
        for survivor in self.survivors {
            if lost.contains(&survivor.node) {
                return Err(refused(format!("{} cannot be lost: its data was given", survivor.node)));
            }
            match self.directory.node(survivor.node) {
                Some(row) if row.incarnation == survivor.incarnation => {}
                _ => {
                    return Err(refused(format!(
                        "the data given for {} is not that of the node as the cluster knows it: it was replaced, or it \
                         left. Plan without it",
                        survivor.node
                    )));
                }
            }
        }
        if let Some(stranger) = lost.iter().find(|&&node| self.directory.node(node).is_none()) {
            return Err(refused(format!("the cluster has no node {}", stranger.0)));
        }
        let here = |node: NodeId| self.survivors.iter().any(|survivor| survivor.node == node);
        let missing: Vec<String> = (self.directory.nodes())
            .filter(|row| !here(row.id) && !lost.contains(&row.id))
            .map(|row| row.id.0.to_string())
            .collect();
        if !missing.is_empty() {
            return Err(refused(format!(
                "what of {}? Give what `collect` says of each node that survives, and declare each that is lost for good \
                 with --lost",
                missing.iter().map(|id| format!("node {id}")).collect::<Vec<_>>().join(" and ")
            )));
        }
        let rows = self.directory.nodes().filter(|row| lost.contains(&row.id));
        Ok(rows
            .map(|row| LostNode { node: row.id, incarnation: row.incarnation, address: row.address.clone() })
            .collect())
    }

    /// The surviving replicas of a shard that hold something, the most advanced first.
    fn replicas(&self, shard: ShardId) -> Vec<(&'a Collected, &'a Replica)> {
        let of_shard = |survivor: &'a Collected| Some((survivor, survivor.replica(shard)?));
        let mut all: Vec<_> = self.survivors.iter().filter_map(of_shard).collect();
        all.retain(|(_, replica)| replica.holds_something());
        all.sort_by_key(|(survivor, replica)| {
            (std::cmp::Reverse((replica.log.last, replica.log.applied)), survivor.node)
        });
        all
    }

    fn is_held(&self, shard: ShardId) -> bool {
        !self.replicas(shard).is_empty()
    }

    /// What becomes of a shard.
    fn judge(&self, shard: ShardId, table: &str) -> PlannedShard {
        let replicas = self.replicas(shard);
        let alive = |id: ReplicaId| {
            self.survivors.iter().any(|survivor| survivor.replica(shard).is_some_and(|replica| replica.replica == id))
        };
        // The newest configuration that any of them knows is the one that counts.
        let (fate, lost): (Fate, BTreeSet<NodeId>) = match replicas.first() {
            None => {
                let wanted = self.directory.shard(shard).map(|row| row.replicas.iter().map(|replica| replica.node));
                (Fate::Gone, wanted.into_iter().flatten().collect())
            }
            Some((_, first)) => {
                let members = first.log.members.iter();
                let lost = members.filter(|&(&id, _)| !alive(id)).map(|(_, &node)| node).collect();
                (if first.log.has_quorum(alive) { Fate::Healthy } else { Fate::Recovered }, lost)
            }
        };
        let rest = |(survivor, replica): &(&Collected, &Replica)| Rest {
            node: survivor.node,
            replica: replica.replica,
            last: replica.log.last,
            unapplied: replica.log.unapplied(),
            newest: replica.newest,
        };
        PlannedShard {
            shard,
            table: table.to_owned(),
            fate,
            lost: lost.into_iter().collect(),
            rests: replicas.iter().map(rest).collect(),
        }
    }

    /// Shards that a node holds and the catalog has not heard of: made after its last change that survives.
    fn unknown_shards(&self) -> Result<Vec<ShardId>> {
        let mut unknown = BTreeSet::new();
        for replica in self.survivors.iter().flat_map(|survivor| &survivor.replicas) {
            let coming = |row: &ShardDescriptor| row.split.as_ref().is_some_and(|split| split.child == replica.shard);
            let known = self.directory.shard(replica.shard).is_some() || self.directory.shards().any(|row| coming(row));
            if known || self.directory.was_dropped(replica.shard) {
                continue;
            }
            if self.directory.descriptor(replica.table).is_some() {
                return Err(refused(format!(
                    "{} was split off another shard after the last change of the catalog that survives, so its range \
                     would have to be guessed: this cannot be recovered",
                    replica.shard
                )));
            }
            unknown.insert(replica.shard);
        }
        Ok(unknown.into_iter().collect())
    }

    /// Refuses if a shard's range has changed in a way that the surviving catalog has not heard of.
    fn rows_are_no_guesses(&self, shards: &[PlannedShard]) -> Result<()> {
        let unfinished = |shard: ShardId| {
            let mut rows = self.survivors.iter().filter_map(|survivor| survivor.recovery.as_ref());
            rows.any(|row| row.shards.iter().any(|known| known.shard == shard))
        };
        for shard in shards {
            let Some(row) = self.directory.shard(shard.shard) else { continue };
            let Some((_, first)) = self.replicas(shard.shard).first().copied() else { continue };
            let explained = row.epoch.0 + u64::from(row.split.is_some());
            if first.epoch.0 > explained && !unfinished(shard.shard) {
                return Err(refused(format!(
                    "the range of {} has changed after the last change of the catalog that survives, so its row would have \
                     to be guessed: this cannot be recovered",
                    shard.shard
                )));
            }
        }
        Ok(())
    }

    /// What is to be done, with ids that nobody had before.
    fn recovery(&self, shards: &[PlannedShard], lost: Vec<LostNode>, made_ms: u64, id: u64) -> RecoveryRow {
        let replicas = || self.survivors.iter().flat_map(|survivor| &survivor.replicas);
        let seen = replicas().flat_map(|replica| {
            let members = replica.log.members.keys().copied();
            members.chain([replica.replica])
        });
        let wanted = self.directory.shards().flat_map(|row| {
            let children = row.split.iter().flat_map(|split| &split.replicas);
            row.replicas.iter().chain(children).map(|replica| replica.id)
        });
        let highest = seen.chain(wanted).map(|id| id.0 + 1).max().unwrap_or(0);
        let mut next_replica = self.directory.next_id(Counter::Replica).max(highest) + REPLICA_IDS_SKIPPED;
        let incarnations: BTreeMap<NodeId, Incarnation> =
            self.survivors.iter().map(|survivor| (survivor.node, survivor.incarnation)).collect();
        let mut replica_on = |node: NodeId| {
            let id = ReplicaId(next_replica);
            next_replica += 1;
            RecoveredReplica { id, node, incarnation: incarnations[&node] }
        };
        let mut recovered = Vec::new();
        for shard in shards.iter().filter(|shard| shard.fate == Fate::Recovered) {
            let heir = replica_on(shard.rests[0].node);
            // Who follows the catalog by a replica of a group that is no more would never hear of it again.
            let others = if shard.shard == ShardId::SYSTEM {
                let others = self.survivors.iter().filter(|survivor| survivor.node != heir.node);
                others
                    .filter(|survivor| survivor.replica(ShardId::SYSTEM).is_some())
                    .map(|survivor| replica_on(survivor.node))
                    .collect()
            } else {
                Vec::new()
            };
            recovered.push(RecoveredShard { shard: shard.shard, heir, others });
        }
        let shard = replicas().map(|replica| replica.shard.0 + 1).max().unwrap_or(0);
        let table = replicas().map(|replica| u64::from(replica.table.0) + 1).max().unwrap_or(0);
        let next_ids = NextIds {
            table: self.directory.next_id(Counter::Table).max(table),
            shard: self.directory.next_id(Counter::Shard).max(shard),
            replica: next_replica,
        };
        RecoveryRow { id, made_ms, lost, shards: recovered, next_ids }
    }
}
