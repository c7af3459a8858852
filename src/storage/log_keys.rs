//! Keys of the families `Log` and `Raft`.
//!
//! ```text
//! Log    group (u64 BE) ‖ index (u64 BE)      one log entry
//! Raft   'v' ‖ group (u64 BE)                 the vote
//!        'c' ‖ group                          the committed index, a hint
//!        'p' ‖ group                          what the log was purged up to, with the state to go on from
//!        'r' ‖ shard (u64 BE)                 the record of a replica hosted here
//!        'n' ‖ name                           what the node itself keeps (its identity)
//! ```
//! A whole group is one contiguous range of `Log`, so truncation, purge and removal are range deletions.

use bytes::{BufMut, Bytes, BytesMut};

use crate::types::ShardId;

/// Bytes of the key of a log entry.
pub const ENTRY_BYTES: usize = 16;

/// The key of a log entry.
pub fn entry(group: ShardId, index: u64) -> Bytes {
    Bytes::copy_from_slice(&entry_array(group, index))
}

/// The same on the stack.
pub fn entry_array(group: ShardId, index: u64) -> [u8; ENTRY_BYTES] {
    let mut key = [0; ENTRY_BYTES];
    key[..8].copy_from_slice(&group.0.to_be_bytes());
    key[8..].copy_from_slice(&index.to_be_bytes());
    key
}

/// The group and index a key of family `Log` stands for.
pub fn entry_split(key: &[u8]) -> Option<(ShardId, u64)> {
    let (group, index) = key.split_first_chunk::<8>()?;
    Some((ShardId(u64::from_be_bytes(*group)), u64::from_be_bytes(index.try_into().ok()?)))
}

/// The range of the entries `[from, to)` of a group; `to = u64::MAX` means to the end of the group's log.
pub fn entries_range(group: ShardId, from: u64, to: u64) -> (Bytes, Bytes) {
    let end = if to == u64::MAX { after_group(group) } else { entry(group, to) };
    (entry(group, from), end)
}

/// The end of everything a group has in `Log`, exclusive; bounded, so that no other group is ever touched.
fn after_group(group: ShardId) -> Bytes {
    match group.0.checked_add(1) {
        Some(next) => Bytes::copy_from_slice(&next.to_be_bytes()),
        None => Bytes::from_static(&[0xFF; ENTRY_BYTES + 1]),
    }
}

fn raft_key(kind: u8, id: u64) -> Bytes {
    let mut key = [kind; 9];
    key[1..].copy_from_slice(&id.to_be_bytes());
    Bytes::copy_from_slice(&key)
}

/// The key of a group's vote.
pub fn vote(group: ShardId) -> Bytes {
    raft_key(b'v', group.0)
}

/// The key of a group's committed index.
pub fn committed(group: ShardId) -> Bytes {
    raft_key(b'c', group.0)
}

/// The key of a group's purge state.
pub fn purged(group: ShardId) -> Bytes {
    raft_key(b'p', group.0)
}

/// The key of the record of a replica hosted here.
pub fn replica(shard: ShardId) -> Bytes {
    raft_key(b'r', shard.0)
}

/// The range of the records of all replicas hosted here.
pub fn replicas_range() -> (Bytes, Bytes) {
    (Bytes::from_static(b"r"), Bytes::from_static(b"s"))
}

/// The shard a replica record's key stands for.
pub fn replica_split(key: &[u8]) -> Option<ShardId> {
    let (&kind, id) = key.split_first()?;
    (kind == b'r').then_some(ShardId(u64::from_be_bytes(id.try_into().ok()?)))
}

/// The key of something the node itself keeps in `Raft`.
pub fn node(name: &str) -> Bytes {
    let mut key = BytesMut::with_capacity(1 + name.len());
    key.put_u8(b'n');
    key.put_slice(name.as_bytes());
    key.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entries_of_a_group_are_one_range() {
        let group = ShardId(7);
        let (start, end) = entries_range(group, 0, u64::MAX);
        for index in [0, 1, 255, 256, u64::MAX] {
            let key = entry(group, index);
            assert!(start <= key && key < end);
            assert_eq!(entry_split(&key), Some((group, index)));
        }
        assert!(entry(ShardId(6), u64::MAX) < start);
        assert!(entry(ShardId(8), 0) >= end);
        let (start, end) = entries_range(group, 5, 9);
        assert_eq!((start, end), (entry(group, 5), entry(group, 9)));
        let (_, end) = entries_range(ShardId(u64::MAX), 0, u64::MAX);
        assert!(entry(ShardId(u64::MAX), u64::MAX) < end);
        assert_eq!(entry_split(b"short"), None);
    }

    #[test]
    fn keys_of_family_raft_are_as_documented() {
        assert_eq!(&vote(ShardId(1))[..], b"v\0\0\0\0\0\0\0\x01");
        assert_eq!(&committed(ShardId(2))[..], b"c\0\0\0\0\0\0\0\x02");
        assert_eq!(&purged(ShardId(3))[..], b"p\0\0\0\0\0\0\0\x03");
        assert_eq!(&replica(ShardId(4))[..], b"r\0\0\0\0\0\0\0\x04");
        assert_eq!(&node("identity")[..], b"nidentity");
        assert_eq!(replica_split(&replica(ShardId(4))), Some(ShardId(4)));
        assert_eq!(replica_split(&vote(ShardId(4))), None);
        let (start, end) = replicas_range();
        assert!(start < replica(ShardId(0)) && replica(ShardId(u64::MAX)) < end);
    }
}
