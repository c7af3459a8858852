//! `trivet bench --verify`: does the cluster keep what it acknowledged, once and only once, whatever happens to it?
//!
//! Every worker owns some keys and counters that nobody else touches, so it knows what they hold. It puts numbered
//! values, increments, and reads in between, checking each answer at once; every outcome goes into the journal. At the
//! end everything is read back and judged (`journal.rs`). While it runs, kill, stop and restart nodes as you like: a
//! call that fails is counted, an acknowledgement that does not hold is a mismatch.
//!
//! `--verify-only` judges an older journal again, for instance after all nodes were restarted.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use trivet::client::Table;
use trivet::runtime::{Clock, Instant, random_u64, sleep, spawn};
use trivet::types::{self, Error};

use super::journal::{Counts, End, Entry, Finding, Journal, Oracle, Puts};
use super::pace::Pace;
use super::record::{Done, Figures, Recorder, Stall};
use super::workload::{Kind, Numbers, Workload};
use super::{Args, table as ensure_table};
use crate::cli::Global;
use crate::cli::exit::{Ended, Exit, Stop};

/// How long reading back goes on for a key that cannot be read: a cluster just restarted may need to elect leaders.
const READ_BACK_PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two attempts to read a key back.
const READ_BACK_PAUSE: Duration = Duration::from_millis(200);
/// Keys read back at once.
const READ_BACK_CONCURRENCY: usize = 64;
/// Digits of the number at the start of a value.
const NUMBER_DIGITS: usize = 20;

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Verdict {
    /// Writes and increments acknowledged.
    pub acknowledged: u64,
    /// Calls that failed for certain: nothing happened.
    pub refused: u64,
    /// Calls that failed with their outcome unknown.
    pub unknown: u64,
    /// Failed calls by reason, reads included.
    pub failures: BTreeMap<String, u64>,
    /// Keys and counters read back.
    pub read_back: u64,
    /// Acknowledged writes and increments that are missing.
    pub lost: u64,
    /// Increments that counted twice.
    pub doubled: u64,
    /// Writes that are there although they were refused or never made.
    pub phantom: u64,
    /// Values that are not what any write put there.
    pub damaged: u64,
    /// Keys that could not be read back.
    pub unreadable: u64,
    /// Wrong answers during the run.
    pub violations: Vec<String>,
    /// Longest time without any acknowledgement, and the slowest call, when there was a run.
    pub stalls: Option<Stalls>,
}

/// How long the clients of a run were held up.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Stalls {
    /// Longest time without an acknowledged call of any worker.
    pub longest_stall_ms: f64,
    /// The slowest call that was acknowledged.
    pub slowest_call_ms: f64,
    /// The calls of the run.
    pub calls: Figures,
}

impl Verdict {
    /// Whether the cluster broke its word.
    fn is_mismatch(&self) -> bool {
        self.lost + self.doubled + self.phantom + self.damaged > 0 || !self.violations.is_empty()
    }

    fn exit(&self) -> Exit {
        match (self.is_mismatch(), self.unreadable) {
            (true, _) => Exit::Mismatch,
            (false, 0) => Exit::Ok,
            (false, _) => Exit::Unavailable,
        }
    }

    fn render(&self) -> String {
        let mut text = String::new();
        if let Some(stalls) = &self.stalls {
            text.push_str(&format!(
                "{} calls, {:.0}/s, p50 {:.2} ms, p99 {:.2} ms\nlongest stall {:.1} ms, slowest call {:.1} ms\n",
                stalls.calls.ops,
                stalls.calls.ops_per_s,
                stalls.calls.p50_us as f64 / 1e3,
                stalls.calls.p99_us as f64 / 1e3,
                stalls.longest_stall_ms,
                stalls.slowest_call_ms
            ));
        }
        let failures: Vec<String> = self.failures.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        let failures = if failures.is_empty() { String::new() } else { format!(" ({})", failures.join(", ")) };
        text.push_str(&format!(
            "acknowledged {} · failed {}: refused {}, outcome unknown {}{failures}\n",
            self.acknowledged,
            self.refused + self.unknown,
            self.refused,
            self.unknown
        ));
        text.push_str(&format!(
            "read back {} · lost {} · doubled {} · phantom {} · damaged {} · unreadable {}\n",
            self.read_back, self.lost, self.doubled, self.phantom, self.damaged, self.unreadable
        ));
        for violation in &self.violations {
            text.push_str(&format!("  wrong answer during the run: {violation}\n"));
        }
        text.push_str(match self.exit() {
            Exit::Ok => "verified\n",
            Exit::Mismatch => "MISMATCH\n",
            _ => "NOT ALL COULD BE READ\n",
        });
        text
    }
}

/// Runs writers and checks what they left.
pub async fn run(path: &Path, args: &Args, global: &Global) -> Ended {
    let mix = args.mix("write=50,incr=40,read=10");
    if let Some(kind) = mix.kinds().find(|kind| !matches!(kind, Kind::Read | Kind::Write | Kind::Incr)) {
        return Err(Stop::usage(format!("--verify knows read, write and incr, not {}", kind.name())));
    }
    let client = global.connect().await?;
    ensure_table(&client, &args.table, args.shards.unwrap_or(0)).await?;
    let journal = Journal::create(path).map_err(Stop::error)?;
    let value_bytes = (args.value_size as usize).max(NUMBER_DIGITS);
    journal.note(&Entry::Run { table: args.table.clone(), value_bytes })?;
    let shared = Arc::new(Shared {
        table: client.table(&*args.table),
        journal,
        pace: Pace::new(Clock::system(), Duration::ZERO, args.length(), args.rate),
        // Only the kinds of its operations are used; keys and values are the owners'.
        workload: Workload::new(mix, args.distribution, args.keys, 1, args.seed),
        stall: Stall::default(),
        recorder: Mutex::default(),
        value_bytes,
    });
    let keys_each = (args.keys / u64::from(args.concurrency)).max(1);
    let run_id = random_u64();
    let workers: Vec<_> = (0..args.concurrency)
        .map(|number| {
            let numbers = Numbers::new(args.seed.wrapping_add(u64::from(number + 1) << 32));
            spawn(Owner::new(shared.clone(), run_id, number, keys_each).work(numbers))
        })
        .collect();
    for worker in workers {
        let ended = worker.await.map_err(|error| Stop::error(format!("a worker failed: {error}")))?;
        ended.map_err(|error| Stop::error(format!("cannot write the journal: {error}")))?;
    }
    let now = shared.pace.now();
    let over = shared.pace.end().map_or(now, |end| end.min(now));
    shared.stall.acknowledged(over - shared.pace.start());
    shared.journal.note(&Entry::Finished)?;

    let (_, calls) = shared.recorder.lock().figures(now - shared.pace.start());
    let stalls = Stalls {
        longest_stall_ms: shared.stall.longest().as_micros() as f64 / 1e3,
        slowest_call_ms: calls.max_us as f64 / 1e3,
        calls,
    };
    let mut verdict = check(path, global).await?;
    verdict.failures = shared.recorder.lock().errors();
    verdict.stalls = Some(stalls);
    finish(&verdict, args.json.as_deref(), global)
}

/// Checks an older journal.
pub async fn check_only(path: &Path, global: &Global) -> Ended {
    finish(&check(path, global).await?, None, global)
}

fn finish(verdict: &Verdict, file: Option<&Path>, global: &Global) -> Ended {
    let json = serde_json::to_string_pretty(verdict).map_err(|error| Stop::error(error.to_string()))?;
    if let Some(file) = file {
        std::fs::write(file, format!("{json}\n"))
            .map_err(|error| Stop::error(format!("cannot write {}: {error}", file.display())))?;
    }
    if global.json() {
        say!("{json}");
    } else {
        say_text!("{}", verdict.render());
    }
    Ok(verdict.exit())
}

struct Shared {
    table: Table,
    journal: Journal,
    pace: Pace,
    workload: Workload,
    stall: Stall,
    recorder: Mutex<Recorder>,
    value_bytes: usize,
}

/// A worker and what it knows of its own keys.
struct Owner {
    shared: Arc<Shared>,
    puts: Vec<(String, Puts)>,
    counts: Vec<(String, Counts)>,
}

impl Owner {
    fn new(shared: Arc<Shared>, run: u64, number: u32, keys: u64) -> Owner {
        let name = |kind: &str, at: u64| format!("verify-{run:016x}/{kind}/{number}/{at}");
        Owner {
            shared,
            puts: (0..keys).map(|at| (name("put", at), Puts::default())).collect(),
            counts: (0..keys).map(|at| (name("count", at), Counts::default())).collect(),
        }
    }

    async fn work(mut self, mut numbers: Numbers) -> io::Result<()> {
        let mut now = self.shared.pace.now();
        while let Some(begin) = self.shared.pace.next(now).await {
            let at = numbers.below(self.puts.len() as u64) as usize;
            let kind = self.shared.workload.next(&mut numbers).kind();
            let result = match kind {
                Kind::Write => self.put(at).await?,
                Kind::Incr => self.increment(at).await?,
                _ => self.read(at).await?,
            };
            now = self.note(kind, begin.at, result);
        }
        Ok(())
    }

    fn note(&self, kind: Kind, begun: Instant, result: Result<(), Error>) -> Instant {
        let shared = &self.shared;
        let now = shared.pace.now();
        if result.is_ok() {
            shared.stall.acknowledged(now - shared.pace.start());
        }
        let result = result.map(|()| Done::Effect).map_err(|error| error.reason.as_str().into());
        shared.recorder.lock().note(kind, now - begun, result, true, true);
        now
    }

    async fn put(&mut self, at: usize) -> io::Result<Result<(), Error>> {
        let (key, puts) = &mut self.puts[at];
        let number = puts.tried + 1;
        let value = value_of(key, number, self.shared.value_bytes);
        let result = self.shared.table.put(key.clone(), value).await;
        let end = end_of(&result);
        puts.add(number, end);
        self.shared.journal.note(&Entry::Put { key: key.clone(), number, end })?;
        Ok(result.map(drop))
    }

    async fn increment(&mut self, at: usize) -> io::Result<Result<(), Error>> {
        let (key, counts) = &mut self.counts[at];
        let result = self.shared.table.increment(key.clone(), 1).await;
        let end = end_of(&result);
        if let Ok(answer) = &result {
            let sum = answer.body;
            if !counts.allows_next(sum) {
                let what =
                    format!("the sum is {sum} after {} acknowledged and {} unknown", counts.acked, counts.unknown);
                self.shared.journal.note(&Entry::Violation { key: key.clone(), what })?;
            }
        }
        counts.add(end);
        self.shared.journal.note(&Entry::Incr { key: key.clone(), end })?;
        Ok(result.map(drop))
    }

    async fn read(&mut self, at: usize) -> io::Result<Result<(), Error>> {
        let (key, puts) = &self.puts[at];
        let answer = match self.shared.table.get(key.clone()).await {
            Ok(answer) => answer,
            Err(error) => return Ok(Err(error)),
        };
        let found = answer.body.as_ref().map(|found| number_of(key, &found.value));
        let wrong = match found {
            None if puts.acked > 0 => Some("a read found nothing".to_owned()),
            Some(None) => Some("a read found a value that was never put".to_owned()),
            Some(Some(number)) if !puts.allows(number) => {
                Some(format!("a read found put {number} after put {} was acknowledged", puts.acked))
            }
            _ => None,
        };
        if let Some(what) = wrong {
            self.shared.journal.note(&Entry::Violation { key: key.clone(), what })?;
        }
        Ok(Ok(()))
    }
}

/// How a call ended, as far as its caller can know.
fn end_of<T>(result: &Result<T, Error>) -> End {
    use types::Kind::{BackOff, Corrupt, Internal, Invalid, NotFound, Redirect, Refresh, Unavailable, Undetermined};
    match result.as_ref().map_err(Error::kind) {
        Ok(_) => End::Acked,
        Err(Undetermined | Internal | Corrupt) => End::Unknown,
        Err(Redirect | Refresh | BackOff | Invalid | NotFound | Unavailable) => End::Refused,
    }
}

/// A value that tells its own number and key: the number, then filler that only this key and number have.
fn value_of(key: &str, number: u64, bytes: usize) -> Bytes {
    let mut value = format!("{number:0NUMBER_DIGITS$}").into_bytes();
    let mut filler = Numbers::new(u64::from(crc32fast::hash(key.as_bytes())) << 32 ^ number);
    value.resize_with(bytes.max(NUMBER_DIGITS), || b'a' + (filler.next() % 26) as u8);
    value.into()
}

/// The number of a value; none if it is not what was put.
fn number_of(key: &str, value: &[u8]) -> Option<u64> {
    let number = std::str::from_utf8(value.get(..NUMBER_DIGITS)?).ok()?.parse().ok()?;
    (value_of(key, number, value.len()) == value).then_some(number)
}

/// Reads back everything a journal speaks of.
async fn check(path: &Path, global: &Global) -> Ended<Verdict> {
    let file = File::open(path).map_err(|error| Stop::error(format!("cannot read {}: {error}", path.display())))?;
    let oracle =
        Oracle::read(BufReader::new(file)).map_err(|error| Stop::error(format!("{}: {error}", path.display())))?;
    let table = global.connect().await?.table(&*oracle.table);
    let mut verdict = Verdict {
        acknowledged: oracle.acked,
        refused: oracle.refused,
        unknown: oracle.unknown,
        violations: oracle.violations.clone(),
        ..Verdict::default()
    };
    let clock = Clock::system();
    let until = clock.now() + READ_BACK_PATIENCE;
    let keys = oracle.puts.keys().map(|key| (key, true)).chain(oracle.counts.keys().map(|key| (key, false)));
    let reads = keys.map(|(key, is_put)| {
        let (table, clock) = (table.clone(), clock.clone());
        async move { (key, is_put, read_back(&table, key, until, &clock).await) }
    });
    let mut reads = futures::stream::iter(reads).buffer_unordered(READ_BACK_CONCURRENCY);
    while let Some((key, is_put, value)) = reads.next().await {
        let Ok(value) = value else {
            verdict.unreadable += 1;
            continue;
        };
        verdict.read_back += 1;
        match judge(&oracle, key, is_put, value.as_deref()) {
            Some(Finding::Good) => {}
            Some(Finding::Lost(count)) => verdict.lost += count,
            Some(Finding::Doubled(count)) => verdict.doubled += count,
            Some(Finding::Phantom) => verdict.phantom += 1,
            None => verdict.damaged += 1,
        }
    }
    Ok(verdict)
}

async fn read_back(table: &Table, key: &str, until: Instant, clock: &Clock) -> Result<Option<Bytes>, Error> {
    loop {
        match table.get(key.to_owned()).await {
            Ok(answer) => return Ok(answer.body.map(|found| found.value)),
            Err(error) if clock.now() >= until => return Err(error),
            Err(_) => sleep(READ_BACK_PAUSE).await,
        }
    }
}

/// What a value read back means; none: it is no value that was ever put there.
fn judge(oracle: &Oracle, key: &str, is_put: bool, value: Option<&[u8]>) -> Option<Finding> {
    if is_put {
        let number = value.map(|value| number_of(key, value)).map_or(Some(None), |number| number.map(Some))?;
        return Some(oracle.judge_put(key, number));
    }
    let sum = match value {
        None => None,
        Some(value) => Some(std::str::from_utf8(value).ok()?.parse().ok()?),
    };
    Some(oracle.judge_count(key, sum))
}

#[cfg(test)]
mod tests {
    use trivet::types::Reason;

    use super::*;

    #[test]
    fn a_value_tells_its_number_and_nothing_else_passes_for_it() {
        let value = value_of("k", 7, 64);
        assert_eq!((value.len(), number_of("k", &value)), (64, Some(7)));
        assert_eq!(number_of("l", &value), None, "another key's value");
        let mut torn = value.to_vec();
        torn[40] ^= 1;
        assert_eq!(number_of("k", &torn), None);
        assert_eq!(number_of("k", b"7"), None);
    }

    #[test]
    fn only_an_unknown_outcome_may_be_found_or_not() {
        let end = |reason| end_of::<()>(&Err(Error::new(reason, "")));
        assert_eq!(end(Reason::ResultUndetermined), End::Unknown);
        assert_eq!(end(Reason::Internal), End::Unknown);
        assert_eq!([end(Reason::DeadlineExceeded), end(Reason::NoQuorum), end(Reason::Overloaded)], [End::Refused; 3]);
        assert_eq!(end_of(&Ok(())), End::Acked);
    }

    #[test]
    fn what_is_read_back_is_judged() {
        let journal = r#"{"run":{"table":"t","value_bytes":32}}
{"put":{"key":"k","number":1,"end":"acked"}}
{"incr":{"key":"n","end":"acked"}}
"finished"
"#;
        let oracle = Oracle::read(journal.as_bytes()).expect("a journal");
        let good = value_of("k", 1, 32);
        assert_eq!(judge(&oracle, "k", true, Some(&good)), Some(Finding::Good));
        assert_eq!(judge(&oracle, "k", true, None), Some(Finding::Lost(1)));
        assert_eq!(judge(&oracle, "k", true, Some(b"junk")), None);
        assert_eq!(judge(&oracle, "n", false, Some(b"2")), Some(Finding::Doubled(1)));
        assert_eq!(judge(&oracle, "n", false, Some(b"x")), None);
    }

    #[test]
    fn verdicts_read_well_and_decide_the_exit_code() {
        let calls = Figures {
            ops: 1_000,
            ops_per_s: 100.0,
            p50_us: 5_000,
            p99_us: 90_000,
            max_us: 812_000,
            ..Figures::default()
        };
        let stalls = Stalls { longest_stall_ms: 640.2, slowest_call_ms: 812.0, calls };
        let good = Verdict { acknowledged: 900, read_back: 128, stalls: Some(stalls), ..Verdict::default() };
        let unreadable = Verdict {
            unknown: 2,
            refused: 1,
            unreadable: 3,
            failures: BTreeMap::from([("NO_QUORUM".to_owned(), 1), ("RESULT_UNDETERMINED".to_owned(), 2)]),
            ..good.clone()
        };
        let bad = Verdict { stalls: None, doubled: 1, violations: vec!["k: stale".to_owned()], ..unreadable.clone() };
        assert_eq!([good.exit(), unreadable.exit(), bad.exit()], [Exit::Ok, Exit::Unavailable, Exit::Mismatch]);
        let text = [good, unreadable, bad].map(|verdict| verdict.render()).join("\n");
        crate::cli::golden::check("bench_verdict", &text);
    }
}
