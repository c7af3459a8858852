//! Scans: each key that is there all the while exactly once, and none that is not there at all.
//!
//! Even rows are fixed: loaded once, so every scan that begins after the load shows each exactly once. Odd rows come and
//! go. One that was put, acknowledged before the scan began, and that nobody can have deleted before it ended, is in it;
//! one that was deleted before and that nobody can have put since is not. No row is there twice, and where the table is
//! ordered, rows are.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::{Finding, Verdict};
use crate::history::{History, Operation};

/// Most findings of one scan: a scan that lost a page lost them all.
const EACH_MAX: usize = 5;

/// What happened to one odd row: puts and deletions, in the order of their beginnings.
type Changes = Vec<(usize, bool)>;

/// Judges the operations `load`, `put`, `delete` and `scan` of every table.
pub fn check(history: &History) -> Verdict {
    let mut loaded: BTreeMap<&str, (usize, usize, u64)> = BTreeMap::new();
    let mut changes: HashMap<(&str, i64), Changes> = HashMap::new();
    for (place, operation) in history.operations.iter().enumerate() {
        match (operation.f.as_str(), operation.input.as_i64()) {
            ("load", Some(count)) if operation.is_ok() => {
                let count = usize::try_from(count).unwrap_or(0);
                loaded.insert(&operation.key, (place, count, operation.end.unwrap_or(u64::MAX)));
            }
            ("put", Some(row)) if operation.is_possible() => {
                changes.entry((&operation.key, row)).or_default().push((place, true));
            }
            ("delete", Some(row)) if operation.is_possible() => {
                changes.entry((&operation.key, row)).or_default().push((place, false));
            }
            _ => {}
        }
    }
    let mut findings = Vec::new();
    let mut judged = 0;
    for (place, scan) in history.oks("scan") {
        let rows: Option<Vec<i64>> = scan.output.as_array().and_then(|rows| rows.iter().map(Value::as_i64).collect());
        let Some(rows) = rows else { return Verdict::Unknown { why: format!("operation {place} shows no rows") } };
        let Some(&(load, count, since)) = loaded.get(scan.key.as_str()) else { continue };
        judged += 1;
        let mut found: Vec<(String, Vec<usize>)> = Vec::new();
        let seen = repetitions(scan, place, &rows, &mut found);
        for row in (0..count).filter_map(|fixed| i64::try_from(fixed * 2).ok()) {
            if since < scan.start && !seen.contains_key(&row) {
                found.push((format!("the fixed row {row} is missing"), vec![load, place]));
            }
        }
        for &row in seen.keys() {
            let fixed = row >= 0 && row % 2 == 0 && (row as usize) < count * 2;
            if !fixed && !changes.contains_key(&(scan.key.as_str(), row)) {
                found.push((format!("row {row} is there, which nobody put"), vec![place]));
            }
        }
        for ((_, row), changes) in changes.iter().filter(|((table, _), _)| *table == scan.key) {
            match (certainty(history, changes, scan), seen.contains_key(row)) {
                (Some((put, true)), false) => {
                    found.push((format!("row {row} was there all the while and is missing"), vec![put, place]));
                }
                (Some((delete, false)), true) => {
                    found.push((format!("row {row} was deleted before and is shown"), vec![delete, place]));
                }
                _ => {}
            }
        }
        found.truncate(EACH_MAX);
        findings.extend(found.into_iter().map(|(what, operations)| Finding {
            what,
            key: scan.key.clone(),
            operations,
        }));
    }
    if !findings.is_empty() {
        Verdict::Invalid { findings }
    } else if judged == 0 {
        Verdict::Unknown { why: "no loaded table was scanned".into() }
    } else {
        Verdict::Valid { summary: format!("{judged} scans show each key once") }
    }
}

/// How often each row is shown; tells those shown twice or out of order.
fn repetitions(
    scan: &Operation,
    place: usize,
    rows: &[i64],
    found: &mut Vec<(String, Vec<usize>)>,
) -> HashMap<i64, usize> {
    let flag = |field: &str| scan.extra.get(field).and_then(Value::as_bool).unwrap_or(false);
    let mut seen: HashMap<i64, usize> = HashMap::new();
    for &row in rows {
        *seen.entry(row).or_default() += 1;
    }
    let mut twice: Vec<i64> = seen.iter().filter(|(_, count)| **count > 1).map(|(row, _)| *row).collect();
    twice.sort_unstable();
    found.extend(twice.into_iter().map(|row| (format!("row {row} is shown twice"), vec![place])));
    if flag("ordered") {
        let reverse = flag("reverse");
        let wrong = rows.windows(2).find(|pair| if reverse { pair[0] < pair[1] } else { pair[0] > pair[1] });
        found.extend(wrong.map(|pair| (format!("row {} is shown before row {}", pair[0], pair[1]), vec![place])));
    }
    seen
}

/// Whether a row certainly was there (or was not) during a whole scan, and the operation that made it so.
fn certainty(history: &History, changes: &Changes, scan: &Operation) -> Option<(usize, bool)> {
    let end = scan.end?;
    let settled = |place: usize| {
        let operation = &history.operations[place];
        operation.end.filter(|_| operation.is_ok()).filter(|&over| over < scan.start)
    };
    // The last one that was over before the scan, with no other that can have come after it.
    let (last, puts) = *changes.iter().rev().find(|(place, _)| settled(*place).is_some())?;
    let begun = history.operations[last].start;
    let disturbed = changes.iter().any(|&(place, put)| {
        let other = &history.operations[place];
        // One of unknown outcome may still happen, whenever it began.
        let over = other.settled().unwrap_or(u64::MAX);
        place != last && put != puts && other.start <= end && over >= begun
    });
    (!disturbed).then_some((last, puts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::testing::{Line, history, named};
    use serde_json::json;

    fn load() -> Line {
        Line::new("load", "t", json!(3)).ok(json!(3)).at(0, 10)
    }

    fn put(row: i64) -> Line {
        Line::new("put", "t", json!(row))
    }

    fn delete(row: i64) -> Line {
        Line::new("delete", "t", json!(row))
    }

    fn scan(rows: &[i64]) -> Line {
        Line::new("scan", "t", Value::Null).ok(json!(rows)).at(100, 200)
    }

    #[test]
    fn good_histories_pass() {
        let lines = [
            load(),
            scan(&[4, 0]).at(5, 20),
            put(1).at(20, 30),
            delete(3).at(20, 30),
            put(5).info("timeout").at(20, 30),
            scan(&[0, 1, 2, 4]),
            scan(&[0, 1, 2, 4, 5]).extra("ordered", true),
            scan(&[5, 4, 2, 1, 0]).extra("ordered", true).extra("reverse", true),
            delete(1).at(150, 300),
            scan(&[4, 2, 0]).at(160, 310),
            scan(&[4, 2, 1, 0]).at(160, 310),
            scan(&[4, 2, 0]).at(301, 400),
        ];
        let verdict = check(&history(&lines));
        assert!(verdict.is_valid(), "{verdict:?}");
    }

    #[test]
    fn bad_histories_name_the_operations() {
        let bad: Vec<(&str, Vec<Line>, Vec<usize>)> = vec![
            ("a fixed key is missing", vec![load(), scan(&[0, 4])], vec![0, 1]),
            ("twice", vec![load(), scan(&[0, 2, 2, 4])], vec![1]),
            ("out of order", vec![load(), scan(&[0, 4, 2]).extra("ordered", true)], vec![1]),
            (
                "out of reverse order",
                vec![load(), scan(&[4, 0, 2]).extra("ordered", true).extra("reverse", true)],
                vec![1],
            ),
            ("invented", vec![load(), scan(&[0, 2, 4, 7])], vec![1]),
            ("none of ours", vec![load(), scan(&[0, 2, 4, -1])], vec![1]),
            ("a churn key is missing", vec![load(), put(1).at(20, 30), scan(&[0, 2, 4])], vec![1, 2]),
            (
                "a deleted key is back",
                vec![load(), put(1).at(20, 30), delete(1).at(40, 50), scan(&[0, 1, 2, 4])],
                vec![2, 3],
            ),
        ];
        for (name, lines, operations) in bad {
            assert!(named(check(&history(&lines))).contains(&operations), "{name}");
        }
    }
}
