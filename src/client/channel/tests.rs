//! Connections against a fake node over a real socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::fake::{Act, FakeNode, header, plain_answer};
use super::*;
use crate::types::{Kind, Operation, Read, ReadLevel, Write};

fn get(key: &'static str) -> Request {
    Request::Read(Read { keys: vec![key.into()], level: ReadLevel::Linearizable, any_replica: false })
}

fn put(key: &'static str) -> Request {
    let action = Action::Put { value: "v".into(), ttl_ms: None };
    Request::Write(Write { operations: vec![Operation { key: key.into(), action }], ..Write::default() })
}

fn willing() -> FakeNode {
    FakeNode::start(|seen| Act::Answer(Ok(plain_answer(header(1, 1), &seen.request))))
}

fn connect(node: &FakeNode) -> (Connection, Clock) {
    let clock = Clock::system();
    (Connection::new(node.address.as_str(), clock.clone()), clock)
}

fn within(clock: &Clock, millis: u64) -> Instant {
    clock.now() + Duration::from_millis(millis)
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        runtime_sleep(10).await;
    }
    panic!("{what} did not come to pass");
}

async fn runtime_sleep(millis: u64) {
    crate::runtime::sleep(Duration::from_millis(millis)).await;
}

#[tokio::test]
async fn every_kind_of_call_is_answered_pipelined_and_unary() {
    let node = willing();
    let (connection, clock) = connect(&node);
    let requests = [
        get("k"),
        put("k"),
        Request::Read(Read { keys: vec!["a".into(), "b".into()], level: ReadLevel::Any, any_replica: false }),
        Request::Scan(Default::default()),
        Request::History { key: "k".into(), before: None, rows_max: 3 },
    ];
    for request in &requests {
        let expected = Ok(plain_answer(header(1, 1), request));
        assert_eq!(connection.call("t", request, within(&clock, 5_000), true).await, expected);
        assert_eq!(connection.call_unary("t", request, within(&clock, 5_000)).await, expected);
    }
    let seen = node.seen();
    assert_eq!(seen.len(), 2 * requests.len());
    assert!(seen[0].forwarded && !seen[1].forwarded);
    let told = seen[0].patience.expect("a deadline");
    assert!(Duration::from_secs(3) < told && told <= Duration::from_secs(5), "{told:?}");
}

#[tokio::test]
async fn concurrent_calls_share_messages() {
    let node = willing();
    let (connection, clock) = connect(&node);
    connection.call("t", &get("warm"), within(&clock, 5_000), false).await.expect("answered");
    let calls = (0..200).map(|_| {
        let (connection, deadline) = (connection.clone(), within(&clock, 5_000));
        crate::runtime::spawn(async move {
            for _ in 0..10 {
                connection.call("t", &put("k"), deadline, false).await.expect("answered");
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.expect("no panic");
    }
    let messages = node.messages();
    assert_eq!(messages.iter().sum::<usize>(), 2_001);
    assert!(messages.len() < 400, "{} messages for 2000 calls of 200 callers", messages.len());
}

#[tokio::test]
async fn errors_arrive_with_their_facts() {
    let node = FakeNode::start(|_| {
        let error = Error::new(Reason::NotLeader, "ask another").with_leader(Some(crate::types::NodeId(3)));
        Act::Answer(Err(error))
    });
    let (connection, clock) = connect(&node);
    for unary in [false, true] {
        let deadline = within(&clock, 5_000);
        let answer = if unary {
            connection.call_unary("t", &put("k"), deadline).await
        } else {
            connection.call("t", &put("k"), deadline, false).await
        };
        let error = answer.expect_err("refused");
        assert_eq!((error.reason, error.leader), (Reason::NotLeader, Some(crate::types::NodeId(3))));
    }
}

#[tokio::test]
async fn an_unanswered_call_fails_by_its_deadline_and_the_node_counts_as_silent() {
    let node = FakeNode::start(|_| Act::Hang);
    let (connection, clock) = connect(&node);
    let begun = clock.now();
    let (read, write) = (get("k"), put("k"));
    let (read, write) = tokio::join!(
        connection.call("t", &read, within(&clock, 200), false),
        connection.call("t", &write, within(&clock, 200), false),
    );
    assert!(clock.now() - begun < Duration::from_millis(600));
    assert_eq!(read.expect_err("late").reason, Reason::DeadlineExceeded);
    assert_eq!(write.expect_err("late").reason, Reason::ResultUndetermined);
    assert!(!connection.is_healthy());
    let overdue = connection.call("t", &put("k"), clock.now(), false).await.expect_err("no time");
    assert_eq!(overdue.reason, Reason::DeadlineExceeded);
    assert_eq!(node.seen().len(), 2);
    let unary = connection.call_unary("t", &put("k"), within(&clock, 100)).await.expect_err("late");
    assert_eq!(unary.kind(), Kind::Undetermined);
}

#[tokio::test]
async fn a_broken_stream_is_undetermined_for_writes_and_made_again() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let node = FakeNode::start(move |seen| match counted.fetch_add(1, Ordering::Relaxed) {
        0 => Act::Hang,
        1 => Act::Break,
        _ => Act::Answer(Ok(plain_answer(header(1, 1), &seen.request))),
    });
    let (connection, clock) = connect(&node);
    let (read, write) = (get("k"), put("k"));
    let (read, write) = tokio::join!(
        connection.call("t", &read, within(&clock, 5_000), false),
        connection.call("t", &write, within(&clock, 5_000), false),
    );
    assert_eq!(read.expect_err("lost").kind(), Kind::Unavailable);
    assert_eq!(write.expect_err("lost").kind(), Kind::Undetermined);
    // The next call waits for the next stream instead of failing.
    connection.call("t", &put("k"), within(&clock, 5_000), false).await.expect("answered");
}

#[tokio::test]
async fn a_dead_node_fails_calls_at_once_and_is_found_again() {
    let mut node = willing();
    let (connection, clock) = connect(&node);
    connection.call("t", &put("k"), within(&clock, 5_000), false).await.expect("answered");
    node.kill();
    eventually("the connection is down", || !connection.is_healthy()).await;
    let begun = clock.now();
    let error = connection.call("t", &put("k"), within(&clock, 5_000), false).await.expect_err("down");
    assert_eq!(error.kind(), Kind::Unavailable, "nothing was sent: {error}");
    let error = connection.call_unary("t", &put("k"), within(&clock, 5_000)).await.expect_err("down");
    assert_eq!(error.kind(), Kind::Unavailable, "nothing was sent: {error}");
    assert!(clock.now() - begun < Duration::from_millis(500));
    node.restart();
    eventually("the connection is up", || connection.is_healthy()).await;
    connection.call("t", &put("k"), within(&clock, 5_000), false).await.expect("answered");
}

#[tokio::test]
async fn a_frozen_node_is_given_up_and_found_again_when_it_thaws() {
    let node = willing();
    let (connection, clock) = connect(&node);
    connection.call("t", &put("k"), within(&clock, 5_000), false).await.expect("answered");
    let thaw = node.freeze();
    let error = connection.call("t", &put("k"), within(&clock, 300), false).await.expect_err("frozen");
    assert_eq!(error.kind(), Kind::Undetermined);
    assert!(!connection.is_healthy());
    // The keepalive ends the connection; what comes then fails at once and is definite.
    let mut definite = false;
    for _ in 0..60 {
        let begun = clock.now();
        let answer = connection.call("t", &put("k"), within(&clock, 200), false).await;
        let quick = clock.now() - begun < Duration::from_millis(100);
        definite = quick && answer.is_err_and(|error| error.reason == Reason::NotReady);
        if definite {
            break;
        }
    }
    assert!(definite, "the frozen node was never given up");
    drop(thaw);
    eventually("the connection is up", || connection.is_healthy()).await;
    connection.call("t", &put("k"), within(&clock, 5_000), false).await.expect("answered");
}

#[tokio::test]
async fn an_address_that_is_none_is_a_failure_not_a_panic() {
    let clock = Clock::system();
    let connection = Connection::new("not an address", clock.clone());
    let error = connection.call("t", &put("k"), within(&clock, 5_000), false).await.expect_err("nowhere");
    assert_eq!(error.kind(), Kind::Unavailable);
}

#[tokio::test]
async fn a_quick_answer_overtakes_a_slow_one() {
    let node = FakeNode::start(|seen| {
        let answer = Ok(plain_answer(header(1, 1), &seen.request));
        if seen.request == get("slow") { Act::Later(Duration::from_millis(300), answer) } else { Act::Answer(answer) }
    });
    let (connection, clock) = connect(&node);
    let begun = clock.now();
    let took = |key| {
        let (connection, clock) = (connection.clone(), clock.clone());
        async move {
            connection.call("t", &get(key), within(&clock, 5_000), false).await.expect("answered");
            clock.now() - begun
        }
    };
    let (slow, quick) = tokio::join!(took("slow"), took("quick"));
    assert!(quick < Duration::from_millis(250) && slow >= Duration::from_millis(300), "{quick:?} {slow:?}");
}

#[tokio::test]
async fn a_call_that_no_server_takes_never_leaves() {
    let node = willing();
    let (connection, clock) = connect(&node);
    let action = Action::Put { value: vec![0; 17 << 20].into(), ttl_ms: None };
    let huge = Request::Write(Write { operations: vec![Operation { key: "k".into(), action }], ..Write::default() });
    for _ in 0..2 {
        let error = connection.call("t", &huge, within(&clock, 5_000), false).await.expect_err("too large");
        assert_eq!(error.reason, Reason::BatchTooLarge);
        let error = connection.call_unary("t", &huge, within(&clock, 5_000)).await.expect_err("too large");
        assert_eq!(error.reason, Reason::BatchTooLarge);
    }
    connection.call("t", &put("k"), within(&clock, 5_000), false).await.expect("answered");
    assert_eq!(node.seen().len(), 1);
}
