//! The shards of one table in key order, without gap or overlap.

use std::collections::HashMap;
use std::sync::Arc;

use super::Layout;
use crate::types::{Error, Result, ShardDescriptor, ShardId};

/// The shards of one table: every encoded key of the table lies in exactly one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardMap {
    /// In the order of their ranges; never empty.
    shards: Vec<Arc<ShardDescriptor>>,
    by_id: HashMap<ShardId, usize>,
}

impl ShardMap {
    /// The map of these shards, given in any order. An error if they belong to another table or do not cover the
    /// table's whole range exactly once: then the map is not known yet, and nothing may be routed by it.
    pub fn new<S>(shards: impl IntoIterator<Item = S>, layout: &Layout) -> Result<ShardMap>
    where
        S: Into<Arc<ShardDescriptor>>,
    {
        let mut shards: Vec<Arc<ShardDescriptor>> = shards.into_iter().map(Into::into).collect();
        shards.sort_by(|one, two| (&one.start, one.id).cmp(&(&two.start, two.id)));
        let wrong = |what: String| Err(Error::internal(format!("the shard map of table {} {what}", layout.table)));
        let (first, last) = layout.table_range();
        let mut covered = &first[..];
        for shard in &shards {
            if shard.table != layout.table {
                return wrong(format!("holds shard {} of table {}", shard.id, shard.table));
            }
            if shard.start >= shard.end {
                return wrong(format!("holds shard {} with an empty range", shard.id));
            }
            if &shard.start[..] > covered {
                return wrong(format!("has a gap before shard {}", shard.id));
            }
            if &shard.start[..] < covered {
                return wrong(format!("has an overlap at shard {}", shard.id));
            }
            covered = &shard.end;
        }
        // The range of the last id there is would be covered by no shards at all.
        if covered != &last[..] || shards.is_empty() {
            return wrong("does not end where the table ends".to_owned());
        }
        let by_id: HashMap<ShardId, usize> = shards.iter().enumerate().map(|(at, shard)| (shard.id, at)).collect();
        if by_id.len() != shards.len() {
            return wrong("holds one shard twice".to_owned());
        }
        Ok(ShardMap { shards, by_id })
    }

    /// The shard that owns an encoded key of the table. (For a key of another table: the nearest shard, which will
    /// refuse it.)
    pub fn locate(&self, encoded: &[u8]) -> &Arc<ShardDescriptor> {
        let after = self.shards.partition_point(|shard| &shard.start[..] <= encoded);
        &self.shards[after.saturating_sub(1)]
    }

    /// The shard with this id, if it is the table's.
    pub fn by_id(&self, id: ShardId) -> Option<&Arc<ShardDescriptor>> {
        self.by_id.get(&id).map(|&at| &self.shards[at])
    }

    /// All shards in key order.
    pub fn iter(&self) -> std::slice::Iter<'_, Arc<ShardDescriptor>> {
        self.shards.iter()
    }

    /// How many shards there are; at least one.
    #[expect(clippy::len_without_is_empty, reason = "a map is never empty")]
    pub fn len(&self) -> usize {
        self.shards.len()
    }

    /// The shards that own a part of `[start, end)`, in key order; `.rev()` for a scan that descends.
    pub fn overlapping(&self, start: &[u8], end: &[u8]) -> std::slice::Iter<'_, Arc<ShardDescriptor>> {
        if start >= end {
            return [].iter();
        }
        let from = self.shards.partition_point(|shard| &shard.end[..] <= start);
        let to = self.shards.partition_point(|shard| &shard.start[..] < end);
        self.shards[from.min(to)..to].iter()
    }
}

impl<'a> IntoIterator for &'a ShardMap {
    type Item = &'a Arc<ShardDescriptor>;
    type IntoIter = std::slice::Iter<'a, Arc<ShardDescriptor>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Partitioning, TableId};

    fn layout(hash: bool) -> Layout {
        let partitioning = if hash { Partitioning::Hash } else { Partitioning::Range { group_delimiter: None } };
        Layout { table: TableId(2), partitioning }
    }

    fn shards(ranges: Vec<(Bytes, Bytes)>) -> Vec<ShardDescriptor> {
        let shard = |(number, (start, end)): (usize, (Bytes, Bytes))| {
            let range = (start.to_vec(), end.to_vec());
            ShardDescriptor::new(ShardId(10 + number as u64), TableId(2), range, Vec::new())
        };
        ranges.into_iter().enumerate().map(shard).collect()
    }

    fn three() -> Vec<ShardDescriptor> {
        let points = [Bytes::from_static(b"g"), Bytes::from_static(b"p")];
        shards(layout(false).initial_ranges(3, &points).expect("three shards"))
    }

    #[test]
    fn a_map_must_be_total() {
        let good = three();
        assert_eq!(ShardMap::new(good.clone(), &layout(false)).expect("total").len(), 3);
        type Edit = fn(&mut Vec<ShardDescriptor>);
        let edits: [(&str, Edit); 7] = [
            ("gap before", |shards| drop(shards.remove(0))),
            ("gap before", |shards| drop(shards.remove(1))),
            ("does not end", |shards| drop(shards.remove(2))),
            ("does not end", Vec::clear),
            ("overlap", |shards| shards[0].end.push(0xFF)),
            ("empty range", |shards| shards[1].end = shards[1].start.clone()),
            ("of table t9", |shards| shards[1].table = TableId(9)),
        ];
        for (expected, edit) in edits {
            let mut bad = good.clone();
            edit(&mut bad);
            let error = ShardMap::new(bad, &layout(false)).expect_err(expected);
            assert!(error.message.contains(expected), "{error}");
        }
        let last = Layout { table: TableId(u32::MAX), ..layout(false) };
        assert!(ShardMap::new(Vec::<ShardDescriptor>::new(), &last).is_err(), "a map is never empty");
        let mut twice = good;
        twice[1].id = twice[0].id;
        assert!(ShardMap::new(twice, &layout(false)).is_err());
    }

    #[test]
    fn shards_are_found_by_key_by_id_and_by_range_both_ways() {
        let mut unordered = three();
        unordered.reverse();
        let map = ShardMap::new(unordered, &layout(false)).expect("total");
        let layout = layout(false);
        let ids = |from: &[u8], to: &[u8]| -> Vec<u64> {
            map.overlapping(&layout.encode(from), &layout.encode(to)).map(|shard| shard.id.0).collect()
        };
        assert_eq!(map.locate(&layout.encode(b"f")).id, ShardId(10));
        assert_eq!(map.locate(&layout.encode(b"g")).id, ShardId(11));
        assert_eq!(map.locate(&layout.encode(b"zz")).id, ShardId(12));
        assert_eq!(map.by_id(ShardId(12)).map(|shard| shard.id), Some(ShardId(12)));
        assert_eq!(map.by_id(ShardId(13)), None);
        assert_eq!(ids(b"a", b"b"), [10]);
        assert_eq!(ids(b"a", b"g"), [10]);
        assert_eq!(ids(b"a", b"g\0"), [10, 11]);
        assert_eq!(ids(b"g", b"q"), [11, 12]);
        assert!(ids(b"q", b"a").is_empty());
        let (start, end) = layout.table_range();
        let descending: Vec<u64> = map.overlapping(&start, &end).rev().map(|shard| shard.id.0).collect();
        assert_eq!(descending, [12, 11, 10]);
    }

    proptest! {
        #[test]
        fn every_key_is_in_exactly_the_shard_that_is_located(keys in vec(vec(any::<u8>(), 0..8), 1..20), number in 1u32..300) {
            let layout = layout(true);
            let map = ShardMap::new(shards(layout.initial_ranges(number, &[])?), &layout)?;
            for key in keys {
                let encoded = layout.encode(&key);
                let owners: Vec<ShardId> = map.iter().filter(|shard| shard.contains(&encoded)).map(|shard| shard.id).collect();
                prop_assert_eq!(owners, vec![map.locate(&encoded).id]);
                let upper = super::super::version::upper(&encoded);
                prop_assert_eq!(map.overlapping(&encoded, &upper).map(|shard| shard.id).collect::<Vec<_>>(), vec![map.locate(&encoded).id]);
            }
        }
    }
}
