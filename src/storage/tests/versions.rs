//! Reads of versions against a naive model, on both engines.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::{Engine, Family, cases, encoded, found, open};
use crate::keyspace::version;
use crate::storage::mvcc::{self, Origin, SCAN_STEPS_MAX, ScanLimits, Version};
use crate::storage::{Batch, Error, Memory, Tier};
use crate::types::{RequestId, Timestamp};

fn value(timestamp: u64, value: &'static str) -> Version {
    Version { timestamp: Timestamp(timestamp), value: Some(value.into()), expires_ms: None }
}

fn put(engine: &dyn Engine, key: &[u8], version: &Version) {
    let mut batch = Batch::new();
    batch.put(Family::Data, version::key(&encoded(key), version.timestamp), version.encode());
    engine.write(batch).unwrap();
}

const ALL: ScanLimits = ScanLimits { rows_max: usize::MAX, bytes_max: usize::MAX, count_only: false };

#[test]
fn stored_versions_are_golden() {
    let stays = value(9, "v");
    assert_eq!(&stays.encode()[..], b"\x00v");
    let deletion = Version { timestamp: Timestamp(9), value: None, expires_ms: None };
    assert_eq!(&deletion.encode()[..], b"\x01");
    let expires = Version { expires_ms: Some(0x0102), ..value(9, "v") };
    assert_eq!(&expires.encode()[..], b"\x02\0\0\0\0\0\0\x01\x02v");
    let origin = Origin { request: RequestId { client: 1, sequence: 2, issued_ms: 3 }, fingerprint: 4 };
    let said = b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\x04";
    assert_eq!(stays.encode_from(Some(&origin)), [&b"\x04"[..], said, b"v"].concat());
    let both = expires.encode_from(Some(&origin));
    assert_eq!(both, [&b"\x06\0\0\0\0\0\0\x01\x02"[..], said, b"v"].concat());
    assert_eq!(&deletion.encode_from(Some(&origin))[..], b"\x01");
    for version in [&stays, &expires] {
        let stored = version.encode_from(Some(&origin));
        assert_eq!((Origin::of(&stored), Origin::of(&version.encode())), (Some(origin), None));
        assert_eq!(Version::decode(version.timestamp, stored.clone()).unwrap(), *version);
        let cut = stored.slice(..stored.len() - 2);
        assert!(Version::decode(version.timestamp, cut.clone()).is_err() && Origin::of(&cut).is_none());
        assert_eq!(mvcc::lives_at(&stored, Timestamp::from_millis(0x0101)), Some(true));
    }
    assert_eq!(mvcc::lives_at(&both, Timestamp::from_millis(0x0102)), Some(false));
    for version in [stays, deletion, expires.clone(), value(9, "")] {
        assert_eq!(Version::decode(Timestamp(9), version.encode()).unwrap(), version);
    }
    assert!(expires.lives_at(0x0101) && !expires.lives_at(0x0102));
    for malformed in [&b""[..], b"\x01x", b"\x02\0\0", b"\x03"] {
        let decoded = Version::decode(Timestamp(9), Bytes::copy_from_slice(malformed));
        assert!(matches!(decoded, Err(Error::Corruption(_))), "{malformed:?}");
    }
}

/// The model: per key, versions by time.
type Model = BTreeMap<u8, BTreeMap<u64, Version>>;

fn visible(model: &Model, key: u8, at: u64) -> Option<Version> {
    model.get(&key)?.range(..=at).next_back().map(|(_, version)| version.clone())
}

fn rows(model: &Model, from: u8, to: u8, at: u64, now_ms: u64, reverse: bool) -> Vec<(Bytes, Version)> {
    let mut rows: Vec<_> = (from..to)
        .filter_map(|key| Some((encoded(&[key]), visible(model, key, at)?)))
        .filter(|(_, version)| version.lives_at(now_ms))
        .collect();
    if reverse {
        rows.reverse();
    }
    rows
}

fn stored_version() -> impl Strategy<Value = (u8, u64, Version)> {
    // Times crowd on few keys, so that some have long histories and seeks happen.
    (0..6u8, 0..40u64, prop_oneof![4 => Just(0), 2 => Just(1), 1 => 2..60u64], vec(any::<u8>(), 0..6)).prop_map(
        |(key, time, kind, bytes)| {
            let key = if key < 3 { key } else { 0 };
            let version = match kind {
                0 => Version { timestamp: Timestamp(time), value: Some(bytes.into()), expires_ms: None },
                1 => Version { timestamp: Timestamp(time), value: None, expires_ms: None },
                expires => Version { timestamp: Timestamp(time), value: Some(bytes.into()), expires_ms: Some(expires) },
            };
            (key, time, version)
        },
    )
}

/// All pages of a scan, by following `next`.
fn paged(
    engine: &dyn Engine,
    (from, to): (u8, u8),
    at: u64,
    now_ms: u64,
    reverse: bool,
    limits: ScanLimits,
) -> (Vec<(Bytes, Version)>, u64) {
    let (mut start, mut end) = (encoded(&[from]), encoded(&[to]));
    let (mut rows, mut count) = (Vec::new(), 0);
    for _ in 0..100 {
        let page = mvcc::scan(engine, &start, &end, Timestamp(at), now_ms, reverse, limits).unwrap();
        assert!(page.count <= limits.rows_max as u64);
        rows.extend(page.rows);
        count += page.count;
        match page.next {
            None => return (rows, count),
            Some(next) if reverse => end = next,
            Some(next) => start = next,
        }
    }
    panic!("a scan of a few keys does not end");
}

proptest! {
    #![proptest_config(cases(30))]

    #[test]
    fn reads_equal_the_model(
        versions in vec(stored_version(), 0..120),
        reads in vec((0..4u8, 0..4u8, 0..44u64, 0..64u64, any::<bool>(), 1..4usize, 0..20usize), 1..12),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let engines: [Arc<dyn Engine>; 2] = [open(directory.path()).unwrap(), Memory::new().unwrap()];
        let mut model = Model::new();
        for (key, time, version) in &versions {
            model.entry(*key).or_default().insert(*time, version.clone());
            for engine in &engines {
                put(&**engine, &[*key], version);
            }
        }
        for engine in &engines {
            for &(from, to, at, now_ms, reverse, rows_max, bytes_max) in &reads {
                let key = from;
                let newest = mvcc::newest(&**engine, &encoded(&[key]), Timestamp(at), Tier::Disk).unwrap();
                prop_assert_eq!(found(newest), visible(&model, key, at));

                let expected = rows(&model, from, to, at, now_ms, reverse);
                let limits = ScanLimits { rows_max, bytes_max, count_only: false };
                let (rows, count) = paged(&**engine, (from, to), at, now_ms, reverse, limits);
                prop_assert_eq!(&rows, &expected);
                prop_assert_eq!(count, expected.len() as u64);
                let limits = ScanLimits { rows_max, bytes_max, count_only: true };
                let (rows, count) = paged(&**engine, (from, to), at, now_ms, reverse, limits);
                prop_assert_eq!((rows.len(), count), (0, expected.len() as u64));

                let history = mvcc::history(&**engine, &encoded(&[key]), Timestamp(at), rows_max).unwrap();
                let expected: Vec<_> = model
                    .get(&key)
                    .map(|versions| versions.range(..at).rev().take(rows_max).map(|(_, version)| version.clone()))
                    .into_iter()
                    .flatten()
                    .collect();
                prop_assert_eq!(history, expected);
            }
        }
    }
}

#[test]
fn a_page_over_many_deleted_keys_ends_early_and_goes_on() {
    let engine = Memory::new().unwrap();
    let deleted = SCAN_STEPS_MAX as u32 + 100;
    let mut batch = Batch::new();
    for number in 0..deleted {
        let key = version::key(&encoded(&number.to_be_bytes()), Timestamp(1));
        batch.put(Family::Data, key, Version { timestamp: Timestamp(1), value: None, expires_ms: None }.encode());
    }
    engine.write(batch).unwrap();
    put(&*engine, &[0xFF], &value(1, "last"));
    put(&*engine, &[], &value(1, "first"));
    for reverse in [false, true] {
        let (start, end) = (encoded(&[]), encoded(&[0xFF, 0xFF]));
        let page = mvcc::scan(&*engine, &start, &end, Timestamp(5), 0, reverse, ALL).unwrap();
        assert_eq!(page.count, 1, "only the first in scan order");
        let next = page.next.unwrap();
        let (start, end) = if reverse { (start, next) } else { (next, end) };
        let page = mvcc::scan(&*engine, &start, &end, Timestamp(5), 0, reverse, ALL).unwrap();
        assert_eq!((page.count, page.next), (1, None));
    }
}

#[test]
fn a_scan_tells_a_foreign_key_from_a_version() {
    let engine = Memory::new().unwrap();
    let mut batch = Batch::new();
    batch.put(Family::Data, &b"short"[..], &b"?"[..]);
    engine.write(batch).unwrap();
    let scanned = mvcc::scan(&*engine, b"a", b"z", Timestamp(5), 0, false, ALL);
    assert!(matches!(scanned, Err(Error::Corruption(_))));
}
