//! Moving closed orders out of the way: copy, then delete, each on a condition, so that a run that is cut short anywhere is
//! finished by the next one.
//!
//! ```text
//! 1  orders_archive  ORDER ID              if absent, or a copy of an older version is there
//! 2  orders          ORDER ID              deleted, if its version is the one that was copied
//!    orders          {ORDER ID}/archived   the fence, in the same batch
//! ```
//!
//! - *The order itself wins for as long as it is there*: readers look among the orders first. So a copy whose order was not
//!   deleted (a crash after 1, or the order went on to a refund between 1 and 2) is never read as the order.
//! - *A copy knows the version it is of.* A later run replaces a copy of an older version and leaves a newer one alone, so two
//!   runs that overlap cannot put an old content under a new deletion: whoever deletes version v has seen a copy of v, and a
//!   copy of v is only replaced by one of a later version, which does not exist once v is deleted.
//! - *The fence* keeps a writer of the order's first row (see `create`) that was delayed from bringing it back. It outlives
//!   what a shard takes from a late writer and then vanishes by itself.
//!
//! Orders are found by a scan of the whole table; a call looks at a bounded number and says where to go on. Left out: an index
//! of closed orders, which would cost every transition a second row.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::create::standing_in_the_way;
use super::document::{self, Order};
use super::schema::{ORDERS, ORDERS_ARCHIVE};
use super::{Orders, hint, keys, page_token};
use crate::types::{
    Action, Answer, Condition, Error, Operation, Reason, Result, Row, ScanRequest, Test, Timestamp, Write,
};

/// Orders moved in one call, when nothing is said.
pub const ARCHIVE_LIMIT_DEFAULT: u32 = 500;
/// Most orders moved in one call.
pub const ARCHIVE_LIMIT_MAX: u32 = 1_000;
/// Rows looked at in one call, about: some seconds' work at most.
const EXAMINED_MAX: u64 = 20_000;
/// Most rows in one page of the scan.
const PAGE_ROWS_MAX: usize = 256;
/// Orders on the move at once: their writes share the shards' proposals.
const MOVES_AT_ONCE: usize = 8;
/// How often a copy is tried when another run keeps writing it.
const COPIES_MAX: usize = 4;
/// How long a fence stands: a shard refuses requests older than 15 minutes, and clocks may be some minutes apart.
const FENCE_TTL: Duration = Duration::from_secs(3_600);

/// Which orders to move.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ArchiveWish {
    /// Closed ones that have not changed for so long.
    pub older_than: Duration,
    /// Tell which, and move none.
    pub dry_run: bool,
    /// How many at most; 0: [`ARCHIVE_LIMIT_DEFAULT`].
    pub limit: u32,
    /// From the call before.
    pub page_token: Option<Bytes>,
}

/// What was moved.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Archived {
    /// Orders looked at.
    pub examined: u64,
    /// Those moved, or that would be.
    pub order_ids: Vec<String>,
    /// How many of them an earlier run had copied.
    pub resumed: u32,
    /// Left because they changed meanwhile.
    pub changed: u32,
    /// Rows that are no orders, left alone.
    pub unreadable: u32,
    /// Where to go on; none when all orders have been looked at.
    pub page_token: Option<Bytes>,
}

/// A row of the archive: the document to the byte, and the version it was.
#[derive(Serialize, Deserialize)]
struct Copy {
    order: Box<RawValue>,
    /// As text: JSON numbers are not exact everywhere.
    version: String,
    archived_ms: u64,
}

/// What became of one order.
enum Fate {
    Young,
    Unreadable,
    Changed,
    Moved { order_id: String, resumed: bool },
}

/// The order in a row of the archive, and the version it had when it was moved.
pub(super) fn read(value: &[u8]) -> Result<(Order, Timestamp)> {
    let copy: Copy = document::decode(ORDERS_ARCHIVE, value)?;
    Ok((document::decode(ORDERS_ARCHIVE, copy.order.get().as_bytes())?, version_of(&copy)?))
}

fn version_of(copy: &Copy) -> Result<Timestamp> {
    copy.version.parse().map(Timestamp).map_err(|_| {
        let text = format!("a row of table {ORDERS_ARCHIVE} names no version: put it right or remove it");
        Error::new(Reason::PreconditionFailed, text)
    })
}

impl Orders {
    /// Moves closed orders to the archive, as many as one call may. What a call that failed has moved stays moved; asked
    /// again, it goes on.
    ///
    /// Errors: `INVALID_CURSOR` for a token that is not ours or of another age.
    pub async fn archive(&self, wish: &ArchiveWish) -> Result<Answer<Archived>> {
        let question = format!("archive {} {}", wish.older_than.as_millis(), wish.dry_run);
        let mut cursor = wish.page_token.as_ref().map(|token| page_token::decode(&question, token)).transpose()?;
        let limit = match wish.limit {
            0 => ARCHIVE_LIMIT_DEFAULT,
            limit => limit.min(ARCHIVE_LIMIT_MAX),
        } as usize;
        let mut done = Archived::default();
        loop {
            let request = ScanRequest {
                // No more than may still be moved, so that the next call can go on where this scan does.
                rows_max: (limit - done.order_ids.len()).min(PAGE_ROWS_MAX),
                cursor: cursor.take(),
                ..ScanRequest::default()
            };
            let Answer { header, body: page } = self.table(ORDERS).scan_page(request).await.map_err(hint)?;
            let orders = page.rows.into_iter().filter(|row| !keys::is_fence(&row.key));
            let fates: Vec<Fate> = stream::iter(orders.map(|row| self.archive_one(row, wish)))
                .buffered(MOVES_AT_ONCE)
                .try_collect()
                .await
                .map_err(hint)?;
            for fate in fates {
                done.examined += 1;
                match fate {
                    Fate::Young => {}
                    Fate::Unreadable => done.unreadable += 1,
                    Fate::Changed => done.changed += 1,
                    Fate::Moved { order_id, resumed } => {
                        done.order_ids.push(order_id);
                        done.resumed += u32::from(resumed);
                    }
                }
            }
            cursor = page.cursor;
            if cursor.is_none() || done.order_ids.len() >= limit || done.examined >= EXAMINED_MAX {
                done.page_token = cursor.map(|cursor| page_token::encode(&question, &cursor));
                return Ok(Answer { header, body: done });
            }
        }
    }

    async fn archive_one(&self, row: Row, wish: &ArchiveWish) -> Result<Fate> {
        let Some(value) = row.value else { return Ok(Fate::Unreadable) };
        let (Ok(order), Ok(document)) = (document::decode::<Order>(ORDERS, &value), serde_json::from_slice(&value))
        else {
            return Ok(Fate::Unreadable);
        };
        let now_ms = self.clock.wall_ms();
        let age = Duration::from_millis(now_ms.saturating_sub(order.updated_ms));
        if !order.status.is_closed() || age < wish.older_than {
            return Ok(Fate::Young);
        }
        if wish.dry_run {
            return Ok(Fate::Moved { order_id: order.order_id, resumed: false });
        }
        let copy = Copy { order: document, version: row.timestamp.to_string(), archived_ms: now_ms };
        let Some(resumed) = self.copy(&row.key, &copy, row.timestamp).await? else { return Ok(Fate::Changed) };
        let fence = Action::Put { value: Bytes::from_static(b"{}"), ttl_ms: Some(FENCE_TTL.as_millis() as u64) };
        let write = Write {
            request: None,
            conditions: vec![Condition { key: row.key.clone(), test: Test::Version(row.timestamp) }],
            operations: vec![
                Operation { key: row.key, action: Action::Delete },
                Operation { key: keys::fence(&order.order_id), action: fence },
            ],
        };
        match self.table(ORDERS).batch(write).await?.body.applied {
            true => Ok(Fate::Moved { order_id: order.order_id, resumed }),
            false => Ok(Fate::Changed),
        }
    }

    /// Sees to it that a copy of this version is in the archive: whether there was one, or none if there is one of a later
    /// version.
    async fn copy(&self, key: &Bytes, copy: &Copy, version: Timestamp) -> Result<Option<bool>> {
        let value = document::encode(copy)?;
        let mut expected = Test::Absent;
        for _ in 0..COPIES_MAX {
            let written =
                self.table(ORDERS_ARCHIVE).compare_and_swap(key.clone(), expected, Some(value.clone())).await?;
            let Some(current) = standing_in_the_way(&written.body)? else { return Ok(Some(false)) };
            let there = document::decode::<Copy>(ORDERS_ARCHIVE, &current.value).and_then(|copy| version_of(&copy));
            match there {
                Ok(there) if there == version => return Ok(Some(true)),
                Ok(there) if there > version => return Ok(None),
                // Of a version that went on, or nothing that could be read as an order: the order itself is still there.
                Ok(_) | Err(_) => expected = Test::Version(current.timestamp),
            }
        }
        Err(Error::new(Reason::Conflict, "another run keeps archiving the same order: ask again when it is done"))
    }
}
