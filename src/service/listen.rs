//! Connections to the gRPC port: who is let in, and how all are shown out.
//!
//! A port on a network is spoken to by all sorts: browsers, scanners, a monitoring agent that took the wrong number.
//! Every connection must begin as HTTP/2 does within [`PREFACE_TIMEOUT`]; a plain HTTP request is told in one line
//! what this port is, everything else is closed. Neither costs more than a count and, at most once a minute, a line
//! in the log. At most [`CONNECTIONS_MAX`] connections are open, further ones wait in the kernel's queue.
//!
//! A closed port waits for its connections to end by themselves; [`Connections::abort`] is for when time is up.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;
use std::time::Duration;

use futures::task::AtomicWaker;
use metrics::{counter, gauge};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::metrics::{CONNECTIONS, TURNED_AWAY};
use crate::runtime::{self, Clock, Guard, Guarded, Instant};

/// Connections open at once. A client needs one or a few; each costs a descriptor and some tens of KiB.
pub const CONNECTIONS_MAX: usize = 4_096;
/// How long a connection may say nothing before its first words.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);
/// How every HTTP/2 connection begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long to wait after a failed accept (no descriptors left, mostly) instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// At most one line in the log for all strangers of this time.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// What a stranger's request may still have on its way when it is told off; reading it lets the answer arrive.
const STRANGER_BYTES_MAX: u64 = 64 << 10;

const NOT_HTTP1: &str = "This port speaks gRPC (HTTP/2). Metrics and health are served on the node's HTTP port.\n";

/// The open connections of a port.
#[derive(Clone, Default)]
pub struct Connections {
    open: Arc<Mutex<Open>>,
}

#[derive(Default)]
struct Open {
    next: u64,
    switches: HashMap<u64, Arc<Switch>>,
}

/// Turns one connection off from outside.
#[derive(Default)]
struct Switch {
    off: AtomicBool,
    reader: AtomicWaker,
}

impl Connections {
    /// Breaks all of them off at once.
    pub fn abort(&self) {
        let switches: Vec<_> = self.open.lock().switches.values().cloned().collect();
        for switch in switches {
            switch.off.store(true, Ordering::Release);
            switch.reader.wake();
        }
    }

    fn enter(&self, stream: TcpStream, place: OwnedSemaphorePermit) -> Connection {
        let switch = Arc::new(Switch::default());
        let mut open = self.open.lock();
        let id = open.next;
        open.next += 1;
        open.switches.insert(id, switch.clone());
        gauge!(CONNECTIONS).increment(1);
        Guarded::new(stream, Entry { switch, id, connections: self.clone(), _place: place })
    }
}

/// Accepts connections until `closing` fires; those that speak HTTP/2 come out of the stream.
pub fn accept(
    listener: TcpListener,
    connections: Connections,
    closing: CancellationToken,
    clock: Clock,
) -> ReceiverStream<io::Result<Connection>> {
    // Connections that have said hello and wait to be served; the server takes them at once.
    let (sender, receiver) = mpsc::channel(1);
    let strangers = Arc::new(Strangers { clock, logged: Mutex::new(None) });
    runtime::spawn(async move {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let accept = async {
            loop {
                let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
                match listener.accept().await {
                    Ok((stream, peer)) => {
                        let greeting = Greeting { stream, peer, place, strangers: strangers.clone() };
                        runtime::spawn(greeting.run(connections.clone(), sender.clone()));
                    }
                    Err(_) => runtime::sleep(ACCEPT_PAUSE).await,
                }
            }
        };
        tokio::select! {
            () = accept => {}
            () = closing.cancelled() => {}
        }
    });
    ReceiverStream::new(receiver)
}

/// A connection that has not said anything yet.
struct Greeting {
    stream: TcpStream,
    peer: SocketAddr,
    place: OwnedSemaphorePermit,
    strangers: Arc<Strangers>,
}

impl Greeting {
    async fn run(mut self, connections: Connections, sender: mpsc::Sender<io::Result<Connection>>) {
        // Small frames must not wait for the acknowledgement of those before.
        let _ = self.stream.set_nodelay(true);
        let mut head = [0; PREFACE.len()];
        let spoken = match runtime::timeout(PREFACE_TIMEOUT, self.stream.peek(&mut head)).await {
            None => "nothing",
            // Opened and closed again: a probe that only wants to know whether the port is open.
            Some(Ok(0) | Err(_)) => return,
            Some(Ok(count)) if PREFACE.starts_with(&head[..count]) => {
                // The server is gone when nobody takes it: the port is closing.
                let _ = sender.send(Ok(connections.enter(self.stream, self.place))).await;
                return;
            }
            Some(Ok(count)) => language(&head[..count]),
        };
        counter!(TURNED_AWAY, "spoke" => spoken).increment(1);
        self.strangers.note(self.peer, spoken);
        if spoken == "http1" {
            let answer = format!(
                "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{NOT_HTTP1}",
                NOT_HTTP1.len()
            );
            let _ = runtime::timeout(PREFACE_TIMEOUT, async {
                self.stream.write_all(answer.as_bytes()).await?;
                self.stream.shutdown().await?;
                tokio::io::copy(&mut self.stream.take(STRANGER_BYTES_MAX), &mut tokio::io::sink()).await
            })
            .await;
        }
    }
}

/// What the first bytes of a connection look like.
fn language(head: &[u8]) -> &'static str {
    const METHODS: [&[u8]; 7] = [b"GET ", b"POST ", b"HEAD ", b"PUT ", b"OPTIONS ", b"DELETE ", b"PATCH "];
    match head {
        // A TLS handshake record.
        [0x16, 0x03, ..] => "tls",
        _ if METHODS.iter().any(|method| head.starts_with(method)) => "http1",
        _ => "other",
    }
}

/// Keeps the log quiet about connections that were turned away.
struct Strangers {
    clock: Clock,
    logged: Mutex<Option<Instant>>,
}

impl Strangers {
    fn note(&self, peer: SocketAddr, spoken: &'static str) {
        let now = self.clock.now();
        let mut logged = self.logged.lock();
        if logged.is_none_or(|last| now - last >= LOG_INTERVAL) {
            *logged = Some(now);
            tracing::warn!(%peer, spoken, "turned a connection away: this port speaks gRPC over plain HTTP/2");
        }
    }
}

/// A connection that speaks HTTP/2.
pub type Connection = Guarded<TcpStream, Entry>;

/// What is kept of a connection while it is open.
pub struct Entry {
    switch: Arc<Switch>,
    id: u64,
    connections: Connections,
    _place: OwnedSemaphorePermit,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.open.lock().switches.remove(&self.id);
        gauge!(CONNECTIONS).decrement(1);
    }
}

impl Guard for Entry {
    fn may_read(&self, context: &mut Context<'_>) -> io::Result<()> {
        self.switch.reader.register(context.waker());
        // Looked at after the registration, so that being turned off in between is not missed.
        if self.switch.off.load(Ordering::Acquire) { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream().connect_info()
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    async fn port() -> (SocketAddr, Connections, CancellationToken, ReceiverStream<io::Result<Connection>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (connections, closing) = (Connections::default(), CancellationToken::new());
        let incoming = accept(listener, connections.clone(), closing.clone(), Clock::system());
        (address, connections, closing, incoming)
    }

    async fn say(address: SocketAddr, words: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(words).await.expect("it accepts");
        let mut answer = Vec::new();
        // A reset is also an end.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn strangers_are_turned_away_and_guests_come_in() {
        let (address, _connections, _closing, mut incoming) = port().await;
        let told = say(address, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(told.starts_with("HTTP/1.1 400 ") && told.ends_with(NOT_HTTP1), "{told}");
        assert_eq!(say(address, b"\x16\x03\x01\x02\x00").await, "");
        assert_eq!(say(address, &[0xff; 4096]).await, "");
        drop(TcpStream::connect(address).await.expect("it listens"));

        let mut guest = TcpStream::connect(address).await.expect("it listens");
        guest.write_all(&PREFACE[..5]).await.expect("it accepts");
        let mut connection = incoming.next().await.expect("open").expect("accepted");
        let mut words = [0; 5];
        connection.read_exact(&mut words).await.expect("nothing was taken away");
        assert_eq!(words, PREFACE[..5]);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_has_an_end() {
        let (address, _connections, _closing, _incoming) = port().await;
        assert_eq!(say(address, b"").await, "");
    }

    #[tokio::test]
    async fn connections_can_be_broken_off_and_the_port_closes() {
        let (address, connections, closing, mut incoming) = port().await;
        let mut guest = TcpStream::connect(address).await.expect("it listens");
        guest.write_all(PREFACE).await.expect("it accepts");
        let mut connection = incoming.next().await.expect("open").expect("accepted");
        let mut preface = [0; PREFACE.len()];
        connection.read_exact(&mut preface).await.expect("the preface");
        let reading = runtime::spawn(async move { connection.read(&mut [0; 1]).await });
        tokio::task::yield_now().await;
        connections.abort();
        let error = reading.await.expect("no panic").expect_err("broken off");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert!(connections.open.lock().switches.is_empty());

        closing.cancel();
        assert!(incoming.next().await.is_none());
        assert!(TcpStream::connect(address).await.is_err());
    }
}
