//! A group whose quorum is lost for good: what one stopped replica holds of it, and how that replica becomes the group.
//!
//! [`Remains::read`] looks at the log of a replica that is not running. [`Remains::take_over`] makes it the only voter of
//! its group, in one batch: it appends, in a term of its own, the membership that says so and one entry of the caller's.
//! When the replica is started, it elects itself, and everything in its log is committed then.
//!
//! Invariants
//! - *It gets a new id.* Messages name the replica they are for, so no former member of the group can reach it, let alone
//!   outvote it or cut its log, however high its term has become meanwhile. Nor can it reach them.
//! - Of several survivors, the one whose log ends last ([`Position`]s are ordered as elections order them) holds every
//!   entry of which any of them could know that it was committed: whoever led the term of that end had them, and logs that
//!   agree in one entry agree in all before it. So that one is to be taken.
//! - Nothing that the log holds is removed. What follows the applied position is not known to be committed and takes effect
//!   all the same; nobody was told that it would not.
//!
//! Left out: which groups have lost their quorum, and who survives (recover).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::codec::{self, CodecError};
use super::machine::Entry;
use super::types::{Command, LeaderId, LogEntry, LogId, Membership, Payload, StoredMembership, Vote};
use crate::storage::{self, Batch, Family, Lookup, Reader, Tier, log_keys};
use crate::types::{NodeId, ReplicaId, ShardId};

/// A place in a log. The greater one is the more advanced, as in an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// The term in which the entry was proposed.
    pub term: u64,
    /// The replica that led then.
    pub leader: ReplicaId,
    /// The entry's index.
    pub index: u64,
}

/// What a stopped replica holds of its group.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Remains {
    /// The highest term it has voted in.
    pub voted_in: u64,
    /// The last entry of its log; the applied one if a snapshot has gone beyond the log. None if it has nothing.
    pub last: Option<Position>,
    /// The last entry applied.
    pub applied: Option<Position>,
    /// The sets of voters of which a majority each decides, by the newest configuration in its log: two of them while
    /// members are being exchanged, none if it knows no configuration.
    pub quorums: Vec<BTreeSet<ReplicaId>>,
    /// All members, with their nodes.
    pub members: BTreeMap<ReplicaId, NodeId>,
    /// The applied state has gone beyond the log (a crash came between a snapshot and the trimming of the log).
    pub ahead_of_log: bool,
}

fn position(id: &LogId) -> Position {
    Position { term: id.leader_id.term, leader: ReplicaId(id.leader_id.node_id), index: id.index }
}

impl Remains {
    /// Reads what lies in storage; `mark` is the position stored with the applied state. `each` is told of the entries after
    /// that, in order, as a machine would be.
    pub fn read(
        reader: &dyn Reader,
        group: ShardId,
        mark: Option<Bytes>,
        mut each: impl FnMut(Entry),
    ) -> storage::Result<Remains> {
        let corrupt = |error: CodecError| storage::Error::corruption(format!("the log of {group}: {error}"));
        let stored = |key: Bytes| match reader.get(Family::Raft, &key, Tier::Disk)? {
            Lookup::Found(bytes) => Ok(Some(bytes)),
            Lookup::Missing | Lookup::NeedsDisk => Ok::<_, storage::Error>(None),
        };
        let vote = stored(log_keys::vote(group))?.map(codec::decode_vote).transpose().map_err(corrupt)?;
        let purged = stored(log_keys::purged(group))?.map(codec::decode_log_id).transpose().map_err(corrupt)?;
        let (applied, mut membership) = match mark.filter(|mark| !mark.is_empty()) {
            Some(mark) => codec::decode_mark(mark).map_err(corrupt)?,
            None => (None, StoredMembership::default()),
        };
        let mut last = purged;
        let from = applied.max(purged).map_or(0, |id| id.index + 1);
        let first = purged.map_or(0, |id| id.index + 1);
        let (start, end) = log_keys::entries_range(group, first, u64::MAX);
        let mut cursor = reader.cursor(Family::Log, &start, &end);
        cursor.seek_last();
        if let Some((_, value)) = cursor.entry() {
            last = Some(codec::decode_entry(Bytes::copy_from_slice(value)).map_err(corrupt)?.id);
        }
        // What was applied has its members in the mark; what follows may set others.
        cursor.seek(&log_keys::entry(group, from));
        while let Some((_, value)) = cursor.entry() {
            let entry = codec::decode_entry(Bytes::copy_from_slice(value)).map_err(corrupt)?;
            let payload = match entry.payload {
                Payload::Membership(members) => {
                    membership = StoredMembership::new(Some(entry.id), members);
                    None
                }
                Payload::Normal(Command(payload)) => Some(payload),
                Payload::Blank => None,
            };
            let members_at = membership.log_id().as_ref().map_or(0, |id| id.index);
            each(Entry { index: entry.id.index, payload, members_at });
            cursor.next();
        }
        cursor.status()?;
        let membership = membership.membership();
        let replicas = |config: &BTreeSet<u64>| config.iter().copied().map(ReplicaId).collect::<BTreeSet<_>>();
        Ok(Remains {
            voted_in: vote.map_or(0, |vote| vote.leader_id.term),
            last: last.max(applied).as_ref().map(position),
            applied: applied.as_ref().map(position),
            quorums: membership.get_joint_config().iter().map(replicas).filter(|voters| !voters.is_empty()).collect(),
            members: membership.nodes().map(|(&replica, &node)| (ReplicaId(replica), node)).collect(),
            ahead_of_log: last < applied,
        })
    }

    /// Whether the group can go on with those that are `alive`: a majority of each set of voters. Not if it has no voters.
    pub fn has_quorum(&self, alive: impl Fn(ReplicaId) -> bool) -> bool {
        let majority = |voters: &BTreeSet<ReplicaId>| 2 * voters.iter().filter(|&&id| alive(id)).count() > voters.len();
        !self.quorums.is_empty() && self.quorums.iter().all(majority)
    }

    /// Entries after the applied one: nothing here tells whether they were committed.
    pub fn unapplied(&self) -> u64 {
        let next = |at: Option<Position>| at.map_or(0, |at| at.index + 1);
        next(self.last).saturating_sub(next(self.applied))
    }

    /// Adds to a batch what makes the replica, under the id `heir`, the only member of its group, and after that an entry
    /// with `payload`. It must hold something. The caller exchanges the replica's record in the same batch.
    pub fn take_over(&self, group: ShardId, heir: ReplicaId, node: NodeId, payload: Bytes, batch: &mut Batch) {
        let last = self.last.expect("only a replica that holds something takes over");
        if self.ahead_of_log {
            let applied = self.applied.expect("what is ahead of the log was applied");
            let leader = LeaderId { term: applied.term, node_id: applied.leader.0 };
            let (start, end) = log_keys::entries_range(group, 0, u64::MAX);
            batch.delete_range(Family::Log, start, end);
            batch.put(Family::Raft, log_keys::purged(group), codec::encode_log_id(&LogId::new(leader, applied.index)));
        }
        let term = self.voted_in.max(last.term) + 1;
        let leader = LeaderId { term, node_id: heir.0 };
        let voters = BTreeSet::from([heir.0]);
        let members = Membership::new(vec![voters], BTreeMap::from([(heir.0, node)])).expect("one voter is a group");
        for (at, payload) in (last.index + 1..).zip([Payload::Membership(members), Payload::Normal(Command(payload))]) {
            let entry = LogEntry { id: LogId::new(leader, at), payload, encoded: None };
            batch.put(Family::Log, log_keys::entry(group, at), codec::encode_entry(&entry));
        }
        batch.put(Family::Raft, log_keys::vote(group), codec::encode_vote(&Vote::new(term, heir.0)));
    }
}

/// Logs written by hand, for the tests of those who read stopped stores.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Adds an entry that asks for nothing to a group's log.
    pub fn blank(group: ShardId, at: Position, batch: &mut Batch) {
        put(group, at, Payload::Blank, batch);
    }

    /// Adds an entry with a payload to a group's log.
    pub fn entry(group: ShardId, at: Position, payload: Bytes, batch: &mut Batch) {
        put(group, at, Payload::Normal(Command(payload)), batch);
    }

    fn put(group: ShardId, at: Position, payload: Payload, batch: &mut Batch) {
        let id = LogId::new(LeaderId { term: at.term, node_id: at.leader.0 }, at.index);
        let entry = LogEntry { id, payload, encoded: None };
        batch.put(Family::Log, log_keys::entry(group, at.index), codec::encode_entry(&entry));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Engine, Memory};

    #[test]
    fn a_replica_whose_snapshot_has_gone_beyond_its_log_goes_on_from_the_snapshot() {
        let (group, old, heir, node) = (ShardId(7), ReplicaId(3), ReplicaId(70), NodeId(1));
        let memory = Memory::new().expect("a directory");
        let mut batch = Batch::new();
        for index in 1..=3 {
            testing::blank(group, Position { term: 1, leader: old, index }, &mut batch);
        }
        memory.write(batch).expect("written");
        let applied = LogId::new(LeaderId { term: 2, node_id: 3 }, 10);
        let voters = BTreeSet::from([3, 4, 5]);
        let nodes: BTreeMap<u64, NodeId> = voters.iter().map(|&voter| (voter, NodeId(voter))).collect();
        let members = Membership::new(vec![voters], nodes).expect("a group");
        let mark = codec::encode_mark(Some(&applied), &StoredMembership::new(Some(applied), members));
        let read = || Remains::read(&*memory, group, Some(mark.clone()), |_| ()).expect("it can be read");
        let before = read();
        assert!(before.ahead_of_log && before.last == before.applied && before.unapplied() == 0, "{before:?}");

        let mut batch = Batch::new();
        before.take_over(group, heir, node, "recovered".into(), &mut batch);
        memory.write(batch).expect("written");
        let mut seen = Vec::new();
        let after =
            Remains::read(&*memory, group, Some(mark.clone()), |entry| seen.push(entry)).expect("it can be read");
        assert_eq!(after.last, Some(Position { term: 3, leader: heir, index: 12 }));
        assert_eq!((after.quorums, after.ahead_of_log), (vec![BTreeSet::from([heir])], false));
        let payloads: Vec<_> = seen.into_iter().map(|entry| (entry.index, entry.payload, entry.members_at)).collect();
        assert_eq!(payloads, [(11, None, 11), (12, Some("recovered".into()), 11)], "nothing is left of the older log");
    }
}
