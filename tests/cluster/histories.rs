//! Every version of a key stays readable within the table's history window, and any of them can be made current again.

use std::time::Duration;

use trivet::wire::proto::v1::{CreateTableRequest, GetRequest, Partitioning, ReadLevel, RollbackRequest, read_level};

use crate::harness::{Cluster, eventually, fresh_id, get, put, reason, refused};

#[tokio::test(flavor = "multi_thread")]
async fn the_past_can_be_read_and_restored() {
    let mut cluster = Cluster::with_table(3).await;
    let mut versions = Vec::new();
    for value in ["one", "two", "three"] {
        let written = cluster.kv(1).put(put("t", "k", value)).await.expect("written").into_inner();
        versions.push(written.version.to_string());
    }
    cluster.trivet(&["del", "t", "k"]).ok();
    assert_eq!(cluster.trivet(&["get", "t", "k"]).code, 3, "deleted: not found");

    for (version, value) in versions.iter().zip(["one", "two", "three"]) {
        assert_eq!(cluster.trivet(&["get", "t", "k", "--as-of", version]).ok().trim(), value);
    }
    let history = cluster.trivet(&["history", "t", "k"]).ok();
    for version in &versions {
        assert!(history.contains(version.as_str()), "{version} in {history}");
    }

    cluster.trivet(&["rollback", "t", "k", "--to", &versions[1]]).ok();
    assert_eq!(cluster.trivet(&["get", "t", "k"]).ok().trim(), "two");
    assert_eq!(cluster.trivet(&["get", "t", "k", "--as-of", &versions[0]]).ok().trim(), "one", "the past stays");

    for node in cluster.ids() {
        cluster.crash(node);
    }
    cluster.healthy().await;
    assert_eq!(cluster.trivet(&["get", "t", "k", "--as-of", &versions[2]]).ok().trim(), "three", "after a crash");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_window_is_refused_and_not_guessed() {
    let cluster = Cluster::of(3).await;
    let request = CreateTableRequest {
        name: "t".into(),
        partitioning: Partitioning::Hash as i32,
        shards: 1,
        history_ms: Some(1_000),
        ..CreateTableRequest::default()
    };
    cluster.tables(1).create(request).await.expect("the table is made");
    let mut kv = cluster.kv(1);
    let first = kv.put(put("t", "k", "old")).await.expect("written").into_inner().version;
    kv.put(put("t", "k", "new")).await.expect("written");
    let as_of = |version| ReadLevel { level: Some(read_level::Level::AsOf(version)), any_replica: false };
    let past = GetRequest { level: Some(as_of(first)), ..get("t", "k") };
    let found = kv.get(past.clone()).await.expect("within the window").into_inner().found.expect("it was there");
    assert_eq!(found.value, "old");

    // The window moves on; what lies before it is refused, not answered with what happens to be left.
    let refusal = eventually("the window has moved on", || async {
        match cluster.kv(2).get(past.clone()).await {
            Ok(answer) => Err(format!("{answer:?}")),
            Err(status) => Ok(status),
        }
    })
    .await;
    assert_eq!(reason(&refusal), "HISTORY_TRIMMED", "{refusal:?}");
    let rollback = RollbackRequest { table: "t".into(), key: "k".into(), to: first, request: Some(fresh_id()) };
    refused(kv.rollback(rollback).await, "HISTORY_TRIMMED");
    assert_eq!(kv.get(get("t", "k")).await.expect("a read").into_inner().found.expect("kept").value, "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_with_a_time_to_live_goes_on_every_replica() {
    let mut cluster = Cluster::with_table(3).await;
    let mut request = put("t", "k", "v");
    request.ttl_ms = Some(2_000);
    cluster.kv(1).put(request).await.expect("written");
    let found = cluster.kv(2).get(get("t", "k")).await.expect("a read").into_inner().found.expect("still there");
    assert!(found.expires_ms.is_some());
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    for node in cluster.ids() {
        let found = cluster.kv(node).get(get("t", "k")).await.expect("a read").into_inner().found;
        assert!(found.is_none(), "expired, asked of node {node}");
    }
    cluster.crash(1);
    cluster.healthy().await;
    eventually("it stays gone after a crash", || async {
        match cluster.kv(1).get(get("t", "k")).await.map_err(|e| e.to_string())?.into_inner().found {
            None => Ok(()),
            Some(_) => Err("it came back".to_owned()),
        }
    })
    .await;
}
