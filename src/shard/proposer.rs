//! Gathers the commands of many clients into one proposal while the one before is on its way.
//!
//! No timer: what has queued up while a proposal was being committed becomes the next one, so a busy shard makes large
//! entries and an idle one answers at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};

use super::command;
use super::metrics;
use super::outcomes::CARRYING_HISTORY_MS_MIN;
use crate::raft::{Group, ProposeError};
use crate::runtime::{Clock, yield_now};
use crate::storage::LogWriter;
use crate::types::{Error, Outcome, Outcomes, Reason, Timestamp};
use crate::wire::proto::internal as log;

/// Commands waiting to be proposed, per shard; beyond that writers are told to back off.
pub const QUEUE_COMMANDS_MAX: usize = 8_192;
/// Commands in one proposal.
const PROPOSAL_COMMANDS_MAX: usize = 1_024;
/// Bytes after which a proposal is full (a single larger command still goes, alone).
const PROPOSAL_BYTES_MAX: usize = 1 << 20;
/// Proposals of one shard on their way at once. More would make smaller batches, and this machine class is short of
/// CPU, not of concurrency: other shards share the same fsync anyway.
const PROPOSALS_IN_FLIGHT_MAX: usize = 1;

/// A command waiting, with the one who waits for its outcome.
pub struct Pending {
    /// What to propose.
    pub kind: PendingKind,
    /// About how large it is.
    pub bytes: usize,
    /// Where the outcome goes.
    pub answer: oneshot::Sender<Result<Outcome, Error>>,
}

/// What waits to be proposed.
pub enum PendingKind {
    /// A client's command.
    Command(log::Command),
    /// The leader's wish to trim history.
    Horizon(Timestamp),
    /// The leader tells readers of the past: no later version may lie at or before this.
    Passed(Timestamp),
    /// The leader's wish for checksums under a name.
    Checksum(u64),
    /// The leader's wish to split.
    Split(log::Split),
    /// The leader's wish to end, for the left neighbour.
    Seal(log::Seal),
    /// The leader's wish to take over the right neighbour.
    Absorb(log::Absorb),
    /// The leader's wish to do without a merge.
    Abandon(log::Abandon),
}

/// Runs until the last sender is gone. `history_ms` is how long the table keeps replaced versions.
pub async fn run(
    group: Group,
    writer: LogWriter,
    clock: Clock,
    history_ms: Arc<AtomicU64>,
    mut queue: mpsc::Receiver<Pending>,
) {
    let mut waiting: VecDeque<Pending> = VecDeque::new();
    let mut taken = Vec::new();
    let mut in_flight = FuturesUnordered::new();
    let mut open = true;
    loop {
        if waiting.is_empty() && in_flight.is_empty() {
            if !open {
                return;
            }
            match queue.recv().await {
                Some(pending) => waiting.push_back(pending),
                None => return,
            }
        }
        // Whoever is ready now rides along, also those whose requests lie in a socket.
        if in_flight.len() < PROPOSALS_IN_FLIGHT_MAX {
            yield_now().await;
        }
        while waiting.len() < PROPOSAL_COMMANDS_MAX {
            match queue.try_recv() {
                Ok(pending) => waiting.push_back(pending),
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    open = false;
                    break;
                }
            }
        }
        if !waiting.is_empty() && in_flight.len() < PROPOSALS_IN_FLIGHT_MAX {
            let carry = history_ms.load(Ordering::Relaxed) >= CARRYING_HISTORY_MS_MIN;
            let (payload, answers) = gather(&mut waiting, &clock, carry);
            writer.note_crowd(answers.len());
            let group = group.clone();
            in_flight.push(async move { (group.propose(payload).await, answers) });
            continue;
        }
        tokio::select! {
            biased;
            Some((outcomes, answers)) = in_flight.next(), if !in_flight.is_empty() => distribute(outcomes, answers),
            count = queue.recv_many(&mut taken, PROPOSAL_COMMANDS_MAX), if open && waiting.len() < PROPOSAL_COMMANDS_MAX => {
                if count == 0 {
                    open = false;
                }
                waiting.extend(taken.drain(..));
            }
        }
    }
}

type Answers = Vec<oneshot::Sender<Result<Outcome, Error>>>;

/// Takes the next proposal's worth of commands.
fn gather(waiting: &mut VecDeque<Pending>, clock: &Clock, versions_carry_outcomes: bool) -> (bytes::Bytes, Answers) {
    let mut commands = Vec::new();
    let mut answers = Vec::new();
    let mut horizon = None;
    let mut checksum = None;
    let mut passed = None;
    let (mut split, mut seal, mut absorb, mut abandon) = (None, None, None, None);
    let mut bytes = 0;
    while let Some(pending) = waiting.front() {
        let full = commands.len() >= PROPOSAL_COMMANDS_MAX || (bytes > 0 && bytes + pending.bytes > PROPOSAL_BYTES_MAX);
        let alone = !matches!(pending.kind, PendingKind::Command(_));
        if full || (alone && !answers.is_empty()) {
            break;
        }
        let Some(pending) = waiting.pop_front() else { break };
        bytes += pending.bytes;
        answers.push(pending.answer);
        match pending.kind {
            PendingKind::Command(command) => commands.push(command),
            PendingKind::Horizon(timestamp) => horizon = Some(timestamp),
            PendingKind::Passed(timestamp) => passed = Some(timestamp),
            PendingKind::Checksum(name) => checksum = Some(name),
            PendingKind::Split(wish) => split = Some(wish),
            PendingKind::Seal(wish) => seal = Some(wish),
            PendingKind::Absorb(wish) => absorb = Some(wish),
            PendingKind::Abandon(wish) => abandon = Some(wish),
        }
        if alone {
            break;
        }
    }
    ::metrics::histogram!(metrics::PROPOSAL_COMMANDS).record(commands.len() as f64);
    let proposal = log::Proposal {
        stamped: Timestamp::from_millis(clock.wall_ms()).0,
        commands,
        horizon: horizon.map(|timestamp: Timestamp| timestamp.0),
        checksum,
        passed: passed.map(|timestamp: Timestamp| timestamp.0),
        versions_carry_outcomes,
        split,
        seal,
        absorb,
        abandon,
    };
    (command::encode(proposal), answers)
}

/// Hands each writer its outcome.
fn distribute(outcomes: Result<Outcomes, ProposeError>, answers: Answers) {
    match outcomes {
        Ok(outcomes) if outcomes.is_empty() => {
            // A proposal without commands: its sender only wants to know that it was applied.
            for answer in answers {
                let _ = answer.send(Ok(Outcome::default()));
            }
        }
        Ok(outcomes) => {
            assert_eq!(outcomes.len(), answers.len(), "apply answers every command of a proposal");
            for (outcome, answer) in outcomes.into_iter().zip(answers) {
                let _ = answer.send(outcome);
            }
        }
        Err(error) => {
            let error = refusal(&error);
            for answer in answers {
                let _ = answer.send(Err(error.clone()));
            }
        }
    }
}

/// What a failed proposal means to a writer.
fn refusal(error: &ProposeError) -> Error {
    match error {
        ProposeError::NotLeader { leader } => {
            Error::new(Reason::NotLeader, "this replica does not lead the shard; nothing was written")
                .with_leader(leader.map(|(_, node)| node))
        }
        ProposeError::Undetermined => Error::new(
            Reason::ResultUndetermined,
            "leadership changed while the write was on its way; it may or may not have taken effect: repeat it with \
             the same request id",
        ),
        ProposeError::Stopped => Error::new(
            Reason::ResultUndetermined,
            "the replica stopped while the write was on its way; repeat it with the same request id",
        ),
    }
}
