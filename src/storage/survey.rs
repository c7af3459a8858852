//! How much of a range is still stored and no longer needed.

use bytes::Bytes;

use super::{Error, Family, Reader, Result, mvcc};
use crate::keyspace::version;
use crate::types::Timestamp;

/// What a part of a range holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Those of versions that no read at or after the horizon can see: replaced, deleted, or run out.
    pub garbage_bytes: u64,
    /// The encoded key to go on at; none when the range has been seen to its end.
    pub next: Option<Bytes>,
}

impl Survey {
    /// Looks at the versions of `[start, end)`, about `versions_max` of them: the last key is finished. Reads the disk.
    pub fn of(
        reader: &dyn Reader,
        start: &[u8],
        end: &[u8],
        horizon: Timestamp,
        versions_max: usize,
    ) -> Result<Survey> {
        let mut survey = Survey::default();
        let mut seen = 0;
        // The key in hand, and whether its newest version at or before the horizon has been met.
        let mut key_in_hand: Option<Vec<u8>> = None;
        let mut settled = false;
        let mut cursor = reader.cursor(Family::Data, start, end);
        cursor.seek_first();
        while let Some((key, stored)) = cursor.entry() {
            let (encoded, timestamp) =
                version::split(key).ok_or_else(|| Error::corruption("a key in the data has no version"))?;
            if key_in_hand.as_deref() != Some(encoded) {
                if seen >= versions_max {
                    survey.next = Some(Bytes::copy_from_slice(encoded));
                    break;
                }
                key_in_hand = Some(encoded.to_vec());
                settled = false;
            }
            let bytes = (key.len() + stored.len()) as u64;
            survey.bytes += bytes;
            if timestamp <= horizon {
                if settled || mvcc::lives_at(stored, horizon) == Some(false) {
                    survey.garbage_bytes += bytes;
                }
                settled = true;
            }
            seen += 1;
            cursor.next();
        }
        cursor.status()?;
        Ok(survey)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::mvcc::Version;
    use super::super::{Batch, Engine, Memory};
    use super::*;

    fn put(engine: &Arc<Memory>, key: u8, at: u64, value: Option<&'static str>, expires_ms: Option<u64>) {
        let timestamp = Timestamp::from_millis(at);
        let version = Version { timestamp, value: value.map(Into::into), expires_ms };
        let mut batch = Batch::new();
        batch.put(Family::Data, version::key(&[7, key], timestamp), version.encode());
        engine.write(batch).unwrap();
    }

    fn survey(engine: &Arc<Memory>, horizon: u64, versions_max: usize) -> Survey {
        let mut whole = Survey::default();
        let mut start = Bytes::from_static(&[7]);
        loop {
            let part = Survey::of(&**engine, &start, &[8], Timestamp::from_millis(horizon), versions_max).unwrap();
            whole.bytes += part.bytes;
            whole.garbage_bytes += part.garbage_bytes;
            match part.next {
                Some(next) => start = next,
                None => return whole,
            }
        }
    }

    #[test]
    fn what_no_read_can_see_is_garbage() {
        let engine = Memory::new().unwrap();
        put(&engine, 1, 10, Some("old"), None);
        put(&engine, 1, 20, Some("new"), None);
        put(&engine, 2, 10, Some("was"), None);
        put(&engine, 2, 20, None, None);
        put(&engine, 3, 10, Some("ran out"), Some(15));
        put(&engine, 4, 10, Some("stays"), Some(90));
        let none = survey(&engine, 5, usize::MAX);
        assert_eq!(none.garbage_bytes, 0, "everything is after the horizon");
        let some = survey(&engine, 15, usize::MAX);
        let of = |value: &str, flags: usize| (2 + 8 + flags + value.len()) as u64;
        assert_eq!(some.garbage_bytes, of("ran out", 9));
        let most = survey(&engine, 25, usize::MAX);
        assert_eq!(most.garbage_bytes, of("old", 1) + of("was", 1) + of("", 1) + of("ran out", 9));
        assert_eq!(most.bytes, none.bytes);
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let engine = Memory::new().unwrap();
        for key in 0..20 {
            for at in 1..6 {
                put(&engine, key, at, (key + at as u8).is_multiple_of(3).then_some("v"), None);
            }
        }
        for horizon in [0, 3, 9] {
            let whole = survey(&engine, horizon, usize::MAX);
            for versions_max in [1, 3, 5, 7, 50] {
                assert_eq!(survey(&engine, horizon, versions_max), whole, "{versions_max} at {horizon}");
            }
        }
    }
}
