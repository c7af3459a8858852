//! The ways to the cluster: a client that routes, or one bound to a node.
//!
//! One call here is one logical operation's request with all its retries. The routing way is the public client's own; the
//! bound way asks one node only, which forwards what it does not lead, and asks it again under the same request id until
//! the deadline. Both say at the end whether a write may have taken effect ([`Lost::unknown`]).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use trivet::client::{Admin, Changes, Client, Connection, Options, ReadFrom, Table};
use trivet::runtime::Clock;
use trivet::types::{
    Answer, ChangesPage, ChangesRequest, Error, Kind, Outcome, Page, Read, ReadLevel, Reason, Request, RequestId,
    Response, ScanBounds, ScanRequest, Versioned, Write,
};

use super::Context;

/// Longest time for one call, all its attempts together: longer than an election takes, and short enough that calls
/// without an answer stay few.
pub const PATIENCE: Duration = Duration::from_secs(4);
/// Longest wait for one attempt of a bound client.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Pause between attempts of a bound client: there is nobody else to ask.
const PAUSE: Duration = Duration::from_millis(60);
/// Longest wait for a cluster that should be healthy.
const CONNECT: Duration = Duration::from_secs(60);

/// A request that was not answered.
#[derive(Clone, Debug)]
pub struct Lost {
    /// Why.
    pub error: Error,
    /// Whether it may have had, or may still have, an effect.
    pub unknown: bool,
}

impl Lost {
    fn of_read(error: Error) -> Lost {
        Lost { error, unknown: false }
    }

    fn of_write(error: Error) -> Lost {
        let unknown = error.kind().leaves_open();
        Lost { error, unknown }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.error.reason.as_str())
    }
}

/// Request ids that no other write has.
struct Ids {
    client: u64,
    sequence: AtomicU64,
}

/// All ways to one table.
pub struct Doors {
    table: Arc<str>,
    routing: Table,
    admin: Admin,
    connections: Vec<Connection>,
    ids: Arc<Ids>,
    clock: Clock,
}

impl Doors {
    /// Connects to the cluster. Errors: no node answers for a minute.
    pub async fn open(context: &Context, table: &str) -> anyhow::Result<Doors> {
        let clock = Clock::system();
        let deadline = clock.now() + CONNECT;
        let options = Options { deadline: PATIENCE, ..Options::default() };
        let client = loop {
            match Client::connect(&context.nodes, options.clone()).await {
                Ok(client) => break client,
                Err(error) if clock.now() >= deadline => return Err(error).context("no node answers"),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        };
        let connections = context.nodes.iter().map(|node| Connection::new(node.as_str(), clock.clone())).collect();
        let ids = Arc::new(Ids { client: trivet::runtime::random_u64(), sequence: AtomicU64::new(1) });
        Ok(Doors { table: table.into(), routing: client.table(table), admin: client.admin(), connections, ids, clock })
    }

    /// The way that routes by itself.
    pub fn routing(&self) -> Access {
        self.access(Way::Routing(self.routing.clone()))
    }

    /// A way that routes by itself and reads from these replicas.
    pub fn reading_from(&self, read_from: ReadFrom) -> Access {
        self.access(Way::Routing(self.routing.read_from(read_from)))
    }

    /// The way through one node.
    pub fn bound(&self, node: usize) -> Access {
        self.access(Way::Bound(self.connection(node).clone()))
    }

    /// The way of a worker: half of them route, the others are spread over the nodes.
    pub fn of_worker(&self, worker: usize) -> Access {
        if worker.is_multiple_of(2) { self.routing() } else { self.bound(worker / 2) }
    }

    /// What changes in the table, followed by the client that routes.
    pub fn changes(&self) -> Changes {
        self.routing.changes(ScanBounds::All)
    }

    /// The table's name.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// The cluster's own verbs, with this much time for each.
    pub fn admin(&self, patience: Duration) -> Admin {
        self.admin.within(patience)
    }

    /// The connection to one node.
    pub fn connection(&self, node: usize) -> &Connection {
        &self.connections[node % self.connections.len()]
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.connections.len()
    }

    fn access(&self, way: Way) -> Access {
        Access { way, any_replica: false, table: self.table.clone(), ids: self.ids.clone(), clock: self.clock.clone() }
    }
}

#[derive(Clone)]
enum Way {
    Routing(Table),
    Bound(Connection),
}

/// One way to one table. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    way: Way,
    /// Whether the replica of the node that is asked shall answer reads that are the leader's otherwise.
    any_replica: bool,
    table: Arc<str>,
    ids: Arc<Ids>,
    clock: Clock,
}

impl Access {
    /// The same way with reads that whatever replica is asked shall answer if it can.
    pub fn of_any_replica(self) -> Access {
        Access { any_replica: true, ..self }
    }

    /// An id that no other write has, issued now.
    pub fn request_id(&self) -> RequestId {
        let sequence = self.ids.sequence.fetch_add(1, Ordering::Relaxed);
        RequestId { client: self.ids.client, sequence, issued_ms: self.clock.wall_ms() }
    }

    /// Writes; under a new request id if the write has none.
    pub async fn write(&self, mut write: Write) -> Result<Answer<Outcome>, Lost> {
        write.request.get_or_insert_with(|| self.request_id());
        match self.ask(&Request::Write(write)).await {
            Ok(Response::Written(answer)) => Ok(answer),
            Ok(_) => Err(Lost::of_write(Error::internal("not the answer of a write"))),
            Err(error) => Err(Lost::of_write(error)),
        }
    }

    /// Reads one key.
    pub async fn read(&self, key: impl Into<Bytes>, level: ReadLevel) -> Result<Answer<Option<Versioned>>, Lost> {
        let mut answers = self.read_all(vec![key.into()], level).await?;
        answers.pop().ok_or_else(|| Lost::of_read(Error::internal("no value")))
    }

    /// Reads some keys of one shard, one after the other: the answers need not hold at one moment.
    pub async fn read_all(&self, keys: Vec<Bytes>, level: ReadLevel) -> Result<Vec<Answer<Option<Versioned>>>, Lost> {
        let count = keys.len();
        match self.ask(&Request::Read(Read { keys, level, any_replica: self.any_replica })).await {
            Ok(Response::Values(answers)) if answers.len() == count => Ok(answers),
            Ok(_) => Err(Lost::of_read(Error::internal("not one value per key"))),
            Err(error) => Err(Lost::of_read(error)),
        }
    }

    /// One page of a scan.
    pub async fn page(&self, scan: ScanRequest) -> Result<Answer<Page>, Lost> {
        self.pages(&Request::Scan(ScanRequest { any_replica: scan.any_replica || self.any_replica, ..scan })).await
    }

    /// The newest versions of a key.
    pub async fn history(&self, key: impl Into<Bytes>, rows_max: usize) -> Result<Answer<Page>, Lost> {
        self.pages(&Request::History { key: key.into(), before: None, rows_max }).await
    }

    async fn pages(&self, request: &Request) -> Result<Answer<Page>, Lost> {
        match self.ask(request).await {
            Ok(Response::Page(answer)) => Ok(answer),
            Ok(_) => Err(Lost::of_read(Error::internal("not a page"))),
            Err(error) => Err(Lost::of_read(error)),
        }
    }

    async fn ask(&self, request: &Request) -> Result<Response, Error> {
        match &self.way {
            Way::Routing(table) => route(table, request).await,
            Way::Bound(connection) => self.insist(connection, request).await,
        }
    }

    /// Asks one node until it answers or refuses for good.
    async fn insist(&self, connection: &Connection, request: &Request) -> Result<Response, Error> {
        let deadline = self.clock.now() + PATIENCE;
        let write = matches!(request, Request::Write(_));
        let mut unknown = false;
        loop {
            let until = deadline.min(self.clock.now() + ATTEMPT);
            let error = match connection.call(&*self.table, request, until, false).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            unknown |= write && error.kind().leaves_open();
            let final_word = matches!(error.kind(), Kind::Invalid | Kind::NotFound);
            if final_word || self.clock.now() + PAUSE >= deadline {
                return Err(if unknown { Error { reason: Reason::ResultUndetermined, ..error } } else { error });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// One attempt at one node, without any retry: for those who want to lose the answer.
pub struct Attempt<'a> {
    access: &'a Access,
}

impl Access {
    /// The node's connection for single attempts; none on the way that routes.
    pub fn attempt(&self) -> Option<Attempt<'_>> {
        matches!(self.way, Way::Bound(_)).then_some(Attempt { access: self })
    }
}

impl Attempt<'_> {
    /// Sends a write once; dropping the future loses the answer, not the write.
    pub async fn write(&self, write: Write) -> Result<Answer<Outcome>, Lost> {
        let Way::Bound(connection) = &self.access.way else {
            return Err(Lost::of_write(Error::internal("an attempt needs a node")));
        };
        let until = self.access.clock.now() + ATTEMPT;
        match connection.call(&*self.access.table, &Request::Write(write), until, false).await {
            Ok(Response::Written(answer)) => Ok(answer),
            Ok(_) => Err(Lost::of_write(Error::internal("not the answer of a write"))),
            Err(error) => Err(Lost::of_write(error)),
        }
    }

    /// Asks once for a page of changes.
    pub async fn changes(&self, request: ChangesRequest) -> Result<Answer<ChangesPage>, Error> {
        let Way::Bound(connection) = &self.access.way else { return Err(Error::internal("an attempt needs a node")) };
        let until = self.access.clock.now() + ATTEMPT;
        match connection.call(&*self.access.table, &Request::Changes(request), until, false).await? {
            Response::Changes(page) => Ok(page),
            _ => Err(Error::internal("not a page of changes")),
        }
    }
}

/// The same request by the verbs of the routing client.
async fn route(table: &Table, request: &Request) -> Result<Response, Error> {
    match request {
        Request::Read(read) => match read.keys.as_slice() {
            [key] => Ok(Response::Values(vec![table.get_with(key.clone(), read.level).await?])),
            keys => Ok(Response::Values(table.at(read.level).batch_get(keys).await?)),
        },
        Request::Write(write) => Ok(Response::Written(table.batch(write.clone()).await?)),
        Request::Scan(scan) => Ok(Response::Page(table.scan_page(scan.clone()).await?)),
        Request::History { key, before, rows_max } => {
            Ok(Response::Page(table.history(key.clone(), *before, *rows_max).await?))
        }
        Request::Changes(_) => Err(Error::internal("changes are followed, not asked for page by page")),
    }
}
