//! Sets of unique elements, read by scan.
//!
//! An element that was acknowledged is in every scan that begins later. No scan shows one that nobody had begun to add
//! by its end, nor one whose addition failed definitely, nor one twice. Of what is missing the finding says what kind of
//! loss it is: lost (no later scan shows it either), stale (one does), or never seen at all.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::{Finding, Verdict};
use crate::history::{History, Kind};

/// One scan: its place, its start and its end, and the elements it showed.
struct Scan {
    place: usize,
    start: u64,
    end: u64,
    elements: HashSet<i64>,
}

/// Judges the operations `add` (of one element) and `read` (of the list of all) of every set.
pub fn check(history: &History) -> Verdict {
    let mut findings = Vec::new();
    let mut adds: BTreeMap<&str, HashMap<i64, usize>> = BTreeMap::new();
    let mut scans: BTreeMap<&str, Vec<Scan>> = BTreeMap::new();
    for (place, operation) in history.operations.iter().enumerate() {
        match operation.f.as_str() {
            "add" => {
                let Some(element) = operation.input.as_i64() else {
                    return Verdict::Unknown { why: format!("operation {place} adds no integer") };
                };
                adds.entry(&operation.key).or_default().insert(element, place);
            }
            "read" if operation.is_ok() => {
                let listed: Option<Vec<i64>> =
                    operation.output.as_array().map(|list| list.iter().filter_map(Value::as_i64).collect());
                let (Some(listed), Some(end)) = (listed, operation.end) else {
                    return Verdict::Unknown { why: format!("operation {place} read no list") };
                };
                let mut elements = HashSet::new();
                for element in listed {
                    if !elements.insert(element) {
                        findings.push(Finding {
                            what: format!("element {element} is in one scan twice"),
                            key: operation.key.clone(),
                            operations: vec![place],
                        });
                    }
                }
                let scan = Scan { place, start: operation.start, end, elements };
                scans.entry(&operation.key).or_default().push(scan);
            }
            _ => {}
        }
    }
    let mut unread = Vec::new();
    for (&key, adds) in &adds {
        match scans.get_mut(key) {
            None => unread.push(key),
            Some(scans) => {
                scans.sort_by_key(|scan| scan.start);
                losses(history, key, adds, scans, &mut findings);
            }
        }
    }
    for (&key, scans) in &scans {
        let none = HashMap::new();
        inventions(history, key, adds.get(key).unwrap_or(&none), scans, &mut findings);
    }
    if !findings.is_empty() {
        return Verdict::Invalid { findings };
    }
    if !unread.is_empty() {
        return Verdict::Unknown { why: format!("no scan of {}", unread.join(", ")) };
    }
    let elements: usize = adds.values().map(HashMap::len).sum();
    let scans: usize = scans.values().map(Vec::len).sum();
    Verdict::Valid { summary: format!("{elements} elements, {scans} scans: none missing, invented or doubled") }
}

fn losses(history: &History, key: &str, adds: &HashMap<i64, usize>, scans: &[Scan], findings: &mut Vec<Finding>) {
    let mut adds: Vec<(i64, usize)> = adds.iter().map(|(&element, &place)| (element, place)).collect();
    adds.sort_unstable();
    for (element, place) in adds {
        let operation = &history.operations[place];
        let Some(acknowledged) = operation.end.filter(|_| operation.is_ok()) else { continue };
        let later = &scans[scans.partition_point(|scan| scan.start <= acknowledged)..];
        let Some(at) = later.iter().position(|scan| !scan.elements.contains(&element)) else { continue };
        let missing = &later[at];
        let seen_before = scans.iter().find(|scan| scan.start < missing.start && scan.elements.contains(&element));
        let seen_after = later[at..].iter().find(|scan| scan.elements.contains(&element));
        let mut operations = vec![place];
        let kind = match (seen_before, seen_after) {
            (_, Some(after)) => {
                operations.extend([missing.place, after.place]);
                "stale: it shows again later"
            }
            (Some(before), None) => {
                operations.extend([before.place, missing.place]);
                "lost: it was seen before and never again"
            }
            (None, None) => {
                operations.push(missing.place);
                "never seen at all"
            }
        };
        let what = format!("element {element} was acknowledged and is missing in a later scan ({kind})");
        findings.push(Finding { what, key: key.to_owned(), operations });
    }
}

fn inventions(history: &History, key: &str, adds: &HashMap<i64, usize>, scans: &[Scan], findings: &mut Vec<Finding>) {
    let mut told = HashSet::new();
    for scan in scans {
        for &element in &scan.elements {
            let (what, operations) = match adds.get(&element) {
                None => ("was added by nobody", vec![scan.place]),
                Some(&place) => {
                    let operation = &history.operations[place];
                    match operation.outcome {
                        Kind::Fail => ("is there, although its addition failed definitely", vec![place, scan.place]),
                        _ if scan.end < operation.start => ("is there before it was added", vec![scan.place, place]),
                        _ => continue,
                    }
                }
            };
            if told.insert(element) {
                findings.push(Finding { what: format!("element {element} {what}"), key: key.to_owned(), operations });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::testing::{Line, history, named};
    use serde_json::json;

    fn add(element: i64) -> Line {
        Line::new("add", "s", json!(element))
    }

    fn read(elements: &[i64]) -> Line {
        Line::new("read", "s", Value::Null).ok(json!(elements))
    }

    #[test]
    fn good_histories_pass() {
        let lines = [
            add(1).at(0, 10),
            add(2).info("timeout").at(0, 10),
            add(3).fail("NO_QUORUM").at(0, 10),
            read(&[1]).at(20, 30),
            read(&[2, 1]).at(40, 50),
            add(4).at(55, 70),
            read(&[1, 2]).at(60, 65),
            read(&[1, 2, 4]).at(80, 90),
        ];
        let verdict = check(&history(&lines));
        assert!(verdict.is_valid(), "{verdict:?}");
    }

    #[test]
    fn bad_histories_name_the_operations() {
        let bad: Vec<(&str, Vec<Line>, Vec<usize>)> = vec![
            ("never seen", vec![add(1).at(0, 10), read(&[]).at(20, 30)], vec![0, 1]),
            ("lost", vec![add(1).at(0, 10), read(&[1]).at(20, 30), read(&[]).at(40, 50)], vec![0, 1, 2]),
            ("stale", vec![add(1).at(0, 10), read(&[]).at(20, 30), read(&[1]).at(40, 50)], vec![0, 1, 2]),
            ("invented", vec![add(1).at(0, 10), read(&[1, 7]).at(20, 30)], vec![1]),
            ("failed", vec![add(1).fail("NO_QUORUM").at(0, 10), read(&[1]).at(20, 30)], vec![0, 1]),
            ("too early", vec![read(&[1]).at(0, 10), add(1).at(20, 30), read(&[1]).at(40, 50)], vec![0, 1]),
            ("twice", vec![add(1).at(0, 10), read(&[1, 1]).at(20, 30)], vec![1]),
        ];
        for (name, lines, operations) in bad {
            assert_eq!(named(check(&history(&lines))), [operations], "{name}");
        }
    }

    #[test]
    fn without_a_scan_nothing_is_known() {
        assert!(matches!(check(&history(&[add(1).at(0, 10)])), Verdict::Unknown { .. }));
    }
}
