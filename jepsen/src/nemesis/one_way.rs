//! Links cut in one direction: a node that hears and is not heard, or the other way round.

use anyhow::Result;
use futures::future::BoxFuture;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::{Nemesis, Stage, Struck};
use crate::cluster::Wants;
use crate::net::{CLIENTS, one_way};

pub(super) struct OneWay;

impl Nemesis for OneWay {
    fn name(&self) -> &'static str {
        "one-way"
    }

    fn what(&self) -> &'static str {
        "one node is heard and does not hear, or hears and is not heard, by the others and sometimes the clients"
    }

    fn wants(&self) -> Wants {
        Wants { network: true, ..Wants::default() }
    }

    fn strike<'a>(&'a self, stage: &'a Stage, random: &'a mut SmallRng) -> BoxFuture<'a, Result<Struck>> {
        Box::pin(async move {
            let net = stage.cluster.net()?;
            let node = stage.some_node(random).await;
            let mut others: Vec<u64> = stage.cluster.ids().into_iter().filter(|&id| id != node).collect();
            let inwards = random.random_bool(0.5);
            let with_clients = random.random_bool(0.3);
            if with_clients {
                others.push(CLIENTS);
            }
            let cut = if inwards { one_way(&others, &[node]) } else { one_way(&[node], &others) };
            let fault = net.inject(cut.clone())?;
            let from_ns = stage.clock.now_ns();
            let proof = net.prove_cut(&cut).await?;
            tokio::time::sleep(stage.some_time(1.0..30.0, random)).await;
            net.heal(fault)?;
            let to_ns = stage.clock.now_ns();
            net.prove_open(&cut).await?;
            let who = if with_clients { "nodes and clients" } else { "nodes" };
            let target = if inwards { format!("{who} -/> n{node}") } else { format!("n{node} -/> {who}") };
            Ok(Struck { target, from_ns, to_ns, proof })
        })
    }
}
