//! The picture in numbers: counts per node and table that stay right while steps are planned.
//!
//! Nodes, tables and shards are known by their positions here, in the order of their ids. Every step that is planned is
//! at once taken as done, as are the moves under way, so that each need sees what the ones before it have brought
//! about. A shard with a step or a change under way is not touched again.

use std::collections::BTreeMap;

use super::load::{FOLLOWING, LEADING};
use super::shares::{self, Band, Sharer, Whole};
use super::{Bounds, Moving, NodePicture, Picture, Standing, Step, Why};
use crate::placement::CAPACITY_MAX;
use crate::types::{NodeId, ReplicaId, ShardId, TableId};

/// A node and what it holds.
pub struct Node {
    pub id: NodeId,
    pub zone: usize,
    pub capacity: u64,
    pub standing: Standing,
    pub reachable: bool,
    pub spare: bool,
    /// Replicas.
    pub held: u64,
    /// Shards it leads.
    pub led: u64,
    /// Bytes of its replicas.
    pub bytes: u64,
    /// Its load, in the units of `load`.
    pub load: u64,
    /// Its fair share of all replicas.
    pub share: f64,
    /// The counts of replicas that are as good as that.
    pub band: Band,
}

impl Node {
    /// Whether replicas may be made here at all.
    pub fn can_take(&self) -> bool {
        self.stays() && self.reachable
    }

    /// Whether replicas move from and to it for evenness' sake. What other nodes hold is fixed: nobody asked for it to
    /// be moved, or it has to go in any case.
    pub fn is_evened(&self) -> bool {
        self.stays() && self.reachable && !self.spare
    }

    /// Whether what lies here may stay.
    pub fn stays(&self) -> bool {
        self.standing == Standing::Serving
    }

    /// Whether it may lead shards.
    pub fn can_lead(&self) -> bool {
        self.can_take()
    }
}

/// A table and how it is spread.
pub struct Table {
    /// For each node, its replicas of the table.
    pub held: Vec<u64>,
    /// For each node, those of them that vote.
    pub voters: Vec<u64>,
    /// For each node, the shards of the table that it leads.
    pub led: Vec<u64>,
    /// For each node, the counts of replicas that are as good as its share.
    pub bands: Vec<Band>,
}

/// A member of a shard's group.
#[derive(Clone, Copy)]
pub struct Replica {
    pub id: ReplicaId,
    pub node: usize,
    pub voter: bool,
}

/// A shard.
pub struct Shard {
    pub id: ShardId,
    pub table: usize,
    pub replicas: Vec<Replica>,
    pub leader: Option<usize>,
    pub bytes: u64,
    pub load: u64,
    /// A change is under way or was just planned.
    pub taken: bool,
}

/// The picture, and the steps planned so far.
pub struct Model<'a> {
    pub bounds: &'a Bounds,
    pub nodes: Vec<Node>,
    /// How many zones have names of their own.
    pub zones: usize,
    pub tables: Vec<Table>,
    pub shards: Vec<Shard>,
    /// For each node, the shards it holds a replica of.
    pub on: Vec<Vec<usize>>,
    /// Whether something was under way before.
    pub busy: bool,
    /// Whether a need was seen that has to wait for others, or for a node to be heard of again.
    pub held_back: bool,
    pub steps: Vec<Step>,
    pub stuck: Vec<String>,
    /// The load of all nodes.
    pub total_load: u64,
    /// The capacity of those that share it.
    pub serving_capacity: u64,
    /// Shards that are moving.
    moving: usize,
    /// For each node, moves to and from it.
    moving_at: Vec<usize>,
    transfers: usize,
}

impl<'a> Model<'a> {
    /// Reads a picture.
    pub fn new(picture: &Picture, bounds: &'a Bounds) -> Model<'a> {
        let mut model = Model {
            bounds,
            nodes: Vec::new(),
            zones: 0,
            tables: Vec::new(),
            shards: Vec::new(),
            on: Vec::new(),
            busy: false,
            held_back: false,
            steps: Vec::new(),
            stuck: Vec::new(),
            total_load: 0,
            serving_capacity: 0,
            moving: 0,
            moving_at: Vec::new(),
            transfers: 0,
        };
        let positions = model.read_nodes(picture);
        model.read_shards(picture, &positions);
        model.total_load = model.nodes.iter().map(|node| node.load).sum();
        model.serving_capacity = model.nodes.iter().filter(|node| model.serves(node)).map(|node| node.capacity).sum();
        model.share_out();
        model
    }

    fn read_nodes(&mut self, picture: &Picture) -> BTreeMap<NodeId, usize> {
        let mut zones: BTreeMap<&str, usize> = picture.nodes.iter().map(|node| (node.zone.as_str(), 0)).collect();
        for (number, zone) in zones.values_mut().enumerate() {
            *zone = number;
        }
        self.zones = zones.len().max(1);
        let mut known: BTreeMap<NodeId, Option<&NodePicture>> =
            picture.nodes.iter().map(|node| (node.node, Some(node))).collect();
        for shard in &picture.shards {
            for replica in &shard.replicas {
                known.entry(replica.node).or_insert(None);
            }
            if let Some(moving) = shard.moving {
                known.entry(moving.to).or_insert(None);
            }
        }
        self.nodes = known
            .iter()
            .map(|(&id, node)| Node {
                id,
                zone: node.map_or(0, |node| zones[node.zone.as_str()]),
                capacity: node.map_or(0, |node| u64::from(node.capacity.min(CAPACITY_MAX))),
                standing: match node {
                    None => Standing::Lost,
                    Some(node) if node.capacity == 0 && node.standing == Standing::Serving => Standing::Draining,
                    Some(node) => node.standing,
                },
                reachable: node.is_some_and(|node| node.reachable && node.standing != Standing::Lost),
                spare: node.is_some_and(|node| node.spare),
                held: 0,
                led: 0,
                bytes: 0,
                load: 0,
                share: 0.0,
                band: Band::default(),
            })
            .collect();
        self.on = vec![Vec::new(); self.nodes.len()];
        self.moving_at = vec![0; self.nodes.len()];
        known.into_keys().enumerate().map(|(at, id)| (id, at)).collect()
    }

    fn read_shards(&mut self, picture: &Picture, positions: &BTreeMap<NodeId, usize>) {
        let nodes = self.nodes.len();
        let users = || picture.shards.iter().filter(|shard| shard.shard != ShardId::SYSTEM);
        let mut tables: BTreeMap<TableId, usize> = users().map(|shard| (shard.table, 0)).collect();
        for (at, table) in tables.values_mut().enumerate() {
            *table = at;
        }
        self.tables = tables
            .iter()
            .map(|_| Table {
                held: vec![0; nodes],
                voters: vec![0; nodes],
                led: vec![0; nodes],
                bands: vec![Band::default(); nodes],
            })
            .collect();
        let mut sorted: Vec<_> = users().collect();
        sorted.sort_by_key(|shard| shard.shard);
        for shard in sorted {
            let mut replicas: Vec<Replica> = shard
                .replicas
                .iter()
                .map(|replica| Replica { id: replica.replica, node: positions[&replica.node], voter: replica.voter })
                .collect();
            let mut leader = shard.leader.and_then(|leader| positions.get(&leader).copied());
            if shard.is_busy() {
                self.busy = true;
                self.moving += 1;
            }
            if let Some(Moving { replica, to }) = shard.moving {
                let to = positions[&to];
                self.moving_at[to] += 1;
                if let Some(at) = replicas.iter().position(|member| member.id == replica) {
                    let from = replicas[at].node;
                    replicas[at].node = to;
                    self.moving_at[from] += 1;
                    // The newcomer was counted in place of the one that goes.
                    let mut places = 0..;
                    replicas.retain(|member| places.next() == Some(at) || member.node != to);
                    leader = leader.map(|node| if node == from { to } else { node });
                }
            }
            let leader = leader.filter(|&at| replicas.iter().any(|member| member.node == at));
            self.shards.push(Shard {
                id: shard.shard,
                table: tables[&shard.table],
                replicas,
                leader,
                bytes: shard.bytes,
                // Bounded, so that no sum overflows.
                load: shard.load.min(u32::MAX.into()),
                taken: shard.is_busy(),
            });
        }
        for at in 0..self.shards.len() {
            for replica in self.shards[at].replicas.clone() {
                self.put(at, replica);
            }
            if let Some(leader) = self.shards[at].leader {
                self.crown(at, leader);
            }
        }
    }

    /// Finds the shares of all nodes, of each table and in all.
    pub fn share_out(&mut self) {
        let sharers: Vec<Sharer> = (self.nodes.iter().enumerate())
            .filter(|(_, node)| node.is_evened())
            .map(|(at, node)| Sharer { node: at, zone: node.zone, capacity: node.capacity })
            .collect();
        let mut in_use = vec![false; self.zones];
        for node in self.nodes.iter().filter(|node| node.stays() && (!node.spare || node.held > 0)) {
            in_use[node.zone] = true;
        }
        let zones_in_use = (in_use.iter().filter(|&&used| used).count() as u64).max(1);
        let mut wholes = vec![Whole { fixed: vec![0; self.zones], ..Whole::default() }; self.tables.len()];
        for shard in &self.shards {
            let whole = &mut wholes[shard.table];
            let voters = shard.replicas.iter().filter(|replica| replica.voter).count() as u64;
            whole.shards += 1;
            whole.replicas += shard.replicas.len() as u64;
            whole.zone.low += voters / zones_in_use;
            whole.zone.high += voters.div_ceil(zones_in_use) + (shard.replicas.len() as u64 - voters);
        }
        let mut all = vec![0.0; self.nodes.len()];
        let mut shares = vec![0.0; self.nodes.len()];
        for (table, whole) in self.tables.iter_mut().zip(&mut wholes) {
            for (at, node) in self.nodes.iter().enumerate() {
                shares[at] = 0.0;
                if node.stays() && !node.is_evened() {
                    whole.fixed[node.zone] += table.held[at];
                    whole.replicas -= table.held[at];
                    shares[at] = table.held[at] as f64;
                }
            }
            shares::divide(whole, &sharers, &mut shares);
            for (at, &share) in shares.iter().enumerate() {
                table.bands[at] = Band::around(share, self.bounds.tolerance);
                all[at] += share;
            }
        }
        for (node, share) in self.nodes.iter_mut().zip(all) {
            node.share = share;
            node.band = Band::around(share, self.bounds.tolerance);
        }
    }

    /// Whether a node has a part in serving requests.
    pub fn serves(&self, node: &Node) -> bool {
        node.can_lead() && (!node.spare || node.held > 0)
    }

    /// Whether a shard may be changed though nothing forces it: it has a leader, and no voter is missing. A shard that
    /// misses one is only repaired.
    pub fn is_steady(&self, shard: usize) -> bool {
        let shard = &self.shards[shard];
        let present = |replica: &Replica| !replica.voter || self.nodes[replica.node].reachable;
        !shard.taken && shard.leader.is_some() && shard.replicas.iter().all(present)
    }

    /// Whether a shard has a replica on a node.
    pub fn holds(&self, shard: usize, node: usize) -> bool {
        self.shards[shard].replicas.iter().any(|replica| replica.node == node)
    }

    /// How many others of its group a replica would meet in a zone. Voters are spread among themselves; what is on
    /// nodes that have to be left does not count.
    pub fn crowd(&self, shard: usize, replica: usize, zone: usize) -> usize {
        let all = &self.shards[shard].replicas;
        let voter = all[replica].voter;
        let meets = |(at, other): &(usize, &Replica)| {
            let node = &self.nodes[other.node];
            *at != replica && (other.voter || !voter) && node.zone == zone && node.stays()
        };
        all.iter().enumerate().filter(meets).count()
    }

    /// How full a node would be with one replica more, for its share. A hot spare is measured by its capacity.
    pub fn fullness(&self, node: usize) -> f64 {
        let node = &self.nodes[node];
        let share = if node.spare { self.share_of_capacity(node.capacity) } else { node.share };
        (node.held + 1) as f64 / share.max(f64::MIN_POSITIVE)
    }

    fn share_of_capacity(&self, capacity: u64) -> f64 {
        let evened = self.nodes.iter().filter(|node| node.is_evened());
        let (share, all) = evened.fold((0.0, 0), |(share, all), node| (share + node.share, all + node.capacity));
        if all == 0 { capacity as f64 } else { share * capacity as f64 / all as f64 }
    }

    /// Whether as many shards are moving as may.
    pub fn is_full(&self) -> bool {
        self.moving >= self.bounds.moves_max
    }

    /// Whether one more replica may be copied from one node to another. A lost node takes no part.
    pub fn has_room(&self, from: usize, to: usize) -> bool {
        let room = |node: usize| self.moving_at[node] < self.bounds.moves_per_node_max;
        (self.nodes[from].standing == Standing::Lost || room(from)) && room(to)
    }

    /// Whether shards are moving, or about to.
    pub fn is_moving(&self) -> bool {
        self.moving > 0
    }

    /// How many more leaderships may be handed over.
    pub fn transfers_left(&self) -> usize {
        self.bounds.transfers_max.saturating_sub(self.transfers)
    }

    /// Plans a move. If the replica leads, the one that takes its place leads after it.
    pub fn relocate(&mut self, shard: usize, replica: usize, to: usize, why: Why) {
        let Replica { id, node: from, .. } = self.shards[shard].replicas[replica];
        debug_assert!(!self.shards[shard].taken && !self.holds(shard, to), "one change at a time, one replica a node");
        self.steps.push(Step::Move { shard: self.shards[shard].id, replica: id, to: self.nodes[to].id, why });
        self.moving += 1;
        self.moving_at[from] += 1;
        self.moving_at[to] += 1;
        let led = self.shards[shard].leader == Some(from);
        if led {
            self.dethrone(shard);
        }
        self.take_away(shard, self.shards[shard].replicas[replica]);
        self.shards[shard].replicas[replica].node = to;
        self.put(shard, self.shards[shard].replicas[replica]);
        if led {
            self.crown(shard, to);
        }
        self.shards[shard].taken = true;
    }

    /// Plans to hand a leadership over to a voter on `to`.
    pub fn transfer(&mut self, shard: usize, to: usize, why: Why) {
        debug_assert!(!self.shards[shard].taken, "one change at a time");
        self.steps.push(Step::Transfer { shard: self.shards[shard].id, to: self.nodes[to].id, why });
        self.transfers += 1;
        self.dethrone(shard);
        self.crown(shard, to);
        self.shards[shard].taken = true;
    }

    fn put(&mut self, shard: usize, Replica { node, voter, .. }: Replica) {
        let Shard { table, bytes, load, .. } = self.shards[shard];
        self.tables[table].held[node] += 1;
        self.tables[table].voters[node] += u64::from(voter);
        self.on[node].push(shard);
        let node = &mut self.nodes[node];
        node.held += 1;
        node.bytes = node.bytes.saturating_add(bytes);
        node.load += FOLLOWING * load;
    }

    fn take_away(&mut self, shard: usize, Replica { node, voter, .. }: Replica) {
        let Shard { table, bytes, load, .. } = self.shards[shard];
        self.tables[table].held[node] -= 1;
        self.tables[table].voters[node] -= u64::from(voter);
        self.on[node].retain(|&held| held != shard);
        let node = &mut self.nodes[node];
        node.held -= 1;
        node.bytes = node.bytes.saturating_sub(bytes);
        node.load -= FOLLOWING * load;
    }

    fn crown(&mut self, shard: usize, node: usize) {
        let Shard { table, load, .. } = self.shards[shard];
        self.shards[shard].leader = Some(node);
        self.tables[table].led[node] += 1;
        self.nodes[node].led += 1;
        self.nodes[node].load += (LEADING - FOLLOWING) * load;
    }

    fn dethrone(&mut self, shard: usize) {
        let Shard { table, load, leader, .. } = self.shards[shard];
        let Some(node) = leader else { return };
        self.shards[shard].leader = None;
        self.tables[table].led[node] -= 1;
        self.nodes[node].led -= 1;
        self.nodes[node].load -= (LEADING - FOLLOWING) * load;
    }
}
