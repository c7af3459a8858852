//! For how long views have been behind, as a metric.
//!
//! A worker notes where the last of its strands stands; that is compared, a few times a second, with the newest version of its
//! shard of the source. From when it is found behind until it is found at the end again it lags, and of all workers of a view here
//! the longest lag counts. How old a copy of a view is, is another question, which reads have answered exactly (`freshness`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::host::Node;
use super::super::metrics;
use crate::runtime::Instant;
use crate::shard::Shard;
use crate::types::{Position, ShardId, TableId};

/// Where a worker stands: the version before which it has nothing left to do.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Notes where the strands of a worker stand; none while it has yet to ask.
    pub fn note<'a>(&self, positions: impl Iterator<Item = &'a Position>) {
        // One that is between two versions counts as being at the former.
        self.0.store(positions.map(|position| position.after.0).min().unwrap_or(0), Ordering::Relaxed);
    }
}

/// Since when workers have been behind, and which views have been told of.
#[derive(Default)]
pub(super) struct Lags {
    behind_since: HashMap<(TableId, ShardId), Instant>,
    told: HashMap<TableId, String>,
}

impl Lags {
    /// Sets the metric of every view that workers are at work for here.
    pub fn measure<'a>(&mut self, node: &Node, workers: impl Iterator<Item = (TableId, &'a Arc<Shard>, &'a Progress)>) {
        let now = node.clock().now();
        let directory = node.directory();
        let (mut lags, mut behind_since) = (HashMap::new(), HashMap::new());
        for (view, shard, progress) in workers {
            let lag = lags.entry(view).or_insert(0.0_f64);
            if progress.0.load(Ordering::Relaxed) < shard.state().last_timestamp.0 {
                let key = (view, shard.id());
                let since = self.behind_since.get(&key).copied().unwrap_or(now);
                behind_since.insert(key, since);
                *lag = lag.max((now - since).as_secs_f64());
            }
        }
        self.behind_since = behind_since;
        // What is looked after elsewhere now is not behind here.
        self.told.retain(|view, name| {
            let stays = lags.contains_key(view);
            if !stays {
                ::metrics::gauge!(metrics::VIEW_LAG, "view" => name.clone()).set(0.0);
            }
            stays
        });
        for (view, lag) in lags {
            let Some(entry) = directory.table(view) else { continue };
            let name = self.told.entry(view).or_insert_with(|| entry.descriptor.name.clone());
            ::metrics::gauge!(metrics::VIEW_LAG, "view" => name.clone()).set(lag);
        }
    }
}
