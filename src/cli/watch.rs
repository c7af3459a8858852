//! `watch`: what changes in a table, as it happens, printed line by line.
//!
//! The place reached is kept in a file (`--checkpoint`) or told between the changes (`--cursors`): who goes on from it is told
//! everything once. The file is written when what it stands for has been printed, so a run that is cut short in between prints
//! a page again.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use trivet::types::{Change, ChangeKind, Timestamp};

use super::checkpoint::Checkpoint;
use super::exit::{Ended, Exit, Stop};
use super::scan::Bounds;
use super::{Global, render, text, time};

/// Characters of a value shown on a terminal without --full.
const VALUE_WIDTH: usize = 60;
/// Older than this, a place reached is worth a word to a person: somebody cannot be reached.
const AGE_TOLD: Duration = Duration::from_secs(5);

/// Shows what changes in a table, as it happens, until it is stopped.
///
/// Every version is shown once, the changes of a key in their order. Shards that split, merge, move or change their leader
/// do not matter. A table's history bounds how far back a watch can begin or go on; what is no longer there is refused
/// (CURSOR_TRIMMED), never left out.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  trivet watch orders\n  trivet watch orders --prefix o-1 --previous --after 2026-01-31T12:00:00Z\n  trivet watch orders --checkpoint orders.place -o json | ./my-consumer\n  trivet watch users --tag user:42 --only deletes --limit 1"
)]
pub struct Args {
    /// The table
    table: String,
    #[command(flatten)]
    bounds: Bounds,
    /// Begin behind this version or time instead of now
    #[arg(long, value_name = "VERSION|TIME", value_parser = time::parse_version_or_time)]
    after: Option<Timestamp>,
    /// Go on behind this cursor (hex digits, from --cursors)
    #[arg(long, value_name = "CURSOR", conflicts_with_all = ["after", "checkpoint"])]
    resume: Option<String>,
    /// Keep the place reached in this file, and go on from it if it is there
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Show what each change has replaced too
    #[arg(long)]
    previous: bool,
    /// Show only puts or only deletes
    #[arg(long, value_name = "KIND", value_parser = parse_kind)]
    only: Option<ChangeKind>,
    /// Stop after so many changes
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Tell the place reached after the changes it stands for, and every second, with its age
    #[arg(long)]
    cursors: bool,
    /// Show whole values on a terminal too
    #[arg(long)]
    full: bool,
}

fn parse_kind(text: &str) -> Result<ChangeKind, String> {
    match text {
        "puts" => Ok(ChangeKind::Put),
        "deletes" => Ok(ChangeKind::Delete),
        _ => Err(format!("'{text}' is neither puts nor deletes")),
    }
}

/// The place reached, as it stands in a file.
#[derive(serde::Serialize, serde::Deserialize)]
struct Place {
    cursor: String,
}

/// Runs `watch`.
pub async fn run(args: Args, global: &Global) -> Ended {
    let bounds = args.bounds.decode().map_err(Stop::usage)?;
    let fingerprint = format!("watch {} {bounds:?}", args.table);
    let checkpoint = args.checkpoint.clone().map(|path| Checkpoint::new(path, fingerprint));
    let stored = match &checkpoint {
        Some(checkpoint) => checkpoint.load::<Place>().map_err(Stop::error)?.map(|place| place.cursor),
        None => args.resume.clone(),
    };
    let mut changes = global.connect().await?.table(&*args.table).changes(bounds);
    if let Some(stored) = stored {
        changes = changes.resume(text::unhex(&stored).map_err(Stop::usage)?);
    } else if let Some(after) = args.after {
        changes = changes.after(after);
    }
    if args.previous {
        changes = changes.with_previous();
    }
    if let Some(kind) = args.only {
        changes = changes.only(kind);
    }
    let width = if args.full || !io::stdout().is_terminal() { None } else { Some(VALUE_WIDTH) };
    let mut followed = changes.follow();
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut told_late = false;
    while left > 0 {
        let page = followed.next_page().await?;
        let count = page.body.changes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        left -= count as u64;
        print(&page.body.changes[..count], args.previous, width, global.json())?;
        let late = page.header.age.is_none_or(|age| age > AGE_TOLD);
        if late != told_late && page.body.changes.is_empty() && io::stderr().is_terminal() {
            eprintln!("{}", if late { "some shards cannot be reached; waiting" } else { "all shards are heard again" });
            told_late = late;
        }
        if count < page.body.changes.len() {
            // What was left out would be lost behind this page's cursor.
            break;
        }
        let cursor = || text::hex(&page.body.cursor);
        if let Some(checkpoint) = &checkpoint {
            checkpoint.save(&Place { cursor: cursor() }).map_err(Stop::error)?;
        }
        if args.cursors {
            let age_ms = page.header.age.map(|age| age.as_micros() as f64 / 1_000.0);
            if global.json() {
                say!("{}", serde_json::json!({"cursor": cursor(), "age_ms": age_ms}));
            } else {
                let age = page.header.age.map_or("unknown".to_owned(), |age| {
                    time::show_duration_ms(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
                });
                say!("-- age {age}, cursor {}", cursor());
            }
        }
    }
    Ok(Exit::Ok)
}

fn print(changes: &[Change], previous: bool, width: Option<usize>, json: bool) -> io::Result<()> {
    let line = |change: &Change| match json {
        true => format!("{}\n", render::change_json(change, previous)),
        false => render::change_line(change, previous, width) + "\n",
    };
    let text: String = changes.iter().map(line).collect();
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
