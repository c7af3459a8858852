//! Keys: of users, encoded, of versions, of side records, of the log, of the system table, and cursors.
//!
//! What must hold: decoding undoes encoding; what can be decoded was encoded; order is kept wherever it is promised; a
//! scan's plan covers exactly what was asked for; slots and tags follow the rule, which is said here a second time.
#![no_main]

mod support;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use support::Pieces;
use trivet::catalog::RowKey;
use trivet::keyspace::{Layout, ScanCursor, ShardMap, prefix_end, side, slot, tag, version};
use trivet::storage::log_keys;
use trivet::types::{Partitioning, Reason, RequestId, ScanBounds, ShardDescriptor, ShardId, Slot, TableId, Timestamp};

fuzz_target!(|data: &[u8]| support::frugally(data, 1 << 20, check));

fn check(data: &[u8]) {
    let mut input = Pieces(data);
    let table = TableId(input.number() as u32 % TableId::RESERVED);
    let choices = input.byte();
    let (early, late) = (Timestamp(input.number()), Timestamp(input.number()));
    let (one, two) = (input.piece(), input.piece());
    let rest = input.0;

    the_tag_rule(one);
    siblings(one, two, rest);
    log_keys_are_undone(data, early.0, late.0);
    if let Ok(Some(key)) = RowKey::parse(rest) {
        assert_eq!(key.encode(), rest, "{key:?}");
    }
    for layout in layouts(table) {
        let encoded = [one, two].map(|key| encoded_key(&layout, key));
        if layout.partitioning != Partitioning::Hash || slot(one) == slot(two) {
            assert_eq!(encoded[0].cmp(&encoded[1]), one.cmp(two), "{layout:?} {one:?} {two:?}");
        }
        assert_eq!(encoded[0].starts_with(&encoded[1]), one == two, "no encoded key is a prefix of another");
        versions(&encoded, early, late);
        side_records(&encoded, early.0, late.0);
        strangers(&layout, rest);
        scans(&layout, choices, one, two, rest);
        first_shards(&layout, early.0, [one, two], rest);
    }
}

fn layouts(table: TableId) -> impl Iterator<Item = Layout> {
    let range = |delimiter: Option<&str>| Partitioning::Range { group_delimiter: delimiter.map(str::to_owned) };
    [Partitioning::Hash, range(None), range(Some("/")), range(Some("ab")), range(Some("aa"))]
        .into_iter()
        .map(move |partitioning| Layout { table, partitioning })
}

/// The rule of Redis Cluster and the CRC of zlib, said a second time and bit by bit.
fn the_tag_rule(key: &[u8]) {
    let text: Vec<u8> = key.to_vec();
    let mut expected = &text[..];
    if let Some(open) = text.iter().position(|&byte| byte == b'{') {
        let inside = &text[open + 1..];
        match inside.split(|&byte| byte == b'}').next() {
            Some(between) if !between.is_empty() && between.len() < inside.len() => expected = between,
            _ => {}
        }
    }
    assert_eq!(tag(key), expected);
    assert_eq!(tag(tag(key)), tag(key), "a tag is its own tag");
    let mut crc = !0u32;
    for byte in expected {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    assert_eq!(slot(key), Slot((!crc >> 16) as u16));
}

/// Keys with the same written tag lie in one slot, in their own order, behind one prefix.
fn siblings(tagged: &[u8], one: &[u8], two: &[u8]) {
    if tagged.is_empty() || tagged.contains(&b'}') {
        return;
    }
    let layout = Layout { table: TableId(7), partitioning: Partitioning::Hash };
    let [one, two] = [one, two].map(|rest| [b"{", tagged, b"}", rest].concat());
    for key in [&one, &two] {
        assert_eq!((tag(key), layout.atom(key), slot(key)), (tagged, tagged, slot(tagged)));
    }
    assert_eq!(layout.encode(&one).cmp(&layout.encode(&two)), one.cmp(&two));
}

fn encoded_key(layout: &Layout, key: &[u8]) -> Bytes {
    let encoded = layout.encode(key);
    let (start, end) = layout.table_range();
    assert!(start <= encoded && encoded < end, "{layout:?} {key:?}");
    assert_eq!(layout.decode(&encoded).expect("it was just encoded"), key);
    let atom = layout.atom(key);
    assert_eq!(layout.atom(atom), atom, "an atom is its own atom");
    encoded
}

/// Bytes that may be an encoded key: as they are, behind the table's id, behind the slot of what they spell.
fn strangers(layout: &Layout, bytes: &[u8]) {
    let behind = |head: &[&[u8]]| [&layout.table.0.to_be_bytes()[..], &head.concat(), bytes].concat();
    for candidate in [bytes.to_vec(), behind(&[])] {
        if let Ok(key) = layout.decode(&candidate) {
            assert_eq!(layout.encode(&key), candidate);
        }
    }
    if layout.partitioning == Partitioning::Hash {
        let ordered = Layout { table: layout.table, partitioning: Partitioning::Range { group_delimiter: None } };
        if let Ok(key) = ordered.decode(&behind(&[])) {
            let own = slot(&key).0;
            assert_eq!(layout.decode(&behind(&[&own.to_be_bytes()])).expect("under its own slot"), key);
            let other = own.wrapping_add(1).to_be_bytes();
            let error = layout.decode(&behind(&[&other])).expect_err("under another's slot");
            assert_eq!(error.reason, Reason::Corruption);
        }
    }
    let words = layout.describe(bytes, &behind(&[]));
    assert!(!words.is_empty());
}

/// Versions of a key lie newest first between its bounds, and apart from every other key's.
fn versions(encoded: &[Bytes; 2], early: Timestamp, late: Timestamp) {
    let [one, two] = encoded;
    let data = version::key(one, early);
    assert_eq!(version::split(&data), Some((&one[..], early)));
    assert_eq!(version::prefix(&data), &one[..]);
    assert_eq!(data.cmp(&version::key(one, late)), late.cmp(&early));
    assert!(version::lower(one) <= data && data < version::upper(one));
    if one != two {
        assert_eq!(data.cmp(&version::key(two, late)), one.cmp(two));
        let (first, second) = if one < two { (one, two) } else { (two, one) };
        assert!(version::upper(first) <= version::lower(second));
    }
    assert!(prefix_end(one).is_none_or(|end| !end.starts_with(one) && end > one));
}

fn side_records(encoded: &[Bytes; 2], client: u64, sequence: u64) {
    let [anchor, bound] = encoded;
    let request = RequestId { client, sequence, issued_ms: client ^ sequence };
    let key = side::outcome(anchor, &request);
    assert_eq!(side::outcome_split(&key), Some((&anchor[..], request)));
    let (from, to) = side::outcome_range(&anchor[..4], bound);
    assert_eq!(from <= key && key < to, anchor < bound, "an outcome lies where its anchor lies");
}

fn log_keys_are_undone(bytes: &[u8], group: u64, index: u64) {
    if let Some((anchor, request)) = side::outcome_split(bytes) {
        assert_eq!(side::outcome(anchor, &request), bytes);
    }
    if let Some((group, index)) = log_keys::entry_split(bytes) {
        assert_eq!(log_keys::entry(group, index), bytes);
    }
    if let Some(shard) = log_keys::replica_split(bytes) {
        assert_eq!(log_keys::replica(shard), bytes);
    }
    let (group, key) = (ShardId(group), log_keys::entry(ShardId(group), index));
    assert_eq!(log_keys::entry_split(&key), Some((group, index)));
    let (start, end) = log_keys::entries_range(group, 0, u64::MAX);
    assert!(start <= key && key < end);
}

fn bounds_of(choices: u8, one: &[u8], two: &[u8]) -> ScanBounds {
    let [one, two] = [one, two].map(Bytes::copy_from_slice);
    match choices % 8 {
        0 => ScanBounds::All,
        1 => ScanBounds::Tag(one),
        2 => ScanBounds::Prefix(one),
        3 => ScanBounds::Range(Some(one), Some(two)),
        4 => ScanBounds::Range(Some(one), None),
        5 => ScanBounds::Range(None, Some(two)),
        6 => ScanBounds::Range(None, None),
        // Both below one tag, which free choice would seldom hit.
        _ => {
            let tagged = |rest: &Bytes| Some(Bytes::from([b"{t}", &rest[..]].concat()));
            ScanBounds::Range(tagged(&one), tagged(&two))
        }
    }
}

/// What a scan means, said a second time and without ranges.
fn wanted(layout: &Layout, bounds: &ScanBounds, key: &[u8]) -> bool {
    match bounds {
        ScanBounds::All => true,
        ScanBounds::Prefix(prefix) => key.starts_with(prefix),
        ScanBounds::Range(from, to) => {
            from.as_ref().is_none_or(|from| key >= &from[..]) && to.as_ref().is_none_or(|to| key < &to[..])
        }
        ScanBounds::Tag(named) => match &layout.partitioning {
            Partitioning::Hash => tag(key) == named,
            Partitioning::Range { group_delimiter } => {
                let delimiter = group_delimiter.as_deref().unwrap_or_default().as_bytes();
                let whole = if named.ends_with(delimiter) { named.to_vec() } else { [named, delimiter].concat() };
                layout.atom(key) == whole
            }
        },
    }
}

/// A plan covers exactly what was asked for, and a cursor is good for the scan it was made for and for no other.
fn scans(layout: &Layout, choices: u8, one: &[u8], two: &[u8], rest: &[u8]) {
    let bounds = bounds_of(choices, one, two);
    let reverse = choices & 0x80 != 0;
    let foreign = ScanCursor::decode(rest, layout, &bounds, reverse);
    let plan = match layout.scan_range(&bounds) {
        Ok(plan) => plan,
        Err(error) => {
            assert!(matches!(bounds, ScanBounds::Tag(_)), "{bounds:?}: {error}");
            assert_eq!(error.reason, Reason::InvalidRequest);
            return;
        }
    };
    if let Ok(cursor) = foreign {
        assert_eq!(cursor.encode(layout, &bounds, reverse), rest);
    }
    assert!(plan.ranges.is_sorted_by(|before, after| before.1 <= after.0), "ranges ascend and lie apart");
    let below = |key: &[u8]| [b"{t}", key].concat();
    for key in [one.to_vec(), two.to_vec(), rest.to_vec(), below(rest), [one, rest].concat()] {
        let encoded = layout.encode(&key);
        let inside = plan.ranges.iter().any(|(start, end)| *start <= encoded && encoded < *end);
        let covered = inside && plan.filter.as_ref().is_none_or(|filter| filter.matches(&key));
        assert_eq!(covered, wanted(layout, &bounds, &key), "{layout:?} {bounds:?} {key:?}");

        let cursor = ScanCursor { next: encoded };
        let bytes = cursor.encode(layout, &bounds, reverse);
        let at_an_end = plan.ranges.iter().any(|(_, end)| *end == cursor.next);
        match ScanCursor::decode(&bytes, layout, &bounds, reverse) {
            Ok(decoded) => assert!((inside || at_an_end) && decoded == cursor),
            Err(error) => assert!(!inside && error.reason == Reason::InvalidCursor, "{error}"),
        }
        assert!(ScanCursor::decode(&bytes, layout, &bounds, !reverse).is_err(), "the other direction");
    }
}

/// The shards a table begins with hold every key exactly once and tear no atom apart.
fn first_shards(layout: &Layout, number: u64, keys: [&[u8]; 2], cut: &[u8]) {
    let hashed = layout.partitioning == Partitioning::Hash;
    let points: Vec<Bytes> = cut.chunks(5).take(4).map(Bytes::copy_from_slice).collect();
    let shards = (number % 40) as u32;
    let made = if hashed { layout.initial_ranges(shards, &[]) } else { layout.initial_ranges(0, &points) };
    let ranges = match made {
        Ok(ranges) => ranges,
        Err(error) => {
            assert_eq!(error.reason, Reason::InvalidRequest);
            return;
        }
    };
    assert_eq!(ranges.len(), if hashed { shards as usize } else { points.len() + 1 });
    let shards = ranges.into_iter().enumerate().map(|(number, (start, end))| {
        ShardDescriptor::new(ShardId(number as u64), layout.table, (start.to_vec(), end.to_vec()), Vec::new())
    });
    let map = ShardMap::new(shards, layout).expect("the first shards are a total map");
    for key in keys {
        let encoded = layout.encode(key);
        let owner = map.locate(&encoded);
        assert_eq!(map.iter().filter(|shard| shard.contains(&encoded)).count(), 1);
        assert!(owner.contains(&encoded));
        assert_eq!(map.locate(&layout.encode(layout.atom(key))).id, owner.id, "an atom is never torn apart");
        let overlapping: Vec<ShardId> =
            map.overlapping(&encoded, &version::upper(&encoded)).map(|shard| shard.id).collect();
        assert_eq!(overlapping, [owner.id]);
    }
}
