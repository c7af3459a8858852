//! What the leader of shard 0 does unasked.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::{Control, STEP_TIMEOUT, recovery};
use crate::catalog::change;
use crate::runtime::{Instant, sleep, timeout};
use crate::types::{NodeId, Result, TableId};

/// Between looks.
const LOOK_WAIT: Duration = Duration::from_millis(100);

/// Between looks at new views.
const VIEWS_WAIT: Duration = Duration::from_millis(200);
/// After one that came to nothing: it may have been long work.
const VIEWS_FAILED_WAIT: Duration = Duration::from_secs(1);
/// So many views are looked after at once: each comparison holds rows in memory.
const VIEWS_AT_ONCE: usize = 4;

/// Looks after the catalog until the node hands over.
pub async fn run(control: Arc<Control>) {
    let stopping = control.node.stopping();
    while !*stopping.borrow() {
        sleep(LOOK_WAIT).await;
        if !control.node.leads_system() {
            continue;
        }
        if let Err(error) = look(&control).await {
            tracing::debug!(%error, "a duty could not be done yet");
        }
    }
}

/// Looks after views until the node hands over: a comparison may take long, so this is a task of its own. Several at once and in turns,
/// since of a view whose sources cannot be asked nothing comes at all, which is to hold up no other.
pub async fn look_after_views(control: Arc<Control>) {
    let mut stopping = control.node.stopping();
    let mut looking = FuturesUnordered::new();
    let mut busy: HashSet<TableId> = HashSet::new();
    let mut looked: HashMap<TableId, Instant> = HashMap::new();
    loop {
        tokio::select! {
            Some(view) = looking.next() => { busy.remove(&view); }
            () = sleep(VIEWS_WAIT) => {}
            _ = stopping.wait_for(|&stopping| stopping) => return,
        }
        let mut unready = if control.node.leads_system() { control.unready_views() } else { Vec::new() };
        looked.retain(|view, _| unready.contains(view));
        unready.retain(|view| !busy.contains(view));
        // Each has its turn: none before who was looked at longer ago.
        unready.sort_by_key(|view| looked.get(view).copied());
        for view in unready.into_iter().take(VIEWS_AT_ONCE - busy.len()) {
            busy.insert(view);
            looked.insert(view, control.node.clock().now());
            let control = &control;
            looking.push(async move {
                let wait = match control.look_after_view(view).await {
                    Ok(()) => VIEWS_WAIT,
                    Err(error) => {
                        tracing::debug!(%view, %error, "a view could not be looked after yet");
                        VIEWS_FAILED_WAIT
                    }
                };
                sleep(wait).await;
                view
            });
        }
    }
}

async fn look(control: &Control) -> Result<()> {
    let directory = control.node.directory();
    if directory.cluster().is_none() {
        return found(control).await;
    }
    if let Err(error) = recovery::look(control).await {
        tracing::debug!(%error, "a recovery could not be furthered yet");
    }
    let stale: Option<NodeId> = directory.stale_replicas().map(|(_, replica)| replica.node).next();
    if let Some(node) = stale
        && directory.node(node).is_some()
    {
        control.change(|directory| Ok(change::mend_node(directory, node)?.map(|write| ((), write)))).await?;
    }
    let dropping: Option<TableId> = directory.dropping().map(|table| table.id).next();
    if let Some(table) = dropping {
        finish_drop(control, table).await?;
    }
    Ok(())
}

/// Writes the first rows of a cluster: who it is, its founder, shard 0.
async fn found(control: &Control) -> Result<()> {
    let deadline = control.node.clock().now() + STEP_TIMEOUT;
    let directory = control.fresh_directory(deadline).await?;
    let Some(identity) = control.node.try_identity() else { return Ok(()) };
    if directory.cluster().is_some() {
        return Ok(());
    }
    let write = change::found_cluster(identity.cluster, control.node.clock().wall_ms(), &[control.node.row()])?;
    // Not applied means that another leader was faster; the picture will show it.
    control.write(write, deadline).await.map(|_| ())
}

/// Removes the rows of a dropped table once no living node holds a replica of it. (A node that is down destroys its
/// replicas when it comes back: it sees then that the table's id was given out and has no row.)
async fn finish_drop(control: &Control, table: TableId) -> Result<()> {
    let directory = control.node.directory();
    let shards: Vec<_> = directory.shards_of(table).map(|shard| shard.id).collect();
    for row in directory.nodes() {
        let report = timeout(STEP_TIMEOUT, control.report_of(row.id)).await.flatten();
        let holds = |id| report.as_ref().is_some_and(|report| report.shards.iter().any(|shard| shard.shard == id));
        if shards.iter().any(|&id| holds(id)) {
            return Ok(());
        }
    }
    control
        .change(|directory| {
            // Another leader may have finished it already.
            if directory.descriptor(table).is_none() {
                return Ok(None);
            }
            change::finish_drop(directory, table).map(|write| Some(((), write)))
        })
        .await?;
    Ok(())
}
