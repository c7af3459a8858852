//! What the sources of a view say that its shards should hold, at the moments at which those stand.
//!
//! Each part of a shard of the view stands at one version of each part of a source. The rows of the source as they were at that
//! version are read, page by page and wherever its shards lie, and the view is computed from them (`projection::Recompute`). Parts
//! that stand at the same place are served by one reading: as a rule that is all of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::super::door::{Context, mismatched};
use super::super::host::Node;
use super::super::routing::Routed;
use super::page::document;
use super::projector_of;
use super::share::Share;
use super::unfit::Unfit;
use super::verify::{Moment, PAGE_TIMEOUT, Pass, SAMPLES_MAX, page_request};
use crate::catalog::TableEntry;
use crate::keyspace::{Layout, ScanCursor};
use crate::projection::Recompute;
use crate::runtime::{Instant, sleep};
use crate::shard::Shard;
use crate::storage::mvcc::Version;
use crate::types::{
    Error, ReadLevel, Reason, Request, Response, Result, ScanBounds, ScanRequest, ShardDescriptor, Timestamp,
};

/// A part of a shard of a view, computed.
struct Section {
    moment: usize,
    start: Bytes,
    end: Bytes,
    computed: Recompute,
}

/// What a shard of a view should hold in a pass.
#[derive(Default)]
pub(super) struct Expected {
    /// By encoded key, the key and the value.
    pub rows: BTreeMap<Bytes, (Bytes, Bytes)>,
    /// Documents that do not fit: how many, and the first of them. Each counts for the one shard that would hold rows of its key, were
    /// that their tag, and so once for the view.
    pub unfit: u64,
    /// These.
    pub unfit_samples: Vec<Unfit>,
}

/// Something to be read: a part of a source, by the source's place in the definition, at a version.
type Reading = (usize, Bytes, Bytes, Timestamp);

impl Expected {
    fn add_unfit(&mut self, unfit: Unfit) {
        self.unfit += 1;
        if self.unfit_samples.len() < SAMPLES_MAX {
            self.unfit_samples.push(unfit);
        }
    }
}

impl Node {
    /// What the sources say that shards should hold, for each moment.
    ///
    /// Errors: `VIEW_BEHIND` if a part is in the middle of something, `HISTORY_TRIMMED`.
    pub(super) async fn expected(
        &self,
        entry: &TableEntry,
        moments: &[Moment],
        pass: Pass,
        share: &mut Share,
    ) -> Result<Vec<Expected>> {
        let (definition, projector) = projector_of(entry)?;
        let directory = self.directory();
        let mut sources = Vec::new();
        for source in entry.descriptor.view.iter().flat_map(|view| &view.sources) {
            let source = directory.table(*source).cloned().ok_or_else(|| {
                Error::new(Reason::UnknownTable, format!("a source of {} was dropped", entry.descriptor.name))
            })?;
            sources.push(source);
        }
        let mut sections = Vec::new();
        let mut readings: BTreeMap<Reading, Vec<usize>> = BTreeMap::new();
        for (number, moment) in moments.iter().enumerate() {
            for section in &moment.sections {
                for (source, table) in sources.iter().enumerate() {
                    let (start, end) = table.layout.table_range();
                    for part in section.within(&start, &end) {
                        let position = part.position.unwrap_or_default();
                        if position.step.is_some() {
                            let text = format!("{} is catching up; try again in a moment", entry.descriptor.name);
                            let behind = Error::new(Reason::ViewBehind, text);
                            return Err(behind.with_retry_after(Duration::from_millis(200)));
                        }
                        if position.after > Timestamp::ZERO {
                            let reading = (source, part.start, part.end, position.after);
                            readings.entry(reading).or_default().push(sections.len());
                        }
                    }
                }
                sections.push(Section {
                    moment: number,
                    start: section.start.clone(),
                    end: section.end.clone(),
                    computed: Recompute::new(&definition)?,
                });
            }
        }
        let mut all: Vec<Expected> = moments.iter().map(|_| Expected::default()).collect();
        for ((number, start, end, at), readers) in readings {
            let mut from = Some(start);
            while let Some(start) = from {
                let page = self.source_page(&sources[number], start, end.clone(), at, share.page_rows()).await?;
                from = page.1;
                for (key, version) in page.0 {
                    let Some(value) = document(Some(&version)) else { continue };
                    let (tag, why) = match projector.tag_of(number, &key, value) {
                        Ok(Some(tag)) => (tag, None),
                        Ok(None) => continue,
                        Err(why) => (key.clone(), Some(why)),
                    };
                    let anchor = [b"{", &tag[..], b"}"].concat();
                    if !pass.has(&anchor) {
                        continue;
                    }
                    let encoded = entry.layout.encode(&anchor);
                    let owns = |section: &Section| section.start <= encoded && encoded < section.end;
                    let Some(&reader) = readers.iter().find(|&&reader| owns(&sections[reader])) else { continue };
                    let section = &mut sections[reader];
                    match why {
                        None => section.computed.add(number, &key, value)?,
                        Some(why) => {
                            let source = sources[number].descriptor.id;
                            all[section.moment].add_unfit(Unfit { source, key: key.to_vec(), why });
                        }
                    }
                }
                share.rest(self.replicas()).await?;
            }
        }
        for section in sections {
            let mut rows = section.computed.rows()?.into_iter().peekable();
            while rows.peek().is_some() {
                let some = rows.by_ref().take(share.page_rows());
                all[section.moment].rows.extend(some.map(|(key, value)| (entry.layout.encode(&key), (key, value))));
                share.rest(self.replicas()).await?;
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
        rows_max: usize,
    ) -> Result<(Vec<(Bytes, Version)>, Option<Bytes>)> {
        let mut source = source.clone();
        let deadline = self.clock().now() + PAGE_TIMEOUT;
        loop {
            match self.source_page_by(&source, &start, &end, (at, rows_max), deadline).await {
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
        (at, rows_max): (Timestamp, usize),
        deadline: Instant,
    ) -> Result<(Vec<(Bytes, Version)>, Option<Bytes>)> {
        let layout: &Layout = &source.layout;
        let shard_end = Bytes::copy_from_slice(&source.shards.locate(start).end).min(end.clone());
        let context = Context { deadline, forwarded: false, table: None };
        let request = page_request(start.clone(), shard_end.clone(), at, rows_max);
        let local = |shard: Arc<Shard>, descriptor: Arc<ShardDescriptor>| {
            let request = request.clone();
            async move { shard.scan(descriptor.epoch, request, deadline).await }
        };
        let remote = || {
            let cursor = ScanCursor { next: start.clone() }.encode(layout, &ScanBounds::All, false);
            Request::Scan(ScanRequest {
                cursor: Some(cursor),
                rows_max,
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
}
