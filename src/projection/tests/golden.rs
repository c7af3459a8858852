//! What is stored, byte for byte: logs and tables hold it, so it changes only with a new format.

use std::fmt::Write;

use super::{AGGREGATE, INCLUDING, MERGED, REKEYED, order};
use crate::projection::{Definition, Projector, Recompute, hides};

/// What happens to two rows of a source: one comes, one goes to another tag.
fn effects(text: &str) -> Vec<String> {
    let projector = Projector::new(&Definition::parse(text).expect("it is one")).expect("it is one");
    let (one, other) = (order("7", 5, "1.5", "paid"), order("\"a/b\"", 6, "-2", "sent"));
    let came = projector.effects(0, b"o/1", None, Some(one.as_bytes()));
    let moved = projector.effects(0, b"o/1", Some(one.as_bytes()), Some(other.as_bytes()));
    let all = came.effects.iter().chain(&moved.effects);
    all.map(|effect| effect.encode().iter().map(|byte| format!("{byte:02x}")).collect()).collect()
}

#[test]
fn effects_are_golden() {
    let all: Vec<String> = [REKEYED, INCLUDING, AGGREGATE, MERGED].into_iter().flat_map(effects).collect();
    assert_eq!(all.join("\n"), include_str!("../testdata/effects.hex").trim());
}

#[test]
fn rows_are_golden() {
    let mut out = String::new();
    for text in [REKEYED, INCLUDING, AGGREGATE, MERGED] {
        let definition = Definition::parse(text).expect("it is one");
        let mut computed = Recompute::new(&definition).expect("it is one");
        let rows = [
            (0, &b"o/1"[..], order("42", 5, "12.50", "paid")),
            (0, b"o.2", order("\"42\"", 7, "1e-3", "sent")),
            (0, b"o\xFF{3}", order("\"a/{b}\"", 18_446_744_073_709_551_615, "-18446744073709551615", "paid")),
            (0, b"o4", order("42", 6, "1", "test")),
            (1, b"r1", order("42", 5, "-0.5", "back")),
        ];
        for (source, key, value) in rows.iter().filter(|(source, ..)| *source < definition.sources.len()) {
            computed.add(*source, key, value.as_bytes()).expect("memory");
        }
        writeln!(out, "# {}", definition.to_json()).expect("a text");
        for (key, value) in computed.rows().expect("memory") {
            let hidden = if hides(&key) { "hidden" } else { "shown " };
            writeln!(out, "{hidden} {} {}", key.escape_ascii(), value.escape_ascii()).expect("a text");
        }
    }
    assert_eq!(out.trim(), include_str!("../testdata/rows.txt").trim());
}
