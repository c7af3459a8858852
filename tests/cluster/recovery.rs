//! A majority of the replicas of some shards, those of the catalog among them, is lost for good, and the cluster is
//! recovered from what is left.

use std::collections::BTreeSet;

use trivet::wire::proto::v1::ShardInfo;

use crate::harness::{Cluster, Finished, binary, eventually, finish, get, put};
use crate::rejoining::fill;

/// Rows written before the loss.
const ROWS: u32 = 400;

/// Three nodes of five whose loss leaves a replica of every shard, takes the majority of some, and leaves that of others.
fn victims(shards: &[ShardInfo]) -> BTreeSet<u64> {
    let mut triples = Vec::new();
    for first in 1..=3 {
        for second in first + 1..=4 {
            triples.extend((second + 1..=5).map(|third| BTreeSet::from([first, second, third])));
        }
    }
    let left = |shard: &ShardInfo, lost: &BTreeSet<u64>| {
        shard.replicas.iter().filter(|replica| !lost.contains(&replica.node)).count()
    };
    let fits = |lost: &BTreeSet<u64>| {
        let left: BTreeSet<usize> = shards.iter().map(|shard| left(shard, lost)).collect();
        left.contains(&1) && left.contains(&2) && !left.contains(&0)
    };
    triples.into_iter().find(fits).expect("eight shards do not cover all ten triples")
}

fn debug(arguments: &[&str]) -> Finished {
    finish(binary().args(["debug", "recover"]).args(arguments))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_goes_on_from_what_a_lost_quorum_left() {
    let mut cluster = Cluster::with_table(5).await;
    fill(&cluster, "t", ROWS).await;
    let shards = cluster.shards("t").await;
    let lost = victims(&shards);
    let survivors: Vec<u64> = cluster.ids().into_iter().filter(|id| !lost.contains(id)).collect();
    let path = |name: &str| cluster.root().join(name).to_str().expect("a path of text").to_owned();
    let directory = |id: u64| cluster.node(id).directory.to_str().expect("a path of text").to_owned();
    let (plan_file, directories) = (path("plan.json"), survivors.iter().map(|&id| directory(id)).collect::<Vec<_>>());
    let files: Vec<String> = survivors.iter().map(|id| path(&format!("survivor-{id}.json"))).collect();
    // Every replica has everything, so nothing is lost with the others.
    cluster.checksums_equal("t").await;
    let busy = debug(&["collect", "--data", &directories[0]]);
    assert!(busy.code != 0 && busy.err.contains("in use"), "{}", busy.said());
    for id in cluster.ids() {
        cluster.kill(id);
    }

    for (directory, file) in directories.iter().zip(&files) {
        let collected = debug(&["collect", "--data", directory]).ok();
        std::fs::write(file, collected).expect("written");
    }
    let ids = lost.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let incomplete = debug(&["plan", &files[0], "--lost", &ids]);
    assert!(incomplete.code != 0 && incomplete.err.contains("what of node"), "{}", incomplete.said());
    let report = debug(&["plan", &files[0], &files[1], "--lost", &ids, "--save", &plan_file]).ok();
    println!("{report}");
    let majority_lost =
        |shard: &&ShardInfo| shard.replicas.iter().filter(|replica| lost.contains(&replica.node)).count() >= 2;
    let expected = shards.iter().filter(majority_lost).count() + 1;
    assert!(report.contains(&format!("{expected} shards lost their majority")), "{report}");

    let unconfirmed = debug(&["apply", &plan_file, "--data", &directories[0]]);
    assert_eq!(unconfirmed.code, 2, "{}", unconfirmed.said());
    let accept = "--yes-i-accept-that-data-may-be-lost";
    for directory in &directories {
        let dry = debug(&["apply", &plan_file, "--data", directory, "--dry-run"]).ok();
        assert!(dry.contains("nothing has been changed"), "{dry}");
        let done = debug(&["apply", &plan_file, "--data", directory, accept]).ok();
        println!("{done}");
        let again = debug(&["apply", &plan_file, "--data", directory, accept]).ok();
        assert!(again.contains("before"), "{again}");
    }

    for &id in &survivors {
        cluster.start(id);
    }
    // Without the lost nodes and before there is another one, everything is served again.
    for number in 0..ROWS {
        let key = if number < 200 { format!("row-{number:06}") } else { format!("{{tag-200}}row-{number:06}") };
        let kv = cluster.kv(survivors[number as usize % 2]);
        let answer =
            eventually("a row that survived is served", || async { kv.clone().get(get("t", &key)).await }).await;
        assert_eq!(answer.into_inner().found.expect("the row is there").value.len(), 1_024, "{key}");
    }
    let kv = cluster.kv(survivors[0]);
    eventually("a new row is written", || async { kv.clone().put(put("t", "new", "after")).await }).await;

    // One of the lost comes back with its old data, and is refused before its replicas take part.
    let ghost = *lost.iter().next().expect("three are lost");
    let refused = cluster.node(ghost).start_refused();
    assert!(refused.code != 0 && refused.said().contains("given up"), "{}", refused.said());

    cluster.newcomer(6).start();
    cluster.healthy().await;
    let members: BTreeSet<u64> = survivors.iter().copied().chain([6]).collect();
    for shard in cluster.shards("t").await {
        let nodes: BTreeSet<u64> = shard.replicas.iter().map(|replica| replica.node).collect();
        assert_eq!(nodes, members, "shard {} has a replica on every node there is", shard.id);
    }
    cluster.checksums_equal("t").await;
    let after = cluster.trivet(&["get", "t", "new"]).ok();
    assert_eq!(after.trim(), "after");
    let status = cluster.trivet(&["cluster", "status"]).ok();
    println!("{status}");
    assert!(status.contains("recovered from a lost quorum"), "{status}");
    let nodes = cluster.trivet(&["node", "list", "-o", "json"]).json();
    assert_eq!(nodes.as_array().map(Vec::len), Some(3), "the lost nodes have left: {nodes}");
    // The catalog works as before.
    cluster.create_hash_table("later", 4).await;
    cluster.trivet(&["put", "later", "k", "v"]).ok();
}
