//! Ages and sessions, by the harness' clock.
//!
//! A read that was called at `t` and answered with an age of `A` saw every put to its key that was acknowledged before
//! `t - A`; one with a greatest age of `M`, every put acknowledged before `t - M`; a linearizable one, every put
//! acknowledged before `t`. And it says so: the position that it was answered as of lies at or behind every such put to
//! its *shard*, of which there are more than to its key. Both moments are stamped here, outside of the read's own span, so no time of a message and
//! no clock of a node can make a right answer look wrong. The age that is told is no larger than what was allowed, but
//! for the time that the read itself took. A session sees what it has written and never less than it has seen,
//! whichever node and client it asks. And a version is one value.

use std::collections::BTreeMap;

use super::{Finding, Verdict};
use crate::history::{History, Operation};

/// What is known of one key, or of one shard: puts by the time of their acknowledgement, each with the newest version until then.
#[derive(Default)]
struct Key {
    acknowledged: Vec<(u64, u64, usize)>,
}

impl Key {
    /// The newest version acknowledged before a moment, and its put.
    fn before(&self, moment: u64) -> Option<(u64, usize)> {
        let end = self.acknowledged.partition_point(|(at, ..)| *at < moment);
        self.acknowledged[..end].last().map(|&(_, version, place)| (version, place))
    }
}

/// Judges the operations `put` and `read`.
pub fn check(history: &History) -> Verdict {
    let keys = acknowledged(history, |put| Some(put.key.as_str()));
    let shards = acknowledged(history, |put| put.number("shard"));
    let mut findings = one_value_each(history);
    let (mut copies, mut ages) = (0_usize, Vec::new());
    // By session and key: the newest version seen, and by which operation.
    let mut seen: BTreeMap<(u64, &str), (u64, usize)> = BTreeMap::new();
    // A session asks one thing after the other.
    for (place, operation) in history.operations.iter().enumerate().filter(|(_, operation)| operation.is_ok()) {
        let Some(session) = operation.number("session") else {
            return Verdict::Unknown { why: format!("operation {place} belongs to no session") };
        };
        let version = operation.version().unwrap_or(0);
        let mut found = |what: String, operations: Vec<usize>| {
            findings.push(Finding { what, key: operation.key.clone(), operations });
        };
        if operation.f == "read" {
            let level = operation.text("level").unwrap_or_default();
            let age_us = operation.number("age_us");
            if operation.text("role").is_some() {
                copies += 1;
                ages.extend(age_us);
            }
            let allowed_us = operation.number("max_age_ms").map(|allowed| allowed.saturating_mul(1_000));
            let fresh = (level == "linearizable").then_some(0);
            let limits = [("it says it is", age_us), ("it may be", allowed_us), ("it may be", fresh)];
            let shard = operation.number("shard").and_then(|shard| shards.get(&shard));
            let as_of = operation.number("as_of").unwrap_or(u64::MAX);
            for (what, limit) in limits {
                let Some(limit) = limit else { continue };
                let moment = operation.start.saturating_sub(limit.saturating_mul(1_000));
                let missed = keys.get(operation.key.as_str()).and_then(|key| key.before(moment));
                if let Some((newest, put)) = missed.filter(|(newest, _)| *newest > version) {
                    let text = format!("older than {what}, {limit} us: version {version}, and {newest} was there");
                    found(text, vec![put, place]);
                    break;
                }
                let missed = shard.and_then(|shard| shard.before(moment));
                if let Some((newest, put)) = missed.filter(|(newest, _)| *newest > as_of) {
                    let text = format!("older than {what}, {limit} us: as of {as_of}, and its shard had {newest}");
                    found(text, vec![put, place]);
                    break;
                }
            }
            if let Some(allowed) = allowed_us {
                let took_us = operation.end.unwrap_or(u64::MAX).saturating_sub(operation.start).div_ceil(1_000);
                match age_us {
                    Some(age) if age <= allowed.saturating_add(took_us) => {}
                    Some(age) => found(format!("an age of {age} us, {allowed} us were allowed"), vec![place]),
                    None => found("no age, and one was asked for".into(), vec![place]),
                }
            }
            let keeps = matches!(level, "at_least" | "linearizable");
            if let Some(&(newest, by)) = seen.get(&(session, operation.key.as_str())).filter(|_| keeps)
                && newest > version
            {
                found(format!("the session had seen version {newest} and now sees {version}"), vec![by, place]);
            }
        }
        let newest = seen.entry((session, operation.key.as_str())).or_default();
        *newest = (*newest).max((version, place));
    }
    if !findings.is_empty() {
        return Verdict::Invalid { findings };
    }
    if copies == 0 || ages.is_empty() {
        return Verdict::Unknown { why: "no replica but the leader answered with an age".into() };
    }
    ages.sort_unstable();
    let (half, most) = (ages[ages.len() / 2] / 1_000, ages[ages.len() * 99 / 100] / 1_000);
    let summary = format!("{copies} reads by copies, {} of a proven age (median {half} ms, p99 {most} ms)", ages.len());
    Verdict::Valid { summary }
}

/// The puts, by what they have in common.
fn acknowledged<'a, K: Ord>(history: &'a History, of: impl Fn(&'a Operation) -> Option<K>) -> BTreeMap<K, Key> {
    let mut keys: BTreeMap<K, Key> = BTreeMap::new();
    for (place, put) in history.oks("put") {
        if let (Some(end), Some(version), Some(common)) = (put.end, put.version(), of(put)) {
            keys.entry(common).or_default().acknowledged.push((end, version, place));
        }
    }
    for key in keys.values_mut() {
        key.acknowledged.sort_unstable();
        let mut newest = (0, 0);
        for (_, version, place) in &mut key.acknowledged {
            newest = newest.max((*version, *place));
            (*version, *place) = newest;
        }
    }
    keys
}

/// What contradicts that a version of a key is one value, which somebody put.
fn one_value_each(history: &History) -> Vec<Finding> {
    let mut values: BTreeMap<(&str, u64), (usize, &Operation)> = BTreeMap::new();
    let mut findings = Vec::new();
    for (place, operation) in history.operations.iter().enumerate().filter(|(_, operation)| operation.is_ok()) {
        let Some(version) = operation.version() else { continue };
        let (first, other) = *values.entry((&operation.key, version)).or_insert((place, operation));
        if other.output != operation.output {
            let what = format!("version {version} is {} and {}", other.output, operation.output);
            findings.push(Finding { what, key: operation.key.clone(), operations: vec![first, place] });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::testing::{Line, history, named};
    use serde_json::{Value, json};

    const MS: u64 = 1_000_000;

    fn put(version: u64, start_ms: u64) -> Line {
        let value = json!(version * 10);
        Line::new("put", "k", value.clone())
            .ok(value)
            .version(version)
            .extra("session", 1)
            .at(start_ms * MS, (start_ms + 1) * MS)
    }

    fn read(version: u64, level: &str, start_ms: u64) -> Line {
        let (value, at) = (json!(version * 10), start_ms * MS);
        let line = Line::new("read", "k", Value::Null).extra("session", 2).extra("level", level).at(at, at + MS);
        if version == 0 { line.ok(Value::Null) } else { line.ok(value).version(version) }
    }

    fn copy(version: u64, level: &str, start_ms: u64, age_us: u64) -> Line {
        read(version, level, start_ms).extra("role", "follower").extra("age_us", age_us)
    }

    /// A copy's read of another key, of which there is nothing.
    fn elsewhere(shard: u64, as_of: u64, start_ms: u64, age_us: u64) -> Line {
        let line = Line::new("read", "l", Value::Null).ok(Value::Null).extra("session", 2).extra("level", "any");
        let line = line.extra("role", "follower").extra("age_us", age_us).extra("as_of", as_of).extra("shard", shard);
        line.at(start_ms * MS, (start_ms + 1) * MS)
    }

    #[test]
    fn good_histories_pass() {
        let lines = [
            put(1, 0),
            put(2, 10),
            copy(1, "any", 20, 9_000),
            copy(1, "max_age", 21, 10_500).extra("max_age_ms", 11),
            copy(2, "linearizable", 22, 900),
            copy(2, "at_least", 23, 700),
            read(0, "any", 24),
            // As old as it says, of its shard; and nothing is known of another.
            put(3, 30).extra("shard", 7),
            elsewhere(7, 2, 40, 9_000),
            elsewhere(7, 3, 50, 100),
            elsewhere(8, 2, 50, 100),
            // Slower than what was allowed, but asked for after it had begun.
            copy(2, "max_age", 25, 1_000).extra("max_age_ms", 0),
        ];
        let verdict = check(&history(&lines));
        assert!(verdict.is_valid(), "{verdict:?}");
    }

    #[test]
    fn bad_histories_name_the_operations() {
        let bad: Vec<(&str, Vec<Line>, Vec<usize>)> = vec![
            ("older than it says", vec![put(1, 0), put(2, 10), copy(1, "any", 20, 8_999)], vec![1, 2]),
            (
                "older than allowed",
                vec![put(1, 0), put(2, 10), copy(1, "max_age", 20, 8_000).extra("max_age_ms", 8)],
                vec![1, 2],
            ),
            (
                "told to be older than allowed",
                vec![put(1, 0), copy(1, "max_age", 20, 7_001).extra("max_age_ms", 6)],
                vec![1],
            ),
            ("not told", vec![put(1, 0), read(1, "max_age", 20).extra("max_age_ms", 6)], vec![1]),
            ("stale", vec![put(1, 0), put(2, 10), copy(1, "linearizable", 20, 30_000)], vec![1, 2]),
            (
                "older than its shard",
                vec![put(1, 0), put(2, 10).extra("shard", 7), elsewhere(7, 1, 20, 8_999)],
                vec![1, 2],
            ),
            ("nothing", vec![put(1, 0), copy(0, "any", 20, 100)], vec![0, 1]),
            ("not its own write", vec![put(1, 0), read(0, "at_least", 20).extra("session", 1)], vec![0, 1]),
            ("back in time", vec![put(1, 0), put(2, 10), read(2, "any", 20), read(1, "at_least", 22)], vec![2, 3]),
            ("another value", vec![put(1, 0), copy(1, "any", 20, 100).ok(json!(7))], vec![0, 1]),
        ];
        for (name, lines, operations) in bad {
            assert!(named(check(&history(&lines))).contains(&operations), "{name}");
        }
    }

    #[test]
    fn a_history_without_copies_says_nothing() {
        assert!(matches!(check(&history(&[put(1, 0), read(1, "any", 5)])), Verdict::Unknown { .. }));
    }
}
