//! What the planner sees: nodes, shards, and who holds and leads what.

use crate::types::{NodeId, ReplicaId, ShardId, TableId};

/// A cluster at one moment, as far as the planner needs it. The order of the lists does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    /// Every node of the catalog. A replica on a node that is not here counts as lost.
    pub nodes: Vec<NodePicture>,
    /// Every shard of every table that serves. The system shard may be among them; it is left out.
    pub shards: Vec<ShardPicture>,
}

/// What becomes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// An ordinary member.
    Serving,
    /// Its operator wants it empty.
    Draining,
    /// Silent for longer than the delay after which its replicas are made anew elsewhere.
    Lost,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePicture {
    /// The node.
    pub node: NodeId,
    /// Its failure zone.
    pub zone: String,
    /// Its weight among the others, 1 for an ordinary node; 0: it is taken as draining. More than
    /// [`CAPACITY_MAX`](crate::placement::CAPACITY_MAX) is taken as that.
    pub capacity: u32,
    /// What becomes of it.
    pub standing: Standing,
    /// Whether it was heard of a moment ago. One that is silent but not lost yet gets nothing and gives nothing away:
    /// it will most likely be back before a copy were done.
    pub reachable: bool,
    /// A hot spare: it takes replicas only to replace those of lost or draining nodes, and then keeps them.
    pub spare: bool,
}

/// A member of a shard's group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaPicture {
    /// Its id in the group.
    pub replica: ReplicaId,
    /// The node that hosts it.
    pub node: NodeId,
    /// Whether it votes; else it is a read replica.
    pub voter: bool,
}

/// A move that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moving {
    /// The replica that is being replaced.
    pub replica: ReplicaId,
    /// The node of the one that takes its place.
    pub to: NodeId,
}

/// A shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardPicture {
    /// The shard.
    pub shard: ShardId,
    /// Its table.
    pub table: TableId,
    /// The members of its group. While one is being moved, the newcomer may be among them or not.
    pub replicas: Vec<ReplicaPicture>,
    /// The node that leads it, if one is known to.
    pub leader: Option<NodeId>,
    /// Bytes it holds.
    pub bytes: u64,
    /// Requests per second, smoothed over some tens of seconds.
    pub load: u64,
    /// A change of it is under way, whichever: it is left alone and counts as moving.
    pub busy: bool,
    /// The move under way, if that is what makes it busy. It is taken as done in all counts.
    pub moving: Option<Moving>,
}

impl ShardPicture {
    /// Whether a change of it is under way.
    pub fn is_busy(&self) -> bool {
        self.busy || self.moving.is_some()
    }
}
