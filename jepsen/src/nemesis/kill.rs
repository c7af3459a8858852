//! kill -9: of one node, of a majority, of all at once, and again while it comes back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::{Nemesis, Stage, Struck, names, up};

#[derive(Clone, Copy)]
enum Whom {
    One,
    Majority,
    All,
    /// One, and again while it starts.
    Again,
}

struct Kill(Whom);

pub(super) fn all() -> Vec<Arc<dyn Nemesis>> {
    [Whom::One, Whom::Majority, Whom::All, Whom::Again].map(|whom| Arc::new(Kill(whom)) as Arc<dyn Nemesis>).to_vec()
}

impl Nemesis for Kill {
    fn name(&self) -> &'static str {
        match self.0 {
            Whom::One => "kill-one",
            Whom::Majority => "kill-majority",
            Whom::All => "kill-all",
            Whom::Again => "kill-again",
        }
    }

    fn what(&self) -> &'static str {
        match self.0 {
            Whom::One => "kill -9 of one node, half the time of the one that leads most",
            Whom::Majority => "kill -9 of a majority at once",
            Whom::All => "kill -9 of all nodes at once",
            Whom::Again => "kill -9 of one node, and again while it comes back",
        }
    }

    fn strike<'a>(&'a self, stage: &'a Stage, random: &'a mut SmallRng) -> BoxFuture<'a, Result<Struck>> {
        Box::pin(async move {
            let ids = match self.0 {
                Whom::One | Whom::Again => vec![stage.some_node(random).await],
                Whom::Majority => stage.some_nodes(stage.majority(), random),
                Whom::All => stage.cluster.ids(),
            };
            let mut nodes = stage.cluster.hold(&ids).await;
            for node in &mut nodes {
                node.kill()?;
            }
            let from_ns = stage.clock.now_ns();
            tokio::time::sleep(stage.some_time(0.05..10.0, random)).await;
            for node in &mut nodes {
                node.start()?;
            }
            let mut proof = "the processes are gone from /proc".to_owned();
            if matches!(self.0, Whom::Again) {
                // A start takes some hundred milliseconds: early, in the middle, or just after it.
                let after = Duration::from_millis(random.random_range(5..1_500));
                tokio::time::sleep(after).await;
                for node in &mut nodes {
                    node.kill()?;
                    node.start()?;
                }
                proof += &format!(", and again after {after:?}");
            }
            let to_ns = stage.clock.now_ns();
            for node in &mut nodes {
                up(stage, node).await?;
            }
            Ok(Struck { target: names(ids), from_ns, to_ns, proof })
        })
    }
}
