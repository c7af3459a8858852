//! Floor 3: one replicated log per shard.
//!
//! A [`Group`] is one replica of one Raft group. It orders opaque proposals, makes them durable on a quorum and hands
//! them, in order and on every replica alike, to a [`Machine`]. openraft is the protocol; nothing outside this module
//! sees it, and inside only the adapters do (`log`, `apply`, `network`), the plain names for its types being in
//! `types`.
//!
//! How a proposal passes: [`Group::propose`] gives it to openraft's core, which appends it (`log`: encoded once, kept
//! in the cache of recent entries, handed to the node's one log writer) and lets each follower's stream carry it
//! (`network`, over the node's [`Transport`]). A follower takes it in through [`Group::receive`], in the order sent.
//! Once a quorum has it on disk it is committed and applied (`apply`), as many ready entries as there are in one call
//! of the machine, hence one batch of storage; only then is the proposer answered.
//!
//! Promises and the rules that keep them
//! - Vote, append, truncate and purge of a group are one queue, in the order openraft asked; completions come back in
//!   that order, none is left out. A failed write ends the process, so no completion ever carries one.
//! - The state is never durable ahead of the log: an entry is applied only after it was itself written here, to the
//!   same write-ahead log (`log::LogStore::written`), and a snapshot is installed only after everything before it was.
//! - A leader that restarts stands for election like everyone: it may have lost entries its followers committed.
//! - Only [`ProposeError::NotLeader`] says that a proposal did not happen.
//! - Linearizable reads ask a quorum each time (ReadIndex). There are no leases for reads, hence no grace period after
//!   a restart and no assumption about clocks.
//! - The commit position is not stored: a restarted replica learns it from its leader before it serves anything.
//! - A replica id is never reused; a replica refuses to start on the log of another one.
//!
//! Snapshots hold no second copy: to "build" one makes the applied state durable, which entitles us to trim the log.
//! The data is cut from a storage snapshot only when a follower needs it, position and content from one moment, and
//! travels file by file on a connection of its own. `keeper` starts both when the log has grown by a number of bytes. `pulse`
//! sends a leader's heartbeats, and lets openraft's own timer rest while a leader is heard.
//!
//! A group comes to be in one of two ways: founded empty by its first members ([`Group::found`]), or born with a state
//! beside the members of another ([`Birth`]), when a shard is split. One whose quorum is lost for good goes on from a single
//! replica, made its only member while it was stopped ([`Remains`]).
//!
//! Left out here: what proposals mean (shard), where replicas are and who decides it (catalog, control), how frames
//! travel (node).

mod apply;
mod birth;
mod cache;
mod codec;
mod error;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod group;
mod keeper;
mod log;
mod machine;
mod members;
pub mod metrics;
mod network;
mod options;
mod pulse;
mod receive;
mod recovery;
mod runtime;
mod staged;
mod status;
mod transport;
mod types;

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use recovery::testing;

pub use birth::Birth;
pub use error::{ChangeError, GroupError, LeaderHint, ProposeError, ReadError, SnapshotError, TransferError};
pub use group::Group;
pub use machine::{Cut, Cutter, Entry, Machine};
pub use options::{LogBounds, Options, Timers};
pub use receive::carries_entries;
pub use recovery::{Position, Remains};
pub use staged::Staged;
pub use status::{Part, Status};
pub use transport::{Kind, Outgoing, Transport, TransportError};
