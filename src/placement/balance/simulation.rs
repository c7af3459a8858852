//! A cluster that does what plans say, for tests: moves take a few rounds, leaderships are handed over at once.
//!
//! While it runs it checks what must hold of every plan: bounds, one change per shard, no node twice, nothing given to
//! nodes that must not get it, and that what is wrong gets less with every plan ([`Measure`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::model::Model;
use super::*;
use crate::placement::{Candidate, place};
use crate::types::TableId;

/// Rounds for which a move is under way.
const MOVE_ROUNDS: u64 = 3;
/// Names one of a node's parts.
type PartOf = fn(&NodeParts) -> Part;
/// More rounds than any run in the tests needs; one that has not settled by then never will.
const ROUNDS_MAX: u64 = 20_000;

#[derive(Clone, Debug, Default)]
pub struct Cluster {
    pub picture: Picture,
    pub bounds: Bounds,
    round: u64,
    /// When the move of each shard is done.
    done: BTreeMap<ShardId, u64>,
    replicas_given: u64,
    /// For each replica that was made in the place of another, the first in its line.
    ancestors: BTreeMap<ReplicaId, ReplicaId>,
}

/// How much is wrong, strongest need first. As long as it gets less with every plan, planning ends.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Measure {
    /// Replicas and leaders on nodes that have to be left.
    displaced: u64,
    /// Pairs of voters in one zone.
    zone_pairs: u64,
    /// Load above the lower lines of all nodes.
    load: u64,
    /// How far all tables are from their bands, and all of them together.
    replicas: (u64, u64),
    /// How far the leaders of all tables are from their bands, and the squares of all leaders by capacity.
    leaders: (u64, f64),
}

impl Measure {
    pub fn of(picture: &Picture, bounds: &Bounds) -> Measure {
        let model = Model::new(picture, bounds);
        let mut measure = Measure { displaced: 0, zone_pairs: 0, load: 0, replicas: (0, 0), leaders: (0, 0.0) };
        for shard in &model.shards {
            for replica in &shard.replicas {
                measure.displaced += u64::from(!model.nodes[replica.node].stays());
            }
            measure.displaced += u64::from(shard.leader.is_some_and(|leader| !model.nodes[leader].stays()));
            let voters = shard.replicas.iter().filter(|replica| replica.voter && model.nodes[replica.node].stays());
            for one in voters.clone() {
                let mates = voters.clone().filter(|two| model.nodes[two.node].zone == model.nodes[one.node].zone);
                measure.zone_pairs += mates.count() as u64 - 1;
            }
        }
        for (at, node) in model.nodes.iter().enumerate() {
            if node.can_lead() {
                measure.load += model.load_above_lower(at);
                measure.leaders.1 += (node.led * node.led) as f64 / node.capacity as f64;
            }
            if node.is_evened() {
                measure.replicas.1 += node.band.distance(node.held);
            }
        }
        for (table, spread) in model.tables.iter().enumerate() {
            let bands = leadership::bands(&model, table);
            for (at, node) in model.nodes.iter().enumerate() {
                if node.is_evened() {
                    measure.replicas.0 += spread.bands[at].distance(spread.held[at]);
                }
                if node.can_lead() {
                    measure.leaders.0 += bands[at].distance(spread.led[at]);
                }
            }
        }
        measure
    }
}

/// What a run came to.
pub struct Run {
    pub rounds: u64,
    pub moves: BTreeMap<Why, usize>,
    pub transfers: BTreeMap<Why, usize>,
    /// The fewest moves that could have made all nodes as even as their shares.
    pub least_moves: usize,
    pub stuck: Vec<String>,
    /// Replicas that came back to a node that they had been moved away from.
    pub returned: usize,
}

impl Run {
    pub fn moved(&self) -> usize {
        self.moves.values().sum()
    }
}

impl Cluster {
    pub fn add_node(&mut self, id: u64, zone: &str, capacity: u32, spare: bool) {
        let standing = Standing::Serving;
        let node = NodeId(id);
        self.picture.nodes.push(NodePicture {
            node,
            zone: zone.to_owned(),
            capacity,
            standing,
            reachable: true,
            spare,
        });
    }

    /// A table placed as new tables are.
    pub fn add_table(&mut self, id: u32, shards: u64, replication: usize) -> Result<(), String> {
        let parts = plan(&self.picture, &self.bounds).nodes;
        let candidates: Vec<Candidate> = (self.picture.nodes.iter())
            .filter(|node| node.standing == Standing::Serving && !node.spare)
            .map(|node| {
                let part = parts.iter().find(|part| part.node == node.node).expect("every node has a part");
                let (load, leaders) = (part.replicas.count as u32, part.leaders.count as u32);
                Candidate { node: node.node, zone: node.zone.clone(), capacity: node.capacity, load, leaders }
            })
            .collect();
        let first = self.picture.shards.iter().map(|shard| shard.shard.0).max().unwrap_or(0) + 1;
        let ids: Vec<ShardId> = (first..first + shards).map(ShardId).collect();
        let placed = place(&candidates, &ids, replication, 0.0).map_err(|error| error.to_string())?;
        for (shard, nodes) in ids.into_iter().zip(placed) {
            let replicas = nodes.iter().map(|&node| self.replica(node, true)).collect();
            self.picture.shards.push(ShardPicture {
                shard,
                table: TableId(id),
                replicas,
                leader: nodes.first().copied(),
                bytes: 64 << 20,
                load: 0,
                busy: false,
                moving: None,
            });
        }
        Ok(())
    }

    pub fn replica(&mut self, node: NodeId, voter: bool) -> ReplicaPicture {
        self.replicas_given += 1;
        ReplicaPicture { replica: ReplicaId(self.replicas_given), node, voter }
    }

    pub fn node(&mut self, id: u64) -> &mut NodePicture {
        self.picture.nodes.iter_mut().find(|node| node.node == NodeId(id)).expect("a node of the cluster")
    }

    pub fn shard(&mut self, id: ShardId) -> &mut ShardPicture {
        self.picture.shards.iter_mut().find(|shard| shard.shard == id).expect("a shard of the cluster")
    }

    /// A node falls silent, for good or not; its shards elect leaders among the voters that are left.
    pub fn silence(&mut self, id: u64, standing: Standing) {
        let node = self.node(id);
        node.reachable = false;
        node.standing = standing;
        let living: BTreeSet<NodeId> =
            self.picture.nodes.iter().filter(|node| node.reachable).map(|node| node.node).collect();
        for (at, shard) in self.picture.shards.iter_mut().enumerate() {
            if shard.leader == Some(NodeId(id)) {
                let voters = shard.replicas.iter().filter(|replica| replica.voter);
                let left: Vec<NodeId> =
                    voters.clone().map(|voter| voter.node).filter(|node| living.contains(node)).collect();
                let quorum = left.len() > voters.count() / 2;
                shard.leader = if quorum { left.get(at % left.len().max(1)).copied() } else { None };
            }
        }
    }

    /// Plans and does what was planned until nothing is left to do.
    pub fn run(&mut self) -> Result<Run, String> {
        let lacking: f64 = plan(&self.picture, &self.bounds)
            .nodes
            .iter()
            .map(|node| node.replicas)
            .map(|part| (part.fair - part.count as f64).max(0.0))
            .sum();
        let mut run = Run {
            rounds: 0,
            moves: BTreeMap::new(),
            transfers: BTreeMap::new(),
            least_moves: (lacking - 1e-6).ceil() as usize,
            stuck: Vec::new(),
            returned: 0,
        };
        let mut left = BTreeSet::new();
        for rounds in 0..ROUNDS_MAX {
            self.finish_moves();
            let plan = plan(&self.picture, &self.bounds);
            if plan.settled {
                run.rounds = rounds;
                run.stuck = plan.stuck;
                return Ok(run);
            }
            if plan.steps.is_empty() && self.done.is_empty() {
                return Err(format!("nothing is under way, and it waits: {:?}", plan.stuck));
            }
            let before = Measure::of(&self.picture, &self.bounds);
            self.begin(&plan.steps, &mut run, &mut left)?;
            let after = Measure::of(&self.picture, &self.bounds);
            if !plan.steps.is_empty() && after >= before {
                return Err(format!("{:?} make nothing better: {before:?}, {after:?}", plan.steps));
            }
            self.check()?;
            self.round += 1;
        }
        Err("it goes on and on".to_owned())
    }

    fn begin(&mut self, steps: &[Step], run: &mut Run, left: &mut BTreeSet<(ReplicaId, NodeId)>) -> Result<(), String> {
        let transfers = steps.iter().filter(|step| matches!(step, Step::Transfer { .. })).count();
        if transfers > self.bounds.transfers_max {
            return Err(format!("{transfers} leaderships at once"));
        }
        for step in steps {
            let nodes = self.picture.nodes.clone();
            let target = |to: NodeId| nodes.iter().find(|node| node.node == to);
            let round = self.round;
            let ancestors = self.ancestors.clone();
            let shard = self.shard(step.shard());
            let fault = |what: &str| Err(format!("{step}, but {what}"));
            if shard.is_busy() {
                return fault("the shard has a change under way");
            }
            match *step {
                Step::Move { shard: id, replica, to, why } => {
                    let Some(target) = target(to) else { return fault("there is no such node") };
                    let Some(from) = shard.replicas.iter().find(|member| member.replica == replica) else {
                        return fault("there is no such replica");
                    };
                    if target.standing != Standing::Serving || !target.reachable || target.capacity == 0 {
                        return fault("the node can take none");
                    }
                    if target.spare && !matches!(why, Why::NodeLost | Why::NodeDrains) {
                        return fault("the node is a spare");
                    }
                    if shard.replicas.iter().any(|member| member.node == to) {
                        return fault("the node has one already");
                    }
                    let line = ancestors.get(&replica).copied().unwrap_or(replica);
                    left.insert((line, from.node));
                    run.returned += usize::from(left.contains(&(line, to)));
                    shard.moving = Some(Moving { replica, to });
                    self.done.insert(id, round + MOVE_ROUNDS);
                    *run.moves.entry(why).or_default() += 1;
                }
                Step::Transfer { to, why, .. } => {
                    if !shard.replicas.iter().any(|member| member.node == to && member.voter) {
                        return fault("it has no voter there");
                    }
                    if shard.leader == Some(to) {
                        return fault("it leads already");
                    }
                    if target(to).is_none_or(|node| !node.reachable || node.standing != Standing::Serving) {
                        return fault("the node cannot lead");
                    }
                    shard.leader = Some(to);
                    *run.transfers.entry(why).or_default() += 1;
                }
            }
        }
        Ok(())
    }

    fn finish_moves(&mut self) {
        let round = self.round;
        let done: Vec<ShardId> = self.done.iter().filter(|&(_, &at)| at <= round).map(|(&id, _)| id).collect();
        for id in done {
            self.done.remove(&id);
            self.replicas_given += 1;
            let given = ReplicaId(self.replicas_given);
            let shard = self.shard(id);
            let Moving { replica, to } = shard.moving.take().expect("what is to be done is moving");
            let line = self.ancestors.get(&replica).copied().unwrap_or(replica);
            self.ancestors.insert(given, line);
            let shard = self.shard(id);
            let old = shard.replicas.iter_mut().find(|member| member.replica == replica).expect("a member is moved");
            if shard.leader == Some(old.node) {
                shard.leader = Some(to);
            }
            *old = ReplicaPicture { replica: given, node: to, voter: old.voter };
        }
    }

    fn check(&self) -> Result<(), String> {
        let moving: Vec<(ShardId, NodeId, NodeId)> = (self.picture.shards.iter())
            .filter_map(|shard| {
                let Moving { replica, to } = shard.moving?;
                let from = shard.replicas.iter().find(|member| member.replica == replica)?.node;
                Some((shard.shard, from, to))
            })
            .collect();
        if moving.len() > self.bounds.moves_max {
            return Err(format!("{} shards are moving", moving.len()));
        }
        for node in self.picture.nodes.iter().filter(|node| node.standing != Standing::Lost) {
            let here = moving.iter().filter(|&&(_, from, to)| from == node.node || to == node.node).count();
            if here > self.bounds.moves_per_node_max {
                return Err(format!("{here} moves to and from {}", node.node));
            }
        }
        Ok(())
    }

    /// Distinct zones that the voters of a shard on serving nodes lie in, and how many there are of these.
    pub fn zones_of(&self, shard: &ShardPicture) -> (usize, usize) {
        let serving = |id: NodeId| {
            self.picture
                .nodes
                .iter()
                .find(|node| node.node == id && node.standing == Standing::Serving && node.capacity > 0)
        };
        let voters = shard.replicas.iter().filter(|replica| replica.voter);
        let zones: Vec<&str> = voters.filter_map(|voter| serving(voter.node)).map(|node| node.zone.as_str()).collect();
        (zones.iter().collect::<BTreeSet<_>>().len(), zones.len())
    }

    /// How it is spread, for golden files: every node of a small cluster, the extremes of a large one.
    pub fn describe(&self, run: Option<&Run>) -> String {
        let mut out = String::new();
        let list = |counts: &BTreeMap<Why, usize>| -> String {
            let one = |(why, count): (&Why, &usize)| format!("{count} ({why})");
            let all: Vec<String> = counts.iter().map(one).collect();
            if all.is_empty() { "none".to_owned() } else { all.join(", ") }
        };
        if let Some(run) = run {
            let _ = writeln!(out, "settled after {} rounds", run.rounds);
            let _ = writeln!(out, "moves: {}; at least {} were needed", list(&run.moves), run.least_moves);
            let _ = writeln!(out, "leaders handed over: {}", list(&run.transfers));
            for stuck in &run.stuck {
                let _ = writeln!(out, "stuck: {stuck}");
            }
        }
        let plan = plan(&self.picture, &self.bounds);
        let part = |part: Part| format!("{} of {:.1}", part.count, part.fair);
        if plan.nodes.len() <= 8 {
            for node in &plan.nodes {
                let (replicas, leaders, load) = (part(node.replicas), part(node.leaders), part(node.load));
                let zone =
                    self.picture.nodes.iter().find(|known| known.node == node.node).map_or("", |known| &known.zone);
                let _ =
                    writeln!(out, "{} in {zone}: {replicas} replicas, {leaders} leaders, {load} requests/s", node.node);
            }
        } else {
            let kinds: [(&str, PartOf); 3] = [
                ("replicas", |node| node.replicas),
                ("leaders", |node| node.leaders),
                ("requests/s", |node| node.load),
            ];
            for (name, of) in kinds {
                if let Some((least, most)) = plan.extremes(of) {
                    let _ = writeln!(
                        out,
                        "{name}: least {} on {}, most {} on {}",
                        part(of(&least)),
                        least.node,
                        part(of(&most)),
                        most.node
                    );
                }
            }
        }
        let mut zones: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for shard in &self.picture.shards {
            *zones.entry(self.zones_of(shard)).or_default() += 1;
        }
        for ((zones, voters), shards) in zones {
            let _ = writeln!(out, "{shards} shards have {voters} voters in {zones} zones");
        }
        out
    }
}
