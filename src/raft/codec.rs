//! Between openraft's types and the messages of `trivet.internal`.
//!
//! Decoding is strict: a message that lacks what it must have is refused with a sentence that names it, and never
//! filled up with defaults, since a vote or a log id of zeros means something.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::raft::StreamAppendError;
use prost::Message;

use super::types::{
    AppendRequest, AppendResponse, Command, LeaderId, LogEntry, LogId, Membership, Payload, StoredMembership,
    TransferRequest, Vote, VoteRequest, VoteResponse,
};
use crate::types::NodeId;
use crate::wire::proto::internal as proto;

/// Why bytes are not the message they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Not a protobuf message of this type.
    #[error("{what} cannot be decoded: {error}")]
    Decode {
        /// What it should be.
        what: &'static str,
        /// Why not.
        error: prost::DecodeError,
    },
    /// A field that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// The fields contradict one another.
    #[error("{what} makes no sense: {why}")]
    Invalid {
        /// What it is.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
}

type Result<T> = std::result::Result<T, CodecError>;

fn decode<M: Message + Default>(what: &'static str, bytes: Bytes) -> Result<M> {
    M::decode(bytes).map_err(|error| CodecError::Decode { what, error })
}

fn encode(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

fn log_id_to_proto(id: &LogId) -> proto::LogId {
    proto::LogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

fn log_id_from_proto(id: proto::LogId) -> LogId {
    LogId::new(LeaderId { term: id.term, node_id: id.node }, id.index)
}

/// A vote as a message.
pub fn vote_to_proto(vote: &Vote) -> proto::Vote {
    proto::Vote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

/// The vote in a message.
pub fn vote_from_proto(vote: Option<proto::Vote>) -> Result<Vote> {
    let vote = vote.ok_or(CodecError::Missing("the vote"))?;
    Ok(if vote.committed { Vote::new_committed(vote.term, vote.node) } else { Vote::new(vote.term, vote.node) })
}

fn membership_to_proto(membership: &Membership) -> proto::Membership {
    proto::Membership {
        configs: (membership.get_joint_config().iter())
            .map(|config| proto::Config { voters: config.iter().copied().collect() })
            .collect(),
        members: (membership.nodes()).map(|(&replica, node)| proto::Member { replica, node: node.0 }).collect(),
    }
}

fn membership_from_proto(membership: proto::Membership) -> Result<Membership> {
    let configs: Vec<BTreeSet<u64>> =
        membership.configs.into_iter().map(|config| config.voters.into_iter().collect()).collect();
    let members: BTreeMap<u64, NodeId> =
        membership.members.into_iter().map(|member| (member.replica, NodeId(member.node))).collect();
    if configs.is_empty() && members.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, members)
        .map_err(|error| CodecError::Invalid { what: "the membership", why: error.to_string() })
}

/// A vote as it lies in storage.
pub fn encode_vote(vote: &Vote) -> Bytes {
    encode(&vote_to_proto(vote))
}

/// The vote in stored bytes.
pub fn decode_vote(bytes: Bytes) -> Result<Vote> {
    vote_from_proto(Some(decode("a vote", bytes)?))
}

/// A log id as it lies in storage.
pub fn encode_log_id(id: &LogId) -> Bytes {
    encode(&log_id_to_proto(id))
}

/// The log id in stored bytes.
pub fn decode_log_id(bytes: Bytes) -> Result<LogId> {
    Ok(log_id_from_proto(decode("a log id", bytes)?))
}

/// The position of a machine: applied log id and members, as a message.
pub fn mark_to_proto(applied: Option<&LogId>, membership: &StoredMembership) -> proto::RaftMark {
    proto::RaftMark {
        applied: applied.map(log_id_to_proto),
        membership: Some(proto::StoredMembership {
            log_id: membership.log_id().as_ref().map(log_id_to_proto),
            membership: Some(membership_to_proto(membership.membership())),
        }),
    }
}

/// The position in a message.
pub fn mark_from_proto(mark: proto::RaftMark) -> Result<(Option<LogId>, StoredMembership)> {
    let stored = mark.membership.ok_or(CodecError::Missing("the membership of a mark"))?;
    let membership = membership_from_proto(stored.membership.unwrap_or_default())?;
    let membership = StoredMembership::new(stored.log_id.map(log_id_from_proto), membership);
    Ok((mark.applied.map(log_id_from_proto), membership))
}

/// The position as the opaque mark that machines store.
pub fn encode_mark(applied: Option<&LogId>, membership: &StoredMembership) -> Bytes {
    encode(&mark_to_proto(applied, membership))
}

/// The position in a stored mark.
pub fn decode_mark(bytes: Bytes) -> Result<(Option<LogId>, StoredMembership)> {
    mark_from_proto(decode("a mark", bytes)?)
}

/// The bytes of an entry, in the log and on the wire alike.
pub fn encode_entry(entry: &LogEntry) -> Bytes {
    use proto::entry::Payload as Wire;
    let payload = match &entry.payload {
        Payload::Blank => Wire::Blank(true),
        Payload::Normal(command) => Wire::Normal(command.0.clone()),
        Payload::Membership(membership) => Wire::Membership(membership_to_proto(membership)),
    };
    encode(&proto::Entry { id: Some(log_id_to_proto(&entry.id)), payload: Some(payload) })
}

/// The entry in bytes; it keeps them, and its payload is a slice of them.
pub fn decode_entry(bytes: Bytes) -> Result<LogEntry> {
    use proto::entry::Payload as Wire;
    let message: proto::Entry = decode("a log entry", bytes.clone())?;
    let id = log_id_from_proto(message.id.ok_or(CodecError::Missing("the log id of an entry"))?);
    let payload = match message.payload.ok_or(CodecError::Missing("the payload of an entry"))? {
        Wire::Blank(_) => Payload::Blank,
        Wire::Normal(bytes) => Payload::Normal(Command(bytes)),
        Wire::Membership(membership) => Payload::Membership(membership_from_proto(membership)?),
    };
    Ok(LogEntry { id, payload, encoded: Some(bytes) })
}

/// An append request as a frame's payload. Entries from the log store carry their bytes already.
pub fn encode_append(request: &AppendRequest, held: u64) -> Bytes {
    encode(&proto::AppendRequest {
        vote: Some(vote_to_proto(&request.vote)),
        previous: request.prev_log_id.as_ref().map(log_id_to_proto),
        commit: request.leader_commit.as_ref().map(log_id_to_proto),
        entries: (request.entries.iter())
            .map(|entry| entry.encoded.clone().unwrap_or_else(|| encode_entry(entry)))
            .collect(),
        held,
    })
}

/// The append request in a frame, and the last entry that all members hold.
pub fn decode_append(bytes: Bytes) -> Result<(AppendRequest, u64)> {
    let message: proto::AppendRequest = decode("an append request", bytes)?;
    let request = AppendRequest {
        vote: vote_from_proto(message.vote)?,
        prev_log_id: message.previous.map(log_id_from_proto),
        entries: message.entries.into_iter().map(decode_entry).collect::<Result<_>>()?,
        leader_commit: message.commit.map(log_id_from_proto),
    };
    Ok((request, message.held))
}

/// The answer to an append request as a frame's payload.
pub fn encode_append_response(response: &AppendResponse) -> Bytes {
    use proto::append_response::Outcome;
    let outcome = match response {
        AppendResponse::Success => Outcome::Success(true),
        AppendResponse::PartialSuccess(Some(id)) => Outcome::PartialSuccess(log_id_to_proto(id)),
        // Nothing of the request was taken, not even agreement on the entry before it: the same as a conflict.
        AppendResponse::PartialSuccess(None) | AppendResponse::Conflict => Outcome::Conflict(true),
        AppendResponse::HigherVote(vote) => Outcome::HigherVote(vote_to_proto(vote)),
    };
    encode(&proto::AppendResponse { outcome: Some(outcome) })
}

/// What the answer to an append request says: how far the logs agree, or why not.
pub type Appended = std::result::Result<Option<LogId>, StreamAppendError<super::types::TypeConfig>>;

/// The answer in a frame to a request for the entries after `previous` up to `last`.
pub fn decode_append_response(bytes: Bytes, previous: Option<LogId>, last: Option<LogId>) -> Result<Appended> {
    use proto::append_response::Outcome;
    let message: proto::AppendResponse = decode("the answer to an append request", bytes)?;
    Ok(match message.outcome.ok_or(CodecError::Missing("the outcome of an append request"))? {
        Outcome::Success(_) => Ok(last),
        Outcome::PartialSuccess(id) => Ok(Some(log_id_from_proto(id))),
        Outcome::Conflict(_) => {
            let previous = previous.ok_or_else(|| CodecError::Invalid {
                what: "the answer to an append request",
                why: "a conflict before the first entry".to_owned(),
            })?;
            Err(StreamAppendError::Conflict(previous))
        }
        Outcome::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote_from_proto(Some(vote))?)),
    })
}

/// A request for a vote (or a pre-vote) as a frame's payload.
pub fn encode_vote_request(request: &VoteRequest) -> Bytes {
    encode(&proto::VoteRequest {
        vote: Some(vote_to_proto(&request.vote)),
        last_log: request.last_log_id.as_ref().map(log_id_to_proto),
        leadership_transfer: request.leadership_transfer,
    })
}

/// The request for a vote in a frame.
pub fn decode_vote_request(bytes: Bytes) -> Result<VoteRequest> {
    let message: proto::VoteRequest = decode("a vote request", bytes)?;
    let mut request = VoteRequest::new(vote_from_proto(message.vote)?, message.last_log.map(log_id_from_proto));
    request.leadership_transfer = message.leadership_transfer;
    Ok(request)
}

/// The answer to a request for a vote as a frame's payload.
pub fn encode_vote_response(response: &VoteResponse) -> Bytes {
    encode(&proto::VoteResponse {
        vote: Some(vote_to_proto(&response.vote)),
        granted: response.vote_granted,
        last_log: response.last_log_id.as_ref().map(log_id_to_proto),
    })
}

/// The answer to a request for a vote in a frame.
pub fn decode_vote_response(bytes: Bytes) -> Result<VoteResponse> {
    let message: proto::VoteResponse = decode("the answer to a vote request", bytes)?;
    let vote = vote_from_proto(message.vote)?;
    Ok(VoteResponse::new(vote, message.last_log.map(log_id_from_proto), message.granted))
}

/// A leader's wish to hand over, as a frame's payload.
pub fn encode_transfer(request: &TransferRequest) -> Bytes {
    encode(&proto::TransferRequest {
        from: Some(vote_to_proto(request.from_leader())),
        to_replica: *request.to_node_id(),
        last_log: request.last_log_id().map(log_id_to_proto),
    })
}

/// A leader's wish to hand over, in a frame.
pub fn decode_transfer(bytes: Bytes) -> Result<TransferRequest> {
    let message: proto::TransferRequest = decode("a transfer request", bytes)?;
    let from = vote_from_proto(message.from)?;
    Ok(TransferRequest::new(from, message.to_replica, message.last_log.map(log_id_from_proto)))
}

#[cfg(test)]
mod tests {
    use openraft::entry::RaftEntry;

    use super::*;

    fn id(index: u64) -> LogId {
        LogId::new(LeaderId { term: 1, node_id: 2 }, index)
    }

    fn joint() -> Membership {
        let nodes: BTreeMap<u64, NodeId> = [(10, NodeId(1)), (20, NodeId(2)), (30, NodeId(3))].into();
        Membership::new(vec![[10, 20].into(), [20].into()], nodes).expect("valid")
    }

    #[test]
    fn what_lies_in_storage_keeps_its_bytes() {
        let hex = |bytes: Bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let entry = LogEntry::new(id(3), Payload::Normal(Command(Bytes::from_static(b"ab"))));
        assert_eq!(hex(encode_entry(&entry)), "0a060801100218031a026162");
        assert_eq!(hex(encode_entry(&LogEntry::new(id(3), Payload::Blank))), "0a060801100218031001");
        assert_eq!(hex(encode_vote(&Vote::new_committed(1, 2))), "080110021801");
        assert_eq!(hex(encode_log_id(&id(3))), "080110021803");
        let nodes: BTreeMap<u64, NodeId> = [(10, NodeId(1))].into();
        let single = Membership::new(vec![[10].into()], nodes).expect("valid");
        assert_eq!(
            hex(encode_mark(Some(&id(3)), &StoredMembership::new(Some(id(3)), single))),
            "0a0608011002180312150a06080110021803120b0a030a010a1204080a1001"
        );
    }

    #[test]
    fn everything_comes_back_as_it_was() {
        for payload in [Payload::Blank, Payload::Normal(Command(Bytes::new())), Payload::Membership(joint())] {
            let entry = LogEntry::new(id(0), payload);
            assert_eq!(decode_entry(encode_entry(&entry)).expect("decodes"), entry);
        }
        let members = StoredMembership::new(Some(id(7)), joint());
        assert_eq!(decode_mark(encode_mark(Some(&id(9)), &members)), Ok((Some(id(9)), members)));
        let nothing = StoredMembership::default();
        assert_eq!(decode_mark(encode_mark(None, &nothing)), Ok((None, nothing)));
        for vote in [Vote::new(3, 4), Vote::new_committed(3, 4)] {
            assert_eq!(decode_vote(encode_vote(&vote)), Ok(vote));
        }
        let entries = vec![LogEntry::new(id(1), Payload::Blank), LogEntry::new(id(2), Payload::Membership(joint()))];
        let append = AppendRequest {
            vote: Vote::new_committed(1, 2),
            prev_log_id: Some(id(0)),
            entries: entries.clone(),
            leader_commit: None,
        };
        let (decoded, held) = decode_append(encode_append(&append, 77)).expect("decodes");
        assert_eq!(held, 77);
        assert_eq!((decoded.vote, decoded.prev_log_id, decoded.leader_commit), (append.vote, append.prev_log_id, None));
        assert_eq!(decoded.entries, entries);
        let mut request = VoteRequest::new(Vote::new(3, 4), Some(id(5)));
        request.leadership_transfer = true;
        assert_eq!(decode_vote_request(encode_vote_request(&request)), Ok(request));
        let response = VoteResponse::new(Vote::new(3, 4), None, true);
        assert_eq!(decode_vote_response(encode_vote_response(&response)), Ok(response));
        let transfer = TransferRequest::new(Vote::new_committed(3, 4), 20, Some(id(5)));
        assert_eq!(decode_transfer(encode_transfer(&transfer)), Ok(transfer));
        let answer = |response: AppendResponse| {
            decode_append_response(encode_append_response(&response), Some(id(4)), Some(id(6))).expect("decodes")
        };
        assert_eq!(answer(AppendResponse::Success), Ok(Some(id(6))));
        assert_eq!(answer(AppendResponse::PartialSuccess(Some(id(5)))), Ok(Some(id(5))));
        assert_eq!(answer(AppendResponse::Conflict), Err(StreamAppendError::Conflict(id(4))));
        let higher = Vote::new(9, 9);
        assert_eq!(answer(AppendResponse::HigherVote(higher)), Err(StreamAppendError::HigherVote(higher)));
    }

    #[test]
    fn what_lacks_something_is_refused_by_name() {
        assert_eq!(decode_entry(Bytes::new()), Err(CodecError::Missing("the log id of an entry")));
        let no_payload = encode(&proto::Entry { id: Some(log_id_to_proto(&id(1))), payload: None });
        assert_eq!(decode_entry(no_payload), Err(CodecError::Missing("the payload of an entry")));
        assert_eq!(decode_vote_request(Bytes::new()), Err(CodecError::Missing("the vote")));
        assert_eq!(decode_mark(Bytes::new()), Err(CodecError::Missing("the membership of a mark")));
        let stranger = proto::Membership { configs: vec![proto::Config { voters: vec![1] }], members: Vec::new() };
        assert!(matches!(membership_from_proto(stranger), Err(CodecError::Invalid { .. })));
        assert!(matches!(decode_vote(Bytes::from_static(b"\xff")), Err(CodecError::Decode { .. })));
    }
}
