//! The contract of a storage engine: three families of ordered bytes, atomic batches, one log that makes them durable.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::{Horizons, Result};

/// The three families of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Raft log entries of all groups.
    Log,
    /// Votes, log states, replica records, the node's identity.
    Raft,
    /// Versions, applied states, request outcomes.
    Data,
}

/// One change of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Set a key.
    Put(Family, Bytes, Bytes),
    /// Remove a key.
    Delete(Family, Bytes),
    /// Remove the keys from the first on, up to and without the second. In family `Data` of whole keys, or of one key
    /// down to its oldest version: the compaction filter also sees what a range deletion covers, and would take a
    /// version that is gone for the newest at the horizon, and drop the one that is.
    DeleteRange(Family, Bytes, Bytes),
}

impl Change {
    /// Its key, or the first one of its range.
    pub fn key(&self) -> &Bytes {
        match self {
            Change::Put(_, key, _) | Change::Delete(_, key) | Change::DeleteRange(_, key, _) => key,
        }
    }

    /// Bytes of its keys and values.
    pub fn bytes(&self) -> usize {
        match self {
            Change::Put(_, key, value) => key.len() + value.len(),
            Change::Delete(_, key) => key.len(),
            Change::DeleteRange(_, start, end) => start.len() + end.len(),
        }
    }
}

/// Changes that happen together or not at all, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The changes.
    pub changes: Vec<Change>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Sets a key.
    pub fn put(&mut self, family: Family, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.changes.push(Change::Put(family, key.into(), value.into()));
    }

    /// Removes a key.
    pub fn delete(&mut self, family: Family, key: impl Into<Bytes>) {
        self.changes.push(Change::Delete(family, key.into()));
    }

    /// Removes the keys of `[start, end)`.
    pub fn delete_range(&mut self, family: Family, start: impl Into<Bytes>, end: impl Into<Bytes>) {
        self.changes.push(Change::DeleteRange(family, start.into(), end.into()));
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// How far down a read may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Memtables and block cache only: never waits for the disk, so an async thread may call it.
    Cache,
    /// Everything; call it where blocking is allowed.
    Disk,
}

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup<T> {
    /// It is there.
    Found(T),
    /// It is not.
    Missing,
    /// The cache cannot tell; read again with [`Tier::Disk`].
    NeedsDisk,
}

/// A consistent way to read: the engine itself (each call sees the newest state) or a snapshot of it.
pub trait Reader: Send + Sync + 'static {
    /// The value of a key.
    fn get(&self, family: Family, key: &[u8], tier: Tier) -> Result<Lookup<Bytes>>;

    /// In family `Data`: the first entry at or after `from` whose key is `prefix` plus exactly eight more bytes, with
    /// its whole key. `from` must begin with `prefix`, and no key may lie in between that begins with `prefix` and has
    /// another length: so it is with encoded keys, none of which begins with another. This is how the newest version at
    /// a position is found; it uses the prefix bloom filter.
    fn first_version(&self, prefix: &[u8], from: &[u8], tier: Tier) -> Result<Lookup<(Bytes, Bytes)>>;

    /// A cursor over the keys of `[start, end)` in total order, not yet positioned. It sees the state at its making.
    fn cursor<'a>(&'a self, family: Family, start: &[u8], end: &[u8]) -> Box<dyn Cursor + 'a>;
}

/// Walks a range of keys. After a step outside the range or a failure there is no entry; `status` tells which.
pub trait Cursor: Send {
    /// To the first key of the range.
    fn seek_first(&mut self);
    /// To the last key of the range.
    fn seek_last(&mut self);
    /// To the first key at or after `key`.
    fn seek(&mut self, key: &[u8]);
    /// To the last key at or before `key`.
    fn seek_back(&mut self, key: &[u8]);
    /// One key on.
    fn next(&mut self);
    /// One key back.
    fn previous(&mut self);
    /// The entry under the cursor.
    fn entry(&self) -> Option<(&[u8], &[u8])>;
    /// Whether everything could be read so far.
    fn status(&self) -> Result<()>;
}

/// Builds one sorted file that [`Engine::install`] can take in whole.
pub trait TableWriter: Send {
    /// Adds an entry; keys must ascend.
    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<()>;
    /// Finishes and syncs the file; returns its size in bytes.
    fn finish(self: Box<Self>) -> Result<u64>;
}

/// Ranges of family `Data`, `[start, end)` each, ascending and apart.
pub type Ranges = Vec<(Bytes, Bytes)>;

/// A storage engine.
pub trait Engine: Reader {
    /// Applies a batch atomically and appends it to the one log, without making it durable.
    fn write(&self, batch: Batch) -> Result<()>;

    /// Makes everything written so far durable. An error here must end the process.
    fn sync(&self) -> Result<()>;

    /// The state of now, for as long as the handle lives.
    fn snapshot(&self) -> Arc<dyn Reader>;

    /// A writer of a file at `path` for family `Data`.
    fn table_writer(&self, path: &Path) -> Result<Box<dyn TableWriter>>;

    /// Replaces the contents of `ranges` in family `Data` by the files (made by [`Engine::table_writer`], apart from one
    /// another and inside the ranges), durably and in one step: no reader, and no crash at any point, ever sees
    /// anything but the old contents or the new. What was written before is durable afterwards too. The files are
    /// consumed. `name` (letters, digits, `-`) names the operation in the staging directory and in logs.
    fn install(&self, name: &str, ranges: &Ranges, files: &[PathBuf]) -> Result<()>;

    /// What the compaction filter may drop, range by range.
    fn horizons(&self) -> &Horizons;

    /// A directory on the engine's own file system for files on their way in or out; emptied at open.
    fn staging(&self) -> PathBuf;

    /// Compacts a range of family `Data` completely (drops what the horizons allow, deletions included). Long work.
    fn compact(&self, start: &[u8], end: &[u8]) -> Result<()>;

    /// Bytes left on the device; below [`Engine::reserve_bytes`] whoever proposes writes should refuse them.
    fn free_bytes(&self) -> Result<u64>;

    /// Bytes to be kept free on the device.
    fn reserve_bytes(&self) -> Result<u64> {
        Ok(super::RESERVE_BYTES)
    }

    /// Bytes that `[start, end)` of family `Data` takes, roughly: what has not been written to a file yet need not count.
    fn bytes_in(&self, start: &[u8], end: &[u8]) -> Result<u64>;

    /// Names and values of gauges for the metrics page (sizes, files, cache use).
    fn gauges(&self) -> Vec<(&'static str, f64)>;
}
