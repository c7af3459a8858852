//! Replicas on a stopped node: what each still holds, and what becomes of one whose group has lost its quorum.
//!
//! One of the survivors of such a group takes over: under a new id it is the only member. What it writes for that is added to
//! a batch; whoever recovers a node makes one batch of all its replicas, so a crash leaves the node as it was or as it is to
//! be.
//!
//! Invariants
//! - Everything in the log of who takes over takes effect, as it would on any leader. So what counts of its range and epoch is
//!   not the applied state but the state at the end of the log ([`Survivor::end`]), which is computed here: splits and the
//!   halves of merges may still lie before it.
//! - The epoch stays. Only members change, as in a move, so splits and merges go on, or are abandoned, by their own rules.
//! - A sealed shard stays sealed: its left neighbour may have taken it over, and only that one's log knows. The one exception
//!   is that nothing is left of the neighbour.
//!
//! Left out: choosing (recover), and everything that happens once the node runs again.

use std::collections::BTreeSet;

use super::command::{Abandon, Proposal};
use super::record::Record;
use super::state::State;
use super::{division, machine, merging};
use crate::raft::{Entry, Remains};
use crate::storage::{Batch, Reader};
use crate::types::{Epoch, NodeId, ReplicaId, Result, ShardId, Timestamp, Write};

/// A replica that is not running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survivor {
    /// Its record.
    pub record: Record,
    /// Its applied state, if it has applied anything.
    pub state: Option<State>,
    /// Its range and epoch, and whether it is sealed, when everything in its log is applied.
    pub end: State,
    /// What it holds of its group.
    pub log: Remains,
    /// Of shard 0: the writes in its log that it has not applied, in order, each with the timestamp that it gets if it takes
    /// effect.
    pub writes: Vec<(Timestamp, Write)>,
}

impl Survivor {
    /// All replicas of a store; those that have ended are left out, be it that only a crash has kept them from being removed.
    pub fn load_all(reader: &dyn Reader) -> Result<Vec<Survivor>> {
        let mut all = Vec::new();
        for record in Record::load_all(reader)?.into_iter().filter(|record| !record.tombstone) {
            let state = machine::load(reader, record.shard)?;
            let mark = state.as_ref().and_then(|state| state.mark.clone());
            let begun = || State::fresh(record.table, record.start.clone(), record.end.clone(), record.epoch);
            let mut end = state.clone().unwrap_or_else(begun);
            let mut writes = Vec::new();
            let mut broken = None;
            let log = Remains::read(reader, record.shard, mark, |entry| match follow(record.shard, &mut end, entry) {
                Ok(new) if record.shard == ShardId::SYSTEM => writes.extend(new),
                Ok(_) => {}
                Err(error) => broken = broken.take().or(Some(error)),
            })?;
            if let Some(error) = broken {
                return Err(error);
            }
            all.push(Survivor { record, state, end, log, writes });
        }
        let over: BTreeSet<ShardId> =
            all.iter().filter_map(|one| one.state.as_ref()).flat_map(|state| state.absorbed.iter().copied()).collect();
        all.retain(|one| !over.contains(&one.record.shard));
        Ok(all)
    }

    /// The newest timestamp it has applied.
    pub fn newest(&self) -> Timestamp {
        self.state.as_ref().map_or(Timestamp::ZERO, |state| state.last_timestamp)
    }

    /// Adds to a batch what makes it, as `heir` on `node`, the only member of its group. No later version will lie at or
    /// before `now`, which must not be before any that the lost replicas acknowledged. If it is sealed, `release` has it go
    /// on by itself: only if nothing is left of the left neighbour.
    pub fn take_over(&self, heir: ReplicaId, node: NodeId, now: Timestamp, release: bool, batch: &mut Batch) {
        let abandon = (release && self.end.sealed_for.is_some())
            .then(|| Abandon { epoch: self.end.epoch, next: Epoch(self.end.epoch.0 + 1) });
        let proposal = Proposal { stamped: now, passed: Some(now), abandon, ..Proposal::default() };
        self.log.take_over(self.record.shard, heir, node, proposal.encode(), batch);
        Record { replica: heir, ..self.record.clone() }.put(batch);
    }

    /// Adds to a batch what removes all it holds and makes an empty replica `heir` of it, which is sent everything.
    pub fn begin_anew(&self, heir: ReplicaId, batch: &mut Batch) {
        let (start, end) = match &self.state {
            Some(state) => (&state.start, &state.end),
            None => (&self.record.start, &self.record.end),
        };
        self.record.erase(start, end, batch);
        Record { replica: heir, ..self.record.clone() }.put(batch);
    }
}

/// Does to a state what an entry does to range, epoch, seal and timestamps. Returns its writes.
fn follow(shard: ShardId, state: &mut State, entry: Entry) -> Result<Vec<(Timestamp, Write)>> {
    let Some(payload) = entry.payload else { return Ok(Vec::new()) };
    let mut proposal = Proposal::decode(payload)?;
    let mut writes = Vec::with_capacity(proposal.commands.len());
    for command in std::mem::take(&mut proposal.commands) {
        state.last_timestamp = proposal.stamped.max(state.last_timestamp.next());
        writes.push((state.last_timestamp, command.write));
    }
    state.last_timestamp = state.last_timestamp.max(proposal.passed.unwrap_or_default());
    // A refusal has no effect; whoever proposed it has heard of it.
    if let Some(abandon) = &proposal.abandon {
        let _ = merging::abandon(shard, state, abandon, entry.index);
        return Ok(writes);
    }
    if let Some(split) = &proposal.split {
        let _ = division::divide(shard, state, split, entry.index, entry.members_at);
    }
    if let Some(seal) = &proposal.seal {
        let _ = merging::seal(shard, state, seal, entry.members_at);
    }
    if let Some(absorb) = &proposal.absorb
        && merging::admits(shard, state, absorb, entry.members_at).is_ok()
    {
        // It was proposed only when the right shard lay sealed beside every member, durably.
        state.end = absorb.end.clone();
        state.epoch = Epoch(absorb.sealed.0 + 1);
    }
    Ok(writes)
}

/// Log entries written by hand, for the tests of those who read stopped stores.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::shard::command::Command;

    /// The payload of an entry with one write, of a shard of epoch 1.
    pub fn proposal(write: Write) -> bytes::Bytes {
        Proposal { commands: vec![Command { epoch: Epoch(1), write, upkeep: None }], ..Proposal::default() }.encode()
    }
}

#[cfg(test)]
mod tests {
    use super::super::command::{Absorb, ChildReplica, Command, Seal, Split};
    use super::*;
    use crate::types::{Incarnation, TableId};

    const SHARD: ShardId = ShardId(7);
    const OTHER: ShardId = ShardId(9);
    const MEMBERS_AT: u64 = 3;

    /// The range, epoch and seal after these proposals, of a shard of epoch 2 that owns from "a" to "z".
    fn after(proposals: &[Proposal]) -> (State, String) {
        let mut state = State::fresh(TableId(1), "a".into(), "z".into(), Epoch(2));
        for (index, proposal) in (10..).zip(proposals) {
            let entry = Entry { index, payload: Some(proposal.encode()), members_at: MEMBERS_AT };
            assert_eq!(follow(SHARD, &mut state, entry), Ok(Vec::new()));
        }
        assert_eq!(follow(SHARD, &mut state, Entry { index: 99, payload: None, members_at: 99 }), Ok(Vec::new()));
        let shown = format!("{} {}", state.end.escape_ascii(), state.epoch);
        (state, shown)
    }

    fn split(members_at: u64) -> Proposal {
        let (node, incarnation) = (NodeId(1), Incarnation(1));
        let replicas = vec![ChildReplica { replica: ReplicaId(5), node, incarnation, voter: true }];
        let split = Split { epoch: Epoch(2), at: "m".into(), child: OTHER, members_at, replicas };
        Proposal { split: Some(split), ..Proposal::default() }
    }

    #[test]
    fn what_is_still_to_be_applied_tells_the_range_to_come() {
        let seal = Seal { epoch: Epoch(2), sealed: Epoch(6), into: OTHER, members_at: MEMBERS_AT };
        let seal = Proposal { seal: Some(seal), ..Proposal::default() };
        let absorb =
            Absorb { epoch: Epoch(2), right: OTHER, sealed: Epoch(6), end: "zz".into(), members_at: MEMBERS_AT };
        let absorb = Proposal { absorb: Some(absorb), ..Proposal::default() };
        let abandon = |epoch: u64, next: u64| {
            let abandon = Abandon { epoch: Epoch(epoch), next: Epoch(next) };
            Proposal { abandon: Some(abandon), ..Proposal::default() }
        };
        let shown = |proposals: &[Proposal]| after(proposals).1;
        assert_eq!(shown(&[Proposal::default()]), "z e2");
        assert_eq!(shown(&[split(MEMBERS_AT)]), "m e3");
        assert_eq!(shown(&[split(MEMBERS_AT - 1)]), "z e2", "the members had changed");
        assert_eq!(shown(std::slice::from_ref(&absorb)), "zz e7");
        assert_eq!(shown(&[abandon(2, 6), absorb.clone()]), "z e6", "a merge that is off comes too late");
        assert_eq!(shown(&[absorb, split(MEMBERS_AT)]), "zz e7", "and so does a split that was routed before");
        let (sealed, text) = after(std::slice::from_ref(&seal));
        assert_eq!((sealed.sealed_for, text.as_str()), (Some(OTHER), "z e6"));
        let (released, text) = after(&[seal, abandon(6, 7)]);
        assert_eq!((released.sealed_for, text.as_str()), (None, "z e7"));
    }

    #[test]
    fn writes_that_are_still_to_be_applied_come_with_the_timestamps_they_will_get() {
        let mut state = State::fresh(TableId(1), "a".into(), "z".into(), Epoch(2));
        state.last_timestamp = Timestamp(50);
        let command = || Command { epoch: Epoch(2), write: Write::default(), upkeep: None };
        let mut stamps = |stamped: u64, passed: Option<u64>, commands: usize| {
            let commands = std::iter::repeat_with(command).take(commands).collect();
            let passed = passed.map(Timestamp);
            let payload = Proposal { stamped: Timestamp(stamped), passed, commands, ..Proposal::default() }.encode();
            let entry = Entry { index: 9, payload: Some(payload), members_at: MEMBERS_AT };
            let writes = follow(SHARD, &mut state, entry).expect("a proposal");
            writes.into_iter().map(|(at, _)| at).collect::<Vec<_>>()
        };
        let next = Timestamp(50).next();
        assert_eq!(stamps(7, None, 2), [next, next.next()], "a leader's clock may be behind");
        assert_eq!(stamps(90, Some(95), 1), [Timestamp(90)]);
        assert_eq!(stamps(90, None, 1), [Timestamp(95).next()]);
    }
}
