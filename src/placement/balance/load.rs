//! Measured load: a node that serves much more than its fair share hands over leaderships, and if that is not enough,
//! replicas.
//!
//! Who leads a shard serves its requests; who follows applies its writes, which counts as a quarter of that. Two lines
//! are drawn above a node's fair share: above the upper one, `1 + load_tolerance` times it, something is done, until
//! the node is below the lower one, half way up; and nothing is ever given to a node that would come above the lower
//! one, not by this need and not by those of `even` and `leadership`. So what all nodes have above their lower lines only
//! gets less, and load that wavers around one line sets nothing in motion.
//!
//! A shard that has more load than its node has above its share is never moved: that would only move the trouble. What
//! else the node serves is moved away from beside it.

use super::Why;
use super::model::{Model, Shard};

/// What leading counts, in quarters of a shard's requests.
pub const LEADING: u64 = 4;
/// What following counts.
pub const FOLLOWING: u64 = 1;

/// A shard is worth moving if it has at least one such part of what is too much.
const WORTH: u64 = 20;

/// Nodes are judged by what they have above these.
pub struct Lines {
    fair: u64,
    lower: u64,
    upper: u64,
}

impl Model<'_> {
    /// The lines of a node.
    pub fn lines(&self, node: usize) -> Lines {
        let capacity = if self.nodes[node].can_take() { self.nodes[node].capacity } else { 0 };
        let fair = if self.serving_capacity == 0 {
            0.0
        } else {
            self.total_load as f64 * capacity as f64 / self.serving_capacity as f64
        };
        let least = self.bounds.load_min.saturating_mul(LEADING);
        let line = |part: f64| ((fair * (1.0 + self.bounds.load_tolerance * part)) as u64).max(least);
        Lines { fair: fair as u64, lower: line(0.5), upper: line(1.0) }
    }

    /// What a node has above its lower line.
    pub fn load_above_lower(&self, node: usize) -> u64 {
        self.nodes[node].load.saturating_sub(self.lines(node).lower)
    }

    /// Whether a node can take this much more.
    fn bears(&self, node: usize, more: u64) -> bool {
        more == 0 || self.nodes[node].load + more <= self.lines(node).lower
    }

    /// Whether a node that holds a shard can lead it.
    pub fn bears_leader(&self, node: usize, load: u64) -> bool {
        self.bears(node, (LEADING - FOLLOWING) * load)
    }

    /// Whether a node can take a replica of a shard.
    pub fn bears_replica(&self, node: usize, load: u64, leads: bool) -> bool {
        self.bears(node, if leads { LEADING } else { FOLLOWING } * load)
    }
}

/// Relieves the nodes above their upper line, the worst first.
pub fn spread_load(model: &mut Model<'_>) {
    let above = |model: &Model<'_>, node: usize| model.nodes[node].load.saturating_sub(model.lines(node).upper);
    let mut hot: Vec<usize> =
        (0..model.nodes.len()).filter(|&node| model.nodes[node].can_lead() && above(model, node) > 0).collect();
    hot.sort_by_key(|&node| (std::cmp::Reverse(above(model, node)), node));
    for node in hot {
        let mut handed_over = false;
        while model.load_above_lower(node) > 0 && hand_over(model, node) {
            handed_over = true;
        }
        // Replicas are moved only when all is still: a new node, or a leadership just handed over, may be help enough.
        if !handed_over && !model.is_moving() && above(model, node) > 0 && !move_away(model, node) {
            report(model, node);
        }
    }
}

/// What a node has above its fair share.
fn excess(model: &Model<'_>, node: usize) -> u64 {
    model.nodes[node].load.saturating_sub(model.lines(node).fair)
}

/// The shards a node leads that are worth taking away from it, the warmest first. `part`: what counts of their load.
fn warm(model: &Model<'_>, node: usize, part: u64) -> Vec<usize> {
    let excess = excess(model, node);
    let worth = |shard: &Shard| {
        let load = shard.load * part;
        shard.leader == Some(node) && load > 0 && load <= excess && load * WORTH >= excess
    };
    let mut warm: Vec<usize> = (model.on[node].iter().copied())
        .filter(|&shard| worth(&model.shards[shard]) && model.is_steady(shard))
        .collect();
    warm.sort_by_key(|&shard| (std::cmp::Reverse(model.shards[shard].load), shard));
    warm
}

/// Hands one leadership over to a node that bears it. False if there is none, or no more may be handed over.
fn hand_over(model: &mut Model<'_>, node: usize) -> bool {
    for shard in warm(model, node, LEADING - FOLLOWING) {
        let load = model.shards[shard].load;
        let heir = (model.shards[shard].replicas.iter())
            .filter(|replica| replica.voter && replica.node != node && model.nodes[replica.node].can_lead())
            .map(|replica| replica.node)
            .filter(|&heir| model.bears_leader(heir, load))
            .min_by_key(|&heir| (model.nodes[heir].load * 1_000 / model.nodes[heir].capacity, heir));
        let Some(heir) = heir else { continue };
        if model.transfers_left() == 0 {
            model.held_back = true;
            return false;
        }
        model.transfer(shard, heir, Why::LoadUneven);
        return true;
    }
    false
}

/// Moves one replica, with its leadership, to a node that bears it. False if there is none.
fn move_away(model: &mut Model<'_>, node: usize) -> bool {
    for shard in warm(model, node, LEADING) {
        let Shard { table, load, .. } = model.shards[shard];
        let Some(replica) = model.shards[shard].replicas.iter().position(|replica| replica.node == node) else {
            continue;
        };
        let crowd = |at: usize| model.crowd(shard, replica, model.nodes[at].zone);
        let to = (0..model.nodes.len())
            .filter(|&to| model.nodes[to].is_evened() && !model.holds(shard, to))
            .filter(|&to| crowd(to) <= crowd(node) && model.bears_replica(to, load, true))
            .min_by_key(|&to| {
                // Rather where the table does not become less even.
                let above = model.tables[table].held[to] >= model.tables[table].bands[to].high;
                (above, model.nodes[to].load * 1_000 / model.nodes[to].capacity, to)
            });
        let Some(to) = to else { continue };
        if model.is_full() || !model.has_room(node, to) {
            model.held_back = true;
            return true;
        }
        model.relocate(shard, replica, to, Why::LoadUneven);
        return true;
    }
    false
}

/// Says it if one shard is what makes a node hot.
fn report(model: &mut Model<'_>, node: usize) {
    let hottest = (model.on[node].iter().copied())
        .filter(|&shard| model.shards[shard].leader == Some(node) && !model.shards[shard].taken)
        .max_by_key(|&shard| (model.shards[shard].load, std::cmp::Reverse(shard)));
    let Some(shard) = hottest.map(|at| &model.shards[at]) else { return };
    if shard.load * LEADING <= excess(model, node) {
        return;
    }
    let (load, fair) = (model.nodes[node].load, model.lines(node).fair.max(1));
    model.stuck.push(format!(
        "{} serves {}.{} times its fair share of requests, and {} alone makes {} percent of them, so moving it would \
         only move the load: split it, or look for one hot key",
        model.nodes[node].id,
        load / fair,
        load % fair * 10 / fair,
        shard.id,
        shard.load * LEADING * 100 / load.max(1),
    ));
}
