//! What a node keeps of a recovery from a lost quorum that it took part in (see the module `recover`).
//!
//! The record outlives the recovery. It lets whoever leads shard 0 note it in the catalog; it refuses the data
//! directories that were given up, should one of them be started after all; and it has this node no longer wait for
//! them when it starts itself.

use crate::catalog::RecoveryRow;
use crate::storage::{Batch, Family, Lookup, Reader, Tier, log_keys};
use crate::types::{Error, Incarnation, NodeId, Reason, Result};

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
