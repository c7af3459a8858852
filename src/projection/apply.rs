//! Carries effects out against what a shard of the view holds.
//!
//! Total and deterministic: rows that were damaged by hand are as good as absent, never a reason to stop. A row that is
//! to go is deleted also if it is not there, so that whatever an effect concerns has a version of its time.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::decimal::Decimal;
use super::document::text;
use super::effect::{Change, Effect, Telling, Told};
use super::key;
use crate::types::Result;

/// What a shard of the view holds.
pub trait Members {
    /// The value of a row.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>>;
    /// The first row whose key begins with `prefix` and is greater than `beyond`.
    fn first(&self, prefix: &[u8], beyond: Option<&[u8]>) -> Result<Option<(Bytes, Bytes)>>;
    /// The last row whose key begins with `prefix` and is less than `before`.
    fn last(&self, prefix: &[u8], before: Option<&[u8]>) -> Result<Option<(Bytes, Bytes)>>;
}

/// What the rows are afterwards, by key; none: there is no such row any more.
pub fn apply(effects: &[Effect], rows: &dyn Members) -> Result<Vec<(Bytes, Option<Bytes>)>> {
    let mut rows = Above { rows, changed: BTreeMap::new() };
    for effect in effects {
        match &effect.change {
            Change::Put { value, .. } => rows.set(effect.key(), Some(value.clone())),
            Change::Delete { .. } => rows.set(effect.key(), None),
            Change::Group { label, told, count, sums } => {
                let totals_key = key::under(&effect.tag, &key::totals());
                let mut totals = rows.get(&totals_key)?.and_then(|stored| Totals::parse(&stored, sums.len()));
                let totals =
                    totals.get_or_insert_with(|| Totals { count: 0, sums: vec![Decimal::default(); sums.len()] });
                totals.count = totals.count.saturating_add(*count);
                for (total, sum) in totals.sums.iter_mut().zip(sums) {
                    *total = total.plus(*sum);
                }
                if totals.count <= 0 {
                    rows.set(totals_key, None);
                    rows.set(effect.key(), None);
                } else {
                    let row = rows.group(&effect.tag, label, told, totals)?;
                    rows.set(totals_key, Some(totals.encode()));
                    rows.set(effect.key(), Some(row));
                }
            }
            Change::Merge { parts } => {
                let row = rows.merged(&effect.tag, parts)?;
                rows.set(effect.key(), row);
            }
        }
    }
    Ok(rows.changed.into_iter().collect())
}

/// The totals of a group, kept in a hidden row: `COUNT SUM SUM …`, each as the visible row has it.
struct Totals {
    count: i64,
    sums: Vec<Decimal>,
}

impl Totals {
    fn parse(stored: &[u8], sums: usize) -> Option<Totals> {
        let mut words = std::str::from_utf8(stored).ok()?.split(' ');
        let count = words.next()?.parse().ok()?;
        let read: Vec<Decimal> = words.map(Decimal::parse_total).collect::<Option<_>>()?;
        (read.len() == sums).then_some(Totals { count, sums: read })
    }

    fn encode(&self) -> Bytes {
        let mut out = self.count.to_string();
        self.sums.iter().for_each(|sum| out.push_str(&format!(" {sum}")));
        out.into()
    }
}

/// What is stored, with what was changed above it.
struct Above<'a> {
    rows: &'a dyn Members,
    changed: BTreeMap<Bytes, Option<Bytes>>,
}

impl Above<'_> {
    fn set(&mut self, key: Bytes, value: Option<Bytes>) {
        self.changed.insert(key, value);
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        match self.changed.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.rows.get(key),
        }
    }

    /// The value of the first row, or the last, whose key begins so, of those that hold JSON: what was damaged would
    /// damage the row that it is written into.
    fn edge(&self, prefix: &[u8], last: bool) -> Result<Option<Bytes>> {
        let from = Bytes::copy_from_slice(prefix);
        let mut changed: Vec<(&Bytes, &Option<Bytes>)> =
            self.changed.range(from..).take_while(|(key, _)| key.starts_with(prefix)).collect();
        if last {
            changed.reverse();
        }
        let above = changed.into_iter().find_map(|(key, value)| {
            let value = value.clone().filter(is_json)?;
            Some((key.clone(), value))
        });
        let mut beyond: Option<Bytes> = None;
        let stored = loop {
            let found = if last {
                self.rows.last(prefix, beyond.as_deref())?
            } else {
                self.rows.first(prefix, beyond.as_deref())?
            };
            match found {
                // What was changed is known above.
                Some((key, value)) if self.changed.contains_key(&key) || !is_json(&value) => beyond = Some(key),
                found => break found,
            }
        };
        Ok(match (above, stored) {
            (Some(one), Some(other)) => Some(if (one.0 < other.0) != last { one.1 } else { other.1 }),
            (one, other) => one.or(other).map(|(_, value)| value),
        })
    }

    fn group(&self, tag: &Bytes, label: &str, told: &[Told], totals: &Totals) -> Result<Bytes> {
        let mut out = format!("{{{}:{}", text(label), text(&String::from_utf8_lossy(&plain(tag))));
        let mut sums = totals.sums.iter();
        for (place, told) in told.iter().enumerate() {
            let value = match told.what {
                Telling::Count => totals.count.to_string(),
                Telling::Sum => sums.next().copied().unwrap_or_default().to_string(),
                Telling::Min | Telling::Max => {
                    let prefix = key::under(tag, &key::members_of(place));
                    let found = self.edge(&prefix, told.what == Telling::Max)?;
                    found.map_or_else(|| "null".to_owned(), |raw| String::from_utf8_lossy(&raw).into_owned())
                }
            };
            out.push_str(&format!(",{}:{value}", text(&told.name)));
        }
        out.push('}');
        Ok(out.into())
    }

    fn merged(&self, tag: &Bytes, parts: &[String]) -> Result<Option<Bytes>> {
        let mut out: Vec<u8> = Vec::new();
        for (place, part) in parts.iter().enumerate() {
            let prefix = key::under(tag, &key::members_of_part(place));
            if let Some(document) = self.edge(&prefix, false)? {
                out.push(if out.is_empty() { b'{' } else { b',' });
                out.extend_from_slice(text(part).as_bytes());
                out.push(b':');
                out.extend_from_slice(&document);
            }
        }
        if out.is_empty() {
            return Ok(None);
        }
        out.push(b'}');
        Ok(Some(out.into()))
    }
}

fn is_json(value: &Bytes) -> bool {
    serde_json::from_slice::<&RawValue>(value).is_ok()
}

/// What a tag stands for, as bytes.
fn plain(tag: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(tag.len());
    let mut rest = tag;
    while let Some((&byte, after)) = rest.split_first() {
        let code = (byte == b'%').then(|| after.get(..2)).flatten();
        let code = code.filter(|code| code.iter().all(u8::is_ascii_hexdigit));
        let code = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                rest = &after[2..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}
