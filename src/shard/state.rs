//! What a replica knows of its shard beside the data: the applied state, stored in the batch of every effect.

use bytes::Bytes;
use prost::Message;

use crate::keyspace::Watermarks;
use crate::types::{Epoch, Error, Reason, Result, ShardId, TableId, Timestamp};
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
    /// When versions were made.
    pub written: Written,
    /// How much of what has changed may be gone, part by part.
    pub trimmed: Trimmed,
    /// How far the shard has come in its sources, if it is one of a view.
    pub watermarks: Watermarks,
    /// Raft's position and membership, opaque here.
    pub mark: Option<Bytes>,
}

/// After so long without a version, in milliseconds, another one begins a new spell of writing.
const SPELL_GAP_MS: u64 = 30_000;

/// When versions were made in a shard: enough to say of nearly every moment what the last one before it was. An idle shard is
/// not one whose changes were trimmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The last one.
    last: Timestamp,
    /// The first of those that came without a long gap until the last one.
    since: Timestamp,
    /// The last one before that.
    before: Timestamp,
}

impl Written {
    /// A version is made.
    pub fn note(&mut self, timestamp: Timestamp) {
        if timestamp.millis() > self.last.millis().saturating_add(SPELL_GAP_MS) {
            (self.before, self.since) = (self.last, timestamp);
        }
        self.last = timestamp;
    }

    /// A bound on the last version at or before a moment.
    fn until(&self, moment: Timestamp) -> Timestamp {
        if moment >= self.last {
            self.last
        } else if moment < self.since {
            self.before.min(moment)
        } else {
            moment
        }
    }

    /// That of a shard that takes another over.
    fn and(&self, other: &Written) -> Written {
        if self.last == Timestamp::ZERO || other.last == Timestamp::ZERO {
            // One of them was never written to.
            return if self.last == Timestamp::ZERO { *other } else { *self };
        }
        Written {
            last: self.last.max(other.last),
            since: self.since.min(other.since),
            before: self.before.max(other.before),
        }
    }
}

/// How much of what has changed may be gone: parts of the range, each from its key on, with the last version that may have been
/// trimmed there. Nothing, where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    parts: Vec<(Bytes, Timestamp)>,
}

impl Trimmed {
    /// The last version that may be gone from any part of `[start, end)`.
    pub fn within(&self, start: &[u8], end: &[u8]) -> Timestamp {
        let ends = self.parts.iter().skip(1).map(|(start, _)| Some(start)).chain([None]);
        let overlapping = self
            .parts
            .iter()
            .zip(ends)
            .filter(|((from, _), to)| &from[..] < end && to.is_none_or(|to| start < &to[..]));
        overlapping.map(|((_, upto), _)| *upto).max().unwrap_or_default()
    }

    fn raise(&mut self, start: &Bytes, upto: Timestamp) {
        if self.parts.is_empty() {
            self.parts.push((start.clone(), Timestamp::ZERO));
        }
        self.parts.iter_mut().for_each(|(_, known)| *known = upto.max(*known));
        self.parts.dedup_by(|next, part| next.1 == part.1);
    }

    fn split_off(&mut self, at: &Bytes) -> Trimmed {
        let first = self.parts.partition_point(|(start, _)| start < at);
        let mut right = self.parts.split_off(first);
        if let Some((_, upto)) = self.parts.last()
            && right.first().is_none_or(|(start, _)| start > at)
        {
            right.insert(0, (at.clone(), *upto));
        }
        Trimmed { parts: right }
    }
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
            written: Written::default(),
            trimmed: Trimmed::default(),
            watermarks: Watermarks::default(),
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

    /// Versions replaced at or before this may go from now on.
    pub fn raise_horizon(&mut self, horizon: Timestamp) {
        if horizon > self.horizon {
            self.horizon = horizon;
            self.trimmed.raise(&self.start, self.written.until(horizon));
        }
    }

    /// Takes over what is known of the past of the right neighbour, whose range it gets.
    pub fn take_past(&mut self, mut right: State) {
        let horizon = self.horizon.max(right.horizon);
        self.raise_horizon(horizon);
        right.raise_horizon(horizon);
        if self.trimmed != right.trimmed {
            // As far as either says anything, both do.
            self.trimmed.raise(&self.start, Timestamp::ZERO);
            right.trimmed.raise(&right.start, Timestamp::ZERO);
        }
        self.trimmed.parts.append(&mut right.trimmed.parts);
        self.written = self.written.and(&right.written);
        self.watermarks.append(right.watermarks);
    }

    /// Gives the past of the right part of the range away.
    pub fn split_past(&mut self, at: &Bytes) -> (Trimmed, Watermarks) {
        (self.trimmed.split_off(at), self.watermarks.split_off(at))
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
            written_last: self.written.last.0,
            written_since: self.written.since.0,
            written_before: self.written.before.0,
            trimmed: (self.trimmed.parts.iter())
                .map(|(start, upto)| log::Trimmed { start: start.clone(), upto: upto.0 })
                .collect(),
            watermarks: self.watermarks.encode(),
        };
        record.encode_to_vec().into()
    }

    /// Reads the stored form.
    pub fn decode(bytes: Bytes) -> Result<State> {
        let record = log::AppliedState::decode(bytes)
            .map_err(|error| Error::new(Reason::Corruption, format!("an applied state cannot be decoded: {error}")))?;
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
            written: Written {
                last: Timestamp(record.written_last),
                since: Timestamp(record.written_since),
                before: Timestamp(record.written_before),
            },
            trimmed: Trimmed {
                parts: record.trimmed.into_iter().map(|part| (part.start, Timestamp(part.upto))).collect(),
            },
            watermarks: Watermarks::decode(record.watermarks)
                .ok_or_else(|| Error::new(Reason::Corruption, "the watermarks of a view's shard cannot be decoded"))?,
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
    fn an_idle_shard_is_not_one_whose_changes_are_gone() {
        let hour = 3_600_000;
        let at = Timestamp::from_millis;
        let mut state = State::fresh(TableId(4), "a".into(), "z".into(), Epoch(1));
        let gone = |state: &State| state.trimmed.within(b"a", b"z");
        state.raise_horizon(at(10 * hour));
        assert_eq!(gone(&state), Timestamp::ZERO, "nothing was ever written");
        state.written.note(at(11 * hour));
        state.raise_horizon(at(12 * hour));
        assert_eq!(gone(&state), at(11 * hour), "that may be gone, and nothing came since");
        // Written to again after a long time, and again: what lies between was never there.
        state.written.note(at(20 * hour));
        state.written.note(at(20 * hour + 1_000));
        state.raise_horizon(at(19 * hour));
        assert_eq!(gone(&state), at(11 * hour));
        state.raise_horizon(at(20 * hour + 500));
        assert_eq!(gone(&state), at(20 * hour + 500));
        assert_eq!(State::decode(state.encode()).unwrap(), state);
    }

    #[test]
    fn the_past_of_each_part_stays_its_own_over_merges_and_splits() {
        let at = Timestamp::from_millis;
        let mut left = State::fresh(TableId(4), "a".into(), "m".into(), Epoch(1));
        left.written.note(at(1));
        left.raise_horizon(at(2));
        let mut right = State::fresh(TableId(4), "m".into(), "z".into(), Epoch(1));
        right.written.note(at(900_000));
        right.written.note(at(900_001));
        right.raise_horizon(at(900_000));
        let mut both = State { end: "z".into(), ..left.clone() };
        both.take_past(right);
        assert_eq!(both.horizon, at(900_000));
        assert_eq!((both.trimmed.within(b"a", b"m"), both.trimmed.within(b"m", b"z")), (at(1), at(900_000)));
        assert_eq!(both.trimmed.within(b"l", b"n"), at(900_000));
        for (cut, first, second) in
            [("c", at(1), at(900_000)), ("m", at(1), at(900_000)), ("p", at(900_000), at(900_000))]
        {
            let mut one = both.clone();
            let (other, _) = one.split_past(&Bytes::copy_from_slice(cut.as_bytes()));
            assert_eq!((one.trimmed.within(b"a", cut.as_bytes()), other.within(cut.as_bytes(), b"z")), (first, second));
        }
        let mut none = State::fresh(TableId(4), "a".into(), "m".into(), Epoch(1));
        none.take_past(State::fresh(TableId(4), "m".into(), "z".into(), Epoch(1)));
        assert_eq!(none.trimmed.within(b"a", b"z"), Timestamp::ZERO);
    }

    #[test]
    fn requests_live_for_the_retention() {
        let now = Timestamp::from_millis(REQUEST_RETENTION_MS + 5);
        assert_eq!(requests_from(now), 5);
        assert_eq!(requests_from(Timestamp::ZERO), 0);
    }
}
