//! Keys of one tag live together and change together; keys of different tags do not pretend to.

use crate::harness::{Cluster, batch, delete, get, if_absent, if_version, refused, set};
use trivet::wire::proto::v1::{CreateTableRequest, Partitioning, ScanRequest, scan_request};

const PROFILE: &str = "{user:42}:profile";
const CART: &str = "{user:42}:cart";

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_one_tag_change_together() {
    let cluster = Cluster::with_table(3).await;
    let mut kv = cluster.kv(1);

    let first = batch("t", vec![if_absent(PROFILE), if_absent(CART)], vec![set(PROFILE, "Ada"), set(CART, "empty")]);
    let first = kv.batch(first).await.expect("the batch runs").into_inner();
    assert!(first.applied);
    let shard = first.header.expect("a header").shard;
    for key in [PROFILE, CART] {
        let answer = kv.get(get("t", key)).await.expect("a read").into_inner();
        assert_eq!(answer.header.expect("a header").shard, shard, "{key} lies in the shard of its tag");
        assert_eq!(answer.found.expect("written").version, first.version, "one batch is one version");
    }

    // A condition that does not hold: an ordinary answer that says what is there, and no effect on either key.
    let again = batch("t", vec![if_absent(PROFILE)], vec![set(PROFILE, "Eve"), delete(CART)]);
    let again = kv.batch(again).await.expect("not an error").into_inner();
    assert!(!again.applied);
    let observed = again.observed.expect("what the condition saw");
    let current = observed.current.expect("the key is there");
    assert_eq!((observed.condition, current.version, current.value.as_ref()), (0, first.version, b"Ada".as_slice()));
    assert_eq!(kv.get(get("t", CART)).await.expect("a read").into_inner().found.expect("kept").value, "empty");

    let versions = vec![if_version(PROFILE, first.version), if_version(CART, first.version)];
    let swap = kv.batch(batch("t", versions.clone(), vec![set(CART, "1 book"), delete(PROFILE)])).await;
    assert!(swap.expect("the batch runs").into_inner().applied);
    let stale = kv.batch(batch("t", versions, vec![set(CART, "2 books")])).await.expect("runs").into_inner();
    assert!(!stale.applied, "a version is met once only");

    let request = ScanRequest {
        table: "t".into(),
        bounds: Some(scan_request::Bounds::Tag("user:42".into())),
        ..Default::default()
    };
    let page = kv.scan_page(request).await.expect("a page").into_inner();
    let rows: Vec<_> = page.rows.iter().map(|row| (row.key.as_ref(), row.value.as_deref().expect("a value"))).collect();
    assert_eq!(rows, vec![(CART.as_bytes(), b"1 book".as_slice())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_different_tags_are_refused_in_one_batch() {
    let cluster = Cluster::with_table(3).await;
    for node in cluster.ids() {
        let across = batch("t", Vec::new(), vec![set("{a}1", "x"), set("{b}1", "x")]);
        refused(cluster.kv(node).batch(across).await, "CROSS_SHARD");
        let by_condition = batch("t", vec![if_absent("{b}1")], vec![set("{a}1", "x")]);
        refused(cluster.kv(node).batch(by_condition).await, "CROSS_SHARD");
    }
    assert_eq!(cluster.trivet(&["scan", "t", "--count"]).ok().trim(), "0", "nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_of_a_range_table_take_batches_too() {
    let cluster = Cluster::of(3).await;
    let request = CreateTableRequest {
        name: "logs".into(),
        partitioning: Partitioning::Range as i32,
        split_points: vec!["m/".into()],
        group_delimiter: Some("/".into()),
        ..Default::default()
    };
    let info = cluster.tables(1).create(request).await.expect("the table is made").into_inner();
    assert_eq!(info.shards.len(), 2);
    let mut kv = cluster.kv(2);
    let together = batch("logs", Vec::new(), vec![set("zoe/1", "a"), set("zoe/2", "b")]);
    assert!(kv.batch(together).await.expect("one group").into_inner().applied);
    let apart = batch("logs", Vec::new(), vec![set("zoe/3", "a"), set("zola/3", "b")]);
    refused(kv.batch(apart).await, "CROSS_SHARD");
    assert_eq!(cluster.trivet(&["scan", "logs", "--count"]).ok().trim(), "2");
}
