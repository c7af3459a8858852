//! What a node is told about itself.
//!
//! [`Config`] is the whole configuration with every default filled in, and it is also the shape of the file: an
//! unknown key anywhere is an error. How file, environment and flags come together is `layers.rs`; what may stand in
//! each key is checked here, once, after they have come together, so that a value is refused in the same words
//! wherever it came from.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ops::logs;
use crate::types::{Limits, NodeId};

/// A node's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The node's number, unique in the cluster. Required, at least 1.
    pub id: NodeId,
    /// The data directory. Required.
    pub data: PathBuf,
    /// Where gRPC is served, `host:port`.
    pub listen: String,
    /// Where others reach it; empty: where it listens.
    pub advertise: String,
    /// Where metrics and health are served, `host:port`.
    pub http: String,
    /// What fails together; replicas of a shard go to distinct zones. May be empty.
    pub zone: String,
    /// The founding nodes, `id=host:port` each; for a fresh data directory.
    #[serde(alias = "peers")]
    pub found: Vec<String>,
    /// Nodes of the cluster to join, `host:port` each; for a fresh data directory.
    pub join: Vec<String>,
    /// Memory for blocks read from disk, MiB.
    pub block_cache_mb: u64,
    /// Memory for writes not yet in a sorted file, MiB.
    pub write_buffer_mb: u64,
    /// Threads that run the node; 0: as many as cores, but one if there are only two, since nodes and their clients
    /// then share them and one worker does 1.6 times the calls per CPU-second of two.
    pub worker_threads: u64,
    /// What is logged and how.
    pub log: Log,
    /// Time limits.
    pub timers: Timers,
    /// When shards are split unasked.
    pub split: Split,
    /// How views are looked after.
    pub views: Views,
    /// Bounds on requests.
    pub limits: Limits,
}

/// How views are looked after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Views {
    /// The share of one thread's time, in percent, in which views are compared with their sources unasked; 0: they are not.
    pub scrub_percent: u64,
    /// So long after one such comparison the next one begins, in milliseconds.
    pub scrub_every_ms: u64,
}

impl Default for Views {
    fn default() -> Views {
        Views { scrub_percent: 5, scrub_every_ms: 600_000 }
    }
}

/// When shards are split unasked. What the node says that leads the catalog holds for the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Split {
    /// Above so many MiB.
    pub mb: u64,
    /// Above so many requests per second for a while, if that helps.
    pub requests_per_second: u64,
    /// What was split is merged again when it has been small and cold for so long: far below both of the above.
    pub merge_after_ms: u64,
}

impl Default for Split {
    fn default() -> Split {
        Split { mb: 256, requests_per_second: 40_000, merge_after_ms: 3_600_000 }
    }
}

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, or directives such as `info,trivet::raft=warn`.
    pub level: String,
    /// The shape of a line.
    pub format: logs::Format,
}

/// Time limits, all in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timers {
    /// How often a leader tells its followers that it lives.
    pub heartbeat_ms: u64,
    /// A follower that hears nothing for between this, at least one and a half heartbeats, …
    pub election_min_ms: u64,
    /// … and this long asks to be elected.
    pub election_max_ms: u64,
    /// How long calls in flight may go on when the node is told to stop.
    pub drain_ms: u64,
    /// How long a node may be silent before its replicas are made anew elsewhere.
    pub replace_lost_ms: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            id: NodeId(0),
            data: PathBuf::new(),
            listen: "127.0.0.1:7401".into(),
            advertise: String::new(),
            http: "127.0.0.1:7501".into(),
            zone: String::new(),
            found: Vec::new(),
            join: Vec::new(),
            block_cache_mb: 64,
            write_buffer_mb: 64,
            worker_threads: 0,
            log: Log::default(),
            timers: Timers::default(),
            split: Split::default(),
            views: Views::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { level: "info".into(), format: logs::Format::Text }
    }
}

impl Default for Timers {
    fn default() -> Timers {
        Timers {
            heartbeat_ms: 400,
            election_min_ms: 600,
            election_max_ms: 1_000,
            drain_ms: 10_000,
            replace_lost_ms: REPLACE_LOST_MS_DEFAULT,
        }
    }
}

/// One key whose value cannot stand, and why.
#[derive(Debug, PartialEq)]
pub(super) struct Problem {
    pub key: &'static str,
    pub message: String,
}

/// Below this a RocksDB node spends its time evicting and flushing.
const BLOCK_CACHE_MB_MIN: u64 = 8;
const WRITE_BUFFER_MB_MIN: u64 = 4;
/// One TiB: more than any machine this was thought for, and far from overflow in bytes.
const MEMORY_MB_MAX: u64 = 1 << 20;
const WORKER_THREADS_MAX: u64 = 1_024;
const ZONE_BYTES_MAX: usize = 64;
/// Less would make more shards than the data is worth.
const SPLIT_MB_MIN: u64 = 1;
const SPLIT_REQUESTS_MIN: u64 = 10;
/// A minute: what waits longer before it stands for election is no failover.
const ELECTION_MIN_MS_MAX: u64 = 60_000;
/// Sooner would undo a split before its effect is seen; later than a month is never.
const MERGE_AFTER_MS_MIN: u64 = 1_000;
const MERGE_AFTER_MS_MAX: u64 = 31 * 24 * 3_600_000;
const SCRUB_PERCENT_MAX: u64 = 50;
/// Oftener is all the time.
const SCRUB_EVERY_MS_MIN: u64 = 1_000;
const SCRUB_EVERY_MS_MAX: u64 = 31 * 24 * 3_600_000;
/// Ten minutes: a machine has come back from a restart by then, and copying what it held costs more than waiting for it.
const REPLACE_LOST_MS_DEFAULT: u64 = 600_000;
/// Less would take a pause for a loss; more than a month means never.
const REPLACE_LOST_MS_MIN: u64 = 5_000;
const REPLACE_LOST_MS_MAX: u64 = 31 * 24 * 3_600_000;
/// Ten minutes: a stop that waits longer is a hang.
const DRAIN_MS_MAX: u64 = 600_000;
/// Bounds on the configurable limits themselves: a key must fit an index block many times over, a batch a log entry
/// and a gRPC message.
const KEY_BYTES_CEILING: usize = 64 << 10;
const BATCH_BYTES_CEILING: usize = 32 << 20;
const COUNT_CEILING: usize = 1 << 20;

impl Config {
    /// Whether the list of founders or the list of nodes to join is given; what they say has been checked.
    pub fn founders(&self) -> BTreeMap<NodeId, String> {
        self.found.iter().filter_map(|entry| founder(entry).ok()).collect()
    }

    /// The number of worker threads on a machine with this many cores.
    pub fn workers(&self, cores: usize) -> usize {
        match self.worker_threads {
            0 if cores <= 2 => 1,
            0 => cores,
            // Bounded by WORKER_THREADS_MAX, so it fits.
            n => n as usize,
        }
    }

    /// Fills in what follows from other keys.
    pub(super) fn complete(&mut self) {
        if self.advertise.is_empty() {
            self.advertise.clone_from(&self.listen);
        }
    }

    /// Everything in it that cannot stand.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        let mut problem = |key, message: String| found.push(Problem { key, message });

        if self.id.0 == 0 {
            problem("id", "is required: the number of this node, at least 1 and unique in the cluster".into());
        }
        if self.data.as_os_str().is_empty() {
            problem("data", "is required: the directory where this node keeps its data".into());
        }
        for (key, value) in [("listen", &self.listen), ("advertise", &self.advertise), ("http", &self.http)] {
            match address(value) {
                // One mistake, one report: `advertise` follows `listen`.
                Err(_) if key == "advertise" && self.advertise == self.listen => {}
                Err(why) => problem(key, why),
                Ok((host, _)) if key == "advertise" && is_unspecified(host) => {
                    problem(
                        key,
                        format!("nobody can reach `{host}`: name an address of this machine (it defaults to `listen`)"),
                    );
                }
                Ok(_) => {}
            }
        }
        if self.zone.len() > ZONE_BYTES_MAX || self.zone.chars().any(char::is_control) {
            problem("zone", format!("must be at most {ZONE_BYTES_MAX} bytes of printable text"));
        }
        for (key, why) in self.bootstrap_problems() {
            problem(key, why);
        }

        let timers = &self.timers;
        // A follower acts after `election_max` and then `election_min` without a word, so two heartbeats may get lost and a
        // third be late before it does.
        let election_min_ms = timers.heartbeat_ms.saturating_mul(3).div_ceil(2)..=ELECTION_MIN_MS_MAX;
        if !election_min_ms.contains(&timers.election_min_ms) {
            let (is, low, high) = (timers.election_min_ms, election_min_ms.start(), election_min_ms.end());
            let why = format!("is {is}, must be from {low} (one and a half times timers.heartbeat_ms) to {high}");
            problem("timers.election_min_ms", why);
        }
        let mut within = |key, value: u64, low: u64, high: u64| {
            if value < low || value > high {
                problem(key, format!("is {value}, must be from {low} to {high}"));
            }
        };
        within("block_cache_mb", self.block_cache_mb, BLOCK_CACHE_MB_MIN, MEMORY_MB_MAX);
        within("write_buffer_mb", self.write_buffer_mb, WRITE_BUFFER_MB_MIN, MEMORY_MB_MAX);
        within("worker_threads", self.worker_threads, 0, WORKER_THREADS_MAX);
        within("timers.heartbeat_ms", timers.heartbeat_ms, 10, 10_000);
        within("timers.election_max_ms", timers.election_max_ms, timers.election_min_ms.saturating_add(50), 120_000);
        within("timers.drain_ms", timers.drain_ms, 0, DRAIN_MS_MAX);
        within("timers.replace_lost_ms", timers.replace_lost_ms, REPLACE_LOST_MS_MIN, REPLACE_LOST_MS_MAX);

        within("split.mb", self.split.mb, SPLIT_MB_MIN, MEMORY_MB_MAX);
        within("split.merge_after_ms", self.split.merge_after_ms, MERGE_AFTER_MS_MIN, MERGE_AFTER_MS_MAX);
        within("views.scrub_percent", self.views.scrub_percent, 0, SCRUB_PERCENT_MAX);
        within("views.scrub_every_ms", self.views.scrub_every_ms, SCRUB_EVERY_MS_MIN, SCRUB_EVERY_MS_MAX);
        within("split.requests_per_second", self.split.requests_per_second, SPLIT_REQUESTS_MIN, u64::MAX);
        let limits = &self.limits;
        let mut size = |key, value: usize, low: usize, high: usize| within(key, value as u64, low as u64, high as u64);
        size("limits.key_bytes_max", limits.key_bytes_max, 16, KEY_BYTES_CEILING);
        size("limits.value_bytes_max", limits.value_bytes_max, 1, limits.batch_bytes_max);
        size("limits.batch_operations_max", limits.batch_operations_max, 1, COUNT_CEILING);
        size("limits.batch_bytes_max", limits.batch_bytes_max, limits.key_bytes_max, BATCH_BYTES_CEILING);
        size("limits.page_rows_max", limits.page_rows_max, 1, COUNT_CEILING);
        size("limits.page_bytes_max", limits.page_bytes_max, 1_024, BATCH_BYTES_CEILING);
        size("limits.batch_get_keys_max", limits.batch_get_keys_max, 1, COUNT_CEILING);

        if let Err(why) = logs::check(&self.log.level) {
            problem("log.level", why);
        }
        found
    }

    fn bootstrap_problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        if !self.found.is_empty() && !self.join.is_empty() {
            found.push(("join", "`found` and `join` exclude each other: a node founds a cluster or joins one".into()));
        }
        for entry in &self.join {
            if let Err(why) = peer_address(entry) {
                found.push(("join", why));
            }
        }
        let (mut ids, mut addresses) = (BTreeMap::new(), BTreeSet::new());
        for entry in &self.found {
            match founder(entry) {
                Err(why) => found.push(("found", why)),
                Ok((id, address)) => {
                    if !addresses.insert(address.clone()) {
                        found.push(("found", format!("two nodes have the address {address}")));
                    }
                    if ids.insert(id, address).is_some() {
                        found.push(("found", format!("node {} is named twice", id.0)));
                    }
                }
            }
        }
        if !self.found.is_empty() && self.id.0 != 0 {
            match ids.get(&self.id) {
                None => found.push(("found", format!("must name this node too, `{}={}`", self.id.0, self.advertise))),
                Some(address) if *address != self.advertise => {
                    let why =
                        format!("says that node {} is at {address}, but it advertises {}", self.id.0, self.advertise);
                    found.push(("found", why));
                }
                Some(_) => {}
            }
        }
        found
    }
}

/// Splits `host:port`; an IPv6 host stands in brackets.
pub(super) fn address(text: &str) -> Result<(&str, u16), String> {
    let wrong = || format!("`{text}` is not an address of the form host:port");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let bracketed = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
    let host = bracketed.unwrap_or(host);
    let colons = bracketed.is_none() && host.contains(':');
    if host.is_empty() || colons || host.contains(|c: char| c.is_whitespace() || c == '/' || c == '[' || c == ']') {
        return Err(wrong());
    }
    Ok((host, port.parse().map_err(|_| wrong())?))
}

/// Whether a host means "every address of this machine", which nobody can connect to from elsewhere.
pub(super) fn is_unspecified(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
}

/// Checks an address to connect to: it has a port, and a host that can be reached.
fn peer_address(text: &str) -> Result<(), String> {
    match address(text)? {
        (_, 0) => Err(format!("`{text}` has port 0, which nobody can connect to")),
        (host, _) if is_unspecified(host) => Err(format!("`{text}` names no machine")),
        _ => Ok(()),
    }
}

/// Splits `id=host:port`.
fn founder(entry: &str) -> Result<(NodeId, String), String> {
    let wrong = || format!("`{entry}` is not of the form id=host:port");
    let (id, address) = entry.split_once('=').ok_or_else(wrong)?;
    let id = id.trim().parse::<u64>().map_err(|_| wrong())?;
    if id == 0 {
        return Err(format!("`{entry}` names node 0; numbers begin at 1"));
    }
    let address = address.trim();
    peer_address(address)?;
    Ok((NodeId(id), address.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Config {
        let mut config = Config { id: NodeId(1), data: "/somewhere".into(), ..Config::default() };
        config.complete();
        config
    }

    fn why_not(change: impl FnOnce(&mut Config)) -> Vec<String> {
        let mut config = good();
        change(&mut config);
        config.problems().into_iter().map(|problem| format!("{}: {}", problem.key, problem.message)).collect()
    }

    #[test]
    fn a_node_needs_an_id_and_a_directory_and_nothing_else() {
        assert_eq!(good().problems(), []);
        assert_eq!(good().advertise, good().listen);
        let keys: Vec<_> = Config::default().problems().into_iter().map(|problem| problem.key).collect();
        assert_eq!(keys, ["id", "data", "advertise"], "advertise is empty until the config is completed");
    }

    #[test]
    fn addresses_are_host_and_port() {
        assert_eq!(address("127.0.0.1:7401"), Ok(("127.0.0.1", 7401)));
        assert_eq!(address("[::1]:7401"), Ok(("::1", 7401)));
        assert_eq!(address("node-1.example:0"), Ok(("node-1.example", 0)));
        for wrong in
            ["", "7401", ":7401", "localhost", "localhost:", "localhost:99999", "::1:7401", "http://x:1", "a b:1"]
        {
            assert!(address(wrong).is_err(), "{wrong}");
        }
        assert_eq!(why_not(|c| c.listen = "x".into()), ["listen: `x` is not an address of the form host:port"]);
        assert!(
            why_not(|c| c.advertise = "0.0.0.0:7401".into())[0].starts_with("advertise: nobody can reach `0.0.0.0`")
        );
        assert!(why_not(|c| c.advertise = "[::]:7401".into())[0].starts_with("advertise: nobody can reach `::`"));
    }

    #[test]
    fn founders_name_this_node_where_it_is() {
        let list = |entries: &[&str]| entries.iter().map(|e| e.to_string()).collect::<Vec<_>>();
        assert_eq!(why_not(|c| c.found = list(&["1=127.0.0.1:7401", "2=127.0.0.1:7402"])), [] as [String; 0]);
        let mut config = good();
        config.found = list(&["1=127.0.0.1:7401", " 2 = b:7402"]);
        assert_eq!(
            config.founders(),
            BTreeMap::from([(NodeId(1), "127.0.0.1:7401".into()), (NodeId(2), "b:7402".into())])
        );

        assert_eq!(why_not(|c| c.found = list(&["2=b:1"])), ["found: must name this node too, `1=127.0.0.1:7401`"]);
        assert_eq!(
            why_not(|c| c.found = list(&["1=b:1"])),
            ["found: says that node 1 is at b:1, but it advertises 127.0.0.1:7401"]
        );
        assert_eq!(
            why_not(|c| c.found = list(&["1=127.0.0.1:7401", "2=127.0.0.1:7401", "2=c:1", "x=d:1", "0=e:1", "3=f:0"])),
            [
                "found: two nodes have the address 127.0.0.1:7401",
                "found: node 2 is named twice",
                "found: `x=d:1` is not of the form id=host:port",
                "found: `0=e:1` names node 0; numbers begin at 1",
                "found: `f:0` has port 0, which nobody can connect to",
            ]
        );
        let both = why_not(|c| (c.found, c.join) = (list(&["1=127.0.0.1:7401"]), list(&["b:1"])));
        assert_eq!(both, ["join: `found` and `join` exclude each other: a node founds a cluster or joins one"]);
    }

    #[test]
    fn numbers_have_bounds() {
        assert_eq!(why_not(|c| c.block_cache_mb = 1), ["block_cache_mb: is 1, must be from 8 to 1048576"]);
        assert_eq!(
            why_not(|c| c.timers.heartbeat_ms = 401),
            ["timers.election_min_ms: is 600, must be from 602 (one and a half times timers.heartbeat_ms) to 60000"]
        );
        assert_eq!(why_not(|c| (c.timers.heartbeat_ms, c.timers.election_min_ms) = (401, 602)), [] as [String; 0]);
        assert_eq!(
            why_not(|c| (c.timers.election_min_ms, c.timers.election_max_ms) = (60_001, 70_000)),
            ["timers.election_min_ms: is 60001, must be from 600 (one and a half times timers.heartbeat_ms) to 60000"]
        );
        assert_eq!(
            why_not(|c| c.limits.value_bytes_max = 5 << 20),
            ["limits.value_bytes_max: is 5242880, must be from 1 to 4194304"]
        );
        assert!(why_not(|c| c.log.level = "trivet=loud".into())[0].starts_with("log.level: "));
        assert!(why_not(|c| c.zone = "z".repeat(65))[0].starts_with("zone: "));
    }

    #[test]
    fn workers_follow_the_cores() {
        let mut config = good();
        assert_eq!([1, 2, 4, 16].map(|cores| config.workers(cores)), [1, 1, 4, 16]);
        config.worker_threads = 3;
        assert_eq!(config.workers(2), 3);
    }
}
