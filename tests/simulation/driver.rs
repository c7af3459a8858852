//! Runs many seeds, each in a process of its own, as many at once as there are cores.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::ops::Range;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::run;

/// How much of a processor's time one seed may take; far beyond any. One that takes more goes round in circles in no time.
const SEED_PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take in real time, on a machine that may stand still for a while.
const SEED_PATIENCE_REAL: Duration = Duration::from_secs(600);
/// What the kernel counts processor time in.
const TICK: Duration = Duration::from_millis(10);
/// Failures after which a batch ends.
const FAILURES_MAX: usize = 3;

/// What a batch of 200 seeds must have seen at least, or it says nothing; larger and smaller ones in proportion.
const FLOORS: &[(&str, u64)] = &[
    ("crashes", 150),
    ("crashes that lost unsynced writes", 40),
    ("leaders", 1_000),
    ("partitions", 80),
    ("pauses", 60),
    ("wipes", 10),
    ("transfers", 60),
    ("wrong verdicts", 60),
    ("orderly restarts", 30),
    ("splits", 100),
    ("merges", 30),
    ("crashes within a merge", 5),
    ("moves", 20),
    ("drains", 60),
    ("crashes after a birth", 20),
    ("clock jumps", 60),
    ("snapshots installed", 20),
    ("contents compared", 2_000),
    ("undetermined writes", 60),
    ("repeats", 2_000),
    ("writes sent twice at once", 1_000),
    ("writes at one node", 5_000),
    ("writes applied", 15_000),
    ("writes refused by a condition", 1_500),
    ("reads", 8_000),
    ("linearizable reads of copies", 100),
    ("reads of copies with a token", 100),
    ("reads of copies of a greatest age", 100),
    ("reads of copies in the past", 50),
    ("reads of copies of any age", 100),
    ("ages told by copies", 100),
    ("reads of learners", 50),
    ("scans", 1_500),
    ("scans of the whole table", 300),
    ("scans of the whole table in the past", 20),
    ("scans of the whole table during which a shard was split", 20),
    ("pages of changes", 5_000),
    ("followers that came to the end", 380),
    ("final calls", 5_000),
    ("views created", 25),
    ("views created beside writes", 40),
    ("orders and profiles written", 2_500),
    ("reads of views with a token", 1_000),
    ("reads of views of a greatest age", 600),
    ("linearizable reads of views", 400),
    ("reads of copies of views", 900),
    ("totals of users judged", 600),
    ("pages of users judged", 600),
    ("splits of views and their sources", 12),
    ("merges of views and their sources", 2),
    ("rows of views compared", 1_500),
    ("documents that fit no view, counted", 10),
    ("documents deleted at which views had stopped", 3),
];

/// `from..to` of `TRIVET_SEEDS`.
pub fn range() -> Option<Range<u64>> {
    let text = std::env::var("TRIVET_SEEDS").ok()?;
    let parsed = text.split_once("..").and_then(|(from, to)| Some(from.trim().parse().ok()?..to.trim().parse().ok()?));
    Some(parsed.unwrap_or_else(|| panic!("TRIVET_SEEDS={text} is not of the form from..to")))
}

/// The number in `TRIVET_SEED`.
pub fn seed() -> Option<u64> {
    let text = std::env::var("TRIVET_SEED").ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("TRIVET_SEED={text} is not a number")))
}

/// Runs one seed in this process and tells what became of it.
pub fn one_seed(seed: u64) {
    let verdict = run::run(seed);
    // The test harness has begun a line.
    println!();
    if std::env::var_os("TRIVET_TRACE").is_some() {
        println!("{}", verdict.trace);
    }
    for (what, count) in &verdict.counts {
        println!("COUNT {count} {what}");
    }
    if let Some(violation) = &verdict.violation {
        let planted = std::env::var("TRIVET_PLANTED").map(|bug| format!("TRIVET_PLANTED={bug} ")).unwrap_or_default();
        println!(
            "VIOLATION seed {seed}: {violation}\n\n{:#?}\n\nthe end of its trace:\n{}",
            verdict.plan,
            verdict.tail()
        );
        println!(
            "\nreplay: {planted}TRIVET_SEED={seed} TRIVET_TRACE=1 cargo test --release --test simulation seeds -- \
             --nocapture"
        );
        std::process::exit(1);
    }
    println!("PASSED seed {seed}");
}

/// How much of a processor's time a process has taken, as the kernel says; nothing where that cannot be read.
fn taken_by(process: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // Behind the name in brackets: the 12th and 13th field are what it took itself and what the kernel took for it.
    let fields = text.rsplit_once(") ").map_or("", |(_, fields)| fields).split(' ');
    let ticks: u32 = fields.skip(11).take(2).filter_map(|field| field.parse::<u32>().ok()).sum();
    TICK * ticks
}

/// Runs a seed in a process of its own; what it said, and whether it passed.
fn child(seed: u64, bug: Option<&str>, trace: bool) -> (String, bool) {
    let binary = std::env::current_exe().expect("this test has a file");
    let mut command = Command::new(binary);
    command.args(["seeds", "--exact", "--nocapture", "--test-threads", "1"]);
    command.env("TRIVET_SEED", seed.to_string()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("TRIVET_TRACE").env_remove("TRIVET_PLANTED");
    if trace {
        command.env("TRIVET_TRACE", "1");
    }
    if let Some(bug) = bug {
        command.env("TRIVET_PLANTED", bug);
    }
    let mut process = command.spawn().expect("this test can be started again");
    let mut out = process.stdout.take().expect("piped");
    let mut err = process.stderr.take().expect("piped");
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = err.read_to_string(&mut text);
        text
    });
    let id = process.id();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = out.read_to_string(&mut text);
        text
    });
    let until = Instant::now() + SEED_PATIENCE_REAL;
    let status = loop {
        match process.try_wait().expect("a child can be waited for") {
            Some(status) => break Some(status),
            None if Instant::now() >= until || taken_by(id) >= SEED_PATIENCE => {
                let _ = process.kill();
                let _ = process.wait();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let mut said = reader.join().unwrap_or_default();
    let errors = errors.join().unwrap_or_default();
    let passed = status.is_some_and(|status| status.success()) && said.contains("PASSED");
    if status.is_none() {
        let _ =
            write!(said, "VIOLATION seed {seed}: process {id} did not end within {SEED_PATIENCE:?} of processor time");
    }
    if !passed {
        let _ = write!(said, "\n{errors}");
    }
    (said, passed)
}

/// The trace of a seed.
pub fn trace(seed: u64) -> String {
    let (said, passed) = child(seed, None, true);
    assert!(passed, "{said}");
    let trace = said.lines().skip_while(|line| !line.contains("seed ")).take_while(|line| !line.starts_with("PASSED"));
    trace.map(|line| format!("{line}\n")).collect()
}

/// A range of seeds.
pub struct Batch {
    seeds: Range<u64>,
    bug: Option<&'static str>,
    failures_max: usize,
}

/// What became of it.
pub struct Ran {
    /// What each failed seed said.
    pub failures: Vec<(u64, String)>,
    seeds: u64,
    counts: BTreeMap<String, u64>,
    took: Duration,
}

impl Batch {
    /// These seeds.
    pub fn of(seeds: Range<u64>) -> Batch {
        Batch { seeds, bug: None, failures_max: FAILURES_MAX }
    }

    /// With a planted fault, until it is found.
    #[cfg_attr(not(feature = "planted"), allow(dead_code, reason = "only a planted build has faults to find"))]
    pub fn planted(mut self, bug: &'static str) -> Batch {
        self.bug = Some(bug);
        self.failures_max = 1;
        self
    }

    /// Runs them.
    pub fn run(self) -> Ran {
        let begun = Instant::now();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = std::env::var("TRIVET_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(cores);
        let next = AtomicU64::new(self.seeds.start);
        let state = Mutex::new((Vec::new(), BTreeMap::<String, u64>::new(), 0u64));
        std::thread::scope(|threads| {
            for _ in 0..workers {
                threads.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= self.seeds.end || state.lock().0.len() >= self.failures_max {
                            return;
                        }
                        let (said, passed) = child(seed, self.bug, false);
                        let mut state = state.lock();
                        state.2 += 1;
                        for line in said.lines().filter_map(|line| line.strip_prefix("COUNT ")) {
                            if let Some((count, what)) = line.split_once(' ')
                                && let Ok(count) = count.parse::<u64>()
                            {
                                *state.1.entry(what.to_owned()).or_default() += count;
                            }
                        }
                        if !passed {
                            let from = said.find("VIOLATION").unwrap_or(0);
                            state.0.push((seed, said[from..].to_owned()));
                        }
                    }
                });
            }
        });
        let (mut failures, counts, seeds) = state.into_inner();
        failures.sort();
        Ran { failures, seeds, counts, took: begun.elapsed() }
    }
}

impl Ran {
    /// In words.
    pub fn report(&self) -> String {
        let per_minute = self.seeds as f64 / self.took.as_secs_f64() * 60.0;
        let mut text = format!("{} seeds in {:.1?}, {per_minute:.0} a minute\n", self.seeds, self.took);
        for (what, count) in &self.counts {
            let _ = writeln!(text, "{count:>10} {what}");
        }
        for (_, said) in &self.failures {
            let _ = writeln!(text, "\n{said}");
        }
        text
    }

    /// How many seeds were run.
    #[cfg_attr(not(feature = "planted"), allow(dead_code, reason = "only a planted build tells"))]
    pub fn seeds(&self) -> u64 {
        self.seeds
    }

    /// Fails when too little was seen.
    pub fn floors(&self) {
        let missed = FLOORS.iter().filter_map(|(what, least)| {
            let least = least * self.seeds / 200;
            let seen = self.counts.get(*what).copied().unwrap_or(0);
            (seen < least).then(|| format!("{what}: {seen} of at least {least}"))
        });
        let missed: Vec<String> = missed.collect();
        assert!(missed.is_empty(), "a vacuous batch of {} seeds: {}", self.seeds, missed.join(", "));
    }
}
