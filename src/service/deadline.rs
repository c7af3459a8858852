//! How long a call may take.
//!
//! The caller says so in the `grpc-timeout` header (gRPC's own deadlines) or, on a pipelined stream, in the call; who
//! says nothing gets [`DEFAULT`], and nobody gets more than [`MAX`], so that an abandoned call does not hold its place
//! for ever. The few verbs whose work takes minutes name a bound of their own.

use std::time::Duration;

use tonic::metadata::MetadataMap;

use crate::types::{Error, Reason};

/// For callers that name no deadline: longer than an election and a retry, shorter than a person's patience.
pub const DEFAULT: Duration = Duration::from_secs(10);
/// The longest a call may ask for.
pub const MAX: Duration = Duration::from_secs(60);
/// The answer leaves this much before the caller's deadline, so that the caller hears what became of the call rather
/// than its own alarm. At most a tenth of the time given is kept back.
const HEADROOM: Duration = Duration::from_millis(10);

/// What becomes of a call that is not answered in time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It had none.
    None,
    /// It may have had, or may still have.
    Change,
}

impl Effect {
    /// The error for it: what was not answered, or what to do about a change that may be half made.
    pub fn too_late(self, unanswered: &str, unconfirmed: &str) -> Error {
        match self {
            Effect::None => Error::new(Reason::DeadlineExceeded, unanswered),
            Effect::Change => Error::new(Reason::ResultUndetermined, unconfirmed),
        }
    }
}

/// The time a call gets whose caller asked for this much.
pub fn granted(asked: Option<Duration>) -> Duration {
    asked.map_or(DEFAULT, |asked| granted_within(asked, MAX))
}

/// The same for a call that may take as long as `max`.
pub fn granted_within(asked: Duration, max: Duration) -> Duration {
    asked.min(max).saturating_sub(HEADROOM.min(asked / 10))
}

/// What the headers of a call ask for; a value that is none is taken for no deadline, as gRPC prescribes.
pub fn asked(metadata: &MetadataMap) -> Option<Duration> {
    parse(metadata.get("grpc-timeout")?.to_str().ok()?)
}

/// At most eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3_600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_grpc_writes_them() {
        let seconds = |text| parse(text).map(|time| time.as_secs_f64());
        for (text, expected) in [("1H", 3600.0), ("2M", 120.0), ("3S", 3.0), ("4m", 0.004), ("5u", 5e-6), ("7n", 7e-9)]
        {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        for wrong in ["", "S", "1", "1x", "123456789S", "-1S", "1.5S", "+1S", "é", "1é"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        let mut metadata = MetadataMap::new();
        assert_eq!(asked(&metadata), None);
        metadata.insert("grpc-timeout", "250m".parse().expect("ASCII"));
        assert_eq!(asked(&metadata), Some(Duration::from_millis(250)));
    }

    #[test]
    fn nobody_gets_more_than_the_most_and_the_answer_comes_before_the_alarm() {
        assert_eq!(granted(None), DEFAULT);
        assert_eq!(granted(Some(Duration::from_secs(1))), Duration::from_millis(990));
        assert_eq!(granted(Some(Duration::from_millis(20))), Duration::from_millis(18));
        assert_eq!(granted(Some(Duration::ZERO)), Duration::ZERO);
        assert!(granted(Some(Duration::from_secs(1 << 40))) <= MAX);
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        assert!(granted_within(minutes(5), minutes(10)) > minutes(4));
        assert!(granted_within(minutes(50), minutes(10)) <= minutes(10));
    }
}
