//! The flags of `trivet serve`.
//!
//! Every key of the configuration can be given by three means, and a flag beats the environment, which beats the
//! file, which beats the default. The keys one types have a flag of their own; the others are reached by `--set`.

use std::path::PathBuf;

use toml::Value;

/// Runs a node.
///
/// A fresh data directory needs either `--found` (all founding nodes get the same list) or `--join` (the addresses of
/// some nodes of a running cluster); a directory that already belongs to a cluster ignores both. Every key of the
/// configuration file can also be set by an environment variable: TRIVET_ and its name in capitals, for instance
/// TRIVET_ID or TRIVET_LOG_LEVEL.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// The configuration file (TOML) [env: TRIVET_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The number of this node, unique in the cluster and never changed
    // As far as a number in the configuration file reaches.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64))]
    pub id: Option<u64>,
    /// The data directory, of this node alone
    #[arg(long, value_name = "DIRECTORY")]
    pub data: Option<PathBuf>,
    /// Where to serve gRPC
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Where other nodes and clients reach this node's gRPC port, if not at the address it listens on
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Where to serve metrics and health over HTTP
    #[arg(long, value_name = "HOST:PORT")]
    pub http: Option<String>,
    /// What fails together with this node: replicas of a shard go to distinct zones
    #[arg(long, value_name = "NAME")]
    pub zone: Option<String>,
    /// Found a cluster of these nodes, this one included; the same list on each of them
    #[arg(long, alias = "peers", value_name = "ID=HOST:PORT", value_delimiter = ',', conflicts_with = "join")]
    pub found: Option<Vec<String>>,
    /// Join the cluster that these nodes belong to
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub join: Option<Vec<String>>,
    /// Memory for blocks read from disk, in MiB
    #[arg(long, value_name = "MIB")]
    pub block_cache_mb: Option<u64>,
    /// Memory for writes not yet in a sorted file, in MiB
    #[arg(long, value_name = "MIB")]
    pub write_buffer_mb: Option<u64>,
    /// Threads that run the node; 0 follows the cores
    #[arg(long, value_name = "N")]
    pub worker_threads: Option<u64>,
    /// What to log: error, warn, info, or directives such as `info,trivet::raft=warn`
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// How to log: text or json
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Set any other key, for instance `--set timers.heartbeat_ms=100`
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Print the configuration in effect and exit; errors name the key and exit with 2
    #[arg(long)]
    pub check_config: bool,
}

impl Flags {
    /// The flags given, as (key, its flag, value).
    pub(super) fn given(&self) -> Vec<(&'static str, &'static str, Value)> {
        let text = |value: &Option<String>| value.clone().map(Value::String);
        let count = |value: Option<u64>| value.map(|n| Value::Integer(i64::try_from(n).unwrap_or(i64::MAX)));
        let list = |value: &Option<Vec<String>>| {
            value.as_ref().map(|items| Value::Array(items.iter().cloned().map(Value::String).collect()))
        };
        let data = self.data.as_ref().map(|path| Value::String(path.to_string_lossy().into_owned()));
        [
            ("id", "--id", count(self.id)),
            ("data", "--data", data),
            ("listen", "--listen", text(&self.listen)),
            ("advertise", "--advertise", text(&self.advertise)),
            ("http", "--http", text(&self.http)),
            ("zone", "--zone", text(&self.zone)),
            ("found", "--found", list(&self.found)),
            ("join", "--join", list(&self.join)),
            ("block_cache_mb", "--block-cache-mb", count(self.block_cache_mb)),
            ("write_buffer_mb", "--write-buffer-mb", count(self.write_buffer_mb)),
            ("worker_threads", "--worker-threads", count(self.worker_threads)),
            ("log.level", "--log-level", text(&self.log_level)),
            ("log.format", "--log-format", text(&self.log_format)),
        ]
        .into_iter()
        .filter_map(|(key, flag, value)| Some((key, flag, value?)))
        .collect()
    }
}
