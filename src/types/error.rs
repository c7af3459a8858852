//! Failures as a caller sees them: a reason that never changes its name, a kind that says what to do next.

use std::fmt;
use std::time::Duration;

use super::NodeId;

/// `Result` with this module's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Ask another node (the error may name it). Nothing happened.
    Redirect,
    /// Fetch the topology again, then ask again. Nothing happened.
    Refresh,
    /// Wait a little, then ask again. Nothing happened.
    BackOff,
    /// The request itself is wrong; repeating it will not help. Nothing happened.
    Invalid,
    /// What was asked for does not exist. Nothing happened.
    NotFound,
    /// Not served right now; another node or a later try may do. Nothing happened.
    Unavailable,
    /// It may or may not have taken effect; only a repeat with the same request id is safe.
    Undetermined,
    /// Stored bytes are not what was written; the replica has stopped serving.
    Corrupt,
    /// A fault of the program. It may or may not have taken effect.
    Internal,
}

impl Kind {
    /// Whether a write that failed so may have taken effect, or may still do.
    pub fn leaves_open(self) -> bool {
        matches!(self, Kind::Undetermined | Kind::Internal)
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal, $kind:ident;)*) => {
        /// Why a request failed. The numbers and names are part of the protocol and are never changed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i32)]
        pub enum Reason {
            $($(#[$doc])* $name = $number,)*
        }

        impl Reason {
            /// All reasons, for documents and tests.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// The name on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }

            /// The reason with this name.
            pub fn parse(text: &str) -> Option<Reason> {
                match text { $($text => Some(Reason::$name),)* _ => None }
            }

            /// What the caller does next.
            pub fn kind(self) -> Kind {
                match self { $(Reason::$name => Kind::$kind,)* }
            }
        }
    };
}

reasons! {
    /// A key of no bytes.
    EmptyKey = 1, "EMPTY_KEY", Invalid;
    /// A key longer than `key_bytes_max`.
    KeyTooLarge = 2, "KEY_TOO_LARGE", Invalid;
    /// A value longer than `value_bytes_max`.
    ValueTooLarge = 3, "VALUE_TOO_LARGE", Invalid;
    /// A batch of more than `batch_operations_max` operations or `batch_bytes_max` bytes, or of none.
    BatchTooLarge = 4, "BATCH_TOO_LARGE", Invalid;
    /// A request that lacks something, contradicts itself or cannot be decoded.
    InvalidRequest = 5, "INVALID_REQUEST", Invalid;
    /// Keys of one batch lie in different shards, or could after a split.
    CrossShard = 6, "CROSS_SHARD", Invalid;
    /// Increment of a value that is no decimal integer of 64 bits, or beyond its range.
    NotAnInteger = 7, "NOT_AN_INTEGER", Invalid;
    /// No table of that name.
    UnknownTable = 8, "UNKNOWN_TABLE", NotFound;
    /// A table of that name exists.
    TableExists = 9, "TABLE_EXISTS", Invalid;
    /// The system table is changed only by the cluster's own verbs.
    ReadOnlyTable = 10, "READ_ONLY_TABLE", Invalid;
    /// A read position before the history window.
    HistoryTrimmed = 11, "HISTORY_TRIMMED", Invalid;
    /// The request id is older than the outcomes kept; whether it took effect is no longer known here.
    RequestExpired = 12, "REQUEST_EXPIRED", Invalid;
    /// The same request id came with another payload.
    RequestMismatch = 13, "REQUEST_MISMATCH", Invalid;
    /// The cursor is not one of ours, or of another scan.
    InvalidCursor = 14, "INVALID_CURSOR", Invalid;
    /// The changes after the cursor are not all there any more: read anew and follow from then on.
    CursorTrimmed = 15, "CURSOR_TRIMMED", Invalid;
    /// Other tables are derived from it: drop them first.
    TableInUse = 16, "TABLE_IN_USE", Invalid;
    /// The replica asked does not lead its shard; the error may name the node that does.
    NotLeader = 20, "NOT_LEADER", Redirect;
    /// The shard's range has changed: fetch the topology again.
    WrongEpoch = 21, "WRONG_EPOCH", Refresh;
    /// The node asked holds no replica of the shard.
    ShardNotHere = 22, "SHARD_NOT_HERE", Refresh;
    /// No leader is known or a quorum does not answer.
    NoQuorum = 23, "NO_QUORUM", Unavailable;
    /// The replica cannot prove the freshness asked for.
    TooStale = 24, "TOO_STALE", Redirect;
    /// A queue is full.
    Overloaded = 25, "OVERLOADED", BackOff;
    /// The node is stopping or not yet ready.
    NotReady = 26, "NOT_READY", Unavailable;
    /// The deadline passed before anything was done.
    DeadlineExceeded = 27, "DEADLINE_EXCEEDED", Unavailable;
    /// The write may or may not have taken effect.
    ResultUndetermined = 28, "RESULT_UNDETERMINED", Undetermined;
    /// The disks are nearly full; writes are refused until there is room.
    DiskFull = 29, "DISK_FULL", Unavailable;
    /// The view has not come as far as the read asks; the message names the sources that it lags behind.
    ViewBehind = 30, "VIEW_BEHIND", Unavailable;
    /// The message is meant for another cluster.
    WrongCluster = 40, "WRONG_CLUSTER", Invalid;
    /// Another live node has this id, or this id belongs to another data directory.
    NodeIdTaken = 41, "NODE_ID_TAKEN", Invalid;
    /// No node with that id, or no shard.
    UnknownNode = 42, "UNKNOWN_NODE", NotFound;
    /// No shard with that id.
    UnknownShard = 43, "UNKNOWN_SHARD", NotFound;
    /// There are not enough nodes for the replication asked for.
    NotEnoughNodes = 44, "NOT_ENOUGH_NODES", Invalid;
    /// The cluster's state changed while it was being changed; try again.
    Conflict = 45, "CONFLICT", BackOff;
    /// A service above the tables keeps no document (an order, a product) under this id.
    UnknownDocument = 60, "UNKNOWN_DOCUMENT", NotFound;
    /// The document is not in the state, or has not the version, that the request presumes; the message says how it is.
    PreconditionFailed = 61, "PRECONDITION_FAILED", Invalid;
    /// What must be one of a kind belongs to a document of another content.
    KeyTaken = 62, "KEY_TAKEN", Invalid;
    /// Stored bytes failed their checksum.
    Corruption = 50, "CORRUPTION", Corrupt;
    /// A fault of the program or of the machine.
    Internal = 51, "INTERNAL", Internal;
}

impl Reason {
    /// Whether only the shard itself refuses a write so, and keeps the refusal under the request's id. A repeat that
    /// hears it can be sure of all attempts before it: had one taken effect, its outcome would have come back instead.
    pub fn is_verdict(self) -> bool {
        matches!(self, Reason::NotAnInteger | Reason::RequestMismatch | Reason::HistoryTrimmed)
    }
}

/// A failure with its reason, a sentence for a person, and hints for a program.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    /// Why.
    pub reason: Reason,
    /// One sentence that says what is wrong and what to do; never contains values of users.
    pub message: String,
    /// The node to ask instead, if known.
    pub leader: Option<NodeId>,
    /// How long to wait before asking again, if that helps.
    pub retry_after: Option<Duration>,
}

impl Error {
    /// An error of this reason with its sentence.
    pub fn new(reason: Reason, message: impl Into<String>) -> Error {
        Error { reason, message: message.into(), leader: None, retry_after: None }
    }

    /// What the caller does next.
    pub fn kind(&self) -> Kind {
        self.reason.kind()
    }

    /// Names the node to ask instead.
    pub fn with_leader(mut self, leader: Option<NodeId>) -> Error {
        self.leader = leader;
        self
    }

    /// Says how long to wait before asking again.
    pub fn with_retry_after(mut self, after: Duration) -> Error {
        self.retry_after = Some(after);
        self
    }

    /// What the failure of a write's repeat means for the write when an earlier attempt may have taken effect: unless
    /// the shard decided it, nobody knows.
    pub fn of_repeat(self) -> Error {
        if self.reason.is_verdict() || self.reason == Reason::ResultUndetermined {
            return self;
        }
        let message = format!("an earlier attempt may have taken effect, and its repeat failed: {self}");
        Error { reason: Reason::ResultUndetermined, message, ..self }
    }

    /// Shorthand for `InvalidRequest`.
    pub fn invalid(message: impl Into<String>) -> Error {
        Error::new(Reason::InvalidRequest, message)
    }

    /// Shorthand for `Internal`.
    pub fn internal(message: impl Into<String>) -> Error {
        Error::new(Reason::Internal, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.as_str(), self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)?;
        if let Some(leader) = self.leader {
            write!(f, " (leader {leader})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_shard_itself_decided_speaks_for_earlier_attempts() {
        let verdicts = [Reason::NotAnInteger, Reason::RequestMismatch, Reason::HistoryTrimmed];
        for &reason in Reason::ALL {
            let told = Error::new(reason, "for a test").with_leader(Some(NodeId(2))).of_repeat();
            let expected = if verdicts.contains(&reason) { reason } else { Reason::ResultUndetermined };
            assert_eq!((told.reason, told.leader), (expected, Some(NodeId(2))), "{reason:?}");
            assert!(told.message.contains("for a test"), "{told}");
        }
    }
}
