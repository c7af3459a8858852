//! What the cluster says of itself, as plain values: tables to be made (`wishes`), tables and shards (`tables`), nodes,
//! topology and state (`cluster`), checksums (`checksums`),
//! splits (`splits`), how evenly it is spread (`balance`), and views (`views`).
//!
//! Servers fill these from the catalog and from their replicas; clients route by them and people read them. A shard
//! on the wire carries the members but not the data directories behind them, so [`ShardDetails::descriptor`] gives a
//! descriptor that is good for routing only (incarnations zero, no founders).

mod balance;
mod checksums;
mod cluster;
mod splits;
mod tables;
mod views;
mod wishes;

pub use balance::{BalanceReport, NodeShare};
pub use checksums::{ChecksumReport, Content, ReplicaChecksum};
pub use cluster::{ClusterStatus, NodeDetails, Topology};
pub use splits::{SplitPoint, SplitReport};
pub use tables::{ReplicaDetails, ShardDetails, TableDetails};
pub use views::{
    DEFINITION_BYTES_MAX, NewView, RowDifference, UnfitDocument, ViewDetails, ViewLag, ViewState, ViewVerification,
};
pub use wishes::{GROUP_DELIMITER_BYTES_MAX, HISTORY_MS_DEFAULT, NewTable, SHARDS_MAX};
