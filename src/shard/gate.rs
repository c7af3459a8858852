//! Where linearizable reads wait: one confirmation of leadership (ReadIndex) serves all reads queued before it began.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::metrics;
use crate::raft::{Group, ReadError};
use crate::runtime::{Clock, Instant};
use crate::types::{Error, Reason};

/// Reads waiting for a confirmation, per shard; beyond that readers are told to back off.
pub const QUEUE_READS_MAX: usize = 16_384;

/// One waiting reader: told when the confirmation that covers it was asked for.
pub type Waiting = oneshot::Sender<Result<Instant, Error>>;

/// Runs until the last sender is gone.
pub async fn run(group: Group, clock: Clock, mut queue: mpsc::Receiver<Waiting>) {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, QUEUE_READS_MAX).await > 0 {
        ::metrics::histogram!(metrics::GATE_READS).record(waiting.len() as f64);
        let asked = clock.now();
        let answer = group.confirm().await.map(|()| asked).map_err(|error| refusal(&error));
        for reader in waiting.drain(..) {
            let _ = reader.send(answer.clone());
        }
    }
}

/// How long a reader waits before asking again when no quorum answers.
const NO_QUORUM_RETRY: Duration = Duration::from_millis(100);

/// What a failed confirmation means to a reader.
pub fn refusal(error: &ReadError) -> Error {
    match error {
        ReadError::NotLeader { leader } => Error::new(Reason::NotLeader, "this replica does not lead the shard")
            .with_leader(leader.map(|(_, node)| node)),
        ReadError::NoQuorum => Error::new(Reason::NoQuorum, "a quorum of the shard's replicas does not answer")
            .with_retry_after(NO_QUORUM_RETRY),
        ReadError::Stopped => Error::new(Reason::NotReady, "the replica has stopped"),
    }
}
