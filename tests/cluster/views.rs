//! Views follow their sources on real nodes, whatever happens to these: compared with what a naive reading of the sources says.
//!
//! [`Orders`] writes orders all the while: creates them, changes their status and their user, deletes some. [`expected`] makes of
//! the table of orders, read at the end, what each view must hold, without any of the code that keeps views.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinHandle;
use trivet::client::{Client, Table};
use trivet::keyspace::version;
use trivet::storage::{Batch, Engine, Family, Options, Rocks, mvcc};
use trivet::types::{ReadLevel, ScanBounds, Timestamp, Token};
use trivet::wire::proto::v1::DropTableRequest;

use crate::harness::{Cluster, eventually, put, refused, rounds};
use crate::load::connect;

const BY_USER: &str = r#"
name = "orders_by_user"
kind = "rekeyed"
shards = 3

[[sources]]
table = "orders"
where = "doc.status != 'test'"
partition_by = "user_id"
order_by = ["-created_ms"]
"#;

const STATS: &str = r#"
name = "user_stats"
kind = "aggregate"
shards = 2

[[sources]]
table = "orders"
where = "doc.status != 'test'"
partition_by = "user_id"

[aggregates]
orders = "count"
spent = "sum(amount)"
first = "min(created_ms)"
last = "max(created_ms)"
"#;

const USERS: u64 = 12;
const STATES: [&str; 4] = ["awaiting_payment", "paid", "shipped", "test"];

/// Orders that are written all the while.
struct Orders {
    stopping: Arc<AtomicBool>,
    workers: Vec<JoinHandle<(u64, Vec<String>)>>,
}

fn order(user: u64, created: u64, amount: u64, status: &str) -> String {
    format!(
        r#"{{"user_id":{user},"created_ms":{created},"amount":{}.{:02},"status":"{status}"}}"#,
        amount / 100,
        amount % 100
    )
}

impl Orders {
    fn start(client: &Client, workers: u64) -> Orders {
        let stopping = Arc::new(AtomicBool::new(false));
        let workers = (0..workers).map(|number| {
            let (table, stopping) = (client.table("orders"), stopping.clone());
            tokio::spawn(async move {
                let (mut calls, mut failures) = (0, Vec::new());
                while !stopping.load(Ordering::Relaxed) {
                    // Each worker has its own orders and changes them again and again.
                    let id = format!("o{number}-{}", calls * 7 % 40);
                    let user = (calls * 31 + number) % USERS;
                    let result = if calls % 11 == 10 {
                        table.delete(id).await
                    } else {
                        let state = STATES[(calls % 9 % 4) as usize];
                        table.put(id, order(user, 1_000 + calls % 50, calls * 13 % 5_000, state)).await
                    };
                    if let Err(error) = result {
                        failures.push(error.to_string());
                    }
                    calls += 1;
                }
                (calls, failures)
            })
        });
        let workers = workers.collect();
        Orders { stopping, workers }
    }

    async fn finish(self, calls_min: u64) {
        self.stopping.store(true, Ordering::Relaxed);
        let (mut calls, mut failures) = (0, Vec::new());
        for worker in self.workers {
            let (made, failed) = worker.await.expect("a worker does not panic");
            calls += made;
            failures.extend(failed);
        }
        println!("  {calls} changes of orders");
        assert!(failures.is_empty(), "{} calls failed, first: {:?}", failures.len(), failures.first());
        assert!(calls >= calls_min, "only {calls} calls: the test says nothing");
    }
}

/// What the views must hold, told from the orders alone.
fn expected(orders: &BTreeMap<String, Value>) -> (BTreeMap<String, Vec<Value>>, BTreeMap<String, Value>) {
    let mut by_user: BTreeMap<String, Vec<(i64, String, Value)>> = BTreeMap::new();
    for (id, order) in orders.iter().filter(|(_, order)| order["status"] != "test") {
        let user = order["user_id"].to_string();
        let created = order["created_ms"].as_i64().expect("a time");
        by_user.entry(user).or_default().push((-created, id.clone(), order.clone()));
    }
    let mut stats = BTreeMap::new();
    for (user, orders) in &mut by_user {
        orders.sort_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
        let cents: i64 = orders
            .iter()
            .map(|(_, _, order)| (order["amount"].as_f64().expect("an amount") * 100.0).round() as i64)
            .sum();
        let times = orders.iter().map(|(created, _, _)| -created);
        let row = serde_json::json!({
            "user_id": user, "orders": orders.len(), "spent": cents,
            "first": times.clone().min(), "last": times.max(),
        });
        stats.insert(user.clone(), row);
    }
    let by_user =
        by_user.into_iter().map(|(user, orders)| (user, orders.into_iter().map(|(_, _, order)| order).collect()));
    (by_user.collect(), stats)
}

/// Reads a whole table, retrying.
async fn all_of(table: &Table) -> BTreeMap<String, Value> {
    let rows = eventually("the table can be read", || table.scan(ScanBounds::All).collect()).await;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("a text");
    let value = |value: Option<bytes::Bytes>| serde_json::from_slice(&value.expect("a value")).expect("a document");
    rows.into_iter().map(|row| (text(&row.key), value(row.value))).collect()
}

/// Compares both views with the orders, reading all linearizably while nobody writes.
async fn assert_in_step(client: &Client) {
    let (by_user, stats) = expected(&all_of(&client.table("orders")).await);
    let view = client.table("orders_by_user").within(Duration::from_secs(20));
    let mut seen: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for user in 0..USERS {
        let rows = view.scan(ScanBounds::Tag(user.to_string().into())).collect().await.expect("the view can be read");
        let orders: Vec<Value> = rows
            .iter()
            .map(|row| serde_json::from_slice(row.value.as_ref().expect("a value")).expect("JSON"))
            .collect();
        if !orders.is_empty() {
            seen.insert(user.to_string(), orders);
        }
    }
    assert_eq!(seen, by_user, "orders by user");
    let view = client.table("user_stats").within(Duration::from_secs(20));
    let mut seen = BTreeMap::new();
    for (key, mut row) in all_of(&view).await {
        row["spent"] = Value::from((row["spent"].as_f64().expect("a sum") * 100.0).round() as i64);
        seen.insert(key.trim_matches(['{', '}']).to_owned(), row);
    }
    assert_eq!(seen, stats, "statistics of users");
}

/// Creates a view from a file, by the command line, and waits until it is ready.
fn create(cluster: &Cluster, definition: &str, wait: bool) {
    let file: PathBuf = cluster.root().join(format!("view-{}.toml", definition.len()));
    std::fs::write(&file, definition).expect("a file is written");
    let file = file.to_string_lossy();
    let mut arguments = vec!["view", "create", &file];
    if wait {
        arguments.push("--wait");
    }
    let said = cluster.trivet(&arguments).ok();
    assert!(said.contains("view"), "{said}");
}

async fn ready(cluster: &Cluster, name: &str) {
    eventually("the view is ready", || async {
        let described = cluster.trivet(&["view", "describe", name, "-o", "json"]).json();
        if described["state"] == "READY" { Ok(()) } else { Err(described.to_string()) }
    })
    .await;
}

async fn fill(client: &Client, orders: u64) {
    let table = client.table("orders");
    let puts = (0..orders).map(|number| {
        let order = order(number % USERS, number, number * 7 % 3_000, STATES[(number % 4) as usize]);
        table.put(format!("f{number}"), order)
    });
    let mut puts = puts.collect::<Vec<_>>();
    while !puts.is_empty() {
        let some: Vec<_> = puts.drain(..puts.len().min(100)).collect();
        for written in futures::future::join_all(some).await {
            written.expect("written");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn views_made_before_and_while_orders_are_written_are_what_the_orders_say() {
    let cluster = Cluster::of(3).await;
    cluster.create_hash_table("orders", 4).await;
    let client = connect(&cluster).await;
    fill(&client, 700).await;
    create(&cluster, BY_USER, true);
    let orders = Orders::start(&client, 6);
    create(&cluster, STATS, false);
    tokio::time::sleep(Duration::from_secs(3)).await;
    ready(&cluster, "user_stats").await;

    // Who has written an order sees it in the view, at whichever node.
    let (table, mut longest) = (client.table("orders"), Duration::ZERO);
    for number in 0..60 {
        let id = format!("mine-{number}");
        let token = table.put(id.clone(), order(3, 5_000 + number, 100, "paid")).await.expect("written").body.timestamp;
        let level = ReadLevel::AtLeast(Token { timestamp: token });
        let began = Instant::now();
        let view = client.table("orders_by_user").at(level);
        let rows = view.scan(ScanBounds::Tag("3".into())).collect().await.expect("the view can be read");
        longest = longest.max(began.elapsed());
        let mine = rows.iter().any(|row| row.key.ends_with(format!("/{id}").as_bytes()));
        assert!(mine, "{id} is not among the {} orders of its user", rows.len());
    }
    println!("  the longest wait for an order of one's own was {longest:?}");
    orders.finish(500).await;
    assert_in_step(&client).await;

    // Ages are proven, and hidden rows are not shown.
    let answer =
        client.table("user_stats").at(ReadLevel::MaxAge(Duration::from_secs(5))).get("{3}").await.expect("read");
    assert!(answer.body.is_some() && answer.header.age.is_some_and(|age| age <= Duration::from_secs(6)), "{answer:?}");
    let count = client.table("user_stats").count(ScanBounds::All).await.expect("counted");
    assert_eq!(count, all_of(&client.table("user_stats")).await.len() as u64);
    for name in ["orders_by_user", "user_stats"] {
        let said = cluster.trivet(&["view", "verify", name]);
        assert_eq!(said.code, 0, "{}", said.said());
    }

    // A view is not written to, nor is a table dropped that views are derived from.
    refused(cluster.kv(1).put(put("user_stats", "{3}", "x")).await, "READ_ONLY_TABLE");
    let drop = DropTableRequest { name: "orders".into(), dry_run: false };
    refused(cluster.tables(1).drop(drop).await, "TABLE_IN_USE");
    let said = cluster.trivet(&["view", "drop", "orders"]);
    assert_ne!(said.code, 0, "a table is no view: {}", said.said());

    // Paused, it stays where it is, and says so to those who ask for more; resumed, it comes after.
    cluster.trivet(&["view", "pause", "user_stats"]).ok();
    tokio::time::sleep(Duration::from_secs(1)).await;
    fill(&client, 30).await;
    table.put("late", order(3, 1, 1, "paid")).await.expect("written");
    let late = client.table("user_stats").within(Duration::from_secs(1)).get("{3}").await.expect_err("it is behind");
    assert!(late.to_string().contains("VIEW_BEHIND") && late.to_string().contains("orders"), "{late}");
    cluster.trivet(&["view", "resume", "user_stats"]).ok();
    assert_in_step(&client).await;
    cluster.trivet(&["view", "drop", "user_stats"]).ok();
    cluster.trivet(&["view", "drop", "orders_by_user"]).ok();
    cluster.trivet(&["table", "drop", "orders", "--yes"]).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn views_stay_in_step_through_kills_and_splits_and_merges_on_both_sides() {
    let mut cluster = Cluster::of(3).await;
    cluster.create_hash_table("orders", 2).await;
    let client = connect(&cluster).await;
    create(&cluster, BY_USER, true);
    create(&cluster, STATS, true);
    fill(&client, 300).await;
    let orders = Orders::start(&client, 6);
    for round in 0..u64::from(rounds(2)) {
        for table in ["orders", "orders_by_user", "user_stats"] {
            let shards = cluster.shards(table).await;
            let oldest = shards.iter().min_by_key(|shard| (shard.epoch, shard.id)).expect("a table has shards").id;
            // A view may have nothing to divide yet.
            eventually("a shard is split", || async {
                let said = cluster.trivet(&["shard", "split", &oldest.to_string()]);
                if said.code == 0 { Ok(()) } else { Err(said.said()) }
            })
            .await;
        }
        let victim = 1 + round % 3;
        cluster.kill(victim);
        tokio::time::sleep(Duration::from_secs(2)).await;
        cluster.start(victim);
        cluster.healthy().await;
        for (table, key) in [("orders", "o1-1"), ("orders_by_user", "{3}"), ("user_stats", "{3}")] {
            cluster.transfer(table, key, 1 + (round + 1) % 3).await;
        }
        for table in ["orders_by_user", "orders"] {
            let shards = cluster.shards(table).await;
            let (left, right) = (shards[0].id.to_string(), shards[1].id.to_string());
            cluster.trivet(&["shard", "merge", &left, &right, "--wait", "60s"]).ok();
        }
        cluster.pause(victim);
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.resume(victim);
        cluster.healthy().await;
    }
    orders.finish(300).await;
    assert_in_step(&client).await;
    for name in ["orders_by_user", "user_stats"] {
        let said = cluster.trivet(&["view", "verify", name]);
        assert_eq!(said.code, 0, "{}", said.said());
        cluster.checksums_equal(name).await;
    }
}

/// Writes a version of a row of a view into the storage of a stopped node: alters, deletes or invents it.
fn harm(
    cluster: &Cluster,
    id: u64,
    key: &str,
    value: Option<&str>,
    timestamp: Timestamp,
    layout: &trivet::keyspace::Layout,
) {
    let directory = cluster.node(id).directory.join("store");
    let store = Rocks::open(&Options::new(&directory)).expect("a stopped node's storage opens");
    let encoded = layout.encode(key.as_bytes());
    let version = mvcc::Version {
        timestamp,
        value: value.map(|value| bytes::Bytes::copy_from_slice(value.as_bytes())),
        expires_ms: None,
    };
    let mut batch = Batch::new();
    batch.put(Family::Data, version::key(&encoded, timestamp), version.encode());
    store.write(batch).expect("written");
    store.sync().expect("durable");
}

/// In the storage of all nodes, while they are stopped: alters, deletes and invents a row of `orders_by_user` and alters one of
/// `user_stats`. Starts them again with other settings.
async fn harm_rows(cluster: &mut Cluster, client: &Client, settings: &[&str]) {
    let table = client.table("orders_by_user");
    let rows = eventually("the view can be read", || table.scan(ScanBounds::All).collect()).await;
    let details = client.admin().table("orders_by_user").await.expect("described");
    let by_user = trivet::keyspace::Layout::of(&details.table);
    let stats = trivet::keyspace::Layout::of(&client.admin().table("user_stats").await.expect("described").table);
    let table = client.table("user_stats");
    let stat = eventually("the view can be read", || table.get("{5}")).await.body.expect("a row");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("a text");
    for id in cluster.ids() {
        assert_eq!(cluster.stop(id), 0);
    }
    // As old as the oldest, for nobody would hear of a version that is newer than its shard; and under another name each time, or
    // it would lie below the one that was removed.
    let oldest = rows.iter().map(|row| row.timestamp).min().expect("there are rows");
    let newest = rows.iter().map(|row| row.timestamp).max().expect("there are rows");
    let invented = format!("{{4}}:00/invented-{}", newest.0);
    for id in cluster.ids() {
        let at = |row: usize| Timestamp(rows[row].timestamp.0);
        harm(cluster, id, &text(&rows[3].key), Some("{\"altered\":true}"), at(3), &by_user);
        harm(cluster, id, &text(&rows[8].key), None, at(8), &by_user);
        harm(cluster, id, &invented, Some("{}"), oldest, &by_user);
        harm(cluster, id, "{5}", Some("{\"orders\":1}"), stat.timestamp, &stats);
    }
    for id in cluster.ids() {
        cluster.node_mut(id).settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        cluster.start(id);
    }
    cluster.healthy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_view_that_were_altered_deleted_or_invented_are_found_and_mended() {
    let mut cluster = Cluster::of(3).await;
    cluster.create_hash_table("orders", 2).await;
    let client = connect(&cluster).await;
    fill(&client, 120).await;
    create(&cluster, BY_USER, true);
    create(&cluster, STATS, true);
    assert_in_step(&client).await;
    harm_rows(&mut cluster, &client, &["views.scrub_percent=0"]).await;
    for (name, wrong) in [("orders_by_user", 3), ("user_stats", 1)] {
        let found = cluster.trivet(&["view", "verify", name, "-o", "json"]);
        assert_eq!(found.code, 6, "{}", found.said());
        let found = found.json_whatever();
        let count = |what: &str| found[what].as_u64().unwrap_or_else(|| panic!("no {what} in {found}"));
        assert_eq!(count("missing") + count("invented") + count("other"), wrong, "{found}");
        let mended = cluster.trivet(&["view", "verify", name, "--repair"]);
        assert_eq!(mended.code, 0, "{}", mended.said());
        let again = cluster.trivet(&["view", "verify", name]);
        assert_eq!(again.code, 0, "{}", again.said());
    }
    assert_in_step(&client).await;
    // And what is mended goes on being kept up.
    let orders = Orders::start(&client, 4);
    tokio::time::sleep(Duration::from_secs(1)).await;
    orders.finish(50).await;
    assert_in_step(&client).await;

    // The same again, and nobody asks.
    harm_rows(&mut cluster, &client, &["views.scrub_percent=50", "views.scrub_every_ms=1000"]).await;
    let total = async |name: &str| {
        let mut total = 0.0;
        for id in cluster.ids() {
            total += cluster.metric(id, name).await;
        }
        total
    };
    eventually("what was harmed is mended unasked", || async {
        let mended = total("trivet_view_repairs_total").await;
        if mended >= 4.0 { Ok(()) } else { Err(format!("{mended} rows were mended")) }
    })
    .await;
    assert_eq!(total("trivet_view_mismatches_total").await, 4.0, "each is counted once");
    for name in ["orders_by_user", "user_stats"] {
        let again = cluster.trivet(&["view", "verify", name]);
        assert_eq!(again.code, 0, "{}", again.said());
    }
    assert_in_step(&client).await;
    // And while orders are written, comparisons that never rest find nothing.
    let (before, orders) = (total("trivet_view_scrubs_total").await, Orders::start(&client, 4));
    eventually("views are compared while orders are written", || async {
        let made = total("trivet_view_scrubs_total").await - before;
        if made >= 6.0 { Ok(()) } else { Err(format!("{made} comparisons")) }
    })
    .await;
    orders.finish(50).await;
    assert_eq!(total("trivet_view_mismatches_total").await, 4.0);
    assert_in_step(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_form_of_a_view_is_built_beside_it_and_takes_its_place_at_once() {
    let cluster = Cluster::of(3).await;
    cluster.create_hash_table("orders", 2).await;
    let client = connect(&cluster).await;
    fill(&client, 600).await;
    create(&cluster, BY_USER, true);
    let former = client.admin().view("orders_by_user").await.expect("described").table.table.id;
    let orders = Orders::start(&client, 3);

    // Somebody reads all the while: whole rows of one form or of the other, never an error, and no way back.
    let done = Arc::new(AtomicBool::new(false));
    let reader = {
        let (table, done) = (client.table("orders_by_user").within(Duration::from_secs(20)), done.clone());
        tokio::spawn(async move {
            let (mut reads, mut news) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                let rows = table.scan(ScanBounds::Tag("5".into())).collect().await.expect("the view can be read");
                let of_next = |value: &Value| value.get("created_ms").is_none();
                let forms: Vec<bool> = rows
                    .iter()
                    .map(|row| of_next(&serde_json::from_slice(row.value.as_ref().expect("a value")).expect("JSON")))
                    .collect();
                assert!(!forms.is_empty() && forms.iter().all(|form| *form == forms[0]), "{forms:?}");
                assert!(forms[0] || news == 0, "the former rows after the new ones");
                news += u64::from(forms[0]);
                reads += 1;
            }
            (reads, news)
        })
    };
    let next = format!("{BY_USER}include = [\"amount\", \"status\"]\n").replace("shards = 3", "shards = 2");
    let file = cluster.root().join("next.toml");
    std::fs::write(&file, &next).expect("a file is written");
    let file = file.to_string_lossy().into_owned();
    let said = cluster.trivet(&["view", "create", &file]);
    assert!(said.code != 0 && said.said().contains("TABLE_EXISTS"), "{}", said.said());
    cluster.trivet(&["view", "create", &file, "--replace", "--wait=120s", "--history", "2h"]).ok();
    eventually("the reader has seen the new form", || async {
        let view = client.admin().view("orders_by_user").await.map_err(|error| error.to_string())?;
        if view.table.table.id == former { Err("it is the former one".to_owned()) } else { Ok(()) }
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    done.store(true, Ordering::Relaxed);
    let (reads, news) = reader.await.expect("the reader does not panic");
    println!("  {reads} reads, {news} of them of the new form");
    assert!(news > 0 && reads > news, "{reads} reads, {news} of the new form");
    orders.finish(200).await;

    let views = client.admin().views().await.expect("listed");
    let names: Vec<&str> = views.iter().map(|view| view.table.table.name.as_str()).collect();
    assert_eq!(names, ["orders_by_user"]);
    assert_eq!((views[0].state, views[0].table.shards.len()), (trivet::wire::admin::ViewState::Ready, 2));
    let verified = cluster.trivet(&["view", "verify", "orders_by_user"]);
    assert_eq!(verified.code, 0, "{}", verified.said());

    // Made anew as it is: other rows that say the same, with nothing that would have to be mended.
    assert_eq!(views[0].table.table.history_ms, 7_200_000, "other than what is taken when nothing is said");
    let (before, definition) = (views[0].table.table.clone(), views[0].definition.clone());
    cluster.trivet(&["view", "rebuild", "orders_by_user", "--dry-run"]).ok();
    cluster.trivet(&["view", "rebuild", "orders_by_user", "--wait=120s"]).ok();
    eventually("it has taken the place of the former one", || async {
        let view = client.admin().view("orders_by_user").await.map_err(|error| error.to_string())?;
        if view.table.table.id == before.id { Err("it is the former one".to_owned()) } else { Ok(view) }
    })
    .await;
    let after = client.admin().view("orders_by_user").await.expect("described");
    assert_eq!((after.definition, after.table.table.history_ms), (definition, before.history_ms));
    cluster.trivet(&["view", "verify", "orders_by_user"]).ok();
    // And so is one of another definition, where nothing is said of it.
    let wish = trivet::wire::admin::NewView { replace: true, dry_run: true, ..trivet::wire::admin::NewView::of(&next) };
    let would = client.admin().create_view(wish).await.expect("possible").table.table;
    assert_eq!((would.history_ms, would.replication), (before.history_ms, before.replication));
    let said = cluster.trivet(&["view", "rebuild", "orders"]);
    assert!(said.code != 0 && said.said().contains("is a table, not a view"), "{}", said.said());

    // One change at a time; given up by dropping it; and there must be something to change.
    let none = STATS.replace("user_stats", "nothing");
    std::fs::write(&file, &none).expect("a file is written");
    let said = cluster.trivet(&["view", "create", &file, "--replace"]);
    assert!(said.code != 0 && said.said().contains("UNKNOWN_TABLE"), "{}", said.said());
    let slow = BY_USER.replace("status != 'test'", "status != 'no'");
    std::fs::write(&file, &slow).expect("a file is written");
    cluster.trivet(&["view", "create", &file, "--replace", "--dry-run"]).ok();
    cluster.trivet(&["view", "create", &file, "--replace"]).ok();
    let dropped = cluster.trivet(&["view", "drop", "orders_by_user.next"]);
    // It may have taken its place already.
    let gone = dropped.code == 0 || dropped.said().contains("UNKNOWN_TABLE") || dropped.said().contains("no view");
    assert!(gone, "{}", dropped.said());
}

/// More than the steps in which histories are trimmed.
const TRIMMED_WITHIN: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_has_fallen_behind_what_its_sources_remember_is_made_anew() {
    let mut cluster = Cluster::of(3).await;
    let request = trivet::wire::proto::v1::CreateTableRequest {
        name: "orders".into(),
        partitioning: trivet::wire::proto::v1::Partitioning::Hash.into(),
        shards: 4,
        history_ms: Some(1_000),
        ..Default::default()
    };
    cluster.tables(1).create(request).await.expect("a table with a short history");
    let client = connect(&cluster).await;
    // More than are removed at once.
    fill(&client, 9_000).await;
    create(&cluster, &BY_USER.replace("shards = 3", "shards = 1"), true);
    create(&cluster, STATS, true);
    for name in ["orders_by_user", "user_stats"] {
        cluster.trivet(&["view", "pause", name]).ok();
    }
    // Some go, some come, some change their user, and what they were is forgotten.
    let table = client.table("orders");
    for number in 0..40 {
        table.delete(format!("f{number}")).await.expect("deleted");
        table.put(format!("f{}", number + 50), order(number % 3, 9, 77, "paid")).await.expect("written");
    }
    let began = Instant::now();
    let cursor_gone = || async {
        // A write now and then beside it, for an idle shard's history is not trimmed: those of the other shards are kept.
        table.put("{f0}again", order(1, 2, 3, "test")).await.map_err(|error| error.to_string())?;
        let history = table.history("f0", None, 10).await.map_err(|error| error.to_string())?.body.rows;
        if history.is_empty() { Ok(()) } else { Err(format!("{} versions", history.len())) }
    };
    while let Err(left) = cursor_gone().await {
        assert!(began.elapsed() < TRIMMED_WITHIN, "the history is never trimmed: {left}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    for name in ["orders_by_user", "user_stats"] {
        cluster.trivet(&["view", "resume", name]).ok();
    }
    eventually("a view is made anew", || async {
        let mut fell = 0.0;
        for id in cluster.ids() {
            fell += cluster.metric(id, "trivet_view_fell_behind_total").await;
        }
        if fell > 0.0 { Ok(()) } else { Err("none has fallen behind") }
    })
    .await;
    // Whoever leads has some of the rows removed by then, and the others are to go on with that.
    let killed = cluster.shards("orders_by_user").await[0].leader.unwrap_or(1);
    cluster.kill(killed);
    cluster.start(killed);
    // What the workers of the other shards do not hear of: that the one that has forgotten has had the view begin anew.
    for name in ["orders_by_user", "user_stats"] {
        ready(&cluster, name).await;
    }
    assert_in_step(&client).await;
}
