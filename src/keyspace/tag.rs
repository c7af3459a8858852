//! Tags and slots: which keys of a hash table stay together, and where.

use crate::types::Slot;

/// The part of a key that decides its slot: what stands between the first `{` and the first `}` after it, if that is
/// not empty, else the whole key. The rule is that of Redis Cluster, so keys made for it keep their neighbours.
pub fn tag(key: &[u8]) -> &[u8] {
    explicit_tag(key).unwrap_or(key)
}

/// The tag written in braces, if the key has one. Whatever follows the closing brace does not change it.
pub(super) fn explicit_tag(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|&byte| byte == b'{')?;
    let inside = &key[open + 1..];
    match inside.iter().position(|&byte| byte == b'}') {
        None | Some(0) => None,
        Some(length) => Some(&inside[..length]),
    }
}

/// The slot of a key: the high 16 bits of the CRC-32 of its tag.
pub fn slot(key: &[u8]) -> Slot {
    slot_of_tag(tag(key))
}

/// The slot of all keys with this tag.
pub(super) fn slot_of_tag(tag: &[u8]) -> Slot {
    // The high half: equal slot ranges then cut the CRC space itself into equal ranges.
    Slot((crc32fast::hash(tag) >> 16) as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_tag_follows_the_rule_of_redis_cluster() {
        for (key, expected) in [
            ("user1000", "user1000"),
            ("{user1000}.following", "user1000"),
            ("x{user1000}y{z}", "user1000"),
            ("foo{}{bar}", "foo{}{bar}"),
            ("foo{{bar}}zap", "{bar"),
            ("foo{bar", "foo{bar"),
            ("foo}bar{", "foo}bar{"),
            ("a}b{c}", "c"),
            ("", ""),
        ] {
            assert_eq!(tag(key.as_bytes()), expected.as_bytes(), "{key}");
        }
    }

    /// These numbers are on disk in every hash table: if they change, no key is found again.
    #[test]
    fn slots_are_golden() {
        // CRC-32 of "123456789" is CBF43926, the check value of the algorithm.
        assert_eq!(slot(b"123456789"), Slot(0xCBF4));
        assert_eq!(slot(b"x{123456789}y"), Slot(0xCBF4));
        assert_eq!(slot(b""), Slot(0));
        assert_eq!(slot(b"user1000"), slot(b"{user1000}.followers"));
    }

    #[test]
    fn slots_are_spread_evenly() {
        let mut counts = [0u32; 8];
        for n in 0..80_000 {
            counts[usize::from(slot(format!("key-{n}").as_bytes()).0 >> 13)] += 1;
        }
        for count in counts {
            assert!((9_500..10_500).contains(&count), "{counts:?}");
        }
    }

    proptest! {
        #[test]
        fn siblings_share_a_slot(tag in "[^{}]{1,12}", before in "[^{}]{0,6}", after in ".{0,12}", other in ".{0,12}") {
            let one = format!("{before}{{{tag}}}{after}");
            let two = format!("{{{tag}}}{other}");
            prop_assert_eq!(super::tag(one.as_bytes()), tag.as_bytes());
            prop_assert_eq!(slot(one.as_bytes()), slot(two.as_bytes()));
            prop_assert_eq!(slot(one.as_bytes()), slot_of_tag(tag.as_bytes()));
        }
    }
}
