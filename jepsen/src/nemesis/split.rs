//! Shards are split while everything else goes on.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::BoxFuture;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use tokio::time::Instant;
use trivet::types::{Kind, ShardId};
use trivet::wire::admin::{SplitPoint, SplitReport, TableDetails, Topology};

use super::{ASK_WITHIN, Hindered, Nemesis, Stage, Struck, are_enough, some_neighbours, users_tables};
use crate::cluster::HEALTHY_WITHIN;

/// Shards that are tried before another node is asked which there are.
const TRIES: usize = 16;
/// Within this a split that is wanted must have happened, whatever else goes on; unless so much goes on that there is no moment for it.
const SPLIT_WITHIN: Duration = HEALTHY_WITHIN.saturating_mul(2);
/// Between two rounds over the nodes.
const PAUSE: Duration = Duration::from_millis(200);

pub(super) struct Split;

impl Nemesis for Split {
    fn name(&self) -> &'static str {
        "split"
    }

    fn what(&self) -> &'static str {
        "some shard is split where half of its bytes lie before, of many after two were merged; it must have happened soon"
    }

    fn strike<'a>(&'a self, stage: &'a Stage, random: &'a mut SmallRng) -> BoxFuture<'a, Result<Struck>> {
        Box::pin(async move {
            let from_ns = stage.clock.now_ns();
            let until = Instant::now() + SPLIT_WITHIN;
            let mut last = None;
            while Instant::now() < until {
                match split_some(stage, random).await {
                    Ok(SplitReport { left, right }) => {
                        let proof = format!("shard {} has {}", right.id.0, right.epoch);
                        let target = format!("shard {}", left.id.0);
                        return Ok(Struck { target, from_ns, to_ns: stage.clock.now_ns(), proof });
                    }
                    Err(error) => last = Some(error),
                }
                tokio::time::sleep(PAUSE).await;
            }
            let why = last.context("no time to split anything")?;
            Err(match stage.crowded {
                true => why.context(Hindered(format!("nothing could be split for {SPLIT_WITHIN:?}"))),
                false => why,
            })
        })
    }
}

/// Has some node split the shard of some table that has been split the least there.
async fn split_some(stage: &Stage, random: &mut SmallRng) -> Result<SplitReport> {
    let mut connections: Vec<_> = stage.cluster.connections().iter().collect();
    let first = connections.choose(random).copied().context("a cluster has nodes")?;
    connections.sort_by_key(|connection| !std::ptr::eq(*connection, first));
    let mut last = None;
    for connection in connections {
        let topology = match connection.topology(Instant::now() + ASK_WITHIN).await {
            Ok(topology) => topology,
            Err(error) => {
                last = Some(error);
                continue;
            }
        };
        if are_enough(&topology)
            && let Some((left, right)) = some_neighbours(&topology, random)
            && let Err(error) = connection.merge_shards(left, right, false, Instant::now() + ASK_WITHIN).await
        {
            last = Some(error);
            continue;
        }
        let shards = least_split(&topology, random);
        let mut refused = None;
        for shard in shards {
            match connection.split_shard(shard, SplitPoint::Middle, false, Instant::now() + ASK_WITHIN).await {
                Ok(report) => return Ok(report),
                // A single slot, or nothing in it: the next one.
                Err(error) if error.kind() == Kind::Invalid => refused = Some((shard, error)),
                Err(error) => {
                    last = Some(error);
                    break;
                }
            }
        }
        if let Some((shard, error)) = refused.filter(|_| last.is_none()) {
            bail!("{shard}: {error}");
        }
    }
    Err(last.context("nobody was asked")?.into())
}

/// Of each table in turn the shards that were split the least: views and their sources as often as what has many shards. More than one
/// of each, for in some there is nothing to split.
fn least_split(topology: &Topology, random: &mut SmallRng) -> Vec<ShardId> {
    let mut tables: Vec<&TableDetails> = users_tables(topology).collect();
    tables.shuffle(random);
    let mut ranked = Vec::new();
    for (turn, table) in tables.into_iter().enumerate() {
        let mut shards: Vec<_> = table.shards.iter().map(|shard| (shard.epoch, shard.id)).collect();
        shards.sort_unstable();
        ranked.extend(shards.into_iter().enumerate().map(|(rank, (_, id))| (rank, turn, id)));
    }
    ranked.sort_unstable();
    ranked.into_iter().take(TRIES).map(|(_, _, id)| id).collect()
}
