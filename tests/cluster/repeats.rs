//! One request id, one effect, one answer: whoever repeats it, wherever, whatever happened in between.

use trivet::wire::proto::v1::{RequestId, WriteResponse};

use crate::harness::{Cluster, eventually, fresh_id, get, increment, now_ms, refused};

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_gets_the_first_answer_and_has_no_effect() {
    let mut cluster = Cluster::with_table(3).await;
    let id = fresh_id();
    let first = send(&cluster, 1, id).await;
    assert_eq!(first.integers[0].value, Some(7));

    for node in cluster.ids() {
        same(&first, &send(&cluster, node, id).await, "asked of another node");
    }

    let (leader, _) = cluster.leader("t", "counter").await;
    let other = leader % 3 + 1;
    cluster.transfer("t", "counter", other).await;
    same(&first, &send(&cluster, 1, id).await, "after a transfer of leadership");

    cluster.kill(other);
    let alive = other % 3 + 1;
    same(&first, &send(&cluster, alive, id).await, "after the leader was killed");
    cluster.start(other);
    cluster.healthy().await;

    for node in cluster.ids() {
        cluster.crash(node);
    }
    cluster.healthy().await;
    same(&first, &send(&cluster, 2, id).await, "after all nodes were killed");

    let found = cluster.kv(3).get(get("t", "counter")).await.expect("a read").into_inner().found.expect("counted");
    assert_eq!((found.value.as_ref(), found.version), (b"7".as_slice(), first.version));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_may_have_taken_effect_is_not_called_refused() {
    let cluster = Cluster::with_table(3).await;
    let (leader, _) = cluster.leader("t", "counter").await;
    let (asked, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let id = fresh_id();
    // The node asked passes the write on to a leader that has stopped answering, and in the end knows of no leader at
    // all. That nobody leads is then true and says nothing of the write, which the old leader still has before it.
    cluster.pause(leader);
    cluster.pause(other);
    let answer = cluster.kv(asked).increment(increment("t", "counter", 7, id)).await;
    cluster.resume(leader);
    cluster.resume(other);
    refused(answer, "RESULT_UNDETERMINED");

    cluster.healthy().await;
    let first = send(&cluster, asked, id).await;
    assert_eq!(first.integers[0].value, Some(7), "counted once, by the first attempt or by this one");
    same(&first, &send(&cluster, other, id).await, "once more");
    let found = cluster.kv(asked).get(get("t", "counter")).await.expect("a read").into_inner().found.expect("counted");
    assert_eq!((found.value.as_ref(), found.version), (b"7".as_slice(), first.version));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_id_sent_to_all_nodes_at_once_counts_once() {
    let cluster = Cluster::with_table(3).await;
    for _ in 0..20 {
        let id = fresh_id();
        let (a, b, c) = tokio::join!(send(&cluster, 1, id), send(&cluster, 2, id), send(&cluster, 3, id));
        same(&a, &b, "at the same time");
        same(&a, &c, "at the same time");
    }
    let found = cluster.kv(1).get(get("t", "counter")).await.expect("a read").into_inner().found.expect("counted");
    assert_eq!(found.value, "140", "20 increments of 7");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_stands_for_one_payload_and_not_for_ever() {
    let cluster = Cluster::with_table(3).await;
    let id = fresh_id();
    send(&cluster, 1, id).await;
    refused(cluster.kv(2).increment(increment("t", "counter", 8, id)).await, "REQUEST_MISMATCH");

    let year_ms = 365 * 24 * 3_600 * 1_000;
    let old = RequestId { issued_ms: now_ms() - year_ms, ..fresh_id() };
    refused(cluster.kv(2).increment(increment("t", "counter", 7, old)).await, "REQUEST_EXPIRED");
    let found = cluster.kv(1).get(get("t", "counter")).await.expect("a read").into_inner().found.expect("counted");
    assert_eq!(found.value, "7", "neither had an effect");
}

/// Increments by 7, repeated with the same id until it is answered, as a client would.
async fn send(cluster: &Cluster, node: u64, id: RequestId) -> WriteResponse {
    eventually("the increment is answered", || async {
        cluster.kv(node).increment(increment("t", "counter", 7, id)).await.map(tonic::Response::into_inner)
    })
    .await
}

#[track_caller]
fn same(first: &WriteResponse, repeat: &WriteResponse, when: &str) {
    assert_eq!(
        (repeat.applied, repeat.version, &repeat.integers),
        (first.applied, first.version, &first.integers),
        "{when}"
    );
}
