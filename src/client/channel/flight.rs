//! The calls of one connection that are queued or waiting for their answers.
//!
//! Every call has a slot; its id is the slot's number and the slot's generation, so an answer that comes after its
//! caller has gone matches nothing. A call is *queued* until a stream takes it and *sent* from then on, even if the
//! stream breaks before a byte has left: what is counted as sent may have had an effect.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::client::metrics;
use crate::runtime::{Clock, Instant};
use crate::types::{Error, Reason, Result};
use crate::wire::proto::v1;

/// Most calls queued or unanswered on one connection. Beyond it callers are told to back off: a node that is this far
/// behind would only be buried deeper.
const IN_FLIGHT_MAX: usize = 8_192;
/// Most bytes of queued calls; reached only while the connection is being made or the node does not read.
const QUEUE_BYTES_MAX: usize = 32 << 20;
/// Most calls in one message: a node starts to answer when it has decoded one, so messages must stay small.
const FLUSH_CALLS_MAX: usize = 512;
/// Most bytes of a message of several calls, for the same reason.
const FLUSH_BYTES_MAX: usize = 256 << 10;
/// How long a silent node is avoided before it is tried again.
const SILENT_FOR: Duration = Duration::from_secs(1);

/// `unhealthy_until` of a node that cannot be reached.
const UNREACHABLE: u64 = u64::MAX;

/// The table of calls.
pub(super) struct Flight {
    address: Arc<str>,
    born: Instant,
    state: Mutex<State>,
    /// Microseconds since `born` until which the node counts as unhealthy; 0 if it does not.
    unhealthy_until: AtomicU64,
    /// Wakes the sweeper when the first call comes after a lull.
    pub(super) busy: Notify,
}

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    free: Vec<u32>,
    queue: VecDeque<Queued>,
    queue_bytes: usize,
    /// The stream that takes calls; an older one that still lingers gets none.
    stream: u64,
    /// To be woken when a call is queued.
    taker: Option<Waker>,
    /// Why calls fail at once.
    refusal: Option<Error>,
    /// Messages with answers received; tells a slow node from a silent one.
    heard: u64,
    /// Whether the sweeper is awake, and whether calls came since it looked.
    sweeping: bool,
    fresh: bool,
}

struct Slot {
    generation: u32,
    /// None: the slot is free.
    waiter: Option<Waiter>,
}

struct Waiter {
    answer: oneshot::Sender<Result<v1::Answer>>,
    deadline: Instant,
    write: bool,
    /// `State::heard` when it was sent; none while it is queued.
    sent: Option<u64>,
}

struct Queued {
    call: v1::Call,
    weight: usize,
}

impl Flight {
    pub(super) fn new(address: Arc<str>, clock: &Clock) -> Flight {
        Flight {
            address,
            born: clock.now(),
            state: Mutex::new(State::default()),
            unhealthy_until: AtomicU64::new(0),
            busy: Notify::new(),
        }
    }

    /// Queues a call; its id is given here. The future is the answer.
    pub(super) fn submit(
        &self,
        mut call: v1::Call,
        weight: usize,
        write: bool,
        deadline: Instant,
    ) -> Result<Waiting<'_>> {
        let (answer, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        if let Some(refusal) = &state.refusal {
            return Err(refusal.clone());
        }
        if state.is_full(weight) {
            state.drop_abandoned();
        }
        if state.is_full(weight) {
            let text = format!("too many calls are under way to {}: wait until some are answered", self.address);
            return Err(Error::new(Reason::Overloaded, text));
        }
        let id = state.occupy(Waiter { answer, deadline, write, sent: None });
        call.id = id;
        state.queue.push_back(Queued { call, weight });
        state.queue_bytes += weight;
        state.fresh = true;
        let wake_sweeper = !std::mem::replace(&mut state.sweeping, true);
        let taker = state.taker.take();
        drop(state);
        if let Some(taker) = taker {
            taker.wake();
        }
        if wake_sweeper {
            self.busy.notify_one();
        }
        Ok(Waiting { flight: self, id, receiver, done: false })
    }

    /// Hands the answers of one message to their callers.
    pub(super) fn deliver(&self, answers: Vec<v1::Answer>) {
        let mut matched = Vec::with_capacity(answers.len());
        let mut state = self.state.lock();
        state.heard += 1;
        for answer in answers {
            // An answer nobody waits for any more is dropped.
            if let Some(waiter) = state.vacate(answer.id) {
                matched.push((waiter, answer));
            }
        }
        drop(state);
        self.mark_healthy();
        for (waiter, answer) in matched {
            // A caller that went away meanwhile does not mind.
            let _ = waiter.answer.send(Ok(answer));
        }
    }

    /// Fails the calls whose deadline has passed. False when there is nothing to look after any more.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        let mut overdue = Vec::new();
        let mut state = self.state.lock();
        for at in 0..state.slots.len() {
            let slot = &state.slots[at];
            if slot.waiter.as_ref().is_some_and(|waiter| waiter.deadline <= now) {
                let id = id(at as u32, slot.generation);
                overdue.extend(state.vacate(id));
            }
        }
        let silent = overdue.iter().any(|waiter| waiter.sent == Some(state.heard));
        let busy = state.free.len() < state.slots.len() || std::mem::take(&mut state.fresh);
        state.sweeping = busy;
        drop(state);
        if silent {
            let until = (now + SILENT_FOR).saturating_duration_since(self.born);
            let until = u64::try_from(until.as_micros()).unwrap_or(UNREACHABLE - 1);
            self.unhealthy_until.fetch_max(until, Ordering::Relaxed);
        }
        if !overdue.is_empty() {
            ::metrics::counter!(metrics::TIMED_OUT).increment(overdue.len() as u64);
        }
        for waiter in overdue {
            let error = if waiter.sent.is_some() && waiter.write {
                self.undetermined("did not answer in time")
            } else {
                Error::new(Reason::DeadlineExceeded, format!("{} did not answer in time", self.address))
            };
            let _ = waiter.answer.send(Err(error));
        }
        busy
    }

    /// A stream that takes calls from now on.
    pub(super) fn open(self: &Arc<Self>) -> Calls {
        let mut state = self.state.lock();
        state.stream += 1;
        Calls { flight: self.clone(), stream: state.stream, rested: false }
    }

    /// The stream broke: every call it took fails. Calls still queued wait for the next one.
    pub(super) fn break_off(&self, why: &str) {
        let mut lost = Vec::new();
        let mut state = self.state.lock();
        // Whatever is left of the stream takes no more.
        state.stream += 1;
        let lingering = state.taker.take();
        for at in 0..state.slots.len() {
            let slot = &state.slots[at];
            if slot.waiter.as_ref().is_some_and(|waiter| waiter.sent.is_some()) {
                let id = id(at as u32, slot.generation);
                lost.extend(state.vacate(id));
            }
        }
        drop(state);
        if let Some(lingering) = lingering {
            lingering.wake();
        }
        for waiter in lost {
            let error = if waiter.write { self.undetermined(why) } else { self.unavailable(why) };
            let _ = waiter.answer.send(Err(error));
        }
    }

    /// The node cannot be reached: queued calls fail, and so do new ones until [`Flight::accept`].
    pub(super) fn refuse(&self, error: Error) {
        let mut state = self.state.lock();
        state.refusal = Some(error.clone());
        let queued = std::mem::take(&mut state.queue);
        state.queue_bytes = 0;
        let waiters: Vec<_> = queued.iter().filter_map(|queued| state.vacate(queued.call.id)).collect();
        drop(state);
        self.unhealthy_until.store(UNREACHABLE, Ordering::Relaxed);
        for waiter in waiters {
            let _ = waiter.answer.send(Err(error.clone()));
        }
    }

    /// The node has been reached.
    pub(super) fn accept(&self) {
        self.state.lock().refusal = None;
        self.mark_healthy();
    }

    /// Calls queued or unanswered.
    pub(super) fn under_way(&self) -> usize {
        let state = self.state.lock();
        state.slots.len() - state.free.len()
    }

    pub(super) fn is_healthy(&self, clock: &Clock) -> bool {
        match self.unhealthy_until.load(Ordering::Relaxed) {
            0 => true,
            UNREACHABLE => false,
            until => clock.now().saturating_duration_since(self.born) >= Duration::from_micros(until),
        }
    }

    fn mark_healthy(&self) {
        if self.unhealthy_until.load(Ordering::Relaxed) != 0 {
            self.unhealthy_until.store(0, Ordering::Relaxed);
        }
    }

    /// A call that left and may have taken effect.
    fn undetermined(&self, why: &str) -> Error {
        let text = format!("the write was sent to {}, which {why}: it may or may not have taken effect", self.address);
        Error::new(Reason::ResultUndetermined, text)
    }

    /// A call that had no effect.
    pub(super) fn unavailable(&self, why: &str) -> Error {
        let text = format!("the node at {} {why}: another node may answer", self.address);
        Error::new(Reason::NotReady, text)
    }

    fn forget(&self, id: u64) {
        self.state.lock().vacate(id);
    }
}

impl State {
    fn is_full(&self, weight: usize) -> bool {
        let in_flight = self.slots.len() - self.free.len();
        in_flight >= IN_FLIGHT_MAX
            || self.queue.len() >= IN_FLIGHT_MAX
            || (self.queue_bytes + weight > QUEUE_BYTES_MAX && !self.queue.is_empty())
    }

    /// Takes calls out of the queue whose callers have gone.
    fn drop_abandoned(&mut self) {
        let slots = &self.slots;
        let mut bytes = 0;
        self.queue.retain(|queued| {
            let slot = &slots[queued.call.id as u32 as usize];
            let kept = slot.waiter.is_some() && slot.generation == (queued.call.id >> 32) as u32;
            bytes += if kept { queued.weight } else { 0 };
            kept
        });
        self.queue_bytes = bytes;
    }

    fn occupy(&mut self, waiter: Waiter) -> u64 {
        match self.free.pop() {
            Some(at) => {
                let slot = &mut self.slots[at as usize];
                slot.waiter = Some(waiter);
                id(at, slot.generation)
            }
            None => {
                let at = self.slots.len() as u32;
                self.slots.push(Slot { generation: 1, waiter: Some(waiter) });
                id(at, 1)
            }
        }
    }

    fn vacate(&mut self, id: u64) -> Option<Waiter> {
        let at = id as u32;
        let slot = self.slots.get_mut(at as usize).filter(|slot| slot.generation == (id >> 32) as u32)?;
        let waiter = slot.waiter.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(at);
        Some(waiter)
    }

    /// Marks a queued call as sent; false if its caller has gone.
    fn send(&mut self, id: u64) -> bool {
        let heard = self.heard;
        let slot = self.slots.get_mut(id as u32 as usize).filter(|slot| slot.generation == (id >> 32) as u32);
        match slot.and_then(|slot| slot.waiter.as_mut()) {
            Some(waiter) => {
                waiter.sent = Some(heard);
                true
            }
            None => false,
        }
    }
}

fn id(at: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(at)
}

/// The answer to a call, to come. Dropped before, the call is abandoned.
pub(super) struct Waiting<'a> {
    flight: &'a Flight,
    id: u64,
    receiver: oneshot::Receiver<Result<v1::Answer>>,
    done: bool,
}

impl Future for Waiting<'_> {
    type Output = Result<v1::Answer>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receiver).poll(cx).map(|received| {
            self.done = true;
            // Every slot is vacated with an answer or an error; a lost one would be a fault here.
            received.unwrap_or_else(|_| Err(Error::internal("the call was forgotten by its connection")))
        })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.flight.forget(self.id);
        }
    }
}

/// The messages of one pipelined stream: all that is queued, one message at a time.
pub(super) struct Calls {
    flight: Arc<Flight>,
    stream: u64,
    /// Whether the other tasks that are ready have had their turn since the queue was last empty.
    rested: bool,
}

impl Stream for Calls {
    type Item = v1::PipelineRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let mut state = this.flight.state.lock();
        if state.stream != this.stream {
            return Poll::Ready(None);
        }
        if state.queue.is_empty() {
            this.rested = false;
            if !state.taker.as_ref().is_some_and(|taker| taker.will_wake(cx.waker())) {
                state.taker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        if !this.rested {
            // The first caller of a burst has woken this task ahead of the others. Going to the back of the line
            // once lets them queue their calls too: that is all the batching there is, and it costs no time.
            this.rested = true;
            drop(state);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut calls = Vec::with_capacity(state.queue.len().min(FLUSH_CALLS_MAX));
        let mut bytes = 0;
        while calls.len() < FLUSH_CALLS_MAX
            && let Some(next) = state.queue.front()
            && (calls.is_empty() || bytes + next.weight <= FLUSH_BYTES_MAX)
            && let Some(queued) = state.queue.pop_front()
        {
            state.queue_bytes -= queued.weight;
            if state.send(queued.call.id) {
                bytes += queued.weight;
                calls.push(queued.call);
            }
        }
        drop(state);
        if calls.is_empty() {
            // All who asked have gone.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ::metrics::counter!(metrics::FLUSHES).increment(1);
        ::metrics::counter!(metrics::CALLS).increment(calls.len() as u64);
        Poll::Ready(Some(v1::PipelineRequest { calls }))
    }
}

#[cfg(test)]
mod tests {
    use futures::task::noop_waker;

    use super::*;
    use crate::types::Kind;

    fn flight() -> (Arc<Flight>, Clock) {
        let clock = Clock::system();
        (Arc::new(Flight::new("node".into(), &clock)), clock)
    }

    fn submit<'a>(flight: &'a Flight, clock: &Clock, write: bool, millis: u64) -> Waiting<'a> {
        let deadline = clock.now() + Duration::from_millis(millis);
        flight.submit(v1::Call::default(), 10, write, deadline).expect("accepted")
    }

    /// Polls a stream until it has rested; the ids of the message, or none.
    fn take(calls: &mut Calls) -> Option<Vec<u64>> {
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        for _ in 0..3 {
            if let Poll::Ready(message) = Pin::new(&mut *calls).poll_next(&mut cx) {
                return message.map(|message| message.calls.iter().map(|call| call.id).collect());
            }
        }
        None
    }

    fn now<F: Future + Unpin>(mut future: F) -> Option<F::Output> {
        let waker = noop_waker();
        match Pin::new(&mut future).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn what_is_queued_together_leaves_together_and_finds_its_way_back() {
        let (flight, clock) = flight();
        let mut calls = flight.open();
        let one = submit(&flight, &clock, true, 1_000);
        let two = submit(&flight, &clock, true, 1_000);
        let ids = take(&mut calls).expect("a message");
        assert_eq!(ids, [one.id, two.id]);
        assert_eq!(take(&mut calls), None);
        flight.deliver(vec![v1::Answer { id: two.id, answer: None }]);
        assert_eq!(now(two).expect("answered").expect("well").id, ids[1]);
        assert!(now(one).is_none());
    }

    #[test]
    fn a_slot_used_again_does_not_take_the_answer_of_its_former_call() {
        let (flight, clock) = flight();
        let mut calls = flight.open();
        let first = submit(&flight, &clock, true, 1_000);
        let old = first.id;
        take(&mut calls);
        drop(first);
        let second = submit(&flight, &clock, true, 1_000);
        assert_eq!(second.id as u32, old as u32, "the same slot");
        flight.deliver(vec![v1::Answer { id: old, answer: None }]);
        assert!(now(second).is_none());
    }

    #[test]
    fn an_abandoned_call_that_is_still_queued_never_leaves() {
        let (flight, clock) = flight();
        let mut calls = flight.open();
        drop(submit(&flight, &clock, true, 1_000));
        let kept = submit(&flight, &clock, true, 1_000);
        assert_eq!(take(&mut calls), Some(vec![kept.id]));
    }

    #[test]
    fn a_break_is_undetermined_for_writes_that_left_and_for_nothing_else() {
        let (flight, clock) = flight();
        let mut calls = flight.open();
        let write = submit(&flight, &clock, true, 1_000);
        let read = submit(&flight, &clock, false, 1_000);
        take(&mut calls);
        let queued = submit(&flight, &clock, true, 1_000);
        flight.break_off("went away");
        assert_eq!(take(&mut calls), None);
        assert_eq!(now(write).expect("failed").expect_err("lost").kind(), Kind::Undetermined);
        assert_eq!(now(read).expect("failed").expect_err("lost").kind(), Kind::Unavailable);
        let id = queued.id;
        let mut next = flight.open();
        assert_eq!(take(&mut next), Some(vec![id]), "what had not left goes with the next stream");
    }

    #[test]
    fn refused_calls_are_definite_and_new_ones_fail_at_once() {
        let (flight, clock) = flight();
        let queued = submit(&flight, &clock, true, 1_000);
        flight.refuse(flight.unavailable("cannot be reached"));
        assert_eq!(now(queued).expect("failed").expect_err("refused").reason, Reason::NotReady);
        assert!(!flight.is_healthy(&clock));
        let deadline = clock.now() + Duration::from_secs(1);
        assert!(flight.submit(v1::Call::default(), 1, true, deadline).is_err());
        flight.accept();
        assert!(flight.is_healthy(&clock));
        assert!(flight.submit(v1::Call::default(), 1, true, deadline).is_ok());
    }

    #[test]
    fn overdue_calls_fail_by_what_they_may_have_done() {
        let (flight, clock) = flight();
        let mut calls = flight.open();
        let sent = submit(&flight, &clock, true, 0);
        let read = submit(&flight, &clock, false, 0);
        take(&mut calls);
        let queued = submit(&flight, &clock, true, 0);
        let patient = submit(&flight, &clock, true, 60_000);
        assert!(flight.sweep(clock.now()));
        assert_eq!(now(sent).expect("failed").expect_err("late").reason, Reason::ResultUndetermined);
        assert_eq!(now(read).expect("failed").expect_err("late").reason, Reason::DeadlineExceeded);
        assert_eq!(now(queued).expect("failed").expect_err("late").reason, Reason::DeadlineExceeded);
        assert!(!flight.is_healthy(&clock), "it said nothing at all");
        drop(patient);
        flight.sweep(clock.now());
        assert!(!flight.sweep(clock.now()), "nothing is left to look after");
    }

    #[test]
    fn a_slow_node_that_answers_others_is_not_silent() {
        let (flight, clock) = flight();
        let mut calls = flight.open();
        let slow = submit(&flight, &clock, true, 0);
        let quick = submit(&flight, &clock, true, 60_000);
        take(&mut calls);
        flight.deliver(vec![v1::Answer { id: quick.id, answer: None }]);
        flight.sweep(clock.now());
        assert!(now(slow).expect("failed").is_err());
        assert!(flight.is_healthy(&clock));
    }

    #[test]
    fn the_number_in_flight_is_bounded() {
        let (flight, clock) = flight();
        let held: Vec<_> = (0..IN_FLIGHT_MAX).map(|_| submit(&flight, &clock, false, 1_000)).collect();
        let deadline = clock.now() + Duration::from_secs(1);
        let refused = flight.submit(v1::Call::default(), 10, true, deadline).err().expect("too many");
        assert_eq!(refused.reason, Reason::Overloaded);
        drop(held);
        let mut calls = flight.open();
        let one = submit(&flight, &clock, false, 1_000);
        assert_eq!(take(&mut calls), Some(vec![one.id]));
    }

    #[test]
    fn a_message_is_bounded_in_bytes_but_a_large_call_leaves_alone() {
        let (flight, clock) = flight();
        let deadline = clock.now() + Duration::from_secs(1);
        let held = [FLUSH_BYTES_MAX / 2, FLUSH_BYTES_MAX / 2, 1, 3 * FLUSH_BYTES_MAX, 1]
            .map(|weight| flight.submit(v1::Call::default(), weight, true, deadline).expect("accepted"));
        let mut calls = flight.open();
        for expected in [2, 1, 1, 1] {
            assert_eq!(take(&mut calls).map(|ids| ids.len()), Some(expected));
        }
        drop(held);
    }

    #[test]
    fn a_message_is_bounded_in_calls() {
        let (flight, clock) = flight();
        let held: Vec<_> = (0..FLUSH_CALLS_MAX + 1).map(|_| submit(&flight, &clock, false, 1_000)).collect();
        let mut calls = flight.open();
        assert_eq!(take(&mut calls).map(|ids| ids.len()), Some(FLUSH_CALLS_MAX));
        assert_eq!(take(&mut calls).map(|ids| ids.len()), Some(1));
        drop(held);
    }
}
