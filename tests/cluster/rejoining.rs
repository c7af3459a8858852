//! A node that lost its disk, and a node that is new, catch up by snapshot while writes go on.

use std::time::Duration;

use trivet::wire::proto::v1::{CreateTableRequest, Partitioning, StatusRequest};

use crate::harness::{Cluster, batch, delete, eventually, get_any, put, rounds, set};
use crate::load::Load;

/// Rows of a kibibyte that a catching-up replica must fetch.
const ROWS: u32 = 2_000;
/// More than a shard's log is allowed to grow to: then it is trimmed, and who is new needs a snapshot.
const TRIMMING_MIB: u32 = 72;

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_node_rejoins_as_a_new_replica_while_writes_go_on() {
    let mut cluster = Cluster::with_table(3).await;
    fill(&cluster, "t", ROWS).await;
    cluster.create_hash_table("large", 1).await;
    fill_until_trimmed(&cluster, "large").await;
    let load = Load::start(&cluster, "t", 8).await;
    for round in 0..rounds(1) {
        let victim = u64::from(round % 3) + 1;
        let before = replicas_on(&cluster, victim).await;
        cluster.wipe(victim);
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.start(victim);
        cluster.healthy().await;
        let after = eventually("the node hosts a replica of every shard", || async {
            let after = replicas_on(&cluster, victim).await;
            if after.len() == before.len() { Ok(after) } else { Err(after) }
        })
        .await;
        let installed = cluster.metric(victim, "trivet_raft_snapshots_installed_total").await;
        assert!(installed >= 1.0, "the trimmed shard came by snapshot");
        assert!(before.iter().all(|id| !after.contains(id)), "replica ids are not reused: {before:?} {after:?}");
        cluster.checksums_equal("t").await;
        cluster.checksums_equal("large").await;
    }
    load.finish().await.assert_flawless(200);
    let sums = cluster.checksums_equal("t").await;
    let versions: u64 = sums.iter().map(|sum| sum.replicas[0].versions).sum();
    assert!(versions >= u64::from(ROWS), "the checksums cover {versions} versions only");
    // The command line says the same.
    for shard in cluster.shards("t").await {
        cluster.trivet(&["shard", "checksum", &shard.id.to_string()]).ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fourth_node_joins_and_serves() {
    let mut cluster = Cluster::with_table(3).await;
    cluster.trivet(&["put", "t", "k", "v"]).ok();
    cluster.newcomer(4).start();
    cluster.healthy().await;
    eventually("every node knows four", || async {
        for id in cluster.ids() {
            let known =
                cluster.cluster(id).status(StatusRequest {}).await.map_err(|e| e.to_string())?.into_inner().nodes.len();
            if known != 4 {
                return Err(format!("node {id} knows {known}"));
            }
        }
        Ok(())
    })
    .await;
    let answer = cluster.kv(4).get(crate::harness::get("t", "k")).await.expect("the newcomer forwards").into_inner();
    assert_eq!(answer.found.expect("the key is there").value, "v");
    cluster.create_hash_table("spread", 16).await;
    let on_four =
        cluster.shards("spread").await.iter().flat_map(|s| s.replicas.clone()).filter(|r| r.node == 4).count();
    assert!(on_four > 0, "a table made after the join also lies on the newcomer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_reads_the_same_after_it_was_away() {
    let mut cluster = Cluster::with_table(3).await;
    cluster.kill(3);
    fill(&cluster, "t", 200).await;
    cluster.start(3);
    cluster.healthy().await;
    cluster.checksums_equal("t").await;
    // What it serves from its own replica is what was written.
    for number in [0, 99, 199] {
        let key = format!("row-{number:06}");
        let found = cluster.kv(3).get(get_any("t", &key)).await.expect("a local read").into_inner().found;
        assert_eq!(found.expect("the replica has caught up").value.len(), 1_024, "{key}");
    }
    cluster.kv(3).put(put("t", "k", "v")).await.expect("and it serves writes");
}

/// Writes rows `row-000000` … of one kibibyte each; rows of one tag go in batches.
pub async fn fill(cluster: &Cluster, table: &str, rows: u32) {
    let value = vec![b'x'; 1_024];
    let kv = cluster.kv(cluster.some_node());
    for number in 0..rows.min(200) {
        let request = put(table, format!("row-{number:06}"), &value);
        eventually("a row is written", || async { kv.clone().put(request.clone()).await }).await;
    }
    for first in (200..rows).step_by(200) {
        let operations =
            (first..rows.min(first + 200)).map(|n| set(format!("{{tag-{first}}}row-{n:06}"), &value)).collect();
        let request = batch(table, Vec::new(), operations);
        eventually("a batch is written", || async { kv.clone().batch(request.clone()).await }).await;
    }
}

/// Writes more to a table of one shard than its log may hold.
pub async fn write_large(cluster: &Cluster, table: &str) {
    let value: Vec<u8> = (0..256_u32 << 10).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for part in 0..TRIMMING_MIB / 3 {
        let operations = (0..12).map(|n| set(format!("{{a}}{part}-{n}"), &value)).collect();
        let request = batch(table, Vec::new(), operations);
        // Any node of a majority will do; the first may be the one in trouble.
        eventually("a large batch is written", || async {
            let mut answer = cluster.kv(1).batch(request.clone()).await;
            if answer.is_err() {
                answer = cluster.kv(2).batch(request.clone()).await;
            }
            answer
        })
        .await;
    }
}

/// Writes to a table of one shard until its log is trimmed.
pub async fn fill_until_trimmed(cluster: &Cluster, table: &str) {
    write_large(cluster, table).await;
    eventually("the log is trimmed", || async {
        let mut trimmed = 0.0;
        for id in cluster.ids() {
            trimmed += cluster.metric(id, "trivet_raft_log_trimmed_total").await;
        }
        if trimmed > 0.0 { Ok(()) } else { Err(trimmed) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_from_an_idle_table_leaves_the_disk() {
    let cluster = Cluster::of(3).await;
    let request = CreateTableRequest {
        name: "large".to_owned(),
        partitioning: Partitioning::Hash as i32,
        shards: 1,
        history_ms: Some(1_000),
        ..CreateTableRequest::default()
    };
    cluster.tables(1).create(request).await.expect("the table is created");
    write_large(&cluster, "large").await;
    let on_disk = async || {
        let mut bytes: f64 = 0.0;
        for id in cluster.ids() {
            bytes = bytes.max(cluster.metric(id, "trivet_storage_data_table_bytes").await);
        }
        bytes
    };
    // What is written packs well.
    let full = eventually("the data lies in files", || async {
        let bytes = on_disk().await;
        if bytes > 2e6 { Ok(bytes) } else { Err(bytes) }
    })
    .await;
    for part in 0..TRIMMING_MIB / 3 {
        let operations = (0..12).map(|n| delete(format!("{{a}}{part}-{n}"))).collect();
        cluster.kv(1).batch(batch("large", Vec::new(), operations)).await.expect("deleted");
    }
    // Nothing is written any more.
    let deadline = std::time::Instant::now() + Duration::from_secs(120);
    while on_disk().await > full / 8.0 {
        assert!(std::time::Instant::now() < deadline, "{} bytes are still there", on_disk().await);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(cluster.trivet(&["scan", "large", "--count"]).ok().trim(), "0");
    cluster.checksums_equal("large").await;
}

async fn replicas_on(cluster: &Cluster, node: u64) -> Vec<u64> {
    cluster
        .shards("t")
        .await
        .iter()
        .flat_map(|shard| shard.replicas.clone())
        .filter(|r| r.node == node)
        .map(|r| r.id)
        .collect()
}
