//! Turns the applied rows of shard 0 into this node's picture of the catalog.
//!
//! Whenever the local replica of shard 0 has applied something new (entries or a snapshot), the rows are read again
//! and the picture is replaced as a whole. The catalog is small and changes seldom; reading all of it keeps the
//! picture a plain function of the rows.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::host::Node;
use crate::catalog::Directory;
use crate::keyspace::Layout;
use crate::runtime::{sleep, spawn_blocking};
use crate::shard::Shard;
use crate::storage::mvcc;
use crate::types::{Error, Result, ShardId, Timestamp};

/// Rows read at once.
const PAGE_ROWS: usize = 1_024;
/// Bytes read at once.
const PAGE_BYTES: usize = 4 << 20;
/// After a failure to read the rows, before trying again.
const RETRY_WAIT: Duration = Duration::from_millis(200);

/// Follows shard 0 until the node stops; if its replica here is exchanged for another, that one.
pub async fn run(node: Arc<Node>) {
    loop {
        let system = tokio::select! {
            system = node.replicas().wait_for(ShardId::SYSTEM) => system,
            () = stopped(&node) => return,
        };
        tokio::select! {
            () = follow(&node, &system) => {}
            () = stopped(&node) => return,
        }
        // It has ended; its place may be empty for a moment.
        sleep(RETRY_WAIT).await;
    }
}

/// Follows one replica of shard 0 until it ends.
async fn follow(node: &Arc<Node>, system: &Shard) {
    let mut applied = system.applied();
    loop {
        let seen = *applied.borrow_and_update();
        match read(node, seen).await {
            // What a successor has not been sent yet is no news.
            Ok(directory) if directory.revision() < node.directory().revision() => {}
            Ok(directory) => {
                node.set_directory(directory);
                node.nudge();
            }
            Err(error) => {
                tracing::error!(%error, "cannot read the catalog");
                sleep(RETRY_WAIT).await;
                continue;
            }
        }
        if applied.changed().await.is_err() {
            return;
        }
    }
}

async fn stopped(node: &Node) {
    let mut stopped = node.stopped();
    let _ = stopped.wait_for(|&stopped| stopped).await;
}

/// Reads all rows as of `revision`.
async fn read(node: &Arc<Node>, revision: Timestamp) -> Result<Directory> {
    let engine = node.engine().clone();
    let now_ms = node.clock().wall_ms();
    let rows = spawn_blocking(move || {
        let layout = Layout::system();
        let (mut start, end) = layout.table_range();
        let mut rows: Vec<(Bytes, Timestamp, Bytes)> = Vec::new();
        loop {
            let limits = mvcc::ScanLimits { rows_max: PAGE_ROWS, bytes_max: PAGE_BYTES, count_only: false };
            let page = mvcc::scan(&*engine, &start, &end, revision, now_ms, false, limits)?;
            for (encoded, version) in page.rows {
                let Some(value) = version.value else { continue };
                rows.push((layout.decode(&encoded)?, version.timestamp, value));
            }
            match page.next {
                Some(next) => start = next,
                None => return Ok::<_, Error>(rows),
            }
        }
    })
    .await
    .map_err(|_| Error::internal("reading the catalog was cancelled"))??;
    Directory::from_rows(revision, rows)
}
