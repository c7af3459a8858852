//! The machine against its promises, on the memory engine.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::checksum;
use super::command::{Command, Proposal};
use super::division::Home;
use super::machine::ShardMachine;
use super::state::{REQUEST_RETENTION_MS, State};
use crate::raft::{Entry, Machine};
use crate::runtime::Clock;
use crate::storage::mvcc;
use crate::storage::{Engine, Lookup, Memory, Tier};
use crate::types::{
    Action, Condition, Epoch, Incarnation, NodeId, Operation, Outcome, Outcomes, Reason, RequestId, Result, ShardId,
    TableId, Test, Timestamp, Write,
};

const SHARD: ShardId = ShardId(7);
const NOW_MS: u64 = 1_700_000_000_000;

/// One replica, fed by hand.
struct Replica {
    engine: Arc<dyn Engine>,
    machine: ShardMachine,
    index: u64,
}

impl Replica {
    fn new() -> Replica {
        let engine: Arc<dyn Engine> = Memory::new().expect("a temporary directory");
        Replica { machine: open(&engine), engine, index: 0 }
    }

    fn reopen(&mut self) {
        self.machine = open(&self.engine);
    }

    fn apply(&mut self, proposals: &[Proposal]) -> Vec<Outcomes> {
        let entries = proposals.iter().map(|proposal| {
            self.index += 1;
            Entry { index: self.index, payload: Some(proposal.encode()), members_at: 0 }
        });
        let entries: Vec<Entry> = entries.collect();
        let mark = Bytes::from(format!("mark {}", self.index));
        self.machine.apply(entries, mark).expect("storage works")
    }

    fn run(&mut self, write: Write) -> Result<Outcome> {
        self.run_at(NOW_MS, write)
    }

    fn run_at(&mut self, stamped_ms: u64, write: Write) -> Result<Outcome> {
        let commands = vec![Command { epoch: Epoch(1), write, upkeep: None }];
        let proposal = Proposal { stamped: Timestamp::from_millis(stamped_ms), commands, ..Proposal::default() };
        self.apply(&[proposal]).remove(0).remove(0)
    }

    fn get(&self, key: &str) -> Option<String> {
        let state = self.machine.shared().state.load_full();
        match mvcc::newest(&*self.engine, &encoded(key), Timestamp::MAX, Tier::Disk).expect("storage works") {
            Lookup::Found(version) if version.lives_at(state.last_timestamp.millis()) => {
                version.value.map(|value| String::from_utf8(value.to_vec()).expect("text"))
            }
            _ => None,
        }
    }

    fn checksum(&mut self) -> (u32, u64) {
        self.apply(&[Proposal { stamped: Timestamp::ZERO, checksum: Some(self.index), ..Proposal::default() }]);
        let shared = self.machine.shared();
        let mark = shared.marks.lock().last().cloned().expect("just noted");
        let sum = checksum::of(&mark).expect("storage works");
        shared.marks.lock().clear();
        (sum.checksum, sum.versions)
    }
}

fn open(engine: &Arc<dyn Engine>) -> ShardMachine {
    let fresh = State::fresh(TableId(1), encoded("a"), encoded("z"), Epoch(1));
    let home = Home { node: NodeId(1), incarnation: Incarnation(1), news: tokio::sync::mpsc::channel(1).0 };
    ShardMachine::open(SHARD, engine.clone(), fresh, Clock::system(), home).expect("the state can be read")
}

fn encoded(key: &str) -> Bytes {
    let range = crate::types::Partitioning::Range { group_delimiter: None };
    crate::keyspace::Layout { table: TableId(1), partitioning: range }.encode(key.as_bytes())
}

fn operation(key: &str, action: Action) -> Operation {
    Operation { key: encoded(key), action }
}

fn put(key: &str, value: &str) -> Write {
    let action = Action::Put { value: Bytes::copy_from_slice(value.as_bytes()), ttl_ms: None };
    Write { operations: vec![operation(key, action)], ..Write::default() }
}

fn increment(key: &str, delta: i64) -> Write {
    Write { operations: vec![operation(key, Action::Increment { delta })], ..Write::default() }
}

fn with_id(mut write: Write, client: u64, sequence: u64, issued_ms: u64) -> Write {
    write.request = Some(RequestId { client, sequence, issued_ms });
    write
}

fn when(mut write: Write, key: &str, test: Test) -> Write {
    write.conditions.push(Condition { key: encoded(key), test });
    write
}

#[test]
fn timestamps_grow_whatever_the_clocks_do() {
    let mut replica = Replica::new();
    let first = replica.run_at(NOW_MS, put("k", "1")).unwrap().timestamp;
    let second = replica.run_at(NOW_MS - 60_000, put("k", "2")).unwrap().timestamp;
    assert_eq!(second, first.next());
    assert_eq!(replica.get("k").as_deref(), Some("2"));
}

#[test]
fn a_failed_condition_is_an_answer_that_shows_what_it_saw() {
    let mut replica = Replica::new();
    let version = replica.run(put("k", "old")).unwrap().timestamp;
    for (test, holds) in [
        (Test::Absent, false),
        (Test::Present, true),
        (Test::Version(version), true),
        (Test::Version(version.next()), false),
        (Test::Value("old".into()), true),
        (Test::Value("new".into()), false),
    ] {
        let outcome = replica.run(when(put("other", "x"), "k", test)).unwrap();
        assert_eq!(outcome.applied, holds);
        if !holds {
            let seen = outcome.observed.expect("what it saw").current.expect("a value");
            assert_eq!((seen.timestamp, &seen.value[..]), (version, &b"old"[..]));
        }
    }
    let outcome = replica.run(when(put("k", "x"), "nothing", Test::Present)).unwrap();
    assert_eq!(outcome.observed.expect("what it saw").current, None);
}

#[test]
fn operations_of_a_batch_see_the_earlier_ones_and_happen_together_or_not_at_all() {
    let mut replica = Replica::new();
    let batch = Write {
        operations: vec![
            operation("n", Action::Put { value: "5".into(), ttl_ms: None }),
            operation("n", Action::Increment { delta: 3 }),
            operation("m", Action::Increment { delta: -1 }),
        ],
        ..Write::default()
    };
    let outcome = replica.run(batch).unwrap();
    assert_eq!(outcome.integers, vec![None, Some(8), Some(-1)]);
    assert_eq!((replica.get("n").as_deref(), replica.get("m").as_deref()), (Some("8"), Some("-1")));

    replica.run(put("text", "no number")).unwrap();
    let batch = Write {
        operations: vec![operation("n", Action::Delete), operation("text", Action::Increment { delta: 1 })],
        ..Write::default()
    };
    assert_eq!(replica.run(batch).unwrap_err().reason, Reason::NotAnInteger);
    assert_eq!(replica.get("n").as_deref(), Some("8"));
    replica.run(put("n", &i64::MAX.to_string())).unwrap();
    assert_eq!(replica.run(increment("n", 1)).unwrap_err().reason, Reason::NotAnInteger);
}

#[test]
fn deleting_nothing_makes_no_version() {
    let mut replica = Replica::new();
    let delete = Write { operations: vec![operation("k", Action::Delete)], ..Write::default() };
    assert!(replica.run(delete.clone()).unwrap().applied);
    assert_eq!(mvcc::history(&*replica.engine, &encoded("k"), Timestamp::MAX, 10).unwrap().len(), 0);
    replica.run(put("k", "v")).unwrap();
    replica.run(delete.clone()).unwrap();
    replica.run(delete).unwrap();
    assert_eq!(replica.get("k"), None);
    assert_eq!(mvcc::history(&*replica.engine, &encoded("k"), Timestamp::MAX, 10).unwrap().len(), 2);
}

#[test]
fn a_repeat_has_one_effect_and_one_answer() {
    let mut replica = Replica::new();
    let request = with_id(increment("n", 5), 1, 1, NOW_MS);
    let first = replica.run(request.clone()).unwrap();
    assert_eq!(replica.run(request.clone()).unwrap(), first);
    // In one entry with itself, under another epoch's stamp, after other writes, after a restart.
    let command = Command { epoch: Epoch(1), write: with_id(increment("n", 1), 1, 2, NOW_MS), upkeep: None };
    let stamped = Timestamp::from_millis(NOW_MS);
    let twice = Proposal { stamped, commands: vec![command.clone(), command], ..Proposal::default() };
    let outcomes = replica.apply(&[twice.clone(), twice]).concat();
    assert!(outcomes.iter().all(|outcome| outcome == &outcomes[0]));
    replica.run(put("n", "100")).unwrap();
    replica.reopen();
    assert_eq!(replica.run(request.clone()).unwrap(), first);
    assert_eq!(replica.get("n").as_deref(), Some("100"));

    let mut other = request;
    other.operations[0].action = Action::Increment { delta: 6 };
    assert_eq!(replica.run(other).unwrap_err().reason, Reason::RequestMismatch);
}

#[test]
fn a_refusal_and_a_failed_condition_are_repeated_too() {
    let mut replica = Replica::new();
    let failed = with_id(when(put("k", "x"), "k", Test::Present), 1, 1, NOW_MS);
    let first = replica.run(failed.clone()).unwrap();
    assert!(!first.applied);
    replica.run(put("text", "no number")).unwrap();
    let refused = with_id(increment("text", 1), 1, 2, NOW_MS);
    assert_eq!(replica.run(refused.clone()).unwrap_err().reason, Reason::NotAnInteger);
    replica.run(put("k", "now present")).unwrap();
    replica.run(put("text", "7")).unwrap();
    replica.reopen();
    assert_eq!(replica.run(failed).unwrap(), first);
    assert_eq!(replica.run(refused).unwrap_err().reason, Reason::NotAnInteger);
    assert_eq!(replica.get("text").as_deref(), Some("7"));
}

#[test]
fn an_expired_request_is_refused_and_never_run_again() {
    let mut replica = Replica::new();
    let request = with_id(increment("n", 5), 1, 1, NOW_MS);
    replica.run(request.clone()).unwrap();
    replica.run_at(NOW_MS + REQUEST_RETENTION_MS + 1, put("k", "v")).unwrap();
    assert_eq!(replica.run_at(NOW_MS, request.clone()).unwrap_err().reason, Reason::RequestExpired);
    replica.reopen();
    assert_eq!(replica.run_at(NOW_MS, request).unwrap_err().reason, Reason::RequestExpired);
    assert_eq!(replica.get("n").as_deref(), Some("5"));
    let ahead = with_id(increment("n", 1), 1, 2, NOW_MS + 3 * REQUEST_RETENTION_MS);
    assert_eq!(replica.run_at(NOW_MS, ahead).unwrap_err().reason, Reason::InvalidRequest);
}

#[test]
fn a_command_for_another_epoch_or_range_leaves_no_trace() {
    let mut replica = Replica::new();
    replica.run(put("k", "v")).unwrap();
    let before = replica.checksum();
    let write = with_id(put("k", "w"), 1, 1, NOW_MS);
    let stamped = Timestamp::from_millis(NOW_MS + 5);
    let stale = Command { epoch: Epoch(2), write: write.clone(), upkeep: None };
    let outside = Command { epoch: Epoch(1), write: with_id(put("zzz", "w"), 1, 2, NOW_MS), upkeep: None };
    let outcomes =
        replica.apply(&[Proposal { stamped, commands: vec![stale, outside], ..Proposal::default() }]).concat();
    assert!(outcomes.iter().all(|outcome| outcome.as_ref().unwrap_err().reason == Reason::WrongEpoch));
    assert_eq!(replica.checksum(), before);
    assert!(replica.run(write).unwrap().applied, "the refusal was not remembered");
}

#[test]
fn rollback_makes_a_key_what_it_was() {
    let mut replica = Replica::new();
    let first = replica.run(put("k", "one")).unwrap().timestamp;
    replica.run(put("k", "two")).unwrap();
    let rollback = |to| Write { operations: vec![operation("k", Action::Rollback { to })], ..Write::default() };
    let third = replica.run(rollback(first)).unwrap().timestamp;
    assert_eq!(replica.get("k").as_deref(), Some("one"));
    replica.run(rollback(first.previous())).unwrap();
    assert_eq!(replica.get("k"), None);
    assert_eq!(replica.run(rollback(Timestamp::MAX)).unwrap_err().reason, Reason::InvalidRequest);
    let horizon = Proposal { stamped: third, horizon: Some(third), ..Proposal::default() };
    replica.apply(&[horizon]);
    assert_eq!(replica.run(rollback(first)).unwrap_err().reason, Reason::HistoryTrimmed);
    replica.run(rollback(third)).unwrap();
    assert_eq!(replica.get("k").as_deref(), Some("one"));
}

#[test]
fn a_rollback_finds_a_version_that_its_own_batch_has_replaced() {
    // A replica that lags applies many entries at once; one that keeps up applies them one by one.
    let (mut lagging, mut prompt) = (Replica::new(), Replica::new());
    let rollback = |to| Write { operations: vec![operation("k", Action::Rollback { to })], ..Write::default() };
    let writes = |first: Timestamp| [put("k", "one"), put("k", "two"), rollback(first)];
    let first = {
        let mut probe = Replica::new();
        probe.run(put("k", "zero")).unwrap();
        probe.run(put("k", "one")).unwrap().timestamp
    };
    for replica in [&mut lagging, &mut prompt] {
        replica.run(put("k", "zero")).unwrap();
    }
    let proposals = writes(first).map(|write| Proposal {
        stamped: Timestamp::from_millis(NOW_MS),
        commands: vec![Command { epoch: Epoch(1), write, upkeep: None }],
        ..Proposal::default()
    });
    lagging.apply(&proposals);
    for proposal in &proposals {
        prompt.apply(std::slice::from_ref(proposal));
    }
    assert_eq!(prompt.get("k").as_deref(), Some("one"));
    assert_eq!(lagging.get("k").as_deref(), Some("one"));
    assert_eq!(lagging.checksum(), prompt.checksum());
}

#[test]
fn a_value_that_ran_out_is_absent_and_stays_so() {
    let mut replica = Replica::new();
    let action = Action::Put { value: "v".into(), ttl_ms: Some(1_000) };
    let put_ttl = Write { operations: vec![operation("k", action)], ..Write::default() };
    let version = replica.run_at(NOW_MS, put_ttl).unwrap().timestamp;
    let absent = || when(put("seen", "absent"), "k", Test::Absent);
    assert!(!replica.run_at(NOW_MS + 999, absent()).unwrap().applied);
    assert!(replica.run_at(NOW_MS + 1_000, absent()).unwrap().applied);
    assert!(replica.run_at(NOW_MS, absent()).unwrap().applied, "a clock that went back brings nothing back");
    let rollback = Write { operations: vec![operation("k", Action::Rollback { to: version })], ..Write::default() };
    replica.run_at(NOW_MS + 2_000, rollback).unwrap();
    assert_eq!(replica.get("k"), None);
}

#[test]
fn nothing_is_written_before_what_a_reader_was_told_is_past() {
    let mut replica = Replica::new();
    let write = Write {
        operations: vec![operation("k", Action::Put { value: "v".into(), ttl_ms: Some(50) })],
        ..Write::default()
    };
    replica.run(write).unwrap();
    // A reader whose clock was ahead saw it run out. The next leader's clock is behind, and so is its stamp.
    let passed = Timestamp::from_millis(NOW_MS + 50);
    replica.apply(&[Proposal { stamped: Timestamp::from_millis(NOW_MS), passed: Some(passed), ..Proposal::default() }]);
    assert_eq!(replica.get("k"), None);
    let absent = when(put("k", "new"), "k", Test::Absent);
    let outcome = replica.run_at(NOW_MS + 1, absent).unwrap();
    assert!(outcome.applied && outcome.timestamp > passed);
    replica.apply(&[Proposal { passed: Some(Timestamp(1)), ..Proposal::default() }]);
    assert_eq!(replica.get("k").as_deref(), Some("new"));
}

#[test]
fn what_compaction_may_have_dropped_counts_for_no_one() {
    // One replica has trimmed what the horizon allows, the other has not; they must answer alike.
    let (mut one, mut other) = (Replica::new(), Replica::new());
    let action = Action::Put { value: "v".into(), ttl_ms: Some(10) };
    let history = [
        Write { operations: vec![operation("k", action)], ..Write::default() },
        put("gone", "v"),
        Write { operations: vec![operation("gone", Action::Delete)], ..Write::default() },
    ];
    for replica in [&mut one, &mut other] {
        for write in &history {
            replica.run_at(NOW_MS, write.clone()).unwrap();
        }
        let last = replica.run_at(NOW_MS + 1_000, put("later", "x")).unwrap().timestamp;
        let horizon = Some(Timestamp::from_millis(NOW_MS + 500));
        replica.apply(&[Proposal { stamped: last, horizon, ..Proposal::default() }]);
    }
    // By hand what compaction does.
    let mut trimmed = crate::storage::Batch::new();
    for key in ["k", "gone"] {
        let end = crate::keyspace::prefix_end(&encoded(key)).expect("keys end");
        trimmed.delete_range(crate::storage::Family::Data, encoded(key), end);
    }
    one.engine.write(trimmed).unwrap();
    for key in ["k", "gone"] {
        let delete = Write { operations: vec![operation(key, Action::Delete)], ..Write::default() };
        assert_eq!(one.run_at(NOW_MS + 2_000, delete.clone()), other.run_at(NOW_MS + 2_000, delete));
    }
    assert_eq!(one.checksum(), other.checksum());
}

#[test]
fn a_snapshot_carries_everything() {
    let mut leader = Replica::new();
    for number in 0..50 {
        leader.run(with_id(put(&format!("k{number}"), "v"), 1, number, NOW_MS)).unwrap();
        leader.run(put("k0", &number.to_string())).unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let mut cut = leader.machine.cutter().cut(directory.path()).unwrap();
    leader.run(put("later", "not in the cut")).unwrap();
    let mut files = Vec::new();
    while let Some(file) = cut.next_file().unwrap() {
        files.push(file);
    }
    let mut follower = Replica::new();
    follower.run(put("leftover", "of an older life")).unwrap();
    follower.machine.install("test", &cut.summary(), files).unwrap();
    assert_eq!(follower.machine.mark(), Some(cut.mark().clone()));
    assert_eq!(follower.get("leftover"), None);
    assert_eq!(follower.get("later"), None);
    follower.run(put("later", "not in the cut")).unwrap();
    assert_eq!(follower.checksum(), leader.checksum());
    // Outcomes travelled too.
    let repeat = follower.run(with_id(put("k3", "v"), 1, 3, NOW_MS)).unwrap();
    assert_eq!(repeat, leader.run(with_id(put("k3", "v"), 1, 3, NOW_MS)).unwrap());
}

fn any_write() -> impl Strategy<Value = Write> {
    let key = prop::sample::select(vec!["b", "c", "d", "e"]);
    let action = prop_oneof![
        (0..20u32, prop::option::of(1..5_000u64))
            .prop_map(|(value, ttl_ms)| Action::Put { value: value.to_string().into(), ttl_ms }),
        Just(Action::Put { value: "text".into(), ttl_ms: None }),
        Just(Action::Delete),
        (-5..5i64).prop_map(|delta| Action::Increment { delta }),
        (0..4_000u64).prop_map(|back| Action::Rollback { to: Timestamp::from_millis(NOW_MS + back) }),
    ];
    let test = prop_oneof![
        Just(Test::Absent),
        Just(Test::Present),
        (0..20u32).prop_map(|value| Test::Value(value.to_string().into())),
    ];
    let operations = prop::collection::vec((key.clone(), action).prop_map(|(key, a)| operation(key, a)), 1..4);
    let conditions =
        prop::collection::vec((key, test).prop_map(|(key, test)| Condition { key: encoded(key), test }), 0..2);
    // The time of issue is part of the id, and a client that gets it wrong must do no harm to the replicas.
    let request = prop::option::weighted(0.7, (0..3u64, 0..6u64, prop::option::weighted(0.2, 0..9u64)));
    (request, conditions, operations).prop_map(|(request, conditions, operations)| {
        let request = request.map(|(client, sequence, odd)| RequestId {
            client,
            sequence,
            issued_ms: NOW_MS + odd.unwrap_or(sequence),
        });
        Write { request, conditions, operations }
    })
}

fn any_proposal() -> impl Strategy<Value = Proposal> {
    let command = (any_write(), 0..10u64).prop_map(|(write, epoch)| Command {
        epoch: Epoch(u64::from(epoch > 0)),
        write,
        upkeep: None,
    });
    let seldom = || prop::option::weighted(0.1, 0..3_000u64);
    (0..4_000u64, prop::collection::vec(command, 0..4), seldom(), seldom(), any::<bool>()).prop_map(
        |(ahead, commands, horizon, passed, versions_carry_outcomes)| Proposal {
            stamped: Timestamp::from_millis(NOW_MS + ahead),
            commands,
            horizon: horizon.map(|ahead| Timestamp::from_millis(NOW_MS + ahead)),
            checksum: None,
            passed: passed.map(|ahead| Timestamp::from_millis(NOW_MS + ahead)),
            versions_carry_outcomes,
            ..Proposal::default()
        },
    )
}

/// A put under a request id, in a table whose versions carry outcomes.
fn carrying(replica: &mut Replica, stamped_ms: u64, write: Write) -> Result<Outcome> {
    let commands = vec![Command { epoch: Epoch(1), write, upkeep: None }];
    let stamped = Timestamp::from_millis(stamped_ms);
    let proposal = Proposal { stamped, commands, versions_carry_outcomes: true, ..Proposal::default() };
    replica.apply(&[proposal]).remove(0).remove(0)
}

/// Stored outcome records.
fn records(replica: &Replica) -> usize {
    let (start, end) = crate::keyspace::side::outcome_range(&encoded("a"), &encoded("z"));
    let mut cursor = replica.engine.cursor(crate::storage::Family::Data, &start, &end);
    let mut count = 0;
    cursor.seek_first();
    while cursor.entry().is_some() {
        count += 1;
        cursor.next();
    }
    count
}

#[test]
fn a_put_whose_version_carries_its_outcome_needs_no_record_and_is_answered_again_after_a_restart() {
    let mut replica = Replica::new();
    for (sequence, value) in [(1, "one"), (2, "two"), (3, "three")] {
        carrying(&mut replica, NOW_MS + sequence, with_id(put("k", value), 9, sequence, NOW_MS)).unwrap();
    }
    assert_eq!(records(&replica), 0);
    let first = carrying(&mut replica, NOW_MS + 4, with_id(put("k", "two"), 9, 2, NOW_MS)).unwrap();
    replica.reopen();
    // Nothing is in memory now. Repeats find what the version says, whoever leads and whatever it proposes.
    for carry in [true, false] {
        let repeat = with_id(put("k", "two"), 9, 2, NOW_MS);
        let again = match carry {
            true => carrying(&mut replica, NOW_MS + 60_000, repeat),
            false => replica.run_at(NOW_MS + 60_000, repeat),
        };
        assert_eq!(again, Ok(first.clone()));
    }
    let other = replica.run(with_id(put("k", "else"), 9, 2, NOW_MS)).expect_err("another payload");
    assert_eq!(other.reason, Reason::RequestMismatch);
    assert_eq!(replica.get("k").as_deref(), Some("three"));
}

#[test]
fn what_is_no_plain_put_or_comes_at_an_odd_time_has_a_record_and_is_answered_again_too() {
    for (issued_ms, write) in [
        (NOW_MS, increment("n", 1)),
        (NOW_MS, when(put("k", "v"), "k", Test::Absent)),
        (
            NOW_MS,
            Write { operations: [put("k", "v").operations, put("l", "v").operations].concat(), ..Write::default() },
        ),
        (NOW_MS - 2_001, put("k", "v")),
        (NOW_MS + 501, put("k", "v")),
    ] {
        let mut replica = Replica::new();
        let write = with_id(write, 9, 1, issued_ms);
        let first = carrying(&mut replica, NOW_MS, write.clone());
        assert_eq!(records(&replica), 1, "{write:?}");
        replica.reopen();
        assert_eq!(carrying(&mut replica, NOW_MS + 9, write), first);
    }
    for issued_ms in [NOW_MS - 2_000, NOW_MS + 500] {
        let mut replica = Replica::new();
        let write = with_id(put("k", "v"), 9, 1, issued_ms);
        let first = carrying(&mut replica, NOW_MS, write.clone());
        assert_eq!(records(&replica), 0);
        replica.reopen();
        assert_eq!(carrying(&mut replica, NOW_MS + 9, write), first);
        assert_eq!(replica.get("k").as_deref(), Some("v"));
    }
}

#[test]
fn the_horizon_stays_behind_versions_that_carry_outcomes_until_those_have_expired() {
    let mut replica = Replica::new();
    let write = with_id(put("k", "v"), 9, 1, NOW_MS);
    let first = carrying(&mut replica, NOW_MS, write.clone());
    carrying(&mut replica, NOW_MS + 1_000, put("k", "newer")).unwrap();
    // The table's history was made shorter than requests are remembered.
    let horizon = |replica: &mut Replica, stamped_ms: u64| {
        let stamped = Timestamp::from_millis(stamped_ms);
        replica.apply(&[Proposal { stamped, horizon: Some(stamped), ..Proposal::default() }]);
        replica.engine.sync().expect("memory syncs");
        replica.engine.compact(b"", &[0xFF; 9]).expect("memory compacts");
        replica.machine.shared().state.load().horizon
    };
    let held = horizon(&mut replica, NOW_MS + REQUEST_RETENTION_MS - 1);
    assert!(held < Timestamp::from_millis(NOW_MS), "{held}");
    replica.reopen();
    assert_eq!(carrying(&mut replica, NOW_MS + REQUEST_RETENTION_MS - 1, write.clone()), first);
    let free = horizon(&mut replica, NOW_MS + REQUEST_RETENTION_MS + 1_000);
    assert!(free > Timestamp::from_millis(NOW_MS), "{free}");
    let expired = carrying(&mut replica, NOW_MS + REQUEST_RETENTION_MS + 1_000, write).expect_err("too old");
    assert_eq!(expired.reason, Reason::RequestExpired);
    assert_eq!(replica.get("k").as_deref(), Some("newer"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// However the entries are batched, and however often a replica restarts between them, the answers and the
    /// content are the same; and no request id ever has a second effect.
    #[test]
    fn replicas_never_diverge(
        proposals in prop::collection::vec(any_proposal(), 1..24),
        cuts in prop::collection::vec((1..5usize, any::<bool>()), 24),
    ) {
        let mut one = Replica::new();
        let mut other = Replica::new();
        let mut answers = Vec::new();
        for proposal in &proposals {
            answers.extend(one.apply(std::slice::from_ref(proposal)));
        }
        let mut rest = &proposals[..];
        let mut same = Vec::new();
        for (size, restart) in cuts {
            let (now, later) = rest.split_at(size.min(rest.len()));
            if !now.is_empty() {
                same.extend(other.apply(now));
            }
            if restart {
                other.reopen();
            }
            rest = later;
        }
        if !rest.is_empty() {
            same.extend(other.apply(rest));
        }
        prop_assert_eq!(&answers, &same);
        prop_assert_eq!(one.checksum(), other.checksum());

        let mut first: BTreeMap<(Bytes, RequestId), (Command, Result<Outcome>)> = BTreeMap::new();
        for (command, answer) in proposals.iter().flat_map(|p| &p.commands).zip(answers.concat()) {
            let Some(request) = command.write.request else { continue };
            let refused = |reason: Reason| answer.as_ref().is_err_and(|error| error.reason == reason);
            if refused(Reason::WrongEpoch) || refused(Reason::RequestExpired) {
                continue;
            }
            let place = (command.write.operations[0].key.clone(), request);
            match first.get(&place) {
                None => {
                    first.insert(place, (command.clone(), answer.clone()));
                }
                Some((before, seen)) if before.fingerprint() == command.fingerprint() => {
                    prop_assert_eq!(seen, &answer);
                }
                Some(_) => prop_assert!(refused(Reason::RequestMismatch)),
            }
        }
    }
}
