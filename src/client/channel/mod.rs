//! A connection to one node.
//!
//! Promise: a call is answered exactly once, by its deadline (give or take [`SWEEP`]), and a failure says truthfully
//! whether the call can have had an effect. A call that never left this process fails as unavailable; a write that
//! left and was not answered fails as `RESULT_UNDETERMINED`, never as anything milder.
//!
//! How a call passes: [`Connection::call`] encodes it and puts it into the table of calls in flight ([`flight`]). The
//! one pipelined stream of the connection ([`link`]) takes everything that is queued into one message at a time, so
//! callers that are concurrent share messages, system calls and wake-ups without any timer. Answers are matched by id
//! and handed to their callers under one lock per message. There is no task and no timer per call: one sweeper per
//! connection, awake only while calls are in flight, fails those whose deadline has passed.
//!
//! The connection is made when it is first needed and made again, with growing pauses, whenever it breaks. While the
//! last attempt has failed, calls fail at once instead of waiting. A node that is silent (calls time out and nothing
//! else comes back either) counts as unhealthy for a moment, so that routing can turn elsewhere.
//!
//! Left out: which node to ask, and asking again. Both are the [`Client`](super::Client)'s.

#[cfg(test)]
pub(crate) mod fake;
mod flight;
mod link;
#[cfg(test)]
mod tests;
mod unary;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use link::Link;

use crate::runtime::{Clock, Instant};
use crate::types::{Action, Error, Reason, Request, Response, Result, ScanBounds, TableRef, Test};
use crate::wire::{self, REQUEST_BYTES_MAX};

/// How often overdue calls are looked for while any are in flight: late by at most this, at a cost of some
/// microseconds a hundred times a second.
pub const SWEEP: Duration = Duration::from_millis(10);

/// A new measurement of the latency counts for one part in so many.
const LATENCY_KEEPS: u64 = 8;

/// Most bytes of one call. A server ends the whole stream over a message that is longer than it takes, so a call that
/// long must not leave; what it takes above its own limits is left for what stands around the bytes counted.
const CALL_BYTES_MAX: usize = REQUEST_BYTES_MAX - (1 << 20);

/// A connection to one node, shared by its clones; closed when the last of them is dropped.
#[derive(Clone)]
pub struct Connection {
    handle: Arc<Handle>,
}

struct Handle {
    link: Arc<Link>,
    started: AtomicBool,
    /// See [`Connection::latency_us`].
    latency_us: AtomicU64,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.link.close();
    }
}

impl Connection {
    /// A connection to the node at `address` (`host:port`). Nothing happens until the first call.
    pub fn new(address: impl Into<Arc<str>>, clock: Clock) -> Connection {
        let link = Arc::new(Link::new(address.into(), clock));
        Connection { handle: Arc::new(Handle { link, started: AtomicBool::new(false), latency_us: AtomicU64::new(0) }) }
    }

    /// The address given.
    pub fn address(&self) -> &str {
        &self.link().address
    }

    /// Whether a call now has a chance: false after the last attempt to connect failed, and for a moment after calls
    /// timed out on a connection that said nothing meanwhile.
    pub fn is_healthy(&self) -> bool {
        self.link().flight.is_healthy(&self.link().clock)
    }

    /// How long answers took lately, in microseconds, smoothed; 0 before the first.
    pub(super) fn latency_us(&self) -> u64 {
        self.handle.latency_us.load(Ordering::Relaxed)
    }

    /// Takes note of how long an answer took. Two at once may lose one of them: it is an estimate.
    pub(super) fn note_latency(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let smoothed = match self.latency_us() {
            0 => took,
            before => before.saturating_mul(LATENCY_KEEPS - 1).saturating_add(took) / LATENCY_KEEPS,
        };
        self.handle.latency_us.store(smoothed.max(1), Ordering::Relaxed);
    }

    /// Calls queued or unanswered now.
    pub(super) fn under_way(&self) -> usize {
        self.link().flight.under_way()
    }

    /// Asks `request` of `table` over the pipelined stream and waits for the answer until `deadline`. With
    /// `forwarded` the node answers or refuses by itself and passes the request on to nobody.
    ///
    /// Errors: what the node says; `NOT_READY` (definite) when it cannot be reached; `OVERLOADED` (definite) when too
    /// many calls are in flight; `DEADLINE_EXCEEDED` for a read, or for a write that never left; and
    /// `RESULT_UNDETERMINED` for a write that left and was not answered. Dropping the future abandons the call.
    pub async fn call<'a>(
        &self,
        table: impl Into<TableRef<'a>>,
        request: &Request,
        deadline: Instant,
        forwarded: bool,
    ) -> Result<Response> {
        let link = self.started();
        let patience = deadline.saturating_duration_since(link.clock.now());
        if patience.is_zero() {
            return Err(late(link));
        }
        let weight = weigh(request)?;
        let write = matches!(request, Request::Write(_));
        let call = wire::encode_call(0, table, request, patience, forwarded);
        let waiting = link.flight.submit(call, weight, write, deadline)?;
        let answer = waiting.await?;
        wire::decode_answer(answer, write)
    }

    fn link(&self) -> &Arc<Link> {
        &self.handle.link
    }

    /// The link, with its tasks running.
    fn started(&self) -> &Arc<Link> {
        let started = &self.handle.started;
        if !started.load(Ordering::Relaxed) && !started.swap(true, Ordering::Relaxed) {
            link::start(self.link());
        }
        self.link()
    }
}

/// A call that had no time left before it was sent.
fn late(link: &Link) -> Error {
    Error::new(Reason::DeadlineExceeded, format!("no time was left to ask {}", link.address))
}

/// About how many bytes a request takes on the wire (rather too many than too few); refused if no server takes it.
fn weigh(request: &Request) -> Result<usize> {
    /// Tags, lengths and numbers around one key and its value, at the most.
    const AROUND: usize = 48;
    let weight = match request {
        Request::Read(read) => read.keys.iter().map(|key| key.len() + AROUND).sum(),
        Request::Write(write) => {
            let conditions = write.conditions.iter().map(|condition| {
                let value = if let Test::Value(value) = &condition.test { value.len() } else { 0 };
                condition.key.len() + value + AROUND
            });
            let operations = write.operations.iter().map(|operation| {
                let value = if let Action::Put { value, .. } = &operation.action { value.len() } else { 0 };
                operation.key.len() + value + AROUND
            });
            conditions.sum::<usize>() + operations.sum::<usize>()
        }
        Request::Scan(scan) => bounds_bytes(&scan.bounds) + scan.cursor.as_ref().map_or(0, Bytes::len) + AROUND,
        Request::Changes(changes) => {
            bounds_bytes(&changes.bounds) + changes.cursor.as_ref().map_or(0, Bytes::len) + AROUND
        }
        Request::History { key, .. } => key.len() + AROUND,
    };
    if weight > CALL_BYTES_MAX {
        let text = format!("the request has {weight} bytes; no server takes more than {CALL_BYTES_MAX}");
        return Err(Error::new(Reason::BatchTooLarge, text));
    }
    Ok(weight)
}

fn bounds_bytes(bounds: &ScanBounds) -> usize {
    match bounds {
        ScanBounds::All => 0,
        ScanBounds::Tag(key) | ScanBounds::Prefix(key) => key.len(),
        ScanBounds::Range(from, to) => [from, to].into_iter().flatten().map(Bytes::len).sum(),
    }
}
