//! Probes: numbered UDP datagrams between the namespaces, which prove what passes, in which order and how fast.
//!
//! A socket belongs to the namespace in which it was made, for ever, so each is made once by a thread that enters the
//! namespace for that, and used from anywhere afterwards.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tokio::sync::Mutex;

use super::{Port, address, enter};

const PORT: u16 = 7999;

/// How probes arrived.
#[derive(Clone, Debug, Default)]
pub struct Passed {
    /// How many.
    pub count: u32,
    /// How many came after one that was sent later.
    pub overtaken: u32,
    /// How long each took.
    pub took: Vec<Duration>,
}

impl Passed {
    /// The middle one of the times taken.
    pub fn median(&self) -> Duration {
        let mut took = self.took.clone();
        took.sort();
        took.get(took.len() / 2).copied().unwrap_or_default()
    }
}

pub(super) struct Probes {
    sockets: BTreeMap<Port, Arc<UdpSocket>>,
    series: AtomicU64,
    /// Probes of one receiver are not mixed with those of another question.
    asking: Mutex<()>,
}

impl Probes {
    pub(super) fn between(ports: impl Iterator<Item = (Port, PathBuf)>) -> Result<Probes> {
        let mut sockets = BTreeMap::new();
        for (port, space) in ports {
            let made = std::thread::spawn(move || -> Result<UdpSocket> {
                enter(&space)?;
                UdpSocket::bind((address(port), PORT)).context("a socket for probes")
            });
            let socket = made.join().map_err(|_| anyhow!("the thread that makes a socket panicked"))??;
            sockets.insert(port, Arc::new(socket));
        }
        Ok(Probes { sockets, series: AtomicU64::new(1), asking: Mutex::new(()) })
    }

    /// The ports that can send and receive, the clients' last.
    pub(super) fn ports(&self) -> impl Iterator<Item = Port> + use<'_> {
        self.sockets.keys().copied()
    }

    /// Sends `count` datagrams and waits for the last of them this long after it was sent.
    pub(super) async fn send(&self, from: Port, to: Port, count: u32, within: Duration) -> Result<Passed> {
        let _alone = self.asking.lock().await;
        let socket = |port| self.sockets.get(&port).cloned().with_context(|| format!("no port {port}"));
        let (sender, receiver) = (socket(from)?, socket(to)?);
        let series = self.series.fetch_add(1, Ordering::Relaxed);
        tokio::task::spawn_blocking(move || probe(&sender, &receiver, to, series, count, within)).await?
    }
}

fn probe(
    sender: &UdpSocket,
    receiver: &UdpSocket,
    to: Port,
    series: u64,
    count: u32,
    within: Duration,
) -> Result<Passed> {
    let mut sent = Vec::new();
    for number in 0..count {
        sent.push(Instant::now());
        let mut text = series.to_be_bytes().to_vec();
        text.extend(number.to_be_bytes());
        // A full queue of packets to an unknown neighbour is a loss like any other.
        let _ = sender.send_to(&text, SocketAddr::from((address(to), PORT)));
    }
    let until = Instant::now() + within;
    let mut passed = Passed::default();
    let (mut buffer, mut newest) = ([0_u8; 64], None);
    while passed.count < count {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        receiver.set_read_timeout(Some(left))?;
        let Ok(length) = receiver.recv(&mut buffer) else { break };
        let (Ok(its), Some(number)) = (<[u8; 8]>::try_from(&buffer[..8]), buffer.get(8..12)) else { continue };
        if length != 12 || u64::from_be_bytes(its) != series {
            continue; // late, from an earlier question
        }
        let number = u32::from_be_bytes(number.try_into().expect("four bytes"));
        let Some(sent) = sent.get(number as usize) else { continue };
        passed.count += 1;
        passed.took.push(sent.elapsed());
        passed.overtaken += u32::from(newest.is_some_and(|newest| newest > number));
        newest = newest.max(Some(number));
    }
    Ok(passed)
}
