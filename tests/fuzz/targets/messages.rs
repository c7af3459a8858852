//! Messages of clients and of other nodes, and what becomes of them inside.
//!
//! The first byte of an input names the message, the second the limits of the server. What must hold: nothing panics;
//! what a question becomes lies within the limits and is the same after it was passed on to another node; answers,
//! topologies, tables and errors come back as they went.
#![no_main]

mod support;

use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;
use trivet::keyspace::{Layout, ShardMap};
use trivet::node::{self, ask};
use trivet::raft::{Kind, carries_entries};
use trivet::types::{Action, Error, Limits, Request, Response, ScanBounds, TableId, Test};
use trivet::wire::admin::{ChecksumReport, ClusterStatus, NewTable, NodeDetails, ShardDetails, TableDetails, Topology};
use trivet::wire::proto::{internal, v1};
use trivet::wire::{self, Question};

fuzz_target!(|data: &[u8]| support::frugally(data, 1 << 20, check));

fn check(data: &[u8]) {
    let mut input = support::Pieces(data);
    let kind = input.byte();
    let choices = input.byte();
    let limits = if choices & 1 == 0 { Limits::default() } else { small() };
    let flag = choices & 2 != 0;
    let bytes = input.0;
    match kind {
        0 => call(bytes, &limits),
        1 => question::<v1::GetRequest>(bytes, &limits),
        2 => question::<v1::BatchGetRequest>(bytes, &limits),
        3 => question::<v1::PutRequest>(bytes, &limits),
        4 => question::<v1::DeleteRequest>(bytes, &limits),
        5 => question::<v1::IncrementRequest>(bytes, &limits),
        6 => question::<v1::CompareAndSwapRequest>(bytes, &limits),
        7 => question::<v1::RollbackRequest>(bytes, &limits),
        8 => question::<v1::WriteRequest>(bytes, &limits),
        9 => question::<v1::ScanRequest>(bytes, &limits),
        10 => question::<v1::HistoryRequest>(bytes, &limits),
        20 => answer(bytes, flag),
        21 => unary::<v1::GetResponse>(bytes),
        22 => unary::<v1::BatchGetResponse>(bytes),
        23 => unary::<v1::WriteResponse>(bytes),
        24 => unary::<v1::ScanResponse>(bytes),
        25 => failure(bytes, flag),
        26 => status(&mut input, flag),
        30 => there_and_back::<v1::TopologyResponse, Topology>(bytes),
        31 => there_and_back::<v1::StatusResponse, ClusterStatus>(bytes),
        32 => there_and_back::<v1::TableInfo, TableDetails>(bytes),
        33 => there_and_back::<v1::ShardInfo, ShardDetails>(bytes),
        34 => there_and_back::<v1::NodeInfo, NodeDetails>(bytes),
        35 => checksums(bytes),
        36 => new_table(bytes, &limits),
        37 => routing(bytes),
        40 => frames(bytes),
        41 => message::<internal::SnapshotChunk>(bytes),
        42 => message::<internal::AskRequest>(bytes),
        43 => body::<node::JoinAsk>(bytes),
        44 => body::<node::JoinAnswer>(bytes),
        45 => body::<node::IdentityAnswer>(bytes),
        46 => body::<node::ShardAsk>(bytes),
        47 => body::<node::NodeReport>(bytes),
        _ => {}
    }
}

/// Limits that short inputs exceed.
fn small() -> Limits {
    Limits {
        key_bytes_max: 3,
        value_bytes_max: 4,
        batch_operations_max: 2,
        batch_bytes_max: 8,
        page_rows_max: 5,
        page_bytes_max: 100,
        batch_get_keys_max: 2,
    }
}

/// The message in the bytes, if they are one; it is the same after it was encoded again.
fn decode<M: Message + Default + Debug + PartialEq>(bytes: &[u8]) -> Option<M> {
    // As it comes over the network: fields of bytes are slices of what was received.
    let message = M::decode(Bytes::copy_from_slice(bytes)).ok()?;
    assert_eq!(M::decode(&message.encode_to_vec()[..]).expect("it was just encoded"), message);
    Some(message)
}

fn message<M: Message + Default + Debug + PartialEq>(bytes: &[u8]) {
    decode::<M>(bytes);
}

fn question<Q: Question + Message + Default + Debug + PartialEq>(bytes: &[u8], limits: &Limits) {
    let Some(message) = decode::<Q>(bytes) else { return };
    if let Ok((table, request)) = Question::decode(message, limits) {
        taken(&table, request, limits);
    }
}

/// A question that was taken lies within the limits, and the node it is passed on to takes it for the same.
fn taken(table: &str, request: Request, limits: &Limits) {
    assert!(!table.is_empty());
    within(&request, limits);
    let mut again = request.clone();
    wire::check(&mut again, limits).expect("what was taken is taken again");
    assert_eq!(again, request);
    let call = wire::encode_call(7, table, &request, Duration::from_millis(9), true);
    let call = v1::Call::decode(&call.encode_to_vec()[..]).expect("it was just encoded");
    let arrived = wire::call(call, limits);
    assert_eq!((arrived.id, arrived.patience, arrived.forwarded), (7, Some(Duration::from_millis(9)), true));
    assert_eq!(arrived.question.expect("what was taken is taken again"), (table.to_owned(), request));
}

/// The limits, said a second time.
fn within(request: &Request, limits: &Limits) {
    let key = |key: &Bytes| assert!(!key.is_empty() && key.len() <= limits.key_bytes_max);
    let value = |value: &Bytes| assert!(value.len() <= limits.value_bytes_max);
    match request {
        Request::Read(read) => {
            assert!((1..=limits.batch_get_keys_max).contains(&read.keys.len()));
            read.keys.iter().for_each(key);
            assert!(read.keys.iter().map(Bytes::len).sum::<usize>() <= limits.batch_bytes_max);
        }
        Request::Write(write) => {
            assert!(!write.operations.is_empty());
            assert!(write.operations.len() + write.conditions.len() <= limits.batch_operations_max);
            assert!(write.request.is_none_or(|id| id.issued_ms > 0));
            let mut bytes = 0;
            for operation in &write.operations {
                key(&operation.key);
                bytes += operation.key.len();
                if let Action::Put { value: put, ttl_ms } = &operation.action {
                    value(put);
                    bytes += put.len();
                    assert_ne!(*ttl_ms, Some(0));
                }
            }
            for condition in &write.conditions {
                key(&condition.key);
                bytes += condition.key.len();
                if let Test::Value(expected) = &condition.test {
                    value(expected);
                    bytes += expected.len();
                }
            }
            assert!(bytes <= limits.batch_bytes_max);
        }
        Request::Scan(scan) => {
            assert!((1..=limits.page_rows_max).contains(&scan.rows_max));
            assert!(scan.cursor.as_ref().is_none_or(|cursor| !cursor.is_empty()));
            assert!(bounds(&scan.bounds).into_iter().all(|bound| bound.len() <= limits.key_bytes_max));
        }
        Request::Changes(changes) => {
            assert!((1..=limits.page_rows_max).contains(&changes.changes_max));
            assert!(changes.cursor.as_ref().is_none_or(|cursor| !cursor.is_empty()));
            assert!(changes.cursor.is_none() || changes.after.is_none());
            assert!(bounds(&changes.bounds).into_iter().all(|bound| bound.len() <= limits.key_bytes_max));
        }
        Request::History { key: of, rows_max, .. } => {
            key(of);
            assert!((1..=limits.page_rows_max).contains(rows_max));
        }
    }
}

/// The keys in the bounds of a scan.
fn bounds(bounds: &ScanBounds) -> Vec<&Bytes> {
    match bounds {
        ScanBounds::All => vec![],
        ScanBounds::Tag(one) | ScanBounds::Prefix(one) => vec![one],
        ScanBounds::Range(from, to) => from.iter().chain(to).collect(),
    }
}

/// A call keeps its id whatever is wrong with it, so that the refusal finds its caller.
fn call(bytes: &[u8], limits: &Limits) {
    let Some(message) = decode::<v1::Call>(bytes) else { return };
    let (id, deadline_ms, forwarded) = (message.id, message.deadline_ms, message.forwarded);
    let single = matches!(&message.call, Some(v1::call::Call::Get(_)));
    let arrived = wire::call(message, limits);
    assert_eq!((arrived.id, arrived.single, arrived.forwarded), (id, single, forwarded));
    assert_eq!(arrived.patience.map_or(0, |patience| patience.as_millis()), u128::from(deadline_ms));
    match arrived.question {
        Ok((table, request)) => taken(&table, request, limits),
        Err(error) => error_survives(&error, true),
    }
}

/// An answer decodes to what, encoded as a server does it, decodes to the same.
fn answer(bytes: &[u8], write: bool) {
    let Some(message) = decode::<v1::Answer>(bytes) else { return };
    let id = message.id;
    let single = matches!(&message.answer, Some(v1::answer::Answer::Get(_)));
    match wire::decode_answer(message, write) {
        Ok(response) => {
            for single in [single, false] {
                let said = wire::answer(id, single, Ok(response.clone()));
                let arrived = v1::Answer::decode(&said.encode_to_vec()[..]).expect("it was just encoded");
                assert_eq!(arrived.id, id);
                assert_eq!(wire::decode_answer(arrived, write).expect("it was an answer"), response);
            }
        }
        Err(error) => error_survives(&error, write),
    }
}

fn unary<A>(bytes: &[u8])
where
    A: Message + Default + Debug + PartialEq + TryFrom<Response, Error = Error>,
    Response: TryFrom<A, Error = Error>,
{
    let Some(message) = decode::<A>(bytes) else { return };
    if let Ok(response) = Response::try_from(message) {
        let said = A::try_from(response.clone()).expect("it is of this kind");
        assert_eq!(Response::try_from(said).expect("it was just said"), response);
    }
}

fn failure(bytes: &[u8], write: bool) {
    let Some(message) = decode::<v1::Failure>(bytes) else { return };
    error_survives(&wire::error_of_failure(message, write), write);
}

/// A status as some server or proxy may send it, its details included.
fn status(input: &mut support::Pieces<'_>, write: bool) {
    let code = tonic::Code::from_i32(i32::from(input.byte()));
    let text = String::from_utf8_lossy(input.piece()).into_owned();
    let status = tonic::Status::with_details(code, text, Bytes::copy_from_slice(input.0));
    error_survives(&wire::error_of_status(&status, write), write);
    if let Some(explained) = wire::explain(&status) {
        assert!(wire::explain(&explained).is_none(), "once is enough");
        error_survives(&wire::error_of_status(&explained, write), write);
    }
}

/// What arrives is what was sent, but for the wait that is advised where none was named; and that comes only once.
fn error_survives(error: &Error, write: bool) {
    let by_failure = |error: &Error| wire::error_of_failure(wire::to_failure(error), write);
    let by_status = |error: &Error| wire::error_of_status(&wire::to_status(error), write);
    for way in [&by_failure as &dyn Fn(&Error) -> Error, &by_status] {
        let arrived = way(error);
        let facts = |error: &Error| (error.reason, error.message.clone(), error.leader);
        assert_eq!(facts(&arrived), facts(error));
        let again = way(&arrived);
        assert_eq!((facts(&again), again.retry_after), (facts(&arrived), arrived.retry_after));
    }
    // A failure counts whole milliseconds.
    if let Some(wait) = error.retry_after.filter(|wait| wait.subsec_nanos() % 1_000_000 == 0) {
        assert_eq!(by_failure(error).retry_after, Some(wait));
    }
}

fn there_and_back<M, T>(bytes: &[u8])
where
    M: Message + Default + Debug + PartialEq + From<T>,
    T: TryFrom<M> + Clone + PartialEq + Debug,
    T::Error: Debug,
{
    let Some(message) = decode::<M>(bytes) else { return };
    if let Ok(plain) = T::try_from(message) {
        assert_eq!(T::try_from(M::from(plain.clone())).expect("it was just made"), plain);
    }
}

/// Replicas that could not answer tell of errors, which gain an advised wait on the way.
fn checksums(bytes: &[u8]) {
    let Some(message) = decode::<v1::ChecksumResponse>(bytes) else { return };
    let settled = ChecksumReport::from(v1::ChecksumResponse::from(ChecksumReport::from(message)));
    assert_eq!(ChecksumReport::from(v1::ChecksumResponse::from(settled.clone())), settled);
}

fn new_table(bytes: &[u8], limits: &Limits) {
    let Some(message) = decode::<v1::CreateTableRequest>(bytes) else { return };
    let Ok(table) = NewTable::decode(message, limits) else { return };
    assert_eq!(NewTable::decode(table.clone().encode(), limits), Ok(table.clone()));
    // What was taken can be cut into shards (0: one for each node), unless its split points do not ascend.
    let layout = Layout { table: TableId(5), partitioning: table.partitioning.clone() };
    let shards = if table.shards == 0 { 3 } else { table.shards };
    match layout.initial_ranges(shards, &table.split_points) {
        Ok(ranges) => assert_eq!(ranges.len(), shards as usize),
        Err(error) => assert!(!table.split_points.is_empty(), "{error}"),
    }
}

/// A client routes by what it was told only if that is a total map.
fn routing(bytes: &[u8]) {
    let Some(message) = decode::<v1::TopologyResponse>(bytes) else { return };
    let Ok(topology) = Topology::try_from(message) else { return };
    for details in &topology.tables {
        let layout = Layout::of(&details.table);
        let Ok(map) = ShardMap::new(details.shards.iter().map(ShardDetails::descriptor), &layout) else { continue };
        for shard in &map {
            assert_eq!(map.locate(&shard.start).id, shard.id);
            assert_eq!(map.by_id(shard.id), Some(shard));
            assert!(!layout.describe(&shard.start, &shard.end).is_empty());
        }
        for key in [&b""[..], b"k", b"{tag}k", &[0xFF; 9]] {
            let encoded = layout.encode(key);
            // Ids above the reserved ones cannot be given to tables, and have no range of their own.
            let (start, end) = layout.table_range();
            let known = start <= encoded && encoded < end;
            assert_eq!(map.locate(&encoded).contains(&encoded), known, "{:?}", details.table);
        }
    }
}

fn frames(bytes: &[u8]) {
    let Some(batch) = decode::<internal::FrameBatch>(bytes) else { return };
    for frame in batch.frames {
        let kind = Kind::from_number(frame.kind);
        assert!(kind.is_none_or(|kind| kind.number() == frame.kind));
        if let Some(kind) = kind {
            let carries = carries_entries(kind, &frame.payload);
            assert!(!carries || kind == Kind::Append);
        }
        trivet::fuzzing::raft(&frame.payload);
    }
}

/// A question or an answer between nodes, in JSON.
fn body<T: DeserializeOwned + Serialize + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(value) = ask::decode::<T>(bytes) {
        assert_eq!(ask::decode::<T>(&ask::encode(&value)).expect("it was just encoded"), value);
    }
}
