//! Moves one view on over one shard of a source, beside that shard's leader.
//!
//! What stands at the same position in the same part of the source is a *strand*: ranges of the view that are sent the same
//! changes. A worker begins by asking every shard of the view where it stands, which gives one strand as a rule. A step of a
//! strand reads a page of changes, projects it once and sends each range its effects, all side by side. Ranges that took it
//! stand together at the page's end. Those that did not (their shard has no leader, was split, was told by somebody else) are
//! asked again where they stand, after a pause, and are a strand of their own until they have caught up: while less than a page
//! is missing and all goes well, those ahead wait for them, so that a page is read and projected once for all; otherwise they hold
//! up nobody.
//!
//! A range that stands at the beginning is given the state of the source at one moment first, page by page from the last key to
//! the first, and what has changed since that moment afterwards.
//!
//! Upkeep that has much to catch up with goes gently while clients ask the source for something: they come first ([`Pace`]). And beside
//! them news gather for a moment between two pages, unless somebody waits for the view to have them ([`Shard::awaited`]).
//!
//! Bounds: a strand holds one page, and there are never more strands than shards of the view times parts of the
//! source's range.
//!
//! When changes that are needed have left the history of the source, the view's shards that need them begin anew, after it was
//! announced in the catalog; reads that promise anything wait until the view was compared with its sources again. What is left of
//! such a range is removed first, by whoever finds it so.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt, join_all};
use futures::stream::FuturesUnordered;

use super::super::host::Node;
use super::super::metrics;
use super::lag::Progress;
use super::pace::{Asked, Pace};
use super::page::{Changed, Page};
use super::strand::{Lost, Strand, join};
use super::unfit::STOPPED_WAIT;
use super::{CHANGE_VIEW, ChangeViewAsk, projector_of};
use crate::catalog::TableEntry;
use crate::keyspace::{Layout, Part};
use crate::projection::{BadDocuments, Projector};
use crate::runtime::planted::{self, Bug};
use crate::runtime::{random_u64, sleep, sleep_until, yield_now};
use crate::shard::{Clearing, Intake, Shard, Upkeep};
use crate::types::{Error, Position, Reason, Result, Step, TableId, Timestamp};

/// How long a step waits for news at the most. News wake it. What has become of shards meanwhile is looked at then, and where the
/// view's stand is asked again: a worker of another shard may have had one begin anew, which no news tell.
const NEWS_WAIT: Duration = Duration::from_secs(5);
/// The same while the view is being built.
const BUILDING_WAIT: Duration = Duration::from_millis(500);
/// Ranges of a view that is ready which are asked then: every worker asks, and all of all would be as many questions as the source has
/// shards times the view's. They are drawn, so that none is left out for long however many strands there are. A view that has
/// begun anew is being built, and then all are asked.
const ASKED_AGAIN: usize = 4;
/// When nothing is to be told yet to who is behind.
const BEHIND_WAIT: Duration = Duration::from_millis(10);
/// After a failure, before the next attempt.
const RETRY_WAIT: Duration = Duration::from_millis(100);
/// Before it is looked again at shards that have changed.
const RANGE_WAIT: Duration = Duration::from_millis(20);
/// After it was found that changes are gone.
const GONE_WAIT: Duration = Duration::from_secs(5);

pub(super) struct Worker {
    pub(super) node: Arc<Node>,
    pub(super) entry: Arc<TableEntry>,
    /// Which source, by its place in the definition, and how its keys are encoded.
    pub(super) source: usize,
    pub(super) table: TableId,
    pub(super) layout: Layout,
    pub(super) shard: Arc<Shard>,
    pub(super) projector: Arc<Projector>,
    /// At a document that does not fit.
    pub(super) stops: bool,
    /// Where the last of its strands stands.
    progress: Progress,
    pace: Pace,
}

/// Runs until it is aborted, or there is nothing to do any more.
pub async fn run(node: Arc<Node>, view: TableId, source: usize, shard: Arc<Shard>, progress: Progress) {
    loop {
        let Some(entry) = node.directory().table(view).cloned() else { return };
        let Some(table) = entry.descriptor.view.as_ref().and_then(|view| view.sources.get(source)) else { return };
        let table = *table;
        let Some(layout) = node.directory().table(table).map(|table| table.layout.clone()) else { return };
        let (projector, stops) = match projector_of(&entry) {
            Ok((definition, projector)) => (Arc::new(projector), definition.on_bad_document == BadDocuments::Stop),
            Err(error) => {
                tracing::error!(view = entry.descriptor.name, %error, "a view's definition cannot be used");
                return;
            }
        };
        let (node, shard, progress) = (node.clone(), shard.clone(), progress.clone());
        let pace = Pace::new(node.clock().now(), Asked::of(&shard));
        let worker =
            Worker { node, entry, source, table, layout, shard: shard.clone(), projector, stops, progress, pace };
        let ended = worker.work().await;
        if !shard.is_leader() {
            // Whoever arranges the workers starts another one where it is needed.
            return;
        }
        let Err(error) = ended else {
            // Shards are others now; their positions are asked for anew.
            sleep(RANGE_WAIT).await;
            continue;
        };
        let gone = matches!(error.reason, Reason::CursorTrimmed | Reason::HistoryTrimmed);
        if gone {
            ::metrics::counter!(metrics::VIEW_FELL_BEHIND).increment(1);
            let view = &worker.entry.descriptor.name;
            tracing::warn!(view, shard = %shard.id(), %error, "a view has fallen behind and is made anew");
            match worker.begin_anew().await {
                Ok(()) => continue,
                Err(error) => tracing::warn!(view, %error, "a view that has fallen behind cannot be made anew yet"),
            }
        }
        let stopped = error.reason == Reason::ViewBehind;
        sleep(match (gone, stopped) {
            (true, _) => GONE_WAIT,
            (false, true) => STOPPED_WAIT,
            (false, false) => RETRY_WAIT,
        })
        .await;
    }
}

/// What a running future of a worker has come to.
#[derive(Default)]
struct Event {
    /// The number of the strand that took a step.
    stepped: Option<u64>,
    /// Strands that can go on.
    ready: Vec<Strand>,
    /// What must be asked for.
    lost: Vec<Lost>,
}

impl Worker {
    /// Works until the shards of the view or the shard of the source are others, or something fails that concerns all.
    async fn work(&self) -> Result<()> {
        let state = self.shard.state();
        let source = (state.start.clone(), state.end.clone());
        let mut running: FuturesUnordered<BoxFuture<'_, Result<Event>>> = FuturesUnordered::new();
        let mut under_way: Vec<(u64, Strand)> = Vec::new();
        let mut ready: Vec<Strand> = Vec::new();
        let mut steps = 0;
        running.push(self.find(vec![Lost { view: self.entry.layout.table_range(), source }], Duration::ZERO));
        loop {
            let same_view = self.node.directory().table(self.entry.descriptor.id).is_some_and(|now| {
                now.shards == self.entry.shards && now.descriptor.view == self.entry.descriptor.view
            });
            if !same_view || self.shard.state().epoch != state.epoch || !self.shard.is_leader() {
                return Ok(());
            }
            join(&mut ready);
            // Those behind first: the others wait for them.
            ready.sort_by_key(|strand| strand.position.after);
            let mut waiting = Vec::new();
            let goals: Vec<Timestamp> = ready.iter().map(|strand| strand.position.after).collect();
            for strand in std::mem::take(&mut ready) {
                let after = strand.position.after;
                if under_way.iter().any(|(_, other)| other.position.after < after && !other.far) {
                    waiting.push(strand);
                    continue;
                }
                let others = under_way.iter().map(|(_, other)| other.position.after).chain(goals.iter().copied());
                let until = others.filter(|&other| other > after).min();
                steps += 1;
                under_way.push((steps, strand.clone()));
                running.push(self.step(steps, strand, until).boxed());
            }
            ready = waiting;
            let positions = under_way.iter().map(|(_, strand)| strand).chain(&ready).map(|strand| &strand.position);
            self.progress.note(positions.clone());
            self.pin(positions);
            // Steps may come to their end one after the other without ever waiting, and others are to have their turn.
            yield_now().await;
            let Some(event) = running.next().await else {
                return Err(Error::internal("a worker of a view has nothing to do"));
            };
            let event = event?;
            under_way.retain(|(number, _)| Some(*number) != event.stepped);
            ready.extend(event.ready);
            if !event.lost.is_empty() {
                running.push(self.find(event.lost, RETRY_WAIT));
            }
        }
    }

    /// Reads that promise something are not answered from it yet.
    fn is_building(&self) -> bool {
        self.entry.descriptor.view.as_ref().is_none_or(|view| !view.ready)
    }

    /// How long a step waits for news.
    pub(super) fn news_wait(&self) -> Duration {
        if self.is_building() { BUILDING_WAIT } else { NEWS_WAIT }
    }

    /// While the view is being built the source keeps what it has yet to read, however long that takes.
    fn pin<'a>(&self, positions: impl Iterator<Item = &'a Position>) {
        if !self.is_building() {
            return;
        }
        let from = |position: &Position| match &position.step {
            Some(step) if step.whole => step.upto,
            _ => position.after,
        };
        if let Some(oldest) = positions.map(from).filter(|from| *from > Timestamp::ZERO).min() {
            self.shard.pin_history(self.entry.descriptor.id, oldest);
        }
    }

    /// Has those shards of the view begin anew that need changes which are gone, after it was announced.
    async fn begin_anew(&self) -> Result<()> {
        let name = &self.entry.descriptor.name;
        let news = ChangeViewAsk { ready: Some(false), rebuilding: Some(true), ..ChangeViewAsk::of(name) };
        self.node.ask_system_leader::<_, Timestamp>(CHANGE_VIEW, &news).await?;
        for shard in self.entry.shards.iter() {
            let view = (Bytes::copy_from_slice(&shard.start), Bytes::copy_from_slice(&shard.end));
            let answer = self.node.standing(&self.entry, &view.0).await?;
            let source = self.shard.state();
            let gone = |part: &Part| match &part.position {
                Some(Position { step: Some(Step { upto, whole: true, .. }), .. }) => *upto < source.horizon,
                Some(Position { after, .. }) => {
                    *after > Timestamp::ZERO && *after < source.trimmed.within(&part.start, &part.end)
                }
                None => false,
            };
            for section in answer.sections(&view.0, &view.1)? {
                for part in section.within(&source.start, &source.end).into_iter().filter(&gone) {
                    let view = (section.start.clone(), section.end.clone());
                    let stood = part.position.unwrap_or_default();
                    tracing::info!(view = name, shard = %shard.id, ?stood, "a range of a view begins anew");
                    let clear = Upkeep::Clear(Clearing { view, source: (part.start, part.end), stood });
                    // Each removes some rows; the last one finds none, or that somebody else was faster.
                    while !self.node.upkeep(&self.entry, &section.start, &clear).await? {}
                }
            }
        }
        Ok(())
    }

    /// Removes some more of ranges that begin anew, which whoever began with it may have been kept from. It was announced then.
    async fn go_on_removing(&self, strand: &Strand) -> Vec<Lost> {
        let source = strand.source.clone();
        let cleared = strand.views.iter().map(|view| {
            let clearing = Clearing { view: view.clone(), source: source.clone(), stood: strand.position.clone() };
            let clear = Upkeep::Clear(clearing);
            async move { self.node.upkeep(&self.entry, &view.0, &clear).await }
        });
        for (view, cleared) in strand.views.iter().zip(join_all(cleared).await) {
            tracing::debug!(view = self.entry.descriptor.name, range = ?view, ?cleared, "a range of a view is being removed");
        }
        strand.views.iter().map(|view| Lost { view: view.clone(), source: source.clone() }).collect()
    }

    /// Asks where ranges of the view stand, after a pause.
    fn find(&self, lost: Vec<Lost>, pause: Duration) -> BoxFuture<'_, Result<Event>> {
        async move {
            sleep(pause).await;
            let mut asked = Vec::new();
            for Lost { view: (start, end), source } in &lost {
                for shard in self.entry.shards.overlapping(start, end) {
                    let from = start.clone().max(Bytes::copy_from_slice(&shard.start));
                    let to = end.clone().min(Bytes::copy_from_slice(&shard.end));
                    asked.push(async move { (self.node.standing(&self.entry, &from).await, (from, to), source) });
                }
            }
            let mut event = Event::default();
            for (answer, view, source) in join_all(asked).await {
                match answer {
                    Ok(answer) if answer.start <= view.0 && view.1 <= answer.end => {
                        for section in answer.sections(&view.0, &view.1)? {
                            for part in section.within(&source.0, &source.1) {
                                event.ready.push(Strand {
                                    source: (part.start, part.end),
                                    position: part.position.unwrap_or_default(),
                                    views: vec![(section.start.clone(), section.end.clone())],
                                    far: false,
                                    read: None,
                                });
                            }
                        }
                    }
                    answer => {
                        // It has been split or merged, which the directory will say, or does not answer.
                        tracing::debug!(view = self.entry.descriptor.name, ?answer, "a shard of a view is not found");
                        event.lost.push(Lost { view, source: source.clone() });
                    }
                }
            }
            Ok(event)
        }
        .boxed()
    }

    /// One page for one strand.
    async fn step(&self, number: u64, strand: Strand, until: Option<Timestamp>) -> Result<Event> {
        let mut event = Event { stepped: Some(number), ..Event::default() };
        if strand.position.is_removing() {
            event.lost = self.go_on_removing(&strand).await;
            return Ok(event);
        }
        let newest = self.shard.state().last_timestamp;
        let now = self.node.clock().now();
        let gait = self.pace.gait(now, Asked::of(&self.shard), &strand.position, newest);
        if let (Some(last), None, false) = (strand.read, until, strand.far) {
            // One with nothing left to catch up with.
            self.shard.awaited().since(last, gait.gathers_until(last)).await;
        }
        let began = self.node.clock().now();
        let (changes, to) = self.page(&strand, gait.limits, until).await?;
        let count = changes.len();
        let is_full = gait.is_full(count, changes.iter().map(Changed::bytes).sum());
        if changes.is_empty() && to == strand.position {
            if until.is_some() {
                // This replica has yet to apply what others have been sent already, by the leader before.
                sleep(BEHIND_WAIT).await;
                event.ready.push(strand);
                return Ok(event);
            }
            let some = if self.is_building() { usize::MAX } else { ASKED_AGAIN };
            let (asked, rest) = strand.give_up(random_u64(), some);
            let mut event = self.find(asked, Duration::ZERO).await?;
            event.stepped = Some(number);
            event.ready.extend(rest);
            return Ok(event);
        }
        let Page { effects, unfit } = self.project(changes, strand.views.clone()).await?;
        self.stop_at(unfit).await?;
        let sent = strand.views.iter().zip(effects).map(|(view, effects)| {
            let mut intake = Intake {
                view: view.clone(),
                source: strand.source.clone(),
                from: strand.position.clone(),
                to: to.clone(),
                effects,
            };
            async move {
                if planted::is(Bug::CursorBeforeRows) {
                    let moved = Upkeep::Intake(Intake { effects: Vec::new(), ..intake.clone() });
                    if !self.node.upkeep(&self.entry, &view.0, &moved).await? {
                        return Ok(false);
                    }
                    intake.from = intake.to.clone();
                }
                self.node.upkeep(&self.entry, &view.0, &Upkeep::Intake(intake)).await
            }
        });
        let mut moved = Vec::new();
        for (view, taken) in strand.views.iter().zip(join_all(sent).await) {
            if let Err(error) = &taken {
                tracing::debug!(view = self.entry.descriptor.name, %error, "a shard of a view has taken nothing in");
            }
            match taken {
                Ok(true) => moved.push(view.clone()),
                _ => event.lost.push(Lost { view: view.clone(), source: strand.source.clone() }),
            }
        }
        ::metrics::counter!(metrics::VIEW_INTAKES).increment(moved.len() as u64);
        ::metrics::counter!(metrics::VIEW_INTAKES_REFUSED).increment(event.lost.len() as u64);
        if !moved.is_empty() {
            event.ready.push(Strand { position: to, views: moved, far: is_full, read: Some(began), ..strand });
        }
        if is_full {
            // Much is left, and others may want the processor and the disk.
            let now = self.node.clock().now();
            let rested = now + self.pace.rest(&gait, count, now - began);
            if gait.late {
                sleep_until(rested).await;
            } else {
                self.shard.awaited().since(began, rested).await;
            }
        }
        Ok(event)
    }
}
