//! Floor 6: recovery from the permanent loss of a majority of a shard's replicas, on stopped nodes.
//!
//! Without a quorum a shard serves nothing, and nothing but a person can say that the lost replicas will never come back. If
//! so, the shard can go on from one of the replicas that are left, at the price of what only the others had. This module says
//! what that price is before anything is changed, and pays it on every surviving node in one batch each.
//!
//! How a recovery passes, every surviving node being stopped:
//! 1. [`Collected::from_store`] reads a node's store: its replicas with the ends of their logs, its copy of the catalog. One
//!    small file for each node, since the directories lie on different machines.
//! 2. [`Plan::make`] takes all of these files and the ids of the lost nodes, and says of each shard whether it is healthy, goes
//!    on from one survivor, or is gone. Nothing is changed; the plan is a file too.
//! 3. [`apply`] carries out a node's part: the chosen replicas become the only members of their groups, under new ids
//!    (`raft::Remains`, `shard::Survivor`). Where shard 0 lost its quorum, every other survivor gets an empty replica of
//!    it, or it could never hear of the new one. And a record of the recovery is kept (`node::recovery`).
//! 4. The nodes are started. Control notes the recovery in the catalog and has new replicas made (`control::recovery`).
//!
//! Invariants
//! - A shard that has a majority is never touched.
//! - Every node of the catalog is either collected or declared lost, and none is both: what a plan does not know of cannot go on
//!   behind its back.
//! - A plan is carried out only on the very stores it was made from: each is collected again and compared. A part that was
//!   carried out is recognized, so after a crash the command is given again.
//! - The chosen survivor is the one whose log ends last: it holds every entry that any survivor knows to be committed.
//! - A merge that is under way with a recovered shard is abandoned, unless a log that is left says that it has happened: a shard
//!   that was sealed for it goes on by itself, as soon as its left neighbour has said so (`node::merges`), or at once if nothing is
//!   left of that. A split that no such log has is given up.
//! - The ranges of what is left are those that the surviving catalog knows, or the plan is refused (`survey`).
//! - No former member of a recovered group can reach the new one: the replica ids are new, and until the catalog names them the
//!   heir takes nobody in. A lost directory that is started after all is refused by every node that took part. (Lost nodes that
//!   meet only one another would go on as the old cluster; nothing on this side can prevent that, so they must be destroyed.)
//!
//! Left out: shards without any survivor are reported, not made anew. A split that is still to be applied by the chosen
//! survivor gives birth to a child without a quorum; a second recovery takes care of it.

mod apply;
mod collect;
mod plan;
mod survey;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

pub use apply::{Applied, Change, apply};
pub use collect::{Collected, Replica};
pub use plan::{Fate, Plan, PlannedNode, PlannedShard, Rest};

use crate::storage::{Options, Rocks, STORE};
use crate::types::{Error, Reason, Result};

/// Opens the store of a stopped node. It is locked until dropped, and brought to the state that a start of the node would
/// find; nothing is added.
///
/// Errors: there is no store, or it is in use, or damaged.
pub fn open(data: &Path) -> Result<Arc<Rocks>> {
    let store = data.join(STORE);
    if !store.join("FORMAT").is_file() {
        return Err(Error::new(
            Reason::InvalidRequest,
            format!(
                "{} is not the data directory of a node: give the directory that it is served from",
                data.display()
            ),
        ));
    }
    Rocks::open(&Options::new(store)).map_err(|error| Error::new(Reason::Conflict, error.to_string()))
}
