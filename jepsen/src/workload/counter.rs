//! Counters under forced repeats: every request id counts once, whatever happens to its answers.
//!
//! Clients add one to a few counters and lose answers on purpose: they drop the answer of a request that is on its way
//! and send it again elsewhere, send it to two nodes at once, or in turn to all. Later, perhaps after failovers and
//! restarts, additions long acknowledged are repeated again. Now and then an id comes back with another payload, or comes
//! an hour late; both must be refused.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, join};
use rand::RngExt;
use serde_json::{Value, json};
use trivet::types::{Action, Answer, Operation, Outcome, ReadLevel, Reason, RequestId, Write};
use trivet::wire::admin::NewTable;

use super::access::{Access, Doors, Lost};
use super::worker::{Worker, drive, lose, made, provenance, until_read, with};
use super::{Context, Floors, Workload};
use crate::check::{Verdict, counter, refusals};
use crate::history::{Extra, History, Process};

const TABLE: &str = "counter";
const COUNTERS: usize = 6;
const CLIENTS: usize = 8;
/// Additions remembered for a later repeat; spread over a run they reach back for minutes.
const REMEMBERED_MAX: usize = 500;
/// Longest time before an answer is dropped: about what a healthy write takes.
const DROP_MAX: Duration = Duration::from_millis(8);
/// How old the ids are that must be refused: far beyond the retention of outcomes.
const EXPIRED_MS: u64 = 3_600_000;

/// The workload.
pub struct Counters;

/// Additions that were acknowledged.
#[derive(Default)]
struct Memory {
    additions: Mutex<VecDeque<(String, RequestId)>>,
}

impl Memory {
    fn keep(&self, key: &str, id: RequestId, random: &mut impl RngExt) {
        let mut additions = self.additions.lock().unwrap_or_else(PoisonError::into_inner);
        if additions.len() == REMEMBERED_MAX {
            // Old ones stay with some chance: the long way back is what is of interest.
            let at = random.random_range(0..additions.len());
            additions.remove(at);
        }
        additions.push_back((key.to_owned(), id));
    }

    fn pick(&self, random: &mut impl RngExt) -> Option<(String, RequestId)> {
        let additions = self.additions.lock().unwrap_or_else(PoisonError::into_inner);
        let at = random.random_range(0..additions.len().max(1));
        additions.get(at).cloned()
    }
}

impl Workload for Counters {
    fn name(&self) -> &'static str {
        "counter"
    }

    fn promise(&self) -> &'static str {
        "a request id counts once and has one answer for ever, however often and wherever it is sent"
    }

    fn tables(&self) -> Vec<NewTable> {
        vec![NewTable { history_ms: 10_000, ..NewTable::hash(TABLE, 3) }]
    }

    fn run(&self, context: Context) -> BoxFuture<'_, anyhow::Result<()>> {
        async move {
            let doors = Doors::open(&context, TABLE).await?;
            let memory = Memory::default();
            drive(&context, &doors, CLIENTS, |mut worker| {
                let (doors, memory) = (&doors, &memory);
                async move {
                    while worker.pace.turn().await {
                        let key = format!("c{}", worker.random.random_range(0..COUNTERS));
                        match worker.random.random_range(0..100) {
                            0..60 => add(&mut worker, doors, memory, &key).await,
                            60..75 => {
                                read(&mut worker.process, &worker.access, &key, Extra::new()).await;
                            }
                            75..92 => repeat(&mut worker, doors, memory).await,
                            92..97 => other_payload(&mut worker, memory).await,
                            _ => expired(&mut worker, memory).await,
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
            for node in 0..doors.nodes() {
                let access = doors.bound(node);
                let process = tokio::sync::Mutex::new(context.history.process());
                for counter in 0..COUNTERS {
                    let key = format!("c{counter}");
                    let last = with(Extra::new(), "final", true);
                    until_read("a counter", || async {
                        read(&mut *process.lock().await, &access, &key, last.clone()).await
                    })
                    .await?;
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn check(&self, history: &History) -> Verdict {
        // Ids that are reused or late on purpose are judged by the counter's own rules.
        Verdict::all(vec![counter::check(history), refusals::check(history, &["REQUEST_MISMATCH"])])
    }

    fn floors(&self, short: bool) -> Floors {
        let times = if short { 1 } else { 3 };
        let ok = vec![("add", 400), ("read", 100), ("repeat", 100), ("other-payload", 20), ("expired", 10)];
        Floors { ok: ok.into_iter().map(|(f, least)| (f, least * times)).collect(), info_share_max: 0.2 }
    }
}

/// What came of the attempts under one id.
#[derive(Default)]
struct Told {
    answers: Vec<Answer<Outcome>>,
    lost: Vec<Lost>,
    /// Whether an answer was dropped unseen.
    dropped: bool,
}

impl Told {
    fn note(&mut self, result: Result<Answer<Outcome>, Lost>) {
        match result {
            Ok(answer) => self.answers.push(answer),
            Err(lost) => self.lost.push(lost),
        }
    }

    /// Fields of the history: every answer, and why others are missing.
    fn extra(&self, id: RequestId) -> Extra {
        let mut extra = self.answers.first().map(made).unwrap_or_default();
        let pairs: Vec<Value> =
            self.answers.iter().map(|answer| json!([answer.body.timestamp.0, sum(answer)])).collect();
        extra.insert("id".into(), name(id).into());
        extra.insert("answers".into(), pairs.into());
        if !self.lost.is_empty() {
            let errors: Vec<String> = self.lost.iter().map(Lost::to_string).collect();
            extra.insert("errors".into(), errors.into());
        }
        extra
    }
}

fn name(id: RequestId) -> String {
    format!("{:x}-{}", id.client, id.sequence)
}

fn sum(answer: &Answer<Outcome>) -> Option<i64> {
    answer.body.integers.first().copied().flatten()
}

fn increment(key: &str, delta: i64, id: RequestId) -> Write {
    let operations = vec![Operation { key: key.to_owned().into(), action: Action::Increment { delta } }];
    Write { request: Some(id), conditions: Vec::new(), operations }
}

async fn add(worker: &mut Worker, doors: &Doors, memory: &Memory, key: &str) {
    let id = worker.access.request_id();
    let write = increment(key, 1, id);
    let (one, other) = (worker.random.random_range(0..doors.nodes()), worker.random.random_range(0..doors.nodes()));
    let mode = worker.random.random_range(0..4);
    let patience = DROP_MAX.mul_f64(worker.random.random_range(0.0..1.0));
    let pending = worker.process.invoke_with("add", key, json!(1), with(Extra::new(), "id", name(id)));
    let mut told = Told::default();
    match mode {
        0 => told.note(worker.access.write(write).await),
        1 => {
            let bound = doors.bound(one);
            let attempt = bound.attempt();
            let sent = attempt.as_ref().map(|attempt| attempt.write(write.clone()));
            match sent {
                Some(sent) => match tokio::time::timeout(patience, sent).await {
                    Ok(result) => told.note(result),
                    Err(_) => told.dropped = true,
                },
                None => told.dropped = true,
            }
            told.note(worker.access.write(write).await);
        }
        2 => {
            let (first, second) = (doors.bound(one), doors.bound(other));
            let (left, right) = join(first.write(write.clone()), second.write(write)).await;
            told.note(left);
            told.note(right);
        }
        _ => {
            told.note(worker.access.write(write.clone()).await);
            told.note(doors.bound(other).write(write).await);
        }
    }
    let extra = told.extra(id);
    if let Some(answer) = told.answers.first() {
        memory.keep(key, id, &mut worker.random);
        pending.ok_with(json!(sum(answer)), extra);
    } else if told.dropped || told.lost.iter().any(|lost| lost.unknown) {
        pending.info("RESULT_UNDETERMINED");
    } else {
        let why = told.lost.first().map(Lost::to_string).unwrap_or_default();
        pending.fail_with(&why, extra);
    }
}

/// Sends an addition that was acknowledged some time ago once more.
async fn repeat(worker: &mut Worker, doors: &Doors, memory: &Memory) {
    let Some((key, id)) = memory.pick(&mut worker.random) else { return };
    let node = worker.random.random_range(0..doors.nodes());
    let access = if worker.random.random_range(0..2) == 0 { worker.access.clone() } else { doors.bound(node) };
    let pending = worker.process.invoke_with("repeat", &key, json!(1), with(Extra::new(), "id", name(id)));
    let mut told = Told::default();
    told.note(access.write(increment(&key, 1, id)).await);
    let extra = told.extra(id);
    match told.answers.first() {
        Some(answer) => pending.ok_with(json!(sum(answer)), extra),
        // It has had its effect; not to be answered changes nothing.
        None => pending.fail_with(&told.lost.first().map(Lost::to_string).unwrap_or_default(), extra),
    }
}

async fn other_payload(worker: &mut Worker, memory: &Memory) {
    let Some((key, id)) = memory.pick(&mut worker.random) else { return };
    let pending = worker.process.invoke_with("other-payload", &key, json!(2), with(Extra::new(), "id", name(id)));
    match worker.access.write(increment(&key, 2, id)).await {
        Ok(answer) => pending.ok_with(json!(sum(&answer)), made(&answer)),
        Err(lost) if lost.error.reason == Reason::RequestMismatch => {
            pending.ok_with(Value::Null, with(Extra::new(), "refused", lost.to_string()));
        }
        Err(lost) => lose(pending, &lost),
    }
}

/// Of a counter that was added to: a shard that has never had a command has forgotten no request either, and runs it.
async fn expired(worker: &mut Worker, memory: &Memory) {
    let Some((key, _)) = memory.pick(&mut worker.random) else { return };
    let mut id = worker.access.request_id();
    id.issued_ms = id.issued_ms.saturating_sub(EXPIRED_MS);
    let pending = worker.process.invoke_with("expired", &key, json!(1), with(Extra::new(), "id", name(id)));
    match worker.access.write(increment(&key, 1, id)).await {
        Ok(answer) => pending.ok_with(json!(sum(&answer)), made(&answer)),
        Err(lost) if lost.error.reason == Reason::RequestExpired => {
            pending.ok_with(Value::Null, with(Extra::new(), "refused", lost.to_string()));
        }
        Err(lost) => lose(pending, &lost),
    }
}

async fn read(process: &mut Process, access: &Access, key: &str, extra: Extra) -> bool {
    let pending = process.invoke("read", key, Value::Null);
    match access.read(key.to_owned(), ReadLevel::Linearizable).await {
        Ok(answer) => {
            let value = answer.body.as_ref().map(|versioned| String::from_utf8_lossy(&versioned.value).into_owned());
            let value = value.map_or(Value::Null, |text| text.parse::<i64>().map_or(json!(text), |sum| json!(sum)));
            let mut all = provenance(&answer.header);
            all.extend(extra);
            pending.ok_with(value, all);
            true
        }
        Err(lost) => {
            lose(pending, &lost);
            false
        }
    }
}
