//! Submitting an order: three writes in three shards, each made only where there is nothing, so that any prefix of them
//! is finished by whoever comes next.
//!
//! ```text
//! 1  order_keys  request/REQUEST  if absent   what was submitted                    kept for a week
//! 2  order_keys  key/BUSINESS     if absent   order id, request, submission         kept for ever
//! 3  orders      ORDER ID         if absent   the document, made of row 2 alone     and there is no fence
//! ```
//!
//! - *Row 1 refuses another payload under the same request id*, whatever its business key. It has no other part in this.
//! - *Row 2 decides.* Whoever writes it has made the order, though nobody can read it yet: its id, its moment and its content
//!   are fixed from then on. Everybody else finds the row and finishes: another payload is refused, the same one is answered
//!   with the order, as a duplicate if another request had made it.
//! - *Row 3 is a function of row 2*, so it does not matter who writes it or how often it is tried.
//!
//! A crash before row 2 leaves nothing that counts; a crash between 2 and 3 is healed by the next submission of the same
//! business key, whichever request it comes from. Nobody else waits for it.
//!
//! An order that was archived must not come back as a new one. Who finds row 2 looks for the order among the orders *and then*
//! in the archive before writing row 3. A move copies before it deletes, so who sees it in neither place looked before the
//! order was first written. That writer may be slow, but not for ever: a shard refuses requests older than its retention (15
//! minutes), and the fence that a move leaves (see `archive`) outlives that and refuses row 3 until then.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::document::{self, NewOrder, Order, Step, Submission};
use super::read::Found;
use super::schema::{ORDER_KEYS, ORDERS};
use super::state::Status;
use super::{Orders, hint, keys, unfinished};
use crate::types::{
    Action, Answer, Condition, Error, Operation, Outcome, ReadLevel, Reason, Result, Test, Versioned, Write,
};

/// How long a request id is remembered: longer than anybody repeats a call.
const CLAIM_TTL: Duration = Duration::from_secs(7 * 86_400);

/// The answer to a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// The order as it is now.
    pub found: Found,
    /// Another request had submitted it before.
    pub duplicate: bool,
}

/// What is fixed once a business key is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Reservation {
    order_id: String,
    request_id: String,
    created_ms: u64,
    submission: Submission,
}

impl Reservation {
    /// The order it stands for, as it begins.
    fn order(&self) -> Order {
        let Submission { business_key, user_id, amount, items, .. } = self.submission.clone();
        let first = Step {
            from: None,
            to: Status::AwaitingPayment,
            at_ms: self.created_ms,
            who: user_id.clone(),
            note: String::new(),
            request_id: self.request_id.clone(),
        };
        Order {
            order_id: self.order_id.clone(),
            business_key,
            user_id,
            status: Status::AwaitingPayment,
            amount,
            items,
            created_ms: self.created_ms,
            updated_ms: self.created_ms,
            trace: vec![first],
        }
    }
}

impl Orders {
    /// Submits an order. Repeat it with the same request id when its outcome is unknown.
    ///
    /// Errors: `INVALID_REQUEST`; `REQUEST_MISMATCH` when the request id was used for another submission; `KEY_TAKEN`
    /// when the business key belongs to an order of another content.
    pub async fn create(&self, new: &NewOrder) -> Result<Answer<Created>> {
        new.check(self.clock.wall_ms())?;
        self.claim(new).await.map_err(hint)?;
        let (reservation, fresh) = self.reserve(new).await.map_err(hint)?;
        let duplicate = reservation.request_id != new.request_id;
        let tell =
            |answer: Answer<Found>| Answer { header: answer.header, body: Created { found: answer.body, duplicate } };
        self.finish(&reservation, fresh).await.map(tell).map_err(|error| hint(unfinished(error)))
    }

    /// Row 1.
    async fn claim(&self, new: &NewOrder) -> Result<()> {
        let key = keys::claim(&new.request_id);
        let value = document::encode(&new.submission)?;
        let ttl_ms = Some(CLAIM_TTL.as_millis() as u64);
        let write = Write {
            request: None,
            conditions: vec![Condition { key: key.clone(), test: Test::Absent }],
            operations: vec![Operation { key, action: Action::Put { value, ttl_ms } }],
        };
        let answer = self.table(ORDER_KEYS).batch(write).await?;
        let Some(current) = standing_in_the_way(&answer.body)? else { return Ok(()) };
        match document::decode::<Submission>(ORDER_KEYS, &current.value)? == new.submission {
            true => Ok(()),
            false => Err(mismatch()),
        }
    }

    /// Row 2: what it says, and whether this call has written it.
    async fn reserve(&self, new: &NewOrder) -> Result<(Reservation, bool)> {
        let reservation = Reservation {
            order_id: keys::new_order_id(),
            request_id: new.request_id.clone(),
            created_ms: new.submission.created_ms.unwrap_or_else(|| self.clock.wall_ms()),
            submission: new.submission.clone(),
        };
        let key = keys::reservation(&new.submission.business_key);
        let value = document::encode(&reservation)?;
        let answer = self.table(ORDER_KEYS).compare_and_swap(key, Test::Absent, Some(value)).await?;
        let Some(current) = standing_in_the_way(&answer.body)? else { return Ok((reservation, true)) };
        let taken: Reservation = document::decode(ORDER_KEYS, &current.value)?;
        if taken.submission == new.submission {
            return Ok((taken, false));
        }
        if taken.request_id == new.request_id {
            return Err(mismatch());
        }
        let text = format!(
            "the business key belongs to order {}, which was submitted with another content: look at that order, or \
             submit under a key of its own",
            taken.order_id
        );
        Err(Error::new(Reason::KeyTaken, text))
    }

    /// What is left to do once row 2 is there: the order as it is then.
    async fn finish(&self, reservation: &Reservation, fresh: bool) -> Result<Answer<Found>> {
        if !fresh && let Some(answer) = self.find(&reservation.order_id, ReadLevel::Linearizable).await? {
            return checked(answer, reservation);
        }
        self.write_first(reservation).await
    }

    /// Row 3.
    async fn write_first(&self, reservation: &Reservation) -> Result<Answer<Found>> {
        let order = reservation.order();
        let (key, fence) = (keys::order(&order.order_id), keys::fence(&order.order_id));
        let write = Write {
            request: None,
            conditions: vec![
                Condition { key: key.clone(), test: Test::Absent },
                Condition { key: fence, test: Test::Absent },
            ],
            operations: vec![Operation { key, action: Action::Put { value: document::encode(&order)?, ttl_ms: None } }],
        };
        let Answer { header, body: outcome } = self.table(ORDERS).batch(write).await?;
        if outcome.applied {
            return Ok(Answer { header, body: Found { order, version: outcome.timestamp, archived: false } });
        }
        // Somebody else has written it, and it may have gone a long way since.
        match self.find(&reservation.order_id, ReadLevel::Linearizable).await? {
            Some(answer) => checked(answer, reservation),
            None => Err(Error::internal("an order that could not be written because it is there is not there")),
        }
    }
}

/// Refuses an order that has the id of this reservation and is another: 80 random bits met twice, or somebody wrote the row
/// by hand.
fn checked(answer: Answer<Found>, reservation: &Reservation) -> Result<Answer<Found>> {
    if answer.body.order.business_key == reservation.submission.business_key {
        return Ok(answer);
    }
    let text = format!("order {} is not the one its business key was reserved for", reservation.order_id);
    Err(Error::new(Reason::PreconditionFailed, text))
}

/// What kept a write with `if absent` from being made; none if it was made.
pub(super) fn standing_in_the_way(outcome: &Outcome) -> Result<Option<&Versioned>> {
    if outcome.applied {
        return Ok(None);
    }
    let current = outcome.observed.as_ref().and_then(|observed| observed.current.as_ref());
    current.map(Some).ok_or_else(|| Error::internal("a write was refused because of a row that is not there"))
}

fn mismatch() -> Error {
    let text = "this request id was used for a submission of another content: a new submission wants a new id";
    Error::new(Reason::RequestMismatch, text)
}
