//! A disk is lost for good: the node comes back empty and joins again.

use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;
use rand::rngs::SmallRng;

use super::{Nemesis, Stage, Struck, up};
use crate::cluster::Held;
use crate::cluster::node::Entry;

pub(super) struct Wipe;

/// Removes a stopped node's data, starts it as a newcomer, and waits until the cluster is whole again.
pub(super) async fn replace(stage: &Stage, node: &mut Held) -> Result<()> {
    node.wipe()?;
    let id = node.fixed.id;
    let others: Vec<String> =
        stage.cluster.fixed.iter().filter(|other| other.id != id).map(|other| other.advertise.to_string()).collect();
    node.entry = Entry::Join(others.join(","));
    node.start()?;
    up(stage, node).await?;
    stage.healthy_again().await?;
    Ok(())
}

impl Nemesis for Wipe {
    fn name(&self) -> &'static str {
        "wipe"
    }

    fn what(&self) -> &'static str {
        "kill -9 of one node, all its data removed; it joins again as a new replica"
    }

    fn pace(&self) -> Duration {
        // The next one waits until the last has everything again: two at once would be the loss of a majority.
        Duration::from_secs(30)
    }

    fn strike<'a>(&'a self, stage: &'a Stage, random: &'a mut SmallRng) -> BoxFuture<'a, Result<Struck>> {
        Box::pin(async move {
            let _alone = stage.all_well().await?;
            let id = stage.some_node(random).await;
            let mut nodes = stage.cluster.hold(&[id]).await;
            let node = nodes.first_mut().expect("one was asked for");
            node.kill()?;
            let from_ns = stage.clock.now_ns();
            tokio::time::sleep(stage.some_time(0.05..5.0, random)).await;
            replace(stage, node).await?;
            let proof = "its directory was empty".to_owned();
            Ok(Struck { target: format!("n{id}"), from_ns, to_ns: stage.clock.now_ns(), proof })
        })
    }
}
