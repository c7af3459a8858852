//! The handle of one replica of one group: proposals, reads, members, messages from other replicas.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::errors::{ClientWriteError, Fatal, ForwardToLeader, InitializeError, LinearizableReadError, RaftError};
use openraft::type_config::async_runtime::watch::WatchReceiver;
use openraft::{ReadPolicy, ServerState};
use prost::Message;
use tokio::sync::{oneshot, watch};

use super::apply::{Applier, SnapshotFiles};
use super::codec;
use super::error::{GroupError, LeaderHint, ProposeError, ReadError, SnapshotError};
use super::keeper;
use super::log::LogStore;
use super::machine::{Cutter, Machine};
use super::metrics;
use super::network::{Behind, Network};
use super::options::Options;
use super::pulse::{self, Heard};
use super::receive;
use super::staged::Staged;
use super::status::{Part, Status};
use super::transport::{Kind, Transport};
use super::types::{Command, Metrics, Raft, Snapshot, SnapshotMeta, TypeConfig};
use crate::runtime::{self, Clock, Task};
use crate::storage::{Engine, Family, LogWriter, Lookup, Tier, log_keys};
use crate::types::{NodeId, Outcomes, ReplicaId, ShardId};
use crate::wire::proto::internal as proto;

/// How long a stopping replica may finish what it has begun to apply.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// One replica of one group. Cloning gives another handle of the same.
#[derive(Clone)]
pub struct Group {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) options: Options,
    pub(super) raft: Raft,
    pub(super) log: LogStore,
    cutter: Arc<dyn Cutter>,
    pub(super) status: watch::Sender<Status>,
    /// One more than the last applied index; closed when the machine is gone.
    applied: watch::Receiver<u64>,
    /// Held while leadership is being handed over.
    pub(super) transferring: tokio::sync::Mutex<()>,
    /// Whether another voter's log was found to go further than this one, when it stood.
    pub(super) behind: Behind,
    /// Whether a leader has been heard from lately.
    pub(super) heard: Arc<Heard>,
    /// What runs beside the replica.
    tasks: parking_lot::Mutex<Vec<Task<()>>>,
}

impl Group {
    /// Recovers a replica from storage and starts it. It takes part in elections at once: without leases for reads
    /// ([`Group::confirm`] always asks a quorum) a restarted voter has no promise to keep but its vote, which is
    /// durable, so no grace period is needed.
    pub async fn start(
        options: Options,
        engine: Arc<dyn Engine>,
        writer: LogWriter,
        machine: Box<dyn Machine>,
        transport: Arc<dyn Transport>,
        clock: Clock,
    ) -> Result<Group, GroupError> {
        let config = options.config()?;
        refuse_foreign_log(&*engine, &options)?;
        let log = LogStore::open(options.shard, engine.clone(), writer, options.log)
            .map_err(|error| GroupError::Start(error.to_string()))?;
        let cutter = machine.cutter();
        let (applier, applied) = Applier::open(options.shard, machine, engine, log.clone())
            .map_err(|error| GroupError::Start(error.to_string()))?;
        let Options { shard, replica, timers, .. } = options;
        let behind = Behind::default();
        let network = Network::new(shard, replica, timers, log.clone(), behind.clone(), transport, clock.clone());
        let raft = Raft::new(options.replica.0, config, network, log.clone(), applier)
            .await
            .map_err(|error| GroupError::Start(error.to_string()))?;
        // The first report tells what was recovered; before it, the replica would look as if it had never been in use.
        let mut report = raft.metrics();
        report.changed().await.map_err(|_| GroupError::Start("it stopped at once".to_owned()))?;
        let status = watch::Sender::new(status_of(&options, &raft.metrics().borrow_watched()));
        let inner = Arc::new(Inner {
            options,
            raft,
            log,
            cutter,
            status,
            applied,
            transferring: tokio::sync::Mutex::new(()),
            behind,
            heard: Arc::default(),
            tasks: parking_lot::Mutex::default(),
        });
        *inner.tasks.lock() = vec![keeper::spawn(&inner), pulse::spawn(&inner, &clock)];
        Ok(Group { inner })
    }

    /// The shard whose group this is.
    pub fn shard(&self) -> ShardId {
        self.inner.options.shard
    }

    /// This replica.
    pub fn replica(&self) -> ReplicaId {
        self.inner.options.replica
    }

    /// Makes this pristine replica, with others like it, a new group. Only for the first members of a shard; may be
    /// called on several of them with the same members, and again after it succeeded.
    pub async fn found(&self, members: BTreeMap<ReplicaId, NodeId>) -> Result<(), GroupError> {
        let members: BTreeMap<u64, NodeId> = members.into_iter().map(|(replica, node)| (replica.0, node)).collect();
        match self.inner.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(error @ InitializeError::NotInMembers(_))) => {
                Err(GroupError::Start(error.to_string()))
            }
            Err(RaftError::Fatal(_)) => Err(GroupError::Stopped),
        }
    }

    /// Stands for election at once, without asking first whether others would vote: for a group that was just born and
    /// cannot have a leader. Harmless elsewhere, but it may cost a leader its term.
    pub async fn stand(&self) -> Result<(), GroupError> {
        self.inner.raft.trigger().elect(false).await.map_err(|_| GroupError::Stopped)
    }

    /// Proposes bytes for the machine and waits until they were applied here; returns the machine's answer. Calls made
    /// one after the other are logged in that order, also when the earlier ones are still on their way. Dropping the
    /// future leaves the proposal where it is: undetermined.
    pub async fn propose(&self, payload: Bytes) -> Result<Outcomes, ProposeError> {
        // Unconstrained: to a task whose budget is used up, openraft's queue would seem full, and the next proposal
        // could get there first.
        match tokio::task::unconstrained(self.inner.raft.client_write(Command(payload))).await {
            Ok(written) => Ok(written.data),
            // The only definite failure: openraft says so before anything is appended.
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(ProposeError::NotLeader { leader: self.hint(&forward) })
            }
            Err(RaftError::APIError(
                ClientWriteError::LogEntryDiscarded(_)
                | ClientWriteError::ChangeMembershipError(_)
                | ClientWriteError::PreconditionFailed(_),
            )) => {
                ::metrics::counter!(metrics::UNDETERMINED).increment(1);
                Err(ProposeError::Undetermined)
            }
            Err(RaftError::Fatal(_)) => Err(ProposeError::Stopped),
        }
    }

    /// Confirms with a quorum that this replica leads (ReadIndex) and waits until everything committed before was
    /// applied here: a read of local state after it is linearizable. One call may serve any number of reads that
    /// arrived before it.
    pub async fn confirm(&self) -> Result<(), ReadError> {
        let index = self.read_index().await?;
        self.wait_applied(index).await.map_err(|_| ReadError::Stopped)
    }

    /// The first half of [`Group::confirm`]: confirms leadership and returns the index up to which a replica must have
    /// applied for its state to be no older than this call.
    pub async fn read_index(&self) -> Result<u64, ReadError> {
        match self.inner.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(ReadError::NotLeader { leader: self.hint(&forward) })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(ReadError::NoQuorum),
            Err(RaftError::Fatal(_)) => Err(ReadError::Stopped),
        }
    }

    /// The index up to which entries were applied here; 0 for none.
    pub fn applied(&self) -> u64 {
        self.inner.applied.borrow().saturating_sub(1)
    }

    /// Waits until the entry at `index` was applied here. Without a deadline of its own.
    pub async fn wait_applied(&self, index: u64) -> Result<(), GroupError> {
        let mut applied = self.inner.applied.clone();
        applied.wait_for(|&next| next > index).await.map(|_| ()).map_err(|_| GroupError::Stopped)
    }

    /// What this replica knows now.
    pub fn status(&self) -> Status {
        status_of(&self.inner.options, &self.inner.raft.metrics().borrow_watched())
    }

    /// Changes of term, leader, part and members. The log positions inside are those of the last such change.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.inner.status.subscribe()
    }

    /// Takes a message from another replica and answers through `answer` when it is done. Never blocks. Messages of
    /// one sender must be handed over in the order in which they arrive; that order is kept. An answer that is an
    /// error says why the message was refused.
    pub fn receive(
        &self,
        from: ReplicaId,
        to: ReplicaId,
        kind: Kind,
        payload: Bytes,
        answer: oneshot::Sender<Result<Bytes, String>>,
    ) {
        if to != self.replica() {
            let _ = answer.send(Err(format!("a message from {from} for {to} reached {}", self.replica())));
            return;
        }
        let empty = self.inner.options.begins_with_snapshot && *self.inner.applied.borrow() == 0;
        if empty && receive::is_the_beginning(kind, &payload) {
            // Its leader goes on asking until the log before has been removed there; then it sends one.
            let _ = answer.send(Err(format!("{to} begins with a snapshot")));
            return;
        }
        receive::dispatch(&self.inner, kind, payload, answer);
    }

    /// Takes in a snapshot that was received whole: its header and its files in order. Dropping the future leaves the
    /// installation where it is, and the files with it. Returns this replica's vote, which tells the sender whether it still leads.
    pub async fn receive_snapshot(
        &self,
        header: proto::SnapshotHeader,
        staged: Staged,
    ) -> Result<proto::Vote, SnapshotError> {
        let files = SnapshotFiles::received(header.snapshot_id.clone(), header.summary.clone(), staged);
        if header.group != self.shard().0 || header.to_replica != self.replica().0 {
            return Err(SnapshotError::Refused("it is meant for another replica".to_owned()));
        }
        let refused = |error: codec::CodecError| SnapshotError::Refused(error.to_string());
        let vote = codec::vote_from_proto(header.vote).map_err(refused)?;
        let mark = header.mark.ok_or_else(|| SnapshotError::Refused("its position is missing".to_owned()))?;
        let (applied, last_membership) = codec::mark_from_proto(mark).map_err(refused)?;
        let Some(last) = applied else {
            return Err(SnapshotError::Refused("it is of nothing".to_owned()));
        };
        // openraft panics on these, rightly, as no leader sends them; a stray or forged message must not get so far.
        if last.leader_id > vote.leader_id {
            return Err(SnapshotError::Refused("it is newer than its sender's leadership".to_owned()));
        }
        let committed = self.inner.raft.metrics().borrow_watched().local_committed;
        if committed.is_some_and(|committed| last > committed && last.index <= committed.index) {
            return Err(SnapshotError::Refused("it contradicts what is committed here".to_owned()));
        }
        let (cutter, summary) = (self.inner.cutter.clone(), header.summary);
        let may = runtime::spawn_blocking(move || cutter.may_install(&summary)).await;
        match may {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(why))) => return Err(SnapshotError::Refused(why)),
            Ok(Err(error)) => return Err(SnapshotError::Refused(error.to_string())),
            Err(_) => return Err(SnapshotError::Stopped),
        }
        let meta = SnapshotMeta { last_log_id: Some(last), last_membership };
        let snapshot = Snapshot { meta, snapshot: files };
        match self.inner.raft.install_full_snapshot(vote, snapshot).await {
            Ok(response) => {
                ::metrics::counter!(metrics::SNAPSHOTS_INSTALLED).increment(1);
                Ok(codec::vote_to_proto(&response.vote))
            }
            Err(_) => Err(SnapshotError::Stopped),
        }
    }

    /// Bytes of log kept. After a restart an estimate for what was there, exact for what is appended since.
    pub fn log_bytes(&self) -> u64 {
        self.inner.log.bytes()
    }

    /// Makes the applied state durable and removes the log before it, but for the tail that is kept. The group does
    /// this by itself when its log has grown ([`super::LogBounds`]).
    pub async fn snapshot_and_purge(&self) {
        keeper::trim(&self.inner, true).await;
    }

    /// Makes the applied state durable and removes the log up to and with `index`, which must have been applied, whoever
    /// lacks it: they get a snapshot.
    pub async fn purge_through(&self, index: u64) {
        keeper::purge(&self.inner, index).await;
    }

    /// Stops the replica and waits until its machine is gone: nothing is written afterwards. Pending proposals end as
    /// [`ProposeError::Stopped`]. Hand leadership over first; stop the log writer last.
    pub async fn stop(&self) {
        let mut applied = self.inner.applied.clone();
        let mut ended = pin!(async {
            let _ = self.inner.raft.shutdown().await;
            // openraft's core does not wait for its machine; whoever removes the replica's data afterwards must.
            while applied.changed().await.is_ok() {}
        });
        if runtime::timeout(STOP_GRACE, &mut ended).await.is_none() {
            // The machine waits for an entry of a log writer that has stopped.
            self.inner.log.close();
            ended.await;
        }
        let tasks = std::mem::take(&mut *self.inner.tasks.lock());
        for task in tasks {
            let _ = task.await;
        }
    }

    /// The leader named by a refusal, unless it is this replica itself.
    pub(super) fn hint(&self, forward: &ForwardToLeader<TypeConfig>) -> LeaderHint {
        let leader = ReplicaId(forward.leader_id?);
        (leader != self.replica()).then_some(())?;
        let node = forward.leader_node.or_else(|| self.inner.status.borrow().node_of(leader))?;
        Some((leader, node))
    }
}

/// Refuses to start on the log of another replica: to give a replica's place to one under another id, or to bring a
/// destroyed one back, would let it vote twice.
fn refuse_foreign_log(engine: &dyn Engine, options: &Options) -> Result<(), GroupError> {
    let start = |error: &dyn std::fmt::Display| GroupError::Start(error.to_string());
    let key = log_keys::replica(options.shard);
    let Lookup::Found(bytes) = engine.get(Family::Raft, &key, Tier::Disk).map_err(|error| start(&error))? else {
        return Ok(());
    };
    let record = proto::ReplicaRecord::decode(bytes).map_err(|error| start(&error))?;
    if record.tombstone {
        return Err(GroupError::Start(format!("{} of {} was destroyed", ReplicaId(record.replica), options.shard)));
    }
    if record.replica != options.replica.0 {
        return Err(GroupError::Start(format!(
            "the log of {} here belongs to {}, not to {}",
            options.shard,
            ReplicaId(record.replica),
            options.replica
        )));
    }
    Ok(())
}

/// The status in openraft's report.
pub(super) fn status_of(options: &Options, metrics: &Metrics) -> Status {
    let membership = metrics.membership_config.membership();
    let voter_ids: BTreeSet<u64> = membership.voter_ids().collect();
    let (mut voters, mut learners) = (BTreeMap::new(), BTreeMap::new());
    for (&replica, &node) in membership.nodes() {
        let members = if voter_ids.contains(&replica) { &mut voters } else { &mut learners };
        members.insert(ReplicaId(replica), node);
    }
    let failure = match &metrics.running_state {
        Ok(()) | Err(Fatal::Stopped) => None,
        Err(fatal) => Some(fatal.to_string()),
    };
    let part = match metrics.state {
        _ if metrics.running_state.is_err() => Part::Stopped,
        ServerState::Leader => Part::Leader,
        ServerState::Follower => Part::Follower,
        ServerState::Candidate => Part::Candidate,
        ServerState::Learner => Part::Learner,
        ServerState::Shutdown => Part::Stopped,
    };
    let leader = metrics.current_leader.and_then(|leader| Some((ReplicaId(leader), *membership.get_node(&leader)?)));
    let matched = metrics.replication.iter().flatten();
    Status {
        replica: options.replica,
        term: metrics.current_term,
        leader,
        part,
        last_log: metrics.last_log_index.unwrap_or(0),
        committed: metrics.local_committed.map_or(0, |id| id.index),
        applied: metrics.last_applied.map_or(0, |id| id.index),
        snapshot: metrics.snapshot.map(|id| id.index),
        purged: metrics.purged.map(|id| id.index),
        voters,
        learners,
        members_at: metrics.membership_config.log_id().as_ref().map_or(0, |id| id.index),
        joint: membership.get_joint_config().len() > 1,
        matched: matched.map(|(&replica, id)| (ReplicaId(replica), id.map(|id| id.index))).collect(),
        failure,
    }
}
