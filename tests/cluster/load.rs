//! Clients that write all the while and remember what they were promised.
//!
//! Each worker owns one counter, one register and one value that it only ever swaps, so it knows exactly what they must hold:
//! the counter every acknowledged increment once, the register the last acknowledged value, and the swapped one what it last
//! made of it, or the next swap would be refused. Now and then it scans the whole table, in which each key is there once. A
//! call that fails, a value that went back and a counter that is off are told apart. Meanwhile somebody follows what changes in
//! the table, and must in the end have been told every version.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use trivet::client::{Client, Table};
use trivet::types::{Result, ScanBounds, Test};

use crate::changes::Follower;
use crate::harness::{Cluster, eventually};

/// Deadline of each call, the client's default.
const DEADLINE: Duration = Duration::from_secs(5);

/// Of this many calls one scans the whole table.
const SCAN_EVERY: u64 = 40;

/// A running load.
pub struct Load {
    stopping: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Worker>>,
    follower: Follower,
    client: Client,
    table: String,
}

/// What one worker did and was promised.
struct Worker {
    number: usize,
    calls: u64,
    increments: u64,
    last_value: u64,
    last_swap: u64,
    /// The last swap failed: it may have taken effect.
    swap_open: bool,
    failures: Vec<String>,
    wrong: Vec<String>,
    longest_call: Duration,
}

/// What became of all calls.
#[derive(Debug)]
pub struct Report {
    pub calls: u64,
    pub failures: Vec<String>,
    pub wrong: Vec<String>,
    pub longest_call: Duration,
}

impl Report {
    /// No call failed, nothing was lost, nothing was doubled; and enough was done for that to mean something.
    #[track_caller]
    pub fn assert_flawless(&self, calls_min: u64) {
        println!("  {} calls, longest {:?}", self.calls, self.longest_call);
        assert!(self.failures.is_empty(), "{} calls failed, first: {:?}", self.failures.len(), self.failures.first());
        assert!(self.wrong.is_empty(), "{:?}", self.wrong);
        assert!(self.calls >= calls_min, "only {} calls: the test says nothing", self.calls);
    }
}

impl Load {
    /// Starts workers on a table.
    pub async fn start(cluster: &Cluster, table: &str, workers: usize) -> Load {
        let client = connect(cluster).await;
        let stopping = Arc::new(AtomicBool::new(false));
        let follower = Follower::start(&client.table(table)).await;
        let workers = (0..workers)
            .map(|number| tokio::spawn(work(client.clone(), table.to_owned(), number, Arc::clone(&stopping))))
            .collect();
        Load { stopping, workers, follower, client, table: table.to_owned() }
    }

    /// Stops the workers and compares what is stored with what was promised.
    pub async fn finish(self) -> Report {
        self.stopping.store(true, Ordering::Relaxed);
        let table = self.client.table(self.table.as_str());
        let mut report = Report { calls: 0, failures: Vec::new(), wrong: Vec::new(), longest_call: Duration::ZERO };
        let mut keys = Vec::new();
        for worker in self.workers {
            let worker = worker.await.expect("a worker does not panic");
            let number = worker.number;
            let counter = eventually("the counter can be read", || table.get(counter_key(number))).await;
            let register = eventually("the register can be read", || table.get(register_key(number))).await;
            let counted = counter.body.map_or(0, |found| number_in(&found.value));
            let stored = register.body.map_or(0, |found| number_in(&found.value));
            report.wrong.extend(broken_promises(&worker, counted, stored));
            let swapped = eventually("what was swapped can be read", || table.get(swap_key(number))).await;
            let swapped = swapped.body.map_or(0, |found| number_in(&found.value));
            if swapped != worker.last_swap && !worker.swap_open {
                report.wrong.push(format!("swapped {number} holds {swapped}, last acknowledged {}", worker.last_swap));
            }
            report.calls += worker.calls;
            report.failures.extend(worker.failures);
            report.wrong.extend(worker.wrong);
            report.longest_call = report.longest_call.max(worker.longest_call);
            keys.extend([counter_key(number), register_key(number), swap_key(number)]);
        }
        report.wrong.extend(self.follower.finish(&keys).await);
        report
    }
}

/// What is stored, against what a worker was promised. Calls that failed may have taken effect once.
fn broken_promises(worker: &Worker, counted: u64, stored: u64) -> Vec<String> {
    let number = worker.number;
    let unknown = worker.failures.len() as u64;
    let mut broken = Vec::new();
    if counted < worker.increments {
        broken.push(format!("counter {number} lost increments: {counted}, acknowledged {}", worker.increments));
    }
    if counted > worker.increments + unknown {
        broken.push(format!("counter {number} doubled increments: {counted}, acknowledged {}", worker.increments));
    }
    if stored < worker.last_value {
        broken.push(format!("register {number} lost a write: {stored}, last acknowledged {}", worker.last_value));
    }
    if stored > worker.last_value && unknown == 0 {
        broken.push(format!("register {number} holds {stored}, last acknowledged {}", worker.last_value));
    }
    broken
}

/// A client as an application would make it.
pub async fn connect(cluster: &Cluster) -> Client {
    let endpoints = cluster.endpoints();
    let options = trivet::client::Options { deadline: DEADLINE, ..trivet::client::Options::default() };
    Client::connect(&endpoints, options).await.expect("the client finds the cluster")
}

fn counter_key(number: usize) -> String {
    format!("counter-{number}")
}

fn register_key(number: usize) -> String {
    format!("register-{number}")
}

fn swap_key(number: usize) -> String {
    format!("swapped-{number}")
}

fn number_in(value: &[u8]) -> u64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).expect("a decimal number was written")
}

async fn work(client: Client, table: String, number: usize, stopping: Arc<AtomicBool>) -> Worker {
    let table = client.table(table.as_str());
    let mut worker = Worker {
        number,
        calls: 0,
        increments: 0,
        last_value: 0,
        last_swap: 0,
        swap_open: false,
        failures: Vec::new(),
        wrong: Vec::new(),
        longest_call: Duration::ZERO,
    };
    while !stopping.load(Ordering::Relaxed) {
        let began = Instant::now();
        let call = worker.calls;
        let result = match call % 4 {
            _ if call % SCAN_EVERY == SCAN_EVERY - 1 => worker.scan(&table).await,
            0 => table.increment(counter_key(number), 1).await.map(|_| worker.increments += 1),
            1 => table.put(register_key(number), call.to_string()).await.map(|_| worker.last_value = call),
            2 => worker.swap(&table, call).await,
            _ => table.get(register_key(number)).await.map(|found| {
                let seen = found.body.map_or(0, |found| number_in(&found.value));
                if seen < worker.last_value {
                    worker.wrong.push(format!("register {number}: read {seen} after {}", worker.last_value));
                }
            }),
        };
        worker.calls += 1;
        worker.longest_call = worker.longest_call.max(began.elapsed());
        if let Err(error) = result {
            worker.failures.push(format!("after {:?}: {error}", began.elapsed()));
        }
    }
    worker
}

impl Worker {
    /// Replaces the value that nobody else touches, if it is what it was left at.
    async fn swap(&mut self, table: &Table, next: u64) -> Result<()> {
        let key = swap_key(self.number);
        if self.swap_open {
            self.last_swap = table.get(key.clone()).await?.body.map_or(0, |found| number_in(&found.value));
        }
        let expected = match self.last_swap {
            0 => Test::Absent,
            last => Test::Value(last.to_string().into()),
        };
        self.swap_open = true;
        let swapped = table.compare_and_swap(key, expected, Some(next.to_string().into())).await?.body;
        self.swap_open = false;
        if swapped.applied {
            self.last_swap = next;
        } else {
            let text = format!("swap {} from {} refused: {:?} is there", self.number, self.last_swap, swapped.observed);
            self.wrong.push(text);
            self.swap_open = true;
        }
        Ok(())
    }

    /// Looks whether the table shows each of its keys once, and those of this worker.
    async fn scan(&mut self, table: &Table) -> Result<()> {
        let rows = table.scan(ScanBounds::All).collect().await?;
        let mut seen = BTreeSet::new();
        for row in &rows {
            if !seen.insert(&row.key) {
                self.wrong.push(format!("a scan shows {:?} twice", row.key));
            }
        }
        let number = self.number;
        for key in [counter_key(number), register_key(number), swap_key(number)] {
            if !seen.contains(&bytes::Bytes::from(key.clone())) {
                self.wrong.push(format!("a scan of {} rows does not show {key}", rows.len()));
            }
        }
        Ok(())
    }
}

#[test]
fn the_judge_tells_lost_from_doubled() {
    let worker = |failures: usize| Worker {
        number: 0,
        calls: 30,
        increments: 10,
        last_value: 28,
        last_swap: 0,
        swap_open: false,
        failures: vec!["unknown".to_owned(); failures],
        wrong: Vec::new(),
        longest_call: Duration::ZERO,
    };
    assert!(broken_promises(&worker(0), 10, 28).is_empty());
    assert!(broken_promises(&worker(0), 9, 28)[0].contains("lost increments"));
    assert!(broken_promises(&worker(0), 11, 28)[0].contains("doubled"));
    assert!(broken_promises(&worker(0), 10, 25)[0].contains("lost a write"));
    assert!(broken_promises(&worker(0), 10, 31)[0].contains("holds 31"));
    assert!(broken_promises(&worker(1), 11, 31).is_empty(), "one unknown call may have counted");
    assert!(broken_promises(&worker(1), 12, 28)[0].contains("doubled"));
}
