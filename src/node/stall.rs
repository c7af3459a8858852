//! Gives up leading while this node's disk stands still.
//!
//! A disk that fails ends the node, and others take over. One that only stops answering, for seconds, is worse: the node
//! goes on sending heartbeats, so nobody takes over, and every write it leads waits for the disk. The log writer knows since
//! when a batch has been on its way to the disk; once that is [`STALLED_AFTER`], the node says so (its report, `/readyz`),
//! hands its leaderships to other voters, refuses writes where it still counts as the leader, and stands in no election.
//! All this ends when the disk answers, so that a moment in which the disks of all nodes stood still is over when it is over;
//! only in what it says of itself, and in taking over from others, the node waits for [`WELL_AFTER`] before it is like any
//! other again.
//!
//! Handing over needs nothing of this disk: the message goes out as it is, the entries the next leader must have were sent
//! before they were durable here, and a majority of the others votes. This replica itself learns of it when it can store its
//! own vote, which is when its disk answers again; until then it believes that it leads, and can confirm no read and commit
//! no write, since the others follow another. A voter whose disk stands still too acknowledges no heartbeat that follows a
//! write, so leaderships are not handed from one such node to the next.
//!
//! Left out: a disk that is merely slow, which every write feels a little; and one that fails (the log writer ends the node).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::host::Node;
use super::metrics;
use crate::runtime::{Instant, Task, sleep, spawn};
use crate::types::{Error, Reason, Result};

/// Between looks at the log writer.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A batch that has been on its way to the disk for this long makes it a disk that stands still: far longer than a sync on a
/// busy disk takes, and about as long as writers would wait for an election.
const STALLED_AFTER: Duration = Duration::from_secs(1);
/// For this long nothing must have stood still before the node says that it is well and takes over from others.
const WELL_AFTER: Duration = Duration::from_secs(5);

/// The disk, from one look to the next.
#[derive(Debug, Default)]
struct Verdict {
    /// It stands still, or did lately.
    lately: bool,
    /// Since when it has been well again.
    well_since: Option<Instant>,
}

impl Verdict {
    /// Judges at `now`, when a batch has been outstanding since `since`: whether the disk stands still, and whether it did
    /// lately.
    fn judge(&mut self, since: Option<Instant>, now: Instant) -> (bool, bool) {
        let stands = since.is_some_and(|since| now.saturating_duration_since(since) >= STALLED_AFTER);
        if stands {
            (self.lately, self.well_since) = (true, None);
        } else if self.lately {
            let well_since = *self.well_since.get_or_insert(now);
            self.lately = now.saturating_duration_since(well_since) < WELL_AFTER;
        }
        (stands, self.lately)
    }
}

/// What the rest of the node sees of it.
#[derive(Debug, Default)]
pub struct Stalled {
    now: AtomicBool,
    lately: AtomicBool,
}

impl Node {
    /// Whether this node's disk stands still.
    pub(super) fn disk_stands_still(&self) -> bool {
        self.stalled().now.load(Ordering::Relaxed)
    }

    /// Whether it does, or did a moment ago.
    pub(super) fn disk_stood_still_lately(&self) -> bool {
        self.stalled().lately.load(Ordering::Relaxed)
    }

    /// Whether the disk answers and has room; the error says what is wrong.
    pub fn check_disk(&self) -> Result<()> {
        if self.disk_stood_still_lately() {
            let seconds = STALLED_AFTER.as_secs();
            return Err(Error::new(
                Reason::NotReady,
                format!("the disk stands still: a write took longer than {seconds} s; while it does, others lead"),
            ));
        }
        self.check_room()
    }

    /// Refuses a write to a shard led here while the disk stands still: nothing has happened, and another node leads soon.
    pub(super) fn refuse_while_stalled(&self) -> Result<()> {
        if !self.disk_stands_still() {
            return Ok(());
        }
        Err(Error::new(Reason::NotLeader, format!("the disk of {} stands still, another node is to lead", self.id())))
    }
}

/// Watches the disk until the node stops.
pub async fn run(node: Arc<Node>) {
    let mut stopping = node.stopping();
    let watch = async {
        let mut verdict = Verdict::default();
        let mut handing_over: Option<Task<()>> = None;
        loop {
            sleep(LOOK_EVERY).await;
            let before = node.disk_stands_still();
            let (stalled, lately) = verdict.judge(node.writer().outstanding_since(), node.clock().now());
            node.stalled().now.store(stalled, Ordering::Relaxed);
            node.stalled().lately.store(lately, Ordering::Relaxed);
            if stalled != before {
                turn(&node, stalled);
            }
            // In a task of its own, since what a stalled replica is asked may wait for its disk.
            if stalled && handing_over.as_ref().is_none_or(Task::is_finished) {
                let node = node.clone();
                handing_over = Some(spawn(async move {
                    let now = node.clock().now();
                    node.pass_leaderships_on(|to| !node.rooms().lacks(to, now)).await;
                }));
            }
        }
    };
    tokio::select! {
        () = watch => {}
        _ = stopping.wait_for(|&stopping| stopping) => {}
    }
}

fn turn(node: &Node, stalled: bool) {
    if stalled {
        tracing::warn!("the disk stands still: handing leaderships over");
    } else {
        tracing::info!("the disk answers again");
    }
    ::metrics::gauge!(metrics::DISK_STALLED).set(f64::from(u8::from(stalled)));
    for shard in node.replicas().all() {
        shard.group().stand_in_elections(!stalled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Clock;

    #[test]
    fn a_disk_stands_still_after_a_while_and_is_well_after_a_longer_one() {
        let began = Clock::system().now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let mut verdict = Verdict::default();
        let mut judge = |since: Option<u64>, now: u64| verdict.judge(since.map(at), at(now));
        let (well, recovering, still) = ((false, false), (false, true), (true, true));
        assert_eq!(judge(None, 0), well);
        assert_eq!(judge(Some(10), 1_009), well);
        assert_eq!(judge(Some(10), 1_010), still);
        assert_eq!(judge(Some(10), 9_000), still);
        assert_eq!(judge(None, 9_100), recovering, "it answered a moment ago");
        assert_eq!(judge(Some(13_000), 13_900), recovering);
        assert_eq!(judge(Some(13_000), 14_000), still, "again");
        assert_eq!(judge(None, 14_100), recovering);
        assert_eq!(judge(Some(19_000), 19_099), recovering, "a sync like any other, but not long enough since");
        assert_eq!(judge(None, 19_100), well);
        assert_eq!(judge(Some(19_500), 20_000), well);
    }
}
