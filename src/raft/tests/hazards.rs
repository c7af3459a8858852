//! The ways in which a group can lose or double something, each provoked.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use prost::Message;
use tokio::sync::oneshot;

use super::super::codec;
use super::{Base, Cluster, On, PATIENCE, SHARD, index, stored_mark, until};
use crate::raft::{Kind, LogBounds, Part, ProposeError, ReadError};
use crate::runtime;
use crate::storage::{Batch, Engine, Family, log_keys};
use crate::types::{NodeId, ReplicaId};
use crate::wire::proto::internal as proto;

async fn three_replicas_apply_the_same(on: On) {
    let cluster = Cluster::new(on, 3, 0, LogBounds::default()).await;
    let leader = cluster.leader().await;
    let group = &cluster.hosts[leader].group;
    // Proposed one after the other, all on their way at once: logged in that order.
    let proposals = (0..200u32).map(|number| group.propose(Bytes::from(number.to_be_bytes().to_vec())));
    let indexes: Vec<u64> =
        join_all(proposals).await.iter().map(|outcomes| index(outcomes.as_ref().expect("a quiet cluster"))).collect();
    assert!(indexes.is_sorted_by(|a, b| a < b), "{indexes:?}");
    let last = *indexes.last().expect("there are 200");
    let applied = cluster.agree_all(last).await;
    for (number, index) in (0..200u32).zip(&indexes) {
        assert_eq!(applied[index][..], number.to_be_bytes());
    }
    assert_eq!(cluster.net.conflicts.load(Ordering::Relaxed), 0, "requests arrive in the order sent");
    group.confirm().await.expect("it leads");
    let status = group.status();
    assert_eq!(status.voters.len(), 3);
    assert_eq!(status.leader, Some((cluster.hosts[leader].replica, cluster.hosts[leader].node)));
    until("the followers' progress is known", || group.status().matched.values().all(|at| *at >= Some(last))).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_apply_the_same_in_memory() {
    three_replicas_apply_the_same(On::Memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_apply_the_same_on_rocksdb() {
    three_replicas_apply_the_same(On::Rocks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_refuse_definitely_and_name_the_leader() {
    let cluster = Cluster::three().await;
    let leader = cluster.leader().await;
    let expected = Some((cluster.hosts[leader].replica, cluster.hosts[leader].node));
    for follower in cluster.others(leader) {
        let group = &cluster.hosts[follower].group;
        until("the follower knows its leader", || group.status().leader == expected).await;
        assert_eq!(group.propose(Bytes::from_static(b"x")).await, Err(ProposeError::NotLeader { leader: expected }));
        assert_eq!(group.confirm().await, Err(ReadError::NotLeader { leader: expected }));
    }
    let index = cluster.write("after").await;
    let applied = cluster.agree_all(index).await;
    assert!(applied.values().all(|payload| payload != "x"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_restarted_with_an_unflushed_tail_does_not_resume_leadership() {
    let mut cluster = Cluster::three().await;
    cluster.write("before").await;
    let old = cluster.leader().await;
    let term = cluster.hosts[old].status().term;
    // The leader's disk stalls: its followers alone commit what it proposes.
    cluster.hosts[old].stall.set(|disk| disk.syncs_stall = true);
    let acknowledged = index(&cluster.hosts[old].group.propose("acknowledged".into()).await.expect("two are a quorum"));
    cluster.crash(old, true).await;
    // It comes back well within the time for which its followers would not vote for another one.
    cluster.restart(old).await;
    let status = cluster.hosts[old].status();
    assert!(status.last_log < acknowledged, "the tail is gone, or this test shows nothing: {status:?}");
    assert!(!status.is_leader(), "{status:?}");
    let new = cluster.leader().await;
    let status = cluster.hosts[new].status();
    assert!(status.term > term, "led in the old term again: {status:?}");
    let index = cluster.write("after").await;
    let applied = cluster.agree_all(index).await;
    assert_eq!(applied.get(&acknowledged).map(|payload| &payload[..]), Some(&b"acknowledged"[..]));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_applied_before_it_is_in_the_log_here() {
    let mut cluster = Cluster::three().await;
    let first = cluster.write("before").await;
    cluster.agree_all(first).await;
    let leader = cluster.leader().await;
    cluster.hosts[leader].stall.set(|disk| disk.log_writes_stall = true);
    let group = cluster.hosts[leader].group.clone();
    let proposed = runtime::spawn(async move { group.propose("committed by the followers".into()).await });
    for follower in cluster.others(leader) {
        cluster.hosts[follower].group.wait_applied(first + 1).await.expect("the followers commit it");
    }
    runtime::sleep(Duration::from_millis(100)).await;
    let engine = cluster.hosts[leader].base.engine();
    let applied = |engine: &dyn Engine| {
        let mark = stored_mark(engine, SHARD).expect("something is applied");
        codec::decode_mark(mark).expect("a mark").0.expect("a position").index
    };
    assert_eq!(applied(&*engine), first, "applied an entry that its own log does not have");
    assert!(!proposed.is_finished());
    // A crash here leaves a log and a state that fit, and the entry comes back from the others.
    cluster.crash(leader, true).await;
    cluster.restart(leader).await;
    cluster.agree_all(first + 1).await;
    assert!(matches!(proposed.await.expect("no panic"), Err(ProposeError::Stopped)));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_crash_leaves_the_state_is_never_ahead_of_the_log() {
    let mut cluster = Cluster::three().await;
    for round in 0..6u64 {
        let leader = cluster.leader().await;
        let group = cluster.hosts[leader].group.clone();
        let load = runtime::spawn(async move {
            let mut number = 0u64;
            while group.propose(format!("{round}/{number}").into()).await.is_ok() {
                number += 1;
            }
        });
        runtime::sleep(Duration::from_millis(30 + 17 * round)).await;
        let at = usize::try_from(round).expect("small") % 3;
        cluster.crash(at, true).await;
        if let Base::Memory(memory) = &cluster.hosts[at].base {
            let mark = stored_mark(&**memory, SHARD).map(|mark| codec::decode_mark(mark).expect("a mark").0);
            let last = {
                let (start, end) = log_keys::entries_range(SHARD, 0, u64::MAX);
                let mut cursor = crate::storage::Reader::cursor(&**memory, Family::Log, &start, &end);
                cursor.seek_last();
                let entry = cursor.entry().map(|(_, value)| Bytes::copy_from_slice(value));
                entry.map(|entry| codec::decode_entry(entry).expect("an entry").id)
            };
            assert!(mark.flatten() <= last, "applied {mark:?} with a log up to {last:?}");
        }
        cluster.restart(at).await;
        let settled = cluster.write(format!("settled {round}")).await;
        cluster.agree_all(settled).await;
        load.abort();
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discarded_proposal_is_undetermined() {
    let cluster = Cluster::three().await;
    let old = cluster.leader().await;
    let group = cluster.hosts[old].group.clone();
    cluster.isolate(old);
    let proposed = runtime::spawn(async move { group.propose("discarded".into()).await });
    let others = cluster.others(old);
    let new = cluster.leader_among(&others).await;
    let outcomes = cluster.hosts[new].group.propose("instead".into()).await.expect("it leads");
    assert!(!proposed.is_finished(), "nobody can know yet");
    // A leader without a quorum confirms nothing and, once its lease is over, takes nothing: definitely.
    let refused = cluster.hosts[old].group.confirm().await;
    assert!(matches!(refused, Err(ReadError::NoQuorum)), "{refused:?}");
    let refused = cluster.hosts[old].group.propose("late".into()).await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { .. })), "{refused:?}");
    cluster.net.heal();
    let proposed = runtime::timeout(PATIENCE, proposed).await.expect("answered after the reunion").expect("no panic");
    assert_eq!(proposed, Err(ProposeError::Undetermined));
    let applied = cluster.agree_all(index(&outcomes)).await;
    assert!(applied.values().all(|payload| payload != "discarded" && payload != "late"));
    cluster.stop().await;
}

/// What a leader that was paused finds when it wakes: answers from before, and a question of which they know nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_from_before_a_question_confirm_nothing() {
    let cluster = Cluster::three().await;
    let first = cluster.write("before").await;
    cluster.agree_all(first).await;
    let leader = cluster.leader().await;
    let [one, other] = cluster.others(leader)[..] else { panic!("three replicas have two followers") };
    let nodes = [one, other].map(|at| cluster.hosts[at].node);
    let me = cluster.hosts[leader].node;
    let group = cluster.hosts[leader].group.clone();
    cluster.net.faults.lock().hold.extend(nodes);
    let proposed = {
        let group = group.clone();
        runtime::spawn(async move { group.propose("answered".into()).await })
    };
    for other in cluster.others(leader) {
        let status = || cluster.hosts[other].group.status();
        until("the followers have the entry", || status().last_log > first).await;
    }
    let answered = |faults: &super::Faults, node| faults.held.iter().any(|held| held.from == node);
    until("they have answered", || nodes.iter().all(|node| answered(&cluster.net.faults.lock(), *node))).await;
    // Longer than a heartbeat's answer is waited for: what is held now are the answers to the entry.
    runtime::sleep(2 * super::timers().heartbeat).await;
    // From here on nobody hears the leader.
    cluster.net.faults.lock().swallow.extend(nodes.map(|node| (me, node)));
    let asked = {
        let group = group.clone();
        runtime::spawn(async move { group.read_index().await })
    };
    runtime::sleep(super::timers().heartbeat / 2).await;
    // One answer commits the entry, and that is news for the other follower; then its answer to the entry comes.
    cluster.net.release(nodes[0]);
    group.wait_applied(first + 1).await.expect("it is committed");
    runtime::sleep(super::timers().heartbeat / 2).await;
    cluster.net.release(nodes[1]);
    let confirmed = asked.await.expect("no panic");
    assert!(confirmed.is_err(), "nobody has heard the question: {confirmed:?}");
    cluster.net.heal();
    proposed.await.expect("no panic").expect("it was committed");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_replica_answers_everyone() {
    let cluster = Cluster::three().await;
    let leader = cluster.leader().await;
    let group = cluster.hosts[leader].group.clone();
    cluster.isolate(leader);
    let pending = {
        let group = group.clone();
        runtime::spawn(async move { group.propose("pending".into()).await })
    };
    let waiting = {
        let group = group.clone();
        runtime::spawn(async move { group.wait_applied(1_000_000).await })
    };
    runtime::sleep(Duration::from_millis(50)).await;
    let mut watch = group.watch();
    group.stop().await;
    assert_eq!(pending.await.expect("no panic"), Err(ProposeError::Stopped));
    assert!(waiting.await.expect("no panic").is_err());
    assert_eq!(group.propose("late".into()).await, Err(ProposeError::Stopped));
    assert_eq!(group.confirm().await, Err(ReadError::Stopped));
    assert_eq!(watch.borrow_and_update().part, Part::Stopped);
    let (answer, answered) = oneshot::channel();
    let me = cluster.hosts[leader].replica;
    let vote = Some(proto::Vote { term: 1_000, node: 1, committed: true });
    let append = proto::AppendRequest { vote, ..Default::default() };
    group.receive(ReplicaId(20), me, Kind::Append, append.encode_to_vec().into(), answer);
    assert!(answered.await.expect("answered").is_err());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_for_another_replica_or_of_nonsense_are_refused() {
    let cluster = Cluster::three().await;
    let group = &cluster.hosts[0].group;
    let term = group.status().term;
    let vote = Some(proto::Vote { term: term + 100, node: 99, committed: false });
    let request = Bytes::from(proto::VoteRequest { vote, last_log: None, leadership_transfer: true }.encode_to_vec());
    let ask = |to: u64, kind: Kind, payload: Bytes| {
        let (answer, answered) = oneshot::channel();
        group.receive(ReplicaId(99), ReplicaId(to), kind, payload, answer);
        async { answered.await.expect("every message is answered") }
    };
    assert!(ask(99, Kind::Vote, request).await.is_err());
    for kind in [Kind::Append, Kind::Vote, Kind::PreVote, Kind::Transfer] {
        assert!(ask(10, kind, Bytes::from_static(b"\xff\xff\xff")).await.is_err());
        assert!(ask(10, kind, Bytes::new()).await.is_err(), "a message without a vote");
    }
    assert_eq!(group.status().term, term);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pre_vote_does_not_grant_by_default() {
    let cluster = Cluster::three().await;
    let leader = cluster.leader().await;
    let term = cluster.hosts[leader].status().term;
    let alone = cluster.others(leader)[0];
    cluster.isolate(alone);
    // Long enough for several elections. A pre-vote that cannot be sent must count as refused: then the replica asks
    // for ever, but never raises its term.
    runtime::sleep(4 * super::timers().election_max).await;
    assert_eq!(cluster.hosts[alone].status().term, term);
    cluster.net.heal();
    let index = cluster.write("together again").await;
    cluster.agree_all(index).await;
    assert_eq!(cluster.hosts[leader].status().term, term, "the one that was away did not disturb the leader");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_swallows_everything_does_not_hold_replication_up_for_ever() {
    let cluster = Cluster::three().await;
    let leader = cluster.leader().await;
    let deaf = cluster.others(leader)[0];
    let link = (cluster.hosts[leader].node, cluster.hosts[deaf].node);
    // It still gets votes and heartbeats from nobody, but cannot win: its pre-votes meet a live leader.
    cluster.net.faults.lock().swallow.insert(link);
    for number in 0..20 {
        cluster.write(format!("{number}")).await;
    }
    let index = cluster.write("swallowed").await;
    // What was swallowed stays unanswered; only our own deadline can end the stream.
    cluster.net.faults.lock().swallow.clear();
    cluster.agree_all(index).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_id_is_never_reused() {
    let cluster = Cluster::three().await;
    let host = &cluster.hosts[0];
    let engine = host.base.engine();
    let record = |replica: u64, tombstone: bool| {
        let record = proto::ReplicaRecord { shard: SHARD.0, replica, tombstone, ..Default::default() };
        let mut batch = Batch::new();
        batch.put(Family::Raft, log_keys::replica(SHARD), record.encode_to_vec());
        engine.write(batch).expect("written");
    };
    host.group.stop().await;
    let start = |replica: u64| {
        let options = crate::raft::Options::new(SHARD, ReplicaId(replica), NodeId(1));
        let machine = Box::new(super::TestMachine::open(SHARD, engine.clone()));
        let transport = std::sync::Arc::new(super::Link { net: cluster.net.clone(), me: NodeId(1) });
        let clock = runtime::Clock::system();
        crate::raft::Group::start(options, engine.clone(), host.writer.clone(), machine, transport, clock)
    };
    record(10, false);
    let refused = start(11).await.err().expect("the log here is that of replica 10");
    assert!(refused.to_string().contains("r10"), "{refused}");
    record(10, true);
    let refused = start(10).await.err().expect("replica 10 was destroyed");
    assert!(refused.to_string().contains("destroyed"), "{refused}");
    record(10, false);
    start(10).await.expect("it is the one").stop().await;
    cluster.stop().await;
}
