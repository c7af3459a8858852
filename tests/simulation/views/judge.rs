//! Judges what clerks read of views by the history of the orders.
//!
//! A view is of several moments, since each shard of its source is taken in by itself; but of each order it shows one
//! state. That must be one which the order had at the oldest moment that the answer is allowed to show, or had
//! later, and which had been begun to be written when the answer came. The oldest moment follows from what was asked and
//! what was said: all that a token covers, all that was acknowledged an age ago, or, for any age, nothing at all: then
//! the row still must have been true once. Totals must be those of one choice of such states.

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

/// Every version of an order was written by somebody, and whatever was acknowledged is there.
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

/// The newest version of each order that an answer must show, or something later.
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

/// What an order may have been to the views, as far as this answer can tell.
fn states(key: &Bytes, from: Timestamp, looking: &Looking, book: &Book, versions: &Versions) -> Vec<Option<Order>> {
    let versions = &versions[key];
    let before = versions.range(..=from).next_back().and_then(|(_, document)| document.as_ref());
    let began = |document: &&Option<Bytes>| match document {
        Some(document) => maker(book, document).is_none_or(|by| by.from < looking.at),
        None => true,
    };
    let later = versions.range(from.next()..).map(|(_, document)| document).filter(began);
    let documents = [before].into_iter().chain(later.map(Option::as_ref));
    documents.map(|document| document.and_then(|document| naive::order(document))).collect()
}

fn look(looking: &Looking, book: &Book, versions: &Versions, report: &Report) -> Result<(), String> {
    let least = least(looking, book);
    let of_user = |state: Option<Order>| state.filter(|order| order.user == looking.user);
    let mut open: BTreeMap<&Bytes, Vec<Option<Order>>> = BTreeMap::new();
    for key in versions.keys() {
        let from = least.get(key).copied().unwrap_or_default();
        open.insert(key, states(key, from, looking, book, versions).into_iter().map(of_user).collect());
    }
    match &looking.seen {
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
