//! Changes found among versions, against a naive model.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::{Family, cases, encoded, open};
use crate::keyspace::version;
use crate::storage::changes::{self, Change, Interval, PageLimits};
use crate::storage::mvcc::{SCAN_STEPS_MAX, Version};
use crate::storage::{Batch, Engine, Memory};
use crate::types::Timestamp;

/// Per key, versions by time.
type Model = BTreeMap<u8, BTreeMap<u64, Version>>;

fn stored_version() -> impl Strategy<Value = (u8, u64, Version)> {
    // Times crowd on few keys, so that some have long histories and seeks happen.
    (0..5u8, 1..60u64, prop::option::weighted(0.8, 0..200u8)).prop_map(|(key, at, value)| {
        let value = value.map(|length| Bytes::from(vec![length; usize::from(length)]));
        (key, at, Version { timestamp: Timestamp(at), value, expires_ms: None })
    })
}

fn expected(model: &Model, (from, to): (u8, u8), interval: Interval, with_replaced: bool) -> Vec<Change> {
    let mut all = Vec::new();
    for (&key, versions) in model.range(from..to).rev() {
        for (&at, version) in versions.range(..=interval.upto.0).filter(|&(&at, _)| at > interval.after.0) {
            let before = versions.range(..at).next_back().map(|(_, version)| version.clone());
            let replaced = before.filter(|_| with_replaced);
            all.push(Change { key: encoded(&[key]), version: version.clone(), replaced });
        }
    }
    all
}

/// All pages of a step, one after the other.
fn step(
    engine: &dyn Engine,
    (from, to): (u8, u8),
    interval: Interval,
    with_replaced: bool,
    limits: PageLimits,
) -> Vec<Change> {
    let (start, mut before) = (encoded(&[from]), encoded(&[to]));
    let mut all = Vec::new();
    loop {
        let page = changes::page(engine, (&start, &before), interval, with_replaced, limits).unwrap();
        assert!(page.next.is_none() || !page.changes.is_empty(), "a page gets on");
        assert!(page.changes.len() <= limits.changes_max);
        all.extend(page.changes);
        match page.next {
            Some(next) => {
                assert!(start < next && next < before);
                before = next;
            }
            None => return all,
        }
    }
}

fn check(engine: &dyn Engine, model: &Model, range: (u8, u8), interval: Interval, limits: PageLimits) {
    for with_replaced in [false, true] {
        let found = step(engine, range, interval, with_replaced, limits);
        assert_eq!(found, expected(model, range, interval, with_replaced), "{interval:?}");
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn a_step_shows_every_version_of_its_interval_once_and_what_it_replaced(
        versions in vec(stored_version(), 0..150),
        range in (0..5u8, 1..6u8),
        times in (0..60u64, 0..61u64),
        limits in (1..20usize, 1..2_000usize),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let engines: [std::sync::Arc<dyn Engine>; 2] = [Memory::new().unwrap(), open(&directory.path().join("s")).unwrap()];
        let mut model = Model::new();
        for (key, at, version) in versions {
            let mut batch = Batch::new();
            batch.put(Family::Data, version::key(&encoded(&[key]), version.timestamp), version.encode());
            for engine in &engines {
                engine.write(batch.clone()).unwrap();
            }
            model.entry(key).or_default().insert(at, version);
        }
        let range = (range.0.min(range.1 - 1), range.1);
        let interval = Interval { after: Timestamp(times.0.min(times.1)), upto: Timestamp(times.0.max(times.1)) };
        let limits = PageLimits { changes_max: limits.0, bytes_max: limits.1 };
        for engine in &engines {
            check(&**engine, &model, range, interval, limits);
        }
    }
}

/// A range in which nothing has changed is left after a bounded number of looks, to be gone on with.
#[test]
fn a_page_over_keys_that_have_not_changed_ends() {
    let memory = Memory::new().unwrap();
    let mut batch = Batch::new();
    for number in 0..SCAN_STEPS_MAX + 100 {
        let version = Version { timestamp: Timestamp(1), value: Some("v".into()), expires_ms: None };
        batch.put(Family::Data, version::key(&encoded(&number.to_be_bytes()), Timestamp(1)), version.encode());
    }
    memory.write(batch).unwrap();
    let limits = PageLimits { changes_max: 10, bytes_max: 1_000 };
    let interval = Interval { after: Timestamp(1), upto: Timestamp(9) };
    let (start, end) = (encoded(b""), encoded(b"\xff"));
    let first = changes::page(&*memory, (&start, &end), interval, false, limits).unwrap();
    assert!(first.changes.is_empty());
    let next = first.next.expect("there is more");
    let (left, _) = version::split(&next[..next.len() - 1]).expect("a version");
    assert_eq!(left, &encoded(&99_u64.to_be_bytes())[..]);
    let second = changes::page(&*memory, (&start, &next), interval, false, limits).unwrap();
    assert_eq!((second.changes.len(), second.next), (0, None));
}

/// A key with many versions takes as many pages as it needs, and its versions come up in their order.
#[test]
fn a_page_may_end_between_the_versions_of_a_key() {
    let memory = Memory::new().unwrap();
    let mut batch = Batch::new();
    for at in 1..=1_000 {
        let version = Version { timestamp: Timestamp(at), value: Some(vec![0; 100].into()), expires_ms: None };
        batch.put(Family::Data, version::key(&encoded(b"hot"), Timestamp(at)), version.encode());
    }
    memory.write(batch).unwrap();
    let limits = PageLimits { changes_max: 64, bytes_max: 2_000 };
    let (start, mut before) = (encoded(b""), encoded(b"\xff"));
    let interval = Interval { after: Timestamp(300), upto: Timestamp(900) };
    let mut told = Vec::new();
    loop {
        let page = changes::page(&*memory, (&start, &before), interval, true, limits).unwrap();
        assert!(page.changes.len() <= 10, "two versions of a hundred bytes and a key each");
        told.extend(page.changes);
        let Some(next) = page.next else { break };
        before = next;
    }
    let times: Vec<u64> = told.iter().map(|change| change.version.timestamp.0).collect();
    assert_eq!(times, (301..=900).collect::<Vec<u64>>());
    for change in &told {
        let replaced = change.replaced.as_ref().expect("the history has it");
        assert_eq!(replaced.timestamp, change.version.timestamp.previous());
    }
}
