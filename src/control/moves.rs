//! Replicas that move from one node to another: the wish is checked and the intent written; the nodes do the rest.

use super::{Control, MOVE, VERB_TIMEOUT};
use crate::catalog::{Directory, change};
use crate::types::{Error, NodeId, Reason, Result, ShardId, Timestamp};
use crate::wire::admin::ShardDetails;

/// A wish to move a replica, between nodes.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct MoveAsk {
    shard: ShardId,
    from: NodeId,
    to: NodeId,
}

impl Control {
    /// Wants a shard's replica on `from` to be on `to`, and returns when that stands in the catalog, as this node knows
    /// it. What is so already is answered as if it had just been wanted.
    ///
    /// Errors: `UNKNOWN_SHARD`, `UNKNOWN_NODE`; `INVALID_REQUEST` if it has no replica on `from`; `NO_QUORUM` if nobody
    /// leads it, or the newcomer is away.
    pub async fn move_shard(&self, shard: ShardId, from: NodeId, to: NodeId, dry_run: bool) -> Result<ShardDetails> {
        let descriptor = self.descriptor(shard)?;
        // A group that nobody leads cannot change its members; and one that was never led is not to be founded by others
        // than those it was meant for.
        self.leader_of(&descriptor).await?;
        let wish = MoveAsk { shard, from, to };
        if dry_run {
            // Refusals are those of the real thing.
            let wanted = wanted(&self.node.directory(), wish)?;
            let mut details = self.details_of(&descriptor);
            if wanted.is_some() {
                details
                    .replicas
                    .iter_mut()
                    .filter(|replica| replica.node == from)
                    .for_each(|replica| replica.node = to);
            }
            return Ok(details);
        }
        let revision: Timestamp = self.node.ask_system_leader_for(MOVE, &wish, VERB_TIMEOUT).await?;
        self.hear_of(revision).await?;
        Ok(self.details_of(&*self.descriptor(shard)?))
    }

    /// Writes the intent, on shard 0's leader. Returns a revision of the catalog in which it stands.
    pub(super) async fn move_here(&self, wish: MoveAsk) -> Result<Timestamp> {
        if wanted(&self.node.directory(), wish)?.is_some() {
            self.is_free_for(wish.shard, wish.to).await?;
        }
        let moved = self.change(|directory| Ok(wanted(directory, wish)?.map(|write| ((), write)))).await?;
        if moved.is_some() {
            tracing::info!(shard = %wish.shard, from = %wish.from, to = %wish.to, "a replica is to move");
        }
        Ok(self.node.directory().revision())
    }

    /// Whether a node can take a replica of a shard: it answers, and none of that shard's is still there. One that has
    /// moved away may be needed until its successor has caught up, and two cannot live on one node.
    pub(super) async fn is_free_for(&self, shard: ShardId, node: NodeId) -> Result<()> {
        let report = self.report_of(node).await.ok_or_else(|| {
            Error::new(Reason::NoQuorum, format!("{node} does not answer, so nothing is moved to it"))
        })?;
        if report.shards.iter().any(|reported| reported.shard == shard) {
            let why = format!("{node} still has a replica of {shard} that is moving away; try again when it has gone");
            return Err(Error::new(Reason::Conflict, why));
        }
        Ok(())
    }
}

/// What to write so that the replica is wanted elsewhere; nothing if it is.
fn wanted(directory: &Directory, wish: MoveAsk) -> Result<Option<crate::types::Write>> {
    let shard = directory
        .shard(wish.shard)
        .ok_or_else(|| Error::new(Reason::UnknownShard, format!("there is no shard {}", wish.shard)))?;
    let Some(replica) = shard.replica_on(wish.from) else {
        if shard.replica_on(wish.to).is_some() {
            return Ok(None);
        }
        return Err(Error::invalid(format!(
            "{} has no replica on {}; `trivet shard describe {}` shows where it has some",
            wish.shard, wish.from, wish.shard.0
        )));
    };
    if wish.from == wish.to {
        return Ok(None);
    }
    change::move_replica(directory, wish.shard, replica.id, wish.to).map(|(_, write)| Some(write))
}
