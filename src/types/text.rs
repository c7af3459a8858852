//! Bytes as text that may stand in keys: who makes keys and who asks for them must write them in one way.

/// Bytes as printable text: what is not plain, and `%`, `{`, `}` and `/`, as `%XX`. So nothing in them is taken for the brace of
/// a tag or a separator, and people can read them.
pub fn percent_encoded(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'%' | b'{' | b'}' | b'/' | 0..=0x20 | 0x7F.. => out.push_str(&format!("%{byte:02X}")),
            _ => out.push(char::from(byte)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_plain_is_written_in_hex() {
        for (text, written) in [
            ("42", "42"),
            ("a{b}/c%d", "a%7Bb%7D%2Fc%25d"),
            ("größe\n", "gr%C3%B6%C3%9Fe%0A"),
            ("a/ä {%}", "a%2F%C3%A4%20%7B%25%7D"),
            ("Jane Doe", "Jane%20Doe"),
            ("\x7f~!", "%7F~!"),
        ] {
            assert_eq!(percent_encoded(text.as_bytes()), written);
        }
    }
}
