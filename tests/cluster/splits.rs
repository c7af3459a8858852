//! Shards are split while clients work: no call fails, nothing is lost or doubled, scans lose and repeat nothing.

use std::collections::BTreeSet;

use trivet::wire::proto::v1::{CreateTableRequest, Partitioning, ScanRequest};

use crate::harness::{Cluster, put, rounds};
use crate::load::{Load, connect};

const KEYS: u64 = 400;

/// Puts `KEYS` keys, and names them.
pub async fn fill(cluster: &Cluster, table: &str) -> BTreeSet<String> {
    let client = connect(cluster).await;
    let handle = client.table(table);
    let mut keys = BTreeSet::new();
    for number in 0..KEYS {
        let key = format!("key-{number:05}");
        handle.put(key.clone(), "v".repeat(200)).await.expect("written");
        keys.insert(key);
    }
    keys
}

/// Every key is there, in whatever shard: each of them is led and serves.
pub async fn assert_all_there(cluster: &Cluster, table: &str, keys: &BTreeSet<String>) {
    let client = connect(cluster).await;
    for key in keys {
        let found = client.table(table).get(key.clone()).await.expect("read").body;
        assert!(found.is_some(), "{key} is lost");
    }
}

/// A range table.
pub async fn create_range_table(cluster: &Cluster, name: &str) {
    let request = CreateTableRequest {
        name: name.to_owned(),
        partitioning: Partitioning::Range.into(),
        ..CreateTableRequest::default()
    };
    cluster.tables(1).create(request).await.expect("a range table");
}

/// Scans a whole table page by page, asking one node after the other, and does something after each page. Every key must
/// be seen once, and in order if the table has one.
pub async fn scan_while(
    cluster: &Cluster,
    (table, ordered, reverse): (&str, bool, bool),
    keys: &BTreeSet<String>,
    mut between: impl AsyncFnMut(u64),
) {
    let nodes: Vec<u64> = cluster.ids().into_iter().collect();
    let mut request = ScanRequest { table: table.into(), limit: 40, reverse, ..ScanRequest::default() };
    let mut found = Vec::new();
    for turn in 0.. {
        let mut asked = cluster.kv(nodes[turn % nodes.len()]);
        let page = asked.scan_page(request.clone()).await.expect("a page").into_inner();
        found.extend(page.rows.iter().map(|row| String::from_utf8_lossy(&row.key).into_owned()));
        let Some(cursor) = page.cursor else { break };
        request.cursor = cursor;
        between(turn as u64).await;
        assert!((turn as u64) < KEYS, "pages without end");
    }
    assert_eq!(found.len(), keys.len(), "no key is lost or repeated");
    if ordered {
        let mut expected: Vec<String> = keys.iter().cloned().collect();
        if reverse {
            expected.reverse();
        }
        assert_eq!(found, expected, "in order");
    }
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), *keys);
}

/// Splits the shard of a table that has not been split for the longest, by the command line, at its middle.
async fn split_one(cluster: &Cluster, table: &str) -> (u64, u64) {
    let shards = cluster.shards(table).await;
    let oldest = shards.iter().min_by_key(|shard| (shard.epoch, shard.id)).expect("a table has shards").id;
    let report = cluster.trivet(&["shard", "split", &oldest.to_string(), "-o", "json"]).json();
    let id = |part: &str| report[part]["id"].as_u64().unwrap_or_else(|| panic!("no {part} in {report}"));
    assert_eq!(id("left"), oldest);
    (id("left"), id("right"))
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_split_under_load_and_no_call_fails() {
    let cluster = Cluster::with_table(3).await;
    let keys = fill(&cluster, "t").await;
    let before = cluster.shards("t").await.len();
    let load = Load::start(&cluster, "t", 8).await;
    let more = rounds(9) as usize;
    for _ in 0..more {
        split_one(&cluster, "t").await;
    }
    load.finish().await.assert_flawless(300);
    let shards = cluster.shards("t").await;
    assert_eq!(shards.len(), before + more);
    cluster.healthy().await;
    cluster.checksums_equal("t").await;
    assert_all_there(&cluster, "t", &keys).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_split_while_nodes_are_killed() {
    let mut cluster = Cluster::with_table(3).await;
    fill(&cluster, "t").await;
    let before = cluster.shards("t").await.len();
    let load = Load::start(&cluster, "t", 8).await;
    let turns = rounds(6);
    for turn in 0..turns {
        let victim = u64::from(turn % 3) + 1;
        let shards = cluster.shards("t").await;
        let target = shards.iter().min_by_key(|shard| (shard.epoch, shard.id)).expect("a shard").id.to_string();
        // The node dies somewhere between the wish and its fulfilment.
        let wish = cluster.spawn(&["shard", "split", &target, "--deadline", "30s"]);
        tokio::time::sleep(std::time::Duration::from_millis(u64::from(turn) * 7)).await;
        cluster.kill(victim);
        let said = crate::harness::wait(wish, std::time::Duration::from_secs(60));
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        cluster.start(victim);
        cluster.healthy().await;
        println!("  turn {turn}: exit code {}: {}", said.code, said.said().trim());
    }
    load.finish().await.assert_flawless(300);
    cluster.healthy().await;
    let after = cluster.shards("t").await.len();
    assert!(after > before && after <= before + turns as usize, "{before} shards became {after}");
    cluster.checksums_equal("t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_runs_across_splits_sees_each_key_once() {
    let cluster = Cluster::with_table(3).await;
    create_range_table(&cluster, "ordered").await;
    for (table, ordered) in [("t", false), ("ordered", true)] {
        let keys = fill(&cluster, table).await;
        for reverse in [false, true] {
            scan_while(&cluster, (table, ordered, reverse), &keys, async |turn| {
                if turn % 3 == 0 {
                    split_one(&cluster, table).await;
                }
            })
            .await;
        }
        cluster.checksums_equal(table).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_is_split_where_it_is_told_and_only_where_it_can() {
    let cluster = Cluster::of(3).await;
    cluster.trivet(&["table", "create", "users", "--range", "--group-delimiter", ":"]).ok();
    for key in ["anna:1", "anna:2", "berta:1", "carla:1", "carla:2"] {
        cluster.kv(1).put(put("users", key, "v")).await.expect("written");
    }
    let shard = cluster.shards("users").await[0].id.to_string();
    let said = cluster.trivet(&["shard", "split", &shard, "--at", "carla:2", "--dry-run"]).ok();
    assert!(said.contains("would keep") && said.contains("\"carla:\""), "{said}");
    assert_eq!(cluster.shards("users").await.len(), 1, "a dry run changes nothing");

    let said = cluster.trivet(&["shard", "split", &shard, "--at", "carla:2"]).ok();
    assert!(said.contains("keys before \"carla:\""), "a group stays whole: {said}");
    // Told again, it is done already.
    let again = cluster.trivet(&["shard", "split", &shard, "--at", "carla:2"]).ok();
    assert_eq!(again, said);
    assert_eq!(cluster.shards("users").await.len(), 2);

    for (arguments, code, words) in [
        (vec!["shard", "split", "99"], 3, "no shard"),
        (vec!["shard", "split", &shard, "--at", "zoe:1"], 1, "inside"),
        (vec!["shard", "split", &shard, "--slot", "7"], 1, "no slots"),
        (vec!["shard", "split", &shard, "--slot", "7", "--at", "x"], 2, "cannot be used with"),
        (vec!["shard", "split", &shard, "--slot", "65536"], 2, "65536"),
    ] {
        let refused = cluster.trivet(&arguments);
        assert_eq!(refused.code, code, "{arguments:?}: {refused:?}");
        assert!(refused.said().contains(words), "{arguments:?}: {refused:?}");
    }
    let value = cluster.trivet(&["get", "users", "carla:1"]).ok();
    assert_eq!(value.trim(), "v");
}
