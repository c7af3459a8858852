//! Keys, values, versions, and the answers they came in.

use serde_json::{Map, Value, json};
use trivet::types::{Answer, Change, Header, Outcome, Role, Row, Timestamp, Versioned};

use super::Table;
use crate::cli::text;
use crate::cli::time::show_time_ms;

fn role(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Learner => "learner",
    }
}

/// Where an answer came from and how old it can be.
pub fn header_json(header: &Header) -> Value {
    json!({
        "cluster": header.cluster.to_string(),
        "node": header.node.0,
        "shard": header.shard.0,
        "epoch": header.epoch.0,
        "role": role(header.role),
        "as_of": header.as_of.to_string(),
        "age_ms": header.age.map(|age| age.as_micros() as f64 / 1_000.0),
        "degraded": header.degraded,
    })
}

fn insert_version(object: &mut Map<String, Value>, timestamp: Timestamp) {
    object.insert("version".to_owned(), timestamp.to_string().into());
    object.insert("time".to_owned(), show_time_ms(timestamp.millis()).into());
}

fn insert_versioned(object: &mut Map<String, Value>, found: &Versioned) {
    insert_version(object, found.timestamp);
    text::insert(object, "value", &found.value);
    if let Some(expires_ms) = found.expires_ms {
        object.insert("expires".to_owned(), show_time_ms(expires_ms).into());
    }
}

/// The answer of `get`.
pub fn get_json(key: &[u8], answer: &Answer<Option<Versioned>>) -> Value {
    let mut object = Map::new();
    text::insert(&mut object, "key", key);
    object.insert("found".to_owned(), answer.body.is_some().into());
    if let Some(found) = &answer.body {
        insert_versioned(&mut object, found);
    }
    object.insert("header".to_owned(), header_json(&answer.header));
    object.into()
}

/// The answer of a write.
pub fn outcome_json(answer: &Answer<Outcome>) -> Value {
    let outcome = &answer.body;
    let mut object = Map::new();
    object.insert("applied".to_owned(), outcome.applied.into());
    insert_version(&mut object, outcome.timestamp);
    if outcome.integers.iter().any(Option::is_some) {
        object.insert("integers".to_owned(), json!(outcome.integers));
    }
    if let Some(observed) = &outcome.observed {
        let mut seen = Map::new();
        seen.insert("condition".to_owned(), observed.condition.into());
        seen.insert("found".to_owned(), observed.current.is_some().into());
        if let Some(current) = &observed.current {
            insert_versioned(&mut seen, current);
        }
        object.insert("observed".to_owned(), seen.into());
    }
    object.insert("header".to_owned(), header_json(&answer.header));
    object.into()
}

/// Why a write whose conditions did not hold changed nothing.
pub fn not_applied(outcome: &Outcome) -> String {
    let Some(observed) = &outcome.observed else { return "not applied: a condition did not hold".to_owned() };
    let seen = match &observed.current {
        Some(current) => {
            format!("has version {} and value {}", current.timestamp, text::show_within(&current.value, Some(100)))
        }
        None => "is absent".to_owned(),
    };
    format!("not applied: condition {} does not hold; its key {seen}", observed.condition + 1)
}

/// One row of a scan, history or export.
pub fn row_json(row: &Row) -> Value {
    let mut object = Map::new();
    text::insert(&mut object, "key", &row.key);
    insert_version(&mut object, row.timestamp);
    match &row.value {
        Some(value) => text::insert(&mut object, "value", value),
        None => {
            object.insert("deleted".to_owned(), true.into());
        }
    }
    if let Some(expires_ms) = row.expires_ms {
        object.insert("expires".to_owned(), show_time_ms(expires_ms).into());
    }
    object.into()
}

/// A change, as one line of JSON.
pub fn change_json(change: &Change, previous: bool) -> Value {
    let mut object = Map::new();
    text::insert(&mut object, "key", &change.key);
    insert_version(&mut object, change.timestamp);
    match &change.value {
        Some(value) => text::insert(&mut object, "value", value),
        None => {
            object.insert("deleted".to_owned(), true.into());
        }
    }
    if let Some(expires_ms) = change.expires_ms {
        object.insert("expires".to_owned(), show_time_ms(expires_ms).into());
    }
    if previous {
        let before = change.previous.as_ref().map(|before| {
            let mut object = Map::new();
            insert_versioned(&mut object, before);
            Value::from(object)
        });
        object.insert("previous".to_owned(), before.into());
    }
    object.into()
}

/// A change, as a line for a person. Values are cut to `width` characters.
pub fn change_line(change: &Change, previous: bool, width: Option<usize>) -> String {
    let time = show_time_ms(change.timestamp.millis());
    let key = text::show(&change.key);
    let mut line = match &change.value {
        Some(value) => format!("{time}  put     {key}  {}", text::show_within(value, width)),
        None => format!("{time}  delete  {key}"),
    };
    if previous {
        line += &match &change.previous {
            Some(before) => format!("  (was {})", text::show_within(&before.value, width)),
            None => "  (was absent)".to_owned(),
        };
    }
    line
}

/// One page of a scan; `first` pages have the header. Values are cut to `width` characters.
pub fn scan_table(rows: &[Row], first: bool, width: Option<usize>) -> String {
    let mut table = Table::new(if first { &["key", "version", "value"] } else { &[] });
    for row in rows {
        let value = row.value.as_deref().unwrap_or_default();
        table.row(vec![text::show(&row.key), row.timestamp.to_string(), text::show_within(value, width)]);
    }
    table.render()
}

/// One page of a history, newest first.
pub fn history_table(rows: &[Row], first: bool, width: Option<usize>) -> String {
    let mut table = Table::new(if first { &["version", "time", "value"] } else { &[] });
    for row in rows {
        let value = match &row.value {
            Some(value) => text::show_within(value, width),
            None => "(deleted)".to_owned(),
        };
        table.row(vec![row.timestamp.to_string(), show_time_ms(row.timestamp.millis()), value]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use trivet::types::{ClusterId, Epoch, NodeId, Observed, ShardId};

    use super::*;
    use crate::cli::golden;

    const AT: Timestamp = Timestamp(1_795_000_000_123 << 16 | 7);

    fn header() -> Header {
        Header {
            cluster: ClusterId(0xabc),
            node: NodeId(2),
            shard: ShardId(11),
            epoch: Epoch(1),
            role: Role::Follower,
            as_of: AT,
            age: Some(Duration::from_micros(1_250)),
            degraded: false,
        }
    }

    fn pretty(value: &Value) -> String {
        serde_json::to_string_pretty(value).expect("JSON") + "\n"
    }

    #[test]
    fn data_is_shown() {
        let row = |key: &'static [u8], value: Option<&'static [u8]>, expires_ms| Row {
            key: key.into(),
            timestamp: AT,
            value: value.map(Bytes::from_static),
            expires_ms,
        };
        let rows = [
            row(b"o-1", Some(b"{\"amount\":1177,\"note\":\"a long one that does not fit\"}"), None),
            row(b"\xff\x00", Some(b"\x1b[2J\n"), Some(AT.millis() + 5_000)),
            row("größe".as_bytes(), Some(b""), None),
            row(b"gone", None, None),
        ];
        let mut text = scan_table(&rows[..3], true, Some(40)) + &scan_table(&rows[..1], false, None);
        text.push_str(&history_table(&rows, true, Some(40)));
        for row in &rows {
            text.push_str(&format!("{}\n", row_json(row)));
        }
        let current = Versioned { timestamp: AT, value: "open".into(), expires_ms: None };
        let found = |body| Answer { header: header(), body };
        text.push_str(&pretty(&get_json(b"o-1", &found(Some(current.clone())))));
        text.push_str(&pretty(&get_json(b"o-2", &found(None))));
        let applied = Outcome { applied: true, timestamp: AT, integers: vec![None, Some(-3)], observed: None };
        let refused = |current| Outcome {
            applied: false,
            timestamp: AT,
            integers: vec![],
            observed: Some(Observed { condition: 1, current }),
        };
        for outcome in [applied, refused(Some(current)), refused(None)] {
            if !outcome.applied {
                text.push_str(&format!("{}\n", not_applied(&outcome)));
            }
            text.push_str(&pretty(&outcome_json(&Answer { header: header(), body: outcome })));
        }
        let change = |value: Option<&'static [u8]>, previous| Change {
            key: "o-1".into(),
            timestamp: AT,
            value: value.map(Bytes::from_static),
            expires_ms: value.map(|_| AT.millis() + 5_000),
            previous,
        };
        let before =
            Versioned { timestamp: Timestamp(AT.0 - 1), value: "open, and has been for long".into(), expires_ms: None };
        for (change, previous) in [
            (change(Some(b"paid"), Some(before.clone())), true),
            (change(Some(b"paid"), None), true),
            (change(None, None), false),
        ] {
            text.push_str(&format!(
                "{}\n{}\n",
                change_line(&change, previous, Some(20)),
                change_json(&change, previous)
            ));
        }
        golden::check("data", &text);
    }
}
