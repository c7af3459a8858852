//! A file system of one node.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::ioctl::Setter;

use crate::cluster::record::Record;

/// Room for one node's data. The file is sparse: only what is written takes memory.
const BYTES: u64 = 1 << 30;
/// Errors turn it read-only; what is not synced stays in memory for five minutes, longer than any test of it.
const OPTIONS: &str = "commit=300,errors=remount-ro,noatime";
/// `EXT4_IOC_SHUTDOWN`, which is `_IOR('X', 125, __u32)`.
const EXT4_IOC_SHUTDOWN: rustix::ioctl::Opcode = 0x8004_587D;
/// Shut down at once: neither data nor journal are flushed.
const NOLOGFLUSH: u32 = 2;
/// The harness's own files beside a node's data.
const SYNCED: &str = "harness-synced";
const UNSYNCED: &str = "harness-unsynced";
const FILLER: &str = "harness-filler";
/// The file that can no longer be written when the disk is full.
const FILLER_PROBE: &str = "harness-filler-probe";
/// A node whose disk fills up removes files of its own now and then.
const FILL_ATTEMPTS: u32 = 50;

/// A mounted image.
pub struct Image {
    /// Where it is mounted.
    pub mount: PathBuf,
    device: String,
    file: PathBuf,
}

/// What the record would undo in the end, undone now: runs follow one another, and devices are few.
impl Drop for Image {
    fn drop(&mut self) {
        let _ = self.unmount();
        let _ = run("losetup", &["-d".as_ref(), self.device.as_ref()]);
        let _ = fs::remove_file(&self.file);
    }
}

impl Image {
    /// Makes a new file system and mounts it.
    pub fn make(record: &Record, name: &str) -> Result<Image> {
        let (file, mount) = (record.memory.join(format!("{name}.img")), record.memory.join(name));
        record.image(&file)?;
        File::create(&file)?.set_len(BYTES)?;
        run("mkfs.ext4", &["-qF".as_ref(), file.as_os_str()])?;
        record.mount(&mount)?;
        fs::create_dir_all(&mount)?;
        let device = run("losetup", &["-f".as_ref(), "--show".as_ref(), file.as_os_str()])?.trim().to_owned();
        let image = Image { mount, device, file };
        image.mount()?;
        Ok(image)
    }

    fn mount(&self) -> Result<()> {
        run("mount", &["-o".as_ref(), OPTIONS.as_ref(), self.device.as_ref(), self.mount.as_os_str()])?;
        Ok(())
    }

    /// Where the node's data lies on it.
    pub fn data(&self) -> PathBuf {
        self.mount.join("data")
    }

    /// Unmounts it and makes it anew: nothing of before is left.
    pub fn renew(&self) -> Result<()> {
        self.unmount()?;
        run("mkfs.ext4", &["-qF".as_ref(), self.device.as_ref()])?;
        self.mount()
    }

    /// Before a power cut: leaves one file that must survive it and one that must not.
    pub fn leave_witnesses(&self) -> Result<()> {
        let mut synced = File::create(self.mount.join(SYNCED))?;
        synced.write_all(b"synced")?;
        synced.sync_all()?;
        File::open(&self.mount)?.sync_all()?;
        File::create(self.mount.join(UNSYNCED))?.write_all(b"not synced")?;
        Ok(())
    }

    /// The power goes: from now on nothing reaches the disk any more. Whoever used it must be stopped by now.
    pub fn cut(&self) -> Result<()> {
        let directory = File::open(&self.mount)?;
        // SAFETY: the operation takes a pointer to a `u32`, and that is what it is given.
        unsafe { rustix::ioctl::ioctl(directory.as_fd(), Setter::<EXT4_IOC_SHUTDOWN, u32>::new(NOLOGFLUSH)) }
            .context("the file system cannot be shut down")
    }

    /// The power is back: mounts what reached the disk, and proves by the witnesses that the rest is gone.
    pub fn revive(&self) -> Result<()> {
        self.unmount()?;
        self.mount()?;
        ensure!(self.mount.join(SYNCED).exists(), "a synced file was lost: this is no power cut but a broken disk");
        // Its name may have reached the journal with somebody else's sync, what was written to it may not.
        let unsynced = fs::read(self.mount.join(UNSYNCED)).unwrap_or_default();
        ensure!(unsynced.is_empty(), "what was never synced survived: no power cut happened");
        fs::remove_file(self.mount.join(SYNCED))?;
        let _ = fs::remove_file(self.mount.join(UNSYNCED));
        Ok(())
    }

    fn unmount(&self) -> Result<()> {
        // The last process's files may be closed a moment after its end was seen.
        let mut last = Ok(String::new());
        for _ in 0..50 {
            last = run("umount", &[self.mount.as_os_str()]);
            if last.is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        last.map(|_| ())
    }

    /// Takes all room that is left. Proof: a byte more is refused.
    pub fn fill(&self) -> Result<()> {
        for _ in 0..FILL_ATTEMPTS {
            self.take_all()?;
            if fs::write(self.mount.join(FILLER_PROBE), [0; 4 << 10]).is_err() {
                return Ok(());
            }
            // The node has given some room back in the meantime.
        }
        bail!("the disk does not stay full")
    }

    fn take_all(&self) -> Result<()> {
        let mut filler = OpenOptions::new().create(true).append(true).open(self.mount.join(FILLER))?;
        // Room that is set aside takes none of the machine's memory, unlike room that is written.
        let (mut size, mut block) = (0, BYTES / 2);
        while block >= 4 << 10 {
            match fallocate(&filler, FallocateFlags::empty(), size, block) {
                Ok(()) => size += block,
                Err(_) => block /= 2,
            }
        }
        let bytes = [0; 4 << 10];
        while filler.write_all(&bytes).is_ok() {}
        Ok(())
    }

    /// Gives the room back.
    pub fn free(&self) -> Result<()> {
        // There need not be one: the last thing that failed was to write it.
        let _ = fs::remove_file(self.mount.join(FILLER_PROBE));
        fs::remove_file(self.mount.join(FILLER)).context("the room cannot be given back")
    }

    /// Writes hang from now on. Proof: one of ours does.
    pub fn freeze(&self) -> Result<std::thread::JoinHandle<std::io::Result<()>>> {
        run("fsfreeze", &["-f".as_ref(), self.mount.as_os_str()])?;
        let probe = self.mount.join(SYNCED);
        let writing = std::thread::spawn(move || fs::write(&probe, b"thawed"));
        std::thread::sleep(Duration::from_millis(100));
        ensure!(!writing.is_finished(), "a write to the frozen disk did not hang");
        Ok(writing)
    }

    /// Writes go on. Proof: ours has ended.
    pub fn thaw(&self, writing: std::thread::JoinHandle<std::io::Result<()>>) -> Result<()> {
        run("fsfreeze", &["-u".as_ref(), self.mount.as_os_str()])?;
        match writing.join() {
            Ok(written) => written.context("the write that hung has failed")?,
            Err(_) => bail!("the thread that wrote panicked"),
        }
        Ok(())
    }

    /// The file system meets an error and turns read-only, as it does over a failing disk. Proof: a write is refused.
    pub fn turn_read_only(&self) -> Result<()> {
        let device = Path::new(&self.device).file_name().context("a loop device has a name")?;
        let trigger = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
        fs::write(&trigger, "injected by the fault tests").with_context(|| format!("{}", trigger.display()))?;
        ensure!(fs::write(self.mount.join(SYNCED), b"x").is_err(), "the disk still takes writes");
        Ok(())
    }

    /// Repairs and mounts it again after [`Image::turn_read_only`]. Proof: a write is taken.
    pub fn repair(&self) -> Result<()> {
        self.unmount()?;
        // Its exit code says what was mended; whether it can be mounted says the rest.
        let _ = run("e2fsck", &["-fp".as_ref(), self.device.as_ref()]);
        self.mount()?;
        fs::write(self.mount.join(SYNCED), b"x").context("the repaired disk takes no writes")
    }
}

fn run(program: &str, arguments: &[&std::ffi::OsStr]) -> Result<String> {
    let said = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(said.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&said.stderr).trim());
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}
