//! The script of docs/python: a client that knows no routing and no generated code, against every node.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Cluster, finish};

#[tokio::test(flavor = "multi_thread")]
async fn a_reflecting_script_puts_and_gets_against_every_node() {
    let Some(python) = python_with_grpc() else {
        println!("skipped: the Python client (pip cannot install grpcio here)");
        return;
    };
    let cluster = Cluster::with_table(3).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/python/reflect.py");
    let run = |node: u64, arguments: &[&str]| {
        finish(Command::new(&python).arg(&script).arg(cluster.node(node).address()).args(arguments))
    };
    for through in cluster.ids() {
        // A key that another node leads, so that the node asked has to forward.
        let key = format!("greeting-{through}");
        cluster.trivet(&["put", "t", &key, "placeholder"]).ok();
        let away = through % 3 + 1;
        cluster.transfer("t", &key, away).await;
        assert_ne!(cluster.leader("t", &key).await.0, through);

        let value = format!("hello from {through}");
        run(through, &["put", "t", &key, &value]).ok();
        for node in cluster.ids() {
            assert_eq!(run(node, &["get", "t", &key]).ok().trim(), value, "asked of node {node}");
        }
    }
    let missing = run(1, &["get", "no-such-table", "k"]);
    assert_eq!(missing.code, 1);
    assert!(missing.err.contains("UNKNOWN_TABLE"), "{missing:?}");
}

/// A Python with grpcio, made once per target directory; none if that cannot be.
fn python_with_grpc() -> Option<PathBuf> {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    let python = venv.join("bin/python");
    let works = || finish(Command::new(&python).args(["-c", "import grpc, grpc_reflection, google.rpc"])).code == 0;
    if python.exists() && works() {
        return Some(python);
    }
    let made = Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&venv)
        .status()
        .is_ok_and(|status| status.success());
    if !made {
        return None;
    }
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/python/requirements.txt");
    let installed = finish(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
            .arg(requirements),
    );
    if installed.code != 0 {
        eprintln!("{}", installed.err);
        return None;
    }
    works().then_some(python)
}
