//! `trivet bench`: how fast a cluster is, what it costs, and (`--verify`) whether it keeps its word.
//!
//! Promise: the loop itself costs next to nothing beside the calls it makes, since client and servers may share the
//! cores, and every store is measured by the very same loop. Workers take their next operation from a seeded workload
//! (`workload.rs`), begin it when the pace says (`pace.rs`), call the target (`target.rs`) and note the outcome
//! (`record.rs`). The measured window begins after the warm-up; the servers' CPU time and memory are read from /proc at
//! its two ends (`processes.rs`). What comes out is a report (`report.rs`) for a person or a program.
//!
//! Left out: comparing runs. Interleave the runs to be compared, and compare operations per server CPU-second first.

#[cfg(feature = "peers")]
mod etcd;
mod journal;
mod pace;
mod processes;
mod record;
#[cfg(feature = "peers")]
mod redis;
mod report;
mod target;
mod unary;
mod verify;
mod view;
mod workload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use trivet::client::{Client, ReadFrom};
use trivet::orders::Orders;
use trivet::runtime::{Clock, sleep_until, spawn};
use trivet::types::{ReadLevel, Reason};
use trivet::wire::admin::NewTable;

use self::pace::{Length, Pace};
use self::processes::{Usage, cpu_between, usage};
use self::record::{Recorder, Stall};
use self::report::{Report, Servers, Settings};
use self::target::{Target, Trivet};
use self::workload::{Distribution, Kind, Mix, Numbers, SCAN_ROWS_MAX, Workload};
use super::data::{parse_level, parse_read_from, show_level, show_read_from};
use super::exit::{Ended, Exit, Stop};
use super::{Global, text, time};

/// Measures a cluster, or verifies that it loses and doubles nothing.
///
/// Closed loop by default: each of --concurrency workers begins its next operation when the last one is answered. With
/// --rate operations begin at that rate whatever the answers do, and latency counts from the intended beginning.
///
/// Operations of --mix: read, write, cas (read, then write if unchanged), incr, scan (up to 100 rows of a tag),
/// batch10 (ten keys of a tag, atomically), order (the document of an order; the table is then to be `orders`), list (the 20
/// newest orders of a user; needs the views of `trivet order setup`).
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  trivet bench --load --mix write --concurrency 64 --time 10s
  trivet bench --mix read=95,write=5 --distribution zipfian:0.99 --pids 101,102,103 --json run.json
  trivet bench --rate 1000 --mix write
  trivet bench --mix read --level max-age=500ms --read-from least-loaded
  trivet bench --verify journal.jsonl --time 60s
  trivet bench --verify-only journal.jsonl")]
pub struct Args {
    /// The table; made (hash, --shards) if it does not exist
    #[arg(long, value_name = "TABLE", default_value = "bench")]
    table: String,
    /// Shards of the table, if it is made [default: one for each node]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    shards: Option<u32>,
    /// Workers
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    concurrency: u32,
    /// Open loop: operations begun per second
    #[arg(long, value_name = "PER_SECOND", value_parser = parse_rate)]
    rate: Option<f64>,
    /// Keys
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Bytes of a value
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    value_size: u32,
    /// Rows of each scan [default: any number up to 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=SCAN_ROWS_MAX))]
    scan_rows: Option<u64>,
    /// How keys are chosen: uniform or zipfian:THETA
    #[arg(long, value_name = "D", default_value = "uniform")]
    distribution: Distribution,
    /// Operations and their shares [default: read=95,write=5; with --verify: write=50,incr=40,read=10]
    #[arg(long, value_name = "MIX")]
    mix: Option<Mix>,
    /// How fresh reads are: linearizable, any or max-age=DURATION
    #[arg(long, value_name = "LEVEL", default_value = "linearizable", value_parser = parse_level)]
    level: ReadLevel,
    /// Which replica answers reads: leader, nearest (the quickest) or least-loaded
    #[arg(long, value_name = "WHICH", default_value = "leader", value_parser = parse_read_from, conflicts_with = "spread")]
    read_from: ReadFrom,
    /// Length of the measured window
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = time::parse_duration)]
    time: Duration,
    /// End the window after so many operations instead
    #[arg(long, value_name = "N", conflicts_with = "time", value_parser = clap::value_parser!(u64).range(1..))]
    ops: Option<u64>,
    /// Time before the window
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = time::parse_duration)]
    warm_up: Duration,
    /// First put every key that the mix reads
    #[arg(long)]
    load: bool,
    /// Seed of the workload: the same seed makes the same operations
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// The client routes, but sends each call as a unary call of its own
    #[arg(long)]
    unary: bool,
    /// Unary calls spread over the endpoints by workers that know nothing of shards; nodes forward
    #[arg(long, conflicts_with = "unary")]
    spread: bool,
    /// Clients, each with its own connections (with --spread and peers: connections per endpoint)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    clients: u16,
    /// Threads of this process
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Process ids of the servers: report their CPU time and memory
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pids: Vec<u32>,
    /// Look beside the load how old this view of the table is, and how soon an order shows in it
    #[arg(long, value_name = "VIEW", conflicts_with_all = ["ops", "unary", "spread", "verify", "verify_only"])]
    view: Option<String>,
    /// Write the report to a file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Note every acknowledged write in a journal, then read everything back; exits with 6 on a mismatch
    #[arg(long, value_name = "JOURNAL", conflicts_with_all = ["unary", "spread", "load"])]
    verify: Option<PathBuf>,
    /// Read back what an earlier --verify noted in its journal
    #[arg(long, value_name = "JOURNAL", conflicts_with = "verify")]
    verify_only: Option<PathBuf>,
    /// What to measure
    #[cfg(feature = "peers")]
    #[arg(long, value_enum, default_value_t = Peer::Trivet, conflicts_with_all = ["unary", "spread", "verify", "verify_only"])]
    target: Peer,
    /// Addresses of the other store [default: those of cluster/peers]
    #[cfg(feature = "peers")]
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    peer_endpoints: Vec<String>,
    /// Redis Cluster: after each write wait until so many replicas have it in memory
    #[cfg(feature = "peers")]
    #[arg(long, value_name = "REPLICAS", conflicts_with = "wait_aof")]
    wait: Option<u64>,
    /// Redis Cluster: after each write wait until master and one replica have it on disk (WAITAOF)
    #[cfg(feature = "peers")]
    #[arg(long)]
    wait_aof: bool,
}

/// Stores measured by the same loop.
#[cfg(feature = "peers")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Peer {
    /// Trivet
    Trivet,
    /// etcd, workers spread over its members
    Etcd,
    /// etcd, all at its leader
    EtcdLeader,
    /// Redis Cluster or Valkey
    RedisCluster,
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err(format!("'{text}' is no rate: write operations per second, such as 1000")),
    }
}

impl Args {
    /// Threads the run wants.
    pub fn threads(&self) -> usize {
        usize::from(self.threads)
    }

    fn length(&self) -> Length {
        self.ops.map_or(Length::Time(self.time), Length::Ops)
    }

    fn mix(&self, default: &str) -> Mix {
        self.mix.clone().unwrap_or_else(|| default.parse().expect("the default mix is valid"))
    }

    fn settings(&self, mix: &Mix) -> Settings {
        Settings {
            mix: mix.to_string(),
            concurrency: self.concurrency as usize,
            rate: self.rate,
            keys: self.keys,
            value_bytes: self.value_size as usize,
            distribution: self.distribution.to_string(),
            level: show_level(self.level),
            read_from: show_read_from(self.read_from).to_owned(),
            warm_up_s: self.warm_up.as_secs_f64(),
            seed: self.seed,
        }
    }
}

/// Runs `bench`.
pub async fn run(args: Args, global: &Global) -> Ended {
    if let Some(journal) = &args.verify_only {
        return verify::check_only(journal, global).await;
    }
    if let Some(journal) = &args.verify {
        return verify::run(journal, &args, global).await;
    }
    let mix = args.mix("read=95,write=5");
    let (name, targets) = targets(&args, &mix, global).await?;
    let keys = args.keys;
    let workload = Workload::new(mix.clone(), args.distribution, keys, args.value_size as usize, args.seed);
    let workload = workload.with_scans_of(args.scan_rows);
    if args.load {
        load(&workload, &targets, args.concurrency as usize).await?;
    }
    let looking = match &args.view {
        Some(view) => Some((global.connect_by(true).await?, view.clone())),
        None => None,
    };
    let report = measure(name, &args, args.settings(&mix), Arc::new(workload), &targets, looking).await?;
    let json = serde_json::to_string_pretty(&report).map_err(|error| Stop::error(error.to_string()))?;
    if let Some(file) = &args.json {
        std::fs::write(file, format!("{json}\n"))
            .map_err(|error| Stop::error(format!("cannot write {}: {error}", file.display())))?;
    }
    if global.json() {
        say!("{json}");
    } else {
        say_text!("{}", report.render());
    }
    Ok(if report.all.ops == 0 && report.failed() > 0 { Exit::Unavailable } else { Exit::Ok })
}

/// What the workers talk to, worker n to the n-th (modulo their number), and its name in the report.
async fn targets(args: &Args, mix: &Mix, global: &Global) -> Ended<(String, Vec<Target>)> {
    let connections = usize::from(args.clients);
    #[cfg(feature = "peers")]
    if args.target != Peer::Trivet {
        return peers(args, mix, connections, global.deadline).await;
    }
    let _ = mix;
    let client = global.connect_by(!args.unary).await?;
    table(&client, &args.table, args.shards.unwrap_or(0)).await?;
    if args.spread {
        let (endpoints, deadline) = (&global.endpoints, global.deadline);
        let clock = Clock::system();
        let calls = unary::connect(endpoints, connections, &args.table, args.level, deadline, &clock).await;
        let calls = calls.map_err(|message| Stop { exit: Exit::Unavailable, message })?;
        return Ok(("trivet-spread".to_owned(), calls.into_iter().map(Target::Unary).collect()));
    }
    let mut clients = vec![client];
    while clients.len() < connections {
        clients.push(global.connect_by(!args.unary).await?);
    }
    let of = |client: Client| {
        let table = client.table(&*args.table).at(args.level).read_from(args.read_from);
        Target::Trivet(Trivet { table, orders: (Orders::new(client), args.level) })
    };
    let name = if args.unary { "trivet-unary" } else { "trivet" };
    Ok((name.to_owned(), clients.into_iter().map(of).collect()))
}

#[cfg(feature = "peers")]
async fn peers(args: &Args, mix: &Mix, connections: usize, deadline: Duration) -> Ended<(String, Vec<Target>)> {
    let unavailable = |message| Stop { exit: Exit::Unavailable, message };
    let lacks = |kinds: &[Kind], name: &str| match kinds.iter().find(|kind| mix.has(**kind)) {
        Some(kind) => Err(Stop::usage(format!("{name} has no {}", kind.name()))),
        None => Ok(()),
    };
    let endpoints = |ports: std::ops::RangeInclusive<u16>| match args.peer_endpoints.is_empty() {
        true => ports.map(|port| format!("127.0.0.1:{port}")).collect(),
        false => args.peer_endpoints.clone(),
    };
    let name =
        clap::ValueEnum::to_possible_value(&args.target).map(|value| value.get_name().to_owned()).unwrap_or_default();
    let targets = match args.target {
        Peer::Trivet => unreachable!("Trivet is no peer of itself"),
        Peer::Etcd | Peer::EtcdLeader => {
            lacks(&[Kind::Incr, Kind::List], "etcd")?;
            let leader_only = args.target == Peer::EtcdLeader;
            let etcd = etcd::connect(&endpoints(7611..=7613), connections, leader_only, deadline).await;
            etcd.map_err(unavailable)?.into_iter().map(Target::Etcd).collect()
        }
        Peer::RedisCluster => {
            lacks(&[Kind::Cas, Kind::Scan, Kind::List], "Redis Cluster")?;
            let wait = match (args.wait, args.wait_aof) {
                (_, true) => redis::Wait::Aof,
                (Some(replicas), false) => redis::Wait::Replicas(replicas),
                (None, false) => redis::Wait::No,
            };
            // A connection that waits for replicas serves nobody else meanwhile.
            let connections = if wait == redis::Wait::No { connections } else { args.concurrency as usize };
            let redis = redis::connect(&endpoints(7631..=7636), connections, wait, deadline).await;
            redis.map_err(unavailable)?.into_iter().map(Target::Redis).collect()
        }
    };
    Ok((name, targets))
}

/// Makes the table if it does not exist.
async fn table(client: &Client, name: &str, shards: u32) -> Ended<()> {
    match client.admin().table(name).await {
        Ok(_) => Ok(()),
        Err(error) if error.reason == Reason::UnknownTable => {
            match client.admin().create_table(NewTable::hash(name, shards)).await {
                Ok(made) => eprintln!("created hash table {name} with {}", text::count(made.shards.len(), "shard")),
                Err(error) if error.reason == Reason::TableExists => {}
                Err(error) => return Err(error.into()),
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

async fn load(workload: &Workload, targets: &[Target], concurrency: usize) -> Ended<()> {
    let calls = workload.load().enumerate().map(|(at, op)| {
        let mut target = targets[at % targets.len()].clone();
        async move { target.call(op).await }
    });
    let mut calls = futures::stream::iter(calls).buffer_unordered(concurrency);
    while let Some(result) = calls.next().await {
        result.map_err(|reason| Stop {
            exit: Exit::Unavailable,
            message: format!("loading the keys failed: {reason}"),
        })?;
    }
    Ok(())
}

/// The state all workers of a run share.
struct Shared {
    pace: Pace,
    workload: Arc<Workload>,
    stall: Stall,
    /// One per thread, so that workers hardly ever wait for one another.
    recorders: Vec<Mutex<Recorder>>,
}

async fn measure(
    name: String,
    args: &Args,
    settings: Settings,
    workload: Arc<Workload>,
    targets: &[Target],
    looking: Option<(Client, String)>,
) -> Ended<Report> {
    let pids: Vec<u32> = args.pids.clone();
    for pid in &pids {
        usage(*pid).map_err(Stop::error)?;
    }
    let clock = Clock::system();
    let shared = Arc::new(Shared {
        pace: Pace::new(clock.clone(), args.warm_up, args.length(), args.rate),
        workload,
        stall: Stall::default(),
        recorders: (0..args.threads()).map(|_| Mutex::default()).collect(),
    });
    let worker_of = |number: usize| {
        let numbers = Numbers::new(args.seed.wrapping_add((number as u64 + 1) << 32));
        spawn(work(shared.clone(), targets[number % targets.len()].clone(), numbers, number))
    };
    let workers: Vec<_> = (0..args.concurrency as usize).map(worker_of).collect();

    let looking = looking.map(|(client, view)| {
        let (shared, source) = (shared.clone(), args.table.clone());
        spawn(async move { view::look(&shared, &client, &source, &view).await })
    });

    let pace = &shared.pace;
    sleep_until(pace.measured_from()).await;
    shared.stall.begin(pace.measured_from() - pace.start());
    let (servers_before, own_before) = (read_all(&pids), read_all(&[std::process::id()]));
    let (mut after, mut ended) = (None, None);
    if let Some(end) = pace.end() {
        sleep_until(end).await;
        shared.stall.acknowledged(end - pace.start());
        after = Some((read_all(&pids), read_all(&[std::process::id()])));
        ended = Some(end);
    }
    for worker in workers {
        worker.await.map_err(|error| Stop::error(format!("a worker failed: {error}")))?;
    }
    let view = match looking {
        Some(looking) => {
            Some(looking.await.map_err(|error| Stop::error(format!("looking at the view failed: {error}")))??)
        }
        None => None,
    };
    let ended = ended.unwrap_or_else(|| clock.now());
    let (servers_after, own_after) = after.unwrap_or_else(|| (read_all(&pids), read_all(&[std::process::id()])));

    let window = ended - pace.measured_from();
    let mut recorder = Recorder::default();
    for part in &shared.recorders {
        recorder.merge(&part.lock());
    }
    let (by_operation, all) = recorder.figures(window);
    let servers = match (servers_before, servers_after) {
        (Some(before), Some(after)) if !pids.is_empty() => Some(servers(&before, after, all.ops, window)),
        _ => None,
    };
    let client_cpu = own_before.zip(own_after).map(|(before, after)| cpu_between(&before, &after)).unwrap_or_default();
    Ok(Report {
        target: name,
        settings,
        window_s: window.as_secs_f64(),
        all,
        by_operation,
        errors: recorder.errors(),
        longest_stall_ms: shared.stall.longest().as_micros() as f64 / 1e3,
        servers,
        view,
        client_cpu_s: client_cpu.as_secs_f64(),
    })
}

/// The use of all these processes; none if one of them has gone (a killed server makes the sum meaningless).
fn read_all(pids: &[u32]) -> Option<Vec<Usage>> {
    pids.iter().map(|pid| usage(*pid).ok()).collect()
}

fn servers(before: &[Usage], after: Vec<Usage>, ops: u64, window: Duration) -> Servers {
    let cpu_s = cpu_between(before, &after).as_secs_f64();
    Servers {
        cpu_s,
        cores: (cpu_s / window.as_secs_f64() * 1e3).round() / 1e3,
        ops_per_cpu_s: if cpu_s > 0.0 { (ops as f64 / cpu_s).round() } else { 0.0 },
        processes: after,
    }
}

/// One worker's loop.
async fn work(shared: Arc<Shared>, mut target: Target, mut numbers: Numbers, number: usize) {
    let pace = &shared.pace;
    let recorder = &shared.recorders[number % shared.recorders.len()];
    let mut now = pace.now();
    while let Some(begin) = pace.next(now).await {
        let op = shared.workload.next(&mut numbers);
        let kind: Kind = op.kind();
        let result = target.call(op).await;
        now = pace.now();
        if result.is_ok() {
            shared.stall.acknowledged(now - pace.start());
        }
        recorder.lock().note(kind, now - begin.at, result, begin.measured, pace.measures(now));
    }
}
