//! Compares a shard of a view with what its sources say it should hold, and sets right what differs.
//!
//! It runs at the leader of the view's shard, at one proven position: the rows as they are at one version of the shard, and the
//! watermark that was true of exactly that version. For each part of each source the watermark names a version, and the history of
//! the source still holds the state of then (`as_of`); from these rows the view is computed anew, by the same functions that keep it
//! up, and both are compared row by row, hidden ones included. Writes go on all the while, and nothing waits.
//!
//! What differs is set right only if it has not changed since the version that was looked at (`shard::intake`, Mending): a row
//! that upkeep has touched meanwhile is left to the next comparison.
//!
//! Memory: the rows of a shard are compared in passes, each over the tags with one remainder of a hash, so that about
//! [`PASS_BYTES`] are held. Each pass reads the sources once.
//!
//! Left out: when a part of a source is still being taken in for the first time there is no version to compare at: then it says so.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::super::ask;
use super::super::door::{Context, mismatched};
use super::super::host::Node;
use super::super::metrics;
use super::super::routing::Routed;
use super::projector_of;
use super::worker::document;
use crate::catalog::TableEntry;
use crate::keyspace::{Layout, ScanCursor, Watermark, tag};
use crate::projection::Recompute;
use crate::runtime::{Instant, sleep, timeout};
use crate::shard::{Mending, PageRequest, Shard, Upkeep};
use crate::storage::mvcc::Version;
use crate::types::{
    Error, ReadLevel, Reason, Request, Response, Result, ScanBounds, ScanRequest, ShardDescriptor, ShardId, TableId,
    Timestamp,
};

/// To compare a shard of a view: [`VerifyAsk`] to its leader, [`ViewCheck`] back.
pub const VERIFY: &str = "verify_view";
/// How long the comparison of one shard may take.
pub const VERIFY_TIMEOUT: Duration = Duration::from_secs(600);
/// Bytes of rows held in one pass, about.
const PASS_BYTES: u64 = 64 << 20;
/// Rows read at once.
const PAGE_ROWS: usize = 1_000;
/// Bytes read at once.
const PAGE_BYTES: usize = 1 << 20;
/// How long a page may take.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Differences told of one shard.
const DIFFERENCES_MAX: usize = 20;
/// Rows set right by one command.
const MEND_ROWS: usize = 200;

/// What is to be compared.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct VerifyAsk {
    /// The view.
    pub view: TableId,
    /// Its shard.
    pub shard: ShardId,
    /// Set right what differs.
    pub repair: bool,
}

/// One row that differs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// The view lacks it.
    Missing,
    /// No source says so.
    Invented,
    /// The view holds something else.
    Other,
}

/// What a comparison has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ViewCheck {
    /// Rows that the sources say there are, hidden ones included.
    pub rows: u64,
    /// Rows that the view lacks.
    pub missing: u64,
    /// Rows that no source says there are.
    pub invented: u64,
    /// Rows that hold something else than the sources say.
    pub other: u64,
    /// Of those that differ, how many were set right.
    pub repaired: u64,
    /// The first of them: keys and what is wrong.
    pub samples: Vec<(Vec<u8>, Difference)>,
    /// The version of the shard that was looked at.
    pub at: Timestamp,
}

impl ViewCheck {
    /// Rows that differ.
    pub fn differing(&self) -> u64 {
        self.missing + self.invented + self.other
    }

    /// Takes the findings of another shard, or another pass, in.
    pub fn add(&mut self, other: ViewCheck) {
        self.rows += other.rows;
        self.missing += other.missing;
        self.invented += other.invented;
        self.other += other.other;
        self.repaired += other.repaired;
        self.samples.extend(other.samples);
        self.samples.truncate(DIFFERENCES_MAX);
        self.at = self.at.max(other.at);
    }
}

/// Where the view stood when it was looked at.
struct Moment {
    shard: Arc<Shard>,
    start: Bytes,
    end: Bytes,
    at: Timestamp,
    sections: Vec<Watermark>,
}

impl Node {
    /// Compares a shard of a view that this node leads.
    ///
    /// Errors: `NOT_LEADER`, `VIEW_BEHIND` while it is being built, `HISTORY_TRIMMED` if its sources no longer remember where it
    /// stands.
    pub(in crate::node) async fn verify_here(&self, question: VerifyAsk) -> Result<ViewCheck> {
        let known = || self.directory().table(question.view).cloned();
        let entry = match known() {
            Some(entry) => entry,
            // It may have just started, or the view may be newer than its picture of the catalog.
            None => {
                let revision = self.newest_revision().await?;
                if timeout(ask::ASK_TIMEOUT, self.wait_for_revision(revision)).await.is_none() {
                    return Err(Error::new(Reason::NotReady, "the catalog could not be read in time"));
                }
                known().ok_or_else(|| Error::new(Reason::UnknownTable, "the view was dropped"))?
            }
        };
        let shard = self.hosted(question.shard)?;
        let deadline = self.clock().now() + VERIFY_TIMEOUT;
        shard.confirm(self.clock().now() + ask::ASK_TIMEOUT).await?;
        let state = shard.state();
        let moment = Moment {
            shard,
            start: state.start.clone(),
            end: state.end.clone(),
            at: state.last_timestamp,
            sections: state.watermarks.sections(&state.start, &state.end),
        };
        let bytes = self.engine().bytes_in(&moment.start, &moment.end)?;
        let passes = u32::try_from(1 + bytes / PASS_BYTES).unwrap_or(u32::MAX);
        let mut all = ViewCheck { at: moment.at, ..ViewCheck::default() };
        for pass in 0..passes {
            all.add(self.compare(&entry, &moment, (pass, passes), question.repair, deadline).await?);
        }
        ::metrics::counter!(metrics::VIEW_ROWS_VERIFIED).increment(all.rows);
        ::metrics::counter!(metrics::VIEW_MISMATCHES).increment(all.differing());
        ::metrics::counter!(metrics::VIEW_REPAIRS).increment(all.repaired);
        if all.differing() > 0 {
            let ViewCheck { missing, invented, other, repaired, .. } = all;
            tracing::warn!(
                view = entry.descriptor.name, shard = %question.shard, missing, invented, other, repaired,
                "a view differs from its sources"
            );
        }
        Ok(all)
    }

    /// One pass.
    async fn compare(
        &self,
        entry: &TableEntry,
        moment: &Moment,
        pass: (u32, u32),
        repair: bool,
        deadline: Instant,
    ) -> Result<ViewCheck> {
        let expected = self.expected(entry, moment, pass, deadline).await?;
        let mut check = ViewCheck { rows: expected.len() as u64, at: moment.at, ..ViewCheck::default() };
        let mut wrong: Vec<(Bytes, Option<Bytes>)> = Vec::new();
        let mut note = |key: &Bytes, difference: Difference, value: Option<Bytes>| {
            match difference {
                Difference::Missing => check.missing += 1,
                Difference::Invented => check.invented += 1,
                Difference::Other => check.other += 1,
            }
            if check.samples.len() < DIFFERENCES_MAX {
                check.samples.push((key.to_vec(), difference));
            }
            wrong.push((entry.layout.encode(key), value));
        };
        // Both sides ascend by encoded key.
        let mut ahead: Bound<Bytes> = Bound::Unbounded;
        let mut from = Some(moment.start.clone());
        while let Some(start) = from {
            let request = page_request(start, moment.end.clone(), moment.at);
            let began = self.clock().now();
            let epoch = moment.shard.state().epoch;
            let page = moment.shard.scan(epoch, request, began + PAGE_TIMEOUT).await?.body;
            from = page.next;
            for (encoded, version) in page.rows {
                let key = entry.layout.decode(&encoded)?;
                if !in_pass(&key, pass) {
                    continue;
                }
                let missing = expected.range::<Bytes, _>((ahead.as_ref(), Bound::Excluded(&encoded)));
                missing.for_each(|(_, (key, value))| note(key, Difference::Missing, Some(value.clone())));
                match expected.get(&encoded) {
                    Some((_, value)) if version.value.as_ref() == Some(value) => {}
                    Some((_, value)) => note(&key, Difference::Other, Some(value.clone())),
                    None => note(&key, Difference::Invented, None),
                }
                ahead = Bound::Excluded(encoded);
            }
            self.in_time(deadline)?;
        }
        let missing = expected.range::<Bytes, _>((ahead.as_ref(), Bound::Unbounded));
        missing.for_each(|(_, (key, value))| note(key, Difference::Missing, Some(value.clone())));
        if repair {
            check.repaired = self.mend(entry, moment, wrong).await?;
        }
        Ok(check)
    }

    /// Sets rows right; how many.
    async fn mend(&self, entry: &TableEntry, moment: &Moment, wrong: Vec<(Bytes, Option<Bytes>)>) -> Result<u64> {
        let mut repaired = 0;
        for rows in wrong.chunks(MEND_ROWS) {
            let upkeep = Upkeep::Mend(Mending { seen: moment.at, rows: rows.to_vec() });
            // What was changed since is left as it is, and looked at again with the next comparison.
            if self.upkeep(entry, &rows[0].0, &upkeep).await? {
                repaired += rows.len() as u64;
            }
        }
        Ok(repaired)
    }

    /// What the sources say that the shard should hold: by encoded key, the key and the value.
    async fn expected(
        &self,
        entry: &TableEntry,
        moment: &Moment,
        pass: (u32, u32),
        deadline: Instant,
    ) -> Result<BTreeMap<Bytes, (Bytes, Bytes)>> {
        let (definition, projector) = projector_of(entry)?;
        let directory = self.directory();
        let sources = entry.descriptor.view.iter().flat_map(|view| &view.sources);
        let mut all = BTreeMap::new();
        for section in &moment.sections {
            let mut computed = Recompute::new(&definition)?;
            for (number, source) in sources.clone().enumerate() {
                let source = directory.table(*source).cloned().ok_or_else(|| {
                    Error::new(Reason::UnknownTable, format!("a source of {} was dropped", entry.descriptor.name))
                })?;
                let (start, end) = source.layout.table_range();
                for part in section.within(&start, &end) {
                    let position = part.position.unwrap_or_default();
                    if position.step.is_some() {
                        let text = format!("{} is catching up; try again in a moment", entry.descriptor.name);
                        return Err(Error::new(Reason::ViewBehind, text).with_retry_after(Duration::from_millis(200)));
                    }
                    if position.after == Timestamp::ZERO {
                        continue;
                    }
                    let mut from = Some(part.start.clone());
                    while let Some(start) = from {
                        let (rows, next) = self.source_page(&source, start, part.end.clone(), position.after).await?;
                        from = next;
                        for (key, version) in rows {
                            let Some(value) = document(Some(&version)) else { continue };
                            let Some(tag) = projector.tag_of(number, &key, value) else { continue };
                            let anchor = [b"{", &tag[..], b"}"].concat();
                            let encoded = entry.layout.encode(&anchor);
                            if section.start <= encoded && encoded < section.end && in_pass(&anchor, pass) {
                                computed.add(number, &key, value)?;
                            }
                        }
                        self.in_time(deadline)?;
                    }
                }
            }
            for (key, value) in computed.rows()? {
                all.insert(entry.layout.encode(&key), (key, value));
            }
        }
        Ok(all)
    }

    /// A page of a source as it was at a version: rows with their users' keys, and where the next page begins.
    async fn source_page(
        &self,
        source: &Arc<TableEntry>,
        start: Bytes,
        end: Bytes,
        at: Timestamp,
    ) -> Result<(Vec<(Bytes, Version)>, Option<Bytes>)> {
        let mut source = source.clone();
        let deadline = self.clock().now() + PAGE_TIMEOUT;
        loop {
            match self.source_page_by(&source, &start, &end, at, deadline).await {
                Err(error) if error.reason == Reason::WrongEpoch && self.clock().now() < deadline => {
                    sleep(Duration::from_millis(50)).await;
                    source = self.directory().table(source.descriptor.id).cloned().ok_or(error)?;
                }
                page => return page,
            }
        }
    }

    async fn source_page_by(
        &self,
        source: &Arc<TableEntry>,
        start: &Bytes,
        end: &Bytes,
        at: Timestamp,
        deadline: Instant,
    ) -> Result<(Vec<(Bytes, Version)>, Option<Bytes>)> {
        let layout: &Layout = &source.layout;
        let shard_end = Bytes::copy_from_slice(&source.shards.locate(start).end).min(end.clone());
        let context = Context { deadline, forwarded: false };
        let request = page_request(start.clone(), shard_end.clone(), at);
        let local = |shard: Arc<Shard>, descriptor: Arc<ShardDescriptor>| {
            let request = request.clone();
            async move { shard.scan(descriptor.epoch, request, deadline).await }
        };
        let remote = || {
            let cursor = ScanCursor { next: start.clone() }.encode(layout, &ScanBounds::All, false);
            Request::Scan(ScanRequest {
                cursor: Some(cursor),
                rows_max: PAGE_ROWS,
                level: ReadLevel::AsOf(at),
                ..ScanRequest::default()
            })
        };
        let after = |next: Bytes| (next < *end).then_some(next);
        match self.route(source, start, true, true, false, context, local, remote).await? {
            Routed::Here(served, _) => {
                let mut rows = Vec::with_capacity(served.body.rows.len());
                for (encoded, version) in served.body.rows {
                    rows.push((layout.decode(&encoded)?, version));
                }
                Ok((rows, after(served.body.next.unwrap_or(shard_end))))
            }
            Routed::There(Response::Page(answer)) => {
                let mut rows = Vec::with_capacity(answer.body.rows.len());
                for row in answer.body.rows {
                    // The other node's page may go beyond.
                    if layout.encode(&row.key) >= *end {
                        return Ok((rows, None));
                    }
                    let version = Version { timestamp: row.timestamp, value: row.value, expires_ms: row.expires_ms };
                    rows.push((row.key, version));
                }
                let next = match answer.body.cursor {
                    Some(cursor) => after(ScanCursor::decode(&cursor, layout, &ScanBounds::All, false)?.next),
                    None => None,
                };
                Ok((rows, next))
            }
            Routed::There(_) => Err(mismatched()),
        }
    }

    /// Refuses to go on after the time that a comparison may take.
    fn in_time(&self, deadline: Instant) -> Result<()> {
        if self.clock().now() > deadline {
            return Err(Error::new(Reason::DeadlineExceeded, "the comparison of a view took too long"));
        }
        Ok(())
    }
}

fn page_request(start: Bytes, end: Bytes, at: Timestamp) -> PageRequest {
    PageRequest {
        start,
        end,
        reverse: false,
        count_only: false,
        rows_max: PAGE_ROWS,
        bytes_max: PAGE_BYTES,
        level: ReadLevel::AsOf(at),
    }
}

/// Whether a row of the view belongs to this pass: all rows of a tag belong to one.
fn in_pass(key: &[u8], (pass, passes): (u32, u32)) -> bool {
    // The low bits: the high ones choose the shard.
    passes == 1 || crc32fast::hash(tag(key)) % passes == pass
}
