//! The verbs on the cluster as a whole: its state, and whether shards are moved about in it.

use std::time::Duration;

use clap::Subcommand;
use trivet::runtime::{Clock, sleep};
use trivet::types::{Error, Reason};
use trivet::wire::admin::ClusterStatus;

use super::exit::{Ended, Exit};
use super::{Global, render, time};

/// Time between two looks while `cluster status --wait` waits.
const WAIT_STEP: Duration = Duration::from_millis(200);

/// Show the state of the cluster; let shards be moved about in it, or not.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    Status(Status),
    Balance(Balance),
    Pause(Pause),
    Resume(Resume),
}

/// Shows how evenly the cluster is spread, what moves and what would be moved next.
///
/// With --wait it returns when nothing is left to move, and exits with 5 if that takes longer.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  trivet cluster balance\n  trivet cluster balance --wait 5m")]
pub struct Balance {
    /// Wait up to this long until nothing is left to move
    #[arg(long, value_name = "DURATION", value_parser = time::parse_duration)]
    wait: Option<Duration>,
}

/// Moves nothing about unasked any more, until `resume`.
///
/// Moves that were begun are finished. Nothing is moved from draining and lost nodes either.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  trivet cluster pause\n  trivet cluster pause --dry-run")]
pub struct Pause {
    /// Say what would change and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Lets replicas and leaderships be moved about again.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  trivet cluster resume --dry-run\n  trivet cluster resume")]
pub struct Resume {
    /// Say what would be moved first and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Shows nodes, tables and what is wrong, if anything. Exits with 5 if the cluster is not healthy.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  trivet cluster status\n  trivet cluster status --wait 60s")]
pub struct Status {
    /// Wait up to this long until the cluster is healthy
    #[arg(long, value_name = "DURATION", value_parser = time::parse_duration)]
    wait: Option<Duration>,
}

/// Runs a cluster verb.
pub async fn run(verb: Verb, global: &Global) -> Ended {
    match verb {
        Verb::Status(args) => status(&args, global).await,
        Verb::Balance(args) => balance(&args, global).await,
        Verb::Pause(args) => set_balancing(true, args.dry_run, global).await,
        Verb::Resume(args) => set_balancing(false, args.dry_run, global).await,
    }
}

async fn balance(args: &Balance, global: &Global) -> Ended {
    let client = global.connect().await?;
    let clock = Clock::system();
    let until = clock.now() + args.wait.unwrap_or_default();
    let seen = loop {
        let seen = client.admin().balance().await;
        if args.wait.is_none() || seen.as_ref().is_ok_and(|report| report.settled) || clock.now() >= until {
            break seen?;
        }
        sleep(WAIT_STEP).await;
    };
    if global.json() {
        say!("{}", render::balance_json(&seen));
    } else {
        say_text!("{}", render::balance(&seen));
    }
    Ok(if args.wait.is_some() && !seen.settled { Exit::Unhealthy } else { Exit::Ok })
}

async fn set_balancing(paused: bool, dry_run: bool, global: &Global) -> Ended {
    let client = global.connect().await?;
    let seen = if dry_run { Some(client.admin().balance().await?) } else { None };
    if !dry_run {
        client.admin().set_balancing(paused).await?;
    }
    if global.json() {
        say!("{}", render::balancing_json(paused, seen.as_ref()));
    } else {
        say_text!("{}", render::balancing(paused, seen.as_ref()));
    }
    Ok(Exit::Ok)
}

async fn status(args: &Status, global: &Global) -> Ended {
    let clock = Clock::system();
    let until = clock.now() + args.wait.unwrap_or_default();
    let seen = loop {
        let seen = look(global).await;
        let healthy = seen.as_ref().is_ok_and(|status| status.healthy);
        // While waiting, nodes that do not answer yet are what is waited for; a wrong command line is not.
        let hopeless = seen.as_ref().is_err_and(|stop| !matches!(stop.exit, Exit::Unavailable));
        if healthy || hopeless || clock.now() >= until {
            break seen?;
        }
        sleep(WAIT_STEP).await;
    };
    if global.json() {
        say!("{}", render::status_json(&seen));
    } else {
        say_text!("{}", render::status(&seen));
    }
    Ok(if seen.healthy { Exit::Ok } else { Exit::Unhealthy })
}

async fn look(global: &Global) -> Ended<ClusterStatus> {
    let status = global.connect().await?.admin().within(global.deadline).status().await?;
    if status.nodes.is_empty() {
        return Err(Error::new(Reason::NotReady, "the node knows no cluster yet").into());
    }
    Ok(status)
}
