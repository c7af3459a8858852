//! Tables that are created and dropped.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;

use super::{CREATE_TABLE, Control, DROP_TABLE, VERB_TIMEOUT};
use crate::catalog::change::{self, Creation};
use crate::catalog::{Directory, Standing, TableEntry};
use crate::node::{NodeReport, ask};
use crate::placement::{self, Candidate};
use crate::runtime::{Instant, sleep};
use crate::types::{
    Error, NodeId, Partitioning, Reason, Result, ShardDescriptor, ShardId, TableDescriptor, TableId, Timestamp,
    ViewDescriptor,
};
use crate::wire::admin::{HISTORY_MS_DEFAULT, NewTable, ShardDetails, TableDetails};

/// Voters per shard when nothing is said, if there are nodes enough.
const REPLICATION_DEFAULT: u32 = 3;
/// How far above the mean a node's replicas may be: (1 + this) times it. None: what is placed unevenly would be moved.
const IMBALANCE: f64 = 0.0;
/// How long the creator of a table waits for its shards to elect leaders.
const LEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long who drops a table waits for the other nodes to hear of it.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a node is waited for that was not heard lately: it may be gone.
const UNHEARD_TIMEOUT: Duration = Duration::from_millis(300);
/// Between looks.
const LOOK_WAIT: Duration = Duration::from_millis(50);

/// A wish for a table, between nodes.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct CreateAsk {
    name: String,
    partitioning: Partitioning,
    shards: u32,
    split_points: Vec<Vec<u8>>,
    replication: Option<u32>,
    #[serde(default)]
    read_replicas: u32,
    #[serde(default)]
    read_replica_zone: Option<String>,
    history_ms: Option<u64>,
    dry_run: bool,
    /// A view: its definition in canonical form, and the names of its sources.
    #[serde(default)]
    definition: Option<String>,
    #[serde(default)]
    sources: Vec<String>,
    /// A view that is there under this name gives way to this one when it is ready.
    #[serde(default)]
    replaces: bool,
}

impl CreateAsk {
    pub(super) fn of(wish: NewTable) -> CreateAsk {
        CreateAsk {
            name: wish.name,
            partitioning: wish.partitioning,
            shards: wish.shards,
            split_points: wish.split_points.iter().map(|point| point.to_vec()).collect(),
            replication: wish.replication,
            read_replicas: wish.read_replicas,
            read_replica_zone: wish.read_replica_zone,
            history_ms: Some(wish.history_ms),
            dry_run: wish.dry_run,
            definition: None,
            sources: Vec::new(),
            replaces: false,
        }
    }

    /// The same for a view of this definition over these tables, in the place of the view of this name if that is wanted: then it
    /// is held as that one is, where nothing else is said.
    pub(super) fn deriving(
        self,
        definition: String,
        sources: Vec<String>,
        history_ms: Option<u64>,
        replaces: bool,
    ) -> CreateAsk {
        CreateAsk { definition: Some(definition), sources, history_ms, replaces, ..self }
    }

    /// The view whose place it is to take.
    fn former<'a>(&self, directory: &'a Directory) -> Result<Option<&'a TableDescriptor>> {
        Ok(match self.replaces {
            true => Some(&change::view_named(directory, &self.name)?.descriptor),
            false => None,
        })
    }

    /// What makes it a view, by the ids that its sources have now.
    fn view(&self, directory: &Directory, replaces: Option<TableId>) -> Result<Option<ViewDescriptor>> {
        let Some(definition) = self.definition.clone() else { return Ok(None) };
        let mut sources = Vec::with_capacity(self.sources.len());
        for name in &self.sources {
            let source = directory.table_by_name(name).ok_or_else(|| {
                let text = format!("there is no table '{name}' to derive a view from; `trivet table list` shows them");
                Error::new(Reason::UnknownTable, text)
            })?;
            sources.push(source.descriptor.id);
        }
        Ok(Some(ViewDescriptor { definition, sources, replaces, ..ViewDescriptor::default() }))
    }
}

/// What was created, between nodes.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Created {
    table: TableDescriptor,
    shards: Vec<ShardDescriptor>,
    revision: Timestamp,
}

/// A wish to drop a table, between nodes.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct DropAsk {
    name: String,
    dry_run: bool,
}

impl Control {
    /// Creates a table; returns when every shard has a leader and every living node knows the table. When the shards
    /// are slow to elect leaders it returns all the same, after a while, naming the leaders there are.
    ///
    /// Errors: `TABLE_EXISTS`, `NOT_ENOUGH_NODES`, `INVALID_REQUEST`.
    pub async fn create_table(&self, wish: NewTable) -> Result<TableDetails> {
        self.create_asked(CreateAsk::of(wish)).await
    }

    pub(super) async fn create_asked(&self, question: CreateAsk) -> Result<TableDetails> {
        let dry_run = question.dry_run;
        let created: Created = self.node.ask_system_leader_for(CREATE_TABLE, &question, VERB_TIMEOUT).await?;
        let mut details =
            TableDetails { table: created.table, shards: created.shards.iter().map(ShardDetails::of).collect() };
        if dry_run {
            return Ok(details);
        }
        self.wait_until_served(&created.shards, created.revision, &mut details).await;
        Ok(details)
    }

    /// Creates a table on shard 0's leader.
    pub(super) async fn create_here(&self, wish: CreateAsk) -> Result<Created> {
        let build = |directory: &Directory| -> Result<Creation> {
            let serving = directory.nodes().filter(|row| row.standing.is_serving()).map(|row| row.id);
            let (living, silent): (Vec<NodeId>, Vec<NodeId>) = serving.partition(|&node| self.node.hears(node));
            let draining = directory.nodes().filter(|row| row.standing == Standing::Draining).map(|row| row.id);
            let draining: Vec<NodeId> = draining.filter(|&node| self.node.hears(node)).collect();
            let serving = (living.len() + silent.len()).max(1) as u32;
            let members = serving + draining.len() as u32;
            let former = wish.former(directory)?;
            let replication = wish.replication.or(former.map(|former| former.replication));
            let replication = replication.unwrap_or(REPLICATION_DEFAULT.min(members));
            let history_ms = wish.history_ms.or(former.map(|former| former.history_ms));
            let hosts = Hosts::choose(living, draining, silent, replication, wish.read_replicas)?;
            let new = change::NewTable {
                name: if wish.replaces { change::name_of_next(&wish.name) } else { wish.name.clone() },
                partitioning: wish.partitioning.clone(),
                shards: if wish.shards == 0 { serving } else { wish.shards },
                split_points: wish.split_points.iter().map(|point| Bytes::copy_from_slice(point)).collect(),
                replication,
                read_replicas: wish.read_replicas,
                read_replica_zone: wish.read_replica_zone.clone(),
                history_ms: history_ms.unwrap_or(HISTORY_MS_DEFAULT),
                view: wish.view(directory, former.map(|former| former.id))?,
            };
            change::create_table(directory, &new, |shards| place(directory, &hosts, shards, &new))
        };
        if wish.dry_run {
            let Creation { table, shards, .. } = build(&self.node.directory())?;
            return Ok(Created { table, shards, revision: Timestamp::ZERO });
        }
        let created = self
            .change(|directory| {
                let Creation { table, shards, write } = build(directory)?;
                Ok(Some(((table, shards), write)))
            })
            .await?;
        let (table, shards) = created.ok_or_else(|| Error::internal("a new table is always a change"))?;
        tracing::info!(table = %table.id, shards = shards.len(), "created a table");
        Ok(Created { table, shards, revision: self.node.directory().revision() })
    }

    async fn wait_until_served(&self, shards: &[ShardDescriptor], revision: Timestamp, details: &mut TableDetails) {
        let deadline: Instant = self.node.clock().now() + LEADERS_TIMEOUT;
        self.node.wait_for_revision(revision).await;
        let mut missing: BTreeSet<ShardId> = shards.iter().map(|shard| shard.id).collect();
        loop {
            let nodes: Vec<NodeId> = self.node.directory().nodes().map(|row| row.id).collect();
            let reports = join_all(nodes.into_iter().map(|node| self.report_within(node))).await;
            for report in reports.iter().flatten() {
                for shard in report.shards.iter().filter(|shard| shard.part == "leader") {
                    missing.remove(&shard.shard);
                    if let Some(known) = details.shards.iter_mut().find(|known| known.id == shard.shard) {
                        known.leader = Some(report.node);
                    }
                }
            }
            let all_know = reports.iter().flatten().all(|report| report.revision >= revision);
            if missing.is_empty() && all_know {
                return;
            }
            if self.node.clock().now() >= deadline {
                // The table exists; an error would have its creator try again and be told so.
                tracing::warn!(?missing, "shards of a new table have not elected leaders yet");
                return;
            }
            sleep(LOOK_WAIT).await;
        }
    }

    /// Drops a table and all its data; returns its id, which is never used again.
    pub async fn drop_table(&self, name: &str, dry_run: bool) -> Result<TableId> {
        let question = DropAsk { name: name.to_owned(), dry_run };
        let (id, revision): (TableId, Timestamp) =
            self.node.ask_system_leader_for(DROP_TABLE, &question, VERB_TIMEOUT).await?;
        if !dry_run {
            self.node.wait_for_revision(revision).await;
            self.wait_until_known(revision).await;
        }
        Ok(id)
    }

    /// Waits until every living node knows the catalog of `revision`, a while at most: whoever asks any of them afterwards, by the
    /// name of the table alone, is not to reach what was dropped.
    async fn wait_until_known(&self, revision: Timestamp) {
        let deadline: Instant = self.node.clock().now() + KNOWN_TIMEOUT;
        loop {
            let nodes: Vec<NodeId> = self.node.directory().nodes().map(|row| row.id).collect();
            let reports = join_all(nodes.into_iter().map(|node| self.report_within(node))).await;
            if reports.iter().flatten().all(|report| report.revision >= revision) {
                return;
            }
            if self.node.clock().now() >= deadline {
                tracing::warn!(%revision, "not every node has heard of a change of the catalog yet");
                return;
            }
            sleep(LOOK_WAIT).await;
        }
    }

    /// What a node tells of itself; one that was not heard lately is not waited for long.
    async fn report_within(&self, node: NodeId) -> Option<NodeReport> {
        // A node hears only those that it asks something, and this one may have had nothing to ask the new leaders.
        let patience = if self.node.hears(node) { ask::ASK_TIMEOUT } else { UNHEARD_TIMEOUT };
        self.node.ask_for::<_, NodeReport>(node, ask::REPORT, &(), patience).await.ok()
    }

    /// Drops a table on shard 0's leader. Nodes destroy the replicas when they see it; the rows go later.
    pub(super) async fn drop_here(&self, wish: DropAsk) -> Result<(TableId, Timestamp)> {
        if wish.dry_run {
            let (id, _) = change::drop_table(&self.node.directory(), &wish.name)?;
            return Ok((id, Timestamp::ZERO));
        }
        let dropped = self.change(|directory| change::drop_table(directory, &wish.name).map(Some)).await?;
        let id = dropped.ok_or_else(|| Error::internal("dropping a table is always a change"))?;
        tracing::info!(table = %id, "dropping a table");
        Ok((id, self.node.directory().revision()))
    }

    /// A table with its shards, their leaders included as far as this node knows them: the one that had the name when it was asked
    /// for. So the catalog's leader is asked; what a node knows by itself, others may have dropped and created again.
    ///
    /// Errors: `UNKNOWN_TABLE`, and why the catalog could not be read.
    pub async fn describe_table(&self, name: &str) -> Result<TableDetails> {
        self.hear_newest().await?;
        let entry = self.node.table(name, self.node.clock().now() + VERB_TIMEOUT).await?;
        Ok(self.table_details(&entry))
    }

    /// All tables that serve; the system table only for those who route.
    pub fn tables(&self, with_system: bool) -> Vec<TableDetails> {
        let directory = self.node.directory();
        let wanted = |entry: &&std::sync::Arc<TableEntry>| with_system || entry.descriptor.id != TableId::SYSTEM;
        directory.tables().filter(wanted).map(|entry| self.table_details(entry)).collect()
    }

    pub(super) fn table_details(&self, entry: &TableEntry) -> TableDetails {
        TableDetails {
            table: entry.descriptor.clone(),
            shards: entry.shards.iter().map(|shard| self.details_of(shard)).collect(),
        }
    }

    /// A node's report, if it answers.
    pub(super) async fn report_of(&self, node: NodeId) -> Option<NodeReport> {
        self.node.ask(node, ask::REPORT, &()).await.ok()
    }
}

/// The nodes that may host what is new.
struct Hosts {
    /// Heard from lately. Those that drain are among them only where too few are left otherwise: they hold what is new as they
    /// hold what is there, until there is room elsewhere; copies that were never wanted would be missing for good.
    living: Vec<NodeId>,
    /// Not heard from, and needed all the same: a replica on a node that is away for a moment is there when the node is,
    /// and is replaced if it does not come back; a replica that was never wanted would be missing for good.
    silent: Vec<NodeId>,
}

impl Hosts {
    /// All that are heard, and as many others as are missing then, but never so many that a shard could lack a quorum.
    fn choose(
        mut living: Vec<NodeId>,
        draining: Vec<NodeId>,
        mut silent: Vec<NodeId>,
        replication: u32,
        read_replicas: u32,
    ) -> Result<Hosts> {
        let wanted = replication as usize + read_replicas as usize;
        let few = wanted.saturating_sub(living.len());
        living.extend(draining.into_iter().take(few));
        silent.truncate(wanted.saturating_sub(living.len()));
        if silent.len() > (replication.saturating_sub(1) / 2) as usize {
            let text = format!(
                "only {} of the {wanted} nodes that are to hold a copy can be reached now: try again when more are back, \
                 or ask for fewer copies",
                living.len()
            );
            return Err(Error::new(Reason::NotEnoughNodes, text));
        }
        Ok(Hosts { living, silent })
    }

    fn contains(&self, node: NodeId) -> bool {
        self.living.contains(&node) || self.silent.contains(&node)
    }
}

/// Chooses nodes for the replicas of new shards: those of the voters, then those of the learners.
fn place(
    directory: &Directory,
    hosts: &Hosts,
    shards: &[ShardId],
    wish: &change::NewTable,
) -> Result<Vec<Vec<NodeId>>> {
    let loads = directory.loads();
    let candidates: Vec<Candidate> = (directory.nodes())
        .filter(|row| hosts.contains(row.id))
        .map(|row| {
            let load = loads.get(&row.id).copied().unwrap_or_default();
            Candidate { node: row.id, zone: row.zone.clone(), capacity: 1, load: load.replicas, leaders: load.leaders }
        })
        .collect();
    let mut placed = placement::place(&candidates, shards, wish.replication as usize, IMBALANCE)?;
    for voters in &mut placed {
        // The first is to found the shard, and the others would wait for it.
        voters.sort_by_key(|node| hosts.silent.contains(node));
    }
    if wish.read_replicas > 0 {
        let voters: Vec<_> = shards.iter().copied().zip(placed.iter().cloned()).collect();
        let zone = wish.read_replica_zone.as_deref();
        let readers = placement::place_readers(&candidates, &voters, wish.read_replicas as usize, zone)?;
        placed.iter_mut().zip(readers).for_each(|(nodes, readers)| nodes.extend(readers));
    }
    Ok(placed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_placed_on_a_silent_node_only_where_none_else_is_left_and_a_quorum_is() {
        let nodes = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
        let choose = |living: &[u64], silent: &[u64], replication, read_replicas| {
            let chosen = Hosts::choose(nodes(living), vec![], nodes(silent), replication, read_replicas);
            chosen.map(|hosts| hosts.silent.iter().map(|node| node.0).collect::<Vec<_>>()).map_err(|error| error.reason)
        };
        assert_eq!(choose(&[1, 2, 3], &[4, 5], 3, 0), Ok(vec![]));
        assert_eq!(choose(&[1, 2], &[4, 5], 3, 0), Ok(vec![4]));
        assert_eq!(choose(&[1], &[4, 5], 3, 0), Err(Reason::NotEnoughNodes), "two of three would be silent");
        assert_eq!(choose(&[1, 2, 3], &[4, 5], 5, 0), Ok(vec![4, 5]));
        assert_eq!(choose(&[1, 2, 3], &[4, 5], 3, 1), Ok(vec![4]));
        assert_eq!(choose(&[1], &[2], 2, 0), Err(Reason::NotEnoughNodes), "both of two are a quorum");
        assert_eq!(
            choose(&[1, 2], &[], 3, 0),
            Ok(vec![]),
            "that there are too few at all is found where they are placed"
        );
    }

    #[test]
    fn nodes_that_drain_hold_what_is_new_only_where_too_few_are_left() {
        let nodes = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
        let choose = |living: &[u64], draining: &[u64], silent: &[u64]| {
            let hosts = Hosts::choose(nodes(living), nodes(draining), nodes(silent), 3, 0).expect("enough");
            (hosts.living, hosts.silent)
        };
        assert_eq!(choose(&[1, 2, 3], &[4], &[]), (nodes(&[1, 2, 3]), vec![]));
        assert_eq!(choose(&[1, 2], &[3, 4], &[]), (nodes(&[1, 2, 3]), vec![]));
        assert_eq!(choose(&[1, 2], &[3], &[4]), (nodes(&[1, 2, 3]), vec![]), "who is heard comes before who is not");
        assert_eq!(choose(&[1], &[3], &[4]), (nodes(&[1, 3]), nodes(&[4])));
    }
}
