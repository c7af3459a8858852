//! Histories: what every client asked, and what it was told, on one clock.
//!
//! Promise: a history says neither more nor less than the clients saw. An invocation is stamped before the request is
//! sent and a completion after its answer has come, both by the one monotonic clock of the harness, so an operation
//! took effect, if it did, between its two stamps. One logical operation, all its retries included, is one invocation
//! and one completion:
//!
//! - `ok`: it took effect and this is the answer;
//! - `fail`: it certainly had no effect (a read that was not answered is a failure: it never has one);
//! - `info`: nobody knows. It may take effect later than its completion, for ever. Its process number ends with it.
//!
//! On disk a history is a file of JSON lines, one per invocation and completion ([`Event`]), written as they happen, so
//! that a harness that dies leaves what it saw. In memory the lines are paired to [`Operation`]s, which is what
//! checkers read. [`FaultSpan`]s, the faults that were at work meanwhile, lie beside them in `faults.jsonl`: checkers of
//! what depends on clocks need them, and so does whoever reads a report.
//!
//! Left out: what a workload means by its `f` and its values; that stands with the workload and its checker.

mod event;
mod fault;
mod paired;
mod recorder;

pub use event::{Event, Extra, Kind};
pub use fault::{FaultSpan, read_faults, write_faults};
pub use paired::{History, Malformed, Operation, read_dir};
pub use recorder::{Pending, Process, Recorder, Stopwatch};
