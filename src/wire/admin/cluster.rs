//! Nodes, the topology by which clients route, and how the cluster is.

use super::tables::{ShardDetails, TableDetails};
use crate::types::{ClusterId, Error, Incarnation, NodeId, Result};
use crate::wire::proto::v1;

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
    /// What is wanted of it: `serving`, `spare` or `draining`.
    pub standing: String,
    /// Replicas that it holds, that of the system table included, where it was asked.
    pub replicas: Option<u32>,
    /// Shards that it leads, where it was asked.
    pub leaders: Option<u32>,
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
            standing: node.standing,
            replicas: node.replicas,
            leaders: node.leaders,
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
            standing: node.standing,
            replicas: node.replicas,
            leaders: node.leaders,
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
    /// What is going on and no problem, one sentence each.
    pub notes: Vec<String>,
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
            notes: status.notes,
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
            notes: status.notes,
            nodes: status.nodes.into_iter().map(Into::into).collect(),
            tables: status.tables.into_iter().map(TryInto::try_into).collect::<Result<_>>()?,
            system: status.system.map(Into::into),
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::{Epoch, Partitioning, ReplicaId, ReplicaRole, ShardId, TableDescriptor, TableId, TableState};
    use crate::wire::admin::ReplicaDetails;

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
            settled: Some(true),
        };
        let table = |id, name: &str, partitioning| TableDescriptor {
            id: TableId(id),
            name: name.to_owned(),
            partitioning,
            replication: 3,
            read_replicas: 2,
            read_replica_zone: Some("east".to_owned()),
            history_ms: 9,
            state: TableState::Ready,
            view: None,
        };
        let node = NodeDetails {
            id: NodeId(1),
            address: "127.0.0.1:7401".to_owned(),
            http_address: "127.0.0.1:7501".to_owned(),
            zone: "a".to_owned(),
            incarnation: Incarnation(11),
            alive: true,
            version: "1.0".to_owned(),
            standing: "draining".to_owned(),
            replicas: Some(7),
            leaders: Some(0),
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
            notes: vec!["node 2 drains".to_owned()],
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
}
