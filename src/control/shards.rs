//! What is asked of single shards.

use futures::future::join_all;

use super::Control;
use crate::node::{ChecksumAnswer, ShardAsk, ask};
use crate::runtime::random_u64;
use crate::types::{Error, NodeId, Reason, Result, ShardDescriptor, ShardId};
use crate::wire::admin::{ChecksumReport, Content, ReplicaChecksum, ShardDetails};

impl Control {
    /// A shard with its leader and log positions, as far as this node knows them.
    pub fn details_of(&self, shard: &ShardDescriptor) -> ShardDetails {
        let mut details = ShardDetails::of(shard);
        if let Some(hosted) = self.node.replicas().get(shard.id) {
            details.leader = hosted.leader().map(|(_, node)| node);
        }
        details
    }

    pub(super) fn descriptor(&self, shard: ShardId) -> Result<std::sync::Arc<ShardDescriptor>> {
        let directory = self.node.directory();
        directory.shard(shard).cloned().ok_or_else(|| {
            Error::new(Reason::UnknownShard, format!("there is no shard {shard}; `trivet shard list` shows them"))
        })
    }

    /// The node that leads a shard: known here, or reported by one of its replicas.
    pub(super) async fn leader_of(&self, shard: &ShardDescriptor) -> Result<NodeId> {
        if let Some(leader) = self.details_of(shard).leader {
            return Ok(leader);
        }
        let reports = join_all(shard.replicas.iter().map(|replica| self.report_of(replica.node))).await;
        let leader = reports.iter().flatten().find_map(|report| {
            report.shards.iter().find(|reported| reported.shard == shard.id).and_then(|reported| reported.leader)
        });
        leader.ok_or_else(|| Error::new(Reason::NoQuorum, format!("{} has no leader right now", shard.id)))
    }

    /// One shard as its leader sees it.
    pub async fn describe_shard(&self, shard: ShardId) -> Result<ShardDetails> {
        let descriptor = self.descriptor(shard)?;
        let mut details = ShardDetails::of(&descriptor);
        let leader = self.leader_of(&descriptor).await?;
        details.leader = Some(leader);
        if let Some(report) = self.report_of(leader).await
            && let Some(reported) = report.shards.iter().find(|reported| reported.shard == shard)
        {
            details.term = Some(reported.term);
            details.last_log = Some(reported.last_log);
            details.applied = Some(reported.applied);
            details.settled = Some(reported.part == "leader" && reported.is_settled(&descriptor));
        }
        Ok(details)
    }

    /// The checksum of a shard's content at one position of its log, on every replica that the catalog wants.
    pub async fn checksum(&self, shard: ShardId) -> Result<ChecksumReport> {
        let descriptor = self.descriptor(shard)?;
        let leader = self.leader_of(&descriptor).await?;
        let question = ShardAsk { shard, argument: random_u64() };
        let (): () = self.node.ask(leader, ask::NOTE_CHECKSUM, &question).await?;
        let sums = descriptor.replicas.iter().map(|replica| async {
            let answer: Result<ChecksumAnswer> =
                self.node.ask_for(replica.node, ask::CHECKSUM, &question, 3 * ask::ASK_TIMEOUT).await;
            let content = answer.map(|answer| Content {
                applied: answer.index,
                checksum: answer.checksum,
                versions: answer.versions,
            });
            ReplicaChecksum { replica: replica.id, node: replica.node, content }
        });
        let replicas: Vec<ReplicaChecksum> = join_all(sums).await;
        let first = replicas.first().and_then(|replica| replica.content.clone().ok());
        let equal = first.is_some() && replicas.iter().all(|replica| replica.content.as_ref().ok() == first.as_ref());
        Ok(ChecksumReport { shard, equal, replicas })
    }

    /// Hands a shard's leadership to its voter on `to`.
    pub async fn transfer_leader(&self, shard: ShardId, to: NodeId) -> Result<()> {
        let descriptor = self.descriptor(shard)?;
        if self.node.directory().node(to).is_none() {
            return Err(Error::new(Reason::UnknownNode, format!("there is no node {}", to.0)));
        }
        let leader = self.leader_of(&descriptor).await?;
        self.node.ask(leader, ask::TRANSFER, &ShardAsk { shard, argument: to.0 }).await
    }
}
