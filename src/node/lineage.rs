//! Each start of a member is remembered by the other nodes, so that an old copy of its data directory is refused.
//!
//! A copy put back has forgotten votes and acknowledged entries, and nothing inside it tells. So a member gives each
//! of its starts a number and a random word, stores them, and asks its peers before any of its replicas takes part.
//! A peer remembers, durably, the last start it was told of, and refuses a directory which does not know that one: it
//! was copied before it. Members wait here until, with themselves, a majority of the peers they were started with
//! have agreed; the rest are told when they can be reached, and may still refuse.
//!
//! Invariants
//! - A start is stored before anyone is told of it, so a crash in between is a start that nobody has to know.
//! - A peer stores a start before it agrees.
//! - A peer that is no member yet has no memory and nothing against anyone; the founder would wait for it for ever.
//!
//! Left out: a copy that nobody living has seen a later start of. Nothing can tell such a one from the original.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ask;
use super::formation::{self, Bootstrap};
use super::host::Node;
use super::recovery;
use crate::runtime::{random_u64, sleep, spawn};
use crate::storage::{Batch, Engine, Family, Lookup, Tier, log_keys};
use crate::types::{Error, Incarnation, NodeId, Reason, Result};

/// The name under which a member keeps its own starts.
const MINE: &str = "starts";
/// Starts a member keeps: a peer that slept through more of them has nothing to say against it.
const KEPT_MAX: usize = 64;
/// How long one question to one peer may take.
const PEER_TIMEOUT: Duration = Duration::from_secs(2);
/// Between rounds of asking, while the node waits to be let in.
const ROUND_WAIT: Duration = Duration::from_millis(100);
/// Between rounds of telling those that could not be reached.
const REST_WAIT: Duration = Duration::from_secs(5);

/// One start of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Start {
    /// Counts from 1.
    number: u64,
    /// Drawn at the start: tells two starts of one number apart.
    word: u64,
}

/// A member asks whether it may take part: the body of [`ask::START`].
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StartAsk {
    node: NodeId,
    incarnation: Incarnation,
    /// Its newest starts, oldest first, the present one last.
    starts: Vec<Start>,
}

impl StartAsk {
    /// Who asks.
    pub fn node(&self) -> NodeId {
        self.node
    }
}

/// What a peer remembers of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Known {
    incarnation: Incarnation,
    start: Start,
}

fn load<T: DeserializeOwned>(engine: &dyn Engine, name: &str) -> Result<Option<T>> {
    match engine.get(Family::Raft, &log_keys::node(name), Tier::Disk)? {
        Lookup::Found(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::new(Reason::Corruption, format!("the record {name:?} cannot be read: {error}"))),
        Lookup::Missing | Lookup::NeedsDisk => Ok(None),
    }
}

fn store<T: Serialize>(engine: &dyn Engine, name: &str, value: &T) -> Result<()> {
    let mut batch = Batch::new();
    let json = serde_json::to_vec(value).expect("starts are plain data");
    batch.put(Family::Raft, log_keys::node(name), json);
    engine.write(batch)?;
    engine.sync()?;
    Ok(())
}

/// Notes a new start of this directory; returns the newest ones.
fn begin(engine: &dyn Engine) -> Result<Vec<Start>> {
    let mut starts: Vec<Start> = load(engine, MINE)?.unwrap_or_default();
    let number = starts.last().map_or(1, |last| last.number + 1);
    starts.push(Start { number, word: random_u64() });
    if starts.len() > KEPT_MAX {
        starts.drain(..starts.len() - KEPT_MAX);
    }
    store(engine, MINE, &starts)?;
    Ok(starts)
}

/// Answers a member that asks whether it may take part, and remembers it; whether this start is news.
pub fn admit(engine: &dyn Engine, question: &StartAsk) -> Result<bool> {
    recovery::refuse_lost(engine, question.node, question.incarnation)?;
    let name = format!("start-of/{:020}", question.node.0);
    let Some(&present) = question.starts.last() else {
        return Err(Error::invalid("a member that asks to take part names its present start"));
    };
    let known: Option<Known> = load(engine, &name)?;
    if let Some(known) = known.filter(|known| known.incarnation == question.incarnation) {
        let forgotten = question.starts.first().is_some_and(|oldest| known.start.number < oldest.number);
        if !forgotten && !question.starts.contains(&known.start) {
            return Err(Error::new(
                Reason::NodeIdTaken,
                format!(
                    "the data directory of {} is an old copy: it was started again after it was copied (start {} is \
                     known here), and what it acknowledged since is not in it. Put the newest directory back, or \
                     start the node with an empty one: it joins again and is sent everything",
                    question.node, known.start.number
                ),
            ));
        }
        if known.start == present {
            return Ok(false);
        }
    }
    store(engine, &name, &Known { incarnation: question.incarnation, start: present })?;
    Ok(true)
}

/// Waits until a majority of the peers, this node included, agrees that its directory is the newest; an error is a
/// refusal for good.
pub(super) async fn enter(node: &Arc<Node>) -> Result<()> {
    let identity = *node.try_identity().expect("only members enter");
    let starts = begin(&**node.engine())?;
    let question = ask::encode(&StartAsk { node: node.id(), incarnation: node.incarnation(), starts });
    let mut left = peers(node);
    let needed = left.len().div_ceil(2);
    let all = left.len();
    while all - left.len() < needed {
        tell(node, &question, &mut left).await?;
        if all - left.len() < needed {
            // Those of another cluster will never agree; then this directory is on the wrong machine.
            formation::compare_clusters(node, &identity).await?;
            sleep(ROUND_WAIT).await;
        }
    }
    if !left.is_empty() {
        spawn(tell_the_rest(node.clone(), question, left));
    }
    Ok(())
}

/// Notes the first start of a directory that has just become a member. Nobody can know a later one, so it need not wait.
pub(super) fn first(node: &Arc<Node>) -> Result<()> {
    let starts = begin(&**node.engine())?;
    let question = ask::encode(&StartAsk { node: node.id(), incarnation: node.incarnation(), starts });
    spawn(tell_the_rest(node.clone(), question, peers(node)));
    Ok(())
}

/// The other nodes whose addresses this one was started with, but for those given up in a recovery.
fn peers(node: &Node) -> BTreeSet<String> {
    let own = &node.options().address;
    let lost = |address: &String| {
        node.recovery().is_some_and(|recovery| recovery.lost.iter().any(|lost| lost.address == *address))
    };
    let mut peers: BTreeSet<String> = match &node.options().bootstrap {
        Bootstrap::Found { peers } => {
            peers.iter().filter(|&(&peer, _)| peer != node.id()).map(|(_, address)| address.clone()).collect()
        }
        Bootstrap::Join { addresses } => addresses.iter().filter(|&address| address != own).cloned().collect(),
    };
    peers.retain(|address| !lost(address));
    peers
}

/// Tells those who are left, and takes away who has agreed.
async fn tell(node: &Arc<Node>, question: &bytes::Bytes, left: &mut BTreeSet<String>) -> Result<()> {
    for address in left.clone() {
        match node.links().ask(&address, ask::START, question.clone(), PEER_TIMEOUT).await {
            Ok(_) => {
                left.remove(&address);
            }
            Err(error) if error.reason == Reason::NodeIdTaken => return Err(error),
            // No member yet: it remembers nothing, and it may be waiting for this very node to found its cluster.
            Err(error) if error.reason == Reason::NotReady => {
                left.remove(&address);
            }
            Err(error) => tracing::debug!(address, %error, "cannot tell this node of the start yet"),
        }
    }
    Ok(())
}

async fn tell_the_rest(node: Arc<Node>, question: bytes::Bytes, mut left: BTreeSet<String>) {
    let mut stopping = node.stopping();
    let telling = async {
        while !left.is_empty() {
            if let Err(error) = tell(&node, &question, &mut left).await {
                return node.fail(error);
            }
            sleep(REST_WAIT).await;
        }
    };
    tokio::select! {
        biased;
        _ = stopping.wait_for(|&stopping| stopping) => {}
        () = telling => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Memory;

    fn question(incarnation: u64, starts: &[Start]) -> StartAsk {
        StartAsk { node: NodeId(3), incarnation: Incarnation(incarnation), starts: starts.to_vec() }
    }

    #[test]
    fn an_old_copy_is_refused_and_the_newest_is_not() {
        let peer = Memory::new().expect("a temporary directory");
        let mine = Memory::new().expect("a temporary directory");
        begin(&*mine).unwrap();
        let copied: Vec<Start> = load(&*mine, MINE).unwrap().expect("just stored");
        admit(&*peer, &question(1, &copied)).unwrap();
        let now = begin(&*mine).unwrap();
        assert!(admit(&*peer, &question(1, &now)).unwrap(), "a start that was not known");
        assert!(!admit(&*peer, &question(1, &now)).unwrap(), "the same again");

        // The copy is put back and started: its second start is another one than that which the peer knows.
        let copy = Memory::new().expect("a temporary directory");
        store(&*copy, MINE, &copied).unwrap();
        let refused = admit(&*peer, &question(1, &begin(&*copy).unwrap())).unwrap_err();
        assert_eq!(refused.reason, Reason::NodeIdTaken);
        assert!(refused.message.contains("old copy"), "{refused}");
        // An empty directory is another incarnation; the original goes on.
        admit(&*peer, &question(1, &begin(&*mine).unwrap())).unwrap();
        let fresh = Memory::new().expect("a temporary directory");
        admit(&*peer, &question(2, &begin(&*fresh).unwrap())).unwrap();
    }

    #[test]
    fn a_peer_that_slept_through_many_starts_lets_the_member_in() {
        let peer = Memory::new().expect("a temporary directory");
        let mine = Memory::new().expect("a temporary directory");
        admit(&*peer, &question(1, &begin(&*mine).unwrap())).unwrap();
        let mut starts = Vec::new();
        for _ in 0..2 * KEPT_MAX {
            starts = begin(&*mine).unwrap();
        }
        assert_eq!(starts.len(), KEPT_MAX);
        admit(&*peer, &question(1, &starts)).unwrap();
        assert!(admit(&*peer, &question(1, &[])).is_err());
    }
}
