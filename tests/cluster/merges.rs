//! Shards are merged while clients work: no call fails, nothing is lost or doubled, scans lose and repeat nothing.

use std::time::Duration;

use trivet::wire::proto::v1::ShardInfo;

use crate::harness::{Cluster, rounds};
use crate::load::{Load, connect};
use crate::splits::{assert_all_there, create_range_table, fill, scan_while};

/// The shards of a table in the order of their ranges.
async fn in_order(cluster: &Cluster, table: &str) -> Vec<ShardInfo> {
    let mut shards = cluster.shards(table).await;
    shards.sort_by(|one, other| one.start.cmp(&other.start));
    shards
}

/// Splits the first shard of a table at its middle.
async fn split_first(cluster: &Cluster, table: &str) {
    let first = in_order(cluster, table).await[0].id.to_string();
    cluster.trivet(&["shard", "split", &first]).ok();
}

/// Merges the first two shards of a table, by the command line, and waits until it is done.
async fn merge_first(cluster: &Cluster, table: &str) {
    let shards = in_order(cluster, table).await;
    let (left, right) = (shards[0].id.to_string(), shards[1].id.to_string());
    let said = cluster.trivet(&["shard", "merge", &left, &right, "--wait", "100s", "-o", "json"]).json();
    assert_eq!(said["done"], true, "{said}");
}

/// Moves a replica of the last shard of a table, on four nodes, to the one that has none, and waits until it is done.
async fn move_last(cluster: &Cluster, table: &str) {
    let shards = in_order(cluster, table).await;
    let shard = shards.last().expect("a shard");
    let has_one = |id: &u64| shard.replicas.iter().any(|replica| replica.node == *id);
    let to = (1..=4).find(|id| !has_one(id)).expect("one of four has none").to_string();
    let (id, from) = (shard.id.to_string(), shard.replicas[0].node.to_string());
    cluster.trivet(&["shard", "move", &id, "--from", &from, "--to", &to, "--wait", "120s"]).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_are_merged_under_load_and_no_call_fails() {
    let cluster = Cluster::with_table(3).await;
    let keys = fill(&cluster, "t").await;
    let load = Load::start(&cluster, "t", 8).await;
    for _ in 0..rounds(4) {
        while in_order(&cluster, "t").await.len() > 1 {
            merge_first(&cluster, "t").await;
        }
        split_first(&cluster, "t").await;
        split_first(&cluster, "t").await;
    }
    load.finish().await.assert_flawless(300);
    assert_eq!(in_order(&cluster, "t").await.len(), 3);
    cluster.healthy().await;
    cluster.checksums_equal("t").await;
    assert_all_there(&cluster, "t", &keys).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_are_merged_while_nodes_are_killed() {
    let mut cluster = Cluster::with_table(3).await;
    fill(&cluster, "t").await;
    let load = Load::start(&cluster, "t", 8).await;
    for turn in 0..rounds(6) {
        if in_order(&cluster, "t").await.len() < 2 {
            split_first(&cluster, "t").await;
        }
        let shards = in_order(&cluster, "t").await;
        let (left, right) = (shards[0].id.to_string(), shards[1].id.to_string());
        let victim = u64::from(turn % 3) + 1;
        // The node dies somewhere between the wish and its fulfilment.
        let wish = cluster.spawn(&["shard", "merge", &left, &right, "--wait", "5s", "--deadline", "30s"]);
        tokio::time::sleep(Duration::from_millis(u64::from(turn) * 15)).await;
        cluster.kill(victim);
        let said = crate::harness::wait(wish, Duration::from_secs(60));
        cluster.start(victim);
        cluster.healthy().await;
        println!("  turn {turn}: exit code {}: {}", said.code, said.said().trim());
    }
    load.finish().await.assert_flawless(300);
    cluster.healthy().await;
    while in_order(&cluster, "t").await.len() > 1 {
        merge_first(&cluster, "t").await;
    }
    cluster.checksums_equal("t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_runs_across_merges_and_moves_sees_each_key_once() {
    let cluster = Cluster::with_table(4).await;
    // Replicas are moved by hand here, and stay where they are put.
    cluster.trivet(&["cluster", "pause"]).ok();
    create_range_table(&cluster, "ordered").await;
    for (table, ordered) in [("t", false), ("ordered", true)] {
        let keys = fill(&cluster, table).await;
        for reverse in [false, true] {
            while in_order(&cluster, table).await.len() < 4 {
                split_first(&cluster, table).await;
            }
            scan_while(&cluster, (table, ordered, reverse), &keys, async |turn| {
                if turn % 3 == 0 && in_order(&cluster, table).await.len() > 1 {
                    merge_first(&cluster, table).await;
                }
                if turn % 3 == 1 {
                    move_last(&cluster, table).await;
                }
            })
            .await;
        }
        cluster.healthy().await;
        cluster.checksums_equal(table).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_neighbours_are_merged_the_left_one_first() {
    let cluster = Cluster::of(3).await;
    cluster.create_hash_table("u", 3).await;
    let shards = in_order(&cluster, "u").await;
    let ids: Vec<String> = shards.iter().map(|shard| shard.id.to_string()).collect();
    let said = cluster.trivet(&["shard", "merge", &ids[0], &ids[1], "--dry-run"]).ok();
    assert!(said.contains("would take over"), "{said}");
    assert_eq!(in_order(&cluster, "u").await, shards, "a dry run changes nothing");
    for (arguments, code, words) in [
        (vec!["shard", "merge", &ids[0], &ids[2]], 1, "only neighbours"),
        (vec!["shard", "merge", &ids[1], &ids[0]], 1, "only neighbours"),
        (vec!["shard", "merge", &ids[0], "99"], 3, "no shard"),
        (vec!["shard", "merge", "99", &ids[0]], 3, "no shard"),
        (vec!["shard", "merge", "0", &ids[0]], 1, "only neighbours"),
        (vec!["shard", "merge", &ids[0]], 2, "required"),
    ] {
        let refused = cluster.trivet(&arguments);
        assert_eq!(refused.code, code, "{arguments:?}: {refused:?}");
        assert!(refused.said().contains(words), "{arguments:?}: {refused:?}");
    }
    let said = cluster.trivet(&["shard", "merge", &ids[0], &ids[1], "--wait", "60s"]).ok();
    assert!(said.contains("has taken over"), "{said}");
    assert_eq!(in_order(&cluster, "u").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_split_unasked_is_merged_when_nobody_asks_for_it_any_more() {
    let mut cluster = Cluster::unstarted(3);
    for id in cluster.ids() {
        cluster.node_mut(id).settings =
            vec!["split.requests_per_second=100".to_owned(), "split.merge_after_ms=2000".to_owned()];
        cluster.start(id);
    }
    cluster.healthy().await;
    cluster.create_hash_table("busy", 1).await;
    // This one was asked for as it is, and nobody asks it anything.
    cluster.create_hash_table("quiet", 2).await;
    let keys: Vec<String> = fill(&cluster, "busy").await.into_iter().collect();
    let client = connect(&cluster).await;
    let table = client.table("busy");
    let read_all = async |until_shards: usize| {
        let deadline = std::time::Instant::now() + Duration::from_secs(120);
        loop {
            let reads = keys.iter().map(|key| table.get(key.clone()).into_future());
            for read in futures::future::join_all(reads).await {
                assert!(read.expect("read").body.is_some());
            }
            if cluster.shards("busy").await.len() >= until_shards {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "it is not split");
        }
    };
    read_all(2).await;
    let deadline = std::time::Instant::now() + Duration::from_secs(180);
    while cluster.shards("busy").await.len() > 1 {
        assert!(std::time::Instant::now() < deadline, "it is not merged: {:?}", cluster.shards("busy").await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(cluster.shards("quiet").await.len(), 2);
    cluster.healthy().await;
    cluster.checksums_equal("busy").await;
    read_all(1).await;
}
