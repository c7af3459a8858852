//! What storage measures: names and descriptions.

use metrics::{Histogram, Unit, describe_gauge, describe_histogram};

/// How long making the log durable took.
pub const SYNC_SECONDS: &str = "trivet_storage_sync_seconds";
/// How long writing a gathered batch took, without making it durable.
pub const WRITE_SECONDS: &str = "trivet_storage_log_write_seconds";
/// Operations of all groups gathered into one batch.
pub const BATCH_OPERATIONS: &str = "trivet_storage_log_batch_operations";
/// Bytes gathered into one batch.
pub const BATCH_BYTES: &str = "trivet_storage_log_batch_bytes";
/// Bytes waiting for the log writer.
pub const QUEUE_BYTES: &str = "trivet_storage_log_queue_bytes";
/// Memory of what is not in a file yet.
pub const MEMTABLE_BYTES: &str = "trivet_storage_memtable_bytes";
/// Files of the log family.
pub const LOG_TABLE_BYTES: &str = "trivet_storage_log_table_bytes";
/// Files of the data family.
pub const DATA_TABLE_BYTES: &str = "trivet_storage_data_table_bytes";
/// Entries of the data family.
pub const DATA_KEYS: &str = "trivet_storage_data_keys";
/// Bytes compaction is behind.
pub const COMPACTION_PENDING_BYTES: &str = "trivet_storage_compaction_pending_bytes";
/// Whether the engine has stopped writers until compaction catches up.
pub const WRITES_STOPPED: &str = "trivet_storage_writes_stopped";
/// Snapshots held.
pub const SNAPSHOTS: &str = "trivet_storage_snapshots";
/// Memory of the block cache in use.
pub const BLOCK_CACHE_BYTES: &str = "trivet_storage_block_cache_bytes";
/// Room left on the device.
pub const FREE_BYTES: &str = "trivet_storage_free_bytes";

/// Tells the recorder what the names mean.
pub fn describe() {
    describe_histogram!(SYNC_SECONDS, Unit::Seconds, "Time to make the log durable, for all groups together");
    describe_histogram!(
        WRITE_SECONDS,
        Unit::Seconds,
        "Time to write a gathered batch of log operations, not durable yet"
    );
    describe_histogram!(BATCH_OPERATIONS, Unit::Count, "Log operations of all groups in one batch");
    describe_histogram!(BATCH_BYTES, Unit::Bytes, "Bytes of log operations in one batch");
    describe_gauge!(QUEUE_BYTES, Unit::Bytes, "Log operations waiting for the log writer");
    describe_gauge!(MEMTABLE_BYTES, Unit::Bytes, "Written data not yet in a table file, all families");
    describe_gauge!(LOG_TABLE_BYTES, Unit::Bytes, "Table files of the log family");
    describe_gauge!(DATA_TABLE_BYTES, Unit::Bytes, "Table files of the data family");
    describe_gauge!(DATA_KEYS, Unit::Count, "Entries of the data family, estimated");
    describe_gauge!(COMPACTION_PENDING_BYTES, Unit::Bytes, "Bytes compaction has still to rewrite, estimated");
    describe_gauge!(WRITES_STOPPED, Unit::Count, "1 while writers wait for compaction");
    describe_gauge!(SNAPSHOTS, Unit::Count, "Storage snapshots held by readers, cuts and checksums");
    describe_gauge!(BLOCK_CACHE_BYTES, Unit::Bytes, "Block cache in use");
    describe_gauge!(FREE_BYTES, Unit::Bytes, "Room left on the storage device");
}

/// The log writer's handles, looked up once.
pub(super) struct LogMetrics {
    pub(super) sync_seconds: Histogram,
    pub(super) write_seconds: Histogram,
    pub(super) batch_operations: Histogram,
    pub(super) batch_bytes: Histogram,
    pub(super) queue_bytes: metrics::Gauge,
}

impl LogMetrics {
    pub(super) fn new() -> LogMetrics {
        LogMetrics {
            sync_seconds: metrics::histogram!(SYNC_SECONDS),
            write_seconds: metrics::histogram!(WRITE_SECONDS),
            batch_operations: metrics::histogram!(BATCH_OPERATIONS),
            batch_bytes: metrics::histogram!(BATCH_BYTES),
            queue_bytes: metrics::gauge!(QUEUE_BYTES),
        }
    }
}
