//! What a recovery from a lost quorum leaves to be done once the nodes run again (see the module `recover`).
//!
//! The leader of shard 0 notes the recovery in the catalog, from the record that every node keeps which took part. Then it has the
//! row of each recovered shard name the one replica that its group consists of, as soon as that leads and no merge or split of
//! it is left to be noted, with new replicas wanted beside it; from there on the group fills up like any. At last it lets the
//! lost nodes go, when nothing is wanted on them.
//!
//! Each step is one write of the catalog that strikes itself off the list, so another leader goes on where this one stopped.

use std::collections::{BTreeMap, BTreeSet};

use super::Control;
use crate::catalog::{Directory, RecoveryRow, change};
use crate::node::{NodeReport, ShardReport};
use crate::types::{NodeId, Result, ShardId};

/// How long after it a recovery is mentioned in the cluster's status, in milliseconds: a week.
const MENTIONED_MS: u64 = 7 * 24 * 3_600 * 1_000;

/// Does what is next. On shard 0's leader.
pub(super) async fn look(control: &Control) -> Result<()> {
    if let Some(mine) = control.node.recovery() {
        let known = |row: &RecoveryRow| row.made_ms >= mine.made_ms;
        if !control.node.directory().recovery().is_some_and(known) {
            control.change(|directory| Ok(change::note_recovery(directory, mine)?.map(|write| ((), write)))).await?;
            tracing::warn!(lost = mine.lost.len(), shards = mine.shards.len(), "recovered from a lost quorum");
        }
    }
    let directory = control.node.directory();
    let Some(row) = directory.recovery() else { return Ok(()) };
    adopt(control, row).await?;
    if row.shards.is_empty() {
        dismiss(control, &directory, row).await?;
    }
    Ok(())
}

/// Has the rows of recovered shards say so whose heirs lead.
async fn adopt(control: &Control, row: &RecoveryRow) -> Result<()> {
    let mut reports: BTreeMap<NodeId, NodeReport> = BTreeMap::new();
    for node in row.shards.iter().map(|recovered| recovered.heir.node).collect::<BTreeSet<_>>() {
        if let Some(report) = control.report_of(node).await {
            reports.insert(node, report);
        }
    }
    for recovered in &row.shards {
        let heir = recovered.heir;
        let report = reports.get(&heir.node).into_iter().flat_map(|report| &report.shards);
        let mut mine = report.filter(|report| report.shard == recovered.shard && report.replica == heir.id);
        // Before that its epoch is not known: what it had not applied may split it.
        let leads = |report: &&ShardReport| report.part == "leader" && report.members_applied;
        let Some(led) = mine.find(leads) else { continue };
        let adopted = control
            .change(|directory| {
                Ok(change::adopt_survivor(directory, recovered.shard, led.epoch)?.map(|write| ((), write)))
            })
            .await?;
        if adopted.is_some() {
            tracing::info!(shard = %recovered.shard, replica = %heir.id, node = %heir.node, "a shard goes on from one replica");
        }
    }
    Ok(())
}

/// Lets lost nodes go that hold nothing any more.
async fn dismiss(control: &Control, directory: &Directory, row: &RecoveryRow) -> Result<()> {
    for lost in &row.lost {
        let there = directory.node(lost.node).is_some_and(|node| node.incarnation == lost.incarnation);
        let mut others = directory.shards().filter(|shard| shard.id != ShardId::SYSTEM);
        if !there || others.any(|shard| shard.replica_on(lost.node).is_some()) {
            continue;
        }
        let now_ms = control.node.clock().wall_ms();
        let hears = |node| control.node.hears(node);
        control
            .change(|directory| Ok(change::remove_node(directory, lost.node, now_ms, hears)?.map(|write| ((), write))))
            .await?;
        tracing::info!(node = %lost.node, "a lost node was let go");
    }
    Ok(())
}

/// What the cluster's status says of the last recovery.
pub(super) fn notes(directory: &Directory, now_ms: u64) -> Vec<String> {
    let recent = |row: &&RecoveryRow| now_ms.saturating_sub(row.made_ms) < MENTIONED_MS;
    let Some(row) = directory.recovery().filter(recent) else { return Vec::new() };
    let names = row.lost.iter().map(|lost| lost.node.0.to_string()).collect::<Vec<_>>().join(", ");
    let minutes = now_ms.saturating_sub(row.made_ms) / 60_000;
    let mut notes = vec![format!(
        "the cluster was recovered from a lost quorum {minutes} minutes ago, without nodes {names}: acknowledged writes may be \
         missing"
    )];
    if !row.shards.is_empty() {
        notes.push(format!("{} recovered shards are still to be led by the replica they go on from", row.shards.len()));
    }
    notes
}
