//! RocksDB and its twin in memory under the same steps, and both against what reading versions means.
//!
//! One store is kept open over many inputs, each in a table and groups of its own, since opening one takes longer than
//! a thousand inputs. What must hold: the engines agree on everything after every step; pages put together are the
//! rows that a reader at that moment sees, in both directions; what compaction drops, nobody at or after the horizon
//! misses; and a snapshot stays as it was. Crashes are for the twins of `src/storage/tests/twin.rs`, which may look
//! inside.
#![no_main]

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use support::Pieces;
use trivet::keyspace::{Layout, version as stored};
use trivet::storage::mvcc::{self, ScanLimits, Version};
use trivet::storage::{Batch, Engine, Family, Lookup, Memory, Options, Reader, Rocks, Tier, log_keys};
use trivet::types::{Partitioning, ShardId, TableId, Timestamp};

/// Steps of one input, and how many of them may be slow ones: those that write or read files of the store.
const STEPS_MAX: usize = 40;
const SLOW_STEPS_MAX: u32 = 3;
/// Inputs after which the store is begun anew: what they left behind costs time.
const INPUTS_PER_STORE: u32 = 2_000;
/// Places in the small space of an input.
const KEYS: u8 = 4;
const TIMES: u8 = 10;

fuzz_target!(|data: &[u8]| check(&mut Pieces(data)));

/// A key and a time.
#[derive(Clone, Copy, Debug)]
struct Place(u8, u8);

#[derive(Clone, Copy, Debug)]
enum Content {
    Value(u8),
    Deletion,
    Expiring(u8),
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Version(Place, Content),
    Entry(Place),
    Vote(u8),
    Forget(Place),
    ForgetKeys(u8, u8),
    ForgetEntries(Place, Place),
}

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<Change>),
    Sync,
    Snapshot,
    /// Pages of a table between two keys as of a time, read at another.
    Scan {
        from: u8,
        to: u8,
        at: u8,
        now: u8,
        reverse: bool,
        rows: u8,
    },
    History(Place, u8),
    Walk(Family, Place, Place, Vec<Move>),
    /// Replaces the versions of the keys from the first on, without the second.
    Install(u8, u8, Vec<(Place, Content)>),
    /// Lets go what a reader at this time does not see, and compacts.
    Trim(u8),
    Reopen,
}

#[derive(Clone, Copy, Debug)]
enum Move {
    First,
    Last,
    Seek(Place),
    SeekBack(Place),
    Next,
    Previous,
}

fn place(input: &mut Pieces<'_>) -> Place {
    let byte = input.byte();
    Place(byte % KEYS, byte / KEYS % TIMES)
}

fn version(input: &mut Pieces<'_>) -> (Place, Content) {
    let (place, byte) = (place(input), input.byte());
    let content = match byte % 8 {
        0..=4 => Content::Value(byte),
        5 => Content::Deletion,
        _ => Content::Expiring(byte / 8 % (TIMES + 2)),
    };
    (place, content)
}

/// The next step; few bytes each, so that a changed byte changes one thing.
fn step(input: &mut Pieces<'_>) -> Step {
    let byte = input.byte();
    let count = 1 + usize::from(byte / 16 % 8);
    match byte % 16 {
        0..=4 => Step::Write(
            (0..count).map(|_| version(input)).map(|(place, content)| Change::Version(place, content)).collect(),
        ),
        5 => Step::Write((0..count).map(|_| other(input)).collect()),
        6 => Step::Sync,
        7 => Step::Snapshot,
        8..=10 => {
            let (keys, at, now) = (input.byte(), input.byte(), input.byte());
            Step::Scan { from: keys % 8, to: keys / 8 % 8, at, now, reverse: byte & 0x10 != 0, rows: byte / 32 % 4 }
        }
        11 => Step::History(place(input), byte / 16 % 5),
        12 => {
            let family = if byte & 0x80 == 0 { Family::Data } else { Family::Log };
            let (from, to) = (place(input), place(input));
            Step::Walk(family, from, to, (0..count).map(|_| a_move(input)).collect())
        }
        13 => {
            let keys = input.byte();
            Step::Install(keys % 8, keys / 8 % 8, (0..count).map(|_| version(input)).collect())
        }
        14 => Step::Trim(byte / 16 % TIMES),
        _ => Step::Reopen,
    }
}

fn other(input: &mut Pieces<'_>) -> Change {
    let byte = input.byte();
    match byte % 8 {
        0 | 1 => Change::Entry(place(input)),
        2 => Change::Vote(byte),
        3 | 4 => Change::Forget(place(input)),
        5 | 6 => Change::ForgetKeys(byte / 8 % 8, byte / 64 + 1),
        _ => Change::ForgetEntries(place(input), place(input)),
    }
}

fn a_move(input: &mut Pieces<'_>) -> Move {
    match input.byte() % 10 {
        0 => Move::First,
        1 => Move::Last,
        2 => Move::Seek(place(input)),
        3 => Move::SeekBack(place(input)),
        4..=6 => Move::Next,
        _ => Move::Previous,
    }
}

/// The store that outlives an input.
struct Store {
    directory: tempfile::TempDir,
    rocks: Option<Arc<Rocks>>,
    inputs: u32,
}

impl Store {
    fn new() -> Store {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut store = Store { directory, rocks: None, inputs: 0 };
        store.open();
        store
    }

    fn open(&mut self) {
        self.rocks = None;
        self.rocks = Some(Rocks::open(&Options::new(self.directory.path())).expect("the store opens"));
    }

    fn rocks(&self) -> &Arc<Rocks> {
        self.rocks.as_ref().expect("open between steps")
    }
}

static STORE: Mutex<Option<Store>> = Mutex::new(None);

fn check(input: &mut Pieces<'_>) {
    let mut kept = STORE.lock().expect("no input fails twice");
    let mut store = kept.take().filter(|store| store.inputs < INPUTS_PER_STORE).unwrap_or_else(Store::new);
    store.inputs += 1;
    let table = store.inputs;
    let partitioning = Partitioning::Range { group_delimiter: None };
    let mut twins = Twins {
        layout: Layout { table: TableId(table), partitioning },
        group: ShardId(u64::from(table)),
        store,
        memory: Memory::new().expect("a temporary directory"),
        snapshots: Vec::new(),
        horizon: Timestamp::ZERO,
        written: [0; KEYS as usize],
        covered: [0; KEYS as usize],
        slow_steps: 0,
    };
    for _ in 0..STEPS_MAX {
        if input.0.is_empty() {
            break;
        }
        twins.step(&step(input));
    }
    twins.compare();
    for (rocks, memory) in &twins.snapshots {
        assert_eq!(twins.dump(&**rocks), twins.dump(&**memory), "a snapshot");
    }
    twins.snapshots.clear();
    let (start, end) = twins.layout.table_range();
    twins.store.rocks().horizons().clear(&start, &end);
    *kept = Some(twins.store);
}

struct Twins {
    layout: Layout,
    group: ShardId,
    store: Store,
    memory: Arc<Memory>,
    snapshots: Vec<(Arc<dyn Reader>, Arc<dyn Reader>)>,
    /// What lies before it may be gone from one engine and not from the other.
    horizon: Timestamp,
    /// The times that were ever written of each key, and those that were deleted with their range, as bits. Nothing
    /// older than these is written afterwards, since a shard's time ascends: RocksDB shows a compaction filter what is
    /// deleted so, and it counts as if it were there.
    written: [u16; KEYS as usize],
    covered: [u16; KEYS as usize],
    slow_steps: u32,
}

type Entries = Vec<(Bytes, Bytes)>;

impl Twins {
    fn key(&self, key: u8) -> Bytes {
        // One key begins with another, one holds the byte that is escaped.
        self.layout.encode([&b"a"[..], b"a\0", b"a\0b", b"b", b"\xFF"][usize::from(key).min(4)])
    }

    fn time(time: u8) -> Timestamp {
        Timestamp::from_millis(u64::from(time % TIMES))
    }

    fn data_key(&self, place: Place) -> Bytes {
        stored::key(&self.key(place.0), Twins::time(place.1))
    }

    fn entry_key(&self, place: Place) -> Bytes {
        log_keys::entry(self.group, u64::from(place.1 % TIMES))
    }

    fn content(content: Content) -> Bytes {
        let version = |value: Option<u8>, expires_ms: Option<u8>| Version {
            timestamp: Timestamp::ZERO,
            value: value.map(|byte| Bytes::copy_from_slice(&[byte; 3])),
            expires_ms: expires_ms.map(u64::from),
        };
        match content {
            Content::Value(value) => version(Some(value), None),
            Content::Deletion => version(None, None),
            Content::Expiring(at) => version(Some(at), Some(at)),
        }
        .encode()
    }

    /// Versions at or before the horizon are never written, nor any older than what was deleted with its range.
    fn may_write(&self, place: Place) -> bool {
        let time = Twins::time(place.1);
        (time > self.horizon || self.horizon == Timestamp::ZERO) && self.covered_after(place) == 0
    }

    /// The times of a key after a place's that were deleted with their range, as bits.
    fn covered_after(&self, place: Place) -> u16 {
        self.covered[usize::from(place.0)] & (u16::MAX << (place.1 + 1))
    }

    /// Of what is to be changed, what a shard could do after all before.
    fn possible(&mut self, changes: &[Change]) -> Vec<Change> {
        let mut possible = Vec::new();
        for change in changes {
            match *change {
                Change::Version(place, _) if !self.may_write(place) => continue,
                Change::Version(place, _) => self.written[usize::from(place.0)] |= 1 << place.1,
                // What was forgotten by hand is no history that a horizon could speak of.
                Change::Forget(_) | Change::ForgetKeys(..) if self.horizon > Timestamp::ZERO => continue,
                Change::ForgetKeys(from, to) => self.cover(from, to),
                _ => {}
            }
            possible.push(*change);
        }
        possible
    }

    /// Notes that the keys from the first on, without the second, are deleted as a range.
    fn cover(&mut self, from: u8, to: u8) {
        for key in usize::from(from.min(KEYS))..usize::from(to.min(KEYS)) {
            self.covered[key] |= self.written[key];
        }
    }

    fn batch(&self, changes: &[Change]) -> Batch {
        let mut batch = Batch::new();
        for change in changes {
            match *change {
                Change::Version(place, content) => {
                    batch.put(Family::Data, self.data_key(place), Twins::content(content));
                }
                Change::Entry(place) => batch.put(Family::Log, self.entry_key(place), vec![place.0; 2]),
                Change::Vote(value) => batch.put(Family::Raft, log_keys::vote(self.group), vec![value]),
                Change::Forget(place) => batch.delete(Family::Data, self.data_key(place)),
                // Whole keys, as installs and drops do it.
                Change::ForgetKeys(from, to) => batch.delete_range(Family::Data, self.key(from), self.key(to)),
                Change::ForgetEntries(from, to) => {
                    batch.delete_range(Family::Log, self.entry_key(from), self.entry_key(to));
                }
            }
        }
        batch
    }

    fn step(&mut self, step: &Step) {
        let slow = matches!(step, Step::Install(..) | Step::Trim(_) | Step::Reopen);
        self.slow_steps += u32::from(slow);
        if slow && self.slow_steps > SLOW_STEPS_MAX {
            return;
        }
        match step {
            Step::Write(changes) => {
                let changes = self.possible(changes);
                self.each(|engine| engine.write(self.batch(&changes)).expect("a batch is taken"));
            }
            Step::Sync => self.each(|engine| engine.sync().expect("a sync works")),
            Step::Snapshot => {
                // After a trim one engine may still hold what the other has let go.
                if self.snapshots.len() < 3 && self.horizon == Timestamp::ZERO {
                    self.snapshots.push((self.store.rocks().snapshot(), self.memory.snapshot()));
                }
            }
            Step::Scan { from, to, at, now, reverse, rows } => self.scan(*from, *to, *at, *now, *reverse, *rows),
            Step::History(place, rows) => {
                let (key, before, rows) = (self.key(place.0), Twins::time(place.1), usize::from(*rows));
                if self.horizon == Timestamp::ZERO {
                    let read = |reader: &dyn Reader| mvcc::history(reader, &key, before, rows).expect("readable");
                    assert_eq!(read(&**self.store.rocks()), read(&*self.memory));
                }
            }
            Step::Walk(family, from, to, moves) => {
                if self.horizon == Timestamp::ZERO || *family == Family::Log {
                    let walked = |reader: &dyn Reader| self.walk(reader, *family, *from, *to, moves);
                    assert_eq!(walked(&**self.store.rocks()), walked(&*self.memory));
                }
            }
            Step::Install(from, to, versions) => self.install(*from, *to, versions),
            Step::Trim(time) => self.trim(Twins::time(*time)),
            Step::Reopen => {
                if self.snapshots.is_empty() {
                    self.store.open();
                    self.tell_horizon();
                }
            }
        }
        if slow {
            self.compare();
        }
    }

    fn each(&self, work: impl Fn(&dyn Engine)) {
        work(&**self.store.rocks());
        work(&*self.memory);
    }

    /// Everything of this input in one engine.
    fn dump(&self, reader: &dyn Reader) -> (Entries, Entries) {
        let (start, end) = self.layout.table_range();
        let data = entries(reader, Family::Data, &start, &end);
        let (start, end) = log_keys::entries_range(self.group, 0, u64::MAX);
        (data, entries(reader, Family::Log, &start, &end))
    }

    fn compare(&self) {
        let (rocks, memory) = (&**self.store.rocks() as &dyn Reader, &*self.memory as &dyn Reader);
        let vote = |reader: &dyn Reader| reader.get(Family::Raft, &log_keys::vote(self.group), Tier::Disk);
        assert_eq!(vote(rocks).expect("readable"), vote(memory).expect("readable"));
        let (found, expected) = (self.dump(rocks), self.dump(memory));
        assert_eq!(found.1, expected.1, "the log");
        if self.horizon == Timestamp::ZERO {
            assert_eq!(found.0, expected.0, "the data");
        }
        for key in 0..KEYS {
            let encoded = self.key(key);
            for time in (0..TIMES).map(Twins::time).chain([Timestamp::MAX]).filter(|time| *time >= self.horizon) {
                let expected = self.living(&expected.0, &encoded, time);
                for tier in [Tier::Disk, Tier::Cache] {
                    match mvcc::newest(rocks, &encoded, time, tier).expect("readable") {
                        Lookup::Found(version) => {
                            assert_eq!(Some(version).filter(|version| self.counts(version)), expected);
                        }
                        Lookup::Missing => assert_eq!(None, expected, "{encoded:?} at {time:?}"),
                        Lookup::NeedsDisk => assert_eq!(tier, Tier::Cache),
                    }
                }
            }
        }
    }

    /// Whether every engine still has a version: one that was dead at the horizon may be gone.
    fn counts(&self, version: &Version) -> bool {
        version.timestamp > self.horizon || version.lives_at(self.horizon.millis())
    }

    /// The newest version of a key at a time, by looking at all of them.
    fn living(&self, data: &[(Bytes, Bytes)], encoded: &[u8], at: Timestamp) -> Option<Version> {
        versions_of(data)
            .remove(encoded)?
            .into_iter()
            .rfind(|version| version.timestamp <= at)
            .filter(|v| self.counts(v))
    }

    /// Pages put together, against the rows by looking at all versions.
    fn scan(&self, from: u8, to: u8, at: u8, now: u8, reverse: bool, rows: u8) {
        let (start, end) = (self.key(from), self.key(to));
        let at = Twins::time(at).max(self.horizon);
        let now_ms = u64::from(now % (TIMES + 2)).max(self.horizon.millis());
        let (data, _) = self.dump(&*self.memory);
        let mut expected: Vec<(Bytes, Version)> = versions_of(&data)
            .into_iter()
            .filter(|(key, _)| start <= *key && *key < end)
            .filter_map(|(key, versions)| {
                let newest = versions.into_iter().rfind(|version| version.timestamp <= at)?;
                newest.lives_at(now_ms).then_some((key, newest))
            })
            .collect();
        if reverse {
            expected.reverse();
        }
        for count_only in [false, true] {
            let limits = ScanLimits { rows_max: usize::from(rows), bytes_max: 1 << 20, count_only };
            for reader in [&**self.store.rocks() as &dyn Reader, &*self.memory] {
                let (mut start, mut end) = (start.clone(), end.clone());
                let (mut found, mut count) = (Vec::new(), 0);
                for page_number in 0.. {
                    assert!(page_number <= 2 * KEYS, "pages without end");
                    let page = mvcc::scan(reader, &start, &end, at, now_ms, reverse, limits).expect("readable");
                    assert!(page.count <= limits.rows_max.max(1) as u64);
                    count += page.count;
                    found.extend(page.rows);
                    match page.next {
                        None => break,
                        Some(next) if reverse => end = next,
                        Some(next) => start = next,
                    }
                }
                assert_eq!(count, expected.len() as u64);
                assert!(count_only || found == expected, "{found:?}\n{expected:?}");
            }
        }
    }

    fn walk(
        &self,
        reader: &dyn Reader,
        family: Family,
        from: Place,
        to: Place,
        moves: &[Move],
    ) -> Vec<Option<(Bytes, Bytes)>> {
        let key = |place| if family == Family::Data { self.data_key(place) } else { self.entry_key(place) };
        let mut cursor = reader.cursor(family, &key(from), &key(to));
        let mut seen = Vec::new();
        for step in moves {
            match step {
                Move::First => cursor.seek_first(),
                Move::Last => cursor.seek_last(),
                Move::Seek(place) => cursor.seek(&key(*place)),
                Move::SeekBack(place) => cursor.seek_back(&key(*place)),
                Move::Next => cursor.next(),
                Move::Previous => cursor.previous(),
            }
            seen.push(cursor.entry().map(|(key, value)| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))));
        }
        cursor.status().expect("readable");
        seen
    }

    fn install(&mut self, from: u8, to: u8, versions: &[(Place, Content)]) {
        let range = (self.key(from), self.key(to));
        if range.0 >= range.1 || self.horizon > Timestamp::ZERO {
            return;
        }
        self.cover(from, to);
        let mut times = [0; KEYS as usize];
        for (place, _) in versions {
            times[usize::from(place.0)] |= 1 << place.1;
        }
        // What is installed holds with a version all later ones that were there before.
        let inside: Vec<(Place, Content)> = versions
            .iter()
            .filter(|(place, _)| (from..to).contains(&place.0))
            .filter(|(place, _)| self.covered_after(*place) & !times[usize::from(place.0)] == 0)
            .copied()
            .collect();
        for (place, _) in &inside {
            self.written[usize::from(place.0)] |= 1 << place.1;
        }
        let inside: BTreeMap<Bytes, Bytes> =
            inside.iter().map(|(place, content)| (self.data_key(*place), Twins::content(*content))).collect();
        let name = format!("fuzz-{}", self.slow_steps);
        let inside: Entries = inside.into_iter().collect();
        self.each(|engine| {
            let files: Vec<_> = inside
                .chunks(2)
                .enumerate()
                .map(|(number, chunk)| {
                    let path = engine.staging().join(format!("{name}-{number}"));
                    let mut writer = engine.table_writer(&path).expect("a file is begun");
                    for (key, value) in chunk {
                        writer.add(key, value).expect("keys ascend");
                    }
                    writer.finish().expect("a file is finished");
                    path
                })
                .collect();
            engine.install(&name, &vec![range.clone()], &files).expect("files are installed");
        });
        assert_eq!(entries(&**self.store.rocks(), Family::Data, &range.0, &range.1), inside);
    }

    fn trim(&mut self, horizon: Timestamp) {
        if horizon <= self.horizon {
            return;
        }
        self.horizon = horizon;
        self.tell_horizon();
        let (start, end) = self.layout.table_range();
        self.each(|engine| engine.compact(&start, &end).expect("a compaction works"));
    }

    fn tell_horizon(&self) {
        if self.horizon > Timestamp::ZERO {
            let (start, end) = self.layout.table_range();
            self.each(|engine| engine.horizons().set(&start, &end, self.horizon, 0));
        }
    }
}

/// All versions in stored entries, by key, oldest first.
fn versions_of(data: &[(Bytes, Bytes)]) -> BTreeMap<Bytes, Vec<Version>> {
    let mut keys: BTreeMap<Bytes, Vec<Version>> = BTreeMap::new();
    for (key, stored) in data.iter().rev() {
        let (encoded, timestamp) = stored::split(key).expect("only versions were written");
        let version = Version::decode(timestamp, stored.clone()).expect("only versions were written");
        keys.entry(Bytes::copy_from_slice(encoded)).or_default().push(version);
    }
    keys
}

fn entries(reader: &dyn Reader, family: Family, start: &[u8], end: &[u8]) -> Entries {
    let mut cursor = reader.cursor(family, start, end);
    let mut found = Vec::new();
    cursor.seek_first();
    while let Some((key, value)) = cursor.entry() {
        found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        cursor.next();
    }
    cursor.status().expect("readable");
    found
}
