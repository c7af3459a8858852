//! Who belongs to a group: what is wanted comes to be, one step after the other, and who is wanted no more goes.
//!
//! A replica moves in these steps, each safe to repeat, so that a crash anywhere only means another look:
//! 1. the catalog wants another replica in its place (`catalog::change::move_replica`);
//! 2. the new node creates it; the leader adds it to the group without a vote, and it is sent what there is;
//! 3. when it has caught up, the leader exchanges the voters, by a joint configuration. A leader that is to go itself hands
//!    over first: it leaves as a follower;
//! 4. the old replica, which nobody tells, finds itself unwanted by the catalog, asks the leader, and destroys itself.
//!
//! Invariants
//! - A group never gets thinner on the way: who is to go keeps its vote until everyone wanted has one. The one exception
//!   is a replica in whose place another is wanted on the same node; it goes first, when all others are at hand.
//! - A replica is destroyed only when a leader, confirmed by a quorum, has applied a configuration without it, and its own
//!   log knows no later one with it: then it has acknowledged nothing that anyone counts. (A leader with an old picture
//!   of the catalog might have taken it in again.) Its id never comes back, so a vote it gave is never given twice.
//! - Members do not change while the log from before a split is still there: a newcomer could not apply it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::ask;
use super::busy::Step;
use super::host::Node;
use super::reconcile;
use crate::raft::{ChangeError, Status};
use crate::runtime::{Instant, spawn, timeout_at};
use crate::shard::Shard;
use crate::types::{
    Error, NodeId, Reason, ReplicaDescriptor, ReplicaId, ReplicaRole, Result, ShardDescriptor, ShardId,
};

/// Entries a learner may be behind and still be promoted: fewer than one busy round trip brings.
const CAUGHT_UP_WITHIN: u64 = 256;
/// How long one step of a leader may take before the reconciler looks again.
const STEP_PATIENCE: Duration = Duration::from_secs(10);

/// Is this replica still a member: to its shard's leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MemberAsk {
    /// The shard.
    pub shard: ShardId,
    /// The replica.
    pub replica: ReplicaId,
}

/// What a confirmed leader says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MemberAnswer {
    /// Whether it is a member, or becoming one, or ceasing to be one.
    pub member: bool,
    /// The entry that set the members.
    pub members_at: u64,
}

/// As leader: sees to one step from the real members towards the wanted ones. Returns at once.
pub fn align(node: &Arc<Node>, shard: &Arc<Shard>, descriptor: &Arc<ShardDescriptor>, status: &Status) {
    let Some(next) = next_step(descriptor, status, |node_id| node.hears(node_id)) else { return };
    // Who is being removed might come back by it; a newcomer would be sent what it cannot apply, and refuse it.
    if matches!(next, Next::Add(..)) && shard.has_log_of_the_past() {
        return;
    }
    let Some(begun) = node.busy().begin(Step::Align, shard.id()) else { return };
    let (node, shard) = (node.clone(), shard.clone());
    spawn(async move {
        tracing::info!(shard = %shard.id(), step = ?next, "changing members");
        let deadline = node.clock().now() + STEP_PATIENCE;
        let done = timeout_at(deadline, take(&shard, &next)).await;
        drop(begun);
        match done {
            // The next step may be possible at once.
            Some(Ok(())) => node.nudge(),
            Some(Err(error)) => tracing::debug!(shard = %shard.id(), %error, "members cannot be changed yet"),
            None => tracing::debug!(shard = %shard.id(), "a change of members takes long"),
        }
    });
}

/// A step of a leader.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    /// Complete a change that was begun.
    Finish,
    /// Remove members without a vote that nobody wants.
    Remove(BTreeSet<ReplicaId>),
    /// Add a member without a vote.
    Add(ReplicaId, NodeId),
    /// Make these the voters.
    Vote(BTreeSet<ReplicaId>),
    /// Let another lead.
    HandOver(ReplicaId),
}

async fn take(shard: &Shard, next: &Next) -> Result<()> {
    let group = shard.group();
    let changed = match next.clone() {
        Next::Finish => group.finish_change().await,
        Next::Remove(replicas) => group.remove_learners(replicas).await,
        Next::Add(replica, node) => group.add_learner(replica, node).await,
        Next::Vote(voters) => group.change_voters(voters).await,
        Next::HandOver(to) => {
            return group.transfer_leader(to).await.map_err(|error| Error::new(Reason::Conflict, error.to_string()));
        }
    };
    changed.map_err(|error: ChangeError| Error::new(Reason::Conflict, error.to_string()))
}

/// What a leader does next; nothing if all is as wanted, or must wait. `hears` tells which nodes are alive.
fn next_step(descriptor: &ShardDescriptor, status: &Status, hears: impl Fn(NodeId) -> bool) -> Option<Next> {
    if status.joint {
        return Some(Next::Finish);
    }
    let is_wanted = |replica: &ReplicaId| descriptor.replicas.iter().any(|wanted| wanted.id == *replica);
    let unwanted: BTreeSet<ReplicaId> = status.learners.keys().copied().filter(|learner| !is_wanted(learner)).collect();
    if !unwanted.is_empty() {
        return Some(Next::Remove(unwanted));
    }
    let is_member = |replica: &ReplicaId| status.node_of(*replica).is_some();
    if let Some(missing) = descriptor.replicas.iter().find(|wanted| !is_member(&wanted.id)) {
        return Some(Next::Add(missing.id, missing.node));
    }
    let caught_up = |replica: &ReplicaId| has_caught_up(*replica, status);
    let votes = |replica: &ReplicaId| status.voters.contains_key(replica);
    let wanted: BTreeSet<ReplicaId> = (descriptor.replicas.iter())
        .filter(|replica| replica.role == ReplicaRole::Voter)
        .map(|replica| replica.id)
        .collect();
    let ready: BTreeSet<ReplicaId> =
        wanted.iter().copied().filter(|replica| votes(replica) || caught_up(replica)).collect();
    let current: BTreeSet<ReplicaId> = status.voters.keys().copied().collect();
    let mut target: BTreeSet<ReplicaId> =
        if ready == wanted { wanted.clone() } else { ready.union(&current).copied().collect() };
    // Its successor is to live on the same node, and cannot come before it has gone. Only with everyone else at hand.
    let waits_for = |node: NodeId| {
        descriptor
            .replicas
            .iter()
            .any(|wanted| wanted.node == node && !ready.contains(&wanted.id) && !votes(&wanted.id))
    };
    let in_the_way = |replica: &ReplicaId| !is_wanted(replica) && status.node_of(*replica).is_some_and(&waits_for);
    let rest: BTreeSet<ReplicaId> = target.iter().copied().filter(|replica| !in_the_way(replica)).collect();
    if !rest.is_empty() && rest.iter().all(caught_up) {
        target = rest;
    }
    if target.is_empty() || target == current {
        return None;
    }
    if !target.contains(&status.replica) {
        // The successor that is nearest, of those that can lead and shall stay.
        let stays = current.iter().filter(|&voter| target.contains(voter) && caught_up(voter));
        let alive = stays.filter(|voter| status.node_of(**voter).is_some_and(&hears));
        if let Some(&heir) = alive.max_by_key(|voter| status.matched.get(voter).copied().flatten()) {
            return Some(Next::HandOver(heir));
        }
        // Nobody yet: the newcomers get their votes first.
        target.insert(status.replica);
        if target == current {
            return None;
        }
    }
    Some(Next::Vote(target))
}

/// As a replica that the catalog does not want: finds out whether the group can do without it, and goes. Returns at
/// once.
pub fn retire(node: &Arc<Node>, shard: &Arc<Shard>, descriptor: &Arc<ShardDescriptor>) {
    let Some(begun) = node.busy().begin(Step::Retire, shard.id()) else { return };
    let (node, shard, descriptor) = (node.clone(), shard.clone(), descriptor.clone());
    spawn(async move {
        let _begun = begun;
        if let Err(error) = leave(&node, &shard, &descriptor).await {
            tracing::debug!(shard = %shard.id(), replica = %shard.replica(), %error, "a replica cannot go yet");
        }
    });
}

async fn leave(node: &Arc<Node>, shard: &Arc<Shard>, descriptor: &ShardDescriptor) -> Result<()> {
    let question = MemberAsk { shard: shard.id(), replica: shard.replica() };
    let answer: MemberAnswer = node.ask_shard_leader(descriptor, ask::MEMBER, &question).await?;
    if answer.member {
        return Ok(());
    }
    reconcile::dissolve(node, shard, answer.members_at).await
}

/// Whether a leader's group has exactly these members, and is not exchanging any.
pub fn are_as_wanted(wanted: &[ReplicaDescriptor], status: &Status) -> bool {
    let of_role = |role: ReplicaRole| -> BTreeMap<ReplicaId, NodeId> {
        let of_role = wanted.iter().filter(|replica| replica.role == role);
        of_role.map(|replica| (replica.id, replica.node)).collect()
    };
    !status.joint && status.voters == of_role(ReplicaRole::Voter) && status.learners == of_role(ReplicaRole::Learner)
}

/// Whether a member has all that the leader has, but for a little that is on its way to it.
pub fn has_caught_up(replica: ReplicaId, status: &Status) -> bool {
    let matched = status.matched.get(&replica).copied().flatten();
    matched.is_some_and(|matched| matched + CAUGHT_UP_WITHIN >= status.last_log)
}

/// Whether a replica takes part in a configuration later than the one set at `members_at`, by its own log.
pub fn was_taken_in_again(status: &Status, members_at: u64) -> bool {
    status.members_at > members_at && status.node_of(status.replica).is_some()
}

impl Node {
    /// Answers whether a replica is a member of a group that this node leads. `NOT_LEADER` if another does.
    pub(super) async fn member(&self, question: MemberAsk, deadline: Instant) -> Result<MemberAnswer> {
        let shard = self.hosted(question.shard)?;
        shard.confirm(deadline).await?;
        let status = shard.group().status();
        let settled = !status.joint && status.members_at <= status.applied;
        let member = !settled || status.node_of(question.replica).is_some();
        Ok(MemberAnswer { member, members_at: status.members_at })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::raft::Part;
    use crate::types::{Incarnation, TableId};

    /// A shard whose wanted replicas are these, replica `n` on node `n % 10`.
    pub fn wanted(voters: &[u64], learners: &[u64]) -> ShardDescriptor {
        let replica = |role: ReplicaRole| {
            move |&id: &u64| ReplicaDescriptor {
                id: ReplicaId(id),
                node: NodeId(id % 10),
                incarnation: Incarnation(1),
                role,
            }
        };
        let voters = voters.iter().map(replica(ReplicaRole::Voter));
        let replicas = voters.chain(learners.iter().map(replica(ReplicaRole::Learner))).collect();
        ShardDescriptor { founded: true, ..ShardDescriptor::new(ShardId(9), TableId(1), (vec![1], vec![2]), replicas) }
    }

    /// The status of leader `leader` whose followers have all it has, but for those that lag.
    pub fn real(leader: u64, voters: &[u64], learners: &[u64], lagging: &[u64]) -> Status {
        let places = |ids: &[u64]| ids.iter().map(|&id| (ReplicaId(id), NodeId(id % 10))).collect();
        let matched = |&id: &u64| (ReplicaId(id), if lagging.contains(&id) { None } else { Some(1_000) });
        Status {
            replica: ReplicaId(leader),
            term: 3,
            leader: Some((ReplicaId(leader), NodeId(leader % 10))),
            part: Part::Leader,
            last_log: 1_000,
            committed: 1_000,
            applied: 1_000,
            snapshot: None,
            purged: None,
            voters: places(voters),
            learners: places(learners),
            members_at: 7,
            joint: false,
            matched: voters.iter().chain(learners).map(matched).collect(),
            failure: None,
        }
    }

    fn ids(ids: &[u64]) -> BTreeSet<ReplicaId> {
        ids.iter().copied().map(ReplicaId).collect()
    }

    fn next(descriptor: &ShardDescriptor, status: &Status) -> Option<Next> {
        next_step(descriptor, status, |_| true)
    }

    #[test]
    fn a_replica_moves_step_by_step() {
        let shard = wanted(&[1, 2, 14], &[]);
        assert_eq!(next(&shard, &real(1, &[1, 2, 3], &[], &[])), Some(Next::Add(ReplicaId(14), NodeId(4))));
        assert_eq!(next(&shard, &real(1, &[1, 2, 3], &[14], &[14])), None, "it catches up");
        assert_eq!(next(&shard, &real(1, &[1, 2, 3], &[14], &[])), Some(Next::Vote(ids(&[1, 2, 14]))));
        let joint = Status { joint: true, ..real(1, &[1, 2, 3, 14], &[], &[]) };
        assert_eq!(next(&shard, &joint), Some(Next::Finish));
        assert_eq!(next(&shard, &real(1, &[1, 2, 14], &[], &[])), None);
    }

    #[test]
    fn a_leader_that_is_to_go_hands_over_first() {
        let shard = wanted(&[1, 2, 14], &[]);
        let leader = real(3, &[1, 2, 3], &[14], &[2]);
        assert_eq!(next(&shard, &leader), Some(Next::HandOver(ReplicaId(1))), "to one that keeps up");
        let alone = next_step(&shard, &leader, |node| node != NodeId(1));
        assert_eq!(alone, Some(Next::Vote(ids(&[1, 2, 3, 14]))), "whoever is to stay is away: more votes first");
        // A shard of one replica: the newcomer votes before the old one goes.
        let shard = wanted(&[14], &[]);
        assert_eq!(next(&shard, &real(3, &[3], &[14], &[])), Some(Next::Vote(ids(&[3, 14]))));
        assert_eq!(next(&shard, &real(3, &[3, 14], &[], &[])), Some(Next::HandOver(ReplicaId(14))));
        assert_eq!(next(&shard, &real(14, &[3, 14], &[], &[])), Some(Next::Vote(ids(&[14]))));
    }

    #[test]
    fn nobody_goes_before_everyone_wanted_votes() {
        let shard = wanted(&[1, 14, 15], &[]);
        let status = real(1, &[1, 2, 3], &[14, 15], &[15]);
        assert_eq!(next(&shard, &status), Some(Next::Vote(ids(&[1, 2, 3, 14]))));
        assert_eq!(next(&shard, &real(1, &[1, 2, 3, 14], &[15], &[15])), None);
        assert_eq!(next(&shard, &real(1, &[1, 2, 3, 14], &[15], &[])), Some(Next::Vote(ids(&[1, 14, 15]))));
    }

    #[test]
    fn who_is_in_the_way_of_its_successor_goes_first() {
        // Replica 13 is to take the place of replica 3 on node 3.
        let shard = wanted(&[1, 2, 13], &[]);
        assert_eq!(next(&shard, &real(1, &[1, 2, 3], &[13], &[13])), Some(Next::Vote(ids(&[1, 2]))));
        assert_eq!(next(&shard, &real(1, &[1, 2, 3], &[13], &[2, 13])), None, "not while another is away");
        assert_eq!(next(&shard, &real(3, &[1, 2, 3], &[13], &[13])), Some(Next::HandOver(ReplicaId(2))));
        assert_eq!(next(&shard, &real(1, &[1, 2], &[13], &[])), Some(Next::Vote(ids(&[1, 2, 13]))));
        assert_eq!(next(&wanted(&[13], &[]), &real(3, &[3], &[13], &[13])), None, "the last one stays");
    }

    #[test]
    fn learners_come_and_go() {
        let shard = wanted(&[1, 2, 3], &[4]);
        assert_eq!(next(&shard, &real(1, &[1, 2, 3], &[5, 4], &[])), Some(Next::Remove(ids(&[5]))));
        assert_eq!(next(&shard, &real(1, &[1, 2, 3], &[], &[])), Some(Next::Add(ReplicaId(4), NodeId(4))));
        assert_eq!(next(&shard, &real(1, &[1, 2, 3], &[4], &[])), None, "it stays without a vote");
    }

    #[test]
    fn a_replica_that_was_taken_in_again_stays() {
        let mut status = real(1, &[1, 2, 3], &[], &[]);
        status.replica = ReplicaId(3);
        assert!(was_taken_in_again(&status, 6));
        assert!(!was_taken_in_again(&status, 7), "the leader knew this one");
        status.voters = BTreeMap::from([(ReplicaId(1), NodeId(1))]);
        assert!(!was_taken_in_again(&status, 6), "it is not in it");
    }
}
