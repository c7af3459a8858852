//! Histories of change streams: those that hold, and those in which each thing that must not be is found.

use serde_json::{Value, json};

use super::*;
use crate::check::testing::{Line, history, named};

const MS: u64 = 1_000_000;
const WINDOW_MS: u64 = 8_000;

fn windows() -> Windows {
    Windows::from([('l', 3_600_000), ('s', WINDOW_MS)])
}

fn put(key: &str, value: i64, version: u64, at_ms: u64) -> Line {
    Line::new("put", key, json!(value)).ok(Value::Null).version(version).at(at_ms * MS, (at_ms + 1) * MS)
}

fn delete(key: &str, version: u64, at_ms: u64) -> Line {
    Line::new("delete", key, Value::Null).ok(Value::Null).version(version).at(at_ms * MS, (at_ms + 1) * MS)
}

fn lost(line: Line) -> Line {
    line.info("timeout")
}

/// A page that took a millisecond and is this old.
fn page(f: &'static str, who: &str, rows: Value, at_ms: u64, age_ms: u64) -> Line {
    unproven(f, who, rows, at_ms).extra("age_us", age_ms * 1_000)
}

fn unproven(f: &'static str, who: &str, rows: Value, at_ms: u64) -> Line {
    Line::new(f, who, Value::Null).ok(rows).at(at_ms * MS, (at_ms + 1) * MS)
}

fn begin(at_ms: u64) -> Line {
    page("begin", "l:a", json!([]), at_ms, 1)
}

fn told(rows: Value, at_ms: u64) -> Line {
    // As old as if nothing had been written yet.
    page("page", "l:a", rows, at_ms, at_ms - 6)
}

fn too_late(who: &str, at_ms: u64) -> Line {
    Line::new("page", who, Value::Null).fail("CURSOR_TRIMMED").at(at_ms * MS, (at_ms + 1) * MS)
}

fn list(key: &str, rows: Value, at_ms: u64) -> Line {
    Line::new("versions", key, Value::Null).ok(rows).at(at_ms * MS, (at_ms + 1) * MS)
}

fn judged(lines: &[Line]) -> Verdict {
    check(&history(lines), &windows())
}

#[test]
fn good_histories_pass() {
    let batch = json!([["lx", 20], ["ly", 21], ["lz", null]]);
    let lines = [
        put("lx", 9, 4, 0),
        begin(5),
        put("lx", 10, 11, 10),
        Line::new("batch", "l", batch).ok(Value::Null).version(12).at(12 * MS, 13 * MS),
        // What is not there is deleted without a version.
        delete("ly", 13, 14),
        delete("ly", 14, 16),
        page("page", "l:a", json!([["lx", 11, 10, [4, 9]], ["lx", 12, 20, [11, 10]]]), 20, 7),
        page("resume", "l:a", json!([["ly", 12, 21, null], ["ly", 13, null, [12, 21]]]), 22, 1),
        // Whether this came to be shows only in what is told.
        lost(put("lx", 30, 0, 24)),
        lost(delete("lx", 0, 24)),
        // Told, but lost before it was committed.
        page("page", "l:a", json!([["lx", 15, 30, [12, 20]]]), 30, 1).extra("committed", false),
        page("resume", "l:a", json!([["lx", 15, 30, [12, 20]]]), 32, 1),
        page("page", "l:a", json!([["lx", 16, null, [15, 30]]]), 34, 1),
        Line::new("page", "l:a", Value::Null).fail("DROPPED").at(36 * MS, 37 * MS),
        put("lx", 40, 17, 40).fail("NO_QUORUM"),
        list("lx", json!([[16, null], [15, 30], [12, 20]]), 44),
        list("ly", json!([]), 45),
        page("page", "l:a", json!([]), 50, 2),
    ];
    let verdict = judged(&lines);
    assert!(verdict.is_valid(), "{verdict:?}");
}

#[test]
fn whoever_comes_too_late_begins_anew_and_was_told_all_until_then() {
    let second = 1_000;
    let lines = [
        page("begin", "s:a", json!([]), 0, 0),
        put("sx", 1, 1, 10),
        put("sx", 2, 2, 12 * second),
        put("sx", 3, 3, 20 * second),
        too_late("s:a", 21 * second),
        put("sx", 4, 4, 22 * second),
        unproven("begin", "s:a", json!([]), 23 * second),
        put("sx", 5, 5, 25 * second),
        page("page", "s:a", json!([["sx", 5, 5, [4, 4]]]), 26 * second, 1),
    ];
    let verdict = judged(&lines);
    assert!(verdict.is_valid(), "{verdict:?}");
}

#[test]
fn bad_histories_name_the_operations() {
    let one = || put("lx", 1, 11, 10);
    let two = || put("lx", 2, 12, 12);
    let both = || vec![begin(5), one(), two()];
    let and = |mut lines: Vec<Line>, more: Vec<Line>| {
        lines.extend(more);
        lines
    };
    let bad: Vec<(&str, Vec<Line>, Vec<usize>)> = vec![
        ("a gap", and(both(), vec![told(json!([["lx", 12, 2, [11, 1]]]), 20)]), vec![1, 3]),
        (
            "a gap in which somebody else was told what nobody knows to have written",
            vec![
                begin(5),
                one(),
                lost(put("lx", 3, 0, 14)),
                put("lx", 2, 13, 16),
                list("lx", json!([[13, 2], [12, 3], [11, 1]]), 18),
                told(json!([["lx", 11, 1, null], ["lx", 13, 2, [11, 1]]]), 20),
            ],
            vec![4, 5],
        ),
        (
            "a deletion passed over",
            vec![
                begin(5),
                one(),
                delete("lx", 12, 12),
                put("lx", 2, 13, 14),
                told(json!([["lx", 11, 1, null], ["lx", 13, 2, [11, 1]]]), 20),
            ],
            vec![2, 4],
        ),
        (
            "a deletion passed over, as a page says",
            vec![begin(5), one(), delete("lx", 12, 12), page("page", "l:a", json!([["lx", 11, 1, null]]), 20, 1)],
            vec![2, 3],
        ),
        (
            "a gap before the refusal",
            and(both(), vec![told(json!([["lx", 12, 2, [11, 1]]]), 20), too_late("l:a", 22), begin(24)]),
            vec![1, 3],
        ),
        (
            "a gap behind a beginning of unknown age",
            vec![unproven("begin", "l:a", json!([]), 5), one(), two(), told(json!([["lx", 12, 2, [11, 1]]]), 20)],
            vec![1, 3],
        ),
        (
            "told twice",
            and(both(), vec![told(json!([["lx", 11, 1, null]]), 20), told(json!([["lx", 11, 1, null]]), 22)]),
            vec![3, 4],
        ),
        (
            "out of order",
            and(
                both(),
                vec![
                    told(json!([["lx", 11, 1, null], ["lx", 12, 2, [11, 1]]]), 20),
                    told(json!([["lx", 11, 1, null]]), 22),
                ],
            ),
            vec![3, 4],
        ),
        ("younger than it is", and(both(), vec![page("page", "l:a", json!([["lx", 11, 1, null]]), 20, 6)]), vec![2, 3]),
        (
            "not told what only a list shows",
            vec![
                begin(5),
                lost(put("lx", 1, 0, 10)),
                list("lx", json!([[11, 1]]), 30),
                page("page", "l:a", json!([]), 40, 1),
            ],
            vec![2, 3],
        ),
        ("nobody wrote it", vec![begin(5), told(json!([["lx", 11, 7, null]]), 20)], vec![1]),
        (
            "nobody deleted it",
            vec![begin(5), one(), told(json!([["lx", 11, 1, null], ["lx", 12, null, [11, 1]]]), 20)],
            vec![2],
        ),
        ("it was refused", vec![begin(5), one().fail("NO_QUORUM"), told(json!([["lx", 11, 1, null]]), 20)], vec![1, 2]),
        ("before it was written", vec![begin(5), told(json!([["lx", 11, 1, null]]), 8), lost(one())], vec![2, 1]),
        ("as another version", vec![begin(5), one(), told(json!([["lx", 14, 1, null]]), 20)], vec![1, 2]),
        (
            "written twice",
            vec![begin(5), lost(one()), told(json!([["lx", 11, 1, null], ["lx", 12, 1, [11, 1]]]), 20)],
            vec![2, 2],
        ),
        ("another value", and(both(), vec![told(json!([["lx", 11, 2, null]]), 20)]), vec![1, 3]),
        (
            "not what it has replaced",
            and(both(), vec![told(json!([["lx", 11, 1, null], ["lx", 12, 2, [10, 5]]]), 20)]),
            vec![3, 3],
        ),
        (
            "replaced nothing",
            and(both(), vec![told(json!([["lx", 11, 1, null], ["lx", 12, 2, null]]), 20)]),
            vec![3, 3],
        ),
        (
            "replaced what lies further back",
            vec![put("lx", 8, 2, 0), put("lx", 9, 4, 2), begin(5), one(), told(json!([["lx", 11, 1, [2, 8]]]), 20)],
            vec![1, 4],
        ),
        (
            "replaced another value",
            vec![put("lx", 9, 4, 0), begin(5), one(), told(json!([["lx", 11, 1, [4, 8]]]), 20)],
            vec![0, 3],
        ),
        (
            "told and not there",
            vec![
                begin(5),
                one(),
                lost(two()),
                told(json!([["lx", 11, 1, null], ["lx", 12, 2, [11, 1]]]), 20),
                list("lx", json!([[11, 1]]), 30),
            ],
            vec![3, 4],
        ),
        (
            "what was lost is not told again",
            and(
                both(),
                vec![
                    told(json!([["lx", 11, 1, null]]), 20).extra("committed", false),
                    page("resume", "l:a", json!([["lx", 12, 2, [11, 1]]]), 22, 16),
                ],
            ),
            vec![1, 4],
        ),
        ("of another table", vec![begin(5), put("sx", 1, 11, 10), told(json!([["sx", 11, 1, null]]), 20)], vec![2]),
        (
            "too late and had kept up",
            vec![
                page("begin", "s:a", json!([]), 0, 0),
                put("sx", 1, 1, 7_000),
                page("page", "s:a", json!([["sx", 1, 1, null]]), 7_100, 1),
                too_late("s:a", 8_000),
            ],
            vec![2, 3],
        ),
    ];
    for (name, lines, operations) in bad {
        let named = named(judged(&lines));
        assert!(named.contains(&operations), "{name}: {named:?}");
    }
}

#[test]
fn whoever_was_told_too_late_after_clocks_were_wrong_is_believed() {
    let lines = [
        page("begin", "s:a", json!([]), 0, 0),
        put("sx", 1, 1, 7_000),
        page("page", "s:a", json!([["sx", 1, 1, null]]), 7_100, 1),
        too_late("s:a", 8_000),
        page("begin", "s:a", json!([]), 8_100, 0),
    ];
    let mut history = history(&lines);
    assert!(!check(&history, &windows()).is_valid());
    let (name, target) = ("clock-jump".into(), "n1".into());
    history.faults.push(crate::history::FaultSpan { name, target, from_ns: 500 * MS, to_ns: 600 * MS });
    assert!(check(&history, &windows()).is_valid());
}

#[test]
fn a_model_is_the_table_in_the_end() {
    let scan = Line::new("scan", "l:a", Value::Null).ok(json!([["lx", 4, 9], ["ly", 5, 8]])).at(6 * MS, 7 * MS);
    let model = |rows: Value| Line::new("model", "l:a", Value::Null).ok(rows).at(60 * MS, 60 * MS);
    let lines = |model: Line| {
        vec![
            put("lx", 9, 4, 0),
            put("ly", 8, 5, 2),
            begin(5),
            scan.clone(),
            put("lx", 1, 11, 10),
            delete("ly", 12, 12),
            put("lx", 2, 13, 14),
            told(json!([["lx", 11, 1, [4, 9]], ["ly", 12, null, [5, 8]]]), 20),
            told(json!([["lx", 13, 2, [11, 1]]]), 22).extra("committed", false),
            page("resume", "l:a", json!([["lx", 13, 2, [11, 1]]]), 24, 1),
            list("lx", json!([[13, 2], [11, 1]]), 30),
            list("ly", json!([[12, null], [5, 8]]), 32),
            page("page", "l:a", json!([]), 50, 1),
            model,
        ]
    };
    let verdict = judged(&lines(model(json!([["lx", 13, 2]]))));
    assert!(verdict.is_valid(), "{verdict:?}");
    for (name, rows, operations) in [
        ("an older value", json!([["lx", 11, 1]]), vec![9, 13]),
        ("behind the table", json!([["lx", 11, 1]]), vec![10, 13]),
        ("what was deleted", json!([["lx", 13, 2], ["ly", 5, 8]]), vec![7, 13]),
        ("what never was", json!([["lx", 13, 2], ["lz", 5, 8]]), vec![13]),
        ("nothing", json!([]), vec![10, 13]),
    ] {
        let named = named(judged(&lines(model(rows))));
        assert!(named.contains(&operations), "{name}: {named:?}");
    }
}

#[test]
fn whoever_was_not_told_how_it_ended_and_whoever_was_told_nothing_leave_a_doubt() {
    let told = || vec![begin(5), put("lx", 1, 11, 10), page("page", "l:a", json!([["lx", 11, 1, null]]), 20, 1)];
    assert!(judged(&told()).is_valid());
    let mut lines = told();
    lines.push(list("lx", json!([[11, 1]]), 30));
    assert!(matches!(judged(&lines), Verdict::Unknown { .. }));
    assert!(matches!(judged(&[begin(5), put("lx", 1, 11, 10)]), Verdict::Unknown { .. }));
}
