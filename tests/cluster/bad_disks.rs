//! Disks that are full, stand still, flip bits or lose their tail: the node notices, says so, and the cluster keeps every promise.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::{Cluster, eventually, get, get_any, http, put, refused};
use crate::load::Load;
use crate::rejoining::{fill, fill_until_trimmed, write_large};

/// Room for a node with little data, and little more.
const SMALL_DISK: &str = "size=384m";

/// What a disk that is nearly full has left: less than half of what is kept free on a disk of this size.
const NEARLY_FULL_BYTES: u64 = 12 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_fills_up_yields_and_no_call_fails() {
    let Some((cluster, disks)) = on_small_disks(&[3]).await else { return };
    cluster.create_hash_table("t", 4).await;
    cluster.create_hash_table("large", 1).await;
    let keys: Vec<String> = (0..8).map(|number| format!("counter-{number}")).collect();
    for key in &keys {
        cluster.transfer("t", key, 3).await;
    }
    let load = Load::start(&cluster, "t", 8).await;
    tokio::time::sleep(Duration::from_secs(1)).await;

    disks[0].fill_but(NEARLY_FULL_BYTES);
    eventually("the node says so and leads nothing any more", || async {
        let (code, text) = http(cluster.node(3).http, "/readyz").await;
        let leads = cluster.metric(3, "trivet_node_leaders").await;
        let room = cluster.metric(3, "trivet_node_disk_room").await;
        let so = code == 503 && text.contains("disk: ") && leads == 0.0 && room == 0.0;
        if so { Ok(()) } else { Err(format!("{code} {text} leads {leads} room {room}")) }
    })
    .await;
    let seen = cluster.unhealthy().await.expect("a disk that is nearly full is a problem");
    assert!(seen.contains("node 3: the disk is nearly full"), "{seen}");
    // The others go on, with more than there is room for on the full disk; the node stays and answers what it can.
    write_large(&cluster, "large").await;
    assert!(cluster.node(3).is_running(), "{}", cluster.node(3).log_tail(40));
    cluster.kv(3).get(get_any("t", "counter-0")).await.expect("reads go on");
    cluster.kv(3).put(put("t", "through-the-full-node", "v")).await.expect("it passes writes on");

    disks[0].free();
    cluster.healthy().await;
    load.finish().await.assert_flawless(200);
    cluster.checksums_equal("t").await;
    cluster.checksums_equal("large").await;
    cluster.transfer("t", "k", 3).await;
    cluster.kv(3).put(put("t", "k", "v")).await.expect("it leads and writes again");
    let log = cluster.node(3).log_tail(1_000);
    assert!(log.contains("there is room on the disk again") && !log.contains("panicked"), "{log}");
}

/// How long a sync takes on a disk that stands still: several times what makes the node yield.
const STANDSTILL: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_stands_still_yields_and_no_call_fails() {
    const SHARDS: u32 = 6;
    let mut cluster = Cluster::unstarted(3);
    let Some(syncs) = Syncs::of_node(&mut cluster, 3) else { return };
    for id in cluster.ids() {
        cluster.start(id);
    }
    cluster.healthy().await;
    cluster.create_hash_table("t", SHARDS).await;
    for number in 0..8 {
        cluster.transfer("t", &format!("counter-{number}"), 3).await;
    }
    let load = Load::start(&cluster, "t", 8).await;
    tokio::time::sleep(Duration::from_secs(1)).await;

    syncs.take(STANDSTILL);
    eventually("the node says so and others lead everything", || async {
        let (code, text) = http(cluster.node(3).http, "/readyz").await;
        let led = cluster.metric(1, "trivet_node_leaders").await + cluster.metric(2, "trivet_node_leaders").await;
        let so = code == 503 && text.contains("the disk stands still") && led == f64::from(SHARDS + 1);
        if so { Ok(()) } else { Err(format!("{code} {text} the others lead {led}")) }
    })
    .await;
    for number in 0..16 {
        cluster.trivet(&["put", "t", &format!("meanwhile-{number}"), "v"]).ok();
    }
    assert!(cluster.node(3).is_running(), "{}", cluster.node(3).log_tail(40));

    syncs.take(Duration::ZERO);
    cluster.healthy().await;
    load.finish().await.assert_flawless(200);
    cluster.checksums_equal("t").await;
    cluster.transfer("t", "k", 3).await;
    cluster.kv(3).put(put("t", "k", "v")).await.expect("it leads and writes again");
    let log = cluster.node(3).log_tail(1_000);
    assert!(log.contains("the disk answers again") && !log.contains("panicked"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_all_disks_full_writes_are_refused_and_reads_go_on() {
    let Some((cluster, disks)) = on_small_disks(&[1, 2, 3]).await else { return };
    cluster.create_hash_table("t", 4).await;
    cluster.create_hash_table("spare", 1).await;
    fill(&cluster, "t", 200).await;

    for disk in &disks {
        disk.fill_but(NEARLY_FULL_BYTES);
    }
    eventually("all have noticed", || async {
        let mut noticed = 0;
        for id in cluster.ids() {
            noticed += u32::from(cluster.metric(id, "trivet_node_disk_room").await == 0.0);
        }
        if noticed == 3 { Ok(()) } else { Err(noticed) }
    })
    .await;
    for id in cluster.ids() {
        refused(cluster.kv(id).put(put("t", "row-000000", "new")).await, "DISK_FULL");
        let answer = cluster.kv(id).get(get("t", "row-000000")).await.expect("linearizable reads go on").into_inner();
        assert_eq!(answer.found.expect("it is there").value, vec![b'x'; 1_024]);
    }
    let told = cluster.trivet(&["put", "t", "row-000000", "new"]);
    assert_eq!(told.code, 4, "{told:?}");
    assert!(told.said().contains("make room") || told.said().contains("have room"), "{told:?}");
    // How room is made.
    cluster.trivet(&["table", "drop", "spare", "--yes"]).ok();

    for disk in &disks {
        disk.free();
    }
    cluster.healthy().await;
    for id in cluster.ids() {
        cluster.kv(id).put(put("t", format!("after-{id}"), "v")).await.expect("writes go on");
        assert!(cluster.node(id).is_running());
    }
    let rows = cluster.trivet(&["scan", "t", "--count"]).ok();
    assert!(rows.contains("203"), "{rows}");
    cluster.checksums_equal("t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing() {
    let Some((mut cluster, disks)) = on_small_disks(&[3]).await else { return };
    let disk = &disks[0];
    cluster.create_hash_table("t", 8).await;
    cluster.create_hash_table("large", 1).await;
    let load = Load::start(&cluster, "t", 8).await;
    tokio::time::sleep(Duration::from_secs(1)).await;

    disk.fill();
    // The others go on, with more than the files made in advance on the full disk can take.
    write_large(&cluster, "large").await;
    disk.free();
    if cluster.node_mut(3).ended(Duration::from_secs(1)).is_some() {
        cluster.start(3);
    }
    let log = cluster.node(3).log_tail(400);
    assert!(log.contains("No space left") || log.contains("disk is full"), "the full disk went unnoticed: {log}");
    assert!(!log.contains("panicked"), "{log}");
    cluster.healthy().await;
    load.finish().await.assert_flawless(200);
    cluster.checksums_equal("t").await;
    cluster.checksums_equal("large").await;
    cluster.kill(3);
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_in_a_table_file_are_found_and_never_served() {
    let mut cluster = Cluster::of(3).await;
    cluster.create_hash_table("t", 1).await;
    fill(&cluster, "t", 200).await;
    fill_until_trimmed(&cluster, "t").await;
    // A replica that came by snapshot has its data in table files.
    cluster.wipe(3);
    cluster.start(3);
    cluster.healthy().await;
    cluster.checksums_equal("t").await;
    cluster.stop(3);
    let files = cluster.node(3).files("sst");
    assert!(!files.is_empty(), "no table files to damage");
    for file in &files {
        flip_bits(file, 0.3);
    }
    cluster.start(3);
    if let Some(code) = cluster.node_mut(3).ended(Duration::from_secs(10)) {
        assert!(code > 0, "refused with an exit code");
        says_corrupt(&cluster);
    } else {
        let mut refusals = 0;
        for number in 0..200 {
            let key = format!("row-{number:06}");
            match cluster.kv(3).get(get_any("t", &key)).await {
                Ok(answer) => {
                    let found = answer.into_inner().found.map(|found| found.value);
                    assert_eq!(found.as_deref(), Some(vec![b'x'; 1_024].as_slice()), "{key}: damaged data was served");
                }
                Err(_) => refusals += 1,
            }
        }
        let equal = cluster.trivet(&["shard", "checksum", &cluster.shards("t").await[0].id.to_string()]);
        assert!(refusals > 0 || equal.code != 0, "the damage went unnoticed");
        cluster.kill(3);
    }
    heals_after_a_wipe(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_lost_its_synced_tail_is_refused() {
    let mut cluster = Cluster::with_table(3).await;
    fill(&cluster, "t", 400).await;
    cluster.kill(3);
    let newest = newest_wal(&cluster);
    flip_bits(&newest, 0.3);
    cluster.start(3);
    let code = cluster.node_mut(3).ended(Duration::from_secs(10)).expect("a node whose log shrank does not serve");
    assert!(code > 0);
    says_corrupt(&cluster);
    // The others never missed it.
    cluster.trivet(&["put", "t", "k", "v"]).ok();
    heals_after_a_wipe(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_copy_of_a_data_directory_is_refused() {
    let mut cluster = Cluster::with_table(3).await;
    fill(&cluster, "t", 50).await;
    cluster.kill(3);
    let directory = cluster.node(3).directory.clone();
    let copy = cluster.root().join("copy");
    copy_directory(&directory, &copy);
    // It goes on for a while, and acknowledges what the copy has never seen.
    cluster.start(3);
    cluster.healthy().await;
    fill(&cluster, "t", 50).await;
    cluster.kill(3);
    std::fs::remove_dir_all(&directory).expect("removed");
    copy_directory(&copy, &directory);
    cluster.start(3);
    let code = cluster.node_mut(3).ended(Duration::from_secs(10)).expect("a node with an old copy does not serve");
    assert!(code > 0);
    let said = cluster.node(3).log_tail(20);
    assert!(said.contains("old copy"), "{said}");
    heals_after_a_wipe(&mut cluster).await;
}

fn copy_directory(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(copied.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_after_the_end_of_the_log_is_ignored() {
    let mut cluster = Cluster::with_table(3).await;
    fill(&cluster, "t", 200).await;
    cluster.kill(3);
    // What a crash in the middle of a write leaves: bytes that were never acknowledged.
    let newest = newest_wal(&cluster);
    OpenOptions::new().append(true).open(&newest).and_then(|mut file| file.write_all(&[0xA5; 700])).expect("appended");
    cluster.start(3);
    cluster.healthy().await;
    cluster.checksums_equal("t").await;
}

/// A cluster of three of whose nodes these have a small disk; none where that cannot be had.
async fn on_small_disks(nodes: &[u64]) -> Option<(Cluster, Vec<SmallDisk>)> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: a full disk (mounting a small tmpfs needs root)");
        return None;
    }
    let mut cluster = Cluster::unstarted(3);
    let disks = nodes.iter().map(|&id| SmallDisk::mount(&cluster.node(id).directory)).collect();
    for id in cluster.ids() {
        cluster.start(id);
    }
    cluster.healthy().await;
    Some((cluster, disks))
}

fn newest_wal(cluster: &Cluster) -> PathBuf {
    let files = cluster.node(3).files("log");
    files.into_iter().rfind(|file| std::fs::metadata(file).is_ok_and(|meta| meta.len() > 0)).expect("a write-ahead log")
}

#[track_caller]
fn says_corrupt(cluster: &Cluster) {
    let log = cluster.node(3).log_tail(40).to_lowercase();
    assert!(
        log.contains("corrupt") || log.contains("shrank") || log.contains("shrunk") || log.contains("shorter"),
        "{log}"
    );
    assert!(!log.contains("panicked"), "{log}");
}

async fn heals_after_a_wipe(cluster: &mut Cluster) {
    cluster.wipe(3);
    cluster.start(3);
    cluster.healthy().await;
    cluster.checksums_equal("t").await;
    cluster.kv(3).put(put("t", "after", "v")).await.expect("it serves again");
}

/// Flips a bit every few hundred bytes around this part of a file.
fn flip_bits(path: &Path, at: f64) {
    let mut file = OpenOptions::new().read(true).write(true).open(path).expect("the file is there");
    let length = used_length(path);
    let first = (length as f64 * at) as u64;
    for offset in (first..(first + 8_192).min(length)).step_by(400) {
        let mut byte = [0_u8];
        file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut byte)).expect("readable");
        byte[0] ^= 0x10;
        file.seek(SeekFrom::Start(offset)).and_then(|_| file.write_all(&byte)).expect("writable");
    }
    file.sync_all().expect("synced");
}

/// The length up to the last byte that is not zero: logs are preallocated.
fn used_length(path: &Path) -> u64 {
    let bytes = std::fs::read(path).expect("readable");
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

/// How long the syncs of a node take: a preloaded library, which the fault harness has too, waits before each.
struct Syncs {
    control: PathBuf,
}

impl Syncs {
    /// Where in the control file the library finds the delay, and how long that file is.
    const DELAY_AT: u64 = 4;
    const LENGTH: usize = 40;

    /// Of a node that is not started yet; none where the library cannot be compiled.
    fn of_node(cluster: &mut Cluster, id: u64) -> Option<Syncs> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("jepsen/src/disk/shim.c");
        let (library, control) = (cluster.root().join("shim.so"), cluster.root().join("shim"));
        let mut compiler = Command::new("gcc");
        compiler.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(&source).arg("-ldl");
        if !compiler.status().is_ok_and(|status| status.success()) {
            println!("skipped: a disk that stands still (gcc is needed for the library that makes it so)");
            return None;
        }
        std::fs::write(&control, [0; Syncs::LENGTH]).expect("a control file");
        cluster.node_mut(id).environment = vec![("LD_PRELOAD", library), ("JEPSEN_SHIM", control.clone())];
        Some(Syncs { control })
    }

    fn take(&self, longer: Duration) {
        let ms = u32::try_from(longer.as_millis()).expect("seconds");
        let mut file = OpenOptions::new().write(true).open(&self.control).expect("the control file is there");
        file.seek(SeekFrom::Start(Syncs::DELAY_AT)).and_then(|_| file.write_all(&ms.to_ne_bytes())).expect("told");
    }
}

/// A tmpfs that is unmounted again.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    fn mount(at: &Path) -> SmallDisk {
        std::fs::create_dir_all(at).expect("a mount point");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", SMALL_DISK, "tmpfs"]).arg(at).status();
        assert!(mounted.is_ok_and(|status| status.success()), "tmpfs could not be mounted on {}", at.display());
        SmallDisk { at: at.to_owned() }
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }

    /// Writes until nothing fits any more.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.ballast()).expect("room for a name");
        for size in [1 << 20, 4 << 10, 1] {
            while file.write_all(&vec![0x5A; size]).is_ok() {}
        }
    }

    /// Writes until no more than this is left.
    fn fill_but(&self, left: u64) {
        let mut file = std::fs::File::create(self.ballast()).expect("room for a name");
        let chunk = vec![0x5A; 256 << 10];
        while self.left() > left {
            file.write_all(&chunk).expect("there is room");
        }
    }

    fn left(&self) -> u64 {
        let space = rustix::fs::statvfs(&self.at).expect("it is mounted");
        space.f_bavail * space.f_frsize
    }

    fn free(&self) {
        std::fs::remove_file(self.ballast()).expect("removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: on a failed test the node may still run.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}
