//! What is true: the versions of every key, from all that anybody was told.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::{Found, is_page, rows};
use crate::history::{History, Kind, Operation};

/// One version of a key.
#[derive(Clone, Debug)]
pub struct Version<'a> {
    /// Which.
    pub version: u64,
    /// Its value; null for a deletion.
    pub value: &'a Value,
    /// When its write began, if that is known.
    pub start: Option<u64>,
    /// Since when it was there: somebody knew of it.
    pub seen: u64,
    /// Who wrote it, else who told it.
    pub place: usize,
    /// Whether it is a version for certain: deleting what is not there makes none.
    pub certain: bool,
}

/// All versions of one key, ascending.
#[derive(Debug, Default)]
pub struct Key<'a> {
    /// The versions.
    pub versions: Vec<Version<'a>>,
    /// Of each and those after it, the one that was there first, among the certain ones.
    pub earliest: Vec<Option<usize>>,
    /// The newest that a list has, and the list.
    listed: Option<(u64, usize)>,
}

/// What was written, as the history says: by key and value, and the deletions by key.
struct Written<'a> {
    puts: HashMap<(&'a str, &'a Value), usize>,
    deletes: HashMap<&'a str, Vec<usize>>,
}

/// All versions.
#[derive(Debug, Default)]
pub struct Truth<'a> {
    /// By key.
    pub keys: BTreeMap<&'a str, Key<'a>>,
}

/// The keys that a write concerns, with their new values.
fn written(operation: &Operation) -> Vec<(&str, &Value)> {
    match operation.f.as_str() {
        "put" | "delete" => vec![(&operation.key, &operation.input)],
        "batch" => {
            let pairs = operation.input.as_array().map(Vec::as_slice).unwrap_or_default();
            pairs.iter().filter_map(|pair| Some((pair.get(0)?.as_str()?, pair.get(1)?))).collect()
        }
        _ => Vec::new(),
    }
}

/// The rows of a list of versions.
fn listed(operation: &Operation) -> Vec<(u64, &Value)> {
    let rows = operation.output.as_array().map(Vec::as_slice).unwrap_or_default();
    rows.iter().filter_map(|row| Some((row.get(0)?.as_u64()?, row.get(1)?))).collect()
}

impl<'a> Truth<'a> {
    /// Gathers it. What contradicts itself is told.
    pub fn of(history: &'a History, found: Found<'_>) -> Truth<'a> {
        let mut all = BTreeMap::new();
        let mut contradicted = HashSet::new();
        let mut tell = |key: &'a str, told: Version<'a>| {
            let known =
                all.entry(key).or_insert_with(BTreeMap::new).entry(told.version).or_insert_with(|| told.clone());
            if known.value != told.value && contradicted.insert((key, told.version)) {
                let what = format!("version {} is {} and {}", told.version, known.value, told.value);
                found(what, key, vec![known.place, told.place]);
            }
            known.seen = known.seen.min(told.seen);
            known.certain |= told.certain;
        };
        // The writes first: a version is best shown by who wrote it.
        for (place, operation) in history.operations.iter().enumerate().filter(|(_, operation)| operation.is_ok()) {
            let (Some(version), Some(seen)) = (operation.version(), operation.end) else { continue };
            for (key, value) in written(operation) {
                let (start, certain) = (Some(operation.start), !value.is_null());
                tell(key, Version { version, value, start, seen, place, certain });
            }
        }
        for (place, operation) in history.operations.iter().enumerate().filter(|(_, operation)| operation.is_ok()) {
            let Some(seen) = operation.end else { continue };
            let told = |version, value| Version { version, value, start: None, seen, place, certain: true };
            if is_page(operation) {
                rows(operation).for_each(|(key, version, value)| tell(key, told(version, value)));
            } else if operation.f == "versions" {
                listed(operation).into_iter().for_each(|(version, value)| tell(&operation.key, told(version, value)));
            }
        }
        let written = Written::of(history);
        let mut truth = Truth::default();
        for (key, versions) in all {
            let mut versions: Vec<Version<'a>> = versions.into_values().collect();
            written.explain(history, key, &mut versions, found);
            let mut earliest = vec![None; versions.len()];
            let mut first: Option<usize> = None;
            for (at, version) in versions.iter().enumerate().rev() {
                if version.certain && first.is_none_or(|first| version.seen < versions[first].seen) {
                    first = Some(at);
                }
                earliest[at] = first;
            }
            truth.keys.insert(key, Key { versions, earliest, listed: None });
        }
        truth.lists(history, found);
        truth
    }

    /// How many versions there are.
    pub fn count(&self) -> usize {
        self.keys.values().map(|key| key.versions.iter().filter(|version| version.certain).count()).sum()
    }

    /// The keys of a table.
    pub fn of_table(&self, letter: char) -> impl Iterator<Item = (&'a str, &Key<'a>)> {
        self.keys.iter().filter(move |(key, _)| key.starts_with(letter)).map(|(key, versions)| (*key, versions))
    }

    /// Of each key of a table its newest version among those that the lists have: the list, the version, the value.
    pub fn newest(&self, letter: char) -> impl Iterator<Item = (&'a str, usize, u64, &'a Value)> {
        self.of_table(letter).filter_map(|(key, versions)| {
            let (version, list) = versions.listed?;
            let at = versions.versions.binary_search_by_key(&version, |version| version.version).ok()?;
            Some((key, list, version, versions.versions[at].value))
        })
    }

    /// Judges the lists of versions: what was told lies in each later one that reaches back so far.
    fn lists(&mut self, history: &'a History, found: Found<'_>) {
        let mut missed = HashSet::new();
        for (place, list) in history.oks("versions") {
            let Some(key) = self.keys.get_mut(list.key.as_str()) else { continue };
            let rows = listed(list);
            // At the end of a list lies the horizon, behind which nothing is promised.
            let (Some((newest, _)), Some((oldest, _))) = (rows.first(), rows.last()) else { continue };
            if key.listed.is_none_or(|(version, _)| version < *newest) {
                key.listed = Some((*newest, place));
            }
            let there: HashSet<u64> = rows.iter().map(|(version, _)| *version).collect();
            for version in key.versions.iter().filter(|version| version.version >= *oldest) {
                let should = version.certain && version.seen < list.start && !there.contains(&version.version);
                if should && missed.insert((&list.key, version.version)) {
                    let what = format!("version {} was told and is in no later list of versions", version.version);
                    found(what, &list.key, vec![version.place, place]);
                }
            }
        }
    }
}

impl<'a> Written<'a> {
    fn of(history: &'a History) -> Written<'a> {
        let mut all = Written { puts: HashMap::new(), deletes: HashMap::new() };
        for (place, operation) in history.operations.iter().enumerate() {
            for (key, value) in written(operation) {
                if value.is_null() {
                    all.deletes.entry(key).or_default().push(place);
                } else {
                    all.puts.insert((key, value), place);
                }
            }
        }
        all
    }

    /// Finds who wrote what was only told.
    fn explain(&self, history: &History, key: &str, versions: &mut [Version<'_>], found: Found<'_>) {
        let mut once: HashMap<&Value, (u64, usize)> = HashMap::new();
        for version in versions {
            let Version { version: number, value, place, .. } = *version;
            if !value.is_null()
                && let Some((other, by)) = once.insert(value, (number, place))
            {
                found(format!("{value} is version {other} and version {number}"), key, vec![by, place]);
                continue;
            }
            if version.start.is_some() {
                continue;
            }
            let told = format!("version {number}, {value}, was told");
            if value.is_null() {
                let mut deletes = self.deletes.get(key).into_iter().flatten().map(|&at| &history.operations[at]);
                if !deletes.any(|delete| delete.outcome == Kind::Info && delete.start <= version.seen) {
                    found(format!("{told}, and nobody deleted it"), key, vec![place]);
                }
                continue;
            }
            let Some(&by) = self.puts.get(&(key, value)) else {
                found(format!("{told}, and nobody wrote it"), key, vec![place]);
                continue;
            };
            let write = &history.operations[by];
            if write.outcome == Kind::Fail {
                found(format!("{told}, and its write was refused"), key, vec![by, place]);
            } else if write.is_ok() {
                found(format!("{told}, and it was written as version {:?}", write.version()), key, vec![by, place]);
            } else if write.start > version.seen {
                found(format!("{told} before it was written"), key, vec![by, place]);
            } else {
                version.start = Some(write.start);
            }
        }
    }
}
