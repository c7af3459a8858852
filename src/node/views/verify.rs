//! Compares shards of a view with what its sources say they should hold, and sets right what differs.
//!
//! It runs at the leader of the view's shards, at one proven position: the rows as they are at one version of a shard, and the
//! watermark that was true of exactly that version. For each part of each source the watermark names a version, and the history of
//! the source still holds the state of then (`as_of`); from these rows the view is computed anew, by the same functions that keep it
//! up ([`super::expected`]), and both are compared row by row, hidden ones included. Writes go on all the while, and nothing waits.
//!
//! What differs is set right only if it has not changed since the version that was looked at (`shard::intake`, Mending): a row
//! that upkeep has touched meanwhile is left to the next comparison.
//!
//! Memory: rows are compared in passes, each over the tags with one remainder of a hash and each at a moment of its own, so that
//! about [`PASS_BYTES`] are held. A pass reads the sources once for all shards that stand at the same place in them.
//!
//! Who asks waits for it ([`VERIFY`]); unasked it goes on all the time, slowly ([`super::scrub`]).
//!
//! Left out: when a part of a source is still being taken in for the first time there is no version to compare at: then it says so.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;

use super::super::ask;
use super::super::host::Node;
use super::super::metrics;
use super::share::Share;
use super::unfit::Unfit;
use crate::catalog::TableEntry;
use crate::keyspace::{Watermark, tag};
use crate::runtime::{spawn_blocking, timeout};
use crate::shard::{Mending, PageRequest, Shard, Upkeep};
use crate::types::{Error, ReadLevel, Reason, Result, ShardId, TableId, Timestamp};

/// To compare shards of a view: [`VerifyAsk`] to their leader, [`ViewCheck`] back.
pub const VERIFY: &str = "verify_view";
/// How long a comparison may take.
pub const VERIFY_TIMEOUT: Duration = Duration::from_secs(600);
/// Bytes of rows held in one pass, about.
const PASS_BYTES: u64 = 64 << 20;
/// Bytes read at once.
const PAGE_BYTES: usize = 1 << 20;
/// How long a page may take.
pub(super) const PAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Differences told of one shard, and documents that do not fit.
pub(super) const SAMPLES_MAX: usize = 20;
/// Rows set right by one command.
const MEND_ROWS: usize = 200;

/// What is to be compared.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct VerifyAsk {
    /// The view.
    pub view: TableId,
    /// Shards of it that the node leads.
    pub shards: Vec<ShardId>,
    /// Set right what differs.
    pub repair: bool,
    /// Clients of the node are not to notice it: it takes a small share of the time while they ask for much.
    #[serde(default)]
    pub gently: bool,
}

/// One row that differs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// The view lacks it.
    Missing,
    /// No source says so.
    Invented,
    /// The view holds something else.
    Other,
}

/// What a comparison has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ViewCheck {
    /// Rows that the sources say there are, hidden ones included.
    pub rows: u64,
    /// Rows that the view lacks.
    pub missing: u64,
    /// Rows that no source says there are.
    pub invented: u64,
    /// Rows that hold something else than the sources say.
    pub other: u64,
    /// Of those that differ, how many were set right.
    pub repaired: u64,
    /// The first of them: keys and what is wrong.
    pub samples: Vec<(Vec<u8>, Difference)>,
    /// Documents that do not fit the view, and so are not in it.
    #[serde(default)]
    pub unfit: u64,
    /// The first of them.
    #[serde(default)]
    pub unfit_samples: Vec<Unfit>,
    /// The version of the shard that was looked at.
    pub at: Timestamp,
}

impl ViewCheck {
    /// Rows that differ.
    pub fn differing(&self) -> u64 {
        self.missing + self.invented + self.other
    }

    /// Takes the findings of another shard, or another pass, in.
    pub fn add(&mut self, other: ViewCheck) {
        self.rows += other.rows;
        self.missing += other.missing;
        self.invented += other.invented;
        self.other += other.other;
        self.repaired += other.repaired;
        self.samples.extend(other.samples);
        self.samples.truncate(SAMPLES_MAX);
        self.unfit += other.unfit;
        self.unfit_samples.extend(other.unfit_samples);
        self.unfit_samples.truncate(SAMPLES_MAX);
        self.at = self.at.max(other.at);
    }
}

/// Where a shard of a view stood when it was looked at.
pub(super) struct Moment {
    shard: Arc<Shard>,
    start: Bytes,
    end: Bytes,
    at: Timestamp,
    /// Where each of its parts stood in the sources.
    pub sections: Vec<Watermark>,
}

/// Which rows are looked at now: those whose tag's hash leaves this remainder, divided by so many passes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass {
    number: u32,
    of: u32,
}

impl Pass {
    /// Whether a row of the view belongs to it: all rows of a tag belong to one.
    pub fn has(self, key: &[u8]) -> bool {
        // The low bits: the high ones choose the shard.
        self.of == 1 || crc32fast::hash(tag(key)) % self.of == self.number
    }
}

impl Node {
    /// Compares shards of a view that this node leads.
    ///
    /// Errors: `NOT_LEADER`, `VIEW_BEHIND` while it is being built, `HISTORY_TRIMMED` if its sources no longer remember where it
    /// stands.
    pub(in crate::node) async fn verify_here(&self, question: VerifyAsk) -> Result<ViewCheck> {
        let known = || self.directory().table(question.view).cloned();
        let entry = match known() {
            Some(entry) => entry,
            // It may have just started, or the view may be newer than its picture of the catalog.
            None => {
                let revision = self.newest_revision().await?;
                if timeout(ask::ASK_TIMEOUT, self.wait_for_revision(revision)).await.is_none() {
                    return Err(Error::new(Reason::NotReady, "the catalog could not be read in time"));
                }
                known().ok_or_else(|| Error::new(Reason::UnknownTable, "the view was dropped"))?
            }
        };
        let shards = question.shards.into_iter().map(|shard| self.hosted(shard)).collect::<Result<Vec<_>>>()?;
        if question.gently {
            let share = Share::beside_clients(self.clock(), self.replicas());
            match self.verify_shards(&entry, &shards, question.repair, share).await {
                // It took longer than the sources remember.
                Err(error) if error.reason == Reason::HistoryTrimmed => {}
                compared => return compared,
            }
        }
        self.verify_shards(&entry, &shards, question.repair, Share::asked(self.clock())).await
    }

    /// Compares shards of a view that this node leads, as [`Self::verify_here`] does, in a share of the time.
    pub(super) async fn verify_shards(
        &self,
        entry: &TableEntry,
        shards: &[Arc<Shard>],
        repair: bool,
        mut share: Share,
    ) -> Result<ViewCheck> {
        let mut bytes = 0;
        for shard in shards {
            let state = shard.state();
            bytes += self.engine().bytes_in(&state.start, &state.end)?;
        }
        let of = u32::try_from(1 + bytes / PASS_BYTES).unwrap_or(u32::MAX);
        let mut all = ViewCheck::default();
        for number in 0..of {
            all.add(self.compare(entry, shards, Pass { number, of }, repair, &mut share).await?);
        }
        Ok(all)
    }

    /// One pass.
    async fn compare(
        &self,
        entry: &TableEntry,
        shards: &[Arc<Shard>],
        pass: Pass,
        repair: bool,
        share: &mut Share,
    ) -> Result<ViewCheck> {
        let deadline = self.clock().now() + ask::ASK_TIMEOUT;
        try_join_all(shards.iter().map(|shard| shard.confirm(deadline))).await?;
        // All in one go, so that most of them stand at the same place.
        let moments = shards.iter().map(|shard| {
            let state = shard.state();
            Moment {
                shard: shard.clone(),
                start: state.start.clone(),
                end: state.end.clone(),
                at: state.last_timestamp,
                sections: state.watermarks.sections(&state.start, &state.end),
            }
        });
        let moments: Vec<Moment> = moments.collect();
        let expected = self.expected(entry, &moments, pass, share).await?;
        let mut all = ViewCheck::default();
        for (moment, expected) in moments.iter().zip(&expected) {
            let (mut check, wrong) = self.differences(entry, moment, &expected.rows, pass, share).await?;
            check.unfit = expected.unfit;
            check.unfit_samples.clone_from(&expected.unfit_samples);
            if repair {
                check.repaired = self.mend(entry, moment, wrong).await?;
            }
            note(entry, moment, &check);
            all.add(check);
        }
        // Many small pieces, which to let go takes longer than a thread may be held that serves others as well.
        let _ = spawn_blocking(move || drop(expected)).await;
        Ok(all)
    }

    /// What a shard holds in a pass beside what it should hold: the findings, and each row that differs as it should be.
    async fn differences(
        &self,
        entry: &TableEntry,
        moment: &Moment,
        expected: &BTreeMap<Bytes, (Bytes, Bytes)>,
        pass: Pass,
        share: &mut Share,
    ) -> Result<(ViewCheck, Vec<(Bytes, Option<Bytes>)>)> {
        let mut check = ViewCheck { rows: expected.len() as u64, at: moment.at, ..ViewCheck::default() };
        let mut wrong: Vec<(Bytes, Option<Bytes>)> = Vec::new();
        let mut note = |key: &Bytes, difference: Difference, value: Option<Bytes>| {
            match difference {
                Difference::Missing => check.missing += 1,
                Difference::Invented => check.invented += 1,
                Difference::Other => check.other += 1,
            }
            if check.samples.len() < SAMPLES_MAX {
                check.samples.push((key.to_vec(), difference));
            }
            wrong.push((entry.layout.encode(key), value));
        };
        // Both sides ascend by encoded key.
        let mut ahead: Bound<Bytes> = Bound::Unbounded;
        let mut from = Some(moment.start.clone());
        while let Some(start) = from {
            let request = page_request(start, moment.end.clone(), moment.at, share.page_rows());
            let began = self.clock().now();
            let epoch = moment.shard.state().epoch;
            let page = moment.shard.scan(epoch, request, began + PAGE_TIMEOUT).await?.body;
            from = page.next;
            for (encoded, version) in page.rows {
                let key = entry.layout.decode(&encoded)?;
                if !pass.has(&key) {
                    continue;
                }
                let missing = expected.range::<Bytes, _>((ahead.as_ref(), Bound::Excluded(&encoded)));
                missing.for_each(|(_, (key, value))| note(key, Difference::Missing, Some(value.clone())));
                match expected.get(&encoded) {
                    Some((_, value)) if version.value.as_ref() == Some(value) => {}
                    Some((_, value)) => note(&key, Difference::Other, Some(value.clone())),
                    None => note(&key, Difference::Invented, None),
                }
                ahead = Bound::Excluded(encoded);
            }
            share.rest(self.replicas()).await?;
        }
        let missing = expected.range::<Bytes, _>((ahead.as_ref(), Bound::Unbounded));
        missing.for_each(|(_, (key, value))| note(key, Difference::Missing, Some(value.clone())));
        Ok((check, wrong))
    }

    /// Sets rows right; how many.
    async fn mend(&self, entry: &TableEntry, moment: &Moment, wrong: Vec<(Bytes, Option<Bytes>)>) -> Result<u64> {
        let mut repaired = 0;
        for rows in wrong.chunks(MEND_ROWS) {
            let upkeep = Upkeep::Mend(Mending { seen: moment.at, rows: rows.to_vec() });
            // What was changed since is left as it is, and looked at again with the next comparison.
            if self.upkeep(entry, &rows[0].0, &upkeep).await? {
                repaired += rows.len() as u64;
            }
        }
        Ok(repaired)
    }
}

/// A page of rows as they were at a version.
pub(super) fn page_request(start: Bytes, end: Bytes, at: Timestamp, rows_max: usize) -> PageRequest {
    PageRequest {
        start,
        end,
        reverse: false,
        count_only: false,
        rows_max,
        bytes_max: PAGE_BYTES,
        level: ReadLevel::AsOf(at),
    }
}

/// Counts and tells what was found.
fn note(entry: &TableEntry, moment: &Moment, check: &ViewCheck) {
    ::metrics::counter!(metrics::VIEW_ROWS_VERIFIED).increment(check.rows);
    ::metrics::counter!(metrics::VIEW_MISMATCHES).increment(check.differing());
    ::metrics::counter!(metrics::VIEW_REPAIRS).increment(check.repaired);
    if check.differing() > 0 {
        let ViewCheck { missing, invented, other, repaired, .. } = check;
        tracing::error!(
            view = entry.descriptor.name, shard = %moment.shard.id(), missing, invented, other, repaired,
            "a view differs from its sources"
        );
    }
}
