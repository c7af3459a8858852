//! A simulation in the place of the machine.
//!
//! Inside [`enter`], everything that differs from run to run comes from one seed: random numbers, wall clocks, how long
//! a disk takes, and in which order tasks that are ready go first. Tasks belong to a [`Scope`], one per simulated
//! process, and pass it on to those they start; a scope can be paused as by SIGSTOP, ended as by kill -9, and has a
//! wall clock of its own. Monotonic time is tokio's, which a simulation pauses so that it only moves when nobody is
//! ready. Blocking work and the log writer's thread run as tasks.
//!
//! It is a matter of the thread: a program that never calls [`enter`] pays one look at a thread-local flag.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::tasks::{Task, sleep};

/// Tasks of a scope noted before those that have ended are forgotten.
const TASKS_NOTED: usize = 256;

thread_local! {
    static ACTIVE: Cell<bool> = const { Cell::new(false) };
    static CURRENT: Cell<usize> = const { Cell::new(0) };
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// What a simulation is made from.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Where all random numbers come from.
    pub seed: u64,
    /// What the wall clocks say at the beginning, in milliseconds since 1970.
    pub wall_ms: u64,
    /// How many in a thousand polls of a task are put off until others had their turn.
    pub put_off_per_mille: u64,
}

/// How long a simulated disk takes, each time between nothing and these.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskPace {
    /// Before a batch of the log is written.
    pub write: Duration,
    /// Between writing it and its being durable.
    pub sync: Duration,
    /// Blocking work.
    pub work: Duration,
}

struct World {
    random: u64,
    settings: Settings,
    began: Instant,
    scopes: Vec<State>,
}

#[derive(Default)]
struct State {
    skew_ms: i64,
    paused: bool,
    ended: bool,
    parked: Vec<Waker>,
    tasks: Vec<AbortHandle>,
    noted: usize,
    pace: DiskPace,
}

/// Ends the simulation of this thread when dropped.
pub struct Entered(());

impl Drop for Entered {
    fn drop(&mut self) {
        ACTIVE.set(false);
        // What the world drops may look at it.
        let world = WORLD.with(|world| world.borrow_mut().take());
        drop(world);
    }
}

/// Begins a simulation on this thread; call it inside a current-thread runtime whose time is paused.
pub fn enter(settings: Settings) -> Entered {
    let world = World { random: settings.seed, settings, began: now(), scopes: vec![State::default()] };
    WORLD.with(|cell| {
        let before = cell.borrow_mut().replace(world);
        assert!(before.is_none(), "a thread runs one simulation at a time");
    });
    CURRENT.set(0);
    ACTIVE.set(true);
    Entered(())
}

#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

/// Whether this thread runs a simulation.
#[inline]
pub fn active() -> bool {
    ACTIVE.get()
}

fn with<T>(look: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with(|world| look(world.borrow_mut().as_mut().expect("only inside a simulation")))
}

impl World {
    /// SplitMix64: every seed is as good as any other.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn up_to(&mut self, longest: Duration) -> Duration {
        match u64::try_from(longest.as_micros()) {
            Ok(0) | Err(_) => Duration::ZERO,
            Ok(micros) => Duration::from_micros(self.random() % (micros + 1)),
        }
    }
}

/// The next random number of the simulation.
pub(super) fn random_u64() -> u64 {
    with(World::random)
}

/// The wall clock of the current scope, in milliseconds since 1970.
pub(super) fn wall_ms() -> u64 {
    let now = now();
    with(|world| {
        let passed = i64::try_from(now.saturating_duration_since(world.began).as_millis()).unwrap_or(i64::MAX);
        let skew = world.scopes[CURRENT.get()].skew_ms;
        world.settings.wall_ms.saturating_add_signed(passed.saturating_add(skew))
    })
}

/// Takes as long as the simulated disk does before it writes a batch of the log.
pub async fn disk_writes() {
    pause(|pace| pace.write).await;
}

/// Takes as long as the simulated disk does to make a written batch durable.
pub async fn disk_syncs() {
    pause(|pace| pace.sync).await;
}

/// Takes as long as work on the blocking pool would.
pub(super) async fn works() {
    pause(|pace| pace.work).await;
}

async fn pause(longest: impl FnOnce(&DiskPace) -> Duration) {
    let pause = with(|world| {
        let longest = longest(&world.scopes[CURRENT.get()].pace);
        world.up_to(longest)
    });
    if !pause.is_zero() {
        sleep(pause).await;
    }
}

/// A simulated process: its tasks, its wall clock, its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope(usize);

impl Scope {
    /// A new one.
    pub fn start() -> Scope {
        with(|world| {
            world.scopes.push(State::default());
            Scope(world.scopes.len() - 1)
        })
    }

    /// The one whose task is running; the simulation's own outside of all others.
    pub fn current() -> Scope {
        Scope(CURRENT.get())
    }

    /// Runs a future on a task of this scope; so run all tasks that it starts.
    pub fn spawn<F>(self, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let ended = with(|world| world.scopes[self.0].ended);
        #[allow(clippy::disallowed_methods)]
        let task = tokio::spawn(Scoped { scope: self.0, future: Box::pin(future) });
        if ended {
            task.abort();
        } else {
            with(|world| world.scopes[self.0].note(task.abort_handle()));
        }
        task
    }

    /// Stops its tasks where they are, as SIGSTOP does. Time goes on.
    pub fn pause(self) {
        with(|world| world.scopes[self.0].paused = true);
    }

    /// Lets them go on.
    pub fn resume(self) {
        let parked = with(|world| {
            let scope = &mut world.scopes[self.0];
            scope.paused = false;
            std::mem::take(&mut scope.parked)
        });
        parked.into_iter().for_each(Waker::wake);
    }

    /// Ends its tasks where they are, as kill -9 does. It starts no others any more.
    pub fn end(self) {
        let tasks = with(|world| {
            let scope = &mut world.scopes[self.0];
            scope.ended = true;
            std::mem::take(&mut scope.tasks)
        });
        tasks.iter().for_each(AbortHandle::abort);
    }

    /// Sets its wall clock, as a difference from the true time in milliseconds.
    pub fn set_skew_ms(self, skew_ms: i64) {
        with(|world| world.scopes[self.0].skew_ms = skew_ms);
    }

    /// Sets how fast its disk is.
    pub fn set_pace(self, pace: DiskPace) {
        with(|world| world.scopes[self.0].pace = pace);
    }
}

impl State {
    fn note(&mut self, task: AbortHandle) {
        if self.tasks.len() >= self.noted.max(TASKS_NOTED) {
            self.tasks.retain(|task| !task.is_finished());
            self.noted = 2 * self.tasks.len();
        }
        self.tasks.push(task);
    }
}

/// A future that runs as part of a scope.
struct Scoped<F> {
    scope: usize,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let scope = self.scope;
        let put_off = with(|world| {
            if world.scopes[scope].paused {
                world.scopes[scope].parked.push(context.waker().clone());
                return true;
            }
            let put_off = world.settings.put_off_per_mille;
            let put_off = put_off > 0 && world.random() % 1_000 < put_off;
            if put_off {
                context.waker().wake_by_ref();
            }
            put_off
        });
        if put_off {
            return Poll::Pending;
        }
        let outer = CURRENT.replace(scope);
        let polled = self.future.as_mut().poll(context);
        CURRENT.set(outer);
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::runtime::{Clock, random_u64, spawn, spawn_blocking};

    const SETTINGS: Settings = Settings { seed: 7, wall_ms: 1_000, put_off_per_mille: 100 };

    #[tokio::test(start_paused = true)]
    async fn a_scope_is_paused_resumed_and_ended_with_all_its_tasks() {
        let _entered = enter(SETTINGS);
        let scope = Scope::start();
        let ticks = Arc::new(AtomicU64::new(0));
        let counted = ticks.clone();
        scope.spawn(async move {
            // A task of a task belongs to the scope as well.
            spawn(async move {
                loop {
                    sleep(Duration::from_millis(10)).await;
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        let after = |millis| {
            let ticks = ticks.clone();
            async move {
                sleep(Duration::from_millis(millis)).await;
                ticks.load(Ordering::Relaxed)
            }
        };
        let running = after(105).await;
        assert!((9..=10).contains(&running));
        scope.pause();
        let stopped = after(5).await;
        assert_eq!(after(100).await, stopped);
        scope.resume();
        assert!(after(50).await > stopped);
        scope.end();
        let ended = after(5).await;
        assert_eq!(after(100).await, ended);
        assert!(scope.spawn(async {}).await.is_err(), "what has ended starts nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn clocks_differ_by_scope_and_move_with_simulated_time() {
        let _entered = enter(SETTINGS);
        let scope = Scope::start();
        scope.set_skew_ms(-300);
        sleep(Duration::from_millis(50)).await;
        assert_eq!(Clock::system().wall_ms(), 1_050);
        assert_eq!(scope.spawn(async { Clock::system().wall_ms() }).await.unwrap(), 750);
    }

    #[tokio::test(start_paused = true)]
    async fn one_seed_gives_one_sequence() {
        let draw = || (0..5).map(|_| random_u64()).collect::<Vec<_>>();
        let first = {
            let _entered = enter(SETTINGS);
            draw()
        };
        let again = enter(SETTINGS);
        assert_eq!(draw(), first);
        assert_eq!(spawn_blocking(|| 5).await.unwrap(), 5);
        drop(again);
        assert!(!active());
        assert_ne!(draw(), first);
    }
}
