//! Changes of the catalog: pure functions from a [`Directory`] and a wish to a [`Write`] over the system table.
//!
//! Every write names, in its conditions, the version of each row it replaces or relies on; ids come from counters
//! whose rows are conditions too. So of two changes computed from one picture that touch the same row or take ids of
//! the same kind, at most one takes effect; the other's sender reads the catalog again and builds again. Keys are
//! user keys of the system table. Request ids are left to the sender.
//!
//! Left out: deciding. A builder refuses a wish that makes no sense on its directory, and otherwise does as told.

mod merges;
mod nodes;
mod recovery;
mod replicas;
mod splits;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

pub use merges::{abandon_merge, begin_merge, finish_merge};
pub use nodes::{
    SYSTEM_HISTORY_MS, SYSTEM_TABLE, SYSTEM_VOTERS_MAX, admit_node, found_cluster, join_node, remove_node,
    replace_incarnation, set_balancing, set_standing, system_shard,
};
pub use recovery::{adopt_survivor, note_recovery};
pub use replicas::{REPLACEMENTS_MAX, add_system_replica, mend_node, move_replica, relieve_lost};
pub use splits::{begin_split, finish_split};
pub use tables::{
    Creation, NewTable, REMOVALS_MAX, REPLICATION_MAX, SHARDS_MAX, change_view, create_table, drop_table, finish_drop,
    name_of_next, say_ready, take_place, view_named,
};

use super::directory::Directory;
use super::rows::{Counter, RowKey, encode_row};
use crate::types::{Action, Condition, Error, Operation, Result, Test, Write};

/// Conditions and operations of one change, together: the default bound of any batch
/// ([`Limits`](crate::types::Limits)), which the system table must keep whatever is configured for others.
pub const CHANGE_MAX: usize = 1_024;

/// A write being built on a picture of the catalog.
struct Draft<'a> {
    directory: &'a Directory,
    relied_on: BTreeSet<RowKey>,
    conditions: Vec<Condition>,
    operations: Vec<Operation>,
    /// Next free ids after those taken here.
    counters: BTreeMap<Counter, u64>,
}

impl<'a> Draft<'a> {
    fn new(directory: &'a Directory) -> Draft<'a> {
        Draft {
            directory,
            relied_on: BTreeSet::new(),
            conditions: Vec::new(),
            operations: Vec::new(),
            counters: BTreeMap::new(),
        }
    }

    /// The change takes effect only if the row is still as the directory has it (or still absent).
    fn rely_on(&mut self, key: &RowKey) {
        if self.relied_on.insert(key.clone()) {
            let test = self.directory.version(key).map_or(Test::Absent, Test::Version);
            self.conditions.push(Condition { key: key.encode(), test });
        }
    }

    /// Replaces or makes a row, if nobody else did in between.
    fn put<T: serde::Serialize>(&mut self, key: &RowKey, row: &T) {
        self.rely_on(key);
        self.put_fresh(key, row);
    }

    /// Makes a row under an id that was taken from a counter here, so nobody else can have made it.
    fn put_fresh<T: serde::Serialize>(&mut self, key: &RowKey, row: &T) {
        let action = Action::Put { value: encode_row(row), ttl_ms: None };
        self.operations.push(Operation { key: key.encode(), action });
    }

    /// Removes a row, if nobody changed it in between.
    fn delete(&mut self, key: &RowKey) {
        self.rely_on(key);
        self.operations.push(Operation { key: key.encode(), action: Action::Delete });
    }

    /// The next free id of a kind; taken for good once the change takes effect.
    fn take(&mut self, counter: Counter) -> u64 {
        let next = self.counters.entry(counter).or_insert_with(|| self.directory.next_id(counter));
        let taken = *next;
        *next += 1;
        taken
    }

    fn is_empty(&self) -> bool {
        self.operations.is_empty() && self.counters.is_empty()
    }

    fn finish(mut self) -> Result<Write> {
        for (counter, next) in std::mem::take(&mut self.counters) {
            self.put(&RowKey::Counter(counter), &next);
        }
        let size = self.conditions.len() + self.operations.len();
        if size > CHANGE_MAX {
            return Err(Error::invalid(format!(
                "the change touches too much at once ({size} of at most {CHANGE_MAX} conditions and rows): ask for less at a time"
            )));
        }
        Ok(Write { request: None, conditions: self.conditions, operations: self.operations })
    }
}

/// The rows that a change puts, as a directory reads them. For those who must act on a change before it can be
/// written: the founders of a cluster host shard 0 to write that they do.
pub fn rows_of(write: &Write) -> impl Iterator<Item = (Bytes, Bytes)> {
    write.operations.iter().filter_map(|operation| match &operation.action {
        Action::Put { value, .. } => Some((operation.key.clone(), value.clone())),
        Action::Delete | Action::Increment { .. } | Action::Rollback { .. } => None,
    })
}
