//! Neighbours that become one, whatever crashes, moves or is wiped meanwhile.

use std::time::Instant;

use super::{House, LOOK_EVERY, NO_END, PATIENCE};
use crate::types::{NodeId, Reason, ShardId, Slot};
use crate::wire::admin::{SplitPoint, SplitReport};

const KEYS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// Wants a merge, whatever crashes meanwhile.
fn want_merge(house: &mut House, victim: u64, asked: u64, left: ShardId, right: ShardId) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = house.ask(asked, async |control| control.merge_shards(left, right, false).await) {
        // The first attempt may have been all it took.
        if error.reason == Reason::UnknownShard {
            return;
        }
        assert!(Instant::now() < deadline, "not wanted: {error}");
        house.mind(victim);
    }
}

/// Waits until the catalog knows this many shards of the table, and no replica of `right` is left in storage. A merge that
/// was abandoned, because a member crashed when the right shard was sealed, is wanted again.
fn until_merged(house: &mut House, victim: u64, left: ShardId, right: ShardId, shards: usize) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        house.mind(victim);
        let lives = |id: &NodeId| {
            let record = crate::shard::Record::load(&*house.machines[id].memory, right).expect("it reads");
            record.is_some_and(|record| !record.tombstone)
        };
        // All of them: whoever has an old picture takes what was split and merged again for still split.
        let all_know = house.machines.keys().all(|id| {
            let directory = house.life(id.0).and_then(|life| life.started.as_ref()).map(|(node, _)| node.directory());
            let table = directory.as_ref().and_then(|directory| directory.table_by_name("t"));
            table.is_some_and(|table| table.shards.len() == shards)
        });
        let still: Vec<u64> = house.machines.keys().filter(|id| lives(id)).map(|id| id.0).collect();
        let directory = house.node(victim % 3 + 1).directory();
        let known = directory.table_by_name("t").map_or(0, |table| table.shards.iter().len());
        if all_know && still.is_empty() {
            return;
        }
        if directory.shard(left).is_some_and(|left| left.merge.is_none()) && directory.shard(right).is_some() {
            want_merge(house, victim, victim % 3 + 1, left, right);
        }
        if Instant::now() >= deadline {
            panic!("{known} shards, and {right} is still on {still:?}:{}", standing(house, &[left, right]));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// How the replicas of some shards stand, a line each.
fn standing(house: &House, shards: &[ShardId]) -> String {
    let mut text = String::new();
    for &shard in shards {
        for id in house.machines.keys().filter(|id| house.life(id.0).is_some()) {
            let node = house.node(id.0);
            let wanted = node.directory().shard(shard).cloned();
            text += &format!("\n{id}, {shard}: wanted {wanted:?}");
            if let Some(replica) = node.replicas().get(shard) {
                let state = replica.state();
                let state = (state.epoch, state.sealed_for, state.divided_at);
                text += &format!("; is {:?}, epoch, sealed, divided {state:?}", replica.group().status());
            }
        }
    }
    text
}

fn split(house: &mut House, victim: u64, asked: u64, shard: ShardId) -> SplitReport {
    let half = SplitPoint::Slot(Slot(0x8000));
    let deadline = Instant::now() + PATIENCE;
    loop {
        match house.ask(asked, async |control| control.split_shard(shard, half.clone(), false).await) {
            Ok(report) => return report,
            Err(error) => assert!(Instant::now() < deadline, "not split: {error}"),
        }
        house.mind(victim);
    }
}

#[test]
fn a_crash_while_two_shards_are_merged_only_delays_it() {
    let mut house = House::founded();
    house.create(1, "t", 1);
    house.settle(1);
    let left = house.shards()[0].id;
    house.serves(&KEYS);
    // Who leads the left one, who leads the right one, who follows: each is hit at each of its steps by one of these.
    for (round, writes) in [0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 0, 1, 2, 3, 4, 5, 7].into_iter().enumerate() {
        let right = split(&mut house, 1, 1 + round as u64 % 3, left).right.id;
        house.settle(1);
        house.serves(&KEYS);
        let (leads, follows) = (house.leader_of(left), house.leader_of(right) % 3 + 1);
        let victim = [leads, follows, house.leader_of(right)][round % 3];
        house.limit(victim, writes);
        want_merge(&mut house, victim, victim % 3 + 1, left, right);
        until_merged(&mut house, victim, left, right, 1);
        house.limit(victim, NO_END);
        house.settle(victim);
        house.serves(&KEYS);
        house.assert_equal();
        house.restart_changes_nothing(victim);
    }
}

#[test]
fn a_node_that_sleeps_through_a_merge_finds_its_way() {
    let mut house = House::founded();
    house.create(1, "t", 2);
    house.settle(1);
    let shards = house.shards();
    let (left, right) = (shards[0].id, shards[1].id);
    house.serves(&KEYS);
    let victim = if house.leader_of(left) == 1 { 2 } else { 1 };
    // All are asked to be there before anything is sealed; so the merge waits for a node that is away.
    house.crash(victim);
    want_merge(&mut house, victim, 3, left, right);
    assert_eq!(house.shards().len(), 2);
    house.write_and_read("a").expect("nothing is sealed");
    house.start(victim, NO_END);
    until_merged(&mut house, victim, left, right, 1);
    house.settle(victim);
    // One that was merged is split and merged again while a node is wiped.
    let right = split(&mut house, victim, 3, left).right.id;
    house.wipe(victim);
    house.start(victim, NO_END);
    want_merge(&mut house, victim, 3, left, right);
    until_merged(&mut house, victim, left, right, 1);
    house.settle(victim);
    house.serves(&KEYS);
    house.assert_equal();
}

#[test]
fn the_replicas_of_the_right_one_are_brought_beside_those_of_the_left() {
    let mut house = House::of(4);
    house.ask(3, async |control| control.set_balancing(true).await).expect("paused");
    house.create(1, "t", 2);
    house.settle(1);
    house.serves(&KEYS);
    let shards = house.shards();
    let (left, right) = (&shards[0], &shards[1]);
    // Two of the three lie elsewhere, if they do not already; and one moves away from under the merge.
    let off = (1..=4).find(|&id| left.replica_on(NodeId(id)).is_none()).expect("one of four");
    if right.replica_on(NodeId(off)).is_none() {
        let from = right.replicas[0].node;
        house.ask(3, async |control| control.move_shard(right.id, from, NodeId(off), false).await).expect("wanted");
        house.settle(1);
    }
    want_merge(&mut house, 1, 3, left.id, right.id);
    let refused =
        house.ask(3, async |control| control.move_shard(right.id, left.replicas[0].node, NodeId(off), false).await);
    assert!(refused.is_err(), "it goes where the left one goes");
    let from = left.replicas[2].node;
    let moved = house.ask(3, async |control| control.move_shard(left.id, from, NodeId(off), false).await);
    // Unless the replica of the right one that was there has not gone yet, or all is done.
    drop(moved);
    until_merged(&mut house, 1, left.id, right.id, 1);
    house.settle(1);
    house.serves(&KEYS);
    house.assert_equal();
}

#[test]
fn a_merge_that_makes_no_sense_is_refused_and_changes_nothing() {
    let mut house = House::founded();
    house.create(1, "t", 3);
    house.settle(1);
    let shards = house.shards();
    let refused = |left: ShardId, right: ShardId, dry_run: bool| {
        let answer = house.ask(2, async |control| control.merge_shards(left, right, dry_run).await);
        answer.expect_err("refused").reason
    };
    for dry_run in [true, false] {
        assert_eq!(refused(shards[0].id, shards[2].id, dry_run), Reason::InvalidRequest, "no neighbours");
        assert_eq!(refused(shards[1].id, shards[0].id, dry_run), Reason::InvalidRequest, "the other way round");
        assert_eq!(refused(shards[1].id, shards[1].id, dry_run), Reason::InvalidRequest);
        assert_eq!(refused(ShardId(99), shards[1].id, dry_run), Reason::UnknownShard);
        assert_eq!(refused(shards[1].id, ShardId(99), dry_run), Reason::UnknownShard);
        assert_eq!(refused(ShardId::SYSTEM, shards[0].id, dry_run), Reason::InvalidRequest);
    }
    let shown = house.ask(2, async |control| control.merge_shards(shards[0].id, shards[1].id, true).await);
    assert_eq!(shown.expect("possible").end, shards[1].end);
    assert_eq!(house.shards(), shards);
}
