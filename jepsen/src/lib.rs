//! Fault injection against the shipped Trivet binary, as a user of its public client.
//!
//! A workload drives the cluster and records a history ([`workload`], [`history`]); a nemesis disturbs the cluster
//! meanwhile ([`nemesis`], with [`net`] and [`disk`] below it); a checker says whether the history could have come
//! from the promised system ([`check`]); a report tells a person what was found ([`report`]). [`run`] puts them
//! together over the real processes of [`cluster`].
//!
//! Left out: everything inside a node. What one process can show without faults of the machine is shown faster by the
//! simulation in `tests/`.
#![allow(clippy::disallowed_methods, reason = "the harness lives in real time, outside of what it tests")]
#![warn(missing_docs)]

pub mod check;
mod cluster;
mod disk;
pub mod history;
mod nemesis;
mod net;
pub mod report;
pub mod run;
pub mod workload;
