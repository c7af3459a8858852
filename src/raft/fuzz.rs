//! What must hold of any bytes where something of Raft's should be, from the disk or from another node; run by
//! `tests/fuzz`.
//!
//! Nothing panics. What can be read is written back to something that reads the same; an entry keeps the bytes it came
//! in, since they are what is passed on.

use std::fmt::Debug;

use bytes::Bytes;

use super::codec::{self, CodecError};
use super::receive::carries_entries;
use super::transport::Kind;
use super::types::{AppendRequest, AppendResponse, LogEntry};

/// Every reader sees the bytes.
pub fn check(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    same(&bytes, codec::decode_vote, codec::encode_vote);
    same(&bytes, codec::decode_log_id, codec::encode_log_id);
    same(&bytes, codec::decode_mark, |(applied, members)| codec::encode_mark(applied.as_ref(), members));
    same(&bytes, codec::decode_vote_request, codec::encode_vote_request);
    same(&bytes, codec::decode_vote_response, codec::encode_vote_response);
    same(&bytes, codec::decode_transfer, codec::encode_transfer);
    entry(&bytes);
    append(&bytes);
    answer(&bytes);
    for number in 0..6 {
        assert!(Kind::from_number(number).is_none_or(|kind| kind.number() == number));
    }
}

/// What is read, written and read again is the same.
fn same<T: PartialEq + Debug>(
    bytes: &Bytes,
    decode: impl Fn(Bytes) -> Result<T, CodecError>,
    encode: impl Fn(&T) -> Bytes,
) {
    let Ok(read) = decode(bytes.clone()) else { return };
    let written = encode(&read);
    let again = decode(written.clone()).expect("it was just encoded");
    assert_eq!(again, read);
    assert_eq!(encode(&again), written);
}

fn entry(bytes: &Bytes) {
    same(bytes, codec::decode_entry, codec::encode_entry);
    if let Ok(entry) = codec::decode_entry(bytes.clone()) {
        assert_eq!(entry.encoded.as_ref(), Some(bytes), "an entry is passed on as it came");
        check_members(&entry);
    }
}

/// Every voter that an entry sets has a node.
fn check_members(entry: &LogEntry) {
    use openraft::entry::RaftEntry;
    let Some(membership) = entry.get_membership() else { return };
    for voter in membership.voter_ids() {
        assert!(membership.get_node(&voter).is_some(), "a voter without a node: {membership}");
    }
}

fn append(bytes: &Bytes) {
    let read = codec::decode_append(bytes.clone());
    let carries = read.as_ref().is_ok_and(|(request, _)| !request.entries.is_empty());
    assert_eq!(carries_entries(Kind::Append, bytes), carries);
    assert!(!carries_entries(Kind::Vote, bytes));
    let Ok((request, held)) = read else { return };
    let facts =
        |request: &AppendRequest| (request.vote, request.prev_log_id, request.leader_commit, request.entries.clone());
    let (again, also_held) = codec::decode_append(codec::encode_append(&request, held)).expect("it was just encoded");
    assert_eq!((facts(&again), also_held), (facts(&request), held));
}

/// An answer says how far the logs agree, or why not; said again it means the same.
fn answer(bytes: &Bytes) {
    let ids = codec::decode_log_id(bytes.clone()).ok();
    for previous in [None, ids] {
        let Ok(read) = codec::decode_append_response(bytes.clone(), previous, ids) else { continue };
        let said: AppendResponse = match &read {
            Ok(agreed) if *agreed == ids => AppendResponse::Success,
            Ok(agreed) => AppendResponse::PartialSuccess(*agreed),
            Err(openraft::raft::StreamAppendError::Conflict(_)) => AppendResponse::Conflict,
            Err(openraft::raft::StreamAppendError::HigherVote(vote)) => AppendResponse::HigherVote(*vote),
        };
        let again = codec::decode_append_response(codec::encode_append_response(&said), previous, ids);
        assert_eq!(again.expect("it was just encoded"), read);
    }
}
