//! Removes deletions and expired values for good.
//!
//! The compaction filter may drop a deletion only in a pass over every file, which a large table never sees. The sweep
//! finds such keys by reading: where the newest version at or below the horizon is no value any more, that version and
//! everything older is deleted in one batch, so that no crash can bring an older version back to life. Versions below
//! the horizon are never written again, so nothing races with it except an install, which the engine keeps out.

use bytes::Bytes;

use super::horizons::Trimmable;
use super::{Batch, Engine, Error, Family, Horizons, Result, mvcc};
use crate::keyspace::version;

/// Changes per batch: a few hundred microseconds of the write path each, so that a sweep does not delay writers.
const BATCH_CHANGES_MAX: usize = 256;
/// Versions of one key deleted one by one; more are deleted as a range. Many range deletions slow readers down, many
/// single ones the batch.
const SINGLE_DELETIONS_MAX: usize = 32;

/// Sweeps the versions of `[start, end)`; returns how many keys were removed.
pub(super) fn sweep(engine: &dyn Engine, horizons: &Horizons, start: &[u8], end: &[u8]) -> Result<u64> {
    let mut removed = 0;
    for span in horizons.effective().iter() {
        let from = span.start.as_ref().max(start);
        let to = span.end.as_ref().min(end);
        if from < to {
            removed += sweep_span(engine, horizons.trimmable(), from, to)?;
        }
    }
    Ok(removed)
}

fn sweep_span(engine: &dyn Engine, mut trimmable: Trimmable, start: &[u8], end: &[u8]) -> Result<u64> {
    let mut removed = 0;
    let mut batch = Batch::new();
    // The key whose newest version at the horizon was seen last, and, if it dies, its versions to delete.
    let mut key_in_hand: Option<Vec<u8>> = None;
    let mut doomed: Vec<Bytes> = Vec::new();
    let mut cursor = engine.cursor(Family::Data, start, end);
    cursor.seek_first();
    while let Some((key, stored)) = cursor.entry() {
        let (encoded, timestamp) =
            version::split(key).ok_or_else(|| Error::corruption("a key in the data has no version"))?;
        let is_older = key_in_hand.as_deref() == Some(encoded);
        if !is_older {
            removed += u64::from(delete(&mut batch, &mut doomed));
            if batch.changes.len() >= BATCH_CHANGES_MAX {
                engine.write(std::mem::take(&mut batch))?;
            }
        }
        if let Some(horizon) = trimmable.horizon(encoded)
            && timestamp <= horizon.history
        {
            let dies = if is_older {
                !doomed.is_empty()
            } else {
                key_in_hand = Some(encoded.to_vec());
                mvcc::lives_at(stored, horizon.history) == Some(false)
            };
            if dies {
                doomed.push(Bytes::copy_from_slice(key));
            }
        }
        cursor.next();
    }
    cursor.status()?;
    drop(cursor);
    removed += u64::from(delete(&mut batch, &mut doomed));
    engine.write(batch)?;
    Ok(removed)
}

/// Adds the deletion of one key's versions (newest first) to the batch, all of them to this one.
fn delete(batch: &mut Batch, versions: &mut Vec<Bytes>) -> bool {
    let any = !versions.is_empty();
    if let [newest, .., oldest] = &versions[..]
        && versions.len() > SINGLE_DELETIONS_MAX
    {
        let mut after = oldest.to_vec();
        after.push(0);
        batch.delete_range(Family::Data, newest.clone(), after);
        versions.clear();
    }
    for version in versions.drain(..) {
        batch.delete(Family::Data, version);
    }
    any
}
