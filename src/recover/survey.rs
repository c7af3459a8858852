//! What the surviving nodes hold, taken together: who is lost, what is left of each shard, and whether the surviving catalog
//! and the surviving logs agree on the ranges.
//!
//! The catalog's rows tell where every key belongs, and stay. So what is left of a shard must have, or get by what its row says is
//! under way, the range of its row: then the map is total afterwards as it was before. Where it is otherwise, because the catalog
//! or the shard has lost a change of the range that the other knows, the plan is refused: a row would have to be guessed.

use std::collections::{BTreeMap, BTreeSet};

use super::collect::{Collected, Replica, refused};
use super::plan::{Fate, PlannedShard, Rest};
use crate::catalog::{Counter, Directory, LostNode, NextIds, RecoveredReplica, RecoveredShard, RecoveryRow};
use crate::types::{Epoch, Incarnation, NodeId, ReplicaId, Result, ShardDescriptor, ShardId, TableState};

/// Replica ids left free above the highest one seen: the lost part of the catalog may have given out some, and the catalog
/// gives out more before it knows of the recovery.
const REPLICA_IDS_SKIPPED: u64 = 1_000;

/// All survivors under one eye.
pub(super) struct Survey<'a> {
    survivors: &'a [Collected],
    /// The newest copy of the catalog.
    directory: Directory,
}

impl<'a> Survey<'a> {
    pub(super) fn of(survivors: &'a [Collected]) -> Result<Survey<'a>> {
        let newest = survivors.iter().max_by_key(|survivor| {
            survivor.replica(ShardId::SYSTEM).map(|system| (system.log.last, system.log.applied))
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
    pub(super) fn everyone_is_accounted_for(&self, lost: &BTreeSet<NodeId>) -> Result<Vec<LostNode>> {
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

    /// What becomes of every shard, in their order. Those of tables that are being dropped are left out, and so are those that
    /// their left neighbour has taken over.
    pub(super) fn judge_all(&self) -> Vec<PlannedShard> {
        let mut shards = Vec::new();
        for descriptor in self.directory.shards() {
            let table = self.directory.descriptor(descriptor.table);
            let name = table.map_or("?", |table| &table.name);
            let going = table.is_some_and(|table| table.state == TableState::Dropping);
            if !going && !self.was_taken_over(descriptor) {
                shards.push(self.judge(descriptor.id, name));
            }
            // A split that the catalog wants may have happened already.
            if let Some(split) = descriptor.split.as_ref().filter(|split| self.is_held(split.child)) {
                shards.push(self.judge(split.child, name));
            }
        }
        shards.sort_by_key(|shard| shard.shard);
        shards
    }

    /// Whether a shard is over, though the catalog has not heard of it: what is left of its left neighbour says so.
    fn was_taken_over(&self, shard: &ShardDescriptor) -> bool {
        let Some(left) = shard.merging_into.and_then(|left| self.directory.shard(left)) else { return false };
        let Some(intent) = left.merge else { return false };
        self.replicas(left.id).first().is_some_and(|(_, replica)| replica.epoch > intent.sealed)
    }

    /// The merges under way of which one of the two is recovered or gone, and which have not happened.
    pub(super) fn merges_given_up(&self, shards: &[PlannedShard]) -> Vec<(ShardId, ShardId)> {
        let lost = |id: ShardId| shards.iter().any(|shard| shard.shard == id && shard.fate != Fate::Healthy);
        let pairs = shards.iter().filter_map(|left| {
            let right = self.directory.shard(left.shard)?.merge?.right;
            let concerned = lost(left.shard) || lost(right);
            let open = shards.iter().any(|shard| shard.shard == right);
            (concerned && open).then_some((left.shard, right))
        });
        pairs.collect()
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
    pub(super) fn unknown_shards(&self) -> Result<Vec<ShardId>> {
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

    /// Refuses if the catalog and what is left of a shard do not agree on its range, nor will by what is under way.
    pub(super) fn rows_are_no_guesses(&self, shards: &[PlannedShard]) -> Result<()> {
        for shard in shards {
            let Some(row) = self.directory.shard(shard.shard) else { continue };
            let Some((at, first)) = self.replicas(shard.shard).first().copied() else { continue };
            if let Some(left) = first.sealed_for
                && row.merging_into != Some(left)
            {
                return Err(refused(format!(
                    "{} is sealed to be taken over by {left}, a merge that was begun after the last change of the catalog that \
                     survives: this cannot be recovered without a node that has more of the catalog",
                    shard.shard
                )));
            }
            if first.sealed_for.is_some() && shard.fate == Fate::Healthy && self.is_released(row) {
                return Err(refused(format!(
                    "{} has its majority, but is sealed to be taken over by a shard of which nothing is left: this cannot be \
                     recovered without a node that holds the other",
                    shard.shard
                )));
            }
            let alone = row.split.is_none() && row.merge.is_none() && row.merging_into.is_none();
            // Its row will be told of the epoch.
            let told = shard.fate == Fate::Recovered && alone && first.end == row.end && first.epoch >= row.epoch;
            let as_explained = |&(ref end, epoch): &(Vec<u8>, Epoch)| first.end == *end && first.epoch == epoch;
            if told || (first.start == row.start && self.ranges_explained(row).iter().any(as_explained)) {
                continue;
            }
            return Err(refused(if first.epoch < row.epoch {
                format!(
                    "what is left of {} on {} ends before a change of its range that the catalog knows (epoch {} there, {} here), \
                     so other shards have a part of what it holds: this cannot be recovered without one of its replicas that \
                     has more",
                    shard.shard, at.node, first.epoch.0, row.epoch.0
                )
            } else {
                format!(
                    "the range of {} has changed after the last change of the catalog that survives, so its row would have to \
                     be guessed: this cannot be recovered without a node that has more of the catalog",
                    shard.shard
                )
            }));
        }
        Ok(())
    }

    /// The ends of its range, each with its epoch, that a shard may have by its row and by what that says is under way.
    fn ranges_explained(&self, row: &ShardDescriptor) -> Vec<(Vec<u8>, Epoch)> {
        let next = |epoch: Epoch| Epoch(epoch.0 + 1);
        let mut explained = vec![(row.end.clone(), row.epoch)];
        if let Some(split) = &row.split {
            explained.push((split.at.clone(), next(row.epoch)));
        }
        if let Some(intent) = row.merge {
            explained.push((row.end.clone(), intent.sealed));
            if let Some(right) = self.directory.shard(intent.right) {
                explained.push((right.end.clone(), next(intent.sealed)));
            }
        }
        if let Some(intent) = row.merging_into.and_then(|left| self.directory.shard(left)).and_then(|left| left.merge) {
            explained.extend([intent.sealed, next(intent.sealed)].map(|epoch| (row.end.clone(), epoch)));
        }
        explained
    }

    /// Whether a shard was to be taken over by one of which nothing is left.
    fn is_released(&self, row: &ShardDescriptor) -> bool {
        row.merging_into.is_some_and(|left| !self.is_held(left))
    }

    /// What is to be done, with ids that nobody had before.
    pub(super) fn recovery(&self, shards: &[PlannedShard], lost: Vec<LostNode>, made_ms: u64, id: u64) -> RecoveryRow {
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
            let row = self.directory.shard(shard.shard);
            let released = row.is_some_and(|row| self.is_released(row));
            recovered.push(RecoveredShard { shard: shard.shard, heir, others, released });
        }
        recovered.extend(self.carried_over(shards));
        let gone = shards.iter().filter(|shard| shard.fate == Fate::Gone).map(|shard| shard.shard).collect();
        let shard = replicas().map(|replica| replica.shard.0 + 1).max().unwrap_or(0);
        let table = replicas().map(|replica| u64::from(replica.table.0) + 1).max().unwrap_or(0);
        let next_ids = NextIds {
            table: self.directory.next_id(Counter::Table).max(table),
            shard: self.directory.next_id(Counter::Shard).max(shard),
            replica: next_replica,
        };
        RecoveryRow { id, made_ms, lost, shards: recovered, gone, next_ids }
    }

    /// What an earlier recovery has left to be noted, if the surviving catalog has not heard of that: of shards that are healthy
    /// since.
    fn carried_over(&self, shards: &[PlannedShard]) -> Vec<RecoveredShard> {
        let noted = self.directory.recovery().map_or(0, |row| row.made_ms);
        let records = self.survivors.iter().filter_map(|survivor| survivor.recovery.as_ref());
        let newest = records.filter(|row| row.made_ms > noted).max_by_key(|row| row.made_ms);
        let healthy = |id: ShardId| shards.iter().any(|shard| shard.shard == id && shard.fate == Fate::Healthy);
        let carried = newest.into_iter().flat_map(|row| &row.shards).filter(|recovered| healthy(recovered.shard));
        carried.cloned().collect()
    }
}
