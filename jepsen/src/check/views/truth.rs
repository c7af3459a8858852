//! What the sources held, and when: every version of every row, from who wrote it and from the lists read at the end.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use super::{Document, Found};
use crate::history::{History, Operation};

/// One version of a row.
#[derive(Clone, Debug)]
pub(super) struct Version<'a> {
    pub version: u64,
    /// None: it was deleted.
    pub document: Option<Document<'a>>,
    /// When its write was begun.
    pub start: u64,
    /// Who wrote it, else who told of it.
    pub place: usize,
}

/// A write of one row that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acknowledged {
    pub end: u64,
    pub version: u64,
    pub place: usize,
}

/// One row of a source.
#[derive(Debug, Default)]
pub(super) struct Row<'a> {
    /// Ascending.
    pub versions: Vec<Version<'a>>,
    /// By their ends, each with the newest version until then.
    acknowledged: Vec<Acknowledged>,
    /// The same of one session alone.
    of_session: BTreeMap<u64, Vec<Acknowledged>>,
    /// Places of the versions by their serials.
    by_serial: HashMap<u64, usize>,
}

/// All rows of all sources; no two have the same key.
#[derive(Debug, Default)]
pub(super) struct Truth<'a> {
    pub rows: BTreeMap<&'a str, Row<'a>>,
    /// Every document that somebody wanted to write, by its serial: key and place of the write.
    pub wanted: HashMap<u64, (&'a str, usize)>,
}

/// What an answer must show of a row at least.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Least {
    pub version: u64,
    pub place: Option<usize>,
}

/// The rows that a write concerns, with their new documents.
fn written(operation: &Operation) -> Vec<(&str, &Value)> {
    if !matches!(operation.f.as_str(), "put" | "delete" | "batch") {
        return Vec::new();
    }
    let pairs = operation.input.as_array().map(Vec::as_slice).unwrap_or_default();
    pairs.iter().filter_map(|pair| Some((pair.get(0)?.as_str()?, pair.get(1)?))).collect()
}

/// Every row that was ever written, whatever came of it.
pub fn keys(history: &History) -> BTreeSet<String> {
    history.operations.iter().flat_map(written).map(|(key, _)| key.to_owned()).collect()
}

impl<'a> Truth<'a> {
    /// Gathers it. What contradicts itself is told.
    pub fn of(history: &'a History, found: Found<'_>) -> Truth<'a> {
        let mut truth = Truth::default();
        let mut documents: HashMap<u64, &'a Value> = HashMap::new();
        // The first deletion of each row whose outcome nobody knows.
        let mut deleted: HashMap<&str, (u64, usize)> = HashMap::new();
        let mut versions: BTreeMap<&'a str, BTreeMap<u64, Version<'a>>> = BTreeMap::new();
        for (place, operation) in history.operations.iter().enumerate() {
            for (key, document) in written(operation) {
                let told = Document::of(document);
                match told {
                    Some(told) => {
                        truth.wanted.insert(told.serial, (key, place));
                        documents.insert(told.serial, document);
                    }
                    None if operation.is_possible() => {
                        deleted.entry(key).or_insert((operation.start, place));
                    }
                    None => {}
                }
                let (Some(version), Some(end), true) = (operation.version(), operation.end, operation.is_ok()) else {
                    continue;
                };
                let made = Version { version, document: told, start: operation.start, place };
                versions.entry(key).or_default().insert(version, made);
                let row = truth.rows.entry(key).or_default();
                let acknowledged = Acknowledged { end, version, place };
                row.acknowledged.push(acknowledged);
                if let Some(session) = operation.number("session") {
                    row.of_session.entry(session).or_default().push(acknowledged);
                }
            }
        }
        for (place, list) in history.oks("versions") {
            let (key, listed) = (list.key.as_str(), versions_of(list));
            let known = versions.entry(key).or_default();
            for (version, made) in known.iter() {
                // Of what is not there a deletion makes no version.
                let stands = match (&made.document, listed.get(version)) {
                    (Some(document), Some(serial)) => *serial == Some(document.serial),
                    (None, Some(serial)) => serial.is_none(),
                    (Some(_), None) => false,
                    (None, None) => true,
                };
                if !stands {
                    let what = format!("version {version} was acknowledged, and the list of versions lacks it");
                    found(what, key, vec![made.place, place]);
                }
            }
            for (version, serial) in listed {
                if known.contains_key(&version) {
                    continue;
                }
                let made = match serial {
                    Some(serial) => truth.wanted.get(&serial).filter(|(of, _)| *of == key).map(|(_, writer)| {
                        let document = documents.get(&serial).and_then(|document| Document::of(document));
                        (document, history.operations[*writer].start, *writer)
                    }),
                    None => deleted.get(key).map(|(start, writer)| (None, *start, *writer)),
                };
                match made {
                    Some((document, start, place)) => {
                        known.insert(version, Version { version, document, start, place });
                    }
                    None => found(format!("version {version} was written by nobody"), key, vec![place]),
                }
            }
        }
        for (key, versions) in versions {
            truth.rows.entry(key).or_default().settle(versions.into_values().collect());
        }
        truth
    }
}

/// What a list of versions lists: each with its serial, or none for a deletion.
fn versions_of(list: &Operation) -> BTreeMap<u64, Option<u64>> {
    let rows = list.output.as_array().map(Vec::as_slice).unwrap_or_default();
    rows.iter().filter_map(|row| Some((row.get(0)?.as_u64()?, row.get(1)?.as_u64()))).collect()
}

/// Sorted by time, each with the newest version until then.
fn settle(acknowledged: &mut [Acknowledged]) {
    acknowledged.sort_unstable_by_key(|one| (one.end, one.version));
    let mut newest: Option<Acknowledged> = None;
    for one in acknowledged {
        let best = newest.filter(|best| best.version >= one.version).unwrap_or(*one);
        (one.version, one.place) = (best.version, best.place);
        newest = Some(*one);
    }
}

fn before(acknowledged: &[Acknowledged], moment: u64) -> Least {
    let end = acknowledged.partition_point(|one| one.end < moment);
    acknowledged[..end].last().map_or(Least::default(), |one| Least { version: one.version, place: Some(one.place) })
}

impl<'a> Row<'a> {
    fn settle(&mut self, versions: Vec<Version<'a>>) {
        settle(&mut self.acknowledged);
        self.of_session.values_mut().for_each(|own| settle(own));
        self.by_serial =
            versions.iter().enumerate().filter_map(|(at, made)| Some((made.document?.serial, at))).collect();
        self.versions = versions;
    }

    /// The newest version that was acknowledged before a moment.
    pub fn before(&self, moment: u64) -> Least {
        before(&self.acknowledged, moment)
    }

    /// The newest version that a session had written before a moment.
    pub fn own_before(&self, session: u64, moment: u64) -> Least {
        self.of_session.get(&session).map_or(Least::default(), |own| before(own, moment))
    }

    /// The version with this serial.
    pub fn with_serial(&self, serial: u64) -> Option<&Version<'a>> {
        self.by_serial.get(&serial).and_then(|&at| self.versions.get(at))
    }

    /// What an answer that was there at `end` can show, if it must show at least this: documents, or none.
    pub fn possible(&self, least: Least, end: u64) -> impl Iterator<Item = Option<&Document<'a>>> {
        let from = self.versions.partition_point(|made| made.version < least.version);
        let later = self.versions[from..].iter().filter(move |made| made.start < end);
        let never = (least.version == 0).then_some(None);
        never.into_iter().chain(later.map(|made| made.document.as_ref()))
    }
}
