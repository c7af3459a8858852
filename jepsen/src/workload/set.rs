//! Sets of unique elements, read by scan.
//!
//! Every element is a key of its own, so a set lies in all shards and a scan of it passes through them. After
//! [`SET_MAX`] elements a new set begins, and the old one is read again at the end.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use rand::RngExt;
use serde_json::{Value, json};
use trivet::types::{Action, Operation, ScanBounds, ScanRequest, Write};
use trivet::wire::admin::NewTable;

use super::access::{Access, Doors, Lost};
use super::worker::{drive, lose, made, until_read};
use super::{Context, Floors, Workload};
use crate::check::{Verdict, refusals, set};
use crate::history::{History, Process};

const TABLE: &str = "set";
const CLIENTS: usize = 6;
/// Elements of a set: enough for pages, few enough that a scan is a small part of the load.
const SET_MAX: u64 = 400;
/// Rows of a page, so that a set takes several.
const PAGE: usize = 100;
/// Most pages of one scan: each shard ends one, and each page but those is full.
const PAGES_MAX: usize = 1_000;

/// The workload.
pub struct Sets;

impl Workload for Sets {
    fn name(&self) -> &'static str {
        "set"
    }

    fn promise(&self) -> &'static str {
        "an acknowledged element is in every later scan; none is invented, none is there twice"
    }

    fn tables(&self) -> Vec<NewTable> {
        vec![NewTable { history_ms: 10_000, ..NewTable::hash(TABLE, 3) }]
    }

    fn run(&self, context: Context) -> BoxFuture<'_, anyhow::Result<()>> {
        async move {
            let doors = Doors::open(&context, TABLE).await?;
            let next = AtomicU64::new(0);
            drive(&context, &doors, CLIENTS, |mut worker| {
                let next = &next;
                async move {
                    while worker.pace.turn().await {
                        if worker.random.random_range(0..100) < 80 {
                            let element = next.fetch_add(1, Ordering::Relaxed);
                            add(&mut worker.process, &worker.access, element).await;
                        } else {
                            let set = format!("s{}", next.load(Ordering::Relaxed) / SET_MAX);
                            read(&mut worker.process, &worker.access, &set).await;
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
            let sets: BTreeSet<String> = context.history.history().operations.into_iter().map(|op| op.key).collect();
            for node in 0..doors.nodes() {
                let access = doors.bound(node);
                let process = tokio::sync::Mutex::new(context.history.process());
                for set in &sets {
                    until_read("a set", || async { read(&mut *process.lock().await, &access, set).await }).await?;
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn check(&self, history: &History) -> Verdict {
        Verdict::all(vec![set::check(history), refusals::check(history, &[])])
    }

    fn floors(&self, short: bool) -> Floors {
        let times = if short { 1 } else { 3 };
        Floors { ok: vec![("add", 500 * times), ("read", 100 * times)], info_share_max: 0.2 }
    }
}

async fn add(process: &mut Process, access: &Access, element: u64) {
    let set = format!("s{}", element / SET_MAX);
    let key = format!("{set}/{element}");
    let action = Action::Put { value: element.to_string().into(), ttl_ms: None };
    let operations = vec![Operation { key: key.into(), action }];
    let pending = process.invoke("add", &set, json!(element));
    match access.write(Write { operations, ..Write::default() }).await {
        Ok(answer) => pending.ok_with(json!(element), made(&answer)),
        Err(lost) => lose(pending, &lost),
    }
}

async fn read(process: &mut Process, access: &Access, set: &str) -> bool {
    let pending = process.invoke("read", set, Value::Null);
    match scan(access, set).await {
        Ok(Some(elements)) => {
            pending.ok(json!(elements));
            true
        }
        Ok(None) => {
            pending.fail("the scan does not end");
            false
        }
        Err(lost) => {
            lose(pending, &lost);
            false
        }
    }
}

/// All elements, as the pages showed them; none if there are too many pages.
async fn scan(access: &Access, set: &str) -> Result<Option<Vec<i64>>, Lost> {
    let prefix = format!("{set}/");
    let mut request =
        ScanRequest { bounds: ScanBounds::Prefix(prefix.clone().into()), rows_max: PAGE, ..ScanRequest::default() };
    let mut elements = Vec::new();
    for _ in 0..PAGES_MAX {
        let page = access.page(request.clone()).await?.body;
        // A key that is no element of the set shows as an element that nobody added.
        let element = |key: &[u8]| std::str::from_utf8(key).ok()?.strip_prefix(&prefix)?.parse::<i64>().ok();
        elements.extend(page.rows.iter().map(|row| element(&row.key).unwrap_or(-1)));
        match page.cursor {
            Some(cursor) => request.cursor = Some(cursor),
            None => return Ok(Some(elements)),
        }
    }
    Ok(None)
}
