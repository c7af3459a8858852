//! The gRPC port: every service on it, its bounds, its opening and its closing.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::{Routes, RoutesBuilder};
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use super::admin::{Cluster, Table, View};
use super::door::Door;
use super::edge::Edge;
use super::explain::{self, Explained};
use super::kv::Kv;
use super::listen::{self, Connections};
use super::orders::{Library, Orders};
use crate::node::PeerService;
use crate::runtime::{self, Clock, Instant, Task};
use crate::types::Limits;
use crate::wire;
use crate::wire::proto::orders::v1::orders_server::OrdersServer;
use crate::wire::proto::{DESCRIPTORS, v1};

/// Unary calls and streams at once on one connection; further ones wait at the client. A client that makes unary
/// calls for many callers needs some hundreds.
const STREAMS_PER_CONNECTION_MAX: u32 = 1_024;
/// Bytes a client may send ahead on one stream and on one connection: a few messages, so that a pipelined stream
/// never waits for a window; bounds what a connection can make us hold.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Largest HTTP/2 frame taken: fewer, larger frames cost less.
const FRAME_BYTES_MAX: u32 = 256 << 10;
/// A connection that was silent for this long is asked for a sign of life …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// … and closed if it gives none in this time.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// What a message holds beside keys and values, for one operation at most.
const OPERATION_OVERHEAD_BYTES: usize = 64;
/// Room for the rest of a message.
const MESSAGE_OVERHEAD_BYTES: usize = 1 << 20;
/// How long connections have to end once they were broken off.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);

/// The names under which health is told: the services, and all together.
const HEALTH_NAMES: [&str; 6] =
    ["", "trivet.v1.Kv", "trivet.v1.Table", "trivet.v1.View", "trivet.v1.Cluster", "trivet.orders.v1.Orders"];

/// The open port.
pub struct Grpc {
    address: SocketAddr,
    edge: Edge,
    connections: Connections,
    closing: CancellationToken,
    health: HealthReporter,
    library: Library,
    served: Task<()>,
}

impl Grpc {
    /// Serves what stands behind `door`, and the traffic between nodes, on this listener. Health is told as not
    /// serving until [`Grpc::set_serving`] says otherwise.
    pub async fn serve(listener: TcpListener, door: Door, limits: Limits, clock: Clock) -> io::Result<Grpc> {
        let address = listener.local_addr()?;
        let edge = Edge::new(door, limits, clock.clone());
        let health = HealthReporter::new();
        let (connections, closing) = (Connections::default(), CancellationToken::new());
        let incoming = listen::accept(listener, connections.clone(), closing.clone(), clock);

        let library = Library::of(address);
        let router = server().add_routes(routes(&edge, &library, &health)?);
        let signal = closing.clone().cancelled_owned();
        let served = runtime::spawn(async move {
            if let Err(error) = router.serve_with_incoming_shutdown(incoming, signal).await {
                tracing::error!(%error, "the gRPC port has closed");
            }
        });
        let grpc = Grpc { address, edge, connections, closing, health, library, served };
        grpc.set_serving(false).await;
        Ok(grpc)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What grpc.health.v1 says from now on.
    pub async fn set_serving(&self, serving: bool) {
        set_health(&self.health, serving).await;
    }

    /// A handle to what grpc.health.v1 says.
    pub fn health(&self) -> Health {
        Health { reporter: self.health.clone() }
    }

    /// Refuses new calls and waits for those in flight, at most until `deadline`; whether all were answered. The
    /// traffic between nodes goes on.
    pub async fn drain(&self, deadline: Instant) -> bool {
        self.edge.drain(deadline).await
    }

    /// Closes the port: connections are told to end, and broken off at `deadline`.
    pub async fn close(self, deadline: Instant) {
        self.edge.stopping().cancel();
        self.closing.cancel();
        self.library.close();
        let stop = self.served.abort_handle();
        let mut served = self.served;
        if runtime::timeout_at(deadline, &mut served).await.is_none() {
            self.connections.abort();
            if runtime::timeout(ABORT_TIMEOUT, &mut served).await.is_none() {
                stop.abort();
            }
        }
    }
}

/// Says what grpc.health.v1 answers.
#[derive(Clone)]
pub struct Health {
    reporter: HealthReporter,
}

impl Health {
    /// What it says from now on.
    pub async fn set_serving(&self, serving: bool) {
        set_health(&self.reporter, serving).await;
    }
}

async fn set_health(reporter: &HealthReporter, serving: bool) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for name in HEALTH_NAMES {
        reporter.set_service_status(name, status).await;
    }
}

fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// The largest message taken: what the limits allow, and room for what a client gathers in one.
fn request_bytes_max(limits: &Limits) -> usize {
    let batch = limits.batch_bytes_max + limits.batch_operations_max * OPERATION_OVERHEAD_BYTES;
    wire::REQUEST_BYTES_MAX.max(batch + MESSAGE_OVERHEAD_BYTES)
}

/// The services that stand behind `door`, without a port and what needs one (orders, health, reflection): for a simulation,
/// which brings its own network.
pub fn services(door: Door, limits: Limits, clock: Clock) -> Routes {
    core_services(&Edge::new(door, limits, clock)).routes()
}

/// A service whose messages have bounds and whose refusals have reasons.
macro_rules! bounded {
    ($edge:expr, $service:expr) => {
        Explained(
            $service
                .max_decoding_message_size(request_bytes_max($edge.limits()))
                .max_encoding_message_size(wire::RESPONSE_BYTES_MAX),
        )
    };
}

fn core_services(edge: &Edge) -> RoutesBuilder {
    let mut routes = Routes::builder();
    routes
        .add_service(bounded!(edge, v1::kv_server::KvServer::new(Kv::new(edge.clone()))))
        .add_service(bounded!(edge, v1::table_server::TableServer::new(Table::new(edge.clone()))))
        .add_service(bounded!(edge, v1::view_server::ViewServer::new(View::new(edge.clone()))))
        .add_service(bounded!(edge, v1::cluster_server::ClusterServer::new(Cluster::new(edge.clone()))));
    if let Some((node, _)) = edge.door().node() {
        routes.add_service(PeerService::server(node.clone()));
    }
    routes
}

fn routes(edge: &Edge, library: &Library, health: &HealthReporter) -> io::Result<Routes> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let mut routes = core_services(edge);
    routes
        .add_service(bounded!(edge, OrdersServer::new(Orders::new(edge.clone(), library.clone()))))
        .add_service(HealthServer::new(HealthService::from_health_reporter(health.clone())))
        .add_service(reflection().build_v1().map_err(io::Error::other)?)
        .add_service(reflection().build_v1alpha().map_err(io::Error::other)?);
    Ok(Routes::from(routes.routes().into_axum_router().fallback(explain::unknown_service)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::StreamExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tonic::transport::Channel;
    use tonic::{Code, Request};
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_types::StatusExt;

    use super::*;
    use crate::service::testing::{self, Gate, ROWS};
    use crate::types::Reason;
    use crate::wire::error_of_status;
    use crate::wire::proto::v1::kv_client::KvClient;

    async fn open(door: Door) -> (Grpc, Channel) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let grpc = Grpc::serve(listener, door, Limits::default(), Clock::system()).await.expect("it serves");
        let channel = Channel::from_shared(format!("http://{}", grpc.address())).expect("an address");
        let channel = channel.connect().await.expect("it accepts");
        (grpc, channel)
    }

    async fn gated() -> (Grpc, KvClient<Channel>, Arc<Gate>) {
        let (door, gate) = testing::gated_door();
        let (grpc, channel) = open(door).await;
        (grpc, KvClient::new(channel), gate)
    }

    fn get(key: &str) -> v1::GetRequest {
        v1::GetRequest { table: "t".into(), key: key.to_owned().into(), level: None }
    }

    fn soon() -> Instant {
        Clock::system().now() + Duration::from_secs(5)
    }

    #[tokio::test]
    async fn unary_calls_are_answered_or_refused_with_a_reason() {
        let (grpc, channel) = open(testing::echo_door()).await;
        let mut kv = KvClient::new(channel).max_encoding_message_size(64 << 20);
        let answer = kv.get(get("k")).await.expect("an answer").into_inner();
        assert_eq!(answer.found.expect("a value").value, "k");
        assert_eq!(answer.header.expect("a header").node, 1);
        let put = |value: usize| v1::PutRequest {
            table: "t".into(),
            key: "k".into(),
            value: vec![0; value].into(),
            ..Default::default()
        };
        assert!(kv.put(put(1 << 20)).await.expect("an answer").into_inner().applied);

        let reason = |status: tonic::Status| error_of_status(&status, true).reason;
        assert_eq!(reason(kv.get(get("")).await.expect_err("refused")), Reason::EmptyKey);
        assert_eq!(reason(kv.put(put((1 << 20) + 1)).await.expect_err("refused")), Reason::ValueTooLarge);
        let flood = kv.put(put(20 << 20)).await.expect_err("more than any message may have");
        assert_eq!((flood.code(), reason(flood)), (Code::InvalidArgument, Reason::BatchTooLarge));
        assert!(kv.get(get("k")).await.is_ok(), "the connection has survived");
        grpc.close(soon()).await;
    }

    #[tokio::test]
    async fn what_the_server_itself_refuses_has_a_reason_too() {
        let (grpc, channel) = open(testing::echo_door()).await;
        // A client of one method may send anything under the name of another.
        let send = async |path: &'static str| {
            let mut client = tonic::client::Grpc::new(channel.clone());
            client.ready().await.expect("open");
            let codec = tonic_prost::ProstCodec::<v1::RequestId, v1::GetResponse>::default();
            let message = v1::RequestId { client: 1, ..Default::default() };
            let path = path.parse().expect("a path");
            client.unary(Request::new(message), path, codec).await.expect_err("refused")
        };
        // The first field of a Get is text, not a number.
        let malformed = send("/trivet.v1.Kv/Get").await;
        let no_method = send("/trivet.v1.Kv/Explode").await;
        let no_service = send("/other.Service/Call").await;
        for (status, code) in
            [(&malformed, Code::InvalidArgument), (&no_method, Code::Unimplemented), (&no_service, Code::Unimplemented)]
        {
            assert_eq!(status.code(), code, "{status:?}");
            let info = status.get_details_error_info().expect("an ErrorInfo");
            assert_eq!((info.reason.as_str(), info.domain.as_str()), ("INVALID_REQUEST", "trivet"));
            assert!(!status.message().is_empty());
        }
        assert!(malformed.message().contains("cannot be read"), "{malformed:?}");

        let mut kv = KvClient::new(channel);
        let (sender, receiver) = futures::channel::mpsc::unbounded();
        let mut answers = kv.pipeline(receiver).await.expect("a stream").into_inner();
        let flood = v1::GetRequest { key: vec![0; 2 * wire::REQUEST_BYTES_MAX].into(), ..get("k") };
        let call = v1::Call { id: 1, call: Some(v1::call::Call::Get(flood)), ..Default::default() };
        sender.unbounded_send(v1::PipelineRequest { calls: vec![call] }).expect("open");
        let flood = answers.message().await.expect_err("more than any message may have");
        assert_eq!(error_of_status(&flood, true).reason, Reason::BatchTooLarge, "{flood:?}");
        grpc.close(soon()).await;
    }

    #[tokio::test]
    async fn scans_follow_their_pages() {
        let (grpc, channel) = open(testing::echo_door()).await;
        let mut kv = KvClient::new(channel);
        let mut rows = async |limit: u64| {
            let question = v1::ScanRequest { table: "t".into(), limit, ..Default::default() };
            let mut pages = kv.scan(question).await.expect("pages").into_inner();
            let (mut keys, mut last) = (Vec::new(), None);
            while let Some(page) = pages.message().await.expect("no failure") {
                keys.extend(page.rows.into_iter().map(|row| String::from_utf8_lossy(&row.key).into_owned()));
                last = page.cursor;
            }
            (keys, last)
        };
        let all: Vec<_> = (0..ROWS).map(|n| n.to_string()).collect();
        assert_eq!(rows(0).await, (all.clone(), None));
        assert_eq!(rows(99).await, (all.clone(), None));
        assert_eq!(rows(4).await, (all[..4].to_vec(), Some("4".into())), "the cursor says where to go on");
        let unnamed = kv.scan(v1::ScanRequest::default()).await.expect_err("no table");
        assert_eq!(unnamed.code(), Code::InvalidArgument);
        grpc.close(soon()).await;
    }

    #[tokio::test]
    async fn deadlines_come_with_the_call() {
        let (grpc, mut kv, _gate) = gated().await;
        let mut patient = Request::new(get("slow"));
        patient.set_timeout(Duration::from_millis(200));
        let status = kv.get(patient).await.expect_err("nobody opens the gate");
        assert_eq!(error_of_status(&status, true).reason, Reason::DeadlineExceeded, "our answer, not the alarm's");
        grpc.close(soon()).await;
    }

    #[tokio::test]
    async fn health_and_reflection_are_served() {
        let (grpc, channel) = open(testing::echo_door()).await;
        let mut health = HealthClient::new(channel.clone());
        for (serving, expected) in [(None, 2), (Some(true), 1), (Some(false), 2)] {
            if let Some(serving) = serving {
                grpc.set_serving(serving).await;
            }
            for service in ["", "trivet.v1.Kv", "trivet.v1.View", "trivet.v1.Cluster", "trivet.orders.v1.Orders"] {
                let question = HealthCheckRequest { service: service.into() };
                let answer = health.check(question).await.expect("known").into_inner();
                assert_eq!(answer.status, expected, "{service}");
            }
        }
        macro_rules! services {
            ($version:ident) => {{
                use tonic_reflection::pb::$version as pb;
                let mut client = pb::server_reflection_client::ServerReflectionClient::new(channel.clone());
                let question = pb::ServerReflectionRequest {
                    host: String::new(),
                    message_request: Some(pb::server_reflection_request::MessageRequest::ListServices(String::new())),
                };
                let answers = client.server_reflection_info(futures::stream::iter([question])).await.expect("served");
                let answer = answers.into_inner().message().await.expect("no failure").expect("an answer");
                let Some(pb::server_reflection_response::MessageResponse::ListServicesResponse(list)) =
                    answer.message_response
                else {
                    panic!("a list")
                };
                list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
            }};
        }
        for names in [services!(v1), services!(v1alpha)] {
            let ours =
                ["trivet.v1.Kv", "trivet.v1.Table", "trivet.v1.View", "trivet.v1.Cluster", "trivet.orders.v1.Orders"];
            for name in ours.into_iter().chain(["grpc.health.v1.Health"]) {
                assert!(names.iter().any(|listed| listed == name), "{name} is missing in {names:?}");
            }
            assert!(!names.iter().any(|listed| listed.contains("internal")), "{names:?}");
        }
        grpc.close(soon()).await;
    }

    #[tokio::test]
    async fn a_port_in_use_by_strangers_goes_on_serving() {
        let (grpc, channel) = open(testing::echo_door()).await;
        let mut stranger = TcpStream::connect(grpc.address()).await.expect("it listens");
        stranger.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it reads");
        let mut told = String::new();
        stranger.read_to_string(&mut told).await.expect("text");
        assert!(told.starts_with("HTTP/1.1 400 "), "{told}");
        // Begins well and goes on badly.
        let mut garbler = TcpStream::connect(grpc.address()).await.expect("it listens");
        garbler.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("it reads");
        garbler.write_all(&[0xab; 9_000]).await.expect("it reads");
        let mut rest = Vec::new();
        let _ = garbler.read_to_end(&mut rest).await;
        assert!(KvClient::new(channel).get(get("k")).await.is_ok());
        grpc.close(soon()).await;
    }

    #[tokio::test]
    async fn streams_are_pipelined_and_end_with_the_client() {
        let (grpc, mut kv, gate) = gated().await;
        let (sender, receiver) = futures::channel::mpsc::unbounded();
        let mut answers = kv.pipeline(receiver).await.expect("a stream").into_inner();
        let call = |id, key: &str| v1::Call { id, call: Some(v1::call::Call::Get(get(key))), ..Default::default() };
        let send = |calls| sender.unbounded_send(v1::PipelineRequest { calls }).expect("open");
        send(vec![call(1, "slow"), call(2, "quick")]);
        assert_eq!(answers.message().await.expect("no failure").expect("an answer").answers[0].id, 2);
        gate.open();
        assert_eq!(answers.message().await.expect("no failure").expect("an answer").answers[0].id, 1);
        drop(sender);
        assert!(answers.message().await.expect("a clean end").is_none());
        grpc.close(soon()).await;
    }

    #[tokio::test]
    async fn closing_answers_what_is_in_flight_and_then_refuses() {
        let (grpc, kv, gate) = gated().await;
        let mut caller = kv.clone();
        let slow = runtime::spawn(async move { caller.get(get("slow")).await });
        gate.entered().await;
        let address = grpc.address();
        let mut other = kv.clone();
        let drained = runtime::spawn(async move { (grpc.drain(soon()).await, grpc) });
        tokio::task::yield_now().await;
        let refused = other.get(get("quick")).await.expect_err("stopping");
        assert_eq!(error_of_status(&refused, false).reason, Reason::NotReady);
        gate.open();
        let (all, grpc) = drained.await.expect("no panic");
        assert!(all);
        assert!(slow.await.expect("no panic").is_ok());
        grpc.close(soon()).await;
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn a_client_that_hangs_on_is_broken_off() {
        let (grpc, mut kv, gate) = gated().await;
        let (sender, receiver) = futures::channel::mpsc::unbounded();
        let mut answers = kv.pipeline(receiver).await.expect("a stream").into_inner();
        let call = v1::Call { id: 1, call: Some(v1::call::Call::Get(get("slow"))), ..Default::default() };
        sender.unbounded_send(v1::PipelineRequest { calls: vec![call] }).expect("open");
        gate.entered().await;
        let began = Clock::system().now();
        grpc.close(began + Duration::from_millis(50)).await;
        assert!(Clock::system().now() - began < Duration::from_secs(2));
        assert!(answers.next().await.is_none_or(|answer| answer.is_err()));
    }
}
