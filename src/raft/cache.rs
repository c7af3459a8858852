//! The newest entries of a log, decoded, and how many bytes of log there are.
//!
//! Replication reads each entry once per follower and apply reads it once more; both find it here, as long as they
//! keep up. The cache is also what makes an entry readable before it is on disk, so an entry leaves only when the log
//! writer has written it.

use std::collections::VecDeque;

use super::types::LogEntry;

/// A contiguous tail of the log.
#[derive(Debug, Default)]
pub struct Cache {
    entries: VecDeque<LogEntry>,
    bytes: usize,
}

fn size(entry: &LogEntry) -> usize {
    /// What an entry costs besides its bytes.
    const OVERHEAD: usize = 128;
    OVERHEAD + entry.encoded.as_ref().map_or(0, |bytes| bytes.len())
}

impl Cache {
    /// The index of the oldest entry held.
    pub fn first(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.id.index)
    }

    /// Bytes held.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the entry after the newest. After a gap (a snapshot was installed) what was held is of no use and goes.
    pub fn push(&mut self, entry: LogEntry) {
        if self.entries.back().is_some_and(|last| last.id.index + 1 != entry.id.index) {
            self.entries.clear();
            self.bytes = 0;
        }
        self.bytes += size(&entry);
        self.entries.push_back(entry);
    }

    /// Drops the entries from `index` on.
    pub fn truncate(&mut self, index: u64) {
        while self.entries.back().is_some_and(|last| last.id.index >= index) {
            self.bytes -= self.entries.pop_back().as_ref().map_or(0, size);
        }
    }

    /// Drops the entries up to and with `index`.
    pub fn purge(&mut self, index: u64) {
        while self.entries.front().is_some_and(|first| first.id.index <= index) {
            self.bytes -= self.entries.pop_front().as_ref().map_or(0, size);
        }
    }

    /// Drops the oldest entries until no more than `bytes_max` are held, but none after `written`.
    pub fn shrink(&mut self, bytes_max: usize, written: u64) {
        while self.bytes > bytes_max && self.entries.front().is_some_and(|first| first.id.index <= written) {
            self.bytes -= self.entries.pop_front().as_ref().map_or(0, size);
        }
    }

    /// The entries of `[start, end)`, fewer if they hold more than `bytes_max`, but at least one. `start` must not be
    /// before the oldest held.
    pub fn read(&self, start: u64, end: u64, bytes_max: usize) -> Vec<LogEntry> {
        let Some(first) = self.first() else { return Vec::new() };
        debug_assert!(start >= first);
        let skip = usize::try_from(start - first).unwrap_or(usize::MAX);
        let count = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
        let mut bytes = 0;
        (self.entries.iter().skip(skip).take(count))
            .take_while(|entry| {
                let full = bytes >= bytes_max;
                bytes += size(entry);
                !full
            })
            .cloned()
            .collect()
    }
}

/// How many bytes the log holds, and after which entry how many of them lie. Not every entry is remembered, only one
/// per step, so positions come out up to one step too early: more is kept than asked for, never less.
#[derive(Debug)]
pub struct Sizes {
    step: u64,
    /// Indexes with the bytes of log up to and with them, ascending.
    steps: VecDeque<(u64, u64)>,
    /// Bytes before the first entry kept.
    base: u64,
    total: u64,
}

/// Parts into which the kept log is cut when looking for the place to trim it.
const STEPS: u64 = 64;

impl Sizes {
    /// Of an empty log that is to keep about `keep_bytes`.
    pub fn new(keep_bytes: u64) -> Sizes {
        Sizes { step: (keep_bytes / STEPS).max(1), steps: VecDeque::new(), base: 0, total: 0 }
    }

    /// Bytes of log.
    pub fn bytes(&self) -> u64 {
        self.total - self.base
    }

    /// An entry was appended.
    pub fn push(&mut self, index: u64, bytes: u64) {
        self.total += bytes;
        let before = self.steps.back().map_or(self.base, |&(_, bytes)| bytes);
        if self.total - before >= self.step {
            self.steps.push_back((index, self.total));
        }
    }

    /// The entries from `index` on were removed. Those after the last remembered place are forgotten with them.
    pub fn truncate(&mut self, index: u64) {
        let mut cut = false;
        while self.steps.back().is_some_and(|&(at, _)| at >= index) {
            self.steps.pop_back();
            cut = true;
        }
        if cut {
            self.total = self.steps.back().map_or(self.base, |&(_, bytes)| bytes);
        }
    }

    /// The entries up to and with `index` were removed; with `all`, nothing is left.
    pub fn purge(&mut self, index: u64, all: bool) {
        while let Some(&(at, bytes)) = self.steps.front() {
            if at > index {
                break;
            }
            self.base = bytes;
            self.steps.pop_front();
        }
        if all {
            self.steps.clear();
            self.base = self.total;
        }
    }

    /// The last entry that can go while at least `keep_bytes` stay after it and it is not after `applied`.
    pub fn purgeable(&self, keep_bytes: u64, applied: u64) -> Option<u64> {
        (self.steps.iter().rev())
            .find(|&&(at, bytes)| at <= applied && self.total - bytes >= keep_bytes)
            .map(|&(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use openraft::entry::RaftEntry;

    use super::super::types::{Command, LeaderId, LogId, Payload};
    use super::*;

    fn entry(index: u64, length: usize) -> LogEntry {
        let id = LogId::new(LeaderId { term: 1, node_id: 1 }, index);
        let mut entry = LogEntry::new(id, Payload::Normal(Command(Bytes::new())));
        entry.encoded = Some(vec![0; length].into());
        entry
    }

    fn indexes(entries: &[LogEntry]) -> Vec<u64> {
        entries.iter().map(|entry| entry.id.index).collect()
    }

    #[test]
    fn what_is_not_written_is_never_dropped() {
        let mut cache = Cache::default();
        (10..20).for_each(|index| cache.push(entry(index, 1_000)));
        cache.shrink(0, 14);
        assert_eq!(cache.first(), Some(15));
        cache.shrink(3_500, 19);
        assert_eq!(cache.first(), Some(17));
        cache.shrink(0, 19);
        assert_eq!((cache.first(), cache.bytes()), (None, 0));
    }

    #[test]
    fn reads_stop_at_the_byte_bound_but_return_something() {
        let mut cache = Cache::default();
        (5..15).for_each(|index| cache.push(entry(index, 1_000)));
        assert_eq!(indexes(&cache.read(5, 15, usize::MAX)), (5..15).collect::<Vec<_>>());
        assert_eq!(indexes(&cache.read(7, 9, usize::MAX)), [7, 8]);
        assert_eq!(indexes(&cache.read(7, 15, 0)), Vec::<u64>::new());
        assert_eq!(indexes(&cache.read(7, 15, 1)), [7]);
        assert_eq!(indexes(&cache.read(7, 15, 2_000)), [7, 8]);
        assert_eq!(indexes(&cache.read(14, 30, usize::MAX)), [14]);
    }

    #[test]
    fn truncation_purge_and_gaps_keep_the_tail_contiguous() {
        let mut cache = Cache::default();
        (1..=9).for_each(|index| cache.push(entry(index, 10)));
        cache.truncate(7);
        cache.push(entry(7, 10));
        cache.purge(3);
        assert_eq!(indexes(&cache.read(4, 100, usize::MAX)), [4, 5, 6, 7]);
        cache.push(entry(100, 10));
        assert_eq!((cache.first(), cache.bytes()), (Some(100), size(&entry(100, 10))));
    }

    #[test]
    fn trimming_keeps_at_least_what_was_asked_for() {
        let mut sizes = Sizes::new(6_400);
        for index in 0..1_000 {
            sizes.push(index, 50);
        }
        assert_eq!(sizes.bytes(), 50_000);
        let upto = sizes.purgeable(6_400, u64::MAX).expect("there is more than enough");
        assert!((999 - upto) * 50 >= 6_400 && (999 - upto) * 50 <= 6_400 + 2 * 100, "{upto}");
        assert!(sizes.purgeable(6_400, 100).expect("something is applied") <= 100);
        assert_eq!(sizes.purgeable(60_000, u64::MAX), None);
        sizes.purge(upto, false);
        assert_eq!(sizes.bytes(), (999 - upto) * 50);
        sizes.truncate(950);
        assert!(sizes.bytes() <= (950 - upto) * 50);
        sizes.purge(2_000, true);
        assert_eq!(sizes.bytes(), 0);
        sizes.push(2_001, 70);
        assert_eq!(sizes.bytes(), 70);
    }
}
