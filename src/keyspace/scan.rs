//! From the bounds of a scan to ranges of encoded keys.

use bytes::Bytes;

use super::Layout;
use super::tag::{explicit_tag, tag};
use crate::types::{Error, Partitioning, Result, ScanBounds};

/// Where a scan has to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanPlan {
    /// Ranges `[start, end)` of encoded keys, ascending; a reverse scan walks them from the last. Empty if no key can match.
    pub ranges: Vec<(Bytes, Bytes)>,
    /// What else a key must meet, where a range holds more than was asked for.
    pub filter: Option<Filter>,
}

/// A test of user keys, for hash tables, where neighbours of encoded keys are not neighbours of user keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The key has this tag.
    Tag(Bytes),
    /// The key begins with this.
    Prefix(Bytes),
    /// The key is not before the first and is before the second.
    Range(Option<Bytes>, Option<Bytes>),
}

impl Filter {
    /// Whether a user's key passes.
    pub fn matches(&self, key: &[u8]) -> bool {
        match self {
            Filter::Tag(wanted) => tag(key) == wanted,
            Filter::Prefix(prefix) => key.starts_with(prefix),
            Filter::Range(from, to) => {
                from.as_ref().is_none_or(|from| &from[..] <= key) && to.as_ref().is_none_or(|to| key < &to[..])
            }
        }
    }
}

impl ScanPlan {
    fn one(range: (Bytes, Bytes), filter: Option<Filter>) -> ScanPlan {
        ScanPlan { ranges: vec![range], filter }
    }

    const NOTHING: ScanPlan = ScanPlan { ranges: Vec::new(), filter: None };
}

impl Layout {
    /// Where a scan with these bounds has to look.
    ///
    /// A range table always needs one range and no filter. A hash table needs one slot where the bounds hold a whole
    /// tag, else the whole table. `INVALID_REQUEST` for a tag on a range table without groups, or for an empty tag.
    pub fn scan_range(&self, bounds: &ScanBounds) -> Result<ScanPlan> {
        if let ScanBounds::Range(Some(from), Some(to)) = bounds
            && from >= to
        {
            return Ok(ScanPlan::NOTHING);
        }
        match &self.partitioning {
            Partitioning::Hash => self.scan_hash(bounds),
            Partitioning::Range { group_delimiter } => self.scan_ordered(bounds, group_delimiter.as_deref()),
        }
    }

    fn scan_hash(&self, bounds: &ScanBounds) -> Result<ScanPlan> {
        Ok(match bounds {
            ScanBounds::All => ScanPlan::one(self.table_range(), None),
            ScanBounds::Tag(tag) if tag.is_empty() => return Err(Error::invalid("a tag is not empty")),
            ScanBounds::Tag(tag) => ScanPlan::one(self.tag_range(tag), Some(Filter::Tag(tag.clone()))),
            // A prefix with a whole tag fixes the slot, and within a slot keys are in order.
            ScanBounds::Prefix(prefix) if explicit_tag(prefix).is_some() => {
                ScanPlan::one(self.prefix_range(prefix), None)
            }
            ScanBounds::Prefix(prefix) => {
                ScanPlan::one(self.table_range(), Some(Filter::Prefix(prefix.clone())).filter(|_| !prefix.is_empty()))
            }
            // All keys between two that share a beginning share it too.
            ScanBounds::Range(Some(from), Some(to)) if explicit_tag(common_prefix(from, to)).is_some() => {
                ScanPlan::one((self.encode(from), self.encode(to)), None)
            }
            ScanBounds::Range(None, None) => ScanPlan::one(self.table_range(), None),
            ScanBounds::Range(from, to) => {
                ScanPlan::one(self.table_range(), Some(Filter::Range(from.clone(), to.clone())))
            }
        })
    }

    fn scan_ordered(&self, bounds: &ScanBounds, delimiter: Option<&str>) -> Result<ScanPlan> {
        let (first, last) = self.table_range();
        let range = match bounds {
            ScanBounds::All => (first, last),
            ScanBounds::Tag(group) => self.prefix_range(&whole_group(group, delimiter)?),
            ScanBounds::Prefix(prefix) if prefix.is_empty() => (first, last),
            ScanBounds::Prefix(prefix) => self.prefix_range(prefix),
            ScanBounds::Range(from, to) => {
                (from.as_ref().map_or(first, |from| self.encode(from)), to.as_ref().map_or(last, |to| self.encode(to)))
            }
        };
        Ok(ScanPlan::one(range, None))
    }
}

/// What all keys of a group begin with. The group may be named with or without its delimiter.
fn whole_group(group: &[u8], delimiter: Option<&str>) -> Result<Vec<u8>> {
    let Some(delimiter) = delimiter.filter(|delimiter| !delimiter.is_empty()) else {
        return Err(Error::invalid(
            "the table is ordered and has no groups: scan a prefix or a range instead of a tag",
        ));
    };
    let mut whole = group.to_vec();
    if !group.ends_with(delimiter.as_bytes()) {
        whole.extend_from_slice(delimiter.as_bytes());
    }
    let first = whole.windows(delimiter.len()).position(|window| window == delimiter.as_bytes());
    if first.map(|at| at + delimiter.len()) != Some(whole.len()) {
        return Err(Error::invalid("the name of a group ends at the first delimiter in it"));
    }
    Ok(whole)
}

fn common_prefix<'a>(one: &'a [u8], two: &[u8]) -> &'a [u8] {
    let length = one.iter().zip(two).take_while(|(a, b)| a == b).count();
    &one[..length]
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Reason, TableId};

    fn hash() -> Layout {
        Layout { table: TableId(1), partitioning: Partitioning::Hash }
    }

    fn ordered(delimiter: Option<&str>) -> Layout {
        let group_delimiter = delimiter.map(str::to_owned);
        Layout { table: TableId(1), partitioning: Partitioning::Range { group_delimiter } }
    }

    fn text(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn covers(plan: &ScanPlan, layout: &Layout, key: &[u8]) -> bool {
        let encoded = layout.encode(key);
        plan.ranges.iter().any(|(start, end)| *start <= encoded && encoded < *end)
            && plan.filter.as_ref().is_none_or(|filter| filter.matches(key))
    }

    /// What a scan means, said a second time and without ranges.
    fn wanted(bounds: &ScanBounds, layout: &Layout, key: &[u8]) -> bool {
        match bounds {
            ScanBounds::All => true,
            ScanBounds::Prefix(prefix) => key.starts_with(prefix),
            ScanBounds::Range(from, to) => {
                from.as_ref().is_none_or(|from| key >= &from[..]) && to.as_ref().is_none_or(|to| key < &to[..])
            }
            ScanBounds::Tag(tag) if layout.partitioning == Partitioning::Hash => layout.atom(key) == tag,
            ScanBounds::Tag(group) => layout.atom(key) == [&group[..], b"/"].concat(),
        }
    }

    #[test]
    fn bounds_with_a_whole_tag_look_at_one_slot_only() {
        let layout = hash();
        let (start, end) = layout.tag_range(b"u1");
        let tagged = [
            ScanBounds::Tag(text("u1")),
            ScanBounds::Prefix(text("{u1}:order:")),
            ScanBounds::Range(Some(text("{u1}:2024")), Some(text("{u1}:2025"))),
        ];
        for bounds in tagged {
            let plan = layout.scan_range(&bounds).expect("a plan");
            assert!(start <= plan.ranges[0].0 && plan.ranges[0].1 <= end, "{bounds:?}");
        }
        for bounds in [ScanBounds::Prefix(text("{u1")), ScanBounds::Prefix(text("{}u{1}"))] {
            assert_eq!(layout.scan_range(&bounds).expect("a plan").ranges, [layout.table_range()], "{bounds:?}");
        }
    }

    #[test]
    fn a_range_that_holds_nothing_looks_nowhere() {
        for layout in [hash(), ordered(None)] {
            let bounds = ScanBounds::Range(Some(text("b")), Some(text("b")));
            assert_eq!(layout.scan_range(&bounds).expect("a plan").ranges, []);
        }
    }

    #[test]
    fn tags_are_refused_where_there_are_none() {
        for (layout, tag) in
            [(ordered(None), "u1"), (ordered(Some("/")), "u1/u2"), (ordered(Some("/")), "u1//"), (hash(), "")]
        {
            let error = layout.scan_range(&ScanBounds::Tag(text(tag))).expect_err("refused");
            assert_eq!(error.reason, Reason::InvalidRequest, "{tag}");
        }
    }

    #[test]
    fn a_group_is_named_with_or_without_its_delimiter() {
        let layout = ordered(Some("/"));
        let plans = ["u1", "u1/"].map(|name| layout.scan_range(&ScanBounds::Tag(text(name))).expect("a plan"));
        assert_eq!(plans[0], plans[1]);
        assert!(covers(&plans[0], &layout, b"u1/x"));
        assert!(!covers(&plans[0], &layout, b"u1") && !covers(&plans[0], &layout, b"u10/x"));
    }

    fn short() -> impl Strategy<Value = Vec<u8>> {
        vec(proptest::sample::select(vec![0u8, 1, b'a', b'b', b'/', b'{', b'}', 0xFE, 0xFF]), 0..7)
    }

    fn bounds() -> impl Strategy<Value = ScanBounds> {
        prop_oneof![
            Just(ScanBounds::All),
            "[ab]{1,2}".prop_map(|tag| ScanBounds::Tag(Bytes::from(tag))),
            short().prop_map(|prefix| ScanBounds::Prefix(Bytes::from(prefix))),
            (proptest::option::of(short()), proptest::option::of(short()))
                .prop_map(|(from, to)| ScanBounds::Range(from.map(Bytes::from), to.map(Bytes::from))),
            // Ranges and prefixes below one tag, which free choice would seldom hit.
            short().prop_map(|rest| ScanBounds::Prefix(Bytes::from([&b"{a}"[..], &rest].concat()))),
            (short(), short()).prop_map(|(from, to)| {
                let tagged = |rest: &[u8]| Some(Bytes::from([&b"{a}"[..], rest].concat()));
                ScanBounds::Range(tagged(&from), tagged(&to))
            }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]
        #[test]
        fn a_plan_covers_exactly_what_was_asked_for(
            bounds in bounds(), keys in vec(prop_oneof![short(), short().prop_map(|key| [&b"{a}"[..], &key].concat())], 1..20),
            hashed: bool,
        ) {
            let layout = if hashed { hash() } else { ordered(Some("/")) };
            let plan = layout.scan_range(&bounds)?;
            prop_assert!(hashed || plan.filter.is_none());
            for key in keys {
                prop_assert_eq!(covers(&plan, &layout, &key), wanted(&bounds, &layout, &key), "{:?}", key);
            }
        }
    }
}
