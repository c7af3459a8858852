//! The last changes of a shard, in memory, for those who follow it closely.
//!
//! Changes can always be found among the versions (`storage::changes`), at the price of a look at every key. Whoever keeps up
//! is spared that: while somebody follows, the replica keeps what it applies for a while. The tail says from which position
//! on it knows *everything*; a follower that has come further back than that scans, and returns to the tail when it has caught up.
//!
//! Invariants
//! - What the tail says it knows, it knows: it is filled under the lock under which the applied state is shown, so nobody
//!   who sees a position misses what led there. When the state moves by other means than applying (a snapshot, the taking over
//!   of another shard), it begins anew.
//! - It costs nothing when nobody follows, and no more than [`TAIL_BYTES_MAX`] when somebody does, however slow. A follower that
//!   is slower than that falls out of it, not over it.
//!
//! Left out: what a change replaced; that is looked up for those who ask.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::runtime::Instant;
use crate::storage::mvcc::Version;
use crate::types::Timestamp;

/// Bytes of keys and values kept for those who follow one shard.
pub const TAIL_BYTES_MAX: usize = 8 << 20;
/// What each change takes besides its bytes, about.
const CHANGE_BYTES: usize = 96;
/// A tail that nobody has looked at for this long is let go.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// What one command has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The timestamp of all its versions.
    pub timestamp: Timestamp,
    /// The versions by encoded key.
    pub versions: Vec<(Bytes, Version)>,
}

impl Applied {
    fn bytes(&self) -> usize {
        let one =
            |(key, version): &(Bytes, Version)| CHANGE_BYTES + key.len() + version.value.as_ref().map_or(0, Bytes::len);
        self.versions.iter().map(one).sum()
    }
}

/// The tail of one replica.
#[derive(Debug, Default)]
pub struct Tail {
    kept: Option<Kept>,
}

#[derive(Debug)]
struct Kept {
    /// Everything after this is here.
    from: Timestamp,
    commands: VecDeque<Arc<Applied>>,
    bytes: usize,
    looked_at: Instant,
}

impl Tail {
    /// Whether what is applied is to be given to [`Tail::push`].
    pub fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// Takes in what was applied, in the order of its timestamps. Without effect if nobody follows.
    pub fn push(&mut self, applied: Vec<Applied>, now: Instant) {
        let Some(kept) = &mut self.kept else { return };
        if now.saturating_duration_since(kept.looked_at) > IDLE_MAX {
            self.kept = None;
            return;
        }
        for command in applied {
            kept.bytes += command.bytes();
            kept.commands.push_back(Arc::new(command));
        }
        while kept.bytes > TAIL_BYTES_MAX
            && let Some(oldest) = kept.commands.pop_front()
        {
            kept.bytes -= oldest.bytes();
            kept.from = oldest.timestamp;
        }
    }

    /// The state is `now_at` by other means than by what was pushed: what is here does not lead there.
    pub fn restart(&mut self, now_at: Timestamp) {
        if let Some(kept) = &mut self.kept {
            kept.commands.clear();
            kept.bytes = 0;
            kept.from = now_at;
        }
    }

    /// The commands after a position, if all of them are here, or the first ones of them with so many bytes; the state is
    /// `now_at`. Whether there are more is told with them. A tail is kept from now on if there was none.
    pub fn after(
        &mut self,
        position: Timestamp,
        now_at: Timestamp,
        now: Instant,
        bytes_max: usize,
    ) -> Option<(Vec<Arc<Applied>>, bool)> {
        let kept =
            self.kept.get_or_insert_with(|| Kept { from: now_at, commands: VecDeque::new(), bytes: 0, looked_at: now });
        kept.looked_at = now;
        if position < kept.from {
            return None;
        }
        let first = kept.commands.partition_point(|command| command.timestamp <= position);
        let mut bytes = 0;
        let mut found = Vec::new();
        for command in kept.commands.range(first..) {
            if bytes >= bytes_max {
                return Some((found, true));
            }
            bytes += command.bytes();
            found.push(command.clone());
        }
        Some((found, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Clock;

    fn applied(at: u64, bytes: usize) -> Applied {
        let version = Version { timestamp: Timestamp(at), value: Some(vec![0; bytes].into()), expires_ms: None };
        Applied { timestamp: Timestamp(at), versions: vec![("k".into(), version)] }
    }

    const ALL: usize = usize::MAX;

    fn times(found: Option<(Vec<Arc<Applied>>, bool)>) -> Option<Vec<u64>> {
        found.map(|(commands, _)| commands.iter().map(|command| command.timestamp.0).collect())
    }

    #[test]
    fn it_knows_what_came_since_somebody_follows_and_nothing_before() {
        let now = Clock::system().now();
        let mut tail = Tail::default();
        tail.push(vec![applied(3, 1)], now);
        assert!(!tail.is_kept());
        assert_eq!(times(tail.after(Timestamp(2), Timestamp(4), now, ALL)), None, "that one has to scan");
        assert_eq!(times(tail.after(Timestamp(4), Timestamp(4), now, ALL)), Some(vec![]));
        tail.push(vec![applied(5, 1), applied(7, 1)], now);
        assert_eq!(times(tail.after(Timestamp(4), Timestamp(7), now, ALL)), Some(vec![5, 7]));
        assert_eq!(times(tail.after(Timestamp(5), Timestamp(7), now, ALL)), Some(vec![7]));
        assert_eq!(times(tail.after(Timestamp(3), Timestamp(7), now, ALL)), None);
        let (first, more) = tail.after(Timestamp(4), Timestamp(7), now, 1).expect("it is here");
        assert_eq!((first.len(), more), (1, true), "a page holds one command at least");
        tail.restart(Timestamp(20));
        assert_eq!(times(tail.after(Timestamp(7), Timestamp(20), now, ALL)), None, "what led to 20 was not seen");
        assert_eq!(times(tail.after(Timestamp(20), Timestamp(20), now, ALL)), Some(vec![]));
    }

    #[test]
    fn a_slow_follower_falls_out_of_it_and_an_absent_one_is_forgotten() {
        let now = Clock::system().now();
        let mut tail = Tail::default();
        assert_eq!(times(tail.after(Timestamp(0), Timestamp(0), now, ALL)), Some(vec![]));
        let part = TAIL_BYTES_MAX / 4;
        tail.push((1..=3).map(|at| applied(at, part)).collect(), now);
        assert_eq!(times(tail.after(Timestamp(0), Timestamp(3), now, ALL)), Some(vec![1, 2, 3]));
        tail.push(vec![applied(4, part)], now);
        assert_eq!(times(tail.after(Timestamp(0), Timestamp(4), now, ALL)), None);
        assert_eq!(times(tail.after(Timestamp(1), Timestamp(4), now, ALL)), Some(vec![2, 3, 4]));
        // One command larger than all there is room for leaves nothing.
        tail.push(vec![applied(5, 2 * TAIL_BYTES_MAX)], now);
        assert_eq!(times(tail.after(Timestamp(4), Timestamp(5), now, ALL)), None);
        assert_eq!(times(tail.after(Timestamp(5), Timestamp(5), now, ALL)), Some(vec![]));
        tail.push(vec![applied(6, 1)], now + 2 * IDLE_MAX);
        assert!(!tail.is_kept());
    }
}
