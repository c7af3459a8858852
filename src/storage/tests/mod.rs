//! Tests of the engines together: twins, durability, installs, trimming, the log writer.

mod changes;
mod durability;
mod log_writer;
mod trimming;
mod twin;
mod versions;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::ProptestConfig;

use super::{Engine, Family, Lookup, Options, Reader, Rocks};
use crate::keyspace::Layout;
use crate::types::{Partitioning, TableId};

/// How often a property is tried: so many times, or as `PROPTEST_CASES` says.
fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|count| count.parse().ok()).unwrap_or(default);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Opens a small store.
fn open(directory: &Path) -> super::Result<Arc<Rocks>> {
    Rocks::open(&Options::new(directory))
}

/// What a crash of the process would leave now: the store is open and its files are copied as they are. What RocksDB
/// still holds in the buffer of its log is not among them. Call it while nothing is written.
fn crash_copy(store: &Rocks, directory: &Path) -> tempfile::TempDir {
    store.while_still_for_test(|| copy_of(directory))
}

/// A copy of a directory in which nothing changes.
fn copy_of(from: &Path) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &target);
            } else {
                match std::fs::copy(entry.path(), target) {
                    // Files given up before deletions were paused may still go; nothing refers to them.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    copied => assert!(copied.is_ok(), "{copied:?}"),
                }
            }
        }
    }
    let to = tempfile::tempdir().unwrap();
    copy(from, to.path());
    to
}

/// The encoded form of a key of table 1, ordered.
fn encoded(key: &[u8]) -> Bytes {
    Layout { table: TableId(1), partitioning: Partitioning::Range { group_delimiter: None } }.encode(key)
}

/// Everything between two bounds.
fn dump(reader: &(impl Reader + ?Sized), family: Family, start: &[u8], end: &[u8]) -> Vec<(Bytes, Bytes)> {
    let mut cursor = reader.cursor(family, start, end);
    let mut entries = Vec::new();
    cursor.seek_first();
    while let Some((key, value)) = cursor.entry() {
        entries.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        cursor.next();
    }
    cursor.status().unwrap();
    entries
}

/// Everything of a family.
fn dump_all(reader: &(impl Reader + ?Sized), family: Family) -> Vec<(Bytes, Bytes)> {
    dump(reader, family, b"", &[0xFF; 32])
}

fn found<T>(lookup: Lookup<T>) -> Option<T> {
    match lookup {
        Lookup::Found(value) => Some(value),
        Lookup::Missing => None,
        Lookup::NeedsDisk => panic!("the disk tier always knows"),
    }
}

/// Writes a table file with these entries into the engine's staging directory.
fn table(engine: &dyn Engine, name: &str, entries: &[(Bytes, Bytes)]) -> std::path::PathBuf {
    let path = engine.staging().join(name);
    let mut writer = engine.table_writer(&path).unwrap();
    for (key, value) in entries {
        writer.add(key, value).unwrap();
    }
    assert!(writer.finish().unwrap() > 0);
    path
}
