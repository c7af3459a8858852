//! The verb that merges two shards.

use std::time::Duration;

use trivet::client::Client;
use trivet::runtime::{Clock, sleep};
use trivet::types::{Reason, ShardId};

use super::exit::{Ended, Exit};
use super::shard::{WAIT_STEP, table_of};
use super::{Global, render, time};

/// Merges a shard with its right neighbour while they serve. No data is copied, unless replicas of the right one have to
/// move first, to lie beside those of the left.
///
/// The left one takes over the range of the right one, which ends. Returns when that is wanted; it goes on by itself,
/// whatever happens to this command, unless a replica fails in the very moment: then the merge is off. With --wait it
/// returns when it is done, and is wanted anew if need be.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  trivet shard merge 3 7 --wait 1m\n  trivet shard merge 3 7 --dry-run\n\n`trivet shard list` shows which shards are neighbours."
)]
pub struct Merge {
    /// The id of the left shard, as `shard list` shows it
    left: u64,
    /// The id of its right neighbour
    right: u64,
    /// Wait up to this long until it is done; exits with 4 if it takes longer
    #[arg(long, value_name = "DURATION", value_parser = time::parse_duration, conflicts_with = "dry_run")]
    wait: Option<Duration>,
    /// Say what would be done and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs it.
pub async fn run(args: &Merge, client: &Client, global: &Global) -> Ended {
    let (left, right) = (ShardId(args.left), ShardId(args.right));
    let mut shard = client.admin().merge_shards(left, right, args.dry_run).await?;
    let mut done = false;
    if let Some(patience) = args.wait {
        let clock = Clock::system();
        let until = clock.now() + patience;
        loop {
            // Wanted again and again: a merge is called off if a member fails just then, and as it is it changes nothing. Other
            // errors pass: a leader may be on its way from one node to another.
            let again = client.admin().within(global.deadline).merge_shards(left, right, false).await;
            if again.is_err_and(|error| error.reason == Reason::UnknownShard)
                && let Ok(seen) = client.admin().within(global.deadline).shard(left).await
            {
                done = true;
                shard = seen;
            }
            if done || clock.now() >= until {
                break;
            }
            sleep(WAIT_STEP).await;
        }
    }
    let table = table_of(client, &shard.table).await?;
    if global.json() {
        let shard = render::shard_json(table.as_ref(), &shard);
        say!("{}", serde_json::json!({"shard": shard, "right": args.right, "done": done, "dry_run": args.dry_run}));
    } else {
        let owned = table.as_ref().map_or_else(String::new, |table| render::owned(table, &shard));
        let (left, right) = (args.left, args.right);
        if args.dry_run {
            say!("shard {left} would take over shard {right} and own {owned}");
        } else if done {
            say!("shard {left} has taken over shard {right} and owns {owned}");
        } else {
            say!("shard {left} is taking over shard {right}; `trivet shard list` shows it");
        }
    }
    Ok(if args.wait.is_some() && !done { Exit::Unavailable } else { Exit::Ok })
}
