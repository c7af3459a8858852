//! What views are asked.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};
use trivet::types::{Header, ReadLevel, Row, ScanBounds, ScanRequest, Token};

use super::super::access::Access;
use super::super::worker::{Worker, lose, provenance, with};
use super::{ORDERS_OF_TAG, Session, Shared, TAGS, USERS, order};
use crate::check::views::encoded;
use crate::history::{Extra, Process};

/// Rows of one page: more than any list has.
const ROWS_MAX: usize = 1_000;
/// Most pages of a table.
const PAGES_MAX: usize = 1_000;
/// Greatest ages asked for, in milliseconds.
const MAX_AGE_MS: std::ops::Range<u64> = 0..1_500;

/// Reads something of some view at some level; often what the session has just written.
pub(super) async fn some(worker: &mut Worker, session: &Session, shared: &Shared) {
    let level = level(&mut worker.random, session);
    let (mut user, mut of) = (USERS.choose(&mut worker.random).copied().unwrap_or_default(), session.order.clone());
    let own = matches!(level, ReadLevel::AtLeast(_)) && worker.random.random_range(0..10) < 8;
    if own {
        user = session.users.choose(&mut worker.random).copied().unwrap_or(user);
    } else {
        let tag = worker.random.random_range(0..TAGS);
        of = order(tag, shared.slot(tag, worker.random.random_range(0..ORDERS_OF_TAG)).number);
    }
    let asked = asked(session, level);
    match worker.random.random_range(0..10) {
        0..6 => {
            let access = shared.any_way(&shared.by_user, worker);
            let pending = worker.process.invoke_with("list", user, Value::Null, asked);
            let bounds = ScanBounds::Tag(encoded(user).into());
            match access.page(ScanRequest { bounds, level, rows_max: ROWS_MAX, ..ScanRequest::default() }).await {
                Ok(page) => pending.ok_with(page.body.rows.iter().map(told).collect(), from(&page.header)),
                Err(lost) => lose(pending, &lost),
            }
        }
        choice => {
            let (f, key, doors) =
                if choice < 8 { ("sum", user, &shared.sums) } else { ("merged", of.as_str(), &shared.merged) };
            let access = shared.any_way(doors, worker);
            let pending = worker.process.invoke_with(f, key, Value::Null, asked);
            match access.read(format!("{{{}}}", encoded(key)), level).await {
                Ok(answer) => {
                    let value = answer.body.as_ref().map(|found| document(&found.value));
                    pending.ok_with(value.unwrap_or_default(), from(&answer.header));
                }
                Err(lost) => lose(pending, &lost),
            }
        }
    }
}

fn level(random: &mut StdRng, session: &Session) -> ReadLevel {
    match random.random_range(0..20) {
        0..3 => ReadLevel::Any,
        3..8 => ReadLevel::MaxAge(Duration::from_millis(random.random_range(MAX_AGE_MS))),
        8..15 => ReadLevel::AtLeast(Token { timestamp: session.token }),
        _ => ReadLevel::Linearizable,
    }
}

fn asked(session: &Session, level: ReadLevel) -> Extra {
    let asked = with(Extra::new(), "session", session.number);
    match level {
        ReadLevel::MaxAge(age) => with(with(asked, "level", "max_age"), "max_age_ms", age.as_millis() as u64),
        ReadLevel::AtLeast(token) => with(with(asked, "level", "at_least"), "token", token.timestamp.0),
        ReadLevel::Any => with(asked, "level", "any"),
        _ => with(asked, "level", "linearizable"),
    }
}

fn from(header: &Header) -> Extra {
    let extra = with(provenance(header), "shard", header.shard.0);
    match header.age {
        Some(age) => with(extra, "age_us", u64::try_from(age.as_micros()).unwrap_or(u64::MAX)),
        None => extra,
    }
}

/// A document as it stands there; what is none shows as a text.
fn document(value: &[u8]) -> Value {
    serde_json::from_slice(value).unwrap_or_else(|_| json!(String::from_utf8_lossy(value)))
}

fn told(row: &Row) -> Value {
    json!([String::from_utf8_lossy(&row.key), row.value.as_deref().map(document)])
}

/// Reads a whole table, linearizably; true if it came to its end.
pub(super) async fn whole(process: &mut Process, access: &Access, f: &'static str, table: &str, extra: Extra) -> bool {
    let pending = process.invoke_with(f, table, Value::Null, extra);
    let (mut rows, mut cursor) = (Vec::new(), None);
    for _ in 0..PAGES_MAX {
        let page = match access.page(ScanRequest { cursor, rows_max: ROWS_MAX, ..ScanRequest::default() }).await {
            Ok(page) => page,
            Err(lost) => {
                lose(pending, &lost);
                return false;
            }
        };
        rows.extend(page.body.rows.iter().map(told));
        cursor = page.body.cursor;
        if cursor.is_none() {
            pending.ok(rows.into());
            return true;
        }
    }
    pending.fail("the scan does not end");
    false
}

/// Lists the versions of a row of a source.
pub(super) async fn versions(process: &mut Process, access: &Access, key: &str, rows_max: usize) -> bool {
    let pending = process.invoke("versions", key, Value::Null);
    match access.history(key.to_owned(), rows_max).await {
        Ok(page) => {
            let serial = |row: &Row| {
                let document = document(row.value.as_deref()?);
                document.get("amount").or_else(|| document.get("text")).cloned()
            };
            let rows = page.body.rows.iter().map(|row| json!([row.timestamp.0, serial(row)]));
            pending.ok_with(rows.collect(), provenance(&page.header));
            true
        }
        Err(lost) => {
            lose(pending, &lost);
            false
        }
    }
}
