//! Keys and values of the system table's rows.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::types::{ClusterId, Error, Incarnation, NodeId, Reason, ReplicaId, Result, ShardId, TableId};

/// What a row of the system table is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// The cluster itself: [`ClusterRow`].
    Cluster,
    /// One node: [`NodeRow`].
    Node(NodeId),
    /// A node that was decommissioned: [`LeftRow`].
    Left(NodeId),
    /// Whether shards are moved about unasked: [`BalancingRow`].
    Balancing,
    /// The last recovery from a lost quorum: [`RecoveryRow`].
    Recovery,
    /// One table: [`TableDescriptor`](crate::types::TableDescriptor).
    Table(TableId),
    /// The name of a table that serves: its id.
    TableName(String),
    /// One shard of a table: [`ShardDescriptor`](crate::types::ShardDescriptor).
    Shard(TableId, ShardId),
    /// The next free id of a kind: a number.
    Counter(Counter),
}

/// Kinds of ids that the catalog gives out, each once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Counter {
    /// Ids of tables.
    Table,
    /// Ids of shards.
    Shard,
    /// Ids of replicas, in all groups together.
    Replica,
}

impl Counter {
    /// All kinds.
    pub const ALL: [Counter; 3] = [Counter::Table, Counter::Shard, Counter::Replica];

    fn name(self) -> &'static str {
        match self {
            Counter::Table => "table",
            Counter::Shard => "shard",
            Counter::Replica => "replica",
        }
    }
}

impl RowKey {
    /// The key in the system table.
    pub fn encode(&self) -> Bytes {
        // Numbers have their full width, so that the order of keys is the order of ids.
        Bytes::from(match self {
            RowKey::Cluster => "cluster".to_owned(),
            RowKey::Node(id) => format!("node/{:020}", id.0),
            RowKey::Left(id) => format!("left/{:020}", id.0),
            RowKey::Balancing => "balancing".to_owned(),
            RowKey::Recovery => "recovery".to_owned(),
            RowKey::Table(id) => format!("table/{:010}", id.0),
            RowKey::TableName(name) => format!("table_name/{name}"),
            RowKey::Shard(table, id) => format!("shard/{:010}/{:020}", table.0, id.0),
            RowKey::Counter(counter) => format!("counter/{}", counter.name()),
        })
    }

    /// What a key of the system table is about; none for a kind of row that this version does not know.
    /// `CORRUPTION` for a key of a known kind that is not written as [`RowKey::encode`] writes it.
    pub fn parse(key: &[u8]) -> Result<Option<RowKey>> {
        let broken = || {
            let key = key.escape_ascii();
            Error::new(
                Reason::Corruption,
                format!("the system table holds a key that no version of Trivet writes: {key}"),
            )
        };
        let Ok(text) = std::str::from_utf8(key) else {
            return Ok(None);
        };
        let (kind, rest) = text.split_once('/').unwrap_or((text, ""));
        let parsed = match kind {
            "cluster" => Some(RowKey::Cluster),
            "node" => rest.parse().ok().map(|id| RowKey::Node(NodeId(id))),
            "left" => rest.parse().ok().map(|id| RowKey::Left(NodeId(id))),
            "balancing" => Some(RowKey::Balancing),
            "recovery" => Some(RowKey::Recovery),
            "table" => rest.parse().ok().map(|id| RowKey::Table(TableId(id))),
            "table_name" => Some(RowKey::TableName(rest.to_owned())),
            "shard" => rest.split_once('/').and_then(|(table, shard)| {
                Some(RowKey::Shard(TableId(table.parse().ok()?), ShardId(shard.parse().ok()?)))
            }),
            "counter" => match Counter::ALL.into_iter().find(|counter| counter.name() == rest) {
                Some(counter) => Some(RowKey::Counter(counter)),
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        let parsed = parsed.ok_or_else(broken)?;
        if parsed.encode() == key { Ok(Some(parsed)) } else { Err(broken()) }
    }
}

/// The cluster itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ClusterRow {
    /// Drawn when it was founded.
    pub id: ClusterId,
    /// When it was founded, in milliseconds since 1970.
    pub created_ms: u64,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NodeRow {
    /// Its id, chosen by its operator.
    pub id: NodeId,
    /// Its data directory.
    pub incarnation: Incarnation,
    /// Where others reach its gRPC server, host:port.
    pub address: String,
    /// Where its HTTP server listens, host:port.
    pub http_address: String,
    /// Its failure zone; replicas of one shard are kept in distinct zones where there are enough.
    pub zone: String,
    /// The version of Trivet it runs.
    pub version: String,
    /// When this data directory joined, in milliseconds since 1970.
    pub joined_ms: u64,
    /// What is wanted of it.
    #[serde(default, skip_serializing_if = "Standing::is_serving")]
    pub standing: Standing,
}

/// What is wanted of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It holds its share of the replicas.
    #[default]
    Serving,
    /// It holds none until one is needed in place of those of a node that is lost or drains.
    Spare,
    /// What it holds moves to others.
    Draining,
}

impl Standing {
    /// Whether it is nothing special.
    pub fn is_serving(&self) -> bool {
        *self == Standing::Serving
    }

    /// What goes by this name; `INVALID_REQUEST` if nothing does.
    pub fn named(name: &str) -> Result<Standing> {
        let all = [Standing::Serving, Standing::Spare, Standing::Draining];
        all.into_iter().find(|standing| standing.as_str() == name).ok_or_else(|| {
            Error::invalid(format!("'{name}' is nothing that can be wanted of a node: serving, spare or draining"))
        })
    }

    /// A name for commands and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Standing::Serving => "serving",
            Standing::Spare => "spare",
            Standing::Draining => "draining",
        }
    }
}

/// A node that was decommissioned: its data directory must not come back.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LeftRow {
    /// Its data directory.
    pub incarnation: Incarnation,
    /// When it left, in milliseconds since 1970.
    pub left_ms: u64,
}

/// Whether shards are moved about unasked. Without a row they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BalancingRow {
    /// They are not.
    pub paused: bool,
}

/// A recovery from a lost quorum: what was given up, and what is still to be done for it. It is also kept by every node
/// that took part.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RecoveryRow {
    /// Names it.
    pub id: u64,
    /// When it was planned, in milliseconds since 1970.
    pub made_ms: u64,
    /// The data directories given up, in this recovery and those before it: none of them may come back.
    pub lost: Vec<LostNode>,
    /// The shards that go on from one replica, as long as their rows do not say so yet.
    pub shards: Vec<RecoveredShard>,
    /// The shards of which nothing was left, in this recovery and those before it: nobody waits for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<ShardId>,
    /// No id below is given out any more, of tables, shards and replicas: the lost part of the catalog may have.
    pub next_ids: NextIds,
}

/// A node given up.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LostNode {
    /// The node.
    pub node: NodeId,
    /// Its data directory.
    pub incarnation: Incarnation,
    /// Where it was reached.
    pub address: String,
}

/// A shard that goes on from one replica.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RecoveredShard {
    /// The shard.
    pub shard: ShardId,
    /// The only member of its group.
    pub heir: RecoveredReplica,
    /// Of shard 0: the empty replicas made on the other nodes that survived.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<RecoveredReplica>,
    /// It was sealed for a left neighbour of which nothing is left, and goes on by itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub released: bool,
}

/// A replica made in a recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RecoveredReplica {
    /// Its id, which nobody had before.
    pub id: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// The node's data directory.
    pub incarnation: Incarnation,
}

/// The least ids that may be given out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NextIds {
    /// Of tables.
    pub table: u64,
    /// Of shards.
    pub shard: u64,
    /// Of replicas.
    pub replica: u64,
}

impl RecoveryRow {
    /// This recovery with what is left of an earlier one: its lost nodes, and the shards it has not finished.
    pub fn after(&self, before: &RecoveryRow) -> RecoveryRow {
        let mut merged = self.clone();
        let forgotten = before.lost.iter().filter(|lost| !self.lost.contains(lost));
        merged.lost.extend(forgotten.cloned());
        let done = |shard: &RecoveredShard| self.shards.iter().any(|mine| mine.shard == shard.shard);
        merged
            .shards
            .extend(before.shards.iter().filter(|shard| !done(shard) && !self.gone.contains(&shard.shard)).cloned());
        merged.gone.extend(before.gone.iter().filter(|shard| !self.gone.contains(shard)));
        let (mine, theirs) = (self.next_ids, before.next_ids);
        merged.next_ids = NextIds {
            table: mine.table.max(theirs.table),
            shard: mine.shard.max(theirs.shard),
            replica: mine.replica.max(theirs.replica),
        };
        merged
    }

    /// What is still to be noted of a shard.
    pub fn of(&self, shard: ShardId) -> Option<&RecoveredShard> {
        self.shards.iter().find(|recovered| recovered.shard == shard)
    }

    /// Whether a shard is not what it was: it goes on from one replica, which its row does not say yet, or nothing is left.
    pub fn concerns(&self, shard: ShardId) -> bool {
        self.of(shard).is_some() || self.gone.contains(&shard)
    }

    /// Whether a data directory was given up.
    pub fn has_lost(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.lost.iter().any(|lost| lost.node == node && lost.incarnation == incarnation)
    }
}

/// The value of a row.
pub fn encode_row<T: Serialize>(row: &T) -> Bytes {
    Bytes::from(serde_json::to_vec(row).expect("rows are plain data with text keys, which JSON always holds"))
}

/// The row in a value; `CORRUPTION`, naming the key, if it is none.
pub fn decode_row<T: DeserializeOwned>(key: &RowKey, value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|error| corrupt(key, &error.to_string()))
}

pub(super) fn corrupt(key: &RowKey, what: &str) -> Error {
    let key = key.encode();
    Error::new(Reason::Corruption, format!("the system table's row {} cannot be used: {what}", key.escape_ascii()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_golden() {
        for (key, text) in [
            (RowKey::Cluster, "cluster"),
            (RowKey::Node(NodeId(7)), "node/00000000000000000007"),
            (RowKey::Node(NodeId(u64::MAX)), "node/18446744073709551615"),
            (RowKey::Table(TableId(3)), "table/0000000003"),
            (RowKey::TableName("a.b-c".into()), "table_name/a.b-c"),
            (RowKey::Left(NodeId(7)), "left/00000000000000000007"),
            (RowKey::Balancing, "balancing"),
            (RowKey::Recovery, "recovery"),
            (RowKey::Shard(TableId(3), ShardId(12)), "shard/0000000003/00000000000000000012"),
            (RowKey::Counter(Counter::Replica), "counter/replica"),
        ] {
            assert_eq!(key.encode(), text);
            assert_eq!(RowKey::parse(text.as_bytes()), Ok(Some(key)));
        }
    }

    #[test]
    fn unknown_kinds_are_passed_over_and_broken_keys_are_not() {
        for key in [&b"view/7"[..], b"counter/view", b"switch", b"\xFF", b""] {
            assert_eq!(RowKey::parse(key), Ok(None), "{}", key.escape_ascii());
        }
        for key in [
            "node/7",
            "node/",
            "node/-0000000000000000001",
            "cluster/",
            "table/00000000003",
            "shard/0000000003",
            "shard/3/4",
        ] {
            assert_eq!(RowKey::parse(key.as_bytes()).expect_err(key).reason, Reason::Corruption);
        }
    }

    #[test]
    fn unknown_fields_are_passed_over_and_missing_ones_are_not() {
        let row: ClusterRow =
            decode_row(&RowKey::Cluster, br#"{"id":1,"created_ms":2,"motto":"hot"}"#).expect("a newer row");
        assert_eq!(row, ClusterRow { id: ClusterId(1), created_ms: 2 });
        let error = decode_row::<ClusterRow>(&RowKey::Cluster, br#"{"id":1}"#).expect_err("incomplete");
        assert_eq!(error.reason, Reason::Corruption);
        assert!(error.message.contains("cluster") && error.message.contains("created_ms"), "{error}");
    }

    fn keys() -> impl Strategy<Value = RowKey> {
        prop_oneof![
            Just(RowKey::Cluster),
            any::<u64>().prop_map(|id| RowKey::Node(NodeId(id))),
            any::<u64>().prop_map(|id| RowKey::Left(NodeId(id))),
            Just(RowKey::Balancing),
            Just(RowKey::Recovery),
            any::<u32>().prop_map(|id| RowKey::Table(TableId(id))),
            "[a-z0-9_./-]{1,12}".prop_map(RowKey::TableName),
            (any::<u32>(), any::<u64>()).prop_map(|(table, id)| RowKey::Shard(TableId(table), ShardId(id))),
            proptest::sample::select(Counter::ALL.to_vec()).prop_map(RowKey::Counter),
        ]
    }

    proptest! {
        #[test]
        fn parsing_undoes_encoding(key in keys()) {
            prop_assert_eq!(RowKey::parse(&key.encode())?, Some(key));
        }

        #[test]
        fn keys_of_one_kind_are_in_the_order_of_their_ids(one: u64, two: u64, table: u32) {
            let node = |id| RowKey::Node(NodeId(id)).encode();
            let shard = |id| RowKey::Shard(TableId(table), ShardId(id)).encode();
            prop_assert_eq!(node(one).cmp(&node(two)), one.cmp(&two));
            prop_assert_eq!(shard(one).cmp(&shard(two)), one.cmp(&two));
        }
    }
}
