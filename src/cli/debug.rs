//! The verbs for the worst day, on the data directories of nodes that are stopped.
//!
//! They have no server to ask: alone among the verbs they open stores themselves, each locked while it is read or changed. So
//! they are run on the machine of the node, by whoever may read its files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use trivet::recover::{self, Applied, Collected, Plan};
use trivet::runtime::{Clock, random_u64};
use trivet::types::NodeId;

use super::exit::{Ended, Exit, Stop};
use super::{Global, render};

/// Work on the data directories of stopped nodes.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    #[command(subcommand)]
    Recover(Recover),
}

/// Recover shards that lost a majority of their replicas for good.
///
/// All nodes are stopped. `collect` is run for each node that survives, on its machine, and writes what it holds; `plan` reads all of
/// that, says what would be lost, and writes a plan; `apply` carries it out on each surviving node. Then the nodes are started
/// and make the cluster whole again by themselves. Acknowledged writes may be lost: those that no chosen replica holds. The
/// data of the lost nodes must be destroyed; it must never be served again.
#[derive(Clone, Debug, Subcommand)]
pub enum Recover {
    Collect(Collect),
    Plan(Planned),
    Apply(Apply),
}

/// Prints what a stopped node holds, as JSON for `plan`. Changes nothing.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  trivet debug recover collect --data /var/lib/trivet > node1.json")]
pub struct Collect {
    /// The node's data directory
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
}

/// Says what becomes of each shard and what may be lost, and writes the plan. Changes nothing.
///
/// Every node of the cluster must be given, by a file of `collect` or by its data directory, or be declared lost.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  trivet debug recover plan node1.json node2.json --lost 3,4,5 --save plan.json
  trivet debug recover plan --data /srv/n1 --data /srv/n2 --lost 3,4,5")]
pub struct Planned {
    /// Files of `collect`, one for each surviving node
    files: Vec<PathBuf>,
    /// The data directory of a surviving node, instead of a file; may be repeated
    #[arg(long, value_name = "DIR")]
    data: Vec<PathBuf>,
    /// A node that will never come back; may be repeated
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    lost: Vec<u64>,
    /// Where to write the plan
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

/// Carries out a plan on one stopped node, with the consent to lose data; or says what it would do.
///
/// It is done wholly or not at all, and may be given again. Run it for every surviving node before any is started.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  trivet debug recover apply plan.json --data /var/lib/trivet --dry-run
  trivet debug recover apply plan.json --data /var/lib/trivet --yes-i-accept-that-data-may-be-lost")]
pub struct Apply {
    /// The plan
    plan: PathBuf,
    /// The node's data directory
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Say what would be done and do nothing
    #[arg(long, conflicts_with = "accepted")]
    dry_run: bool,
    /// Do it: what no chosen replica holds is lost, acknowledged or not
    #[arg(long = "yes-i-accept-that-data-may-be-lost", required_unless_present = "dry_run")]
    accepted: bool,
}

/// Runs a debug verb.
pub fn run(verb: Verb, global: &Global) -> Ended {
    match verb {
        Verb::Recover(Recover::Collect(args)) => {
            say!("{}", collected(&args.data)?.to_json());
            Ok(Exit::Ok)
        }
        Verb::Recover(Recover::Plan(args)) => plan(&args, global),
        Verb::Recover(Recover::Apply(args)) => apply(&args, global),
    }
}

fn collected(data: &Path) -> Ended<Collected> {
    let engine = recover::open(data)?;
    Collected::from_store(&*engine).map_err(|error| Stop::from(error).about(data.display()))
}

fn read(path: &Path) -> Ended<String> {
    std::fs::read_to_string(path).map_err(|error| Stop::error(error.to_string()).about(path.display()))
}

fn plan(args: &Planned, global: &Global) -> Ended {
    let mut survivors = Vec::new();
    for file in &args.files {
        survivors.push(Collected::from_json(&read(file)?).map_err(|error| Stop::from(error).about(file.display()))?);
    }
    for data in &args.data {
        survivors.push(collected(data)?);
    }
    let lost: BTreeSet<NodeId> = args.lost.iter().copied().map(NodeId).collect();
    let plan = Plan::make(&survivors, &lost, Clock::system().wall_ms(), random_u64())?;
    if let Some(path) = &args.save {
        std::fs::write(path, plan.to_json()).map_err(|error| Stop::error(error.to_string()).about(path.display()))?;
    }
    if global.json() {
        say!("{}", plan.to_json());
        return Ok(Exit::Ok);
    }
    say_text!("{}", render::recovery_plan(&plan));
    if let Some(path) = &args.save {
        say!("the plan is in {}", path.display());
    }
    Ok(Exit::Ok)
}

fn apply(args: &Apply, global: &Global) -> Ended {
    let plan = Plan::from_json(&read(&args.plan)?).map_err(|error| Stop::from(error).about(args.plan.display()))?;
    let engine = recover::open(&args.data)?;
    let node = Collected::from_store(&*engine)?.node;
    let applied = recover::apply(&*engine, &plan, Clock::system().wall_ms(), !args.accepted)?;
    if global.json() {
        let changes: &[recover::Change] = match &applied {
            Applied::Before => &[],
            Applied::Now(changes) => changes,
        };
        let changes: Vec<_> = changes
            .iter()
            .map(|change| {
                let (shard, from, to) = (change.shard.0, change.from.0, change.to.0);
                serde_json::json!({"shard": shard, "from": from, "to": to, "keeps_data": change.heir})
            })
            .collect();
        let before = applied == Applied::Before;
        say!("{}", serde_json::json!({"node": node.0, "dry_run": args.dry_run, "before": before, "changes": changes}));
    } else {
        say_text!("{}", render::recovery_applied(node, &applied, args.dry_run));
    }
    Ok(Exit::Ok)
}
