//! What to move next, so that a cluster becomes whole and even again: a pure function of a picture of it.
//!
//! [`plan`] is asked again and again, each time with a fresh [`Picture`], and names the next few [`Step`]s. It
//! remembers nothing, so nothing has to be undone when the cluster changes in between, or when another node goes on
//! planning.
//!
//! Needs, strongest first; a weaker one never spoils what a stronger one wants:
//!
//! 1. Replicas on lost nodes are made anew elsewhere; leaders, then replicas, leave draining nodes (`repair`).
//! 2. A shard's voters lie in distinct zones, as far as there are zones (`repair`).
//! 3. No node serves much more than its share of the requests (`load`).
//! 4. Replicas are spread evenly by capacity, those of each table and those of all (`even`, within `shares`).
//! 5. Leaders too (`leadership`).
//!
//! Invariants
//! - It ends. Each need has a measure of what is wrong, a number that cannot fall for ever; every step lowers the
//!   measure of its own need and raises none of a stronger one. So the picture never comes back to what it was, and if
//!   it changes by these steps alone, at last nothing is planned. (The tests' `Measure` is this, number for number.)
//! - A shard has one change at a time, and two of its replicas never meet on one node. A shard that misses a voter, or
//!   has no leader, is repaired and otherwise left alone.
//! - The bounds on what moves at once count what is under way already, in all and at each node.
//! - The answer depends on the picture alone, not on the order in its lists.
//!
//! How a plan passes: the picture becomes counts (`model`), in which moves under way are taken as done. Each need in
//! turn plans what it can and has the counts changed accordingly, so those after it see what is coming. Needs 2 to 4
//! wait until all of need 1 is on its way: what lies on a draining node has to go somewhere and may well even things
//! out.
//!
//! Left out: the system shard, which has a replica on every node; how a step is carried out, and how often; splitting
//! and merging (`placement::sizing`).

mod even;
mod leadership;
mod load;
mod model;
mod picture;
mod repair;
mod shares;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::types::{NodeId, ReplicaId, ShardId};
use model::Model;

pub use picture::{Moving, NodePicture, Picture, ReplicaPicture, ShardPicture, Standing};

/// How much may happen at once, and how even is even enough.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// Shards that may be moving at once, with those that already are. 0: nothing is moved.
    pub moves_max: usize,
    /// Moves to and from one node at once.
    pub moves_per_node_max: usize,
    /// Leaderships handed over in one plan.
    pub transfers_max: usize,
    /// The part of its fair share by which a node's replicas may differ from it; one replica is always tolerated. A new
    /// table is not moved at once if [`place`](super::place) was given an epsilon of 0: any other bounds only what a node
    /// has too much.
    pub tolerance: f64,
    /// The part of its fair share that a node may serve above it before something is done.
    pub load_tolerance: f64,
    /// Requests per second that a node always bears, whatever the others serve.
    pub load_min: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            moves_max: 8,
            moves_per_node_max: 2,
            transfers_max: 16,
            tolerance: super::EPSILON,
            load_tolerance: 0.3,
            load_min: 500,
        }
    }
}

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make a replica of the same role on node `to`, then remove this one. If it leads, the one that takes its place is
    /// to lead.
    Move {
        /// The shard.
        shard: ShardId,
        /// The replica that goes.
        replica: ReplicaId,
        /// Where its successor is made; it holds none of the shard yet.
        to: NodeId,
        /// What for.
        why: Why,
    },
    /// Hand the leadership over.
    Transfer {
        /// The shard.
        shard: ShardId,
        /// Who is to lead; it holds a voter.
        to: NodeId,
        /// What for.
        why: Why,
    },
}

impl Step {
    /// The shard that it changes.
    pub fn shard(&self) -> ShardId {
        match *self {
            Step::Move { shard, .. } | Step::Transfer { shard, .. } => shard,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Move { shard, replica, to, why } => write!(f, "move {replica} of {shard} to {to}: {why}"),
            Step::Transfer { shard, to, why } => write!(f, "let {to} lead {shard}: {why}"),
        }
    }
}

/// The need that a step serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// The replica's node is lost.
    NodeLost,
    /// The replica's or the leader's node drains.
    NodeDrains,
    /// Voters share a zone though another has fewer.
    ZonesUneven,
    /// A node holds too many replicas, or another too few.
    ReplicasUneven,
    /// A node leads too many shards, or another too few.
    LeadersUneven,
    /// A node serves too many requests.
    LoadUneven,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::NodeLost => "its node is lost",
            Why::NodeDrains => "its node drains",
            Why::ZonesUneven => "its replicas could lie in more zones",
            Why::ReplicasUneven => "replicas are spread unevenly",
            Why::LeadersUneven => "leaders are spread unevenly",
            Why::LoadUneven => "its node serves too many requests",
        })
    }
}

/// A node's part of the whole, against what would be fair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// What it has.
    pub count: u64,
    /// Its fair share.
    pub fair: f64,
}

impl Part {
    /// 1 if it has its fair share, 2 if twice as much. Nothing of nothing is fair.
    pub fn ratio(&self) -> f64 {
        if self.fair > 0.0 {
            self.count as f64 / self.fair
        } else if self.count == 0 {
            1.0
        } else {
            f64::INFINITY
        }
    }
}

/// How much of the whole a node has, all moves under way taken as done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NodeParts {
    /// The node.
    pub node: NodeId,
    /// Replicas.
    pub replicas: Part,
    /// Shards it leads. The fair share is by capacity alone, whatever its replicas allow.
    pub leaders: Part,
    /// Requests per second: those of the shards it leads, and a quarter of those of the shards it follows.
    pub load: Part,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Steps that may all be begun now, strongest need first.
    pub steps: Vec<Step>,
    /// What cannot be done and what to do about it, one sentence each.
    pub stuck: Vec<String>,
    /// Nothing is under way, nothing is to be done, and nothing waits for anything: only a change of the picture, or
    /// help with what is stuck, will bring new steps.
    pub settled: bool,
    /// The nodes before the steps, in the order of their ids.
    pub nodes: Vec<NodeParts>,
}

impl Plan {
    /// The nodes with the least and the most of something for their share, of those that have a share.
    pub fn extremes(&self, part: impl Fn(&NodeParts) -> Part) -> Option<(NodeParts, NodeParts)> {
        let shared = || self.nodes.iter().filter(|node| part(node).fair > 0.0).copied();
        let order = |one: &NodeParts, two: &NodeParts| part(one).ratio().total_cmp(&part(two).ratio());
        Some((shared().min_by(order)?, shared().max_by(order)?))
    }
}

/// Decides what to do next.
pub fn plan(picture: &Picture, bounds: &Bounds) -> Plan {
    let mut model = Model::new(picture, bounds);
    let nodes = parts(&model);
    // Each need that has to wait for room keeps the weaker ones from taking it, and from moving what it will move.
    let waits = repair::leave_nodes(&mut model) || repair::spread_over_zones(&mut model);
    if !waits {
        // What a spare held may have gone to others, who now share it.
        model.share_out();
        even::spread_replicas(&mut model);
    }
    load::spread_load(&mut model);
    leadership::spread_leaders(&mut model);
    Plan {
        settled: model.steps.is_empty() && !model.busy && !model.held_back,
        steps: model.steps,
        stuck: model.stuck,
        nodes,
    }
}

fn parts(model: &Model<'_>) -> Vec<NodeParts> {
    let leaders: u64 = model.nodes.iter().map(|node| node.led).sum();
    let part_of = |whole: u64, capacity: u64| {
        if model.serving_capacity == 0 { 0.0 } else { whole as f64 * capacity as f64 / model.serving_capacity as f64 }
    };
    (model.nodes.iter())
        .map(|node| {
            let capacity = if model.serves(node) { node.capacity } else { 0 };
            NodeParts {
                node: node.id,
                replicas: Part { count: node.held, fair: node.share },
                leaders: Part { count: node.led, fair: part_of(leaders, capacity) },
                load: Part {
                    count: node.load / load::LEADING,
                    fair: part_of(model.total_load, capacity) / load::LEADING as f64,
                },
            }
        })
        .collect()
}
