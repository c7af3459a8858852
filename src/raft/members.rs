//! Changing who is in a group, and handing leadership over.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::type_config::async_runtime::watch::WatchReceiver;
use openraft::{ChangeMembers, Instant as _, Precondition};

use super::error::{ChangeError, GroupError, TransferError};
use super::group::Group;
use super::types::{LogId, Membership, Metrics, TransferRequest, TypeConfig};
use crate::runtime;
use crate::types::{NodeId, ReplicaId};

/// Entries by which the target of a hand-over may lag: what is on its way to a replica that keeps up. It fetches these
/// before it stands for election.
const TRANSFER_LAG_MAX: u64 = 16;

type Failure = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

impl Group {
    /// Adds a replica that follows without a vote, and returns when the group has agreed to it, not when it has caught
    /// up ([`super::Status::matched`] tells). Adding it again changes nothing.
    pub async fn add_learner(&self, replica: ReplicaId, node: NodeId) -> Result<(), ChangeError> {
        let (at, membership) = self.members().await?;
        match membership.get_node(&replica.0) {
            Some(&there) if there == node => return Ok(()),
            Some(there) => {
                return Err(ChangeError::Invalid(format!(
                    "{replica} is a member on {there}, and a replica never moves: take a new id"
                )));
            }
            None => {}
        }
        self.change(at, ChangeMembers::AddNodes([(replica.0, node)].into())).await
    }

    /// Makes exactly these replicas the voters. New voters must be members already (add them as learners and let them
    /// catch up first); voters left out leave the group. Returns when the change is complete.
    pub async fn change_voters(&self, voters: BTreeSet<ReplicaId>) -> Result<(), ChangeError> {
        let (at, membership) = self.members().await?;
        let voters: BTreeSet<u64> = voters.into_iter().map(|replica| replica.0).collect();
        let now: BTreeSet<u64> = membership.voter_ids().collect();
        if now == voters && membership.get_joint_config().len() == 1 {
            return Ok(());
        }
        self.change(at, ChangeMembers::ReplaceAllVoters(voters)).await
    }

    /// Removes learners from the group. Removing what is no member changes nothing.
    pub async fn remove_learners(&self, replicas: BTreeSet<ReplicaId>) -> Result<(), ChangeError> {
        let (at, membership) = self.members().await?;
        let present: BTreeSet<u64> = (replicas.into_iter().map(|replica| replica.0))
            .filter(|replica| membership.get_node(replica).is_some())
            .collect();
        if present.is_empty() {
            return Ok(());
        }
        self.change(at, ChangeMembers::RemoveNodes(present)).await
    }

    /// Completes a change of voters that was left half done by a lost leadership. Does nothing if there is none.
    pub async fn finish_change(&self) -> Result<(), ChangeError> {
        let (at, membership) = self.members().await?;
        if membership.get_joint_config().len() <= 1 {
            return Ok(());
        }
        self.change(at, ChangeMembers::AddVoterIds(BTreeSet::new())).await
    }

    /// The members by the newest configuration in this replica's log, and the entry that set them.
    async fn members(&self) -> Result<(Option<LogId>, Membership), ChangeError> {
        (self.inner.raft)
            .with_raft_state(|state| {
                let effective = state.membership_state.effective();
                (*effective.log_id(), effective.membership().clone())
            })
            .await
            .map_err(|_| ChangeError::Stopped)
    }

    /// Proposes a change that holds only if the members are still those set at `at`.
    async fn change(&self, at: Option<LogId>, change: ChangeMembers<u64, NodeId>) -> Result<(), ChangeError> {
        let guard = Precondition::LastMembershipLogId { last_membership_log_id: at };
        match self.inner.raft.change_membership_if(change, false, [guard]).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.explain(at, error).await),
        }
    }

    /// What a failed change means. openraft makes a change of voters in two steps and does not say which one failed;
    /// but the second begins only when the first is committed, and then the members are no longer those set at `at`.
    async fn explain(&self, at: Option<LogId>, error: Failure) -> ChangeError {
        let definite = match error {
            RaftError::Fatal(_) => return ChangeError::Stopped,
            RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => return ChangeError::Undetermined,
            RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
                ChangeError::NotLeader { leader: self.hint(&forward) }
            }
            RaftError::APIError(ClientWriteError::PreconditionFailed(error)) => {
                ChangeError::Conflict(error.to_string())
            }
            RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => match error {
                ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_) => {
                    ChangeError::Conflict(error.to_string())
                }
                ChangeMembershipError::EmptyMembership(_)
                | ChangeMembershipError::LearnerNotFound(_)
                | ChangeMembershipError::UnsupportedMembershipTransition(_)
                | ChangeMembershipError::NodeMetadataChanged(_) => ChangeError::Invalid(error.to_string()),
            },
        };
        match self.members().await {
            Ok((now, _)) if now == at => definite,
            // Somebody else changed them before our first step, or that very guard would not have failed.
            Ok(_) if matches!(definite, ChangeError::Invalid(_)) => definite,
            Ok(_) => ChangeError::Undetermined,
            Err(error) => error,
        }
    }

    /// Hands leadership to a voter that has caught up and answers, and returns when a new leader is there. From the
    /// moment it begins, this replica takes no proposals and confirms no reads.
    pub async fn transfer_leader(&self, to: ReplicaId) -> Result<(), TransferError> {
        let Ok(_busy) = self.inner.transferring.try_lock() else { return Err(TransferError::Busy) };
        let mut metrics = self.inner.raft.metrics();
        let before = metrics.borrow_watched().clone();
        self.ready_to_lead(&before, to)?;
        if to == self.replica() {
            return Ok(());
        }
        self.inner.raft.trigger().transfer_leader(to.0).await.map_err(|_| TransferError::Stopped)?;
        let timers = self.inner.options.timers;
        // The target waits this long for the last entries; if it does not stand then, the others do within the next.
        let patience: Duration = timers.election_min + timers.election_max;
        let taken = runtime::timeout(patience, async {
            loop {
                if metrics.changed().await.is_err() {
                    return Err(TransferError::Stopped);
                }
                let now = metrics.borrow_watched();
                let elected = now.current_leader.is_some_and(|leader| leader != self.replica().0);
                if elected && now.current_term > before.current_term {
                    return Ok(());
                }
            }
        });
        taken.await.unwrap_or(Err(TransferError::NotTaken))
    }

    /// Stands for election at once in the place of a replica that is gone, as if that had handed its leadership over to
    /// this one: voters that still keep to it grant their votes all the same, if this log is as long as theirs. False if
    /// that replica neither is the leader that this one follows nor has its vote, or if this one has no vote.
    ///
    /// Safe whether or not the leader is gone: it takes the votes of a majority, and if the leader is there after all it
    /// loses its term and nothing else. That holds because reads ask a majority each time; a leader that read by a lease
    /// would count on being followed until that ends.
    pub async fn take_over(&self, gone: ReplicaId) -> Result<bool, GroupError> {
        let known = (self.inner.raft)
            .with_raft_state(|state| {
                let members = state.membership_state.effective().membership();
                (*state.vote_ref(), state.log_ids.last().copied(), members.clone())
            })
            .await;
        let (vote, last_log, members) = known.map_err(|_| GroupError::Stopped)?;
        // A vote that is not committed was given to a candidate: it may have died before it led, or before it said so.
        let waits_for_it = vote.leader_id.node_id == gone.0 && gone != self.replica();
        if !waits_for_it || !members.voter_ids().any(|voter| voter == self.replica().0) {
            return Ok(false);
        }
        self.inner.behind.forget();
        // openraft waits until this much of its log is durable under that vote. Under one that is not committed there is no
        // log; and the vote, being durable, was written after all there is.
        let durable = last_log.filter(|_| vote.committed);
        let request = TransferRequest::new(vote, self.replica().0, durable);
        let taken = self.inner.raft.handle_transfer_leader(request).await.map_err(|_| GroupError::Stopped)?;
        Ok(taken.is_ok())
    }

    /// Whether, since this replica last took over, a voter refused it its vote because its log is shorter: it cannot lead,
    /// and by standing again would only be in the way of those that can.
    pub fn is_behind(&self) -> bool {
        self.inner.behind.is()
    }

    /// Whether this replica stands in elections by itself. It goes on voting, and takes a leadership that is handed to it.
    pub fn stand_in_elections(&self, stand: bool) {
        self.inner.raft.runtime_config().elect(stand);
    }

    /// Whether `to` could take over without a pause, as openraft's report has it.
    fn ready_to_lead(&self, metrics: &Metrics, to: ReplicaId) -> Result<(), TransferError> {
        let (Some(replication), Some(heartbeat)) = (&metrics.replication, &metrics.heartbeat) else {
            let membership = metrics.membership_config.membership();
            let leader = (metrics.current_leader)
                .filter(|&leader| leader != self.replica().0)
                .and_then(|leader| Some((ReplicaId(leader), *membership.get_node(&leader)?)));
            return Err(TransferError::NotLeader { leader });
        };
        if !metrics.membership_config.voter_ids().any(|voter| voter == to.0) {
            return Err(TransferError::NotAVoter);
        }
        if to == self.replica() {
            return Ok(());
        }
        let next = |index: Option<u64>| index.map_or(0, |index| index + 1);
        let matched = replication.get(&to.0).copied().flatten().map(|id| id.index);
        let behind = next(metrics.last_log_index).saturating_sub(next(matched));
        if behind > TRANSFER_LAG_MAX {
            return Err(TransferError::Lagging { behind });
        }
        let acknowledged = heartbeat.get(&to.0).copied().flatten();
        let patience = self.inner.options.timers.election_min;
        match acknowledged {
            Some(at) if at.elapsed() <= patience => Ok(()),
            _ => Err(TransferError::Silent),
        }
    }
}
