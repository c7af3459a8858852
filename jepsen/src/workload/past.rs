//! The past: reads as of a version, lists of versions, rollbacks.
//!
//! Clients put, delete and roll back a few keys and read their pasts: as of versions made seconds ago, which are within
//! the history window, and older ones, which are trimmed and must be refused. Values are serial numbers.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use rand::RngExt;
use serde_json::{Value, json};
use trivet::types::{Action, Operation, ReadLevel, Row, Timestamp, Write};
use trivet::wire::admin::NewTable;

use super::access::{Access, Doors};
use super::worker::{Worker, drive, lose, made, provenance, until_read, with};
use super::{Context, Floors, Workload};
use crate::check::{Verdict, past, refusals};
use crate::history::{Extra, History, Process};

const TABLE: &str = "history";
const KEYS: usize = 10;
const CLIENTS: usize = 8;
/// The history window, in milliseconds: short enough that most of a run's versions are trimmed during it.
const WINDOW_MS: u64 = 8_000;
/// Versions remembered per key; at a few a second they reach back beyond the window.
const VERSIONS_MAX: usize = 40;
/// Of these the newest are asked for most.
const RECENT: usize = 8;
/// Rows asked of a list of versions.
const ROWS: usize = 64;

/// The workload.
pub struct Past;

#[derive(Default)]
struct Known {
    versions: Mutex<VecDeque<Timestamp>>,
}

impl Known {
    fn keep(&self, version: Timestamp) {
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        if versions.len() == VERSIONS_MAX {
            versions.pop_front();
        }
        versions.push_back(version);
    }

    fn pick(&self, random: &mut impl RngExt) -> Option<Timestamp> {
        let versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = if random.random_range(0..100) < 75 { versions.len().min(RECENT) } else { versions.len() };
        let back = random.random_range(0..recent.max(1));
        versions.iter().rev().nth(back).copied()
    }
}

impl Workload for Past {
    fn name(&self) -> &'static str {
        "history"
    }

    fn promise(&self) -> &'static str {
        "the state as of a version is always answered alike until it is trimmed and refused; a rollback is a new version \
         equal to its target"
    }

    fn tables(&self) -> Vec<NewTable> {
        vec![NewTable { history_ms: WINDOW_MS, ..NewTable::hash(TABLE, 3) }]
    }

    fn run(&self, context: Context) -> BoxFuture<'_, anyhow::Result<()>> {
        async move {
            let doors = Doors::open(&context, TABLE).await?;
            let serial = AtomicI64::new(1);
            let known: Vec<Known> = (0..KEYS).map(|_| Known::default()).collect();
            drive(&context, &doors, CLIENTS, |mut worker| {
                let (known, serial) = (&known, &serial);
                async move {
                    while worker.pace.turn().await {
                        let number = worker.random.random_range(0..KEYS);
                        step(&mut worker, &known[number], serial, &format!("h{number}")).await;
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
            // One node lists the versions, and all nodes then tell the same past.
            let newest: Vec<Mutex<Option<Timestamp>>> = (0..KEYS).map(|_| Mutex::default()).collect();
            for node in 0..doors.nodes() {
                let access = doors.bound(node);
                let process = tokio::sync::Mutex::new(context.history.process());
                for (number, newest) in newest.iter().enumerate() {
                    let key = format!("h{number}");
                    until_read("a list of versions", || async {
                        let rows = list(&mut *process.lock().await, &access, &key).await;
                        let first = rows.as_ref().and_then(|rows| rows.first());
                        if let Some(row) = first {
                            *newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(row.timestamp);
                        }
                        rows.is_some()
                    })
                    .await?;
                    let at = *newest.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(at) = at {
                        until_read("the past", || async { as_of(&mut *process.lock().await, &access, &key, at).await })
                            .await?;
                    }
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn check(&self, history: &History) -> Verdict {
        Verdict::all(vec![past::check(history, WINDOW_MS), refusals::check(history, &["HISTORY_TRIMMED"])])
    }

    fn floors(&self, short: bool) -> Floors {
        let times = if short { 1 } else { 3 };
        let ok = vec![("put", 200), ("delete", 25), ("rollback", 50), ("as-of", 300), ("versions", 150)];
        Floors { ok: ok.into_iter().map(|(f, least)| (f, least * times)).collect(), info_share_max: 0.2 }
    }
}

async fn step(worker: &mut Worker, known: &Known, serial: &AtomicI64, key: &str) {
    let chance = worker.random.random_range(0..100);
    let picked = known.pick(&mut worker.random);
    let (f, asked, action) = match (chance, picked) {
        (0..25, _) | (_, None) => {
            let fresh = serial.fetch_add(1, Ordering::Relaxed);
            ("put", json!(fresh), Action::Put { value: fresh.to_string().into(), ttl_ms: None })
        }
        (25..30, _) => ("delete", Value::Null, Action::Delete),
        (30..40, Some(to)) => ("rollback", json!(to.0), Action::Rollback { to }),
        (40..75, Some(version)) => {
            let before = worker.random.random_range(0..3) == 0;
            let at = if before { version.previous() } else { version };
            as_of(&mut worker.process, &worker.access, key, at).await;
            return;
        }
        _ => {
            list(&mut worker.process, &worker.access, key).await;
            return;
        }
    };
    let operations = vec![Operation { key: key.to_owned().into(), action }];
    let pending = worker.process.invoke(f, key, asked.clone());
    match worker.access.write(Write { operations, ..Write::default() }).await {
        Ok(answer) => {
            known.keep(answer.body.timestamp);
            pending.ok_with(asked, made(&answer));
        }
        Err(lost) => lose(pending, &lost),
    }
}

/// A stored value as the history tells it. What is no serial number is told as it is: the checker names it.
fn sight(value: Option<&[u8]>) -> Value {
    let text = value.map(String::from_utf8_lossy);
    text.map_or(Value::Null, |text| text.parse::<i64>().map_or_else(|_| json!(text), |serial| json!(serial)))
}

/// Reads a key as of a version; true if that was answered, or refused because it is trimmed.
async fn as_of(process: &mut Process, access: &Access, key: &str, at: Timestamp) -> bool {
    let pending = process.invoke_with("as-of", key, Value::Null, with(Extra::new(), "at", at.0));
    match access.read(key.to_owned(), ReadLevel::AsOf(at)).await {
        Ok(answer) => {
            let mut extra = provenance(&answer.header);
            if let Some(versioned) = &answer.body {
                extra.insert("version".into(), versioned.timestamp.0.into());
            }
            pending.ok_with(sight(answer.body.as_ref().map(|versioned| &versioned.value[..])), extra);
            true
        }
        Err(lost) => {
            let trimmed = lost.to_string() == "HISTORY_TRIMMED";
            lose(pending, &lost);
            trimmed
        }
    }
}

/// Lists the newest versions of a key.
async fn list(process: &mut Process, access: &Access, key: &str) -> Option<Vec<Row>> {
    let pending = process.invoke("versions", key, Value::Null);
    match access.history(key.to_owned(), ROWS).await {
        Ok(page) => {
            let rows = page.body.rows;
            let told: Vec<Value> =
                rows.iter().map(|row| json!([row.timestamp.0, sight(row.value.as_deref())])).collect();
            pending.ok_with(Value::Array(told), provenance(&page.header));
            Some(rows)
        }
        Err(lost) => {
            lose(pending, &lost);
            None
        }
    }
}
