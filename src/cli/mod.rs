//! The command line: every verb of the `trivet` binary.
//!
//! Promise: a verb says what it did on the standard output, in words and tables for a person or as JSON (`-o json`) for a
//! program; everything else (progress, complaints) goes to the standard error; and it ends with one of a few exit codes
//! (`exit.rs`). Lists of rows are JSON lines, all else is one JSON document. Versions are text in JSON, being larger than
//! its numbers; bytes that are no text stand as hex under a name with `_hex`.
//!
//! How a command passes: clap parses [`Cli`]; `serve` goes to `trivet::server`, every other verb to its own file here,
//! which connects with the public Rust client and renders with the pure functions of `render.rs`. The binary uses the
//! library as any other program would: what is needed here is public there.
//!
//! Left out: anything a node must decide. Retries, routing and deadlines are the client's, checks are the server's.

/// Prints a line on the standard output; a reader that has gone ends the command (see `Stop`).
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout(), $($part)*)?
    }};
}

/// Prints text that ends its own lines.
macro_rules! say_text {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        write!(std::io::stdout(), $($part)*)?
    }};
}

mod batch;
mod bench;
mod checkpoint;
mod cluster;
mod data;
mod debug;
mod exit;
mod export;
#[cfg(test)]
mod golden;
mod import;
mod merge;
mod node;
mod order;
mod order_read;
mod render;
mod scan;
mod shard;
mod table;
mod text;
mod time;
mod view;
mod watch;

use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use trivet::client::{Client, Options};

pub use exit::{Ended, Exit, Stop};

/// Where the local cluster of `cluster/up` listens.
const ENDPOINTS_DEFAULT: &str = "127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403";

/// A distributed sharded key-value store whose copies know their age.
///
/// Data verbs take a TABLE, then a KEY. Any node of the cluster can be asked.
#[derive(Debug, Parser)]
#[command(name = "trivet", version, max_term_width = 100, propagate_version = false)]
#[command(after_help = "\
Exit codes:
  0 done   1 failed   2 wrong usage   3 not found, or a condition did not hold
  4 unavailable, timed out or outcome unknown   5 cluster not healthy
  6 verification found a mismatch   7 denied

Examples:
  trivet table create orders --hash --shards 8
  trivet put orders o-1 '{\"amount\": 1177}'
  trivet get orders o-1 -o json
  trivet scan orders --prefix o- --limit 10
  trivet cluster status")]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// What every verb but `serve` takes.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Common options")]
pub struct Global {
    /// Nodes to ask, host:port each; others are found through them
    #[arg(long, global = true, env = "TRIVET_ENDPOINTS", hide_env_values = true, value_name = "HOST:PORT",
          value_delimiter = ',', default_value = ENDPOINTS_DEFAULT)]
    endpoints: Vec<String>,
    /// How to print: table, for a person, or json, for a program (lists of rows as JSON lines)
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table, hide_possible_values = true)]
    output: Output,
    /// Longest time for one call, retries included
    #[arg(long, global = true, value_name = "DURATION", default_value = "5s", value_parser = time::parse_duration)]
    deadline: Duration,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Words and tables
    Table,
    /// JSON; lists of rows as JSON lines
    Json,
}

impl Global {
    /// Whether output is for a program.
    fn json(&self) -> bool {
        self.output == Output::Json
    }

    /// A client of the cluster.
    async fn connect(&self) -> Ended<Client> {
        self.connect_by(true).await
    }

    /// A client of the cluster that gathers calls in streams, or sends each by itself.
    async fn connect_by(&self, pipelined: bool) -> Ended<Client> {
        let default = Options::default();
        // Verbs of the cluster take longer than a call; only a longer deadline changes theirs.
        let admin_deadline = default.admin_deadline.max(self.deadline);
        let options = Options { deadline: self.deadline, admin_deadline, pipelined, ..Options::default() };
        Ok(Client::connect(&self.endpoints, options).await?)
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    Serve(trivet::server::Flags),
    Get(data::Get),
    Put(data::Put),
    Del(data::Del),
    Cas(data::Cas),
    Incr(data::Incr),
    Batch(batch::Args),
    Scan(scan::Scan),
    History(scan::History),
    Rollback(scan::Rollback),
    Watch(watch::Args),
    Import(import::Args),
    Export(export::Args),
    #[command(subcommand)]
    Table(table::Verb),
    #[command(subcommand)]
    View(view::Verb),
    #[command(subcommand)]
    Order(order::Verb),
    #[command(subcommand)]
    Shard(shard::Verb),
    #[command(subcommand)]
    Node(node::Verb),
    #[command(subcommand)]
    Cluster(cluster::Verb),
    Bench(Box<bench::Args>),
    #[command(subcommand)]
    Debug(debug::Verb),
    Version(Version),
}

/// Prints the version of this binary.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  trivet version")]
struct Version {}

impl Cli {
    /// Runs the command; what went wrong is on the standard error when this returns.
    pub fn run(self) -> Exit {
        let Cli { global, verb } = self;
        let threads = match &verb {
            Verb::Bench(args) => args.threads(),
            _ => 1,
        };
        let ended = match verb {
            Verb::Serve(flags) => serve(&flags),
            verb => runtime(threads).and_then(|runtime| runtime.block_on(run(verb, &global))),
        };
        ended.unwrap_or_else(|stop| {
            if !stop.message.is_empty() {
                eprintln!("trivet: {}", stop.message);
            }
            stop.exit
        })
    }
}

/// Runs a node until it is told to stop.
fn serve(flags: &trivet::server::Flags) -> Ended {
    // A broken invariant ends the node, not only the task that noticed: the others take over from a node that is gone,
    // not from one that lacks a part.
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
    trivet::server::serve(flags).map_err(|error| {
        let exit = if error.exit_code() == Exit::Usage as u8 { Exit::Usage } else { Exit::Error };
        Stop { exit, message: error.to_string() }
    })?;
    Ok(Exit::Ok)
}

/// One thread is enough for a client and, on few cores, the cheapest; only a benchmark may want more.
fn runtime(threads: usize) -> Ended<tokio::runtime::Runtime> {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build().map_err(|error| Stop::error(format!("cannot start: {error}")))
}

async fn run(verb: Verb, global: &Global) -> Ended {
    match verb {
        Verb::Serve(_) => unreachable!("served before the client's runtime is made"),
        Verb::Get(args) => data::get(args, global).await,
        Verb::Put(args) => data::put(args, global).await,
        Verb::Del(args) => data::del(args, global).await,
        Verb::Cas(args) => data::cas(args, global).await,
        Verb::Incr(args) => data::incr(args, global).await,
        Verb::Batch(args) => batch::run(args, global).await,
        Verb::Scan(args) => scan::scan(args, global).await,
        Verb::History(args) => scan::history(args, global).await,
        Verb::Rollback(args) => scan::rollback(args, global).await,
        Verb::Watch(args) => watch::run(args, global).await,
        Verb::Import(args) => import::run(args, global).await,
        Verb::Export(args) => export::run(args, global).await,
        Verb::Table(verb) => table::run(verb, global).await,
        Verb::View(verb) => view::run(verb, global).await,
        Verb::Order(verb) => order::run(verb, global).await,
        Verb::Shard(verb) => shard::run(verb, global).await,
        Verb::Node(verb) => node::run(verb, global).await,
        Verb::Cluster(verb) => cluster::run(verb, global).await,
        Verb::Bench(args) => bench::run(*args, global).await,
        Verb::Debug(verb) => debug::run(verb, global),
        Verb::Version(Version {}) => version(global),
    }
}

fn version(global: &Global) -> Ended {
    let version = env!("CARGO_PKG_VERSION");
    if global.json() {
        say!("{}", serde_json::json!({"name": "trivet", "version": version}));
    } else {
        say!("trivet {version}");
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// All help texts below a command, each under its full name. Flags of `serve` are the server's own affair.
    #[cfg(not(feature = "peers"))]
    fn helps(command: &mut clap::Command, name: &str, into: &mut String) {
        into.push_str(&format!("$ {name} --help\n{}\n", command.render_long_help()));
        for below in command.get_subcommands_mut().filter(|below| !matches!(below.get_name(), "serve" | "help")) {
            let name = format!("{name} {}", below.get_name());
            helps(below, &name, into);
        }
    }

    #[test]
    #[cfg(not(feature = "peers"))]
    fn every_verb_explains_itself() {
        let mut command = Cli::command().term_width(100);
        command.build();
        let mut text = String::new();
        helps(&mut command, "trivet", &mut text);
        golden::check("help", &text);
        for (at, _) in text.match_indices("\n$ ") {
            let help = text[at + 1..].split("\n$ ").next().unwrap_or_default();
            let is_group = help.contains("\nCommands:\n");
            assert!(is_group || help.contains("\nExample"), "no example: {}", help.lines().next().unwrap_or_default());
        }
    }

    fn parse(line: &str) -> Result<Cli, clap::error::ErrorKind> {
        Cli::try_parse_from(line.split(' ')).map_err(|error| error.kind())
    }

    #[test]
    fn command_lines_are_understood_or_refused() {
        Cli::command().debug_assert();
        for good in [
            "trivet get t k --as-of 7",
            "trivet -o json get t k --level max-age=2s",
            "trivet put t k v --ttl 30m --endpoints a:1,b:2",
            "trivet put t k --file x",
            "trivet incr t k -5",
            "trivet cas t k v --absent",
            "trivet cas t k --delete --expect-version 7",
            "trivet scan t --tag a --reverse --limit 5",
            "trivet rollback t k --to 7 --dry-run",
            "trivet watch t --tag a --previous --only puts --after 7 --limit 3 --cursors",
            "trivet import t f.csv --key {a}/{b}",
            "trivet table create t --hash --shards 8",
            "trivet table create t --range --split a --split b --group-delimiter /",
            "trivet view create - --wait --replication 1 --history 7d",
            "trivet view create --wait=5m v.toml",
            "trivet view create v.toml --dry-run -o json",
            "trivet view verify v --repair",
            "trivet view drop v --dry-run",
            "trivet order setup --shards 3 --dry-run",
            "trivet order create --user 42 --key k --amount 12.50 --item p-1:2:6.25 --created 2026-01-31T12:00:00Z",
            "trivet order transition o-1 paid --if-version 7 --request r",
            "trivet order list 42 --status paid --status refunded --limit 5 --level at-least=7",
            "trivet order archive --older-than 90d --limit 5 --dry-run",
            "trivet shard checksum --all",
            "trivet cluster status --wait 60s -o json",
            "trivet bench --mix read=95,write=5 --distribution zipfian:0.99 --pids 1,2,3",
            "trivet bench --verify j --ops 5",
            "trivet debug recover plan a.json b.json --lost 3,4 --lost 5 --save p",
            "trivet debug recover apply p --data d --dry-run",
            "trivet debug recover apply p --data d --yes-i-accept-that-data-may-be-lost",
        ] {
            assert!(parse(good).is_ok(), "{good}: {:?}", parse(good).err());
        }
        for bad in [
            "trivet get t",
            "trivet get t k --as-of 7 --level any",
            "trivet put t k",
            "trivet put t k v --file x",
            "trivet put t k v --ttl 5",
            "trivet cas t k v",
            "trivet cas t k v --absent --expect x",
            "trivet scan t --tag a --prefix b",
            "trivet watch t --only both",
            "trivet watch t --resume 00 --checkpoint f",
            "trivet import t f --key orders",
            "trivet table create t",
            "trivet table create t --hash --range",
            "trivet table create t --hash --split a",
            "trivet table create t --range --shards 3",
            "trivet view create",
            "trivet view create v.toml --wait --dry-run",
            "trivet view create v.toml --wait 5m",
            "trivet view create v.toml --replication 0",
            "trivet view verify",
            "trivet order create --user 42 --key k",
            "trivet order create --user 42 --key k --amount -5",
            "trivet order create --user 42 --key k --amount 5 --item p-1:none",
            "trivet order transition o-1 lost",
            "trivet order list 42 --status lost",
            "trivet order list 42 --limit 0",
            "trivet order archive",
            "trivet shard checksum",
            "trivet bench --mix reads=1",
            "trivet bench --rate 0",
            "trivet bench --time 5s --ops 5",
            "trivet debug recover apply p --data d",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
