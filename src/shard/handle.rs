//! The handle by which a node uses one of its replicas: start and stop, writes, checksums, upkeep. Reads: `reads`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::{mpsc, oneshot, watch};

use super::age::Proofs;
use super::awaited::Awaited;
use super::checksum::{self, Checksum};
use super::command::{Abandon, Absorb, Command, Seal, Split};
use super::division::Home;
use super::evaluate::{Scratch, evaluate};
use super::gate::{self, Gate, Waiting};
use super::intake::Upkeep;
use super::load::Load;
use super::machine::{ShardMachine, Shared};
use super::metrics;
use super::proposer::{self, Pending, PendingKind};
use super::state::State;
use super::trimming::Pins;
use crate::raft::{Group, GroupError, Kind, LogBounds, Part, Status, Timers, Transport};
use crate::runtime::planted::{self, Bug};
use crate::runtime::{Clock, Instant, spawn, spawn_blocking, timeout_at};
use crate::storage::{Engine, LogWriter};
use crate::types::{
    Action, Epoch, Error, NodeId, Outcome, Reason, ReplicaId, Result, Role, ShardId, Test, Timestamp, Write,
};
use crate::wire::proto::internal::ConfirmQuestion;

/// How long writers are told to wait when a shard's queue is full.
pub(super) const OVERLOADED_RETRY: Duration = Duration::from_millis(50);
/// Bytes waiting for the node's log writer beyond which new writes are refused: a disk that cannot keep up must be felt
/// by clients, not by memory.
const LOG_QUEUE_BYTES_MAX: usize = 64 << 20;

/// The epoch of a shard whose range has never changed.
const FIRST_EPOCH: Epoch = Epoch(1);

/// What a replica needs to know of itself.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    /// The shard.
    pub shard: ShardId,
    /// Which member of its group this is.
    pub replica: ReplicaId,
    /// Where it lives, and who is told of its children.
    pub home: Home,
    /// The state to begin with if it has applied nothing yet.
    pub fresh: State,
    /// Raft's timers.
    pub timers: Timers,
    /// How much of the log to keep.
    pub log: LogBounds,
    /// The table's history window in milliseconds.
    pub history_ms: u64,
    /// Clocks.
    pub clock: Clock,
}

/// One replica of one shard.
pub struct Shard {
    id: ShardId,
    replica: ReplicaId,
    group: Group,
    /// The group's last known leader and part, cheap to look at.
    status: watch::Receiver<Status>,
    pub(super) shared: Arc<Shared>,
    pub(super) engine: Arc<dyn Engine>,
    writer: LogWriter,
    pub(super) clock: Clock,
    pub(super) history_ms: Arc<AtomicU64>,
    pub(super) pins: Pins,
    queue: mpsc::Sender<Pending>,
    pub(super) load: Load,
    pub(super) gate: mpsc::Sender<Waiting>,
    pub(super) proofs: Arc<Proofs>,
    awaited: Arc<Awaited>,
    /// Set before its data may go.
    ended: AtomicBool,
}

/// An answer of a replica, with what its header says.
#[derive(Clone, Debug)]
pub struct Served<T> {
    /// The answer.
    pub body: T,
    /// The part this replica plays.
    pub role: Role,
    /// The newest version applied here.
    pub as_of: Timestamp,
    /// Proven age, if there is a proof.
    pub age: Option<Duration>,
    /// The shard's epoch.
    pub epoch: Epoch,
}

impl Shard {
    /// Recovers the replica from storage and joins its group.
    pub async fn start(
        options: ShardOptions,
        engine: Arc<dyn Engine>,
        writer: LogWriter,
        transport: Arc<dyn Transport>,
    ) -> Result<Arc<Shard>, GroupError> {
        let clock = options.clock.clone();
        let late = options.fresh.epoch > FIRST_EPOCH;
        let machine =
            ShardMachine::open(options.shard, engine.clone(), options.fresh, clock.clone(), options.home.clone())
                .map_err(|error| GroupError::Start(error.to_string()))?;
        let shared = machine.shared();
        let mut raft_options = crate::raft::Options::new(options.shard, options.replica, options.home.node);
        raft_options.timers = options.timers;
        raft_options.log = options.log;
        // The log from the beginning is of a range that this replica never had.
        raft_options.begins_with_snapshot = shared.state.load().mark.is_none() && late;
        let group = Group::start(
            raft_options,
            engine.clone(),
            writer.clone(),
            Box::new(machine),
            transport.clone(),
            clock.clone(),
        )
        .await?;
        let (queue, queued) = mpsc::channel(proposer::QUEUE_COMMANDS_MAX);
        let (gate, waiting) = mpsc::channel(gate::QUEUE_READS_MAX);
        let history_ms = Arc::new(AtomicU64::new(options.history_ms));
        spawn(proposer::run(group.clone(), writer.clone(), clock.clone(), history_ms.clone(), queued));
        let proofs = Arc::new(Proofs::default());
        let awaited = Arc::new(Awaited::new(clock.clone()));
        let gated = Gate {
            group: group.clone(),
            clock: clock.clone(),
            transport,
            shared: shared.clone(),
            proofs: proofs.clone(),
            awaited: awaited.clone(),
        };
        spawn(gated.run(waiting));
        Ok(Arc::new(Shard {
            id: options.shard,
            replica: options.replica,
            status: group.watch(),
            group,
            shared,
            engine,
            writer,
            clock,
            history_ms,
            pins: Pins::default(),
            queue,
            load: Load::default(),
            gate,
            proofs,
            awaited,
            ended: AtomicBool::new(false),
        }))
    }

    /// The shard's id.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// Which member of the group this replica is.
    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// How much is asked of it.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// The Raft group: leadership, membership, transport entry.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Takes a message from another replica of the group, as [`Group::receive`] does. A question for a confirmed index
    /// waits at the gate, beside this replica's own readers.
    pub fn receive(
        &self,
        from: ReplicaId,
        to: ReplicaId,
        kind: Kind,
        payload: Bytes,
        answer: oneshot::Sender<std::result::Result<Bytes, String>>,
    ) {
        if kind != Kind::ReadIndex {
            return self.group.receive(from, to, kind, payload, answer);
        }
        let question = ConfirmQuestion::decode(payload);
        let refusal = if to != self.replica {
            format!("a question from {from} for {to} reached {}", self.replica)
        } else if !self.is_leader() {
            format!("{to} does not lead {}", self.id)
        } else if let Ok(ConfirmQuestion { awaited }) = question {
            let Err(error) = self.gate.try_send(Waiting::Replica { answer, awaited }) else { return };
            if let Waiting::Replica { answer, .. } = error.into_inner() {
                let _ = answer.send(Err("too many reads wait for this shard".to_owned()));
            }
            return;
        } else {
            "the question cannot be understood; do the versions match?".to_owned()
        };
        let _ = answer.send(Err(refusal));
    }

    /// The applied state.
    pub fn state(&self) -> Arc<State> {
        self.shared.state.load_full()
    }

    /// The stored data, for readers that take whatever is there.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// Tells when new versions were applied.
    pub fn applied(&self) -> watch::Receiver<Timestamp> {
        self.shared.applied.subscribe()
    }

    /// Whether somebody waits until views have taken in what was written here.
    pub fn awaited(&self) -> &Awaited {
        &self.awaited
    }

    /// Tells the replica its table's history window.
    pub fn set_history_ms(&self, history_ms: u64) {
        self.history_ms.store(history_ms, Ordering::Relaxed);
    }

    /// Whether this replica leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.status.borrow().is_leader()
    }

    /// Who leads, as far as this replica knows.
    pub fn leader(&self) -> Option<(ReplicaId, NodeId)> {
        self.status.borrow().leader
    }

    pub(super) fn role(&self) -> Role {
        match self.status.borrow().part {
            Part::Leader => Role::Leader,
            Part::Learner => Role::Learner,
            Part::Follower | Part::Candidate | Part::Stopped => Role::Follower,
        }
    }

    /// Commits a batch over encoded keys, routed under `epoch`.
    ///
    /// Errors: `NOT_LEADER`, `OVERLOADED`, `WRONG_EPOCH` (nothing happened), `RESULT_UNDETERMINED` (unknown, also when
    /// the deadline passes on the way), and the deterministic refusals of apply.
    pub async fn write(&self, epoch: Epoch, write: Write, deadline: Instant) -> Result<Served<Outcome>> {
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        if self.state().sealed_for.is_some() {
            // Its log would say so too, but may not be able to say anything any more.
            return Err(self.wrong_epoch());
        }
        let mut write = write;
        if let Some(first) = write.operations.first() {
            self.load.count(&first.key);
            self.load.count_written(write.operations.len());
        }
        if planted::is(Bug::ConditionBeforeLog) && self.holds_now(&write)? {
            write.conditions.clear();
        }
        let bytes = write_bytes(&write);
        let command = Command { epoch, write, upkeep: None }.to_log();
        let outcome = self.enqueue(PendingKind::Command(command), bytes, deadline).await?;
        let as_of = self.state().last_timestamp.max(outcome.timestamp);
        Ok(Served { body: outcome, role: Role::Leader, as_of, age: Some(Duration::ZERO), epoch })
    }

    /// Commits one step of a view's upkeep, routed under `epoch`. Whether it took effect is in the outcome.
    ///
    /// Errors: as for [`Shard::write`].
    pub async fn keep_up(&self, epoch: Epoch, upkeep: Upkeep, deadline: Instant) -> Result<Outcome> {
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        if !upkeep.lies_within(&self.state()) {
            return Err(self.wrong_epoch());
        }
        let bytes = upkeep.bytes();
        let command = Command { epoch, write: Write::default(), upkeep: Some(upkeep) }.to_log();
        self.enqueue(PendingKind::Command(command), bytes, deadline).await
    }

    /// Whether the conditions of a write hold in the state of now: only for [`Bug::ConditionBeforeLog`].
    fn holds_now(&self, write: &Write) -> Result<bool> {
        let state = self.state();
        let mut scratch = Scratch::new(&*self.engine);
        let question = Write { conditions: write.conditions.clone(), ..Write::default() };
        let decided = evaluate(&question, state.last_timestamp.next(), state.horizon, &mut scratch)?;
        Ok(!write.conditions.is_empty() && decided.verdict.is_ok_and(|outcome| outcome.applied))
    }

    pub(super) async fn enqueue(&self, kind: PendingKind, bytes: usize, deadline: Instant) -> Result<Outcome> {
        if self.clock.now() >= deadline {
            return Err(Error::new(Reason::DeadlineExceeded, "the deadline had passed before anything was done"));
        }
        if self.writer.queue_bytes() > LOG_QUEUE_BYTES_MAX {
            ::metrics::counter!(metrics::OVERLOADED).increment(1);
            return Err(Error::new(Reason::Overloaded, "the disk cannot keep up with the writes; slow down")
                .with_retry_after(OVERLOADED_RETRY));
        }
        let (answer, outcome) = oneshot::channel();
        self.queue.try_send(Pending { kind, bytes, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                ::metrics::counter!(metrics::OVERLOADED).increment(1);
                Error::new(Reason::Overloaded, "too many writes wait for this shard; slow down")
                    .with_retry_after(OVERLOADED_RETRY)
            }
            mpsc::error::TrySendError::Closed(_) => Error::new(Reason::NotReady, "the replica has stopped"),
        })?;
        match timeout_at(deadline, outcome).await {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(Error::new(
                Reason::ResultUndetermined,
                "the replica stopped while the write was on its way; repeat it with the same request id",
            )),
            None => Err(Error::new(
                Reason::ResultUndetermined,
                "the deadline passed while the write was on its way; it may or may not take effect",
            )),
        }
    }

    /// Divides the shard. `CONFLICT` or `WRONG_EPOCH`: it has changed since, and nothing happened.
    pub async fn split(&self, split: &Split, deadline: Instant) -> Result<()> {
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        self.enqueue(PendingKind::Split(split.to_log()), 0, deadline).await.map(|_| ())
    }

    /// Ends the shard, for its left neighbour to take over. `CONFLICT` or `WRONG_EPOCH`: it has changed since, and nothing
    /// happened.
    pub async fn seal(&self, seal: Seal, deadline: Instant) -> Result<()> {
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        self.enqueue(PendingKind::Seal(seal.to_log()), 0, deadline).await.map(|_| ())
    }

    /// Takes over the right neighbour, which must lie sealed and durable beside every member of this group. `CONFLICT` or
    /// `WRONG_EPOCH`: it has changed since, and nothing happened.
    pub async fn absorb(&self, absorb: &Absorb, deadline: Instant) -> Result<()> {
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        self.enqueue(PendingKind::Absorb(absorb.to_log()), 0, deadline).await.map(|_| ())
    }

    /// Does without a merge: the shard goes on with what it has, under a later epoch. `WRONG_EPOCH`: it has changed since,
    /// and nothing happened.
    pub async fn abandon(&self, abandon: Abandon, deadline: Instant) -> Result<()> {
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        self.enqueue(PendingKind::Abandon(abandon.to_log()), 0, deadline).await.map(|_| ())
    }

    /// Whether the log here still holds entries from before the range was last changed.
    pub fn has_log_of_the_past(&self) -> bool {
        let divided_at = self.state().divided_at;
        divided_at > 0 && self.group.status().purged.is_none_or(|purged| purged < divided_at)
    }

    /// Removes the log from before the range was last changed: a replica that is created later could not apply it.
    pub async fn forget_the_past(&self) {
        if self.has_log_of_the_past() {
            self.group.purge_through(self.state().divided_at).await;
        }
    }

    /// Asks every replica, through the log, to note a checksum of its content at one position, under `name`.
    pub async fn note_checksum(&self, name: u64, deadline: Instant) -> Result<()> {
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        self.enqueue(PendingKind::Checksum(name), 0, deadline).await.map(|_| ())
    }

    /// The checksum this replica noted under `name`, once it has applied that far.
    pub async fn checksum(&self, name: u64, deadline: Instant) -> Result<Checksum> {
        let mut marked = self.shared.marked.subscribe();
        let mark = loop {
            marked.borrow_and_update();
            let found = self.shared.marks.lock().iter().find(|mark| mark.name == name).cloned();
            if let Some(mark) = found {
                break mark;
            }
            let waited = timeout_at(deadline, marked.changed()).await;
            if !matches!(waited, Some(Ok(()))) {
                return Err(Error::new(
                    Reason::DeadlineExceeded,
                    "the replica did not reach the position of the checksum in time",
                ));
            }
        };
        let sum = {
            let (mark, group) = (mark.clone(), self.id());
            spawn_blocking(move || {
                checksum::read_log(&*mark.reader, group)?;
                checksum::of(&mark)
            })
            .await
            .map_err(|_| Error::internal("a checksum was cancelled"))??
        };
        self.shared.marks.lock().retain(|kept| kept.name != name);
        Ok(sum)
    }

    /// Leaves the group. The replica's data stays; but what is read of it from now on is not answered, since whoever stops
    /// a replica may remove that next.
    pub async fn stop(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.group.stop().await;
    }

    /// Whether it was stopped. A reader asks this after it has read.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    pub(crate) fn not_leader(&self) -> Error {
        Error::new(Reason::NotLeader, format!("this replica does not lead {}", self.id))
            .with_leader(self.leader().map(|(_, node)| node))
    }

    pub(super) fn wrong_epoch(&self) -> Error {
        Error::new(
            Reason::WrongEpoch,
            format!("the range of {} is not what the request was routed by; fetch the topology again", self.id),
        )
    }
}

/// About how many bytes a write takes in the log.
fn write_bytes(write: &Write) -> usize {
    let conditions = write.conditions.iter().map(|condition| {
        condition.key.len()
            + match &condition.test {
                Test::Value(value) => value.len(),
                Test::Version(_) | Test::Absent | Test::Present => 8,
            }
    });
    let operations = write.operations.iter().map(|operation| {
        operation.key.len()
            + match &operation.action {
                Action::Put { value, .. } => value.len() + 8,
                Action::Delete | Action::Increment { .. } | Action::Rollback { .. } => 8,
            }
    });
    conditions.chain(operations).sum::<usize>() + 64
}
