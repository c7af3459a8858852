//! What every workload's clients do alike: keep a pace, stop when told, note what they were told.

use std::future::Future;
use std::time::Duration;

use futures::future::try_join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;
use trivet::types::{Answer, Header, Role};

use super::Context;
use super::access::{Access, Doors, Lost};
use crate::history::{Extra, Pending, Process};

/// Longest time that the final reads are tried: the cluster is healed, so long before it is over they should succeed.
const FINAL: Duration = Duration::from_secs(60);
/// Pause between tries of a final read.
const FINAL_PAUSE: Duration = Duration::from_millis(200);

/// One client of a workload.
pub struct Worker {
    /// Its number among the workload's clients.
    pub number: usize,
    /// What it is in the history.
    pub process: Process,
    /// Its way to the table.
    pub access: Access,
    /// Its own random numbers.
    pub random: StdRng,
    /// When its next operation is due.
    pub pace: Pace,
}

/// Turns at a mean rate, until the stop signal.
pub struct Pace {
    interval: Duration,
    due: Instant,
    stop: watch::Receiver<bool>,
    random: StdRng,
}

impl Pace {
    /// Waits for the next turn; false: it is time to stop. A client that was held up does not make up for it.
    pub async fn turn(&mut self) -> bool {
        let jitter = self.random.random_range(0.5..1.5);
        self.due = (self.due + self.interval.mul_f64(jitter)).max(Instant::now());
        // An error: nobody can stop it any more, so it stops.
        let stopped = tokio::time::timeout_at(self.due, self.stop.wait_for(|stop| *stop)).await;
        stopped.is_err()
    }
}

/// Random numbers of one part of a run.
pub fn random(context: &Context, part: u64) -> StdRng {
    let name = context.history.name().bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    StdRng::seed_from_u64(context.seed ^ name.rotate_left(32) ^ part.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// Turns of one part of a run, at a mean of one in so much time.
pub fn pace(context: &Context, part: u64, interval: Duration) -> Pace {
    Pace { interval, due: Instant::now(), stop: context.stop.clone(), random: random(context, part) }
}

/// Runs `count` clients side by side until each of them ends.
pub async fn drive<F, Fut>(context: &Context, doors: &Doors, count: usize, body: F) -> anyhow::Result<()>
where
    F: Fn(Worker) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let interval = Duration::from_secs_f64(count as f64 / context.rate.max(0.001));
    let workers = (0..count).map(|number| {
        let part = number as u64 * 2;
        let pace = pace(context, part + 1, interval);
        body(Worker {
            number,
            process: context.history.process(),
            access: doors.of_worker(number),
            random: random(context, part),
            pace,
        })
    });
    try_join_all(workers).await.map(|_| ())
}

/// Tries a final read until it succeeds. Errors: it does not, although everything is healed.
pub async fn until_read<F, Fut>(what: &str, mut read: F) -> anyhow::Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let deadline = Instant::now() + FINAL;
    while !read().await {
        anyhow::ensure!(Instant::now() < deadline, "{what} cannot be read although everything is healed");
        tokio::time::sleep(FINAL_PAUSE).await;
    }
    Ok(())
}

/// Notes that an operation was not answered.
pub fn lose(pending: Pending<'_>, lost: &Lost) {
    if lost.unknown { pending.info(&lost.to_string()) } else { pending.fail(&lost.to_string()) }
}

/// Where an answer came from.
pub fn provenance(header: &Header) -> Extra {
    let mut extra = Extra::new();
    extra.insert("node".into(), header.node.0.into());
    extra.insert("as_of".into(), header.as_of.0.into());
    if header.role != Role::Leader {
        extra.insert("role".into(), "follower".into());
    }
    extra
}

/// Where a write's answer came from, and the version that it made.
pub fn made(answer: &Answer<trivet::types::Outcome>) -> Extra {
    let mut extra = provenance(&answer.header);
    extra.insert("version".into(), answer.body.timestamp.0.into());
    extra
}

/// The same object with one more field.
pub fn with(mut extra: Extra, field: &str, value: impl Into<Value>) -> Extra {
    extra.insert(field.into(), value.into());
    extra
}
