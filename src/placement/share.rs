//! Fair shares and bounds: how many of the new replicas each node may take.
//!
//! A *unit* is what holds at most one replica of a shard: a zone, or, where zones are fewer than replicas, a node.
//! Replicas are dealt out one by one, on paper, to the emptiest unit that can take one more (none takes more than
//! there are shards), and within a unit to its emptiest node. What a node is dealt is its fair share; it may take
//! up to `1 + epsilon` of that, with what it held before.
//!
//! While shards are then placed one after another, a node is refused if its bound is used up, or if taking it would
//! leave too little for the shards to come: with `r` shards to come, a unit is worth `min(what it may take, r)`, and
//! all units together must stay worth `r` times the replication. Taking from a unit that may take more than `r` costs
//! nothing; taking from any other costs one. So the bounds can always be kept to the last shard.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::Candidate;

/// What each node and each unit may still take.
pub struct Bounds {
    nodes: Vec<Room>,
    /// The unit of each node.
    unit_of: Vec<usize>,
    /// What the nodes of a unit may still take together.
    units: Vec<usize>,
    replication: usize,
    /// Shards not begun yet.
    to_come: usize,
    /// Costly takes that the shard in hand can still afford.
    slack: usize,
}

struct Room {
    capacity: u64,
    held: u64,
    left: usize,
}

impl Bounds {
    /// For placing `shards` shards, `replication` times each.
    pub fn new(nodes: &[Candidate], shards: usize, replication: usize, epsilon: f64) -> Bounds {
        let unit_of = units(nodes, replication);
        let count = unit_of.iter().max().map_or(0, |&last| last + 1);
        let mut by_unit = vec![Pile { capacity: 0, load: 0, dealt: 0 }; count];
        for (node, &unit) in nodes.iter().zip(&unit_of) {
            by_unit[unit].capacity += u64::from(node.capacity);
            by_unit[unit].load += u64::from(node.load);
        }
        deal(&mut by_unit, shards * replication, shards);
        let mut left = vec![0; nodes.len()];
        for (unit, pile) in by_unit.iter().enumerate() {
            let members: Vec<usize> = (0..nodes.len()).filter(|&at| unit_of[at] == unit).collect();
            let mut piles: Vec<Pile> = members
                .iter()
                .map(|&at| Pile { capacity: nodes[at].capacity.into(), load: nodes[at].load.into(), dealt: 0 })
                .collect();
            deal(&mut piles, pile.dealt, shards);
            for (&at, pile) in members.iter().zip(&piles) {
                let fair = pile.load + pile.dealt as u64;
                let above = (fair as f64 * (1.0 + epsilon)).floor() as u64;
                left[at] = pile.dealt.max(above.saturating_sub(pile.load) as usize);
            }
        }
        let mut units = vec![0; count];
        for (at, &unit) in unit_of.iter().enumerate() {
            units[unit] += left[at];
        }
        let room =
            |(node, left): (&Candidate, usize)| Room { capacity: node.capacity.into(), held: node.load.into(), left };
        let nodes = nodes.iter().zip(left).map(room).collect();
        Bounds { nodes, unit_of, units, replication, to_come: shards, slack: 0 }
    }

    /// Goes on to the next shard.
    pub fn begin_shard(&mut self) {
        self.to_come -= 1;
        let worth: usize = self.units.iter().map(|&left| left.min(self.to_come)).sum();
        self.slack = worth.saturating_sub(self.replication * self.to_come);
    }

    /// Whether the shard in hand may take this node.
    pub fn allows(&self, node: usize) -> bool {
        let unit = self.units[self.unit_of[node]];
        self.nodes[node].left > 0 && (unit > self.to_come || self.slack > 0)
    }

    /// Gives the shard in hand to this node, allowed or not.
    pub fn take(&mut self, node: usize) {
        let unit = &mut self.units[self.unit_of[node]];
        if *unit <= self.to_come {
            self.slack = self.slack.saturating_sub(1);
        }
        let room = &mut self.nodes[node];
        room.held += 1;
        if room.left > 0 {
            room.left -= 1;
            *unit -= 1;
        }
    }

    /// Which of two nodes holds less, for its capacity.
    pub fn compare_fullness(&self, one: usize, two: usize) -> Ordering {
        let (one, two) = (&self.nodes[one], &self.nodes[two]);
        (one.held * two.capacity).cmp(&(two.held * one.capacity))
    }
}

/// The unit of each node, numbered from 0.
fn units(nodes: &[Candidate], replication: usize) -> Vec<usize> {
    let mut zones: BTreeMap<&str, usize> = BTreeMap::new();
    for node in nodes {
        let next = zones.len();
        zones.entry(&node.zone).or_insert(next);
    }
    if zones.len() < replication {
        return (0..nodes.len()).collect();
    }
    nodes.iter().map(|node| zones[node.zone.as_str()]).collect()
}

#[derive(Clone, Debug)]
struct Pile {
    capacity: u64,
    load: u64,
    dealt: usize,
}

/// Deals `count` one by one, each to the emptiest pile for its capacity that has got less than `each_max`.
fn deal(piles: &mut [Pile], count: usize, each_max: usize) {
    for _ in 0..count {
        let full_after = |pile: &Pile| pile.load + pile.dealt as u64 + 1;
        let emptiest = piles
            .iter_mut()
            .filter(|pile| pile.dealt < each_max)
            .min_by(|one, two| (full_after(one) * two.capacity).cmp(&(full_after(two) * one.capacity)));
        // There are at least as many units as replicas, so each can be dealt its part.
        let Some(pile) = emptiest else { return };
        pile.dealt += 1;
    }
}
