//! What is wanted of nodes: to serve, to stand by, to drain, to leave; and whether shards are moved about unasked.

use super::{BALANCING, Control, DECOMMISSION, STANDING, VERB_TIMEOUT};
use crate::catalog::{Standing, change};
use crate::runtime::timeout;
use crate::types::{Error, NodeId, Reason, Result, Timestamp};

/// A wish about a node, between nodes.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct StandingAsk {
    node: NodeId,
    standing: Standing,
}

impl Control {
    /// Wants something else of a node; returns when that stands in the catalog, as this node knows it. What is to move
    /// because of it moves by and by.
    ///
    /// Errors: `UNKNOWN_NODE`.
    pub async fn set_standing(&self, node: NodeId, standing: Standing, dry_run: bool) -> Result<()> {
        if dry_run {
            return change::set_standing(&self.node.directory(), node, standing).map(|_| ());
        }
        let wish = StandingAsk { node, standing };
        let revision = self.node.ask_system_leader_for(STANDING, &wish, VERB_TIMEOUT).await?;
        self.hear_of(revision).await
    }

    /// Writes it, on shard 0's leader.
    pub(super) async fn set_standing_here(&self, wish: StandingAsk) -> Result<Timestamp> {
        let StandingAsk { node, standing } = wish;
        let set = self
            .change(|directory| Ok(change::set_standing(directory, node, standing)?.map(|write| ((), write))))
            .await?;
        if set.is_some() {
            tracing::info!(%node, standing = standing.as_str(), "something else is wanted of a node");
        }
        Ok(self.node.directory().revision())
    }

    /// Lets a node go that holds nothing any more but its copy of the catalog; its data directory may not come back.
    ///
    /// Errors: `UNKNOWN_NODE`; `INVALID_REQUEST` while it is still to hold something, and for the last node; `CONFLICT`
    /// while it is removing what has moved.
    pub async fn decommission(&self, node: NodeId, dry_run: bool) -> Result<()> {
        if dry_run {
            let hears = |other| self.node.hears(other);
            return change::remove_node(&self.node.directory(), node, 0, hears).map(|_| ());
        }
        let revision = self.node.ask_system_leader_for(DECOMMISSION, &node, VERB_TIMEOUT).await?;
        self.hear_of(revision).await
    }

    /// Writes it, on shard 0's leader.
    pub(super) async fn decommission_here(&self, node: NodeId) -> Result<Timestamp> {
        let hears = |other| self.node.hears(other);
        if change::remove_node(&self.node.directory(), node, 0, hears)?.is_some() && self.still_holds(node).await {
            return Err(Error::new(
                Reason::Conflict,
                format!("{node} is removing what has moved from it; try again in a moment"),
            ));
        }
        let now_ms = self.node.clock().wall_ms();
        let gone = self
            .change(|directory| {
                let hears = |other| self.node.hears(other);
                Ok(change::remove_node(directory, node, now_ms, hears)?.map(|write| ((), write)))
            })
            .await?;
        if gone.is_some() {
            tracing::info!(%node, "a node was decommissioned");
        }
        Ok(self.node.directory().revision())
    }

    /// Whether a node that answers has replicas that nobody wants on it any more.
    async fn still_holds(&self, node: NodeId) -> bool {
        let report = self.report_of(node).await;
        report.is_some_and(|report| report.shards.iter().any(|shard| shard.shard != crate::types::ShardId::SYSTEM))
    }

    /// Has shards moved about unasked, or not.
    pub async fn set_balancing(&self, paused: bool) -> Result<()> {
        let revision = self.node.ask_system_leader_for(BALANCING, &paused, VERB_TIMEOUT).await?;
        self.hear_of(revision).await
    }

    /// Writes it, on shard 0's leader.
    pub(super) async fn set_balancing_here(&self, paused: bool) -> Result<Timestamp> {
        let set =
            self.change(|directory| Ok(change::set_balancing(directory, paused)?.map(|write| ((), write)))).await?;
        if set.is_some() {
            tracing::info!(paused, "balancing");
        }
        Ok(self.node.directory().revision())
    }

    /// Waits until this node knows everything that was acknowledged of the catalog when it was asked. What it knows of a name may
    /// be of a table that was dropped since, and another may have the name.
    ///
    /// Errors: `NO_QUORUM`, `NOT_READY` if nobody can say what is newest, `TOO_STALE` if this node does not hear of it.
    pub(super) async fn hear_newest(&self) -> Result<()> {
        let newest = self.node.newest_revision().await?;
        timeout(VERB_TIMEOUT, self.node.wait_for_revision(newest)).await.ok_or_else(|| {
            let text = "this node does not hear what the catalog says now; ask another one";
            Error::new(Reason::TooStale, text)
        })
    }

    /// Waits until this node has heard of a change that was made.
    pub(super) async fn hear_of(&self, revision: Timestamp) -> Result<()> {
        timeout(VERB_TIMEOUT, self.node.wait_for_revision(revision))
            .await
            .ok_or_else(|| Error::new(Reason::ResultUndetermined, "it was done, but this node has not heard of it yet"))
    }
}
