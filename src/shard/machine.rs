//! The replicated state machine: applies the entries of the group's log, in order, on every replica alike.
//!
//! One call applies many entries as one storage batch: versions, outcome records and the applied state together, so
//! that a crash leaves the state of exactly one position. What cannot be decided the same way everywhere (a failed
//! read, a log entry that cannot be decoded) is an error that stops the replica instead of letting it diverge.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::command::{Command, Proposal};
use super::division::{self, Home, News};
use super::evaluate::{Scratch, evaluate};
use super::intake;
use super::merging;
use super::metrics;
use super::outcomes::{self, Place, RECENT_OUTCOMES_MAX, Recent, RecentOutcomes, Record, Verdict};
use super::snapshot::{self, ShardCutter};
use super::state::{REQUEST_RETENTION_MS, State, requests_from};
use super::tail::{Applied, Tail};
use crate::keyspace::{side, version};
use crate::raft::{Cutter, Entry, Machine};
use crate::runtime::planted::{self, Bug};
use crate::runtime::{Clock, Instant};
use crate::storage::mvcc::{Origin, Version};
use crate::storage::{self, Batch, Engine, Family, Lookup, Reader, Tier};
use crate::types::{Error, Outcome, Outcomes, Reason, ShardId, Timestamp};

/// Checksum marks kept per replica, each holding one storage snapshot: the one being asked for and a late one.
const CHECKSUM_MARKS_MAX: usize = 2;

/// How often compaction is told that older request outcomes may go.
const REQUESTS_PUBLISHED_EVERY_MS: u64 = 10_000;

/// A place in the log at which the content is to be summed: the state of then, frozen.
pub struct ChecksumMark {
    /// The name given by the leader that asked.
    pub name: u64,
    /// The entry after which the content is summed.
    pub index: u64,
    /// The stored state at or soon after it; later versions are told by their timestamps.
    pub reader: Arc<dyn Reader>,
    /// The applied state at it.
    pub state: State,
    /// When it was noted; old marks are dropped, since they keep compaction from trimming.
    pub noted: Instant,
}

/// What a replica shows to those who read from it, updated by apply.
pub struct Shared {
    /// The applied state.
    pub state: ArcSwap<State>,
    /// The newest timestamp applied; readers that need a version wait for it here.
    pub applied: watch::Sender<Timestamp>,
    /// The newest checksum marks.
    pub marks: Mutex<Vec<Arc<ChecksumMark>>>,
    /// Told when a checksum mark was set (its count).
    pub marked: watch::Sender<u64>,
    /// The last changes, for those who follow. Held while the applied state is changed.
    pub tail: Mutex<Tail>,
}

impl Shared {
    fn new(state: State) -> Shared {
        Shared {
            applied: watch::Sender::new(state.last_timestamp),
            state: ArcSwap::from_pointee(state),
            marks: Mutex::new(Vec::new()),
            marked: watch::Sender::new(0),
            tail: Mutex::default(),
        }
    }
}

/// The state machine of one replica.
pub struct ShardMachine {
    shard: ShardId,
    engine: Arc<dyn Engine>,
    shared: Arc<Shared>,
    state: State,
    recent: RecentOutcomes,
    clock: Clock,
    home: Home,
    /// The horizon and the oldest request last told to compaction.
    published: Option<(Timestamp, u64)>,
}

impl ShardMachine {
    /// Recovers the applied state, or begins with `fresh`.
    pub fn open(
        shard: ShardId,
        engine: Arc<dyn Engine>,
        fresh: State,
        clock: Clock,
        home: Home,
    ) -> storage::Result<ShardMachine> {
        let state = load(&*engine, shard)?.unwrap_or(fresh);
        let recent = RecentOutcomes::new(state.issued_max_ms, RECENT_OUTCOMES_MAX);
        let shared = Arc::new(Shared::new(state.clone()));
        let mut machine = ShardMachine { shard, engine, shared, state, recent, clock, home, published: None };
        machine.publish_horizon();
        Ok(machine)
    }

    /// What readers see.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// The stored or remembered verdict of a request, if it was seen.
    fn find_record(&self, place: &Place) -> storage::Result<Option<Record>> {
        match self.recent.find(place) {
            Recent::Seen(record) => return Ok(Some(record.clone())),
            Recent::Unseen => return Ok(None),
            Recent::Unknown => {}
        }
        let (anchor, request) = place;
        let key = side::outcome(anchor, request);
        match self.engine.get(Family::Data, &key, Tier::Disk)? {
            Lookup::Found(bytes) => Record::decode(bytes).map(Some).map_err(storage::Error::from),
            Lookup::Missing => outcomes::carried(&*self.engine, place, self.state.carried_until),
            Lookup::NeedsDisk => unreachable!("a read of the disk tier always knows"),
        }
    }

    /// Decides one command and adds its effects to the batch; the version may carry the outcome if `carry` says so.
    fn apply_command(
        &mut self,
        command: &Command,
        stamped: Timestamp,
        carry: bool,
        scratch: &mut Scratch<'_>,
        batch: &mut Batch,
        changes: &mut Changes,
    ) -> storage::Result<Verdict> {
        if let Err(refusal) = self.admit(command, stamped) {
            return Ok(Err(refusal));
        }
        if let Some(upkeep) = &command.upkeep {
            let timestamp = stamped.max(self.state.last_timestamp.next());
            self.state.last_timestamp = timestamp;
            let (verdict, versions) = intake::decide(upkeep, timestamp, &mut self.state, scratch)?;
            self.keep(timestamp, versions, None, scratch, batch, changes);
            return Ok(verdict);
        }
        let write = &command.write;
        let anchor = write.operations.first().map(|operation| &operation.key);
        let anchor = anchor.or(write.conditions.first().map(|condition| &condition.key));
        let Some(anchor) = anchor else {
            return Ok(Err(Error::new(Reason::BatchTooLarge, "a batch needs at least one operation or condition")));
        };
        let fingerprint = command.fingerprint();
        if let Some(request) = write.request
            && let Some(record) = self.find_record(&(anchor.clone(), request))?
        {
            ::metrics::counter!(metrics::REPEATS).increment(1);
            return Ok(record.answer(fingerprint));
        }

        let timestamp = stamped.max(self.state.last_timestamp.next());
        self.state.last_timestamp = timestamp;
        self.state.requests_from_ms = self.state.requests_from_ms.max(requests_from(timestamp));
        let decided = evaluate(write, timestamp, self.state.horizon, scratch)?;
        let carry = carry && outcomes::is_carried(write, timestamp);
        let origin = write.request.filter(|_| carry).map(|request| Origin { request, fingerprint });
        self.keep(timestamp, decided.versions, origin.as_ref(), scratch, batch, changes);
        if let Some(request) = write.request {
            let record = Record { fingerprint, decided: timestamp, verdict: decided.verdict.clone() };
            if carry {
                self.state.carried_until = timestamp;
            } else {
                batch.put(Family::Data, side::outcome(anchor, &request), record.encode());
            }
            self.state.issued_max_ms = self.state.issued_max_ms.max(request.issued_ms);
            // Before it is stored: a repeat may stand in the same batch.
            self.recent.insert((anchor.clone(), request), record);
        }
        Ok(decided.verdict)
    }

    /// Puts the versions of one command where they belong.
    fn keep(
        &mut self,
        timestamp: Timestamp,
        versions: Vec<(Bytes, Version)>,
        origin: Option<&Origin>,
        scratch: &mut Scratch<'_>,
        batch: &mut Batch,
        changes: &mut Changes,
    ) {
        if versions.is_empty() {
            return;
        }
        for (key, value) in &versions {
            batch.put(Family::Data, version::key(key, value.timestamp), value.encode_from(origin));
        }
        self.state.written.note(timestamp);
        if let Some(followed) = changes.followed.as_mut() {
            followed.push(Applied { timestamp, versions: versions.clone() });
        }
        scratch.write(versions);
    }

    /// Whether the shard takes this command at all. A refusal has no effect and is not remembered.
    fn admit(&self, command: &Command, stamped: Timestamp) -> Result<(), Error> {
        let write = &command.write;
        let mut keys = (write.operations.iter().map(|operation| &operation.key))
            .chain(write.conditions.iter().map(|condition| &condition.key));
        let within = command.upkeep.as_ref().is_none_or(|upkeep| upkeep.lies_within(&self.state));
        let routed_well = command.epoch == self.state.epoch && keys.all(|key| self.state.owns(key)) && within;
        if !routed_well && !planted::is(Bug::WrongEpochAccepted) {
            return Err(Error::new(
                Reason::WrongEpoch,
                format!("the range of {} has changed; fetch the topology again", self.shard),
            ));
        }
        if let Some(request) = &write.request {
            if request.issued_ms < self.state.requests_from_ms {
                return Err(Error::new(
                    Reason::RequestExpired,
                    format!(
                        "the request was issued more than {} minutes ago (or its client's clock is that far behind); \
                         whether it took effect is no longer known here: read the key before deciding",
                        REQUEST_RETENTION_MS / 60_000
                    ),
                ));
            }
            if request.issued_ms > stamped.millis().saturating_add(REQUEST_RETENTION_MS) {
                return Err(Error::invalid(
                    "the request id says it was issued far in the future; set the client's clock right",
                ));
            }
        }
        Ok(())
    }

    /// Tells compaction what it may drop: seldom, and not while a checksum mark needs what is there.
    fn publish_horizon(&mut self) {
        let state = &self.state;
        let due = match self.published {
            None => true,
            Some((horizon, requests_from_ms)) => {
                horizon != state.horizon || requests_from_ms + REQUESTS_PUBLISHED_EVERY_MS <= state.requests_from_ms
            }
        };
        if due && self.shared.marks.lock().is_empty() {
            self.engine.horizons().set(&state.start, &state.end, state.horizon, state.requests_from_ms);
            self.published = Some((state.horizon, state.requests_from_ms));
        }
    }

    fn apply_entry(
        &mut self,
        proposal: Proposal,
        (index, members_at): (u64, u64),
        scratch: &mut Scratch<'_>,
        batch: &mut Batch,
        changes: &mut Changes,
    ) -> storage::Result<Outcomes> {
        let mut outcomes: Outcomes = Vec::with_capacity(proposal.commands.len());
        for command in &proposal.commands {
            let carry = proposal.versions_carry_outcomes;
            outcomes.push(self.apply_command(command, proposal.stamped, carry, scratch, batch, changes)?);
        }
        if let Some(abandon) = &proposal.abandon {
            outcomes.push(merging::abandon(self.shard, &mut self.state, abandon, index).map(|()| self.done()));
            return Ok(outcomes);
        }
        if self.state.sealed_for.is_some() {
            // Whoever takes this shard over finds the same state beside it, whenever it comes to do so.
            let late = || Error::new(Reason::WrongEpoch, format!("{} was sealed", self.shard));
            let wishes = [proposal.split.is_some(), proposal.seal.is_some(), proposal.absorb.is_some()];
            outcomes.extend(wishes.into_iter().filter(|&wish| wish).map(|_| Err(late())));
            return Ok(outcomes);
        }
        if let Some(passed) = proposal.passed {
            self.state.last_timestamp = self.state.last_timestamp.max(passed);
        }
        if let Some(horizon) = proposal.horizon {
            self.state.requests_from_ms = self.state.requests_from_ms.max(requests_from(proposal.stamped));
            // Whatever the table's history is now: versions that carry outcomes stay until nobody may ask for those.
            let carried_from = outcomes::carried_from(self.state.requests_from_ms);
            let limit = if self.state.carried_until < carried_from { Timestamp::MAX } else { carried_from.previous() };
            self.state.raise_horizon(horizon.min(self.state.last_timestamp).min(limit));
        }
        if let Some(split) = &proposal.split {
            outcomes.push(match division::divide(self.shard, &mut self.state, split, index, members_at) {
                Ok(child) => {
                    // Compaction is told of the narrower range; what lies beyond keeps its horizon until the child tells.
                    self.published = None;
                    let batch = if planted::is(Bug::TornSplit) { &mut changes.late } else { &mut *batch };
                    let born = self.home.settle(&*self.engine, self.shard, split, child, batch)?;
                    changes.news.extend(born.map(News::Born));
                    Ok(self.done())
                }
                Err(refusal) => Err(refusal),
            });
        }
        if let Some(seal) = &proposal.seal {
            outcomes.push(merging::seal(self.shard, &mut self.state, seal, members_at).map(|()| self.done()));
        }
        if let Some(absorb) = &proposal.absorb {
            let position = (index, members_at);
            let absorbed = merging::absorb(&*self.engine, self.shard, &mut self.state, absorb, position, batch)?;
            if absorbed.is_ok() {
                self.published = None;
                self.recent.forget_until(self.state.issued_max_ms);
                // Of what the other one changed nothing is here.
                if !planted::is(Bug::TailAcrossAGap) {
                    changes.followed = None;
                }
                changes.news.push(News::Absorbed(absorb.right));
            }
            outcomes.push(absorbed.map(|()| self.done()));
        }
        Ok(outcomes)
    }

    fn done(&self) -> Outcome {
        Outcome { applied: true, timestamp: self.state.last_timestamp, ..Outcome::default() }
    }

    /// Writes what has gathered, with the applied state, and lets readers see it, and those who follow.
    fn commit(&mut self, mut batch: Batch, mark: Bytes, followed: Option<Vec<Applied>>) -> storage::Result<()> {
        self.state.mark = Some(mark);
        if planted::is(Bug::TornBatch) {
            self.engine.write(std::mem::take(&mut batch))?;
        }
        batch.put(Family::Data, side::applied(self.shard), self.state.encode());
        // Neighbours one after the other: a sorted memtable takes them in with fewer steps.
        batch.changes.sort_by(|a, b| a.key().cmp(b.key()));
        self.engine.write(batch)?;
        self.show(followed);
        self.publish_horizon();
        self.shared.applied.send_replace(self.state.last_timestamp);
        Ok(())
    }

    /// Lets readers see the state as it is now, and those who follow what led to it from what they saw before; none if that is
    /// not known.
    fn show(&self, followed: Option<Vec<Applied>>) {
        let mut tail = self.shared.tail.lock();
        match followed {
            Some(applied) => tail.push(applied, self.clock.now()),
            None if planted::is(Bug::TailAcrossAGap) => {}
            None => tail.restart(self.state.last_timestamp),
        }
        self.shared.state.store(Arc::new(self.state.clone()));
    }
}

/// What one run of entries has changed besides what it wrote.
#[derive(Default)]
struct Changes {
    /// What its commands changed, if somebody follows; none also if that is not all that leads to the state after it.
    followed: Option<Vec<Applied>>,
    /// About who lives here.
    news: Vec<News>,
    /// Only for [`Bug::TornSplit`]: what should have been in the batch of the parent.
    late: Batch,
}

impl Machine for ShardMachine {
    fn mark(&self) -> Option<Bytes> {
        self.state.mark.clone()
    }

    fn apply(&mut self, entries: Vec<Entry>, mark: Bytes) -> storage::Result<Vec<Outcomes>> {
        let engine = self.engine.clone();
        let mut scratch = Scratch::new(&*engine);
        let mut batch = Batch::new();
        let mut all = Vec::with_capacity(entries.len());
        let mut commands = 0;
        let mut marks = Vec::new();
        let followed = self.shared.tail.lock().is_kept().then(Vec::new);
        let mut changes = Changes { followed, ..Changes::default() };
        for entry in entries {
            let Some(payload) = entry.payload else {
                all.push(Vec::new());
                continue;
            };
            let proposal = Proposal::decode(payload).map_err(storage::Error::from)?;
            commands += proposal.commands.len();
            if let Some(name) = proposal.checksum {
                marks.push((name, entry.index, self.state.clone()));
            }
            all.push(self.apply_entry(
                proposal,
                (entry.index, entry.members_at),
                &mut scratch,
                &mut batch,
                &mut changes,
            )?);
        }
        drop(scratch);
        self.commit(batch, mark, changes.followed)?;
        if !changes.late.changes.is_empty() {
            self.engine.write(changes.late)?;
        }
        self.home.tell(changes.news);
        self.recent.trim();
        if commands > 0 {
            ::metrics::counter!(metrics::COMMANDS_APPLIED).increment(commands as u64);
        }
        for (name, index, state) in marks {
            let noted = self.clock.now();
            let mark = ChecksumMark { name, index, reader: self.engine.snapshot(), state, noted };
            let mut kept = self.shared.marks.lock();
            kept.push(Arc::new(mark));
            if kept.len() > CHECKSUM_MARKS_MAX {
                kept.remove(0);
            }
            drop(kept);
            self.shared.marked.send_modify(|count| *count += 1);
        }
        Ok(all)
    }

    fn cutter(&self) -> Arc<dyn Cutter> {
        Arc::new(ShardCutter::new(self.engine.clone(), self.shard))
    }

    fn install(&mut self, name: &str, summary: &Bytes, files: Vec<PathBuf>) -> storage::Result<()> {
        let coming = State::decode(summary.clone()).map_err(storage::Error::from)?;
        if !merging::may_replace(&*self.engine, &self.state, &coming)? {
            // It was sealed since the snapshot was looked at. Its range may be another's any moment.
            return Err(storage::Error::Io(format!("a snapshot of {} came when it was sealed", self.shard)));
        }
        let ended = merging::superseded(&*self.engine, &coming)?;
        // What was here goes, and what comes needs an empty place: the shard may have been split in between.
        let start = coming.start.clone().min(self.state.start.clone());
        let end = coming.end.clone().max(self.state.end.clone());
        let mut replaced = snapshot::ranges(self.shard, &start, &end);
        for (record, state) in &ended {
            replaced.extend(snapshot::ranges(record.shard, &state.start, &state.end));
            self.engine.horizons().clear(&state.start, &state.end);
        }
        self.engine.install(name, &replaced, &files)?;
        let state = load(&*self.engine, self.shard)?
            .ok_or_else(|| storage::Error::corruption("an installed snapshot lacks its applied state"))?;
        assert_eq!(
            (&state.start, &state.end, state.epoch),
            (&coming.start, &coming.end, coming.epoch),
            "a snapshot of {} holds another range than it says",
            self.shard
        );
        // Their data went with the range. A crash before this leaves them to be found at the next start.
        for (record, _) in &ended {
            merging::bury(&*self.engine, record)?;
        }
        self.home.tell(ended.into_iter().map(|(record, _)| News::Absorbed(record.shard)).collect());
        self.recent = RecentOutcomes::new(state.issued_max_ms, RECENT_OUTCOMES_MAX);
        self.state = state;
        self.published = None;
        self.publish_horizon();
        self.show(None);
        self.shared.applied.send_replace(self.state.last_timestamp);
        Ok(())
    }
}

/// The applied state stored for a shard.
pub fn load(reader: &dyn Reader, shard: ShardId) -> storage::Result<Option<State>> {
    match reader.get(Family::Data, &side::applied(shard), Tier::Disk)? {
        Lookup::Found(bytes) => State::decode(bytes).map(Some).map_err(storage::Error::from),
        Lookup::Missing => Ok(None),
        Lookup::NeedsDisk => unreachable!("a read of the disk tier always knows"),
    }
}
