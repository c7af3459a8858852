//! Whoever follows a shard's changes is told of every version once, at whichever replica, however far behind.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{House, LOOK_EVERY, PATIENCE};
use crate::shard::FollowRequest;
use crate::storage::changes::{Change, PageLimits};
use crate::storage::mvcc;
use crate::types::{Action, Operation, Reason, Request, Response, Result, Timestamp, Write};
use crate::types::{Position, Step};

const PAGE: PageLimits = PageLimits { changes_max: 7, bytes_max: 1 << 20 };

/// Somebody who follows the only shard of the table, asking one node after the other.
struct Follower {
    position: Position,
    told: Vec<Change>,
    with_replaced: bool,
}

impl Follower {
    fn from(after: Timestamp, with_replaced: bool) -> Follower {
        Follower { position: Position { after, step: None }, told: Vec::new(), with_replaced }
    }

    /// One page at a node; whether it told anything.
    fn page(&mut self, house: &House, id: u64) -> Result<bool> {
        let node = house.node(id);
        let shard = node.replicas().get(house.shard_of("k").id).expect("each node has a replica");
        let state = shard.state();
        let request = FollowRequest {
            start: state.start.clone(),
            end: state.end.clone(),
            position: self.position.clone(),
            with_replaced: self.with_replaced,
            limits: PAGE,
            until: None,
        };
        let deadline = node.clock().now() + Duration::from_millis(20);
        let life = house.life(id).expect("the node runs");
        let page = life.runtime.block_on(shard.changes(state.epoch, request, deadline))?.body;
        assert!(page.position.after >= self.position.after, "a position never falls back");
        let told = !page.changes.is_empty();
        self.position = page.position;
        self.told.extend(page.changes);
        Ok(told)
    }

    /// Asks node after node until none has anything new and all have come to the newest position.
    fn catch_up(&mut self, house: &House, newest: Timestamp) {
        let mut id = 0;
        while self.position.after < newest || self.position.step.is_some() {
            id = id % 3 + 1;
            self.page(house, id).expect("the history has it");
        }
    }

    /// Compares what was told with what is stored.
    fn assert_complete(&self, house: &House, keys: &[&'static str]) {
        let node = house.node(1);
        let layout = node.directory().table_by_name("t").expect("it is there").layout.clone();
        for key in keys {
            let encoded = layout.encode(key.as_bytes());
            let mut stored = mvcc::history(&**node.engine(), &encoded, Timestamp::MAX, 10_000).expect("reads");
            stored.reverse();
            let told: Vec<_> = self.told.iter().filter(|change| change.key == encoded).collect();
            let versions: Vec<_> = told.iter().map(|change| change.version.clone()).collect();
            assert_eq!(versions, stored, "{key}");
            if self.with_replaced {
                let before = std::iter::once(None).chain(stored.iter().cloned().map(Some));
                for (change, before) in told.iter().zip(before) {
                    assert_eq!(change.replaced, before, "{key}");
                }
            }
        }
        let known: Vec<Bytes> = keys.iter().map(|key| layout.encode(key.as_bytes())).collect();
        assert!(self.told.iter().all(|change| known.contains(&change.key)), "nothing is invented");
    }
}

const KEYS: [&str; 5] = ["k", "l", "m", "n", "o"];

#[test]
fn a_follower_is_told_of_every_version_once_at_whichever_replica_and_however_far_behind() {
    let (house, _, _) = House::with_one_shard();
    let begun = house.node(1).replicas().get(house.shard_of("k").id).expect("it is there").state().last_timestamp;
    let mut close = Follower::from(begun, false);
    let mut asking = Follower::from(begun, true);
    let mut newest = begun;
    for round in 0..12_u64 {
        for (at, key) in KEYS.iter().enumerate() {
            if round % (at as u64 + 1) == 0 {
                newest = house.put(key, format!("{round}"), None).body.timestamp;
            }
        }
        // Most of the time it keeps up; the other one comes seldom.
        if round % 5 != 4 {
            close.catch_up(&house, newest);
        }
        if round % 4 == 3 {
            asking.catch_up(&house, newest);
        }
    }
    for follower in [&mut close, &mut asking] {
        follower.catch_up(&house, newest);
        follower.assert_complete(&house, &KEYS);
    }
    // Who begins now is told the same.
    let mut late = Follower::from(begun, true);
    late.catch_up(&house, newest);
    late.assert_complete(&house, &KEYS);
    assert_eq!(late.told.len(), close.told.len());
    let mut middle = Follower::from(close.told[close.told.len() / 2].version.timestamp, false);
    middle.catch_up(&house, newest);
    assert!(
        middle.told.iter().all(|change| change.version.timestamp > close.told[close.told.len() / 2].version.timestamp)
    );
}

#[test]
fn what_the_history_has_lost_is_refused_and_not_passed_over() {
    let (house, leader, _) = House::with_one_shard();
    // Without request ids: a version that carries the outcome of its request stays for longer than it must here.
    let put = |value: &'static str| {
        let action = Action::Put { value: value.into(), ttl_ms: None };
        let write = Write { operations: vec![Operation { key: "k".into(), action }], ..Write::default() };
        match house.execute(leader, Request::Write(write)).expect("written") {
            Response::Written(answer) => answer.body.timestamp,
            other => panic!("a write is answered with {other:?}"),
        }
    };
    let (first, second) = (put("1"), put("2"));
    let shard = house.node(leader).replicas().get(house.shard_of("k").id).expect("it leads");
    let state = shard.state();
    let beyond = Position { after: first, step: None };
    let request = |position: &Position| FollowRequest {
        start: state.start.clone(),
        end: state.end.clone(),
        position: position.clone(),
        with_replaced: false,
        limits: PAGE,
        until: None,
    };
    let ask = |position: &Position| {
        let node = house.node(leader);
        let deadline = node.clock().now() + Duration::from_millis(20);
        let life = house.life(leader).expect("it runs");
        life.runtime.block_on(shard.changes(state.epoch, request(position), deadline))
    };
    assert_eq!(ask(&beyond).expect("it is all there").body.changes.len(), 1);
    // The history of a table has a beginning as soon as it is looked after, also if nothing was removed yet.
    let deadline = Instant::now() + PATIENCE;
    while shard.state().horizon == Timestamp::ZERO {
        assert!(Instant::now() < deadline, "the history has no beginning");
        std::thread::sleep(LOOK_EVERY);
    }
    // That it begins later than a position is nothing, where nothing was before.
    let horizon = shard.state().horizon;
    assert!(horizon < first);
    let position = Position::after;
    assert_eq!(ask(&position(horizon.previous())).expect("nothing is gone").body.changes.len(), 2);
    assert_eq!(ask(&position(Timestamp::ZERO)).expect("nothing is gone").body.changes.len(), 2);

    let life = house.life(leader).expect("it runs");
    shard.set_history_ms(0);
    life.runtime.block_on(shard.upkeep(house.node(leader).clock().now() + PATIENCE));
    assert!(shard.state().horizon >= second);
    assert_eq!(ask(&position(first)).expect_err("what came then may be gone").reason, Reason::CursorTrimmed);
    assert_eq!(ask(&position(second)).expect("it was told of all").body.changes.len(), 0);
    let step = Some(Step { upto: second, before: state.end.clone(), whole: false });
    let within = Position { after: first, step };
    assert_eq!(ask(&within).expect_err("it began before").reason, Reason::CursorTrimmed);
    let elsewhere = FollowRequest { end: Bytes::from_static(&[0xff; 8]), ..request(&beyond) };
    let node = house.node(leader);
    let asked = life.runtime.block_on(shard.changes(state.epoch, elsewhere, node.clock().now()));
    assert_eq!(asked.expect_err("that is another's").reason, Reason::WrongEpoch);
}
