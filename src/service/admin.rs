//! `trivet.v1.Table`, `trivet.v1.View` and `trivet.v1.Cluster`: what is asked of the cluster itself.
//!
//! Everything goes to `control`, which finds whoever can answer; what is told from this node's own picture of the
//! catalog (topology, tables) costs nothing and every node tells it. A change that is not confirmed in time may or may
//! not be made; its caller looks before asking again, since these calls carry no request id.

use std::time::Duration;

use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::deadline::{self, Effect};
use super::edge::Edge;
use super::metrics::Method;
use crate::catalog::Standing;
use crate::control::Control;
use crate::runtime::timeout_at;
use crate::types::{Error, NodeId, Reason, Result, ShardId};
use crate::wire::admin::{NewTable, NewView, SplitPoint};
use crate::wire::proto::v1::{self, cluster_server, table_server, view_server};
use crate::wire::to_status;

/// For callers that name no deadline: changes wait for every shard of a table to have a leader.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(30);
/// The longest that the comparison of a view may ask for, and what it gets if it names no deadline: it reads whole tables.
const VERIFY_DEADLINE_MAX: Duration = Duration::from_secs(600);

/// The implementation behind `TableServer`.
pub struct Table {
    edge: Edge,
}

/// The implementation behind `ViewServer`.
pub struct View {
    edge: Edge,
}

/// The implementation behind `ClusterServer`.
pub struct Cluster {
    edge: Edge,
}

impl Table {
    /// Serves what stands behind this edge.
    pub fn new(edge: Edge) -> Table {
        Table { edge }
    }
}

impl View {
    /// Serves what stands behind this edge.
    pub fn new(edge: Edge) -> View {
        View { edge }
    }
}

impl Cluster {
    /// Serves what stands behind this edge.
    pub fn new(edge: Edge) -> Cluster {
        Cluster { edge }
    }
}

/// Said of a call that only asked and was not answered in time.
const UNANSWERED: &str = "the cluster did not answer in time";
/// Said of one that may have changed something.
const UNCONFIRMED: &str = "the change was not confirmed in time: look whether it was made before asking again";

impl Edge {
    /// Runs one administrative call: admitted, bounded in time, counted.
    async fn administer<T, A>(
        &self,
        metadata: &MetadataMap,
        effect: Effect,
        work: impl AsyncFnOnce(&Control) -> Result<A>,
    ) -> Result<Response<T>, Status>
    where
        T: From<A>,
    {
        let asked = deadline::asked(metadata).unwrap_or(DEADLINE_DEFAULT);
        self.administer_for(deadline::granted(Some(asked)), effect, work).await
    }

    /// The same with this much time, whatever its caller asked for.
    async fn administer_for<T, A>(
        &self,
        patience: Duration,
        effect: Effect,
        work: impl AsyncFnOnce(&Control) -> Result<A>,
    ) -> Result<Response<T>, Status>
    where
        T: From<A>,
    {
        let started = self.clock().now();
        let by = started + patience;
        let result = async {
            let _place = self.admit()?;
            let Some((_, control)) = self.door().node() else {
                return Err(Error::new(Reason::NotReady, "there is no node behind this port"));
            };
            timeout_at(by, work(control)).await.unwrap_or_else(|| Err(effect.too_late(UNANSWERED, UNCONFIRMED)))
        }
        .await;
        self.answered(Method::Administration, started);
        result.map(|answer| Response::new(answer.into())).map_err(|error| {
            self.meters().failed(&error);
            to_status(&error)
        })
    }
}

#[tonic::async_trait]
impl table_server::Table for Table {
    async fn create(&self, request: Request<v1::CreateTableRequest>) -> Result<Response<v1::TableInfo>, Status> {
        let (metadata, _, wish) = request.into_parts();
        let edge = &self.edge;
        edge.administer(&metadata, Effect::Change, async |control| {
            control.create_table(NewTable::decode(wish, edge.limits())?).await
        })
        .await
    }

    async fn drop(&self, request: Request<v1::DropTableRequest>) -> Result<Response<v1::DropTableResponse>, Status> {
        let (metadata, _, wish) = request.into_parts();
        self.edge
            .administer(&metadata, Effect::Change, async |control| {
                let id = control.drop_table(&wish.name, wish.dry_run).await?;
                Ok(v1::DropTableResponse { id: id.0 })
            })
            .await
    }

    async fn describe(&self, request: Request<v1::DescribeTableRequest>) -> Result<Response<v1::TableInfo>, Status> {
        let (metadata, _, question) = request.into_parts();
        self.edge
            .administer(&metadata, Effect::None, async |control| control.describe_table(&question.name).await)
            .await
    }

    async fn list(&self, request: Request<v1::ListTablesRequest>) -> Result<Response<v1::ListTablesResponse>, Status> {
        self.edge
            .administer(request.metadata(), Effect::None, async |control| {
                Ok(v1::ListTablesResponse { tables: control.tables(false).into_iter().map(Into::into).collect() })
            })
            .await
    }
}

#[tonic::async_trait]
impl view_server::View for View {
    async fn create(&self, request: Request<v1::CreateViewRequest>) -> Result<Response<v1::ViewInfo>, Status> {
        let (metadata, _, wish) = request.into_parts();
        self.edge
            .administer(&metadata, Effect::Change, async |control| control.create_view(NewView::decode(wish)?).await)
            .await
    }

    async fn describe(&self, request: Request<v1::DescribeViewRequest>) -> Result<Response<v1::ViewInfo>, Status> {
        let (metadata, _, question) = request.into_parts();
        self.edge.administer(&metadata, Effect::None, async |control| control.describe_view(&question.name).await).await
    }

    async fn list(&self, request: Request<v1::ListViewsRequest>) -> Result<Response<v1::ListViewsResponse>, Status> {
        self.edge
            .administer(request.metadata(), Effect::None, async |control| {
                Ok(v1::ListViewsResponse { views: control.views().into_iter().map(Into::into).collect() })
            })
            .await
    }

    async fn pause(&self, request: Request<v1::PauseViewRequest>) -> Result<Response<v1::ViewInfo>, Status> {
        let (metadata, _, wish) = request.into_parts();
        self.edge
            .administer(&metadata, Effect::Change, async |control| control.pause_view(&wish.name, wish.paused).await)
            .await
    }

    async fn verify(
        &self,
        request: Request<v1::VerifyViewRequest>,
    ) -> Result<Response<v1::VerifyViewResponse>, Status> {
        let (metadata, _, wish) = request.into_parts();
        let asked = deadline::asked(&metadata).unwrap_or(VERIFY_DEADLINE_MAX);
        let patience = deadline::granted_within(asked, VERIFY_DEADLINE_MAX);
        let effect = if wish.repair { Effect::Change } else { Effect::None };
        self.edge
            .administer_for(patience, effect, async |control| {
                control.verify_view(&wish.name, wish.shard.map(ShardId), wish.repair).await
            })
            .await
    }
}

#[tonic::async_trait]
impl cluster_server::Cluster for Cluster {
    async fn topology(&self, request: Request<v1::TopologyRequest>) -> Result<Response<v1::TopologyResponse>, Status> {
        self.edge.administer(request.metadata(), Effect::None, async |control| Ok(control.topology())).await
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        self.edge.administer(request.metadata(), Effect::None, async |control| Ok(control.status().await)).await
    }

    async fn describe_shard(
        &self,
        request: Request<v1::DescribeShardRequest>,
    ) -> Result<Response<v1::ShardInfo>, Status> {
        let (metadata, _, question) = request.into_parts();
        let shard = ShardId(question.shard);
        self.edge.administer(&metadata, Effect::None, async |control| control.describe_shard(shard).await).await
    }

    async fn checksum(&self, request: Request<v1::ChecksumRequest>) -> Result<Response<v1::ChecksumResponse>, Status> {
        let (metadata, _, question) = request.into_parts();
        let shard = ShardId(question.shard);
        self.edge.administer(&metadata, Effect::None, async |control| control.checksum(shard).await).await
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        let (metadata, _, wish) = request.into_parts();
        let (shard, to) = (ShardId(wish.shard), NodeId(wish.to_node));
        self.edge
            .administer(&metadata, Effect::Change, async |control| {
                control.transfer_leader(shard, to).await.map(|()| v1::TransferLeaderResponse {})
            })
            .await
    }

    async fn split_shard(
        &self,
        request: Request<v1::SplitShardRequest>,
    ) -> Result<Response<v1::SplitShardResponse>, Status> {
        let (metadata, _, wish) = request.into_parts();
        self.edge
            .administer(&metadata, Effect::Change, async |control| {
                control.split_shard(ShardId(wish.shard), SplitPoint::decode(wish.at)?, wish.dry_run).await
            })
            .await
    }

    async fn merge_shards(
        &self,
        request: Request<v1::MergeShardsRequest>,
    ) -> Result<Response<v1::MergeShardsResponse>, Status> {
        let (metadata, _, wish) = request.into_parts();
        self.edge
            .administer(&metadata, Effect::Change, async |control| {
                let shard = control.merge_shards(ShardId(wish.left), ShardId(wish.right), wish.dry_run).await?;
                Ok(v1::MergeShardsResponse { shard: Some(shard.into()) })
            })
            .await
    }

    async fn balance(&self, request: Request<v1::BalanceRequest>) -> Result<Response<v1::BalanceResponse>, Status> {
        self.edge.administer(request.metadata(), Effect::None, async |control| control.balance(None).await).await
    }

    async fn set_balancing(
        &self,
        request: Request<v1::SetBalancingRequest>,
    ) -> Result<Response<v1::SetBalancingResponse>, Status> {
        let (metadata, _, wish) = request.into_parts();
        self.edge
            .administer(&metadata, Effect::Change, async |control| {
                control.set_balancing(wish.paused).await.map(|()| v1::SetBalancingResponse {})
            })
            .await
    }

    async fn set_standing(
        &self,
        request: Request<v1::SetStandingRequest>,
    ) -> Result<Response<v1::BalanceResponse>, Status> {
        let (metadata, _, wish) = request.into_parts();
        let node = NodeId(wish.node);
        self.edge
            .administer(&metadata, Effect::Change, async |control| {
                let standing = Standing::named(&wish.standing)?;
                control.set_standing(node, standing, wish.dry_run).await?;
                control.balance(Some((node, standing))).await
            })
            .await
    }

    async fn decommission(
        &self,
        request: Request<v1::DecommissionRequest>,
    ) -> Result<Response<v1::DecommissionResponse>, Status> {
        let (metadata, _, wish) = request.into_parts();
        self.edge
            .administer(&metadata, Effect::Change, async |control| {
                control.decommission(NodeId(wish.node), wish.dry_run).await.map(|()| v1::DecommissionResponse {})
            })
            .await
    }

    async fn move_shard(
        &self,
        request: Request<v1::MoveShardRequest>,
    ) -> Result<Response<v1::MoveShardResponse>, Status> {
        let (metadata, _, wish) = request.into_parts();
        let (shard, from, to) = (ShardId(wish.shard), NodeId(wish.from_node), NodeId(wish.to_node));
        self.edge
            .administer(&metadata, Effect::Change, async |control| {
                let shard = control.move_shard(shard, from, to, wish.dry_run).await?;
                Ok(v1::MoveShardResponse { shard: Some(shard.into()) })
            })
            .await
    }
}
