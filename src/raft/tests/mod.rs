//! Groups in one process: a machine that remembers what it applied, an engine whose disk can stall and die, a network
//! that can be cut.

mod birth;
mod hazards;
mod load;
mod log;
mod members;
mod recovery;
mod snapshots;
mod suite;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::{
    Cut, Cutter, Entry, Group, Kind, LogBounds, Machine, Options, Outgoing, Staged, Status, Timers, Transport,
    TransportError,
};
use crate::keyspace::{side, version};
use crate::runtime::{self, Clock, random_u64};
use crate::storage::{
    self, Batch, Change, Cursor, Engine, Family, Horizons, LogWriter, Lookup, Memory, Ranges, Reader, Rocks,
    TableWriter, Tier,
};
use crate::types::{NodeId, Outcome, Outcomes, ReplicaId, ShardId, Timestamp};
use crate::wire::proto::internal::{SnapshotHeader, Vote};

const SHARD: ShardId = ShardId(5);
/// Long enough for a machine that seven others share.
const PATIENCE: Duration = Duration::from_secs(30);

fn timers() -> Timers {
    Timers {
        heartbeat: Duration::from_millis(50),
        election_min: Duration::from_millis(250),
        election_max: Duration::from_millis(500),
    }
}

/// Waits until something is so.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let mut waited = Duration::ZERO;
    const STEP: Duration = Duration::from_millis(5);
    while !so() {
        assert!(waited < PATIENCE, "still waiting: {what}");
        runtime::sleep(STEP).await;
        waited += STEP;
    }
}

fn prefix(shard: ShardId) -> Bytes {
    [&7u32.to_be_bytes()[..], &shard.0.to_be_bytes()].concat().into()
}

fn ranges(shard: ShardId) -> Ranges {
    let start = prefix(shard);
    let end = prefix(ShardId(shard.0 + 1));
    let applied = side::applied(shard);
    let after = [&applied[..], &[0]].concat();
    vec![(start, end), (applied, after.into())]
}

fn collect(reader: &dyn Reader, range: &(Bytes, Bytes)) -> Vec<(Bytes, Bytes)> {
    let mut cursor = reader.cursor(Family::Data, &range.0, &range.1);
    let mut all = Vec::new();
    cursor.seek_first();
    while let Some((key, value)) = cursor.entry() {
        all.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        cursor.next();
    }
    cursor.status().expect("tests read what they wrote");
    all
}

/// What a replica's machine has applied: payloads by log index.
fn content(reader: &dyn Reader, shard: ShardId) -> BTreeMap<u64, Bytes> {
    (collect(reader, &ranges(shard)[0]).into_iter())
        .map(|(key, value)| (version::split(&key).expect("a version").1.0 - 1, value))
        .collect()
}

fn stored_mark(reader: &dyn Reader, shard: ShardId) -> Option<Bytes> {
    match reader.get(Family::Data, &side::applied(shard), Tier::Disk).expect("tests read what they wrote") {
        Lookup::Found(mark) => Some(mark),
        Lookup::Missing | Lookup::NeedsDisk => None,
    }
}

/// What a test machine says of its cuts.
const SUMMARY: &[u8] = b"a test machine";

/// Keeps every payload under its index and answers with the index.
struct TestMachine {
    shard: ShardId,
    engine: Arc<dyn Engine>,
    mark: Option<Bytes>,
    last: Option<u64>,
}

impl TestMachine {
    fn open(shard: ShardId, engine: Arc<dyn Engine>) -> TestMachine {
        let mark = stored_mark(&*engine, shard);
        TestMachine { shard, engine, mark, last: None }
    }
}

impl Machine for TestMachine {
    fn mark(&self) -> Option<Bytes> {
        self.mark.clone()
    }

    fn apply(&mut self, entries: Vec<Entry>, mark: Bytes) -> storage::Result<Vec<Outcomes>> {
        let mut batch = Batch::new();
        let mut outcomes = Vec::new();
        for entry in entries {
            if let Some(last) = self.last.replace(entry.index) {
                assert!(entry.index > last, "entry {} was applied after {last}", entry.index);
            }
            outcomes.push(match entry.payload {
                None => Vec::new(),
                Some(payload) => {
                    let timestamp = Timestamp(entry.index + 1);
                    batch.put(Family::Data, version::key(&prefix(self.shard), timestamp), payload);
                    vec![Ok(Outcome { applied: true, timestamp, ..Outcome::default() })]
                }
            });
        }
        batch.put(Family::Data, side::applied(self.shard), mark.clone());
        self.engine.write(batch)?;
        self.mark = Some(mark);
        Ok(outcomes)
    }

    fn cutter(&self) -> Arc<dyn Cutter> {
        Arc::new(TestCutter { shard: self.shard, engine: self.engine.clone() })
    }

    fn install(&mut self, name: &str, _: &Bytes, files: Vec<PathBuf>) -> storage::Result<()> {
        self.engine.install(name, &ranges(self.shard), &files)?;
        self.mark = stored_mark(&*self.engine, self.shard);
        self.last = None;
        Ok(())
    }
}

struct TestCutter {
    shard: ShardId,
    engine: Arc<dyn Engine>,
}

impl Cutter for TestCutter {
    fn mark(&self) -> storage::Result<Option<Bytes>> {
        Ok(stored_mark(&*self.engine, self.shard))
    }

    fn may_install(&self, summary: &Bytes) -> storage::Result<Result<(), String>> {
        Ok(if summary == SUMMARY { Ok(()) } else { Err("it is another machine's".to_owned()) })
    }

    fn cut(&self, directory: &Path) -> storage::Result<Box<dyn Cut>> {
        let reader = self.engine.snapshot();
        let mark = stored_mark(&*reader, self.shard).expect("only what was applied is cut");
        let engine = self.engine.clone();
        Ok(Box::new(TestCut { shard: self.shard, engine, reader, mark, directory: directory.to_owned(), files: 0 }))
    }
}

/// Two files: the payloads, if there are any, and the mark.
struct TestCut {
    shard: ShardId,
    engine: Arc<dyn Engine>,
    reader: Arc<dyn Reader>,
    mark: Bytes,
    directory: PathBuf,
    files: usize,
}

impl Cut for TestCut {
    fn mark(&self) -> &Bytes {
        &self.mark
    }

    fn summary(&self) -> Bytes {
        Bytes::from_static(SUMMARY)
    }

    fn next_file(&mut self) -> storage::Result<Option<PathBuf>> {
        while let Some(range) = ranges(self.shard).get(self.files) {
            self.files += 1;
            let entries = collect(&*self.reader, range);
            if !entries.is_empty() {
                let path = self.directory.join(format!("{}.sst", self.files));
                let mut writer = self.engine.table_writer(&path)?;
                entries.iter().try_for_each(|(key, value)| writer.add(key, value))?;
                writer.finish()?;
                return Ok(Some(path));
            }
        }
        Ok(None)
    }
}

#[derive(Default)]
struct Disk {
    /// Writes to the log family wait.
    log_writes_stall: bool,
    /// Syncs wait.
    syncs_stall: bool,
    /// Nothing reaches the disk any more.
    dead: bool,
}

/// An engine whose disk can be made to stall or die.
struct Stall {
    base: Arc<dyn Engine>,
    disk: Mutex<Disk>,
    changed: Condvar,
}

impl Stall {
    fn new(base: Arc<dyn Engine>) -> Arc<Stall> {
        Arc::new(Stall { base, disk: Mutex::default(), changed: Condvar::new() })
    }

    fn set(&self, change: impl FnOnce(&mut Disk)) {
        change(&mut self.disk.lock());
        self.changed.notify_all();
    }

    fn pass(&self, stalled: impl Fn(&Disk) -> bool) -> storage::Result<()> {
        let mut disk = self.disk.lock();
        while stalled(&disk) && !disk.dead {
            self.changed.wait(&mut disk);
        }
        if disk.dead { Err(storage::Error::Stopped) } else { Ok(()) }
    }
}

impl Reader for Stall {
    fn get(&self, family: Family, key: &[u8], tier: Tier) -> storage::Result<Lookup<Bytes>> {
        self.base.get(family, key, tier)
    }

    fn first_version(&self, prefix: &[u8], from: &[u8], tier: Tier) -> storage::Result<Lookup<(Bytes, Bytes)>> {
        self.base.first_version(prefix, from, tier)
    }

    fn cursor<'a>(&'a self, family: Family, start: &[u8], end: &[u8]) -> Box<dyn Cursor + 'a> {
        self.base.cursor(family, start, end)
    }
}

impl Engine for Stall {
    fn write(&self, batch: Batch) -> storage::Result<()> {
        let log = batch.changes.iter().any(|change| match change {
            Change::Put(family, ..) | Change::Delete(family, ..) | Change::DeleteRange(family, ..) => {
                *family == Family::Log
            }
        });
        self.pass(|disk| disk.log_writes_stall && log)?;
        self.base.write(batch)
    }

    fn sync(&self) -> storage::Result<()> {
        self.pass(|disk| disk.syncs_stall)?;
        self.base.sync()
    }

    fn snapshot(&self) -> Arc<dyn Reader> {
        self.base.snapshot()
    }

    fn table_writer(&self, path: &Path) -> storage::Result<Box<dyn TableWriter>> {
        self.base.table_writer(path)
    }

    fn install(&self, name: &str, ranges: &Ranges, files: &[PathBuf]) -> storage::Result<()> {
        self.base.install(name, ranges, files)
    }

    fn horizons(&self) -> &Horizons {
        self.base.horizons()
    }

    fn staging(&self) -> PathBuf {
        self.base.staging()
    }

    fn compact(&self, start: &[u8], end: &[u8]) -> storage::Result<()> {
        self.base.compact(start, end)
    }

    fn free_bytes(&self) -> storage::Result<u64> {
        self.base.free_bytes()
    }

    fn bytes_in(&self, start: &[u8], end: &[u8]) -> storage::Result<u64> {
        self.base.bytes_in(start, end)
    }

    fn gauges(&self) -> Vec<(&'static str, f64)> {
        self.base.gauges()
    }
}

/// A log writer whose failures end with the test's engine, not with the process.
fn writer(engine: Arc<dyn Engine>) -> LogWriter {
    LogWriter::start_with(engine, Arc::new(|_| {})).expect("a thread can be started")
}

#[derive(Default)]
struct Faults {
    /// Links that refuse.
    cut: HashSet<(NodeId, NodeId)>,
    /// Links that swallow.
    swallow: HashSet<(NodeId, NodeId)>,
    swallowed: Vec<oneshot::Sender<Result<Bytes, TransportError>>>,
    /// Nodes whose answers to appends wait where they arrive.
    hold: HashSet<NodeId>,
    held: Vec<Held>,
}

/// An answer that has arrived and was not looked at yet.
struct Held {
    from: NodeId,
    answer: Result<Bytes, TransportError>,
    sender: oneshot::Sender<Result<Bytes, TransportError>>,
}

/// Connects the groups of one process.
#[derive(Default)]
struct Net {
    groups: Mutex<HashMap<NodeId, (Group, PathBuf)>>,
    faults: Mutex<Faults>,
    snapshots: AtomicU64,
    /// The next snapshot's sender gives up as soon as it is being installed.
    gives_up: AtomicBool,
    conflicts: AtomicU64,
}

impl Net {
    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.faults.lock().cut.contains(&(from, to))
    }

    /// Cuts a node off from the others.
    fn isolate(&self, node: NodeId, others: impl IntoIterator<Item = NodeId>) {
        let mut faults = self.faults.lock();
        for other in others {
            faults.cut.extend([(node, other), (other, node)]);
        }
    }

    fn heal(&self) {
        *self.faults.lock() = Faults::default();
    }

    /// Lets the answers of one node that were held go on.
    fn release(&self, node: NodeId) {
        let mut faults = self.faults.lock();
        let (released, held) = std::mem::take(&mut faults.held).into_iter().partition(|held| held.from == node);
        faults.held = held;
        for Held { answer, sender, .. } in released {
            let _ = sender.send(answer);
        }
    }
}

struct Link {
    net: Arc<Net>,
    me: NodeId,
}

impl Transport for Link {
    fn send(&self, to: NodeId, frame: Outgoing) -> oneshot::Receiver<Result<Bytes, TransportError>> {
        let (sender, receiver) = oneshot::channel();
        let (net, me) = (self.net.clone(), self.me);
        let unreachable = || Err(TransportError::Unreachable("the link is cut".to_owned()));
        {
            let mut faults = net.faults.lock();
            if faults.swallow.contains(&(me, to)) {
                faults.swallowed.push(sender);
                return receiver;
            }
            if faults.cut.contains(&(me, to)) {
                let _ = sender.send(unreachable());
                return receiver;
            }
        }
        let Some(group) = net.groups.lock().get(&to).map(|(group, _)| group.clone()) else {
            let _ = sender.send(unreachable());
            return receiver;
        };
        let (answer, answered) = oneshot::channel();
        let kind = frame.kind;
        group.receive(frame.from, frame.to, frame.kind, frame.payload, answer);
        runtime::spawn(async move {
            let Ok(answer) = answered.await else { return };
            if kind == Kind::Append && answer.as_ref().is_ok_and(is_conflict) {
                net.conflicts.fetch_add(1, Ordering::Relaxed);
            }
            // An answer on a link that was cut meanwhile is lost: its sender is dropped.
            if !net.is_cut(to, me) {
                let answer = answer.map_err(TransportError::Refused);
                let mut faults = net.faults.lock();
                if kind == Kind::Append && faults.hold.contains(&to) {
                    faults.held.push(Held { from: to, answer, sender });
                } else {
                    let _ = sender.send(answer);
                }
            }
        });
        receiver
    }

    fn send_snapshot(
        &self,
        to: NodeId,
        header: SnapshotHeader,
        mut cut: Box<dyn Cut>,
    ) -> BoxFuture<'static, Result<Vote, TransportError>> {
        let (net, me) = (self.net.clone(), self.me);
        Box::pin(async move {
            let target = net.groups.lock().get(&to).cloned();
            let unreachable = || TransportError::Unreachable("the link is cut".to_owned());
            let Some((group, staging)) = target.filter(|_| !net.is_cut(me, to)) else { return Err(unreachable()) };
            let directory = staging.join(format!("in-{:x}", random_u64()));
            let staged = runtime::spawn_blocking(move || {
                let mut staged = Staged::create(directory).expect("a directory can be made");
                while let Some(from) = cut.next_file().expect("the cut can be written") {
                    let file = staged.directory().join(format!("{}", staged.files().len()));
                    std::fs::rename(&from, &file).or_else(|_| std::fs::copy(&from, &file).map(|_| ())).expect("copied");
                    let _ = std::fs::remove_file(&from);
                    staged.push(file);
                }
                staged
            })
            .await
            .expect("no panic");
            net.snapshots.fetch_add(1, Ordering::Relaxed);
            let mut receiving = Box::pin(group.receive_snapshot(header, staged));
            if net.gives_up.swap(false, Ordering::Relaxed) {
                // The installation has been asked for when the call breaks off.
                let asked = futures::poll!(&mut receiving);
                assert!(asked.is_pending(), "an installation takes a while");
                return Err(unreachable());
            }
            receiving.await.map_err(|error| TransportError::Refused(error.to_string()))
        })
    }
}

fn is_conflict(payload: &Bytes) -> bool {
    use prost::Message;

    use crate::wire::proto::internal::{AppendResponse, append_response::Outcome};
    matches!(AppendResponse::decode(payload.clone()), Ok(AppendResponse { outcome: Some(Outcome::Conflict(_)) }))
}

/// Which engine is under a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Memory,
    Rocks,
}

enum Base {
    Memory(Arc<Memory>),
    Rocks { store: Arc<Rocks>, _directory: tempfile::TempDir },
}

impl Base {
    fn new(on: On) -> Base {
        match on {
            On::Memory => Base::Memory(Memory::new().expect("a twin")),
            On::Rocks => {
                let directory = tempfile::tempdir().expect("a directory");
                let options = storage::Options::new(directory.path().join("store"));
                Base::Rocks { store: Rocks::open(&options).expect("a new store"), _directory: directory }
            }
        }
    }

    fn engine(&self) -> Arc<dyn Engine> {
        match self {
            Base::Memory(memory) => memory.clone(),
            Base::Rocks { store, .. } => store.clone(),
        }
    }
}

/// One node with one replica.
struct Host {
    node: NodeId,
    replica: ReplicaId,
    base: Base,
    stall: Arc<Stall>,
    writer: LogWriter,
    group: Group,
}

impl Host {
    fn content(&self) -> BTreeMap<u64, Bytes> {
        content(&*self.base.engine(), SHARD)
    }

    fn status(&self) -> Status {
        self.group.status()
    }
}

/// Several nodes, one group.
struct Cluster {
    net: Arc<Net>,
    bounds: LogBounds,
    hosts: Vec<Host>,
}

impl Cluster {
    /// A founded group of `voters`, replica 10n on node n, and further replicas that are no members yet.
    async fn new(on: On, voters: u64, further: u64, bounds: LogBounds) -> Cluster {
        let mut cluster = Cluster { net: Arc::default(), bounds, hosts: Vec::new() };
        for node in 1..=voters + further {
            cluster.add(on, NodeId(node), ReplicaId(10 * node)).await;
        }
        let members = (1..=voters).map(|node| (ReplicaId(10 * node), NodeId(node))).collect();
        cluster.hosts[0].group.found(members).await.expect("a new group");
        cluster.leader().await;
        cluster
    }

    async fn three() -> Cluster {
        Cluster::new(On::Memory, 3, 0, LogBounds::default()).await
    }

    async fn add(&mut self, on: On, node: NodeId, replica: ReplicaId) {
        let base = Base::new(on);
        let (stall, writer, group) = self.start(node, replica, &base).await;
        self.hosts.push(Host { node, replica, base, stall, writer, group });
    }

    async fn start(&self, node: NodeId, replica: ReplicaId, base: &Base) -> (Arc<Stall>, LogWriter, Group) {
        self.start_with(node, replica, base, false).await
    }

    /// As [`Cluster::start`]; `late` replicas begin with a snapshot.
    async fn start_with(
        &self,
        node: NodeId,
        replica: ReplicaId,
        base: &Base,
        late: bool,
    ) -> (Arc<Stall>, LogWriter, Group) {
        let stall = Stall::new(base.engine());
        let engine: Arc<dyn Engine> = stall.clone();
        let writer = writer(engine.clone());
        let machine = Box::new(TestMachine::open(SHARD, engine.clone()));
        let options = Options {
            timers: timers(),
            log: self.bounds,
            begins_with_snapshot: late,
            ..Options::new(SHARD, replica, node)
        };
        let transport = Arc::new(Link { net: self.net.clone(), me: node });
        let group = Group::start(options, engine, writer.clone(), machine, transport, Clock::system())
            .await
            .expect("the replica starts");
        self.net.groups.lock().insert(node, (group.clone(), base.engine().staging()));
        (stall, writer, group)
    }

    /// Ends a replica as a crash does: what its writer held is gone, and so is what was not synced, if `unsynced` says so.
    async fn crash(&mut self, at: usize, unsynced: bool) {
        let host = &self.hosts[at];
        self.net.groups.lock().remove(&host.node);
        host.stall.set(|disk| disk.dead = true);
        if let (Base::Memory(memory), true) = (&host.base, unsynced) {
            memory.crash();
        }
        host.group.stop().await;
        host.writer.stop();
    }

    /// Starts a replica again on what it left.
    async fn restart(&mut self, at: usize) {
        let (node, replica) = (self.hosts[at].node, self.hosts[at].replica);
        let (stall, writer, group) = self.start(node, replica, &self.hosts[at].base).await;
        let host = &mut self.hosts[at];
        (host.stall, host.writer, host.group) = (stall, writer, group);
    }

    /// The position of the host that leads, once there is one that can write.
    async fn leader(&self) -> usize {
        let all: Vec<usize> = (0..self.hosts.len()).collect();
        self.leader_among(&all).await
    }

    async fn leader_among(&self, hosts: &[usize]) -> usize {
        let mut leader = None;
        for _ in 0..1_000 {
            leader = hosts.iter().copied().find(|&at| self.hosts[at].status().is_leader());
            if let Some(at) = leader
                && self.hosts[at].group.confirm().await.is_ok()
            {
                return at;
            }
            runtime::sleep(Duration::from_millis(20)).await;
        }
        panic!("no leader among {hosts:?} (last seen {leader:?})");
    }

    fn others(&self, at: usize) -> Vec<usize> {
        (0..self.hosts.len()).filter(|&other| other != at).collect()
    }

    fn isolate(&self, at: usize) {
        self.net.isolate(self.hosts[at].node, self.others(at).iter().map(|&other| self.hosts[other].node));
    }

    /// Proposes until some leader takes it; for payloads whose number of copies does not matter.
    async fn write(&self, payload: impl Into<Bytes>) -> u64 {
        let payload = payload.into();
        loop {
            let at = self.leader().await;
            if let Ok(outcomes) = self.hosts[at].group.propose(payload.clone()).await {
                return index(&outcomes);
            }
        }
    }

    /// Waits until these replicas have applied the same, `index` included, and returns it.
    async fn agree(&self, hosts: &[usize], index: u64) -> BTreeMap<u64, Bytes> {
        for &at in hosts {
            let waiting = self.hosts[at].group.wait_applied(index);
            let waited = runtime::timeout(PATIENCE, waiting).await;
            waited
                .unwrap_or_else(|| panic!("replica {at} does not reach {index}: {:?}", self.hosts[at].status()))
                .unwrap_or_else(|error| panic!("replica {at} stopped: {error}: {:?}", self.hosts[at].status()));
        }
        let applied = self.hosts[hosts[0]].content();
        for &at in &hosts[1..] {
            let other = self.hosts[at].content();
            // One may be ahead by what was committed since; up to the index they must be equal.
            assert!(applied.range(..=index).eq(other.range(..=index)), "replicas {} and {at} differ", hosts[0]);
        }
        applied
    }

    async fn agree_all(&self, index: u64) -> BTreeMap<u64, Bytes> {
        let all: Vec<usize> = (0..self.hosts.len()).collect();
        self.agree(&all, index).await
    }

    async fn stop(self) {
        for host in &self.hosts {
            host.stall.set(|disk| *disk = Disk { dead: disk.dead, ..Disk::default() });
            host.group.stop().await;
            host.writer.stop();
        }
    }
}

/// The log index in a test machine's answer.
fn index(outcomes: &Outcomes) -> u64 {
    outcomes[0].as_ref().expect("the test machine refuses nothing").timestamp.0 - 1
}
