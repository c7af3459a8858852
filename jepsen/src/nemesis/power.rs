//! Power cuts: a node stops in the middle of whatever it does, and its disk keeps only what was synced.

use std::sync::Arc;

use anyhow::{Context, Result};
use futures::future::BoxFuture;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::{Nemesis, Stage, Struck, names, up};
use crate::cluster::Wants;

#[derive(Clone, Copy)]
enum Whom {
    One,
    Minority,
    All,
}

struct Power(Whom);

pub(super) fn all() -> Vec<Arc<dyn Nemesis>> {
    [Whom::One, Whom::Minority, Whom::All].map(|whom| Arc::new(Power(whom)) as Arc<dyn Nemesis>).to_vec()
}

impl Nemesis for Power {
    fn name(&self) -> &'static str {
        match self.0 {
            Whom::One => "power-one",
            Whom::Minority => "power-minority",
            Whom::All => "power-all",
        }
    }

    fn what(&self) -> &'static str {
        match self.0 {
            Whom::One => "power cut of one node, half the time of the one that leads most: what was not synced is gone",
            Whom::Minority => "power cut of as many nodes as leave a majority",
            Whom::All => "power cut of all nodes within a second",
        }
    }

    fn wants(&self) -> Wants {
        Wants { disk: true, ..Wants::default() }
    }

    fn strike<'a>(&'a self, stage: &'a Stage, random: &'a mut SmallRng) -> BoxFuture<'a, Result<Struck>> {
        Box::pin(async move {
            let ids = match self.0 {
                Whom::One => vec![stage.some_node(random).await],
                Whom::Minority => {
                    let count = random.random_range(1..=stage.minority());
                    stage.some_nodes(count, random)
                }
                Whom::All => stage.cluster.ids(),
            };
            let mut nodes = stage.cluster.hold(&ids).await;
            for node in &mut nodes {
                // First it stops: it must not learn of its disk's end, nor answer anybody after it.
                node.pause()?;
                let image = node.fixed.image.as_ref().context("a disk of its own")?;
                image.leave_witnesses()?;
                image.cut()?;
                node.kill()?;
            }
            let from_ns = stage.clock.now_ns();
            tokio::time::sleep(stage.some_time(0.05..5.0, random)).await;
            for node in &mut nodes {
                node.fixed.image.as_ref().context("a disk of its own")?.revive()?;
                node.start()?;
            }
            let to_ns = stage.clock.now_ns();
            for node in &mut nodes {
                up(stage, node).await?;
            }
            let proof = "a synced file survived, what was not synced is gone".to_owned();
            Ok(Struck { target: names(ids), from_ns, to_ns, proof })
        })
    }
}
