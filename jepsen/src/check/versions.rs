//! The version oracle of a register: linear in time, and sharper than the search where versions are told.
//!
//! Every written value is unique and every answer carries the version it saw or made, so per key:
//!
//! 1. a value that is seen was asked for, by a write that did not definitely fail, and not before it was asked for;
//! 2. one value is one version, and one version one value;
//! 3. who begins after an answer came sees at least that answer's version, and writes a later one;
//! 4. between the version that a cas built on and the one it made there is no other;
//! 5. a replica that answered a linearizable read had applied all that was acknowledged before (also when the key was
//!    absent and no version could be told).

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::{Finding, Verdict};
use crate::history::{History, Kind, Operation};

/// A version of the key, as some operation told it.
struct Sighting {
    place: usize,
    start: u64,
    end: u64,
    version: u64,
    /// None: the version of a deletion.
    value: Option<i64>,
    /// Whether the operation made it, else it saw it.
    made: bool,
}

/// Judges the operations `read`, `write`, `delete` and `cas` of every key.
pub fn check(history: &History) -> Verdict {
    let mut keys: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (place, operation) in history.operations.iter().enumerate() {
        keys.entry(&operation.key).or_default().push(place);
    }
    let mut findings = Vec::new();
    let mut sighted = 0;
    for (key, places) in &keys {
        let mut found = |what: String, operations: Vec<usize>| {
            findings.push(Finding { what, key: (*key).to_owned(), operations });
        };
        let sightings: Vec<Sighting> = places.iter().filter_map(|&place| sighting(history, place)).collect();
        sighted += sightings.len();
        origins(history, places, &sightings, &mut found);
        identities(&sightings, &mut found);
        order(history, places, &sightings, &mut found);
        predecessors(history, &sightings, &mut found);
    }
    if findings.is_empty() {
        Verdict::Valid { summary: format!("{sighted} sightings of versions on {} keys agree", keys.len()) }
    } else {
        Verdict::Invalid { findings }
    }
}

fn sighting(history: &History, place: usize) -> Option<Sighting> {
    let operation = &history.operations[place];
    let version = operation.version()?;
    let (value, made) = match (operation.f.as_str(), operation.outcome) {
        ("write", Kind::Ok) => (operation.input.as_i64(), true),
        ("cas", Kind::Ok) => (operation.input.get(1).and_then(Value::as_i64), true),
        ("delete", Kind::Ok) => (None, true),
        ("read", Kind::Ok) => (Some(operation.output.as_i64()?), false),
        ("cas", Kind::Fail) => (Some(operation.extra.get("observed")?.as_i64()?), false),
        _ => return None,
    };
    Some(Sighting { place, start: operation.start, end: operation.end?, version, value, made })
}

/// What was written by an operation, if it is one that writes a value.
fn written(operation: &Operation) -> Option<i64> {
    match operation.f.as_str() {
        "write" => operation.input.as_i64(),
        "cas" => operation.input.get(1).and_then(Value::as_i64),
        _ => None,
    }
}

fn origins(history: &History, places: &[usize], sightings: &[Sighting], found: &mut impl FnMut(String, Vec<usize>)) {
    let writers: HashMap<i64, usize> =
        places.iter().filter_map(|&place| written(&history.operations[place]).map(|value| (value, place))).collect();
    for seen in sightings.iter().filter(|sighting| !sighting.made) {
        let Some(value) = seen.value else { continue };
        let Some(&writer) = writers.get(&value) else {
            found(format!("the value {value} was seen, but nobody ever wrote it to this key"), vec![seen.place]);
            continue;
        };
        let operation = &history.operations[writer];
        if operation.outcome == Kind::Fail {
            found(
                format!("the value {value} was seen, although its write had failed definitely"),
                vec![writer, seen.place],
            );
        } else if seen.end < operation.start {
            found(format!("the value {value} was seen before it was written"), vec![seen.place, writer]);
        }
    }
}

fn identities(sightings: &[Sighting], found: &mut impl FnMut(String, Vec<usize>)) {
    let mut by_value: HashMap<i64, &Sighting> = HashMap::new();
    let mut by_version: HashMap<u64, &Sighting> = HashMap::new();
    for sighting in sightings {
        if let Some(value) = sighting.value {
            let first = *by_value.entry(value).or_insert(sighting);
            if first.version != sighting.version {
                found(
                    format!("the value {value} is version {} and version {}", first.version, sighting.version),
                    vec![first.place, sighting.place],
                );
            }
        }
        let first = *by_version.entry(sighting.version).or_insert(sighting);
        if first.value != sighting.value {
            found(format!("version {} is two values at once", sighting.version), vec![first.place, sighting.place]);
        }
    }
}

fn order(history: &History, places: &[usize], sightings: &[Sighting], found: &mut impl FnMut(String, Vec<usize>)) {
    let mut by_end: Vec<&Sighting> = sightings.iter().collect();
    by_end.sort_by_key(|sighting| sighting.end);
    // The newest version of which somebody knew before a moment.
    let mut newest: Vec<&Sighting> = Vec::with_capacity(by_end.len());
    for sighting in &by_end {
        let best = newest.last().filter(|best| best.version >= sighting.version).copied();
        newest.push(best.unwrap_or(sighting));
    }
    let known = |start: u64| {
        let count = by_end.partition_point(|sighting| sighting.end < start);
        count.checked_sub(1).map(|last| newest[last])
    };
    for sighting in sightings {
        let Some(before) = known(sighting.start) else { continue };
        let (version, older) = (sighting.version, before.version);
        if version < older || (sighting.made && version == older) {
            let did = if sighting.made { "made" } else { "saw" };
            found(
                format!("{did} version {version} after version {older} had been answered"),
                vec![before.place, sighting.place],
            );
        }
    }
    for &place in places {
        let operation = &history.operations[place];
        let (Some(as_of), true) = (operation.number("as_of"), operation.f == "read" && operation.is_ok()) else {
            continue;
        };
        if let Some(before) = known(operation.start)
            && as_of < before.version
        {
            found(
                format!(
                    "answered from a replica that had applied {as_of} only, after version {} had been answered",
                    before.version
                ),
                vec![before.place, place],
            );
        }
    }
}

fn predecessors(history: &History, sightings: &[Sighting], found: &mut impl FnMut(String, Vec<usize>)) {
    let mut by_version: BTreeMap<u64, &Sighting> = BTreeMap::new();
    let mut versions: HashMap<i64, u64> = HashMap::new();
    for sighting in sightings {
        by_version.entry(sighting.version).or_insert(sighting);
        if let Some(value) = sighting.value {
            versions.entry(value).or_insert(sighting.version);
        }
    }
    for swap in sightings.iter().filter(|sighting| sighting.made) {
        let operation = &history.operations[swap.place];
        let Some(from) = operation.input.get(0).and_then(Value::as_i64).filter(|_| operation.f == "cas") else {
            continue;
        };
        let Some(&base) = versions.get(&from).filter(|base| **base < swap.version) else { continue };
        if let Some((version, between)) = by_version.range(base + 1..swap.version).next() {
            found(
                format!("built on version {base} and made {}, but version {version} lies between", swap.version),
                vec![between.place, swap.place],
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::testing::{Line, history, named};
    use serde_json::json;

    fn write(value: i64, version: u64) -> Line {
        Line::new("write", "k", json!(value)).ok(json!(value)).version(version)
    }

    fn read(value: i64, version: u64) -> Line {
        Line::new("read", "k", Value::Null).ok(json!(value)).version(version)
    }

    fn cas(from: i64, to: i64) -> Line {
        Line::new("cas", "k", json!([from, to])).ok(json!([from, to]))
    }

    #[test]
    fn good_histories_pass() {
        let lines = [
            write(1, 10).at(0, 10),
            read(1, 10).at(5, 20).extra("as_of", 12),
            cas(1, 2).version(20).at(21, 30),
            Line::new("cas", "k", json!([9, 3])).fail("mismatch").extra("observed", 2).version(20).at(31, 40),
            Line::new("delete", "k", Value::Null).ok(Value::Null).version(30).at(41, 50),
            Line::new("read", "k", Value::Null).ok(Value::Null).extra("as_of", 31).at(51, 60),
            Line::new("write", "k", json!(4)).info("timeout").at(61, 70),
            read(4, 40).at(71, 80),
        ];
        let verdict = check(&history(&lines));
        assert!(verdict.is_valid(), "{verdict:?}");
    }

    #[test]
    fn bad_histories_name_the_operations() {
        let absent = |as_of: u64| Line::new("read", "k", Value::Null).ok(Value::Null).extra("as_of", as_of);
        let failed = Line::new("write", "k", json!(2)).fail("NO_QUORUM");
        let bad: Vec<(&str, Vec<Line>, Vec<usize>)> = vec![
            ("stale", vec![write(1, 10).at(0, 10), write(2, 20).at(20, 30), read(1, 10).at(40, 50)], vec![1, 2]),
            (
                "back in time without a write in between",
                vec![write(1, 10).at(0, 10), write(2, 20).at(11, 99), read(2, 20).at(20, 30), read(1, 10).at(40, 50)],
                vec![2, 3],
            ),
            ("phantom", vec![read(7, 10).at(0, 10)], vec![0]),
            ("failed and seen", vec![failed.at(0, 10), read(2, 20).at(20, 30)], vec![0, 1]),
            ("seen too early", vec![read(1, 10).at(0, 10), write(1, 10).at(20, 30)], vec![0, 1]),
            ("one value, two versions", vec![write(1, 10).at(0, 10), read(1, 11).at(20, 30)], vec![0, 1]),
            ("one version, two values", vec![write(1, 10).at(0, 10), write(2, 10).at(5, 30)], vec![0, 1]),
            ("order of writes", vec![write(1, 10).at(0, 10), write(2, 9).at(20, 30)], vec![0, 1]),
            (
                "lost update",
                vec![write(1, 10).at(0, 10), write(2, 20).at(15, 50), cas(1, 3).version(30).at(20, 45)],
                vec![1, 2],
            ),
            ("an old replica", vec![write(1, 10).at(0, 10), absent(9).at(20, 30)], vec![0, 1]),
        ];
        for (name, lines, operations) in bad {
            assert!(named(check(&history(&lines))).contains(&operations), "{name}");
        }
    }
}
