//! What the edge counts: calls, how long they took, how they failed; connections; how well streams batch.
//!
//! The handles of everything counted per call are looked up once, when the edge is made, so the recorder must be in
//! place by then.

use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::types::{Error, Reason, Request};

/// Calls answered, by method.
pub const CALLS: &str = "trivet_calls_total";
/// Calls that failed, by reason.
pub const FAILURES: &str = "trivet_call_failures_total";
/// From a call's arrival to its answer, by method.
pub const SECONDS: &str = "trivet_call_seconds";
/// Calls being worked on.
pub const IN_FLIGHT: &str = "trivet_calls_in_flight";
/// Open pipelined streams.
pub const PIPELINES: &str = "trivet_pipelines";
/// Answers in one message of a pipelined stream.
pub const FLUSH_ANSWERS: &str = "trivet_pipeline_flush_answers";
/// Open connections to the gRPC port.
pub const CONNECTIONS: &str = "trivet_connections";
/// Connections to the gRPC port that were turned away, by what they spoke.
pub const TURNED_AWAY: &str = "trivet_connections_turned_away_total";

/// Names and descriptions of the metrics of this module.
pub fn describe() {
    describe_counter!(CALLS, Unit::Count, "Calls answered, by method, pipelined ones included.");
    describe_counter!(FAILURES, Unit::Count, "Calls that failed, by reason.");
    describe_histogram!(SECONDS, Unit::Seconds, "Time from a call's arrival to its answer, by method.");
    describe_gauge!(IN_FLIGHT, Unit::Count, "Calls being worked on.");
    describe_gauge!(PIPELINES, Unit::Count, "Open pipelined streams.");
    describe_histogram!(FLUSH_ANSWERS, Unit::Count, "Answers in one message of a pipelined stream.");
    describe_gauge!(CONNECTIONS, Unit::Count, "Open connections to the gRPC port.");
    describe_counter!(TURNED_AWAY, Unit::Count, "Connections to the gRPC port turned away, by what they spoke.");
}

macro_rules! methods {
    ($($name:ident = $label:literal,)*) => {
        /// What was called.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Method {
            $(#[doc = concat!("`", $label, "`")] $name,)*
        }

        impl Method {
            /// All of them.
            pub const ALL: &'static [Method] = &[$(Method::$name,)*];

            /// The label on metrics.
            pub fn label(self) -> &'static str {
                match self { $(Method::$name => $label,)* }
            }
        }
    };
}

methods! {
    Get = "get",
    BatchGet = "batch_get",
    Put = "put",
    Delete = "delete",
    Increment = "increment",
    CompareAndSwap = "compare_and_swap",
    Batch = "batch",
    Scan = "scan",
    ScanPage = "scan_page",
    History = "history",
    Changes = "changes",
    ChangesPage = "changes_page",
    Rollback = "rollback",
    Administration = "administration",
    CreateOrder = "create_order",
    Transition = "transition",
    GetOrder = "get_order",
    ListUserOrders = "list_user_orders",
    UserStats = "user_stats",
    Archive = "archive",
    GetProduct = "get_product",
}

impl Method {
    /// The method of a pipelined call: there all writes are batches.
    pub fn of(request: &Request) -> Method {
        match request {
            Request::Read(read) if read.keys.len() == 1 => Method::Get,
            Request::Read(_) => Method::BatchGet,
            Request::Write(_) => Method::Batch,
            Request::Scan(_) => Method::ScanPage,
            Request::History { .. } => Method::History,
            Request::Changes(_) => Method::ChangesPage,
        }
    }
}

/// The handles.
pub struct Meters {
    methods: Vec<(Counter, Histogram)>,
    /// See [`IN_FLIGHT`].
    pub in_flight: Gauge,
    /// See [`PIPELINES`].
    pub pipelines: Gauge,
    /// See [`FLUSH_ANSWERS`].
    pub flush_answers: Histogram,
}

impl Meters {
    /// Looks the handles up in the recorder in place.
    pub fn look_up() -> Meters {
        let handles = |method: &Method| {
            let label = method.label();
            (counter!(CALLS, "method" => label), histogram!(SECONDS, "method" => label))
        };
        Meters {
            methods: Method::ALL.iter().map(handles).collect(),
            in_flight: gauge!(IN_FLIGHT),
            pipelines: gauge!(PIPELINES),
            flush_answers: histogram!(FLUSH_ANSWERS),
        }
    }

    /// Counts a call that has been answered.
    pub fn answered(&self, method: Method, took: Duration) {
        let (calls, seconds) = &self.methods[method as usize];
        calls.increment(1);
        seconds.record(took);
    }

    /// Counts a failure. Those that no caller can have caused are logged, with the request's id if it has one; the
    /// sentence of an error never holds values of users.
    pub fn failed(&self, error: &Error) {
        counter!(FAILURES, "reason" => error.reason.as_str()).increment(1);
        if matches!(error.reason, Reason::Internal | Reason::Corruption) {
            tracing::error!(reason = error.reason.as_str(), "{}", error.message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_its_place() {
        for (at, method) in Method::ALL.iter().enumerate() {
            assert_eq!(*method as usize, at);
        }
    }
}
