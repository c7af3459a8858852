//! The verbs on shards.

use std::time::Duration;

use clap::Subcommand;
use trivet::client::Client;
use trivet::runtime::{Clock, sleep};
use trivet::types::{NodeId, ShardId, Slot, TableDescriptor};
use trivet::wire::admin::{SplitPoint, SplitReport, TableDetails};

use super::exit::{Ended, Exit, Stop};
use super::{Global, merge, render, text, time};

/// Time between two looks while a verb waits.
pub const WAIT_STEP: Duration = Duration::from_millis(100);

/// List, describe, check, split, merge and move shards and their leaderships.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    List(List),
    Describe(Describe),
    Checksum(Checksum),
    Transfer(Transfer),
    Split(Split),
    Merge(merge::Merge),
    Move(Relocate),
}

/// Lists shards with what they own, who leads them and where their replicas are.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  trivet shard list\n  trivet shard list orders")]
pub struct List {
    /// Only this table's
    table: Option<String>,
}

/// Shows one shard as its leader sees it.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  trivet shard describe 3")]
pub struct Describe {
    /// Its id, as `shard list` shows it
    id: u64,
}

/// Compares the content of all replicas of a shard at one applied position.
///
/// Exits with 6 if they differ. With --all it checks every shard of every table, and the catalog's.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  trivet shard checksum 3\n  trivet shard checksum --all")]
pub struct Checksum {
    /// Its id, as `shard list` shows it
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    id: Option<u64>,
    /// Every shard
    #[arg(long)]
    all: bool,
}

/// Hands the leadership of a shard to another voter.
///
/// Where that makes leaderships uneven, balancing hands one back, unless it is paused (`cluster pause`).
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  trivet shard transfer 3 --to 2")]
pub struct Transfer {
    /// Its id, as `shard list` shows it
    id: u64,
    /// The node that is to lead it
    #[arg(long, value_name = "NODE")]
    to: u64,
    /// Say what would be done and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Splits a shard in two while it serves. No data is copied.
///
/// Without a place it is split where half of its bytes lie before. Keys with one tag (hash tables) or one group (range
/// tables with a group delimiter) stay together.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  trivet shard split 3\n  trivet shard split 3 --slot 9000\n  trivet shard split 4 --at user:5000 --dry-run"
)]
pub struct Split {
    /// Its id, as `shard list` shows it
    id: u64,
    /// The key with which the right part begins
    #[arg(long, value_name = "KEY", conflicts_with = "slot")]
    at: Option<String>,
    /// The key is given in hexadecimal digits
    #[arg(long, requires = "at")]
    hex: bool,
    /// The slot with which the right part begins (hash tables)
    #[arg(long)]
    slot: Option<u16>,
    /// Say what would be done and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Moves a replica of a shard to another node while the shard serves.
///
/// The newcomer is sent what there is, gets its vote when it has caught up, and the old replica goes. Returns when that is
/// wanted; it goes on by itself, whatever happens to this command. With --wait it returns when it is done.
#[derive(Clone, Debug, clap::Args)]
#[command(
    name = "move",
    after_help = "Examples:\n  trivet shard move 3 --from 1 --to 4 --wait 5m\n  trivet shard move 3 --from 1 --to 4 --dry-run"
)]
pub struct Relocate {
    /// Its id, as `shard list` shows it
    id: u64,
    /// The node that is to lose its replica
    #[arg(long, value_name = "NODE")]
    from: u64,
    /// The node that is to get one
    #[arg(long, value_name = "NODE")]
    to: u64,
    /// Wait up to this long until it is done; exits with 4 if it takes longer
    #[arg(long, value_name = "DURATION", value_parser = time::parse_duration, conflicts_with = "dry_run")]
    wait: Option<Duration>,
    /// Say what would be done and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs a shard verb.
pub async fn run(verb: Verb, global: &Global) -> Ended {
    let client = global.connect().await?;
    match verb {
        Verb::List(args) => {
            let tables = match &args.table {
                Some(name) => vec![client.admin().table(name).await?],
                None => client.admin().tables().await?,
            };
            if global.json() {
                let of = |table: &TableDetails| -> Vec<_> {
                    table.shards.iter().map(|shard| render::shard_json(Some(&table.table), shard)).collect()
                };
                say!("{}", serde_json::Value::from(tables.iter().flat_map(of).collect::<Vec<_>>()));
            } else {
                say_text!("{}", render::shards(&tables));
            }
        }
        Verb::Describe(args) => {
            let shard = client.admin().shard(ShardId(args.id)).await?;
            let table = table_of(&client, &shard.table).await?;
            if global.json() {
                say!("{}", render::shard_json(table.as_ref(), &shard));
            } else {
                say_text!("{}", render::shard(table.as_ref(), &shard));
            }
        }
        Verb::Checksum(args) => return checksum(&args, &client, global).await,
        Verb::Split(args) => return split(&args, &client, global).await,
        Verb::Merge(args) => return merge::run(&args, &client, global).await,
        Verb::Move(args) => return relocate(&args, &client, global).await,
        Verb::Transfer(args) => {
            let (shard, to) = (ShardId(args.id), NodeId(args.to));
            let before = client.admin().shard(shard).await?;
            if !before.replicas.iter().any(|replica| replica.node == to && replica.voter) {
                return Err(Stop::error(format!("{to} has no voter of shard {}", args.id)));
            }
            if !args.dry_run {
                client.admin().transfer_leader(shard, to).await?;
            }
            if global.json() {
                let from = before.leader.map(|node| node.0);
                say!("{}", serde_json::json!({"shard": args.id, "from": from, "to": args.to, "dry_run": args.dry_run}));
            } else {
                let from = before.leader.map_or_else(|| "nobody".to_owned(), |node| node.to_string());
                let said = if args.dry_run { "would go" } else { "went" };
                say!("the leadership of shard {} {said} from {from} to {to}", args.id);
            }
        }
    }
    Ok(Exit::Ok)
}

async fn split(args: &Split, client: &Client, global: &Global) -> Ended {
    let at = match (&args.at, args.slot) {
        (Some(key), _) => SplitPoint::Key(text::argument(key, args.hex).map_err(Stop::usage)?),
        (None, Some(slot)) => SplitPoint::Slot(Slot(slot)),
        (None, None) => SplitPoint::Middle,
    };
    let SplitReport { left, right } = client.admin().split_shard(ShardId(args.id), at, args.dry_run).await?;
    let table = table_of(client, &left.table).await?;
    if global.json() {
        let part = |shard| render::shard_json(table.as_ref(), shard);
        say!("{}", serde_json::json!({"left": part(&left), "right": part(&right), "dry_run": args.dry_run}));
    } else {
        let owned = |shard| table.as_ref().map_or_else(String::new, |table| render::owned(table, shard));
        let child = if args.dry_run { "a new shard".to_owned() } else { format!("shard {}", right.id.0) };
        let said = if args.dry_run { "would keep" } else { "keeps" };
        let gets = if args.dry_run { "would get" } else { "gets" };
        say!("shard {} {said} {}; {child} {gets} {}", left.id.0, owned(&left), owned(&right));
    }
    Ok(Exit::Ok)
}

async fn relocate(args: &Relocate, client: &Client, global: &Global) -> Ended {
    let (id, from, to) = (ShardId(args.id), NodeId(args.from), NodeId(args.to));
    let mut shard = client.admin().move_shard(id, from, to, args.dry_run).await?;
    let mut settled = false;
    if let Some(patience) = args.wait {
        let clock = Clock::system();
        let until = clock.now() + patience;
        loop {
            // A leader may be on its way from one to another: whoever answers next tells.
            if let Ok(seen) = client.admin().within(global.deadline).shard(id).await {
                settled = seen.settled == Some(true);
                shard = seen;
            }
            if settled || clock.now() >= until {
                break;
            }
            sleep(WAIT_STEP).await;
        }
    }
    let table = table_of(client, &shard.table).await?;
    if global.json() {
        let shard = render::shard_json(table.as_ref(), &shard);
        say!("{}", serde_json::json!({"shard": shard, "from": args.from, "to": args.to, "dry_run": args.dry_run}));
    } else if args.dry_run {
        say!("the replica of shard {} would move from {from} to {to}", args.id);
    } else if settled {
        say!("the replica of shard {} has moved from {from} to {to}", args.id);
    } else {
        say!(
            "the replica of shard {} moves from {from} to {to}; `trivet shard describe {}` shows it",
            args.id,
            args.id
        );
    }
    Ok(if args.wait.is_some() && !settled { Exit::Unavailable } else { Exit::Ok })
}

/// The table with this id, if it serves.
pub async fn table_of(client: &Client, id: &trivet::types::TableId) -> Ended<Option<TableDescriptor>> {
    let tables = client.admin().tables().await?;
    Ok(tables.into_iter().map(|details| details.table).find(|table| table.id == *id))
}

async fn checksum(args: &Checksum, client: &Client, global: &Global) -> Ended {
    let ids = match args.id {
        Some(id) => vec![ShardId(id)],
        None => {
            let tables = client.admin().tables().await?;
            let shards = tables.iter().flat_map(|table| table.shards.iter().map(|shard| shard.id));
            // The catalog's shard comes first, and once, whether or not it is listed among the tables.
            std::iter::once(ShardId::SYSTEM).chain(shards.filter(|id| *id != ShardId::SYSTEM)).collect()
        }
    };
    let mut exit = Exit::Ok;
    for id in ids {
        let report = client.admin().checksum(id).await?;
        if global.json() {
            say!("{}", render::checksum_json(&report));
        } else {
            say_text!("{}", render::checksum(&report));
        }
        // A replica that did not answer is no mismatch, but no proof of equality either.
        let contents: Vec<_> = report.replicas.iter().filter_map(|replica| replica.content.as_ref().ok()).collect();
        let differ = contents.windows(2).any(|pair| pair[0] != pair[1]);
        if differ {
            exit = Exit::Mismatch;
        } else if !report.equal && exit == Exit::Ok {
            exit = Exit::Unavailable;
        }
    }
    Ok(exit)
}
