//! Tables that come and go.

use std::sync::Arc;

use bytes::Bytes;

use super::{Draft, Write};
use crate::catalog::directory::{Directory, TableEntry};
use crate::catalog::rows::{Counter, RowKey};
use crate::keyspace::Layout;
use crate::types::{
    Error, NodeId, Partitioning, Reason, ReplicaDescriptor, ReplicaId, ReplicaRole, Result, ShardDescriptor, ShardId,
    TableDescriptor, TableId, TableState, ViewDescriptor, check_table_name,
};

/// Most shards a table is created with: their rows are one write, and half of a change is left for other things.
/// (More come by splitting.)
pub const SHARDS_MAX: usize = super::CHANGE_MAX / 2;

/// Most voters of a shard: seven outlive three failures; more would only slow every write down.
pub const REPLICATION_MAX: u32 = 7;

/// Most learners of a shard: each is sent every entry by the leader.
pub const READ_REPLICAS_MAX: u32 = 16;

/// Most shard rows removed by one write: each takes a condition and a row.
pub const REMOVALS_MAX: usize = super::CHANGE_MAX / 4;

/// A wish for a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTable {
    /// Its name.
    pub name: String,
    /// How its keys are ordered.
    pub partitioning: Partitioning,
    /// Hash tables: how many shards. Range tables: 0, or one more than there are split points.
    pub shards: u32,
    /// Range tables: keys at which shards begin.
    pub split_points: Vec<Bytes>,
    /// Voters per shard.
    pub replication: u32,
    /// Learners per shard beside them.
    pub read_replicas: u32,
    /// Where those are wanted first.
    pub read_replica_zone: Option<String>,
    /// How long replaced versions stay readable, in milliseconds.
    pub history_ms: u64,
    /// What it is derived from, if it is a view: a hash table then.
    pub view: Option<ViewDescriptor>,
}

/// A table as it will be once its write has taken effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Creation {
    /// The table.
    pub table: TableDescriptor,
    /// Its shards in key order.
    pub shards: Vec<ShardDescriptor>,
    /// What makes it so.
    pub write: Write,
}

/// Makes a table with its shards and their wanted replicas. `place` chooses, for each of the shards, `replication`
/// distinct nodes for its voters, the first of which is the preferred leader, and then `read_replicas` others for its
/// learners. The voters are the founders; learners join once the group is founded.
///
/// The write relies on the rows of all nodes chosen, so none of them can have lost its data directory in between.
pub fn create_table(
    directory: &Directory,
    wish: &NewTable,
    place: impl FnOnce(&[ShardId]) -> Result<Vec<Vec<NodeId>>>,
) -> Result<Creation> {
    check_table_name(&wish.name)?;
    if directory.name_is_taken(&wish.name) {
        if let Some(former) = wish.view.as_ref().and_then(|view| directory.descriptor(view.replaces?)) {
            let (former, name) = (&former.name, &wish.name);
            let text =
                format!("{former} is being changed already: wait until {name} has taken its place, or drop {name}");
            return Err(Error::new(Reason::TableExists, text));
        }
        return Err(Error::new(Reason::TableExists, format!("there is a table {} already", wish.name)));
    }
    if wish.replication == 0 || wish.replication > REPLICATION_MAX {
        return Err(Error::invalid(format!("a shard has 1 to {REPLICATION_MAX} voters, not {}", wish.replication)));
    }
    if wish.read_replicas > READ_REPLICAS_MAX {
        return Err(Error::invalid(format!("a shard has at most {READ_REPLICAS_MAX} read replicas")));
    }
    if wish.partitioning == (Partitioning::Range { group_delimiter: Some(String::new()) }) {
        return Err(Error::invalid("a group delimiter is not empty: leave it out for a table without groups"));
    }
    if wish.shards as usize > SHARDS_MAX || wish.split_points.len() >= SHARDS_MAX {
        return Err(Error::invalid(format!("a table is created with at most {SHARDS_MAX} shards")));
    }
    let mut draft = Draft::new(directory);
    if let Some(view) = &wish.view {
        rely_on_sources(&mut draft, view)?;
    }
    let id = u32::try_from(draft.take(Counter::Table)).ok().filter(|&id| id < TableId::RESERVED);
    let table = TableDescriptor {
        id: TableId(id.ok_or_else(|| Error::internal("all table ids are used up"))?),
        name: wish.name.clone(),
        partitioning: wish.partitioning.clone(),
        replication: wish.replication,
        read_replicas: wish.read_replicas,
        read_replica_zone: wish.read_replica_zone.clone(),
        history_ms: wish.history_ms,
        state: TableState::Ready,
        view: wish.view.clone(),
    };
    let ranges = Layout::of(&table).initial_ranges(wish.shards, &wish.split_points)?;
    let ids: Vec<ShardId> = ranges.iter().map(|_| ShardId(draft.take(Counter::Shard))).collect();
    let placed = place(&ids)?;
    if placed.len() != ids.len() {
        return Err(Error::internal("placement did not answer for every shard"));
    }
    draft.put(&RowKey::Table(table.id), &table);
    draft.put(&RowKey::TableName(table.name.clone()), &table.id);
    let mut shards = Vec::with_capacity(ids.len());
    for ((id, (start, end)), nodes) in ids.into_iter().zip(ranges).zip(placed) {
        let replicas = found_replicas(&mut draft, &nodes, wish)?;
        let voters = replicas.iter().filter(|replica| replica.role == ReplicaRole::Voter);
        let founders = voters.map(|replica| replica.id).collect();
        let range = (start.to_vec(), end.to_vec());
        let shard = ShardDescriptor { founders, ..ShardDescriptor::new(id, table.id, range, replicas) };
        draft.put_fresh(&RowKey::Shard(table.id, id), &shard);
        shards.push(shard);
    }
    Ok(Creation { table, shards, write: draft.finish()? })
}

/// A view stands on tables that serve, none of them a view: so there are no circles, and every view is one step from the truth.
fn rely_on_sources(draft: &mut Draft<'_>, view: &ViewDescriptor) -> Result<()> {
    for &source in &view.sources {
        let serving = draft.directory.descriptor(source).filter(|row| row.state == TableState::Ready);
        let Some(row) = serving else {
            return Err(Error::new(
                Reason::UnknownTable,
                format!("a source of the view, {source}, is no table any more"),
            ));
        };
        if row.view.is_some() {
            let text = format!("{} is a view itself: derive from the tables that it is derived from", row.name);
            return Err(Error::invalid(text));
        }
        if source == TableId::SYSTEM {
            return Err(Error::invalid("the system table holds no documents, so no view can be derived from it"));
        }
        // Nobody drops it meanwhile.
        draft.rely_on(&RowKey::Table(source));
    }
    Ok(())
}

/// The name under which another form of a view is built.
pub fn name_of_next(view: &str) -> String {
    format!("{view}{NEXT}")
}

/// What the name of a view's other form ends in while it is built.
const NEXT: &str = ".next";

/// A view by its name.
///
/// Errors: `UNKNOWN_TABLE`, and `INVALID_REQUEST` for a table that is none.
pub fn view_named<'a>(directory: &'a Directory, name: &str) -> Result<&'a Arc<TableEntry>> {
    let Some(entry) = directory.table_by_name(name) else {
        return Err(Error::new(
            Reason::UnknownTable,
            format!("there is no view '{name}'; `trivet view list` shows them"),
        ));
    };
    match entry.descriptor.view {
        Some(_) => Ok(entry),
        None => Err(Error::invalid(format!("{name} is a table, not a view"))),
    }
}

/// Gives another form of a view the place of the one it replaces, which is dropped: it is ready, and has the name from then
/// on. If that one was dropped meanwhile, the name is free, or somebody else's: then it keeps the one it has. Its new name.
pub fn take_place(directory: &Directory, next: TableId) -> Result<(String, Write)> {
    let descriptor = directory.descriptor(next).filter(|row| row.state == TableState::Ready).cloned();
    let gone = || Error::new(Reason::UnknownTable, format!("{next} was dropped"));
    let mut descriptor = descriptor.ok_or_else(gone)?;
    let Some(view) = &mut descriptor.view else {
        return Err(Error::invalid(format!("{} is a table, not a view", descriptor.name)));
    };
    (view.ready, view.rebuilding) = (true, false);
    let former = view.replaces.take();
    let mut draft = Draft::new(directory);
    let wanted = descriptor.name.strip_suffix(NEXT).unwrap_or(&descriptor.name).to_owned();
    let holder = directory.named(&wanted);
    if holder.is_none() || holder == former {
        if let Some(former) = former.and_then(|former| directory.descriptor(former)).filter(|_| holder.is_some()) {
            let going = TableDescriptor { state: TableState::Dropping, ..former.clone() };
            draft.put(&RowKey::Table(going.id), &going);
        }
        draft.delete(&RowKey::TableName(descriptor.name.clone()));
        draft.put(&RowKey::TableName(wanted.clone()), &next);
        descriptor.name = wanted;
    }
    draft.put(&RowKey::Table(next), &descriptor);
    Ok((descriptor.name, draft.finish()?))
}

/// A view holds what its sources say, as was found while its row was `seen`: it is ready, or takes the place of its former form. Its
/// name. `None` if it is another by now: dropped, paused, ready, or said to begin anew. Then what was found means nothing.
pub fn say_ready(directory: &Directory, seen: &TableDescriptor) -> Result<Option<(String, Write)>> {
    let now = directory.descriptor(seen.id).filter(|now| now.state == TableState::Ready && now.view == seen.view);
    let Some(now) = now else { return Ok(None) };
    if now.view.as_ref().is_some_and(|view| view.replaces.is_some()) {
        return take_place(directory, now.id).map(Some);
    }
    let (table, write) = change_view(directory, &now.name, |view| (view.ready, view.rebuilding) = (true, false))?;
    Ok(write.map(|write| (table.name, write)))
}

/// Changes what is said of a view: `change` gets what stands there. `None` if nothing is to be changed.
pub fn change_view(
    directory: &Directory,
    name: &str,
    change: impl FnOnce(&mut ViewDescriptor),
) -> Result<(TableDescriptor, Option<Write>)> {
    let entry = view_named(directory, name)?;
    let mut descriptor = entry.descriptor.clone();
    let Some(view) = &mut descriptor.view else {
        return Err(Error::invalid(format!("{name} is a table, not a view")));
    };
    change(view);
    if descriptor == entry.descriptor {
        return Ok((descriptor, None));
    }
    let mut draft = Draft::new(directory);
    draft.put(&RowKey::Table(descriptor.id), &descriptor);
    Ok((descriptor, Some(draft.finish()?)))
}

/// Replicas on these nodes, voters first: so the founders stand where the list begins, whoever takes a place later.
fn found_replicas(draft: &mut Draft<'_>, nodes: &[NodeId], wish: &NewTable) -> Result<Vec<ReplicaDescriptor>> {
    let (voters, learners) = (wish.replication as usize, wish.read_replicas as usize);
    if nodes.len() != voters + learners {
        let text = format!("placement chose {} nodes for {voters} voters and {learners} learners", nodes.len());
        return Err(Error::internal(text));
    }
    let mut replicas: Vec<ReplicaDescriptor> = Vec::with_capacity(nodes.len());
    for &node in nodes {
        let Some(row) = draft.directory.node(node) else {
            return Err(Error::internal(format!("placement chose {node}, which is no node of the cluster")));
        };
        if replicas.iter().any(|replica| replica.node == node) {
            return Err(Error::internal(format!("placement chose {node} twice for one shard")));
        }
        let incarnation = row.incarnation;
        draft.rely_on(&RowKey::Node(node));
        let id = ReplicaId(draft.take(Counter::Replica));
        let role = if replicas.len() < voters { ReplicaRole::Voter } else { ReplicaRole::Learner };
        replicas.push(ReplicaDescriptor { id, node, incarnation, role });
    }
    Ok(replicas)
}

/// Begins to drop a table: it is no longer offered and its name is free. [`finish_drop`] does the rest.
pub fn drop_table(directory: &Directory, name: &str) -> Result<(TableId, Write)> {
    let descriptor = directory.named(name).and_then(|id| directory.descriptor(id));
    let Some(descriptor) = descriptor else {
        return Err(Error::new(Reason::UnknownTable, format!("there is no table {name}")));
    };
    if descriptor.id == TableId::SYSTEM {
        return Err(Error::new(Reason::ReadOnlyTable, "the system table is the cluster itself and cannot be dropped"));
    }
    let derived: Vec<&str> = (directory.tables())
        .filter(|entry| entry.descriptor.view.as_ref().is_some_and(|view| view.sources.contains(&descriptor.id)))
        .map(|entry| entry.descriptor.name.as_str())
        .collect();
    if !derived.is_empty() {
        let text = format!("views are derived from {name}: drop {} first", derived.join(", "));
        return Err(Error::new(Reason::TableInUse, text));
    }
    let mut draft = Draft::new(directory);
    let going = TableDescriptor { state: TableState::Dropping, ..descriptor.clone() };
    draft.put(&RowKey::Table(going.id), &going);
    draft.delete(&RowKey::TableName(name.to_owned()));
    Ok((going.id, draft.finish()?))
}

/// Removes the rows of a table that is being dropped: up to [`REMOVALS_MAX`] shard rows at a time, and with the last of
/// them the table's own. Nodes destroy the replicas of shards that are gone. Repeat until the table's row is gone.
pub fn finish_drop(directory: &Directory, table: TableId) -> Result<Write> {
    match directory.descriptor(table) {
        None => return Err(Error::new(Reason::UnknownTable, format!("there is no table {table}"))),
        Some(row) if row.state != TableState::Dropping => {
            return Err(Error::invalid(format!("table {} is not being dropped", row.name)));
        }
        Some(_) => {}
    }
    let mut draft = Draft::new(directory);
    let mut shards = directory.shards_of(table);
    for shard in shards.by_ref().take(REMOVALS_MAX) {
        draft.delete(&RowKey::Shard(table, shard.id));
    }
    if shards.next().is_some() {
        draft.rely_on(&RowKey::Table(table));
    } else {
        draft.delete(&RowKey::Table(table));
    }
    draft.finish()
}
