//! Logs are trimmed; who falls behind gets a snapshot.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use openraft::entry::RaftEntry;
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};

use super::super::apply::{Applier, SnapshotFiles};
use super::super::codec;
use super::super::types::{Command, LeaderId, LogEntry, LogId, Payload, StoredMembership};
use super::{Base, Cluster, On, SHARD, TestMachine, content, until};
use crate::raft::{LogBounds, SnapshotError, Staged};
use crate::runtime;
use crate::storage::Engine;
use crate::types::ReplicaId;
use crate::wire::proto::internal as proto;

const SMALL: LogBounds =
    LogBounds { bytes_max: 20_000, keep_bytes: 5_000, held_bytes_max: u64::MAX, held_keep_bytes: u64::MAX };

fn payload(number: u64) -> Bytes {
    format!("{number:0500}").into()
}

fn applier(base: &Base) -> Applier {
    let engine: Arc<dyn Engine> = base.engine();
    let machine = Box::new(TestMachine::open(SHARD, engine.clone()));
    Applier::open(SHARD, machine, engine, None).expect("a machine").0
}

async fn apply(applier: &mut Applier, indexes: impl IntoIterator<Item = u64>) {
    let entries = indexes.into_iter().map(|index| {
        let id = LogId::new(LeaderId { term: 1, node_id: 10 }, index);
        Ok((LogEntry::new(id, Payload::Normal(Command(payload(index)))), None))
    });
    applier.apply(futures::stream::iter(entries.collect::<Vec<_>>())).await.expect("applied");
}

async fn position_and_content_of_a_snapshot_are_of_one_moment(on: On) {
    let (from, to) = (Base::new(on), Base::new(on));
    let (mut source, mut target) = (applier(&from), applier(&to));
    assert!(source.get_current_snapshot().await.expect("readable").is_none(), "nothing was applied");
    apply(&mut source, 0..100).await;
    apply(&mut target, 0..3).await;
    let built = source.get_snapshot_builder().await.build_snapshot().await.expect("built");
    let snapshot = source.get_current_snapshot().await.expect("readable").expect("something was applied");
    assert_eq!(snapshot.meta.last_log_id, built.meta.last_log_id);
    // The cut is written only after all this, and holds none of it.
    apply(&mut source, 100..200).await;
    let meta = snapshot.meta.clone();
    target.install_snapshot(&meta, snapshot.snapshot).await.expect("installed");
    assert_eq!(meta.last_log_id.map(|id| id.index), Some(99));
    assert_eq!(target.applied_state().await.expect("known").0, meta.last_log_id);
    let installed = content(&*to.engine(), SHARD);
    assert_eq!(installed.keys().copied().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    assert!(installed.iter().all(|(&index, found)| *found == payload(index)));
    let left = std::fs::read_dir(from.engine().staging()).expect("a directory").count();
    assert_eq!(left, 0, "nothing is left of the files");
    apply(&mut target, 100..150).await;
    assert_eq!(content(&*to.engine(), SHARD).len(), 150);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn position_and_content_of_a_snapshot_are_of_one_moment_in_memory() {
    position_and_content_of_a_snapshot_are_of_one_moment(On::Memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn position_and_content_of_a_snapshot_are_of_one_moment_on_rocksdb() {
    position_and_content_of_a_snapshot_are_of_one_moment(On::Rocks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_not_what_it_claims_stops_the_replica() {
    let (from, to) = (Base::new(On::Memory), Base::new(On::Memory));
    let (mut source, mut target) = (applier(&from), applier(&to));
    apply(&mut source, 0..10).await;
    let snapshot = source.get_current_snapshot().await.expect("readable").expect("something was applied");
    let mut meta = snapshot.meta.clone();
    meta.last_log_id = Some(LogId::new(LeaderId { term: 1, node_id: 10 }, 8));
    assert!(target.install_snapshot(&meta, snapshot.snapshot).await.is_err());
}

async fn a_follower_that_fell_behind_the_purge_catches_up_by_snapshot(on: On) {
    let mut cluster = Cluster::new(on, 3, 0, SMALL).await;
    let first = cluster.write("first").await;
    cluster.agree_all(first).await;
    let leader = cluster.leader().await;
    let behind = cluster.others(leader)[0];
    cluster.crash(behind, false).await;
    for number in 0..100 {
        cluster.write(payload(number)).await;
    }
    // Nobody asked for it: the log has outgrown its bounds.
    let two = cluster.others(behind);
    for &at in &two {
        let group = &cluster.hosts[at].group;
        until("the log is trimmed", || group.status().purged.is_some_and(|purged| purged > first + 10)).await;
        until("the log is within its bounds", || group.log_bytes() < 60 * 500).await;
        let status = group.status();
        assert!(status.last_log - status.purged.expect("trimmed") >= 10, "a tail is kept: {status:?}");
        let snapshot = group.inner.raft.get_snapshot().await.expect("running").expect("there is one after a purge");
        assert!(snapshot.meta.last_log_id.map(|id| id.index) >= status.purged);
    }
    cluster.restart(behind).await;
    let index = cluster.write("last").await;
    let applied = cluster.agree_all(index).await;
    assert_eq!(applied.len(), 102);
    assert!(cluster.net.snapshots.load(Ordering::Relaxed) >= 1);
    let received = cluster.hosts[behind].base.engine().staging();
    let files = std::fs::read_dir(received).expect("a directory");
    let files: usize =
        files.flatten().filter_map(|entry| std::fs::read_dir(entry.path()).ok()).map(Iterator::count).sum();
    assert_eq!(files, 0, "nothing is left of the files received");

    // It goes on from there by itself: from its own log after a restart, and as a leader with snapshots of its own.
    cluster.crash(behind, false).await;
    cluster.restart(behind).await;
    let group = &cluster.hosts[behind].group;
    assert!(group.status().purged.is_some());
    assert!(group.inner.raft.get_snapshot().await.expect("running").is_some(), "also right after a restart");
    let index = cluster.write("after the restart").await;
    cluster.agree_all(index).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_fell_behind_the_purge_catches_up_by_snapshot_in_memory() {
    a_follower_that_fell_behind_the_purge_catches_up_by_snapshot(On::Memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_fell_behind_the_purge_catches_up_by_snapshot_on_rocksdb() {
    a_follower_that_fell_behind_the_purge_catches_up_by_snapshot(On::Rocks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trimming_keeps_what_was_not_applied_and_the_tail() {
    let cluster = Cluster::new(On::Memory, 1, 0, LogBounds { bytes_max: u64::MAX, ..SMALL }).await;
    let group = &cluster.hosts[0].group;
    let mut last = 0;
    for number in 0..60 {
        last = cluster.write(payload(number)).await;
    }
    runtime::sleep(Duration::from_millis(50)).await;
    assert_eq!(group.status().purged, None, "below the bound nothing is trimmed");
    group.snapshot_and_purge().await;
    until("the log is trimmed", || group.status().purged.is_some()).await;
    let status = group.status();
    let purged = status.purged.expect("trimmed");
    assert!(status.snapshot >= Some(purged));
    assert!((10..=13).contains(&(last - purged)), "{purged} of {last}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_every_member_holds_goes_early_and_what_one_lacks_is_kept_for_it() {
    let bounds = LogBounds { bytes_max: 200_000, keep_bytes: 100_000, held_bytes_max: 10_000, held_keep_bytes: 2_000 };
    let mut cluster = Cluster::new(On::Memory, 3, 0, bounds).await;
    let first = cluster.write("first").await;
    cluster.agree_all(first).await;
    // Followers learn with the entries what may go.
    let trimmed = |cluster: &Cluster| {
        cluster.hosts.iter().all(|host| host.group.status().purged.is_some_and(|purged| purged > first + 10))
    };
    for number in 0.. {
        if trimmed(&cluster) {
            break;
        }
        assert!(number < 2_000, "no replica's log came near to what is trimmed whoever lags");
        cluster.write(payload(number)).await;
        runtime::sleep(Duration::from_millis(5)).await;
    }
    let leader = cluster.leader().await;
    let behind = cluster.others(leader)[0];
    let index = cluster.write("before").await;
    cluster.agree_all(index).await;
    cluster.crash(behind, false).await;
    for number in 0..120 {
        cluster.write(payload(number)).await;
    }
    // Time for several trimmings.
    runtime::sleep(Duration::from_millis(800)).await;
    for at in cluster.others(behind) {
        let group = &cluster.hosts[at].group;
        assert!(group.log_bytes() > 120 * 500, "{} bytes are left", group.log_bytes());
        assert!(group.status().purged <= Some(index), "{:?} of {index}", group.status().purged);
    }
    cluster.restart(behind).await;
    let last = cluster.write("last").await;
    cluster.agree_all(last).await;
    assert_eq!(cluster.net.snapshots.load(Ordering::Relaxed), 0, "the log was enough");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_that_no_leader_sends_are_refused() {
    let cluster = Cluster::three().await;
    let index = cluster.write("committed").await;
    cluster.agree_all(index).await;
    let leader = cluster.leader().await;
    let follower = &cluster.hosts[cluster.others(leader)[0]];
    let term = follower.status().term;
    let leader_id = cluster.hosts[leader].replica.0;
    let header = |to: ReplicaId, term: u64, mark: (u64, u64)| proto::SnapshotHeader {
        group: SHARD.0,
        from_replica: leader_id,
        to_replica: to.0,
        vote: Some(proto::Vote { term, node: leader_id, committed: true }),
        mark: Some(codec::mark_to_proto(
            Some(&LogId::new(LeaderId { term: mark.0, node_id: leader_id }, mark.1)),
            &StoredMembership::default(),
        )),
        ..Default::default()
    };
    let me = follower.replica;
    let directory = tempfile::tempdir().expect("a directory");
    for (what, header) in [
        ("for another replica", header(ReplicaId(99), term, (term, index + 5))),
        ("newer than its sender", header(me, term, (term + 1, index + 5))),
        ("against what is committed", header(me, term + 5, (term + 5, index))),
        ("without a position", proto::SnapshotHeader { mark: None, ..header(me, term, (term, 1)) }),
        ("of another machine", header(me, term, (term, index + 5))),
        ("without a vote", proto::SnapshotHeader { vote: None, ..header(me, term, (term, 1)) }),
    ] {
        let staged = staged(directory.path());
        let at = staged.directory().to_owned();
        let refused = follower.group.receive_snapshot(header, staged).await;
        assert!(matches!(refused, Err(SnapshotError::Refused(_))), "{what}: {refused:?}");
        assert!(!at.exists(), "the files of a refused snapshot go");
    }
    let index = cluster.write("all is well").await;
    cluster.agree_all(index).await;
    cluster.stop().await;
}

/// A directory of one file.
fn staged(within: &Path) -> Staged {
    let mut staged = Staged::create(within.join("staged")).expect("a directory");
    let file = staged.directory().join("0");
    std::fs::write(&file, "content").expect("written");
    staged.push(file);
    staged
}

#[test]
fn files_received_go_with_the_snapshot() {
    let directory = tempfile::tempdir().expect("a directory");
    let files = SnapshotFiles::received("test".to_owned(), Default::default(), staged(directory.path()));
    assert!(directory.path().join("staged/0").exists());
    drop(files);
    assert!(!directory.path().join("staged").exists());
}

async fn a_snapshot_whose_sender_gives_up_while_it_is_installed_does_no_harm(on: On) {
    let mut cluster = Cluster::new(on, 3, 0, SMALL).await;
    let first = cluster.write("first").await;
    cluster.agree_all(first).await;
    let leader = cluster.leader().await;
    let behind = cluster.others(leader)[0];
    cluster.crash(behind, false).await;
    for number in 0..100 {
        cluster.write(payload(number)).await;
    }
    for at in cluster.others(behind) {
        let group = &cluster.hosts[at].group;
        until("the log is trimmed", || group.status().purged.is_some_and(|purged| purged > first + 10)).await;
    }
    cluster.net.gives_up.store(true, Ordering::Relaxed);
    cluster.restart(behind).await;
    let index = cluster.write("last").await;
    let applied = cluster.agree_all(index).await;
    assert_eq!(applied.len(), 102);
    assert!(!cluster.net.gives_up.load(Ordering::Relaxed), "a sender has given up");
    let group = cluster.hosts[behind].group.clone();
    assert_ne!(group.status().part, crate::raft::Part::Stopped);
    let staging = cluster.hosts[behind].base.engine().staging();
    until("nothing is left of the files", || {
        std::fs::read_dir(&staging)
            .expect("a directory")
            .all(|entry| std::fs::read_dir(entry.expect("readable").path()).is_ok_and(|files| files.count() == 0))
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_whose_sender_gives_up_while_it_is_installed_does_no_harm_in_memory() {
    a_snapshot_whose_sender_gives_up_while_it_is_installed_does_no_harm(On::Memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_whose_sender_gives_up_while_it_is_installed_does_no_harm_on_rocksdb() {
    a_snapshot_whose_sender_gives_up_while_it_is_installed_does_no_harm(On::Rocks).await;
}
