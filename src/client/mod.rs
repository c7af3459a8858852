//! Floor 3: the routing client.
//!
//! Promise: a call ends by its deadline with an answer or with a truthful failure. Definite failures had no effect;
//! `RESULT_UNDETERMINED` is said whenever an effect is possible and unproven. Every write carries a request id that
//! all its attempts share, so however often it is sent it takes effect at most once.
//!
//! How a request passes: a [`Table`] verb builds a plain [`Request`](crate::types::Request); `core` finds the shard
//! in the newest map of the cluster (`map`, kept new by `topologies`), asks the shard's leader over the node's
//! [`Connection`], and after a failure does what `retry` decides: follow a hint at once, fetch a newer map, turn to
//! another node, pause. Retries draw on a budget, so that a cluster in trouble is not buried under them, and a pause
//! ends early once the shard's leader has answered any caller. A hung node costs one attempt of a second.
//!
//! Reads go to the leader unless their level lets any copy answer (`any`, `max_age`); then they are spread over the
//! replicas. A client may also choose a replica for all its reads, the nearest or the least busy one ([`ReadFrom`],
//! `replicas`); whoever is asked answers only what it can prove. A [`Session`] remembers what it has seen of each shard and
//! reads at least that, wherever it reads.
//!
//! Invariants
//! - Nothing here is needed for safety: a client that is wrong about the cluster is told so and learns.
//! - Everything that grows is bounded: calls in flight per connection, hops, retries, waits for a fetch.
//! - The hot path takes no lock but the two short ones of the retry budget and of the connection's table of calls (and
//!   that of each replica's table where the least busy one is looked for).
//!
//! What changes is followed from page to page ([`Changes`], `following`).
//!
//! Left out: hedged reads, and batches across shards (a batch that spans shards is refused with `CROSS_SHARD`).

pub mod metrics;

mod admin;
mod backoff;
mod changes;
mod channel;
mod core;
pub(crate) mod following;
mod map;
mod options;
mod replicas;
mod retry;
mod scan;
mod session;
mod table;
#[cfg(test)]
mod tests;
mod topologies;

use std::sync::Arc;

pub use admin::Admin;
pub use changes::{Changes, Followed};
pub use channel::Connection;
#[cfg(test)]
pub(crate) use channel::fake;
pub use options::{Options, ReadFrom};
pub use scan::Scan;
pub use session::Session;
pub use table::Table;

use self::core::Core;
use crate::runtime::Clock;
use crate::types::{ClusterId, Epoch, NodeId, Result, ShardId};
use topologies::Topologies;

/// A client of one cluster. Clones share everything; what it holds ends when the last clone and the last handle made
/// from it are dropped.
#[derive(Clone)]
pub struct Client {
    core: Arc<Core>,
}

impl Client {
    /// Reaches the cluster by any of the `endpoints` (`host:port`) within the deadline of `options`. The other nodes
    /// are learned from the one that answers.
    ///
    /// Errors: `INVALID_REQUEST` without endpoints, `NOT_READY` when no node answers.
    pub async fn connect(endpoints: &[String], options: Options) -> Result<Client> {
        Client::connect_with(endpoints, options, Clock::system()).await
    }

    /// [`Client::connect`] with a clock of the caller's.
    pub async fn connect_with(endpoints: &[String], options: Options, clock: Clock) -> Result<Client> {
        let deadline = clock.now() + options.deadline;
        let topologies = Topologies::connect(endpoints, clock.clone(), deadline).await?;
        Ok(Client { core: Arc::new(Core::new(topologies, options, clock)) })
    }

    /// The data of a table. Whether there is such a table shows with the first call.
    pub fn table(&self, name: impl Into<Arc<str>>) -> Table {
        Table::new(self.core.clone(), name.into(), None)
    }

    /// A session: its reads see its writes and never go back in time.
    pub fn session(&self) -> Session {
        Session::new(self.core.clone())
    }

    /// The verbs that concern the cluster as a whole.
    pub fn admin(&self) -> Admin {
        Admin::new(self.core.clone())
    }

    /// The cluster it is connected to.
    pub fn cluster(&self) -> ClusterId {
        self.core.topologies.current().as_ref().map(|map| map.cluster).unwrap_or_default()
    }

    /// The shard that owns a key, and the node that leads it, as far as this client knows now.
    pub fn locate(&self, table: &str, key: &[u8]) -> Option<(ShardId, Epoch, Option<NodeId>)> {
        let (shard, epoch) = self.core.shard_of(table, key)?;
        Some((shard, epoch, self.core.leader_of(table, key)))
    }
}
