//! Counters under forced repeats: does every request id count once, and answer the same for ever?
//!
//! 1. all answers to one request id are the same: version and sum;
//! 2. sums grow by one along the versions: no two ids have the same sum or version, and who was answered before
//!    another began has the smaller ones;
//! 3. at any time a read shows at least the additions acknowledged before it began and at most those begun before it
//!    ended that did not fail definitely; so the last ones show that ok <= final <= ok + info;
//! 4. a request id with another payload, and one that has expired, are refused; what is neither is not refused so. (A
//!    shard that has decided nothing yet has forgotten nothing, so it may take an old id: an addition like another.)

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::{Finding, Verdict};
use crate::history::{History, Operation};

/// Answers to one request id: version and sum.
type Answer = (u64, i64);

/// Judges the operations `add`, `repeat`, `other-payload`, `expired` and `read`.
pub fn check(history: &History) -> Verdict {
    let mut findings = Vec::new();
    repeats(history, &mut findings);
    refusals(history, &mut findings);
    let mut keys: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (place, operation) in history.operations.iter().enumerate() {
        keys.entry(&operation.key).or_default().push(place);
    }
    let mut unread = Vec::new();
    for (key, places) in &keys {
        sums(history, key, places, &mut findings);
        bounds(history, key, places, &mut findings);
        if !places.iter().any(|&place| is_final(&history.operations[place])) {
            unread.push(*key);
        }
    }
    if !findings.is_empty() {
        return Verdict::Invalid { findings };
    }
    if !unread.is_empty() {
        return Verdict::Unknown { why: format!("no final read of {}", unread.join(", ")) };
    }
    let (added, repeated) = (history.oks("add").count(), history.oks("repeat").count());
    Verdict::Valid {
        summary: format!("{added} additions count once each; {repeated} later repeats got the first answer"),
    }
}

fn is_final(operation: &Operation) -> bool {
    operation.f == "read" && operation.is_ok() && operation.extra.contains_key("final")
}

/// Everything that was answered to the request id of an operation.
fn answers(operation: &Operation) -> Vec<Answer> {
    let pair = |pair: &Value| Some((pair.get(0)?.as_u64()?, pair.get(1)?.as_i64()?));
    let told = operation.extra.get("answers").and_then(Value::as_array);
    told.map(|told| told.iter().filter_map(pair).collect()).unwrap_or_default()
}

fn repeats(history: &History, findings: &mut Vec<Finding>) {
    let mut first: HashMap<&str, (Answer, usize)> = HashMap::new();
    for (place, operation) in history.operations.iter().enumerate() {
        let Some(id) = operation.text("id").filter(|_| matches!(operation.f.as_str(), "add" | "repeat")) else {
            continue;
        };
        for answer in answers(operation) {
            let &mut (expected, earlier) = first.entry(id).or_insert((answer, place));
            if expected != answer {
                let mut operations = vec![earlier, place];
                operations.dedup();
                findings.push(Finding {
                    what: format!(
                        "request {id} was answered {} at version {} and {} at version {}",
                        expected.1, expected.0, answer.1, answer.0
                    ),
                    key: operation.key.clone(),
                    operations,
                });
            }
        }
    }
}

fn refusals(history: &History, findings: &mut Vec<Finding>) {
    let clocks = history.faults.iter().any(|fault| fault.touches_clocks());
    for (place, operation) in history.operations.iter().enumerate() {
        let accepted = operation.is_ok() && operation.text("refused").is_none();
        let errors = operation.extra.get("errors").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let refused = |reason: &str| errors.iter().any(|error| error.as_str() == Some(reason));
        let what = match operation.f.as_str() {
            "add" | "repeat" if refused("REQUEST_MISMATCH") => "a repeat with the same payload was called another one",
            "add" | "repeat" if refused("REQUEST_EXPIRED") && !clocks => "a young request id was called expired",
            "other-payload" if accepted => "a request id was accepted again with another payload",
            // Whether an id has expired is told by wall clocks.
            "expired" if accepted && !clocks && is_late(history, operation) => "a request id long expired was run",
            _ => continue,
        };
        findings.push(Finding { what: what.into(), key: operation.key.clone(), operations: vec![place] });
    }
}

/// Whether something had been acknowledged on the counter before: then its shard knows what time it is.
fn is_late(history: &History, late: &Operation) -> bool {
    let before = |operation: &Operation| operation.end.is_some_and(|end| end < late.start);
    history.oks("add").any(|(_, operation)| operation.key == late.key && before(operation))
}

fn sums(history: &History, key: &str, places: &[usize], findings: &mut Vec<Finding>) {
    let mut added: Vec<(Answer, usize)> = Vec::new();
    for &place in places {
        let operation = &history.operations[place];
        if operation.f == "add"
            && let Some(answer) = answers(operation).first()
        {
            added.push((*answer, place));
        }
    }
    added.sort();
    for pair in added.windows(2) {
        let [((version, sum), one), ((later, next), other)] = pair else { continue };
        if version == later || sum >= next {
            findings.push(Finding {
                what: format!(
                    "version {version} made {sum} and version {later} made {next}: one addition is lost or doubled"
                ),
                key: key.to_owned(),
                operations: vec![*one, *other],
            });
        }
    }
    // Against the clock: the largest version answered so far, by the time of its answer.
    let mut by_end: Vec<(u64, u64, usize)> = added
        .iter()
        .filter_map(|((version, _), place)| history.operations[*place].settled().map(|end| (end, *version, *place)))
        .collect();
    by_end.sort_unstable();
    let mut largest: Vec<(u64, usize)> = Vec::with_capacity(by_end.len());
    for &(_, version, place) in &by_end {
        let best = largest.last().copied().filter(|(best, _)| *best > version);
        largest.push(best.unwrap_or((version, place)));
    }
    for ((version, _), place) in &added {
        let start = history.operations[*place].start;
        let count = by_end.partition_point(|(end, _, _)| *end < start);
        if let Some(&(earlier, before)) = count.checked_sub(1).map(|last| &largest[last])
            && earlier > *version
        {
            findings.push(Finding {
                what: format!("version {version} was made after version {earlier} had been answered"),
                key: key.to_owned(),
                operations: vec![before, *place],
            });
        }
    }
}

fn bounds(history: &History, key: &str, places: &[usize], findings: &mut Vec<Finding>) {
    let clocks = history.faults.iter().any(|fault| fault.touches_clocks());
    let mut acknowledged: Vec<u64> = Vec::new();
    let mut possible: Vec<u64> = Vec::new();
    for &place in places {
        let operation = &history.operations[place];
        let counts = match operation.f.as_str() {
            "add" => true,
            // With wrong clocks an old id may pass for a young one.
            "expired" => operation.text("refused").is_none() && (clocks || !is_late(history, operation)),
            _ => false,
        };
        if counts && operation.is_possible() {
            possible.push(operation.start);
            acknowledged.extend(operation.end.filter(|_| operation.f == "add" && operation.is_ok()));
        }
    }
    acknowledged.sort_unstable();
    possible.sort_unstable();
    for &place in places {
        let operation = &history.operations[place];
        let (true, Some(end)) = (operation.f == "read" && operation.is_ok(), operation.end) else { continue };
        let least = acknowledged.partition_point(|&acked| acked < operation.start) as i64;
        let most = possible.partition_point(|&begun| begun < end) as i64;
        let value = operation.output.as_i64().unwrap_or(0);
        if value < least || value > most {
            findings.push(Finding {
                what: format!("{value} was read; {least} additions were acknowledged before, {most} were possible"),
                key: key.to_owned(),
                operations: vec![place],
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::testing::{Line, history, named};
    use serde_json::json;

    fn add(id: &str, answers: Value) -> Line {
        Line::new("add", "c", json!(1)).extra("id", id).extra("answers", answers)
    }

    fn repeat(id: &str, answers: Value) -> Line {
        Line::new("repeat", "c", json!(1)).extra("id", id).extra("answers", answers)
    }

    fn read(value: i64) -> Line {
        Line::new("read", "c", Value::Null).ok(json!(value))
    }

    fn last(value: i64) -> Line {
        read(value).extra("final", true).at(900, 910)
    }

    #[test]
    fn good_histories_pass() {
        let lines = [
            add("a", json!([[10, 1], [10, 1]])).at(0, 10),
            add("b", json!([])).info("timeout").at(5, 20),
            add("c", json!([])).fail("NO_QUORUM").at(5, 20),
            add("d", json!([[30, 3]])).at(21, 30),
            repeat("a", json!([[10, 1]])).at(40, 50),
            Line::new("other-payload", "c", json!(2)).extra("refused", "REQUEST_MISMATCH").at(51, 60),
            Line::new("expired", "c", json!(1)).extra("refused", "REQUEST_EXPIRED").at(61, 70),
            read(3).at(71, 80),
            last(3),
        ];
        let verdict = check(&history(&lines));
        assert!(verdict.is_valid(), "{verdict:?}");
    }

    #[test]
    fn bad_histories_name_the_operations() {
        let one = || add("a", json!([[10, 1]])).at(0, 10);
        let bad: Vec<(&str, Vec<Line>, Vec<usize>)> = vec![
            ("two answers at once", vec![add("a", json!([[10, 1], [11, 2]])).at(0, 10), last(1)], vec![0]),
            ("another answer later", vec![one(), repeat("a", json!([[20, 2]])).at(20, 30), last(1)], vec![0, 1]),
            ("one sum twice", vec![one(), add("b", json!([[20, 1]])).at(5, 30), last(2)], vec![0, 1]),
            (
                "out of order",
                vec![add("a", json!([[20, 2]])).at(0, 10), add("b", json!([[10, 1]])).at(20, 30), last(2)],
                vec![0, 1],
            ),
            ("lost", vec![one(), last(0)], vec![1]),
            ("doubled", vec![one(), last(2)], vec![1]),
            (
                "a failed one took effect",
                vec![one(), add("b", json!([])).fail("NO_QUORUM").at(20, 30), last(2)],
                vec![2],
            ),
            ("stale", vec![one(), read(0).at(20, 30), last(1)], vec![1]),
            (
                "ran twice",
                vec![one(), Line::new("other-payload", "c", json!(2)).ok(json!(3)).at(20, 30), last(1)],
                vec![1],
            ),
            (
                "a repeat called other",
                vec![one(), repeat("a", json!([])).extra("errors", json!(["REQUEST_MISMATCH"])).at(20, 30), last(1)],
                vec![1],
            ),
            ("ran expired", vec![one(), Line::new("expired", "c", json!(1)).ok(json!(2)).at(20, 30), last(1)], vec![1]),
        ];
        for (name, lines, operations) in bad {
            assert!(named(check(&history(&lines))).contains(&operations), "{name}");
        }
    }

    #[test]
    fn a_shard_that_has_decided_nothing_may_take_an_old_id() {
        let old = Line::new("expired", "c", json!(1)).ok(json!(1)).at(0, 10);
        let verdict = check(&history(&[old, add("a", json!([[20, 2]])).at(20, 30), last(2)]));
        assert!(verdict.is_valid(), "{verdict:?}");
    }

    #[test]
    fn without_a_final_read_nothing_is_known() {
        let verdict = check(&history(&[add("a", json!([[10, 1]])).at(0, 10)]));
        assert!(matches!(verdict, Verdict::Unknown { .. }));
    }
}
