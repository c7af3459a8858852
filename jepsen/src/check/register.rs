//! Registers: is each key's history linearizable?
//!
//! A register is linearizable iff each key is, so keys are searched one by one (Wing and Gong's search with Lowe's
//! memory, by `porcupine-rs`), each within [`TIME_PER_KEY`]; a key that takes longer stays unknown. What the search is
//! told:
//!
//! - a refused cas is a read of what it observed;
//! - an operation that failed definitely did not happen (that its value is never seen is the version oracle's to check);
//! - an operation of unknown outcome may happen at any time from its beginning on, also after the end. Such a cas must be
//!   allowed to find another value than it expects and do nothing, else every one that had no effect would be an alarm;
//! - a write of unknown outcome whose value nobody ever saw is left out: values are unique, so it can be put just before
//!   the next write, or never, without anybody noticing.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use porcupine_rs::{CheckResult, Model, check_operations_timeout};
use serde_json::Value;

use super::{Finding, Verdict};
use crate::history::{History, Kind, Operation};

/// Longest search over one key; keys are kept short enough that a hundredth of it is usual.
const TIME_PER_KEY: Duration = Duration::from_secs(20);
/// Longest search over a piece of a key, when the smallest piece that contradicts itself is looked for.
const TIME_PER_PIECE: Duration = Duration::from_secs(2);
/// Longest time for leaving out what does not matter.
const TIME_FOR_CULPRITS: Duration = Duration::from_secs(20);

/// What an operation did, as far as it is known. None is absence.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Read(Option<i64>),
    Write(Option<i64>),
    Swap {
        from: Option<i64>,
        to: Option<i64>,
    },
    /// Of unknown outcome.
    MaybeSwap {
        from: Option<i64>,
        to: Option<i64>,
    },
}

#[derive(Clone, Debug)]
struct Register;

impl Model for Register {
    type State = Option<i64>;
    type Op = Step;
    type Metadata = ();

    fn init() -> Option<i64> {
        None
    }

    fn step(state: &Option<i64>, step: &Step) -> (bool, Option<i64>) {
        match step {
            Step::Read(seen) => (seen == state, *state),
            Step::Write(value) => (true, *value),
            Step::Swap { from, to } => (from == state, *to),
            Step::MaybeSwap { from, to } => (true, if from == state { *to } else { *state }),
        }
    }
}

/// One operation as the search sees it.
struct Entry {
    /// Its place in the history.
    place: usize,
    start: i64,
    end: i64,
    step: Step,
}

/// Judges the operations `read`, `write`, `delete` and `cas` of every key.
pub fn check(history: &History) -> Verdict {
    let mut keys: BTreeMap<&str, Vec<Entry>> = BTreeMap::new();
    for (place, operation) in history.operations.iter().enumerate() {
        match step(operation) {
            Ok(Some(step)) => {
                // What is not known to be over can still happen later.
                let end = operation.settled().map_or(i64::MAX, time);
                keys.entry(&operation.key).or_default().push(Entry { place, start: time(operation.start), end, step });
            }
            Ok(None) => {}
            Err(why) => return Verdict::Unknown { why: format!("operation {place}: {why}") },
        }
    }
    let mut findings = Vec::new();
    let mut unknown = Vec::new();
    let mut searched = 0;
    for (key, entries) in &mut keys {
        drop_unnoticed(entries);
        searched += entries.len();
        match search(entries, TIME_PER_KEY) {
            CheckResult::Ok => {}
            CheckResult::Unknown => unknown.push((*key).to_owned()),
            CheckResult::Illegal => {
                let operations = culprits(entries);
                let what = format!(
                    "no order of the {} operations on this key explains all answers; these {} contradict one another",
                    entries.len(),
                    operations.len()
                );
                findings.push(Finding { what, key: (*key).to_owned(), operations });
            }
        }
    }
    if !findings.is_empty() {
        return Verdict::Invalid { findings };
    }
    if !unknown.is_empty() {
        return Verdict::Unknown { why: format!("the search took too long for {}", unknown.join(", ")) };
    }
    Verdict::Valid { summary: format!("{searched} operations on {} keys are linearizable", keys.len()) }
}

fn time(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

/// What an operation tells the search; none: nothing.
fn step(operation: &Operation) -> Result<Option<Step>, &'static str> {
    let value = |value: &Value| match value {
        Value::Null => Ok(None),
        other => other.as_i64().map(Some).ok_or("a value that is no integer"),
    };
    let pair = |pair: &Value| match pair.as_array().map(Vec::as_slice) {
        Some([from, to]) => Ok((value(from)?, value(to)?)),
        _ => Err("a cas without [old, new]"),
    };
    Ok(match (operation.f.as_str(), operation.outcome) {
        ("read", Kind::Ok) => Some(Step::Read(value(&operation.output)?)),
        ("write", Kind::Ok | Kind::Info) => Some(Step::Write(value(&operation.input)?)),
        ("delete", Kind::Ok | Kind::Info) => Some(Step::Write(None)),
        ("cas", Kind::Ok) => {
            let (from, to) = pair(&operation.input)?;
            Some(Step::Swap { from, to })
        }
        ("cas", Kind::Info) => {
            let (from, to) = pair(&operation.input)?;
            Some(Step::MaybeSwap { from, to })
        }
        ("cas", Kind::Fail) if operation.text("error") == Some("mismatch") => {
            let observed = operation.extra.get("observed").ok_or("a mismatch that does not say what it observed")?;
            Some(Step::Read(value(observed)?))
        }
        _ => None,
    })
}

/// Leaves out writes of unknown outcome whose value was never seen by anybody.
fn drop_unnoticed(entries: &mut Vec<Entry>) {
    loop {
        let seen: HashSet<i64> = entries
            .iter()
            .filter_map(|entry| match entry.step {
                Step::Read(value) => value,
                Step::Swap { from, .. } | Step::MaybeSwap { from, .. } => from,
                Step::Write(_) => None,
            })
            .collect();
        let before = entries.len();
        entries.retain(|entry| match entry.step {
            Step::Write(Some(value)) => entry.end != i64::MAX || seen.contains(&value),
            Step::MaybeSwap { to: Some(value), .. } => seen.contains(&value),
            _ => true,
        });
        if entries.len() == before {
            return;
        }
    }
}

fn search(entries: &[Entry], patience: Duration) -> CheckResult {
    let operations: Vec<porcupine_rs::Operation<Register>> = entries
        .iter()
        .map(|entry| porcupine_rs::Operation {
            client_id: None,
            call_time: entry.start,
            return_time: entry.end,
            op: entry.step.clone(),
            metadata: None,
        })
        .collect();
    check_operations_timeout(&operations, patience)
}

/// A small set of operations that no order explains: the shortest prefix that contradicts itself, without every read
/// that does not matter for it. (Leaving out a write would make a contradiction of its own.)
fn culprits(entries: &[Entry]) -> Vec<usize> {
    let begun = Instant::now();
    let illegal = |entries: &[Entry]| search(entries, TIME_PER_PIECE) == CheckResult::Illegal;
    let until = |end: i64| -> Vec<Entry> {
        // What began by then; what had not ended by then had no answer yet.
        let begun = entries.iter().filter(|entry| entry.start <= end);
        begun.filter_map(|entry| before(entry, end)).collect()
    };
    let mut ends: Vec<i64> = entries.iter().map(|entry| entry.end).filter(|&end| end != i64::MAX).collect();
    ends.sort_unstable();
    // A prefix of a linearizable history is linearizable, so the shortest one that is not can be halved towards.
    let first = ends.partition_point(|&end| !illegal(&until(end)));
    let mut piece = ends.get(first).map_or_else(|| until(i64::MAX), |&end| until(end));
    let last = ends.get(first).copied();
    if !illegal(&piece) {
        return entries.iter().map(|entry| entry.place).collect();
    }
    // A read takes part in the contradiction if the rest is without it none.
    let reads: Vec<usize> =
        piece.iter().filter(|entry| matches!(entry.step, Step::Read(_))).map(|entry| entry.place).collect();
    for place in reads {
        if begun.elapsed() > TIME_FOR_CULPRITS {
            break;
        }
        let (without, read): (Vec<Entry>, Vec<Entry>) = piece.drain(..).partition(|entry| entry.place != place);
        piece = without;
        if !illegal(&piece) {
            piece.extend(read);
        }
    }
    let seen: HashSet<i64> = piece
        .iter()
        .filter_map(|entry| match entry.step {
            Step::Read(value) => value,
            Step::Swap { from, .. } => from,
            _ => None,
        })
        .collect();
    // Of the writes: those whose value is seen, and those around the operation at which it broke.
    let breaking = piece.iter().find(|entry| Some(entry.end) == last);
    let from = breaking.map_or(0, |entry| entry.start);
    let mut places: Vec<usize> = piece
        .iter()
        .filter(|entry| match entry.step {
            Step::Read(_) => true,
            Step::Write(Some(value)) | Step::Swap { to: Some(value), .. } | Step::MaybeSwap { to: Some(value), .. } => {
                seen.contains(&value) || entry.end >= from
            }
            _ => entry.end >= from,
        })
        .map(|entry| entry.place)
        .collect();
    // The last write acknowledged before the operation at which it broke is what a stale read should have seen.
    let newest = piece.iter().filter(|entry| !matches!(entry.step, Step::Read(_)) && entry.end < from);
    places.extend(newest.max_by_key(|entry| entry.start).map(|entry| entry.place));
    places.sort_unstable();
    places.dedup();
    places
}

/// The operation as it was known at `end`: what had no answer by then may or may not have happened.
fn before(entry: &Entry, end: i64) -> Option<Entry> {
    let open = entry.end > end;
    let step = match &entry.step {
        Step::Read(_) if open => return None,
        Step::Swap { from, to } if open => Step::MaybeSwap { from: *from, to: *to },
        step => step.clone(),
    };
    Some(Entry { place: entry.place, start: entry.start, end: if open { i64::MAX } else { entry.end }, step })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::testing::{Line, history};
    use proptest::prelude::*;
    use serde_json::json;

    fn write(value: i64) -> Line {
        Line::new("write", "k", json!(value)).ok(json!(value))
    }

    fn read(value: Value) -> Line {
        Line::new("read", "k", Value::Null).ok(value)
    }

    fn cas(from: Value, to: Value) -> Line {
        Line::new("cas", "k", json!([from, to]))
    }

    fn refused(from: i64, to: i64, observed: Value) -> Line {
        cas(json!(from), json!(to)).fail("mismatch").extra("observed", observed)
    }

    fn culprits_of(lines: &[Line]) -> Vec<usize> {
        match check(&history(lines)) {
            Verdict::Invalid { findings } => findings[0].operations.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn good_histories_pass() {
        let good: Vec<Vec<Line>> = vec![
            vec![write(1).at(0, 10), read(json!(1)).at(20, 30)],
            // A read beside a write sees it or does not, and a later one beside it may see it.
            vec![write(1).at(0, 100), read(Value::Null).at(5, 10), read(json!(1)).at(20, 30)],
            // Deleted and put again if absent.
            vec![
                write(1).at(0, 10),
                Line::new("delete", "k", Value::Null).ok(Value::Null).at(20, 30),
                read(Value::Null).at(40, 50),
                cas(Value::Null, json!(2)).ok(json!([null, 2])).at(60, 70),
                read(json!(2)).at(80, 90),
            ],
            // A refused cas saw what was there.
            vec![write(1).at(0, 10), refused(7, 8, json!(1)).at(20, 30), read(json!(1)).at(40, 50)],
            // A write of unknown outcome that happens long after its client gave up.
            vec![
                write(1).at(0, 10),
                Line::new("write", "k", json!(2)).info("timeout").at(20, 30),
                read(json!(1)).at(40, 50),
                read(json!(2)).at(60, 70),
            ],
            // A cas of unknown outcome that never happened, although its value came and went.
            vec![
                write(1).at(0, 10),
                cas(json!(1), json!(2)).info("timeout").at(11, 12),
                write(3).at(20, 30),
                read(json!(3)).at(40, 50),
            ],
            // ... and one that did.
            vec![write(1).at(0, 10), cas(json!(1), json!(2)).info("timeout").at(11, 12), read(json!(2)).at(40, 50)],
            // What failed never happened.
            vec![
                write(1).at(0, 10),
                Line::new("write", "k", json!(2)).fail("NO_QUORUM").at(20, 30),
                read(json!(1)).at(40, 50),
            ],
        ];
        for lines in good {
            let verdict = check(&history(&lines));
            assert!(verdict.is_valid(), "{verdict:?}");
        }
    }

    #[test]
    fn a_stale_read_is_found_and_named() {
        let lines = [write(1).at(0, 10), write(2).at(20, 30), read(json!(2)).at(31, 32), read(json!(1)).at(40, 50)];
        let culprits = culprits_of(&lines);
        assert!(culprits.contains(&1) && culprits.contains(&3), "{culprits:?}");
    }

    #[test]
    fn a_lost_write_is_found() {
        assert!(culprits_of(&[write(1).at(0, 10), read(Value::Null).at(20, 30)]).contains(&1));
        // Lost by a later cas that builds on the older value.
        let lines = [write(1).at(0, 10), write(2).at(20, 30), cas(json!(1), json!(3)).ok(json!([1, 3])).at(40, 50)];
        assert!(culprits_of(&lines).contains(&2));
    }

    #[test]
    fn two_swaps_of_one_value_cannot_both_succeed() {
        let lines = [
            write(1).at(0, 10),
            cas(json!(1), json!(2)).ok(json!([1, 2])).at(20, 60),
            cas(json!(1), json!(3)).ok(json!([1, 3])).at(20, 70),
        ];
        assert_eq!(culprits_of(&lines), [0, 1, 2]);
    }

    #[test]
    fn a_refusal_that_saw_what_was_gone_is_found() {
        let lines = [write(1).at(0, 10), write(2).at(20, 30), refused(7, 8, json!(1)).at(40, 50)];
        assert!(culprits_of(&lines).contains(&2));
    }

    #[test]
    fn a_value_that_comes_back_is_found() {
        let lines = [write(1).at(0, 10), write(2).at(20, 100), read(json!(2)).at(25, 30), read(json!(1)).at(40, 50)];
        let culprits = culprits_of(&lines);
        assert!(culprits.contains(&2) && culprits.contains(&3), "{culprits:?}");
    }

    #[test]
    fn a_failed_write_that_is_seen_is_found() {
        let failed = Line::new("write", "k", json!(2)).fail("NO_QUORUM").at(20, 30);
        assert!(culprits_of(&[write(1).at(0, 10), failed, read(json!(2)).at(40, 50)]).contains(&2));
    }

    #[test]
    fn keys_are_judged_by_themselves() {
        let other = Line::new("read", "other", Value::Null).ok(json!(9)).at(40, 50);
        match check(&history(&[write(1).at(0, 10), other])) {
            Verdict::Invalid { findings } => {
                assert_eq!(findings.len(), 1);
                assert_eq!(findings[0].key, "other");
            }
            verdict => panic!("{verdict:?}"),
        }
    }

    #[test]
    fn what_cannot_be_read_is_unknown() {
        let odd = Line::new("read", "k", Value::Null).ok(json!("text")).at(0, 10);
        assert!(matches!(check(&history(&[odd])), Verdict::Unknown { .. }));
    }

    /// What a client asks: kind, which of the known values a cas expects, and how long it waits before and after.
    fn plan() -> impl Strategy<Value = Vec<(u8, u8, u64, u64, bool)>> {
        prop::collection::vec((0_u8..5, any::<u8>(), 1_u64..40, 1_u64..40, prop::bool::weighted(0.1)), 5..80)
    }

    /// A history of a true register asked by four clients that overlap; each takes effect between its two stamps.
    fn execute(plan: &[(u8, u8, u64, u64, bool)]) -> Vec<Line> {
        let mut state: Option<i64> = None;
        let mut lines = Vec::new();
        let mut values: Vec<i64> = vec![0];
        for (at, &(kind, pick, before, after, lost)) in plan.iter().enumerate() {
            // Effects happen in the order of `at`, ten apart; stamps reach out over the neighbours'.
            let moment = 1_000 + at as u64 * 10;
            let (start, end) = (moment - before, moment + after);
            let fresh = at as i64 + 1;
            let expected = values[pick as usize % values.len()];
            let seen = state.map_or(Value::Null, |value| json!(value));
            let line = match kind {
                0 | 1 => read(seen),
                2 => {
                    state = Some(fresh);
                    write(fresh)
                }
                3 => {
                    state = None;
                    Line::new("delete", "k", Value::Null).ok(Value::Null)
                }
                _ if state == Some(expected) => {
                    state = Some(fresh);
                    cas(json!(expected), json!(fresh)).ok(json!([expected, fresh]))
                }
                _ => refused(expected, fresh, seen),
            };
            values.extend(state);
            let line = if lost && kind >= 2 { line.info("timeout") } else { line };
            lines.push(line.at(start, end).by(at as u64));
        }
        lines
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_a_true_register_did_passes(plan in plan()) {
            let verdict = check(&history(&execute(&plan)));
            prop_assert!(verdict.is_valid(), "{verdict:?}");
        }

        #[test]
        fn a_read_of_what_never_was_fails(plan in plan(), pick in any::<prop::sample::Index>()) {
            let mut lines = execute(&plan);
            let reads: Vec<usize> = (0..lines.len()).filter(|&at| lines[at].is("read")).collect();
            prop_assume!(!reads.is_empty());
            let at = reads[pick.index(reads.len())];
            lines[at] = read(json!(-1)).at(lines[at].start, lines[at].end).by(at as u64);
            match check(&history(&lines)) {
                Verdict::Invalid { findings } => prop_assert!(findings[0].operations.contains(&at)),
                verdict => prop_assert!(false, "{verdict:?}"),
            }
        }
    }
}
