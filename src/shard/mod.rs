//! Floor 4: one shard, a replicated key-value machine.
//!
//! A shard owns one contiguous range of encoded keys. Its commands are atomic batches with conditions; they are
//! gathered into proposals (`proposer`), ordered by the group's log, and applied by every replica in the same way
//! (`machine`), each effect a new version. What a request id brought about is stored in the same batch as its
//! effect (`outcomes`), so that a repeat gets the first answer and no second effect.
//!
//! How a write passes: `Shard::write` queues the command; the proposer stamps what has gathered and proposes it as
//! one entry; when the entry is committed, `machine::ShardMachine` evaluates each command against the state before
//! it, writes versions, outcomes and the applied position as one batch, and the outcomes travel back the same way.
//!
//! How a read passes (`reads`): at any replica it first reaches its level. What that takes beyond what is applied and
//! proven already waits at the `gate`, where one confirmation of leadership serves all reads that arrived before it
//! began, and which leaves a proof of the replica's `age`. Then it reads the versions at one position from the block cache,
//! or from the disk on the blocking pool.
//!
//! Whoever follows what changes (`changes`) is told from the `tail` of the last commands, or from the versions. Upkeep of a view
//! need not hurry unless somebody waits for it (`awaited`).
//!
//! How much is asked of it, and of which keys, is counted on the way (`load`).
//!
//! A shard is divided (`division`) by an entry of its own log, which every replica applies alike: beside each of the
//! parent's replicas one of the child's is born. Two neighbours are merged (`merging`) by an entry in the log of each: the
//! right one is sealed, the left one absorbs it.
//!
//! Invariants
//! - Timestamps within a shard only grow: apply takes `max(stamped, last + 1)`.
//! - Evaluation is deterministic: it depends on the log and on the state it made, never on a clock, on what
//!   compaction has dropped (guarded by the horizon) or on the order of a hash map.
//! - A refusal at apply (`WRONG_EPOCH`, `REQUEST_EXPIRED`) has no effect and makes no version.
//! - The applied position is in the batch of the effects: after a crash the state is that of exactly one position.
//!
//! Left out here: which shards exist and where (catalog, control), how a request finds its shard (node), how entries
//! are replicated (raft).

mod age;
mod awaited;
mod changes;
mod checksum;
mod command;
mod division;
mod evaluate;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod gate;
mod handle;
mod intake;
mod load;
mod machine;
mod merging;
pub mod metrics;
mod middle;
mod outcomes;
mod proposer;
mod reads;
mod record;
mod snapshot;
mod state;
mod survivor;
mod tail;
#[cfg(test)]
mod tests;
mod trimming;

pub use changes::{FollowRequest, ShardChanges};
pub use checksum::Checksum;
pub use command::{Abandon, Absorb, ChildReplica, Seal, Split};
pub use division::{Born, Home, NEWS_MAX, News};
pub use handle::{Served, Shard, ShardOptions};
pub use intake::{Clearing, Intake, Mending, Upkeep};
pub use load::Load;
pub use merging::{superseded, survivors};
pub use reads::{PageRequest, ShardPage};
pub use record::Record;
pub use state::{State, requests_from};
pub use survivor::Survivor;
#[cfg(test)]
pub(crate) use survivor::testing;
