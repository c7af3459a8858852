//! The catalog under traffic: tables and views come and go, and names are used again, while others write and read there.
//!
//! Each name has a keeper, who alone creates and drops it: he asks every node for the table as soon as it is acknowledged,
//! and writes and reads through each; lets it live for some seconds; often derives a view from it, tries to drop the table
//! under the view, drops the view; and drops the table, and writes there through every node as soon as that is
//! acknowledged. Every life has a history window that no other has, so that a definition names the life it is of.
//! Others write and scan by name, whatever there is.
//!
//! What a verb without an answer does it may do later, also to the next life of the name: such a name is not used again,
//! and its keeper goes on with a fresh one.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, try_join, try_join_all};
use rand::RngExt;
use serde_json::{Value, json};
use tokio::time::Instant;
use trivet::client::Admin;
use trivet::types::{Action, Error, Operation, Partitioning, ReadLevel, Reason, ScanRequest, Write};
use trivet::wire::admin::{NewTable, NewView, TableDetails};

use super::access::{Access, Doors, Lost};
use super::worker::{Pace, drive, lose, made, pace, provenance, random, with};
use super::{Context, Floors, Workload};
use crate::check::{Verdict, catalog, refusals};
use crate::history::{Extra, History, Process};

/// What names begin with, each with a keeper. A view's is that of its table with something behind it.
const NAMES: [&str; 2] = ["catalog-a", "catalog-b"];
const VIEW: &str = "-view";
const CLIENTS: usize = 4;
/// Writes and scans per second.
const RATE_MAX: f64 = 16.0;
/// Acts of one keeper per second, at most.
const ACTS: f64 = 2.0;
/// Longest time for one verb.
const PATIENCE: Duration = Duration::from_secs(6);
/// Longest time for one node that is asked for a table.
const ASK: Duration = Duration::from_secs(2);
/// The history window of the first life, in milliseconds; each further one has another.
const HISTORY_MS: u64 = 600_000;
/// Rows of a page, and most pages of a table.
const ROWS_MAX: usize = 500;
const PAGES_MAX: usize = 200;
/// Groups that rows of a table lie in.
const GROUPS: u64 = 5;

/// The workload.
pub struct Catalog;

impl Workload for Catalog {
    fn name(&self) -> &'static str {
        "catalog"
    }

    fn promise(&self) -> &'static str {
        "a table is there as a whole once it is acknowledged, and a dropped one takes nothing; a name used again is empty"
    }

    fn tables(&self) -> Vec<NewTable> {
        Vec::new()
    }

    fn run(&self, context: Context) -> BoxFuture<'_, anyhow::Result<()>> {
        async move {
            let context = Context { rate: context.rate.min(RATE_MAX), ..context };
            let mut names = Vec::new();
            for name in NAMES {
                names.push(RwLock::new(Arc::new(Doors::open(&context, &format!("{name}-0")).await?)));
            }
            let (serial, first) = (AtomicU64::new(1), current(&names[0]));
            let traffic = drive(&context, &first, CLIENTS, |mut worker| {
                let (names, serial) = (&names, &serial);
                async move {
                    while worker.pace.turn().await {
                        let doors = current(&names[worker.random.random_range(0..names.len())]);
                        let access = doors.of_worker(worker.number);
                        if worker.random.random_range(0..100) < 75 {
                            // Only who routes says which table it means: by its name alone, a write that was long on its way is one
                            // of whichever table has the name when it arrives.
                            let access = doors.routing();
                            put(&mut worker.process, &access, doors.table(), serial, Extra::new()).await;
                        } else {
                            scan(&mut worker.process, &access, doors.table(), Extra::new()).await;
                        }
                    }
                    Ok(())
                }
            });
            let keepers = names.iter().enumerate().map(|(number, name)| {
                let (context, serial) = (&context, &serial);
                async move {
                    let part = 500 + 10 * number as u64;
                    let doors = current(name);
                    let keeper = Keeper {
                        context,
                        name,
                        number,
                        names_used: 0,
                        view: Doors::open(context, &format!("{}{VIEW}", doors.table())).await?,
                        doors,
                        process: context.history.process(),
                        random: random(context, part),
                        pace: pace(context, part + 1, Duration::from_secs_f64(1.0 / ACTS)),
                        serial,
                        life: number as u64,
                    };
                    keeper.run().await
                }
            });
            try_join(traffic, try_join_all(keepers)).await.map(|_| ())
        }
        .boxed()
    }

    fn finish(&self, context: Context) -> BoxFuture<'_, anyhow::Result<()>> {
        async move {
            let history = context.history.history();
            let names: BTreeSet<&str> = history.all("create").map(|(_, create)| create.key.as_str()).collect();
            let mut process = context.history.process();
            for name in names {
                let doors = Doors::open(&context, name).await?;
                for node in 0..doors.nodes() {
                    // That there is no such table is an answer as well.
                    scan(&mut process, &doors.bound(node), name, with(Extra::new(), "through", node)).await;
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn check(&self, history: &History) -> Verdict {
        Verdict::all(vec![catalog::check(history), refusals::check(history, &["UNKNOWN_TABLE"])])
    }

    fn floors(&self, short: bool) -> Floors {
        let times = if short { 1 } else { 3 };
        let ok = [("create", 5), ("drop", 4), ("in-use", 1), ("define", 12), ("put", 80), ("scan", 15)];
        Floors { ok: ok.into_iter().map(|(f, least)| (f, least * times)).collect(), info_share_max: 0.2 }
    }
}

/// What a keeper's name is now.
fn current(name: &RwLock<Arc<Doors>>) -> Arc<Doors> {
    name.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Who alone creates and drops a table of one name.
struct Keeper<'a> {
    context: &'a Context,
    /// Where the others look for the name.
    name: &'a RwLock<Arc<Doors>>,
    number: usize,
    names_used: usize,
    doors: Arc<Doors>,
    view: Doors,
    process: Process,
    random: rand::rngs::StdRng,
    pace: Pace,
    serial: &'a AtomicU64,
    /// Which life the table is in, over all names.
    life: u64,
}

impl Keeper<'_> {
    async fn run(mut self) -> anyhow::Result<()> {
        while self.pace.turn().await {
            self.life += NAMES.len() as u64;
            if !self.live().await {
                self.take_another_name().await?;
            }
        }
        Ok(())
    }

    /// One life; false: what became of something that was asked is unknown.
    async fn live(&mut self) -> bool {
        let mut known = self.create().await;
        if known {
            self.ask_every_node("define").await;
            self.write_through_every_node().await;
            self.rest().await;
            if self.random.random_range(0..3) > 0 {
                known &= self.create_view().await;
                if known {
                    self.ask_every_node("define-view").await;
                    known &= self.drop_used().await;
                    self.rest().await;
                }
                known &= self.drop_it("drop-view").await;
            }
        }
        known &= self.drop_it("drop").await;
        if known {
            self.write_through_every_node().await;
        }
        known
    }

    async fn take_another_name(&mut self) -> anyhow::Result<()> {
        self.names_used += 1;
        let name = format!("{}-{}", NAMES[self.number], self.names_used);
        self.doors = Arc::new(Doors::open(self.context, &name).await?);
        self.view = Doors::open(self.context, &format!("{name}{VIEW}")).await?;
        *self.name.write().unwrap_or_else(PoisonError::into_inner) = self.doors.clone();
        Ok(())
    }

    fn admin(&self) -> Admin {
        self.doors.admin(PATIENCE)
    }

    /// What the table shall be, and how an answer tells it.
    fn wish(&mut self) -> NewTable {
        let name = self.doors.table();
        let wish = match self.random.random_range(0..4) {
            0 => NewTable::range(name, vec!["k3".into(), "k6".into()]),
            shards => NewTable::hash(name, shards),
        };
        NewTable { history_ms: HISTORY_MS + self.life, ..wish }
    }

    async fn create(&mut self) -> bool {
        let wish = self.wish();
        let partitioning = if wish.partitioning == Partitioning::Hash { "hash" } else { "range" };
        let told = json!({"history_ms": wish.history_ms, "partitioning": partitioning, "shards": wish.shards});
        let pending = self.process.invoke("create", self.doors.table(), told);
        match self.doors.admin(PATIENCE).create_table(wish).await {
            Ok(table) => {
                pending.ok(definition(&table));
                true
            }
            Err(error) => {
                // A repeat may have met what the attempt before it had done.
                unknown(pending, error);
                false
            }
        }
    }

    async fn create_view(&mut self) -> bool {
        let (table, view) = (self.doors.table(), self.view.table());
        let definition = format!(
            "name = \"{view}\"\nkind = \"rekeyed\"\nshards = 1\n[[sources]]\ntable = \"{table}\"\npartition_by = \"group\""
        );
        let pending = self.process.invoke("create-view", view, Value::Null);
        match self.doors.admin(PATIENCE).create_view(NewView::of(&definition)).await {
            Ok(_) => {
                pending.ok(Value::Null);
                true
            }
            Err(error) => {
                unknown(pending, error);
                false
            }
        }
    }

    /// Tries to drop the table that the view is derived from; false: it is not known what became of it.
    async fn drop_used(&mut self) -> bool {
        let admin = self.admin();
        let pending = self.process.invoke("in-use", self.doors.table(), Value::Null);
        match admin.drop_table(self.doors.table(), false).await {
            Ok(()) => pending.ok(json!("dropped")),
            Err(error) if error.reason == Reason::TableInUse => pending.ok(json!("refused")),
            Err(error) => {
                unknown(pending, error);
                return false;
            }
        }
        true
    }

    /// Drops the table or its view; false: it is not known what became of it.
    async fn drop_it(&mut self, f: &'static str) -> bool {
        let admin = self.admin();
        let name = if f == "drop" { self.doors.table() } else { self.view.table() };
        let pending = self.process.invoke(f, name, Value::Null);
        match admin.drop_table(name, false).await {
            Ok(()) => pending.ok(json!("dropped")),
            // Nobody else drops it: an attempt of this very call did.
            Err(error) if error.reason == Reason::UnknownTable => pending.ok(json!("gone")),
            Err(error) => {
                unknown(pending, error);
                return false;
            }
        }
        true
    }

    /// Asks every node for the definition, and reads there at any age.
    async fn ask_every_node(&mut self, f: &'static str) {
        let doors = if f == "define" { &*self.doors } else { &self.view };
        for node in 0..doors.nodes() {
            let until = Instant::now() + ASK;
            let pending = self.process.invoke_with(f, doors.table(), Value::Null, with(Extra::new(), "through", node));
            match doors.connection(node).describe_table(doors.table(), until).await {
                Ok(table) => pending.ok(definition(&table)),
                Err(error) => lose(pending, &Lost { error, unknown: false }),
            }
            let asked = with(Extra::new(), "through", node);
            let pending = self.process.invoke_with("look", doors.table(), Value::Null, asked);
            let request = ScanRequest { level: ReadLevel::Any, rows_max: ROWS_MAX, ..ScanRequest::default() };
            match doors.bound(node).page(request).await {
                Ok(page) => pending.ok(json!(page.body.rows.len())),
                Err(lost) => lose(pending, &lost),
            }
        }
    }

    async fn write_through_every_node(&mut self) {
        for node in 0..self.doors.nodes() {
            let (access, through) = (self.doors.bound(node), with(Extra::new(), "through", node));
            put(&mut self.process, &access, self.doors.table(), self.serial, through).await;
        }
        scan(&mut self.process, &self.doors.routing(), self.doors.table(), Extra::new()).await;
    }

    /// Lets some time go by.
    async fn rest(&mut self) {
        let turns = self.random.random_range(2..8);
        for _ in 0..turns {
            if !self.pace.turn().await {
                return;
            }
        }
    }
}

/// How an answer tells a table: what it was wished to be, and whether its shards leave nothing out.
fn definition(table: &TableDetails) -> Value {
    let is_whole = table.shards.windows(2).all(|pair| pair[0].end == pair[1].start);
    let partitioning = if table.table.partitioning == Partitioning::Hash { "hash" } else { "range" };
    json!({
        "history_ms": table.table.history_ms, "partitioning": partitioning, "shards": table.shards.len(),
        "whole": is_whole && !table.shards.is_empty(),
    })
}

fn unknown(pending: crate::history::Pending<'_>, error: Error) {
    lose(pending, &Lost { error, unknown: true });
}

/// Puts a row that no other write puts.
async fn put(process: &mut Process, access: &Access, table: &str, serial: &AtomicU64, extra: Extra) {
    let serial = serial.fetch_add(1, Ordering::Relaxed);
    let value = json!({"group": format!("g{}", serial % GROUPS), "serial": serial}).to_string();
    let key = format!("k{}-{serial}", serial % 10);
    let pending = process.invoke_with("put", table, json!(serial), extra);
    let operations = vec![Operation { key: key.into(), action: Action::Put { value: value.into(), ttl_ms: None } }];
    match access.write(Write { operations, ..Write::default() }).await {
        Ok(answer) => pending.ok_with(json!(serial), with(made(&answer), "shard", answer.header.shard.0)),
        Err(lost) => lose(pending, &lost),
    }
}

/// Reads a whole table, linearizably.
async fn scan(process: &mut Process, access: &Access, table: &str, extra: Extra) {
    let pending = process.invoke_with("scan", table, Value::Null, extra);
    let (mut rows, mut cursor) = (Vec::new(), None);
    for number in 0..PAGES_MAX {
        let page = match access.page(ScanRequest { cursor, rows_max: ROWS_MAX, ..ScanRequest::default() }).await {
            Ok(page) => page,
            // It was dropped between two pages, and the name stands for another one.
            Err(lost) if lost.error.reason == Reason::InvalidCursor && number > 0 => {
                return pending.fail("another table by now");
            }
            Err(lost) => return lose(pending, &lost),
        };
        let serial = |value: &[u8]| serde_json::from_slice::<Value>(value).ok()?.get("serial")?.as_u64();
        // What is none of our rows shows as one that nobody put.
        rows.extend(page.body.rows.iter().map(|row| row.value.as_deref().and_then(serial).unwrap_or(0)));
        cursor = page.body.cursor;
        if cursor.is_none() {
            return pending.ok_with(json!(rows), provenance(&page.header));
        }
    }
    pending.fail("the scan does not end");
}
