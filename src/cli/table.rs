//! The verbs on tables: create, list, describe, drop.

use std::time::Duration;

use clap::Subcommand;
use trivet::types::Partitioning;
use trivet::wire::admin::{HISTORY_MS_DEFAULT, NewTable};

use super::exit::{Ended, Exit, Stop};
use super::{Global, render, text, time};

/// Create, list, describe and drop tables.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    Create(Create),
    List(List),
    Describe(Describe),
    Drop(Drop),
}

/// Creates a table.
///
/// A hash table spreads its keys over all shards and keeps the keys of one tag, {like this}, together. A range table
/// keeps its keys in order; it begins with one shard, or with those that --split cuts.
#[derive(Clone, Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("kind").required(true))]
#[command(
    after_help = "Examples:\n  trivet table create orders --hash --shards 8\n  trivet table create names --range --split g --split p\n  trivet table create events --range --group-delimiter / --history 7d\n  trivet table create prices --hash --read-replicas 1 --read-replica-zone east"
)]
pub struct Create {
    /// Its name
    name: String,
    /// Spread keys by hash
    #[arg(long, group = "kind")]
    hash: bool,
    /// Keep keys in order
    #[arg(long, group = "kind")]
    range: bool,
    /// Hash tables: how many shards [default: one for each node]
    #[arg(long, value_name = "N", conflicts_with = "range", value_parser = clap::value_parser!(u32).range(1..))]
    shards: Option<u32>,
    /// Range tables: a key at which a shard begins; may be given several times
    #[arg(long, value_name = "KEY", conflicts_with = "hash")]
    split: Vec<String>,
    /// Range tables: keys that are equal up to this form a group, which takes atomic batches and never splits
    #[arg(long, value_name = "TEXT", conflicts_with = "hash")]
    group_delimiter: Option<String>,
    /// Voters per shard [default: 3, or as many nodes as there are if fewer]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    replication: Option<u32>,
    /// Read replicas per shard: learners, on other nodes than the voters; they answer reads that let copies answer
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    read_replicas: Option<u32>,
    /// Put read replicas on nodes of this zone first
    #[arg(long, value_name = "ZONE", requires = "read_replicas")]
    read_replica_zone: Option<String>,
    /// How long replaced versions stay readable [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = time::parse_duration)]
    history: Option<Duration>,
    /// The split keys are hex digits
    #[arg(long)]
    hex: bool,
    /// Show what would be created and where, and create nothing
    #[arg(long)]
    dry_run: bool,
}

/// Lists the tables.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  trivet table list")]
pub struct List {}

/// Shows a table and its shards.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  trivet table describe orders")]
pub struct Describe {
    /// Its name
    name: String,
}

/// Drops a table and all its data. This cannot be undone.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  trivet table drop orders --yes")]
pub struct Drop {
    /// Its name
    name: String,
    /// Really drop it
    #[arg(long)]
    yes: bool,
    /// Show what would be dropped, and drop nothing
    #[arg(long)]
    dry_run: bool,
}

impl Create {
    fn table(&self) -> Result<NewTable, String> {
        let history_ms = self.history.map_or(HISTORY_MS_DEFAULT, |history| history.as_millis() as u64);
        let base = if self.hash {
            NewTable::hash(&self.name, self.shards.unwrap_or(0))
        } else {
            let points = self.split.iter().map(|key| text::argument(key, self.hex)).collect::<Result<_, _>>()?;
            let partitioning = Partitioning::Range { group_delimiter: self.group_delimiter.clone() };
            NewTable { partitioning, ..NewTable::range(&self.name, points) }
        };
        Ok(NewTable {
            replication: self.replication,
            read_replicas: self.read_replicas.unwrap_or(0),
            read_replica_zone: self.read_replica_zone.clone(),
            history_ms,
            dry_run: self.dry_run,
            ..base
        })
    }
}

/// Runs a table verb.
pub async fn run(verb: Verb, global: &Global) -> Ended {
    match verb {
        Verb::Create(args) => {
            let new = args.table().map_err(Stop::usage)?;
            let details = global.connect().await?.admin().create_table(new).await?;
            if global.json() {
                say!("{}", render::table_json(&details));
            } else {
                let said = if args.dry_run { "would create (--dry-run; nothing done)" } else { "created" };
                say_text!("{said} {}", render::table(&details));
            }
        }
        Verb::List(List {}) => {
            let list = global.connect().await?.admin().tables().await?;
            if global.json() {
                say!("{}", serde_json::Value::from(list.iter().map(render::table_json).collect::<Vec<_>>()));
            } else {
                say_text!("{}", render::tables(&list));
            }
        }
        Verb::Describe(args) => {
            let details = global.connect().await?.admin().table(&args.name).await?;
            if global.json() {
                say!("{}", render::table_json(&details));
            } else {
                say_text!("{}", render::table(&details));
            }
        }
        Verb::Drop(args) => {
            let client = global.connect().await?;
            let details = client.admin().table(&args.name).await?;
            let shards = text::count(details.shards.len(), "shard");
            if !args.yes && !args.dry_run {
                let text = format!("this drops table {} with its {shards} for good; say --yes", args.name);
                return Err(Stop::usage(text));
            }
            client.admin().drop_table(&args.name, args.dry_run).await?;
            if global.json() {
                say!(
                    "{}",
                    serde_json::json!({"dropped": args.name, "id": details.table.id.0, "dry_run": args.dry_run})
                );
            } else if args.dry_run {
                say!("would drop table {} with its {shards}; nothing done (--dry-run)", args.name);
            } else {
                say!("dropped table {}", args.name);
            }
        }
    }
    Ok(Exit::Ok)
}
