//! What servers answer: plain responses to protobuf and back.

use std::time::Duration;

use super::proto::v1;
use crate::types::{
    Answer, Change, ChangesPage, ClusterId, Epoch, Error, Header, NodeId, Observed, Outcome, Page, Response, Result,
    Role, Row, ShardId, Timestamp, Versioned,
};

/// An answer of another kind than the question's, or one that lacks something: a fault of the program that sent it.
fn unfit(what: &str) -> Error {
    Error::internal(format!("the answer does not fit the question: {what}"))
}

/// Where an answer came from, as it is told on the wire.
pub fn encode_header(header: Header) -> v1::Header {
    let role = match header.role {
        Role::Leader => v1::Role::Leader,
        Role::Follower => v1::Role::Follower,
        Role::Learner => v1::Role::Learner,
    };
    v1::Header {
        cluster: header.cluster.0,
        node: header.node.0,
        shard: header.shard.0,
        epoch: header.epoch.0,
        role: role.into(),
        as_of: header.as_of.0,
        age_us: header.age.map(micros_at_least),
        degraded: header.degraded,
    }
}

/// A fraction counts as a whole one: no answer is older than it says.
fn micros_at_least(age: Duration) -> u64 {
    u64::try_from(age.as_nanos().div_ceil(1_000)).unwrap_or(u64::MAX)
}

fn decode_header(header: Option<v1::Header>) -> Result<Header> {
    let header = header.ok_or_else(|| unfit("it has no header"))?;
    let role = match header.role() {
        v1::Role::Leader => Role::Leader,
        v1::Role::Follower => Role::Follower,
        v1::Role::Learner => Role::Learner,
        v1::Role::Unspecified => return Err(unfit("its header names no role")),
    };
    Ok(Header {
        cluster: ClusterId(header.cluster),
        node: NodeId(header.node),
        shard: ShardId(header.shard),
        epoch: Epoch(header.epoch),
        role,
        as_of: Timestamp(header.as_of),
        age: header.age_us.map(Duration::from_micros),
        degraded: header.degraded,
    })
}

fn encode_versioned(versioned: Versioned) -> v1::Versioned {
    v1::Versioned { version: versioned.timestamp.0, value: versioned.value, expires_ms: versioned.expires_ms }
}

fn decode_versioned(versioned: v1::Versioned) -> Versioned {
    Versioned { timestamp: Timestamp(versioned.version), value: versioned.value, expires_ms: versioned.expires_ms }
}

fn encode_value(answer: Answer<Option<Versioned>>) -> v1::GetResponse {
    v1::GetResponse { header: Some(encode_header(answer.header)), found: answer.body.map(encode_versioned) }
}

fn decode_value(answer: v1::GetResponse) -> Result<Answer<Option<Versioned>>> {
    Ok(Answer { header: decode_header(answer.header)?, body: answer.found.map(decode_versioned) })
}

/// Fits a response to a read of one key.
impl TryFrom<Response> for v1::GetResponse {
    type Error = Error;

    fn try_from(response: Response) -> Result<v1::GetResponse> {
        match response {
            Response::Values(values) if values.len() == 1 => {
                values.into_iter().next().map(encode_value).ok_or_else(|| unfit("no value"))
            }
            _ => Err(unfit("not one value")),
        }
    }
}

impl TryFrom<Response> for v1::BatchGetResponse {
    type Error = Error;

    fn try_from(response: Response) -> Result<v1::BatchGetResponse> {
        match response {
            Response::Values(values) => {
                Ok(v1::BatchGetResponse { answers: values.into_iter().map(encode_value).collect() })
            }
            _ => Err(unfit("not values")),
        }
    }
}

impl TryFrom<Response> for v1::WriteResponse {
    type Error = Error;

    fn try_from(response: Response) -> Result<v1::WriteResponse> {
        let Response::Written(Answer { header, body }) = response else { return Err(unfit("not a write's")) };
        Ok(v1::WriteResponse {
            header: Some(encode_header(header)),
            applied: body.applied,
            version: body.timestamp.0,
            integers: body.integers.into_iter().map(|value| v1::Integer { value }).collect(),
            observed: body.observed.map(|observed| v1::Observed {
                condition: observed.condition,
                current: observed.current.map(encode_versioned),
            }),
        })
    }
}

impl TryFrom<Response> for v1::ScanResponse {
    type Error = Error;

    fn try_from(response: Response) -> Result<v1::ScanResponse> {
        let Response::Page(Answer { header, body }) = response else { return Err(unfit("not a page")) };
        let rows = body.rows.into_iter().map(|row| v1::Row {
            key: row.key,
            version: row.timestamp.0,
            value: row.value,
            expires_ms: row.expires_ms,
        });
        Ok(v1::ScanResponse {
            header: Some(encode_header(header)),
            rows: rows.collect(),
            count: body.count,
            cursor: body.cursor,
        })
    }
}

impl TryFrom<Response> for v1::ChangesResponse {
    type Error = Error;

    fn try_from(response: Response) -> Result<v1::ChangesResponse> {
        let Response::Changes(Answer { header, body }) = response else { return Err(unfit("not changes")) };
        let changes = body.changes.into_iter().map(|change| v1::Change {
            key: change.key,
            version: change.timestamp.0,
            value: change.value,
            expires_ms: change.expires_ms,
            previous: change.previous.map(encode_versioned),
        });
        Ok(v1::ChangesResponse { header: Some(encode_header(header)), changes: changes.collect(), cursor: body.cursor })
    }
}

impl TryFrom<v1::ChangesResponse> for Response {
    type Error = Error;

    fn try_from(answer: v1::ChangesResponse) -> Result<Response> {
        let changes = answer.changes.into_iter().map(|change| Change {
            key: change.key,
            timestamp: Timestamp(change.version),
            value: change.value,
            expires_ms: change.expires_ms,
            previous: change.previous.map(decode_versioned),
        });
        let body = ChangesPage { changes: changes.collect(), cursor: answer.cursor };
        Ok(Response::Changes(Answer { header: decode_header(answer.header)?, body }))
    }
}

impl TryFrom<v1::GetResponse> for Response {
    type Error = Error;

    fn try_from(answer: v1::GetResponse) -> Result<Response> {
        Ok(Response::Values(vec![decode_value(answer)?]))
    }
}

impl TryFrom<v1::BatchGetResponse> for Response {
    type Error = Error;

    fn try_from(answer: v1::BatchGetResponse) -> Result<Response> {
        answer.answers.into_iter().map(decode_value).collect::<Result<_>>().map(Response::Values)
    }
}

impl TryFrom<v1::WriteResponse> for Response {
    type Error = Error;

    fn try_from(answer: v1::WriteResponse) -> Result<Response> {
        let body = Outcome {
            applied: answer.applied,
            timestamp: Timestamp(answer.version),
            integers: answer.integers.into_iter().map(|integer| integer.value).collect(),
            observed: answer.observed.map(|observed| Observed {
                condition: observed.condition,
                current: observed.current.map(decode_versioned),
            }),
        };
        Ok(Response::Written(Answer { header: decode_header(answer.header)?, body }))
    }
}

impl TryFrom<v1::ScanResponse> for Response {
    type Error = Error;

    fn try_from(answer: v1::ScanResponse) -> Result<Response> {
        let rows = answer.rows.into_iter().map(|row| Row {
            key: row.key,
            timestamp: Timestamp(row.version),
            value: row.value,
            expires_ms: row.expires_ms,
        });
        let body = Page { rows: rows.collect(), count: answer.count, cursor: answer.cursor };
        Ok(Response::Page(Answer { header: decode_header(answer.header)?, body }))
    }
}
