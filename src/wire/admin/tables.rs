//! Tables, shards and their members as told to clients.

use bytes::Bytes;

use super::wishes::GROUP_DELIMITER_BYTES_MAX;
use crate::types::{
    Epoch, Error, Incarnation, NodeId, Partitioning, ReplicaDescriptor, ReplicaId, ReplicaRole, Result,
    ShardDescriptor, ShardId, TableDescriptor, TableId, TableState, ViewDescriptor,
};
use crate::wire::proto::v1;

/// A replica as told to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaDetails {
    /// Its id in the group.
    pub id: ReplicaId,
    /// The node that hosts it.
    pub node: NodeId,
    /// Whether it votes.
    pub voter: bool,
}

/// A shard as told to clients. What only a replica knows is absent where no replica was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardDetails {
    /// Its id.
    pub id: ShardId,
    /// Its table.
    pub table: TableId,
    /// First encoded key it owns.
    pub start: Bytes,
    /// First encoded key it no longer owns.
    pub end: Bytes,
    /// Raised by every change of its range.
    pub epoch: Epoch,
    /// Its members.
    pub replicas: Vec<ReplicaDetails>,
    /// The node that led it last, as far as the node asked knows.
    pub leader: Option<NodeId>,
    /// Raft's term there.
    pub term: Option<u64>,
    /// Index of the last log entry there.
    pub last_log: Option<u64>,
    /// Index of the last log entry applied there.
    pub applied: Option<u64>,
    /// Whether its real members are those listed here and no change of it is under way, as its leader sees it.
    pub settled: Option<bool>,
}

impl ShardDetails {
    /// What the catalog says of a shard; leader and log positions are for the caller to add.
    pub fn of(shard: &ShardDescriptor) -> ShardDetails {
        let replicas = shard.replicas.iter().map(|replica| ReplicaDetails {
            id: replica.id,
            node: replica.node,
            voter: replica.role == ReplicaRole::Voter,
        });
        ShardDetails {
            id: shard.id,
            table: shard.table,
            start: Bytes::copy_from_slice(&shard.start),
            end: Bytes::copy_from_slice(&shard.end),
            epoch: shard.epoch,
            replicas: replicas.collect(),
            leader: None,
            term: None,
            last_log: None,
            applied: None,
            settled: None,
        }
    }

    /// A descriptor for routing: incarnations are zero and there are no founders, for those are not told to clients.
    pub fn descriptor(&self) -> ShardDescriptor {
        let replicas = self.replicas.iter().map(|replica| ReplicaDescriptor {
            id: replica.id,
            node: replica.node,
            incarnation: Incarnation::default(),
            role: if replica.voter { ReplicaRole::Voter } else { ReplicaRole::Learner },
        });
        let range = (self.start.to_vec(), self.end.to_vec());
        ShardDescriptor { epoch: self.epoch, ..ShardDescriptor::new(self.id, self.table, range, replicas.collect()) }
    }
}

impl From<ShardDetails> for v1::ShardInfo {
    fn from(shard: ShardDetails) -> v1::ShardInfo {
        let replicas = shard.replicas.into_iter().map(|replica| v1::ReplicaInfo {
            id: replica.id.0,
            node: replica.node.0,
            voter: replica.voter,
        });
        v1::ShardInfo {
            id: shard.id.0,
            table: shard.table.0,
            start: shard.start,
            end: shard.end,
            epoch: shard.epoch.0,
            replicas: replicas.collect(),
            leader: shard.leader.map(|node| node.0),
            term: shard.term,
            last_log: shard.last_log,
            applied: shard.applied,
            settled: shard.settled,
        }
    }
}

impl From<v1::ShardInfo> for ShardDetails {
    fn from(shard: v1::ShardInfo) -> ShardDetails {
        let replicas = shard.replicas.into_iter().map(|replica| ReplicaDetails {
            id: ReplicaId(replica.id),
            node: NodeId(replica.node),
            voter: replica.voter,
        });
        ShardDetails {
            id: ShardId(shard.id),
            table: TableId(shard.table),
            start: shard.start,
            end: shard.end,
            epoch: Epoch(shard.epoch),
            replicas: replicas.collect(),
            leader: shard.leader.map(NodeId),
            term: shard.term,
            last_log: shard.last_log,
            applied: shard.applied,
            settled: shard.settled,
        }
    }
}

/// A table with its shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableDetails {
    /// The table; on the wire every table serves, and a view is only said to be one: [`ViewDetails`](super::ViewDetails)
    /// has its definition.
    pub table: TableDescriptor,
    /// Its shards, in the order of their ranges.
    pub shards: Vec<ShardDetails>,
}

impl From<TableDetails> for v1::TableInfo {
    fn from(details: TableDetails) -> v1::TableInfo {
        let (partitioning, group_delimiter) = encode_partitioning(details.table.partitioning);
        v1::TableInfo {
            id: details.table.id.0,
            name: details.table.name,
            partitioning: partitioning.into(),
            group_delimiter,
            replication: details.table.replication,
            read_replicas: details.table.read_replicas,
            read_replica_zone: details.table.read_replica_zone,
            history_ms: details.table.history_ms,
            shards: details.shards.into_iter().map(Into::into).collect(),
            view: details.table.view.is_some(),
        }
    }
}

impl TryFrom<v1::TableInfo> for TableDetails {
    type Error = Error;

    fn try_from(info: v1::TableInfo) -> Result<TableDetails> {
        let table = TableDescriptor {
            id: TableId(info.id),
            name: info.name,
            partitioning: decode_partitioning(info.partitioning, info.group_delimiter)?,
            replication: info.replication,
            read_replicas: info.read_replicas,
            read_replica_zone: info.read_replica_zone,
            history_ms: info.history_ms,
            state: TableState::Ready,
            view: info.view.then(view_told),
        };
        Ok(TableDetails { table, shards: info.shards.into_iter().map(Into::into).collect() })
    }
}

/// What is known of a view by whoever was told no more than that it is one.
pub(super) fn view_told() -> ViewDescriptor {
    ViewDescriptor::default()
}

/// How a table is partitioned, in words of the protocol.
pub(super) fn encode_partitioning(partitioning: Partitioning) -> (v1::Partitioning, Option<String>) {
    match partitioning {
        Partitioning::Hash => (v1::Partitioning::Hash, None),
        Partitioning::Range { group_delimiter } => (v1::Partitioning::Range, group_delimiter),
    }
}

/// How a table is partitioned, from words of the protocol.
pub(super) fn decode_partitioning(number: i32, group_delimiter: Option<String>) -> Result<Partitioning> {
    match v1::Partitioning::try_from(number) {
        Ok(v1::Partitioning::Hash) if group_delimiter.is_some() => {
            Err(Error::invalid("a group delimiter belongs to range tables; a hash table groups by {tags}"))
        }
        Ok(v1::Partitioning::Hash) => Ok(Partitioning::Hash),
        Ok(v1::Partitioning::Range) => match group_delimiter.as_deref().map(str::len) {
            Some(0) => Err(Error::invalid("the group delimiter is empty: leave it out for a table without groups")),
            Some(length) if length > GROUP_DELIMITER_BYTES_MAX => Err(Error::invalid(format!(
                "a group delimiter of {length} bytes; at most {GROUP_DELIMITER_BYTES_MAX} are allowed"
            ))),
            _ => Ok(Partitioning::Range { group_delimiter }),
        },
        Ok(v1::Partitioning::Unspecified) | Err(_) => Err(Error::invalid("partitioning is missing: say HASH or RANGE")),
    }
}
