//! What a replica knows of its shard beside the data: the applied state, stored in the batch of every effect.

use bytes::Bytes;
use prost::Message;

use crate::types::{Epoch, Error, Result, ShardId, TableId, Timestamp};
use crate::wire::proto::internal as log;

/// How long the outcome of a request id is kept, and how old a request may be at most, in milliseconds. Long enough
/// for any client's retries and for clocks that differ by minutes; short enough that outcomes stay a small part of
/// the data.
pub const REQUEST_RETENTION_MS: u64 = 15 * 60 * 1_000;

/// Shards taken over that are remembered. Each is needed until the last replica of it is gone, which a node that is away
/// may still hold; one that is away for long is replaced.
pub const ABSORBED_MAX: usize = 64;

/// The oldest `issued_ms` that a shard still takes at `now`.
pub fn requests_from(now: Timestamp) -> u64 {
    now.millis().saturating_sub(REQUEST_RETENTION_MS)
}

/// The applied state of a replica. Equal on all replicas at the same applied position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The table the shard belongs to.
    pub table: TableId,
    /// First encoded key owned.
    pub start: Bytes,
    /// First encoded key no longer owned.
    pub end: Bytes,
    /// Raised with every change of the range.
    pub epoch: Epoch,
    /// The newest timestamp given out.
    pub last_timestamp: Timestamp,
    /// Versions replaced at or before this may be gone.
    pub horizon: Timestamp,
    /// Requests issued before this are refused as expired.
    pub requests_from_ms: u64,
    /// The newest `issued_ms` of any request seen.
    pub issued_max_ms: u64,
    /// The newest version that carries the outcome of its request: the horizon stays behind such versions for as long
    /// as their requests may come again.
    pub carried_until: Timestamp,
    /// The last entry that changed the range, or at least the epoch; 0 for none. The log up to it makes sense only to who
    /// began with the range that was, so it is removed, and whoever comes later begins with a snapshot.
    pub divided_at: u64,
    /// The left neighbour that takes over the range, if the shard is sealed: then nothing but the mark changes any more.
    pub sealed_for: Option<ShardId>,
    /// The shards that this one has taken over, or whose range it got from one that had: the newest
    /// `ABSORBED_MAX`. They are over, whatever a replica that slept thinks of them.
    pub absorbed: Vec<ShardId>,
    /// Raft's position and membership, opaque here.
    pub mark: Option<Bytes>,
}

impl State {
    /// The state of a shard that has applied nothing.
    pub fn fresh(table: TableId, start: Bytes, end: Bytes, epoch: Epoch) -> State {
        State {
            table,
            start,
            end,
            epoch,
            last_timestamp: Timestamp::ZERO,
            horizon: Timestamp::ZERO,
            requests_from_ms: 0,
            issued_max_ms: 0,
            carried_until: Timestamp::ZERO,
            divided_at: 0,
            sealed_for: None,
            absorbed: Vec::new(),
            mark: None,
        }
    }

    /// Whether the shard owns `encoded`, and answers for it.
    pub fn owns(&self, encoded: &[u8]) -> bool {
        self.sealed_for.is_none() && self.start <= encoded && encoded < self.end
    }

    /// Whether the shard owns all of `[start, end)`, and answers for it.
    pub fn owns_all(&self, start: &[u8], end: &[u8]) -> bool {
        self.sealed_for.is_none() && self.start <= start && end <= &self.end[..]
    }

    /// The stored form.
    pub fn encode(&self) -> Bytes {
        let record = log::AppliedState {
            mark: self.mark.clone().unwrap_or_default(),
            last_timestamp: self.last_timestamp.0,
            horizon: self.horizon.0,
            epoch: self.epoch.0,
            start: self.start.clone(),
            end: self.end.clone(),
            table: self.table.0,
            requests_from_ms: self.requests_from_ms,
            issued_max_ms: self.issued_max_ms,
            carried_until: self.carried_until.0,
            divided_at: self.divided_at,
            sealed_for: self.sealed_for.map_or(0, |left| left.0),
            absorbed: self.absorbed.iter().map(|shard| shard.0).collect(),
        };
        record.encode_to_vec().into()
    }

    /// Reads the stored form.
    pub fn decode(bytes: Bytes) -> Result<State> {
        let record = log::AppliedState::decode(bytes).map_err(|error| {
            Error::new(crate::types::Reason::Corruption, format!("an applied state cannot be decoded: {error}"))
        })?;
        Ok(State {
            table: TableId(record.table),
            start: record.start,
            end: record.end,
            epoch: Epoch(record.epoch),
            last_timestamp: Timestamp(record.last_timestamp),
            horizon: Timestamp(record.horizon),
            requests_from_ms: record.requests_from_ms,
            issued_max_ms: record.issued_max_ms,
            carried_until: Timestamp(record.carried_until),
            divided_at: record.divided_at,
            sealed_for: (record.sealed_for != 0).then_some(ShardId(record.sealed_for)),
            absorbed: record.absorbed.into_iter().map(ShardId).collect(),
            mark: (!record.mark.is_empty()).then_some(record.mark),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_comes_back_as_it_went() {
        let mut state = State::fresh(TableId(4), "a".into(), "b".into(), Epoch(2));
        assert_eq!(State::decode(state.encode()).unwrap(), state);
        state.mark = Some("m".into());
        state.last_timestamp = Timestamp(9);
        state.horizon = Timestamp(8);
        state.requests_from_ms = 7;
        state.issued_max_ms = 6;
        state.carried_until = Timestamp(5);
        state.divided_at = 4;
        assert_eq!(State::decode(state.encode()).unwrap(), state);
        assert!(state.owns(b"a") && state.owns(b"az") && !state.owns(b"b"));
        assert!(state.owns_all(b"a", b"b") && !state.owns_all(b"a", b"ba"));
        state.sealed_for = Some(ShardId(3));
        state.absorbed = vec![ShardId(9), ShardId(2)];
        assert_eq!(State::decode(state.encode()).unwrap(), state);
        assert!(!state.owns(b"a") && !state.owns_all(b"a", b"b"), "another is about to");
    }

    #[test]
    fn requests_live_for_the_retention() {
        let now = Timestamp::from_millis(REQUEST_RETENTION_MS + 5);
        assert_eq!(requests_from(now), 5);
        assert_eq!(requests_from(Timestamp::ZERO), 0);
    }
}
