//! One page of what has changed in a table: which shards are asked, side by side, and what becomes of their positions.
//!
//! A cursor is a list of ranges, each with the position reached there ([`ChangesCursor`]). For a page each range is cut where
//! shards begin, and for each piece the shard that owns it now is asked, all at once: a replica of this node if there is one
//! that keeps up, whatever part it plays, else the node that leads. The first that has something to tell ends the wait; what
//! others have ready by then is told with it, and the rest is asked again by the next page. So every piece moves on by itself,
//! and a shard that cannot be reached holds up nobody but itself: its piece stays where it is, which the age of the page shows.
//!
//! A first page names a position for every piece: whoever holds its cursor is told everything that comes to be from then on.
//!
//! When the shards of a range have changed while they were asked (`WRONG_EPOCH`) its piece is cut anew. A position is good
//! for whoever owns the range, so nothing else is to be done about splits, merges, moves and failovers.
//!
//! Left out: going on with the next page, and asking for each piece by itself, so that none is asked in vain when another has
//! something to tell (the client's `Changes`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;

use super::door::{Context, mismatched};
use super::host::Node;
use super::routing::Routed;
use crate::catalog::TableEntry;
use crate::keyspace::{ChangesCursor, Filter, Part};
use crate::projection;
use crate::runtime::{Instant, timeout_at};
use crate::shard::{FollowRequest, Shard};
use crate::storage;
use crate::types::{
    Answer, Change, ChangeKind, ChangesPage, ChangesRequest, Error, Header, Kind, Position, Reason, Request, Response,
    Result, ShardDescriptor, TableState, Timestamp, Versioned,
};

/// A page is answered this much before its caller gives up, so that the answer arrives.
const HEADROOM: Duration = Duration::from_millis(50);
/// How long another node waits for news in one attempt: shorter than an attempt may take.
const WAIT_ELSEWHERE_MAX: Duration = Duration::from_secs(1);
/// A copy here whose newest proof is older than this lags; then the leader is asked.
const COPY_AGE_MAX: Duration = Duration::from_secs(3);
/// Bytes that one shard adds to a page, about.
const PIECE_BYTES_MAX: usize = 256 << 10;

/// What was told of one piece.
struct Told {
    changes: Vec<Change>,
    /// Whether there was more than a filter has left.
    got_on: bool,
    /// The piece as it stands now; several if another node has cut it.
    parts: Vec<Part>,
    header: Header,
    /// Everything acknowledged before this moment was told.
    proven: Option<Instant>,
}

/// A piece of what is followed.
struct Piece {
    part: Part,
    /// See [`Told::proven`].
    proven: Option<Instant>,
}

/// What is the same for all pieces of a page.
struct Page<'a> {
    node: &'a Node,
    request: &'a ChangesRequest,
    filter: Option<Filter>,
    context: Context,
    /// Wait for news until then.
    until: Instant,
    /// The page must be answered then.
    latest: Instant,
}

impl Node {
    /// The next page of what has changed. Pieces that cannot be reached stay where they are.
    ///
    /// Errors: `CURSOR_TRIMMED`, `INVALID_CURSOR`, `UNKNOWN_TABLE` when the table has gone, faults.
    pub(super) async fn changes(
        &self,
        entry: &Arc<TableEntry>,
        request: ChangesRequest,
        context: Context,
    ) -> Result<Answer<ChangesPage>> {
        let layout = &entry.layout;
        let cursor = match &request.cursor {
            Some(bytes) => ChangesCursor::decode(bytes, layout, &request.bounds)?,
            None => ChangesCursor::begin(layout, &request.bounds, request.after)?,
        };
        let filter = layout.scan_range(&request.bounds)?.filter;
        let now = self.clock().now();
        let latest = context.deadline.checked_sub(HEADROOM).map_or(now, |latest| latest.max(now));
        let until = (now + request.wait).min(latest);
        Page { node: self, request: &request, filter, context, until, latest }.fill(entry, cursor).await
    }

    /// Whether the replica here, if there is one, keeps up with its leader as far as is known.
    fn copy_keeps_up(&self, entry: &TableEntry, anchor: &[u8]) -> bool {
        let shard = self.replicas().get(entry.shards.locate(anchor).id);
        shard.is_some_and(|shard| shard.keeps_up(COPY_AGE_MAX))
    }
}

impl Page<'_> {
    async fn fill(&self, entry: &Arc<TableEntry>, cursor: ChangesCursor) -> Result<Answer<ChangesPage>> {
        let mut entry = entry.clone();
        let mut pieces: Vec<Option<Piece>> = Vec::new();
        let mut asked = FuturesUnordered::new();
        for part in cursor.parts {
            self.ask(&entry, part, None, &mut pieces, &mut asked);
        }
        let (mut changes, mut bytes, mut header) = (Vec::new(), 0, None);
        loop {
            let unbegun = pieces.iter().flatten().any(|piece| piece.part.position.is_none());
            let next = if unbegun {
                // Whoever is given a cursor is told what comes to be from then on, of all pieces.
                timeout_at(self.latest, asked.next()).await.flatten()
            } else if changes.is_empty() {
                // Pieces end their wait by themselves; this is for those that cannot be reached.
                timeout_at(self.until + HEADROOM / 2, asked.next()).await.flatten()
            } else if bytes < self.node.options().limits.page_bytes_max && changes.len() < self.request.changes_max {
                asked.next().now_or_never().flatten()
            } else {
                None
            };
            let Some((number, result)) = next else { break };
            let late = self.node.clock().now() >= self.until;
            match result {
                Ok(told) => {
                    pieces[number] = None;
                    let quiet = told.changes.is_empty();
                    bytes += told.changes.iter().map(size).sum::<usize>();
                    changes.extend(told.changes);
                    header = Some(told.header);
                    for part in told.parts {
                        if quiet && (!late || told.got_on && changes.is_empty()) && !self.context.forwarded {
                            self.ask(&entry, part, told.proven, &mut pieces, &mut asked);
                        } else {
                            pieces.push(Some(Piece { part, proven: told.proven }));
                        }
                    }
                }
                Err(error) if self.context.forwarded => return Err(error),
                Err(error) => {
                    entry = self.still_there(&entry)?;
                    let Some(Piece { part, proven }) = pieces[number].take() else { continue };
                    match error.kind() {
                        Kind::Refresh if !late => self.ask(&entry, part, proven, &mut pieces, &mut asked),
                        // It was tried until the deadline; its age will tell.
                        Kind::Redirect | Kind::Refresh | Kind::Unavailable | Kind::Undetermined => {
                            pieces.push(Some(Piece { part, proven: None }));
                        }
                        _ => return Err(error),
                    }
                }
            }
        }
        let pieces: Vec<Piece> = pieces.into_iter().flatten().collect();
        if pieces.iter().any(|piece| piece.part.position.is_none()) {
            let why = "a shard cannot be reached, so there is no telling where to begin: try again in a moment";
            return Err(Error::new(Reason::NoQuorum, why));
        }
        Ok(self.answer(&entry, changes, pieces, header))
    }

    /// Asks for a part, piece by piece.
    fn ask<'s>(
        &'s self,
        entry: &Arc<TableEntry>,
        part: Part,
        proven: Option<Instant>,
        pieces: &mut Vec<Option<Piece>>,
        asked: &mut FuturesUnordered<BoxFuture<'s, (usize, Result<Told>)>>,
    ) {
        for part in cut(entry, part) {
            let (entry, number, this) = (entry.clone(), pieces.len(), part.clone());
            pieces.push(Some(Piece { part, proven }));
            asked.push(async move { (number, self.piece(&entry, this).await) }.boxed());
        }
    }

    /// The page, from what was told and where all pieces stand.
    fn answer(
        &self,
        entry: &TableEntry,
        changes: Vec<Change>,
        mut pieces: Vec<Piece>,
        header: Option<Header>,
    ) -> Answer<ChangesPage> {
        let mut header = header.unwrap_or_else(|| self.node.idle_header(entry));
        // The oldest of all; unknown if that of one is.
        let oldest = pieces.iter().map(|piece| piece.proven).min().flatten();
        header.age = oldest.map(|oldest| self.node.clock().now().saturating_duration_since(oldest));
        pieces.sort_by(|one, other| one.part.start.cmp(&other.part.start));
        let cursor = ChangesCursor { parts: pieces.into_iter().map(|piece| piece.part).collect() };
        let cursor = cursor.encode(&entry.layout, &self.request.bounds);
        Answer { header, body: ChangesPage { changes, cursor } }
    }

    /// The table as it is now, if it still serves.
    fn still_there(&self, entry: &TableEntry) -> Result<Arc<TableEntry>> {
        let TableEntry { descriptor, .. } = entry;
        let now = self.node.directory().table(descriptor.id).cloned();
        now.filter(|now| now.descriptor.state == TableState::Ready).ok_or_else(|| {
            Error::new(Reason::UnknownTable, format!("table '{}' was dropped: nothing follows", descriptor.name))
        })
    }

    /// Asks the shard that owns a piece.
    async fn piece(&self, entry: &Arc<TableEntry>, part: Part) -> Result<Told> {
        let (node, request, context, until) = (self.node, self.request, self.context, self.until);
        let layout = &entry.layout;
        let sent = node.clock().now();
        let local = |shard: Arc<Shard>, descriptor: Arc<ShardDescriptor>| {
            // Whoever begins is told what comes to be from now on: of a copy that lags perhaps more than that, not less.
            let now = || Position::after(shard.state().last_timestamp);
            let follow = FollowRequest {
                start: part.start.clone(),
                end: part.end.clone(),
                position: part.position.clone().unwrap_or_else(now),
                with_replaced: request.with_previous,
                limits: storage::changes::PageLimits {
                    changes_max: request.changes_max.max(1),
                    bytes_max: PIECE_BYTES_MAX,
                },
                until: None,
            };
            async move { shard.changes(descriptor.epoch, follow, until).await }
        };
        let remote = || {
            let alone = ChangesCursor { parts: vec![part.clone()] };
            let wait = until.saturating_duration_since(node.clock().now()).min(WAIT_ELSEWHERE_MAX);
            let cursor = Some(alone.encode(layout, &request.bounds));
            Request::Changes(ChangesRequest { cursor, after: None, wait, ..request.clone() })
        };
        let copies = context.forwarded || node.copy_keeps_up(entry, &part.start);
        let routed = node.route(entry, &part.start, copies, true, false, context, local, remote).await?;
        match routed {
            Routed::Here(served, descriptor) => {
                let header = node.header(&served, &descriptor);
                let proven = served.age.and_then(|age| node.clock().now().checked_sub(age));
                let got_on = !served.body.changes.is_empty();
                let mut changes = Vec::with_capacity(served.body.changes.len());
                for change in served.body.changes {
                    let key = layout.decode(&change.key)?;
                    let wanted = match request.only {
                        None => true,
                        Some(ChangeKind::Put) => change.version.value.is_some(),
                        Some(ChangeKind::Delete) => change.version.value.is_none(),
                    };
                    let hidden = entry.descriptor.view.is_some() && projection::hides(&key);
                    if wanted && !hidden && self.filter.as_ref().is_none_or(|filter| filter.matches(&key)) {
                        changes.push(shown(key, change));
                    }
                }
                let parts = vec![part.at(served.body.position)];
                Ok(Told { changes, got_on, parts, header, proven })
            }
            Routed::There(Response::Changes(Answer { header, body })) => {
                let cursor = ChangesCursor::decode(&body.cursor, layout, &request.bounds)?;
                if !covers(&cursor.parts, &part) {
                    return Err(mismatched());
                }
                // Of that moment no more is known than that it did not lie before the question.
                let proven = header.age.and_then(|age| sent.checked_sub(age));
                Ok(Told { changes: body.changes, got_on: false, parts: cursor.parts, header, proven })
            }
            Routed::There(_) => Err(mismatched()),
        }
    }
}

/// A part, cut where shards begin.
fn cut(entry: &TableEntry, part: Part) -> Vec<Part> {
    let starts: Vec<Bytes> = (entry.shards.overlapping(&part.start, &part.end))
        .map(|shard| Bytes::copy_from_slice(&shard.start))
        .filter(|start| *start > part.start)
        .collect();
    let mut pieces = Vec::with_capacity(starts.len() + 1);
    let mut rest = part;
    for start in starts {
        let (left, right) = rest.cut(&start);
        pieces.push(left);
        rest = right;
    }
    pieces.push(rest);
    pieces
}

/// Whether these parts are the whole of `part`.
fn covers(parts: &[Part], part: &Part) -> bool {
    let mut reached = &part.start;
    for next in parts {
        if next.start != *reached {
            return false;
        }
        reached = &next.end;
    }
    *reached == part.end
}

fn size(change: &Change) -> usize {
    let value = change.value.as_ref().map_or(0, Bytes::len);
    change.key.len() + value + change.previous.as_ref().map_or(0, |previous| previous.value.len())
}

fn shown(key: Bytes, change: storage::changes::Change) -> Change {
    let storage::changes::Change { version, replaced, .. } = change;
    let previous = replaced.and_then(|replaced| {
        let (timestamp, expires_ms): (Timestamp, _) = (replaced.timestamp, replaced.expires_ms);
        replaced.value.map(|value| Versioned { timestamp, value, expires_ms })
    });
    Change { key, timestamp: version.timestamp, value: version.value, expires_ms: version.expires_ms, previous }
}
