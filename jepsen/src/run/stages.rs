//! One run, from an empty cluster to a verdict.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use trivet::client::{Client, Options};
use trivet::wire::admin::NewView;

use super::invariants::{self, RECOVERED_WITHIN};
use super::pulse::{self, Pulse};
use super::table::Row;
use crate::check::Verdict;
use crate::cluster::{Cluster, Ground, HEALTHY_WITHIN, Wants};
use crate::history::{FaultSpan, History, Kind, Recorder, Stopwatch, write_faults};
use crate::nemesis::{Hindered, Misbehaved, Nemesis, Stage, Struck};
use crate::report::{self, Judged};
use crate::workload::{Context, Workload};

/// Faults begin when the workloads have run for this long.
const QUIET_START: Duration = Duration::from_secs(3);
/// From the beginning of one fault to that of the next, in seconds, if it has ended by then.
const BETWEEN: std::ops::Range<f64> = 5.0..10.0;
/// Least time without this nemesis between two of its faults.
const REST: Duration = Duration::from_secs(1);
/// The longest fault: a twelfth of the time, between these; less, the more of them keep each other busy.
const LONGEST: std::ops::Range<u64> = 4..30;
/// The workloads go on for this long after everything is healed.
const QUIET_END: Duration = Duration::from_secs(3);
/// Longest time for workloads to end when told to, and for their final reads.
const END_WITHIN: Duration = Duration::from_secs(60);
/// A fault counts if at least so many operations were under way during it or in the second after it.
const OVERLAP_MIN: usize = 20;
const AFTERMATH_NS: u64 = 1_000_000_000;
/// A run of up to this many seconds is held to the floors of short ones.
const SHORT_SECONDS: u64 = 120;

/// A run to be made.
#[derive(Clone)]
pub(super) struct Run {
    pub name: String,
    pub workloads: Vec<Arc<dyn Workload>>,
    pub nemeses: Vec<Arc<dyn Nemesis>>,
    pub wants: Wants,
    pub nodes: u64,
    pub seconds: u64,
    pub seed: u64,
    pub rate: f64,
    /// Where everything of it is left.
    pub directory: PathBuf,
    /// Whether it is left there even if nothing was found.
    pub keep: bool,
}

/// A strike, and whose it was.
type Strike = (&'static str, Struck);

/// What the nemeses did.
#[derive(Default)]
struct Strikes {
    made: Vec<Strike>,
    problems: Vec<String>,
}

/// Makes a run.
pub(super) async fn make(run: Run, ground: &Arc<Ground>) -> Result<Row> {
    std::fs::create_dir_all(&run.directory).with_context(|| format!("{}", run.directory.display()))?;
    let directory = run.directory.canonicalize()?;
    let clock = Stopwatch::start();
    let cluster = Cluster::found(ground.clone(), run.nodes, run.wants, &directory, clock).await?;
    let endpoints = cluster.endpoints();
    create_tables(&endpoints, &run.workloads).await?;
    let (stop, stopped) = watch::channel(false);
    let contexts = contexts(&run, &cluster, clock, &directory, &stopped)?;
    let pulse = Pulse::start(&endpoints, clock).await?;
    let working = begin(&run.workloads, &contexts);
    say(clock, &format!("{} nodes, {} workloads", endpoints.len(), run.workloads.len()));

    tokio::time::sleep(QUIET_START).await;
    let struck = strike(&run, &cluster, clock).await;
    let mut problems = struck.problems;

    cluster.mend().await?;
    let healed_ns = clock.now_ns();
    say(clock, "everything is healed");
    if !pulse.all_answer(healed_ns, HEALTHY_WITHIN).await {
        problems.push(format!("I3: after {HEALTHY_WITHIN:?} without faults not every shard takes writes"));
    }
    let healthy = match cluster.healthy(HEALTHY_WITHIN).await {
        Ok(_) => Some((clock.now_ns() - healed_ns) / 1_000_000),
        Err(error) => {
            problems.push(format!("I3: {error}"));
            None
        }
    };
    tokio::time::sleep(QUIET_END).await;
    stop.send_replace(true);
    problems.extend(end(working).await);
    let shown = pulse.end(healed_ns).await;
    say(clock, "final reads through every node");
    problems.extend(finish(&run.workloads, &contexts).await);
    problems.extend(invariants::checksums(&endpoints).await);
    problems.extend(invariants::exits(&cluster));
    cluster.close().await;
    problems.extend(invariants::logs(&cluster, &run.nemeses));

    let faults: Vec<FaultSpan> = struck.made.iter().map(span).collect();
    write_faults(&directory, &faults)?;
    let mut histories = Vec::new();
    for context in &contexts {
        context.history.flush()?;
        histories.push(History { faults: faults.clone(), ..context.history.history() });
    }
    say(clock, "checking the histories");
    let verdicts = judge(&run.workloads, &histories).await?;
    problems.extend(histories.iter().flat_map(invariants::deadlines));
    problems.extend(bounds(&shown));
    let short = run.seconds <= SHORT_SECONDS;
    let mut shortfalls = Vec::new();
    for (workload, (history, verdict)) in run.workloads.iter().zip(histories.iter().zip(&verdicts)) {
        problems.extend(objection(workload.name(), verdict));
        let lacks = workload.floors(short).shortfalls(history);
        problems.extend(lacks.iter().map(|what| format!("vacuous: {}: {what}", workload.name())));
        shortfalls.push(lacks);
    }
    let strikes = counted(&run.nemeses, &struck.made, &histories);
    problems.extend(too_few(&run, &strikes));
    // Worst first: what was found, then what was not shown.
    problems.sort_by_key(|problem| match problem {
        one if one.starts_with("VIOLATION") => 0,
        one if one.starts_with("vacuous") => 2,
        _ => 1,
    });

    let mut gaps: Vec<u64> = shown.gaps_ms.values().copied().collect();
    gaps.sort_unstable();
    let operations: BTreeMap<String, _> =
        histories.iter().map(|history| (history.name.clone(), verbs(history))).collect();
    let all: usize = histories.iter().map(|history| history.operations.len()).sum();
    let row = Row {
        name: run.name.clone(),
        seed: run.seed,
        seconds: run.seconds,
        nodes: run.nodes,
        operations,
        info_percent: 100.0 * unknown(&histories) as f64 / all.max(1) as f64,
        strikes,
        leader_changes: shown.leader_changes,
        gap_ms: (gaps.last().copied().unwrap_or(0), gaps.get(gaps.len() / 2).copied().unwrap_or(0)),
        recovered_ms: shown.recovered_ms,
        healthy_ms: healthy,
        problems,
    };
    let judged = |at: usize| Judged {
        promise: run.workloads[at].promise(),
        history: &histories[at],
        verdict: &verdicts[at],
        shortfalls: &shortfalls[at],
    };
    leave(&run, &directory, &row, &struck.made, (0..histories.len()).map(judged).collect())?;
    Ok(row)
}

/// Progress, for whoever waits.
fn say(clock: Stopwatch, what: &str) {
    eprintln!("  {:6.1} s  {what}", clock.now_ns() as f64 / 1e9);
}

async fn create_tables(endpoints: &[String], workloads: &[Arc<dyn Workload>]) -> Result<()> {
    let client = Client::connect(endpoints, Options::default()).await?;
    let tables = workloads.iter().flat_map(|workload| workload.tables());
    for table in tables.chain([pulse::table()]) {
        let name = table.name.clone();
        client.admin().create_table(table).await.with_context(|| format!("table {name}"))?;
    }
    for view in workloads.iter().flat_map(|workload| workload.views()) {
        client.admin().create_view(NewView::of(view)).await.with_context(|| format!("the view{view}"))?;
    }
    Ok(())
}

fn contexts(
    run: &Run,
    cluster: &Cluster,
    clock: Stopwatch,
    directory: &std::path::Path,
    stop: &watch::Receiver<bool>,
) -> Result<Vec<Context>> {
    let rate = run.rate / run.workloads.len().max(1) as f64;
    let context = |(number, workload): (usize, &Arc<dyn Workload>)| {
        Ok(Context {
            nodes: cluster.endpoints(),
            history: Recorder::to_file(directory, workload.name(), clock)?,
            seed: run.seed.wrapping_mul(31).wrapping_add(number as u64),
            stop: stop.clone(),
            clock,
            rate,
        })
    };
    run.workloads.iter().enumerate().map(context).collect()
}

/// A workload under way, by its name.
type Working = (&'static str, JoinHandle<Result<()>>);

fn begin(workloads: &[Arc<dyn Workload>], contexts: &[Context]) -> Vec<Working> {
    let start = |(workload, context): (&Arc<dyn Workload>, &Context)| {
        let (workload, context) = (workload.clone(), context.clone());
        (workload.name(), tokio::spawn(async move { workload.run(context).await }))
    };
    workloads.iter().zip(contexts).map(start).collect()
}

/// Waits for the workloads' ends, and says what was wrong with them.
async fn end(working: Vec<Working>) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, task) in working {
        match tokio::time::timeout(END_WITHIN, task).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => problems.push(format!("harness: workload {name}: {error:#}")),
            Ok(Err(error)) => problems.push(format!("harness: workload {name}: {error}")),
            Err(_) => problems.push(format!("I7: workload {name} has calls that do not end within {END_WITHIN:?}")),
        }
    }
    problems
}

async fn finish(workloads: &[Arc<dyn Workload>], contexts: &[Context]) -> Vec<String> {
    let mut problems = Vec::new();
    for (workload, context) in workloads.iter().zip(contexts) {
        match tokio::time::timeout(END_WITHIN, workload.finish(context.clone())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => problems.push(format!("I2: {}: the final reads failed: {error:#}", workload.name())),
            Err(_) => problems.push(format!("I2: {}: the final reads do not end", workload.name())),
        }
    }
    problems
}

/// Lets all nemeses strike until the time is over.
async fn strike(run: &Run, cluster: &Arc<Cluster>, clock: Stopwatch) -> Strikes {
    let until = Instant::now() + Duration::from_secs(run.seconds);
    let longest = (run.seconds / 12).clamp(LONGEST.start, LONGEST.end) / crowd(run);
    let longest = Duration::from_secs(longest.max(LONGEST.start));
    let mut tasks = Vec::new();
    for (number, nemesis) in run.nemeses.iter().enumerate() {
        let stage = Stage { cluster: cluster.clone(), clock, longest, crowded: crowd(run) > 1 };
        let random = SmallRng::seed_from_u64(run.seed.wrapping_mul(7_919).wrapping_add(number as u64));
        tasks.push((nemesis.name(), tokio::spawn(strikes_of(nemesis.clone(), stage, random, until))));
    }
    if tasks.is_empty() {
        tokio::time::sleep_until(until).await;
    }
    let mut all = Strikes::default();
    for (name, task) in tasks {
        match task.await {
            Ok(its) => {
                all.made.extend(its.made);
                all.problems.extend(its.problems);
            }
            Err(error) => all.problems.push(format!("harness: nemesis {name}: {error}")),
        }
    }
    all.made.sort_by_key(|(_, struck)| struck.from_ns);
    all
}

async fn strikes_of(nemesis: Arc<dyn Nemesis>, stage: Stage, mut random: SmallRng, until: Instant) -> Strikes {
    let mut strikes = Strikes::default();
    let mut next = Instant::now() + Duration::from_secs_f64(random.random_range(0.0..2.0));
    while next < until {
        tokio::time::sleep_until(next).await;
        next += Duration::from_secs_f64(random.random_range(BETWEEN));
        match nemesis.strike(&stage, &mut random).await {
            Ok(struck) => {
                let took = (struck.to_ns - struck.from_ns) as f64 / 1e9;
                say(stage.clock, &format!("{} {} for {took:.1} s: {}", nemesis.name(), struck.target, struck.proof));
                strikes.made.push((nemesis.name(), struck));
            }
            Err(error) if error.is::<Hindered>() => say(stage.clock, &format!("{}: {error:#}", nemesis.name())),
            Err(error) => {
                say(stage.clock, &format!("{}: {error:#}", nemesis.name()));
                let kind = if error.is::<Misbehaved>() { "I8" } else { "I9" };
                strikes.problems.push(format!("{kind}: {}: {error:#}", nemesis.name()));
                // What it left behind may be anything; the others go on.
                break;
            }
        }
        next = next.max(Instant::now() + REST);
    }
    strikes
}

fn span((name, struck): &Strike) -> FaultSpan {
    FaultSpan { name: (*name).to_owned(), target: struck.target.clone(), from_ns: struck.from_ns, to_ns: struck.to_ns }
}

/// How many take turns where one would strike alone. More than three keep each other from the nodes that they hold; and were each of
/// them to last as long as when they are few, some majority would be cut off all the time, and nothing would happen that could go wrong.
fn crowd(run: &Run) -> u64 {
    run.nemeses.len().saturating_sub(2).max(1) as u64
}

/// How many strikes of each nemesis met enough operations.
fn counted(nemeses: &[Arc<dyn Nemesis>], made: &[Strike], histories: &[History]) -> BTreeMap<String, usize> {
    let mut counts: BTreeMap<String, usize> = nemeses.iter().map(|nemesis| (nemesis.name().to_owned(), 0)).collect();
    for (name, struck) in made {
        let (from, to) = (struck.from_ns, struck.to_ns.saturating_add(AFTERMATH_NS));
        let operations = histories.iter().flat_map(|history| &history.operations);
        let under_way = operations.filter(|op| op.start <= to && op.end.is_none_or(|end| end >= from)).count();
        if under_way >= OVERLAP_MIN {
            *counts.entry((*name).to_owned()).or_default() += 1;
        }
    }
    counts
}

fn too_few(run: &Run, strikes: &BTreeMap<String, usize>) -> Vec<String> {
    let mut problems = Vec::new();
    let waits = crowd(run);
    for nemesis in &run.nemeses {
        let least = (run.seconds / (nemesis.pace().as_secs().max(1) * waits)).max(1);
        let seen = strikes.get(nemesis.name()).copied().unwrap_or(0) as u64;
        if seen < least {
            let name = nemesis.name();
            problems.push(format!(
                "vacuous: {name} struck {seen} times amid at least {OVERLAP_MIN} operations, {least} are needed"
            ));
        }
    }
    problems
}

async fn judge(workloads: &[Arc<dyn Workload>], histories: &[History]) -> Result<Vec<Verdict>> {
    let mut tasks = Vec::new();
    for (workload, history) in workloads.iter().zip(histories) {
        let (workload, history) = (workload.clone(), history.clone());
        tasks.push(tokio::task::spawn_blocking(move || workload.check(&history)));
    }
    let mut verdicts = Vec::new();
    for (workload, task) in workloads.iter().zip(tasks) {
        verdicts.push(task.await.with_context(|| format!("the checker of {}", workload.name()))?);
    }
    Ok(verdicts)
}

/// What a verdict holds against a run, in a line; the page says the rest.
fn objection(name: &str, verdict: &Verdict) -> Option<String> {
    match verdict {
        Verdict::Valid { .. } => None,
        Verdict::Unknown { why } => Some(format!("unknown: {name}: {why}")),
        Verdict::Invalid { findings } => {
            let more = findings.len().saturating_sub(1);
            let first = findings.first().map_or("", |finding| finding.what.as_str());
            Some(format!(
                "VIOLATION: {name}: {first}{}",
                if more > 0 { format!(", and {more} more") } else { String::new() }
            ))
        }
    }
}

/// I3 and I7, as the pulse has seen them.
fn bounds(shown: &pulse::Shown) -> Vec<String> {
    let mut problems = Vec::new();
    let most = RECOVERED_WITHIN.as_millis() as u64;
    if let Some(took) = shown.recovered_ms.filter(|&took| took > most) {
        problems.push(format!(
            "I3: after the last fault some shard took no write for {took} ms, at most {most} are allowed"
        ));
    }
    if let Some(longest) = shown.late_ms.iter().max() {
        let count = shown.late_ms.len();
        problems.push(format!("I7: {count} calls of 2 s ended more than a second late, the latest after {longest} ms"));
    }
    problems
}

fn verbs(history: &History) -> BTreeMap<String, (usize, usize)> {
    let mut verbs: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for operation in &history.operations {
        let counts = verbs.entry(operation.f.clone()).or_default();
        counts.0 += usize::from(operation.is_ok());
        counts.1 += 1;
    }
    verbs
}

fn unknown(histories: &[History]) -> usize {
    let all = histories.iter().flat_map(|history| &history.operations);
    all.filter(|operation| operation.outcome == Kind::Info).count()
}

/// Says what came out, and leaves what is needed to understand it.
fn leave(run: &Run, directory: &std::path::Path, row: &Row, strikes: &[Strike], judged: Vec<Judged<'_>>) -> Result<()> {
    let names: Vec<&str> = run.workloads.iter().map(|workload| workload.name()).collect();
    let told = report::Run {
        seed: run.seed,
        command: format!(
            "jepsen/run --time {} --nodes {} --seed {} --rate {} --workload {} --nemesis {}",
            run.seconds,
            row.nodes,
            run.seed,
            run.rate,
            names.join(","),
            run.name.replace('+', ",")
        ),
        directory: directory.to_owned(),
    };
    for judged in &judged {
        if let Verdict::Valid { summary } = judged.verdict {
            eprintln!("            {}: {summary}", judged.history.name);
        }
    }
    if row.problems.is_empty() {
        println!("passed: {}", run.name);
        if !run.keep {
            std::fs::remove_dir_all(directory)?;
            return Ok(());
        }
    }
    let summary = serde_json::json!({
        "row": row,
        "command": told.command,
        "strikes": strikes.iter().map(|(name, struck)| serde_json::json!({
            "nemesis": name,
            "target": struck.target,
            "from_ns": struck.from_ns,
            "to_ns": struck.to_ns,
            "proof": struck.proof,
        })).collect::<Vec<_>>(),
    });
    std::fs::write(directory.join("run.json"), serde_json::to_string_pretty(&summary)?)?;
    for judged in judged {
        report::write(judged, &told)?;
        if !judged.verdict.is_valid() {
            println!("{}", report::page(judged, &told));
        }
    }
    if !row.problems.is_empty() {
        println!("FAILED: {}", told.command);
        for problem in &row.problems {
            println!("  - {problem}");
        }
        println!("  everything of this run: {}", directory.display());
    }
    Ok(())
}
