//! Which cluster, which node, which data directory: written once, compared for ever.

use crate::storage::{Batch, Family, Lookup, Reader, Tier, log_keys};
use crate::types::{ClusterId, Error, Incarnation, NodeId, Reason, Result};

/// The name under which the node keeps its identity.
const NAME: &str = "identity";

/// Who a data directory belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// The cluster it is a member of.
    pub cluster: ClusterId,
    /// The node it is the memory of.
    pub node: NodeId,
    /// Drawn when the directory was made: tells it from an earlier one of the same node.
    pub incarnation: Incarnation,
}

impl Identity {
    /// The identity stored, if the directory has one.
    pub fn load(reader: &dyn Reader) -> Result<Option<Identity>> {
        match reader.get(Family::Raft, &log_keys::node(NAME), Tier::Disk)? {
            Lookup::Found(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                Error::new(Reason::Corruption, format!("the data directory's identity cannot be read: {error}"))
            }),
            Lookup::Missing | Lookup::NeedsDisk => Ok(None),
        }
    }

    /// Adds it to a batch.
    pub fn put(&self, batch: &mut Batch) {
        let json = serde_json::to_vec(self).expect("an identity is plain data");
        batch.put(Family::Raft, log_keys::node(NAME), json);
    }

    /// Refuses a directory that is another node's.
    pub fn check(&self, configured: NodeId) -> Result<()> {
        if self.node == configured {
            return Ok(());
        }
        Err(Error::new(
            Reason::NodeIdTaken,
            format!(
                "the data directory belongs to node {} of cluster {}, not to node {}: point --data at this node's own \
                 directory, or at an empty one",
                self.node.0, self.cluster, configured.0
            ),
        ))
    }
}
