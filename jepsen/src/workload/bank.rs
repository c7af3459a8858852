//! A bank in a tag: transfers move money, the total stays.
//!
//! A transfer reads two accounts and writes both in one batch, under the condition that neither has changed. Scans in one
//! page, at the leader, at any replica and as of a version, must all show the whole total and no account in debt.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use rand::RngExt;
use serde_json::{Map, Value, json};
use trivet::types::{
    Action, Condition, Operation, ReadLevel, ScanBounds, ScanRequest, Test, Timestamp, Versioned, Write,
};
use trivet::wire::admin::NewTable;

use super::access::{Access, Doors};
use super::worker::{Worker, drive, lose, made, provenance, until_read, with};
use super::{Context, Floors, Workload};
use crate::check::{Verdict, bank, refusals};
use crate::history::{Extra, History, Process};

const TABLE: &str = "bank";
const BANKS: usize = 2;
const ACCOUNTS: usize = 5;
/// What each account begins with.
const OPENING: i64 = 20;
const CLIENTS: usize = 8;
/// Pause between tries to open a bank.
const OPEN_PAUSE: Duration = Duration::from_millis(200);
/// Versions remembered for reads of the past: some seconds, within the history window.
const VERSIONS_MAX: usize = 64;

/// The workload.
pub struct Bank;

impl Workload for Bank {
    fn name(&self) -> &'static str {
        "bank"
    }

    fn promise(&self) -> &'static str {
        "every scan of a tag, now or as of a version, at any replica, shows the same total and no account in debt"
    }

    fn tables(&self) -> Vec<NewTable> {
        vec![NewTable { history_ms: 10_000, ..NewTable::hash(TABLE, 2) }]
    }

    fn run(&self, context: Context) -> BoxFuture<'_, anyhow::Result<()>> {
        async move {
            let doors = Doors::open(&context, TABLE).await?;
            for number in 0..BANKS {
                let mut process = context.history.process();
                let bank = format!("b{number}");
                while !open(&mut process, &doors.routing(), &bank).await {
                    if *context.stop.borrow() {
                        return Ok(());
                    }
                    tokio::time::sleep(OPEN_PAUSE).await;
                }
            }
            let versions: Vec<Mutex<Vec<Timestamp>>> = (0..BANKS).map(|_| Mutex::default()).collect();
            drive(&context, &doors, CLIENTS, |mut worker| {
                let versions = &versions;
                async move {
                    while worker.pace.turn().await {
                        let number = worker.random.random_range(0..BANKS);
                        let bank = format!("b{number}");
                        match worker.random.random_range(0..100) {
                            0..55 => {
                                if let Some(version) = transfer(&mut worker, &bank).await {
                                    let mut versions = versions[number].lock().unwrap_or_else(PoisonError::into_inner);
                                    if versions.len() == VERSIONS_MAX {
                                        versions.remove(0);
                                    }
                                    versions.push(version);
                                }
                            }
                            55..75 => {
                                scan(&mut worker.process, &worker.access, "read", &bank, ReadLevel::Linearizable).await;
                            }
                            75..85 => {
                                scan(&mut worker.process, &worker.access, "any", &bank, ReadLevel::Any).await;
                            }
                            _ => {
                                let known = versions[number].lock().unwrap_or_else(PoisonError::into_inner).clone();
                                if known.is_empty() {
                                    continue;
                                }
                                let version = known[worker.random.random_range(0..known.len())];
                                let before = worker.random.random_range(0..2) == 0;
                                let at = if before { version.previous() } else { version };
                                let level = ReadLevel::AsOf(at);
                                scan(&mut worker.process, &worker.access, "as-of", &bank, level).await;
                            }
                        }
                    }
                    Ok(())
                }
            })
            .await
        }
        .boxed()
    }

    fn finish(&self, context: Context) -> BoxFuture<'_, anyhow::Result<()>> {
        async move {
            let doors = Doors::open(&context, TABLE).await?;
            for node in 0..doors.nodes() {
                let access = doors.bound(node);
                let process = tokio::sync::Mutex::new(context.history.process());
                for number in 0..BANKS {
                    let bank = format!("b{number}");
                    until_read("a bank", || async {
                        scan(&mut *process.lock().await, &access, "read", &bank, ReadLevel::Linearizable).await
                    })
                    .await?;
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn check(&self, history: &History) -> Verdict {
        Verdict::all(vec![bank::check(history), refusals::check(history, &["HISTORY_TRIMMED"])])
    }

    fn floors(&self, short: bool) -> Floors {
        let times = if short { 1 } else { 3 };
        let ok = vec![("transfer", 300), ("read", 150), ("any", 80), ("as-of", 80)];
        Floors { ok: ok.into_iter().map(|(f, least)| (f, least * times)).collect(), info_share_max: 0.2 }
    }
}

fn account(bank: &str, number: usize) -> Bytes {
    format!("{{{bank}}}a{number}").into()
}

fn put(balance: i64) -> Action {
    Action::Put { value: balance.to_string().into(), ttl_ms: None }
}

/// Opens a bank, all accounts at once; true once it is known to be open.
async fn open(process: &mut Process, access: &Access, bank: &str) -> bool {
    let keys = || (0..ACCOUNTS).map(|number| account(bank, number));
    let conditions = keys().map(|key| Condition { key, test: Test::Absent }).collect();
    let operations = keys().map(|key| Operation { key, action: put(OPENING) }).collect();
    let total = json!({"accounts": ACCOUNTS, "total": OPENING * ACCOUNTS as i64});
    let pending = process.invoke("open", bank, total.clone());
    match access.write(Write { request: None, conditions, operations }).await {
        Ok(answer) => {
            // If it is refused, an earlier try of unknown outcome had opened it.
            pending.ok_with(total, if answer.body.applied { made(&answer) } else { Extra::new() });
            true
        }
        Err(lost) => {
            lose(pending, &lost);
            false
        }
    }
}

/// A balance; what is none shows as a debt, which no bank has.
fn balance(value: &[u8]) -> i64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(i64::MIN / 16)
}

async fn transfer(worker: &mut Worker, bank: &str) -> Option<Timestamp> {
    let from = worker.random.random_range(0..ACCOUNTS);
    let to = (from + worker.random.random_range(1..ACCOUNTS)) % ACCOUNTS;
    let amount = worker.random.random_range(1..=OPENING / 2);
    let asked = json!({"from": from, "to": to, "amount": amount});
    let pending = worker.process.invoke("transfer", bank, asked.clone());
    let keys = vec![account(bank, from), account(bank, to)];
    let seen: Vec<Option<Versioned>> = match worker.access.read_all(keys.clone(), ReadLevel::Linearizable).await {
        Ok(answers) => answers.into_iter().map(|answer| answer.body).collect(),
        Err(lost) => {
            lose(pending, &lost);
            return None;
        }
    };
    let [Some(source), Some(target)] = seen.as_slice() else {
        pending.fail("an account is missing");
        return None;
    };
    if balance(&source.value) < amount {
        pending.fail("insufficient");
        return None;
    }
    let conditions = keys
        .iter()
        .zip([source, target])
        .map(|(key, seen)| Condition { key: key.clone(), test: Test::Version(seen.timestamp) })
        .collect();
    let operations = vec![
        Operation { key: keys[0].clone(), action: put(balance(&source.value) - amount) },
        Operation { key: keys[1].clone(), action: put(balance(&target.value) + amount) },
    ];
    match worker.access.write(Write { request: None, conditions, operations }).await {
        Ok(answer) if answer.body.applied => {
            pending.ok_with(asked, made(&answer));
            Some(answer.body.timestamp)
        }
        Ok(answer) => {
            pending.fail_with("conflict", provenance(&answer.header));
            None
        }
        Err(lost) => {
            lose(pending, &lost);
            None
        }
    }
}

async fn scan(process: &mut Process, access: &Access, f: &'static str, bank: &str, level: ReadLevel) -> bool {
    let asked = if let ReadLevel::AsOf(at) = level { with(Extra::new(), "at", at.0) } else { Extra::new() };
    let pending = process.invoke_with(f, bank, Value::Null, asked);
    let bounds = ScanBounds::Tag(bank.to_owned().into());
    let request = ScanRequest { bounds, rows_max: ACCOUNTS * 2, level, ..ScanRequest::default() };
    match access.page(request).await {
        // Several pages are several moments.
        Ok(page) if page.body.cursor.is_some() => {
            pending.fail("several pages");
            false
        }
        Ok(page) => {
            let mut balances = Map::new();
            let mut versions = Map::new();
            for row in &page.body.rows {
                let key = String::from_utf8_lossy(&row.key);
                let name = key.rsplit('}').next().unwrap_or_default();
                balances.insert(name.to_owned(), json!(row.value.as_ref().map(|value| balance(value))));
                versions.insert(name.to_owned(), json!(row.timestamp.0));
            }
            pending.ok_with(Value::Object(balances), with(provenance(&page.header), "versions", versions));
            true
        }
        Err(lost) => {
            lose(pending, &lost);
            false
        }
    }
}
