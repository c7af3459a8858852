//! Scans: every key once, pages that join up, cursors that cannot be forged.

use std::collections::BTreeSet;

use tokio_stream::StreamExt;
use trivet::wire::proto::v1::{CreateTableRequest, Partitioning, ScanRange, ScanRequest, scan_request};

use crate::harness::{Cluster, put, refused};

const KEYS: u32 = 60;

fn scan(table: &str) -> ScanRequest {
    ScanRequest { table: table.into(), ..ScanRequest::default() }
}

async fn filled(cluster: &Cluster, table: &str) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for number in 0..KEYS {
        let key = format!("{}-{number:03}", ["apple", "banana", "melon", "zebra"][number as usize % 4]);
        cluster.kv(u64::from(number % 3) + 1).put(put(table, &key, "v")).await.expect("written");
        keys.insert(key);
    }
    keys
}

/// Reads page by page through a different node each time.
async fn pages(cluster: &Cluster, mut request: ScanRequest) -> Vec<String> {
    let mut found = Vec::new();
    for turn in 0.. {
        let page = cluster.kv(turn % 3 + 1).scan_page(request.clone()).await.expect("a page").into_inner();
        found.extend(page.rows.iter().map(|row| String::from_utf8_lossy(&row.key).into_owned()));
        match page.cursor {
            Some(cursor) => request.cursor = cursor,
            None => return found,
        }
        assert!(turn < u64::from(KEYS) * 10, "pages without end");
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hash_table_is_scanned_shard_by_shard_each_key_once() {
    let cluster = Cluster::with_table(3).await;
    let keys = filled(&cluster, "t").await;

    let mut stream = cluster.kv(1).scan(scan("t")).await.expect("a stream").into_inner();
    let mut streamed = Vec::new();
    while let Some(page) = stream.next().await {
        streamed
            .extend(page.expect("a page").rows.into_iter().map(|row| String::from_utf8_lossy(&row.key).into_owned()));
    }
    assert_eq!(streamed.len(), keys.len(), "no key twice");
    assert_eq!(streamed.iter().cloned().collect::<BTreeSet<_>>(), keys);

    let paged = pages(&cluster, ScanRequest { limit: 7, ..scan("t") }).await;
    assert_eq!(paged, streamed, "pages of seven through different nodes join up");

    let prefix = Some(scan_request::Bounds::Prefix("melon".into()));
    let melons = pages(&cluster, ScanRequest { bounds: prefix, limit: 4, ..scan("t") }).await;
    assert_eq!(
        melons.into_iter().collect::<BTreeSet<_>>(),
        keys.iter().filter(|k| k.starts_with("melon")).cloned().collect()
    );

    assert_eq!(cluster.trivet(&["scan", "t", "--count"]).ok().trim(), KEYS.to_string());
    for which in ["leader", "nearest", "least-loaded"] {
        // Linearizable on whichever replica, and at least what a write's answer has named.
        let counted = cluster.trivet(&["scan", "t", "--count", "--read-from", which]).ok();
        assert_eq!(counted.trim(), KEYS.to_string(), "{which}");
        let written = cluster.trivet(&["put", "t", "apple-000", which, "-o", "json"]).json();
        let level = format!("at-least={}", written["version"].as_str().expect("a version"));
        let read = cluster.trivet(&["get", "t", "apple-000", "--read-from", which, "--level", &level]).ok();
        assert_eq!(read.trim(), which);
    }
    let limited = cluster.trivet(&["scan", "t", "--limit", "5", "-o", "json"]).ok();
    assert_eq!(limited.lines().count(), 5, "{limited}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_table_is_scanned_in_order_in_both_directions() {
    let cluster = Cluster::of(3).await;
    let request = CreateTableRequest {
        name: "r".into(),
        partitioning: Partitioning::Range as i32,
        split_points: vec!["banana".into(), "melon-030".into()],
        ..Default::default()
    };
    cluster.tables(1).create(request).await.expect("the table is made");
    let keys: Vec<String> = filled(&cluster, "r").await.into_iter().collect();

    assert_eq!(pages(&cluster, ScanRequest { limit: 7, ..scan("r") }).await, keys);
    let backwards = pages(&cluster, ScanRequest { limit: 7, reverse: true, ..scan("r") }).await;
    assert_eq!(backwards, keys.iter().rev().cloned().collect::<Vec<_>>());

    let range = ScanRange { from: Some("b".into()), to: Some("melon-020".into()) };
    let bounds = Some(scan_request::Bounds::Range(range));
    let expected: Vec<String> = keys.iter().filter(|key| ("b".."melon-020").contains(&key.as_str())).cloned().collect();
    assert_eq!(pages(&cluster, ScanRequest { bounds, limit: 3, ..scan("r") }).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_is_good_for_its_own_scan_only() {
    let cluster = Cluster::with_table(3).await;
    filled(&cluster, "t").await;
    let request = ScanRequest { limit: 5, ..scan("t") };
    let cursor =
        cluster.kv(1).scan_page(request.clone()).await.expect("a page").into_inner().cursor.expect("more to come");

    let mut altered = cursor.to_vec();
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    refused(cluster.kv(1).scan_page(ScanRequest { cursor: altered.into(), ..request.clone() }).await, "INVALID_CURSOR");
    refused(cluster.kv(1).scan_page(ScanRequest { cursor: "junk".into(), ..request.clone() }).await, "INVALID_CURSOR");
    let other = ScanRequest { cursor, bounds: Some(scan_request::Bounds::Prefix("melon".into())), ..request };
    refused(cluster.kv(1).scan_page(other).await, "INVALID_CURSOR");
}
