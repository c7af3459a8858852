//! SIGSTOP: a process stands still and keeps its connections, longer and shorter than elections take.

use anyhow::Result;
use futures::future::BoxFuture;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::{Nemesis, Stage, Struck, names};

pub(super) struct Pause;

impl Nemesis for Pause {
    fn name(&self) -> &'static str {
        "pause"
    }

    fn what(&self) -> &'static str {
        "SIGSTOP of one node, sometimes of a majority or of all, for 0.1 to 30 s"
    }

    fn strike<'a>(&'a self, stage: &'a Stage, random: &'a mut SmallRng) -> BoxFuture<'a, Result<Struck>> {
        Box::pin(async move {
            let ids = match random.random_range(0..10) {
                0 => stage.cluster.ids(),
                1 | 2 => stage.some_nodes(stage.majority(), random),
                _ => vec![stage.some_node(random).await],
            };
            let mut nodes = stage.cluster.hold(&ids).await;
            for node in &mut nodes {
                node.pause()?;
            }
            let from_ns = stage.clock.now_ns();
            tokio::time::sleep(stage.some_time(0.1..30.0, random)).await;
            for node in &mut nodes {
                node.resume()?;
            }
            let to_ns = stage.clock.now_ns();
            Ok(Struck { target: names(ids), from_ns, to_ns, proof: "/proc said T and then not".to_owned() })
        })
    }
}
