//! Calls and answers on a pipelined stream.
//!
//! A stream carries the calls of many; ids match answers to them. Whatever is wrong with one call is said in the
//! answer to that call and leaves the stream alone.

use std::time::Duration;

use super::errors::{error_of_failure, to_failure};
use super::proto::v1::{self, answer, call};
use super::questions::{Question, encode_changes, encode_level, encode_scan, encode_write};
use crate::types::{Error, Limits, Request, Response, Result, TableId, TableRef};

/// A call as a server sees it.
#[derive(Debug)]
pub struct IncomingCall {
    /// The caller's name for it; goes back with the answer.
    pub id: u64,
    /// The table and the request, or why it is refused.
    pub question: Result<(String, Request)>,
    /// Whether one key was asked for by `get`, whose answer has a form of its own.
    pub single: bool,
    /// How long the caller waits; none if it did not say.
    pub patience: Option<Duration>,
    /// Sent by a node: answer or refuse, do not forward again.
    pub forwarded: bool,
    /// The table's id, if the caller knows it.
    pub table: Option<TableId>,
}

/// Decodes and checks a call; an unfit one keeps its id, so that the refusal finds its caller.
pub fn call(call: v1::Call, limits: &Limits) -> IncomingCall {
    let single = matches!(call.call, Some(call::Call::Get(_)));
    let question = match call.call {
        Some(call::Call::Get(question)) => question.decode(limits),
        Some(call::Call::Write(question)) => question.decode(limits),
        Some(call::Call::ScanPage(question)) => question.decode(limits),
        Some(call::Call::History(question)) => question.decode(limits),
        Some(call::Call::BatchGet(question)) => question.decode(limits),
        Some(call::Call::Changes(question)) => question.decode(limits),
        None => Err(Error::invalid("the call asks nothing, or something this server does not know")),
    };
    IncomingCall {
        id: call.id,
        question,
        single,
        patience: (call.deadline_ms != 0).then(|| Duration::from_millis(call.deadline_ms.into())),
        forwarded: call.forwarded,
        table: Some(TableId(call.table_id)).filter(|id| id.0 != 0),
    }
}

/// The answer to the call `id`; `single` as in its [`IncomingCall`].
pub fn answer(id: u64, single: bool, result: Result<Response>) -> v1::Answer {
    let encoded = result.and_then(|response| match &response {
        Response::Values(_) if single => response.try_into().map(answer::Answer::Get),
        Response::Values(_) => response.try_into().map(answer::Answer::BatchGet),
        Response::Written(_) => response.try_into().map(answer::Answer::Write),
        Response::Page(_) => response.try_into().map(answer::Answer::ScanPage),
        Response::Changes(_) => response.try_into().map(answer::Answer::Changes),
    });
    let answer = encoded.unwrap_or_else(|error| answer::Answer::Failure(to_failure(&error)));
    v1::Answer { id, answer: Some(answer) }
}

/// A call that asks `request` of `table`. `patience` is rounded up to a millisecond, so it is never "for ever" by
/// rounding. A read of one key travels as `get`.
pub fn encode_call<'a>(
    id: u64,
    table: impl Into<TableRef<'a>>,
    request: &Request,
    patience: Duration,
    forwarded: bool,
) -> v1::Call {
    let TableRef { name: table, id: table_id } = table.into();
    let call = match request {
        Request::Read(read) => match read.keys.as_slice() {
            [key] => call::Call::Get(v1::GetRequest {
                table: table.to_owned(),
                key: key.clone(),
                level: encode_level(read.level, read.any_replica),
            }),
            keys => call::Call::BatchGet(v1::BatchGetRequest {
                table: table.to_owned(),
                keys: keys.to_vec(),
                level: encode_level(read.level, read.any_replica),
            }),
        },
        Request::Write(write) => call::Call::Write(encode_write(table, write)),
        Request::Scan(scan) => call::Call::ScanPage(encode_scan(table, scan)),
        Request::Changes(changes) => call::Call::Changes(encode_changes(table, changes)),
        Request::History { key, before, rows_max } => call::Call::History(v1::HistoryRequest {
            table: table.to_owned(),
            key: key.clone(),
            limit: *rows_max as u64,
            before: before.map(|version| version.0),
        }),
    };
    let deadline_ms = u32::try_from(patience.as_micros().div_ceil(1_000)).unwrap_or(u32::MAX).max(1);
    let table_id = table_id.map_or(0, |id| id.0);
    v1::Call { id, call: Some(call), deadline_ms, forwarded, table_id }
}

/// The response in an answer, or the error it tells of; `write` says whether the call could have had an effect.
pub fn decode_answer(answer: v1::Answer, write: bool) -> Result<Response> {
    match answer.answer {
        Some(answer::Answer::Get(body)) => body.try_into(),
        Some(answer::Answer::BatchGet(body)) => body.try_into(),
        Some(answer::Answer::Write(body)) => body.try_into(),
        Some(answer::Answer::ScanPage(body)) => body.try_into(),
        Some(answer::Answer::Changes(body)) => body.try_into(),
        Some(answer::Answer::Failure(failure)) => Err(error_of_failure(failure, write)),
        None => Err(Error::internal("the answer is empty, or of a kind this client does not know")),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::types::*;

    fn bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 1..20).prop_map(Bytes::from)
    }

    fn timestamp() -> impl Strategy<Value = Timestamp> {
        any::<u64>().prop_map(Timestamp)
    }

    fn level() -> impl Strategy<Value = ReadLevel> {
        prop_oneof![
            Just(ReadLevel::Linearizable),
            Just(ReadLevel::Any),
            timestamp().prop_map(|timestamp| ReadLevel::AtLeast(Token { timestamp })),
            timestamp().prop_map(ReadLevel::AsOf),
            (0..u64::from(u32::MAX)).prop_map(|millis| ReadLevel::MaxAge(Duration::from_millis(millis))),
        ]
    }

    fn test() -> impl Strategy<Value = Test> {
        prop_oneof![
            timestamp().prop_map(Test::Version),
            Just(Test::Absent),
            Just(Test::Present),
            bytes().prop_map(Test::Value),
        ]
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            (bytes(), prop::option::of(1..u64::MAX)).prop_map(|(value, ttl_ms)| Action::Put { value, ttl_ms }),
            Just(Action::Delete),
            any::<i64>().prop_map(|delta| Action::Increment { delta }),
            timestamp().prop_map(|to| Action::Rollback { to }),
        ]
    }

    fn write() -> impl Strategy<Value = Write> {
        let id = (any::<u64>(), any::<u64>(), 1..u64::MAX).prop_map(|(client, sequence, issued_ms)| RequestId {
            client,
            sequence,
            issued_ms,
        });
        let condition = (bytes(), test()).prop_map(|(key, test)| Condition { key, test });
        let operation = (bytes(), action()).prop_map(|(key, action)| Operation { key, action });
        (prop::option::of(id), prop::collection::vec(condition, 0..4), prop::collection::vec(operation, 1..4))
            .prop_map(|(request, conditions, operations)| Write { request, conditions, operations })
    }

    fn bounds() -> impl Strategy<Value = ScanBounds> {
        prop_oneof![
            Just(ScanBounds::All),
            bytes().prop_map(ScanBounds::Tag),
            bytes().prop_map(ScanBounds::Prefix),
            (prop::option::of(bytes()), prop::option::of(bytes())).prop_map(|(from, to)| ScanBounds::Range(from, to)),
        ]
    }

    fn request() -> impl Strategy<Value = Request> {
        let scan = (
            bounds(),
            any::<bool>(),
            1..4_000usize,
            prop::option::of(bytes()),
            any::<bool>(),
            (level(), any::<bool>()),
        );
        prop_oneof![
            (prop::collection::vec(bytes(), 1..5), level(), any::<bool>())
                .prop_map(|(keys, level, any_replica)| Request::Read(Read { keys, level, any_replica })),
            write().prop_map(Request::Write),
            scan.prop_map(|(bounds, reverse, rows_max, cursor, count_only, (level, any_replica))| {
                Request::Scan(ScanRequest { bounds, reverse, rows_max, cursor, count_only, level, any_replica })
            }),
            (bytes(), prop::option::of(timestamp()), 1..4_000usize)
                .prop_map(|(key, before, rows_max)| Request::History { key, before, rows_max }),
            changes().prop_map(Request::Changes),
        ]
    }

    fn changes() -> impl Strategy<Value = ChangesRequest> {
        let only = prop_oneof![Just(None), Just(Some(ChangeKind::Put)), Just(Some(ChangeKind::Delete))];
        let begin = prop_oneof![
            Just((None, None)),
            bytes().prop_map(|cursor| (Some(cursor), None)),
            timestamp().prop_map(|after| (None, Some(after))),
        ];
        (bounds(), begin, any::<bool>(), only, 1..4_000usize, 0..60_000u64).prop_map(
            |(bounds, (cursor, after), with_previous, only, changes_max, millis)| ChangesRequest {
                bounds,
                cursor,
                after,
                with_previous,
                only,
                changes_max,
                wait: Duration::from_millis(millis),
            },
        )
    }

    fn change() -> impl Strategy<Value = Change> {
        let what = (prop::option::of(bytes()), prop::option::of(any::<u64>()), prop::option::of(versioned()));
        (bytes(), timestamp(), what).prop_map(|(key, timestamp, (value, expires_ms, previous))| Change {
            key,
            timestamp,
            value,
            expires_ms,
            previous,
        })
    }

    fn header() -> impl Strategy<Value = Header> {
        let role = prop_oneof![Just(Role::Leader), Just(Role::Follower), Just(Role::Learner)];
        (any::<u64>(), any::<u64>(), role, timestamp(), prop::option::of(any::<u32>()), any::<bool>()).prop_map(
            |(shard, node, role, as_of, age, degraded)| Header {
                cluster: ClusterId(shard ^ node),
                node: NodeId(node),
                shard: ShardId(shard),
                epoch: Epoch(shard >> 3),
                role,
                as_of,
                age: age.map(|micros| Duration::from_micros(micros.into())),
                degraded,
            },
        )
    }

    fn versioned() -> impl Strategy<Value = Versioned> {
        (timestamp(), bytes(), prop::option::of(any::<u64>())).prop_map(|(timestamp, value, expires_ms)| Versioned {
            timestamp,
            value,
            expires_ms,
        })
    }

    fn response() -> impl Strategy<Value = Response> {
        let value = (header(), prop::option::of(versioned())).prop_map(|(header, body)| Answer { header, body });
        let observed = (any::<u32>(), prop::option::of(versioned()))
            .prop_map(|(condition, current)| Observed { condition, current });
        let outcome = (
            any::<bool>(),
            timestamp(),
            prop::collection::vec(prop::option::of(any::<i64>()), 0..4),
            prop::option::of(observed),
        )
            .prop_map(|(applied, timestamp, integers, observed)| Outcome {
                applied,
                timestamp,
                integers,
                observed,
            });
        let row = (bytes(), timestamp(), prop::option::of(bytes()), prop::option::of(any::<u64>()))
            .prop_map(|(key, timestamp, value, expires_ms)| Row { key, timestamp, value, expires_ms });
        let page = (prop::collection::vec(row, 0..4), any::<u64>(), prop::option::of(bytes()))
            .prop_map(|(rows, count, cursor)| Page { rows, count, cursor });
        prop_oneof![
            prop::collection::vec(value, 1..4).prop_map(Response::Values),
            (header(), outcome).prop_map(|(header, body)| Response::Written(Answer { header, body })),
            (header(), page).prop_map(|(header, body)| Response::Page(Answer { header, body })),
            (header(), prop::collection::vec(change(), 0..4), bytes()).prop_map(|(header, changes, cursor)| {
                Response::Changes(Answer { header, body: ChangesPage { changes, cursor } })
            }),
        ]
    }

    proptest! {
        #[test]
        fn calls_survive_the_wire(request in request(), id: u64, millis in 1..u32::MAX, forwarded: bool) {
            let patience = Duration::from_millis(millis.into());
            let encoded = encode_call(id, "orders", &request, patience, forwarded).encode_to_vec();
            let arrived = call(v1::Call::decode(&encoded[..]).unwrap(), &Limits::default());
            prop_assert_eq!((arrived.id, arrived.patience, arrived.forwarded), (id, Some(patience), forwarded));
            prop_assert_eq!(arrived.question.unwrap(), ("orders".to_owned(), request));
        }

        #[test]
        fn answers_survive_the_wire(response in response(), id: u64, single: bool) {
            let single = single && matches!(&response, Response::Values(values) if values.len() == 1);
            let encoded = answer(id, single, Ok(response.clone())).encode_to_vec();
            let arrived = v1::Answer::decode(&encoded[..]).unwrap();
            prop_assert_eq!(arrived.id, id);
            prop_assert_eq!(decode_answer(arrived, false).unwrap(), response);
        }
    }

    #[test]
    fn an_unfit_call_is_refused_under_its_id() {
        let refused = call(v1::Call { id: 9, ..Default::default() }, &Limits::default());
        assert_eq!(refused.id, 9);
        assert_eq!(refused.patience, None);
        let error = refused.question.expect_err("it asks nothing");
        let told = decode_answer(answer(9, false, Err(error.clone())), true).expect_err("refused");
        assert_eq!(told, error);
    }

    #[test]
    fn patience_is_never_rounded_to_for_ever() {
        let request = Request::Read(Read { keys: vec!["k".into()], level: ReadLevel::Any, any_replica: false });
        let sent = |patience| encode_call(1, "t", &request, patience, false).deadline_ms;
        assert_eq!(sent(Duration::ZERO), 1);
        assert_eq!(sent(Duration::from_micros(1)), 1);
        assert_eq!(sent(Duration::from_micros(1_001)), 2);
        assert_eq!(sent(Duration::MAX), u32::MAX);
    }

    #[test]
    fn an_answer_of_the_wrong_shape_is_a_fault_not_a_panic() {
        let two = Response::Values(vec![]);
        assert_eq!(decode_answer(answer(1, true, Ok(two)), false).expect_err("unfit").reason, Reason::Internal);
        let headless = v1::Answer { id: 1, answer: Some(answer::Answer::Get(v1::GetResponse::default())) };
        assert_eq!(decode_answer(headless, false).expect_err("unfit").reason, Reason::Internal);
        let empty = v1::Answer { id: 1, answer: None };
        assert_eq!(decode_answer(empty, true).expect_err("unfit").reason, Reason::Internal);
    }
}
