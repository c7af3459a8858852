//! Orders: what an application builds of tables and views, and the proof that it can.
//!
//! Promise: an order is made once however often it is submitted; it moves along the edges of one table of states
//! (`state`) and its trace says how it came to be where it is; it is found by its id whether it is live or archived, and by
//! its user newest first. Each call can be repeated after a crash at any point, of its caller or of a node, with no other
//! effect than having succeeded once: what is half done is finished by the next call that meets it.
//!
//! | table | key | row |
//! |---|---|---|
//! | `orders` | order id | the document of an order, its trace within (`document`) |
//! | `orders` | `{order id}/archived` | for an hour: a fence against late writers (`archive`) |
//! | `order_keys` | `key/BUSINESS KEY` | which order has it (`create`) |
//! | `order_keys` | `request/REQUEST ID` | for a week: what was submitted under it |
//! | `orders_archive` | order id | the document, and the version it had |
//! | `product_base`, `product_spec`, `product_price` | the writer's own | documents with a `product_id` |
//!
//! The views `orders_by_user`, `user_stats` and `products` are derived from these (`schema`).
//!
//! How a call passes: the service (or the command line) makes plain wishes of what was asked, [`Orders`] checks them and
//! works on tables through the routing client alone, with conditions where two could meet. There is no lock and no state
//! in this module: any node serves any call, and two that race are told apart by the conditions of their writes.
//!
//! Left out: payment, stock and shipping themselves; who may do what; giving a business key free again; users' totals over
//! archived orders.

mod amount;
mod archive;
mod convert;
mod create;
mod document;
mod keys;
mod page_token;
mod read;
pub mod schema;
mod state;
#[cfg(test)]
mod tests;
mod transition;

use std::time::Duration;

pub use amount::Amount;
pub use archive::{ARCHIVE_LIMIT_DEFAULT, ARCHIVE_LIMIT_MAX, ArchiveWish, Archived};
pub use create::Created;
pub use document::{ITEMS_MAX, Item, Move, NewOrder, Order, QUANTITY_MAX, REFUNDS_MAX, Step, Submission};
pub use keys::{ID_BYTES_MAX, NAME_BYTES_MAX, NOTE_BYTES_MAX};
pub use read::{Found, ListWish, Listed, ListedOrder, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, Product, ReadWish, UserStats};
pub use state::{EDGES, Status, Way, allowed};
pub use transition::{Moved, TransitionWish};

use crate::client::{Client, Table};
use crate::runtime::Clock;
use crate::types::{Error, Kind, Reason};

/// The orders of one cluster. Cheap to clone.
#[derive(Clone)]
pub struct Orders {
    client: Client,
    clock: Clock,
    patience: Option<Duration>,
}

impl Orders {
    /// The orders of the cluster that this client is connected to.
    pub fn new(client: Client) -> Orders {
        Orders::with_clock(client, Clock::system())
    }

    /// [`Orders::new`] with a clock of the caller's.
    pub fn with_clock(client: Client, clock: Clock) -> Orders {
        Orders { client, clock, patience: None }
    }

    /// The same orders, with tables that are waited for this long at most in each of a call's steps.
    pub fn within(&self, patience: Duration) -> Orders {
        Orders { patience: Some(patience), ..self.clone() }
    }

    fn table(&self, name: &'static str) -> Table {
        let table = self.client.table(name);
        match self.patience {
            Some(patience) => table.within(patience),
            None => table,
        }
    }
}

/// Tells who finds no table how to get it.
fn hint(error: Error) -> Error {
    match error.reason {
        Reason::UnknownTable => {
            let message = format!("{}; `trivet order setup` creates the tables and views of orders", error.message);
            Error { message, ..error }
        }
        _ => error,
    }
}

/// What the failure of a later step means when an earlier one has had an effect: not that nothing happened, which is what
/// most reasons promise. A repeat with the same request id finishes the work.
fn unfinished(error: Error) -> Error {
    match error.kind() {
        Kind::Redirect | Kind::Refresh | Kind::BackOff | Kind::Unavailable => {
            let message = format!("it is begun and not finished; repeat it with the same request id: {error}");
            Error { reason: Reason::ResultUndetermined, message, ..error }
        }
        _ => error,
    }
}
