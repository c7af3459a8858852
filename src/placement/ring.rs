//! The consistent-hash ring: each shard's own order of nodes.

use std::collections::HashMap;

use consistent_hash::{DefaultHash, Node, StaticHashRing};

use super::Candidate;
use crate::types::{NodeId, ShardId};

/// Points on the ring per unit of capacity. With a hundred, the parts of the ring that nodes own differ by some ten
/// percent, which the bound on loads evens out.
pub const VIRTUAL_NODES: usize = 100;

/// For each shard, the positions of all nodes in the order in which the ring offers them.
pub fn orders(nodes: &[Candidate], shards: &[ShardId]) -> Vec<Vec<usize>> {
    let positions: HashMap<NodeId, usize> = nodes.iter().enumerate().map(|(at, node)| (node.node, at)).collect();
    let points = nodes.iter().map(|node| Node::new(node.node.0).quantity(node.capacity as usize * VIRTUAL_NODES));
    let ring = StaticHashRing::new(DefaultHash, points);
    let order = |shard: &ShardId| {
        ring.calc_candidates(&shard.0).map(|node: &Node<u64, ()>| positions[&NodeId(node.key)]).collect()
    };
    shards.iter().map(order).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ids: &[u64], capacity: u32) -> Vec<Candidate> {
        let node = |&id: &u64| Candidate { node: NodeId(id), zone: String::new(), capacity, load: 0, leaders: 0 };
        ids.iter().map(node).collect()
    }

    #[test]
    fn every_node_is_offered_once_to_every_shard() {
        let shards: Vec<ShardId> = (1..50).map(ShardId).collect();
        for mut order in orders(&nodes(&[3, 5, 8, 9], 1), &shards) {
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2, 3]);
        }
    }

    #[test]
    fn without_a_node_the_order_of_the_others_stays() {
        let shards: Vec<ShardId> = (1..50).map(ShardId).collect();
        let (all, fewer) = (nodes(&[1, 2, 3, 4, 5], 1), nodes(&[1, 2, 4, 5], 1));
        for (with, without) in orders(&all, &shards).into_iter().zip(orders(&fewer, &shards)) {
            let names = |order: &[usize], nodes: &[Candidate]| -> Vec<u64> {
                order.iter().map(|&at| nodes[at].node.0).filter(|&id| id != 3).collect()
            };
            assert_eq!(names(&with, &all), names(&without, &fewer));
        }
    }

    #[test]
    fn a_node_of_greater_capacity_comes_first_more_often() {
        let mut two = nodes(&[1, 2], 1);
        two[1].capacity = 3;
        let shards: Vec<ShardId> = (1..2_001).map(ShardId).collect();
        let first = orders(&two, &shards).iter().filter(|order| order[0] == 1).count();
        assert!((1_300..1_700).contains(&first), "about three quarters, not {first} of 2000");
    }
}
