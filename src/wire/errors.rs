//! Failures on the wire.
//!
//! A unary call fails with a `google.rpc.Status` that carries an `ErrorInfo {reason, domain: "trivet"}`, with the
//! metadata entry `leader` (a node id) where another node should be asked, and a `RetryInfo` where waiting helps. A
//! pipelined call fails with a `Failure` of the same facts. The reason is what programs act on; the gRPC code serves
//! tools that know no reasons:
//!
//! | what the caller does next | reasons | gRPC code |
//! |---|---|---|
//! | correct the request | EMPTY_KEY, KEY_TOO_LARGE, VALUE_TOO_LARGE, BATCH_TOO_LARGE, INVALID_REQUEST, CROSS_SHARD, REQUEST_MISMATCH, INVALID_CURSOR | INVALID_ARGUMENT |
//! | ask another node, or again | NOT_LEADER, TOO_STALE, SHARD_NOT_HERE, NO_QUORUM, NOT_READY, VIEW_BEHIND | UNAVAILABLE |
//! | change what stands in its way | NOT_AN_INTEGER, READ_ONLY_TABLE, PRECONDITION_FAILED, REQUEST_EXPIRED, TABLE_IN_USE, WRONG_CLUSTER, NOT_ENOUGH_NODES | FAILED_PRECONDITION |
//! | choose a position inside the window | HISTORY_TRIMMED, CURSOR_TRIMMED | OUT_OF_RANGE |
//! | choose another name | TABLE_EXISTS, NODE_ID_TAKEN, KEY_TAKEN | ALREADY_EXISTS |
//! | create it first | UNKNOWN_TABLE, UNKNOWN_NODE, UNKNOWN_SHARD, UNKNOWN_DOCUMENT | NOT_FOUND |
//! | fetch the topology or read again, then ask again | WRONG_EPOCH, CONFLICT | ABORTED |
//! | slow down, make room | OVERLOADED, DISK_FULL | RESOURCE_EXHAUSTED |
//! | allow more time | DEADLINE_EXCEEDED | DEADLINE_EXCEEDED |
//! | repeat with the same request id | RESULT_UNDETERMINED | UNKNOWN |
//! | look after the disk | CORRUPTION | DATA_LOSS |
//! | report it | INTERNAL | INTERNAL |
//!
//! The way back prefers the reason. A status without one comes from something between (a proxy, the transport, an
//! older server): then the code decides, and for a write every code that does not exclude an effect becomes
//! RESULT_UNDETERMINED, because only a definite refusal may be treated as one.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::proto::v1;
use crate::types::{Error, Kind, NodeId, Reason};

/// `ErrorInfo.domain` of every error of ours.
pub const DOMAIN: &str = "trivet";
/// The key under which `ErrorInfo.metadata` names the node to ask instead.
const LEADER: &str = "leader";
/// The wait advised when the error names none: about the time in which a queue drains or an election advances.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// Longest text taken over from a status of a stranger.
const FOREIGN_MESSAGE_BYTES_MAX: usize = 500;

/// The gRPC code of a reason: the table above.
pub fn code(reason: Reason) -> Code {
    match reason {
        Reason::EmptyKey
        | Reason::KeyTooLarge
        | Reason::ValueTooLarge
        | Reason::BatchTooLarge
        | Reason::InvalidRequest
        | Reason::CrossShard
        | Reason::RequestMismatch
        | Reason::InvalidCursor => Code::InvalidArgument,
        Reason::NotAnInteger
        | Reason::ReadOnlyTable
        | Reason::PreconditionFailed
        | Reason::RequestExpired
        | Reason::TableInUse
        | Reason::WrongCluster
        | Reason::NotEnoughNodes => Code::FailedPrecondition,
        Reason::HistoryTrimmed | Reason::CursorTrimmed => Code::OutOfRange,
        Reason::NotLeader
        | Reason::TooStale
        | Reason::ShardNotHere
        | Reason::NoQuorum
        | Reason::NotReady
        | Reason::ViewBehind => Code::Unavailable,
        Reason::TableExists | Reason::NodeIdTaken | Reason::KeyTaken => Code::AlreadyExists,
        Reason::UnknownTable | Reason::UnknownNode | Reason::UnknownShard | Reason::UnknownDocument => Code::NotFound,
        Reason::WrongEpoch | Reason::Conflict => Code::Aborted,
        Reason::Overloaded | Reason::DiskFull => Code::ResourceExhausted,
        Reason::DeadlineExceeded => Code::DeadlineExceeded,
        Reason::ResultUndetermined => Code::Unknown,
        Reason::Corruption => Code::DataLoss,
        Reason::Internal => Code::Internal,
    }
}

/// How long to wait before asking again, for errors where waiting is what helps.
fn advised_wait(error: &Error) -> Option<Duration> {
    error.retry_after.or(match error.kind() {
        Kind::BackOff | Kind::Unavailable => Some(RETRY_AFTER),
        Kind::Redirect if error.leader.is_none() => Some(RETRY_AFTER),
        _ => None,
    })
}

/// The status that tells a caller of this error.
pub fn to_status(error: &Error) -> Status {
    let mut metadata = HashMap::new();
    if let Some(leader) = error.leader {
        metadata.insert(LEADER.to_owned(), leader.0.to_string());
    }
    let mut details = ErrorDetails::with_error_info(error.reason.as_str(), DOMAIN, metadata);
    if let Some(wait) = advised_wait(error) {
        details.set_retry_info(Some(wait));
    }
    Status::with_error_details(code(error.reason), error.message.clone(), details)
}

/// A status with a reason in place of one by which the gRPC library refused a message before anyone saw it; none if
/// the status has its reason, or does not prove that nothing happened.
pub fn explain(status: &Status) -> Option<Status> {
    if status.get_details_error_info().is_some() {
        return None;
    }
    match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => {
            let text = format!("the message is longer than any may be: {}", clip(status.message()));
            Some(to_status(&Error::new(Reason::BatchTooLarge, text)))
        }
        Code::Internal | Code::InvalidArgument => {
            Some(to_status(&Error::invalid(format!("the message cannot be read: {}", clip(status.message())))))
        }
        // The code by which clients of all languages know an older server.
        Code::Unimplemented => {
            let details = ErrorDetails::with_error_info(
                Reason::InvalidRequest.as_str(),
                DOMAIN,
                HashMap::<String, String>::new(),
            );
            let text = match status.message() {
                "" => "there is no such method here; server reflection lists those there are",
                text => clip(text),
            };
            Some(Status::with_error_details(Code::Unimplemented, text, details))
        }
        _ => None,
    }
}

/// The error a status tells of. `write` says whether the call could have had an effect, which decides what a status
/// without one of our reasons means.
pub fn error_of_status(status: &Status, write: bool) -> Error {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN);
    let retry_after = status.get_details_retry_info().and_then(|retry| retry.retry_delay);
    match info {
        Some(info) => Error {
            reason: Reason::parse(&info.reason).unwrap_or_else(|| reason_of_code(status.code(), write)),
            message: status.message().to_owned(),
            leader: info.metadata.get(LEADER).and_then(|id| id.parse().ok()).map(NodeId),
            retry_after,
        },
        None => Error {
            reason: reason_of_code(bare_code(status), write),
            message: format!("{:?}: {}", status.code(), clip(status.message())),
            leader: None,
            retry_after,
        },
    }
}

/// The code of a status without a reason. The library makes some itself, of errors of the connection that it has no
/// better code for: those have a source, which none that was received has.
fn bare_code(status: &Status) -> Code {
    match status.code() {
        Code::Unknown if std::error::Error::source(status).is_some() => Code::Unavailable,
        code => code,
    }
}

/// The failure inside a pipelined answer that tells of this error.
pub fn to_failure(error: &Error) -> v1::Failure {
    v1::Failure {
        code: code(error.reason) as i32,
        reason: error.reason.as_str().to_owned(),
        message: error.message.clone(),
        leader: error.leader.map(|node| node.0),
        retry_after_ms: advised_wait(error).map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// The error a failure tells of; `write` as in [`error_of_status`].
pub fn error_of_failure(failure: v1::Failure, write: bool) -> Error {
    Error {
        reason: Reason::parse(&failure.reason).unwrap_or_else(|| reason_of_code(Code::from_i32(failure.code), write)),
        message: failure.message,
        leader: failure.leader.map(NodeId),
        retry_after: failure.retry_after_ms.map(Duration::from_millis),
    }
}

/// What a bare code means. Only codes by which gRPC promises that the call was refused count as definite for writes.
fn reason_of_code(code: Code, write: bool) -> Reason {
    match code {
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::FailedPrecondition
        | Code::AlreadyExists
        | Code::NotFound
        | Code::Unimplemented
        | Code::PermissionDenied
        | Code::Unauthenticated => Reason::InvalidRequest,
        Code::ResourceExhausted => Reason::Overloaded,
        Code::DataLoss => Reason::Corruption,
        _ if write => Reason::ResultUndetermined,
        Code::Unavailable | Code::Aborted => Reason::NotReady,
        Code::DeadlineExceeded | Code::Cancelled => Reason::DeadlineExceeded,
        Code::Ok | Code::Unknown | Code::Internal => Reason::Internal,
    }
}

fn clip(text: &str) -> &str {
    let mut end = text.len().min(FOREIGN_MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> impl Iterator<Item = Error> {
        Reason::ALL.iter().flat_map(|&reason| {
            let plain = Error::new(reason, format!("a sentence about {}", reason.as_str()));
            let hinted = plain.clone().with_leader(Some(NodeId(7))).with_retry_after(Duration::from_millis(120));
            [plain, hinted]
        })
    }

    /// What arrives is what was sent, but for the wait that is advised where none was named.
    fn assert_same(sent: &Error, got: &Error) {
        assert_eq!((got.reason, &got.message, got.leader), (sent.reason, &sent.message, sent.leader));
        assert_eq!(got.retry_after, advised_wait(sent));
    }

    #[test]
    fn reasons_and_the_protocol_agree_name_by_name() {
        let mut numbers = 0;
        for number in 1..=1_000 {
            let Ok(proto) = v1::Reason::try_from(number) else { continue };
            numbers += 1;
            let reason = Reason::parse(proto.as_str_name()).expect("every name of the protocol is a reason");
            assert_eq!(reason as i32, number, "{}", proto.as_str_name());
        }
        assert_eq!(numbers, Reason::ALL.len());
        for &reason in Reason::ALL {
            let proto = v1::Reason::from_str_name(reason.as_str()).expect("every reason is in the protocol");
            assert_eq!(proto as i32, reason as i32);
        }
    }

    #[test]
    fn errors_survive_the_wire_both_ways() {
        for error in samples() {
            for write in [false, true] {
                assert_same(&error, &error_of_status(&to_status(&error), write));
                assert_same(&error, &error_of_failure(to_failure(&error), write));
            }
        }
    }

    #[test]
    fn a_status_travels_as_a_header_and_still_says_everything() {
        let error = Error::new(Reason::NotLeader, "ask another").with_leader(Some(NodeId(3)));
        let headers = to_status(&error).into_http::<()>().into_parts().0.headers;
        let status = Status::from_header_map(&headers).expect("a status");
        assert_same(&error, &error_of_status(&status, true));
    }

    #[test]
    fn kinds_keep_their_codes() {
        for &reason in Reason::ALL {
            let code = code(reason);
            match reason.kind() {
                Kind::Invalid => assert!(matches!(
                    code,
                    Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange | Code::AlreadyExists
                )),
                Kind::NotFound => assert_eq!(code, Code::NotFound),
                Kind::Undetermined => assert_eq!(code, Code::Unknown),
                Kind::Corrupt => assert_eq!(code, Code::DataLoss),
                Kind::Internal => assert_eq!(code, Code::Internal),
                Kind::Redirect | Kind::Refresh | Kind::BackOff | Kind::Unavailable => assert!(matches!(
                    code,
                    Code::Unavailable | Code::Aborted | Code::ResourceExhausted | Code::DeadlineExceeded
                )),
            }
        }
    }

    #[test]
    fn a_foreign_status_is_undetermined_for_writes_unless_it_refuses() {
        for number in 0..=16 {
            let code = Code::from_i32(number);
            let status = Status::new(code, "from a proxy");
            let read = error_of_status(&status, false);
            let write = error_of_status(&status, true);
            assert_ne!(read.kind(), Kind::Undetermined, "{code:?}");
            let definite = matches!(write.kind(), Kind::Invalid | Kind::BackOff | Kind::Corrupt);
            assert_eq!(write.kind() == Kind::Undetermined, !definite, "{code:?}");
        }
        let broken = Status::from_error("the connection is gone".into());
        assert_eq!(broken.code(), Code::Unknown);
        assert_eq!(error_of_status(&broken, false).reason, Reason::NotReady);
        assert_eq!(error_of_status(&broken, true).reason, Reason::ResultUndetermined);
        let newer = v1::Failure { reason: "LATER_REASON".into(), code: Code::Unavailable as i32, ..Default::default() };
        assert_eq!(error_of_failure(newer.clone(), true).reason, Reason::ResultUndetermined);
        assert_eq!(error_of_failure(newer, false).reason, Reason::NotReady);
    }

    #[test]
    fn refusals_of_the_library_get_a_reason_and_nothing_else_does() {
        for number in 0..=16 {
            let code = Code::from_i32(number);
            let explained = explain(&Status::new(code, "words of the library"));
            let definite = matches!(
                code,
                Code::OutOfRange
                    | Code::ResourceExhausted
                    | Code::Internal
                    | Code::InvalidArgument
                    | Code::Unimplemented
            );
            assert_eq!(explained.is_some(), definite, "{code:?}");
            let Some(explained) = explained else { continue };
            let error = error_of_status(&explained, true);
            assert_eq!(error.kind(), Kind::Invalid, "{code:?}");
            assert!(error.message.ends_with("words of the library"), "{error}");
            assert!(explain(&explained).is_none(), "once is enough");
        }
        for error in samples() {
            assert!(explain(&to_status(&error)).is_none(), "{error}");
        }
    }

    #[test]
    fn foreign_texts_are_clipped_at_a_character() {
        let long = "ä".repeat(400);
        let error = error_of_status(&Status::unavailable(long), false);
        assert!(error.message.len() < 600);
    }
}
