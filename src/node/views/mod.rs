//! Upkeep of views: beside the leader of every shard of a source, a worker for each view that is derived from it.
//!
//! A worker reads what has changed in its shard, projects it (`projection`) and sends it to the shards of the view, each
//! its part, as commands that change rows and watermark in one step (`shard::intake`). It keeps nothing: where it stands is
//! what the shards of the view say, so whoever leads the source's shard next goes on from there, and a worker that does not know
//! that it is the former one is refused. That is why there is no lease, no election and no state of upkeep anywhere but in the
//! view itself.
//!
//! A new view begins with the state of each source at one moment and goes on with what has changed since ([`worker`]).
//!
//! Parts: [`worker`] moves one view on over one shard of a source, [`strand`] by [`strand`], [`page`] by [`page`], at a [`pace`]; [`freshness`] tells how old a
//! copy of a view is and waits until it is young enough, [`lag`] measures how far workers are behind; [`verify`] compares and mends
//! ([`expected`]: with what; [`share`]: in how much of the time), [`scrub`] does so unasked; [`unfit`] tells of documents that it cannot use;
//! and here is who starts workers and what one node answers another.

mod expected;
mod freshness;
mod lag;
mod pace;
mod page;
pub(super) mod scrub;
mod share;
mod strand;
mod unfit;
mod verify;
mod worker;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::future::join_all;

pub use freshness::SourceLag;
pub(super) use freshness::{Freshness, Reached};
pub use scrub::ScrubOptions;
pub use unfit::Unfit;
pub(super) use unfit::{Stops, VIEW_STOPS};
pub use verify::{Difference, VERIFY, VERIFY_TIMEOUT, VerifyAsk, ViewCheck};

use self::lag::{Lags, Progress};
use super::ask::{self, ShardAsk};
use super::host::Node;
use super::metrics;
use crate::catalog::TableEntry;
use crate::keyspace::{Watermark, Watermarks};
use crate::projection::{Definition, Projector};
use crate::runtime::{Instant, Task, sleep, spawn};
use crate::shard::{Shard, Upkeep};
use crate::types::{Error, Reason, Result, ShardId, TableId, Timestamp};

/// Between looks at which workers there are to be.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Upkeep of a view: a shard's id and an [`Upkeep`], to its leader; whether it took effect back.
pub const UPKEEP: &str = "upkeep";
/// How far a shard of a view has come: [`ShardAsk`] to its leader, [`StandingAnswer`] back.
pub const STANDING: &str = "view_standing";
/// The newest version of a shard of a source, confirmed: [`NewestAsk`] of it to its leader, [`NewestAnswer`] back.
pub const NEWEST: &str = "newest";
/// The same of several shards: [`NewestAsk`] to a node, `Vec<Option<NewestAnswer>>` back, none where it does not lead or cannot say.
pub const NEWEST_OF_SEVERAL: &str = "newest_of_several";

/// Something else is said of a view: [`ChangeViewAsk`] to shard 0's leader, the revision of the catalog back.
pub const CHANGE_VIEW: &str = "change_view";

/// What is to be said of a view; what is none stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChangeViewAsk {
    /// Its name.
    pub name: String,
    /// Its upkeep rests.
    pub paused: Option<bool>,
    /// It was compared with its sources.
    pub ready: Option<bool>,
    /// It is made anew.
    pub rebuilding: Option<bool>,
}

impl ChangeViewAsk {
    /// Nothing yet.
    pub fn of(name: &str) -> ChangeViewAsk {
        ChangeViewAsk { name: name.to_owned(), ..ChangeViewAsk::default() }
    }
}

/// How far a shard of a view has come.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StandingAnswer {
    /// Its range.
    pub start: Vec<u8>,
    /// Its end.
    pub end: Vec<u8>,
    /// The version of the shard that this is true of.
    pub at: Timestamp,
    /// Its watermarks in their stored form.
    pub watermarks: Vec<u8>,
}

impl StandingAnswer {
    /// The sections over `[start, end)`.
    pub fn sections(&self, start: &Bytes, end: &Bytes) -> Result<Vec<Watermark>> {
        let marks = Watermarks::decode(Bytes::copy_from_slice(&self.watermarks));
        let marks = marks.ok_or_else(|| Error::internal("the watermarks of another node cannot be read"))?;
        Ok(marks.sections(start, end))
    }
}

/// Asks how new shards of a source are.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NewestAsk {
    /// The shards.
    pub shards: Vec<ShardId>,
    /// Somebody waits until a view has taken in what they hold.
    pub awaited: bool,
}

/// How new a shard of a source is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NewestAnswer {
    /// Its range.
    pub start: Vec<u8>,
    /// Its end.
    pub end: Vec<u8>,
    /// Nothing that was acknowledged before the question is newer.
    pub at: Timestamp,
}

impl NewestAnswer {
    /// What a replica says that is known to hold everything.
    fn of(replica: &Shard) -> Result<NewestAnswer> {
        let state = replica.state();
        if state.sealed_for.is_some() {
            return Err(Error::new(Reason::WrongEpoch, format!("{} has given its range away", replica.id())));
        }
        Ok(NewestAnswer { start: state.start.to_vec(), end: state.end.to_vec(), at: state.last_timestamp })
    }
}

/// Starts and ends workers until the node stops.
pub async fn run(node: Arc<Node>) {
    let mut stopping = node.stopping();
    let mut workers: HashMap<(TableId, ShardId), Worker> = HashMap::new();
    let mut lags = Lags::default();
    loop {
        arrange(&node, &mut workers);
        let progress = workers.iter().map(|((view, _), worker)| (*view, &worker.replica, &worker.progress));
        lags.measure(&node, progress);
        let mut changes = node.directory_changes();
        tokio::select! {
            _ = changes.changed() => {}
            () = sleep(LOOK_EVERY) => {}
            _ = stopping.wait_for(|&stopping| stopping) => break,
        }
    }
    workers.into_values().for_each(|worker| worker.task.abort());
}

/// A running worker.
struct Worker {
    /// What it was started with: another one is needed when this is another.
    definition: String,
    replica: Arc<Shard>,
    progress: Progress,
    task: Task<()>,
}

/// The workers that there are to be, no others.
fn arrange(node: &Arc<Node>, workers: &mut HashMap<(TableId, ShardId), Worker>) {
    let directory = node.directory();
    let mut wanted = HashMap::new();
    for entry in directory.tables() {
        let Some(view) = entry.descriptor.view.as_ref().filter(|view| !view.paused) else { continue };
        for (source, table) in view.sources.iter().enumerate() {
            let shards = directory.table(*table).into_iter().flat_map(|source| source.shards.iter());
            for shard in shards {
                if let Some(replica) = node.replicas().get(shard.id).filter(|replica| replica.is_leader()) {
                    wanted.insert((entry.descriptor.id, shard.id), (entry, view, source, replica));
                }
            }
        }
    }
    workers.retain(|key, worker| {
        let same = wanted.get(key).is_some_and(|(_, view, _, replica)| {
            view.definition == worker.definition && Arc::ptr_eq(replica, &worker.replica) && !worker.task.is_finished()
        });
        if !same {
            worker.task.abort();
        }
        same
    });
    for (key, (entry, view, source, replica)) in wanted {
        workers.entry(key).or_insert_with(|| {
            let progress = Progress::default();
            Worker {
                definition: view.definition.clone(),
                replica: replica.clone(),
                progress: progress.clone(),
                task: spawn(worker::run(node.clone(), entry.descriptor.id, source, replica, progress)),
            }
        });
    }
    ::metrics::gauge!(metrics::VIEW_WORKERS).set(workers.len() as f64);
}

/// The definition of a view and what compiles it.
pub(super) fn projector_of(entry: &TableEntry) -> Result<(Definition, Projector)> {
    let view = entry.descriptor.view.as_ref();
    let view = view.ok_or_else(|| Error::invalid(format!("{} is a table, not a view", entry.descriptor.name)))?;
    let definition = Definition::parse(&view.definition)?;
    let projector = Projector::new(&definition)?;
    Ok((definition, projector))
}

impl Node {
    /// Answers another node's question about a view or a source.
    pub(super) async fn answer_of_views(&self, kind: &str, body: Bytes, deadline: Instant) -> Result<Bytes> {
        match kind {
            UPKEEP => {
                let mut body = body;
                let shard = ShardId(body.try_get_u64().map_err(|_| Error::invalid("an upkeep names no shard"))?);
                let shard = self.hosted(shard)?;
                if shard.is_leader() {
                    self.refuse_while_stalled()?;
                    self.refuse_without_room(&shard)?;
                }
                let epoch = shard.state().epoch;
                let outcome = shard.keep_up(epoch, Upkeep::decode(body)?, deadline).await?;
                Ok(ask::encode(&outcome.applied))
            }
            STANDING => {
                let ask: ShardAsk = ask::decode(&body)?;
                let shard = self.hosted(ask.shard)?;
                shard.confirm(deadline).await?;
                let state = shard.state();
                Ok(ask::encode(&StandingAnswer {
                    start: state.start.to_vec(),
                    end: state.end.to_vec(),
                    at: state.last_timestamp,
                    watermarks: state.watermarks.encode().to_vec(),
                }))
            }
            VIEW_STOPS => Ok(ask::encode(&self.stops_here(ask::decode(&body)?)?)),
            NEWEST_OF_SEVERAL => {
                let ask: NewestAsk = ask::decode(&body)?;
                let asked = ask.shards.iter().map(|&shard| self.newest_here(shard, ask.awaited, deadline));
                let answers = join_all(asked).await;
                Ok(ask::encode(&answers.into_iter().map(Result::ok).collect::<Vec<_>>()))
            }
            _ => {
                let ask: NewestAsk = ask::decode(&body)?;
                let [shard] = ask.shards[..] else {
                    return Err(Error::invalid("of one shard it is asked how new it is"));
                };
                Ok(ask::encode(&self.newest_here(shard, ask.awaited, deadline).await?))
            }
        }
    }

    /// How new a shard is that this node leads.
    async fn newest_here(&self, shard: ShardId, awaited: bool, deadline: Instant) -> Result<NewestAnswer> {
        let replica = self.hosted(shard)?;
        if !replica.is_leader() {
            return Err(replica.not_leader());
        }
        replica.catch_up(deadline, awaited).await?;
        NewestAnswer::of(&replica)
    }

    /// Has the shard of a view that owns all of `[start, end)` take something in; whether it took effect.
    pub(super) async fn upkeep(&self, entry: &TableEntry, anchor: &[u8], upkeep: &Upkeep) -> Result<bool> {
        let shard = entry.shards.locate(anchor);
        let encoded = upkeep.encode();
        let mut body = BytesMut::with_capacity(8 + encoded.len());
        body.put_u64(shard.id.0);
        body.put_slice(&encoded);
        self.ask_shard_leader_with(shard, UPKEEP, body.freeze()).await
    }

    /// How far the shard of a view that owns `anchor` has come.
    pub async fn standing(&self, entry: &TableEntry, anchor: &[u8]) -> Result<StandingAnswer> {
        let shard = entry.shards.locate(anchor);
        self.ask_shard_leader(shard, STANDING, &ShardAsk { shard: shard.id, argument: 0 }).await
    }
}
