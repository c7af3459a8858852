//! The verbs on the cluster itself: its nodes, its state.

use std::time::Duration;

use clap::Subcommand;
use trivet::runtime::{Clock, sleep};
use trivet::types::{Error, Reason};
use trivet::wire::admin::ClusterStatus;

use super::exit::{Ended, Exit};
use super::{Global, render, time};

/// Time between two looks while `cluster status --wait` waits.
const WAIT_STEP: Duration = Duration::from_millis(200);

/// List nodes.
#[derive(Clone, Debug, Subcommand)]
pub enum Node {
    List(NodeList),
}

/// Lists the nodes and whether they are alive.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  trivet node list")]
pub struct NodeList {}

/// Show the state of the cluster.
#[derive(Clone, Debug, Subcommand)]
pub enum Cluster {
    Status(Status),
}

/// Shows nodes, tables and what is wrong, if anything. Exits with 5 if the cluster is not healthy.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  trivet cluster status\n  trivet cluster status --wait 60s")]
pub struct Status {
    /// Wait up to this long until the cluster is healthy
    #[arg(long, value_name = "DURATION", value_parser = time::parse_duration)]
    wait: Option<Duration>,
}

/// Runs a node verb.
pub async fn node(verb: Node, global: &Global) -> Ended {
    let Node::List(NodeList {}) = verb;
    let status = global.connect().await?.admin().within(global.deadline).status().await?;
    if global.json() {
        say!("{}", serde_json::Value::from(status.nodes.iter().map(render::node_json).collect::<Vec<_>>()));
    } else {
        say_text!("{}", render::nodes(&status.nodes));
    }
    Ok(Exit::Ok)
}

/// Runs a cluster verb.
pub async fn cluster(verb: Cluster, global: &Global) -> Ended {
    let Cluster::Status(args) = verb;
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
