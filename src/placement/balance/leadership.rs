//! Leaders spread evenly by capacity: those of each table first, and among equals those of all tables.
//!
//! As for new tables (`placement::leaders`), leaderships are passed on along chains of shards, so that a node is
//! relieved also where its own followers lead too much already. A table's leaders are good if each node leads its share
//! of those that its voters let it lead, rounded up or down. All of them are as even as chains can make them that leave
//! every table as it is: each chain lowers the sum of the squares, by capacity, so none is undone.
//!
//! A chain is planned whole or not at all, so none is looked for that is longer than one plan may be; and every link
//! goes to a node that bears the load.

use std::collections::VecDeque;

use super::Why;
use super::model::Model;
use super::shares::{Band, Part, change, fill};

/// Hands over leaderships until they are even.
pub fn spread_leaders(model: &mut Model<'_>) {
    let bands: Vec<Vec<Band>> = (0..model.tables.len()).map(|table| bands(model, table)).collect();
    for (table, bands) in bands.iter().enumerate() {
        let uneven = |model: &Model<'_>| {
            let led = &model.tables[table].led;
            (0..led.len()).any(|node| model.nodes[node].can_lead() && bands[node].distance(led[node]) > 0)
        };
        while uneven(model) {
            let links = Links::new(model, |shard, _, _| model.shards[shard].table == table);
            let led = &model.tables[table].led;
            let side = |node: usize| (bands[node], led[node]);
            let chain = links.chain(model, |from, to| change(side(from), side(to)) < 0);
            if !pass_on(model, chain) {
                break;
            }
        }
    }
    loop {
        let links = Links::new(model, |shard, from, to| {
            let table = model.shards[shard].table;
            let led = &model.tables[table].led;
            led[from] > bands[table][from].low && led[to] < bands[table][to].high
        });
        let chain = links.chain(model, |from, to| {
            let (from, to) = (&model.nodes[from], &model.nodes[to]);
            (2 * from.led).saturating_sub(1) * to.capacity > (2 * to.led + 1) * from.capacity
        });
        if !pass_on(model, chain) {
            break;
        }
    }
}

/// For each node, how many shards of a table it should lead.
pub fn bands(model: &Model<'_>, table: usize) -> Vec<Band> {
    let leading: Vec<usize> = (0..model.nodes.len()).filter(|&node| model.nodes[node].can_lead()).collect();
    let spread = &model.tables[table];
    let parts: Vec<Part> = leading
        .iter()
        .map(|&node| Part {
            capacity: model.nodes[node].capacity as f64,
            least: 0.0,
            most: spread.voters[node].max(spread.led[node]) as f64,
        })
        .collect();
    let total: u64 = leading.iter().map(|&node| spread.led[node]).sum();
    let mut bands = vec![Band::default(); model.nodes.len()];
    for (&node, share) in leading.iter().zip(fill(&parts, total as f64)) {
        bands[node] = Band::around(share, 0.0);
    }
    bands
}

/// For each pair of nodes, a shard that the first leads and the second could.
struct Links {
    nodes: usize,
    shards: Vec<Option<usize>>,
}

impl Links {
    /// The links that may be used now.
    fn new(model: &Model<'_>, allowed: impl Fn(usize, usize, usize) -> bool) -> Links {
        let nodes = model.nodes.len();
        let mut shards = vec![None; nodes * nodes];
        for (at, shard) in model.shards.iter().enumerate() {
            let Some(from) = shard.leader.filter(|_| model.is_steady(at)) else { continue };
            for to in shard.replicas.iter().filter(|replica| replica.voter).map(|replica| replica.node) {
                let link = &mut shards[from * nodes + to];
                let open = link.is_none() && to != from && model.nodes[from].can_lead() && model.nodes[to].can_lead();
                if open && model.bears_leader(to, shard.load) && allowed(at, from, to) {
                    *link = Some(at);
                }
            }
        }
        Links { nodes, shards }
    }

    /// A shortest chain from a node to one that `gains` names, from any of the nodes that have one: the shards, and who
    /// is to lead them.
    fn chain(&self, model: &Model<'_>, gains: impl Fn(usize, usize) -> bool) -> Option<Vec<(usize, usize)>> {
        let mut starts: Vec<usize> = (0..self.nodes).filter(|&node| model.nodes[node].can_lead()).collect();
        // The fullest first.
        starts.sort_by(|&one, &two| {
            let load = |node: usize, other: usize| model.nodes[node].led * model.nodes[other].capacity;
            load(two, one).cmp(&load(one, two)).then(one.cmp(&two))
        });
        let longest = model.bounds.transfers_max.max(1);
        starts.into_iter().find_map(|start| self.chain_from(start, longest, &gains))
    }

    fn chain_from(
        &self,
        start: usize,
        longest: usize,
        gains: &impl Fn(usize, usize) -> bool,
    ) -> Option<Vec<(usize, usize)>> {
        if !(0..self.nodes).any(|to| to != start && gains(start, to)) {
            return None;
        }
        let mut reached: Vec<Option<(usize, usize)>> = vec![None; self.nodes];
        let mut queue = VecDeque::from([(start, 0)]);
        while let Some((from, length)) = queue.pop_front() {
            if from != start && gains(start, from) {
                let mut chain = Vec::new();
                let mut to = from;
                while to != start {
                    let (before, shard) = reached[to].expect("every node in the queue but the first was reached");
                    chain.push((shard, to));
                    to = before;
                }
                chain.reverse();
                return Some(chain);
            }
            for to in (0..self.nodes).filter(|&to| to != start && length < longest) {
                if let Some(shard) = self.shards[from * self.nodes + to]
                    && reached[to].is_none()
                {
                    reached[to] = Some((from, shard));
                    queue.push_back((to, length + 1));
                }
            }
        }
        None
    }
}

/// Plans a chain. False if there is none, or too many leaderships would be handed over at once.
fn pass_on(model: &mut Model<'_>, chain: Option<Vec<(usize, usize)>>) -> bool {
    let Some(chain) = chain else { return false };
    if chain.len() > model.transfers_left() {
        model.held_back = true;
        return false;
    }
    for (shard, to) in chain {
        model.transfer(shard, to, Why::LeadersUneven);
    }
    true
}
