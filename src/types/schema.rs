//! What the catalog says of tables, shards and replicas.

use super::{Epoch, Error, Incarnation, NodeId, ReplicaId, Result, ShardId, TableId};

/// Longest name of a table, in bytes.
pub const TABLE_NAME_BYTES_MAX: usize = 128;

/// Refuses names that would be awkward in a shell, a URL, a path or a metric's label: a name is 1 to
/// [`TABLE_NAME_BYTES_MAX`] of `a-z A-Z 0-9 _ - .` and begins with a letter or a digit.
pub fn check_table_name(name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let begins_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if begins_well && name.len() <= TABLE_NAME_BYTES_MAX && name.bytes().all(plain) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "a table's name is 1 to {TABLE_NAME_BYTES_MAX} letters, digits, '_', '-' or '.', and begins with a letter or a \
         digit"
    )))
}

/// A table as one who asks names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRef<'a> {
    /// Its name.
    pub name: &'a str,
    /// Which of all that have ever had the name, if that is known.
    pub id: Option<TableId>,
}

impl<'a> From<&'a str> for TableRef<'a> {
    fn from(name: &'a str) -> TableRef<'a> {
        TableRef { name, id: None }
    }
}

/// How a table's keys are ordered and cut into shards.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Partitioning {
    /// Keys are spread over 65,536 slots by their tag; shards own ranges of slots.
    Hash,
    /// Keys stay in their own order; shards own ranges of keys.
    Range {
        /// If set, the part of a key up to this delimiter is a group that never splits and takes atomic batches.
        group_delimiter: Option<String>,
    },
}

/// Whether a table serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableState {
    /// Serving.
    Ready,
    /// Being dropped: its shards go, its id stays used for ever.
    Dropping,
}

/// A table as the catalog knows it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TableDescriptor {
    /// Its id, never reused.
    pub id: TableId,
    /// Its name, unique among the tables that serve.
    pub name: String,
    /// How keys become encoded keys.
    pub partitioning: Partitioning,
    /// Voters per shard.
    pub replication: u32,
    /// Learners per shard, which serve reads and do not vote.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub read_replicas: u32,
    /// The zone in which they are wanted first, as far as it has nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_replica_zone: Option<String>,
    /// How long replaced versions stay readable, in milliseconds.
    pub history_ms: u64,
    /// Serving or going.
    pub state: TableState,
    /// What it is derived from, if it is a view.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<ViewDescriptor>,
}

/// What makes a table a view: nobody writes to it but its upkeep.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ViewDescriptor {
    /// The definition in its canonical form.
    pub definition: String,
    /// The tables it is derived from, in the order of the definition.
    pub sources: Vec<TableId>,
    /// Whether it was found to hold what its sources say since it was made; until then it is being built.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ready: bool,
    /// Whether it is being made anew because it had fallen behind what its sources remember.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rebuilding: bool,
    /// Whether its upkeep rests because somebody said so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// The view whose name it takes when it is ready: this one is another form of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<TableId>,
}

/// A replica's part in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaRole {
    /// Votes and counts for the quorum.
    Voter,
    /// Follows without a vote: a read replica, or a voter to be.
    Learner,
}

/// One wanted member of a shard's group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReplicaDescriptor {
    /// Its id in the group, never reused.
    pub id: ReplicaId,
    /// The node that hosts it.
    pub node: NodeId,
    /// The data directory that hosts it: a wiped node must not stand in for the one it was.
    pub incarnation: Incarnation,
    /// Voter or learner.
    pub role: ReplicaRole,
}

/// A shard as the catalog wants it: a range, an epoch and the members. The shard's own log has the last word.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ShardDescriptor {
    /// Its id, never reused.
    pub id: ShardId,
    /// The table it belongs to.
    pub table: TableId,
    /// First encoded key it owns.
    #[serde(with = "hex_bytes")]
    pub start: Vec<u8>,
    /// First encoded key it no longer owns.
    #[serde(with = "hex_bytes")]
    pub end: Vec<u8>,
    /// Raised by every change of the range.
    pub epoch: Epoch,
    /// The wanted members; the first voter is the preferred leader of a new shard.
    pub replicas: Vec<ReplicaDescriptor>,
    /// The members the group was founded with; whoever is not among them joins as a learner. None if it was split off
    /// another shard: then it was born with its members.
    pub founders: Vec<ReplicaId>,
    /// Whether the group has been seen at work since: then nobody founds it any more, and its members may be others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub founded: bool,
    /// A split that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<SplitIntent>,
    /// Whether it was split off unasked, and may be merged unasked again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unasked: bool,
    /// A merge with its right neighbour that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<MergeIntent>,
    /// The left neighbour that it is being merged into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merging_into: Option<ShardId>,
}

/// A split that is wanted of a shard, from the moment its ids were given out until both parts stand in the catalog.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SplitIntent {
    /// The encoded key at which the right part begins.
    #[serde(with = "hex_bytes")]
    pub at: Vec<u8>,
    /// The shard that gets the right part.
    pub child: ShardId,
    /// Its first members: one beside each member of the parent, in the same role.
    pub replicas: Vec<ReplicaDescriptor>,
    /// Whether nobody asked for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unasked: bool,
}

/// A merge that is wanted of a shard, from the moment its right neighbour's members are wanted beside its own until it
/// has taken over that one's range in the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MergeIntent {
    /// The neighbour, which ends.
    pub right: ShardId,
    /// The neighbour's last epoch, once it is sealed: later than any that either of the two had before. The two as one
    /// have the next, so whoever of the left has a later epoch than this has taken the right over.
    pub sealed: Epoch,
}

impl ShardDescriptor {
    /// A shard of its first epoch, with nothing under way; `range` from its first key to the first that is not its own.
    pub fn new(
        id: ShardId,
        table: TableId,
        (start, end): (Vec<u8>, Vec<u8>),
        replicas: Vec<ReplicaDescriptor>,
    ) -> ShardDescriptor {
        ShardDescriptor {
            id,
            table,
            start,
            end,
            epoch: Epoch(1),
            replicas,
            founders: Vec::new(),
            founded: false,
            split: None,
            unasked: false,
            merge: None,
            merging_into: None,
        }
    }

    /// Whether the shard owns `encoded`.
    pub fn contains(&self, encoded: &[u8]) -> bool {
        self.start.as_slice() <= encoded && encoded < self.end.as_slice()
    }

    /// The wanted replica on `node`, if there is one.
    pub fn replica_on(&self, node: NodeId) -> Option<&ReplicaDescriptor> {
        self.replicas.iter().find(|replica| replica.node == node)
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Byte strings as lower-case hex in JSON.
pub(crate) mod hex_bytes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if !text.is_ascii() || text.len() % 2 != 0 {
            return Err(D::Error::custom("expected an even number of hex digits"));
        }
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).map_err(D::Error::custom))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tables_are_plain() {
        for name in ["a", "7", "orders", "x_.y-1", &"a".repeat(TABLE_NAME_BYTES_MAX)] {
            assert!(check_table_name(name).is_ok(), "{name}");
        }
        for name in ["", "_x", "-a", ".a", "a/b", "a b", "é", "a\0", &"a".repeat(TABLE_NAME_BYTES_MAX + 1)] {
            let error = check_table_name(name).expect_err(name);
            assert!(error.message.contains("begins with a letter"), "{error}");
        }
    }
}
