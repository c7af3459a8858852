//! What the leader of shard 0 does unasked for the shape of the cluster: it looks at what the nodes report, has
//! `placement` plan what to move next, and writes that.
//!
//! Nothing of this is stored. A new leader begins with fresh memories: it waits the whole delay before it takes a silent
//! node for lost, and some looks before it knows how much is asked of each shard.
//!
//! Bounds: [`Bounds`] on what moves at once; while balancing is paused nothing is moved, for whatever reason.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use super::{BALANCE, Control, sizes};
use crate::catalog::{self, Directory, change};
use crate::node::{NodeReport, ShardAsk, ShardReport, ask};
use crate::placement::balance::{self, Bounds, NodePicture, Picture, Plan, ReplicaPicture, ShardPicture, Step};
use crate::runtime::{Instant, sleep};
use crate::types::{NodeId, ReplicaDescriptor, ReplicaRole, Result, ShardDescriptor, ShardId, TableState};
use crate::wire::admin::{BalanceReport, NodeShare};

/// Between looks while something is to be done, and while nothing is.
const LOOK_WAIT: Duration = Duration::from_secs(1);
const REST_WAIT: Duration = Duration::from_secs(3);
/// How much of the rate known so far remains after one second: about ten seconds decide.
const RATE_KEPT: f64 = 0.9;
/// How long the leader may take to say how it is.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// What the leader remembers between looks.
#[derive(Default)]
pub(super) struct Memory {
    /// Since when a node has not been heard.
    silent: HashMap<NodeId, Instant>,
    /// What was asked of each shard's leader.
    rates: HashMap<ShardId, Rate>,
    /// What is known of their sizes.
    pub(super) sizes: sizes::Memory,
}

/// How many requests a second one leader of a shard gets.
struct Rate {
    leader: NodeId,
    requests: u64,
    at: Instant,
    per_second: f64,
}

/// Looks after the cluster's shape until the node hands over.
pub(super) async fn run(control: Arc<Control>) {
    let mut stopping = control.node.stopping();
    loop {
        // What was begun goes on without this node; a node that stops must not wait for a look.
        tokio::select! {
            biased;
            _ = stopping.wait_for(|&stopping| stopping) => return,
            () = turn(&control) => {}
        }
    }
}

/// One look if this node leads shard 0, and the pause after it.
async fn turn(control: &Control) {
    let mut wait = LOOK_WAIT;
    if control.node.leads_system() {
        match look(control).await {
            Ok(true) => wait = REST_WAIT,
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "the cluster could not be balanced yet"),
        }
    } else {
        *control.balancing.lock() = Memory::default();
    }
    sleep(wait).await;
}

/// Plans and does what is next; true if nothing is left to do.
async fn look(control: &Control) -> Result<bool> {
    let directory = control.node.directory();
    if directory.cluster().is_none() {
        return Ok(true);
    }
    let (picture, lost) = control.picture(&directory, None).await;
    let plan = balance::plan(&picture, &Bounds::default());
    if directory.balancing_is_paused() {
        return Ok(true);
    }
    let hears = |node| control.node.hears(node);
    if !lost.is_empty() {
        control.change(|directory| Ok(change::relieve_lost(directory, &lost, hears)?.map(|write| ((), write)))).await?;
    }
    join_all(plan.steps.iter().map(|step| control.take(step, &picture))).await;
    control.mind_sizes(&directory, &picture).await?;
    Ok(plan.settled)
}

impl Control {
    /// Begins one step of a plan. That it cannot be done now is no harm: the next look plans anew.
    async fn take(&self, step: &Step, picture: &Picture) {
        tracing::info!(%step, "balancing");
        let done = match *step {
            Step::Move { shard, replica, to, .. } => {
                if let Err(error) = self.is_free_for(shard, to).await {
                    tracing::debug!(%step, %error, "not now");
                    return;
                }
                let moved = self.change(|directory| {
                    // Another change may have come first.
                    let there = directory.shard(shard).is_some_and(|known| {
                        known.replicas.iter().any(|known| known.id == replica) && known.replica_on(to).is_none()
                    });
                    let write = if there { Some(change::move_replica(directory, shard, replica, to)?.1) } else { None };
                    Ok(write.map(|write| ((), write)))
                });
                moved.await.map(|_| ())
            }
            Step::Transfer { shard, to, .. } => {
                let leader = picture.shards.iter().find(|known| known.shard == shard).and_then(|known| known.leader);
                let Some(leader) = leader else { return };
                self.node.ask(leader, ask::TRANSFER, &ShardAsk { shard, argument: to.0 }).await
            }
        };
        if let Err(error) = done {
            tracing::debug!(%step, %error, "not now");
        }
    }

    /// How the cluster stands and what would be moved next, also if something else were wanted of a node. Asked of
    /// whoever leads shard 0.
    pub async fn balance(&self, what_if: Option<(NodeId, catalog::Standing)>) -> Result<BalanceReport> {
        self.node.ask_system_leader_for(BALANCE, &what_if, REPORT_TIMEOUT).await
    }

    /// The same, on shard 0's leader.
    pub(super) async fn balance_here(&self, what_if: Option<(NodeId, catalog::Standing)>) -> Result<BalanceReport> {
        let directory = self.node.directory();
        if let Some((node, standing)) = what_if {
            change::set_standing(&directory, node, standing)?;
        }
        let (picture, _) = self.picture(&directory, what_if).await;
        let plan = balance::plan(&picture, &Bounds::default());
        let now = self.node.clock().now();
        let delay = self.node.options().replace_lost_after;
        let memory = self.balancing.lock();
        let silent = |node: NodeId| memory.silent.get(&node).map(|&since| now.saturating_duration_since(since));
        let nodes = shares(&directory, &picture, &plan).map(|share| NodeShare {
            silent: silent(share.node),
            replaced_in: silent(share.node).map(|silent| delay.saturating_sub(silent)),
            ..share
        });
        Ok(BalanceReport {
            paused: directory.balancing_is_paused(),
            settled: plan.settled,
            moving: picture.shards.iter().filter(|shard| shard.is_busy()).map(|shard| shard.shard).collect(),
            steps: plan.steps.iter().map(ToString::to_string).collect(),
            nodes: nodes.collect(),
            stuck: plan.stuck.into_iter().chain(memory.sizes.notes().cloned()).collect(),
        })
    }

    /// What the planner is shown, and which nodes count as lost.
    async fn picture(
        &self,
        directory: &Directory,
        what_if: Option<(NodeId, catalog::Standing)>,
    ) -> (Picture, BTreeSet<NodeId>) {
        let heard: Vec<NodeId> = directory.nodes().map(|row| row.id).filter(|&id| self.node.hears(id)).collect();
        let reports: BTreeMap<NodeId, NodeReport> = join_all(heard.iter().map(|&node| self.report_of(node)))
            .await
            .into_iter()
            .flatten()
            .map(|report| (report.node, report))
            .collect();
        let now = self.node.clock().now();
        let mut memory = self.balancing.lock();
        memory.silent.retain(|node, _| directory.node(*node).is_some() && !reports.contains_key(node));
        for row in directory.nodes().filter(|row| !reports.contains_key(&row.id)) {
            memory.silent.entry(row.id).or_insert(now);
        }
        let delay = self.node.options().replace_lost_after;
        let is_lost = |row: &&catalog::NodeRow| {
            let silent = memory.silent.get(&row.id).map(|&since| now.saturating_duration_since(since));
            let given_up = directory.recovery().is_some_and(|recovery| recovery.has_lost(row.id, row.incarnation));
            silent.is_some_and(|silent| silent >= delay || given_up)
        };
        let lost: BTreeSet<NodeId> = directory.nodes().filter(is_lost).map(|row| row.id).collect();
        let nodes = directory.nodes().map(|row| {
            let standing = what_if.filter(|&(node, _)| node == row.id).map_or(row.standing, |(_, standing)| standing);
            NodePicture {
                node: row.id,
                zone: row.zone.clone(),
                capacity: 1,
                standing: match standing {
                    _ if lost.contains(&row.id) => balance::Standing::Lost,
                    catalog::Standing::Draining => balance::Standing::Draining,
                    catalog::Standing::Serving | catalog::Standing::Spare => balance::Standing::Serving,
                },
                reachable: reports.contains_key(&row.id),
                spare: standing == catalog::Standing::Spare,
            }
        });
        let nodes = nodes.collect();
        let serves = |shard: &&Arc<ShardDescriptor>| {
            let table = directory.descriptor(shard.table);
            // One that is being merged goes where its left neighbour goes.
            let free = shard.id != ShardId::SYSTEM && shard.merging_into.is_none();
            free && table.is_some_and(|table| table.state == TableState::Ready)
        };
        let shards: Vec<ShardPicture> = directory
            .shards()
            .filter(serves)
            .map(|shard| {
                let led = led_by(shard.id, &reports);
                let load = led.map_or(0.0, |(leader, report)| memory.rate(leader, report, now));
                let waits_for_lost = shard.replicas.iter().any(|replica| lost.contains(&replica.node));
                // One that never came to vote is not missed by its group's quorum.
                let counts = |replica: &ReplicaDescriptor| {
                    let votes = led.is_none_or(|(_, report)| report.voters.contains(&replica.id));
                    replica.role == ReplicaRole::Voter && (votes || !lost.contains(&replica.node))
                };
                ShardPicture {
                    shard: shard.id,
                    table: shard.table,
                    replicas: (shard.replicas.iter())
                        .map(|replica| ReplicaPicture {
                            replica: replica.id,
                            node: replica.node,
                            voter: counts(replica),
                        })
                        .collect(),
                    leader: led.map(|(leader, _)| leader),
                    bytes: led.map_or(0, |(_, report)| report.bytes),
                    load: load as u64,
                    // The catalog wants what is to be, so a move under way is in the list as done. One that waits for a
                    // node that was lost meanwhile would wait for ever.
                    busy: led.is_some_and(|(_, report)| !report.is_settled(shard)) && !waits_for_lost,
                    moving: None,
                }
            })
            .collect();
        memory.rates.retain(|shard, _| directory.shard(*shard).is_some());
        (Picture { nodes, shards }, lost)
    }
}

impl Memory {
    /// Requests per second at a shard's leader, smoothed; takes note of its counter.
    fn rate(&mut self, leader: NodeId, report: &ShardReport, now: Instant) -> f64 {
        let fresh = |per_second| Rate { leader, requests: report.requests, at: now, per_second };
        let rate = self.rates.entry(report.shard).or_insert_with(|| fresh(0.0));
        let passed = now.saturating_duration_since(rate.at).as_secs_f64();
        if rate.leader != leader || report.requests < rate.requests {
            // Another replica's counter: what was known of the shard stays true for now.
            *rate = fresh(rate.per_second);
        } else if passed >= 0.5 {
            let seen = (report.requests - rate.requests) as f64 / passed;
            let kept = RATE_KEPT.powf(passed);
            *rate = fresh(kept * rate.per_second + (1.0 - kept) * seen);
        }
        rate.per_second
    }
}

/// Who leads a shard, and what it says: of several, whose term is newest.
fn led_by(shard: ShardId, reports: &BTreeMap<NodeId, NodeReport>) -> Option<(NodeId, &ShardReport)> {
    let of_shard = |report: &&NodeReport| report.shards.binary_search_by_key(&shard, |known| known.shard).ok();
    (reports.values())
        .filter_map(|report| Some((report.node, &report.shards[of_shard(&report)?])))
        .filter(|(_, reported)| reported.part == "leader")
        .max_by_key(|(_, reported)| reported.term)
}

/// What each node has, against its share.
fn shares<'a>(
    directory: &'a Directory,
    picture: &'a Picture,
    plan: &'a Plan,
) -> impl Iterator<Item = NodeShare> + use<'a> {
    picture.nodes.iter().zip(&plan.nodes).filter_map(|(node, parts)| {
        let row = directory.node(node.node)?;
        assert_eq!(node.node, parts.node, "both lists are in the order of the ids");
        Some(NodeShare {
            node: node.node,
            standing: row.standing.as_str().to_owned(),
            lost: node.standing == balance::Standing::Lost,
            replicas: parts.replicas.count,
            replicas_fair: parts.replicas.fair,
            leaders: parts.leaders.count,
            leaders_fair: parts.leaders.fair,
            load: parts.load.count,
            load_fair: parts.load.fair,
            silent: None,
            replaced_in: None,
        })
    })
}
