//! The engine of a running node: RocksDB.
//!
//! A write is one RocksDB batch over the families, appended to the log's buffer and inserted into memory, nothing more;
//! [`Rocks::sync`] hands the buffer to the file and makes it durable, for everybody who wrote before. Point reads and
//! version reads go through filters of prefixes; cursors walk in total order between bounds.
//!
//! What is ours on top of RocksDB: the mark that makes a shrunken log visible (`mark.rs`), the directory that is opened
//! or precisely refused (`directory.rs`), the trimming of history (`../filter.rs`), and installs in one step: the files
//! of a snapshot are ingested together with small files that hold nothing but a range deletion each. RocksDB numbers
//! these before those, and adds all of them by one record of its manifest, so that neither a reader nor a crash ever
//! meets a range that is empty or half old.

mod directory;
mod mark;
mod options;
mod reader;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rocksdb::{
    BottommostLevelCompaction, Cache, ColumnFamily, CompactOptions, DB, IngestExternalFileOptions, SstFileWriter,
    WriteBatch, WriteOptions,
};

use self::directory::Directory;
pub use self::options::Options;
use self::reader::{PointReads, RocksSnapshot};
use super::{
    Batch, Change, Cursor, Engine, Error, Family, Horizons, Lookup, RESERVE_BYTES, RESERVE_PART, Ranges, Reader,
    Result, TableWriter, Tier, metrics, sweep,
};
use crate::keyspace::side;

/// Bytes of a write batch's own framing per change: sequence and type bytes, lengths.
const CHANGE_OVERHEAD_BYTES: usize = 12;

/// The open database with what must live as long: snapshots may keep it open after the engine is gone.
struct Database {
    // Closed before the directory's lock is released.
    db: DB,
    directory: Mutex<Directory>,
    cache: Cache,
    horizons: Arc<Horizons>,
}

impl Database {
    fn family(&self, family: Family) -> &ColumnFamily {
        self.db.cf_handle(options::name(family)).expect("all families are opened with the database")
    }
}

/// A store on disk.
pub struct Rocks {
    reads: PointReads,
    writes: WriteOptions,
    database: Arc<Database>,
    /// The newest sequence number a finished sync covered.
    synced: AtomicU64,
    path: PathBuf,
    /// One install at a time, and none while compaction sweeps.
    replacing: Mutex<()>,
}

impl Rocks {
    /// Opens the store in a directory, or creates it there.
    ///
    /// Refuses with [`Error::Locked`] if it is in use, [`Error::Foreign`] if it is not ours, [`Error::LogShrank`] if
    /// less of the log is there than had been durable, [`Error::Corruption`] if parts are missing or damaged.
    pub fn open(options: &Options) -> Result<Arc<Rocks>> {
        let path = options.directory.clone();
        let mut directory = Directory::open(&path)?;
        let horizons = Arc::new(Horizons::new());
        let cache = Cache::new_lru_cache(options.block_cache_bytes);
        let mut database_options = options::database(options);
        database_options.create_if_missing(directory.is_new);
        let families = options::families(options, &cache, &horizons);
        let db = DB::open_cf_descriptors(&database_options, directory.database(), families)?;
        let recovered = db.latest_sequence_number();
        let synced = directory.mark.sequence();
        if recovered < synced {
            return Err(Error::LogShrank { directory: path, synced, recovered });
        }
        directory.finish_creation()?;
        let mut writes = WriteOptions::default();
        writes.set_sync(false);
        Ok(Arc::new(Rocks {
            reads: PointReads::new(None),
            writes,
            database: Arc::new(Database { db, directory: Mutex::new(directory), cache, horizons }),
            synced: AtomicU64::new(synced),
            path,
            replacing: Mutex::new(()),
        }))
    }

    fn db(&self) -> &DB {
        &self.database.db
    }

    /// What the file system says of itself.
    fn device(&self) -> Result<rustix::fs::StatVfs> {
        rustix::fs::statvfs(&self.path).map_err(|error| Error::io("cannot ask about", &self.path, error.into()))
    }

    fn table_options(&self) -> rocksdb::Options {
        options::data_tables(&self.database.cache)
    }

    /// Puts what is in memory into files and waits for the compactions that follow.
    #[cfg(test)]
    pub(super) fn flush_for_test(&self) {
        self.sync().expect("a sync in a test");
        self.db().flush_cf(self.database.family(Family::Data)).expect("a flush in a test");
        self.db().wait_for_compact(&rocksdb::WaitForCompactOptions::default()).expect("compactions in a test");
    }

    /// Runs something while the files do not change by themselves.
    #[cfg(test)]
    pub(super) fn while_still_for_test<T>(&self, work: impl FnOnce() -> T) -> T {
        self.db().wait_for_compact(&rocksdb::WaitForCompactOptions::default()).expect("compactions in a test");
        self.db().disable_file_deletions().expect("no deletions for a moment");
        let result = work();
        self.db().enable_file_deletions().expect("deletions again");
        result
    }

    /// Files that delete the ranges when ingested, one per range.
    fn write_deletions(&self, name: &str, ranges: &Ranges) -> Result<Vec<PathBuf>> {
        let options = self.table_options();
        let staging = self.staging();
        let mut paths = Vec::with_capacity(ranges.len());
        for (number, (start, end)) in ranges.iter().enumerate() {
            if start >= end {
                continue;
            }
            let path = staging.join(format!("{name}.deletion-{number}.sst"));
            let mut writer = SstFileWriter::create(&options);
            writer.open(&path)?;
            writer.delete_range(start, end)?;
            writer.finish()?;
            paths.push(path);
        }
        Ok(paths)
    }
}

impl Drop for Rocks {
    /// An orderly close: everything written becomes durable, and the mark with it.
    fn drop(&mut self) {
        let closed = self.sync().and_then(|()| self.database.directory.lock().mark.sync());
        if let Err(error) = closed {
            tracing::error!(%error, "storage was not closed in order; nothing acknowledged is lost");
        }
    }
}

impl Reader for Rocks {
    fn get(&self, family: Family, key: &[u8], tier: Tier) -> Result<Lookup<Bytes>> {
        self.reads.get(self.db(), self.database.family(family), key, tier)
    }

    fn first_version(&self, prefix: &[u8], from: &[u8], tier: Tier) -> Result<Lookup<(Bytes, Bytes)>> {
        reader::first_version(self.db(), self.database.family(Family::Data), None, prefix, from, tier)
    }

    fn cursor<'a>(&'a self, family: Family, start: &[u8], end: &[u8]) -> Box<dyn Cursor + 'a> {
        reader::cursor(self.db(), self.database.family(family), None, start, end)
    }
}

impl Engine for Rocks {
    fn write(&self, batch: Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let families = [Family::Log, Family::Raft, Family::Data].map(|family| self.database.family(family));
        let bytes = batch.changes.iter().map(|change| change.bytes() + CHANGE_OVERHEAD_BYTES).sum();
        let mut writes = WriteBatch::with_capacity_bytes(bytes);
        for change in &batch.changes {
            match change {
                Change::Put(family, key, value) => writes.put_cf(families[*family as usize], key, value),
                Change::Delete(family, key) => writes.delete_cf(families[*family as usize], key),
                Change::DeleteRange(family, start, end) if start < end => {
                    writes.delete_range_cf(families[*family as usize], start, end);
                }
                Change::DeleteRange(..) => {}
            }
        }
        self.db().write_opt(writes, &self.writes).map_err(Into::into)
    }

    fn sync(&self) -> Result<()> {
        // Read first: every write up to here is in the log's buffer, so the sync below covers it.
        let sequence = self.db().latest_sequence_number();
        let pending = self.database.horizons.before_sync();
        if sequence > self.synced.load(Ordering::Acquire) {
            self.db().flush_wal(true)?;
            self.database.directory.lock().mark.raise(sequence)?;
            self.synced.fetch_max(sequence, Ordering::AcqRel);
        }
        self.database.horizons.after_sync(pending);
        Ok(())
    }

    fn snapshot(&self) -> Arc<dyn Reader> {
        Arc::new(RocksSnapshot::new(self.database.clone()))
    }

    fn table_writer(&self, path: &Path) -> Result<Box<dyn TableWriter>> {
        Ok(Box::new(Table::create(self.table_options(), path)?))
    }

    fn install(&self, name: &str, ranges: &Ranges, files: &[PathBuf]) -> Result<()> {
        let _one_at_a_time = self.replacing.lock();
        // The files become durable at once; what was written before must not be lost behind them.
        self.sync()?;
        let mut paths = self.write_deletions(name, ranges)?;
        paths.extend_from_slice(files);
        if paths.is_empty() {
            return Ok(());
        }
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        options.set_snapshot_consistency(true);
        options.set_allow_global_seqno(true);
        options.set_allow_blocking_flush(true);
        self.db().ingest_external_file_cf_opts(self.database.family(Family::Data), &options, paths.clone())?;
        for path in &paths {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("cannot remove", path, error));
                }
                _ => {}
            }
        }
        self.sync()?;
        tracing::info!(name, files = files.len(), "installed files");
        Ok(())
    }

    fn horizons(&self) -> &Horizons {
        &self.database.horizons
    }

    fn staging(&self) -> PathBuf {
        self.database.directory.lock().staging()
    }

    fn compact(&self, start: &[u8], end: &[u8]) -> Result<()> {
        self.sync()?;
        {
            let _not_while_replacing = self.replacing.lock();
            sweep::sweep(self, self.horizons(), start, end)?;
        }
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
        let data = self.database.family(Family::Data);
        let (outcomes_start, outcomes_end) = side::outcome_range(start, end);
        for (start, end) in [(start, end), (&outcomes_start[..], &outcomes_end[..])] {
            self.db().compact_range_cf_opt(data, Some(start), Some(end), &options);
        }
        Ok(())
    }

    fn free_bytes(&self) -> Result<u64> {
        let space = self.device()?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    fn reserve_bytes(&self) -> Result<u64> {
        let space = self.device()?;
        Ok(RESERVE_BYTES.min(space.f_blocks.saturating_mul(space.f_frsize) / RESERVE_PART))
    }

    fn bytes_in(&self, start: &[u8], end: &[u8]) -> Result<u64> {
        let data = self.database.family(Family::Data);
        Ok(self.db().get_approximate_sizes_cf(data, &[rocksdb::Range::new(start, end)]).into_iter().sum())
    }

    fn gauges(&self) -> Vec<(&'static str, f64)> {
        let property = |family, name: &str| {
            let value = self.db().property_int_value_cf(self.database.family(family), name).ok().flatten();
            value.unwrap_or(0) as f64
        };
        let sum =
            |name: &str| [Family::Log, Family::Raft, Family::Data].map(|family| property(family, name)).iter().sum();
        vec![
            (metrics::MEMTABLE_BYTES, sum("rocksdb.cur-size-all-mem-tables")),
            (metrics::LOG_TABLE_BYTES, property(Family::Log, "rocksdb.total-sst-files-size")),
            (metrics::DATA_TABLE_BYTES, property(Family::Data, "rocksdb.total-sst-files-size")),
            (metrics::DATA_KEYS, property(Family::Data, "rocksdb.estimate-num-keys")),
            (metrics::COMPACTION_PENDING_BYTES, sum("rocksdb.estimate-pending-compaction-bytes")),
            (metrics::WRITES_STOPPED, property(Family::Data, "rocksdb.is-write-stopped")),
            (metrics::SNAPSHOTS, property(Family::Data, "rocksdb.num-snapshots")),
            (metrics::BLOCK_CACHE_BYTES, self.database.cache.get_usage() as f64),
            (metrics::FREE_BYTES, self.free_bytes().unwrap_or(0) as f64),
        ]
    }
}

/// A table file being written.
struct Table {
    // Dropped in this order: the writer before the options it was made with.
    writer: SstFileWriter<'static>,
    path: PathBuf,
    _options: Box<rocksdb::Options>,
}

impl Table {
    fn create(options: rocksdb::Options, path: &Path) -> Result<Table> {
        let options = Box::new(options);
        let writer = SstFileWriter::create(&options);
        // SAFETY: the writer borrows the boxed options, which do not move when the box does and which, by the order of
        // the fields, are released after the writer. The longer lifetime never leaves this struct.
        let writer = unsafe { std::mem::transmute::<SstFileWriter<'_>, SstFileWriter<'static>>(writer) };
        let table = Table { writer, path: path.to_owned(), _options: options };
        table.open()?;
        Ok(table)
    }

    fn open(&self) -> Result<()> {
        // SAFETY: as above; `open` asks for a borrow as long as the writer's own parameter.
        let writer = unsafe { &*std::ptr::from_ref(&self.writer) };
        writer.open(&self.path).map_err(Into::into)
    }
}

impl TableWriter for Table {
    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.writer.put(key, value).map_err(Into::into)
    }

    fn finish(mut self: Box<Self>) -> Result<u64> {
        self.writer.finish()?;
        Ok(self.writer.file_size())
    }
}
