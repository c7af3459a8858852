//! Change streams: what changes in a table is told to whoever follows it, once and in order, or it is said that it is
//! not.
//!
//! Clients put, delete and batch some tens of keys in two tables; no value is written twice. In one table the history
//! window is so short that whoever dawdles falls out of it. Each table is followed by five who never share anything
//! ([`Habit`]): one that keeps up, one bound to a node, one that is slow, one that breaks off all the time, and one
//! that is killed at random and must in the end hold exactly what the table holds.
//!
//! At the end the versions of every key are listed through every node, and all followers go on until a page proves by
//! its age that nothing of before then is still to come: nobody tells them when that is.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all, try_join, try_join_all};
use rand::RngExt;
use serde_json::{Value, json};
use trivet::types::{Action, Operation, Write};
use trivet::wire::admin::NewTable;

use super::access::{Access, Doors};
use super::follower::{Follower, Habit, sight};
use super::worker::{Worker, drive, lose, made, provenance, random, until_read};
use super::{Context, Floors, Workload};
use crate::check::{Verdict, changes, refusals};
use crate::history::{History, Process};

/// A table that is followed. Its keys and those who follow it begin with its letter.
struct Table {
    name: &'static str,
    letter: char,
    shards: u32,
    /// How long a value is, at least.
    value_bytes: usize,
    /// Its history window in milliseconds, if it is not the usual one.
    window_ms: Option<u64>,
    /// How long those dawdle who do, in milliseconds.
    dawdles: std::ops::Range<u64>,
}

const TABLES: [Table; 2] = [
    Table { name: "changes", letter: 'l', shards: 3, value_bytes: 1, window_ms: None, dawdles: 1_000..4_000 },
    // Some pauses are longer than the window; and there is so much of it that what lies behind the window leaves the disk
    // while somebody still stands there.
    Table {
        name: "changes-short",
        letter: 's',
        shards: 2,
        value_bytes: 4 << 10,
        window_ms: Some(8_000),
        dawdles: 3_000..15_000,
    },
];
/// Those who follow one table.
const FOLLOWERS: usize = 5;
const CLIENTS: usize = 8;
/// Keys lie in tags, so that there are batches.
const TAGS: usize = 10;
const KEYS_OF_TAG: usize = 3;
/// Writes per second, all tables together: each is told to five and stands in the history as often.
const RATE_MAX: f64 = 60.0;
/// Versions asked of a key.
const VERSIONS: usize = 4_000;

/// The workload.
#[derive(Default)]
pub struct Changes {
    /// Those who follow, between the end of the writes and their own.
    followers: Mutex<Vec<Follower>>,
}

impl Table {
    fn wish(&self) -> NewTable {
        let usual = NewTable::hash(self.name, self.shards);
        NewTable { history_ms: self.window_ms.unwrap_or(usual.history_ms), ..usual }
    }

    fn key(&self, tag: usize, number: usize) -> String {
        format!("{}{{{tag}}}{number}", self.letter)
    }

    fn followers(&self, context: &Context, doors: &Arc<Doors>, part: u64) -> Vec<Follower> {
        let habits = [
            ("keeps-up", Habit::KeepsUp),
            ("bound", Habit::Bound(usize::from(self.window_ms.is_some()))),
            ("slow", Habit::Slow),
            ("reconnects", Habit::Reconnects),
            ("killed", Habit::Killed),
        ];
        let follower = |(number, (name, habit)): (usize, (&str, Habit))| {
            let name = format!("{}:{name}", self.letter);
            let random = random(context, part + number as u64);
            let mut follower =
                Follower::new(name, habit, doors.clone(), context.clock, context.history.process(), random);
            follower.dawdles = self.dawdles.clone();
            follower
        };
        habits.into_iter().enumerate().map(follower).collect()
    }
}

impl Workload for Changes {
    fn name(&self) -> &'static str {
        "changes"
    }

    fn promise(&self) -> &'static str {
        "who follows a table is told every version once, each key's in their order, or is told that it came too late"
    }

    fn tables(&self) -> Vec<NewTable> {
        TABLES.iter().map(Table::wish).collect()
    }

    fn run(&self, context: Context) -> BoxFuture<'_, anyhow::Result<()>> {
        async move {
            let context = Context { rate: context.rate.min(RATE_MAX), ..context };
            let (mut tables, mut followers) = (Vec::new(), Vec::new());
            for (number, table) in TABLES.iter().enumerate() {
                let doors = Arc::new(Doors::open(&context, table.name).await?);
                followers.extend(table.followers(&context, &doors, 1_000 * (number as u64 + 1)));
                tables.push((table, doors));
            }
            let serial = AtomicI64::new(1);
            let writing = drive(&context, &tables[0].1, CLIENTS, |mut worker| {
                let (tables, serial) = (&tables, &serial);
                async move {
                    while worker.pace.turn().await {
                        let (table, doors) = &tables[worker.random.random_range(0..tables.len())];
                        let access = doors.of_worker(worker.number);
                        write(&mut worker, &access, table, serial).await;
                    }
                    Ok(())
                }
            });
            let following = join_all(followers.into_iter().map(|follower| follower.run(context.stop.clone())));
            let ((), followers) = try_join(writing, following.map(Ok)).await?;
            *self.followers.lock().unwrap_or_else(PoisonError::into_inner) = followers;
            Ok(())
        }
        .boxed()
    }

    fn finish(&self, context: Context) -> BoxFuture<'_, anyhow::Result<()>> {
        async move {
            for table in &TABLES {
                let doors = Doors::open(&context, table.name).await?;
                let nodes = (0..doors.nodes()).map(|node| list_all(&context, table, doors.bound(node)));
                try_join_all(nodes).await?;
            }
            let moment = context.clock.now_ns();
            let followers = std::mem::take(&mut *self.followers.lock().unwrap_or_else(PoisonError::into_inner));
            try_join_all(followers.into_iter().map(|follower| follower.come_to_end(moment))).await?;
            Ok(())
        }
        .boxed()
    }

    fn check(&self, history: &History) -> Verdict {
        let windows = TABLES.iter().map(|table| (table.letter, table.wish().history_ms)).collect();
        Verdict::all(vec![changes::check(history, &windows), refusals::check(history, &["CURSOR_TRIMMED"])])
    }

    fn floors(&self, short: bool) -> Floors {
        let times = if short { 1 } else { 3 };
        // In a long run some come too late, and begin once more.
        let begun = FOLLOWERS * TABLES.len() + if short { 0 } else { 3 };
        let ok = vec![("put", 200), ("delete", 50), ("batch", 80), ("page", 400), ("resume", 60), ("versions", 60)];
        let ok = ok.into_iter().map(|(f, least)| (f, if f == "versions" { least } else { least * times }));
        Floors { ok: ok.chain([("begin", begun), ("model", TABLES.len())]).collect(), info_share_max: 0.2 }
    }
}

/// One write of one or of some keys of a tag.
async fn write(worker: &mut Worker, access: &Access, table: &Table, serial: &AtomicI64) {
    let (tag, number) = (worker.random.random_range(0..TAGS), worker.random.random_range(0..KEYS_OF_TAG));
    let chance = worker.random.random_range(0..100);
    let mut operations = Vec::new();
    let mut told = Vec::new();
    for at in 0..KEYS_OF_TAG {
        // A batch leaves out one key, or none.
        let is_batch = chance >= 80;
        if if is_batch { at == number && chance < 90 } else { at != number } {
            continue;
        }
        let deletes = if is_batch { worker.random.random_range(0..4) == 0 } else { chance >= 62 };
        let key = table.key(tag, at);
        let (value, action) = if deletes {
            (Value::Null, Action::Delete)
        } else {
            let fresh = serial.fetch_add(1, Ordering::Relaxed);
            let value = format!("{fresh:<bytes$}", bytes = table.value_bytes);
            (json!(fresh), Action::Put { value: value.into(), ttl_ms: None })
        };
        operations.push(Operation { key: key.clone().into(), action });
        told.push((key, value));
    }
    let pending = match told.as_slice() {
        [(key, Value::Null)] => worker.process.invoke("delete", key, Value::Null),
        [(key, value)] => worker.process.invoke("put", key, value.clone()),
        _ => {
            let tag = format!("{}{{{tag}}}", table.letter);
            worker.process.invoke("batch", &tag, json!(told))
        }
    };
    match access.write(Write { operations, ..Write::default() }).await {
        Ok(answer) => pending.ok_with(Value::Null, made(&answer)),
        Err(lost) => lose(pending, &lost),
    }
}

/// Lists the versions of every key through a node.
async fn list_all(context: &Context, table: &Table, access: Access) -> anyhow::Result<()> {
    let process = tokio::sync::Mutex::new(context.history.process());
    for tag in 0..TAGS {
        for number in 0..KEYS_OF_TAG {
            let key = table.key(tag, number);
            until_read("a list of versions", || async { list(&mut *process.lock().await, &access, &key).await })
                .await?;
        }
    }
    Ok(())
}

async fn list(process: &mut Process, access: &Access, key: &str) -> bool {
    let pending = process.invoke("versions", key, Value::Null);
    match access.history(key.to_owned(), VERSIONS).await {
        Ok(page) => {
            let rows = page.body.rows.iter().map(|row| json!([row.timestamp.0, sight(row.value.as_deref())]));
            pending.ok_with(rows.collect(), provenance(&page.header));
            true
        }
        Err(lost) => {
            lose(pending, &lost);
            false
        }
    }
}
