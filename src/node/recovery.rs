//! What a node keeps of a recovery from a lost quorum that it took part in (see the module `recover`).
//!
//! The record outlives the recovery. It lets whoever leads shard 0 note it in the catalog; it refuses the data
//! directories that were given up, should one of them be started after all; and it has this node no longer wait for
//! them when it starts itself.

use crate::catalog::RecoveryRow;
use crate::storage::{Batch, Family, Lookup, Reader, Tier, log_keys};
use crate::types::{Error, Incarnation, NodeId, Reason, ReplicaId, Result, ShardId};

/// The name under which the node keeps it.
const NAME: &str = "recovery";

/// The last recovery that a store took part in, if it did in any.
pub fn load(reader: &dyn Reader) -> Result<Option<RecoveryRow>> {
    match reader.get(Family::Raft, &log_keys::node(NAME), Tier::Disk)? {
        Lookup::Found(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            Error::new(Reason::Corruption, format!("the record of a recovery cannot be read: {error}"))
        }),
        Lookup::Missing | Lookup::NeedsDisk => Ok(None),
    }
}

/// Adds it to a batch.
pub fn put(recovery: &RecoveryRow, batch: &mut Batch) {
    batch.put(Family::Raft, log_keys::node(NAME), serde_json::to_vec(recovery).expect("a recovery is plain data"));
}

/// Whether a replica is all that is left of its group, and the catalog does not say so yet: its row still names members of
/// the group that was, none of which may become one again.
///
/// `mine` is what the node keeps, `noted` the catalog's row as far as the node has heard of it.
pub(super) fn awaits_adoption(
    mine: Option<&RecoveryRow>,
    noted: Option<&RecoveryRow>,
    shard: ShardId,
    replica: ReplicaId,
) -> bool {
    let is_heir = |row: &RecoveryRow| row.of(shard).is_some_and(|recovered| recovered.heir.id == replica);
    let Some(mine) = mine.filter(|mine| is_heir(mine)) else { return false };
    match noted {
        Some(noted) if noted.made_ms >= mine.made_ms => is_heir(noted),
        _ => true,
    }
}

/// Refuses a data directory that was given up.
pub(super) fn refuse_lost(reader: &dyn Reader, node: NodeId, incarnation: Incarnation) -> Result<()> {
    if load(reader)?.is_some_and(|recovery| recovery.has_lost(node, incarnation)) {
        return Err(Error::new(
            Reason::NodeIdTaken,
            format!(
                "the data directory of {node} was given up when the cluster was recovered from a lost quorum, and what \
                 it holds is not what the cluster holds now: start the node with an empty directory to have it join again"
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{NextIds, RecoveredReplica, RecoveredShard};

    #[test]
    fn an_heir_takes_nobody_in_until_the_catalog_names_it() {
        let (shard, heir) = (ShardId(7), ReplicaId(70));
        let replica = RecoveredReplica { id: heir, node: NodeId(1), incarnation: Incarnation(1) };
        let recovered = RecoveredShard { shard, heir: replica, others: Vec::new(), released: false };
        let row = |made_ms: u64, shards: &[RecoveredShard]| RecoveryRow {
            id: made_ms,
            made_ms,
            lost: Vec::new(),
            shards: shards.to_vec(),
            gone: Vec::new(),
            next_ids: NextIds::default(),
        };
        let mine = row(5, std::slice::from_ref(&recovered));
        let waits = |noted: Option<&RecoveryRow>| awaits_adoption(Some(&mine), noted, shard, heir);
        assert!(waits(None), "the catalog has heard of nothing");
        assert!(waits(Some(&row(4, &[]))), "nor of this one");
        assert!(waits(Some(&mine)), "its row is still to come");
        assert!(!waits(Some(&row(5, &[]))), "it is done");
        assert!(!waits(Some(&row(6, &[]))), "and another recovery has happened since");
        assert!(waits(Some(&row(6, &[recovered]))), "which had this left to do");
        assert!(!awaits_adoption(Some(&mine), None, shard, ReplicaId(71)), "another replica is a member like any");
        assert!(!awaits_adoption(None, Some(&mine), shard, heir));
    }
}
