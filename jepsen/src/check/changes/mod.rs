//! Change streams: whoever follows a table is told each version of each key once, in order, in time, or is told that
//! it is not.
//!
//! What is true is gathered from all that anybody was told ([`truth`]): the writes that were answered, the lists of
//! versions at the end, and what followers were told themselves. Whoever follows begins with a page, and again after
//! it was refused as too late (`CURSOR_TRIMMED`). Of what came to be after a beginning ([`stand`]):
//!
//! 1. each key's versions are told in ascending order, and none is passed over: neither by what is told of the same
//!    key later, nor by a page that says to be so young that it must have been told by then;
//! 2. a version is what was written, and what was written is one version; what was refused is none, and what was told
//!    by then is in every later list of versions that reaches back so far;
//! 3. what a version has replaced is what was told of the key before;
//! 4. nobody is told that it came too late who was told of everything older than the window (unless clocks were wrong);
//! 5. who commits its model together with its cursor has in the end what the table has, killed or not.
//!
//! A follower has begun when its first page has come, which names a position for every shard. A page that was lost
//! before it was committed is told again.
//!
//! Followers and keys belong to the same table if their names begin with the same letter.

mod stand;
mod truth;

use std::collections::BTreeMap;

use serde_json::Value;

use self::stand::Stands;
use self::truth::Truth;
use super::{Finding, Verdict};
use crate::history::{History, Operation};

/// How much of a window may be missing: times are those of the harness, and the node's are its own.
const TOLERANCE_NS: u64 = 1_000_000_000;
/// Contradictions told of one follower: what comes after is mostly the same.
const EACH_MAX: usize = 10;

/// The history windows of tables in milliseconds, by their letters.
pub type Windows = BTreeMap<char, u64>;

/// Where contradictions go: what, of which key, and the operations.
type Found<'a> = &'a mut dyn FnMut(String, &str, Vec<usize>);

/// A key, a version, its value.
type Row<'a> = (&'a str, u64, &'a Value);

/// Judges `put`, `delete`, `batch`, `versions`, the pages (`begin`, `resume`, `page`), `scan` and `model`.
pub fn check(history: &History, windows: &Windows) -> Verdict {
    let mut findings = Vec::new();
    let truth = Truth::of(history, &mut |what, key: &str, operations| {
        findings.push(Finding { what, key: key.to_owned(), operations });
    });
    let mut followers: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (place, operation) in history.operations.iter().enumerate() {
        if is_page(operation) || matches!(operation.f.as_str(), "scan" | "model") {
            followers.entry(&operation.key).or_default().push(place);
        }
    }
    let end = history.oks("versions").filter_map(|(_, list)| list.end).max();
    let (mut told, mut resumed, mut trimmed, mut ages, mut doubts) = (0, 0, 0, Vec::new(), Vec::new());
    for (name, places) in &followers {
        let mut left = EACH_MAX;
        let mut found = |what: String, key: &str, operations: Vec<usize>| {
            if left > 0 {
                left -= 1;
                findings.push(Finding { what: format!("{name}: {what}"), key: key.to_owned(), operations });
            }
        };
        let mut proven = None;
        for beginning in beginnings(history, places) {
            proven = follow(history, &truth, beginning, &mut found);
            model(history, &truth, beginning, &mut found);
            too_late(history, windows, beginning, &mut found);
        }
        if end > proven {
            doubts.push(format!("{name} was not told how it ended"));
        }
        for operation in places.iter().map(|&place| &history.operations[place]) {
            trimmed += usize::from(operation.text("error") == Some("CURSOR_TRIMMED"));
            if is_page(operation) && operation.is_ok() {
                told += rows(operation).count();
                resumed += usize::from(operation.f == "resume");
                ages.extend(operation.number("age_us"));
            }
        }
    }
    if !findings.is_empty() {
        return Verdict::Invalid { findings };
    }
    if told == 0 || ages.is_empty() {
        doubts.push("nobody was told anything".into());
    }
    if !doubts.is_empty() {
        return Verdict::Unknown { why: doubts.join("; ") };
    }
    ages.sort_unstable();
    let (half, most) = (ages[ages.len() / 2] / 1_000, ages[ages.len() * 99 / 100] / 1_000);
    let (versions, count) = (truth.count(), followers.len());
    let summary = format!(
        "{told} changes of {versions} versions told to {count} followers; {resumed} resumed, {trimmed} came too late; \
         {} pages of a known age (median {half} ms, p99 {most} ms)",
        ages.len()
    );
    Verdict::Valid { summary }
}

fn is_page(operation: &Operation) -> bool {
    matches!(operation.f.as_str(), "begin" | "resume" | "page")
}

/// The rows of an answer that has a key in each.
fn rows(operation: &Operation) -> impl Iterator<Item = Row<'_>> {
    let rows = operation.output.as_array().map(Vec::as_slice).unwrap_or_default();
    rows.iter().filter_map(|row| Some((row.get(0)?.as_str()?, row.get(1)?.as_u64()?, row.get(2)?)))
}

/// What the changes of a page have replaced.
fn previous(operation: &Operation) -> impl Iterator<Item = &Value> {
    let rows = operation.output.as_array().map(Vec::as_slice).unwrap_or_default();
    rows.iter().map(|row| row.get(3).unwrap_or(&Value::Null))
}

/// Before which moment everything was told with a page, if it says so.
fn proven(page: &Operation) -> Option<u64> {
    // What was rounded off counts as older.
    page.start.checked_sub(page.number("age_us")?.saturating_add(1).saturating_mul(1_000))
}

/// Whether its follower has kept a page.
fn is_committed(page: &Operation) -> bool {
    page.extra.get("committed").and_then(Value::as_bool).unwrap_or(true)
}

/// What a follower did, from one beginning to the next.
fn beginnings<'a>(history: &'a History, places: &'a [usize]) -> impl Iterator<Item = &'a [usize]> {
    let begins = |place: &usize| {
        let operation = &history.operations[*place];
        operation.f == "begin" && operation.is_ok()
    };
    let first = places.iter().position(begins).unwrap_or(places.len());
    let mut left = &places[first..];
    std::iter::from_fn(move || {
        let next = left.iter().skip(1).position(begins).map_or(left.len(), |next| next + 1);
        let (one, others) = left.split_at(next);
        left = others;
        (!one.is_empty()).then_some(one)
    })
}

/// Judges all that was told from a beginning on; before which moment everything was told in the end.
fn follow(history: &History, truth: &Truth<'_>, places: &[usize], found: Found<'_>) -> Option<u64> {
    let pages = places.iter().map(|&place| (place, &history.operations[place]));
    let pages = || pages.clone().filter(|(_, operation)| is_page(operation) && operation.is_ok());
    let (_, first) = pages().next()?;
    let mut stands = Stands::begin(truth, letter(first), first.end);
    let mut end = None;
    for (place, page) in pages() {
        let mut next = stands.clone();
        for (row, previous) in rows(page).zip(previous(page)) {
            next.take(row, previous, place, found);
        }
        if let Some(moment) = proven(page) {
            next.late(moment, place, found);
        }
        if is_committed(page) {
            (stands, end) = (next, proven(page));
        }
    }
    end
}

/// Judges what a follower has made of what it was told.
fn model(history: &History, truth: &Truth<'_>, places: &[usize], found: Found<'_>) {
    let mut made: BTreeMap<&str, (u64, &Value, usize)> = BTreeMap::new();
    for &place in places {
        let operation = &history.operations[place];
        let counts = operation.is_ok() && is_committed(operation);
        if counts && (is_page(operation) || operation.f == "scan") {
            for (key, version, value) in rows(operation) {
                let newest = made.entry(key).or_insert((version, value, place));
                if version > newest.0 {
                    *newest = (version, value, place);
                }
            }
        }
        if !counts || operation.f != "model" {
            continue;
        }
        let shown: BTreeMap<&str, (u64, &Value)> =
            rows(operation).map(|(key, version, value)| (key, (version, value))).collect();
        for (key, (version, value, by)) in &made {
            let should = (!value.is_null()).then_some((*version, *value));
            if shown.get(key).copied() != should {
                let what = format!("its model has {:?} and should have {should:?}", shown.get(key));
                found(what, key, vec![*by, place]);
            }
        }
        for (key, shown) in shown.iter().filter(|(key, _)| !made.contains_key(*key)) {
            found(format!("its model has {shown:?}, which it was never told"), key, vec![place]);
        }
        for (key, list, newest, value) in truth.newest(letter(operation)) {
            // Whoever wrote without an answer may have come after the lists.
            let is_behind = match shown.get(key) {
                Some((version, shown)) => *version < newest || *version == newest && *shown != value,
                None => !value.is_null() && made.get(key).is_none_or(|(version, ..)| *version <= newest),
            };
            if is_behind {
                let what = format!("its model has {:?}, the table version {newest}: {value}", shown.get(key));
                found(what, key, vec![list, place]);
            }
        }
    }
}

/// Judges the refusals as too late: who was told of everything that is older than the window is not.
fn too_late(history: &History, windows: &Windows, places: &[usize], found: Found<'_>) {
    let clocks_wrong_from =
        history.faults.iter().filter(|fault| fault.touches_clocks()).map(|fault| fault.from_ns).min();
    let mut last = None;
    for &place in places {
        let operation = &history.operations[place];
        if is_page(operation) && operation.is_ok() && is_committed(operation) {
            last = proven(operation).map(|moment| (moment, place));
        }
        let is_trimmed = operation.text("error") == Some("CURSOR_TRIMMED");
        let (true, Some((moment, page)), Some(end)) = (is_trimmed, last, operation.end) else { continue };
        let Some(window_ms) = windows.get(&letter(operation)) else { continue };
        let window = window_ms.saturating_mul(1_000_000);
        let clocks_right = clocks_wrong_from.is_none_or(|wrong| end < wrong);
        if clocks_right && end.saturating_add(TOLERANCE_NS) < moment.saturating_add(window) {
            let what = format!("it was too late, and it had been told all that is older than {window_ms} ms");
            found(what, &operation.key, vec![page, place]);
        }
    }
}

/// The letter of the table that an operation concerns.
fn letter(operation: &Operation) -> char {
    operation.key.chars().next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
