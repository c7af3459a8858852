//! Replicas that move, nodes that drain, leave, are lost and come back.

use std::sync::Arc;
use std::time::Instant;

use super::{House, LOOK_EVERY, Machine, NO_END, PATIENCE};
use crate::catalog::Standing;
use crate::control::Control;
use crate::types::{NodeId, Reason, ShardDescriptor, ShardId};
use crate::wire::admin::{NewTable, SplitPoint};

/// Wants a replica to move, whatever crashes meanwhile. `asked` takes the wish.
fn want_move(house: &mut House, victim: u64, asked: u64, shard: ShardId, from: u64, to: u64) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) =
        house.ask(asked, async |control| control.move_shard(shard, NodeId(from), NodeId(to), false).await)
    {
        assert!(Instant::now() < deadline, "not wanted: {error}");
        house.mind(victim);
    }
}

/// Waits until exactly these nodes have a replica of the shard, in storage too.
fn until_on(house: &mut House, victim: u64, shard: ShardId, nodes: &[u64]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        house.mind(victim);
        let on = |id: &NodeId| {
            let memory = &house.machines[id].memory;
            let record = crate::shard::Record::load(&**memory, shard).expect("it reads");
            record.is_some_and(|record| !record.tombstone)
        };
        let there: Vec<u64> = house.machines.keys().filter(|id| on(id)).map(|id| id.0).collect();
        if there == nodes {
            return;
        }
        assert!(Instant::now() < deadline, "on {there:?}, not {nodes:?}");
        std::thread::sleep(LOOK_EVERY);
    }
}

#[test]
fn a_crash_while_a_replica_moves_only_delays_it() {
    let mut house = House::of(4);
    house.create(1, "t", 1);
    house.settle(1);
    let shard = house.shards()[0].id;
    // Who leads, who follows, who loses its replica and who gets one: each is hit at each of its steps by one of these.
    for (round, writes) in [0, 1, 2, 3, 4, 5, 7, 9, 12, 16, 0, 1, 2, 3, 5, 8].into_iter().enumerate() {
        let key = ["a", "b", "c", "d"][round % 4];
        house.write_and_read(key).expect("it serves");
        let leader = house.leader_of(shard);
        let on: Vec<u64> = house.shards()[0].replicas.iter().map(|replica| replica.node.0).collect();
        let to = (1..=4).find(|id| !on.contains(id)).expect("one of four has none");
        let follower = on.iter().copied().find(|&id| id != leader).expect("three have one");
        let from = if round % 2 == 0 { leader } else { follower };
        let victim = [from, to, leader, follower][round / 2 % 4];
        let asked = (1..=4).find(|&id| id != victim && id != from).expect("four nodes");
        house.limit(victim, writes);
        want_move(&mut house, victim, asked, shard, from, to);
        let there: Vec<u64> = (1..=4).filter(|&id| id != from).collect();
        until_on(&mut house, victim, shard, &there);
        house.limit(victim, NO_END);
        house.settle(victim);
        house.write_and_read(key).expect("it serves");
        house.assert_equal();
    }
}

#[test]
fn a_shard_of_one_replica_moves_and_its_leader_with_it() {
    let mut house = House::founded();
    let wish = NewTable { replication: Some(1), ..NewTable::hash("t", 1) };
    house.ask(3, async |control| control.create_table(wish).await.map(|_| ())).expect("a table");
    house.settle(1);
    let shard = house.shards()[0].id;
    for _ in 0..3 {
        house.write_and_read("a").expect("it serves");
        let from = house.leader_of(shard);
        let to = from % 3 + 1;
        want_move(&mut house, to, from, shard, from, to);
        until_on(&mut house, to, shard, &[to]);
        house.settle(to);
        assert_eq!(house.leader_of(shard), to);
    }
    house.write_and_read("a").expect("it serves");
}

#[test]
fn whoever_creates_a_table_learns_who_leads_it_from_nodes_that_it_never_asked_anything() {
    let house = House::of(5);
    let wish = NewTable { replication: Some(1), ..NewTable::hash("t", 5) };
    let made = house.ask(4, async |control| control.create_table(wish).await).expect("a table");
    let led: Vec<_> = made.shards.iter().filter_map(|shard| shard.leader).collect();
    assert_eq!(led.len(), 5, "each of its shards has a leader, and on five nodes: {led:?}");
}

#[test]
fn a_replica_moves_while_its_shard_is_split() {
    let mut house = House::of(4);
    house.create(1, "t", 1);
    house.settle(1);
    let parent = house.shards()[0].id;
    house.serves(&["a", "b", "c", "d"]);
    let from = house.leader_of(parent);
    let on: Vec<u64> = house.shards()[0].replicas.iter().map(|replica| replica.node.0).collect();
    let to = (1..=4).find(|id| !on.contains(id)).expect("one of four has none");
    want_move(&mut house, from, to, parent, from, to);
    let report = house.ask(to, async |control| control.split_shard(parent, SplitPoint::Middle, false).await);
    let child = report.expect("it is split when its members are settled").right.id;
    let there: Vec<u64> = (1..=4).filter(|&id| id != from).collect();
    for shard in [parent, child] {
        until_on(&mut house, from, shard, &there);
    }
    house.settle(from);
    house.write_and_read("e").expect("both parts serve");
    house.assert_equal();
}

#[test]
fn a_move_that_makes_no_sense_is_refused_and_changes_nothing() {
    let mut house = House::of(4);
    house.create(1, "t", 1);
    house.settle(1);
    let shards = house.shards();
    let shard = shards[0].id;
    let on: Vec<u64> = shards[0].replicas.iter().map(|replica| replica.node.0).collect();
    let off = (1..=4).find(|id| !on.contains(id)).expect("one of four has none");
    let refused = |shard: ShardId, from: u64, to: u64, dry_run: bool| {
        let moved = house.ask(2, async |control| control.move_shard(shard, NodeId(from), NodeId(to), dry_run).await);
        moved.expect_err("refused").reason
    };
    for dry_run in [true, false] {
        assert_eq!(refused(ShardId(99), on[0], off, dry_run), Reason::UnknownShard);
        assert_eq!(refused(shard, on[0], 9, dry_run), Reason::UnknownNode);
        assert_eq!(refused(shard, on[0], on[1], dry_run), Reason::InvalidRequest, "it has one there");
        assert_eq!(refused(shard, 9, 9, dry_run), Reason::InvalidRequest, "it has none there");
        assert_eq!(refused(ShardId::SYSTEM, 1, 2, dry_run), Reason::InvalidRequest);
    }
    let (from, to) = (NodeId(on[0]), NodeId(off));
    let shown = house.ask(2, async |control| control.move_shard(shard, from, to, true).await).expect("possible");
    assert!(shown.replicas.iter().any(|replica| replica.node == to));
    assert_eq!(house.shards(), shards);
}

/// Waits until a condition holds, by what node 3 says.
fn until(house: &House, what: &str, so: impl AsyncFn(&Control) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !house.ask(3, async |control| so(control).await) {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

#[test]
fn a_node_drains_and_leaves_and_its_directory_does_not_come_back() {
    let mut house = House::of(4);
    house.create(1, "t", 8);
    house.settle(1);
    house.serves(&["a", "b", "c", "d", "e", "f", "g", "h"]);
    // Node 1 founded the cluster and most likely leads the catalog.
    let drained = NodeId(1);
    let refused = house.ask(3, async |control| control.decommission(drained, false).await).expect_err("not empty");
    assert_eq!(refused.reason, Reason::InvalidRequest, "{refused}");
    // Node 4 has little as yet, and would be given some while this looks at what a dry run changes.
    house.ask(3, async |control| control.set_balancing(true).await).expect("paused");
    until(&house, "what was begun is done", async |control| {
        control.balance(None).await.is_ok_and(|report| report.moving.is_empty())
    });
    let before = house.shards();
    house.ask(3, async |control| control.set_standing(drained, Standing::Draining, true).await).expect("possible");
    let report = house.ask(3, async |control| control.balance(Some((drained, Standing::Draining))).await);
    assert!(report.expect("a plan").steps.iter().any(|step| step.contains("its node drains")));
    assert_eq!(house.shards(), before, "nothing was done");
    house.ask(3, async |control| control.set_balancing(false).await).expect("it goes on");

    house.ask(3, async |control| control.set_standing(drained, Standing::Draining, false).await).expect("wanted");
    until(&house, "it is empty", async |control| {
        let report = control.balance(None).await;
        report.is_ok_and(|report| report.nodes.iter().any(|share| share.node == drained && share.replicas == 0))
    });
    let deadline = Instant::now() + PATIENCE;
    while house.node(1).replicas().all().len() > 1 {
        assert!(Instant::now() < deadline, "it removes what has moved");
        std::thread::sleep(LOOK_EVERY);
    }
    house.settle(1);
    house.serves(&["a", "b", "c", "d", "e", "f", "g", "h"]);
    house.assert_equal();
    // New tables are placed on the others.
    house.ask(3, async |control| control.create_table(NewTable::hash("u", 2)).await.map(|_| ())).expect("a table");
    let holds = |shard: &Arc<ShardDescriptor>| shard.replica_on(drained).is_some() && shard.id != ShardId::SYSTEM;
    assert!(!house.node(3).directory().shards().any(holds));

    house.ask(3, async |control| control.decommission(drained, false).await).expect("it may go");
    let fatal = house.node(1).fatal();
    let deadline = Instant::now() + PATIENCE;
    while fatal.borrow().is_none() {
        assert!(Instant::now() < deadline, "it ends by itself");
        std::thread::sleep(LOOK_EVERY);
    }
    house.crash(1);
    let directory = house.node(3).directory();
    assert!(directory.node(drained).is_none());
    // It is not let in again …
    house.start(1, NO_END);
    let fatal = house.node(1).fatal();
    let deadline = Instant::now() + PATIENCE;
    while fatal.borrow().is_none() {
        assert!(Instant::now() < deadline, "it is refused");
        std::thread::sleep(LOOK_EVERY);
    }
    assert_eq!(fatal.borrow().as_ref().map(|error| error.reason), Some(Reason::NodeIdTaken));
    // … but a node with an empty directory is.
    house.wipe(1);
    house.start(1, NO_END);
    house.settle(1);
    house.write_and_read("a").expect("it serves");
}

#[test]
fn what_a_lost_node_held_is_made_anew_elsewhere() {
    let mut house = House::of(4);
    house.create(1, "t", 4);
    house.settle(1);
    house.serves(&["a", "b", "c", "d"]);
    house.crash(2);
    let lost = NodeId(2);
    until(&house, "it is made anew", async |control| {
        let report = control.balance(None).await;
        report.is_ok_and(|report| {
            report.moving.is_empty() && report.nodes.iter().any(|share| share.lost && share.replicas == 0)
        })
    });
    let status = house.ask(3, async |control| control.status().await);
    assert!(status.notes.iter().any(|note| note.contains("every replica it held has been made anew")), "{status:?}");
    assert_eq!(status.problems, ["node 2 does not answer"]);
    house.serves(&["a", "b", "c", "d"]);
    house.assert_equal();
    // It comes back after all: its old replicas go, and it gets its share again.
    house.start(2, NO_END);
    house.settle(2);
    until(&house, "it gets its share", async |control| {
        let report = control.balance(None).await;
        report.is_ok_and(|report| {
            report.settled && report.nodes.iter().any(|share| share.node == lost && share.replicas > 0)
        })
    });
    house.assert_equal();
}

#[test]
fn nothing_is_moved_while_balancing_is_paused() {
    let mut house = House::founded();
    house.create(1, "t", 6);
    house.settle(1);
    house.ask(3, async |control| control.set_balancing(true).await).expect("paused");
    house.machines.insert(NodeId(4), Machine::new());
    house.start(4, NO_END);
    house.settle(1);
    let before = house.shards();
    until(&house, "it has a plan", async |control| {
        control.balance(None).await.is_ok_and(|report| report.paused && !report.steps.is_empty())
    });
    assert_eq!(house.shards(), before);
    house.ask(3, async |control| control.set_balancing(false).await).expect("resumed");
    until(&house, "the newcomer gets its share", async |control| {
        control.balance(None).await.is_ok_and(|report| report.settled && report.nodes[3].replicas >= 4)
    });
    house.settle(1);
    house.assert_equal();
}
