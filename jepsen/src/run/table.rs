//! The table of runs: a line of JSON for each, and the same for people.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What one run came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Row {
    /// The nemeses.
    pub name: String,
    /// Repeats its choices.
    pub seed: u64,
    /// How long faults went on.
    pub seconds: u64,
    /// How many nodes there were.
    pub nodes: u64,
    /// Operations by workload and verb: answered and all.
    pub operations: BTreeMap<String, BTreeMap<String, (usize, usize)>>,
    /// The share of operations whose outcome is unknown, of a hundred.
    pub info_percent: f64,
    /// Strikes that took hold with enough operations meanwhile, by nemesis.
    pub strikes: BTreeMap<String, usize>,
    /// How often a shard was seen led by another node than before.
    pub leader_changes: u64,
    /// The longest time without an answered write on any shard, in milliseconds, and the middle one of the shards.
    pub gap_ms: (u64, u64),
    /// How long after the last fault every shard had answered a write.
    pub recovered_ms: Option<u64>,
    /// How long after the last fault every node called the cluster healthy.
    pub healthy_ms: Option<u64>,
    /// What was found, or what the run lacked; empty: passed.
    pub problems: Vec<String>,
}

const HEAD: &str = "\
| nemesis | s | ok / all operations | unknown | strikes | leader changes | longest gap (median shard) | writes / healthy after heal | verdict |
|---|--:|--:|--:|---|--:|--:|--:|---|
";

impl Row {
    /// Whether all that is held against it is that faults could not be made or shown, or that too little happened.
    pub fn only_showed_too_little(&self) -> bool {
        !self.problems.is_empty() && self.problems.iter().all(|one| one.starts_with("vacuous") || one.starts_with("I9"))
    }

    /// Answered operations and all.
    pub fn counts(&self) -> (usize, usize) {
        let all = self.operations.values().flat_map(|verbs| verbs.values());
        all.fold((0, 0), |(ok, all), (one_ok, one_all)| (ok + one_ok, all + one_all))
    }

    fn verdict(&self) -> String {
        match self.problems.as_slice() {
            [] => "passed".to_owned(),
            [first, rest @ ..] => {
                let kind = if first.starts_with("vacuous") { "vacuous" } else { "FAILED" };
                format!("{kind} ({})", 1 + rest.len())
            }
        }
    }

    fn struck(&self) -> String {
        let strikes: Vec<String> = self.strikes.iter().map(|(name, count)| format!("{count} {name}")).collect();
        strikes.join(", ")
    }

    fn line(&self) -> String {
        let seconds = |ms: u64| format!("{:.1} s", ms as f64 / 1e3);
        let maybe = |ms: Option<u64>| ms.map_or("never".to_owned(), seconds);
        let (ok, all) = self.counts();
        let verdict = self.verdict();
        format!(
            "| {} | {} | {ok} / {all} | {:.1} % | {} | {} | {} ({}) | {} / {} | {verdict} |\n",
            self.name,
            self.seconds,
            self.info_percent,
            self.struck(),
            self.leader_changes,
            seconds(self.gap_ms.0),
            seconds(self.gap_ms.1),
            maybe(self.recovered_ms),
            maybe(self.healthy_ms),
        )
    }
}

/// What runs of one kind with one seed after the other came to.
pub(super) fn by_seed(rows: &[Row]) -> String {
    let line = |row: &Row| {
        let (ok, all) = row.counts();
        let first = row.problems.first().map_or("", String::as_str).replace('|', "/");
        let (percent, struck, verdict) = (row.info_percent, row.struck(), row.verdict());
        format!("| {} | {ok} / {all} | {percent:.1} % | {struck} | {verdict} | {first} |\n", row.seed)
    };
    let passed = rows.iter().filter(|row| row.problems.is_empty()).count();
    let lines: String = rows.iter().map(line).collect();
    format!(
        "| seed | ok / all operations | unknown | strikes | verdict | the worst |\n|--:|--:|--:|---|---|---|\n{lines}\n\
         {passed} of {} runs passed",
        rows.len()
    )
}

/// Adds a row to the table in a directory.
pub(super) fn append(directory: &Path, row: &Row) -> Result<()> {
    let (json, markdown) = (directory.join("table.jsonl"), directory.join("table.md"));
    let mut file =
        OpenOptions::new().create(true).append(true).open(&json).with_context(|| format!("{}", json.display()))?;
    writeln!(file, "{}", serde_json::to_string(row)?)?;
    let text = fs::read_to_string(&json)?;
    let rows: Vec<Row> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let lines: String = rows.iter().map(Row::line).collect();
    fs::write(&markdown, format!("{HEAD}{lines}")).with_context(|| format!("{}", markdown.display()))?;
    println!("{HEAD}{}", row.line());
    Ok(())
}
