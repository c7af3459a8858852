//! The README's first command, as a newcomer runs it: cluster/up with the demo, twice, then cluster/down.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

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

/// Resident memory of a node with the demo loaded.
const RESIDENT_BYTES_MAX: u64 = 300 << 20;
/// CPU time of three idle nodes together, in hundredths of a core.
const IDLE_PERCENT_MAX: u64 = 10;
const IDLE_OVER: Duration = Duration::from_secs(10);

/// With the demo loaded and nobody asking, the nodes are small and quiet.
fn frugal(data: &Path) {
    let pids: Vec<String> = (1..=3)
        .map(|n| std::fs::read_to_string(data.join(format!("node{n}/pid"))).expect("a pid file").trim().to_owned())
        .collect();
    for pid in &pids {
        let resident = resident_bytes(pid);
        println!("  node with pid {pid}: {} MiB resident", resident >> 20);
        assert!(resident < RESIDENT_BYTES_MAX, "{resident} bytes resident");
    }
    // What the import left to compact may still be under way.
    std::thread::sleep(Duration::from_secs(5));
    let before: u64 = pids.iter().map(|pid| cpu_ticks(pid)).sum();
    std::thread::sleep(IDLE_OVER);
    let after: u64 = pids.iter().map(|pid| cpu_ticks(pid)).sum();
    // A tick is a hundredth of a second, so ticks per second are hundredths of a core.
    let percent = (after - before) / IDLE_OVER.as_secs();
    println!("  three idle nodes: {percent} % of a core");
    assert!(percent < IDLE_PERCENT_MAX, "three idle nodes use {percent} % of a core");
}

fn resident_bytes(pid: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the node runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line of resident memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("kibibytes") << 10
}

/// CPU time used so far, user and system, in hundredths of a second.
fn cpu_ticks(pid: &str) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the node runs");
    let after_name = stat.rsplit_once(')').expect("a name in parentheses").1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    fields[11].parse::<u64>().expect("user time") + fields[12].parse::<u64>().expect("system time")
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

    frugal(&data);

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
