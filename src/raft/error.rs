//! Failures of a group, told apart by what the caller may conclude.

use crate::types::{NodeId, ReplicaId};

/// Who leads instead, as far as this replica knows.
pub type LeaderHint = Option<(ReplicaId, NodeId)>;

/// The replica could not be started, or it stopped while it was asked something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// What lies in storage is not the state of a replica that can go on.
    #[error("the replica cannot start: {0}")]
    Start(String),
    /// The replica has stopped.
    #[error("the replica has stopped")]
    Stopped,
}

/// What is known about a proposal that was not answered with outcomes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// It was not appended to any log and never will be: propose it to the leader.
    #[error("this replica does not lead; nothing was proposed")]
    NotLeader {
        /// Who does.
        leader: LeaderHint,
    },
    /// It was appended here and may or may not have been committed.
    #[error("leadership changed while the proposal was on its way; it may or may not take effect")]
    Undetermined,
    /// The replica stopped; the proposal may or may not have been committed.
    #[error("the replica stopped while the proposal was on its way; it may or may not take effect")]
    Stopped,
}

/// Why a read could not be confirmed. Nothing has happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Ask the leader.
    #[error("this replica does not lead")]
    NotLeader {
        /// Who does.
        leader: LeaderHint,
    },
    /// A quorum did not answer in time.
    #[error("a quorum of the group does not answer")]
    NoQuorum,
    /// The replica has stopped.
    #[error("the replica has stopped")]
    Stopped,
}

/// Why members could not be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Ask the leader. Nothing has changed.
    #[error("this replica does not lead; no member was changed")]
    NotLeader {
        /// Who does.
        leader: LeaderHint,
    },
    /// Another change is under way, or the members were changed since they were looked at: look again. Nothing has
    /// changed.
    #[error("the members are being changed or have changed meanwhile: {0}")]
    Conflict(String),
    /// The change asked for is not possible (an empty set of voters, a voter that is no member). Nothing has changed.
    #[error("the members cannot be changed so: {0}")]
    Invalid(String),
    /// The change may or may not have happened, wholly or half (the group is then joint): look, then ask again.
    #[error("the change may or may not have happened; look at the members and ask again")]
    Undetermined,
    /// The replica has stopped; the change may or may not have happened.
    #[error("the replica has stopped; the change may or may not have happened")]
    Stopped,
}

/// Why leadership was not handed over. This replica goes on as before, except after [`TransferError::NotTaken`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// Ask the leader.
    #[error("this replica does not lead")]
    NotLeader {
        /// Who does.
        leader: LeaderHint,
    },
    /// Only a voter can lead.
    #[error("the target is not a voter of the group")]
    NotAVoter,
    /// The target's log is behind the leader's: wait until it has caught up, then ask again.
    #[error("the target is {behind} entries behind; wait until it has caught up")]
    Lagging {
        /// How far.
        behind: u64,
    },
    /// The target has not answered for a while.
    #[error("the target has not answered lately")]
    Silent,
    /// Another hand-over is under way.
    #[error("another hand-over is under way")]
    Busy,
    /// The target did not take over in time; the group elects a leader by itself.
    #[error("the target did not take over in time; the group will elect a leader")]
    NotTaken,
    /// The replica has stopped.
    #[error("the replica has stopped")]
    Stopped,
}

/// Why a snapshot was not taken in. The state is as before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// It is not meant for this replica or cannot be understood.
    #[error("the snapshot is refused: {0}")]
    Refused(String),
    /// The replica has stopped.
    #[error("the replica has stopped")]
    Stopped,
}
