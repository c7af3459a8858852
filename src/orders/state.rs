//! The statuses of an order and the ways between them: one table, read by everything that moves an order.
//!
//! ```text
//! awaiting_payment ──▶ paid ──▶ shipped ──▶ completed        forward
//!        │              │          │            │
//!        ▼              └──────────┴─────┬──────┘
//!    cancelled                           ▼                   reverse
//!                                    refunding ──▶ refunded
//!                                        │
//!                                        └──▶ back to where it came from (the refund is refused)
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::{Error, Reason, Result};

/// Where an order stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Submitted, not paid. Every order begins so.
    AwaitingPayment,
    /// Paid, not sent.
    Paid,
    /// On its way.
    Shipped,
    /// Received.
    Completed,
    /// Given up before it was paid.
    Cancelled,
    /// Its money is asked back.
    Refunding,
    /// Its money was given back.
    Refunded,
}

use Status::{AwaitingPayment, Cancelled, Completed, Paid, Refunded, Refunding, Shipped};

/// What sort of step an edge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// On towards completion.
    Forward,
    /// Away from it.
    Reverse,
    /// From `refunding` to the status in which the refund was asked for, and to no other.
    Back,
}

/// Every step an order may take. What is not here is forbidden.
pub const EDGES: [(Status, Status, Way); 11] = [
    (AwaitingPayment, Paid, Way::Forward),
    (Paid, Shipped, Way::Forward),
    (Shipped, Completed, Way::Forward),
    (AwaitingPayment, Cancelled, Way::Reverse),
    (Paid, Refunding, Way::Reverse),
    (Shipped, Refunding, Way::Reverse),
    (Completed, Refunding, Way::Reverse),
    (Refunding, Refunded, Way::Reverse),
    (Refunding, Paid, Way::Back),
    (Refunding, Shipped, Way::Back),
    (Refunding, Completed, Way::Back),
];

impl Status {
    /// All of them.
    pub const ALL: [Status; 7] = [AwaitingPayment, Paid, Shipped, Completed, Cancelled, Refunding, Refunded];

    /// The name in documents and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            AwaitingPayment => "awaiting_payment",
            Paid => "paid",
            Shipped => "shipped",
            Completed => "completed",
            Cancelled => "cancelled",
            Refunding => "refunding",
            Refunded => "refunded",
        }
    }

    /// The status of that name.
    pub fn parse(text: &str) -> Result<Status> {
        let found = Status::ALL.into_iter().find(|status| status.as_str() == text);
        found.ok_or_else(|| Error::invalid(format!("there is no such status: say one of {}", listed(Status::ALL))))
    }

    /// Whether nothing is owed any more on either side. Closed orders may be archived; a completed one can still be
    /// asked back until it is.
    pub fn is_closed(self) -> bool {
        matches!(self, Completed | Cancelled | Refunded)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where an order may go from `from`. `origin` is the status in which a refund under way was asked for.
pub fn allowed(from: Status, origin: Option<Status>) -> impl Iterator<Item = Status> {
    let leads =
        move |&(start, end, way): &(Status, Status, Way)| start == from && (way != Way::Back || origin == Some(end));
    EDGES.into_iter().filter(leads).map(|(_, end, _)| end)
}

/// Refuses a forbidden step, naming those that are allowed.
pub fn check(from: Status, origin: Option<Status>, to: Status) -> Result<()> {
    if allowed(from, origin).any(|status| status == to) {
        return Ok(());
    }
    let next = match allowed(from, origin).count() {
        0 => format!("{from} is final"),
        _ => format!("from {from} it can go to {}", listed(allowed(from, origin))),
    };
    Err(Error::new(Reason::PreconditionFailed, format!("the order is {from} and cannot become {to}: {next}")))
}

fn listed(statuses: impl IntoIterator<Item = Status>) -> String {
    statuses.into_iter().map(Status::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(from: Status, origin: Option<Status>) -> String {
        listed(allowed(from, origin))
    }

    #[test]
    fn the_table_says_what_the_diagram_says() {
        assert_eq!(names(AwaitingPayment, None), "paid, cancelled");
        assert_eq!(names(Paid, None), "shipped, refunding");
        assert_eq!(names(Shipped, None), "completed, refunding");
        assert_eq!(names(Completed, None), "refunding");
        for origin in [Paid, Shipped, Completed] {
            assert_eq!(names(Refunding, Some(origin)), format!("refunded, {origin}"));
        }
        assert_eq!((names(Cancelled, None), names(Refunded, None)), (String::new(), String::new()));
        for (at, edge) in EDGES.iter().enumerate() {
            assert!(!EDGES[..at].contains(edge), "{edge:?} stands twice");
        }
    }

    #[test]
    fn whoever_is_refused_hears_where_the_order_can_go() {
        let refused = |from, origin, to| check(from, origin, to).expect_err("forbidden").to_string();
        assert_eq!(
            refused(Paid, None, Completed),
            "PRECONDITION_FAILED: the order is paid and cannot become completed: from paid it can go to shipped, refunding"
        );
        assert!(refused(Refunding, Some(Paid), Shipped).ends_with("from refunding it can go to refunded, paid"));
        assert!(refused(Cancelled, None, Paid).ends_with("cancelled is final"));
        assert!(refused(Paid, None, Paid).contains("is paid and cannot become paid"));
    }

    #[test]
    fn names_are_the_ones_in_documents() {
        for status in Status::ALL {
            assert_eq!(serde_json::to_string(&status).expect("written"), format!("\"{status}\""));
            assert_eq!(Status::parse(status.as_str()), Ok(status));
        }
        assert!(Status::parse("Paid").expect_err("unknown").message.contains("say one of awaiting_payment, paid"));
    }
}
