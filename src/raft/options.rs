//! What a group is told at its start, and the settings of openraft that follow from it.

use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};

use super::error::GroupError;
use crate::runtime::planted::{self, Bug};
use crate::types::{NodeId, ReplicaId, ShardId};

/// Entries in one append request. The reader of the log also stops at [`super::log::READ_BYTES_MAX`].
const APPEND_ENTRIES_MAX: u64 = 512;
/// Messages waiting for a group's core: requests, proposals, reads. A sender waits when it is full.
const REQUESTS_MAX: u64 = 1_024;
/// Notifications waiting for a group's core: completed writes, answers of followers, ticks.
const NOTIFICATIONS_MAX: u64 = 2_048;
/// Commands waiting for a group's machine. Few: when the machine is slow, the core must feel it.
const MACHINE_COMMANDS_MAX: u64 = 64;
/// Proposals that openraft takes into one turn.
const PROPOSALS_PER_TURN: u64 = 256;
/// Waits before asking a replica again that could not be reached.
const BACKOFF: &str = "50ms 100ms 200ms ...1s";

/// The timers of a group, equal on all its replicas.
///
/// A voter that has heard from its leader keeps to it for `election_max` and then waits for a time between the other two
/// before it stands: with the defaults a leader that falls silent is replaced after 1.6 to 2 seconds, and four of its
/// heartbeats may get lost before. A leader takes no writes once no majority has answered for `election_max`, which are two
/// of its heartbeats and a half. Heartbeats are what idle groups cost, in proportion; a leader whose process ends is
/// replaced without waiting for any of these times (`node::takeover`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// How often a leader shows that it is there.
    pub heartbeat: Duration,
    /// The shortest time without a leader after which a voter asks for votes.
    pub election_min: Duration,
    /// The longest such time, and the time for which a voter that heard from its leader refuses to vote.
    pub election_max: Duration,
}

impl Default for Timers {
    fn default() -> Timers {
        Timers {
            heartbeat: Duration::from_millis(400),
            election_min: Duration::from_millis(600),
            election_max: Duration::from_millis(1_000),
        }
    }
}

/// How much log a replica keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogBounds {
    /// Bytes of log after which the applied part is trimmed, whoever lags.
    pub bytes_max: u64,
    /// Bytes of applied log that are then kept for replicas which lag. More than is written while a snapshot of the
    /// shard travels, or a replica that fell behind would need one snapshot after the other.
    pub keep_bytes: u64,
    /// Bytes of log after which the part that every member holds is trimmed. Little, so that entries go before storage
    /// moves them from memory to files: that was half of what compaction had to do under a load of writes.
    pub held_bytes_max: u64,
    /// Bytes of log that every member holds and that are kept all the same.
    pub held_keep_bytes: u64,
}

impl Default for LogBounds {
    fn default() -> LogBounds {
        LogBounds { bytes_max: 32 << 20, keep_bytes: 16 << 20, held_bytes_max: 3 << 20, held_keep_bytes: 1 << 20 }
    }
}

/// What a replica is told at its start.
#[derive(Clone, Debug)]
pub struct Options {
    /// The shard whose group this is.
    pub shard: ShardId,
    /// This replica; an id never used before for another one.
    pub replica: ReplicaId,
    /// The node it lives on.
    pub node: NodeId,
    /// The timers.
    pub timers: Timers,
    /// How much log to keep.
    pub log: LogBounds,
    /// The machine cannot begin with the first entry of the log: it takes none before it was given a snapshot.
    pub begins_with_snapshot: bool,
}

impl Options {
    /// Options with the usual timers and bounds.
    pub fn new(shard: ShardId, replica: ReplicaId, node: NodeId) -> Options {
        let (timers, log) = (Timers::default(), LogBounds::default());
        Options { shard, replica, node, timers, log, begins_with_snapshot: false }
    }

    /// The settings of openraft. What is safety is set without exception.
    pub(super) fn config(&self) -> Result<Arc<Config>, GroupError> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let Timers { heartbeat, election_min, election_max } = self.timers;
        let config = Config {
            cluster_name: self.shard.to_string(),
            heartbeat_interval: millis(heartbeat),
            // Replication is as good as a heartbeat: a busy group sends none.
            heartbeat_min_interval: Some(millis(heartbeat) / 4),
            election_timeout_min: millis(election_min),
            election_timeout_max: millis(election_max),
            max_payload_entries: APPEND_ENTRIES_MAX,
            // Snapshots and trimming are ours to start, by bytes of log (see `keeper`).
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            api_channel_size: Some(REQUESTS_MAX),
            api_batch_capacity: PROPOSALS_PER_TURN,
            notification_channel_size: Some(NOTIFICATIONS_MAX),
            state_machine_channel_size: Some(MACHINE_COMMANDS_MAX),
            log_stage_capacity: Some(1),
            backoff: BACKOFF.to_owned(),
            // A replica that cannot win does not disturb a leader that a quorum hears.
            enable_pre_vote: Some(true),
            // A leader that a quorum no longer answers falls silent, so that its followers may elect another.
            quorum_loss_probe_interval: Some(2 * millis(election_max)),
            // A log that is shorter than it was is a fault and never repaired in silence.
            allow_log_reversion: Some(false),
            // A leader replicates before its own log is durable. After a restart it may have lost entries that its
            // followers committed; resuming its term without an election it would give their places away again.
            enable_leader_restore: Some(planted::is(Bug::LeaderRestore)),
            ..Config::default()
        };
        let config = config.validate().map_err(|error| GroupError::Start(format!("the timers are wrong: {error}")))?;
        Ok(Arc::new(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_are_safety_are_set_without_exception() {
        let config = Options::new(ShardId(1), ReplicaId(2), NodeId(3)).config().expect("the defaults are valid");
        assert_eq!(config.enable_leader_restore, Some(false));
        assert_eq!(config.enable_pre_vote, Some(true));
        assert_eq!(config.allow_log_reversion, Some(false));
        assert_eq!(config.snapshot_policy, SnapshotPolicy::Never);
        assert_eq!(config.max_in_snapshot_log_to_keep, u64::MAX);
        assert!(config.quorum_loss_probe_interval.is_some());
    }

    #[test]
    fn timers_that_cannot_work_are_refused() {
        let mut options = Options::new(ShardId(1), ReplicaId(2), NodeId(3));
        // The narrowest that a node's configuration lets through.
        for heartbeat_ms in [10_u64, 400, 9_999] {
            let ms = Duration::from_millis;
            let election_min = ms((3 * heartbeat_ms).div_ceil(2));
            options.timers = Timers { heartbeat: ms(heartbeat_ms), election_min, election_max: election_min + ms(50) };
            options.config().expect("these work");
        }
        options.timers.election_min = options.timers.heartbeat;
        assert!(matches!(options.config(), Err(GroupError::Start(_))));
    }
}
