//! Compares views with their sources unasked, all the time, slowly, and sets right what differs.
//!
//! Promise: a row of a view that is not what its sources say, for whatever reason, is found, told (an error in the log, a
//! counter) and mended within [`ScrubOptions::every`] plus the time that a comparison takes, without anybody asking. A node looks
//! after the shards of views that it leads, one view at a time and all its shards together, so that the sources are read once
//! for all of them. It takes at most [`ScrubOptions::percent`] of one thread's time, and less on a busy machine.
//!
//! A comparison must be done before the sources forget where the view stood. One that was too slow for that is made again
//! with twice the share, up to [`SHARE_MAX`].
//!
//! Left out: views that are paused or being built. What a comparison could not set right because it has changed since is looked
//! at again soon ([`AGAIN_AFTER`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::host::Node;
use super::super::metrics;
use super::share::Share;
use super::verify::ViewCheck;
use crate::catalog::TableEntry;
use crate::runtime::{Instant, random_u64, sleep};
use crate::shard::Shard;
use crate::types::{Reason, Result, ShardId, TableId};

/// Between looks at what is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a comparison that failed or left something, before the next one.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// In percent: more is never taken.
const SHARE_MAX: u32 = 50;

/// How views are compared unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubOptions {
    /// The share of one thread's time in percent; 0: not at all.
    pub percent: u32,
    /// So long after a comparison the next one begins.
    pub every: Duration,
}

impl Default for ScrubOptions {
    fn default() -> ScrubOptions {
        ScrubOptions { percent: 5, every: Duration::from_secs(600) }
    }
}

/// Compares until the node stops.
pub async fn run(node: Arc<Node>) {
    let options = node.options().scrub;
    if options.percent == 0 {
        return;
    }
    let mut stopping = node.stopping();
    tokio::select! {
        () = go_round(&node, options) => {}
        _ = stopping.wait_for(|&stopping| stopping) => {}
    }
}

async fn go_round(node: &Arc<Node>, options: ScrubOptions) {
    let mut due: HashMap<ShardId, Instant> = HashMap::new();
    let mut shares: HashMap<TableId, u32> = HashMap::new();
    loop {
        sleep(LOOK_EVERY).await;
        let directory = node.directory();
        let views: Vec<(Arc<TableEntry>, Vec<Arc<Shard>>)> =
            directory.tables().filter_map(|entry| led(node, entry)).collect();
        due.retain(|id, _| views.iter().any(|(_, shards)| shards.iter().any(|shard| shard.id() == *id)));
        shares.retain(|id, _| views.iter().any(|(entry, _)| entry.descriptor.id == *id));
        for (entry, shards) in views {
            let now = node.clock().now();
            let mut first = |shard: &Arc<Shard>| *due.entry(shard.id()).or_insert_with(|| now + part_of(options.every));
            // As soon as one is due all are looked at: they share one reading of the sources.
            if !shards.iter().map(&mut first).any(|due| due <= now) {
                continue;
            }
            let percent = shares.get(&entry.descriptor.id).copied().unwrap_or(options.percent);
            let share = Share::unasked(node.clock(), percent);
            let compared = node.verify_shards(&entry, &shards, true, share).await;
            let now = node.clock().now();
            let next = now + after(&entry, &compared, options.every);
            if matches!(&compared, Err(error) if error.reason == Reason::HistoryTrimmed) {
                shares.insert(entry.descriptor.id, (percent * 2).clamp(1, SHARE_MAX.max(options.percent)));
            }
            due.extend(shards.iter().map(|shard| (shard.id(), next)));
        }
    }
}

/// The shards of a view that are looked after here, if there are any.
fn led(node: &Node, entry: &Arc<TableEntry>) -> Option<(Arc<TableEntry>, Vec<Arc<Shard>>)> {
    entry.descriptor.view.as_ref().filter(|view| view.ready && !view.paused)?;
    let replicas = entry.shards.iter().filter_map(|shard| node.replicas().get(shard.id));
    let shards: Vec<Arc<Shard>> = replicas.filter(|replica| replica.is_leader()).collect();
    (!shards.is_empty()).then(|| (entry.clone(), shards))
}

/// Until the next comparison.
fn after(entry: &TableEntry, compared: &Result<ViewCheck>, every: Duration) -> Duration {
    let view = &entry.descriptor.name;
    match compared {
        Ok(check) => {
            ::metrics::counter!(metrics::VIEW_SCRUBS).increment(1);
            if check.repaired < check.differing() { AGAIN_AFTER.min(every) } else { every }
        }
        Err(error) => {
            // Shards split, move and change their leaders; what is there then is looked at then.
            tracing::debug!(view, %error, "a view was not compared");
            AGAIN_AFTER.min(every)
        }
    }
}

/// A random part of a time, so that not all nodes compare all views at once.
fn part_of(time: Duration) -> Duration {
    time * u32::try_from(random_u64() % 1_000).unwrap_or(0) / 1_000
}
