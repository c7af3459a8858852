//! The timeline of a violation: one self-contained HTML file.
//!
//! One picture per finding: time from left to right, a row per process, a bar per operation; what contradicts is framed,
//! what else happened on the same key is pale, and faults are bands behind. A bar of unknown outcome fades out to the
//! right, because nobody knows when it ended. Pointing at a bar tells all of it.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use super::page::{faults_of, window};
use crate::check::Finding;
use crate::history::{History, Kind, Operation};

/// Most findings drawn.
const FINDINGS_MAX: usize = 10;
/// Most neighbours drawn beside the operations that contradict.
const NEIGHBOURS_MAX: usize = 300;
/// Time shown around the operations that contradict, as a part of theirs.
const MARGIN: f64 = 0.15;
/// Least time shown, in nanoseconds: with less, the bars would say nothing about their neighbours.
const SPAN_MIN: u64 = 20_000_000;

const WIDTH: f64 = 1_100.0;
const LEFT: f64 = 110.0;
const ROW: f64 = 24.0;
const HEAD: f64 = 44.0;

const STYLE: &str = "\
body{font:14px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1240px;color:#1b1f24;background:#fff}\
h1{font-size:1.3em}h2{font-size:1.05em;margin:2em 0 .2em}p{margin:.2em 0 .8em;color:#444}\
svg{display:block;border:1px solid #d5d9de;border-radius:4px}text{font:11px ui-monospace,monospace;fill:#333}\
.band{fill:#c9302c;opacity:.12}.bandname{fill:#9a2420}.axis{stroke:#d5d9de}\
.op rect{stroke:#0003}.ok rect{fill:#8fc79a}.fail rect{fill:#c8ccd2}.info rect{fill:url(#fade)}\
.op{opacity:.45}.op.culprit{opacity:1}.culprit rect{stroke:#b00020;stroke-width:2}\
@media(prefers-color-scheme:dark){body{background:#15181c;color:#e4e7eb}p{color:#aab}text{fill:#ccd}\
svg{border-color:#39404a}.axis{stroke:#39404a}.ok rect{fill:#3f7f4d}.fail rect{fill:#59616b}.bandname{fill:#ff8a80}}";

/// The timeline of these findings.
pub fn timeline(history: &History, findings: &[Finding]) -> String {
    let mut html = String::new();
    // Writing to a string does not fail.
    let _ = document(&mut html, history, findings);
    html
}

fn document(html: &mut String, history: &History, findings: &[Finding]) -> fmt::Result {
    let name = Escaped(&history.name);
    writeln!(html, "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{name}</title>")?;
    writeln!(html, "<style>{STYLE}</style>")?;
    writeln!(html, "<h1>{name}: {} contradictions</h1>", findings.len())?;
    writeln!(
        html,
        "<p>Framed: the operations that contradict. Pale: others on the same key. Green took effect, grey certainly did \
         not, a bar that fades out may have at any later time. Red bands are faults. Point at a bar to see all of it.</p>"
    )?;
    for (number, finding) in findings.iter().take(FINDINGS_MAX).enumerate() {
        picture(html, number + 1, finding, history)?;
    }
    if findings.len() > FINDINGS_MAX {
        writeln!(html, "<p>{} more are not drawn.</p>", findings.len() - FINDINGS_MAX)?;
    }
    writeln!(html, "</html>")
}

fn picture(html: &mut String, number: usize, finding: &Finding, history: &History) -> fmt::Result {
    let (first, last) = window(finding, history);
    let margin = ((last - first).max(SPAN_MIN) as f64 * MARGIN) as u64;
    let (mut from, to) = (first.saturating_sub(margin), last + margin.max(SPAN_MIN));
    let faults = faults_of(finding, history);
    // A fault shortly before is worth its place.
    from = faults.iter().map(|fault| fault.from_ns.max(first.saturating_sub(5 * margin))).fold(from, u64::min);
    let x = |ns: u64| LEFT + (ns.clamp(from, to) - from) as f64 / (to - from).max(1) as f64 * (WIDTH - LEFT - 10.0);

    let neighbours = history
        .operations
        .iter()
        .enumerate()
        .filter(|(place, operation)| {
            let end = operation.end.unwrap_or(u64::MAX);
            operation.key == finding.key && operation.start <= to && end >= from && !finding.operations.contains(place)
        })
        .take(NEIGHBOURS_MAX);
    let culprits = finding.operations.iter().filter_map(|&place| Some((place, history.operations.get(place)?)));
    let mut rows: BTreeMap<u64, Vec<(usize, &Operation)>> = BTreeMap::new();
    for (place, operation) in neighbours.chain(culprits) {
        rows.entry(operation.process).or_default().push((place, operation));
    }

    let height = HEAD + ROW * rows.len() as f64 + 8.0;
    writeln!(html, "<h2>{number}. {}</h2><p>key {}</p>", Escaped(&finding.what), Escaped(&finding.key))?;
    writeln!(html, "<svg viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">")?;
    writeln!(
        html,
        "<defs><linearGradient id=\"fade\"><stop offset=\"0\" stop-color=\"#e0a030\"/>\
         <stop offset=\"1\" stop-color=\"#e0a030\" stop-opacity=\"0\"/></linearGradient></defs>"
    )?;
    for (at, fault) in faults.iter().enumerate() {
        let (start, end) = (x(fault.from_ns), x(fault.to_ns));
        let (width, y) = ((end - start).max(1.0), 12.0 + (at % 2) as f64 * 12.0);
        let name = format!("{} {}", fault.name, fault.target);
        let name = Escaped(&name);
        writeln!(
            html,
            "<rect class=\"band\" x=\"{start:.1}\" y=\"0\" width=\"{width:.1}\" height=\"{height}\"/>\
             <text class=\"bandname\" x=\"{:.1}\" y=\"{y}\">{name}</text>",
            start + 2.0
        )?;
    }
    for tick in 0..=5_u64 {
        let ns = from + (to - from) / 5 * tick;
        let (place, seconds) = (x(ns), ns as f64 / 1e9);
        writeln!(
            html,
            "<line class=\"axis\" x1=\"{place:.1}\" x2=\"{place:.1}\" y1=\"28\" y2=\"{height}\"/>\
             <text x=\"{place:.1}\" y=\"38\">{seconds:.3} s</text>"
        )?;
    }
    for (row, (process, operations)) in rows.iter().enumerate() {
        let y = HEAD + ROW * row as f64;
        writeln!(html, "<text x=\"4\" y=\"{:.1}\">process {process}</text>", y + 14.0)?;
        for (place, operation) in operations {
            let class = match operation.outcome {
                Kind::Ok => "ok",
                Kind::Fail => "fail",
                Kind::Info | Kind::Invoke => "info",
            };
            let culprit = if finding.operations.contains(place) { "culprit " } else { "" };
            let (start, end) = (x(operation.start), x(operation.settled().unwrap_or(to)));
            let whole = operation.to_string();
            writeln!(
                html,
                "<g class=\"op {culprit}{class}\"><title>#{place} {}</title>\
                 <rect x=\"{start:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
                Escaped(whole.trim()),
                y + 2.0,
                (end - start).max(3.0),
                ROW - 5.0,
                start + 3.0,
                y + 15.0,
                Escaped(&label(operation)),
            )?;
        }
    }
    writeln!(html, "</svg>")
}

/// What stands on a bar.
fn label(operation: &Operation) -> String {
    /// Longest text on a bar.
    const LABEL: usize = 24;
    let value = if operation.is_ok() && operation.input.is_null() { &operation.output } else { &operation.input };
    let text = format!("{} {value}", operation.f);
    if text.chars().count() > LABEL { text.chars().take(LABEL).chain(['…']).collect() } else { text }
}

/// A text in which nothing is markup.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}
