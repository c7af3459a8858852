//! Durations and moments as people type them, and as the command line prints them.

use std::time::Duration;

use trivet::types::Timestamp;

const MS_PER_DAY: u64 = 86_400_000;
/// The units a duration is typed in, with their milliseconds.
const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", MS_PER_DAY)];

/// Parses durations such as `500ms`, `2s`, `1h30m` or `7d`. A number without a unit is refused: it could mean anything.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let refuse = || format!("'{text}' is no duration: write a number with a unit, such as 500ms, 2s, 1h30m or 7d");
    let mut rest = text;
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(refuse)?;
        let number: u64 = rest[..digits].parse().map_err(|_| refuse())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (_, unit_ms) = UNITS.iter().find(|(unit, _)| *unit == &rest[..letters]).ok_or_else(refuse)?;
        rest = &rest[letters..];
        total_ms = number.checked_mul(*unit_ms).and_then(|ms| total_ms.checked_add(ms)).ok_or_else(refuse)?;
    }
    if text.is_empty() { Err(refuse()) } else { Ok(Duration::from_millis(total_ms)) }
}

/// Prints a duration the way [`parse_duration`] reads it.
pub fn show_duration_ms(ms: u64) -> String {
    let (mut rest, mut text) = (ms, String::new());
    for (unit, unit_ms) in UNITS.iter().rev() {
        if rest >= *unit_ms {
            text.push_str(&format!("{}{unit}", rest / unit_ms));
            rest %= unit_ms;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// A version, or a moment in RFC 3339 form (which means the newest version up to the end of that millisecond).
pub fn parse_version_or_time(text: &str) -> Result<Timestamp, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return parse_version(text);
    }
    let ms = parse_rfc3339(text).ok_or_else(|| {
        format!("'{text}' is neither a version (a number) nor a time such as 2026-01-31T12:00:00Z or 2026-01-31T12:00:00.250+02:00")
    })?;
    Ok(Timestamp::from_millis(ms + 1).previous())
}

/// A version as it is printed everywhere: one decimal number.
pub fn parse_version(text: &str) -> Result<Timestamp, String> {
    text.parse()
        .map(Timestamp)
        .map_err(|_| format!("'{text}' is no version: versions are numbers, as `get -o json` prints them"))
}

/// Milliseconds since 1970 of an RFC 3339 time; none if it is not one or lies before 1970.
fn parse_rfc3339(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to)?;
        if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
    };
    let separators = [(4, b"-"), (7, b"-"), (13, b":"), (16, b":")];
    if separators.iter().any(|(at, expected)| bytes.get(*at) != Some(&expected[0])) {
        return None;
    }
    if !matches!(bytes.get(10), Some(b'T' | b't' | b' ')) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month)
        || day < 1
        || day > days_in_month(year, month)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    let mut at = 19;
    let mut ms = 0;
    if bytes.get(at) == Some(&b'.') {
        let digits = text[at + 1..].bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return None;
        }
        let padded: String = text[at + 1..at + 1 + digits].chars().chain("00".chars()).take(3).collect();
        ms = padded.parse::<i64>().ok()?;
        at += 1 + digits;
    }
    let offset_minutes = match text.get(at..)? {
        "Z" | "z" => 0,
        zone if zone.len() == 6 && zone.as_bytes()[3] == b':' => {
            let sign = match zone.as_bytes()[0] {
                b'+' => 1,
                b'-' => -1,
                _ => return None,
            };
            let (hours, minutes) = (number(at + 1, at + 3)?, number(at + 4, at + 6)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            sign * (hours * 60 + minutes)
        }
        _ => return None,
    };
    let seconds =
        days_from_civil(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - offset_minutes * 60;
    u64::try_from(seconds * 1_000 + ms).ok()
}

/// A moment in RFC 3339 form, in UTC with milliseconds.
pub fn show_time_ms(ms: u64) -> String {
    let (year, month, day) = civil_from_days((ms / MS_PER_DAY) as i64);
    let of_day = ms % MS_PER_DAY;
    let (hour, minute) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (second, milli) = (of_day / 1_000 % 60, of_day % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a date of the Gregorian calendar (years counted from March, in eras of 400 years).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The date of a day counted from 1970-01-01; the inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_units_and_survive_printing() {
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["", "5", "s", "5x", "-1s", "1.5s", "99999999999999999999d"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
        for ms in [0, 1, 999, 60_000, 5_400_000, 86_400_000 * 7 + 1] {
            assert_eq!(parse_duration(&show_duration_ms(ms)), Ok(Duration::from_millis(ms)));
        }
    }

    #[test]
    fn moments_are_read_in_utc_and_with_an_offset() {
        assert_eq!(parse_rfc3339("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(parse_rfc3339("2000-02-29T23:59:59.5Z"), Some(951_868_799_500));
        assert_eq!(parse_rfc3339("2026-01-31T12:00:00.250+02:00"), parse_rfc3339("2026-01-31T10:00:00.250Z"));
        for wrong in [
            "2026-02-30T00:00:00Z",
            "2026-01-31T12:00:00",
            "2026-01-31",
            "2026-13-01T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "2026-01-31T12:00:00.Z",
            "2026-01-31T12:00:00+2:00",
            "2026-01-31T+1:00:00Z",
        ] {
            assert_eq!(parse_rfc3339(wrong), None, "{wrong}");
        }
        for ms in [0, 951_868_799_500, 1_795_000_000_123, 4_102_444_800_000, 253_402_300_799_999] {
            assert_eq!(parse_rfc3339(&show_time_ms(ms)), Some(ms));
        }
        for day in (0..200_000).step_by(37) {
            let (year, month, day_of_month) = civil_from_days(day);
            assert_eq!(days_from_civil(year, month, day_of_month), day);
        }
    }

    #[test]
    fn a_moment_stands_for_all_versions_of_its_millisecond() {
        let at = parse_version_or_time("2000-02-29T23:59:59.500Z").expect("a time");
        assert_eq!((at.millis(), at.counter()), (951_868_799_500, u16::MAX));
        assert_eq!(parse_version_or_time("77"), Ok(Timestamp(77)));
        assert!(parse_version_or_time("yesterday").is_err());
        assert!(parse_version_or_time("99999999999999999999999").is_err());
    }
}
