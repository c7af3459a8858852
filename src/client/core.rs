//! One call from its first attempt to its answer: where to ask, and again until the deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::{Either, select};
use parking_lot::Mutex;

use super::map::{Anchor, ShardState};
use super::replicas::{Wish, choose};
use super::retry::{Next, Trouble};
use super::topologies::Topologies;
use super::{Connection, Options, ReadFrom, metrics};
use crate::limits::RetryBudget;
use crate::runtime::{self, Clock, Instant, random_u64};
use crate::types::{
    Epoch, Error, Header, Kind, NodeId, ReadLevel, Reason, Request, RequestId, Response, Result, Role, ShardId,
    TableId, TableRef,
};

/// Retries allowed per call in the long run, in percent: a cluster in trouble is not asked much more than one that is
/// well.
const RETRY_PERCENT: f64 = 10.0;
/// Retries allowed at once beyond that, and a second. Callers beyond it retry slowly, and are woken when one of the
/// quick ones has found the shard's leader.
const RETRY_BURST: f64 = 300.0;

/// What the handles of one client share.
pub(super) struct Core {
    pub(super) topologies: Arc<Topologies>,
    pub(super) options: Options,
    pub(super) clock: Clock,
    client: u64,
    sequence: AtomicU64,
    budget: Mutex<RetryBudget>,
}

/// Where an attempt goes.
struct Target {
    node: NodeId,
    connection: Connection,
    state: Arc<ShardState>,
    shard: ShardId,
    table: TableId,
    /// How many fetches of the topology had ended when this was chosen.
    seen: u64,
}

impl Drop for Core {
    fn drop(&mut self) {
        self.topologies.closed.cancel();
    }
}

impl Core {
    pub(super) fn new(topologies: Arc<Topologies>, options: Options, clock: Clock) -> Core {
        let budget = Mutex::new(RetryBudget::new(RETRY_PERCENT / 100.0, RETRY_BURST, clock.now()));
        Core { topologies, options, clock, client: random_u64(), sequence: AtomicU64::new(1), budget }
    }

    /// An id that no other write has. Its time is this machine's wall clock: a shard forgets outcomes by it, so it
    /// should be right to some minutes.
    pub(super) fn request_id(&self) -> RequestId {
        RequestId {
            client: self.client,
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
            issued_ms: self.clock.wall_ms(),
        }
    }

    /// The shard that a key belongs to by the newest map, and the epoch it has there.
    pub(super) fn shard_of(&self, table: &str, key: &[u8]) -> Option<(ShardId, Epoch)> {
        let map = self.topologies.current();
        let entry = map.as_ref()?.table(table)?;
        let (shard, _) = entry.locate(Anchor::Key(key)).ok()?;
        Some((shard.id, shard.epoch))
    }

    /// The node that leads the key's shard, as far as is known.
    pub(super) fn leader_of(&self, table: &str, key: &[u8]) -> Option<NodeId> {
        let map = self.topologies.current();
        let (_, state) = map.as_ref()?.table(table)?.locate(Anchor::Key(key)).ok()?;
        state.leader()
    }

    /// Runs a call to its end. The request goes out unchanged in every attempt, its request id included.
    pub(super) async fn execute(
        &self,
        table: &str,
        request: &Request,
        anchor: Anchor<'_>,
        read_from: ReadFrom,
        deadline: Instant,
    ) -> Result<Response> {
        let (level, repeatable) = match request {
            Request::Read(read) => (read.level, true),
            Request::Scan(scan) => (scan.level, true),
            Request::History { .. } | Request::Changes(_) => (ReadLevel::Linearizable, true),
            Request::Write(write) => (ReadLevel::Linearizable, write.request.is_some()),
        };
        let is_read = matches!(request, Request::Read(_) | Request::Scan(_) | Request::Changes(_));
        let begun = self.clock.now();
        self.budget.lock().earn(begun);
        let mut trouble = Trouble::new(repeatable, begun, deadline);
        loop {
            let wish = Wish { level, read_from: if is_read { read_from } else { ReadFrom::Leader } };
            let target = match self.target(table, anchor, wish, &trouble)? {
                Some(target) => target,
                None => self.target_of_new_table(table, anchor, wish, &trouble, deadline).await?,
            };
            let now = self.clock.now();
            let until = trouble.attempt_until(now, deadline);
            let result = if self.options.pipelined {
                let table = TableRef { name: table, id: Some(target.table) };
                target.connection.call(table, request, until, false).await
            } else {
                target.connection.call_unary(table, request, until).await
            };
            let error = match result {
                Ok(response) => {
                    // How long there was nothing to tell says nothing about the node.
                    if !matches!(request, Request::Changes(_)) {
                        target.connection.note_latency(self.clock.now().saturating_duration_since(now));
                    }
                    target.learn(&response);
                    return Ok(response);
                }
                Err(error) => error,
            };
            self.note(&error, &target);
            match trouble.judge(error, target.node, self.clock.now()) {
                Next::Fail(error) => return Err(error),
                Next::Again => self.spend(&mut trouble, &target, deadline).await,
                Next::Refresh => {
                    self.topologies.newer(target.seen, deadline).await;
                    self.spend(&mut trouble, &target, deadline).await;
                }
                Next::Pause(pause) => {
                    target.pause(pause).await;
                    self.spend(&mut trouble, &target, deadline).await;
                }
            }
            if trouble.is_late(self.clock.now()) {
                return Err(trouble.give_up());
            }
            ::metrics::counter!(metrics::RETRIES).increment(1);
        }
    }

    /// Where to ask next by the newest map; none if the map does not have the table.
    fn target(&self, table: &str, anchor: Anchor<'_>, wish: Wish, trouble: &Trouble) -> Result<Option<Target>> {
        let seen = self.topologies.ended();
        let current = self.topologies.current();
        let map = current.as_ref().ok_or_else(|| Error::internal("a client without a map"))?;
        let Some(entry) = map.table(table) else { return Ok(None) };
        let (shard, state) = entry.locate(anchor)?;
        let zone = self.options.zone.as_deref();
        let (node, connection) = choose(map, shard, state, wish, zone, trouble)
            .ok_or_else(|| Error::new(Reason::NotReady, "the cluster's topology names no node: ask it again later"))?;
        Ok(Some(Target { node, connection, state: state.clone(), shard: shard.id, table: shard.table, seen }))
    }

    /// The same for a table that the map does not have (yet): another node may know more.
    async fn target_of_new_table(
        &self,
        table: &str,
        anchor: Anchor<'_>,
        wish: Wish,
        trouble: &Trouble,
        deadline: Instant,
    ) -> Result<Target> {
        /// Nodes asked whether they know the table: one may lag behind.
        const NODES: usize = 2;
        for _ in 0..NODES {
            let seen = self.topologies.ended();
            self.topologies.newer(seen, deadline).await;
            if let Some(target) = self.target(table, anchor, wish, trouble)? {
                return Ok(target);
            }
        }
        Err(trouble.no_such_table(table))
    }

    /// Learns from a failure for all callers.
    fn note(&self, error: &Error, target: &Target) {
        match error.kind() {
            Kind::Redirect if error.reason == Reason::NotLeader => match error.leader {
                Some(leader) if leader != target.node => {
                    target.state.set_leader(Some(leader));
                    let known = self.topologies.current().as_ref().is_some_and(|map| map.nodes.contains_key(&leader));
                    if !known {
                        self.topologies.want();
                    }
                }
                _ => target.state.doubt(target.node),
            },
            Kind::Unavailable | Kind::Undetermined | Kind::Corrupt => {
                target.state.doubt(target.node);
                self.topologies.want();
            }
            _ => {}
        }
    }

    /// Pays for a retry; waits a while first when the budget is spent, so that retries become slow, not impossible.
    async fn spend(&self, trouble: &mut Trouble, target: &Target, deadline: Instant) {
        let now = self.clock.now();
        if !self.budget.lock().try_spend(now) {
            ::metrics::counter!(metrics::THROTTLED).increment(1);
            target.pause(trouble.throttled().min(deadline.saturating_duration_since(now))).await;
        }
    }
}

impl Target {
    /// Learns from an answer.
    fn learn(&self, response: &Response) {
        let header: Option<&Header> = match response {
            Response::Values(values) => values.first().map(|answer| &answer.header),
            Response::Written(answer) => Some(&answer.header),
            Response::Page(answer) => Some(&answer.header),
            Response::Changes(answer) => Some(&answer.header),
        };
        if let Some(header) = header
            && header.role == Role::Leader
            && header.shard == self.shard
        {
            self.state.set_leader(Some(header.node));
            self.state.recover();
        }
    }

    /// Waits, but not once the shard's leader has answered somebody else.
    async fn pause(&self, pause: std::time::Duration) {
        struct Pausing<'a>(&'a ShardState);
        impl Drop for Pausing<'_> {
            fn drop(&mut self) {
                self.0.pausing.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.state.pausing.fetch_add(1, Ordering::Relaxed);
        let _counted = Pausing(&self.state);
        let sleep = std::pin::pin!(runtime::sleep(pause));
        let recovered = std::pin::pin!(self.state.recovered.notified());
        match select(sleep, recovered).await {
            Either::Left(_) | Either::Right(_) => {}
        }
    }
}
