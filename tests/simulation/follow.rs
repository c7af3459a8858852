//! Those who follow what changes in the table, while shards are split and move and lead elsewhere.
//!
//! A follower keeps a cursor and what it was told up to it, and nothing else: it goes on by the routing client, or asks any single
//! node for the next page, breaks off in the middle of a page and begins again at its cursor, and dawdles until nobody
//! keeps the last changes for it any more. When all is quiet it goes on until a page proves that nothing acknowledged by then is
//! still to come; nobody tells it when that is. Then ([`judge`]) it was told every version that came to be since it began, once,
//! each key's in their order, each with what it replaced; and no page was older than it said.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use trivet::client::{Client, Connection};
use trivet::runtime::{Clock, sleep, timeout};
use trivet::types::{
    Answer, Change, ChangesPage, ChangesRequest, Error, Kind, Reason, Request, Response, Result, ScanBounds, Timestamp,
    Versioned,
};

use super::entropy::Random;
use super::oracle::{Found, MadeAt, Versions};
use super::run::Report;
use super::workload::{Fate, History, Shared, TABLE};

/// Changes of one shard in a page, at most.
const PAGE_MAX: u64 = 12;

/// One page that was told something or proved its age.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// When it was asked for.
    pub from: u64,
    /// What it told.
    pub changes: Vec<Change>,
    /// How old it said to be, in microseconds.
    pub age: Option<u64>,
}

/// Everything that one follower was told.
#[derive(Clone, Debug, Default)]
pub struct Following {
    /// When it had begun: what was written from then on must be told.
    pub begun: u64,
    /// Its pages.
    pub pages: Vec<Leaf>,
}

/// One who follows.
pub struct Follower {
    /// How it reaches the cluster.
    pub client: Client,
    /// Ways to single nodes.
    pub doors: Vec<Connection>,
    /// What is noted.
    pub history: Shared,
    /// The run.
    pub report: Report,
    /// Its choices.
    pub random: Random,
    /// Whether every write has been answered.
    pub quiet: Arc<AtomicBool>,
    /// Where it stands.
    pub cursor: Option<Bytes>,
}

impl Follower {
    /// Follows until it knows that it was told everything.
    pub async fn run(mut self) {
        let mut following = Following::default();
        let mut stopped = None;
        loop {
            if self.quiet.load(Ordering::Relaxed) {
                stopped.get_or_insert_with(|| self.report.micros());
            }
            let choice = self.random.below(100);
            match choice {
                _ if self.cursor.is_none() || choice < 45 => self.by_one_node(&mut following).await,
                45..90 => self.by_the_client(&mut following).await,
                _ if stopped.is_none() => {
                    let pause = self.random.span(Duration::ZERO, Duration::from_secs(3));
                    sleep(pause).await;
                }
                _ => {}
            }
            let Some(last) = following.pages.last() else { continue };
            // Everything acknowledged before this moment was told.
            let proven = last.age.and_then(|age| last.from.checked_sub(age));
            if let (Some(stopped), Some(proven)) = (stopped, proven)
                && proven > stopped
            {
                break;
            }
        }
        self.report.count("followers that came to the end");
        self.history.lock().followings.push(following);
    }

    /// Asks the routing client for some pages, and breaks off.
    async fn by_the_client(&mut self, following: &mut Following) {
        let every = self.random.span(Duration::from_millis(20), Duration::from_secs(1));
        let mut changes = self.client.table(TABLE).changes(ScanBounds::All).with_previous().every(every);
        if let Some(cursor) = &self.cursor {
            changes = changes.resume(cursor.clone());
        }
        let mut followed = changes.page(self.page_size()).follow();
        for _ in 0..self.random.within(1, 12) {
            let from = self.report.micros();
            let patience = self.random.span(Duration::from_millis(5), Duration::from_secs(2));
            match timeout(patience, followed.next_page()).await {
                Some(result) => self.take(from, result, following),
                // The page that it waited for is not lost: it is still to come.
                None => continue,
            }
            if self.random.per_mille(100) {
                let pause = self.random.span(Duration::ZERO, Duration::from_millis(300));
                sleep(pause).await;
            }
        }
    }

    /// Asks any node for a page.
    async fn by_one_node(&mut self, following: &mut Following) {
        let door = self.random.pick(&self.doors).clone();
        let request = ChangesRequest {
            cursor: self.cursor.clone(),
            with_previous: true,
            changes_max: self.page_size(),
            wait: self.random.span(Duration::ZERO, Duration::from_millis(300)),
            ..ChangesRequest::default()
        };
        let patience = self.random.span(Duration::from_millis(400), Duration::from_secs(2));
        let (from, deadline) = (self.report.micros(), Clock::system().now() + patience);
        let page = match door.call(TABLE, &Request::Changes(request), deadline, false).await {
            Ok(Response::Changes(page)) => Ok(page),
            Ok(other) => Err(Error::internal(format!("changes were answered with {other:?}"))),
            Err(error) => Err(error),
        };
        let failed = page.is_err();
        self.take(from, page, following);
        if failed {
            // A node that is known to be away fails at once.
            let pause = self.random.span(Duration::from_millis(1), Duration::from_millis(20));
            sleep(pause).await;
        }
    }

    fn page_size(&mut self) -> usize {
        usize::try_from(self.random.within(1, PAGE_MAX)).expect("small")
    }

    fn take(&mut self, from: u64, page: Result<Answer<ChangesPage>>, following: &mut Following) {
        match page {
            Ok(Answer { header, body }) => {
                if self.cursor.is_none() {
                    following.begun = self.report.micros();
                }
                self.cursor = Some(body.cursor);
                self.report.count("pages of changes");
                let age = header.age.map(|age| u64::try_from(age.as_micros()).expect("not that old"));
                self.report.event(format_args!("told of {} changes, age {age:?} us", body.changes.len()));
                if let Some(last) = following.pages.last()
                    && last.changes.is_empty()
                    && body.changes.is_empty()
                    && last.age.is_none()
                {
                    following.pages.pop();
                }
                following.pages.push(Leaf { from, changes: body.changes, age });
            }
            Err(error) if error.reason == Reason::CursorTrimmed => {
                // Clocks that jumped have put an end to the history; what was told so far is no longer judged.
                self.report.count("followers that were told that they came too late");
                self.cursor = None;
                *following = Following::default();
            }
            Err(error) => {
                let passes = !matches!(error.kind(), Kind::Invalid | Kind::Corrupt | Kind::Internal);
                if !passes && error.reason != Reason::UnknownTable {
                    self.report.violation(format!("who follows was told {error}"));
                }
            }
        }
    }
}

/// Judges what one follower was told by what is in the end found in the table.
pub fn judge(
    following: &Following,
    versions: &Versions,
    made_at: &MadeAt,
    history: &History,
) -> std::result::Result<(), String> {
    let mut told: BTreeMap<&Bytes, Vec<&Change>> = BTreeMap::new();
    for change in following.pages.iter().flat_map(|page| &page.changes) {
        told.entry(&change.key).or_default().push(change);
    }
    for (key, changes) in &told {
        for change in changes {
            let found = versions.get(*key).and_then(|versions| versions.get(&change.timestamp));
            let shown = Found { value: change.value.clone(), expires_ms: change.expires_ms };
            if found != Some(&shown) {
                return Err(format!("{change:?} was told, but {found:?} is found"));
            }
        }
        for pair in changes.windows(2) {
            let [before, change] = pair else { unreachable!("pairs") };
            if before.timestamp >= change.timestamp {
                return Err(format!("{change:?} was told after {before:?}"));
            }
            let replaced = before.value.clone().map(|value| Versioned {
                timestamp: before.timestamp,
                value,
                expires_ms: before.expires_ms,
            });
            // What had run out may have been let go.
            let settled = before.expires_ms.is_some() && change.previous.is_none();
            if change.previous != replaced && !settled {
                return Err(format!("{change:?} was told, but it replaced {replaced:?}"));
            }
        }
    }
    // When each version was written and answered, by its writer.
    let written = |key: &Bytes, version: Timestamp| {
        let id = made_at[&(key.clone(), version)];
        &history.writes[usize::try_from(id - 1).expect("an index")]
    };
    for (key, versions) in versions {
        for version in versions.keys() {
            let was_told = told.get(key).is_some_and(|told| told.iter().any(|change| change.timestamp == *version));
            if !was_told && written(key, *version).from > following.begun {
                return Err(format!("version {version:?} of {key:?} was never told"));
            }
        }
    }
    // No page is older than it says.
    let mut late: BTreeMap<(&Bytes, Timestamp), u64> = BTreeMap::new();
    for (key, versions) in versions {
        for version in versions.keys() {
            let writing = written(key, *version);
            if let (Fate::Acked(done), true) = (&writing.fate, writing.from > following.begun) {
                late.insert((key, *version), done.at);
            }
        }
    }
    for page in &following.pages {
        for change in &page.changes {
            late.remove(&(&change.key, change.timestamp));
        }
        let Some(proven) = page.age.and_then(|age| page.from.checked_sub(age)) else { continue };
        if let Some(((key, version), acked)) = late.iter().find(|(_, acked)| **acked < proven) {
            return Err(format!(
                "a page asked for at {} us said to be {:?} us old, but version {version:?} of {key:?}, acknowledged at \
                 {acked} us, was not told by then",
                page.from, page.age
            ));
        }
    }
    Ok(())
}
