//! The verbs on the data of one table.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;

use super::core::Core;
use super::map::Anchor;
use super::scan::Scan;
use super::session::Seen;
use super::{Changes, ReadFrom};
use crate::runtime::Instant;
use crate::types::{
    Action, Answer, Condition, Error, Operation, Outcome, Page, Read, ReadLevel, Request, Response, Result, ScanBounds,
    ScanRequest, ShardId, Test, Timestamp, Versioned, Write,
};

/// Most keys asked of one shard in one call: with values of a mebibyte, the answer is half of what fits.
const KEYS_PER_CALL: usize = 32;

/// A handle on one table. Cheap to clone and to change: [`Table::within`] and [`Table::at`] make another handle.
#[derive(Clone)]
pub struct Table {
    pub(super) core: Arc<Core>,
    pub(super) name: Arc<str>,
    session: Option<Arc<Seen>>,
    patience: Duration,
    level: ReadLevel,
    read_from: ReadFrom,
}

impl Table {
    pub(super) fn new(core: Arc<Core>, name: Arc<str>, session: Option<Arc<Seen>>) -> Table {
        let patience = core.options.deadline;
        let read_from = core.options.read_from;
        Table { core, name, session, patience, level: ReadLevel::default(), read_from }
    }

    /// The table's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same table with calls that may take this long, all attempts together (a page of a scan counts by itself).
    pub fn within(&self, patience: Duration) -> Table {
        Table { patience, ..self.clone() }
    }

    /// The same table with reads of this level. In a session, `Linearizable` (the default) means what the session
    /// has seen.
    pub fn at(&self, level: ReadLevel) -> Table {
        Table { level, ..self.clone() }
    }

    /// The same table with reads that are answered by these replicas, as far as they can.
    pub fn read_from(&self, read_from: ReadFrom) -> Table {
        Table { read_from, ..self.clone() }
    }

    /// Whether a replica that is not the leader shall try to answer whatever it is asked.
    fn any_replica(&self) -> bool {
        self.read_from != ReadFrom::Leader
    }

    /// Reads one key at the level of the handle.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Answer<Option<Versioned>>> {
        let key = key.into();
        let level = self.level_for(&key);
        self.get_with(key, level).await
    }

    /// Reads one key at exactly this level.
    pub async fn get_with(&self, key: impl Into<Bytes>, level: ReadLevel) -> Result<Answer<Option<Versioned>>> {
        let key = key.into();
        let request = Request::Read(Read { keys: vec![key.clone()], level, any_replica: self.any_replica() });
        let mut values = self.values(&request, &key, 1).await?;
        values.pop().ok_or_else(|| unfit("no value"))
    }

    /// Reads many keys of any shards; the answers come in the order of the keys, each with its own header. Shards are
    /// asked side by side; there is no one moment at which all answers hold.
    pub async fn batch_get(&self, keys: &[Bytes]) -> Result<Vec<Answer<Option<Versioned>>>> {
        let mut groups: Vec<(Option<ShardId>, Vec<usize>)> = Vec::new();
        for (at, key) in keys.iter().enumerate() {
            let shard = self.core.shard_of(&self.name, key).map(|(shard, _)| shard);
            match groups.iter_mut().rev().find(|(of, group)| *of == shard && group.len() < KEYS_PER_CALL) {
                Some((_, group)) => group.push(at),
                None => groups.push((shard, vec![at])),
            }
        }
        let asked = groups.iter().map(|(_, group)| async move {
            let wanted: Vec<Bytes> = group.iter().map(|&at| keys[at].clone()).collect();
            let anchor = wanted[0].clone();
            let count = wanted.len();
            let request =
                Request::Read(Read { keys: wanted, level: self.level_for(&anchor), any_replica: self.any_replica() });
            self.values(&request, &anchor, count).await
        });
        let answered = try_join_all(asked).await?;
        let mut answers: Vec<Option<Answer<Option<Versioned>>>> = vec![None; keys.len()];
        for ((_, group), values) in groups.iter().zip(answered) {
            for (&at, value) in group.iter().zip(values) {
                answers[at] = Some(value);
            }
        }
        answers.into_iter().map(|answer| answer.ok_or_else(|| unfit("too few values"))).collect()
    }

    /// Sets one key.
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Answer<Outcome>> {
        self.single(key.into(), Action::Put { value: value.into(), ttl_ms: None }).await
    }

    /// Sets one key for a while, counted from the version's timestamp; less than a millisecond is refused.
    pub async fn put_ttl(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        ttl: Duration,
    ) -> Result<Answer<Outcome>> {
        let ttl_ms = Some(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        self.single(key.into(), Action::Put { value: value.into(), ttl_ms }).await
    }

    /// Removes one key; a success also if there was none.
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Answer<Outcome>> {
        self.single(key.into(), Action::Delete).await
    }

    /// Adds to a decimal integer (an absent key counts as 0) and answers the sum.
    pub async fn increment(&self, key: impl Into<Bytes>, delta: i64) -> Result<Answer<i64>> {
        let answer = self.single(key.into(), Action::Increment { delta }).await?;
        match answer.body.integers.first() {
            Some(&Some(sum)) => Ok(Answer { header: answer.header, body: sum }),
            _ => Err(unfit("no sum")),
        }
    }

    /// Sets one key (or removes it, if `new` is none) if it meets the test. Whether it did is
    /// [`Outcome::applied`]; if it did not, [`Outcome::observed`] says what is there.
    pub async fn compare_and_swap(
        &self,
        key: impl Into<Bytes>,
        expected: Test,
        new: Option<Bytes>,
    ) -> Result<Answer<Outcome>> {
        let key = key.into();
        let action = match new {
            Some(value) => Action::Put { value, ttl_ms: None },
            None => Action::Delete,
        };
        self.batch(Write {
            request: None,
            conditions: vec![Condition { key: key.clone(), test: expected }],
            operations: vec![Operation { key, action }],
        })
        .await
    }

    /// Makes one key what it was at version `to`, as a new version.
    pub async fn rollback(&self, key: impl Into<Bytes>, to: Timestamp) -> Result<Answer<Outcome>> {
        self.single(key.into(), Action::Rollback { to }).await
    }

    /// Applies an atomic batch over one shard. Without a request id it gets one; with one it is the caller who
    /// answers for it being used for this batch alone.
    pub async fn batch(&self, mut write: Write) -> Result<Answer<Outcome>> {
        let first = write.operations.first().map(|operation| &operation.key);
        let anchor = first.cloned().unwrap_or_default();
        write.request.get_or_insert_with(|| self.core.request_id());
        let request = Request::Write(write);
        match self.execute(&request, Anchor::Key(&anchor)).await? {
            Response::Written(answer) => {
                self.note(&answer.header);
                Ok(answer)
            }
            _ => Err(unfit("not a write's")),
        }
    }

    /// A scan of these keys, page by page.
    pub fn scan(&self, bounds: ScanBounds) -> Scan {
        Scan::new(self.clone(), ScanRequest { bounds, ..ScanRequest::default() })
    }

    /// A scan as asked for: `rows_max` is the size of its pages (0: as the server likes), `cursor` where it begins.
    /// The level is that of the handle if the request asks for the default.
    pub fn scan_with(&self, request: ScanRequest) -> Scan {
        Scan::new(self.clone(), request)
    }

    /// One page of a scan, at exactly the level of the request; the cursor of a page asks for the next.
    pub async fn scan_page(&self, request: ScanRequest) -> Result<Answer<Page>> {
        let any_replica = request.any_replica || self.any_replica();
        let request = Request::Scan(ScanRequest { any_replica, ..request });
        let Request::Scan(asked) = &request else { return Err(unfit("a scan that is none")) };
        self.page(&request, Anchor::Page(asked)).await
    }

    /// Counts the keys within the bounds; every page has its own deadline.
    pub async fn count(&self, bounds: ScanBounds) -> Result<u64> {
        let mut scan = self.scan_with(ScanRequest { bounds, count_only: true, ..ScanRequest::default() });
        let mut count = 0;
        while let Some(page) = scan.next_page().await? {
            count += page.body.count;
        }
        Ok(count)
    }

    /// The newest versions of one key that are older than `before`, newest first; `rows_max` of 0: a full page.
    pub async fn history(
        &self,
        key: impl Into<Bytes>,
        before: Option<Timestamp>,
        rows_max: usize,
    ) -> Result<Answer<Page>> {
        let key = key.into();
        let request = Request::History { key: key.clone(), before, rows_max };
        self.page(&request, Anchor::Key(&key)).await
    }

    /// What changes of these keys, from now on: see [`Changes`].
    pub fn changes(&self, bounds: ScanBounds) -> Changes {
        Changes::new(self.clone(), bounds)
    }

    async fn page(&self, request: &Request, anchor: Anchor<'_>) -> Result<Answer<Page>> {
        match self.execute(request, anchor).await? {
            Response::Page(answer) => {
                self.note(&answer.header);
                Ok(answer)
            }
            _ => Err(unfit("not a page")),
        }
    }

    async fn single(&self, key: Bytes, action: Action) -> Result<Answer<Outcome>> {
        let operations = vec![Operation { key, action }];
        self.batch(Write { request: None, conditions: Vec::new(), operations }).await
    }

    async fn values(&self, request: &Request, key: &[u8], count: usize) -> Result<Vec<Answer<Option<Versioned>>>> {
        match self.execute(request, Anchor::Key(key)).await? {
            Response::Values(values) if values.len() == count => {
                values.iter().for_each(|value| self.note(&value.header));
                Ok(values)
            }
            _ => Err(unfit("not one value per key")),
        }
    }

    pub(super) async fn execute(&self, request: &Request, anchor: Anchor<'_>) -> Result<Response> {
        let deadline: Instant = self.core.clock.now() + self.patience;
        self.core.execute(&self.name, request, anchor, self.read_from, deadline).await
    }

    /// The level at which this handle reads a key.
    fn level_for(&self, key: &[u8]) -> ReadLevel {
        match (&self.session, self.level) {
            (Some(seen), ReadLevel::Linearizable) => {
                ReadLevel::AtLeast(seen.token(self.core.shard_of(&self.name, key)))
            }
            (_, level) => level,
        }
    }

    /// The level at which this handle scans.
    pub(super) fn level_of_scan(&self) -> ReadLevel {
        match (&self.session, self.level) {
            (Some(seen), ReadLevel::Linearizable) => ReadLevel::AtLeast(seen.token(None)),
            (_, level) => level,
        }
    }

    fn note(&self, header: &crate::types::Header) {
        if let Some(seen) = &self.session {
            seen.note(header);
        }
    }
}

/// The answer is not of the kind that was asked for: a fault of the server or of this program.
fn unfit(what: &str) -> Error {
    Error::internal(format!("the answer does not fit the question: {what}"))
}
