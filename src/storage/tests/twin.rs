//! The twin and RocksDB under the same random operations must agree on everything, crashes included.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::{Engine, Family, Reader, Rocks, cases, crash_copy, dump, dump_all, encoded, found, open, table};
use crate::keyspace::version;
use crate::storage::{Batch, Memory, Tier};
use crate::types::Timestamp;

const FAMILIES: [Family; 3] = [Family::Log, Family::Raft, Family::Data];
const KEYS: u8 = 4;
const TIMES: u8 = 6;

/// A place in a small space: a key and a time.
type Place = (u8, u8);

fn data_key((key, time): Place) -> Bytes {
    // Versions lie at odd times, so that reads also fall in between.
    version::key(&encoded(&[b'a' + key]), Timestamp(u64::from(time) * 2 + 1))
}

fn key_of(family: Family, place: Place) -> Bytes {
    match family {
        Family::Data => data_key(place),
        Family::Log | Family::Raft => Bytes::copy_from_slice(&[place.0, place.1]),
    }
}

#[derive(Clone, Debug)]
enum Change {
    Put(Family, Place, u16),
    Delete(Family, Place),
    DeleteRange(Family, Place, Place),
}

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<Change>),
    Sync,
    Snapshot,
    Crash,
    Reopen,
    Compact,
    /// Replaces the versions of the keys from the first on, without the second, by those at the places.
    Install(u8, u8, Vec<Place>, u16),
    Walk(Family, Place, Place, Vec<Move>),
}

#[derive(Clone, Debug)]
enum Move {
    First,
    Last,
    Seek(Place),
    SeekBack(Place),
    Next,
    Previous,
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![1 => Just(Family::Log), 1 => Just(Family::Raft), 3 => Just(Family::Data)]
}

fn place() -> impl Strategy<Value = Place> {
    (0..KEYS, 0..TIMES)
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (family(), place(), any::<u16>()).prop_map(|(family, place, value)| Change::Put(family, place, value)),
        2 => (family(), place()).prop_map(|(family, place)| Change::Delete(family, place)),
        1 => (family(), place(), place()).prop_map(|(family, from, to)| Change::DeleteRange(family, from, to)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let moves = prop_oneof![
        1 => Just(Move::First),
        1 => Just(Move::Last),
        1 => place().prop_map(Move::Seek),
        1 => place().prop_map(Move::SeekBack),
        4 => Just(Move::Next),
        4 => Just(Move::Previous),
    ];
    prop_oneof![
        8 => vec(change(), 1..8).prop_map(Step::Write),
        2 => Just(Step::Sync),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Crash),
        1 => Just(Step::Reopen),
        1 => Just(Step::Compact),
        1 => (0..KEYS, 0..=KEYS, vec(place(), 0..5), any::<u16>())
            .prop_map(|(from, to, places, value)| Step::Install(from, to, places, value)),
        3 => (family(), place(), place(), vec(moves, 1..12))
            .prop_map(|(family, from, to, moves)| Step::Walk(family, from, to, moves)),
    ]
}

fn batch(changes: &[Change]) -> Batch {
    let mut batch = Batch::new();
    for change in changes {
        match *change {
            Change::Put(family, place, value) => {
                batch.put(family, key_of(family, place), Bytes::copy_from_slice(&value.to_be_bytes()));
            }
            Change::Delete(family, place) => batch.delete(family, key_of(family, place)),
            Change::DeleteRange(family, from, to) => {
                batch.delete_range(family, key_of(family, from), key_of(family, to));
            }
        }
    }
    batch
}

fn compare(rocks: &dyn Reader, memory: &dyn Reader) {
    for family in FAMILIES {
        let expected = dump_all(memory, family);
        assert_eq!(dump_all(rocks, family), expected, "{family:?}");
        for (key, value) in expected {
            assert_eq!(found(rocks.get(family, &key, Tier::Disk).unwrap()), Some(value));
        }
    }
    for key in 0..KEYS {
        let prefix = encoded(&[b'a' + key]);
        for time in 0..=u64::from(TIMES) * 2 {
            let from = version::key(&prefix, Timestamp(time));
            let expected = memory.first_version(&prefix, &from, Tier::Disk).unwrap();
            assert_eq!(rocks.first_version(&prefix, &from, Tier::Disk).unwrap(), expected, "{prefix:?} at {time}");
            // The cache may not know, but must not be wrong.
            let cached = rocks.first_version(&prefix, &from, Tier::Cache).unwrap();
            assert!(cached == expected || cached == crate::storage::Lookup::NeedsDisk);
        }
        let shortest = memory.first_version(&prefix, &prefix, Tier::Disk).unwrap();
        assert_eq!(rocks.first_version(&prefix, &prefix, Tier::Disk).unwrap(), shortest);
    }
}

fn walk(reader: &dyn Reader, family: Family, from: Place, to: Place, moves: &[Move]) -> Vec<Option<(Bytes, Bytes)>> {
    let mut cursor = reader.cursor(family, &key_of(family, from), &key_of(family, to));
    let mut seen = Vec::new();
    for step in moves {
        match step {
            Move::First => cursor.seek_first(),
            Move::Last => cursor.seek_last(),
            Move::Seek(place) => cursor.seek(&key_of(family, *place)),
            Move::SeekBack(place) => cursor.seek_back(&key_of(family, *place)),
            Move::Next => cursor.next(),
            Move::Previous => cursor.previous(),
        }
        seen.push(cursor.entry().map(|(key, value)| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))));
    }
    cursor.status().unwrap();
    seen
}

struct Twins {
    directory: tempfile::TempDir,
    rocks: Option<Arc<Rocks>>,
    memory: Arc<Memory>,
    snapshots: Vec<(Arc<dyn Reader>, Arc<dyn Reader>)>,
    installs: u32,
}

impl Twins {
    fn rocks(&self) -> &Arc<Rocks> {
        self.rocks.as_ref().expect("open between steps")
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Write(changes) => {
                self.rocks().write(batch(changes)).unwrap();
                self.memory.write(batch(changes)).unwrap();
            }
            Step::Sync => {
                self.rocks().sync().unwrap();
                self.memory.sync().unwrap();
            }
            Step::Snapshot => self.snapshots.push((self.rocks().snapshot(), self.memory.snapshot())),
            Step::Crash => {
                self.snapshots.clear();
                self.memory.crash();
                let copy = crash_copy(self.rocks(), self.directory.path());
                self.rocks = None;
                self.directory = copy;
                self.rocks = Some(open(self.directory.path()).unwrap());
            }
            Step::Reopen => {
                self.snapshots.clear();
                self.rocks = None;
                self.memory.sync().unwrap();
                self.rocks = Some(open(self.directory.path()).unwrap());
            }
            Step::Compact => {
                self.rocks().compact(b"", &[0xFF; 16]).unwrap();
                self.memory.compact(b"", &[0xFF; 16]).unwrap();
            }
            Step::Install(from, to, places, value) => {
                let range = (encoded(&[b'a' + from]), encoded(&[b'a' + to]));
                let inside: BTreeMap<Bytes, Bytes> = places
                    .iter()
                    .filter(|(key, _)| from <= key && key < to)
                    .map(|place| (data_key(*place), Bytes::copy_from_slice(&value.to_be_bytes())))
                    .collect();
                let entries: Vec<_> = inside.into_iter().collect();
                self.installs += 1;
                for engine in [self.rocks().clone() as Arc<dyn Engine>, self.memory.clone()] {
                    let files: Vec<_> = entries
                        .chunks(2)
                        .enumerate()
                        .map(|(number, chunk)| table(&*engine, &format!("in-{}-{number}", self.installs), chunk))
                        .collect();
                    engine.install(&format!("test-{}", self.installs), &vec![range.clone()], &files).unwrap();
                    assert_eq!(std::fs::read_dir(engine.staging()).unwrap().count(), 0, "the files are consumed");
                }
                let (start, end) = range;
                if start < end {
                    assert_eq!(dump(&**self.rocks(), Family::Data, &start, &end), entries);
                }
            }
            Step::Walk(family, from, to, moves) => {
                let expected = walk(&*self.memory, *family, *from, *to, moves);
                assert_eq!(walk(&**self.rocks(), *family, *from, *to, moves), expected);
            }
        }
        compare(&**self.rocks(), &*self.memory);
    }
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn twins_agree(steps in vec(step(), 1..40)) {
        let directory = tempfile::tempdir().unwrap();
        let rocks = Some(open(directory.path()).unwrap());
        let memory = Memory::new().unwrap();
        let mut twins = Twins { directory, rocks, memory, snapshots: Vec::new(), installs: 0 };
        for step in &steps {
            twins.step(step);
        }
        for (rocks, memory) in &twins.snapshots {
            compare(&**rocks, &**memory);
        }
    }
}
