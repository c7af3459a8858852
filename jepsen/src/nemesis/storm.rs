//! A storm: many changes of the shards in a short time, one upon the other, wherever and whenever they meet.
//!
//! Each [`Step`] is asked of some node at random, a few in a second, without waiting for the one before to be done. Most
//! of what can go wrong between two of them is asked for that way: a move of what is being split, a transfer to what is
//! being moved away. A step that is refused shows nothing and is not counted; a storm in which none was taken is an
//! error. It has ended when every shard that it moved is where it was wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::BoxFuture;
use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use tokio::time::Instant;
use trivet::types::{Error, ShardId};
use trivet::wire::admin::SplitPoint;

use super::{Misbehaved, Nemesis, Stage, Struck, are_enough, membership, some_neighbours, some_shard};
use crate::cluster::HEALTHY_WITHIN;

/// Between two steps, in seconds.
const BETWEEN: std::ops::Range<f64> = 0.05..0.35;
/// Within this something must have been taken, whatever else goes on.
const TAKEN_WITHIN: Duration = HEALTHY_WITHIN;

/// What a storm is made of. Whatever else changes shards belongs here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Split,
    Merge,
    Move,
    Transfer,
}

/// All steps, by how often they are drawn.
const STEPS: [Step; 7] =
    [Step::Split, Step::Merge, Step::Move, Step::Move, Step::Transfer, Step::Transfer, Step::Transfer];

impl Step {
    /// In the words of the proof.
    fn done(self) -> &'static str {
        match self {
            Step::Split => "split",
            Step::Merge => "wanted merged",
            Step::Move => "moved",
            Step::Transfer => "handed over",
        }
    }
}

pub(super) struct Storm;

impl Nemesis for Storm {
    fn name(&self) -> &'static str {
        "storm"
    }

    fn what(&self) -> &'static str {
        "shards are split, merged, moved and handed over at random, several in a second"
    }

    fn nodes_wanted(&self) -> u64 {
        // Else there is nowhere to move.
        4
    }

    fn pace(&self) -> Duration {
        Duration::from_secs(30)
    }

    fn strike<'a>(&'a self, stage: &'a Stage, random: &'a mut SmallRng) -> BoxFuture<'a, Result<Struck>> {
        Box::pin(async move {
            let from_ns = stage.clock.now_ns();
            let (begun, lasts) = (Instant::now(), stage.some_time(2.0..15.0, random));
            let mut taken: BTreeMap<Step, usize> = BTreeMap::new();
            let mut moved = BTreeSet::new();
            let mut last = None;
            while begun.elapsed() < lasts || taken.is_empty() {
                if begun.elapsed() >= lasts.max(TAKEN_WITHIN) {
                    bail!(Misbehaved(format!("nobody takes any change of shards for {TAKEN_WITHIN:?}: {last:?}")));
                }
                let step = *STEPS.choose(random).context("there are steps")?;
                match make(step, stage, random).await {
                    Ok(Some(shard)) => {
                        *taken.entry(step).or_default() += 1;
                        if step == Step::Move {
                            moved.insert(shard);
                        }
                    }
                    // Nothing fits it just now.
                    Ok(None) => {}
                    Err(error) => last = Some(error),
                }
                tokio::time::sleep(Duration::from_secs_f64(random.random_range(BETWEEN))).await;
            }
            let to_ns = stage.clock.now_ns();
            for shard in moved {
                membership::settled(stage, random, shard).await?;
            }
            let words: Vec<String> = taken.iter().map(|(step, count)| format!("{count} {}", step.done())).collect();
            Ok(Struck { target: "shards".to_owned(), from_ns, to_ns, proof: words.join(", ") })
        })
    }
}

/// Makes one step with some shard; which, or none if none fits. Refusals are errors.
async fn make(step: Step, stage: &Stage, random: &mut SmallRng) -> Result<Option<ShardId>, Error> {
    let topology = stage.ask(random, |node, until| async move { node.topology(until).await }).await?;
    let Some(shard) = some_shard(&topology, random) else { return Ok(None) };
    let id = shard.id;
    match step {
        Step::Split if are_enough(&topology) => Ok(None),
        Step::Split => {
            let asked = |node: trivet::client::Connection, until| async move {
                node.split_shard(id, SplitPoint::Middle, false, until).await
            };
            stage.ask(random, asked).await.map(|report| Some(report.left.id))
        }
        Step::Merge => {
            let Some((left, right)) = some_neighbours(&topology, random) else { return Ok(None) };
            let asked = |node: trivet::client::Connection, until| async move {
                node.merge_shards(left, right, false, until).await
            };
            stage.ask(random, asked).await.map(|_| Some(left))
        }
        Step::Move => {
            let Some((shard, from, to)) = membership::some_move(&topology, random) else { return Ok(None) };
            let asked = |node: trivet::client::Connection, until| async move {
                node.move_shard(shard, from, to, false, until).await
            };
            stage.ask(random, asked).await.map(|_| Some(shard))
        }
        Step::Transfer => {
            let voters = shard.replicas.iter().filter(|replica| replica.voter && shard.leader != Some(replica.node));
            let voters: Vec<_> = voters.map(|replica| replica.node).collect();
            let Some(&to) = voters.choose(random) else { return Ok(None) };
            let asked =
                |node: trivet::client::Connection, until| async move { node.transfer_leader(id, to, until).await };
            stage.ask(random, asked).await.map(|()| Some(id))
        }
    }
}
