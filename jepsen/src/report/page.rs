//! The page about one workload, as text.

use std::fmt::Write as _;

use super::{Judged, Run};
use crate::check::{Finding, Verdict};
use crate::history::{FaultSpan, History};

/// Most findings told in full: the first explain the others.
const FINDINGS_MAX: usize = 5;
/// Most operations of a finding told.
const OPERATIONS_MAX: usize = 12;
/// Faults that ended this long before an operation may still be its cause: an election and a retry.
const AFTERMATH_NS: u64 = 10_000_000_000;

/// The page about one workload's part in a run.
pub fn page(judged: Judged<'_>, run: &Run) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = tell(&mut text, judged, run);
    text
}

fn tell(text: &mut String, judged: Judged<'_>, run: &Run) -> std::fmt::Result {
    let Judged { promise, history, verdict, shortfalls } = judged;
    let word = match verdict {
        Verdict::Invalid { .. } => "VIOLATED",
        Verdict::Unknown { .. } => "UNKNOWN (does not pass)",
        Verdict::Valid { .. } if !shortfalls.is_empty() => "VACUOUS (does not pass)",
        Verdict::Valid { .. } => "holds",
    };
    writeln!(text, "{}: {word}", history.name)?;
    writeln!(text, "\nPromised: {promise}.")?;
    match verdict {
        Verdict::Valid { summary } => writeln!(text, "Seen:     {summary}.")?,
        Verdict::Unknown { why } => writeln!(text, "Doubt:    {why}.")?,
        Verdict::Invalid { findings } => {
            writeln!(text, "Broken:   by {} contradictions.", findings.len())?;
            for (number, finding) in findings.iter().take(FINDINGS_MAX).enumerate() {
                contradiction(text, number + 1, finding, history)?;
            }
            if findings.len() > FINDINGS_MAX {
                writeln!(text, "\n… and {} more.", findings.len() - FINDINGS_MAX)?;
            }
        }
    }
    for shortfall in shortfalls {
        writeln!(text, "Too little: {shortfall}.")?;
    }
    writeln!(text, "\nOperations in all: {}; faults: {}.", history.operations.len(), history.faults.len())?;
    if !judged.passed() {
        let directory = run.directory.display();
        if !run.command.is_empty() {
            writeln!(text, "\nTo see it again: seed {}", run.seed)?;
            writeln!(text, "  {}", run.command)?;
            writeln!(text, "The seed repeats every choice of clients and faults; the timing differs from run to run.")?;
        }
        writeln!(text, "To judge the stored history again, or look at it:")?;
        writeln!(text, "  jepsen/run check {directory}")?;
        writeln!(text, "  {directory}/{}.jsonl", history.name)?;
        if matches!(verdict, Verdict::Invalid { .. }) {
            writeln!(text, "  {directory}/{}.html (timeline)", history.name)?;
        }
    }
    Ok(())
}

fn contradiction(text: &mut String, number: usize, finding: &Finding, history: &History) -> std::fmt::Result {
    writeln!(text, "\n{number}. {}", finding.what)?;
    writeln!(text, "   key: {}", finding.key)?;
    writeln!(text, "   operations (seconds since the start; number in the history):")?;
    for &place in finding.operations.iter().take(OPERATIONS_MAX) {
        if let Some(operation) = history.operations.get(place) {
            writeln!(text, "   #{place:<6} {operation}")?;
        }
    }
    if finding.operations.len() > OPERATIONS_MAX {
        writeln!(text, "   … and {} more", finding.operations.len() - OPERATIONS_MAX)?;
    }
    let faults = faults_of(finding, history);
    if faults.is_empty() {
        return writeln!(text, "   No fault was at work then.");
    }
    writeln!(text, "   faults then:")?;
    for fault in faults {
        let (from, to) = (fault.from_ns as f64 / 1e9, fault.to_ns as f64 / 1e9);
        writeln!(text, "   {from:9.3} s .. {to:9.3} s  {} {}", fault.name, fault.target)?;
    }
    Ok(())
}

/// The faults that were at work during a finding's operations or shortly before.
pub(super) fn faults_of<'a>(finding: &Finding, history: &'a History) -> Vec<&'a FaultSpan> {
    let (from, to) = window(finding, history);
    history.faults.iter().filter(|fault| fault.overlaps(from.saturating_sub(AFTERMATH_NS), to)).collect()
}

/// From the first beginning to the last end of a finding's operations.
pub(super) fn window(finding: &Finding, history: &History) -> (u64, u64) {
    let operations = || finding.operations.iter().filter_map(|&place| history.operations.get(place));
    let from = operations().map(|operation| operation.start).min().unwrap_or(0);
    let to = operations().map(|operation| operation.end.unwrap_or(operation.start)).max().unwrap_or(from);
    (from, to)
}
