//! Splits on this node: where it leads a shard that is to be split, it brings that about; where a child was born, it is
//! hosted at once.
//!
//! The steps of a split, each safe to repeat, and resumed by the next round of the reconciler after a crash anywhere:
//! 1. control notes the intent in the parent's row, with all ids (`catalog::change::begin_split`);
//! 2. the parent's leader proposes it, when the group's members are those the row wants;
//! 3. every replica applies it: parent smaller, child born, in one batch (`shard::division`);
//! 4. the child beside the parent's leader stands for election, so that the child is led at once;
//! 5. the parent's leader has control note the two parts in the catalog (`finish_split`), and clients learn of them.
//!
//! Meanwhile every replica of the parent removes its log up to the split (`forget`): whoever is to become a member later begins
//! with a snapshot, since it never had the range that the older entries are about.
//!
//! From 3 to 5 the parent refuses what is routed by its former range, and nobody is routed to the child: that is the pause
//! that a writer sees.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::ask;
use super::busy::Step;
use super::host::Node;
use super::members;
use super::merges;
use crate::raft::Status;
use crate::runtime::spawn;
use crate::shard::{ChildReplica, News, Shard, Split, State};
use crate::types::{Epoch, ReplicaRole, Result, ShardDescriptor, ShardId, SplitIntent};

/// How long the proposal of a split may take.
const SPLIT_TIMEOUT: Duration = Duration::from_secs(3);

/// The news that a shard was split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SplitNews {
    /// The parent.
    pub shard: ShardId,
    /// Its epoch before.
    pub epoch: Epoch,
}

/// Hosts the children born here, and buries who was taken over, until the node stops.
pub async fn welcome(node: Arc<Node>, mut news: mpsc::Receiver<News>) {
    let mut stopped = node.stopped();
    loop {
        let told = tokio::select! {
            told = news.recv() => told,
            _ = stopped.wait_for(|&stopped| stopped) => None,
        };
        let born = match told {
            Some(News::Born(born)) => born,
            Some(News::Absorbed(shard)) => {
                merges::bury(&node, shard).await;
                node.nudge();
                continue;
            }
            None => return,
        };
        tracing::info!(parent = %born.parent, shard = %born.record.shard, replica = %born.record.replica, "a shard was split");
        match node.host(&born.record).await {
            Ok(child) => {
                if node.replicas().get(born.parent).is_some_and(|parent| parent.is_leader())
                    && let Err(error) = child.group().stand().await
                {
                    tracing::warn!(shard = %child.id(), %error, "a new shard must wait for its first leader");
                }
            }
            Err(error) => tracing::error!(shard = %born.record.shard, %error, "cannot start a replica that was born"),
        }
        if let Some(parent) = node.replicas().get(born.parent) {
            forget(&node, &parent);
        }
        node.nudge();
    }
}

/// On every replica: once a split was applied, sees to it that the log from before it goes. Returns at once.
pub fn forget(node: &Arc<Node>, shard: &Arc<Shard>) {
    if !shard.has_log_of_the_past() {
        return;
    }
    let Some(begun) = node.busy().begin(Step::Forget, shard.id()) else { return };
    let shard = shard.clone();
    spawn(async move {
        let _begun = begun;
        shard.forget_the_past().await;
    });
}

/// As leader of a shard: does what is next to be done for the split that is wanted of it, if one is. Returns at once.
pub fn further(node: &Arc<Node>, shard: &Arc<Shard>, descriptor: &Arc<ShardDescriptor>) {
    let Some(intent) = descriptor.split.clone() else { return };
    let Some(begun) = node.busy().begin(Step::Split, shard.id()) else { return };
    let (node, shard, descriptor) = (node.clone(), shard.clone(), descriptor.clone());
    spawn(async move {
        let _begun = begun;
        if let Err(error) = carry_out(&node, &shard, &descriptor, &intent).await {
            tracing::debug!(shard = %shard.id(), %error, "a split is not done yet");
        }
    });
}

async fn carry_out(
    node: &Arc<Node>,
    shard: &Arc<Shard>,
    descriptor: &ShardDescriptor,
    intent: &SplitIntent,
) -> Result<()> {
    if shard.state().epoch == descriptor.epoch {
        let Some(split) = proposal(descriptor, intent, &shard.group().status()) else { return Ok(()) };
        shard.split(&split, node.clock().now() + SPLIT_TIMEOUT).await?;
    }
    if !has_happened(descriptor, intent, &shard.state()) {
        return Ok(());
    }
    let news = SplitNews { shard: shard.id(), epoch: descriptor.epoch };
    node.ask_system_leader(ask::SPLIT_NEWS, &news).await
}

/// Whether the shard's state says that it was split as intended. A leader that was just elected may not have applied yet
/// what the catalog knows already: then its epoch is an older one.
fn has_happened(descriptor: &ShardDescriptor, intent: &SplitIntent, state: &State) -> bool {
    state.epoch == Epoch(descriptor.epoch.0 + 1) && state.end == intent.at[..]
}

/// What to propose; none while the group has not the members that the catalog wants, or while they change.
fn proposal(descriptor: &ShardDescriptor, intent: &SplitIntent, status: &Status) -> Option<Split> {
    if !members::are_as_wanted(&descriptor.replicas, status) {
        return None;
    }
    let child = |parent: &crate::types::ReplicaDescriptor| {
        let beside = intent.replicas.iter().find(|replica| replica.node == parent.node)?;
        let voter = parent.role == ReplicaRole::Voter;
        let (replica, node, incarnation) = (beside.id, beside.node, beside.incarnation);
        Some(ChildReplica { replica, node, incarnation, voter })
    };
    let replicas: Option<Vec<ChildReplica>> = descriptor.replicas.iter().map(child).collect();
    Some(Split {
        epoch: descriptor.epoch,
        at: intent.at.clone().into(),
        child: intent.child,
        members_at: status.members_at,
        replicas: replicas?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::TableId;

    #[test]
    fn a_split_has_happened_when_the_log_says_so_and_not_before() {
        let intent = SplitIntent { at: vec![5], child: ShardId(9), replicas: Vec::new(), unasked: false };
        let range = (vec![1], vec![8]);
        let mut descriptor = ShardDescriptor::new(ShardId(7), TableId(1), range, Vec::new());
        descriptor.epoch = Epoch(4);
        let state = |epoch: u64, end: u8| State::fresh(TableId(1), vec![1].into(), vec![end].into(), Epoch(epoch));
        assert!(has_happened(&descriptor, &intent, &state(5, 5)));
        assert!(!has_happened(&descriptor, &intent, &state(4, 8)), "not yet");
        assert!(!has_happened(&descriptor, &intent, &state(3, 8)), "a leader that has not applied all it has");
        assert!(!has_happened(&descriptor, &intent, &state(5, 8)), "something else has raised the epoch");
    }
}
