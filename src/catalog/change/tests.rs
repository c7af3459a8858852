//! The changes against a model of the system table: what they write, and that of two rivals one wins.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt::Write as _;

use bytes::Bytes;
use goldenscript::{Command, Context};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::catalog::rows::{ClusterRow, NodeRow, Standing};
use crate::types::{
    ClusterId, Epoch, Incarnation, NodeId, Partitioning, Reason, ReplicaId, ReplicaRole, ShardDescriptor, ShardId,
    Slot, TableId, TableState, Test, Timestamp, ViewDescriptor,
};

/// A system table that does what a shard does with a write: all conditions, then all operations, one version.
#[derive(Clone, Default)]
struct Model {
    rows: BTreeMap<Bytes, (Timestamp, Bytes)>,
    last: u64,
}

impl Model {
    /// Whether the write took effect, and the changes of rows it made.
    fn write(&mut self, write: &Write) -> Option<Vec<(Bytes, Timestamp, Option<Bytes>)>> {
        let holds = |condition: &Condition| {
            let current = self.rows.get(&condition.key).map(|(version, _)| *version);
            match &condition.test {
                Test::Version(wanted) => current == Some(*wanted),
                Test::Absent => current.is_none(),
                other => panic!("no change asks {other:?}"),
            }
        };
        if !write.conditions.iter().all(holds) {
            return None;
        }
        self.last += 1;
        let version = Timestamp(self.last);
        let mut changes = Vec::new();
        for operation in &write.operations {
            match &operation.action {
                Action::Put { value, ttl_ms: None } => {
                    self.rows.insert(operation.key.clone(), (version, value.clone()));
                    changes.push((operation.key.clone(), version, Some(value.clone())));
                }
                Action::Delete => {
                    self.rows.remove(&operation.key).expect("only rows that are there are removed");
                    changes.push((operation.key.clone(), version, None));
                }
                other => panic!("no change does {other:?}"),
            }
        }
        Some(changes)
    }

    fn directory(&self) -> Directory {
        let rows = self.rows.iter().map(|(key, (version, value))| (key.clone(), *version, value.clone()));
        Directory::from_rows(Timestamp(self.last), rows).expect("rows written by changes make sense")
    }
}

fn node(id: u64, incarnation: u64) -> NodeRow {
    NodeRow {
        id: NodeId(id),
        incarnation: Incarnation(incarnation),
        address: format!("host{id}:7400"),
        http_address: format!("host{id}:7500"),
        zone: format!("z{}", id % 3),
        version: "0.1.0".into(),
        joined_ms: 1_000 + id,
        standing: Standing::Serving,
    }
}

fn table(name: &str, shards: u32, replication: u32) -> NewTable {
    NewTable {
        name: name.into(),
        partitioning: Partitioning::Hash,
        shards,
        split_points: Vec::new(),
        replication,
        read_replicas: 0,
        read_replica_zone: None,
        history_ms: 3_600_000,
        view: None,
    }
}

/// Shard n on nodes n, n + 1, … of those there are.
fn around(directory: &Directory, replication: usize) -> impl FnOnce(&[ShardId]) -> Result<Vec<Vec<NodeId>>> {
    let nodes: Vec<NodeId> = directory.nodes().map(|node| node.id).collect();
    move |shards| {
        let list = |shard: &ShardId| (0..replication).map(|at| nodes[(shard.0 as usize + at) % nodes.len()]).collect();
        Ok(shards.iter().map(list).collect())
    }
}

fn founded(nodes: u64) -> Model {
    let mut model = Model::default();
    let rows: Vec<NodeRow> = (1..=nodes).map(|id| node(id, id * 100)).collect();
    model.write(&found_cluster(ClusterId(0xC1), 5, &rows).expect("a cluster")).expect("founded");
    model
}

fn reason<T: std::fmt::Debug>(result: Result<T>) -> Reason {
    result.expect_err("refused").reason
}

/// `stand N serving|spare|draining` · `leave N` · `lost N` · `pause on|off` · `found N…` · `join N[.I] [address=A]` · `wipe N.I` · `mend N` · `system N` · `create NAME shards=N replication=N
/// [range] [delimiter=D] [split=K,…]` · `drop NAME` · `finish ID` · `replace SHARD REPLICA to=N` · `pin NAME` ·
/// `rows [PREFIX]` · `tables`; a change takes `on=PIN` to be computed from a former picture. A node's incarnation is
/// 100 times its id unless given.
#[derive(Default)]
struct Script {
    model: Model,
    pins: BTreeMap<String, Directory>,
}

impl Script {
    fn change(&mut self, write: Option<Write>) -> Result<String, Box<dyn StdError>> {
        let Some(write) = write else { return Ok("nothing to do".into()) };
        let mut out = String::new();
        for condition in &write.conditions {
            let test = match &condition.test {
                Test::Version(version) => format!("is of version {version}"),
                other => format!("is {other:?}").to_lowercase(),
            };
            writeln!(out, "if {} {test}", condition.key.escape_ascii())?;
        }
        for operation in &write.operations {
            let verb = if operation.action == Action::Delete { "delete" } else { "put" };
            writeln!(out, "{verb} {}", operation.key.escape_ascii())?;
        }
        let known = self.model.directory();
        match self.model.write(&write) {
            None => writeln!(out, "=> refused: a condition does not hold")?,
            Some(changes) => {
                writeln!(out, "=> version {}", self.model.last)?;
                // Following the changes and reading all rows give the same picture.
                assert!(known.apply(changes)? == self.model.directory());
            }
        }
        Ok(out)
    }
}

impl goldenscript::Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> std::result::Result<String, Box<dyn StdError>> {
        fn named(text: &str) -> std::result::Result<NodeRow, std::num::ParseIntError> {
            Ok(match text.split_once('.') {
                Some((id, incarnation)) => node(id.parse()?, incarnation.parse()?),
                None => node(text.parse()?, text.parse::<u64>()? * 100),
            })
        }
        let mut args = command.consume_args();
        let directory = match args.take_key("on") {
            Some(pin) => self.pins[pin].clone(),
            None => self.model.directory(),
        };
        let mut next = || args.next_pos().ok_or("an argument is missing");
        let built: Result<Option<Write>> = match command.name.as_str() {
            "found" => {
                let mut rows = Vec::new();
                while let Some(id) = args.next_pos() {
                    rows.push(named(id)?);
                }
                found_cluster(ClusterId(0xC1), 5, &rows).map(Some)
            }
            "join" => {
                let mut row = named(next()?)?;
                if let Some(address) = args.take_key("address") {
                    row.address = address.to_owned();
                }
                join_node(&directory, &row)
            }
            "wipe" => replace_incarnation(&directory, &named(next()?)?).map(Some),
            "stand" => {
                let id = NodeId(next()?.parse()?);
                Standing::named(next()?).and_then(|standing| set_standing(&directory, id, standing))
            }
            "leave" => remove_node(&directory, NodeId(next()?.parse()?), 77, |_| true),
            "lost" => {
                let lost = BTreeSet::from([NodeId(next()?.parse()?)]);
                relieve_lost(&directory, &lost, |node| !lost.contains(&node))
            }
            "pause" => set_balancing(&directory, next()? == "on"),
            "mend" => mend_node(&directory, NodeId(next()?.parse()?)),
            "system" => add_system_replica(&directory, NodeId(next()?.parse()?)),
            "create" => {
                let mut wish = table(next()?, 0, 0);
                wish.shards = args.take_key("shards").unwrap_or("0").parse()?;
                wish.replication = args.take_key("replication").unwrap_or("1").parse()?;
                let split = args.take_key("split").map(|keys| keys.split(','));
                wish.split_points =
                    split.into_iter().flatten().map(|key| Bytes::copy_from_slice(key.as_bytes())).collect();
                let group_delimiter = args.take_key("delimiter").map(str::to_owned);
                if args.next_pos() == Some("range") {
                    wish.partitioning = Partitioning::Range { group_delimiter };
                }
                wish.read_replicas = args.take_key("read_replicas").unwrap_or("0").parse()?;
                let place = around(&directory, (wish.replication + wish.read_replicas) as usize);
                create_table(&directory, &wish, place).map(|creation| Some(creation.write))
            }
            "drop" => drop_table(&directory, next()?).map(|(_, write)| Some(write)),
            "finish" => finish_drop(&directory, TableId(next()?.parse()?)).map(Some),
            "split" => {
                let shard = ShardId(next()?.parse()?);
                let at = next()?.parse().map(Slot)?;
                let table = directory.shard(shard).map_or(TableId(1), |shard| shard.table);
                let layout = crate::keyspace::Layout { table, partitioning: Partitioning::Hash };
                begin_split(&directory, shard, &layout.cut_before_slot(at)?, false).map(|(_, write)| write)
            }
            "merge" => begin_merge(&directory, ShardId(next()?.parse()?)).map(|(_, write)| write),
            "one" => finish_merge(&directory, ShardId(next()?.parse()?), Epoch(next()?.parse()?)),
            "off" => abandon_merge(&directory, ShardId(next()?.parse()?), Epoch(next()?.parse()?)),
            "halves" => finish_split(&directory, ShardId(next()?.parse()?), Epoch(next()?.parse()?)),
            "replace" => {
                let (shard, replica) = (ShardId(next()?.parse()?), ReplicaId(next()?.parse()?));
                let to = NodeId(args.take_key("to").ok_or("to?")?.parse()?);
                move_replica(&directory, shard, replica, to).map(|(_, write)| Some(write))
            }
            "pin" => {
                self.pins.insert(next()?.to_owned(), directory);
                return Ok(String::new());
            }
            "rows" => {
                let prefix = args.next_pos().unwrap_or("").as_bytes();
                let mut out = String::new();
                for (key, (version, value)) in self.model.rows.iter().filter(|(key, _)| key.starts_with(prefix)) {
                    writeln!(out, "{} @{version} {}", std::str::from_utf8(key)?, std::str::from_utf8(value)?)?;
                }
                return Ok(out);
            }
            "tables" => {
                let mut out = String::new();
                for table in directory.tables() {
                    let name = &table.descriptor.name;
                    assert_eq!(directory.table_by_name(name), Some(table));
                    writeln!(out, "{} {name}", table.descriptor.id)?;
                    for shard in &table.shards {
                        let member = |replica: &crate::types::ReplicaDescriptor| {
                            let mark = if replica.role == ReplicaRole::Voter { "" } else { "(learner)" };
                            format!("{}@{}.{}{mark}", replica.id, replica.node, replica.incarnation.0)
                        };
                        let members: Vec<String> = shard.replicas.iter().map(member).collect();
                        let range = table.layout.describe(&shard.start, &shard.end);
                        writeln!(out, "  {} {range}: {}; founders {:?}", shard.id, members.join(" "), shard.founders)?;
                    }
                }
                return Ok(out);
            }
            other => return Err(format!("no command {other}").into()),
        };
        args.reject_next()?;
        match built {
            Ok(write) => self.change(write),
            Err(error) => Ok(error.to_string()),
        }
    }
}

#[test]
fn changes_are_golden() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/catalog/testscripts");
    for script in ["merges", "nodes", "readers", "rivals", "splits", "standing", "tables"] {
        goldenscript::run(&mut Script::default(), format!("{folder}/{script}")).expect(script);
    }
}

#[test]
fn an_id_is_taken_over_only_from_the_one_that_was_looked_for() {
    let mut model = founded(3);
    let admit = |model: &Model, incarnation, gone: Option<u64>| {
        admit_node(&model.directory(), &node(3, incarnation), gone.map(Incarnation))
    };
    let known = model.directory().node(NodeId(3)).expect("a founder").incarnation.0;
    assert!(admit(&model, known, None).expect("it is the one").is_none());
    // Its disk is lost, and of two starts with an empty one both ask; the first is written late, when the second's
    // former holder has been looked for already. It must ask again, and not be told that it is somebody else.
    let first = admit(&model, 501, Some(known)).expect("nobody holds it").expect("a write");
    let second = admit(&model, 502, Some(known)).expect("nobody holds it").expect("a write");
    model.write(&first).expect("written");
    assert!(model.write(&second).is_none(), "of two rivals one wins");
    assert_eq!(reason(admit(&model, 502, Some(known))), Reason::Conflict);
    assert_eq!(reason(admit(&model, 502, None)), Reason::Conflict);
    let second = admit(&model, 502, Some(501)).expect("the first start is gone").expect("a write");
    model.write(&second).expect("written");
    assert_eq!(model.directory().node(NodeId(3)).expect("a row").incarnation, Incarnation(502));
    // One that never was here needs nobody's place.
    assert!(admit_node(&model.directory(), &node(9, 9), None).expect("a newcomer").is_some());
}

#[test]
fn wishes_that_make_no_sense_are_refused() {
    let directory = founded(3).directory();
    let create = |wish: &NewTable| create_table(&directory, wish, around(&directory, wish.replication as usize));
    assert_eq!(reason(create(&table("a/b", 1, 1))), Reason::InvalidRequest);
    assert_eq!(reason(create(&table(SYSTEM_TABLE, 1, 1))), Reason::TableExists);
    assert_eq!(reason(create(&table("t", 1, 0))), Reason::InvalidRequest);
    assert_eq!(reason(create(&table("t", 1, REPLICATION_MAX + 1))), Reason::InvalidRequest);
    assert_eq!(reason(create(&table("t", 0, 1))), Reason::InvalidRequest);
    assert_eq!(reason(create(&table("t", SHARDS_MAX as u32 + 1, 1))), Reason::InvalidRequest);
    let mut grouped = table("t", 0, 1);
    grouped.partitioning = Partitioning::Range { group_delimiter: Some(String::new()) };
    assert_eq!(reason(create(&grouped)), Reason::InvalidRequest);
    assert_eq!(reason(drop_table(&directory, SYSTEM_TABLE)), Reason::ReadOnlyTable);
    assert_eq!(reason(drop_table(&directory, "t")), Reason::UnknownTable);
    assert_eq!(reason(finish_drop(&directory, TableId(1))), Reason::UnknownTable);
    assert_eq!(reason(finish_drop(&directory, TableId::SYSTEM)), Reason::InvalidRequest);
    assert_eq!(reason(join_node(&directory, &node(1, 7))), Reason::NodeIdTaken);
    assert_eq!(reason(join_node(&Directory::empty(), &node(1, 7))), Reason::NotReady);
    assert_eq!(reason(replace_incarnation(&directory, &node(9, 7))), Reason::UnknownNode);
    assert_eq!(reason(replace_incarnation(&directory, &node(1, 100))), Reason::InvalidRequest);
    assert_eq!(reason(mend_node(&directory, NodeId(9))), Reason::UnknownNode);
    assert_eq!(reason(found_cluster(ClusterId(1), 0, &[])), Reason::InvalidRequest);
    assert_eq!(reason(found_cluster(ClusterId(1), 0, &[node(1, 1), node(1, 2)])), Reason::NodeIdTaken);
    let replace = |shard, replica, to| move_replica(&directory, ShardId(shard), ReplicaId(replica), NodeId(to));
    assert_eq!(reason(replace(7, 1, 1)), Reason::UnknownShard);
    assert_eq!(reason(replace(0, 1, 9)), Reason::UnknownNode);
    assert_eq!(reason(replace(0, 9, 1)), Reason::InvalidRequest);
    assert_eq!(reason(replace(0, 1, 2)), Reason::InvalidRequest);
}

#[test]
fn another_form_of_a_view_takes_its_place() {
    let mut model = founded(3);
    let create = |model: &mut Model, name: &str, view: Option<ViewDescriptor>| {
        let directory = model.directory();
        let wish = NewTable { view, ..table(name, 2, 3) };
        let creation = create_table(&directory, &wish, around(&directory, 3)).expect("created");
        model.write(&creation.write).expect("written");
        creation.table.id
    };
    let orders = create(&mut model, "orders", None);
    let of = |definition: &str, replaces| ViewDescriptor {
        definition: definition.to_owned(),
        sources: vec![orders],
        replaces,
        ..ViewDescriptor::default()
    };
    let former = create(&mut model, "by_user", Some(of("1", None)));
    let next = create(&mut model, &name_of_next("by_user"), Some(of("2", Some(former))));
    let before = model.directory();
    let (name, write) = take_place(&before, next).expect("it can");
    assert_eq!(name, "by_user");
    model.write(&write).expect("written");
    let after = model.directory();
    let entry = after.table_by_name("by_user").expect("it is there");
    assert_eq!(entry.descriptor.id, next);
    assert_eq!(entry.descriptor.view, Some(ViewDescriptor { ready: true, ..of("2", None) }));
    assert!(after.table_by_name("by_user.next").is_none() && after.table(former).is_none());
    assert_eq!(after.descriptor(former).expect("its rows go later").state, TableState::Dropping);
    assert!(model.write(&write).is_none(), "the same once more");

    // Whose place is free takes it; whose place is taken by another keeps its own.
    let again = create(&mut model, "by_user.next", Some(of("3", Some(next))));
    let (_, write) = drop_table(&model.directory(), "by_user").expect("dropped");
    model.write(&write).expect("written");
    let free = model.directory();
    assert_eq!(take_place(&free, again).expect("it can").0, "by_user");
    create(&mut model, "by_user", None);
    assert!(model.write(&take_place(&free, again).expect("it could").1).is_none(), "the name was taken meanwhile");
    let (name, write) = take_place(&model.directory(), again).expect("it can");
    assert_eq!(name, "by_user.next");
    model.write(&write).expect("written");
    let end = model.directory();
    assert!(end.table_by_name("by_user.next").expect("there").descriptor.view.as_ref().is_some_and(|view| view.ready));
    assert_eq!(reason(take_place(&end, orders)), Reason::InvalidRequest);
    assert_eq!(reason(take_place(&end, former)), Reason::UnknownTable);
}

/// A comparison takes its time, and what it has found is said of the view that was looked at, as it was.
#[test]
fn a_view_is_said_to_be_ready_only_if_it_is_what_was_looked_at() {
    let mut model = founded(1);
    let create = |model: &mut Model, name: &str, view| {
        let wish = NewTable { view, ..table(name, 1, 1) };
        let new = create_table(&model.directory(), &wish, |_| Ok(vec![vec![NodeId(1)]])).expect("it can");
        model.write(&new.write).expect("written");
        new.table.id
    };
    let orders = create(&mut model, "orders", None);
    let of = |definition: &str, replaces| ViewDescriptor {
        definition: definition.into(),
        sources: vec![orders],
        paused: false,
        ready: false,
        rebuilding: false,
        replaces,
    };
    let view = create(&mut model, "v", Some(of("1", None)));
    let seen = |model: &Model| model.directory().table_by_name("v").expect("there").descriptor.clone();
    let change = |model: &mut Model, change: &dyn Fn(&mut ViewDescriptor)| {
        let (_, write) = change_view(&model.directory(), "v", change).expect("it can");
        model.write(&write.expect("something else")).expect("written");
    };
    let new = seen(&model);
    let (name, write) = say_ready(&model.directory(), &new).expect("it can").expect("nothing has changed");
    assert_eq!(name, "v");
    // It began anew, or was paused, while it was compared: before that was read, and after.
    change(&mut model, &|view| view.rebuilding = true);
    assert!(model.write(&write).is_none());
    assert!(say_ready(&model.directory(), &new).expect("looked").is_none());
    let begun = seen(&model);
    change(&mut model, &|view| view.paused = true);
    assert!(say_ready(&model.directory(), &begun).expect("looked").is_none());
    change(&mut model, &|view| view.paused = false);
    let (_, write) = say_ready(&model.directory(), &begun).expect("it can").expect("as it was");
    model.write(&write).expect("written");
    let ready = seen(&model).view.expect("a view");
    assert!(ready.ready && !ready.rebuilding);
    assert!(say_ready(&model.directory(), &begun).expect("looked").is_none(), "the same once more");
    // Another has the name.
    let (_, write) = drop_table(&model.directory(), "v").expect("dropped");
    model.write(&write).expect("written");
    assert_ne!(create(&mut model, "v", Some(of("1", None))), view);
    assert!(say_ready(&model.directory(), &new).expect("looked").is_none());
    // Another form of it which begins anew takes no place.
    let former = seen(&model).id;
    let next = create(&mut model, "v.next", Some(of("2", Some(former))));
    let form = model.directory().descriptor(next).expect("there").clone();
    let (_, write) = change_view(&model.directory(), "v.next", |view| view.rebuilding = true).expect("it can");
    model.write(&write.expect("something else")).expect("written");
    assert!(say_ready(&model.directory(), &form).expect("looked").is_none());
    let form = model.directory().descriptor(next).expect("there").clone();
    let (name, write) = say_ready(&model.directory(), &form).expect("it can").expect("as it was");
    model.write(&write).expect("written");
    assert_eq!((name.as_str(), seen(&model).id), ("v", next));
}

#[test]
fn a_placement_that_makes_no_sense_is_refused() {
    let directory = founded(3).directory();
    for placed in [vec![], vec![vec![NodeId(1)]], vec![vec![NodeId(1), NodeId(1)]], vec![vec![NodeId(1), NodeId(9)]]] {
        assert_eq!(reason(create_table(&directory, &table("t", 1, 2), |_| Ok(placed))), Reason::Internal);
    }
    let refuse = |_: &[ShardId]| Err(Error::new(Reason::NotEnoughNodes, "too few"));
    assert_eq!(reason(create_table(&directory, &table("t", 1, 2), refuse)), Reason::NotEnoughNodes);
}

#[test]
fn the_founders_know_shard_0_before_it_is_written() {
    let nodes: Vec<NodeRow> = [4, 2, 7, 1, 9, 3].map(|id| node(id, id)).to_vec();
    let shard = system_shard(&nodes);
    let mut turned = nodes.clone();
    turned.rotate_left(3);
    assert_eq!(system_shard(&turned), shard);
    assert_eq!(shard.founders.len(), SYSTEM_VOTERS_MAX);
    assert_eq!(shard.replica_on(NodeId(9)).map(|replica| replica.role), Some(ReplicaRole::Learner));
    let write = found_cluster(ClusterId(1), 0, &nodes).expect("a cluster");
    let rows: BTreeMap<Bytes, Bytes> = rows_of(&write).collect();
    let key = RowKey::Shard(TableId::SYSTEM, ShardId::SYSTEM).encode();
    let written: ShardDescriptor = serde_json::from_slice(&rows[&key]).expect("a shard");
    assert_eq!(written, shard);
    let cluster: ClusterRow = serde_json::from_slice(&rows[&RowKey::Cluster.encode()]).expect("a cluster");
    assert_eq!(cluster.id, ClusterId(1));
}

#[test]
fn the_largest_table_fits_into_one_write_and_goes_in_bounded_steps() {
    let mut model = founded(100);
    let wish = table("wide", SHARDS_MAX as u32, 3);
    let directory = model.directory();
    let creation = create_table(&directory, &wish, around(&directory, 3)).expect("a table");
    let bytes: usize = rows_of(&creation.write).map(|(key, value)| key.len() + value.len()).sum();
    assert!(bytes < crate::types::Limits::default().batch_bytes_max, "{bytes}");
    model.write(&creation.write).expect("written");
    assert_eq!(model.directory().table_by_name("wide").expect("offered").shards.len(), SHARDS_MAX);

    let (id, write) = drop_table(&model.directory(), "wide").expect("dropped");
    model.write(&write).expect("written");
    let mut steps = 0;
    while model.directory().descriptor(id).is_some() {
        let write = finish_drop(&model.directory(), id).expect("a step");
        assert!(write.conditions.len() + write.operations.len() <= CHANGE_MAX);
        model.write(&write).expect("written");
        steps += 1;
    }
    assert_eq!(steps, SHARDS_MAX / REMOVALS_MAX);
    let directory = model.directory();
    assert_eq!(directory.shards_of(id).count(), 0);
    assert!(creation.shards.iter().all(|shard| directory.was_dropped(shard.id)));
}

#[test]
fn a_wiped_node_with_many_replicas_is_mended_in_bounded_steps() {
    let mut model = founded(1);
    for name in ["one", "two"] {
        let directory = model.directory();
        let wish = table(name, SHARDS_MAX as u32, 1);
        let creation = create_table(&directory, &wish, around(&directory, 1)).expect("a table");
        model.write(&creation.write).expect("written");
    }
    let before = model.directory();
    model.write(&replace_incarnation(&before, &node(1, 101)).expect("back")).expect("written");
    assert_eq!(model.directory().shard(ShardId::SYSTEM).expect("shard 0").replicas[0].incarnation, Incarnation(101));
    let mut steps = 1;
    while let Some(write) = mend_node(&model.directory(), NodeId(1)).expect("a step") {
        assert!(write.conditions.len() + write.operations.len() <= CHANGE_MAX);
        model.write(&write).expect("written");
        steps += 1;
    }
    assert_eq!(steps, (2 * SHARDS_MAX + 1).div_ceil(REPLACEMENTS_MAX));
    let after = model.directory();
    assert_eq!(after.stale_replicas().count(), 0);
    for shard in after.shards() {
        let former = before.shard(shard.id).expect("known");
        assert_eq!(shard.founders, former.founders, "history is not rewritten");
        assert!(!former.founders.contains(&shard.replicas[0].id), "a new replica under a new id");
        assert_eq!(shard.replicas[0].role, ReplicaRole::Voter);
    }
}

/// Something a controller may want.
#[derive(Clone, Debug)]
enum Wish {
    Join(u64, u64),
    Wipe(u64, u64),
    Mend(u64),
    Create(u8, u32),
    Drop(u8),
    Finish(u32),
    Replace(u64, u64, u64),
}

impl Wish {
    fn build(&self, directory: &Directory) -> Result<Option<Write>> {
        match *self {
            Wish::Join(id, incarnation) => join_node(directory, &node(id, incarnation)),
            Wish::Wipe(id, incarnation) => replace_incarnation(directory, &node(id, incarnation)).map(Some),
            Wish::Mend(id) => mend_node(directory, NodeId(id)),
            Wish::Create(name, shards) => {
                let wish = table(&format!("t{name}"), shards, 1);
                create_table(directory, &wish, around(directory, 1)).map(|creation| Some(creation.write))
            }
            Wish::Drop(name) => drop_table(directory, &format!("t{name}")).map(|(_, write)| Some(write)),
            Wish::Finish(id) => finish_drop(directory, TableId(id)).map(Some),
            Wish::Replace(shard, replica, to) => {
                move_replica(directory, ShardId(shard), ReplicaId(replica), NodeId(to)).map(|(_, write)| Some(write))
            }
        }
    }
}

fn wishes() -> impl Strategy<Value = Wish> {
    prop_oneof![
        (1u64..8, 1u64..4).prop_map(|(id, incarnation)| Wish::Join(id, incarnation)),
        (1u64..8, 1u64..4).prop_map(|(id, incarnation)| Wish::Wipe(id, incarnation)),
        (1u64..8).prop_map(Wish::Mend),
        (0u8..3, 1u32..4).prop_map(|(name, shards)| Wish::Create(name, shards)),
        (0u8..3).prop_map(Wish::Drop),
        (1u32..4).prop_map(Wish::Finish),
        (0u64..6, 1u64..12, 1u64..8).prop_map(|(shard, replica, to)| Wish::Replace(shard, replica, to)),
    ]
}

/// Ids of all replicas there are, each in one place only; no shard has two on one node.
fn check(directory: &Directory, ever: &mut BTreeMap<ReplicaId, (ShardId, NodeId, Incarnation)>) {
    for shard in directory.shards() {
        for replica in &shard.replicas {
            let place = (shard.id, replica.node, replica.incarnation);
            let known = *ever.entry(replica.id).or_insert(place);
            assert_eq!(known, place, "{} was given out twice", replica.id);
            assert_eq!(shard.replica_on(replica.node), Some(replica), "two replicas of {} on one node", shard.id);
            assert!(replica.id.0 < directory.next_id(Counter::Replica));
        }
        assert!(shard.id.0 < directory.next_id(Counter::Shard));
    }
}

proptest! {
    #[test]
    fn ids_are_never_reused_and_following_equals_reading(list in vec(wishes(), 1..40)) {
        let mut model = founded(3);
        let mut followed = model.directory();
        let mut ever = BTreeMap::new();
        for wish in list {
            let Ok(Some(write)) = wish.build(&followed) else { continue };
            // Nobody else writes, so a change computed from the newest picture takes effect.
            let changes = model.write(&write).expect("the conditions hold");
            followed = followed.apply(changes)?;
            check(&followed, &mut ever);
            prop_assert!(followed == model.directory());
        }
    }

    #[test]
    fn of_two_changes_to_one_row_only_one_wins(before in vec(wishes(), 0..12), one in wishes(), two in wishes()) {
        let mut model = founded(3);
        for wish in before {
            if let Ok(Some(write)) = wish.build(&model.directory()) {
                model.write(&write).expect("the conditions hold");
            }
        }
        let picture = model.directory();
        if let (Ok(Some(one)), Ok(Some(two))) = (one.build(&picture), two.build(&picture)) {
            let touched = |write: &Write| -> Vec<Bytes> { write.operations.iter().map(|operation| operation.key.clone()).collect() };
            let rivals = touched(&one).iter().any(|key| touched(&two).contains(key));
            model.write(&one).expect("the first wins");
            let second = model.write(&two).is_some();
            prop_assert!(!(rivals && second), "both changed one row");
            check(&model.directory(), &mut BTreeMap::new());
            // Nobody relies in vain on a node that was wiped meanwhile: who won knew its present directory.
            if second {
                let stale = model.directory().stale_replicas().count();
                prop_assert!(stale <= picture.stale_replicas().count(), "a replica was wanted on a directory that is gone");
            }
        }
    }
}
