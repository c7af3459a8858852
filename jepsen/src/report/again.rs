//! Judging stored histories again: offline, after a checker was sharpened or on another machine.

use std::path::Path;

use anyhow::ensure;

use super::{Judged, Run, page};
use crate::history::read_dir;
use crate::workload;

/// Judges every history in a directory by its workload's checkers and prints a page on each; true if all hold. Whether
/// a history is long enough depends on the run it comes from and is not asked again.
///
/// Errors: a history cannot be read, none is there, or one is of no workload that is known.
pub fn judge_again(directory: &Path) -> anyhow::Result<bool> {
    let histories = read_dir(directory)?;
    ensure!(!histories.is_empty(), "there are no histories in {}", directory.display());
    let run = run(directory);
    let workloads = workload::all();
    let mut all_hold = true;
    for history in &histories {
        let workload = workloads.iter().find(|workload| workload.name() == history.name);
        let workload = workload.ok_or_else(|| anyhow::anyhow!("there is no workload \"{}\"", history.name))?;
        let verdict = workload.check(history);
        let judged = Judged { promise: workload.promise(), history, verdict: &verdict, shortfalls: &[] };
        all_hold &= judged.passed();
        super::write(judged, &run)?;
        println!("{}", page(judged, &run));
    }
    Ok(all_hold)
}

/// The run that left this directory, as far as it says so.
fn run(directory: &Path) -> Run {
    let told = std::fs::read_to_string(directory.join("run.json")).ok();
    let told: serde_json::Value = told.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let command = told["command"].as_str().unwrap_or_default().to_owned();
    // The command names the seed, so no other form of it needs to be agreed on.
    let mut words = command.split_whitespace().skip_while(|word| *word != "--seed").skip(1);
    let seed = words.next().and_then(|word| word.parse().ok()).unwrap_or_default();
    Run { seed, command, directory: directory.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Recorder, Stopwatch};
    use serde_json::{Value, json};

    #[test]
    fn a_stored_history_is_judged_as_a_fresh_one() {
        let directory = std::env::temp_dir().join(format!("trivet-again-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let store = |answer: Value| {
            let recorder = Recorder::to_file(&directory, "register", Stopwatch::start()).expect("a file");
            let mut process = recorder.process();
            process.invoke("write", "k", json!(1)).ok(json!(1));
            process.invoke("read", "k", Value::Null).ok(answer);
            recorder.flush().expect("written");
        };
        assert!(judge_again(&directory).is_err(), "nothing to judge is no pass");
        store(json!(1));
        assert!(judge_again(&directory).expect("readable"));
        store(Value::Null);
        assert!(!judge_again(&directory).expect("readable"));
        assert!(directory.join("register.html").exists());
        std::fs::write(directory.join("other.jsonl"), "").expect("written");
        assert!(judge_again(&directory).is_err(), "a history that nobody can judge is no pass");
        std::fs::remove_dir_all(&directory).expect("our own directory");
    }
}
