//! Checkers: could this history have come from the promised system?
//!
//! Promise: a checker says [`Verdict::Invalid`] only of a history that the promise rules out, names the operations that
//! contradict it, and says [`Verdict::Unknown`] whenever it could not decide. Unknown never passes.
//!
//! Each checker is a pure function of a [`History`](crate::history::History), in a file of its own with the known-good
//! and known-bad histories that it was tried on.

pub mod ages;
pub mod append;
pub mod bank;
pub mod catalog;
pub mod changes;
pub mod counter;
pub mod past;
pub mod refusals;
pub mod register;
pub mod scan;
pub mod set;
#[cfg(test)]
pub(crate) mod testing;
pub mod ttl;
pub mod versions;
pub mod views;

/// What a checker says of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The history could have come from the promised system.
    Valid {
        /// One line of what was seen: counts that show that the check had something to look at.
        summary: String,
    },
    /// It could not.
    Invalid {
        /// Why not; never empty.
        findings: Vec<Finding>,
    },
    /// It is not known.
    Unknown {
        /// What kept the checker from deciding.
        why: String,
    },
}

/// One contradiction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong, in a sentence for people.
    pub what: String,
    /// The key (tag, table) it concerns.
    pub key: String,
    /// The operations that contradict each other, as places in `History::operations`.
    pub operations: Vec<usize>,
}

impl Verdict {
    /// Whether the history passes; unknown does not.
    pub fn is_valid(&self) -> bool {
        matches!(self, Verdict::Valid { .. })
    }

    /// What several checkers of one history say together: any contradiction counts, then any doubt.
    pub fn all(verdicts: Vec<Verdict>) -> Verdict {
        let (mut summaries, mut findings, mut doubts) = (Vec::new(), Vec::new(), Vec::new());
        for verdict in verdicts {
            match verdict {
                Verdict::Valid { summary } => summaries.push(summary),
                Verdict::Invalid { findings: more } => findings.extend(more),
                Verdict::Unknown { why } => doubts.push(why),
            }
        }
        if !findings.is_empty() {
            Verdict::Invalid { findings }
        } else if !doubts.is_empty() {
            Verdict::Unknown { why: doubts.join("; ") }
        } else {
            Verdict::Valid { summary: summaries.join("; ") }
        }
    }
}
