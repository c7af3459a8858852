//! Takes over from a node whose process is gone, ahead of the election timeout.
//!
//! A voter keeps to its leader for some time after it has last heard from it, and only then stands for election: silence
//! may mean anything. But a process that ends says so. Its kernel closes its connections and refuses new ones, and when
//! it is there again it introduces itself with a new start (`lineage`). So a link that breaks is looked into at once,
//! and on either of these two signs the voters of the shards that were led there, or were about to be, stand right away, in
//! an order that all of them can tell by themselves: the one with the lowest id first; the next only if nobody has asked it
//! for its vote meanwhile, or if it had to refuse since its log is longer
//! ([`Group::take_over`](crate::raft::Group::take_over)). Where they get into each other's way all the same (one was slow to
//! notice), they stand again after pauses of random length; but one that was refused for its shorter log never does, since
//! each election it begins would depose the one that has won with its vote.
//!
//! A verdict is never trusted with more than an election. What is committed, and who may lead, is decided by the votes of
//! a majority as ever, and linearizable reads ask a majority each time; so a wrong verdict costs one term. How often it
//! may cost that is bounded for each node ([`Verdicts`]), and the elections are held a few at a time.
//!
//! Left out: a machine that has lost its power, a cut network, a process that stands still. Nobody says so then, and the
//! election timeout decides.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;

use super::host::Node;
use super::metrics;
use super::transport::endpoint;
use crate::raft::{Part, Status};
use crate::runtime::{Instant, random_u64, sleep, spawn, timeout};
use crate::shard::Shard;
use crate::types::{NodeId, ReplicaId};
use crate::wire::Channel;

/// Signs waiting to be looked into; there is at most one for each link that breaks and each node that starts, and one
/// that is lost costs an election timeout.
pub const SIGNS_MAX: usize = 64;
/// Pauses, in milliseconds, before the attempts to connect to a node whose link broke. The first may still be taken, by the queue of a
/// port that is about to be closed.
const PROBES_MS: [u64; 5] = [0, 10, 40, 100, 250];
/// How long one attempt may take. To be refused takes one round trip.
const PROBE_TIMEOUT: Duration = Duration::from_millis(250);
/// By how much later each further voter of a shard stands: some syncs of a disk, so that the one before had its chance.
const RANK_WAIT: Duration = Duration::from_millis(100);
/// Elections of one turn that are not decided yet: they share the syncs of the same few disks.
const ELECTIONS_AT_ONCE_MAX: usize = 16;
/// How long an election may take before its candidate stands again; up to as much again is added at random.
const ELECTION_WAIT_MS: u64 = 100;
/// How often a candidate stands. After that the election timeout decides.
const STANDS_MAX: u32 = 4;
/// Verdicts on one node: so many at once, and one more each time this much has passed. A node that is stopped and started
/// needs one; more often only one that is not gone at all but seems so again and again.
const VERDICTS_AT_ONCE_MAX: u32 = 4;
const VERDICT_EVERY: Duration = Duration::from_secs(5);

/// What makes one look whether a node is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Its link broke.
    LinkBroke(NodeId),
    /// It introduced itself with a start that was not known here: whatever it led before, it leads no more.
    StartedAgain(NodeId),
}

/// How often each node may be taken for gone: when its next verdict would be due if they came evenly.
#[derive(Debug, Default)]
struct Verdicts(HashMap<NodeId, Instant>);

impl Verdicts {
    /// Whether this verdict counts.
    fn pass(&mut self, node: NodeId, now: Instant) -> bool {
        let due = self.0.entry(node).or_insert(now);
        if *due > now + VERDICT_EVERY * (VERDICTS_AT_ONCE_MAX - 1) {
            return false;
        }
        *due = (*due).max(now) + VERDICT_EVERY;
        true
    }
}

/// Looks into signs until the node stops.
pub async fn run(node: Arc<Node>, mut signs: mpsc::Receiver<Sign>) {
    let mut stopping = node.stopping();
    let watch = async {
        let mut verdicts = Verdicts::default();
        let mut probed = HashSet::new();
        let mut probes = FuturesUnordered::new();
        loop {
            let gone = tokio::select! {
                Some(sign) = signs.recv() => match sign {
                    Sign::StartedAgain(peer) => Some(peer),
                    Sign::LinkBroke(peer) => {
                        if probed.insert(peer) {
                            probes.push(probe(node.clone(), peer));
                        }
                        None
                    }
                },
                Some((peer, refused)) = probes.next() => {
                    probed.remove(&peer);
                    if let Some(at) = refused {
                        node.links().silence(peer, at);
                    }
                    refused.and(Some(peer))
                }
                else => return,
            };
            // Of the two signs of one end, the second mostly finds nothing left to do, and is not counted.
            let gone = gone.filter(|&gone| !node.led_from(gone).is_empty());
            if let Some(gone) = gone.filter(|&gone| verdicts.pass(gone, node.clock().now())) {
                let node = node.clone();
                spawn(async move { node.take_over(gone).await });
            }
        }
    };
    tokio::select! {
        () = watch => {}
        _ = stopping.wait_for(|&stopping| stopping) => {}
    }
}

/// Whether connections to a node are refused: when that was found out.
async fn probe(node: Arc<Node>, peer: NodeId) -> (NodeId, Option<Instant>) {
    for pause in PROBES_MS.map(Duration::from_millis) {
        sleep(pause).await;
        let Some(address) = node.links().address(peer) else { break };
        let Ok(endpoint) = endpoint(&address) else { break };
        if let Some(Err(error)) = timeout(PROBE_TIMEOUT, Channel::connect(&address, &endpoint)).await
            && is_refusal(&*error)
        {
            return (peer, Some(node.clock().now()));
        }
    }
    (peer, None)
}

/// Whether somewhere in a chain of errors a connection was refused: by the machine, since no process listens there.
fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// The replica that led from `gone`, or may have been about to if nobody is known to lead, and how many others stand before
/// this one.
fn rank(status: &Status, gone: NodeId) -> Option<(ReplicaId, usize)> {
    let mine = status.replica;
    let leader = match status.leader {
        Some((leader, at)) => (at == gone).then_some(leader)?,
        None => status.voters.iter().find_map(|(&voter, &at)| (at == gone).then_some(voter))?,
    };
    if leader == mine || !status.voters.contains_key(&mine) {
        return None;
    }
    // In the order of their ids: of two that stand in the same term, a voter may go over to the one with the higher id.
    Some((leader, status.voters.keys().filter(|&&voter| voter < mine && voter != leader).count()))
}

impl Node {
    /// The shards with a voter here that were led from a node, each with the replica that led it, by how many voters stand before
    /// the one here.
    fn led_from(&self, gone: NodeId) -> BTreeMap<usize, Vec<(Arc<Shard>, ReplicaId)>> {
        let mut ranks: BTreeMap<usize, Vec<(Arc<Shard>, ReplicaId)>> = BTreeMap::new();
        for shard in self.replicas().all() {
            if let Some((leader, rank)) = rank(&shard.group().status(), gone) {
                ranks.entry(rank).or_default().push((shard, leader));
            }
        }
        ranks
    }

    /// Stands for election in every shard that was led from a node which is gone and that has a voter here, as its turn
    /// comes. Harmless if the node is not gone, but for an election.
    pub async fn take_over(self: &Arc<Self>, gone: NodeId) {
        if self.disk_stood_still_lately() {
            // What it could not lead. The next in turn stands after it.
            return;
        }
        let ranks = self.led_from(gone);
        if ranks.is_empty() {
            return;
        }
        tracing::info!(node = %gone, shards = ranks.values().map(Vec::len).sum::<usize>(), "taking over from a node that is gone");
        let began = self.clock().now();
        // Side by side: an election of the first turn that takes long must not keep the next from its own.
        let turns = ranks.into_iter().map(|(rank, shards)| async move {
            let turn = began + RANK_WAIT * u32::try_from(rank).unwrap_or(u32::MAX);
            crate::runtime::sleep_until(turn).await;
            let elections = futures::stream::iter(shards);
            elections.for_each_concurrent(ELECTIONS_AT_ONCE_MAX, |(shard, leader)| stand(shard, leader)).await;
        });
        futures::future::join_all(turns).await;
    }
}

/// What a voter does that stood, and after a while still knows of no new leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Undecided {
    /// It cannot win: another's log is longer.
    Leave,
    /// Somebody else may be about to win.
    Wait,
    StandAgain,
}

impl Undecided {
    /// What one that plays this `part` now does; `behind` if its log was found to be shorter than another's, `waited` if it
    /// has already waited once.
    fn of(part: Part, behind: bool, waited: bool) -> Undecided {
        if behind {
            // By standing again it would take the term from whoever wins, with its vote or without.
            Undecided::Leave
        } else if part != Part::Candidate && !waited {
            // It has given its vote to another meanwhile, whose first word as a leader may be on its way.
            Undecided::Wait
        } else {
            Undecided::StandAgain
        }
    }
}

/// Stands in one shard until somebody leads it.
async fn stand(shard: Arc<Shard>, leader: ReplicaId) {
    match shard.group().take_over(leader).await {
        Ok(true) => ::metrics::counter!(metrics::TAKEN_OVER).increment(1),
        Ok(false) => return,
        Err(error) => return tracing::debug!(shard = %shard.id(), %error, "cannot stand"),
    }
    let mut status = shard.group().watch();
    let mut waited = false;
    for _ in 1..STANDS_MAX {
        let wait = Duration::from_millis(ELECTION_WAIT_MS + random_u64() % ELECTION_WAIT_MS);
        let decided = status.wait_for(|status| status.leader.is_some_and(|(now, _)| now != leader));
        if timeout(wait, decided).await.is_some() {
            return;
        }
        let part = status.borrow().part;
        match Undecided::of(part, shard.group().is_behind(), waited) {
            Undecided::Leave => return,
            Undecided::Wait => waited = true,
            // Those who stood in one term have each voted for themselves. Whoever stands next does so in a higher one.
            Undecided::StandAgain => {
                if shard.group().stand().await.is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Clock;

    #[test]
    fn a_node_that_flaps_is_taken_for_gone_now_and_then_and_one_that_restarts_each_time() {
        let mut verdicts = Verdicts::default();
        let began = Clock::system().now();
        let passed = |verdicts: &mut Verdicts, node: u64, every: Duration, signs: u32| {
            (0..signs).filter(|&sign| verdicts.pass(NodeId(node), began + every * sign)).count()
        };
        // Ten times a second for ten minutes.
        let flapping = passed(&mut verdicts, 1, Duration::from_millis(100), 6_000);
        assert_eq!(flapping, 600 / VERDICT_EVERY.as_secs() as usize + VERDICTS_AT_ONCE_MAX as usize - 1);
        assert_eq!(passed(&mut verdicts, 2, VERDICT_EVERY, 100), 100, "every node has its own");
        assert_eq!(passed(&mut verdicts, 3, Duration::ZERO, 100), VERDICTS_AT_ONCE_MAX as usize);
    }

    #[test]
    fn only_a_refusal_says_that_a_process_is_gone() {
        #[derive(Debug, thiserror::Error)]
        #[error("transport error")]
        struct Chained(#[source] io::Error);
        let chained = |kind: io::ErrorKind| Chained(kind.into());
        assert!(is_refusal(&io::Error::from(io::ErrorKind::ConnectionRefused)));
        assert!(is_refusal(&chained(io::ErrorKind::ConnectionRefused)));
        for other in [io::ErrorKind::TimedOut, io::ErrorKind::ConnectionReset, io::ErrorKind::HostUnreachable] {
            assert!(!is_refusal(&chained(other)), "{other}");
        }
    }

    #[test]
    fn a_candidate_stands_again_unless_it_would_be_in_the_way() {
        use Undecided::*;
        assert_eq!(Undecided::of(Part::Candidate, false, false), StandAgain, "nobody else stood");
        assert_eq!(Undecided::of(Part::Candidate, true, false), Leave);
        assert_eq!(Undecided::of(Part::Follower, true, true), Leave);
        assert_eq!(Undecided::of(Part::Follower, false, false), Wait, "another has its vote");
        assert_eq!(Undecided::of(Part::Follower, false, true), StandAgain, "and did not win");
    }

    #[test]
    fn voters_stand_one_after_the_other() {
        let status = |mine: u64, leader: u64| Status {
            replica: ReplicaId(mine),
            term: 3,
            leader: Some((ReplicaId(leader), NodeId(leader / 10))),
            part: Part::Follower,
            last_log: 9,
            committed: 9,
            applied: 9,
            snapshot: None,
            purged: None,
            voters: [10, 20, 30, 40, 50].map(|id| (ReplicaId(id), NodeId(id / 10))).into(),
            learners: [(ReplicaId(60), NodeId(6))].into(),
            members_at: 1,
            joint: false,
            matched: BTreeMap::new(),
            failure: None,
        };
        let ranks = |leader: u64| {
            [10, 20, 30, 40, 50, 60].map(|mine| rank(&status(mine, leader), NodeId(2)).map(|(_, rank)| rank))
        };
        assert_eq!(ranks(20), [Some(0), None, Some(1), Some(2), Some(3), None]);
        assert_eq!(ranks(30), [None; 6], "led from elsewhere");
        let unled = |mine: u64, gone| rank(&Status { leader: None, ..status(mine, 30) }, NodeId(gone));
        assert_eq!(unled(10, 2), Some((ReplicaId(20), 0)), "it may have been the candidate");
        assert_eq!(unled(10, 6), None, "that one has no vote");
    }
}
