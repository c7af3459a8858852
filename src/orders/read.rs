//! Reading: an order by its id, a user's orders and totals, a product.
//!
//! Every answer has the header of the replica that gave it, with its age. How fresh it must be is the caller's choice; of a
//! view it means what it means of any copy: `at_least` the token of a write waits until the view has taken that write in.
//!
//! An order is looked for among the orders first and in the archive second. A move copies before it deletes, so whoever
//! finds it in neither place looked before there was one. The archive is always asked with a linearizable read: a copy that
//! lags would miss an order that has just left the other table.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::archive;
use super::document::{self, Order};
use super::keys::ID_BYTES_MAX;
use super::schema::{ORDERS, ORDERS_ARCHIVE, ORDERS_BY_USER, PRODUCTS, USER_STATS};
use super::state::Status;
use super::transition::unknown_order;
use super::{Orders, hint, keys, page_token};
use crate::client::Table;
use crate::types::{Answer, Error, Header, ReadLevel, Reason, Result, ScanBounds, ScanRequest, Timestamp, Versioned};

/// Orders in a page, when nothing is said.
pub const PAGE_SIZE_DEFAULT: u32 = 50;
/// Most orders in a page.
pub const PAGE_SIZE_MAX: u32 = 500;
/// Most pages of the view read for one page of a list: orders of another status are passed over, but not for ever.
const SCANS_MAX: usize = 32;
/// What nobody has spent.
const SPENT_NOTHING: &str = "0.00";

/// An order and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The order.
    pub order: Order,
    /// Its version: of the live row, also when it has been archived.
    pub version: Timestamp,
    /// It is in the archive.
    pub archived: bool,
}

/// A read of what has this id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadWish {
    /// Of an order, a user or a product.
    pub id: String,
    /// How fresh.
    pub level: ReadLevel,
}

/// What is wanted of a user's orders.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ListWish {
    /// Whose.
    pub user_id: String,
    /// In one of these; none: any.
    pub statuses: Vec<Status>,
    /// How many; 0: [`PAGE_SIZE_DEFAULT`].
    pub page_size: u32,
    /// From the page before.
    pub page_token: Option<Bytes>,
    /// How fresh.
    pub level: ReadLevel,
}

/// An order in a list: without its trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedOrder {
    /// The order.
    pub order: Order,
    /// The version of its row in the view.
    pub version: Timestamp,
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The orders, newest first.
    pub orders: Vec<ListedOrder>,
    /// Asks for the next page; none at the end.
    pub page_token: Option<Bytes>,
    /// Rows of the view that are no orders, left out.
    pub unreadable: u32,
}

/// What a user's orders come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserStats {
    /// Whose.
    pub user_id: String,
    /// Orders that stand: neither cancelled nor refunded.
    pub orders: u64,
    /// The sum of their amounts, a decimal number.
    pub spent: String,
    /// When the first of them was created, in milliseconds since 1970.
    pub first_ms: Option<u64>,
    /// When the last of them was.
    pub last_ms: Option<u64>,
    /// The version of the row in the view; none for a user without orders.
    pub version: Option<Timestamp>,
}

/// The parts of a product, each a JSON document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    /// Its id.
    pub product_id: String,
    /// What it is.
    pub base: Option<String>,
    /// What it is like.
    pub spec: Option<String>,
    /// What it costs.
    pub price: Option<String>,
    /// The version of the row in the view.
    pub version: Timestamp,
}

/// The row of a user in the view `user_stats`.
#[derive(Deserialize)]
struct StatsRow {
    orders: u64,
    #[serde(default)]
    spent: Option<Box<RawValue>>,
    #[serde(default)]
    first: Option<u64>,
    #[serde(default)]
    last: Option<u64>,
}

/// The row of a product in the view `products`.
#[derive(Deserialize)]
struct ProductRow {
    #[serde(default)]
    base: Option<Box<RawValue>>,
    #[serde(default)]
    spec: Option<Box<RawValue>>,
    #[serde(default)]
    price: Option<Box<RawValue>>,
}

impl Orders {
    /// An order with its trace, live or archived.
    ///
    /// Errors: `INVALID_REQUEST`, `UNKNOWN_DOCUMENT`.
    pub async fn get(&self, order_id: &str, level: ReadLevel) -> Result<Answer<Found>> {
        keys::check_order_id(order_id)?;
        self.find(order_id, level).await.map_err(hint)?.ok_or_else(unknown_order)
    }

    /// [`Orders::get`], for callers that know what to make of none.
    pub(super) async fn find(&self, order_id: &str, level: ReadLevel) -> Result<Option<Answer<Found>>> {
        let key = keys::order(order_id);
        let Answer { header, body } = self.table(ORDERS).get_with(key.clone(), level).await?;
        if let Some(row) = body {
            let order = document::decode(ORDERS, &row.value)?;
            let found = Found { order, version: row.timestamp, archived: false };
            return Ok(Some(Answer { header, body: found }));
        }
        let Answer { header, body } = self.table(ORDERS_ARCHIVE).get_with(key, ReadLevel::Linearizable).await?;
        let Some(row) = body else { return Ok(None) };
        let (order, version) = archive::read(&row.value)?;
        Ok(Some(Answer { header, body: Found { order, version, archived: true } }))
    }

    /// A page of a user's orders, newest first. A page may be short, even empty, and yet not be the last.
    ///
    /// Errors: `INVALID_REQUEST`; `INVALID_CURSOR` for a token that is not ours or belongs to another question; those of
    /// a view that cannot be as fresh as was asked.
    pub async fn list(&self, wish: &ListWish) -> Result<Answer<Listed>> {
        keys::check_text("the user id", &wish.user_id, ID_BYTES_MAX)?;
        let question = wish.question();
        let mut cursor = wish.page_token.as_ref().map(|token| page_token::decode(&question, token)).transpose()?;
        let page_size = match wish.page_size {
            0 => PAGE_SIZE_DEFAULT,
            size => size.min(PAGE_SIZE_MAX),
        } as usize;
        let view = self.table(ORDERS_BY_USER);
        let mut listed = Listed { orders: Vec::new(), page_token: None, unreadable: 0 };
        let mut first: Option<Header> = None;
        for _ in 0..SCANS_MAX {
            let request = ScanRequest {
                bounds: ScanBounds::Tag(keys::view_tag(&wish.user_id)),
                // No more than is still wanted, so that the list can go on exactly where the scan does.
                rows_max: page_size - listed.orders.len(),
                cursor: cursor.take(),
                level: wish.level,
                ..ScanRequest::default()
            };
            let Answer { header, body: page } = view.scan_page(request).await.map_err(hint)?;
            // All pages are of one tag, hence of one shard; the oldest of them is the age of the list.
            first = Some(first.map_or(header.clone(), |first| older(first, header)));
            for row in page.rows {
                let order = row.value.as_deref().map(|value| document::decode::<Order>(ORDERS_BY_USER, value));
                match order {
                    Some(Ok(order)) if wish.statuses.is_empty() || wish.statuses.contains(&order.status) => {
                        listed.orders.push(ListedOrder { order, version: row.timestamp });
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => listed.unreadable += 1,
                }
            }
            cursor = page.cursor;
            if cursor.is_none() || listed.orders.len() >= page_size {
                break;
            }
        }
        listed.page_token = cursor.map(|cursor| page_token::encode(&question, &cursor));
        let header = first.ok_or_else(|| Error::internal("a list was made of no page"))?;
        Ok(Answer { header, body: listed })
    }

    /// How many orders a user has that stand, and what they come to. A user nobody knows has none.
    pub async fn user_stats(&self, user_id: &str, level: ReadLevel) -> Result<Answer<UserStats>> {
        keys::check_text("the user id", user_id, ID_BYTES_MAX)?;
        let Answer { header, body } = self.view_row(&self.table(USER_STATS), user_id, level).await?;
        let Some(row) = body else {
            let spent = SPENT_NOTHING.to_owned();
            let user_id = user_id.to_owned();
            let none = UserStats { user_id, orders: 0, spent, first_ms: None, last_ms: None, version: None };
            return Ok(Answer { header, body: none });
        };
        let StatsRow { orders, spent, first, last } = document::decode(USER_STATS, &row.value)?;
        let spent = two_places(spent.as_deref().map_or(SPENT_NOTHING, RawValue::get));
        let (user_id, version) = (user_id.to_owned(), Some(row.timestamp));
        let stats = UserStats { user_id, orders, spent, first_ms: first, last_ms: last, version };
        Ok(Answer { header, body: stats })
    }

    /// A product's parts in one answer.
    ///
    /// Errors: `INVALID_REQUEST`, `UNKNOWN_DOCUMENT` when it has none.
    pub async fn product(&self, product_id: &str, level: ReadLevel) -> Result<Answer<Product>> {
        keys::check_text("the product id", product_id, ID_BYTES_MAX)?;
        let Answer { header, body } = self.view_row(&self.table(PRODUCTS), product_id, level).await?;
        let row = body.ok_or_else(|| {
            let text = "there is no product with this id: none of its parts has been written, or not taken in yet";
            Error::new(Reason::UnknownDocument, text)
        })?;
        let ProductRow { base, spec, price } = document::decode(PRODUCTS, &row.value)?;
        let text = |part: Option<Box<RawValue>>| part.map(|part| part.get().to_owned());
        let product = Product {
            product_id: product_id.to_owned(),
            base: text(base),
            spec: text(spec),
            price: text(price),
            version: row.timestamp,
        };
        Ok(Answer { header, body: product })
    }

    async fn view_row(&self, view: &Table, id: &str, level: ReadLevel) -> Result<Answer<Option<Versioned>>> {
        view.get_with(keys::view_row(id), level).await.map_err(hint)
    }
}

impl ListWish {
    /// What must stay the same from page to page.
    fn question(&self) -> String {
        let mut statuses: Vec<&str> = self.statuses.iter().map(|status| status.as_str()).collect();
        statuses.sort_unstable();
        statuses.dedup();
        format!("list {} {}", statuses.join(","), self.user_id)
    }
}

/// A sum of amounts, written as amounts are: sums drop the noughts at the end.
fn two_places(sum: &str) -> String {
    match sum.split_once('.') {
        None => format!("{sum}.00"),
        Some((_, places)) if places.len() < 2 => format!("{sum}0"),
        Some(_) => sum.to_owned(),
    }
}

/// The header that proves less.
fn older(one: Header, other: Header) -> Header {
    let age = |header: &Header| header.age.unwrap_or(Duration::MAX);
    if age(&other) > age(&one) { other } else { one }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_written_as_amounts() {
        for (sum, written) in
            [("0", "0.00"), ("12.5", "12.50"), ("385.61", "385.61"), ("70000000000000", "70000000000000.00")]
        {
            assert_eq!(two_places(sum), written);
        }
    }
}
