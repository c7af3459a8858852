//! The order-preserving, self-delimiting form of a user key.
//!
//! Each byte `00` becomes `00 FF`, every other byte stays, and `00 01` ends the key. The end sorts before anything
//! that could go on, so the order of the escaped forms is the order of the keys, and since `00` is always followed
//! by `FF` inside a key and by `01` only at its end, no escaped key is a prefix of another. A key of text grows by
//! two bytes only (the group form of TiKV and MyRocks would take between one and nine).

use bytes::{BufMut, Bytes};

use crate::types::{Error, Reason, Result};

const ESCAPED_ZERO: [u8; 2] = [0x00, 0xFF];
/// What ends an escaped key.
pub(super) const END: [u8; 2] = [0x00, 0x01];

/// Appends the escaped form of `key` without its end: the common prefix of all keys that begin with `key`.
pub(super) fn put_prefix(out: &mut Vec<u8>, key: &[u8]) {
    let mut rest = key;
    while let Some(zero) = rest.iter().position(|&byte| byte == 0) {
        out.put_slice(&rest[..zero]);
        out.put_slice(&ESCAPED_ZERO);
        rest = &rest[zero + 1..];
    }
    out.put_slice(rest);
}

/// Appends the escaped form of `key`.
pub(super) fn put(out: &mut Vec<u8>, key: &[u8]) {
    put_prefix(out, key);
    out.put_slice(&END);
}

/// The key whose escaped form is exactly `escaped`; `CORRUPTION` if there is none.
pub(super) fn take(escaped: &[u8]) -> Result<Bytes> {
    let Some(body) = escaped.strip_suffix(&END) else {
        return Err(broken("it has no end"));
    };
    if !body.contains(&0) {
        return Ok(Bytes::copy_from_slice(body));
    }
    let mut key = Vec::with_capacity(body.len());
    let mut bytes = body.iter();
    while let Some(&byte) = bytes.next() {
        if byte == 0 && bytes.next() != Some(&0xFF) {
            return Err(broken("it holds a zero byte that is not escaped"));
        }
        key.push(byte);
    }
    Ok(Bytes::from(key))
}

fn broken(what: &str) -> Error {
    Error::new(Reason::Corruption, format!("a stored key cannot be decoded: {what}"))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn escaped(key: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, key);
        out
    }

    #[test]
    fn escaped_forms_are_golden() {
        assert_eq!(escaped(b""), [0, 1]);
        assert_eq!(escaped(b"ab"), [b'a', b'b', 0, 1]);
        assert_eq!(escaped(b"a\0"), [b'a', 0, 0xFF, 0, 1]);
        assert_eq!(escaped(b"\0\xFF\x01"), [0, 0xFF, 0xFF, 1, 0, 1]);
    }

    #[test]
    fn what_is_no_escaped_key_is_refused() {
        for bytes in [&b""[..], b"a", b"a\0", b"a\0\xFF", b"a\0\x01\0\x01", b"\0\x02\0\x01", b"a\0\0\x01"] {
            let error = take(bytes).expect_err("no escaped key");
            assert_eq!(error.reason, Reason::Corruption, "{bytes:?}");
        }
    }

    /// Keys rich in the bytes that matter here.
    pub(crate) fn keys() -> impl Strategy<Value = Vec<u8>> {
        vec(prop_oneof![Just(0u8), Just(1), Just(0xFE), Just(0xFF), Just(b'/'), any::<u8>()], 0..12)
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(key in keys()) {
            prop_assert_eq!(take(&escaped(&key))?, key);
        }

        #[test]
        fn order_is_kept_and_no_form_is_a_prefix_of_another(one in keys(), two in keys()) {
            prop_assert_eq!(one.cmp(&two), escaped(&one).cmp(&escaped(&two)));
            prop_assert_eq!(one == two, escaped(&one).starts_with(&escaped(&two)));
        }

        #[test]
        fn what_can_be_decoded_was_encoded(bytes in keys()) {
            if let Ok(key) = take(&bytes) {
                prop_assert_eq!(escaped(&key), bytes);
            }
        }
    }
}
