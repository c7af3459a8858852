//! The rows of a view from the rows of its sources alone.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::apply::{Members, apply};
use super::definition::Definition;
use super::effect::{Effect, coalesce};
use super::projector::Projector;
use crate::types::Result;

/// Effects gathered before they are carried out: few enough that who serves others as well is not held for long.
const GATHERED_MAX: usize = 512;

/// Rows of a view in memory, made from what it is given of its sources.
pub struct Recompute {
    projector: Projector,
    gathered: Vec<Effect>,
    rows: Rows,
}

#[derive(Default)]
struct Rows(BTreeMap<Bytes, Bytes>);

impl Recompute {
    /// A view of nothing yet.
    pub fn new(definition: &Definition) -> Result<Recompute> {
        let projector = Projector::new(definition)?;
        Ok(Recompute { projector, gathered: Vec::new(), rows: Rows::default() })
    }

    /// Adds a row of source number `source`.
    pub fn add(&mut self, source: usize, key: &[u8], value: &[u8]) -> Result<()> {
        self.gathered.extend(self.projector.effects(source, key, None, Some(value)).effects);
        if self.gathered.len() >= GATHERED_MAX { self.carry_out() } else { Ok(()) }
    }

    fn carry_out(&mut self) -> Result<()> {
        let effects = coalesce(std::mem::take(&mut self.gathered));
        for (key, value) in apply(&effects, &self.rows)? {
            match value {
                Some(value) => self.rows.0.insert(key, value),
                None => self.rows.0.remove(&key),
            };
        }
        Ok(())
    }

    /// All rows, hidden ones included, by key.
    pub fn rows(mut self) -> Result<BTreeMap<Bytes, Bytes>> {
        self.carry_out()?;
        Ok(self.rows.0)
    }
}

impl Members for Rows {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.0.get(key).cloned())
    }

    fn first(&self, prefix: &[u8], beyond: Option<&[u8]>) -> Result<Option<(Bytes, Bytes)>> {
        let from = beyond.map_or(Bound::Included(prefix), Bound::Excluded);
        let found = self.0.range::<[u8], _>((from, Bound::Unbounded)).next();
        Ok(found.filter(|(key, _)| key.starts_with(prefix)).map(|(key, value)| (key.clone(), value.clone())))
    }

    fn last(&self, prefix: &[u8], before: Option<&[u8]>) -> Result<Option<(Bytes, Bytes)>> {
        let end = prefix_end(prefix);
        let to = before.or(end.as_deref()).map_or(Bound::Unbounded, Bound::Excluded);
        let found = self.0.range::<[u8], _>((Bound::Included(prefix), to)).next_back();
        Ok(found.map(|(key, value)| (key.clone(), value.clone())))
    }
}

/// The first key that is greater than every key beginning with `prefix`; none if there is none.
fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != 0xFF)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}
