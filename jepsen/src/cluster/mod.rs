//! Real processes of the shipped binary: a cluster that harm can be done to.
//!
//! Each node stands behind a lock. A nemesis that does something to a process, a disk or a clock holds the node's lock
//! from the first moment to the last, so two of them never meet in one node unawares, while faults of different nodes,
//! and those of the network, overlap as they like. A watcher looks after the nodes that nobody holds: one that ends by
//! itself is noted ([`Exit`]) and started again, as a service manager would.
//!
//! With root every node has a network namespace and a file system of its own ([`crate::net`], [`crate::disk`]); without,
//! nodes are processes on loopback ports with directories.

mod ground;
pub mod node;
pub mod record;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::Instant;
use trivet::client::Connection;
use trivet::runtime::Clock;

pub use ground::{Ground, Wants};
use node::{Entry, Fixed, Node};

use crate::history::Stopwatch;
use crate::net::Net;
use crate::net::proxy::Proxy;

/// Within this a cluster must be healthy after anything that is done to it, on a slow and busy machine.
pub const HEALTHY_WITHIN: Duration = Duration::from_secs(60);
/// Longest wait for one node's answer to a question about its state.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How often the watcher looks.
const WATCH: Duration = Duration::from_millis(200);
/// A node that ends by itself is started again after this long ...
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// ... and so many times in all.
const RESTARTS_MAX: usize = 5;

/// A node that ended by itself.
#[derive(Clone, Debug)]
pub struct Exit {
    /// Which.
    pub node: u64,
    /// When it was seen, on the clock of the histories.
    pub at_ns: u64,
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// The last line it logged.
    pub said: String,
}

/// A cluster.
pub struct Cluster {
    /// What stands where, and what the machine offers.
    pub ground: Arc<Ground>,
    nodes: Vec<Arc<Mutex<Node>>>,
    /// What never changes about each node.
    pub fixed: Vec<Arc<Fixed>>,
    /// The clients' proxies, one for each node, if there are any.
    pub proxies: Vec<Proxy>,
    connections: Vec<Connection>,
    /// Held while a node is losing its data for good and until it has everything again.
    pub replacing: Mutex<()>,
    exits: std::sync::Mutex<Vec<Exit>>,
    closed: AtomicBool,
    clock: Stopwatch,
}

/// A node that somebody does something to.
pub type Held = OwnedMutexGuard<Node>;

impl Cluster {
    /// Founds a cluster of so many nodes on the ground and waits until it is healthy.
    pub async fn found(
        ground: Arc<Ground>,
        count: u64,
        wants: Wants,
        logs: &std::path::Path,
        clock: Stopwatch,
    ) -> Result<Arc<Cluster>> {
        let (fixed, proxies) = ground.nodes(count, wants, logs).await?;
        let peers: Vec<String> = fixed.iter().map(|node| format!("{}={}", node.id, node.advertise)).collect();
        let entry = Entry::Founder(peers.join(","));
        let made =
            |fixed: &Arc<Fixed>| Arc::new(Mutex::new(Node::new(fixed.clone(), entry.clone(), ground.record.clone())));
        let nodes: Vec<_> = fixed.iter().map(made).collect();
        let connection = |node: &Arc<Fixed>| Connection::new(node.advertise.to_string(), Clock::system());
        let connections = fixed.iter().map(connection).collect();
        for node in &nodes {
            node.lock().await.start()?;
        }
        let cluster = Arc::new(Cluster {
            ground,
            nodes,
            fixed,
            proxies,
            connections,
            replacing: Mutex::new(()),
            exits: std::sync::Mutex::default(),
            closed: AtomicBool::new(false),
            clock,
        });
        if let Err(error) = cluster.healthy(HEALTHY_WITHIN).await {
            let logs: Vec<String> = cluster.fixed.iter().map(|node| tail(&node.logged(), 3)).collect();
            bail!("the cluster did not come up: {error}\n{}", logs.join("\n"));
        }
        tokio::spawn(watch(cluster.clone()));
        Ok(cluster)
    }

    /// The numbers of the nodes.
    pub fn ids(&self) -> Vec<u64> {
        self.fixed.iter().map(|node| node.id).collect()
    }

    /// What never changes about a node.
    pub fn fixed(&self, id: u64) -> &Arc<Fixed> {
        &self.fixed[place(id)]
    }

    /// What clients are given: host:port of each node.
    pub fn endpoints(&self) -> Vec<String> {
        self.fixed.iter().map(|node| node.advertise.to_string()).collect()
    }

    /// The network; only where nodes have namespaces.
    pub fn net(&self) -> Result<&Net> {
        self.ground.net.as_ref().context("without root there are no namespaces")
    }

    /// Waits until nobody else does anything to these nodes, and holds them. Always in ascending order, so that two who
    /// want the same nodes do not wait for one another.
    pub async fn hold(&self, ids: &[u64]) -> Vec<Held> {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        let mut held = Vec::new();
        for id in ids {
            held.push(self.nodes[place(id)].clone().lock_owned().await);
        }
        held
    }

    /// Nodes that ended by themselves so far.
    pub fn exits(&self) -> Vec<Exit> {
        self.exits.lock().expect("no holder panics").clone()
    }

    /// Notes that a node ended by itself.
    fn note_exit(&self, node: &Fixed, code: i32) {
        let exit = Exit { node: node.id, at_ns: self.clock.now_ns(), code, said: tail(&node.logged(), 1) };
        self.exits.lock().expect("no holder panics").push(exit);
    }

    /// Waits until every node says that the cluster is healthy and sees all nodes alive. Says how long that took.
    pub async fn healthy(&self, within: Duration) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            let problem = self.unhealthy().await;
            match problem {
                None => return Ok(begun.elapsed()),
                Some(problem) if begun.elapsed() > within => bail!("not healthy within {within:?}: {problem}"),
                Some(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// What stands in the way of health, by the first node that sees something.
    async fn unhealthy(&self) -> Option<String> {
        for (node, connection) in self.fixed.iter().zip(&self.connections) {
            let until = Instant::now() + ANSWER_WITHIN;
            match connection.status(until).await {
                Err(error) => return Some(format!("node {}: {error}", node.id)),
                Ok(status) => {
                    let alive = status.nodes.iter().filter(|node| node.alive).count();
                    if !status.healthy || alive < self.fixed.len() {
                        let problems = status.problems.join("; ");
                        return Some(format!("node {} sees {alive} nodes alive: {problems}", node.id));
                    }
                }
            }
        }
        None
    }

    /// Whether a node says now that it is ready.
    pub async fn is_ready(&self, id: u64) -> bool {
        let asked = tokio::time::timeout(ANSWER_WITHIN, get(self.fixed(id).http, "/readyz"));
        matches!(asked.await, Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200"))
    }

    /// A connection to each node's own services.
    pub fn connections(&self) -> &[Connection] {
        &self.connections
    }

    /// The node that leads most shards, as some node sees it; for faults that aim at leaders.
    pub async fn leader(&self) -> Option<u64> {
        for connection in &self.connections {
            let until = Instant::now() + ANSWER_WITHIN / 4;
            if let Ok(topology) = connection.topology(until).await {
                let mut led = std::collections::BTreeMap::<u64, usize>::new();
                let shards = topology.tables.iter().flat_map(|table| &table.shards);
                for leader in shards.filter_map(|shard| shard.leader) {
                    *led.entry(leader.0).or_default() += 1;
                }
                if let Some((&node, _)) = led.iter().max_by_key(|(_, count)| **count) {
                    return Some(node).filter(|node| (1..=self.fixed.len() as u64).contains(node));
                }
            }
        }
        None
    }

    /// Ends every fault, whoever left it: afterwards all nodes run, on well disks, with right clocks, and reach one
    /// another and the clients.
    pub async fn mend(&self) -> Result<()> {
        if let Some(net) = &self.ground.net {
            net.heal_all()?;
        }
        for proxy in &self.proxies {
            proxy.set(crate::net::proxy::Mode::Pass);
        }
        for node in &self.nodes {
            let mut node = node.lock().await;
            if let Some((_, shim)) = &node.fixed.shim {
                shim.rest()?;
            }
            if node.pid().is_none() {
                node.start()?;
            } else if !node.is_running() {
                // One that stands still goes on; one that has just ended is the watcher's.
                let _ = node.resume();
            }
        }
        Ok(())
    }

    /// Ends all nodes.
    pub async fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        for node in &self.nodes {
            let _ = node.lock().await.kill();
        }
    }
}

fn place(id: u64) -> usize {
    usize::try_from(id).expect("a small number") - 1
}

/// Notes nodes that end by themselves and starts them again.
async fn watch(cluster: Arc<Cluster>) {
    let mut restarts = 0;
    while !cluster.closed.load(Ordering::Relaxed) {
        tokio::time::sleep(WATCH).await;
        for node in &cluster.nodes {
            // One that is held is looked after by whoever holds it.
            let Ok(mut held) = node.clone().try_lock_owned() else { continue };
            let Ok(Some(code)) = held.look() else { continue };
            cluster.note_exit(&held.fixed, code);
            restarts += 1;
            if restarts <= RESTARTS_MAX {
                tokio::time::sleep(RESTART_AFTER).await;
                let _ = held.start();
            }
        }
    }
}

/// A GET, head and body.
async fn get(address: std::net::SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
