//! How old the state of a replica can be, proven without wall clocks.
//!
//! Promise: a [`Proof`] says of one replica that its state held, when the proof was made, the effect of every write to its
//! range that was acknowledged before the moment `asked`. State only moves forward, so what it says stays true, and the
//! state is never older than now minus `asked`.
//!
//! How a proof is made: the replica notes its own monotonic time, asks the leader (or itself, if it leads) for an index
//! that a quorum has confirmed after that, and waits until it has applied that index. Every entry that was committed
//! before `asked` lies at or before the index, whoever led when it was. Both moments are of one clock of one node, so
//! nobody's clock has to agree with another's; how long messages took only makes the age larger than it is.
//!
//! When the range changes: an index is a place in the log of one group, and a proof belongs to one replica of that group.
//! - A replica that has not applied a split yet still owns keys of the child. Its proof is right for them too: a write that
//!   the child had acknowledged before `asked` needed the child to exist, so the split was committed before, lies at or
//!   before the confirmed index, and was applied here before there was a proof.
//! - The child begins without a proof. It is another group with another log: an index of the parent says nothing there.
//! - An entry after which the shard owns more than before would bring keys whose writes were never in this log. So a proof
//!   names the epoch that the replica had when it was made and vouches for no other; the first read by the new range asks
//!   again. For splits alone this is more careful than it has to be.
//!
//! Left out: what makes the monotonic clock itself wrong. A machine that is suspended as a whole does not count the time.

use std::time::Duration;

use parking_lot::Mutex;

use crate::runtime::Instant;
use crate::types::Epoch;

/// What is known of the age of a replica's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Every write acknowledged before this is in the state.
    pub asked: Instant,
    /// The range that it speaks of: the replica's epoch when the proof was made.
    pub epoch: Epoch,
}

/// The newest proof of one replica, and when the last one was asked for.
#[derive(Debug, Default)]
pub struct Proofs {
    state: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    newest: Option<Proof>,
    /// The beginning of the last round, whatever became of it.
    attempted: Option<Instant>,
    /// Somebody has asked for a round for the sake of later readers, and it has not begun.
    wished: bool,
}

impl Proofs {
    /// Takes note that a round begins.
    pub fn begin(&self, now: Instant) {
        let mut known = self.state.lock();
        known.attempted = Some(now);
        known.wished = false;
    }

    /// Takes a proof in. An older one than what is known says nothing new, unless it is of a later range.
    pub fn note(&self, proof: Proof) {
        let mut known = self.state.lock();
        let rank = |proof: &Proof| (proof.epoch, proof.asked);
        if known.newest.is_none_or(|newest| rank(&newest) < rank(&proof)) {
            known.newest = Some(proof);
        }
    }

    /// The newest proof that speaks of the range of this epoch. Look at it before looking at the state.
    pub fn known(&self, epoch: Epoch) -> Option<Proof> {
        self.state.lock().newest.filter(|proof| proof.epoch == epoch)
    }

    /// Whether it is time to ask again for those who come later, if nothing was asked for this long; true to one caller.
    pub fn wish(&self, now: Instant, interval: Duration) -> bool {
        let mut known = self.state.lock();
        let due = known.attempted.is_none_or(|attempted| now.saturating_duration_since(attempted) >= interval);
        let mine = due && !known.wished;
        known.wished |= mine;
        mine
    }

    /// The wish could not be passed on.
    pub fn unwish(&self) {
        self.state.lock().wished = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Clock;

    fn proof(asked: Instant, epoch: u64) -> Proof {
        Proof { asked, epoch: Epoch(epoch) }
    }

    #[test]
    fn the_newest_proof_counts_and_only_for_its_range() {
        let begun = Clock::system().now();
        let later = begun + Duration::from_millis(5);
        let proofs = Proofs::default();
        assert_eq!(proofs.known(Epoch(1)), None);
        proofs.note(proof(later, 1));
        proofs.note(proof(begun, 1));
        assert_eq!(proofs.known(Epoch(1)), Some(proof(later, 1)), "what came late says nothing new");
        assert_eq!(proofs.known(Epoch(2)), None, "the range is another");
        proofs.note(proof(begun, 2));
        assert_eq!(proofs.known(Epoch(2)), Some(proof(begun, 2)));
        assert_eq!(proofs.known(Epoch(1)), None);
        proofs.note(proof(later, 1));
        assert_eq!(proofs.known(Epoch(2)), Some(proof(begun, 2)), "a proof of a range that was takes nothing away");
    }

    #[test]
    fn one_of_many_readers_asks_for_those_to_come_and_nobody_while_it_is_fresh() {
        let begun = Clock::system().now();
        let interval = Duration::from_millis(100);
        let proofs = Proofs::default();
        assert!(proofs.wish(begun, interval));
        assert!(!proofs.wish(begun, interval), "one wish is enough");
        proofs.begin(begun);
        assert!(!proofs.wish(begun + interval / 2, interval));
        assert!(proofs.wish(begun + interval, interval), "also when nothing came of the round before");
        proofs.unwish();
        assert!(proofs.wish(begun + interval, interval));
    }
}
