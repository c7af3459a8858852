//! Disks that fail a sync or all writes, are full, slow, stalled, hung or read-only.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::future::BoxFuture;
use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::{Misbehaved, Nemesis, Stage, Struck, up};
use crate::cluster::{Held, Wants};

/// Within this a node whose sync has failed must have ended. The next sync comes with the next write.
const END_WITHIN: Duration = Duration::from_secs(10);
/// Between looks whether a node has met its fault.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What RocksDB answers to whoever writes in the moment between the failure and the end of the process.
const BROKEN_OFF: &str = "Seen error. Skip writing buffer";
/// What the system answers to another who writes in that moment: the same as to the first.
const NO_SPACE: &str = "No space left on device";
/// As before, for a failing disk.
const NO_OUTPUT: &str = "Input/output error";
/// As before, for a file system that has become read-only.
const NO_WRITES: &str = "Read-only file system";

/// An input/output error, as a failing disk gives it.
const EIO: u32 = 5;

#[derive(Clone, Copy)]
enum Kind {
    Sync,
    Write,
    Full,
    Slow,
    Stall,
    Hung,
    ReadOnly,
}

struct Disk(Kind);

pub(super) fn all() -> Vec<Arc<dyn Nemesis>> {
    use Kind::*;
    [Sync, Write, Full, Slow, Stall, Hung, ReadOnly].map(|kind| Arc::new(Disk(kind)) as Arc<dyn Nemesis>).to_vec()
}

/// Lets a fault last for a time; whether the node ended over it. One that has just started may not write at once, so it lasts until
/// the node has met it, if that is not for too long.
async fn last(time: Duration, node: &mut Held, met: impl Fn() -> Result<bool>) -> Result<bool> {
    let mut ended = node.ended(time).await?.is_some();
    let patience = Instant::now() + END_WITHIN;
    while !ended && !met()? && Instant::now() < patience {
        ended = node.ended(LOOK_EVERY).await?.is_some();
    }
    Ok(ended)
}

impl Disk {
    /// Strikes a node that is held; what shows it, and the time when the fault was over.
    async fn at(&self, stage: &Stage, node: &mut Held, random: &mut SmallRng) -> Result<(String, u64)> {
        let fixed = node.fixed.clone();
        // While syncs stall for seconds nothing else goes on, so that is not for as long: it is to come about often.
        let seconds = if let Kind::Stall = self.0 { 1.0..12.0 } else { 1.0..20.0 };
        let time = stage.some_time(seconds, random);
        let shim = || fixed.shim.as_ref().map(|(_, shim)| shim).context("the node has no shim");
        let image = || fixed.image.as_ref().context("the node has no disk of its own");
        let mut ended = false;
        let proof = match self.0 {
            Kind::Sync => {
                let before = shim()?.done()?.syncs_failed;
                shim()?.fail_syncs(1)?;
                let code = node.ended(END_WITHIN).await?;
                let failed = shim()?.done()?.syncs_failed - before;
                shim()?.rest()?;
                ensure!(failed > 0, "n{} synced nothing for {END_WITHIN:?}", fixed.id);
                if code.is_none() {
                    let text = format!("a sync of n{} failed and it went on for {END_WITHIN:?}", fixed.id);
                    bail!(Misbehaved(text));
                }
                ended = true;
                format!("{failed} sync failed, it ended with {}", code.unwrap_or_default())
            }
            Kind::Write => {
                let before = shim()?.done()?.writes_failed;
                shim()?.fail_writes(EIO)?;
                ended |= last(time, node, || Ok(shim()?.done()?.writes_failed > before)).await?;
                shim()?.rest()?;
                let failed = shim()?.done()?.writes_failed - before;
                ensure!(failed > 0, "n{} wrote nothing", fixed.id);
                format!("{failed} writes failed")
            }
            Kind::Slow | Kind::Stall => {
                let before = shim()?.done()?.syncs_delayed;
                let delay = random.random_range(if let Kind::Stall = self.0 { 1_500..8_000 } else { 50..400 });
                shim()?.delay_syncs(delay)?;
                ended |= last(time, node, || Ok(shim()?.done()?.syncs_delayed > before)).await?;
                shim()?.rest()?;
                let delayed = shim()?.done()?.syncs_delayed - before;
                ensure!(delayed > 0, "n{} synced nothing", fixed.id);
                format!("{delayed} syncs took {delay} ms more")
            }
            Kind::Full => {
                image()?.fill()?;
                ended |= last(time, node, || Ok(true)).await?;
                image()?.free()?;
                "the harness could not write either".to_owned()
            }
            Kind::Hung => {
                let writing = image()?.freeze()?;
                // Looking at a process that hangs in the kernel is safe, ending it is not.
                tokio::time::sleep(time).await;
                image()?.thaw(writing)?;
                "a write of the harness hung too".to_owned()
            }
            Kind::ReadOnly => {
                image()?.turn_read_only()?;
                ended |= last(time, node, || Ok(true)).await?;
                node.kill()?;
                image()?.repair()?;
                let proof = "the harness could not write either".to_owned();
                node.start()?;
                return Ok((proof + if ended { "; it ended" } else { "" }, stage.clock.now_ns()));
            }
        };
        // A node may end a moment after its disk is well again over what it met before.
        ended |= node.ended(Duration::from_millis(500)).await?.is_some();
        let to_ns = stage.clock.now_ns();
        if ended {
            node.start()?;
        }
        let end = if ended && !matches!(self.0, Kind::Sync) { "; it ended" } else { "" };
        Ok((proof + end, to_ns))
    }
}

impl Nemesis for Disk {
    fn name(&self) -> &'static str {
        match self.0 {
            Kind::Sync => "disk-sync",
            Kind::Write => "disk-write",
            Kind::Full => "disk-full",
            Kind::Slow => "disk-slow",
            Kind::Stall => "disk-stall",
            Kind::Hung => "disk-hung",
            Kind::ReadOnly => "disk-read-only",
        }
    }

    fn what(&self) -> &'static str {
        match self.0 {
            Kind::Sync => "one sync of a node fails: it must end at once and never acknowledge what hung on it",
            Kind::Write => "every write of a node fails for a while",
            Kind::Full => "a node's disk is full for a while",
            Kind::Slow => "every sync of a node takes 50 to 400 ms longer",
            Kind::Stall => "every sync of a node takes 1.5 to 8 s longer: it must yield, and the others go on",
            Kind::Hung => "a node's disk takes no writes for 1 to 20 s; they hang",
            Kind::ReadOnly => "a node's file system meets an error and turns read-only",
        }
    }

    fn wants(&self) -> Wants {
        match self.0 {
            Kind::Sync | Kind::Write | Kind::Slow | Kind::Stall => Wants { shim: true, ..Wants::default() },
            Kind::Full | Kind::Hung | Kind::ReadOnly => Wants { disk: true, ..Wants::default() },
        }
    }

    fn excuses(&self) -> &'static [&'static str] {
        match self.0 {
            Kind::Slow | Kind::Stall | Kind::Hung => &[],
            Kind::Full => {
                &["the disk is full: no more entries are taken", "cannot make the log durable", BROKEN_OFF, NO_SPACE]
            }
            Kind::ReadOnly => {
                &["cannot make the log durable", "storage was not closed in order", BROKEN_OFF, NO_WRITES]
            }
            Kind::Sync | Kind::Write => {
                &["cannot make the log durable", "storage was not closed in order", BROKEN_OFF, NO_OUTPUT]
            }
        }
    }

    fn strike<'a>(&'a self, stage: &'a Stage, random: &'a mut SmallRng) -> BoxFuture<'a, Result<Struck>> {
        Box::pin(async move {
            let id = stage.some_node(random).await;
            let mut nodes = stage.cluster.hold(&[id]).await;
            let node = nodes.first_mut().expect("one was asked for");
            let from_ns = stage.clock.now_ns();
            let (proof, to_ns) = self.at(stage, node, random).await?;
            up(stage, node).await?;
            Ok(Struck { target: format!("n{id}"), from_ns, to_ns, proof })
        })
    }
}
