//! The client against fake nodes over real sockets.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::channel::fake::{Act, FakeNode, Seen, header, plain_answer};
use super::*;
use crate::keyspace::{Layout, ScanCursor, ShardMap};
use crate::runtime::{Instant, sleep, spawn};
use crate::types::{
    Answer, Epoch, Error, Header, Incarnation, Kind, Page, Partitioning, ReadLevel, Reason, ReplicaId, Request,
    RequestId, Response, Role, Row, ScanBounds, ScanRequest, TableDescriptor, TableId, TableState, Test, Timestamp,
};
use crate::wire::admin::{
    NewTable, NewView, NodeDetails, ReplicaDetails, ShardDetails, TableDetails, Topology, ViewState,
};

/// A table whose shards have these ids and replicas on these nodes, the first of which leads.
pub(super) fn table(id: u32, name: &str, partitioning: Partitioning, shards: &[(u64, &[u64])]) -> TableDetails {
    let table = TableDescriptor {
        id: TableId(id),
        name: name.to_owned(),
        partitioning,
        replication: 3,
        read_replicas: 0,
        read_replica_zone: None,
        history_ms: 0,
        state: TableState::Ready,
        view: None,
    };
    let layout = Layout::of(&table);
    let points: Vec<Bytes> = match table.partitioning {
        Partitioning::Hash => vec![],
        Partitioning::Range { .. } => (1..shards.len()).map(|at| Bytes::from(format!("{at}"))).collect(),
    };
    let ranges = layout.initial_ranges(shards.len() as u32, &points).expect("ranges");
    let shards = shards.iter().zip(ranges).map(|(&(id, nodes), (start, end))| ShardDetails {
        id: ShardId(id),
        table: table.id,
        start,
        end,
        epoch: Epoch(1),
        replicas: nodes
            .iter()
            .map(|&node| ReplicaDetails { id: ReplicaId(node), node: NodeId(node), voter: true })
            .collect(),
        leader: nodes.first().map(|&node| NodeId(node)),
        term: None,
        last_log: None,
        applied: None,
        settled: None,
    });
    TableDetails { shards: shards.collect(), table }
}

fn topology(revision: u64, nodes: &[&FakeNode], tables: Vec<TableDetails>) -> Topology {
    let nodes = nodes.iter().zip(1..).map(|(node, id)| NodeDetails {
        id: NodeId(id),
        address: node.address.clone(),
        http_address: String::new(),
        zone: String::new(),
        incarnation: Incarnation(id),
        alive: true,
        standing: "serving".to_owned(),
        replicas: None,
        leaders: None,
        version: String::new(),
    });
    Topology { cluster: ClusterId(1), revision, nodes: nodes.collect(), tables }
}

fn tell(nodes: &[&FakeNode], topology: &Topology) {
    nodes.iter().for_each(|node| node.set_topology(topology.clone()));
}

fn endpoints(nodes: &[&FakeNode]) -> Vec<String> {
    nodes.iter().map(|node| node.address.clone()).collect()
}

async fn connect(nodes: &[&FakeNode]) -> Client {
    Client::connect(&endpoints(nodes), Options::default()).await.expect("connected")
}

fn ok(node: u64, seen: &Seen) -> Act {
    Act::Answer(Ok(plain_answer(header(node, 1), &seen.request)))
}

fn fail(reason: Reason) -> Act {
    Act::Answer(Err(Error::new(reason, "for a test")))
}

/// A node that answers everything as the leader of shard 1.
fn willing(node: u64) -> FakeNode {
    FakeNode::start(move |seen| ok(node, seen))
}

/// One table `t` of one shard with replicas on all nodes, led by the first.
fn one_shard(nodes: &[&FakeNode]) -> Topology {
    let ids: Vec<u64> = (1..=nodes.len() as u64).collect();
    topology(1, nodes, vec![table(2, "t", Partitioning::Hash, &[(1, &ids)])])
}

fn ids(node: &FakeNode) -> Vec<RequestId> {
    let id = |seen: Seen| match seen.request {
        Request::Write(write) => write.request,
        _ => None,
    };
    node.seen().into_iter().filter_map(id).collect()
}

fn since(begun: Instant) -> Duration {
    Clock::system().now() - begun
}

#[tokio::test]
async fn calls_go_to_the_leader_of_the_keys_shard() {
    let nodes = [willing(1), willing(2), willing(3)];
    let all = [&nodes[0], &nodes[1], &nodes[2]];
    let shards: &[(u64, &[u64])] = &[(1, &[1, 2, 3]), (2, &[2, 3, 1]), (3, &[3, 1, 2]), (4, &[1, 3, 2])];
    let details = table(2, "t", Partitioning::Hash, shards);
    tell(&all, &topology(1, &all, vec![details.clone()]));
    let client = connect(&all[..1]).await;
    let orders = client.table("t");
    let map = ShardMap::new(details.shards.iter().map(ShardDetails::descriptor), &Layout::of(&details.table)).unwrap();
    let mut expected = [HashSet::new(), HashSet::new(), HashSet::new()];
    for number in 0..200 {
        let key = Bytes::from(format!("key-{number}"));
        orders.put(key.clone(), "v").await.expect("written");
        let shard = map.locate(&Layout::of(&details.table).encode(&key));
        expected[shard.replicas[0].node.0 as usize - 1].insert(key);
    }
    for (node, expected) in all.iter().zip(expected) {
        let keys: HashSet<Bytes> = node
            .seen()
            .into_iter()
            .map(|seen| match seen.request {
                Request::Write(write) => write.operations[0].key.clone(),
                other => panic!("not a write: {other:?}"),
            })
            .collect();
        assert_eq!(keys, expected);
        assert!(!expected.is_empty());
        assert!(node.seen().iter().all(|seen| !seen.forwarded));
    }
}

#[tokio::test]
async fn a_redirect_is_followed_at_once_and_remembered() {
    let first =
        FakeNode::start(|_| Act::Answer(Err(Error::new(Reason::NotLeader, "not me").with_leader(Some(NodeId(2))))));
    let second = willing(2);
    let all = [&first, &second];
    tell(&all, &one_shard(&all));
    let client = connect(&all).await;
    let begun = client.core.clock.now();
    for _ in 0..10 {
        client.table("t").put("k", "v").await.expect("written");
    }
    assert!(since(begun) < Duration::from_millis(500));
    assert_eq!(first.seen().len(), 1);
    assert_eq!(second.seen().len(), 10);
    assert_eq!(ids(&first)[0], ids(&second)[0], "the same request id");
    assert_eq!(ids(&second).iter().map(|id| id.sequence).collect::<HashSet<_>>().len(), 10);
}

#[tokio::test]
async fn an_undetermined_write_is_repeated_under_its_id() {
    let count = AtomicUsize::new(0);
    let first = FakeNode::start(move |seen| match count.fetch_add(1, Ordering::Relaxed) {
        0 => Act::Break,
        1 => fail(Reason::ResultUndetermined),
        _ => ok(1, seen),
    });
    tell(&[&first], &one_shard(&[&first]));
    let client = connect(&[&first]).await;
    let answer = client.table("t").increment("k", 1).await;
    assert_eq!(answer.expect_err("the fake gives no sum").reason, Reason::Internal);
    let ids = ids(&first);
    assert_eq!(ids.len(), 3);
    assert!(ids.iter().all(|id| *id == ids[0] && id.issued_ms > 0), "{ids:?}");
}

#[tokio::test]
async fn a_node_that_is_no_member_yet_does_not_bind_the_client_to_no_cluster() {
    let newcomer = willing(1);
    let nobody = Topology { cluster: ClusterId::default(), ..one_shard(&[&newcomer]) };
    tell(&[&newcomer], &Topology { nodes: vec![], tables: vec![], revision: 0, ..nobody });
    let patience = Options { deadline: Duration::from_secs(20), ..Options::default() };
    let seeds = endpoints(&[&newcomer]);
    let connecting = spawn(async move { Client::connect(&seeds, patience).await });
    while newcomer.topologies() == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    tell(&[&newcomer], &one_shard(&[&newcomer]));
    let client = connecting.await.expect("no panic").expect("connected once there is a cluster");
    assert_eq!(client.cluster(), ClusterId(1));
    client.table("t").put("k", "v").await.expect("written");
}

#[tokio::test]
async fn a_hung_leader_costs_a_second_once_and_then_nothing() {
    let (first, second) = (willing(1), willing(2));
    let all = [&first, &second];
    tell(&all, &one_shard(&all));
    let client = connect(&all).await;
    let orders = client.table("t");
    orders.put("k", "v").await.expect("written");
    let thaw = first.freeze();
    let begun = client.core.clock.now();
    orders.put("k", "v").await.expect("written by the other");
    let took = since(begun);
    assert!(Duration::from_millis(900) < took && took < Duration::from_millis(2_000), "{took:?}");
    let begun = client.core.clock.now();
    for _ in 0..20 {
        orders.put("k", "v").await.expect("written by the other");
    }
    assert!(since(begun) < Duration::from_millis(500), "{:?}", since(begun));
    drop(thaw);
}

#[tokio::test]
async fn a_dead_leader_costs_no_second() {
    let (mut first, second) = (willing(1), willing(2));
    tell(&[&first, &second], &one_shard(&[&first, &second]));
    let client = connect(&[&first, &second]).await;
    let orders = client.table("t");
    orders.put("k", "v").await.expect("written");
    first.kill();
    let begun = client.core.clock.now();
    for _ in 0..20 {
        orders.put("k", "v").await.expect("written by the other");
    }
    assert!(since(begun) < Duration::from_millis(500), "{:?}", since(begun));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_live_through_an_election() {
    // Node 1 leads and dies; node 2 knows no leader for a while, then leads.
    let elected = Arc::new(AtomicBool::new(false));
    let (mut first, is_elected) = (willing(1), elected.clone());
    let second = FakeNode::start(
        move |seen| {
            if is_elected.load(Ordering::Relaxed) { ok(2, seen) } else { fail(Reason::NoQuorum) }
        },
    );
    tell(&[&first, &second], &one_shard(&[&first, &second]));
    let client = connect(&[&first, &second]).await;
    client.table("t").put("k", "v").await.expect("written");
    let stop = Arc::new(AtomicBool::new(false));
    let (written, longest) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let callers = (0..64).map(|_| {
        let (orders, stop, written, longest) = (client.table("t"), stop.clone(), written.clone(), longest.clone());
        spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let begun = Clock::system().now();
                orders.put("k", "v").await.expect("written in the end");
                written.fetch_add(1, Ordering::Relaxed);
                longest.fetch_max(since(begun).as_millis() as u64, Ordering::Relaxed);
            }
        })
    });
    let callers: Vec<_> = callers.collect();
    sleep(Duration::from_millis(200)).await;
    first.kill();
    sleep(Duration::from_millis(2_000)).await;
    let before = written.load(Ordering::Relaxed);
    elected.store(true, Ordering::Relaxed);
    let begun = client.core.clock.now();
    while written.load(Ordering::Relaxed) < before + 64 {
        assert!(since(begun) < Duration::from_secs(2), "the callers have not come back");
        sleep(Duration::from_millis(1)).await;
    }
    assert!(since(begun) < Duration::from_millis(300), "all callers are back after {:?}", since(begun));
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.expect("no failure");
    }
    let longest = longest.load(Ordering::Relaxed);
    assert!((1_900..2_600).contains(&longest), "{longest} ms");
    let asked = second.seen().iter().filter(|seen| matches!(seen.request, Request::Write(_))).count() as u64;
    let retries = asked.saturating_sub(written.load(Ordering::Relaxed));
    assert!(retries < 2_500, "{retries} retries in two seconds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_of_very_many_callers_are_held_down_by_the_budget() {
    let node = FakeNode::start(|_| fail(Reason::NoQuorum));
    tell(&[&node], &one_shard(&[&node]));
    let client = connect(&[&node]).await;
    let callers = (0..300).map(|_| {
        let orders = client.table("t").within(Duration::from_secs(2));
        spawn(async move { orders.put("k", "v").await.expect_err("no leader") })
    });
    for caller in callers.collect::<Vec<_>>() {
        let error = caller.await.expect("no panic");
        // On a slow machine the last attempt may be left unanswered.
        assert!(matches!(error.reason, Reason::NoQuorum | Reason::ResultUndetermined), "{error}");
    }
    // 300 calls, 300 + 2 x 300 retries of the budget, and slow ones; unchecked it would be about 10,000.
    let asked = node.seen().len();
    assert!((600..3_600).contains(&asked), "{asked} attempts");
}

#[tokio::test]
async fn the_deadline_holds_and_tells_the_truth() {
    let cases = [
        (None, false, Reason::DeadlineExceeded),
        (None, true, Reason::ResultUndetermined),
        (Some(Reason::NoQuorum), false, Reason::NoQuorum),
        (Some(Reason::NoQuorum), true, Reason::NoQuorum),
        (Some(Reason::Overloaded), true, Reason::Overloaded),
        (Some(Reason::ResultUndetermined), true, Reason::ResultUndetermined),
    ];
    for (failure, write, expected) in cases {
        let node = FakeNode::start(move |_| failure.map_or(Act::Hang, fail));
        tell(&[&node], &one_shard(&[&node]));
        let client = connect(&[&node]).await;
        let orders = client.table("t").within(Duration::from_millis(400));
        let begun = client.core.clock.now();
        let error = if write {
            orders.put("k", "v").await.expect_err("never")
        } else {
            orders.get("k").await.expect_err("never")
        };
        assert_eq!(error.reason, expected, "{failure:?} {write}");
        assert!(since(begun) < Duration::from_millis(800), "{failure:?} took {:?}", since(begun));
    }
}

#[tokio::test]
async fn a_wrong_request_is_not_repeated() {
    let node = FakeNode::start(|_| fail(Reason::NotAnInteger));
    tell(&[&node], &one_shard(&[&node]));
    let client = connect(&[&node]).await;
    let error = client.table("t").increment("k", 1).await.expect_err("refused");
    assert_eq!(error.reason, Reason::NotAnInteger);
    // What the edge refuses, it refuses for the client as for others.
    let error = client.table("t").put("", "v").await.expect_err("refused");
    assert_eq!(error.reason, Reason::EmptyKey);
    let error = client.table("t").put_ttl("k", "v", Duration::ZERO).await.expect_err("refused");
    assert_eq!(error.reason, Reason::InvalidRequest);
    assert_eq!(node.seen().len(), 1);
}

#[tokio::test]
async fn a_changed_range_is_looked_up_once_for_all_callers() {
    let first = FakeNode::start(|_| fail(Reason::WrongEpoch));
    let second = willing(2);
    let all = [&first, &second];
    tell(&all, &topology(1, &all, vec![table(2, "t", Partitioning::Hash, &[(1, &[1])])]));
    let client = connect(&all).await;
    tell(&all, &topology(2, &all, vec![table(2, "t", Partitioning::Hash, &[(9, &[2])])]));
    let before = first.topologies() + second.topologies();
    let callers = (0..50).map(|_| {
        let orders = client.table("t");
        spawn(async move { orders.get("k").await.expect("answered") })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.expect("no failure");
    }
    let fetches = first.topologies() + second.topologies() - before;
    assert!((1..=3).contains(&fetches), "{fetches} fetches for 50 callers");
    assert_eq!(second.seen().len(), 50);
}

#[tokio::test]
async fn an_older_topology_does_not_replace_a_newer_one_nor_another_clusters() {
    let node = willing(1);
    tell(&[&node], &topology(5, &[&node], vec![table(2, "t", Partitioning::Hash, &[(1, &[1])])]));
    let client = connect(&[&node]).await;
    for told in [topology(4, &[&node], vec![]), Topology { cluster: ClusterId(9), ..topology(6, &[&node], vec![]) }] {
        node.set_topology(told);
        let seen = client.core.topologies.ended();
        client.core.topologies.newer(seen, client.core.clock.now() + Duration::from_secs(5)).await;
        assert!(client.core.topologies.ended() > seen);
        client.table("t").put("k", "v").await.expect("the table is still known");
    }
    assert_eq!(client.cluster(), ClusterId(1));
}

#[tokio::test]
async fn tables_come_and_go() {
    let node = FakeNode::start(|seen| Act::Answer(Ok(plain_answer(header(1, 500), &seen.request))));
    tell(&[&node], &topology(1, &[&node], vec![]));
    let client = connect(&[&node]).await;
    let error = client.table("new").get("k").await.expect_err("there is none");
    assert_eq!(error.reason, Reason::UnknownTable);
    assert!(error.message.contains("\"new\""));
    let created = client.admin().create_table(NewTable::hash("new", 1)).await.expect("created");
    assert_eq!(created.table.name, "new");
    client.table("new").get("k").await.expect("known at once");
    assert_eq!(client.locate("new", b"k"), Some((ShardId(500), Epoch(1), Some(NodeId(1)))));
    client.admin().drop_table("new", false).await.expect("dropped");
    let error = client.table("new").get("k").await.expect_err("there is none");
    assert_eq!(error.reason, Reason::UnknownTable);
    assert_eq!(client.admin().table("x").await.expect_err("none").reason, Reason::UnknownTable);
    assert_eq!(client.admin().shard(ShardId(7)).await.expect_err("none").reason, Reason::UnknownShard);
    assert!(client.admin().checksum(ShardId(7)).await.expect("answered").equal);
    assert!(client.admin().status().await.expect("answered").healthy);
}

#[tokio::test]
async fn views_are_tables_that_are_known_once_they_are_created() {
    let node = FakeNode::start(|seen| Act::Answer(Ok(plain_answer(header(1, 600), &seen.request))));
    tell(&[&node], &topology(1, &[&node], vec![]));
    let client = connect(&[&node]).await;
    let admin = client.admin();
    let wished = admin.create_view(NewView { dry_run: true, ..NewView::of("v") }).await.expect("told");
    assert_eq!(wished.definition, "v");
    assert_eq!(client.table("v").get("k").await.expect_err("not created").reason, Reason::UnknownTable);
    let created = admin
        .create_view(NewView { replication: Some(1), history_ms: Some(0), ..NewView::of("v") })
        .await
        .expect("created");
    assert_eq!((created.state, created.lags), (ViewState::Building, None));
    client.table("v").get("k").await.expect("known at once");
    assert_eq!(admin.view("v").await.expect("told").lags, Some(vec![]));
    assert_eq!(admin.views().await.expect("told").len(), 1);
    assert_eq!(admin.pause_view("v", true).await.expect("paused").state, ViewState::Paused);
    assert_eq!(admin.pause_view("v", false).await.expect("resumed").state, ViewState::Ready);
    let found = admin.verify_view("v", Some(ShardId(600)), true).await.expect("compared");
    assert_eq!((found.rows, found.differing(), found.repaired), (600, 1, 1));
    assert_eq!(admin.verify_view("v", None, false).await.expect("compared").rows, 9);
    admin.drop_table("v", false).await.expect("dropped");
    assert_eq!(client.table("v").get("k").await.expect_err("there is none").reason, Reason::UnknownTable);
}

#[tokio::test]
async fn the_verbs_of_the_cluster_go_round_a_dead_node() {
    let (first, mut second) = (willing(1), willing(2));
    tell(&[&first, &second], &one_shard(&[&first, &second]));
    let client = connect(&[&first, &second]).await;
    second.kill();
    for _ in 0..4 {
        client.admin().topology().await.expect("told by the other");
    }
}

#[tokio::test]
async fn nobody_there_is_a_definite_failure_by_the_deadline() {
    let mut node = willing(1);
    tell(&[&node], &one_shard(&[&node]));
    let client = connect(&[&node]).await;
    node.kill();
    sleep(Duration::from_millis(100)).await;
    let begun = client.core.clock.now();
    let error = client.table("t").within(Duration::from_millis(500)).put("k", "v").await.expect_err("nobody");
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(since(begun) < Duration::from_millis(900));
    let options = Options { deadline: Duration::from_millis(300), ..Options::default() };
    let error = Client::connect(&[node.address.clone()], options.clone()).await.err().expect("nobody");
    assert_eq!(error.reason, Reason::NotReady);
    assert!(error.message.contains(&node.address), "{error}");
    assert_eq!(Client::connect(&[], options).await.err().expect("nowhere").reason, Reason::InvalidRequest);
    node.restart();
    client.table("t").put("k", "v").await.expect("the client finds it again");
}

#[tokio::test]
async fn answers_of_a_batch_read_come_in_the_order_asked() {
    let echo = |node| {
        FakeNode::start(move |seen| {
            let Request::Read(read) = &seen.request else { return fail(Reason::Internal) };
            let answer = |key: &Bytes| Answer {
                header: header(node, node),
                body: Some(crate::types::Versioned { timestamp: Timestamp(1), value: key.clone(), expires_ms: None }),
            };
            Act::Answer(Ok(Response::Values(read.keys.iter().map(answer).collect())))
        })
    };
    let nodes = [echo(1), echo(2)];
    let all = [&nodes[0], &nodes[1]];
    let shards: &[(u64, &[u64])] = &[(1, &[1, 2]), (2, &[2, 1])];
    tell(&all, &topology(1, &all, vec![table(2, "t", Partitioning::Hash, shards)]));
    let client = connect(&all).await;
    let keys: Vec<Bytes> = (0..300).map(|number| Bytes::from(format!("key-{number}"))).collect();
    let answers = client.table("t").batch_get(&keys).await.expect("answered");
    let values: Vec<Bytes> = answers.iter().map(|answer| answer.body.clone().expect("a value").value).collect();
    assert_eq!(values, keys);
    assert!(answers.iter().map(|answer| answer.header.node).collect::<HashSet<_>>().len() == 2);
    let calls = all.map(|node| node.seen().len());
    assert!(calls[0] + calls[1] <= 12, "{calls:?} calls");
    assert_eq!(client.table("t").batch_get(&[]).await, Ok(vec![]));
}

#[tokio::test]
async fn reads_that_any_copy_may_answer_are_spread() {
    let nodes = [willing(1), willing(2), willing(3)];
    let all = [&nodes[0], &nodes[1], &nodes[2]];
    tell(&all, &one_shard(&all));
    let client = connect(&all).await;
    for _ in 0..30 {
        client.table("t").at(ReadLevel::Any).get("k").await.expect("answered");
    }
    assert!(all.iter().all(|node| node.seen().len() == 10));
}

#[tokio::test]
async fn a_replica_too_stale_sends_the_read_to_the_leader() {
    let stale = || FakeNode::start(|_| fail(Reason::TooStale));
    let nodes = [willing(1), stale(), stale()];
    let all = [&nodes[0], &nodes[1], &nodes[2]];
    tell(&all, &one_shard(&all));
    let client = connect(&all).await;
    for _ in 0..6 {
        client.table("t").at(ReadLevel::MaxAge(Duration::from_millis(5))).get("k").await.expect("answered");
    }
    assert_eq!(nodes[0].seen().len(), 6);
}

/// A client in the zone `east`, of which nodes 2 and 3 are, and its nodes.
async fn in_the_east(read_from: ReadFrom, nodes: &[&FakeNode]) -> Client {
    let mut topology = one_shard(nodes);
    for node in &mut topology.nodes[1..] {
        node.zone = "east".to_owned();
    }
    tell(nodes, &topology);
    let options = Options { read_from, zone: Some("east".to_owned()), ..Options::default() };
    Client::connect(&endpoints(nodes), options).await.expect("connected")
}

/// A node that answers everything as a follower of shard 1.
fn copy(node: u64) -> FakeNode {
    let header = move || Header { role: Role::Follower, ..header(node, 1) };
    FakeNode::start(move |seen| Act::Answer(Ok(plain_answer(header(), &seen.request))))
}

#[tokio::test]
async fn the_nearest_replica_is_the_quickest_of_the_clients_zone() {
    let nodes = [willing(1), copy(2), copy(3)];
    let all = [&nodes[0], &nodes[1], &nodes[2]];
    let client = in_the_east(ReadFrom::Nearest, &all).await;
    let slow = Duration::from_secs(3_600);
    client.core.topologies.current().as_ref().expect("a map").nodes[&NodeId(2)].note_latency(slow);
    client.table("t").put("k", "v").await.expect("written");
    for _ in 0..30 {
        client.table("t").get("k").await.expect("answered");
    }
    let counts = all.map(|node| node.seen().len());
    assert_eq!((counts[0], counts[1] + counts[2]), (1, 30), "the write alone leaves the zone");
    assert!(counts[1] <= 1, "one may have been asked to learn how quick it is now: {counts:?}");
    let asks_any = |seen: &Seen| matches!(&seen.request, Request::Read(read) if read.any_replica);
    assert!(nodes[2].seen().iter().all(asks_any), "whoever is asked shall answer");
    client.table("t").read_from(ReadFrom::Leader).get("k").await.expect("answered");
    assert_eq!(nodes[0].seen().len(), 2);
}

#[tokio::test]
async fn the_least_busy_replica_has_the_fewest_calls_under_way() {
    let nodes = [FakeNode::start(|_| Act::Hang), willing(2), willing(3)];
    let all = [&nodes[0], &nodes[1], &nodes[2]];
    tell(&all, &one_shard(&all));
    let client = connect(&all).await;
    let table = client.table("t");
    let hangs = spawn(async move { table.get("k").await });
    while nodes[0].seen().is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    for _ in 0..6 {
        client.table("t").read_from(ReadFrom::LeastLoaded).get("k").await.expect("answered");
    }
    let counts = all.map(|node| node.seen().len());
    assert_eq!((counts[0], counts[1] + counts[2]), (1, 6), "{counts:?}");
    hangs.abort();
}

#[tokio::test]
async fn unary_calls_route_and_retry_the_same_way() {
    let first =
        FakeNode::start(|_| Act::Answer(Err(Error::new(Reason::NotLeader, "not me").with_leader(Some(NodeId(2))))));
    let second = willing(2);
    let all = [&first, &second];
    tell(&all, &one_shard(&all));
    let options = Options { pipelined: false, ..Options::default() };
    let client = Client::connect(&endpoints(&all), options).await.expect("connected");
    for _ in 0..3 {
        client.table("t").put("k", "v").await.expect("written");
        client.table("t").compare_and_swap("k", Test::Absent, None).await.expect("decided");
    }
    assert_eq!((first.seen().len(), second.seen().len()), (1, 6));
    assert!(all.iter().all(|node| node.messages().is_empty()), "no pipelined message");
}

#[tokio::test]
async fn a_session_reads_at_least_what_it_has_seen() {
    let stamp = AtomicU64::new(10);
    let node = FakeNode::start(move |seen| {
        let as_of = Timestamp(stamp.fetch_add(1, Ordering::Relaxed));
        let header = crate::types::Header { as_of, role: Role::Leader, ..header(1, 1) };
        Act::Answer(Ok(plain_answer(header, &seen.request)))
    });
    tell(&[&node], &one_shard(&[&node]));
    let client = connect(&[&node]).await;
    let session = client.session();
    let orders = session.table("t");
    orders.put("k", "v").await.expect("written");
    orders.get("k").await.expect("read");
    orders.scan(ScanBounds::All).collect().await.expect("scanned");
    orders.at(ReadLevel::Any).get("k").await.expect("read");
    let other = client.session();
    other.catch_up(session.token());
    other.table("t").get("k").await.expect("read");
    client.table("t").get("k").await.expect("read");
    let levels: Vec<ReadLevel> = node
        .seen()
        .into_iter()
        .filter_map(|seen| match seen.request {
            Request::Read(read) => Some(read.level),
            Request::Scan(scan) => Some(scan.level),
            _ => None,
        })
        .collect();
    let at_least = |stamp| ReadLevel::AtLeast(crate::types::Token { timestamp: Timestamp(stamp) });
    assert_eq!(
        levels,
        [at_least(10), at_least(11), ReadLevel::Any, at_least(13), ReadLevel::Linearizable],
        "the write saw 10, the read 11, the scan 12, the other read 13"
    );
}

/// Nodes that hold the digits "00" to "99" in an ordered table of ten shards and answer pages of them, each only
/// where it leads.
struct Digits {
    nodes: [FakeNode; 3],
    wrong: Arc<Mutex<Vec<String>>>,
}

impl Digits {
    fn start() -> Digits {
        let shards: Vec<(u64, Vec<u64>)> = (0..10).map(|at| (at, vec![at % 3 + 1])).collect();
        let shards: Vec<(u64, &[u64])> = shards.iter().map(|(id, nodes)| (*id, nodes.as_slice())).collect();
        let details = table(2, "digits", Partitioning::Range { group_delimiter: None }, &shards);
        let wrong: Arc<Mutex<Vec<String>>> = Arc::default();
        let nodes = [1, 2, 3].map(|node| {
            let (details, wrong) = (details.clone(), wrong.clone());
            FakeNode::start(move |seen| Digits::page(node, &details, seen, &wrong))
        });
        let all = [&nodes[0], &nodes[1], &nodes[2]];
        tell(&all, &topology(1, &all, vec![details]));
        Digits { nodes, wrong }
    }

    fn page(node: u64, details: &TableDetails, seen: &Seen, wrong: &Mutex<Vec<String>>) -> Act {
        let Request::Scan(scan) = &seen.request else { return fail(Reason::Internal) };
        let layout = Layout::of(&details.table);
        let map = ShardMap::new(details.shards.iter().map(ShardDetails::descriptor), &layout).unwrap();
        let plan = layout.scan_range(&scan.bounds).unwrap();
        let (mut start, mut end) = plan.ranges[0].clone();
        if let Some(cursor) = &scan.cursor {
            let next = ScanCursor::decode(cursor, &layout, &scan.bounds, scan.reverse).unwrap().next;
            if scan.reverse { end = next } else { start = next }
        }
        let mut shards = map.overlapping(&start, &end);
        let shard = if scan.reverse { shards.next_back() } else { shards.next() }.unwrap();
        if shard.replicas[0].node != NodeId(node) {
            wrong.lock().push(format!("node {node} was asked for a page of shard {}", shard.id));
        }
        let (low, high) = (start.max(shard.start.clone().into()), end.clone().min(shard.end.clone().into()));
        let mut keys: Vec<Bytes> = (0..100).map(|number| Bytes::from(format!("{number:02}"))).collect();
        keys.retain(|key| (&low..&high).contains(&&layout.encode(key)));
        if scan.reverse {
            keys.reverse();
        }
        let more_here = keys.len() > scan.rows_max;
        keys.truncate(scan.rows_max);
        let (first, last) = plan.ranges[0].clone();
        let next = match (scan.reverse, more_here) {
            (true, true) => Some(layout.encode(keys.last().unwrap())),
            (false, true) => Some(Bytes::from([&layout.encode(keys.last().unwrap())[..], b"\0"].concat())),
            (true, false) => Some(Bytes::from(shard.start.clone())).filter(|start| *start > first),
            (false, false) => Some(Bytes::from(shard.end.clone())).filter(|end| *end < last),
        };
        let cursor = next.map(|next| ScanCursor { next }.encode(&layout, &scan.bounds, scan.reverse));
        let row = |key| Row { key, timestamp: Timestamp(1), value: Some("v".into()), expires_ms: None };
        let count = keys.len() as u64;
        let rows = if scan.count_only { vec![] } else { keys.into_iter().map(row).collect() };
        let header = header(node, shard.id.0);
        Act::Answer(Ok(Response::Page(Answer { header, body: Page { rows, count, cursor } })))
    }

    async fn client(&self) -> Client {
        connect(&[&self.nodes[0]]).await
    }
}

fn numbers(rows: &[Row]) -> Vec<u32> {
    rows.iter().map(|row| std::str::from_utf8(&row.key).unwrap().parse().unwrap()).collect()
}

#[tokio::test]
async fn a_scan_goes_from_shard_to_shard_asking_each_ones_leader() {
    let digits = Digits::start();
    let table = digits.client().await.table("digits");
    let all: Vec<u32> = (0..100).collect();
    for rows_max in [0, 3, 10, 1_000] {
        let request = ScanRequest { rows_max, ..ScanRequest::default() };
        let rows = table.scan_with(request.clone()).collect().await.expect("scanned");
        assert_eq!(numbers(&rows), all, "pages of {rows_max}");
        let rows = table.scan_with(request).reverse().collect().await.expect("scanned");
        assert_eq!(numbers(&rows), all.iter().rev().copied().collect::<Vec<_>>(), "pages of {rows_max}");
    }
    let some = table.scan(ScanBounds::Range(Some("17".into()), Some("45".into()))).collect().await.expect("scanned");
    assert_eq!(numbers(&some), (17..45).collect::<Vec<_>>());
    let some = table.scan(ScanBounds::Prefix("3".into())).reverse().collect().await.expect("scanned");
    assert_eq!(numbers(&some), (30..40).rev().collect::<Vec<_>>());
    assert_eq!(table.count(ScanBounds::All).await, Ok(100));
    assert_eq!(table.count(ScanBounds::Prefix("9".into())).await, Ok(10));
    assert_eq!(*digits.wrong.lock(), Vec::<String>::new());
}

#[tokio::test]
async fn a_scan_stops_at_its_limit_and_goes_on_from_a_cursor() {
    let digits = Digits::start();
    let table = digits.client().await.table("digits");
    let rows = table.scan(ScanBounds::All).limit(25).collect().await.expect("scanned");
    assert_eq!(numbers(&rows), (0..25).collect::<Vec<_>>());
    let mut scan = table.scan_with(ScanRequest { rows_max: 7, ..ScanRequest::default() });
    let page = scan.next_page().await.expect("scanned").expect("a page");
    assert_eq!(page.body.rows.len(), 7);
    let cursor = scan.cursor().cloned();
    let rest = table.scan_with(ScanRequest { cursor, ..ScanRequest::default() });
    let rows: Vec<Row> = futures::TryStreamExt::try_collect(rest.rows()).await.expect("scanned");
    assert_eq!(numbers(&rows), (7..100).collect::<Vec<_>>());
    let forged = ScanRequest { cursor: Some("forged".into()), ..ScanRequest::default() };
    let error = table.scan_page(forged).await.expect_err("not ours");
    assert_eq!(error.reason, Reason::InvalidCursor);
}
