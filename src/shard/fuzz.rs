//! What must hold of any bytes where a shard's own records should be; run by `tests/fuzz`.
//!
//! Nothing panics. What can be read is written back to something that reads the same, and writing is settled after
//! that: a record read and written twice has the same bytes both times.

use bytes::Bytes;

use super::command::Proposal;
use super::outcomes::Record;
use super::state::State;
use crate::types::Reason;

/// Every reader sees the bytes.
pub fn check(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(proposal) = Proposal::decode(bytes.clone()) {
        let written = proposal.encode();
        let again = Proposal::decode(written.clone()).expect("it was just encoded");
        assert_eq!(again, proposal);
        assert_eq!(again.encode(), written);
        for (one, two) in proposal.commands.iter().zip(&again.commands) {
            assert_eq!(one.fingerprint(), two.fingerprint());
            let mut other = two.clone();
            other.write.request = None;
            assert_eq!(one.fingerprint(), other.fingerprint(), "a request id is no part of what is asked for");
        }
    }
    if let Ok(record) = Record::decode(bytes.clone()) {
        let written = record.encode();
        let again = Record::decode(written.clone()).expect("it was just encoded");
        assert_eq!(again, record);
        assert_eq!(again.encode(), written);
        assert_eq!(record.answer(record.fingerprint), record.verdict);
        let other = record.answer(!record.fingerprint).expect_err("another payload");
        assert_eq!(other.reason, Reason::RequestMismatch);
    }
    if let Ok(state) = State::decode(bytes) {
        let written = state.encode();
        let again = State::decode(written.clone()).expect("it was just encoded");
        assert_eq!(again, state);
        assert_eq!(again.encode(), written);
        assert!(!state.owns(&state.end), "the end of a range is outside of it");
    }
}
