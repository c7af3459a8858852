//! `trivet import`: the rows of a file become keys and JSON documents of a table.
//!
//! Promise: afterwards every row is in the table, and of several rows with one key the last one counts. A thread reads
//! and parses ahead; up to `--concurrency` puts are in flight, but never two of one key, so the order of the file is the
//! order of each key's writes. Every now and then the number of rows that are all acknowledged goes into a checkpoint
//! beside the file; a run that is cut short goes on from there, repeating at most what was in flight (a put repeated
//! leaves the same value). A run that finishes removes the checkpoint. The first row that cannot be read or is refused
//! ends the run and is named by its line; what came before it is kept.
//!
//! Left out: deletions (an import only adds and replaces) and rows that belong together (each is put on its own).

mod rows;
mod template;

use std::collections::{BTreeSet, HashSet};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tokio::sync::mpsc;
use trivet::client::Table;
use trivet::runtime::{Clock, Instant, spawn_blocking};

use self::rows::{Format, Row, Rows, Shape};
use self::template::Template;
use super::checkpoint::{Checkpoint, fingerprint_file};
use super::exit::{Ended, Exit, Stop};
use super::{Global, text};

/// Rows handed over by the reading thread at once: enough that handing over costs nothing.
const CHUNK_ROWS: usize = 256;
/// Chunks read ahead: a few thousand rows, so that the disk never makes the network wait.
const CHUNKS_AHEAD: usize = 8;
/// Time between two checkpoints: what a run that is cut short repeats at most.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// Rows shown by `--dry-run`.
const SAMPLE_ROWS: usize = 3;

/// Loads a file into a table: CSV with a header, or JSON lines; gzipped files too.
///
/// Each row becomes one JSON document. --key says how its key is made, with fields in braces; write {{ and }} for
/// braces themselves, so '{{{user_id}}}:{order_id}' puts all orders of a user under one tag. Fields of CSV files are
/// typed: numbers, true, false, empty (null), else text. Without --key the file must be one that `trivet export` wrote.
///
/// A run that is interrupted goes on where it was when it is started again.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  trivet import orders orders.jsonl.gz --key '{order_id}'")]
pub struct Args {
    /// The table
    table: String,
    /// The file
    file: PathBuf,
    /// How keys are made, for instance '{user_id}/{date}/{order_id}'
    #[arg(long, value_name = "TEMPLATE", value_parser = Template::parse)]
    key: Option<Template>,
    /// How the file is written, if its name does not tell
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Fields of a CSV file to keep as text whatever they hold
    #[arg(long, value_name = "FIELD", value_delimiter = ',')]
    text: Vec<String>,
    /// Writes in flight
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// Where the checkpoint lies [default: beside the file]
    #[arg(long, value_name = "PATH")]
    checkpoint: Option<PathBuf>,
    /// Read the whole file, show the first rows and write nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs the import.
pub async fn run(args: Args, global: &Global) -> Ended {
    let format = args.format.or_else(|| Format::of(&args.file)).ok_or_else(|| {
        Stop::usage(format!(
            "{}: the name does not tell the format; say --format csv or --format jsonl",
            args.file.display()
        ))
    })?;
    let shape = Shape { format, key: args.key.clone(), text: args.text.clone() };
    if args.dry_run {
        return dry_run(&args.file, shape, global);
    }
    let checkpoint = checkpoint_of(&args, format)?;
    let skip: u64 = checkpoint.load().map_err(Stop::error)?.unwrap_or(0);
    let client = global.connect().await?;
    let table = client.table(&*args.table);

    let clock = Clock::system();
    let start = clock.now();
    let bar = progress(&args.file)?;
    let mut source = Source::open(&args.file, shape, bar.clone())?;
    let load = Load {
        table,
        in_flight_max: usize::from(args.concurrency),
        checkpoint: &checkpoint,
        clock: clock.clone(),
        done: Done { upto: skip, beyond: BTreeSet::new() },
    };
    let rows = load.run(&mut source, skip).await;
    bar.finish_and_clear();
    let rows = rows?;
    checkpoint.remove().map_err(Stop::error)?;

    let seconds = (clock.now() - start).as_secs_f64();
    let rate = rows.saturating_sub(skip) as f64 / seconds.max(1e-3);
    if global.json() {
        say!(
            "{}",
            json!({"table": args.table, "rows": rows, "resumed_after": skip, "seconds": (seconds * 1e3).round() / 1e3})
        );
    } else {
        let resumed = if skip > 0 { format!(" (going on after row {skip})") } else { String::new() };
        let rows = text::count(rows, "row");
        say!("imported {rows} into {}{resumed} in {seconds:.1} s, {rate:.0} rows/s", args.table);
    }
    Ok(Exit::Ok)
}

fn checkpoint_of(args: &Args, format: Format) -> Ended<Checkpoint> {
    let data = fingerprint_file(&args.file)
        .map_err(|error| Stop::error(format!("cannot read {}: {error}", args.file.display())))?;
    let path = args.checkpoint.clone().unwrap_or_else(|| {
        let mut name = args.file.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.import", args.table));
        args.file.with_file_name(name)
    });
    let fingerprint = format!("import {} {data} {format:?} {:?} {:?}", args.table, args.key, args.text);
    Ok(Checkpoint::new(path, fingerprint))
}

fn dry_run(file: &Path, shape: Shape, global: &Global) -> Ended {
    let mut rows = Rows::open(file, shape, Arc::default()).map_err(Stop::error)?;
    let (mut count, mut longest, mut shown) = (0u64, 0, Vec::new());
    while let Some(row) = rows.next() {
        let row = row.map_err(|error| Stop::error(format!("{}: {error}", file.display())))?;
        count += 1;
        longest = longest.max(row.value.len());
        if shown.len() < SAMPLE_ROWS {
            shown.push(row);
        }
    }
    if global.json() {
        say!("{}", json!({"rows": count, "value_bytes_max": longest}));
    } else {
        for row in &shown {
            say!("{}  {}", text::show(&row.key), text::show(&row.value));
        }
        let (count, longest) = (text::count(count, "row"), text::count(longest, "byte"));
        say!("{count}, values of up to {longest}; nothing written (--dry-run)");
    }
    Ok(Exit::Ok)
}

/// A bar over the bytes of the file, shown on a terminal only.
fn progress(file: &Path) -> Ended<ProgressBar> {
    let length =
        std::fs::metadata(file).map_err(|error| Stop::error(format!("cannot read {}: {error}", file.display())))?.len();
    if !std::io::stderr().is_terminal() {
        return Ok(ProgressBar::hidden());
    }
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} %  {msg}  {elapsed}, {eta} to go");
    Ok(bar.with_style(style.expect("the template is valid")))
}

/// The reading side: a thread that parses ahead, and the chunk at hand.
struct Source {
    chunks: mpsc::Receiver<Vec<Result<Row, String>>>,
    chunk: std::vec::IntoIter<Result<Row, String>>,
    read_bytes: Arc<AtomicU64>,
    bar: ProgressBar,
    file: PathBuf,
}

impl Source {
    fn open(file: &Path, shape: Shape, bar: ProgressBar) -> Ended<Source> {
        let read_bytes = Arc::new(AtomicU64::new(0));
        let mut rows = Rows::open(file, shape, read_bytes.clone())
            .map_err(|error| Stop::error(format!("{}: {error}", file.display())))?;
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        spawn_blocking(move || {
            loop {
                let mut chunk = Vec::with_capacity(CHUNK_ROWS);
                while chunk.len() < CHUNK_ROWS {
                    match rows.next() {
                        Some(row) => {
                            let failed = row.is_err();
                            chunk.push(row);
                            if failed {
                                break;
                            }
                        }
                        None => break,
                    }
                }
                let last = chunk.len() < CHUNK_ROWS;
                if (!chunk.is_empty() && sender.blocking_send(chunk).is_err()) || last {
                    return;
                }
            }
        });
        Ok(Source { chunks, chunk: Vec::new().into_iter(), read_bytes, bar, file: file.to_owned() })
    }

    async fn next(&mut self) -> Ended<Option<Row>> {
        loop {
            if let Some(row) = self.chunk.next() {
                return row.map(Some).map_err(|error| Stop::error(format!("{}: {error}", self.file.display())));
            }
            match self.chunks.recv().await {
                Some(chunk) => {
                    self.bar.set_position(self.read_bytes.load(Ordering::Relaxed));
                    self.chunk = chunk.into_iter();
                }
                None => return Ok(None),
            }
        }
    }
}

/// Which rows are acknowledged: all up to one, and some beyond it.
#[derive(Debug)]
struct Done {
    upto: u64,
    beyond: BTreeSet<u64>,
}

impl Done {
    /// Row `number` (from 1) is acknowledged.
    fn add(&mut self, number: u64) {
        self.beyond.insert(number);
        while self.beyond.remove(&(self.upto + 1)) {
            self.upto += 1;
        }
    }
}

/// The writing side.
struct Load<'a> {
    table: Table,
    in_flight_max: usize,
    checkpoint: &'a Checkpoint,
    clock: Clock,
    done: Done,
}

impl Load<'_> {
    /// Puts every row after the first `skip`; the number of rows in the file.
    async fn run(mut self, source: &mut Source, skip: u64) -> Ended<u64> {
        let mut in_flight = FuturesUnordered::new();
        let mut keys: HashSet<Bytes> = HashSet::new();
        let mut number = 0;
        let mut saved: Instant = self.clock.now();
        let mut failure: Option<Stop> = None;
        let mut waiting: Option<Row> = None;
        let mut at_end = false;
        loop {
            while failure.is_none() && !at_end && in_flight.len() < self.in_flight_max {
                let row = match waiting.take() {
                    Some(row) => row,
                    None => match source.next().await {
                        Ok(Some(row)) => {
                            number += 1;
                            if number <= skip {
                                continue;
                            }
                            row
                        }
                        Ok(None) => {
                            at_end = true;
                            break;
                        }
                        Err(stop) => {
                            failure = Some(stop);
                            break;
                        }
                    },
                };
                // A second write of a key in flight waits, so that the file's order decides which one lasts.
                if !keys.insert(row.key.clone()) {
                    waiting = Some(row);
                    break;
                }
                let (table, number) = (self.table.clone(), number);
                in_flight.push(async move {
                    let Row { line, key, value } = row;
                    let result = table.put(key.clone(), value).await;
                    (number, line, key, result)
                });
            }
            let Some((number, line, key, result)) = in_flight.next().await else { break };
            keys.remove(&key);
            match result {
                Ok(_) => self.done.add(number),
                Err(error) => {
                    failure.get_or_insert_with(|| {
                        Stop::from(error).about(format!("{}: line {line}", source.file.display()))
                    });
                }
            }
            let now = self.clock.now();
            if now - saved >= CHECKPOINT_EVERY {
                saved = now;
                self.checkpoint.save(&self.done.upto).map_err(Stop::error)?;
                source.bar.set_message(text::count(self.done.upto, "row"));
            }
        }
        match failure {
            None => Ok(number),
            Some(mut stop) => {
                if self.done.upto > 0 {
                    self.checkpoint.save(&self.done.upto).map_err(Stop::error)?;
                    stop.message = format!(
                        "{}\nimported before it: {}; the same command goes on from there",
                        stop.message,
                        text::count(self.done.upto, "row")
                    );
                }
                Err(stop)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rows_without_a_gap_before_them_are_done() {
        let mut done = Done { upto: 5, beyond: BTreeSet::new() };
        for number in [7, 9, 6] {
            done.add(number);
        }
        assert_eq!((done.upto, done.beyond.len()), (7, 1));
        done.add(8);
        assert_eq!((done.upto, done.beyond.len()), (9, 0));
    }
}
