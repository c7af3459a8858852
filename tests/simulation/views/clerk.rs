//! Those who write orders and profiles, and read the views of them.
//!
//! A clerk writes one after the other by the routing client: makes it, changes it, gives it to another user, deletes it; some orders
//! are for tests, and some documents fit no view. In between it reads what a view has of a user, mostly of one that it has
//! just written something of or taken something away from: with the token of its own writes, of a greatest age, linearizably or
//! as it comes, by the client or at any node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use trivet::client::{Client, Connection};
use trivet::runtime::{Clock, sleep};
use trivet::types::{
    Answer, Error, Header, Kind, Page, Read, ReadLevel, Reason, Request, Response, Result, Role, ScanBounds,
    ScanRequest, Timestamp, Token, Versioned,
};

use super::{BY_USER, Fate, Looking, PAGES, PROFILES, STATS, Seen, Shared, ViewPlan, Writing, table_of, user_key};
use crate::entropy::Random;
use crate::run::Report;

/// One clerk.
pub struct Clerk {
    /// How it reaches the cluster.
    pub client: Client,
    /// Ways to single nodes.
    pub doors: Vec<Connection>,
    /// The run's plan of views.
    pub plan: ViewPlan,
    /// Between two calls, at most.
    pub think: Duration,
    /// What is noted.
    pub book: Shared,
    /// The run.
    pub report: Report,
    /// Its choices.
    pub random: Random,
    /// When to stop.
    pub stop: Arc<AtomicBool>,
    /// The keys that it wrote, with their versions.
    pub own: Vec<(Bytes, Timestamp)>,
    /// The users that its last writes concerned.
    pub concerned: Vec<String>,
}

impl Clerk {
    /// Works until told to stop.
    pub async fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            let think = self.random.span(Duration::ZERO, self.think);
            sleep(think).await;
            match self.random.below(100) {
                0..45 => self.write().await,
                45..70 => self.look_at_orders().await,
                70..85 => self.look_at_row(STATS, Seen::Totals).await,
                _ => self.look_at_row(PAGES, Seen::Page).await,
            }
        }
    }

    fn user(&mut self) -> String {
        format!("u{}", self.random.below(self.plan.users))
    }

    /// The document of a number.
    fn compose(&mut self, key: &Bytes, w: usize) -> String {
        let user = self.user();
        self.concerned.push(user.clone());
        if table_of(key) == PROFILES {
            let level = self.random.below(100);
            return match self.random.below(25) {
                0 => format!(r#"{{"level":{level},"w":{w}}}"#),
                _ => format!(r#"{{"user":"{user}","level":{level},"w":{w}}}"#),
            };
        }
        let (placed, cents) = (self.random.within(1, 9_999), self.random.within(1, 9_999_999));
        let state = *self.random.pick(&["awaiting_payment", "paid", "paid", "shipped", "shipped", "test"]);
        match self.random.below(25) {
            0 => format!(r#"{{"placed":{placed},"state":"{state}","w":{w}}}"#),
            _ => format!(
                r#"{{"user":"{user}","placed":{placed},"amount":{}.{:02},"state":"{state}","w":{w}}}"#,
                cents / 100,
                cents % 100
            ),
        }
    }

    async fn write(&mut self) {
        let key = Bytes::from(match self.random.below(5) {
            0 => format!("p{}", self.random.below(self.plan.users)),
            _ => format!("o{}", self.random.below(self.plan.orders)),
        });
        let deletes = self.random.per_mille(200);
        self.concerned.clear();
        let (place, document) = {
            let place = self.book.lock().writes.len();
            let document = (!deletes).then(|| Bytes::from(self.compose(&key, place)));
            let mut book = self.book.lock();
            // Whoever had it before is of interest, too.
            let before = book.writes.iter().rev().find(|writing| writing.key == key);
            let before = before.and_then(|writing| super::naive::part(&key, writing.document.as_ref()?));
            self.concerned.extend(before.map(|(user, ..)| user));
            let (from, key, document) = (self.report.micros(), key.clone(), document);
            book.writes.push(Writing { from, key, document: document.clone(), fate: Fate::Unknown });
            (place, document)
        };
        let table = self.client.table(table_of(&key));
        let answer = match document {
            Some(document) => table.put(key.clone(), document).await,
            None => table.delete(key.clone()).await,
        };
        let fate = match answer {
            Ok(answer) => {
                self.own.push((key, answer.body.timestamp));
                self.report.count("orders and profiles written");
                Fate::Acked(self.report.micros(), answer.body.timestamp)
            }
            Err(error) if error.kind().leaves_open() => Fate::Unknown,
            Err(error) => Fate::Failed(error.reason),
        };
        self.report.event(format_args!("document {place} -> {fate:?}"));
        self.book.lock().writes[place].fate = fate;
    }

    /// A user whose orders it is to look at.
    fn chosen(&mut self) -> String {
        if self.concerned.is_empty() || self.random.per_mille(200) {
            return self.user();
        }
        self.random.pick(&self.concerned).clone()
    }

    /// How fresh a read is to be, and what a token covers.
    fn level(&mut self) -> (ReadLevel, BTreeMap<Bytes, Timestamp>) {
        let newest = self.own.iter().map(|(_, version)| *version).max();
        let last = self.own.last().map(|(_, version)| *version);
        let token = if self.random.per_mille(500) { last } else { newest };
        let level = match (self.random.below(20), token) {
            (0..9, Some(timestamp)) => ReadLevel::AtLeast(Token { timestamp }),
            (9..14, _) => ReadLevel::MaxAge(self.random.span(Duration::ZERO, Duration::from_secs(2))),
            (14..17, _) => ReadLevel::Any,
            _ => ReadLevel::Linearizable,
        };
        let mut least: BTreeMap<Bytes, Timestamp> = BTreeMap::new();
        if let ReadLevel::AtLeast(token) = level {
            for (key, version) in self.own.iter().filter(|(_, version)| *version <= token.timestamp) {
                let known = least.entry(key.clone()).or_default();
                *known = (*known).max(*version);
            }
        }
        (level, least)
    }

    async fn look_at_orders(&mut self) {
        let (user, (level, least), from) = (self.chosen(), self.level(), self.report.micros());
        let request = ScanRequest { bounds: ScanBounds::Tag(user.clone().into()), level, ..ScanRequest::default() };
        let answer = match self.random.per_mille(300) {
            true => self.page_of_one_node(request).await,
            false => self.client.table(BY_USER).scan_page(request).await,
        };
        let Some(Answer { header, body }) = self.answered(answer, level) else { return };
        if body.cursor.is_some() {
            return self.report.violation(format!("a scan of the few orders of {user} has a second page"));
        }
        let rows = body.rows.into_iter().map(|row| (row.key, row.value.unwrap_or_default()));
        self.note(from, user, (level, least), &header, Seen::Rows(rows.collect()));
    }

    /// The only row of a user in a view.
    async fn look_at_row(&mut self, view: &'static str, seen: fn(Option<Bytes>) -> Seen) {
        let (user, (level, least), from) = (self.chosen(), self.level(), self.report.micros());
        let answer = match self.random.per_mille(300) {
            true => self.value_of_one_node(view, user_key(&user), level).await,
            false => self.client.table(view).get_with(user_key(&user), level).await,
        };
        let Some(Answer { header, body }) = self.answered(answer, level) else { return };
        self.note(from, user, (level, least), &header, seen(body.map(|found| found.value)));
    }

    fn answered<T>(&self, answer: Result<Answer<T>>, level: ReadLevel) -> Option<Answer<T>> {
        match answer {
            Ok(answer) => {
                self.report.count(match level {
                    ReadLevel::AtLeast(_) => "reads of views with a token",
                    ReadLevel::MaxAge(_) => "reads of views of a greatest age",
                    ReadLevel::Linearizable => "linearizable reads of views",
                    _ => "reads of views of any age",
                });
                if answer.header.role != Role::Leader {
                    self.report.count("reads of copies of views");
                }
                Some(answer)
            }
            Err(error) => {
                let passes = !matches!(error.kind(), Kind::Invalid | Kind::Corrupt | Kind::Internal);
                // There may be no such view yet.
                if !passes && error.reason != Reason::UnknownTable {
                    self.report.violation(format!("who reads a view was told {error}"));
                }
                self.report.count("failed reads of views");
                None
            }
        }
    }

    fn note(
        &self,
        from: u64,
        user: String,
        (level, least): (ReadLevel, BTreeMap<Bytes, Timestamp>),
        header: &Header,
        seen: Seen,
    ) {
        let at = self.report.micros();
        // Rounded up: it is not older than this.
        let age = header.age.map(|age| u64::try_from(age.as_nanos().div_ceil(1_000)).expect("a run is short"));
        self.report.event(format_args!("{user} {level:?} -> {seen:?} by {} ({age:?} us)", header.node));
        self.book.lock().looks.push(Looking { from, at, user, level, least, age, seen });
    }

    fn one_node(&mut self) -> (Connection, trivet::runtime::Instant, bool) {
        let door = self.random.pick(&self.doors).clone();
        let patience = self.random.span(Duration::from_millis(200), Duration::from_secs(3));
        (door, Clock::system().now() + patience, self.random.per_mille(400))
    }

    async fn page_of_one_node(&mut self, request: ScanRequest) -> Result<Answer<Page>> {
        let (door, deadline, alone) = self.one_node();
        let request = Request::Scan(ScanRequest { any_replica: true, ..request });
        match door.call(BY_USER, &request, deadline, alone).await? {
            Response::Page(page) => Ok(page),
            other => Err(Error::internal(format!("a scan was answered with {other:?}"))),
        }
    }

    async fn value_of_one_node(
        &mut self,
        view: &str,
        key: Bytes,
        level: ReadLevel,
    ) -> Result<Answer<Option<Versioned>>> {
        let (door, deadline, alone) = self.one_node();
        let read = Read { keys: vec![key], level, any_replica: true };
        match door.call(view, &Request::Read(read), deadline, alone).await? {
            Response::Values(mut values) if values.len() == 1 => Ok(values.remove(0)),
            other => Err(Error::internal(format!("a read was answered with {other:?}"))),
        }
    }
}
