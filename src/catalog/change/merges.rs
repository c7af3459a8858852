//! Neighbouring shards that become one.
//!
//! Two writes frame a merge, as they frame a split. The first ([`begin_merge`]) notes the intent in both rows, and wants
//! the right shard's members beside those of the left; from then on the leaders of the two bring it about. The second
//! ([`finish_merge`]) takes note that it has happened: the left shard's row with the range of both, and the right one's
//! gone; or that it will not ([`abandon_merge`]): both rows with the epochs that they have since. In between neither of the
//! two is split, merged otherwise or moved by itself; when a replica of the left one has to move, that of the right goes
//! along (`replicas::move_replica`).

use super::{Draft, Write};
use crate::catalog::directory::Directory;
use crate::catalog::rows::{Counter, RowKey};
use crate::types::{
    Epoch, Error, MergeIntent, Reason, ReplicaDescriptor, ReplicaId, Result, ShardDescriptor, ShardId, TableId,
    TableState,
};

/// Wants a shard to take over its right neighbour. Returns the intent too; none to write if this is wanted already. Only
/// for shards whose groups have been at work: nobody founds them any more.
///
/// `UNKNOWN_SHARD`; `UNKNOWN_TABLE` if its table is being dropped; `INVALID_REQUEST` if it has no right neighbour;
/// `CONFLICT` if one of the two is being split, or merged with another.
pub fn begin_merge(directory: &Directory, shard: ShardId) -> Result<(MergeIntent, Option<Write>)> {
    let Some(left) = directory.shard(shard) else {
        return Err(Error::new(Reason::UnknownShard, format!("there is no shard {shard}")));
    };
    if left.table == TableId::SYSTEM {
        return Err(Error::invalid("the system table always has one shard"));
    }
    if directory.descriptor(left.table).is_none_or(|table| table.state != TableState::Ready) {
        return Err(Error::new(Reason::UnknownTable, format!("the table of {shard} is being dropped")));
    }
    if let Some(intent) = left.merge {
        return Ok((intent, None));
    }
    let Some(right) = directory.shards_of(left.table).find(|other| other.start == left.end) else {
        return Err(Error::invalid(format!(
            "{shard} is the last shard of its table, so it has no right neighbour to take over; `trivet shard list` \
             shows their order"
        )));
    };
    for one in [left, right] {
        if one.split.is_some() || one.merge.is_some() || one.merging_into.is_some() {
            let why = format!("{} is being split or merged already; try again when that is done", one.id);
            return Err(Error::new(Reason::Conflict, why));
        }
    }
    let mut draft = Draft::new(directory);
    let intent = MergeIntent { right: right.id, sealed: Epoch(left.epoch.max(right.epoch).0 + 1) };
    let replicas = left.replicas.iter().map(|member| {
        let there = right.replica_on(member.node).filter(|there| there.incarnation == member.incarnation);
        let id = there.map_or_else(|| ReplicaId(draft.take(Counter::Replica)), |there| there.id);
        ReplicaDescriptor { id, ..*member }
    });
    let replicas = replicas.collect();
    let right =
        ShardDescriptor { replicas, founded: true, merging_into: Some(left.id), ..ShardDescriptor::clone(right) };
    let left = ShardDescriptor { founded: true, merge: Some(intent), ..ShardDescriptor::clone(left) };
    draft.put(&RowKey::Shard(left.table, left.id), &left);
    draft.put(&RowKey::Shard(right.table, right.id), &right);
    Ok((intent, Some(draft.finish()?)))
}

/// Notes that a shard of this epoch has taken over its right neighbour as intended. None if that is known.
pub fn finish_merge(directory: &Directory, shard: ShardId, epoch: Epoch) -> Result<Option<Write>> {
    let Some(left) = directory.shard(shard) else {
        return Err(Error::new(Reason::UnknownShard, format!("there is no shard {shard}")));
    };
    let Some(intent) = left.merge.filter(|_| left.epoch == epoch) else { return Ok(None) };
    let Some(right) = directory.shard(intent.right) else {
        return Err(Error::internal(format!("{shard} is to take over {}, which has no row", intent.right)));
    };
    let one = ShardDescriptor {
        end: right.end.clone(),
        epoch: Epoch(intent.sealed.0 + 1),
        merge: None,
        ..ShardDescriptor::clone(left)
    };
    let mut draft = Draft::new(directory);
    draft.put(&RowKey::Shard(one.table, one.id), &one);
    draft.delete(&RowKey::Shard(right.table, right.id));
    draft.finish().map(Some)
}

/// Notes that a shard of this epoch will not take over its right neighbour. None if that is known.
pub fn abandon_merge(directory: &Directory, shard: ShardId, epoch: Epoch) -> Result<Option<Write>> {
    let Some(left) = directory.shard(shard) else {
        return Err(Error::new(Reason::UnknownShard, format!("there is no shard {shard}")));
    };
    let Some(intent) = left.merge.filter(|_| left.epoch == epoch) else { return Ok(None) };
    let Some(right) = directory.shard(intent.right) else {
        return Err(Error::internal(format!("{shard} was to take over {}, which has no row", intent.right)));
    };
    let left = ShardDescriptor { epoch: intent.sealed, merge: None, ..ShardDescriptor::clone(left) };
    let epoch = Epoch(intent.sealed.0 + 1);
    let right = ShardDescriptor { epoch, merging_into: None, ..ShardDescriptor::clone(right) };
    let mut draft = Draft::new(directory);
    draft.put(&RowKey::Shard(left.table, left.id), &left);
    draft.put(&RowKey::Shard(right.table, right.id), &right);
    draft.finish().map(Some)
}
