//! How much is asked of a shard, and of which keys: what decides where it should be, and whether it should be cut.
//!
//! Counting costs one atomic addition a request. Of one request in [`SAMPLE_EVERY`] the key is kept, the last
//! [`SAMPLES_MAX`] of them: enough to see where half of the load lies, or that one key bears it all.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

/// Keys kept.
pub const SAMPLES_MAX: usize = 256;
/// Of so many requests one key is kept.
const SAMPLE_EVERY: u64 = 16;

/// What was asked of one replica since it was started.
#[derive(Default)]
pub struct Load {
    requests: AtomicU64,
    /// Bytes stored of the shard, as last looked.
    bytes: AtomicU64,
    samples: Mutex<VecDeque<Bytes>>,
}

impl Load {
    /// Counts a request about a key.
    pub(super) fn count(&self, encoded: &Bytes) {
        if self.requests.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLE_EVERY)
            // Who finds it locked is as good a sample as who does not.
            && let Some(mut samples) = self.samples.try_lock()
        {
            if samples.len() == SAMPLES_MAX {
                samples.pop_front();
            }
            // A copy: the key may be a slice of a whole message.
            samples.push_back(Bytes::copy_from_slice(encoded));
        }
    }

    pub(super) fn set_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Requests served or refused since the start.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes stored of the shard, roughly, on the leader only.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Encoded keys that were asked for lately, in order of the keys.
    pub fn samples(&self) -> Vec<Bytes> {
        let mut samples: Vec<Bytes> = self.samples.lock().iter().cloned().collect();
        samples.sort_unstable();
        samples
    }

    /// Forgets the keys: the range has changed, or the decision they were kept for was made.
    pub fn forget_samples(&self) {
        self.samples.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_keys_are_kept_and_no_more_than_the_bound() {
        let load = Load::default();
        let rounds = (SAMPLES_MAX as u64 + 10) * SAMPLE_EVERY;
        for number in 0..rounds {
            load.count(&Bytes::from(format!("{number:08}")));
        }
        assert_eq!(load.requests(), rounds);
        let samples = load.samples();
        assert_eq!(samples.len(), SAMPLES_MAX);
        assert_eq!(samples[0], format!("{:08}", 10 * SAMPLE_EVERY), "the oldest went");
        assert!(samples.is_sorted());
        load.forget_samples();
        assert!(load.samples().is_empty());
    }
}
