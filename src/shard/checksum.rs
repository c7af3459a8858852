//! The checksum of a shard's content at one position of its log, equal on all replicas.
//!
//! It sums the *logical* content, not what happens to lie on a disk: every version after the horizon, and of the older
//! ones only the newest of each key if it is a value that has not run out; plus the outcome records that requests
//! may still ask for. What compaction has dropped, or not yet, makes no difference.

use super::machine::ChecksumMark;
use super::outcomes::Record;
use crate::keyspace::{side, version};
use crate::storage::mvcc::Version;
use crate::storage::{self, Family};
use crate::types::Timestamp;

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
        if record.issued_ms >= state.requests_from_ms && record.decided <= state.last_timestamp {
            add(key, value);
        }
        cursor.next();
    }
    cursor.status()?;
    Ok(Checksum { index: mark.index, checksum: hasher.finalize(), versions })
}

/// Whether the newest version at or before the horizon is content: a value that had not run out by then.
fn lives_at(horizon: Timestamp, timestamp: Timestamp, value: &[u8]) -> storage::Result<bool> {
    let version = Version::decode(timestamp, bytes::Bytes::copy_from_slice(value))?;
    Ok(version.value.is_some() && version.expires_ms.is_none_or(|expires| expires > horizon.millis()))
}
