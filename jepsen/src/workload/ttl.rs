//! Times to live: readable until they end, and never again.
//!
//! Every key is put once, for some seconds, and read through all ways until some seconds after its end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use rand::RngExt;
use serde_json::{Value, json};
use trivet::types::{Action, Operation, ReadLevel, Write};
use trivet::wire::admin::NewTable;

use super::access::{Access, Doors};
use super::worker::{Worker, drive, lose, made, provenance, until_read, with};
use super::{Context, Floors, Workload};
use crate::check::{Verdict, refusals, ttl};
use crate::history::{Extra, History, Process};

const TABLE: &str = "ttl";
const CLIENTS: usize = 8;
/// Times to live, in milliseconds: short enough that most end within the shortest run, long enough for some reads.
const TTL_MS: std::ops::Range<u64> = 500..4_000;
/// How long after its end a key is still read.
const AFTER: Duration = Duration::from_secs(10);
/// Most keys read at a time, so that each is read often.
const KEYS_MAX: usize = 60;
/// Keys read at the end through every node.
const FINAL_MAX: usize = 50;

/// The workload.
pub struct Lives;

/// A key that is read, and when that ends, by the harness' clock.
struct Live {
    key: String,
    until: u64,
}

impl Workload for Lives {
    fn name(&self) -> &'static str {
        "ttl"
    }

    fn promise(&self) -> &'static str {
        "a value is readable for its time to live, not longer, and once gone never comes back"
    }

    fn tables(&self) -> Vec<NewTable> {
        vec![NewTable { history_ms: 5_000, ..NewTable::hash(TABLE, 3) }]
    }

    fn run(&self, context: Context) -> BoxFuture<'_, anyhow::Result<()>> {
        async move {
            let doors = Doors::open(&context, TABLE).await?;
            let next = AtomicU64::new(0);
            let lives: Mutex<VecDeque<Live>> = Mutex::default();
            drive(&context, &doors, CLIENTS, |mut worker| {
                let (next, lives, clock) = (&next, &lives, context.clock);
                async move {
                    while worker.pace.turn().await {
                        let now = clock.now_ns();
                        let key = {
                            let mut lives = lives.lock().unwrap_or_else(PoisonError::into_inner);
                            lives.retain(|live| live.until > now);
                            let full = lives.len() >= KEYS_MAX;
                            let read = !lives.is_empty() && (full || worker.random.random_range(0..100) < 80);
                            read.then(|| lives[worker.random.random_range(0..lives.len())].key.clone())
                        };
                        match key {
                            Some(key) => {
                                let any = worker.random.random_range(0..4) == 0;
                                let level = if any { ReadLevel::Any } else { ReadLevel::Linearizable };
                                read(&mut worker.process, &worker.access, &key, level).await;
                            }
                            None => {
                                let number = next.fetch_add(1, Ordering::Relaxed);
                                let ttl_ms = worker.random.random_range(TTL_MS);
                                let key = format!("t{number}");
                                let until = now + Duration::from_millis(ttl_ms).as_nanos() as u64;
                                let until = until + AFTER.as_nanos() as u64;
                                // From now on, so that it is read before it is acknowledged as well.
                                let live = Live { key: key.clone(), until };
                                lives.lock().unwrap_or_else(PoisonError::into_inner).push_back(live);
                                put(&mut worker, &key, number, ttl_ms).await;
                            }
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
            let history = context.history.history();
            let mut keys: Vec<String> = history.all("put").map(|(_, operation)| operation.key.clone()).collect();
            keys.drain(..keys.len().saturating_sub(FINAL_MAX));
            for node in 0..doors.nodes() {
                let access = doors.bound(node);
                let process = tokio::sync::Mutex::new(context.history.process());
                for key in &keys {
                    until_read("a key", || async {
                        read(&mut *process.lock().await, &access, key, ReadLevel::Linearizable).await
                    })
                    .await?;
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn check(&self, history: &History) -> Verdict {
        Verdict::all(vec![ttl::check(history), refusals::check(history, &[])])
    }

    fn floors(&self, short: bool) -> Floors {
        let times = if short { 1 } else { 3 };
        Floors { ok: vec![("put", 150 * times), ("read", 500 * times)], info_share_max: 0.2 }
    }
}

async fn put(worker: &mut Worker, key: &str, value: u64, ttl_ms: u64) {
    let action = Action::Put { value: value.to_string().into(), ttl_ms: Some(ttl_ms) };
    let operations = vec![Operation { key: key.to_owned().into(), action }];
    let asked = with(Extra::new(), "ttl_ms", ttl_ms);
    let pending = worker.process.invoke_with("put", key, json!(value), asked);
    match worker.access.write(Write { operations, ..Write::default() }).await {
        Ok(answer) => pending.ok_with(json!(value), made(&answer)),
        Err(lost) => lose(pending, &lost),
    }
}

async fn read(process: &mut Process, access: &Access, key: &str, level: ReadLevel) -> bool {
    let told = if level == ReadLevel::Any { "any" } else { "linearizable" };
    let pending = process.invoke_with("read", key, Value::Null, with(Extra::new(), "level", told));
    match access.read(key.to_owned(), level).await {
        Ok(answer) => {
            let value = answer.body.as_ref().map(|versioned| String::from_utf8_lossy(&versioned.value).into_owned());
            let value =
                value.map_or(Value::Null, |text| text.parse::<u64>().map_or(json!(text), |number| json!(number)));
            let mut extra = provenance(&answer.header);
            if let Some(versioned) = &answer.body {
                extra.insert("version".into(), versioned.timestamp.0.into());
            }
            pending.ok_with(value, extra);
            true
        }
        Err(lost) => {
            lose(pending, &lost);
            false
        }
    }
}
