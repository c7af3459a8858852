//! Views against a plain reckoning that shares nothing with them but the definition: what a person would say the rows
//! are.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::Stored;
use crate::projection::{Definition, Effect, Projector, Recompute, coalesce, hides};

/// Keys of which the order, the bytes and the braces matter.
const KEYS: [&[u8]; 8] = [b"o/1", b"o.1", b"o1", b"{x}", b"%2F", b"\x00", b"\xFF", b"a}{"];

const GROUPS: &str = r#"
name = "groups"
kind = "aggregate"
[[sources]]
table = "orders"
partition_by = "user"
where = "!doc.marks.exists(mark, mark == 'test')"
[[sources]]
table = "returns"
partition_by = "user"
[aggregates]
largest = "max(n)"
total = "sum(n)"
least = "min(n)"
state = "max(state)"
"#;

const PARTS: &str = r#"
name = "parts"
kind = "merged"
[[sources]]
table = "orders"
partition_by = "user"
as = "one"
[[sources]]
table = "returns"
partition_by = "user"
include = ["n", "deep.er"]
as = "the \"other\""
"#;

const SORTED: &str = r#"
name = "sorted"
kind = "rekeyed"
[[sources]]
table = "orders"
partition_by = "user"
order_by = ["-n"]
[[sources]]
table = "returns"
partition_by = "user"
order_by = ["n", "-state"]
"#;

/// A row of a source: who, a number, a state, and whether it is marked.
#[derive(Clone, Debug)]
struct Order {
    user: &'static str,
    n: Option<i64>,
    state: Option<&'static str>,
    test: bool,
}

impl Order {
    fn json(&self) -> String {
        let n = self.n.map_or("null".to_owned(), |n| n.to_string());
        let state = self.state.map_or("null".to_owned(), |state| format!("\"{state}\""));
        let marks = if self.test { r#"["new","test"]"# } else { "[]" };
        let user = self.user;
        format!(r#"{{"user":{user}, "n":{n},"state":{state},"marks":{marks},"deep":{{"er":[1, {n}]}}}}"#)
    }

    fn tag(&self) -> String {
        self.user.trim_matches('"').replace('/', "%2F").replace('{', "%7B").replace('}', "%7D")
    }
}

/// Those of one tag that count, by source and key.
type Together<'a> = Vec<(usize, &'static [u8], &'a Order)>;
type Base = BTreeMap<(usize, &'static [u8]), Option<Order>>;

/// The documents that count, by tag, then by source and key.
fn by_tag(base: &Base, counts: impl Fn(usize, &Order) -> bool) -> BTreeMap<String, Together<'_>> {
    let mut tags: BTreeMap<String, Together<'_>> = BTreeMap::new();
    for (&(source, key), order) in base {
        if let Some(order) = order.as_ref().filter(|order| counts(source, order)) {
            tags.entry(order.tag()).or_default().push((source, key, order));
        }
    }
    tags
}

fn groups(base: &Base) -> Vec<(String, String)> {
    let row = |(tag, orders): (String, Together<'_>)| {
        let numbers = || orders.iter().filter_map(|(.., order)| order.n);
        let shown = |number: Option<i64>| number.map_or("null".to_owned(), |number| number.to_string());
        let total: i128 = numbers().map(i128::from).sum();
        let state = orders.iter().filter_map(|(.., order)| order.state).max();
        let state = state.map_or("null".to_owned(), |state| format!("\"{state}\""));
        let plain = tag.replace("%2F", "/").replace("%7B", "{").replace("%7D", "}");
        let (largest, least) = (shown(numbers().max()), shown(numbers().min()));
        let told = format!(r#""largest":{largest},"total":{total},"least":{least},"state":{state}"#);
        (format!("{{{tag}}}"), format!(r#"{{"user":"{plain}",{told}}}"#))
    };
    by_tag(base, |source, order| source == 1 || !order.test).into_iter().map(row).collect()
}

fn parts(base: &Base) -> Vec<(String, String)> {
    let row = |(tag, orders): (String, Together<'_>)| {
        // Sources and their keys come in order, so the first of each source is the one with the smallest key.
        let first = |source| orders.iter().find(|(of, ..)| *of == source).map(|(.., order)| order);
        let one = first(0).map(|order| format!(r#""one":{}"#, order.json()));
        let other = first(1).map(|order| {
            let n = order.n.map_or("null".to_owned(), |n| n.to_string());
            format!(r#""the \"other\"":{{"n":{n},"deep":{{"er":[1, {n}]}}}}"#)
        });
        let inside: Vec<String> = one.into_iter().chain(other).collect();
        (format!("{{{tag}}}"), format!("{{{}}}", inside.join(",")))
    };
    by_tag(base, |_, _| true).into_iter().map(row).collect()
}

/// Only the values: in which order they must stand, the reckoning knows by itself.
fn sorted(base: &Base) -> Vec<String> {
    let mut all = Vec::new();
    for (_, mut orders) in by_tag(base, |_, _| true) {
        orders.retain(|(source, ..)| *source == 0);
        orders.sort_by_key(|(_, key, order)| (std::cmp::Reverse(order.n), percent(key)));
        all.extend(orders.into_iter().map(|(.., order)| order.json()));
    }
    all
}

fn percent(key: &[u8]) -> String {
    crate::types::percent_encoded(key)
}

fn order() -> impl Strategy<Value = Order> {
    let n = prop::option::weighted(0.9, prop_oneof![-3..3_i64, Just(i64::MAX), Just(i64::MIN), any::<i64>()]);
    let state = prop::option::of(prop::sample::select(vec!["", "a", "ab", "b"]));
    let user = prop::sample::select(vec!["1", "\"1\"", "\"a/{b}\"", "true", "-7"]);
    (user, n, state, prop::bool::weighted(0.2)).prop_map(|(user, n, state, test)| Order { user, n, state, test })
}

/// What becomes of a row: an order, something that no view can use, or nothing.
fn change() -> impl Strategy<Value = (Option<Order>, Option<String>)> {
    let bad = prop::sample::select(vec!["", "[]", "{\"user\":[1]}", "{\"user\":\"\"}", "{\"n\":1}", "{\"user\":1,"]);
    prop_oneof![
        8 => order().prop_map(|order| { let json = order.json(); (Some(order), Some(json)) }),
        1 => bad.prop_map(|bad| (None, Some(bad.to_owned()))),
        3 => Just((None, None)),
    ]
}

#[derive(Clone, Copy, Debug)]
enum After {
    Gathers,
    TakesIn,
    FoldsAndTakesIn,
}

/// Takes effects in as shards of the view do: each tag for itself.
fn take_in(view: &mut Stored, effects: Vec<Effect>) {
    let mut tags: BTreeMap<Bytes, Vec<Effect>> = BTreeMap::new();
    effects.into_iter().for_each(|effect| tags.entry(effect.tag.clone()).or_default().push(effect));
    // In any order.
    tags.into_values().rev().for_each(|effects| view.take_in(&effects));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn views_say_what_a_plain_reckoning_says(
        history in prop::collection::vec((
            0..2_usize,
            prop::sample::select(KEYS.to_vec()),
            change(),
            prop::sample::select(vec![After::Gathers, After::Gathers, After::TakesIn, After::FoldsAndTakesIn]),
        ), 1..70),
    ) {
        for text in [GROUPS, PARTS, SORTED] {
            let definition = Definition::parse(text).expect("it is one");
            let projector = Projector::new(&definition).expect("it is one");
            let (mut base, mut stored, mut view) = (Base::new(), BTreeMap::new(), Stored::default());
            let mut gathered = Vec::new();
            for (source, key, (order, value), after) in &history {
                let before = match value {
                    Some(value) => stored.insert((*source, *key), value.clone()),
                    None => stored.remove(&(*source, *key)),
                };
                base.insert((*source, *key), order.clone());
                let (before, value) = (before.as_deref().map(str::as_bytes), value.as_deref().map(str::as_bytes));
                let projected = projector.effects(*source, key, before, value);
                prop_assert_eq!(projected.bad.is_some(), value.is_some() && order.is_none());
                gathered.extend(projected.effects);
                match after {
                    After::Gathers => {}
                    After::TakesIn => take_in(&mut view, std::mem::take(&mut gathered)),
                    After::FoldsAndTakesIn => take_in(&mut view, coalesce(std::mem::take(&mut gathered))),
                }
            }
            take_in(&mut view, gathered);
            match text {
                GROUPS => prop_assert_eq!(view.shown(), groups(&base)),
                PARTS => prop_assert_eq!(view.shown(), parts(&base)),
                _ => {
                    let of_first = view.shown().into_iter().filter(|(key, _)| key.contains("/0/"));
                    prop_assert_eq!(of_first.map(|(_, value)| value).collect::<Vec<_>>(), sorted(&base));
                }
            }
            // And with the hidden rows, byte for byte, whatever order the sources are read in.
            let mut computed = Recompute::new(&definition).expect("it is one");
            for ((source, key), value) in stored.iter().rev() {
                computed.add(*source, key, value.as_bytes()).expect("memory");
            }
            prop_assert_eq!(&view.0, &computed.rows().expect("memory"));
            for key in view.0.keys() {
                prop_assert_eq!(hides(key), key.contains(&1), "{:?}", key);
                prop_assert!(hides(key) || key.iter().all(u8::is_ascii_graphic), "{:?}", key);
            }
            let left: Vec<&Bytes> = view.0.keys().filter(|key| text == SORTED && hides(key)).collect();
            prop_assert!(left.is_empty(), "a re-keyed view keeps no books: {:?}", left);
        }
    }
}

/// Rows that were damaged are passed over, and what is written from the others is sound.
#[test]
fn damaged_members_are_passed_over() {
    let definition = Definition::parse(GROUPS).expect("it is one");
    let projector = Projector::new(&definition).expect("it is one");
    let mut view = Stored::default();
    let put = |view: &mut Stored, key: &[u8], n: i64| {
        let value = format!(r#"{{"user":1,"n":{n},"marks":[]}}"#);
        view.take_in(&projector.effects(0, key, None, Some(value.as_bytes())).effects);
    };
    put(&mut view, b"a", 5);
    put(&mut view, b"b", 3);
    for (key, value) in &mut view.0 {
        if key.ends_with(b"/a") {
            *value = Bytes::from_static(b"\xFF{");
        }
    }
    put(&mut view, b"c", 4);
    let told = r#"{"user":"1","largest":4,"total":12,"least":3,"state":null}"#;
    assert_eq!(view.shown(), [("{1}".to_owned(), told.to_owned())]);
    // Totals that are none begin anew.
    view.0.insert(Bytes::from_static(b"{1}\x01t"), Bytes::from_static(b"many"));
    put(&mut view, b"d", 9);
    assert_eq!(view.shown()[0].1, r#"{"user":"1","largest":9,"total":9,"least":3,"state":null}"#);
}

/// What is to be deleted is told also if it is not there.
#[test]
fn deleting_what_is_absent_is_told() {
    let definition = Definition::parse(PARTS).expect("it is one");
    let projector = Projector::new(&definition).expect("it is one");
    let effects = projector.effects(0, b"a", Some(br#"{"user":1}"#), None).effects;
    let changed = crate::projection::apply(&effects, &Stored::default()).expect("memory");
    let keys: Vec<(&[u8], bool)> = changed.iter().map(|(key, value)| (&key[..], value.is_some())).collect();
    assert_eq!(keys, [(&b"{1}"[..], false), (b"{1}\x01p0/a", false)]);
}
