//! Floor 0: the shared words.
//!
//! Every other module speaks in these nouns: ids that cannot be confused with one another, the timestamp that
//! names a version, requests as pure values, and the few kinds of failure a caller can act on. Nothing here does
//! I/O, reads a clock or knows protobuf, so every floor may depend on it and it depends on none.

mod error;
mod ids;
mod limits;
mod position;
mod request;
mod schema;
mod text;
mod timestamp;

pub use error::{Error, Kind, Reason, Result};
pub use ids::{ClusterId, Epoch, Incarnation, NodeId, ReplicaId, ShardId, Slot, TableId};
pub use limits::Limits;
pub use position::{Position, Step};
pub use request::{
    Action, Answer, Change, ChangeKind, ChangesPage, ChangesRequest, Condition, Header, Observed, Operation, Outcome,
    Outcomes, Page, Read, ReadLevel, Request, RequestId, Response, Role, Row, ScanBounds, ScanRequest, Test, Token,
    Versioned, Write,
};
#[cfg(feature = "server")]
pub(crate) use schema::hex_bytes;
pub use schema::{
    MergeIntent, Partitioning, ReplicaDescriptor, ReplicaRole, ShardDescriptor, SplitIntent, TABLE_NAME_BYTES_MAX,
    TableDescriptor, TableRef, TableState, ViewDescriptor, check_table_name,
};
pub use text::percent_encoded;
pub use timestamp::Timestamp;
