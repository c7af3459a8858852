//! Makes what was deleted leave the disk.
//!
//! Storage drops what the horizon allows whenever it compacts, but it compacts where much is *written*: a table that was
//! emptied and is idle since would keep its deletions, and what they hide, for good. So each node looks through its
//! shards, one after the other and slowly, each again only when its horizon has moved, and compacts those of which a
//! large part is garbage. A compaction rewrites a shard, so the node rests a multiple of the time it took.
//!
//! Left out: dropped tables and moved replicas, whose ranges are deleted as a whole.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::host::Node;
use super::metrics;
use crate::limits::Room;
use crate::runtime::{sleep, spawn_blocking};
use crate::shard::Shard;
use crate::storage::Survey;
use crate::types::{Error, Result, ShardId, Timestamp};

/// Between looks for a shard whose horizon has moved.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A busy shard is looked through again when its horizon has moved by this much.
const HORIZON_MOVED_MS: u64 = 10 * 60 * 1_000;
/// Versions looked at in one go, and the rest after each: some 20,000 versions a second, a few parts in a hundred of
/// one core.
const STEP_VERSIONS: usize = 2_000;
const STEP_REST: Duration = Duration::from_millis(100);
/// A shard is compacted when this part of it is garbage, one in four …
const GARBAGE_PART: u64 = 4;
/// … and at least this much.
const GARBAGE_BYTES_MIN: u64 = 1 << 20;
/// Rest after a compaction, in multiples of the time it took.
const REST_FACTOR: u32 = 9;

/// Looks after the node's shards until it stops.
pub async fn run(node: Arc<Node>) {
    let mut stopping = node.stopping();
    let sweep = async {
        // The horizon up to which each shard was looked through.
        let mut seen: HashMap<ShardId, Timestamp> = HashMap::new();
        loop {
            sleep(LOOK_EVERY).await;
            let replicas = node.replicas().all();
            seen.retain(|id, _| replicas.iter().any(|shard| shard.id() == *id));
            for shard in replicas {
                if !is_due(&shard, seen.get(&shard.id()).copied()) {
                    continue;
                }
                let horizon = shard.state().horizon;
                match look_through(&node, &shard, horizon).await {
                    Ok(()) => {
                        seen.insert(shard.id(), horizon);
                    }
                    Err(error) => tracing::warn!(shard = %shard.id(), %error, "cannot look for garbage"),
                }
            }
        }
    };
    tokio::select! {
        () = sweep => {}
        _ = stopping.wait_for(|&stopping| stopping) => {}
    }
}

/// Whether there may be garbage that was not there when the shard was last looked through.
fn is_due(shard: &Shard, seen: Option<Timestamp>) -> bool {
    let state = shard.state();
    let Some(seen) = seen else { return state.horizon > Timestamp::ZERO };
    // Nothing more is to come when the horizon has reached the last write.
    let at_rest = state.horizon >= state.last_timestamp;
    state.horizon > seen && (at_rest || state.horizon.millis() >= seen.millis() + HORIZON_MOVED_MS)
}

async fn look_through(node: &Arc<Node>, shard: &Shard, horizon: Timestamp) -> Result<()> {
    let state = shard.state();
    let (mut bytes, mut garbage) = (0, 0);
    let mut from = Some(state.start.clone());
    while let Some(start) = from {
        let (engine, end) = (node.engine().clone(), state.end.clone());
        let step = move || Survey::of(&*engine, &start, &end, horizon, STEP_VERSIONS);
        let part = spawn_blocking(step).await.map_err(|_| Error::internal("looking for garbage was cancelled"))??;
        bytes += part.bytes;
        garbage += part.garbage_bytes;
        from = part.next;
        sleep(STEP_REST).await;
    }
    // Compaction writes before it removes; a disk without room cannot take that.
    if garbage < GARBAGE_BYTES_MIN.max(bytes / GARBAGE_PART) || node.room() == Room::None {
        return Ok(());
    }
    tracing::info!(shard = %shard.id(), bytes, garbage, "compacting");
    let began = node.clock().now();
    let (engine, start, end) = (node.engine().clone(), state.start.clone(), state.end.clone());
    spawn_blocking(move || engine.compact(&start, &end))
        .await
        .map_err(|_| Error::internal("a compaction was cancelled"))??;
    ::metrics::counter!(metrics::SHARDS_COMPACTED).increment(1);
    sleep((node.clock().now() - began) * REST_FACTOR).await;
    Ok(())
}
