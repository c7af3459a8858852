//! Whatever the history and however it is taken in, a view is what its sources make of it.

mod golden;
mod history;

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::recompute::Recompute;
use super::*;
use crate::types::{Reason, Result};

const REKEYED: &str = r#"
name = "orders_by_user"
kind = "rekeyed"

[[sources]]
table = "orders"
where = "doc.status != 'test'"
partition_by = "user.id"
order_by = ["-created_ms", "amount"]
"#;

const INCLUDING: &str = r#"
name = "two"
kind = "rekeyed"
on_bad_document = "stop"

[[sources]]
table = "orders"
partition_by = "user.id"
include = ["status", "user.id"]

[[sources]]
table = "returns"
partition_by = "user.id"
"#;

const AGGREGATE: &str = r#"
name = "user_stats"
kind = "aggregate"
shards = 2

[[sources]]
table = "orders"
where = "doc.status != 'test'"
partition_by = "user.id"

[[sources]]
table = "returns"
partition_by = "user.id"

[aggregates]
orders = "count"
spent = "sum(amount)"
first = "min(created_ms)"
last = "max(created_ms)"
states = "max(status)"
"#;

const MERGED: &str = r#"
name = "products"
kind = "merged"

[[sources]]
table = "base"
partition_by = "user.id"
as = "base"

[[sources]]
table = "prices"
partition_by = "user.id"
as = "price"
include = ["amount"]
"#;

/// Of which expressions are made, and what is none.
const WORDS: [&str; 40] = [
    "doc",
    ".n",
    ".f",
    ".s",
    ".l",
    ".o",
    "key",
    "+",
    "-",
    "*",
    "/",
    "%",
    "==",
    "<",
    "in",
    "&&",
    "||",
    "!",
    "?",
    ":",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    "0",
    "-1",
    "9223372036854775807",
    "1u",
    "1.5",
    "'a'",
    "true",
    "null",
    "has(doc.n)",
    "size(",
    ".exists(x,",
    "x",
    ".matches(",
];

/// What a shard of a view holds.
#[derive(Default)]
struct Stored(BTreeMap<Bytes, Bytes>);

impl Members for Stored {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.0.get(key).cloned())
    }

    fn first(&self, prefix: &[u8], beyond: Option<&[u8]>) -> Result<Option<(Bytes, Bytes)>> {
        let mut rows = self.0.iter().filter(|(key, _)| key.starts_with(prefix));
        let found = rows.find(|(key, _)| beyond.is_none_or(|beyond| &key[..] > beyond));
        Ok(found.map(|(key, value)| (key.clone(), value.clone())))
    }

    fn last(&self, prefix: &[u8], before: Option<&[u8]>) -> Result<Option<(Bytes, Bytes)>> {
        let mut rows = self.0.iter().rev().filter(|(key, _)| key.starts_with(prefix));
        let found = rows.find(|(key, _)| before.is_none_or(|before| &key[..] < before));
        Ok(found.map(|(key, value)| (key.clone(), value.clone())))
    }
}

impl Stored {
    fn take_in(&mut self, effects: &[Effect]) {
        // As they come from a log.
        let effects: Vec<Effect> =
            effects.iter().map(|effect| Effect::decode(effect.encode()).expect("it reads back")).collect();
        for (key, value) in apply(&effects, self).expect("memory can be read") {
            match value {
                Some(value) => self.0.insert(key, value),
                None => self.0.remove(&key),
            };
        }
    }

    fn shown(&self) -> Vec<(String, String)> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        self.0.iter().filter(|(key, _)| !hides(key)).map(|(key, value)| (text(key), text(value))).collect()
    }
}

fn order(user: &str, created: u64, amount: &str, status: &str) -> String {
    format!(r#"{{"user":{{"id":{user}}},"created_ms":{created},"amount":{amount},"status":"{status}"}}"#)
}

fn document() -> impl Strategy<Value = Option<String>> {
    let user = prop::sample::select(vec!["1", "2", "\"2\"", "\"a/{b}\"", "null", "true"]);
    let amount = prop::sample::select(vec!["1", "2.50", "-3", "1e1", "0.000000000000000001", "null", "\"x\"", "1e30"]);
    let status = prop::sample::select(vec!["paid", "test", "sent"]);
    prop_oneof![
        8 => (user, 0..5_u64, amount, status).prop_map(|(user, at, amount, status)| Some(order(user, at, amount, status))),
        1 => Just(Some("no JSON".to_owned())),
        3 => Just(None),
    ]
}

/// One change of a row of a source, and whether what has gathered is taken in after it.
fn history() -> impl Strategy<Value = Vec<((usize, u8), Option<String>, bool)>> {
    prop::collection::vec(((0..2_usize, 0..6_u8), document(), prop::bool::weighted(0.3)), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_view_is_what_its_sources_make_of_it(history in history(), folded in any::<bool>()) {
        for text in [REKEYED, INCLUDING, AGGREGATE, MERGED] {
            let definition = Definition::parse(text).expect("it is one");
            let projector = Projector::new(&definition).expect("it is one");
            let (mut base, mut view, mut gathered) = (BTreeMap::new(), Stored::default(), Vec::new());
            for ((source, number), value, flush) in &history {
                let (source, key) = (source % definition.sources.len(), format!("o/{number}"));
                let before: Option<String> = match value {
                    Some(value) => base.insert((source, key.clone()), value.clone()),
                    None => base.remove(&(source, key.clone())),
                };
                let (before, after) = (before.as_deref().map(str::as_bytes), value.as_deref().map(str::as_bytes));
                gathered.extend(projector.effects(source, key.as_bytes(), before, after).effects);
                if *flush {
                    let effects = std::mem::take(&mut gathered);
                    view.take_in(&if folded { coalesce(effects) } else { effects });
                }
            }
            view.take_in(&if folded { coalesce(gathered) } else { gathered });
            let mut computed = Recompute::new(&definition).expect("it is one");
            for ((source, key), value) in &base {
                computed.add(*source, key.as_bytes(), value.as_bytes()).expect("memory can be read");
                if let Ok(Some(tag)) = projector.tag_of(*source, key.as_bytes(), value.as_bytes()) {
                    let prefix = [&b"{"[..], &tag[..], &b"}"[..]].concat();
                    let known = view.0.keys().any(|key| key.starts_with(&prefix));
                    prop_assert!(known, "a document's tag is that of its rows");
                }
            }
            prop_assert_eq!(&view.0, &computed.rows().expect("memory can be read"));
        }
    }

    /// Rows that were damaged stop nothing.
    #[test]
    fn damaged_rows_are_as_good_as_absent(history in history(), harm in prop::collection::vec(any::<u8>(), 0..9)) {
        let definition = Definition::parse(AGGREGATE).expect("it is one");
        let projector = Projector::new(&definition).expect("it is one");
        let mut view = Stored::default();
        for ((source, number), value, flush) in &history {
            let effects = projector.effects(*source, &[*number], None, value.as_deref().map(str::as_bytes)).effects;
            view.take_in(&effects);
            if *flush {
                view.0.values_mut().for_each(|value| *value = Bytes::copy_from_slice(&harm));
            }
        }
    }

    /// Whatever a user declares is compiled or refused, and whatever is compiled says yes, no, or that it cannot be
    /// told.
    #[test]
    fn any_words_are_an_expression_or_refused(
        words in prop::collection::vec(prop::sample::select(WORDS.to_vec()), 0..24),
    ) {
        let text = serde_json::json!({
            "name": "v", "kind": "rekeyed",
            "sources": [{"table": "t", "partition_by": "u", "where": words.join(" ")}],
        });
        if let Ok(definition) = Definition::parse(&text.to_string()) {
            let projector = Projector::new(&definition).expect("it was checked");
            let value = br#"{"u":1,"n":-9223372036854775808,"f":1e300,"s":"\u00e4","l":[1,[2]],"o":{"n":null}}"#;
            let once = projector.effects(0, b"k", None, Some(value));
            prop_assert_eq!(&once, &projector.effects(0, b"k", None, Some(value)));
        }
    }

    #[test]
    fn any_bytes_are_an_effect_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = 1;
        }
        if let Ok(effect) = Effect::decode(bytes.clone().into()) {
            prop_assert_eq!(effect.encode(), bytes);
        }
    }
}

#[test]
fn rows_are_as_documented() {
    let view = |text: &str, rows: &[(usize, &str, String)]| {
        let definition = Definition::parse(text).expect("it is one");
        let mut computed = Recompute::new(&definition).expect("it is one");
        rows.iter()
            .for_each(|(source, key, value)| computed.add(*source, key.as_bytes(), value.as_bytes()).expect("memory"));
        Stored(computed.rows().expect("memory")).shown()
    };
    let rows = [
        (0, "o1", order("42", 5, "12.50", "paid")),
        (0, "o2", order("\"42\"", 7, "1", "sent")),
        (0, "o3", order("42", 6, "1", "test")),
    ];
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(
        view(REKEYED, &rows),
        [
            pair("{42}:cffc7ffffffef7ff:3003800000010200/o2", &order("\"42\"", 7, "1", "sent")),
            pair("{42}:cffc7ffffffef9ff:300380000002020306".to_owned().as_str(), "").clone(),
        ]
        .map(|(key, value)| if value.is_empty() {
            (key + "00/o1", order("42", 5, "12.50", "paid"))
        } else {
            (key, value)
        })
    );
    assert_eq!(view(INCLUDING, &rows[..1]), [pair("{42}/0/o1", r#"{"status":"paid","user":{"id":42}}"#)]);
    assert_eq!(
        view(AGGREGATE, &rows),
        [pair("{42}", r#"{"id":"42","orders":2,"spent":13.5,"first":5,"last":7,"states":"sent"}"#)]
    );
    let merged = [
        (1, "p", order("42", 1, "9.90", "x")),
        (0, "b2", "{\"user\":{\"id\":42},\"n\":2}".to_owned()),
        (0, "b1", "{\"user\":{\"id\":42},\"n\":1}".to_owned()),
    ];
    assert_eq!(view(MERGED, &merged), [pair("{42}", r#"{"base":{"user":{"id":42},"n":1},"price":{"amount":9.90}}"#)]);
}

#[test]
fn the_canonical_form_is_golden() {
    assert_eq!(
        Definition::parse(REKEYED).expect("one").to_json(),
        r#"{"name":"orders_by_user","kind":"rekeyed","shards":4,"on_bad_document":"skip","sources":[{"table":"orders","where":"doc.status != 'test'","partition_by":"user.id","order_by":["-created_ms","amount"]}]}"#
    );
    for text in [REKEYED, INCLUDING, AGGREGATE, MERGED] {
        let definition = Definition::parse(text).expect("it is one");
        assert_eq!(Definition::parse(&definition.to_json()).expect("canonical"), definition);
    }
}

#[test]
fn what_is_wrong_with_a_definition_is_said() {
    let with = |from: &str, to: &str| {
        for text in [REKEYED, AGGREGATE, MERGED, INCLUDING] {
            if text.contains(from) {
                return Definition::parse(&text.replacen(from, to, 1));
            }
        }
        panic!("nothing to replace: {from}");
    };
    for (from, to, says) in [
        ("shards = 2", "shards = 0", "1 to 1024 shards"),
        ("shards = 2", "shard = 2", "unknown field `shard`"),
        ("kind = \"rekeyed\"", "kind = \"sorted\"", "unknown variant `sorted`"),
        ("name = \"orders_by_user\"", "name = \"-\"", "letters, digits"),
        ("partition_by = \"user.id\"", "partition_by = \"user..id\"", "partition_by names a field"),
        ("doc.status != 'test'", "doc.status ==", "no CEL"),
        ("doc.status != 'test'", "dog.status == 1", "'dog'"),
        ("sum(amount)", "avg(amount)", "'avg' is no aggregate"),
        ("sum(amount)", "sum", "'sum' is no aggregate"),
        ("orders = \"count\"", "orders = 5", "is no text"),
        ("orders = \"count\"", "spent = \"count\"", "duplicate key"),
        ("orders = \"count\"", "\"\" = \"count\"", "name of an aggregate"),
        ("orders = \"count\"", "id = \"count\"", "another name"),
        ("doc.status != 'test'", "doc.tags.exists(t, doc.tags.exists(u, t == u))", "square"),
        ("table = \"returns\"", "table = \"orders\"", "named twice"),
        ("as = \"price\"", "as = \"base\"", "two sources"),
        ("as = \"price\"", "", "needs a name for its part"),
        ("include = [\"status\", \"user.id\"]", "include = [\"user\", \"user.id\"]", "twice"),
        ("include = [\"status\", \"user.id\"]", "as = \"x\"", "belongs to the sources"),
        ("include = [\"amount\"]", "order_by = [\"amount\"]", "order_by belongs to"),
        ("on_bad_document = \"stop\"", "on_bad_document = \"panic\"", "unknown variant `panic`"),
    ] {
        let error = with(from, to).expect_err(to);
        assert_eq!(error.reason, Reason::InvalidRequest);
        assert!(error.message.contains(says), "{to}: {error}");
    }
    // JSON, too, holds each name once: of a field, and of an aggregate.
    let json = |fields: &str, aggregates: &str| {
        let sources = r#""sources":[{"table":"t","partition_by":"u"}]"#;
        Definition::parse(&format!(
            r#"{{"name":"v",{fields}"kind":"aggregate",{sources},"aggregates":{{{aggregates}}}}}"#
        ))
    };
    assert!(json("", r#""n":"count""#).is_ok());
    for (fields, aggregates, says) in [
        ("", r#""n":"count","n":"sum(x)""#, "the aggregate n is named twice"),
        (r#""name":"w","#, r#""n":"count""#, "duplicate field `name`"),
        (r#""colour":1,"#, r#""n":"count""#, "unknown field `colour`"),
        ("", "", "1 to 16 things"),
    ] {
        let error = json(fields, aggregates).expect_err(says);
        assert!(error.message.contains(says), "{error}");
    }
    let many = |one: &str, times: usize| (0..times).map(|at| one.replace('#', &at.to_string())).collect::<String>();
    for (text, says) in [
        (many("a# = \"count\"\n", 17).as_str(), "1 to 16 things"),
        (many("[[sources]]\ntable = \"x#\"\npartition_by = \"u\"\n", 7).as_str(), "1 to 8 sources"),
    ] {
        let error = Definition::parse(&format!("{AGGREGATE}{text}")).expect_err(says);
        assert!(error.message.contains(says), "{error}");
    }
    for (text, says) in [
        (format!("order_by = [{}]", many("\"f#\",", 9)), "at most 8 fields"),
        (format!("order_by = [\"{}\"]", "x".repeat(257)), "1 to 256 bytes"),
        (format!("include = [{}]", many("\"f#\",", 65)), "1 to 64 fields"),
        ("order_by = [\"-\"]".to_owned(), "order_by names a field"),
    ] {
        let error = with("include = [\"status\", \"user.id\"]", &text).expect_err(says);
        assert!(error.message.contains(says), "{error}");
    }
    assert!(Definition::parse("{").is_err() && Definition::parse("").is_err());
    assert!(Definition::parse(&" ".repeat(DEFINITION_BYTES_MAX + 1)).is_err());
}

#[test]
fn what_is_wrong_with_a_document_is_said_without_its_values() {
    let bad = |text: &str, value: &str| {
        let definition = Definition::parse(text).expect("it is one");
        Projector::new(&definition).expect("one").effects(0, b"o", None, Some(value.as_bytes())).bad
    };
    for (value, says) in [
        ("secret", "no JSON"),
        (r#"{"status":"paid"}"#, "user.id is missing"),
        (r#"{"status":"paid","user":{"id":[7]}}"#, "user.id is neither"),
        (r#"{"user":{"id":7}}"#, "`where` cannot be told"),
        (&order("7", 5, "\"x\"", "paid"), "amount is no number"),
        (&order("7", 5, "1e30", "paid"), "amount is too large"),
        (&order("7", 5, "1e-9223372036854775808", "paid"), "amount is too large"),
        (&order("7", 5, "100000000000000000000", "paid"), "amount is too large"),
        (&order("7", 5, "1e400", "paid"), "`where` cannot look at it"),
        (&order(&format!("\"{}\"", "x".repeat(5_000)), 5, "1", "paid"), "longer than"),
    ] {
        let why = bad(AGGREGATE, value).unwrap_or_else(|| panic!("{says}"));
        assert!(why.contains(says) && !why.contains("secret"), "{why}");
    }
    assert_eq!(bad(AGGREGATE, &order("7", 5, "1", "test")), None, "left out is not bad");
}

/// A log holds what its writer made; what else there may be is refused and reserves nothing.
#[test]
fn effects_have_bounds() {
    let effect = |change| Effect { tag: Bytes::from_static(b"7"), change };
    let back = |effect: &Effect| Effect::decode(effect.encode()).ok().as_ref() == Some(effect);
    let put = |bytes: usize| effect(Change::Put { rest: vec![b'/'; bytes].into(), value: Bytes::new() });
    assert!(back(&put(VIEW_KEY_BYTES_MAX - 3)) && !back(&put(VIEW_KEY_BYTES_MAX - 2)));
    let merge = |parts: usize, bytes: usize| effect(Change::Merge { parts: vec!["x".repeat(bytes); parts] });
    assert!(back(&merge(8, 256)) && !back(&merge(9, 1)) && !back(&merge(1, 257)));
    for tag in ["", "a{", "}", &"x".repeat(VIEW_KEY_BYTES_MAX)] {
        let change = Change::Delete { rest: Bytes::new() };
        assert!(!back(&Effect { tag: tag.to_owned().into(), change }), "{tag:.9}");
    }
    let encoded = put(5).encode();
    for length in 0..encoded.len() {
        assert!(Effect::decode(encoded.slice(..length)).is_err(), "{length}");
    }
    assert!(Effect::decode([&encoded[..], b"x"].concat().into()).is_err());
    assert!(Effect::decode([&[2], &encoded[1..]].concat().into()).is_err(), "another format");
}

/// Of one row the last counts, of one group the sum; and groups of two definitions are not added up.
#[test]
fn effects_are_folded() {
    let group = |label: &str, count| Effect {
        tag: Bytes::from_static(b"7"),
        change: Change::Group { label: label.to_owned(), told: Vec::new(), count, sums: Vec::new() },
    };
    let row = |change| Effect { tag: Bytes::from_static(b"7"), change };
    let put = |value| row(Change::Put { rest: Bytes::from_static(b"/a"), value: Bytes::from_static(value) });
    let delete = || row(Change::Delete { rest: Bytes::from_static(b"/a") });
    assert_eq!(coalesce(vec![put(b"1"), delete(), put(b"2")]), [put(b"2")]);
    assert_eq!(coalesce(vec![put(b"1"), delete()]), [delete()]);
    assert_eq!(coalesce(vec![group("u", 1), put(b"1"), group("u", 2)]), [put(b"1"), group("u", 3)]);
    let two = vec![group("u", 1), group("v", 1)];
    assert_eq!(coalesce(two.clone()), two);
}

/// Upkeep projects on other threads than those that read.
#[test]
fn projectors_are_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Projector>();
    shared::<Effect>();
}
