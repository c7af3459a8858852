//! Reads of RocksDB: at the newest state or at a snapshot.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use rocksdb::{ColumnFamily, DB, DBRawIterator, ErrorKind, ReadOptions, ReadTier, Snapshot};

use super::super::horizons::Pin;
use super::super::{Cursor, Family, Lookup, Reader, Result, Tier};
use super::Database;

/// Options that do not change from one point read to the next, made once.
pub(super) struct PointReads {
    cache: ReadOptions,
    disk: ReadOptions,
}

impl PointReads {
    pub(super) fn new(snapshot: Option<&Snapshot<'_>>) -> PointReads {
        let options = |tier| {
            let mut options = ReadOptions::default();
            options.set_read_tier(tier);
            if let Some(snapshot) = snapshot {
                options.set_snapshot(snapshot);
            }
            options
        };
        PointReads { cache: options(ReadTier::BlockCache), disk: options(ReadTier::All) }
    }

    pub(super) fn get(&self, db: &DB, family: &ColumnFamily, key: &[u8], tier: Tier) -> Result<Lookup<Bytes>> {
        let options = match tier {
            Tier::Cache => &self.cache,
            Tier::Disk => &self.disk,
        };
        match db.get_pinned_cf_opt(family, key, options) {
            Ok(Some(value)) => Ok(Lookup::Found(Bytes::copy_from_slice(&value))),
            Ok(None) => Ok(Lookup::Missing),
            Err(error) if error.kind() == ErrorKind::Incomplete => Ok(Lookup::NeedsDisk),
            Err(error) => Err(error.into()),
        }
    }
}

/// Bytes of the timestamp at the end of a data key.
const TIMESTAMP_BYTES: usize = 8;

pub(super) fn first_version(
    db: &DB,
    data: &ColumnFamily,
    snapshot: Option<&Snapshot<'_>>,
    prefix: &[u8],
    from: &[u8],
    tier: Tier,
) -> Result<Lookup<(Bytes, Bytes)>> {
    // The filter asks for the prefix of the sought key, so that key must have the length of a version's.
    let length = prefix.len() + TIMESTAMP_BYTES;
    let mut padded = BytesMut::new();
    let sought = if from.len() == length {
        from
    } else {
        padded.put_slice(&from[..from.len().min(length)]);
        padded.resize(length, 0);
        &padded
    };
    let mut options = ReadOptions::default();
    options.set_prefix_same_as_start(true);
    if tier == Tier::Cache {
        options.set_read_tier(ReadTier::BlockCache);
    }
    if let Some(snapshot) = snapshot {
        options.set_snapshot(snapshot);
    }
    let mut iterator = db.raw_iterator_cf_opt(data, options);
    iterator.seek(sought);
    while let Some((key, value)) = iterator.item() {
        if !key.starts_with(prefix) {
            return Ok(Lookup::Missing);
        }
        if key.len() == length && key >= from {
            return Ok(Lookup::Found((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))));
        }
        iterator.next();
    }
    match iterator.status() {
        Ok(()) => Ok(Lookup::Missing),
        Err(error) if error.kind() == ErrorKind::Incomplete => Ok(Lookup::NeedsDisk),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn cursor<'a>(
    db: &'a DB,
    family: &ColumnFamily,
    snapshot: Option<&Snapshot<'_>>,
    start: &[u8],
    end: &[u8],
) -> Box<dyn Cursor + 'a> {
    let is_empty = start >= end;
    let mut options = ReadOptions::default();
    options.set_total_order_seek(true);
    if !is_empty {
        options.set_iterate_lower_bound(start);
        options.set_iterate_upper_bound(end);
    }
    if let Some(snapshot) = snapshot {
        options.set_snapshot(snapshot);
    }
    Box::new(RocksCursor { iterator: db.raw_iterator_cf_opt(family, options), is_empty })
}

/// Walks a bounded range; RocksDB keeps to the bounds itself.
struct RocksCursor<'a> {
    iterator: DBRawIterator<'a>,
    /// Bounds the wrong way round mean nothing to RocksDB, so an empty range is never walked.
    is_empty: bool,
}

impl Cursor for RocksCursor<'_> {
    fn seek_first(&mut self) {
        if !self.is_empty {
            self.iterator.seek_to_first();
        }
    }

    fn seek_last(&mut self) {
        if !self.is_empty {
            self.iterator.seek_to_last();
        }
    }

    fn seek(&mut self, key: &[u8]) {
        if !self.is_empty {
            self.iterator.seek(key);
        }
    }

    fn seek_back(&mut self, key: &[u8]) {
        if !self.is_empty {
            self.iterator.seek_for_prev(key);
        }
    }

    fn next(&mut self) {
        if self.iterator.valid() {
            self.iterator.next();
        }
    }

    fn previous(&mut self) {
        if self.iterator.valid() {
            self.iterator.prev();
        }
    }

    fn entry(&self) -> Option<(&[u8], &[u8])> {
        self.iterator.item()
    }

    fn status(&self) -> Result<()> {
        self.iterator.status().map_err(Into::into)
    }
}

/// A state of the database that does not change.
pub(super) struct RocksSnapshot {
    // Dropped in this order: options and snapshot before the database they point into.
    reads: PointReads,
    snapshot: Snapshot<'static>,
    /// Compaction keeps the history of this moment.
    _pin: Pin,
    database: Arc<Database>,
}

impl RocksSnapshot {
    pub(super) fn new(database: Arc<Database>) -> RocksSnapshot {
        // First the pin: whatever horizon is in effect from here on cannot reach behind the state seen.
        let pin = database.horizons.pin();
        let snapshot = database.db.snapshot();
        // SAFETY: the snapshot borrows `database.db`, which lies behind an `Arc` that this value holds and that, by the
        // order of the fields, is released after the snapshot. The longer lifetime never leaves this struct.
        let snapshot = unsafe { std::mem::transmute::<Snapshot<'_>, Snapshot<'static>>(snapshot) };
        RocksSnapshot { reads: PointReads::new(Some(&snapshot)), snapshot, _pin: pin, database }
    }
}

impl Reader for RocksSnapshot {
    fn get(&self, family: Family, key: &[u8], tier: Tier) -> Result<Lookup<Bytes>> {
        self.reads.get(&self.database.db, self.database.family(family), key, tier)
    }

    fn first_version(&self, prefix: &[u8], from: &[u8], tier: Tier) -> Result<Lookup<(Bytes, Bytes)>> {
        let data = self.database.family(Family::Data);
        first_version(&self.database.db, data, Some(&self.snapshot), prefix, from, tier)
    }

    fn cursor<'a>(&'a self, family: Family, start: &[u8], end: &[u8]) -> Box<dyn Cursor + 'a> {
        cursor(&self.database.db, self.database.family(family), Some(&self.snapshot), start, end)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rocksdb::perf::{PerfContext, PerfMetric, PerfStatsLevel, set_perf_stats};

    use crate::keyspace::{Layout, version};
    use crate::storage::mvcc::{self, Version};
    use crate::storage::{Batch, Engine, Family, Lookup, Options, Rocks, Tier};
    use crate::types::{Partitioning, TableId, Timestamp};

    const KEYS: u64 = 12_000;
    /// As large as a block, so that there are as many blocks and entries of the index as keys.
    const VALUE_BYTES: usize = 8 << 10;
    const LOOKUPS: u64 = 200;
    /// A block, and the parts of index and filter that say where it is.
    const READ_MAX: u64 = 32 << 10;

    fn encoded(number: u64) -> bytes::Bytes {
        let layout = Layout { table: TableId(1), partitioning: Partitioning::Range { group_delimiter: None } };
        // The two of a pair have much in common, so that the index, which says what lies between them, needs long keys.
        let parts = (1..=10).map(|part| (number / 2 + part * KEYS).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let pair: String = parts.map(|part| format!("{part:016x}")).collect();
        layout.encode(format!("{pair}{}", number % 2).as_bytes())
    }

    /// What is not in memory costs a lookup a few blocks, not the whole index of a table file, again and again where the cache does not
    /// hold that.
    #[test]
    fn a_lookup_reads_little_however_large_the_table_file() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options { block_cache_bytes: 8 << 20, ..Options::new(directory.path()) };
        let store: Arc<dyn Engine> = Rocks::open(&options).unwrap();
        for first in (0..KEYS).step_by(1_000) {
            let mut batch = Batch::new();
            for number in first..first + 1_000 {
                let value = Some(bytes::Bytes::from(vec![number as u8; VALUE_BYTES]));
                let written = Version { timestamp: Timestamp(7), value, expires_ms: None };
                batch.put(Family::Data, version::key(&encoded(number), written.timestamp), written.encode());
            }
            store.write(batch).unwrap();
        }
        store.compact(b"", &[0xFF; 16]).unwrap();
        let lookup = |number: u64| {
            let key = encoded(number * 59 % KEYS);
            assert!(matches!(mvcc::newest(&*store, &key, Timestamp::MAX, Tier::Disk), Ok(Lookup::Found(_))));
        };
        (0..LOOKUPS).for_each(lookup);
        set_perf_stats(PerfStatsLevel::EnableCount);
        let mut perf = PerfContext::default();
        perf.reset();
        (LOOKUPS..2 * LOOKUPS).for_each(lookup);
        let read = perf.metric(PerfMetric::BlockReadByte) / LOOKUPS;
        set_perf_stats(PerfStatsLevel::Disable);
        assert!(read > 0, "something is read");
        assert!(read <= READ_MAX, "{read} bytes for each lookup");
    }
}
