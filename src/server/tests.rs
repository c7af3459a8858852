//! Nodes in this process, over real sockets and on real disks.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tonic::transport::Channel;

use super::{Config, Error, Listeners, Running, start, start_on};
use crate::runtime::{Clock, sleep};
use crate::types::NodeId;
use crate::wire::proto::v1::{self, kv_client::KvClient, table_client::TableClient};

const READY_TIMEOUT: Duration = Duration::from_secs(20);

fn config(id: u64, data: &Path) -> Config {
    let any = || "127.0.0.1:0".to_owned();
    Config { id: NodeId(id), data: data.into(), listen: any(), advertise: any(), http: any(), ..Config::default() }
}

/// Starts the founders of a cluster, one directory each.
async fn founders(directories: &[TempDir]) -> Vec<Running> {
    let mut bound = Vec::new();
    for (at, directory) in directories.iter().enumerate() {
        let config = config(at as u64 + 1, directory.path());
        let listeners = Listeners::bind(&config).await.expect("two ports");
        bound.push((config, listeners));
    }
    let address = |(config, listeners): &(Config, Listeners)| {
        format!("{}={}", config.id.0, listeners.grpc_addr().expect("bound"))
    };
    let found: Vec<String> = bound.iter().map(address).collect();
    let mut running = Vec::new();
    for (mut config, listeners) in bound {
        config.found.clone_from(&found);
        running.push(start_on(config, listeners).await.expect("it starts"));
    }
    for node in &running {
        until_ready(node).await;
    }
    running
}

async fn until_ready(running: &Running) {
    let clock = Clock::system();
    let deadline = clock.now() + READY_TIMEOUT;
    while !running.ready().pass() {
        assert!(clock.now() < deadline, "not ready: {:?}", running.ready().run());
        sleep(Duration::from_millis(20)).await;
    }
}

fn directories(count: usize) -> Vec<TempDir> {
    (0..count).map(|_| TempDir::new().expect("a directory")).collect()
}

async fn channel(running: &Running) -> Channel {
    let address = format!("http://{}", running.grpc_addr());
    Channel::from_shared(address).expect("an address").connect().await.expect("it accepts")
}

async fn create(running: &Running, name: &str) {
    let table = v1::CreateTableRequest {
        name: name.into(),
        partitioning: v1::Partitioning::Hash.into(),
        shards: 2,
        ..Default::default()
    };
    TableClient::new(channel(running).await).create(table).await.expect("created");
}

fn put(key: &str, value: &str) -> v1::PutRequest {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    v1::PutRequest { table: "t".into(), key, value, ..Default::default() }
}

fn get(key: &str) -> v1::GetRequest {
    v1::GetRequest { table: "t".into(), key: key.to_owned().into(), level: None }
}

async fn value(running: &Running, key: &str) -> Option<String> {
    let answer = KvClient::new(channel(running).await).get(get(key)).await.expect("an answer").into_inner();
    answer.found.map(|found| String::from_utf8_lossy(&found.value).into_owned())
}

/// Why a node did not start; none if it did.
async fn refusal(config: Config) -> Option<(u8, String)> {
    match start(config).await {
        Ok(running) => {
            running.stop().await;
            None
        }
        Err(error) => Some((error.exit_code(), error.to_string())),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_stops_in_order_and_comes_back_with_its_data() {
    let directories = directories(1);
    let running = founders(&directories).await.remove(0);
    create(&running, "t").await;
    let mut kv = KvClient::new(channel(&running).await);
    assert!(kv.put(put("k", "v")).await.expect("an answer").into_inner().applied);
    running.stop().await;

    // Neither list is needed any more, and the storage was let go of.
    let again = start(config(1, directories[0].path())).await.expect("it comes back");
    until_ready(&again).await;
    assert_eq!(value(&again, "k").await.as_deref(), Some("v"));
    again.stop().await;

    let (code, why) = refusal(config(2, directories[0].path())).await.expect("another node's directory");
    assert_eq!(code, 1);
    assert!(why.contains("belongs to node 1"), "{why}");
    assert!(!why.contains('\n'), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_a_node_from_starting_is_said_precisely() {
    let directories = directories(2);
    let (code, why) = refusal(config(1, directories[1].path())).await.expect("nothing says what it belongs to");
    assert_eq!(code, 2);
    assert!(why.contains("--found") && why.contains("--join"), "{why}");

    let running = founders(&directories[..1]).await.remove(0);
    let (code, why) = refusal(config(1, directories[0].path())).await.expect("the directory is in use");
    assert_eq!(code, 1);
    assert!(why.contains("in use by another process"), "{why}");

    let taken = Config { listen: running.grpc_addr().to_string(), ..config(2, directories[1].path()) };
    let (code, why) = refusal(taken).await.expect("the port is in use");
    assert_eq!(code, 1);
    let expected = format!("cannot serve gRPC at {}: the port is in use", running.grpc_addr());
    assert!(why.starts_with(&expected), "{why}");
    running.stop().await;

    let file = directories[1].path().join("file");
    std::fs::write(&file, "not a directory").expect("written");
    let error =
        start(Config { join: vec!["127.0.0.1:1".into()], ..config(1, &file) }).await.err().expect("no directory");
    assert!(matches!(error, Error::System { .. }) && error.exit_code() == 1, "{error}");
    assert!(error.to_string().starts_with(&format!("the data directory {} cannot be made", file.display())), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_hands_over_and_the_others_go_on() {
    let directories = directories(3);
    let mut nodes = founders(&directories).await;
    create(&nodes[0], "t").await;
    for (at, node) in nodes.iter().enumerate() {
        let mut kv = KvClient::new(channel(node).await);
        let key = format!("k{at}");
        assert!(kv.put(put(&key, &key)).await.expect("any node takes any key").into_inner().applied);
    }
    let leader = nodes[0].node().system_leader().expect("ready nodes know a leader");
    let at = nodes.iter().position(|node| node.node().id() == leader).expect("one of them");
    nodes.remove(at).stop().await;
    for node in &nodes {
        for key in ["k0", "k1", "k2"] {
            assert_eq!(value(node, key).await.as_deref(), Some(key));
        }
    }
    futures::future::join_all(nodes.into_iter().map(Running::stop)).await;
}
