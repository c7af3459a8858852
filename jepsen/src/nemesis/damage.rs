//! Damage to the files of one stopped node: flipped bits, a log that lost its end, an old copy, another node's files.
//!
//! The node must notice: refuse to start, or serve without what is damaged, and say what is wrong. Then, as an operator
//! would do, it is wiped and joins again. What was acknowledged must be there all the time, which the workloads show.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::BoxFuture;
use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use trivet::client::{Client, Options};
use trivet::types::Reason;

use super::{Misbehaved, Nemesis, Stage, Struck, up, wipe};
use crate::cluster::{Held, tail};
use crate::disk::damage;

/// A node that refuses does so while it opens its storage, which takes a second or two.
const REFUSE_WITHIN: Duration = Duration::from_secs(10);
/// Least part of a log's end that is cut off: more than what a group of syncs can have left unsynced.
const CUT_MIN: u64 = 4 << 10;
/// A log as long as this holds enough to cut off or to flip.
const LOG_LENGTH_MIN: u64 = 64 << 10;
/// A node that is started writes so much within a few seconds.
const LOG_ATTEMPTS: u32 = 10;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    FlipTable,
    FlipLog,
    FlipManifest,
    Truncate,
    OldCopy,
    Foreign,
}

struct Damage(Kind);

pub(super) fn all() -> Vec<Arc<dyn Nemesis>> {
    use Kind::*;
    [FlipTable, FlipLog, FlipManifest, Truncate, OldCopy, Foreign]
        .map(|kind| Arc::new(Damage(kind)) as Arc<dyn Nemesis>)
        .to_vec()
}

/// What was done to a node's files.
struct Done {
    /// In words.
    what: String,
    /// The file that the node has to name, if it is one.
    file: Option<std::path::PathBuf>,
}

impl Damage {
    /// Damages the files of a node. It runs before and is stopped after.
    async fn harm(&self, stage: &Stage, node: &mut Held, random: &mut SmallRng) -> Result<Done> {
        let data = node.fixed.data.clone();
        match self.0 {
            Kind::FlipLog => {
                let (file, _) = self.log_of_some_length(stage, node).await?;
                let what = format!("bits of {}", damage::flip(&file, 0.1, 0.8, random)?);
                Ok(Done { what, file: Some(file) })
            }
            Kind::FlipTable | Kind::FlipManifest => {
                node.kill()?;
                let (kind, from, to): (fn(&str) -> bool, f64, f64) = match self.0 {
                    Kind::FlipTable => (damage::is_table, 0.05, 0.95),
                    _ => (damage::is_manifest, 0.1, 0.9),
                };
                if damage::files(&data, kind).is_empty() {
                    // A node that comes back writes what its log holds into table files.
                    node.start()?;
                    up(stage, node).await?;
                    node.kill()?;
                }
                let files = damage::files(&data, kind);
                let file = if self.0 == Kind::FlipTable { files.choose(random) } else { files.last() };
                let file = file.with_context(|| format!("n{} has no such file yet", node.fixed.id))?.clone();
                let what = format!("bits of {}", damage::flip(&file, from, to, random)?);
                Ok(Done { what, file: Some(file) })
            }
            Kind::Truncate => {
                let (file, length) = self.log_of_some_length(stage, node).await?;
                let cut = random.random_range(CUT_MIN..(length / 2).max(CUT_MIN + 1));
                Ok(Done { what: damage::truncate(&file, cut)?, file: Some(file) })
            }
            Kind::OldCopy => {
                let copy = node.fixed.data.with_extension("old");
                node.kill()?;
                damage::copy(&data, &copy)?;
                node.start()?;
                up(stage, node).await?;
                // It votes and acknowledges meanwhile, which the copy knows nothing of.
                tokio::time::sleep(stage.some_time(2.0..6.0, random)).await;
                node.kill()?;
                damage::copy(&copy, &data)?;
                std::fs::remove_dir_all(&copy)?;
                Ok(Done { what: "an old copy of its directory".to_owned(), file: None })
            }
            Kind::Foreign => bail!("needs two nodes"),
        }
    }

    /// The newest log of a node (older ones may hold nothing that is still needed) when it holds enough to be damaged,
    /// and how much that is. The node is stopped afterwards.
    async fn log_of_some_length(&self, stage: &Stage, node: &mut Held) -> Result<(std::path::PathBuf, u64)> {
        for _ in 0..LOG_ATTEMPTS {
            node.kill()?;
            let files = damage::files(&node.fixed.data, damage::is_log);
            let file = files.last().context("no log")?.clone();
            let length = damage::length(&file)?;
            if length >= LOG_LENGTH_MIN {
                return Ok((file, length));
            }
            // It has just begun a new one.
            node.start()?;
            up(stage, node).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        bail!("the newest log of n{} stays shorter than {LOG_LENGTH_MIN} bytes", node.fixed.id)
    }

    /// The directory of one node is put in the place of another's. The one it is taken from stands still meanwhile.
    async fn swap(&self, stage: &Stage, random: &mut SmallRng) -> Result<(Held, Done)> {
        let ids = stage.some_nodes(2, random);
        let mut nodes = stage.cluster.hold(&ids).await;
        let (mut node, mut other) = (nodes.remove(0), nodes.remove(0));
        node.kill()?;
        other.pause()?;
        let copied = damage::copy(&other.fixed.data, &node.fixed.data);
        other.resume()?;
        copied?;
        // The other's lock file came along and is nobody's.
        Ok((node, Done { what: "the directory of another node".to_owned(), file: None }))
    }

    /// Starts the damaged node and sees what it does. Returns what it did, in words.
    async fn observe(&self, stage: &Stage, node: &mut Held, done: &Done) -> Result<String> {
        let id = node.fixed.id;
        let before = node.fixed.log_length();
        node.start()?;
        if let Some(code) = node.ended(REFUSE_WITHIN).await? {
            let said = node.fixed.logged_since(before);
            // A node that meets damage while it writes aborts, which is an end by a signal.
            if code == 0 {
                let text = format!("n{id} ended with {code} over {}; it said: {}", done.what, tail(&said, 1));
                bail!(Misbehaved(text));
            }
            if said.contains("panicked") {
                bail!(Misbehaved(format!("n{id} panicked over {}: {}", done.what, tail(&said, 3))));
            }
            if let Some(file) = &done.file {
                let named =
                    said.contains(&damage::name_of(file)) || said.contains(&node.fixed.data.display().to_string());
                if !named {
                    let what = &done.what;
                    let text = format!("n{id} refused {what} and named neither file nor directory: {}", tail(&said, 1));
                    bail!(Misbehaved(text));
                }
            }
            return Ok(if code > 0 { "refused to start" } else { "ended when it met it" }.to_owned());
        }
        match self.0 {
            Kind::OldCopy | Kind::Foreign => bail!(Misbehaved(format!("n{id} was given {} and started", done.what))),
            Kind::Truncate | Kind::FlipLog => {
                bail!(Misbehaved(format!(
                    "n{id} started though its log was damaged ({}); it said: {}",
                    done.what,
                    node.fixed.logged_since(before)
                )))
            }
            Kind::FlipManifest | Kind::FlipTable => {}
        }
        // Everything is read once, wherever it lies.
        let client = Client::connect(&stage.cluster.endpoints(), Options::default()).await?;
        let mut refused = Vec::new();
        for table in client.admin().tables().await? {
            for shard in table.shards {
                let report = match client.admin().checksum(shard.id).await {
                    // Its table was dropped meanwhile.
                    Err(error) if error.reason == Reason::UnknownShard => continue,
                    report => report?,
                };
                for replica in report.replicas.iter().filter(|replica| replica.node.0 == id) {
                    if let Err(error) = &replica.content {
                        refused.push(format!("{}: {error}", shard.id));
                    }
                }
            }
        }
        let said = node.fixed.logged_since(before);
        let gone = done.file.as_ref().is_some_and(|file| !file.exists());
        let named = done.file.as_ref().is_some_and(|file| said.contains(&damage::name_of(file)));
        if node.look()?.is_some() {
            return Ok("ended when it read it".to_owned());
        }
        match (refused.is_empty(), named, gone) {
            (false, _, _) => {
                Ok(format!("refused {} of its replicas{}", refused.len(), if named { ", naming the file" } else { "" }))
            }
            (true, true, _) => Ok("named the file in its log".to_owned()),
            (true, false, true) => Ok("had no more use for the file".to_owned()),
            (true, false, false) => bail!(Misbehaved(format!("n{id} did not notice {}", done.what))),
        }
    }
}

impl Nemesis for Damage {
    fn name(&self) -> &'static str {
        match self.0 {
            Kind::FlipTable => "damage-table",
            Kind::FlipLog => "damage-log",
            Kind::FlipManifest => "damage-manifest",
            Kind::Truncate => "damage-truncate",
            Kind::OldCopy => "damage-old",
            Kind::Foreign => "damage-foreign",
        }
    }

    fn what(&self) -> &'static str {
        match self.0 {
            Kind::FlipTable => "bits of a table file flip while a node is stopped; it must notice",
            Kind::FlipLog => "bits of the write-ahead log flip while a node is stopped; it must refuse",
            Kind::FlipManifest => "bits of the list of live files flip while a node is stopped; it must notice",
            Kind::Truncate => "the log of a stopped node loses its end; the node must refuse",
            Kind::OldCopy => "an old copy of a node's directory is put back; the node must refuse",
            Kind::Foreign => "a node is given a copy of another's directory; it must refuse",
        }
    }

    fn wants(&self) -> crate::cluster::Wants {
        crate::cluster::Wants::default()
    }

    fn pace(&self) -> Duration {
        // As for a wipe, which is what follows.
        Duration::from_secs(40)
    }

    fn excuses(&self) -> &'static [&'static str] {
        &["orrupt", "checksum", "CORRUPTION"]
    }

    fn strike<'a>(&'a self, stage: &'a Stage, random: &'a mut SmallRng) -> BoxFuture<'a, Result<Struck>> {
        Box::pin(async move {
            let _alone = stage.all_well().await?;
            let from_ns = stage.clock.now_ns();
            let (mut node, done) = if self.0 == Kind::Foreign {
                self.swap(stage, random).await?
            } else {
                let id = stage.some_node(random).await;
                let mut node = stage.cluster.hold(&[id]).await.remove(0);
                let done = self.harm(stage, &mut node, random).await?;
                (node, done)
            };
            let seen = self.observe(stage, &mut node, &done).await;
            node.kill()?;
            wipe::replace(stage, &mut node).await?;
            let target = format!("n{}", node.fixed.id);
            let proof = format!("{}: it {}", done.what, seen?);
            Ok(Struck { target, from_ns, to_ns: stage.clock.now_ns(), proof })
        })
    }
}
