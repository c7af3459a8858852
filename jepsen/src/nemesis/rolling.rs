//! Rolling restarts: one node after the other is stopped in order or killed, comes back, and the cluster is well again
//! before it is the next one's turn. The strikes of one kind take up the round where the last one left it; or one
//! strike is a whole round, as an operator makes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::BoxFuture;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::{Nemesis, Stage, Struck, names, up};

/// A node that is told to stop lets calls in flight end (for 10 s at most) and closes its storage.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// Whose turn it was last.
static TURN: AtomicUsize = AtomicUsize::new(0);

#[derive(Clone, Copy)]
enum Way {
    /// SIGTERM of the next node.
    Stop,
    /// SIGKILL of the next node.
    Kill,
    /// One way or the other, of all nodes in turn.
    Round,
}

struct Rolling(Way);

pub(super) fn all() -> Vec<Arc<dyn Nemesis>> {
    [Way::Stop, Way::Kill, Way::Round].map(|way| Arc::new(Rolling(way)) as Arc<dyn Nemesis>).to_vec()
}

impl Nemesis for Rolling {
    fn name(&self) -> &'static str {
        match self.0 {
            Way::Stop => "rolling-stop",
            Way::Kill => "rolling-kill",
            Way::Round => "rolling-round",
        }
    }

    fn what(&self) -> &'static str {
        match self.0 {
            Way::Stop => "SIGTERM of one node after the other; each must end with 0 and come back before the next",
            Way::Kill => "kill -9 of one node after the other; each must come back before the next",
            Way::Round => {
                "every node in turn is stopped or killed, and started, each when the cluster is healthy again"
            }
        }
    }

    fn pace(&self) -> Duration {
        match self.0 {
            Way::Stop | Way::Kill => Duration::from_secs(15),
            // The other nemeses may keep it from being healthy for a while, before each of its nodes.
            Way::Round => Duration::from_secs(60),
        }
    }

    fn strike<'a>(&'a self, stage: &'a Stage, random: &'a mut SmallRng) -> BoxFuture<'a, Result<Struck>> {
        Box::pin(async move {
            let ids = stage.cluster.ids();
            let first = TURN.fetch_add(1, Ordering::Relaxed);
            let count = if matches!(self.0, Way::Round) { ids.len() } else { 1 };
            let turns: Vec<u64> = (first..first + count).map(|turn| ids[turn % ids.len()]).collect();
            let (mut from_ns, mut proofs) = (None, Vec::new());
            for &id in &turns {
                let in_order = match self.0 {
                    Way::Stop => true,
                    Way::Kill => false,
                    Way::Round => random.random_bool(0.5),
                };
                let _alone = stage.all_well().await?;
                from_ns.get_or_insert(stage.clock.now_ns());
                proofs.push(restart(stage, id, in_order).await?);
            }
            let from_ns = from_ns.unwrap_or_else(|| stage.clock.now_ns());
            Ok(Struck { target: names(turns), from_ns, to_ns: stage.clock.now_ns(), proof: proofs.join("; ") })
        })
    }
}

/// Stops or kills a node, starts it and waits until it is ready. Says what showed that it had ended.
async fn restart(stage: &Stage, id: u64, in_order: bool) -> Result<&'static str> {
    let mut nodes = stage.cluster.hold(&[id]).await;
    let node = nodes.first_mut().expect("one was asked for");
    if in_order {
        node.terminate()?;
        let code = node.ended(STOP_WITHIN).await?;
        ensure!(code == Some(0), "n{id} was told to stop: exit code {code:?} within {STOP_WITHIN:?}, not 0");
    } else {
        node.kill()?;
    }
    node.start()?;
    up(stage, node).await?;
    Ok(if in_order { "it ended with exit code 0" } else { "it was gone from /proc" })
}
