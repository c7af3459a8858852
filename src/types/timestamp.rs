//! The name of a version: a 64-bit hybrid logical clock reading.

use std::fmt;

/// A hybrid logical clock reading (Kulkarni et al. 2014): 48 bits of milliseconds since 1970, 16 bits of counter.
///
/// Within a shard timestamps only grow, whatever the clocks do: the leader stamps an entry when it proposes it and
/// apply takes `max(stamped, last + 1)`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Before every version.
    pub const ZERO: Timestamp = Timestamp(0);
    /// After every version; as a read position it means "the newest".
    pub const MAX: Timestamp = Timestamp(u64::MAX);
    const COUNTER_BITS: u32 = 16;

    /// The first timestamp of a millisecond (milliseconds since 1970; anything beyond 48 bits saturates).
    pub fn from_millis(millis: u64) -> Timestamp {
        if millis >> 48 != 0 { Timestamp::MAX } else { Timestamp(millis << Self::COUNTER_BITS) }
    }

    /// Milliseconds since 1970.
    pub fn millis(self) -> u64 {
        self.0 >> Self::COUNTER_BITS
    }

    /// Position among the versions of one millisecond.
    pub fn counter(self) -> u16 {
        self.0 as u16
    }

    /// The next timestamp. Panics at the end of time (year 10889), which no clock reaches.
    pub fn next(self) -> Timestamp {
        Timestamp(self.0.checked_add(1).expect("timestamps do not run out"))
    }

    /// The timestamp just before; `ZERO` stays.
    pub fn previous(self) -> Timestamp {
        Timestamp(self.0.saturating_sub(1))
    }
}

/// Printed as one decimal number, the form in which versions are typed and shown everywhere.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.millis(), self.counter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_and_counter_share_the_word() {
        let t = Timestamp::from_millis(1_700_000_000_123);
        assert_eq!(t.millis(), 1_700_000_000_123);
        assert_eq!(t.counter(), 0);
        assert_eq!(t.next().counter(), 1);
        assert_eq!(t.next().previous(), t);
        assert_eq!(Timestamp::from_millis(1 << 48), Timestamp::MAX);
        assert_eq!(Timestamp::ZERO.previous(), Timestamp::ZERO);
    }
}
