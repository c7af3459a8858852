//! Where a shard may be cut in two: between slots, between groups, or between keys.

use bytes::Bytes;

use super::Layout;
use crate::types::{Error, Partitioning, Result, Slot};

impl Layout {
    /// The cut before a user's key: before its slot or group, which are never torn apart.
    pub fn cut_before(&self, key: &[u8]) -> Bytes {
        match self.partitioning {
            Partitioning::Hash => self.slot_start(super::slot(key)),
            Partitioning::Range { .. } => self.encode(self.atom(key)),
        }
    }

    /// The cut before a slot. `INVALID_REQUEST` if the table has none.
    pub fn cut_before_slot(&self, slot: Slot) -> Result<Bytes> {
        match self.partitioning {
            Partitioning::Hash => Ok(self.slot_start(slot)),
            Partitioning::Range { .. } => {
                Err(Error::invalid("a range table has no slots: name the key at which to split it"))
            }
        }
    }

    /// The cut of `[start, end)` nearest to an encoded key inside it, at the key's own slot or group if that leaves
    /// something before it; else behind its slot. `INVALID_REQUEST` if there is none: one slot or one group is all there
    /// is (a single key, or a single tag, cannot be split).
    pub fn cut_near(&self, start: &[u8], end: &[u8], encoded: &[u8]) -> Result<Bytes> {
        let before = self.cut_before(&self.decode(encoded)?);
        let behind = match (&self.partitioning, slot_of(encoded)) {
            (Partitioning::Hash, Some(slot)) => slot.checked_add(1).map(|next| self.slot_start(Slot(next))),
            _ => None,
        };
        if let Some(cut) =
            [Some(before), behind].into_iter().flatten().find(|at| self.check_cut(start, end, at).is_ok())
        {
            return Ok(cut);
        }
        Err(Error::invalid("most of the shard is one slot or one group of keys, which is never split"))
    }

    /// Refuses to cut `[start, end)` at `at` if that leaves one side without keys, or tears apart what belongs together.
    pub fn check_cut(&self, start: &[u8], end: &[u8], at: &[u8]) -> Result<()> {
        // Before slot 0 there are no keys, though the table's range begins before it.
        let before_all = self.partitioning == Partitioning::Hash && slot_of(at) == Some(0);
        if at <= start || at >= end || before_all {
            return Err(Error::invalid(format!(
                "the shard owns {}: split it at a place inside, not at its edge or beyond",
                self.describe(start, end)
            )));
        }
        let fits = match self.partitioning {
            Partitioning::Hash => slot_of(at).is_some_and(|slot| self.slot_start(Slot(slot)) == at),
            Partitioning::Range { .. } => self.decode(at).is_ok_and(|key| self.atom(&key) == &key[..]),
        };
        if fits {
            Ok(())
        } else {
            Err(Error::invalid("a shard is split between slots, groups or keys, not inside one"))
        }
    }
}

/// The slot that an encoded key of a hash table names.
fn slot_of(encoded: &[u8]) -> Option<u16> {
    encoded.get(4..6).map(|two| u16::from_be_bytes([two[0], two[1]]))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Reason, TableId};

    fn hash() -> Layout {
        Layout { table: TableId(3), partitioning: Partitioning::Hash }
    }

    fn range(delimiter: Option<&str>) -> Layout {
        let group_delimiter = delimiter.map(str::to_owned);
        Layout { table: TableId(3), partitioning: Partitioning::Range { group_delimiter } }
    }

    #[test]
    fn cuts_lie_between_slots_groups_or_keys() {
        let layout = hash();
        let (start, end) = layout.table_range();
        let slot = layout.cut_before_slot(Slot(9)).expect("a hash table");
        assert_eq!(&slot[..], b"\0\0\0\x03\0\x09");
        assert_eq!(layout.check_cut(&start, &end, &slot), Ok(()));
        assert!(layout.check_cut(&start, &end, &layout.encode(b"k")).is_err(), "inside a slot");
        assert_eq!(layout.cut_before(b"{t}x"), layout.cut_before(b"y{t}"));

        let layout = range(Some("/"));
        assert_eq!(layout.cut_before(b"u1/x"), layout.encode(b"u1/"));
        assert!(layout.check_cut(&start, &end, &layout.encode(b"u1/x")).is_err(), "inside a group");
        assert_eq!(layout.check_cut(&start, &end, &layout.encode(b"u1/")), Ok(()));
        assert_eq!(layout.cut_before_slot(Slot(1)).expect_err("no slots").reason, Reason::InvalidRequest);
    }

    #[test]
    fn an_edge_is_no_cut() {
        for layout in [hash(), range(None)] {
            let (start, end) = layout.table_range();
            for at in [&start, &end, &Bytes::new(), &Bytes::from_static(b"\xFF")] {
                let error = layout.check_cut(&start, &end, at).expect_err("an edge or beyond");
                assert!(error.message.contains("inside"), "{error}");
            }
        }
    }

    #[test]
    fn no_keys_lie_before_slot_0() {
        let layout = hash();
        let (start, end) = layout.table_range();
        let at = layout.cut_before_slot(Slot(0)).expect("a hash table");
        assert!(start < at);
        assert!(layout.check_cut(&start, &end, &at).is_err());
        assert_eq!(layout.cut_near(&start, &end, &layout.encode(&key_of_slot(0))), layout.cut_before_slot(Slot(1)));
    }

    fn key_of_slot(slot: u16) -> Vec<u8> {
        (0_u32..)
            .map(|number| number.to_string().into_bytes())
            .find(|key| crate::keyspace::slot(key).0 == slot)
            .expect("some")
    }

    #[test]
    fn one_slot_or_group_is_not_cut() {
        let layout = hash();
        let key = layout.encode(b"{t}x");
        let slot = super::slot_of(&key).expect("a slot");
        let (start, end) = (layout.slot_start(Slot(slot)), layout.slot_start(Slot(slot + 1)));
        assert!(layout.cut_near(&start, &end, &key).is_err());
        // With another slot behind it there is a cut, though not before the key's own.
        assert_eq!(layout.cut_near(&start, &layout.slot_start(Slot(slot + 2)), &key), Ok(end));
        let layout = range(Some("/"));
        let start = layout.encode(b"u1/");
        assert!(layout.cut_near(&start, &layout.table_range().1, &layout.encode(b"u1/x")).is_err());
    }

    proptest! {
        #[test]
        fn what_belongs_together_stays_on_one_side(
            kind in 0..3, keys in vec(vec(proptest::sample::select(b"ab/{}\0".to_vec()), 1..6), 2..20), pick: usize,
        ) {
            let layout = [hash(), range(None), range(Some("/"))][kind as usize].clone();
            let (start, end) = layout.table_range();
            let near = layout.encode(&keys[pick % keys.len()]);
            if let Ok(at) = layout.cut_near(&start, &end, &near) {
                prop_assert_eq!(layout.check_cut(&start, &end, &at), Ok(()));
                for one in &keys {
                    for two in keys.iter().filter(|two| layout.atom(two) == layout.atom(one)) {
                        prop_assert_eq!(layout.encode(one) < at, layout.encode(two) < at);
                    }
                }
            }
        }
    }
}
