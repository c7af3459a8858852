//! Followers and read replicas answer reads, say how old their answers can be, and refuse what they cannot prove.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tonic::Request;
use trivet::client::{Client, Options, ReadFrom};
use trivet::wire::proto::v1::{GetRequest, GetResponse, Header, ReadLevel, Role, WriteResponse, read_level::Level};

use crate::harness::{Cluster, eventually, get, put, rounds};

/// A read that the replica of the node asked shall answer itself.
fn here(key: &str, level: Option<Level>) -> GetRequest {
    GetRequest { level: Some(ReadLevel { level, any_replica: true }), ..get("t", key) }
}

fn header(answer: &GetResponse) -> &Header {
    answer.header.as_ref().expect("every answer has a header")
}

fn value(answer: &GetResponse) -> Option<&[u8]> {
    answer.found.as_ref().map(|found| &found.value[..])
}

/// Writes through some node; the version made.
async fn write(cluster: &Cluster, key: &str, value: &str) -> u64 {
    let answer: WriteResponse =
        cluster.kv(cluster.some_node()).put(put("t", key, value)).await.expect("written").into_inner();
    answer.version
}

/// Four nodes; one shard with three voters and a read replica.
async fn with_a_read_replica() -> Cluster {
    let cluster = Cluster::of(4).await;
    let create = ["table", "create", "t", "--hash", "--shards", "1", "--replication", "3", "--read-replicas", "1"];
    cluster.trivet(&create).ok();
    cluster.healthy().await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn every_replica_answers_at_every_level_and_says_how_old_it_is() {
    let cluster = with_a_read_replica().await;
    let shard = cluster.shards("t").await.remove(0);
    let voters: BTreeMap<u64, bool> = shard.replicas.iter().map(|replica| (replica.node, replica.voter)).collect();
    assert_eq!(voters.values().filter(|voter| !**voter).count(), 1, "{voters:?}");
    assert_eq!(voters.len(), 4, "on nodes of their own");
    // Each answers by itself once it has caught up with its leader.
    for &node in voters.keys() {
        eventually("the replica answers by itself", || async {
            let answer = cluster.kv(node).get(here("k", None)).await?.into_inner();
            if header(&answer).node == node { Ok(()) } else { Err(tonic::Status::unavailable("another answered")) }
        })
        .await;
    }
    let mut own = 0;
    for round in 0..rounds(20) {
        let text = format!("v{round}");
        let version = write(&cluster, "k", &text).await;
        for (&node, &voter) in &voters {
            let levels = [
                None,
                Some(Level::AtLeast(version)),
                Some(Level::AsOf(version)),
                Some(Level::MaxAgeMs(0)),
                Some(Level::Any(true)),
            ];
            for level in levels {
                let asked = Instant::now();
                let answer = cluster.kv(node).get(here("k", level)).await.expect("answered").into_inner();
                let took = asked.elapsed();
                let said = header(&answer);
                assert!(said.as_of >= version, "node {node} at {level:?}: {said:?}");
                assert_eq!(value(&answer), Some(text.as_bytes()), "node {node} at {level:?}");
                if said.node == node {
                    own += 1;
                    assert!(voter || said.role() == Role::Learner, "{said:?}");
                    assert!(!voter || said.role() != Role::Learner, "{said:?}");
                }
                if matches!(level, None | Some(Level::MaxAgeMs(_))) {
                    let age = Duration::from_micros(said.age_us.expect("a proven age"));
                    assert!(age <= took, "asked for {took:?} ago, and said to be {age:?} old");
                }
            }
        }
    }
    // Now and then one passes a read on, when it is too slow to prove what it has; but that is the exception.
    assert!(own >= rounds(20) * 4 * 5 / 2, "only {own} answers were the replicas' own");
    // Who is not asked asks nobody.
    let asked = async || {
        let mut sum = 0.0;
        for node in cluster.ids() {
            sum += cluster.metric(node, "trivet_shard_proofs_asked_total").await;
        }
        sum
    };
    let (leader, _) = cluster.leader("t", "k").await;
    let before = asked().await;
    assert!(before > 0.0);
    for _ in 0..50 {
        write(&cluster, "k", "v").await;
        cluster.kv(leader).get(get("t", "k")).await.expect("answered");
    }
    assert_eq!(asked().await, before, "reads at the leader and writes need no proof of a follower's age");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_hears_no_leader_tells_its_growing_age_and_refuses_fresh_reads() {
    let cluster = Cluster::of(3).await;
    cluster.trivet(&["table", "create", "t", "--hash", "--shards", "1"]).ok();
    write(&cluster, "k", "v").await;
    let (leader, _) = cluster.leader("t", "k").await;
    let alone = cluster.ids().into_iter().find(|&node| node != leader).expect("a follower");
    eventually("the follower has proven its age", || async {
        let answer = cluster.kv(alone).get(here("k", Some(Level::AtLeast(0)))).await?.into_inner();
        cluster.kv(alone).get(here("k", None)).await?;
        header(&answer).age_us.ok_or_else(|| tonic::Status::unavailable("no age yet")).map(|_| ())
    })
    .await;
    let others: Vec<u64> = cluster.ids().into_iter().filter(|&node| node != alone).collect();
    others.iter().for_each(|&node| cluster.pause(node));
    let paused = Instant::now();
    eventually("its age grows", || async {
        let answer = cluster.kv(alone).get(here("k", Some(Level::Any(true)))).await?.into_inner();
        assert_eq!((header(&answer).node, value(&answer)), (alone, Some(&b"v"[..])));
        let age = Duration::from_micros(header(&answer).age_us.expect("it has been proven before"));
        // Nothing can have been proven since the others stand still, but for what was on its way.
        if age >= Duration::from_secs(1) && paused.elapsed() >= Duration::from_secs(1) {
            return Ok(());
        }
        Err(tonic::Status::unavailable(format!("{age:?}")))
    })
    .await;
    for level in [None, Some(Level::MaxAgeMs(100))] {
        let mut question = Request::new(here("k", level));
        question.set_timeout(Duration::from_secs(1));
        let refused = cluster.kv(alone).get(question).await.expect_err("it cannot prove that");
        println!("  {level:?}: {refused}");
    }
    let old = cluster.kv(alone).get(here("k", Some(Level::MaxAgeMs(600_000)))).await.expect("it can prove that");
    assert_eq!(header(&old.into_inner()).node, alone);
    others.iter().for_each(|&node| cluster.resume(node));
    eventually("it is fresh again", || async {
        let answer = cluster.kv(alone).get(here("k", Some(Level::MaxAgeMs(500)))).await?.into_inner();
        if header(&answer).node == alone { Ok(()) } else { Err(tonic::Status::unavailable("another answered")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_hold_over_clients_replicas_and_splits() {
    let cluster = with_a_read_replica().await;
    let client = async |read_from| {
        let options = Options { read_from, ..Options::default() };
        Client::connect(&cluster.endpoints(), options).await.expect("connected")
    };
    let writer = client(ReadFrom::Leader).await.session();
    let readers = [client(ReadFrom::Nearest).await.session(), client(ReadFrom::LeastLoaded).await.session()];
    let mut copies = 0;
    for round in 0..rounds(60) {
        if round % 20 == 10 {
            let shard = cluster.shards("t").await.iter().map(|shard| (shard.epoch, shard.id)).min().expect("a shard").1;
            cluster.trivet(&["shard", "split", &shard.to_string()]).ok();
        }
        let (key, text) = (format!("key-{}", round % 16), format!("v{round}"));
        writer.table("t").put(key.clone(), text.clone()).await.expect("written");
        for reader in &readers {
            reader.catch_up(writer.token());
            let answer = reader.table("t").get(key.clone()).await.expect("read");
            let found = answer.body.map(|found| found.value);
            assert_eq!(found.as_deref(), Some(text.as_bytes()), "round {round}: {:?}", answer.header);
            copies += u32::from(answer.header.role != trivet::types::Role::Leader);
        }
    }
    assert!(copies >= rounds(60) / 4, "only {copies} reads were answered by copies");
    cluster.healthy().await;
    let shards = cluster.shards("t").await;
    assert!(shards.len() > 3);
    for shard in &shards {
        let learners = shard.replicas.iter().filter(|replica| !replica.voter).count();
        assert_eq!(
            (shard.replicas.len(), learners),
            (4, 1),
            "the parts of a split keep their read replicas: {shard:?}"
        );
    }
    cluster.checksums_equal("t").await;
}
