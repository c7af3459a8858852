//! Reading versions: the newest at a position, a page of live rows, a history.
//!
//! Everything here speaks of encoded keys and works on any [`Reader`]. A version is stored as
//!
//! ```text
//! data key  = encoded key ‖ !timestamp (u64 BE)           newest first
//! value     = 0 ‖ the value                                a value that stays
//!           | 1                                            a deletion
//!           | 2 ‖ expires_ms (u64 BE) ‖ the value          a value readable before that millisecond since 1970
//!           | 4 ‖ origin ‖ the value                       as 0, and the request that wrote it
//!           | 6 ‖ expires_ms (u64 BE) ‖ origin ‖ the value as 2, and the request that wrote it
//! origin    = client (u64 BE) ‖ sequence (u64 BE) ‖ issued_ms (u64 BE) ‖ fingerprint (u32 BE)
//! ```
//! Costs: `newest` is one prefix-bounded seek. `scan` steps over a few versions of a key and then seeks, so a key with
//! a long history costs as much as one with a short one; and it looks at no more than [`SCAN_STEPS_MAX`] entries per
//! page, so a page over many deleted keys ends early with a place to go on from instead of running on.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Cursor, Error, Family, Lookup, Reader, Result, Tier};
use crate::keyspace::version;
use crate::types::{RequestId, Timestamp};

/// Versions of one key stepped over before seeking past the rest: a step costs about a tenth of a seek.
const STEPS_BEFORE_SEEK: u32 = 8;

/// Entries looked at in one page: some 10 ms of work, so that a scan over deleted keys holds its thread no longer.
pub const SCAN_STEPS_MAX: u64 = 16_384;

const VALUE: u8 = 0;
const DELETION: u8 = 1;
const EXPIRING: u8 = 2;
/// Added to the kind of a value that carries its origin.
const ORIGIN: u8 = 4;
const EXPIRING_ORIGIN: u8 = EXPIRING + ORIGIN;
const ORIGIN_BYTES: usize = 28;
const EXPIRES_BYTES: usize = 8;

/// The request that wrote a version, where the version itself is the record of what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The request.
    pub request: RequestId,
    /// Of what it asked for.
    pub fingerprint: u32,
}

impl Origin {
    /// The origin in a stored value, if it carries one.
    pub fn of(stored: &[u8]) -> Option<Origin> {
        let (&kind, rest) = stored.split_first()?;
        let mut rest = match kind.checked_sub(ORIGIN)? {
            VALUE => rest,
            EXPIRING => rest.get(EXPIRES_BYTES..)?,
            _ => return None,
        };
        (rest.len() >= ORIGIN_BYTES).then(|| Origin {
            request: RequestId { client: rest.get_u64(), sequence: rest.get_u64(), issued_ms: rest.get_u64() },
            fingerprint: rest.get_u32(),
        })
    }
}

/// One version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its name, and when it came to be.
    pub timestamp: Timestamp,
    /// The value; none for a deletion.
    pub value: Option<Bytes>,
    /// From this millisecond since 1970 on the value counts as deleted.
    pub expires_ms: Option<u64>,
}

impl Version {
    /// Whether a reader at `now_ms` sees a value.
    pub fn lives_at(&self, now_ms: u64) -> bool {
        self.value.is_some() && self.expires_ms.is_none_or(|expires| expires > now_ms)
    }

    /// The stored value, without an origin.
    pub fn encode(&self) -> Bytes {
        self.encode_from(None)
    }

    /// The stored value. A deletion carries no origin.
    pub fn encode_from(&self, origin: Option<&Origin>) -> Bytes {
        let Some(value) = &self.value else { return Bytes::from_static(&[DELETION]) };
        let mut bytes = BytesMut::with_capacity(1 + EXPIRES_BYTES + ORIGIN_BYTES + value.len());
        let carries = if origin.is_some() { ORIGIN } else { 0 };
        match self.expires_ms {
            None => bytes.put_u8(VALUE + carries),
            Some(expires) => {
                bytes.put_u8(EXPIRING + carries);
                bytes.put_u64(expires);
            }
        }
        if let Some(origin) = origin {
            bytes.put_u64(origin.request.client);
            bytes.put_u64(origin.request.sequence);
            bytes.put_u64(origin.request.issued_ms);
            bytes.put_u32(origin.fingerprint);
        }
        bytes.put_slice(value);
        bytes.freeze()
    }

    /// Reads a stored value.
    pub fn decode(timestamp: Timestamp, mut stored: Bytes) -> Result<Version> {
        let malformed = || Error::corruption(format!("the version {timestamp} of a key is malformed"));
        let kind = stored.try_get_u8().map_err(|_| malformed())?;
        let expires_ms = match kind {
            VALUE | ORIGIN => None,
            EXPIRING | EXPIRING_ORIGIN => Some(stored.try_get_u64().map_err(|_| malformed())?),
            DELETION if stored.is_empty() => return Ok(Version { timestamp, value: None, expires_ms: None }),
            _ => return Err(malformed()),
        };
        if kind >= ORIGIN {
            if stored.len() < ORIGIN_BYTES {
                return Err(malformed());
            }
            stored.advance(ORIGIN_BYTES);
        }
        Ok(Version { timestamp, value: Some(stored), expires_ms })
    }
}

/// Whether a stored value still is one at `horizon`; none if it cannot be read.
pub(super) fn lives_at(stored: &[u8], horizon: Timestamp) -> Option<bool> {
    match stored.split_first()? {
        (&(VALUE | ORIGIN), _) => Some(true),
        (&DELETION, []) => Some(false),
        (&(EXPIRING | EXPIRING_ORIGIN), rest) => Some(u64::from_be_bytes(*rest.first_chunk::<8>()?) > horizon.millis()),
        _ => None,
    }
}

/// The key is no version: nothing but versions may lie in a table's range.
fn split(key: &[u8]) -> Result<(&[u8], Timestamp)> {
    version::split(key).ok_or_else(|| Error::corruption("a key in the data has no version"))
}

/// The newest version of a key at or before `at`, deletions and expired values included.
pub fn newest(reader: &dyn Reader, encoded: &[u8], at: Timestamp, tier: Tier) -> Result<Lookup<Version>> {
    match reader.first_version(encoded, &version::key(encoded, at), tier)? {
        Lookup::Found((key, stored)) => {
            let (_, timestamp) = split(&key)?;
            Version::decode(timestamp, stored).map(Lookup::Found)
        }
        Lookup::Missing => Ok(Lookup::Missing),
        Lookup::NeedsDisk => Ok(Lookup::NeedsDisk),
    }
}

/// The version of a key from `[from, to]` that this request wrote, with its origin. Looks at each of these
/// versions, so keep the interval short. Reads the disk.
pub fn written_by(
    reader: &dyn Reader,
    encoded: &[u8],
    request: &RequestId,
    from: Timestamp,
    to: Timestamp,
) -> Result<Option<(Timestamp, Origin)>> {
    let mut end = version::key(encoded, from).to_vec();
    end.push(0);
    let mut cursor = reader.cursor(Family::Data, &version::key(encoded, to), &end);
    cursor.seek_first();
    while let Some((key, stored)) = cursor.entry() {
        if let Some(origin) = Origin::of(stored)
            && origin.request == *request
        {
            return Ok(Some((split(key)?.1, origin)));
        }
        cursor.next();
    }
    cursor.status()?;
    Ok(None)
}

/// How much one page may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanLimits {
    /// Most rows; at least 1.
    pub rows_max: usize,
    /// Bytes of keys and values after which the page ends (the row that crosses it is still in it).
    pub bytes_max: usize,
    /// Count the rows instead of returning them; then `bytes_max` does not matter.
    pub count_only: bool,
}

/// One page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanResult {
    /// Live rows in scan order: encoded key and version. Empty when only counting.
    pub rows: Vec<(Bytes, Version)>,
    /// Rows the page stands for.
    pub count: u64,
    /// Where the next page begins: ascending, the first encoded key still to be looked at (inclusive start);
    /// descending, the last encoded key looked at (exclusive end). None at the end of the range.
    pub next: Option<Bytes>,
    /// The latest moment at which a value ran out that would otherwise have been among the rows.
    pub ran_out_ms: Option<u64>,
}

/// One page of the rows of `[start, end)` as they stood at `at`, without deletions and without what had expired by
/// `now_ms`; descending if `reverse`. Reads the disk: call it where blocking is allowed.
pub fn scan(
    reader: &dyn Reader,
    start: &[u8],
    end: &[u8],
    at: Timestamp,
    now_ms: u64,
    reverse: bool,
    limits: ScanLimits,
) -> Result<ScanResult> {
    let mut page = Page { result: ScanResult::default(), bytes: 0, steps: 0, now_ms, limits };
    // Encoded keys are self-delimiting, so the versions of the keys in `[start, end)` lie exactly in `[start, end)`.
    let mut cursor = reader.cursor(Family::Data, start, end);
    if reverse {
        descend(&mut *cursor, at, &mut page)?
    } else {
        ascend(&mut *cursor, at, &mut page)?
    }
    cursor.status()?;
    Ok(page.result)
}

struct Page {
    result: ScanResult,
    bytes: usize,
    steps: u64,
    now_ms: u64,
    limits: ScanLimits,
}

impl Page {
    fn is_full(&self) -> bool {
        self.result.count >= self.limits.rows_max.max(1) as u64
            || (!self.result.rows.is_empty() && self.bytes >= self.limits.bytes_max)
            || self.steps >= SCAN_STEPS_MAX
    }

    fn take(&mut self, encoded: &[u8], timestamp: Timestamp, stored: &[u8]) -> Result<()> {
        if self.limits.count_only {
            let now = Timestamp::from_millis(self.now_ms);
            let alive = lives_at(stored, now)
                .ok_or_else(|| Error::corruption(format!("the version {timestamp} of a key is malformed")))?;
            self.result.count += u64::from(alive);
            if alive {
                return Ok(());
            }
        }
        let version = Version::decode(timestamp, Bytes::copy_from_slice(stored))?;
        if version.lives_at(self.now_ms) {
            self.bytes += encoded.len() + stored.len();
            self.result.rows.push((Bytes::copy_from_slice(encoded), version));
            self.result.count += 1;
        } else {
            self.result.ran_out_ms = self.result.ran_out_ms.max(version.expires_ms);
        }
        Ok(())
    }
}

fn ascend(cursor: &mut dyn Cursor, at: Timestamp, page: &mut Page) -> Result<()> {
    // The key whose row is decided; its older versions are passed over.
    let mut decided: Vec<u8> = Vec::new();
    let mut any_decided = false;
    let mut passed = 0;
    cursor.seek_first();
    while let Some((key, stored)) = cursor.entry() {
        page.steps += 1;
        let (encoded, timestamp) = split(key)?;
        if any_decided && decided == encoded {
            passed += 1;
            if passed < STEPS_BEFORE_SEEK {
                cursor.next();
            } else {
                let past = after_versions(encoded);
                cursor.seek(&past);
            }
            continue;
        }
        // Checked only between keys, and only once the page has something to show for its steps: it always gets on.
        if page.is_full() {
            page.result.next = Some(Bytes::copy_from_slice(encoded));
            return Ok(());
        }
        if timestamp > at {
            // Too new: the version at `at` lies further on.
            let from = version::key(encoded, at);
            cursor.seek(&from);
            match cursor.entry() {
                Some((key, stored)) if split(key)?.0 == &from[..from.len() - 8] => {
                    let (encoded, timestamp) = split(key)?;
                    page.take(encoded, timestamp, stored)?;
                }
                _ => {
                    page.steps += 1;
                    continue;
                }
            }
            decided.clear();
            decided.extend_from_slice(&from[..from.len() - 8]);
        } else {
            page.take(encoded, timestamp, stored)?;
            decided.clear();
            decided.extend_from_slice(encoded);
        }
        any_decided = true;
        passed = 0;
        cursor.next();
    }
    Ok(())
}

fn descend(cursor: &mut dyn Cursor, at: Timestamp, page: &mut Page) -> Result<()> {
    let mut key_in_hand: Vec<u8> = Vec::new();
    let mut best: Vec<u8> = Vec::new();
    cursor.seek_last();
    loop {
        // Here the cursor stands on the oldest version of a key not looked at yet.
        let Some((key, _)) = cursor.entry() else { return Ok(()) };
        let (encoded, _) = split(key)?;
        if page.is_full() {
            page.result.next = Some(Bytes::copy_from_slice(&key_in_hand));
            return Ok(());
        }
        key_in_hand.clear();
        key_in_hand.extend_from_slice(encoded);
        // Walk from old to new and keep the last version that is not too new.
        let mut found: Option<Timestamp> = None;
        let mut passed = 0;
        while let Some((key, stored)) = cursor.entry() {
            let (encoded, timestamp) = split(key)?;
            if encoded != key_in_hand || timestamp > at {
                break;
            }
            page.steps += 1;
            passed += 1;
            if passed > STEPS_BEFORE_SEEK {
                let newest = version::key(&key_in_hand, at);
                cursor.seek(&newest);
                if let Some((key, stored)) = cursor.entry() {
                    found = Some(split(key)?.1);
                    best.clear();
                    best.extend_from_slice(stored);
                }
                break;
            }
            found = Some(timestamp);
            best.clear();
            best.extend_from_slice(stored);
            cursor.previous();
        }
        if let Some(timestamp) = found {
            page.take(&key_in_hand, timestamp, &best)?;
        }
        // To the key before: step over what is left of this one, and seek if it is long.
        let mut passed = 0;
        while let Some((key, _)) = cursor.entry() {
            if split(key)?.0 != key_in_hand {
                break;
            }
            page.steps += 1;
            passed += 1;
            if passed < STEPS_BEFORE_SEEK {
                cursor.previous();
            } else {
                cursor.seek_back(&key_in_hand);
            }
        }
    }
}

/// A key after all versions of `encoded` and before everything else.
fn after_versions(encoded: &[u8]) -> Bytes {
    let mut key = BytesMut::with_capacity(encoded.len() + 9);
    key.put_slice(encoded);
    key.put_u64(u64::MAX);
    key.put_u8(0);
    key.freeze()
}

/// Versions of a key older than `before` (`Timestamp::MAX` for all), newest first, deletions included. Reads the disk.
pub fn history(reader: &dyn Reader, encoded: &[u8], before: Timestamp, rows_max: usize) -> Result<Vec<Version>> {
    if before == Timestamp::ZERO {
        return Ok(Vec::new());
    }
    let mut cursor = reader.cursor(Family::Data, &version::key(encoded, before.previous()), &after_versions(encoded));
    let mut versions = Vec::new();
    cursor.seek_first();
    while versions.len() < rows_max
        && let Some((key, stored)) = cursor.entry()
    {
        let (_, timestamp) = split(key)?;
        versions.push(Version::decode(timestamp, Bytes::copy_from_slice(stored))?);
        cursor.next();
    }
    cursor.status()?;
    Ok(versions)
}
