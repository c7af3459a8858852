//! A cluster of real processes, and the harm that can be done to it.

mod node;
mod requests;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use trivet::wire::proto::v1::cluster_client::ClusterClient;
use trivet::wire::proto::v1::kv_client::KvClient;
use trivet::wire::proto::v1::table_client::TableClient;
use trivet::wire::proto::v1::{
    ChecksumRequest, ChecksumResponse, CreateTableRequest, DescribeTableRequest, Partitioning, ShardInfo,
    StatusRequest, TransferLeaderRequest,
};

pub use node::{Entry, Node};
pub use requests::*;

/// Within this a cluster must be healthy after anything a test does to it, on a slow and busy machine.
pub const HEALTHY_WITHIN: Duration = Duration::from_secs(60);
/// Bound on one command line run.
const COMMAND_WITHIN: Duration = Duration::from_secs(120);
/// Messages as large as the server may send (a page of a scan and its envelope).
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// How often a test repeats its fault: `short`, or `short × TRIVET_ROUNDS`.
pub fn rounds(short: u32) -> u32 {
    let factor = std::env::var("TRIVET_ROUNDS").map_or(1, |text| text.parse().expect("TRIVET_ROUNDS is a number"));
    short * factor
}

/// What a finished command said.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Finished {
    /// The standard output of a command that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "out: {}\nerr: {}", self.out, self.err);
        self.out
    }

    /// The standard output of a command that must have succeeded, as JSON.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in: {text}"))
    }

    /// What it printed as JSON, whatever its exit code.
    pub fn json_whatever(self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.said()))
    }

    /// Everything it said, for a search.
    pub fn said(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

/// A cluster of processes in a directory of its own.
pub struct Cluster {
    root: Option<TempDir>,
    nodes: BTreeMap<u64, Node>,
}

impl Cluster {
    /// Founds a cluster of `count` nodes and waits until it is healthy.
    pub async fn of(count: u64) -> Cluster {
        let mut cluster = Cluster::unstarted(count);
        for id in cluster.ids() {
            cluster.start(id);
        }
        cluster.healthy().await;
        cluster
    }

    /// The same with a hash table `t` of eight shards.
    pub async fn with_table(count: u64) -> Cluster {
        let cluster = Cluster::of(count).await;
        cluster.create_hash_table("t", 8).await;
        cluster
    }

    /// Founding nodes, not started yet.
    pub fn unstarted(count: u64) -> Cluster {
        let root = TempDir::with_prefix("trivet-").expect("a temporary directory");
        let nodes: BTreeMap<u64, Node> =
            (1..=count).map(|id| (id, Node::new(id, root.path().join(format!("node{id}"))))).collect();
        let peers = nodes.values().map(|node| format!("{}={}", node.id, node.address())).collect::<Vec<_>>().join(",");
        let mut cluster = Cluster { root: Some(root), nodes };
        for node in cluster.nodes.values_mut() {
            node.entry = Entry::Founder(peers.clone());
        }
        cluster
    }

    /// The directory everything of this cluster lies in.
    pub fn root(&self) -> &Path {
        self.root.as_ref().expect("kept until dropped").path()
    }

    pub fn ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    pub fn node(&self, id: u64) -> &Node {
        &self.nodes[&id]
    }

    pub fn node_mut(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node of this cluster")
    }

    /// A new node that joins; not started yet.
    pub fn newcomer(&mut self, id: u64) -> &mut Node {
        let mut node = Node::new(id, self.root().join(format!("node{id}")));
        node.entry = Entry::Join(self.addresses());
        self.nodes.entry(id).or_insert(node)
    }

    fn addresses(&self) -> String {
        self.nodes.values().map(Node::address).collect::<Vec<_>>().join(",")
    }

    /// What a client is given.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.values().map(Node::address).collect()
    }

    pub fn start(&mut self, id: u64) {
        self.node_mut(id).start();
    }

    /// kill -9.
    pub fn kill(&mut self, id: u64) {
        self.node_mut(id).kill();
    }

    /// kill -9, then start at once.
    pub fn crash(&mut self, id: u64) {
        self.kill(id);
        self.start(id);
    }

    /// SIGTERM; returns the exit code.
    pub fn stop(&mut self, id: u64) -> i32 {
        self.node_mut(id).stop()
    }

    /// SIGSTOP: the process stands still, its connections stay.
    pub fn pause(&self, id: u64) {
        self.node(id).pause();
    }

    /// SIGCONT.
    pub fn resume(&self, id: u64) {
        self.node(id).resume();
    }

    /// Kills the node, removes all its data, and lets it join again as if the disk had been replaced.
    pub fn wipe(&mut self, id: u64) {
        let others: Vec<String> = self.nodes.values().filter(|node| node.id != id).map(Node::address).collect();
        let node = self.node_mut(id);
        node.kill();
        std::fs::remove_dir_all(&node.directory).expect("the data directory can be removed");
        node.entry = Entry::Join(others.join(","));
    }

    /// Waits until every node that runs says that the cluster is healthy, and sees every node that runs as alive.
    pub async fn healthy(&self) {
        let deadline = Instant::now() + HEALTHY_WITHIN;
        let mut problem = String::new();
        while Instant::now() < deadline {
            match self.unhealthy().await {
                None => return,
                Some(found) => problem = found,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("not healthy within {HEALTHY_WITHIN:?}: {problem}");
    }

    /// What stands in the way of health, by the first node that sees something.
    pub async fn unhealthy(&self) -> Option<String> {
        let running: Vec<u64> = self.nodes.values().filter(|node| node.is_running()).map(|node| node.id).collect();
        if running.is_empty() {
            return Some("no node runs".to_owned());
        }
        for &id in &running {
            match self.cluster(id).status(StatusRequest {}).await {
                Err(status) => return Some(format!("node {id}: {status}")),
                Ok(answer) => {
                    let answer = answer.into_inner();
                    let alive = answer.nodes.iter().filter(|node| node.alive).count();
                    if !answer.healthy || alive < running.len() {
                        return Some(format!("node {id} sees {alive} nodes alive: {:?}", answer.problems));
                    }
                }
            }
        }
        None
    }

    fn channel(&self, id: u64) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.node(id).address()))
            .expect("an address")
            .connect_timeout(Duration::from_secs(2))
            .timeout(Duration::from_secs(15))
            .connect_lazy()
    }

    /// Bare gRPC to one node: data.
    pub fn kv(&self, id: u64) -> KvClient<Channel> {
        KvClient::new(self.channel(id))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Bare gRPC to one node: the cluster.
    pub fn cluster(&self, id: u64) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel(id))
    }

    /// Bare gRPC to one node: tables.
    pub fn tables(&self, id: u64) -> TableClient<Channel> {
        TableClient::new(self.channel(id))
    }

    /// A channel to one node, for calls that no generated client would make.
    pub fn bare(&self, id: u64) -> Channel {
        self.channel(id)
    }

    /// The sum of a metric of one node over all its labels; 0 if it was never counted.
    pub async fn metric(&self, id: u64, name: &str) -> f64 {
        let (_, text) = http(self.node(id).http, "/metrics").await;
        let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        text.lines().filter(of_name).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Any node that runs.
    pub fn some_node(&self) -> u64 {
        self.nodes.values().find(|node| node.is_running()).expect("some node runs").id
    }

    pub async fn create_hash_table(&self, name: &str, shards: u32) {
        let request = CreateTableRequest {
            name: name.to_owned(),
            partitioning: Partitioning::Hash as i32,
            shards,
            ..CreateTableRequest::default()
        };
        self.tables(self.some_node()).create(request).await.expect("the table is created");
    }

    pub async fn shards(&self, table: &str) -> Vec<ShardInfo> {
        let request = DescribeTableRequest { name: table.to_owned() };
        // The catalog's leader says which table has the name, and there may be none for a moment.
        let describe = || async { self.tables(self.some_node()).describe(request.clone()).await };
        eventually("the table is there", describe).await.into_inner().shards
    }

    /// The node that leads the shard of a key, and the shard. Asks until a leader answers.
    pub async fn leader(&self, table: &str, key: &str) -> (u64, u64) {
        let header = eventually("a leader answers", || async {
            let answer = self.kv(self.some_node()).get(get(table, key)).await?.into_inner();
            Ok::<_, tonic::Status>(answer.header.expect("every answer has a header"))
        })
        .await;
        (header.node, header.shard)
    }

    /// Hands the leadership of a shard to another node and waits until that node leads it.
    pub async fn transfer(&self, table: &str, key: &str, to_node: u64) {
        let (_, shard) = self.leader(table, key).await;
        eventually("the leadership is handed over", || async {
            self.cluster(self.some_node()).transfer_leader(TransferLeaderRequest { shard, to_node }).await?;
            match self.leader(table, key).await.0 {
                node if node == to_node => Ok(()),
                node => Err(tonic::Status::unavailable(format!("node {node} still leads"))),
            }
        })
        .await;
    }

    /// Every shard of the table has the same content on all its replicas, at one applied position.
    pub async fn checksums_equal(&self, table: &str) -> Vec<ChecksumResponse> {
        let mut answers = Vec::new();
        for shard in self.shards(table).await {
            let answer = eventually("all replicas give equal checksums", || async {
                let request = ChecksumRequest { shard: shard.id };
                let answer = self.cluster(self.some_node()).checksum(request).await?.into_inner();
                let whole = answer.replicas.iter().all(|replica| replica.failure.is_none());
                if answer.equal && whole && answer.replicas.len() >= shard.replicas.len() {
                    Ok(answer)
                } else {
                    Err(tonic::Status::unavailable(format!("{answer:?}")))
                }
            })
            .await;
            answers.push(answer);
        }
        answers
    }

    /// Runs the command line against this cluster.
    pub fn trivet(&self, arguments: &[&str]) -> Finished {
        let mut command = binary();
        command.args(arguments).env("TRIVET_ENDPOINTS", self.addresses());
        finish(&mut command)
    }

    /// Starts the command line against this cluster and returns at once.
    pub fn spawn(&self, arguments: &[&str]) -> std::process::Child {
        let mut command = binary();
        command.args(arguments).env("TRIVET_ENDPOINTS", self.addresses());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("trivet starts")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in self.nodes.values() {
                eprintln!("node {} ({}), the end of its log:\n{}", node.id, node.state(), node.log_tail(25));
            }
        }
        self.nodes.clear();
        if std::thread::panicking()
            && let Some(root) = self.root.take()
        {
            eprintln!("kept: {}", root.keep().display());
        }
    }
}

/// The binary that is tested: that of the variable TRIVET_BINARY, or else the one that was built along with the tests.
pub fn binary_path() -> PathBuf {
    std::env::var_os("TRIVET_BINARY").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_trivet")), PathBuf::from)
}

/// That binary, without the caller's settings.
pub fn binary() -> Command {
    let mut command = Command::new(binary_path());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TRIVET_")) {
        command.env_remove(name);
    }
    command
}

/// Runs a command to its end; panics if it takes for ever.
pub fn finish(command: &mut Command) -> Finished {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    wait(child, COMMAND_WITHIN)
}

/// Waits for a process; kills it and panics if it takes longer than this.
pub fn wait(child: std::process::Child, within: Duration) -> Finished {
    let pid = rustix::process::Pid::from_child(&child);
    tokio::task::block_in_place(|| {
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || send.send(child.wait_with_output()));
        match receive.recv_timeout(within) {
            Ok(output) => {
                let output = output.expect("the process can be waited for");
                Finished {
                    code: output.status.code().unwrap_or(-1),
                    out: String::from_utf8_lossy(&output.stdout).into_owned(),
                    err: String::from_utf8_lossy(&output.stderr).into_owned(),
                }
            }
            Err(_) => {
                // Its own pid, not yet reaped, so no other process can have it.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                panic!("still running after {within:?}");
            }
        }
    })
}

/// Repeats an attempt until it succeeds; panics with the last error when it has not within [`HEALTHY_WITHIN`].
pub async fn eventually<T, E, F>(what: &str, mut attempt: impl FnMut() -> F) -> T
where
    E: std::fmt::Debug,
    F: Future<Output = Result<T, E>>,
{
    let deadline = Instant::now() + HEALTHY_WITHIN;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) if Instant::now() > deadline => panic!("not within {HEALTHY_WITHIN:?}: {what}: {error:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// The status and body of a GET.
pub async fn http(port: u16, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the HTTP port is open");
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {answer}"));
    let status =
        head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no status in {head}"));
    (status, body.to_owned())
}
