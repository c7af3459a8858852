//! Chooses what goes wrong next, and puts it right again.

use std::sync::Arc;
use std::time::Duration;

use trivet::catalog::{Directory, Standing, TableEntry};
use trivet::node::Node;
use trivet::raft::Part;
use trivet::runtime::simulation::DiskPace;
use trivet::runtime::{Instant, sleep};
use trivet::types::{NodeId, ShardId, Slot};
use trivet::wire::admin::SplitPoint;

use super::cluster::Cluster;
use super::entropy::Random;
use super::invariants::{self, Watch};
use super::network::Weather;
use super::plan::{Fault, Plan};
use super::run::Report;
use super::views;
use super::workload::TABLE;

/// Between two looks at the invariants.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// How far a wall clock jumps, at most: less than requests are kept, so that none expires.
const JUMP_MS: u64 = 240_000;

/// Shards beyond which none is split: a run has a dozen keys.
const SHARDS_MAX: usize = 8;
/// As many of a source or a view.
const SHARDS_OF_VIEWS_MAX: usize = 4;

/// How closely a birth is looked for, and how often.
const BIRTH_STEP: Duration = Duration::from_millis(1);
const BIRTH_STEPS: usize = 200;
/// As many for a merge, which begins when two groups have their members beside each other.
const MERGE_STEPS: usize = 1_500;
/// Time from the first half of a merge until a crash, at most.
const SEALED_MS_MAX: u64 = 30;

/// What is to be put right, and when.
enum Remedy {
    Boot(usize),
    Resume(usize),
    Heal(Vec<(u64, u64)>),
    Disk(usize),
    Weather,
    Serve(u64),
}

/// The nemesis of one run.
pub struct Nemesis {
    plan: Plan,
    random: Random,
    report: Report,
    pending: Vec<(Instant, Remedy)>,
    wiped: bool,
    /// The least and the most that clocks were off.
    pub skews_ms: (i64, i64),
}

impl Nemesis {
    /// The nemesis of this plan.
    pub fn new(plan: &Plan, random: Random, report: Report, cluster: &Cluster) -> Nemesis {
        let skews = || cluster.members.iter().map(|member| member.skew_ms);
        let skews_ms = (skews().min().unwrap_or(0), skews().max().unwrap_or(0));
        Nemesis { plan: plan.clone(), random, report, pending: Vec::new(), wiped: false, skews_ms }
    }

    /// Lets this much time pass, looking at the invariants and putting right what is due.
    pub async fn pass(&mut self, cluster: &mut Cluster, watch: &mut Watch, time: Duration) {
        let until = now() + time;
        while now() < until && self.report.goes_on() {
            sleep(LOOK_EVERY.min(until - now())).await;
            watch.look(cluster);
            let due = now();
            while let Some(at) = self.pending.iter().position(|(when, _)| *when <= due) {
                let (_, remedy) = self.pending.remove(at);
                self.remedy(cluster, remedy);
            }
        }
    }

    /// Makes trouble for as long as the plan says.
    pub async fn storm(&mut self, cluster: &mut Cluster, watch: &mut Watch) {
        let until = now() + self.plan.storm;
        while now() < until && self.report.goes_on() {
            let pause = self.random.span(self.plan.between.0, self.plan.between.1);
            self.pass(cluster, watch, pause).await;
            let fault = *self.random.pick(&self.plan.faults);
            self.strike(cluster, watch, fault).await;
        }
    }

    /// Puts everything right.
    pub fn heal(&mut self, cluster: &mut Cluster) {
        self.report.event(format_args!("everything is put right"));
        for (_, remedy) in std::mem::take(&mut self.pending) {
            self.remedy(cluster, remedy);
        }
        cluster.network.heal_all();
        cluster.network.set_weather(Weather { lost_per_mille: 0, reset_per_100k: 0, ..self.plan.weather });
        for at in 0..cluster.members.len() {
            cluster.resume(at);
            if !cluster.members[at].up {
                cluster.boot(at);
            }
            cluster.members[at].scope().set_pace(self.plan.pace);
        }
    }

    fn remedy(&mut self, cluster: &mut Cluster, remedy: Remedy) {
        match remedy {
            Remedy::Boot(at) if !cluster.members[at].up => cluster.boot(at),
            Remedy::Boot(_) => {}
            Remedy::Resume(at) => cluster.resume(at),
            Remedy::Heal(links) => links.into_iter().for_each(|(from, to)| cluster.network.heal(from, to)),
            Remedy::Disk(at) => cluster.members[at].scope().set_pace(self.plan.pace),
            Remedy::Serve(id) => self.want(cluster, id, Standing::Serving),
            Remedy::Weather => cluster.network.set_weather(self.plan.weather),
        }
    }

    fn later(&mut self, remedy: Remedy) {
        let lasting = self.random.span(self.plan.lasting.0, self.plan.lasting.1);
        self.pending.push((now() + lasting, remedy));
    }

    /// A node that runs: often the leader of something.
    fn target(&mut self, cluster: &Cluster) -> Option<usize> {
        let running: Vec<usize> = (0..cluster.members.len()).filter(|&at| cluster.members[at].up).collect();
        let leading =
            |node: &Node| node.replicas().all().iter().any(|shard| shard.id() != ShardId::SYSTEM && shard.is_leader());
        let leaders: Vec<usize> = running
            .iter()
            .copied()
            .filter(|&at| cluster.members[at].node().is_some_and(|node| leading(&node)))
            .collect();
        let from = if !leaders.is_empty() && self.random.per_mille(500) { leaders } else { running };
        (!from.is_empty()).then(|| *self.random.pick(&from))
    }

    async fn strike(&mut self, cluster: &mut Cluster, watch: &mut Watch, fault: Fault) {
        let Some(at) = self.target(cluster) else { return };
        let hosts: Vec<u64> =
            cluster.members.iter().map(|member| member.id).chain(101..=100 + self.plan.clients).collect();
        let id = cluster.members[at].id;
        match fault {
            Fault::Crash => {
                cluster.crash(at);
                self.later(Remedy::Boot(at));
            }
            Fault::CrashAll => {
                self.report.count("crashes of all nodes");
                for at in 0..cluster.members.len() {
                    if cluster.members[at].up {
                        cluster.crash(at);
                    }
                    self.later(Remedy::Boot(at));
                }
            }
            Fault::Wipe => {
                // One disk in a run: who loses more than a minority of what was promised to last loses data.
                if !self.wiped {
                    self.wiped = true;
                    cluster.crash(at);
                    cluster.wipe(at);
                    self.later(Remedy::Boot(at));
                }
            }
            Fault::Restart => {
                if !cluster.members[at].paused {
                    cluster.stop(at).await;
                    self.later(Remedy::Boot(at));
                }
            }
            Fault::Pause => {
                cluster.pause(at);
                self.later(Remedy::Resume(at));
            }
            Fault::Partition => {
                let alone = self.random.per_mille(600);
                let side: Vec<u64> = match alone {
                    true => vec![id],
                    false => hosts.iter().copied().filter(|_| self.random.per_mille(500)).collect(),
                };
                // Clients are on both sides, unless the nodes alone are parted.
                let everyone = self.random.per_mille(500);
                let hosts = hosts.iter().filter(|host| everyone || **host <= self.plan.nodes);
                let others: Vec<u64> = hosts.copied().filter(|host| !side.contains(host)).collect();
                let links =
                    side.iter().flat_map(|&one| others.iter().flat_map(move |&other| [(one, other), (other, one)]));
                let links: Vec<(u64, u64)> = links.collect();
                self.report.event(format_args!("{side:?} and {others:?} are parted"));
                self.report.count("partitions");
                links.iter().for_each(|&(from, to)| cluster.network.cut(from, to));
                self.later(Remedy::Heal(links));
            }
            Fault::OneWay => {
                let outwards = self.random.per_mille(500);
                let links = hosts
                    .iter()
                    .filter(|&&host| host != id)
                    .map(|&host| if outwards { (id, host) } else { (host, id) });
                let only_one = self.random.per_mille(400);
                let mut links: Vec<(u64, u64)> = links.collect();
                if only_one {
                    let only = *self.random.pick(&links);
                    links = vec![only];
                }
                self.report.event(format_args!("nothing passes {links:?}"));
                self.report.count("one-way cuts");
                links.iter().for_each(|&(from, to)| cluster.network.cut(from, to));
                self.later(Remedy::Heal(links));
            }
            Fault::Reset => {
                let other = *self.random.pick(&hosts);
                self.report.event(format_args!("connections of {id} and {other} break"));
                self.report.count("resets");
                cluster.network.reset(id, other);
            }
            Fault::SlowDisk => {
                let sync = self.random.span(Duration::from_millis(20), Duration::from_millis(700));
                self.report.event(format_args!("the disk of node {id} takes up to {sync:?}"));
                self.report.count("slow disks");
                cluster.members[at].scope().set_pace(DiskPace { write: sync / 8, sync, work: sync / 4 });
                self.later(Remedy::Disk(at));
            }
            Fault::Storm => {
                let slow = self.random.span(Duration::from_millis(20), Duration::from_millis(150));
                self.report.event(format_args!("messages take up to {slow:?}"));
                self.report.count("storms");
                cluster.network.set_weather(Weather {
                    latency: (self.plan.weather.latency.0, slow),
                    lost_per_mille: self.random.below(200),
                    reset_per_100k: 500,
                    ..self.plan.weather
                });
                self.later(Remedy::Weather);
            }
            Fault::Clock => {
                let jump = i64::try_from(self.random.within(1, 2 * JUMP_MS)).expect("small");
                let skew_ms = jump - i64::try_from(JUMP_MS).expect("small");
                cluster.set_clock(at, skew_ms);
                self.skews_ms = (self.skews_ms.0.min(skew_ms), self.skews_ms.1.max(skew_ms));
            }
            Fault::Transfer => self.transfer(cluster, at),
            Fault::Split => self.split(cluster, watch, at).await,
            Fault::Verdict => self.verdict(cluster, at),
            Fault::Merge => self.merge(cluster, watch, at).await,
            Fault::Move => self.relocate(cluster, at),
            Fault::Drain => {
                self.report.count("drains");
                self.want(cluster, id, Standing::Draining);
                self.later(Remedy::Serve(id));
            }
            Fault::Snapshot => {
                let Some(node) = cluster.members[at].node() else { return };
                self.report.event(format_args!("node {id} trims its logs"));
                cluster.members[at].scope().spawn(async move {
                    for shard in node.replicas().all() {
                        shard.group().snapshot_and_purge().await;
                    }
                });
            }
        }
    }

    /// A table whose shards are struck; with views, half of the time one of those or their source.
    fn table(&mut self, directory: &Directory) -> Option<Arc<TableEntry>> {
        let name = match self.plan.views {
            Some(_) if self.random.per_mille(500) => *self.random.pick(&views::TABLES),
            _ => TABLE,
        };
        directory.table_by_name(name).cloned()
    }

    /// Asks a node to split some shard somewhere. Whether that works out while other things go wrong, and when, is open.
    /// Sometimes a node crashes right after it has applied it.
    async fn split(&mut self, cluster: &mut Cluster, watch: &mut Watch, at: usize) {
        let (Some(node), Some(control)) = (cluster.members[at].node(), cluster.members[at].control()) else { return };
        let Some(table) = self.table(&node.directory()) else { return };
        let shards: Vec<ShardId> = table.shards.iter().map(|shard| shard.id).collect();
        let shards_max = if table.descriptor.name == TABLE { SHARDS_MAX } else { SHARDS_OF_VIEWS_MAX };
        if shards.len() >= shards_max {
            return;
        }
        let slot = Slot(u16::try_from(self.random.below(1 << 16)).expect("a slot"));
        let place = table.layout.cut_before_slot(slot).expect("a hash table");
        let shard = table.shards.locate(&place).id;
        let of_views = table.descriptor.name != TABLE;
        let (id, report) = (cluster.members[at].id, self.report.clone());
        report.event(format_args!("node {id} is asked to split {shard} at slot {}", slot.0));
        cluster.members[at].scope().spawn(async move {
            if let Ok(made) = control.split_shard(shard, SplitPoint::Slot(slot), false).await {
                report.event(format_args!("{shard} was split, {} is new", made.right.id));
                report.count("splits");
                if of_views {
                    report.count("splits of views and their sources");
                }
            }
        });
        if !self.random.per_mille(400) {
            return;
        }
        let hosted = |cluster: &Cluster, at: usize| invariants::replicas_stored(cluster.members[at].engine());
        let before: Vec<usize> = (0..cluster.members.len()).map(|at| hosted(cluster, at)).collect();
        for _ in 0..BIRTH_STEPS {
            self.pass(cluster, watch, BIRTH_STEP).await;
            let born = |at: &usize| cluster.members[*at].up && hosted(cluster, *at) > before[*at];
            if let Some(at) = (0..cluster.members.len()).find(born) {
                self.report.count("crashes after a birth");
                cluster.crash(at);
                return self.later(Remedy::Boot(at));
            }
        }
    }

    /// Lets a node believe that another one, which runs, is gone.
    fn verdict(&mut self, cluster: &Cluster, gone: usize) {
        let judges = (0..cluster.members.len()).filter(|&at| at != gone && cluster.members[at].up);
        let judges: Vec<usize> = judges.collect();
        if judges.is_empty() {
            return;
        }
        let judge = *self.random.pick(&judges);
        let Some(node) = cluster.members[judge].node() else { return };
        let gone = NodeId(cluster.members[gone].id);
        self.report.event(format_args!("node {} believes that {gone} is gone", cluster.members[judge].id));
        self.report.count("wrong verdicts");
        cluster.members[judge].scope().spawn(async move { node.take_over(gone).await });
    }

    /// Asks a node to merge some shard with its right neighbour. Whether that works out while other things go wrong, and
    /// when, is open. Sometimes a node crashes right after it has sealed or taken over a replica.
    async fn merge(&mut self, cluster: &mut Cluster, watch: &mut Watch, at: usize) {
        let (Some(node), Some(control)) = (cluster.members[at].node(), cluster.members[at].control()) else { return };
        let Some(table) = self.table(&node.directory()) else { return };
        let shards: Vec<ShardId> = table.shards.iter().map(|shard| shard.id).collect();
        let pairs: Vec<(ShardId, ShardId)> = shards.iter().copied().zip(shards.iter().copied().skip(1)).collect();
        if pairs.is_empty() {
            return;
        }
        let (left, right) = *self.random.pick(&pairs);
        let report = self.report.clone();
        report.event(format_args!("node {} is asked to merge {left} with {right}", cluster.members[at].id));
        cluster.members[at].scope().spawn(async move {
            if control.merge_shards(left, right, false).await.is_ok() {
                report.event(format_args!("{left} is to take over {right}"));
            }
        });
        let sealed = |cluster: &Cluster, at: usize| invariants::is_sealed(cluster.members[at].engine(), right);
        for _ in 0..MERGE_STEPS {
            self.pass(cluster, watch, BIRTH_STEP).await;
            if !(0..cluster.members.len()).any(|at| sealed(cluster, at)) {
                continue;
            }
            self.report.count("merges");
            if table.descriptor.name != TABLE {
                self.report.count("merges of views and their sources");
            }
            if !self.random.per_mille(400) {
                return;
            }
            // One of the entries that follow may be on the disk of some nodes by then, and not of others.
            let more = Duration::from_millis(self.random.below(SEALED_MS_MAX));
            self.pass(cluster, watch, more).await;
            let up = (0..cluster.members.len()).filter(|&at| cluster.members[at].up);
            let up: Vec<usize> = up.collect();
            if up.is_empty() {
                return;
            }
            self.report.count("crashes within a merge");
            let at = *self.random.pick(&up);
            cluster.crash(at);
            return self.later(Remedy::Boot(at));
        }
    }

    /// Asks a node to have a replica of some shard move to another node. Whether that works out, and when, is open.
    fn relocate(&mut self, cluster: &Cluster, at: usize) {
        let (Some(node), Some(control)) = (cluster.members[at].node(), cluster.members[at].control()) else { return };
        let directory = node.directory();
        let Some(table) = self.table(&directory) else { return };
        let shards: Vec<_> = table.shards.iter().cloned().collect();
        let shard = self.random.pick(&shards).clone();
        let free = directory.nodes().map(|row| row.id).filter(|&node| shard.replica_on(node).is_none());
        let free: Vec<_> = free.collect();
        if free.is_empty() {
            return;
        }
        let (from, to) = (self.random.pick(&shard.replicas).node, *self.random.pick(&free));
        let report = self.report.clone();
        report.event(format_args!("{} is to move from {from} to {to}", shard.id));
        cluster.members[at].scope().spawn(async move {
            if control.move_shard(shard.id, from, to, false).await.is_ok() {
                report.event(format_args!("{} moves from {from} to {to}", shard.id));
                report.count("moves");
            }
        });
    }

    /// Wants something of a node, by whoever runs: what comes late comes all the same, as it would from an operator.
    fn want(&mut self, cluster: &Cluster, id: u64, standing: Standing) {
        let running = cluster.members.iter().filter_map(|member| Some((member.control()?, member.scope())));
        let Some((control, scope)) = running.into_iter().next() else { return };
        self.report.event(format_args!("node {id} is to be {}", standing.as_str()));
        scope.spawn(async move {
            let _ = control.set_standing(NodeId(id), standing, false).await;
        });
    }

    fn transfer(&mut self, cluster: &Cluster, at: usize) {
        let Some(node) = cluster.members[at].node() else { return };
        for shard in node.replicas().all() {
            let status = shard.group().status();
            let others: Vec<_> = status.voters.keys().copied().filter(|&voter| voter != status.replica).collect();
            if status.part != Part::Leader || others.is_empty() {
                continue;
            }
            let to = *self.random.pick(&others);
            self.report.event(format_args!("node {} hands {} over to {to}", cluster.members[at].id, shard.id()));
            self.report.count("transfers");
            cluster.members[at].scope().spawn(async move {
                let _ = shard.group().transfer_leader(to).await;
            });
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "inside the simulation this is simulated time")]
fn now() -> Instant {
    Instant::now()
}
