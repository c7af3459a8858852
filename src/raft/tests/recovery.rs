//! A group that lost its quorum goes on from one replica under a new id, and its former members cannot touch it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::{Cluster, On, SHARD, content, stored_mark, until};
use crate::raft::{LogBounds, Remains};
use crate::runtime;
use crate::storage::Batch;
use crate::types::{NodeId, ReplicaId};

fn remains(cluster: &Cluster, at: usize) -> Remains {
    let engine = cluster.hosts[at].base.engine();
    Remains::read(&*engine, SHARD, stored_mark(&*engine, SHARD), |_| ()).expect("it can be read")
}

fn values(content: &BTreeMap<u64, Bytes>) -> Vec<&[u8]> {
    content.values().map(|value| &value[..]).collect()
}

async fn recovered(on: On) {
    let mut cluster = Cluster::new(on, 3, 0, LogBounds::default()).await;
    let leader = cluster.leader().await;
    let behind = cluster.others(leader)[0];
    let index = cluster.write("first").await;
    cluster.agree_all(index).await;
    cluster.crash(behind, false).await;
    let index = cluster.write("second").await;
    cluster.agree(&cluster.others(behind), index).await;
    for at in cluster.others(behind) {
        cluster.crash(at, false).await;
    }

    let (left, lost) = (behind, cluster.others(behind));
    let (last, newest) = (remains(&cluster, left), remains(&cluster, lost[0]));
    assert!(last.last < newest.last, "the one that was away is behind: {last:?} {newest:?}");
    let all: BTreeSet<ReplicaId> = [10, 20, 30].map(ReplicaId).into();
    assert_eq!(last.quorums, std::slice::from_ref(&all), "it knows the members");
    let own = cluster.hosts[left].replica;
    assert!(!last.has_quorum(|id| id == own) && last.has_quorum(|id| id != own));

    let heir = ReplicaId(70);
    let mut batch = Batch::new();
    last.take_over(SHARD, heir, cluster.hosts[left].node, "recovered".into(), &mut batch);
    let engine = cluster.hosts[left].base.engine();
    engine.write(batch).expect("written");
    engine.sync().expect("synced");
    let after = remains(&cluster, left);
    assert_eq!(after.quorums, [BTreeSet::from([heir])]);
    assert!(after.last > last.last && after.last.is_some_and(|end| end.leader == heir), "{after:?}");

    // It elects itself and takes writes; what it lacked is gone.
    cluster.hosts[left].replica = heir;
    cluster.restart(left).await;
    assert_eq!(cluster.leader().await, left);
    let index = cluster.write("third").await;
    assert_eq!(values(&cluster.agree(&[left], index).await), [&b"first"[..], b"recovered", b"third"]);

    // The former majority comes back and elects a leader in whatever term: none of its messages counts here.
    let term = cluster.hosts[left].status().term;
    for &at in &lost {
        cluster.restart(at).await;
    }
    let other = cluster.leader_among(&lost).await;
    for _ in 0..3 {
        cluster.hosts[other].group.propose("elsewhere".into()).await.expect("they are a majority of their own");
    }
    runtime::sleep(Duration::from_millis(500)).await;
    assert_eq!(cluster.hosts[left].status().term, term, "it did not hear of their terms");
    assert!(cluster.hosts[left].status().is_leader());
    for &at in &lost {
        cluster.crash(at, false).await;
    }

    // New members come as to any group.
    cluster.add(on, NodeId(4), ReplicaId(40)).await;
    cluster.hosts[left].group.add_learner(ReplicaId(40), NodeId(4)).await.expect("added");
    until("the newcomer has caught up", || {
        let status = cluster.hosts[left].status();
        status.matched.get(&ReplicaId(40)).copied().flatten().is_some_and(|matched| matched >= index)
    })
    .await;
    cluster.hosts[left].group.change_voters([heir, ReplicaId(40)].into()).await.expect("it votes");
    cluster.agree(&[left, 3], index).await;
    assert_eq!(values(&content(&*cluster.hosts[3].base.engine(), SHARD)), [&b"first"[..], b"recovered", b"third"]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_goes_on_in_memory() {
    recovered(On::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_goes_on_on_disk() {
    recovered(On::Rocks).await;
}
