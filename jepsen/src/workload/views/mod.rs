//! Views: lists of orders by user, sums by user, and orders put together with notes on them.
//!
//! Clients create orders, change their status and their user, delete them, and do all that in batches of a tag; each order
//! may have two notes in another table. Every document has a serial that no other has. Each client is a session: after a
//! write it looks for it in a view with the token of that write, and it reads the views at every other level, through
//! leaders and copies. Some orders fit neither lists nor sums: they lack a field that these need. Somebody looks on: how far
//! the views are, whether a comparison finds a difference, and now and then it has the sums rest for a moment.
//!
//! At the end everything is read through every node, views by the nodes' own copies too, comparisons must agree, also on how
//! many documents do not fit, and the versions of all rows are listed: what was true, whatever clients were not told.

mod ask;
mod watch;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt as _;
use futures::future::{BoxFuture, try_join};
use futures::{StreamExt as _, stream};
use rand::RngExt;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};
use trivet::client::ReadFrom;
use trivet::types::{Action, Operation, Timestamp, Write};
use trivet::wire::admin::NewTable;

use super::access::{Access, Doors};
use super::worker::{Worker, drive, lose, made, until_read, with};
use super::{Context, Floors, Workload};
use crate::check::views::{self, CANCELLED};
use crate::check::{Verdict, refusals};
use crate::history::{Extra, History};

const ORDERS: &str = "vorders";
const NOTES: &str = "vnotes";
const BY_USER: &str = "vorders_by_user";
const SUMS: &str = "vuser_sums";
const MERGED: &str = "vorders_noted";

const DEFINITIONS: [&str; 3] = [
    r#"
name = "vorders_by_user"
kind = "rekeyed"
shards = 2
[[sources]]
table = "vorders"
where = "doc.status != 'cancelled'"
partition_by = "user"
order_by = ["status", "-amount"]
"#,
    r#"
name = "vuser_sums"
kind = "aggregate"
shards = 2
[[sources]]
table = "vorders"
where = "doc.status != 'cancelled'"
partition_by = "user"
[aggregates]
orders = "count"
amount = "sum(amount)"
newest = "max(amount)"
"#,
    r#"
name = "vorders_noted"
kind = "merged"
shards = 2
[[sources]]
table = "vorders"
as = "order"
partition_by = "order"
[[sources]]
table = "vnotes"
as = "note"
partition_by = "order"
"#,
];

const CLIENTS: usize = 8;
/// Orders lie in tags, so that there are batches.
const TAGS: usize = 12;
const ORDERS_OF_TAG: usize = 6;
/// One of them has what keys of views must write otherwise.
const USERS: [&str; 8] = ["u0", "u1", "u2", "u3", "u4", "u5", "u6", "y/z {ü}"];
const STATES: [&str; 4] = ["open", "paid", "shipped", CANCELLED];
/// What orders lack that do not fit, and one in how many that are written does not.
const LACKED: [&str; 2] = ["user", "status"];
const UNFIT_ONE_IN: usize = 16;
/// Operations per second: each of them concerns some shards of three views.
const RATE_MAX: f64 = 40.0;
/// Versions asked of a row.
const VERSIONS: usize = 4_000;
/// Rows whose versions are listed at once.
const LISTING: usize = 8;

/// The workload.
pub struct Views;

/// An order that is worked on. Its number is its own for ever: what takes its place when it is deleted has another.
#[derive(Clone, Copy)]
struct Slot {
    number: u64,
    user: &'static str,
}

/// What all clients share.
struct Shared {
    orders: Doors,
    notes: Doors,
    by_user: Doors,
    sums: Doors,
    merged: Doors,
    slots: Vec<Vec<Mutex<Slot>>>,
    /// Of documents and of orders.
    serial: AtomicU64,
}

/// One session: what it has written.
struct Session {
    number: u64,
    token: Timestamp,
    /// Whose lists and which order its last write concerned.
    users: Vec<&'static str>,
    order: String,
}

impl Workload for Views {
    fn name(&self) -> &'static str {
        "views"
    }

    fn promise(&self) -> &'static str {
        "a view is what its sources say, each change once, no older than it says or may be, and whoever wrote sees it there"
    }

    fn tables(&self) -> Vec<NewTable> {
        vec![NewTable::hash(ORDERS, 3), NewTable::hash(NOTES, 2)]
    }

    fn views(&self) -> Vec<&'static str> {
        DEFINITIONS.to_vec()
    }

    fn run(&self, context: Context) -> BoxFuture<'_, anyhow::Result<()>> {
        async move {
            let context = Context { rate: context.rate.min(RATE_MAX), ..context };
            let shared = Shared::open(&context).await?;
            let working = drive(&context, &shared.orders, CLIENTS, |mut worker| {
                let shared = &shared;
                async move {
                    let mut session = Session::new(worker.number as u64);
                    while worker.pace.turn().await {
                        match worker.random.random_range(0..100) {
                            0..30 => write_orders(&mut worker, &mut session, shared).await,
                            30..38 => write_note(&mut worker, &mut session, shared).await,
                            _ => ask::some(&mut worker, &session, shared).await,
                        }
                    }
                    Ok(())
                }
            });
            try_join(working, watch::run(&context, &shared.orders)).await.map(|_| ())
        }
        .boxed()
    }

    fn finish(&self, context: Context) -> BoxFuture<'_, anyhow::Result<()>> {
        async move {
            let shared = Shared::open(&context).await?;
            watch::resume(&context, &shared.orders).await?;
            for doors in [&shared.by_user, &shared.sums, &shared.merged] {
                let process = tokio::sync::Mutex::new(context.history.process());
                until_read("a view", || async {
                    let process = &mut *process.lock().await;
                    ask::whole(process, &doors.routing(), "settle", doors.table(), Extra::new()).await
                })
                .await?;
            }
            for doors in [&shared.orders, &shared.notes, &shared.by_user, &shared.sums, &shared.merged] {
                for node in 0..doors.nodes() {
                    for access in [doors.bound(node), doors.bound(node).of_any_replica()] {
                        let process = tokio::sync::Mutex::new(context.history.process());
                        until_read("a table", || async {
                            let process = &mut *process.lock().await;
                            let through = with(Extra::new(), "through", node);
                            ask::whole(process, &access, "final", doors.table(), through).await
                        })
                        .await?;
                    }
                }
            }
            watch::verify_all(&context, &shared.orders).await?;
            list_versions(&context, &shared).await
        }
        .boxed()
    }

    fn check(&self, history: &History) -> Verdict {
        Verdict::all(vec![views::check(history), refusals::check(history, &[])])
    }

    fn floors(&self, short: bool) -> Floors {
        let times = if short { 1 } else { 3 };
        let ok = [("put", 120), ("delete", 15), ("batch", 30), ("list", 150), ("sum", 40), ("merged", 40)];
        let ok = ok.into_iter().chain([("describe", 15)]).map(|(f, least)| (f, least * times));
        // Of all tables through all nodes, and of each view at the end.
        Floors { ok: ok.chain([("verify", 4), ("final", 30), ("versions", 60)]).collect(), info_share_max: 0.2 }
    }
}

impl Shared {
    async fn open(context: &Context) -> anyhow::Result<Shared> {
        let slot = |number: usize| Mutex::new(Slot { number: number as u64, user: USERS[number % USERS.len()] });
        let tag = |tag: usize| (0..ORDERS_OF_TAG).map(|at| slot(tag * ORDERS_OF_TAG + at)).collect();
        Ok(Shared {
            orders: Doors::open(context, ORDERS).await?,
            notes: Doors::open(context, NOTES).await?,
            by_user: Doors::open(context, BY_USER).await?,
            sums: Doors::open(context, SUMS).await?,
            merged: Doors::open(context, MERGED).await?,
            slots: (0..TAGS).map(tag).collect(),
            serial: AtomicU64::new((TAGS * ORDERS_OF_TAG) as u64),
        })
    }

    fn slot(&self, tag: usize, at: usize) -> Slot {
        *self.slots[tag][at].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn set(&self, tag: usize, at: usize, slot: Slot) {
        *self.slots[tag][at].lock().unwrap_or_else(std::sync::PoisonError::into_inner) = slot;
    }

    fn fresh(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    /// A way that has nothing to do with that of the session's last operation.
    fn any_way(&self, doors: &Doors, worker: &mut Worker) -> Access {
        match worker.random.random_range(0..6) {
            0 => doors.routing(),
            1 => doors.reading_from(ReadFrom::Nearest),
            2 => doors.reading_from(ReadFrom::LeastLoaded),
            choice => {
                let bound = doors.bound(worker.random.random_range(0..doors.nodes()));
                if choice == 3 { bound } else { bound.of_any_replica() }
            }
        }
    }
}

impl Session {
    fn new(number: u64) -> Session {
        Session { number, token: Timestamp::ZERO, users: Vec::new(), order: order(0, 0) }
    }
}

fn order(tag: usize, number: u64) -> String {
    format!("{{g{tag}}}{number}")
}

/// Puts or deletes one order or some of a tag.
async fn write_orders(worker: &mut Worker, session: &mut Session, shared: &Shared) {
    let tag = worker.random.random_range(0..TAGS);
    let first = worker.random.random_range(0..ORDERS_OF_TAG);
    let is_batch = worker.random.random_range(0..100) < 25;
    let count = if is_batch { worker.random.random_range(2..4) } else { 1 };
    let (mut rows, mut users, mut gone) = (Vec::new(), Vec::new(), Vec::new());
    for at in (0..count).map(|step| (first + step) % ORDERS_OF_TAG) {
        let slot = shared.slot(tag, at);
        users.push(slot.user);
        if worker.random.random_range(0..100) < 12 {
            rows.push((order(tag, slot.number), Value::Null));
            gone.push(at);
            continue;
        }
        let moves = worker.random.random_range(0..100) < 35;
        let user = if moves { USERS.choose(&mut worker.random).copied().unwrap_or(slot.user) } else { slot.user };
        let status = STATES.choose(&mut worker.random).copied().unwrap_or_default();
        shared.set(tag, at, Slot { user, ..slot });
        users.push(user);
        let key = order(tag, slot.number);
        // The serial is the amount, so that sums tell which orders they are of.
        let mut document = json!({"order": key, "user": user, "status": status, "amount": shared.fresh()});
        if worker.random.random_range(0..UNFIT_ONE_IN) == 0
            && let (Some(fields), Some(lacked)) = (document.as_object_mut(), LACKED.choose(&mut worker.random))
        {
            fields.remove(*lacked);
        }
        rows.push((key, document));
    }
    let key = if is_batch { format!("{{g{tag}}}") } else { rows[0].0.clone() };
    session.order = rows[0].0.clone();
    session.users = users;
    write(worker, session, &shared.orders, &key, is_batch, rows).await;
    for at in gone {
        let slot = shared.slot(tag, at);
        shared.set(tag, at, Slot { number: shared.fresh(), ..slot });
    }
}

/// Puts or deletes a note on an order.
async fn write_note(worker: &mut Worker, session: &mut Session, shared: &Shared) {
    let tag = worker.random.random_range(0..TAGS);
    let slot = shared.slot(tag, worker.random.random_range(0..ORDERS_OF_TAG));
    let order = order(tag, slot.number);
    let key = format!("{order}/{}", if worker.random.random_range(0..2) == 0 { 'a' } else { 'b' });
    let deletes = worker.random.random_range(0..100) < 35;
    let document = if deletes { Value::Null } else { json!({"order": order, "text": shared.fresh()}) };
    session.order = order;
    write(worker, session, &shared.notes, &key.clone(), false, vec![(key, document)]).await;
}

async fn write(
    worker: &mut Worker,
    session: &mut Session,
    doors: &Doors,
    key: &str,
    is_batch: bool,
    rows: Vec<(String, Value)>,
) {
    let f = match &rows[0].1 {
        _ if is_batch => "batch",
        Value::Null => "delete",
        _ => "put",
    };
    let action = |document: &Value| match document {
        Value::Null => Action::Delete,
        document => Action::Put { value: document.to_string().into(), ttl_ms: None },
    };
    let operations =
        rows.iter().map(|(key, document)| Operation { key: key.clone().into(), action: action(document) }).collect();
    let asked = with(Extra::new(), "session", session.number);
    let pending = worker.process.invoke_with(f, key, json!(rows), asked);
    match doors.of_worker(worker.number).write(Write { operations, ..Write::default() }).await {
        Ok(answer) => {
            session.token = session.token.max(answer.body.timestamp);
            pending.ok_with(Value::Null, made(&answer));
        }
        Err(lost) => lose(pending, &lost),
    }
}

/// Lists the versions of every row that was ever written, each through some node.
async fn list_versions(context: &Context, shared: &Shared) -> anyhow::Result<()> {
    let keys = views::keys(&context.history.history());
    let listed = stream::iter(keys.into_iter().enumerate()).map(|(number, key)| async move {
        let doors = if key.contains('/') { &shared.notes } else { &shared.orders };
        let access = doors.bound(number % doors.nodes());
        let process = tokio::sync::Mutex::new(context.history.process());
        until_read("a list of versions", || async {
            ask::versions(&mut *process.lock().await, &access, &key, VERSIONS).await
        })
        .await
    });
    let mut listed = listed.buffer_unordered(LISTING);
    while let Some(one) = listed.next().await {
        one?;
    }
    Ok(())
}
