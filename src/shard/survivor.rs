//! Replicas on a stopped node: what each still holds, and what becomes of one whose group has lost its quorum.
//!
//! One of the survivors of such a group takes over: under a new id it is the only member, and the next epoch begins, so that
//! whoever was routed by a map from before asks for the map again. What it writes for that is added to a batch; whoever
//! recovers a node makes one batch of all its replicas, so a crash leaves the node as it was or as it is to be.
//!
//! Left out: choosing (recover), and everything that happens once the node runs again.

use crate::raft::Remains;
use crate::storage::{Batch, Reader};
use crate::types::{Epoch, NodeId, ReplicaId, Result, Timestamp};

use super::command::Proposal;
use super::machine;
use super::record::Record;
use super::state::State;

/// A replica that is not running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survivor {
    /// Its record.
    pub record: Record,
    /// Its applied state, if it has applied anything.
    pub state: Option<State>,
    /// What it holds of its group.
    pub log: Remains,
}

impl Survivor {
    /// All replicas of a store; those that were destroyed are left out.
    pub fn load_all(reader: &dyn Reader) -> Result<Vec<Survivor>> {
        let mut all = Vec::new();
        for record in Record::load_all(reader)?.into_iter().filter(|record| !record.tombstone) {
            let state = machine::load(reader, record.shard)?;
            let mark = state.as_ref().and_then(|state| state.mark.clone());
            let log = Remains::read(reader, record.shard, mark)?;
            all.push(Survivor { record, state, log });
        }
        Ok(all)
    }

    /// The epoch it has applied.
    pub fn epoch(&self) -> Epoch {
        self.state.as_ref().map_or(self.record.epoch, |state| state.epoch)
    }

    /// The newest timestamp it has applied.
    pub fn newest(&self) -> Timestamp {
        self.state.as_ref().map_or(Timestamp::ZERO, |state| state.last_timestamp)
    }

    /// Adds to a batch what makes it, as `heir` on `node`, the only member of its group. No later version will lie at or
    /// before `now`, which must not be before any that the lost replicas acknowledged.
    pub fn take_over(&self, heir: ReplicaId, node: NodeId, now: Timestamp, batch: &mut Batch) {
        let proposal = Proposal { stamped: now, passed: Some(now), recovered: true, ..Proposal::default() };
        self.log.take_over(self.record.shard, heir, node, proposal.encode(), batch);
        Record { replica: heir, ..self.record.clone() }.put(batch);
    }

    /// Adds to a batch what removes all it holds and makes an empty replica `heir` of it, which begins with a snapshot.
    pub fn begin_anew(&self, heir: ReplicaId, batch: &mut Batch) {
        let (start, end) = match &self.state {
            Some(state) => (&state.start, &state.end),
            None => (&self.record.start, &self.record.end),
        };
        self.record.erase(start, end, batch);
        let epoch = Epoch(self.epoch().0 + 1);
        Record { replica: heir, start: start.clone(), end: end.clone(), epoch, ..self.record.clone() }.put(batch);
    }
}
