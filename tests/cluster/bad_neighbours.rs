//! Nodes, directories and settings that do not belong together are kept apart with words, before anything is served.

use std::net::TcpListener;
use std::time::Duration;

use trivet::wire::proto::internal::peer_client::PeerClient;
use trivet::wire::proto::internal::{AskRequest, FrameBatch};
use trivet::wire::proto::v1::TopologyRequest;

use crate::harness::{Cluster, Entry, Finished, Node, binary, finish, refused};

/// A start that was refused: an exit code that is neither success nor a signal, and a sentence with these words.
#[track_caller]
fn refused_start(finished: &Finished, words: &[&str]) {
    assert!(finished.code > 0, "exit code {}: {finished:?}", finished.code);
    let said = finished.said().to_lowercase();
    for word in words {
        assert!(said.contains(&word.to_lowercase()), "{word:?} is not in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_another_cluster_are_refused() {
    let cluster = Cluster::of(3).await;
    let ours = cluster.cluster(1).topology(TopologyRequest {}).await.expect("a topology").into_inner().cluster;
    let mut peer = PeerClient::new(cluster.bare(1));

    let frames = FrameBatch { cluster: ours ^ 1, from_node: 2, to_node: 1, frames: Vec::new() };
    let answer = peer.frames(tokio_stream::once(frames)).await;
    let status = match answer {
        Err(status) => status,
        Ok(stream) => stream.into_inner().message().await.expect_err("refused on the stream"),
    };
    assert_eq!(crate::harness::reason(&status), "WRONG_CLUSTER", "{status:?}");

    let question = AskRequest { cluster: ours ^ 1, from_node: 2, kind: "report".into(), body: "{}".into() };
    refused(peer.ask(question).await, "WRONG_CLUSTER");
    cluster.healthy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_with_the_same_id_is_refused() {
    let mut cluster = Cluster::with_table(3).await;
    let mut twin = Node::new(2, cluster.root().join("twin"));
    twin.entry = Entry::Join(cluster.endpoints().join(","));
    refused_start(&twin.start_refused(), &["NODE_ID_TAKEN"]);
    cluster.healthy().await;
    cluster.trivet(&["put", "t", "k", "v"]).ok();
    // The one it imitated is still itself after a restart.
    cluster.crash(2);
    cluster.healthy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_node_or_cluster_is_refused() {
    let mut cluster = Cluster::of(3).await;
    let mut foreign = Cluster::of(1).await;

    // Still in use by the node it belongs to.
    let mut second = Node::new(2, cluster.node(2).directory.clone());
    second.entry = Entry::Join(cluster.endpoints().join(","));
    refused_start(&second.start_refused(), &["in use"]);

    // Of another node of the same cluster.
    cluster.stop(3);
    let mut wrong_id = Node::new(7, cluster.node(3).directory.clone());
    wrong_id.entry = Entry::Join(cluster.endpoints().join(","));
    refused_start(&wrong_id.start_refused(), &["node 3", "7"]);

    // Of another cluster.
    foreign.stop(1);
    let mut wrong_cluster = Node::new(1, foreign.node(1).directory.clone());
    wrong_cluster.entry = Entry::Join(cluster.endpoints().join(","));
    refused_start(&wrong_cluster.start_refused(), &["cluster"]);

    // Both still good for whom they belong to.
    cluster.start(3);
    cluster.healthy().await;
    foreign.start(1);
    foreign.healthy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_not_ours_is_left_alone() {
    for (file, text) in [("store/db/CURRENT", "MANIFEST-000001\n"), ("store/staging/thesis.txt", "years of work")] {
        let cluster = Cluster::unstarted(1);
        let node = cluster.node(1);
        let path = node.directory.join(file);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        std::fs::write(&path, text).expect("written");
        refused_start(&node.start_refused(), &["not of a store of ours"]);
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_format_is_refused_by_name() {
    let mut cluster = Cluster::of(1).await;
    cluster.stop(1);
    let format = cluster.node(1).directory.join("store/FORMAT");
    std::fs::write(&format, "trivet storage 99\n").expect("written");
    refused_start(&cluster.node(1).start_refused(), &["trivet storage 99"]);
    std::fs::remove_file(&format).expect("removed");
    refused_start(&cluster.node(1).start_refused(), &["FORMAT"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_do_not_exist_are_refused_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("trivet.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).expect("written");
        finish(binary().args(["serve", "--check-config", "--config"]).arg(&file))
    };
    refused_start(&check("id = 1\ncolour = \"red\"\n"), &["colour"]);
    refused_start(&check("id = \"one\"\n"), &["id"]);
    refused_start(&check("id = \n"), &["trivet.toml:1"]);
    let good = format!(
        "id = 1\ndata = \"{}\"\nlisten = \"127.0.0.1:7401\"\nhttp = \"127.0.0.1:7501\"\nfound = [\"1=127.0.0.1:7401\"]\n",
        directory.path().join("node").display()
    );
    check(&good).ok();
    assert!(!directory.path().join("node").exists(), "checking makes nothing");

    let by_environment =
        finish(binary().args(["serve", "--check-config", "--config"]).arg(&file).env("TRIVET_LISTEN", "x"));
    refused_start(&by_environment, &["TRIVET_LISTEN"]);
    refused_start(&finish(binary().args(["serve", "--colour", "red"])), &["--colour"]);
    refused_start(&finish(binary().args(["serve", "--config", "/no/such/file.toml"])), &["/no/such/file.toml"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    let cluster = Cluster::unstarted(1);
    for (name, port) in [("gRPC", cluster.node(1).grpc), ("HTTP", cluster.node(1).http)] {
        let squatter = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
        let mut node = Node::new(1, cluster.root().join(name));
        (node.grpc, node.http) = (cluster.node(1).grpc, cluster.node(1).http);
        node.entry = Entry::Founder(format!("1={}", node.address()));
        refused_start(&node.start_refused(), &["in use", &port.to_string()]);
        drop(squatter);
        // Nothing is left that keeps it from starting once the port is free.
        node.start();
        assert_eq!(node.ended(Duration::from_secs(1)), None, "it serves now:\n{}", node.log_tail(10));
    }
}
