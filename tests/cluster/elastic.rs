//! A cluster that grows and shrinks while clients work: no call fails, nothing is lost or doubled.

use std::time::Duration;

use crate::harness::{Cluster, eventually, rounds};
use crate::load::{Load, connect};
use crate::splits::{assert_all_there, fill};

/// How long a cluster may take until nothing is left to move. Generous: the machine may be busy with other things.
const EVEN_WITHIN: &str = "180s";

/// Waits until nothing is left to move; returns the nodes' shares.
fn even(cluster: &Cluster) -> Vec<serde_json::Value> {
    let report = cluster.trivet(&["cluster", "balance", "--wait", EVEN_WITHIN, "-o", "json"]).json();
    // A few clients on a few keys may load one shard more than others, which it says and can do nothing about.
    let stuck = report["stuck"].as_array().expect("notes");
    let of_load = |note: &&serde_json::Value| note.as_str().is_some_and(|note| note.contains("fair share of requests"));
    assert!(stuck.iter().all(|note| of_load(&note)), "{report}");
    report["nodes"].as_array().expect("nodes").clone()
}

fn replicas(share: &serde_json::Value) -> u64 {
    share["replicas"].as_u64().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_become_five_and_two_leave_under_load() {
    let mut cluster = Cluster::with_table(3).await;
    let keys = fill(&cluster, "t").await;
    let load = Load::start(&cluster, "t", 8).await;

    for id in [4, 5] {
        cluster.newcomer(id).start();
    }
    cluster.healthy().await;
    let shares = even(&cluster);
    assert_eq!(shares.len(), 5);
    // 24 replicas on five nodes.
    assert!(shares.iter().all(|share| (4..=6).contains(&replicas(share))), "{shares:?}");

    for _ in 0..24 {
        let shards = cluster.shards("t").await;
        let oldest = shards.iter().min_by_key(|shard| (shard.epoch, shard.id)).expect("a table has shards").id;
        cluster.trivet(&["shard", "split", &oldest.to_string()]).ok();
    }
    let shards = cluster.shards("t").await.len() as u64;
    assert_eq!(shards, 32);
    even(&cluster);

    // The founder, which most likely leads the catalog, and another.
    for id in [1, 2] {
        let said = cluster.trivet(&["node", "decommission", &id.to_string(), "--wait", EVEN_WITHIN]).ok();
        assert!(said.contains("has left the cluster"), "{said}");
        let code = cluster.node_mut(id).ended(Duration::from_secs(60)).expect("its process ends by itself");
        assert_ne!(code, 0, "as one that may not go on");
    }
    let shares = even(&cluster);
    assert_eq!(shares.iter().map(replicas).collect::<Vec<_>>(), [shards; 3]);

    load.finish().await.assert_flawless(300);
    cluster.healthy().await;
    cluster.checksums_equal("t").await;
    assert_all_there(&cluster, "t", &keys).await;
    // Its directory does not come back.
    let refused = cluster.node(1).start_refused();
    assert!(refused.said().contains("was decommissioned"), "{}", refused.said());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_held_that_is_lost_for_good_is_made_anew_elsewhere() {
    let mut cluster = Cluster::unstarted(4);
    for id in cluster.ids() {
        cluster.node_mut(id).settings = vec!["timers.replace_lost_ms=5000".to_owned()];
        cluster.start(id);
    }
    cluster.healthy().await;
    cluster.create_hash_table("t", 8).await;
    let load = Load::start(&cluster, "t", 8).await;
    cluster.kill(3);
    let note = eventually("what it held is made anew", || async {
        let status = cluster.trivet(&["cluster", "status", "-o", "json"]).json_whatever();
        let notes = status["notes"].as_array().cloned().unwrap_or_default();
        let said =
            notes.iter().find(|note| note.as_str().is_some_and(|note| note.contains("made anew elsewhere: when")));
        said.map(|note| note.to_string()).ok_or_else(|| status.to_string())
    });
    println!("  {}", note.await);
    load.finish().await.assert_flawless(300);
    cluster.checksums_equal("t").await;
    let said = cluster.trivet(&["node", "decommission", "3"]).ok();
    assert!(said.contains("has left"), "{said}");
    cluster.healthy().await;
    let client = connect(&cluster).await;
    client.table("t").put("after", "all").await.expect("it serves");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_move_and_nodes_drain_by_hand_and_nonsense_is_refused() {
    let mut cluster = Cluster::with_table(3).await;
    cluster.trivet(&["cluster", "pause"]).ok();
    cluster.newcomer(4).start();
    cluster.healthy().await;
    let load = Load::start(&cluster, "t", 4).await;
    let shard = cluster.shards("t").await[0].clone();
    let id = shard.id.to_string();
    for from in [1, 2, 3] {
        let from = from.to_string();
        let to = if from == "1" { 4.to_string() } else { (from.parse::<u64>().expect("small") - 1).to_string() };
        let said = cluster.trivet(&["shard", "move", &id, "--from", &from, "--to", &to, "--dry-run"]).ok();
        assert!(said.contains("would move"), "{said}");
        let said = cluster.trivet(&["shard", "move", &id, "--from", &from, "--to", &to, "--wait", "120s"]).ok();
        assert!(said.contains("has moved"), "{said}");
    }
    for (arguments, code, words) in [
        (vec!["shard", "move", "999", "--from", "1", "--to", "3"], 3, "no shard"),
        (vec!["shard", "move", &id, "--from", "3", "--to", "3"], 1, "no replica on"),
        (vec!["shard", "move", &id, "--from", "1", "--to", "9"], 3, "no node"),
        (vec!["shard", "move", &id, "--from", "1", "--to", "2"], 1, "has a replica on"),
        (vec!["shard", "move", "0", "--from", "1", "--to", "2"], 1, "every node"),
        (vec!["node", "drain", "9"], 3, "no node"),
        (vec!["node", "decommission", "1"], 1, "drain first"),
        (vec!["node", "decommission", "9"], 3, "no node"),
    ] {
        let finished = cluster.trivet(&arguments);
        assert_eq!(finished.code, code, "{arguments:?}: {}", finished.said());
        assert!(finished.said().contains(words), "{arguments:?}: {}", finished.said());
    }
    let said = cluster.trivet(&["cluster", "resume", "--dry-run"]).ok();
    assert!(said.contains("would be moved about again"), "{said}");
    let said = cluster.trivet(&["cluster", "pause", "--dry-run"]).ok();
    assert_eq!(said.trim(), "nothing would change: balancing is paused");
    cluster.trivet(&["cluster", "resume"]).ok();
    let said = cluster.trivet(&["node", "drain", "2", "--dry-run"]).ok();
    assert!(said.contains("would be draining"), "{said}");
    let said = cluster.trivet(&["node", "drain", "2", "--wait", EVEN_WITHIN]).ok();
    assert!(said.contains("holds nothing any more"), "{said}");
    assert!(cluster.shards("t").await.iter().all(|shard| shard.replicas.iter().all(|replica| replica.node != 2)));
    cluster.trivet(&["node", "serve", "2"]).ok();
    let shares = even(&cluster);
    assert!(shares.iter().all(|share| replicas(share) >= 5), "{shares:?}");
    load.finish().await.assert_flawless(300);
    cluster.healthy().await;
    cluster.checksums_equal("t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_move_while_nodes_are_killed() {
    let mut cluster = Cluster::with_table(3).await;
    cluster.trivet(&["cluster", "pause"]).ok();
    cluster.newcomer(4).start();
    cluster.healthy().await;
    let load = Load::start(&cluster, "t", 8).await;
    for turn in 0..rounds(6) {
        let shards = cluster.shards("t").await;
        let shard = &shards[turn as usize % shards.len()];
        let on: Vec<u64> = shard.replicas.iter().map(|replica| replica.node).collect();
        let to = (1..=4).find(|node| !on.contains(node)).expect("one of four has none");
        let from = on[turn as usize % on.len()];
        let (id, from_text, to_text) = (shard.id.to_string(), from.to_string(), to.to_string());
        let wish = ["shard", "move", &id, "--from", &from_text, "--to", &to_text, "--wait", "90s", "--deadline", "30s"];
        let moving = cluster.spawn(&wish);
        // Who loses, who gets, and one that stays dies somewhere between the wish and its fulfilment.
        let stays = on.iter().copied().find(|node| *node != from).expect("three have one");
        let victim = [from, to, stays][turn as usize % 3];
        tokio::time::sleep(Duration::from_millis(u64::from(turn) * 40)).await;
        cluster.kill(victim);
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.start(victim);
        let said = crate::harness::wait(moving, Duration::from_secs(120));
        println!("  turn {turn}: exit code {}: {}", said.code, said.said().trim());
        cluster.healthy().await;
        // The wish may have come too late to be taken: then nothing has changed, and it is repeated.
        cluster.trivet(&["shard", "move", &id, "--from", &from_text, "--to", &to_text, "--wait", "90s"]).ok();
        let now = cluster.shards("t").await;
        let moved = now.iter().find(|other| other.id == shard.id).expect("the shard");
        assert!(moved.replicas.iter().any(|replica| replica.node == to), "{moved:?}");
        assert!(moved.replicas.iter().all(|replica| replica.node != from), "{moved:?}");
    }
    load.finish().await.assert_flawless(300);
    cluster.healthy().await;
    cluster.checksums_equal("t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_serves_or_holds_too_much_is_split_unasked() {
    let mut cluster = Cluster::unstarted(3);
    for id in cluster.ids() {
        cluster.node_mut(id).settings = vec![
            "split.requests_per_second=50".to_owned(),
            "split.mb=2".to_owned(),
            // So that what is written soon lies in files, whose sizes are looked at.
            "write_buffer_mb=4".to_owned(),
        ];
        cluster.start(id);
    }
    cluster.healthy().await;
    for table in ["busy", "large"] {
        cluster.create_hash_table(table, 1).await;
    }
    let load = Load::start(&cluster, "busy", 8).await;
    let client = connect(&cluster).await;
    let large = client.table("large");
    // Sizes are those on disk: what compresses well is small.
    let mut noise = 1_u64;
    let mut value = || -> Vec<u8> {
        let next = || {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (noise >> 56) as u8
        };
        std::iter::repeat_with(next).take(200_000).collect()
    };
    for number in 0..100 {
        large.put(format!("key-{number}"), value()).await.expect("written");
    }
    for table in ["large", "busy"] {
        eventually("it is split", || async {
            let shards = cluster.shards(table).await.len();
            if shards > 1 { Ok(()) } else { Err(format!("{table} has {shards} shard")) }
        })
        .await;
    }
    load.finish().await.assert_flawless(300);
    for number in 0..100 {
        assert!(large.get(format!("key-{number}")).await.expect("read").body.is_some(), "key-{number} is lost");
    }
    cluster.healthy().await;
    for table in ["large", "busy"] {
        cluster.checksums_equal(table).await;
    }
}
