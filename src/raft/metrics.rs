//! The metrics of replication.

/// Proposals whose fate a change of leadership left open.
pub const UNDETERMINED: &str = "trivet_raft_undetermined_proposals_total";
/// Changes of leadership seen by replicas of this node.
pub const LEADER_CHANGES: &str = "trivet_raft_leader_changes_total";
/// Entries appended to logs.
pub const ENTRIES_APPENDED: &str = "trivet_raft_entries_appended_total";
/// Entries applied in one batch.
pub const APPLY_ENTRIES: &str = "trivet_raft_apply_entries";
/// Reads of log entries served by the cache.
pub const CACHE_READS: &str = "trivet_raft_log_cache_reads_total";
/// Reads of log entries that went to storage.
pub const DISK_READS: &str = "trivet_raft_log_storage_reads_total";
/// Append requests that were not answered in time.
pub const APPENDS_OVERDUE: &str = "trivet_raft_appends_overdue_total";
/// Times the applied state was made durable so that the log before it may go.
pub const SNAPSHOTS_BUILT: &str = "trivet_raft_snapshots_built_total";
/// Snapshots sent to other replicas.
pub const SNAPSHOTS_SENT: &str = "trivet_raft_snapshots_sent_total";
/// Snapshots taken in from other replicas.
pub const SNAPSHOTS_INSTALLED: &str = "trivet_raft_snapshots_installed_total";
/// Times a log was trimmed.
pub const LOG_TRIMMED: &str = "trivet_raft_log_trimmed_total";

/// Declares them.
pub fn describe() {
    metrics::describe_counter!(UNDETERMINED, "Proposals whose fate a change of leadership left open");
    metrics::describe_counter!(LEADER_CHANGES, "Changes of leadership seen by replicas of this node");
    metrics::describe_counter!(ENTRIES_APPENDED, "Entries appended to the logs of this node's replicas");
    metrics::describe_histogram!(APPLY_ENTRIES, "Log entries applied in one batch");
    metrics::describe_counter!(CACHE_READS, "Reads of log entries served by the cache");
    metrics::describe_counter!(DISK_READS, "Reads of log entries that went to storage");
    metrics::describe_counter!(APPENDS_OVERDUE, "Append requests that a replica did not answer in time");
    metrics::describe_counter!(SNAPSHOTS_BUILT, "Times an applied state was made durable to trim the log before it");
    metrics::describe_counter!(SNAPSHOTS_SENT, "Snapshots sent to replicas that had fallen behind the log");
    metrics::describe_counter!(SNAPSHOTS_INSTALLED, "Snapshots taken in by replicas of this node");
    metrics::describe_counter!(LOG_TRIMMED, "Times a log was trimmed");
}
