//! Reads of one replica: of keys, of pages, of histories, at every level.
//!
//! A read first reaches its level, on whatever part the replica plays: by what has been applied (`at_least`, `as_of`), by a
//! proof of age that is at hand (`max_age`), or by one that is asked for after the read has come (`linearizable`, and the
//! others when that is not enough). Then it takes a position, the newest version applied, and looks; and at the end it
//! makes sure that what it saw may be told: that its position is not trimmed, and that what had run out for this reader
//! has run out for all who come after.
//!
//! A replica that follows refuses what only the leader can do, naming it: to make sure through the log that a moment has
//! passed. A value that has run out by this node's clock, but not yet by the log, is such a case, and so is a read in the
//! past at a moment that the log has not come to.
//!
//! Why `as_of` needs no proof: timestamps in a shard only grow, so once a version beyond the moment is applied here,
//! nothing can be written at or before it any more, in this shard or in a child that it was split into before or will be.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::age::Proof;
use super::evaluate::{is_settled, within_history};
use super::gate::Waiting;
use super::handle::{OVERLOADED_RETRY, Served, Shard};
use super::metrics;
use super::proposer::PendingKind;
use super::state::State;
use crate::runtime::planted::{self, Bug};
use crate::runtime::{Instant, spawn_blocking, timeout_at};
use crate::storage::mvcc::{self, Version};
use crate::storage::{Lookup, Tier};
use crate::types::{Epoch, Error, ReadLevel, Reason, Result, Timestamp, Versioned};

/// How long a read that must see what a token has seen waits for it to arrive by itself, before the leader is asked: a
/// follower that keeps up has it a message later.
const ON_ITS_WAY: Duration = Duration::from_millis(5);
/// While copies are read that may be of any age, a proof is asked for this often, so that they can say how old they are.
const ANY_AGE_PROVEN: Duration = Duration::from_secs(1);

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
        let proof = self.reach(level, epoch, deadline).await?;
        loop {
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
            if self.gone_for_good(level, &state, ran_out_ms, deadline).await? && self.still_there(level, at, epoch)? {
                return Ok(self.served(values, state.last_timestamp, proof, epoch));
            }
        }
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
        let proof = self.reach(level, epoch, deadline).await?;
        loop {
            let state = self.state();
            if state.epoch != epoch || !state.owns_all(&page.start, &page.end) {
                return Err(self.wrong_epoch());
            }
            let (at, now_ms) = self.position(level, &state, deadline).await?;
            let (engine, page) = (self.engine.clone(), page.clone());
            let scanned = spawn_blocking(move || {
                let PageRequest { rows_max, bytes_max, count_only, .. } = page;
                let limits = mvcc::ScanLimits { rows_max, bytes_max, count_only };
                mvcc::scan(&*engine, &page.start, &page.end, at, now_ms, page.reverse, limits)
            })
            .await
            .map_err(|_| Error::internal("a scan was cancelled"))??;
            if self.gone_for_good(level, &state, scanned.ran_out_ms, deadline).await?
                && self.still_there(level, at, epoch)?
            {
                let page = ShardPage { rows: scanned.rows, count: scanned.count, next: scanned.next };
                return Ok(self.served(page, state.last_timestamp, proof, epoch));
            }
        }
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
        let proof = self.reach(ReadLevel::Linearizable, epoch, deadline).await?;
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
        self.still_there(ReadLevel::Linearizable, Timestamp::MAX, epoch)?;
        let horizon = self.state().horizon;
        if let Some(position) = versions.iter().position(|version| version.timestamp <= horizon) {
            versions.truncate(position + 1);
            versions.truncate(position + usize::from(!is_settled(&versions[position], horizon)));
        }
        Ok(self.served(versions, state.last_timestamp, proof, epoch))
    }

    /// Waits until the replica can answer at this level; returns the newest proof that the answer can rely on. To be
    /// called before the state is looked at, which is then at least as new as the proof says.
    async fn reach(&self, level: ReadLevel, epoch: Epoch, deadline: Instant) -> Result<Option<Proof>> {
        if self.state().sealed_for.is_some() {
            return Err(self.wrong_epoch());
        }
        let known = self.proofs.known(epoch);
        let needs_proof = match level {
            ReadLevel::Any => {
                self.prove_again_after(ANY_AGE_PROVEN);
                false
            }
            ReadLevel::MaxAge(age) => {
                let now = self.clock.now();
                let old = known.is_none_or(|proof| now.saturating_duration_since(proof.asked) > age);
                if !old {
                    // By half of it, so that those who come later need not wait.
                    self.prove_again_after(age / 2);
                }
                old
            }
            ReadLevel::AtLeast(token) => !self.comes_to(token.timestamp, deadline).await,
            ReadLevel::AsOf(at) if self.state().last_timestamp >= at => false,
            ReadLevel::AsOf(_) if !self.is_leader() => return Err(self.not_leader()),
            ReadLevel::AsOf(_) | ReadLevel::Linearizable => true,
        };
        if !needs_proof {
            return Ok(known);
        }
        let proof = self.prove(deadline, false).await?;
        // The range that it speaks of is not the one that was asked for.
        if proof.epoch == epoch { Ok(Some(proof)) } else { Err(self.wrong_epoch()) }
    }

    /// Whether everything up to this version is applied, or will be in a moment.
    async fn comes_to(&self, timestamp: Timestamp, deadline: Instant) -> bool {
        if self.state().last_timestamp >= timestamp {
            return true;
        }
        // A leader is not sent what it lacks: the version is of another shard.
        if self.is_leader() {
            return false;
        }
        let mut applied = self.applied();
        let arrives = applied.wait_for(|&applied| applied >= timestamp);
        matches!(timeout_at(deadline.min(self.clock.now() + ON_ITS_WAY), arrives).await, Some(Ok(_)))
    }

    /// Has a proof made for those who come later, if none was asked for this long. Nobody waits for it.
    pub(super) fn prove_again_after(&self, interval: Duration) {
        if self.proofs.wish(self.clock.now(), interval) && self.gate.try_send(Waiting::Later).is_err() {
            self.proofs.unwish();
        }
    }

    /// Confirms that this replica leads, and that its state holds every write acknowledged before the call.
    pub async fn confirm(&self, deadline: Instant) -> Result<()> {
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        self.catch_up(deadline, false).await
    }

    /// Makes sure that the state of this replica, whatever its part, holds every write acknowledged before the call.
    ///
    /// If it is awaited, upkeep of views hears that somebody waits until they have taken it in.
    ///
    /// Errors: `TOO_STALE`, naming the leader, when this replica cannot prove that.
    pub async fn catch_up(&self, deadline: Instant, awaited: bool) -> Result<()> {
        self.prove(deadline, awaited).await.map(|_| ())
    }

    /// Waits at the gate: afterwards the state of this replica, whatever its part, holds every write acknowledged before
    /// the call.
    async fn prove(&self, deadline: Instant, awaited: bool) -> Result<Proof> {
        if planted::is(Bug::UnconfirmedRead) && self.is_leader() {
            return Ok(Proof { asked: self.clock.now(), epoch: self.state().epoch });
        }
        let (reader, proven) = oneshot::channel();
        self.gate.try_send(Waiting::Reader { proven: reader, awaited }).map_err(|_| {
            Error::new(Reason::Overloaded, "too many reads wait for this shard; slow down")
                .with_retry_after(OVERLOADED_RETRY)
        })?;
        match timeout_at(deadline, proven).await {
            Some(Ok(proof)) => proof,
            Some(Err(_)) => Err(Error::new(Reason::NotReady, "the replica has stopped")),
            None => Err(Error::new(Reason::DeadlineExceeded, "leadership could not be confirmed before the deadline")),
        }
    }

    /// The position to read at, and the moment by which values expire. Without a moment asked for it is the newest version
    /// applied: so the answer is of one state, and what a session takes from it as its token is all that it has seen.
    async fn position(&self, level: ReadLevel, state: &State, deadline: Instant) -> Result<(Timestamp, u64)> {
        let now_ms = self.clock.wall_ms().max(state.last_timestamp.millis());
        let ReadLevel::AsOf(at) = level else { return Ok((state.last_timestamp, now_ms)) };
        let now = Timestamp::from_millis(now_ms.saturating_add(1)).previous();
        within_history(at, state.horizon, now)?;
        // Nothing may be written at or before `at` any more, or the same read would answer differently later.
        self.pass(at, deadline).await?;
        Ok((at, at.millis()))
    }

    /// What one reader was told has run out stays so for all who come after, on every replica and whatever their
    /// clocks say: the log says it too, before the answer goes out. Once for many values: time has then passed them all.
    /// A copy that answers as it stands promises nothing. False: it had to be said now, and the reader looks again as of
    /// then, so that what it takes for its token says it too.
    async fn gone_for_good(
        &self,
        level: ReadLevel,
        state: &State,
        ran_out_ms: Option<u64>,
        deadline: Instant,
    ) -> Result<bool> {
        match (level, ran_out_ms.map(Timestamp::from_millis)) {
            (ReadLevel::Any | ReadLevel::AsOf(_), _) | (_, None) => Ok(true),
            (_, Some(ran_out)) if state.last_timestamp >= ran_out => Ok(true),
            (_, Some(ran_out)) => self.pass(ran_out, deadline).await.map(|()| false),
        }
    }

    /// Makes sure, through the log, that no later version gets a timestamp at or before this.
    async fn pass(&self, moment: Timestamp, deadline: Instant) -> Result<()> {
        if self.state().last_timestamp >= moment {
            return Ok(());
        }
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        match self.enqueue(PendingKind::Passed(moment), 0, deadline).await {
            Ok(_) => Ok(()),
            // Of a read nothing is undetermined: it is asked again.
            Err(error) if error.reason == Reason::ResultUndetermined => Err(self.not_leader()),
            Err(error) => Err(error),
        }
    }

    /// Whether what was read at a position is all there: false if the horizon has passed it meanwhile and part of it may
    /// have been trimmed, so that it must be read again at a newer one. In the past that is a refusal. So is a range that
    /// has changed: what the log of this shard was made to say of a moment does not bind the child that owns the key since. And
    /// so is the end of the replica, whose data may have been removed while it was read.
    fn still_there(&self, level: ReadLevel, at: Timestamp, epoch: Epoch) -> Result<bool> {
        if self.has_ended() {
            let why = format!("the replica of {} that was asked has gone; ask another", self.id());
            return Err(Error::new(Reason::ShardNotHere, why));
        }
        let state = self.state();
        if state.epoch != epoch {
            return Err(self.wrong_epoch());
        }
        match level {
            ReadLevel::AsOf(at) => within_history(at, state.horizon, Timestamp::MAX).map(|()| true),
            _ => Ok(state.horizon <= at),
        }
    }

    pub(super) fn served<T>(&self, body: T, as_of: Timestamp, proof: Option<Proof>, epoch: Epoch) -> Served<T> {
        let age = proof.map(|proof| self.clock.now().saturating_duration_since(proof.asked));
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
