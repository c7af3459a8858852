//! Nodes that join, announce new addresses, or come back with an empty directory.

use std::time::Duration;

use bytes::Bytes;

use super::{Control, STEP_TIMEOUT};
use crate::catalog::{Directory, NodeRow, change};
use crate::node::{IdentityAnswer, JoinAnswer, JoinAsk, ask};
use crate::types::{ClusterId, Error, Incarnation, NodeId, Reason, Result, ShardId};

/// How long the former holder of an id has to answer before it counts as gone.
const FORMER_TIMEOUT: Duration = Duration::from_secs(2);

impl Control {
    /// Makes a node a member, or notes its new addresses. On shard 0's leader.
    ///
    /// Errors: `WRONG_CLUSTER`; `NODE_ID_TAKEN` if another live process holds the id, or if this data directory was
    /// replaced by a newer one.
    pub(super) async fn join(&self, question: JoinAsk) -> Result<JoinAnswer> {
        let identity = *self.node.try_identity().expect("who leads shard 0 is a member");
        if question.cluster.is_some_and(|cluster| cluster != identity.cluster) {
            return Err(wrong_cluster(identity.cluster));
        }
        let row = question.row;
        // A leader that is new may not know yet what the last one wrote, and a refusal here ends the node's process.
        let directory = self.fresh_directory(self.node.clock().now() + STEP_TIMEOUT).await?;
        if directory.cluster().is_none() {
            return Err(Error::new(Reason::NotReady, "the cluster is being founded; try again in a moment"));
        }
        let gone = match directory.node(row.id) {
            Some(known) => self.refuse_taken(known, &row, question.cluster.is_some()).await?,
            None => None,
        };
        self.change(|directory: &Directory| Ok(change::admit_node(directory, &row, gone)?.map(|write| ((), write))))
            .await?;
        let directory = self.node.directory();
        let system = directory
            .shard(ShardId::SYSTEM)
            .ok_or_else(|| Error::new(Reason::NotReady, "the cluster is being founded; try again in a moment"))?;
        Ok(JoinAnswer::Member {
            cluster: identity.cluster,
            system: Box::new(crate::types::ShardDescriptor::clone(system)),
            nodes: directory.nodes().cloned().collect(),
        })
    }

    /// Refuses an id that someone else holds. Returns the incarnation whose place the newcomer may take.
    async fn refuse_taken(&self, known: &NodeRow, row: &NodeRow, member: bool) -> Result<Option<Incarnation>> {
        if known.incarnation == row.incarnation && known.address == row.address {
            return Ok(None);
        }
        if known.incarnation != row.incarnation && member {
            return Err(Error::new(
                Reason::NodeIdTaken,
                format!(
                    "the data directory of node {} was replaced by a newer one and must not come back: start the \
                     node with an empty directory",
                    row.id.0
                ),
            ));
        }
        let holder = self.who_is_at(row.id, &known.address).await;
        if holder.is_some_and(|holder| holder == known.incarnation) {
            return Err(Error::new(
                Reason::NodeIdTaken,
                format!(
                    "node {} is running at {}; give this node an id of its own, or stop that one first",
                    row.id.0, known.address
                ),
            ));
        }
        Ok(Some(known.incarnation))
    }

    /// The data directory of the process that answers at an address as this node, if one does.
    async fn who_is_at(&self, node: NodeId, address: &str) -> Option<Incarnation> {
        if node == self.node.id() {
            return Some(self.node.incarnation());
        }
        let body = self.node.ask_at(address, ask::IDENTITY, Bytes::new(), FORMER_TIMEOUT).await.ok()?;
        let answer: IdentityAnswer = ask::decode(&body).ok()?;
        (answer.node == node).then_some(answer.incarnation)
    }
}

fn wrong_cluster(here: ClusterId) -> Error {
    Error::new(
        Reason::WrongCluster,
        format!("this is cluster {here}; the node belongs to another one: use an empty directory to join this one"),
    )
}
