//! Where a scan goes on: an opaque mark that is refused when it was altered or belongs to another scan.
//!
//! It holds an encoded key and nothing about shards, so it survives splits, merges and moves between two pages. The
//! checksum is against accidents; against malice it is enough that the key must lie within the scan it is used for.

use bytes::{BufMut, Bytes};

use super::Layout;
use crate::types::{Error, Partitioning, Reason, Result, ScanBounds};

const FORMAT: u8 = 1;

/// A position in a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanCursor {
    /// Ascending: the first encoded key not visited yet. Descending: the first encoded key that is already done with
    /// (the page goes on with the keys before it).
    pub next: Bytes,
}

impl ScanCursor {
    /// The bytes handed to the user, good for this scan only.
    pub fn encode(&self, layout: &Layout, bounds: &ScanBounds, reverse: bool) -> Bytes {
        let mut out = Vec::with_capacity(9 + self.next.len());
        out.put_u8(FORMAT);
        out.put_u32(fingerprint(layout, bounds, reverse));
        out.put_slice(&self.next);
        out.put_u32(crc32fast::hash(&out));
        Bytes::from(out)
    }

    /// The position in these bytes. `INVALID_CURSOR` if they were altered, come from another scan, or point outside
    /// of this one; `INVALID_REQUEST` if the bounds themselves are wrong.
    pub fn decode(bytes: &[u8], layout: &Layout, bounds: &ScanBounds, reverse: bool) -> Result<ScanCursor> {
        let refuse =
            |what: &str| Err(Error::new(Reason::InvalidCursor, format!("the cursor {what}: begin the scan again")));
        let Some((body, checksum)) = bytes.split_last_chunk::<4>() else {
            return refuse("is too short");
        };
        if u32::from_be_bytes(*checksum) != crc32fast::hash(body) {
            return refuse("was altered");
        }
        let Some((&FORMAT, body)) = body.split_first() else {
            return refuse("is of another version");
        };
        let Some((scan, next)) = body.split_first_chunk::<4>() else {
            return refuse("is too short");
        };
        if u32::from_be_bytes(*scan) != fingerprint(layout, bounds, reverse) {
            return refuse("belongs to a scan of another table, of other bounds or in the other direction");
        }
        let plan = layout.scan_range(bounds)?;
        if !plan.ranges.iter().any(|(start, end)| &start[..] <= next && next <= &end[..]) {
            return refuse("points outside of the scan");
        }
        Ok(ScanCursor { next: Bytes::copy_from_slice(next) })
    }
}

/// Tells scans apart. Page sizes, counting and freshness may change from page to page, what is visited may not.
pub(super) fn fingerprint(layout: &Layout, bounds: &ScanBounds, reverse: bool) -> u32 {
    let mut out = Vec::new();
    out.put_u32(layout.table.0);
    out.put_u8(u8::from(layout.partitioning == Partitioning::Hash));
    out.put_u8(u8::from(reverse));
    // Length first, so that two neighbours never read as two others.
    let mut put = |bytes: Option<&Bytes>| match bytes {
        None => out.put_u8(0),
        Some(bytes) => {
            out.put_u8(1);
            out.put_u64(bytes.len() as u64);
            out.put_slice(bytes);
        }
    };
    match bounds {
        ScanBounds::All => {}
        ScanBounds::Tag(tag) => put(Some(tag)),
        ScanBounds::Prefix(prefix) => {
            put(None);
            put(Some(prefix));
        }
        ScanBounds::Range(from, to) => {
            put(None);
            put(None);
            put(from.as_ref());
            put(to.as_ref());
        }
    }
    crc32fast::hash(&out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::TableId;

    fn layout() -> Layout {
        Layout { table: TableId(3), partitioning: Partitioning::Range { group_delimiter: None } }
    }

    fn prefix(text: &str) -> ScanBounds {
        ScanBounds::Prefix(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn a_cursor_is_golden() {
        let cursor = ScanCursor { next: layout().encode(b"k") };
        let bytes = cursor.encode(&layout(), &ScanBounds::All, false);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "01b3841ffa000000036b0001f5150562");
        assert_eq!(ScanCursor::decode(&bytes, &layout(), &ScanBounds::All, false), Ok(cursor));
    }

    #[test]
    fn the_end_of_a_scan_is_a_position_in_it() {
        let (start, end) = layout().table_range();
        for next in [start, end] {
            let cursor = ScanCursor { next };
            let bytes = cursor.encode(&layout(), &ScanBounds::All, true);
            assert_eq!(ScanCursor::decode(&bytes, &layout(), &ScanBounds::All, true), Ok(cursor));
        }
    }

    #[test]
    fn a_cursor_of_another_scan_is_refused() {
        let cursor = ScanCursor { next: layout().encode(b"ab") };
        let bytes = cursor.encode(&layout(), &prefix("a"), false);
        let other = Layout { table: TableId(4), ..layout() };
        let some = |text: &str| Some(Bytes::copy_from_slice(text.as_bytes()));
        for (layout, bounds, reverse) in [
            (&layout(), prefix("a"), true),
            (&layout(), prefix("ab"), false),
            (&layout(), ScanBounds::All, false),
            (&layout(), ScanBounds::Range(some("a"), None), false),
            (&layout(), ScanBounds::Range(None, some("b")), false),
            (&other, prefix("a"), false),
        ] {
            let error = ScanCursor::decode(&bytes, layout, &bounds, reverse).expect_err("refused");
            assert_eq!(error.reason, Reason::InvalidCursor);
        }
    }

    #[test]
    fn a_forged_position_outside_of_the_scan_is_refused() {
        let cursor = ScanCursor { next: layout().encode(b"z") };
        let bytes = cursor.encode(&layout(), &prefix("a"), false);
        let error = ScanCursor::decode(&bytes, &layout(), &prefix("a"), false).expect_err("outside");
        assert_eq!(error.reason, Reason::InvalidCursor);
    }

    proptest! {
        #[test]
        fn an_altered_cursor_is_refused(at in 0usize..64, bit in 0u8..8, cut in 0usize..64, rest in "[a-z]{0,8}") {
            let cursor = ScanCursor { next: layout().encode(format!("a{rest}").as_bytes()) };
            let good = cursor.encode(&layout(), &prefix("a"), false);
            prop_assert_eq!(ScanCursor::decode(&good, &layout(), &prefix("a"), false)?, cursor);
            let mut flipped = good.to_vec();
            let at = at % flipped.len();
            flipped[at] ^= 1 << bit;
            let shorter = &good[..cut % good.len()];
            for bad in [&flipped[..], shorter] {
                let error = ScanCursor::decode(bad, &layout(), &prefix("a"), false).expect_err("refused");
                prop_assert_eq!(error.reason, Reason::InvalidCursor);
            }
        }
    }
}
