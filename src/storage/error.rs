//! Failures of storage, each with what to do about it.

use std::path::{Path, PathBuf};

use crate::types;

/// `Result` with this module's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the engine could not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Stored bytes are not what was written. The replica they belong to must stop serving.
    #[error("corrupt storage: {0}; stop this node, and rejoin with an empty data directory if it persists")]
    Corruption(String),
    /// Less of the log was recovered than had been made durable. The node must not vote with what it has.
    #[error(
        "the log in {directory} shrank: it was durable up to sequence {synced}, but only {recovered} could be \
         recovered; this node must not vote with it: rejoin with an empty data directory"
    )]
    LogShrank {
        /// The store.
        directory: PathBuf,
        /// The sequence number known to have been durable.
        synced: u64,
        /// The newest sequence number recovered.
        recovered: u64,
    },
    /// Another process, or another engine of this one, has the directory open.
    #[error("the storage directory {0} is in use by another process; stop that one first or choose another directory")]
    Locked(PathBuf),
    /// The directory holds something else, or a format this build does not know.
    #[error("the storage directory {directory} cannot be used: {why}")]
    Foreign {
        /// The directory.
        directory: PathBuf,
        /// What was found.
        why: String,
    },
    /// No space left on the device.
    #[error("the disk is full: {0}; make room and start the node again")]
    DiskFull(String),
    /// The operating system refused.
    #[error("storage input/output failed: {0}")]
    Io(String),
    /// The log writer has stopped; nothing of this operation has been promised to anyone.
    #[error("the log writer has stopped")]
    Stopped,
    /// The caller asked for something that cannot be done.
    #[error("wrong use of storage: {0}")]
    Invalid(String),
}

impl Error {
    /// Stored bytes that cannot be what was written; `what` names them without quoting values.
    pub fn corruption(what: impl Into<String>) -> Error {
        Error::Corruption(what.into())
    }

    /// An operating-system error while doing `what` with `path`.
    pub(super) fn io(what: &str, path: &Path, error: std::io::Error) -> Error {
        let text = format!("{what} {}: {error}", path.display());
        if error.kind() == std::io::ErrorKind::StorageFull { Error::DiskFull(text) } else { Error::Io(text) }
    }
}

impl From<rocksdb::Error> for Error {
    fn from(error: rocksdb::Error) -> Error {
        let kind = error.kind();
        let text = error.into_string();
        match kind {
            rocksdb::ErrorKind::Corruption => Error::Corruption(text),
            rocksdb::ErrorKind::InvalidArgument | rocksdb::ErrorKind::NotSupported => Error::Invalid(text),
            _ if text.contains("No space left on device") => Error::DiskFull(text),
            _ => Error::Io(text),
        }
    }
}

impl From<Error> for types::Error {
    fn from(error: Error) -> types::Error {
        let reason = match &error {
            Error::Corruption(_) | Error::LogShrank { .. } => types::Reason::Corruption,
            Error::DiskFull(_) => types::Reason::DiskFull,
            Error::Stopped => types::Reason::NotReady,
            Error::Locked(_) | Error::Foreign { .. } | Error::Io(_) | Error::Invalid(_) => types::Reason::Internal,
        };
        types::Error::new(reason, error.to_string())
    }
}

/// For decoders of stored bytes that speak in the shared errors: whatever they refuse was not what was written.
impl From<types::Error> for Error {
    fn from(error: types::Error) -> Error {
        Error::Corruption(error.message)
    }
}

/// What ends the process when durability can no longer be promised.
pub type FatalHook = std::sync::Arc<dyn Fn(&Error) + Send + Sync>;

/// The hook of a running node: one line to the log, then the end. Going on after a failed sync would acknowledge
/// writes that the kernel may already have thrown away; a restart recovers what is really there.
pub fn abort_on_fatal() -> FatalHook {
    std::sync::Arc::new(|error| {
        tracing::error!(%error, "cannot make the log durable: ending the process so that nothing unsafe is acknowledged");
        eprintln!("trivet: cannot make the log durable: {error}");
        std::process::abort();
    })
}
