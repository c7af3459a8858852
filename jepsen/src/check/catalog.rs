//! Tables that come and go: what is acknowledged is there as a whole, and what is dropped is gone.
//!
//! The lives of a name follow from its keeper's acts, of which one follows the other: a life begins between the beginning
//! and the end of its `create` and ends between the beginning of the `drop` after it and the end of that. A verb of unknown
//! outcome leaves everything open from its beginning on; the name is not used again.
//!
//! 1. A node that is asked for a table within its life knows it, and tells its whole definition; a refusal says that
//!    something is amiss, not that there is no such table.
//! 2. A write that was begun after a drop was acknowledged, and ended before the name was used again, was not acknowledged.
//! 3. What was acknowledged of one life is in no scan of a later one.
//! 4. What was acknowledged of a life is in every scan of it that begins later.
//! 5. A table that a view is derived from is not dropped.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::{Finding, Verdict};
use crate::history::{History, Kind, Operation};

/// One life of a name.
#[derive(Debug)]
struct Life {
    /// The place of its creation.
    create: usize,
    /// When that was begun, and when it was acknowledged.
    begun: u64,
    there: Option<u64>,
    /// When the first attempt to drop it was begun, and when it was certainly gone, and who said so.
    going: u64,
    gone: Option<(u64, usize)>,
    /// Whether the outcomes of all that are known.
    certain: bool,
}

/// Judges everything.
pub fn check(history: &History) -> Verdict {
    let mut findings = Vec::new();
    let mut found = |what: String, key: &str, operations: Vec<usize>| {
        findings.push(Finding { what, key: key.to_owned(), operations });
    };
    let lives = lives(history, "create", &["drop", "in-use"]);
    let views = self::lives(history, "create-view", &["drop-view"]);
    let writes: HashMap<u64, usize> =
        history.all("put").filter_map(|(place, put)| Some((put.input.as_u64()?, place))).collect();
    let (mut seen, mut refused) = (0, 0);
    for (place, operation) in history.operations.iter().enumerate() {
        let (start, Some(end)) = (operation.start, operation.end) else { continue };
        let lives = lives.get(operation.key.as_str()).or_else(|| views.get(operation.key.as_str()));
        let Some(lives) = lives.map(Vec::as_slice) else { continue };
        let within = lives.iter().find(|life| life.there.is_some_and(|there| there < start) && end < life.going);
        match operation.f.as_str() {
            "define" | "define-view" | "look" | "put" | "scan" => {
                if let Some(life) = within
                    && operation.text("error") == Some("UNKNOWN_TABLE")
                {
                    found("there is such a table".into(), &operation.key, vec![life.create, place]);
                }
            }
            "in-use" if operation.is_ok() => {
                refused += 1;
                if operation.output != "refused" {
                    found("a view is derived from it, and it was dropped".into(), &operation.key, vec![place]);
                }
            }
            _ => {}
        }
        if !operation.is_ok() {
            continue;
        }
        match operation.f.as_str() {
            "define" => {
                if let Some(life) = within {
                    let wanted = &history.operations[life.create].input;
                    let differs = |field: &&str| operation.output.get(*field) != wanted.get(*field);
                    // Shards may have been split since.
                    let wrong = ["history_ms", "partitioning"].iter().find(|field| differs(field));
                    let whole = operation.output["whole"] == true;
                    if wrong.is_some() || !whole {
                        let what = format!("{} is told of it, which was created as {wanted}", operation.output);
                        found(what, &operation.key, vec![life.create, place]);
                    }
                }
            }
            "put" => {
                if let Some((gone, next)) = gap(lives, start)
                    && end < next
                {
                    found("acknowledged, and the table was gone".into(), &operation.key, vec![gone, place]);
                }
            }
            "scan" => {
                seen += 1;
                scanned(history, &writes, lives, place, &mut found);
            }
            _ => {}
        }
    }
    if !findings.is_empty() {
        return Verdict::Invalid { findings };
    }
    // A name says something if it is known to have been that of one table and then of another.
    let there: Vec<usize> =
        lives.values().map(|lives| lives.iter().filter(|life| life.there.is_some()).count()).collect();
    let (names, known, again) =
        (lives.len(), there.iter().sum::<usize>(), there.iter().filter(|&&known| known > 1).count());
    if again == 0 || seen == 0 {
        let why = format!("{known} tables under {names} names, of which {again} were used again, and {seen} scans");
        return Verdict::Unknown { why };
    }
    let summary = format!("{known} lives under {names} names, {seen} scans, {refused} drops under a view refused");
    Verdict::Valid { summary }
}

/// The lives of each name, in their order, by those who create and drop.
fn lives<'a>(history: &'a History, create: &str, ends: &[&str]) -> BTreeMap<&'a str, Vec<Life>> {
    let mut all: BTreeMap<&str, Vec<Life>> = BTreeMap::new();
    for (place, operation) in history.operations.iter().enumerate() {
        let lives = all.entry(&operation.key);
        if operation.f == create {
            lives.or_default().push(Life {
                create: place,
                begun: operation.start,
                there: operation.end.filter(|_| operation.is_ok()),
                going: u64::MAX,
                gone: None,
                certain: operation.is_ok(),
            });
        } else if let (true, Some(life)) = (ends.contains(&operation.f.as_str()), lives.or_default().last_mut()) {
            // A table that is refused to go stays.
            if operation.output != "refused" {
                life.going = life.going.min(operation.start);
            }
            if let (true, true, Some(end)) = (operation.f != "in-use", operation.is_ok(), operation.end) {
                life.gone = Some((end, place));
            }
            life.certain &= operation.is_ok();
        }
    }
    all.retain(|_, lives| !lives.is_empty());
    all
}

/// If a moment lies where there was no such table for certain: who said that the last one was gone, and when the name was
/// used again.
fn gap(lives: &[Life], moment: u64) -> Option<(usize, u64)> {
    let at = lives.iter().rposition(|life| life.certain && life.gone.is_some_and(|(end, _)| end < moment))?;
    let next = lives.get(at + 1).map_or(u64::MAX, |life| life.begun);
    Some((lives[at].gone?.1, next)).filter(|_| moment < next)
}

/// What a scan shows of which life.
fn scanned(
    history: &History,
    writes: &HashMap<u64, usize>,
    lives: &[Life],
    place: usize,
    found: &mut impl FnMut(String, &str, Vec<usize>),
) {
    let scan = &history.operations[place];
    let rows: Vec<u64> = scan.output.as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    let latest = lives.iter().rfind(|life| life.there.is_some_and(|there| there < scan.start));
    for serial in &rows {
        let Some(&writer) = writes.get(serial) else {
            found(format!("{serial} was put by nobody"), &scan.key, vec![place]);
            continue;
        };
        let put = &history.operations[writer];
        let is_other = put.key != scan.key || put.outcome == Kind::Fail;
        if is_other || scan.end.is_some_and(|end| end < put.start) {
            found(format!("{serial} was not put there by then"), &scan.key, vec![writer, place]);
        } else if latest.is_some_and(|life| put.settled().is_some_and(|end| end < life.begun)) {
            found(format!("{serial} is of an earlier life"), &scan.key, vec![writer, place]);
        }
    }
    let Some((at, life)) = lives.iter().enumerate().find(|(_, life)| {
        life.there.is_some_and(|there| there < scan.start) && scan.end.is_some_and(|end| end < life.going)
    }) else {
        return;
    };
    // From then on a write was one to this table or to none.
    let since = match at.checked_sub(1).map(|before| &lives[before]) {
        None => 0,
        Some(before) => before.gone.map_or(life.begun, |(end, _)| end),
    };
    let is_of_it = |put: &Operation| put.is_ok() && put.key == scan.key && put.start > since;
    let rows: std::collections::HashSet<u64> = rows.into_iter().collect();
    for (writer, put) in history.all("put") {
        let before = put.end.is_some_and(|end| end < scan.start);
        if is_of_it(put) && before && put.input.as_u64().is_some_and(|serial| !rows.contains(&serial)) {
            found(format!("{} was acknowledged and is not there", put.input), &scan.key, vec![writer, place]);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::testing::{Line, history, named};

    fn act(f: &'static str, start: u64) -> Line {
        let told = json!({"history_ms": start, "partitioning": "hash", "shards": 2, "whole": true});
        let line = Line::new(f, "t", told);
        let line = if f == "drop" { line.ok(json!("dropped")) } else { line };
        line.at(start, start + 5)
    }

    fn put(serial: u64, start: u64) -> Line {
        Line::new("put", "t", json!(serial)).at(start, start + 5)
    }

    fn scan(rows: &[u64], start: u64) -> Line {
        Line::new("scan", "t", Value::Null).ok(json!(rows)).at(start, start + 5)
    }

    fn define(history_ms: u64, start: u64) -> Line {
        let told = json!({"history_ms": history_ms, "partitioning": "hash", "shards": 3, "whole": true});
        Line::new("define", "t", Value::Null).ok(told).at(start, start + 5)
    }

    /// Two lives: from 10 to 55, and from 100.
    fn lived(lines: Vec<Line>) -> History {
        let rest =
            vec![act("create", 10), put(1, 20), act("drop", 50), act("create", 100), put(2, 110), scan(&[2], 120)];
        history(&[rest, lines].concat())
    }

    #[test]
    fn good_histories_pass() {
        let verdict = check(&lived(vec![
            define(10, 20),
            define(100, 130),
            define(10, 60),
            scan(&[1], 30),
            scan(&[], 22),
            put(3, 60).fail("UNKNOWN_TABLE"),
            put(4, 52),
            put(5, 97).info("DEADLINE_EXCEEDED"),
            scan(&[2, 5], 130),
            define(10, 101).fail("UNKNOWN_TABLE"),
            // Of another name, whose last drop nobody knows the outcome of.
            Line::new("create", "s", json!({"history_ms": 1, "partitioning": "hash"})).at(10, 15),
            Line::new("drop", "s", Value::Null).info("DEADLINE_EXCEEDED").at(30, 40),
            Line::new("drop", "s", Value::Null).ok(json!("gone")).at(50, 55),
            Line::new("put", "s", json!(7)).at(60, 65),
            Line::new("put", "s", json!(8)).at(35, 36).fail("UNKNOWN_TABLE"),
            put(6, 120).fail("NO_QUORUM"),
            Line::new("in-use", "t", Value::Null).ok(json!("refused")).at(40, 42),
        ]));
        assert!(verdict.is_valid(), "{verdict:?}");
    }

    #[test]
    fn bad_histories_name_the_operations() {
        let broken = define(100, 130).ok(json!({"history_ms": 100, "partitioning": "hash", "whole": false}));
        let bad: Vec<(&str, Line, Vec<usize>)> = vec![
            ("unknown", define(10, 20).fail("UNKNOWN_TABLE"), vec![0, 6]),
            ("unknown to a write", put(3, 130).fail("UNKNOWN_TABLE"), vec![3, 6]),
            ("of an earlier life", define(10, 130), vec![3, 6]),
            ("in part", broken, vec![3, 6]),
            ("written into nothing", put(3, 60), vec![2, 6]),
            ("not empty", scan(&[1, 2], 130), vec![1, 6]),
            ("lost", scan(&[], 130), vec![4, 6]),
            ("put by nobody", scan(&[2, 9], 130), vec![6]),
            ("dropped under a view", Line::new("in-use", "t", Value::Null).ok(json!("dropped")).at(40, 42), vec![6]),
        ];
        for (name, line, operations) in bad {
            let found = named(check(&lived(vec![line])));
            assert!(found.contains(&operations), "{name}: {found:?}");
        }
    }

    #[test]
    fn a_name_that_is_not_used_again_says_nothing() {
        assert!(matches!(check(&history(&[act("create", 1), scan(&[], 10)])), Verdict::Unknown { .. }));
    }
}
