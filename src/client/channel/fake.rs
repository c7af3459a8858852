//! A node for tests: a real gRPC server on a port of its own, whose answers a closure makes up.
//!
//! It runs on a runtime of its own, so that it can be killed (every socket closes at once) or frozen (the kernel
//! still accepts, nothing answers), as processes are.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::transport::Server;
use tonic::{Request as Message, Response as Reply, Status, Streaming};

use crate::types::{
    Answer, ClusterId, Epoch, Header, Limits, NodeId, Outcome, Request, Response, Result, Role, ShardId, Timestamp,
};
use crate::wire::admin::{
    ChecksumReport, ClusterStatus, NewTable, TableDetails, Topology, ViewDetails, ViewState, ViewVerification,
};
use crate::wire::proto::v1;
use crate::wire::proto::v1::cluster_server::{Cluster, ClusterServer};
use crate::wire::proto::v1::kv_server::{Kv, KvServer};
use crate::wire::proto::v1::table_server::{Table, TableServer};
use crate::wire::proto::v1::view_server::{View, ViewServer};
use crate::wire::{self, Question, to_status};

/// What a fake node does with a call.
pub(crate) enum Act {
    /// Answers.
    Answer(Result<Response>),
    /// Answers after a while.
    Later(Duration, Result<Response>),
    /// Never answers.
    Hang,
    /// Ends the stream without answering.
    Break,
}

/// A call as a fake node got it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) table: String,
    pub(crate) request: Request,
    pub(crate) forwarded: bool,
    pub(crate) patience: Option<Duration>,
}

type Handler = Arc<dyn Fn(&Seen) -> Act + Send + Sync>;

/// What is left when a node was killed and the next one takes over.
#[derive(Clone)]
struct Mind {
    handler: Handler,
    topology: Arc<Mutex<Option<Topology>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    messages: Arc<Mutex<Vec<usize>>>,
    topologies: Arc<Mutex<usize>>,
}

pub(crate) struct FakeNode {
    pub(crate) address: String,
    mind: Mind,
    runtime: Option<Runtime>,
}

impl FakeNode {
    pub(crate) fn start(handler: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> FakeNode {
        let mind = Mind {
            handler: Arc::new(handler),
            topology: Arc::default(),
            seen: Arc::default(),
            messages: Arc::default(),
            topologies: Arc::default(),
        };
        let mut node = FakeNode { address: "127.0.0.1:0".to_owned(), mind, runtime: None };
        node.restart();
        node
    }

    /// Starts it on the port it had, or on a free one for the first time.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let wanted: SocketAddr = self.address.parse().expect("an address");
        let (bound, mind) = (blocking::channel(), self.mind.clone());
        let tell = bound.0;
        crate::runtime::Task::is_finished(&runtime.spawn(async move {
            let listener = TcpListener::bind(wanted).await.expect("the port is free");
            tell.send(listener.local_addr().expect("bound")).expect("the test waits");
            Server::builder()
                .add_service(KvServer::new(mind.clone()))
                .add_service(ClusterServer::new(mind.clone()))
                .add_service(TableServer::new(mind.clone()))
                .add_service(ViewServer::new(mind))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .expect("serves");
        }));
        self.address = bound.1.recv().expect("started").to_string();
        self.runtime = Some(runtime);
    }

    /// Ends it as kill -9 does.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Stops it as SIGSTOP does, until the guard is dropped.
    pub(crate) fn freeze(&self) -> blocking::Sender<()> {
        let (thaw, frozen) = blocking::channel();
        if let Some(runtime) = &self.runtime {
            let (tell, stopped) = blocking::channel();
            runtime.spawn(async move {
                let _ = tell.send(());
                // Blocks the node's only worker.
                let _ = frozen.recv();
            });
            stopped.recv().expect("frozen");
        }
        thaw
    }

    pub(crate) fn set_topology(&self, topology: Topology) {
        *self.mind.topology.lock() = Some(topology);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.mind.seen.lock().clone()
    }

    /// How many calls each pipelined message carried.
    pub(crate) fn messages(&self) -> Vec<usize> {
        self.mind.messages.lock().clone()
    }

    /// How often the topology was asked for.
    pub(crate) fn topologies(&self) -> usize {
        *self.mind.topologies.lock()
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A header of this node and shard, from a leader.
pub(crate) fn header(node: u64, shard: u64) -> Header {
    Header {
        cluster: ClusterId(1),
        node: NodeId(node),
        shard: ShardId(shard),
        epoch: Epoch(1),
        role: Role::Leader,
        as_of: Timestamp(1),
        age: None,
        degraded: false,
    }
}

/// A well-formed answer to any request: no value, applied, an empty page.
pub(crate) fn plain_answer(header: Header, request: &Request) -> Response {
    match request {
        Request::Read(read) => {
            let value = Answer { header, body: None };
            Response::Values(vec![value; read.keys.len()])
        }
        Request::Write(write) => {
            let integers = vec![None; write.operations.len()];
            let body = Outcome { applied: true, timestamp: header.as_of, integers, observed: None };
            Response::Written(Answer { header, body })
        }
        Request::Scan(_) | Request::History { .. } => Response::Page(Answer { header, body: Default::default() }),
        Request::Changes(_) => Response::Changes(Answer { header, body: Default::default() }),
    }
}

impl Mind {
    fn act(&self, table: String, request: Request, forwarded: bool, patience: Option<Duration>) -> Act {
        let seen = Seen { table, request, forwarded, patience };
        let act = (self.handler)(&seen);
        self.seen.lock().push(seen);
        act
    }

    async fn unary<Q: Question, A: TryFrom<Response, Error = crate::types::Error>>(
        &self,
        question: Q,
    ) -> Result<Reply<A>, Status> {
        let (table, request) = question.decode(&Limits::default()).map_err(|error| to_status(&error))?;
        let result = match self.act(table, request, false, None) {
            Act::Answer(result) => result,
            Act::Later(pause, result) => {
                crate::runtime::sleep(pause).await;
                result
            }
            Act::Hang => std::future::pending().await,
            Act::Break => return Err(Status::unavailable("broken")),
        };
        result.and_then(TryInto::try_into).map(Reply::new).map_err(|error| to_status(&error))
    }
}

#[tonic::async_trait]
impl Kv for Mind {
    type ScanStream = UnboundedReceiverStream<Result<v1::ScanResponse, Status>>;
    type ChangesStream = UnboundedReceiverStream<Result<v1::ChangesResponse, Status>>;
    type PipelineStream = UnboundedReceiverStream<Result<v1::PipelineResponse, Status>>;

    async fn get(&self, question: Message<v1::GetRequest>) -> Result<Reply<v1::GetResponse>, Status> {
        self.unary(question.into_inner()).await
    }

    async fn batch_get(&self, question: Message<v1::BatchGetRequest>) -> Result<Reply<v1::BatchGetResponse>, Status> {
        self.unary(question.into_inner()).await
    }

    async fn put(&self, question: Message<v1::PutRequest>) -> Result<Reply<v1::WriteResponse>, Status> {
        self.unary(question.into_inner()).await
    }

    async fn delete(&self, question: Message<v1::DeleteRequest>) -> Result<Reply<v1::WriteResponse>, Status> {
        self.unary(question.into_inner()).await
    }

    async fn increment(&self, question: Message<v1::IncrementRequest>) -> Result<Reply<v1::WriteResponse>, Status> {
        self.unary(question.into_inner()).await
    }

    async fn compare_and_swap(
        &self,
        question: Message<v1::CompareAndSwapRequest>,
    ) -> Result<Reply<v1::WriteResponse>, Status> {
        self.unary(question.into_inner()).await
    }

    async fn batch(&self, question: Message<v1::WriteRequest>) -> Result<Reply<v1::WriteResponse>, Status> {
        self.unary(question.into_inner()).await
    }

    async fn scan(&self, _: Message<v1::ScanRequest>) -> Result<Reply<Self::ScanStream>, Status> {
        Err(Status::unimplemented("clients ask page by page"))
    }

    async fn scan_page(&self, question: Message<v1::ScanRequest>) -> Result<Reply<v1::ScanResponse>, Status> {
        self.unary(question.into_inner()).await
    }

    async fn history(&self, question: Message<v1::HistoryRequest>) -> Result<Reply<v1::ScanResponse>, Status> {
        self.unary(question.into_inner()).await
    }

    async fn changes(&self, _: Message<v1::ChangesRequest>) -> Result<Reply<Self::ChangesStream>, Status> {
        Err(Status::unimplemented("clients ask page by page"))
    }

    async fn changes_page(&self, question: Message<v1::ChangesRequest>) -> Result<Reply<v1::ChangesResponse>, Status> {
        self.unary(question.into_inner()).await
    }

    async fn rollback(&self, question: Message<v1::RollbackRequest>) -> Result<Reply<v1::WriteResponse>, Status> {
        self.unary(question.into_inner()).await
    }

    async fn pipeline(
        &self,
        stream: Message<Streaming<v1::PipelineRequest>>,
    ) -> Result<Reply<Self::PipelineStream>, Status> {
        let (answers, outgoing) = mpsc::unbounded_channel();
        let (mind, mut stream) = (self.clone(), stream.into_inner());
        crate::runtime::spawn(async move {
            while let Some(Ok(message)) = stream.next().await {
                mind.messages.lock().push(message.calls.len());
                let mut ready = Vec::new();
                for call in message.calls {
                    let call = wire::call(call, &Limits::default());
                    let (id, single) = (call.id, call.single);
                    let act = match call.question {
                        Ok((table, request)) => mind.act(table, request, call.forwarded, call.patience),
                        Err(error) => Act::Answer(Err(error)),
                    };
                    match act {
                        Act::Answer(result) => ready.push(wire::answer(id, single, result)),
                        Act::Later(pause, result) => {
                            let answers = answers.clone();
                            crate::runtime::spawn(async move {
                                crate::runtime::sleep(pause).await;
                                let message = v1::PipelineResponse { answers: vec![wire::answer(id, single, result)] };
                                let _ = answers.send(Ok(message));
                            });
                        }
                        Act::Hang => {}
                        Act::Break => {
                            let _ = answers.send(Err(Status::unavailable("broken")));
                            return;
                        }
                    }
                }
                if !ready.is_empty() {
                    let _ = answers.send(Ok(v1::PipelineResponse { answers: ready }));
                }
            }
        });
        Ok(Reply::new(UnboundedReceiverStream::new(outgoing)))
    }
}

#[tonic::async_trait]
impl Cluster for Mind {
    async fn topology(&self, _: Message<v1::TopologyRequest>) -> Result<Reply<v1::TopologyResponse>, Status> {
        *self.topologies.lock() += 1;
        let topology = self.topology.lock().clone();
        topology.map(|topology| Reply::new(topology.into())).ok_or_else(|| Status::unavailable("no topology yet"))
    }

    async fn status(&self, _: Message<v1::StatusRequest>) -> Result<Reply<v1::StatusResponse>, Status> {
        let topology = self.topology.lock().clone().ok_or_else(|| Status::unavailable("no topology yet"))?;
        let status = ClusterStatus {
            cluster: topology.cluster,
            node: NodeId(1),
            healthy: true,
            problems: vec![],
            notes: vec![],
            nodes: topology.nodes,
            tables: topology.tables,
            system: None,
        };
        Ok(Reply::new(status.into()))
    }

    async fn describe_shard(&self, _: Message<v1::DescribeShardRequest>) -> Result<Reply<v1::ShardInfo>, Status> {
        Err(to_status(&crate::types::Error::new(crate::types::Reason::UnknownShard, "no such shard")))
    }

    async fn checksum(&self, asked: Message<v1::ChecksumRequest>) -> Result<Reply<v1::ChecksumResponse>, Status> {
        let shard = ShardId(asked.into_inner().shard);
        Ok(Reply::new(ChecksumReport { shard, equal: true, replicas: vec![] }.into()))
    }

    async fn transfer_leader(
        &self,
        _: Message<v1::TransferLeaderRequest>,
    ) -> Result<Reply<v1::TransferLeaderResponse>, Status> {
        Ok(Reply::new(v1::TransferLeaderResponse {}))
    }

    async fn split_shard(&self, _: Message<v1::SplitShardRequest>) -> Result<Reply<v1::SplitShardResponse>, Status> {
        Err(Status::unimplemented("nobody asks a fake node for this"))
    }

    async fn balance(&self, _: Message<v1::BalanceRequest>) -> Result<Reply<v1::BalanceResponse>, Status> {
        Err(Status::unimplemented("nobody asks a fake node for this"))
    }

    async fn set_balancing(
        &self,
        _: Message<v1::SetBalancingRequest>,
    ) -> Result<Reply<v1::SetBalancingResponse>, Status> {
        Err(Status::unimplemented("nobody asks a fake node for this"))
    }

    async fn set_standing(&self, _: Message<v1::SetStandingRequest>) -> Result<Reply<v1::BalanceResponse>, Status> {
        Err(Status::unimplemented("nobody asks a fake node for this"))
    }

    async fn decommission(
        &self,
        _: Message<v1::DecommissionRequest>,
    ) -> Result<Reply<v1::DecommissionResponse>, Status> {
        Err(Status::unimplemented("nobody asks a fake node for this"))
    }

    async fn merge_shards(&self, _: Message<v1::MergeShardsRequest>) -> Result<Reply<v1::MergeShardsResponse>, Status> {
        Err(Status::unimplemented("nobody asks a fake node for this"))
    }

    async fn move_shard(&self, _: Message<v1::MoveShardRequest>) -> Result<Reply<v1::MoveShardResponse>, Status> {
        Err(Status::unimplemented("nobody asks a fake node for this"))
    }
}

#[tonic::async_trait]
impl Table for Mind {
    async fn create(&self, asked: Message<v1::CreateTableRequest>) -> Result<Reply<v1::TableInfo>, Status> {
        let table = NewTable::decode(asked.into_inner(), &Limits::default()).map_err(|error| to_status(&error))?;
        let mut topology = self.topology.lock();
        let topology = topology.as_mut().ok_or_else(|| Status::unavailable("no topology yet"))?;
        let details = super::super::tests::table(50, &table.name, table.partitioning, &[(500, &[1])]);
        topology.revision += 1;
        topology.tables.push(details.clone());
        Ok(Reply::new(details.into()))
    }

    async fn drop(&self, asked: Message<v1::DropTableRequest>) -> Result<Reply<v1::DropTableResponse>, Status> {
        let name = asked.into_inner().name;
        let mut topology = self.topology.lock();
        let topology = topology.as_mut().ok_or_else(|| Status::unavailable("no topology yet"))?;
        topology.revision += 1;
        topology.tables.retain(|table: &TableDetails| table.table.name != name);
        Ok(Reply::new(v1::DropTableResponse { id: 50 }))
    }

    async fn describe(&self, _: Message<v1::DescribeTableRequest>) -> Result<Reply<v1::TableInfo>, Status> {
        Err(to_status(&crate::types::Error::new(crate::types::Reason::UnknownTable, "no such table")))
    }

    async fn list(&self, _: Message<v1::ListTablesRequest>) -> Result<Reply<v1::ListTablesResponse>, Status> {
        Ok(Reply::new(v1::ListTablesResponse { tables: vec![] }))
    }
}

/// A view of this name; for a fake node a definition is a name.
fn view(name: &str) -> ViewDetails {
    let table = super::super::tests::table(60, name, crate::types::Partitioning::Hash, &[(600, &[1])]);
    let definition = name.to_owned();
    ViewDetails { table, definition, sources: vec!["t".to_owned()], state: ViewState::Building, lags: None }
}

#[tonic::async_trait]
impl View for Mind {
    async fn create(&self, asked: Message<v1::CreateViewRequest>) -> Result<Reply<v1::ViewInfo>, Status> {
        let wish = asked.into_inner();
        let view = view(&wish.definition);
        if !wish.dry_run {
            let mut topology = self.topology.lock();
            let topology = topology.as_mut().ok_or_else(|| Status::unavailable("no topology yet"))?;
            topology.revision += 1;
            topology.tables.push(view.table.clone());
        }
        Ok(Reply::new(view.into()))
    }

    async fn describe(&self, asked: Message<v1::DescribeViewRequest>) -> Result<Reply<v1::ViewInfo>, Status> {
        Ok(Reply::new(ViewDetails { lags: Some(vec![]), ..view(&asked.into_inner().name) }.into()))
    }

    async fn list(&self, _: Message<v1::ListViewsRequest>) -> Result<Reply<v1::ListViewsResponse>, Status> {
        Ok(Reply::new(v1::ListViewsResponse { views: vec![view("v").into()] }))
    }

    async fn pause(&self, asked: Message<v1::PauseViewRequest>) -> Result<Reply<v1::ViewInfo>, Status> {
        let wish = asked.into_inner();
        let state = if wish.paused { ViewState::Paused } else { ViewState::Ready };
        Ok(Reply::new(ViewDetails { state, ..view(&wish.name) }.into()))
    }

    async fn verify(&self, asked: Message<v1::VerifyViewRequest>) -> Result<Reply<v1::VerifyViewResponse>, Status> {
        let wish = asked.into_inner();
        let repaired = u64::from(wish.repair);
        Ok(Reply::new(
            ViewVerification { rows: wish.shard.unwrap_or(9), other: 1, repaired, ..Default::default() }.into(),
        ))
    }
}
