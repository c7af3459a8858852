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
//! (`abandon_merge`). Whoever wants the merge asks for it again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;

use super::ask;
use super::busy::Step;
use super::host::Node;
use super::members::CAUGHT_UP_WITHIN;
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

async fn carry_out(
    node: &Arc<Node>,
    shard: &Arc<Shard>,
    descriptor: &ShardDescriptor,
    intent: MergeIntent,
) -> Result<()> {
    let directory = node.directory();
    let Some(right) = directory.shard(intent.right) else { return Ok(()) };
    if shard.state().epoch == descriptor.epoch {
        match merge(node, shard, descriptor, right, intent).await {
            Ok(true) => tracing::info!(shard = %shard.id(), right = %right.id, "two shards were merged"),
            Ok(false) => return Ok(()),
            Err(error) => {
                tracing::info!(shard = %shard.id(), right = %right.id, %error, "a merge is abandoned");
                let off = Abandon { epoch: descriptor.epoch, next: intent.sealed };
                shard.abandon(off, node.clock().now() + PROPOSAL_TIMEOUT).await?;
            }
        }
    }
    let merged = shard.state().epoch > intent.sealed;
    if !merged {
        let question = ReleaseAsk { shard: right.id, sealed: intent.sealed };
        ask_its_leader::<_, ()>(node, right, ask::RELEASE, &question).await?;
    }
    let news = MergeNews { shard: shard.id(), epoch: descriptor.epoch, merged };
    node.ask_system_leader(ask::MERGE_NEWS, &news).await
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
    let index: u64 = match ask_its_leader(node, right, ask::SEAL, &question).await {
        Ok(index) => index,
        // It says that it did nothing.
        Err(error) if error.reason == Reason::NotReady && !is_sealed() => return Ok(false),
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
    let of_role = |role: ReplicaRole| -> BTreeMap<ReplicaId, NodeId> {
        let of_role = wanted.iter().filter(|replica| replica.role == role);
        of_role.map(|replica| (replica.id, replica.node)).collect()
    };
    let settled = !status.joint
        && status.voters == of_role(ReplicaRole::Voter)
        && status.learners == of_role(ReplicaRole::Learner);
    let caught_up = |replica: &ReplicaDescriptor| {
        let matched = status.matched.get(&replica.id).copied().flatten();
        replica.id == status.replica || matched.is_some_and(|matched| matched + CAUGHT_UP_WITHIN >= status.last_log)
    };
    settled && wanted.iter().all(caught_up)
}

/// Asks the leader of a shard, wherever it is among its nodes.
async fn ask_its_leader<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
    node: &Node,
    shard: &ShardDescriptor,
    kind: &str,
    question: &Q,
) -> Result<A> {
    let mut left: Vec<NodeId> = shard.replicas.iter().map(|replica| replica.node).collect();
    let here = node.replicas().get(shard.id).and_then(|replica| replica.leader());
    let mut hint = here.map(|(_, leader)| leader).filter(|leader| left.contains(leader));
    let mut last = Error::new(Reason::NoQuorum, format!("{} has no leader right now", shard.id));
    while let Some(asked) = hint.take().or_else(|| left.pop()) {
        left.retain(|&other| other != asked);
        match node.ask(asked, kind, question).await {
            Ok(answer) => return Ok(answer),
            Err(error) if error.reason == Reason::NotLeader => {
                hint = error.leader.filter(|leader| left.contains(leader));
                last = error;
            }
            Err(error) => return Err(error),
        }
    }
    Err(last)
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
                return Err(Error::new(Reason::NotReady, format!("the members of {} are not there yet", shard.id())));
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

/// Ends the replica here of a shard that another has taken over: stops it and removes its traces, but not its data, which
/// is not its own any more. Safe to repeat.
pub async fn bury(node: &Arc<Node>, shard: ShardId) {
    if let Err(error) = try_bury(node, shard).await {
        tracing::error!(%shard, %error, "cannot remove the traces of a replica that was taken over");
    }
}

async fn try_bury(node: &Arc<Node>, shard: ShardId) -> Result<()> {
    let Some(record) = Record::load(&**node.engine(), shard)?.filter(|record| record.tombstone) else { return Ok(()) };
    if let Some(hosted) = node.replicas().get(shard) {
        node.replicas().remove(shard);
        hosted.stop().await;
    }
    tracing::info!(%shard, replica = %record.replica, "a replica was taken over by its left neighbour's");
    node.drain_log_of(shard).await?;
    record.remove_traces(&**node.engine())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Part;
    use crate::types::Incarnation;

    fn replica(id: u64, role: ReplicaRole) -> ReplicaDescriptor {
        ReplicaDescriptor { id: ReplicaId(id), node: NodeId(id % 10), incarnation: Incarnation(1), role }
    }

    fn status(voters: &[u64], matched: &[(u64, u64)]) -> Status {
        Status {
            replica: ReplicaId(voters[0]),
            term: 3,
            leader: Some((ReplicaId(voters[0]), NodeId(voters[0] % 10))),
            part: Part::Leader,
            last_log: 1_000,
            committed: 1_000,
            applied: 1_000,
            snapshot: None,
            purged: None,
            voters: voters.iter().map(|&id| (ReplicaId(id), NodeId(id % 10))).collect(),
            learners: BTreeMap::new(),
            members_at: 5,
            joint: false,
            matched: matched.iter().map(|&(id, index)| (ReplicaId(id), Some(index))).collect(),
            failure: None,
        }
    }

    #[test]
    fn nothing_is_sealed_while_a_member_is_missing_or_behind() {
        let wanted: Vec<_> = [11, 12, 13].map(|id| replica(id, ReplicaRole::Voter)).into();
        let all = [(11, 1_000), (12, 1_000), (13, 990)];
        assert!(is_ready(&wanted, &status(&[11, 12, 13], &all)));
        assert!(!is_ready(&wanted, &status(&[11, 12, 14], &all)), "a member is to be exchanged");
        assert!(!is_ready(&wanted, &status(&[11, 12, 13], &all[..2])), "one has nothing yet");
        assert!(!is_ready(&wanted, &status(&[11, 12, 13], &[(12, 1_000), (13, 1)])), "one is far behind");
        let joint = Status { joint: true, ..status(&[11, 12, 13], &all) };
        assert!(!is_ready(&wanted, &joint), "members are being exchanged");
    }
}
