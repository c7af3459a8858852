//! The beat of one replica: heartbeats while it leads, and a look at elections only when its leader falls silent.
//!
//! openraft would wake every replica five times for each heartbeat, leading or not, to see whether it is time for a
//! heartbeat or for an election. With a thousand groups on a node that was most of what idle groups cost, for a question
//! whose answer is nearly always no. So its timer is at rest ([`Ticking`]) while all is well, and this task, which wakes
//! once for each heartbeat and then mostly looks at two words of memory, decides when all is well: the replica leads, or
//! it follows a leader that it heard from within the last [`SILENT_BEATS_MAX`] beats.
//!
//! This can delay an election and nothing else: who may stand, and when, is decided by openraft alone, whose timer runs
//! again long before the time comes for it. A leader counts as heard only by a message that was taken, so one that has
//! been deposed and goes on sending does not keep its successors from being elected.
//!
//! Left out: nodes that are known to be dead (node); this is for those that have only fallen silent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::group::Inner;
use super::status::{Part, Status};
use crate::runtime::{self, Task, random_u64};

/// Beats without a word from the leader after which elections are looked at again: the third is noticed before the
/// shortest time after which anyone may stand, which is longer than three.
const SILENT_BEATS_MAX: u32 = 2;

/// Whether a replica's leader was heard from since the last beat.
#[derive(Debug, Default)]
pub struct Heard(AtomicBool);

impl Heard {
    /// The leader has said something, and was taken for the leader.
    pub fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// Whether openraft's own timer runs.
#[derive(Debug)]
struct Ticking {
    /// Beats since the leader was heard from. A replica that has just started has not heard from anyone.
    silent: u32,
}

impl Ticking {
    fn new() -> Ticking {
        Ticking { silent: SILENT_BEATS_MAX }
    }

    /// Whether it should run from this beat on.
    fn at_beat(&mut self, part: Part, leader_known: bool, heard: bool) -> bool {
        self.silent = if heard { 0 } else { self.silent.saturating_add(1) };
        match part {
            Part::Leader => false,
            Part::Follower | Part::Learner => !leader_known || self.silent >= SILENT_BEATS_MAX,
            Part::Candidate | Part::Stopped => true,
        }
    }
}

/// Starts the task. It ends when the replica stops, or is told to.
pub fn spawn(inner: &Arc<Inner>) -> Task<()> {
    let inner = inner.clone();
    runtime::spawn(async move {
        let mut status = inner.status.subscribe();
        let beat = inner.options.timers.heartbeat;
        let mut ticking = Ticking::new();
        // Not all groups of a node in the same moment.
        let mut pause = beat.mul_f64(random_u64() as f64 / u64::MAX as f64);
        loop {
            let stopped = status.wait_for(|status| status.part == Part::Stopped);
            if runtime::timeout(pause, stopped).await.is_some() {
                return;
            }
            pause = beat;
            let (part, leader_known) = part_of(&status.borrow());
            let run = ticking.at_beat(part, leader_known, inner.heard.take());
            inner.raft.runtime_config().tick(run);
            // Its queue is full when it is busy, and then this waits for its turn like everything else.
            if part == Part::Leader && inner.raft.trigger().heartbeat().await.is_err() {
                return;
            }
        }
    })
}

fn part_of(status: &Status) -> (Part, bool) {
    (status.part, status.leader.is_some())
}

/// The longest time after which a silence is noticed; see [`SILENT_BEATS_MAX`].
#[cfg(test)]
fn noticed_within(heartbeat: Duration) -> Duration {
    heartbeat * (SILENT_BEATS_MAX + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Timers;

    #[test]
    fn the_timer_runs_unless_all_is_well() {
        let mut ticking = Ticking::new();
        assert!(ticking.at_beat(Part::Follower, true, false), "it has just started and heard nothing");
        assert!(!ticking.at_beat(Part::Follower, true, true));
        assert!(!ticking.at_beat(Part::Follower, true, false), "one beat may get lost");
        assert!(ticking.at_beat(Part::Follower, true, false), "two are a silence");
        assert!(ticking.at_beat(Part::Follower, true, false));
        assert!(!ticking.at_beat(Part::Learner, true, true));
        assert!(ticking.at_beat(Part::Follower, false, true), "nobody leads");
        assert!(ticking.at_beat(Part::Candidate, false, false));
        assert!(!ticking.at_beat(Part::Leader, true, false), "a leader has no election to wait for");
        assert!(ticking.at_beat(Part::Follower, true, false), "deposed, and silent for long");
    }

    #[test]
    fn a_silence_is_noticed_before_anyone_may_stand() {
        let Timers { heartbeat, election_min, election_max } = Timers::default();
        // A voter keeps to its leader for the longest time, and then waits for the shortest at least.
        assert!(noticed_within(heartbeat) < election_max + election_min);
    }
}
