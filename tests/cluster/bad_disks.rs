//! Disks that are full, flip bits or lose their tail: the node notices, says so, and the cluster keeps every promise.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::{Cluster, get_any, put};
use crate::load::Load;
use crate::rejoining::{fill, fill_until_trimmed, write_large};

/// Room for a node with little data, and little more.
const SMALL_DISK: &str = "size=384m";

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: a full disk (mounting a small tmpfs needs root)");
        return;
    }
    let mut cluster = Cluster::unstarted(3);
    let disk = SmallDisk::mount(&cluster.node(3).directory);
    for id in cluster.ids() {
        cluster.start(id);
    }
    cluster.healthy().await;
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
