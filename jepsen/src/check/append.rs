//! Tag batches: strict serializability of list-append transactions, and snapshots that show them wholly.
//!
//! Transactions (`txn`) go to `adya`, an implementation of Elle: each list tells the order of all appends to it, from
//! which follow the dependencies between transactions; with the order of real time added, no cycle may remain. Snapshots
//! (`snapshot`) may be old and so have no place in that order. Of them it is asked that each list is a beginning of the
//! longest one seen, and that of a transaction's appends either all are there or none.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Finding, Verdict};
use crate::history::{History, Kind, Operation};

/// Longest search for a cycle in one knot of transactions.
const TIME_PER_KNOT: Duration = Duration::from_secs(20);
/// Most findings of one kind: the first tell enough.
const EACH_MAX: usize = 5;
/// Most operations that a finding names.
const NAMED_MAX: usize = 20;

/// Judges the operations `txn` and `snapshot`.
pub fn check(history: &History) -> Verdict {
    let order = match serializability(history) {
        Ok(verdict) => verdict,
        Err(why) => Verdict::Unknown { why },
    };
    Verdict::all(vec![order, snapshots(history)])
}

fn serializability(history: &History) -> Result<Verdict, String> {
    let report = adya::check(
        &transactions(history)?,
        adya::Workload::ListAppend,
        &adya::Opts { timeout: TIME_PER_KNOT, ..adya::Opts::default() },
    );
    let mut findings = Vec::new();
    for (kind, anomalies) in &report.anomalies {
        for anomaly in anomalies.iter().take(EACH_MAX) {
            let mut operations: Vec<usize> = anomaly
                .ops
                .iter()
                .filter_map(|&index| usize::try_from(index).ok())
                .filter(|&place| place < history.operations.len())
                .collect();
            if operations.is_empty() {
                operations = readers(history, &anomaly.detail);
            }
            operations.sort_unstable();
            operations.dedup();
            operations.truncate(NAMED_MAX);
            let key = operations.first().map(|&place| history.operations[place].key.clone()).unwrap_or_default();
            findings.push(Finding { what: format!("{kind}: {}", anomaly.explanation.trim()), key, operations });
        }
    }
    Ok(match report.valid {
        adya::Valid::True => {
            Verdict::Valid { summary: format!("{} transactions are strictly serializable", history.oks("txn").count()) }
        }
        adya::Valid::False => Verdict::Invalid { findings },
        adya::Valid::Unknown => {
            let kinds = report.anomaly_types.join(", ");
            Verdict::Unknown { why: format!("the search for cycles did not end: {kinds}") }
        }
    })
}

/// Who read the lists that an anomaly is about, where it names the lists alone.
fn readers(history: &History, detail: &Value) -> Vec<usize> {
    let (Some(key), Some(lists)) = (detail["key"].as_str(), detail["values"].as_array()) else { return Vec::new() };
    let reads = |operation: &Operation, list: &Value| {
        let steps = operation.output.as_array().map(Vec::as_slice).unwrap_or_default();
        steps.iter().any(|step| step[0] == "r" && step[1] == key && &step[2] == list)
    };
    let reader =
        |list: &Value| history.oks("txn").find(|(_, operation)| reads(operation, list)).map(|(place, _)| place);
    lists.iter().filter_map(reader).collect()
}

/// The transactions as `adya` reads them; indices are places in the history.
fn transactions(history: &History) -> Result<adya::History, String> {
    // In the order of time: two lines per operation.
    let mut lines: Vec<(u64, bool, usize, Value)> = Vec::new();
    for (place, operation) in history.all("txn") {
        let line = |kind: &str, value: &Value, time: u64| json!({"index": place, "type": kind, "process": operation.process, "f": "txn", "value": value, "time": time});
        lines.push((operation.start, false, place, line("invoke", &operation.input, operation.start)));
        let (kind, value) = match operation.outcome {
            Kind::Ok => ("ok", &operation.output),
            Kind::Fail => ("fail", &operation.input),
            Kind::Info | Kind::Invoke => ("info", &operation.input),
        };
        if let Some(end) = operation.end {
            lines.push((end, true, place, line(kind, value, end)));
        }
    }
    lines.sort_by_key(|(time, completion, place, _)| (*time, *completion, *place));
    let text: Vec<String> = lines.into_iter().map(|(.., line)| line.to_string()).collect();
    adya::History::from_json(&text.join("\n")).map_err(|error| format!("a transaction cannot be read: {error}"))
}

/// Elements appended by a transaction, with their keys.
fn appends(operation: &Operation) -> Vec<(&str, i64)> {
    let append = |step: &'_ Value| -> bool { step.get(0).and_then(Value::as_str) == Some("append") };
    let steps = operation.input.as_array().map(Vec::as_slice).unwrap_or_default();
    steps
        .iter()
        .filter(|step| append(step))
        .filter_map(|step| Some((step.get(1)?.as_str()?, step.get(2)?.as_i64()?)))
        .collect()
}

/// The lists that an operation showed, by key.
fn shown(operation: &Operation) -> Option<BTreeMap<&str, Vec<i64>>> {
    let list = |value: &Value| -> Option<Vec<i64>> { value.as_array()?.iter().map(Value::as_i64).collect() };
    match &operation.output {
        Value::Object(lists) => lists.iter().map(|(key, value)| Some((key.as_str(), list(value)?))).collect(),
        Value::Array(steps) => steps
            .iter()
            .filter(|step| step.get(0).and_then(Value::as_str) == Some("r"))
            .map(|step| Some((step.get(1)?.as_str()?, list(step.get(2)?)?)))
            .collect(),
        _ => None,
    }
}

fn snapshots(history: &History) -> Verdict {
    let mut writers: HashMap<(&str, i64), usize> = HashMap::new();
    let mut longest: HashMap<&str, (Vec<i64>, usize)> = HashMap::new();
    for (place, operation) in history.all("txn") {
        writers.extend(appends(operation).into_iter().map(|append| (append, place)));
        for (key, list) in operation.is_ok().then(|| shown(operation)).flatten().unwrap_or_default() {
            let best = longest.entry(key).or_default();
            if list.len() >= best.0.len() {
                *best = (list, place);
            }
        }
    }
    let mut findings = Vec::new();
    let mut looked_at = 0;
    for (place, operation) in history.oks("snapshot") {
        let Some(lists) = shown(operation) else {
            return Verdict::Unknown { why: format!("operation {place} shows no lists") };
        };
        looked_at += 1;
        let mut found = |what: String, operations: Vec<usize>| {
            findings.push(Finding { what, key: operation.key.clone(), operations });
        };
        let mut partly: BTreeMap<usize, i64> = BTreeMap::new();
        for (key, list) in &lists {
            if let Some((longest, reader)) = longest.get(key)
                && list.iter().zip(longest).any(|(shown, known)| shown != known)
            {
                found(
                    format!("the snapshot's list {key} is no beginning of the one that was read"),
                    vec![place, *reader],
                );
            }
            for &element in list {
                match writers.get(&(*key, element)) {
                    None => found(format!("the snapshot shows {element} in {key}, which nobody appended"), vec![place]),
                    Some(&writer) if history.operations[writer].outcome == Kind::Fail => found(
                        format!("the snapshot shows {element} in {key}, whose transaction had failed definitely"),
                        vec![writer, place],
                    ),
                    Some(&writer) => {
                        partly.insert(writer, element);
                    }
                }
            }
        }
        for (writer, element) in partly {
            let missing = appends(&history.operations[writer])
                .into_iter()
                .find(|(key, element)| lists.get(key).is_some_and(|list| !list.contains(element)));
            if let Some((key, other)) = missing {
                found(
                    format!("the snapshot shows {element} but not {other} in {key}, appended by the same batch"),
                    vec![writer, place],
                );
            }
        }
    }
    if findings.is_empty() {
        Verdict::Valid { summary: format!("{looked_at} snapshots show whole batches") }
    } else {
        findings.truncate(EACH_MAX);
        Verdict::Invalid { findings }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::testing::{Line, history, named};

    fn txn(steps: Value) -> Line {
        let asked = steps.as_array().expect("steps").iter().map(|step| match step[0].as_str() {
            Some("r") => json!(["r", step[1], null]),
            _ => step.clone(),
        });
        Line::new("txn", "t", asked.collect()).ok(steps)
    }

    fn snapshot(lists: Value) -> Line {
        Line::new("snapshot", "t", Value::Null).ok(lists)
    }

    #[test]
    fn good_histories_pass() {
        let lines = [
            txn(json!([["r", "x", []], ["r", "y", []], ["append", "x", 1], ["append", "y", 2]])).at(0, 10),
            txn(json!([["r", "x", [1]], ["append", "x", 3]])).at(20, 30),
            txn(json!([["append", "y", 4]])).info("timeout").at(31, 40),
            txn(json!([["append", "y", 5]])).fail("conflict").at(31, 40),
            txn(json!([["r", "x", [1, 3]], ["r", "y", [2, 4]]])).at(50, 60),
            snapshot(json!({"x": [1], "y": [2]})).at(70, 80),
            snapshot(json!({"x": [], "y": []})).at(70, 80),
        ];
        let verdict = check(&history(&lines));
        assert!(verdict.is_valid(), "{verdict:?}");
    }

    #[test]
    fn bad_orders_of_transactions_name_them() {
        let last = |steps: Value| txn(steps).at(900, 910);
        let bad: Vec<(&str, Vec<Line>, &[usize])> = vec![
            (
                "write skew (G2)",
                vec![
                    txn(json!([["r", "x", []], ["r", "y", []], ["append", "x", 1]])).at(0, 50),
                    txn(json!([["r", "x", []], ["r", "y", []], ["append", "y", 2]])).at(10, 60),
                    last(json!([["r", "x", [1]], ["r", "y", [2]]])),
                ],
                &[0, 1],
            ),
            (
                "read skew (G-single)",
                vec![
                    txn(json!([["append", "x", 1], ["append", "y", 2]])).at(0, 50),
                    txn(json!([["r", "x", []], ["r", "y", [2]]])).at(10, 60),
                    last(json!([["r", "x", [1]], ["r", "y", [2]]])),
                ],
                &[0, 1],
            ),
            (
                "lost update",
                vec![
                    txn(json!([["r", "x", []], ["append", "x", 1]])).at(0, 50),
                    txn(json!([["r", "x", []], ["append", "x", 2]])).at(10, 60),
                    last(json!([["r", "x", [2]]])),
                ],
                &[0, 1],
            ),
            (
                "circular information flow (G1c)",
                vec![
                    txn(json!([["append", "x", 1], ["r", "y", [2]]])).at(0, 50),
                    txn(json!([["append", "y", 2], ["r", "x", [1]]])).at(10, 60),
                    last(json!([["r", "x", [1]], ["r", "y", [2]]])),
                ],
                &[0, 1],
            ),
            (
                "write cycle (G0)",
                vec![
                    txn(json!([["append", "x", 1], ["append", "y", 1]])).at(0, 50),
                    txn(json!([["append", "x", 2], ["append", "y", 2]])).at(10, 60),
                    last(json!([["r", "x", [1, 2]], ["r", "y", [2, 1]]])),
                ],
                &[0, 1],
            ),
            (
                "aborted read (G1a)",
                vec![
                    txn(json!([["append", "x", 1]])).fail("conflict").at(0, 10),
                    txn(json!([["r", "x", [1]]])).at(20, 30),
                ],
                &[1],
            ),
            (
                "stale read (real time)",
                vec![
                    txn(json!([["r", "x", []], ["append", "x", 1]])).at(0, 10),
                    txn(json!([["r", "x", []]])).at(20, 30),
                    last(json!([["r", "x", [1]]])),
                ],
                &[0, 1],
            ),
            (
                "two orders of one list",
                vec![
                    txn(json!([["append", "x", 1]])).at(0, 50),
                    txn(json!([["append", "x", 2]])).at(0, 50),
                    txn(json!([["r", "x", [1, 2]]])).at(60, 70),
                    txn(json!([["r", "x", [2, 1]]])).at(80, 90),
                ],
                &[2, 3],
            ),
        ];
        for (name, lines, operations) in bad {
            let named = named(check(&history(&lines)));
            assert!(
                named.iter().any(|found| operations.iter().all(|place| found.contains(place))),
                "{name}: {named:?}"
            );
        }
    }

    #[test]
    fn bad_snapshots_name_the_transaction_they_tear() {
        let whole = || txn(json!([["r", "x", []], ["r", "y", []], ["append", "x", 1], ["append", "y", 2]])).at(0, 10);
        let reader = || txn(json!([["r", "x", [1]], ["r", "y", [2]]])).at(20, 30);
        let bad: Vec<(&str, Line, Vec<usize>)> = vec![
            ("torn", snapshot(json!({"x": [1], "y": []})), vec![0, 2]),
            ("phantom", snapshot(json!({"x": [1, 7], "y": [2]})), vec![2]),
            ("other order", snapshot(json!({"x": [9], "y": [2]})), vec![2, 1]),
        ];
        for (name, snapshot, operations) in bad {
            let named = named(check(&history(&[whole(), reader(), snapshot.at(40, 50)])));
            assert!(named.contains(&operations), "{name}: {named:?}");
        }
    }

    #[test]
    fn nothing_to_look_at_is_unknown() {
        assert!(matches!(check(&history(&[])), Verdict::Unknown { .. }));
    }
}
