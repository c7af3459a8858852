//! The nodes of a simulated cluster: each a scope, an engine that outlives it, and the real node inside.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use trivet::control::Control;
use trivet::node::{Bootstrap, Node, NodeOptions, ScrubOptions};
use trivet::placement::sizing::Sizes;
use trivet::runtime::simulation::Scope;
use trivet::runtime::{Clock, sleep, timeout};
use trivet::service::{Door, services};
use trivet::storage::{Engine, LogWriter, Memory};
use trivet::types::{Limits, NodeId, ShardId};

use super::entropy::Random;
use super::invariants;
use super::network::{Host, Network};
use super::plan::Plan;
use super::run::Report;

/// Longer than most crashes of a run, shorter than the longest.
const REPLACE_LOST_AFTER: Duration = Duration::from_secs(20);
/// How long an orderly stop may take before the process is ended.
const STOP_PATIENCE: Duration = Duration::from_secs(8);

/// One node.
pub struct Member {
    /// Its number.
    pub id: Host,
    /// Where it is reached.
    pub address: String,
    /// Counts its starts.
    pub starts: u64,
    /// Whether its process runs.
    pub up: bool,
    /// Whether it stands still.
    pub paused: bool,
    /// Its wall clock's error.
    pub skew_ms: i64,
    scope: Scope,
    engine: Arc<Memory>,
    inside: Arc<Mutex<Option<Inside>>>,
}

/// What runs in a node's process.
struct Inside {
    node: Arc<Node>,
    control: Arc<Control>,
    writer: LogWriter,
}

impl Member {
    /// The node inside, once it has started.
    pub fn node(&self) -> Option<Arc<Node>> {
        self.inside.lock().as_ref().filter(|_| self.up).map(|inside| inside.node.clone())
    }

    /// The control inside.
    pub fn control(&self) -> Option<Arc<Control>> {
        self.inside.lock().as_ref().filter(|_| self.up).map(|inside| inside.control.clone())
    }

    /// Up to where the stored log of a shard is the log of the shard: what lies behind may still be cut off.
    pub fn written(&self, shard: ShardId) -> u64 {
        self.inside.lock().as_ref().map_or(0, |inside| inside.writer.written(shard).index())
    }

    /// Its storage.
    pub fn engine(&self) -> &Arc<Memory> {
        &self.engine
    }

    /// Its tasks.
    pub fn scope(&self) -> Scope {
        self.scope
    }
}

/// All nodes.
pub struct Cluster {
    /// By their place.
    pub members: Vec<Member>,
    /// Between them.
    pub network: Network,
    plan: Plan,
    report: Report,
    random: Random,
}

fn address_of(id: Host) -> String {
    format!("node{id}:1")
}

impl Cluster {
    /// Starts all nodes, empty.
    pub fn start(plan: &Plan, network: Network, report: Report, mut random: Random) -> Cluster {
        let members = (1..=plan.nodes).map(|id| {
            let range = 2 * plan.skew_ms + 1;
            let skew_ms =
                i64::try_from(random.below(range)).expect("small") - i64::try_from(plan.skew_ms).expect("small");
            Member {
                id,
                address: address_of(id),
                starts: 0,
                up: false,
                paused: false,
                skew_ms,
                scope: Scope::current(),
                engine: Memory::new().expect("a temporary directory can be made"),
                inside: Arc::default(),
            }
        });
        let members = members.collect();
        let mut cluster = Cluster { members, network, plan: plan.clone(), report, random };
        (0..cluster.members.len()).for_each(|at| cluster.boot(at));
        cluster
    }

    /// The addresses of all nodes.
    pub fn addresses(&self) -> Vec<String> {
        self.members.iter().map(|member| member.address.clone()).collect()
    }

    /// Starts the process of a node that is down.
    pub fn boot(&mut self, at: usize) {
        let peers: BTreeMap<NodeId, String> = (1..=self.plan.nodes).map(|id| (NodeId(id), address_of(id))).collect();
        let member = &mut self.members[at];
        assert!(!member.up, "it runs already");
        let scope = Scope::start();
        scope.set_skew_ms(member.skew_ms);
        scope.set_pace(self.plan.pace);
        self.network.place(scope, member.id);
        let options = NodeOptions {
            id: NodeId(member.id),
            address: member.address.clone(),
            http_address: String::new(),
            zone: String::new(),
            bootstrap: Bootstrap::Found { peers },
            timers: self.plan.timers,
            log: self.plan.log,
            limits: Limits::default(),
            replace_lost_after: REPLACE_LOST_AFTER,
            sizes: Sizes::default(),
            scrub: ScrubOptions { percent: 0, ..ScrubOptions::default() },
            version: "simulated".to_owned(),
            clock: Clock::system(),
        };
        (member.scope, member.up, member.paused, member.inside) = (scope, true, false, Arc::default());
        member.starts += 1;
        let (engine, slot, network) = (member.engine.clone(), member.inside.clone(), self.network.clone());
        let (id, address, report) = (member.id, member.address.clone(), self.report.clone());
        report.event(format_args!("node {id} starts"));
        scope.spawn(async move {
            let engine: Arc<dyn Engine> = engine;
            let writer = LogWriter::start(engine.clone()).expect("a task can be started");
            let node = match Node::start(options, engine, writer.clone()).await {
                Ok(node) => node,
                Err(error) => return report.violation(format!("node {id} cannot start: {error}")),
            };
            let control = Control::start(node.clone());
            let routes = services(Door::Node(node.clone(), control.clone()), Limits::default(), Clock::system());
            network.serve(&address, id, scope, routes);
            let mut fatal = node.fatal();
            *slot.lock() = Some(Inside { node, control, writer });
            let failed = fatal.wait_for(Option::is_some).await.map(|error| error.clone());
            if let Ok(Some(error)) = failed {
                report.violation(format!("node {id} cannot go on: {error}"));
            }
        });
    }

    /// Ends a process as kill -9 or a power cut does.
    pub fn crash(&mut self, at: usize) {
        let member = &mut self.members[at];
        assert!(member.up, "it is down already");
        let unsynced = member.engine.unsynced() as u64;
        // Nothing, everything or something of what was not synced survives.
        let spared = match self.random.below(3) {
            0 => 0,
            1 => unsynced,
            _ => self.random.within(0, unsynced),
        };
        let silently = self.random.per_mille(400);
        self.report.event(format_args!("node {} crashes, {spared} of {unsynced} unsynced batches survive", member.id));
        self.report.count("crashes");
        if spared < unsynced {
            self.report.count("crashes that lost unsynced writes");
        }
        let whole = invariants::every_key_is_owned(&member.engine);
        let survivor = member.engine.survivor(usize::try_from(spared).expect("small")).expect("a temporary directory");
        member.scope.end();
        member.engine = survivor;
        (member.up, member.paused) = (false, false);
        *member.inside.lock() = None;
        self.network.dies(member.id, &member.address, silently);
        if whole == Ok(true) && invariants::every_key_is_owned(&member.engine) != Ok(true) {
            self.report.violation(format!("after a crash nobody owns some keys on node {}", member.id));
        }
        if let Err(violation) = invariants::log_holds_state(&member.engine) {
            self.report.violation(format!("node {} after a crash: {violation}", member.id));
        }
    }

    /// Takes a node's disk away; its process must have ended.
    pub fn wipe(&mut self, at: usize) {
        let member = &mut self.members[at];
        assert!(!member.up, "it runs");
        self.report.event(format_args!("node {} loses its disk", member.id));
        self.report.count("wipes");
        member.engine = Memory::new().expect("a temporary directory can be made");
    }

    /// Stops a process in order.
    pub async fn stop(&mut self, at: usize) {
        let member = &mut self.members[at];
        let Some(node) = member.node() else { return };
        self.report.event(format_args!("node {} is stopped in order", member.id));
        let stopping = member.scope.spawn(async move {
            node.hand_over().await;
            node.stop().await;
        });
        let ended = timeout(STOP_PATIENCE, stopping).await;
        if ended.is_none() {
            self.report.violation(format!("node {} does not stop", member.id));
        }
        // The log writer finishes what is queued.
        sleep(4 * (self.plan.pace.write + self.plan.pace.sync) + Duration::from_millis(1)).await;
        member.scope.end();
        let unsynced = member.engine.unsynced();
        member.engine = member.engine.survivor(unsynced).expect("a temporary directory can be made");
        member.up = false;
        *member.inside.lock() = None;
        self.network.dies(member.id, &member.address, false);
        self.report.count("orderly restarts");
    }

    /// Stops a node where it is.
    pub fn pause(&mut self, at: usize) {
        let member = &mut self.members[at];
        self.report.event(format_args!("node {} stands still", member.id));
        self.report.count("pauses");
        member.scope.pause();
        member.paused = true;
    }

    /// Lets it go on.
    pub fn resume(&mut self, at: usize) {
        let member = &mut self.members[at];
        if member.paused {
            self.report.event(format_args!("node {} goes on", member.id));
            member.scope.resume();
            member.paused = false;
        }
    }

    /// Sets a node's wall clock.
    pub fn set_clock(&mut self, at: usize, skew_ms: i64) {
        let member = &mut self.members[at];
        self.report
            .event(format_args!("the clock of node {} goes from {} ms to {skew_ms} ms", member.id, member.skew_ms));
        self.report.count("clock jumps");
        member.skew_ms = skew_ms;
        member.scope.set_skew_ms(skew_ms);
    }
}
