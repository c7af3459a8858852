//! Views: what is derived is what its sources say, no more, no less, and no older than it may be.
//!
//! The sources are orders (`{TAG}NUMBER`) and notes on them (`{TAG}NUMBER/a`, `/b`); each document carries a serial that
//! no other has, so that what a view shows names the version it was made of. From the writes and the lists of versions
//! at the end the checker knows what every row was and when ([`truth`]), and what each view makes of it it says by
//! itself ([`derived`]): nothing here is shared with those who keep views.
//!
//! 1. A document that a view shows is one that the source had under that key, as it was written, and belongs where it is
//!    shown; lists are in their order, and no order stands in one twice.
//! 2. Of each order (of each that counts, of each part) an answer shows what had been acknowledged at the least: before
//!    it began if it is linearizable, before its age or the greatest age allowed if it has one, what the session itself
//!    wrote if it came with the token. Also what it does *not* show must have been gone by then.
//! 3. Counts, sums and largest amounts lie between the least and the most that the orders, each by itself, can come to.
//! 4. When all is quiet, the views are soon what the sources are, row by row, at every node.
//! 5. A comparison never finds a difference, counts when all is quiet exactly the documents that do not fit, and a view never
//!    falls back to being built.

mod derived;
#[cfg(test)]
mod tests;
mod truth;

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Finding, Verdict};
use crate::history::{History, Operation};
use truth::{Least, Row, Truth};

/// Orders of this status are in no list and in no sum.
pub const CANCELLED: &str = "cancelled";
/// Within this after the last write views hold what their sources do.
const QUIET_WITHIN_NS: u64 = 30_000_000_000;

/// The longest fault.
const CUT_OFF_NS: u64 = 30_000_000_000;

/// Tells a contradiction: what, of which key, by which operations.
type Found<'f> = &'f mut dyn FnMut(String, &str, Vec<usize>);

/// A document of a source.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Document<'a> {
    serial: u64,
    whole: &'a Value,
}

impl<'a> Document<'a> {
    /// None for what is no document of ours.
    fn of(value: &'a Value) -> Option<Document<'a>> {
        let serial = value.get("amount").or_else(|| value.get("text"))?.as_u64()?;
        Some(Document { serial, whole: value })
    }

    /// Whether it is an order in the list of this user. One that lacks either field is in none.
    fn is_listed(&self, user: &str) -> bool {
        self.whole["user"] == user && self.whole["status"].as_str().is_some_and(|status| status != CANCELLED)
    }

    /// Whether it is an order that lists and sums ought to have and cannot: its status is not there, or its user.
    fn is_unfit(&self) -> bool {
        self.whole.get("text").is_none()
            && self.whole["status"] != CANCELLED
            && !(self.whole["status"].is_string() && self.whole["user"].is_string())
    }
}

/// What the checker has looked at.
#[derive(Default)]
struct Seen {
    rows: usize,
    own: usize,
    ages_us: Vec<u64>,
    copies: usize,
}

pub use derived::encoded;
pub use truth::keys;

/// Judges everything.
pub fn check(history: &History) -> Verdict {
    let mut findings = Vec::new();
    let mut found = |what: String, key: &str, operations: Vec<usize>| {
        findings.push(Finding { what, key: key.to_owned(), operations });
    };
    let truth = Truth::of(history, &mut found);
    let mut seen = Seen::default();
    for (place, read) in history.operations.iter().enumerate().filter(|(_, operation)| operation.is_ok()) {
        if !matches!(read.f.as_str(), "list" | "sum" | "merged") {
            continue;
        }
        let mut judge = Judge { truth: &truth, read, place, seen: &mut seen };
        judge.age(&mut found);
        match read.f.as_str() {
            "list" => judge.list(&mut found),
            "sum" => judge.sum(&mut found),
            _ => judge.merged(&mut found),
        }
    }
    let versions = truth.rows.values().flat_map(|row| &row.versions);
    let unfit = versions.filter(|made| made.document.is_some_and(|document| document.is_unfit())).count();
    let finals = derived::check(history, &truth, &mut found);
    standing(history, &mut found);
    if !findings.is_empty() {
        return Verdict::Invalid { findings };
    }
    let lacks = [
        (seen.own, "no session looked for what it had written"),
        (seen.ages_us.len(), "no answer told its age"),
        (seen.copies, "no replica but the leader answered"),
        (unfit, "every document fitted"),
        (finals, "nothing was read when all was quiet"),
    ];
    if let Some((_, why)) = lacks.iter().find(|(count, _)| *count == 0) {
        return Verdict::Unknown { why: (*why).to_owned() };
    }
    seen.ages_us.sort_unstable();
    let ages = &seen.ages_us;
    let (half, most) = (ages[ages.len() / 2] / 1_000, ages[ages.len() * 99 / 100] / 1_000);
    let summary = format!(
        "{} rows were seen in views, own writes looked for {} times, {} ages (median {half} ms, p99 {most} ms), {} \
         answers by copies, {unfit} documents that do not fit, {finals} final rows as the sources say",
        seen.rows,
        seen.own,
        ages.len(),
        seen.copies
    );
    Verdict::Valid { summary }
}

/// One read of a view.
struct Judge<'j, 'a> {
    truth: &'j Truth<'a>,
    read: &'a Operation,
    place: usize,
    seen: &'j mut Seen,
}

impl<'a> Judge<'_, 'a> {
    fn end(&self) -> u64 {
        self.read.end.unwrap_or(u64::MAX)
    }

    /// What the answer must show of a row.
    fn least(&self, row: &Row<'_>) -> Least {
        let read = self.read;
        let age = |field: &str, unit: u64| read.number(field).map(|age| age.saturating_mul(unit));
        let level = read.text("level").unwrap_or_default();
        let fresh = (level == "linearizable").then_some(0);
        let own = (level == "at_least").then(|| row.own_before(read.number("session").unwrap_or(u64::MAX), read.start));
        [age("age_us", 1_000), age("max_age_ms", 1_000_000), fresh]
            .into_iter()
            .flatten()
            .map(|age| row.before(read.start.saturating_sub(age)))
            .chain(own)
            .max_by_key(|least| least.version)
            .unwrap_or_default()
    }

    /// The age that is told is no larger than what was allowed, but for the time that the read took.
    fn age(&mut self, found: Found<'_>) {
        let read = self.read;
        let age = read.number("age_us");
        self.seen.ages_us.extend(age);
        self.seen.copies += usize::from(read.text("role").is_some());
        self.seen.own += usize::from(read.text("level") == Some("at_least"));
        let Some(allowed) = read.number("max_age_ms").map(|allowed| allowed.saturating_mul(1_000)) else { return };
        let took = self.end().saturating_sub(read.start).div_ceil(1_000);
        match age {
            Some(age) if age <= allowed.saturating_add(took) => {}
            Some(age) => {
                found(format!("an age of {age} us, {allowed} us were allowed"), &read.key, vec![self.place]);
            }
            None => found("no age, and one was asked for".into(), &read.key, vec![self.place]),
        }
    }

    /// The row of the source that a shown document is, if it is one.
    fn shown(&mut self, document: &Value, found: Found<'_>) -> Option<(&'a str, u64)> {
        self.seen.rows += 1;
        let told = Document::of(document);
        let wanted = told.and_then(|told| Some((told.serial, self.truth.wanted.get(&told.serial)?)));
        let Some((serial, &(key, writer))) = wanted else {
            found(format!("{document} was written by nobody"), &self.read.key, vec![self.place]);
            return None;
        };
        let row = self.truth.rows.get(key);
        let Some(made) = row.and_then(|row| row.with_serial(serial)) else {
            found(format!("{document} never became a version of {key}"), key, vec![writer, self.place]);
            return None;
        };
        if made.document.is_none_or(|made| made.whole != document) {
            found(format!("{document} is not as it was written"), key, vec![writer, self.place]);
        }
        if made.start > self.end() {
            found(format!("{document} was seen before it was written"), key, vec![writer, self.place]);
        }
        let least = row.map(|row| self.least(row)).unwrap_or_default();
        if made.version < least.version {
            let what = format!("version {} is shown, and {} was there", made.version, least.version);
            found(what, key, least.place.into_iter().chain([self.place]).collect());
        }
        Some((key, serial))
    }

    /// A row that is not shown must have been able to be something that is not shown.
    fn hidden(&self, key: &str, row: &Row<'_>, is_shown: impl Fn(&Document<'_>) -> bool, found: Found<'_>) {
        let least = self.least(row);
        if row.possible(least, self.end()).all(|state| state.is_some_and(&is_shown)) {
            let what = format!("it is not shown, and version {} or a later one was there", least.version);
            found(what, key, least.place.into_iter().chain([self.place]).collect());
        }
    }

    fn list(&mut self, found: Found<'_>) {
        let user = self.read.key.as_str();
        let rows = derived::rows_of(&self.read.output);
        let mut shown = BTreeMap::new();
        for (row_key, document) in &rows {
            let Some((key, serial)) = self.shown(document, found) else { continue };
            let told = Document { serial, whole: document };
            if !told.is_listed(user) {
                found(format!("{document} is in the list of {user}"), key, vec![self.place]);
            }
            if !derived::is_key_of(row_key, user, key) {
                found(format!("the row {row_key} is no key of {key}"), key, vec![self.place]);
            }
            if shown.insert(key, serial).is_some() {
                found("it stands in one list twice".into(), key, vec![self.place]);
            }
        }
        if !rows.is_sorted_by_key(|(_, document)| derived::order(document)) {
            found("the list is not in its order".into(), user, vec![self.place]);
        }
        for (key, row) in self.truth.rows.iter().filter(|(key, _)| !is_note(key) && !shown.contains_key(*key)) {
            self.hidden(key, row, |document| document.is_listed(user), found);
        }
    }

    fn merged(&mut self, found: Found<'_>) {
        let order = self.read.key.as_str();
        let notes = [format!("{order}/a"), format!("{order}/b")];
        let document = &self.read.output;
        let rows = &self.truth.rows;
        match document.get("order") {
            Some(part) => {
                if self.shown(part, found).is_some_and(|(key, _)| key != order) {
                    found(format!("{part} is shown as {order}"), order, vec![self.place]);
                }
            }
            None => {
                if let Some(row) = rows.get(order) {
                    self.hidden(order, row, |_| true, found);
                }
            }
        }
        // Of two notes the one with the smaller key is shown.
        let (mut shown, mut hidden) = (None, &notes[..]);
        if let Some(part) = document.get("note") {
            let Some((key, _)) = self.shown(part, found) else { return };
            shown = Some(key);
            match notes.iter().position(|note| note == key) {
                Some(at) => hidden = &notes[..at],
                None => found(format!("{part} is shown as a note on {order}"), key, vec![self.place]),
            }
        }
        for note in hidden.iter().filter(|note| shown != Some(note.as_str())) {
            if let Some(row) = rows.get(note.as_str()) {
                self.hidden(note, row, |_| true, found);
            }
        }
    }

    fn sum(&mut self, found: Found<'_>) {
        let user = self.read.key.as_str();
        let told = |field: &str| self.read.output.get(field).and_then(Value::as_u64).unwrap_or(0);
        let (mut counts, mut sums, mut newest) = ((0, 0), (0, 0), (0, 0));
        for (_, row) in self.truth.rows.iter().filter(|(key, _)| !is_note(key)) {
            let (mut least, mut most) = (u64::MAX, 0);
            for state in row.possible(self.least(row), self.end()) {
                let amount = state.filter(|document| document.is_listed(user)).map_or(0, |document| document.serial);
                (least, most) = (least.min(amount), most.max(amount));
            }
            // Every amount is more than nothing.
            counts = (counts.0 + u64::from(least > 0), counts.1 + u64::from(most > 0));
            sums = (sums.0 + least, sums.1 + most);
            newest = (newest.0.max(least), newest.1.max(most));
        }
        self.seen.rows += 1;
        for (what, (least, most)) in [("orders", counts), ("amount", sums), ("newest", newest)] {
            let told = told(what);
            if told < least || told > most {
                let text = format!("{what} is {told}, which must be from {least} to {most}");
                found(text, user, vec![self.place]);
            }
        }
    }
}

fn is_note(key: &str) -> bool {
    key.contains('/')
}

/// Comparisons without differences, and a view that was once ready stays so; quiet views come after soon.
fn standing(history: &History, found: Found<'_>) {
    for (place, verified) in history.oks("verify") {
        let differing: u64 =
            ["missing", "invented", "other"].iter().filter_map(|what| verified.output.get(what)?.as_u64()).sum();
        if differing > 0 {
            found(format!("a comparison has found {}", verified.output), &verified.key, vec![place]);
        }
    }
    let mut ready: BTreeMap<&str, (u64, usize)> = BTreeMap::new();
    let mut told: Vec<(usize, &Operation)> = history.oks("describe").collect();
    told.sort_by_key(|(_, told)| told.start);
    for (place, told) in told {
        let state = told.output.get("state").and_then(Value::as_str).unwrap_or_default();
        match state {
            "READY" => {
                let first = ready.entry(&told.key).or_insert((u64::MAX, place));
                if let Some(end) = told.end.filter(|end| *end < first.0) {
                    *first = (end, place);
                }
            }
            "PAUSED" => {}
            // A node that was cut off tells how things were.
            "BUILDING" if ready.get(told.key.as_str()).is_none_or(|(end, _)| told.start <= *end + CUT_OFF_NS) => {}
            // Nothing is forgotten in the time of a run.
            _ => {
                let before = ready.get(told.key.as_str()).map(|(_, place)| *place);
                let operations = before.into_iter().chain([place]).collect();
                found(format!("the view is {state}, and nothing was forgotten"), &told.key, operations);
            }
        }
    }
    for (place, quiet) in history.oks("settle") {
        let took = quiet.end.unwrap_or(u64::MAX).saturating_sub(quiet.start);
        if took > QUIET_WITHIN_NS {
            let what = format!("it took {:.1} s to come after when all was quiet", took as f64 / 1e9);
            found(what, &quiet.key, vec![place]);
        }
    }
}
