//! The bounds on a request, in one place.
//!
//! The edge runs this on everything that comes in; whoever takes requests by another way (a node that is handed one
//! by a neighbour) runs it again. What is too much is refused with the figure that was exceeded; only the rows asked
//! of a page are clamped instead, because a page may always end early.

use std::time::Duration;

use bytes::Bytes;

use crate::keyspace::CHANGES_CURSOR_BYTES_MAX;
use crate::types::{Action, Error, Limits, Reason, Request, Result, ScanBounds, Test, Write};

/// A cursor holds an encoded key (at most about twice its bytes) and a few fixed fields.
const CURSOR_BYTES_MAX_PER_KEY_BYTE: usize = 4;
const CURSOR_BYTES_MAX_FIXED: usize = 256;

/// Longest that a page of changes waits for something to tell; a longer one is asked for again.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Refuses what exceeds `limits`; clamps the rows of a page to them (0 asks for a full page).
pub fn check(request: &mut Request, limits: &Limits) -> Result<()> {
    match request {
        Request::Read(read) => {
            let total = read.keys.iter().map(Bytes::len).sum();
            check_batch(read.keys.len(), limits.batch_get_keys_max, "keys", total, limits)?;
            read.keys.iter().try_for_each(|key| check_key(key, limits))
        }
        Request::Write(write) => check_write(write, limits),
        Request::Scan(scan) => {
            scan.rows_max = clamp_rows(scan.rows_max, limits);
            if let Some(cursor) = &scan.cursor {
                let bytes_max = limits.key_bytes_max * CURSOR_BYTES_MAX_PER_KEY_BYTE + CURSOR_BYTES_MAX_FIXED;
                if cursor.len() > bytes_max {
                    return Err(Error::new(Reason::InvalidCursor, "the cursor is longer than any of ours"));
                }
            }
            check_bounds(&scan.bounds, limits)
        }
        Request::Changes(changes) => {
            changes.changes_max = clamp_rows(changes.changes_max, limits);
            changes.wait = changes.wait.min(WAIT_MAX);
            if changes.cursor.as_ref().is_some_and(|cursor| cursor.len() > CHANGES_CURSOR_BYTES_MAX) {
                return Err(Error::new(Reason::InvalidCursor, "the cursor is longer than any of ours"));
            }
            if changes.cursor.is_some() && changes.after.is_some() {
                return Err(Error::invalid("a cursor says where to go on: leave the version to begin after out"));
            }
            check_bounds(&changes.bounds, limits)
        }
        Request::History { key, rows_max, .. } => {
            *rows_max = clamp_rows(*rows_max, limits);
            check_key(key, limits)
        }
    }
}

fn check_bounds(bounds: &ScanBounds, limits: &Limits) -> Result<()> {
    let bounds = match bounds {
        ScanBounds::All => [None, None],
        ScanBounds::Tag(key) | ScanBounds::Prefix(key) => [Some(key), None],
        ScanBounds::Range(from, to) => [from.as_ref(), to.as_ref()],
    };
    bounds.into_iter().flatten().try_for_each(|bound| check_length(bound, limits))
}

fn clamp_rows(rows: usize, limits: &Limits) -> usize {
    if rows == 0 { limits.page_rows_max } else { rows.min(limits.page_rows_max) }
}

fn check_write(write: &Write, limits: &Limits) -> Result<()> {
    if write.operations.is_empty() {
        return Err(Error::new(Reason::BatchTooLarge, "a batch needs at least one operation"));
    }
    if write.request.is_some_and(|id| id.issued_ms == 0) {
        return Err(Error::invalid("request.issued_ms is missing: say when the request was first sent"));
    }
    let mut total = 0;
    for condition in &write.conditions {
        check_key(&condition.key, limits)?;
        total += condition.key.len();
        if let Test::Value(value) = &condition.test {
            check_value(value, limits)?;
            total += value.len();
        }
    }
    for operation in &write.operations {
        check_key(&operation.key, limits)?;
        total += operation.key.len();
        if let Action::Put { value, ttl_ms } = &operation.action {
            check_value(value, limits)?;
            total += value.len();
            if *ttl_ms == Some(0) {
                return Err(Error::invalid("ttl_ms of 0 would expire at once: leave it out, or delete the key"));
            }
        }
    }
    let count = write.operations.len() + write.conditions.len();
    check_batch(count, limits.batch_operations_max, "operations and conditions", total, limits)
}

fn check_batch(count: usize, count_max: usize, what: &str, bytes: usize, limits: &Limits) -> Result<()> {
    let refusal = if count == 0 {
        "it is empty".to_owned()
    } else if count > count_max {
        format!("{count} {what}, at most {count_max} are allowed")
    } else if bytes > limits.batch_bytes_max {
        format!("{bytes} bytes of keys and values, at most {} are allowed", limits.batch_bytes_max)
    } else {
        return Ok(());
    };
    Err(Error::new(Reason::BatchTooLarge, format!("the batch cannot be taken: {refusal}")))
}

fn check_key(key: &Bytes, limits: &Limits) -> Result<()> {
    if key.is_empty() {
        return Err(Error::new(Reason::EmptyKey, "a key needs at least one byte"));
    }
    check_length(key, limits)
}

fn check_length(key: &Bytes, limits: &Limits) -> Result<()> {
    if key.len() > limits.key_bytes_max {
        let text = format!("a key of {} bytes; at most {} are allowed", key.len(), limits.key_bytes_max);
        return Err(Error::new(Reason::KeyTooLarge, text));
    }
    Ok(())
}

fn check_value(value: &Bytes, limits: &Limits) -> Result<()> {
    if value.len() > limits.value_bytes_max {
        let text = format!("a value of {} bytes; at most {} are allowed", value.len(), limits.value_bytes_max);
        return Err(Error::new(Reason::ValueTooLarge, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Condition, Operation, Read, ReadLevel, RequestId, ScanRequest};

    fn small() -> Limits {
        Limits {
            key_bytes_max: 8,
            value_bytes_max: 16,
            batch_operations_max: 3,
            batch_bytes_max: 40,
            page_rows_max: 10,
            page_bytes_max: 100,
            batch_get_keys_max: 2,
        }
    }

    fn put(key: &'static str, bytes: usize) -> Operation {
        let value = Bytes::from(vec![b'v'; bytes]);
        Operation { key: Bytes::from_static(key.as_bytes()), action: Action::Put { value, ttl_ms: None } }
    }

    fn write(operations: Vec<Operation>) -> Request {
        Request::Write(Write { operations, ..Write::default() })
    }

    fn read(keys: &[&'static str]) -> Request {
        Request::Read(Read {
            keys: keys.iter().map(|&key| key.into()).collect(),
            level: ReadLevel::Any,
            any_replica: false,
        })
    }

    fn refusal(mut request: Request) -> Option<Reason> {
        check(&mut request, &small()).err().map(|error| error.reason)
    }

    #[test]
    fn every_bound_has_its_reason_and_its_last_allowed_value() {
        assert_eq!(refusal(write(vec![put("k", 16)])), None);
        assert_eq!(refusal(write(vec![put("k", 17)])), Some(Reason::ValueTooLarge));
        assert_eq!(refusal(write(vec![put("12345678", 1)])), None);
        assert_eq!(refusal(write(vec![put("123456789", 1)])), Some(Reason::KeyTooLarge));
        assert_eq!(refusal(write(vec![put("", 1)])), Some(Reason::EmptyKey));
        assert_eq!(refusal(write(vec![])), Some(Reason::BatchTooLarge));
        assert_eq!(refusal(write(vec![put("a", 1), put("b", 1), put("c", 1)])), None);
        assert_eq!(
            refusal(write(vec![put("a", 1), put("b", 1), put("c", 1), put("d", 1)])),
            Some(Reason::BatchTooLarge)
        );
        assert_eq!(refusal(write(vec![put("1234", 16), put("1234", 16)])), None);
        assert_eq!(refusal(write(vec![put("1234", 16), put("12345", 16)])), Some(Reason::BatchTooLarge));
        assert_eq!(refusal(read(&["a", "b"])), None);
        assert_eq!(refusal(read(&["a", "b", "c"])), Some(Reason::BatchTooLarge));
        assert_eq!(refusal(read(&[])), Some(Reason::BatchTooLarge));
        assert_eq!(refusal(read(&["a", ""])), Some(Reason::EmptyKey));
    }

    #[test]
    fn conditions_count_like_operations() {
        let condition = |test| Condition { key: "k".into(), test };
        let conditions = |conditions: Vec<Condition>| {
            Request::Write(Write { request: None, conditions, operations: vec![put("k", 1)] })
        };
        assert_eq!(refusal(conditions(vec![condition(Test::Absent), condition(Test::Present)])), None);
        assert_eq!(refusal(conditions(vec![condition(Test::Absent); 3])), Some(Reason::BatchTooLarge));
        assert_eq!(refusal(conditions(vec![condition(Test::Value(vec![0; 17].into()))])), Some(Reason::ValueTooLarge));
        let two_values = vec![condition(Test::Value(vec![0; 16].into())), condition(Test::Value(vec![0; 16].into()))];
        assert_eq!(refusal(conditions(two_values)), None);
    }

    #[test]
    fn a_ttl_of_nothing_and_an_undated_id_are_refused() {
        let ttl = |ttl_ms| {
            let action = Action::Put { value: "v".into(), ttl_ms };
            write(vec![Operation { key: "k".into(), action }])
        };
        assert_eq!(refusal(ttl(Some(0))), Some(Reason::InvalidRequest));
        assert_eq!(refusal(ttl(Some(1))), None);
        let dated = |issued_ms| {
            let request = Some(RequestId { client: 1, sequence: 1, issued_ms });
            Request::Write(Write { request, conditions: vec![], operations: vec![put("k", 1)] })
        };
        assert_eq!(refusal(dated(0)), Some(Reason::InvalidRequest));
        assert_eq!(refusal(dated(1)), None);
    }

    #[test]
    fn pages_are_clamped_not_refused() {
        for (asked, given) in [(0, 10), (1, 1), (10, 10), (11, 10), (usize::MAX, 10)] {
            let mut scan = Request::Scan(ScanRequest { rows_max: asked, ..ScanRequest::default() });
            check(&mut scan, &small()).expect("allowed");
            assert!(matches!(scan, Request::Scan(scan) if scan.rows_max == given));
            let mut history = Request::History { key: "k".into(), before: None, rows_max: asked };
            check(&mut history, &small()).expect("allowed");
            assert!(matches!(history, Request::History { rows_max, .. } if rows_max == given));
        }
    }

    #[test]
    fn scans_are_bounded_in_their_keys_and_cursors() {
        let scan = |bounds, cursor| Request::Scan(ScanRequest { bounds, cursor, ..ScanRequest::default() });
        let long = Bytes::from_static(b"123456789");
        assert_eq!(refusal(scan(ScanBounds::Tag(long.clone()), None)), Some(Reason::KeyTooLarge));
        assert_eq!(refusal(scan(ScanBounds::Prefix(long.clone()), None)), Some(Reason::KeyTooLarge));
        assert_eq!(refusal(scan(ScanBounds::Range(None, Some(long.clone())), None)), Some(Reason::KeyTooLarge));
        assert_eq!(refusal(scan(ScanBounds::Range(Some(long), None), None)), Some(Reason::KeyTooLarge));
        assert_eq!(refusal(scan(ScanBounds::All, Some(vec![0; 288].into()))), None);
        assert_eq!(refusal(scan(ScanBounds::All, Some(vec![0; 289].into()))), Some(Reason::InvalidCursor));
    }
}
