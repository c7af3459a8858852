//! The README's first command, as a newcomer runs it: cluster/up with the demo, twice, then cluster/down.

use std::path::Path;
use std::process::Command;

use crate::harness::{Finished, finish};

const ORDERS: &str = "69659";

/// Ports apart from those of a cluster that somebody may be running, and below those the kernel draws.
const GRPC_BASE: &str = "17400";
const HTTP_BASE: &str = "17500";

fn script(name: &str, data: &Path, arguments: &[&str]) -> Finished {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster").join(name);
    finish(
        Command::new(path)
            .arg("--data")
            .arg(data)
            .args(arguments)
            .env("TRIVET_BIN", env!("CARGO_BIN_EXE_trivet"))
            .env("CLUSTER_GRPC_BASE", GRPC_BASE)
            .env("CLUSTER_HTTP_BASE", HTTP_BASE),
    )
}

/// Takes the nodes down again, also when the test fails.
struct Down<'a>(&'a Path);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        script("down", self.0, &[]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn up_loads_and_counts_the_demo() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let down = Down(&data);

    let up = script("up", &data, &[]);
    assert_eq!(up.code, 0, "{up:?}");
    assert!(up.err.contains(&format!("trivet scan orders --count: {ORDERS}")), "counted back: {}", up.err);
    assert!(up.out.contains("ord-"), "a sample is printed: {up:?}");

    let again = script("up", &data, &[]);
    assert_eq!(again.code, 0, "{again:?}");
    assert!(again.err.contains("already running"), "{}", again.err);
    assert!(again.err.contains("already loaded"), "{}", again.err);

    let stopped = script("down", &data, &[]);
    assert_eq!(stopped.code, 0, "{stopped:?}");
    assert_eq!(stopped.err.matches(" stopped").count(), 3, "all nodes end by themselves: {}", stopped.err);

    let back = script("up", &data, &[]);
    assert_eq!(back.code, 0, "{back:?}");
    assert!(back.err.contains("already loaded"), "the orders are still there: {}", back.err);

    let wiped = script("down", &data, &["--wipe"]);
    assert_eq!(wiped.code, 0, "{wiped:?}");
    assert!(!data.exists(), "nothing is left");
    drop(down);
    let nonsense = script("up", &data, &["--nodes", "many"]);
    assert_eq!(nonsense.code, 2, "{nonsense:?}");
}
