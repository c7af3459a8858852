//! Groups that are born with members and a state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Base, Cluster, Host, On, SHARD, TestMachine, prefix, until};
use crate::keyspace::{side, version};
use crate::raft::{Birth, LogBounds};
use crate::runtime;
use crate::storage::{Batch, Family};
use crate::types::{NodeId, ReplicaId, Timestamp};

/// Adds a replica 10n on node n; born ones hold one inherited payload.
async fn add(cluster: &mut Cluster, on: On, node: u64, birth: Option<&Birth>) {
    let base = Base::new(on);
    if let Some(birth) = birth {
        let mut batch = Batch::new();
        birth.put(&mut batch);
        batch.put(Family::Data, version::key(&prefix(SHARD), Timestamp(1)), "inherited");
        batch.put(Family::Data, side::applied(SHARD), birth.mark());
        base.engine().write(batch).expect("written");
    }
    let (node, replica) = (NodeId(node), ReplicaId(10 * node));
    let late = birth.is_none();
    let (stall, writer, group) = cluster.start_with(node, replica, &base, late).await;
    cluster.hosts.push(Host { node, replica, base, stall, writer, group });
}

fn birth(nodes: u64) -> Birth {
    let members: BTreeMap<ReplicaId, NodeId> = (1..=nodes).map(|node| (ReplicaId(10 * node), NodeId(node))).collect();
    let voters: BTreeSet<ReplicaId> = members.keys().copied().collect();
    Birth::new(SHARD, &voters, &members).expect("members make a group")
}

async fn born(on: On) {
    let birth = birth(3);
    let mut cluster = Cluster { net: Default::default(), bounds: LogBounds::default(), hosts: Vec::new() };
    for node in 1..=3 {
        add(&mut cluster, on, node, Some(&birth)).await;
    }
    let status = cluster.hosts[0].status();
    assert_eq!((status.voters.len(), status.applied, status.purged), (3, 0, Some(0)), "{status:?}");
    cluster.hosts[1].group.stand().await.expect("it runs");
    let leader = cluster.leader().await;
    let index = cluster.write("first").await;
    let content = cluster.agree_all(index).await;
    assert_eq!(content.values().map(|value| &value[..]).collect::<Vec<_>>(), [&b"inherited"[..], b"first"]);

    // A restart finds a group like any other.
    let follower = cluster.others(leader)[0];
    cluster.crash(follower, false).await;
    cluster.restart(follower).await;
    let index = cluster.write("second").await;
    assert_eq!(cluster.agree_all(index).await.len(), 3);

    // Who was not born with it gets a snapshot: there is no first entry.
    add(&mut cluster, on, 4, None).await;
    let leader = cluster.leader().await;
    cluster.hosts[leader].group.add_learner(ReplicaId(40), NodeId(4)).await.expect("added");
    let content = cluster.agree_all(index).await;
    assert_eq!(content.len(), 3, "inherited content came along");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_born_group_elects_serves_restarts_and_takes_in_others() {
    born(On::Memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_born_group_elects_serves_restarts_and_takes_in_others_on_rocksdb() {
    born(On::Rocks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_never_born_is_filled_by_the_others() {
    let birth = birth(3);
    let mut cluster = Cluster { net: Default::default(), bounds: LogBounds::default(), hosts: Vec::new() };
    add(&mut cluster, On::Memory, 1, Some(&birth)).await;
    add(&mut cluster, On::Memory, 2, Some(&birth)).await;
    // The third one's parent was brought past the split by a snapshot: it begins with nothing.
    add(&mut cluster, On::Memory, 3, None).await;
    cluster.hosts[0].group.stand().await.expect("it runs");
    let index = cluster.write("first").await;
    cluster.agree_all(index).await;
    until("it votes like the others", || cluster.hosts[2].status().voters.len() == 3).await;
    // And it counts: with one of the born ones away, it makes the majority.
    cluster.isolate(1);
    let at = cluster.leader_among(&[0, 2]).await;
    cluster.hosts[at].group.propose("second".into()).await.expect("two of three");
    cluster.net.heal();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_begins_with_a_snapshot_takes_no_first_entries() {
    let mut cluster = Cluster::three().await;
    for number in 0..20 {
        cluster.write(format!("{number}")).await;
    }
    add(&mut cluster, On::Memory, 4, None).await;
    let leader = cluster.leader_among(&[0, 1, 2]).await;
    let group = cluster.hosts[leader].group.clone();
    group.add_learner(ReplicaId(40), NodeId(4)).await.expect("added");
    let index = cluster.write("later").await;
    cluster.agree(&[0, 1, 2], index).await;
    // The leader still has the log from its beginning, and offers it in vain.
    runtime::sleep(Duration::from_secs(1)).await;
    assert_eq!((cluster.hosts[3].content().len(), cluster.hosts[3].status().applied), (0, 0));
    // Once that is gone, it sends a snapshot.
    for at in 0..3 {
        cluster.hosts[at].group.purge_through(index).await;
    }
    cluster.agree_all(index).await;
    assert!(cluster.net.snapshots.load(Ordering::Relaxed) > 0);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_birth_is_refused_that_makes_no_group() {
    let members: BTreeMap<ReplicaId, NodeId> = BTreeMap::from([(ReplicaId(1), NodeId(1))]);
    assert!(Birth::new(SHARD, &BTreeSet::new(), &members).is_err(), "nobody votes");
    assert!(Birth::new(SHARD, &BTreeSet::from([ReplicaId(2)]), &members).is_err(), "a voter that is no member");
    // What a machine is given is what it started with: the mark of a birth is one it can read.
    let base = Base::new(On::Memory);
    let mut batch = Batch::new();
    birth(1).put(&mut batch);
    batch.put(Family::Data, side::applied(SHARD), birth(1).mark());
    base.engine().write(batch).expect("written");
    assert_eq!(TestMachine::open(SHARD, base.engine()).mark, Some(birth(1).mark()));
}
