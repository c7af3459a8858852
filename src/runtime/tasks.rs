//! Tasks, timers and random numbers.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use super::simulation;

/// A running task; dropping it leaves the task running.
pub type Task<T> = tokio::task::JoinHandle<T>;

/// Runs a future on its own task.
#[allow(clippy::disallowed_methods)]
pub fn spawn<F>(future: F) -> Task<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    if simulation::active() {
        return simulation::Scope::current().spawn(future);
    }
    tokio::spawn(future)
}

/// Runs work that blocks (disk reads, mostly) on the blocking pool.
#[allow(clippy::disallowed_methods)]
pub fn spawn_blocking<F, T>(work: F) -> Task<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    if simulation::active() {
        return spawn(async move {
            simulation::works().await;
            work()
        });
    }
    tokio::task::spawn_blocking(work)
}

/// Waits for a while.
#[allow(clippy::disallowed_methods)]
pub async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// Waits until a moment.
#[allow(clippy::disallowed_methods)]
pub async fn sleep_until(deadline: Instant) {
    tokio::time::sleep_until(deadline).await;
}

/// Lets every other task that is ready, and everything the sockets have brought, go first.
pub async fn yield_now() {
    tokio::task::yield_now().await;
}

/// The future's output, or none if it takes longer.
#[allow(clippy::disallowed_methods)]
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Option<F::Output> {
    tokio::time::timeout(duration, future).await.ok()
}

/// The future's output, or none if it is not there by the deadline.
#[allow(clippy::disallowed_methods)]
pub async fn timeout_at<F: Future>(deadline: Instant, future: F) -> Option<F::Output> {
    tokio::time::timeout_at(deadline, future).await.ok()
}

/// A random number: ids of clients and directories, jitter.
#[allow(clippy::disallowed_methods)]
pub fn random_u64() -> u64 {
    if simulation::active() {
        return simulation::random_u64();
    }
    rand::random()
}
