//! How evenly the cluster is spread, what moves, and what is wanted of nodes.

use std::time::Duration;

use crate::types::{NodeId, ShardId};
use crate::wire::proto::v1;

/// How the cluster is spread and what is to be moved next.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct BalanceReport {
    /// Nothing is moved unasked.
    pub paused: bool,
    /// Nothing is under way and nothing is to be done.
    pub settled: bool,
    /// The shards whose members are being changed.
    pub moving: Vec<ShardId>,
    /// What would be begun now, strongest need first, one sentence each.
    pub steps: Vec<String>,
    /// What cannot be done and what to do about it, one sentence each.
    pub stuck: Vec<String>,
    /// The nodes.
    pub nodes: Vec<NodeShare>,
}

/// What a node has, against its fair share.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct NodeShare {
    /// The node.
    pub node: NodeId,
    /// What is wanted of it: `serving`, `spare` or `draining`.
    pub standing: String,
    /// It has been silent for so long that its replicas are made anew elsewhere.
    pub lost: bool,
    /// Replicas wanted on it, without that of the catalog.
    pub replicas: u64,
    /// Its fair share of them.
    pub replicas_fair: f64,
    /// Shards it leads.
    pub leaders: u64,
    /// Its fair share of them.
    pub leaders_fair: f64,
    /// Requests per second that it serves.
    pub load: u64,
    /// Its fair share of them.
    pub load_fair: f64,
    /// For how long it has not been heard.
    pub silent: Option<Duration>,
    /// When its replicas will be made anew elsewhere.
    pub replaced_in: Option<Duration>,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<BalanceReport> for v1::BalanceResponse {
    fn from(report: BalanceReport) -> v1::BalanceResponse {
        v1::BalanceResponse {
            paused: report.paused,
            settled: report.settled,
            moving: report.moving.into_iter().map(|shard| shard.0).collect(),
            steps: report.steps,
            stuck: report.stuck,
            nodes: report.nodes.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<v1::BalanceResponse> for BalanceReport {
    fn from(report: v1::BalanceResponse) -> BalanceReport {
        BalanceReport {
            paused: report.paused,
            settled: report.settled,
            moving: report.moving.into_iter().map(ShardId).collect(),
            steps: report.steps,
            stuck: report.stuck,
            nodes: report.nodes.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<NodeShare> for v1::NodeShare {
    fn from(share: NodeShare) -> v1::NodeShare {
        v1::NodeShare {
            node: share.node.0,
            standing: share.standing,
            lost: share.lost,
            replicas: share.replicas,
            replicas_fair: share.replicas_fair,
            leaders: share.leaders,
            leaders_fair: share.leaders_fair,
            load: share.load,
            load_fair: share.load_fair,
            silent_ms: share.silent.map(millis),
            replaced_in_ms: share.replaced_in.map(millis),
        }
    }
}

impl From<v1::NodeShare> for NodeShare {
    fn from(share: v1::NodeShare) -> NodeShare {
        NodeShare {
            node: NodeId(share.node),
            standing: share.standing,
            lost: share.lost,
            replicas: share.replicas,
            replicas_fair: share.replicas_fair,
            leaders: share.leaders,
            leaders_fair: share.leaders_fair,
            load: share.load,
            load_fair: share.load_fair,
            silent: share.silent_ms.map(Duration::from_millis),
            replaced_in: share.replaced_in_ms.map(Duration::from_millis),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_the_wire() {
        let node = NodeShare {
            node: NodeId(3),
            standing: "draining".to_owned(),
            lost: true,
            replicas: 12,
            replicas_fair: 0.5,
            leaders: 4,
            leaders_fair: 0.25,
            load: 900,
            load_fair: 0.125,
            silent: Some(Duration::from_secs(9)),
            replaced_in: None,
        };
        let report = BalanceReport {
            paused: true,
            settled: false,
            moving: vec![ShardId(4)],
            steps: vec!["move r1 of s4 to n2: its node drains".to_owned()],
            stuck: vec!["add a node".to_owned()],
            nodes: vec![node],
        };
        assert_eq!(BalanceReport::from(v1::BalanceResponse::from(report.clone())), report);
    }
}
