//! Shards that are split by hand: the place is chosen, the intent written, and waited for.

use std::sync::Arc;

use bytes::Bytes;

use super::{Control, SPLIT, VERB_TIMEOUT};
use crate::catalog::{Directory, TableEntry, change};
use crate::node::{ShardAsk, SplitNews, ask};
use crate::runtime::timeout_at;
use crate::types::{Epoch, Error, Reason, Result, ShardDescriptor, ShardId, SplitIntent, Timestamp};
use crate::wire::admin::{ShardDetails, SplitPoint, SplitReport};

/// A wish to split a shard, between nodes.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct SplitAsk {
    shard: ShardId,
    /// An encoded key.
    at: Vec<u8>,
}

/// What is wanted now, between nodes.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Begun {
    intent: SplitIntent,
    revision: Timestamp,
}

impl Control {
    /// Splits a shard and returns when both parts stand in the catalog, as this node knows it. A split that was made
    /// already, at this very place, is answered as if it had just been made.
    ///
    /// Errors: `UNKNOWN_SHARD`; `INVALID_REQUEST` if it cannot be cut there; `CONFLICT` if it is being split elsewhere;
    /// `RESULT_UNDETERMINED` when the time is up: the split goes on.
    pub async fn split_shard(&self, shard: ShardId, at: SplitPoint, dry_run: bool) -> Result<SplitReport> {
        let deadline = self.node.clock().now() + VERB_TIMEOUT;
        // Else what was split here and merged since would be taken for still split.
        self.hear_newest().await?;
        let descriptor = self.descriptor(shard)?;
        let directory = self.node.directory();
        let entry = directory
            .table(descriptor.table)
            .ok_or_else(|| Error::new(Reason::UnknownTable, format!("the table of {shard} is being dropped")))?;
        let at = self.place_of(entry, &descriptor, at).await?;
        if let Some(made) = self.parts(&directory, shard, &at) {
            return Ok(made);
        }
        if dry_run {
            // Refusals are those of the real thing.
            change::begin_split(&directory, shard, &at, false)?;
            let epoch = Epoch(descriptor.epoch.0 + 1);
            let left = ShardDescriptor { end: at.to_vec(), epoch, ..ShardDescriptor::clone(&descriptor) };
            let id = ShardId(0);
            let right = ShardDescriptor { id, start: at.to_vec(), epoch, ..ShardDescriptor::clone(&descriptor) };
            return Ok(SplitReport { left: self.details_of(&left), right: ShardDetails::of(&right) });
        }
        let wish = SplitAsk { shard, at: at.to_vec() };
        let begun: Begun = self.node.ask_system_leader_for(SPLIT, &wish, VERB_TIMEOUT).await?;
        let mut changes = self.node.directory_changes();
        loop {
            changes.borrow_and_update();
            let directory = self.node.directory();
            if directory.revision() >= begun.revision
                && let Some(made) = self.parts(&directory, shard, &at)
            {
                return Ok(made);
            }
            if timeout_at(deadline, changes.changed()).await.is_none_or(|changed| changed.is_err()) {
                return Err(Error::new(
                    Reason::ResultUndetermined,
                    format!(
                        "{shard} is not split yet; it will be, as {}, when its members allow: `trivet shard list` shows it",
                        begun.intent.child
                    ),
                ));
            }
        }
    }

    /// The encoded key of the place.
    async fn place_of(&self, entry: &Arc<TableEntry>, shard: &ShardDescriptor, at: SplitPoint) -> Result<Bytes> {
        match at {
            SplitPoint::Key(key) => Ok(entry.layout.cut_before(&key)),
            SplitPoint::Slot(slot) => entry.layout.cut_before_slot(slot),
            SplitPoint::Middle => {
                let leader = self.leader_of(shard).await?;
                let question = ShardAsk { shard: shard.id, argument: 0 };
                let middle: Option<Vec<u8>> = self.node.ask_for(leader, ask::MIDDLE, &question, VERB_TIMEOUT).await?;
                let middle = middle.ok_or_else(|| {
                    Error::invalid(format!("{} holds nothing, so it has no middle: say where to split it", shard.id))
                })?;
                entry.layout.cut_near(&shard.start, &shard.end, &middle)
            }
        }
    }

    /// Both parts, if the shard ends at `at` and one that was split off some shard begins there.
    fn parts(&self, directory: &Directory, shard: ShardId, at: &Bytes) -> Option<SplitReport> {
        let left = directory.shard(shard).filter(|shard| shard.end == at[..])?;
        let right = directory.shards_of(left.table).find(|shard| shard.start == at[..] && shard.founders.is_empty())?;
        Some(SplitReport { left: self.details_of(left), right: self.details_of(right) })
    }

    /// Writes the intent, on shard 0's leader.
    pub(super) async fn split_here(&self, wish: SplitAsk) -> Result<Begun> {
        let at = Bytes::from(wish.at);
        let begun = self
            .change(|directory| {
                let (intent, write) = change::begin_split(directory, wish.shard, &at, false)?;
                Ok(write.map(|write| (intent, write)))
            })
            .await?;
        let directory = self.node.directory();
        let intent = match begun {
            Some(intent) => {
                tracing::info!(shard = %wish.shard, child = %intent.child, "a shard is to be split");
                intent
            }
            None => {
                let wanted = directory.shard(wish.shard).and_then(|shard| shard.split.clone());
                wanted
                    .ok_or_else(|| Error::new(Reason::Conflict, format!("{} was just split; look again", wish.shard)))?
            }
        };
        Ok(Begun { intent, revision: directory.revision() })
    }

    /// Takes note that a shard was split, on shard 0's leader.
    pub(super) async fn note_split(&self, news: SplitNews) -> Result<()> {
        let noted = self
            .change(|directory| {
                let write = change::finish_split(directory, news.shard, news.epoch)?;
                Ok(write.map(|write| ((), write)))
            })
            .await?;
        if noted.is_some() {
            tracing::info!(shard = %news.shard, "a shard was split");
        }
        Ok(())
    }
}
