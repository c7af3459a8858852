//! Scans, page by page.
//!
//! A page comes from one shard; its cursor says where the next begins, in whichever shard that is. The client follows
//! cursors and remembers nothing else, so a scan may be carried on by another process, and a split or a failover
//! between two pages changes nothing.

use futures::{Stream, stream};

use super::Table;
use crate::types::{Answer, Error, Page, ReadLevel, Reason, Result, Row, ScanRequest};

/// Most pages without a row in a row: a scan whose filter finds nothing must come to an end some time, but each page
/// may have read through a whole mebibyte for nothing.
const EMPTY_PAGES_MAX: u32 = 1_000_000;

/// A scan under way. Rows come in the order of keys within a tag and within a shard; over a hash table shard by shard.
pub struct Scan {
    table: Table,
    request: ScanRequest,
    /// Rows still wanted; none: all.
    left: Option<u64>,
    done: bool,
    empty_pages: u32,
}

impl Scan {
    pub(super) fn new(table: Table, mut request: ScanRequest) -> Scan {
        if request.level == ReadLevel::default() {
            request.level = table.level_of_scan();
        }
        Scan { table, request, left: None, done: false, empty_pages: 0 }
    }

    /// At most this many rows in all.
    pub fn limit(mut self, rows: u64) -> Scan {
        self.left = Some(rows);
        self
    }

    /// In descending order.
    pub fn reverse(mut self) -> Scan {
        self.request.reverse = true;
        self
    }

    /// The next page, or none at the end. Pages may be empty and yet not be the last. After an error the same page can
    /// be asked for again.
    pub async fn next_page(&mut self) -> Result<Option<Answer<Page>>> {
        if self.done || self.left == Some(0) {
            return Ok(None);
        }
        let mut request = self.request.clone();
        if let Some(left) = self.left.and_then(|left| usize::try_from(left).ok()) {
            request.rows_max = if request.rows_max == 0 { left } else { request.rows_max.min(left) };
        }
        let page = self.table.scan_page(request).await?;
        if page.body.cursor.is_some() && page.body.cursor == self.request.cursor && page.body.count == 0 {
            return Err(Error::internal("the scan does not advance: its cursor came back unchanged"));
        }
        self.request.cursor = page.body.cursor.clone();
        self.done = page.body.cursor.is_none();
        let rows = page.body.count.max(page.body.rows.len() as u64);
        self.empty_pages = if rows == 0 { self.empty_pages + 1 } else { 0 };
        if self.empty_pages > EMPTY_PAGES_MAX {
            return Err(Error::new(Reason::Internal, "the scan found nothing for too long: narrow its bounds"));
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(rows);
        }
        Ok(Some(page))
    }

    /// Where the next page begins; none before the first and after the last.
    pub fn cursor(&self) -> Option<&bytes::Bytes> {
        self.request.cursor.as_ref()
    }

    /// The rows one by one; ends after the first error.
    pub fn rows(self) -> impl Stream<Item = Result<Row>> + Send {
        let pages = stream::try_unfold(self, |mut scan| async move {
            Ok::<_, Error>(scan.next_page().await?.map(|page| (page.body.rows, scan)))
        });
        futures::TryStreamExt::try_flatten(futures::TryStreamExt::map_ok(pages, |rows| {
            stream::iter(rows.into_iter().map(Ok))
        }))
    }

    /// All rows that are left. Bound it with [`Scan::limit`]: they are held in memory together.
    pub async fn collect(mut self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        while let Some(page) = self.next_page().await? {
            rows.extend(page.body.rows);
        }
        Ok(rows)
    }
}
