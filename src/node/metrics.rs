//! The metrics of nodes.

/// Frames sent to peers.
pub const FRAMES_SENT: &str = "trivet_peer_frames_sent_total";
/// Frames in one flush to a peer.
pub const FLUSH_FRAMES: &str = "trivet_peer_flush_frames";
/// Connections to peers that broke.
pub const LINKS_BROKEN: &str = "trivet_peer_links_broken_total";
/// Frames refused: wrong cluster, wrong node, unknown group or replica.
pub const FRAMES_REFUSED: &str = "trivet_peer_frames_refused_total";
/// Requests answered by forwarding them.
pub const FORWARDED: &str = "trivet_door_forwarded_total";
/// Requests, by kind.
pub const REQUESTS: &str = "trivet_door_requests_total";
/// Elections stood for because a leader's node was gone.
pub const TAKEN_OVER: &str = "trivet_node_shards_taken_over_total";
/// Replicas hosted.
pub const REPLICAS: &str = "trivet_node_replicas";
/// Replicas that lead.
pub const LEADERS: &str = "trivet_node_leaders";
/// Shards compacted because much of them was garbage.
pub const SHARDS_COMPACTED: &str = "trivet_node_shards_compacted_total";
/// Room left on the disk.
pub const DISK_ROOM: &str = "trivet_node_disk_room";
/// Whether the disk stands still.
pub const DISK_STALLED: &str = "trivet_node_disk_stalled";
/// Writes refused because disks are nearly full.
pub const WRITES_REFUSED_FULL: &str = "trivet_node_writes_refused_disk_full_total";
/// Snapshots received and installed.
pub const SNAPSHOTS_RECEIVED: &str = "trivet_peer_snapshots_received_total";
/// Bytes of snapshots sent.
pub const SNAPSHOT_BYTES_SENT: &str = "trivet_peer_snapshot_bytes_sent_total";

/// Workers of views: one for each view and each shard of its sources that this node leads.
pub const VIEW_WORKERS: &str = "trivet_view_workers";
/// Steps that shards of views have taken in.
pub const VIEW_INTAKES: &str = "trivet_view_intakes_total";
/// Steps that they have not.
pub const VIEW_INTAKES_REFUSED: &str = "trivet_view_intakes_refused_total";
/// Documents that could not be taken into a view.
pub const VIEW_BAD_DOCUMENTS: &str = "trivet_view_bad_documents_total";
/// Times that the changes a view needed were gone.
pub const VIEW_FELL_BEHIND: &str = "trivet_view_fell_behind_total";
/// Rows of views compared with their sources.
pub const VIEW_ROWS_VERIFIED: &str = "trivet_view_rows_verified_total";
/// Rows of views that differed.
pub const VIEW_MISMATCHES: &str = "trivet_view_mismatches_total";
/// Rows of views set right.
pub const VIEW_REPAIRS: &str = "trivet_view_repairs_total";

/// Comparisons of views with their sources that were made unasked.
pub const VIEW_SCRUBS: &str = "trivet_view_scrubs_total";
/// For how long a view has not been as new as a source, in seconds.
pub const VIEW_LAG: &str = "trivet_view_lag_seconds";

/// Declares them.
pub fn describe() {
    metrics::describe_counter!(FRAMES_SENT, "Frames of Raft groups sent to other nodes");
    metrics::describe_histogram!(FLUSH_FRAMES, "Frames that left for one peer in one flush");
    metrics::describe_counter!(LINKS_BROKEN, "Streams to other nodes that broke");
    metrics::describe_counter!(FRAMES_REFUSED, "Frames refused: wrong cluster, node, group or replica");
    metrics::describe_counter!(FORWARDED, "Requests passed on to the node that can answer them");
    metrics::describe_counter!(REQUESTS, "Requests for data by kind");
    metrics::describe_counter!(TAKEN_OVER, "Elections stood for at once because the leader's node was gone");
    metrics::describe_gauge!(REPLICAS, "Replicas hosted by this node");
    metrics::describe_gauge!(LEADERS, "Replicas of this node that lead their shard");
    metrics::describe_counter!(SHARDS_COMPACTED, "Shards compacted because much of them was garbage");
    metrics::describe_gauge!(
        DISK_ROOM,
        "Room left on the disk: 2 enough, 1 little (this node leads no writes), 0 none (it takes no entries)"
    );
    metrics::describe_gauge!(
        DISK_STALLED,
        "Whether the disk stands still (1): this node leads nothing it can hand over"
    );
    metrics::describe_counter!(WRITES_REFUSED_FULL, "Writes refused because disks are nearly full");
    metrics::describe_gauge!(
        VIEW_WORKERS,
        "Workers of views: one for each view and each shard of its sources led here"
    );
    metrics::describe_counter!(VIEW_INTAKES, "Steps of upkeep that shards of views have taken in");
    metrics::describe_counter!(VIEW_INTAKES_REFUSED, "Steps of upkeep that shards of views have not taken in");
    metrics::describe_counter!(VIEW_BAD_DOCUMENTS, "Documents that could not be taken into a view, by view");
    metrics::describe_counter!(VIEW_FELL_BEHIND, "Times that the changes a view needed were gone");
    metrics::describe_counter!(VIEW_ROWS_VERIFIED, "Rows of views compared with their sources");
    metrics::describe_counter!(VIEW_MISMATCHES, "Rows of views that differed from their sources");
    metrics::describe_counter!(VIEW_REPAIRS, "Rows of views set right");
    metrics::describe_counter!(VIEW_SCRUBS, "Unasked comparisons of views with their sources");
    metrics::describe_gauge!(
        VIEW_LAG,
        "How long ago the shards of its sources led here had something that a view has not taken in, in seconds"
    );
    metrics::describe_counter!(SNAPSHOTS_RECEIVED, "Snapshots received and installed");
    metrics::describe_counter!(SNAPSHOT_BYTES_SENT, "Bytes of snapshots sent to other nodes");
}
