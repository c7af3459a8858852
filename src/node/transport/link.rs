//! The asking side: links to peers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use super::snapshot;
use crate::node::metrics;
use crate::node::takeover::Sign;
use crate::raft::{Cut, Outgoing, Transport, TransportError};
use crate::runtime::{Clock, Instant, random_u64, sleep, spawn, timeout, yield_now};
use crate::types::{ClusterId, Error, NodeId, Reason, Result};
use crate::wire::proto::internal::peer_client::PeerClient;
use crate::wire::proto::internal::{AskRequest, Frame, FrameBatch, SnapshotHeader, Vote};
use crate::wire::{self, Channel};

/// Frames waiting for one peer; beyond that Raft is told the peer is unreachable and backs off.
const QUEUE_FRAMES_MAX: usize = 16_384;
/// Frames in one flush.
const FLUSH_FRAMES_MAX: usize = 1_024;
/// Bytes of payload after which a flush is full.
const FLUSH_BYTES_MAX: usize = 2 << 20;
/// Flushes handed to HTTP/2 and not yet taken by it: enough to keep it busy, few enough to batch.
const FLUSHES_IN_FLIGHT_MAX: usize = 2;
/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Between attempts to reach a peer that does not answer: the shortest and the longest wait.
const RECONNECT_WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// HTTP/2 pings: a half-open connection (a partition, a machine gone) is noticed after these two.
const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest message between nodes: a flush, or one entry of the largest batch.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// How long a peer may be silent and still count as alive.
const ALIVE_WITHIN: Duration = Duration::from_secs(3);

/// Settings of every connection between nodes.
pub fn endpoint(address: &str) -> Result<Endpoint> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| Error::invalid(format!("'{address}' is not an address of the form host:port")))?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20))
}

/// A client of the peer service over a channel.
pub(super) fn peer_client(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The links of this node to all others.
pub struct Links {
    me: NodeId,
    clock: Clock,
    cluster: AtomicU64,
    addresses: RwLock<HashMap<NodeId, String>>,
    links: RwLock<HashMap<NodeId, Arc<Link>>>,
    /// Told of links that broke, and of nodes that started again.
    signs: mpsc::Sender<Sign>,
}

type Pending = HashMap<u64, oneshot::Sender<Result<Bytes, TransportError>>>;

/// One peer.
struct Link {
    queue: mpsc::Sender<Question>,
    heard: Arc<Heard>,
}

/// A frame on its way, with the one who waits for the answer.
type Question = (Frame, oneshot::Sender<Result<Bytes, TransportError>>);

/// When something was last heard from a peer.
type Heard = Mutex<Option<Instant>>;

impl Links {
    /// No links yet; they are made when first used.
    pub fn new(me: NodeId, clock: Clock, signs: mpsc::Sender<Sign>) -> Arc<Links> {
        Arc::new(Links {
            me,
            clock,
            cluster: AtomicU64::new(0),
            addresses: RwLock::default(),
            links: RwLock::default(),
            signs,
        })
    }

    /// Sets the cluster named in every frame, once it is known.
    pub fn set_cluster(&self, cluster: ClusterId) {
        self.cluster.store(cluster.0, Ordering::Relaxed);
    }

    /// Learns where a node is. A link that stands keeps standing; the next connection goes to the new address.
    pub fn set_address(&self, node: NodeId, address: &str) {
        let known = self.addresses.read().get(&node).is_some_and(|known| known == address);
        if !known {
            self.addresses.write().insert(node, address.to_owned());
        }
    }

    /// Where a node is.
    pub fn address(&self, node: NodeId) -> Option<String> {
        self.addresses.read().get(&node).cloned()
    }

    /// The nodes whose address is known.
    pub fn known(&self) -> Vec<NodeId> {
        self.addresses.read().keys().copied().collect()
    }

    /// Whether something was heard from a node lately.
    pub fn is_alive(&self, node: NodeId) -> bool {
        if node == self.me {
            return true;
        }
        let heard = self.links.read().get(&node).and_then(|link| *link.heard.lock());
        heard.is_some_and(|heard| self.clock.now().saturating_duration_since(heard) < ALIVE_WITHIN)
    }

    /// Tells that something was seen of a node that may be gone; lost if too much waits to be looked into.
    pub fn tell(&self, sign: Sign) {
        let _ = self.signs.try_send(sign);
    }

    /// A node was gone at that moment: it counts as alive again when something is heard from it, or if it has been since.
    pub fn silence(&self, node: NodeId, at: Instant) {
        if let Some(link) = self.links.read().get(&node) {
            link.heard.lock().take_if(|heard| *heard <= at);
        }
    }

    /// Ends all links.
    pub fn close(&self) {
        self.links.write().clear();
    }

    fn link(self: &Arc<Links>, to: NodeId) -> Arc<Link> {
        if let Some(link) = self.links.read().get(&to) {
            return link.clone();
        }
        let mut links = self.links.write();
        links
            .entry(to)
            .or_insert_with(|| {
                let (queue, queued) = mpsc::channel(QUEUE_FRAMES_MAX);
                let heard = Arc::new(Heard::new(None));
                spawn(run(Arc::downgrade(self), to, heard.clone(), queued));
                Arc::new(Link { queue, heard })
            })
            .clone()
    }

    /// Asks a node a rare question; see [`super::super::ask`].
    pub async fn ask(&self, address: &str, kind: &str, body: Bytes, patience: Duration) -> Result<Bytes> {
        let request = AskRequest {
            cluster: self.cluster.load(Ordering::Relaxed),
            from_node: self.me.0,
            kind: kind.to_owned(),
            body,
        };
        let endpoint = endpoint(address)?;
        let asked = async {
            let channel = Channel::connect(address, &endpoint).await.map_err(|error| {
                Error::new(Reason::NotReady, format!("cannot reach the node at {address}: {}", root_cause(&*error)))
            })?;
            let answer =
                peer_client(channel).ask(request).await.map_err(|status| wire::error_of_status(&status, false))?;
            Ok(answer.into_inner().body)
        };
        timeout(patience, asked).await.unwrap_or_else(|| {
            Err(Error::new(Reason::DeadlineExceeded, format!("the node at {address} did not answer in time")))
        })
    }
}

/// The last sentence of a chain of errors, which says what really happened.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// A transport as groups see it.
pub struct LinkTransport(pub Arc<Links>);

impl Transport for LinkTransport {
    fn send(&self, to: NodeId, frame: Outgoing) -> oneshot::Receiver<Result<Bytes, TransportError>> {
        let (answer, answered) = oneshot::channel();
        let frame = Frame {
            group: frame.group.0,
            from_replica: frame.from.0,
            to_replica: frame.to.0,
            kind: frame.kind.number(),
            correlation: 0,
            answer: false,
            payload: frame.payload,
            refused: None,
        };
        if let Err(error) = self.0.link(to).queue.try_send((frame, answer)) {
            let (_, answer) = error.into_inner();
            let _ = answer.send(Err(TransportError::Unreachable("too many frames wait for this node".to_owned())));
        }
        answered
    }

    fn send_snapshot(
        &self,
        to: NodeId,
        mut header: SnapshotHeader,
        cut: Box<dyn Cut>,
    ) -> BoxFuture<'static, Result<Vote, TransportError>> {
        header.cluster = self.0.cluster.load(Ordering::Relaxed);
        let address = self.0.address(to);
        Box::pin(async move {
            let address = address.ok_or_else(|| TransportError::Unreachable(format!("{to} has no known address")))?;
            snapshot::send(&address, header, cut).await
        })
    }
}

/// Keeps one link: connects when there is something to say, reconnects with a growing wait.
async fn run(links: std::sync::Weak<Links>, to: NodeId, heard: Arc<Heard>, mut queue: mpsc::Receiver<Question>) {
    let mut wait = RECONNECT_WAIT.0;
    let mut first = None;
    loop {
        if first.is_none() {
            first = queue.recv().await;
        }
        let (Some(links), true) = (links.upgrade(), first.is_some()) else { return };
        let stood = match links.address(to) {
            Some(address) => {
                let connected = connect(&links, to, &address).await;
                match connected {
                    Ok(connection) => {
                        wait = RECONNECT_WAIT.0;
                        let taken = first.take();
                        converse(&links, to, &heard, connection, taken, &mut queue).await;
                        ::metrics::counter!(metrics::LINKS_BROKEN).increment(1);
                        links.tell(Sign::LinkBroke(to));
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            }
            None => Err(format!("{to} has no known address")),
        };
        // Everything asked while there is no link fails now: Raft keeps its own time for asking again.
        let why = stood.err().unwrap_or_else(|| "the connection broke".to_owned());
        let refuse = |answer: oneshot::Sender<Result<Bytes, TransportError>>| {
            let _ = answer.send(Err(TransportError::Unreachable(why.clone())));
        };
        if let Some((_, answer)) = first.take() {
            refuse(answer);
        }
        drop(links);
        let jitter = Duration::from_millis(random_u64() % 20);
        let pause = sleep(wait + jitter);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                asked = queue.recv() => match asked {
                    Some((_, answer)) => refuse(answer),
                    None => return,
                },
            }
        }
        wait = (wait * 2).min(RECONNECT_WAIT.1);
    }
}

struct Connection {
    flushes: mpsc::Sender<FrameBatch>,
    answers: tonic::Streaming<FrameBatch>,
}

async fn connect(links: &Links, to: NodeId, address: &str) -> Result<Connection, String> {
    let endpoint = endpoint(address).map_err(|error| error.message)?;
    let attempt = async {
        let channel = Channel::connect(address, &endpoint).await.map_err(|error| root_cause(&*error))?;
        let (flushes, outgoing) = mpsc::channel(FLUSHES_IN_FLIGHT_MAX);
        // The first flush introduces this node, so that the other side answers the call at once.
        let hello = FrameBatch {
            cluster: links.cluster.load(Ordering::Relaxed),
            from_node: links.me.0,
            to_node: to.0,
            frames: Vec::new(),
        };
        let _ = flushes.try_send(hello);
        let answers = peer_client(channel)
            .frames(ReceiverStream::new(outgoing))
            .await
            .map_err(|status| status.message().to_owned())?
            .into_inner();
        Ok(Connection { flushes, answers })
    };
    timeout(2 * CONNECT_TIMEOUT, attempt).await.unwrap_or_else(|| Err(format!("{address} did not answer in time")))
}

/// Speaks over a standing link until it breaks.
async fn converse(
    links: &Links,
    to: NodeId,
    heard: &Heard,
    connection: Connection,
    first: Option<Question>,
    queue: &mut mpsc::Receiver<Question>,
) {
    let Connection { flushes, mut answers } = connection;
    let mut pending: Pending = HashMap::new();
    let mut next = 1u64;
    let mut taken: Vec<_> = first.into_iter().collect();
    *heard.lock() = Some(links.clock.now());
    loop {
        if !taken.is_empty() {
            // What other groups are about to say rides along: one turn of the scheduler, and a permit, which comes
            // late when HTTP/2 is busy.
            yield_now().await;
            let permit = tokio::select! {
                permit = flushes.reserve() => permit,
                answered = answers.message() => {
                    if !take_answers(answered, &mut pending, heard, &links.clock) { break }
                    continue;
                }
            };
            let Ok(permit) = permit else { break };
            let mut bytes: usize = taken.iter().map(|(frame, _)| frame.payload.len()).sum();
            while taken.len() < FLUSH_FRAMES_MAX && bytes < FLUSH_BYTES_MAX {
                let Ok(asked) = queue.try_recv() else { break };
                bytes += asked.0.payload.len();
                taken.push(asked);
            }
            let mut frames = Vec::with_capacity(taken.len());
            for (mut frame, answer) in taken.drain(..) {
                frame.correlation = next;
                pending.insert(next, answer);
                next += 1;
                frames.push(frame);
            }
            ::metrics::counter!(metrics::FRAMES_SENT).increment(frames.len() as u64);
            ::metrics::histogram!(metrics::FLUSH_FRAMES).record(frames.len() as f64);
            permit.send(FrameBatch {
                cluster: links.cluster.load(Ordering::Relaxed),
                from_node: links.me.0,
                to_node: to.0,
                frames,
            });
        }
        tokio::select! {
            answered = answers.message() => {
                if !take_answers(answered, &mut pending, heard, &links.clock) { break }
            }
            asked = queue.recv() => match asked {
                Some(asked) => taken.push(asked),
                None => break,
            },
        }
    }
    for (_, answer) in taken {
        let _ = answer.send(Err(TransportError::Unreachable("the connection broke".to_owned())));
    }
    for (_, answer) in pending {
        let _ = answer.send(Err(TransportError::Closed));
    }
}

/// Hands answers to those who asked; false when the link is broken.
fn take_answers(
    answered: Result<Option<FrameBatch>, tonic::Status>,
    pending: &mut Pending,
    heard: &Heard,
    clock: &Clock,
) -> bool {
    let Ok(Some(batch)) = answered else { return false };
    *heard.lock() = Some(clock.now());
    for frame in batch.frames {
        let Some(answer) = pending.remove(&frame.correlation) else { continue };
        let _ = answer.send(match frame.refused {
            Some(why) => Err(TransportError::Refused(why)),
            None => Ok(frame.payload),
        });
    }
    // Those who gave up waiting leave their places; sweep them now and then so that they do not pile up.
    if pending.len() > QUEUE_FRAMES_MAX {
        pending.retain(|_, answer| !answer.is_closed());
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_found_out_before_a_node_was_heard_again_does_not_silence_it() {
        let clock = Clock::system();
        let (signs, _seen) = mpsc::channel(1);
        let links = Links::new(NodeId(1), clock.clone(), signs);
        let link = links.link(NodeId(2));
        let refused = clock.now();
        let heard = refused + Duration::from_millis(1);
        *link.heard.lock() = Some(heard);
        links.silence(NodeId(2), refused);
        assert!(links.is_alive(NodeId(2)), "it came back since");
        links.silence(NodeId(2), heard);
        assert!(!links.is_alive(NodeId(2)));
        links.silence(NodeId(3), heard);
    }
}
