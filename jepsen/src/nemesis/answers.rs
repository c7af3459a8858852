//! Connections between clients and a node that lose the answers, break, or hang, while the node hears everything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::BoxFuture;
use rand::rngs::SmallRng;

use super::{Nemesis, Stage, Struck};
use crate::cluster::Wants;
use crate::net::proxy::Mode;

/// How often connections are broken.
const RESET_EVERY: Duration = Duration::from_millis(100);

#[derive(Clone, Copy)]
enum Kind {
    Lost,
    Reset,
    Hang,
}

struct Answers(Kind);

pub(super) fn all() -> Vec<Arc<dyn Nemesis>> {
    [Kind::Lost, Kind::Reset, Kind::Hang].map(|kind| Arc::new(Answers(kind)) as Arc<dyn Nemesis>).to_vec()
}

impl Nemesis for Answers {
    fn name(&self) -> &'static str {
        match self.0 {
            Kind::Lost => "answers-lost",
            Kind::Reset => "answers-reset",
            Kind::Hang => "answers-hang",
        }
    }

    fn what(&self) -> &'static str {
        match self.0 {
            Kind::Lost => "requests reach a node and take effect, its answers are thrown away, then connections break",
            Kind::Reset => "connections to a node break every 100 ms",
            Kind::Hang => "connections to a node stay open and carry nothing either way",
        }
    }

    fn wants(&self) -> Wants {
        Wants { proxies: true, ..Wants::default() }
    }

    fn strike<'a>(&'a self, stage: &'a Stage, random: &'a mut SmallRng) -> BoxFuture<'a, Result<Struck>> {
        Box::pin(async move {
            let id = stage.some_node(random).await;
            let place = usize::try_from(id).expect("a small number") - 1;
            let proxy = stage.cluster.proxies.get(place).context("the node has no proxy")?;
            let patience = Instant::now() + Duration::from_secs(10);
            while proxy.connections() == 0 && Instant::now() < patience {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            ensure!(proxy.connections() > 0, "no client is connected to n{id}");
            let (before, until) = (proxy.swallowed(), Instant::now() + stage.some_time(0.3..10.0, random));
            let from_ns = stage.clock.now_ns();
            let mut broken = 0;
            match self.0 {
                Kind::Lost => proxy.set(Mode::Swallow),
                Kind::Hang => proxy.set(Mode::Hang),
                Kind::Reset => {
                    while Instant::now() < until {
                        broken += proxy.connections();
                        proxy.reset();
                        tokio::time::sleep(RESET_EVERY).await;
                    }
                }
            }
            tokio::time::sleep(until.saturating_duration_since(Instant::now())).await;
            if !matches!(self.0, Kind::Reset) {
                broken += proxy.connections();
            }
            proxy.set(Mode::Pass);
            proxy.reset();
            let to_ns = stage.clock.now_ns();
            let swallowed = proxy.swallowed() - before;
            let proof = match self.0 {
                Kind::Lost => {
                    ensure!(swallowed > 0, "n{id} answered nothing that could be thrown away");
                    format!("{swallowed} bytes of answers were thrown away")
                }
                Kind::Reset | Kind::Hang => {
                    ensure!(broken > 0, "no connection to n{id} was concerned");
                    format!("{broken} connections were concerned")
                }
            };
            Ok(Struck { target: format!("n{id} -> clients"), from_ns, to_ns, proof })
        })
    }
}
