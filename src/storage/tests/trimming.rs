//! What compaction drops, and what it must not.

use std::sync::Arc;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::{Engine, Family, Rocks, cases, crash_copy, dump_all, encoded, open};
use crate::keyspace::{side, version};
use crate::storage::mvcc::{self, ScanLimits, Version};
use crate::storage::{Batch, Memory};
use crate::types::{RequestId, ShardId, Timestamp};

const ALL: (&[u8], &[u8]) = (b"", &[0xFF; 16]);

fn put(engine: &dyn Engine, key: u8, version: &Version) {
    let mut batch = Batch::new();
    batch.put(Family::Data, version::key(&encoded(&[key]), version.timestamp), version.encode());
    engine.write(batch).unwrap();
}

fn value(millis: u64, text: &'static str) -> Version {
    Version { timestamp: Timestamp::from_millis(millis), value: Some(text.into()), expires_ms: None }
}

fn deletion(millis: u64) -> Version {
    Version { timestamp: Timestamp::from_millis(millis), value: None, expires_ms: None }
}

/// What is left, as `key@millis`.
fn left(engine: &dyn Engine) -> Vec<String> {
    dump_all(engine, Family::Data)
        .iter()
        .map(|(key, _)| {
            let (encoded, timestamp) = version::split(key).unwrap();
            // Table id (4), one byte of key (perhaps escaped), terminator.
            format!("{}@{}", encoded[4] as char, timestamp.millis())
        })
        .collect()
}

fn trim(engine: &dyn Engine, horizon_ms: u64) {
    engine.horizons().set(&encoded(b""), &encoded(&[0xFE]), Timestamp::from_millis(horizon_ms), horizon_ms);
    engine.compact(ALL.0, ALL.1).unwrap();
}

#[test]
fn history_within_the_window_stays_and_the_rest_goes() {
    let directory = tempfile::tempdir().unwrap();
    let engines: [Arc<dyn Engine>; 2] = [open(directory.path()).unwrap(), Memory::new().unwrap()];
    for engine in engines {
        for (key, version) in [
            (b'a', value(1, "a1")),
            (b'a', value(5, "a5")),
            (b'a', value(7, "a7")),
            (b'a', value(12, "a12")),
            (b'b', value(2, "b2")),
            (b'c', value(3, "c3")),
            (b'c', deletion(4)),
            (b'd', value(3, "d3")),
            (b'd', deletion(11)),
            (b'e', value(1, "e1")),
            (b'e', Version { expires_ms: Some(9), ..value(2, "e2") }),
            (b'f', Version { expires_ms: Some(11), ..value(2, "f2") }),
            (b'g', deletion(6)),
        ] {
            put(&*engine, key, &version);
        }
        let before = left(&*engine);
        engine.compact(ALL.0, ALL.1).unwrap();
        assert_eq!(left(&*engine), before, "without a horizon nothing goes");
        trim(&*engine, 10);
        assert_eq!(left(&*engine), ["a@12", "a@7", "b@2", "d@11", "d@3", "f@2"]);
        // The deleted and expired keys have not come back, not even for a reader at the horizon.
        for key in [b'c', b'e', b'g'] {
            let newest = mvcc::history(&*engine, &encoded(&[key]), Timestamp::MAX, 9).unwrap();
            assert!(newest.is_empty());
        }
        trim(&*engine, 20);
        assert_eq!(left(&*engine), ["a@12", "b@2"]);
    }
}

#[test]
fn a_horizon_that_is_not_durable_trims_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    put(&*store, b'a', &value(1, "x"));
    put(&*store, b'a', &value(2, "x"));
    store.horizons().set(&encoded(b""), &encoded(&[0xFE]), Timestamp::from_millis(10), 0);
    assert!(store.horizons().effective().iter().next().is_none());
    store.sync().unwrap();
    assert!(store.horizons().effective().iter().next().is_some());
}

#[test]
fn outcomes_expire_by_when_their_request_was_issued() {
    let directory = tempfile::tempdir().unwrap();
    let engines: [Arc<dyn Engine>; 2] = [open(directory.path()).unwrap(), Memory::new().unwrap()];
    for engine in engines {
        let mut batch = Batch::new();
        let issued = [0, 1, 127, 128, 999, 1000, 1_700_000_000_000];
        for (sequence, issued_ms) in issued.iter().enumerate() {
            let request = RequestId { client: 1, sequence: sequence as u64, issued_ms: *issued_ms };
            batch.put(Family::Data, side::outcome(&encoded(b"k"), &request), &b"an outcome"[..]);
        }
        let request = RequestId { client: 1, sequence: 1, issued_ms: 1 };
        batch.put(Family::Data, side::outcome(&encoded(b"\xFFoutside"), &request), &b"an outcome"[..]);
        batch.put(Family::Data, side::applied(ShardId(1)), &b"a state"[..]);
        engine.write(batch).unwrap();
        trim(&*engine, 1000);
        let left = dump_all(&*engine, Family::Data);
        let sequences: Vec<_> = left
            .iter()
            .filter_map(|(key, _)| side::outcome_split(key))
            .map(|(anchor, request)| (anchor == encoded(b"k"), request.sequence))
            .collect();
        assert_eq!(sequences, [(true, 5), (true, 6), (false, 1)]);
        assert_eq!(left.last().unwrap().0, side::applied(ShardId(1)));
    }
}

#[test]
fn a_partial_compaction_never_revives_what_was_deleted() {
    // Older versions in the deepest files, their deletions in newer ones: compactions of the newer files alone must
    // keep the deletions.
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    for key in 0..200 {
        put(&*store, key, &value(1, "old"));
    }
    store.compact(ALL.0, ALL.1).unwrap();
    store.horizons().set(&encoded(b""), &encoded(&[0xFE]), Timestamp::from_millis(10), 0);
    store.sync().unwrap();
    for round in 0..6 {
        for key in (round..200).step_by(6) {
            put(&*store, key, &deletion(2));
        }
        // Each turn makes a new file and lets RocksDB compact what it likes with the horizon in effect.
        store.flush_for_test();
        for key in 0..=round {
            let newest = mvcc::newest(&*store, &encoded(&[key]), Timestamp::MAX, crate::storage::Tier::Disk).unwrap();
            assert!(!matches!(newest, crate::storage::Lookup::Found(version) if version.value.is_some()));
        }
    }
    let limits = ScanLimits { rows_max: 1000, bytes_max: usize::MAX, count_only: false };
    let page = mvcc::scan(&*store, &encoded(b""), &encoded(&[0xFE]), Timestamp::MAX, 100, false, limits).unwrap();
    assert_eq!(page.rows, []);
}

#[test]
fn a_snapshot_keeps_the_history_of_its_moment() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    for (key, version) in [(b'a', value(1, "a1")), (b'a', value(5, "a5")), (b'b', value(2, "b2")), (b'b', deletion(6))]
    {
        put(&*store, key, &version);
    }
    trim(&*store, 3);
    let snapshot = store.snapshot();
    let before = dump_all(&*snapshot, Family::Data);
    trim(&*store, 10);
    assert_eq!(dump_all(&*snapshot, Family::Data), before);
    assert_eq!(left(&*store), ["a@5", "a@1", "b@6", "b@2"]);
    drop(snapshot);
    trim(&*store, 11);
    assert_eq!(left(&*store), ["a@5"]);
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    Expiring(u8, u8),
    Flush,
    Horizon,
    Compact,
    Crash,
}

proptest! {
    #![proptest_config(cases(24))]

    /// Whatever is flushed, compacted and lost in crashes: a reader at or after the horizon sees what it would see
    /// if nothing had ever been dropped.
    #[test]
    fn readers_at_the_horizon_never_notice(
        steps in vec(
            prop_oneof![
                6 => (0..5u8, any::<u8>()).prop_map(|(key, byte)| Step::Put(key, byte)),
                4 => (0..5u8).prop_map(Step::Delete),
                2 => (0..5u8, 0..9u8).prop_map(|(key, ttl)| Step::Expiring(key, ttl)),
                2 => Just(Step::Flush),
                2 => Just(Step::Horizon),
                1 => Just(Step::Compact),
                1 => Just(Step::Crash),
            ],
            1..60,
        ),
    ) {
        let mut directory = tempfile::tempdir().unwrap();
        let mut store: Arc<Rocks> = open(directory.path()).unwrap();
        let whole = Memory::new().unwrap();
        let mut now = 0;
        let mut horizon = 0;
        for step in &steps {
            now += 1;
            let at = Timestamp::from_millis(now);
            let written = match step {
                Step::Put(key, byte) => {
                    let value = Some(Bytes::copy_from_slice(&[*byte]));
                    Some((*key, Version { timestamp: at, value, expires_ms: None }))
                }
                Step::Delete(key) => Some((*key, Version { timestamp: at, value: None, expires_ms: None })),
                Step::Expiring(key, ttl) => {
                    let expires_ms = Some(now + u64::from(*ttl));
                    Some((*key, Version { timestamp: at, value: Some(Bytes::new()), expires_ms }))
                }
                Step::Flush => {
                    store.flush_for_test();
                    None
                }
                Step::Horizon => {
                    horizon = now;
                    store.horizons().set(&encoded(b""), &encoded(&[0xFE]), at, 0);
                    store.sync().unwrap();
                    None
                }
                Step::Compact => {
                    store.compact(ALL.0, ALL.1).unwrap();
                    None
                }
                Step::Crash => {
                    store.sync().unwrap();
                    let copy = crash_copy(&store, directory.path());
                    drop(store);
                    directory = copy;
                    store = open(directory.path()).unwrap();
                    store.horizons().set(&encoded(b""), &encoded(&[0xFE]), Timestamp::from_millis(horizon), 0);
                    None
                }
            };
            if let Some((key, version)) = written {
                put(&*store, key, &version);
                put(&*whole, key, &version);
            }
        }
        let (start, end) = (encoded(b""), encoded(&[0xFE]));
        let limits = ScanLimits { rows_max: 100, bytes_max: usize::MAX, count_only: false };
        for at in horizon..=now {
            let page = |engine: &dyn Engine| {
                let mut page = mvcc::scan(engine, &start, &end, Timestamp::from_millis(at), at, false, limits).unwrap();
                // What ran out by the horizon may be gone; nobody needs to be told of it, as the log has passed it.
                page.ran_out_ms = page.ran_out_ms.filter(|&ran_out_ms| ran_out_ms > horizon);
                page
            };
            prop_assert_eq!(page(&*store), page(&*whole), "at {} with the horizon {}", at, horizon);
        }
    }
}
