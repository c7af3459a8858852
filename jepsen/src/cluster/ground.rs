//! The ground that clusters stand on: what this machine offers, and what nodes are given on it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};

use super::node::Fixed;
use super::record::Record;
use crate::disk::image::Image;
use crate::disk::shim::{self, Shim};
use crate::net::proxy::Proxy;
use crate::net::{self, Net};

/// Ports on loopback are drawn from here: below those that the kernel gives to outgoing connections.
const LOOPBACK_PORTS: std::ops::Range<u16> = 20_000..32_000;

/// What the nodes of a run are given beyond the plain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// Namespaces and the rights over them.
    pub network: bool,
    /// A file system of its own for each node.
    pub disk: bool,
    /// The shim that makes calls fail and clocks wrong.
    pub shim: bool,
    /// Proxies before the nodes.
    pub proxies: bool,
}

impl Wants {
    /// What one of the two wants.
    pub fn and(self, other: Wants) -> Wants {
        Wants {
            network: self.network || other.network,
            disk: self.disk || other.disk,
            shim: self.shim || other.shim,
            proxies: self.proxies || other.proxies,
        }
    }
}

/// What this machine offers.
pub struct Ground {
    /// The binary under test.
    pub binary: PathBuf,
    /// How many nodes a cluster may have.
    pub count: u64,
    /// Everything that is made here.
    pub record: Arc<Record>,
    /// The namespaces; with root only.
    pub net: Option<Net>,
    shim: Option<PathBuf>,
    clusters: AtomicU64,
}

impl Ground {
    /// Looks at the machine and makes the namespaces. To be called before any thread is started: the calling thread,
    /// and so all later ones, end up in the clients' namespace.
    pub fn prepare(binary: PathBuf, count: u64) -> Result<Ground> {
        let record = Arc::new(Record::begin()?);
        let root = rustix::process::geteuid().is_root();
        let net = if root { Some(Net::up(&record, count)?) } else { None };
        let shim = shim::compile(&record.directory).ok();
        Ok(Ground { binary, count, record, net, shim, clusters: AtomicU64::new(0) })
    }

    /// What of these wants this machine cannot give, in words.
    pub fn lacks(&self, wants: Wants) -> Option<&'static str> {
        let root = self.net.is_some();
        match () {
            () if wants.network && !root => Some("network namespaces need root"),
            () if wants.disk && !root => Some("file systems of their own need root"),
            () if wants.shim && self.shim.is_none() => Some("the shim could not be compiled (package gcc)"),
            () => None,
        }
    }

    /// Places, disks and proxies for so many nodes of a new cluster.
    pub(super) async fn nodes(&self, count: u64, wants: Wants, logs: &Path) -> Result<(Vec<Arc<Fixed>>, Vec<Proxy>)> {
        if let Some(lack) = self.lacks(wants) {
            bail!("{lack}");
        }
        ensure!(count <= self.count, "{count} nodes on the ground for {}", self.count);
        let number = self.clusters.fetch_add(1, Ordering::Relaxed);
        let mut proxies = Vec::new();
        let mut nodes = Vec::new();
        for id in 1..=count {
            let name = format!("c{number}n{id}");
            let image = if wants.disk { Some(Image::make(&self.record, &name)?) } else { None };
            // Memory, where there is any: what is tested is not the speed of this machine's disk.
            let below = if self.record.memory.is_dir() { &self.record.memory } else { &self.record.directory };
            let data = image.as_ref().map_or_else(|| below.join(format!("{name}-data")), Image::data);
            std::fs::create_dir_all(&data).with_context(|| format!("{}", data.display()))?;
            let shim = match &self.shim {
                Some(library) if wants.shim => {
                    Some((library.clone(), Shim::new(self.record.directory.join(format!("{name}.shim")))?))
                }
                _ => None,
            };
            let (listen, http) = match &self.net {
                Some(_) => {
                    (SocketAddr::from((net::address(id), net::GRPC)), SocketAddr::from((net::address(id), net::HTTP)))
                }
                None => (free_port()?, free_port()?),
            };
            let mut advertise = listen;
            if wants.proxies {
                // In namespaces the clients are led to the proxy; on loopback everybody is told its address.
                let (on, source) = match &self.net {
                    Some(_) => (SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), Some(net::PROXY_SOURCE)),
                    None => (free_port()?, None),
                };
                let proxy = Proxy::start(on, listen, source).await?;
                if self.net.is_none() {
                    advertise = on;
                }
                proxies.push(proxy);
            }
            nodes.push(Arc::new(Fixed {
                id,
                binary: self.binary.clone(),
                listen,
                advertise,
                http,
                space: self.net.as_ref().map(|net| net.space(id)),
                data,
                image,
                log: logs.join(format!("n{id}.log")),
                shim,
            }));
        }
        if let Some(net) = &self.net {
            let ports: Vec<_> = (1..).zip(proxies.iter().map(|proxy| proxy.port)).collect();
            net.lead_clients(&ports)?;
        }
        Ok((nodes, proxies))
    }
}

/// A loopback port nobody listens on.
fn free_port() -> Result<SocketAddr> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let count = u64::from(LOOPBACK_PORTS.end - LOOPBACK_PORTS.start);
    // Harnesses begin at different places, so that they seldom draw the same port at the same time.
    let begin = u64::from(std::process::id()) * 101;
    for _ in 0..count {
        let offset = (begin + NEXT.fetch_add(1, Ordering::Relaxed)) % count;
        let port = LOOPBACK_PORTS.start + u16::try_from(offset).expect("below the length of the range");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port on loopback")
}
