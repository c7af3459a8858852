//! What the hot path costs. Not tests: `cargo test --release --lib storage::tests::measure -- --ignored --nocapture`.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;

use super::{Engine, Family, Reader, encoded, open};
use crate::keyspace::{side, version};
use crate::runtime::Clock;
use crate::storage::mvcc::{self, ScanLimits, Version};
use crate::storage::{Batch, LogChange, LogOp, LogWriter, Tier};
use crate::types::{ShardId, Timestamp};

fn time<T>(what: &str, count: u32, work: impl FnOnce() -> T) -> T {
    let clock = Clock::system();
    let (begun, process, thread) = (clock.now(), process_time(), thread_time());
    let result = work();
    let (took, process, thread) = (begun.elapsed(), process_time() - process, thread_time() - thread);
    println!(
        "{what:44} {:9.2?} each; processor {:9.2?}, of this thread {:9.2?}",
        took / count,
        process / count,
        thread / count
    );
    result
}

/// Processor time of this process, in steps of 10 ms.
fn process_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split(' ').collect();
    let ticks: u64 = fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// Processor time of this thread.
fn thread_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

fn resident() -> f64 {
    let pages: f64 = std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096.0 / 1e6
}

fn key(number: u32) -> Bytes {
    encoded(format!("user/{:08}", number.wrapping_mul(2_654_435_761) % 100_000).as_bytes())
}

#[test]
#[ignore = "a measurement"]
fn hot_path() {
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    println!("resident before opening {:.1} MB", resident());
    let store = open(directory.path()).unwrap();
    println!("resident with an empty store {:.1} MB", resident());
    let value = Bytes::from(vec![7u8; 256]);
    let mut stamp = 1;
    let mut effects = |from: u32, count: u32| {
        let mut batch = Batch::new();
        for number in from..from + count {
            stamp += 1;
            let version = Version { timestamp: Timestamp(stamp), value: Some(value.clone()), expires_ms: None };
            batch.put(Family::Data, version::key(&key(number), version.timestamp), version.encode());
            batch.put(Family::Data, side::outcome(&key(number), 42, u64::from(number)), Bytes::from_static(&[8; 30]));
        }
        batch.put(Family::Data, side::applied(ShardId(1)), Bytes::from_static(&[1; 80]));
        batch
    };
    time("build a batch of 50 puts of 256 B", 1000, || {
        (0..1000).map(|n| effects(n * 50, 50).changes.len()).sum::<usize>()
    });
    for part in 0..4 {
        time("write a batch of 50 puts, no sync", 500, || {
            for n in part * 500..(part + 1) * 500 {
                store.write(effects(n * 50, 50)).unwrap();
            }
        });
    }
    println!("resident after 100,000 puts {:.1} MB", resident());
    time("newest, from memory and cache or disk", 100_000, || {
        for n in 0..100_000 {
            mvcc::newest(&*store, &key(n * 7), Timestamp::MAX, Tier::Disk).unwrap();
        }
    });
    time("newest of a key that is not there", 100_000, || {
        for n in 0..100_000u32 {
            mvcc::newest(&*store, &encoded(&n.to_be_bytes()), Timestamp::MAX, Tier::Disk).unwrap();
        }
    });
    time("get of an outcome that is not there", 100_000, || {
        for n in 0..100_000u32 {
            store.get(Family::Data, &side::outcome(&key(n), 43, u64::from(n)), Tier::Disk).unwrap();
        }
    });
    let limits = ScanLimits { rows_max: 100, bytes_max: 1 << 20, count_only: false };
    time("scan of 100 rows", 2000, || {
        for n in 0..2000 {
            mvcc::scan(&*store, &key(n), &encoded(b"\xFE"), Timestamp::MAX, 0, false, limits).unwrap();
        }
    });
    store.compact(b"", &[0xFF; 8]).unwrap();
    time("newest after compaction", 100_000, || {
        for n in 0..100_000 {
            mvcc::newest(&*store, &key(n * 7), Timestamp::MAX, Tier::Disk).unwrap();
        }
    });

    let writer = LogWriter::start(store.clone()).unwrap();
    let (answers, results) = mpsc::channel();
    let mut index = 0;
    for in_flight in [1u32, 4, 16] {
        time(&format!("append of 50 entries of 300 B, {in_flight} in flight"), 2000, || {
            let submit = |index: u64| {
                let answers = answers.clone();
                let entries = (0..50).map(|n| (index * 50 + n, Bytes::from(vec![1u8; 300]))).collect();
                let done = Box::new(move |result: crate::storage::Result<()>| answers.send(result).unwrap());
                writer.submit(LogOp {
                    group: ShardId(index % 8),
                    change: LogChange::Append(entries),
                    done: Some(done),
                });
            };
            for _ in 0..in_flight {
                index += 1;
                submit(index);
            }
            for sent in in_flight..2000 + in_flight {
                results.recv().unwrap().unwrap();
                if sent < 2000 {
                    index += 1;
                    submit(index);
                }
            }
        });
    }
    let one = |index: u64| LogChange::Append(vec![(index, Bytes::from(vec![1u8; 300]))]);
    time("append of one entry of 300 B, one at a time", 2000, || {
        for _ in 0..2000 {
            index += 1;
            let answers = answers.clone();
            let done = Box::new(move |result: crate::storage::Result<()>| answers.send(result).unwrap());
            writer.submit(LogOp { group: ShardId(1), change: one(index), done: Some(done) });
            results.recv().unwrap().unwrap();
        }
    });
    println!("resident at the end {:.1} MB", resident());
    for (name, value) in store.gauges() {
        println!("{name} {value}");
    }
    drop(writer);
    let _: Arc<dyn Engine> = store;
}
