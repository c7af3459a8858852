//! What a key, a value and a batch may be; beyond that, precise refusals and no effect.

use trivet::wire::proto::v1::{BatchGetRequest, WriteRequest};

use crate::harness::{Cluster, batch, get, get_any, put, refused, set};

const KEY_MAX: usize = 4 << 10;
const VALUE_MAX: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn any_bytes_survive_whole_on_every_node() {
    let cluster = Cluster::with_table(3).await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let keys: Vec<Vec<u8>> = vec![
        vec![0],
        vec![0, 0, 0],
        vec![0xFF],
        vec![0xFF; KEY_MAX],
        vec![0; KEY_MAX],
        every_byte.clone(),
        b"{".to_vec(),
        b"{}".to_vec(),
        b"}{".to_vec(),
        "schlüssel ключ 钥匙".as_bytes().to_vec(),
    ];
    let values = [Vec::new(), every_byte.repeat(16), vec![0xFF; VALUE_MAX]];
    for (number, key) in keys.iter().enumerate() {
        let value = &values[number % values.len()];
        let through = number as u64 % 3 + 1;
        cluster.kv(through).put(put("t", key, value)).await.unwrap_or_else(|status| panic!("{number}: {status}"));
        for node in cluster.ids() {
            let answer = cluster.kv(node).get(get("t", key)).await.expect("a read").into_inner();
            assert_eq!(answer.found.expect("written").value, *value, "key {number} asked of node {node}");
        }
    }
    assert_eq!(cluster.trivet(&["scan", "t", "--count"]).ok().trim(), keys.len().to_string());

    let request =
        BatchGetRequest { table: "t".into(), keys: keys.iter().map(|k| k.clone().into()).collect(), level: None };
    let answers = cluster.kv(3).batch_get(request).await.expect("keys of all shards in one call").into_inner().answers;
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(answer.found.as_ref().expect("written").value, values[number % values.len()], "key {number}");
    }
    assert_eq!(answers.len(), keys.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_precisely_and_change_nothing() {
    let cluster = Cluster::with_table(3).await;
    for node in cluster.ids() {
        let mut kv = cluster.kv(node);
        refused(kv.put(put("t", "", "v")).await, "EMPTY_KEY");
        refused(kv.get(get("t", "")).await, "EMPTY_KEY");
        refused(kv.put(put("t", vec![b'k'; KEY_MAX + 1], "v")).await, "KEY_TOO_LARGE");
        refused(kv.put(put("t", "k", vec![b'v'; VALUE_MAX + 1])).await, "VALUE_TOO_LARGE");
        refused(kv.get(get("no-such-table", "k")).await, "UNKNOWN_TABLE");
        refused(kv.get(get_any("no-such-table", "k")).await, "UNKNOWN_TABLE");
        refused(kv.put(put("no-such-table", "k", "v")).await, "UNKNOWN_TABLE");
        refused(kv.batch(batch("t", Vec::new(), Vec::new())).await, "BATCH_TOO_LARGE");
        let many = (0..=1_024).map(|n| set(format!("{{a}}{n}"), "v")).collect();
        refused(kv.batch(batch("t", Vec::new(), many)).await, "BATCH_TOO_LARGE");
        let wide = (0..5).map(|n| set(format!("{{a}}{n}"), vec![b'v'; 900 << 10])).collect();
        refused(kv.batch(batch("t", Vec::new(), wide)).await, "BATCH_TOO_LARGE");
        let hollow = WriteRequest { operations: vec![Default::default()], ..batch("t", Vec::new(), Vec::new()) };
        let status = kv.batch(hollow).await.expect_err("an operation without a key or an action");
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
    }
    assert_eq!(cluster.trivet(&["scan", "t", "--count"]).ok().trim(), "0");
    let empty = cluster.trivet(&["get", "t", ""]);
    assert!(matches!(empty.code, 1 | 2), "{empty:?}");
    assert!(empty.err.contains("empty") || empty.err.contains("EMPTY"), "{empty:?}");
    assert_eq!(cluster.trivet(&["get", "t", "absent"]).code, 3, "not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn counting_needs_a_number() {
    let cluster = Cluster::with_table(3).await;
    cluster.trivet(&["put", "t", "word", "seven"]).ok();
    let refusal = cluster.trivet(&["incr", "t", "word"]);
    assert_eq!(refusal.code, 1, "{refusal:?}");
    assert!(refusal.err.contains("NOT_AN_INTEGER"), "{refusal:?}");
    cluster.trivet(&["put", "t", "last", &i64::MAX.to_string()]).ok();
    assert_eq!(cluster.trivet(&["incr", "t", "last"]).code, 1, "beyond the range of 64 bits");
    assert_eq!(cluster.trivet(&["get", "t", "last"]).ok().trim(), i64::MAX.to_string());
    assert_eq!(cluster.trivet(&["incr", "t", "new"]).ok().trim(), "1");
}
