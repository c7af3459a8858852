//! Where a list goes on: opaque bytes, good for the question they were given with and for no other.
//!
//! A token wraps the cursor of a scan with a fingerprint of the question and a checksum. The scan's own cursor is bound to
//! its table and tag already; the fingerprint binds it to what is filtered out as well.

use bytes::{BufMut, Bytes};

use crate::types::{Error, Reason, Result};

const FORMAT: u8 = 1;
/// Bytes beside the cursor: format, fingerprint, checksum.
const ENVELOPE_BYTES: usize = 9;
/// Longest token taken: a cursor holds one encoded key and some bytes more.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// The token for a question that goes on at this cursor. `question` is everything that must stay the same.
pub fn encode(question: &str, cursor: &[u8]) -> Bytes {
    let mut token = Vec::with_capacity(ENVELOPE_BYTES + cursor.len());
    token.put_u8(FORMAT);
    token.put_u32(crc32fast::hash(question.as_bytes()));
    token.put_slice(cursor);
    token.put_u32(crc32fast::hash(&token));
    token.into()
}

/// The cursor in a token.
pub fn decode(question: &str, token: &[u8]) -> Result<Bytes> {
    let refuse = |what: &str| {
        Err(Error::new(Reason::InvalidCursor, format!("the page token {what}: begin with the first page again")))
    };
    if token.len() > TOKEN_BYTES_MAX {
        return refuse("is longer than any of ours");
    }
    let Some((body, checksum)) = token.split_last_chunk::<4>() else { return refuse("is too short") };
    if u32::from_be_bytes(*checksum) != crc32fast::hash(body) {
        return refuse("was altered");
    }
    let Some((&FORMAT, body)) = body.split_first() else { return refuse("is of another version") };
    let Some((asked, cursor)) = body.split_first_chunk::<4>() else { return refuse("is too short") };
    if u32::from_be_bytes(*asked) != crc32fast::hash(question.as_bytes()) {
        return refuse("belongs to another question (another user, status or age)");
    }
    Ok(Bytes::copy_from_slice(cursor))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_is_good_for_its_own_question() {
        let token = encode("list 42", b"cursor");
        assert_eq!(decode("list 42", &token).as_deref(), Ok(&b"cursor"[..]));
        for (question, token) in [("list 43", &token[..]), ("list 42", b""), ("list 42", b"1234567")] {
            assert_eq!(decode(question, token).expect_err("refused").reason, Reason::InvalidCursor, "{token:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_was_altered_is_refused(at in 0_usize..15, bit in 0_u32..8, cut in 0_usize..15) {
            let token = encode("list 42", b"cursor");
            let mut altered = token.to_vec();
            altered[at] ^= 1 << bit;
            prop_assert!(decode("list 42", &altered).is_err());
            prop_assert!(decode("list 42", &token[..cut]).is_err());
        }

        #[test]
        fn bytes_of_strangers_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert!(decode("list 42", &bytes).is_err());
        }
    }
}
