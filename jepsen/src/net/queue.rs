//! Delay, loss and reordering of all packets that arrive in a namespace.
//!
//! The kernel hands each packet to a program of ours (NFQUEUE), which lets it go later or never. The program is this
//! binary again, started inside the namespace, because a queue belongs to the namespace it was opened in. Should it die,
//! packets pass untouched (`--queue-bypass`).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::{Net, Port};
use crate::cluster::record::Record;

/// The queue's number; each namespace has its own.
const QUEUE: u16 = 7;
/// Packets held at most. More than the windows of all connections of a node.
const HELD_MAX: u32 = 20_000;
/// How often packets that are due are looked for.
const TICK: Duration = Duration::from_millis(1);

/// What is done to the packets.
#[derive(Args, Clone, Copy, Debug, PartialEq)]
pub struct Treatment {
    /// Each is held this long, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pub delay: u64,
    /// Give or take this much.
    #[arg(long, default_value_t = 0)]
    pub jitter: u64,
    /// Of a hundred, this many are dropped.
    #[arg(long, default_value_t = 0)]
    pub loss: u32,
    /// Of a hundred, this many are held for another delay and jitter, so that later ones overtake them.
    #[arg(long, default_value_t = 0)]
    pub reorder: u32,
    /// Repeats the choices.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// A treatment under way.
pub struct Treated {
    space: PathBuf,
    child: Child,
}

impl Net {
    /// Begins to treat what arrives at a node.
    pub fn treat(&self, record: &Record, node: Port, treatment: Treatment) -> Result<Treated> {
        let space = self.space(node);
        let Treatment { delay, jitter, loss, reorder, seed } = treatment;
        let child = Command::new("nsenter")
            .arg(format!("--net={}", space.display()))
            .arg(std::env::current_exe().context("the path of this program")?)
            .arg("packets")
            .args([format!("--delay={delay}"), format!("--jitter={jitter}"), format!("--loss={loss}")])
            .args([format!("--reorder={reorder}"), format!("--seed={seed}")])
            .stdin(Stdio::null())
            .spawn()
            .context("cannot run nsenter (util-linux)")?;
        record.pid(child.id())?;
        let treated = Treated { space, child };
        treated.rule("-A")?;
        Ok(treated)
    }
}

impl Treated {
    fn rule(&self, verb: &str) -> Result<()> {
        let number = QUEUE.to_string();
        let rule = ["iptables", "-w", verb, "INPUT", "-j", "NFQUEUE", "--queue-num", &number, "--queue-bypass"];
        super::feed(&self.space, &rule, "")
    }

    /// Ends the treatment; packets that are held are lost.
    pub fn end(mut self) -> Result<()> {
        self.rule("-D")?;
        self.child.kill().context("the packets' program")?;
        self.child.wait()?;
        Ok(())
    }
}

/// A packet that waits until it is due.
struct Held {
    due: Instant,
    number: u64,
    message: nfq::Message,
}

impl PartialEq for Held {
    fn eq(&self, other: &Held) -> bool {
        self.number == other.number
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Held) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Held) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

/// Treats packets until it is killed.
pub fn serve(treatment: Treatment) -> Result<()> {
    let mut queue = nfq::Queue::open().context("NFQUEUE is not in this kernel or not allowed")?;
    queue.bind(QUEUE).context("the queue is in use")?;
    queue.set_queue_max_len(QUEUE, HELD_MAX)?;
    queue.set_nonblocking(true);
    let mut random = SmallRng::seed_from_u64(treatment.seed);
    let mut held: BinaryHeap<Reverse<Held>> = BinaryHeap::new();
    let mut number = 0;
    loop {
        let mut idle = true;
        while let Ok(mut message) = queue.recv() {
            idle = false;
            if random.random_range(0..100) < treatment.loss {
                message.set_verdict(nfq::Verdict::Drop);
                queue.verdict(message)?;
                continue;
            }
            let mut wait = drawn(&mut random, treatment);
            if random.random_range(0..100) < treatment.reorder {
                wait += drawn(&mut random, treatment).max(TICK);
            }
            number += 1;
            held.push(Reverse(Held { due: Instant::now() + wait, number, message }));
        }
        let now = Instant::now();
        while held.peek().is_some_and(|Reverse(first)| first.due <= now) {
            let Some(Reverse(mut first)) = held.pop() else { break };
            first.message.set_verdict(nfq::Verdict::Accept);
            queue.verdict(first.message)?;
            idle = false;
        }
        if idle {
            std::thread::sleep(TICK);
        }
    }
}

fn drawn(random: &mut SmallRng, treatment: Treatment) -> Duration {
    let low = treatment.delay.saturating_sub(treatment.jitter);
    Duration::from_millis(random.random_range(low..=treatment.delay + treatment.jitter))
}
