//! Fetches the topology: once for all who want it newer, from whichever node answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwapOption, Guard};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::backoff::{Backoff, jitter};
use super::map::{Map, Pool};
use super::{Connection, metrics};
use crate::runtime::{self, Clock, Instant, random_u64};
use crate::types::{ClusterId, Error, Reason, Result};
use crate::wire::admin::Topology;

/// Longest wait for one node's answer: another may have it sooner.
const ATTEMPT_MAX: Duration = Duration::from_millis(500);
/// Least time between two fetches: what changes in between comes with the next.
const INTERVAL_MIN: Duration = Duration::from_millis(50);
/// Longest wait of a caller for a fetch that it asked for.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Pauses between attempts to reach any node at all.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_LONGEST: Duration = Duration::from_millis(500);

/// The newest map, and the task that renews it.
pub(super) struct Topologies {
    seeds: Vec<String>,
    clock: Clock,
    pool: Pool,
    current: ArcSwapOption<Map>,
    /// Fetches that ended, well or not.
    ended: watch::Sender<u64>,
    wanted: Notify,
    /// Moves through the nodes, so that one that lags behind is not asked twice in a row.
    turn: AtomicUsize,
    pub(super) closed: CancellationToken,
}

impl Topologies {
    /// Reaches the cluster by any of the `seeds` (`host:port`) and begins to follow it.
    pub(super) async fn connect(seeds: &[String], clock: Clock, deadline: Instant) -> Result<Arc<Topologies>> {
        if seeds.is_empty() {
            return Err(Error::invalid("no endpoint is given: name at least one node as host:port"));
        }
        let topologies = Arc::new(Topologies {
            seeds: seeds.to_vec(),
            pool: Pool::new(clock.clone()),
            clock,
            current: ArcSwapOption::empty(),
            ended: watch::Sender::new(0),
            wanted: Notify::new(),
            turn: AtomicUsize::new(random_u64() as u16 as usize),
            closed: CancellationToken::new(),
        });
        let mut pauses = Backoff::new(PAUSE_FIRST, PAUSE_LONGEST);
        while let Err(error) = topologies.fetch(deadline).await {
            let pause = pauses.next();
            if error.reason == Reason::WrongCluster || topologies.clock.now() + pause >= deadline {
                return Err(error);
            }
            runtime::sleep(pause).await;
        }
        let renewing = topologies.clone();
        runtime::spawn(async move {
            renewing.closed.run_until_cancelled(renewing.renew()).await;
        });
        Ok(topologies)
    }

    /// The newest map; there is one since the connection was made.
    pub(super) fn current(&self) -> Guard<Option<Arc<Map>>> {
        self.current.load()
    }

    /// How many fetches have ended; what [`Topologies::newer`] waits to see exceeded.
    pub(super) fn ended(&self) -> u64 {
        *self.ended.borrow()
    }

    /// Asks for a newer map without waiting for it.
    pub(super) fn want(&self) {
        self.wanted.notify_one();
    }

    /// Asks for a newer map and waits until a fetch has ended that began after this one did, but not beyond
    /// `deadline` nor for long. Whether the fetch went well shows in the map.
    pub(super) async fn newer(&self, seen: u64, deadline: Instant) {
        let mut ended = self.ended.subscribe();
        if *ended.borrow_and_update() > seen {
            return;
        }
        self.want();
        let until = deadline.min(self.clock.now() + WAIT_MAX);
        // An error means that the sender has gone, which ends the wait as well.
        let _ = runtime::timeout_at(until, ended.wait_for(|&ended| ended > seen)).await;
    }

    async fn renew(&self) {
        loop {
            self.wanted.notified().await;
            if let Err(error) = self.fetch(self.clock.now() + WAIT_MAX).await {
                tracing::debug!(%error, "the topology could not be renewed");
            }
            runtime::sleep(jitter(2 * INTERVAL_MIN)).await;
        }
    }

    /// Fetches a topology and makes it the current map if it is not older than that.
    async fn fetch(&self, deadline: Instant) -> Result<()> {
        ::metrics::counter!(metrics::REFRESHES).increment(1);
        let result = match self.ask(deadline).await {
            Ok(topology) => self.adopt(topology),
            Err(error) => Err(error),
        };
        self.ended.send_modify(|ended| *ended += 1);
        result
    }

    fn adopt(&self, topology: Topology) -> Result<()> {
        if topology.cluster == ClusterId::default() {
            // To believe it would be to belong to no cluster for ever.
            return Err(Error::new(Reason::NotReady, "the node asked is not a member of a cluster yet"));
        }
        let before = self.current.load_full();
        if let Some(before) = &before {
            if before.cluster != topology.cluster {
                let text = format!(
                    "a node told of cluster {}, but this client works with cluster {}: check its endpoints",
                    topology.cluster, before.cluster
                );
                return Err(Error::new(Reason::WrongCluster, text));
            }
            if before.revision > topology.revision {
                // The node asked lags behind what is known already.
                return Ok(());
            }
        }
        let fetch = before.as_ref().map_or(1, |before| before.fetch + 1);
        let map = Map::new(fetch, topology, before.as_deref(), &self.pool, &self.seeds);
        self.current.store(Some(Arc::new(map)));
        Ok(())
    }

    /// The first topology that a node answers, the healthy ones asked first, starting with another one every time.
    async fn ask(&self, deadline: Instant) -> Result<Topology> {
        let mut last = None;
        for connection in self.connections() {
            let now = self.clock.now();
            if now >= deadline {
                break;
            }
            match connection.topology(deadline.min(now + ATTEMPT_MAX)).await {
                Ok(topology) => return Ok(topology),
                Err(error) => last = Some(error),
            }
        }
        let cause = last.map_or_else(|| "there was no time to ask".to_owned(), |error| error.message);
        let text = format!("no node tells the topology of the cluster ({}): {cause}", self.seeds.join(", "));
        Err(Error::new(Reason::NotReady, text))
    }

    /// Connections to all nodes known and to the endpoints, healthy ones first, in a turn that changes.
    pub(super) fn connections(&self) -> Vec<Connection> {
        let mut all: Vec<Connection> = Vec::new();
        let map = self.current.load();
        let nodes = map.iter().flat_map(|map| map.nodes.values().cloned());
        for connection in nodes.chain(self.seeds.iter().map(|seed| self.pool.connection(seed))) {
            if !all.iter().any(|known| known.address() == connection.address()) {
                all.push(connection);
            }
        }
        all.sort_by(|one, two| one.address().cmp(two.address()));
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % all.len().max(1);
        all.rotate_left(turn);
        all.sort_by_key(|connection| !connection.is_healthy());
        all
    }
}
