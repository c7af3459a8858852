//! The metrics of shards.

/// Commands applied (as leader or follower).
pub const COMMANDS_APPLIED: &str = "trivet_shard_commands_applied_total";
/// Commands answered from their stored outcome.
pub const REPEATS: &str = "trivet_shard_repeated_requests_total";
/// Commands in one proposal.
pub const PROPOSAL_COMMANDS: &str = "trivet_shard_proposal_commands";
/// Reads, and questions of other replicas, served by one confirmation of leadership.
pub const GATE_READS: &str = "trivet_shard_gate_reads";
/// Questions of replicas that follow to their leader for a proof of their age.
pub const PROOFS_ASKED: &str = "trivet_shard_proofs_asked_total";
/// Reads that had to go to the disk.
pub const READS_FROM_DISK: &str = "trivet_shard_reads_from_disk_total";
/// Commands waiting to be proposed were refused because the queue was full.
pub const OVERLOADED: &str = "trivet_shard_overloaded_total";

/// Declares them.
pub fn describe() {
    metrics::describe_counter!(COMMANDS_APPLIED, "Commands applied by replicas of this node");
    metrics::describe_counter!(REPEATS, "Commands answered from the stored outcome of their request id");
    metrics::describe_histogram!(PROPOSAL_COMMANDS, "Commands gathered into one log entry");
    metrics::describe_histogram!(
        GATE_READS,
        "Reads, and questions of other replicas, served by one confirmation of leadership"
    );
    metrics::describe_counter!(PROOFS_ASKED, "Questions of followers and learners to their leader, to prove their age");
    metrics::describe_counter!(READS_FROM_DISK, "Reads that the block cache could not answer");
    metrics::describe_counter!(OVERLOADED, "Commands refused because a shard's queue was full");
}
