//! Faults built in on purpose, to show that the tests would find them.
//!
//! Without the cargo feature `planted`, which nothing but such a test turns on, [`is`] is a constant and the faults
//! are not in the program. With it, the environment variable `TRIVET_PLANTED` names the one fault that a process has.

/// A fault. What each does stands where it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A leader answers linearizable reads without asking a quorum whether it still leads.
    UnconfirmedRead,
    /// A follower answers linearizable reads from what it has.
    FollowerRead,
    /// A snapshot leaves the outcomes of requests out.
    OutcomesLostInSnapshot,
    /// The log writer reports a batch done before it is durable.
    AckBeforeSync,
    /// The log writer reports the newest append of a batch before the older ones, and before the sync.
    CallbacksOutOfOrder,
    /// A restarted leader goes on in its term without an election.
    LeaderRestore,
    /// Increments count from a value that has run out.
    TtlResurrection,
    /// Conditions are judged when a write is proposed, not when it is applied.
    ConditionBeforeLog,
    /// The effects of one run of entries are written in two batches.
    TornBatch,
    /// A node that asks for a client forgets that an earlier attempt at a write may have taken effect.
    ForgottenAttempt,
    /// The child of a split is written after the batch that takes its range from the parent.
    TornSplit,
    /// A shard takes writes that were routed by a range it no longer has.
    WrongEpochAccepted,
    /// A replica notes the time of a proof of its age when it has it, not before it asks.
    AgeUnderReported,
    /// The right shard of a merge is not sealed: it goes on taking writes until it is absorbed.
    UnsealedMerge,
    /// A scan that meets a shard whose range has changed goes on where the range it was planned by ended.
    ScanSkipsAtSplit,
    /// Who follows changes goes on with a search of the versions at a replica that has not come as far.
    ChangesOfALaggard,
    /// The tail of the last changes goes on over what did not come by its log: a snapshot, or another shard's range.
    TailAcrossAGap,
    /// Who follows changes goes on from before the history window with what is still there.
    SilentTrim,
    /// Upkeep of a view sends what a change does only to where the document is now, not to where it was.
    SkippedViewEvent,
    /// Upkeep of a view moves the watermark on first and sends the rows afterwards.
    CursorBeforeRows,
    /// A shard of a view takes changes in from wherever the sender says that it stands.
    WatermarkFallsBack,
    /// A shard of a view takes in once more what it has just taken in, if it is sent again.
    IntakeTwice,
    /// A view takes a token for one of its own versions, not of its sources'.
    TokenOfTheView,
    /// A view that stops at documents that do not fit stops at versions, too, that were replaced meanwhile.
    StopAtReplaced,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 24] = [
        Bug::UnconfirmedRead,
        Bug::FollowerRead,
        Bug::OutcomesLostInSnapshot,
        Bug::AckBeforeSync,
        Bug::CallbacksOutOfOrder,
        Bug::LeaderRestore,
        Bug::TtlResurrection,
        Bug::ConditionBeforeLog,
        Bug::TornBatch,
        Bug::ForgottenAttempt,
        Bug::TornSplit,
        Bug::WrongEpochAccepted,
        Bug::AgeUnderReported,
        Bug::UnsealedMerge,
        Bug::ScanSkipsAtSplit,
        Bug::ChangesOfALaggard,
        Bug::TailAcrossAGap,
        Bug::SilentTrim,
        Bug::SkippedViewEvent,
        Bug::CursorBeforeRows,
        Bug::WatermarkFallsBack,
        Bug::IntakeTwice,
        Bug::TokenOfTheView,
        Bug::StopAtReplaced,
    ];

    /// The name that `TRIVET_PLANTED` knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Bug::UnconfirmedRead => "unconfirmed-read",
            Bug::FollowerRead => "follower-read",
            Bug::OutcomesLostInSnapshot => "outcomes-lost-in-snapshot",
            Bug::AckBeforeSync => "ack-before-sync",
            Bug::CallbacksOutOfOrder => "callbacks-out-of-order",
            Bug::LeaderRestore => "leader-restore",
            Bug::TtlResurrection => "ttl-resurrection",
            Bug::ConditionBeforeLog => "condition-before-log",
            Bug::TornBatch => "torn-batch",
            Bug::ForgottenAttempt => "forgotten-attempt",
            Bug::TornSplit => "torn-split",
            Bug::WrongEpochAccepted => "wrong-epoch-accepted",
            Bug::AgeUnderReported => "age-under-reported",
            Bug::UnsealedMerge => "unsealed-merge",
            Bug::ScanSkipsAtSplit => "scan-skips-at-split",
            Bug::ChangesOfALaggard => "changes-of-a-laggard",
            Bug::TailAcrossAGap => "tail-across-a-gap",
            Bug::SilentTrim => "silent-trim",
            Bug::SkippedViewEvent => "skipped-view-event",
            Bug::CursorBeforeRows => "cursor-before-rows",
            Bug::WatermarkFallsBack => "watermark-falls-back",
            Bug::IntakeTwice => "intake-twice",
            Bug::TokenOfTheView => "token-of-the-view",
            Bug::StopAtReplaced => "stop-at-replaced",
        }
    }
}

/// Whether this process has this fault.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is(_: Bug) -> bool {
    false
}

/// Whether this process has this fault.
#[cfg(feature = "planted")]
pub fn is(bug: Bug) -> bool {
    static PLANTED: std::sync::OnceLock<Option<Bug>> = std::sync::OnceLock::new();
    let planted = PLANTED.get_or_init(|| {
        let name = std::env::var("TRIVET_PLANTED").ok().filter(|name| !name.is_empty())?;
        let found = Bug::ALL.into_iter().find(|bug| bug.name() == name);
        Some(found.unwrap_or_else(|| panic!("TRIVET_PLANTED={name}: there is no such fault")))
    });
    *planted == Some(bug)
}
