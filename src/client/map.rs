//! The picture of the cluster that calls are routed by.
//!
//! A [`Map`] never changes; a newer one replaces it. What is learned between two of them (who leads a shard, whether
//! callers wait for it) lives in a [`ShardState`] per shard, which is handed on from map to map.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Connection;
use crate::keyspace::{ChangesCursor, Layout, ScanCursor, ShardMap};
use crate::runtime::Clock;
use crate::types::{ChangesRequest, ClusterId, NodeId, Result, ScanBounds, ScanRequest, ShardDescriptor, ShardId};
use crate::wire::admin::{TableDetails, Topology};

/// No leader is known. (Operators count nodes from 1; this one is out of reach for them.)
const NOBODY: u64 = u64::MAX;

/// A picture of the cluster.
pub(super) struct Map {
    /// Which fetch brought it; counts from 1.
    pub(super) fetch: u64,
    pub(super) cluster: ClusterId,
    pub(super) revision: u64,
    pub(super) nodes: HashMap<NodeId, Connection>,
    /// The zones of the nodes that say one.
    pub(super) zones: HashMap<NodeId, String>,
    tables: HashMap<String, Arc<TableEntry>>,
}

/// A table whose shards are all known.
pub(super) struct TableEntry {
    pub(super) layout: Layout,
    pub(super) shards: ShardMap,
    states: HashMap<ShardId, Arc<ShardState>>,
}

/// What is learned about a shard by asking it.
pub(super) struct ShardState {
    leader: AtomicU64,
    /// Moves through the replicas when no leader is known.
    pub(super) turn: AtomicUsize,
    /// Callers that pause before they ask again ...
    pub(super) pausing: AtomicUsize,
    /// ... and go on at once when the shard's leader has answered somebody.
    pub(super) recovered: Notify,
}

/// Connections by address; nodes keep theirs from map to map, and an endpoint shares the one of its node.
pub(super) struct Pool {
    clock: Clock,
    connections: Mutex<HashMap<Arc<str>, Connection>>,
}

/// What a request is about, which decides the shard that is asked.
#[derive(Clone, Copy)]
pub(super) enum Anchor<'a> {
    /// This key of the user.
    Key(&'a [u8]),
    /// The place where this page of a scan begins.
    Page(&'a ScanRequest),
    /// The place where this page of changes begins.
    Changes(&'a ChangesRequest),
}

impl Pool {
    pub(super) fn new(clock: Clock) -> Pool {
        Pool { clock, connections: Mutex::default() }
    }

    pub(super) fn connection(&self, address: &str) -> Connection {
        let mut connections = self.connections.lock();
        if let Some(connection) = connections.get(address) {
            return connection.clone();
        }
        let address: Arc<str> = address.into();
        let connection = Connection::new(address.clone(), self.clock.clone());
        connections.insert(address, connection.clone());
        connection
    }

    /// Forgets all connections but those to these addresses.
    fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.connections.lock().retain(|address, _| keep(address));
    }
}

impl Map {
    /// The map of a topology. Tables whose shards are not all there yet are left out; what was learned about shards
    /// is taken over from the map before, and so are the connections, but for those of nodes that have gone.
    pub(super) fn new(fetch: u64, topology: Topology, before: Option<&Map>, pool: &Pool, seeds: &[String]) -> Map {
        let nodes: HashMap<_, _> =
            topology.nodes.iter().map(|node| (node.id, pool.connection(&node.address))).collect();
        let zones = topology.nodes.iter().filter(|node| !node.zone.is_empty());
        let zones = zones.map(|node| (node.id, node.zone.clone())).collect();
        pool.retain(|address| {
            seeds.iter().any(|seed| seed == address) || topology.nodes.iter().any(|node| node.address == address)
        });
        let known = |shard| {
            before.into_iter().flat_map(|map| map.tables.values()).find_map(|table| table.states.get(&shard).cloned())
        };
        let tables = topology.tables.into_iter().filter_map(|table| {
            let name = table.table.name.clone();
            TableEntry::new(table, known).map(|entry| (name, Arc::new(entry)))
        });
        let tables = tables.collect();
        Map { fetch, cluster: topology.cluster, revision: topology.revision, nodes, zones, tables }
    }

    pub(super) fn table(&self, name: &str) -> Option<&Arc<TableEntry>> {
        self.tables.get(name)
    }
}

impl TableEntry {
    fn new(details: TableDetails, known: impl Fn(ShardId) -> Option<Arc<ShardState>>) -> Option<TableEntry> {
        let layout = Layout::of(&details.table);
        let states = details.shards.iter().map(|shard| {
            let state = known(shard.id).unwrap_or_else(|| Arc::new(ShardState::new()));
            // What was learned by asking is newer than what a node was told.
            if state.leader().is_none() {
                state.set_leader(shard.leader);
            }
            (shard.id, state)
        });
        let states = states.collect();
        let shards = ShardMap::new(details.shards.iter().map(|shard| shard.descriptor()), &layout).ok()?;
        Some(TableEntry { layout, shards, states })
    }

    /// The shard that a request is for. Errors: those of the bounds and of the cursor of a scan.
    pub(super) fn locate(&self, anchor: Anchor<'_>) -> Result<(&Arc<ShardDescriptor>, &Arc<ShardState>)> {
        let shard = match anchor {
            Anchor::Key(key) => self.shards.locate(&self.layout.encode(key)),
            Anchor::Page(scan) => self.first_of(scan)?,
            Anchor::Changes(ChangesRequest { bounds, cursor: Some(cursor), .. }) => {
                let cursor = ChangesCursor::decode(cursor, &self.layout, bounds)?;
                let first = cursor.parts.first().map(|part| part.start.clone());
                self.shards.locate(&first.unwrap_or_else(|| self.layout.table_range().0))
            }
            Anchor::Changes(ChangesRequest { bounds, .. }) => {
                let first = self.layout.scan_range(bounds)?.ranges.first().map(|range| range.0.clone());
                self.shards.locate(&first.unwrap_or_else(|| self.layout.table_range().0))
            }
        };
        // A state was made for every shard of the map.
        let state = self
            .states
            .get(&shard.id)
            .ok_or_else(|| crate::types::Error::internal(format!("shard {} of the map has no state", shard.id)))?;
        Ok((shard, state))
    }

    /// The shard in which a page begins.
    fn first_of(&self, scan: &ScanRequest) -> Result<&Arc<ShardDescriptor>> {
        let (start, end) = self.layout.table_range();
        let ScanRequest { bounds, reverse, cursor, .. } = scan;
        let position = match cursor {
            Some(cursor) => Some(ScanCursor::decode(cursor, &self.layout, bounds, *reverse)?.next),
            None if *bounds == ScanBounds::All => None,
            None => {
                let plan = self.layout.scan_range(bounds)?;
                if *reverse {
                    plan.ranges.last().map(|range| range.1.clone())
                } else {
                    plan.ranges.first().map(|range| range.0.clone())
                }
            }
        };
        let first = if *reverse {
            // A descending page ends before its position.
            self.shards.overlapping(&start, &position.unwrap_or(end)).next_back()
        } else {
            Some(self.shards.locate(&position.unwrap_or(start)))
        };
        Ok(first.unwrap_or_else(|| self.shards.locate(&self.layout.table_range().0)))
    }
}

impl ShardState {
    fn new() -> ShardState {
        ShardState {
            leader: AtomicU64::new(NOBODY),
            turn: AtomicUsize::new(0),
            pausing: AtomicUsize::new(0),
            recovered: Notify::new(),
        }
    }

    /// The node that led the shard when last heard of.
    pub(super) fn leader(&self) -> Option<NodeId> {
        Some(self.leader.load(Ordering::Relaxed)).filter(|&node| node != NOBODY).map(NodeId)
    }

    pub(super) fn set_leader(&self, leader: Option<NodeId>) {
        let leader = leader.map_or(NOBODY, |node| node.0);
        // A load is cheaper than a store that every core has to hear of.
        if self.leader.load(Ordering::Relaxed) != leader {
            self.leader.store(leader, Ordering::Relaxed);
        }
    }

    /// Forgets the leader if it still is this one.
    pub(super) fn doubt(&self, node: NodeId) {
        let _ = self.leader.compare_exchange(node.0, NOBODY, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The shard's leader has answered somebody: those who pause need not wait longer.
    pub(super) fn recover(&self) {
        if self.pausing.load(Ordering::Relaxed) > 0 {
            self.recovered.notify_waiters();
        }
    }
}
