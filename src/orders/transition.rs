//! Moving an order on: read, decide, write if nobody else has written meanwhile, and again if somebody has.
//!
//! The step names its request in the order's trace, in the same write that changes the status. So a repeat finds its own
//! step there and answers with it, whether or not the first attempt's answer ever arrived, and however far the order has
//! gone since; another step under the same request id is refused. Request ids need to differ within one order only.

use super::document::{self, Move, Step};
use super::read::Found;
use super::schema::ORDERS;
use super::{Orders, hint, keys};
use crate::types::{Answer, Error, ReadLevel, Reason, Result, Test, Timestamp};

/// How often a step is tried when others keep changing the order under it: each round, one of them succeeds.
const ATTEMPTS_MAX: usize = 16;

/// A step wanted of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransitionWish {
    /// Which order.
    pub order_id: String,
    /// The step.
    pub step: Move,
    /// Only if this is the order's version.
    pub if_version: Option<Timestamp>,
}

/// The answer to a wish for a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The order as it is now; after a repeat, perhaps further on.
    pub found: Found,
    /// The step that the request made.
    pub step: Step,
    /// An earlier attempt had made it.
    pub repeated: bool,
}

impl Orders {
    /// Moves an order to another status. Repeat it with the same request id when its outcome is unknown.
    ///
    /// Errors: `INVALID_REQUEST`; `UNKNOWN_DOCUMENT`; `PRECONDITION_FAILED` for a step that is forbidden from where the
    /// order is, another version than the one asked for, and an archived order; `REQUEST_MISMATCH`; `CONFLICT` when others
    /// kept changing it.
    pub async fn transition(&self, wish: &TransitionWish) -> Result<Answer<Moved>> {
        wish.step.check()?;
        keys::check_order_id(&wish.order_id)?;
        for _ in 0..ATTEMPTS_MAX {
            if let Some(answer) = self.attempt(wish).await.map_err(hint)? {
                return Ok(answer);
            }
        }
        let text = format!("others changed the order {ATTEMPTS_MAX} times meanwhile: read it, then ask again");
        Err(Error::new(Reason::Conflict, text))
    }

    /// One round; none if another write came between.
    async fn attempt(&self, wish: &TransitionWish) -> Result<Option<Answer<Moved>>> {
        let Some(answer) = self.find(&wish.order_id, ReadLevel::Linearizable).await? else {
            return Err(unknown_order());
        };
        let Found { order, version, archived } = &answer.body;
        if let Some(step) = order.trace.iter().find(|step| step.request_id == wish.step.request_id) {
            if !wish.step.made(step) {
                let text = "this request id has made another step of this order: a new step wants a new id";
                return Err(Error::new(Reason::RequestMismatch, text));
            }
            let moved = Moved { step: step.clone(), repeated: true, found: answer.body };
            return Ok(Some(Answer { header: answer.header, body: moved }));
        }
        if *archived {
            let text = format!("the order is archived as {}: archived orders do not change any more", order.status);
            return Err(Error::new(Reason::PreconditionFailed, text));
        }
        if wish.if_version.is_some_and(|wanted| wanted != *version) {
            let text = format!("the order has version {version} and is {}: look at it, then decide anew", order.status);
            return Err(Error::new(Reason::PreconditionFailed, text));
        }
        let next = order.moved(&wish.step, self.clock.wall_ms())?;
        let key = keys::order(&wish.order_id);
        let value = document::encode(&next)?;
        let written = self.table(ORDERS).compare_and_swap(key, Test::Version(*version), Some(value)).await?;
        if !written.body.applied {
            return Ok(None);
        }
        let step = next.trace.last().cloned().ok_or_else(|| Error::internal("a step was made and is not there"))?;
        let found = Found { order: next, version: written.body.timestamp, archived: false };
        Ok(Some(Answer { header: written.header, body: Moved { found, step, repeated: false } }))
    }
}

/// There is no order of that id.
pub(super) fn unknown_order() -> Error {
    Error::new(Reason::UnknownDocument, "there is no order with this id, live or archived: look at the id again")
}
