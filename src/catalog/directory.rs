//! The picture of the catalog that a node works with.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::rows::{BalancingRow, ClusterRow, Counter, LeftRow, NodeRow, RecoveryRow, RowKey, corrupt, decode_row};
use crate::keyspace::{Layout, ShardMap};
use crate::types::{
    ClusterId, Incarnation, NodeId, ReplicaDescriptor, ReplicaRole, Result, ShardDescriptor, ShardId, TableDescriptor,
    TableId, TableState, Timestamp,
};

/// An immutable picture of the catalog: all rows, the version of each, and what follows from them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    revision: Timestamp,
    cluster: Option<Stored<ClusterRow>>,
    nodes: BTreeMap<NodeId, Stored<NodeRow>>,
    left: BTreeMap<NodeId, Stored<LeftRow>>,
    balancing: Option<Stored<BalancingRow>>,
    recovery: Option<Stored<RecoveryRow>>,
    descriptors: BTreeMap<TableId, Stored<TableDescriptor>>,
    names: BTreeMap<String, Stored<TableId>>,
    shards: BTreeMap<ShardId, Stored<Arc<ShardDescriptor>>>,
    counters: BTreeMap<Counter, Stored<u64>>,
    /// Made from the rows above: the tables that serve.
    tables: BTreeMap<TableId, Arc<TableEntry>>,
    by_name: HashMap<String, Arc<TableEntry>>,
}

/// A table that serves: all it takes to find a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableEntry {
    /// Its row.
    pub descriptor: TableDescriptor,
    /// How its keys are encoded.
    pub layout: Layout,
    /// Its shards.
    pub shards: ShardMap,
}

/// What the catalog wants a node to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Replicas of any role.
    pub replicas: u32,
    /// Shards whose preferred leader is there.
    pub leaders: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Stored<T> {
    version: Timestamp,
    row: T,
}

impl Directory {
    /// Of a cluster that is not founded yet.
    pub fn empty() -> Directory {
        Directory::default()
    }

    /// From all rows as of `revision`: user keys, versions, values.
    pub fn from_rows(
        revision: Timestamp,
        rows: impl IntoIterator<Item = (Bytes, Timestamp, Bytes)>,
    ) -> Result<Directory> {
        let mut directory =
            Directory::empty().apply(rows.into_iter().map(|(key, version, value)| (key, version, Some(value))))?;
        directory.revision = directory.revision.max(revision);
        Ok(directory)
    }

    /// The next picture, after these changes: user keys, versions, values (none: the row was deleted).
    ///
    /// A change that is not newer than the row known is passed over, so changes may be given twice. Rows that
    /// belong to one write should come in one call. `CORRUPTION`, naming the key, for a row that makes no sense; the
    /// picture before it stays good.
    pub fn apply(&self, changes: impl IntoIterator<Item = (Bytes, Timestamp, Option<Bytes>)>) -> Result<Directory> {
        let mut next = self.clone();
        let mut touched = BTreeSet::new();
        for (key, version, value) in changes {
            next.revision = next.revision.max(version);
            let Some(key) = RowKey::parse(&key)? else { continue };
            if next.version(&key).is_none_or(|known| known < version) {
                next.set(&key, version, value.as_deref(), &mut touched)?;
            }
        }
        next.refresh(&touched);
        Ok(next)
    }

    /// The newest version of any row seen; grows with every change.
    pub fn revision(&self) -> Timestamp {
        self.revision
    }

    /// The cluster's id, once it is founded.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster_row().map(|row| row.id)
    }

    /// The cluster's row, once it is founded.
    pub fn cluster_row(&self) -> Option<&ClusterRow> {
        self.cluster.as_ref().map(|stored| &stored.row)
    }

    /// The row of a node.
    pub fn node(&self, id: NodeId) -> Option<&NodeRow> {
        self.nodes.get(&id).map(|stored| &stored.row)
    }

    /// All nodes by id.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRow> {
        self.nodes.values().map(|stored| &stored.row)
    }

    /// The data directory under this id that was decommissioned last, if one was.
    pub fn left(&self, id: NodeId) -> Option<&LeftRow> {
        self.left.get(&id).map(|stored| &stored.row)
    }

    /// Whether nothing is to be moved about unasked.
    pub fn balancing_is_paused(&self) -> bool {
        self.balancing.as_ref().is_some_and(|stored| stored.row.paused)
    }

    /// The last recovery from a lost quorum, if there was one.
    pub fn recovery(&self) -> Option<&RecoveryRow> {
        self.recovery.as_ref().map(|stored| &stored.row)
    }

    /// A table that serves, by id.
    pub fn table(&self, id: TableId) -> Option<&Arc<TableEntry>> {
        self.tables.get(&id)
    }

    /// A table that serves, by name.
    pub fn table_by_name(&self, name: &str) -> Option<&Arc<TableEntry>> {
        self.by_name.get(name)
    }

    /// All tables that serve, by id; the system table is the first.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<TableEntry>> {
        self.tables.values()
    }

    /// Whether a name is given to a table, which may not serve yet.
    pub fn name_is_taken(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// The row of a table, in whatever state.
    pub fn descriptor(&self, id: TableId) -> Option<&TableDescriptor> {
        self.descriptors.get(&id).map(|stored| &stored.row)
    }

    /// The tables whose dropping is under way.
    pub fn dropping(&self) -> impl Iterator<Item = &TableDescriptor> {
        self.descriptors.values().map(|stored| &stored.row).filter(|table| table.state == TableState::Dropping)
    }

    /// The row of a shard.
    pub fn shard(&self, id: ShardId) -> Option<&Arc<ShardDescriptor>> {
        self.shards.get(&id).map(|stored| &stored.row)
    }

    /// All shards by id, also of tables that do not serve.
    pub fn shards(&self) -> impl Iterator<Item = &Arc<ShardDescriptor>> {
        self.shards.values().map(|stored| &stored.row)
    }

    /// The shards of one table by id, in whatever state it is.
    pub fn shards_of(&self, table: TableId) -> impl Iterator<Item = &Arc<ShardDescriptor>> {
        self.shards().filter(move |shard| shard.table == table)
    }

    /// Whether the shard's id was given out and its row is gone: it was dropped (or merged away), for ever. An id
    /// that this picture has not seen given out may just be news to come, and the child of a split has no row until the
    /// split is known to have happened.
    pub fn was_dropped(&self, shard: ShardId) -> bool {
        let coming = |parent: &Arc<ShardDescriptor>| parent.split.as_ref().is_some_and(|split| split.child == shard);
        shard.0 < self.next_id(Counter::Shard) && !self.shards.contains_key(&shard) && !self.shards().any(coming)
    }

    /// What the catalog wants on a node's data directory: shards, each with the replica.
    pub fn shards_on(
        &self,
        node: NodeId,
        incarnation: Incarnation,
    ) -> impl Iterator<Item = (&Arc<ShardDescriptor>, ReplicaDescriptor)> {
        self.shards().flat_map(move |shard| {
            let here = move |replica: &&ReplicaDescriptor| replica.node == node && replica.incarnation == incarnation;
            shard.replicas.iter().filter(here).map(move |replica| (shard, *replica))
        })
    }

    /// Replicas wanted on data directories that are no more: the node runs on another one, or is unknown. Shards of
    /// tables that are being dropped are left out; nobody needs those back.
    pub fn stale_replicas(&self) -> impl Iterator<Item = (&Arc<ShardDescriptor>, ReplicaDescriptor)> {
        let wanted = |shard: &&Arc<ShardDescriptor>| {
            self.descriptor(shard.table).is_none_or(|table| table.state != TableState::Dropping)
        };
        self.shards().filter(wanted).flat_map(|shard| {
            let stale = |replica: &&ReplicaDescriptor| {
                self.node(replica.node).is_none_or(|node| node.incarnation != replica.incarnation)
            };
            shard.replicas.iter().filter(stale).map(move |replica| (shard, *replica))
        })
    }

    /// What each node is wanted to hold; nodes that hold nothing are there too.
    pub fn loads(&self) -> BTreeMap<NodeId, Load> {
        let mut loads: BTreeMap<NodeId, Load> = self.nodes.keys().map(|&id| (id, Load::default())).collect();
        for shard in self.shards() {
            for replica in &shard.replicas {
                loads.entry(replica.node).or_default().replicas += 1;
            }
            if let Some(leader) = shard.replicas.iter().find(|replica| replica.role == ReplicaRole::Voter) {
                loads.entry(leader.node).or_default().leaders += 1;
            }
        }
        loads
    }

    /// The next free id of a kind.
    pub fn next_id(&self, counter: Counter) -> u64 {
        self.counters.get(&counter).map_or(0, |stored| stored.row)
    }

    /// The version of a row; none if there is no such row.
    pub fn version(&self, key: &RowKey) -> Option<Timestamp> {
        match key {
            RowKey::Cluster => self.cluster.as_ref().map(|stored| stored.version),
            RowKey::Node(id) => self.nodes.get(id).map(|stored| stored.version),
            RowKey::Left(id) => self.left.get(id).map(|stored| stored.version),
            RowKey::Balancing => self.balancing.as_ref().map(|stored| stored.version),
            RowKey::Recovery => self.recovery.as_ref().map(|stored| stored.version),
            RowKey::Table(id) => self.descriptors.get(id).map(|stored| stored.version),
            RowKey::TableName(name) => self.names.get(name).map(|stored| stored.version),
            RowKey::Shard(_, id) => self.shards.get(id).map(|stored| stored.version),
            RowKey::Counter(counter) => self.counters.get(counter).map(|stored| stored.version),
        }
    }

    /// The id behind a name, whether or not the table serves already.
    pub(super) fn named(&self, name: &str) -> Option<TableId> {
        self.names.get(name).map(|stored| stored.row)
    }

    fn set(
        &mut self,
        key: &RowKey,
        version: Timestamp,
        value: Option<&[u8]>,
        touched: &mut BTreeSet<TableId>,
    ) -> Result<()> {
        match key {
            RowKey::Cluster => self.cluster = read(key, version, value)?,
            RowKey::Node(id) => {
                let row = read(key, version, value)?;
                check(key, row.as_ref().is_none_or(|stored: &Stored<NodeRow>| stored.row.id == *id))?;
                replace(&mut self.nodes, *id, row);
            }
            RowKey::Left(id) => replace(&mut self.left, *id, read(key, version, value)?),
            RowKey::Balancing => self.balancing = read(key, version, value)?,
            RowKey::Recovery => self.recovery = read(key, version, value)?,
            RowKey::Table(id) => {
                let row = read(key, version, value)?;
                check(key, row.as_ref().is_none_or(|stored: &Stored<TableDescriptor>| stored.row.id == *id))?;
                replace(&mut self.descriptors, *id, row);
                touched.insert(*id);
            }
            RowKey::TableName(name) => {
                touched.extend(self.named(name));
                let row = read(key, version, value)?;
                touched.extend(row.as_ref().map(|stored: &Stored<TableId>| stored.row));
                replace(&mut self.names, name.clone(), row);
            }
            RowKey::Shard(table, id) => {
                let row = read(key, version, value)?;
                let fits = |stored: &Stored<ShardDescriptor>| stored.row.id == *id && stored.row.table == *table;
                check(key, row.as_ref().is_none_or(fits))?;
                let row = row.map(|stored| Stored { version: stored.version, row: Arc::new(stored.row) });
                replace(&mut self.shards, *id, row);
                touched.insert(*table);
            }
            RowKey::Counter(counter) => {
                let row = read(key, version, value)?;
                replace(&mut self.counters, *counter, row);
            }
        }
        Ok(())
    }

    /// Makes the entries of the touched tables anew.
    fn refresh(&mut self, touched: &BTreeSet<TableId>) {
        if touched.is_empty() {
            return;
        }
        let mut shards: BTreeMap<TableId, Vec<Arc<ShardDescriptor>>> = BTreeMap::new();
        for shard in self.shards() {
            if touched.contains(&shard.table) {
                shards.entry(shard.table).or_default().push(shard.clone());
            }
        }
        for &id in touched {
            let entry = self.descriptor(id).filter(|table| table.state == TableState::Ready).and_then(|descriptor| {
                let layout = Layout::of(descriptor);
                // Shard rows that do not fit together (yet): the map before goes on, every shard checks epochs itself.
                let map = ShardMap::new(shards.remove(&id).unwrap_or_default(), &layout)
                    .ok()
                    .or_else(|| self.table(id).map(|before| before.shards.clone()))?;
                Some(Arc::new(TableEntry { descriptor: descriptor.clone(), layout, shards: map }))
            });
            match entry {
                Some(entry) => self.tables.insert(id, entry),
                None => self.tables.remove(&id),
            };
        }
        let named = |(name, stored): (&String, &Stored<TableId>)| Some((name.clone(), self.table(stored.row)?.clone()));
        self.by_name = self.names.iter().filter_map(named).collect();
    }
}

fn read<T: serde::de::DeserializeOwned>(
    key: &RowKey,
    version: Timestamp,
    value: Option<&[u8]>,
) -> Result<Option<Stored<T>>> {
    value.map(|value| Ok(Stored { version, row: decode_row(key, value)? })).transpose()
}

fn replace<K: Ord, T>(rows: &mut BTreeMap<K, T>, key: K, row: Option<T>) {
    match row {
        Some(row) => rows.insert(key, row),
        None => rows.remove(&key),
    };
}

fn check(key: &RowKey, fits: bool) -> Result<()> {
    if fits { Ok(()) } else { Err(corrupt(key, "it names another id than its key")) }
}

#[cfg(test)]
mod tests {
    use super::super::rows::{Standing, encode_row};
    use super::*;
    use crate::types::{Partitioning, Reason, ReplicaId};

    fn table(state: TableState) -> TableDescriptor {
        TableDescriptor {
            id: TableId(1),
            name: "orders".into(),
            partitioning: Partitioning::Hash,
            replication: 1,
            read_replicas: 0,
            read_replica_zone: None,
            view: None,
            history_ms: 0,
            state,
        }
    }

    fn shard(number: u64, of: u32, node: u64) -> ShardDescriptor {
        let ranges = Layout::of(&table(TableState::Ready)).initial_ranges(of, &[]).expect("ranges");
        let (start, end) = &ranges[number as usize];
        let id = ReplicaId(100 + number);
        let replica =
            ReplicaDescriptor { id, node: NodeId(node), incarnation: Incarnation(node * 10), role: ReplicaRole::Voter };
        let range = (start.to_vec(), end.to_vec());
        ShardDescriptor {
            founders: vec![id],
            ..ShardDescriptor::new(ShardId(10 + number), TableId(1), range, vec![replica])
        }
    }

    type Change = (Bytes, Timestamp, Option<Bytes>);

    fn put<T: serde::Serialize>(key: RowKey, version: u64, row: &T) -> Change {
        (key.encode(), Timestamp(version), Some(encode_row(row)))
    }

    fn put_shard(version: u64, shard: &ShardDescriptor) -> Change {
        put(RowKey::Shard(shard.table, shard.id), version, shard)
    }

    fn two_shards() -> Directory {
        let changes = [
            put(RowKey::Table(TableId(1)), 1, &table(TableState::Ready)),
            put(RowKey::TableName("orders".into()), 1, &TableId(1)),
            put_shard(1, &shard(0, 2, 1)),
            put_shard(1, &shard(1, 2, 2)),
        ];
        Directory::empty().apply(changes).expect("a table")
    }

    #[test]
    fn a_table_is_offered_when_its_shards_are_complete() {
        let rows = [
            put(RowKey::Table(TableId(1)), 1, &table(TableState::Ready)),
            put_shard(1, &shard(0, 2, 1)),
            put(RowKey::TableName("orders".into()), 1, &TableId(1)),
        ];
        let partial = Directory::empty().apply(rows).expect("rows");
        assert!(partial.table(TableId(1)).is_none() && partial.table_by_name("orders").is_none());
        assert!(partial.name_is_taken("orders"));
        let whole = partial.apply([put_shard(2, &shard(1, 2, 2))]).expect("rows");
        let entry = whole.table_by_name("orders").expect("offered");
        assert_eq!(entry.shards.len(), 2);
        assert_eq!(whole.table(TableId(1)), Some(entry));
        assert_eq!(whole.tables().count(), 1);
        assert_eq!(whole.revision(), Timestamp(2));
        assert!(partial.table(TableId(1)).is_none(), "a picture never changes");
    }

    #[test]
    fn the_map_before_serves_while_rows_do_not_fit_together() {
        let directory = two_shards();
        let gone = (RowKey::Shard(TableId(1), ShardId(11)).encode(), Timestamp(2), None);
        let torn = directory.apply([gone]).expect("rows");
        assert_eq!(torn.table(TableId(1)).expect("still offered").shards.len(), 2);
        assert!(torn.shard(ShardId(11)).is_none());
        let mended = torn.apply([put_shard(3, &shard(0, 1, 1))]).expect("rows");
        assert_eq!(mended.table_by_name("orders").expect("offered").shards.len(), 1);
    }

    #[test]
    fn a_table_being_dropped_is_not_offered_but_its_shards_are_known() {
        let dropped = [
            put(RowKey::Table(TableId(1)), 2, &table(TableState::Dropping)),
            (RowKey::TableName("orders".into()).encode(), Timestamp(2), None),
        ];
        let directory = two_shards().apply(dropped).expect("rows");
        assert!(directory.table(TableId(1)).is_none() && directory.table_by_name("orders").is_none());
        assert!(!directory.name_is_taken("orders"));
        assert_eq!(directory.dropping().map(|table| table.id).collect::<Vec<_>>(), [TableId(1)]);
        assert_eq!(directory.shards_of(TableId(1)).count(), 2);
        assert_eq!(directory.stale_replicas().count(), 0, "nobody needs those back");
    }

    #[test]
    fn old_news_are_passed_over() {
        let directory = two_shards().apply([put_shard(5, &shard(1, 2, 3))]).expect("rows");
        let again = directory.apply([put_shard(1, &shard(1, 2, 2)), put_shard(5, &shard(1, 2, 9))]).expect("rows");
        assert_eq!(again.shard(ShardId(11)).expect("known").replicas[0].node, NodeId(3));
        let deleted_before = (RowKey::Shard(TableId(1), ShardId(11)).encode(), Timestamp(4), None);
        assert!(again.apply([deleted_before]).expect("rows").shard(ShardId(11)).is_some());
        assert_eq!(again.version(&RowKey::Shard(TableId(1), ShardId(11))), Some(Timestamp(5)));
    }

    #[test]
    fn rows_that_make_no_sense_are_refused_by_name() {
        for (change, what) in [
            (put(RowKey::Node(NodeId(1)), 2, &7), "node/00000000000000000001"),
            (put(RowKey::Table(TableId(2)), 2, &table(TableState::Ready)), "table/0000000002"),
            (put(RowKey::Shard(TableId(1), ShardId(1)), 2, &shard(0, 2, 1)), "shard/0000000001"),
            ((Bytes::from_static(b"node/x"), Timestamp(2), None), "node/x"),
        ] {
            let error = two_shards().apply([change]).expect_err(what);
            assert_eq!(error.reason, Reason::Corruption);
            assert!(error.message.contains(what), "{error}");
        }
        let unknown = put_shard(2, &shard(0, 2, 1));
        let directory =
            two_shards().apply([(Bytes::from_static(b"view/1"), Timestamp(9), unknown.2)]).expect("newer kind");
        assert_eq!(directory.revision(), Timestamp(9));
    }

    #[test]
    fn dropped_shards_are_told_from_those_to_come() {
        let directory = two_shards().apply([put(RowKey::Counter(Counter::Shard), 2, &12u64)]).expect("rows");
        assert!(directory.was_dropped(ShardId(9)));
        assert!(!directory.was_dropped(ShardId(11)), "it is there");
        assert!(!directory.was_dropped(ShardId(12)), "it may be news to come");
        assert!(!Directory::empty().was_dropped(ShardId(0)));
    }

    #[test]
    fn replicas_are_counted_by_node_and_told_by_data_directory() {
        let node = |incarnation| NodeRow {
            id: NodeId(1),
            incarnation: Incarnation(incarnation),
            address: String::new(),
            http_address: String::new(),
            zone: String::new(),
            version: String::new(),
            joined_ms: 0,
            standing: Standing::Serving,
        };
        let directory = two_shards().apply([put(RowKey::Node(NodeId(1)), 2, &node(10))]).expect("rows");
        let on = |node, incarnation| -> Vec<ShardId> {
            directory.shards_on(NodeId(node), Incarnation(incarnation)).map(|(shard, _)| shard.id).collect()
        };
        assert_eq!(on(1, 10), [ShardId(10)]);
        assert_eq!(on(1, 11), []);
        assert_eq!(directory.loads()[&NodeId(1)], Load { replicas: 1, leaders: 1 });
        // Node 2 has no row at all.
        let stale = |directory: &Directory| -> Vec<NodeId> {
            directory.stale_replicas().map(|(_, replica)| replica.node).collect()
        };
        assert_eq!(stale(&directory), [NodeId(2)]);
        let wiped = directory.apply([put(RowKey::Node(NodeId(1)), 3, &node(11))]).expect("rows");
        assert_eq!(stale(&wiped), [NodeId(1), NodeId(2)]);
    }
}
