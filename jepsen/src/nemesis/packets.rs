//! Links that are slow, lose packets or deliver them out of order, at one node or at all.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::BoxFuture;
use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use tokio::time::Instant;

use super::{Nemesis, Stage, Struck, names};
use crate::cluster::Wants;
use crate::net::queue::{Treated, Treatment};
use crate::net::{CLIENTS, one_way};

/// Probes that are sent to see what becomes of them: with 5 % loss, all pass once in 170 times.
const PROBES: u32 = 100;
/// How long they may show nothing.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);

#[derive(Clone, Copy)]
enum Kind {
    Delay,
    Loss,
    Reorder,
}

struct Packets(Kind);

pub(super) fn all() -> Vec<Arc<dyn Nemesis>> {
    [Kind::Delay, Kind::Loss, Kind::Reorder].map(|kind| Arc::new(Packets(kind)) as Arc<dyn Nemesis>).to_vec()
}

impl Packets {
    fn treatment(&self, random: &mut SmallRng) -> Treatment {
        let none = Treatment { delay: 0, jitter: 0, loss: 0, reorder: 0, seed: random.random() };
        match self.0 {
            // Within a heartbeat, or longer than one.
            Kind::Delay if random.random_bool(0.3) => Treatment { delay: 300, jitter: 50, ..none },
            Kind::Delay => Treatment { delay: 50, jitter: 20, ..none },
            Kind::Loss => Treatment { loss: *[5, 15, 30].choose(random).expect("three"), ..none },
            Kind::Reorder => Treatment { delay: 10, jitter: 10, reorder: 20, ..none },
        }
    }

    /// Whether the probes that were sent to a treated node show what is done there.
    async fn prove(&self, stage: &Stage, node: u64, treatment: Treatment) -> Result<String> {
        let within = Duration::from_millis(2 * (treatment.delay + treatment.jitter) + 500);
        let passed = stage.cluster.net()?.probe(node, PROBES, within).await?;
        let lost = PROBES - passed.count;
        match self.0 {
            Kind::Delay => {
                let least = Duration::from_millis(treatment.delay - treatment.jitter);
                ensure!(passed.median() >= least, "probes to n{node} take {:?}, less than {least:?}", passed.median());
                Ok(format!("probes take {:?}", passed.median()))
            }
            Kind::Loss => {
                ensure!(lost > 0, "all {PROBES} probes to n{node} passed");
                Ok(format!("{lost} of {PROBES} probes are lost"))
            }
            Kind::Reorder => {
                ensure!(passed.overtaken > 0, "no probe to n{node} was overtaken");
                Ok(format!("{} of {PROBES} probes are overtaken", passed.overtaken))
            }
        }
    }
}

impl Nemesis for Packets {
    fn name(&self) -> &'static str {
        match self.0 {
            Kind::Delay => "packets-delay",
            Kind::Loss => "packets-loss",
            Kind::Reorder => "packets-reorder",
        }
    }

    fn what(&self) -> &'static str {
        match self.0 {
            Kind::Delay => "all that arrives at some nodes comes 50±20 ms or 300±50 ms later",
            Kind::Loss => "some nodes lose 5 to 30 % of what is sent to them",
            Kind::Reorder => "what arrives at some nodes comes out of order",
        }
    }

    fn wants(&self) -> Wants {
        Wants { network: true, ..Wants::default() }
    }

    fn strike<'a>(&'a self, stage: &'a Stage, random: &'a mut SmallRng) -> BoxFuture<'a, Result<Struck>> {
        Box::pin(async move {
            let net = stage.cluster.net()?;
            let count = if random.random_bool(0.3) { stage.cluster.ids().len() } else { 1 };
            let ids = stage.some_nodes(count, random);
            let treatment = self.treatment(random);
            let mut treated: Vec<Treated> = Vec::new();
            for &id in &ids {
                treated.push(net.treat(&stage.cluster.ground.record, id, treatment)?);
            }
            let from_ns = stage.clock.now_ns();
            let mut proof = Ok(String::new());
            for &id in &ids {
                // The program that treats the packets is a process that has to start, which takes its time beside others.
                let patience = Instant::now() + SHOWN_WITHIN;
                loop {
                    proof = self.prove(stage, id, treatment).await;
                    if proof.is_ok() || Instant::now() > patience {
                        break;
                    }
                }
                if proof.is_err() {
                    break;
                }
            }
            if proof.is_ok() {
                tokio::time::sleep(stage.some_time(1.0..30.0, random)).await;
            }
            for one in treated {
                one.end()?;
            }
            let to_ns = stage.clock.now_ns();
            for &id in &ids {
                net.prove_open(&one_way(&[CLIENTS], &[id])).await?;
            }
            Ok(Struck { target: names(ids), from_ns, to_ns, proof: proof? })
        })
    }
}
