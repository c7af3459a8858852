//! A node that keeps tables in memory, evaluates conditions as shards do, and fails when it is told to.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::client::fake::{Act, FakeNode, Seen, header};
use crate::client::{Client, Options};
use crate::keyspace::{Layout, ScanCursor, tag};
use crate::orders::schema::{ORDERS_BY_USER, PRODUCTS, TABLES, USER_STATS};
use crate::orders::{Order, Orders};
use crate::runtime::{Clock, ManualClock};
use crate::types::{
    Action, Answer, ClusterId, Epoch, Error, Header, Incarnation, NodeId, Observed, Outcome, Page, Partitioning,
    Reason, ReplicaId, Request, Response, Result, Row, ScanBounds, ScanRequest, ShardId, TableDescriptor, TableId,
    TableState, Test, Timestamp, Versioned, Write,
};
use crate::wire::admin::{NodeDetails, ReplicaDetails, ShardDetails, TableDetails, Topology};

/// Where the clocks of tests begin.
pub(super) const NOW_MS: u64 = 1_700_000_000_000;

/// What a node does to the write that is on its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is lost on its way.
    Lost,
    /// It takes effect and its answer is lost.
    Unanswered,
}

#[derive(Clone)]
struct Cell {
    timestamp: Timestamp,
    value: Bytes,
    expires_ms: Option<u64>,
}

/// What somebody else does to the store in between.
type Intruder = Box<dyn FnOnce(&mut State) + Send>;

#[derive(Default)]
struct State {
    /// Of the tables there are, in the order of their ids.
    names: Vec<String>,
    tables: BTreeMap<String, BTreeMap<Bytes, Cell>>,
    last: u64,
    now_ms: u64,
    /// Writes that took effect or should have.
    writes: usize,
    fault: Option<(usize, Fault)>,
    /// Runs before the write of this number, as another writer would.
    intruder: Option<(usize, Intruder)>,
}

/// The node, and a client's orders on it.
pub(super) struct Store {
    pub(super) node: FakeNode,
    pub(super) orders: Orders,
    pub(super) clock: Arc<ManualClock>,
    state: Arc<Mutex<State>>,
}

impl Store {
    /// All tables and views of orders, empty.
    pub(super) async fn start() -> Store {
        Store::with(&[&TABLES[..], &[ORDERS_BY_USER, USER_STATS, PRODUCTS]].concat()).await
    }

    /// These tables.
    pub(super) async fn with(tables: &[&str]) -> Store {
        let state = Arc::new(Mutex::new(State {
            now_ms: NOW_MS,
            names: tables.iter().map(|&name| name.to_owned()).collect(),
            ..State::default()
        }));
        let shared = state.clone();
        let node = FakeNode::start(move |seen| shared.lock().answer(seen));
        node.set_topology(topology(&node.address, tables));
        let (clock, hand) = Clock::manual(NOW_MS);
        let client = Client::connect_with(std::slice::from_ref(&node.address), Options::default(), clock.clone());
        let client = client.await.expect("connected");
        Store { node, orders: Orders::with_clock(client, clock), clock: hand, state }
    }

    /// Lets time pass for clients and the node.
    pub(super) fn pass_ms(&self, ms: u64) {
        let mut state = self.state.lock();
        state.now_ms += ms;
        self.clock.set_wall_ms(state.now_ms);
    }

    /// The n-th write from now on (the first is 0) meets a fault.
    pub(super) fn fail(&self, nth: usize, fault: Fault) {
        let mut state = self.state.lock();
        state.fault = Some((state.writes + nth, fault));
    }

    /// How many writes have been asked for.
    pub(super) fn writes(&self) -> usize {
        self.state.lock().writes
    }

    /// Something that another writer does right before the n-th write from now on.
    pub(super) fn before_write(&self, nth: usize, work: impl FnOnce(&mut Direct<'_>) + Send + 'static) {
        let mut state = self.state.lock();
        let at = state.writes + nth;
        state.intruder = Some((at, Box::new(move |state| work(&mut Direct { state }))));
    }

    /// Works on the tables as another writer.
    pub(super) fn direct<T>(&self, work: impl FnOnce(&mut Direct<'_>) -> T) -> T {
        work(&mut Direct { state: &mut self.state.lock() })
    }
}

/// The tables, past the client.
pub(super) struct Direct<'a> {
    state: &'a mut State,
}

impl Direct<'_> {
    /// Puts a value.
    pub(super) fn put(&mut self, table: &str, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.state.put(table, key.into(), value.into(), None);
    }

    /// Removes a key.
    pub(super) fn delete(&mut self, table: &str, key: &[u8]) {
        self.state.table(table).remove(key);
    }

    /// A value.
    pub(super) fn get(&mut self, table: &str, key: &[u8]) -> Option<Bytes> {
        self.state.live(table, key).map(|cell| cell.value)
    }

    /// All keys that have a value.
    pub(super) fn keys(&mut self, table: &str) -> Vec<String> {
        let keys: Vec<Bytes> = self.state.table(table).keys().cloned().collect();
        let live = keys.into_iter().filter(|key| self.state.live(table, key).is_some());
        live.map(|key| String::from_utf8_lossy(&key).into_owned()).collect()
    }

    /// An order among those not archived.
    pub(super) fn order(&mut self, id: &str) -> Option<Order> {
        let value = self.get("orders", id.as_bytes())?;
        Some(serde_json::from_slice(&value).expect("an order"))
    }
}

impl State {
    fn table(&mut self, name: &str) -> &mut BTreeMap<Bytes, Cell> {
        self.tables.entry(name.to_owned()).or_default()
    }

    fn live(&mut self, table: &str, key: &[u8]) -> Option<Cell> {
        let now_ms = self.now_ms;
        self.table(table).get(key).filter(|cell| cell.expires_ms.is_none_or(|at| at > now_ms)).cloned()
    }

    fn put(&mut self, table: &str, key: Bytes, value: Bytes, ttl_ms: Option<u64>) {
        self.last += 1;
        let expires_ms = ttl_ms.map(|ttl| self.now_ms + ttl);
        let cell = Cell { timestamp: Timestamp(self.last), value, expires_ms };
        self.table(table).insert(key, cell);
    }

    fn header(&self) -> Header {
        Header { as_of: Timestamp(self.last), age: Some(Default::default()), ..header(1, 1) }
    }

    fn answer(&mut self, seen: &Seen) -> Act {
        Act::Answer(match &seen.request {
            Request::Read(read) => {
                let found = |key: &Bytes| {
                    let body = self.live(&seen.table, key).map(versioned);
                    Answer { header: self.header(), body }
                };
                Ok(Response::Values(read.keys.iter().map(found).collect()))
            }
            Request::Write(write) => return self.write(&seen.table, write),
            Request::Scan(scan) => self.scan(&seen.table, scan).map(Response::Page),
            _ => Err(Error::invalid("orders ask for nothing else")),
        })
    }

    fn write(&mut self, table: &str, write: &Write) -> Act {
        let number = self.writes;
        if let Some((_, work)) = self.intruder.take_if(|(at, _)| *at == number) {
            work(self);
        }
        self.writes += 1;
        let tags: Vec<&[u8]> = write
            .operations
            .iter()
            .map(|operation| &operation.key)
            .chain(write.conditions.iter().map(|condition| &condition.key))
            .map(|key| tag(key))
            .collect();
        assert!(tags.windows(2).all(|pair| pair[0] == pair[1]), "a batch lies in one shard");
        // A reason that the client does not retry: for the caller it is as if the process had ended here.
        let lost = || Act::Answer(Err(Error::internal("the node was told to fail")));
        let fault = self.fault.take_if(|(at, _)| *at == number).map(|(_, fault)| fault);
        if fault == Some(Fault::Lost) {
            return lost();
        }
        let outcome = self.evaluate(table, write);
        match fault {
            Some(_) => lost(),
            None => Act::Answer(Ok(Response::Written(Answer { header: self.header(), body: outcome }))),
        }
    }

    fn evaluate(&mut self, table: &str, write: &Write) -> Outcome {
        for (condition, number) in write.conditions.iter().zip(0..) {
            let current = self.live(table, &condition.key);
            let holds = match &condition.test {
                Test::Absent => current.is_none(),
                Test::Present => current.is_some(),
                Test::Version(version) => current.as_ref().is_some_and(|cell| cell.timestamp == *version),
                Test::Value(value) => current.as_ref().is_some_and(|cell| cell.value == *value),
            };
            if !holds {
                let observed = Some(Observed { condition: number, current: current.map(versioned) });
                return Outcome { applied: false, timestamp: Timestamp(self.last), integers: vec![], observed };
            }
        }
        for operation in &write.operations {
            match &operation.action {
                Action::Put { value, ttl_ms } => self.put(table, operation.key.clone(), value.clone(), *ttl_ms),
                Action::Delete => {
                    self.table(table).remove(&operation.key);
                }
                other => panic!("orders do nothing like {other:?}"),
            }
        }
        Outcome { applied: true, timestamp: Timestamp(self.last), integers: vec![], observed: None }
    }

    /// In the order of encoded keys, as shards do it: clients look into cursors to find the shard of the next page.
    fn scan(&mut self, table: &str, scan: &ScanRequest) -> Result<Answer<Page>> {
        let number = self.names.iter().position(|name| name == table).expect("a table of this node");
        let layout = Layout::of(&descriptor(table, number));
        let within = |key: &Bytes| match &scan.bounds {
            ScanBounds::All => true,
            ScanBounds::Tag(wanted) => tag(key) == wanted,
            _ => panic!("orders scan nothing like {:?}", scan.bounds),
        };
        let from = match &scan.cursor {
            Some(cursor) => ScanCursor::decode(cursor, &layout, &scan.bounds, scan.reverse)?.next,
            None => Bytes::new(),
        };
        let keys = self.table(table).keys().filter(|key| within(key)).map(|key| (layout.encode(key), key.clone()));
        let mut keys: Vec<(Bytes, Bytes)> = keys.filter(|(encoded, _)| *encoded >= from).collect();
        keys.sort_unstable();
        let mut rows = Vec::new();
        let mut cursor = None;
        for (next, key) in keys {
            let Some(cell) = self.live(table, &key) else { continue };
            if rows.len() == scan.rows_max {
                cursor = Some(ScanCursor { next }.encode(&layout, &scan.bounds, scan.reverse));
                break;
            }
            rows.push(Row { key, timestamp: cell.timestamp, value: Some(cell.value), expires_ms: cell.expires_ms });
        }
        Ok(Answer { header: self.header(), body: Page { count: rows.len() as u64, rows, cursor } })
    }
}

fn versioned(cell: Cell) -> Versioned {
    Versioned { timestamp: cell.timestamp, value: cell.value, expires_ms: cell.expires_ms }
}

fn topology(address: &str, tables: &[&str]) -> Topology {
    let node = NodeDetails {
        id: NodeId(1),
        address: address.to_owned(),
        http_address: String::new(),
        zone: String::new(),
        incarnation: Incarnation(1),
        alive: true,
        standing: "serving".to_owned(),
        replicas: None,
        leaders: None,
        version: String::new(),
    };
    let tables = tables.iter().zip(0..).map(|(name, number)| table(name, number)).collect();
    Topology { cluster: ClusterId(1), revision: 1, nodes: vec![node], tables }
}

fn descriptor(name: &str, number: usize) -> TableDescriptor {
    TableDescriptor {
        id: TableId(number as u32 + 2),
        name: name.to_owned(),
        partitioning: Partitioning::Hash,
        replication: 1,
        read_replicas: 0,
        read_replica_zone: None,
        history_ms: 0,
        state: TableState::Ready,
        view: None,
    }
}

fn table(name: &str, number: usize) -> TableDetails {
    let table = descriptor(name, number);
    let (start, end) = Layout::of(&table).initial_ranges(1, &[]).expect("a range").remove(0);
    let shard = ShardDetails {
        id: ShardId(u64::from(table.id.0)),
        table: table.id,
        start,
        end,
        epoch: Epoch(1),
        replicas: vec![ReplicaDetails { id: ReplicaId(1), node: NodeId(1), voter: true }],
        leader: Some(NodeId(1)),
        term: None,
        last_log: None,
        applied: None,
        settled: None,
    };
    TableDetails { shards: vec![shard], table }
}

/// Whether a result failed for this reason.
#[track_caller]
pub(super) fn refused<T: std::fmt::Debug>(result: Result<T>, reason: Reason) -> String {
    let error = result.expect_err("refused");
    assert_eq!(error.reason, reason, "{error}");
    error.message
}
