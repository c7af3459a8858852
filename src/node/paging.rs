//! One page of a scan: which shard is next, what of it is asked for, and where the page after it goes on.
//!
//! A scan is a list of ranges of encoded keys ([`Rest`]), read from its front. A page comes from one shard, so that it is
//! of one moment; the cursor names the first key not yet looked at and survives whatever becomes of the shards. Pages in
//! which a filter has left nothing are passed over, a bounded number of them, before an empty one is answered.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::door::{Context, mismatched};
use super::host::Node;
use super::routing::{Routed, copies_may_answer};
use crate::catalog::TableEntry;
use crate::keyspace::ScanCursor;
use crate::projection;
use crate::runtime::planted::{self, Bug};
use crate::shard::{PageRequest, Shard};
use crate::types::{Answer, Page, Reason, Request, Response, Result, Row, ScanRequest, ShardDescriptor};

/// Pages of a filtered scan looked through for one answer.
const EMPTY_PAGES_MAX: usize = 16;

impl Node {
    /// Reads the next page of a scan.
    pub(super) async fn scan(
        &self,
        entry: &Arc<TableEntry>,
        scan: ScanRequest,
        context: Context,
    ) -> Result<Answer<Page>> {
        let layout = &entry.layout;
        let plan = layout.scan_range(&scan.bounds)?;
        let begun = match &scan.cursor {
            Some(bytes) => Some(ScanCursor::decode(bytes, layout, &scan.bounds, scan.reverse)?.next),
            None => None,
        };
        let is_view = entry.descriptor.view.is_some();
        let all_count = plan.filter.is_none() && !is_view;
        let mut rest = Rest::new(plan.ranges.clone(), scan.reverse, begun);
        let cursor_at = |next: Bytes| ScanCursor { next }.encode(layout, &scan.bounds, scan.reverse);
        let limits = &self.options().limits;
        let rows_max = scan.rows_max.clamp(1, limits.page_rows_max);
        let mut page = Page::default();
        let mut header = None;
        let mut entry = entry.clone();
        let mut pages = 0;
        while pages < EMPTY_PAGES_MAX {
            let Some((start, end)) = rest.next_range().cloned() else { break };
            let mut shards = entry.shards.overlapping(&start, &end);
            let descriptor = if scan.reverse { shards.next_back() } else { shards.next() };
            let Some(descriptor) = descriptor else {
                rest.skip_range();
                continue;
            };
            // The part of the range that lies in this shard.
            let start = start.max(Bytes::copy_from_slice(&descriptor.start));
            let end = end.min(Bytes::copy_from_slice(&descriptor.end));
            let request = PageRequest {
                start: start.clone(),
                end: end.clone(),
                reverse: scan.reverse,
                // Who leaves some out needs the keys even to count them.
                count_only: scan.count_only && all_count,
                rows_max,
                bytes_max: limits.page_bytes_max,
                level: scan.level,
            };
            let local = |shard: Arc<Shard>, descriptor: Arc<ShardDescriptor>| {
                let request = request.clone();
                let entry = entry.clone();
                async move {
                    shard.load().count(&request.start);
                    let Some(view) = &entry.descriptor.view else {
                        return shard.scan(descriptor.epoch, request, context.deadline).await;
                    };
                    let reached = self.reach_view(&entry, view, &shard, request.level, context.deadline).await?;
                    let request = PageRequest { level: reached.level, ..request };
                    let served = shard.scan(descriptor.epoch, request, context.deadline).await?;
                    Ok(self.aged(served, reached))
                }
            };
            let (first, last) = if scan.reverse { (&end, &start) } else { (&start, &end) };
            let remote = || Request::Scan(ScanRequest { cursor: Some(cursor_at(first.clone())), ..scan.clone() });
            let copies = copies_may_answer(scan.level, scan.any_replica);
            let routed = match self.route(&entry, &start, copies, true, false, context, local, remote).await {
                // The shard was split while it was asked: what is left is planned anew.
                Err(error) if error.reason == Reason::WrongEpoch && !context.forwarded => {
                    entry = self.newer(entry, error, context)?;
                    if planted::is(Bug::ScanSkipsAtSplit) {
                        rest.go_on_at(last.clone());
                    }
                    continue;
                }
                routed => routed?,
            };
            pages += 1;
            let served = match routed {
                Routed::Here(served, shard) => {
                    header = Some(self.header(&served, &shard));
                    served.body
                }
                // The other node has made a whole page, cursor and all.
                Routed::There(Response::Page(answer)) => return Ok(answer),
                Routed::There(_) => return Err(mismatched()),
            };
            for (encoded, version) in served.rows {
                let key = layout.decode(&encoded)?;
                // Members of groups are the view's own affair.
                let hidden = is_view && projection::hides(&key);
                if hidden || plan.filter.as_ref().is_some_and(|filter| !filter.matches(&key)) {
                    continue;
                }
                page.count += 1;
                if !scan.count_only {
                    page.rows.push(Row {
                        key,
                        timestamp: version.timestamp,
                        value: version.value,
                        expires_ms: version.expires_ms,
                    });
                }
            }
            if all_count && scan.count_only {
                page.count += served.count;
            }
            rest.go_on_at(served.next.unwrap_or_else(|| last.clone()));
            // Who was forwarded to answers for the shard it was asked about; the next one may be led elsewhere.
            if page.count > 0 || context.forwarded {
                break;
            }
        }
        page.cursor = rest.position().map(cursor_at);
        let header = header.unwrap_or_else(|| self.idle_header(&entry));
        Ok(Answer { header, body: page })
    }
}

/// What is left of a scan.
struct Rest {
    /// Ranges of encoded keys, in the order in which they are read.
    ranges: VecDeque<(Bytes, Bytes)>,
    /// Each from its end to its start.
    reverse: bool,
}

impl Rest {
    /// Of ranges in key order, after the pages before have come to `begun`.
    fn new(ranges: Vec<(Bytes, Bytes)>, reverse: bool, begun: Option<Bytes>) -> Rest {
        let mut rest = Rest { ranges: ranges.into(), reverse };
        if reverse {
            rest.ranges.make_contiguous().reverse();
        }
        if let Some(next) = begun {
            rest.ranges.retain(|(start, end)| if reverse { *start < next } else { next < *end });
            match rest.ranges.front_mut() {
                Some((_, end)) if reverse && next < *end => *end = next,
                Some((start, _)) if !reverse && *start < next => *start = next,
                _ => {}
            }
        }
        rest
    }

    fn next_range(&self) -> Option<&(Bytes, Bytes)> {
        self.ranges.front()
    }

    fn skip_range(&mut self) {
        self.ranges.pop_front();
    }

    /// Everything before this key (behind it, in reverse) of the first range has been read.
    fn go_on_at(&mut self, next: Bytes) {
        let Some((start, end)) = self.ranges.front_mut() else { return };
        *(if self.reverse { &mut *end } else { &mut *start }) = next;
        if start >= end {
            self.skip_range();
        }
    }

    /// The key to go on at; none when all has been read.
    fn position(&self) -> Option<Bytes> {
        self.ranges.front().map(|(start, end)| if self.reverse { end.clone() } else { start.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(reverse: bool, begun: Option<&'static str>) -> Rest {
        let ranges = [("b", "d"), ("f", "h"), ("k", "m")];
        Rest::new(ranges.map(|(start, end)| (start.into(), end.into())).into(), reverse, begun.map(Bytes::from))
    }

    /// Reads all that is left, one letter at a time.
    fn letters(mut rest: Rest) -> String {
        let mut read = String::new();
        while let Some((start, end)) = rest.next_range().cloned() {
            assert!(start < end, "no range is empty");
            let letter = if rest.reverse { end[0] - 1 } else { start[0] };
            read.push(letter as char);
            let next = if rest.reverse { letter } else { letter + 1 };
            rest.go_on_at(Bytes::copy_from_slice(&[next]));
        }
        assert_eq!(rest.position(), None);
        read
    }

    #[test]
    fn every_key_is_read_once_in_either_direction() {
        assert_eq!(letters(rest(false, None)), "bcfgkl");
        assert_eq!(letters(rest(true, None)), "lkgfcb");
    }

    #[test]
    fn a_scan_goes_on_where_it_was_left() {
        // Wherever a page ends, inside a range, at its edge or between two: nothing is lost or read twice.
        for at in "abcdefghijklmno".chars() {
            let begun: &'static str = Box::leak(at.to_string().into_boxed_str());
            let left: String = "bcfgkl".chars().filter(|&letter| letter >= at).collect();
            assert_eq!(letters(rest(false, Some(begun))), left, "from {at}");
            let left: String = "lkgfcb".chars().filter(|&letter| letter < at).collect();
            assert_eq!(letters(rest(true, Some(begun))), left, "back from {at}");
        }
        assert_eq!(rest(false, Some("c")).position(), Some("c".into()));
        assert_eq!(rest(false, Some("e")).position(), Some("f".into()));
        assert_eq!(rest(true, Some("g")).position(), Some("g".into()));
        assert_eq!(rest(true, Some("j")).position(), Some("h".into()));
    }

    #[test]
    fn a_range_that_no_shard_owns_is_passed_over() {
        let mut rest = rest(false, None);
        rest.skip_range();
        assert_eq!(rest.position(), Some("f".into()));
    }
}
