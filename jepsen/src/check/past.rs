//! The past of single keys: one truth, told alike by all until it is trimmed.
//!
//! All answers together tell, per key, which versions there are and what their values are ([`Truth`]). Then:
//!
//! 1. one version has one value;
//! 2. the state as of a version is that of the newest version known at or before it, also if that version became known
//!    only later: what was once told of a moment stays true;
//! 3. two reads as of the same version answer the same;
//! 4. no version is refused as trimmed before the window is over (unless clocks were wrong). A copy that lags may answer
//!    afterwards what others have trimmed already, and then by 2 and 3 answers the same;
//! 5. a list of versions descends and lacks none that was known when it was asked for;
//! 6. a rollback is a version with the value of its target.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::{Finding, Verdict};
use crate::history::{History, Operation};

/// How much of a window may be missing: times are those of the harness, and the node's are its own.
const TOLERANCE_NS: u64 = 1_000_000_000;

/// What is known of one version: its value (null: a deletion), if known, and who told it.
#[derive(Clone, Debug)]
struct Known {
    value: Option<Value>,
    place: usize,
    /// When that was told.
    told: u64,
    /// Whether it is a version for certain: deleting what is not there makes none.
    row: bool,
}

/// All versions of one key.
type Truth = BTreeMap<u64, Known>;

/// Judges the operations `put`, `delete`, `rollback`, `as-of` and `versions` of every key of a table with this window.
pub fn check(history: &History, window_ms: u64) -> Verdict {
    let mut keys: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (place, operation) in history.operations.iter().enumerate() {
        keys.entry(&operation.key).or_default().push(place);
    }
    let mut findings = Vec::new();
    let (mut versions, mut reads) = (0, 0);
    for (key, places) in &keys {
        let mut found = |what: String, operations: Vec<usize>| {
            findings.push(Finding { what, key: (*key).to_owned(), operations });
        };
        let truth = truth(history, places, &mut found);
        versions += truth.len();
        reads += as_of(history, places, &truth, &mut found);
        trimmed(history, places, window_ms, &mut found);
        lists(history, places, &truth, &mut found);
        rollbacks(history, places, &truth, &mut found);
    }
    if !findings.is_empty() {
        Verdict::Invalid { findings }
    } else if reads == 0 {
        Verdict::Unknown { why: "the past was never read".into() }
    } else {
        Verdict::Valid {
            summary: format!("{reads} reads of the past agree on {versions} versions of {} keys", keys.len()),
        }
    }
}

/// Rows of a list of versions.
fn rows(operation: &Operation) -> Vec<(u64, Value)> {
    let row = |row: &Value| Some((row.get(0)?.as_u64()?, row.get(1)?.clone()));
    operation.output.as_array().map(|rows| rows.iter().filter_map(row).collect()).unwrap_or_default()
}

fn truth(history: &History, places: &[usize], found: &mut impl FnMut(String, Vec<usize>)) -> Truth {
    let mut truth = Truth::new();
    let mut contradicted: HashSet<u64> = HashSet::new();
    let mut tell = |version: u64, known: Known| {
        let Some(before) = truth.get_mut(&version) else {
            truth.insert(version, known);
            return;
        };
        match (&before.value, &known.value) {
            // Every later list tells it again: once is enough.
            (Some(one), Some(other)) if one != other && contradicted.insert(version) => {
                found(format!("version {version} is {one} and {other}"), vec![before.place, known.place]);
            }
            (None, Some(_)) => {
                let told = before.told.min(known.told);
                *before = Known { told, row: true, ..known };
            }
            _ => {
                before.told = before.told.min(known.told);
                before.row |= known.row;
            }
        }
    };
    for &place in places {
        let operation = &history.operations[place];
        let (true, Some(told)) = (operation.is_ok(), operation.end) else { continue };
        let known = |value: Option<Value>, row: bool| Known { value, place, told, row };
        match (operation.f.as_str(), operation.version()) {
            ("put", Some(version)) => tell(version, known(Some(operation.input.clone()), true)),
            ("delete", Some(version)) => tell(version, known(Some(Value::Null), false)),
            ("rollback", Some(version)) => tell(version, known(None, true)),
            ("as-of", Some(version)) => tell(version, known(Some(operation.output.clone()), true)),
            ("versions", _) => {
                for (version, value) in rows(operation) {
                    tell(version, known(Some(value), true));
                }
            }
            _ => {}
        }
    }
    truth
}

fn as_of(history: &History, places: &[usize], truth: &Truth, found: &mut impl FnMut(String, Vec<usize>)) -> usize {
    let mut told: HashMap<u64, usize> = HashMap::new();
    let mut reads = 0;
    for &place in places {
        let operation = &history.operations[place];
        let (true, Some(at)) = (operation.f == "as-of" && operation.is_ok(), operation.number("at")) else { continue };
        reads += 1;
        let first = *told.entry(at).or_insert(place);
        let earlier = &history.operations[first];
        if (&earlier.output, earlier.version()) != (&operation.output, operation.version()) {
            found(
                format!("as of {at} the key was {} and later {}", earlier.output, operation.output),
                vec![first, place],
            );
            continue;
        }
        let newest = truth.range(..=at).next_back();
        match (operation.version(), newest) {
            (Some(version), _) if version > at => {
                found(format!("as of {at} version {version} was shown, which is later"), vec![place]);
            }
            (Some(version), Some((newest, known))) if version < *newest => found(
                format!("as of {at} version {version} was shown, although version {newest} lies between"),
                vec![known.place, place],
            ),
            (None, Some((newest, known))) if known.value.as_ref().is_some_and(|value| !value.is_null()) => found(
                format!("as of {at} nothing was shown, although version {newest} has a value"),
                vec![known.place, place],
            ),
            _ => {}
        }
    }
    reads
}

fn trimmed(history: &History, places: &[usize], window_ms: u64, found: &mut impl FnMut(String, Vec<usize>)) {
    let window = window_ms.saturating_mul(1_000_000);
    let clocks_wrong_from =
        history.faults.iter().filter(|fault| fault.touches_clocks()).map(|fault| fault.from_ns).min();
    let mut born: HashMap<u64, usize> = HashMap::new();
    // When, which version, and where in the history.
    let mut refused: Vec<(u64, u64, usize)> = Vec::new();
    for &place in places {
        let operation = &history.operations[place];
        match (operation.f.as_str(), operation.end) {
            ("put" | "delete" | "rollback", Some(_)) if operation.is_ok() => {
                born.extend(operation.version().map(|version| (version, place)));
            }
            ("as-of", Some(end)) if operation.text("error") == Some("HISTORY_TRIMMED") => {
                refused.extend(operation.number("at").map(|at| (end, at, place)));
            }
            _ => {}
        }
    }
    for &(end, at, place) in &refused {
        let clocks_right = clocks_wrong_from.is_none_or(|wrong| end < wrong);
        if let Some(&made) = born.get(&at)
            && clocks_right
            && end.saturating_add(TOLERANCE_NS) < history.operations[made].start.saturating_add(window)
        {
            found(format!("version {at} was called trimmed within its window of {window_ms} ms"), vec![made, place]);
        }
    }
}

fn lists(history: &History, places: &[usize], truth: &Truth, found: &mut impl FnMut(String, Vec<usize>)) {
    for &place in places {
        let operation = &history.operations[place];
        if operation.f != "versions" || !operation.is_ok() {
            continue;
        }
        let rows = rows(operation);
        if let Some(pair) = rows.windows(2).find(|pair| pair[0].0 <= pair[1].0) {
            found(format!("version {} is listed before version {}", pair[0].0, pair[1].0), vec![place]);
            continue;
        }
        // At the end of a list lies the horizon, behind which nothing is promised.
        let Some(&(last, _)) = rows.last() else { continue };
        for (version, known) in truth.range(last..) {
            let listed = rows.binary_search_by(|(row, _)| version.cmp(row)).is_ok();
            if known.row && known.told < operation.start && !listed {
                found(format!("version {version} is missing in a later list of versions"), vec![known.place, place]);
            }
        }
    }
}

fn rollbacks(history: &History, places: &[usize], truth: &Truth, found: &mut impl FnMut(String, Vec<usize>)) {
    let value =
        |version: u64| truth.get(&version).and_then(|known| known.value.as_ref().map(|value| (value, known.place)));
    for &place in places {
        let operation = &history.operations[place];
        let (true, Some(to), Some(made)) =
            (operation.f == "rollback" && operation.is_ok(), operation.input.as_u64(), operation.version())
        else {
            continue;
        };
        let (Some((target, told)), Some((result, shown))) = (value(to), value(made)) else { continue };
        if target != result {
            found(
                format!("the rollback to version {to}, which is {target}, made version {made}, which is {result}"),
                vec![told, place, shown],
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::testing::{Line, history, named};
    use serde_json::json;

    const WINDOW_MS: u64 = 8_000;

    fn put(value: i64, version: u64) -> Line {
        Line::new("put", "h", json!(value)).ok(json!(value)).version(version)
    }

    fn delete(version: u64) -> Line {
        Line::new("delete", "h", Value::Null).ok(Value::Null).version(version)
    }

    fn rollback(to: u64, version: u64) -> Line {
        Line::new("rollback", "h", json!(to)).ok(json!(to)).version(version)
    }

    fn as_of(at: u64, value: Value, version: u64) -> Line {
        let line = Line::new("as-of", "h", Value::Null).ok(value).extra("at", at);
        if version > 0 { line.version(version) } else { line }
    }

    fn gone(at: u64) -> Line {
        Line::new("as-of", "h", Value::Null).fail("HISTORY_TRIMMED").extra("at", at)
    }

    fn list(rows: Value) -> Line {
        Line::new("versions", "h", Value::Null).ok(rows)
    }

    #[test]
    fn good_histories_pass() {
        let second = 1_000_000_000;
        let lines = [
            put(1, 10).at(0, 10),
            put(2, 20).at(20, 30),
            delete(30).at(40, 50),
            rollback(10, 40).at(60, 70),
            as_of(10, json!(1), 10).at(80, 90),
            as_of(19, json!(1), 10).at(80, 90),
            as_of(20, json!(2), 20).at(80, 90),
            as_of(35, Value::Null, 0).at(80, 90),
            as_of(9, Value::Null, 0).at(80, 90),
            list(json!([[40, 1], [30, null], [20, 2]])).at(100, 110),
            Line::new("put", "h", json!(3)).info("timeout").at(120, 130),
            list(json!([[50, 3], [40, 1]])).at(140, 150),
            gone(20).at(20 * second, 21 * second),
            as_of(20, json!(2), 20).at(21 * second, 22 * second),
            as_of(40, json!(1), 40).at(22 * second, 23 * second),
        ];
        let verdict = check(&history(&lines), WINDOW_MS);
        assert!(verdict.is_valid(), "{verdict:?}");
    }

    #[test]
    fn bad_histories_name_the_operations() {
        let one = || put(1, 10).at(0, 10);
        let two = || put(2, 20).at(20, 30);
        let second = 1_000_000_000;
        let bad: Vec<(&str, Vec<Line>, Vec<usize>)> = vec![
            ("an older state", vec![one(), two(), as_of(20, json!(1), 10).at(40, 50)], vec![1, 2]),
            ("a later state", vec![one(), two(), as_of(15, json!(2), 20).at(40, 50)], vec![2]),
            ("nothing", vec![one(), as_of(10, Value::Null, 0).at(40, 50)], vec![0, 1]),
            (
                "told otherwise later",
                vec![one(), as_of(5, Value::Null, 0).at(20, 30), as_of(5, json!(7), 4).at(40, 50)],
                vec![1, 2],
            ),
            ("changed afterwards", vec![as_of(15, json!(1), 10).at(0, 10), put(2, 12).at(20, 30)], vec![1, 0]),
            ("two values", vec![one(), as_of(10, json!(3), 10).at(20, 30)], vec![0, 1]),
            (
                "answered otherwise after it was trimmed",
                vec![
                    one(),
                    two(),
                    gone(20).at(20 * second, 20 * second + 1),
                    as_of(20, json!(1), 10).at(21 * second, 22 * second),
                ],
                vec![1, 3],
            ),
            (
                "trimmed too early",
                vec![one(), gone(10).at(second, second + 1), as_of(11, json!(1), 10).at(0, 10)],
                vec![0, 1],
            ),
            ("a version is missing", vec![one(), two(), list(json!([[30, 9], [10, 1]])).at(40, 50)], vec![1, 2]),
            ("out of order", vec![one(), two(), list(json!([[10, 1], [20, 2]])).at(40, 50)], vec![2]),
            (
                "a rollback to something else",
                vec![one(), two(), rollback(10, 30).at(40, 50), list(json!([[30, 2], [20, 2]])).at(60, 70)],
                vec![0, 2, 3],
            ),
            (
                "a rollback that is no version",
                vec![one(), two(), rollback(10, 30).at(40, 50), list(json!([[20, 2]])).at(60, 70)],
                vec![2, 3],
            ),
        ];
        for (name, lines, operations) in bad {
            let named = named(check(&history(&lines), WINDOW_MS));
            assert!(named.contains(&operations), "{name}: {named:?}");
        }
    }

    #[test]
    fn a_past_that_nobody_read_is_unknown() {
        assert!(matches!(check(&history(&[put(1, 10).at(0, 10)]), WINDOW_MS), Verdict::Unknown { .. }));
    }
}
