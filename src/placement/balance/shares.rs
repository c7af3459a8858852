//! Fair shares: how much of a table each node should hold, by its capacity and within what zones allow.
//!
//! A node's share is in proportion to its capacity, unless something stands against it: a node holds one replica of a
//! shard at most, and a zone holds as many of a shard's voters as an even spread over the zones gives it, rounded up or
//! down. So shares are found by filling: all zones, and within each all its nodes, are filled to one common level,
//! except those that meet a bound of their own first.

/// What rounding may do to a share that is a whole number.
const ROUNDING: f64 = 1e-6;

/// One of those who share: what it counts, and its bounds.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Its weight.
    pub capacity: f64,
    /// What it gets at least.
    pub least: f64,
    /// What it gets at most.
    pub most: f64,
}

/// Divides `total` in proportion to the capacities as far as the bounds let it. If they do not let it at all, everyone
/// is at its least or at its most.
pub fn fill(parts: &[Part], total: f64) -> Vec<f64> {
    let at_level = |part: &Part, level: f64| (level * part.capacity).clamp(part.least, part.most);
    let sum = |level: f64| parts.iter().map(|part| at_level(part, level)).sum::<f64>();
    // The sum grows with the level in straight lines between those levels at which someone meets a bound.
    let mut levels: Vec<f64> = parts
        .iter()
        .filter(|part| part.capacity > 0.0)
        .flat_map(|part| [part.least / part.capacity, part.most / part.capacity])
        .collect();
    levels.sort_by(f64::total_cmp);
    let above = levels.partition_point(|&level| sum(level) < total);
    let level = match (above.checked_sub(1).map(|below| levels[below]), levels.get(above)) {
        (Some(below), Some(&above)) => {
            let (low, high) = (sum(below), sum(above));
            if high > low { below + (above - below) * (total - low) / (high - low) } else { above }
        }
        (None, Some(&level)) | (Some(level), None) => level,
        (None, None) => 0.0,
    };
    parts.iter().map(|part| at_level(part, level)).collect()
}

/// The counts that are as good as a fair share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Band {
    /// Fewer are too few.
    pub low: u64,
    /// More are too many.
    pub high: u64,
}

impl Band {
    /// The share rounded down to the share rounded up, and whatever else lies within `tolerance` (a fraction) of it.
    pub fn around(share: f64, tolerance: f64) -> Band {
        let down = (share + ROUNDING).floor();
        let up = (share - ROUNDING).ceil();
        Band {
            low: down.min((share * (1.0 - tolerance) - ROUNDING).ceil()).max(0.0) as u64,
            high: up.max((share * (1.0 + tolerance) + ROUNDING).floor()) as u64,
        }
    }

    /// By how much a count lies outside.
    pub fn distance(self, count: u64) -> u64 {
        self.low.saturating_sub(count) + count.saturating_sub(self.high)
    }

    /// How the distance changes when one is given away.
    fn giving(self, count: u64) -> i64 {
        if count > self.high { -1 } else { i64::from(count <= self.low) }
    }

    /// How the distance changes when one more is taken.
    fn taking(self, count: u64) -> i64 {
        if count < self.low { -1 } else { i64::from(count >= self.high) }
    }
}

/// How the distance of two from their bands changes, together, when `from` gives one to `to`. Each is a band and a
/// count.
pub fn change(from: (Band, u64), to: (Band, u64)) -> i64 {
    from.0.giving(from.1) + to.0.taking(to.1)
}

/// A node that shares in a table.
#[derive(Clone, Copy, Debug)]
pub struct Sharer {
    /// Its position among the cluster's nodes.
    pub node: usize,
    /// Its zone.
    pub zone: usize,
    /// Its weight.
    pub capacity: u64,
}

/// A table that is shared.
#[derive(Clone, Debug, Default)]
pub struct Whole {
    /// Its shards.
    pub shards: u64,
    /// Replicas to be shared.
    pub replicas: u64,
    /// Voters of its shards that one zone holds at least, and replicas that it holds at most, if spread evenly.
    pub zone: Band,
    /// For each zone, replicas there that nobody moves.
    pub fixed: Vec<u64>,
}

/// Writes the share of each sharer to its node's place in `shares`; the other places stay.
pub fn divide(whole: &Whole, sharers: &[Sharer], shares: &mut [f64]) {
    let node_most = whole.shards as f64;
    let mut zones = vec![Part { capacity: 0.0, least: 0.0, most: 0.0 }; whole.fixed.len()];
    for sharer in sharers {
        let zone = &mut zones[sharer.zone];
        zone.capacity += sharer.capacity as f64;
        zone.most += node_most;
    }
    for (zone, &fixed) in zones.iter_mut().zip(&whole.fixed) {
        zone.most = zone.most.min(whole.zone.high.saturating_sub(fixed) as f64);
        zone.least = zone.most.min(whole.zone.low.saturating_sub(fixed) as f64);
    }
    let by_zone = fill(&zones, whole.replicas as f64);
    let mut members: Vec<Vec<Sharer>> = vec![Vec::new(); zones.len()];
    for sharer in sharers {
        members[sharer.zone].push(*sharer);
    }
    for (members, total) in members.iter().zip(by_zone) {
        let part = |sharer: &Sharer| Part { capacity: sharer.capacity as f64, least: 0.0, most: node_most };
        let parts: Vec<Part> = members.iter().map(part).collect();
        for (sharer, share) in members.iter().zip(fill(&parts, total)) {
            shares[sharer.node] = share;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn shares(zones: &[usize], shards: u64, replication: u64) -> Vec<f64> {
        let count = zones.iter().max().map_or(0, |last| last + 1);
        let sharers: Vec<Sharer> =
            zones.iter().enumerate().map(|(node, &zone)| Sharer { node, zone, capacity: 1 }).collect();
        let whole = Whole {
            shards,
            replicas: shards * replication,
            zone: Band {
                low: shards * (replication / count as u64),
                high: shards * replication.div_ceil(count as u64),
            },
            fixed: vec![0; count],
        };
        let mut shares = vec![0.0; zones.len()];
        divide(&whole, &sharers, &mut shares);
        shares
    }

    #[test]
    fn zones_bound_what_their_nodes_share() {
        assert_eq!(shares(&[0, 0, 0, 0], 20, 3), [15.0; 4]);
        // As many zones as replicas: each holds every shard once.
        assert_eq!(shares(&[0, 1, 1, 2, 2], 40, 3), [40.0, 20.0, 20.0, 20.0, 20.0]);
        // More zones than that: capacity decides.
        assert_eq!(shares(&[0, 1, 1, 2, 2, 3], 20, 3), [10.0; 6]);
        // Two zones for three replicas, and one of them has one node.
        assert_eq!(shares(&[0, 1, 1], 10, 3), [10.0, 10.0, 10.0]);
        assert_eq!(shares(&[0, 1, 1, 1, 1], 12, 3), [12.0, 6.0, 6.0, 6.0, 6.0]);
    }

    #[test]
    fn a_band_holds_what_rounds_to_the_share_and_what_is_tolerated() {
        assert_eq!(Band::around(6.0, 0.0), Band { low: 6, high: 6 });
        assert_eq!(Band::around(4.8, 0.1), Band { low: 4, high: 5 });
        assert_eq!(Band::around(58.8, 0.1), Band { low: 53, high: 64 });
        assert_eq!(Band::around(0.3, 0.1), Band { low: 0, high: 1 });
        assert_eq!(Band::around(0.0, 0.1), Band { low: 0, high: 0 });
    }

    proptest! {
        #[test]
        fn all_is_given_out_within_the_bounds(
            bounds in vec((1u32..5, 0u32..20, 0u32..20), 1..8),
            part in 0.0f64..=1.0,
        ) {
            let parts: Vec<Part> = bounds
                .iter()
                .map(|&(capacity, least, more)| Part {
                    capacity: capacity.into(),
                    least: least.into(),
                    most: (least + more).into(),
                })
                .collect();
            let least: f64 = parts.iter().map(|part| part.least).sum();
            let most: f64 = parts.iter().map(|part| part.most).sum();
            let total = least + part * (most - least);
            let filled = fill(&parts, total);
            prop_assert!((filled.iter().sum::<f64>() - total).abs() < 1e-6, "{filled:?} is not {total}");
            // Who gets less for its capacity than another is at its most, or the other at its least.
            for (one, got) in parts.iter().zip(&filled) {
                prop_assert!((one.least..=one.most).contains(got));
                for (other, more) in parts.iter().zip(&filled) {
                    let less = got / one.capacity + 1e-6 < more / other.capacity;
                    prop_assert!(!less || *got == one.most || *more == other.least);
                }
            }
        }

        #[test]
        fn a_change_of_distance_is_what_the_distances_say(
            low in 0u64..5, width in 0u64..3, count in 1u64..9, other_low in 0u64..5, other_width in 0u64..3,
            other in 0u64..9,
        ) {
            let (from, to) = (Band { low, high: low + width }, Band { low: other_low, high: other_low + other_width });
            let before = from.distance(count) + to.distance(other);
            let after = from.distance(count - 1) + to.distance(other + 1);
            prop_assert_eq!(change((from, count), (to, other)), after as i64 - before as i64);
        }
    }
}
