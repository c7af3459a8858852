//! Tables come and go while every node agrees which there are; any node serves any key.

use trivet::wire::proto::v1::{CreateTableRequest, DropTableRequest, ListTablesRequest, Partitioning};

use crate::harness::{Cluster, eventually, get, put, refused};

fn create(name: &str) -> CreateTableRequest {
    CreateTableRequest { name: name.into(), partitioning: Partitioning::Hash as i32, shards: 6, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_made_once_and_dropped_whole() {
    let cluster = Cluster::of(3).await;
    let made = cluster.tables(2).create(create("t")).await.expect("made").into_inner();
    assert_eq!((made.shards.len(), made.replication), (6, 3));
    for shard in &made.shards {
        let nodes: std::collections::BTreeSet<u64> = shard.replicas.iter().map(|replica| replica.node).collect();
        assert_eq!(nodes.len(), 3, "three replicas on three nodes: {shard:?}");
    }
    refused(cluster.tables(1).create(create("t")).await, "TABLE_EXISTS");

    // Usable at once, through every node.
    for node in cluster.ids() {
        cluster.kv(node).put(put("t", format!("from-{node}"), "v")).await.expect("written");
    }
    cluster.tables(3).drop(DropTableRequest { name: "t".into(), dry_run: false }).await.expect("dropped");
    for node in cluster.ids() {
        eventually("every node knows that it is gone", || async {
            match cluster.kv(node).get(get("t", "k")).await {
                Ok(_) => Err("it still serves".to_owned()),
                Err(status) if crate::harness::reason(&status) == "UNKNOWN_TABLE" => Ok(()),
                Err(status) => Err(status.to_string()),
            }
        })
        .await;
    }
    let again = cluster.tables(1).create(create("t")).await.expect("the name is free again").into_inner();
    assert_ne!(again.id, made.id, "ids are never reused");
    assert_eq!(cluster.trivet(&["scan", "t", "--count"]).ok().trim(), "0", "nothing of the old one is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_does_nothing_and_nonsense_is_refused() {
    let cluster = Cluster::of(3).await;
    let planned = cluster.tables(1).create(CreateTableRequest { dry_run: true, ..create("t") }).await.expect("a plan");
    assert_eq!(planned.into_inner().shards.len(), 6);
    let listed = cluster.tables(1).list(ListTablesRequest {}).await.expect("a list").into_inner().tables;
    assert!(listed.iter().all(|table| table.name != "t"), "{listed:?}");

    let wide = CreateTableRequest { replication: 7, ..create("t") };
    refused(cluster.tables(1).create(wide).await, "NOT_ENOUGH_NODES");
    refused(cluster.tables(1).create(create("")).await, "INVALID_REQUEST");
    let unspecified = CreateTableRequest { partitioning: 0, ..create("t") };
    refused(cluster.tables(1).create(unspecified).await, "INVALID_REQUEST");
    refused(cluster.tables(1).drop(DropTableRequest { name: "nothing".into(), dry_run: false }).await, "UNKNOWN_TABLE");
    let usage = cluster.trivet(&["table", "create", "t", "--hash", "--range"]);
    assert_eq!(usage.code, 2, "{usage:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_serves_every_key() {
    let cluster = Cluster::with_table(3).await;
    let mut served_elsewhere = 0;
    for number in 0..30_u64 {
        let key = format!("key-{number}");
        let through = number % 3 + 1;
        let written = cluster.kv(through).put(put("t", &key, &key)).await.expect("written").into_inner();
        served_elsewhere += u32::from(written.header.expect("a header").node != through);
        for node in cluster.ids() {
            let found = cluster.kv(node).get(get("t", &key)).await.expect("a read").into_inner().found;
            assert_eq!(found.expect("written before").value, key, "asked of node {node}");
        }
    }
    assert!(served_elsewhere > 0, "no key's leader was elsewhere: forwarding was not tried");
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_are_spread_and_can_be_moved() {
    let cluster = Cluster::with_table(3).await;
    let leaders: std::collections::BTreeSet<u64> =
        cluster.shards("t").await.iter().filter_map(|shard| shard.leader).collect();
    assert!(leaders.len() >= 2, "eight shards led by {leaders:?} only");
    for to in cluster.ids() {
        cluster.transfer("t", "k", to).await;
        cluster.kv(to).put(put("t", "k", "v")).await.expect("the new leader serves");
    }
}
