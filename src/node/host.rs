//! The node itself: what its parts share.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::StreamExt;
use futures::future::join_all;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, mpsc, watch};

use super::ask::AskHandler;
use super::busy::Busy;
use super::formation;
use super::identity::Identity;
use super::lineage;
use super::options::NodeOptions;
use super::recovery;
use super::registry::Registry;
use super::room::{self, Rooms};
use super::stall::{self, Stalled};
use super::takeover::{self, Sign};
use super::transport::{LinkTransport, Links};
use super::views::{self, Freshness, Stops};
use super::{follower, merges, splits, sweeper};
use crate::catalog::{Directory, NodeRow, RecoveryRow, Standing};
use crate::client::Connection;
use crate::raft::GroupError;
use crate::runtime::{Clock, random_u64, sleep, spawn};
use crate::shard::{Home, NEWS_MAX, News, Record, Shard, ShardOptions, State, survivors};
use crate::storage::{Engine, LogWriter};
use crate::types::{Error, Incarnation, NodeId, Reason, Result, ShardId, Timestamp};

/// How long an orderly stop waits for other nodes to take over leaderships.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(5);
/// Leaderships on their way to others at once: their elections share the syncs of the same few disks, and each shard
/// stands still only for its own.
const HANDOVERS_AT_ONCE_MAX: usize = 16;
/// Between looks at what is still led.
const HANDOVER_WAIT: Duration = Duration::from_millis(50);

/// A running node.
pub struct Node {
    options: NodeOptions,
    incarnation: Incarnation,
    engine: Arc<dyn Engine>,
    writer: LogWriter,
    identity: OnceLock<Identity>,
    /// The last recovery from a lost quorum that this directory took part in.
    recovery: Option<RecoveryRow>,
    registry: Registry,
    links: Arc<Links>,
    rooms: Rooms,
    stalled: Stalled,
    directory: ArcSwap<Directory>,
    directory_changed: watch::Sender<Timestamp>,
    connections: RwLock<HashMap<NodeId, (String, Arc<Connection>)>>,
    handler: RwLock<Option<Arc<dyn AskHandler>>>,
    fatal: watch::Sender<Option<Error>>,
    /// Set when leaderships are being handed over: nothing new is begun.
    stopping: watch::Sender<bool>,
    /// Set when the replicas are being stopped.
    stopped: watch::Sender<bool>,
    /// Wakes the reconciler before its time.
    nudge: Notify,
    /// Told of replicas that were born here or have ended.
    news: mpsc::Sender<News>,
    /// Lengthy steps under way.
    busy: Busy,
    /// Held while a replica is created that was not here before; shared while a snapshot is installed. So no snapshot can
    /// be laid over the range of a replica that came while it was looked at.
    ranges: Arc<tokio::sync::RwLock<()>>,
    /// One replica is started at a time: the same one may be found by its birth, its record and the catalog.
    hosting: tokio::sync::Mutex<()>,
    /// One start of another node is compared and stored at a time.
    admitting: Mutex<()>,
    /// For what goes on in the background.
    myself: OnceLock<Weak<Node>>,
    /// How old copies of views are.
    pub(super) freshness: Freshness,
    /// Where upkeep of views stands still.
    pub(super) stops: Stops,
    /// When each table was last looked up in vain; see the door.
    pub(super) unknown_tables: Mutex<HashMap<String, crate::runtime::Instant>>,
}

impl Node {
    /// Sets out to be a member of its cluster, and to recover its replicas once the others agree that its directory is
    /// the newest; returns at once, all this goes on in the background ([`Node::is_ready`], [`Node::fatal`]). The caller mounts [`super::PeerService`] on the node's
    /// gRPC server.
    ///
    /// Errors: the data directory is another node's.
    pub async fn start(options: NodeOptions, engine: Arc<dyn Engine>, writer: LogWriter) -> Result<Arc<Node>> {
        let stored = Identity::load(&*engine)?;
        if let Some(identity) = &stored {
            identity.check(options.id)?;
        }
        let (signs, signs_seen) = mpsc::channel(takeover::SIGNS_MAX);
        let links = Links::new(options.id, options.clock.clone(), signs);
        links.set_address(options.id, &options.address);
        let (news, told) = mpsc::channel(NEWS_MAX);
        let node = Arc::new(Node {
            incarnation: stored.map_or_else(|| Incarnation(random_u64()), |identity| identity.incarnation),
            rooms: Rooms::new(&*engine),
            recovery: recovery::load(&*engine)?,
            stalled: Stalled::default(),
            engine,
            writer,
            identity: OnceLock::new(),
            registry: Registry::default(),
            links,
            directory: ArcSwap::from_pointee(Directory::empty()),
            directory_changed: watch::Sender::new(Timestamp::ZERO),
            connections: RwLock::default(),
            handler: RwLock::default(),
            fatal: watch::Sender::new(None),
            stopping: watch::Sender::new(false),
            stopped: watch::Sender::new(false),
            nudge: Notify::new(),
            news,
            busy: Busy::default(),
            ranges: Arc::default(),
            hosting: tokio::sync::Mutex::default(),
            admitting: Mutex::default(),
            myself: OnceLock::new(),
            freshness: Freshness::default(),
            stops: Stops::default(),
            unknown_tables: Mutex::default(),
            options,
        });
        let _ = node.myself.set(Arc::downgrade(&node));
        if let Some(identity) = stored {
            node.adopt(identity);
        }
        spawn(formation::run(node.clone()));
        spawn(follower::run(node.clone()));
        spawn(room::run(node.clone()));
        spawn(stall::run(node.clone()));
        spawn(sweeper::run(node.clone()));
        spawn(splits::welcome(node.clone(), told));
        spawn(takeover::run(node.clone(), signs_seen));
        spawn(views::run(node.clone()));
        spawn(views::scrub::run(node.clone()));
        Ok(node)
    }

    /// For what goes on in the background; none once it is being let go.
    pub(super) fn myself(&self) -> Option<Arc<Node>> {
        self.myself.get().and_then(Weak::upgrade)
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.options.id
    }

    /// What it was started with.
    pub fn options(&self) -> &NodeOptions {
        &self.options
    }

    /// This data directory's random number.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Its clocks.
    pub fn clock(&self) -> &Clock {
        &self.options.clock
    }

    /// Its storage.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    pub(super) fn writer(&self) -> &LogWriter {
        &self.writer
    }

    /// Who it is, once it is a member of a cluster.
    pub fn try_identity(&self) -> Option<&Identity> {
        self.identity.get()
    }

    /// The last recovery from a lost quorum that its data directory took part in.
    pub fn recovery(&self) -> Option<&RecoveryRow> {
        self.recovery.as_ref()
    }

    /// Becomes a member: from now on every frame names the cluster.
    pub(super) fn adopt(&self, identity: Identity) {
        self.links.set_cluster(identity.cluster);
        let known = self.identity.get_or_init(|| identity);
        assert_eq!(*known, identity, "a node has one identity");
    }

    /// The hosted replicas.
    pub fn replicas(&self) -> &Registry {
        &self.registry
    }

    pub(super) fn links(&self) -> &Arc<Links> {
        &self.links
    }

    pub(super) fn busy(&self) -> &Busy {
        &self.busy
    }

    pub(super) fn ranges(&self) -> &Arc<tokio::sync::RwLock<()>> {
        &self.ranges
    }

    pub(super) fn rooms(&self) -> &Rooms {
        &self.rooms
    }

    pub(super) fn stalled(&self) -> &Stalled {
        &self.stalled
    }

    /// Whether something was heard from `node` lately.
    pub fn hears(&self, node: NodeId) -> bool {
        self.links.is_alive(node)
    }

    /// The picture of the catalog as this node has it now.
    pub fn directory(&self) -> Arc<Directory> {
        self.directory.load_full()
    }

    /// Tells the revision of each new picture.
    pub fn directory_changes(&self) -> watch::Receiver<Timestamp> {
        self.directory_changed.subscribe()
    }

    pub(super) fn set_directory(&self, directory: Directory) {
        let revision = directory.revision();
        for row in directory.nodes() {
            self.links.set_address(row.id, &row.address);
        }
        self.directory.store(Arc::new(directory));
        self.directory_changed.send_replace(revision);
    }

    /// This node's row as it should stand in the catalog.
    pub fn row(&self) -> NodeRow {
        NodeRow {
            id: self.options.id,
            incarnation: self.incarnation,
            address: self.options.address.clone(),
            http_address: self.options.http_address.clone(),
            zone: self.options.zone.clone(),
            version: self.options.version.clone(),
            joined_ms: self.options.clock.wall_ms(),
            // The catalog keeps what is wanted of it.
            standing: Standing::default(),
        }
    }

    /// Registers who answers the questions that change the cluster.
    pub fn set_handler(&self, handler: Arc<dyn AskHandler>) {
        let before = self.handler.write().replace(handler);
        assert!(before.is_none(), "a node has one control");
    }

    pub(super) fn handler(&self) -> Option<Arc<dyn AskHandler>> {
        self.handler.read().clone()
    }

    /// The local replica of shard 0.
    pub fn system_shard(&self) -> Result<Arc<Shard>> {
        self.registry.get(ShardId::SYSTEM).ok_or_else(|| {
            Error::new(Reason::NotReady, "this node is not a member of a cluster yet; try again in a moment")
        })
    }

    /// The node that leads shard 0, as far as this one knows.
    pub fn system_leader(&self) -> Option<NodeId> {
        self.registry.get(ShardId::SYSTEM).and_then(|shard| shard.leader()).map(|(_, node)| node)
    }

    /// Whether this node leads shard 0.
    pub fn leads_system(&self) -> bool {
        self.registry.get(ShardId::SYSTEM).is_some_and(|shard| shard.is_leader())
    }

    /// The local replica of a shard.
    pub fn hosted(&self, shard: ShardId) -> Result<Arc<Shard>> {
        self.registry
            .get(shard)
            .ok_or_else(|| Error::new(Reason::ShardNotHere, format!("{} hosts no replica of {shard}", self.id())))
    }

    /// Remembers the start of another node, or refuses it.
    pub(super) fn admit(&self, question: &lineage::StartAsk) -> Result<()> {
        if self.try_identity().is_none() {
            return Err(Error::new(Reason::NotReady, "not a member of a cluster yet"));
        }
        let _one_at_a_time = self.admitting.lock();
        if lineage::admit(&*self.engine, question)? {
            self.links.tell(Sign::StartedAgain(question.node()));
        }
        Ok(())
    }

    /// Starts all replicas that the directory holds.
    pub(super) async fn recover(self: &Arc<Self>) -> Result<()> {
        for record in survivors(&*self.engine)? {
            let hosted = self.host(&record).await;
            // One that runs already may have taken it over in this moment: then it has failed to start, or must not have.
            if !merges::try_bury(self, record.shard).await? {
                hosted?;
            }
        }
        Ok(())
    }

    /// Starts the replica of a record and adds it to the registry, if it is not there.
    pub(super) async fn host(&self, record: &Record) -> Result<Arc<Shard>> {
        let _one_at_a_time = self.hosting.lock().await;
        if let Some(hosted) = self.registry.get(record.shard).filter(|hosted| hosted.replica() == record.replica) {
            return Ok(hosted);
        }
        if *self.stopped.borrow() {
            return Err(Error::new(Reason::NotReady, "the node is stopping"));
        }
        let history_ms = self.directory().table(record.table).map_or(u64::MAX, |table| table.descriptor.history_ms);
        let options = ShardOptions {
            shard: record.shard,
            replica: record.replica,
            home: Home { node: self.id(), incarnation: self.incarnation, news: self.news.clone() },
            fresh: State::fresh(record.table, record.start.clone(), record.end.clone(), record.epoch),
            timers: self.options.timers,
            log: self.options.log,
            history_ms,
            clock: self.options.clock.clone(),
        };
        let transport = Arc::new(LinkTransport(self.links.clone()));
        let shard = Shard::start(options, self.engine.clone(), self.writer.clone(), transport).await.map_err(
            |error: GroupError| {
                Error::new(Reason::Corruption, format!("{} of {} cannot start: {error}", record.replica, record.shard))
            },
        )?;
        if self.disk_stands_still() {
            shard.group().stand_in_elections(false);
        }
        self.registry.insert(shard.clone());
        Ok(shard)
    }

    /// Whether it is a member, has a picture of the catalog that names it, and hears a leader of shard 0.
    pub fn is_ready(&self) -> Result<()> {
        if self.try_identity().is_none() {
            return Err(Error::new(Reason::NotReady, "not a member of a cluster yet"));
        }
        if self.directory().node(self.id()).is_none() {
            return Err(Error::new(Reason::NotReady, "the catalog does not name this node yet"));
        }
        if self.system_leader().is_none() {
            return Err(Error::new(Reason::NotReady, "no leader of the system table is known"));
        }
        if *self.stopping.borrow() {
            return Err(Error::new(Reason::NotReady, "stopping"));
        }
        Ok(())
    }

    /// Set when the node cannot go on: its id is taken, it was configured for another cluster. The process ends then.
    pub fn fatal(&self) -> watch::Receiver<Option<Error>> {
        self.fatal.subscribe()
    }

    pub(super) fn fail(&self, error: Error) {
        self.fatal.send_replace(Some(error));
    }

    /// True once the node is handing over what it leads, before it stops.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// True once the replicas are being stopped.
    pub(super) fn stopped(&self) -> watch::Receiver<bool> {
        self.stopped.subscribe()
    }

    /// Asks the reconciler to look now.
    pub fn nudge(&self) {
        self.nudge.notify_one();
    }

    pub(super) fn nudged(&self) -> impl Future<Output = ()> {
        self.nudge.notified()
    }

    /// A connection to another node's public services, for forwarding.
    pub(super) fn connection(&self, node: NodeId) -> Result<Arc<Connection>> {
        let address = self
            .links
            .address(node)
            .ok_or_else(|| Error::new(Reason::UnknownNode, format!("{node} has no known address")))?;
        if let Some((known, connection)) = self.connections.read().get(&node)
            && *known == address
        {
            return Ok(connection.clone());
        }
        let connection = Arc::new(Connection::new(address.as_str(), self.options.clock.clone()));
        self.connections.write().insert(node, (address, connection.clone()));
        Ok(connection)
    }

    /// Hands the leadership of a shard over to its voter on `to`.
    pub async fn transfer(&self, shard: ShardId, to: NodeId) -> Result<()> {
        let hosted = self.hosted(shard)?;
        let status = hosted.group().status();
        if !status.is_leader() {
            return Err(Error::new(Reason::NotLeader, format!("{} does not lead {shard}", self.id()))
                .with_leader(status.leader.map(|(_, node)| node)));
        }
        if to == self.id() {
            return Ok(());
        }
        let target = status.voters.iter().find(|&(_, &node)| node == to).map(|(&replica, _)| replica);
        let target = target.ok_or_else(|| {
            Error::new(Reason::InvalidRequest, format!("{to} hosts no voter of {shard}; choose one of its voters"))
        })?;
        hosted.group().transfer_leader(target).await.map_err(|error| Error::new(Reason::Conflict, error.to_string()))
    }

    /// Hands all leaderships over, while the node goes on answering. Gives up after a bounded time: what is still led
    /// then is taken over by an election.
    pub async fn hand_over(&self) {
        self.stopping.send_replace(true);
        let deadline = self.clock().now() + HANDOVER_TIMEOUT;
        while self.pass_leaderships_on(|_| true).await > 0 && self.clock().now() < deadline {
            sleep(HANDOVER_WAIT).await;
        }
    }

    /// Hands every leadership over that a voter on a node which `may` lead can take; one attempt each. Returns how many
    /// there were to hand over.
    pub(super) async fn pass_leaderships_on(&self, may: impl Fn(NodeId) -> bool) -> usize {
        let mut led = 0;
        let mut transfers = Vec::new();
        for shard in self.registry.all() {
            let status = shard.group().status();
            if !status.is_leader() || status.voters.len() < 2 {
                continue;
            }
            led += 1;
            // The voter whose log is nearest to the leader's, among those that are alive.
            let best = (status.matched.iter())
                .filter(|&(replica, _)| *replica != status.replica)
                .filter_map(|(replica, matched)| {
                    let node = *status.voters.get(replica)?;
                    (self.links.is_alive(node) && may(node)).then_some((matched.unwrap_or(0), *replica))
                })
                .max();
            if let Some((_, target)) = best {
                transfers.push(async move {
                    if let Err(error) = shard.group().transfer_leader(target).await {
                        tracing::debug!(shard = %shard.id(), %error, "leadership not handed over yet");
                    }
                });
            }
        }
        futures::stream::iter(transfers).for_each_concurrent(HANDOVERS_AT_ONCE_MAX, |transfer| transfer).await;
        led
    }

    /// Stops the replicas and lets go of everything. Their data stays. Call [`Node::hand_over`] first.
    pub async fn stop(&self) {
        self.stopping.send_replace(true);
        self.stopped.send_replace(true);
        // Each waits for what it has begun to apply; side by side, that is one wait.
        let replicas = self.registry.all();
        join_all(replicas.iter().map(|shard| shard.stop())).await;
        for shard in replicas {
            self.registry.remove(shard.id());
        }
        *self.handler.write() = None;
        self.connections.write().clear();
        self.links.close();
    }
}
