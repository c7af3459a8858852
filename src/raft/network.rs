//! Other replicas as openraft sees them, over the node's transport.
//!
//! Append requests to one replica are pipelined: as many are on their way as fit a window, their answers taken in the
//! order of the requests, which the transport keeps. openraft puts no deadline on such a stream, so there is one here,
//! for each answer: a link that swallows what it is given must not hold replication up for ever.
//!
//! A request without entries only tells how far the log is committed. While entries flow, the next ones tell it too, a
//! moment later; so such a request waits that moment, and is not sent if they come. What it would have told is in them,
//! and their answer counts for both.
//!
//! An answer proves that the leader was followed when the request that it answers was sent, and nothing of later ones.
//! openraft counts it for later ones too if they end at the same place in the log, as a request without entries does
//! behind the one that carried the last; so no request is stamped later than the oldest one on its way whose answer could
//! count for it ([`no_later_than`]). Without this, a leader that wakes from a pause could take answers from before it for a
//! confirmation that it still leads.
//!
//! Errors decide how soon openraft asks again: *unreachable* after a pause, *network* at once. A connection that broke
//! may be replaced already, so it is *network*; a node that is not there or refuses is *unreachable*.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::Either;
use futures::{FutureExt, Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption, RaftNetworkFactory,
};
use openraft::raft::{SnapshotResponse, StreamAppendResult, TransferLeaderError, TransferLeaderResponse};
use openraft::{OptionalSend, RPCTypes};
use tokio::sync::oneshot;

use super::apply::SnapshotFiles;
use super::codec;
use super::log::LogStore;
use super::metrics;
use super::options::Timers;
use super::runtime::no_later_than;
use super::transport::{Kind, Outgoing, Transport, TransportError};
use super::types::{AppendRequest, LogId, Snapshot, TransferRequest, TypeConfig, Vote, VoteRequest, VoteResponse};
use crate::runtime::{self, Clock, Instant};
use crate::types::{NodeId, ReplicaId, ShardId};
use crate::wire::proto::internal as proto;

/// Append requests on their way to one replica.
const WINDOW_REQUESTS: usize = 32;
/// Bytes on their way to one replica; a single larger request still goes, alone.
const WINDOW_BYTES: usize = 4 << 20;

/// How long the news that entries are committed waits for the next entries. A busy shard has some within that time;
/// followers of one that is not apply this much later.
const COMMIT_NEWS_DELAY: Duration = Duration::from_millis(1);

type RpcError = RPCError<TypeConfig>;

/// Whether a voter refused this replica its vote since its own log goes further.
#[derive(Clone, Debug, Default)]
pub struct Behind(Arc<AtomicBool>);

impl Behind {
    /// Whether that has happened since it was last forgotten.
    pub fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Before another election.
    pub fn forget(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Makes connections to the other replicas of one group.
#[derive(Clone)]
pub struct Network {
    group: ShardId,
    from: ReplicaId,
    /// How long an answer to an append may take: longer than any healthy sync of a log, short enough to notice.
    patience: Duration,
    /// Knows which entries all members hold.
    log: LogStore,
    behind: Behind,
    transport: Arc<dyn Transport>,
    clock: Clock,
}

impl Network {
    /// For a replica of a group.
    pub fn new(
        group: ShardId,
        from: ReplicaId,
        timers: Timers,
        log: LogStore,
        behind: Behind,
        transport: Arc<dyn Transport>,
        clock: Clock,
    ) -> Network {
        Network { group, from, patience: 2 * timers.election_max, log, behind, transport, clock }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &NodeId) -> Peer {
        Peer { network: self.clone(), to: ReplicaId(target), node: *node }
    }
}

/// One other replica.
#[derive(Clone)]
pub struct Peer {
    network: Network,
    to: ReplicaId,
    node: NodeId,
}

type Answer = oneshot::Receiver<Result<Bytes, TransportError>>;

fn rpc_error(error: TransportError) -> RpcError {
    match error {
        TransportError::Unreachable(_) | TransportError::Refused(_) => {
            RPCError::Unreachable(Unreachable::from_string(error))
        }
        TransportError::Closed => RPCError::Network(NetworkError::from_string(error)),
    }
}

/// An answer that cannot be understood; asking again at once would bring the same.
fn bad_answer(error: codec::CodecError) -> RpcError {
    RPCError::Unreachable(Unreachable::from_string(error))
}

impl Peer {
    fn send(&self, kind: Kind, payload: Bytes) -> Answer {
        let Network { group, from, .. } = self.network;
        self.network.transport.send(self.node, Outgoing { group, from, to: self.to, kind, payload })
    }

    /// Sends a message and waits for its answer.
    async fn ask(&self, kind: Kind, payload: Bytes, patience: Duration) -> Result<Bytes, RpcError> {
        let answer = self.send(kind, payload);
        match runtime::timeout(patience, answer).await {
            Some(Ok(Ok(payload))) => Ok(payload),
            Some(Ok(Err(error))) => Err(rpc_error(error)),
            Some(Err(_)) => Err(rpc_error(TransportError::Closed)),
            None => {
                Err(self
                    .timeout(if kind == Kind::Transfer { RPCTypes::TransferLeader } else { RPCTypes::Vote }, patience))
            }
        }
    }

    fn timeout(&self, action: RPCTypes, timeout: Duration) -> RpcError {
        RPCError::Timeout(Timeout { action, id: self.network.from.0, target: self.to.0, timeout })
    }
}

impl NetBackoff<TypeConfig> for Peer {
    fn backoff(&self) -> Option<Backoff> {
        None
    }
}

impl NetVote<TypeConfig> for Peer {
    async fn vote(&mut self, request: VoteRequest, option: RPCOption) -> Result<VoteResponse, RpcError> {
        let answer = self.ask(Kind::Vote, codec::encode_vote_request(&request), option.hard_ttl()).await?;
        let answer = codec::decode_vote_response(answer).map_err(bad_answer)?;
        if !answer.vote_granted && answer.last_log_id > request.last_log_id {
            self.network.behind.note();
        }
        Ok(answer)
    }

    /// Written out because openraft's own default grants the vote.
    async fn pre_vote(&mut self, request: VoteRequest, option: RPCOption) -> Result<VoteResponse, RpcError> {
        let answer = self.ask(Kind::PreVote, codec::encode_vote_request(&request), option.hard_ttl()).await?;
        codec::decode_vote_response(answer).map_err(bad_answer)
    }
}

impl NetTransferLeader<TypeConfig> for Peer {
    async fn transfer_leader(
        &mut self,
        request: TransferRequest,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let answer = self.ask(Kind::Transfer, codec::encode_transfer(&request), option.hard_ttl()).await?;
        let answer = codec::decode_vote_response(answer).map_err(bad_answer)?;
        Ok(if answer.vote_granted {
            Ok(())
        } else if answer.vote == *request.from_leader() {
            let expected = request.last_log_id().copied();
            Err(TransferLeaderError::LogNotFlushed { expected, actual: answer.last_log_id })
        } else {
            Err(TransferLeaderError::VoteChanged { expected: *request.from_leader(), actual: answer.vote })
        })
    }
}

impl NetSnapshot<TypeConfig> for Peer {
    type SnapshotData = SnapshotFiles;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let unreachable = |error: String| StreamingError::Unreachable(Unreachable::from_string(error));
        let Snapshot { meta, snapshot: mut files } = snapshot;
        let header = proto::SnapshotHeader {
            cluster: 0,
            group: self.network.group.0,
            from_replica: self.network.from.0,
            to_replica: self.to.0,
            vote: Some(codec::vote_to_proto(&vote)),
            mark: Some(codec::mark_to_proto(meta.last_log_id.as_ref(), &meta.last_membership)),
            snapshot_id: files.name.clone(),
            summary: files.summary.clone(),
        };
        let opened = runtime::spawn_blocking(move || {
            let cut = files.take_cut();
            (files, cut)
        });
        let (files, cut) = opened.await.map_err(|error| unreachable(error.to_string()))?;
        let cut = cut.map_err(|error| unreachable(error.to_string()))?;
        let cut = cut.ok_or_else(|| unreachable("a snapshot without a cut cannot be sent".to_owned()))?;
        tracing::info!(group = %self.network.group, to = %self.to, node = %self.node, "sending a snapshot");
        let sending = pin!(self.network.transport.send_snapshot(self.node, header, cut));
        let result = match futures::future::select(sending, pin!(cancel)).await {
            Either::Left((sent, _)) => match sent {
                Ok(vote) => codec::vote_from_proto(Some(vote)).map_err(bad_answer),
                Err(error) => Err(rpc_error(error)),
            },
            Either::Right((closed, _)) => return Err(StreamingError::Closed(closed)),
        };
        let _ = runtime::spawn_blocking(move || drop(files)).await;
        let vote = result.inspect_err(|error| {
            tracing::warn!(group = %self.network.group, to = %self.to, %error, "a snapshot could not be sent");
        })?;
        ::metrics::counter!(metrics::SNAPSHOTS_SENT).increment(1);
        Ok(SnapshotResponse::new(vote))
    }
}

impl NetStreamAppend<TypeConfig> for Peer {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendRequest> + OptionalSend + Unpin + 'static,
    {
        let stream: BoxStream<'s, _> = Box::pin(Appends {
            peer: self.clone(),
            input: Some(input),
            in_flight: VecDeque::new(),
            bytes: 0,
            deadline: None,
            timer: None,
            ended: false,
            flowing: false,
            news: None,
        });
        std::future::ready(Ok(stream)).boxed()
    }
}

/// A request on its way.
struct InFlight {
    sent: Instant,
    previous: Option<LogId>,
    last: Option<LogId>,
    bytes: usize,
    answer: Answer,
}

/// When the oldest request was sent whose answer openraft would take for one to the next request too, should that have no
/// entries: the first of those at the end of the line that end at the same place in the log. None if nothing is on its way.
fn answerable_by(in_flight: &VecDeque<InFlight>) -> Option<Instant> {
    let end = in_flight.back()?.last;
    in_flight.iter().rev().take_while(|request| request.last == end).last().map(|request| request.sent)
}

type Timer = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Append requests in, their answers out, in the same order.
struct Appends<S> {
    peer: Peer,
    input: Option<S>,
    in_flight: VecDeque<InFlight>,
    bytes: usize,
    /// When the answer to the oldest request is overdue.
    deadline: Option<Instant>,
    /// Rings at or before `deadline`; set anew only when it rings, not for every answer.
    timer: Option<Timer>,
    ended: bool,
    /// Whether this stream has carried entries: before that, an empty request is a probe and goes at once.
    flowing: bool,
    /// A request that tells only of a commit, and when it goes if nothing else comes.
    news: Option<(AppendRequest, Timer)>,
}

impl<S: Stream<Item = AppendRequest> + Unpin> Appends<S> {
    /// Sends what there is, as far as the window goes.
    fn fill(&mut self, context: &mut Context<'_>) {
        while let Some(input) = &mut self.input {
            if self.in_flight.len() >= WINDOW_REQUESTS || self.bytes >= WINDOW_BYTES {
                return;
            }
            let stamped_by = answerable_by(&self.in_flight);
            match no_later_than(stamped_by, || input.poll_next_unpin(context)) {
                Poll::Ready(Some(request)) if request.entries.is_empty() && self.flowing => {
                    // Later news replaces earlier news, but does not wait longer for it.
                    let timer = self.news.take().map(|(_, timer)| timer);
                    let timer = timer.unwrap_or_else(|| Box::pin(runtime::sleep(COMMIT_NEWS_DELAY)));
                    self.news = Some((request, timer));
                }
                Poll::Ready(Some(request)) => {
                    self.flowing |= !request.entries.is_empty();
                    self.news = None;
                    self.send(request);
                }
                Poll::Ready(None) => self.input = None,
                Poll::Pending => break,
            }
        }
        if let Some((_, timer)) = &mut self.news
            && (self.input.is_none() || timer.poll_unpin(context).is_ready())
            && let Some((request, _)) = self.news.take()
        {
            self.send(request);
        }
    }

    fn send(&mut self, request: AppendRequest) {
        let previous = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.id).or(previous);
        let payload = codec::encode_append(&request, self.peer.network.log.held());
        let bytes = payload.len();
        let sent = self.peer.network.clock.now();
        let answer = self.peer.send(Kind::Append, payload);
        self.bytes += bytes;
        self.in_flight.push_back(InFlight { sent, previous, last, bytes, answer });
        if self.deadline.is_none() {
            self.restart_clock();
        }
    }

    fn restart_clock(&mut self) {
        let network = &self.peer.network;
        self.deadline = (!self.in_flight.is_empty()).then(|| network.clock.now() + network.patience);
    }

    /// Whether the oldest answer is overdue; if not, we are woken when it is.
    fn overdue(&mut self, context: &mut Context<'_>) -> bool {
        let Some(deadline) = self.deadline else { return false };
        loop {
            let timer = self.timer.get_or_insert_with(|| Box::pin(runtime::sleep_until(deadline)));
            if timer.poll_unpin(context).is_pending() {
                return false;
            }
            self.timer = None;
            if self.peer.network.clock.now() >= deadline {
                return true;
            }
        }
    }

    fn end(&mut self) {
        self.ended = true;
        self.input = None;
        self.news = None;
        self.in_flight.clear();
    }
}

impl<S: Stream<Item = AppendRequest> + Unpin> Stream for Appends<S> {
    type Item = Result<StreamAppendResult<TypeConfig>, RpcError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        this.fill(context);
        let Some(oldest) = this.in_flight.front_mut() else {
            return if this.input.is_none() { Poll::Ready(None) } else { Poll::Pending };
        };
        let Poll::Ready(answer) = oldest.answer.poll_unpin(context) else {
            if this.overdue(context) {
                ::metrics::counter!(metrics::APPENDS_OVERDUE).increment(1);
                this.end();
                return Poll::Ready(Some(Err(this.peer.timeout(RPCTypes::AppendEntries, this.peer.network.patience))));
            }
            return Poll::Pending;
        };
        let InFlight { previous, last, bytes, .. } = this.in_flight.pop_front().expect("it was just looked at");
        this.bytes -= bytes;
        this.restart_clock();
        let answer = answer.unwrap_or(Err(TransportError::Closed)).map_err(rpc_error);
        let appended =
            answer.and_then(|payload| codec::decode_append_response(payload, previous, last).map_err(bad_answer));
        // After a request that was not taken whole, those behind it do not fit either.
        if !matches!(&appended, Ok(Ok(matched)) if *matched == last) {
            this.end();
        }
        Poll::Ready(Some(appended))
    }
}
