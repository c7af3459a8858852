//! One node: a process of the shipped binary, its addresses, its disk and its log.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::record::Record;
use crate::disk::image::Image;
use crate::disk::shim::Shim;

/// Of the harness' own environment, what nodes are given too: the fault that a binary built to have one is to have.
const PLANTED: &str = "TRIVET_PLANTED";

/// How a node comes into its cluster.
#[derive(Clone, Debug)]
pub enum Entry {
    /// It founds it with these: `1=host:port,2=host:port`.
    Founder(String),
    /// It asks these to let it in: `host:port,host:port`.
    Join(String),
}

/// What never changes about a node.
pub struct Fixed {
    /// Its number, from 1 on.
    pub id: u64,
    /// The binary.
    pub binary: PathBuf,
    /// Where it serves gRPC.
    pub listen: SocketAddr,
    /// Where others reach that.
    pub advertise: SocketAddr,
    /// Where it serves metrics and health.
    pub http: SocketAddr,
    /// Its network namespace, if it has one of its own.
    pub space: Option<PathBuf>,
    /// Its data directory.
    pub data: PathBuf,
    /// The file system of its own below that, if it has one.
    pub image: Option<Image>,
    /// Its log, over all its starts.
    pub log: PathBuf,
    /// The shim preloaded into it: library and control.
    pub shim: Option<(PathBuf, Shim)>,
}

impl Fixed {
    /// The environment that gives a process this node's shim, and with it the node's clock.
    fn environment(&self) -> Vec<(&'static str, String)> {
        let Some((library, control)) = &self.shim else { return Vec::new() };
        vec![("JEPSEN_SHIM", control.path.display().to_string()), ("LD_PRELOAD", library.display().to_string())]
    }

    /// A program that is given the same wall clock as the node.
    pub fn with_its_clock(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.envs(self.environment());
        command
    }

    /// Everything it has logged.
    pub fn logged(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// How many bytes it has logged.
    pub fn log_length(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |metadata| metadata.len())
    }

    /// What it has logged since it had logged so many bytes.
    pub fn logged_since(&self, length: u64) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        let from = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len());
        String::from_utf8_lossy(&bytes[from..]).into_owned()
    }
}

/// A directory without a file system of its own goes with its node.
impl Drop for Fixed {
    fn drop(&mut self) {
        if self.image.is_none() {
            let _ = fs::remove_dir_all(&self.data);
        }
    }
}

/// The process of a node. Whoever holds it may do with it what he wants; what he leaves must run.
pub struct Node {
    /// What never changes.
    pub fixed: Arc<Fixed>,
    /// How it would come into the cluster with an empty directory.
    pub entry: Entry,
    record: Arc<Record>,
    process: Option<Child>,
    paused: bool,
}

impl Node {
    /// A node that does not run yet.
    pub fn new(fixed: Arc<Fixed>, entry: Entry, record: Arc<Record>) -> Node {
        Node { fixed, entry, record, process: None, paused: false }
    }

    fn command(&self) -> Command {
        let fixed = &self.fixed;
        let mut command = match &fixed.space {
            Some(space) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", space.display())).arg("env");
                command.args(fixed.environment().iter().map(|(name, value)| format!("{name}={value}")));
                command.arg(&fixed.binary);
                command
            }
            None => {
                let mut command = Command::new(&fixed.binary);
                command.envs(fixed.environment());
                command
            }
        };
        let own = |name: &str| name.starts_with("TRIVET_") && name != PLANTED;
        for (name, _) in std::env::vars().filter(|(name, _)| own(name)) {
            command.env_remove(name);
        }
        command.args(["serve", "--id", &fixed.id.to_string(), "--data"]).arg(&fixed.data);
        command.args(["--listen", &fixed.listen.to_string(), "--advertise", &fixed.advertise.to_string()]);
        command.args(["--http", &fixed.http.to_string()]);
        // The least that is allowed, so that flushes and compactions happen in a minute's run.
        command.args(["--block-cache-mb", "8", "--write-buffer-mb", "4"]);
        // Views are compared with their sources all the while: a difference is an ERROR in the log, which no fault explains.
        command.args(["--set", "views.scrub_every_ms=2000"]);
        match &self.entry {
            Entry::Founder(peers) => command.args(["--found", peers]),
            Entry::Join(addresses) => command.args(["--join", addresses]),
        };
        command
    }

    /// Starts it.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "node {} runs already", self.fixed.id);
        let mut log = OpenOptions::new().create(true).append(true).open(&self.fixed.log)?;
        writeln!(log, "---- started by the harness ----")?;
        let (out, errors): (File, File) = (log.try_clone()?, log);
        let child = self
            .command()
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {}", self.fixed.binary.display()))?;
        self.record.pid(child.id())?;
        self.process = Some(child);
        self.paused = false;
        Ok(())
    }

    /// Its process number, while it was started and not ended by us.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.process.as_ref().with_context(|| format!("node {} was not started", self.fixed.id))?;
        kill_process(Pid::from_child(child), signal).with_context(|| format!("node {}", self.fixed.id))
    }

    /// kill -9. Proof: the process is gone. Does nothing to a node that does not run.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.process.take() {
            child.kill()?;
            child.wait()?;
            ensure!(!Path::new(&format!("/proc/{}", child.id())).exists(), "process {} is still there", child.id());
        }
        Ok(())
    }

    /// SIGSTOP. Proof: the kernel says that all its threads stand.
    pub fn pause(&mut self) -> Result<()> {
        self.signal(Signal::STOP)?;
        self.paused = true;
        let patience = Instant::now() + Duration::from_secs(2);
        while self.state()? != 'T' {
            ensure!(Instant::now() < patience, "node {} does not stand still", self.fixed.id);
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// SIGCONT. Proof: it runs or sleeps.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::CONT)?;
        self.paused = false;
        let patience = Instant::now() + Duration::from_secs(2);
        while self.state()? == 'T' {
            ensure!(Instant::now() < patience, "node {} does not go on", self.fixed.id);
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// The state letter of its process.
    fn state(&self) -> Result<char> {
        let pid = self.pid().context("the node was not started")?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).context("a line of /proc")
    }

    /// SIGTERM. What [`Node::ended`] then says is its exit code.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Its exit code, when it ends by itself within this time (-1 when a signal ended it).
    pub async fn ended(&mut self, within: Duration) -> Result<Option<i32>> {
        let patience = Instant::now() + within;
        loop {
            if let Some(code) = self.look()? {
                return Ok(Some(code));
            }
            if Instant::now() >= patience {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its exit code if it was started and has ended by itself; it may then be started again.
    pub fn look(&mut self) -> Result<Option<i32>> {
        let Some(child) = &mut self.process else { return Ok(None) };
        let Some(status) = child.try_wait()? else { return Ok(None) };
        self.process = None;
        Ok(Some(status.code().unwrap_or(-1)))
    }

    /// Whether it runs and is not paused.
    pub fn is_running(&mut self) -> bool {
        !self.paused && self.process.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Removes all its data. It must not run.
    pub fn wipe(&self) -> Result<()> {
        ensure!(self.process.is_none(), "node {} still runs", self.fixed.id);
        match &self.fixed.image {
            Some(image) => image.renew()?,
            None => fs::remove_dir_all(&self.fixed.data)?,
        }
        fs::create_dir_all(&self.fixed.data)?;
        ensure!(
            fs::read_dir(&self.fixed.data)?.next().is_none(),
            "the directory of node {} is not empty",
            self.fixed.id
        );
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The record kills it too; this leaves no zombie to a harness that goes on.
        let _ = self.kill();
    }
}
