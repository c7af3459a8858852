//! The twin: the same contract in memory, with an explicit line between what is synced and what is not.
//!
//! The families are persistent sorted maps behind `Arc`s: a snapshot is a clone of three pointers, and a write copies
//! a map only if someone still holds it. [`Memory::crash`] puts back what was there at the last sync, which is what a
//! real engine may be left with after a power failure. Tests use it in place of RocksDB, and one test runs both through
//! the same operations and compares everything.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, BufMut, Bytes};
use parking_lot::RwLock;

use super::filter::{Fate, Trimmer};
use super::{
    Batch, Change, Cursor, Engine, Error, Family, Horizons, Lookup, Ranges, Reader, Result, TableWriter, Tier,
};

type Map = BTreeMap<Bytes, Bytes>;

#[derive(Clone, Debug, Default)]
struct Families([Arc<Map>; 3]);

impl Families {
    fn of(&self, family: Family) -> &Arc<Map> {
        &self.0[family as usize]
    }

    fn of_mut(&mut self, family: Family) -> &mut Map {
        Arc::make_mut(&mut self.0[family as usize])
    }

    fn delete_range(&mut self, family: Family, start: &[u8], end: &[u8]) {
        if start < end {
            let doomed: Vec<Bytes> = range(self.of(family), start, end).map(|(key, _)| key.clone()).collect();
            let map = self.of_mut(family);
            for key in doomed {
                map.remove(&key);
            }
        }
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Put(family, key, value) => {
                self.of_mut(family).insert(key, value);
            }
            Change::Delete(family, key) => {
                self.of_mut(family).remove(&key);
            }
            Change::DeleteRange(family, start, end) => self.delete_range(family, &start, &end),
        }
    }
}

fn range<'a>(map: &'a Map, start: &[u8], end: &[u8]) -> std::collections::btree_map::Range<'a, Bytes, Bytes> {
    map.range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)))
}

#[derive(Debug, Default)]
struct State {
    current: Families,
    synced: Families,
    /// Batches since the last sync; replayed onto `synced` instead of copying maps.
    unsynced: Vec<Batch>,
}

impl State {
    fn write(&mut self, batch: Batch) {
        for change in &batch.changes {
            self.current.apply(change.clone());
        }
        self.unsynced.push(batch);
    }

    fn sync(&mut self) {
        for change in self.unsynced.drain(..).flat_map(|batch| batch.changes) {
            self.synced.apply(change);
        }
    }
}

/// An engine that forgets everything when it is dropped.
pub struct Memory {
    state: RwLock<State>,
    horizons: Horizons,
    staging: tempfile::TempDir,
    free_bytes: AtomicU64,
    installs: AtomicU64,
}

impl Memory {
    /// An empty engine. Its staging directory is a temporary one.
    pub fn new() -> Result<Arc<Memory>> {
        let staging = tempfile::tempdir()
            .map_err(|error| Error::io("cannot create", Path::new("a temporary directory"), error))?;
        Ok(Arc::new(Memory {
            state: RwLock::default(),
            horizons: Horizons::new(),
            staging,
            free_bytes: AtomicU64::new(u64::MAX),
            installs: AtomicU64::new(0),
        }))
    }

    /// Says from now on that this much room is left, as a disk does that fills up.
    pub fn set_free_bytes(&self, bytes: u64) {
        self.free_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Forgets everything written since the last sync, as a crash may.
    pub fn crash(&self) {
        let mut state = self.state.write();
        state.unsynced.clear();
        state.current = state.synced.clone();
    }

    /// How many batches were written since the last sync.
    pub fn unsynced(&self) -> usize {
        self.state.read().unsynced.len()
    }

    /// What a crash leaves when it spares the first `spared` of the batches written since the last sync, as an engine
    /// of its own: whoever still holds this one writes to nowhere.
    pub fn survivor(&self, spared: usize) -> Result<Arc<Memory>> {
        let survivor = Memory::new()?;
        {
            let state = self.state.read();
            let mut left = survivor.state.write();
            left.synced = state.synced.clone();
            left.unsynced = state.unsynced.iter().take(spared).cloned().collect();
            left.sync();
            left.current = left.synced.clone();
        }
        survivor.installs.store(self.installs(), Ordering::Relaxed);
        Ok(survivor)
    }

    /// How often contents were installed, before its crashes too: only then may a state be ahead of its log.
    pub fn installs(&self) -> u64 {
        self.installs.load(Ordering::Relaxed)
    }
}

/// A consistent state of a [`Memory`].
struct MemorySnapshot(Families);

fn get(families: &Families, family: Family, key: &[u8]) -> Lookup<Bytes> {
    families.of(family).get(key).cloned().map_or(Lookup::Missing, Lookup::Found)
}

fn first_version(families: &Families, prefix: &[u8], from: &[u8]) -> Lookup<(Bytes, Bytes)> {
    families
        .of(Family::Data)
        .range::<[u8], _>((Bound::Included(from), Bound::Unbounded))
        .take_while(|(key, _)| key.starts_with(prefix))
        .find(|(key, _)| key.len() == prefix.len() + 8)
        .map_or(Lookup::Missing, |(key, value)| Lookup::Found((key.clone(), value.clone())))
}

fn cursor(families: &Families, family: Family, start: &[u8], end: &[u8]) -> Box<dyn Cursor> {
    Box::new(MemoryCursor {
        map: families.of(family).clone(),
        start: Bytes::copy_from_slice(start),
        end: Bytes::copy_from_slice(end),
        entry: None,
    })
}

impl Reader for MemorySnapshot {
    fn get(&self, family: Family, key: &[u8], _: Tier) -> Result<Lookup<Bytes>> {
        Ok(get(&self.0, family, key))
    }

    fn first_version(&self, prefix: &[u8], from: &[u8], _: Tier) -> Result<Lookup<(Bytes, Bytes)>> {
        Ok(first_version(&self.0, prefix, from))
    }

    fn cursor<'a>(&'a self, family: Family, start: &[u8], end: &[u8]) -> Box<dyn Cursor + 'a> {
        cursor(&self.0, family, start, end)
    }
}

impl Reader for Memory {
    fn get(&self, family: Family, key: &[u8], _: Tier) -> Result<Lookup<Bytes>> {
        Ok(get(&self.state.read().current, family, key))
    }

    fn first_version(&self, prefix: &[u8], from: &[u8], _: Tier) -> Result<Lookup<(Bytes, Bytes)>> {
        Ok(first_version(&self.state.read().current, prefix, from))
    }

    fn cursor<'a>(&'a self, family: Family, start: &[u8], end: &[u8]) -> Box<dyn Cursor + 'a> {
        cursor(&self.state.read().current, family, start, end)
    }
}

impl Engine for Memory {
    fn write(&self, batch: Batch) -> Result<()> {
        self.state.write().write(batch);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let pending = self.horizons.before_sync();
        self.state.write().sync();
        self.horizons.after_sync(pending);
        Ok(())
    }

    fn snapshot(&self) -> Arc<dyn Reader> {
        Arc::new(MemorySnapshot(self.state.read().current.clone()))
    }

    fn table_writer(&self, path: &Path) -> Result<Box<dyn TableWriter>> {
        Ok(Box::new(MemoryTable { path: path.to_owned(), bytes: Vec::new(), last: None }))
    }

    fn install(&self, _name: &str, ranges: &Ranges, files: &[PathBuf]) -> Result<()> {
        let mut entries = Vec::new();
        for path in files {
            read_table(path, &mut entries)?;
        }
        self.sync()?;
        let mut state = self.state.write();
        state.sync();
        let State { current, synced, .. } = &mut *state;
        for families in [current, synced] {
            for (start, end) in ranges {
                families.delete_range(Family::Data, start, end);
            }
            families.of_mut(Family::Data).extend(entries.iter().cloned());
        }
        drop(state);
        self.installs.fetch_add(1, Ordering::Relaxed);
        for path in files {
            std::fs::remove_file(path).map_err(|error| Error::io("cannot remove", path, error))?;
        }
        Ok(())
    }

    fn horizons(&self) -> &Horizons {
        &self.horizons
    }

    fn staging(&self) -> PathBuf {
        self.staging.path().to_owned()
    }

    fn compact(&self, start: &[u8], end: &[u8]) -> Result<()> {
        self.sync()?;
        let mut state = self.state.write();
        let mut trimmer = Trimmer::new(self.horizons.trimmable(), true);
        let doomed: Vec<Bytes> = range(state.current.of(Family::Data), start, end)
            .filter(|(key, value)| trimmer.judge(key, value) == Fate::Drop)
            .map(|(key, _)| key.clone())
            .collect();
        state.write(Batch { changes: doomed.into_iter().map(|key| Change::Delete(Family::Data, key)).collect() });
        Ok(())
    }

    fn free_bytes(&self) -> Result<u64> {
        Ok(self.free_bytes.load(Ordering::Relaxed))
    }

    fn bytes_in(&self, start: &[u8], end: &[u8]) -> Result<u64> {
        let state = self.state.read();
        Ok(range(state.current.of(Family::Data), start, end).map(|(key, value)| (key.len() + value.len()) as u64).sum())
    }

    fn gauges(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }
}

/// A file of the twin: length-prefixed entries.
struct MemoryTable {
    path: PathBuf,
    bytes: Vec<u8>,
    last: Option<Bytes>,
}

impl TableWriter for MemoryTable {
    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if self.last.as_ref().is_some_and(|last| &last[..] >= key) {
            return Err(Error::Invalid("the keys of a table must ascend".to_owned()));
        }
        self.last = Some(Bytes::copy_from_slice(key));
        for part in [key, value] {
            self.bytes.put_u32(u32::try_from(part.len()).expect("keys and values are far below 4 GiB"));
            self.bytes.put_slice(part);
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<u64> {
        std::fs::write(&self.path, &self.bytes).map_err(|error| Error::io("cannot write", &self.path, error))?;
        Ok(self.bytes.len() as u64)
    }
}

fn read_table(path: &Path, entries: &mut Vec<(Bytes, Bytes)>) -> Result<()> {
    let mut bytes = Bytes::from(std::fs::read(path).map_err(|error| Error::io("cannot read", path, error))?);
    while !bytes.is_empty() {
        entries.push((read_part(path, &mut bytes)?, read_part(path, &mut bytes)?));
    }
    Ok(())
}

fn read_part(path: &Path, bytes: &mut Bytes) -> Result<Bytes> {
    let torn = || Error::Corruption(format!("the table {} is cut short", path.display()));
    let length = bytes.try_get_u32().map_err(|_| torn())? as usize;
    if bytes.len() < length {
        return Err(torn());
    }
    Ok(bytes.split_to(length))
}

/// Walks a map that no longer changes.
struct MemoryCursor {
    map: Arc<Map>,
    start: Bytes,
    end: Bytes,
    entry: Option<(Bytes, Bytes)>,
}

impl MemoryCursor {
    fn first(&mut self, from: Bound<&[u8]>) {
        let (Bound::Included(key) | Bound::Excluded(key)) = from else { return };
        let empty = self.start >= self.end || key >= &self.end[..];
        self.entry = (!empty)
            .then(|| self.map.range::<[u8], _>((from, Bound::Excluded(&self.end[..]))).next())
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone()));
    }

    fn last(&mut self, to: Bound<&[u8]>) {
        let (Bound::Included(key) | Bound::Excluded(key)) = to else { return };
        let empty = self.start >= self.end
            || key < &self.start[..]
            || (key == &self.start[..] && matches!(to, Bound::Excluded(_)));
        self.entry = (!empty)
            .then(|| self.map.range::<[u8], _>((Bound::Included(&self.start[..]), to)).next_back())
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone()));
    }
}

impl Cursor for MemoryCursor {
    fn seek_first(&mut self) {
        let start = self.start.clone();
        self.first(Bound::Included(&start));
    }

    fn seek_last(&mut self) {
        let end = self.end.clone();
        self.last(Bound::Excluded(&end));
    }

    fn seek(&mut self, key: &[u8]) {
        let from = key.max(&self.start).to_vec();
        self.first(Bound::Included(&from));
    }

    fn seek_back(&mut self, key: &[u8]) {
        if key >= &self.end[..] {
            self.seek_last();
        } else {
            self.last(Bound::Included(key));
        }
    }

    fn next(&mut self) {
        if let Some((key, _)) = self.entry.take() {
            self.first(Bound::Excluded(&key));
        }
    }

    fn previous(&mut self) {
        if let Some((key, _)) = self.entry.take() {
            self.last(Bound::Excluded(&key));
        }
    }

    fn entry(&self) -> Option<(&[u8], &[u8])> {
        self.entry.as_ref().map(|(key, value)| (&key[..], &value[..]))
    }

    fn status(&self) -> Result<()> {
        Ok(())
    }
}
