//! The README's first command, as a newcomer runs it: cluster/up with the demo, twice, then cluster/down. And the scripts that
//! measure a cluster.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::{Finished, binary_path, finish};

const ORDERS: &str = "69659";

/// Bases for the ports of three nodes, gRPC and HTTP, that nobody listens on: apart from those of a cluster that somebody
/// may be running, of the other tests, and of those the kernel draws.
fn free_bases() -> (u16, u16) {
    const FIRST: u16 = 12_000;
    const TENS: u64 = 600;
    let free = |base: u16| (1..=3).all(|n| TcpListener::bind(("127.0.0.1", base + n)).is_ok());
    loop {
        let base = FIRST + 10 * u16::try_from(trivet::runtime::random_u64() % TENS).expect("below TENS");
        if free(base) && free(base + 5) {
            return (base, base + 5);
        }
    }
}

/// Where a local cluster is made, by the project's own scripts.
struct Local {
    data: PathBuf,
    bases: (u16, u16),
}

impl Local {
    fn script(&self, name: &str, arguments: &[&str]) -> Finished {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster").join(name);
        finish(
            Command::new(path)
                .arg("--data")
                .arg(&self.data)
                .args(arguments)
                .env("TRIVET_BIN", binary_path())
                .env("CLUSTER_GRPC_BASE", self.bases.0.to_string())
                .env("CLUSTER_HTTP_BASE", self.bases.1.to_string())
                // Views are compared with their sources once in ten minutes; it may fall into what is measured, or not.
                .env("CLUSTER_SERVE_ARGUMENTS", "--set views.scrub_percent=0"),
        )
    }
}

/// Takes the nodes down again, also when the test fails.
impl Drop for Local {
    fn drop(&mut self) {
        if self.data.exists() {
            self.script("down", &[]);
        }
    }
}

/// Resident memory of a node with the demo loaded.
const RESIDENT_BYTES_MAX: u64 = 300 << 20;
/// CPU time of three idle nodes together, in hundredths of a core: one task that spins takes more. What they take is a tenth or so,
/// and differs with the machine and its neighbours; that is printed, and measured elsewhere.
const IDLE_PERCENT_MAX: u64 = 60;
const IDLE_OVER: Duration = Duration::from_secs(10);
/// Looked at so often, until they are quiet: what the import left to compact may still be under way.
const IDLE_WINDOWS: usize = 6;

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
    let quiet = (0..IDLE_WINDOWS).any(|_| {
        let before: u64 = pids.iter().map(|pid| cpu_ticks(pid)).sum();
        std::thread::sleep(IDLE_OVER);
        let after: u64 = pids.iter().map(|pid| cpu_ticks(pid)).sum();
        // A tick is a hundredth of a second, so ticks per second are hundredths of a core.
        let percent = (after - before) / IDLE_OVER.as_secs();
        println!("  three idle nodes: {percent} % of a core");
        percent < IDLE_PERCENT_MAX
    });
    assert!(quiet, "three idle nodes use {IDLE_PERCENT_MAX} % of a core or more, {IDLE_WINDOWS} times");
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
    let local = Local { data: directory.path().join("data"), bases: free_bases() };

    let up = local.script("up", &[]);
    assert_eq!(up.code, 0, "{up:?}");
    assert!(up.out.lines().any(|line| line == ORDERS), "counted back: {up:?}");
    assert!(up.out.contains("ord-000024  completed  37.47"), "a user's orders are listed from the view: {up:?}");
    let compared = format!("orders_by_user: {ORDERS} rows in 8 shards, all as its sources say");
    assert!(up.out.contains(&compared), "the view is compared: {up:?}");

    let again = local.script("up", &[]);
    assert_eq!(again.code, 0, "{again:?}");
    assert!(again.err.contains("already running"), "{}", again.err);
    assert!(again.err.contains("already loaded"), "{}", again.err);

    frugal(&local.data);

    let stopped = local.script("down", &[]);
    assert_eq!(stopped.code, 0, "{stopped:?}");
    assert_eq!(stopped.err.matches(" stopped").count(), 3, "all nodes end by themselves: {}", stopped.err);

    let back = local.script("up", &[]);
    assert_eq!(back.code, 0, "{back:?}");
    assert!(back.err.contains("already loaded"), "the orders are still there: {}", back.err);

    let wiped = local.script("down", &["--wipe"]);
    assert_eq!(wiped.code, 0, "{wiped:?}");
    assert!(!local.data.exists(), "nothing is left");
    let nonsense = local.script("up", &["--nodes", "many"]);
    assert_eq!(nonsense.code, 2, "{nonsense:?}");
}

/// Each makes its own cluster on its own ports, and takes it away again. How long anything took is not judged here.
#[tokio::test(flavor = "multi_thread")]
async fn the_scripts_that_measure_print_their_tables() {
    let scripts: [(&str, &[&str], &str, usize); 4] = [
        ("failover", &["--kills", "1", "--shards", "4", "--clients", "4"], "| 1 | 4 | ", 1),
        ("idle", &["--groups", "8", "--seconds", "1"], " | 9 | ", 3),
        ("pauses", &["--times", "1", "--keys", "400", "--rate", "50"], " | 1 | ", 5),
        ("views", &["--rounds", "1", "--seconds", "1", "--orders", "400", "--rows", "2000"], " | 100% |", 1),
    ];
    for (name, arguments, row, rows) in scripts {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster").join(name);
        let said = finish(Command::new(path).args(arguments).env("TRIVET_BIN", binary_path()));
        assert_eq!(said.code, 0, "{name}: {said:?}");
        assert_eq!(said.out.lines().filter(|line| line.contains(row)).count(), rows, "{name}: {said:?}");
        if ["failover", "pauses"].contains(&name) {
            let failed = said.out.lines().skip(2).filter(|line| !line.ends_with(" 0 |")).count();
            assert_eq!(failed, 0, "calls failed: {}", said.out);
        }
    }
}
