//! Refusals that a well-formed client never gets.
//!
//! Whatever the faults: a request that was right is not called wrong. A workload whose own requests provoke a refusal
//! says which one it expects.

use super::{Finding, Verdict};
use crate::history::History;

/// Reasons that say the client is wrong.
const NEVER: &[&str] = &[
    "EMPTY_KEY",
    "KEY_TOO_LARGE",
    "VALUE_TOO_LARGE",
    "BATCH_TOO_LARGE",
    "INVALID_REQUEST",
    "CROSS_SHARD",
    "NOT_AN_INTEGER",
    "UNKNOWN_TABLE",
    "READ_ONLY_TABLE",
    "HISTORY_TRIMMED",
    "REQUEST_MISMATCH",
    "INVALID_CURSOR",
    "CURSOR_TRIMMED",
    "WRONG_CLUSTER",
    "UNKNOWN_SHARD",
];
/// Most findings of one reason: the first tell enough.
const EACH_MAX: usize = 5;

/// Judges all operations; `expected` are the reasons that the workload provokes.
pub fn check(history: &History, expected: &[&str]) -> Verdict {
    let mut findings: Vec<Finding> = Vec::new();
    for &reason in NEVER.iter().filter(|reason| !expected.contains(reason)) {
        let refused = history.operations.iter().enumerate().filter(|(_, op)| op.text("error") == Some(reason));
        findings.extend(refused.take(EACH_MAX).map(|(place, operation)| Finding {
            what: format!("a well-formed request was refused as {reason}"),
            key: operation.key.clone(),
            operations: vec![place],
        }));
    }
    if findings.is_empty() {
        Verdict::Valid { summary: "no well-formed request was called wrong".into() }
    } else {
        Verdict::Invalid { findings }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::testing::{Line, history, named};
    use serde_json::json;

    #[test]
    fn a_refusal_of_a_right_request_is_found_unless_it_was_provoked() {
        let busy = Line::new("write", "k", json!(1)).fail("NO_QUORUM").at(0, 10);
        let wrong = Line::new("write", "k", json!(2)).fail("REQUEST_MISMATCH").at(20, 30);
        let history = history(&[busy, wrong]);
        assert_eq!(named(check(&history, &[])), [[1]]);
        assert!(check(&history, &["REQUEST_MISMATCH"]).is_valid());
    }
}
