//! What replicas keep of Raft and tell one another: entries, votes, log ids, marks, requests and their answers.
//!
//! The readers belong to `trivet::raft` alone; the properties stand beside them, in `src/raft/fuzz.rs`.
#![no_main]

mod support;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| support::frugally(data, 1 << 20, trivet::fuzzing::raft));
