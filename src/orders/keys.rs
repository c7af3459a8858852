//! Keys of rows, and the texts that become part of them.
//!
//! An order's row has the order id itself as its key, so the row's tag is the id. The fence that an archived order leaves
//! behind (see `archive`) carries the same tag in braces: both lie in one shard and are written in one batch. Rows of views
//! lie under the tag that a projection makes of a field: percent-encoded, so that a user's own braces and slashes mean nothing.

use bytes::Bytes;

use crate::runtime::random_u64;
use crate::types::{Error, Result, percent_encoded};

/// Longest id of a user or product, and longest business key.
pub const ID_BYTES_MAX: usize = 256;
/// Longest request id, order id, and name of who does something.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest note on a step.
pub const NOTE_BYTES_MAX: usize = 1_024;

/// What order ids begin with.
const ORDER_PREFIX: &str = "o-";
/// Digits of an order id: no letters that look like others (Crockford's base 32).
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Digits in an order id: 80 random bits.
const ORDER_DIGITS: usize = 16;

/// An id that no other order has, as far as 80 random bits go; the row is written only where there is none.
pub fn new_order_id() -> String {
    let mut id = String::from(ORDER_PREFIX);
    for half in [random_u64(), random_u64()] {
        id.extend((0..ORDER_DIGITS / 2).map(|at| char::from(DIGITS[(half >> (5 * at)) as usize & 31])));
    }
    id
}

/// Refuses what cannot be an order id.
pub fn check_order_id(id: &str) -> Result<()> {
    check_text("the order id", id, NAME_BYTES_MAX)?;
    if id.bytes().any(|byte| matches!(byte, b'{' | b'}' | b'/') || !byte.is_ascii_graphic()) {
        return Err(Error::invalid("an order id is of visible ASCII characters without braces and slashes"));
    }
    Ok(())
}

/// Refuses a text that is empty or too long.
pub fn check_text(what: &str, text: &str, bytes_max: usize) -> Result<()> {
    if text.is_empty() {
        return Err(Error::invalid(format!("{what} is missing")));
    }
    check_length(what, text, bytes_max)
}

/// Refuses a text that is too long.
pub fn check_length(what: &str, text: &str, bytes_max: usize) -> Result<()> {
    if text.len() > bytes_max {
        return Err(Error::invalid(format!("{what} has {} bytes, at most {bytes_max} are taken", text.len())));
    }
    Ok(())
}

/// The tag of everything that views keep of a user or product.
pub fn view_tag(id: &str) -> Bytes {
    percent_encoded(id.as_bytes()).into()
}

/// The one row a view keeps of a user or product.
pub fn view_row(id: &str) -> Bytes {
    format!("{{{}}}", percent_encoded(id.as_bytes())).into()
}

/// The row that reserves a business key.
pub fn reservation(business_key: &str) -> Bytes {
    format!("key/{}", percent_encoded(business_key.as_bytes())).into()
}

/// The row that remembers what was submitted under a request id.
pub fn claim(request_id: &str) -> Bytes {
    format!("request/{}", percent_encoded(request_id.as_bytes())).into()
}

/// The row of an order.
pub fn order(order_id: &str) -> Bytes {
    Bytes::copy_from_slice(order_id.as_bytes())
}

/// The row that keeps a late writer from bringing an archived order back.
pub fn fence(order_id: &str) -> Bytes {
    format!("{{{order_id}}}/archived").into()
}

/// Whether a row of the table of orders is one of those fences.
pub fn is_fence(key: &[u8]) -> bool {
    key.first() == Some(&b'{')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::tag;

    #[test]
    fn an_order_and_its_fence_lie_together() {
        let id = new_order_id();
        assert_eq!(id.len(), ORDER_PREFIX.len() + ORDER_DIGITS);
        assert!(check_order_id(&id).is_ok(), "{id}");
        assert_eq!(tag(&order(&id)), tag(&fence(&id)));
        assert!(is_fence(&fence(&id)) && !is_fence(&order(&id)));
        assert_ne!(id, new_order_id());
    }

    #[test]
    fn ids_of_strangers_make_no_tags_of_their_own() {
        assert_eq!(tag(&view_row("a}b")), b"a%7Db");
        assert_eq!(tag(&view_row("a}b")), view_tag("a}b"));
        for key in [reservation("{x}"), claim("{x}")] {
            assert_eq!(tag(&key), key, "spread by the whole key");
        }
        assert_ne!(reservation("x"), claim("x"));
    }

    #[test]
    fn texts_have_bounds() {
        for wrong in ["", "a b", "{a}", "a/b", "ä", "a\n"] {
            assert!(check_order_id(wrong).is_err(), "{wrong:?}");
        }
        assert!(check_text("it", &"x".repeat(256), ID_BYTES_MAX).is_ok());
        let long = check_text("it", &"x".repeat(257), ID_BYTES_MAX).expect_err("too long");
        assert_eq!(long.message, "it has 257 bytes, at most 256 are taken");
        assert_eq!(check_text("it", "", 5).expect_err("empty").message, "it is missing");
    }
}
