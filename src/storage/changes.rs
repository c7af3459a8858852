//! What has changed since a position, found among the versions: there is no other log of changes.
//!
//! A step covers the versions of a range of keys from an interval of time, `(after, upto]`. It walks the range from its end to
//! its start: versions lie newest first, so each key's come up oldest first, and a page may end behind any of them and the next
//! go on right there. So within a step changes are ordered by key, descending, those of one key by time, and one step
//! comes after the other in time. A change knows what it replaced, if that is asked for and the history still has it.
//!
//! Costs: one look at every key of the range, whether it has changed or not, and a seek past the older versions of a key
//! that has many. That is for those who fall behind or begin; who keeps up is told by the tail of the shard (`shard`).
//!
//! Left out: whether the history reaches back to `after`. Versions before the horizon may be gone, so the caller looks at the
//! horizon after the page was read, as for any read in the past.

use bytes::Bytes;

use super::mvcc::{self, SCAN_STEPS_MAX, Version};
use super::{Error, Family, Lookup, Reader, Result, Tier};
use crate::keyspace::version;
use crate::types::Timestamp;

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

impl Change {
    /// Bytes of its key and values.
    pub fn bytes(&self) -> usize {
        let size = |version: &Version| version.value.as_ref().map_or(0, Bytes::len);
        self.key.len() + size(&self.version) + self.replaced.as_ref().map_or(0, size)
    }
}

/// What one page looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// Versions up to and with this are known already.
    pub after: Timestamp,
    /// The last version that belongs to the step.
    pub upto: Timestamp,
}

/// How much a page may hold: at least one change, and the one that reaches a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimits {
    /// Changes after which the page ends.
    pub changes_max: usize,
    /// Bytes of keys and values after which the page ends.
    pub bytes_max: usize,
}

/// A page of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The changes.
    pub changes: Vec<Change>,
    /// The step goes on before this key (an encoded key, or the data key of a version); none when the range is done.
    pub next: Option<Bytes>,
}

/// One page of the changes of `[start, before)` within an interval, with what they replaced if `with_replaced`. Reads the
/// disk: call it where blocking is allowed.
pub fn page(
    reader: &dyn Reader,
    (start, before): (&[u8], &[u8]),
    interval: Interval,
    with_replaced: bool,
    limits: PageLimits,
) -> Result<Page> {
    // Encoded keys are self-delimiting, so the versions of the keys in a range of them lie exactly in that range.
    let mut cursor = reader.cursor(Family::Data, start, before);
    let mut page = Page::default();
    let mut bytes = 0;
    let mut steps = 0;
    cursor.seek_last();
    while let Some((data_key, stored)) = cursor.entry() {
        let (encoded, timestamp) =
            version::split(data_key).ok_or_else(|| Error::corruption("a key in the data has no version"))?;
        steps += 1;
        if timestamp <= interval.after {
            // Older than the step: to the first one that is not, if there is one, else to the key before.
            let from = version::key(encoded, interval.after.next());
            cursor.seek_back(&from);
        } else if timestamp > interval.upto {
            // Newer, and so are all that come up of this key.
            let first = version::lower(encoded);
            cursor.seek_back(&first);
            if cursor.entry().is_some_and(|(key, _)| key == &first[..]) {
                cursor.previous();
            }
        } else {
            let key = match page.changes.last() {
                Some(last) if last.key == encoded => last.key.clone(),
                _ => Bytes::copy_from_slice(encoded),
            };
            let version = Version::decode(timestamp, Bytes::copy_from_slice(stored))?;
            let replaced = match page.changes.last() {
                _ if !with_replaced => None,
                Some(last) if last.key == key => Some(last.version.clone()),
                _ => replaced_by(reader, &key, timestamp)?,
            };
            let change = Change { key, version, replaced };
            bytes += change.bytes();
            page.changes.push(change);
            if page.changes.len() >= limits.changes_max || bytes >= limits.bytes_max {
                page.next = Some(Bytes::copy_from_slice(data_key));
                break;
            }
            cursor.previous();
        }
        if steps >= SCAN_STEPS_MAX
            && let Some((data_key, _)) = cursor.entry()
        {
            // Before the one after this.
            let mut next = data_key.to_vec();
            next.push(0);
            page.next = Some(Bytes::from(next));
            break;
        }
    }
    cursor.status()?;
    Ok(page)
}

/// The version that the one of this time has replaced, if it is still there.
pub fn replaced_by(reader: &dyn Reader, key: &Bytes, timestamp: Timestamp) -> Result<Option<Version>> {
    match mvcc::newest(reader, key, timestamp.previous(), Tier::Disk)? {
        Lookup::Found(version) => Ok(Some(version)),
        Lookup::Missing | Lookup::NeedsDisk => Ok(None),
    }
}
