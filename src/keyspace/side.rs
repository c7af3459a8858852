//! Keys of side records: what a replica keeps beside the versions of its keys, in the same family.
//!
//! An outcome (what a request id brought about) lies under the encoded key of the first key of its write, behind a
//! table id that no table gets. So the outcomes of a shard are one contiguous range, made from the shard's own
//! range, and go along when it is split, copied or dropped.

use bytes::{BufMut, Bytes};

use crate::types::{RequestId, ShardId, TableId};

/// The table id under which outcomes of requests lie.
pub const OUTCOMES: u32 = 0xFFFF_FFF0;
/// The table id under which applied states of shards lie.
pub const APPLIED: u32 = 0xFFFF_FFF1;

const _: () = assert!(OUTCOMES >= TableId::RESERVED && APPLIED >= TableId::RESERVED);

const ID_BYTES: usize = 4;
const REQUEST_BYTES: usize = 24;

/// The key of the outcome of a request, beside the encoded key `anchor` (the first its write names).
pub fn outcome(anchor: &[u8], request: &RequestId) -> Bytes {
    let mut out = Vec::with_capacity(ID_BYTES + anchor.len() + REQUEST_BYTES);
    out.put_u32(OUTCOMES);
    out.put_slice(anchor);
    out.put_u64(request.client);
    out.put_u64(request.sequence);
    out.put_u64(request.issued_ms);
    Bytes::from(out)
}

/// The range of all outcomes whose anchors lie in `[start, end)` of encoded keys.
pub fn outcome_range(start: &[u8], end: &[u8]) -> (Bytes, Bytes) {
    let behind = |encoded: &[u8]| {
        let mut out = Vec::with_capacity(ID_BYTES + encoded.len());
        out.put_u32(OUTCOMES);
        out.put_slice(encoded);
        Bytes::from(out)
    };
    (behind(start), behind(end))
}

/// Anchor and request of an outcome's key; none if it is no such key.
pub fn outcome_split(key: &[u8]) -> Option<(&[u8], RequestId)> {
    let rest = key.strip_prefix(&OUTCOMES.to_be_bytes())?;
    let (rest, issued_ms) = rest.split_last_chunk::<8>()?;
    let (rest, sequence) = rest.split_last_chunk::<8>()?;
    let (anchor, client) = rest.split_last_chunk::<8>()?;
    let [client, sequence, issued_ms] = [client, sequence, issued_ms].map(|bytes| u64::from_be_bytes(*bytes));
    Some((anchor, RequestId { client, sequence, issued_ms }))
}

/// The key of the applied state of a shard.
pub fn applied(shard: ShardId) -> Bytes {
    let mut out = Vec::with_capacity(ID_BYTES + 8);
    out.put_u32(APPLIED);
    out.put_u64(shard.0);
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::keyspace::Layout;
    use crate::types::Partitioning;

    #[test]
    fn side_keys_are_golden() {
        let request = RequestId { client: 1, sequence: 2, issued_ms: 3 };
        let said = b"\xFF\xFF\xFF\xF0ab\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03";
        assert_eq!(&outcome(b"ab", &request)[..], said);
        assert_eq!(&applied(ShardId(3))[..], b"\xFF\xFF\xFF\xF1\0\0\0\0\0\0\0\x03");
        assert_eq!(outcome_split(&applied(ShardId(3))), None);
        assert_eq!(outcome_split(&OUTCOMES.to_be_bytes()), None);
    }

    proptest! {
        #[test]
        fn outcomes_lie_in_the_range_of_their_anchor_and_of_no_other(
            keys in vec(vec(any::<u8>(), 0..6), 3), client: u64, sequence: u64, issued_ms: u64, hash: bool,
        ) {
            let partitioning = if hash { Partitioning::Hash } else { Partitioning::Range { group_delimiter: None } };
            let layout = Layout { table: TableId(9), partitioning };
            let mut bounds = [layout.encode(&keys[0]), layout.encode(&keys[1])];
            bounds.sort();
            let anchor = layout.encode(&keys[2]);
            let request = RequestId { client, sequence, issued_ms };
            let record = outcome(&anchor, &request);
            let (from, to) = outcome_range(&bounds[0], &bounds[1]);
            prop_assert_eq!(bounds[0] <= anchor && anchor < bounds[1], from <= record && record < to);
            prop_assert_eq!(outcome_split(&record), Some((&anchor[..], request)));
        }
    }
}
