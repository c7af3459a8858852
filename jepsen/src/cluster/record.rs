//! What was made on this machine, written down before it is made, and undone at the end.
//!
//! Promise: whatever happens to the harness, `jepsen/clean` finds all it made. The undoing is that script alone, so
//! there is one way to undo: the guard here runs the same text, compiled in.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// The script `jepsen/clean`.
const CLEAN: &str = include_str!("../../clean");

/// The list of everything a harness made. Undone when dropped.
pub struct Record {
    path: PathBuf,
    file: File,
    /// Where files may be made on disk; removed in the end.
    pub directory: PathBuf,
    /// Where files may be made in memory; removed in the end.
    pub memory: PathBuf,
}

impl Record {
    /// Begins a record for this process.
    pub fn begin() -> Result<Record> {
        let root = std::env::temp_dir().join("trivet-jepsen");
        std::fs::create_dir_all(&root).with_context(|| format!("{}", root.display()))?;
        let pid = std::process::id();
        let path = root.join(format!("{pid}.record"));
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
        let directory = root.join(pid.to_string());
        let memory = PathBuf::from(format!("/dev/shm/trivet-jepsen-{pid}"));
        let record = Record { path, file, directory, memory };
        record.note(&format!("harness {pid} {}", start_time(pid).context("this process has a start time")?))?;
        for made in [&record.directory, &record.memory] {
            record.note(&format!("directory {}", made.display()))?;
            // A run of an earlier process with the same number may have left it.
            let _ = std::fs::remove_dir_all(made);
            std::fs::create_dir_all(made).with_context(|| format!("{}", made.display()))?;
        }
        Ok(record)
    }

    fn note(&self, line: &str) -> Result<()> {
        (&self.file).write_all(format!("{line}\n").as_bytes()).context("the record cannot be written")
    }

    /// A network namespace is about to be made.
    pub fn netns(&self, name: &str) -> Result<()> {
        self.note(&format!("netns {name}"))
    }

    /// An image is about to be made and attached to a loop device.
    pub fn image(&self, path: &Path) -> Result<()> {
        self.note(&format!("image {}", path.display()))
    }

    /// Something is about to be mounted here.
    pub fn mount(&self, path: &Path) -> Result<()> {
        self.note(&format!("mount {}", path.display()))
    }

    /// A process was started. It is told from a later one of the same number by its start time.
    pub fn pid(&self, pid: u32) -> Result<()> {
        // A process that has ended already needs no line.
        start_time(pid).map_or(Ok(()), |start| self.note(&format!("pid {pid} {start}")))
    }
}

impl Record {
    /// Undoes everything. Doing so twice is as good as once.
    pub fn undo(&self) {
        if !self.path.exists() {
            return;
        }
        let undone =
            Command::new("bash").args(["-c", CLEAN, "jepsen/clean"]).arg(&self.path).stdin(Stdio::null()).status();
        if !undone.is_ok_and(|status| status.success()) {
            eprintln!("not everything could be undone: run jepsen/clean (the record is {})", self.path.display());
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.undo();
    }
}

/// When a process was started, in clock ticks since the machine was.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may itself hold blanks and parentheses. Field 22, counted from the state as 3.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_undone() {
        let (directory, memory, path);
        let mut child = Command::new("sleep").arg("600").spawn().expect("sleep starts");
        {
            let record = Record::begin().expect("a record");
            record.pid(child.id()).expect("written");
            (directory, memory, path) = (record.directory.clone(), record.memory.clone(), record.path.clone());
            std::fs::write(directory.join("file"), "x").expect("written");
            assert!(memory.is_dir());
        }
        assert!(!child.wait().expect("waited").success(), "it was killed");
        assert!(!directory.exists() && !memory.exists() && !path.exists());
    }

    #[test]
    fn a_process_that_only_has_a_recorded_number_is_left_alone() {
        let mut child = Command::new("sleep").arg("600").spawn().expect("sleep starts");
        let path = std::env::temp_dir().join(format!("trivet-jepsen-test-{}.record", child.id()));
        std::fs::write(&path, format!("harness 1 1\npid {} 12345\ndirectory /etc\n", child.id())).expect("written");
        let status = Command::new("bash").args(["-c", CLEAN, "clean"]).arg(&path).status().expect("bash runs");
        assert!(status.success() && !path.exists());
        assert!(child.try_wait().expect("looked").is_none(), "still running");
        assert!(Path::new("/etc").is_dir());
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }
}
