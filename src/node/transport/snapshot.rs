//! Snapshots on their way: cut, chunked, checksummed and paced on one side; staged, checked and installed on the other.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::link::{endpoint, peer_client};
use crate::node::host::Node;
use crate::node::metrics;
use crate::raft::{Cut, SnapshotError, Staged, TransportError};
use crate::runtime::{random_u64, sleep, spawn, spawn_blocking, timeout};
use crate::shard::{State, superseded};
use crate::types::{ReplicaId, ShardId};
use crate::wire::Channel;
use crate::wire::proto::internal::snapshot_chunk::Part;
use crate::wire::proto::internal::{SnapshotChunk, SnapshotData, SnapshotHeader, Vote};

/// Bytes of one chunk.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks read ahead of the network.
const CHUNKS_AHEAD_MAX: usize = 4;
/// The most one transfer sends per second, so that it leaves room for everything else.
const BYTES_PER_SECOND_MAX: usize = 64 << 20;
/// A transfer that makes no progress for this long is given up.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(20);
/// Installing what was sent may take longer than one chunk.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(120);
/// Files one snapshot may have; a bound against nonsense, 16 TB at the sender's file size.
const FILES_MAX: u32 = 1_000_000;

/// Sends a cut; returns the receiver's vote.
pub async fn send(address: &str, header: SnapshotHeader, cut: Box<dyn Cut>) -> Result<Vote, TransportError> {
    let unreachable = |error: &dyn std::fmt::Display| TransportError::Unreachable(error.to_string());
    let endpoint = endpoint(address).map_err(|error| unreachable(&error.message))?;
    let channel = Channel::connect(address, &endpoint).await.map_err(|error| unreachable(&error))?;
    let (chunks, outgoing) = mpsc::channel(CHUNKS_AHEAD_MAX);
    let feeder = spawn(feed(header, cut, chunks));
    let _abandon = AbortOnDrop(feeder.abort_handle());
    let mut client = peer_client(channel);
    let call = client.snapshot(ReceiverStream::new(outgoing));
    let answered = async {
        tokio::pin!(call);
        // The call ends when the receiver has installed everything or refuses; the feeder notices a stall.
        tokio::select! {
            answer = &mut call => answer,
            fed = feeder => match fed {
                Ok(Ok(())) => timeout(INSTALL_TIMEOUT, call).await
                    .unwrap_or_else(|| Err(Status::deadline_exceeded("the receiver did not finish in time"))),
                Ok(Err(why)) => Err(Status::aborted(why)),
                Err(_) => Err(Status::aborted("the transfer was abandoned")),
            },
        }
    };
    match answered.await {
        Ok(done) => done.into_inner().vote.ok_or_else(|| TransportError::Refused("no vote in the answer".to_owned())),
        Err(status) if status.code() == tonic::Code::FailedPrecondition => {
            Err(TransportError::Refused(status.message().to_owned()))
        }
        Err(status) => Err(TransportError::Unreachable(status.message().to_owned())),
    }
}

/// Ends a task when its owner goes away.
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn feed(header: SnapshotHeader, cut: Box<dyn Cut>, chunks: mpsc::Sender<SnapshotChunk>) -> Result<(), String> {
    push(&chunks, Part::Header(header)).await?;
    let mut cut = Some(cut);
    let mut file = 0;
    loop {
        let mut taken = cut.take().expect("the cut is put back after each file");
        let (next, back) = spawn_blocking(move || (taken.next_file(), taken))
            .await
            .map_err(|_| "cutting a file was cancelled".to_owned())?;
        cut = Some(back);
        let Some(path) = next.map_err(|error| error.to_string())? else { break };
        let sent = send_file(&path, file, &chunks).await;
        let gone = path.clone();
        let removed = on_disk(move || std::fs::remove_file(gone)).await;
        sent?;
        removed.map_err(|error| format!("cannot remove {}: {error}", path.display()))?;
        file += 1;
    }
    push(&chunks, Part::End(file)).await
}

/// Runs a piece of work on files where it may wait for the disk.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
    spawn_blocking(work).await.map_err(std::io::Error::other)?
}

async fn push(chunks: &mpsc::Sender<SnapshotChunk>, part: Part) -> Result<(), String> {
    match timeout(PROGRESS_TIMEOUT, chunks.send(SnapshotChunk { part: Some(part) })).await {
        Some(Ok(())) => Ok(()),
        Some(Err(_)) => Err("the receiver closed the transfer".to_owned()),
        None => Err("the transfer made no progress".to_owned()),
    }
}

async fn send_file(path: &Path, file: u32, chunks: &mpsc::Sender<SnapshotChunk>) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let opened = path.to_owned();
    let mut reader = on_disk(move || std::fs::File::open(opened)).await.map_err(failed)?;
    loop {
        let (bytes, back) = on_disk(move || {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            (&mut reader).take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
            Ok((Bytes::from(chunk), reader))
        })
        .await
        .map_err(failed)?;
        reader = back;
        let filled = bytes.len();
        if filled == 0 {
            return Ok(());
        }
        let checksum = crc32fast::hash(&bytes);
        push(chunks, Part::Data(SnapshotData { file, bytes, checksum })).await?;
        ::metrics::counter!(metrics::SNAPSHOT_BYTES_SENT).increment(filled as u64);
        sleep(Duration::from_secs_f64(filled as f64 / BYTES_PER_SECOND_MAX as f64)).await;
    }
}

/// The next chunk, or why there is none.
async fn next(chunks: &mut Streaming<SnapshotChunk>) -> Result<Part, Status> {
    let message = timeout(PROGRESS_TIMEOUT, chunks.message())
        .await
        .ok_or_else(|| Status::deadline_exceeded("the transfer made no progress"))??;
    message
        .and_then(|chunk| chunk.part)
        .ok_or_else(|| Status::aborted("the transfer ended before its end was announced"))
}

/// A transfer begins with its header.
pub async fn receive_header(chunks: &mut Streaming<SnapshotChunk>) -> Result<SnapshotHeader, Status> {
    match next(chunks).await? {
        Part::Header(header) => Ok(header),
        Part::Data(_) | Part::End(_) => Err(Status::invalid_argument("a transfer begins with its header")),
    }
}

/// Stages the files and hands them to the group.
pub async fn receive(
    node: &Arc<Node>,
    header: SnapshotHeader,
    chunks: Streaming<SnapshotChunk>,
) -> Result<Vote, Status> {
    let shard = ShardId(header.group);
    let replica = ReplicaId(header.to_replica);
    let hosted = node
        .replicas()
        .get(shard)
        .filter(|hosted| hosted.replica() == replica)
        .ok_or_else(|| Status::failed_precondition(format!("this node does not host {replica} of {shard}")))?;
    let staged = fill(&node.engine().staging(), shard, chunks).await?;
    let coming = State::decode(header.summary.clone()).map_err(|error| Status::invalid_argument(error.message))?;
    // A task of its own: the sender may give up, but the installation goes on, and no replica may be created under it.
    let host = node.clone();
    let installed = spawn(async move {
        // Alone if it ends other replicas: none of these may be in the middle of an installation of its own.
        let ends = superseded(&**host.engine(), &coming).map_err(|error| SnapshotError::Refused(error.to_string()))?;
        if ends.is_empty() {
            let _shared = host.ranges().read().await;
            hosted.group().receive_snapshot(header, staged).await
        } else {
            let _alone = host.ranges().write().await;
            hosted.group().receive_snapshot(header, staged).await
        }
    });
    let vote = installed.await.map_err(|_| Status::unavailable("the installation was cancelled"))?;
    vote.map_err(|error| match error {
        SnapshotError::Refused(why) => Status::failed_precondition(why),
        SnapshotError::Stopped => Status::unavailable("the replica has stopped"),
    })
}

/// Writes what arrives into a staging directory of its own.
async fn fill(staging: &Path, shard: ShardId, mut chunks: Streaming<SnapshotChunk>) -> Result<Staged, Status> {
    let failed = |error: std::io::Error| Status::internal(format!("cannot stage a snapshot: {error}"));
    let directory = staging.join(format!("in-{shard}-{:016x}", random_u64()));
    let mut staged = on_disk(move || Staged::create(directory)).await.map_err(failed)?;
    let mut open: Option<std::fs::File> = None;
    loop {
        match next(&mut chunks).await? {
            Part::Header(_) => return Err(Status::invalid_argument("a second header")),
            Part::Data(data) => {
                if crc32fast::hash(&data.bytes) != data.checksum {
                    return Err(Status::data_loss("a chunk of the snapshot does not match its checksum"));
                }
                if data.file as usize == staged.files().len() && data.file < FILES_MAX {
                    close(open.take()).await.map_err(failed)?;
                    let path = staged.directory().join(format!("{:06}.sst", data.file));
                    staged.push(path.clone());
                    open = Some(on_disk(move || std::fs::File::create(path)).await.map_err(failed)?);
                } else if data.file as usize + 1 != staged.files().len() {
                    return Err(Status::invalid_argument("the files of a snapshot come in order"));
                }
                if let Some(mut file) = open.take() {
                    let written = on_disk(move || file.write_all(&data.bytes).map(|()| file)).await;
                    open = Some(written.map_err(failed)?);
                }
            }
            Part::End(count) => {
                close(open.take()).await.map_err(failed)?;
                if count as usize != staged.files().len() {
                    return Err(Status::data_loss("files of the snapshot are missing"));
                }
                return Ok(staged);
            }
        }
    }
}

async fn close(file: Option<std::fs::File>) -> std::io::Result<()> {
    match file {
        Some(file) => on_disk(move || file.sync_all()).await,
        None => Ok(()),
    }
}
