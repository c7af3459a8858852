//! Two neighbouring shards become one: the right one ends by an entry of its log, and an entry of the left one's log takes
//! over its range.
//!
//! Promise: no byte moves and nothing is copied. Between the two entries nobody owns the right range, and it is neither
//! written nor read; that is the pause. The left shard inherits what belongs to the keys it gets, as a child does at a
//! split: timestamps, the horizon, and the memory of requests. The record of the right replica becomes a tombstone in the
//! batch of the second entry, so a crash leaves either two shards, one of them sealed, or one.
//!
//! Invariants
//! - Whether an entry seals, absorbs or abandons is decided by the log alone: by the epoch, and by the members in force.
//! - The state of a sealed shard stays as it is but for the mark: the entries that follow in its log change nothing, and no
//!   snapshot of that time is laid over it. So every replica of the left shard finds the same state beside it, whenever it
//!   comes to the second entry.
//! - The second entry is proposed only when beside every member of the left shard a replica of the right one is sealed, and
//!   durably so; if the members are others when it is applied, it does nothing. So whoever applies it finds what it is to
//!   take over. A replica that does not must not guess: it stops.
//! - If that cannot be had soon, for a member is away, the merge is abandoned ([`abandon`]): first in the log of the left
//!   shard, whose epoch then forbids the second entry for ever, and only then in that of the right one, which goes on.
//! - Two snapshots are never installed over one range at a time: one that ends other replicas is installed alone.
//! - A replica that was sealed is destroyed only if no replica of the left shard lives beside it that may have yet to
//!   absorb it.
//! - A shard knows which others it has taken over ([`State::absorbed`]). A snapshot of it ends their replicas where it is
//!   installed, sealed or not and whatever range it has: they are over, and what they knew is in the snapshot, or in that
//!   of another part.
//! - The log from before the second entry is removed as after a split ([`State::divided_at`]).

use std::collections::BTreeSet;

use super::command::{Abandon, Absorb, Seal};
use super::machine;
use super::outcomes;
use super::record::Record;
use super::state::{ABSORBED_MAX, State};
use crate::runtime::planted::{self, Bug};
use crate::storage::{self, Batch, Engine, Reader};
use crate::types::{Epoch, Error, Reason, Result, ShardId};

/// Ends a shard, or says why not; a refusal has no effect.
pub(super) fn seal(shard: ShardId, state: &mut State, seal: &Seal, members_at: u64) -> Result<()> {
    if seal.epoch != state.epoch || seal.sealed <= state.epoch || state.sealed_for.is_some() {
        let why = format!("{shard} has changed since it was to be merged");
        return Err(Error::new(Reason::WrongEpoch, why));
    }
    if seal.members_at != members_at {
        let why = format!("the members of {shard} have changed since it was to be merged");
        return Err(Error::new(Reason::Conflict, why));
    }
    if planted::is(Bug::UnsealedMerge) {
        return Ok(());
    }
    state.epoch = seal.sealed;
    state.sealed_for = Some(seal.into);
    Ok(())
}

/// Has `shard` take over what lies sealed beside it, or says why not; a refusal has no effect. An error of storage stops
/// the replica.
pub(super) fn absorb(
    engine: &dyn Engine,
    shard: ShardId,
    state: &mut State,
    absorb: &Absorb,
    (index, members_at): (u64, u64),
    batch: &mut Batch,
) -> storage::Result<Result<()>> {
    if let Err(refusal) = admits(shard, state, absorb, members_at) {
        return Ok(Err(refusal));
    }
    let right = absorb.right;
    let stranded = |why: &str| {
        let text = format!(
            "{shard} is to take over {right} in its log, but {why} here: have another node host it instead (`trivet shard \
             move`)"
        );
        storage::Error::corruption(text)
    };
    let record = Record::load(engine, right).map_err(storage::Error::from)?;
    let record = record.filter(|record| !record.tombstone).ok_or_else(|| stranded("that has no replica"))?;
    let taken = machine::load(engine, right)?.ok_or_else(|| stranded("that holds nothing"))?;
    let sealed = taken.sealed_for == Some(shard) && taken.epoch == absorb.sealed;
    if !sealed && !planted::is(Bug::UnsealedMerge) {
        return Err(stranded("that is not sealed"));
    }
    if taken.start != state.end || taken.end != absorb.end {
        return Err(stranded("that has another range"));
    }
    state.end = taken.end.clone();
    state.epoch = Epoch(absorb.sealed.0 + 1);
    state.last_timestamp = state.last_timestamp.max(taken.last_timestamp);
    state.take_past(taken.clone());
    state.requests_from_ms = state.requests_from_ms.max(taken.requests_from_ms);
    state.issued_max_ms = state.issued_max_ms.max(taken.issued_max_ms);
    state.carried_until = state.carried_until.max(taken.carried_until);
    // One of the two may have trimmed what the other has to keep: versions that tell the outcomes of requests.
    state.requests_from_ms = state.requests_from_ms.max(outcomes::answerable_from(
        state.horizon,
        state.carried_until,
        state.requests_from_ms,
    ));
    state.divided_at = index;
    state.absorbed.extend(taken.absorbed);
    state.absorbed.push(right);
    let surplus = state.absorbed.len().saturating_sub(ABSORBED_MAX);
    state.absorbed.drain(..surplus);
    record.entomb(batch);
    Ok(Ok(()))
}

/// Whether a shard may take over another now, by its own log.
pub(super) fn admits(shard: ShardId, state: &State, absorb: &Absorb, members_at: u64) -> Result<()> {
    if absorb.epoch != state.epoch || absorb.sealed <= state.epoch || state.sealed_for.is_some() {
        let why = format!("{shard} has changed since it was to be merged");
        return Err(Error::new(Reason::WrongEpoch, why));
    }
    if absorb.members_at != members_at {
        let why = format!("the members of {shard} have changed since it was to be merged");
        return Err(Error::new(Reason::Conflict, why));
    }
    Ok(())
}

/// Does without a merge, or says why not; a refusal has no effect.
pub(super) fn abandon(shard: ShardId, state: &mut State, abandon: &Abandon, index: u64) -> Result<()> {
    if abandon.epoch != state.epoch || abandon.next <= state.epoch {
        let why = format!("{shard} has changed since its merge was to be abandoned");
        return Err(Error::new(Reason::WrongEpoch, why));
    }
    state.epoch = abandon.next;
    state.sealed_for = None;
    // The range is the same; but who is created under a later epoch waits for a snapshot, whatever it was that raised it.
    state.divided_at = index;
    Ok(())
}

/// The replicas here, with what they own, that a shard in this state, or one whose range it has got, has taken over.
pub fn superseded(engine: &dyn Reader, coming: &State) -> storage::Result<Vec<(Record, State)>> {
    let mut ended = Vec::new();
    for &shard in &coming.absorbed {
        let record = Record::load(engine, shard).map_err(storage::Error::from)?;
        if let Some(record) = record.filter(|record| !record.tombstone) {
            let (table, start, end) = (record.table, record.start.clone(), record.end.clone());
            let state = machine::load(engine, shard)?;
            let state = state.unwrap_or_else(|| State::fresh(table, start, end, record.epoch));
            ended.push((record, state));
        }
    }
    Ok(ended)
}

/// Whether a snapshot with this state may be laid over a replica, as far as merges are concerned. Not over a sealed one that
/// a replica of the left shard here may absorb at any moment: but that has nothing to learn, and if the group needs it to
/// have more of the log, the merge will be abandoned.
pub(super) fn may_replace(engine: &dyn Reader, ours: &State, coming: &State) -> storage::Result<bool> {
    let Some(left) = ours.sealed_for.filter(|_| coming.epoch <= ours.epoch) else { return Ok(true) };
    let record = Record::load(engine, left).map_err(storage::Error::from)?;
    if record.is_none_or(|record| record.tombstone) {
        return Ok(true);
    }
    Ok(machine::load(engine, left)?.is_some_and(|left| left.epoch >= ours.epoch))
}

/// The replicas that live here, without those that were taken over already by a snapshot whose installation a crash has cut
/// short: those are buried. For a node that starts, in the order in which to start them: one that is sealed may be absorbed
/// as soon as the one beside it runs, and must not be in the middle of its own start then.
pub fn survivors(engine: &dyn Engine) -> storage::Result<Vec<Record>> {
    let mut survivors = Vec::new();
    let mut sealed: BTreeSet<ShardId> = BTreeSet::new();
    let mut over: BTreeSet<ShardId> = BTreeSet::new();
    for record in Record::load_all(engine).map_err(storage::Error::from)? {
        if record.tombstone {
            // A crash may have come between its end and the removal of its traces.
            record.remove_traces(engine)?;
            continue;
        }
        if let Some(state) = machine::load(engine, record.shard)? {
            sealed.extend(state.sealed_for.map(|_| record.shard));
            over.extend(state.absorbed);
        }
        survivors.push(record);
    }
    for record in survivors.iter().filter(|record| over.contains(&record.shard)) {
        bury(engine, record)?;
    }
    survivors.retain(|record| !over.contains(&record.shard));
    survivors.sort_by_key(|record| !sealed.contains(&record.shard));
    Ok(survivors)
}

/// Ends a replica whose range belongs to another here, durably: its traces go, its data stays.
pub(super) fn bury(engine: &dyn Engine, record: &Record) -> storage::Result<()> {
    let mut batch = Batch::new();
    record.entomb(&mut batch);
    engine.write(batch)?;
    engine.sync()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::raft::Machine;
    use crate::shard::command::Proposal;
    use crate::shard::division::News;
    use crate::shard::division::tests::{Machines, NOW_MS, encoded, state};
    use crate::shard::machine::ShardMachine;
    use crate::types::{ReplicaId, TableId, Timestamp};

    const LEFT: ShardId = ShardId(7);
    const RIGHT: ShardId = ShardId(9);
    const EPOCHS: (Epoch, Epoch) = (Epoch(2), Epoch(5));

    fn record(shard: ShardId, start: &str, end: &str, epoch: Epoch) -> Record {
        let (start, end) = (encoded(start), encoded(end));
        Record { shard, replica: ReplicaId(shard.0 + 50), table: TableId(1), start, end, epoch, tombstone: false }
    }

    /// Neighbours that meet at "m", with what they began with stored.
    fn neighbours(machines: &Machines) -> (ShardMachine, ShardMachine) {
        let one = |record: Record| {
            if Record::load(&*machines.memory, record.shard).expect("reads").is_none() {
                record.store(&*machines.memory).expect("stored");
            }
            let fresh = State::fresh(record.table, record.start.clone(), record.end.clone(), record.epoch);
            machines.open(record.shard, fresh)
        };
        (one(record(LEFT, "a", "m", EPOCHS.0)), one(record(RIGHT, "m", "z", EPOCHS.1)))
    }

    fn proposal() -> Proposal {
        Proposal { stamped: Timestamp::from_millis(NOW_MS), ..Proposal::default() }
    }

    fn sealing(epoch: Epoch, sealed: u64, members_at: u64) -> Proposal {
        Proposal { seal: Some(Seal { epoch, sealed: Epoch(sealed), into: LEFT, members_at }), ..proposal() }
    }

    fn absorbing(epoch: Epoch, sealed: u64, end: &str, members_at: u64) -> Proposal {
        let absorb = Absorb { epoch, right: RIGHT, sealed: Epoch(sealed), end: encoded(end), members_at };
        Proposal { absorb: Some(absorb), ..proposal() }
    }

    fn seal_and_absorb(machines: &mut Machines, left: &mut ShardMachine, right: &mut ShardMachine) {
        assert!(machines.apply(right, 5, &sealing(EPOCHS.1, 6, 5)).expect("sealed").applied);
        assert!(machines.apply(left, 5, &absorbing(EPOCHS.0, 6, "z", 5)).expect("absorbed").applied);
    }

    fn lives(machines: &Machines, shard: ShardId) -> bool {
        Record::load(&*machines.memory, shard).expect("reads").is_some_and(|record| !record.tombstone)
    }

    #[test]
    fn one_shard_owns_what_two_did_and_remembers_what_both_were_asked() {
        let mut machines = Machines::new();
        let (mut left, mut right) = neighbours(&machines);
        let first = machines.put(&mut left, 2, "b", 1).expect("taken");
        let second = machines.put(&mut right, 5, "x", 2).expect("taken");
        let before = (state(&left), state(&right));
        seal_and_absorb(&mut machines, &mut left, &mut right);

        let now = state(&left);
        assert_eq!((&now.start, &now.end, now.epoch), (&encoded("a"), &encoded("z"), Epoch(7)));
        assert_eq!(now.last_timestamp, before.0.last_timestamp.max(before.1.last_timestamp));
        assert_eq!((now.divided_at, now.sealed_for), (machines.index, None));
        assert!(matches!(machines.news.try_recv(), Ok(News::Absorbed(RIGHT))));
        assert!(lives(&machines, LEFT) && !lives(&machines, RIGHT));
        assert!(machine::load(&*machines.memory, RIGHT).expect("reads").is_none());

        // Who was routed by the ranges that were is refused, and nothing is written.
        for (epoch, key) in [(2, "c"), (5, "y"), (6, "y")] {
            assert_eq!(machines.put(&mut left, epoch, key, 3).expect_err("old").reason, Reason::WrongEpoch);
            assert_eq!(machines.put(&mut right, epoch, key, 3).expect_err("ended").reason, Reason::WrongEpoch);
            assert!(!machines.get(key));
        }
        machines.put(&mut left, 7, "c", 4).expect("the left part");
        machines.put(&mut left, 7, "y", 5).expect("the right part");
        // A request that took effect before is answered again, whichever of the two it was asked of.
        assert_eq!(machines.put(&mut left, 7, "b", 1), Ok(first));
        assert_eq!(machines.put(&mut left, 7, "x", 2), Ok(second));
        // What has ended is not sent anything any more.
        let late = State::fresh(TableId(1), encoded("m"), encoded("z"), Epoch(9));
        assert!(right.cutter().may_install(&late.encode()).expect("reads").is_err());
    }

    /// Whoever believed that the right replica is still there, and to be destroyed.
    #[test]
    #[should_panic(expected = "is another's")]
    fn what_was_taken_over_cannot_be_removed_as_the_right_ones() {
        let mut machines = Machines::new();
        let (mut left, mut right) = neighbours(&machines);
        seal_and_absorb(&mut machines, &mut left, &mut right);
        let old = record(RIGHT, "m", "z", EPOCHS.1);
        let _ = old.destroy(&*machines.memory, &old.start, &old.end);
    }

    #[test]
    fn a_node_starts_first_what_may_be_absorbed_as_soon_as_its_neighbour_runs() {
        let mut machines = Machines::new();
        let (mut left, mut right) = neighbours(&machines);
        let order = |machines: &Machines| {
            survivors(&*machines.memory).expect("reads").iter().map(|record| record.shard).collect::<Vec<_>>()
        };
        assert_eq!(order(&machines), [LEFT, RIGHT]);
        machines.apply(&mut right, 5, &sealing(EPOCHS.1, 6, 5)).expect("sealed");
        assert_eq!(order(&machines), [RIGHT, LEFT]);
        machines.apply(&mut left, 5, &absorbing(EPOCHS.0, 6, "z", 5)).expect("absorbed");
        assert_eq!(order(&machines), [LEFT]);
    }

    #[test]
    fn what_is_sealed_stays_as_it_is() {
        let mut machines = Machines::new();
        let (_left, mut right) = neighbours(&machines);
        machines.put(&mut right, 5, "x", 1).expect("taken");
        machines.apply(&mut right, 5, &sealing(EPOCHS.1, 6, 5)).expect("sealed");
        let sealed = state(&right);
        let later = Timestamp::from_millis(NOW_MS + 1_000_000);
        for wish in [
            Proposal { passed: Some(later), ..proposal() },
            Proposal { stamped: later, horizon: Some(later), ..proposal() },
        ] {
            let entry = crate::raft::Entry { index: machines.index + 1, payload: Some(wish.encode()), members_at: 5 };
            machines.index += 1;
            right.apply(vec![entry], "mark".into()).expect("storage works");
            assert_eq!(State { mark: sealed.mark.clone(), ..state(&right) }, sealed);
        }
        for wish in [sealing(Epoch(6), 8, 5), sealing(EPOCHS.1, 6, 5), absorbing(Epoch(6), 8, "z", 5)] {
            assert_eq!(machines.apply(&mut right, 5, &wish).expect_err("too late").reason, Reason::WrongEpoch);
        }
        assert_eq!(machines.put(&mut right, 6, "y", 2).expect_err("nobody's").reason, Reason::WrongEpoch);
        assert!(right.cutter().may_install(&State { sealed_for: None, ..sealed }.encode()).expect("reads").is_err());
    }

    #[test]
    fn what_was_decided_on_other_grounds_does_not_merge() {
        let mut machines = Machines::new();
        let (mut left, mut right) = neighbours(&machines);
        for (members_at, wish, reason) in [
            (5, sealing(Epoch(4), 6, 5), Reason::WrongEpoch),
            (5, sealing(EPOCHS.1, 5, 5), Reason::WrongEpoch),
            (6, sealing(EPOCHS.1, 6, 5), Reason::Conflict),
        ] {
            assert_eq!(machines.apply(&mut right, members_at, &wish).expect_err("refused").reason, reason);
            assert_eq!(state(&right).sealed_for, None);
        }
        machines.apply(&mut right, 5, &sealing(EPOCHS.1, 6, 5)).expect("sealed");
        for (members_at, wish, reason) in [
            (5, absorbing(Epoch(1), 6, "z", 5), Reason::WrongEpoch),
            (6, absorbing(EPOCHS.0, 6, "z", 5), Reason::Conflict),
        ] {
            assert_eq!(machines.apply(&mut left, members_at, &wish).expect_err("refused").reason, reason);
            assert_eq!(state(&left).end, encoded("m"));
            assert!(lives(&machines, RIGHT));
        }
        machines.apply(&mut left, 5, &absorbing(EPOCHS.0, 6, "z", 5)).expect("absorbed");
        let again = machines.apply(&mut left, 5, &absorbing(EPOCHS.0, 6, "z", 5)).expect_err("a second leader's");
        assert_eq!(again.reason, Reason::WrongEpoch);
    }

    #[test]
    fn who_does_not_find_what_it_is_to_take_over_stops() {
        for sealed in [false, true] {
            let mut machines = Machines::new();
            let (mut left, mut right) = neighbours(&machines);
            if sealed {
                machines.apply(&mut right, 5, &sealing(EPOCHS.1, 6, 5)).expect("sealed");
                let record = record(RIGHT, "m", "z", EPOCHS.1);
                record.destroy(&*machines.memory, &record.start, &record.end).expect("destroyed");
            }
            let payload = Some(absorbing(EPOCHS.0, 6, "z", 5).encode());
            let entry = crate::raft::Entry { index: 1, payload, members_at: 5 };
            let error = left.apply(vec![entry], "mark".into()).expect_err("it must not guess");
            assert!(error.to_string().contains("`trivet shard move`"), "{error}");
        }
    }

    #[test]
    fn a_crash_leaves_two_shards_or_one() {
        for synced in [false, true] {
            let mut machines = Machines::new();
            let (mut left, mut right) = neighbours(&machines);
            machines.put(&mut left, 2, "b", 1).expect("taken");
            machines.put(&mut right, 5, "x", 2).expect("taken");
            machines.apply(&mut right, 5, &sealing(EPOCHS.1, 6, 5)).expect("sealed");
            machines.memory.sync().expect("memory syncs");
            machines.apply(&mut left, 5, &absorbing(EPOCHS.0, 6, "z", 5)).expect("absorbed");
            if synced {
                machines.memory.sync().expect("memory syncs");
            }
            machines.memory.crash();
            let survivors = survivors(&*machines.memory).expect("reads");
            assert_eq!(survivors.len(), if synced { 1 } else { 2 });
            let mut left = machines.open(LEFT, state(&left));
            assert_eq!(state(&left).epoch == Epoch(7), synced);
            if !synced {
                // The entry is applied again, and finds the right one as it was.
                machines.apply(&mut left, 5, &absorbing(EPOCHS.0, 6, "z", 5)).expect("absorbed");
            }
            assert_eq!(state(&left).end, encoded("z"));
            assert!(machines.get("b") && machines.get("x"));
        }
    }

    #[test]
    fn the_horizon_of_one_does_not_trim_the_outcomes_that_the_other_must_keep() {
        let mut machines = Machines::new();
        let (mut left, mut right) = neighbours(&machines);
        let late = Timestamp::from_millis(NOW_MS + 60_000);
        let trimmed = Proposal { stamped: late, passed: Some(late), horizon: Some(late), ..Proposal::default() };
        let entry = crate::raft::Entry { index: 100, payload: Some(trimmed.encode()), members_at: 5 };
        left.apply(vec![entry], "mark".into()).expect("storage works");
        assert_eq!(state(&left).horizon, late);
        machines.put_carrying(&mut right, 5, "x", 2).expect("taken");
        seal_and_absorb(&mut machines, &mut left, &mut right);
        // Its version may be trimmed from now on: so it is not known any more, rather than taken for new.
        assert_eq!(state(&left).horizon, late);
        assert_eq!(machines.put(&mut left, 7, "x", 2).expect_err("expired").reason, Reason::RequestExpired);
    }

    #[test]
    fn a_snapshot_from_after_the_merge_ends_the_right_replica() {
        // Of the whole, of a part that was split off it since, and of one that ends before the place where they met.
        // One that slept through the seal is over as well.
        for (end, sealed) in [("z", true), ("s", true), ("k", true), ("z", false), ("s", false)] {
            let mut sender = Machines::new();
            let absorbed = vec![RIGHT];
            let fresh = State { absorbed, ..State::fresh(TableId(1), encoded("a"), encoded(end), Epoch(7)) };
            let mut sent = sender.open(LEFT, fresh);
            sender.put(&mut sent, 7, "c", 1).expect("taken");
            let directory = tempfile::tempdir().expect("a directory");
            let mut cut = sent.cutter().cut(directory.path()).expect("a cut");

            let mut machines = Machines::new();
            let (mut left, mut right) = neighbours(&machines);
            machines.put(&mut left, 2, "b", 1).expect("taken");
            machines.put(&mut right, 5, "x", 2).expect("taken");
            if sealed {
                machines.apply(&mut right, 5, &sealing(EPOCHS.1, 6, 5)).expect("sealed");
            }
            let asked = |summary: &bytes::Bytes| left.cutter().may_install(summary).expect("reads");
            assert_eq!(asked(&cut.summary()), Ok(()));
            let early = State::fresh(TableId(1), encoded("a"), encoded("z"), Epoch(7));
            assert!(asked(&early.encode()).is_err(), "one that has not taken it over");

            let files: Vec<PathBuf> = std::iter::from_fn(|| cut.next_file().expect("it is written")).collect();
            left.install("test", &cut.summary(), files).expect("installed");
            assert_eq!(state(&left), state(&sent));
            assert!(!lives(&machines, RIGHT));
            assert!(machines.get("c") && !machines.get("b") && !machines.get("x"), "{end}: what was there is gone");
            assert_eq!(survivors(&*machines.memory).expect("reads").len(), 1);
        }
    }

    #[test]
    fn a_merge_that_was_abandoned_never_comes_about() {
        let mut machines = Machines::new();
        let (mut left, mut right) = neighbours(&machines);
        machines.put(&mut right, 5, "x", 1).expect("taken");
        machines.apply(&mut right, 5, &sealing(EPOCHS.1, 6, 5)).expect("sealed");
        let sealed = state(&right);
        let off = |epoch: u64, next: u64| Proposal {
            abandon: Some(Abandon { epoch: Epoch(epoch), next: Epoch(next) }),
            ..proposal()
        };
        assert_eq!(machines.apply(&mut left, 5, &off(1, 6)).expect_err("old").reason, Reason::WrongEpoch);
        assert_eq!(machines.apply(&mut left, 5, &off(2, 2)).expect_err("no later").reason, Reason::WrongEpoch);
        machines.apply(&mut left, 5, &off(2, 6)).expect("off");
        assert_eq!(state(&left).divided_at, machines.index, "a newcomer waits for a snapshot");
        let late = machines.apply(&mut left, 5, &absorbing(EPOCHS.0, 6, "z", 5)).expect_err("too late");
        assert_eq!(late.reason, Reason::WrongEpoch);
        machines.apply(&mut right, 5, &off(6, 7)).expect("it goes on");
        machines.put(&mut left, 6, "c", 2).expect("the left part");
        machines.put(&mut right, 7, "y", 3).expect("the right part");
        // A seal that was on its way all the time.
        let late = machines.apply(&mut right, 5, &sealing(EPOCHS.1, 6, 5)).expect_err("too late");
        assert_eq!(late.reason, Reason::WrongEpoch);
        // A replica that is sealed still may be sent what came after.
        let mut slept = Machines::new();
        let (mut beside, mut behind) = neighbours(&slept);
        slept.apply(&mut behind, 5, &sealing(EPOCHS.1, 6, 5)).expect("sealed");
        let may = |machine: &ShardMachine, state: &State| machine.cutter().may_install(&state.encode()).expect("reads");
        assert_eq!(may(&behind, &state(&right)), Ok(()));
        // So may one be that is sealed no less, once the left one beside it cannot absorb it any more.
        assert!(may(&behind, &sealed).is_err());
        slept.apply(&mut beside, 5, &off(2, 6)).expect("off");
        assert_eq!(may(&behind, &sealed), Ok(()));
        // And they are merged another time.
        machines.apply(&mut right, 5, &sealing(Epoch(7), 8, 5)).expect("sealed");
        machines.apply(&mut left, 5, &absorbing(Epoch(6), 8, "z", 5)).expect("absorbed");
        assert_eq!((state(&left).epoch, state(&left).absorbed), (Epoch(9), vec![RIGHT]));
    }

    #[test]
    fn a_crash_within_such_an_installation_is_mended_at_the_start() {
        let mut machines = Machines::new();
        let (mut left, mut right) = neighbours(&machines);
        machines.apply(&mut right, 5, &sealing(EPOCHS.1, 6, 5)).expect("sealed");
        let alive = Record::load(&*machines.memory, RIGHT).expect("reads").expect("there");
        let sealed = state(&right);
        machines.apply(&mut left, 5, &absorbing(EPOCHS.0, 6, "z", 5)).expect("absorbed");
        // As it is when the files are in, and the record is not a tombstone yet.
        let mut batch = Batch::new();
        alive.put(&mut batch);
        batch.put(storage::Family::Data, crate::keyspace::side::applied(RIGHT), sealed.encode());
        machines.memory.write(batch).expect("written");
        let survivors = survivors(&*machines.memory).expect("reads");
        assert_eq!(survivors.iter().map(|record| record.shard).collect::<Vec<_>>(), [LEFT]);
        assert!(!lives(&machines, RIGHT));
    }
}
