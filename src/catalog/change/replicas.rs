//! Which replicas a shard is wanted to have.

use super::nodes::SYSTEM_VOTERS_MAX;
use std::collections::BTreeSet;

use super::{Draft, Write};
use crate::catalog::directory::Directory;
use crate::catalog::rows::{Counter, NodeRow, RowKey};
use crate::types::{
    Error, NodeId, Reason, ReplicaDescriptor, ReplicaId, ReplicaRole, Result, ShardDescriptor, ShardId, TableState,
};

/// Most shards mended by one write: each takes a condition and a row, and half of a change is left for other things.
pub const REPLACEMENTS_MAX: usize = super::CHANGE_MAX / 4;

/// Gives a known node its replica of shard 0, if it has none: a voter while there are fewer than
/// [`SYSTEM_VOTERS_MAX`](super::SYSTEM_VOTERS_MAX), else a learner. None if it has one.
pub fn add_system_replica(directory: &Directory, node: NodeId) -> Result<Option<Write>> {
    let row = known(directory, node)?;
    let mut draft = Draft::new(directory);
    system_replica_into(&mut draft, row)?;
    if draft.is_empty() {
        return Ok(None);
    }
    draft.rely_on(&RowKey::Node(node));
    draft.finish().map(Some)
}

/// Replaces replicas wanted on former data directories of a node by new ones on its present one, up to
/// [`REPLACEMENTS_MAX`] shards at a time, shard 0 first. None when nothing is left to mend.
pub fn mend_node(directory: &Directory, node: NodeId) -> Result<Option<Write>> {
    let row = known(directory, node)?;
    let mut draft = Draft::new(directory);
    mend_into(&mut draft, row);
    if draft.is_empty() {
        return Ok(None);
    }
    draft.rely_on(&RowKey::Node(node));
    draft.finish().map(Some)
}

/// Wants a new replica on `to` instead of `replica`, of the same role and in its place. Returns its id too. Only for a
/// shard whose group has been at work: nobody founds it any more.
///
/// `UNKNOWN_SHARD` and `UNKNOWN_NODE` if there are none such, `UNKNOWN_TABLE` if its table is being dropped,
/// `INVALID_REQUEST` if the shard is the system table's, has no such replica, or has one on `to` already.
pub fn move_replica(
    directory: &Directory,
    shard: ShardId,
    replica: ReplicaId,
    to: NodeId,
) -> Result<(ReplicaId, Write)> {
    let node = known(directory, to)?;
    let Some(known) = directory.shard(shard) else {
        return Err(Error::new(Reason::UnknownShard, format!("there is no shard {shard}")));
    };
    if shard == ShardId::SYSTEM {
        return Err(Error::invalid("the system table has a replica on every node, so none of them can move"));
    }
    if directory.descriptor(known.table).is_none_or(|table| table.state == TableState::Dropping) {
        return Err(Error::new(Reason::UnknownTable, format!("the table of {shard} is being dropped")));
    }
    if let Some(left) = known.merging_into {
        let why = format!("{shard} is being merged into {left} and goes where that goes; try again when it is done");
        return Err(Error::new(Reason::Conflict, why));
    }
    let mut wanted = ShardDescriptor::clone(known);
    wanted.founded = true;
    if let Some(there) = wanted.replica_on(to).filter(|there| there.id != replica) {
        return Err(Error::invalid(format!("{shard} has a replica on {to} already ({})", there.id)));
    }
    let Some(old) = wanted.replicas.iter_mut().find(|member| member.id == replica) else {
        return Err(Error::invalid(format!("{shard} has no replica {replica}")));
    };
    let mut draft = Draft::new(directory);
    let id = ReplicaId(draft.take(Counter::Replica));
    let from = old.node;
    *old = ReplicaDescriptor { id, node: to, incarnation: node.incarnation, role: old.role };
    // The child of a split is born beside its parent's members, whoever these are by then.
    if let Some(child) =
        wanted.split.as_mut().and_then(|split| split.replicas.iter_mut().find(|child| child.node == from))
    {
        let id = ReplicaId(draft.take(Counter::Replica));
        *child = ReplicaDescriptor { id, node: to, incarnation: node.incarnation, role: child.role };
    }
    // So does the neighbour that it is about to take over.
    if let Some(right) = wanted.merge.and_then(|intent| directory.shard(intent.right)) {
        let mut right = ShardDescriptor::clone(right);
        if let Some(beside) = right.replicas.iter_mut().find(|beside| beside.node == from) {
            let id = ReplicaId(draft.take(Counter::Replica));
            *beside = ReplicaDescriptor { id, node: to, incarnation: node.incarnation, role: beside.role };
        }
        draft.put(&RowKey::Shard(right.table, right.id), &right);
    }
    draft.rely_on(&RowKey::Node(to));
    draft.put(&RowKey::Shard(wanted.table, wanted.id), &wanted);
    Ok((id, draft.finish()?))
}

/// Adds the mending of up to [`REPLACEMENTS_MAX`] shards for a node whose row is, or becomes, `row`.
pub(super) fn mend_into(draft: &mut Draft<'_>, row: &NodeRow) {
    let directory = draft.directory;
    let is_stale = |replica: &ReplicaDescriptor| replica.node == row.id && replica.incarnation != row.incarnation;
    let going = |shard: &ShardDescriptor| {
        directory.descriptor(shard.table).is_some_and(|table| table.state == TableState::Dropping)
    };
    let torn = directory.shards().filter(|shard| shard.replicas.iter().any(is_stale) && !going(shard));
    for shard in torn.take(REPLACEMENTS_MAX) {
        let mut wanted = ShardDescriptor::clone(shard);
        for replica in wanted.replicas.iter_mut().filter(|replica| is_stale(replica)) {
            let id = ReplicaId(draft.take(Counter::Replica));
            *replica = ReplicaDescriptor { id, incarnation: row.incarnation, ..*replica };
        }
        draft.put(&RowKey::Shard(wanted.table, wanted.id), &wanted);
    }
}

/// Adds a replica of shard 0 for a node that has none of any age.
pub(super) fn system_replica_into(draft: &mut Draft<'_>, row: &NodeRow) -> Result<()> {
    let Some(system) = draft.directory.shard(ShardId::SYSTEM) else {
        return Err(Error::new(Reason::NotReady, "the catalog is not founded yet; try again in a moment"));
    };
    if system.replica_on(row.id).is_some() {
        return Ok(());
    }
    let voters = system.replicas.iter().filter(|replica| replica.role == ReplicaRole::Voter).count();
    let role = if voters < SYSTEM_VOTERS_MAX { ReplicaRole::Voter } else { ReplicaRole::Learner };
    let id = ReplicaId(draft.take(Counter::Replica));
    let mut wanted = ShardDescriptor::clone(system);
    wanted.replicas.push(ReplicaDescriptor { id, node: row.id, incarnation: row.incarnation, role });
    draft.put(&RowKey::Shard(wanted.table, wanted.id), &wanted);
    Ok(())
}

/// Takes a node's replica of shard 0 away, and gives its vote to one that has none.
pub(super) fn relieve_system_into(draft: &mut Draft<'_>, node: NodeId, hears: impl Fn(NodeId) -> bool) -> Result<()> {
    let Some(system) = draft.directory.shard(ShardId::SYSTEM) else {
        return Err(Error::new(Reason::NotReady, "the catalog is not founded yet; try again in a moment"));
    };
    let mut wanted = ShardDescriptor::clone(system);
    wanted.founded = true;
    wanted.replicas.retain(|replica| replica.node != node);
    give_votes(&mut wanted, &hears, 0);
    let alive = |replica: &ReplicaDescriptor| replica.role == ReplicaRole::Voter && hears(replica.node);
    if !wanted.replicas.iter().any(alive) {
        return Err(Error::invalid(format!("{node} is the last node that holds the catalog")));
    }
    draft.put(&RowKey::Shard(wanted.table, wanted.id), &wanted);
    Ok(())
}

/// Gives shard 0 voters in place of those on lost nodes, which keep their votes in case they come back. None if there
/// is nothing to give.
pub fn relieve_lost(
    directory: &Directory,
    lost: &BTreeSet<NodeId>,
    hears: impl Fn(NodeId) -> bool,
) -> Result<Option<Write>> {
    let Some(system) = directory.shard(ShardId::SYSTEM) else { return Ok(None) };
    let mut wanted = ShardDescriptor::clone(system);
    let votes = |replica: &&ReplicaDescriptor| replica.role == ReplicaRole::Voter && lost.contains(&replica.node);
    let without = wanted.replicas.iter().filter(votes).count();
    give_votes(&mut wanted, &hears, without);
    if wanted == **system {
        return Ok(None);
    }
    let mut draft = Draft::new(directory);
    draft.put(&RowKey::Shard(wanted.table, wanted.id), &wanted);
    draft.finish().map(Some)
}

/// Makes voters of living replicas of shard 0 that have no vote, until there are [`SYSTEM_VOTERS_MAX`] beside the `lost`.
fn give_votes(wanted: &mut ShardDescriptor, hears: &impl Fn(NodeId) -> bool, lost: usize) {
    let voters = wanted.replicas.iter().filter(|replica| replica.role == ReplicaRole::Voter).count();
    let missing = SYSTEM_VOTERS_MAX.saturating_sub(voters.saturating_sub(lost));
    let idle = wanted.replicas.iter_mut().filter(|replica| replica.role == ReplicaRole::Learner && hears(replica.node));
    idle.take(missing).for_each(|replica| replica.role = ReplicaRole::Voter);
}

pub(super) fn known(directory: &Directory, node: NodeId) -> Result<&NodeRow> {
    directory.node(node).ok_or_else(|| Error::new(Reason::UnknownNode, format!("there is no node {node}")))
}
