//! Brings this node to what the catalog wants of it, again and again until it is so.
//!
//! Each round compares the wanted with the real and takes the next step for every difference: create a replica, found
//! its group, destroy it; and have `members` and `splits` take theirs, which run beside the round. Every step is safe to
//! repeat, so a crash anywhere only means another round.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::host::Node;
use super::members;
use super::merges;
use super::metrics;
use super::recovery;
use super::splits;
use crate::catalog::Directory;
use crate::raft::Status;
use crate::runtime::{Instant, timeout};
use crate::shard::{Record, Shard};
use crate::storage::{LogChange, LogOp};
use crate::types::{Error, NodeId, Reason, ReplicaId, Result, ShardDescriptor, ShardId, TableDescriptor, TableState};

/// Between rounds when nothing wakes the reconciler.
const ROUND_WAIT: Duration = Duration::from_millis(250);
/// How long a group may be without a leader before a founder other than the preferred one founds it.
const FOUND_AFTER: Duration = Duration::from_secs(5);
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
    let leads = || node.replicas().all().iter().any(|shard| shard.is_leader());
    if directory.left(node.id()).is_some_and(|left| left.incarnation == identity.incarnation) && !leads() {
        let why =
            "this node was decommissioned: what it held has moved to others, and its data directory is of no more use";
        return node.fail(Error::new(Reason::NodeIdTaken, why));
    }
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
        if shard.state().sealed_for.is_some() {
            // It may have been taken over, with nobody left to tell of it.
            if merges::bury(node, shard.id()).await {
                continue;
            }
        }
        splits::forget(node, shard);
        if let Some(descriptor) = wanted {
            if let Some(table) = directory.table(descriptor.table) {
                shard.set_history_ms(table.descriptor.history_ms);
            }
            found(node, shard, descriptor, &status, memory).await;
            let (mine, noted) = (node.recovery(), directory.recovery());
            // Its row wants members of the group that was.
            let adopted = !recovery::awaits_adoption(mine, noted, shard.id(), shard.replica());
            if status.is_leader() {
                if adopted {
                    members::align(node, shard, descriptor, &status);
                }
                splits::further(node, shard, descriptor);
                merges::further(node, shard, descriptor);
            }
            // Also one that takes itself for the leader: once it has begun to hand over it says nothing any more, and if
            // the others have elected another and removed it meanwhile, nobody says anything to it.
            if adopted && descriptor.replicas.iter().all(|replica| replica.id != shard.replica()) {
                members::retire(node, shard, descriptor);
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

/// What storage says of the place that a wanted replica is to take, while none of its shard is hosted.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// The replica itself is there and has only to be started.
    Taken(Record),
    /// It never may come: it was destroyed here (the picture of the catalog is from before, for a moment). Or not yet:
    /// another of its shard has stopped and is being removed, and must not be started again meanwhile.
    Closed,
    /// There is none.
    Free,
}

impl Place {
    fn of(stored: Option<Record>, wanted: ReplicaId) -> Place {
        match stored {
            Some(record) if record.tombstone && record.replica < wanted => Place::Free,
            Some(record) if !record.tombstone && record.replica == wanted => Place::Taken(record),
            Some(_) => Place::Closed,
            None => Place::Free,
        }
    }
}

/// Creates the wanted replica of a shard if it is not here.
async fn create(node: &Arc<Node>, descriptor: &ShardDescriptor) -> Result<()> {
    let Some(mine) = descriptor.replica_on(node.id()) else { return Ok(()) };
    // If it is another than the wanted one, it has to go first, and may have to wait.
    if node.replicas().get(descriptor.id).is_some() {
        return Ok(());
    }
    let stored = Record::load(&**node.engine(), descriptor.id)?;
    let record = match Place::of(stored, mine.id) {
        Place::Closed => return Ok(()),
        Place::Taken(record) => record,
        Place::Free => {
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
    if preferred_founder(descriptor) == Some(record.replica) {
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
    if descriptor.founded {
        return None;
    }
    descriptor.founders.iter().copied().find(|founder| descriptor.replicas.iter().any(|replica| replica.id == *founder))
}

/// The first members of a shard, the same for whoever asks and whenever: also those that were replaced since. They stay
/// members until the group, once it has a leader, exchanges them; a majority of the others founds it without them.
///
/// A successor stands in the place of the one it replaces, on the same node (a disk was lost). None if the founders
/// cannot be told any more: when one has moved to another node, the group has been founded.
fn first_members(descriptor: &ShardDescriptor) -> Option<BTreeMap<ReplicaId, NodeId>> {
    if descriptor.founded || descriptor.replicas.len() < descriptor.founders.len() {
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
    if !fresh || descriptor.founded || !descriptor.founders.contains(&shard.replica()) {
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

/// Whether the catalog has dropped the shard for good (not merely: is not known here yet).
fn is_gone(directory: &Directory, shard: &Arc<Shard>) -> bool {
    if shard.id() == ShardId::SYSTEM {
        return false;
    }
    let table = shard.state().table;
    directory.descriptor(table).is_some_and(|table| table.state == TableState::Dropping)
        || directory.was_dropped(shard.id())
}

/// Stops a replica and removes what it stored, leaving a tombstone; later, if its left neighbour's here has yet to take it
/// over.
async fn destroy(node: &Arc<Node>, shard: &Arc<Shard>) -> Result<()> {
    // As in `create`: not while a snapshot is being installed, perhaps over this very range.
    let Ok(_alone) = node.ranges().try_write() else { return Ok(()) };
    if node.is_awaited(shard)? {
        return Ok(());
    }
    // Read after that: if it was taken over just now, its data is another's, and its record a tombstone.
    let record = Record::load(&**node.engine(), shard.id())?.filter(|record| !record.tombstone);
    let Some(record) = record else { return Ok(()) };
    node.replicas().remove(shard.id());
    shard.stop().await;
    erase(node, shard, &record).await
}

/// Destroys a replica that is no member any more, unless its own log says that it was taken in again after the entry at
/// `members_at`; then it goes on.
pub(super) async fn dissolve(node: &Arc<Node>, shard: &Arc<Shard>, members_at: u64) -> Result<()> {
    // A snapshot that is being installed looked at who lives here, and nobody is to go or come meanwhile.
    let _alone = node.ranges().write().await;
    if node.is_awaited(shard)? {
        return Ok(());
    }
    // Read after that, as in `destroy`.
    let Some(record) = Record::load(&**node.engine(), shard.id())? else { return Ok(()) };
    let hosted = node.replicas().get(shard.id()).is_some_and(|hosted| Arc::ptr_eq(&hosted, shard));
    if !hosted || record.tombstone || record.replica != shard.replica() {
        return Ok(());
    }
    node.replicas().remove(shard.id());
    // From here on it acknowledges nothing, so what its log says now is the last it has to say.
    shard.stop().await;
    if members::was_taken_in_again(&shard.group().status(), members_at) {
        node.host(&record).await?;
        return Ok(());
    }
    erase(node, shard, &record).await
}

/// Removes what a stopped replica stored, leaving a tombstone.
async fn erase(node: &Arc<Node>, shard: &Arc<Shard>, record: &Record) -> Result<()> {
    tracing::info!(shard = %shard.id(), replica = %shard.replica(), "destroying a replica");
    // What it owned last, which may be less than it began with: what was split off belongs to others.
    let state = shard.state();
    node.drain_log_of(shard.id()).await?;
    node.engine().horizons().clear(&state.start, &state.end);
    record.destroy(&**node.engine(), &state.start, &state.end)?;
    Ok(())
}

impl Node {
    /// Waits until what a stopped replica has queued is on the disk, before its traces are removed.
    pub(super) async fn drain_log_of(&self, shard: ShardId) -> Result<()> {
        let (done, written) = oneshot::channel();
        self.writer().submit(LogOp {
            group: shard,
            change: LogChange::Barrier,
            done: Some(Box::new(move |result| {
                let _ = done.send(result);
            })),
        });
        if let Ok(result) = written.await {
            result?;
        }
        // A later replica of this shard begins with an empty log; what was known of this one's must not count for it.
        self.writer().forget(shard);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Incarnation, ReplicaDescriptor, ReplicaRole, TableId};

    /// A shard whose wanted replicas are `ids`, on nodes 1, 2 and so on, founded by replicas 4, 5 and 6.
    fn shard(ids: &[u64]) -> ShardDescriptor {
        let replica = |(at, &id): (usize, &u64)| ReplicaDescriptor {
            id: ReplicaId(id),
            node: NodeId(at as u64 + 1),
            incarnation: Incarnation(1),
            role: ReplicaRole::Voter,
        };
        let replicas = ids.iter().enumerate().map(replica).collect();
        ShardDescriptor {
            founders: [4, 5, 6].map(ReplicaId).into(),
            ..ShardDescriptor::new(ShardId(9), TableId(1), (vec![1], vec![2]), replicas)
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
    fn a_replica_takes_a_place_that_is_free_or_its_own() {
        let record = |id: u64, tombstone: bool| Record { tombstone, ..Record::of(&shard(&[4, 5, 6]), ReplicaId(id)) };
        let place = |stored: Option<Record>| Place::of(stored, ReplicaId(7));
        assert_eq!(place(None), Place::Free);
        assert_eq!(place(Some(record(4, true))), Place::Free, "the one before it has gone");
        assert_eq!(place(Some(record(7, false))), Place::Taken(record(7, false)));
        assert_eq!(place(Some(record(4, false))), Place::Closed, "the one before it is still going");
        for gone in [7, 8] {
            assert_eq!(place(Some(record(gone, true))), Place::Closed, "it was here, and its successor even");
        }
    }

    #[test]
    fn the_first_founder_left_founds() {
        let preferred = |ids: &[u64]| preferred_founder(&shard(ids)).map(|id| id.0);
        assert_eq!([preferred(&[4, 5, 6]), preferred(&[7, 5, 6]), preferred(&[7, 8, 6])], [Some(4), Some(5), Some(6)]);
        assert_eq!(preferred(&[7, 8, 9]), None);
    }
}
