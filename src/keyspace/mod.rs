//! Floor 1: the one ordered keyspace.
//!
//! Every key of every table becomes one *encoded key*, and all encoded keys lie in one order. A hash slot is nothing
//! but a prefix of the encoded key, so a shard of any table owns exactly one contiguous range, and locating,
//! scanning, splitting, copying and following have one implementation each. "Hash" and "range" are words that only
//! this module knows; everybody else asks a [`Layout`].
//!
//! ```text
//! encoded key = table id (u32 BE) ‖ [slot (u16 BE), hash tables only] ‖ escaped user key ‖ 00 01
//! data key    = encoded key ‖ !timestamp (u64 BE: the newest version of a key comes first)
//! slot        = high 16 bits of CRC-32 (IEEE, as in zlib) of the tag
//! tag         = what stands between the first '{' and the first '}' after it, if not empty, else the whole key
//! escaping    = each byte 00 becomes 00 FF, every other byte stays; 00 01 ends the key
//! outcome     = FFFFFFF0 ‖ encoded key ‖ client (u64 BE) ‖ sequence (u64 BE) ‖ time of issue (u64 BE)
//! applied     = FFFFFFF1 ‖ shard id (u64 BE)
//! cursor      = 01 ‖ fingerprint of the scan (u32 BE) ‖ encoded key ‖ CRC-32 of all before (u32 BE)
//! ```
//!
//! Invariants
//! - Encoding keeps the order of user keys (within a slot, for hash tables) and is undone exactly by decoding.
//! - No encoded key is a prefix of another, and no boundary that this module makes has an encoded key as a proper
//!   prefix. So a range of encoded keys is, byte for byte, the range of their data keys, and behind the prefix
//!   `FFFFFFF0` the range of their outcomes: what a shard owns goes along with it wherever it goes.
//! - Keys of one [atom](Layout::atom) (a tag, or a group of a range table) are never parted by a boundary made here.
//! - A [`ShardMap`] is total: every encoded key of its table lies in exactly one of its shards.
//!
//! How a request passes: the client and the node turn the user's key into an encoded key with the table's layout,
//! find the shard in the table's map, and from there on only encoded keys are spoken of; answers are decoded at the
//! node that made them. A scan becomes a [`ScanPlan`] of encoded ranges and, where the order of encoded keys is not
//! that of user keys, a [`Filter`].
//!
//! Left out: who holds a shard (catalog), what lies in one (storage). Everything here is pure.

mod changes_cursor;
mod cursor;
mod cut;
mod escape;
mod layout;
mod scan;
mod shard_map;
pub mod side;
mod tag;
pub mod version;
mod watermarks;

pub use changes_cursor::{CHANGES_CURSOR_BYTES_MAX, ChangesCursor, Part};
pub use cursor::ScanCursor;
pub use layout::Layout;
pub use scan::{Filter, ScanPlan};
pub use shard_map::ShardMap;
pub use tag::{slot, tag};
pub use watermarks::{Watermark, Watermarks};

use bytes::Bytes;

/// The first key that is greater than every key beginning with `prefix`; none if the prefix is empty or all `FF`.
pub fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|&byte| byte != 0xFF)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(Bytes::from(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_comes_right_after_its_keys() {
        assert_eq!(prefix_end(b"ab").as_deref(), Some(&b"ac"[..]));
        assert_eq!(prefix_end(&[1, 0xFF, 0xFF]).as_deref(), Some(&[2][..]));
        assert_eq!(prefix_end(&[0xFF, 0xFF]), None);
        assert_eq!(prefix_end(b""), None);
    }
}
