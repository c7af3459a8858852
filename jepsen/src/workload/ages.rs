//! Ages and sessions: any replica may answer, and says how old its answer can be.
//!
//! A few keys are put all the time and read at every level, through clients that route to the leader, to the nearest or
//! to the least busy replica, and through single nodes. Each worker is a session: it carries one token from whatever it
//! was answered to its next read, which it makes through a client of another kind.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use rand::RngExt;
use serde_json::{Value, json};
use trivet::client::ReadFrom;
use trivet::types::{Action, Header, Operation, ReadLevel, Timestamp, Token, Write};
use trivet::wire::admin::NewTable;

use super::access::{Access, Doors};
use super::worker::{Worker, drive, lose, made, provenance, until_read, with};
use super::{Context, Floors, Workload};
use crate::check::{Verdict, ages, refusals};
use crate::history::{Extra, History, Process};

const TABLE: &str = "ages";
const CLIENTS: usize = 8;
/// Keys: few, so that a read soon follows a put of the same.
const KEYS: u64 = 12;
/// Greatest ages asked for, in milliseconds.
const MAX_AGE_MS: std::ops::Range<u64> = 0..1_500;

/// The workload.
pub struct Ages;

/// One session: what it has seen, as a token.
struct Session {
    number: u64,
    token: Timestamp,
}

impl Session {
    fn note(&mut self, header: &Header) {
        self.token = self.token.max(header.as_of);
    }
}

impl Workload for Ages {
    fn name(&self) -> &'static str {
        "ages"
    }

    fn promise(&self) -> &'static str {
        "no answer is older than it says or than was allowed, whichever replica gives it, and a session sees what it has \
         written and seen"
    }

    fn tables(&self) -> Vec<NewTable> {
        vec![NewTable::hash(TABLE, 3)]
    }

    fn run(&self, context: Context) -> BoxFuture<'_, anyhow::Result<()>> {
        async move {
            let doors = Doors::open(&context, TABLE).await?;
            let next = AtomicU64::new(1);
            drive(&context, &doors, CLIENTS, |mut worker| {
                let (next, doors) = (&next, &doors);
                async move {
                    let mut session = Session { number: worker.number as u64, token: Timestamp::ZERO };
                    while worker.pace.turn().await {
                        let key = format!("k{}", worker.random.random_range(0..KEYS));
                        if worker.random.random_range(0..100) < 30 {
                            let value = next.fetch_add(1, Ordering::Relaxed);
                            put(&mut worker, &mut session, &key, value).await;
                        } else {
                            let level = level(&mut worker, &session);
                            let access = any_way(&mut worker, doors);
                            read(&mut worker.process, &access, &mut session, &key, level).await;
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
            // Sessions that no worker had.
            for node in 0..doors.nodes() {
                let access = doors.bound(node).of_any_replica();
                let session = Session { number: (CLIENTS + node) as u64, token: Timestamp::ZERO };
                let state = tokio::sync::Mutex::new((context.history.process(), session));
                for key in 0..KEYS {
                    until_read("a key", || async {
                        let (process, session) = &mut *state.lock().await;
                        read(process, &access, session, &format!("k{key}"), ReadLevel::Linearizable).await
                    })
                    .await?;
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn check(&self, history: &History) -> Verdict {
        Verdict::all(vec![ages::check(history), refusals::check(history, &[])])
    }

    fn floors(&self, short: bool) -> Floors {
        let times = if short { 1 } else { 3 };
        Floors { ok: vec![("put", 150 * times), ("read", 500 * times)], info_share_max: 0.2 }
    }
}

fn level(worker: &mut Worker, session: &Session) -> ReadLevel {
    match worker.random.random_range(0..10) {
        0..2 => ReadLevel::Any,
        2..5 => ReadLevel::MaxAge(Duration::from_millis(worker.random.random_range(MAX_AGE_MS))),
        5..8 => ReadLevel::AtLeast(Token { timestamp: session.token }),
        _ => ReadLevel::Linearizable,
    }
}

/// A way that has nothing to do with that of the session's last operation.
fn any_way(worker: &mut Worker, doors: &Doors) -> Access {
    match worker.random.random_range(0..6) {
        0 => worker.access.clone(),
        1 => doors.reading_from(ReadFrom::Nearest),
        2 => doors.reading_from(ReadFrom::LeastLoaded),
        choice => {
            let bound = doors.bound(worker.random.random_range(0..doors.nodes()));
            if choice == 3 { bound } else { bound.of_any_replica() }
        }
    }
}

async fn put(worker: &mut Worker, session: &mut Session, key: &str, value: u64) {
    let action = Action::Put { value: value.to_string().into(), ttl_ms: None };
    let operations = vec![Operation { key: key.to_owned().into(), action }];
    let asked = with(Extra::new(), "session", session.number);
    let pending = worker.process.invoke_with("put", key, json!(value), asked);
    match worker.access.write(Write { operations, ..Write::default() }).await {
        Ok(answer) => {
            session.note(&answer.header);
            pending.ok_with(json!(value), with(made(&answer), "shard", answer.header.shard.0));
        }
        Err(lost) => lose(pending, &lost),
    }
}

async fn read(process: &mut Process, access: &Access, session: &mut Session, key: &str, level: ReadLevel) -> bool {
    let asked = with(Extra::new(), "session", session.number);
    let asked = match level {
        ReadLevel::MaxAge(age) => with(with(asked, "level", "max_age"), "max_age_ms", age.as_millis() as u64),
        ReadLevel::AtLeast(token) => with(with(asked, "level", "at_least"), "token", token.timestamp.0),
        ReadLevel::Any => with(asked, "level", "any"),
        _ => with(asked, "level", "linearizable"),
    };
    let pending = process.invoke_with("read", key, Value::Null, asked);
    match access.read(key.to_owned(), level).await {
        Ok(answer) => {
            session.note(&answer.header);
            let text = answer.body.as_ref().map(|found| String::from_utf8_lossy(&found.value).into_owned());
            let value =
                text.map_or(Value::Null, |text| text.parse::<u64>().map_or(json!(text), |number| json!(number)));
            let mut extra = with(provenance(&answer.header), "shard", answer.header.shard.0);
            if let Some(found) = &answer.body {
                extra.insert("version".into(), found.timestamp.0.into());
            }
            if let Some(age) = answer.header.age {
                extra.insert("age_us".into(), (age.as_micros() as u64).into());
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
