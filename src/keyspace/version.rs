//! Data keys: an encoded key with the timestamp of one of its versions, newest first.

use bytes::{BufMut, Bytes};

use crate::types::Timestamp;

/// Bytes that the timestamp takes at the end of a data key.
pub const TIMESTAMP_BYTES: usize = 8;

/// The data key of one version.
pub fn key(encoded: &[u8], timestamp: Timestamp) -> Bytes {
    let mut out = Vec::with_capacity(encoded.len() + TIMESTAMP_BYTES);
    out.put_slice(encoded);
    out.put_u64(!timestamp.0);
    Bytes::from(out)
}

/// The encoded key and the timestamp of a data key; none if it is too short to be one.
pub fn split(data_key: &[u8]) -> Option<(&[u8], Timestamp)> {
    let (encoded, inverted) = data_key.split_last_chunk::<TIMESTAMP_BYTES>()?;
    Some((encoded, Timestamp(!u64::from_be_bytes(*inverted))))
}

/// What all versions of a key, and no other data keys, begin with: the encoded key itself. Shorter than
/// [`TIMESTAMP_BYTES`] comes back empty.
pub fn prefix(data_key: &[u8]) -> &[u8] {
    &data_key[..data_key.len().saturating_sub(TIMESTAMP_BYTES)]
}

/// The first data key a version of `encoded` could have (the newest imaginable). To find the newest version at or
/// before `at`, seek [`key`]`(encoded, at)` and stop at [`upper`].
pub fn lower(encoded: &[u8]) -> Bytes {
    key(encoded, Timestamp::MAX)
}

/// The first data key after every version of `encoded`, and at or before every version of the next encoded key.
pub fn upper(encoded: &[u8]) -> Bytes {
    // An encoded key ends in 00 01 and none has 00 02 there, so one more in the last byte parts it from its successor.
    super::prefix_end(encoded).unwrap_or_else(|| {
        let mut out = key(encoded, Timestamp::ZERO).to_vec();
        out.push(0);
        Bytes::from(out)
    })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::keyspace::Layout;
    use crate::types::{Partitioning, TableId};

    #[test]
    fn data_keys_are_golden() {
        let at = Timestamp::from_millis(1);
        assert_eq!(&key(b"k", at)[..], [b'k', 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFE, 0xFF, 0xFF]);
        assert_eq!(split(&key(b"k", at)), Some((&b"k"[..], at)));
        assert_eq!(split(b"seven b"), None);
        assert_eq!(prefix(b"seven b"), b"");
    }

    proptest! {
        #[test]
        fn versions_lie_newest_first_between_the_bounds_and_apart_from_other_keys(
            one in vec(any::<u8>(), 0..6), two in vec(any::<u8>(), 0..6), early: u64, late: u64,
        ) {
            let layout = Layout { table: TableId(7), partitioning: Partitioning::Range { group_delimiter: None } };
            let mut both = [layout.encode(&one), layout.encode(&two)];
            both.sort();
            let [one, two] = both;
            let (early, late) = (Timestamp(early.min(late)), Timestamp(early.max(late)));
            prop_assert_eq!(key(&one, late).cmp(&key(&one, early)), early.cmp(&late));
            let version = key(&one, late);
            prop_assert_eq!(split(&version), Some((&one[..], late)));
            prop_assert_eq!(prefix(&version), &one[..]);
            prop_assert!(lower(&one) <= key(&one, late));
            prop_assert!(key(&one, early) < upper(&one));
            if one != two {
                prop_assert!(upper(&one) <= lower(&two));
            }
        }
    }
}
