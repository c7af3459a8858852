//! What the cluster says of itself, as plain values: topology, tables, shards, nodes, checksums.
//!
//! Servers fill these from the catalog and from their replicas; clients route by them and people read them. A shard
//! on the wire carries the members but not the data directories behind them, so [`ShardDetails::descriptor`] gives a
//! descriptor that is good for routing only (incarnations zero, no founders).

use bytes::Bytes;

use super::errors::{error_of_failure, to_failure};
use super::proto::v1;
use crate::types::{
    ClusterId, Epoch, Error, Incarnation, Limits, NodeId, Partitioning, Reason, ReplicaDescriptor, ReplicaId,
    ReplicaRole, Result, ShardDescriptor, ShardId, TableDescriptor, TableId, TableState,
};

/// Longest name of a table, in bytes.
pub const TABLE_NAME_BYTES_MAX: usize = 128;
/// Longest group delimiter, in bytes: it is searched for in every key.
pub const GROUP_DELIMITER_BYTES_MAX: usize = 16;
/// Shards of a hash table that asks for none in particular.
pub const SHARDS_DEFAULT: u32 = 8;
/// Most shards a table can be created with: each is a Raft group on several nodes.
pub const SHARDS_MAX: u32 = 1_024;
/// How long replaced versions stay readable unless said otherwise: one hour.
pub const HISTORY_MS_DEFAULT: u64 = 60 * 60 * 1_000;

/// A table to be created, checked for everything that can be known without looking at the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTable {
    /// Its name.
    pub name: String,
    /// How its keys become encoded keys.
    pub partitioning: Partitioning,
    /// How many shards it begins with; for a range table one more than the split points.
    pub shards: u32,
    /// Range tables: the keys at which shards begin.
    pub split_points: Vec<Bytes>,
    /// Voters per shard; none: three, or as many as there are nodes if fewer.
    pub replication: Option<u32>,
    /// How long replaced versions stay readable, in milliseconds.
    pub history_ms: u64,
    /// Say what would be done and do nothing.
    pub dry_run: bool,
}

impl NewTable {
    /// A hash table with everything at its default.
    pub fn hash(name: impl Into<String>, shards: u32) -> NewTable {
        NewTable {
            name: name.into(),
            partitioning: Partitioning::Hash,
            shards,
            split_points: Vec::new(),
            replication: None,
            history_ms: HISTORY_MS_DEFAULT,
            dry_run: false,
        }
    }

    /// A range table cut at `split_points`, with everything else at its default.
    pub fn range(name: impl Into<String>, split_points: Vec<Bytes>) -> NewTable {
        let shards = u32::try_from(split_points.len() + 1).unwrap_or(u32::MAX);
        let partitioning = Partitioning::Range { group_delimiter: None };
        NewTable { partitioning, split_points, ..NewTable::hash(name, shards) }
    }

    /// Reads and checks a request to create a table.
    pub fn decode(request: v1::CreateTableRequest, limits: &Limits) -> Result<NewTable> {
        check_table_name(&request.name)?;
        let partitioning = decode_partitioning(request.partitioning, request.group_delimiter)?;
        let given = request.shards;
        let shards = match partitioning {
            Partitioning::Hash if !request.split_points.is_empty() => {
                return Err(Error::invalid(
                    "split points belong to range tables; a hash table takes a number of shards",
                ));
            }
            Partitioning::Hash if given == 0 => SHARDS_DEFAULT,
            Partitioning::Hash => given,
            Partitioning::Range { .. } => {
                let pieces = u32::try_from(request.split_points.len() + 1).unwrap_or(u32::MAX);
                if given != 0 && given != pieces {
                    let text = format!("{given} shards asked for, but the split points make {pieces}");
                    return Err(Error::invalid(text));
                }
                pieces
            }
        };
        if shards > SHARDS_MAX {
            return Err(Error::invalid(format!("{shards} shards; a table can begin with at most {SHARDS_MAX}")));
        }
        for point in &request.split_points {
            if point.is_empty() {
                return Err(Error::new(Reason::EmptyKey, "a split point needs at least one byte"));
            }
            if point.len() > limits.key_bytes_max {
                let text =
                    format!("a split point of {} bytes; at most {} are allowed", point.len(), limits.key_bytes_max);
                return Err(Error::new(Reason::KeyTooLarge, text));
            }
        }
        Ok(NewTable {
            name: request.name,
            partitioning,
            shards,
            split_points: request.split_points,
            replication: Some(request.replication).filter(|&voters| voters != 0),
            history_ms: request.history_ms.unwrap_or(HISTORY_MS_DEFAULT),
            dry_run: request.dry_run,
        })
    }

    /// The request that asks for this table.
    pub fn encode(self) -> v1::CreateTableRequest {
        let (partitioning, group_delimiter) = encode_partitioning(self.partitioning);
        v1::CreateTableRequest {
            name: self.name,
            partitioning: partitioning.into(),
            shards: self.shards,
            split_points: self.split_points,
            group_delimiter,
            replication: self.replication.unwrap_or(0),
            history_ms: Some(self.history_ms),
            dry_run: self.dry_run,
        }
    }
}

/// Refuses names that would be awkward in a shell, a URL or a metric's label.
pub fn check_table_name(name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let fits = (1..=TABLE_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(plain)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric() || first == b'_');
    if fits {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "a table's name has 1 to {TABLE_NAME_BYTES_MAX} letters, digits, '_', '-' or '.', and begins with a letter, a digit or '_'"
    )))
}

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
        ShardDescriptor {
            id: self.id,
            table: self.table,
            start: self.start.to_vec(),
            end: self.end.to_vec(),
            epoch: self.epoch,
            replicas: replicas.collect(),
            founders: Vec::new(),
        }
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
        }
    }
}

/// A table with its shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableDetails {
    /// The table; on the wire every table serves.
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
            history_ms: details.table.history_ms,
            shards: details.shards.into_iter().map(Into::into).collect(),
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
            history_ms: info.history_ms,
            state: TableState::Ready,
        };
        Ok(TableDetails { table, shards: info.shards.into_iter().map(Into::into).collect() })
    }
}

fn encode_partitioning(partitioning: Partitioning) -> (v1::Partitioning, Option<String>) {
    match partitioning {
        Partitioning::Hash => (v1::Partitioning::Hash, None),
        Partitioning::Range { group_delimiter } => (v1::Partitioning::Range, group_delimiter),
    }
}

fn decode_partitioning(number: i32, group_delimiter: Option<String>) -> Result<Partitioning> {
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

/// A node as told to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeDetails {
    /// Its id.
    pub id: NodeId,
    /// host:port of its gRPC server.
    pub address: String,
    /// host:port of its HTTP server.
    pub http_address: String,
    /// Its zone.
    pub zone: String,
    /// Its data directory.
    pub incarnation: Incarnation,
    /// Whether the node asked hears from it.
    pub alive: bool,
    /// The version it runs.
    pub version: String,
}

impl From<NodeDetails> for v1::NodeInfo {
    fn from(node: NodeDetails) -> v1::NodeInfo {
        v1::NodeInfo {
            id: node.id.0,
            address: node.address,
            http_address: node.http_address,
            zone: node.zone,
            incarnation: node.incarnation.0,
            alive: node.alive,
            version: node.version,
        }
    }
}

impl From<v1::NodeInfo> for NodeDetails {
    fn from(node: v1::NodeInfo) -> NodeDetails {
        NodeDetails {
            id: NodeId(node.id),
            address: node.address,
            http_address: node.http_address,
            zone: node.zone,
            incarnation: Incarnation(node.incarnation),
            alive: node.alive,
            version: node.version,
        }
    }
}

/// All that a client needs for routing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The cluster.
    pub cluster: ClusterId,
    /// Grows with every change of the catalog that the node asked has seen.
    pub revision: u64,
    /// The nodes.
    pub nodes: Vec<NodeDetails>,
    /// The tables that serve.
    pub tables: Vec<TableDetails>,
}

impl From<Topology> for v1::TopologyResponse {
    fn from(topology: Topology) -> v1::TopologyResponse {
        v1::TopologyResponse {
            cluster: topology.cluster.0,
            revision: topology.revision,
            nodes: topology.nodes.into_iter().map(Into::into).collect(),
            tables: topology.tables.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::TopologyResponse> for Topology {
    type Error = Error;

    fn try_from(topology: v1::TopologyResponse) -> Result<Topology> {
        Ok(Topology {
            cluster: ClusterId(topology.cluster),
            revision: topology.revision,
            nodes: topology.nodes.into_iter().map(Into::into).collect(),
            tables: topology.tables.into_iter().map(TryInto::try_into).collect::<Result<_>>()?,
        })
    }
}

/// The state of the cluster as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStatus {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node that says so.
    pub node: NodeId,
    /// Whether it finds nothing wrong.
    pub healthy: bool,
    /// What is not as it should be, one sentence each.
    pub problems: Vec<String>,
    /// The nodes.
    pub nodes: Vec<NodeDetails>,
    /// The tables.
    pub tables: Vec<TableDetails>,
    /// The system table's shard.
    pub system: Option<ShardDetails>,
}

impl From<ClusterStatus> for v1::StatusResponse {
    fn from(status: ClusterStatus) -> v1::StatusResponse {
        v1::StatusResponse {
            cluster: status.cluster.0,
            node: status.node.0,
            healthy: status.healthy,
            problems: status.problems,
            nodes: status.nodes.into_iter().map(Into::into).collect(),
            tables: status.tables.into_iter().map(Into::into).collect(),
            system: status.system.map(Into::into),
        }
    }
}

impl TryFrom<v1::StatusResponse> for ClusterStatus {
    type Error = Error;

    fn try_from(status: v1::StatusResponse) -> Result<ClusterStatus> {
        Ok(ClusterStatus {
            cluster: ClusterId(status.cluster),
            node: NodeId(status.node),
            healthy: status.healthy,
            problems: status.problems,
            nodes: status.nodes.into_iter().map(Into::into).collect(),
            tables: status.tables.into_iter().map(TryInto::try_into).collect::<Result<_>>()?,
            system: status.system.map(Into::into),
        })
    }
}

/// What one replica says of its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaChecksum {
    /// The replica.
    pub replica: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// What it found, or why it could not look.
    pub content: Result<Content>,
}

/// The content of a replica at one applied position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Index of the last log entry applied.
    pub applied: u64,
    /// CRC-32 of the logical content.
    pub checksum: u32,
    /// Versions counted.
    pub versions: u64,
}

/// The checksums of all replicas of a shard at one applied position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChecksumReport {
    /// The shard.
    pub shard: ShardId,
    /// Whether every replica answered and all agree.
    pub equal: bool,
    /// One per replica.
    pub replicas: Vec<ReplicaChecksum>,
}

impl From<ChecksumReport> for v1::ChecksumResponse {
    fn from(report: ChecksumReport) -> v1::ChecksumResponse {
        let replicas = report.replicas.into_iter().map(|replica| {
            let told = v1::ReplicaChecksum { replica: replica.replica.0, node: replica.node.0, ..Default::default() };
            match replica.content {
                Ok(content) => v1::ReplicaChecksum {
                    applied: content.applied,
                    checksum: content.checksum,
                    versions: content.versions,
                    ..told
                },
                Err(error) => v1::ReplicaChecksum { failure: Some(to_failure(&error)), ..told },
            }
        });
        v1::ChecksumResponse { shard: report.shard.0, equal: report.equal, replicas: replicas.collect() }
    }
}

impl From<v1::ChecksumResponse> for ChecksumReport {
    fn from(report: v1::ChecksumResponse) -> ChecksumReport {
        let replicas = report.replicas.into_iter().map(|replica| ReplicaChecksum {
            replica: ReplicaId(replica.replica),
            node: NodeId(replica.node),
            content: match replica.failure {
                Some(failure) => Err(error_of_failure(failure, false)),
                None => {
                    Ok(Content { applied: replica.applied, checksum: replica.checksum, versions: replica.versions })
                }
            },
        });
        ChecksumReport { shard: ShardId(report.shard), equal: report.equal, replicas: replicas.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology() -> Topology {
        let replicas = (1..=3).map(|id| ReplicaDetails { id: ReplicaId(id), node: NodeId(id), voter: id != 3 });
        let shard = ShardDetails {
            id: ShardId(4),
            table: TableId(2),
            start: Bytes::from_static(b"\0\0\0\x02"),
            end: Bytes::from_static(b"\0\0\0\x03"),
            epoch: Epoch(7),
            replicas: replicas.collect(),
            leader: Some(NodeId(2)),
            term: Some(3),
            last_log: None,
            applied: Some(0),
        };
        let table = |id, name: &str, partitioning| TableDescriptor {
            id: TableId(id),
            name: name.to_owned(),
            partitioning,
            replication: 3,
            history_ms: 9,
            state: TableState::Ready,
        };
        let node = NodeDetails {
            id: NodeId(1),
            address: "127.0.0.1:7401".to_owned(),
            http_address: "127.0.0.1:7501".to_owned(),
            zone: "a".to_owned(),
            incarnation: Incarnation(11),
            alive: true,
            version: "1.0".to_owned(),
        };
        let grouped = Partitioning::Range { group_delimiter: Some(":".to_owned()) };
        Topology {
            cluster: ClusterId(5),
            revision: 6,
            nodes: vec![node],
            tables: vec![
                TableDetails { table: table(2, "orders", Partitioning::Hash), shards: vec![shard.clone(), shard] },
                TableDetails { table: table(3, "names", grouped), shards: vec![] },
            ],
        }
    }

    #[test]
    fn topology_and_status_survive_the_wire() {
        let topology = topology();
        assert_eq!(Topology::try_from(v1::TopologyResponse::from(topology.clone())), Ok(topology.clone()));
        let status = ClusterStatus {
            cluster: topology.cluster,
            node: NodeId(1),
            healthy: false,
            problems: vec!["node 3 is down".to_owned()],
            nodes: topology.nodes.clone(),
            tables: topology.tables.clone(),
            system: topology.tables[0].shards.first().cloned(),
        };
        assert_eq!(ClusterStatus::try_from(v1::StatusResponse::from(status.clone())), Ok(status));
    }

    #[test]
    fn a_descriptor_goes_out_and_comes_back_for_routing() {
        let shard = topology().tables[0].shards[0].clone();
        let descriptor = shard.descriptor();
        assert!(descriptor.contains(b"\0\0\0\x02anything"));
        assert_eq!(descriptor.replicas[2].role, ReplicaRole::Learner);
        let back = ShardDetails::of(&descriptor);
        assert_eq!((back.replicas, back.start, back.epoch), (shard.replicas, shard.start, shard.epoch));
    }

    #[test]
    fn checksums_survive_the_wire() {
        let content = Ok(Content { applied: 5, checksum: 0xfeed, versions: 12 });
        let replica = |id, content| ReplicaChecksum { replica: ReplicaId(id), node: NodeId(id), content };
        let failed = Err(Error::new(Reason::Corruption, "a block failed its checksum"));
        let report =
            ChecksumReport { shard: ShardId(3), equal: false, replicas: vec![replica(1, content), replica(2, failed)] };
        assert_eq!(ChecksumReport::from(v1::ChecksumResponse::from(report.clone())), report);
    }

    #[test]
    fn new_tables_survive_the_wire() {
        let limits = Limits::default();
        for table in [
            NewTable::hash("orders", 16),
            NewTable { replication: Some(1), history_ms: 0, dry_run: true, ..NewTable::hash("_x.y-1", 1) },
            NewTable::range("names", vec!["m".into(), "t".into()]),
            NewTable::range("names", vec![]),
        ] {
            assert_eq!(NewTable::decode(table.clone().encode(), &limits), Ok(table));
        }
    }

    #[test]
    fn defaults_are_filled_in_and_contradictions_refused() {
        let limits = Limits::default();
        let hash = || v1::CreateTableRequest {
            name: "orders".to_owned(),
            partitioning: v1::Partitioning::Hash.into(),
            ..Default::default()
        };
        let table = NewTable::decode(hash(), &limits).expect("decodes");
        assert_eq!((table.shards, table.replication, table.history_ms), (SHARDS_DEFAULT, None, HISTORY_MS_DEFAULT));

        let range = || v1::CreateTableRequest { partitioning: v1::Partitioning::Range.into(), ..hash() };
        for refused in [
            v1::CreateTableRequest { name: String::new(), ..hash() },
            v1::CreateTableRequest { name: "-x".to_owned(), ..hash() },
            v1::CreateTableRequest { name: "a/b".to_owned(), ..hash() },
            v1::CreateTableRequest { name: "x".repeat(TABLE_NAME_BYTES_MAX + 1), ..hash() },
            v1::CreateTableRequest { partitioning: 0, ..hash() },
            v1::CreateTableRequest { partitioning: 9, ..hash() },
            v1::CreateTableRequest { shards: SHARDS_MAX + 1, ..hash() },
            v1::CreateTableRequest { group_delimiter: Some(":".to_owned()), ..hash() },
            v1::CreateTableRequest { split_points: vec!["m".into()], ..hash() },
            v1::CreateTableRequest { group_delimiter: Some(String::new()), ..range() },
            v1::CreateTableRequest { shards: 3, split_points: vec!["m".into()], ..range() },
            v1::CreateTableRequest { split_points: vec!["".into()], ..range() },
            v1::CreateTableRequest { split_points: vec![vec![b'x'; 5_000].into()], ..range() },
        ] {
            NewTable::decode(refused.clone(), &limits).expect_err(&format!("{refused:?} is refused"));
        }
    }
}
