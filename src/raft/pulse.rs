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
//! The groups of a node beat in [`SLOTS`] turns, not each in a moment of its own: what is said in one turn leaves in one
//! flush for each other node, and is taken in there in one. That halves what a heartbeat costs.
//!
//! Left out: nodes that are known to be dead (node); this is for those that have only fallen silent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::group::Inner;
use super::status::{Part, Status};
use crate::runtime::{self, Clock, Task, random_u64};

/// Beats without a word from the leader after which elections are looked at again: the third is noticed before the
/// shortest time after which anyone may stand, which is longer than three.
const SILENT_BEATS_MAX: u32 = 2;

/// The turns into which a heartbeat's time is divided: few, so that much is said in each; not so few that a turn of a
/// thousand groups keeps everything else waiting for more than a moment.
const SLOTS: u64 = 16;

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
pub fn spawn(inner: &Arc<Inner>, clock: &Clock) -> Task<()> {
    let (inner, clock) = (inner.clone(), clock.clone());
    runtime::spawn(async move {
        let mut status = inner.status.subscribe();
        let beat = inner.options.timers.heartbeat;
        let mut ticking = Ticking::new();
        let mut next = clock.now() + until_turn(beat, random_u64() % SLOTS, clock.wall_ms());
        loop {
            let stopped = status.wait_for(|status| status.part == Part::Stopped);
            if runtime::timeout_at(next, stopped).await.is_some() {
                return;
            }
            // From turn to turn, so that groups which share one stay together; turns that were slept through are left out.
            while next <= clock.now() {
                next += beat;
            }
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

/// How long until the next beat in a turn. Turns are counted on the wall clock, which is one for all groups of a node, and
/// only when a replica starts: a clock that is set later moves no beat.
fn until_turn(beat: Duration, slot: u64, wall_ms: u64) -> Duration {
    let beat_ms = u64::try_from(beat.as_millis()).unwrap_or(u64::MAX).max(1);
    let turn = beat_ms * slot / SLOTS;
    Duration::from_millis((turn + beat_ms - wall_ms % beat_ms) % beat_ms)
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
    fn beats_of_one_turn_come_together_whenever_they_begin() {
        let beat = Duration::from_millis(320);
        let mut turns = std::collections::BTreeSet::new();
        for slot in 0..SLOTS {
            let mut moments = (10_000..10_700).map(|now| (now + until_turn(beat, slot, now).as_millis() as u64) % 320);
            let moment = moments.next().expect("some");
            assert!(moments.all(|other| other == moment), "turn {slot}");
            turns.insert(moment);
        }
        assert_eq!(turns.len() as u64, SLOTS);
    }

    #[test]
    fn a_silence_is_noticed_before_anyone_may_stand() {
        let Timers { heartbeat, election_min, election_max } = Timers::default();
        // A voter keeps to its leader for the longest time, and then waits for the shortest at least.
        assert!(noticed_within(heartbeat) < election_max + election_min);
    }
}
