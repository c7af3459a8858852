//! Makes the connection, keeps one pipelined stream on it, and makes it again when it breaks.
//!
//! One task per connection: connect, open the stream, hand out answers until it ends, pause, again. A second one
//! looks for overdue calls. The first attempt after a stream broke comes at once and calls wait for it; once an
//! attempt has failed, calls fail at once until one succeeds.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Endpoint;

use super::SWEEP;
use super::flight::Flight;
use crate::client::backoff::Backoff;
use crate::client::metrics;
use crate::runtime::{self, Clock, Instant};
use crate::types::{Error, Reason, Result};
use crate::wire::proto::v1;
use crate::wire::proto::v1::kv_client::KvClient;
use crate::wire::{Channel, RESPONSE_BYTES_MAX};

/// Longest wait for a connection and its stream: a node that takes longer is better left for another.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// A connection that has said nothing for this long is asked for a sign of life ...
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// ... and is given up when it gives none for this long. Calls to a hung node are abandoned sooner, one by one; this
/// frees the connection, and is long enough for a node that is merely starved of CPU.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes the node may send ahead of what was read: a few pages of a scan.
const STREAM_WINDOW: u32 = 4 << 20;
/// The same for all streams of a connection together.
const CONNECTION_WINDOW: u32 = 8 << 20;
/// First and longest pause between attempts to connect: a restarted node is found again within the latter.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_LONGEST: Duration = Duration::from_millis(1_000);
/// A stream that lasted this long was a good one: the pauses begin anew.
const GOOD_STREAM: Duration = Duration::from_secs(1);

/// What stands between a connection and its tasks.
pub(super) struct Link {
    pub(super) address: Arc<str>,
    pub(super) clock: Clock,
    pub(super) flight: Arc<Flight>,
    /// The channel of the stream that is open, for unary calls beside it.
    state: watch::Sender<State>,
    closed: CancellationToken,
}

#[derive(Clone)]
enum State {
    Connecting,
    Up(Channel),
    Down(Error),
}

impl Link {
    pub(super) fn new(address: Arc<str>, clock: Clock) -> Link {
        let flight = Arc::new(Flight::new(address.clone(), &clock));
        let (state, _) = watch::channel(State::Connecting);
        Link { address, clock, flight, state, closed: CancellationToken::new() }
    }

    /// Ends the tasks.
    pub(super) fn close(&self) {
        self.closed.cancel();
    }

    /// The channel for unary calls; waits for the first connection until `deadline`, but not for one that is down.
    pub(super) async fn channel(&self, deadline: Instant) -> Result<Channel> {
        let mut state = self.state.subscribe();
        let settled = state.wait_for(|state| !matches!(state, State::Connecting));
        match runtime::timeout_at(deadline, settled).await {
            Some(Ok(state)) => match &*state {
                State::Up(channel) => Ok(channel.clone()),
                State::Down(error) => Err(error.clone()),
                State::Connecting => Err(Error::internal("a settled connection is still connecting")),
            },
            Some(Err(_)) => Err(Error::internal("the connection has lost its state")),
            None => Err(Error::new(Reason::DeadlineExceeded, format!("no connection to {} in time", self.address))),
        }
    }

    /// Makes one connection with its stream.
    async fn connect(&self) -> Result<(Channel, Streaming<v1::PipelineResponse>), String> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address))
            .map_err(|error| format!("has an address that is none: {error}"))?
            .connect_timeout(CONNECT_MAX)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let opened = runtime::timeout(CONNECT_MAX, async {
            let channel = Channel::connect(&self.address, &endpoint).await.map_err(|error| {
                let cause = error.source().map(ToString::to_string);
                format!("cannot be reached ({})", cause.unwrap_or_else(|| error.to_string()))
            })?;
            let calls = self.flight.open();
            let mut kv = sized(KvClient::new(channel.clone()));
            match kv.pipeline(calls).await {
                Ok(answers) => Ok((channel, answers.into_inner())),
                Err(status) => Err(format!("does not open a stream ({status})")),
            }
        });
        opened.await.unwrap_or_else(|| Err("does not answer".to_owned()))
    }

    /// Hands out answers until the stream ends; says why it did.
    async fn hand_out(&self, mut answers: Streaming<v1::PipelineResponse>) -> String {
        loop {
            match answers.message().await {
                Ok(Some(message)) => self.flight.deliver(message.answers),
                Ok(None) => return "ended the stream".to_owned(),
                Err(status) => return format!("broke off ({})", status.message()),
            }
        }
    }

    async fn keep_connected(&self) {
        let mut pauses = Backoff::new(PAUSE_FIRST, PAUSE_LONGEST);
        loop {
            match self.connect().await {
                Ok((channel, answers)) => {
                    ::metrics::counter!(metrics::CONNECTED).increment(1);
                    tracing::debug!(address = %self.address, "connected");
                    let since = self.clock.now();
                    self.flight.accept();
                    self.state.send_replace(State::Up(channel));
                    let why = self.hand_out(answers).await;
                    ::metrics::counter!(metrics::BROKEN).increment(1);
                    tracing::debug!(address = %self.address, why, "connection lost");
                    self.state.send_replace(State::Connecting);
                    self.flight.break_off(&why);
                    if self.clock.now().saturating_duration_since(since) >= GOOD_STREAM {
                        pauses.reset();
                    }
                }
                Err(why) => {
                    ::metrics::counter!(metrics::BROKEN).increment(1);
                    tracing::debug!(address = %self.address, why, "no connection");
                    let error = self.flight.unavailable(&why);
                    self.state.send_replace(State::Down(error.clone()));
                    // A stream that was refused may have taken calls before.
                    self.flight.break_off(&why);
                    self.flight.refuse(error);
                }
            }
            runtime::sleep(pauses.next()).await;
        }
    }

    async fn sweep(&self) {
        loop {
            self.flight.busy.notified().await;
            loop {
                runtime::sleep(SWEEP).await;
                if !self.flight.sweep(self.clock.now()) {
                    break;
                }
            }
        }
    }
}

/// Starts the tasks of a connection; they end when it is closed.
pub(super) fn start(link: &Arc<Link>) {
    let connecting = link.clone();
    runtime::spawn(async move {
        connecting.closed.run_until_cancelled(connecting.keep_connected()).await;
    });
    let sweeping = link.clone();
    runtime::spawn(async move {
        sweeping.closed.run_until_cancelled(sweeping.sweep()).await;
    });
}

/// A client that takes messages as large as ours get.
pub(super) fn sized(client: KvClient<Channel>) -> KvClient<Channel> {
    client.max_decoding_message_size(RESPONSE_BYTES_MAX)
}
