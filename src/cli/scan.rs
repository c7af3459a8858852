//! The verbs on many versions or keys: scan, history, rollback. Pages are printed as they come.

use std::io::{self, IsTerminal, Write};

use bytes::Bytes;
use trivet::types::{ReadLevel, Row, ScanBounds, ScanRequest, Timestamp};

use super::data::Reading;
use super::exit::{Ended, Exit, Stop};
use super::{Global, render, text, time};

/// Rows asked for in one page.
const PAGE_ROWS: usize = 1_000;
/// Characters of a value shown on a terminal without --full: so that most rows stay on a line.
const VALUE_WIDTH: usize = 80;

/// Which keys.
#[derive(Clone, Debug, clap::Args)]
pub struct Bounds {
    /// Only the keys of this tag (or group of a range table)
    #[arg(long, value_name = "TAG", conflicts_with_all = ["prefix", "from", "to"])]
    tag: Option<String>,
    /// Only keys that begin with this
    #[arg(long, value_name = "PREFIX", conflicts_with_all = ["from", "to"])]
    prefix: Option<String>,
    /// From this key on
    #[arg(long, value_name = "KEY")]
    from: Option<String>,
    /// Up to this key, which is not included
    #[arg(long, value_name = "KEY")]
    to: Option<String>,
    /// Tag, prefix and keys are hex digits
    #[arg(long)]
    hex: bool,
}

/// Lists keys in order, with version and value.
///
/// A range table is ordered by key. A hash table is ordered within a tag (--tag): keys like {user:42}:cart have the tag
/// user:42; over the whole table it goes shard by shard.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  trivet scan orders --limit 10\n  trivet scan orders --count --level max-age=5s --read-from least-loaded\n  trivet scan users --tag user:42 -o json\n  trivet scan names --from m --to n --reverse"
)]
pub struct Scan {
    /// The table
    table: String,
    #[command(flatten)]
    bounds: Bounds,
    /// At most so many rows
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Backwards
    #[arg(long)]
    reverse: bool,
    /// Print how many rows there are instead of the rows
    #[arg(long)]
    count: bool,
    #[command(flatten)]
    reading: Reading,
    /// Show whole values on a terminal too
    #[arg(long)]
    full: bool,
}

impl Bounds {
    /// The bounds in bytes.
    pub fn decode(&self) -> Result<ScanBounds, String> {
        let bytes = |text: &Option<String>| -> Result<Option<Bytes>, String> {
            text.as_ref().map(|text| text::argument(text, self.hex)).transpose()
        };
        Ok(match (bytes(&self.tag)?, bytes(&self.prefix)?, bytes(&self.from)?, bytes(&self.to)?) {
            (Some(tag), ..) => ScanBounds::Tag(tag),
            (None, Some(prefix), ..) => ScanBounds::Prefix(prefix),
            (None, None, None, None) => ScanBounds::All,
            (None, None, from, to) => ScanBounds::Range(from, to),
        })
    }
}

/// Prints pages as they come.
struct Printer {
    json: bool,
    width: Option<usize>,
    first: bool,
    page: fn(&[Row], bool, Option<usize>) -> String,
}

impl Printer {
    fn new(global: &Global, full: bool, page: fn(&[Row], bool, Option<usize>) -> String) -> Printer {
        let width = if full || !io::stdout().is_terminal() { None } else { Some(VALUE_WIDTH) };
        Printer { json: global.json(), width, first: true, page }
    }

    fn print(&mut self, rows: &[Row]) -> io::Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let text = if self.json {
            rows.iter().map(|row| format!("{}\n", render::row_json(row))).collect()
        } else {
            (self.page)(rows, self.first, self.width)
        };
        self.first = false;
        io::stdout().lock().write_all(text.as_bytes())
    }
}

/// Runs `scan`.
pub async fn scan(args: Scan, global: &Global) -> Ended {
    let bounds = args.bounds.decode().map_err(Stop::usage)?;
    let level = args.reading.level();
    let table = args.reading.of(&global.connect().await?.table(&*args.table));
    let mut printer = Printer::new(global, args.full, render::scan_table);
    // Counting pages are as long as the server likes; a limit needs rows to count up to.
    let count_only = args.count && args.limit.is_none();
    let rows_max = if count_only { 0 } else { PAGE_ROWS };
    let request =
        ScanRequest { bounds, reverse: args.reverse, rows_max, cursor: None, count_only, level, any_replica: false };
    let mut scan = table.scan_with(request);
    if let Some(limit) = args.limit {
        scan = scan.limit(limit);
    }
    let mut count = 0;
    while let Some(page) = scan.next_page().await? {
        count += page.body.count.max(page.body.rows.len() as u64);
        if !args.count {
            printer.print(&page.body.rows)?;
        }
    }
    if args.count {
        if global.json() {
            say!("{}", serde_json::json!({"count": count}));
        } else {
            say!("{count}");
        }
    } else if count == 0 && !global.json() {
        eprintln!("no rows");
    }
    Ok(Exit::Ok)
}

/// Lists the versions of a key, newest first, as far back as the table's history reaches.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  trivet history orders o-1")]
pub struct History {
    /// The table
    table: String,
    /// The key
    key: String,
    /// At most so many versions
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Only versions older than this one
    #[arg(long, value_name = "VERSION", value_parser = time::parse_version)]
    before: Option<Timestamp>,
    /// The key is hex digits
    #[arg(long)]
    hex: bool,
    /// Show whole values on a terminal too
    #[arg(long)]
    full: bool,
}

/// Runs `history`.
pub async fn history(args: History, global: &Global) -> Ended {
    let key = text::argument(&args.key, args.hex).map_err(Stop::usage)?;
    let table = global.connect().await?.table(&*args.table);
    let mut printer = Printer::new(global, args.full, render::history_table);
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut before = args.before;
    let mut found = false;
    while left > 0 {
        let rows_max = usize::try_from(left).unwrap_or(usize::MAX).min(PAGE_ROWS);
        let page = table.history(key.clone(), before, rows_max).await?.body;
        printer.print(&page.rows)?;
        left = left.saturating_sub(page.rows.len() as u64);
        found |= !page.rows.is_empty();
        before = match page.rows.last() {
            Some(last) if page.cursor.is_some() || page.rows.len() == rows_max => Some(last.timestamp),
            _ => break,
        };
    }
    if found {
        return Ok(Exit::Ok);
    }
    Err(Stop { exit: Exit::NotFound, message: format!("no version of key {} is kept", text::show(&key)) })
}

/// Makes a key what it was at an earlier version, as a new version.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Example:\n  trivet history orders o-1\n  trivet rollback orders o-1 --to 115928374655 --dry-run"
)]
pub struct Rollback {
    /// The table
    table: String,
    /// The key
    key: String,
    /// The version, or a time
    #[arg(long, value_name = "VERSION|TIME", value_parser = time::parse_version_or_time)]
    to: Timestamp,
    /// Show what it is and what it would become, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// The key is hex digits
    #[arg(long)]
    hex: bool,
}

/// Runs `rollback`.
pub async fn rollback(args: Rollback, global: &Global) -> Ended {
    let key = text::argument(&args.key, args.hex).map_err(Stop::usage)?;
    let table = global.connect().await?.table(&*args.table);
    if args.dry_run {
        let now = table.get(key.clone()).await?;
        let then = table.at(ReadLevel::AsOf(args.to)).get(key.clone()).await?;
        if global.json() {
            let both =
                serde_json::json!({"now": render::get_json(&key, &now), "would_become": render::get_json(&key, &then)});
            say!("{both}");
        } else {
            let shown = |found: &Option<trivet::types::Versioned>| match found {
                Some(found) => format!("{} (version {})", text::show(&found.value), found.timestamp),
                None => "absent".to_owned(),
            };
            say!(
                "now:          {}\nwould become: {}\nnothing changed (--dry-run)",
                shown(&now.body),
                shown(&then.body)
            );
        }
        return Ok(Exit::Ok);
    }
    let answer = table.rollback(key, args.to).await?;
    if global.json() {
        say!("{}", render::outcome_json(&answer));
    } else {
        say!("rolled back, version {}", answer.body.timestamp);
    }
    Ok(Exit::Ok)
}
