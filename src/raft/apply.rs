//! The machine of one group as openraft sees it: committed entries in, outcomes and snapshots out.
//!
//! openraft announces commits one by one; what is ready is gathered, up to a bound of bytes, into one call of the
//! machine, which makes one batch of storage of it. Before that, the last of these entries must be in this node's own
//! write-ahead log: followers alone can commit an entry that the leader's log writer still holds in memory, and a
//! state that survived without its log would make the replica unusable. Proposers are answered after the batch.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::codec;
use super::log::LogStore;
use super::machine::{Cut, Cutter, Entry, Machine};
use super::metrics;
use super::staged::Staged;
use super::types::{LogId, Payload, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use crate::runtime;
use crate::storage::{self, Engine};
use crate::types::ShardId;

/// Bytes of proposals applied in one batch. Larger batches save nothing more and make reads wait.
const APPLY_BYTES_MAX: usize = 1 << 20;

/// openraft's view of a machine.
pub struct Applier {
    shard: ShardId,
    /// None only while an installation has it on the blocking pool. The lock is never contended; it makes the machine
    /// shareable without asking that of every machine.
    machine: Mutex<Option<Box<dyn Machine>>>,
    cutter: Arc<dyn Cutter>,
    engine: Arc<dyn Engine>,
    /// None only in tests of the machine alone, whose entries are in no log.
    log: Option<LogStore>,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// One more than the last applied index.
    progress: watch::Sender<u64>,
}

fn io_error(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}

fn corrupt(error: codec::CodecError) -> storage::Error {
    storage::Error::corruption(error.to_string())
}

fn position(mark: Option<Bytes>) -> storage::Result<(Option<LogId>, StoredMembership)> {
    mark.filter(|mark| !mark.is_empty())
        .map_or(Ok(Default::default()), |mark| codec::decode_mark(mark).map_err(corrupt))
}

impl Applier {
    /// The machine at the position it recovered, and what tells how far it is.
    pub fn open(
        shard: ShardId,
        machine: Box<dyn Machine>,
        engine: Arc<dyn Engine>,
        log: impl Into<Option<LogStore>>,
    ) -> storage::Result<(Applier, watch::Receiver<u64>)> {
        let (applied, membership) = position(machine.mark())?;
        let progress = watch::Sender::new(applied.map_or(0, |id| id.index + 1));
        let receiver = progress.subscribe();
        let cutter = machine.cutter();
        let machine = Mutex::new(Some(machine));
        let applier = Applier { shard, machine, cutter, engine, log: log.into(), applied, membership, progress };
        Ok((applier, receiver))
    }

    fn moved_to(&mut self, applied: Option<LogId>, membership: StoredMembership) {
        self.applied = applied;
        self.membership = membership;
        self.progress.send_replace(applied.map_or(0, |id| id.index + 1));
    }

    /// Applies one run of entries as one batch and answers their proposers.
    async fn apply_run(&mut self, run: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let Some(last) = run.last().map(|(entry, _)| entry.id) else { return Ok(()) };
        if let Some(log) = &self.log {
            log.written(last.index).await?;
        }
        let mut membership = self.membership.clone();
        let (mut entries, mut responders) = (Vec::with_capacity(run.len()), Vec::with_capacity(run.len()));
        for (entry, responder) in run {
            let payload = match entry.payload {
                Payload::Normal(command) => Some(command.0),
                Payload::Blank => None,
                Payload::Membership(members) => {
                    membership = StoredMembership::new(Some(entry.id), members);
                    None
                }
            };
            let members_at = membership.log_id().as_ref().map_or(0, |id| id.index);
            entries.push(Entry { index: entry.id.index, payload, members_at });
            responders.push(responder);
        }
        let mark = codec::encode_mark(Some(&last), &membership);
        ::metrics::histogram!(metrics::APPLY_ENTRIES).record(entries.len() as f64);
        let machine = self.machine.get_mut().as_mut().expect("the machine is away only during an installation");
        let outcomes = machine.apply(entries, mark).map_err(io_error)?;
        assert_eq!(outcomes.len(), responders.len(), "a machine answers every entry");
        // Readers waiting for this position first: they wait since before the proposers.
        self.moved_to(Some(last), membership);
        for (outcomes, responder) in outcomes.into_iter().zip(responders) {
            if let Some(responder) = responder {
                responder.send(outcomes);
            }
        }
        Ok(())
    }
}

fn size(entry: &EntryResponder<TypeConfig>) -> usize {
    entry.0.encoded.as_ref().map_or(0, Bytes::len)
}

impl RaftStateMachine<TypeConfig> for Applier {
    type SnapshotData = SnapshotFiles;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(first) = entries.next().await {
            let first = first?;
            let mut bytes = size(&first);
            let mut run = vec![first];
            let mut more = true;
            while bytes < APPLY_BYTES_MAX {
                match entries.next().now_or_never() {
                    Some(Some(entry)) => {
                        let entry = entry?;
                        bytes += size(&entry);
                        run.push(entry);
                    }
                    Some(None) => {
                        more = false;
                        break;
                    }
                    None => break,
                }
            }
            self.apply_run(run).await?;
            if !more {
                break;
            }
            // A replica that catches up would otherwise keep its thread for as long as that takes.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let meta = SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        Builder { meta, log: self.log.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, mut snapshot: SnapshotFiles) -> Result<(), io::Error> {
        // A truncation that makes room for this snapshot may still be queued; without it, a crash after the
        // installation would leave a log that contradicts the state.
        if let Some(log) = &self.log {
            log.barrier().await?;
        }
        let mut machine = self.machine.get_mut().take().expect("only one installation at a time");
        let name = snapshot.name.clone();
        let summary = snapshot.summary.clone();
        let (machine, result) = runtime::spawn_blocking(move || {
            let result = snapshot.collect().and_then(|files| machine.install(&name, &summary, files));
            drop(snapshot);
            (machine, result)
        })
        .await
        .map_err(io_error)?;
        let mark = machine.mark();
        *self.machine.get_mut() = Some(machine);
        result.map_err(io_error)?;
        let (applied, membership) = position(mark).map_err(io_error)?;
        if applied != meta.last_log_id {
            return Err(io_error(format!("a snapshot of {} holds another position than it claims", self.shard)));
        }
        self.moved_to(applied, membership);
        Ok(())
    }

    /// A cut of the state of now: position and content from one storage snapshot. Not before anything was applied;
    /// but then nothing was purged either.
    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        if self.applied.is_none() {
            return Ok(None);
        }
        let name = format!("cut-{}-{:016x}", self.shard, runtime::random_u64());
        let directory = self.engine.staging().join(&name);
        let cut = self.cutter.cut(&directory).map_err(io_error)?;
        let (last_log_id, last_membership) = position(Some(cut.mark().clone())).map_err(io_error)?;
        let meta = SnapshotMeta { last_log_id, last_membership };
        Ok(Some(Snapshot { meta, snapshot: SnapshotFiles::cut(name, directory, cut) }))
    }
}

/// "Builds" a snapshot: makes the applied state durable, so that the log before it may go.
pub struct Builder {
    meta: SnapshotMeta,
    log: Option<LogStore>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFiles;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        // State and log share one write-ahead log: what makes the log durable makes the state durable.
        if let Some(log) = &self.log {
            log.barrier().await?;
        }
        ::metrics::counter!(metrics::SNAPSHOTS_BUILT).increment(1);
        Ok(Snapshot { meta: self.meta.clone(), snapshot: SnapshotFiles::none() })
    }
}

/// The data of a snapshot: a cut still to be written, or files on this node's disk, which go with it.
pub struct SnapshotFiles {
    /// Names it in logs and in storage's bookkeeping.
    pub name: String,
    /// What the machine says of it.
    pub summary: Bytes,
    cut: Option<(PathBuf, Box<dyn Cut>)>,
    staged: Option<Staged>,
}

impl SnapshotFiles {
    fn none() -> SnapshotFiles {
        SnapshotFiles { name: String::new(), summary: Bytes::new(), cut: None, staged: None }
    }

    fn cut(name: String, directory: PathBuf, cut: Box<dyn Cut>) -> SnapshotFiles {
        SnapshotFiles { name, summary: cut.summary(), cut: Some((directory, cut)), staged: None }
    }

    /// Files from another replica.
    pub fn received(name: String, summary: Bytes, staged: Staged) -> SnapshotFiles {
        SnapshotFiles { name, summary, cut: None, staged: Some(staged) }
    }

    /// The cut inside, with its directory made; it is removed when this value goes. Blocks on the disk.
    pub fn take_cut(&mut self) -> storage::Result<Option<Box<dyn Cut>>> {
        let Some((directory, cut)) = self.cut.take() else { return Ok(None) };
        let staged = Staged::create(directory.clone())
            .map_err(|error| storage::Error::Io(format!("creating {}: {error}", directory.display())))?;
        self.staged = Some(staged);
        Ok(Some(cut))
    }

    /// All files; those of a cut are written now. Blocks on the disk.
    fn collect(&mut self) -> storage::Result<Vec<PathBuf>> {
        let cut = self.take_cut()?;
        let Some(staged) = &mut self.staged else { return Ok(Vec::new()) };
        if let Some(mut cut) = cut {
            while let Some(file) = cut.next_file()? {
                staged.push(file);
            }
        }
        Ok(staged.files().to_vec())
    }
}
