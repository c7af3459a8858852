//! What is to be done to rows of a view: self-contained, since the shard that does it knows no definition.

use std::collections::HashMap;

use bytes::{Buf, BufMut, Bytes};

use super::decimal::Decimal;
use super::definition::{AGGREGATES_MAX, PATH_BYTES_MAX, SOURCES_MAX};
use super::key::{self, VIEW_KEY_BYTES_MAX};
use crate::types::{Error, Result};

const FORMAT: u8 = 1;

/// Something to be done under one tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// The tag, encoded, without braces.
    pub tag: Bytes,
    /// What is to be done.
    pub change: Change,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Set a row; the key is what stands behind the tag.
    Put {
        /// What stands behind the tag.
        rest: Bytes,
        /// The row.
        value: Bytes,
    },
    /// Remove a row.
    Delete {
        /// What stands behind the tag.
        rest: Bytes,
    },
    /// Count and add up, and write the row of the group anew.
    Group {
        /// The name of the field that holds the tag.
        label: String,
        /// What the row says.
        told: Vec<Told>,
        /// How many more there are.
        count: i64,
        /// What is to be added to each sum, in the order of those in `told`.
        sums: Vec<Decimal>,
    },
    /// Write a merged document of these parts anew.
    Merge {
        /// The names of all parts.
        parts: Vec<String>,
    },
}

/// One thing that the row of a group says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its name.
    pub name: String,
    /// What it is.
    pub what: Telling,
}

/// What a group says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// How many there are.
    Count,
    /// A sum.
    Sum,
    /// The first member in order.
    Min,
    /// The last one.
    Max,
}

impl Effect {
    /// The stored form.
    pub fn encode(&self) -> Bytes {
        let mut out = vec![FORMAT];
        put_bytes(&mut out, &self.tag);
        match &self.change {
            Change::Put { rest, value } => {
                out.push(0);
                put_bytes(&mut out, rest);
                put_bytes(&mut out, value);
            }
            Change::Delete { rest } => {
                out.push(1);
                put_bytes(&mut out, rest);
            }
            Change::Group { label, told, count, sums } => {
                out.push(2);
                put_bytes(&mut out, label.as_bytes());
                out.put_i64(*count);
                put_count(&mut out, told.len());
                for told in told {
                    out.push(told.what as u8);
                    put_bytes(&mut out, told.name.as_bytes());
                }
                put_count(&mut out, sums.len());
                sums.iter().for_each(|sum| out.put_slice(&sum.to_bytes()));
            }
            Change::Merge { parts } => {
                out.push(3);
                put_count(&mut out, parts.len());
                parts.iter().for_each(|part| put_bytes(&mut out, part.as_bytes()));
            }
        }
        out.into()
    }

    /// Reads the stored form.
    pub fn decode(bytes: Bytes) -> Result<Effect> {
        let mut rest = bytes;
        let effect = take(&mut rest).filter(|_| rest.is_empty());
        effect.ok_or_else(|| Error::invalid("an effect on a view cannot be read; do the versions match?"))
    }
}

fn take(from: &mut Bytes) -> Option<Effect> {
    if from.try_get_u8().ok()? != FORMAT {
        return None;
    }
    let tag = take_bytes(from)?;
    // A brace in it would move the row to another tag.
    if tag.is_empty() || tag.iter().any(|byte| matches!(byte, b'{' | b'}')) {
        return None;
    }
    let room = VIEW_KEY_BYTES_MAX.checked_sub(tag.len() + 2)?;
    let take_rest = |from: &mut Bytes| take_bytes(from).filter(|rest| rest.len() <= room);
    let change = match from.try_get_u8().ok()? {
        0 => Change::Put { rest: take_rest(from)?, value: take_bytes(from)? },
        1 => Change::Delete { rest: take_rest(from)? },
        2 => {
            let label = take_text(from)?;
            let count = from.try_get_i64().ok()?;
            let mut told = Vec::new();
            for _ in 0..take_count(from).filter(|&count| count <= AGGREGATES_MAX)? {
                let what = match from.try_get_u8().ok()? {
                    0 => Telling::Count,
                    1 => Telling::Sum,
                    2 => Telling::Min,
                    3 => Telling::Max,
                    _ => return None,
                };
                told.push(Told { name: take_text(from)?, what });
            }
            let mut sums = Vec::new();
            let wanted = told.iter().filter(|told| told.what == Telling::Sum).count();
            for _ in 0..take_count(from).filter(|&count| count == wanted)? {
                let mut sum = [0; Decimal::BYTES];
                from.try_copy_to_slice(&mut sum).ok()?;
                sums.push(Decimal::from_bytes(sum)?);
            }
            Change::Group { label, told, count, sums }
        }
        3 => {
            let mut parts = Vec::new();
            for _ in 0..take_count(from).filter(|&count| count <= SOURCES_MAX)? {
                parts.push(take_text(from)?);
            }
            Change::Merge { parts }
        }
        _ => return None,
    };
    Some(Effect { tag, change })
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.put_u32(u32::try_from(count).expect("an effect is small"));
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.put_slice(bytes);
}

/// Never more than there are bytes, so what is only claimed reserves nothing.
fn take_count(from: &mut Bytes) -> Option<usize> {
    usize::try_from(from.try_get_u32().ok()?).ok().filter(|&count| count <= from.len())
}

fn take_bytes(from: &mut Bytes) -> Option<Bytes> {
    let length = take_count(from)?;
    Some(from.split_to(length))
}

fn take_text(from: &mut Bytes) -> Option<String> {
    let name = take_bytes(from).filter(|name| name.len() <= PATH_BYTES_MAX)?;
    String::from_utf8(name.to_vec()).ok()
}

/// The same as a list of effects, one after the other, does: of several on one row the last, of several on one group
/// their sum.
pub fn coalesce(effects: Vec<Effect>) -> Vec<Effect> {
    let mut places: HashMap<(Bytes, Option<Bytes>), usize> = HashMap::with_capacity(effects.len());
    let mut rows: Vec<Effect> = Vec::with_capacity(effects.len());
    // Those that write a row anew come after all members.
    let mut groups: Vec<Effect> = Vec::new();
    for effect in effects {
        let (list, rest) = match &effect.change {
            Change::Put { rest, .. } | Change::Delete { rest } => (&mut rows, Some(rest.clone())),
            Change::Group { .. } | Change::Merge { .. } => (&mut groups, None),
        };
        match places.get(&(effect.tag.clone(), rest.clone())) {
            Some(&place) if list[place].takes_up(&effect.change) => list[place].take_up(effect.change),
            _ => {
                places.insert((effect.tag.clone(), rest), list.len());
                list.push(effect);
            }
        }
    }
    rows.extend(groups);
    rows
}

impl Effect {
    /// The key of the row that it sets or removes, or writes anew.
    pub fn key(&self) -> Bytes {
        match &self.change {
            Change::Put { rest, .. } | Change::Delete { rest } => key::under(&self.tag, rest),
            Change::Group { .. } | Change::Merge { .. } => key::under(&self.tag, b""),
        }
    }

    /// Whether it can become this and what follows it, a change of the same row, in one. Groups of two definitions
    /// cannot.
    fn takes_up(&self, next: &Change) -> bool {
        match (&self.change, next) {
            (Change::Group { label, told, .. }, Change::Group { label: next_label, told: next_told, .. }) => {
                (label, told) == (next_label, next_told)
            }
            (Change::Group { .. }, _) | (_, Change::Group { .. }) => false,
            _ => true,
        }
    }

    fn take_up(&mut self, next: Change) {
        match (&mut self.change, next) {
            (Change::Group { count, sums, .. }, Change::Group { count: more, sums: others, .. }) => {
                *count = count.saturating_add(more);
                for (sum, other) in sums.iter_mut().zip(others) {
                    *sum = sum.plus(other);
                }
            }
            (known, next) => *known = next,
        }
    }
}
