//! Trivet: a distributed sharded key-value store whose copies know their age.
//!
//! The modules stand on floors, lowest first; each imports only lower floors and neighbours never meet
//! (`tests/tidy.rs` checks it). docs/architecture.md walks the same order.
#![warn(missing_docs)]

// 0: the shared words
pub mod types;

// 1: encoding and sharding math, buckets and breakers, how views follow from their sources, time and tasks
pub mod keyspace;
pub mod limits;
#[cfg(feature = "server")]
pub mod projection;
pub mod runtime;

// 2: bytes on disk, bytes on the wire, where replicas go
#[cfg(feature = "server")]
pub mod placement;
#[cfg(feature = "server")]
pub mod storage;
pub mod wire;

// 3: one replicated log, and the client that routes
pub mod client;
#[cfg(feature = "server")]
pub mod raft;

// 4: the replicated key-value machine, the rows of the system table, and what an application builds on the client alone
pub mod catalog;
pub mod orders;
#[cfg(feature = "server")]
pub mod shard;

// 5: hosts replicas and connects nodes
#[cfg(feature = "server")]
pub mod node;

// 6: decides where things go; and, on stopped nodes, how a lost quorum is recovered
#[cfg(feature = "server")]
pub mod control;
#[cfg(feature = "server")]
pub mod recover;

// 7: the edges
#[cfg(feature = "server")]
pub mod ops;
#[cfg(feature = "server")]
pub mod service;

// 8: the composition root
#[cfg(feature = "server")]
pub mod server;

// 9: what the fuzz targets call
#[cfg(all(feature = "server", feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
