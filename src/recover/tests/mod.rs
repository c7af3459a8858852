//! Plans made from stores written by hand, and their application.

mod shapes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::{Applied, Change, Collected, Fate, Plan, apply};
use crate::catalog::{NodeRow, RowKey, Standing, change, encode_row};
use crate::keyspace::{Layout, side, version};
use crate::node::{Identity, recovery};
use crate::raft::{self, Birth, Position};
use crate::shard::{Record, State, Survivor};
use crate::storage::mvcc::Version;
use crate::storage::{Batch, Engine, Family, Lookup, Memory, Tier};
use crate::types::{
    Action, ClusterId, Epoch, Incarnation, NodeId, Reason, ReplicaDescriptor, ReplicaId, ReplicaRole, ShardDescriptor,
    ShardId, TableDescriptor, TableId, TableState, Timestamp, Write,
};

const CLUSTER: ClusterId = ClusterId(0x7ce4_8d29_33d1_5c57);
/// When the catalog was last changed, and the plan made.
const WRITTEN_MS: u64 = 1_795_000_000_000;
const PLANNED_MS: u64 = WRITTEN_MS + 60_000;
const PLAN: u64 = 99;

fn incarnation(node: u64) -> Incarnation {
    Incarnation(100 + node)
}

fn node_row(node: u64) -> NodeRow {
    NodeRow {
        id: NodeId(node),
        incarnation: incarnation(node),
        address: format!("10.0.0.{node}:7401"),
        http_address: format!("10.0.0.{node}:7501"),
        zone: String::new(),
        version: "0.1.0".to_owned(),
        joined_ms: 0,
        standing: Standing::default(),
    }
}

/// A shard of table 1 whose replicas, ten times the shard's number plus the node's, lie on these nodes.
fn shard(id: u64, nodes: &[u64]) -> ShardDescriptor {
    let layout = Layout::of(&table());
    let (start, end) = layout.initial_ranges(8, &[]).expect("ranges")[id as usize - 1].clone();
    let replica = |&node: &u64| ReplicaDescriptor {
        id: ReplicaId(10 * id + node),
        node: NodeId(node),
        incarnation: incarnation(node),
        role: ReplicaRole::Voter,
    };
    let replicas = nodes.iter().map(replica).collect();
    let range = (start.to_vec(), end.to_vec());
    ShardDescriptor { founded: true, ..ShardDescriptor::new(ShardId(id), TableId(1), range, replicas) }
}

fn table() -> TableDescriptor {
    TableDescriptor {
        id: TableId(1),
        name: "orders".to_owned(),
        partitioning: crate::types::Partitioning::Hash,
        replication: 3,
        read_replicas: 0,
        read_replica_zone: None,
        history_ms: 0,
        state: TableState::Ready,
        view: None,
    }
}

/// The rows of a cluster of five nodes with these shards.
fn catalog(shards: &[ShardDescriptor]) -> Vec<(Bytes, Bytes)> {
    let nodes: Vec<NodeRow> = (1..=5).map(node_row).collect();
    let founded: Write = change::found_cluster(CLUSTER, 0, &nodes).expect("a cluster");
    let mut rows: BTreeMap<Bytes, Bytes> = change::rows_of(&founded).collect();
    let mut put = |key: RowKey, value: Bytes| rows.insert(key.encode(), value);
    put(RowKey::Table(TableId(1)), encode_row(&table()));
    put(RowKey::TableName("orders".to_owned()), encode_row(&TableId(1)));
    for shard in shards {
        put(RowKey::Shard(shard.table, shard.id), encode_row(shard));
    }
    put(RowKey::Counter(crate::catalog::Counter::Shard), encode_row(&9u64));
    put(RowKey::Counter(crate::catalog::Counter::Replica), encode_row(&100u64));
    rows.into_iter().collect()
}

/// The store of one node.
struct Store {
    node: u64,
    memory: Arc<Memory>,
}

impl Store {
    fn new(node: u64) -> Store {
        let memory = Memory::new().expect("a directory");
        let mut batch = Batch::new();
        Identity { cluster: CLUSTER, node: NodeId(node), incarnation: incarnation(node) }.put(&mut batch);
        memory.write(batch).expect("written");
        Store { node, memory }
    }

    /// A replica of a shard that has applied its beginning, and has these blank entries after it: terms, by index from 1.
    fn add(&self, shard: &ShardDescriptor, terms: &[u64]) -> &Store {
        let mine = shard.replica_on(NodeId(self.node)).expect("it has a replica here").id;
        let record = Record::of(shard, mine);
        let members: BTreeMap<ReplicaId, NodeId> =
            shard.replicas.iter().map(|replica| (replica.id, replica.node)).collect();
        let voters = members.keys().copied().collect();
        let birth = Birth::new(shard.id, &voters, &members).expect("a group");
        let mut state = State::fresh(record.table, record.start.clone(), record.end.clone(), record.epoch);
        state.mark = Some(birth.mark());
        state.last_timestamp = Timestamp::from_millis(WRITTEN_MS);
        let mut batch = Batch::new();
        record.put(&mut batch);
        birth.put(&mut batch);
        batch.put(Family::Data, side::applied(shard.id), state.encode());
        for (index, &term) in (1..).zip(terms) {
            let at = Position { term, leader: shard.replicas[0].id, index };
            raft::testing::blank(shard.id, at, &mut batch);
        }
        self.memory.write(batch).expect("written");
        self
    }

    /// Its copy of the catalog, with a log of as many blank entries.
    fn catalog(&self, shards: &[ShardDescriptor], terms: &[u64]) -> &Store {
        let rows = catalog(shards);
        let layout = Layout::system();
        let timestamp = Timestamp::from_millis(WRITTEN_MS);
        let mut batch = Batch::new();
        for (key, value) in rows {
            let version = Version { timestamp, value: Some(value), expires_ms: None };
            batch.put(Family::Data, version::key(&layout.encode(&key), timestamp), version.encode());
        }
        self.memory.write(batch).expect("written");
        let nodes: Vec<NodeRow> = (1..=5).map(node_row).collect();
        self.add(&change::system_shard(&nodes), terms);
        self.memory.sync().expect("synced");
        self
    }

    fn collected(&self) -> Collected {
        let collected = Collected::from_store(&*self.memory).expect("it can be read");
        // It travels as a file.
        Collected::from_json(&collected.to_json()).expect("it comes back")
    }

    fn put(&self, encoded: &[u8]) {
        let timestamp = Timestamp::from_millis(WRITTEN_MS);
        let version = Version { timestamp, value: Some("value".into()), expires_ms: None };
        let mut batch = Batch::new();
        batch.put(Family::Data, version::key(encoded, timestamp), version.encode());
        self.memory.write(batch).expect("written");
        self.memory.sync().expect("synced");
    }

    fn has(&self, encoded: &[u8]) -> bool {
        let found = crate::storage::mvcc::newest(&*self.memory, encoded, Timestamp::MAX, Tier::Disk);
        matches!(found.expect("it can be read"), Lookup::Found(_))
    }
}

fn lost(nodes: &[u64]) -> BTreeSet<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

fn make(stores: &[&Store], nodes: &[u64]) -> crate::types::Result<Plan> {
    let collected: Vec<Collected> = stores.iter().map(|store| store.collected()).collect();
    let plan = Plan::make(&collected, &lost(nodes), PLANNED_MS, PLAN)?;
    assert_eq!(Plan::from_json(&plan.to_json()).as_ref(), Ok(&plan), "it travels as a file");
    Ok(plan)
}

/// Two of five nodes survive. Shard 1 has its majority, shards 2 and 3 have lost theirs, of shard 4 nothing is left.
fn two_of_five() -> (Store, Store) {
    let shards = [shard(1, &[1, 2, 3]), shard(2, &[1, 3, 4]), shard(3, &[5, 2, 1, 3, 4]), shard(4, &[3, 4, 5])];
    let (one, two) = (Store::new(1), Store::new(2));
    one.add(&shards[0], &[1, 1])
        .add(&shards[1], &[1, 2, 2])
        .add(&shards[2], &[1, 1, 1, 1])
        .catalog(&shards, &[1, 1, 2]);
    two.add(&shards[0], &[1]).add(&shards[2], &[1, 2]).catalog(&shards, &[1, 1, 2, 2]);
    (one, two)
}

fn refusal(result: crate::types::Result<impl std::fmt::Debug>) -> String {
    let error = result.expect_err("refused");
    assert_eq!(error.reason, Reason::InvalidRequest, "{error}");
    error.message
}

#[test]
fn every_shard_gets_its_fate_and_the_most_advanced_survivor() {
    let (one, two) = two_of_five();
    let plan = make(&[&one, &two], &[3, 4, 5]).expect("a plan");
    let fates: Vec<_> = plan
        .shards
        .iter()
        .map(|shard| (shard.shard.0, shard.fate, shard.rests.iter().map(|rest| rest.node.0).collect::<Vec<_>>()))
        .collect();
    assert_eq!(
        fates,
        [
            (0, Fate::Recovered, vec![2, 1]),
            (1, Fate::Healthy, vec![1, 2]),
            (2, Fate::Recovered, vec![1]),
            // The later term counts, not the longer log.
            (3, Fate::Recovered, vec![2, 1]),
            (4, Fate::Gone, vec![]),
        ]
    );
    let system = &plan.recovery.shards[0];
    assert_eq!((system.heir.node, system.others.len(), system.others[0].node), (NodeId(2), 1, NodeId(1)));
    let ids: BTreeSet<ReplicaId> = plan
        .recovery
        .shards
        .iter()
        .flat_map(|shard| shard.others.iter().map(|other| other.id).chain([shard.heir.id]))
        .collect();
    assert!(ids.len() == 4 && ids.iter().all(|id| id.0 >= 1_100), "new ids: {ids:?}");
    assert!(ids.iter().all(|id| id.0 < plan.recovery.next_ids.replica));
    assert_eq!(plan.recovery.lost.iter().map(|lost| lost.node.0).collect::<Vec<_>>(), [3, 4, 5]);
    assert_eq!(plan.recovery.lost[0].address, "10.0.0.3:7401");
    assert_eq!(plan.shards[3].rests[0].unapplied, 2);
    golden(&plan.to_json());
}

/// The plan is a file that another machine reads; the command line's report of it is golden too.
fn golden(json: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/recover/testdata/plan.json");
    let json = format!("{json}\n");
    if std::env::var_os("UPDATE_GOLDENFILES").is_some_and(|set| set == "1") {
        std::fs::write(&path, &json).expect("a golden file can be written");
    }
    let expected = std::fs::read_to_string(&path).expect("the golden file exists; UPDATE_GOLDENFILES=1 makes it");
    assert_eq!(json, expected);
}

#[test]
fn a_plan_needs_every_node_and_a_lost_quorum() {
    let (one, two) = two_of_five();
    assert!(refusal(make(&[&one, &two], &[3, 4])).contains("what of node 5?"));
    assert!(refusal(make(&[&one], &[3, 4, 5])).contains("what of node 2?"));
    assert!(refusal(make(&[&one, &two], &[2, 3, 4, 5])).contains("n2 cannot be lost"));
    assert!(refusal(make(&[&one, &two], &[3, 4, 5, 9])).contains("no node 9"));
    assert!(refusal(make(&[&one, &one], &[3, 4, 5])).contains("given twice"));
    assert!(refusal(make(&[], &[3, 4, 5])).contains("of all nodes that survive"));

    let mut other = two.collected();
    other.cluster = ClusterId(1);
    assert!(refusal(Plan::make(&[one.collected(), other], &lost(&[3, 4, 5]), 1, 1)).contains("one cluster at a time"));
    let mut former = two.collected();
    former.incarnation = Incarnation(1);
    assert!(refusal(Plan::make(&[one.collected(), former], &lost(&[3, 4, 5]), 1, 1)).contains("was replaced"));

    // Three of five are there, and no shard misses its majority.
    let shards = [shard(1, &[1, 2, 3])];
    let stores = [1, 2, 3].map(Store::new);
    stores.iter().for_each(|store| {
        store.add(&shards[0], &[1]).catalog(&shards, &[1]);
    });
    let all: Vec<&Store> = stores.iter().collect();
    assert!(refusal(make(&all, &[4, 5])).contains("nothing to recover"));
}

#[test]
fn what_the_surviving_catalog_has_not_heard_of_is_not_guessed() {
    let listed = [shard(2, &[1, 3, 4])];
    // A child of a split, of a table that is known.
    let child = ShardDescriptor { id: ShardId(12), ..shard(3, &[1, 3, 4]) };
    let one = Store::new(1);
    one.add(&listed[0], &[1]).add(&child, &[1]).catalog(&listed, &[1]);
    assert!(refusal(make(&[&one], &[2, 3, 4, 5])).contains("s12 was split off"));
    // Its parent alone, which has given up a part of its range.
    let one = Store::new(1);
    let mut parent = ShardDescriptor { epoch: Epoch(2), ..listed[0].clone() };
    parent.end.clone_from(&parent.start);
    parent.end.push(1);
    one.add(&parent, &[1]).catalog(&listed, &[1]);
    assert!(refusal(make(&[&one], &[2, 3, 4, 5])).contains("the range of s2 has changed"));
    // A shard of a table that was made in the lost part: it cannot be served, and that is said.
    let made = ShardDescriptor { id: ShardId(12), table: TableId(2), ..shard(3, &[1, 3, 4]) };
    let one = Store::new(1);
    one.add(&listed[0], &[1]).add(&made, &[1]).catalog(&listed, &[1]);
    let plan = make(&[&one], &[2, 3, 4, 5]).expect("a plan");
    assert_eq!(plan.unknown, [ShardId(12)]);
    assert_eq!(
        (plan.recovery.next_ids.shard, plan.recovery.next_ids.table),
        (13, 3),
        "the ids are not given out again"
    );
}

#[test]
fn the_catalog_is_taken_as_it_will_be_when_its_log_is_applied() {
    let listed = [shard(1, &[1, 2, 3])];
    let one = Store::new(1);
    one.add(&listed[0], &[1]).catalog(&listed, &[1]);
    let before = one.collected().directory().expect("a catalog");
    let paused = change::set_balancing(&before, true).expect("it can be").expect("it is news");
    let stale = paused.clone();
    for (index, mut write) in [(2, paused), (3, stale)] {
        for key in (write.conditions.iter_mut().map(|condition| &mut condition.key))
            .chain(write.operations.iter_mut().map(|operation| &mut operation.key))
        {
            *key = Layout::system().encode(key);
        }
        let mut batch = Batch::new();
        let at = Position { term: 1, leader: ReplicaId(1), index };
        raft::testing::entry(ShardId::SYSTEM, at, crate::shard::testing::proposal(write), &mut batch);
        one.memory.write(batch).expect("written");
    }
    let after = one.collected().directory().expect("a catalog");
    assert!(!before.balancing_is_paused() && after.balancing_is_paused());
    let version = |directory: &crate::catalog::Directory| directory.version(&RowKey::Balancing);
    assert_eq!((version(&before), version(&after)), (None, Some(before.revision().next())), "the second came too late");
}

#[test]
fn a_plan_is_carried_out_wholly_or_not_at_all_and_only_once() {
    let (one, two) = two_of_five();
    let key = shard(3, &[1]).start;
    one.put(&key);
    two.put(&key);
    let plan = make(&[&one, &two], &[3, 4, 5]).expect("a plan");
    let before = two.collected();
    let would = apply(&*two.memory, &plan, PLANNED_MS, true).expect("a dry run");
    assert_eq!(two.collected(), before, "a dry run changes nothing");

    let ids = |shard: u64| plan.recovery.shards.iter().find(|known| known.shard.0 == shard).expect("recovered");
    let heir = |shard: u64, from: u64| Change {
        shard: ShardId(shard),
        from: ReplicaId(from),
        to: ids(shard).heir.id,
        heir: true,
    };
    let expected = Applied::Now(vec![heir(0, 2), heir(3, 32)]);
    assert_eq!(would, expected);

    // A store of which a crash left nothing of it is as it was, and takes it again.
    assert_eq!(two.memory.unsynced(), 0);
    let undone = Store { node: 2, memory: two.memory.survivor(0).expect("a copy") };
    assert_eq!(apply(&*two.memory, &plan, PLANNED_MS, false).expect("applied"), expected);
    assert_eq!(two.memory.unsynced(), 0, "it is durable");
    assert_eq!(undone.collected(), before);
    assert_eq!(apply(&*undone.memory, &plan, PLANNED_MS, false).expect("again"), expected);
    assert_eq!(undone.collected(), two.collected());
    let done = two.collected();
    assert_eq!(apply(&*two.memory, &plan, PLANNED_MS, false).expect("once more"), Applied::Before);
    assert_eq!(two.collected(), done);

    // Each heir is the only voter of its group; a healthy shard is as it was.
    for shard in [0, 3] {
        let replica = done.replica(ShardId(shard)).expect("there");
        assert_eq!(replica.replica, ids(shard).heir.id);
        assert_eq!(replica.log.quorums, [BTreeSet::from([replica.replica])]);
        assert!(replica.log.has_quorum(|id| id == replica.replica));
        assert!(replica.log.last > before.replica(ShardId(shard)).expect("there").log.last);
    }
    assert_eq!(done.replica(ShardId(1)), before.replica(ShardId(1)));
    assert!(two.has(&key));
    let row = recovery::load(&*two.memory).expect("it can be read").expect("it is noted");
    assert!(row.has_lost(NodeId(4), incarnation(4)) && !row.has_lost(NodeId(4), incarnation(1)));

    // The other node: an empty replica of the catalog, its other replicas as they were.
    let began = Applied::Now(vec![
        Change { shard: ShardId(0), from: ReplicaId(1), to: ids(0).others[0].id, heir: false },
        heir(2, 21),
    ]);
    assert_eq!(apply(&*one.memory, &plan, PLANNED_MS, false).expect("applied"), began);
    let collected = one.collected();
    let system = Survivor::load_all(&*one.memory).expect("they can be read").remove(0);
    assert_eq!((system.state, system.log.last, system.record.epoch), (None, None, Epoch(1)));
    assert!(collected.catalog.is_empty() && one.has(&key), "only the catalog was removed");
}

#[test]
fn a_plan_is_refused_where_it_does_not_belong() {
    let (one, two) = two_of_five();
    let plan = make(&[&one, &two], &[3, 4, 5]).expect("a plan");
    let edited = plan.to_json().replacen("\"node\": 2", "\"node\": 1", 1);
    assert!(refusal(Plan::from_json(&edited)).contains("changed or damaged"));
    assert!(refusal(Plan::from_json("{}")).contains("no file of"));
    assert!(
        refusal(apply(&*Store::new(3).memory, &plan, PLANNED_MS, false)).contains("made without this data directory")
    );
    assert!(refusal(apply(&*two.memory, &plan, WRITTEN_MS - 1, false)).contains("from the future"));
    let stranger = Store::new(2);
    let mut batch = Batch::new();
    Identity { cluster: ClusterId(1), node: NodeId(2), incarnation: incarnation(2) }.put(&mut batch);
    stranger.memory.write(batch).expect("written");
    assert!(refusal(apply(&*stranger.memory, &plan, PLANNED_MS, false)).contains("belongs to cluster"));

    // The node was started meanwhile and took in another entry.
    let mut batch = Batch::new();
    raft::testing::blank(ShardId(1), Position { term: 1, leader: ReplicaId(11), index: 2 }, &mut batch);
    two.memory.write(batch).expect("written");
    let before = two.collected();
    assert!(refusal(apply(&*two.memory, &plan, PLANNED_MS, false)).contains("has changed since"));
    assert_eq!(two.collected(), before);
}

#[test]
fn the_catalog_hears_of_it() {
    let (one, two) = two_of_five();
    let plan = make(&[&one, &two], &[3, 4, 5]).expect("a plan");
    let directory = two.collected().directory().expect("a catalog");
    let write = change::note_recovery(&directory, &plan.recovery).expect("it can be noted").expect("it is news");
    let mut version = directory.revision();
    let mut after = |directory: &crate::catalog::Directory, write: &Write| {
        version = version.next();
        let rows = write.operations.iter().map(|operation| match &operation.action {
            Action::Put { value, .. } => (operation.key.clone(), version, Some(value.clone())),
            _ => (operation.key.clone(), version, None),
        });
        directory.apply(rows).expect("rows that make sense")
    };
    let noted = after(&directory, &write);
    assert_eq!(noted.next_id(crate::catalog::Counter::Replica), plan.recovery.next_ids.replica);
    assert_eq!(change::note_recovery(&noted, &plan.recovery), Ok(None));

    let write = change::adopt_survivor(&noted, ShardId(2), Epoch(2)).expect("it fits").expect("it is news");
    let adopted = after(&noted, &write);
    let row = adopted.shard(ShardId(2)).expect("there");
    let heir = plan.recovery.shards.iter().find(|known| known.shard.0 == 2).expect("recovered").heir;
    assert_eq!((row.epoch, row.founded, row.replicas[0].id), (Epoch(2), true, heir.id));
    let nodes: Vec<u64> = row.replicas.iter().map(|replica| replica.node.0).collect();
    assert_eq!(nodes, [1, 3, 4]);
    assert!(row.replicas[1..].iter().all(|replica| replica.id.0 >= plan.recovery.next_ids.replica), "all new: {row:?}");
    assert_eq!(change::adopt_survivor(&adopted, ShardId(2), Epoch(2)), Ok(None), "it is struck off the list");

    let write = change::adopt_survivor(&adopted, ShardId(0), Epoch(2)).expect("it fits").expect("it is news");
    let system = after(&adopted, &write).shard(ShardId::SYSTEM).expect("there").clone();
    assert_eq!(system.replicas.iter().map(|replica| replica.node.0).collect::<Vec<_>>(), [2, 1]);
    // A second recovery keeps refusing whom the first gave up.
    let second = crate::catalog::RecoveryRow {
        id: 7,
        made_ms: PLANNED_MS + 1,
        lost: vec![],
        shards: vec![],
        ..plan.recovery.clone()
    };
    let write = change::note_recovery(&adopted, &second).expect("it can be noted").expect("it is news");
    let row = after(&adopted, &write).recovery().expect("noted").clone();
    assert!(row.id == 7 && row.has_lost(NodeId(3), incarnation(3)) && row.shards.len() == 2, "{row:?}");
}
