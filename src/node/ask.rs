//! Rare questions between nodes, as small JSON documents: who are you, may I join, what do you see, please do.
//!
//! What concerns this node alone is answered here; what changes the cluster goes to the handler that control has
//! registered. Data travels this way only as upkeep of views, in a form of its own (`views`).

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::host::Node;
use super::views;
use crate::catalog::NodeRow;
use crate::types::{ClusterId, Error, Incarnation, NodeId, Reason, Result, ShardDescriptor, ShardId, Timestamp};

/// How long a rare question may take.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// Who a node is: the answer to `identity`.
pub const IDENTITY: &str = "identity";
/// To become, or go on being, a member: [`JoinAsk`], [`JoinAnswer`].
pub const JOIN: &str = "join";
/// May this data directory take part: `lineage::StartAsk`.
pub const START: &str = "start";
/// A node's report: [`super::NodeReport`].
pub const REPORT: &str = "report";
/// The newest revision of the catalog, confirmed by shard 0's leader.
pub const REVISION: &str = "revision";
/// Note checksums of a shard under a name (to its leader).
pub const NOTE_CHECKSUM: &str = "note_checksum";
/// The checksum of one replica.
pub const CHECKSUM: &str = "checksum";
/// Where a shard would be cut into halves: [`ShardAsk`] to its leader, `Option<Vec<u8>>` back, an encoded key.
pub const MIDDLE: &str = "middle";
/// Which keys a shard's leader was asked for: [`ShardAsk`], `Vec<(Vec<u8>, u64)>` back, encoded keys in order with how
/// often each was seen.
pub const KEYS: &str = "keys";
/// A shard was split: [`super::SplitNews`], to shard 0's leader.
pub const SPLIT_NEWS: &str = "split_news";
/// A shard has taken over its right neighbour, or never will: [`super::MergeNews`], to shard 0's leader.
pub const MERGE_NEWS: &str = "merge_news";
/// Seal yourself for your left neighbour: `SealAsk` to a shard's leader; the index at which it is sealed back.
pub const SEAL: &str = "seal";
/// The merge is off: `ReleaseAsk` to the leader of the right shard.
pub const RELEASE: &str = "release";
/// Is a replica sealed, durably: `SealedAsk`.
pub const SEALED: &str = "sealed";
/// Is a replica still a member: [`super::MemberAsk`] to its shard's leader, [`super::MemberAnswer`] back.
pub const MEMBER: &str = "member";
/// Hand over the leadership of a shard (to its leader).
pub const TRANSFER: &str = "transfer";

/// Whether there is room on the disk: `RoomAsk`, `bool`.
pub const ROOM: &str = "room";

/// Whether someone who names no cluster may ask this.
pub fn open_to_strangers(kind: &str) -> bool {
    kind == IDENTITY || kind == JOIN
}

/// Answers the questions that change the cluster.
pub trait AskHandler: Send + Sync + 'static {
    /// Answers one question; an unknown kind is an error.
    fn answer<'a>(&'a self, kind: &'a str, body: Bytes) -> BoxFuture<'a, Result<Bytes>>;
}

/// A node introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct JoinAsk {
    /// The cluster it is a member of; none if its directory is empty.
    pub cluster: Option<ClusterId>,
    /// Its row in the catalog, as it should be.
    pub row: NodeRow,
    /// Whether a member that does not lead has passed it on already. That is done once: the leader is whom one member
    /// takes for it, and while an election settles two members may take each other, or one itself, for the leader.
    #[serde(default)]
    pub passed_on: bool,
}

/// The answer to a node that introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinAnswer {
    /// The node asked is not a member of any cluster either.
    Empty {
        /// Who it is.
        node: NodeId,
    },
    /// Welcome.
    Member {
        /// The cluster.
        cluster: ClusterId,
        /// Shard 0, with the newcomer among its replicas.
        system: Box<ShardDescriptor>,
        /// All nodes.
        nodes: Vec<NodeRow>,
    },
}

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct IdentityAnswer {
    /// The id it was started with.
    pub node: NodeId,
    /// Its cluster, if it is a member of one.
    pub cluster: Option<ClusterId>,
    /// Its data directory.
    pub incarnation: Incarnation,
}

/// Asks about one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ShardAsk {
    /// The shard.
    pub shard: ShardId,
    /// A checksum's name, or the node to lead.
    pub argument: u64,
}

/// One replica's checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChecksumAnswer {
    /// The position summed at.
    pub index: u64,
    /// The sum.
    pub checksum: u32,
    /// Versions summed.
    pub versions: u64,
}

/// Encodes a question or an answer.
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).expect("questions and answers are plain data").into()
}

/// Decodes a question or an answer.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| {
        Error::invalid(format!("a message of another node cannot be understood ({error}); do the versions match?"))
    })
}

impl Node {
    /// Answers a question of another node (or of this one).
    pub(super) async fn answer(&self, kind: &str, body: Bytes) -> Result<Bytes> {
        let deadline = self.clock().now() + ASK_TIMEOUT;
        match kind {
            IDENTITY => Ok(encode(&IdentityAnswer {
                node: self.id(),
                cluster: self.try_identity().map(|identity| identity.cluster),
                incarnation: self.incarnation(),
            })),
            START => Ok(encode(&self.admit(&decode(&body)?)?)),
            REPORT => Ok(encode(&self.report())),
            REVISION => {
                let system = self.system_shard()?;
                system.confirm(deadline).await?;
                Ok(encode(&system.state().last_timestamp))
            }
            NOTE_CHECKSUM => {
                let ask: ShardAsk = decode(&body)?;
                self.hosted(ask.shard)?.note_checksum(ask.argument, deadline).await?;
                Ok(encode(&()))
            }
            CHECKSUM => {
                let ask: ShardAsk = decode(&body)?;
                // Summing a large shard takes longer than other questions.
                let sum = self.hosted(ask.shard)?.checksum(ask.argument, deadline + ASK_TIMEOUT).await?;
                Ok(encode(&ChecksumAnswer { index: sum.index, checksum: sum.checksum, versions: sum.versions }))
            }
            MIDDLE => {
                let ask: ShardAsk = decode(&body)?;
                let middle = self.hosted(ask.shard)?.middle().await?;
                Ok(encode(&middle.map(|key| key.to_vec())))
            }
            KEYS => {
                let ask: ShardAsk = decode(&body)?;
                let sample = self.hosted(ask.shard)?.load().take_sample();
                Ok(encode(&sample.into_iter().map(|(key, count)| (key.to_vec(), count)).collect::<Vec<_>>()))
            }
            SEAL => Ok(encode(&self.seal(decode(&body)?, deadline).await?)),
            RELEASE => Ok(encode(&self.release(decode(&body)?, deadline).await?)),
            SEALED => Ok(encode(&self.sealed(decode(&body)?, deadline).await?)),
            MEMBER => Ok(encode(&self.member(decode(&body)?, deadline).await?)),
            TRANSFER => {
                let ask: ShardAsk = decode(&body)?;
                self.transfer(ask.shard, NodeId(ask.argument)).await?;
                Ok(encode(&()))
            }
            views::UPKEEP | views::STANDING | views::VIEW_STOPS | views::NEWEST | views::NEWEST_OF_SEVERAL => {
                self.answer_of_views(kind, body, deadline).await
            }
            views::VERIFY => Ok(encode(&self.verify_here(decode(&body)?).await?)),
            ROOM => Ok(encode(&self.note_room(decode(&body)?))),
            JOIN if self.try_identity().is_none() => Ok(encode(&JoinAnswer::Empty { node: self.id() })),
            _ => match self.handler() {
                Some(handler) => handler.answer(kind, body).await,
                None => Err(Error::new(Reason::NotReady, "this node has just started; try again in a moment")),
            },
        }
    }

    /// Asks a node something, this one included.
    pub async fn ask<Q: Serialize, A: DeserializeOwned>(&self, node: NodeId, kind: &str, question: &Q) -> Result<A> {
        self.ask_for(node, kind, question, ASK_TIMEOUT).await
    }

    /// As [`Node::ask`], with a patience of one's own.
    pub async fn ask_for<Q: Serialize, A: DeserializeOwned>(
        &self,
        node: NodeId,
        kind: &str,
        question: &Q,
        patience: Duration,
    ) -> Result<A> {
        self.ask_with(node, kind, encode(question), patience).await
    }

    async fn ask_with<A: DeserializeOwned>(
        &self,
        node: NodeId,
        kind: &str,
        body: Bytes,
        patience: Duration,
    ) -> Result<A> {
        if node == self.id() {
            return decode(&Box::pin(self.answer(kind, body)).await?);
        }
        let address = self
            .links()
            .address(node)
            .ok_or_else(|| Error::new(Reason::UnknownNode, format!("{node} has no known address")))?;
        decode(&self.links().ask(&address, kind, body, patience).await?)
    }

    /// Asks whoever listens at an address.
    pub async fn ask_at(&self, address: &str, kind: &str, body: Bytes, patience: Duration) -> Result<Bytes> {
        self.links().ask(address, kind, body, patience).await
    }

    /// Asks the leader of a shard: first whom this node takes for it, then those that are to have a replica, and whomever
    /// they name: it may be where none is wanted any more. `CONFLICT` is what a leader refuses with, and ends the search;
    /// after any other error the next one is asked, and the last error is returned.
    pub(super) async fn ask_shard_leader<Q: Serialize, A: DeserializeOwned>(
        &self,
        shard: &ShardDescriptor,
        kind: &str,
        question: &Q,
    ) -> Result<A> {
        self.ask_shard_leader_with(shard, kind, encode(question)).await
    }

    /// As `ask_shard_leader`, with a question in a form of its own.
    pub(super) async fn ask_shard_leader_with<A: DeserializeOwned>(
        &self,
        shard: &ShardDescriptor,
        kind: &str,
        question: Bytes,
    ) -> Result<A> {
        let mut last = Error::new(Reason::NoQuorum, format!("{} has no leader right now", shard.id));
        let mut left: Vec<NodeId> = shard.replicas.iter().map(|replica| replica.node).collect();
        let mut asked = BTreeSet::new();
        let mut hint = self.replicas().get(shard.id).and_then(|replica| replica.leader()).map(|(_, leader)| leader);
        // Everyone once: hints can only name nodes of the cluster.
        while let Some(next) = hint.take().or_else(|| left.pop()) {
            if !asked.insert(next) {
                continue;
            }
            match self.ask_with(next, kind, question.clone(), ASK_TIMEOUT).await {
                Ok(answer) => return Ok(answer),
                Err(error) if error.reason == Reason::Conflict => return Err(error),
                Err(error) => {
                    hint = error.leader;
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// The newest revision of the catalog, confirmed by shard 0's leader.
    pub async fn newest_revision(&self) -> Result<Timestamp> {
        self.ask_system_leader(REVISION, &()).await
    }

    /// Asks the leader of shard 0, wherever it is; follows it for a while if it moves.
    pub async fn ask_system_leader<Q: Serialize, A: DeserializeOwned>(&self, kind: &str, question: &Q) -> Result<A> {
        self.ask_system_leader_for(kind, question, ASK_TIMEOUT).await
    }

    /// As [`Node::ask_system_leader`], with a patience of one's own for each attempt.
    pub async fn ask_system_leader_for<Q: Serialize, A: DeserializeOwned>(
        &self,
        kind: &str,
        question: &Q,
        patience: Duration,
    ) -> Result<A> {
        let deadline = self.clock().now() + patience.max(2 * ASK_TIMEOUT);
        let mut last = Error::new(Reason::NoQuorum, "the system table has no leader right now; try again in a moment");
        let mut hint = None;
        let mut strangers = self.links().known().into_iter().filter(|&node| node != self.id()).cycle();
        while self.clock().now() < deadline {
            // Whose copy of the catalog is no member any more hears of no leader: any other node names it.
            let known = hint.take().or_else(|| self.system_leader());
            if let Some(leader) = known.or_else(|| strangers.next()) {
                match self.ask_for(leader, kind, question, patience).await {
                    Ok(answer) => return Ok(answer),
                    Err(error) if known.is_none() || matches!(error.reason, Reason::NotLeader | Reason::NotReady) => {
                        hint = error.leader.filter(|&node| node != leader);
                        last = error;
                    }
                    Err(error) => return Err(error),
                }
            }
            crate::runtime::sleep(Duration::from_millis(50)).await;
        }
        Err(last)
    }
}
