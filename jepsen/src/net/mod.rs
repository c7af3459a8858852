//! The network of a cluster: one namespace for each node, one for the clients, one for the bridge between them.
//!
//! Nothing is made in the machine's own namespace but the names of these. The harness itself moves into the clients'
//! namespace before it starts a thread, so its clients reach the nodes through a port of the bridge like any other, and
//! can be cut off like any other.
//!
//! Every fault is a set of [`Rule`]s on directed pairs of ports. The sum of all faults under way is one `nft` rule set,
//! replaced as a whole, so faults overlap freely and healing one never heals another. What is dropped is dropped in
//! silence, as in a real partition. Probes (UDP datagrams between the namespaces) prove what passes and how long it
//! takes.

mod probe;
pub mod proxy;
pub mod queue;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub use probe::Passed;
use probe::Probes;

use crate::cluster::record::Record;

/// A port of the bridge: node 1 to n, or the clients' port.
pub type Port = u64;
/// The clients' port.
pub const CLIENTS: Port = 100;
/// The address from which the harness's proxies speak, so that the rule which leads clients to them leaves them alone.
pub const PROXY_SOURCE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 101);
/// Where the nodes serve gRPC.
pub const GRPC: u16 = 7400;
/// Where the nodes serve metrics and health.
pub const HTTP: u16 = 7500;

/// Longest wait for a probe on a healthy link; a namespace is microseconds away.
const PROBE_WITHIN: Duration = Duration::from_millis(250);
/// Longest wait for a link that no other fault disturbs.
const CALM_WITHIN: Duration = Duration::from_secs(40);

/// What happens to packets from one port to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    pub from: Port,
    pub to: Port,
    /// How many of a hundred are dropped.
    pub percent: u8,
}

/// A fault on the network under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FaultId(u64);

/// The namespaces and their bridge.
pub struct Net {
    prefix: String,
    probes: Probes,
    faults: Mutex<BTreeMap<FaultId, BTreeSet<Rule>>>,
    next: AtomicU64,
    /// How often the faults have changed.
    changes: AtomicU64,
}

/// The address of a port.
pub fn address(port: Port) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, u8::try_from(port).expect("ports are nodes 1 to 99 or the clients"))
}

/// All directed pairs between two sides, both ways.
pub fn between(one: &[Port], other: &[Port]) -> BTreeSet<Rule> {
    one_way(one, other).into_iter().chain(one_way(other, one)).collect()
}

/// All directed pairs from one side to the other.
pub fn one_way(from: &[Port], to: &[Port]) -> BTreeSet<Rule> {
    let pairs = from.iter().flat_map(|&from| to.iter().map(move |&to| (from, to)));
    pairs.filter(|(from, to)| from != to).map(|(from, to)| Rule { from, to, percent: 100 }).collect()
}

impl Net {
    /// Makes the namespaces and moves the calling thread, and so all threads it starts later, into the clients' one.
    pub fn up(record: &Record, nodes: u64) -> Result<Net> {
        let prefix = format!("tv{}", std::process::id());
        let hub = format!("{prefix}hub");
        make_namespace(record, &hub)?;
        ip(&["-n", &hub, "link", "add", "hub0", "type", "bridge"])?;
        ip(&["-n", &hub, "link", "set", "hub0", "up"])?;
        for port in (1..=nodes).chain([CLIENTS]) {
            let space = format!("{prefix}n{port}");
            make_namespace(record, &space)?;
            let plug = plug(port);
            ip(&["-n", &hub, "link", "add", &plug, "type", "veth", "peer", "name", "eth0", "netns", &space])?;
            ip(&["-n", &hub, "link", "set", &plug, "master", "hub0", "up"])?;
            ip(&["-n", &space, "addr", "add", &format!("{}/24", address(port)), "dev", "eth0"])?;
            if port == CLIENTS {
                ip(&["-n", &space, "addr", "add", &format!("{PROXY_SOURCE}/24"), "dev", "eth0"])?;
            }
            ip(&["-n", &space, "link", "set", "eth0", "up"])?;
            ip(&["-n", &space, "link", "set", "lo", "up"])?;
        }
        let space = |port: Port| path_of(&format!("{prefix}n{port}"));
        let probes = Probes::between((1..=nodes).chain([CLIENTS]).map(|port| (port, space(port))))?;
        enter(&space(CLIENTS))?;
        Ok(Net { prefix, probes, faults: Mutex::default(), next: AtomicU64::new(1), changes: AtomicU64::new(0) })
    }

    /// The namespace of a port, as a path.
    pub fn space(&self, port: Port) -> PathBuf {
        path_of(&format!("{}n{port}", self.prefix))
    }

    fn hub(&self) -> PathBuf {
        path_of(&format!("{}hub", self.prefix))
    }

    /// Adds a fault to those under way.
    pub fn inject(&self, rules: BTreeSet<Rule>) -> Result<FaultId> {
        let id = FaultId(self.next.fetch_add(1, Ordering::Relaxed));
        let mut faults = self.faults.lock().expect("no holder panics");
        faults.insert(id, rules);
        self.put(&faults)?;
        Ok(id)
    }

    /// Ends a fault; the others go on.
    pub fn heal(&self, id: FaultId) -> Result<()> {
        let mut faults = self.faults.lock().expect("no holder panics");
        faults.remove(&id);
        self.put(&faults)
    }

    /// Ends all faults.
    pub fn heal_all(&self) -> Result<()> {
        let mut faults = self.faults.lock().expect("no holder panics");
        faults.clear();
        self.put(&faults)
    }

    fn put(&self, faults: &BTreeMap<FaultId, BTreeSet<Rule>>) -> Result<()> {
        // Before and after: a probe that is under way at either moment may have met the fault.
        self.changes.fetch_add(1, Ordering::SeqCst);
        let put = feed(&self.hub(), &["nft", "-f", "-"], &rule_set(faults.values().flatten()));
        self.changes.fetch_add(1, Ordering::SeqCst);
        put
    }

    /// Whether any fault under way concerns this pair in either direction.
    fn is_disturbed(&self, one: Port, other: Port) -> bool {
        let faults = self.faults.lock().expect("no holder panics");
        faults.values().flatten().any(|rule| [(one, other), (other, one)].contains(&(rule.from, rule.to)))
    }

    /// Proves by probes that exactly the given pairs are cut: one datagram over each pair must not pass.
    pub async fn prove_cut(&self, rules: &BTreeSet<Rule>) -> Result<String> {
        let mut cut = 0;
        for rule in rules.iter().filter(|rule| rule.percent == 100) {
            let passed = self.probes.send(rule.from, rule.to, 1, Duration::from_millis(50)).await?;
            ensure!(passed.count == 0, "a probe passed from {} to {}, which are cut", rule.from, rule.to);
            cut += 1;
        }
        // The other direction of a one-way cut must still be open, or it were a cut of both.
        let mut open = 0;
        for rule in rules {
            let back = Rule { from: rule.to, to: rule.from, percent: 100 };
            if !rules.contains(&back) && !self.is_cut(back) {
                let passed = self.probes.send(back.from, back.to, 1, PROBE_WITHIN).await?;
                ensure!(passed.count == 1, "no probe passed from {} to {}, which is open", back.from, back.to);
                open += 1;
            }
        }
        Ok(match open {
            0 => format!("{cut} directed links let no probe pass"),
            _ => format!("{cut} directed links let no probe pass, {open} opposite ones do"),
        })
    }

    fn is_cut(&self, rule: Rule) -> bool {
        self.faults.lock().expect("no holder panics").values().flatten().any(|other| *other == rule)
    }

    /// Proves by probes that these pairs are open again, but for those that another fault still disturbs.
    pub async fn prove_open(&self, rules: &BTreeSet<Rule>) -> Result<()> {
        for rule in rules {
            // A neighbour entry that failed during the cut is asked for again within a second or so.
            let mut passed = 0;
            for _ in 0..20 {
                if passed == 0 && !self.is_disturbed(rule.from, rule.to) {
                    passed = self.probes.send(rule.from, rule.to, 1, PROBE_WITHIN).await?.count;
                }
            }
            ensure!(
                passed > 0 || self.is_disturbed(rule.from, rule.to),
                "no probe passes from {} to {} after the fault has ended",
                rule.from,
                rule.to
            );
        }
        Ok(())
    }

    /// Sends probes to a port, from one whose link to it no fault disturbs meanwhile, and says how they arrived: what
    /// shows is then what is done at the port itself.
    pub async fn probe(&self, to: Port, count: u32, within: Duration) -> Result<Passed> {
        let until = Instant::now() + CALM_WITHIN;
        while Instant::now() < until {
            if let Some(from) = self.calm_link(to) {
                let before = self.changes.load(Ordering::SeqCst);
                let passed = self.probes.send(from, to, count, within).await?;
                if self.changes.load(Ordering::SeqCst) == before {
                    return Ok(passed);
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("for {CALM_WITHIN:?} other faults left no link to {to} alone")
    }

    /// A port whose link to this one nothing disturbs.
    fn calm_link(&self, to: Port) -> Option<Port> {
        self.probes.ports().find(|&from| from != to && !self.is_disturbed(from, to))
    }

    /// Leads the clients' connections to each node through a proxy at the port given for it on their own side.
    pub fn lead_clients(&self, proxies: &[(Port, u16)]) -> Result<()> {
        let mut rules =
            "table ip clients\ndelete table ip clients\ntable ip clients {\n chain out {\n  type nat hook output priority -100;\n"
                .to_owned();
        for (node, port) in proxies {
            let (from, to) = (address(CLIENTS), address(*node));
            rules += &format!("  ip saddr {from} ip daddr {to} tcp dport {GRPC} redirect to :{port}\n");
        }
        feed(&self.space(CLIENTS), &["nft", "-f", "-"], &(rules + " }\n}\n"))
    }
}

/// The rule set of these rules, replacing the one before.
fn rule_set<'a>(rules: impl Iterator<Item = &'a Rule>) -> String {
    let mut text = "table bridge faults\ndelete table bridge faults\ntable bridge faults {\n chain between {\n  type filter hook forward priority 0;\n".to_owned();
    for rule in rules {
        let chance = match rule.percent {
            100 => String::new(),
            percent => format!("numgen random mod 100 < {percent} "),
        };
        text += &format!("  iifname \"{}\" oifname \"{}\" {chance}counter drop\n", plug(rule.from), plug(rule.to));
    }
    text + " }\n}\n"
}

/// The bridge's end of a port's cable.
fn plug(port: Port) -> String {
    format!("v{port}")
}

fn path_of(space: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(space)
}

fn make_namespace(record: &Record, name: &str) -> Result<()> {
    record.netns(name)?;
    ip(&["netns", "add", name])
}

/// Moves the calling thread into a network namespace.
fn enter(space: &Path) -> Result<()> {
    let file = std::fs::File::open(space).with_context(|| format!("{}", space.display()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("cannot enter {}", space.display()))
}

fn ip(arguments: &[&str]) -> Result<()> {
    let said = Command::new("ip").args(arguments).stdin(Stdio::null()).output().context("cannot run ip")?;
    if !said.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&said.stderr).trim());
    }
    Ok(())
}

/// Runs a command within a namespace with this as its input.
pub fn feed(space: &Path, command: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new("nsenter")
        .arg(format!("--net={}", space.display()))
        .args(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run nsenter (util-linux)")?;
    let mut stdin = child.stdin.take().context("its input is a pipe")?;
    std::io::Write::write_all(&mut stdin, input.as_bytes())?;
    drop(stdin);
    let said = child.wait_with_output()?;
    if !said.status.success() {
        bail!("{}: {}\n{input}", command.join(" "), String::from_utf8_lossy(&said.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_directed_and_never_to_oneself() {
        assert_eq!(one_way(&[1], &[1, 2]).len(), 1);
        assert_eq!(between(&[1, 2], &[3]).len(), 4);
    }

    #[test]
    fn the_rule_set_is_replaced_as_a_whole() {
        let rules = [Rule { from: 1, to: 2, percent: 100 }, Rule { from: CLIENTS, to: 1, percent: 30 }];
        let text = rule_set(rules.iter());
        assert!(text.starts_with("table bridge faults\ndelete table bridge faults\n"));
        assert!(text.contains("iifname \"v1\" oifname \"v2\" counter drop\n"));
        assert!(text.contains("iifname \"v100\" oifname \"v1\" numgen random mod 100 < 30 counter drop\n"));
    }
}
