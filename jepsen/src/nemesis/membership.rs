//! Who is a member, and where replicas are, changes: a replica moves, a node drains, a node leaves for good and another
//! comes in its place. Nothing is lost by it and nothing stands still; what was begun is done in bounded time.
//!
//! A node more than a shard has replicas makes room for all of it. A node that has left may not come back with its
//! data, so its directory is emptied and it joins as a stranger under the same number.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::future::BoxFuture;
use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use tokio::time::Instant;
use trivet::types::{NodeId, Reason, ShardId};
use trivet::wire::admin::Topology;

use super::{Misbehaved, Nemesis, Stage, Struck, some_shard, wipe};
use crate::cluster::HEALTHY_WITHIN;

/// Within this a move or a drain must be done, whatever else goes on.
const DONE_WITHIN: Duration = HEALTHY_WITHIN.saturating_mul(2);
/// Within this the process of a node that has left must have ended: it has to hear of it first.
const ENDS_WITHIN: Duration = HEALTHY_WITHIN;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Clone, Copy)]
enum Change {
    Move,
    Drain,
    Replace,
}

struct Membership(Change);

pub(super) fn all() -> Vec<Arc<dyn Nemesis>> {
    [Change::Move, Change::Drain, Change::Replace]
        .map(|change| Arc::new(Membership(change)) as Arc<dyn Nemesis>)
        .to_vec()
}

impl Nemesis for Membership {
    fn name(&self) -> &'static str {
        match self.0 {
            Change::Move => "membership-move",
            Change::Drain => "membership-drain",
            Change::Replace => "membership-replace",
        }
    }

    fn what(&self) -> &'static str {
        match self.0 {
            Change::Move => "a replica of some shard is moved to a node without one; it must be there soon",
            Change::Drain => "some node drains, until it is empty or for a while, and serves again",
            Change::Replace => "some node drains, is decommissioned, ends, and a fresh one joins in its place",
        }
    }

    fn nodes_wanted(&self) -> u64 {
        4
    }

    fn pace(&self) -> Duration {
        // All that lies on a node goes somewhere else, two shards at a time.
        Duration::from_secs(60)
    }

    fn excuses(&self) -> &'static [&'static str] {
        match self.0 {
            Change::Replace => &["this node was decommissioned"],
            Change::Move | Change::Drain => &[],
        }
    }

    fn strike<'a>(&'a self, stage: &'a Stage, random: &'a mut SmallRng) -> BoxFuture<'a, Result<Struck>> {
        Box::pin(async move {
            match self.0 {
                Change::Move => relocate(stage, random).await,
                Change::Drain => drain(stage, random).await,
                Change::Replace => replace(stage, random).await,
            }
        })
    }
}

/// A shard of which some node has no replica: the shard, a node that has one, and one that has not.
pub(super) fn some_move(topology: &Topology, random: &mut SmallRng) -> Option<(ShardId, NodeId, NodeId)> {
    let shard = some_shard(topology, random)?;
    let has = |node: &NodeId| shard.replicas.iter().any(|replica| replica.node == *node);
    let serving = topology.nodes.iter().filter(|node| node.alive && node.standing == "serving");
    let free: Vec<NodeId> = serving.map(|node| node.id).filter(|node| !has(node)).collect();
    Some((shard.id, shard.replicas.choose(random)?.node, *free.choose(random)?))
}

/// Waits until the members of a shard are those that are wanted.
pub(super) async fn settled(stage: &Stage, random: &mut SmallRng, shard: ShardId) -> Result<()> {
    let until = Instant::now() + DONE_WITHIN;
    loop {
        let asked = stage.ask(random, |node, until| async move { node.describe_shard(shard, until).await }).await;
        let said = match asked {
            Ok(details) if details.settled == Some(true) => return Ok(()),
            Ok(details) => format!("{details:?}"),
            // Its left neighbour has taken it over meanwhile.
            Err(error) if error.reason == Reason::UnknownShard => return Ok(()),
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() >= until {
            bail!(Misbehaved(format!(
                "the replicas of {shard} are not where they are wanted after {DONE_WITHIN:?}: {said}"
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn relocate(stage: &Stage, random: &mut SmallRng) -> Result<Struck> {
    let until = Instant::now() + DONE_WITHIN;
    let from_ns = stage.clock.now_ns();
    let mut last = anyhow::anyhow!("no shard has room to move");
    while Instant::now() < until {
        let topology = stage.ask(random, |node, until| async move { node.topology(until).await }).await;
        let wish = topology.map(|topology| some_move(&topology, random));
        match wish {
            Ok(Some((shard, from, to))) => {
                let moved = stage
                    .ask(random, |node, until| async move { node.move_shard(shard, from, to, false, until).await });
                match moved.await {
                    Ok(_) => {
                        settled(stage, random, shard).await?;
                        let (target, proof) = (format!("{shard} of n{}", from.0), format!("it went to n{}", to.0));
                        return Ok(Struck { target, from_ns, to_ns: stage.clock.now_ns(), proof });
                    }
                    // It may be moving already, or the node may be gone: another one, next time.
                    Err(error) => last = error.into(),
                }
            }
            Ok(None) => {}
            Err(error) => last = error.into(),
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(last.context(Misbehaved(format!("nothing could be moved for {DONE_WITHIN:?}"))))
}

/// How many replicas are wanted on a node and, where it was asked, held by it, without that of the catalog.
async fn load(stage: &Stage, random: &mut SmallRng, id: u64) -> Result<u64> {
    let balance = stage.ask(random, |node, until| async move { node.balance(until).await }).await?;
    let wanted = balance.nodes.iter().find(|share| share.node.0 == id).map_or(0, |share| share.replicas);
    let status = stage.ask(random, |node, until| async move { node.status(until).await }).await?;
    let held = status.nodes.iter().find(|node| node.id.0 == id).and_then(|node| node.replicas);
    Ok(wanted.max(held.map_or(0, |held| u64::from(held).saturating_sub(1))))
}

/// Wants something of a node, whoever has to be asked for it and however long that takes.
async fn want(stage: &Stage, random: &mut SmallRng, id: u64, standing: &'static str) -> Result<()> {
    let until = Instant::now() + DONE_WITHIN;
    loop {
        let asked = |node: trivet::client::Connection, until| async move {
            node.set_standing(NodeId(id), standing, false, until).await
        };
        match stage.ask(random, asked).await {
            Ok(report) => {
                let said = report.nodes.iter().find(|share| share.node.0 == id).map(|share| share.standing.clone());
                ensure!(said.as_deref() == Some(standing), "n{id} was to be {standing} and is {said:?}");
                return Ok(());
            }
            Err(error) if Instant::now() >= until => {
                let error = anyhow::Error::from(error);
                return Err(
                    error.context(Misbehaved(format!("nobody takes for {DONE_WITHIN:?} that n{id} is {standing}")))
                );
            }
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Has some node that holds something drain, for at least this long and until something has left it. Says which, how many
/// replicas it had and how many are left.
async fn begin(stage: &Stage, random: &mut SmallRng, least: Duration) -> Result<(u64, u64, u64)> {
    let found = Instant::now() + DONE_WITHIN;
    let (id, had) = loop {
        let id = stage.some_node(random).await;
        match load(stage, random, id).await {
            Ok(had) if had > 0 => break (id, had),
            said if Instant::now() >= found => bail!(Misbehaved(format!("nothing can be drained: {said:?}"))),
            _ => tokio::time::sleep(LOOK).await,
        }
    };
    want(stage, random, id, "draining").await?;
    let (begun, mut left) = (Instant::now(), had);
    while left > 0 && (left >= had || begun.elapsed() < least) {
        if begun.elapsed() >= DONE_WITHIN {
            bail!(Misbehaved(format!("n{id} drains and still has {left} of {had} replicas after {DONE_WITHIN:?}")));
        }
        tokio::time::sleep(LOOK).await;
        // Whoever is asked may know less of the others than the one before.
        if let Ok(now) = load(stage, random, id).await {
            left = now;
        }
    }
    Ok((id, had, left))
}

async fn drain(stage: &Stage, random: &mut SmallRng) -> Result<Struck> {
    let from_ns = stage.clock.now_ns();
    // Called off half the time, in the middle of some moves.
    let least = if random.random_bool(0.5) { stage.some_time(0.5..10.0, random) } else { DONE_WITHIN };
    let (id, had, left) = begin(stage, random, least).await?;
    want(stage, random, id, "serving").await?;
    let proof = format!("{} of its {had} replicas went elsewhere", had.saturating_sub(left));
    Ok(Struck { target: format!("n{id}"), from_ns, to_ns: stage.clock.now_ns(), proof })
}

async fn replace(stage: &Stage, random: &mut SmallRng) -> Result<Struck> {
    let from_ns = stage.clock.now_ns();
    let (id, had, _) = begin(stage, random, DONE_WITHIN).await?;
    // From here on its data is gone for good, and nobody else's may be at the same time.
    let _alone = stage.all_well().await?;
    let mut nodes = stage.cluster.hold(&[id]).await;
    let node = nodes.first_mut().context("one was asked for")?;
    let until = Instant::now() + DONE_WITHIN;
    loop {
        let asked =
            |node: trivet::client::Connection, until| async move { node.decommission(NodeId(id), false, until).await };
        match stage.ask(random, asked).await {
            Ok(()) => break,
            Err(error) if Instant::now() >= until => {
                let error = anyhow::Error::from(error);
                return Err(error.context(Misbehaved(format!("n{id} is empty and may not leave for {DONE_WITHIN:?}"))));
            }
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
    let Some(code) = node.ended(ENDS_WITHIN).await? else {
        bail!(Misbehaved(format!("n{id} was decommissioned and goes on for {ENDS_WITHIN:?}")));
    };
    ensure!(code != 0, "n{id} was decommissioned and ended with 0, as if it might be started again");
    wipe::replace(stage, node).await?;
    let proof = format!("its {had} replicas went elsewhere, it ended with {code}, and a new one joined");
    Ok(Struck { target: format!("n{id}"), from_ns, to_ns: stage.clock.now_ns(), proof })
}
