//! Orders as documents: what a submission says, what is kept of it, and how it is read back.
//!
//! An order is one JSON document in one row, its trace within it: a step and the status it leads to are one write of one
//! key, so no reader ever sees the one without the other, and moving an order is moving one row. The price is a bound on the
//! steps ([`REFUNDS_MAX`]): without refunds that are asked for and refused over and over, no order takes more than six.
//! Only this module writes these rows; a field it does not know is not kept when an order moves on.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::amount::Amount;
use super::keys::{self, ID_BYTES_MAX, NAME_BYTES_MAX, NOTE_BYTES_MAX};
use super::state::{self, Status};
use crate::types::{Error, Reason, Result};

/// Most items in an order.
pub const ITEMS_MAX: usize = 200;
/// Most pieces of one item.
pub const QUANTITY_MAX: u32 = 1_000_000;
/// How often a refund of one order may be asked for. It bounds the trace, and no order is ever stuck for it: a refund
/// under way can always be granted or refused, and what is left is the way forward.
pub const REFUNDS_MAX: usize = 16;
/// How far ahead of the clock an order may say it was created: lists are sorted by it.
const CREATED_AHEAD_MAX_MS: u64 = 86_400_000;

/// One item of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Which product.
    pub product_id: String,
    /// How many pieces.
    pub quantity: u32,
    /// The price of one piece, if it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Amount>,
}

/// How an order came to a status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Where it was before; none for the step that made it.
    pub from: Option<Status>,
    /// Where it came to.
    pub to: Status,
    /// When, in milliseconds since 1970 by the clock of who wrote it; never less than the step before.
    pub at_ms: u64,
    /// Who did it.
    pub who: String,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// The request that did it.
    pub request_id: String,
}

/// An order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Its id.
    pub order_id: String,
    /// What makes it one of a kind to its submitter.
    pub business_key: String,
    /// Whose it is.
    pub user_id: String,
    /// Where it stands.
    pub status: Status,
    /// What it costs.
    pub amount: Amount,
    /// What is in it.
    pub items: Vec<Item>,
    /// When it was placed, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it came to its status.
    pub updated_ms: u64,
    /// Its steps, oldest first; the view by user leaves them out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trace: Vec<Step>,
}

impl Order {
    /// Where the refund under way was asked for.
    pub fn refund_origin(&self) -> Option<Status> {
        let last = self.trace.last()?;
        if last.to == Status::Refunding { last.from } else { None }
    }

    /// The order after one more step, if it may take it.
    pub fn moved(&self, wish: &Move, now_ms: u64) -> Result<Order> {
        state::check(self.status, self.refund_origin(), wish.to)?;
        let asked = self.trace.iter().filter(|step| step.to == Status::Refunding).count();
        if wish.to == Status::Refunding && asked >= REFUNDS_MAX {
            let text =
                format!("a refund of this order was asked for {REFUNDS_MAX} times and refused: no more is taken");
            return Err(Error::new(Reason::PreconditionFailed, text));
        }
        // Clocks of different nodes differ; the trace reads in order all the same.
        let at_ms = self.trace.last().map_or(now_ms, |last| now_ms.max(last.at_ms));
        let mut next = self.clone();
        next.trace.push(Step {
            from: Some(self.status),
            to: wish.to,
            at_ms,
            who: wish.who.clone(),
            note: wish.note.clone(),
            request_id: wish.request_id.clone(),
        });
        next.status = wish.to;
        next.updated_ms = at_ms;
        Ok(next)
    }
}

/// What is submitted as an order, without the id of the request that does it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// What makes it one of a kind to its submitter.
    pub business_key: String,
    /// Whose it is.
    pub user_id: String,
    /// What it costs.
    pub amount: Amount,
    /// What is in it.
    pub items: Vec<Item>,
    /// When it was placed; none: when it is first seen here.
    pub created_ms: Option<u64>,
}

/// A submission and the request that makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewOrder {
    /// Names the request for ever.
    pub request_id: String,
    /// What is submitted.
    pub submission: Submission,
}

impl NewOrder {
    /// Refuses what lacks something or is out of bounds.
    pub fn check(&self, now_ms: u64) -> Result<()> {
        keys::check_text("the request id", &self.request_id, NAME_BYTES_MAX)?;
        let submission = &self.submission;
        keys::check_text("the business key", &submission.business_key, ID_BYTES_MAX)?;
        keys::check_text("the user id", &submission.user_id, ID_BYTES_MAX)?;
        if submission.items.len() > ITEMS_MAX {
            let text = format!("the order has {} items, at most {ITEMS_MAX} are taken", submission.items.len());
            return Err(Error::invalid(text));
        }
        for (item, number) in submission.items.iter().zip(1..) {
            keys::check_text(&format!("the product id of item {number}"), &item.product_id, ID_BYTES_MAX)?;
            if !(1..=QUANTITY_MAX).contains(&item.quantity) {
                let text = format!("item {number} has a quantity of {}: say 1 to {QUANTITY_MAX}", item.quantity);
                return Err(Error::invalid(text));
            }
        }
        match submission.created_ms {
            Some(0) => Err(Error::invalid("created_ms is 0: leave it out, or say when the order was placed")),
            Some(at) if at > now_ms.saturating_add(CREATED_AHEAD_MAX_MS) => {
                Err(Error::invalid("created_ms lies more than a day ahead: it is counted in milliseconds since 1970"))
            }
            _ => Ok(()),
        }
    }
}

/// A step that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where the order shall come to.
    pub to: Status,
    /// Who does it.
    pub who: String,
    /// Why.
    pub note: String,
    /// Names the request for ever.
    pub request_id: String,
}

impl Move {
    /// Refuses what lacks something or is out of bounds.
    pub fn check(&self) -> Result<()> {
        keys::check_text("the request id", &self.request_id, NAME_BYTES_MAX)?;
        keys::check_text("who does it", &self.who, NAME_BYTES_MAX)?;
        keys::check_length("the note", &self.note, NOTE_BYTES_MAX)
    }

    /// Whether a step is what this request has made before.
    pub fn made(&self, step: &Step) -> bool {
        (step.to, &step.who, &step.note) == (self.to, &self.who, &self.note)
    }
}

/// The JSON text of a row.
pub fn encode(row: &impl Serialize) -> Result<Bytes> {
    let text = serde_json::to_vec(row).map_err(|_| Error::internal("a document cannot be written as JSON"))?;
    Ok(text.into())
}

/// A row of `table` from its JSON text. Somebody may have put something else there by hand; the error names the place in
/// it and not the value.
pub fn decode<T: DeserializeOwned>(table: &str, text: &[u8]) -> Result<T> {
    serde_json::from_slice(text).map_err(|error| {
        let text = format!(
            "a row of table {table} is not what is kept there (line {}, column {}): put it right or remove it",
            error.line(),
            error.column()
        );
        Error::new(Reason::PreconditionFailed, text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order {
        Order {
            order_id: "o-1".into(),
            business_key: "cart-17".into(),
            user_id: "42".into(),
            status: Status::AwaitingPayment,
            amount: Amount::parse("12.5").expect("an amount"),
            items: vec![Item { product_id: "p-1".into(), quantity: 2, price: None }],
            created_ms: 1_000,
            updated_ms: 1_000,
            trace: vec![Step {
                from: None,
                to: Status::AwaitingPayment,
                at_ms: 1_000,
                who: "42".into(),
                note: String::new(),
                request_id: "r-1".into(),
            }],
        }
    }

    fn wish(to: Status) -> Move {
        Move { to, who: "shop".into(), note: String::new(), request_id: "r".into() }
    }

    /// Views are declared over these names.
    #[test]
    fn a_document_is_written_for_views_and_people() {
        let text = encode(&order()).expect("written");
        let expected = concat!(
            r#"{"order_id":"o-1","business_key":"cart-17","user_id":"42","status":"awaiting_payment","amount":12.50,"#,
            r#""items":[{"product_id":"p-1","quantity":2}],"created_ms":1000,"updated_ms":1000,"#,
            r#""trace":[{"from":null,"to":"awaiting_payment","at_ms":1000,"who":"42","request_id":"r-1"}]}"#
        );
        assert_eq!(text, expected);
        assert_eq!(decode::<Order>("orders", &text), Ok(order()));
        let wrong = decode::<Order>("orders", br#"{"order_id":"secret""#).expect_err("cut off");
        assert!(wrong.message.contains("table orders") && !wrong.message.contains("secret"), "{wrong}");
    }

    #[test]
    fn steps_are_noted_in_order_whatever_the_clocks_say() {
        let paid = order().moved(&wish(Status::Paid), 2_000).expect("allowed");
        let shipped = paid.moved(&wish(Status::Shipped), 500).expect("allowed");
        assert_eq!((shipped.status, shipped.updated_ms), (Status::Shipped, 2_000));
        let times: Vec<u64> = shipped.trace.iter().map(|step| step.at_ms).collect();
        assert_eq!(times, [1_000, 2_000, 2_000]);
        let refunding = shipped.moved(&wish(Status::Refunding), 3_000).expect("allowed");
        assert_eq!(refunding.refund_origin(), Some(Status::Shipped));
        assert!(refunding.moved(&wish(Status::Paid), 3_000).is_err(), "it did not come from there");
        assert_eq!(refunding.moved(&wish(Status::Shipped), 3_000).expect("refused").refund_origin(), None);
    }

    #[test]
    fn traces_are_bounded_and_no_order_is_stuck() {
        let mut order = order().moved(&wish(Status::Paid), 1).expect("allowed");
        for _ in 0..REFUNDS_MAX {
            order = order.moved(&wish(Status::Refunding), 1).expect("asked for");
            order = order.moved(&wish(Status::Paid), 1).expect("refused");
        }
        let refused = order.moved(&wish(Status::Refunding), 1).expect_err("once too often");
        assert_eq!(refused.reason, Reason::PreconditionFailed);
        for to in [Status::Shipped, Status::Completed] {
            order = order.moved(&wish(to), 1).expect("the way forward is open");
        }
        assert_eq!(order.trace.len(), 2 + 2 * REFUNDS_MAX + 2);
    }
}
