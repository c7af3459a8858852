//! Where reads wait that need a proof: one confirmation of leadership (ReadIndex) serves all that queued before it began.
//!
//! Every replica has a gate. The leader's asks a quorum. The gate of a replica that follows asks the leader's: its
//! question is one small frame on the link between the two nodes, which carries whatever the other shards of the pair
//! have to ask in the same flush, and at the leader it waits like any other reader. So however many readers wait at
//! however many replicas, a shard has one confirmation under way at its leader, and one question from each replica.
//! Nothing is asked without a reader: a replica that serves none costs nothing.
//!
//! A round of a follower ends early when it hears of another leader, and in bounded time in any case: its readers are
//! then told to ask the leader themselves ([`Reason::TooStale`]).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::{mpsc, oneshot};

use super::age::{Proof, Proofs};
use super::awaited::Awaited;
use super::machine::Shared;
use super::metrics;
use crate::raft::{Group, Kind, Outgoing, ReadError, Transport};
use crate::runtime::planted::{self, Bug};
use crate::runtime::{Clock, timeout_at};
use crate::types::{Error, Reason};
use crate::wire::proto::internal::{ConfirmQuestion, ConfirmedIndex};

/// Readers and replicas waiting for a confirmation, per shard; beyond that they are told to back off.
pub const QUEUE_READS_MAX: usize = 16_384;
/// How long a replica waits for its leader's answer, and to have applied what it says. An answer takes a round trip or
/// two; a leader that takes this long is about to be replaced, or its followers are far behind.
const PATIENCE: Duration = Duration::from_secs(1);
/// Entries that a replica may lack and still wait for them: to apply this many takes some tens of milliseconds.
const ENTRIES_BEHIND_MAX: u64 = 4_096;
/// How long a reader waits before asking again when no quorum answers.
const NO_QUORUM_RETRY: Duration = Duration::from_millis(100);

/// Somebody who waits for a confirmation.
pub enum Waiting {
    /// A reader of this replica: told the proof, once this replica has applied what was confirmed.
    Reader {
        /// Is told.
        proven: oneshot::Sender<Result<Proof, Error>>,
        /// Somebody waits until views have taken in what is proven ([`Awaited`]).
        awaited: bool,
    },
    /// Another replica of the group: told the index.
    Replica {
        /// Is told.
        answer: oneshot::Sender<Result<Bytes, String>>,
        /// Of those who wait there, one does for views.
        awaited: bool,
    },
    /// Nobody yet: the proof is for those who come later.
    Later,
}

impl Waiting {
    /// Whether somebody waits until views have taken in what is confirmed.
    fn is_awaited(&self) -> bool {
        match self {
            Waiting::Reader { awaited, .. } | Waiting::Replica { awaited, .. } => *awaited,
            Waiting::Later => false,
        }
    }

    /// Answers if it is another replica that waits; whether it was.
    fn answer_replica(&mut self, index: &Result<u64, Error>) -> bool {
        if !matches!(self, Waiting::Replica { .. }) {
            return false;
        }
        if let Waiting::Replica { answer, .. } = std::mem::replace(self, Waiting::Later) {
            let _ = answer.send(match index {
                Ok(index) => Ok(ConfirmedIndex { index: *index }.encode_to_vec().into()),
                Err(error) => Err(error.message.clone()),
            });
        }
        true
    }
}

/// The gate of one replica.
pub struct Gate {
    /// The replica's group.
    pub group: Group,
    /// Whose monotonic time counts.
    pub clock: Clock,
    /// The way to the leader.
    pub transport: Arc<dyn Transport>,
    /// What has been applied.
    pub shared: Arc<Shared>,
    /// Where proofs go.
    pub proofs: Arc<Proofs>,
    /// Where it is said that views are waited for.
    pub awaited: Arc<Awaited>,
}

impl Gate {
    /// Runs until the last sender is gone.
    pub async fn run(self, mut queue: mpsc::Receiver<Waiting>) {
        let (mut waiting, mut readers) = (Vec::new(), Vec::new());
        while queue.recv_many(&mut waiting, QUEUE_READS_MAX).await > 0 {
            ::metrics::histogram!(metrics::GATE_READS).record(waiting.len() as f64);
            let asked = self.clock.now();
            self.proofs.begin(asked);
            let leads = self.group.watch().borrow().is_leader();
            let awaited = waiting.iter().any(Waiting::is_awaited);
            let index = if leads {
                if awaited {
                    self.awaited.note();
                }
                let index = self.group.read_index().await.map_err(|error| refusal(&error));
                if awaited {
                    // What was written meanwhile is in the proof, too.
                    self.awaited.note();
                }
                index
            } else {
                // Two replicas may take each other for the leader while an election settles: none waits for the other.
                let refused = Err(Error::new(Reason::NotLeader, "this replica does not lead the shard"));
                waiting.retain_mut(|one| !one.answer_replica(&refused));
                self.ask_the_leader(awaited).await
            };
            for mut one in waiting.drain(..) {
                if !one.answer_replica(&index)
                    && let Waiting::Reader { proven: reader, .. } = one
                {
                    readers.push(reader);
                }
            }
            let proof = match index {
                Ok(index) => self.reach(index).await.map(|()| {
                    let asked = if planted::is(Bug::AgeUnderReported) { self.clock.now() } else { asked };
                    Proof { asked, epoch: self.shared.state.load().epoch }
                }),
                Err(error) => Err(error),
            };
            if let Ok(proof) = &proof {
                self.proofs.note(*proof);
            }
            for reader in readers.drain(..) {
                let _ = reader.send(proof.clone());
            }
        }
    }

    /// Asks the leader for a confirmed index.
    async fn ask_the_leader(&self, awaited: bool) -> Result<u64, Error> {
        let mut status = self.group.watch();
        let leader = status.borrow_and_update().leader;
        let Some((replica, node)) = leader.filter(|(replica, _)| *replica != self.group.replica()) else {
            return Err(Error::new(Reason::NotLeader, "this replica knows no leader that could prove its age"));
        };
        ::metrics::counter!(metrics::PROOFS_ASKED).increment(1);
        let question = Outgoing {
            group: self.group.shard(),
            from: self.group.replica(),
            to: replica,
            kind: Kind::ReadIndex,
            payload: ConfirmQuestion { awaited }.encode_to_vec().into(),
        };
        let answered = self.transport.send(node, question);
        let deadline = self.clock.now() + PATIENCE;
        let answer = timeout_at(deadline, async {
            tokio::select! {
                answer = answered => Some(answer),
                // An error means that the replica stops.
                _ = status.wait_for(|status| status.leader != leader) => None,
            }
        });
        let stale = |why: &dyn std::fmt::Display| unproven(why).with_leader(Some(node));
        match answer.await {
            Some(Some(Ok(Ok(payload)))) => ConfirmedIndex::decode(payload)
                .map(|confirmed| confirmed.index)
                .map_err(|_| stale(&"the leader's answer cannot be understood; do the versions match?")),
            Some(Some(Ok(Err(error)))) => Err(stale(&error)),
            Some(Some(Err(_))) => Err(stale(&"the connection to the leader broke")),
            Some(None) => Err(unproven(&"the leader has changed")),
            None => Err(stale(&"the leader did not answer in time")),
        }
    }

    /// Waits until this replica has applied the index.
    async fn reach(&self, index: u64) -> Result<(), Error> {
        let leader = self.group.watch().borrow().leader.map(|(_, node)| node);
        if index > self.group.applied().saturating_add(ENTRIES_BEHIND_MAX) {
            return Err(unproven(&"it is far behind").with_leader(leader));
        }
        match timeout_at(self.clock.now() + PATIENCE, self.group.wait_applied(index)).await {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) => Err(Error::new(Reason::NotReady, "the replica has stopped")),
            None => Err(unproven(&"it did not catch up in time").with_leader(leader)),
        }
    }
}

/// This replica cannot prove what the reader asks for; its leader can.
fn unproven(why: &dyn std::fmt::Display) -> Error {
    let text = format!("this replica cannot prove that it is fresh enough ({why}); ask the shard's leader");
    Error::new(Reason::TooStale, text)
}

/// What a failed confirmation means to a reader.
fn refusal(error: &ReadError) -> Error {
    match error {
        ReadError::NotLeader { leader } => Error::new(Reason::NotLeader, "this replica does not lead the shard")
            .with_leader(leader.map(|(_, node)| node)),
        ReadError::NoQuorum => Error::new(Reason::NoQuorum, "a quorum of the shard's replicas does not answer")
            .with_retry_after(NO_QUORUM_RETRY),
        ReadError::Stopped => Error::new(Reason::NotReady, "the replica has stopped"),
    }
}
