//! What survives, what is refused, and that the two are told apart.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;

use bytes::Bytes;

use super::{Engine, Family, Reader, copy_of, crash_copy, dump_all, found, open};
use crate::storage::{Batch, Error, LogChange, LogOp, LogWriter, Lookup, Options, Rocks, Tier, log_keys};
use crate::types::ShardId;

fn put(engine: &dyn Engine, family: Family, key: &[u8], value: &[u8]) {
    let mut batch = Batch::new();
    batch.put(family, Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
    engine.write(batch).unwrap();
}

fn get(reader: &dyn Reader, family: Family, key: &[u8]) -> Option<Bytes> {
    found(reader.get(family, key, Tier::Disk).unwrap())
}

fn refusal(directory: &Path) -> Error {
    match open(directory) {
        Ok(_) => panic!("the store opened"),
        Err(error) => error,
    }
}

/// The files of RocksDB's log, oldest first, that hold anything.
fn log_files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(directory.join("db"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .filter(|path| fs::metadata(path).unwrap().len() > 0)
        .collect();
    files.sort();
    files
}

#[test]
fn a_store_keeps_what_was_written_over_an_orderly_close() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..3u8 {
        let store = open(directory.path()).unwrap();
        for earlier in 0..round {
            assert_eq!(get(&*store, Family::Raft, &[earlier]).unwrap(), [earlier; 4][..]);
        }
        put(&*store, Family::Raft, &[round], &[round; 4]);
    }
}

#[test]
fn a_directory_in_use_is_refused_until_it_is_free() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    assert_eq!(refusal(directory.path()), Error::Locked(directory.path().to_owned()));
    drop(store);
    open(directory.path()).unwrap();
}

#[test]
fn a_snapshot_may_outlive_its_engine() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    put(&*store, Family::Data, b"a key of data", b"1");
    let snapshot = store.snapshot();
    put(&*store, Family::Data, b"a key of data", b"2");
    drop(store);
    assert_eq!(get(&*snapshot, Family::Data, b"a key of data").unwrap(), b"1"[..]);
    assert_eq!(refusal(directory.path()), Error::Locked(directory.path().to_owned()), "it keeps the store open");
    drop(snapshot);
    open(directory.path()).unwrap();
}

#[test]
fn what_is_not_a_store_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("FORMAT"), "trivet storage 2\n").unwrap();
    let error = refusal(directory.path());
    assert!(matches!(&error, Error::Foreign { why, .. } if why.contains("\"trivet storage 2\"")), "{error}");

    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("db")).unwrap();
    fs::write(directory.path().join("db/CURRENT"), "MANIFEST-000001\n").unwrap();
    assert!(matches!(refusal(directory.path()), Error::Foreign { .. }));
    assert_eq!(fs::read_to_string(directory.path().join("db/CURRENT")).unwrap(), "MANIFEST-000001\n");

    for lost in ["SYNCED", "FORMAT", "db"] {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path()).unwrap();
        put(&*store, Family::Log, b"k", b"v");
        drop(store);
        let path = directory.path().join(lost);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
        let error = refusal(directory.path());
        assert!(matches!(&error, Error::Corruption(why) if why.contains("lost")), "{lost}: {error}");
    }
}

#[test]
fn a_creation_cut_short_is_begun_again() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()).unwrap());
    // Everything is there but the last step.
    fs::remove_file(directory.path().join("FORMAT")).unwrap();
    let store = open(directory.path()).unwrap();
    put(&*store, Family::Log, b"k", b"v");
    drop(store);
    assert_eq!(get(&*open(directory.path()).unwrap(), Family::Log, b"k").unwrap(), b"v"[..]);
}

#[test]
fn a_torn_tail_that_nobody_was_promised_is_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    put(&*store, Family::Log, b"promised", b"1");
    store.sync().unwrap();
    let before = crash_copy(&store, directory.path());
    put(&*store, Family::Log, b"torn", &[7; 1000]);
    store.sync().unwrap();
    let after = crash_copy(&store, directory.path());
    // The mark of before, and half of what was written after it.
    fs::copy(before.path().join("SYNCED"), after.path().join("SYNCED")).unwrap();
    let [log] = &log_files(after.path())[..] else { panic!("one log file") };
    let whole = fs::metadata(&log_files(before.path())[0]).unwrap().len();
    fs::File::options().write(true).open(log).unwrap().set_len(whole + 500).unwrap();

    let store = open(after.path()).unwrap();
    assert_eq!(get(&*store, Family::Log, b"promised").unwrap(), b"1"[..]);
    assert_eq!(get(&*store, Family::Log, b"torn"), None);
}

#[test]
fn a_log_that_lost_synced_records_is_refused_for_good() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    for number in 0..100u8 {
        put(&*store, Family::Log, &[number], &[number; 100]);
        store.sync().unwrap();
    }
    let copies = [crash_copy(&store, directory.path()), crash_copy(&store, directory.path())];
    for (copy, damage) in copies.iter().zip(["truncated", "flipped"]) {
        let [log] = &log_files(copy.path())[..] else { panic!("one log file") };
        let mut bytes = fs::read(log).unwrap();
        let middle = bytes.len() / 2;
        if damage == "truncated" {
            bytes.truncate(middle)
        } else {
            bytes[middle] ^= 0x10
        }
        fs::write(log, bytes).unwrap();
        // Refused again and again, not only once.
        for _ in 0..3 {
            match refusal(copy.path()) {
                Error::LogShrank { synced, recovered, .. } => {
                    assert_eq!(synced, 100, "{damage}");
                    assert!(recovered < 60, "{damage}: {recovered}");
                }
                other => panic!("{damage}: {other}"),
            }
        }
    }
}

/// Whatever part of an install's last record reached the disk, the next open finds the old contents or the new.
#[test]
fn an_install_cut_off_anywhere_leaves_the_old_or_the_new() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let entries = |value: &'static [u8], keys: std::ops::Range<u8>| -> Vec<(Bytes, Bytes)> {
        keys.map(|key| (Bytes::from(format!("range/{key:03}/version")), Bytes::from_static(value))).collect()
    };
    let outside = (Bytes::from_static(b"outside/version"), Bytes::from_static(b"stays"));
    let with_outside = |mut entries: Vec<(Bytes, Bytes)>| {
        entries.insert(0, outside.clone());
        entries
    };
    let old = with_outside(entries(b"old", 0..100));
    for (key, value) in &old {
        put(&*store, Family::Data, key, value);
    }
    store.compact(b"", &[0xFF; 8]).unwrap();
    // Part of the old lies in a file, part only in memory and in the log.
    put(&*store, Family::Data, &old[50].0, &old[50].1);
    put(&*store, Family::Data, &old[99].0, &old[99].1);
    store.sync().unwrap();
    let before = crash_copy(&store, directory.path());

    let new = with_outside(entries(b"new", 50..150));
    let files = [super::table(&*store, "one.sst", &new[1..60]), super::table(&*store, "two.sst", &new[60..])];
    let snapshot = store.snapshot();
    // A crash at the first moment finds the old files still there; so must the copy.
    let after = store.while_still_for_test(|| {
        store.install("test", &vec![(b"range/"[..].into(), b"range0"[..].into())], &files).unwrap();
        copy_of(directory.path())
    });
    assert_eq!(dump_all(&*store, Family::Data), new);
    assert_eq!(dump_all(&*snapshot, Family::Data), old, "a reader from before still sees the old");

    let manifest = |directory: &Path| {
        let current = fs::read_to_string(directory.join("db/CURRENT")).unwrap();
        directory.join("db").join(current.trim_end())
    };
    let shorter = fs::metadata(manifest(before.path())).unwrap().len();
    let longer = fs::metadata(manifest(after.path())).unwrap().len();
    assert!(longer > shorter);
    let (mut olds, mut news) = (0, 0);
    for length in (shorter..longer).step_by(7).chain([longer]) {
        let cut = copy_of(after.path());
        // Only a finished sync raises the mark, and the install's own had not finished.
        fs::copy(before.path().join("SYNCED"), cut.path().join("SYNCED")).unwrap();
        fs::File::options().write(true).open(manifest(cut.path())).unwrap().set_len(length).unwrap();
        let found = dump_all(&*open(cut.path()).unwrap(), Family::Data);
        if found == old {
            olds += 1
        } else {
            news += 1
        }
        assert!(found == old || found == new, "cut at {length}");
    }
    assert!(olds > 0 && news > 0, "{olds} old, {news} new");
    assert_eq!(dump_all(&*open(after.path()).unwrap(), Family::Data), new);
}

#[test]
fn files_staged_before_a_crash_are_gone_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    super::table(&*store, "left.sst", &[(Bytes::from_static(b"key of data"), Bytes::new())]);
    fs::create_dir(store.staging().join("cut")).unwrap();
    fs::write(store.staging().join("cut/chunk"), "x").unwrap();
    let copy = crash_copy(&store, directory.path());
    let store = open(copy.path()).unwrap();
    assert_eq!(fs::read_dir(store.staging()).unwrap().count(), 0);
    assert_eq!(dump_all(&*store, Family::Data), []);
}

#[test]
fn an_install_that_fails_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    put(&*store, Family::Data, b"range/version", b"old");
    let file = super::table(&*store, "damaged.sst", &[(b"range/version"[..].into(), b"new"[..].into())]);
    let length = fs::metadata(&file).unwrap().len();
    fs::File::options().write(true).open(&file).unwrap().set_len(length / 2).unwrap();
    let ranges = vec![(b"range/"[..].into(), b"range0"[..].into())];
    assert!(matches!(store.install("test", &ranges, &[file]), Err(Error::Corruption(_))));
    assert_eq!(get(&*store, Family::Data, b"range/version").unwrap(), b"old"[..]);
}

#[test]
fn a_flipped_bit_in_a_table_file_is_an_error_never_a_value() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let value = |number: u32| -> Vec<u8> { (0..200).map(|at| (number as u8).wrapping_mul(31) ^ at).collect() };
    let key = |number: u32| format!("table/key/{number:08}").into_bytes();
    for number in 0..2000 {
        put(&*store, Family::Data, &key(number), &value(number));
    }
    store.compact(b"", &[0xFF; 8]).unwrap();
    drop(store);
    let tables: Vec<_> = fs::read_dir(directory.path().join("db"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sst"))
        .collect();
    let table = tables.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(table).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(table, bytes).unwrap();

    let store = open(directory.path()).unwrap();
    let mut corrupt = 0;
    for number in 0..2000 {
        match store.get(Family::Data, &key(number), Tier::Disk) {
            Ok(lookup) => assert_eq!(lookup, Lookup::Found(value(number).into())),
            Err(Error::Corruption(_)) => corrupt += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(corrupt > 0, "the damaged block was read");
    let mut cursor = store.cursor(Family::Data, b"", &[0xFF; 8]);
    cursor.seek_first();
    let mut seen = 0;
    while cursor.entry().is_some() {
        seen += 1;
        cursor.next();
    }
    assert!(seen < 2000);
    assert!(matches!(cursor.status(), Err(Error::Corruption(_))), "a walk that broke off says so");
}

#[test]
fn reads_from_the_cache_say_when_they_cannot_tell() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let key = b"prefix\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01";
    put(&*store, Family::Data, key, b"v");
    assert_eq!(store.get(Family::Data, key, Tier::Cache).unwrap(), Lookup::Found(b"v"[..].into()), "in memory");
    store.compact(b"", &[0xFF; 8]).unwrap();
    drop(store);
    let store = open(directory.path()).unwrap();
    assert_eq!(store.get(Family::Data, key, Tier::Cache).unwrap(), Lookup::NeedsDisk);
    assert_eq!(store.first_version(b"prefix", b"prefix", Tier::Cache).unwrap(), Lookup::NeedsDisk);
    assert!(matches!(store.first_version(b"prefix", b"prefix", Tier::Disk).unwrap(), Lookup::Found(_)));
    assert!(matches!(store.first_version(b"prefix", b"prefix", Tier::Cache).unwrap(), Lookup::Found(_)), "cached now");
}

/// Log files are written over again and again here, with crashes in between: nothing synced may go missing and nothing
/// of an older use of a file may come back.
#[test]
fn recycled_log_files_lose_and_revive_nothing() {
    let mut directory = tempfile::tempdir().unwrap();
    let small = |path: &Path| Options { write_buffer_bytes: 256 << 10, ..Options::new(path) };
    let mut store = Rocks::open(&small(directory.path())).unwrap();
    let mut expected = std::collections::BTreeMap::new();
    let mut random = 12345u64;
    for round in 0..6u32 {
        for number in 0..600u32 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let key = Bytes::copy_from_slice(&(random >> 56).to_be_bytes());
            let value = Bytes::from(vec![(random >> 48) as u8; 100 + (random >> 40) as usize % 900]);
            let mut batch = Batch::new();
            batch.put(Family::Log, key.clone(), value.clone());
            if number % 50 == 0 {
                batch.put(Family::Data, key.clone(), value.clone());
            }
            store.write(batch).unwrap();
            expected.insert(key, value);
            if number % 7 == 0 {
                store.sync().unwrap();
            }
        }
        store.sync().unwrap();
        put(&*store, Family::Raft, b"unsynced", &round.to_be_bytes());
        let copy = crash_copy(&store, directory.path());
        drop(store);
        directory = copy;
        store = Rocks::open(&small(directory.path())).unwrap();
        let found: Vec<_> = dump_all(&*store, Family::Log);
        assert!(found.iter().map(|(key, value)| (key, value)).eq(expected.iter()), "round {round}");
    }
}

const CHILD: &str = "TRIVET_STORAGE_TEST_CHILD";

/// Not a test of its own: the process that the next test kills.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let store = open(Path::new(&directory)).unwrap();
    let writer = LogWriter::start(store.clone()).unwrap();
    for index in 1.. {
        let entry = Bytes::from(format!("entry {index}"));
        let done = Box::new(move |result: crate::storage::Result<()>| {
            result.unwrap();
            println!("acknowledged {index}");
        });
        let change = LogChange::Append(vec![(index, entry)]);
        writer.submit(LogOp { group: ShardId(3), change, done: Some(done) });
        // Effects go in without a sync of their own, as apply does it.
        put(&*store, Family::Data, b"applied-at-least", &index.to_be_bytes());
        while writer.queue_bytes() > 4096 {
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_killed_process_keeps_everything_it_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = 0u64;
    for _ in 0..2 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_that_writes_until_it_is_killed", "--nocapture"])
            .env(CHILD, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut run = 0;
        for line in lines {
            if let Some(index) = line.strip_prefix("acknowledged ") {
                run = index.parse().unwrap();
                if run >= 300 {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        assert!(run >= 300);
        acknowledged = acknowledged.max(run);
        let store = open(directory.path()).unwrap();
        for index in 1..=acknowledged {
            let entry = get(&*store, Family::Log, &log_keys::entry(ShardId(3), index));
            assert_eq!(entry, Some(Bytes::from(format!("entry {index}"))));
        }
    }
}

/// A file system of a few megabytes for as long as the value lives.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(options: &str) -> Option<SmallDisk> {
        let at = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(SmallDisk(at))
    }

    fn resize(&self, options: &str) {
        let status = Command::new("mount").args(["-o", options]).arg(self.0.path()).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_ends_the_writer_and_loses_nothing_acknowledged() {
    let Some(disk) = SmallDisk::mount("size=24m") else {
        println!("skipped: no file system can be mounted here");
        return;
    };
    let directory = disk.0.path().join("store");
    let store = open(&directory).unwrap();
    assert!(store.free_bytes().unwrap() < 24 << 20);
    assert_eq!(store.reserve_bytes().unwrap(), 3 << 20, "an eighth of a small device");
    let (fatal, fatalities) = mpsc::channel();
    let writer =
        LogWriter::start_with(store.clone(), Arc::new(move |error: &Error| fatal.send(error.clone()).unwrap()))
            .unwrap();
    let (answers, results) = mpsc::channel();
    let mut acknowledged = 0;
    for index in 1u64.. {
        let answers = answers.clone();
        let mut entry = vec![0; 256 << 10];
        entry[..8].copy_from_slice(&index.to_be_bytes());
        let change = LogChange::Append(vec![(index, entry.into())]);
        let done = Box::new(move |result| answers.send(result).unwrap());
        writer.submit(LogOp { group: ShardId(1), change, done: Some(done) });
        match results.recv().unwrap() {
            Ok(()) => acknowledged = index,
            Err(error) => {
                assert!(matches!(error, Error::DiskFull(_)), "{error}");
                break;
            }
        }
    }
    assert!(acknowledged > 10 && acknowledged < 100, "{acknowledged}");
    assert!(matches!(fatalities.try_recv().unwrap(), Error::DiskFull(_)));
    writer.stop();
    drop(writer);
    // A node's process would have ended here; the files are as they are.
    disk.resize("remount,size=96m");
    let copy = copy_of(&directory);
    drop(store);
    let store = open(copy.path()).unwrap();
    for index in 1..=acknowledged {
        let entry = get(&*store, Family::Log, &log_keys::entry(ShardId(1), index)).unwrap();
        assert_eq!(entry[..8], index.to_be_bytes());
    }
}
