//! What a group replicates: a deterministic machine that applies entries, and cuts of its state for replicas that fell
//! too far behind.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::storage;
use crate::types::Outcomes;

/// One committed entry on its way into the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the log.
    pub index: u64,
    /// What was proposed; none for Raft's own entries (a new leader's first, a change of members), which a machine
    /// only has to pass over.
    pub payload: Option<Bytes>,
    /// The entry that set the members in force at this one; 0 for the first.
    pub members_at: u64,
}

/// A deterministic state machine. A group calls it from one task, in log order.
///
/// The *mark* is Raft's position (applied log id and members), opaque to the machine. It must be stored in the same
/// batch as the effects, so that after a crash the state is that of exactly one position.
pub trait Machine: Send + 'static {
    /// The mark stored last, as recovered from storage.
    fn mark(&self) -> Option<Bytes>;

    /// Applies entries in order and writes their effects with `mark` as one batch. Returns one [`Outcomes`] per entry,
    /// empty for an entry without payload. An error stops the replica.
    fn apply(&mut self, entries: Vec<Entry>, mark: Bytes) -> storage::Result<Vec<Outcomes>>;

    /// Something that cuts this machine's state from any thread.
    fn cutter(&self) -> Arc<dyn Cutter>;

    /// Replaces the whole state by the files of a cut with this summary, durably; afterwards `mark` is the one inside.
    /// `name` names the installation uniquely, for storage's own bookkeeping.
    fn install(&mut self, name: &str, summary: &Bytes, files: Vec<PathBuf>) -> storage::Result<()>;
}

/// Cuts the state of a machine, and looks at cuts made elsewhere.
pub trait Cutter: Send + Sync + 'static {
    /// The mark in storage now; none if nothing was ever applied.
    fn mark(&self) -> storage::Result<Option<Bytes>>;

    /// Whether a cut with this summary, made elsewhere, may be installed here; if not, why. Asked before it is handed to
    /// the group, where it could not be refused any more.
    fn may_install(&self, summary: &Bytes) -> storage::Result<Result<(), String>>;

    /// A cut of the state of now. It touches no file yet; its files go to `directory`, which exists by the time the
    /// first is asked for.
    fn cut(&self, directory: &Path) -> storage::Result<Box<dyn Cut>>;
}

/// A frozen state, handed out file by file.
pub trait Cut: Send + 'static {
    /// The mark of the frozen state, read in the same moment as the state.
    fn mark(&self) -> &Bytes;

    /// What the machine that takes the cut in must know before it does ([`Cutter::may_install`]).
    fn summary(&self) -> Bytes;

    /// Writes the next file and names it; none when all were written. Blocks on the disk. The caller deletes each file
    /// before it asks for the next, so at most one lies on the disk.
    fn next_file(&mut self) -> storage::Result<Option<PathBuf>>;
}
