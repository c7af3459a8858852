//! How much is asked of a shard, and of which keys: what decides where it should be, and whether it should be cut.
//!
//! Counting costs one atomic addition a request. One request in [`SAMPLE_EVERY`] may get its key into a sample of bounded
//! size ([`KeySample`]): enough to see where half of the load lies, or that one key bears it all.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::placement::sizing::KeySample;
use crate::runtime::random_u64;

/// Of so many requests one is sampled.
const SAMPLE_EVERY: u64 = 16;

/// What was asked of one replica since it was started.
#[derive(Default)]
pub struct Load {
    requests: AtomicU64,
    written: AtomicU64,
    /// Bytes stored of the shard, as last looked.
    bytes: AtomicU64,
    sample: Mutex<KeySample>,
}

impl Load {
    /// Counts a request of a client about a key.
    pub fn count(&self, encoded: &Bytes) {
        if self.requests.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLE_EVERY)
            // Who finds it locked is as good a sample as who does not.
            && let Some(mut sample) = self.sample.try_lock()
        {
            sample.record(encoded, random_u64());
        }
    }

    /// Counts the keys of a write of a client.
    pub(super) fn count_written(&self, keys: usize) {
        self.written.fetch_add(keys as u64, Ordering::Relaxed);
    }

    pub(super) fn set_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Requests served or refused since the start.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Keys that clients wrote, or wanted to, since the start.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Bytes stored of the shard, roughly, on the leader only.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Encoded keys that were asked for since this was asked last, in order, with how often each was seen.
    pub fn take_sample(&self) -> Vec<(Bytes, u64)> {
        self.sample.lock().take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::sizing::SAMPLE_MAX;

    #[test]
    fn requests_are_counted_and_a_bounded_sample_is_kept() {
        let load = Load::default();
        let rounds = (SAMPLE_MAX as u64 + 10) * SAMPLE_EVERY;
        for number in 0..rounds {
            load.count(&Bytes::from(format!("{number:08}")));
        }
        assert_eq!((load.requests(), load.written()), (rounds, 0));
        load.count_written(3);
        assert_eq!((load.requests(), load.written()), (rounds, 3));
        let sample = load.take_sample();
        assert_eq!(sample.iter().map(|(_, count)| count).sum::<u64>(), SAMPLE_MAX as u64);
        assert!(sample.is_sorted());
        assert!(load.take_sample().is_empty());
    }
}
