//! The pipelined stream: many calls over one stream, run side by side, answered as they are ready.
//!
//! This is where most of a node's traffic passes, so a call costs no task and no channel of its own: the stream is
//! one state machine, polled by the task that writes the connection's frames. Each poll starts every call that has
//! arrived, lets every call that can go on go on, and sends all answers that are ready as one message. Calls that wait
//! for one proposal or one confirmation of leadership are woken together, so their answers leave together.
//!
//! Bounds: [`CALLS_MAX`] calls and [`BYTES_MAX`] bytes of requests are worked on per stream; beyond that nothing more
//! is read, and HTTP/2's flow control makes the sender wait. A message of answers is closed at [`FLUSH_BYTES`].
//!
//! The stream ends when its client has closed its side and every answer is sent. When the node stops, new calls are
//! refused one by one (so their callers know that nothing happened) for [`LINGER`], then the stream ends with
//! NOT_READY. When the client goes away the calls are dropped: what became of their writes is for it to ask, by
//! their request ids.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::{FuturesUnordered, Stream, StreamExt};
use prost::Message;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::Status;

use super::deadline;
use super::edge::{Edge, stopping_error};
use super::metrics::Method;
use crate::node;
use crate::runtime::{self, Instant};
use crate::types::Error;
use crate::wire::proto::v1::{Answer, Call, PipelineRequest, PipelineResponse};
use crate::wire::{self, to_failure, to_status};

/// Calls of one stream worked on at once. A client's stream carries what hundreds of its callers wait for; a batch
/// of the log takes no more than this anyway.
pub const CALLS_MAX: usize = 1_024;
/// Bytes of requests of one stream worked on at once: several of the largest batches.
pub const BYTES_MAX: usize = 32 << 20;
/// A message of answers is sent when it has this many bytes, though more answers are ready: large enough that its
/// frame costs nothing, small enough to stay well under every client's limit.
pub const FLUSH_BYTES: usize = 1 << 20;
/// Answers beyond this size are replaced by a refusal; leaves room for what is flushed with them.
pub const ANSWER_BYTES_MAX: usize = wire::RESPONSE_BYTES_MAX - 2 * FLUSH_BYTES;
/// How long a stopping node still reads calls to refuse them: some round trips.
const LINGER: Duration = Duration::from_millis(250);

/// Answers the calls that arrive on `incoming`.
pub fn pipeline<S>(edge: Edge, incoming: S) -> impl Stream<Item = Result<PipelineResponse, Status>> + Send
where
    S: Stream<Item = Result<PipelineRequest, Status>> + Send + Unpin + 'static,
{
    let stopping = Box::pin(edge.stopping().clone().cancelled_owned());
    edge.meters().pipelines.increment(1);
    Pipeline {
        serve: serve_call,
        incoming: Some(incoming),
        waiting: VecDeque::new(),
        running: FuturesUnordered::new(),
        running_bytes: 0,
        stopping: Stop::Awaited(stopping),
        failure: None,
        edge,
    }
}

/// A call on its way.
struct Started {
    edge: Edge,
    call: Call,
    size: usize,
    at: Instant,
}

/// A call that has been answered.
struct Finished {
    answer: Answer,
    size: usize,
    method: Option<Method>,
    at: Instant,
}

async fn serve_call(started: Started) -> Finished {
    let Started { edge, call, size, at } = started;
    let call = wire::call(call, edge.limits());
    let (id, single) = (call.id, call.single);
    let (method, result) = match call.question {
        Ok((table, request)) => {
            let method = Method::of(&request);
            let context = node::Context {
                deadline: at + deadline::granted(call.patience),
                forwarded: call.forwarded,
                table: call.table,
            };
            (Some(method), edge.answer(&table, request, context).await)
        }
        Err(error) => {
            edge.meters().failed(&error);
            (None, Err(error))
        }
    };
    Finished { answer: wire::answer(id, single, result), size, method, at }
}

enum Stop {
    Awaited(Pin<Box<WaitForCancellationFutureOwned>>),
    Lingering(Pin<Box<dyn Future<Output = ()> + Send>>),
    Due,
}

struct Pipeline<S, F, Fut> {
    edge: Edge,
    serve: F,
    /// None once it has ended.
    incoming: Option<S>,
    /// Read, but beyond the bounds so far.
    waiting: VecDeque<Call>,
    running: FuturesUnordered<Fut>,
    running_bytes: usize,
    stopping: Stop,
    /// What the client's side failed with; told after the last answer.
    failure: Option<Status>,
}

impl<S, F, Fut> Pipeline<S, F, Fut>
where
    S: Stream<Item = Result<PipelineRequest, Status>> + Unpin,
    F: Fn(Started) -> Fut,
    Fut: Future<Output = Finished>,
{
    fn has_room(&self) -> bool {
        // One call of any size always has room, or it would never be answered.
        self.running.is_empty() || (self.running.len() < CALLS_MAX && self.running_bytes < BYTES_MAX)
    }

    /// Starts all calls that have arrived and have room.
    fn poll_incoming(&mut self, cx: &mut Context<'_>) {
        let mut now = None;
        loop {
            while self.has_room()
                && let Some(call) = self.waiting.pop_front()
            {
                let size = call.encoded_len();
                self.running_bytes += size;
                let at = *now.get_or_insert_with(|| self.edge.clock().now());
                self.running.push((self.serve)(Started { edge: self.edge.clone(), call, size, at }));
            }
            let Some(incoming) = self.incoming.as_mut().filter(|_| self.waiting.is_empty()) else { return };
            if self.running.len() >= CALLS_MAX || self.running_bytes >= BYTES_MAX {
                return;
            }
            match incoming.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(request))) => self.waiting.extend(request.calls),
                Poll::Ready(Some(Err(status))) => {
                    self.failure = Some(wire::explain(&status).unwrap_or(status));
                    self.incoming = None;
                }
                Poll::Ready(None) => self.incoming = None,
                Poll::Pending => return,
            }
        }
    }

    /// Gathers all answers that are ready, up to a message's worth.
    fn poll_running(&mut self, cx: &mut Context<'_>) -> Vec<Answer> {
        let (mut answers, mut bytes, mut now) = (Vec::new(), 0, None);
        while bytes < FLUSH_BYTES
            && let Poll::Ready(Some(finished)) = self.running.poll_next_unpin(cx)
        {
            self.running_bytes -= finished.size;
            if let Some(method) = finished.method {
                let now = *now.get_or_insert_with(|| self.edge.clock().now());
                self.edge.meters().answered(method, now - finished.at);
            }
            let mut answer = finished.answer;
            let size = answer.encoded_len();
            if size > ANSWER_BYTES_MAX {
                let refusal = to_failure(&too_large(size));
                answer.answer = Some(crate::wire::proto::v1::answer::Answer::Failure(refusal));
            }
            bytes += answer.encoded_len();
            answers.push(answer);
        }
        answers
    }

    /// Whether the node stops and the stream has nothing more to wait for.
    fn poll_stop(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            match &mut self.stopping {
                Stop::Awaited(signal) => match signal.as_mut().poll(cx) {
                    Poll::Ready(()) => self.stopping = Stop::Lingering(Box::pin(runtime::sleep(LINGER))),
                    Poll::Pending => return false,
                },
                Stop::Lingering(time) => match time.as_mut().poll(cx) {
                    Poll::Ready(()) => self.stopping = Stop::Due,
                    Poll::Pending => return false,
                },
                Stop::Due => return true,
            }
        }
    }
}

impl<S, F, Fut> Stream for Pipeline<S, F, Fut>
where
    S: Stream<Item = Result<PipelineRequest, Status>> + Unpin,
    F: Fn(Started) -> Fut + Unpin,
    Fut: Future<Output = Finished>,
{
    type Item = Result<PipelineResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            this.poll_incoming(cx);
            let answers = this.poll_running(cx);
            if !answers.is_empty() {
                this.edge.meters().flush_answers.record(answers.len() as f64);
                return Poll::Ready(Some(Ok(PipelineResponse { answers })));
            }
            if !this.running.is_empty() {
                // Wakes for answers; if the calls were bounded, room comes with an answer.
                this.poll_stop(cx);
                return Poll::Pending;
            }
            if !this.waiting.is_empty() {
                continue;
            }
            if this.incoming.is_none() {
                return Poll::Ready(this.failure.take().map(Err));
            }
            if this.poll_stop(cx) {
                this.incoming = None;
                this.failure = None;
                return Poll::Ready(Some(Err(to_status(&stopping_error()))));
            }
            return Poll::Pending;
        }
    }
}

impl<S, F, Fut> Drop for Pipeline<S, F, Fut> {
    fn drop(&mut self) {
        self.edge.meters().pipelines.decrement(1);
    }
}

/// The refusal of an answer nobody could receive.
pub fn too_large(size: usize) -> Error {
    Error::invalid(format!("the answer has {size} bytes; at most {ANSWER_BYTES_MAX} can be sent: ask for fewer keys"))
}

#[cfg(test)]
mod tests {
    use futures::channel::mpsc;

    use super::*;
    use crate::runtime::Clock;
    use crate::service::testing;
    use crate::types::Limits;
    use crate::wire::proto::v1::{GetRequest, answer, call};

    fn get(id: u64, key: &str) -> Call {
        let get = GetRequest { table: "t".into(), key: key.to_owned().into(), level: None };
        Call { id, call: Some(call::Call::Get(get)), deadline_ms: 0, forwarded: false, table_id: 0 }
    }

    fn message(calls: Vec<Call>) -> Result<PipelineRequest, Status> {
        Ok(PipelineRequest { calls })
    }

    fn ids(response: Option<Result<PipelineResponse, Status>>) -> Vec<u64> {
        let answers = response.expect("not the end").expect("no failure").answers;
        let mut ids: Vec<_> = answers.into_iter().map(|answer| answer.id).collect();
        ids.sort_unstable();
        ids
    }

    #[tokio::test]
    async fn what_is_ready_together_is_sent_together() {
        let edge = Edge::new(testing::echo_door(), Limits::default(), Clock::system());
        let (sender, receiver) = mpsc::unbounded();
        let mut stream = Box::pin(pipeline(edge, receiver));
        sender.unbounded_send(message(vec![get(1, "a"), get(2, "b")])).expect("open");
        sender.unbounded_send(message(vec![get(3, "c")])).expect("open");
        assert_eq!(ids(stream.next().await), [1, 2, 3]);
        sender.unbounded_send(message(vec![get(4, "d")])).expect("open");
        drop(sender);
        assert_eq!(ids(stream.next().await), [4]);
        assert!(stream.next().await.is_none(), "the client closed and everything is answered");
    }

    #[tokio::test]
    async fn a_slow_call_holds_nobody_up_and_is_answered_after_the_client_closed() {
        let (door, gate) = testing::gated_door();
        let edge = Edge::new(door, Limits::default(), Clock::system());
        let (sender, receiver) = mpsc::unbounded();
        let mut stream = Box::pin(pipeline(edge, receiver));
        sender.unbounded_send(message(vec![get(1, "slow"), get(2, "quick"), get(3, "")])).expect("open");
        drop(sender);
        assert_eq!(ids(stream.next().await), [2, 3]);
        gate.open();
        assert_eq!(ids(stream.next().await), [1]);
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn a_bad_call_is_refused_by_itself() {
        let edge = Edge::new(testing::echo_door(), Limits::default(), Clock::system());
        let mut nothing = get(2, "k");
        nothing.call = None;
        let calls = vec![get(1, "k"), nothing];
        let mut stream = Box::pin(pipeline(edge, futures::stream::iter([message(calls)])));
        let answers = stream.next().await.expect("an answer").expect("no failure").answers;
        let of = |id| answers.iter().find(|a| a.id == id).and_then(|a| a.answer.clone()).expect("answered");
        assert!(matches!(of(1), answer::Answer::Get(_)));
        assert!(matches!(of(2), answer::Answer::Failure(failure) if failure.reason == "INVALID_REQUEST"));
    }

    #[tokio::test]
    async fn calls_beyond_the_bound_wait_their_turn() {
        let (door, gate) = testing::gated_door();
        let edge = Edge::new(door, Limits::default(), Clock::system());
        let (sender, receiver) = mpsc::unbounded();
        let mut stream = Box::pin(pipeline(edge, receiver));
        let many = (0..CALLS_MAX as u64 + 5).map(|id| get(id, "slow")).collect();
        sender.unbounded_send(message(many)).expect("open");
        sender.unbounded_send(message(vec![get(9_999, "quick")])).expect("open");
        drop(sender);
        assert!(futures::poll!(stream.next()).is_pending());
        assert_eq!(gate.inside(), CALLS_MAX);
        gate.open();
        let mut seen = 0;
        while let Some(response) = stream.next().await {
            seen += response.expect("no failure").answers.len();
        }
        assert_eq!(seen, CALLS_MAX + 6);
    }

    #[tokio::test]
    async fn large_answers_leave_in_several_messages() {
        let value = bytes::Bytes::from(vec![0; FLUSH_BYTES / 2]);
        let edge = Edge::new(testing::constant_door(value), Limits::default(), Clock::system());
        let calls = (0..5).map(|id| get(id, "k")).collect();
        let mut stream = Box::pin(pipeline(edge, futures::stream::iter([message(calls)])));
        let mut sizes = Vec::new();
        while let Some(response) = stream.next().await {
            sizes.push(response.expect("no failure").answers.len());
        }
        assert_eq!(sizes, [2, 2, 1]);
    }

    #[tokio::test]
    async fn a_broken_client_side_ends_the_stream_after_its_answers() {
        let edge = Edge::new(testing::echo_door(), Limits::default(), Clock::system());
        let broken = Err(Status::internal("failed to decode"));
        let mut stream = Box::pin(pipeline(edge, futures::stream::iter([message(vec![get(1, "k")]), broken])));
        assert_eq!(ids(stream.next().await), [1]);
        let status = stream.next().await.expect("the failure").expect_err("a failure");
        assert!(status.message().ends_with("failed to decode"), "{status:?}");
        assert_eq!(wire::error_of_status(&status, true).reason, crate::types::Reason::InvalidRequest);
        assert!(stream.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopping_node_refuses_call_by_call_and_then_ends_the_stream() {
        let clock = Clock::system();
        let edge = Edge::new(testing::echo_door(), Limits::default(), clock.clone());
        let (sender, receiver) = mpsc::unbounded();
        let mut stream = Box::pin(pipeline(edge.clone(), receiver));
        assert!(futures::poll!(stream.next()).is_pending());
        assert!(edge.drain(clock.now()).await);
        assert!(futures::poll!(stream.next()).is_pending());
        sender.unbounded_send(message(vec![get(1, "k")])).expect("still open");
        let answers = stream.next().await.expect("an answer").expect("no failure").answers;
        let Some(answer::Answer::Failure(failure)) = &answers[0].answer else { panic!("refused") };
        assert_eq!(failure.reason, "NOT_READY");
        let status = stream.next().await.expect("the end").expect_err("says why");
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert!(stream.next().await.is_none());
    }
}
