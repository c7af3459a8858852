//! How a command ends: one exit code for each thing a script may want to tell apart.

use std::fmt;

use trivet::types::{Error, Kind, Reason};

/// The exit codes of every verb. The numbers are part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Failed.
    Error = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// Nothing of that name or key, or a condition did not hold.
    NotFound = 3,
    /// No node answered in time, or the outcome is not known.
    Unavailable = 4,
    /// The cluster answers, and is not healthy.
    Unhealthy = 5,
    /// What was read back is not what was written.
    Mismatch = 6,
    /// Not permitted.
    Denied = 7,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        (exit as u8).into()
    }
}

/// Why a command ended otherwise than well: a sentence for a person and the code for a script.
#[derive(Debug)]
pub struct Stop {
    /// The exit code.
    pub exit: Exit,
    /// One sentence; empty when everything has been said already.
    pub message: String,
}

/// What a verb returns: how it ended, or why it could not go on.
pub type Ended<T = Exit> = Result<T, Stop>;

impl Stop {
    /// Failed, for this reason.
    pub fn error(message: impl Into<String>) -> Stop {
        Stop { exit: Exit::Error, message: message.into() }
    }

    /// The command line makes no sense, for this reason.
    pub fn usage(message: impl Into<String>) -> Stop {
        Stop { exit: Exit::Usage, message: message.into() }
    }

    /// The same, with what it was about put before the message.
    pub fn about(mut self, what: impl fmt::Display) -> Stop {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        let exit = match (error.reason, error.kind()) {
            (Reason::ReadOnlyTable, _) => Exit::Denied,
            (Reason::PreconditionFailed, _) => Exit::NotFound,
            (_, Kind::NotFound) => Exit::NotFound,
            (_, Kind::Invalid | Kind::Corrupt | Kind::Internal) => Exit::Error,
            (_, Kind::Redirect | Kind::Refresh | Kind::BackOff | Kind::Unavailable | Kind::Undetermined) => {
                Exit::Unavailable
            }
        };
        Stop { exit, message: error.to_string() }
    }
}

impl From<std::io::Error> for Stop {
    /// A reader that has gone (`trivet scan … | head`) has what it wanted: that ends the command well and silently.
    fn from(error: std::io::Error) -> Stop {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Stop { exit: Exit::Ok, message: String::new() }
        } else {
            Stop::error(error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every reason has its code; the list is read by scripts, so a change here must be meant.
    #[test]
    fn reasons_map_to_documented_codes() {
        let of = |code: Exit| -> String {
            let reasons = Reason::ALL.iter().filter(|reason| Stop::from(Error::new(**reason, "")).exit == code);
            reasons.map(|reason| reason.as_str()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of(Exit::NotFound), "UNKNOWN_TABLE UNKNOWN_NODE UNKNOWN_SHARD UNKNOWN_DOCUMENT PRECONDITION_FAILED");
        assert_eq!(
            of(Exit::Unavailable),
            "NOT_LEADER WRONG_EPOCH SHARD_NOT_HERE NO_QUORUM TOO_STALE OVERLOADED NOT_READY DEADLINE_EXCEEDED \
             RESULT_UNDETERMINED DISK_FULL VIEW_BEHIND CONFLICT"
        );
        assert_eq!(of(Exit::Denied), "READ_ONLY_TABLE");
    }

    #[test]
    fn a_reader_that_left_is_no_failure() {
        let stop = Stop::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!((stop.exit, stop.message.as_str()), (Exit::Ok, ""));
    }
}
