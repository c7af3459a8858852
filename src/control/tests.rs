//! Founding, joining, creating and replacing, with a crash after each of many first writes: whatever step it comes
//! between, the steps that follow a restart bring about the same.
//!
//! A [`House`] of three nodes runs in this process, on engines in memory and over real sockets. Each life of a node has a
//! runtime of its own, so that it can end as suddenly as a process does, and a [`Disk`] that can stop taking writes.
#![allow(clippy::disallowed_methods, reason = "each node gets a runtime that can be torn down under it")]

mod changes;
mod elastic;
mod merges;
mod reads;
mod recovery;
mod upkeep;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::runtime::{Builder, Runtime};

use super::Control;
use crate::catalog::{Directory, change};
use crate::node::{AskHandler, Bootstrap, Context, JoinAnswer, JoinAsk, Node, NodeOptions, ScrubOptions, ask, testing};
use crate::placement::sizing::Sizes;
use crate::raft::{LogBounds, Timers};
use crate::runtime::{Clock, spawn};
use crate::storage::{
    self, Batch, Cursor, Engine, Family, Horizons, LogWriter, Lookup, Memory, Ranges, Reader, TableWriter, Tier,
};
use crate::types::{
    Action, Limits, NodeId, Operation, Partitioning, Read, ReadLevel, Reason, ReplicaId, Request, RequestId, Response,
    Result, ShardDescriptor, ShardId, Slot, TableId, Write,
};
use crate::wire::admin::{NewTable, SplitPoint, SplitReport};

/// Long enough for a machine that others share.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Longer than a crash and a restart take.
const REPLACE_LOST_AFTER: Duration = Duration::from_secs(15);
/// As many writes as a life makes and more.
const NO_END: u64 = u64::MAX;

/// A disk that takes a number of writes and no more.
struct Disk {
    memory: Arc<Memory>,
    /// Written to under the lock, so that nothing is still on its way when the disk has been cut off.
    left: RwLock<AtomicU64>,
}

impl Disk {
    fn take<T>(&self, work: impl FnOnce() -> storage::Result<T>) -> storage::Result<T> {
        let left = self.left.read();
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            if left == NO_END { Some(left) } else { left.checked_sub(1) }
        })
        .map_err(|_| storage::Error::Stopped)?;
        work()
    }

    fn is_dead(&self) -> bool {
        self.left.read().load(Ordering::Relaxed) == 0
    }

    fn cut_off(&self) {
        self.left.write().store(0, Ordering::Relaxed);
    }
}

impl Reader for Disk {
    fn get(&self, family: Family, key: &[u8], tier: Tier) -> storage::Result<Lookup<Bytes>> {
        self.memory.get(family, key, tier)
    }

    fn first_version(&self, prefix: &[u8], from: &[u8], tier: Tier) -> storage::Result<Lookup<(Bytes, Bytes)>> {
        self.memory.first_version(prefix, from, tier)
    }

    fn cursor<'a>(&'a self, family: Family, start: &[u8], end: &[u8]) -> Box<dyn Cursor + 'a> {
        self.memory.cursor(family, start, end)
    }
}

impl Engine for Disk {
    fn write(&self, batch: Batch) -> storage::Result<()> {
        self.take(|| self.memory.write(batch))
    }

    fn sync(&self) -> storage::Result<()> {
        self.take(|| self.memory.sync())
    }

    fn snapshot(&self) -> Arc<dyn Reader> {
        self.memory.snapshot()
    }

    fn table_writer(&self, path: &Path) -> storage::Result<Box<dyn TableWriter>> {
        self.memory.table_writer(path)
    }

    fn install(&self, name: &str, ranges: &Ranges, files: &[PathBuf]) -> storage::Result<()> {
        self.take(|| self.memory.install(name, ranges, files))
    }

    fn horizons(&self) -> &Horizons {
        self.memory.horizons()
    }

    fn staging(&self) -> PathBuf {
        self.memory.staging()
    }

    fn compact(&self, start: &[u8], end: &[u8]) -> storage::Result<()> {
        self.memory.compact(start, end)
    }

    fn free_bytes(&self) -> storage::Result<u64> {
        self.memory.free_bytes()
    }

    fn bytes_in(&self, start: &[u8], end: &[u8]) -> storage::Result<u64> {
        self.memory.bytes_in(start, end)
    }

    fn gauges(&self) -> Vec<(&'static str, f64)> {
        self.memory.gauges()
    }
}

/// A node from its start to its end.
struct Life {
    runtime: Runtime,
    disk: Arc<Disk>,
    /// None when it did not get that far.
    started: Option<(Arc<Node>, Arc<Control>)>,
}

/// A node: its place, its data, and its present life.
struct Machine {
    address: SocketAddr,
    memory: Arc<Memory>,
    life: Option<Life>,
}

impl Machine {
    fn new() -> Machine {
        // Below the ports from which connections are made, so that it stays free between two lives.
        let port = || 10_000 + (crate::runtime::random_u64() % 9_000) as u16;
        let free = || std::net::TcpListener::bind(("127.0.0.1", port())).ok()?.local_addr().ok();
        let address = std::iter::repeat_with(free).flatten().next().expect("some port is free");
        Machine { address, memory: Memory::new().expect("a directory"), life: None }
    }
}

/// Three founding nodes, and others that joined them.
struct House {
    machines: BTreeMap<NodeId, Machine>,
}

/// The nodes that found it.
const FOUNDERS: std::ops::RangeInclusive<u64> = 1..=3;

impl House {
    fn new() -> House {
        House { machines: FOUNDERS.map(|id| (NodeId(id), Machine::new())).collect() }
    }

    /// Three nodes that serve, and others that joined them.
    fn of(nodes: u64) -> House {
        let mut house = House::founded();
        for id in 4..=nodes {
            house.machines.insert(NodeId(id), Machine::new());
            house.start(id, NO_END);
        }
        house.settle(1);
        house
    }

    /// Three nodes that serve.
    fn founded() -> House {
        let mut house = House::new();
        for id in 1..=3 {
            house.start(id, NO_END);
        }
        house.settle(1);
        house
    }

    /// Starts a node whose disk takes so many writes.
    fn start(&mut self, id: u64, writes: u64) {
        let founders = self.machines.iter().filter(|(id, _)| FOUNDERS.contains(&id.0));
        let peers: BTreeMap<_, _> = founders.map(|(&id, machine)| (id, machine.address.to_string())).collect();
        let bootstrap = if FOUNDERS.contains(&id) {
            Bootstrap::Found { peers }
        } else {
            Bootstrap::Join { addresses: peers.into_values().collect() }
        };
        let machine = self.machines.get_mut(&NodeId(id)).expect("a node");
        let memory = machine.memory.clone();
        let disk = Arc::new(Disk { memory, left: RwLock::new(writes.into()) });
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let options = NodeOptions {
            id: NodeId(id),
            address: machine.address.to_string(),
            http_address: String::new(),
            zone: String::new(),
            bootstrap,
            timers: Timers {
                heartbeat: Duration::from_millis(50),
                election_min: Duration::from_millis(250),
                election_max: Duration::from_millis(500),
            },
            log: LogBounds::default(),
            limits: Limits::default(),
            replace_lost_after: REPLACE_LOST_AFTER,
            sizes: Sizes::default(),
            scrub: ScrubOptions::default(),
            version: "test".to_owned(),
            clock: Clock::system(),
        };
        let writer = LogWriter::start_with(disk.clone(), Arc::new(|_| {})).expect("a thread");
        let engine = disk.clone();
        let address = machine.address;
        let started = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind(address).await.expect("the port is free again");
            let node = Node::start(options, engine, writer).await.ok()?;
            let control = Control::start(node.clone());
            spawn(testing::serve(listener, node.clone()));
            Some((node, control))
        });
        machine.life = Some(Life { runtime, disk, started });
    }

    /// From now on, the node's disk takes so many writes more.
    fn limit(&self, id: u64, writes: u64) {
        let disk = &self.life(id).expect("it runs").disk;
        let left = disk.left.write();
        // One that has died stays dead: its node must be started again.
        if left.load(Ordering::Relaxed) > 0 {
            left.store(writes, Ordering::Relaxed);
        }
    }

    /// Drops a table and waits until it is gone.
    fn drop_table(&self, name: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.ask(3, async |control| control.drop_table(name, false).await).is_err() {
            assert!(Instant::now() < deadline, "the table stays");
        }
    }

    /// Ends a node as kill -9 does, and the power with it: what was not synced is gone.
    fn crash(&mut self, id: u64) {
        let machine = self.machines.get_mut(&NodeId(id)).expect("a node");
        let Some(life) = machine.life.take() else { return };
        life.disk.cut_off();
        drop(life.started);
        life.runtime.shutdown_timeout(PATIENCE);
        machine.memory.crash();
    }

    /// Replaces the disk of a node that does not run by an empty one.
    fn wipe(&mut self, id: u64) {
        self.crash(id);
        self.machines.get_mut(&NodeId(id)).expect("a node").memory = Memory::new().expect("a directory");
    }

    /// Crashes and restarts a node whose disk has died.
    fn mind(&mut self, id: u64) -> bool {
        let dead = self.life(id).is_some_and(|life| life.disk.is_dead());
        if dead {
            self.crash(id);
            self.start(id, NO_END);
        }
        dead
    }

    fn life(&self, id: u64) -> Option<&Life> {
        self.machines[&NodeId(id)].life.as_ref()
    }

    fn node(&self, id: u64) -> &Arc<Node> {
        let started = self.life(id).and_then(|life| life.started.as_ref());
        &started.expect("the node runs").0
    }

    /// Has the control of a node do something.
    fn ask<T>(&self, id: u64, question: impl AsyncFnOnce(&Control) -> T) -> T {
        let life = self.life(id).expect("the node runs");
        let (_, control) = life.started.as_ref().expect("it got that far");
        life.runtime.block_on(question(control))
    }

    /// Waits until all are healthy, by what node 3 says, restarting the `victim` when its disk dies.
    fn settle(&mut self, victim: u64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.mind(victim);
            let revision = self.node(3).directory().revision();
            let status = self.ask(3, async |control| control.status().await);
            if status.healthy && status.nodes.len() == self.machines.len() {
                // By a catalog that may be older than what another node was just told: only as of now it counts.
                let newest = self.ask(3, async |control| control.node.newest_revision().await);
                if newest.as_ref().is_ok_and(|newest| revision >= *newest) {
                    return;
                }
            }
            assert!(Instant::now() < deadline, "not healthy: {:?}", status.problems);
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Creates a hash table, however often the victim's disk dies meanwhile. The wish comes by node 3.
    fn create(&mut self, victim: u64, name: &str, shards: u32) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let wish = NewTable::hash(name, shards);
            match self.ask(3, async |control| control.create_table(wish).await.map(|_| ())) {
                Ok(()) => return,
                Err(error) if error.reason == Reason::TableExists => return,
                Err(error) => assert!(Instant::now() < deadline, "no table: {error}"),
            }
            self.mind(victim);
        }
    }

    fn execute(&self, id: u64, request: Request) -> Result<Response> {
        self.execute_at(id, request, None)
    }

    /// The same for one who says which table it means.
    fn execute_at(&self, id: u64, request: Request, table: Option<TableId>) -> Result<Response> {
        let life = self.life(id).expect("the node runs");
        let node = self.node(id);
        let context = Context { deadline: node.clock().now() + Duration::from_secs(3), forwarded: true, table };
        life.runtime.block_on(node.execute("t", request, context))
    }

    /// Writes a key and reads it back at the node that leads its shard (nodes cannot forward here: no data port is
    /// served); asks again, as a client does, when another leads it meanwhile.
    fn write_and_read(&self, key: &'static str) -> Result<()> {
        let value = Bytes::from_static(b"v");
        let put = Action::Put { value: value.clone(), ttl_ms: None };
        let issued_ms = self.node(3).clock().wall_ms();
        let request = RequestId { client: crate::runtime::random_u64(), sequence: 1, issued_ms };
        let operations = vec![Operation { key: key.into(), action: put }];
        let write = Write { request: Some(request), conditions: vec![], operations };
        let read = Read { keys: vec![key.into()], level: ReadLevel::Linearizable, any_replica: false };
        let stray = Write { request: None, ..write.clone() };
        self.ask_leader(key, &Request::Write(write))?;
        let Response::Values(values) = self.ask_leader(key, &Request::Read(read))? else {
            panic!("a read is answered")
        };
        assert_eq!(values[0].body.as_ref().map(|found| &found.value), Some(&value));
        // Whoever means another table than the one that has the name is told so, and nothing is done.
        if let Some(leader) = self.leader_now(self.shard_of(key).id) {
            let refused = self.execute_at(leader, Request::Write(stray), Some(TableId(9_999)));
            assert_eq!(refused.err().map(|error| error.reason), Some(Reason::ShardNotHere));
        }
        Ok(())
    }

    /// All that was done is done again at a restart of a node, and changes nothing.
    fn restart_changes_nothing(&mut self, id: u64) {
        let before = replicas_on(self, id);
        self.crash(id);
        self.start(id, NO_END);
        self.settle(id);
        assert_eq!(replicas_on(self, id), before);
        self.assert_equal();
    }

    /// Writes and reads all of these.
    fn serves(&self, keys: &[&'static str]) {
        for key in keys {
            self.write_and_read(key).expect("it serves");
        }
    }

    fn ask_leader(&self, key: &'static str, request: &Request) -> Result<Response> {
        // What a client asks again after: a node may know neither the leader nor the shards as they are now.
        let again = [Reason::NotLeader, Reason::NoQuorum, Reason::WrongEpoch, Reason::ShardNotHere];
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Its shard may not be the same any more.
            let leader = self.leader_now(self.shard_of(key).id);
            let Some(leader) = leader else {
                assert!(Instant::now() < deadline, "nobody leads the shard of {key}");
                std::thread::sleep(LOOK_EVERY);
                continue;
            };
            match self.execute(leader, request.clone()) {
                Err(error) if again.contains(&error.reason) && Instant::now() < deadline => {
                    std::thread::sleep(LOOK_EVERY);
                }
                answer => return answer,
            }
        }
    }

    fn shards(&self) -> Vec<Arc<ShardDescriptor>> {
        let directory = self.node(3).directory();
        directory.table_by_name("t").expect("the table").shards.iter().cloned().collect()
    }

    fn shard_of(&self, key: &str) -> Arc<ShardDescriptor> {
        let directory = self.node(3).directory();
        let table = directory.table_by_name("t").expect("the table");
        table.shards.locate(&table.layout.encode(&Bytes::copy_from_slice(key.as_bytes()))).clone()
    }

    fn leader_now(&self, shard: ShardId) -> Option<u64> {
        let leads = |id: &u64| {
            let started = self.life(*id).and_then(|life| life.started.as_ref());
            started.is_some_and(|(node, _)| node.replicas().get(shard).is_some_and(|replica| replica.is_leader()))
        };
        self.machines.keys().map(|node| node.0).find(|id| leads(id))
    }

    fn leader_of(&self, shard: ShardId) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(id) = self.leader_now(shard) {
                return id;
            }
            assert!(Instant::now() < deadline, "{shard} has no leader");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Every replica of every shard holds the same.
    fn assert_equal(&self) {
        for shard in self.shards() {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let report = self.ask(3, async |control| control.checksum(shard.id).await);
                if report.as_ref().is_ok_and(|report| report.equal && report.replicas.len() == 3) {
                    break;
                }
                assert!(Instant::now() < deadline, "{report:?}");
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }
}

impl Drop for House {
    fn drop(&mut self) {
        for id in self.machines.keys().copied().collect::<Vec<_>>() {
            self.crash(id.0);
        }
    }
}

fn replicas_on(house: &House, node: u64) -> Vec<ReplicaId> {
    let on_node = |shard: &Arc<ShardDescriptor>| shard.replica_on(NodeId(node)).map(|replica| replica.id);
    house.shards().iter().filter_map(on_node).collect()
}

#[test]
fn a_crash_while_a_cluster_is_founded_and_a_table_made_only_delays_them() {
    // The founder and one who joins, in turn; close together at first, where the steps are.
    for (round, writes) in [0, 1, 2, 3, 4, 5, 7, 9, 12, 16, 22, 30].into_iter().enumerate() {
        let victim = 1 + round as u64 % 2;
        let mut house = House::new();
        for id in 1..=3 {
            house.start(id, if id == victim { writes } else { NO_END });
        }
        house.settle(victim);
        house.create(victim, "t", 2);
        house.settle(victim);
        let clusters: Vec<_> = (1..=3).map(|id| house.node(id).try_identity().expect("a member").cluster).collect();
        assert!(clusters.iter().all(|cluster| *cluster == clusters[0]), "one cluster, not {clusters:?}");
        house.write_and_read("k").expect("it serves");
        house.assert_equal();
        // All that was done is done again at a restart, and changes nothing.
        let before = replicas_on(&house, victim);
        house.crash(victim);
        house.start(victim, NO_END);
        house.settle(victim);
        assert_eq!(replicas_on(&house, victim), before, "{writes} writes");
    }
}

#[test]
fn a_crash_while_a_wiped_node_gets_new_replicas_only_delays_them() {
    let mut house = House::founded();
    house.create(2, "t", 2);
    house.settle(2);
    for writes in [0, 1, 2, 4, 7, 11, 17] {
        house.write_and_read("k").expect("it serves");
        let before = replicas_on(&house, 2);
        house.wipe(2);
        house.start(2, writes);
        house.settle(2);
        let deadline = Instant::now() + PATIENCE;
        while replicas_on(&house, 2).iter().any(|replica| before.contains(replica)) {
            assert!(Instant::now() < deadline, "the replicas of the lost disk are still wanted");
            house.mind(2);
            std::thread::sleep(LOOK_EVERY);
        }
        house.settle(2);
        house.assert_equal();
    }
}

#[test]
fn a_crash_while_a_shard_is_split_only_delays_it() {
    let mut house = House::founded();
    // Every step of every node is hit by one of these: the node that leads, and one that follows.
    for (round, writes) in [0, 1, 2, 3, 4, 6, 8, 11].into_iter().enumerate() {
        if round > 0 {
            house.drop_table("t");
        }
        house.create(1, "t", 1);
        house.settle(1);
        let parent = house.shards()[0].id;
        house.serves(&["a", "b", "c", "d"]);
        let leader = house.leader_of(parent);
        let victim = if round % 2 == 0 { leader } else { leader % 3 + 1 };
        let asked = victim % 3 + 1;
        house.limit(victim, writes);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let half = SplitPoint::Slot(Slot(0x8000));
            match house.ask(asked, async |control| control.split_shard(parent, half, false).await) {
                Ok(SplitReport { left, right }) => {
                    assert_eq!((left.id, &left.end, left.epoch), (parent, &right.start, right.epoch));
                    break;
                }
                Err(error) => assert!(Instant::now() < deadline, "not split: {error}"),
            }
            house.mind(victim);
        }
        house.limit(victim, NO_END);
        house.settle(victim);
        assert_eq!(house.shards().len(), 2, "{writes} writes");
        house.serves(&["a", "b", "c", "d", "e", "f", "g", "h"]);
        house.assert_equal();
        house.restart_changes_nothing(victim);
    }
}

#[test]
fn a_wiped_node_gets_both_parts_of_a_shard_that_is_split_meanwhile() {
    let mut house = House::founded();
    house.create(1, "t", 1);
    house.settle(1);
    let parent = house.shards()[0].id;
    house.serves(&["a", "b", "c", "d"]);
    let victim = if house.leader_of(parent) == 1 { 2 } else { 1 };
    house.crash(victim);
    let report = house.ask(3, async |control| control.split_shard(parent, SplitPoint::Middle, false).await);
    let SplitReport { right, .. } = report.expect("two of three split it");
    house.write_and_read("e").expect("both parts serve");
    house.wipe(victim);
    house.start(victim, NO_END);
    house.settle(victim);
    house.assert_equal();
    // And parts are split again, by one who was not there.
    let report = house.ask(victim, async |control| control.split_shard(right.id, SplitPoint::Middle, false).await);
    report.expect("the newcomer has it split");
    house.settle(victim);
    assert_eq!(house.shards().len(), 3);
    house.assert_equal();
}

#[test]
fn a_split_that_makes_no_sense_is_refused_and_changes_nothing() {
    let mut house = House::founded();
    house.create(1, "t", 2);
    house.settle(1);
    let shards = house.shards();
    let refused = |shard: ShardId, at: SplitPoint, dry_run: bool| {
        let report = house.ask(2, async |control| control.split_shard(shard, at, dry_run).await);
        report.expect_err("refused").reason
    };
    for dry_run in [true, false] {
        assert_eq!(refused(ShardId(99), SplitPoint::Middle, dry_run), Reason::UnknownShard);
        assert_eq!(refused(ShardId::SYSTEM, SplitPoint::Key("node/".into()), dry_run), Reason::InvalidRequest);
        assert_eq!(refused(shards[0].id, SplitPoint::Slot(Slot(0)), dry_run), Reason::InvalidRequest);
        assert_eq!(refused(shards[0].id, SplitPoint::Slot(Slot(0x9000)), dry_run), Reason::InvalidRequest);
        assert_eq!(refused(shards[0].id, SplitPoint::Slot(Slot(0x8000)), dry_run), Reason::InvalidRequest, "its end");
        assert_eq!(refused(shards[0].id, SplitPoint::Middle, dry_run), Reason::InvalidRequest, "it is empty");
    }
    let report =
        house.ask(2, async |control| control.split_shard(shards[0].id, SplitPoint::Slot(Slot(0x4000)), true).await);
    assert_eq!(report.expect("possible").left.epoch.0, 2);
    assert_eq!(house.shards(), shards);
}

/// A node that is cut off may know a table that was dropped since, while another one has the name.
#[test]
fn a_table_is_not_described_by_who_cannot_ask_whether_it_still_has_the_name() {
    let mut house = House::founded();
    house.create(1, "t", 1);
    house.settle(1);
    let describe = |house: &House| house.ask(3, async |control| control.describe_table("t").await);
    assert!(describe(&house).is_ok());
    house.crash(1);
    house.crash(2);
    let refused = describe(&house).expect_err("nobody says what is newest").reason;
    assert!(matches!(refused, Reason::NoQuorum | Reason::NotReady | Reason::NotLeader), "{refused:?}");
    assert_eq!(house.shards().len(), 1, "though it knows one of the name");
    house.start(1, NO_END);
    house.start(2, NO_END);
    house.settle(1);
    assert!(describe(&house).is_ok());
}

#[test]
fn a_newcomers_question_is_passed_on_once() {
    let house = House::founded();
    let leader = house.leader_of(ShardId::SYSTEM);
    let follower = leader % 3 + 1;
    // Both ways at each node: as it comes from the newcomer, and as it comes from a member that took this one for the
    // leader. The latter must end here: two members that take each other for the leader would ask on and on, and one
    // that takes itself for it, between two elections, would do so in one breath until its stack ends.
    let join = |id: u64, passed_on: bool| {
        let row = house.node(follower).row();
        let body = ask::encode(&JoinAsk { cluster: None, row, passed_on });
        house.ask(id, async |control| control.answer(ask::JOIN, body).await)
    };
    assert!(matches!(ask::decode(&join(follower, false).expect("passed on")), Ok(JoinAnswer::Member { .. })));
    assert!(matches!(ask::decode(&join(leader, true).expect("it leads")), Ok(JoinAnswer::Member { .. })));
    let refused = join(follower, true).expect_err("it does not lead");
    assert_eq!((refused.reason, refused.leader), (Reason::NotLeader, Some(NodeId(leader))));
}

#[test]
fn a_shard_whose_first_founder_is_wiped_before_it_was_founded_is_founded_by_the_others() {
    let mut house = House::founded();
    house.crash(2);
    // As it is when the node dies in the moment in which it is chosen.
    let new = change::NewTable {
        name: "t".to_owned(),
        partitioning: Partitioning::Hash,
        shards: 3,
        split_points: Vec::new(),
        replication: 3,
        read_replicas: 0,
        read_replica_zone: None,
        history_ms: 0,
        view: None,
    };
    let nodes = [2, 1, 3].map(NodeId).to_vec();
    let build = |directory: &Directory| {
        let placed = |shards: &[ShardId]| Ok(shards.iter().map(|_| nodes.clone()).collect());
        change::create_table(directory, &new, placed).map(|creation| Some(((), creation.write)))
    };
    let deadline = Instant::now() + PATIENCE;
    while ![1, 3].iter().any(|&id| house.ask(id, async |control| control.change(build).await).is_ok()) {
        assert!(Instant::now() < deadline, "the table is not created");
        std::thread::sleep(LOOK_EVERY);
    }
    house.wipe(2);
    house.start(2, NO_END);
    house.settle(2);
    let replaced = |shard: &Arc<ShardDescriptor>| shard.replicas.iter().all(|replica| replica.id != shard.founders[0]);
    assert!(house.shards().iter().all(replaced), "the lost replicas were to found the shards");
    for key in ["a", "b", "c", "d", "e", "f", "g"] {
        house.write_and_read(key).expect("every shard serves");
    }
    house.assert_equal();
}

#[test]
fn a_table_created_while_a_node_is_away_has_its_copies_when_the_node_is_back() {
    let mut house = House::founded();
    house.crash(2);
    let deadline = Instant::now() + PATIENCE;
    while [1, 3].iter().any(|&id| house.node(id).hears(NodeId(2))) {
        assert!(Instant::now() < deadline, "it is not missed");
        std::thread::sleep(LOOK_EVERY);
    }
    house.create(2, "t", 4);
    for shard in house.shards() {
        assert_eq!(shard.replicas.len(), 3, "{shard:?}");
        assert_ne!(shard.replicas[0].node, NodeId(2), "whoever is to found it is there");
    }
    house.write_and_read("before").expect("two of three serve");
    house.start(2, NO_END);
    house.settle(2);
    house.write_and_read("after").expect("all serve");
    house.assert_equal();
}

#[test]
fn a_node_with_little_room_leads_nothing_and_with_no_room_anywhere_writes_are_refused() {
    let mut house = House::founded();
    house.create(1, "t", 3);
    house.settle(1);
    let set_free = |house: &House, id: u64, mib: u64| house.machines[&NodeId(id)].memory.set_free_bytes(mib << 20);
    let until = |house: &House, what: &str, so: &dyn Fn(&House) -> bool| {
        let deadline = Instant::now() + PATIENCE;
        while !so(house) {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(LOOK_EVERY);
        }
    };
    let leads =
        |house: &House, id: u64| house.node(id).replicas().all().iter().filter(|shard| shard.is_leader()).count();

    set_free(&house, 1, 200);
    until(&house, "node 1 yields", &|house| leads(house, 1) == 0 && leads(house, 2) + leads(house, 3) == 4);
    assert_eq!(house.node(1).check_room().expect_err("too little").reason, Reason::DiskFull);
    house.write_and_read("k").expect("the others serve");

    for id in [2, 3] {
        set_free(&house, id, 100);
        until(&house, "it is noticed", &|house| house.node(id).check_room().is_err());
    }
    let refused = house.write_and_read("k").expect_err("no room anywhere");
    assert_eq!(refused.reason, Reason::DiskFull, "{refused}");
    let read = Read { keys: vec!["k".into()], level: ReadLevel::Linearizable, any_replica: false };
    house.execute(house.leader_of(house.shard_of("k").id), Request::Read(read)).expect("reads go on");
    let status = house.ask(3, async |control| control.status().await);
    assert_eq!(status.problems.iter().filter(|problem| problem.contains("disk is nearly full")).count(), 3);

    for id in 1..=3 {
        set_free(&house, id, 10_000);
    }
    house.settle(1);
    until(&house, "writes go on", &|house| house.write_and_read("k").is_ok());
}
