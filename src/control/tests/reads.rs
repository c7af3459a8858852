//! Reads of every replica, at every level, as a node answers them to whoever passed them on: by itself or not at all.

use std::time::{Duration, Instant};

use super::{House, LOOK_EVERY, PATIENCE};
use crate::types::{
    Action, Answer, Operation, Outcome, Read, ReadLevel, Reason, Request, RequestId, Response, Result, Role, Slot,
    Timestamp, Token, Versioned, Write,
};
use crate::wire::admin::SplitPoint;

const ROUNDS: u64 = 10;

impl House {
    pub(super) fn put(&self, key: &'static str, value: String, ttl_ms: Option<u64>) -> Answer<Outcome> {
        let leader = self.leader_of(self.shard_of(key).id);
        let issued_ms = self.node(leader).clock().wall_ms();
        let request = RequestId { client: crate::runtime::random_u64(), sequence: 1, issued_ms };
        let operations = vec![Operation { key: key.into(), action: Action::Put { value: value.into(), ttl_ms } }];
        let write = Write { request: Some(request), conditions: vec![], operations };
        match self.execute(leader, Request::Write(write)).expect("written") {
            Response::Written(answer) => answer,
            other => panic!("a write is answered with {other:?}"),
        }
    }

    /// Reads at one node.
    fn read(&self, id: u64, key: &'static str, level: ReadLevel) -> Result<Answer<Option<Versioned>>> {
        let read = Read { keys: vec![key.into()], level, any_replica: true };
        match self.execute(id, Request::Read(read))? {
            Response::Values(mut values) => Ok(values.remove(0)),
            other => panic!("a read is answered with {other:?}"),
        }
    }

    /// A founded house with a table `t` of one shard, all of whose replicas have a leader.
    pub(super) fn with_one_shard() -> (House, u64, Vec<u64>) {
        let mut house = House::founded();
        house.create(1, "t", 1);
        house.settle(1);
        let leader = house.leader_of(house.shard_of("k").id);
        let followers = (1..=3).filter(|id| *id != leader).collect();
        (house, leader, followers)
    }
}

#[test]
fn every_replica_answers_at_every_level_it_can_prove() {
    let (house, leader, followers) = House::with_one_shard();
    for round in 0..ROUNDS {
        let version = house.put("k", format!("v{round}"), None).body.timestamp;
        for id in 1..=3 {
            for level in [
                ReadLevel::Linearizable,
                ReadLevel::MaxAge(Duration::ZERO),
                ReadLevel::AtLeast(Token { timestamp: version }),
                ReadLevel::AsOf(version),
                ReadLevel::Any,
            ] {
                let answer = house.read(id, "k", level).expect("each can prove it");
                let found = answer.body.expect("it is there");
                assert_eq!(found.timestamp, version, "node {id} at {level:?}");
                assert_eq!(answer.header.role == Role::Leader, id == leader);
                assert!(answer.header.as_of >= version);
                assert!(answer.header.age.is_some(), "node {id} at {level:?}: proven by the reads before");
            }
        }
    }
    // What the log has not come to yet only the leader can speak of.
    let next = Timestamp(house.put("k", "last".to_owned(), None).body.timestamp.0 + 1);
    let refused = house.read(followers[0], "k", ReadLevel::AsOf(next)).expect_err("it may still be written");
    assert_eq!((refused.reason, refused.leader.map(|node| node.0)), (Reason::NotLeader, Some(leader)));
    house.read(leader, "k", ReadLevel::AsOf(next)).expect("the leader makes sure");
    let token = ReadLevel::AtLeast(Token { timestamp: next });
    house.read(followers[0], "k", token).expect("the log says it now, and every replica comes to it");
    house.read(followers[0], "k", ReadLevel::AsOf(next)).expect("so it may speak of it");
}

#[test]
fn a_token_of_another_shard_is_met_by_a_proof() {
    let (house, _, followers) = House::with_one_shard();
    let version = house.put("k", "v".to_owned(), None).body.timestamp;
    // Newer than anything this shard will ever have, until it is written to again.
    let elsewhere = Token { timestamp: Timestamp::from_millis(version.millis() + 3_600_000) };
    let answer = house.read(followers[0], "k", ReadLevel::AtLeast(elsewhere)).expect("all there is has been applied");
    assert_eq!(answer.body.map(|found| found.timestamp), Some(version));
    assert!(answer.header.age.is_some());
}

#[test]
fn what_has_run_out_is_told_by_a_follower_only_when_the_log_says_so() {
    let (house, leader, followers) = House::with_one_shard();
    let put_ms = house.put("k", "v".to_owned(), Some(1)).body.timestamp.millis();
    while house.node(leader).clock().wall_ms() <= put_ms + 1 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let refused = house.read(followers[0], "k", ReadLevel::Linearizable).expect_err("the log does not say so yet");
    assert_eq!((refused.reason, refused.leader.map(|node| node.0)), (Reason::NotLeader, Some(leader)));
    let gone = house.read(leader, "k", ReadLevel::Linearizable).expect("the leader has it said");
    assert_eq!(gone.body, None);
    assert!(gone.header.as_of.millis() > put_ms, "whoever takes this for a token will not see the value again");
    let gone = house.read(followers[0], "k", ReadLevel::AtLeast(Token { timestamp: gone.header.as_of }));
    assert_eq!(gone.expect("the log says so").body, None);
}

#[test]
fn no_proof_of_the_whole_speaks_of_its_parts() {
    let (house, _, followers) = House::with_one_shard();
    house.put("k", "v".to_owned(), None);
    let follower = followers[0];
    house.read(follower, "k", ReadLevel::Linearizable).expect("proven");
    assert!(house.read(follower, "k", ReadLevel::Any).expect("answered").header.age.is_some());
    let parent = house.shard_of("k").id;
    let half = SplitPoint::Slot(Slot(0x8000));
    house.ask(3, async |control| control.split_shard(parent, half, false).await).expect("split");
    // Without a read, which would ask for a proof.
    let deadline = Instant::now() + PATIENCE;
    let part = loop {
        let node = house.node(follower);
        let directory = node.directory();
        let table = directory.table_by_name("t").expect("the table");
        let part = table.shards.locate(&table.layout.encode(b"k")).clone();
        let hosted = node.replicas().get(part.id);
        if part.epoch.0 == 2 && hosted.is_some_and(|hosted| hosted.state().epoch == part.epoch) {
            break part.id;
        }
        assert!(Instant::now() < deadline, "the split does not arrive");
        std::thread::sleep(LOOK_EVERY);
    };
    let any = || house.read(follower, "k", ReadLevel::Any).expect("answered").header;
    let first = any();
    assert!((first.shard, first.epoch.0, first.age) == (part, 2, None), "{first:?}");
    while house.read(follower, "k", ReadLevel::Linearizable).is_err() {
        assert!(Instant::now() < deadline, "the part has no leader");
        std::thread::sleep(LOOK_EVERY);
    }
    assert!(any().age.is_some());
}

/// Its data may be removed at any moment, and what is not found then was there.
#[test]
fn a_replica_that_was_stopped_answers_nothing() {
    let (house, _, followers) = House::with_one_shard();
    let version = house.put("k", "v".to_owned(), None).body.timestamp;
    let asked = followers[0];
    house.read(asked, "k", ReadLevel::AtLeast(Token { timestamp: version })).expect("it has it");
    let shard = house.node(asked).replicas().get(house.shard_of("k").id).expect("a replica");
    house.life(asked).expect("it runs").runtime.block_on(shard.stop());
    for level in [ReadLevel::Any, ReadLevel::AtLeast(Token { timestamp: version })] {
        assert_eq!(house.read(asked, "k", level).expect_err("it has gone").reason, Reason::ShardNotHere);
    }
}
