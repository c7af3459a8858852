//! How RocksDB is set up: three families over one log, memory bounded in two numbers.

use std::path::PathBuf;
use std::sync::Arc;

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompactionStyle, DBCompressionType,
    DBRecoveryMode, LogLevel, SliceTransform,
};

use super::super::filter::Factory;
use super::super::{Family, Horizons};

/// What an operator may set about a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The store's own directory; created if it is not there.
    pub directory: PathBuf,
    /// Memory for blocks, indexes and filters read from files, in bytes; filled as it is used.
    pub block_cache_bytes: usize,
    /// Memory for what is written but not yet in a file, over all families, in bytes; filled as it is used.
    pub write_buffer_bytes: usize,
    /// Threads for flushes and compactions.
    pub background_jobs: u16,
}

impl Options {
    /// A small store in `directory`: an idle node stays far below 100 MB, a busy one below 300 MB.
    pub fn new(directory: impl Into<PathBuf>) -> Options {
        Options {
            directory: directory.into(),
            block_cache_bytes: 64 << 20,
            write_buffer_bytes: 48 << 20,
            background_jobs: 2,
        }
    }
}

/// Blocks of 8 KiB: with rows of some 300 bytes a point read unpacks 25 of them instead of 100 with 32 KiB.
const BLOCK_BYTES: usize = 8 << 10;
/// Ten bits a key: one needless read in a hundred.
const BLOOM_BITS: f64 = 10.0;
/// Part of a data memtable spent on its own filter of prefixes: most reads of new keys end there.
const MEMTABLE_BLOOM: f64 = 0.02;
/// The family of votes is written little and must not hold back the log's files with a large buffer.
const RAFT_BUFFER_BYTES: usize = 1 << 20;
/// All log files together; when they are more, the family that holds the oldest back is flushed.
const LOG_FILES_BYTES_MAX: u64 = 96 << 20;
/// Old log files kept to be written over: overwriting allocated blocks makes an fsync 5 to 30% cheaper.
const RECYCLED_LOG_FILES: usize = 2;
/// New files of the log family that lie side by side before they are compacted: by then most of what is in them has been
/// purged and need not be written again. Entries are read by scans of one group, so a few more files cost little.
const LOG_FILES_BEFORE_COMPACTION: i32 = 8;
/// The same for data: writing less often outweighs that a scan looks into a few more files (single reads are spared by
/// the filters). Compaction took two fifths of the processor under a load of writes with the usual four.
const DATA_FILES_BEFORE_COMPACTION: i32 = 8;
/// Open table files; a file beyond that is opened again when it is read.
const OPEN_FILES_MAX: i32 = 512;
/// Table files are written back in steps, so that a flush never makes the log's fsync wait for its whole output.
const WRITEBACK_BYTES: u64 = 1 << 20;
/// A file not compacted for so long is, so that versions beyond the history window leave idle tables too.
const PERIODIC_COMPACTION_SECONDS: u64 = 24 * 60 * 60;

/// The name of a family on disk.
pub(super) fn name(family: Family) -> &'static str {
    match family {
        Family::Log => "log",
        Family::Raft => "raft",
        Family::Data => "data",
    }
}

/// Options of the whole database.
pub(super) fn database(options: &Options) -> rocksdb::Options {
    let mut db = rocksdb::Options::default();
    db.create_missing_column_families(true);
    // A torn tail is dropped; that nothing synced went with it is checked against the mark.
    db.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    db.set_track_and_verify_wals_in_manifest(true);
    // The log writer alone decides when bytes go to the file: one write and one fsync for everything gathered.
    db.set_manual_wal_flush(true);
    db.set_recycle_log_file_num(RECYCLED_LOG_FILES);
    db.set_max_total_wal_size(LOG_FILES_BYTES_MAX);
    db.set_db_write_buffer_size(options.write_buffer_bytes);
    db.set_max_background_jobs(i32::from(options.background_jobs.max(1)));
    // The compaction filter must see all versions of a key in one pass.
    db.set_max_subcompactions(1);
    db.set_bytes_per_sync(WRITEBACK_BYTES);
    db.set_max_open_files(OPEN_FILES_MAX);
    db.set_max_file_opening_threads(2);
    // Few writers on few cores: spinning for the write queue takes the core from the one who holds it.
    db.set_enable_write_thread_adaptive_yield(false);
    db.set_avoid_unnecessary_blocking_io(true);
    db.set_log_level(LogLevel::Warn);
    db.set_keep_log_file_num(2);
    db.set_max_log_file_size(1 << 20);
    db.set_stats_dump_period_sec(0);
    db.set_stats_persist_period_sec(0);
    db
}

/// The families with their options; they share one block cache.
pub(super) fn families(options: &Options, cache: &Cache, horizons: &Arc<Horizons>) -> Vec<ColumnFamilyDescriptor> {
    let mut data = data_tables(cache);
    data.set_write_buffer_size(options.write_buffer_bytes / 2);
    data.set_memtable_prefix_bloom_ratio(MEMTABLE_BLOOM);
    data.set_compaction_filter_factory(Factory::new(horizons.clone()));
    data.set_level_zero_file_num_compaction_trigger(DATA_FILES_BEFORE_COMPACTION);
    data.set_periodic_compaction_seconds(PERIODIC_COMPACTION_SECONDS);

    // Entries live until the next purge, mostly in memory: not worth packing.
    let mut log = tables(cache, DBCompressionType::None, false);
    log.set_write_buffer_size(options.write_buffer_bytes / 2);
    log.set_level_zero_file_num_compaction_trigger(LOG_FILES_BEFORE_COMPACTION);
    // Files of like size are merged, so an entry that outlives several purges is rewritten once or twice, not with
    // every new file.
    log.set_compaction_style(DBCompactionStyle::Universal);

    let mut raft = tables(cache, DBCompressionType::None, false);
    raft.set_write_buffer_size(RAFT_BUFFER_BYTES);

    let mut unused = rocksdb::Options::default();
    unused.set_write_buffer_size(64 << 10);
    vec![
        ColumnFamilyDescriptor::new(rocksdb::DEFAULT_COLUMN_FAMILY_NAME, unused),
        ColumnFamilyDescriptor::new(name(Family::Log), log),
        ColumnFamilyDescriptor::new(name(Family::Raft), raft),
        ColumnFamilyDescriptor::new(name(Family::Data), data),
    ]
}

/// Options of table files of family `Data`, in the database and on their way to another.
pub(super) fn data_tables(cache: &Cache) -> rocksdb::Options {
    let mut data = tables(cache, DBCompressionType::Lz4, true);
    data.set_prefix_extractor(SliceTransform::create("trivet.key", without_timestamp, Some(has_timestamp)));
    data
}

fn tables(cache: &Cache, compression: DBCompressionType, filter: bool) -> rocksdb::Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(BLOCK_BYTES);
    // Indexes and filters in the cache too, so that the cache bounds them; those of the newest files stay. In parts: a whole
    // index is some hundred kilobytes, of which a shard of the cache holds few, and reads would unpack it again and again.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(filter);
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    if filter {
        table.set_bloom_filter(BLOOM_BITS, false);
        // One filter of prefixes serves seeks for versions and, for keys not there, point reads too.
        table.set_whole_key_filtering(false);
        table.set_optimize_filters_for_memory(true);
    }
    let mut options = rocksdb::Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(compression);
    options.set_max_write_buffer_number(4);
    options
}

/// Bytes of the timestamp at the end of a data key.
const TIMESTAMP_BYTES: usize = 8;

fn without_timestamp(key: &[u8]) -> &[u8] {
    &key[..key.len() - TIMESTAMP_BYTES]
}

fn has_timestamp(key: &[u8]) -> bool {
    key.len() >= TIMESTAMP_BYTES
}
