//! What request ids brought about: records beside the data, and a cache of the recent ones.
//!
//! Promise: as long as a request is not older than the retention, a repeat finds the first outcome. Requests older
//! than that are refused before they get here (`requests_from_ms`), so a record may go once its request would be
//! refused.
//!
//! The outcome of the commonest request, a single put, is known from the version that it made. If the table keeps its
//! history for longer than requests are remembered, the version carries the id of its request (`storage::mvcc::Origin`)
//! and there is no record: half of what storage would have to take in. A version is found again by the time at which the
//! request says it was issued; if that is far from the time of the version ([`is_carried`]), there is a record after all.
//!
//! A record lies in family `Data` under the encoded key of the command's first key, so it moves with its range. So a
//! request id is one with its first key: the same id with another payload is refused if that key is the same, and is
//! another request if it is not. So it is with the time of issue, which a repeat must give as it was. The cache answers
//! "never seen" without touching the disk: it holds *every* record issued at or after `covered_from_ms`. That is a
//! statement about `issued_ms` alone, whatever the clocks of clients do.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use prost::Message;

use super::state::REQUEST_RETENTION_MS;
use crate::storage::mvcc::{self, Origin};
use crate::storage::{self, Reader};
use crate::types::{Action, Error, Observed, Outcome, Reason, RequestId, Result, Timestamp, Versioned, Write};
use crate::wire::proto::internal as log;

/// Outcomes kept in memory per replica: several seconds of writes of a busy shard, about 2 MB.
pub const RECENT_OUTCOMES_MAX: usize = 8_192;

/// The least history of a table whose versions carry outcomes: ample, so that what keeps the horizon behind them
/// ([`super::machine`]) never has to.
pub const CARRYING_HISTORY_MS_MIN: u64 = 2 * REQUEST_RETENTION_MS;
/// How long before the time of its issue a request may be decided, by the clocks, for its version to carry its outcome.
const CARRIED_EARLY_MS: u64 = 500;
/// How long after it: a busy shard's first attempt. Repeats look at all versions of a key in this time.
const CARRIED_LATE_MS: u64 = 2_000;

/// What a request brought about: its outcome, or its deterministic refusal.
pub type Verdict = Result<Outcome>;

/// A stored verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of the command (`Command::fingerprint`).
    pub fingerprint: u32,
    /// The position at which it was decided.
    pub decided: Timestamp,
    /// What came of it.
    pub verdict: Verdict,
}

impl Record {
    /// The answer to a repeat: the same verdict, or `REQUEST_MISMATCH` if the repeat asks for something else.
    pub fn answer(&self, fingerprint: u32) -> Verdict {
        if self.fingerprint == fingerprint {
            self.verdict.clone()
        } else {
            Err(Error::new(
                Reason::RequestMismatch,
                "this request id was used for another write; give every write an id of its own",
            ))
        }
    }

    /// The stored form.
    pub fn encode(&self) -> Bytes {
        let mut record =
            log::OutcomeRecord { fingerprint: self.fingerprint, timestamp: self.decided.0, ..Default::default() };
        match &self.verdict {
            Ok(outcome) => {
                record.applied = outcome.applied;
                record.integers = outcome.integers.iter().map(|value| log::OptionalInteger { value: *value }).collect();
                if let Some(observed) = &outcome.observed {
                    record.failed_condition = Some(observed.condition);
                    record.observed = observed.current.as_ref().map(|current| log::ObservedValue {
                        timestamp: current.timestamp.0,
                        value: current.value.clone(),
                        expires_ms: current.expires_ms,
                    });
                }
            }
            Err(error) => {
                record.reason = Some(error.reason.as_str().to_owned());
                record.message = Some(error.message.clone());
            }
        }
        record.encode_to_vec().into()
    }

    /// Reads the stored form.
    pub fn decode(bytes: Bytes) -> Result<Record> {
        let record = log::OutcomeRecord::decode(bytes)
            .map_err(|error| Error::new(Reason::Corruption, format!("an outcome record cannot be decoded: {error}")))?;
        let verdict = match record.reason {
            Some(reason) => {
                Err(Error::new(Reason::parse(&reason).unwrap_or(Reason::Internal), record.message.unwrap_or_default()))
            }
            None => Ok(Outcome {
                applied: record.applied,
                timestamp: Timestamp(record.timestamp),
                integers: record.integers.into_iter().map(|integer| integer.value).collect(),
                observed: record.failed_condition.map(|condition| Observed {
                    condition,
                    current: record.observed.map(|current| Versioned {
                        timestamp: Timestamp(current.timestamp),
                        value: current.value,
                        expires_ms: current.expires_ms,
                    }),
                }),
            }),
        };
        Ok(Record { fingerprint: record.fingerprint, decided: Timestamp(record.timestamp), verdict })
    }
}

/// Whether the version of a write, decided at `timestamp`, can stand for its record.
pub fn is_carried(write: &Write, timestamp: Timestamp) -> bool {
    let single_put = write.conditions.is_empty()
        && matches!(write.operations.as_slice(), [operation] if matches!(operation.action, Action::Put { .. }));
    single_put
        && write.request.is_some_and(|request| {
            let (from, to) = carried_within(request.issued_ms);
            from <= timestamp && timestamp <= to
        })
}

/// The times of the versions that may carry the outcome of a request issued at `issued_ms`.
fn carried_within(issued_ms: u64) -> (Timestamp, Timestamp) {
    let from = Timestamp::from_millis(issued_ms.saturating_sub(CARRIED_EARLY_MS));
    let beyond = Timestamp::from_millis(issued_ms.saturating_add(CARRIED_LATE_MS + 1));
    (from, beyond.previous())
}

/// Versions before this carry no outcome that may still be asked for, when requests from `requests_from_ms` on are taken.
pub fn carried_from(requests_from_ms: u64) -> Timestamp {
    carried_within(requests_from_ms).0
}

/// From when on requests must have been issued for their outcomes to be known, where versions up to `carried_until` may
/// carry some and those before the `horizon` may be gone: `requests_from_ms`, unless that is too far back.
pub fn answerable_from(horizon: Timestamp, carried_until: Timestamp, requests_from_ms: u64) -> u64 {
    let carried_from = carried_from(requests_from_ms);
    if carried_until < carried_from || horizon < carried_from {
        return requests_from_ms;
    }
    horizon.millis().saturating_add(CARRIED_EARLY_MS + 1)
}

/// The record of a request as the version that it wrote tells it, if there is one. Reads the disk.
pub fn carried(
    reader: &dyn Reader,
    (anchor, request): &Place,
    carried_until: Timestamp,
) -> storage::Result<Option<Record>> {
    let (from, to) = carried_within(request.issued_ms);
    if carried_until < from {
        return Ok(None);
    }
    let found = mvcc::written_by(reader, anchor, request, from, to)?;
    Ok(found.map(|(timestamp, Origin { fingerprint, .. })| {
        let verdict = Ok(Outcome { applied: true, timestamp, ..Outcome::default() });
        Record { fingerprint, decided: timestamp, verdict }
    }))
}

/// Where a record lies: under the encoded key of its command's first key, by request. All of it is part of the question
/// "was it seen?", the time of issue too, or the answer would depend on whether it is looked up in memory or on the disk.
pub type Place = (Bytes, RequestId);

/// The recent records of one replica.
#[derive(Debug)]
pub struct RecentOutcomes {
    records: HashMap<Place, Record>,
    /// The same places by the millisecond in which their requests were issued; what is dropped is a whole millisecond.
    by_age: BTreeMap<u64, Vec<Place>>,
    covered_from_ms: u64,
    records_max: usize,
}

/// What the cache knows of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Recent<'a> {
    /// It was seen; here is its record.
    Seen(&'a Record),
    /// It was never seen.
    Unseen,
    /// It may be older than the cache: look on the disk.
    Unknown,
}

impl RecentOutcomes {
    /// A cache that knows nothing of requests issued up to `issued_max_ms` (the newest ever stored, 0 if none).
    pub fn new(issued_max_ms: u64, records_max: usize) -> RecentOutcomes {
        assert!(records_max > 0, "a cache of nothing would never cover the present");
        RecentOutcomes {
            records: HashMap::new(),
            by_age: BTreeMap::new(),
            covered_from_ms: if issued_max_ms == 0 { 0 } else { issued_max_ms.saturating_add(1) },
            records_max,
        }
    }

    /// Knows nothing, from now on, of requests issued up to `issued_max_ms` but for those noted here: the shard took over
    /// another that has seen some. What was noted since the last [`trim`](RecentOutcomes::trim) may not be stored yet and
    /// is still found.
    pub fn forget_until(&mut self, issued_max_ms: u64) {
        self.covered_from_ms = self.covered_from_ms.max(issued_max_ms.saturating_add(1));
    }

    /// What is known of a request.
    pub fn find(&self, place: &Place) -> Recent<'_> {
        match self.records.get(place) {
            Some(record) => Recent::Seen(record),
            None if place.1.issued_ms >= self.covered_from_ms => Recent::Unseen,
            None => Recent::Unknown,
        }
    }

    /// Notes a record, also one that is still on its way to the disk: until [`trim`](RecentOutcomes::trim) it is found
    /// here whatever its age.
    pub fn insert(&mut self, place: Place, record: Record) {
        self.by_age.entry(place.1.issued_ms).or_default().push(place.clone());
        self.records.insert(place, record);
    }

    /// Drops the oldest if there are too many. Only when what was noted is stored: what is not here is looked up there.
    pub fn trim(&mut self) {
        while self.records.len() > self.records_max
            && let Some((issued_ms, _)) = self.by_age.first_key_value()
        {
            self.covered_from_ms = self.covered_from_ms.max(issued_ms.saturating_add(1));
            self.drop_uncovered();
        }
        self.drop_uncovered();
    }

    /// Records issued in the same millisecond as a dropped one go with it, so that "covered" stays a statement about
    /// time.
    fn drop_uncovered(&mut self) {
        while let Some(oldest) = self.by_age.first_entry()
            && *oldest.key() < self.covered_from_ms
        {
            for place in oldest.remove() {
                self.records.remove(&place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sequence: u64, issued_ms: u64) -> Place {
        (Bytes::from_static(b"anchor"), RequestId { client: 1, sequence, issued_ms })
    }

    fn record() -> Record {
        let verdict = Ok(Outcome { applied: true, ..Outcome::default() });
        Record { fingerprint: 1, decided: Timestamp::ZERO, verdict }
    }

    #[test]
    fn a_record_comes_back_as_it_went() {
        let outcomes = [
            Ok(Outcome { applied: true, timestamp: Timestamp(3), integers: vec![None, Some(-4)], observed: None }),
            Ok(Outcome {
                applied: false,
                timestamp: Timestamp(3),
                integers: vec![],
                observed: Some(Observed {
                    condition: 0,
                    current: Some(Versioned {
                        timestamp: Timestamp(2),
                        value: Bytes::from_static(b"v"),
                        expires_ms: Some(9),
                    }),
                }),
            }),
            Ok(Outcome {
                applied: false,
                timestamp: Timestamp(3),
                integers: vec![],
                observed: Some(Observed { condition: 2, current: None }),
            }),
            Err(Error::new(Reason::NotAnInteger, "no")),
        ];
        for verdict in outcomes {
            let record = Record { fingerprint: 6, decided: Timestamp(3), verdict };
            assert_eq!(Record::decode(record.encode()).unwrap(), record);
        }
    }

    #[test]
    fn another_payload_under_the_same_id_is_refused() {
        assert!(record().answer(1).is_ok());
        assert_eq!(record().answer(2).unwrap_err().reason, Reason::RequestMismatch);
    }

    #[test]
    fn a_fresh_cache_knows_what_it_cannot_know() {
        let cache = RecentOutcomes::new(100, 10);
        assert_eq!(cache.find(&at(1, 100)), Recent::Unknown);
        assert_eq!(cache.find(&at(1, 101)), Recent::Unseen);
        assert_eq!(RecentOutcomes::new(0, 10).find(&at(1, 0)), Recent::Unseen);
    }

    #[test]
    fn eviction_never_turns_a_seen_request_into_an_unseen_one() {
        let mut cache = RecentOutcomes::new(0, 4);
        // Clients whose clocks differ: issued times arrive in any order, several in one millisecond.
        let issued = [50u64, 10, 50, 10, 60, 20, 50, 70, 10, 65];
        for (sequence, &when) in issued.iter().enumerate() {
            cache.insert(at(sequence as u64, when), record());
            assert!(matches!(cache.find(&at(sequence as u64, when)), Recent::Seen(_)));
            cache.trim();
            for (earlier, &when) in issued.iter().enumerate().take(sequence + 1) {
                assert_ne!(cache.find(&at(earlier as u64, when)), Recent::Unseen);
            }
            assert!(cache.records.len() <= 4);
            assert_eq!(cache.records.len(), cache.by_age.values().map(Vec::len).sum::<usize>());
        }
        assert_eq!(cache.find(&at(99, 71)), Recent::Unseen);
    }
}
