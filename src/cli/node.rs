//! The verbs on nodes.

use std::time::Duration;

use clap::Subcommand;
use trivet::client::Client;
use trivet::runtime::{Clock, sleep};
use trivet::types::NodeId;

use super::exit::{Ended, Exit};
use super::{Global, render, time};

/// Time between two looks while a verb waits.
const WAIT_STEP: Duration = Duration::from_millis(200);

/// List nodes; have them drain, stand by, serve or leave.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    List(List),
    Drain(Drain),
    Serve(Serve),
    Spare(Spare),
    Decommission(Decommission),
}

/// Lists the nodes, whether they are alive, and what they hold.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  trivet node list")]
pub struct List {}

/// Moves everything off a node while it serves: leaderships first, then replicas.
///
/// It goes on by itself, whatever happens to this command; `node serve` calls it off. With --wait it returns when the node
/// holds nothing but its copy of the catalog.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  trivet node drain 4 --dry-run\n  trivet node drain 4 --wait 10m")]
pub struct Drain {
    /// Its number, as `node list` shows it
    id: u64,
    /// Wait up to this long until it is empty; exits with 4 if it takes longer
    #[arg(long, value_name = "DURATION", value_parser = time::parse_duration, conflicts_with = "dry_run")]
    wait: Option<Duration>,
    /// Say what would be moved first and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Has a node hold its share again that drained or stood by.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  trivet node serve 4")]
pub struct Serve {
    /// Its number, as `node list` shows it
    id: u64,
    /// Say what would be moved first and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Keeps a node as a hot spare: it gets replicas only in place of those of nodes that are lost or drain.
///
/// What it holds already stays. Begin with an empty node, or let it drain before.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  trivet node spare 5")]
pub struct Spare {
    /// Its number, as `node list` shows it
    id: u64,
    /// Say what would be moved first and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Lets a node leave the cluster for good. Its data directory may not come back.
///
/// The node has to be empty; with --wait it is drained first. A node that is lost for good can be decommissioned when its
/// replicas have been made anew elsewhere.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  trivet node decommission 4 --wait 10m\n  trivet node decommission 4 --dry-run")]
pub struct Decommission {
    /// Its number, as `node list` shows it
    id: u64,
    /// Drain it first and wait up to this long; exits with 4 if it takes longer
    #[arg(long, value_name = "DURATION", value_parser = time::parse_duration, conflicts_with = "dry_run")]
    wait: Option<Duration>,
    /// Say whether it could leave now and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs a node verb.
pub async fn run(verb: Verb, global: &Global) -> Ended {
    let client = global.connect().await?;
    match verb {
        Verb::List(List {}) => {
            let status = client.admin().within(global.deadline).status().await?;
            if global.json() {
                say!("{}", serde_json::Value::from(status.nodes.iter().map(render::node_json).collect::<Vec<_>>()));
            } else {
                say_text!("{}", render::nodes(&status.nodes));
            }
            Ok(Exit::Ok)
        }
        Verb::Drain(args) => {
            let Some(patience) = args.wait else {
                return want(&client, args.id, "draining", args.dry_run, global).await;
            };
            if global.json() {
                client.admin().set_standing(NodeId(args.id), "draining", false).await?;
            } else {
                want(&client, args.id, "draining", false, global).await?;
            }
            let empty = until_empty(&client, args.id, patience, global).await;
            if global.json() {
                // One document, of how things are in the end.
                let report = render::balance_json(&client.admin().balance().await?);
                say!(
                    "{}",
                    serde_json::json!({
                        "node": args.id, "standing": "draining", "dry_run": false, "empty": empty, "balance": report,
                    })
                );
            } else if empty {
                say!("node {} holds nothing any more", args.id);
            } else {
                say!("{}", not_empty(args.id));
            }
            Ok(if empty { Exit::Ok } else { Exit::Unavailable })
        }
        Verb::Serve(args) => want(&client, args.id, "serving", args.dry_run, global).await,
        Verb::Spare(args) => want(&client, args.id, "spare", args.dry_run, global).await,
        Verb::Decommission(args) => decommission(&client, &args, global).await,
    }
}

/// Wants something else of a node and says what follows.
async fn want(client: &Client, id: u64, standing: &str, dry_run: bool, global: &Global) -> Ended {
    let report = client.admin().set_standing(NodeId(id), standing, dry_run).await?;
    if global.json() {
        let report = render::balance_json(&report);
        say!("{}", serde_json::json!({"node": id, "standing": standing, "dry_run": dry_run, "balance": report}));
        return Ok(Exit::Ok);
    }
    let would = if dry_run { "would be" } else { "is" };
    say!("node {id} {would} {standing}");
    for step in &report.steps {
        say!("  next: {step}");
    }
    for stuck in &report.stuck {
        say!("  stuck: {stuck}");
    }
    Ok(Exit::Ok)
}

/// Waits until a node that drains holds nothing but its copy of the catalog; a node that does not answer holds what is
/// wanted on it.
async fn until_empty(client: &Client, id: u64, patience: Duration, global: &Global) -> bool {
    let clock = Clock::system();
    let until = clock.now() + patience;
    loop {
        let admin = client.admin().within(global.deadline);
        if let (Ok(balance), Ok(status)) = (admin.balance().await, admin.status().await) {
            let wanted = balance.nodes.iter().find(|share| share.node.0 == id).map_or(0, |share| share.replicas);
            let held = status.nodes.iter().find(|node| node.id.0 == id).and_then(|node| node.replicas);
            if wanted == 0 && held.is_none_or(|held| held <= 1) {
                return true;
            }
        }
        if clock.now() >= until {
            return false;
        }
        sleep(WAIT_STEP).await;
    }
}

fn not_empty(id: u64) -> String {
    format!("node {id} is not empty yet; `trivet cluster status` shows how far it is")
}

async fn decommission(client: &Client, args: &Decommission, global: &Global) -> Ended {
    let node = NodeId(args.id);
    if let Some(patience) = args.wait {
        client.admin().set_standing(node, "draining", false).await?;
        if !until_empty(client, args.id, patience, global).await {
            if global.json() {
                say!("{}", serde_json::json!({"node": args.id, "dry_run": false, "left": false}));
            } else {
                say!("{}", not_empty(args.id));
            }
            return Ok(Exit::Unavailable);
        }
    }
    client.admin().decommission(node, args.dry_run).await?;
    if global.json() {
        say!("{}", serde_json::json!({"node": args.id, "dry_run": args.dry_run, "left": !args.dry_run}));
    } else if args.dry_run {
        say!("node {} could leave now", args.id);
    } else {
        say!(
            "node {} has left the cluster; its process ends by itself, and its data directory is of no more use",
            args.id
        );
    }
    Ok(Exit::Ok)
}
