//! Faults as spans of time on the clock of the histories.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// The file of faults beside the histories of a run.
const FILE: &str = "faults.jsonl";

/// One fault while it was at work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultSpan {
    /// The nemesis' name. One that touches wall clocks begins with `clock`: ages and times to live cannot be held
    /// against a cluster whose clocks were wrong.
    pub name: String,
    /// What it hit, for people: `n1`, `n1 -> n3`, `all`.
    pub target: String,
    /// When it took hold, in nanoseconds of the harness' clock.
    pub from_ns: u64,
    /// When it was lifted.
    pub to_ns: u64,
}

impl FaultSpan {
    /// Whether it makes wall clocks wrong.
    pub fn touches_clocks(&self) -> bool {
        self.name.starts_with("clock")
    }

    /// Whether it was at work at some time from `from` to `to`.
    pub fn overlaps(&self, from: u64, to: u64) -> bool {
        self.from_ns <= to && from <= self.to_ns
    }
}

/// Writes the faults of a run beside its histories.
pub fn write_faults(directory: &Path, faults: &[FaultSpan]) -> anyhow::Result<()> {
    let path = directory.join(FILE);
    let mut file = BufWriter::new(File::create(&path).with_context(|| format!("cannot create {}", path.display()))?);
    for fault in faults {
        serde_json::to_writer(&mut file, fault)?;
        file.write_all(b"\n")?;
    }
    file.flush().with_context(|| format!("cannot write {}", path.display()))
}

/// The faults of a run; none if it had none.
pub fn read_faults(directory: &Path) -> anyhow::Result<Vec<FaultSpan>> {
    let path = directory.join(FILE);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut faults = Vec::new();
    for (at, line) in BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        faults.push(serde_json::from_str(&line).with_context(|| format!("{}, line {}", path.display(), at + 1))?);
    }
    Ok(faults)
}

/// Whether a file of a run's directory is a history.
pub(super) fn is_history(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "jsonl") && path.file_name().is_some_and(|name| name != FILE)
}
