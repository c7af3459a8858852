//! Scalars of JSON as bytes that sort as they do: nothing before false, true, numbers, strings. Numbers are compared
//! exactly, whatever their size; strings by their bytes. No encoding begins with another, so what follows in a key
//! cannot disturb the order.

use super::decimal::Digits;
use super::document::Scalar;

const NOTHING: u8 = 0x10;
const FALSE: u8 = 0x20;
const TRUE: u8 = 0x21;
const NUMBER: u8 = 0x30;
const STRING: u8 = 0x40;
const BELOW_ZERO: u8 = 1;
const ZERO: u8 = 2;
const ABOVE_ZERO: u8 = 3;

/// The bytes of a scalar; none for a number with too many digits.
fn encoded(scalar: &Scalar<'_>) -> Option<Vec<u8>> {
    Some(match scalar {
        Scalar::Nothing => vec![NOTHING],
        Scalar::Bool(false) => vec![FALSE],
        Scalar::Bool(true) => vec![TRUE],
        Scalar::Number(text) => {
            let number = Digits::parse(text)?;
            if number.digits.is_empty() {
                return Some(vec![NUMBER, ZERO]);
            }
            // Places of the point, shifted so that all are above zero; then the digits, each above the end of them.
            let mut size = (i32::try_from(number.point).ok()? ^ i32::MIN).to_be_bytes().to_vec();
            size.extend(number.digits.iter().map(|digit| digit + 1));
            size.push(0);
            if number.negative {
                size.iter_mut().for_each(|byte| *byte = !*byte);
            }
            let sign = if number.negative { BELOW_ZERO } else { ABOVE_ZERO };
            [&[NUMBER, sign], &size[..]].concat()
        }
        Scalar::Text(text) => {
            let mut bytes = vec![STRING];
            for byte in text.bytes() {
                bytes.push(byte);
                if byte == 0 {
                    bytes.push(0xFF);
                }
            }
            bytes.extend([0, 0]);
            bytes
        }
    })
}

/// The bytes of a scalar as lower-case hex, upside down if the order descends; none for a number with too many digits.
pub fn ordering(scalar: &Scalar<'_>, descending: bool) -> Option<String> {
    let flip = if descending { 0xFF } else { 0 };
    Some(encoded(scalar)?.iter().map(|byte| format!("{:02x}", byte ^ flip)).collect())
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use proptest::prelude::*;

    use super::*;

    fn number() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<i64>().prop_map(|number| number.to_string()),
            any::<u64>().prop_map(|number| number.to_string()),
            (0..5_i64).prop_map(|near| ((1_i64 << 53) + near - 2).to_string()),
            (-9_999..9_999_i64, 0..6_usize).prop_map(|(number, digits)| {
                let sign = if number < 0 { "-" } else { "" };
                format!("{sign}{}.{:0digits$}", number.abs() / 7, number.abs(), digits = digits.max(1))
            }),
            (1..999_u32, -30..30_i32).prop_map(|(number, exponent)| format!("{number}e{exponent}")),
        ]
    }

    /// Integers about where floating-point numbers, and those of 64 bits, end.
    fn near() -> impl Strategy<Value = i128> {
        let ends = [0, 1 << 53, 1 << 63, 1 << 64, -(1 << 53), -(1 << 63), 10_i128.pow(18), -10_i128.pow(18)];
        prop_oneof![
            (prop::sample::select(ends.to_vec()), -3..=3_i128).prop_map(|(end, beside)| end + beside),
            any::<i64>().prop_map(i128::from),
            any::<u64>().prop_map(i128::from),
        ]
    }

    /// By the digits, written out to the same length.
    fn compare(one: &str, other: &str) -> Ordering {
        let spread = |text: &str| {
            let number = Digits::parse(text).expect("a number");
            let mut digits = vec![0_u8; 400];
            for (place, digit) in number.digits.iter().enumerate() {
                digits[usize::try_from(200 - number.point).expect("small") + place] = *digit;
            }
            (number.negative, digits)
        };
        match (spread(one), spread(other)) {
            ((false, one), (false, other)) => one.cmp(&other),
            ((true, one), (true, other)) => other.cmp(&one),
            ((true, _), (false, _)) => Ordering::Less,
            ((false, _), (true, _)) => Ordering::Greater,
        }
    }

    proptest! {
        #[test]
        fn numbers_sort_as_they_are(one in number(), other in number()) {
            let code = |text: &str, descending| ordering(&Scalar::Number(text), descending).expect("few digits");
            prop_assert_eq!(code(&one, false).cmp(&code(&other, false)), compare(&one, &other));
            prop_assert_eq!(code(&one, true).cmp(&code(&other, true)), compare(&other, &one));
        }

        /// Against integers of 128 bits, which share nothing with how numbers are read here.
        #[test]
        fn numbers_sort_as_integers_do(
            one in near(), other in near(), places in 0..20_usize, zeros in 0..3_usize, power in 0..9_i32,
        ) {
            // The same number moved by the same places, written out or with an exponent.
            let plain = |units: i128| {
                let digits = format!("{:0width$}", units.unsigned_abs(), width = places + 1);
                let (whole, fraction) = digits.split_at(digits.len() - places);
                let point = if places + zeros > 0 { "." } else { "" };
                format!("{}{whole}{point}{fraction}{}", if units < 0 { "-" } else { "" }, "0".repeat(zeros))
            };
            let powered = |units: i128| format!("{units}{}E-{}", "0".repeat(power as usize), places as i32 + power);
            let code = |text: String, descending| ordering(&Scalar::Number(&text), descending).expect("few digits");
            for descending in [false, true] {
                let order = if descending { other.cmp(&one) } else { one.cmp(&other) };
                prop_assert_eq!(code(plain(one), descending).cmp(&code(powered(other), descending)), order);
                prop_assert_eq!(code(powered(one), descending).cmp(&code(plain(other), descending)), order);
            }
        }

        #[test]
        fn texts_sort_as_they_are(one in "[a-c\0]{0,4}", other in "[a-c\0]{0,4}", rest in "[a-z0-9/]{0,3}") {
            let code = |text: &str, descending| ordering(&Scalar::Text(text.into()), descending).expect("always");
            prop_assert_eq!((code(&one, false) + &rest).cmp(&(code(&other, false) + &rest)), one.cmp(&other));
            prop_assert_eq!((code(&one, true) + &rest).cmp(&(code(&other, true) + &rest)), other.cmp(&one));
        }
    }

    #[test]
    fn kinds_have_their_order() {
        let scalars = [
            Scalar::Nothing,
            Scalar::Bool(false),
            Scalar::Bool(true),
            Scalar::Number("-1e300"),
            Scalar::Number("-0.5"),
            Scalar::Number("0"),
            Scalar::Number("3"),
            Scalar::Text("".into()),
            Scalar::Text("a".into()),
        ];
        let codes: Vec<String> = scalars.iter().map(|scalar| ordering(scalar, false).expect("short")).collect();
        assert!(codes.is_sorted(), "{codes:?}");
        assert_eq!(codes[6], "3003800000010400");
        assert_eq!(ordering(&Scalar::Number("3"), true).as_deref(), Some("cffc7ffffffefbff"));
    }
}
