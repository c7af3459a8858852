//! What a run leaves for people.
//!
//! Per workload a page ([`page`]): what was promised, which operations contradict it, which faults were at work then, and
//! how to see it again. For a violation also a timeline ([`timeline`]): one HTML file without anything from elsewhere,
//! the contradicting operations per process over time, among their neighbours on the same key, with the faults as bands.
//! Both are made of the stored history alone, so they can be made again from it.

mod again;
mod page;
mod timeline;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

pub use crate::history::FaultSpan;
pub use again::judge_again;
pub use page::page;
pub use timeline::timeline;

use crate::check::Verdict;
use crate::history::History;

/// What is told of the run as a whole.
#[derive(Clone, Debug)]
pub struct Run {
    /// The seed of everything random in it; of no meaning without a command.
    pub seed: u64,
    /// The command that runs it again; empty if it is not known.
    pub command: String,
    /// Where histories, logs and reports lie.
    pub directory: PathBuf,
}

/// One workload's part in a run, judged.
#[derive(Clone, Copy)]
pub struct Judged<'a> {
    /// What it promises.
    pub promise: &'a str,
    /// What happened, with the faults.
    pub history: &'a History,
    /// What the checkers say.
    pub verdict: &'a Verdict,
    /// What the history lacks to say something; a run with any fails.
    pub shortfalls: &'a [String],
}

impl Judged<'_> {
    /// Whether the workload passed: valid, and not vacuous.
    pub fn passed(&self) -> bool {
        self.verdict.is_valid() && self.shortfalls.is_empty()
    }
}

/// Writes the page, and for a violation the timeline, into the run's directory; returns the files.
pub fn write(judged: Judged<'_>, run: &Run) -> anyhow::Result<Vec<PathBuf>> {
    let name = &judged.history.name;
    let mut files = vec![save(&run.directory, &format!("{name}.txt"), &page(judged, run))?];
    if let Verdict::Invalid { findings } = judged.verdict {
        files.push(save(&run.directory, &format!("{name}.html"), &timeline(judged.history, findings))?);
    }
    Ok(files)
}

fn save(directory: &Path, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    let path = directory.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Finding;
    use crate::check::testing::{Line, history};
    use serde_json::{Value, json};

    const SECOND: u64 = 1_000_000_000;

    fn sample() -> (History, Verdict) {
        let mut history = history(&[
            Line::new("write", "<k>", json!(1)).at(SECOND, 2 * SECOND),
            Line::new("write", "<k>", json!(2)).info("timeout").at(2 * SECOND, 3 * SECOND),
            Line::new("read", "<k>", Value::Null).ok(Value::Null).at(4 * SECOND, 5 * SECOND),
            Line::new("read", "<k>", Value::Null).ok(json!(1)).at(5 * SECOND + 1, 6 * SECOND),
        ]);
        history.faults = vec![
            FaultSpan { name: "kill".into(), target: "n2".into(), from_ns: 3 * SECOND, to_ns: 5 * SECOND },
            FaultSpan { name: "pause".into(), target: "n3".into(), from_ns: 60 * SECOND, to_ns: 61 * SECOND },
        ];
        let finding = Finding { what: "it was lost".into(), key: "<k>".into(), operations: vec![0, 2] };
        (history, Verdict::Invalid { findings: vec![finding] })
    }

    fn run() -> Run {
        Run { seed: 42, command: "jepsen/run --seed 42".into(), directory: "out".into() }
    }

    #[test]
    fn the_page_says_what_was_promised_what_broke_it_when_and_how_to_see_it_again() {
        let (history, verdict) = sample();
        let judged = Judged { promise: "nothing is lost", history: &history, verdict: &verdict, shortfalls: &[] };
        let page = page(judged, &run());
        for part in
            ["VIOLATED", "nothing is lost", "it was lost", "kill n2", "seed 42", "jepsen/run --seed 42", "check out"]
        {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
        assert!(page.contains("write <k> 1") && page.contains("read <k> null"), "{page}");
        assert!(!page.contains("pause n3"), "a fault a minute later is of no interest\n{page}");
    }

    #[test]
    fn a_doubt_and_a_vacuous_run_do_not_read_like_a_pass() {
        let (history, _) = sample();
        let unknown = Verdict::Unknown { why: "the search took too long".into() };
        let valid = Verdict::Valid { summary: "all is well".into() };
        let lack = ["3 answered reads, at least 500 are needed".to_owned()];
        for (verdict, shortfalls, word) in
            [(&unknown, &[][..], "UNKNOWN"), (&valid, &lack[..], "VACUOUS"), (&valid, &[][..], "holds")]
        {
            let judged = Judged { promise: "nothing is lost", history: &history, verdict, shortfalls };
            let page = page(judged, &run());
            assert!(page.contains(word), "{page}");
            assert_eq!(judged.passed(), word == "holds");
        }
    }

    #[test]
    fn the_timeline_is_one_file_that_shows_culprits_neighbours_and_faults() {
        let (history, verdict) = sample();
        let Verdict::Invalid { findings } = &verdict else { panic!("a violation") };
        let html = timeline(&history, findings);
        assert_eq!(html.matches("class=\"op culprit").count(), 2);
        assert_eq!(html.matches("class=\"op ").count(), 4);
        assert!(html.contains("kill n2") && !html.contains("pause n3"));
        assert!(html.contains("&lt;k&gt;") && !html.contains("<k>"), "what clients wrote is no markup");
        assert!(
            !html.contains("http://") && !html.contains("https://") && !html.contains("src="),
            "nothing from elsewhere"
        );
        assert!(html.ends_with("</html>\n"));
    }
}
