//! What cannot stay where it is: replicas on lost nodes, then leaders and replicas on draining ones, then replicas that
//! share a zone though another has none.
//!
//! A replica is made anew in the zone with the fewest of its group, there on the node that is emptiest for its share.
//! Of shards that lost a replica, those come first that could lose the fewest more.

use std::collections::BTreeMap;

use super::Why;
use super::model::Model;
use super::picture::Standing;
use crate::types::{NodeId, ShardId};

/// Plans for lost and draining nodes. Returns whether replicas are left there that will be moved later: until then it
/// is not known how even the other nodes will be.
pub fn leave_nodes(model: &mut Model<'_>) -> bool {
    hand_leaders_away(model);
    let lost = replace(model, Standing::Lost, Why::NodeLost);
    let draining = replace(model, Standing::Draining, Why::NodeDrains);
    lost || draining
}

/// Leaders leave a draining node before its replicas do, so that a copy never has to wait for an election.
fn hand_leaders_away(model: &mut Model<'_>) {
    for shard in 0..model.shards.len() {
        let Some(leader) = model.shards[shard].leader else { continue };
        let node = &model.nodes[leader];
        if node.standing != Standing::Draining || !node.reachable || model.shards[shard].taken {
            continue;
        }
        let table = &model.tables[model.shards[shard].table];
        let weight = |count: u64, node: usize| (count + 1) as f64 / model.nodes[node].capacity as f64;
        let heir = (model.shards[shard].replicas.iter())
            .filter(|replica| replica.voter && model.nodes[replica.node].can_lead())
            .map(|replica| replica.node)
            .min_by(|&one, &two| {
                let in_table = weight(table.led[one], one).total_cmp(&weight(table.led[two], two));
                let in_all = || weight(model.nodes[one].led, one).total_cmp(&weight(model.nodes[two].led, two));
                in_table.then_with(in_all).then(one.cmp(&two))
            });
        // Without an heir the leadership goes along with the replica.
        let Some(heir) = heir else { continue };
        if model.transfers_left() == 0 {
            model.held_back = true;
            return;
        }
        model.transfer(shard, heir, Why::NodeDrains);
    }
}

/// Shards in the same trouble: the first of them, and how many there are.
struct Trouble {
    first: ShardId,
    count: usize,
}

impl Trouble {
    fn note<K: Ord>(troubles: &mut BTreeMap<K, Trouble>, key: K, shard: ShardId) {
        troubles.entry(key).or_insert(Trouble { first: shard, count: 0 }).count += 1;
    }

    /// "s5 has", or "s5 and 3 other shards have".
    fn have(&self) -> String {
        match self.count {
            1 => format!("{} has", self.first),
            2 => format!("{} and another shard have", self.first),
            more => format!("{} and {} other shards have", self.first, more - 1),
        }
    }
}

/// Replaces what lies on nodes of this standing. Returns whether some of it has to wait.
fn replace(model: &mut Model<'_>, standing: Standing, why: Why) -> bool {
    let mut waits = false;
    let mut displaced = Vec::new();
    let mut no_quorum: BTreeMap<Vec<NodeId>, Trouble> = BTreeMap::new();
    for (at, shard) in model.shards.iter().enumerate() {
        let Some(replica) = shard.replicas.iter().position(|replica| model.nodes[replica.node].standing == standing)
        else {
            continue;
        };
        if shard.taken {
            waits = true;
            continue;
        }
        let voters = || shard.replicas.iter().filter(|replica| replica.voter).map(|replica| &model.nodes[replica.node]);
        let majority = voters().count() / 2 + 1;
        let mut lost: Vec<NodeId> =
            voters().filter(|node| node.standing == Standing::Lost).map(|node| node.id).collect();
        lost.sort_unstable();
        if voters().count() - lost.len() < majority {
            if standing == Standing::Lost {
                Trouble::note(&mut no_quorum, lost, shard.id);
            }
            continue;
        }
        match voters().filter(|node| node.reachable).count().checked_sub(majority) {
            Some(margin) => displaced.push((margin, at, replica)),
            // Enough of them are only silent, and will be back or lost.
            None => waits = true,
        }
    }
    displaced.sort_unstable();
    let mut nowhere: BTreeMap<NodeId, Trouble> = BTreeMap::new();
    for (_, shard, replica) in displaced {
        let from = model.shards[shard].replicas[replica].node;
        match refuge(model, shard, replica) {
            Refuge::Node(to) if !model.is_full() => model.relocate(shard, replica, to, why),
            Refuge::Node(_) | Refuge::Later => waits = true,
            Refuge::Nowhere => Trouble::note(&mut nowhere, model.nodes[from].id, model.shards[shard].id),
        }
    }
    model.held_back |= waits;
    for (lost, trouble) in no_quorum {
        let lost: Vec<String> = lost.iter().map(NodeId::to_string).collect();
        model.stuck.push(format!(
            "{} lost a majority of voters, those on {}, and without it members cannot be changed: bring one of these \
             nodes back",
            trouble.have(),
            lost.join(" and ")
        ));
    }
    for (node, trouble) in nowhere {
        let state = if standing == Standing::Lost { "is lost" } else { "drains" };
        let what = if trouble.count == 1 { "a replica" } else { "replicas" };
        model.stuck.push(format!(
            "{} {what} on {node}, which {state}, and no node can take {}: add a node",
            trouble.have(),
            if trouble.count == 1 { "it" } else { "them" },
        ));
    }
    waits
}

enum Refuge {
    Node(usize),
    /// There is one, but it is busy or silent.
    Later,
    Nowhere,
}

/// The best node for a replica that has to leave its own.
fn refuge(model: &Model<'_>, shard: usize, replica: usize) -> Refuge {
    let from = model.shards[shard].replicas[replica].node;
    let free = |node: &usize| !model.holds(shard, *node);
    let candidates: Vec<usize> =
        (0..model.nodes.len()).filter(|&node| model.nodes[node].can_take()).filter(free).collect();
    let crowd = |node: usize| model.crowd(shard, replica, model.nodes[node].zone);
    let Some(least) = candidates.iter().map(|&node| crowd(node)).min() else {
        let silent = |node: &usize| model.nodes[*node].stays() && !model.nodes[*node].reachable;
        let later = (0..model.nodes.len()).filter(silent).any(|node| free(&node));
        return if later { Refuge::Later } else { Refuge::Nowhere };
    };
    // A worse zone would only have to be left again later: rather wait for a node in the best.
    let best = (candidates.into_iter())
        .filter(|&node| crowd(node) == least && model.has_room(from, node))
        .min_by(|&one, &two| emptier(model, shard, one, two));
    best.map_or(Refuge::Later, Refuge::Node)
}

/// Which of two nodes should rather get a replica of a shard: where it fits into the table's share, else where there is
/// least.
fn emptier(model: &Model<'_>, shard: usize, one: usize, two: usize) -> std::cmp::Ordering {
    let table = &model.tables[model.shards[shard].table];
    let above = |node: usize| !model.nodes[node].spare && table.held[node] >= table.bands[node].high;
    above(one)
        .cmp(&above(two))
        .then_with(|| model.fullness(one).total_cmp(&model.fullness(two)))
        .then_with(|| one.cmp(&two))
}

/// Spreads voters over zones that hold none, or fewer. Returns whether some have to wait.
pub fn spread_over_zones(model: &mut Model<'_>) -> bool {
    let mut waits = false;
    let targets: Vec<usize> = (0..model.nodes.len()).filter(|&node| model.nodes[node].is_evened()).collect();
    let mut open = vec![false; model.zones];
    for &node in &targets {
        open[model.nodes[node].zone] = true;
    }
    for shard in 0..model.shards.len() {
        if !model.is_steady(shard) {
            continue;
        }
        let Some((replica, to)) = zone_move(model, shard, &targets, &open) else { continue };
        let from = model.shards[shard].replicas[replica].node;
        if model.is_full() || !model.has_room(from, to) {
            model.held_back = true;
            waits = true;
            continue;
        }
        model.relocate(shard, replica, to, Why::ZonesUneven);
    }
    waits
}

/// The voter of a shard to be moved to another zone, and the node it goes to; none if it is spread as well as can be.
fn zone_move(model: &Model<'_>, shard: usize, targets: &[usize], open: &[bool]) -> Option<(usize, usize)> {
    let replicas = &model.shards[shard].replicas;
    let mut counts = vec![0usize; model.zones];
    for replica in replicas.iter().filter(|replica| replica.voter && model.nodes[replica.node].stays()) {
        counts[model.nodes[replica.node].zone] += 1;
    }
    let least = counts.iter().zip(open).filter(|&(_, &open)| open).map(|(&count, _)| count).min()?;
    let most = counts.iter().copied().max()?;
    if most < least + 2 {
        return None;
    }
    let leads = |at: usize| model.shards[shard].leader == Some(replicas[at].node);
    let replica = (0..replicas.len())
        .filter(|&at| {
            let node = &model.nodes[replicas[at].node];
            replicas[at].voter && node.can_take() && counts[node.zone] == most
        })
        .min_by(|&one, &two| {
            let full = |at: usize| model.fullness(replicas[at].node);
            leads(one).cmp(&leads(two)).then_with(|| full(two).total_cmp(&full(one))).then(one.cmp(&two))
        })?;
    let crowd = |node: usize| counts[model.nodes[node].zone];
    let to = (targets.iter().copied())
        .filter(|&node| crowd(node) + 2 <= most && !model.holds(shard, node))
        .min_by(|&one, &two| crowd(one).cmp(&crowd(two)).then_with(|| emptier(model, shard, one, two)))?;
    Some((replica, to))
}
