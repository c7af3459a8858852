//! Groups that are born with members and a state, not founded empty: the right part of a shard that was split.
//!
//! Such a group begins at one position, the same on every replica: a first entry, of no term and no leader, that nobody
//! ever wrote and that every log counts as purged. It sets the members. So each replica begins as a follower that has
//! applied this entry; one that was not born but added gets a snapshot, since there is no entry to begin with.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::codec;
use super::types::{LeaderId, LogId, Membership, StoredMembership};
use crate::storage::{Batch, Family, log_keys};
use crate::types::{NodeId, ReplicaId, ShardId};

/// The position at which a group is born.
pub struct Birth {
    shard: ShardId,
    at: LogId,
    membership: StoredMembership,
}

impl Birth {
    /// Of a group with these members. An error, in words, if they make no group.
    pub fn new(
        shard: ShardId,
        voters: &BTreeSet<ReplicaId>,
        members: &BTreeMap<ReplicaId, NodeId>,
    ) -> Result<Birth, String> {
        let at = LogId::new(LeaderId { term: 0, node_id: 0 }, 0);
        let voters: BTreeSet<u64> = voters.iter().map(|replica| replica.0).collect();
        if voters.is_empty() {
            return Err(format!("{shard} would be born without voters"));
        }
        let members: BTreeMap<u64, NodeId> = members.iter().map(|(replica, &node)| (replica.0, node)).collect();
        let membership = Membership::new(vec![voters], members).map_err(|error| error.to_string())?;
        Ok(Birth { shard, at, membership: StoredMembership::new(Some(at), membership) })
    }

    /// The mark of a machine that is there.
    pub fn mark(&self) -> Bytes {
        codec::encode_mark(Some(&self.at), &self.membership)
    }

    /// Adds a log that is there to a batch, which also holds the machine's state with [`Birth::mark`]. There must be no
    /// log of this group yet.
    pub fn put(&self, batch: &mut Batch) {
        batch.put(Family::Raft, log_keys::purged(self.shard), codec::encode_log_id(&self.at));
    }
}
