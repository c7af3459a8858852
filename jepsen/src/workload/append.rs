//! Tag batches: transactions that append to lists under one tag.
//!
//! A transaction reads some keys of a tag with their versions, and writes back the lists that it appends to in one batch
//! whose conditions are all the versions read. Such a batch is the whole transaction at one moment: if it is applied,
//! every read in it was still true. Others only read, by a scan of the tag in one page.
//! Snapshots (scans that may be old, at any replica or as of a version) are not part of the order, but must show every
//! transaction wholly or not at all.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use rand::RngExt;
use rand::seq::SliceRandom;
use serde_json::{Map, Value, json};
use trivet::types::{
    Action, Answer, Condition, Operation, Page, ReadLevel, ScanBounds, ScanRequest, Test, Timestamp, Versioned, Write,
};
use trivet::wire::admin::NewTable;

use super::access::{Access, Doors};
use super::worker::{Worker, drive, lose, made, provenance, until_read, with};
use super::{Context, Floors, Workload};
use crate::check::{Verdict, append, refusals};
use crate::history::{History, Process};

const TABLE: &str = "append";
const CLIENTS: usize = 8;
/// Tags in use at a time: half of the clients meet on each.
const TAGS: usize = 2;
/// Lists of a tag.
const KEYS: usize = 5;
/// Transactions on a tag before the next, so that lists stay short.
const TAG_TRANSACTIONS: usize = 150;

/// The workload.
pub struct Appends;

/// What the clients of one tag share.
#[derive(Default)]
struct Shared {
    transactions: AtomicUsize,
    /// The last version that a transaction made, and its tag.
    newest: Mutex<Option<(String, Timestamp)>>,
}

impl Workload for Appends {
    fn name(&self) -> &'static str {
        "append"
    }

    fn promise(&self) -> &'static str {
        "batches over the keys of a tag are strictly serializable, and every snapshot shows them wholly or not at all"
    }

    fn tables(&self) -> Vec<NewTable> {
        vec![NewTable { history_ms: 10_000, ..NewTable::hash(TABLE, 3) }]
    }

    fn run(&self, context: Context) -> BoxFuture<'_, anyhow::Result<()>> {
        async move {
            let doors = Doors::open(&context, TABLE).await?;
            let serial = AtomicI64::new(1);
            let shared: Vec<Shared> = (0..TAGS).map(|_| Shared::default()).collect();
            drive(&context, &doors, CLIENTS, |mut worker| {
                let group = worker.number / 2 % TAGS;
                let (shared, serial) = (&shared[group], &serial);
                async move {
                    while worker.pace.turn().await {
                        let generation = shared.transactions.fetch_add(1, Ordering::Relaxed) / TAG_TRANSACTIONS;
                        let tag = format!("a{group}-{generation}");
                        match worker.random.random_range(0..100) {
                            0..65 => transact(&mut worker, shared, serial, &tag).await,
                            65..85 => {
                                read_by_scan(&mut worker.process, &worker.access, &tag).await;
                            }
                            _ => snapshot(&mut worker, shared, &tag).await,
                        }
                    }
                    Ok(())
                }
            })
            .await
        }
        .boxed()
    }

    fn finish(&self, context: Context) -> BoxFuture<'_, anyhow::Result<()>> {
        async move {
            let doors = Doors::open(&context, TABLE).await?;
            let tags: std::collections::BTreeSet<String> =
                context.history.history().operations.into_iter().map(|operation| operation.key).collect();
            for node in 0..doors.nodes() {
                let access = doors.bound(node);
                let process = tokio::sync::Mutex::new(context.history.process());
                for tag in &tags {
                    until_read("a tag", || async { read_by_scan(&mut *process.lock().await, &access, tag).await })
                        .await?;
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn check(&self, history: &History) -> Verdict {
        Verdict::all(vec![append::check(history), refusals::check(history, &["HISTORY_TRIMMED"])])
    }

    fn floors(&self, short: bool) -> Floors {
        let times = if short { 1 } else { 3 };
        Floors { ok: vec![("txn", 500 * times), ("snapshot", 100 * times)], info_share_max: 0.2 }
    }
}

fn stored_key(tag: &str, key: usize) -> Bytes {
    format!("{{{tag}}}k{key}").into()
}

fn name(tag: &str, key: usize) -> String {
    format!("{tag}/k{key}")
}

/// A stored list; what is none shows as an element that nobody appended.
fn list(stored: &[u8]) -> Vec<i64> {
    serde_json::from_slice(stored).unwrap_or_else(|_| vec![-1])
}

async fn transact(worker: &mut Worker, shared: &Shared, serial: &AtomicI64, tag: &str) {
    let mut keys: Vec<usize> = (0..KEYS).collect();
    keys.shuffle(&mut worker.random);
    keys.truncate(worker.random.random_range(3..=KEYS));
    let appends = worker.random.random_range(1..=keys.len());
    let elements: Vec<i64> = (0..appends).map(|_| serial.fetch_add(1, Ordering::Relaxed)).collect();
    let append = |at: usize, key: usize| elements.get(at).map(|element| json!(["append", name(tag, key), element]));
    let mut asked: Vec<Value> = keys.iter().map(|&key| json!(["r", name(tag, key), null])).collect();
    asked.extend(keys.iter().enumerate().filter_map(|(at, &key)| append(at, key)));
    let pending = worker.process.invoke("txn", tag, Value::Array(asked));

    let stored: Vec<Bytes> = keys.iter().map(|&key| stored_key(tag, key)).collect();
    let seen: Vec<Option<Versioned>> = match worker.access.read_all(stored.clone(), ReadLevel::Linearizable).await {
        Ok(answers) => answers.into_iter().map(|answer| answer.body).collect(),
        Err(lost) => return lose(pending, &lost),
    };
    let lists: Vec<Vec<i64>> =
        seen.iter().map(|seen| seen.as_ref().map(|seen| list(&seen.value)).unwrap_or_default()).collect();
    let test = |seen: &Option<Versioned>| seen.as_ref().map_or(Test::Absent, |seen| Test::Version(seen.timestamp));
    let conditions =
        stored.iter().zip(&seen).map(|(key, seen)| Condition { key: key.clone(), test: test(seen) }).collect();
    let operations = elements
        .iter()
        .enumerate()
        .map(|(at, element)| {
            let mut list = lists[at].clone();
            list.push(*element);
            let value = json!(list).to_string().into();
            Operation { key: stored[at].clone(), action: Action::Put { value, ttl_ms: None } }
        })
        .collect();
    match worker.access.write(Write { request: None, conditions, operations }).await {
        Ok(answer) if answer.body.applied => {
            let mut done: Vec<Value> =
                keys.iter().zip(&lists).map(|(&key, list)| json!(["r", name(tag, key), list])).collect();
            done.extend(keys.iter().enumerate().filter_map(|(at, &key)| append(at, key)));
            *shared.newest.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((tag.to_owned(), answer.body.timestamp));
            pending.ok_with(Value::Array(done), made(&answer));
        }
        Ok(answer) => pending.fail_with("conflict", provenance(&answer.header)),
        Err(lost) => lose(pending, &lost),
    }
}

fn scan_of(tag: &str, level: ReadLevel) -> ScanRequest {
    let bounds = ScanBounds::Tag(tag.to_owned().into());
    ScanRequest { bounds, rows_max: KEYS * 2, level, ..ScanRequest::default() }
}

/// The lists of a page by number of their key.
fn lists_of(tag: &str, page: &Answer<Page>) -> Vec<(usize, Vec<i64>)> {
    let row = |key: usize| page.body.rows.iter().find(|row| row.key == stored_key(tag, key));
    (0..KEYS)
        .map(|key| (key, row(key).and_then(|row| row.value.as_ref()).map(|value| list(value)).unwrap_or_default()))
        .collect()
}

async fn read_by_scan(process: &mut Process, access: &Access, tag: &str) -> bool {
    let asked: Vec<Value> = (0..KEYS).map(|key| json!(["r", name(tag, key), null])).collect();
    let pending = process.invoke("txn", tag, Value::Array(asked));
    match access.page(scan_of(tag, ReadLevel::Linearizable)).await {
        // Several pages are several moments.
        Ok(page) if page.body.cursor.is_some() => {
            pending.fail("several pages");
            false
        }
        Ok(page) => {
            let read: Vec<Value> =
                lists_of(tag, &page).into_iter().map(|(key, list)| json!(["r", name(tag, key), list])).collect();
            pending.ok_with(Value::Array(read), with(provenance(&page.header), "by", "scan"));
            true
        }
        Err(lost) => {
            lose(pending, &lost);
            false
        }
    }
}

async fn snapshot(worker: &mut Worker, shared: &Shared, tag: &str) {
    let newest = shared.newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (tag, level, told) = match newest {
        Some((tag, version)) if worker.random.random_range(0..2) == 0 => {
            // The version itself, or just before it.
            let at = if worker.random.random_range(0..2) == 0 { version } else { version.previous() };
            (tag, ReadLevel::AsOf(at), json!(at.0))
        }
        _ => (tag.to_owned(), ReadLevel::Any, json!("any")),
    };
    let pending = worker.process.invoke("snapshot", &tag, Value::Null);
    match worker.access.page(scan_of(&tag, level)).await {
        Ok(page) if page.body.cursor.is_some() => pending.fail("several pages"),
        Ok(page) => {
            let lists: Map<String, Value> =
                lists_of(&tag, &page).into_iter().map(|(key, list)| (self::name(&tag, key), json!(list))).collect();
            pending.ok_with(Value::Object(lists), with(provenance(&page.header), "level", told));
        }
        Err(lost) => lose(pending, &lost),
    }
}
