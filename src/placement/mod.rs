//! Floor 2: where replicas go, as pure functions.
//!
//! Three questions are answered here, each from a plain picture, without asking anyone: where the replicas of new
//! shards go ([`place`]), what to move next once they are there ([`balance`]), and when a shard is too large, too hot
//! or too small ([`sizing`]).
//!
//! [`place`] answers for new shards: which nodes, and which of them should lead. Three forces choose, strongest first:
//!
//! 1. *Distinct nodes, distinct zones.* A shard's replicas lie on distinct nodes, and in distinct zones as far as
//!    there are zones; with fewer zones than replicas they are spread over the zones evenly.
//! 2. *Bounded load.* Each node has a fair share by its capacity (`share`), counting what it already holds. No node
//!    gets above `1 + epsilon` of its fair share. (With fewer zones than replicas this gives way to the first force.)
//! 3. *The ring.* Within these bounds, the consistent-hash ring (`ring`) with virtual nodes by capacity gives each
//!    shard its own order of nodes; the first that are allowed are taken. So a node that comes or goes changes the
//!    answer for few shards, and nodes share the work of one that is gone.
//!
//! Leaders are chosen last (`leaders`), from the replicas, as evenly as those allow. Read replicas, which do not vote, go
//! where their readers are ([`place_readers`]).
//!
//! Invariants: the answer depends on the arguments alone, not on the order of the nodes; each list holds exactly
//! `replication` distinct nodes; a node of capacity 0 (one that is being drained) gets nothing.
//!
//! How a request passes: `control` makes candidates from the catalog's nodes and loads, calls [`place`] for the
//! shards of a table to be, and hands the lists to the catalog's builder. From then on it asks [`balance::plan`] again
//! and again, and writes what that says as intents. Left out of [`place`]: measured load, which new shards do not have
//! yet. Left out of all: carrying out what was decided, and remembering it.

pub mod balance;
mod leaders;
mod readers;
mod ring;
mod share;
pub mod sizing;

use std::cmp::Ordering;
use std::collections::BTreeMap;

pub use readers::place_readers;

use crate::types::{Error, NodeId, Reason, Result, ShardId};
use share::Bounds;

/// How far above its fair share a node may come, unless told otherwise. A tenth keeps nodes close to even and still
/// lets the ring decide for nearly all shards.
pub const EPSILON: f64 = 0.1;

/// Largest capacity that counts; more is taken as this. Bounds the ring at this many times `ring::VIRTUAL_NODES`
/// points per node.
pub const CAPACITY_MAX: u32 = 64;

/// A node that may hold replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Its failure zone.
    pub zone: String,
    /// Its weight among the others, 1 for an ordinary node; 0: it gets nothing.
    pub capacity: u32,
    /// Replicas it is wanted to hold already.
    pub load: u32,
    /// Shards it is wanted to lead already.
    pub leaders: u32,
}

#[cfg(test)]
impl Candidate {
    /// One of capacity 1 that holds nothing.
    fn idle(id: u64, zone: &str) -> Candidate {
        Candidate { node: NodeId(id), zone: zone.to_owned(), capacity: 1, load: 0, leaders: 0 }
    }
}

/// Chooses `replication` nodes for each of the shards; the first of each list is the preferred leader.
///
/// `NOT_ENOUGH_NODES` if fewer nodes than that have capacity; `INVALID_REQUEST` for a replication of 0, for a node given
/// twice or an `epsilon` that is negative or no number.
pub fn place(nodes: &[Candidate], shards: &[ShardId], replication: usize, epsilon: f64) -> Result<Vec<Vec<NodeId>>> {
    if replication == 0 {
        return Err(Error::invalid("a shard has one replica at least"));
    }
    if !epsilon.is_finite() || epsilon < 0.0 {
        return Err(Error::invalid(format!("a bound of {epsilon} above the fair share makes no sense")));
    }
    let mut usable: Vec<Candidate> = nodes.iter().filter(|node| node.capacity > 0).cloned().collect();
    usable.sort_by_key(|node| node.node);
    for node in &mut usable {
        node.capacity = node.capacity.min(CAPACITY_MAX);
    }
    if let Some(pair) = usable.windows(2).find(|pair| pair[0].node == pair[1].node) {
        return Err(Error::invalid(format!("{} is given twice", pair[0].node)));
    }
    if usable.len() < replication {
        return Err(Error::new(
            Reason::NotEnoughNodes,
            format!(
                "{replication} replicas need as many nodes, and {} can take some: add nodes or ask for fewer replicas",
                usable.len()
            ),
        ));
    }
    let orders = ring::orders(&usable, shards);
    let mut bounds = Bounds::new(&usable, shards.len(), replication, epsilon);
    let chosen: Vec<Vec<usize>> = orders.iter().map(|order| choose(&usable, order, &mut bounds, replication)).collect();
    Ok(leaders::first(&usable, chosen)
        .into_iter()
        .map(|list| list.into_iter().map(|at| usable[at].node).collect())
        .collect())
}

/// Chooses the replicas of one shard, given its order of nodes.
fn choose(nodes: &[Candidate], order: &[usize], bounds: &mut Bounds, replication: usize) -> Vec<usize> {
    bounds.begin_shard();
    let mut chosen: Vec<usize> = Vec::with_capacity(replication);
    let mut used: BTreeMap<&str, usize> = BTreeMap::new();
    while chosen.len() < replication {
        // Of equals, the first on the ring.
        let best = order.iter().copied().filter(|at| !chosen.contains(at)).min_by(|&a, &b| {
            let zone = |at: usize| used.get(nodes[at].zone.as_str()).copied().unwrap_or(0);
            let refused = |at: usize| !bounds.allows(at);
            // Where the bound must give way, the emptiest node goes first.
            let fullness = || if refused(a) { bounds.compare_fullness(a, b) } else { Ordering::Equal };
            zone(a).cmp(&zone(b)).then_with(|| refused(a).cmp(&refused(b))).then_with(fullness)
        });
        let at = best.expect("there are at least as many nodes as replicas");
        *used.entry(nodes[at].zone.as_str()).or_default() += 1;
        bounds.take(at);
        chosen.push(at);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write as _;

    use goldenscript::{Command, Context};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn shards(count: u64) -> Vec<ShardId> {
        (1..=count).map(ShardId).collect()
    }

    /// Nodes 1, 2, … of capacity 1 and without load, in these zones.
    fn nodes(zones: &[&str]) -> Vec<Candidate> {
        (1..).zip(zones).map(|(id, zone)| Candidate::idle(id, zone)).collect()
    }

    fn held(placed: &[Vec<NodeId>], node: NodeId) -> usize {
        placed.iter().flatten().filter(|&&at| at == node).count()
    }

    fn led(placed: &[Vec<NodeId>], node: NodeId) -> usize {
        placed.iter().filter(|list| list[0] == node).count()
    }

    #[test]
    fn wishes_that_cannot_be_met_are_refused() {
        let three = nodes(&["a", "b", "c"]);
        let reason = |nodes: &[Candidate], replication, epsilon| {
            place(nodes, &shards(4), replication, epsilon).expect_err("refused").reason
        };
        assert_eq!(reason(&three, 4, EPSILON), Reason::NotEnoughNodes);
        assert_eq!(reason(&[], 1, EPSILON), Reason::NotEnoughNodes);
        assert_eq!(reason(&three, 0, EPSILON), Reason::InvalidRequest);
        assert_eq!(reason(&three, 3, f64::NAN), Reason::InvalidRequest);
        assert_eq!(reason(&three, 3, -0.1), Reason::InvalidRequest);
        assert_eq!(reason(&[three.clone(), three.clone()].concat(), 3, EPSILON), Reason::InvalidRequest);
        let mut drained = three;
        drained[1].capacity = 0;
        assert_eq!(reason(&drained, 3, EPSILON), Reason::NotEnoughNodes);
        let placed = place(&drained, &shards(8), 2, EPSILON).expect("two nodes are left");
        assert_eq!(held(&placed, NodeId(2)), 0);
    }

    #[test]
    fn a_new_node_takes_its_part_and_leaves_the_rest_in_place() {
        let five = nodes(&["z"; 5]);
        let six = nodes(&["z"; 6]);
        let before = place(&five, &shards(256), 3, EPSILON).expect("placed");
        let after = place(&six, &shards(256), 3, EPSILON).expect("placed");
        let moved: usize =
            before.iter().zip(&after).map(|(old, new)| new.iter().filter(|node| !old.contains(node)).count()).sum();
        // 128 of 768 must move; the bounds on loads make a few more.
        assert!((100..=200).contains(&moved), "{moved} of 768 replicas moved");
    }

    #[test]
    fn an_empty_node_is_filled_before_full_ones_get_more() {
        let mut four = nodes(&["a", "b", "c", "d"]);
        for node in &mut four[..3] {
            node.load = 100;
            node.leaders = 33;
        }
        let placed = place(&four, &shards(16), 3, 0.0).expect("placed");
        assert_eq!(held(&placed, NodeId(4)), 16);
        // Leaders are even within the table all the same: its load comes at once.
        assert!((1..=4).all(|node| led(&placed, NodeId(node)) == 4));
    }

    #[test]
    fn a_small_zone_carries_one_replica_of_each_shard() {
        let placed = place(&nodes(&["a", "b", "b", "c", "c"]), &shards(40), 3, EPSILON).expect("placed");
        assert_eq!(held(&placed, NodeId(1)), 40);
        for node in 2..=5 {
            assert!((18..=22).contains(&held(&placed, NodeId(node))), "n{node}: {}", held(&placed, NodeId(node)));
        }
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0usize..4, 1u32..4, 0u32..30, 0u32..10);
        vec(one, 1..10).prop_map(|list| {
            let node = |(id, (zone, capacity, load, leaders)): (u64, (usize, u32, u32, u32))| Candidate {
                node: NodeId(id * 7),
                zone: format!("z{zone}"),
                capacity,
                load,
                leaders,
            };
            (1..).zip(list).map(node).collect()
        })
    }

    proptest! {
        #[test]
        fn replicas_are_on_distinct_nodes_and_over_the_zones(nodes in candidates(), count in 0u64..40, wish in 1usize..6) {
            let replication = wish.min(nodes.len());
            let placed = place(&nodes, &shards(count), replication, EPSILON)?;
            prop_assert_eq!(placed.len() as u64, count);
            let zone = |node: NodeId| nodes.iter().find(|known| known.node == node).map(|known| known.zone.as_str());
            let zones: BTreeSet<_> = nodes.iter().map(|node| node.zone.as_str()).collect();
            for list in &placed {
                prop_assert_eq!(list.iter().collect::<BTreeSet<_>>().len(), replication);
                let used: BTreeSet<_> = list.iter().map(|&node| zone(node)).collect();
                prop_assert_eq!(used.len(), replication.min(zones.len()));
            }
        }

        #[test]
        fn the_order_of_the_nodes_does_not_matter(nodes in candidates(), count in 1u64..20, turn in 0usize..10) {
            let mut turned = nodes.clone();
            turned.rotate_left(turn % nodes.len());
            prop_assert_eq!(place(&nodes, &shards(count), 1, EPSILON)?, place(&turned, &shards(count), 1, EPSILON)?);
            let replication = nodes.len().min(3);
            let once = place(&nodes, &shards(count), replication, EPSILON)?;
            prop_assert_eq!(once, place(&turned, &shards(count), replication, EPSILON)?);
        }

        #[test]
        fn no_node_is_above_its_bound(size in 1usize..9, apart: bool, count in 1u64..60, wish in 1usize..6, epsilon in 0.0f64..0.5) {
            let names: Vec<String> = (0..size).map(|at| if apart { at.to_string() } else { "z".to_owned() }).collect();
            let nodes = nodes(&names.iter().map(String::as_str).collect::<Vec<_>>());
            let replication = wish.min(size);
            let placed = place(&nodes, &shards(count), replication, epsilon)?;
            let fair = (count as usize * replication).div_ceil(size);
            let bound = (fair as f64 * (1.0 + epsilon)).floor() as usize;
            for node in &nodes {
                prop_assert!(held(&placed, node.node) <= bound, "{}: {} > {}", node.node, held(&placed, node.node), bound);
            }
        }

        #[test]
        fn leaders_are_spread_evenly(size in 1usize..9, count in 1u64..60, wish in 2usize..6) {
            let nodes = nodes(&vec!["z"; size]);
            let placed = place(&nodes, &shards(count), wish.min(size), EPSILON)?;
            let counts: Vec<usize> = nodes.iter().map(|node| led(&placed, node.node)).collect();
            let (least, most) = (counts.iter().min().copied(), counts.iter().max().copied());
            prop_assert!(most <= least.map(|least| least + 1), "{:?}", counts);
        }
    }

    /// `place nodes=ID:ZONE[:CAPACITY[:LOAD[:LEADERS]]],… shards=N replication=N [epsilon=F]`
    struct Script;

    impl goldenscript::Runner for Script {
        type Command = Command;

        fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn std::error::Error>> {
            let mut args = command.consume_args();
            let mut nodes = Vec::new();
            for text in args.take_key("nodes").ok_or("nodes?")?.split(',') {
                let part = |at: usize, or: &str| text.split(':').nth(at).unwrap_or(or).to_owned();
                nodes.push(Candidate {
                    node: NodeId(part(0, "").parse()?),
                    zone: part(1, ""),
                    capacity: part(2, "1").parse()?,
                    load: part(3, "0").parse()?,
                    leaders: part(4, "0").parse()?,
                });
            }
            let shards = shards(args.take_key("shards").ok_or("shards?")?.parse()?);
            let replication = args.take_key("replication").ok_or("replication?")?.parse()?;
            let epsilon = args.take_key("epsilon").unwrap_or("0.1").parse()?;
            args.reject_next()?;
            let placed = match place(&nodes, &shards, replication, epsilon) {
                Ok(placed) => placed,
                Err(error) => return Ok(error.to_string()),
            };
            let mut out = String::new();
            for (shard, list) in shards.iter().zip(&placed) {
                let list: Vec<String> = list.iter().map(NodeId::to_string).collect();
                writeln!(out, "{shard}: {}", list.join(" "))?;
            }
            for node in &nodes {
                let (held, led) = (held(&placed, node.node), led(&placed, node.node));
                writeln!(out, "{} in {} takes {held}, leads {led}", node.node, node.zone)?;
            }
            Ok(out)
        }
    }

    #[test]
    fn placements_are_golden() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/placement/testscripts/place");
        goldenscript::run(&mut Script, path).expect("the script");
    }
}
