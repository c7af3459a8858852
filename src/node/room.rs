//! The room left on this node's disk, and what follows when there is little.
//!
//! A disk that is quite full ends the node: what cannot be written cannot be acknowledged. So the node looks at the
//! room that is left every [`LOOK_EVERY`] and yields before that. With *little* room (less than the engine's reserve) it
//! hands its leaderships to nodes that have room, and refuses writes with `DISK_FULL` where it still leads. With *none*
//! (less than half the reserve) it takes no more entries and no snapshots either, as long as the others do without it:
//! its replicas fall behind and catch up later; heartbeats, votes and reads go on. The catalog is exempt from both, since dropping a table is how room is
//! made. All of it ends by itself when there is room again.
//!
//! A node with little room says so, every [`TELL_EVERY`], to the nodes it shares groups with, and learns in return who
//! has room. So leaderships do not go from one full node to the next, and a leader that has room itself refuses writes
//! that no majority could take, instead of leaving their senders without an answer.
//!
//! Left out: making room, which is for the operator.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;

use super::ask;
use super::host::Node;
use super::metrics;
use crate::limits::{Reserve, Room};
use crate::runtime::{Instant, sleep, spawn_blocking};
use crate::shard::Shard;
use crate::storage::{Engine, RESERVE_BYTES};
use crate::types::{Error, NodeId, Reason, Result, ShardId};

/// Between looks at the disk: a fast disk writes some hundred MiB in this time, as much as the reserve.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Between rounds of telling while there is little room.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How long one of the others may take to answer.
const TELL_TIMEOUT: Duration = Duration::from_millis(500);
/// How long what another node has told is believed: a few rounds may get lost.
const TOLD_KEPT: Duration = Duration::from_secs(4);
/// What writers are told to wait: a leadership is handed over in less.
const REFUSED_RETRY: Duration = Duration::from_millis(100);

/// What a node tells of its room; the answer is whether the one asked has enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RoomAsk {
    /// Who tells.
    pub node: NodeId,
    /// Whether it has enough.
    pub enough: bool,
}

/// The room on this node's disk, and what others have told of theirs.
pub struct Rooms {
    reserve: Reserve,
    reserve_bytes: u64,
    mine: AtomicU8,
    free: AtomicU64,
    /// The nodes that said they have little, and when.
    others: Mutex<HashMap<NodeId, Instant>>,
    /// Whether there are any, so that a write need not take the lock.
    any_other: AtomicBool,
}

impl Rooms {
    /// Of a node on this engine; there is enough until someone looks.
    pub fn new(engine: &dyn Engine) -> Rooms {
        let reserve_bytes = engine.reserve_bytes().unwrap_or(RESERVE_BYTES);
        Rooms {
            reserve: Reserve::new(reserve_bytes),
            reserve_bytes,
            mine: AtomicU8::new(Room::Enough as u8),
            free: AtomicU64::new(u64::MAX),
            others: Mutex::default(),
            any_other: AtomicBool::new(false),
        }
    }

    fn mine(&self) -> Room {
        Room::from_number(self.mine.load(Ordering::Relaxed))
    }

    /// Takes note of what another node tells.
    pub fn note(&self, node: NodeId, enough: bool, now: Instant) {
        let mut others = self.others.lock();
        if enough {
            others.remove(&node);
        } else {
            others.insert(node, now);
        }
        self.any_other.store(!others.is_empty(), Ordering::Relaxed);
    }

    /// Whether another node has told lately that it has little room.
    pub(super) fn lacks(&self, node: NodeId, now: Instant) -> bool {
        if !self.any_other.load(Ordering::Relaxed) {
            return false;
        }
        let mut others = self.others.lock();
        others.retain(|_, told| now.saturating_duration_since(*told) < TOLD_KEPT);
        self.any_other.store(!others.is_empty(), Ordering::Relaxed);
        others.contains_key(&node)
    }
}

impl Node {
    /// The room left on this node's disk.
    pub fn room(&self) -> Room {
        self.rooms().mine()
    }

    /// Whether there is room enough; the error says how much there is, and what to do.
    pub fn check_room(&self) -> Result<()> {
        if self.room() == Room::Enough {
            return Ok(());
        }
        let free = self.rooms().free.load(Ordering::Relaxed) >> 20;
        let reserve = self.rooms().reserve_bytes >> 20;
        Err(Error::new(
            Reason::DiskFull,
            format!("the disk is nearly full: {free} MiB are left, {reserve} MiB are kept free; make room"),
        ))
    }

    /// Refuses a write to a shard led here when it would be written on a disk that is nearly full, or when no majority
    /// could take it.
    pub(super) fn refuse_without_room(&self, shard: &Shard) -> Result<()> {
        let refused = |error: Error| {
            ::metrics::counter!(metrics::WRITES_REFUSED_FULL).increment(1);
            Err(error.with_retry_after(REFUSED_RETRY))
        };
        if let Err(error) = self.check_room() {
            return refused(error);
        }
        if !self.rooms().any_other.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (with_room, voters) = self.voters_with_room(shard);
        if with_room * 2 > voters {
            return Ok(());
        }
        refused(Error::new(
            Reason::DiskFull,
            format!("only {with_room} of the {voters} nodes that keep {} have room on their disks", shard.id()),
        ))
    }

    /// Whether entries and snapshots of a shard are refused here now: there is no room, and the others do without this
    /// node. If they do not, no client's write comes this way (see above), and what does come is little and needed: the
    /// first entry of a new leader, without which it answers no reads.
    pub(super) fn takes_no_more_of(&self, shard: ShardId) -> bool {
        if shard == ShardId::SYSTEM || self.room() != Room::None {
            return false;
        }
        let Some(hosted) = self.replicas().get(shard) else { return false };
        let (with_room, voters) = self.voters_with_room(&hosted);
        with_room * 2 > voters
    }

    /// How many voters of a shard run and have room, as far as this node knows, and how many there are.
    fn voters_with_room(&self, shard: &Shard) -> (usize, usize) {
        let now = self.clock().now();
        let voters = shard.group().status().voters;
        let has_room = |node: NodeId| {
            if node == self.id() {
                self.room() == Room::Enough
            } else {
                self.hears(node) && !self.rooms().lacks(node, now)
            }
        };
        (voters.values().filter(|&&node| has_room(node)).count(), voters.len())
    }

    /// What another node tells of its room; whether this one has enough.
    pub(super) fn note_room(&self, told: RoomAsk) -> bool {
        self.rooms().note(told.node, told.enough, self.clock().now());
        self.room() == Room::Enough
    }
}

/// Looks after the room until the node stops.
pub async fn run(node: Arc<Node>) {
    let mut stopping = node.stopping();
    let watch = async {
        let mut told = None;
        loop {
            look(&node, &mut told).await;
            sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        () = watch => {}
        _ = stopping.wait_for(|&stopping| stopping) => {}
    }
}

async fn look(node: &Arc<Node>, told: &mut Option<Instant>) {
    let engine = node.engine().clone();
    // Off this thread, since it asks the file system.
    let Ok(Ok(free)) = spawn_blocking(move || engine.free_bytes()).await else { return };
    let before = node.room();
    let room = node.rooms().reserve.judge(before, free);
    node.rooms().free.store(free, Ordering::Relaxed);
    node.rooms().mine.store(room as u8, Ordering::Relaxed);
    ::metrics::gauge!(metrics::DISK_ROOM).set(f64::from(room as u8));
    if room != before {
        let free_mib = free >> 20;
        match room {
            Room::Enough => tracing::info!(free_mib, "there is room on the disk again"),
            Room::Little => tracing::warn!(free_mib, "the disk is nearly full: no new writes are led here; make room"),
            Room::None => tracing::error!(free_mib, "the disk is full: no more entries are taken; make room"),
        }
    }
    let now = node.clock().now();
    if room == Room::Enough {
        if told.take().is_some() {
            tell(node, true).await;
        }
        return;
    }
    if told.is_none_or(|last| now.saturating_duration_since(last) >= TELL_EVERY) {
        *told = Some(now);
        tell(node, false).await;
    }
    node.pass_leaderships_on(|to| !node.rooms().lacks(to, now)).await;
}

/// Tells the nodes that share groups with this one, and takes note of what they say.
async fn tell(node: &Arc<Node>, enough: bool) {
    let voters = node.replicas().all().into_iter().flat_map(|shard| shard.group().status().voters.into_values());
    let others: BTreeSet<NodeId> = voters.filter(|&other| other != node.id()).collect();
    let question = RoomAsk { node: node.id(), enough };
    let told = others.iter().map(|&other| node.ask_for::<_, bool>(other, ask::ROOM, &question, TELL_TIMEOUT));
    let now = node.clock().now();
    for (&other, answer) in others.iter().zip(join_all(told).await) {
        // Who does not answer is judged by whether it is heard from.
        if let Ok(enough) = answer {
            node.rooms().note(other, enough, now);
        }
    }
}
