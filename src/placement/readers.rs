//! Where read replicas go: near those who read, and never where a voter of the same shard is already.
//!
//! Zones are no failure domains here but a wish: the nodes of the wished zone come first, as far as there are any. Among
//! equals the emptiest node by its capacity is taken, counting what was just given out, and of equally full ones the first
//! on the shard's ring.

use super::{CAPACITY_MAX, Candidate, ring};
use crate::types::{Error, NodeId, Reason, Result, ShardId};

/// Chooses `count` nodes more for each shard, beside the voters it has; nodes of `zone` first.
///
/// `NOT_ENOUGH_NODES` if a shard has voters on so many of the nodes with capacity that fewer than `count` are left.
pub fn place_readers(
    nodes: &[Candidate],
    shards: &[(ShardId, Vec<NodeId>)],
    count: usize,
    zone: Option<&str>,
) -> Result<Vec<Vec<NodeId>>> {
    let mut usable: Vec<Candidate> = nodes.iter().filter(|node| node.capacity > 0).cloned().collect();
    usable.sort_by_key(|node| node.node);
    for node in &mut usable {
        node.capacity = node.capacity.min(CAPACITY_MAX);
    }
    let ids: Vec<ShardId> = shards.iter().map(|(shard, _)| *shard).collect();
    let orders = if usable.is_empty() { vec![Vec::new(); ids.len()] } else { ring::orders(&usable, &ids) };
    let mut load: Vec<u64> = usable.iter().map(|node| u64::from(node.load)).collect();
    for (_, voters) in shards {
        for (at, node) in usable.iter().enumerate() {
            load[at] += u64::from(voters.contains(&node.node));
        }
    }
    let mut placed = Vec::with_capacity(shards.len());
    for ((_, voters), order) in shards.iter().zip(orders) {
        let mut free: Vec<usize> = order.into_iter().filter(|&at| !voters.contains(&usable[at].node)).collect();
        if free.len() < count {
            let text = format!(
                "{count} read replicas beside {} voters need as many nodes more, and {} are left: add nodes or ask for \
                 fewer replicas",
                voters.len(),
                free.len()
            );
            return Err(Error::new(Reason::NotEnoughNodes, text));
        }
        // Stable: of equals the first on the ring. Loads are compared as fractions of the capacity.
        free.sort_by(|&a, &b| {
            let elsewhere = |at: usize| zone.is_some_and(|zone| usable[at].zone != zone);
            let share = |at: usize, of: usize| load[at] * u64::from(usable[of].capacity);
            elsewhere(a).cmp(&elsewhere(b)).then_with(|| share(a, b).cmp(&share(b, a)))
        });
        free.truncate(count);
        free.iter().for_each(|&at| load[at] += 1);
        placed.push(free.into_iter().map(|at| usable[at].node).collect());
    }
    Ok(placed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(zones: &[&str]) -> Vec<Candidate> {
        (1..).zip(zones).map(|(id, zone)| Candidate::idle(id, zone)).collect()
    }

    fn shards(count: u64, voters: &[u64]) -> Vec<(ShardId, Vec<NodeId>)> {
        (1..=count).map(|id| (ShardId(id), voters.iter().map(|&node| NodeId(node)).collect())).collect()
    }

    #[test]
    fn readers_stand_beside_the_voters_in_the_wished_zone_first() {
        let nodes = nodes(&["a", "a", "a", "b", "b", "c"]);
        for list in place_readers(&nodes, &shards(6, &[1, 2, 4]), 1, Some("b")).expect("placed") {
            assert_eq!(list, [NodeId(5)], "the one of the zone that is no voter");
        }
        for list in place_readers(&nodes, &shards(6, &[1, 2, 4]), 3, Some("b")).expect("placed") {
            assert_eq!(list[0], NodeId(5));
            assert!(list.contains(&NodeId(3)) && list.contains(&NodeId(6)), "the zone is a wish");
        }
    }

    #[test]
    fn readers_are_spread_and_full_nodes_wait() {
        let mut nodes = nodes(&["a"; 5]);
        nodes[4].load = 1_000;
        let placed = place_readers(&nodes, &shards(10, &[1, 2]), 1, None).expect("placed");
        let held = |node: u64| placed.iter().flatten().filter(|&&at| at == NodeId(node)).count();
        assert_eq!([held(1), held(2), held(3), held(4), held(5)], [0, 0, 5, 5, 0]);
        nodes[2].capacity = 4;
        let placed = place_readers(&nodes, &shards(10, &[1, 2]), 1, None).expect("placed");
        let held = |node: u64| placed.iter().flatten().filter(|&&at| at == NodeId(node)).count();
        assert_eq!((held(3), held(4)), (8, 2), "by capacity");
    }

    #[test]
    fn too_few_nodes_are_said_so() {
        let refused = |count, voters: &[u64]| {
            place_readers(&nodes(&["a"; 4]), &shards(1, voters), count, None).map_err(|error| error.reason)
        };
        assert!(refused(1, &[1, 2, 3]).is_ok());
        assert_eq!(refused(2, &[1, 2, 3]), Err(Reason::NotEnoughNodes));
        assert_eq!(place_readers(&[], &shards(1, &[]), 1, None).map_err(|e| e.reason), Err(Reason::NotEnoughNodes));
    }
}
