//! `trivet export`: the rows of a table become a file, in the order of a scan.
//!
//! JSON lines hold key, version and value of each row, losslessly (bytes that are no text as hex), and `trivet import`
//! reads them back. CSV holds key and value, or the named fields of JSON documents. Written to a file, an export goes on
//! where it was when it is started again: every few pages the file is flushed and a checkpoint beside it notes its
//! length and the scan's cursor; going on cuts the file to that length first, so no row comes twice. A gzipped file is a
//! series of members, one for each checkpoint.
//!
//! Without `--as-of` each page shows the newest state, so rows written meanwhile may or may not be in it; with it, all
//! pages show one moment within the history window.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use indicatif::ProgressBar;
use serde_json::Value;
use trivet::types::{ReadLevel, Row, ScanBounds, ScanRequest, Timestamp};

use super::checkpoint::Checkpoint;
use super::exit::{Ended, Exit, Stop};
use super::{Global, render, text, time};

/// Rows asked for in one page.
const PAGE_ROWS: usize = 2_048;
/// Pages between two checkpoints: rarely enough that flushing and compressing do not suffer.
const PAGES_PER_CHECKPOINT: u32 = 16;

/// How an export is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// One JSON object a line: key, version, value
    Jsonl,
    /// Key and value, or key and --fields of JSON documents
    Csv,
}

/// Writes all rows of a table to a file, or to the terminal.
///
/// A FILE that ends in .gz is gzipped. An export to a file that is interrupted goes on where it was when it is started
/// again.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  trivet export orders orders.jsonl.gz\n  trivet export orders --format csv --fields user_id,amount"
)]
pub struct Args {
    /// The table
    table: String,
    /// The file; without it rows go to the standard output
    file: Option<PathBuf>,
    /// How rows are written [default: what the file's name says, else jsonl]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// CSV: these fields of JSON documents instead of the whole value
    #[arg(long, value_name = "FIELD", value_delimiter = ',')]
    fields: Vec<String>,
    /// CSV: keys and values as hex digits
    #[arg(long)]
    hex: bool,
    /// Only keys that begin with this
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// The state at a version or a time such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "VERSION|TIME", value_parser = time::parse_version_or_time)]
    as_of: Option<Timestamp>,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
}

/// Where an export stands.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Position {
    file_bytes: u64,
    rows: u64,
    /// The scan's cursor, in hex.
    cursor: String,
}

/// Runs the export.
pub async fn run(args: Args, global: &Global) -> Ended {
    let csv_name = |path: &PathBuf| {
        let name = path.to_string_lossy().to_ascii_lowercase();
        name.strip_suffix(".gz").unwrap_or(&name).ends_with(".csv")
    };
    let by_name = if args.file.as_ref().is_some_and(csv_name) { Format::Csv } else { Format::Jsonl };
    let layout = Layout { format: args.format.unwrap_or(by_name), fields: args.fields.clone(), hex: args.hex };
    if layout.format == Format::Jsonl && (args.hex || !args.fields.is_empty()) {
        return Err(Stop::usage("--fields and --hex belong to --format csv"));
    }
    let bounds = args.prefix.as_ref().map_or(ScanBounds::All, |prefix| ScanBounds::Prefix(prefix.clone().into()));
    let level = args.as_of.map_or(ReadLevel::Linearizable, ReadLevel::AsOf);
    let client = global.connect().await?;
    let table = client.table(&*args.table);
    let mut sink = Sink::open(&args, &layout)?;
    let bar = if args.file.is_some() && io::stderr().is_terminal() {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::hidden()
    };
    bar.enable_steady_tick(Duration::from_millis(200));

    let cursor = sink.cursor.take();
    if cursor.is_none() {
        sink.write(&layout.header()?)?;
    }
    let mut scan =
        table.scan_with(ScanRequest { bounds, rows_max: PAGE_ROWS, cursor, level, ..ScanRequest::default() });
    let mut pages = 0;
    while let Some(page) = scan.next_page().await? {
        let page = page.body;
        let mut text = Vec::new();
        for row in &page.rows {
            layout.row(row, &mut text)?;
        }
        sink.rows += page.rows.len() as u64;
        sink.write(&text)?;
        bar.set_message(text::count(sink.rows, "row"));
        pages += 1;
        if let (Some(cursor), 0) = (&page.cursor, pages % PAGES_PER_CHECKPOINT) {
            sink.save(cursor)?;
        }
    }
    bar.finish_and_clear();
    let rows = sink.rows;
    sink.finish()?;
    if let Some(file) = &args.file {
        if global.json() {
            say!("{}", serde_json::json!({"table": args.table, "file": file.display().to_string(), "rows": rows}));
        } else {
            say!("exported {} of {} to {}", text::count(rows, "row"), args.table, file.display());
        }
    }
    Ok(Exit::Ok)
}

/// How a row is written.
#[derive(Clone, Debug)]
struct Layout {
    format: Format,
    fields: Vec<String>,
    hex: bool,
}

impl Layout {
    fn header(&self) -> Ended<Vec<u8>> {
        let mut header = Vec::new();
        if self.format == Format::Csv {
            let fields =
                if self.fields.is_empty() { vec!["value"] } else { self.fields.iter().map(String::as_str).collect() };
            csv_line(std::iter::once("key").chain(fields), &mut header)?;
        }
        Ok(header)
    }

    fn row(&self, row: &Row, into: &mut Vec<u8>) -> Ended<()> {
        if self.format == Format::Jsonl {
            into.extend_from_slice(render::row_json(row).to_string().as_bytes());
            into.push(b'\n');
            return Ok(());
        }
        let value = row.value.as_deref().unwrap_or_default();
        let plain = |bytes: &[u8]| -> Ended<String> {
            if self.hex {
                return Ok(text::hex(bytes));
            }
            String::from_utf8(bytes.to_vec()).map_err(|_| {
                Stop::error(format!(
                    "the row of key {} is no text: export with --hex, or as jsonl",
                    text::show(&row.key)
                ))
            })
        };
        let mut cells = vec![plain(&row.key)?];
        if self.fields.is_empty() {
            cells.push(plain(value)?);
        } else {
            let document: Value = serde_json::from_slice(value).map_err(|_| {
                Stop::error(format!(
                    "the value of key {} is no JSON document: leave out --fields",
                    text::show(&row.key)
                ))
            })?;
            cells.extend(self.fields.iter().map(|field| match document.get(field) {
                None | Some(Value::Null) => String::new(),
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
            }));
        }
        csv_line(cells.iter().map(String::as_str), into)
    }
}

fn csv_line<'a>(cells: impl Iterator<Item = &'a str>, into: &mut Vec<u8>) -> Ended<()> {
    let mut writer = csv::WriterBuilder::new().from_writer(into);
    writer.write_record(cells).map_err(|error| Stop::error(error.to_string()))?;
    writer.flush().map_err(Stop::from)
}

/// Where rows go, and how far they have come.
struct Sink {
    out: Out,
    checkpoint: Option<Checkpoint>,
    rows: u64,
    cursor: Option<Bytes>,
}

enum Out {
    Standard(BufWriter<io::Stdout>),
    Plain(BufWriter<File>),
    Gzip(GzEncoder<BufWriter<File>>),
}

impl Sink {
    fn open(args: &Args, layout: &Layout) -> Ended<Sink> {
        let Some(path) = &args.file else {
            return Ok(Sink {
                out: Out::Standard(BufWriter::new(io::stdout())),
                checkpoint: None,
                rows: 0,
                cursor: None,
            });
        };
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.export", args.table));
        let fingerprint = format!("export {} {layout:?} {:?} {:?}", args.table, args.prefix, args.as_of);
        let checkpoint = Checkpoint::new(path.with_file_name(name), fingerprint);
        let resumed = if args.force { None } else { checkpoint.load::<Position>().map_err(Stop::error)? };
        let (file, rows, cursor) = match resumed {
            Some(position) => {
                let cursor = text::unhex(&position.cursor)
                    .map_err(|error| Stop::error(format!("the checkpoint's cursor: {error}")))?;
                (reopen(path, position.file_bytes)?, position.rows, Some(cursor))
            }
            None => (create(path, args.force)?, 0, None),
        };
        let file = BufWriter::new(file);
        let gzipped = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz"));
        let out = if gzipped { Out::Gzip(GzEncoder::new(file, Compression::default())) } else { Out::Plain(file) };
        Ok(Sink { out, checkpoint: Some(checkpoint), rows, cursor })
    }

    fn write(&mut self, text: &[u8]) -> Ended<()> {
        match &mut self.out {
            Out::Standard(out) => out.write_all(text)?,
            Out::Plain(out) => out.write_all(text)?,
            Out::Gzip(out) => out.write_all(text)?,
        }
        Ok(())
    }

    /// Brings what has been written to the disk and notes the position.
    fn save(&mut self, cursor: &[u8]) -> Ended<()> {
        let file = match &mut self.out {
            Out::Standard(out) => return Ok(out.flush()?),
            Out::Plain(out) => {
                out.flush()?;
                out.get_mut()
            }
            Out::Gzip(out) => {
                // Ends this member and begins another over the same file.
                out.try_finish()?;
                out.get_mut().flush()?;
                let again = BufWriter::new(out.get_ref().get_ref().try_clone()?);
                *out = GzEncoder::new(again, Compression::default());
                out.get_mut().get_mut()
            }
        };
        file.sync_data()?;
        let position = Position { file_bytes: file.metadata()?.len(), rows: self.rows, cursor: text::hex(cursor) };
        match &self.checkpoint {
            Some(checkpoint) => checkpoint.save(&position).map_err(Stop::error),
            None => Ok(()),
        }
    }

    fn finish(self) -> Ended<()> {
        match self.out {
            Out::Standard(mut out) => out.flush()?,
            Out::Plain(mut out) => {
                out.flush()?;
                out.get_ref().sync_data()?;
            }
            Out::Gzip(out) => {
                let mut file = out.finish()?;
                file.flush()?;
                file.get_ref().sync_data()?;
            }
        }
        match self.checkpoint {
            Some(checkpoint) => checkpoint.remove().map_err(Stop::error),
            None => Ok(()),
        }
    }
}

fn create(path: &Path, force: bool) -> Ended<File> {
    let mut options = OpenOptions::new();
    options.write(true);
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    options.open(path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Stop::error(format!("{} exists; --force replaces it", path.display())),
        _ => Stop::error(format!("cannot write {}: {error}", path.display())),
    })
}

/// Opens an unfinished export and cuts off what came after its checkpoint.
fn reopen(path: &Path, length: u64) -> Ended<File> {
    let fail =
        |error: io::Error| Stop::error(format!("cannot go on with {}: {error}; --force starts anew", path.display()));
    let file = OpenOptions::new().append(true).open(path).map_err(fail)?;
    if file.metadata().map_err(fail)?.len() < length {
        return Err(Stop::error(format!(
            "{} is shorter than its checkpoint says; --force starts anew",
            path.display()
        )));
    }
    file.set_len(length).map_err(fail)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn args(file: PathBuf) -> Args {
        Args {
            table: "t".to_owned(),
            file: Some(file),
            format: None,
            fields: vec![],
            hex: false,
            prefix: None,
            as_of: None,
            force: false,
        }
    }

    fn row(key: &'static str, value: &'static [u8]) -> Row {
        Row { key: key.into(), timestamp: Timestamp(7), value: Some(value.into()), expires_ms: None }
    }

    fn line(layout: &Layout, row: &Row) -> Result<String, String> {
        let mut text = Vec::new();
        layout.row(row, &mut text).map_err(|stop| stop.message)?;
        Ok(String::from_utf8(text).expect("text"))
    }

    #[test]
    fn rows_are_written_in_each_format() {
        let layout = |format, fields: &[&str], hex| Layout {
            format,
            fields: fields.iter().map(|f| (*f).to_owned()).collect(),
            hex,
        };
        let document = row("o1", br#"{"user":"a,b","n":1.5,"gone":null}"#);
        let csv = layout(Format::Csv, &["n", "user", "gone", "other"], false);
        assert_eq!(line(&csv, &document).as_deref(), Ok("o1,1.5,\"a,b\",,\n"));
        assert_eq!(csv.header().map(String::from_utf8).ok(), Some(Ok("key,n,user,gone,other\n".to_owned())));
        let binary = row("o1", &[0xff]);
        assert_eq!(line(&layout(Format::Csv, &[], true), &binary).as_deref(), Ok("6f31,ff\n"));
        assert!(line(&layout(Format::Csv, &[], false), &binary).is_err_and(|error| error.contains("--hex")));
        assert!(line(&csv, &binary).is_err_and(|error| error.contains("--fields")));
        let json = line(&layout(Format::Jsonl, &[], false), &binary).expect("any bytes go into JSON lines");
        assert_eq!(
            json,
            "{\"key\":\"o1\",\"version\":\"7\",\"time\":\"1970-01-01T00:00:00.000Z\",\"value_hex\":\"ff\"}\n"
        );
    }

    #[test]
    fn an_export_cut_short_goes_on_without_repeating_rows() {
        for name in ["out.jsonl", "out.jsonl.gz"] {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join(name);
            let layout = Layout { format: Format::Jsonl, fields: vec![], hex: false };
            let open = |force| Sink::open(&Args { force, ..args(path.clone()) }, &layout);
            let mut sink = open(false).expect("a new file");
            sink.write(b"one\n").expect("written");
            sink.rows = 1;
            sink.save(b"cursor").expect("saved");
            sink.write(b"lost in the crash\n").expect("written");
            drop(sink);

            let mut sink = open(false).expect("the file goes on");
            assert_eq!((sink.rows, sink.cursor.as_deref()), (1, Some(&b"cursor"[..])));
            sink.write(b"two\n").expect("written");
            sink.finish().expect("finished");
            let raw = std::fs::read(&path).expect("the file");
            let mut text = String::new();
            match name.ends_with("gz") {
                true => flate2::read::MultiGzDecoder::new(&raw[..]).read_to_string(&mut text).map(drop),
                false => (&raw[..]).read_to_string(&mut text).map(drop),
            }
            .expect("whole");
            assert_eq!(text, "one\ntwo\n", "{name}");
            assert!(open(false).is_err_and(|stop| stop.message.contains("--force")), "a finished file is not replaced");
            assert!(open(true).is_ok());
        }
    }
}
