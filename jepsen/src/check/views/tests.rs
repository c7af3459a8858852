//! Histories that the promises of views rule out, one for each of them, and one that they allow.

use serde_json::{Value, json};

use super::*;
use crate::check::testing::{Line, history, named};

const MS: u64 = 1_000_000;

fn order(key: &str, user: &str, status: &str, amount: u64) -> Value {
    json!({"order": key, "user": user, "status": status, "amount": amount})
}

fn note(order: &str, text: u64) -> Value {
    json!({"order": order, "text": text})
}

/// A write by session 1; its version is that of the rows.
fn write(f: &'static str, rows: &[(&str, Value)], version: u64, start_ms: u64) -> Line {
    let at = start_ms * MS;
    let line = Line::new(f, rows[0].0, json!(rows)).ok(Value::Null).version(version);
    line.extra("session", 1).at(at, at + MS)
}

fn versions(key: &str, versions: &[(u64, Option<u64>)]) -> Line {
    Line::new("versions", key, Value::Null).ok(json!(versions)).at(900 * MS, 901 * MS)
}

/// A read by session 2.
fn read(f: &'static str, key: &str, output: Value, level: &str, start_ms: u64) -> Line {
    let line = Line::new(f, key, Value::Null).ok(output).extra("session", 2).extra("level", level);
    line.at(start_ms * MS, (start_ms + 1) * MS)
}

fn row(user: &str, order: &Value) -> Value {
    let key = order["order"].as_str().expect("an order");
    json!([format!("{}:aa:bb/{}", derived::tagged(user), encoded(key)), order])
}

fn list(user: &str, orders: &[Value], level: &str, start_ms: u64) -> Line {
    read("list", user, orders.iter().map(|order| row(user, order)).collect(), level, start_ms)
}

/// A comparison that finds no difference when all is quiet.
fn compared(view: &str, unfit: u64) -> Line {
    let told = json!({"rows": 3, "missing": 0, "invented": 0, "other": 0, "unfit": unfit});
    Line::new("verify", view, Value::Null).ok(told).extra("quiet", 1).at(952 * MS, 953 * MS)
}

fn last(table: &str, rows: Value) -> Line {
    Line::new("final", table, Value::Null).ok(rows).at(950 * MS, 951 * MS)
}

/// An order that lacks something.
fn unfit(key: &str, without: &str, amount: u64) -> Value {
    let mut order = order(key, "u", "open", amount);
    order.as_object_mut().expect("a document").remove(without);
    order
}

/// Order A goes from u to v, order B is cancelled, C is written and nobody is told; A has a note. D loses its user, and E never has
/// a status.
fn written() -> Vec<Line> {
    vec![
        write("put", &[("{g}1", order("{g}1", "u", "open", 10))], 100, 0),
        write("put", &[("{g}2", order("{g}2", "u", "open", 20))], 101, 10),
        write("put", &[("{g}1", order("{g}1", "v", "paid", 11))], 102, 20),
        write("batch", &[("{g}2", order("{g}2", "u", CANCELLED, 21))], 103, 30),
        Line::new("put", "{g}3", json!([["{g}3", order("{g}3", "u", "open", 30)]])).info("gone").at(40 * MS, 45 * MS),
        write("put", &[("{g}1/b", note("{g}1", 40))], 105, 50),
        write("put", &[("{g}4", order("{g}4", "w", "open", 50))], 106, 52),
        write("put", &[("{g}4", unfit("{g}4", "user", 51))], 107, 54),
        write("put", &[("{g}5", unfit("{g}5", "status", 52))], 108, 56),
        versions("{g}1", &[(100, Some(10)), (102, Some(11))]),
        versions("{g}2", &[(101, Some(20)), (103, Some(21))]),
        versions("{g}3", &[(104, Some(30))]),
        versions("{g}1/b", &[(105, Some(40))]),
        versions("{g}4", &[(106, Some(50)), (107, Some(51))]),
        versions("{g}5", &[(108, Some(52))]),
    ]
}

/// What makes that a history that says something.
fn rest() -> Vec<Line> {
    let (a, c) = (order("{g}1", "v", "paid", 11), order("{g}3", "u", "open", 30));
    let cancelled = order("{g}2", "u", CANCELLED, 21);
    let (lost, stateless) = (unfit("{g}4", "user", 51), unfit("{g}5", "status", 52));
    let sums = json!([
        ["{u}", {"user": "u", "orders": 1, "amount": 30, "newest": 30}],
        ["{v}", {"user": "v", "orders": 1, "amount": 11, "newest": 11}],
    ]);
    let merged = json!([
        ["{%7Bg%7D1}", {"order": a, "note": note("{g}1", 40)}],
        ["{%7Bg%7D2}", {"order": cancelled}],
        ["{%7Bg%7D3}", {"order": c}],
        ["{%7Bg%7D4}", {"order": lost}],
        ["{%7Bg%7D5}", {"order": stateless}],
    ]);
    vec![
        list("v", std::slice::from_ref(&a), "at_least", 60).extra("session", 1).extra("role", "follower"),
        list("v", std::slice::from_ref(&a), "any", 61).extra("age_us", 2_000),
        last("vorders", json!([["{g}1", a], ["{g}2", cancelled], ["{g}3", c], ["{g}4", lost], ["{g}5", stateless]])),
        last("vorders_by_user", json!([row("v", &a), row("u", &c)])),
        last("vuser_sums", sums),
        last("vorders_noted", merged),
        compared("vuser_sums", 2),
        compared("vorders_noted", 0),
        Line::new("settle", "vuser_sums", Value::Null).ok(json!([])).at(0, 30_000 * MS),
    ]
}

fn with_rest(lines: Vec<Line>) -> History {
    history(&[written(), rest(), lines].concat())
}

/// Lines before those that a test adds.
fn before() -> usize {
    written().len() + rest().len()
}

#[test]
fn good_histories_pass() {
    let (a, b) = (order("{g}1", "u", "open", 10), order("{g}2", "u", "open", 20));
    let verdict = check(&with_rest(vec![
        // As old as it says, and as old as it may be.
        list("u", &[b.clone(), a.clone()], "any", 25).extra("age_us", 5_000),
        list("u", &[b.clone(), a], "max_age", 26).extra("max_age_ms", 6).extra("age_us", 5_500),
        // While a write is under way either will do, and of what nobody knows.
        list("u", std::slice::from_ref(&b), "linearizable", 30),
        list("u", &[], "linearizable", 46),
        list("u", &[order("{g}3", "u", "open", 30)], "linearizable", 47),
        // Another session need not see it.
        list("v", &[], "at_least", 22),
        read("sum", "u", json!({"user": "u", "orders": 1, "amount": 20, "newest": 20}), "linearizable", 25),
        read("sum", "u", Value::Null, "linearizable", 46),
        read("merged", "{g}1", json!({"order": order("{g}1", "v", "paid", 11)}), "linearizable", 50),
        read("merged", "{g}9", Value::Null, "linearizable", 50),
        Line::new("describe", "v1", Value::Null).ok(json!({"state": "BUILDING"})).at(0, MS),
        Line::new("describe", "v1", Value::Null).ok(json!({"state": "READY"})).at(2 * MS, 3 * MS),
        Line::new("describe", "v1", Value::Null).ok(json!({"state": "PAUSED"})).at(4 * MS, 5 * MS),
    ]));
    assert!(verdict.is_valid(), "{verdict:?}");
}

#[test]
fn bad_histories_name_the_operations() {
    let (a, b) = (order("{g}1", "u", "open", 10), order("{g}2", "u", "open", 20));
    let moved = order("{g}1", "v", "paid", 11);
    let n = before();
    let state = |state: &str, at: u64| {
        Line::new("describe", "v1", Value::Null).ok(json!({"state": state})).at(at * MS, (at + 1) * MS)
    };
    let bad: Vec<(&str, Vec<Line>, Vec<usize>)> = vec![
        ("of nobody", vec![list("u", &[order("{g}1", "u", "open", 77)], "any", 5)], vec![n]),
        ("altered", vec![list("u", &[order("{g}1", "u", "paid", 10)], "any", 5)], vec![0, n]),
        ("of another user", vec![list("v", std::slice::from_ref(&a), "any", 5)], vec![n]),
        ("cancelled", vec![list("u", &[order("{g}2", "u", CANCELLED, 21)], "any", 35)], vec![n]),
        ("before it was written", vec![list("v", std::slice::from_ref(&moved), "any", 5)], vec![2, n]),
        ("twice", vec![list("v", &[moved.clone(), moved.clone()], "any", 25)], vec![n]),
        ("out of order", vec![list("u", &[a.clone(), b.clone()], "any", 15)], vec![n]),
        ("older than it says", vec![list("u", &[b.clone(), a.clone()], "any", 25).extra("age_us", 3_000)], vec![2, n]),
        (
            "older than it may be",
            vec![list("u", &[b.clone(), a.clone()], "max_age", 25).extra("max_age_ms", 3).extra("age_us", 1)],
            vec![2, n],
        ),
        (
            "told to be older than it may be",
            vec![list("v", &[], "max_age", 10).extra("max_age_ms", 3).extra("age_us", 4_001)],
            vec![n],
        ),
        ("no age", vec![list("v", &[], "max_age", 10).extra("max_age_ms", 3)], vec![n]),
        ("stale presence", vec![list("u", &[b.clone(), a.clone()], "linearizable", 25)], vec![2, n]),
        ("stale absence", vec![list("v", &[], "linearizable", 25)], vec![2, n]),
        ("own write not there", vec![list("v", &[], "at_least", 25).extra("session", 1)], vec![2, n]),
        ("own move not seen", vec![list("u", &[b.clone(), a.clone()], "at_least", 25).extra("session", 1)], vec![2, n]),
        (
            "one too many in a sum",
            vec![read("sum", "u", json!({"orders": 2, "amount": 20, "newest": 20}), "linearizable", 25)],
            vec![n],
        ),
        (
            "too small a sum",
            vec![read("sum", "u", json!({"orders": 1, "amount": 19, "newest": 20}), "linearizable", 25)],
            vec![n],
        ),
        (
            "not the newest",
            vec![read("sum", "u", json!({"orders": 1, "amount": 20, "newest": 10}), "linearizable", 25)],
            vec![n],
        ),
        ("no sum", vec![read("sum", "u", Value::Null, "linearizable", 25)], vec![n]),
        ("no part", vec![read("merged", "{g}1", json!({"note": note("{g}1", 40)}), "linearizable", 55)], vec![2, n]),
        ("no note", vec![read("merged", "{g}1", json!({"order": moved}), "linearizable", 55)], vec![5, n]),
        (
            "another note",
            vec![read("merged", "{g}2", json!({"order": b, "note": note("{g}1", 40)}), "any", 55)],
            vec![n],
        ),
        ("an orphan", vec![last("vorders_by_user", json!([row("v", &moved)]))], vec![n]),
        ("in two lists", vec![last("vorders_by_user", json!([row("v", &moved), row("u", &a)]))], vec![n]),
        ("a wrong sum", vec![last("vuser_sums", json!([["{u}", {"user": "u", "orders": 1, "amount": 31}]]))], vec![n]),
        ("a lost row", vec![last("vnotes", json!([]))], vec![n]),
        (
            "a doubled row",
            vec![last("vnotes", json!([["{g}1/b", note("{g}1", 40)], ["{g}1/b", note("{g}1", 40)]]))],
            vec![n],
        ),
        ("a version of nobody", vec![versions("{g}1/b", &[(105, Some(40)), (109, None)])], vec![n]),
        ("a lost version", vec![versions("{g}1", &[(102, Some(11))])], vec![0, n]),
        (
            "a difference",
            vec![Line::new("verify", "v1", Value::Null).ok(json!({"missing": 0, "invented": 1, "other": 0}))],
            vec![n],
        ),
        ("what does not fit not counted", vec![compared("vuser_sums", 1)], vec![n]),
        ("what does not fit counted twice", vec![compared("vorders_by_user", 4)], vec![n]),
        ("counted where all fits", vec![compared("vorders_noted", 2)], vec![n]),
        ("an order without a user in a list", vec![list("w", &[unfit("{g}4", "user", 51)], "any", 60)], vec![n]),
        ("an order without a status in a list", vec![list("u", &[unfit("{g}5", "status", 52)], "any", 60)], vec![n]),
        (
            "an order that lost its user still in the list",
            vec![list("w", &[order("{g}4", "w", "open", 50)], "linearizable", 56)],
            vec![7, n],
        ),
        ("made anew", vec![state("READY", 1), state("REBUILDING", 3)], vec![n, n + 1]),
        ("built again", vec![state("READY", 1), state("BUILDING", 30_003)], vec![n, n + 1]),
        ("slow to come after", vec![Line::new("settle", "v1", Value::Null).ok(json!([])).at(0, 30_001 * MS)], vec![n]),
    ];
    for (name, lines, operations) in bad {
        let found = named(check(&with_rest(lines)));
        assert!(found.contains(&operations), "{name}: {found:?}");
    }
}

#[test]
fn a_history_that_shows_too_little_says_nothing() {
    assert!(matches!(check(&history(&written())), Verdict::Unknown { .. }));
}
