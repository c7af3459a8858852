//! What has changed since a position, found among the versions: there is no other log of changes.
//!
//! A step covers the versions of a range of keys from an interval of time, `(after, upto]`. It walks the keys in their
//! order and gives the versions of each key oldest first; a step that is too long for one page goes on at the key where
//! the page ended. So within a step changes are ordered by key, and one step comes after the other in time. A change
//! knows what it replaced, if that is asked for and the history still has it.
//!
//! Costs: one look at every key of the range, whether it has changed or not, and a seek past the older versions of a key
//! that has many. That is for those who fall behind or begin; who keeps up is told by the tail of the shard (`shard`).
//!
//! Left out: whether the history reaches back to `after`. Versions before the horizon may be gone, so the caller looks at the
//! horizon after the page was read, as for any read in the past.

use bytes::{BufMut, Bytes, BytesMut};

use super::mvcc::{SCAN_STEPS_MAX, Version};
use super::{Cursor, Error, Family, Reader, Result};
use crate::keyspace::version;
use crate::types::Timestamp;

/// Versions of one key from before the interval stepped over before seeking past the rest.
const STEPS_BEFORE_SEEK: u32 = 8;

/// One version, as a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The encoded key.
    pub key: Bytes,
    /// What it became; a deletion is a version without a value.
    pub version: Version,
    /// The version before it. None if there was none, or it was not asked for.
    pub replaced: Option<Version>,
}

/// What one page looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// Versions up to and with this are known already.
    pub after: Timestamp,
    /// The last version that belongs to the step.
    pub upto: Timestamp,
}

/// How much a page may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimits {
    /// Changes after which the page ends; those of one key are never parted.
    pub changes_max: usize,
    /// Bytes of keys and values after which the page ends, likewise.
    pub bytes_max: usize,
}

/// A page of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The changes.
    pub changes: Vec<Change>,
    /// Bytes of keys and values among them.
    pub bytes: usize,
    /// The encoded key with which the step goes on; none when the range is done.
    pub next: Option<Bytes>,
}

/// One page of the changes of `[start, end)` within an interval, with what they replaced if `with_replaced`. Reads the
/// disk: call it where blocking is allowed.
pub fn page(
    reader: &dyn Reader,
    (start, end): (&[u8], &[u8]),
    interval: Interval,
    with_replaced: bool,
    limits: PageLimits,
) -> Result<Page> {
    // Encoded keys are self-delimiting, so the versions of the keys in `[start, end)` lie exactly in `[start, end)`.
    let mut cursor = reader.cursor(Family::Data, start, end);
    let mut page = Page::default();
    let mut steps = 0;
    let mut versions: Vec<Version> = Vec::new();
    cursor.seek_first();
    while let Some((key, _)) = cursor.entry() {
        let encoded = Bytes::copy_from_slice(split(key)?.0);
        // Between keys only, and only when the page has got on.
        let full = page.changes.len() >= limits.changes_max.max(1) || page.bytes >= limits.bytes_max;
        if (full && !page.changes.is_empty()) || steps >= SCAN_STEPS_MAX {
            page.next = Some(encoded);
            break;
        }
        versions.clear();
        let replaced = versions_of(&mut *cursor, &encoded, interval, with_replaced, &mut versions, &mut steps)?;
        page.take(&encoded, &mut versions, replaced, with_replaced);
    }
    cursor.status()?;
    Ok(page)
}

impl Page {
    /// Takes in the versions of one key, given newest first.
    fn take(&mut self, key: &Bytes, versions: &mut Vec<Version>, replaced: Option<Version>, with_replaced: bool) {
        let mut before = replaced;
        for version in versions.drain(..).rev() {
            let size = |version: &Version| version.value.as_ref().map_or(0, Bytes::len);
            self.bytes += key.len() + size(&version) + before.as_ref().map_or(0, size);
            let next = with_replaced.then(|| version.clone());
            self.changes.push(Change { key: key.clone(), version, replaced: before });
            before = next;
        }
    }
}

/// Collects the versions of the key under the cursor that lie in the interval, newest first; returns the newest one from
/// before it, if that is asked for and something lies in the interval. Leaves the cursor on the next key.
fn versions_of(
    cursor: &mut dyn Cursor,
    encoded: &Bytes,
    Interval { after, upto }: Interval,
    with_replaced: bool,
    versions: &mut Vec<Version>,
    steps: &mut u64,
) -> Result<Option<Version>> {
    let mut replaced = None;
    let mut passed = 0;
    while let Some((key, stored)) = cursor.entry() {
        let (this, timestamp) = split(key)?;
        if this != encoded {
            return Ok(replaced);
        }
        *steps += 1;
        if timestamp > upto {
            // Newer than the step: those in question lie further on.
            let from = version::key(encoded, upto);
            cursor.seek(&from);
            continue;
        }
        if timestamp > after {
            versions.push(Version::decode(timestamp, Bytes::copy_from_slice(stored))?);
        } else if with_replaced && !versions.is_empty() && passed == 0 {
            replaced = Some(Version::decode(timestamp, Bytes::copy_from_slice(stored))?);
        }
        passed += u32::from(timestamp <= after);
        if passed < STEPS_BEFORE_SEEK {
            cursor.next();
        } else {
            let past = after_versions(encoded);
            cursor.seek(&past);
        }
    }
    Ok(replaced)
}

/// A key after all versions of `encoded` and before everything else.
fn after_versions(encoded: &[u8]) -> Bytes {
    let mut key = BytesMut::with_capacity(encoded.len() + 9);
    key.put_slice(encoded);
    key.put_u64(u64::MAX);
    key.put_u8(0);
    key.freeze()
}

/// The key is no version: nothing but versions may lie in a table's range.
fn split(key: &[u8]) -> Result<(&[u8], Timestamp)> {
    version::split(key).ok_or_else(|| Error::corruption("a key in the data has no version"))
}
