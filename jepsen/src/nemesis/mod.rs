//! Faults, by name.
//!
//! Promise: a [`Nemesis`] strikes, proves that the fault took hold, lets it last, ends it, and proves that it has ended.
//! A strike that cannot prove itself is an error, and fails the run: a fault that did not happen shows nothing. What a
//! node must do under a fault (end at a failed sync, refuse a damaged log) is part of the strike, and not doing it is the
//! same kind of error.
//!
//! Strikes of one nemesis follow one another; several nemeses strike independently. Locks on nodes (see
//! [`crate::cluster`]) keep them from meeting in one process.

mod answers;
mod clock;
mod damage;
mod disk;
mod kill;
mod membership;
mod one_way;
mod packets;
mod partition;
mod pause;
mod power;
mod rolling;
mod split;
mod storm;
mod wipe;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures::future::BoxFuture;
use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use tokio::sync::MutexGuard;
use trivet::client::Connection;
use trivet::types::{Error, Kind, Reason, ShardId, TableId};
use trivet::wire::admin::{ShardDetails, TableDetails, Topology};

use crate::cluster::{Cluster, HEALTHY_WITHIN, Held, Wants, tail};
use crate::history::Stopwatch;

/// Shards of a table, on average, from which on none is split unless two were merged: a run's cluster is small, and its length is not
/// to decide how much every node has to do. Of all tables together it is within these bounds.
const SHARDS_OF_A_TABLE: usize = 8;
const SHARDS_OF_ALL: std::ops::RangeInclusive<usize> = 40..=72;
/// How long one node is asked to change something, or how things are.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// What nemeses work on.
pub struct Stage {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// The clock of the histories.
    pub clock: Stopwatch,
    /// The longest time that a fault may last.
    pub longest: Duration,
    /// So many nemeses strike at once that there may be no time without a fault.
    pub crowded: bool,
}

/// A fault that took hold and was ended.
#[derive(Clone, Debug)]
pub struct Struck {
    /// What it hit.
    pub target: String,
    /// When it took hold.
    pub from_ns: u64,
    /// When it was ended.
    pub to_ns: u64,
    /// What showed that it took hold.
    pub proof: String,
}

/// A node did under a fault what it must not do: as bad as a wrong answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Misbehaved(pub String);

/// Other faults left no time for this one, and it has left nothing behind. Enough of its strikes are needed all the same.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Hindered(pub String);

/// One kind of fault.
pub trait Nemesis: Send + Sync {
    /// Its name.
    fn name(&self) -> &'static str;

    /// What it does, in a sentence.
    fn what(&self) -> &'static str;

    /// What it needs of the machine.
    fn wants(&self) -> Wants {
        Wants::default()
    }

    /// The smallest cluster it makes sense on.
    fn nodes_min(&self) -> u64 {
        3
    }

    /// How many nodes the cluster is given for its sake, if it would have fewer.
    fn nodes_wanted(&self) -> u64 {
        3
    }

    /// It must strike at least once in this time, or the run is vacuous.
    fn pace(&self) -> Duration {
        Duration::from_secs(15)
    }

    /// Texts in a node's ERROR lines that this fault explains.
    fn excuses(&self) -> &'static [&'static str] {
        &[]
    }

    /// Strikes once: makes the fault, proves it, lets it last, ends it and proves that.
    fn strike<'a>(&'a self, stage: &'a Stage, random: &'a mut SmallRng) -> BoxFuture<'a, Result<Struck>>;
}

/// Every nemesis there is.
pub fn all() -> Vec<Arc<dyn Nemesis>> {
    let mut all: Vec<Arc<dyn Nemesis>> = Vec::new();
    all.extend(kill::all());
    all.push(Arc::new(pause::Pause));
    all.extend(partition::all());
    all.push(Arc::new(one_way::OneWay));
    all.extend(packets::all());
    all.extend(clock::all());
    all.extend(power::all());
    all.extend(damage::all());
    all.extend(disk::all());
    all.push(Arc::new(wipe::Wipe));
    all.extend(answers::all());
    all.extend(rolling::all());
    all.extend(membership::all());
    all.push(Arc::new(split::Split));
    all.push(Arc::new(storm::Storm));
    all
}

/// The nemesis of this name; `kill` stands for any of `kill-one`, `kill-all` and so on, drawn anew for each strike,
/// unless there is one of exactly that name. Those that the machine or the cluster cannot give are left out, with the
/// reason.
pub fn named(name: &str, possible: impl Fn(&dyn Nemesis) -> Result<(), String>) -> Result<Arc<dyn Nemesis>, String> {
    let everything = all();
    let family = |nemesis: &Arc<dyn Nemesis>| nemesis.name().split_once('-').is_some_and(|(family, _)| family == name);
    let mut members: Vec<_> = everything.iter().filter(|nemesis| nemesis.name() == name).cloned().collect();
    let exact = !members.is_empty();
    if !exact {
        members = everything.iter().filter(|nemesis| family(nemesis)).cloned().collect();
    }
    if members.is_empty() {
        return Err(format!("there is no nemesis `{name}`; --list shows all"));
    }
    let mut reason = String::new();
    members.retain(|nemesis| possible(nemesis.as_ref()).map_err(|why| reason = why).is_ok());
    match (members.len(), exact) {
        (0, _) => Err(format!("{name}: {reason}")),
        (1, _) => Ok(members.remove(0)),
        _ => Ok(Arc::new(Any { name: name.to_owned().leak(), members })),
    }
}

/// One of several, drawn for each strike.
struct Any {
    name: &'static str,
    members: Vec<Arc<dyn Nemesis>>,
}

impl Nemesis for Any {
    fn name(&self) -> &'static str {
        self.name
    }

    fn what(&self) -> &'static str {
        "One of several"
    }

    fn wants(&self) -> Wants {
        self.members.iter().fold(Wants::default(), |wants, member| wants.and(member.wants()))
    }

    fn nodes_wanted(&self) -> u64 {
        self.members.iter().map(|member| member.nodes_wanted()).max().unwrap_or_default()
    }

    fn pace(&self) -> Duration {
        self.members.iter().map(|member| member.pace()).max().unwrap_or_default()
    }

    fn excuses(&self) -> &'static [&'static str] {
        let all: Vec<&str> = self.members.iter().flat_map(|member| member.excuses().iter().copied()).collect();
        // Made once or twice in a run.
        all.leak()
    }

    fn strike<'a>(&'a self, stage: &'a Stage, random: &'a mut SmallRng) -> BoxFuture<'a, Result<Struck>> {
        Box::pin(async move {
            let member = self.members.choose(random).expect("it has members");
            let mut struck = member.strike(stage, random).await?;
            struck.target =
                format!("{} {}", member.name().trim_start_matches(self.name).trim_matches('-'), struck.target);
            Ok(struck)
        })
    }
}

impl Stage {
    /// A time between these seconds and at most the longest, short ones as likely as long ones on a scale of powers.
    fn some_time(&self, seconds: Range<f64>, random: &mut SmallRng) -> Duration {
        let most = seconds.end.min(self.longest.as_secs_f64()).max(seconds.start * 1.01);
        let drawn = random.random_range(seconds.start.ln()..most.ln());
        Duration::from_secs_f64(drawn.exp())
    }

    /// Any node; with an even chance the one that leads most.
    async fn some_node(&self, random: &mut SmallRng) -> u64 {
        let ids = self.cluster.ids();
        let any = *ids.choose(random).expect("a cluster has nodes");
        if random.random_bool(0.5) { self.cluster.leader().await.unwrap_or(any) } else { any }
    }

    /// Asks the nodes in turn, in a random order, until one answers; else the last one's refusal.
    async fn ask<T, F, Fut>(&self, random: &mut SmallRng, question: F) -> Result<T, Error>
    where
        F: Fn(Connection, tokio::time::Instant) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let mut connections = self.cluster.connections().to_vec();
        connections.shuffle(random);
        let mut last = Error::new(Reason::NotReady, "a cluster without nodes was asked");
        for connection in connections {
            match question(connection, tokio::time::Instant::now() + ASK_WITHIN).await {
                Ok(answer) => return Ok(answer),
                // Another node would say the same.
                Err(error) if error.kind() == Kind::Invalid => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// So many nodes, in a random order.
    fn some_nodes(&self, count: usize, random: &mut SmallRng) -> Vec<u64> {
        let mut ids = self.cluster.ids();
        ids.shuffle(random);
        ids.truncate(count);
        ids
    }

    /// The size of the smallest majority.
    fn majority(&self) -> usize {
        self.cluster.ids().len() / 2 + 1
    }

    /// The largest number of nodes whose loss leaves a majority.
    fn minority(&self) -> usize {
        self.cluster.ids().len() - self.majority()
    }

    /// A nemesis that takes a node's data for good waits until all others have everything, and no other one does the same
    /// as long as it holds what it gets here: two at once would be the loss of a majority.
    async fn all_well(&self) -> Result<MutexGuard<'_, ()>> {
        let alone = self.cluster.replacing.lock().await;
        self.healthy_again().await?;
        Ok(alone)
    }

    /// Waits until the cluster is healthy; that it does not become so is the cluster's fault.
    async fn healthy_again(&self) -> Result<()> {
        let healthy = self.cluster.healthy(2 * HEALTHY_WITHIN).await;
        healthy.map(|_| ()).map_err(|error| Misbehaved(format!("{error:#}")).into())
    }
}

/// Waits until a node that was started is ready; an error if it ends instead, or does not get there in time.
async fn up(stage: &Stage, node: &mut Held) -> Result<()> {
    let id = node.fixed.id;
    let patience = Instant::now() + 2 * HEALTHY_WITHIN;
    loop {
        if let Some(code) = node.look()? {
            let said = tail(&node.fixed.logged(), 1);
            bail!(Misbehaved(format!("node {id} ended with {code} instead of coming back; it said: {said}")));
        }
        if stage.cluster.is_ready(id).await {
            return Ok(());
        }
        if Instant::now() >= patience {
            let (patience, said) = (2 * HEALTHY_WITHIN, tail(&node.fixed.logged(), 1));
            bail!(Misbehaved(format!("node {id} runs and is not ready after {patience:?}; it said: {said}")));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Some shard of the users' tables. A table is drawn first: a view or a small table is struck as often as one of many
/// shards.
fn some_shard<'t>(topology: &'t Topology, random: &mut SmallRng) -> Option<&'t ShardDetails> {
    let tables: Vec<_> = users_tables(topology).filter(|table| !table.shards.is_empty()).collect();
    tables.choose(random)?.shards.choose(random)
}

/// Some shard with its right neighbour; a table is drawn first, as for [`some_shard`].
fn some_neighbours(topology: &Topology, random: &mut SmallRng) -> Option<(ShardId, ShardId)> {
    let pairs_of = |table: &TableDetails| -> Vec<(ShardId, ShardId)> {
        let pairs = table.shards.iter().flat_map(|left| table.shards.iter().map(move |right| (left, right)));
        pairs.filter(|(left, right)| left.end == right.start).map(|(left, right)| (left.id, right.id)).collect()
    };
    let tables: Vec<_> = users_tables(topology).map(pairs_of).filter(|pairs| !pairs.is_empty()).collect();
    tables.choose(random)?.choose(random).copied()
}

/// Whether the users' tables have so many shards that none is split any more.
fn are_enough(topology: &Topology) -> bool {
    let tables = users_tables(topology).count();
    let most = (tables * SHARDS_OF_A_TABLE).clamp(*SHARDS_OF_ALL.start(), *SHARDS_OF_ALL.end());
    users_tables(topology).map(|table| table.shards.len()).sum::<usize>() >= most
}

/// All tables but the cluster's own.
fn users_tables(topology: &Topology) -> impl Iterator<Item = &TableDetails> {
    topology.tables.iter().filter(|table| table.table.id != TableId::SYSTEM)
}

/// Nodes in words.
fn names(ids: impl IntoIterator<Item = u64>) -> String {
    ids.into_iter().map(|id| format!("n{id}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_families_stand_for_their_members() {
        let mut names: Vec<_> = all().iter().map(|nemesis| nemesis.name()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        let anything = |_: &dyn Nemesis| Ok(());
        assert_eq!(named("kill-all", anything).expect("exact").name(), "kill-all");
        assert_eq!(named("disk", anything).expect("a family").name(), "disk");
        assert!(named("dis", anything).is_err(), "no abbreviations");
        let none = named("disk", |_: &dyn Nemesis| Err("no root".to_owned()));
        assert_eq!(none.err().as_deref(), Some("disk: no root"));
    }
}
