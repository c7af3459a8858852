//! The network between nodes and clients: connections that carry gRPC messages in order, late, or not at all.
//!
//! A connection behaves as TCP does. What is sent arrives in order after the link's latency; lost packets show as
//! delay; behind a cut (which may be one-way) everything waits, and goes on after a heal if the connection has not been
//! given up meanwhile, as keep-alive does after a while. A reset breaks a connection at a message, often just before
//! an answer arrives: then the caller cannot know what became of its request. Nothing is lost in the middle of a
//! connection, and nothing arrives twice, because TCP does not do that either; repeats come from callers that ask again.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Bytes, Service, StdError, http};
use tonic::service::Routes;
use tower::util::BoxCloneSyncService;
use trivet::runtime::simulation::Scope;
use trivet::runtime::{sleep, sleep_until, spawn, timeout};
use trivet::wire::channel::{Simulated, dial_with};

use super::entropy::Random;

/// A node or a client.
pub type Host = u64;

/// How long a connection attempt into silence takes to fail.
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);

/// What the links are like.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// The shortest and the longest way of a message.
    pub latency: (Duration, Duration),
    /// How many in a thousand messages need to be sent again.
    pub lost_per_mille: u64,
    /// How many in a hundred thousand messages meet the end of their connection.
    pub reset_per_100k: u64,
    /// How long it takes until a connection into silence is given up.
    pub noticed: (Duration, Duration),
}

/// Extra time of a message that had to be sent again.
const RESENT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(600));

struct Server {
    host: Host,
    scope: Scope,
    routes: Routes,
}

struct State {
    random: Random,
    weather: Weather,
    servers: BTreeMap<String, Server>,
    hosts: BTreeMap<Scope, Host>,
    /// Links that carry nothing, with the number of the cut.
    cuts: BTreeMap<(Host, Host), u64>,
    cuts_made: u64,
    connections: Vec<Weak<Connection>>,
}

/// The network. Clones are the same one.
#[derive(Clone)]
pub struct Network {
    state: Arc<Mutex<State>>,
    /// Told when links are healed.
    healed: watch::Sender<u64>,
}

struct Connection {
    from: Host,
    to: Host,
    broken: CancellationToken,
}

impl Network {
    /// A network of this weather; from now on this thread connects through it.
    pub fn new(random: Random, weather: Weather) -> Network {
        let state = State {
            random,
            weather,
            servers: BTreeMap::new(),
            hosts: BTreeMap::new(),
            cuts: BTreeMap::new(),
            cuts_made: 0,
            connections: Vec::new(),
        };
        let network = Network { state: Arc::new(Mutex::new(state)), healed: watch::Sender::new(0) };
        let dialler = network.clone();
        dial_with(Some(std::rc::Rc::new(move |address: &str| {
            let from = dialler.state.lock().hosts.get(&Scope::current()).copied();
            let (network, address) = (dialler.clone(), address.to_owned());
            Box::pin(async move { network.dial(from.unwrap_or(0), address).await })
        })));
        network
    }

    /// Says which host a scope's connections come from.
    pub fn place(&self, scope: Scope, host: Host) {
        self.state.lock().hosts.insert(scope, host);
    }

    /// From now on these services answer at this address.
    pub fn serve(&self, address: &str, host: Host, scope: Scope, routes: Routes) {
        self.state.lock().servers.insert(address.to_owned(), Server { host, scope, routes });
    }

    /// The host has died. With `silently` (a power cut) nobody is told; else its connections break at once.
    pub fn dies(&self, host: Host, address: &str, silently: bool) {
        self.state.lock().servers.remove(address);
        let connections = self.touching(|connection| connection.from == host || connection.to == host);
        for connection in connections {
            if silently {
                let noticed = self.noticed();
                Scope::current().spawn(async move {
                    sleep(noticed).await;
                    connection.broken.cancel();
                });
            } else {
                connection.broken.cancel();
            }
        }
    }

    /// Lets nothing through from one host to another any more.
    pub fn cut(&self, from: Host, to: Host) {
        let number = {
            let mut state = self.state.lock();
            state.cuts_made += 1;
            let number = state.cuts_made;
            state.cuts.insert((from, to), number);
            number
        };
        // Keep-alive needs both directions.
        let ends = |connection: &Connection| (connection.from, connection.to);
        for connection in self.touching(|connection| ends(connection) == (from, to) || ends(connection) == (to, from)) {
            let (network, noticed) = (self.clone(), self.noticed());
            Scope::current().spawn(async move {
                sleep(noticed).await;
                if network.state.lock().cuts.get(&(from, to)) == Some(&number) {
                    connection.broken.cancel();
                }
            });
        }
    }

    /// Lets everything through again.
    pub fn heal(&self, from: Host, to: Host) {
        self.state.lock().cuts.remove(&(from, to));
        self.healed.send_modify(|count| *count += 1);
    }

    /// Heals all links.
    pub fn heal_all(&self) {
        self.state.lock().cuts.clear();
        self.healed.send_modify(|count| *count += 1);
    }

    /// Breaks all connections between two hosts.
    pub fn reset(&self, one: Host, other: Host) {
        let ends = |connection: &Connection| [(connection.from, connection.to), (connection.to, connection.from)];
        self.touching(|connection| ends(connection).contains(&(one, other)))
            .iter()
            .for_each(|connection| connection.broken.cancel());
    }

    /// Changes the weather.
    pub fn set_weather(&self, weather: Weather) {
        self.state.lock().weather = weather;
    }

    fn touching(&self, which: impl Fn(&Connection) -> bool) -> Vec<Arc<Connection>> {
        let mut state = self.state.lock();
        state.connections.retain(|connection| connection.strong_count() > 0);
        let alive = state.connections.iter().filter_map(Weak::upgrade);
        alive.filter(|connection| which(connection)).collect()
    }

    fn noticed(&self) -> Duration {
        let mut state = self.state.lock();
        let (low, high) = state.weather.noticed;
        state.random.span(low, high)
    }

    fn is_cut(&self, from: Host, to: Host) -> bool {
        self.state.lock().cuts.contains_key(&(from, to))
    }

    /// How long the next message takes.
    fn way(&self) -> Duration {
        let mut state = self.state.lock();
        let Weather { latency: (low, high), lost_per_mille, .. } = state.weather;
        let mut way = state.random.span(low, high);
        if state.random.per_mille(lost_per_mille) {
            way += state.random.span(RESENT.0, RESENT.1);
        }
        way
    }

    fn resets_now(&self) -> bool {
        let mut state = self.state.lock();
        let chance = state.weather.reset_per_100k;
        state.random.below(100_000) < chance
    }

    async fn dial(self, from: Host, address: String) -> Result<Simulated, StdError> {
        sleep(self.way()).await;
        let found = self.state.lock().servers.get(&address).map(|server| server.host);
        let Some(to) = found else { return Err(refused()) };
        if self.is_cut(from, to) || self.is_cut(to, from) {
            sleep(CONNECT_PATIENCE).await;
            return Err("connection timed out".into());
        }
        sleep(self.way()).await;
        let connection = Arc::new(Connection { from, to, broken: CancellationToken::new() });
        let mut state = self.state.lock();
        let server = state.servers.get(&address).ok_or_else(refused)?;
        let caller = Caller {
            network: self.clone(),
            connection: connection.clone(),
            scope: server.scope,
            routes: server.routes.clone(),
        };
        state.connections.push(Arc::downgrade(&connection));
        Ok(BoxCloneSyncService::new(Shared(Mutex::new(caller))))
    }
}

/// What a machine says where no process listens.
fn refused() -> StdError {
    std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into()
}

/// The client's end of a connection.
#[derive(Clone)]
struct Caller {
    network: Network,
    connection: Arc<Connection>,
    scope: Scope,
    routes: Routes,
}

// Routes are clonable services behind boxes that may move between threads; sharing a reference only clones.
struct Shared(Mutex<Caller>);

impl Clone for Shared {
    fn clone(&self) -> Shared {
        Shared(Mutex::new(self.0.lock().clone()))
    }
}

type Frame = http_body::Frame<Bytes>;

/// One direction of one call.
struct Sender {
    network: Network,
    connection: Arc<Connection>,
    last: Instant,
    to: mpsc::UnboundedSender<(Instant, Option<Result<Frame, Status>>)>,
}

fn broke() -> Status {
    Status::unavailable("the connection broke")
}

#[allow(clippy::disallowed_methods, reason = "inside the simulation this is simulated time")]
fn now() -> Instant {
    Instant::now()
}

impl Sender {
    fn arrival(&mut self) -> Instant {
        self.last = self.last.max(now() + self.network.way());
        self.last
    }

    /// Carries a body from where it is made to where it is read; ends when either end has no interest in it.
    async fn carry(mut self, mut body: Body) {
        loop {
            let frame = tokio::select! {
                biased;
                () = self.connection.broken.cancelled() => return,
                () = self.to.closed() => return,
                frame = body.frame() => frame,
            };
            let ended = frame.is_none();
            let at = self.arrival();
            if self.to.send((at, frame)).is_err() || ended {
                return;
            }
        }
    }
}

/// The other end of [`Sender`].
fn received(
    network: Network,
    connection: Arc<Connection>,
    (from, to): (Host, Host),
    frames: mpsc::UnboundedReceiver<(Instant, Option<Result<Frame, Status>>)>,
) -> Body {
    let arriving = futures::stream::unfold(Some((network, connection, frames)), move |state| async move {
        let (network, connection, mut frames) = state?;
        let arriving = async {
            let (at, frame) = frames.recv().await.ok_or_else(broke)?;
            arrive(&network, (from, to), at).await;
            if network.resets_now() {
                connection.broken.cancel();
            }
            Ok::<_, Status>(frame)
        };
        let frame = tokio::select! {
            biased;
            () = connection.broken.cancelled() => Err(broke()),
            frame = arriving => frame,
        };
        if connection.broken.is_cancelled() {
            return Some((Err(broke()), None));
        }
        match frame {
            Ok(Some(frame)) => Some((frame, Some((network, connection, frames)))),
            Ok(None) => None,
            Err(status) => Some((Err(status), None)),
        }
    });
    Body::new(StreamBody::new(arriving.boxed()))
}

/// Waits until a message that was to arrive at `at` does.
async fn arrive(network: &Network, (from, to): (Host, Host), at: Instant) {
    sleep_until(at).await;
    let mut healed = network.healed.subscribe();
    while network.is_cut(from, to) {
        let _ = healed.changed().await;
        if !network.is_cut(from, to) {
            sleep(network.way()).await;
        }
    }
}

impl Service<http::Request<Body>> for Shared {
    type Response = http::Response<Body>;
    type Error = StdError;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, StdError>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), StdError>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Caller { network, connection, scope, mut routes } = self.0.lock().clone();
        Box::pin(async move {
            if connection.broken.is_cancelled() {
                return Err(broke().into());
            }
            let patience = patience(&request);
            let (there, back) = ((connection.from, connection.to), (connection.to, connection.from));
            let (parts, body) = request.into_parts();
            let (to_server, at_server) = mpsc::unbounded_channel();
            let (to_client, at_client) = mpsc::unbounded_channel();
            let mut asking =
                Sender { network: network.clone(), connection: connection.clone(), last: now(), to: to_server };
            let first = asking.arrival();
            spawn(asking.carry(body));

            let (mut answer, answered) = oneshot::channel();
            let (serving_network, serving) = (network.clone(), connection.clone());
            scope.spawn(async move {
                let mut answering = Sender {
                    network: serving_network.clone(),
                    connection: serving.clone(),
                    last: now(),
                    to: to_client,
                };
                let handled = async {
                    arrive(&serving_network, there, first).await;
                    let body = received(serving_network.clone(), serving.clone(), there, at_server);
                    routes.call(http::Request::from_parts(parts, body)).await
                };
                let response = tokio::select! {
                    biased;
                    () = serving.broken.cancelled() => return,
                    () = answer.closed() => return,
                    response = handled => response,
                };
                let Ok(response) = response;
                let (parts, body) = response.into_parts();
                let at = answering.arrival();
                if answer.send((at, parts)).is_ok() {
                    answering.carry(body).await;
                }
            });

            let waited = async {
                // Dropped without an answer: the server's process is gone, which a reset tells us.
                let (at, parts) = answered.await.map_err(|_| broke())?;
                arrive(&network, back, at).await;
                if network.resets_now() {
                    connection.broken.cancel();
                    return Err(broke());
                }
                Ok(parts)
            };
            let waited = async {
                tokio::select! {
                    biased;
                    () = connection.broken.cancelled() => Err(broke()),
                    waited = waited => waited,
                }
            };
            let parts = match patience {
                Some(patience) => {
                    timeout(patience, waited).await.unwrap_or_else(|| Err(Status::cancelled("Timeout expired")))
                }
                None => waited.await,
            };
            match parts {
                Ok(parts) => {
                    let body = received(network, connection, back, at_client);
                    Ok(http::Response::from_parts(parts, body))
                }
                Err(status) => Err(status.into()),
            }
        })
    }
}

/// The deadline that a call carries.
fn patience(request: &http::Request<Body>) -> Option<Duration> {
    let text = request.headers().get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at(text.len().checked_sub(1)?);
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "n" => Duration::from_nanos(number),
        "u" => Duration::from_micros(number),
        "m" => Duration::from_millis(number),
        "S" => Duration::from_secs(number),
        "M" => Duration::from_secs(60 * number),
        "H" => Duration::from_secs(3_600 * number),
        _ => return None,
    })
}
