//! Partitions of all shapes: both directions of some links are cut, in silence.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::BoxFuture;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::{Nemesis, Stage, Struck, names};
use crate::cluster::Wants;
use crate::net::{CLIENTS, Rule, between};

#[derive(Clone, Copy)]
enum Shape {
    Halves,
    Leader,
    Ring,
    Bridge,
    Flapping,
    Clients,
}

struct Partition(Shape);

pub(super) fn all() -> Vec<Arc<dyn Nemesis>> {
    use Shape::*;
    [Halves, Leader, Ring, Bridge, Flapping, Clients]
        .map(|shape| Arc::new(Partition(shape)) as Arc<dyn Nemesis>)
        .to_vec()
}

impl Partition {
    /// The links to cut, and the shape in words.
    async fn cut(&self, stage: &Stage, random: &mut SmallRng) -> (BTreeSet<Rule>, String) {
        let count = stage.cluster.ids().len();
        let mixed = stage.some_nodes(count, random);
        match self.0 {
            Shape::Halves | Shape::Flapping => {
                let (few, many) = mixed.split_at(random.random_range(1..=count / 2));
                let mut cut = between(few, many);
                let mut words = format!("{} | {}", names(few.to_vec()), names(many.to_vec()));
                // Clients stand on both sides, or with the majority.
                if random.random_bool(0.3) {
                    cut.extend(between(few, &[CLIENTS]));
                    words += ",clients";
                }
                (cut, words)
            }
            Shape::Leader => {
                let alone = stage.cluster.leader().await.unwrap_or(mixed[0]);
                let others: Vec<u64> = mixed.into_iter().filter(|&id| id != alone).collect();
                (between(&[alone], &others), format!("n{alone} alone, clients reach it"))
            }
            Shape::Ring => {
                // Each node sees its two neighbours, which makes a majority of five, and no two see the same one.
                let mut cut = BTreeSet::new();
                for (at, &one) in mixed.iter().enumerate() {
                    for (other_at, &other) in mixed.iter().enumerate() {
                        let apart = at.abs_diff(other_at);
                        if apart > 1 && apart < count - 1 {
                            cut.extend(between(&[one], &[other]));
                        }
                    }
                }
                (cut, format!("ring {}", names(mixed)))
            }
            Shape::Bridge => {
                let (bridge, sides) = mixed.split_first().expect("a cluster has nodes");
                let (left, right) = sides.split_at(sides.len() / 2);
                let words = format!("{} | {}, both see n{bridge}", names(left.to_vec()), names(right.to_vec()));
                (between(left, right), words)
            }
            Shape::Clients => {
                let few = &mixed[..random.random_range(1..=stage.majority())];
                (between(few, &[CLIENTS]), format!("clients | {}", names(few.to_vec())))
            }
        }
    }
}

impl Nemesis for Partition {
    fn name(&self) -> &'static str {
        match self.0 {
            Shape::Halves => "partition-halves",
            Shape::Leader => "partition-leader",
            Shape::Ring => "partition-ring",
            Shape::Bridge => "partition-bridge",
            Shape::Flapping => "partition-flapping",
            Shape::Clients => "partition-clients",
        }
    }

    fn what(&self) -> &'static str {
        match self.0 {
            Shape::Halves => "the nodes fall into two halves that do not hear one another",
            Shape::Leader => "the node that leads most hears no other node; clients still reach it",
            Shape::Ring => "every node sees a majority, each another one (five nodes)",
            Shape::Bridge => "two halves that both see one node",
            Shape::Flapping => "two halves, cut and joined every 0.2 to 2 s",
            Shape::Clients => "clients do not reach some nodes, which hear one another",
        }
    }

    fn wants(&self) -> Wants {
        Wants { network: true, ..Wants::default() }
    }

    fn nodes_min(&self) -> u64 {
        if matches!(self.0, Shape::Ring) { 5 } else { 3 }
    }

    fn strike<'a>(&'a self, stage: &'a Stage, random: &'a mut SmallRng) -> BoxFuture<'a, Result<Struck>> {
        Box::pin(async move {
            let net = stage.cluster.net()?;
            let (cut, target) = self.cut(stage, random).await;
            let mut fault = net.inject(cut.clone())?;
            let from_ns = stage.clock.now_ns();
            let proof = net.prove_cut(&cut).await?;
            let until = Instant::now() + stage.some_time(1.0..30.0, random);
            while matches!(self.0, Shape::Flapping) && Instant::now() < until {
                let mut some_time = || Duration::from_millis(random.random_range(200..2_000));
                tokio::time::sleep(some_time()).await;
                net.heal(fault)?;
                tokio::time::sleep(some_time()).await;
                fault = net.inject(cut.clone())?;
            }
            tokio::time::sleep(until.saturating_duration_since(Instant::now())).await;
            net.heal(fault)?;
            let to_ns = stage.clock.now_ns();
            net.prove_open(&cut).await?;
            Ok(Struck { target, from_ns, to_ns, proof })
        })
    }
}
