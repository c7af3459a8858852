//! Requests and answers as pure values: what a client asks of a shard and what comes back.
//!
//! Put, Delete, Increment, CompareAndSwap and Batch are all one shape, [`Write`]: an atomic list of operations over
//! one shard that takes effect if every condition holds. A condition that does not hold is an ordinary answer
//! (`applied = false`), not an error.

use std::time::Duration;

use bytes::Bytes;

use super::{ClusterId, Epoch, NodeId, ShardId, Timestamp};

/// Names one logical write for ever, so that a repeat has no second effect (after RIFL, Lee et al. 2015).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId {
    /// The client, a random number it drew at its start.
    pub client: u64,
    /// The client's count of its writes.
    pub sequence: u64,
    /// When the client first sent it, in milliseconds since 1970. A shard keeps an outcome until this is older than
    /// its retention, and refuses a request older than that with `REQUEST_EXPIRED` instead of running it again.
    pub issued_ms: u64,
}

/// An atomic batch over one shard.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Write {
    /// Absent: not protected against repeats, so its sender must not retry it.
    pub request: Option<RequestId>,
    /// All must hold for anything to happen.
    pub conditions: Vec<Condition>,
    /// What to do, in order; a later operation sees the earlier ones.
    pub operations: Vec<Operation>,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The user's key (in a command inside a shard: the encoded key).
    pub key: Bytes,
    /// What to do with it.
    pub action: Action,
}

/// What an operation does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Set the value; with `ttl_ms`, readable for that many milliseconds from the version's timestamp on.
    Put {
        /// The new value.
        value: Bytes,
        /// Time to live in milliseconds.
        ttl_ms: Option<u64>,
    },
    /// Remove the key. Deleting an absent key is a success and makes no version.
    Delete,
    /// Add to a decimal integer; an absent key counts as 0. Fails the batch if the value is no integer or overflows.
    Increment {
        /// What to add.
        delta: i64,
    },
    /// Make the key what it was at `to`, as a new version.
    Rollback {
        /// The version to return to; must lie within the history window.
        to: Timestamp,
    },
}

/// A test of one key that must hold for a batch to take effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The user's key (in a command inside a shard: the encoded key).
    pub key: Bytes,
    /// The test.
    pub test: Test,
}

/// What a condition asks of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// Its current version is this one.
    Version(Timestamp),
    /// It has no value.
    Absent,
    /// It has some value.
    Present,
    /// Its current value is this one.
    Value(Bytes),
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Whether the conditions held and the operations took effect.
    pub applied: bool,
    /// The version the batch made (also set, to the position of the decision, when it was not applied).
    pub timestamp: Timestamp,
    /// After a batch with increments: one per operation, the integer after an increment, else none. Empty otherwise.
    pub integers: Vec<Option<i64>>,
    /// When not applied: what the first condition that failed saw.
    pub observed: Option<Observed>,
}

/// What a failed condition saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Which condition, by position.
    pub condition: u32,
    /// The key's current version and value, or none if it is absent.
    pub current: Option<Versioned>,
}

/// The outcomes of one log entry, one per command; an error is a deterministic refusal of that command alone.
pub type Outcomes = Vec<Result<Outcome, super::Error>>;

/// A value and the version it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The version.
    pub timestamp: Timestamp,
    /// The value.
    pub value: Bytes,
    /// When it stops being readable, in milliseconds since 1970.
    pub expires_ms: Option<u64>,
}

/// A key with one of its versions; a missing value is a deletion (only in histories).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The user's key.
    pub key: Bytes,
    /// The version.
    pub timestamp: Timestamp,
    /// The value, or none for a deletion.
    pub value: Option<Bytes>,
    /// When it stops being readable, in milliseconds since 1970.
    pub expires_ms: Option<u64>,
}

/// What a session has seen of a shard: a read `at_least` it sees that and more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    /// The newest version the session knows of.
    pub timestamp: Timestamp,
}

/// How fresh an answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ReadLevel {
    /// Sees every write acknowledged before the read began.
    #[default]
    Linearizable,
    /// Sees at least what the token has seen.
    AtLeast(Token),
    /// Sees every write acknowledged this long before the read reached the replica.
    MaxAge(Duration),
    /// Whatever the replica has.
    Any,
    /// The state at a moment within the history window.
    AsOf(Timestamp),
}

/// A read of some keys of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The keys, in the order of the answers.
    pub keys: Vec<Bytes>,
    /// How fresh.
    pub level: ReadLevel,
    /// Let the replica of the node that is asked answer also where the leader is the rule (`Linearizable`), after it has
    /// asked the leader how far it must have come.
    pub any_replica: bool,
}

/// Which keys a scan visits, in the user's terms.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum ScanBounds {
    /// The whole table.
    #[default]
    All,
    /// The keys of one tag of a hash table (or one group of a range table).
    Tag(Bytes),
    /// Keys that begin with this.
    Prefix(Bytes),
    /// Keys from the first on, up to and without the second.
    Range(Option<Bytes>, Option<Bytes>),
}

/// A request for one page of a scan.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ScanRequest {
    /// Which keys.
    pub bounds: ScanBounds,
    /// Descending instead of ascending.
    pub reverse: bool,
    /// Rows wanted in this page; bounded by `Limits::page_rows_max`.
    pub rows_max: usize,
    /// Continue after this cursor (opaque; from the page before).
    pub cursor: Option<Bytes>,
    /// Count instead of returning rows.
    pub count_only: bool,
    /// How fresh.
    pub level: ReadLevel,
    /// As in [`Read::any_replica`].
    pub any_replica: bool,
}

/// One page of a scan or of a history.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Page {
    /// The rows (empty when only counting).
    pub rows: Vec<Row>,
    /// How many rows the page stands for.
    pub count: u64,
    /// Where the next page begins; none at the end.
    pub cursor: Option<Bytes>,
}

/// A request for one page of what has changed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ChangesRequest {
    /// Of which keys.
    pub bounds: ScanBounds,
    /// Where the page before has ended (opaque; the same for a page that tells nothing).
    pub cursor: Option<Bytes>,
    /// Without a cursor: begin after this version. None: with what comes to be from now on.
    pub after: Option<Timestamp>,
    /// Tell what each change has replaced.
    pub with_previous: bool,
    /// Changes of this kind only.
    pub only: Option<ChangeKind>,
    /// Changes wanted in this page; bounded by `Limits::page_rows_max`.
    pub changes_max: usize,
    /// How long to wait for something to tell.
    pub wait: Duration,
}

/// What a change did to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It has a value since.
    Put,
    /// It has none since.
    Delete,
}

/// A version that came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The user's key.
    pub key: Bytes,
    /// The version.
    pub timestamp: Timestamp,
    /// The value, or none for a deletion.
    pub value: Option<Bytes>,
    /// When it stops being readable, in milliseconds since 1970. That it has run out is no change.
    pub expires_ms: Option<u64>,
    /// What it replaced, also if that had run out. None if there was nothing, or it was not asked for.
    pub previous: Option<Versioned>,
}

/// One page of what has changed. A key's changes come in their order, each once; between keys, a page is ordered by time or,
/// while it catches up, by key.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ChangesPage {
    /// The changes; none if nothing has changed for as long as was to be waited.
    pub changes: Vec<Change>,
    /// Where the next page begins. There is always a next one. The age in the header says how old this position can be: nothing
    /// acknowledged that long before is still to come.
    pub cursor: Bytes,
}

/// Which part the replica that answered plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The shard's leader.
    Leader,
    /// A voter that follows.
    Follower,
    /// A read replica.
    Learner,
}

/// Where an answer came from and how old it can be; on every answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node whose replica answered.
    pub node: NodeId,
    /// The shard.
    pub shard: ShardId,
    /// The shard's epoch.
    pub epoch: Epoch,
    /// The part that replica plays.
    pub role: Role,
    /// The newest version applied there when it answered (the token of the answer).
    pub as_of: Timestamp,
    /// Proven age when the replica answered: it had seen every write acknowledged this long before. None when no proof is
    /// at hand.
    pub age: Option<Duration>,
    /// Whether the answer is of lesser quality than asked (never cached then).
    pub degraded: bool,
}

/// An answer with its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<T> {
    /// Where it came from and how old it can be.
    pub header: Header,
    /// The answer itself.
    pub body: T,
}

/// Everything a client can ask of the data of one table. A whole conversation is `(table, Request) -> Response`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read keys; answered by [`Response::Values`], one per key.
    Read(Read),
    /// An atomic batch; answered by [`Response::Written`].
    Write(Write),
    /// One page of a scan; answered by [`Response::Page`].
    Scan(ScanRequest),
    /// Versions of one key, newest first; answered by [`Response::Page`].
    History {
        /// The key.
        key: Bytes,
        /// Only versions older than this.
        before: Option<Timestamp>,
        /// How many at most; bounded by `Limits::page_rows_max`.
        rows_max: usize,
    },
    /// One page of what has changed; answered by [`Response::Changes`].
    Changes(ChangesRequest),
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// One answer per key, in the order asked.
    Values(Vec<Answer<Option<Versioned>>>),
    /// What became of the batch.
    Written(Answer<Outcome>),
    /// A page.
    Page(Answer<Page>),
    /// A page of changes.
    Changes(Answer<ChangesPage>),
}
