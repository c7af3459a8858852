//! One run of one seed: found a cluster, harm it while clients work, put everything right, and judge.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use trivet::client::{Client, Connection, Options};
use trivet::runtime::simulation::{self, Scope, Settings};
use trivet::runtime::{Clock, Instant, sleep, timeout};
use trivet::types::{Kind, Reason, ShardId, Timestamp};
use trivet::wire::admin::NewTable;

use super::cluster::Cluster;
use super::entropy::{self, Random};
use super::follow::Follower;
use super::invariants::{self, Watch};
use super::nemesis::Nemesis;
use super::network::Network;
use super::oracle::{self, Clocks, Found, Versions};
use super::plan::Plan;
use super::views::{self, stage::Staff};
use super::workload::{self, History, TABLE, Worker};

/// What the clocks say at the beginning: some day in 2026.
const BEGAN_MS: u64 = 1_790_000_000_000;
/// How long an empty cluster may take until it serves.
const FORMED_WITHIN: Duration = Duration::from_secs(60);
/// How long a healed cluster may take until every node is ready and every shard serves.
const RECOVERED_WITHIN: Duration = Duration::from_secs(40);
/// How long its replicas may take until they are equal.
const CONVERGED_WITHIN: Duration = Duration::from_secs(40);
/// Calls that a healed cluster must answer at the first try of a client, per client.
const FINAL_CALLS: u64 = 10;
/// Those who follow what changes.
const FOLLOWERS: u64 = 2;
/// How long they may take until they know that they were told everything.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(40);
/// Versions read of one key; no run makes as many.
const VERSIONS_MAX: usize = 4_096;
/// Lines of the trace shown with a violation.
const TRACE_TAIL: usize = 60;

/// What happened so far. Clones are the same one.
#[derive(Clone)]
pub struct Report {
    state: Arc<Mutex<State>>,
    began: Instant,
}

#[derive(Default)]
struct State {
    trace: String,
    counts: BTreeMap<String, u64>,
    violation: Option<String>,
}

impl Report {
    /// Since the beginning, in microseconds.
    pub fn micros(&self) -> u64 {
        u64::try_from((now() - self.began).as_micros()).expect("runs are short")
    }

    /// Notes something in the trace.
    pub fn event(&self, what: fmt::Arguments<'_>) {
        let micros = self.micros();
        let mut state = self.state.lock();
        let _ = writeln!(state.trace, "{:>10.6} {what}", micros as f64 / 1e6);
    }

    /// Counts something that a batch of runs must have seen.
    pub fn count(&self, what: &str) {
        let mut state = self.state.lock();
        match state.counts.get_mut(what) {
            Some(count) => *count += 1,
            None => drop(state.counts.insert(what.to_owned(), 1)),
        }
    }

    /// How often something was counted so far.
    pub fn counted(&self, what: &str) -> u64 {
        self.state.lock().counts.get(what).copied().unwrap_or(0)
    }

    /// Notes that something happened which must not; the first one counts.
    pub fn violation(&self, what: String) {
        self.event(format_args!("VIOLATION: {what}"));
        self.state.lock().violation.get_or_insert(what);
    }

    /// Whether nothing has gone wrong that must not.
    pub fn goes_on(&self) -> bool {
        self.state.lock().violation.is_none()
    }
}

/// What became of a run.
pub struct Verdict {
    /// What must not have happened.
    pub violation: Option<String>,
    /// The whole trace.
    pub trace: String,
    /// What was counted.
    pub counts: BTreeMap<String, u64>,
    /// What the seed decided.
    pub plan: Plan,
}

impl Verdict {
    /// The end of the trace.
    pub fn tail(&self) -> String {
        let lines: Vec<&str> = self.trace.lines().collect();
        lines[lines.len().saturating_sub(TRACE_TAIL)..].join("\n")
    }
}

#[allow(clippy::disallowed_methods, reason = "inside the simulation this is simulated time")]
fn now() -> Instant {
    Instant::now()
}

/// Runs a seed on a thread of its own. Only once in a process: see [`entropy`].
pub fn run(seed: u64) -> Verdict {
    entropy::seed(seed);
    let thread = std::thread::Builder::new().name("simulation".to_owned()).stack_size(16 << 20);
    let running = thread.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime can be built");
        let verdict = runtime.block_on(simulate(seed));
        // Nodes hold each other; the process ends soon.
        std::mem::forget(runtime);
        verdict
    });
    running.expect("a thread can be started").join().expect("the harness does not panic")
}

async fn simulate(seed: u64) -> Verdict {
    let plan = Plan::draw(&mut Random::new(seed, 1), &mut Random::new(seed, 5));
    let settings = Settings { seed, wall_ms: BEGAN_MS, put_off_per_mille: plan.put_off_per_mille };
    let _entered = simulation::enter(settings);
    let report = Report { state: Arc::default(), began: now() };
    report_panics(&report);
    report.event(format_args!("seed {seed}: {plan:?}"));
    let shown = plan.clone();
    if let Err(violation) = phases(seed, plan, &report).await {
        report.violation(violation);
    }
    let mut state = report.state.lock();
    let State { trace, counts, violation } = std::mem::take(&mut *state);
    Verdict { violation, trace, counts, plan: shown }
}

/// A panic anywhere is a violation, also where a task's end would swallow it.
fn report_panics(report: &Report) {
    let report = report.clone();
    std::panic::set_hook(Box::new(move |panic| {
        if simulation::active() && std::env::var_os("TRIVET_BACKTRACE").is_some() {
            eprintln!("{}", std::backtrace::Backtrace::force_capture());
        }
        report.state.lock().violation.get_or_insert(format!("a panic: {panic}"));
    }));
}

async fn phases(seed: u64, plan: Plan, report: &Report) -> Result<(), String> {
    let network = Network::new(Random::new(seed, 2), plan.weather);
    let mut cluster = Cluster::start(&plan, network, report.clone(), Random::new(seed, 3));
    let mut watch = Watch::new(report.clone());
    let mut nemesis = Nemesis::new(&plan, Random::new(seed, 4), report.clone(), &cluster);

    let clients = form(&plan, &mut cluster, &mut watch, &mut nemesis, report).await?;
    let history = workload::Shared::default();
    let stop = Arc::new(AtomicBool::new(false));
    // What is told to stop may still have a call under way, whose write those who follow must wait for.
    let quiet = Arc::new(AtomicBool::new(false));
    let workers = (1..=plan.clients).map(|id| {
        let worker = Worker {
            id,
            client: clients[usize::try_from(id - 1).expect("small")].1.clone(),
            other: clients[usize::try_from(id % plan.clients).expect("small")].1.clone(),
            doors: cluster.addresses().into_iter().map(|node| Connection::new(node, Clock::system())).collect(),
            plan: plan.clone(),
            history: history.clone(),
            report: report.clone(),
            random: Random::new(seed, 100 + id),
            stop: stop.clone(),
            seen: BTreeMap::new(),
            versions: BTreeMap::new(),
            known: BTreeMap::new(),
            sequence: 0,
        };
        clients[usize::try_from(id - 1).expect("small")].0.spawn(worker.run())
    });
    let workers: Vec<_> = workers.collect();
    let followers = clients.iter().zip(1..=FOLLOWERS).map(|((scope, client), id)| {
        let follower = Follower {
            client: client.clone(),
            doors: cluster.addresses().into_iter().map(|node| Connection::new(node, Clock::system())).collect(),
            history: history.clone(),
            report: report.clone(),
            random: Random::new(seed, 200 + id),
            quiet: quiet.clone(),
            cursor: None,
        };
        scope.spawn(follower.run())
    });
    let followers: Vec<_> = followers.collect();
    let staff = plan.views.as_ref().map(|views| {
        let doors = || cluster.addresses().into_iter().map(|node| Connection::new(node, Clock::system())).collect();
        Staff::begin(seed, (views, plan.think), &clients, doors, &stop, report)
    });

    nemesis.storm(&mut cluster, &mut watch).await;
    nemesis.heal(&mut cluster);
    if !report.goes_on() {
        return Ok(());
    }
    recover(&mut cluster, &mut watch, &mut nemesis, report).await?;
    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        timeout(Duration::from_secs(30), worker)
            .await
            .ok_or("a call outlives its deadline")?
            .map_err(|error| error.to_string())?;
    }
    quiet.store(true, Ordering::Relaxed);
    for follower in followers {
        timeout(FOLLOWED_WITHIN, follower)
            .await
            .ok_or("those who follow do not come to the end")?
            .map_err(|error| error.to_string())?;
    }
    let book = match staff {
        Some(staff) => Some(staff.finish().await?),
        None => None,
    };
    serve(&clients, &history, report).await.map_err(|error| error + &standing(&cluster, |_| true))?;
    converge(&mut cluster, &mut watch, &mut nemesis, &clients, report).await?;

    if let (Some(views), Some(book)) = (&plan.views, book) {
        let passing = async |cluster: &mut Cluster| nemesis.pass(cluster, &mut watch, Duration::from_millis(100)).await;
        views::stage::settle(views, &mut cluster, passing, &clients[0], &book, report).await?;
        if !report.goes_on() {
            return Ok(());
        }
    }

    let versions = all_versions(&plan, &clients).await?;
    let clocks = Clocks { began_ms: BEGAN_MS, skews_ms: nemesis.skews_ms };
    let history = history.lock();
    note_size(&history, &versions, report);
    oracle::judge(&plan, &history, &versions, clocks)
}

fn note_size(history: &History, versions: &Versions, report: &Report) {
    let found: usize = versions.values().map(BTreeMap::len).sum();
    report.event(format_args!(
        "judging {} writes, {} reads, {} scans and {} walks by {found} versions",
        history.writes.len(),
        history.reads.len(),
        history.scans.len(),
        history.walks.len()
    ));
}

/// A client, and the scope it runs in.
pub type Clients = Vec<(Scope, Client)>;

/// Waits until the cluster serves, then makes the clients and the table.
async fn form(
    plan: &Plan,
    cluster: &mut Cluster,
    watch: &mut Watch,
    nemesis: &mut Nemesis,
    report: &Report,
) -> Result<Clients, String> {
    let mut clients = Vec::new();
    let addresses = cluster.addresses();
    let forming = Scope::current();
    let mut tasks = Vec::new();
    for id in 1..=plan.clients {
        let scope = Scope::start();
        cluster.network.place(scope, 100 + id);
        let addresses = addresses.clone();
        let options = Options { deadline: Duration::from_secs(5), ..Options::default() };
        let connecting = async move {
            loop {
                match Client::connect(&addresses, options.clone()).await {
                    Ok(client) => return client,
                    Err(_) => sleep(Duration::from_millis(200)).await,
                }
            }
        };
        tasks.push((scope, scope.spawn(connecting)));
    }
    let (nodes, shards, read_replicas) = (plan.nodes, plan.shards, plan.read_replicas);
    let views = plan.views.clone();
    let reporting = report.clone();
    let formed = forming.spawn(async move {
        for (scope, task) in tasks {
            let client = task.await.map_err(|error| error.to_string())?;
            clients.push((scope, client));
        }
        let client = clients[0].1.clone();
        loop {
            if client.admin().status().await.is_ok_and(|status| status.healthy && status.nodes.len() as u64 == nodes) {
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
        // Whoever cannot know whether it was created asks again, and is told if it was.
        let wish = NewTable { read_replicas, ..NewTable::hash(TABLE, shards) };
        while let Err(error) = client.admin().create_table(wish.clone()).await {
            match error.kind() {
                _ if error.reason == Reason::TableExists => break,
                _ if error.reason == Reason::NotEnoughNodes => sleep(Duration::from_millis(200)).await,
                Kind::Invalid | Kind::Corrupt => return Err(format!("the table cannot be created: {error}")),
                _ => sleep(Duration::from_millis(200)).await,
            }
        }
        if let Some(plan) = &views {
            views::stage::create_sources(&client, plan).await?;
            if plan.created_after.is_none() {
                views::stage::create_views(client.clone(), plan.clone(), reporting).await?;
            }
        }
        Ok(clients)
    });
    let until = now() + FORMED_WITHIN;
    while !formed.is_finished() {
        nemesis.pass(cluster, watch, Duration::from_millis(50)).await;
        if now() >= until || !report.goes_on() {
            return Err(format!("the cluster does not form within {FORMED_WITHIN:?}"));
        }
    }
    report.event(format_args!("the cluster stands"));
    formed.await.map_err(|error| error.to_string())?
}

/// After the heal: every node ready and every shard led, in time.
async fn recover(
    cluster: &mut Cluster,
    watch: &mut Watch,
    nemesis: &mut Nemesis,
    report: &Report,
) -> Result<(), String> {
    let until = now() + RECOVERED_WITHIN;
    loop {
        let nodes: Vec<_> = cluster.members.iter().map(|member| (member.id, member.node())).collect();
        let unready = nodes.iter().filter_map(|(id, node)| match node {
            Some(node) => node.is_ready().err().map(|error| format!("node {id}: {error}")),
            None => Some(format!("node {id} has not started")),
        });
        let mut problems: Vec<String> = unready.collect();
        let replicas: Vec<_> = nodes.iter().filter_map(|(_, node)| Some(node.as_ref()?.replicas().all())).collect();
        let shards: std::collections::BTreeSet<ShardId> = replicas.iter().flatten().map(|shard| shard.id()).collect();
        for shard in shards {
            let of_shard = replicas.iter().flatten().filter(|replica| replica.id() == shard);
            if !of_shard.clone().any(|replica| replica.group().status().is_leader()) {
                problems.push(format!("nobody leads {shard}"));
            }
            // A replica of a node that lost its disk is replaced, and learns of its group.
            if of_shard.count() < nodes.len().min(3) {
                problems.push(format!("{shard} lacks a replica"));
            }
        }
        if problems.is_empty() {
            report.event(format_args!("every node is ready"));
            return Ok(());
        }
        if now() >= until {
            return Err(format!("{RECOVERED_WITHIN:?} after everything was put right: {}", problems.join("; ")));
        }
        nemesis.pass(cluster, watch, Duration::from_millis(100)).await;
        if !report.goes_on() {
            return Ok(());
        }
    }
}

/// A healed cluster answers.
async fn serve(clients: &Clients, history: &workload::Shared, report: &Report) -> Result<(), String> {
    for (scope, client) in clients {
        let (client, report) = (client.clone(), report.clone());
        let number = history.lock().writes.len();
        let served = scope.spawn(async move {
            let table = client.table(TABLE);
            for call in 0..FINAL_CALLS {
                let key = format!("final{call}");
                let written = table.put(key.clone(), format!("{number}")).await;
                let written = written.map_err(|error| format!("a healed cluster refuses a write: {error}"))?;
                let read = table.get(key).await.map_err(|error| format!("a healed cluster refuses a read: {error}"))?;
                let read = read.body.map(|found| found.timestamp);
                if read != Some(written.body.timestamp) {
                    return Err(format!("wrote version {:?} and read {read:?}", written.body.timestamp));
                }
                report.count("final calls");
            }
            Ok(())
        });
        served.await.map_err(|error| error.to_string())??;
    }
    Ok(())
}

/// How the replicas of some shards stand, a line each.
pub fn standing(cluster: &Cluster, of: impl Fn(ShardId) -> bool) -> String {
    let mut text = String::new();
    for node in cluster.members.iter().filter_map(|member| member.node()) {
        for shard in node.replicas().all().into_iter().filter(|shard| of(shard.id())) {
            let (state, status, wanted) = (shard.state(), shard.group().status(), node.directory());
            let wanted = wanted.shard(shard.id()).map(|wanted| (wanted.epoch, wanted.merge, wanted.replicas.clone()));
            let (epoch, sealed_for) = (state.epoch, state.sealed_for);
            text += &format!(
                "\n{}, {}: {epoch}, sealed for {sealed_for:?}, {status:?}, wanted {wanted:?}",
                node.id(),
                shard.id()
            );
        }
    }
    text
}

/// All replicas of a shard become equal, by their content and by the product's own checksums.
async fn converge(
    cluster: &mut Cluster,
    watch: &mut Watch,
    nemesis: &mut Nemesis,
    clients: &Clients,
    report: &Report,
) -> Result<(), String> {
    let until = now() + CONVERGED_WITHIN;
    loop {
        let mut contents: BTreeMap<ShardId, Vec<(u64, u32)>> = BTreeMap::new();
        for member in &cluster.members {
            let Some(node) = member.node() else { continue };
            for shard in node.replicas().all() {
                let sum = invariants::content(&**member.engine(), shard.id())?;
                contents.entry(shard.id()).or_default().push((member.id, sum));
            }
        }
        let unequal: Vec<_> = contents.iter().filter(|(_, sums)| sums.iter().any(|sum| sum.1 != sums[0].1)).collect();
        if unequal.is_empty() {
            break;
        }
        if now() >= until {
            let said = standing(cluster, |shard| unequal.iter().any(|(id, _)| **id == shard));
            return Err(format!("{CONVERGED_WITHIN:?} after the last write replicas differ: {unequal:?}{said}"));
        }
        nemesis.pass(cluster, watch, Duration::from_millis(100)).await;
        if !report.goes_on() {
            return Ok(());
        }
    }
    let (scope, client) = &clients[0];
    let client = client.clone();
    let checked = scope.spawn(async move {
        let tables = client.admin().tables().await.map_err(|error| error.to_string())?;
        for shard in tables.into_iter().flat_map(|table| table.shards) {
            loop {
                let sums = client.admin().checksum(shard.id).await;
                let sums = sums.map_err(|error| format!("no checksum of {}: {error}", shard.id))?;
                // A replica on its way from node to node is neither here nor there for a while.
                let absent = sums.replicas.iter().any(|replica| replica.content.is_err());
                if absent && now() < until {
                    sleep(Duration::from_millis(200)).await;
                } else if sums.equal {
                    break;
                } else {
                    return Err(format!("checksums of {} differ: {:?}", shard.id, sums.replicas));
                }
            }
        }
        Ok(())
    });
    checked.await.map_err(|error| error.to_string())?
}

/// The history of every key.
async fn all_versions(plan: &Plan, clients: &Clients) -> Result<Versions, String> {
    let (scope, client) = &clients[0];
    let (client, keys) = (client.clone(), workload::all_keys(plan));
    let read = scope.spawn(async move {
        let table = client.table(TABLE);
        let mut versions: BTreeMap<Bytes, BTreeMap<Timestamp, Found>> = BTreeMap::new();
        for key in keys {
            let page = table.history(key.clone(), None, VERSIONS_MAX).await;
            let page = page.map_err(|error| format!("no history of {key:?}: {error}"))?;
            let rows = page.body.rows.into_iter();
            let found = rows.map(|row| (row.timestamp, Found { value: row.value, expires_ms: row.expires_ms }));
            versions.insert(key, found.collect());
        }
        Ok(versions)
    });
    read.await.map_err(|error| error.to_string())?
}
