//! Wall clocks that jump, and that jump to and fro. Timers go on as they should: only the time of day is wrong.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use futures::future::BoxFuture;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::{Nemesis, Stage, Struck, names};
use crate::cluster::Wants;
use crate::cluster::node::Fixed;
use crate::disk::shim::Shim;

/// A clock that is read back may differ from what it was set to by the time that reading takes, and this much.
const SLACK: Duration = Duration::from_millis(20);
/// The largest jump of the usual kind. Outcomes of requests are kept for 15 minutes of the shard's time, which never
/// goes back: jumps forward must stay below that, or requests of clients with right clocks are refused as expired.
const JUMP_MAX_MS: f64 = 300_000.0;

/// How often all probes of one strike together read a clock, at the most.
const PROBES: u32 = 20;

#[derive(Clone, Copy)]
enum Kind {
    Jump,
    Strobe,
}

struct Clock(Kind);

pub(super) fn all() -> Vec<Arc<dyn Nemesis>> {
    [Kind::Jump, Kind::Strobe].map(|kind| Arc::new(Clock(kind)) as Arc<dyn Nemesis>).to_vec()
}

fn shim(node: &Fixed) -> Result<&Shim> {
    node.shim.as_ref().map(|(_, shim)| shim).context("the node has no clock of its own")
}

/// Sets a node's clock this many milliseconds beside the right time.
fn set(node: &Fixed, offset_ms: i64) -> Result<()> {
    shim(node)?.shift_clock(offset_ms)
}

/// Proves that a program with this node's clock sees that offset.
fn prove(node: &Fixed, offset_ms: i64) -> Result<()> {
    let wall = || SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_millis() as i64);
    let before = wall()?;
    let said = node.with_its_clock("date").arg("+%s%3N").stdin(Stdio::null()).output().context("cannot run date")?;
    let after = wall()?;
    let text = String::from_utf8_lossy(&said.stdout);
    let seen: i64 = text.trim().parse().with_context(|| format!("date said {text:?}"))?;
    let slack = SLACK.as_millis() as i64;
    let fits = before + offset_ms - slack <= seen && seen <= after + offset_ms + slack;
    ensure!(fits, "the clock of n{} should be off by {offset_ms} ms and is off by {} ms", node.id, seen - after);
    Ok(())
}

impl Clock {
    async fn strobe(&self, stage: &Stage, nodes: &[&Fixed], random: &mut SmallRng) -> Result<String> {
        let amplitude = 1 << random.random_range(2..18); // 4 ms to 131 s
        let period = Duration::from_millis(1 << random.random_range(0..10));
        let until = Instant::now() + stage.some_time(2.0..30.0, random);
        let mut changes = 0;
        while Instant::now() < until {
            for offset in [amplitude, 0] {
                for node in nodes {
                    set(node, offset)?;
                    if changes == 0 {
                        prove(node, offset)?;
                    }
                }
                changes += 1;
                tokio::time::sleep(period).await;
            }
        }
        Ok(format!("{changes} changes by {amplitude} ms every {period:?}, read back"))
    }

    async fn jump(&self, stage: &Stage, nodes: &[&Fixed], random: &mut SmallRng) -> Result<String> {
        let mut said = Vec::new();
        for node in nodes {
            // 11 ms to five minutes, small ones as likely as large ones.
            let size = 1.5_f64.powf(random.random_range(6.0..32.0)).min(JUMP_MAX_MS) as i64;
            let offset = if random.random_bool(0.5) { size } else { -size };
            set(node, offset)?;
            prove(node, offset)?;
            said.push(format!("n{} by {offset} ms", node.id));
        }
        tokio::time::sleep(stage.some_time(1.0..30.0, random)).await;
        Ok(format!("{}, read back", said.join(", ")))
    }
}

impl Nemesis for Clock {
    fn name(&self) -> &'static str {
        match self.0 {
            Kind::Jump => "clock-jump",
            Kind::Strobe => "clock-strobe",
        }
    }

    fn what(&self) -> &'static str {
        match self.0 {
            Kind::Jump => "wall clocks jump by 11 ms to 5 minutes, forwards or backwards, and back",
            Kind::Strobe => "wall clocks jump to and fro every 1 to 512 ms",
        }
    }

    fn wants(&self) -> Wants {
        Wants { shim: true, ..Wants::default() }
    }

    fn strike<'a>(&'a self, stage: &'a Stage, random: &'a mut SmallRng) -> BoxFuture<'a, Result<Struck>> {
        Box::pin(async move {
            let count = random.random_range(1..=stage.cluster.ids().len());
            let ids = stage.some_nodes(count, random);
            let nodes: Vec<&Fixed> = ids.iter().map(|&id| stage.cluster.fixed(id).as_ref()).collect();
            let reads = |nodes: &[&Fixed]| nodes.iter().map(|node| shim(node)?.clock_reads()).sum::<Result<u32>>();
            let (before, from_ns) = (reads(&nodes)?, stage.clock.now_ns());
            let proof = match self.0 {
                Kind::Jump => self.jump(stage, &nodes, random).await?,
                Kind::Strobe => self.strobe(stage, &nodes, random).await?,
            };
            for node in &nodes {
                set(node, 0)?;
                prove(node, 0)?;
            }
            // Those of `date` are few; a node under load reads its clock with every write.
            let read = reads(&nodes)? - before;
            ensure!(read > 2 * PROBES, "the nodes {} did not read their clocks", names(ids));
            let proof = format!("{proof}; {read} times by the nodes");
            Ok(Struck { target: names(ids), from_ns, to_ns: stage.clock.now_ns(), proof })
        })
    }
}
