//! Shards that are divided, and what becomes of the parts.
//!
//! Two writes frame a split. The first ([`begin_split`]) gives out ids and notes the intent in the parent's row; from then
//! on the parent's leader brings it about in the shard's log. The second ([`finish_split`]) takes note that it has
//! happened: the parent's row with its new range, and the child's. Between the two the log has the last word.

use bytes::Bytes;

use super::{Draft, Write};
use crate::catalog::directory::Directory;
use crate::catalog::rows::{Counter, RowKey};
use crate::keyspace::Layout;
use crate::types::{
    Epoch, Error, Reason, ReplicaDescriptor, ReplicaId, Result, ShardDescriptor, ShardId, SplitIntent, TableId,
    TableState,
};

/// Wants a shard to be split at an encoded key; `unasked` if nobody asked for it. Returns the intent too; none to write if
/// this very split is wanted already.
///
/// `UNKNOWN_SHARD`; `INVALID_REQUEST` if it cannot be cut there, with what would do; `CONFLICT` if another split of it is
/// under way.
pub fn begin_split(
    directory: &Directory,
    shard: ShardId,
    at: &Bytes,
    unasked: bool,
) -> Result<(SplitIntent, Option<Write>)> {
    let parent = splittable(directory, shard, at)?;
    if parent.merge.is_some() || parent.merging_into.is_some() {
        return Err(Error::new(Reason::Conflict, format!("{shard} is being merged; try again when that is done")));
    }
    if let Some(intent) = &parent.split {
        if intent.at == at[..] {
            return Ok((intent.clone(), None));
        }
        return Err(Error::new(Reason::Conflict, format!("{shard} is being split already; try again when it is done")));
    }
    let mut draft = Draft::new(directory);
    let child = ShardId(draft.take(Counter::Shard));
    let beside = |replica: &ReplicaDescriptor, id: u64| ReplicaDescriptor { id: ReplicaId(id), ..*replica };
    let replicas = parent.replicas.iter().map(|replica| beside(replica, draft.take(Counter::Replica))).collect();
    let intent = SplitIntent { at: at.to_vec(), child, replicas, unasked };
    let wanted = ShardDescriptor { split: Some(intent.clone()), ..ShardDescriptor::clone(parent) };
    draft.put(&RowKey::Shard(wanted.table, wanted.id), &wanted);
    Ok((intent, Some(draft.finish()?)))
}

/// Notes that a shard of this epoch was split as intended. None if that is known.
pub fn finish_split(directory: &Directory, shard: ShardId, epoch: Epoch) -> Result<Option<Write>> {
    let Some(parent) = directory.shard(shard) else {
        return Err(Error::new(Reason::UnknownShard, format!("there is no shard {shard}")));
    };
    let Some(intent) = parent.split.as_ref().filter(|_| parent.epoch == epoch) else { return Ok(None) };
    let next = Epoch(epoch.0 + 1);
    let range = (intent.at.clone(), parent.end.clone());
    let child = ShardDescriptor {
        epoch: next,
        unasked: intent.unasked,
        ..ShardDescriptor::new(intent.child, parent.table, range, intent.replicas.clone())
    };
    let wanted = ShardDescriptor { end: intent.at.clone(), epoch: next, split: None, ..ShardDescriptor::clone(parent) };
    let mut draft = Draft::new(directory);
    draft.put(&RowKey::Shard(wanted.table, wanted.id), &wanted);
    draft.put(&RowKey::Shard(child.table, child.id), &child);
    draft.finish().map(Some)
}

/// The shard, if it may be split there.
fn splittable<'a>(directory: &'a Directory, shard: ShardId, at: &Bytes) -> Result<&'a ShardDescriptor> {
    let Some(parent) = directory.shard(shard) else {
        return Err(Error::new(Reason::UnknownShard, format!("there is no shard {shard}")));
    };
    if parent.table == TableId::SYSTEM {
        return Err(Error::invalid("the system table always has one shard"));
    }
    let table = directory.descriptor(parent.table).filter(|table| table.state == TableState::Ready);
    let Some(table) = table else {
        return Err(Error::new(Reason::UnknownTable, format!("the table of {shard} is being dropped")));
    };
    Layout::of(table).check_cut(&parent.start, &parent.end, at)?;
    Ok(parent)
}
