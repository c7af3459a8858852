//! Amounts of money: whole hundredths, written with two decimal places, never a float.
//!
//! In a document an amount is a JSON number and stands there digit by digit (`12.50`), so that views sum it exactly and a
//! person reads what was paid. Left out: currencies, and those whose smallest unit is no hundredth.

use std::fmt;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::types::{Error, Result};

/// Most digits before the point: the sum of as many orders as a user can have still fits everywhere.
const WHOLE_DIGITS_MAX: usize = 12;

/// An amount, not negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Amount {
    hundredths: u64,
}

impl Amount {
    /// An amount of so many hundredths, if it is not too large.
    pub fn of_hundredths(hundredths: u64) -> Option<Amount> {
        (hundredths / 100 < 10_u64.pow(WHOLE_DIGITS_MAX as u32)).then_some(Amount { hundredths })
    }

    /// The amount in hundredths.
    pub fn hundredths(self) -> u64 {
        self.hundredths
    }

    /// Reads `12`, `12.5` or `12.50`.
    pub fn parse(text: &str) -> Result<Amount> {
        if text.starts_with('-') {
            return Err(Error::invalid("an amount cannot be negative: money is given back by a refund"));
        }
        let form = "an amount is a decimal number with at most two places, such as 12.50";
        let (whole, places) = match text.split_once('.') {
            Some((_, "")) => return Err(Error::invalid(form)),
            Some(parts) => parts,
            None => (text, ""),
        };
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(places) || places.len() > 2 {
            return Err(Error::invalid(form));
        }
        let whole = whole.trim_start_matches('0');
        if whole.len() > WHOLE_DIGITS_MAX {
            return Err(Error::invalid(format!("an amount has at most {WHOLE_DIGITS_MAX} digits before the point")));
        }
        let number = |part: &str| part.bytes().fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
        let hundredths = number(places) * if places.len() == 1 { 10 } else { 1 };
        Ok(Amount { hundredths: number(whole) * 100 + hundredths })
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.hundredths / 100, self.hundredths % 100)
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.to_string()).map_err(S::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Amount, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Amount::parse(raw.get()).map_err(|error| D::Error::custom(error.message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_are_read_and_written_digit_by_digit() {
        for (text, expected) in [
            ("12", "12.00"),
            ("12.5", "12.50"),
            ("0.05", "0.05"),
            ("007", "7.00"),
            ("999999999999.99", "999999999999.99"),
            ("0", "0.00"),
        ] {
            assert_eq!(Amount::parse(text).map(|amount| amount.to_string()).as_deref(), Ok(expected), "{text}");
        }
        for wrong in ["", "-1", "-0.01", "+1", "1.", ".5", "1.234", "1e3", "1,5", "1 000", "1000000000000", "ten", "١"]
        {
            assert!(Amount::parse(wrong).is_err(), "{wrong}");
        }
        assert!(Amount::parse("-1").expect_err("negative").message.contains("negative"));
    }

    proptest! {
        #[test]
        fn documents_keep_every_amount(hundredths in 0_u64..100_000_000_000_000) {
            let amount = Amount::of_hundredths(hundredths).expect("in bounds");
            let text = serde_json::to_string(&amount).expect("written");
            prop_assert_eq!(&text, &amount.to_string());
            prop_assert_eq!(serde_json::from_str::<Amount>(&text).expect("read"), amount);
        }
    }
}
