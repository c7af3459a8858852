//! The verbs that concern the cluster as a whole. Any node takes them; a healthy one is asked, and another one when it
//! fails without effect.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::backoff::Backoff;
use super::core::Core;
use super::{Connection, metrics};
use crate::runtime::{self, Instant};
use crate::types::{Error, Kind, NodeId, Reason, Result, ShardId};
use crate::wire::admin::{
    BalanceReport, ChecksumReport, ClusterStatus, NewTable, NewView, ShardDetails, SplitPoint, SplitReport,
    TableDetails, Topology, ViewDetails, ViewVerification,
};

/// Pauses between rounds over all nodes.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LONGEST: Duration = Duration::from_millis(500);
/// Longest wait for one node with a question that any other answers as well.
const QUESTION_MAX: Duration = Duration::from_secs(2);
/// Longest wait until this client itself knows of a table that it created or dropped.
const SETTLE_MAX: Duration = Duration::from_secs(2);

/// A handle on the cluster's own verbs.
#[derive(Clone)]
pub struct Admin {
    core: Arc<Core>,
    patience: Duration,
}

impl Admin {
    pub(super) fn new(core: Arc<Core>) -> Admin {
        let patience = core.options.admin_deadline;
        Admin { core, patience }
    }

    /// The same verbs with this much time for each.
    pub fn within(&self, patience: Duration) -> Admin {
        Admin { patience, ..self.clone() }
    }

    /// All that is needed for routing, as some node knows it now.
    pub async fn topology(&self) -> Result<Topology> {
        self.ask(Some(QUESTION_MAX), |node, until| async move { node.topology(until).await }).await
    }

    /// The state of the cluster as some node sees it.
    pub async fn status(&self) -> Result<ClusterStatus> {
        self.ask(Some(QUESTION_MAX), |node, until| async move { node.status(until).await }).await
    }

    /// All tables with their shards.
    pub async fn tables(&self) -> Result<Vec<TableDetails>> {
        self.ask(Some(QUESTION_MAX), |node, until| async move { node.list_tables(until).await }).await
    }

    /// A table with its shards.
    pub async fn table(&self, name: &str) -> Result<TableDetails> {
        self.ask(Some(QUESTION_MAX), |node, until| async move { node.describe_table(name, until).await }).await
    }

    /// A shard as its leader sees it.
    pub async fn shard(&self, shard: ShardId) -> Result<ShardDetails> {
        self.ask(Some(QUESTION_MAX), |node, until| async move { node.describe_shard(shard, until).await }).await
    }

    /// The checksums of a shard's content on all its replicas at one applied position.
    pub async fn checksum(&self, shard: ShardId) -> Result<ChecksumReport> {
        self.ask(None, |node, until| async move { node.checksum(shard, until).await }).await
    }

    /// Creates a table and returns when every shard has a leader and this client knows the table.
    ///
    /// Errors: `TABLE_EXISTS`, `NOT_ENOUGH_NODES`, `INVALID_REQUEST`, and `RESULT_UNDETERMINED` when the node went
    /// away over it: then ask [`Admin::table`].
    pub async fn create_table(&self, table: NewTable) -> Result<TableDetails> {
        let asked = &table;
        let created = self
            .ask(None, |node, until| {
                let table = asked.clone();
                async move { node.create_table(table, until).await }
            })
            .await?;
        if !table.dry_run {
            self.settle(&table.name, true).await;
        }
        Ok(created)
    }

    /// Drops a table and all its data.
    pub async fn drop_table(&self, name: &str, dry_run: bool) -> Result<()> {
        self.ask(None, |node, until| async move { node.drop_table(name, dry_run, until).await }).await?;
        if !dry_run {
            self.settle(name, false).await;
        }
        Ok(())
    }

    /// All views, without what they lag behind.
    pub async fn views(&self) -> Result<Vec<ViewDetails>> {
        self.ask(Some(QUESTION_MAX), |node, until| async move { node.list_views(until).await }).await
    }

    /// A view, and what it lags behind; for that all its shards and sources are asked.
    pub async fn view(&self, name: &str) -> Result<ViewDetails> {
        self.ask(None, |node, until| async move { node.describe_view(name, until).await }).await
    }

    /// Creates a view and returns when every shard has a leader and this client knows the view. It is read as a table is, and
    /// begins to take in what its sources hold: [`Admin::view`] tells when it is ready. [`Admin::drop_table`] drops it.
    ///
    /// With [`NewView::replace`] the view of that name is changed: another form is built beside it as `NAME.next`, and takes its
    /// name when it is ready. Until then reads get the former one; dropping `NAME.next` gives the change up.
    ///
    /// Errors: `INVALID_REQUEST` for a definition that is none, `TABLE_EXISTS` (also when a change of the view is under way),
    /// `UNKNOWN_TABLE` for a source or for what is to be replaced, `NOT_ENOUGH_NODES`, and `RESULT_UNDETERMINED` when the node
    /// went away over it: then ask [`Admin::view`].
    pub async fn create_view(&self, view: NewView) -> Result<ViewDetails> {
        let asked = &view;
        let created = self
            .ask(None, |node, until| {
                let view = asked.clone();
                async move { node.create_view(view, until).await }
            })
            .await?;
        if !view.dry_run {
            self.settle(&created.table.table.name, true).await;
        }
        Ok(created)
    }

    /// Has the upkeep of a view rest, or go on.
    pub async fn pause_view(&self, name: &str, paused: bool) -> Result<ViewDetails> {
        self.ask(None, |node, until| async move { node.pause_view(name, paused, until).await }).await
    }

    /// Compares a view with its sources, all of it or one shard, and sets right what differs if that is wanted. It reads
    /// whole tables: ask [`Admin::within`] for some minutes, of which a node grants up to ten.
    ///
    /// Errors: `VIEW_BEHIND` while it is being built, `UNKNOWN_SHARD`.
    pub async fn verify_view(&self, name: &str, shard: Option<ShardId>, repair: bool) -> Result<ViewVerification> {
        self.ask(None, |node, until| async move { node.verify_view(name, shard, repair, until).await }).await
    }

    /// Hands a shard's leadership to the voter on node `to`.
    pub async fn transfer_leader(&self, shard: ShardId, to: NodeId) -> Result<()> {
        self.ask(None, |node, until| async move { node.transfer_leader(shard, to, until).await }).await
    }

    /// Splits a shard in two. Asked again after it was done, it splits the left part again unless `at` names the very
    /// place: then it answers as before.
    pub async fn split_shard(&self, shard: ShardId, at: SplitPoint, dry_run: bool) -> Result<SplitReport> {
        let asked = &at;
        self.ask(None, |node, until| {
            let at = asked.clone();
            async move { node.split_shard(shard, at, dry_run, until).await }
        })
        .await
    }

    /// Wants shard `left` to take over its right neighbour; it is done when `right` is unknown to [`Admin::shard`].
    pub async fn merge_shards(&self, left: ShardId, right: ShardId, dry_run: bool) -> Result<ShardDetails> {
        self.ask(None, |node, until| async move { node.merge_shards(left, right, dry_run, until).await }).await
    }

    /// Wants a shard's replica on node `from` to be on node `to`; [`Admin::shard`] tells when it is settled there.
    pub async fn move_shard(&self, shard: ShardId, from: NodeId, to: NodeId, dry_run: bool) -> Result<ShardDetails> {
        self.ask(None, |node, until| async move { node.move_shard(shard, from, to, dry_run, until).await }).await
    }

    /// How evenly the cluster is spread, what moves and what would be moved next.
    pub async fn balance(&self) -> Result<BalanceReport> {
        self.ask(None, |node, until| async move { node.balance(until).await }).await
    }

    /// Has shards moved about unasked, or not.
    pub async fn set_balancing(&self, paused: bool) -> Result<()> {
        self.ask(None, |node, until| async move { node.set_balancing(paused, until).await }).await
    }

    /// Wants something else of a node: `serving`, `spare` or `draining`. Tells how things stand then.
    pub async fn set_standing(&self, node: NodeId, standing: &str, dry_run: bool) -> Result<BalanceReport> {
        self.ask(None, |asked, until| async move { asked.set_standing(node, standing, dry_run, until).await }).await
    }

    /// Lets a node go that holds nothing any more but its copy of the catalog.
    pub async fn decommission(&self, node: NodeId, dry_run: bool) -> Result<()> {
        self.ask(None, |asked, until| async move { asked.decommission(node, dry_run, until).await }).await
    }

    /// Asks the nodes in turn until one answers, or refuses for a reason that another node would give as well. With
    /// `attempt_max` a node that does not answer in that time is left for another; such questions change nothing.
    async fn ask<T, F, Fut>(&self, attempt_max: Option<Duration>, question: F) -> Result<T>
    where
        F: Fn(Connection, Instant) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let deadline = self.core.clock.now() + self.patience;
        let mut pauses = Backoff::new(PAUSE_FIRST, PAUSE_LONGEST);
        let mut last: Option<Error> = None;
        loop {
            for node in self.core.topologies.connections() {
                let now = self.core.clock.now();
                if now >= deadline {
                    break;
                }
                let until = attempt_max.map_or(deadline, |max| deadline.min(now + max));
                match question(node, until).await {
                    Ok(answer) => return Ok(answer),
                    Err(error) => match error.kind() {
                        Kind::Redirect | Kind::Refresh | Kind::BackOff | Kind::Unavailable => last = Some(error),
                        _ => return Err(error),
                    },
                }
                ::metrics::counter!(metrics::RETRIES).increment(1);
            }
            let pause = pauses.next();
            if self.core.clock.now() + pause >= deadline {
                return Err(
                    last.unwrap_or_else(|| Error::new(Reason::DeadlineExceeded, "no time was left to ask: allow more"))
                );
            }
            runtime::sleep(pause).await;
        }
    }

    /// Waits until this client's own map has the table, or has it no more.
    async fn settle(&self, name: &str, there: bool) {
        let topologies = &self.core.topologies;
        let deadline = self.core.clock.now() + SETTLE_MAX;
        while self.core.clock.now() < deadline {
            if topologies.current().as_ref().is_some_and(|map| map.table(name).is_some() == there) {
                return;
            }
            let seen = topologies.ended();
            topologies.newer(seen, deadline).await;
        }
    }
}
