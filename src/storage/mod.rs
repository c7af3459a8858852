//! Floor 2: bytes on this node's disk.
//!
//! # Promise
//!
//! Three families of ordered bytes under one log. A [`Batch`] over any of them happens whole or not at all; what a
//! finished [`Engine::sync`] covered survives any crash; a crash loses only a suffix of what was written, over all
//! families together. So an effect in `Data` is never found without the log entry in `Log` that was written before it.
//! Bytes that are not what was written are reported as [`Error::Corruption`], never returned; and a log that comes back
//! shorter than it was durable refuses to open ([`Error::LogShrank`]).
//!
//! # Layout of keys
//!
//! ```text
//! Log    group ‖ index                                   -> entry               (log_keys)
//! Raft   'v' ‖ group  'c' ‖ group  'p' ‖ group           -> vote, hint, purge   (log_keys)
//!        'r' ‖ shard                                     -> replica record
//!        'n' ‖ name                                      -> the node's own
//! Data   encoded key ‖ !timestamp                        -> version             (mvcc)
//!        0xFFFFFFF0 ‖ encoded key ‖ client ‖ sequence    -> request outcome     (keyspace::side)
//!        0xFFFFFFF1 ‖ shard                              -> applied state
//!
//!        one shard in Data, as three ranges:
//!
//!        ├─ versions ──────┤        ├─ outcomes ───────┤        ├ applied ┤
//!        start          end         F0‖start      F0‖end        F1‖shard
//!        k1@9 k1@5 k2@7 …           k1‖c4‖1  k2‖c4‖2 …
//! ```
//!
//! # How a put passes
//!
//! Raft submits the entry to the [`LogWriter`], the one thread that serves all groups. It gathers what is queued, writes
//! one batch, publishes the written index ([`Written`]), syncs once and completes. Apply, having waited for *written*,
//! evaluates the command by [`mvcc::newest`] and writes its effects as one batch without a sync of its own. A read is
//! one seek through a filter of prefixes: first in memory and cache ([`Tier::Cache`], on the async thread), and only if
//! that cannot tell, on a thread that may wait for the disk.
//!
//! # What goes away
//!
//! Shards tell their [`Horizons`]; compaction drops replaced versions, deletions and outcomes behind them (`filter`,
//! `sweep`), never anything a read at or after the horizon could see. [`Survey`] tells where that is worth while.
//!
//! # Left out
//!
//! Nothing here knows Raft, protobuf or the meaning of a value. There is no second copy and no repair: a replica whose
//! bytes are damaged is replaced from its peers. Two engines keep the contract: [`Rocks`] on disk and [`Memory`], its
//! twin for tests, which can crash on demand.

pub mod changes;
mod engine;
mod error;
mod filter;
mod horizons;
pub mod log_keys;
mod log_queue;
mod log_writer;
mod memory;
pub mod metrics;
pub mod mvcc;
mod pace;
mod rocks;
mod survey;
mod sweep;
mod written;

#[cfg(test)]
mod tests;

/// The store's place in a node's data directory; what else lies there (logs, a pid file) is the operator's.
pub const STORE: &str = "store";

pub use engine::{Batch, Change, Cursor, Engine, Family, Lookup, Ranges, Reader, TableWriter, Tier};
pub use error::{Error, FatalHook, Result, abort_on_fatal};
pub use horizons::{Horizon, Horizons, Span, Spans};
pub use log_queue::{Done, LogChange, LogOp};
pub use log_writer::LogWriter;
pub use memory::Memory;
pub use rocks::{Options, Rocks};
pub use survey::Survey;
pub use written::Written;

/// Room on the device below which proposals should be refused with `DISK_FULL`: enough for the log, a flush and a
/// compaction under way to finish, so that the node can go on serving reads and be freed of load.
pub const RESERVE_BYTES: u64 = 256 << 20;
/// Of a small device no more than this part is kept free: one in eight.
const RESERVE_PART: u64 = 8;
