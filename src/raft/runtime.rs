//! The runtime that openraft runs on: tokio's, with tasks and random numbers taken from `crate::runtime`, so that a
//! simulation owns those too.
//!
//! Its time can be held back for the length of a call ([`no_later_than`]). openraft stamps a request with the time at
//! which it makes it, and takes an answer for one to every request up to the log position that it names: also to one
//! without entries that was made after the answer was given. What such an answer would then prove, that this leader was
//! still followed when the later request was made, nobody has said. So the one who asks openraft for a request, and knows
//! what is on its way, says how late its stamp may be.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::time::Duration;

use openraft::{AsyncRuntime, OptionalSend};
use openraft_rt_tokio::TokioRuntime;
use rand::TryRng;

use crate::runtime::{self, Clock, Task};

/// See the module.
#[derive(Debug)]
pub struct Runtime(TokioRuntime);

/// Random numbers from `crate::runtime`.
pub struct Random;

impl TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        // The low half is as random as the other.
        Ok(runtime::random_u64() as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(runtime::random_u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&runtime::random_u64().to_ne_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

thread_local! {
    static HELD_BACK: Cell<Option<runtime::Instant>> = const { Cell::new(None) };
}

/// Makes a call for which openraft's time stands still at `moment`, if there is one, and that moment has passed.
pub fn no_later_than<T>(moment: Option<runtime::Instant>, call: impl FnOnce() -> T) -> T {
    /// Lets time go on, also after a panic.
    struct GoOn(Option<runtime::Instant>);
    impl Drop for GoOn {
        fn drop(&mut self) {
            HELD_BACK.set(self.0);
        }
    }
    let _go_on = GoOn(HELD_BACK.replace(moment));
    call()
}

/// openraft's moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(runtime::Instant);

impl openraft::Instant for Moment {
    fn now() -> Moment {
        let now = Clock::system().now();
        Moment(HELD_BACK.get().map_or(now, |moment| moment.min(now)))
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, duration: Duration) -> Moment {
        Moment(self.0 + duration)
    }
}

impl AddAssign<Duration> for Moment {
    fn add_assign(&mut self, duration: Duration) {
        self.0 += duration;
    }
}

impl Sub<Duration> for Moment {
    type Output = Moment;

    fn sub(self, duration: Duration) -> Moment {
        Moment(self.0 - duration)
    }
}

impl Sub<Moment> for Moment {
    type Output = Duration;

    fn sub(self, earlier: Moment) -> Duration {
        self.0 - earlier.0
    }
}

impl SubAssign<Duration> for Moment {
    fn sub_assign(&mut self, duration: Duration) {
        self.0 -= duration;
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = Task<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = Moment;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = Random;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Task<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        runtime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    // The only two that take one of tokio's moments.
    #[allow(clippy::disallowed_methods)]
    fn sleep_until(deadline: Moment) -> Self::Sleep {
        tokio::time::sleep_until(deadline.0)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    #[allow(clippy::disallowed_methods)]
    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Moment, future: F) -> Self::Timeout<R, F> {
        tokio::time::timeout_at(deadline.0, future)
    }

    fn is_panic(error: &tokio::task::JoinError) -> bool {
        TokioRuntime::is_panic(error)
    }

    fn thread_rng() -> Random {
        Random
    }

    fn new(threads: usize) -> Runtime {
        Runtime(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}
