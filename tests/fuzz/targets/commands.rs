//! What a shard keeps in its log and beside its data: proposals, outcomes of requests, applied states.
//!
//! The readers belong to `trivet::shard` alone; the properties stand beside them, in `src/shard/fuzz.rs`.
#![no_main]

mod support;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| support::frugally(data, 1 << 20, trivet::fuzzing::commands));
