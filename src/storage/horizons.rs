//! What compaction may drop, range by range.
//!
//! A shard tells its horizon after it has written the state that carries it; the horizon takes effect when that
//! writing is durable (the next `sync`). Otherwise a crash could bring back an older state that still promises history
//! which compaction has already dropped.
//!
//! A snapshot held by a reader (a cut for another replica, a checksum under way) promises the history of its own
//! moment, but compaction does not look at snapshots. So a snapshot pins the horizons in effect when it was taken, and
//! what may be trimmed is the least of the horizons in effect and all that are pinned ([`Trimmable`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::types::Timestamp;

/// How far one range may be trimmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Horizon {
    /// Versions at or below this may go once a newer version at or below it exists; a deletion or an expired value
    /// at or below it may go together with everything older.
    pub history: Timestamp,
    /// Outcomes of requests issued before this many milliseconds since 1970 may go.
    pub outcomes_before_ms: u64,
}

/// A range and its horizon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// First encoded key.
    pub start: Bytes,
    /// First encoded key beyond.
    pub end: Bytes,
    /// How far it may be trimmed.
    pub horizon: Horizon,
}

/// The horizons in effect, ascending and apart: one immutable picture.
#[derive(Debug, Default)]
pub struct Spans(Vec<Span>);

impl Spans {
    /// The span that holds `encoded`; `hint` is the place where the last one was found and is moved along, so a walk
    /// in key order costs one comparison a key.
    pub fn find(&self, encoded: &[u8], hint: &mut usize) -> Option<&Span> {
        let holds = |span: &Span| span.start <= encoded && encoded < span.end;
        if let Some(span) = self.0.get(*hint)
            && holds(span)
        {
            return Some(span);
        }
        let at = self.0.partition_point(|span| span.end <= encoded);
        *hint = at;
        self.0.get(at).filter(|span| holds(span))
    }

    /// All spans in order.
    pub fn iter(&self) -> impl Iterator<Item = &Span> {
        self.0.iter()
    }
}

/// The horizons of all ranges of one engine.
#[derive(Debug, Default)]
pub struct Horizons {
    /// By start; what has been told, durable or not.
    told: Mutex<Told>,
    changed: AtomicBool,
    effective: ArcSwap<Spans>,
    /// The pictures that snapshots hold, each with the number of its holders.
    pinned: Mutex<Vec<(Arc<Spans>, usize)>>,
}

/// Holds the horizons of one moment back; see [`Horizons::pin`].
pub(super) struct Pin {
    horizons: Arc<Horizons>,
    spans: Arc<Spans>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pinned = self.horizons.pinned.lock();
        if let Some(at) = pinned.iter().position(|(spans, _)| Arc::ptr_eq(spans, &self.spans)) {
            pinned[at].1 -= 1;
            if pinned[at].1 == 0 {
                pinned.swap_remove(at);
            }
        }
    }
}

/// What may be trimmed now: of each key, the least horizon of several pictures.
pub(super) struct Trimmable(Vec<(Arc<Spans>, usize)>);

impl Trimmable {
    /// The horizon of a key, if every picture has one. Cheapest when asked in key order.
    pub(super) fn horizon(&mut self, encoded: &[u8]) -> Option<Horizon> {
        let mut least: Option<Horizon> = None;
        for (spans, hint) in &mut self.0 {
            let horizon = spans.find(encoded, hint)?.horizon;
            least = Some(least.map_or(horizon, |least| Horizon {
                history: least.history.min(horizon.history),
                outcomes_before_ms: least.outcomes_before_ms.min(horizon.outcomes_before_ms),
            }));
        }
        least
    }
}

type Ranges = BTreeMap<Bytes, (Bytes, Horizon)>;

#[derive(Debug, Default)]
struct Told {
    ranges: Ranges,
    /// Counts pictures taken, so that of two syncs under way at once the older cannot undo the newer.
    taken: u64,
    in_effect: u64,
}

/// What a sync will bring into effect.
pub(super) struct Pending {
    number: u64,
    spans: Spans,
}

impl Horizons {
    /// No range may be trimmed.
    pub fn new() -> Horizons {
        Horizons::default()
    }

    /// Sets how far `[start, end)` (encoded keys) may be trimmed: versions by `history`, outcomes of requests issued
    /// before `outcomes_before_ms`. Call it after the state that carries the horizon was written; it is in effect from
    /// the next sync on. Whatever overlapped the range is cut back to what lies outside of it.
    pub fn set(&self, start: &[u8], end: &[u8], history: Timestamp, outcomes_before_ms: u64) {
        let horizon = Horizon { history, outcomes_before_ms };
        if start >= end {
            return;
        }
        let mut told = self.told.lock();
        if let Some((old_end, old)) = told.ranges.get(start)
            && old_end == end
        {
            if *old == horizon {
                return;
            }
        } else {
            carve(&mut told.ranges, start, end);
        }
        told.ranges.insert(Bytes::copy_from_slice(start), (Bytes::copy_from_slice(end), horizon));
        self.changed.store(true, Ordering::Release);
    }

    /// Forgets the horizon of `[start, end)` at once: nothing in it may be trimmed any more. For replicas that leave.
    pub fn clear(&self, start: &[u8], end: &[u8]) {
        let mut told = self.told.lock();
        carve(&mut told.ranges, start, end);
        // What has been told but not promoted would come into effect early if the picture were taken from `told`.
        let mut effective: Ranges =
            self.effective.load().iter().map(|span| (span.start.clone(), (span.end.clone(), span.horizon))).collect();
        carve(&mut effective, start, end);
        self.effective.store(Arc::new(picture(&effective)));
        self.changed.store(true, Ordering::Release);
    }

    /// The horizons in effect now.
    pub fn effective(&self) -> Arc<Spans> {
        self.effective.load_full()
    }

    /// Holds back what is in effect now, until the pin is dropped.
    pub(super) fn pin(self: &Arc<Horizons>) -> Pin {
        let mut pinned = self.pinned.lock();
        // Loaded under the lock: whoever asks what may be trimmed sees either the pin or a picture no newer than it.
        let spans = self.effective();
        match pinned.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &spans)) {
            Some((_, holders)) => *holders += 1,
            None => pinned.push((spans.clone(), 1)),
        }
        drop(pinned);
        Pin { horizons: self.clone(), spans }
    }

    /// What may be trimmed now.
    pub(super) fn trimmable(&self) -> Trimmable {
        let pinned = self.pinned.lock();
        let current = self.effective();
        let older = pinned.iter().map(|(spans, _)| spans).filter(|spans| !Arc::ptr_eq(spans, &current));
        let mut pictures: Vec<_> = older.map(|spans| (spans.clone(), 0)).collect();
        pictures.push((current, 0));
        Trimmable(pictures)
    }

    /// Called before a sync: what the sync will bring into effect, if anything changed.
    pub(super) fn before_sync(&self) -> Option<Pending> {
        if !self.changed.load(Ordering::Acquire) {
            return None;
        }
        let mut told = self.told.lock();
        self.changed.store(false, Ordering::Release);
        told.taken += 1;
        Some(Pending { number: told.taken, spans: picture(&told.ranges) })
    }

    /// Called after that sync succeeded.
    pub(super) fn after_sync(&self, pending: Option<Pending>) {
        let Some(Pending { number, spans }) = pending else { return };
        let mut told = self.told.lock();
        if number < told.in_effect {
            return;
        }
        told.in_effect = number;
        // A range forgotten or handed on in the meantime must not come back.
        let still =
            spans.0.into_iter().filter(|span| told.ranges.get(&span.start).is_some_and(|(end, _)| *end == span.end));
        self.effective.store(Arc::new(Spans(still.collect())));
    }
}

fn picture(ranges: &Ranges) -> Spans {
    Spans(
        ranges
            .iter()
            .map(|(start, (end, horizon))| Span { start: start.clone(), end: end.clone(), horizon: *horizon })
            .collect(),
    )
}

/// Cuts `[start, end)` out of the ranges.
fn carve(ranges: &mut Ranges, start: &[u8], end: &[u8]) {
    let overlapping: Vec<Bytes> = ranges
        .range::<[u8], _>((std::ops::Bound::Unbounded, std::ops::Bound::Excluded(end)))
        .rev()
        .take_while(|(_, (old_end, _))| &old_end[..] > start)
        .map(|(old_start, _)| old_start.clone())
        .collect();
    for old_start in overlapping {
        let (old_end, horizon) = ranges.remove(&old_start).expect("it was found just now");
        if &old_end[..] > end {
            ranges.insert(Bytes::copy_from_slice(end), (old_end, horizon));
        }
        if &old_start[..] < start {
            ranges.insert(old_start, (Bytes::copy_from_slice(start), horizon));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sync(horizons: &Horizons) {
        let pending = horizons.before_sync();
        horizons.after_sync(pending);
    }

    fn shown(horizons: &Horizons) -> String {
        horizons
            .effective()
            .iter()
            .map(|span| {
                format!(
                    "{}-{}:{}",
                    String::from_utf8_lossy(&span.start),
                    String::from_utf8_lossy(&span.end),
                    span.horizon.history.0
                )
            })
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn a_horizon_takes_effect_with_the_next_sync() {
        let horizons = Horizons::new();
        horizons.set(b"a", b"m", Timestamp(5), 0);
        assert_eq!(shown(&horizons), "");
        sync(&horizons);
        assert_eq!(shown(&horizons), "a-m:5");
        let pending = horizons.before_sync();
        assert!(pending.is_none(), "nothing changed");
        horizons.set(b"a", b"m", Timestamp(7), 0);
        let pending = horizons.before_sync();
        // The sync has begun: what is told now is not covered by it.
        horizons.set(b"a", b"m", Timestamp(9), 0);
        horizons.after_sync(pending);
        assert_eq!(shown(&horizons), "a-m:7");
        sync(&horizons);
        assert_eq!(shown(&horizons), "a-m:9");
    }

    #[test]
    fn ranges_that_overlap_are_cut() {
        let horizons = Horizons::new();
        horizons.set(b"a", b"z", Timestamp(1), 0);
        horizons.set(b"f", b"k", Timestamp(2), 0);
        sync(&horizons);
        assert_eq!(shown(&horizons), "a-f:1 f-k:2 k-z:1");
        horizons.set(b"e", b"g", Timestamp(3), 0);
        horizons.clear(b"h", b"p");
        assert_eq!(shown(&horizons), "a-f:1 f-h:2 p-z:1", "clearing takes effect at once, setting does not");
        sync(&horizons);
        assert_eq!(shown(&horizons), "a-e:1 e-g:3 g-h:2 p-z:1");
    }

    #[test]
    fn a_range_cleared_during_a_sync_does_not_come_back() {
        let horizons = Horizons::new();
        horizons.set(b"a", b"z", Timestamp(1), 0);
        let pending = horizons.before_sync();
        horizons.clear(b"a", b"z");
        horizons.after_sync(pending);
        assert_eq!(shown(&horizons), "");
    }

    #[test]
    fn a_pin_holds_back_what_may_be_trimmed() {
        let horizons = Arc::new(Horizons::new());
        horizons.set(b"a", b"m", Timestamp(5), 50);
        sync(&horizons);
        let may = |key: &[u8]| {
            horizons.trimmable().horizon(key).map(|horizon| (horizon.history.0, horizon.outcomes_before_ms))
        };
        let pin = horizons.pin();
        let same = horizons.pin();
        horizons.set(b"a", b"m", Timestamp(7), 70);
        horizons.set(b"m", b"z", Timestamp(3), 30);
        sync(&horizons);
        assert_eq!((may(b"b"), may(b"n")), (Some((5, 50)), None));
        let later = horizons.pin();
        drop(pin);
        assert_eq!((may(b"b"), may(b"n")), (Some((5, 50)), None), "another holder");
        drop(same);
        assert_eq!((may(b"b"), may(b"n")), (Some((7, 70)), Some((3, 30))));
        drop(later);
        assert!(horizons.pinned.lock().is_empty());
    }

    #[test]
    fn find_follows_a_walk_and_jumps() {
        let horizons = Horizons::new();
        horizons.set(b"b", b"d", Timestamp(1), 0);
        horizons.set(b"d", b"f", Timestamp(2), 0);
        horizons.set(b"x", b"z", Timestamp(3), 0);
        sync(&horizons);
        let spans = horizons.effective();
        let mut hint = 0;
        let mut found = |key: &[u8]| spans.find(key, &mut hint).map(|span| span.horizon.history.0);
        assert_eq!(found(b"a"), None);
        assert_eq!(found(b"b"), Some(1));
        assert_eq!(found(b"czz"), Some(1));
        assert_eq!(found(b"d"), Some(2));
        assert_eq!(found(b"f"), None);
        assert_eq!(found(b"xx"), Some(3));
        assert_eq!(found(b"z"), None);
        assert_eq!(found(b"c"), Some(1), "also backwards");
    }
}
