//! The checksum of a shard's content at one position of its log, equal on all replicas.
//!
//! It sums the *logical* content, not what happens to lie on a disk: every version after the horizon, and of the older
//! ones only the newest of each key if it is a value that has not run out; plus the outcome records that requests
//! may still ask for. What compaction has dropped, or not yet, makes no difference. Whoever sums also reads the replica's
//! log, which is part of no sum, to find damage there.

use super::machine::ChecksumMark;
use super::outcomes::Record;
use crate::keyspace::{side, version};
use crate::storage::mvcc::Version;
use crate::storage::{self, Family, Reader, log_keys};
use crate::types::{ShardId, Timestamp};

/// The sum of one replica at one position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// The entry after which the content was summed.
    pub index: u64,
    /// CRC-32 over keys, timestamps and values in key order.
    pub checksum: u32,
    /// Versions summed.
    pub versions: u64,
}

/// Sums the content at a mark. Reads everything: call it where blocking is allowed.
pub fn of(mark: &ChecksumMark) -> storage::Result<Checksum> {
    let state = &mark.state;
    let mut hasher = crc32fast::Hasher::new();
    let mut versions = 0;
    let mut add = |key: &[u8], value: &[u8]| {
        hasher.update(&(key.len() as u64).to_be_bytes());
        hasher.update(key);
        hasher.update(&(value.len() as u64).to_be_bytes());
        hasher.update(value);
    };

    let mut cursor = mark.reader.cursor(Family::Data, &state.start, &state.end);
    let mut settled: Vec<u8> = Vec::new();
    let mut settled_any = false;
    cursor.seek_first();
    while let Some((key, value)) = cursor.entry() {
        let (encoded, timestamp) =
            version::split(key).ok_or_else(|| storage::Error::corruption("a key in the data has no version"))?;
        if timestamp <= state.last_timestamp {
            let counts = if timestamp > state.horizon {
                true
            } else if settled_any && settled == encoded {
                false
            } else {
                settled_any = true;
                settled.clear();
                settled.extend_from_slice(encoded);
                lives_at(state.horizon, timestamp, value)?
            };
            if counts {
                add(key, value);
                versions += 1;
            }
        }
        cursor.next();
    }
    cursor.status()?;
    drop(cursor);

    let (start, end) = side::outcome_range(&state.start, &state.end);
    let mut cursor = mark.reader.cursor(Family::Data, &start, &end);
    cursor.seek_first();
    while let Some((key, value)) = cursor.entry() {
        let record = Record::decode(bytes::Bytes::copy_from_slice(value)).map_err(storage::Error::from)?;
        let (_, request) = side::outcome_split(key)
            .ok_or_else(|| storage::Error::corruption("a key among the outcomes of requests is none"))?;
        if request.issued_ms >= state.requests_from_ms && record.decided <= state.last_timestamp {
            add(key, value);
        }
        cursor.next();
    }
    cursor.status()?;
    Ok(Checksum { index: mark.index, checksum: hasher.finalize(), versions })
}

/// Reads the whole log of a group. Its entries are no part of the sum, since each replica purges its own at its own time, and some of
/// them are needed only when another member has fallen behind: so damage to them would stay unknown until then. Returns how
/// many there are. Call it where blocking is allowed.
pub fn read_log(reader: &dyn Reader, group: ShardId) -> storage::Result<u64> {
    let (start, end) = log_keys::entries_range(group, 0, u64::MAX);
    let mut entries = 0;
    let mut cursor = reader.cursor(Family::Log, &start, &end);
    cursor.seek_first();
    while cursor.entry().is_some() {
        entries += 1;
        cursor.next();
    }
    cursor.status()?;
    Ok(entries)
}

/// Whether the newest version at or before the horizon is content: a value that had not run out by then.
fn lives_at(horizon: Timestamp, timestamp: Timestamp, value: &[u8]) -> storage::Result<bool> {
    let version = Version::decode(timestamp, bytes::Bytes::copy_from_slice(value))?;
    Ok(version.value.is_some() && version.expires_ms.is_none_or(|expires| expires > horizon.millis()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::runtime::Clock;
    use crate::shard::state::State;
    use crate::storage::{Batch, Engine, Memory};
    use crate::types::{Epoch, TableId};

    /// Entries that only a member that has fallen behind would need.
    #[test]
    fn damage_to_the_log_is_found_though_nothing_needs_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = || storage::Rocks::open(&storage::Options::new(directory.path())).expect("it opens");
        let engine = open();
        let group = ShardId(7);
        for index in 0..2000_u64 {
            let mut batch = Batch::new();
            let noise: Vec<u8> = (0..200).map(|at| (index as u8).wrapping_mul(31) ^ at).collect();
            batch.put(Family::Log, log_keys::entry(group, index), noise);
            engine.write(batch).expect("it takes it");
        }
        engine.sync().expect("it syncs");
        drop(engine);
        // What the write-ahead log holds is written into table files by the next start.
        drop(open());
        let tables = std::fs::read_dir(directory.path().join("db")).expect("a directory");
        let tables = tables.map(|entry| entry.expect("an entry").path());
        let table = tables
            .filter(|path| path.extension().is_some_and(|extension| extension == "sst"))
            .max_by_key(|path| path.metadata().expect("a file").len())
            .expect("a table file");
        assert_eq!(read_log(&*open(), group).expect("it is whole"), 2000);
        let mut bytes = std::fs::read(&table).expect("a file");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&table, bytes).expect("it is written");
        assert!(matches!(read_log(&*open(), group), Err(storage::Error::Corruption(_))));
    }

    fn put(engine: &dyn Engine, key: u8, version: &Version) {
        let mut batch = Batch::new();
        batch.put(Family::Data, version::key(&[1, key], version.timestamp), version.encode());
        engine.write(batch).expect("memory takes it");
    }

    fn sum(engine: &Arc<Memory>, horizon: Timestamp) -> Checksum {
        let mut state = State::fresh(TableId(1), vec![1].into(), vec![2].into(), Epoch(1));
        state.horizon = horizon;
        state.last_timestamp = Timestamp::MAX;
        let noted = Clock::system().now();
        of(&ChecksumMark { name: 1, index: 9, reader: engine.snapshot(), state, noted }).expect("readable")
    }

    fn version(time: u64, value: Option<&'static str>, expires: Option<u64>) -> Version {
        // Times count whole milliseconds, so that expiry and horizon meet.
        let timestamp = Timestamp::from_millis(time);
        Version { timestamp, value: value.map(Into::into), expires_ms: expires }
    }

    fn any_version() -> impl Strategy<Value = (u8, u64, Version)> {
        let value = prop::sample::select(vec![None, Some("v"), Some("w")]);
        (0..5u8, 1..40u64, value, prop::option::of(1..44u64)).prop_map(|(key, time, value, expires)| {
            (key, time, version(time, value, expires.filter(|_| value.is_some())))
        })
    }

    proptest! {
        #[test]
        fn it_sums_what_a_reader_could_see(
            written in vec(any_version(), 0..60), horizon in 0..44u64, drops in vec(any::<bool>(), 60),
        ) {
            let (whole, trimmed) = (Memory::new().unwrap(), Memory::new().unwrap());
            let mut keys: BTreeMap<u8, BTreeMap<u64, Version>> = BTreeMap::new();
            for (key, time, version) in written {
                keys.entry(key).or_default().insert(time, version);
            }
            let mut counted = 0;
            for (key, versions) in &keys {
                let newest = versions.range(..=horizon).next_back();
                let newest_is_dead = newest.is_some_and(|(_, version)| !version.lives_at(horizon));
                for (position, (time, version)) in versions.iter().enumerate() {
                    put(&*whole, *key, version);
                    let beneath = newest.is_some_and(|(newest, _)| time < newest);
                    let dead = newest.is_some_and(|(newest, _)| time == newest) && newest_is_dead;
                    // What compaction may drop, dropped or not as it likes; a dead one only with all beneath it.
                    if !(dead || beneath && (newest_is_dead || drops[position % drops.len()])) {
                        put(&*trimmed, *key, version);
                    }
                    counted += u64::from(!beneath && !dead);
                }
            }
            let horizon = Timestamp::from_millis(horizon);
            prop_assert_eq!(sum(&whole, horizon), sum(&trimmed, horizon));
            prop_assert_eq!(sum(&whole, horizon).versions, counted);
        }
    }

    #[test]
    fn it_notices_every_difference() {
        let sum = |versions: &[(u8, Version)]| {
            let engine = Memory::new().unwrap();
            for (key, version) in versions {
                put(&*engine, *key, version);
            }
            sum(&engine, Timestamp::from_millis(5))
        };
        let base = sum(&[(1, version(2, Some("v"), None)), (2, version(8, Some("w"), None))]);
        assert_eq!(base.versions, 2);
        for other in [
            [(1, version(2, Some("x"), None)), (2, version(8, Some("w"), None))],
            [(1, version(3, Some("v"), None)), (2, version(8, Some("w"), None))],
            [(1, version(2, Some("v"), None)), (3, version(8, Some("w"), None))],
            [(1, version(2, Some("v"), None)), (2, version(9, Some("w"), None))],
            [(1, version(2, Some("v"), None)), (2, version(8, Some("w"), Some(9)))],
            [(1, version(2, Some("v"), None)), (2, version(8, None, None))],
        ] {
            assert_ne!(sum(&other).checksum, base.checksum, "{other:?}");
        }
        let older =
            [(1, version(2, Some("v"), None)), (1, version(1, Some("old"), None)), (2, version(8, Some("w"), None))];
        assert_eq!(sum(&older), base, "what lies beneath the horizon does not count");
    }
}
