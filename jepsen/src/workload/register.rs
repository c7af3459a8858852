//! Registers: read, write, compare-and-swap, put-if-absent, delete.
//!
//! Groups of eight clients work on one key at a time, four of them only reading; after [`KEY_OPERATIONS`] operations, or
//! when too many of them have an unknown outcome for a bounded search, the group turns to a new key. Values are serial
//! numbers, unique in the run. Half of the swaps compare values, half versions. Put-if-absent is a swap from null.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use rand::RngExt;
use serde_json::{Value, json};
use trivet::types::{Action, Condition, Operation, ReadLevel, Test, Timestamp, Versioned, Write};
use trivet::wire::admin::NewTable;

use super::access::{Access, Doors};
use super::worker::{Worker, drive, lose, made, provenance, until_read, with};
use super::{Context, Floors, Workload};
use crate::check::{Verdict, refusals, register, versions};
use crate::history::{Extra, History, Process};

const TABLE: &str = "register";
/// Clients on one key at a time: what a search for an order can bear.
const GROUP: usize = 8;
const GROUPS: usize = 2;
/// Operations on a key before the next: as many as a search can bear.
const KEY_OPERATIONS: usize = 400;
/// Operations of unknown outcome on a key before the next: each doubles the states of a search at worst.
const KEY_UNKNOWN: usize = 12;

/// The workload.
pub struct Registers;

/// What the clients of one group share.
struct Group {
    number: usize,
    state: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    generation: usize,
    operations: usize,
    unknown: usize,
    /// The newest value that an answer showed, and its version.
    seen: Option<(i64, Timestamp)>,
}

impl Group {
    fn state(&self) -> MutexGuard<'_, Current> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key of the next operation.
    fn key(&self) -> String {
        let mut state = self.state();
        if state.operations >= KEY_OPERATIONS || state.unknown >= KEY_UNKNOWN {
            *state = Current { generation: state.generation + 1, ..Current::default() };
        }
        state.operations += 1;
        format!("r{}-{}", self.number, state.generation)
    }

    /// Takes note of what a key was seen to hold.
    fn see(&self, key: &str, value: i64, version: Timestamp) {
        let mut state = self.state();
        let current = key == format!("r{}-{}", self.number, state.generation);
        if current && state.seen.is_none_or(|(_, seen)| seen < version) {
            state.seen = Some((value, version));
        }
    }
}

impl Workload for Registers {
    fn name(&self) -> &'static str {
        "register"
    }

    fn promise(&self) -> &'static str {
        "each key is linearizable, and every answer's version agrees with all others"
    }

    fn tables(&self) -> Vec<NewTable> {
        // The usual history, unlike the other tables: versions carry the outcomes of puts.
        vec![NewTable::hash(TABLE, 4)]
    }

    fn run(&self, context: Context) -> BoxFuture<'_, anyhow::Result<()>> {
        async move {
            let doors = Doors::open(&context, TABLE).await?;
            let serial = AtomicI64::new(1);
            let groups: Vec<Group> = (0..GROUPS).map(|number| Group { number, state: Mutex::default() }).collect();
            drive(&context, &doors, GROUPS * GROUP, |mut worker| {
                // Ways alternate by worker and groups by pairs, so every group has clients of all ways.
                let group = &groups[worker.number / 2 % GROUPS];
                let reader = (worker.number / (2 * GROUPS)).is_multiple_of(2);
                let serial = &serial;
                async move {
                    while worker.pace.turn().await {
                        step(&mut worker, group, serial, reader).await;
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
            let keys: BTreeSet<String> =
                context.history.history().operations.into_iter().map(|operation| operation.key).collect();
            for node in 0..doors.nodes() {
                let access = doors.bound(node);
                let process = tokio::sync::Mutex::new(context.history.process());
                for key in &keys {
                    until_read("a register", || async { read(&mut *process.lock().await, &access, key).await.is_ok() })
                        .await?;
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn check(&self, history: &History) -> Verdict {
        Verdict::all(vec![register::check(history), versions::check(history), refusals::check(history, &[])])
    }

    fn floors(&self, short: bool) -> Floors {
        let times = if short { 1 } else { 3 };
        let ok = vec![("read", 500), ("write", 150), ("cas", 75), ("delete", 30)];
        Floors { ok: ok.into_iter().map(|(f, least)| (f, least * times)).collect(), info_share_max: 0.2 }
    }
}

async fn step(worker: &mut Worker, group: &Group, serial: &AtomicI64, reader: bool) {
    let key = group.key();
    let chance = worker.random.random_range(0..100);
    if reader || chance < 10 {
        if let Ok(Some((value, version))) = read(&mut worker.process, &worker.access, &key).await {
            group.see(&key, value, version);
        }
        return;
    }
    let fresh = serial.fetch_add(1, Ordering::Relaxed);
    let seen = group.state().seen;
    let (f, asked, test, action) = match (chance, seen) {
        (10..45, _) => ("write", json!(fresh), None, put(fresh)),
        (45..55, _) => ("delete", Value::Null, None, Action::Delete),
        (55..75, Some((value, _))) => {
            ("cas", json!([value, fresh]), Some(Test::Value(value.to_string().into())), put(fresh))
        }
        (75..90, Some((value, version))) => ("cas", json!([value, fresh]), Some(Test::Version(version)), put(fresh)),
        _ => ("cas", json!([null, fresh]), Some(Test::Absent), put(fresh)),
    };
    let conditions = test.into_iter().map(|test| Condition { key: key.clone().into(), test }).collect();
    let operations = vec![Operation { key: key.clone().into(), action }];
    let pending = worker.process.invoke(f, &key, asked.clone());
    match worker.access.write(Write { request: None, conditions, operations }).await {
        Ok(answer) if answer.body.applied => {
            if f != "delete" {
                group.see(&key, fresh, answer.body.timestamp);
            }
            pending.ok_with(asked, made(&answer));
        }
        Ok(answer) => {
            let current = answer.body.observed.as_ref().and_then(|observed| observed.current.as_ref());
            let (value, extra) = sight(current, provenance(&answer.header));
            if let (Some(value), Some(current)) = (value.as_i64(), current) {
                group.see(&key, value, current.timestamp);
            }
            pending.fail_with("mismatch", with(extra, "observed", value));
        }
        Err(lost) => {
            group.state().unknown += usize::from(lost.unknown);
            lose(pending, &lost);
        }
    }
}

/// Reads a key; none if it is absent.
async fn read(process: &mut Process, access: &Access, key: &str) -> Result<Option<(i64, Timestamp)>, ()> {
    let pending = process.invoke("read", key, Value::Null);
    match access.read(key.to_owned(), ReadLevel::Linearizable).await {
        Ok(answer) => {
            let (value, extra) = sight(answer.body.as_ref(), provenance(&answer.header));
            pending.ok_with(value.clone(), extra);
            Ok(value.as_i64().zip(answer.body.map(|versioned| versioned.timestamp)))
        }
        Err(lost) => {
            lose(pending, &lost);
            Err(())
        }
    }
}

/// A stored value as the history tells it. What is no serial number is told as it is: the checker names it.
fn sight(versioned: Option<&Versioned>, extra: Extra) -> (Value, Extra) {
    let Some(versioned) = versioned else { return (Value::Null, extra) };
    let text = String::from_utf8_lossy(&versioned.value);
    let value = text.parse::<i64>().map_or_else(|_| json!(text), |serial| json!(serial));
    (value, with(extra, "version", versioned.timestamp.0))
}

fn put(value: i64) -> Action {
    Action::Put { value: value.to_string().into(), ttl_ms: None }
}
