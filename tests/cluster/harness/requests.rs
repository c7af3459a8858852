//! Short ways to say what is sent over bare gRPC, and what an answer must be.

use std::time::{SystemTime, UNIX_EPOCH};

use tonic::Status;
use tonic_types::StatusExt;
use trivet::wire::proto::v1::{
    Condition, GetRequest, IncrementRequest, Operation, Put, PutRequest, ReadLevel, RequestId, WriteRequest, condition,
    operation, read_level,
};

pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    u64::try_from(since.as_millis()).expect("before the year 500 million")
}

/// A request id of a client nobody else is, issued now.
pub fn fresh_id() -> RequestId {
    RequestId { client: trivet::runtime::random_u64(), sequence: 1, issued_ms: now_ms() }
}

pub fn get(table: &str, key: impl AsRef<[u8]>) -> GetRequest {
    GetRequest { table: table.to_owned(), key: bytes(key), level: None }
}

/// A read of whatever the node asked has.
pub fn get_any(table: &str, key: impl AsRef<[u8]>) -> GetRequest {
    GetRequest {
        level: Some(ReadLevel { level: Some(read_level::Level::Any(true)), any_replica: false }),
        ..get(table, key)
    }
}

pub fn put(table: &str, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> PutRequest {
    PutRequest {
        table: table.to_owned(),
        key: bytes(key),
        value: bytes(value),
        ttl_ms: None,
        request: Some(fresh_id()),
    }
}

pub fn increment(table: &str, key: &str, delta: i64, request: RequestId) -> IncrementRequest {
    IncrementRequest { table: table.to_owned(), key: bytes(key), delta, request: Some(request) }
}

pub fn batch(table: &str, conditions: Vec<Condition>, operations: Vec<Operation>) -> WriteRequest {
    WriteRequest { table: table.to_owned(), request: Some(fresh_id()), conditions, operations }
}

pub fn set(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Operation {
    let put = Put { value: bytes(value), ttl_ms: None };
    Operation { key: bytes(key), action: Some(operation::Action::Put(put)) }
}

pub fn delete(key: impl AsRef<[u8]>) -> Operation {
    Operation { key: bytes(key), action: Some(operation::Action::Delete(true)) }
}

pub fn if_absent(key: impl AsRef<[u8]>) -> Condition {
    Condition { key: bytes(key), test: Some(condition::Test::IfAbsent(true)) }
}

pub fn if_version(key: impl AsRef<[u8]>, version: u64) -> Condition {
    Condition { key: bytes(key), test: Some(condition::Test::IfVersion(version)) }
}

fn bytes(of: impl AsRef<[u8]>) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(of.as_ref())
}

/// The reason in the ErrorInfo of a failure.
#[track_caller]
pub fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "trivet");
    info.reason
}

/// Asserts that a call was refused for this reason and that the sentence explains something.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, expected: &str) {
    let status = answer.expect_err("the call should have been refused");
    assert_eq!(reason(&status), expected, "{status:?}");
    assert!(status.message().len() > 10, "no sentence: {status:?}");
}
