//! A node goes on alone with what two lost ones have left, in the midst of a merge.

use std::time::Instant;

use super::{House, LOOK_EVERY, Machine, NO_END, PATIENCE};
use crate::catalog::{LostNode, NextIds, RecoveredReplica, RecoveredShard, RecoveryRow};
use crate::keyspace::side;
use crate::node::{Identity, recovery};
use crate::shard::{Record, Survivor};
use crate::storage::{Batch, Engine, Family};
use crate::types::{Epoch, NodeId, ReplicaId, ShardId, Timestamp};

const KEYS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
/// The node that is left.
const LEFT_OVER: u64 = 3;

/// What is found of the two shards on the node that is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// Both as they were when the merge was begun.
    Open,
    /// The right one sealed, and not taken over.
    Sealed,
    /// The left one's log says that the merge is off, and the right one is sealed still.
    Abandoned,
    /// The left one has abandoned the merge, and of the right one there is nothing.
    RightGone,
}

/// Two shards of which the first is to take over the second, which has not happened when two of three nodes are lost.
fn merging() -> (House, ShardId, ShardId) {
    let mut house = House::founded();
    house.create(1, "t", 2);
    house.settle(1);
    house.serves(&KEYS);
    house.assert_equal();
    let (left, right) = (house.shards()[0].id, house.shards()[1].id);
    // A merge waits while a member is away.
    house.crash(1);
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = house.ask(LEFT_OVER, async |control| control.merge_shards(left, right, false).await) {
        assert!(Instant::now() < deadline, "not wanted: {error}");
        std::thread::sleep(LOOK_EVERY);
    }
    house.crash(2);
    house.crash(LEFT_OVER);
    (house, left, right)
}

/// Has all that the left-over node holds go on, as `recover` does, after making it what is to be `found`.
fn recover(house: &House, left: ShardId, right: ShardId, found: Found) {
    let memory = &house.machines[&NodeId(LEFT_OVER)].memory;
    let identity = Identity::load(&**memory).expect("reads").expect("it is a member");
    let all = Survivor::load_all(&**memory).expect("they can be read");
    let sealed = all.iter().map(|survivor| survivor.end.epoch.0).max().expect("some") + 1;
    let mut batch = Batch::new();
    for survivor in &all {
        let shard = survivor.record.shard;
        let mut state = survivor.state.clone().expect("it has applied something");
        let has_begun = shard == right && found != Found::Open;
        let is_over = shard == left && [Found::Abandoned, Found::RightGone].contains(&found);
        if has_begun || is_over {
            state.epoch = Epoch(sealed);
            state.sealed_for = (shard == right).then_some(left);
            batch.put(Family::Data, side::applied(shard), state.encode());
        }
    }
    let goes = |survivor: &Survivor| found == Found::RightGone && survivor.record.shard == right;
    let mut row = RecoveryRow {
        id: 1,
        made_ms: 4_000_000_000_000,
        lost: Vec::new(),
        shards: Vec::new(),
        gone: all.iter().filter(|survivor| goes(survivor)).map(|survivor| survivor.record.shard).collect(),
        next_ids: NextIds { replica: 2_000, ..NextIds::default() },
    };
    for id in [1, 2] {
        let machine = &house.machines[&NodeId(id)];
        let lost = Identity::load(&*machine.memory).expect("reads").expect("it was a member");
        let address = machine.address.to_string();
        row.lost.push(LostNode { node: NodeId(id), incarnation: lost.incarnation, address });
    }
    for (id, survivor) in (1_000..).zip(&all) {
        if goes(survivor) {
            Record { tombstone: true, ..survivor.record.clone() }.put(&mut batch);
            continue;
        }
        let (node, incarnation) = (identity.node, identity.incarnation);
        let heir = RecoveredReplica { id: ReplicaId(id), node, incarnation };
        survivor.take_over(heir.id, node, Timestamp::from_millis(1), false, &mut batch);
        row.shards.push(RecoveredShard { shard: survivor.record.shard, heir, others: Vec::new(), released: false });
    }
    recovery::put(&row, &mut batch);
    memory.write(batch).expect("written");
    memory.sync().expect("synced");
}

fn until(what: &str, house: &House, holds: impl Fn(&House) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds(house) {
        if Instant::now() >= deadline {
            let node = house.node(LEFT_OVER);
            let shards: Vec<_> = node.directory().shards().cloned().collect();
            panic!("{what}: {shards:?}\n{:?}\n{:?}", node.directory().recovery(), node.report());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[test]
fn a_merge_is_abandoned_and_nothing_stays_sealed_when_its_shards_go_on_from_one_replica() {
    for found in [Found::Open, Found::Sealed, Found::Abandoned, Found::RightGone] {
        println!("{found:?}");
        let (mut house, left, right) = merging();
        recover(&house, left, right, found);
        house.machines.retain(|id, _| id.0 == LEFT_OVER);
        house.start(LEFT_OVER, NO_END);
        until("the rows name who is left", &house, |house| {
            let directory = house.node(LEFT_OVER).directory();
            directory.recovery().is_some_and(|row| row.shards.is_empty())
        });
        let directory = house.node(LEFT_OVER).directory();
        let rows = [left, right].map(|shard| directory.shard(shard).expect("it has a row"));
        assert!(rows.iter().all(|row| row.merge.is_none() && row.merging_into.is_none()), "{rows:?}");
        assert_eq!(rows[0].end, rows[1].start);
        let is_served = |key: &&&str| found != Found::RightGone || house.shard_of(key).id == left;
        for key in KEYS.iter().filter(is_served) {
            house.write_and_read(key).expect("it serves");
        }
        // Others come, and all is as it was.
        if found == Found::Sealed {
            for id in [4, 5] {
                house.machines.insert(NodeId(id), Machine::new());
                house.start(id, NO_END);
            }
            house.settle(4);
            house.serves(&KEYS);
            house.assert_equal();
            house.restart_changes_nothing(LEFT_OVER);
        }
    }
}
