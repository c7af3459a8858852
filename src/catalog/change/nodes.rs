//! Founding a cluster, and nodes that come, move and come back.

use super::replicas::{known, mend_into, relieve_system_into, system_replica_into};
use super::{Draft, Write};
use crate::catalog::directory::Directory;
use crate::catalog::rows::{BalancingRow, ClusterRow, Counter, LeftRow, NodeRow, RowKey, Standing};
use crate::keyspace::Layout;
use crate::types::{
    ClusterId, Error, Incarnation, NodeId, Partitioning, Reason, ReplicaDescriptor, ReplicaId, ReplicaRole, Result,
    ShardDescriptor, ShardId, TableDescriptor, TableId, TableState,
};

/// The name under which the catalog can be read.
pub const SYSTEM_TABLE: &str = "system";

/// Voters of shard 0: five outlive two failures; more would only make each change wait for more disks.
pub const SYSTEM_VOTERS_MAX: usize = 5;

/// How long former states of the catalog stay readable, in milliseconds: a week, to answer "what changed?".
pub const SYSTEM_HISTORY_MS: u64 = 7 * 24 * 3_600 * 1_000;

/// Ids below these are never given out by counters: table 0 and shard 0 are the catalog itself.
const FIRST_TABLE: u64 = 1;
const FIRST_SHARD: u64 = 1;
const FIRST_REPLICA: u64 = 1;

/// Shard 0 of a new cluster: all of table 0, with a replica on each founder. The same for every order of the founders.
pub fn system_shard(founders: &[NodeRow]) -> ShardDescriptor {
    let mut founders: Vec<&NodeRow> = founders.iter().collect();
    founders.sort_by_key(|node| node.id);
    let replicas: Vec<ReplicaDescriptor> = (FIRST_REPLICA..)
        .zip(founders)
        .enumerate()
        .map(|(number, (id, node))| ReplicaDescriptor {
            id: ReplicaId(id),
            node: node.id,
            incarnation: node.incarnation,
            role: if number < SYSTEM_VOTERS_MAX { ReplicaRole::Voter } else { ReplicaRole::Learner },
        })
        .collect();
    let voters = replicas.iter().filter(|replica| replica.role == ReplicaRole::Voter);
    let founders = voters.map(|replica| replica.id).collect();
    let (start, end) = Layout::system().table_range();
    let range = (start.to_vec(), end.to_vec());
    ShardDescriptor { founders, ..ShardDescriptor::new(ShardId::SYSTEM, TableId::SYSTEM, range, replicas) }
}

/// The first write of a cluster: who it is, its founders, and shard 0 itself. Takes effect once, on an empty catalog.
pub fn found_cluster(cluster: ClusterId, created_ms: u64, founders: &[NodeRow]) -> Result<Write> {
    if founders.is_empty() {
        return Err(Error::invalid("a cluster is founded by one node at least"));
    }
    let empty = Directory::empty();
    let mut draft = Draft::new(&empty);
    draft.put(&RowKey::Cluster, &ClusterRow { id: cluster, created_ms });
    let mut nodes: Vec<&NodeRow> = founders.iter().collect();
    nodes.sort_by_key(|node| node.id);
    for pair in nodes.windows(2) {
        if pair[0].id == pair[1].id {
            return Err(Error::new(Reason::NodeIdTaken, format!("two founders call themselves {}", pair[0].id)));
        }
    }
    for node in nodes {
        draft.put(&RowKey::Node(node.id), node);
    }
    let shard = system_shard(founders);
    let table = TableDescriptor {
        id: TableId::SYSTEM,
        name: SYSTEM_TABLE.to_owned(),
        partitioning: Partitioning::Range { group_delimiter: None },
        replication: SYSTEM_VOTERS_MAX as u32,
        read_replicas: 0,
        read_replica_zone: None,
        history_ms: SYSTEM_HISTORY_MS,
        state: TableState::Ready,
        view: None,
    };
    draft.put(&RowKey::Table(table.id), &table);
    draft.put(&RowKey::TableName(table.name.clone()), &table.id);
    draft.put(&RowKey::Shard(shard.table, shard.id), &shard);
    draft.counters.insert(Counter::Table, FIRST_TABLE);
    draft.counters.insert(Counter::Shard, FIRST_SHARD);
    draft.counters.insert(Counter::Replica, FIRST_REPLICA + shard.replicas.len() as u64);
    draft.finish()
}

/// What to write when a node asks to be let in, after whoever held its id was looked for: `gone` is the incarnation
/// that was not to be found, whose place it may take. None if there is nothing to write.
///
/// `CONFLICT` if by now another one holds the id: it has to be looked for first, since it may be alive, or be this very
/// node's start before the last.
pub fn admit_node(directory: &Directory, row: &NodeRow, gone: Option<Incarnation>) -> Result<Option<Write>> {
    match directory.node(row.id) {
        Some(known) if known.incarnation == row.incarnation => join_node(directory, row),
        None => join_node(directory, row),
        Some(known) if Some(known.incarnation) == gone => replace_incarnation(directory, row).map(Some),
        Some(_) => Err(Error::new(
            Reason::Conflict,
            format!("{} changed hands while its holder was being looked for; try again", row.id),
        )),
    }
}

/// A node joins, or says what has changed about it (addresses, zone, version). A new node gets a replica of shard 0
/// in the same write. None if there is nothing to write.
///
/// `NODE_ID_TAKEN` if the id belongs to another data directory: see [`replace_incarnation`].
pub fn join_node(directory: &Directory, row: &NodeRow) -> Result<Option<Write>> {
    let mut draft = Draft::new(directory);
    let row = match directory.node(row.id) {
        None if directory.left(row.id).is_some_and(|left| left.incarnation == row.incarnation) => {
            return Err(Error::new(
                Reason::NodeIdTaken,
                format!(
                    "the data directory of {} was decommissioned, and what it held has moved to other nodes: start the \
                     node with an empty directory to have it join again",
                    row.id
                ),
            ));
        }
        None => row.clone(),
        Some(known) if known.incarnation == row.incarnation => {
            NodeRow { joined_ms: known.joined_ms, standing: known.standing, ..row.clone() }
        }
        Some(_) => {
            return Err(Error::new(
                Reason::NodeIdTaken,
                format!("{} belongs to another data directory: give the node an id of its own", row.id),
            ));
        }
    };
    if directory.node(row.id) != Some(&row) {
        draft.put(&RowKey::Node(row.id), &row);
    }
    system_replica_into(&mut draft, &row)?;
    if draft.is_empty() { Ok(None) } else { draft.finish().map(Some) }
}

/// A node whose data directory was wiped comes back under its id: its row gets the new incarnation, and each replica
/// wanted on the old one is replaced by a new replica, of the same role, on the new one (it is no founder, so it
/// joins as a learner and is promoted once it has caught up).
///
/// At most [`REPLACEMENTS_MAX`](super::REPLACEMENTS_MAX) shards are mended by this write, shard 0 first;
/// [`mend_node`](super::mend_node) goes on until nothing is left.
pub fn replace_incarnation(directory: &Directory, row: &NodeRow) -> Result<Write> {
    match directory.node(row.id) {
        None => return Err(Error::new(Reason::UnknownNode, format!("{} has never joined: let it join", row.id))),
        Some(known) if known.incarnation == row.incarnation => {
            return Err(Error::invalid(format!("{} runs on the data directory the catalog knows", row.id)));
        }
        Some(_) => {}
    }
    // What was wanted of the node is wanted of it still.
    let standing = directory.node(row.id).map_or_else(Standing::default, |known| known.standing);
    let row = &NodeRow { standing, ..row.clone() };
    let mut draft = Draft::new(directory);
    draft.put(&RowKey::Node(row.id), row);
    mend_into(&mut draft, row);
    system_replica_into(&mut draft, row)?;
    draft.finish()
}

/// Wants something else of a node. None if it is wanted already.
pub fn set_standing(directory: &Directory, node: NodeId, standing: Standing) -> Result<Option<Write>> {
    let known = known(directory, node)?;
    if known.standing == standing {
        return Ok(None);
    }
    let mut draft = Draft::new(directory);
    draft.put(&RowKey::Node(node), &NodeRow { standing, ..known.clone() });
    draft.finish().map(Some)
}

/// Lets a node go that holds nothing any more but its copy of the catalog. Another takes its vote in shard 0 if one
/// without a vote is there; `hears` tells which nodes are alive. None if it has gone.
///
/// `INVALID_REQUEST` while something is wanted on it, or if it is the last node.
pub fn remove_node(
    directory: &Directory,
    node: NodeId,
    left_ms: u64,
    hears: impl Fn(NodeId) -> bool,
) -> Result<Option<Write>> {
    if directory.node(node).is_none() && directory.left(node).is_some() {
        return Ok(None);
    }
    let row = known(directory, node)?;
    let on_it = |shard: &ShardDescriptor| {
        let child = shard.split.as_ref().is_some_and(|split| split.replicas.iter().any(|child| child.node == node));
        shard.replica_on(node).is_some() || child
    };
    let held = directory.shards().filter(|shard| shard.id != ShardId::SYSTEM && on_it(shard)).count();
    if held > 0 {
        return Err(Error::invalid(format!(
            "{node} is still to hold {held} replicas: let it drain first (`trivet node drain {}`)",
            node.0
        )));
    }
    let mut draft = Draft::new(directory);
    relieve_system_into(&mut draft, node, hears)?;
    draft.delete(&RowKey::Node(node));
    draft.put(&RowKey::Left(node), &LeftRow { incarnation: row.incarnation, left_ms });
    draft.finish().map(Some)
}

/// Has shards moved about unasked, or not. None if it is so.
pub fn set_balancing(directory: &Directory, paused: bool) -> Result<Option<Write>> {
    if directory.balancing_is_paused() == paused {
        return Ok(None);
    }
    let mut draft = Draft::new(directory);
    draft.put(&RowKey::Balancing, &BalancingRow { paused });
    draft.finish().map(Some)
}
