//! Which node to ask: the choice among the replicas of a shard.
//!
//! The leader where only it will do or nothing speaks for another; a replica chosen by what the client wishes
//! ([`ReadFrom`]); else any replica's node, else any node, which forwards. Healthy nodes come before others, and the one
//! that has just failed last of all. What is chosen is never a matter of safety: a replica answers what it can prove.

use std::sync::atomic::Ordering;

use super::map::{Map, ShardState};
use super::retry::Trouble;
use super::{Connection, ReadFrom};
use crate::types::{NodeId, ReadLevel, ShardDescriptor};

/// One read in so many is asked of a replica in turn instead of the nearest, to learn how quick that is now.
const EXPLORE_EVERY: usize = 64;

/// What a call asks for that concerns the choice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// How fresh.
    pub(super) level: ReadLevel,
    /// Which replica; for anything but a read, the leader.
    pub(super) read_from: ReadFrom,
}

/// The node to ask.
pub(super) fn choose(
    map: &Map,
    shard: &ShardDescriptor,
    state: &ShardState,
    wish: Wish,
    zone: Option<&str>,
    trouble: &Trouble,
) -> Option<(NodeId, Connection)> {
    let named = |node: NodeId| map.nodes.get(&node).map(|connection| (node, connection.clone()));
    let wanted = |target: &(NodeId, Connection)| trouble.avoid != Some(target.0) && target.1.is_healthy();
    // Any copy may answer such reads: they are spread over all of them.
    let any_will_do = matches!(wish.level, ReadLevel::Any | ReadLevel::MaxAge(_)) || wish.read_from != ReadFrom::Leader;
    let spread = any_will_do && !trouble.leader_only;
    let leader = state.leader().and_then(named);
    if !spread && let Some(leader) = leader.clone().filter(wanted) {
        return Some(leader);
    }
    let count = shard.replicas.len();
    let taken = if count == 0 { 0 } else { state.turn.fetch_add(1, Ordering::Relaxed) };
    let turn = if count == 0 { 0 } else { taken % count };
    let replicas = || shard.replicas.iter().cycle().skip(turn).take(count).filter_map(|replica| named(replica.node));
    // Of equals, the first in turn.
    let best = match wish.read_from {
        ReadFrom::Nearest if spread => {
            let elsewhere = |node: &NodeId| zone.is_some() && map.zones.get(node).map(String::as_str) != zone;
            let explore = taken.is_multiple_of(EXPLORE_EVERY);
            let quickness = |connection: &Connection| if explore { 0 } else { connection.latency_us() };
            replicas().filter(wanted).min_by_key(|(node, connection)| (elsewhere(node), quickness(connection)))
        }
        ReadFrom::LeastLoaded if spread => replicas().filter(wanted).min_by_key(|(_, there)| there.under_way()),
        _ => replicas().find(wanted),
    };
    if best.is_some() {
        return best;
    }
    let nodes = || map.nodes.iter().map(|(&node, connection)| (node, connection.clone()));
    nodes()
        .find(wanted)
        // Nobody else is well: even the one that failed, and then those that were down.
        .or_else(|| nodes().find(|target| target.1.is_healthy()))
        .or_else(|| replicas().find(|target| trouble.avoid != Some(target.0)))
        .or(leader)
        .or_else(|| nodes().next())
}
