//! Scans of the whole table, a few rows to a page, while shards are split and move and lead elsewhere.
//!
//! A walk follows cursors and nothing else: one page it asks of the routing client, the next of any single node, by a
//! picture of the shards that may be older than the page before. So its pages cross from shard to shard just where
//! ranges change. It is judged by the histories of all keys ([`judge`]): rows come in order, so that none comes twice;
//! each row is what a read of that key might have found by that page; and a key that was there from before the first page
//! was asked for until after the last one came is among them, whatever was written to it meanwhile. A walk at a moment of
//! the past must find exactly what stood there then, in all shards alike.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use trivet::client::Table;
use trivet::keyspace::Layout;
use trivet::runtime::{Clock, sleep};
use trivet::types::{
    Answer, Error, Page, Partitioning, ReadLevel, Request, Response, Result, ScanBounds, ScanRequest, ShardId, TableId,
    Timestamp, Versioned,
};

use super::oracle::{self, Clocks, Found, MadeAt, Versions};
use super::plan::Plan;
use super::workload::{self, Done, Fate, History, Reading, TABLE, Worker};

/// Rows to a page, at most.
const PAGE_ROWS_MAX: u64 = 4;
/// How often one page is asked for before the walk is given up.
const PAGE_TRIES: usize = 4;

/// One page: when it was asked for, and what came.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// When it was asked for.
    pub from: u64,
    /// Its rows.
    pub found: Done<Vec<(Bytes, Versioned)>>,
}

/// A scan of the whole table that came to its end.
#[derive(Clone, Debug)]
pub struct Walking {
    /// In descending order.
    pub reverse: bool,
    /// How fresh: of now, or of a moment.
    pub level: ReadLevel,
    /// Its pages.
    pub pages: Vec<Leaf>,
}

impl Worker {
    /// Reads the whole table, page by page.
    pub(super) async fn walk(&mut self, table: &Table) {
        let past = self.seen.values().copied().max().filter(|_| self.random.per_mille(250));
        let level = past.map_or(ReadLevel::Linearizable, |newest| {
            ReadLevel::AsOf(Timestamp::from_millis(newest.millis().saturating_sub(self.random.below(1_000))))
        });
        let mut walking = Walking { reverse: self.random.per_mille(400), level, pages: Vec::new() };
        let splits = self.report.counted("splits");
        let mut cursor = None;
        loop {
            let request = ScanRequest {
                bounds: ScanBounds::All,
                reverse: walking.reverse,
                rows_max: usize::try_from(self.random.within(1, PAGE_ROWS_MAX)).expect("small"),
                cursor: cursor.clone(),
                level,
                ..ScanRequest::default()
            };
            let from = self.report.micros();
            let Some(page) = self.page(table, request).await else {
                return self.report.count("failed scans of the whole table");
            };
            if page.body.cursor.is_some() && page.body.cursor == cursor {
                return self.report.violation(format!("a scan does not advance: {page:?}"));
            }
            let rows = page.body.rows.into_iter().map(|row| {
                let Some(value) = row.value else { unreachable!("a scan has no rows without a value") };
                (row.key, Versioned { timestamp: row.timestamp, value, expires_ms: row.expires_ms })
            });
            let found = Done {
                at: self.report.micros(),
                shard: page.header.shard,
                epoch: page.header.epoch,
                as_of: page.header.as_of,
                body: rows.collect(),
            };
            self.report.event(format_args!("page {level:?} of {} by {}: {found:?}", found.shard, page.header.node));
            walking.pages.push(Leaf { from, found });
            cursor = page.body.cursor;
            if cursor.is_none() {
                break;
            }
            // Some walks linger, so that much may happen between two pages.
            if self.random.per_mille(300) {
                let pause = self.random.span(Duration::ZERO, Duration::from_millis(60));
                sleep(pause).await;
            }
        }
        self.report.count("scans of the whole table");
        if past.is_some() {
            self.report.count("scans of the whole table in the past");
        }
        if self.report.counted("splits") > splits {
            self.report.count("scans of the whole table during which a shard was split");
        }
        self.history.lock().walks.push(walking);
    }

    /// One page, of the routing client or of any node; none when that is too hard just now.
    async fn page(&mut self, table: &Table, request: ScanRequest) -> Option<Answer<Page>> {
        for _ in 0..PAGE_TRIES {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            let page = match self.random.below(2) {
                0 => table.scan_page(request.clone()).await,
                _ => self.page_of_one_node(request.clone()).await,
            };
            if let Ok(page) = page {
                return Some(page);
            }
        }
        None
    }

    /// Asks one node: to answer itself or refuse, or to have it answered by whoever can.
    async fn page_of_one_node(&mut self, request: ScanRequest) -> Result<Answer<Page>> {
        let door = self.random.pick(&self.doors).clone();
        let patience = self.random.span(Duration::from_millis(200), Duration::from_secs(2));
        let deadline = Clock::system().now() + patience;
        let (alone, any_replica) = (self.random.per_mille(300), self.random.per_mille(500));
        let request = Request::Scan(ScanRequest { any_replica, ..request });
        match door.call(TABLE, &request, deadline, alone).await? {
            Response::Page(page) => Ok(page),
            other => Err(Error::internal(format!("a scan was answered with {other:?}"))),
        }
    }
}

/// Judges a walk by what is in the end found in the table.
pub fn judge(
    plan: &Plan,
    walking: &Walking,
    versions: &Versions,
    made_at: &MadeAt,
    history: &History,
    clocks: Clocks,
) -> std::result::Result<(), String> {
    let rows = walking.pages.iter().flat_map(|page| page.found.body.iter());
    let found: BTreeMap<&Bytes, &Versioned> = rows.clone().map(|(key, version)| (key, version)).collect();
    let layout = Layout { table: TableId(1), partitioning: Partitioning::Hash };
    let places: Vec<Bytes> = rows.map(|(key, _)| layout.encode(key)).collect();
    if !places.is_sorted_by(|one, next| if walking.reverse { one > next } else { one < next }) {
        return Err("the rows of a scan are not in order, or not each there once".to_owned());
    }
    let keys = workload::all_keys(plan);
    if let Some(stranger) = found.keys().find(|key| !keys.contains(key)) {
        return Err(format!("a scan found {stranger:?}, which nobody wrote"));
    }
    if let ReadLevel::AsOf(moment) = walking.level {
        for key in &keys {
            oracle::judge_past(moment, found.get(key).copied(), versions.get(key))
                .map_err(|why| format!("{why} of {key:?}"))?;
        }
        return Ok(());
    }
    for Leaf { from, found: Done { at, shard, epoch, as_of, body } } in &walking.pages {
        for (key, version) in body {
            let found = Done { at: *at, shard: *shard, epoch: *epoch, as_of: *as_of, body: Some(version.clone()) };
            let (level, least, age) = (walking.level, Timestamp::ZERO, None);
            let reading = Reading { from: *from, key: key.clone(), level, least, age, found };
            oracle::judge_read(&reading, versions, made_at, history, clocks)
                .map_err(|why| format!("{why}: {reading:?}"))?;
        }
    }
    let (Some(first), Some(last)) = (walking.pages.first(), walking.pages.last()) else {
        return Err("a scan came to its end without a page".to_owned());
    };
    for key in keys.iter().filter(|key| !found.contains_key(key)) {
        let Some(known) = newest_answered(key, first.from, versions, made_at, history) else { continue };
        let states = oracle::candidates(key, (known, last.found.at), versions, made_at, history);
        // What may run out may be gone. Whether it was early for that is judged by reads.
        let lasts = |found: &Found| found.value.is_some() && found.expires_ms.is_none();
        if states.iter().all(|state| state.is_some_and(|(_, found)| lasts(found))) {
            return Err(format!("{key:?} was there all the time and is not in a scan of the whole table: {states:?}"));
        }
    }
    Ok(())
}

/// The newest version of a key whose writer had been answered before a moment.
fn newest_answered(
    key: &Bytes,
    before: u64,
    versions: &Versions,
    made_at: &MadeAt,
    history: &History,
) -> Option<Timestamp> {
    let answered = |timestamp: &Timestamp| {
        let id = made_at[&(key.clone(), *timestamp)];
        let writing = &history.writes[usize::try_from(id - 1).expect("an index")];
        matches!(&writing.fate, Fate::Acked(done) if done.at < before)
    };
    versions.get(key)?.keys().copied().filter(answered).max()
}

/// The pages of all walks of now, as reads of their shards: when they were asked for, of which shard, and as of when.
pub fn pages_of_now(history: &History) -> impl Iterator<Item = (u64, ShardId, Timestamp)> {
    let now = history.walks.iter().filter(|walk| walk.level == ReadLevel::Linearizable);
    now.flat_map(|walk| &walk.pages).map(|page| (page.from, page.found.shard, page.found.as_of))
}
