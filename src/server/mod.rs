//! Floor 8: the composition root: from a configuration to a running node and back.
//!
//! Promise: whatever keeps a node from starting is said in one precise line and an exit code (2 for the
//! configuration, 1 for everything else); a node told to stop hands over what it leads, answers what it has begun,
//! and exits with 0.
//!
//! - [`flags`](Flags), [`layers`](load), [`config`](Config): what the operator said, by flag, environment and file.
//! - [`running`](start): the parts in the order of the floors: both ports are bound first (so that a port in use is
//!   found before anything is touched), then storage, log writer, node, control, the gRPC edge; /readyz tells how far
//!   it has come. Stopping goes the other way round.
//! - [`signals`](run): a process around it.
//!
//! Invariants: nothing serves before what it stands on; a signal never loses an acknowledged write; a second signal
//! ends the process at once.
//!
//! Left out: restarting after a failure, which is for whatever started the process.

mod config;
mod flags;
mod layers;
pub mod metrics;
mod running;
mod signals;
#[cfg(test)]
mod tests;

pub use config::{Config, Log, Timers};
pub use flags::Flags;
pub use layers::{ConfigError, load, print};
pub use running::{Listeners, Running, start, start_on};
pub use signals::{run, serve};

/// Why a node did not start, or cannot go on. One line each, a line per problem of a configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot stand.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// A port cannot be had.
    #[error("cannot serve {purpose} at {address}: {why}")]
    Listen {
        /// What the port is for.
        purpose: &'static str,
        /// Where.
        address: String,
        /// What the system said, and what to do about it.
        why: String,
    },
    /// The data directory cannot be used.
    #[error("{0}")]
    Storage(#[from] crate::storage::Error),
    /// The node cannot be what it was told to be, or cannot go on.
    #[error("{0}")]
    Node(#[from] crate::types::Error),
    /// The system refused something else.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What it said.
        source: std::io::Error,
    },
}

impl Error {
    /// The exit code of a process that fails with this: 2 for what the operator said, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Config(_) => 2,
            _ => 1,
        }
    }
}
