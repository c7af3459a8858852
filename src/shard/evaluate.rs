//! Decides one command: do its conditions hold, which versions does it make, what is the answer.
//!
//! Pure but for reads of the state before it. Everything it depends on is the same on every replica: the log, the
//! versions at or above the horizon, the command's own timestamp as "now".

use std::collections::HashMap;

use bytes::Bytes;

use super::outcomes::Verdict;
use crate::runtime::planted::{self, Bug};
use crate::storage::mvcc::Version;
use crate::storage::{self, Lookup, Reader, Tier, mvcc};
use crate::types::{Action, Error, Observed, Outcome, Reason, Test, Timestamp, Versioned, Write};

/// The state as the commands of one batch see it: what earlier commands of the batch wrote, above what is stored.
pub struct Scratch<'a> {
    reader: &'a dyn Reader,
    /// Written and not yet in `found`: blind writes, the commonest, never need to be looked up.
    written: Vec<(Bytes, Version)>,
    /// Of each key all of them, oldest first: a rollback may ask for one that a later command replaced.
    found: HashMap<Bytes, Vec<Version>>,
}

/// Whether compaction may have dropped this version: the newest at or before the horizon, if nothing lived in it then.
/// Some replicas still have it and others do not, so for all of them it is nothing.
pub fn is_settled(version: &Version, horizon: Timestamp) -> bool {
    version.timestamp <= horizon && !version.lives_at(horizon.millis())
}

/// A decided command: the answer, and the versions it makes (none unless it was applied).
pub struct Decided {
    /// The answer.
    pub verdict: Verdict,
    /// The new versions, at most one per key.
    pub versions: Vec<(Bytes, Version)>,
}

impl<'a> Scratch<'a> {
    /// The stored state, with nothing above it yet.
    pub fn new(reader: &'a dyn Reader) -> Scratch<'a> {
        Scratch { reader, written: Vec::new(), found: HashMap::new() }
    }

    /// Makes versions visible to the commands that follow.
    pub fn write(&mut self, versions: Vec<(Bytes, Version)>) {
        self.written.extend(versions);
    }

    /// The newest version of a key at or before `at`, deletions included unless they are settled.
    pub(super) fn newest(
        &mut self,
        key: &Bytes,
        at: Timestamp,
        horizon: Timestamp,
    ) -> storage::Result<Option<Version>> {
        for (key, version) in self.written.drain(..) {
            self.found.entry(key).or_default().push(version);
        }
        if let Some(versions) = self.found.get(key)
            && let Some(version) = versions.iter().rfind(|version| version.timestamp <= at)
        {
            return Ok(Some(version.clone()).filter(|version| !is_settled(version, horizon)));
        }
        match mvcc::newest(self.reader, key, at, Tier::Disk)? {
            Lookup::Found(version) => Ok(Some(version).filter(|version| !is_settled(version, horizon))),
            Lookup::Missing => Ok(None),
            Lookup::NeedsDisk => unreachable!("a read of the disk tier always knows"),
        }
    }
}

/// Keys looked at in one page when the edge of a range is sought: nearly always the first one is it.
const EDGE_ROWS: usize = 8;

impl Scratch<'_> {
    /// The keys of some rows of `[start, end)`, all of them if there are fewer.
    pub(super) fn first_keys(&mut self, start: &Bytes, end: &Bytes, rows_max: usize) -> storage::Result<Vec<Bytes>> {
        // Brings what is above into order.
        self.newest(start, Timestamp::ZERO, Timestamp::ZERO)?;
        let lives = |versions: &Vec<Version>| versions.last().is_some_and(|version| version.value.is_some());
        let above = self.found.iter().filter(|(key, versions)| *start <= **key && **key < *end && lives(versions));
        let mut keys: Vec<Bytes> = above.map(|(key, _)| key.clone()).collect();
        // All replicas must choose the same.
        keys.sort();
        keys.truncate(rows_max);
        let mut from = Some(start.clone());
        while let Some(start) = from.filter(|_| keys.len() < rows_max) {
            let limits = mvcc::ScanLimits { rows_max, bytes_max: usize::MAX, count_only: false };
            let page = mvcc::scan(self.reader, &start, end, Timestamp::MAX, 0, false, limits)?;
            let known = page.rows.into_iter().map(|(key, _)| key).filter(|key| !self.found.contains_key(key));
            keys.extend(known.take(rows_max - keys.len()));
            from = page.next;
        }
        Ok(keys)
    }

    /// The first row of `[start, end)`, or the last one.
    pub(super) fn edge(
        &mut self,
        start: &Bytes,
        end: &Bytes,
        last: bool,
        horizon: Timestamp,
    ) -> storage::Result<Option<(Bytes, Bytes)>> {
        // Brings what is above into order.
        self.newest(start, Timestamp::ZERO, horizon)?;
        let above = self.found.iter().filter(|(key, _)| *start <= **key && **key < *end);
        let above = above.filter_map(|(key, versions)| Some((key, versions.last()?.value.as_ref()?)));
        let above = if last { above.max_by_key(|(key, _)| *key) } else { above.min_by_key(|(key, _)| *key) };
        let above = above.map(|(key, value)| (key.clone(), value.clone()));
        let limits = mvcc::ScanLimits { rows_max: EDGE_ROWS, bytes_max: usize::MAX, count_only: false };
        let (mut start, mut end) = (start.clone(), end.clone());
        let stored = loop {
            let page = mvcc::scan(self.reader, &start, &end, Timestamp::MAX, 0, last, limits)?;
            // What a command of this batch has changed is known above.
            let found = page.rows.into_iter().find(|(key, _)| !self.found.contains_key(key));
            if let Some((key, version)) = found {
                break version.value.map(|value| (key, value));
            }
            match page.next {
                Some(next) if last => end = next,
                Some(next) => start = next,
                None => break None,
            }
        };
        Ok(match (above, stored) {
            (Some(one), Some(other)) => Some(if (one.0 < other.0) != last { one } else { other }),
            (one, other) => one.or(other),
        })
    }
}

/// The versions one command has made so far, found by key.
#[derive(Default)]
struct Staged {
    versions: Vec<(Bytes, Version)>,
    by_key: HashMap<Bytes, usize>,
}

impl Staged {
    fn find(&self, key: &Bytes) -> Option<&Version> {
        self.by_key.get(key).map(|&at| &self.versions[at].1)
    }

    fn put(&mut self, key: Bytes, version: Version) {
        match self.by_key.get(&key) {
            Some(&at) => self.versions[at].1 = version,
            None => {
                self.by_key.insert(key.clone(), self.versions.len());
                self.versions.push((key, version));
            }
        }
    }
}

/// A version as a reader at `now_ms` sees it: deletions and expired values are nothing.
fn live(version: Option<&Version>, now_ms: u64) -> Option<Versioned> {
    let version = version?;
    let value = version.value.as_ref()?;
    if version.expires_ms.is_some_and(|expires| expires <= now_ms) {
        return None;
    }
    Some(Versioned { timestamp: version.timestamp, value: value.clone(), expires_ms: version.expires_ms })
}

/// Decides a command at `timestamp`. An `Err` is a failure of this machine's storage, not of the command.
pub fn evaluate(
    write: &Write,
    timestamp: Timestamp,
    horizon: Timestamp,
    scratch: &mut Scratch<'_>,
) -> storage::Result<Decided> {
    let now_ms = timestamp.millis();
    for (position, condition) in write.conditions.iter().enumerate() {
        let current = live(scratch.newest(&condition.key, Timestamp::MAX, horizon)?.as_ref(), now_ms);
        let holds = match &condition.test {
            Test::Version(expected) => current.as_ref().is_some_and(|current| current.timestamp == *expected),
            Test::Absent => current.is_none(),
            Test::Present => current.is_some(),
            Test::Value(expected) => current.as_ref().is_some_and(|current| current.value == *expected),
        };
        if !holds {
            let observed = Some(Observed { condition: position as u32, current });
            let outcome = Outcome { applied: false, timestamp, integers: Vec::new(), observed };
            return Ok(Decided { verdict: Ok(outcome), versions: Vec::new() });
        }
    }

    // The commonest command needs no staging: one blind put.
    if let [operation] = write.operations.as_slice()
        && let Action::Put { value, ttl_ms } = &operation.action
    {
        let version = put(value.clone(), *ttl_ms, timestamp);
        let outcome = Outcome { applied: true, timestamp, integers: Vec::new(), observed: None };
        return Ok(Decided { verdict: Ok(outcome), versions: vec![(operation.key.clone(), version)] });
    }

    let mut staged = Staged::default();
    let mut integers = Vec::new();
    for operation in &write.operations {
        let key = &operation.key;
        let mut integer = None;
        match &operation.action {
            Action::Put { value, ttl_ms } => staged.put(key.clone(), put(value.clone(), *ttl_ms, timestamp)),
            Action::Delete => {
                let before = match staged.find(key) {
                    Some(version) => Some(version.clone()),
                    None => scratch.newest(key, Timestamp::MAX, horizon)?,
                };
                // A deletion of nothing makes no version; one of an expired value does, it ends the value's history.
                if before.is_some_and(|version| version.value.is_some()) {
                    staged.put(key.clone(), Version { timestamp, value: None, expires_ms: None });
                }
            }
            Action::Increment { delta } => {
                let before = match staged.find(key) {
                    Some(version) => live(Some(version), now_ms),
                    None => live(scratch.newest(key, Timestamp::MAX, horizon)?.as_ref(), now_ms),
                };
                let before = match before {
                    None if planted::is(Bug::TtlResurrection) => {
                        live(scratch.newest(key, Timestamp::MAX, horizon)?.as_ref(), 0)
                    }
                    before => before,
                };
                match increment(before.as_ref(), *delta) {
                    Ok(sum) => {
                        let value = Bytes::from(sum.to_string());
                        let expires_ms = before.and_then(|before| before.expires_ms);
                        staged.put(key.clone(), Version { timestamp, value: Some(value), expires_ms });
                        integer = Some(sum);
                    }
                    Err(error) => return Ok(Decided { verdict: Err(error), versions: Vec::new() }),
                }
            }
            Action::Rollback { to } => {
                if let Err(error) = within_history(*to, horizon, timestamp) {
                    return Ok(Decided { verdict: Err(error), versions: Vec::new() });
                }
                // What it was then; a value that has run out since stays gone.
                let then = live(scratch.newest(key, *to, horizon)?.as_ref(), now_ms.max(to.millis()));
                let (value, expires_ms) = match then {
                    Some(then) => (Some(then.value), then.expires_ms),
                    None => (None, None),
                };
                staged.put(key.clone(), Version { timestamp, value, expires_ms });
            }
        }
        integers.push(integer);
    }
    if integers.iter().all(Option::is_none) {
        integers.clear();
    }
    let outcome = Outcome { applied: true, timestamp, integers, observed: None };
    Ok(Decided { verdict: Ok(outcome), versions: staged.versions })
}

fn put(value: Bytes, ttl_ms: Option<u64>, timestamp: Timestamp) -> Version {
    let expires_ms = ttl_ms.map(|ttl| timestamp.millis().saturating_add(ttl));
    Version { timestamp, value: Some(value), expires_ms }
}

fn increment(before: Option<&Versioned>, delta: i64) -> Result<i64, Error> {
    let refuse = || {
        Error::new(
            Reason::NotAnInteger,
            "the value is not a decimal integer of 64 bits, or the sum would not be; nothing was changed",
        )
    };
    let number = match before {
        None => 0,
        Some(before) => {
            std::str::from_utf8(&before.value).ok().and_then(|text| text.parse().ok()).ok_or_else(refuse)?
        }
    };
    i64::checked_add(number, delta).ok_or_else(refuse)
}

/// Whether `at` can be read: not before the horizon, not after `now`.
pub fn within_history(at: Timestamp, horizon: Timestamp, now: Timestamp) -> Result<(), Error> {
    if at < horizon {
        return Err(Error::new(
            Reason::HistoryTrimmed,
            format!("history reaches back to version {horizon}; {at} is older"),
        ));
    }
    if at > now {
        return Err(Error::invalid(format!("version {at} lies in the future")));
    }
    Ok(())
}
