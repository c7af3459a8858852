//! Proxies between the clients and each node, which can swallow answers, break connections or let them hang.
//!
//! A proxy copies bytes both ways. While it swallows, what the node answers is read and thrown away: requests still
//! arrive and take effect, and the client never hears of it. That breaks the byte stream, so the connections concerned
//! are closed when the fault ends, as a client sees it after any broken connection.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Bytes read at a time.
const BUFFER: usize = 64 << 10;

/// What a proxy does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Copies.
    Pass,
    /// Throws the node's answers away.
    Swallow,
    /// Moves nothing in either direction, and keeps the connections.
    Hang,
}

/// The proxy of one node.
pub struct Proxy {
    /// The port on the clients' side.
    pub port: u16,
    state: Arc<State>,
    task: JoinHandle<()>,
}

struct State {
    target: SocketAddr,
    /// The address to speak from, if it matters.
    source: Option<Ipv4Addr>,
    mode: watch::Sender<Mode>,
    /// Raised to break all connections.
    generation: watch::Sender<u64>,
    swallowed: AtomicU64,
    connections: AtomicU64,
}

impl Proxy {
    /// Listens on `listen` (port 0: any) and passes on to `target`.
    pub async fn start(listen: SocketAddr, target: SocketAddr, source: Option<Ipv4Addr>) -> Result<Proxy> {
        let listener = TcpListener::bind(listen).await.with_context(|| format!("a proxy on {listen}"))?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(State {
            target,
            source,
            mode: watch::Sender::new(Mode::Pass),
            generation: watch::Sender::new(0),
            swallowed: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        });
        let serving = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(serving.clone(), client));
            }
        });
        Ok(Proxy { port, state, task })
    }

    /// Does this from now on.
    pub fn set(&self, mode: Mode) {
        self.state.mode.send_replace(mode);
    }

    /// Breaks all connections.
    pub fn reset(&self) {
        self.state.generation.send_modify(|generation| *generation += 1);
    }

    /// Bytes of answers thrown away so far.
    pub fn swallowed(&self) -> u64 {
        self.state.swallowed.load(Ordering::Relaxed)
    }

    /// Connections open now.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.reset();
    }
}

async fn connect(state: &State) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(source) = state.source {
        socket.bind(SocketAddr::from((source, 0)))?;
    }
    socket.connect(state.target).await
}

async fn carry(state: Arc<State>, client: TcpStream) {
    let Ok(node) = connect(&state).await else { return };
    // Small messages go at once, as they would without the proxy.
    let _ = (client.set_nodelay(true), node.set_nodelay(true));
    state.connections.fetch_add(1, Ordering::Relaxed);
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_node, mut to_node) = node.into_split();
    let mut generation = state.generation.subscribe();
    let begun = *generation.borrow_and_update();
    let requests = async {
        let (mut buffer, mut mode) = (vec![0; BUFFER], state.mode.subscribe());
        loop {
            let read = from_client.read(&mut buffer).await?;
            mode.wait_for(|mode| *mode != Mode::Hang).await.map_err(std::io::Error::other)?;
            if read == 0 {
                return to_node.shutdown().await;
            }
            to_node.write_all(&buffer[..read]).await?;
        }
    };
    let answers = async {
        let (mut buffer, mut mode) = (vec![0; BUFFER], state.mode.subscribe());
        loop {
            let read = from_node.read(&mut buffer).await?;
            let now = *mode.wait_for(|mode| *mode != Mode::Hang).await.map_err(std::io::Error::other)?;
            if read == 0 {
                return to_client.shutdown().await;
            }
            if now == Mode::Swallow {
                state.swallowed.fetch_add(read as u64, Ordering::Relaxed);
            } else {
                to_client.write_all(&buffer[..read]).await?;
            }
        }
    };
    tokio::select! {
        _ = async { tokio::try_join!(requests, answers) } => {}
        _ = generation.wait_for(|now| *now > begun) => {}
    }
    state.connections.fetch_sub(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn answers_can_be_swallowed_and_connections_broken() {
        let echo = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let target = echo.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = echo.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let proxy = Proxy::start(any, target, None).await.expect("a proxy");
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.port)).await.expect("connected");
        let mut buffer = [0; 4];
        stream.write_all(b"one.").await.expect("sent");
        stream.read_exact(&mut buffer).await.expect("answered");
        assert_eq!(&buffer, b"one.");

        proxy.set(Mode::Swallow);
        stream.write_all(b"two.").await.expect("sent");
        while proxy.swallowed() < 4 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        proxy.set(Mode::Pass);
        proxy.reset();
        let end = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut buffer)).await.expect("no hang");
        assert!(matches!(end, Ok(0) | Err(_)), "the connection is closed");
    }
}
