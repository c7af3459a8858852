//! A node in this process: started part by part, stopped in the opposite order.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::net::TcpListener;

use super::config::{self, Config};
use super::{ConfigError, Error, metrics};
use crate::control::Control;
use crate::node::{Bootstrap, Identity, Node, NodeOptions, ScrubOptions};
use crate::ops::{Checks, Endpoints, Http, Recorder};
use crate::placement::sizing::Sizes;
use crate::raft;
use crate::runtime::{self, Clock, Task};
use crate::service::{Door, Grpc, Health};
use crate::storage::{self, Engine, LogWriter, Rocks};

/// How often grpc.health.v1 is brought in line with /readyz.
const READINESS_INTERVAL: Duration = Duration::from_millis(100);
/// How often what storage says of itself is noted.
const STORAGE_INTERVAL: Duration = Duration::from_secs(5);
/// How long connections may take to end by themselves once all calls are answered: what is left then are streams that
/// never end, such as those of the other nodes.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the tasks of a stopped node may hold on to the storage before a stop returns without them.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
const RELEASE_INTERVAL: Duration = Duration::from_millis(5);

/// Both ports, bound and not yet served. Tests bind the ports of all nodes first, so that each can be told the
/// addresses of the others.
pub struct Listeners {
    grpc: TcpListener,
    http: TcpListener,
}

impl Listeners {
    /// Binds the ports that a configuration names.
    pub async fn bind(config: &Config) -> Result<Listeners, Error> {
        let grpc = listen("gRPC", &config.listen).await?;
        let http = listen("HTTP", &config.http).await?;
        Ok(Listeners { grpc, http })
    }

    /// Where gRPC is to be served.
    pub fn grpc_addr(&self) -> io::Result<SocketAddr> {
        self.grpc.local_addr()
    }

    /// Where metrics and health are to be served.
    pub fn http_addr(&self) -> io::Result<SocketAddr> {
        self.http.local_addr()
    }
}

async fn listen(purpose: &'static str, address: &str) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "the port is in use, perhaps by this very node: stop that, or choose another".into()
            }
            io::ErrorKind::PermissionDenied => "permission denied: choose a port from 1024 on".into(),
            io::ErrorKind::AddrNotAvailable => "this machine has no such address".into(),
            _ => error.to_string(),
        };
        Error::Listen { purpose, address: address.to_owned(), why }
    })
}

/// A node that runs in this process.
pub struct Running {
    config: Config,
    clock: Clock,
    ready: Checks,
    http: Http,
    grpc: Grpc,
    node: Arc<Node>,
    writer: LogWriter,
    storage: Arc<Rocks>,
    watching: Task<()>,
}

/// Starts a node; returns when it serves, which is before it is ready to be asked (see [`Running::ready`]).
pub async fn start(config: Config) -> Result<Running, Error> {
    let listeners = Listeners::bind(&config).await?;
    start_on(config, listeners).await
}

/// As [`start`], on ports that were bound before.
pub async fn start_on(config: Config, listeners: Listeners) -> Result<Running, Error> {
    let system = |what: &str| {
        let what = what.to_owned();
        move |source| Error::System { what, source }
    };
    let Listeners { grpc, http } = listeners;
    let grpc_addr = grpc.local_addr().map_err(system("the gRPC port has no address"))?;
    let http_addr = http.local_addr().map_err(system("the HTTP port has no address"))?;
    let address = reachable(&config.advertise, &config.advertise, grpc_addr.port());
    let http_address = reachable(&config.http, &config.advertise, http_addr.port());
    let clock = Clock::system();

    let recorder = Recorder::install();
    metrics::describe();
    let (live, ready) = (Checks::new(), Checks::new());
    ready.fail("storage", "opening");
    let title = format!("trivet {} · node {} · gRPC {address}", env!("CARGO_PKG_VERSION"), config.id.0);
    let endpoints = Endpoints { title, recorder: recorder.clone(), live: live.clone(), ready: ready.clone() };
    let http = Http::serve(http, endpoints).map_err(system("the HTTP port cannot be served"))?;

    let engine = open_storage(&config).await?;
    ready.set("storage", || Ok(()));
    let writer = LogWriter::start(engine.clone())?;

    let options = NodeOptions {
        id: config.id,
        address,
        http_address,
        zone: config.zone.clone(),
        bootstrap: bootstrap(&config, &*engine)?,
        timers: timers(&config),
        log: raft::LogBounds::default(),
        limits: config.limits,
        replace_lost_after: Duration::from_millis(config.timers.replace_lost_ms),
        sizes: sizes(&config),
        scrub: scrub(&config),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        clock: clock.clone(),
    };
    // The store must be closed before the process ends: its own thread would do it while the process falls apart.
    let started = Node::start(options, engine.clone(), writer.clone()).await;
    let node = started.inspect_err(|_| writer.stop())?;
    let control = Control::start(node.clone());
    check_node(&live, &ready, &node);

    let door = Door::Node(node.clone(), control);
    let grpc = Grpc::serve(grpc, door, config.limits, clock.clone())
        .await
        .map_err(system("the gRPC port cannot be served"))?;
    let watching = runtime::spawn(watch(recorder, ready.clone(), grpc.health(), Arc::downgrade(&engine)));
    tracing::info!(node = config.id.0, grpc = %grpc_addr, http = %http_addr, data = %config.data.display(), "serving");
    Ok(Running { config, clock, ready, http, grpc, node, writer, storage: engine, watching })
}

impl Running {
    /// Where gRPC is served.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc.address()
    }

    /// Where metrics and health are served.
    pub fn http_addr(&self) -> SocketAddr {
        self.http.address()
    }

    /// The node.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// What /readyz checks.
    pub fn ready(&self) -> &Checks {
        &self.ready
    }

    /// Stops in order: stops being ready, hands leaderships over while still answering, answers what it has begun,
    /// closes the ports, makes everything durable. Returns when the storage is closed, so that the directory can be
    /// opened again.
    pub async fn stop(self) {
        let Running { config, clock, ready, http, grpc, node, writer, storage, watching } = self;
        ready.fail("stopping", "the node is stopping");
        watching.abort();
        grpc.set_serving(false).await;
        node.hand_over().await;
        let drain = Duration::from_millis(config.timers.drain_ms);
        if !grpc.drain(clock.now() + drain).await {
            tracing::warn!("some calls were not answered within {} ms and are broken off", config.timers.drain_ms);
        }
        node.stop().await;
        grpc.close(clock.now() + CLOSE_TIMEOUT).await;
        let stopped = writer.clone();
        if runtime::spawn_blocking(move || stopped.stop()).await.is_err() {
            tracing::error!("the log writer did not stop in order");
        }
        http.close().await;
        drop((node, writer, ready));
        release(storage, &clock).await;
    }
}

/// Waits until nobody else holds the storage, then closes it.
async fn release(storage: Arc<Rocks>, clock: &Clock) {
    let deadline = clock.now() + RELEASE_TIMEOUT;
    while Arc::strong_count(&storage) > 1 {
        if clock.now() >= deadline {
            tracing::warn!("the storage is still in use by {} tasks", Arc::strong_count(&storage) - 1);
            return;
        }
        runtime::sleep(RELEASE_INTERVAL).await;
    }
    // Closing writes to the disk.
    if runtime::spawn_blocking(move || drop(storage)).await.is_err() {
        tracing::error!("the storage was not closed in order; nothing acknowledged is lost");
    }
}

/// The address others use: a port chosen by the system takes the place of 0, and a host that means "every address"
/// gives way to the one advertised.
fn reachable(text: &str, advertise: &str, bound_port: u16) -> String {
    let host_of = |text: &str| text.rsplit_once(':').map_or_else(|| text.to_owned(), |(host, _)| host.to_owned());
    let unspecified = config::address(text).is_ok_and(|(host, _)| config::is_unspecified(host));
    let host = host_of(if unspecified { advertise } else { text });
    match config::address(text) {
        Ok((_, port)) if port != 0 => format!("{host}:{port}"),
        _ => format!("{host}:{bound_port}"),
    }
}

async fn open_storage(config: &Config) -> Result<Arc<Rocks>, Error> {
    let mut options = storage::Options::new(config.data.join(storage::STORE));
    // Bounded by the configuration far below overflow.
    options.block_cache_bytes = (config.block_cache_mb as usize) << 20;
    options.write_buffer_bytes = (config.write_buffer_mb as usize) << 20;
    let data = config.data.clone();
    let opened = runtime::spawn_blocking(move || {
        std::fs::create_dir_all(&data).map_err(|source| Error::System {
            what: format!("the data directory {} cannot be made", data.display()),
            source,
        })?;
        Ok(Rocks::open(&options)?)
    });
    opened.await.map_err(|error| Error::System {
        what: "storage cannot be opened".into(),
        source: io::Error::other(error.to_string()),
    })?
}

/// How the node becomes part of a cluster; a directory that already is needs neither list.
fn bootstrap(config: &Config, engine: &dyn Engine) -> Result<Bootstrap, Error> {
    if !config.found.is_empty() {
        return Ok(Bootstrap::Found { peers: config.founders() });
    }
    if config.join.is_empty() && Identity::load(engine)?.is_none() {
        let problem = format!(
            "configuration: {} is new: say with --found which nodes found a cluster, or with --join whose cluster to join",
            config.data.display()
        );
        return Err(Error::Config(ConfigError { problems: vec![problem] }));
    }
    Ok(Bootstrap::Join { addresses: config.join.clone() })
}

fn sizes(config: &Config) -> Sizes {
    let split = &config.split;
    // Bounded by the configuration far below overflow.
    Sizes {
        split_bytes: split.mb << 20,
        split_load: split.requests_per_second,
        merge_after: Duration::from_millis(split.merge_after_ms),
        ..Sizes::default()
    }
}

fn scrub(config: &Config) -> ScrubOptions {
    ScrubOptions {
        // Bounded by the configuration.
        percent: u32::try_from(config.views.scrub_percent).unwrap_or(u32::MAX),
        every: Duration::from_millis(config.views.scrub_every_ms),
    }
}

fn timers(config: &Config) -> raft::Timers {
    let timers = &config.timers;
    raft::Timers {
        heartbeat: Duration::from_millis(timers.heartbeat_ms),
        election_min: Duration::from_millis(timers.election_min_ms),
        election_max: Duration::from_millis(timers.election_max_ms),
    }
}

/// Names what must hold. The checks keep the node alive no longer than it lives.
fn check_node(live: &Checks, ready: &Checks, node: &Arc<Node>) {
    let gone = || "the node has stopped".to_owned();
    let weak = Arc::downgrade(node);
    live.set("node", move || {
        let node = weak.upgrade().ok_or_else(gone)?;
        let fatal = node.fatal().borrow().clone();
        fatal.map_or(Ok(()), |error| Err(error.to_string()))
    });
    let weak = Arc::downgrade(node);
    ready.set("member", move || match weak.upgrade().ok_or_else(gone)?.try_identity() {
        Some(_) => Ok(()),
        None => Err("not a member of a cluster yet".into()),
    });
    let weak = Arc::downgrade(node);
    ready.set("catalog", move || {
        let node = weak.upgrade().ok_or_else(gone)?;
        match node.directory().node(node.id()) {
            Some(_) => Ok(()),
            None => Err("the catalog does not name this node yet".into()),
        }
    });
    let weak = Arc::downgrade(node);
    ready.set("disk", move || weak.upgrade().ok_or_else(gone)?.check_disk().map_err(|error| error.message));
    let weak = Arc::downgrade(node);
    ready.set("leader", move || match weak.upgrade().ok_or_else(gone)?.system_leader() {
        Some(_) => Ok(()),
        None => Err("no leader of the system table is known".into()),
    });
}

/// Keeps grpc.health.v1 saying what /readyz says, the metrics folded and those of storage up to date.
async fn watch(recorder: Recorder, ready: Checks, health: Health, storage: Weak<Rocks>) {
    let follow = async {
        let mut told = false;
        loop {
            let now = ready.pass();
            if now != told {
                health.set_serving(now).await;
                told = now;
            }
            runtime::sleep(READINESS_INTERVAL).await;
        }
    };
    let note = async {
        // Off this thread, since it asks the file system.
        while let Some(engine) = storage.upgrade()
            && let Ok(gauges) = runtime::spawn_blocking(move || engine.gauges()).await
        {
            for (name, value) in gauges {
                ::metrics::gauge!(name).set(value);
            }
            runtime::sleep(STORAGE_INTERVAL).await;
        }
    };
    tokio::join!(follow, note, recorder.upkeep());
}
