//! How the keys of one table become encoded keys, and where its shards may begin.

use bytes::{BufMut, Bytes};

use super::tag::{slot_of_tag, tag};
use super::{escape, slot};
use crate::types::{Error, Partitioning, Reason, Result, Slot, TableDescriptor, TableId};

const SLOTS: u32 = 1 << 16;

/// How the keys of one table become encoded keys: the only thing that knows "hash" and "range".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The table.
    pub table: TableId,
    /// By slots or in the order of the keys.
    pub partitioning: Partitioning,
}

impl Layout {
    /// The layout of a table.
    pub fn of(table: &TableDescriptor) -> Layout {
        Layout { table: table.id, partitioning: table.partitioning.clone() }
    }

    /// The layout of the system table.
    pub fn system() -> Layout {
        Layout { table: TableId::SYSTEM, partitioning: Partitioning::Range { group_delimiter: None } }
    }

    /// The encoded key of a user's key.
    pub fn encode(&self, key: &[u8]) -> Bytes {
        // A key seldom holds zero bytes; each of them makes it grow once.
        let mut out = Vec::with_capacity(6 + key.len() + escape::END.len());
        self.put_head(&mut out, || slot(key));
        escape::put(&mut out, key);
        Bytes::from(out)
    }

    /// The user's key of an encoded key; `CORRUPTION` if it is none of this table's.
    pub fn decode(&self, encoded: &[u8]) -> Result<Bytes> {
        let foreign =
            |what: &str| Error::new(Reason::Corruption, format!("a stored key of table {}: {what}", self.table));
        let rest =
            encoded.strip_prefix(&self.table.0.to_be_bytes()).ok_or_else(|| foreign("it belongs to another table"))?;
        match self.partitioning {
            Partitioning::Range { .. } => escape::take(rest),
            Partitioning::Hash => {
                let (stored, rest) = rest.split_first_chunk::<2>().ok_or_else(|| foreign("it has no slot"))?;
                let key = escape::take(rest)?;
                if Slot(u16::from_be_bytes(*stored)) != slot(&key) {
                    return Err(foreign("it lies under a slot that is not its own"));
                }
                Ok(key)
            }
        }
    }

    /// The range `[start, end)` of all encoded keys the table can have.
    pub fn table_range(&self) -> (Bytes, Bytes) {
        // Ids from RESERVED up are never given to tables, so there is always a next id.
        let next = self.table.0.saturating_add(1);
        (Bytes::copy_from_slice(&self.table.0.to_be_bytes()), Bytes::copy_from_slice(&next.to_be_bytes()))
    }

    /// The ranges of a new table's shards: `shards` equal ranges of slots for a hash table; for a range table one
    /// shard more than there are split points (`shards` is then that number, or 0 for "as many as it takes").
    ///
    /// With groups, a split point inside a group is moved to the group's beginning. Split points must be ascending,
    /// distinct and not empty, also after they were moved; else `INVALID_REQUEST`.
    pub fn initial_ranges(&self, shards: u32, split_points: &[Bytes]) -> Result<Vec<(Bytes, Bytes)>> {
        let inner: Vec<Bytes> = match self.partitioning {
            Partitioning::Hash => {
                if !split_points.is_empty() {
                    return Err(Error::invalid("a hash table takes a number of shards, not split points"));
                }
                if shards == 0 || shards > SLOTS {
                    return Err(Error::invalid(format!("a hash table has 1 to {SLOTS} shards, not {shards}")));
                }
                (1..shards).map(|shard| self.slot_start(equal_cut(shard, shards))).collect()
            }
            Partitioning::Range { .. } => {
                if shards != 0 && shards as usize != split_points.len() + 1 {
                    return Err(Error::invalid(format!(
                        "{} split points make {} shards, not {shards}: leave the number of shards out or give other points",
                        split_points.len(),
                        split_points.len() + 1
                    )));
                }
                self.split_at(split_points)?
            }
        };
        let (start, end) = self.table_range();
        let starts = std::iter::once(start).chain(inner.iter().cloned());
        let ends = inner.iter().cloned().chain(std::iter::once(end));
        Ok(starts.zip(ends).collect())
    }

    /// What is never torn apart: the tag (hash tables), the group (range tables with a delimiter; the key up to and
    /// with the first delimiter), else the key itself. Keys of one batch must share it, else `CROSS_SHARD`.
    pub fn atom<'a>(&self, key: &'a [u8]) -> &'a [u8] {
        match &self.partitioning {
            Partitioning::Hash => tag(key),
            Partitioning::Range { group_delimiter: None } => key,
            Partitioning::Range { group_delimiter: Some(delimiter) } => match group_length(key, delimiter) {
                Some(length) => &key[..length],
                None => key,
            },
        }
    }

    /// A shard's range in words, for people: its slots, or its first and last-but-not-included key.
    pub fn describe(&self, start: &[u8], end: &[u8]) -> String {
        let (first, last) = self.table_range();
        match self.partitioning {
            Partitioning::Hash => {
                let slot_at = |bound: &[u8]| bound.get(4..6).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]])));
                let from = slot_at(start).unwrap_or(0);
                let to = if end >= &last[..] { SLOTS } else { slot_at(end).unwrap_or(SLOTS) };
                format!("slots {from} to {}", to.saturating_sub(1))
            }
            Partitioning::Range { .. } => {
                let name = |bound: &[u8]| match self.decode(bound) {
                    Ok(key) => format!("\"{}\"", key.escape_ascii()),
                    Err(_) => format!("0x{}", bound.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
                };
                match (start <= &first[..], end >= &last[..]) {
                    (true, true) => "all keys".to_owned(),
                    (true, false) => format!("keys before {}", name(end)),
                    (false, true) => format!("keys from {}", name(start)),
                    (false, false) => format!("keys from {} before {}", name(start), name(end)),
                }
            }
        }
    }

    /// The first encoded key that a key of the slot could have.
    pub(super) fn slot_start(&self, slot: Slot) -> Bytes {
        let mut out = Vec::with_capacity(6);
        out.put_u32(self.table.0);
        out.put_u16(slot.0);
        Bytes::from(out)
    }

    /// All encoded keys of keys with this tag, and perhaps others that share its slot (hash tables only).
    pub(super) fn tag_range(&self, tag: &[u8]) -> (Bytes, Bytes) {
        let slot = slot_of_tag(tag);
        let end = match slot.0.checked_add(1) {
            Some(next) => self.slot_start(Slot(next)),
            None => self.table_range().1,
        };
        (self.slot_start(slot), end)
    }

    /// The encoded keys of the keys that begin with `prefix`. For a hash table the prefix must hold a whole tag.
    pub(super) fn prefix_range(&self, prefix: &[u8]) -> (Bytes, Bytes) {
        let mut start = Vec::with_capacity(6 + prefix.len());
        self.put_head(&mut start, || slot(prefix));
        escape::put_prefix(&mut start, prefix);
        // A table id is below RESERVED, so its first bytes are not all FF.
        let end = super::prefix_end(&start).unwrap_or_else(|| self.table_range().1);
        (Bytes::from(start), end)
    }

    fn put_head(&self, out: &mut Vec<u8>, slot: impl FnOnce() -> Slot) {
        out.put_u32(self.table.0);
        if self.partitioning == Partitioning::Hash {
            out.put_u16(slot().0);
        }
    }

    fn split_at(&self, points: &[Bytes]) -> Result<Vec<Bytes>> {
        let mut bounds: Vec<Bytes> = Vec::with_capacity(points.len());
        for (number, point) in points.iter().enumerate() {
            let number = number + 1;
            if point.is_empty() {
                return Err(Error::invalid(format!("split point {number} is empty")));
            }
            let bound = self.encode(self.atom(point));
            if bounds.last().is_some_and(|before| *before >= bound) {
                return Err(Error::invalid(format!(
                    "split point {number} does not come after the one before it (a point inside a group counts as the group's beginning)"
                )));
            }
            bounds.push(bound);
        }
        Ok(bounds)
    }
}

/// Where shard number `shard` of `shards` begins when the slots are cut into equal parts.
fn equal_cut(shard: u32, shards: u32) -> Slot {
    let first = u64::from(shard) * u64::from(SLOTS) / u64::from(shards);
    Slot(u16::try_from(first).expect("a cut before the last shard is a slot"))
}

/// Bytes of the key's group, delimiter included; none if the key has no delimiter.
fn group_length(key: &[u8], delimiter: &str) -> Option<usize> {
    let delimiter = delimiter.as_bytes();
    if delimiter.is_empty() {
        return None;
    }
    key.windows(delimiter.len()).position(|window| window == delimiter).map(|at| at + delimiter.len())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn hash() -> Layout {
        Layout { table: TableId(0x0102_0304), partitioning: Partitioning::Hash }
    }

    fn range(delimiter: Option<&str>) -> Layout {
        let group_delimiter = delimiter.map(str::to_owned);
        Layout { table: TableId(5), partitioning: Partitioning::Range { group_delimiter } }
    }

    fn points(keys: &[&str]) -> Vec<Bytes> {
        keys.iter().map(|key| Bytes::copy_from_slice(key.as_bytes())).collect()
    }

    #[test]
    fn encoded_keys_are_golden() {
        assert_eq!(&hash().encode(b"123456789")[..], b"\x01\x02\x03\x04\xCB\xF4123456789\0\x01");
        assert_eq!(&range(None).encode(b"a\0b")[..], b"\0\0\0\x05a\0\xFFb\0\x01");
        assert_eq!(&Layout::system().encode(b"cluster")[..], b"\0\0\0\0cluster\0\x01");
    }

    #[test]
    fn foreign_and_broken_keys_are_refused() {
        let mut moved = hash().encode(b"123456789").to_vec();
        moved[5] ^= 1;
        for bytes in [&moved[..], b"", b"\x01\x02\x03\x04", b"\x01\x02\x03\x04\xCB", &range(None).encode(b"x")] {
            assert_eq!(hash().decode(bytes).expect_err("not ours").reason, Reason::Corruption, "{bytes:?}");
        }
    }

    #[test]
    fn equal_slot_ranges_are_golden() {
        let ranges = hash().initial_ranges(3, &[]).expect("three shards");
        let cuts: Vec<&[u8]> = ranges.iter().map(|(start, _)| &start[..]).collect();
        assert_eq!(cuts, [&b"\x01\x02\x03\x04"[..], b"\x01\x02\x03\x04\x55\x55", b"\x01\x02\x03\x04\xAA\xAA"]);
        assert_eq!(ranges[2].1, &b"\x01\x02\x03\x05"[..]);
        assert_eq!(hash().initial_ranges(SLOTS, &[]).expect("a shard per slot").len(), 65_536);
    }

    #[test]
    fn wrong_shard_counts_and_split_points_are_refused() {
        for (layout, shards, keys) in [
            (hash(), 0, &[][..]),
            (hash(), SLOTS + 1, &[]),
            (hash(), 2, &["m"]),
            (range(None), 3, &["m"]),
            (range(None), 0, &["m", "m"]),
            (range(None), 0, &["m", "c"]),
            (range(None), 0, &["", "c"]),
            (range(Some("/")), 0, &["u1/a", "u1/b"]),
        ] {
            let error = layout.initial_ranges(shards, &points(keys)).expect_err("refused");
            assert_eq!(error.reason, Reason::InvalidRequest, "{shards} {keys:?}");
        }
    }

    #[test]
    fn split_points_move_to_the_beginning_of_their_group() {
        let layout = range(Some("/"));
        let ranges = layout.initial_ranges(3, &points(&["u1/5", "u2"])).expect("three shards");
        assert_eq!(ranges[1], (layout.encode(b"u1/"), layout.encode(b"u2")));
    }

    #[test]
    fn atoms_are_tags_groups_or_keys() {
        assert_eq!(hash().atom(b"a{b}c"), b"b");
        assert_eq!(range(None).atom(b"a/b"), b"a/b");
        assert_eq!(range(Some("/")).atom(b"a/b/c"), b"a/");
        assert_eq!(range(Some("::")).atom(b"a:b::c"), b"a:b::");
        assert_eq!(range(Some("::")).atom(b"a:b"), b"a:b");
        assert_eq!(range(Some("")).atom(b"ab"), b"ab");
    }

    #[test]
    fn ranges_are_described_in_words() {
        let table = hash();
        let ranges = table.initial_ranges(2, &[]).expect("two shards");
        assert_eq!(table.describe(&ranges[0].0, &ranges[0].1), "slots 0 to 32767");
        assert_eq!(table.describe(&ranges[1].0, &ranges[1].1), "slots 32768 to 65535");
        let table = range(None);
        let ranges = table.initial_ranges(3, &points(&["g", "p\n"])).expect("three shards");
        let words: Vec<String> = ranges.iter().map(|(start, end)| table.describe(start, end)).collect();
        assert_eq!(words, ["keys before \"g\"", "keys from \"g\" before \"p\\n\"", "keys from \"p\\n\""]);
        let (start, end) = table.table_range();
        assert_eq!(table.describe(&start, &end), "all keys");
    }

    fn layouts() -> impl Strategy<Value = Layout> {
        let partitioning = prop_oneof![
            Just(Partitioning::Hash),
            Just(Partitioning::Range { group_delimiter: None }),
            Just(Partitioning::Range { group_delimiter: Some("/".to_owned()) }),
            Just(Partitioning::Range { group_delimiter: Some("ab".to_owned()) }),
        ];
        (0..TableId::RESERVED, partitioning)
            .prop_map(|(table, partitioning)| Layout { table: TableId(table), partitioning })
    }

    fn keys() -> impl Strategy<Value = Vec<u8>> {
        let bytes = [0, 1, 0xFE, 0xFF, b'/', b'a', b'b', b'{', b'}'];
        vec(prop_oneof![proptest::sample::select(bytes.to_vec()), any::<u8>()], 0..10)
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding_within_the_table(layout in layouts(), key in keys()) {
            let encoded = layout.encode(&key);
            let (start, end) = layout.table_range();
            prop_assert!(start <= encoded && encoded < end);
            prop_assert_eq!(layout.decode(&encoded)?, key);
        }

        #[test]
        fn order_of_keys_is_kept_within_a_slot(layout in layouts(), one in keys(), two in keys()) {
            if layout.partitioning != Partitioning::Hash || slot(&one) == slot(&two) {
                prop_assert_eq!(one.cmp(&two), layout.encode(&one).cmp(&layout.encode(&two)));
            }
        }

        #[test]
        fn siblings_of_a_tag_keep_their_order(tag in "[^{}]{1,6}", one in keys(), two in keys()) {
            let with_tag = |rest: &[u8]| [format!("{{{tag}}}").as_bytes(), rest].concat();
            let (one, two) = (with_tag(&one), with_tag(&two));
            prop_assert_eq!(one.cmp(&two), hash().encode(&one).cmp(&hash().encode(&two)));
        }

        #[test]
        fn every_key_is_in_exactly_one_initial_range(layout in layouts(), mut cuts in vec(keys(), 0..5), key in keys(), shards in 1u32..100) {
            cuts.retain(|cut| !cut.is_empty());
            cuts.sort_by_key(|cut| layout.encode(layout.atom(cut)));
            cuts.dedup_by_key(|cut| layout.atom(cut).to_vec());
            let hashed = layout.partitioning == Partitioning::Hash;
            let cuts: Vec<Bytes> = if hashed { Vec::new() } else { cuts.into_iter().map(Bytes::from).collect() };
            let ranges = layout.initial_ranges(if hashed { shards } else { 0 }, &cuts)?;
            let encoded = layout.encode(&key);
            let owners = ranges.iter().filter(|(start, end)| *start <= encoded && encoded < *end).count();
            prop_assert_eq!(owners, 1);
            // The atom itself is a key too, and is with all keys that share it.
            let atom = layout.encode(layout.atom(&key));
            for (start, end) in &ranges {
                prop_assert_eq!(*start <= encoded && encoded < *end, *start <= atom && atom < *end);
            }
        }

        #[test]
        fn the_range_of_encoded_keys_is_the_range_of_their_versions(layout in layouts(), cut in keys(), key in keys(), at: u64) {
            let encoded = layout.encode(&key);
            let version = super::super::version::key(&encoded, crate::types::Timestamp(at));
            let (prefix_start, prefix_end) = layout.prefix_range(&cut);
            for bound in [layout.encode(&cut), layout.slot_start(slot(&cut)), prefix_start, prefix_end] {
                prop_assert_eq!(encoded < bound, version < bound);
            }
        }
    }
}
