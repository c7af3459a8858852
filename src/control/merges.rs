//! Neighbouring shards that are merged: the wish is checked and the intent written; the nodes do the rest.

use super::{Control, MERGE, VERB_TIMEOUT};
use crate::catalog::{Directory, change};
use crate::node::MergeNews;
use crate::types::{Error, NodeId, Reason, Result, ShardId, Timestamp, Write};
use crate::wire::admin::ShardDetails;

/// A wish to merge two shards, between nodes.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct MergeAsk {
    pub(super) left: ShardId,
    pub(super) right: ShardId,
}

impl Control {
    /// Wants a shard to take over its right neighbour, and returns when that stands in the catalog, as this node knows
    /// it: the two go on serving until the right one's members are beside the left one's, and are one shortly afterwards;
    /// unless a member fails just then, which leaves them as they were and the merge to be wanted again. What is wanted
    /// already is answered as if it had just been wanted. With `dry_run` it returns what the left shard would become.
    ///
    /// Errors: `UNKNOWN_SHARD`; `INVALID_REQUEST` if the two are not neighbours in this order; `CONFLICT` if one of them is
    /// being split, or merged with another; `NO_QUORUM` if nobody leads one of them.
    pub async fn merge_shards(&self, left: ShardId, right: ShardId, dry_run: bool) -> Result<ShardDetails> {
        let wish = MergeAsk { left, right };
        // Who is whose neighbour may have changed a moment ago.
        self.hear_newest().await?;
        let (one, other) = (self.descriptor(left)?, self.descriptor(right)?);
        // A group that was never led is not to be founded by others than those it was meant for.
        self.leader_of(&one).await?;
        self.leader_of(&other).await?;
        if dry_run {
            // Refusals are those of the real thing.
            wanted(&self.node.directory(), wish)?;
            let mut details = self.details_of(&one);
            details.end = other.end.clone().into();
            return Ok(details);
        }
        let revision: Timestamp = self.node.ask_system_leader_for(MERGE, &wish, VERB_TIMEOUT).await?;
        self.hear_of(revision).await?;
        Ok(self.details_of(&*self.descriptor(left)?))
    }

    /// Writes the intent, on shard 0's leader. Returns a revision of the catalog in which it stands.
    pub(super) async fn merge_here(&self, wish: MergeAsk) -> Result<Timestamp> {
        let directory = self.node.directory();
        if wanted(&directory, wish)?.is_some() {
            for node in newcomers(&directory, wish) {
                self.is_free_for(wish.right, node).await?;
            }
        }
        let begun = self.change(|directory| Ok(wanted(directory, wish)?.map(|write| ((), write)))).await?;
        if begun.is_some() {
            tracing::info!(shard = %wish.left, right = %wish.right, "two shards are to be merged");
        }
        Ok(self.node.directory().revision())
    }

    /// Takes note that two shards were merged, or will not be, on shard 0's leader.
    pub(super) async fn note_merge(&self, news: MergeNews) -> Result<()> {
        let noted = self
            .change(|directory| {
                let note = if news.merged { change::finish_merge } else { change::abandon_merge };
                let write = note(directory, news.shard, news.epoch)?;
                Ok(write.map(|write| ((), write)))
            })
            .await?;
        if noted.is_some() {
            tracing::info!(shard = %news.shard, merged = news.merged, "a merge has ended");
        }
        Ok(())
    }
}

/// What to write so that the merge is wanted; nothing if it is.
fn wanted(directory: &Directory, wish: MergeAsk) -> Result<Option<Write>> {
    let known = |shard: ShardId| {
        directory.shard(shard).ok_or_else(|| Error::new(Reason::UnknownShard, format!("there is no shard {shard}")))
    };
    let (left, right) = (known(wish.left)?, known(wish.right)?);
    if left.table != right.table || left.end != right.start {
        return Err(Error::invalid(format!(
            "{} does not begin where {} ends: only neighbours are merged, the left one named first; `trivet shard list` \
             shows their order",
            right.id, left.id
        )));
    }
    change::begin_merge(directory, left.id).map(|(_, write)| write)
}

/// The nodes on which the right shard gets a replica that it has not.
fn newcomers(directory: &Directory, wish: MergeAsk) -> Vec<NodeId> {
    let (Some(left), Some(right)) = (directory.shard(wish.left), directory.shard(wish.right)) else {
        return Vec::new();
    };
    let nodes = left.replicas.iter().map(|replica| replica.node);
    nodes.filter(|&node| right.replica_on(node).is_none()).collect()
}
