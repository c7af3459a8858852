//! Nodes die, freeze and come back while clients write: no call fails, nothing is lost, nothing happens twice.

use std::time::Duration;

use crate::harness::{Cluster, eventually, rounds, wait};
use crate::load::Load;

/// Long enough for an election and for clients to notice; short enough for a suite.
const PAUSE_BETWEEN: Duration = Duration::from_millis(1_500);

#[tokio::test(flavor = "multi_thread")]
async fn killing_nodes_in_turn_loses_nothing() {
    let mut cluster = Cluster::with_table(3).await;
    let load = Load::start(&cluster, "t", 8).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    for round in 0..rounds(10) {
        let victim = u64::from(round % 3) + 1;
        cluster.kill(victim);
        tokio::time::sleep(PAUSE_BETWEEN).await;
        cluster.start(victim);
        cluster.healthy().await;
    }
    load.finish().await.assert_flawless(500);
    cluster.checksums_equal("t").await;
}

/// Shards of the table whose leaders die.
const MANY_SHARDS: u32 = 48;

#[tokio::test(flavor = "multi_thread")]
async fn leaderships_of_a_killed_node_are_taken_over_at_once() {
    let mut cluster = Cluster::of(3).await;
    cluster.create_hash_table("t", MANY_SHARDS).await;
    cluster.healthy().await;
    let load = Load::start(&cluster, "t", 16).await;
    let taken = async |cluster: &Cluster, ids: &[u64]| {
        let mut taken = 0.0;
        for &id in ids {
            taken += cluster.metric(id, "trivet_node_shards_taken_over_total").await;
        }
        taken
    };
    for victim in [1, 2] {
        let led = cluster.metric(victim, "trivet_node_leaders").await;
        assert!(led >= 1.0, "node {victim} leads nothing");
        let others: Vec<u64> = cluster.ids().into_iter().filter(|&id| id != victim).collect();
        let before = taken(&cluster, &others).await;
        cluster.kill(victim);
        // By the election timeout alone nothing would be counted here, however long one waits.
        eventually("the others have taken over", || async {
            let count = taken(&cluster, &others).await - before;
            let mut leaders = 0.0;
            for &id in &others {
                leaders += cluster.metric(id, "trivet_node_leaders").await;
            }
            let all = f64::from(MANY_SHARDS) + 1.0;
            if count >= 1.0 && leaders == all { Ok(()) } else { Err(format!("{count} of {led} taken, {leaders} led")) }
        })
        .await;
        cluster.start(victim);
        cluster.healthy().await;
    }
    load.finish().await.assert_flawless(500);
    cluster.checksums_equal("t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bench_verifies_itself_while_nodes_are_killed() {
    let mut cluster = Cluster::with_table(3).await;
    let journal = cluster.root().join("journal.jsonl");
    let journal = journal.to_str().expect("a temporary path is text");
    let bench = cluster.spawn(&[
        "bench",
        "--table",
        "t",
        "--verify",
        journal,
        "--concurrency",
        "16",
        "--time",
        "15s",
        "-o",
        "json",
    ]);
    for round in 0..3 {
        tokio::time::sleep(PAUSE_BETWEEN).await;
        let victim = round % 3 + 1;
        cluster.kill(victim);
        tokio::time::sleep(PAUSE_BETWEEN).await;
        cluster.start(victim);
        cluster.healthy().await;
    }
    let report = wait(bench, Duration::from_secs(120)).json();
    println!("  {report}");
    let number = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("no {name} in {report}"));
    for name in ["lost", "doubled", "phantom", "damaged", "unreadable", "refused", "unknown"] {
        assert_eq!(number(name), 0, "{name}");
    }
    assert!(report["violations"].as_array().is_some_and(Vec::is_empty), "{report}");
    assert!(report["failures"].as_object().is_some_and(serde_json::Map::is_empty), "{report}");
    assert!(number("acknowledged") > 500, "{report}");
    // Everything is still there when it is judged again after one more crash of all.
    for id in cluster.ids() {
        cluster.kill(id);
    }
    for id in cluster.ids() {
        cluster.start(id);
    }
    cluster.healthy().await;
    cluster.trivet(&["bench", "--verify-only", journal]).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_leader_is_replaced() {
    let cluster = Cluster::with_table(3).await;
    let load = Load::start(&cluster, "t", 8).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    for round in 0..rounds(1) {
        let (leader, _) = cluster.leader("t", &format!("counter-{}", round % 8)).await;
        cluster.pause(leader);
        tokio::time::sleep(Duration::from_secs(5)).await;
        cluster.resume(leader);
        cluster.healthy().await;
    }
    load.finish().await.assert_flawless(200);
    cluster.checksums_equal("t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_killed_at_once_come_back_with_everything() {
    let mut cluster = Cluster::with_table(3).await;
    let load = Load::start(&cluster, "t", 8).await;
    for _ in 0..rounds(1) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        for id in cluster.ids() {
            cluster.kill(id);
        }
        for id in cluster.ids() {
            cluster.start(id);
        }
        cluster.healthy().await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    load.finish().await.assert_flawless(200);
    cluster.checksums_equal("t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_stop_hands_leaderships_over() {
    let mut cluster = Cluster::with_table(3).await;
    let load = Load::start(&cluster, "t", 8).await;
    for id in cluster.ids() {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(cluster.stop(id), 0, "SIGTERM ends a node with exit code 0:\n{}", cluster.node(id).log_tail(20));
        cluster.start(id);
        cluster.healthy().await;
    }
    load.finish().await.assert_flawless(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_writes_are_refused_in_time_and_return_with_it() {
    let mut cluster = Cluster::with_table(3).await;
    cluster.trivet(&["put", "t", "before", "1"]).ok();
    cluster.kill(2);
    cluster.kill(3);
    let began = std::time::Instant::now();
    let refused = cluster.trivet(&["put", "t", "during", "1"]);
    assert_eq!(refused.code, 4, "unavailable has exit code 4: {refused:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "took {:?}", began.elapsed());
    cluster.start(2);
    cluster.start(3);
    cluster.healthy().await;
    assert_eq!(cluster.trivet(&["get", "t", "before"]).ok().trim(), "1");
    cluster.trivet(&["put", "t", "after", "1"]).ok();
}
