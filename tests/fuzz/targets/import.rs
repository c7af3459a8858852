//! Files for `trivet import`: CSV, JSON lines, exports, gzip, and the templates that make keys.
//!
//! The first line of an input is the template (empty: the file is an export); what stands before a tab in it says how
//! the file is written and read (see `Manner`). The rest is the file. What must hold: rows or an error, and the same
//! ones however the file is cut while it is read; lines that only go on; rows that say what the file says; exports that
//! come back. The files of the command line are taken in as they stand, for they are no part of the library.
#![no_main]

mod support;

#[path = "../../../src/cli"]
#[allow(dead_code, reason = "the command line uses the rest")]
mod cli {
    pub mod text;
    pub mod import {
        pub mod rows;
        pub mod template;
    }
}

use std::borrow::Cow;
use std::io::{Cursor, Read, Write};

use bytes::Bytes;
use cli::import::rows::{Format, Row, Rows, Shape};
use cli::import::template::Template;
use cli::text;
use flate2::Compression;
use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};

/// Two read buffers, what unpacks, and the densest JSON.
const CONSTANT: usize = 8 << 20;

fuzz_target!(|data: &[u8]| support::frugally(data, CONSTANT, check));

/// How an input wants to be read.
struct Manner {
    format: Format,
    /// Bytes a read returns at most; so that every boundary falls everywhere.
    step: usize,
    /// Packed before it is read.
    packed: bool,
    /// The first field of the template stays text.
    as_text: bool,
}

impl Manner {
    fn of(letters: &str) -> Manner {
        let has = |letter| letters.contains(letter);
        let step = letters.bytes().find(u8::is_ascii_digit).map_or(usize::MAX, |digit| usize::from(digit - b'0') + 1);
        let format = if has('j') { Format::Jsonl } else { Format::Csv };
        Manner { format, step, packed: has('z'), as_text: has('t') }
    }
}

fn check(data: &[u8]) {
    let line = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    let (head, file) = (&data[..line], data.get(line + 1..).unwrap_or_default());
    let Ok(head) = std::str::from_utf8(head) else { return };
    let (manner, template) = head.split_once('\t').unwrap_or(("", head));
    let manner = Manner::of(manner);
    let key = match Template::parse(template) {
        Ok(template) => Some(template),
        Err(why) => {
            assert!(!why.is_empty());
            if !template.is_empty() {
                return;
            }
            None
        }
    };
    if let Some(key) = &key {
        template_says_itself(key);
    }
    let fields = key.iter().flat_map(Template::fields).map(str::to_owned);
    let shape = Shape { format: manner.format, text: fields.take(usize::from(manner.as_text)).collect(), key };

    let gzipped = file.starts_with(&[0x1f, 0x8b]);
    let whole = read(file.to_vec(), usize::MAX, &shape);
    let pieces = read(file.to_vec(), manner.step, &shape);
    if gzipped && whole.1.is_some() {
        // Where damage is noticed depends on how much is unpacked at once, that it is noticed does not.
        assert!(pieces.1.is_some() && whole.0.iter().zip(&pieces.0).all(|(one, two)| one == two));
    } else {
        assert_eq!(pieces, whole, "cut into reads of {} bytes", manner.step);
    }
    if manner.packed && !gzipped {
        assert_eq!(read(pack(file), manner.step, &shape), whole, "packed");
    }
    let lines: Vec<u64> = whole.0.iter().map(|row| row.line).collect();
    match shape.format {
        // Rows that end in a bare carriage return share a line.
        Format::Csv => assert!(lines.is_sorted() && lines.first().is_none_or(|&line| line > 0)),
        Format::Jsonl => assert!(lines.is_sorted_by(|before, after| before < after)),
    }
    assert!(whole.1.is_none_or(|error| error.starts_with("line ") && !error.starts_with("line 0")));
    if !gzipped {
        match shape.format {
            Format::Csv => csv_rows(file, &shape, &whole.0),
            Format::Jsonl => json_rows(file, &shape, &whole.0),
        }
    }
    exports_come_back(file);
}

/// All rows up to the first that cannot be read, and why not: nobody reads on after that.
fn read(file: Vec<u8>, step: usize, shape: &Shape) -> (Vec<Row>, Option<String>) {
    let mut found = Vec::new();
    let mut rows = match Rows::new(Stepping { inner: Cursor::new(file), step }, shape.clone()) {
        Ok(rows) => rows,
        Err(error) => return (found, Some(error)),
    };
    while let Some(row) = rows.next() {
        match row {
            Ok(row) => found.push(row),
            Err(error) => return (found, Some(error)),
        }
    }
    assert!(rows.next().is_none_or(|row| row.is_err()), "a row after the last");
    (found, None)
}

/// Returns a few bytes at a time.
struct Stepping<R> {
    inner: R,
    step: usize,
}

impl<R: Read> Read for Stepping<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = buffer.len().min(self.step);
        self.inner.read(&mut buffer[..length])
    }
}

fn pack(file: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(file).expect("memory takes it");
    packed.finish().expect("memory takes it")
}

/// A template can be told from the keys it makes, and so be written down and parsed again.
fn template_says_itself(template: &Template) {
    const MARK: &str = "\u{1}";
    let made = template.key(|_| Ok(Cow::Borrowed(MARK))).expect("every field is there");
    let made = std::str::from_utf8(&made).expect("text in, text out");
    let names: Vec<&str> = template.fields().collect();
    assert!(!names.is_empty() && names.iter().all(|name| !name.is_empty()));
    if made.matches(MARK).count() == names.len() {
        let mut literals = made.split(MARK).map(|text| text.replace('{', "{{").replace('}', "}}"));
        let mut written = literals.next().expect("something before the first field");
        for (name, literal) in names.iter().zip(literals) {
            written.push_str(&format!("{{{name}}}{literal}"));
        }
        assert_eq!(Template::parse(&written).as_ref(), Ok(template), "{written}");
    }
    assert!(template.key(|_| Ok(Cow::Borrowed(""))).is_err(), "an empty field is no part of a key");
    assert_eq!(template.key(|_| Err("gone".to_owned())), Err("gone".to_owned()));
}

/// Each row beside the record it was made of.
fn csv_rows(file: &[u8], shape: &Shape, rows: &[Row]) {
    let mut reader = csv::Reader::from_reader(file);
    let Ok(header) = reader.headers().cloned() else { return assert!(rows.is_empty()) };
    let names: Vec<&str> = header.iter().map(str::trim).collect();
    let mut records = reader.records();
    for row in rows {
        let record = records.next().expect("a record for each row").expect("a row was made of it");
        let field = |name: &str| names.iter().position(|known| *known == name).and_then(|at| record.get(at));
        let Some(template) = &shape.key else {
            assert_eq!(Some(&row.key[..]), field("key").map(str::as_bytes));
            assert_eq!(Some(&row.value[..]), field("value").map(str::as_bytes));
            continue;
        };
        let key = template.key(|name| field(name).map(Cow::Borrowed).ok_or_else(|| "no such field".to_owned()));
        assert_eq!(Ok(&row.key), key.as_ref());
        let document: Map<String, Value> = serde_json::from_slice(&row.value).expect("a document is JSON");
        assert!(document.keys().eq(&names), "fields in the order of the header");
        for ((name, value), text) in document.iter().zip(&record) {
            nothing_is_lost(value, text);
            assert!(!shape.text.contains(name) || value == text);
        }
    }
}

/// A value says exactly what the text of its field said.
fn nothing_is_lost(value: &Value, text: &str) {
    match value {
        Value::Null => assert_eq!(text, ""),
        Value::Bool(truth) => assert_eq!(text, truth.to_string()),
        Value::String(kept) => assert_eq!(text, kept),
        Value::Number(number) if number.is_f64() => {
            let (_, fraction) = text.split_once('.').expect("only decimals become fractions");
            let number = number.as_f64().expect("it is one");
            assert_eq!(format!("{number:.*}", fraction.len()), text);
        }
        Value::Number(number) => assert_eq!(text, number.to_string()),
        Value::Array(_) | Value::Object(_) => panic!("no field holds {value}"),
    }
}

/// A line is stored as it stands.
fn json_rows(file: &[u8], shape: &Shape, rows: &[Row]) {
    let lines: Vec<&[u8]> = file.split(|&byte| byte == b'\n').collect();
    for row in rows {
        let line = lines[row.line as usize - 1].trim_ascii();
        if shape.key.is_some() {
            assert_eq!(row.value, line);
            assert!(!row.key.is_empty());
        }
        let document: Map<String, Value> = serde_json::from_slice(line).expect("a row was made of it");
        assert!(shape.key.is_some() || document.keys().any(|name| name == "key" || name == "key_hex"));
    }
}

/// Rows as `trivet export` writes them, made of any bytes, are imported as they were.
fn exports_come_back(bytes: &[u8]) {
    let mut input = support::Pieces(&bytes[..bytes.len().min(400)]);
    let (mut exported, mut expected) = (String::new(), Vec::new());
    while !input.0.is_empty() {
        let (key, value) = (input.piece(), input.piece());
        let mut line = Map::new();
        text::insert(&mut line, "key", key);
        text::insert(&mut line, "value", value);
        exported.push_str(&Value::from(line).to_string());
        exported.push('\n');
        expected.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
    }
    let shape = Shape { format: Format::Jsonl, key: None, text: Vec::new() };
    let (rows, error) = read(exported.into_bytes(), usize::MAX, &shape);
    assert_eq!(error, None);
    assert_eq!(rows.into_iter().map(|row| (row.key, row.value)).collect::<Vec<_>>(), expected);
}
