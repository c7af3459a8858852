//! What clients ask: from protobuf to plain requests, checked, and back.

use bytes::Bytes;

use super::check::check;
use super::proto::v1::{
    self, changes_request, compare_and_swap_request::Expected, condition, operation, read_level, scan_request,
};
use crate::types::{
    Action, ChangeKind, ChangesRequest, Condition, Error, Limits, Operation, Read, ReadLevel, Request, RequestId,
    Result, ScanBounds, ScanRequest, Test, Timestamp, Token, Write,
};
use std::time::Duration;

/// A question as it came over the wire.
pub trait Question: Sized {
    /// The table it is about and what it asks, as yet unchecked against the limits.
    fn convert(self) -> Result<(String, Request)>;

    /// The table it is about and what it asks. Refused when it lacks something, contradicts itself or exceeds
    /// `limits`; the rows of a page are clamped to them.
    fn decode(self, limits: &Limits) -> Result<(String, Request)> {
        let (table, mut request) = self.convert()?;
        if table.is_empty() {
            return Err(Error::invalid("the table is missing"));
        }
        check(&mut request, limits)?;
        Ok((table, request))
    }
}

impl Question for v1::GetRequest {
    fn convert(self) -> Result<(String, Request)> {
        Ok((self.table, Request::Read(read(vec![self.key], self.level)?)))
    }
}

impl Question for v1::BatchGetRequest {
    fn convert(self) -> Result<(String, Request)> {
        Ok((self.table, Request::Read(read(self.keys, self.level)?)))
    }
}

impl Question for v1::PutRequest {
    fn convert(self) -> Result<(String, Request)> {
        let action = Action::Put { value: self.value, ttl_ms: self.ttl_ms };
        Ok((self.table, single(self.request, self.key, action)))
    }
}

impl Question for v1::DeleteRequest {
    fn convert(self) -> Result<(String, Request)> {
        Ok((self.table, single(self.request, self.key, Action::Delete)))
    }
}

impl Question for v1::IncrementRequest {
    fn convert(self) -> Result<(String, Request)> {
        Ok((self.table, single(self.request, self.key, Action::Increment { delta: self.delta })))
    }
}

impl Question for v1::RollbackRequest {
    fn convert(self) -> Result<(String, Request)> {
        Ok((self.table, single(self.request, self.key, Action::Rollback { to: Timestamp(self.to) })))
    }
}

impl Question for v1::CompareAndSwapRequest {
    fn convert(self) -> Result<(String, Request)> {
        let test = match self.expected {
            Some(Expected::Version(version)) => Test::Version(Timestamp(version)),
            Some(Expected::Value(value)) => Test::Value(value),
            Some(Expected::Absent(true)) => Test::Absent,
            Some(Expected::Absent(false)) => return Err(said_false("expected.absent")),
            None => return Err(Error::invalid("expected is missing: name a version, a value or absent")),
        };
        let action = match self.new_value {
            Some(value) => Action::Put { value, ttl_ms: None },
            None => Action::Delete,
        };
        let write = Write {
            request: self.request.map(request_id),
            conditions: vec![Condition { key: self.key.clone(), test }],
            operations: vec![Operation { key: self.key, action }],
        };
        Ok((self.table, Request::Write(write)))
    }
}

impl Question for v1::WriteRequest {
    fn convert(self) -> Result<(String, Request)> {
        let write = Write {
            request: self.request.map(request_id),
            conditions: self.conditions.into_iter().map(condition).collect::<Result<_>>()?,
            operations: self.operations.into_iter().map(operation).collect::<Result<_>>()?,
        };
        Ok((self.table, Request::Write(write)))
    }
}

/// `limit` becomes the rows of one page; the streaming `Scan` reads its own meaning of it before decoding.
impl Question for v1::ScanRequest {
    fn convert(self) -> Result<(String, Request)> {
        let scan = ScanRequest {
            bounds: match self.bounds {
                None => ScanBounds::All,
                Some(scan_request::Bounds::Tag(tag)) => ScanBounds::Tag(tag),
                Some(scan_request::Bounds::Prefix(prefix)) => ScanBounds::Prefix(prefix),
                Some(scan_request::Bounds::Range(range)) => ScanBounds::Range(range.from, range.to),
            },
            reverse: self.reverse,
            rows_max: rows(self.limit),
            cursor: Some(self.cursor).filter(|cursor| !cursor.is_empty()),
            count_only: self.count_only,
            level: read_level(self.level)?,
            any_replica: self.level.is_some_and(|level| level.any_replica),
        };
        Ok((self.table, Request::Scan(scan)))
    }
}

impl Question for v1::ChangesRequest {
    fn convert(self) -> Result<(String, Request)> {
        let only = match self.only() {
            v1::ChangeKind::Unspecified => None,
            v1::ChangeKind::Put => Some(ChangeKind::Put),
            v1::ChangeKind::Delete => Some(ChangeKind::Delete),
        };
        let changes = ChangesRequest {
            bounds: match self.bounds {
                None => ScanBounds::All,
                Some(changes_request::Bounds::Tag(tag)) => ScanBounds::Tag(tag),
                Some(changes_request::Bounds::Prefix(prefix)) => ScanBounds::Prefix(prefix),
                Some(changes_request::Bounds::Range(range)) => ScanBounds::Range(range.from, range.to),
            },
            cursor: Some(self.cursor).filter(|cursor| !cursor.is_empty()),
            after: self.after.map(Timestamp),
            with_previous: self.with_previous,
            only,
            changes_max: rows(self.limit),
            wait: Duration::from_millis(self.wait_ms.into()),
        };
        Ok((self.table, Request::Changes(changes)))
    }
}

impl Question for v1::HistoryRequest {
    fn convert(self) -> Result<(String, Request)> {
        let before = self.before.map(Timestamp);
        Ok((self.table, Request::History { key: self.key, before, rows_max: rows(self.limit) }))
    }
}

fn rows(limit: u64) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

fn single(request: Option<v1::RequestId>, key: Bytes, action: Action) -> Request {
    let operations = vec![Operation { key, action }];
    Request::Write(Write { request: request.map(request_id), conditions: Vec::new(), operations })
}

fn said_false(field: &str) -> Error {
    Error::invalid(format!("{field} is false, which asks for nothing: say true or leave it out"))
}

fn request_id(id: v1::RequestId) -> RequestId {
    RequestId { client: id.client, sequence: id.sequence, issued_ms: id.issued_ms }
}

fn read(keys: Vec<Bytes>, level: Option<v1::ReadLevel>) -> Result<Read> {
    let any_replica = level.is_some_and(|level| level.any_replica);
    Ok(Read { keys, level: read_level(level)?, any_replica })
}

/// How fresh an answer must be; linearizable if nothing is said.
pub fn read_level(level: Option<v1::ReadLevel>) -> Result<ReadLevel> {
    // A level of a later protocol arrives as none: the strongest answer is right for every asker.
    let Some(level) = level.and_then(|level| level.level) else { return Ok(ReadLevel::Linearizable) };
    match level {
        read_level::Level::Linearizable(true) => Ok(ReadLevel::Linearizable),
        read_level::Level::Linearizable(false) => Err(said_false("level.linearizable")),
        read_level::Level::AtLeast(version) => Ok(ReadLevel::AtLeast(Token { timestamp: Timestamp(version) })),
        read_level::Level::MaxAgeMs(millis) => Ok(ReadLevel::MaxAge(Duration::from_millis(millis))),
        read_level::Level::Any(true) => Ok(ReadLevel::Any),
        read_level::Level::Any(false) => Err(said_false("level.any")),
        read_level::Level::AsOf(version) => Ok(ReadLevel::AsOf(Timestamp(version))),
    }
}

fn condition(condition: v1::Condition) -> Result<Condition> {
    let test = match condition.test {
        Some(condition::Test::IfVersion(version)) => Test::Version(Timestamp(version)),
        Some(condition::Test::IfAbsent(true)) => Test::Absent,
        Some(condition::Test::IfAbsent(false)) => return Err(said_false("if_absent")),
        Some(condition::Test::IfPresent(true)) => Test::Present,
        Some(condition::Test::IfPresent(false)) => return Err(said_false("if_present")),
        Some(condition::Test::IfValue(value)) => Test::Value(value),
        None => return Err(Error::invalid("a condition has no test, or one this server does not know")),
    };
    Ok(Condition { key: condition.key, test })
}

fn operation(operation: v1::Operation) -> Result<Operation> {
    let action = match operation.action {
        Some(operation::Action::Put(put)) => Action::Put { value: put.value, ttl_ms: put.ttl_ms },
        Some(operation::Action::Delete(true)) => Action::Delete,
        Some(operation::Action::Delete(false)) => return Err(said_false("delete")),
        Some(operation::Action::Increment(delta)) => Action::Increment { delta },
        Some(operation::Action::RollbackTo(version)) => Action::Rollback { to: Timestamp(version) },
        None => return Err(Error::invalid("an operation has no action, or one this server does not know")),
    };
    Ok(Operation { key: operation.key, action })
}

pub(super) fn encode_level(level: ReadLevel, any_replica: bool) -> Option<v1::ReadLevel> {
    let level = match level {
        // The default, and the shortest.
        ReadLevel::Linearizable if !any_replica => return None,
        ReadLevel::Linearizable => None,
        ReadLevel::AtLeast(token) => Some(read_level::Level::AtLeast(token.timestamp.0)),
        ReadLevel::MaxAge(age) => Some(read_level::Level::MaxAgeMs(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))),
        ReadLevel::Any => Some(read_level::Level::Any(true)),
        ReadLevel::AsOf(timestamp) => Some(read_level::Level::AsOf(timestamp.0)),
    };
    Some(v1::ReadLevel { level, any_replica })
}

pub(super) fn encode_write(table: &str, write: &Write) -> v1::WriteRequest {
    let request =
        write.request.map(|id| v1::RequestId { client: id.client, sequence: id.sequence, issued_ms: id.issued_ms });
    let conditions = write.conditions.iter().map(|condition| {
        let test = match &condition.test {
            Test::Version(version) => condition::Test::IfVersion(version.0),
            Test::Absent => condition::Test::IfAbsent(true),
            Test::Present => condition::Test::IfPresent(true),
            Test::Value(value) => condition::Test::IfValue(value.clone()),
        };
        v1::Condition { key: condition.key.clone(), test: Some(test) }
    });
    let operations = write.operations.iter().map(|operation| {
        let action = match &operation.action {
            Action::Put { value, ttl_ms } => operation::Action::Put(v1::Put { value: value.clone(), ttl_ms: *ttl_ms }),
            Action::Delete => operation::Action::Delete(true),
            Action::Increment { delta } => operation::Action::Increment(*delta),
            Action::Rollback { to } => operation::Action::RollbackTo(to.0),
        };
        v1::Operation { key: operation.key.clone(), action: Some(action) }
    });
    v1::WriteRequest {
        table: table.to_owned(),
        request,
        conditions: conditions.collect(),
        operations: operations.collect(),
    }
}

pub(super) fn encode_scan(table: &str, scan: &ScanRequest) -> v1::ScanRequest {
    let bounds = match &scan.bounds {
        ScanBounds::All => None,
        ScanBounds::Tag(tag) => Some(scan_request::Bounds::Tag(tag.clone())),
        ScanBounds::Prefix(prefix) => Some(scan_request::Bounds::Prefix(prefix.clone())),
        ScanBounds::Range(from, to) => {
            Some(scan_request::Bounds::Range(v1::ScanRange { from: from.clone(), to: to.clone() }))
        }
    };
    v1::ScanRequest {
        table: table.to_owned(),
        bounds,
        reverse: scan.reverse,
        limit: scan.rows_max as u64,
        cursor: scan.cursor.clone().unwrap_or_default(),
        count_only: scan.count_only,
        level: encode_level(scan.level, scan.any_replica),
    }
}

pub(super) fn encode_changes(table: &str, changes: &ChangesRequest) -> v1::ChangesRequest {
    let bounds = match &changes.bounds {
        ScanBounds::All => None,
        ScanBounds::Tag(tag) => Some(changes_request::Bounds::Tag(tag.clone())),
        ScanBounds::Prefix(prefix) => Some(changes_request::Bounds::Prefix(prefix.clone())),
        ScanBounds::Range(from, to) => {
            Some(changes_request::Bounds::Range(v1::ScanRange { from: from.clone(), to: to.clone() }))
        }
    };
    let only = match changes.only {
        None => v1::ChangeKind::Unspecified,
        Some(ChangeKind::Put) => v1::ChangeKind::Put,
        Some(ChangeKind::Delete) => v1::ChangeKind::Delete,
    };
    v1::ChangesRequest {
        table: table.to_owned(),
        bounds,
        cursor: changes.cursor.clone().unwrap_or_default(),
        after: changes.after.map(|version| version.0),
        with_previous: changes.with_previous,
        only: only.into(),
        limit: changes.changes_max as u64,
        wait_ms: u32::try_from(changes.wait.as_millis()).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Reason;

    fn refusal(question: impl Question) -> Error {
        question.decode(&Limits::default()).expect_err("refused")
    }

    fn table() -> String {
        "orders".to_owned()
    }

    #[test]
    fn what_is_missing_is_named() {
        let no_table = v1::GetRequest { key: "k".into(), ..Default::default() };
        assert!(refusal(no_table).message.contains("table"));
        let swap = v1::CompareAndSwapRequest { table: table(), key: "k".into(), ..Default::default() };
        assert!(refusal(swap).message.contains("expected"));
        let batch = |condition, operation| v1::WriteRequest {
            table: table(),
            request: None,
            conditions: Vec::from_iter(condition),
            operations: vec![operation],
        };
        let put = v1::Operation {
            key: "k".into(),
            action: Some(operation::Action::Put(v1::Put { value: "v".into(), ttl_ms: None })),
        };
        let bare = v1::Operation { key: "k".into(), action: None };
        assert!(refusal(batch(None, bare)).message.contains("action"));
        let untested = v1::Condition { key: "k".into(), test: None };
        assert!(refusal(batch(Some(untested), put.clone())).message.contains("test"));
        assert!(batch(None, put).decode(&Limits::default()).is_ok());
        let undated = v1::DeleteRequest { table: table(), key: "k".into(), request: Some(v1::RequestId::default()) };
        assert!(refusal(undated).message.contains("issued_ms"));
    }

    #[test]
    fn a_flag_that_says_false_is_refused() {
        let level = |level| v1::GetRequest {
            table: table(),
            key: "k".into(),
            level: Some(v1::ReadLevel { level: Some(level), any_replica: false }),
        };
        assert_eq!(refusal(level(read_level::Level::Any(false))).reason, Reason::InvalidRequest);
        assert_eq!(refusal(level(read_level::Level::Linearizable(false))).reason, Reason::InvalidRequest);
        let operation = v1::Operation { key: "k".into(), action: Some(operation::Action::Delete(false)) };
        let batch = v1::WriteRequest { table: table(), operations: vec![operation], ..Default::default() };
        assert_eq!(refusal(batch).reason, Reason::InvalidRequest);
    }

    #[test]
    fn single_key_verbs_are_batches_of_one() {
        let put = v1::PutRequest { table: table(), key: "k".into(), value: "v".into(), ttl_ms: Some(5), request: None };
        let (name, request) = put.decode(&Limits::default()).expect("decodes");
        assert_eq!(name, "orders");
        let action = Action::Put { value: "v".into(), ttl_ms: Some(5) };
        let operations = vec![Operation { key: "k".into(), action }];
        assert_eq!(request, Request::Write(Write { request: None, conditions: vec![], operations }));

        let swap = v1::CompareAndSwapRequest {
            table: table(),
            key: "k".into(),
            expected: Some(Expected::Version(9)),
            new_value: None,
            request: None,
        };
        let (_, request) = swap.decode(&Limits::default()).expect("decodes");
        let Request::Write(write) = request else { panic!("a write") };
        assert_eq!(write.conditions, vec![Condition { key: "k".into(), test: Test::Version(Timestamp(9)) }]);
        assert_eq!(write.operations, vec![Operation { key: "k".into(), action: Action::Delete }]);
    }
}
