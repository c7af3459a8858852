//! Newtypes for every id and counter, so that two integers of different meaning never meet.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id! {
    /// A node: one process with one data directory, under an id its operator chose.
    NodeId(u64), "n"
}
id! {
    /// A table or view. Ids are never reused; 0 is the system table and ids from [`TableId::RESERVED`] up are ours.
    TableId(u32), "t"
}
id! {
    /// A shard: one contiguous range of encoded keys, one Raft group. Shard 0 holds the system table.
    ShardId(u64), "s"
}
id! {
    /// A member of a shard's Raft group; never reused, not even after its disk was wiped.
    ReplicaId(u64), "r"
}
id! {
    /// A counter raised whenever a shard's range changes; a request made under an older one is sent back to its map.
    Epoch(u64), "e"
}
id! {
    /// One of 65,536 hash slots.
    Slot(u16), ""
}

impl TableId {
    /// The system table (the catalog).
    pub const SYSTEM: TableId = TableId(0);
    /// First table id that users never get: side records live under these prefixes (docs/formats.md).
    pub const RESERVED: u32 = 0xFFFF_FF00;
}

impl ShardId {
    /// The shard of the system table.
    pub const SYSTEM: ShardId = ShardId(0);
}

/// A random number drawn when a data directory is created: tells a node from a wiped one under the same id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

/// A random number drawn when a cluster is founded; every frame between nodes carries it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub u64);

macro_rules! hex {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}
hex!(Incarnation);
hex!(ClusterId);
