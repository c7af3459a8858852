//! Real `trivet` processes on free loopback ports, treated badly.
//!
//! Each test founds a cluster in a directory of its own, speaks to it as users do (the command line, the Rust client,
//! bare gRPC) and harms it as the world does (kill -9, SIGSTOP, lost disks, flipped bits, garbage on a port). The
//! harness speaks in the words of the domain: `cluster.kill(2)`, `cluster.wipe(3)`, `cluster.healthy().await`. When a
//! test fails, the ends of the nodes' logs are printed and their directory is kept.
//!
//! `TRIVET_ROUNDS` multiplies the faults of the tests that repeat one; `tests/faults/run` uses it for long runs.
#![allow(clippy::disallowed_methods, reason = "the harness lives in real time, outside of what it tests")]

mod bad_bytes;
mod bad_disks;
mod bad_neighbours;
mod batches;
mod changes;
mod copies;
mod dumb_client;
mod elastic;
mod failures;
mod harness;
mod histories;
mod limits;
mod load;
mod merges;
mod orders;
mod recovery;
mod rejoining;
mod repeats;
mod scans;
mod scripts;
mod splits;
mod tables;
mod unfit;
mod views;
