//! The answering side: frames, snapshots and questions from peers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::link::MESSAGE_BYTES_MAX;
use super::snapshot;
use crate::node::host::Node;
use crate::node::metrics;
use crate::node::takeover::Sign;
use crate::raft::{self, Kind};
use crate::runtime::{spawn, timeout, yield_now};
use crate::types::{Error, NodeId, Reason, ReplicaId, ShardId};
use crate::wire;
use crate::wire::proto::internal::peer_server::{Peer, PeerServer};
use crate::wire::proto::internal::{AskRequest, AskResponse, Frame, FrameBatch, SnapshotChunk, SnapshotDone};

/// How long a frame for a replica that is not here yet is held: it may be about to be created.
const UNKNOWN_REPLICA_HELD: Duration = Duration::from_millis(500);
/// Answers in one flush.
const FLUSH_ANSWERS_MAX: usize = 1_024;
/// Flushes of answers not yet taken by HTTP/2.
const FLUSHES_IN_FLIGHT_MAX: usize = 2;
/// Frames of one link being answered at once; beyond that the link is not read on, and the sender's queue fills.
const FRAMES_IN_HAND_MAX: usize = 16_384;

/// The service that other nodes call.
#[derive(Clone)]
pub struct PeerService {
    node: Arc<Node>,
}

impl PeerService {
    /// The service of a node, to be mounted beside the public ones.
    pub fn server(node: Arc<Node>) -> PeerServer<PeerService> {
        PeerServer::new(PeerService { node })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn check(&self, cluster: u64, to: Option<NodeId>) -> Result<(), Error> {
        let identity = self.node.try_identity().ok_or_else(|| {
            Error::new(Reason::NotReady, "this node is not a member of a cluster yet; try again in a moment")
        })?;
        if cluster != identity.cluster.0 {
            ::metrics::counter!(metrics::FRAMES_REFUSED).increment(1);
            return Err(Error::new(
                Reason::WrongCluster,
                format!("this node belongs to cluster {}, the message is meant for {cluster:016x}", identity.cluster),
            ));
        }
        if to.is_some_and(|to| to != identity.node) {
            ::metrics::counter!(metrics::FRAMES_REFUSED).increment(1);
            return Err(Error::new(Reason::UnknownNode, format!("this is {}, not the node addressed", identity.node)));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type FramesStream = ReceiverStream<Result<FrameBatch, Status>>;

    async fn frames(&self, request: Request<Streaming<FrameBatch>>) -> Result<Response<Self::FramesStream>, Status> {
        let mut incoming = request.into_inner();
        let hello = incoming.message().await?.ok_or_else(|| Status::invalid_argument("a link begins with a batch"))?;
        self.check(hello.cluster, Some(NodeId(hello.to_node))).map_err(|error| wire::to_status(&error))?;
        let (flushes, outgoing) = mpsc::channel(FLUSHES_IN_FLIGHT_MAX);
        let service = self.clone();
        spawn(async move { service.answer_frames(hello, incoming, flushes).await });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    async fn snapshot(&self, request: Request<Streaming<SnapshotChunk>>) -> Result<Response<SnapshotDone>, Status> {
        let mut chunks = request.into_inner();
        let header = snapshot::receive_header(&mut chunks).await?;
        self.check(header.cluster, None).map_err(|error| wire::to_status(&error))?;
        if self.node.takes_no_more_of(ShardId(header.group)) {
            self.node.check_room().map_err(|error| wire::to_status(&error))?;
        }
        let vote = snapshot::receive(&self.node, header, chunks).await?;
        ::metrics::counter!(metrics::SNAPSHOTS_RECEIVED).increment(1);
        Ok(Response::new(SnapshotDone { vote: Some(vote) }))
    }

    async fn ask(&self, request: Request<AskRequest>) -> Result<Response<AskResponse>, Status> {
        let asked = request.into_inner();
        // A newcomer knows no cluster yet; it may ask to join, and who this is.
        if asked.cluster != 0 {
            self.check(asked.cluster, None).map_err(|error| wire::to_status(&error))?;
        } else if !super::super::ask::open_to_strangers(&asked.kind) {
            return Err(wire::to_status(&Error::new(Reason::WrongCluster, "the question names no cluster")));
        }
        let body = self.node.answer(&asked.kind, asked.body).await.map_err(|error| wire::to_status(&error))?;
        Ok(Response::new(AskResponse { body }))
    }
}

impl PeerService {
    /// Hands frames to their groups in order and sends the answers back as they come, batched.
    async fn answer_frames(
        &self,
        hello: FrameBatch,
        mut incoming: Streaming<FrameBatch>,
        flushes: mpsc::Sender<Result<FrameBatch, Status>>,
    ) {
        let mut in_hand = FuturesUnordered::new();
        let mut ready: Vec<Frame> = Vec::new();
        let from_node = hello.to_node;
        let to_node = hello.from_node;
        let cluster = hello.cluster;
        // A node that has stopped ends its side of the link, or its port would wait for the other's.
        let mut stopped = self.node.stopped();
        let stopped = stopped.wait_for(|&stopped| stopped);
        tokio::pin!(stopped);
        let mut open = true;
        loop {
            if !ready.is_empty() {
                // Answers that are about to be ready ride along.
                yield_now().await;
                let permit = flushes.reserve().await;
                let Ok(permit) = permit else { return };
                while ready.len() < FLUSH_ANSWERS_MAX {
                    let Some(frame) = poll_ready(&mut in_hand).await else { break };
                    ready.push(frame);
                }
                permit.send(Ok(FrameBatch { cluster, from_node, to_node, frames: std::mem::take(&mut ready) }));
            }
            if !open && in_hand.is_empty() {
                return;
            }
            tokio::select! {
                biased;
                Some(frame) = in_hand.next(), if !in_hand.is_empty() => ready.push(frame),
                batch = incoming.message(), if open && in_hand.len() < FRAMES_IN_HAND_MAX => match batch {
                    Ok(Some(batch)) => {
                        if self.check(batch.cluster, Some(NodeId(batch.to_node))).is_err() {
                            return;
                        }
                        for frame in batch.frames {
                            in_hand.push(self.dispatch(frame));
                        }
                    }
                    Ok(None) | Err(_) => {
                        open = false;
                        // A node that only ever follows the other has no link of its own to it that could break.
                        self.node.links().tell(Sign::LinkBroke(NodeId(to_node)));
                    }
                },
                _ = &mut stopped, if open => open = false,
            }
        }
    }

    /// Gives one frame to its group now (order matters) and returns the wait for its answer.
    fn dispatch(&self, frame: Frame) -> impl Future<Output = Frame> + Send + use<> {
        let (answer, answered) = oneshot::channel();
        let to = ReplicaId(frame.to_replica);
        let shard = ShardId(frame.group);
        let mut held = None;
        let hosted = self.node.replicas().get(shard);
        match (hosted, Kind::from_number(frame.kind)) {
            (Some(_), Some(kind))
                if self.node.takes_no_more_of(shard) && raft::carries_entries(kind, &frame.payload) =>
            {
                let _ = answer.send(Err("the disk of this node is full".to_owned()));
            }
            (Some(hosted), Some(kind)) => {
                hosted.receive(ReplicaId(frame.from_replica), to, kind, frame.payload, answer);
            }
            (None, Some(kind)) => held = Some((self.node.clone(), kind, frame.payload, answer)),
            (_, None) => {
                let _ = answer.send(Err("the kind of the frame is unknown to this version".to_owned()));
            }
        }
        let (group, from, kind, correlation) = (frame.group, frame.from_replica, frame.kind, frame.correlation);
        async move {
            if let Some((node, kind, payload, answer)) = held {
                let appeared = timeout(UNKNOWN_REPLICA_HELD, node.replicas().wait_for(shard)).await;
                match appeared {
                    Some(shard) => shard.receive(ReplicaId(from), to, kind, payload, answer),
                    None => {
                        ::metrics::counter!(metrics::FRAMES_REFUSED).increment(1);
                        let _ = answer.send(Err(format!("this node hosts no replica of {shard}")));
                    }
                }
            }
            let (payload, refused) = match answered.await {
                Ok(Ok(payload)) => (payload, None),
                Ok(Err(why)) => (Bytes::new(), Some(why)),
                Err(_) => (Bytes::new(), Some("the replica stopped".to_owned())),
            };
            Frame { group, from_replica: to.0, to_replica: from, kind, correlation, answer: true, payload, refused }
        }
    }
}

/// The next answer if one is ready now.
async fn poll_ready<F: Future>(in_hand: &mut FuturesUnordered<F>) -> Option<F::Output> {
    std::future::poll_fn(|context| match std::pin::Pin::new(&mut *in_hand).poll_next(context) {
        std::task::Poll::Ready(frame) => std::task::Poll::Ready(frame),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}
