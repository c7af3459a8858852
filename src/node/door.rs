//! The one door for data: `(table, Request) -> Response`, from any node.
//!
//! A request is routed by this node's picture of the catalog to the shard that owns its key. If the local replica can
//! answer, it does: that of the leader everything, any other what its level allows and it can prove. Otherwise the request
//! is passed on, once, to the node that leads the shard. What is passed on carries `forwarded`, and a forwarded request is
//! answered or refused, never passed on again: so no request runs in circles, and a client that knows no routing still
//! reaches every key through any node.
//!
//! Failures that prove that nothing happened (not the leader, the range has changed, no connection) are tried again
//! until the deadline (`routing`). A write whose fate is unknown is tried again only under its request id, which makes
//! that safe; without one, the caller is told `RESULT_UNDETERMINED`.
//!
//! Scans, which cross shards, are paged in `paging`, and what changes is followed in `changes`; each page takes the same way.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;

use super::host::Node;
use super::metrics;
use super::routing::{Routed, copies_may_answer};
use super::views::Reached;
use crate::catalog::TableEntry;
use crate::runtime::planted::{self, Bug};
use crate::runtime::{Instant, timeout_at};
use crate::shard::{Served, Shard};
use crate::types::{
    Answer, Error, Header, Outcome, Page, Read, ReadLevel, Reason, Request, Response, Result, Row, ShardDescriptor,
    TableId, Timestamp, Versioned, Write,
};

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
    /// The table that is meant, by one who knows which of those that have had the name.
    pub table: Option<TableId>,
}

impl Node {
    /// Answers one request about the data of one table.
    ///
    /// Errors: `UNKNOWN_TABLE`, `CROSS_SHARD`, `INVALID_CURSOR` and the refusals of the shard; `NOT_LEADER` and
    /// `WRONG_EPOCH` only when forwarded, else they are followed until the deadline.
    pub async fn execute(&self, table: &str, request: Request, context: Context) -> Result<Response> {
        let entry = self.table(table, context.deadline).await?;
        if context.table.is_some_and(|meant| meant != entry.descriptor.id) {
            let text = format!("another table has got the name {table}: look the table up again");
            return Err(Error::new(Reason::ShardNotHere, text));
        }
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
            Request::Changes(changes) => {
                ::metrics::counter!(metrics::REQUESTS, "kind" => "changes").increment(1);
                self.changes(&entry, changes, context).await.map(Response::Changes)
            }
        }
    }

    /// The table of this name. A name this node does not know may be newer than its picture: it asks the catalog's
    /// leader for the newest revision before it says no.
    ///
    /// Errors: `UNKNOWN_TABLE`, and why the catalog could not be read.
    pub async fn table(&self, name: &str, deadline: Instant) -> Result<Arc<TableEntry>> {
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
        let caught_up = timeout_at(deadline, async {
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
        if entry.descriptor.view.is_some() {
            let text = format!("{} is a view: write to the tables that it is derived from", entry.descriptor.name);
            return Err(Error::new(Reason::ReadOnlyTable, text));
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
                    self.refuse_while_stalled()?;
                    self.refuse_without_room(&shard)?;
                }
                shard.write(descriptor.epoch, encoded, context.deadline).await
            }
        };
        let remote = || Request::Write(write.clone());
        let response = self.route(entry, &anchor, false, repeatable, true, context, local, remote).await?;
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
        let mut entry = entry.clone();
        loop {
            match self.read_by(&entry, &read, context).await {
                Err(error) if error.reason == Reason::WrongEpoch && !context.forwarded => {
                    entry = self.newer(entry, error, context)?;
                }
                done => return done,
            }
        }
    }

    /// The table as it is now, for a request that was planned by a picture of it that has changed; the error if there is
    /// no time left or nothing newer.
    pub(super) fn newer(&self, entry: Arc<TableEntry>, error: Error, context: Context) -> Result<Arc<TableEntry>> {
        let newer = self.directory().table(entry.descriptor.id).cloned();
        newer.filter(|newer| newer.shards != entry.shards && self.clock().now() < context.deadline).ok_or(error)
    }

    /// Reads keys, grouped by the shards of this picture.
    async fn read_by(
        &self,
        entry: &Arc<TableEntry>,
        read: &Read,
        context: Context,
    ) -> Result<Vec<Answer<Option<Versioned>>>> {
        let encoded: Vec<Bytes> = read.keys.iter().map(|key| entry.layout.encode(key)).collect();
        if let [only] = encoded.as_slice() {
            return self.read_group(entry, read, vec![only.clone()], &[0], context).await;
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
            self.read_group(entry, read, keys, positions, context)
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
        let copies = copies_may_answer(level, read.any_replica);
        let keys = &keys;
        let local = |shard: Arc<Shard>, descriptor: Arc<ShardDescriptor>| async move {
            match &entry.descriptor.view {
                None => shard.read(descriptor.epoch, keys, level, context.deadline).await,
                Some(view) => {
                    let reached = self.reach_view(entry, view, &shard, level, context.deadline).await?;
                    let served = shard.read(descriptor.epoch, keys, reached.level, context.deadline).await?;
                    Ok(self.aged(served, reached))
                }
            }
        };
        let remote = || {
            let keys = positions.iter().map(|&position| read.keys[position].clone()).collect();
            Request::Read(Read { keys, level, any_replica: read.any_replica })
        };
        match self.route(entry, &keys[0], copies, true, keys.len() == 1, context, local, remote).await? {
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
        match self.route(entry, &encoded, false, true, true, context, local, remote).await? {
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

    /// An answer of a view is as old as what its sources prove, not as its own leader.
    pub(super) fn aged<T>(&self, served: Served<T>, reached: Reached) -> Served<T> {
        let now = self.clock().now();
        Served { age: reached.proven.map(|asked| now.saturating_duration_since(asked)), ..served }
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

pub(super) fn mismatched() -> Error {
    Error::internal("another node answered a different question; do the versions match?")
}
