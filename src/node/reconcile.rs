//! Brings this node to what the catalog wants of it, again and again until it is so.
//!
//! Each round compares the wanted with the real and takes the next step for every difference: create a replica, found
//! its group, destroy it; and, where this node leads, add learners, promote them when they have caught up, remove who
//! is no longer wanted. Every step is safe to repeat, so a crash anywhere only means another round.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::host::Node;
use super::metrics;
use super::splits;
use crate::catalog::Directory;
use crate::raft::Status;
use crate::runtime::{Instant, timeout};
use crate::shard::{Record, Shard};
use crate::storage::{LogChange, LogOp};
use crate::types::{NodeId, ReplicaId, ReplicaRole, Result, ShardDescriptor, ShardId, TableDescriptor, TableState};

/// Between rounds when nothing wakes the reconciler.
const ROUND_WAIT: Duration = Duration::from_millis(250);
/// How long a group may be without a leader before a founder other than the preferred one founds it.
const FOUND_AFTER: Duration = Duration::from_secs(5);
/// Entries a learner may be behind and still be promoted: fewer than one busy round trip brings.
const CAUGHT_UP_WITHIN: u64 = 256;
/// Between upkeep rounds of a shard (history, old marks).
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// How long upkeep may wait for its own log entries.
const UPKEEP_TIMEOUT: Duration = Duration::from_secs(2);

/// What the reconciler remembers between rounds.
#[derive(Default)]
struct Memory {
    /// Since when a hosted group has had no leader.
    leaderless: HashMap<ShardId, Instant>,
    /// The last upkeep.
    upkept: Option<Instant>,
}

/// Runs until the node stops.
pub async fn run(node: Arc<Node>) {
    let mut stopping = node.stopping();
    let mut memory = Memory::default();
    loop {
        tokio::select! {
            _ = timeout(ROUND_WAIT, node.nudged()) => {}
            _ = stopping.wait_for(|&stopping| stopping) => return,
        }
        round(&node, &mut memory).await;
    }
}

async fn round(node: &Arc<Node>, memory: &mut Memory) {
    let Some(identity) = node.try_identity().copied() else { return };
    let directory = node.directory();
    for (descriptor, _) in directory.shards_on(node.id(), identity.incarnation) {
        let going = |table: &TableDescriptor| table.state == TableState::Dropping;
        if directory.descriptor(descriptor.table).is_some_and(going) {
            continue;
        }
        if let Err(error) = create(node, descriptor).await {
            tracing::error!(shard = %descriptor.id, %error, "cannot create a replica");
        }
    }
    let mut led = 0;
    let replicas = node.replicas().all();
    for shard in &replicas {
        let status = shard.group().status();
        let wanted = directory.shard(shard.id()).filter(|descriptor| {
            directory.descriptor(descriptor.table).is_none_or(|table| table.state != TableState::Dropping)
        });
        if status.is_leader() {
            led += 1;
        }
        splits::forget(node, shard);
        if let Some(descriptor) = wanted {
            if let Some(table) = directory.table(descriptor.table) {
                shard.set_history_ms(table.descriptor.history_ms);
            }
            found(node, shard, descriptor, &status, memory).await;
            if status.is_leader() {
                align(shard, descriptor, &status).await;
                splits::further(node, shard, descriptor);
            }
        } else if is_gone(&directory, shard)
            && let Err(error) = destroy(node, shard).await
        {
            tracing::error!(shard = %shard.id(), %error, "cannot destroy a replica");
        }
    }
    ::metrics::gauge!(metrics::REPLICAS).set(replicas.len() as f64);
    ::metrics::gauge!(metrics::LEADERS).set(f64::from(led));

    let now = node.clock().now();
    if memory.upkept.is_none_or(|last| now.saturating_duration_since(last) >= UPKEEP_EVERY) {
        memory.upkept = Some(now);
        let upkeeps = replicas.iter().map(|shard| shard.upkeep(now + UPKEEP_TIMEOUT));
        futures::future::join_all(upkeeps).await;
    }
}

/// Creates the wanted replica of a shard if it is not here.
async fn create(node: &Arc<Node>, descriptor: &ShardDescriptor) -> Result<()> {
    let Some(mine) = descriptor.replica_on(node.id()) else { return Ok(()) };
    if let Some(hosted) = node.replicas().get(descriptor.id) {
        if hosted.replica() != mine.id && hosted.replica() < mine.id {
            // The catalog has replaced the replica of this very directory: the old one goes, the new one comes.
            destroy(node, &hosted).await?;
        } else {
            return Ok(());
        }
    }
    let record = match Record::load(&**node.engine(), descriptor.id)? {
        // Destroyed here before: this id never comes back. (A picture of the catalog from before, for a moment.)
        Some(record) if record.tombstone && record.replica >= mine.id => return Ok(()),
        Some(record) if !record.tombstone => record,
        _ => {
            // Not while a snapshot is being installed, whose range was looked at when this replica was not there; that may
            // take long, and there is more to do in a round: the next one tries again.
            let Ok(_alone) = node.ranges().try_write() else { return Ok(()) };
            if let Some(other) = owner_of_a_part(node, descriptor) {
                // A parent that has not applied its split here yet, or is a part of the past that a snapshot will bring
                // up to date: the child is born then, or created afterwards.
                tracing::debug!(shard = %descriptor.id, %other, "waiting until another replica gives the range up");
                return Ok(());
            }
            // It may have been born since the record was looked for.
            if Record::load(&**node.engine(), descriptor.id)?.is_some_and(|record| !record.tombstone) {
                return Ok(());
            }
            let record = Record::of(descriptor, mine.id);
            record.store(&**node.engine())?;
            record
        }
    };
    let hosted = node.host(&record).await?;
    // The preferred leader founds at once; it becomes the leader.
    if preferred_founder(descriptor) == Some(record.replica) && record.replica == mine.id {
        found_group(&hosted, descriptor).await;
    }
    Ok(())
}

/// Another shard whose replica here owns a part of the range.
fn owner_of_a_part(node: &Node, descriptor: &ShardDescriptor) -> Option<ShardId> {
    let overlaps = |shard: &Arc<Shard>| {
        let state = shard.state();
        state.start < descriptor.end[..] && descriptor.start[..] < state.end[..]
    };
    let others = node.replicas().all().into_iter().filter(|shard| shard.id() != descriptor.id);
    others.into_iter().find(overlaps).map(|shard| shard.id())
}

/// Who founds at once: the first of the founders that is still wanted.
fn preferred_founder(descriptor: &ShardDescriptor) -> Option<ReplicaId> {
    descriptor.founders.iter().copied().find(|founder| descriptor.replicas.iter().any(|replica| replica.id == *founder))
}

/// The first members of a shard, the same for whoever asks and whenever: also those that were replaced since. They stay
/// members until the group, once it has a leader, exchanges them; a majority of the others founds it without them.
///
/// A successor stands in the place of the one it replaces, on the same node (a disk was lost). None if the founders
/// cannot be told any more.
fn first_members(descriptor: &ShardDescriptor) -> Option<BTreeMap<ReplicaId, NodeId>> {
    if descriptor.replicas.len() < descriptor.founders.len() {
        return None;
    }
    let in_place = descriptor.founders.iter().zip(&descriptor.replicas);
    let known = |id: ReplicaId| descriptor.founders.contains(&id);
    in_place
        .map(|(&founder, there)| (founder == there.id || !known(there.id)).then_some((founder, there.node)))
        .collect()
}

/// Founds a group whose preferred founder has not done so, or finishes what a crash has cut short.
async fn found(node: &Node, shard: &Arc<Shard>, descriptor: &ShardDescriptor, status: &Status, memory: &mut Memory) {
    let fresh = status.voters.is_empty() && status.learners.is_empty();
    if !fresh || !descriptor.founders.contains(&shard.replica()) {
        memory.leaderless.remove(&shard.id());
        return;
    }
    let now = node.clock().now();
    let since = *memory.leaderless.entry(shard.id()).or_insert(now);
    let preferred = preferred_founder(descriptor) == Some(shard.replica());
    if preferred || now.saturating_duration_since(since) >= FOUND_AFTER {
        found_group(shard, descriptor).await;
    }
}

async fn found_group(shard: &Arc<Shard>, descriptor: &ShardDescriptor) {
    let Some(members) = first_members(descriptor) else {
        tracing::error!(shard = %descriptor.id, "the first members of the group cannot be told from the catalog");
        return;
    };
    if let Err(error) = shard.group().found(members).await {
        tracing::warn!(shard = %descriptor.id, %error, "cannot found the group yet");
    }
}

/// As leader: one step from the real members towards the wanted ones.
async fn align(shard: &Arc<Shard>, descriptor: &ShardDescriptor, status: &Status) {
    let group = shard.group();
    if status.joint {
        if let Err(error) = group.finish_change().await {
            tracing::debug!(shard = %shard.id(), %error, "cannot finish a change of members yet");
        }
        return;
    }
    for wanted in &descriptor.replicas {
        if !status.voters.contains_key(&wanted.id) && !status.learners.contains_key(&wanted.id) {
            if shard.has_log_of_the_past() {
                // It is being removed; a newcomer would be sent what it cannot apply, and refuse it.
                return;
            }
            tracing::info!(shard = %shard.id(), replica = %wanted.id, node = %wanted.node, "adding a replica");
            if let Err(error) = group.add_learner(wanted.id, wanted.node).await {
                tracing::debug!(shard = %shard.id(), %error, "cannot add a replica yet");
            }
            return;
        }
    }
    let caught_up = |replica: ReplicaId| {
        let matched = status.matched.get(&replica).copied().flatten();
        matched.is_some_and(|matched| matched + CAUGHT_UP_WITHIN >= status.last_log)
    };
    let wanted: BTreeSet<ReplicaId> = (descriptor.replicas.iter())
        .filter(|replica| replica.role == ReplicaRole::Voter)
        .filter(|replica| status.voters.contains_key(&replica.id) || caught_up(replica.id))
        .map(|replica| replica.id)
        .collect();
    let current: BTreeSet<ReplicaId> = status.voters.keys().copied().collect();
    let all_wanted: BTreeSet<ReplicaId> = (descriptor.replicas.iter())
        .filter(|replica| replica.role == ReplicaRole::Voter)
        .map(|replica| replica.id)
        .collect();
    // Who is no longer wanted stays until everyone wanted is a voter, so that the group never gets thinner than it was.
    let target: BTreeSet<ReplicaId> =
        if wanted == all_wanted { wanted } else { wanted.union(&current).copied().collect() };
    if target != current && !target.is_empty() {
        tracing::info!(shard = %shard.id(), from = ?current, to = ?target, "changing voters");
        if let Err(error) = group.change_voters(target).await {
            tracing::debug!(shard = %shard.id(), %error, "cannot change voters yet");
        }
    }
}

/// Whether the catalog has dropped the shard for good (not merely: is not known here yet).
fn is_gone(directory: &Directory, shard: &Arc<Shard>) -> bool {
    if shard.id() == ShardId::SYSTEM {
        return false;
    }
    let table = shard.state().table;
    directory.descriptor(table).is_some_and(|table| table.state == TableState::Dropping)
        || directory.was_dropped(shard.id())
}

/// Stops a replica and removes what it stored, leaving a tombstone.
async fn destroy(node: &Arc<Node>, shard: &Arc<Shard>) -> Result<()> {
    tracing::info!(shard = %shard.id(), replica = %shard.replica(), "destroying a replica");
    let Some(record) = Record::load(&**node.engine(), shard.id())? else { return Ok(()) };
    node.replicas().remove(shard.id());
    shard.stop().await;
    // What it owned last, which may be less than it began with: what was split off belongs to others.
    let state = shard.state();
    // What the group has queued must be on the disk before its traces are removed.
    let (done, written) = oneshot::channel();
    node.writer().submit(LogOp {
        group: shard.id(),
        change: LogChange::Barrier,
        done: Some(Box::new(move |result| {
            let _ = done.send(result);
        })),
    });
    if let Ok(result) = written.await {
        result?;
    }
    // A later replica of this shard begins with an empty log; what was known of this one's must not count for it.
    node.writer().forget(shard.id());
    node.engine().horizons().clear(&state.start, &state.end);
    record.destroy(&**node.engine(), &state.start, &state.end)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, Incarnation, ReplicaDescriptor, TableId};

    /// A shard whose wanted replicas are `ids`, on nodes 1, 2 and so on, founded by replicas 4, 5 and 6.
    fn shard(ids: &[u64]) -> ShardDescriptor {
        let replica = |(at, &id): (usize, &u64)| ReplicaDescriptor {
            id: ReplicaId(id),
            node: NodeId(at as u64 + 1),
            incarnation: Incarnation(1),
            role: ReplicaRole::Voter,
        };
        ShardDescriptor {
            id: ShardId(9),
            table: TableId(1),
            start: vec![1],
            end: vec![2],
            epoch: Epoch(1),
            replicas: ids.iter().enumerate().map(replica).collect(),
            founders: [4, 5, 6].map(ReplicaId).into(),
            split: None,
        }
    }

    #[test]
    fn the_first_members_stay_the_same_whoever_is_replaced() {
        let first = first_members(&shard(&[4, 5, 6])).expect("known");
        assert_eq!(first, BTreeMap::from([4, 5, 6].map(|id| (ReplicaId(id), NodeId(id - 3)))));
        for later in [&[7, 5, 6][..], &[7, 8, 6], &[7, 8, 9], &[4, 5, 6, 7]] {
            assert_eq!(first_members(&shard(later)).as_ref(), Some(&first), "{later:?}");
        }
        for unclear in [&[4, 5][..], &[5, 4, 6]] {
            assert_eq!(first_members(&shard(unclear)), None, "{unclear:?}");
        }
    }

    #[test]
    fn the_first_founder_left_founds() {
        let preferred = |ids: &[u64]| preferred_founder(&shard(ids)).map(|id| id.0);
        assert_eq!([preferred(&[4, 5, 6]), preferred(&[7, 5, 6]), preferred(&[7, 8, 6])], [Some(4), Some(5), Some(6)]);
        assert_eq!(preferred(&[7, 8, 9]), None);
    }
}
