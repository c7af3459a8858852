//! How a node becomes, and stays, a member of its cluster.
//!
//! *Founding.* The founding nodes are started with one list of peers. Each asks the others who they are. If one of them
//! is a member already, the newcomer joins it. If a majority of the list (itself included) is there and empty, the
//! node with the lowest id founds: it draws the cluster's id and starts shard 0 with itself as only voter; all others
//! join it. A wiped founder therefore never founds a second cluster beside a living one.
//!
//! *Joining.* The newcomer introduces itself to any node; control, on shard 0's leader, writes its row and gives it a
//! replica of shard 0. The answer names the cluster and shard 0; the newcomer stores its identity, then creates its
//! replica, and learns everything else from the catalog.
//!
//! *Staying.* At each start a member first lets the others see that its directory is the newest (`lineage`), then
//! starts its replicas and introduces itself again, so that the catalog knows its addresses. Refusals end
//! the process: another cluster, an id that another directory holds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::ask::{self, JoinAnswer, JoinAsk};
use super::host::Node;
use super::identity::Identity;
use super::lineage;
use super::reconcile;
use crate::keyspace::Layout;
use crate::runtime::{random_u64, sleep, spawn};
use crate::shard::Record;
use crate::storage::Batch;
use crate::types::{ClusterId, Epoch, Error, NodeId, Reason, ReplicaId, Result, ShardId, TableId};

/// Between rounds of asking.
const ROUND_WAIT: Duration = Duration::from_millis(200);
/// How long one question to one peer may take.
const PEER_TIMEOUT: Duration = Duration::from_secs(2);
/// Joining writes to the catalog and may look for the node that the id belonged to before.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The first replica of shard 0, that of the founder.
pub const FIRST_REPLICA: ReplicaId = ReplicaId(1);

/// How an empty data directory becomes a member. Ignored when the directory is one already, except as addresses of
/// nodes to introduce itself to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// Found a cluster with these nodes (this one among them), or join it if it stands already.
    Found {
        /// Their gRPC addresses, host:port.
        peers: BTreeMap<NodeId, String>,
    },
    /// Join the cluster of any of these nodes.
    Join {
        /// Their gRPC addresses, host:port.
        addresses: Vec<String>,
    },
}

/// What a round of asking found.
enum Round {
    /// This node is a member now.
    Done,
    /// Nobody could say yes yet.
    Again,
}

/// Runs until the node is a member and the catalog knows its addresses.
pub async fn run(node: Arc<Node>) {
    if let Bootstrap::Found { peers } = &node.options().bootstrap {
        for (&peer, address) in peers {
            node.links().set_address(peer, address);
        }
    }
    let mut stopping = node.stopping();
    let formed = async {
        if node.try_identity().is_some() {
            // Before any replica takes part: an old copy would vote against what it has forgotten.
            if let Err(error) = lineage::enter(&node).await {
                return node.fail(error);
            }
            if let Err(error) = node.recover().await {
                return node.fail(error);
            }
        }
        // Not before the replicas of the directory are all there, or it would start some of them a second time.
        spawn(reconcile::run(node.clone()));
        while node.try_identity().is_none() {
            match become_member(&node).await {
                Ok(Round::Done) => break,
                Ok(Round::Again) => sleep(ROUND_WAIT).await,
                Err(error) => return node.fail(error),
            }
        }
        found_system(&node).await;
        announce(&node).await;
    };
    tokio::select! {
        () = formed => {}
        _ = stopping.wait_for(|&stopping| stopping) => {}
    }
}

/// One round for a node without a cluster.
async fn become_member(node: &Arc<Node>) -> Result<Round> {
    match &node.options().bootstrap {
        Bootstrap::Join { addresses } => {
            for address in addresses {
                if let Some(Round::Done) = try_join(node, address).await? {
                    return Ok(Round::Done);
                }
            }
            Ok(Round::Again)
        }
        Bootstrap::Found { peers } => {
            let mut empty = 1;
            for (&peer, address) in peers {
                if peer == node.id() {
                    continue;
                }
                match try_join(node, address).await? {
                    Some(Round::Done) => return Ok(Round::Done),
                    Some(Round::Again) => empty += 1,
                    None => {}
                }
            }
            let lowest = peers.keys().next().is_none_or(|&lowest| lowest == node.id());
            if lowest && empty > peers.len() / 2 {
                found(node).await?;
                return Ok(Round::Done);
            }
            Ok(Round::Again)
        }
    }
}

/// Asks one node: `Done` when it made this node a member, `Again` when it is empty itself, none when it could not be
/// asked or could not say yes now. An error is a refusal for good.
async fn try_join(node: &Arc<Node>, address: &str) -> Result<Option<Round>> {
    let question = ask::encode(&JoinAsk { cluster: None, row: node.row(), passed_on: false });
    let answered = node.links().ask(address, ask::JOIN, question, JOIN_TIMEOUT).await;
    let answer = match answered.and_then(|body| ask::decode::<JoinAnswer>(&body)) {
        Ok(answer) => answer,
        Err(error) if is_final(&error) => return Err(error),
        Err(error) => {
            tracing::debug!(address, %error, "cannot join through this node yet");
            return Ok(None);
        }
    };
    match answer {
        JoinAnswer::Empty { .. } => Ok(Some(Round::Again)),
        JoinAnswer::Member { cluster, system, nodes } => {
            let mine = system.replica_on(node.id()).filter(|replica| replica.incarnation == node.incarnation());
            let Some(mine) = mine else { return Ok(None) };
            for row in &nodes {
                node.links().set_address(row.id, &row.address);
            }
            tracing::info!(%cluster, node = %node.id(), "joined the cluster");
            member(node, cluster, &Record::of(&system, mine.id)).await?;
            Ok(Some(Round::Done))
        }
    }
}

fn is_final(error: &Error) -> bool {
    matches!(error.reason, Reason::NodeIdTaken | Reason::WrongCluster)
}

/// Founds a cluster of this one node; the others join.
async fn found(node: &Arc<Node>) -> Result<()> {
    let cluster = ClusterId(random_u64().max(1));
    let (start, end) = Layout::system().table_range();
    let record = Record {
        shard: ShardId::SYSTEM,
        replica: FIRST_REPLICA,
        table: TableId::SYSTEM,
        start,
        end,
        epoch: Epoch(1),
        tombstone: false,
    };
    tracing::info!(%cluster, node = %node.id(), "founding a cluster");
    member(node, cluster, &record).await
}

/// Makes the founder's replica of shard 0 a group of one. Again at every start, since a crash may have come between
/// the identity and this; a group that stands already stays as it is.
async fn found_system(node: &Arc<Node>) {
    let Ok(system) = node.system_shard() else { return };
    if system.replica() == FIRST_REPLICA
        && let Err(error) = system.group().found(BTreeMap::from([(FIRST_REPLICA, node.id())])).await
    {
        tracing::error!(%error, "cannot found shard 0");
    }
}

/// Stores the identity and the replica of shard 0, then starts it.
async fn member(node: &Arc<Node>, cluster: ClusterId, record: &Record) -> Result<()> {
    // In one batch: a directory with an identity has its replica of shard 0, and one without has nothing.
    let identity = Identity { cluster, node: node.id(), incarnation: node.incarnation() };
    let mut batch = Batch::new();
    identity.put(&mut batch);
    record.put(&mut batch);
    node.engine().write(batch)?;
    node.engine().sync()?;
    node.adopt(identity);
    node.host(record).await?;
    lineage::first(node)
}

/// Makes the catalog know this node's addresses, and learns at once if it must not be a member any more.
async fn announce(node: &Arc<Node>) {
    let identity = *node.try_identity().expect("a member has an identity");
    loop {
        if let Err(error) = compare_clusters(node, &identity).await {
            return node.fail(error);
        }
        let question = JoinAsk { cluster: Some(identity.cluster), row: node.row(), passed_on: false };
        let answered = node.ask_system_leader_for::<_, JoinAnswer>(ask::JOIN, &question, JOIN_TIMEOUT).await;
        match answered {
            Ok(_) => return,
            Err(error) if is_final(&error) => return node.fail(error),
            Err(error) => tracing::debug!(%error, "cannot announce this node yet"),
        }
        sleep(ROUND_WAIT).await;
    }
}

/// The configured peers must not belong to another cluster: that would be this directory on the wrong machine.
pub(super) async fn compare_clusters(node: &Arc<Node>, identity: &Identity) -> Result<()> {
    let addresses: Vec<String> = match &node.options().bootstrap {
        Bootstrap::Found { peers } => {
            peers.iter().filter(|&(&peer, _)| peer != node.id()).map(|(_, address)| address.clone()).collect()
        }
        Bootstrap::Join { addresses } => addresses.clone(),
    };
    for address in addresses {
        match node.links().ask(&address, ask::IDENTITY, Bytes::new(), PEER_TIMEOUT).await {
            Err(error) if error.reason == Reason::WrongCluster => {
                return Err(Error::new(
                    Reason::WrongCluster,
                    format!(
                        "the data directory belongs to cluster {}, but the node at {address} does not ({}); use this \
                         cluster's addresses, or an empty directory to join that one",
                        identity.cluster, error.message
                    ),
                ));
            }
            _ => {}
        }
    }
    Ok(())
}
