//! What a recovery from a lost quorum leaves to be noted in the catalog.
//!
//! First that it happened ([`note_recovery`]): whom it gave up, and that no id is given out again which the lost part of the
//! catalog may have given out. Then, shard by shard, that a group goes on from one replica ([`adopt_survivor`]), with new
//! replicas wanted beside it in place of all others. Those on nodes that are lost are moved by the planner like any.
//!
//! Nothing is wanted of a shard any more that was under way when it was recovered. A merge is abandoned by the leader of the
//! left shard (node::merges), and only then the rows name the survivors; only what is to be taken over by a shard of which
//! nothing is left is let go here. A split that the log does not have will not come: its row forgets it.

use std::sync::Arc;

use super::nodes::SYSTEM_VOTERS_MAX;
use super::{Draft, Write};
use crate::catalog::directory::Directory;
use crate::catalog::rows::{Counter, RecoveredReplica, RecoveredShard, RecoveryRow, RowKey};
use crate::types::{Epoch, ReplicaDescriptor, ReplicaId, ReplicaRole, Result, ShardDescriptor, ShardId};

/// Notes a recovery. None if it, or a later one, is noted already.
pub fn note_recovery(directory: &Directory, recovery: &RecoveryRow) -> Result<Option<Write>> {
    let before = directory.recovery();
    if before.is_some_and(|before| before.made_ms >= recovery.made_ms) {
        return Ok(None);
    }
    let row = before.map_or_else(|| recovery.clone(), |before| recovery.after(before));
    let mut draft = Draft::new(directory);
    let least = row.next_ids;
    for (counter, least) in
        [(Counter::Table, least.table), (Counter::Shard, least.shard), (Counter::Replica, least.replica)]
    {
        if directory.next_id(counter) < least {
            draft.counters.insert(counter, least);
        }
    }
    let is_gone = |shard: &&Arc<ShardDescriptor>| row.gone.contains(&shard.id);
    for left in directory.shards().filter(is_gone) {
        let Some(intent) = left.merge else { continue };
        let alone = ShardDescriptor { merge: None, ..ShardDescriptor::clone(left) };
        draft.put(&RowKey::Shard(alone.table, alone.id), &alone);
        if let Some(right) = directory.shard(intent.right) {
            let alone = ShardDescriptor { merging_into: None, ..ShardDescriptor::clone(right) };
            draft.put(&RowKey::Shard(alone.table, alone.id), &alone);
        }
    }
    draft.put(&RowKey::Recovery, &row);
    draft.finish().map(Some)
}

/// Has the row of a recovered shard say so, once its heir leads and has applied all it had; then its `epoch` was this. None if
/// it does, or if a merge must be ended or a split noted first.
pub fn adopt_survivor(directory: &Directory, shard: ShardId, epoch: Epoch) -> Result<Option<Write>> {
    let Some(row) = directory.recovery() else { return Ok(None) };
    let Some(recovered) = row.of(shard) else { return Ok(None) };
    let mut draft = Draft::new(directory);
    if let Some(known) = directory.shard(shard) {
        let is_split = known.split.is_some() && epoch > known.epoch;
        if known.merge.is_some() || known.merging_into.is_some() || is_split {
            return Ok(None);
        }
        // It may be an older one than what ended a merge since.
        let epoch = epoch.max(known.epoch);
        let mut wanted = ShardDescriptor { epoch, founded: true, split: None, ..ShardDescriptor::clone(known) };
        if shard == ShardId::SYSTEM {
            wanted.replicas = system_replicas(recovered);
        } else {
            around_heir(&mut draft, &mut wanted.replicas, recovered.heir);
        }
        draft.put(&RowKey::Shard(wanted.table, wanted.id), &wanted);
    } else if !directory.was_dropped(shard) {
        // The child of a split whose row is still to come.
        return Ok(None);
    }
    let rest = row.shards.iter().filter(|known| known.shard != shard).cloned().collect();
    draft.put(&RowKey::Recovery, &RecoveryRow { shards: rest, ..row.clone() });
    draft.finish().map(Some)
}

/// The replicas of shard 0: one on each node that survived.
fn system_replicas(recovered: &RecoveredShard) -> Vec<ReplicaDescriptor> {
    let all = std::iter::once(&recovered.heir).chain(&recovered.others);
    let role = |number: usize| if number < SYSTEM_VOTERS_MAX { ReplicaRole::Voter } else { ReplicaRole::Learner };
    let descriptor = |(number, replica): (usize, &RecoveredReplica)| ReplicaDescriptor {
        id: replica.id,
        node: replica.node,
        incarnation: replica.incarnation,
        role: role(number),
    };
    all.enumerate().map(descriptor).collect()
}

/// Puts the heir, as a voter, in the place of the replica on its node, and new replicas of the same role in the others'.
fn around_heir(draft: &mut Draft<'_>, replicas: &mut Vec<ReplicaDescriptor>, heir: RecoveredReplica) {
    let directory = draft.directory;
    let lost = |replica: &ReplicaDescriptor| {
        directory.recovery().is_some_and(|row| row.has_lost(replica.node, replica.incarnation))
    };
    // A replica that had moved away and is the last one left comes in the place of a lost one.
    let place = (replicas.iter().position(|replica| replica.node == heir.node))
        .or_else(|| replicas.iter().position(|replica| lost(replica) && replica.role == ReplicaRole::Voter));
    let former = place.map(|at| replicas[at].role);
    for (at, replica) in replicas.iter_mut().enumerate() {
        if Some(at) != place {
            replica.id = ReplicaId(draft.take(Counter::Replica));
            replica.incarnation = directory.node(replica.node).map_or(replica.incarnation, |row| row.incarnation);
        }
    }
    let heir =
        ReplicaDescriptor { id: heir.id, node: heir.node, incarnation: heir.incarnation, role: ReplicaRole::Voter };
    match place {
        Some(at) => replicas[at] = heir,
        None => replicas.push(heir),
    }
    // A learner that became the heir leaves its part to a voter, so that there are as many of each as before.
    if former == Some(ReplicaRole::Learner)
        && let Some(voter) =
            replicas.iter_mut().find(|replica| replica.id != heir.id && replica.role == ReplicaRole::Voter)
    {
        voter.role = ReplicaRole::Learner;
    }
}
