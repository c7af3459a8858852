//! Rows of the system table, and the picture of the cluster that every node makes of them.
//!
//! An input is a list of changes: a choice of keys and values, as they may stand in the table. What must hold: no row
//! breaks the picture; a row that makes no sense is refused by name; changes may be given twice; a table that is
//! offered has a total map; rows come back as they went.
#![no_main]

mod support;

use std::fmt::Debug;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use trivet::catalog::{ClusterRow, Counter, Directory, NodeRow, RowKey, decode_row, encode_row};
use trivet::types::{NodeId, Reason, ShardDescriptor, ShardId, TableDescriptor, TableId, Timestamp};

fuzz_target!(|data: &[u8]| support::frugally(data, 1 << 20, check));

/// Changes of one input.
const CHANGES_MAX: usize = 12;

fn check(data: &[u8]) {
    let mut input = support::Pieces(data);
    let mut changes = Vec::new();
    while !input.0.is_empty() && changes.len() < CHANGES_MAX {
        let choices = input.byte();
        let id = u64::from(input.byte() % 4);
        // The last id there is has no next one: its range is empty.
        let table = TableId([0, 1, 2, u32::MAX][id as usize]);
        let key = match choices % 8 {
            0 => RowKey::Cluster.encode(),
            1 => RowKey::Node(NodeId(id)).encode(),
            2 | 3 => RowKey::Table(table).encode(),
            4 => RowKey::TableName(["", "a", "b", "orders"][id as usize].to_owned()).encode(),
            5 => RowKey::Shard(table, ShardId(id)).encode(),
            6 => RowKey::Counter(Counter::ALL[id as usize % 3]).encode(),
            _ => Bytes::copy_from_slice(input.piece()),
        };
        let version = Timestamp(u64::from(input.byte()));
        let value = (choices & 0x80 == 0).then(|| Bytes::copy_from_slice(input.piece()));
        if let Some(value) = &value {
            row::<ClusterRow>(value);
            row::<NodeRow>(value);
            row::<TableDescriptor>(value);
            row::<ShardDescriptor>(value);
        }
        changes.push((key, version, value));
    }

    let mut directory = Directory::empty();
    for change in &changes {
        match directory.apply([change.clone()]) {
            Ok(next) => {
                assert!(next.revision() >= directory.revision());
                assert_eq!(next.apply([change.clone()]).expect("it was taken before"), next, "given twice");
                directory = next;
                consistent(&directory);
            }
            Err(error) => assert_eq!(error.reason, Reason::Corruption, "{error}"),
        }
    }
    if let Ok(directory) = Directory::empty().apply(changes) {
        consistent(&directory);
    }
}

/// What is offered can be used.
fn consistent(directory: &Directory) {
    for table in directory.tables() {
        assert_eq!(table.layout.table, table.descriptor.id);
        let (start, end) = table.layout.table_range();
        let shards: Vec<_> = table.shards.iter().collect();
        assert_eq!((&shards[0].start[..], &shards[shards.len() - 1].end[..]), (&start[..], &end[..]));
        assert!(shards.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!(directory.table(table.descriptor.id), Some(table));
    }
    for shard in directory.shards() {
        assert_eq!(directory.shard(shard.id), Some(shard));
    }
    let loads = directory.loads();
    let replicas: usize = directory.shards().map(|shard| shard.replicas.len()).sum();
    assert!(loads.values().map(|load| load.replicas as usize).sum::<usize>() <= replicas);
    let stale = directory.stale_replicas().count();
    assert!(stale <= replicas);
    for counter in Counter::ALL {
        directory.next_id(counter);
    }
}

fn row<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &[u8]) {
    if let Ok(row) = decode_row::<T>(&RowKey::Cluster, value) {
        assert_eq!(decode_row::<T>(&RowKey::Cluster, &encode_row(&row)).expect("it was just encoded"), row);
    }
}
