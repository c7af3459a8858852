//! Those who follow what changes in a table, each with a habit of its own.
//!
//! A follower keeps what it has *committed*: the cursor of the last page that it took in and, if it is one that makes
//! something of what it is told, its model of the table, both written together as a database would write them.
//! Whatever else it has is lost when it breaks off, and it goes on from its cursor. One that is told that it came too
//! late (`CURSOR_TRIMMED`) begins anew with what is new; a model is then read from the table once more.
//!
//! In the history each page is one operation, under the follower's name as its key: `begin` for one without a cursor,
//! `resume` for the first after breaking off, `page` for all others. The answer is a list of rows: key, version,
//! value, and what that has replaced (version and value, or null). Further fields are the age of the page, and
//! `committed`: false for a page that came and was lost before anything was made of it. A page that was not waited
//! for is a failure, `DROPPED`. `scan` is the table as a new model takes it over, `model` what became of it in the
//! end.
//!
//! Left out: what must hold (`check::changes`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use bytes::Bytes;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use trivet::client::Followed;
use trivet::types::{Change, ChangesRequest, Reason, ScanRequest};

use super::access::Doors;
use super::worker::{lose, provenance, with};
use crate::history::{Process, Stopwatch};

/// Longest wait for a page by those who are in no hurry; a page comes every second, if by nothing else than the time.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long one node waits for news.
const WAIT: Duration = Duration::from_millis(500);
/// After a page that was not answered.
const PAUSE: Duration = Duration::from_millis(50);
/// Changes of one shard in a page, for one who is slow …
const FEW: usize = 4;
/// … and for the others.
const MANY: usize = 200;
/// Rows of a page when a table is read.
const ROWS: usize = 200;
/// Longest time to come to the end when all is healed and nobody writes any more.
const END: Duration = Duration::from_secs(40);

/// How somebody follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// By the routing client, as fast as it is told.
    KeepsUp,
    /// Page by page of one node, which asks others for what it does not have.
    Bound(usize),
    /// With small pages and long pauses.
    Slow,
    /// By the routing client, and breaks off all the time, also while it waits for a page.
    Reconnects,
    /// Makes a model, and is killed at any moment, also between being told and committing.
    Killed,
}

/// What survives when somebody is killed.
#[derive(Clone, Default)]
struct Committed {
    cursor: Option<Bytes>,
    /// By key its newest version, and the value; none for a deletion.
    model: BTreeMap<String, (u64, Value)>,
}

/// One who follows.
pub struct Follower {
    /// The first letter is that of its table.
    pub name: String,
    /// How it follows.
    pub habit: Habit,
    /// Its ways to the table.
    pub doors: Arc<Doors>,
    /// The clock of its history.
    pub clock: Stopwatch,
    /// What it is in the history.
    pub process: Process,
    /// Its whims.
    pub random: StdRng,
    /// How long it dawdles in milliseconds, if it is one that does.
    pub dawdles: Range<u64>,
    committed: Committed,
    followed: Option<Followed>,
}

/// What it makes of its next page.
#[derive(Clone, Copy)]
struct Whim {
    changes: usize,
    patience: Duration,
    commits: bool,
}

impl Follower {
    /// One who has not begun.
    pub fn new(
        name: String,
        habit: Habit,
        doors: Arc<Doors>,
        clock: Stopwatch,
        process: Process,
        random: StdRng,
    ) -> Self {
        let (committed, followed) = (Committed::default(), None);
        Follower { name, habit, doors, clock, process, random, dawdles: 1_000..4_000, committed, followed }
    }

    /// Follows until the signal.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> Follower {
        loop {
            let whim = self.whim();
            let told = self.page(whim).await;
            let pause = if told.is_some() { self.pause(whim) } else { PAUSE };
            // An error: nobody can stop it any more, so it stops.
            if timeout(pause, stop.wait_for(|stop| *stop)).await.is_ok() {
                return self;
            }
        }
    }

    /// Goes on until a page proves that everything of before this moment was told. Errors: none does.
    pub async fn come_to_end(mut self, moment: u64) -> anyhow::Result<()> {
        let deadline = Instant::now() + END;
        // Whoever was slow hurries now.
        self.followed = None;
        let whim = Whim { changes: MANY, patience: PATIENCE, commits: true };
        while self.page(whim).await.flatten().is_none_or(|proven| proven <= moment) {
            let who = &self.name;
            ensure!(Instant::now() < deadline, "{who} is not told how far it has come although everything is healed");
            sleep(PAUSE).await;
        }
        if self.habit == Habit::Killed {
            let pending = self.process.invoke("model", &self.name, Value::Null);
            let rows = self.committed.model.iter().filter(|(_, (_, value))| !value.is_null());
            pending.ok(rows.map(|(key, (version, value))| json!([key, version, value])).collect());
        }
        Ok(())
    }

    fn whim(&mut self) -> Whim {
        let random = &mut self.random;
        let mut whim = Whim { changes: MANY, patience: PATIENCE, commits: true };
        match self.habit {
            Habit::KeepsUp | Habit::Bound(_) => {}
            Habit::Slow => whim.changes = FEW,
            Habit::Reconnects => {
                whim.changes = random.random_range(1..MANY);
                whim.patience = Duration::from_millis(random.random_range(2..1_000));
            }
            Habit::Killed => match random.random_range(0..100) {
                0..15 => whim.commits = false,
                15..30 => whim.patience = Duration::from_millis(random.random_range(2..500)),
                _ => {}
            },
        }
        whim
    }

    fn pause(&mut self, whim: Whim) -> Duration {
        let random = &mut self.random;
        let millis = match self.habit {
            Habit::KeepsUp => random.random_range(0..100),
            Habit::Slow => random.random_range(self.dawdles.clone()),
            // It stays away for a while.
            Habit::Killed if !whim.commits && random.random_range(0..8) == 0 => {
                random.random_range(self.dawdles.clone())
            }
            Habit::Reconnects if random.random_range(0..2) == 0 => {
                self.followed = None;
                0
            }
            _ => random.random_range(0..250),
        };
        Duration::from_millis(millis)
    }

    /// Waits for a page and, unless it is killed over it, commits it. None: it was not answered. Else before which moment
    /// of the history's clock everything was told with it, if it says so.
    async fn page(&mut self, whim: Whim) -> Option<Option<u64>> {
        let f = match (&self.committed.cursor, &self.followed) {
            (None, _) => "begin",
            (Some(_), None) if !matches!(self.habit, Habit::Bound(_)) => "resume",
            _ => "page",
        };
        let from = self.clock.now_ns();
        let pending = self.process.invoke(f, &self.name, Value::Null);
        let cursor = self.committed.cursor.clone();
        let answer = match self.habit {
            Habit::Bound(node) => {
                let (changes_max, with_previous, wait) = (whim.changes, true, WAIT);
                let request = ChangesRequest { cursor, changes_max, with_previous, wait, ..ChangesRequest::default() };
                let access = self.doors.bound(node);
                let attempt = access.attempt()?;
                attempt.changes(request).await
            }
            _ => {
                let followed = self.followed.get_or_insert_with(|| {
                    let changes = self.doors.changes().with_previous().page(whim.changes);
                    match cursor {
                        Some(cursor) => changes.resume(cursor).follow(),
                        None => changes.follow(),
                    }
                });
                let Ok(answer) = timeout(whim.patience, followed.next_page()).await else {
                    pending.fail("DROPPED");
                    self.followed = None;
                    return None;
                };
                answer
            }
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                pending.fail(error.reason.as_str());
                if error.reason == Reason::CursorTrimmed {
                    (self.committed, self.followed) = (Committed::default(), None);
                }
                return None;
            }
        };
        let (changes, mut extra) = (answer.body.changes, provenance(&answer.header));
        let age_us = answer.header.age.map(|age| u64::try_from(age.as_micros()).unwrap_or(u64::MAX));
        if let Some(age_us) = age_us {
            extra.insert("age_us".into(), age_us.into());
        }
        if !whim.commits {
            extra = with(extra, "committed", false);
        }
        pending.ok_with(changes.iter().map(row).collect(), extra);
        // What is rounded off counts as older.
        let proven = age_us.and_then(|age_us| from.checked_sub(age_us.saturating_add(1).saturating_mul(1_000)));
        if !whim.commits {
            self.followed = None;
            return Some(proven);
        }
        let mut next = self.committed.clone();
        let begins = next.cursor.replace(answer.body.cursor).is_none();
        if self.habit == Habit::Killed {
            let told =
                changes.iter().map(|change| (text(&change.key), (change.timestamp.0, sight(change.value.as_deref()))));
            take_in(&mut next.model, told);
            if begins {
                let Some(rows) = self.table().await else {
                    self.followed = None;
                    return None;
                };
                take_in(&mut next.model, rows);
            }
        }
        self.committed = next;
        Some(proven)
    }

    /// Reads the whole table.
    async fn table(&mut self) -> Option<Vec<(String, (u64, Value))>> {
        let pending = self.process.invoke("scan", &self.name, Value::Null);
        let access = self.doors.routing();
        let (mut rows, mut cursor) = (Vec::new(), None);
        loop {
            match access.page(ScanRequest { rows_max: ROWS, cursor, ..ScanRequest::default() }).await {
                Ok(page) => {
                    let page = page.body;
                    let shown =
                        page.rows.iter().map(|row| (text(&row.key), (row.timestamp.0, sight(row.value.as_deref()))));
                    rows.extend(shown);
                    cursor = page.cursor;
                }
                Err(lost) => {
                    lose(pending, &lost);
                    return None;
                }
            }
            if cursor.is_none() {
                pending.ok(rows.iter().map(|(key, (version, value))| json!([key, version, value])).collect());
                return Some(rows);
            }
        }
    }
}

/// What was read and what is told of a key may overlap: the newer version counts.
fn take_in(model: &mut BTreeMap<String, (u64, Value)>, rows: impl IntoIterator<Item = (String, (u64, Value))>) {
    for (key, (version, value)) in rows {
        let newest = model.entry(key).or_insert((0, Value::Null));
        if version > newest.0 {
            *newest = (version, value);
        }
    }
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

/// A stored value as the history tells it: without the blanks that make it long. What is no serial number is told as
/// it is: the checker names it.
pub fn sight(value: Option<&[u8]>) -> Value {
    let Some(text) = value.map(String::from_utf8_lossy) else { return Value::Null };
    text.trim_end().parse::<i64>().map_or_else(|_| json!(text), |serial| json!(serial))
}

fn row(change: &Change) -> Value {
    let previous = change.previous.as_ref().map(|previous| json!([previous.timestamp.0, sight(Some(&previous.value))]));
    json!([text(&change.key), change.timestamp.0, sight(change.value.as_deref()), previous])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_told_as_its_number_and_what_is_none_as_it_is() {
        assert_eq!(sight(Some(b"17    ")), json!(17));
        assert_eq!(sight(Some(b"x ")), json!("x "));
        assert_eq!(sight(None), Value::Null);
    }

    #[test]
    fn the_newer_of_what_was_read_and_what_is_told_counts() {
        let mut model = BTreeMap::from([("k".to_owned(), (5, json!(1)))]);
        let rows = [(4, json!(2)), (7, Value::Null), (6, json!(3))];
        take_in(&mut model, rows.map(|row| ("k".to_owned(), row)));
        assert_eq!(model["k"], (7, Value::Null));
    }
}
