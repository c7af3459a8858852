//! Removes deletions and expired values for good.
//!
//! The compaction filter may drop a deletion only in a pass over every file, which a large table never sees. The sweep
//! finds such keys by reading: where the newest version at or below the horizon is no value any more, that version and
//! everything older is deleted in one batch, so that no crash can bring an older version back to life. Versions below
//! the horizon are never written again, so nothing races with it except an install, which the engine keeps out.

use bytes::Bytes;

use super::{Batch, Engine, Error, Family, Horizons, Result, mvcc};
use crate::keyspace::version;

/// Changes per batch: a few hundred microseconds of the write path each, so that a sweep does not delay writers.
const BATCH_CHANGES_MAX: usize = 256;
/// Versions of one key deleted one by one; more are deleted as a range. Many range deletions slow readers down, many
/// single ones the batch.
const SINGLE_DELETIONS_MAX: usize = 32;

/// Sweeps the versions of `[start, end)`; returns how many keys were removed.
pub(super) fn sweep(engine: &dyn Engine, horizons: &Horizons, start: &[u8], end: &[u8]) -> Result<u64> {
    let spans = horizons.effective();
    let mut removed = 0;
    for span in spans.iter() {
        let from = span.start.as_ref().max(start);
        let to = span.end.as_ref().min(end);
        if from >= to {
            continue;
        }
        let horizon = span.horizon.history;
        let mut batch = Batch::new();
        let mut cursor = engine.cursor(Family::Data, from, to);
        // The key under the cursor, whether its newest version at the horizon was seen, and its versions to delete.
        let mut key_in_hand: Option<Vec<u8>> = None;
        let mut doomed: Vec<Bytes> = Vec::new();
        let mut dies = false;
        cursor.seek_first();
        loop {
            let entry = match cursor.entry() {
                Some((key, stored)) => {
                    let (encoded, timestamp) =
                        version::split(key).ok_or_else(|| Error::corruption("a key in the data has no version"))?;
                    Some((key, stored, encoded, timestamp))
                }
                None => None,
            };
            let same = matches!((&entry, &key_in_hand), (Some((_, _, encoded, _)), Some(hand)) if hand == encoded);
            if !same {
                if dies {
                    removed += 1;
                    delete(&mut batch, &doomed);
                }
                if batch.changes.len() >= BATCH_CHANGES_MAX {
                    engine.write(std::mem::take(&mut batch))?;
                }
                dies = false;
                doomed.clear();
                key_in_hand = None;
            }
            let Some((key, stored, encoded, timestamp)) = entry else { break };
            if timestamp <= horizon {
                if key_in_hand.is_none() {
                    key_in_hand = Some(encoded.to_vec());
                    dies = mvcc::lives_at(stored, horizon) == Some(false);
                }
                if dies {
                    doomed.push(Bytes::copy_from_slice(key));
                }
            }
            cursor.next();
        }
        cursor.status()?;
        drop(cursor);
        engine.write(batch)?;
    }
    Ok(removed)
}

/// Deletes the versions of one key, newest first, in this batch.
fn delete(batch: &mut Batch, versions: &[Bytes]) {
    match versions {
        [newest, .., oldest] if versions.len() > SINGLE_DELETIONS_MAX => {
            let mut after = oldest.to_vec();
            after.push(0);
            batch.delete_range(Family::Data, newest.clone(), after);
        }
        _ => versions.iter().for_each(|version| batch.delete(Family::Data, version.clone())),
    }
}
