//! Scans: every key exactly once, however the cluster changes between two pages.
//!
//! A hash table and a range table hold the same fixed keys, put once at the start. Between them churn keys come and go,
//! each written by one client. Scans go page by page, and each page may be asked of another node than the last: a cursor
//! is carried anywhere. A page that fails is asked for again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, try_join_all};
use futures::{FutureExt as _, StreamExt as _, stream};
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio::time::Instant;
use trivet::types::{Action, Operation, Partitioning, ScanRequest, Write};
use trivet::wire::admin::NewTable;

use super::access::{Access, Doors};
use super::worker::{Worker, drive, lose, made, random, until_read, with};
use super::{Context, Floors, Workload};
use crate::check::{Verdict, refusals, scan};
use crate::history::{Extra, History, Process};

/// A hash table, and a range table in which scans are ordered.
const TABLES: [&str; 2] = ["scan", "scan_ordered"];
/// Fixed keys of each table.
const FIXED: usize = 2_000;
/// Churn keys of each client in each table.
const CHURN: usize = 12;
/// Several, since one that scans where a shard is without a majority does nothing else meanwhile.
const CLIENTS: usize = 9;
/// Fixed keys put at a time while loading.
const LOADING: usize = 64;
/// Longest time for one scan; each page has its own.
const SCAN_MAX: Duration = Duration::from_secs(20);
/// Most pages of a scan: the smallest have a hundred rows, and each shard ends one.
const PAGES_MAX: usize = 500;
/// Pause before a page is asked for again.
const PAUSE: Duration = Duration::from_millis(100);

/// The workload.
pub struct Scans;

impl Workload for Scans {
    fn name(&self) -> &'static str {
        "scan"
    }

    fn promise(&self) -> &'static str {
        "a scan returns each key that is there all the while exactly once, in order where there is one, also when its \
         cursor is carried to another node"
    }

    fn tables(&self) -> Vec<NewTable> {
        let split_points: Vec<Bytes> = [FIXED / 3, FIXED * 2 / 3].map(|number| key(number * 2).into()).to_vec();
        vec![
            NewTable { history_ms: 10_000, ..NewTable::hash(TABLES[0], 4) },
            NewTable {
                partitioning: Partitioning::Range { group_delimiter: None },
                shards: 3,
                split_points,
                history_ms: 10_000,
                ..NewTable::hash(TABLES[1], 3)
            },
        ]
    }

    fn run(&self, context: Context) -> BoxFuture<'_, anyhow::Result<()>> {
        async move {
            let tables = [Doors::open(&context, TABLES[0]).await?, Doors::open(&context, TABLES[1]).await?];
            let loads = tables.iter().zip(TABLES).map(|(doors, table)| load(&context, doors, table));
            try_join_all(loads).await?;
            drive(&context, &tables[0], CLIENTS, |mut worker| {
                let tables = &tables;
                async move {
                    while worker.pace.turn().await {
                        let which = worker.random.random_range(0..TABLES.len());
                        let (doors, table) = (&tables[which], TABLES[which]);
                        // A scan costs as much as dozens of writes, and is the first to come to nothing where faults are many.
                        if worker.random.random_range(0..100) < 91 {
                            churn(&mut worker, doors, table).await;
                        } else {
                            let reverse = worker.random.random_range(0..3) == 0;
                            let ways: Vec<Access> =
                                (0..doors.nodes()).map(|node| doors.bound(node)).chain([doors.routing()]).collect();
                            scan(&mut worker.process, &mut worker.random, &ways, table, reverse).await;
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
            for (number, table) in TABLES.into_iter().enumerate() {
                let doors = Doors::open(&context, table).await?;
                for node in 0..doors.nodes() {
                    let ways = [doors.bound(node)];
                    let part = u64::MAX - (number * doors.nodes() + node) as u64;
                    let state = Arc::new(tokio::sync::Mutex::new((context.history.process(), random(&context, part))));
                    until_read("a table", || {
                        let (state, ways) = (state.clone(), ways.clone());
                        async move {
                            let (process, random) = &mut *state.lock().await;
                            scan(process, random, &ways, table, false).await
                        }
                    })
                    .await?;
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn check(&self, history: &History) -> Verdict {
        Verdict::all(vec![scan::check(history), refusals::check(history, &[])])
    }

    fn floors(&self, short: bool) -> Floors {
        let times = if short { 1 } else { 3 };
        let ok = vec![("put", 200), ("delete", 100), ("scan", 60)];
        let ok = ok.into_iter().map(|(f, least)| (f, least * times)).chain([("load", TABLES.len())]).collect();
        Floors { ok, info_share_max: 0.2 }
    }
}

/// Rows by number: even ones are fixed, odd ones come and go.
fn key(number: usize) -> String {
    let churn = if number.is_multiple_of(2) { "" } else { "c" };
    format!("k{:05}{churn}", number / 2)
}

/// The number of a key; none if it is not one of ours.
fn number(key: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(key).ok()?.strip_prefix('k')?;
    match text.strip_suffix('c') {
        Some(digits) => digits.parse::<usize>().ok().map(|number| number * 2 + 1),
        None => text.parse::<usize>().ok().map(|number| number * 2),
    }
}

fn write(number: usize, action: Action) -> Write {
    Write { operations: vec![Operation { key: key(number).into(), action }], ..Write::default() }
}

fn put(number: usize) -> Action {
    Action::Put { value: number.to_string().into(), ttl_ms: None }
}

/// Puts every fixed key, again and again until it is acknowledged.
async fn load(context: &Context, doors: &Doors, table: &str) -> anyhow::Result<()> {
    let mut process = context.history.process();
    let pending = process.invoke("load", table, json!(FIXED));
    let left = AtomicUsize::new(FIXED);
    stream::iter(0..FIXED)
        .for_each_concurrent(LOADING, |fixed| {
            let (access, left) = (doors.of_worker(fixed), &left);
            async move {
                while !*context.stop.borrow() {
                    if access.write(write(fixed * 2, put(fixed * 2))).await.is_ok() {
                        left.fetch_sub(1, Ordering::Relaxed);
                        break;
                    }
                }
            }
        })
        .await;
    match left.into_inner() {
        0 => pending.ok(json!(FIXED)),
        _ => pending.info("the run ended before all was loaded"),
    }
    Ok(())
}

/// Puts or deletes one of the client's own churn keys.
async fn churn(worker: &mut Worker, doors: &Doors, table: &'static str) {
    let place = worker.number * CHURN + worker.random.random_range(0..CHURN);
    // Spread over the fixed keys.
    let row = (place * FIXED / (CLIENTS * CHURN)) * 2 + 1;
    let access = doors.of_worker(worker.number);
    let put_it = worker.random.random_range(0..100) < 60;
    let f = if put_it { "put" } else { "delete" };
    let pending = worker.process.invoke(f, table, json!(row));
    match access.write(write(row, if put_it { put(row) } else { Action::Delete })).await {
        Ok(answer) => pending.ok_with(json!(row), made(&answer)),
        Err(lost) => lose(pending, &lost),
    }
}

/// One scan of a whole table; true if it came to its end.
async fn scan(process: &mut Process, random: &mut StdRng, ways: &[Access], table: &'static str, reverse: bool) -> bool {
    let rows_max = random.random_range(100..500);
    let asked = with(with(Extra::new(), "ordered", table == TABLES[1]), "reverse", reverse);
    let pending = process.invoke_with("scan", table, Value::Null, asked);
    let deadline = Instant::now() + SCAN_MAX;
    let mut request = ScanRequest { reverse, rows_max, ..ScanRequest::default() };
    let mut rows: Vec<i64> = Vec::with_capacity(FIXED);
    let mut nodes: Vec<u64> = Vec::new();
    for _ in 0..PAGES_MAX {
        let page = loop {
            match ways[random.random_range(0..ways.len())].page(request.clone()).await {
                Ok(page) => break page,
                Err(lost) if Instant::now() >= deadline => {
                    lose(pending, &lost);
                    return false;
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        };
        nodes.push(page.header.node.0);
        // What is none of our keys shows as a row that nobody put.
        let number = |key: &[u8]| number(key).and_then(|number| i64::try_from(number).ok()).unwrap_or(-1);
        rows.extend(page.body.rows.iter().map(|row| number(&row.key)));
        match page.body.cursor {
            Some(cursor) => request.cursor = Some(cursor),
            None => {
                pending.ok_with(json!(rows), with(Extra::new(), "nodes", nodes));
                return true;
            }
        }
    }
    pending.fail("the scan does not end");
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_in_the_order_of_their_keys() {
        let keys: Vec<String> = (0..100).map(key).collect();
        assert!(keys.windows(2).all(|pair| pair[0] < pair[1]));
        assert!((0..100).all(|row| number(key(row).as_bytes()) == Some(row)));
        assert_eq!(number(b"x"), None);
    }
}
