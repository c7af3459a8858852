//! Fault injection against the shipped Trivet binary, as a user of its public client.
//!
//! A workload drives the cluster and records a history; a nemesis disturbs it meanwhile; a checker says whether the
//! history could have come from the promised system. The member stands here so that the workspace has its final
//! shape and this crate depends on the light client alone; the list of workloads is [`WORKLOADS`], still empty. Until it
//! is not, faults on a running cluster are tested by `tests/cluster/` and the longer `tests/faults/`.

use std::process::ExitCode;

/// Name and one-sentence invariant of each workload.
const WORKLOADS: &[(&str, &str)] = &[];

fn main() -> ExitCode {
    if WORKLOADS.is_empty() {
        println!("No workloads exist yet. Faults are tested by tests/cluster and tests/faults.");
    }
    for (name, invariant) in WORKLOADS {
        println!("{name:<16} {invariant}");
    }
    // Asked to run a workload, an honest answer is a failure: nothing was checked.
    if std::env::args().len() > 1 { ExitCode::from(2) } else { ExitCode::SUCCESS }
}
