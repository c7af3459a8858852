//! Runs: workloads and faults on one cluster, and the verdict.
//!
//! A run passes these stages ([`stages`]): found a cluster and its tables; start all workloads; let nemeses strike until
//! the time is over; heal everything and wait until the cluster is healthy; end the workloads and let each read
//! through every node what must be there; then judge. What is judged: every workload's history by its checker; the
//! invariants that hold in every run whatever its workloads ([`invariants`]); and whether the run showed anything at
//! all: a history below its floors, or a fault that struck too seldom or beside the operations, makes it *vacuous*,
//! which fails. So does a checker that could not decide.
//!
//! A [`plan`] names runs to be made one after the other; the [`table`] keeps one row of each.

mod invariants;
mod plan;
mod pulse;
mod stages;
mod table;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cluster::{Ground, Wants};
use crate::nemesis::{self, Nemesis};
use crate::workload::{self, Workload};
use stages::Run;

/// Added to the seed of a run that is made once more.
const AGAIN: u64 = 1_000;

/// What a run is to do.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Show all workloads and nemeses and do nothing
    #[arg(long)]
    list: bool,
    /// How long faults go on, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    time: u64,
    /// The workloads to run at once (default: all)
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    workload: Vec<String>,
    /// The nemeses that strike meanwhile, each by itself; `none` for a run without faults
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    nemesis: Vec<String>,
    /// Make the planned runs one after the other: with --short those of CI, with --long every nemesis for five minutes
    #[arg(long, conflicts_with_all = ["nemesis", "time"])]
    all: bool,
    /// With --all: within a quarter of an hour (the default)
    #[arg(long, requires = "all", conflicts_with = "long")]
    short: bool,
    /// With --all: every nemesis alone, then in pairs, five minutes each
    #[arg(long, requires = "all")]
    long: bool,
    /// Repeats the random choices of an earlier run (not its timing)
    #[arg(long)]
    seed: Option<u64>,
    /// Make the run this often, with this seed and those after it, and end with a table of them
    #[arg(long, value_name = "COUNT", default_value_t = 1, conflicts_with = "all",
          value_parser = clap::value_parser!(u64).range(1..=10_000))]
    seeds: u64,
    /// Keep the histories, the nodes' logs and the report in this directory, also when nothing is wrong
    #[arg(long, value_name = "DIRECTORY")]
    history: Option<PathBuf>,
    /// Where the table of runs is kept, and what is left of runs that found something
    #[arg(long, value_name = "DIRECTORY", default_value = "jepsen/results")]
    results: PathBuf,
    /// How many nodes the cluster has; one more than three where nemeses need room to move replicas
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(3..=9))]
    nodes: u64,
    /// The binary under test
    ///
    /// Without it that of the variable TRIVET_BINARY.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Operations per second that all workloads together try to make
    #[arg(long, default_value_t = 400.0)]
    rate: f64,
}

/// Does what is asked. False: something was found, or a run showed nothing.
///
/// To be called on the only thread of the process: it moves into a network namespace of its own.
pub fn start(arguments: &Arguments) -> Result<bool> {
    if arguments.list {
        list();
        return Ok(true);
    }
    let named = std::env::var_os("TRIVET_BINARY").map(PathBuf::from);
    let binary = arguments.binary.clone().or(named).context("which binary? Set TRIVET_BINARY or give --binary FILE")?;
    let binary = binary.canonicalize().with_context(|| format!("{}", binary.display()))?;
    let nodes_max = planned(arguments).iter().map(|run| nodes_of(run, arguments.nodes)).max();
    let ground = Arc::new(Ground::prepare(binary, nodes_max.unwrap_or(arguments.nodes))?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ran = runtime.block_on(async {
        tokio::select! {
            ran = all_runs(arguments, &ground) => ran,
            _ = interrupted() => Err(anyhow::anyhow!("interrupted")),
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(10));
    ground.record.undo();
    ran
}

pub use crate::net::queue::Treatment;

/// Treats the packets of the network namespace that this process was started in, until it is killed.
pub fn treat_packets(treatment: Treatment) -> Result<()> {
    crate::net::queue::serve(treatment)
}

/// Waits until somebody wants this to end.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut told) => {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = told.recv() => {}
            }
        }
        Err(_) => std::future::pending().await,
    }
}

fn list() {
    println!("Workloads (--workload NAME,NAME; all run at once on one cluster):");
    for workload in workload::all() {
        println!("  {:<18} {}", workload.name(), workload.promise());
    }
    println!("\nNemeses (--nemesis NAME,NAME; `kill` stands for any of kill-one, kill-all and so on):");
    for nemesis in nemesis::all() {
        let wants = nemesis.wants();
        let root = if wants.network || wants.disk { "  (root)" } else { "" };
        println!("  {:<18} {}{root}", nemesis.name(), nemesis.what());
    }
}

/// The workloads of these names; without names all.
fn workloads(names: &[String]) -> Result<Vec<Arc<dyn Workload>>> {
    let mut all: BTreeMap<&str, Arc<dyn Workload>> =
        workload::all().into_iter().map(|workload| (workload.name(), Arc::from(workload))).collect();
    if names.is_empty() {
        return Ok(all.into_values().collect());
    }
    names
        .iter()
        .map(|name| {
            all.remove(name.as_str()).with_context(|| format!("there is no workload `{name}`; --list shows all"))
        })
        .collect()
}

/// The runs that are asked for.
fn planned(arguments: &Arguments) -> Vec<plan::Planned> {
    if arguments.all {
        return plan::runs(arguments.long);
    }
    let names = if arguments.nemesis.is_empty() { vec!["kill".to_owned()] } else { arguments.nemesis.clone() };
    let run = plan::Planned { nemeses: names, seconds: arguments.time };
    (0..arguments.seeds).map(|_| run.clone()).collect()
}

/// How many nodes a run is given: those asked for, or as many as its nemeses want.
fn nodes_of(run: &plan::Planned, asked: u64) -> u64 {
    let nemeses = run.nemeses.iter().filter_map(|name| nemesis::named(name, |_| Ok(())).ok());
    nemeses.map(|nemesis| nemesis.nodes_wanted()).fold(asked, u64::max)
}

async fn all_runs(arguments: &Arguments, ground: &Arc<Ground>) -> Result<bool> {
    let possible = |nemesis: &dyn Nemesis| match ground.lacks(nemesis.wants()) {
        Some(lack) => Err(lack.to_owned()),
        None if nemesis.nodes_min() > arguments.nodes => {
            Err(format!("{} needs {} nodes", nemesis.name(), nemesis.nodes_min()))
        }
        None => Ok(()),
    };
    let planned = planned(arguments);
    let seed = arguments.seed.unwrap_or_else(trivet::runtime::random_u64);
    if ground.net.is_none() {
        eprintln!("skipped: without root no namespaces and no disks of the nodes' own; what needs them is left out");
    }
    std::fs::create_dir_all(&arguments.results).with_context(|| format!("{}", arguments.results.display()))?;
    let (count, mut rows, mut bad) = (planned.len(), Vec::new(), Vec::new());
    for (number, planned) in planned.into_iter().enumerate() {
        let nodes = nodes_of(&planned, arguments.nodes);
        let mut nemeses = Vec::new();
        let mut left_out = Vec::new();
        for name in planned.nemeses.iter().filter(|name| *name != "none") {
            match nemesis::named(name, possible) {
                Ok(nemesis) => nemeses.push(nemesis),
                Err(why) if arguments.all => left_out.push(why),
                Err(why) => bail!("{why}"),
            }
        }
        for why in &left_out {
            eprintln!("skipped: {why}");
        }
        if nemeses.is_empty() && !left_out.is_empty() {
            continue;
        }
        let name = match nemeses.as_slice() {
            [] => "none".to_owned(),
            some => some.iter().map(|nemesis| nemesis.name()).collect::<Vec<_>>().join("+"),
        };
        let directory = match (&arguments.history, count) {
            (Some(history), 1) => history.clone(),
            (Some(history), _) if arguments.seeds > 1 => history.join(format!("{name}-{}", number + 1)),
            (Some(history), _) => history.join(&name),
            (None, _) => arguments.results.join(format!("{}-{}-{name}", std::process::id(), number + 1)),
        };
        let wants = nemeses.iter().fold(Wants::default(), |wants, nemesis| wants.and(nemesis.wants()));
        let mut run = Run {
            name,
            workloads: workloads(&arguments.workload)?,
            nemeses,
            wants,
            nodes,
            seconds: planned.seconds,
            seed: seed.wrapping_add(number as u64),
            rate: arguments.rate,
            directory,
            keep: arguments.history.is_some(),
        };
        eprintln!("run {} of {count}: {} for {} s, seed {}", number + 1, run.name, run.seconds, run.seed);
        let mut row = match stages::make(run.clone(), ground).await {
            Ok(row) => row,
            // Of many runs the others are worth making.
            Err(error) if arguments.seeds > 1 => {
                eprintln!("error: {error:#}");
                bad.push(format!("  {}, seed {}: it could not be made: {error:#}", run.name, run.seed));
                continue;
            }
            Err(error) => return Err(error),
        };
        table::append(&arguments.results, &row)?;
        // Nothing wrong was seen, but too little shown: of the planned runs such a one is made once more, otherwise drawn.
        if arguments.all && row.only_showed_too_little() {
            run.seed = run.seed.wrapping_add(AGAIN);
            run.directory.set_extension("again");
            eprintln!("once more, since it showed too little: {}, seed {}", run.name, run.seed);
            row = stages::make(run, ground).await?;
            table::append(&arguments.results, &row)?;
        }
        bad.extend(row.problems.iter().map(|problem| format!("  {}, seed {}: {problem}", row.name, row.seed)));
        rows.push(row);
    }
    if arguments.seeds > 1 {
        println!("{}", table::by_seed(&rows));
    }
    // Said again at the very end: whoever sees only the last lines of a log must see what was wrong.
    if count > 1 && !bad.is_empty() {
        println!("what was found in {} runs:\n{}", rows.len(), bad.join("\n"));
    }
    if rows.is_empty() {
        bail!("nothing could be run on this machine");
    }
    Ok(bad.is_empty())
}
