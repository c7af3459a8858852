//! Which entries of family `Data` compaction drops.
//!
//! A [`Trimmer`] judges entries in key order: of one key, newest version first. At or below the range's horizon
//!
//! - a version goes if a newer one at or below the horizon was seen *in the same pass*: seen, because only then is the
//!   newer one certain to lie on disk beside it, so that no crash can leave the older one missing and the newer one
//!   not there yet;
//! - a deletion or an expired value that is the newest goes only if the pass covers every file there is: otherwise an
//!   older version in a file not looked at would come back to life. (Older versions are never written later, so what
//!   still lies in memory cannot be older.) The versions beneath it go by the first rule in the same pass. For this a
//!   pass must not be cut in two between versions of one key: the engine runs one subcompaction per compaction;
//! - the outcome of a request goes when it was issued before the range's limit, for the state machine then refuses the
//!   request anyway.
//!
//! RocksDB shows a filter also what a range deletion covers, and such a version counts as if it were there. That is right
//! because whatever comes into a range after its deletion is either newer than all that was in it, or holds with a
//! version every later one that was: a shard's time ascends, and a snapshot is of the same shard later on.
//!
//! What cannot be read as a version or an outcome is kept: compaction is not the place to judge corruption.

use std::ffi::CStr;
use std::sync::Arc;

use rocksdb::CompactionDecision;
use rocksdb::compaction_filter::CompactionFilter;
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};

use super::horizons::{Horizons, Trimmable};
use super::mvcc;
use crate::keyspace::{side, version};
use crate::types::TableId;

/// The verdict on one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Keep,
    Drop,
}

/// Judges the entries of one pass.
pub(super) struct Trimmer {
    trimmable: Trimmable,
    /// Whether the pass sees every entry of the keys it sees.
    whole: bool,
    /// The key whose newest version at or below the horizon was seen last.
    settled: Vec<u8>,
    any_settled: bool,
}

impl Trimmer {
    pub(super) fn new(trimmable: Trimmable, whole: bool) -> Trimmer {
        Trimmer { trimmable, whole, settled: Vec::new(), any_settled: false }
    }

    pub(super) fn judge(&mut self, key: &[u8], value: &[u8]) -> Fate {
        match self.drops(key, value) {
            Some(true) => Fate::Drop,
            _ => Fate::Keep,
        }
    }

    /// None where nothing is known.
    fn drops(&mut self, key: &[u8], value: &[u8]) -> Option<bool> {
        let table = u32::from_be_bytes(*key.first_chunk::<4>()?);
        if table >= TableId::RESERVED {
            if table != side::OUTCOMES {
                return None;
            }
            let (anchor, request) = side::outcome_split(key)?;
            let horizon = self.trimmable.horizon(anchor)?;
            return Some(request.issued_ms < horizon.outcomes_before_ms);
        }
        let (encoded, timestamp) = version::split(key)?;
        let horizon = self.trimmable.horizon(encoded)?;
        if timestamp > horizon.history {
            return None;
        }
        if self.any_settled && self.settled == encoded {
            return Some(true);
        }
        self.any_settled = true;
        self.settled.clear();
        self.settled.extend_from_slice(encoded);
        Some(self.whole && !mvcc::lives_at(value, horizon.history)?)
    }
}

/// Makes one filter per compaction, with the horizons of that moment.
pub(super) struct Factory {
    horizons: Arc<Horizons>,
}

impl Factory {
    pub(super) fn new(horizons: Arc<Horizons>) -> Factory {
        Factory { horizons }
    }
}

impl CompactionFilterFactory for Factory {
    type Filter = Filter;

    fn create(&mut self, context: CompactionFilterContext) -> Filter {
        Filter(Trimmer::new(self.horizons.trimmable(), context.is_full_compaction))
    }

    fn name(&self) -> &CStr {
        c"trivet.trimmer"
    }
}

/// A trimmer in RocksDB's clothes.
pub(super) struct Filter(Trimmer);

impl CompactionFilter for Filter {
    fn filter(&mut self, _level: u32, key: &[u8], value: &[u8]) -> CompactionDecision {
        match self.0.judge(key, value) {
            Fate::Keep => CompactionDecision::Keep,
            Fate::Drop => CompactionDecision::Remove,
        }
    }

    fn name(&self) -> &CStr {
        c"trivet.trimmer"
    }
}
