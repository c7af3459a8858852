//! Floor 4: the cluster's own state, as typed rows of a table.
//!
//! Nodes, tables, shards and wanted replicas are rows of the system table (table 0, ordered by key, one shard: shard
//! 0). Keys are text, values are JSON, so `trivet scan system` shows them to a person. A row is changed only by a
//! write whose conditions name the versions it was computed from. Two controllers that both believe to lead may
//! both compute a change; at most one of them takes effect.
//!
//! ```text
//! cluster                            ClusterRow       who we are
//! node/{id:020}                      NodeRow          one node and the data directory it runs on
//! table/{id:010}                     TableDescriptor  one table
//! table_name/{name}                  table id         names of tables that serve
//! shard/{table:010}/{id:020}         ShardDescriptor  one shard: range, epoch, wanted replicas
//! counter/{table|shard|replica}      number           the next free id of its kind; never goes back
//! recovery                           RecoveryRow      the last recovery from a lost quorum, and what is left to do for it
//! ```
//!
//! How a change passes: `control`, on the node that leads shard 0, takes its [`Directory`], lets a builder of
//! [`change`] turn wish and directory into a [`Write`](crate::types::Write), and writes it to the system table. If a
//! condition failed, the directory was out of date: read it again, build again. Every node follows the rows and
//! brings its replicas to what they want.
//!
//! Invariants
//! - A [`Directory`] is immutable; [`Directory::apply`] makes the next one from rows and their versions.
//! - A table is offered only when its shard rows cover it without gap or overlap.
//! - Ids of tables, shards and replicas come from counters, each taken by compare-and-swap, and are never reused.
//! - Kinds of rows that this version does not know are passed over, so that a newer node may add some; unknown fields
//!   of known rows too.
//!
//! Left out: what should be wanted (control and placement decide), and what is true (a shard's own log has the last
//! word about its range and members). Everything here is pure.

pub mod change;
mod directory;
mod rows;

pub use directory::{Directory, Load, TableEntry};
pub use rows::{
    BalancingRow, ClusterRow, Counter, LeftRow, LostNode, NextIds, NodeRow, RecoveredReplica, RecoveredShard,
    RecoveryRow, RowKey, Standing, decode_row, encode_row,
};
