//! Times to live, by the harness' clock.
//!
//! Each key is put once. With healthy clocks it is not readable later than its acknowledgement plus its time to live, and
//! a linearizable read finds it until its request plus its time to live, both give or take [`TOLERANCE`]. Under every
//! fault, wrong clocks included: once a linearizable read found it gone, no later linearizable read finds it. Of reads at
//! any replica the same is asked as long as no clock was touched: each node measures by its own.

use std::collections::BTreeMap;

use super::{Finding, Verdict};
use crate::history::{History, Operation};

/// How far the clocks of nodes and harness may be apart in a healthy cluster, the milliseconds of a busy machine
/// included.
const TOLERANCE: u64 = 1_000_000_000;

/// Judges the operations `put` and `read`.
pub fn check(history: &History) -> Verdict {
    // From the first fault of a clock on, the shards' timestamps may run ahead for good.
    let clocks_wrong_from =
        history.faults.iter().filter(|fault| fault.touches_clocks()).map(|fault| fault.from_ns).min();
    let healthy =
        |operation: &Operation| clocks_wrong_from.is_none_or(|wrong| operation.end.unwrap_or(u64::MAX) < wrong);
    let mut keys: BTreeMap<&str, (Option<usize>, Vec<usize>)> = BTreeMap::new();
    for (place, operation) in history.operations.iter().enumerate() {
        let entry = keys.entry(&operation.key).or_default();
        match operation.f.as_str() {
            "put" => entry.0 = Some(place),
            "read" if operation.is_ok() => entry.1.push(place),
            _ => {}
        }
    }
    let mut findings = Vec::new();
    let (mut alive, mut gone) = (0_usize, 0_usize);
    for (key, (put, reads)) in &keys {
        let mut found = |what: String, operations: Vec<usize>| {
            findings.push(Finding { what, key: (*key).to_owned(), operations });
        };
        let seen = |place: usize| !history.operations[place].output.is_null();
        let Some(put) = *put else {
            if let Some(&read) = reads.iter().find(|read| seen(**read)) {
                found("a key is there that nobody put".into(), vec![read]);
            }
            continue;
        };
        let asked = &history.operations[put];
        let Some(ttl_ms) = asked.number("ttl_ms") else {
            return Verdict::Unknown { why: format!("operation {put} does not say for how long") };
        };
        let ttl = ttl_ms.saturating_mul(1_000_000);
        for &read in reads {
            let operation = &history.operations[read];
            let acknowledged = asked.end.filter(|_| asked.is_ok());
            if seen(read) {
                alive += 1;
                if operation.output != asked.input {
                    found("another value than was put is there".into(), vec![put, read]);
                } else if !asked.is_possible() {
                    found("it is there, although its put had failed definitely".into(), vec![put, read]);
                }
                let late = acknowledged.is_some_and(|end| operation.start > end.saturating_add(ttl + TOLERANCE));
                if late && healthy(operation) {
                    let end = acknowledged.unwrap_or_default() + ttl;
                    found(format!("read {} ms after its end", (operation.start - end) / 1_000_000), vec![put, read]);
                }
            } else {
                gone += 1;
                let end = operation.end.unwrap_or(u64::MAX);
                let early = acknowledged.is_some_and(|acknowledged| acknowledged < operation.start)
                    && end.saturating_add(TOLERANCE) < asked.start.saturating_add(ttl);
                if early && is_linearizable(operation) && healthy(operation) {
                    let left = (asked.start + ttl - end) / 1_000_000;
                    found(format!("gone {left} ms before its end"), vec![put, read]);
                }
            }
        }
        if let Some((gone, back)) = resurrection(history, asked, reads, clocks_wrong_from.is_none()) {
            found("it was gone and came back".into(), vec![put, gone, back]);
        }
    }
    if !findings.is_empty() {
        Verdict::Invalid { findings }
    } else if alive == 0 || gone == 0 {
        Verdict::Unknown { why: "no key was seen both alive and gone".into() }
    } else {
        Verdict::Valid {
            summary: format!("{} keys: {alive} reads found them, {gone} did not, all in time", keys.len()),
        }
    }
}

fn is_linearizable(operation: &Operation) -> bool {
    operation.text("level") != Some("any")
}

/// A linearizable read that found the key gone, and a later read that found it.
fn resurrection(history: &History, put: &Operation, reads: &[usize], clocks_right: bool) -> Option<(usize, usize)> {
    let acknowledged = put.end.filter(|_| put.is_ok());
    let operation = |place: usize| &history.operations[place];
    // Gone: it was there for certain (acknowledged, or seen, before the read began) and the read does not find it.
    let first_seen = reads
        .iter()
        .filter(|place| !operation(**place).output.is_null())
        .filter_map(|place| operation(*place).end)
        .min();
    let there = match (acknowledged, first_seen) {
        (Some(one), Some(other)) => one.min(other),
        (one, other) => one.or(other)?,
    };
    let gone = reads
        .iter()
        .copied()
        .filter(|&place| {
            let read = operation(place);
            read.output.is_null() && is_linearizable(read) && read.start > there
        })
        .min_by_key(|&place| operation(place).end)?;
    let over = operation(gone).end?;
    reads
        .iter()
        .copied()
        .find(|&place| {
            let read = operation(place);
            !read.output.is_null() && read.start > over && (is_linearizable(read) || clocks_right)
        })
        .map(|back| (gone, back))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::testing::{Line, history, named};
    use crate::history::FaultSpan;
    use serde_json::{Value, json};

    const SECOND: u64 = 1_000_000_000;

    fn put() -> Line {
        Line::new("put", "t", json!(1)).ok(json!(1)).extra("ttl_ms", 3_000).at(SECOND, 2 * SECOND)
    }

    fn read(value: Value, second: u64) -> Line {
        Line::new("read", "t", Value::Null).ok(value).at(second * SECOND, second * SECOND + 1_000)
    }

    #[test]
    fn good_histories_pass() {
        let lines = [
            read(Value::Null, 0),
            put(),
            read(json!(1), 2),
            read(Value::Null, 3).extra("level", "any"),
            read(json!(1), 4),
            read(Value::Null, 5),
            read(Value::Null, 9),
        ];
        let verdict = check(&history(&lines));
        assert!(verdict.is_valid(), "{verdict:?}");
    }

    #[test]
    fn bad_histories_name_the_operations() {
        let failed = Line::new("put", "t", json!(1)).fail("NO_QUORUM").extra("ttl_ms", 3_000).at(0, 10);
        let bad: Vec<(&str, Vec<Line>, Vec<usize>)> = vec![
            ("too long", vec![put(), read(json!(1), 7)], vec![0, 1]),
            ("too short", vec![put(), read(Value::Null, 2)], vec![0, 1]),
            ("resurrected", vec![put(), read(Value::Null, 4), read(json!(1), 5)], vec![0, 1, 2]),
            (
                "resurrected elsewhere",
                vec![put(), read(Value::Null, 4), read(json!(1), 5).extra("level", "any")],
                vec![0, 1, 2],
            ),
            ("another value", vec![put(), read(json!(2), 3)], vec![0, 1]),
            ("failed", vec![failed, read(json!(1), 1)], vec![0, 1]),
            ("phantom", vec![read(json!(1), 1)], vec![0]),
        ];
        for (name, mut lines, operations) in bad {
            // The read must not be before the acknowledgement to be too early.
            if name == "too short" {
                lines[1] = read(Value::Null, 2).at(2 * SECOND + 1, 2 * SECOND + 2);
            }
            assert!(named(check(&history(&lines))).contains(&operations), "{name}");
        }
    }

    #[test]
    fn wrong_clocks_excuse_the_time_but_not_a_resurrection() {
        let clock = FaultSpan { name: "clock-jump".into(), target: "n1".into(), from_ns: SECOND / 2, to_ns: SECOND };
        let mut late = history(&[put(), read(json!(1), 7), read(Value::Null, 8)]);
        late.faults.push(clock.clone());
        assert!(check(&late).is_valid());
        let mut back = history(&[put(), read(Value::Null, 4), read(json!(1), 5)]);
        back.faults.push(clock);
        assert_eq!(named(check(&back)), [[0, 1, 2]]);
    }
}
