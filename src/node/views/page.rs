//! A page of what a view takes in: read from a shard of a source, and what it does to ranges of the view.
//!
//! It is a part of the state that the view begins with, or of what has changed since a position; either way rows as they were and as they
//! are. They are projected once for all ranges of the view that stand at the same place. A document that does not fit is as good as
//! absent, or the view stops there (`unfit`).

use std::time::Duration;

use bytes::Bytes;

use super::super::ask::ASK_TIMEOUT;
use super::super::metrics;
use super::strand::Strand;
use super::unfit::Unfit;
use super::worker::Worker;
use crate::projection::coalesce;
use crate::runtime::planted::{self, Bug};
use crate::runtime::{spawn_blocking, timeout_at};
use crate::shard::{FollowRequest, PageRequest};
use crate::storage::changes::PageLimits;
use crate::storage::mvcc::Version;
use crate::types::{Error, Position, ReadLevel, Reason, Result, Step, Timestamp};

/// What a page does.
pub(super) struct Page {
    /// To each range of the view.
    pub effects: Vec<Vec<Bytes>>,
    /// Documents in it at which the view may have to stop: encoded keys, versions, and why.
    pub unfit: Vec<(Bytes, Timestamp, Unfit)>,
}

/// A row of the source before and after.
pub(super) struct Changed {
    key: Bytes,
    before: Option<Version>,
    after: Option<Version>,
}

impl Changed {
    /// About what it takes of a page.
    pub fn bytes(&self) -> usize {
        let of = |version: &Option<Version>| {
            version.iter().flat_map(|version| &version.value).map(Bytes::len).sum::<usize>()
        };
        self.key.len() + of(&self.before) + of(&self.after)
    }
}

/// What a view sees of a version: nothing of a deletion, and nothing of what runs out by itself, which no change would tell.
pub(super) fn document(version: Option<&Version>) -> Option<&[u8]> {
    version.filter(|version| version.expires_ms.is_none()).and_then(|version| version.value.as_deref())
}

impl Worker {
    /// What is to be taken in next, and where the strand stands afterwards: rows with what they were and what they are.
    pub(super) async fn page(
        &self,
        strand: &Strand,
        limits: PageLimits,
        until: Option<Timestamp>,
    ) -> Result<(Vec<Changed>, Position)> {
        let (start, end) = strand.source.clone();
        let epoch = self.shard.state().epoch;
        let now = self.node.clock().now();
        let step = match &strand.position {
            Position { step: Some(step), .. } if step.whole => Some(step.clone()),
            position if *position == Position::BEGINNING => {
                // As it is now, for those who were never told anything; when there is something.
                let mut applied = self.shard.applied();
                if self.shard.state().last_timestamp == Timestamp::ZERO {
                    let _ = timeout_at(now + self.news_wait(), applied.changed()).await;
                    return Ok((Vec::new(), strand.position.clone()));
                }
                let upto = self.shard.state().last_timestamp;
                Some(Step { upto, before: end.clone(), whole: true })
            }
            _ => None,
        };
        if let Some(Step { upto, before, .. }) = step {
            let request = PageRequest {
                start,
                end: before,
                reverse: true,
                count_only: false,
                rows_max: limits.changes_max,
                bytes_max: limits.bytes_max,
                level: ReadLevel::AsOf(upto),
            };
            let page = self.shard.scan(epoch, request, now + ASK_TIMEOUT).await?.body;
            let to = match page.next {
                Some(before) => Position { step: Some(Step { upto, before, whole: true }), ..Position::BEGINNING },
                None => Position::after(upto),
            };
            let rows = page.rows.into_iter().map(|(key, version)| Changed { key, before: None, after: Some(version) });
            return Ok((rows.collect(), to));
        }
        let request =
            FollowRequest { start, end, position: strand.position.clone(), with_replaced: true, limits, until };
        let wait = match until {
            Some(_) => Duration::ZERO,
            None => self.news_wait(),
        };
        let page = self.shard.changes(epoch, request, now + wait).await?.body;
        let changes = page.changes.into_iter().map(|change| Changed {
            key: change.key,
            before: change.replaced,
            after: Some(change.version),
        });
        Ok((changes.collect(), page.position))
    }

    /// Stops at the first of these documents that its source still holds as it is.
    ///
    /// Errors: `VIEW_BEHIND`.
    pub(super) async fn stop_at(&self, unfit: Vec<(Bytes, Timestamp, Unfit)>) -> Result<()> {
        if unfit.is_empty() {
            return Ok(());
        }
        let keys: Vec<Bytes> = unfit.iter().map(|(key, ..)| key.clone()).collect();
        let deadline = self.node.clock().now() + ASK_TIMEOUT;
        let newest = self.shard.read(self.shard.state().epoch, &keys, ReadLevel::Any, deadline).await?.body;
        let still = unfit.into_iter().zip(newest).find_map(|((_, version, unfit), newest)| {
            let is_newest = newest.is_some_and(|newest| newest.timestamp == version);
            (is_newest || planted::is(Bug::StopAtReplaced)).then_some(unfit)
        });
        let Some(unfit) = still else { return Ok(()) };
        let (view, shard) = (&self.entry.descriptor, self.shard.id());
        let (name, why) = (&view.name, unfit.why.clone());
        let text = format!("{name} stops at a document that does not fit, which `trivet view describe {name}` names");
        if self.node.stops.note(view.id, shard, self.node.clock().now(), unfit) {
            // No keys in logs.
            tracing::error!(view = name, %shard, why, "{text}");
        }
        Err(Error::new(Reason::ViewBehind, text))
    }

    /// What changes do to each of these ranges of the view.
    pub(super) async fn project(&self, changes: Vec<Changed>, views: Vec<(Bytes, Bytes)>) -> Result<Page> {
        let mut page = Page { effects: vec![Vec::new(); views.len()], unfit: Vec::new() };
        if changes.is_empty() {
            return Ok(page);
        }
        let (projector, layout, view, source) =
            (self.projector.clone(), self.layout.clone(), self.entry.layout.clone(), self.source);
        let (name, stops, table) = (self.entry.descriptor.name.clone(), self.stops, self.table);
        let projected = spawn_blocking(move || {
            let mut all = Vec::new();
            for change in changes {
                let key = layout.decode(&change.key)?;
                let mut projected =
                    projector.effects(source, &key, document(change.before.as_ref()), document(change.after.as_ref()));
                if planted::is(Bug::SkippedViewEvent)
                    && let Some(after) = document(change.after.as_ref())
                {
                    let tag = projector.tag_of(source, &key, after).ok().flatten();
                    projected.effects.retain(|effect| tag.as_ref().is_none_or(|tag| effect.tag == *tag));
                }
                if let (Some(why), Some(version)) = (projected.bad, change.after) {
                    tracing::debug!(view = name, why, "a document does not fit a view");
                    if stops {
                        let unfit = Unfit { source: table, key: key.to_vec(), why };
                        page.unfit.push((change.key, version.timestamp, unfit));
                    } else {
                        ::metrics::counter!(metrics::VIEW_BAD_DOCUMENTS, "view" => name.clone()).increment(1);
                    }
                }
                all.extend(projected.effects);
            }
            for effect in coalesce(all) {
                let anchor = view.encode(&[b"{", &effect.tag[..], b"}"].concat());
                let place = views.iter().position(|(start, end)| *start <= anchor && anchor < *end);
                // What lies elsewhere is sent there by another strand.
                if let Some(place) = place {
                    page.effects[place].push(effect.encode());
                }
            }
            Ok(page)
        });
        projected.await.map_err(|_| Error::internal("a projection was cancelled"))?
    }
}
