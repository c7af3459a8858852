//! A whole cluster in one process, from one seed.
//!
//! Real nodes (openraft, log, state machine, catalog, control, doors, gRPC services) and real clients run on one thread
//! whose time only moves when nobody is ready. Their disks are memories that forget what was not synced, their network
//! is [`network`], and all that differs from run to run is drawn from the seed: parameters, faults, delays, the order of
//! tasks. While clients work, [`nemesis`] does harm and [`invariants`] looks at every replica; then everything is put
//! right, the cluster must recover in bounded time, and [`oracle`] judges all answers by the history of all keys.
//!
//! ```text
//! cargo test --release --test simulation                        the seeds of every day, and the tests of the tests
//! TRIVET_SEEDS=1000..6000 cargo test --release --test simulation seeds -- --nocapture
//! TRIVET_SEED=17 cargo test --release --test simulation seeds -- --nocapture
//! ```
#![allow(clippy::disallowed_methods, reason = "the driver lives in real time, outside of what it tests")]

mod cluster;
mod driver;
mod entropy;
mod follow;
mod invariants;
mod nemesis;
mod network;
mod oracle;
mod plan;
mod run;
mod views;
mod walk;
mod workload;

use driver::Batch;

/// Seeds run when nothing else is said.
const SEEDS: std::ops::Range<u64> = 0..200;

/// Many seeds pass, each in a process of its own, and together they have seen enough for that to mean something. With
/// `TRIVET_SEED` this is such a process and runs that one; with `TRIVET_TRACE` too, it shows its whole trace.
#[test]
fn seeds() {
    if let Some(seed) = driver::seed() {
        return driver::one_seed(seed);
    }
    let batch = Batch::of(driver::range().unwrap_or(SEEDS)).run();
    assert!(batch.failures.is_empty(), "{}", batch.report());
    println!("{}", batch.report());
    batch.floors();
}

/// Each fault built in on purpose is found, and the seed that finds it passes without it.
///
/// Those that only a real disk or a real process shows are named in docs/testing.md, not here.
#[cfg(feature = "planted")]
mod planted {
    use trivet::runtime::planted::Bug;

    use super::driver::{self, Batch};

    /// Seeds within which a fault must be found.
    const WITHIN: std::ops::Range<u64> = 0..1_000;

    fn is_found(bug: Bug) {
        let batch = Batch::of(driver::range().unwrap_or(WITHIN)).planted(bug.name()).run();
        let (seed, said) = batch.failures.first().unwrap_or_else(|| panic!("{} is not found", bug.name()));
        let violation = said.lines().next().unwrap_or_default();
        println!("PLANTED {}: found after {} seeds: {violation}", bug.name(), batch.seeds());
        let clean = Batch::of(*seed..seed + 1).run();
        assert!(clean.failures.is_empty(), "seed {seed} fails without the fault too:\n{}", clean.report());
    }

    macro_rules! found {
        ($($name:ident: $bug:ident;)*) => {
            $(#[test]
            fn $name() {
                is_found(Bug::$bug);
            })*
        };
    }

    found! {
        a_read_without_a_quorum_is_found: UnconfirmedRead;
        a_read_from_a_follower_is_found: FollowerRead;
        outcomes_lost_in_a_snapshot_are_found: OutcomesLostInSnapshot;
        an_answer_before_the_sync_is_found: AckBeforeSync;
        completions_out_of_order_are_found: CallbacksOutOfOrder;
        a_restored_leader_is_found: LeaderRestore;
        a_value_that_rises_from_the_dead_is_found: TtlResurrection;
        a_condition_judged_before_the_log_is_found: ConditionBeforeLog;
        a_torn_batch_is_found: TornBatch;
        a_forgotten_attempt_is_found: ForgottenAttempt;
        a_torn_split_is_found: TornSplit;
        a_write_by_a_range_that_was_is_found: WrongEpochAccepted;
        an_age_that_is_told_too_small_is_found: AgeUnderReported;
        a_merge_of_what_still_takes_writes_is_found: UnsealedMerge;
        a_scan_that_skips_at_a_split_is_found: ScanSkipsAtSplit;
        changes_of_a_replica_that_lags_are_found: ChangesOfALaggard;
        a_tail_that_goes_on_over_a_gap_is_found: TailAcrossAGap;
        what_is_not_taken_away_where_it_was_is_found: SkippedViewEvent;
        a_watermark_that_moves_on_before_the_rows_is_found: CursorBeforeRows;
        a_watermark_that_falls_back_is_found: WatermarkFallsBack;
        what_is_taken_in_twice_is_found: IntakeTwice;
        a_token_that_is_taken_for_one_of_the_view_is_found: TokenOfTheView;
        a_view_that_stops_at_what_was_replaced_is_found: StopAtReplaced;
    }
}

/// Two runs of a seed are the same to the last byte of their traces.
#[test]
fn a_seed_replays() {
    let mut lines = 0;
    for seed in 0..8 {
        let (one, other) = (driver::trace(seed), driver::trace(seed));
        let difference = one.lines().zip(other.lines()).position(|(one, other)| one != other);
        assert!(one == other, "seed {seed}: two runs differ from line {difference:?} on");
        lines += one.lines().count();
    }
    assert!(lines > 1_000, "traces of {lines} lines say too little");
}
