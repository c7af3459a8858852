//! A rolling restart: one node after the other is told to stop, ends in order, and comes back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::BoxFuture;
use rand::rngs::SmallRng;

use super::{Nemesis, Stage, Struck, up};

/// A node that is told to stop lets calls in flight end (for 10 s at most) and closes its storage.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// Whose turn it was last.
static TURN: AtomicUsize = AtomicUsize::new(0);

pub(super) struct Rolling;

impl Nemesis for Rolling {
    fn name(&self) -> &'static str {
        "rolling"
    }

    fn what(&self) -> &'static str {
        "SIGTERM of one node after the other; each must end with 0 and come back before the next"
    }

    fn strike<'a>(&'a self, stage: &'a Stage, _: &'a mut SmallRng) -> BoxFuture<'a, Result<Struck>> {
        Box::pin(async move {
            let _alone = stage.all_well().await?;
            let ids = stage.cluster.ids();
            let id = ids[TURN.fetch_add(1, Ordering::Relaxed) % ids.len()];
            let mut nodes = stage.cluster.hold(&[id]).await;
            let node = nodes.first_mut().expect("one was asked for");
            let from_ns = stage.clock.now_ns();
            node.terminate()?;
            let code = node.ended(STOP_WITHIN).await?;
            ensure!(code == Some(0), "n{id} was told to stop: exit code {code:?} within {STOP_WITHIN:?}, not 0");
            node.start()?;
            let to_ns = stage.clock.now_ns();
            up(stage, node).await?;
            Ok(Struck { target: format!("n{id}"), from_ns, to_ns, proof: "it ended with exit code 0".to_owned() })
        })
    }
}
