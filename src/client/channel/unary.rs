//! Calls of their own beside the stream: the verbs of the Table, View and Cluster services, and plain unary data calls.

use std::error::Error as _;

use tonic::{ConnectError, Request as Message, Response as Reply, Status};

use super::link::sized;
use super::{Connection, late, weigh};
use crate::client::metrics;
use crate::runtime::Instant;
use crate::types::{Error, NodeId, Request, Response, Result, ShardId};
use crate::wire::admin::{
    BalanceReport, ChecksumReport, ClusterStatus, NewTable, NewView, ShardDetails, SplitPoint, SplitReport,
    TableDetails, Topology, ViewDetails, ViewVerification,
};
use crate::wire::proto::v1::{
    self, call::Call, cluster_client::ClusterClient, kv_client::KvClient, table_client::TableClient,
    view_client::ViewClient,
};
use crate::wire::{Channel, RESPONSE_BYTES_MAX, encode_call, error_of_status};

impl Connection {
    /// Asks `request` of `table` as a unary call; errors as for [`Connection::call`], but an overdue call is told from
    /// an undetermined one less finely.
    pub async fn call_unary(&self, table: &str, request: &Request, deadline: Instant) -> Result<Response> {
        weigh(request)?;
        let (channel, patience) = self.channel(deadline).await?;
        let write = matches!(request, Request::Write(_));
        let call = encode_call(0, table, request, patience, false).call;
        let mut kv = sized(KvClient::new(channel));
        ::metrics::counter!(metrics::CALLS).increment(1);
        match call {
            Some(Call::Get(question)) => plain(kv.get(timed(question, patience)).await, write)?.try_into(),
            Some(Call::BatchGet(question)) => plain(kv.batch_get(timed(question, patience)).await, write)?.try_into(),
            Some(Call::Write(question)) => plain(kv.batch(timed(question, patience)).await, write)?.try_into(),
            Some(Call::ScanPage(question)) => plain(kv.scan_page(timed(question, patience)).await, write)?.try_into(),
            Some(Call::History(question)) => plain(kv.history(timed(question, patience)).await, write)?.try_into(),
            Some(Call::Changes(question)) => plain(kv.changes_page(timed(question, patience)).await, write)?.try_into(),
            None => Err(Error::internal("a request was encoded as no call")),
        }
    }

    /// All that is needed for routing, as this node knows it.
    pub async fn topology(&self, deadline: Instant) -> Result<Topology> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut cluster = cluster(channel);
        plain(cluster.topology(timed(v1::TopologyRequest {}, patience)).await, false)?.try_into()
    }

    /// The state of the cluster as this node sees it.
    pub async fn status(&self, deadline: Instant) -> Result<ClusterStatus> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut cluster = cluster(channel);
        plain(cluster.status(timed(v1::StatusRequest {}, patience)).await, false)?.try_into()
    }

    /// A shard as its leader sees it.
    pub async fn describe_shard(&self, shard: ShardId, deadline: Instant) -> Result<ShardDetails> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut cluster = cluster(channel);
        let question = v1::DescribeShardRequest { shard: shard.0 };
        Ok(plain(cluster.describe_shard(timed(question, patience)).await, false)?.into())
    }

    /// The checksums of a shard's replicas.
    pub async fn checksum(&self, shard: ShardId, deadline: Instant) -> Result<ChecksumReport> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut cluster = cluster(channel);
        let question = v1::ChecksumRequest { shard: shard.0 };
        Ok(plain(cluster.checksum(timed(question, patience)).await, false)?.into())
    }

    /// Splits a shard.
    pub async fn split_shard(
        &self,
        shard: ShardId,
        at: SplitPoint,
        dry_run: bool,
        deadline: Instant,
    ) -> Result<SplitReport> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut cluster = cluster(channel);
        let question = v1::SplitShardRequest { shard: shard.0, at: at.encode(), dry_run };
        plain(cluster.split_shard(timed(question, patience)).await, true)?.try_into()
    }

    /// Wants a shard to take over its right neighbour.
    pub async fn merge_shards(
        &self,
        left: ShardId,
        right: ShardId,
        dry_run: bool,
        deadline: Instant,
    ) -> Result<ShardDetails> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut cluster = cluster(channel);
        let question = v1::MergeShardsRequest { left: left.0, right: right.0, dry_run };
        let answer = plain(cluster.merge_shards(timed(question, patience)).await, true)?;
        answer.shard.map(Into::into).ok_or_else(|| Error::internal("the answer names no shard; do the versions match?"))
    }

    /// Wants a replica of a shard on another node.
    pub async fn move_shard(
        &self,
        shard: ShardId,
        from: NodeId,
        to: NodeId,
        dry_run: bool,
        deadline: Instant,
    ) -> Result<ShardDetails> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut cluster = cluster(channel);
        let question = v1::MoveShardRequest { shard: shard.0, from_node: from.0, to_node: to.0, dry_run };
        let answer = plain(cluster.move_shard(timed(question, patience)).await, true)?;
        answer.shard.map(Into::into).ok_or_else(|| Error::internal("the answer names no shard; do the versions match?"))
    }

    /// How evenly the cluster is spread, what moves and what would be moved next.
    pub async fn balance(&self, deadline: Instant) -> Result<BalanceReport> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut cluster = cluster(channel);
        Ok(plain(cluster.balance(timed(v1::BalanceRequest {}, patience)).await, false)?.into())
    }

    /// Has shards moved about unasked, or not.
    pub async fn set_balancing(&self, paused: bool, deadline: Instant) -> Result<()> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut cluster = cluster(channel);
        let wish = v1::SetBalancingRequest { paused };
        plain(cluster.set_balancing(timed(wish, patience)).await, true).map(|_| ())
    }

    /// Wants something else of a node.
    pub async fn set_standing(
        &self,
        node: NodeId,
        standing: &str,
        dry_run: bool,
        deadline: Instant,
    ) -> Result<BalanceReport> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut cluster = cluster(channel);
        let wish = v1::SetStandingRequest { node: node.0, standing: standing.to_owned(), dry_run };
        Ok(plain(cluster.set_standing(timed(wish, patience)).await, true)?.into())
    }

    /// Lets a node go that holds nothing any more.
    pub async fn decommission(&self, node: NodeId, dry_run: bool, deadline: Instant) -> Result<()> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut cluster = cluster(channel);
        let wish = v1::DecommissionRequest { node: node.0, dry_run };
        plain(cluster.decommission(timed(wish, patience)).await, true).map(|_| ())
    }

    /// Hands a shard's leadership to the voter on node `to`.
    pub async fn transfer_leader(&self, shard: ShardId, to: NodeId, deadline: Instant) -> Result<()> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut cluster = cluster(channel);
        let question = v1::TransferLeaderRequest { shard: shard.0, to_node: to.0 };
        plain(cluster.transfer_leader(timed(question, patience)).await, true).map(|_| ())
    }

    /// Creates a table.
    pub async fn create_table(&self, table: NewTable, deadline: Instant) -> Result<TableDetails> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut tables = tables(channel);
        plain(tables.create(timed(table.encode(), patience)).await, true)?.try_into()
    }

    /// Drops a table.
    pub async fn drop_table(&self, name: &str, dry_run: bool, deadline: Instant) -> Result<()> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut tables = tables(channel);
        let question = v1::DropTableRequest { name: name.to_owned(), dry_run };
        plain(tables.drop(timed(question, patience)).await, true).map(|_| ())
    }

    /// A table with its shards.
    pub async fn describe_table(&self, name: &str, deadline: Instant) -> Result<TableDetails> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut tables = tables(channel);
        let question = v1::DescribeTableRequest { name: name.to_owned() };
        plain(tables.describe(timed(question, patience)).await, false)?.try_into()
    }

    /// All tables.
    pub async fn list_tables(&self, deadline: Instant) -> Result<Vec<TableDetails>> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut tables = tables(channel);
        let answer = plain(tables.list(timed(v1::ListTablesRequest {}, patience)).await, false)?;
        answer.tables.into_iter().map(TryInto::try_into).collect()
    }

    /// Creates a view.
    pub async fn create_view(&self, view: NewView, deadline: Instant) -> Result<ViewDetails> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut views = views(channel);
        plain(views.create(timed(view.encode(), patience)).await, true)?.try_into()
    }

    /// A view, and what it lags behind.
    pub async fn describe_view(&self, name: &str, deadline: Instant) -> Result<ViewDetails> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut views = views(channel);
        let question = v1::DescribeViewRequest { name: name.to_owned() };
        plain(views.describe(timed(question, patience)).await, false)?.try_into()
    }

    /// All views.
    pub async fn list_views(&self, deadline: Instant) -> Result<Vec<ViewDetails>> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut views = views(channel);
        let answer = plain(views.list(timed(v1::ListViewsRequest {}, patience)).await, false)?;
        answer.views.into_iter().map(TryInto::try_into).collect()
    }

    /// Has the upkeep of a view rest, or go on.
    pub async fn pause_view(&self, name: &str, paused: bool, deadline: Instant) -> Result<ViewDetails> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut views = views(channel);
        let wish = v1::PauseViewRequest { name: name.to_owned(), paused };
        plain(views.pause(timed(wish, patience)).await, true)?.try_into()
    }

    /// Compares a view with its sources, all of it or one shard.
    pub async fn verify_view(
        &self,
        name: &str,
        shard: Option<ShardId>,
        repair: bool,
        deadline: Instant,
    ) -> Result<ViewVerification> {
        let (channel, patience) = self.channel(deadline).await?;
        let mut views = views(channel);
        let wish = v1::VerifyViewRequest { name: name.to_owned(), shard: shard.map(|shard| shard.0), repair };
        plain(views.verify(timed(wish, patience)).await, repair)?.try_into()
    }

    /// The channel, and how much time is left when it is there.
    async fn channel(&self, deadline: Instant) -> Result<(Channel, std::time::Duration)> {
        let link = self.started();
        let channel = link.channel(deadline).await?;
        let patience = deadline.saturating_duration_since(link.clock.now());
        if patience.is_zero() { Err(late(link)) } else { Ok((channel, patience)) }
    }
}

fn cluster(channel: Channel) -> ClusterClient<Channel> {
    ClusterClient::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX)
}

fn tables(channel: Channel) -> TableClient<Channel> {
    TableClient::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX)
}

fn views(channel: Channel) -> ViewClient<Channel> {
    ViewClient::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX)
}

fn timed<Q>(question: Q, patience: std::time::Duration) -> Message<Q> {
    let mut message = Message::new(question);
    message.set_timeout(patience);
    message
}

fn plain<T>(reply: Result<Reply<T>, Status>, write: bool) -> Result<T> {
    reply.map(Reply::into_inner).map_err(|status| {
        // Refused before anything was sent: definite for writes too.
        error_of_status(&status, write && !never_connected(&status))
    })
}

fn never_connected(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}
