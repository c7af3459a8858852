//! Keys and values between bytes and the text of a terminal.
//!
//! What is UTF-8 is shown as text, anything else as `0x` and hex digits. In JSON the two never mix: text stands under
//! `key` or `value`, other bytes as hex under `key_hex` or `value_hex`, so nothing is lost and nothing is guessed.

use std::fmt::Display;

use bytes::Bytes;
use serde_json::{Map, Value};

/// Bytes as one line for a person: text with control characters escaped, or `0x` and hex digits.
pub fn show(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            let mut shown = String::with_capacity(text.len());
            for c in text.chars() {
                if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
            }
            shown
        }
        Err(_) => format!("0x{}", hex(bytes)),
    }
}

/// [`show`], cut to `width` characters with an ellipsis.
pub fn show_within(bytes: &[u8], width: Option<usize>) -> String {
    let shown = show(bytes);
    match width {
        Some(width) if shown.chars().count() > width => {
            shown.chars().take(width.saturating_sub(1)).chain(['…']).collect()
        }
        _ => shown,
    }
}

/// Puts bytes into a JSON object under `name`, or as hex under `name_hex` when they are not UTF-8.
pub fn insert(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), Value::from(text)),
        Err(_) => object.insert(format!("{name}_hex"), Value::from(hex(bytes))),
    };
}

/// A number of things: `1 shard`, `2 shards`.
pub fn count<N: Display + PartialEq + From<u8>>(number: N, thing: &str) -> String {
    let plural = if number == N::from(1) { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// Lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)] as char, DIGITS[usize::from(byte & 15)] as char])
        .collect()
}

/// Bytes from hex digits, with or without `0x` before them.
pub fn unhex(text: &str) -> Result<Bytes, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text).as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(format!(
            "'{}' is not hex: expected an even number of hex digits",
            show_within(text.as_bytes(), Some(40))
        ));
    }
    let nibble = |digit: u8| (digit as char).to_digit(16).unwrap_or_default() as u8;
    Ok(digits.chunks_exact(2).map(|pair| nibble(pair[0]) << 4 | nibble(pair[1])).collect())
}

/// Bytes from an argument: its own, or those its hex digits spell.
pub fn argument(text: &str, as_hex: bool) -> Result<Bytes, String> {
    if as_hex { unhex(text) } else { Ok(Bytes::copy_from_slice(text.as_bytes())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text_and_other_bytes_are_hex() {
        assert_eq!(show("grüße".as_bytes()), "grüße");
        assert_eq!(show(b"a\x1b[31m\n"), "a\\u{1b}[31m\\n");
        assert_eq!(show(&[0xff, 0x00]), "0xff00");
        assert_eq!(show_within("abcdef".as_bytes(), Some(4)), "abc…");
        assert_eq!(show_within("abcd".as_bytes(), Some(4)), "abcd");
    }

    #[test]
    fn one_is_one() {
        assert_eq!([0_u64, 1, 2].map(|number| count(number, "row")), ["0 rows", "1 row", "2 rows"]);
    }

    #[test]
    fn hex_survives_the_way_there_and_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unhex(&hex(&all)).expect("hex"), all);
        assert_eq!(unhex("0xFF00").expect("hex"), vec![0xff, 0]);
        assert!(unhex("abc").is_err());
        assert!(unhex("+1").is_err());
        assert!(unhex("zz").is_err());
    }

    #[test]
    fn json_never_mixes_text_and_bytes() {
        let mut object = Map::new();
        insert(&mut object, "key", b"a");
        insert(&mut object, "value", &[0xff]);
        assert_eq!(Value::from(object).to_string(), r#"{"key":"a","value_hex":"ff"}"#);
    }
}
