//! Members come and go; leadership is handed over.

use std::collections::BTreeSet;

use openraft::entry::RaftPayload;

use super::super::types::{Membership, Payload};
use super::{Cluster, On, index, until};
use crate::raft::{ChangeError, LogBounds, Part, TransferError};
use crate::types::{NodeId, ReplicaId};

fn replicas(ids: &[u64]) -> BTreeSet<ReplicaId> {
    ids.iter().copied().map(ReplicaId).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_moves_as_learner_then_voter_and_the_old_one_goes() {
    let cluster = Cluster::new(On::Memory, 3, 1, LogBounds::default()).await;
    for number in 0..50 {
        cluster.write(format!("{number}")).await;
    }
    let leader = cluster.leader().await;
    let group = &cluster.hosts[leader].group;
    group.add_learner(ReplicaId(40), NodeId(4)).await.expect("added");
    group.add_learner(ReplicaId(40), NodeId(4)).await.expect("adding it again changes nothing");
    let moved = group.add_learner(ReplicaId(40), NodeId(9)).await;
    assert!(matches!(moved, Err(ChangeError::Invalid(_))), "a replica id is for one place for ever: {moved:?}");
    assert_eq!(group.status().learners.get(&ReplicaId(40)), Some(&NodeId(4)));
    until("the learner has caught up", || {
        let status = group.status();
        status.matched.get(&ReplicaId(40)).copied().flatten() >= Some(status.last_log)
    })
    .await;
    assert_eq!(cluster.hosts[3].status().part, Part::Learner);

    let unknown = group.change_voters(replicas(&[10, 20, 77])).await;
    assert!(matches!(unknown, Err(ChangeError::Invalid(_))), "{unknown:?}");
    let none = group.change_voters(BTreeSet::new()).await;
    assert!(matches!(none, Err(ChangeError::Invalid(_))), "{none:?}");

    let gone = cluster.others(leader)[0];
    let gone_id = cluster.hosts[gone].replica;
    let mut voters = replicas(&[10, 20, 30, 40]);
    voters.remove(&gone_id);
    group.change_voters(voters.clone()).await.expect("changed");
    group.change_voters(voters.clone()).await.expect("asking for what is changes nothing");
    let status = group.status();
    assert!(!status.joint);
    assert_eq!(status.voters.keys().copied().collect::<BTreeSet<_>>(), voters);
    assert!(status.learners.is_empty(), "who is no voter any more is no member: {status:?}");

    let staying: Vec<usize> = (0..4).filter(|&at| at != gone).collect();
    let term = status.term;
    let last = cluster.write("by the new members").await;
    cluster.agree(&staying, last).await;
    assert_eq!(cluster.hosts[leader].status().term, term, "the one that went does not disturb");
    let follower = &cluster.hosts[*staying.iter().find(|&&at| at != leader).expect("there are three")].group;
    let elsewhere = follower.add_learner(ReplicaId(50), NodeId(5)).await;
    assert!(matches!(elsewhere, Err(ChangeError::NotLeader { .. })), "{elsewhere:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_changes_at_once_one_wins() {
    let cluster = Cluster::new(On::Memory, 3, 2, LogBounds::default()).await;
    let leader = cluster.leader().await;
    let group = &cluster.hosts[leader].group;
    group.add_learner(ReplicaId(40), NodeId(4)).await.expect("added");
    group.add_learner(ReplicaId(50), NodeId(5)).await.expect("added");
    let (one, other) = tokio::join!(
        group.change_voters(replicas(&[10, 20, 30, 40])),
        group.change_voters(replicas(&[10, 20, 30, 50]))
    );
    let (won, lost) = if one.is_ok() { (40, other) } else { (50, one) };
    // The loser saw the members before the winner's first step, or between its steps.
    assert!(matches!(lost, Err(ChangeError::Conflict(_) | ChangeError::Undetermined)), "{lost:?}");
    let status = group.status();
    assert!(!status.joint && status.voters.len() == 4 && status.voters.contains_key(&ReplicaId(won)), "{status:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_left_half_done_is_finished() {
    let cluster = Cluster::new(On::Memory, 3, 1, LogBounds::default()).await;
    let leader = cluster.leader().await;
    let group = &cluster.hosts[leader].group;
    group.finish_change().await.expect("nothing to finish is fine");
    group.add_learner(ReplicaId(40), NodeId(4)).await.expect("added");
    // What remains when leadership is lost between the two steps of a change.
    let nodes = group.status().voters.into_iter().chain([(ReplicaId(40), NodeId(4))]);
    let nodes: std::collections::BTreeMap<u64, NodeId> = nodes.map(|(replica, node)| (replica.0, node)).collect();
    let joint = Membership::new(vec![[10, 20, 30].into(), [10, 20, 30, 40].into()], nodes).expect("valid");
    group.inner.raft.append_membership(joint, Payload::blank(), []).await.expect("committed");
    assert!(group.status().joint);
    let to = cluster.hosts[cluster.others(leader).into_iter().find(|&at| at != 3).expect("a voter")].replica;
    until("the others keep up", || {
        let status = group.status();
        status.matched.get(&to).copied().flatten() >= Some(status.last_log)
    })
    .await;
    group.transfer_leader(to).await.expect("handed over");
    let leader = cluster.leader().await;
    let group = &cluster.hosts[leader].group;
    assert!(group.status().joint, "the new leader inherits it");
    group.finish_change().await.expect("finished");
    let status = group.status();
    assert!(!status.joint && status.voters.len() == 4, "{status:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_goes_only_to_a_voter_that_keeps_up() {
    let cluster = Cluster::new(On::Memory, 3, 1, LogBounds::default()).await;
    let leader = cluster.leader().await;
    let group = &cluster.hosts[leader].group;
    let [lagging, other] = [0, 1].map(|at| {
        let followers: Vec<usize> = (0..3).filter(|&at| at != leader).collect();
        followers[at]
    });
    let (lagging, other_id) = (&cluster.hosts[lagging], cluster.hosts[other].replica);
    assert_eq!(group.transfer_leader(ReplicaId(40)).await, Err(TransferError::NotAVoter));
    group.add_learner(ReplicaId(40), NodeId(4)).await.expect("added");
    assert_eq!(group.transfer_leader(ReplicaId(40)).await, Err(TransferError::NotAVoter));
    let elsewhere = cluster.hosts[other].group.transfer_leader(other_id).await;
    assert!(matches!(elsewhere, Err(TransferError::NotLeader { .. })), "{elsewhere:?}");

    // Its disk stalls, so it takes entries in but acknowledges none.
    lagging.stall.set(|disk| disk.syncs_stall = true);
    for number in 0..40 {
        group.propose(format!("{number}").into()).await.expect("two are a quorum");
    }
    let refused = group.transfer_leader(lagging.replica).await;
    assert!(matches!(refused, Err(TransferError::Lagging { behind }) if behind > 16), "{refused:?}");
    group.propose("still leading".into()).await.expect("a refused hand-over changes nothing");
    lagging.stall.set(|disk| disk.syncs_stall = false);

    until("the other keeps up", || {
        let status = group.status();
        status.matched.get(&other_id).copied().flatten() >= Some(status.last_log)
    })
    .await;
    let term = group.status().term;
    group.transfer_leader(other_id).await.expect("handed over");
    let now = cluster.leader().await;
    assert_eq!(now, other);
    assert!(cluster.hosts[now].status().term > term);
    let written = cluster.hosts[now].group.propose("by the new leader".into()).await.expect("it leads");
    cluster.agree_all(index(&written)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_takes_over_whether_its_leader_is_gone_or_only_said_to_be() {
    let cluster = Cluster::three().await;
    let leader = cluster.leader().await;
    cluster.agree_all(cluster.write("before").await).await;
    let [one, other] = cluster.others(leader)[..] else { panic!("three replicas") };
    let [leader_id, one_id, other_id] = [leader, one, other].map(|at| cluster.hosts[at].replica);
    let term = cluster.hosts[leader].status().term;

    let take_over = async |at: usize, gone| cluster.hosts[at].group.take_over(gone).await.expect("it runs");
    assert!(!take_over(one, other_id).await, "that one does not lead");
    assert!(!take_over(leader, leader_id).await, "nobody takes over from itself");
    assert_eq!(cluster.hosts[one].status().term, term);

    // The leader is well and heard: nobody would vote against it, but for this.
    assert!(take_over(one, leader_id).await);
    until("the one that stood leads", || cluster.hosts[one].status().is_leader()).await;
    assert!(cluster.hosts[one].status().term > term);
    let last = cluster.write("a wrong verdict costs an election").await;
    let content = cluster.agree_all(last).await;
    assert!(content.values().any(|payload| payload == "before"), "{content:?}");

    cluster.isolate(one);
    assert!(take_over(other, one_id).await);
    until("the other leads", || cluster.hosts[other].status().is_leader()).await;
    assert!(!take_over(leader, one_id).await || cluster.hosts[leader].status().leader.is_none(), "that is over");
    cluster.net.heal();
    let last = cluster.write("after").await;
    cluster.agree_all(last).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_whose_log_is_shorter_learns_that_it_cannot_take_over() {
    let cluster = Cluster::three().await;
    let leader = cluster.leader().await;
    cluster.agree_all(cluster.write("before").await).await;
    let [one, other] = cluster.others(leader)[..] else { panic!("three replicas") };
    let leader_id = cluster.hosts[leader].replica;

    let node = |at: usize| cluster.hosts[at].node;
    cluster.net.isolate(node(one), [node(leader)]);
    let missed = cluster.write("one of them misses this").await;
    cluster.agree(&[leader, other], missed).await;

    // As its process ends: the two that are left see each other.
    cluster.isolate(leader);
    let take_over = async |at: usize| cluster.hosts[at].group.take_over(leader_id).await.expect("it runs");
    assert!(take_over(one).await);
    until("it hears that it is behind", || cluster.hosts[one].group.is_behind()).await;
    assert!(take_over(other).await);
    until("the one with the longer log leads", || cluster.hosts[other].status().is_leader()).await;
    assert!(!cluster.hosts[other].group.is_behind());
    cluster.agree(&[one, other], missed).await;
    cluster.net.heal();
    cluster.agree_all(cluster.write("after").await).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_takes_over_from_a_candidate_that_it_gave_its_vote_to() {
    let cluster = Cluster::three().await;
    let leader = cluster.leader().await;
    cluster.agree_all(cluster.write("before").await).await;
    let [one, other] = cluster.others(leader)[..] else { panic!("three replicas") };
    let [leader_id, one_id] = [leader, one].map(|at| cluster.hosts[at].replica);

    // It is asked to vote and votes, and its answer, with all that would come after, is lost. Nobody stands unasked.
    let node = |at: usize| cluster.hosts[at].node;
    cluster.net.faults.lock().cut.extend([leader, other].map(|at| (node(at), node(one))));
    for at in [leader, other] {
        cluster.hosts[at].group.stand_in_elections(false);
    }
    let term = cluster.hosts[other].status().term;
    assert!(cluster.hosts[one].group.take_over(leader_id).await.expect("it runs"));
    for at in [leader, other] {
        until("it has voted", || cluster.hosts[at].status().term > term).await;
        assert_eq!(cluster.hosts[at].status().leader, None);
    }
    cluster.isolate(one);

    let taken = cluster.hosts[other].group.take_over(leader_id).await.expect("it runs");
    assert!(!taken, "nobody waits for that one any more");
    assert!(cluster.hosts[other].group.take_over(one_id).await.expect("it runs"));
    until("it leads", || cluster.hosts[other].status().is_leader()).await;
    cluster.net.heal();
    cluster.agree_all(cluster.write("after").await).await;
    cluster.stop().await;
}
