//! The one door for data: `(table, Request) -> Response`, from any node.
//!
//! A request is routed by this node's picture of the catalog to the shard that owns its key. If the local replica can
//! answer, it does; otherwise the request is passed on, once, to the node that leads the shard. What is passed on
//! carries `forwarded`, and a forwarded request is answered or refused, never passed on again: so no request runs in
//! circles, and a client that knows no routing still reaches every key through any node.
//!
//! Failures that prove that nothing happened (not the leader, the range has changed, no connection) are tried again
//! here until the deadline. A write whose fate is unknown is tried again only under its request id, which makes that
//! safe; without one, the caller is told `RESULT_UNDETERMINED`.
//!
//! Scans, which cross shards, are paged in `paging`; each page takes the same way.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;

use super::host::Node;
use super::metrics;
use crate::catalog::TableEntry;
use crate::runtime::planted::{self, Bug};
use crate::runtime::{Instant, random_u64, sleep, timeout_at};
use crate::shard::{Served, Shard};
use crate::types::{
    Answer, Error, Header, Kind, NodeId, Outcome, Page, Read, ReadLevel, Reason, Request, Response, Result, Row,
    ShardDescriptor, TableId, Timestamp, Versioned, Write,
};

/// Between attempts: an election takes about a second, so asking again sooner than this only makes noise.
const RETRY_WAIT: Duration = Duration::from_millis(40);
/// How long one forwarded attempt may take when it can be repeated safely: a node that hangs must not use up the whole
/// deadline.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(1_500);
/// How long a table stays unknown here after the catalog's leader has confirmed that it is.
const UNKNOWN_TABLE_KEPT: Duration = Duration::from_millis(200);
/// Names remembered as unknown; a bound against floods of wrong names.
const UNKNOWN_TABLES_MAX: usize = 1_024;

/// What comes with a request beside its content.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// Give up then.
    pub deadline: Instant,
    /// Another node has passed it on: answer or refuse.
    pub forwarded: bool,
}

/// Where an attempt can be made.
enum Place {
    Here(Arc<Shard>),
    There(NodeId),
    Nowhere,
}

impl Node {
    /// Answers one request about the data of one table.
    ///
    /// Errors: `UNKNOWN_TABLE`, `CROSS_SHARD`, `INVALID_CURSOR` and the refusals of the shard; `NOT_LEADER` and
    /// `WRONG_EPOCH` only when forwarded, else they are followed until the deadline.
    pub async fn execute(&self, table: &str, request: Request, context: Context) -> Result<Response> {
        let entry = self.table(table, context).await?;
        match request {
            Request::Write(write) => {
                ::metrics::counter!(metrics::REQUESTS, "kind" => "write").increment(1);
                self.write(&entry, write, context).await.map(Response::Written)
            }
            Request::Read(read) => {
                ::metrics::counter!(metrics::REQUESTS, "kind" => "read").increment(1);
                self.read(&entry, read, context).await.map(Response::Values)
            }
            Request::Scan(scan) => {
                ::metrics::counter!(metrics::REQUESTS, "kind" => "scan").increment(1);
                self.scan(&entry, scan, context).await.map(Response::Page)
            }
            Request::History { key, before, rows_max } => {
                ::metrics::counter!(metrics::REQUESTS, "kind" => "history").increment(1);
                self.history(&entry, key, before, rows_max, context).await.map(Response::Page)
            }
        }
    }

    /// The table of this name. A name this node does not know may be newer than its picture: it asks the catalog's
    /// leader for the newest revision before it says no.
    async fn table(&self, name: &str, context: Context) -> Result<Arc<TableEntry>> {
        if let Some(entry) = self.directory().table_by_name(name) {
            return Ok(entry.clone());
        }
        let unknown =
            || Error::new(Reason::UnknownTable, format!("there is no table '{name}'; `trivet table list` shows them"));
        let now = self.clock().now();
        let asked_lately = {
            let mut tables = self.unknown_tables.lock();
            if tables.len() >= UNKNOWN_TABLES_MAX {
                tables.retain(|_, asked| now.saturating_duration_since(*asked) < UNKNOWN_TABLE_KEPT);
            }
            tables.get(name).is_some_and(|asked| now.saturating_duration_since(*asked) < UNKNOWN_TABLE_KEPT)
        };
        if asked_lately {
            return Err(unknown());
        }
        let caught_up = timeout_at(context.deadline, async {
            let revision = self.newest_revision().await?;
            self.wait_for_revision(revision).await;
            Ok::<_, Error>(())
        });
        match caught_up.await {
            Some(Ok(())) => {}
            Some(Err(error)) => return Err(error),
            None => return Err(Error::new(Reason::DeadlineExceeded, "the catalog could not be read in time")),
        }
        if let Some(entry) = self.directory().table_by_name(name) {
            return Ok(entry.clone());
        }
        let mut tables = self.unknown_tables.lock();
        if tables.len() < UNKNOWN_TABLES_MAX {
            tables.insert(name.to_owned(), now);
        }
        Err(unknown())
    }

    /// Waits until this node's picture of the catalog is at least this new.
    pub async fn wait_for_revision(&self, revision: Timestamp) {
        let mut changes = self.directory_changes();
        // The sender lives as long as self.
        let _ = changes.wait_for(|&seen| seen >= revision).await;
    }

    async fn write(&self, entry: &Arc<TableEntry>, write: Write, context: Context) -> Result<Answer<Outcome>> {
        if entry.descriptor.id == TableId::SYSTEM {
            return Err(Error::new(
                Reason::ReadOnlyTable,
                "the system table is changed only by the verbs of the cluster (table, node, shard)",
            ));
        }
        let layout = &entry.layout;
        let mut keys = (write.operations.iter().map(|operation| &operation.key))
            .chain(write.conditions.iter().map(|condition| &condition.key));
        let first = keys
            .next()
            .ok_or_else(|| Error::new(Reason::BatchTooLarge, "a batch needs at least one operation or condition"))?;
        let atom = layout.atom(first);
        if keys.any(|key| layout.atom(key) != atom) {
            return Err(Error::new(
                Reason::CrossShard,
                "the keys of a batch must share a tag (hash tables: {tag}) or a group (range tables with a delimiter), \
                 so that they stay in one shard",
            ));
        }
        let anchor = layout.encode(first);
        let repeatable = write.request.is_some();
        let local = |shard: Arc<Shard>, descriptor: Arc<ShardDescriptor>| {
            let mut encoded = write.clone();
            for condition in &mut encoded.conditions {
                condition.key = layout.encode(&condition.key);
            }
            for operation in &mut encoded.operations {
                operation.key = layout.encode(&operation.key);
            }
            async move {
                if shard.is_leader() {
                    self.refuse_without_room(&shard)?;
                }
                shard.write(descriptor.epoch, encoded, context.deadline).await
            }
        };
        let remote = || Request::Write(write.clone());
        let response = self.route(entry, &anchor, ReadLevel::Linearizable, repeatable, context, local, remote).await?;
        match response {
            Routed::Here(served, descriptor) => Ok(self.answer_of(served, &descriptor)),
            Routed::There(Response::Written(answer)) => Ok(answer),
            Routed::There(_) => Err(mismatched()),
        }
    }

    async fn read(
        &self,
        entry: &Arc<TableEntry>,
        read: Read,
        context: Context,
    ) -> Result<Vec<Answer<Option<Versioned>>>> {
        let encoded: Vec<Bytes> = read.keys.iter().map(|key| entry.layout.encode(key)).collect();
        if let [only] = encoded.as_slice() {
            return self.read_group(entry, &read, vec![only.clone()], &[0], context).await;
        }
        // Group the keys by shard; each group is read on its own, all at once.
        let mut groups: Vec<(Arc<ShardDescriptor>, Vec<usize>)> = Vec::new();
        for (position, key) in encoded.iter().enumerate() {
            let shard = entry.shards.locate(key);
            match groups.iter_mut().find(|(known, _)| known.id == shard.id) {
                Some((_, positions)) => positions.push(position),
                None => groups.push((shard.clone(), vec![position])),
            }
        }
        let reads = groups.iter().map(|(_, positions)| {
            let keys = positions.iter().map(|&position| encoded[position].clone()).collect();
            self.read_group(entry, &read, keys, positions, context)
        });
        let mut answers: Vec<Option<Answer<Option<Versioned>>>> = vec![None; read.keys.len()];
        for ((_, positions), group) in groups.iter().zip(join_all(reads).await) {
            for (&position, answer) in positions.iter().zip(group?) {
                answers[position] = Some(answer);
            }
        }
        Ok(answers.into_iter().map(|answer| answer.expect("every key lies in one group")).collect())
    }

    /// Reads keys that lie in one shard.
    async fn read_group(
        &self,
        entry: &Arc<TableEntry>,
        read: &Read,
        keys: Vec<Bytes>,
        positions: &[usize],
        context: Context,
    ) -> Result<Vec<Answer<Option<Versioned>>>> {
        let level = if planted::is(Bug::FollowerRead) { ReadLevel::Any } else { read.level };
        let keys = &keys;
        let local = |shard: Arc<Shard>, descriptor: Arc<ShardDescriptor>| async move {
            shard.read(descriptor.epoch, keys, level, context.deadline).await
        };
        let remote = || {
            let keys = positions.iter().map(|&position| read.keys[position].clone()).collect();
            Request::Read(Read { keys, level })
        };
        match self.route(entry, &keys[0], level, true, context, local, remote).await? {
            Routed::Here(served, descriptor) => {
                let header = self.header(&served, &descriptor);
                Ok(served.body.into_iter().map(|body| Answer { header: header.clone(), body }).collect())
            }
            Routed::There(Response::Values(answers)) if answers.len() == keys.len() => Ok(answers),
            Routed::There(_) => Err(mismatched()),
        }
    }

    async fn history(
        &self,
        entry: &Arc<TableEntry>,
        key: Bytes,
        before: Option<Timestamp>,
        rows_max: usize,
        context: Context,
    ) -> Result<Answer<Page>> {
        let encoded = entry.layout.encode(&key);
        let rows_max = rows_max.clamp(1, self.options().limits.page_rows_max);
        let local = |shard: Arc<Shard>, descriptor: Arc<ShardDescriptor>| {
            let encoded = encoded.clone();
            let before = before.unwrap_or(Timestamp::MAX);
            async move { shard.history(descriptor.epoch, encoded, before, rows_max, context.deadline).await }
        };
        let remote = || Request::History { key: key.clone(), before, rows_max };
        match self.route(entry, &encoded, ReadLevel::Linearizable, true, context, local, remote).await? {
            Routed::Here(served, descriptor) => {
                let header = self.header(&served, &descriptor);
                let rows: Vec<Row> = (served.body.into_iter())
                    .map(|version| Row {
                        key: key.clone(),
                        timestamp: version.timestamp,
                        value: version.value,
                        expires_ms: version.expires_ms,
                    })
                    .collect();
                let count = rows.len() as u64;
                Ok(Answer { header, body: Page { rows, count, cursor: None } })
            }
            Routed::There(Response::Page(answer)) => Ok(answer),
            Routed::There(_) => Err(mismatched()),
        }
    }

    /// Finds the replica that can answer for `anchor` and asks it, again and again as long as nothing has happened and
    /// the deadline allows it.
    #[allow(clippy::too_many_arguments)]
    pub(super) async fn route<T, L, F, R>(
        &self,
        entry: &Arc<TableEntry>,
        anchor: &[u8],
        level: ReadLevel,
        repeatable: bool,
        context: Context,
        local: L,
        remote: R,
    ) -> Result<Routed<T>>
    where
        L: Fn(Arc<Shard>, Arc<ShardDescriptor>) -> F,
        F: Future<Output = Result<Served<T>>>,
        R: Fn() -> Request,
    {
        let name = &entry.descriptor.name;
        let mut entry = entry.clone();
        let mut hint: Option<NodeId> = None;
        let mut failed: Option<NodeId> = None;
        let mut told: Option<Error> = None;
        loop {
            let descriptor = entry.shards.locate(anchor).clone();
            let error = match self.place(&descriptor, level, hint.take(), failed.take(), context.forwarded) {
                Place::Here(shard) => match local(shard, descriptor.clone()).await {
                    Ok(served) => return Ok(Routed::Here(served, descriptor)),
                    Err(error) => error,
                },
                Place::There(node) => {
                    ::metrics::counter!(metrics::FORWARDED).increment(1);
                    let now = self.clock().now();
                    let patience = if repeatable { ATTEMPT_TIMEOUT } else { context.deadline.duration_since(now) };
                    let deadline = context.deadline.min(now + patience);
                    let asked = match self.connection(node) {
                        Ok(connection) => connection.call(name, &remote(), deadline, true).await,
                        Err(error) => Err(error),
                    };
                    match asked {
                        Ok(response) => return Ok(Routed::There(response)),
                        Err(error) => {
                            // A leader whose disk is full is still the one to ask, until it has handed over.
                            let answered = error.kind() == Kind::Redirect || error.reason == Reason::DiskFull;
                            if error.leader != Some(node) && !answered {
                                failed = Some(node);
                            }
                            error
                        }
                    }
                }
                Place::Nowhere => Error::new(
                    Reason::NoQuorum,
                    format!("no leader of {} is known to this node right now; try again in a moment", descriptor.id),
                )
                .with_retry_after(RETRY_WAIT),
            };
            let again = match error.kind() {
                Kind::Redirect | Kind::Refresh | Kind::Unavailable => true,
                Kind::Undetermined => repeatable,
                _ => false,
            };
            let redirect = error.leader.filter(|&leader| leader != self.id());
            let wait = if redirect.is_some() && error.kind() == Kind::Redirect {
                Duration::ZERO
            } else {
                RETRY_WAIT + Duration::from_millis(random_u64() % 20)
            };
            if error.reason == Reason::DiskFull {
                told = Some(error.clone());
            }
            let now = self.clock().now();
            if !again || context.forwarded || now + wait >= context.deadline {
                // That time ran out, or that nobody was there at the end, says less than what a leader gave as its reason.
                let says_little =
                    matches!(error.reason, Reason::DeadlineExceeded | Reason::NoQuorum | Reason::NotLeader);
                return Err(told.filter(|_| says_little).unwrap_or(error));
            }
            hint = redirect;
            sleep(wait).await;
            // The range may have moved on meanwhile.
            if let Some(newer) = self.directory().table(entry.descriptor.id) {
                entry = newer.clone();
            }
        }
    }

    /// Where to make the next attempt.
    fn place(
        &self,
        descriptor: &ShardDescriptor,
        level: ReadLevel,
        hint: Option<NodeId>,
        failed: Option<NodeId>,
        forwarded: bool,
    ) -> Place {
        let hosted = self.replicas().get(descriptor.id);
        // A leader that hands over refuses and names another before it knows itself that it leads no more: to ask it
        // again at once would go round in circles until the other leads.
        if let Some(shard) = &hosted
            && (forwarded || level == ReadLevel::Any || (shard.is_leader() && hint.is_none()))
        {
            return Place::Here(shard.clone());
        }
        if forwarded {
            return Place::Nowhere;
        }
        let known = match &hosted {
            Some(shard) => shard.leader().map(|(_, node)| node),
            // Any replica knows the leader better than a node without one.
            None => descriptor.replicas.iter().map(|replica| replica.node).find(|&node| self.hears(node)),
        };
        let elsewhere = |node: &NodeId| *node != self.id();
        match hint.or(known).filter(elsewhere).filter(|node| Some(*node) != failed) {
            Some(node) => Place::There(node),
            None if hosted.is_some() => Place::Nowhere,
            None => {
                let mut others = descriptor.replicas.iter().map(|replica| replica.node).filter(elsewhere);
                others.find(|node| Some(*node) != failed).map_or(Place::Nowhere, Place::There)
            }
        }
    }

    pub(super) fn header<T>(&self, served: &Served<T>, descriptor: &ShardDescriptor) -> Header {
        let identity = self.try_identity().expect("a node with replicas is a member");
        Header {
            cluster: identity.cluster,
            node: identity.node,
            shard: descriptor.id,
            epoch: served.epoch,
            role: served.role,
            as_of: served.as_of,
            age: served.age,
            degraded: false,
        }
    }

    /// The header of an answer that no shard was needed for.
    pub(super) fn idle_header(&self, entry: &TableEntry) -> Header {
        let identity = self.try_identity().expect("a node with a catalog is a member");
        let first = entry.shards.iter().next().expect("a table has shards");
        Header {
            cluster: identity.cluster,
            node: identity.node,
            shard: first.id,
            epoch: first.epoch,
            role: crate::types::Role::Follower,
            as_of: Timestamp::ZERO,
            age: None,
            degraded: false,
        }
    }

    fn answer_of<T>(&self, served: Served<T>, descriptor: &ShardDescriptor) -> Answer<T> {
        Answer { header: self.header(&served, descriptor), body: served.body }
    }
}

/// An answer, and by whom.
pub(super) enum Routed<T> {
    /// A replica of this node.
    Here(Served<T>, Arc<ShardDescriptor>),
    /// Another node.
    There(Response),
}

pub(super) fn mismatched() -> Error {
    Error::internal("another node answered a different question; do the versions match?")
}
