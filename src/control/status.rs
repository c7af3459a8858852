//! What the nodes report, put together, and what is wrong with it.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;

use super::{Control, recovery};
use crate::node::{Bootstrap, NodeReport, ShardReport};
use crate::runtime::timeout;
use crate::types::{NodeId, ReplicaRole, ShardDescriptor, ShardId, TableId};
use crate::wire::admin::{BalanceReport, ClusterStatus, NodeDetails, ShardDetails, TableDetails, Topology};

/// How long the leader of the catalog may take to say what goes on.
const NOTES_TIMEOUT: Duration = Duration::from_secs(1);

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
            standing: row.standing.as_str().to_owned(),
            replicas: None,
            leaders: None,
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
        // Without a leader of the catalog there is nobody to tell what goes on; the problems are told all the same.
        let (reports, balance) = futures::join!(
            join_all(ids.iter().map(|&node| self.report_of(node))),
            timeout(NOTES_TIMEOUT, self.balance(None))
        );
        let balance = balance.and_then(Result::ok);
        let reports: BTreeMap<NodeId, NodeReport> =
            reports.into_iter().flatten().map(|report| (report.node, report)).collect();
        let mut problems = Vec::new();
        if directory.cluster().is_none() {
            problems.push("the cluster is not founded yet".to_owned());
        }
        if let Bootstrap::Found { peers } = &self.node.options().bootstrap {
            // One that was decommissioned is not waited for.
            let missing = |founder: &&NodeId| !ids.contains(founder) && directory.left(**founder).is_none();
            for founder in peers.keys().filter(missing) {
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
        let mut nodes = self.nodes(|node| reports.contains_key(&node));
        for node in &mut nodes {
            let report = reports.get(&node.id);
            let count = |led: bool| {
                let counts = |shard: &&ShardReport| !led || shard.part == "leader";
                report.map(|report| report.shards.iter().filter(counts).count() as u32)
            };
            (node.replicas, node.leaders) = (count(false), count(true));
        }
        let mut notes = balance.as_ref().map(|report| notes(report, &reports)).unwrap_or_default();
        notes.extend(recovery::notes(&directory, self.node.clock().wall_ms()));
        ClusterStatus {
            notes,
            cluster: self.node.try_identity().map(|identity| identity.cluster).unwrap_or_default(),
            node: self.node.id(),
            healthy: problems.is_empty(),
            problems,
            nodes,
            tables,
            system,
        }
    }
}

/// What is going on in the cluster, one sentence each.
fn notes(balance: &BalanceReport, reports: &BTreeMap<NodeId, NodeReport>) -> Vec<String> {
    let mut notes = Vec::new();
    let seconds = |duration: Option<Duration>| duration.unwrap_or_default().as_secs();
    for share in &balance.nodes {
        let node = share.node.0;
        // A replica that was destroyed here may still be on its way out.
        let held = reports.get(&share.node).map_or(0, |report| report.shards.len().saturating_sub(1));
        if share.lost && share.replicas == 0 {
            notes.push(format!(
                "node {node} is lost, and every replica it held has been made anew elsewhere: when it will not come back, \
                 `trivet node decommission {node}`"
            ));
        } else if share.lost {
            notes.push(format!("node {node} is lost: its {} replicas are being made anew elsewhere", share.replicas));
        } else if share.silent.is_some() && share.replicas > 0 {
            notes.push(format!(
                "node {node} has been silent for {} s; if it stays so, its {} replicas are made anew elsewhere in {} s",
                seconds(share.silent),
                share.replicas,
                seconds(share.replaced_in)
            ));
        } else if share.standing == "draining" && share.replicas as usize + held == 0 {
            notes.push(format!("node {node} has drained and can be stopped, or decommissioned"));
        } else if share.standing == "draining" {
            notes.push(format!("node {node} drains: {} replicas are still to move", held.max(share.replicas as usize)));
        } else if share.standing == "spare" && share.replicas == 0 {
            notes.push(format!("node {node} stands by as a spare"));
        }
    }
    if !balance.moving.is_empty() {
        notes.push(format!("the members of {} shards are changing", balance.moving.len()));
    }
    if balance.paused {
        notes.push("balancing is paused; `trivet cluster resume` lets it go on".to_owned());
    }
    notes.extend(balance.stuck.iter().cloned());
    notes
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
