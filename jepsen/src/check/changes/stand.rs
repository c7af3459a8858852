//! Where a follower stands: what it was told of each key, and what must come next.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::truth::{Key, Truth};
use super::{Found, Row};

/// Where it stands with one key.
#[derive(Clone, Debug)]
struct Stand<'a> {
    /// The first of the key's versions that was not told and has to be, by its place.
    next: usize,
    /// What was told last: version, value, and by which page.
    last: Option<(u64, &'a Value, usize)>,
}

/// Where it stands with all of them.
#[derive(Clone)]
pub struct Stands<'a> {
    truth: &'a Truth<'a>,
    keys: BTreeMap<&'a str, Stand<'a>>,
}

impl<'a> Stands<'a> {
    /// Somebody who has begun to follow a table at this moment (none: never, as far as is known).
    pub fn begin(truth: &'a Truth<'a>, letter: char, begun: Option<u64>) -> Stands<'a> {
        let keys = truth.of_table(letter).map(|(key, Key { versions, .. })| {
            // A write that began later made a later version, and so did all that followed it.
            let later = |start: Option<u64>| start.zip(begun).is_some_and(|(start, begun)| start > begun);
            let next = versions.iter().position(|version| later(version.start)).unwrap_or(versions.len());
            (key, Stand { next, last: None })
        });
        Stands { truth, keys: keys.collect() }
    }

    /// Takes in a change, and judges it.
    pub fn take(&mut self, (key, version, value): Row<'a>, previous: &Value, page: usize, found: Found<'_>) {
        let (Some(stand), Some(known)) = (self.keys.get_mut(key), self.truth.keys.get(key)) else {
            found(format!("version {version} is of another table"), key, vec![page]);
            return;
        };
        if let Some((last, _, by)) = stand.last
            && last >= version
        {
            found(format!("version {version} was told after version {last}"), key, vec![by, page]);
            return;
        }
        let versions = &known.versions;
        let at = versions.partition_point(|known| known.version < version);
        let passed = versions.iter().take(at).skip(stand.next);
        // A deletion of what is there makes a version for certain.
        let has_value = stand.last.is_some_and(|(_, value, _)| !value.is_null());
        if let Some(missed) =
            passed.clone().find(|version| version.certain).or(passed.clone().next().filter(|_| has_value))
        {
            let what = format!("version {} was not told, and version {version} was", missed.version);
            found(what, key, vec![missed.place, page]);
        }
        match stand.last {
            Some((last, told, by)) => {
                let replaced = if told.is_null() { Value::Null } else { json!([last, told]) };
                if *previous != replaced {
                    let what =
                        format!("version {version} replaced {replaced}, and is told to have replaced {previous}");
                    found(what, key, vec![by, page]);
                }
            }
            None if !previous.is_null() => {
                let number = previous.get(0).and_then(Value::as_u64).unwrap_or(u64::MAX);
                let before = versions.binary_search_by_key(&number, |version| version.version).map(|at| &versions[at]);
                let newest = versions[..at].iter().rev().find(|version| version.certain);
                let what = format!("version {version} is told to have replaced {previous}");
                if number >= version {
                    found(format!("{what}, which is no older"), key, vec![page]);
                } else if let Ok(before) = before
                    && previous.get(1) != Some(before.value)
                {
                    found(format!("{what}, which is {}", before.value), key, vec![before.place, page]);
                } else if let Some(newest) = newest.filter(|newest| newest.version > number) {
                    found(
                        format!("{what}, and version {} lies between", newest.version),
                        key,
                        vec![newest.place, page],
                    );
                }
            }
            None => {}
        }
        *stand = Stand { next: at + 1, last: Some((version, value, page)) };
    }

    /// Judges that everything of before a moment was told by now.
    pub fn late(&self, moment: u64, page: usize, found: Found<'_>) {
        for (key, stand) in &self.keys {
            let Some(known) = self.truth.keys.get(key) else { continue };
            let has_value = stand.last.is_some_and(|(_, value, _)| !value.is_null());
            let first = known.earliest.get(stand.next).copied().flatten();
            let deleted = Some(stand.next).filter(|&next| has_value && next < known.versions.len());
            let missed = first.into_iter().chain(deleted).map(|at| &known.versions[at]);
            if let Some(missed) = missed.min_by_key(|missed| missed.seen).filter(|missed| missed.seen < moment) {
                let (version, seen) = (missed.version, missed.seen / 1_000);
                let what = format!(
                    "a page says that all of before {} us was told; version {version}, there at {seen} us, was not",
                    moment / 1_000
                );
                found(what, key, vec![missed.place, page]);
            }
        }
    }
}
