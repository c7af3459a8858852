//! One node: a process, its ports and its directory.

use std::collections::HashSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// How a node comes into its cluster.
#[derive(Clone, Debug)]
pub enum Entry {
    /// It founds the cluster with these: `1=host:port,2=host:port`.
    Founder(String),
    /// It asks these to let it in: `host:port,host:port`.
    Join(String),
}

/// A node of a test cluster. Dropping it kills its process.
pub struct Node {
    pub id: u64,
    pub grpc: u16,
    pub http: u16,
    pub directory: PathBuf,
    pub entry: Entry,
    /// Further variables of its environment.
    pub environment: Vec<(&'static str, PathBuf)>,
    /// Given as `--set`, each.
    pub settings: Vec<String>,
    process: Option<Child>,
}

impl Node {
    pub fn new(id: u64, directory: PathBuf) -> Node {
        let entry = Entry::Join(String::new());
        Node {
            id,
            grpc: free_port(),
            http: free_port(),
            directory,
            entry,
            environment: Vec::new(),
            settings: Vec::new(),
            process: None,
        }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.grpc)
    }

    /// The command that serves this node.
    pub fn command(&self) -> Command {
        let mut command = super::binary();
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.args(["serve", "--id", &self.id.to_string(), "--data"]).arg(&self.directory);
        command.args(["--listen", &self.address(), "--http", &format!("127.0.0.1:{}", self.http)]);
        match &self.entry {
            Entry::Founder(peers) => command.args(["--found", peers]),
            Entry::Join(addresses) => command.args(["--join", addresses]),
        };
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        command
    }

    fn log_path(&self) -> PathBuf {
        self.directory.with_extension("log")
    }

    pub fn start(&mut self) {
        assert!(!self.is_running(), "node {} runs already", self.id);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path()).expect("a log file");
        let errors = log.try_clone().expect("a second handle of the log");
        let child = self.command().stdin(Stdio::null()).stdout(log).stderr(errors).spawn().expect("trivet starts");
        self.process = Some(child);
    }

    /// Serves in the foreground until the process ends by itself, as it must; for starts that are to be refused.
    pub fn start_refused(&self) -> super::Finished {
        super::finish(&mut self.command())
    }

    pub fn is_running(&self) -> bool {
        // Looks without reaping, so that the exit code stays for `ended`.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.pid().is_some_and(|pid| waitid(WaitId::Pid(pid), look).is_ok_and(|ended| ended.is_none()))
    }

    fn pid(&self) -> Option<Pid> {
        self.process.as_ref().map(Pid::from_child)
    }

    fn signal(&self, signal: Signal) {
        let pid = self.pid().expect("the node was started");
        kill_process(pid, signal).expect("the process takes the signal");
    }

    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, then waits for the end; the exit code, or -1 when a signal ended it.
    pub fn stop(&mut self) -> i32 {
        self.signal(Signal::TERM);
        self.ended(Duration::from_secs(30)).expect("a node ends within 30 s of SIGTERM")
    }

    /// The exit code, when the process ends by itself within this time (-1 when a signal ended it).
    pub fn ended(&mut self, within: Duration) -> Option<i32> {
        let deadline = Instant::now() + within;
        let child = self.process.as_mut()?;
        loop {
            if let Some(status) = child.try_wait().expect("the process can be waited for") {
                self.process = None;
                return Some(status.code().unwrap_or(-1));
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The last lines it logged.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    pub fn state(&self) -> &'static str {
        if self.is_running() { "running" } else { "not running" }
    }

    /// The files of its database with this extension, in name order (for WAL and SST that is the order of creation).
    pub fn files(&self, extension: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        collect(&self.directory, extension, &mut found);
        found.sort();
        found
    }
}

fn collect(directory: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A loopback port nobody listens on, below the range from which the kernel draws outgoing ports: a restarted node
/// finds it free again.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    let mut given = GIVEN.lock().expect("no test panics while it holds this");
    let given = given.get_or_insert_default();
    loop {
        let random = trivet::runtime::random_u64();
        let port = FIRST + u16::try_from(random % u64::from(COUNT)).expect("below COUNT");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && given.insert(port) {
            return port;
        }
    }
}
