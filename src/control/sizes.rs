//! Shards that are split unasked, because they hold or serve too much, and merged again when that is long over.
//! `placement::sizing` decides; here it is asked, with what the shards' leaders report.
//!
//! One split or merge is begun at a time, and none while balancing is paused. What somebody asked for, by creating a table
//! with so many shards or by a split, is not merged.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::Control;
use super::merges::MergeAsk;
use crate::catalog::{Directory, change};
use crate::node::{ShardAsk, ask};
use crate::placement::balance::{Picture, ShardPicture};
use crate::placement::sizing::{self, HotFor, Neighbours, Observed, Split};
use crate::runtime::Instant;
use crate::types::{NodeId, Result, ShardDescriptor, ShardId};

/// What is remembered of shards between looks.
#[derive(Default)]
pub(super) struct Memory {
    /// How long each has been hot.
    hot: HashMap<ShardId, HotFor>,
    /// Since when a shard and its right neighbour have been small and cold.
    small: HashMap<(ShardId, ShardId), Instant>,
    /// What is served too much and cannot be divided: a sentence each.
    hot_keys: BTreeMap<ShardId, String>,
}

impl Memory {
    /// What an operator should know, one sentence each.
    pub(super) fn notes(&self) -> impl Iterator<Item = &String> {
        self.hot_keys.values()
    }
}

impl Control {
    /// Looks at the sizes of all shards, once a look, and has one of them split if that is wanted.
    pub(super) async fn mind_sizes(&self, directory: &Directory, picture: &Picture) -> Result<()> {
        let sizes = self.node.options().sizes;
        let due: Vec<ShardPicture> = {
            let mut memory = self.balancing.lock();
            let memory = &mut memory.sizes;
            memory.hot.retain(|shard, _| directory.shard(*shard).is_some());
            memory.hot_keys.retain(|shard, _| directory.shard(*shard).is_some());
            let free = picture.shards.iter().filter(|shard| !shard.is_busy());
            free.filter(|shard| {
                let hot_for = memory.hot.entry(shard.shard).or_default();
                hot_for.observe(shard.load, &sizes);
                if shard.load <= sizes.split_load {
                    memory.hot_keys.remove(&shard.shard);
                }
                shard.bytes > sizes.split_bytes || hot_for.is_due(&sizes)
            })
            .cloned()
            .collect()
        };
        for shard in due {
            let (Some(leader), Some(descriptor)) = (shard.leader, directory.shard(shard.shard)) else { continue };
            if self.mind_one(directory, &shard, leader, descriptor).await? {
                return Ok(());
            }
        }
        self.mind_neighbours(directory, picture).await
    }

    /// Has two neighbours merged that have been small for long, if there are such.
    async fn mind_neighbours(&self, directory: &Directory, picture: &Picture) -> Result<()> {
        let sizes = self.node.options().sizes;
        let now = self.node.clock().now();
        let free = |shard: ShardId| {
            let known = picture.shards.iter().find(|known| known.shard == shard)?;
            (!known.is_busy() && known.leader.is_some()).then_some(known)
        };
        let due: Vec<(ShardId, ShardId)> = {
            let mut memory = self.balancing.lock();
            let mut small = HashMap::new();
            let mut due = Vec::new();
            for table in directory.tables() {
                for pair in table.shards.iter().as_slice().windows(2) {
                    let [left, right] = pair else { continue };
                    let (Some(one), Some(other)) = (free(left.id), free(right.id)) else { continue };
                    let since = memory.sizes.small.get(&(left.id, right.id)).copied().unwrap_or(now);
                    let neighbours = Neighbours {
                        bytes: one.bytes + other.bytes,
                        load: one.load + other.load,
                        small_for: now.saturating_duration_since(since),
                        unasked: right.unasked,
                    };
                    if neighbours.are_small(&sizes) {
                        small.insert((left.id, right.id), since);
                    }
                    if sizing::merge_wanted(&neighbours, &sizes) {
                        due.push((left.id, right.id));
                    }
                }
            }
            memory.sizes.small = small;
            due
        };
        for (left, right) in due {
            match self.merge_here(MergeAsk { left, right }).await {
                Ok(_) => return Ok(()),
                Err(error) => tracing::debug!(%left, %right, %error, "neighbours that are small cannot be merged now"),
            }
        }
        Ok(())
    }

    /// Has one shard split if that helps; true if it is being split now.
    async fn mind_one(
        &self,
        directory: &Directory,
        shard: &ShardPicture,
        leader: NodeId,
        descriptor: &Arc<ShardDescriptor>,
    ) -> Result<bool> {
        let Some(table) = directory.table(descriptor.table) else { return Ok(false) };
        let question = ShardAsk { shard: shard.shard, argument: 0 };
        let sample: Vec<(Vec<u8>, u64)> = self.node.ask(leader, ask::KEYS, &question).await?;
        let sample: Vec<(Bytes, u64)> = sample.into_iter().map(|(key, count)| (key.into(), count)).collect();
        let hot_for = self.balancing.lock().sizes.hot.get(&shard.shard).copied().unwrap_or_default();
        let observed =
            Observed { start: &descriptor.start, end: &descriptor.end, bytes: shard.bytes, hot_for, sample: &sample };
        let at = match sizing::split_wanted(&observed, &table.layout, &self.node.options().sizes) {
            Split::Keep => return Ok(false),
            Split::ForLoad { at, left_percent } => {
                tracing::info!(shard = %shard.shard, load = shard.load, left_percent, "a shard serves too much");
                at
            }
            Split::ForBytes => {
                let middle: Option<Vec<u8>> =
                    self.node.ask_for(leader, ask::MIDDLE, &question, super::VERB_TIMEOUT).await?;
                let Some(middle) = middle else { return Ok(false) };
                // One key, or what stays together, may hold all of it: then there is no place to cut.
                let Ok(at) = table.layout.cut_near(&descriptor.start, &descriptor.end, &middle) else {
                    return Ok(false);
                };
                tracing::info!(shard = %shard.shard, bytes = shard.bytes, "a shard holds too much");
                at
            }
            Split::OneHotKey { key, percent } => {
                let key = table.layout.decode(&key).map(|key| key.escape_ascii().to_string()).unwrap_or_default();
                let note = format!(
                    "shard {} serves {} requests a second, {percent} % of them for '{key}' and what stays together with \
                     it: no split helps; read it from replicas, or spread it over several keys",
                    shard.shard.0, shard.load
                );
                self.balancing.lock().sizes.hot_keys.insert(shard.shard, note);
                return Ok(false);
            }
        };
        let begun = self
            .change(|directory| {
                let (intent, write) = change::begin_split(directory, shard.shard, &at, true)?;
                Ok(write.map(|write| (intent, write)))
            })
            .await?;
        self.balancing.lock().sizes.hot.remove(&shard.shard);
        Ok(begun.is_some())
    }
}
