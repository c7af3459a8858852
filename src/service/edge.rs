//! What all calls share: admission, the door to the node, measures.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::door::Door;
use super::metrics::{Meters, Method};
use crate::node::Context;
use crate::runtime::{Clock, Instant};
use crate::types::{Error, Limits, Reason, Request, RequestId, Response, Result};

/// Calls worked on at once on all connections together. Each holds a request and a place in some queue further in; at
/// the rate of one node this is some seconds of work, and who waits longer is better told to slow down.
pub const CALLS_MAX: usize = 32_768;
/// What a caller that is turned away for load should wait.
const OVERLOADED_RETRY_AFTER: Duration = Duration::from_millis(100);

/// A cheap handle.
#[derive(Clone)]
pub struct Edge {
    shared: Arc<Shared>,
}

struct Shared {
    door: Door,
    limits: Limits,
    clock: Clock,
    stopping: CancellationToken,
    in_flight: AtomicUsize,
    idle: Notify,
    meters: Meters,
}

/// One of [`CALLS_MAX`] places.
pub struct Place<'a> {
    shared: &'a Shared,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.shared.meters.in_flight.decrement(1);
        if self.shared.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.idle.notify_waiters();
        }
    }
}

impl Edge {
    /// An edge in front of this door.
    pub fn new(door: Door, limits: Limits, clock: Clock) -> Edge {
        let shared = Shared {
            door,
            limits,
            clock,
            stopping: CancellationToken::new(),
            in_flight: AtomicUsize::new(0),
            idle: Notify::new(),
            meters: Meters::look_up(),
        };
        Edge { shared: Arc::new(shared) }
    }

    /// The bounds on requests.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// The measures.
    pub fn meters(&self) -> &Meters {
        &self.shared.meters
    }

    /// The door to the node.
    pub fn door(&self) -> &Door {
        &self.shared.door
    }

    /// Fires when the edge has been told to stop.
    pub fn stopping(&self) -> &CancellationToken {
        &self.shared.stopping
    }

    /// A place for one call, or why there is none; nothing has happened then.
    pub fn admit(&self) -> Result<Place<'_>> {
        let shared = &*self.shared;
        if shared.stopping.is_cancelled() {
            return Err(stopping_error());
        }
        if shared.in_flight.fetch_add(1, Ordering::AcqRel) >= CALLS_MAX {
            shared.in_flight.fetch_sub(1, Ordering::AcqRel);
            let text = format!("{CALLS_MAX} calls are in flight on this node: wait a little, or ask another");
            return Err(Error::new(Reason::Overloaded, text).with_retry_after(OVERLOADED_RETRY_AFTER));
        }
        shared.meters.in_flight.increment(1);
        Ok(Place { shared })
    }

    /// Answers one request, not counting it among the calls answered.
    pub async fn answer(&self, table: &str, request: Request, context: Context) -> Result<Response> {
        let admitted = self.admit();
        let result = match admitted {
            Ok(_place) => {
                let id = request_id(&request);
                let result = self.shared.door.execute(table, request, context).await;
                if let (Err(error), Some(id)) = (&result, id) {
                    log_write_failure(error, id);
                }
                result
            }
            Err(error) => Err(error),
        };
        if let Err(error) = &result {
            self.shared.meters.failed(error);
        }
        result
    }

    /// Answers one request and counts it.
    pub async fn call(&self, method: Method, table: &str, request: Request, patience: Duration) -> Result<Response> {
        let started = self.shared.clock.now();
        let context = Context { deadline: started + patience, forwarded: false, table: None };
        let result = self.answer(table, request, context).await;
        self.answered(method, started);
        result
    }

    /// Counts a call that began then and is answered now.
    pub fn answered(&self, method: Method, started: Instant) {
        self.shared.meters.answered(method, self.shared.clock.now() - started);
    }

    /// Refuses new calls from now on and waits until those in flight are answered, at most until `deadline`; whether
    /// they all were.
    pub async fn drain(&self, deadline: Instant) -> bool {
        self.shared.stopping.cancel();
        loop {
            let idle = self.shared.idle.notified();
            tokio::pin!(idle);
            // Registered before the count is read, so that the last call's end is not missed.
            idle.as_mut().enable();
            if self.shared.in_flight.load(Ordering::Acquire) == 0 {
                return true;
            }
            if crate::runtime::timeout_at(deadline, idle).await.is_none() {
                return self.shared.in_flight.load(Ordering::Acquire) == 0;
            }
        }
    }
}

/// What is told to those who call a node that stops.
pub fn stopping_error() -> Error {
    Error::new(Reason::NotReady, "this node is stopping: ask another")
}

fn request_id(request: &Request) -> Option<RequestId> {
    match request {
        Request::Write(write) => write.request,
        _ => None,
    }
}

/// A write whose fate is unknown, or that met a fault, is worth finding again by its id.
fn log_write_failure(error: &Error, id: RequestId) {
    if matches!(error.reason, Reason::Internal | Reason::Corruption) {
        let (client, sequence) = (format_args!("{:016x}", id.client), id.sequence);
        tracing::error!(%client, sequence, reason = error.reason.as_str(), "a write met a fault");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime;
    use crate::service::testing::{self, read};

    #[tokio::test]
    async fn a_draining_edge_refuses_the_new_and_waits_for_the_old() {
        let (door, gate) = testing::gated_door();
        let clock = Clock::system();
        let edge = Edge::new(door, Limits::default(), clock.clone());
        let old = runtime::spawn({
            let edge = edge.clone();
            async move { edge.call(Method::Get, "t", read("k"), Duration::from_secs(5)).await }
        });
        gate.entered().await;

        assert!(!edge.drain(clock.now() + Duration::from_millis(20)).await, "one call is in flight");
        let refused = edge.call(Method::Get, "t", read("k"), Duration::from_secs(5)).await.expect_err("stopping");
        assert_eq!(refused.reason, Reason::NotReady);

        let drained = runtime::spawn({
            let (edge, deadline) = (edge.clone(), clock.now() + Duration::from_secs(5));
            async move { edge.drain(deadline).await }
        });
        gate.open();
        assert!(drained.await.expect("no panic"));
        assert!(old.await.expect("no panic").is_ok());
    }

    #[tokio::test]
    async fn admission_has_a_bound_and_places_come_back() {
        let edge = Edge::new(testing::echo_door(), Limits::default(), Clock::system());
        let places: Vec<_> = (0..CALLS_MAX).map(|_| edge.admit().expect("a place")).collect();
        let refused = edge.admit().err().expect("no place left");
        assert_eq!(refused.reason, Reason::Overloaded);
        assert!(refused.retry_after.is_some());
        drop(places);
        assert!(edge.admit().is_ok());
    }
}
