//! Rows of a file as keys and values: CSV with a header, JSON lines, and what `trivet export` wrote; also gzipped.
//!
//! A CSV row becomes a JSON object, its fields typed: integers and decimals become numbers when nothing is lost by it
//! (`007` and numbers of more than 15 digits stay text), `true` and `false` become booleans, an empty field becomes null,
//! everything else is text. Fields named in `text` stay text whatever they hold. A JSON line is stored as it stands.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use serde_json::{Map, Value};

use super::template::Template;
use crate::cli::text;

/// Longest line or row read, in bytes: far above what a value may hold, so that a file without line ends, or with a
/// quote that is never closed, does not fill memory.
const LINE_BYTES_MAX: u64 = 16 << 20;
/// Read buffer over the file, in bytes: large enough that system calls do not matter.
const BUFFER_BYTES: usize = 256 << 10;
/// Most significant digits a double holds without loss.
const DECIMAL_DIGITS_MAX: usize = 15;

/// What a gzipped file begins with, and what some programs put before text.
const GZIP: [u8; 2] = [0x1f, 0x8b];
const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// How the rows of a file are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Comma-separated values with a header line.
    Csv,
    /// One JSON object a line.
    Jsonl,
}

impl Format {
    /// What the file's name says.
    pub fn of(path: &Path) -> Option<Format> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        match name.rsplit_once('.')?.1 {
            "csv" => Some(Format::Csv),
            "jsonl" | "ndjson" | "json" => Some(Format::Jsonl),
            _ => None,
        }
    }
}

/// How rows become keys and values.
#[derive(Clone, Debug)]
pub struct Shape {
    /// How the file is written.
    pub format: Format,
    /// How a key is made; none: the file is an export, whose lines hold keys and values.
    pub key: Option<Template>,
    /// Fields of a CSV file that stay text.
    pub text: Vec<String>,
}

/// A row ready to be put, with the line it began on (for messages) and its place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Line in the file, from 1.
    pub line: u64,
    /// Its key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
}

/// Reads a file's rows one after another.
pub struct Rows {
    shape: Shape,
    source: Source,
}

enum Source {
    Csv {
        reader: Box<csv::Reader<Bounded>>,
        header: Vec<String>,
        record: csv::StringRecord,
        /// Bytes that the reader may still take for the row at hand.
        left: Arc<AtomicU64>,
    },
    Lines {
        reader: Box<dyn BufRead + Send>,
        line: u64,
        buffer: Vec<u8>,
    },
}

impl Rows {
    /// Opens a file (gzip by its first bytes, whatever its name); `read_bytes` counts the bytes taken from disk.
    pub fn open(path: &Path, shape: Shape, read_bytes: Arc<AtomicU64>) -> Result<Rows, String> {
        let file = File::open(path).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
        Rows::new(Counting { inner: file, read_bytes }, shape)
    }

    /// Reads rows from anything.
    pub fn new(source: impl Read + Send + 'static, shape: Shape) -> Result<Rows, String> {
        let (head, rest) = begin(source).map_err(|error| format!("cannot read: {error}"))?;
        let gzipped = head.starts_with(&GZIP);
        let raw = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(head).chain(rest));
        let plain: Box<dyn BufRead + Send> = if gzipped {
            Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(raw)))
        } else {
            Box::new(raw)
        };
        let (mut head, rest) = begin(plain).map_err(|error| format!("line 1: {error}"))?;
        if head == BYTE_ORDER_MARK {
            head.clear();
        }
        let plain = Box::new(Cursor::new(head).chain(rest));
        let source = match shape.format {
            Format::Csv => Source::csv(plain, &shape)?,
            Format::Jsonl => Source::Lines { reader: plain, line: 0, buffer: Vec::new() },
        };
        Ok(Rows { shape, source })
    }

    /// The next row; none at the end. An error names its line.
    pub fn next(&mut self) -> Option<Result<Row, String>> {
        match &mut self.source {
            Source::Csv { reader, header, record, left } => {
                // Reset from row to row: the reader's own buffer takes some of the next row along.
                left.store(LINE_BYTES_MAX, Ordering::Relaxed);
                match reader.read_record(record) {
                    Ok(false) => None,
                    Ok(true) => {
                        let line = record.position().map_or(0, csv::Position::line);
                        let row = csv_row(&self.shape, header, record, line);
                        Some(row.map_err(|error| format!("line {line}: {error}")))
                    }
                    Err(error) => {
                        // What the source itself says has no place; the reader knows how far it came.
                        let line = error.position().map_or_else(|| reader.position().line(), csv::Position::line);
                        Some(Err(format!("line {line}: {}", csv_error(&error))))
                    }
                }
            }
            Source::Lines { reader, line, buffer } => loop {
                buffer.clear();
                *line += 1;
                match reader.take(LINE_BYTES_MAX).read_until(b'\n', buffer) {
                    Err(error) => return Some(Err(format!("line {line}: {error}"))),
                    Ok(0) => return None,
                    Ok(read) if read as u64 == LINE_BYTES_MAX => {
                        return Some(Err(format!("line {line}: longer than {LINE_BYTES_MAX} bytes")));
                    }
                    Ok(_) if buffer.trim_ascii().is_empty() => {}
                    Ok(_) => {
                        let row = json_row(&self.shape, buffer.trim_ascii(), *line);
                        return Some(row.map_err(|error| format!("line {line}: {error}")));
                    }
                }
            },
        }
    }
}

/// The first bytes of a source and what comes after them; a pipe may give one byte at a time.
fn begin<R: Read>(mut source: R) -> io::Result<(Vec<u8>, R)> {
    let mut head = Vec::new();
    source.by_ref().take(BYTE_ORDER_MARK.len() as u64).read_to_end(&mut head)?;
    Ok((head, source))
}

impl Source {
    fn csv(plain: Box<dyn BufRead + Send>, shape: &Shape) -> Result<Source, String> {
        let left = Arc::new(AtomicU64::new(LINE_BYTES_MAX));
        let mut reader = csv::ReaderBuilder::new().from_reader(Bounded { inner: plain, left: left.clone() });
        let header = reader.headers().map_err(|error| format!("line 1: {}", csv_error(&error)))?;
        let header: Vec<String> = header.iter().map(|name| name.trim().to_owned()).collect();
        for (at, name) in header.iter().enumerate() {
            if name.is_empty() || header[..at].contains(name) {
                return Err(format!("line 1: the header's column {} has an empty or repeated name '{name}'", at + 1));
            }
        }
        let wanted = match &shape.key {
            Some(template) => template.fields().map(str::to_owned).collect(),
            None => vec!["key".to_owned(), "value".to_owned()],
        };
        for field in wanted.iter().chain(&shape.text) {
            if !header.contains(field) {
                return Err(format!("line 1: the header has no column '{field}'; it has {}", header.join(", ")));
            }
        }
        Ok(Source::Csv { reader: Box::new(reader), header, record: csv::StringRecord::new(), left })
    }
}

fn csv_error(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("the row has {len} fields, the header {expected_len}")
        }
        csv::ErrorKind::Utf8 { .. } => "not UTF-8".to_owned(),
        csv::ErrorKind::Io(error) => error.to_string(),
        _ => error.to_string(),
    }
}

fn csv_row(shape: &Shape, header: &[String], record: &csv::StringRecord, line: u64) -> Result<Row, String> {
    let field = |name: &str| -> Result<Cow<'_, str>, String> {
        let at = header.iter().position(|column| column == name).ok_or_else(|| format!("no column '{name}'"))?;
        Ok(record.get(at).unwrap_or_default().into())
    };
    let Some(template) = &shape.key else {
        let (key, value) = (field("key")?, field("value")?);
        return Ok(Row {
            line,
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
        });
    };
    let key = template.key(field)?;
    let document: Map<String, Value> = header
        .iter()
        .zip(record)
        .map(|(name, text)| {
            let value = if shape.text.contains(name) { Value::from(text) } else { typed(text) };
            (name.clone(), value)
        })
        .collect();
    Ok(Row { line, key, value: Bytes::from(Value::from(document).to_string()) })
}

/// The JSON value a CSV field stands for.
fn typed(text: &str) -> Value {
    match text {
        "" => return Value::Null,
        "true" => return Value::Bool(true),
        "false" => return Value::Bool(false),
        _ => {}
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = match digits.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (digits, None),
    };
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || (whole.len() > 1 && whole.starts_with('0')) {
        return Value::from(text);
    }
    match fraction {
        // "-0" would come back as 0.
        None if text == "-0" => Value::from(text),
        None => text.parse::<i64>().map_or_else(|_| Value::from(text), Value::from),
        Some(fraction) if is_number(fraction) && whole.len() + fraction.len() <= DECIMAL_DIGITS_MAX => {
            text.parse::<f64>().map_or_else(|_| Value::from(text), Value::from)
        }
        Some(_) => Value::from(text),
    }
}

fn json_row(shape: &Shape, text: &[u8], line: u64) -> Result<Row, String> {
    let document: Map<String, Value> =
        serde_json::from_slice(text).map_err(|error| format!("expected one JSON object: {}", json_error(&error)))?;
    let Some(template) = &shape.key else {
        return Ok(Row { line, key: exported(&document, "key")?, value: exported(&document, "value")? });
    };
    let key = template.key(|name| match document.get(name) {
        Some(Value::String(text)) => Ok(Cow::Borrowed(text.as_str())),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(Cow::Owned(value.to_string())),
        Some(_) => Err(format!("the field '{name}' of the key is neither text nor a number")),
        None => Err(format!("the field '{name}' of the key is missing")),
    })?;
    Ok(Row { line, key, value: Bytes::copy_from_slice(text) })
}

/// The parser's complaint without its own line number (the line is always 1) and without the text it complains of.
fn json_error(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Eof => "it ends early",
        serde_json::error::Category::Data => "it is something else",
        serde_json::error::Category::Syntax | serde_json::error::Category::Io => "the syntax is wrong",
    };
    format!("{what} at column {}", error.column())
}

/// A key or value of an exported line.
fn exported(document: &Map<String, Value>, name: &str) -> Result<Bytes, String> {
    let as_hex = format!("{name}_hex");
    match (document.get(name), document.get(&as_hex)) {
        (Some(Value::String(text)), None) => Ok(Bytes::copy_from_slice(text.as_bytes())),
        (None, Some(Value::String(digits))) => text::unhex(digits),
        _ => Err(format!(
            "expected a line of `trivet export` with '{name}' or '{as_hex}'; for other documents say with --key how to make keys"
        )),
    }
}

/// Lets a number of bytes through and then refuses, until the number is set again.
struct Bounded {
    inner: Box<dyn BufRead + Send>,
    left: Arc<AtomicU64>,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            return Err(io::Error::other(format!("longer than {LINE_BYTES_MAX} bytes")));
        }
        let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self.inner.read(&mut buffer[..length])?;
        self.left.fetch_sub(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Counts what is read, for the progress bar.
struct Counting<R> {
    inner: R,
    read_bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read_bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn shape(format: Format, key: &str) -> Shape {
        let key = if key.is_empty() { None } else { Some(Template::parse(key).expect("a template")) };
        Shape { format, key, text: vec![] }
    }

    fn rows(data: &[u8], shape: Shape) -> Vec<Result<(u64, String, String), String>> {
        let mut rows = match Rows::new(io::Cursor::new(data.to_vec()), shape) {
            Ok(rows) => rows,
            Err(error) => return vec![Err(error)],
        };
        let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).expect("text");
        std::iter::from_fn(|| rows.next())
            .map(|row| row.map(|row| (row.line, text(row.key), text(row.value))))
            .collect()
    }

    #[test]
    fn csv_rows_become_typed_documents() {
        let data =
            b"id,date,cents,rate,zip,gone,note\n7,19970101,-1177,0.5,00401,,\"a, \"\"b\"\"\nc\"\n8,x,1,1.50,2,true,\n";
        let found = rows(data, shape(Format::Csv, "{date}/{id}"));
        let first =
            r#"{"id":7,"date":19970101,"cents":-1177,"rate":0.5,"zip":"00401","gone":null,"note":"a, \"b\"\nc"}"#;
        let second = r#"{"id":8,"date":"x","cents":1,"rate":1.5,"zip":2,"gone":true,"note":null}"#;
        assert_eq!(
            found,
            vec![Ok((2, "19970101/7".to_owned(), first.to_owned())), Ok((4, "x/8".to_owned(), second.to_owned())),]
        );
    }

    #[test]
    fn fields_can_be_kept_as_text() {
        let mut shape = shape(Format::Csv, "{id}");
        shape.text = vec!["id".to_owned()];
        assert_eq!(rows(b"id,n\n7,7\n", shape), vec![Ok((2, "7".to_owned(), r#"{"id":"7","n":7}"#.to_owned()))]);
    }

    #[test]
    fn numbers_become_numbers_only_without_loss() {
        for text in [
            "007",
            "-0",
            "1e5",
            "+1",
            ".5",
            "5.",
            "--1",
            "1.2.3",
            "9223372036854775808",
            "0.1234567890123456",
            "NaN",
            " 1",
        ] {
            assert_eq!(typed(text), Value::from(text), "{text}");
        }
        assert_eq!(typed("-9223372036854775808"), Value::from(i64::MIN));
        assert_eq!(typed("0"), Value::from(0));
        assert_eq!(typed("11.77").to_string(), "11.77");
    }

    #[test]
    fn json_lines_are_kept_as_they_stand() {
        let data = b"{\"id\": \"a\",  \"n\": 1.0}\n\n {\"id\": 5}  \r\n{\"id\":true}";
        let found = rows(data, shape(Format::Jsonl, "k{id}"));
        assert_eq!(
            found,
            vec![
                Ok((1, "ka".to_owned(), "{\"id\": \"a\",  \"n\": 1.0}".to_owned())),
                Ok((3, "k5".to_owned(), "{\"id\": 5}".to_owned())),
                Ok((4, "ktrue".to_owned(), "{\"id\":true}".to_owned())),
            ]
        );
    }

    #[test]
    fn errors_name_the_line_and_hide_the_values() {
        let errors =
            |data: &[u8], shape| -> Vec<String> { rows(data, shape).into_iter().filter_map(Result::err).collect() };
        assert_eq!(
            errors(b"id,n\n1\n2,3\n,4\n", shape(Format::Csv, "{id}")),
            vec!["line 2: the row has 1 fields, the header 2", "line 4: the field 'id' of the key is empty",]
        );
        assert_eq!(errors(b"id,n\n1,\xff\n", shape(Format::Csv, "{id}")), vec!["line 2: not UTF-8"]);
        assert_eq!(
            errors(b"id,id\n", shape(Format::Csv, "{id}")),
            vec!["line 1: the header's column 2 has an empty or repeated name 'id'"]
        );
        assert_eq!(errors(b"n\n", shape(Format::Csv, "{id}")), vec!["line 1: the header has no column 'id'; it has n"]);
        let lines = b"{\"id\":1}\n{\"secret\nnull\n{\"id\":[]}\n{}\n";
        assert_eq!(
            errors(lines, shape(Format::Jsonl, "{id}")),
            vec![
                "line 2: expected one JSON object: it ends early at column 8",
                "line 3: expected one JSON object: it is something else at column 4",
                "line 4: the field 'id' of the key is neither text nor a number",
                "line 5: the field 'id' of the key is missing",
            ]
        );
    }

    #[test]
    fn exports_come_back() {
        let lines = b"{\"key\":\"a\",\"version\":\"7\",\"value\":\"v\"}\n{\"key_hex\":\"61\",\"value_hex\":\"76\"}\n{\"id\":1}\n";
        let found = rows(lines, shape(Format::Jsonl, ""));
        assert_eq!(found[..2], [Ok((1, "a".to_owned(), "v".to_owned())), Ok((2, "a".to_owned(), "v".to_owned()))]);
        assert!(found[2].as_ref().is_err_and(|error| error.contains("--key")));
        assert_eq!(rows(b"key,value\na,v\n", shape(Format::Csv, "")), vec![Ok((2, "a".to_owned(), "v".to_owned()))]);
    }

    #[test]
    fn gzip_is_recognised_by_its_first_bytes() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(b"id\n1\n").expect("memory");
        let mut two_members = packed.finish().expect("memory");
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(b"2\n").expect("memory");
        two_members.extend(packed.finish().expect("memory"));
        assert_eq!(rows(&two_members, shape(Format::Csv, "{id}")).len(), 2);
        two_members.truncate(two_members.len() - 9);
        let cut = rows(&two_members, shape(Format::Csv, "{id}")).pop().expect("rows");
        let error = cut.expect_err("a cut file is noticed");
        assert!(error.starts_with("line 4: "), "{error}");
    }

    /// Gives one byte at a time, as a pipe may.
    struct Dripping(io::Cursor<Vec<u8>>);

    impl Read for Dripping {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = buffer.len().min(1);
            self.0.read(&mut buffer[..length])
        }
    }

    #[test]
    fn what_a_file_begins_with_is_seen_however_it_is_read() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(b"\xef\xbb\xbfid\n1\n").expect("memory");
        let marked_lines = b"\xef\xbb\xbf{\"id\":1}\n".to_vec();
        for (data, format) in [
            (packed.finish().expect("memory"), Format::Csv),
            (b"\xef\xbb\xbfid\n1\n".to_vec(), Format::Csv),
            (marked_lines, Format::Jsonl),
        ] {
            let mut rows = Rows::new(Dripping(io::Cursor::new(data)), shape(format, "{id}")).expect("a file");
            let row = rows.next().expect("a row").expect("a good one");
            assert_eq!((&row.key[..], &row.value[..]), (&b"1"[..], &b"{\"id\":1}"[..]));
            assert!(rows.next().is_none());
        }
    }

    #[test]
    fn a_quote_that_is_never_closed_ends_the_run() {
        let endless = io::Cursor::new(b"id,n\n1,2\n3,\"").chain(io::repeat(b'x'));
        let mut rows = Rows::new(endless, shape(Format::Csv, "{id}")).expect("a header");
        assert!(rows.next().expect("a row").is_ok());
        let error = rows.next().expect("a row").expect_err("too long");
        assert!(error.starts_with("line ") && error.ends_with("longer than 16777216 bytes"), "{error}");
    }

    #[test]
    fn formats_follow_the_file_name() {
        for (name, format) in [
            ("a.csv", Some(Format::Csv)),
            ("a.CSV.gz", Some(Format::Csv)),
            ("a.jsonl.gz", Some(Format::Jsonl)),
            ("a.txt", None),
        ] {
            assert_eq!(Format::of(Path::new(name)), format, "{name}");
        }
    }
}
