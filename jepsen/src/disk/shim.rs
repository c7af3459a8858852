//! The harness's side of the shim (`shim.c`): a small file of numbers that it shares with one node.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

const SOURCE: &str = include_str!("shim.c");

/// The shared numbers, in their order.
#[derive(Clone, Copy)]
enum Place {
    SyncsToFail,
    SyncDelayMs,
    WriteErrno,
    SyncsFailed,
    SyncsDelayed,
    WritesFailed,
}

/// After the six numbers of four bytes one of eight, the clock's offset, and one of four, how often it was read.
const CLOCK_OFFSET: u64 = 24;
const CLOCK_READS: u64 = 32;
const LENGTH: usize = 40;

/// What the shim has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Syncs that failed.
    pub syncs_failed: u32,
    /// Syncs that were held up.
    pub syncs_delayed: u32,
    /// Writes that failed.
    pub writes_failed: u32,
}

/// The shim of one node.
pub struct Shim {
    /// The file that node and harness share; the node is given it as `JEPSEN_SHIM`.
    pub path: PathBuf,
    file: File,
}

/// Compiles the shim into this directory.
pub fn compile(directory: &Path) -> Result<PathBuf> {
    let (source, library) = (directory.join("shim.c"), directory.join("shim.so"));
    std::fs::write(&source, SOURCE)?;
    let said = Command::new("gcc")
        .args(["-shared", "-fPIC", "-O2", "-Wall", "-o"])
        .arg(&library)
        .arg(&source)
        .arg("-ldl")
        .output()
        .context("cannot run gcc")?;
    ensure!(said.status.success(), "gcc: {}", String::from_utf8_lossy(&said.stderr));
    Ok(library)
}

impl Shim {
    /// A shim that does nothing yet.
    pub fn new(path: PathBuf) -> Result<Shim> {
        let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path)?;
        file.write_all_at(&[0; LENGTH], 0)?;
        Ok(Shim { path, file })
    }

    fn set(&self, place: Place, value: u32) -> Result<()> {
        self.file.write_all_at(&value.to_ne_bytes(), 4 * place as u64).context("the shim's file")
    }

    fn get(&self, place: Place) -> Result<u32> {
        let mut bytes = [0; 4];
        self.file.read_exact_at(&mut bytes, 4 * place as u64).context("the shim's file")?;
        Ok(u32::from_ne_bytes(bytes))
    }

    /// The next so many syncs fail.
    pub fn fail_syncs(&self, count: u32) -> Result<()> {
        self.set(Place::SyncsToFail, count)
    }

    /// Every sync takes this much longer.
    pub fn delay_syncs(&self, milliseconds: u32) -> Result<()> {
        self.set(Place::SyncDelayMs, milliseconds)
    }

    /// Every write fails with this error.
    pub fn fail_writes(&self, errno: u32) -> Result<()> {
        self.set(Place::WriteErrno, errno)
    }

    /// The time of day is off by this many milliseconds.
    pub fn shift_clock(&self, milliseconds: i64) -> Result<()> {
        let nanoseconds = milliseconds.saturating_mul(1_000_000);
        // Eight aligned bytes in one write: the other side sees the old offset or the new one.
        self.file.write_all_at(&nanoseconds.to_ne_bytes(), CLOCK_OFFSET).context("the shim's file")
    }

    /// How often the time of day was read while it was off.
    pub fn clock_reads(&self) -> Result<u32> {
        let mut bytes = [0; 4];
        self.file.read_exact_at(&mut bytes, CLOCK_READS).context("the shim's file")?;
        Ok(u32::from_ne_bytes(bytes))
    }

    /// Nothing fails or lags any more, and the clock is right.
    pub fn rest(&self) -> Result<()> {
        self.shift_clock(0)?;
        for place in [Place::SyncsToFail, Place::SyncDelayMs, Place::WriteErrno] {
            self.set(place, 0)?;
        }
        Ok(())
    }

    /// What was done so far.
    pub fn done(&self) -> Result<Done> {
        Ok(Done {
            syncs_failed: self.get(Place::SyncsFailed)?,
            syncs_delayed: self.get(Place::SyncsDelayed)?,
            writes_failed: self.get(Place::WritesFailed)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that goes with the test.
    struct Scratch(PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_preloaded_program_meets_the_errors_it_is_told_to() {
        let scratch = Scratch(std::env::temp_dir().join(format!("trivet-shim-{}", std::process::id())));
        std::fs::create_dir_all(&scratch.0).expect("a directory");
        let library = compile(&scratch.0).expect("gcc is there and the shim compiles");
        let shim = Shim::new(scratch.0.join("control")).expect("a control file");
        let sync = || {
            let file = scratch.0.join("file");
            let program = format!("printf x > '{0}' && exec sync -d '{0}'", file.display());
            let mut command = Command::new("bash");
            command.args(["-c", &program]).env("LD_PRELOAD", &library).env("JEPSEN_SHIM", &shim.path);
            command.output().expect("bash runs").status.success()
        };
        assert!(sync());
        shim.fail_syncs(1).expect("told");
        assert!(!sync(), "the sync failed");
        assert_eq!(shim.done().expect("read").syncs_failed, 1);
        assert!(sync(), "only one was to fail");
        shim.delay_syncs(1).expect("told");
        assert!(sync());
        assert_eq!(shim.done().expect("read").syncs_delayed, 1);
        let year = || {
            let mut command = Command::new("date");
            command.arg("+%Y").env("LD_PRELOAD", &library).env("JEPSEN_SHIM", &shim.path);
            let said = command.output().expect("date runs").stdout;
            String::from_utf8_lossy(&said).trim().parse::<i32>().expect("a year")
        };
        let this_year = year();
        shim.shift_clock(-400 * 24 * 3_600_000).expect("told");
        assert!(year() < this_year);
        assert!(shim.clock_reads().expect("read") > 0);
        shim.rest().expect("told");
        assert_eq!(year(), this_year);
        assert!(sync());
        assert_eq!(shim.done().expect("read").syncs_delayed, 1);
    }
}
