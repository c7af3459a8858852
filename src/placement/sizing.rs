//! When a shard is split by itself, and when two are merged: by their bytes and by their load.
//!
//! Promise: a split helps, or is not made. A shard is split for its load only when that has been too much for a while,
//! and only at a cut that leaves neither side nearly all of it. One hot key (or one tag or group, whose keys stay
//! together) cannot be divided: it is reported instead, as often as it is asked for, and never split for.
//!
//! Where the load lies is told by a [`KeySample`]: a bounded number of the keys that were asked for, each request with
//! the same chance to be in it. With 128 of them a share of a half is known to within a few percent, which is enough to
//! cut by.
//!
//! What was split is not merged again, nor the other way round: two neighbours are merged when together they have less
//! than a quarter of what either kind of split asks for, and that for long.
//!
//! Left out: asking and remembering (the caller counts the observations in a row), where a shard is cut for its bytes
//! (its leader finds the middle), and whether a split or merge is possible right now.

use std::time::Duration;

use bytes::Bytes;

use crate::keyspace::Layout;

/// Requests a sample keeps. Bounds its memory at this many keys.
pub const SAMPLE_MAX: usize = 128;

/// Requests without which a sample says nothing.
pub const SAMPLE_MIN: u64 = 32;

/// A side that keeps more than this part of the load, in percent, is not helped by a split.
pub const SIDE_PERCENT_MAX: u64 = 80;

/// Merging asks for less than one such part of what splitting asks for.
const MERGE_PART: u64 = 4;

/// The sizes at which something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes above which a shard is split.
    pub split_bytes: u64,
    /// Requests per second above which a shard is split, if that helps.
    pub split_load: u64,
    /// Observations in a row, all above that, before it is.
    pub split_observations: u32,
    /// How long two neighbours have been small and cold before they are merged.
    pub merge_after: Duration,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes {
            split_bytes: 256 << 20,
            split_load: 5_000,
            split_observations: 10,
            merge_after: Duration::from_secs(3_600),
        }
    }
}

/// How long a shard has been hot. One for each shard, asked once per observation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HotFor(u32);

impl HotFor {
    /// Takes in the requests per second of one more observation. A load that falls below three quarters of the line
    /// starts over; one that wavers around the line does not.
    pub fn observe(&mut self, load: u64, sizes: &Sizes) {
        if load > sizes.split_load {
            self.0 = self.0.saturating_add(1);
        } else if load < sizes.split_load / 4 * 3 {
            self.0 = 0;
        }
    }

    /// Whether that is long enough for something to be done.
    pub fn is_due(&self, sizes: &Sizes) -> bool {
        self.0 >= sizes.split_observations
    }

    /// Starts over, after a split.
    pub fn reset(&mut self) {
        self.0 = 0;
    }
}

/// A bounded sample of the keys that are asked for: a reservoir, so every request has the same chance to be in it.
#[derive(Clone, Debug, Default)]
pub struct KeySample {
    kept: Vec<Bytes>,
    seen: u64,
}

impl KeySample {
    /// Takes in one request for an encoded key. `random` is a fresh random number.
    pub fn record(&mut self, encoded: &[u8], random: u64) {
        self.seen += 1;
        if self.kept.len() < SAMPLE_MAX {
            // A copy of its own: the caller's may be part of a large buffer.
            self.kept.push(Bytes::copy_from_slice(encoded));
        } else if let Some(kept) = usize::try_from(random % self.seen).ok().and_then(|at| self.kept.get_mut(at)) {
            *kept = Bytes::copy_from_slice(encoded);
        }
    }

    /// The keys in order, each with how often it was kept; begins a new sample.
    pub fn take(&mut self) -> Vec<(Bytes, u64)> {
        self.seen = 0;
        let mut keys = std::mem::take(&mut self.kept);
        keys.sort_unstable();
        let mut counts: Vec<(Bytes, u64)> = Vec::new();
        for key in keys {
            match counts.last_mut() {
                Some((last, count)) if *last == key => *count += 1,
                _ => counts.push((key, 1)),
            }
        }
        counts
    }
}

/// A shard, as its leader sees it.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// First encoded key it owns.
    pub start: &'a [u8],
    /// First encoded key it no longer owns.
    pub end: &'a [u8],
    /// Bytes it holds.
    pub bytes: u64,
    /// How long it has been hot.
    pub hot_for: HotFor,
    /// Keys asked for since the last observation, in order, with how often each was seen.
    pub sample: &'a [(Bytes, u64)],
}

/// Whether and why a shard is to be split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Split {
    /// It is not.
    Keep,
    /// It holds too much: cut in the middle of its bytes.
    ForBytes,
    /// It serves too much: cut here.
    ForLoad {
        /// The first encoded key of the right part.
        at: Bytes,
        /// The part of its load that the left part keeps.
        left_percent: u64,
    },
    /// It serves too much, and one key, or what is never torn from it, takes so much of that that no split would help.
    OneHotKey {
        /// The hottest encoded key.
        key: Bytes,
        /// The part of the shard's load that goes to it and to what is never torn from it.
        percent: u64,
    },
}

/// Decides whether a shard is to be split.
pub fn split_wanted(shard: &Observed<'_>, layout: &Layout, sizes: &Sizes) -> Split {
    if shard.bytes > sizes.split_bytes {
        return Split::ForBytes;
    }
    let total: u64 = shard.sample.iter().map(|(_, count)| count).sum();
    if !shard.hot_for.is_due(sizes) || total < SAMPLE_MIN {
        return Split::Keep;
    }
    let whole = |count: u64| count * 100 / total;
    if let Some((at, left)) = best_cut(shard, layout, total)
        && whole(left.max(total - left)) <= SIDE_PERCENT_MAX
    {
        return Split::ForLoad { at, left_percent: whole(left) };
    }
    // If no cut comes near to the half, one atom lies across it.
    match hottest(shard.sample, layout) {
        Some((key, count)) => Split::OneHotKey { key, percent: whole(count) },
        None => Split::Keep,
    }
}

/// The cut that leaves the left side nearest to half of the sample, and what it leaves there.
fn best_cut(shard: &Observed<'_>, layout: &Layout, total: u64) -> Option<(Bytes, u64)> {
    let mut best: Option<(Bytes, u64)> = None;
    let mut left = 0u64;
    let mut before: Option<Bytes> = None;
    for (encoded, count) in shard.sample {
        // The first key of each atom says where the atom begins; the others of it lie behind that.
        if let Ok(cut) = atom_start(layout, encoded)
            && before.as_ref() != Some(&cut)
        {
            before = Some(cut.clone());
            let nearer =
                best.as_ref().is_none_or(|(_, best)| left.abs_diff(total - left) < best.abs_diff(total - best));
            if left > 0 && nearer && layout.check_cut(shard.start, shard.end, &cut).is_ok() {
                best = Some((cut, left));
            }
        }
        left += count;
    }
    best
}

/// The key asked for most within the atom asked for most, and how often that was.
fn hottest(sample: &[(Bytes, u64)], layout: &Layout) -> Option<(Bytes, u64)> {
    let same = |one: &(Bytes, u64), two: &(Bytes, u64)| {
        let starts = (atom_start(layout, &one.0), atom_start(layout, &two.0));
        matches!(starts, (Ok(one), Ok(two)) if one == two)
    };
    let atom = sample.chunk_by(same).max_by_key(|atom| atom.iter().map(|(_, count)| count).sum::<u64>())?;
    let (key, _) = atom.iter().max_by_key(|(_, count)| count)?;
    Some((key.clone(), atom.iter().map(|(_, count)| count).sum()))
}

/// Where the slot, group or key begins that an encoded key belongs to: a split never tears it apart.
fn atom_start(layout: &Layout, encoded: &[u8]) -> crate::types::Result<Bytes> {
    Ok(layout.cut_before(&layout.decode(encoded)?))
}

/// Two shards of one table, one beginning where the other ends.
#[derive(Clone, Copy, Debug)]
pub struct Neighbours {
    /// Bytes of both.
    pub bytes: u64,
    /// Requests per second of both.
    pub load: u64,
    /// How long [`are_small`](Neighbours::are_small) has held without a break, or since the younger of them was made,
    /// whichever is less.
    pub small_for: Duration,
    /// Whether the right one was split off unasked: what somebody asked for stays.
    pub unasked: bool,
}

impl Neighbours {
    /// Whether both together are far from being split, by bytes and by load.
    pub fn are_small(&self, sizes: &Sizes) -> bool {
        self.bytes < sizes.split_bytes / MERGE_PART && self.load < sizes.split_load / MERGE_PART
    }
}

/// Decides whether two neighbours are to be merged.
pub fn merge_wanted(pair: &Neighbours, sizes: &Sizes) -> bool {
    pair.unasked && pair.small_for >= sizes.merge_after && pair.are_small(sizes)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Partitioning, TableDescriptor, TableId, TableState};

    fn layout(partitioning: Partitioning) -> Layout {
        Layout::of(&TableDescriptor {
            id: TableId(7),
            name: "t".to_owned(),
            partitioning,
            replication: 3,
            read_replicas: 0,
            read_replica_zone: None,
            history_ms: 0,
            state: TableState::Ready,
            view: None,
        })
    }

    fn range(delimiter: Option<&str>) -> Layout {
        layout(Partitioning::Range { group_delimiter: delimiter.map(str::to_owned) })
    }

    fn sample(layout: &Layout, keys: &[(&str, u64)]) -> Vec<(Bytes, u64)> {
        let mut sample: Vec<(Bytes, u64)> =
            keys.iter().map(|&(key, count)| (layout.encode(key.as_bytes()), count)).collect();
        sample.sort();
        sample
    }

    fn hot(sizes: &Sizes) -> HotFor {
        let mut hot = HotFor::default();
        for _ in 0..sizes.split_observations {
            hot.observe(sizes.split_load + 1, sizes);
        }
        hot
    }

    /// What is decided of a shard that owns the whole table and has been hot for long.
    fn decide(layout: &Layout, keys: &[(&str, u64)]) -> Split {
        let sizes = Sizes::default();
        let (start, end) = layout.table_range();
        let sample = sample(layout, keys);
        let shard = Observed { start: &start, end: &end, bytes: 0, hot_for: hot(&sizes), sample: &sample };
        split_wanted(&shard, layout, &sizes)
    }

    #[test]
    fn a_shard_is_split_where_its_load_divides() {
        let layout = range(None);
        let split = decide(&layout, &[("a", 10), ("b", 30), ("c", 20), ("d", 40)]);
        assert_eq!(split, Split::ForLoad { at: layout.encode(b"c"), left_percent: 40 });
        // Nearly all of it on one key at the edge, or in the midst of others.
        for keys in
            [[("a", 90), ("b", 5), ("c", 5)], [("a", 5), ("b", 90), ("c", 5)], [("a", 15), ("b", 70), ("c", 15)]]
        {
            let (key, percent) = keys.into_iter().max_by_key(|&(_, count)| count).expect("three keys");
            let expected = Split::OneHotKey { key: layout.encode(key.as_bytes()), percent };
            assert_eq!(decide(&layout, &keys), expected);
        }
        // Beside one hot key there is enough else to make a split worth it.
        let split = decide(&layout, &[("a", 30), ("b", 70)]);
        assert_eq!(split, Split::ForLoad { at: layout.encode(b"b"), left_percent: 30 });
    }

    #[test]
    fn what_stays_together_is_one() {
        let keys = [("a/1", 25), ("a/2", 25), ("a/3", 26), ("b/1", 12), ("c/1", 12)];
        assert_eq!(decide(&range(None), &keys), Split::ForLoad { at: range(None).encode(b"a/3"), left_percent: 50 });
        let groups = range(Some("/"));
        assert_eq!(decide(&groups, &keys), Split::ForLoad { at: groups.encode(b"b/"), left_percent: 76 });
        let more = [("a/1", 30), ("a/2", 31), ("a/3", 30), ("b/1", 9)];
        assert_eq!(decide(&groups, &more), Split::OneHotKey { key: groups.encode(b"a/2"), percent: 91 });
        let hash = layout(Partitioning::Hash);
        let tagged = [("{u1}x", 40), ("{u1}y", 50), ("{u2}z", 10)];
        assert_eq!(decide(&hash, &tagged), Split::OneHotKey { key: hash.encode(b"{u1}y"), percent: 90 });
        let Split::ForLoad { at, left_percent } = decide(&hash, &[("{u1}x", 40), ("{u2}y", 60)]) else {
            panic!("two slots can be divided")
        };
        let (start, end) = hash.table_range();
        hash.check_cut(&start, &end, &at).expect("a cut between slots");
        assert!(left_percent == 40 || left_percent == 60);
    }

    #[test]
    fn load_has_to_last_and_bytes_do_not() {
        let sizes = Sizes::default();
        let layout = range(None);
        let (start, end) = layout.table_range();
        let sample = sample(&layout, &[("a", 50), ("b", 50)]);
        let decide = |bytes, hot_for, sample| {
            split_wanted(&Observed { start: &start, end: &end, bytes, hot_for, sample }, &layout, &sizes)
        };
        let mut hot_for = HotFor::default();
        for _ in 1..sizes.split_observations {
            hot_for.observe(sizes.split_load + 1, &sizes);
            assert_eq!(decide(sizes.split_bytes, hot_for, &sample), Split::Keep);
        }
        // A dip that is not deep holds it up and does not start over.
        hot_for.observe(sizes.split_load - 1, &sizes);
        assert_eq!(decide(0, hot_for, &sample), Split::Keep);
        let mut cooled = hot_for;
        hot_for.observe(sizes.split_load + 1, &sizes);
        assert!(matches!(decide(0, hot_for, &sample), Split::ForLoad { .. }));
        assert_eq!(decide(0, hot_for, &sample[..0]), Split::Keep, "without a sample nothing is known");
        cooled.observe(sizes.split_load / 2, &sizes);
        cooled.observe(sizes.split_load + 1, &sizes);
        assert_eq!(decide(0, cooled, &sample), Split::Keep);
        assert_eq!(decide(sizes.split_bytes + 1, HotFor::default(), &[]), Split::ForBytes);
    }

    #[test]
    fn neighbours_are_merged_when_they_have_been_small_and_cold_for_long() {
        let sizes = Sizes::default();
        let pair = Neighbours {
            bytes: sizes.split_bytes / 4 - 1,
            load: sizes.split_load / 4 - 1,
            small_for: sizes.merge_after,
            unasked: true,
        };
        assert!(merge_wanted(&pair, &sizes));
        assert!(!merge_wanted(&Neighbours { bytes: pair.bytes + 1, ..pair }, &sizes));
        assert!(!merge_wanted(&Neighbours { load: pair.load + 1, ..pair }, &sizes));
        assert!(!merge_wanted(&Neighbours { small_for: pair.small_for / 2, ..pair }, &sizes));
        assert!(!merge_wanted(&Neighbours { unasked: false, ..pair }, &sizes));
    }

    proptest! {
        #[test]
        fn a_split_for_load_helps_and_is_the_best_there_is(
            keys in vec(("[a-d]{0,2}/?[a-c]{0,2}", 1u64..200), 1..40), kind in 0usize..3,
        ) {
            let layout = match kind {
                0 => layout(Partitioning::Hash),
                1 => range(None),
                _ => range(Some("/")),
            };
            let keys: std::collections::BTreeMap<String, u64> = keys.into_iter().collect();
            let keys: Vec<(&str, u64)> = keys.iter().map(|(key, &count)| (key.as_str(), count)).collect();
            let total: u64 = keys.iter().map(|(_, count)| count).sum();
            let (start, end) = layout.table_range();
            let sample = sample(&layout, &keys);
            let left_of = |at: &[u8]| -> u64 {
                sample.iter().filter(|(key, _)| &key[..] < at).map(|(_, count)| count).sum()
            };
            let larger = |at: &[u8]| left_of(at).max(total - left_of(at));
            let cuts = || keys.iter().map(|(key, _)| layout.cut_before(key.as_bytes()));
            let allowed = |cut: &Bytes| layout.check_cut(&start, &end, cut).is_ok();
            match decide(&layout, &keys) {
                Split::ForLoad { at, left_percent } => {
                    prop_assert!(allowed(&at));
                    prop_assert_eq!(left_percent, left_of(&at) * 100 / total);
                    prop_assert!(larger(&at) * 100 / total <= SIDE_PERCENT_MAX);
                    prop_assert!(cuts().filter(allowed).all(|cut| larger(&cut) >= larger(&at)));
                }
                Split::OneHotKey { key, percent } => {
                    prop_assert!(percent > 60, "{percent} percent are not what keeps it from being divided");
                    prop_assert!(sample.iter().any(|(known, _)| *known == key));
                    prop_assert!(cuts().filter(allowed).all(|cut| larger(&cut) * 100 / total > SIDE_PERCENT_MAX));
                }
                Split::Keep => prop_assert!(total < SAMPLE_MIN),
                Split::ForBytes => prop_assert!(false, "it holds no bytes"),
            }
        }

        #[test]
        fn a_sample_is_bounded_and_sorted_and_fair(
            rare in 1u64..2_000, often in 1u64..2_000, seed: u64,
        ) {
            let mut taken = KeySample::default();
            let mut random = seed;
            let mut next = || {
                // SplitMix64.
                random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let mixed = (random ^ (random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                mixed ^ (mixed >> 31)
            };
            for at in 0..rare + often {
                taken.record(if at < rare { b"rare" } else { b"often" }, next());
            }
            let counts = taken.take();
            let kept: u64 = counts.iter().map(|(_, count)| count).sum();
            prop_assert_eq!(kept, (rare + often).min(SAMPLE_MAX as u64));
            prop_assert!(counts.windows(2).all(|pair| pair[0].0 < pair[1].0));
            // Six standard deviations around what is expected.
            let expected = kept as f64 * rare as f64 / (rare + often) as f64;
            let seen = counts.iter().find(|(key, _)| key.as_ref() == b"rare").map_or(0, |&(_, count)| count);
            let far = 6.0 * (SAMPLE_MAX as f64).sqrt() / 2.0;
            prop_assert!((seen as f64 - expected).abs() <= far, "{seen}, not {expected}");
            prop_assert!(taken.take().is_empty());
        }
    }
}
