//! What a replica does by itself: tell others when leadership or members change, and trim its log when it has grown.
//!
//! One task per replica, asleep unless one of the two happens.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, OptionFuture};
use openraft::type_config::async_runtime::watch::WatchReceiver;

use super::group::{Inner, status_of};
use super::metrics;
use super::types::{Metrics, ServerMetrics};
use crate::runtime::{self, Task};

/// The shortest pause between two trimmings of one log.
const TRIM_PAUSE: Duration = Duration::from_millis(250);
/// How long a trimming waits for the applied state to become durable; afterwards it is tried again.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(30);

/// Starts the task. It ends when the replica stops.
pub fn spawn(inner: &Arc<Inner>) -> Task<()> {
    let inner = inner.clone();
    runtime::spawn(async move {
        let mut server = inner.raft.server_metrics();
        let mut trimming: OptionFuture<BoxFuture<'_, ()>> = None.into();
        let mut idle = true;
        loop {
            tokio::select! {
                changed = server.changed() => {
                    let report = server.borrow_and_update().clone();
                    publish(&inner, &report);
                    if changed.is_err() {
                        return;
                    }
                }
                () = inner.log.full(), if idle => {
                    idle = false;
                    let inner = &inner;
                    trimming = Some(async move {
                        trim(inner, false).await;
                        runtime::sleep(TRIM_PAUSE).await;
                    }.boxed()).into();
                }
                Some(()) = &mut trimming, if !idle => {
                    idle = true;
                    trimming = None.into();
                }
            }
        }
    })
}

/// Lets watchers see who leads and who is a member.
fn publish(inner: &Inner, server: &ServerMetrics) {
    // The full report is published after the one that woke us: what that one says is newer.
    let mut report = inner.raft.metrics().borrow_watched().clone();
    report.current_term = server.vote.leader_id.term;
    report.state = server.state;
    report.current_leader = server.current_leader;
    report.membership_config = server.membership_config.clone();
    let now = status_of(&inner.options, &report);
    inner.status.send_if_modified(|status| {
        if status.is_leader() != now.is_leader() || status.leader != now.leader {
            ::metrics::counter!(metrics::LEADER_CHANGES).increment(1);
            tracing::info!(
                shard = %inner.options.shard, replica = %now.replica, part = now.part.as_str(), term = now.term,
                leader = ?now.leader, "leadership changed"
            );
        }
        let changed = *status != now;
        *status = now;
        changed
    });
}

/// The last entry that every member holds, as far as this replica knows because it leads.
fn held_by_all(metrics: &Metrics) -> Option<u64> {
    let replication = metrics.replication.as_ref()?;
    let members = metrics.membership_config.membership().nodes();
    members.map(|(member, _)| replication.get(member)?.map(|id| id.index)).min()?
}

/// Makes the applied state durable, then removes the log before it but for the tail to be kept; with `all` also what
/// some member lacks, though there is not much of it.
pub async fn trim(inner: &Inner, all: bool) {
    let (applied, held) = {
        let metrics = inner.raft.metrics();
        let report = metrics.borrow_watched();
        (report.last_applied.map(|id| id.index), held_by_all(&report))
    };
    // Followers learn it with the next entries.
    held.into_iter().for_each(|index| inner.log.note_held(index));
    if let Some(upto) = applied.and_then(|applied| inner.log.purgeable(applied, all)) {
        purge(inner, upto).await;
    }
}

/// Makes the applied state durable, then removes the log up to and with an entry of it.
pub async fn purge(inner: &Inner, upto: u64) {
    let mut report = inner.raft.metrics();
    if inner.raft.trigger().snapshot().await.is_err() {
        return;
    }
    // One under construction already may be of an older state; any that covers what we remove will do.
    let covered = runtime::timeout(SNAPSHOT_PATIENCE, async {
        loop {
            if report.borrow_watched().snapshot.is_some_and(|id| id.index >= upto) {
                return true;
            }
            if report.changed().await.is_err() {
                return false;
            }
        }
    });
    if covered.await == Some(true) && inner.raft.trigger().purge_log(upto).await.is_ok() {
        ::metrics::counter!(metrics::LOG_TRIMMED).increment(1);
        tracing::debug!(shard = %inner.options.shard, upto, "trimmed the log");
    }
}
