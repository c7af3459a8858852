//! Carrying out one node's part of a plan: everything in one batch, so that a crash leaves it undone or done.

use super::collect::{Collected, refused};
use super::plan::Plan;
use crate::catalog::{RecoveredReplica, RecoveredShard, RecoveryRow};
use crate::node::recovery;
use crate::shard::Survivor;
use crate::storage::{Batch, Engine};
use crate::types::{ReplicaId, Result, ShardId, Timestamp};

/// How far the clock of the machine that made the plan may be ahead of that which carries it out, in milliseconds. What is
/// written later gets later timestamps than the plan's: one far ahead would make every request look old.
const AHEAD_MAX_MS: u64 = 60_000;

/// What becomes of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The shard.
    pub shard: ShardId,
    /// The replica it was.
    pub from: ReplicaId,
    /// The replica it is.
    pub to: ReplicaId,
    /// It keeps what it holds and is the only member of its group; else it begins empty and is sent everything.
    pub heir: bool,
}

/// What was done, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// This part had been carried out before.
    Before,
    /// These replicas were changed.
    Now(Vec<Change>),
}

/// Carries out a node's part of a plan; with `dry_run` it only says what it would do. Given again after a crash, it finds what
/// it had done. `now_ms` is now, in milliseconds since 1970.
///
/// Errors, which leave everything as it was: the store is of another cluster, of a node that the plan does not name, or it
/// changed since the plan was made; or one of the two machines' clocks is wrong.
pub fn apply(engine: &dyn Engine, plan: &Plan, now_ms: u64, dry_run: bool) -> Result<Applied> {
    if plan.recovery.made_ms > now_ms + AHEAD_MAX_MS {
        return Err(refused(
            "by the clock of this machine the plan is from the future: set the clocks of both right, and plan again",
        ));
    }
    let collected = Collected::from_store(engine)?;
    let mine = plan.part_of(&collected)?;
    if collected.recovery.as_ref().is_some_and(|recovery| recovery.id == plan.recovery.id) {
        return Ok(Applied::Before);
    }
    if collected.digest() != mine.digest {
        return Err(refused(format!(
            "the store of {} has changed since it was collected for this plan: was the node started meanwhile? Stop all \
             nodes, collect and plan again",
            collected.node
        )));
    }
    let now = Timestamp::from_millis(plan.recovery.made_ms);
    let mut batch = Batch::new();
    let mut changes = Vec::new();
    for survivor in Survivor::load_all(engine)? {
        let shard = survivor.record.shard;
        let Some(recovered) = plan.recovery.shards.iter().find(|recovered| recovered.shard == shard) else { continue };
        let Some((replica, heir)) = replica_here(recovered, &collected) else { continue };
        if heir {
            survivor.take_over(replica.id, replica.node, now, recovered.released, &mut batch);
        } else {
            survivor.begin_anew(replica.id, &mut batch);
        }
        changes.push(Change { shard, from: survivor.record.replica, to: replica.id, heir });
    }
    // Whom an earlier recovery gave up stays so; what that has left to be noted is in the plan or in the catalog.
    let given_up = collected.recovery.as_ref().map_or_else(|| plan.recovery.clone(), |it| plan.recovery.after(it));
    recovery::put(&RecoveryRow { shards: plan.recovery.shards.clone(), ..given_up }, &mut batch);
    if !dry_run {
        engine.write(batch)?;
        engine.sync()?;
    }
    Ok(Applied::Now(changes))
}

/// The replica that a recovered shard is to have on a node, and whether it is the heir.
fn replica_here(recovered: &RecoveredShard, node: &Collected) -> Option<(RecoveredReplica, bool)> {
    let here = |replica: &RecoveredReplica| replica.node == node.node && replica.incarnation == node.incarnation;
    if here(&recovered.heir) {
        return Some((recovered.heir, true));
    }
    recovered.others.iter().copied().find(here).map(|other| (other, false))
}
