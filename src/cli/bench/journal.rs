//! What a verification run did and what came of it, as JSON lines, and what the store must therefore hold.
//!
//! Each key has one owner, which has at most one call on it at a time; so the journal of a key is a sequence. A put
//! carries the key's next number, an increment adds one. A call ends `acked`, `unknown` (it may or may not have taken
//! effect, now or later) or `refused` (it has not). From that follows what a later read may find; anything else is
//! lost, doubled or a phantom. A journal without its last line was cut off with its writer: then each key may have had
//! one more call in flight.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::path::Path;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It took effect.
    Acked,
    /// It may or may not have taken effect.
    Unknown,
    /// It took no effect.
    Refused,
}

/// One line of a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// The first line: the table, and the bytes of a value.
    Run {
        /// The table.
        table: String,
        /// Bytes of a value.
        value_bytes: usize,
    },
    /// A put of this number.
    Put {
        /// The key.
        key: String,
        /// The number.
        number: u64,
        /// How it ended.
        end: End,
    },
    /// An increment by one.
    Incr {
        /// The key.
        key: String,
        /// How it ended.
        end: End,
    },
    /// Something seen during the run that must not be.
    Violation {
        /// The key.
        key: String,
        /// What was wrong.
        what: String,
    },
    /// The last line: the writer ended in good order.
    Finished,
}

/// A journal being written; every line is handed to the operating system at once, so it survives its writer.
#[derive(Debug)]
pub struct Journal {
    file: Mutex<File>,
}

impl Journal {
    /// A new journal; an existing one is not overwritten.
    pub fn create(path: &Path) -> Result<Journal, String> {
        let file =
            File::create_new(path).map_err(|error| format!("cannot make the journal {}: {error}", path.display()))?;
        Ok(Journal { file: Mutex::new(file) })
    }

    /// Adds a line.
    pub fn note(&self, entry: &Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        self.file.lock().write_all(&line)
    }
}

/// What is known of a key that is put.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Puts {
    /// The number acknowledged last; 0: none.
    pub acked: u64,
    /// The highest number tried.
    pub tried: u64,
    /// Numbers that may be found although they were not acknowledged.
    pub unknown: BTreeSet<u64>,
}

/// What is known of a counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Increments acknowledged.
    pub acked: i64,
    /// Increments that may have taken effect.
    pub unknown: i64,
}

/// What the store must hold after a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Oracle {
    /// The table.
    pub table: String,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Keys that were put.
    pub puts: BTreeMap<String, Puts>,
    /// Counters.
    pub counts: BTreeMap<String, Counts>,
    /// Calls that were acknowledged.
    pub acked: u64,
    /// Calls whose outcome is not known.
    pub unknown: u64,
    /// Calls that failed for certain.
    pub refused: u64,
    /// What was seen during the run that must not be.
    pub violations: Vec<String>,
    /// Whether the writer ended in good order.
    pub finished: bool,
}

/// What a read back of one key says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// As it must be.
    Good,
    /// So many acknowledged writes or increments are missing.
    Lost(u64),
    /// So many increments counted twice.
    Doubled(u64),
    /// A write is there that was refused or never made.
    Phantom,
}

impl Oracle {
    /// Reads a journal back.
    pub fn read(journal: impl BufRead) -> Result<Oracle, String> {
        let mut oracle = Oracle::default();
        let mut lines = journal.lines().enumerate().peekable();
        while let Some((at, line)) = lines.next() {
            let line = line.map_err(|error| format!("cannot read the journal: {error}"))?;
            match serde_json::from_str(&line) {
                Ok(entry) => oracle.add(entry),
                // Only the last line can be torn, when its writer was killed.
                Err(_) if lines.peek().is_none() => {}
                Err(error) => return Err(format!("line {} of the journal: {error}", at + 1)),
            }
        }
        if oracle.table.is_empty() {
            Err("this is no journal of `trivet bench --verify`".to_owned())
        } else {
            Ok(oracle)
        }
    }

    fn add(&mut self, entry: Entry) {
        let end = match entry {
            Entry::Run { table, value_bytes } => {
                self.table = table;
                self.value_bytes = value_bytes;
                return;
            }
            Entry::Violation { key, what } => {
                self.violations.push(format!("{key}: {what}"));
                return;
            }
            Entry::Finished => {
                self.finished = true;
                return;
            }
            Entry::Put { key, number, end } => {
                self.puts.entry(key).or_default().add(number, end);
                end
            }
            Entry::Incr { key, end } => {
                self.counts.entry(key).or_default().add(end);
                end
            }
        };
        match end {
            End::Acked => self.acked += 1,
            End::Unknown => self.unknown += 1,
            End::Refused => self.refused += 1,
        }
    }

    /// What it means to find this number (none: no value) under a key that was put.
    pub fn judge_put(&self, key: &str, found: Option<u64>) -> Finding {
        let puts = self.puts.get(key).cloned().unwrap_or_default();
        match found {
            None if puts.acked == 0 => Finding::Good,
            None => Finding::Lost(1),
            Some(number) if puts.allows(number) => Finding::Good,
            Some(number) if !self.finished && number == puts.tried + 1 => Finding::Good,
            Some(number) if number < puts.acked => Finding::Lost(1),
            Some(_) => Finding::Phantom,
        }
    }

    /// What it means to find this sum (none: no value) in a counter.
    pub fn judge_count(&self, key: &str, found: Option<i64>) -> Finding {
        let counts = self.counts.get(key).copied().unwrap_or_default();
        let most = counts.acked + counts.unknown + i64::from(!self.finished);
        match found.unwrap_or(0) {
            sum if sum < counts.acked => Finding::Lost((counts.acked - sum) as u64),
            sum if sum > most => Finding::Doubled((sum - most) as u64),
            _ => Finding::Good,
        }
    }
}

impl Puts {
    /// A put of this number ended.
    pub fn add(&mut self, number: u64, end: End) {
        self.tried = self.tried.max(number);
        match end {
            End::Acked => self.acked = number,
            End::Unknown => {
                self.unknown.insert(number);
            }
            End::Refused => {}
        }
    }

    /// Whether a read may find this number: the last acknowledged one, or one that is still in the air (it may take
    /// effect even after a later one was acknowledged).
    pub fn allows(&self, number: u64) -> bool {
        number == self.acked || self.unknown.contains(&number)
    }
}

impl Counts {
    /// An increment ended.
    pub fn add(&mut self, end: End) {
        match end {
            End::Acked => self.acked += 1,
            End::Unknown => self.unknown += 1,
            End::Refused => {}
        }
    }

    /// Whether the next acknowledged increment may return this sum.
    pub fn allows_next(&self, sum: i64) -> bool {
        (self.acked + 1..=self.acked + 1 + self.unknown).contains(&sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oracle(lines: &str) -> Oracle {
        let head = r#"{"run":{"table":"t","value_bytes":8}}"#;
        Oracle::read(format!("{head}\n{lines}").as_bytes()).expect("a journal")
    }

    const PUTS: &str = r#"{"put":{"key":"k","number":1,"end":"acked"}}
{"put":{"key":"k","number":2,"end":"unknown"}}
{"put":{"key":"k","number":3,"end":"acked"}}
{"put":{"key":"k","number":4,"end":"refused"}}
{"put":{"key":"k","number":5,"end":"unknown"}}
"#;

    #[test]
    fn a_put_may_be_found_as_it_was_left_or_as_it_is_unknown() {
        let finished = oracle(&format!("{PUTS}\"finished\"\n"));
        let judge = |number| finished.judge_put("k", number);
        assert_eq!([judge(Some(3)), judge(Some(5)), judge(Some(2))], [Finding::Good; 3]);
        assert_eq!([judge(None), judge(Some(1))], [Finding::Lost(1); 2]);
        assert_eq!([judge(Some(4)), judge(Some(6))], [Finding::Phantom; 2]);
        assert_eq!((finished.acked, finished.unknown, finished.refused), (2, 2, 1));
    }

    #[test]
    fn a_journal_cut_off_allows_one_more_call() {
        let cut = oracle(&format!("{PUTS}{{\"put\":{{\"key\":\"k\",\"nu"));
        assert!(!cut.finished);
        assert_eq!(cut.judge_put("k", Some(6)), Finding::Good);
        assert_eq!(cut.judge_put("k", Some(7)), Finding::Phantom);
        assert_eq!(cut.judge_count("n", Some(1)), Finding::Good);
        assert_eq!(cut.judge_count("n", Some(2)), Finding::Doubled(1));
        assert!(Oracle::read(&b"{}\n{}\n"[..]).is_err());
        assert!(Oracle::read(&b""[..]).is_err());
    }

    #[test]
    fn a_counter_may_hold_what_was_acknowledged_and_what_is_unknown() {
        let lines = "{\"incr\":{\"key\":\"n\",\"end\":\"acked\"}}\n".repeat(3)
            + "{\"incr\":{\"key\":\"n\",\"end\":\"unknown\"}}\n{\"incr\":{\"key\":\"n\",\"end\":\"refused\"}}\n\"finished\"\n";
        let oracle = oracle(&lines);
        let judge = |sum| oracle.judge_count("n", sum);
        assert_eq!([judge(Some(3)), judge(Some(4))], [Finding::Good; 2]);
        assert_eq!(
            [judge(Some(1)), judge(None), judge(Some(6))],
            [Finding::Lost(2), Finding::Lost(3), Finding::Doubled(2)]
        );
        let counts = oracle.counts["n"];
        assert!(counts.allows_next(4) && counts.allows_next(5) && !counts.allows_next(3) && !counts.allows_next(6));
    }

    #[test]
    fn a_journal_is_read_back_as_it_was_written_and_never_overwritten() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("journal");
        let journal = Journal::create(&path).expect("a new file");
        for entry in [
            Entry::Run { table: "t".to_owned(), value_bytes: 8 },
            Entry::Put { key: "k".to_owned(), number: 1, end: End::Acked },
            Entry::Violation { key: "k".to_owned(), what: "stale".to_owned() },
            Entry::Finished,
        ] {
            journal.note(&entry).expect("written");
        }
        let text = std::fs::read(&path).expect("the journal");
        let oracle = Oracle::read(&text[..]).expect("a journal");
        assert!(oracle.finished && oracle.violations == ["k: stale"] && oracle.puts["k"].acked == 1);
        assert!(Journal::create(&path).is_err());
    }
}
