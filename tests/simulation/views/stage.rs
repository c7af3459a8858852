//! Views from their creation to their end: who works with them, and what must hold when all is quiet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use trivet::client::{Client, Connection};
use trivet::runtime::simulation::Scope;
use trivet::runtime::{Task, sleep, timeout};
use trivet::types::{Kind, Reason, ScanBounds, TableId};
use trivet::wire::admin::{NewTable, NewView};

use super::clerk::Clerk;
use super::{BY_USER, Book, ORDERS, PAGES, PROFILES, STATS, Shared, Versions, ViewPlan, judge, naive, table_of};
use crate::cluster::Cluster;
use crate::entropy::Random;
use crate::invariants;
use crate::run::{Clients, Report, standing};

/// Between two attempts to create something.
const AGAIN: Duration = Duration::from_millis(200);
/// As many as all shards of a run have.
const VOTERS: u32 = 3;
/// Creations refused for want of nodes until those that drain are asked to serve again.
const REFUSALS_MAX: u64 = 30;
/// How long whoever works may take to come to an end.
const ENDED_WITHIN: Duration = Duration::from_secs(30);
/// How long views may take until they hold what their sources say, in all replicas.
const SETTLED_WITHIN: Duration = Duration::from_secs(40);
/// Versions read of one key; no run makes as many.
const VERSIONS_MAX: usize = 4_096;

/// Those who work with views.
pub struct Staff {
    created: Option<Task<Result<(), String>>>,
    clerks: Vec<Task<()>>,
    book: Shared,
}

impl Staff {
    /// They begin.
    pub fn begin(
        seed: u64,
        (plan, think): (&ViewPlan, Duration),
        clients: &Clients,
        doors: impl Fn() -> Vec<Connection>,
        stop: &Arc<AtomicBool>,
        report: &Report,
    ) -> Staff {
        let book = Shared::default();
        let created = plan.created_after.map(|after| {
            let (scope, client) = &clients[0];
            let (client, plan, report) = (client.clone(), plan.clone(), report.clone());
            scope.spawn(async move {
                sleep(after).await;
                create_views(client, plan, report).await
            })
        });
        let clerks = clients.iter().rev().zip(1..=plan.clerks).map(|((scope, client), id)| {
            let clerk = Clerk {
                client: client.clone(),
                doors: doors(),
                plan: plan.clone(),
                think,
                book: book.clone(),
                report: report.clone(),
                random: Random::new(seed, 300 + id),
                stop: stop.clone(),
                own: Vec::new(),
                concerned: Vec::new(),
            };
            scope.spawn(clerk.run())
        });
        Staff { created, clerks: clerks.collect(), book }
    }

    /// They were told to stop; what they have done.
    pub async fn finish(self) -> Result<Book, String> {
        for clerk in self.clerks {
            let ended = timeout(ENDED_WITHIN, clerk).await.ok_or("a call of a clerk outlives its deadline")?;
            ended.map_err(|error| error.to_string())?;
        }
        if let Some(created) = self.created {
            let created = timeout(ENDED_WITHIN, created).await.ok_or("the views cannot be created")?;
            created.map_err(|error| error.to_string())??;
        }
        let book = std::mem::take(&mut *self.book.lock());
        Ok(book)
    }
}

/// Creates the tables that views are of.
pub async fn create_sources(client: &Client, plan: &ViewPlan) -> Result<(), String> {
    for (name, shards) in [(ORDERS, plan.shards.0), (PROFILES, 1)] {
        while let Err(error) = client.admin().create_table(NewTable::hash(name, shards)).await {
            match error.kind() {
                _ if error.reason == Reason::TableExists => break,
                Kind::Corrupt => return Err(format!("{name} cannot be created: {error}")),
                _ => sleep(AGAIN).await,
            }
        }
    }
    Ok(())
}

/// Creates the views, whatever is going on.
pub async fn create_views(client: Client, plan: ViewPlan, report: Report) -> Result<(), String> {
    let mut refusals = 0;
    for (name, definition) in plan.definitions() {
        // Whoever cannot know whether it was created asks again, and is told if it was. With fewer voters than all shards
        // have it would not outlive a lost disk.
        while let Err(error) =
            client.admin().create_view(NewView { replication: Some(VOTERS), ..NewView::of(&definition) }).await
        {
            match error.reason {
                Reason::TableExists => break,
                Reason::InvalidRequest => return Err(format!("{name} cannot be created: {error}")),
                Reason::NotEnoughNodes if refusals >= REFUSALS_MAX => serve_again(&client).await,
                Reason::NotEnoughNodes => refusals += 1,
                _ => {}
            }
            sleep(AGAIN).await;
        }
        report.event(format_args!("{name} is created"));
        report.count(if plan.created_after.is_some() { "views created beside writes" } else { "views created" });
    }
    Ok(())
}

/// Has all nodes serve: the wish that one which drained is to do so may have been lost with the node that was asked.
async fn serve_again(client: &Client) {
    let Ok(status) = client.admin().status().await else { return };
    for node in status.nodes {
        let _ = client.admin().set_standing(node.id, "serving", false).await;
    }
}

/// The history of every order and profile.
async fn all_versions(client: &Client, plan: &ViewPlan) -> Result<Versions, String> {
    let mut versions = Versions::new();
    for key in plan.keys() {
        let page = client.table(table_of(&key)).history(key.clone(), None, VERSIONS_MAX).await;
        let page = page.map_err(|error| format!("no history of {key:?}: {error}"))?;
        let found = page.body.rows.into_iter().map(|row| (row.timestamp, row.value));
        versions.insert(key, found.collect());
    }
    Ok(versions)
}

/// The documents that there are.
fn now(versions: &Versions) -> BTreeMap<&Bytes, &Bytes> {
    (versions.iter()).filter_map(|(key, versions)| Some((key, versions.last_key_value()?.1.as_ref()?))).collect()
}

/// The same once views that stop at what does not fit have nothing left to stop at: that is deleted.
async fn versions_in_the_end(client: &Client, plan: &ViewPlan, report: &Report) -> Result<Versions, String> {
    loop {
        let versions = all_versions(client, plan).await?;
        let unfit = now(&versions).into_iter().filter(|(_, document)| naive::is_unfit(document));
        let unfit: Vec<Bytes> = unfit.map(|(key, _)| key.clone()).collect();
        if !plan.stops || unfit.is_empty() {
            return Ok(versions);
        }
        for key in unfit {
            let deleted = client.table(table_of(&key)).delete(key.clone()).await;
            deleted.map_err(|error| format!("{key:?}, which fits no view, cannot be deleted: {error}"))?;
            report.count("documents deleted at which views had stopped");
        }
    }
}

/// What a view must hold in the end.
struct Wanted {
    rows: naive::Rows,
    /// Documents that it is without because they do not fit.
    unfit: usize,
}

fn wanted(versions: &Versions) -> BTreeMap<&'static str, Wanted> {
    let now = now(versions);
    let unfit = |tables: &[&str]| {
        let of_them = now.iter().filter(|(key, document)| tables.contains(&table_of(key)) && naive::is_unfit(document));
        of_them.count()
    };
    let wanted = |rows, tables| Wanted { rows, unfit: unfit(tables) };
    [
        (BY_USER, wanted(naive::by_user(&now), &[ORDERS])),
        (STATS, wanted(naive::stats(&now), &[ORDERS])),
        (PAGES, wanted(naive::pages(&now), &[ORDERS, PROFILES])),
    ]
    .into()
}

/// What is not yet as it must be in some replica of a view; none when all is well.
fn unsettled(cluster: &Cluster, wanted: &BTreeMap<&str, Wanted>, report: &Report) -> Option<String> {
    let mut compared = 0;
    for member in &cluster.members {
        let Some(node) = member.node() else { continue };
        let directory = node.directory();
        for (name, Wanted { rows, .. }) in wanted {
            let Some(entry) = directory.table_by_name(name) else {
                return Some(format!("node {} does not know {name}", member.id));
            };
            if !entry.descriptor.view.as_ref().is_some_and(|view| view.ready) {
                return Some(format!("{name} is not ready"));
            }
            let table: TableId = entry.descriptor.id;
            let replicas = node.replicas().all().into_iter();
            for shard in replicas.filter(|shard| shard.state().table == table) {
                let state = shard.state();
                if state.sealed_for.is_some() {
                    return Some(format!("{} of {name} is being taken over", shard.id()));
                }
                let wanted = rows.iter().filter(|(key, _)| state.owns(&entry.layout.encode(key)));
                let wanted: naive::Rows = wanted.map(|(key, value)| (key.clone(), value.clone())).collect();
                let stored = invariants::rows(&**member.engine(), &entry.layout, &state.start, &state.end);
                if stored != wanted {
                    let told = naive::difference(&stored, &wanted);
                    return Some(format!("node {}, {} of {name}: {told}", member.id, shard.id()));
                }
                compared += wanted.len();
            }
        }
    }
    (0..compared).for_each(|_| report.count("rows of views compared"));
    None
}

/// What anybody reads in the end, and what the product's own comparison says.
async fn agree(
    client: &Client,
    plan: &ViewPlan,
    wanted: &BTreeMap<&str, Wanted>,
    report: &Report,
) -> Result<(), String> {
    for (name, Wanted { rows, unfit }) in wanted {
        let mut seen = naive::Rows::new();
        for user in naive::users(plan) {
            let scan = client.table(*name).scan(ScanBounds::Tag(user.into()));
            let found =
                scan.collect().await.map_err(|error| format!("a healed view {name} refuses a read: {error}"))?;
            seen.extend(found.into_iter().map(|row| (row.key, row.value.unwrap_or_default())));
        }
        let shown = rows.iter().filter(|(key, _)| !naive::hidden(key));
        let shown: naive::Rows = shown.map(|(key, value)| (key.clone(), value.clone())).collect();
        if seen != shown {
            return Err(format!("{name} is read as: {}", naive::difference(&seen, &shown)));
        }
        let check = client.admin().verify_view(name, None, false).await;
        let check = check.map_err(|error| format!("{name} cannot be compared: {error}"))?;
        if check.missing + check.invented + check.other > 0 || check.rows != rows.len() as u64 {
            return Err(format!("{name} has {} rows and is compared as {check:?}", rows.len()));
        }
        let samples: BTreeSet<&Bytes> = check.unfit_samples.iter().map(|document| &document.key).collect();
        if check.unfit != *unfit as u64 || samples.len() != *unfit {
            return Err(format!("{unfit} documents do not fit {name}, and it is compared as {check:?}"));
        }
        (0..*unfit).for_each(|_| report.count("documents that fit no view, counted"));
    }
    Ok(())
}

/// All replicas of the views come to hold what the orders say, everybody reads it, and what was read before is judged.
pub async fn settle(
    plan: &ViewPlan,
    cluster: &mut Cluster,
    mut pass: impl AsyncFnMut(&mut Cluster),
    (scope, client): &(Scope, Client),
    book: &Book,
    report: &Report,
) -> Result<(), String> {
    let (asking, asked, told) = (client.clone(), plan.clone(), report.clone());
    let versions = scope.spawn(async move { versions_in_the_end(&asking, &asked, &told).await });
    let versions = versions.await.map_err(|error| error.to_string())??;
    let wanted = wanted(&versions);
    let until = report.micros() + u64::try_from(SETTLED_WITHIN.as_micros()).expect("small");
    while let Some(unsettled) = unsettled(cluster, &wanted, report) {
        if report.micros() >= until {
            return Err(format!("{SETTLED_WITHIN:?} after the last write {unsettled}{}", standing(cluster, |_| true)));
        }
        pass(cluster).await;
        if !report.goes_on() {
            return Ok(());
        }
    }
    let (asking, asked, told) = (client.clone(), plan.clone(), report.clone());
    let agreed = scope.spawn(async move { agree(&asking, &asked, &wanted, &told).await });
    agreed.await.map_err(|error| error.to_string())??;
    report.event(format_args!("judging {} reads of views by {} orders", book.looks.len(), book.writes.len()));
    judge::judge(book, &versions, report)
}
