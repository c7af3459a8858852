//! Keys of a view's rows: readable, and hidden ones beside them.
//!
//! ```text
//! {TAG}:ORDER:ORDER/SOURCE-KEY          a row of a re-keyed view; with several sources /NUMBER/SOURCE-KEY
//! {TAG}                                 a row of an aggregate, or a merged document
//! {TAG}\x01t                            the totals of a group
//! {TAG}\x01m NUMBER:ORDER/NUMBER/key    a member of a group, in the order of one of its fields
//! {TAG}\x01p NUMBER/key                 a member of a part of a merged document
//! ```
//! TAG and SOURCE-KEY are percent-encoded, so that nothing in them is taken for a brace or a slash and people can read
//! them. In hidden rows the source's key stands as it is: those are in the order of such keys, which percent signs
//! would disturb (`a.b` comes before `a/b`, but not before `a%2Fb`). ORDER: see `order`.

use bytes::Bytes;

use super::document::Scalar;
use crate::types::percent_encoded;

/// Bytes of the longest key of a view.
pub const VIEW_KEY_BYTES_MAX: usize = 4_096;
/// What every hidden key has behind its tag, and no other.
const HIDDEN: u8 = 1;

/// Whether a key of a view is one of those that only upkeep uses.
pub fn hides(key: &[u8]) -> bool {
    let Some(inside) = key.strip_prefix(b"{") else { return false };
    inside
        .iter()
        .position(|&byte| byte == b'}')
        .is_some_and(|close| close > 0 && inside.get(close + 1) == Some(&HIDDEN))
}

/// The tag of the rows whose field is this text, or the number that is written so: the tag of user 42 is `42`, and so is
/// that of user `"42"`. The two meet; `42.0` is another.
pub fn tag_of_text(text: &str) -> String {
    percent_encoded(text.as_bytes())
}

/// The tag of a scalar; none for nothing, and for a text of no characters.
pub fn tag_of(scalar: &Scalar<'_>) -> Option<String> {
    let tag = match scalar {
        Scalar::Nothing => return None,
        Scalar::Bool(value) => value.to_string(),
        Scalar::Number(text) => tag_of_text(text),
        Scalar::Text(text) => tag_of_text(text),
    };
    Some(tag).filter(|tag| !tag.is_empty())
}

/// A key under a tag.
pub fn under(tag: &[u8], rest: &[u8]) -> Bytes {
    [b"{", tag, b"}", rest].concat().into()
}

/// What stands behind the tag in the key of a group's totals.
pub fn totals() -> Vec<u8> {
    vec![HIDDEN, b't']
}

/// What stands behind the tag in the keys of all members by one aggregate.
pub fn members_of(aggregate: usize) -> Vec<u8> {
    [&[HIDDEN, b'm'], format!("{aggregate}:").as_bytes()].concat()
}

/// What stands behind the tag in the keys of all members of one part.
pub fn members_of_part(part: usize) -> Vec<u8> {
    [&[HIDDEN, b'p'], format!("{part}/").as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_is_told_from_what_is_not() {
        assert!(hides(&under(b"42", &totals())) && hides(&under(b"4", &members_of(3))));
        assert!(hides(&under(b"x", &members_of_part(0))));
        for seen in
            [&b"{42}"[..], b"{42}:ff/o", b"{42}/\x01", b"\x01", b"", b"{%01}", b"{}\x01", b"42}\x01t", b"{42\x01"]
        {
            assert!(!hides(seen), "{seen:?}");
        }
        assert_eq!(tag_of(&Scalar::Number("42")), tag_of(&Scalar::Text("42".into())));
        assert_eq!(tag_of(&Scalar::Text("".into())), None);
    }
}
