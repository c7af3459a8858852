//! Randomness: the harness's own, and the end of everybody else's.
//!
//! The standard library seeds its hash maps, and by them tokio its scheduler and `select!`, from the kernel's
//! `getrandom`. This binary brings a function of that name which draws from the seed instead, so that neither the order
//! of a hash map nor the order in which tasks wake differs between two runs of one seed. tokio also counts the
//! runtimes of a process, which is why every seed has a process of its own.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

static SEED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static DRAWN: Cell<u64> = const { Cell::new(0) };
}

/// From now on, threads that start draw from this seed.
pub fn seed(seed: u64) {
    SEED.store(seed, Ordering::SeqCst);
}

fn mix(value: u64) -> u64 {
    let mixed = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Takes the place of the C library's function in this binary.
///
/// # Safety
/// `buffer` must be valid for writes of `length` bytes, as for the function it replaces.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    for at in 0..length {
        let drawn = DRAWN.get();
        DRAWN.set(drawn + 1);
        let byte = mix(SEED.load(Ordering::Relaxed) ^ mix(drawn.wrapping_add(0x9E37_79B9_7F4A_7C15))) as u8;
        // SAFETY: the caller's promise.
        unsafe { buffer.add(at).write(byte) };
    }
    length as isize
}

/// A stream of random numbers of the harness's own: it does not move when the cluster draws more or less.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of this seed and purpose.
    pub fn new(seed: u64, purpose: u64) -> Random {
        Random(mix(seed ^ mix(purpose.wrapping_add(1))))
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A number of `low..=high`.
    pub fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True this often in a thousand.
    pub fn per_mille(&mut self, chance: u64) -> bool {
        self.below(1_000) < chance
    }

    /// A duration of `low..=high`.
    pub fn span(&mut self, low: Duration, high: Duration) -> Duration {
        let micros = |span: Duration| u64::try_from(span.as_micros()).expect("spans of a simulation are short");
        Duration::from_micros(self.within(micros(low), micros(high)))
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.below(of.len() as u64)).expect("an index")]
    }
}
