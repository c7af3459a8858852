//! Views in the simulated cluster: orders that are written and re-assigned while views of them are kept up.
//!
//! Some seeds have a table of orders and one of profiles beside the other one, a re-keyed view of the orders by user, an aggregate of
//! each user's, and a page of each user put together of both tables, made before anything is written or in the middle of it. Clerks
//! ([`clerk`]) write orders and profiles, give them to other users and delete them, and read the lists, totals and pages of users
//! at every level; the nemesis strikes shards of all these tables. While that goes on,
//! a watermark must never fall back ([`marks`]). When all is quiet, every replica of a view must hold, hidden rows
//! included, what a naive reading of the orders says ([`naive`], which shares no code with the product). And whatever
//! clerks were answered is judged by the history of the orders ([`judge`]): every row was once true, and none is older
//! than was allowed or than it said.

pub mod clerk;
pub mod judge;
pub mod marks;
pub mod naive;
pub mod stage;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use trivet::types::{ReadLevel, Reason, Timestamp};

use super::entropy::Random;

/// A source.
pub const ORDERS: &str = "orders";
/// Another one.
pub const PROFILES: &str = "profiles";
/// The orders of a user, the newest first.
pub const BY_USER: &str = "orders_by_user";
/// How many and how much.
pub const STATS: &str = "user_stats";
/// A document of each user: the first profile, and the first order.
pub const PAGES: &str = "user_pages";
/// All of them.
pub const TABLES: [&str; 5] = [ORDERS, PROFILES, BY_USER, STATS, PAGES];

/// What a seed decides about views.
#[derive(Clone, Debug)]
pub struct ViewPlan {
    /// Users, and orders that they have, about.
    pub users: u64,
    /// Orders.
    pub orders: u64,
    /// Shards of the orders, and of each view.
    pub shards: (u32, u32),
    /// Clerks.
    pub clerks: u64,
    /// How long after the first writes the views are created; none: before them.
    pub created_after: Option<Duration>,
    /// Views stop at documents that do not fit, until these are changed or deleted; others go on without them.
    pub stops: bool,
}

impl ViewPlan {
    /// The plan of a seed; every third one has views.
    pub fn draw(random: &mut Random) -> Option<ViewPlan> {
        let small = |number: u64| u32::try_from(number).expect("small");
        random.per_mille(333).then(|| ViewPlan {
            users: random.within(2, 4),
            orders: random.within(4, 12),
            shards: (small(random.within(1, 2)), small(random.within(1, 2))),
            clerks: 2,
            created_after: random.per_mille(500).then(|| random.span(Duration::ZERO, Duration::from_secs(5))),
            stops: random.per_mille(250),
        })
    }

    /// The key of each order and of each profile.
    pub fn keys(&self) -> impl Iterator<Item = Bytes> {
        let orders = (0..self.orders).map(|number| Bytes::from(format!("o{number}")));
        orders.chain((0..self.users).map(|number| Bytes::from(format!("p{number}"))))
    }

    /// The views: their names and definitions, one in each form.
    pub fn definitions(&self) -> [(&'static str, String); 3] {
        let shards = self.shards.1;
        let policy = if self.stops { "stop" } else { "skip" };
        let by_user = format!(
            r#"{{"name":"{BY_USER}","kind":"rekeyed","shards":{shards},"on_bad_document":"{policy}","sources":[{{"table":"{ORDERS}",
                "where":"doc.state != 'test'","partition_by":"user","order_by":["-placed"],
                "include":["amount","w"]}}]}}"#
        );
        let stats = format!(
            "name = \"{STATS}\"\nkind = \"aggregate\"\nshards = {shards}\non_bad_document = \"{policy}\"\n[[sources]]\ntable = \"{ORDERS}\"\n\
             where = \"doc.state != 'test'\"\npartition_by = \"user\"\n[aggregates]\norders = \"count\"\n\
             spent = \"sum(amount)\"\nlast = \"max(placed)\"\n"
        );
        let pages = format!(
            r#"{{"name":"{PAGES}","kind":"merged","shards":{shards},"on_bad_document":"{policy}","sources":[
                {{"table":"{PROFILES}","as":"who","partition_by":"user","include":["level","w"]}},
                {{"table":"{ORDERS}","as":"first","where":"doc.state != 'test'","partition_by":"user",
                "include":["placed","w"]}}]}}"#
        );
        [(BY_USER, by_user), (STATS, stats), (PAGES, pages)]
    }
}

/// The key of a user's totals.
pub fn user_key(user: &str) -> Bytes {
    format!("{{{user}}}").into()
}

/// The table of a key of [`ViewPlan::keys`].
pub fn table_of(key: &Bytes) -> &'static str {
    if key.starts_with(b"p") { PROFILES } else { ORDERS }
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was answered: when, and with which version.
    Acked(u64, Timestamp),
    /// It failed, without effect.
    Failed(Reason),
    /// Nobody knows.
    Unknown,
}

/// A write of an order or a profile.
#[derive(Clone, Debug)]
pub struct Writing {
    /// When it was sent.
    pub from: u64,
    /// Its key.
    pub key: Bytes,
    /// What was written; none: it was deleted. Documents contain their place in the list, so no two are the same.
    pub document: Option<Bytes>,
    /// What became of it.
    pub fate: Fate,
}

/// What was read of a view.
#[derive(Clone, Debug)]
pub enum Seen {
    /// The orders of a user: keys and values.
    Rows(Vec<(Bytes, Bytes)>),
    /// The totals of a user.
    Totals(Option<Bytes>),
    /// The page of a user.
    Page(Option<Bytes>),
}

/// A read of what a view has of one user.
#[derive(Clone, Debug)]
pub struct Looking {
    /// When it was sent.
    pub from: u64,
    /// When it was answered.
    pub at: u64,
    /// The user.
    pub user: String,
    /// How fresh it was to be.
    pub level: ReadLevel,
    /// The versions that its token covers, by key.
    pub least: BTreeMap<Bytes, Timestamp>,
    /// How old it said to be at most, in microseconds.
    pub age: Option<u64>,
    /// What was found.
    pub seen: Seen,
}

/// All that clerks did.
#[derive(Default)]
pub struct Book {
    /// Their writes.
    pub writes: Vec<Writing>,
    /// Their reads that were answered.
    pub looks: Vec<Looking>,
}

/// The book that clerks share.
pub type Shared = Arc<Mutex<Book>>;

/// All versions of all orders and profiles.
pub type Versions = BTreeMap<Bytes, BTreeMap<Timestamp, Option<Bytes>>>;
