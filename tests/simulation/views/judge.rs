//! Judges what clerks read of views by the history of the orders and profiles.
//!
//! A view is of several moments, since each shard of its sources is taken in by itself; but of each row of them it shows one
//! state. That must be one which the row had at the oldest moment that the answer is allowed to show, or had
//! later, and which had been begun to be written when the answer came. The oldest moment follows from what was asked and
//! what was said: all that a token covers, all that was acknowledged an age ago, or, for any age, nothing at all: then
//! the row still must have been true once. Totals, and pages, must be those of one choice of such states.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::Value;
use trivet::types::{ReadLevel, Timestamp};

use super::naive::{self, Order};
use super::{Book, Fate, Looking, Seen, Versions, Writing};
use crate::run::Report;

/// Choices of states beyond which totals are not judged: there are too many of them to say anything.
const TOTALS_MAX: usize = 20_000;

/// Judges a whole run.
pub fn judge(book: &Book, versions: &Versions, report: &Report) -> Result<(), String> {
    explained(book, versions)?;
    for looking in &book.looks {
        look(looking, book, versions, report).map_err(|why| format!("{why}: {looking:?}"))?;
    }
    Ok(())
}

/// The write that made a document.
fn maker<'a>(book: &'a Book, document: &[u8]) -> Option<&'a Writing> {
    let document: Value = serde_json::from_slice(document).ok()?;
    book.writes.get(usize::try_from(document.get("w")?.as_u64()?).ok()?)
}

/// Every version was written by somebody, and whatever was acknowledged is there.
fn explained(book: &Book, versions: &Versions) -> Result<(), String> {
    for (key, versions) in versions {
        for (version, document) in versions {
            let Some(document) = document else { continue };
            let by = maker(book, document).filter(|by| by.key == *key && by.document.as_ref() == Some(document));
            match by.map(|by| &by.fate) {
                Some(Fate::Unknown) => {}
                Some(Fate::Acked(_, acked)) if acked == version => {}
                other => return Err(format!("version {version:?} of {key:?} is {document:?}, written by {other:?}")),
            }
        }
    }
    for Writing { key, document, fate, .. } in &book.writes {
        let Fate::Acked(_, version) = fate else { continue };
        let state = versions.get(key).and_then(|versions| versions.range(..=version).next_back());
        if state.and_then(|(_, found)| found.as_ref()) != document.as_ref() {
            return Err(format!("{key:?} was to be {document:?} at {version:?}, but there is {state:?}"));
        }
    }
    Ok(())
}

/// The newest version of each row that an answer must show, or something later.
fn least(looking: &Looking, book: &Book) -> BTreeMap<Bytes, Timestamp> {
    let mut least = looking.least.clone();
    let micros = |age: std::time::Duration| u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
    let allowed = match looking.level {
        ReadLevel::Linearizable => Some(0),
        ReadLevel::MaxAge(age) => Some(micros(age)),
        _ => None,
    };
    let Some(age) = allowed.into_iter().chain(looking.age).min() else { return least };
    let moment = looking.from.saturating_sub(age);
    for Writing { key, fate, .. } in &book.writes {
        if let Fate::Acked(at, version) = fate
            && *at < moment
        {
            let known = least.entry(key.clone()).or_default();
            *known = (*known).max(*version);
        }
    }
    least
}

/// What a row of a source may have been to the views, as far as this answer can tell.
fn states<'a>(
    key: &Bytes,
    from: Timestamp,
    looking: &Looking,
    book: &Book,
    versions: &'a Versions,
) -> Vec<Option<&'a Bytes>> {
    let versions = &versions[key];
    let before = versions.range(..=from).next_back().and_then(|(_, document)| document.as_ref());
    let began = |document: &&Option<Bytes>| match document {
        Some(document) => maker(book, document).is_none_or(|by| by.from < looking.at),
        None => true,
    };
    let later = versions.range(from.next()..).map(|(_, document)| document).filter(began);
    [before].into_iter().chain(later.map(Option::as_ref)).collect()
}

fn look(looking: &Looking, book: &Book, versions: &Versions, report: &Report) -> Result<(), String> {
    let least = least(looking, book);
    let possible = |key: &Bytes| {
        let from = least.get(key).copied().unwrap_or_default();
        states(key, from, looking, book, versions).into_iter()
    };
    let of_user = |state: Option<Order>| state.filter(|order| order.user == looking.user);
    let order = |document: Option<&Bytes>| of_user(document.and_then(|document| naive::order(document)));
    let open: BTreeMap<&Bytes, Vec<Option<Order>>> =
        versions.keys().map(|key| (key, possible(key).map(order).collect())).collect();
    match &looking.seen {
        Seen::Page(found) => {
            report.count("pages of users judged");
            let part = |key: &Bytes, document: Option<&Bytes>| {
                let (user, place, kept) = naive::part(key, document?)?;
                (user == looking.user).then_some((place, kept))
            };
            let parts = |key| possible(key).map(|document| part(key, document)).collect();
            page(found.as_ref(), &versions.keys().map(|key| (key, parts(key))).collect())?;
        }
        Seen::Rows(rows) => {
            let mut left: BTreeMap<&Bytes, &Bytes> = rows.iter().map(|(key, value)| (key, value)).collect();
            if left.len() != rows.len() || !rows.is_sorted_by(|one, next| one.0 < next.0) {
                return Err("the rows of a view are not in order, or not each there once".to_owned());
            }
            for (key, states) in &open {
                let shown = |state: &Option<Order>| state.as_ref().map(|order| naive::row(key, order));
                let mine = |row: &&Bytes| row.ends_with(format!("/{}", String::from_utf8_lossy(key)).as_bytes());
                let seen: Vec<Bytes> = left.keys().copied().filter(mine).cloned().collect();
                let seen: Vec<(Bytes, Bytes)> =
                    seen.into_iter().filter_map(|row| left.remove(&row).map(|value| (row, value.clone()))).collect();
                if !states.iter().any(|state| shown(state).as_slice() == seen) {
                    return Err(format!("a view shows {seen:?} of {key:?}, which was one of {states:?}"));
                }
            }
            if let Some(stranger) = left.keys().next() {
                return Err(format!("a view shows {stranger:?}, which is of no order"));
            }
        }
        Seen::Totals(found) => {
            // All totals that there can be: orders, hundredths, the last one.
            let mut all = BTreeSet::from([(0, 0, 0)]);
            for states in open.values() {
                let add = |&(orders, cents, last): &(u64, u64, u64), state: &Option<Order>| match state {
                    Some(order) => (orders + 1, cents + order.cents, order.placed.max(last)),
                    None => (orders, cents, last),
                };
                all = all.iter().flat_map(|total| states.iter().map(move |state| add(total, state))).collect();
                if all.len() > TOTALS_MAX {
                    return Ok(());
                }
            }
            report.count("totals of users judged");
            let fits = |&(orders, cents, last): &(u64, u64, u64)| {
                naive::totals(&looking.user, orders, cents, last).as_ref() == found.as_ref()
            };
            if !all.iter().any(fits) {
                return Err(format!("a view shows totals that never were: {found:?}; there could be {open:?}"));
            }
        }
    }
    Ok(())
}

/// What is kept of a document in the page of a user, and as which part.
type Kept = Option<(usize, Bytes)>;

/// A page shows of each part the row with the smallest key, so of one choice of states: what it shows was one, and no smaller key had to
/// be there; and what it does not show need not have been there at all.
fn page(found: Option<&Bytes>, open: &BTreeMap<&Bytes, Vec<Kept>>) -> Result<(), String> {
    let mut shown: [Vec<Option<&Bytes>>; 2] = [vec![], vec![]];
    for (place, shown) in shown.iter_mut().enumerate() {
        let mut may_be_none = true;
        for states in open.values() {
            let here = |state: &Kept| state.as_ref().is_some_and(|(of, _)| *of == place);
            shown.extend(states.iter().filter(|state| here(state)).map(|state| state.as_ref().map(|(_, kept)| kept)));
            if states.iter().all(here) {
                may_be_none = false;
                break;
            }
        }
        if may_be_none {
            shown.push(None);
        }
    }
    let fits = |who: &Option<&Bytes>| shown[1].iter().any(|first| naive::page(*who, *first).as_ref() == found);
    match shown[0].iter().any(fits) {
        true => Ok(()),
        false => Err(format!("a view shows a page that never was: {found:?}; there could be {open:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_shows_the_first_of_what_must_be_there_or_one_of_what_may() {
        let key = |key: &'static str| Bytes::from(key);
        let (keys, none) = (["o1", "p1", "p2", "p3"].map(key), None);
        let who = |kept: &'static str| Some((0, key(kept)));
        let states = [vec![none.clone()], vec![none.clone(), who("1")], vec![who("2"), who("22")], vec![who("3")]];
        let open: BTreeMap<&Bytes, Vec<Kept>> = keys.iter().zip(states).collect();
        let judged = |found: Option<&'static str>| page(found.map(key).as_ref(), &open).is_ok();
        assert!(judged(Some(r#"{"who":1}"#)) && judged(Some(r#"{"who":2}"#)) && judged(Some(r#"{"who":22}"#)));
        // A row with a smaller key had to be there; a part of which nothing ever was; and of one there was something at any time.
        assert!(!judged(Some(r#"{"who":3}"#)) && !judged(Some(r#"{"who":1,"first":1}"#)) && !judged(None));
    }
}
