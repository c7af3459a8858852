//! How old a copy of a view is, and waiting until it is young enough.
//!
//! A view is a copy of its sources, so what proves its age is what they say. This node notes the time, finds the newest version of
//! every shard of every source, confirmed by its leader with a quorum, and keeps what it found: a [`Proof`]. Once a replica of
//! a shard of the view has taken in that much of each, it has seen every write acknowledged before the proof was asked for;
//! its age is the time since. That holds for whichever part the replica plays, so any of them can give a linearizable answer: one
//! whose proof was asked for after the read had come. No clock of another node is looked at.
//!
//! Questions are shared: who comes while one is on its way waits for the next, and all who wait take that one.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{join, join_all};
use parking_lot::Mutex;

use super::super::host::Node;
use super::unfit::stops_at_some;
use super::{NEWEST, NEWEST_OF_SEVERAL, NewestAnswer, NewestAsk};
use crate::catalog::TableEntry;
use crate::keyspace::Watermark;
use crate::runtime::planted::{self, Bug};
use crate::runtime::{Instant, sleep, timeout_at};
use crate::shard::Shard;
use crate::types::{
    Error, NodeId, ReadLevel, Reason, ReplicaRole, Result, ShardDescriptor, TableId, Timestamp, ViewDescriptor,
};

/// Proofs kept of one view: while it is behind, the older ones say how far.
const PROOFS_MAX: usize = 32;
/// While a view is read at any age, a proof is asked for this often: no answer claims to be much older than it is.
const ANY_AGE_PROVEN: Duration = Duration::from_millis(100);
/// After which who reads a view that is being built may ask again.
const BUILT_RETRY: Duration = Duration::from_secs(1);
/// How long a copy that does not lead is waited for.
const COPY_WAIT: Duration = Duration::from_millis(300);
/// How long a replica of a source that is here is waited for, before its leader is asked.
const HERE_WAIT: Duration = Duration::from_millis(100);
/// Between attempts to ask the sources.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// A read is answered, or refused with the reason, this much before its caller gives up.
const HEADROOM: Duration = Duration::from_millis(50);
/// Sources named in an error.
const NAMED_MAX: usize = 5;

/// What the sources of a view had written at a moment.
#[derive(Debug)]
struct Proof {
    /// Everything acknowledged before this is in it.
    asked: Instant,
    /// Encoded ranges of the sources with their newest version.
    newest: Vec<(Bytes, Bytes, Timestamp)>,
}

/// What is known of the sources of one view.
#[derive(Default)]
struct Known {
    proofs: Mutex<VecDeque<Arc<Proof>>>,
    /// Held by whoever asks.
    asking: tokio::sync::Mutex<()>,
}

/// What a node knows of the sources of all views.
#[derive(Default)]
pub struct Freshness {
    views: Mutex<HashMap<TableId, Arc<Known>>>,
}

/// How far a view is behind one range of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLag {
    /// The source.
    pub table: TableId,
    /// Whether it is still taking in the state that it began with.
    pub building: bool,
}

/// What a read of a view can rely on.
#[derive(Clone, Copy, Debug)]
pub(in crate::node) struct Reached {
    /// How the replica is to be asked.
    pub level: ReadLevel,
    /// The replica has seen everything acknowledged before this, if that is known.
    pub proven: Option<Instant>,
}

impl Node {
    /// Waits until a replica of a view can answer at this level.
    ///
    /// Errors: `VIEW_BEHIND`, naming the sources that it lags behind.
    pub(in crate::node) async fn reach_view(
        &self,
        entry: &TableEntry,
        view: &ViewDescriptor,
        shard: &Shard,
        level: ReadLevel,
        deadline: Instant,
    ) -> Result<Reached> {
        let ready = view.ready || matches!(level, ReadLevel::Any | ReadLevel::AsOf(_));
        if !ready {
            let text = format!("{} is being built; `trivet view describe` shows how far it is", entry.descriptor.name);
            return Err(Error::new(Reason::ViewBehind, text).with_retry_after(BUILT_RETRY));
        }
        let known = self.freshness.of(entry.descriptor.id);
        let now = self.clock().now();
        let deadline = deadline.checked_sub(HEADROOM).map_or(now, |latest| latest.max(now));
        // A copy that is cut off would let the read wait in vain; the leader has whatever there is.
        let leads = shard.is_leader();
        let deadline = if leads { deadline } else { deadline.min(now + COPY_WAIT) };
        let age_max = match level {
            ReadLevel::AsOf(_) => return Ok(Reached { level, proven: None }),
            ReadLevel::Any => {
                self.ask_by_and_by(entry, &known, ANY_AGE_PROVEN);
                return Ok(Reached { level, proven: known.newest_within(shard) });
            }
            ReadLevel::MaxAge(age) => {
                // By half of it, so that those who come later need not wait.
                self.ask_by_and_by(entry, &known, age / 2);
                let proven = known.newest_within(shard);
                if proven.is_some_and(|asked| now.saturating_duration_since(asked) <= age) {
                    return Ok(Reached { level: ReadLevel::Any, proven });
                }
                age
            }
            ReadLevel::AtLeast(token)
                if (self.ranges_of_sources(view)).is_some_and(|ranges| has_taken(shard, &ranges, token.timestamp)) =>
            {
                return Ok(Reached { level: ReadLevel::Any, proven: known.newest_within(shard) });
            }
            ReadLevel::AtLeast(_) | ReadLevel::Linearizable => Duration::ZERO,
        };
        // Another one may have asked after this read came.
        let since = now.checked_sub(age_max).unwrap_or(now);
        let behind = |proof: Option<&Proof>| {
            if leads {
                return self.behind(entry, shard, proof);
            }
            let text = format!("this copy of {} has not come as far in time", entry.descriptor.name);
            Error::new(Reason::TooStale, text).with_leader(shard.leader().map(|(_, node)| node))
        };
        let Some(proof) = timeout_at(deadline, self.sources_since(entry, &known, since, true)).await else {
            return Err(behind(None));
        };
        let proof = proof?;
        let upto = match level {
            ReadLevel::AtLeast(token) => token.timestamp,
            _ => Timestamp::MAX,
        };
        let mut applied = shard.applied();
        loop {
            applied.borrow_and_update();
            if proof.is_reached(shard, upto) {
                // Of less than all of it nothing is proven.
                let proven = (upto == Timestamp::MAX).then_some(proof.asked).or_else(|| known.newest_within(shard));
                return Ok(Reached { level: ReadLevel::Any, proven });
            }
            match timeout_at(deadline, applied.changed()).await {
                Some(Ok(())) => {}
                _ => return Err(behind(Some(&proof))),
            }
        }
    }

    /// All that the sources of a view can hold; none while this node does not know all of them, its picture of the catalog being old.
    fn ranges_of_sources(&self, view: &ViewDescriptor) -> Option<Vec<(Bytes, Bytes)>> {
        let directory = self.directory();
        view.sources.iter().map(|source| Some(directory.table(*source)?.layout.table_range())).collect()
    }

    /// A proof asked for at or after `since`; whether somebody waits until this view has come so far.
    async fn sources_since(
        &self,
        entry: &TableEntry,
        known: &Known,
        since: Instant,
        awaited: bool,
    ) -> Result<Arc<Proof>> {
        let newest = || known.proofs.lock().back().filter(|proof| proof.asked >= since).cloned();
        loop {
            let _asking = known.asking.lock().await;
            if let Some(proof) = newest() {
                return Ok(proof);
            }
            let asked = self.clock().now();
            match self.newest_of_sources(entry, awaited).await {
                Ok(newest) => {
                    let proof = Arc::new(Proof { asked, newest });
                    known.keep(proof.clone());
                    return Ok(proof);
                }
                Err(error) if error.reason == Reason::UnknownTable => return Err(error),
                Err(error) => {
                    tracing::debug!(view = entry.descriptor.name, %error, "a source does not answer");
                    sleep(ASK_AGAIN).await;
                }
            }
        }
    }

    /// Asks in the background if the newest proof is older than this.
    fn ask_by_and_by(&self, entry: &TableEntry, known: &Arc<Known>, age: Duration) {
        let now = self.clock().now();
        let old = known.proofs.lock().back().is_none_or(|proof| now.saturating_duration_since(proof.asked) > age);
        if !old || known.asking.try_lock().is_err() {
            return;
        }
        if let (Some(node), Some(entry)) = (self.myself(), self.directory().table(entry.descriptor.id).cloned()) {
            let known = known.clone();
            crate::runtime::spawn(async move {
                let deadline = now + super::super::ask::ASK_TIMEOUT;
                let _ = timeout_at(deadline, node.sources_since(&entry, &known, now, false)).await;
            });
        }
    }

    /// The newest versions of all shards of all sources, confirmed.
    async fn newest_of_sources(&self, entry: &TableEntry, awaited: bool) -> Result<Vec<(Bytes, Bytes, Timestamp)>> {
        let directory = self.directory();
        let mut all = Vec::new();
        for source in entry.descriptor.view.iter().flat_map(|view| &view.sources) {
            let source = directory.table(*source).ok_or_else(|| {
                Error::new(Reason::UnknownTable, format!("a source of {} was dropped", entry.descriptor.name))
            })?;
            let answers = self.newest_of_shards(source.shards.iter(), awaited).await?;
            let range = |NewestAnswer { start, end, at }| (Bytes::from(start), Bytes::from(end), at);
            let mut ranges: Vec<_> = answers.into_iter().map(range).collect();
            ranges.sort();
            let (mut reached, end) = source.layout.table_range();
            for (start, until, _) in &ranges {
                if *start > reached {
                    break;
                }
                reached = reached.max(until.clone());
            }
            if reached < end {
                let text = format!("shards of {} are being split or merged", source.descriptor.name);
                return Err(Error::new(Reason::WrongEpoch, text));
            }
            all.extend(ranges);
        }
        Ok(all)
    }

    /// The newest versions of these shards. A replica that is here proves itself, by a small frame on a link that is there anyway;
    /// for all others each node is asked once that leads them if it is as the catalog prefers; and what is not answered that way is
    /// asked for by itself, wherever its leader has gone.
    async fn newest_of_shards(
        &self,
        shards: impl Iterator<Item = &Arc<ShardDescriptor>>,
        awaited: bool,
    ) -> Result<Vec<NewestAnswer>> {
        let mut here = Vec::new();
        let mut of_nodes: BTreeMap<NodeId, Vec<&Arc<ShardDescriptor>>> = BTreeMap::new();
        let mut alone = Vec::new();
        for shard in shards {
            match self.replicas().get(shard.id) {
                Some(replica) => here.push((replica, shard)),
                None => match shard.replicas.iter().find(|replica| replica.role == ReplicaRole::Voter) {
                    Some(first) => of_nodes.entry(first.node).or_default().push(shard),
                    None => alone.push(shard),
                },
            }
        }
        let deadline = self.clock().now() + HERE_WAIT;
        let proven = here.into_iter().map(|(replica, shard)| async move {
            let caught_up = replica.catch_up(deadline, awaited).await;
            (caught_up.and_then(|()| NewestAnswer::of(&replica)).ok(), shard)
        });
        let asked = of_nodes.into_iter().map(|(leader, shards)| async move {
            let question = NewestAsk { shards: shards.iter().map(|shard| shard.id).collect(), awaited };
            let answer = self.ask::<_, Vec<Option<NewestAnswer>>>(leader, NEWEST_OF_SEVERAL, &question).await;
            let answers = answer.ok().filter(|answers| answers.len() == shards.len());
            answers.unwrap_or_else(|| vec![None; shards.len()]).into_iter().zip(shards)
        });
        let (proven, asked) = join(join_all(proven), join_all(asked)).await;
        let mut newest = Vec::new();
        for (answer, shard) in proven.into_iter().chain(asked.into_iter().flatten()) {
            match answer {
                Some(answer) => newest.push(answer),
                None => alone.push(shard),
            }
        }
        let asked = alone.into_iter().map(|shard| async move {
            let question = NewestAsk { shards: vec![shard.id], awaited };
            self.ask_shard_leader::<_, NewestAnswer>(shard, NEWEST, &question).await
        });
        for answer in join_all(asked).await {
            newest.push(answer?);
        }
        Ok(newest)
    }

    /// What a view lags behind, for whoever waited in vain.
    fn behind(&self, entry: &TableEntry, shard: &Shard, proof: Option<&Proof>) -> Error {
        let name = &entry.descriptor.name;
        let Some(proof) = proof else {
            return Error::new(
                Reason::ViewBehind,
                format!("the sources of {name} did not say in time how new they are"),
            );
        };
        let directory = self.directory();
        let sections = sections(shard);
        let mut lagging: Vec<String> = Vec::new();
        for (start, end, at) in &proof.newest {
            if sections.iter().all(|section| stands_at(section, start, end, *at)) {
                continue;
            }
            let source = directory.tables().find(|table| {
                let (from, to) = table.layout.table_range();
                from <= *start && *end <= to
            });
            if let Some(source) = source {
                let range = source.layout.describe(start, end);
                lagging.push(format!("{} ({range})", source.descriptor.name));
            }
        }
        let more = lagging.len().saturating_sub(NAMED_MAX);
        lagging.truncate(NAMED_MAX);
        let mut text = format!("{name} has not come as far as was asked; it lags behind {}", lagging.join(", "));
        if more > 0 {
            text.push_str(&format!(" and {more} more"));
        }
        if stops_at_some(entry) {
            text.push_str(&format!(
                "; `trivet view describe {name}` says whether it has stopped at a document that does not fit"
            ));
        }
        Error::new(Reason::ViewBehind, text).with_retry_after(ASK_AGAIN)
    }

    /// How long ago everything was acknowledged that all shards of a view have taken in, as far as `standing` and the sources say:
    /// asks them.
    pub async fn view_is_behind(&self, entry: &TableEntry, sections: &[Watermark]) -> Result<Vec<SourceLag>> {
        let newest = self.newest_of_sources(entry, false).await?;
        let directory = self.directory();
        let mut lags: Vec<SourceLag> = Vec::new();
        for (start, end, at) in &newest {
            let behind: Vec<_> = sections.iter().filter(|section| !stands_at(section, start, end, *at)).collect();
            if behind.is_empty() {
                continue;
            }
            let building = behind.iter().any(|section| {
                section
                    .within(start, end)
                    .iter()
                    .any(|part| part.position.as_ref().is_some_and(|at| at.after == Timestamp::ZERO))
            });
            let table = directory.tables().find(|table| {
                let (from, to) = table.layout.table_range();
                from <= *start && *end <= to
            });
            let Some(table) = table.map(|table| table.descriptor.id) else { continue };
            match lags.iter_mut().find(|lag| lag.table == table) {
                Some(lag) => lag.building |= building,
                None => lags.push(SourceLag { table, building }),
            }
        }
        Ok(lags)
    }
}

impl Freshness {
    fn of(&self, view: TableId) -> Arc<Known> {
        self.views.lock().entry(view).or_default().clone()
    }
}

impl Known {
    fn keep(&self, proof: Arc<Proof>) {
        let mut proofs = self.proofs.lock();
        if proofs.len() >= PROOFS_MAX {
            // The newest and the oldest are worth most.
            let middle = proofs.len() / 2;
            proofs.remove(middle);
        }
        proofs.push_back(proof);
    }

    /// The moment before which everything acknowledged is in this replica.
    fn newest_within(&self, shard: &Shard) -> Option<Instant> {
        let mut proofs = self.proofs.lock();
        let sections = sections(shard);
        let reached = proofs.iter().rposition(|proof| proof.is_reached_by(&sections, Timestamp::MAX))?;
        let asked = proofs[reached].asked;
        // Older ones say nothing any more.
        proofs.drain(..reached);
        Some(asked)
    }
}

fn sections(shard: &Shard) -> Vec<Watermark> {
    let state = shard.state();
    state.watermarks.sections(&state.start, &state.end)
}

fn stands_at(section: &Watermark, start: &Bytes, end: &Bytes, at: Timestamp) -> bool {
    let mut parts = section.within(start, end).into_iter();
    parts.all(|part| part.position.is_some_and(|position| position.covers(at)))
}

/// Whether everything up to a version, of whichever shard of these ranges, was taken in by this replica.
fn has_taken(shard: &Shard, sources: &[(Bytes, Bytes)], upto: Timestamp) -> bool {
    if planted::is(Bug::TokenOfTheView) {
        return shard.state().last_timestamp >= upto;
    }
    let sections = sections(shard);
    sources.iter().all(|(start, end)| sections.iter().all(|section| stands_at(section, start, end, upto)))
}

impl Proof {
    fn is_reached(&self, shard: &Shard, upto: Timestamp) -> bool {
        self.is_reached_by(&sections(shard), upto)
    }

    /// Whether all of it up to `upto` was taken in.
    fn is_reached_by(&self, sections: &[Watermark], upto: Timestamp) -> bool {
        let mut newest = self.newest.iter();
        newest.all(|(start, end, at)| sections.iter().all(|section| stands_at(section, start, end, (*at).min(upto))))
    }
}
