//! Floor 2: protobuf on the wire, plain values inside.
//!
//! Promise: nothing above this module sees a protobuf type it did not ask for, and nothing a stranger sends reaches
//! the inside unchecked. Every question becomes a `(table, `[`Request`](crate::types::Request)`)` pair through
//! [`Question`], which refuses what lacks something, contradicts itself or exceeds [`Limits`](crate::types::Limits),
//! with the precise reason; every answer goes the same way back. Failures travel as `google.rpc.Status` with
//! `ErrorInfo` (unary calls, [`to_status`]) or as a `Failure` inside a pipelined answer ([`to_failure`]); the table
//! of codes stands in [`errors`].
//!
//! How a request passes: the service (or a pipelined [`call`]) decodes with [`Question::decode`], which converts and
//! then runs [`check`]; the node answers a [`Response`](crate::types::Response); [`answer`] or one of the `TryFrom`
//! conversions encodes it. The client does the reverse with [`encode_call`] and [`decode_answer`].
//!
//! What the cluster says of itself (topology, tables, shards, checksums) has its plain forms in [`admin`].
//!
//! Left out: messages between nodes. They are opaque frames whose contents `raft`, `shard` and `node` own.

pub mod admin;
pub mod errors;
pub mod proto;

mod answers;
pub mod channel;
mod check;
mod pipeline;
mod questions;

pub use answers::encode_header;
pub use channel::Channel;
pub use check::check;
pub use errors::{error_of_failure, error_of_status, explain, to_failure, to_status};
pub use pipeline::{IncomingCall, answer, call, decode_answer, encode_call};
pub use questions::{Question, read_level};

/// Most bytes of one message to a server. A call carries at most one batch (4 MiB by default) and a client stops
/// adding calls to a message at a mebibyte, so this leaves room for limits raised threefold.
pub const REQUEST_BYTES_MAX: usize = 16 << 20;

/// Most bytes of one message to a client. A page ends after a mebibyte, a server gathers answers up to a few of
/// those; the widest answer is a BatchGet of large values.
pub const RESPONSE_BYTES_MAX: usize = 64 << 20;
