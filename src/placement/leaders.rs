//! Which replica of each shard should lead, so that leaders are spread evenly: those of one table first, for its load
//! comes all at once, and among equals those of all tables.

use std::collections::VecDeque;

use super::Candidate;

/// Puts the preferred leader first in each list of positions in `nodes`; the others keep their order.
///
/// The lists are the shards of one table. Each shard first takes its replica on the node that leads least for its
/// capacity. Then leaderships are passed on along chains of shards, as long as that makes two nodes more even; what is
/// left cannot be made more even.
pub fn first(nodes: &[Candidate], mut lists: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
    let mut leads: Vec<u64> = nodes.iter().map(|node| node.leaders.into()).collect();
    // One leadership of this table outweighs all that there were before.
    let weight = leads.iter().sum::<u64>() + 1;
    // Whether a node with one leader more is still less loaded than another is now.
    let evener = |leads: &[u64], to: usize, from: usize| {
        (leads[to] + weight) * u64::from(nodes[from].capacity) < leads[from] * u64::from(nodes[to].capacity)
    };
    for list in &mut lists {
        let least = |&a: &usize, &b: &usize| {
            let (a, b) = (list[a], list[b]);
            let load = |at: usize, other: usize| (leads[at] + weight) * u64::from(nodes[other].capacity);
            load(a, b).cmp(&load(b, a))
        };
        if let Some(leader) = (0..list.len()).min_by(least) {
            leads[list[leader]] += weight;
            list[..=leader].rotate_right(1);
        }
    }
    // Ends: each round replaces a node's load by lesser ones, so the loads, greatest first, only get smaller.
    while let Some(path) = chain(&lists, &leads, evener) {
        for &(shard, place) in &path {
            let list = &mut lists[shard];
            leads[list[0]] -= weight;
            leads[list[place]] += weight;
            list[..=place].rotate_right(1);
        }
    }
    lists
}

/// A chain of shards, each passing its leadership from the node that the one before passed to, which in the end
/// relieves the first node in favour of a less loaded one. Each step: the shard, and the new leader's place in its list.
fn chain(
    lists: &[Vec<usize>],
    leads: &[u64],
    evener: impl Fn(&[u64], usize, usize) -> bool,
) -> Option<Vec<(usize, usize)>> {
    for start in 0..leads.len() {
        // Breadth first over nodes: how each was reached.
        let mut reached: Vec<Option<(usize, usize)>> = vec![None; leads.len()];
        let mut queue = VecDeque::from([start]);
        while let Some(from) = queue.pop_front() {
            if evener(leads, from, start) {
                let mut path = Vec::new();
                let mut at = from;
                while at != start {
                    let (shard, place) = reached[at].expect("every node in the queue but the first was reached");
                    path.push((shard, place));
                    at = lists[shard][0];
                }
                path.reverse();
                return Some(path);
            }
            for (shard, list) in lists.iter().enumerate().filter(|(_, list)| list[0] == from) {
                for (place, &to) in list.iter().enumerate().skip(1) {
                    if to != start && reached[to].is_none() {
                        reached[to] = Some((shard, place));
                        queue.push_back(to);
                    }
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    fn nodes(leaders: &[u32]) -> Vec<Candidate> {
        let node = |(at, &leaders): (usize, &u32)| Candidate {
            node: NodeId(at as u64),
            zone: String::new(),
            capacity: 1,
            load: 0,
            leaders,
        };
        leaders.iter().enumerate().map(node).collect()
    }

    #[test]
    fn leaders_are_even_and_followers_keep_their_order() {
        let lists = vec![vec![0, 1, 2]; 7];
        let led = first(&nodes(&[0, 0, 0]), lists);
        let counts = [0, 1, 2].map(|node| led.iter().filter(|list| list[0] == node).count());
        assert_eq!(counts, [3, 2, 2]);
        assert_eq!(led[1], [1, 0, 2]);
        assert_eq!(led[2], [2, 0, 1]);
    }

    #[test]
    fn a_table_is_spread_evenly_whatever_its_nodes_lead_already() {
        for before in [[5, 0, 5], [2, 0, 0], [1, 1, 0], [0, 900, 0]] {
            let led = first(&nodes(&before), vec![vec![0, 1, 2]; 3]);
            let counts = [0, 1, 2].map(|node| led.iter().filter(|list| list[0] == node).count());
            assert_eq!(counts, [1, 1, 1], "before: {before:?}");
        }
    }

    #[test]
    fn what_cannot_be_even_goes_to_those_that_lead_least() {
        let counts = |before: &[u32], shards: usize| {
            let led = first(&nodes(before), vec![vec![0, 1, 2]; shards]);
            [0, 1, 2].map(|node| led.iter().filter(|list| list[0] == node).count())
        };
        assert_eq!(counts(&[5, 0, 5], 4), [1, 2, 1]);
        assert_eq!(counts(&[5, 0, 5], 1), [0, 1, 0]);
        assert_eq!(counts(&[0, 7, 3], 5), [2, 1, 2]);
    }

    #[test]
    fn a_leadership_is_passed_on_when_a_later_shard_has_no_choice() {
        // Shards in this order would give both to node 0 if the first were not passed on.
        let led = first(&nodes(&[0, 0]), vec![vec![0, 1], vec![0], vec![0]]);
        assert_eq!(led[0], [1, 0]);
        // Node 2 can be relieved only by way of node 1.
        let led = first(&nodes(&[0, 0, 0]), vec![vec![2], vec![2, 1], vec![2, 1], vec![1, 0], vec![1, 0], vec![1]]);
        let counts = [0, 1, 2].map(|node| led.iter().filter(|list| list[0] == node).count());
        assert_eq!(counts, [2, 2, 2]);
    }
}
