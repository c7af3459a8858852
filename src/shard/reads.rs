//! Reads of one replica: of keys, of pages, of histories, at every level.
//!
//! A read first reaches its level (at the gate, or by what has been applied), then takes a position, then looks, and at
//! the end makes sure that what it saw may be told: that its position is not trimmed, and that what had run out for this
//! reader has run out for all who come after.

use bytes::Bytes;
use tokio::sync::oneshot;

use super::evaluate::{is_settled, within_history};
use super::handle::{OVERLOADED_RETRY, Served, Shard};
use super::metrics;
use super::proposer::PendingKind;
use super::state::State;
use crate::runtime::planted::{self, Bug};
use crate::runtime::{Instant, spawn_blocking, timeout_at};
use crate::storage::mvcc::{self, Version};
use crate::storage::{Lookup, Tier};
use crate::types::{Epoch, Error, ReadLevel, Reason, Result, Timestamp, Versioned};

/// One page of one shard, keys still encoded.
#[derive(Clone, Debug, Default)]
pub struct ShardPage {
    /// The rows.
    pub rows: Vec<(Bytes, Version)>,
    /// How many rows the page stands for.
    pub count: u64,
    /// The encoded key to go on from, none when the range is done.
    pub next: Option<Bytes>,
}

/// A page of a scan as the node asks for it.
#[derive(Clone, Debug)]
pub struct PageRequest {
    /// The encoded range, within the shard.
    pub start: Bytes,
    /// Its end.
    pub end: Bytes,
    /// Descending.
    pub reverse: bool,
    /// Count only.
    pub count_only: bool,
    /// Rows at most.
    pub rows_max: usize,
    /// Bytes after which the page ends.
    pub bytes_max: usize,
    /// How fresh.
    pub level: ReadLevel,
}

impl Shard {
    /// Reads encoded keys.
    pub async fn read(
        &self,
        epoch: Epoch,
        keys: &[Bytes],
        level: ReadLevel,
        deadline: Instant,
    ) -> Result<Served<Vec<Option<Versioned>>>> {
        if let Some(first) = keys.first() {
            self.load.count(first);
        }
        let proof = self.reach(level, deadline).await?;
        let state = self.state();
        if state.epoch != epoch || !keys.iter().all(|key| state.owns(key)) {
            return Err(self.wrong_epoch());
        }
        let (at, now_ms) = self.position(level, &state, deadline).await?;
        let mut values = Vec::with_capacity(keys.len());
        let mut ran_out_ms = None;
        for key in keys {
            let version = match mvcc::newest(&*self.engine, key, at, Tier::Cache)? {
                Lookup::Found(version) => Some(version),
                Lookup::Missing => None,
                Lookup::NeedsDisk => self.read_from_disk(key.clone(), at).await?,
            };
            let version = version.filter(|version| version.value.is_some());
            if let Some(version) = version.as_ref().filter(|version| !version.lives_at(now_ms)) {
                ran_out_ms = ran_out_ms.max(version.expires_ms);
            }
            values.push(version.and_then(|version| live(version, now_ms)));
        }
        self.gone_for_good(level, ran_out_ms, deadline).await?;
        self.still_there(level, epoch)?;
        Ok(self.served(values, state.last_timestamp, proof, epoch))
    }

    async fn read_from_disk(&self, key: Bytes, at: Timestamp) -> Result<Option<Version>> {
        ::metrics::counter!(metrics::READS_FROM_DISK).increment(1);
        let engine = self.engine.clone();
        let lookup = spawn_blocking(move || mvcc::newest(&*engine, &key, at, Tier::Disk))
            .await
            .map_err(|_| Error::internal("a disk read was cancelled"))??;
        Ok(match lookup {
            Lookup::Found(version) => Some(version),
            Lookup::Missing | Lookup::NeedsDisk => None,
        })
    }

    /// Reads one page of a range that lies within the shard.
    pub async fn scan(&self, epoch: Epoch, page: PageRequest, deadline: Instant) -> Result<Served<ShardPage>> {
        let level = page.level;
        self.load.count(&page.start);
        let proof = self.reach(level, deadline).await?;
        let state = self.state();
        if state.epoch != epoch || page.start < state.start || page.end > state.end {
            return Err(self.wrong_epoch());
        }
        let (at, now_ms) = self.position(level, &state, deadline).await?;
        let engine = self.engine.clone();
        let scanned = spawn_blocking(move || {
            let limits =
                mvcc::ScanLimits { rows_max: page.rows_max, bytes_max: page.bytes_max, count_only: page.count_only };
            mvcc::scan(&*engine, &page.start, &page.end, at, now_ms, page.reverse, limits)
        })
        .await
        .map_err(|_| Error::internal("a scan was cancelled"))??;
        self.gone_for_good(level, scanned.ran_out_ms, deadline).await?;
        self.still_there(level, epoch)?;
        let page = ShardPage { rows: scanned.rows, count: scanned.count, next: scanned.next };
        Ok(self.served(page, state.last_timestamp, proof, epoch))
    }

    /// The versions of one encoded key, newest first, as far back as the history window reaches.
    pub async fn history(
        &self,
        epoch: Epoch,
        key: Bytes,
        before: Timestamp,
        rows_max: usize,
        deadline: Instant,
    ) -> Result<Served<Vec<Version>>> {
        let proof = self.reach(ReadLevel::Linearizable, deadline).await?;
        let state = self.state();
        if state.epoch != epoch || !state.owns(&key) {
            return Err(self.wrong_epoch());
        }
        let engine = self.engine.clone();
        let mut versions = spawn_blocking(move || mvcc::history(&*engine, &key, before, rows_max))
            .await
            .map_err(|_| Error::internal("a read of a history was cancelled"))??;
        // At and before the horizon only the newest version is promised to be there; older ones may linger.
        // The horizon is looked at after the read: it may have moved on while the read waited for the disk.
        self.still_there(ReadLevel::Linearizable, epoch)?;
        let horizon = self.state().horizon;
        if let Some(position) = versions.iter().position(|version| version.timestamp <= horizon) {
            versions.truncate(position + 1);
            versions.truncate(position + usize::from(!is_settled(&versions[position], horizon)));
        }
        Ok(self.served(versions, state.last_timestamp, proof, epoch))
    }

    /// Waits until the replica can answer at this level; returns since when the answer is proven fresh.
    async fn reach(&self, level: ReadLevel, deadline: Instant) -> Result<Option<Instant>> {
        match level {
            ReadLevel::Any => Ok(None),
            ReadLevel::AtLeast(token) if self.state().last_timestamp >= token.timestamp => Ok(None),
            _ => self.confirm(deadline).await.map(Some),
        }
    }

    /// Waits at the gate: afterwards this leader's state holds every write acknowledged before the call.
    pub async fn confirm(&self, deadline: Instant) -> Result<Instant> {
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        if planted::is(Bug::UnconfirmedRead) {
            return Ok(self.clock.now());
        }
        let (reader, confirmed) = oneshot::channel();
        self.gate.try_send(reader).map_err(|_| {
            Error::new(Reason::Overloaded, "too many reads wait for this shard; slow down")
                .with_retry_after(OVERLOADED_RETRY)
        })?;
        match timeout_at(deadline, confirmed).await {
            Some(Ok(asked)) => asked,
            Some(Err(_)) => Err(Error::new(Reason::NotReady, "the replica has stopped")),
            None => Err(Error::new(Reason::DeadlineExceeded, "leadership could not be confirmed before the deadline")),
        }
    }

    /// The position to read at, and the moment by which values expire.
    async fn position(&self, level: ReadLevel, state: &State, deadline: Instant) -> Result<(Timestamp, u64)> {
        let now_ms = self.clock.wall_ms().max(state.last_timestamp.millis());
        let ReadLevel::AsOf(at) = level else { return Ok((Timestamp::MAX, now_ms)) };
        let now = Timestamp::from_millis(now_ms.saturating_add(1)).previous();
        within_history(at, state.horizon, now)?;
        // Nothing may be written at or before `at` any more, or the same read would answer differently later.
        self.pass(at, deadline).await?;
        Ok((at, at.millis()))
    }

    /// What one reader was told has run out stays so for all who come after, on every replica and whatever their
    /// clocks say: the log says it too, before the answer goes out. Once for many values: time has then passed them all.
    /// A copy that answers as it stands promises nothing.
    async fn gone_for_good(&self, level: ReadLevel, ran_out_ms: Option<u64>, deadline: Instant) -> Result<()> {
        match (level, ran_out_ms) {
            (ReadLevel::Any | ReadLevel::AsOf(_), _) | (_, None) => Ok(()),
            (_, Some(ran_out_ms)) => self.pass(Timestamp::from_millis(ran_out_ms), deadline).await,
        }
    }

    /// Makes sure, through the log, that no later version gets a timestamp at or before this.
    async fn pass(&self, moment: Timestamp, deadline: Instant) -> Result<()> {
        if self.state().last_timestamp >= moment {
            return Ok(());
        }
        match self.enqueue(PendingKind::Passed(moment), 0, deadline).await {
            Ok(_) => Ok(()),
            // Of a read nothing is undetermined: it is asked again.
            Err(error) if error.reason == Reason::ResultUndetermined => Err(self.not_leader()),
            Err(error) => Err(error),
        }
    }

    /// Refuses what was read at a position that the horizon has passed in the meantime: part of it may have been trimmed.
    /// And what was read while the range changed: what the log of this shard was made to say of a moment does not bind
    /// the child that owns the key since.
    fn still_there(&self, level: ReadLevel, epoch: Epoch) -> Result<()> {
        let state = self.state();
        if state.epoch != epoch {
            return Err(self.wrong_epoch());
        }
        match level {
            ReadLevel::AsOf(at) => within_history(at, state.horizon, Timestamp::MAX),
            _ => Ok(()),
        }
    }

    fn served<T>(&self, body: T, as_of: Timestamp, proof: Option<Instant>, epoch: Epoch) -> Served<T> {
        let age = proof.map(|since| self.clock.now().saturating_duration_since(since));
        Served { body, role: self.role(), as_of, age, epoch }
    }
}

/// A version as a reader at `now_ms` sees it.
fn live(version: Version, now_ms: u64) -> Option<Versioned> {
    if version.expires_ms.is_some_and(|expires| expires <= now_ms) {
        return None;
    }
    let value = version.value?;
    Some(Versioned { timestamp: version.timestamp, value, expires_ms: version.expires_ms })
}
