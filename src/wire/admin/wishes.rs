//! A table that someone wants, checked for all that can be known without looking at the cluster.

use bytes::Bytes;

use super::tables::{decode_partitioning, encode_partitioning};
use crate::types::{Error, Limits, Partitioning, Reason, Result, check_table_name};
use crate::wire::proto::v1;

/// Longest group delimiter, in bytes: it is searched for in every key.
pub const GROUP_DELIMITER_BYTES_MAX: usize = 16;
/// Most shards a table can be created with: each is a Raft group on several nodes.
pub const SHARDS_MAX: u32 = 1_024;
/// How long replaced versions stay readable unless said otherwise: one hour.
pub const HISTORY_MS_DEFAULT: u64 = 60 * 60 * 1_000;

/// A table to be created, checked for everything that can be known without looking at the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTable {
    /// Its name.
    pub name: String,
    /// How its keys become encoded keys.
    pub partitioning: Partitioning,
    /// How many shards it begins with; for a range table one more than the split points. 0: one for each node, which
    /// spreads the leaders and gathers the most writes into each entry of a log.
    pub shards: u32,
    /// Range tables: the keys at which shards begin.
    pub split_points: Vec<Bytes>,
    /// Voters per shard; none: three, or as many as there are nodes if fewer.
    pub replication: Option<u32>,
    /// Learners per shard, which serve reads and do not vote.
    pub read_replicas: u32,
    /// The zone in which they are wanted first.
    pub read_replica_zone: Option<String>,
    /// How long replaced versions stay readable, in milliseconds.
    pub history_ms: u64,
    /// Say what would be done and do nothing.
    pub dry_run: bool,
}

impl NewTable {
    /// A hash table of so many shards (0: one for each node), with everything else at its default.
    pub fn hash(name: impl Into<String>, shards: u32) -> NewTable {
        NewTable {
            name: name.into(),
            partitioning: Partitioning::Hash,
            shards,
            split_points: Vec::new(),
            replication: None,
            read_replicas: 0,
            read_replica_zone: None,
            history_ms: HISTORY_MS_DEFAULT,
            dry_run: false,
        }
    }

    /// A range table cut at `split_points`, with everything else at its default.
    pub fn range(name: impl Into<String>, split_points: Vec<Bytes>) -> NewTable {
        let shards = u32::try_from(split_points.len() + 1).unwrap_or(u32::MAX);
        let partitioning = Partitioning::Range { group_delimiter: None };
        NewTable { partitioning, split_points, ..NewTable::hash(name, shards) }
    }

    /// Reads and checks a request to create a table.
    pub fn decode(request: v1::CreateTableRequest, limits: &Limits) -> Result<NewTable> {
        check_table_name(&request.name)?;
        let partitioning = decode_partitioning(request.partitioning, request.group_delimiter)?;
        let given = request.shards;
        let shards = match partitioning {
            Partitioning::Hash if !request.split_points.is_empty() => {
                return Err(Error::invalid(
                    "split points belong to range tables; a hash table takes a number of shards",
                ));
            }
            Partitioning::Hash => given,
            Partitioning::Range { .. } => {
                let pieces = u32::try_from(request.split_points.len() + 1).unwrap_or(u32::MAX);
                if given != 0 && given != pieces {
                    let text = format!("{given} shards asked for, but the split points make {pieces}");
                    return Err(Error::invalid(text));
                }
                pieces
            }
        };
        if shards > SHARDS_MAX {
            return Err(Error::invalid(format!("{shards} shards; a table can begin with at most {SHARDS_MAX}")));
        }
        if request.read_replica_zone.is_some() && request.read_replicas == 0 {
            return Err(Error::invalid("a zone for read replicas is given, but no number of them"));
        }
        for point in &request.split_points {
            if point.is_empty() {
                return Err(Error::new(Reason::EmptyKey, "a split point needs at least one byte"));
            }
            if point.len() > limits.key_bytes_max {
                let text =
                    format!("a split point of {} bytes; at most {} are allowed", point.len(), limits.key_bytes_max);
                return Err(Error::new(Reason::KeyTooLarge, text));
            }
        }
        Ok(NewTable {
            name: request.name,
            partitioning,
            shards,
            split_points: request.split_points,
            replication: Some(request.replication).filter(|&voters| voters != 0),
            read_replicas: request.read_replicas,
            read_replica_zone: request.read_replica_zone,
            history_ms: request.history_ms.unwrap_or(HISTORY_MS_DEFAULT),
            dry_run: request.dry_run,
        })
    }

    /// The request that asks for this table.
    pub fn encode(self) -> v1::CreateTableRequest {
        let (partitioning, group_delimiter) = encode_partitioning(self.partitioning);
        v1::CreateTableRequest {
            name: self.name,
            partitioning: partitioning.into(),
            shards: self.shards,
            split_points: self.split_points,
            group_delimiter,
            replication: self.replication.unwrap_or(0),
            history_ms: Some(self.history_ms),
            dry_run: self.dry_run,
            read_replicas: self.read_replicas,
            read_replica_zone: self.read_replica_zone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_tables_survive_the_wire() {
        let limits = Limits::default();
        for table in [
            NewTable::hash("orders", 16),
            NewTable { read_replicas: 2, read_replica_zone: Some("east".to_owned()), ..NewTable::hash("near", 1) },
            NewTable { replication: Some(1), history_ms: 0, dry_run: true, ..NewTable::hash("x_.y-1", 1) },
            NewTable::range("names", vec!["m".into(), "t".into()]),
            NewTable::range("names", vec![]),
        ] {
            assert_eq!(NewTable::decode(table.clone().encode(), &limits), Ok(table));
        }
    }

    #[test]
    fn defaults_are_filled_in_and_contradictions_refused() {
        let limits = Limits::default();
        let hash = || v1::CreateTableRequest {
            name: "orders".to_owned(),
            partitioning: v1::Partitioning::Hash.into(),
            ..Default::default()
        };
        let table = NewTable::decode(hash(), &limits).expect("decodes");
        assert_eq!((table.shards, table.replication, table.history_ms), (0, None, HISTORY_MS_DEFAULT));

        let range = || v1::CreateTableRequest { partitioning: v1::Partitioning::Range.into(), ..hash() };
        for refused in [
            v1::CreateTableRequest { name: String::new(), ..hash() },
            v1::CreateTableRequest { name: "_x".to_owned(), ..hash() },
            v1::CreateTableRequest { partitioning: 0, ..hash() },
            v1::CreateTableRequest { partitioning: 9, ..hash() },
            v1::CreateTableRequest { shards: SHARDS_MAX + 1, ..hash() },
            v1::CreateTableRequest { group_delimiter: Some(":".to_owned()), ..hash() },
            v1::CreateTableRequest { split_points: vec!["m".into()], ..hash() },
            v1::CreateTableRequest { group_delimiter: Some(String::new()), ..range() },
            v1::CreateTableRequest { read_replica_zone: Some("east".to_owned()), ..hash() },
            v1::CreateTableRequest { shards: 3, split_points: vec!["m".into()], ..range() },
            v1::CreateTableRequest { split_points: vec!["".into()], ..range() },
            v1::CreateTableRequest { split_points: vec![vec![b'x'; 5_000].into()], ..range() },
        ] {
            NewTable::decode(refused.clone(), &limits).expect_err(&format!("{refused:?} is refused"));
        }
    }
}
