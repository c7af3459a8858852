//! What to do after an attempt failed: pure decisions, so that every one can be tested.
//!
//! A definite failure had no effect: another attempt is free to go anywhere. An undetermined one of a write may have
//! had its effect: it is tried again only under its request id, and from then on nothing but an answer (or a refusal
//! that such an answer could be) may be reported as definite. The reason reported at the end is that of the last
//! attempt, or `RESULT_UNDETERMINED`.

use std::time::Duration;

use super::backoff::{Backoff, jitter};
use crate::runtime::Instant;
use crate::types::{Error, Kind, NodeId, Reason};

/// How long the first attempts wait for an answer before another node is tried: far beyond what a healthy node
/// takes, and short enough to leave a hung one in time.
const ATTEMPT: Duration = Duration::from_secs(1);
/// Attempts that may time out before the waits double: one at the hung node, one at the next.
const QUICK_TIMEOUTS: u32 = 2;
/// Redirects and refreshes followed at once; more in a row mean that the cluster itself does not know yet.
const HOPS_MAX: u32 = 3;
/// Pauses between attempts: an election takes one to two seconds and its end should not be missed by much.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_LONGEST: Duration = Duration::from_millis(100);
/// Least time left for another attempt: with less, a write would hardly be answered any more, and a failure that is
/// definite now would become undetermined. Of a short deadline no more than a tenth is kept for this.
const ATTEMPT_MIN: Duration = Duration::from_millis(100);
/// The pause when the retry budget is spent.
const PAUSE_THROTTLED: Duration = Duration::from_millis(500);
/// Longest pause that a server can ask for.
const PAUSE_ASKED_MAX: Duration = Duration::from_secs(1);
/// How often a table that the map has may be unknown to the node asked: its catalog lags behind.
const UNKNOWN_TABLE_MAX: u32 = 8;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Report this.
    Fail(Error),
    /// Ask again at once.
    Again,
    /// Get a newer map, then ask again.
    Refresh,
    /// Wait this long, then ask again.
    Pause(Duration),
}

/// One call's history of failed attempts.
#[derive(Debug)]
pub(super) struct Trouble {
    pauses: Backoff,
    hops: u32,
    timeouts: u32,
    unknown_table: u32,
    attempts: u32,
    /// Whether an attempt may have taken effect.
    undetermined: bool,
    /// Whether a repeat is safe then.
    repeatable: bool,
    /// When it is too late for another attempt.
    last_call: Instant,
    /// The node of the last attempt, if it is better not asked next.
    pub(super) avoid: Option<NodeId>,
    /// Whether the leader itself must be asked, whatever the read allows.
    pub(super) leader_only: bool,
    last: Option<Error>,
}

impl Trouble {
    /// Of a call that begins `now` and changes nothing, or whose repeat has no second effect, if `repeatable`.
    pub(super) fn new(repeatable: bool, now: Instant, deadline: Instant) -> Trouble {
        let patience = deadline.saturating_duration_since(now);
        Trouble {
            pauses: Backoff::new(PAUSE_FIRST, PAUSE_LONGEST),
            hops: 0,
            timeouts: 0,
            unknown_table: 0,
            attempts: 0,
            undetermined: false,
            repeatable,
            last_call: now + patience.saturating_sub(ATTEMPT_MIN.min(patience / 10)),
            avoid: None,
            leader_only: false,
            last: None,
        }
    }

    /// Until when the next attempt waits for its answer.
    pub(super) fn attempt_until(&self, now: Instant, deadline: Instant) -> Instant {
        let doublings = (self.timeouts + 1).saturating_sub(QUICK_TIMEOUTS).min(8);
        deadline.min(now + ATTEMPT * (1 << doublings))
    }

    /// Takes note of an attempt at `node` that failed at `now` and says what to do.
    pub(super) fn judge(&mut self, error: Error, node: NodeId, now: Instant) -> Next {
        self.attempts += 1;
        self.avoid = None;
        let next = match error.kind() {
            Kind::Invalid | Kind::Internal => Next::Fail(self.last_word(error.clone())),
            Kind::NotFound => {
                self.unknown_table += 1;
                if error.reason == Reason::UnknownTable && self.unknown_table <= UNKNOWN_TABLE_MAX {
                    Next::Refresh
                } else {
                    Next::Fail(self.last_word(error.clone()))
                }
            }
            Kind::Redirect => {
                self.leader_only |= error.reason == Reason::TooStale;
                // Without a better address, any node but this one.
                self.avoid = Some(node).filter(|node| error.leader.is_none() || error.leader == Some(*node));
                if self.avoid.is_none() || error.reason == Reason::TooStale {
                    self.hop(Next::Again, &error)
                } else {
                    Next::Pause(self.pause(&error))
                }
            }
            Kind::Refresh => self.hop(Next::Refresh, &error),
            Kind::BackOff => Next::Pause(self.pause(&error)),
            Kind::Unavailable | Kind::Corrupt | Kind::Undetermined => {
                self.avoid = Some(node);
                self.undetermined |= error.kind() == Kind::Undetermined;
                match error.reason {
                    _ if self.undetermined && !self.repeatable => Next::Fail(error.clone()),
                    // The cluster is there, but cannot do it now.
                    Reason::NoQuorum | Reason::DiskFull => Next::Pause(self.pause(&error)),
                    // Time has passed already, or the node said at once that it is not there: try the next.
                    reason => {
                        self.timeouts += u32::from(reason == Reason::DeadlineExceeded || self.undetermined);
                        self.hop(Next::Again, &error)
                    }
                }
            }
        };
        self.last = Some(error);
        match next {
            Next::Fail(error) => Next::Fail(error),
            Next::Pause(pause) if now + pause >= self.last_call => Next::Fail(self.give_up()),
            _ if self.is_late(now) => Next::Fail(self.give_up()),
            other => other,
        }
    }

    /// Whether it is too late for another attempt.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        now >= self.last_call
    }

    /// The pause instead of a retry that the budget does not allow now.
    pub(super) fn throttled(&self) -> Duration {
        jitter(PAUSE_THROTTLED)
    }

    /// Takes note that no table of the name is known even after the map was renewed.
    pub(super) fn no_such_table(&self, table: &str) -> Error {
        let text = format!("there is no table \"{table}\": create it first, or check the name");
        self.last_word(Error::new(Reason::UnknownTable, text))
    }

    /// What to report when time is up.
    pub(super) fn give_up(&self) -> Error {
        let Some(last) = &self.last else {
            return Error::new(Reason::DeadlineExceeded, "no time was left to ask");
        };
        let text = format!("gave up after {} attempts; the last one: {}", self.attempts, last.message);
        let reason = if self.undetermined { Reason::ResultUndetermined } else { last.reason };
        Error { reason, message: text, ..last.clone() }
    }

    /// Follows a hint at once unless too many were followed in a row.
    fn hop(&mut self, then: Next, error: &Error) -> Next {
        self.hops += 1;
        if self.hops <= HOPS_MAX {
            return then;
        }
        // One more of them after each pause.
        self.hops = HOPS_MAX - 1;
        Next::Pause(self.pause(error))
    }

    fn pause(&mut self, error: &Error) -> Duration {
        let asked = error.retry_after.unwrap_or_default().min(PAUSE_ASKED_MAX);
        self.pauses.next().max(jitter(asked))
    }

    /// A refusal is only definite if no earlier attempt can have taken effect.
    fn last_word(&self, error: Error) -> Error {
        if self.undetermined { error.of_repeat() } else { error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Clock;

    const ONE: NodeId = NodeId(1);

    /// A trouble whose attempts all fail at the same moment, five seconds before the deadline.
    struct Case {
        trouble: Trouble,
        now: Instant,
    }

    impl Case {
        fn new(repeatable: bool) -> Case {
            let now = Clock::system().now();
            Case { trouble: Trouble::new(repeatable, now, now + Duration::from_secs(5)), now }
        }

        fn judge(&mut self, error: Error) -> Next {
            self.trouble.judge(error, ONE, self.now)
        }
    }

    fn error(reason: Reason) -> Error {
        Error::new(reason, "for a test")
    }

    fn is_pause(next: &Next) -> bool {
        matches!(next, Next::Pause(_))
    }

    #[test]
    fn hints_are_followed_at_once_but_not_for_ever() {
        let mut case = Case::new(true);
        let hint = || error(Reason::NotLeader).with_leader(Some(NodeId(2)));
        for _ in 0..HOPS_MAX {
            assert_eq!(case.judge(hint()), Next::Again);
            assert_eq!(case.trouble.avoid, None);
        }
        assert!(is_pause(&case.judge(hint())));
        assert_eq!(case.judge(hint()), Next::Again, "one more after the pause");
        assert!(is_pause(&case.judge(hint())));
    }

    #[test]
    fn a_redirect_to_nobody_or_to_itself_pauses_and_turns_elsewhere() {
        for error in [error(Reason::NotLeader), error(Reason::NotLeader).with_leader(Some(ONE))] {
            let mut case = Case::new(true);
            assert!(is_pause(&case.judge(error)));
            assert_eq!(case.trouble.avoid, Some(ONE));
        }
    }

    #[test]
    fn a_stale_replica_sends_to_the_leader() {
        let mut case = Case::new(true);
        assert_eq!(case.judge(error(Reason::TooStale)), Next::Again);
        assert!(case.trouble.leader_only);
    }

    #[test]
    fn a_changed_range_asks_for_a_newer_map() {
        for reason in [Reason::WrongEpoch, Reason::ShardNotHere] {
            assert_eq!(Case::new(true).judge(error(reason)), Next::Refresh);
        }
    }

    #[test]
    fn wrong_requests_and_faults_are_reported_at_once() {
        for reason in [Reason::KeyTooLarge, Reason::CrossShard, Reason::Internal, Reason::UnknownShard] {
            assert_eq!(Case::new(true).judge(error(reason)), Next::Fail(error(reason)));
        }
    }

    #[test]
    fn an_unknown_table_may_be_news_to_the_node_but_not_for_long() {
        let mut case = Case::new(true);
        for _ in 0..UNKNOWN_TABLE_MAX {
            assert_eq!(case.judge(error(Reason::UnknownTable)), Next::Refresh);
        }
        assert!(matches!(case.judge(error(Reason::UnknownTable)), Next::Fail(_)));
    }

    #[test]
    fn a_write_without_id_is_never_repeated_once_it_may_have_taken_effect() {
        let mut case = Case::new(false);
        assert_eq!(case.judge(error(Reason::NotReady)), Next::Again, "a definite failure");
        let undetermined = error(Reason::ResultUndetermined);
        assert_eq!(case.judge(undetermined.clone()), Next::Fail(undetermined));
    }

    #[test]
    fn what_was_undetermined_once_stays_so_until_answered() {
        let mut case = Case::new(true);
        assert_eq!(case.judge(error(Reason::ResultUndetermined)), Next::Again);
        assert!(is_pause(&case.judge(error(Reason::NoQuorum))));
        assert_eq!(case.trouble.give_up().reason, Reason::ResultUndetermined);
        for reason in [Reason::RequestExpired, Reason::ValueTooLarge, Reason::Internal, Reason::UnknownShard] {
            let Next::Fail(told) = case.judge(error(reason)) else { panic!("{reason:?} is final") };
            assert_eq!(told.reason, Reason::ResultUndetermined, "{reason:?}");
        }
        // The shard decided under the request id: nothing had been applied before.
        let Next::Fail(told) = case.judge(error(Reason::NotAnInteger)) else { panic!("final") };
        assert_eq!(told.reason, Reason::NotAnInteger);
    }

    #[test]
    fn definite_failures_stay_definite_to_the_end() {
        let mut case = Case::new(true);
        case.judge(error(Reason::NoQuorum));
        case.judge(error(Reason::NotReady));
        let told = case.trouble.give_up();
        assert_eq!(told.reason, Reason::NotReady);
        assert!(told.message.contains("2 attempts"), "{told}");
    }

    #[test]
    fn no_attempt_begins_that_has_no_time_left() {
        let mut case = Case::new(true);
        let judge = |case: &mut Case, reason, millis| {
            case.trouble.judge(error(reason), ONE, case.now + Duration::from_millis(millis))
        };
        assert_eq!(judge(&mut case, Reason::NotReady, 4_800), Next::Again);
        assert!(is_pause(&judge(&mut case, Reason::NoQuorum, 4_800)));
        let late = judge(&mut case, Reason::NotReady, 4_900);
        assert!(matches!(late, Next::Fail(told) if told.reason == Reason::NotReady));
        let too_late_after_the_pause = judge(&mut case, Reason::NoQuorum, 4_895);
        assert!(matches!(too_late_after_the_pause, Next::Fail(told) if told.reason == Reason::NoQuorum));
        let (now, short) = (case.now, Duration::from_millis(50));
        assert!(!Trouble::new(true, now, now + short).is_late(now + Duration::from_millis(44)));
        assert!(Trouble::new(true, now, now + short).is_late(now + Duration::from_millis(46)));
    }

    #[test]
    fn pauses_are_short_grow_little_and_honour_the_server_within_reason() {
        let mut case = Case::new(true);
        for _ in 0..50 {
            let Next::Pause(pause) = case.judge(error(Reason::NoQuorum)) else { panic!("a pause") };
            assert!(pause >= PAUSE_FIRST / 2 && pause <= PAUSE_LONGEST, "{pause:?}");
        }
        let asked = error(Reason::Overloaded).with_retry_after(Duration::from_millis(400));
        let Next::Pause(pause) = case.judge(asked) else { panic!("a pause") };
        assert!(pause >= Duration::from_millis(200) && pause <= Duration::from_millis(400));
        let asked = error(Reason::Overloaded).with_retry_after(Duration::from_secs(3_600));
        let Next::Pause(pause) = case.judge(asked) else { panic!("a pause") };
        assert!(pause <= PAUSE_ASKED_MAX);
    }

    #[test]
    fn attempts_are_left_after_a_second_and_later_given_more_time() {
        let mut case = Case::new(true);
        let far = case.now + Duration::from_secs(60);
        let wait = |case: &Case| case.trouble.attempt_until(case.now, far) - case.now;
        for seconds in [1, 1, 2, 4] {
            assert_eq!(wait(&case), Duration::from_secs(seconds));
            case.judge(error(Reason::ResultUndetermined));
        }
        let near = case.now + Duration::from_millis(300);
        assert_eq!(case.trouble.attempt_until(case.now, near), near);
        let mut elsewhere = Case::new(true);
        elsewhere.judge(error(Reason::NotReady));
        elsewhere.judge(error(Reason::NotReady));
        assert_eq!(wait(&elsewhere), Duration::from_secs(1), "a refusal takes no time");
    }
}
