//! What the nodes report, put together, and what is wrong with it.

use std::collections::BTreeMap;

use futures::future::join_all;

use super::Control;
use crate::node::{Bootstrap, NodeReport};
use crate::types::{NodeId, ReplicaRole, ShardDescriptor, ShardId, TableId};
use crate::wire::admin::{ClusterStatus, NodeDetails, ShardDetails, TableDetails, Topology};

impl Control {
    /// All that a client needs for routing, from this node's own picture.
    pub fn topology(&self) -> Topology {
        let directory = self.node.directory();
        Topology {
            cluster: self.node.try_identity().map(|identity| identity.cluster).unwrap_or_default(),
            revision: directory.revision().0,
            nodes: self.nodes(|node| self.node.hears(node)),
            tables: self.tables(true),
        }
    }

    fn nodes(&self, alive: impl Fn(NodeId) -> bool) -> Vec<NodeDetails> {
        let directory = self.node.directory();
        let details = directory.nodes().map(|row| NodeDetails {
            id: row.id,
            address: row.address.clone(),
            http_address: row.http_address.clone(),
            zone: row.zone.clone(),
            incarnation: row.incarnation,
            alive: alive(row.id),
            version: row.version.clone(),
        });
        details.collect()
    }

    /// The cluster as its nodes report it now. Healthy means: every node answers, every shard has a leader and all the
    /// members the catalog wants.
    pub async fn status(&self) -> ClusterStatus {
        let directory = self.node.directory();
        let ids: Vec<NodeId> = directory.nodes().map(|row| row.id).collect();
        let reports: BTreeMap<NodeId, NodeReport> = join_all(ids.iter().map(|&node| self.report_of(node)))
            .await
            .into_iter()
            .flatten()
            .map(|r| (r.node, r))
            .collect();
        let mut problems = Vec::new();
        if directory.cluster().is_none() {
            problems.push("the cluster is not founded yet".to_owned());
        }
        if let Bootstrap::Found { peers } = &self.node.options().bootstrap {
            for founder in peers.keys().filter(|founder| !ids.contains(founder)) {
                problems.push(format!("node {} is to found the cluster and has not joined it yet", founder.0));
            }
        }
        for id in &ids {
            match reports.get(id) {
                None => problems.push(format!("node {} does not answer", id.0)),
                Some(NodeReport { disk: Some(problem), .. }) => problems.push(format!("node {}: {problem}", id.0)),
                Some(_) => {}
            }
        }
        let mut tables = Vec::new();
        let mut system = None;
        for shard in directory.shards() {
            let details = shard_status(shard, &reports, &mut problems);
            if shard.id == ShardId::SYSTEM {
                system = Some(details);
                continue;
            }
            let Some(entry) = directory.table(shard.table) else { continue };
            match tables.iter_mut().find(|table: &&mut TableDetails| table.table.id == shard.table) {
                Some(table) => table.shards.push(details),
                None => tables.push(TableDetails { table: entry.descriptor.clone(), shards: vec![details] }),
            }
        }
        tables.retain(|table| table.table.id != TableId::SYSTEM);
        ClusterStatus {
            cluster: self.node.try_identity().map(|identity| identity.cluster).unwrap_or_default(),
            node: self.node.id(),
            healthy: problems.is_empty(),
            problems,
            nodes: self.nodes(|node| reports.contains_key(&node)),
            tables,
            system,
        }
    }
}

/// One shard as its leader reports it; adds a sentence for everything that is not as wanted.
fn shard_status(
    shard: &ShardDescriptor,
    reports: &BTreeMap<NodeId, NodeReport>,
    problems: &mut Vec<String>,
) -> ShardDetails {
    let mut details = ShardDetails::of(shard);
    let of_shard = |report: &NodeReport| report.shards.iter().find(|reported| reported.shard == shard.id).cloned();
    // The newest term's leader; an old one may not know yet that it was replaced.
    let leader = (reports.values())
        .filter_map(|report| Some((report.node, of_shard(report)?)))
        .filter(|(_, reported)| reported.part == "leader")
        .max_by_key(|(_, reported)| reported.term);
    for report in reports.values() {
        if let Some(failure) = of_shard(report).and_then(|reported| reported.failure) {
            problems.push(format!("shard {}: the replica on node {} has failed: {failure}", shard.id.0, report.node.0));
        }
    }
    let Some((node, reported)) = leader else {
        problems.push(format!("shard {} has no leader", shard.id.0));
        return details;
    };
    details.leader = Some(node);
    details.term = Some(reported.term);
    details.last_log = Some(reported.last_log);
    details.applied = Some(reported.applied);
    details.settled = Some(reported.is_settled(shard));
    for wanted in &shard.replicas {
        let real = match wanted.role {
            ReplicaRole::Voter => reported.voters.contains(&wanted.id),
            ReplicaRole::Learner => reported.learners.contains(&wanted.id),
        };
        if !real {
            problems
                .push(format!("shard {}: the replica on node {} is not a full member yet", shard.id.0, wanted.node.0));
        }
    }
    details
}
