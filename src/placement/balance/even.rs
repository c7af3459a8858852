//! Replicas spread evenly by capacity: those of each table first, for its load comes all at once, and among equals
//! those of all tables.
//!
//! A count is good if it lies in the node's band (`shares`). A move is made only if it brings counts nearer to their
//! bands: those of the table, or, leaving those as they are, those of all tables together. So each move lowers a whole
//! number that cannot become negative, and no later one brings it back.

use super::Why;
use super::model::Model;
use super::shares::change;

/// Moves replicas from nodes that hold too many to nodes that hold too few.
pub fn spread_replicas(model: &mut Model<'_>) {
    let mut waits = false;
    for table in 0..model.tables.len() {
        waits |= is_uneven(model, table) && spread(model, Some(table));
    }
    // What the tables are still going to move would be evened out twice.
    if !waits {
        spread(model, None);
    }
}

fn is_uneven(model: &Model<'_>, table: usize) -> bool {
    let table = &model.tables[table];
    table.bands.iter().zip(&table.held).any(|(band, &held)| band.distance(held) > 0)
}

/// Plans the moves that make a table, or all of them together, more even. Returns whether some have to wait.
fn spread(model: &mut Model<'_>, table: Option<usize>) -> bool {
    loop {
        match next(model, table) {
            Next::Move { shard, replica, to } => model.relocate(shard, replica, to, Why::ReplicasUneven),
            Next::Later => {
                model.held_back = true;
                return true;
            }
            Next::Nothing => return false,
        }
    }
}

enum Next {
    Move {
        shard: usize,
        replica: usize,
        to: usize,
    },
    /// There is a move, but no room for it yet.
    Later,
    Nothing,
}

fn next(model: &Model<'_>, table: Option<usize>) -> Next {
    let mut waits = false;
    let fullness: Vec<f64> = (0..model.nodes.len()).map(|node| model.fullness(node)).collect();
    let mut targets: Vec<usize> = (0..model.nodes.len()).filter(|&node| model.nodes[node].is_evened()).collect();
    targets.sort_by(|&one, &two| fullness[one].total_cmp(&fullness[two]).then(one.cmp(&two)));
    let sources: Vec<usize> = targets.iter().rev().copied().collect();
    let change_in_all = |from: usize, to: usize| {
        let side = |node: usize| (model.nodes[node].band, model.nodes[node].held);
        change(side(from), side(to))
    };
    // First what helps two nodes at once.
    for gain in [-2, -1] {
        for &from in &sources {
            for &to in targets.iter().filter(|&&to| to != from) {
                let change = match table {
                    Some(table) => change_in_table(model, table, from, to),
                    None => change_in_all(from, to),
                };
                if change != gain {
                    continue;
                }
                let Some((shard, replica)) = choose(model, from, to, table) else { continue };
                if model.is_full() {
                    return Next::Later;
                }
                if model.has_room(from, to) {
                    return Next::Move { shard, replica, to };
                }
                waits = true;
            }
        }
    }
    if waits { Next::Later } else { Next::Nothing }
}

fn change_in_table(model: &Model<'_>, table: usize, from: usize, to: usize) -> i64 {
    let table = &model.tables[table];
    let side = |node: usize| (table.bands[node], table.held[node]);
    change(side(from), side(to))
}

/// The replica to be moved from one node to another: rather one that follows than one that leads, and of those the one
/// that brings the bytes of both nodes nearest to each other.
fn choose(model: &Model<'_>, from: usize, to: usize, table: Option<usize>) -> Option<(usize, usize)> {
    let mut best = None;
    for &at in &model.on[from] {
        let shard = &model.shards[at];
        let fits = match table {
            Some(table) => shard.table == table,
            None => change_in_table(model, shard.table, from, to) <= 0,
        };
        if !fits || !model.is_steady(at) || model.holds(at, to) {
            continue;
        }
        let Some(replica) = shard.replicas.iter().position(|replica| replica.node == from) else { continue };
        let crowd = |node: usize| model.crowd(at, replica, model.nodes[node].zone);
        let leads = shard.leader == Some(from);
        if crowd(to) > crowd(from) || !model.bears_replica(to, shard.load, leads) {
            continue;
        }
        let here = model.nodes[from].bytes.saturating_sub(shard.bytes);
        let there = model.nodes[to].bytes.saturating_add(shard.bytes);
        let key = (leads, here.abs_diff(there), at);
        if best.is_none_or(|(least, _)| key < least) {
            best = Some((key, replica));
        }
    }
    best.map(|((_, _, shard), replica)| (shard, replica))
}
