//! A shard is divided: one entry of its log gives the right part of its range to a child.
//!
//! Promise: no byte moves and nothing is copied. The parent's range shrinks and its epoch rises; the child begins with a
//! state of its own at the one position at which groups are born ([`Birth`]), and inherits what belongs to the keys it
//! gets: timestamps, the horizon, and the memory of requests, whose records lie between the keys. All of this, the record
//! of the child's replica and its empty log are in the batch of the entry, so a crash leaves either one shard or two.
//!
//! Invariants
//! - Whether an entry divides is decided by the log alone: by the epoch, and by the members in force. The child's members
//!   are named in the entry and are born one beside each of the parent's; if the parent has got others in between, the
//!   entry does nothing and is proposed again.
//! - Two replicas on one node never own overlapping ranges. So a child is only ever born here, out of its parent, or
//!   created where no parent covers its range (it then gets a snapshot), and a snapshot of a parent from before the split
//!   is refused where the child lives ([`overlapping`]).
//! - A child's replica is born once: not where it has been before, and only in the data directory that the entry names, for
//!   on the one before that it may have lived and voted.
//! - Only who began with the range that was can apply the log from before the split. So that log is removed as soon as the
//!   split is applied ([`State::divided_at`]), and a replica that is created later takes no entries before it has got a
//!   snapshot.

use tokio::sync::mpsc;

use super::command::{ChildReplica, Split};
use super::machine;
use super::record::Record;
use super::state::State;
use crate::keyspace::side;
use crate::raft::Birth;
use crate::storage::{self, Batch, Engine, Family, Reader};
use crate::types::{Epoch, Error, Incarnation, NodeId, Reason, Result, ShardId};

/// News that nobody has taken note of yet, per node. A birth that finds no room is found by its record, the end of a
/// replica by its state.
pub const NEWS_MAX: usize = 1_024;

/// What applying an entry has changed about who lives on this node.
#[derive(Clone, Debug)]
pub enum News {
    /// A shard was divided.
    Born(Born),
    /// The replica of this shard was taken over by that of its left neighbour.
    Absorbed(ShardId),
}

/// A replica that was just born beside one of its parent's.
#[derive(Clone, Debug)]
pub struct Born {
    /// Whose child it is.
    pub parent: ShardId,
    /// What is stored of it.
    pub record: Record,
}

/// Where a replica lives, and who is to be told of its children and of those that it takes over.
#[derive(Clone, Debug)]
pub struct Home {
    /// The node.
    pub node: NodeId,
    /// Its data directory.
    pub incarnation: Incarnation,
    /// Takes in news.
    pub news: mpsc::Sender<News>,
}

impl Home {
    /// Adds the child's replica on this node to a batch that divides its parent.
    pub(super) fn settle(
        &self,
        engine: &dyn Engine,
        parent: ShardId,
        split: &Split,
        child: Child,
        batch: &mut Batch,
    ) -> storage::Result<Option<Born>> {
        let here = |replica: &&ChildReplica| replica.node == self.node && replica.incarnation == self.incarnation;
        // If none is born here, nobody owns what lies there any more; whoever comes to own it begins by removing it.
        let Some(mine) = split.replicas.iter().find(here) else { return Ok(None) };
        if Record::load(engine, split.child).map_err(storage::Error::from)?.is_some() {
            return Ok(None);
        }
        let record = Record {
            shard: split.child,
            replica: mine.replica,
            table: child.state.table,
            start: child.state.start.clone(),
            end: child.state.end.clone(),
            epoch: child.state.epoch,
            tombstone: false,
        };
        record.put(batch);
        child.birth.put(batch);
        batch.put(Family::Data, side::applied(split.child), child.state.encode());
        Ok(Some(Born { parent, record }))
    }

    /// Tells what was written.
    pub(super) fn tell(&self, news: Vec<News>) {
        for one in news {
            // No room: the node finds it out when it next looks at what it should host.
            let _ = self.news.try_send(one);
        }
    }
}

/// The right part of a shard that is being divided.
pub(super) struct Child {
    state: State,
    birth: Birth,
}

/// Divides the state of `shard`, or says why not; a refusal has no effect.
pub(super) fn divide(shard: ShardId, state: &mut State, split: &Split, index: u64, members_at: u64) -> Result<Child> {
    let inside = state.start < split.at && split.at < state.end && state.sealed_for.is_none();
    if split.epoch != state.epoch || !inside {
        let why = format!("{shard} has changed since it was to be split");
        return Err(Error::new(Reason::WrongEpoch, why));
    }
    if split.members_at != members_at {
        let why = format!("the members of {shard} have changed since it was to be split");
        return Err(Error::new(Reason::Conflict, why));
    }
    let members = split.replicas.iter().map(|child| (child.replica, child.node)).collect();
    let voters = split.replicas.iter().filter(|child| child.voter).map(|child| child.replica).collect();
    let birth = Birth::new(split.child, &voters, &members).map_err(Error::invalid)?;
    let epoch = Epoch(state.epoch.0 + 1);
    let (trimmed, watermarks) = state.split_past(&split.at);
    let child = State {
        start: split.at.clone(),
        epoch,
        divided_at: 0,
        mark: Some(birth.mark()),
        trimmed,
        watermarks,
        ..state.clone()
    };
    state.end = split.at.clone();
    state.epoch = epoch;
    state.divided_at = index;
    Ok(Child { state: child, birth })
}

/// Another shard whose replica here owns a part of the range that `shard` has in this state, and was not taken over.
pub(super) fn overlapping(engine: &dyn Reader, shard: ShardId, coming: &State) -> storage::Result<Option<ShardId>> {
    for record in Record::load_all(engine).map_err(storage::Error::from)? {
        if record.tombstone || record.shard == shard {
            continue;
        }
        let (from, to) = match machine::load(engine, record.shard)? {
            _ if coming.absorbed.contains(&record.shard) => continue,
            Some(state) => (state.start, state.end),
            None => (record.start, record.end),
        };
        if from < coming.end && coming.start < to {
            return Ok(Some(record.shard));
        }
    }
    Ok(None)
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::keyspace::Layout;
    use crate::raft::{Entry, Machine};
    use crate::runtime::Clock;
    use crate::shard::command::{Command, Proposal};
    use crate::shard::machine::ShardMachine;
    use crate::storage::mvcc;
    use crate::storage::{Lookup, Memory, Tier, log_keys};
    use crate::types::{Action, Operation, Outcome, Partitioning, ReplicaId, RequestId, TableId, Timestamp, Write};

    pub const PARENT: ShardId = ShardId(7);
    pub const CHILD: ShardId = ShardId(8);
    pub const NOW_MS: u64 = 1_700_000_000_000;

    pub fn encoded(key: &str) -> Bytes {
        Layout { table: TableId(1), partitioning: Partitioning::Range { group_delimiter: None } }.encode(key.as_bytes())
    }

    /// The replicas of one node, fed by hand.
    pub struct Machines {
        pub memory: Arc<Memory>,
        pub news: mpsc::Receiver<News>,
        pub home: Home,
        pub index: u64,
    }

    impl Machines {
        pub fn new() -> Machines {
            let (sender, news) = mpsc::channel(4);
            let home = Home { node: NodeId(1), incarnation: Incarnation(11), news: sender };
            let memory = Memory::new().expect("a directory");
            Machines { memory, news, home, index: 0 }
        }

        pub fn open(&self, shard: ShardId, fresh: State) -> ShardMachine {
            ShardMachine::open(shard, self.memory.clone(), fresh, Clock::system(), self.home.clone()).expect("it opens")
        }

        fn parent(&self) -> ShardMachine {
            self.open(PARENT, State::fresh(TableId(1), encoded("a"), encoded("z"), Epoch(1)))
        }

        pub fn apply(&mut self, machine: &mut ShardMachine, members_at: u64, proposal: &Proposal) -> Result<Outcome> {
            self.index += 1;
            let entry = Entry { index: self.index, payload: Some(proposal.encode()), members_at };
            machine
                .apply(vec![entry], format!("mark {}", self.index).into())
                .expect("storage works")
                .remove(0)
                .remove(0)
        }

        pub fn put(&mut self, machine: &mut ShardMachine, epoch: u64, key: &str, sequence: u64) -> Result<Outcome> {
            let commands = vec![self.command(epoch, key, sequence)];
            let stamped = Timestamp::from_millis(NOW_MS);
            self.apply(machine, 5, &Proposal { stamped, commands, ..Proposal::default() })
        }

        /// As `put`, in a table whose versions carry outcomes.
        pub fn put_carrying(
            &mut self,
            machine: &mut ShardMachine,
            epoch: u64,
            key: &str,
            sequence: u64,
        ) -> Result<Outcome> {
            let commands = vec![self.command(epoch, key, sequence)];
            let stamped = Timestamp::from_millis(NOW_MS);
            let proposal = Proposal { stamped, commands, versions_carry_outcomes: true, ..Proposal::default() };
            self.apply(machine, 5, &proposal)
        }

        fn command(&self, epoch: u64, key: &str, sequence: u64) -> Command {
            let request = Some(RequestId { client: 3, sequence, issued_ms: NOW_MS });
            let action = Action::Put { value: key.to_owned().into(), ttl_ms: None };
            let operations = vec![Operation { key: encoded(key), action }];
            Command { epoch: Epoch(epoch), write: Write { request, conditions: vec![], operations }, upkeep: None }
        }

        pub fn get(&self, key: &str) -> bool {
            let found = mvcc::newest(&*self.memory, &encoded(key), Timestamp::MAX, Tier::Disk).expect("storage works");
            matches!(found, Lookup::Found(_))
        }
    }

    fn split(epoch: u64, at: &str) -> Proposal {
        let replica = |id: u64| ChildReplica {
            replica: ReplicaId(80 + id),
            node: NodeId(id),
            incarnation: Incarnation(10 + id),
            voter: true,
        };
        let split = Split {
            epoch: Epoch(epoch),
            at: encoded(at),
            child: CHILD,
            members_at: 5,
            replicas: [1, 2, 3].map(replica).into(),
        };
        Proposal { stamped: Timestamp::from_millis(NOW_MS), split: Some(split), ..Proposal::default() }
    }

    pub fn state(machine: &ShardMachine) -> State {
        State::clone(&machine.shared().state.load())
    }

    /// A cutter asked about a shard of this range.
    fn may_install(machine: &ShardMachine, start: &str, end: &str) -> bool {
        let state = State::fresh(TableId(1), encoded(start), encoded(end), Epoch(1));
        machine.cutter().may_install(&state.encode()).expect("storage works").is_ok()
    }

    #[test]
    fn two_shards_own_what_one_did_and_remember_what_it_was_asked() {
        let mut machines = Machines::new();
        let mut parent = machines.parent();
        machines.put(&mut parent, 1, "b", 1).expect("taken");
        let first = machines.put(&mut parent, 1, "x", 2).expect("taken");
        assert!(machines.apply(&mut parent, 5, &split(1, "m")).expect("divided").applied);

        let before = state(&parent);
        assert_eq!((&before.start, &before.end, before.epoch), (&encoded("a"), &encoded("m"), Epoch(2)));
        let Ok(News::Born(born)) = machines.news.try_recv() else { panic!("a birth") };
        assert_eq!((born.parent, born.record.shard, born.record.replica), (PARENT, CHILD, ReplicaId(81)));
        assert_eq!(Record::load(&*machines.memory, CHILD).expect("reads"), Some(born.record.clone()));
        let purged = machines.memory.get(Family::Raft, &log_keys::purged(CHILD), Tier::Disk).expect("reads");
        assert!(matches!(purged, Lookup::Found(_)), "it begins with a log");

        let mut child = machines.open(CHILD, State::fresh(TableId(1), encoded("a"), encoded("a"), Epoch(0)));
        let inherited = state(&child);
        assert_eq!((&inherited.start, &inherited.end, inherited.epoch), (&encoded("m"), &encoded("z"), Epoch(2)));
        assert_eq!(inherited.last_timestamp, before.last_timestamp);

        // Who was routed by the range that was is refused by both, and nothing is written.
        for key in ["c", "y"] {
            assert_eq!(machines.put(&mut parent, 1, key, 3).expect_err("old").reason, Reason::WrongEpoch);
            assert_eq!(machines.put(&mut child, 1, key, 3).expect_err("old").reason, Reason::WrongEpoch);
            assert!(!machines.get(key));
        }
        assert_eq!(machines.put(&mut parent, 2, "y", 4).expect_err("not its own").reason, Reason::WrongEpoch);
        assert_eq!(machines.put(&mut child, 2, "c", 4).expect_err("not its own").reason, Reason::WrongEpoch);
        machines.put(&mut parent, 2, "c", 5).expect("the left part");
        machines.put(&mut child, 2, "y", 6).expect("the right part");
        // A request that took effect before is answered again by whoever owns its key now.
        assert_eq!(machines.put(&mut child, 2, "x", 2), Ok(first));
    }

    #[test]
    fn what_was_decided_on_other_grounds_does_not_divide() {
        let mut machines = Machines::new();
        let mut parent = machines.parent();
        let before = state(&parent);
        for (members_at, proposal, reason) in [
            (5, split(2, "m"), Reason::WrongEpoch),
            (6, split(1, "m"), Reason::Conflict),
            (5, split(1, "a"), Reason::WrongEpoch),
            (5, split(1, "zz"), Reason::WrongEpoch),
        ] {
            let refused = machines.apply(&mut parent, members_at, &proposal).expect_err("refused");
            assert_eq!(refused.reason, reason);
            let now = State { mark: before.mark.clone(), ..state(&parent) };
            assert_eq!(now, before);
            assert_eq!(Record::load(&*machines.memory, CHILD).expect("reads"), None);
        }
        assert!(machines.news.try_recv().is_err());
        machines.apply(&mut parent, 5, &split(1, "m")).expect("divided");
        let again = machines.apply(&mut parent, 5, &split(1, "c")).expect_err("a second leader's proposal");
        assert_eq!(again.reason, Reason::WrongEpoch);
    }

    #[test]
    fn nobody_is_born_twice() {
        // On another disk of the node: whoever lived on the one before may have voted.
        let mut machines = Machines::new();
        machines.home.incarnation = Incarnation(12);
        let mut parent = machines.parent();
        machines.put(&mut parent, 1, "x", 1).expect("taken");
        machines.apply(&mut parent, 5, &split(1, "m")).expect("divided");
        assert!(machines.news.try_recv().is_err());
        assert_eq!(Record::load(&*machines.memory, CHILD).expect("reads"), None);
        assert_eq!(state(&parent).end, encoded("m"), "the parent is what it is on every node");
        assert_eq!(state(&parent).divided_at, machines.index);

        // Where it has been destroyed.
        let mut machines = Machines::new();
        let mut parent = machines.parent();
        let record = Record {
            shard: CHILD,
            replica: ReplicaId(81),
            table: TableId(1),
            start: encoded("m"),
            end: encoded("z"),
            epoch: Epoch(2),
            tombstone: true,
        };
        record.store(&*machines.memory).expect("stored");
        machines.apply(&mut parent, 5, &split(1, "m")).expect("divided");
        assert!(machines.news.try_recv().is_err());
        assert_eq!(Record::load(&*machines.memory, CHILD).expect("reads"), Some(record));
    }

    #[test]
    fn a_crash_leaves_one_shard_or_two() {
        for synced in [false, true] {
            let mut machines = Machines::new();
            let mut parent = machines.parent();
            machines.put(&mut parent, 1, "x", 1).expect("taken");
            machines.memory.sync().expect("memory syncs");
            machines.apply(&mut parent, 5, &split(1, "m")).expect("divided");
            if synced {
                machines.memory.sync().expect("memory syncs");
            }
            machines.memory.crash();
            let mut parent = machines.parent();
            let record = Record::load(&*machines.memory, CHILD).expect("reads");
            let there = machine::load(&*machines.memory, CHILD).expect("reads").is_some();
            assert_eq!((record.is_some(), there, state(&parent).epoch == Epoch(2)), (synced, synced, synced));
            if !synced {
                // The entry is applied again, and the child is born after all.
                machines.apply(&mut parent, 5, &split(1, "m")).expect("divided");
            }
            assert!(machines.get("x"));
        }
    }

    #[test]
    fn a_snapshot_from_before_the_split_is_not_laid_over_the_child() {
        let mut machines = Machines::new();
        let mut parent = machines.parent();
        assert!(may_install(&parent, "a", "z"));
        machines.apply(&mut parent, 5, &split(1, "m")).expect("divided");
        assert!(may_install(&parent, "a", "m"));
        assert!(!may_install(&parent, "a", "z"), "the child lives there");
        for nonsense in ["nonsense", ""] {
            let said = parent.cutter().may_install(&nonsense.into()).expect("storage works");
            assert!(said.is_err(), "{nonsense}");
        }
    }

    #[test]
    fn a_snapshot_may_be_smaller_or_larger_than_what_it_replaces() {
        for (ours, theirs) in [(("a", "z"), ("a", "m")), (("a", "m"), ("a", "z"))] {
            let mut sender = Machines::new();
            let mut machine =
                sender.open(PARENT, State::fresh(TableId(1), encoded(theirs.0), encoded(theirs.1), Epoch(2)));
            sender.put(&mut machine, 2, "b", 1).expect("taken");
            let mut machines = Machines::new();
            let mut replica =
                machines.open(PARENT, State::fresh(TableId(1), encoded(ours.0), encoded(ours.1), Epoch(1)));
            let old = if ours.1 == "z" { "x" } else { "c" };
            machines.put(&mut replica, 1, old, 1).expect("taken");

            let directory = tempfile::tempdir().expect("a directory");
            let mut cut = machine.cutter().cut(directory.path()).expect("a cut");
            let files: Vec<PathBuf> = std::iter::from_fn(|| cut.next_file().expect("it is written")).collect();
            replica.install("test", &cut.summary(), files).expect("installed");
            assert_eq!(state(&replica), state(&machine));
            assert!(machines.get("b"));
            assert!(!machines.get(old), "what was there is gone, whoever owns the place now");
        }
    }
}
