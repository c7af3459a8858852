//! Numbers as JSON writes them, added exactly.
//!
//! A total must not depend on the order in which it was made, or a view could not be compared with its sources; and it
//! must not be wrong in silence. So numbers are decimals with [`DIGITS`] digits after the point, never floating-point,
//! and a number that is not exactly such a decimal, or that has more than [`WHOLE_DIGITS_MAX`] digits before the point,
//! is refused. Totals are wider than numbers: it would take 10^18 of the largest to leave their range, more rows than a
//! table has.

use std::fmt;

/// Digits after the point.
pub const DIGITS: usize = 18;
/// Digits before the point of a number that can be added up: enough for every integer of 64 bits.
pub const WHOLE_DIGITS_MAX: usize = 20;
/// Digits before the point of a total.
const TOTAL_DIGITS_MAX: usize = 38;
/// Ten to the power of [`DIGITS`].
const SCALE: u64 = 1_000_000_000_000_000_000;

/// A decimal number: `whole` and, from there upwards, `parts` of [`SCALE`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decimal {
    whole: i128,
    /// Less than [`SCALE`], also below zero: -0.5 is half a step above -1.
    parts: u64,
}

impl Decimal {
    /// What [`Decimal::to_bytes`] makes.
    pub const BYTES: usize = 24;

    /// The number that a JSON text is; none if it is none, or not exactly one of these.
    pub fn parse(text: &str) -> Option<Decimal> {
        Decimal::of(&Digits::parse(text)?, WHOLE_DIGITS_MAX)
    }

    /// The total that was written as JSON.
    pub fn parse_total(text: &str) -> Option<Decimal> {
        Decimal::of(&Digits::parse(text)?, TOTAL_DIGITS_MAX)
    }

    fn of(number: &Digits, whole_digits_max: usize) -> Option<Decimal> {
        let fraction = i64::try_from(number.digits.len()).ok()? - number.point;
        if number.point > whole_digits_max as i64 || fraction > DIGITS as i64 {
            return None;
        }
        // The digit at a place: before the point from the largest on, then behind it. At most 38 and 18 of them.
        let digit = |place: i64| {
            usize::try_from(place).ok().and_then(|place| number.digits.get(place)).map_or(0, |&digit| u64::from(digit))
        };
        let whole = (0..number.point).fold(0_i128, |whole, place| whole * 10 + i128::from(digit(place)));
        let behind = number.point..number.point + DIGITS as i64;
        let parts = behind.fold(0_u64, |parts, place| parts * 10 + digit(place));
        let magnitude = Decimal { whole, parts };
        Some(if number.negative { magnitude.negated() } else { magnitude })
    }

    /// The sum.
    pub fn plus(self, other: Decimal) -> Decimal {
        // Wraps only where no sum of rows comes to: bytes from outside must not stop the machine that adds them.
        let whole = self.whole.wrapping_add(other.whole);
        let parts = self.parts + other.parts;
        if parts < SCALE {
            Decimal { whole, parts }
        } else {
            Decimal { whole: whole.wrapping_add(1), parts: parts - SCALE }
        }
    }

    /// The same with the other sign.
    pub fn negated(self) -> Decimal {
        let whole = self.whole.wrapping_neg();
        match self.parts {
            0 => Decimal { whole, parts: 0 },
            parts => Decimal { whole: whole.wrapping_sub(1), parts: SCALE - parts },
        }
    }

    /// As it is stored in an effect.
    pub fn to_bytes(self) -> [u8; Decimal::BYTES] {
        let mut bytes = [0; Decimal::BYTES];
        bytes[..16].copy_from_slice(&self.whole.to_be_bytes());
        bytes[16..].copy_from_slice(&self.parts.to_be_bytes());
        bytes
    }

    /// Reads what is stored in an effect.
    pub fn from_bytes(bytes: [u8; Decimal::BYTES]) -> Option<Decimal> {
        let (whole, parts) = bytes.split_at(16);
        let whole = i128::from_be_bytes(whole.try_into().ok()?);
        let parts = u64::from_be_bytes(parts.try_into().ok()?);
        (parts < SCALE).then_some(Decimal { whole, parts })
    }
}

/// As JSON: without zeros that say nothing.
impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, whole, parts) = match (self.whole, self.parts) {
            (whole @ 0.., parts) => ("", whole.unsigned_abs(), parts),
            (whole, 0) => ("-", whole.unsigned_abs(), 0),
            (whole, parts) => ("-", whole.wrapping_add(1).unsigned_abs(), SCALE - parts),
        };
        write!(f, "{sign}{whole}")?;
        let fraction = format!("{parts:018}");
        let fraction = fraction.trim_end_matches('0');
        if fraction.is_empty() { Ok(()) } else { write!(f, ".{fraction}") }
    }
}

/// A number of any size: 0.d1d2d3… times ten to the power of `point`, without zeros at either end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digits {
    /// Below zero.
    pub negative: bool,
    /// Where the point is; 0 for zero.
    pub point: i64,
    /// None for zero.
    pub digits: Vec<u8>,
}

/// Digits of a number that can be compared: more than any number of 64 bits has, floating-point ones written out
/// included.
pub const COMPARED_DIGITS_MAX: usize = 800;
/// Places that its point may be away.
const POINT_MAX: i64 = 100_000;

impl Digits {
    /// The number that a JSON text is; none if it is none, or of more than [`COMPARED_DIGITS_MAX`] digits or an
    /// exponent beyond [`POINT_MAX`].
    pub fn parse(text: &str) -> Option<Digits> {
        let (negative, rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = rest.split_once(['e', 'E']).unwrap_or((rest, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let power = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        if whole.is_empty() || power.is_empty() || ![whole, fraction, power].into_iter().all(all_digits) {
            return None;
        }
        let mut digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|byte| byte - b'0').collect();
        let zeros = digits.iter().take_while(|&&digit| digit == 0).count();
        digits.drain(..zeros);
        while digits.last() == Some(&0) {
            digits.pop();
        }
        if digits.is_empty() {
            // Whatever its exponent.
            return Some(Digits { negative: false, point: 0, digits });
        }
        // JSON sets no bound to an exponent, so it may be beyond any integer, or the one that has no counterpart.
        let exponent = exponent.parse::<i64>().ok().filter(|exponent| (-POINT_MAX..=POINT_MAX).contains(exponent))?;
        let point = i64::try_from(whole.len()).ok()? - i64::try_from(zeros).ok()? + exponent;
        let within = digits.len() <= COMPARED_DIGITS_MAX && (-POINT_MAX..=POINT_MAX).contains(&point);
        within.then_some(Digits { negative, point, digits })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn decimals_are_exact() {
        for (text, shown) in [
            ("0", "0"),
            ("-0.0", "0"),
            ("0e-99999999999999999999", "0"),
            ("12.50", "12.5"),
            ("1e2", "100"),
            ("1E+2", "100"),
            ("1.25E-2", "0.0125"),
            ("-7", "-7"),
            ("-0.5", "-0.5"),
            ("-7.25", "-7.25"),
            ("0.000000000000000001", "0.000000000000000001"),
            ("18446744073709551615", "18446744073709551615"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("99999999999999999999.999999999999999999", "99999999999999999999.999999999999999999"),
            ("-99999999999999999999.999999999999999999", "-99999999999999999999.999999999999999999"),
        ] {
            let number = Decimal::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(number.to_string(), shown, "{text}");
            assert_eq!(Decimal::from_bytes(number.to_bytes()), Some(number), "{text}");
        }
        for text in ["", "-", "x", "1.2.3", "1e", "1e+", "1e1.5", "1e+-2", "NaN", "\"5\"", "true", "+1"] {
            assert_eq!(Digits::parse(text), None, "{text}");
        }
        for text in ["100000000000000000000", "0.0000000000000000001", "1e400", "1e-400"] {
            assert_eq!(Decimal::parse(text), None, "{text}");
        }
        let tenth = Decimal::parse("0.1").expect("a number");
        let total = (0..30).fold(Decimal::default(), |total, _| total.plus(tenth));
        assert_eq!(total.to_string(), "3");
        assert_eq!(total.plus(total.negated()), Decimal::default());
        assert_eq!(Decimal::from_bytes([0xFF; Decimal::BYTES]), None, "too many parts");
    }

    #[test]
    fn exponents_beyond_any_integer_are_refused() {
        for exponent in ["9223372036854775807", "-9223372036854775808", "99999999999999999999", "-100001"] {
            assert_eq!(Digits::parse(&format!("1e{exponent}")), None, "{exponent}");
        }
    }

    #[test]
    fn totals_have_room_for_what_numbers_have_not() {
        let largest = Decimal::parse("99999999999999999999.999999999999999999").expect("a number");
        let total = (0..1_000_000).fold(Decimal::default(), |total, _| total.plus(largest));
        assert_eq!(total.to_string(), "99999999999999999999999999.999999999999");
        assert_eq!(Decimal::parse_total(&total.to_string()), Some(total));
        assert_eq!(Decimal::parse(&total.to_string()), None);
    }

    proptest! {
        /// Beside integers, of which a few digits stand behind the point.
        #[test]
        fn sums_are_those_of_integers(numbers in prop::collection::vec(any::<i64>(), 0..9), places in 0..=18_u32) {
            let write = |units: i128| {
                let sign = if units < 0 { "-" } else { "" };
                let (units, scale) = (units.unsigned_abs(), 10_u128.pow(places));
                format!("{sign}{}.{:0width$}", units / scale, units % scale, width = places.max(1) as usize)
            };
            let sum = numbers.iter().fold(Decimal::default(), |sum, &number| {
                sum.plus(Decimal::parse(&write(number.into())).expect("it fits"))
            });
            let expected: i128 = numbers.iter().map(|&number| i128::from(number)).sum();
            prop_assert_eq!(Decimal::parse_total(&write(expected)), Some(sum));
            prop_assert_eq!(Decimal::parse_total(&sum.to_string()), Some(sum));
            prop_assert_eq!(sum.negated().negated(), sum);
        }
    }
}
