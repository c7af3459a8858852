//! Merges on this node: where it leads a shard that is to take over its right neighbour, it brings that about; where a
//! replica was taken over, it is buried.
//!
//! The steps of a merge, each safe to repeat, and resumed by the next round of the reconciler after a crash anywhere:
//! 1. control notes the intent in both rows, and wants the right shard's members beside the left one's
//!    (`catalog::change::begin_merge`); `members` sees to that;
//! 2. when both groups have the members that are wanted, the left shard's leader has the right one's seal it;
//! 3. it asks beside every member of its own group whether the right replica there has applied the seal, durably;
//! 4. it proposes that its shard absorbs the right one, which every replica applies (`shard::merging`);
//! 5. it has control note the one shard that is left (`finish_merge`), and clients learn of it.
//!
//! From 2 to 5 nobody answers for the right range: that is the pause that its clients see. So 2 is begun only when nothing
//! that is known stands in the way of 3 and 4: all members have caught up, and have just answered.
//!
//! If 3 fails all the same, nobody waits for a node to come back: the merge is abandoned. The left shard's log says so first,
//! and never absorbs the right one from then on; then the right one's, which goes on with what it has; then the catalog
//! (`abandon_merge`). Whoever wants the merge asks for it again. So it is when one of the two was recovered from a lost
//! quorum: its members are others, and its range is to be answered for at once. If nothing is left of the right one, nobody
//! has to be told.

use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;

use super::ask;
use super::busy::Step;
use super::host::Node;
use super::members::{are_as_wanted, has_caught_up};
use crate::catalog::{RecoveredReplica, RecoveryRow};
use crate::raft::Status;
use crate::runtime::planted::{self, Bug};
use crate::runtime::{Instant, spawn, spawn_blocking, timeout_at};
use crate::shard::{Abandon, Absorb, Record, Seal, Shard};
use crate::types::{
    Epoch, Error, MergeIntent, NodeId, Reason, ReplicaDescriptor, ReplicaId, ReplicaRole, Result, ShardDescriptor,
    ShardId,
};

/// How long the proposal of one half may take.
const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(3);

/// How long each member may take to say that it is sealed, while nobody answers for the range.
const MEMBER_PATIENCE: Duration = Duration::from_secs(1);

/// What the right shard's leader, or who is not that, says when it has not proposed to seal it.
const NOTHING_DONE: [Reason; 4] = [Reason::Conflict, Reason::NotLeader, Reason::NoQuorum, Reason::ShardNotHere];

/// The news that a shard has taken over its right neighbour, or never will.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MergeNews {
    /// The left shard.
    pub shard: ShardId,
    /// Its epoch before.
    pub epoch: Epoch,
    /// Whether it has, or the merge was abandoned.
    pub merged: bool,
}

/// Seal yourself: to the leader of the right shard.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SealAsk {
    shard: ShardId,
    /// Its epoch, and that which it is to have.
    epoch: Epoch,
    sealed: Epoch,
    /// The left shard.
    into: ShardId,
    /// The members that it must have.
    replicas: Vec<ReplicaDescriptor>,
}

/// Is this replica sealed: to each node that has one of the right shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SealedAsk {
    shard: ShardId,
    replica: ReplicaId,
    into: ShardId,
    /// The entry that it must have applied. None: whether it is there.
    index: Option<u64>,
}

/// The merge is off: to the leader of the right shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReleaseAsk {
    shard: ShardId,
    /// The epoch that it has, or might have got, by being sealed.
    sealed: Epoch,
}

/// As leader of the left shard: does what is next to be done for the merge that is wanted of it, if one is. Returns at
/// once.
pub fn further(node: &Arc<Node>, shard: &Arc<Shard>, descriptor: &Arc<ShardDescriptor>) {
    let Some(intent) = descriptor.merge else { return };
    let Some(begun) = node.busy().begin(Step::Merge, shard.id()) else { return };
    let (node, shard, descriptor) = (node.clone(), shard.clone(), descriptor.clone());
    spawn(async move {
        let _begun = begun;
        if let Err(error) = carry_out(&node, &shard, &descriptor, intent).await {
            tracing::debug!(shard = %shard.id(), right = %intent.right, %error, "a merge is not done yet");
        }
    });
}

/// How far a merge has come, by the left shard's log alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A leader that was just elected has not applied yet what the catalog knows already.
    Unknown,
    /// It has neither happened nor been abandoned.
    Open,
    Abandoned,
    Merged,
}

impl Stage {
    fn of(state: Epoch, wanted: Epoch, intent: MergeIntent) -> Stage {
        match state {
            _ if state == wanted => Stage::Open,
            _ if state == intent.sealed => Stage::Abandoned,
            _ if state > intent.sealed => Stage::Merged,
            _ => Stage::Unknown,
        }
    }
}

async fn carry_out(
    node: &Arc<Node>,
    shard: &Arc<Shard>,
    descriptor: &ShardDescriptor,
    intent: MergeIntent,
) -> Result<()> {
    let directory = node.directory();
    let Some(right) = directory.shard(intent.right) else { return Ok(()) };
    let recovery = directory.recovery();
    let stage = || Stage::of(shard.state().epoch, descriptor.epoch, intent);
    if stage() == Stage::Open {
        let concerned = recovery.is_some_and(|row| row.concerns(shard.id()) || row.concerns(right.id));
        let done = if concerned { Err(recovered()) } else { merge(node, shard, descriptor, right, intent).await };
        match done {
            Ok(true) => tracing::info!(shard = %shard.id(), right = %right.id, "two shards were merged"),
            Ok(false) => return Ok(()),
            Err(error) => {
                tracing::info!(shard = %shard.id(), right = %right.id, %error, "a merge is abandoned");
                let off = Abandon { epoch: descriptor.epoch, next: intent.sealed };
                shard.abandon(off, node.clock().now() + PROPOSAL_TIMEOUT).await?;
            }
        }
    }
    let merged = match stage() {
        Stage::Unknown | Stage::Open => return Ok(()),
        Stage::Merged => true,
        Stage::Abandoned => {
            if !recovery.is_some_and(|row| row.gone.contains(&right.id)) {
                let right = with_heir(right, recovery);
                let question = ReleaseAsk { shard: right.id, sealed: intent.sealed };
                node.ask_shard_leader::<_, ()>(&right, ask::RELEASE, &question).await?;
            }
            false
        }
    };
    let news = MergeNews { shard: shard.id(), epoch: descriptor.epoch, merged };
    node.ask_system_leader(ask::MERGE_NEWS, &news).await
}

fn recovered() -> Error {
    Error::new(Reason::Conflict, "one of the two was recovered from a lost quorum meanwhile")
}

/// The shard with the replica that it goes on from, which may be where none was wanted.
fn with_heir(shard: &ShardDescriptor, recovery: Option<&RecoveryRow>) -> ShardDescriptor {
    let mut shard = shard.clone();
    if let Some(recovered) = recovery.and_then(|row| row.of(shard.id)) {
        let RecoveredReplica { id, node, incarnation } = recovered.heir;
        shard.replicas.push(ReplicaDescriptor { id, node, incarnation, role: ReplicaRole::Voter });
    }
    shard
}

/// Seals the right shard and absorbs it; false if it is not time yet. An error means that the right one may be sealed and
/// cannot be absorbed.
async fn merge(
    node: &Arc<Node>,
    shard: &Arc<Shard>,
    descriptor: &ShardDescriptor,
    right: &ShardDescriptor,
    intent: MergeIntent,
) -> Result<bool> {
    let status = shard.group().status();
    let is_sealed = || {
        let beside = node.replicas().get(right.id);
        beside.is_some_and(|beside| beside.state().sealed_for == Some(shard.id()))
    };
    let are_sealed = async |index: Option<u64>| {
        let beside = right.replicas.iter().map(|replica| {
            let question = SealedAsk { shard: right.id, replica: replica.id, into: shard.id(), index };
            async move { node.ask_for::<_, ()>(replica.node, ask::SEALED, &question, MEMBER_PATIENCE).await }
        });
        try_join_all(beside).await
    };
    let lies_beside = |member: &NodeId| right.replica_on(*member).is_some();
    let ready = is_ready(&descriptor.replicas, &status)
        && status.voters.values().chain(status.learners.values()).all(lies_beside);
    if !is_sealed() && (!ready || are_sealed(None).await.is_err()) {
        return Ok(false);
    }
    if !ready {
        return Err(Error::new(Reason::Conflict, "its members have changed since the right one was sealed"));
    }
    let question = SealAsk {
        shard: right.id,
        epoch: right.epoch,
        sealed: intent.sealed,
        into: shard.id(),
        replicas: right.replicas.clone(),
    };
    let index: u64 = match node.ask_shard_leader(right, ask::SEAL, &question).await {
        Ok(index) => index,
        // Whoever was asked says that it did nothing.
        Err(error) if NOTHING_DONE.contains(&error.reason) && !is_sealed() => return Ok(false),
        Err(error) => return Err(error),
    };
    are_sealed(Some(index)).await?;
    let absorb = Absorb {
        epoch: descriptor.epoch,
        right: right.id,
        sealed: intent.sealed,
        end: right.end.clone().into(),
        members_at: status.members_at,
    };
    shard.absorb(&absorb, node.clock().now() + PROPOSAL_TIMEOUT).await?;
    Ok(true)
}

/// Whether a leader's group has these members, all up with the leader as far as it knows.
fn is_ready(wanted: &[ReplicaDescriptor], status: &Status) -> bool {
    let has_all = |replica: &ReplicaDescriptor| replica.id == status.replica || has_caught_up(replica.id, status);
    are_as_wanted(wanted, status) && wanted.iter().all(has_all)
}

impl Node {
    /// As leader of the right shard: seals it, if it has these members. Returns the entry up to which a replica must have
    /// applied to be sealed.
    pub(super) async fn seal(&self, question: SealAsk, deadline: Instant) -> Result<u64> {
        let shard = self.hosted(question.shard)?;
        if !shard.is_leader() {
            return Err(Error::new(Reason::NotLeader, format!("{} does not lead {}", self.id(), shard.id()))
                .with_leader(shard.leader().map(|(_, leader)| leader)));
        }
        let status = shard.group().status();
        if shard.state().sealed_for != Some(question.into) {
            if !is_ready(&question.replicas, &status) {
                return Err(Error::new(Reason::Conflict, format!("the members of {} are not there yet", shard.id())));
            }
            let SealAsk { epoch, sealed, into, .. } = question;
            let seal = Seal { epoch, sealed, into, members_at: status.members_at };
            shard.seal(seal, deadline).await?;
        }
        Ok(shard.group().applied())
    }

    /// Answers when a replica of the right shard is sealed, and stays so whatever happens to this node's memory.
    pub(super) async fn sealed(&self, question: SealedAsk, deadline: Instant) -> Result<()> {
        let shard = self.hosted(question.shard)?;
        if shard.replica() != question.replica {
            let why = format!("{} hosts another replica of {}", self.id(), shard.id());
            return Err(Error::new(Reason::ShardNotHere, why));
        }
        let Some(index) = question.index else { return Ok(()) };
        let applied = timeout_at(deadline, shard.group().wait_applied(index)).await;
        let late = || Error::new(Reason::DeadlineExceeded, format!("{} of {} is behind", shard.replica(), shard.id()));
        applied.ok_or_else(late)?.map_err(|error| Error::new(Reason::NotReady, error.to_string()))?;
        if shard.state().sealed_for != Some(question.into) && !planted::is(Bug::UnsealedMerge) {
            return Err(Error::new(Reason::Conflict, format!("{} is not sealed", shard.id())));
        }
        let engine = self.engine().clone();
        spawn_blocking(move || engine.sync()).await.map_err(|_| Error::internal("a sync was cancelled"))??;
        Ok(())
    }

    /// As leader of the right shard: goes on without the merge. A seal that may still be on its way has no effect then.
    pub(super) async fn release(&self, question: ReleaseAsk, deadline: Instant) -> Result<()> {
        let shard = self.hosted(question.shard)?;
        let epoch = shard.state().epoch;
        if epoch > question.sealed {
            return Ok(());
        }
        shard.abandon(Abandon { epoch, next: Epoch(question.sealed.0 + 1) }, deadline).await
    }

    /// Whether a sealed replica must stay because one of the left shard lives here that may have yet to take it over.
    pub(super) fn is_awaited(&self, shard: &Shard) -> Result<bool> {
        let state = shard.state();
        let Some(left) = state.sealed_for else { return Ok(false) };
        let lives = Record::load(&**self.engine(), left)?.is_some_and(|left| !left.tombstone);
        // Past this epoch it has taken it over, or never will.
        let past = self.replicas().get(left).is_some_and(|left| left.state().epoch >= state.epoch);
        Ok(lives && !past)
    }
}

/// Ends the replica here of a shard that another has taken over, if one has: stops it and removes its traces, but not its
/// data, which is not its own any more. Safe to repeat. Whether it has ended.
pub async fn bury(node: &Arc<Node>, shard: ShardId) -> bool {
    match try_bury(node, shard).await {
        Ok(ended) => ended,
        Err(error) => {
            tracing::error!(%shard, %error, "cannot remove the traces of a replica that was taken over");
            true
        }
    }
}

/// As [`bury`], for whoever must know if it could not be done.
pub(super) async fn try_bury(node: &Arc<Node>, shard: ShardId) -> Result<bool> {
    let record = Record::load(&**node.engine(), shard)?.filter(|record| record.tombstone);
    let Some(record) = record else { return Ok(false) };
    if let Some(hosted) = node.replicas().get(shard) {
        node.replicas().remove(shard);
        hosted.stop().await;
    }
    tracing::info!(%shard, replica = %record.replica, "a replica was taken over by its left neighbour's");
    node.drain_log_of(shard).await?;
    record.remove_traces(&**node.engine())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::members::tests::{real, wanted};

    #[test]
    fn nothing_is_sealed_while_a_member_is_missing_or_behind() {
        let members = wanted(&[11, 12], &[13]).replicas;
        assert!(is_ready(&members, &real(11, &[11, 12], &[13], &[])));
        assert!(is_ready(&members, &real(11, &[11, 12], &[13], &[11])), "who leads has all there is");
        assert!(!is_ready(&members, &real(11, &[11, 14], &[13], &[])), "a member is to be exchanged");
        assert!(!is_ready(&members, &real(11, &[11, 12, 13], &[], &[])), "one is to have no vote");
        assert!(!is_ready(&members, &real(11, &[11, 12], &[13], &[13])), "one is far behind");
        let joint = Status { joint: true, ..real(11, &[11, 12], &[13], &[]) };
        assert!(!is_ready(&members, &joint), "members are being exchanged");
    }

    #[test]
    fn the_log_of_the_left_shard_says_how_far_a_merge_has_come() {
        let intent = MergeIntent { right: ShardId(9), sealed: Epoch(6) };
        let stage = |state: u64| Stage::of(Epoch(state), Epoch(4), intent);
        assert_eq!([stage(4), stage(6), stage(7)], [Stage::Open, Stage::Abandoned, Stage::Merged]);
        // Nothing may be concluded from an epoch that is older than the catalog's: least of all that the merge is off.
        assert_eq!([stage(3), stage(1)], [Stage::Unknown, Stage::Unknown]);
    }
}
