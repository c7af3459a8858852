//! The verbs on views: create, list, describe, verify, rebuild, pause, resume, drop.
//!
//! A comparison goes shard by shard, each a call of its own, so that there is progress to show and a failure costs one
//! shard. Shards may split or move while it runs: it ends when every shard of the newest list was looked at as it is there.

use std::io::{IsTerminal, Read};
use std::time::Duration;

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use trivet::client::Client;
use trivet::runtime::{Clock, sleep};
use trivet::types::{Epoch, Error, Kind, Reason, ShardId};
use trivet::wire::admin::{DEFINITION_BYTES_MAX, NewView, TableDetails, ViewDetails, ViewState};

use super::exit::{Ended, Exit, Stop};
use super::render::Finding;
use super::{Global, render, time};

/// Time between two looks at a view that is waited for: each asks all its shards and sources.
const WAIT_STEP: Duration = Duration::from_millis(500);
/// Time between two steps of a spinner.
const SPIN_STEP: Duration = Duration::from_millis(120);
/// The longest that the comparison of one shard may take: what nodes grant.
const VERIFY_TIME: Duration = Duration::from_secs(600);
/// How often shards that changed meanwhile are looked at again: they hardly change as fast as they are looked at.
const ROUNDS_MAX: usize = 10;

/// Create, list, describe, verify, rebuild, pause, resume and drop views.
///
/// A view is a table that the cluster itself derives from other tables (its sources) and keeps up with them: the rows of
/// orders by user, sums by user, documents put together from several tables. It is read by the same verbs as a table
/// (`get`, `scan`, `history`, `watch`), and nobody writes to it. docs/views.md begins from zero.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    Create(Create),
    List(List),
    Describe(Describe),
    Verify(Verify),
    Rebuild(Rebuild),
    Pause(Pause),
    Resume(Resume),
    Drop(Drop),
}

/// Creates a view from its definition, a file in TOML or JSON.
///
/// The definition names the view, its kind (rekeyed, aggregate or merged), its sources and how rows are made of theirs. The
/// sources must be there. The view takes in what they hold, is compared with it, and is READY then; until then reads of it
/// are refused with VIEW_BEHIND, unless they take any age. Writes to the sources go on all the while.
///
/// A definition is changed with --replace: reads get the former rows until the new ones are complete and compared, and then
/// those, at once. To give a change up, drop NAME.next.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  trivet view create orders_by_user.toml --wait\n  trivet view create orders_by_user.toml --dry-run\n  trivet view create orders_by_user.toml --replace --wait\n  trivet view create - --history 7d < user_stats.toml\n\nA definition:\n  name = \"orders_by_user\"\n  kind = \"rekeyed\"\n  [[sources]]\n  table = \"orders\"\n  partition_by = \"user_id\"\n  order_by = [\"-created_ms\"]"
)]
pub struct Create {
    /// The file with the definition; - reads the standard input
    file: String,
    /// Voters per shard [default: as the view that is replaced, else 3, or as many nodes as there are if fewer]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    replication: Option<u32>,
    /// How long replaced versions of its rows stay readable [default: as the view that is replaced, else 1h]
    #[arg(long, value_name = "DURATION", value_parser = time::parse_duration)]
    history: Option<Duration>,
    /// Wait until it is READY, at most for a day or as long as said here; exits with 4 if it takes longer
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "1d",
          value_parser = time::parse_duration, conflicts_with = "dry_run")]
    wait: Option<Duration>,
    /// Change the view of this name: another form of it is built beside it as NAME.next, and takes its place when READY
    #[arg(long)]
    replace: bool,
    /// Check the definition, show what would be created and where, and create nothing
    #[arg(long)]
    dry_run: bool,
}

/// Lists the views with their states and sources.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  trivet view list")]
pub struct List {}

/// Shows a view: its state, what it lags behind or stops at, its definition and its shards.
///
/// The definition is shown as a file for `view create` that makes the same view.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  trivet view describe orders_by_user")]
pub struct Describe {
    /// Its name
    name: String,
}

/// Compares every row of a view with what its sources say, at one proven moment, while writes go on.
///
/// Exits with 6 if rows differ. With --repair rows that differ are set right and their shards looked at once more: it exits
/// with 0 if nothing differs then, and with 6 otherwise. The cluster does the same by itself before a new view is READY.
///
/// Missing rows are those that the view lacks, invented ones no source says, other ones hold something else than the sources
/// say. Rows are counted with those by which the view keeps its books, which reads do not show. Documents that do not fit the
/// view are counted and shown, too: that it is without them is no difference.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  trivet view verify orders_by_user\n  trivet view verify orders_by_user --repair")]
pub struct Verify {
    /// Its name
    name: String,
    /// Set right what differs
    #[arg(long)]
    repair: bool,
}

/// Makes a view anew from its sources, beside the one that is there.
///
/// Reads get the former rows until the new ones are complete and compared, and then those, at once. Rows that differ need no
/// rebuild: `view verify --repair` mends them, and the cluster does so unasked. To give it up, drop NAME.next.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  trivet view rebuild orders_by_user --wait\n  trivet view rebuild orders_by_user --dry-run"
)]
pub struct Rebuild {
    /// Its name
    name: String,
    /// Wait until it is READY, at most for a day or as long as said here; exits with 4 if it takes longer
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "1d",
          value_parser = time::parse_duration, conflicts_with = "dry_run")]
    wait: Option<Duration>,
    /// Show what would be created and where, and create nothing
    #[arg(long)]
    dry_run: bool,
}

/// Has the upkeep of a view rest until `resume`: it takes nothing in and grows older.
///
/// Its rows stay readable. Linearizable reads and others that want it younger than it is are refused with VIEW_BEHIND. A
/// rest that is longer than the history of a source makes a view that has to be built anew.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  trivet view pause orders_by_user\n  trivet view pause orders_by_user --dry-run")]
pub struct Pause {
    /// Its name
    name: String,
    /// Say what would change and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Has the upkeep of a view go on where it was paused.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  trivet view resume orders_by_user")]
pub struct Resume {
    /// Its name
    name: String,
    /// Say what would change and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Drops a view. Its sources keep everything, so `view create` makes it again.
///
/// Refuses a table that is no view: `table drop` drops those.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  trivet view drop orders_by_user --dry-run\n  trivet view drop orders_by_user")]
pub struct Drop {
    /// Its name
    name: String,
    /// Show what would be dropped, and drop nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs a view verb.
pub async fn run(verb: Verb, global: &Global) -> Ended {
    match verb {
        Verb::Create(args) => create(&args, global).await,
        Verb::List(List {}) => {
            let list = global.connect().await?.admin().views().await?;
            if global.json() {
                say!("{}", serde_json::Value::from(list.iter().map(render::view_json).collect::<Vec<_>>()));
            } else {
                say_text!("{}", render::views(&list));
            }
            Ok(Exit::Ok)
        }
        Verb::Describe(args) => {
            let view = global.connect().await?.admin().view(&args.name).await?;
            if global.json() {
                say!("{}", render::view_json(&view));
            } else {
                say_text!("{}", render::view(&view));
            }
            Ok(Exit::Ok)
        }
        Verb::Verify(args) => verify(&args, global).await,
        Verb::Rebuild(args) => rebuild(&args, global).await,
        Verb::Pause(args) => set_paused(&args.name, true, args.dry_run, global).await,
        Verb::Resume(args) => set_paused(&args.name, false, args.dry_run, global).await,
        Verb::Drop(args) => drop(&args, global).await,
    }
}

async fn create(args: &Create, global: &Global) -> Ended {
    let definition = read_definition(&args.file)?;
    let history_ms = args.history.map(|history| u64::try_from(history.as_millis()).unwrap_or(u64::MAX));
    let client = global.connect().await?;
    let wish = NewView {
        replication: args.replication,
        history_ms,
        dry_run: args.dry_run,
        replace: args.replace,
        ..NewView::of(&definition)
    };
    build(&client, wish, args.wait, global).await
}

/// Another one of the same definition takes the place of the one that is there.
async fn rebuild(args: &Rebuild, global: &Global) -> Ended {
    let client = global.connect().await?;
    let table = table_of_view(&client, &args.name).await?.table;
    let definition = client.admin().view(&args.name).await?.definition;
    let wish = NewView {
        replication: Some(table.replication),
        history_ms: Some(table.history_ms),
        dry_run: args.dry_run,
        replace: true,
        ..NewView::of(&definition)
    };
    build(&client, wish, args.wait, global).await
}

/// Has a view built, waits for it if that is wanted, and says what has come of it.
async fn build(client: &Client, wish: NewView, wait: Option<Duration>, global: &Global) -> Ended {
    let dry_run = wish.dry_run;
    let mut view = client.admin().create_view(wish).await?;
    if let Some(patience) = wait {
        view = wait_until_ready(client, view, patience, global).await?;
    }
    if global.json() {
        say!("{}", render::view_json(&view));
    } else {
        let said = if dry_run { "would create (--dry-run; nothing done)" } else { "created" };
        say_text!("{said} {}", render::view(&view));
        if wait.is_none() && !dry_run {
            let name = &view.table.table.name;
            say!("\nit is being built; `trivet view describe {name}` shows how far it is");
        }
    }
    let waited_in_vain = wait.is_some() && view.state != ViewState::Ready;
    Ok(if waited_in_vain { Exit::Unavailable } else { Exit::Ok })
}

/// The text of a definition, which is checked where it is understood: by the cluster.
fn read_definition(file: &str) -> Ended<String> {
    let cannot = |error: std::io::Error| Stop::error(format!("cannot read {file}: {error}"));
    let mut text = String::new();
    // One byte more than is allowed tells a file that is too long.
    let limit = DEFINITION_BYTES_MAX as u64 + 1;
    match file {
        "-" => std::io::stdin().lock().take(limit).read_to_string(&mut text),
        path => std::fs::File::open(path).map_err(cannot)?.take(limit).read_to_string(&mut text),
    }
    .map_err(cannot)?;
    if text.len() > DEFINITION_BYTES_MAX {
        return Err(Stop::error(format!("{file} is longer than a definition may be ({DEFINITION_BYTES_MAX} bytes)")));
    }
    Ok(text)
}

/// Looks until a view is ready or there is no patience left; the view as it was seen last.
async fn wait_until_ready(
    client: &Client,
    mut view: ViewDetails,
    patience: Duration,
    global: &Global,
) -> Ended<ViewDetails> {
    let clock = Clock::system();
    let until = clock.now() + patience;
    let spinner = spinner();
    while view.state != ViewState::Ready && clock.now() < until {
        spinner.set_message(render::view_progress(&view));
        sleep(WAIT_STEP).await;
        match client.admin().within(global.deadline).view(&view.table.table.name).await {
            Ok(seen) => view = seen,
            // A leader may be on its way from one to another: whoever answers next tells. One that was dropped does not
            // come back.
            Err(error) if passes(&error) => {}
            Err(error) if error.reason == Reason::UnknownTable => match renamed(client, &view, global).await? {
                Some(seen) => view = seen,
                None => {
                    spinner.finish_and_clear();
                    return Err(error.into());
                }
            },
            Err(error) => {
                spinner.finish_and_clear();
                return Err(error.into());
            }
        }
    }
    spinner.finish_and_clear();
    Ok(view)
}

/// A view that has another name now, because it has taken the place of another one.
async fn renamed(client: &Client, view: &ViewDetails, global: &Global) -> Ended<Option<ViewDetails>> {
    let views = client.admin().within(global.deadline).views().await?;
    Ok(views.into_iter().find(|other| other.table.table.id == view.table.table.id))
}

fn passes(error: &Error) -> bool {
    !matches!(error.kind(), Kind::Invalid | Kind::NotFound | Kind::Corrupt | Kind::Internal)
}

/// A table that is a view.
async fn table_of_view(client: &Client, name: &str) -> Ended<TableDetails> {
    let details = client.admin().table(name).await.map_err(|error| match error.reason {
        Reason::UnknownTable => {
            Error::new(error.reason, format!("there is no view '{name}'; `trivet view list` shows them"))
        }
        _ => error,
    })?;
    if details.table.view.is_none() {
        return Err(Stop::error(format!("{name} is a table, not a view; the verbs of `trivet table` are for it")));
    }
    Ok(details)
}

async fn verify(args: &Verify, global: &Global) -> Ended {
    let client = global.connect().await?;
    let bar = bar();
    let findings = compare(&client, args, &bar).await;
    let findings = match findings {
        Ok(findings) => findings,
        Err(stop) => {
            bar.finish_and_clear();
            return Err(stop);
        }
    };
    let left = match args.repair {
        true => Some(look_again(&client, &args.name, &findings, &bar).await),
        false => None,
    };
    bar.finish_and_clear();
    let left = left.transpose()?;
    if global.json() {
        say!("{}", render::verification_json(&args.name, &findings, left.as_deref()));
    } else {
        say_text!("{}", render::verification(&args.name, &findings, left.as_deref()));
    }
    let differ = left.as_ref().unwrap_or(&findings).iter().any(|finding| finding.check.differing() > 0);
    Ok(if differ { Exit::Mismatch } else { Exit::Ok })
}

/// Compares every shard.
async fn compare(client: &Client, args: &Verify, bar: &ProgressBar) -> Ended<Vec<Finding>> {
    let admin = client.admin().within(VERIFY_TIME);
    let mut seen: Vec<(ShardId, Epoch)> = Vec::new();
    let mut findings: Vec<Finding> = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let shards = table_of_view(client, &args.name).await?.shards;
        let new: Vec<_> = shards.iter().filter(|shard| !seen.contains(&(shard.id, shard.epoch))).collect();
        if new.is_empty() {
            return Ok(findings);
        }
        bar.set_length((seen.len() + new.len()) as u64);
        for shard in new {
            bar.set_message(format!("shard {}", shard.id.0));
            seen.push((shard.id, shard.epoch));
            match admin.verify_view(&args.name, Some(shard.id), args.repair).await {
                Ok(check) => {
                    // A shard that was split is looked at again; what was found wrong before stays told.
                    findings.retain(|before| before.shard != shard.id || before.check.differing() > 0);
                    findings.push(Finding { shard: shard.id, check });
                }
                // It was merged into its neighbour, which the next list shows with another epoch.
                Err(error) if error.reason == Reason::UnknownShard => {}
                Err(error) => return Err(Stop::from(error).about(format!("shard {}", shard.id.0))),
            }
            bar.inc(1);
        }
    }
    let text = format!("the shards of {} have changed all the time that it was compared; try again", args.name);
    Err(Error::new(Reason::Conflict, text).into())
}

/// Compares the shards once more that had rows which differed.
async fn look_again(client: &Client, name: &str, findings: &[Finding], bar: &ProgressBar) -> Ended<Vec<Finding>> {
    let admin = client.admin().within(VERIFY_TIME);
    let mut shards: Vec<ShardId> = findings.iter().filter(|f| f.check.differing() > 0).map(|f| f.shard).collect();
    shards.sort_unstable();
    shards.dedup();
    bar.set_length(bar.position() + shards.len() as u64);
    let mut left = Vec::with_capacity(shards.len());
    for shard in shards {
        bar.set_message(format!("shard {} once more", shard.0));
        let check = admin.verify_view(name, Some(shard), false).await;
        let check = check.map_err(|error| {
            Stop::from(error).about(format!("shard {} was repaired and could not be compared again", shard.0))
        })?;
        left.push(Finding { shard, check });
        bar.inc(1);
    }
    Ok(left)
}

async fn set_paused(name: &str, paused: bool, dry_run: bool, global: &Global) -> Ended {
    let client = global.connect().await?;
    let view = match dry_run {
        true => client.admin().view(name).await?,
        false => client.admin().pause_view(name, paused).await?,
    };
    if global.json() {
        let mut said = render::view_json(&view);
        said["dry_run"] = dry_run.into();
        say!("{said}");
    } else {
        say_text!("{}", render::view_pausing(&view, paused, dry_run));
    }
    Ok(Exit::Ok)
}

async fn drop(args: &Drop, global: &Global) -> Ended {
    let client = global.connect().await?;
    let details = table_of_view(&client, &args.name).await?;
    client.admin().drop_table(&args.name, args.dry_run).await?;
    if global.json() {
        say!("{}", serde_json::json!({"dropped": args.name, "id": details.table.id.0, "dry_run": args.dry_run}));
    } else if args.dry_run {
        say!("would drop view {}; nothing done (--dry-run)", args.name);
    } else {
        say!("dropped view {}; its sources keep everything", args.name);
    }
    Ok(Exit::Ok)
}

/// A line that moves, shown on a terminal only.
fn spinner() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{spinner} {msg}  {elapsed}").expect("the template is valid");
    spinner.enable_steady_tick(SPIN_STEP);
    spinner.with_style(style)
}

/// A bar over shards, shown on a terminal only.
fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:40} {pos} of {len} shards  {msg}  {elapsed}");
    bar.enable_steady_tick(SPIN_STEP);
    bar.with_style(style.expect("the template is valid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_read_up_to_their_bound() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("view.toml");
        let file = path.to_str().expect("text");
        for (length, good) in [(10, true), (DEFINITION_BYTES_MAX, true), (DEFINITION_BYTES_MAX + 1, false)] {
            std::fs::write(&path, "x".repeat(length)).expect("written");
            assert_eq!(read_definition(file).is_ok(), good, "{length}");
        }
        std::fs::write(&path, [0xff, 0xfe]).expect("written");
        assert!(read_definition(file).expect_err("no text").message.contains("cannot read"));
        let missing = read_definition("/nonexistent/view.toml").expect_err("no file");
        assert_eq!(missing.exit, Exit::Error);
    }

    #[test]
    fn a_view_that_is_gone_is_not_waited_for() {
        for (reason, passing) in [
            (Reason::NoQuorum, true),
            (Reason::ViewBehind, true),
            (Reason::DeadlineExceeded, true),
            (Reason::UnknownTable, false),
            (Reason::InvalidRequest, false),
        ] {
            assert_eq!(passes(&Error::new(reason, "")), passing, "{reason:?}");
        }
    }
}
