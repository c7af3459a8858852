//! What one stopped node holds, as a small file.
//!
//! A node that was killed has hardly ever applied all that its log has; an heir applies it. So of shards and of the catalog alike,
//! what is said here is how they will be when everything in the log is applied.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::catalog::{Directory, RecoveryRow};
use crate::keyspace::Layout;
use crate::node::{Identity, recovery};
use crate::raft::Remains;
use crate::shard::Survivor;
use crate::storage::{Reader, mvcc};
use crate::types::hex_bytes;
use crate::types::{
    Action, ClusterId, Epoch, Error, Incarnation, NodeId, Reason, ReplicaId, Result, ShardId, TableId, Test, Timestamp,
    Write,
};

/// What the file says it is; another version of it is refused.
const FORMAT: &str = "trivet survivor 1";
/// Rows and bytes of the catalog read at once.
const PAGE_ROWS: usize = 1_024;
const PAGE_BYTES: usize = 4 << 20;

/// What one stopped node holds.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Collected {
    format: String,
    /// The cluster it is a member of.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// Its data directory.
    pub incarnation: Incarnation,
    /// The last recovery it took part in.
    pub recovery: Option<RecoveryRow>,
    /// How far its copy of the catalog has come, when everything in its log is applied.
    pub revision: Timestamp,
    /// The rows of its copy then: key, version, value.
    pub catalog: Vec<(String, Timestamp, String)>,
    /// Its replicas, in order of their shards.
    pub replicas: Vec<Replica>,
}

/// One replica on a stopped node.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Replica {
    /// The shard.
    pub shard: ShardId,
    /// The member.
    pub replica: ReplicaId,
    /// The table.
    pub table: TableId,
    /// First encoded key that it owns, when everything in its log is applied.
    #[serde(with = "hex_bytes")]
    pub start: Vec<u8>,
    /// First encoded key that it no longer owns then.
    #[serde(with = "hex_bytes")]
    pub end: Vec<u8>,
    /// Its epoch then.
    pub epoch: Epoch,
    /// The left neighbour that it is sealed for then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_for: Option<ShardId>,
    /// The newest version it has applied.
    pub newest: Timestamp,
    /// What it holds of its group.
    pub log: Remains,
}

impl Collected {
    /// Reads a store. The same store gives the same answer until the node is started again.
    pub fn from_store(reader: &dyn Reader) -> Result<Collected> {
        let identity = Identity::load(reader)?.ok_or_else(|| {
            Error::invalid("this data directory belongs to no cluster: its node never joined one, and it holds nothing")
        })?;
        let survivors = Survivor::load_all(reader)?;
        let system = survivors.iter().find(|survivor| survivor.record.shard == ShardId::SYSTEM);
        let applied = system.map_or(Timestamp::ZERO, Survivor::newest);
        let mut catalog = catalog_rows(reader, applied)?;
        for (at, write) in system.into_iter().flat_map(|system| &system.writes) {
            follow(&mut catalog, *at, write)?;
        }
        let catalog = catalog.into_iter().map(|(key, (version, value))| (key, version, value));
        let replicas = survivors.iter().map(|survivor| Replica {
            shard: survivor.record.shard,
            replica: survivor.record.replica,
            table: survivor.record.table,
            start: survivor.end.start.to_vec(),
            end: survivor.end.end.to_vec(),
            epoch: survivor.end.epoch,
            sealed_for: survivor.end.sealed_for,
            newest: survivor.newest(),
            log: survivor.log.clone(),
        });
        Ok(Collected {
            format: FORMAT.to_owned(),
            cluster: identity.cluster,
            node: identity.node,
            incarnation: identity.incarnation,
            recovery: recovery::load(reader)?,
            revision: system.map_or(Timestamp::ZERO, |system| system.end.last_timestamp),
            catalog: catalog.collect(),
            replicas: replicas.collect(),
        })
    }

    /// Reads the file.
    pub fn from_json(text: &str) -> Result<Collected> {
        let collected: Collected = serde_json::from_str(text)
            .map_err(|error| Error::invalid(format!("this is no file of `trivet debug recover collect`: {error}")))?;
        if collected.format != FORMAT {
            return Err(Error::invalid(format!(
                "the file is of the format {:?}, this build knows {FORMAT:?}: collect and plan with one version",
                collected.format
            )));
        }
        Ok(collected)
    }

    /// The file.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data")
    }

    /// A number that another store, or this one after it was started again, has only by one chance in four billion.
    pub fn digest(&self) -> u32 {
        crc32fast::hash(self.to_json().as_bytes())
    }

    /// The replica of a shard.
    pub fn replica(&self, shard: ShardId) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.shard == shard)
    }

    /// The catalog as this node has applied it.
    pub fn directory(&self) -> Result<Directory> {
        let bytes = |text: &String| Bytes::copy_from_slice(text.as_bytes());
        let rows = self.catalog.iter().map(|(key, version, value)| (bytes(key), *version, bytes(value)));
        Directory::from_rows(self.revision, rows)
    }
}

/// The rows of the system table: by key, version and value.
type Rows = BTreeMap<String, (Timestamp, String)>;

/// The rows of the system table as of a revision.
fn catalog_rows(reader: &dyn Reader, revision: Timestamp) -> Result<Rows> {
    let layout = Layout::system();
    let (mut start, end) = layout.table_range();
    let mut rows = Rows::new();
    loop {
        let limits = mvcc::ScanLimits { rows_max: PAGE_ROWS, bytes_max: PAGE_BYTES, count_only: false };
        let page = mvcc::scan(reader, &start, &end, revision, 0, false, limits)?;
        for (encoded, version) in page.rows {
            let Some(value) = version.value else { continue };
            // Rows of kinds that this version does not know need not be text, and are of no use to it.
            let key = String::from_utf8(layout.decode(&encoded)?.to_vec());
            if let (Ok(key), Ok(value)) = (key, String::from_utf8(value.to_vec())) {
                rows.insert(key, (version.timestamp, value));
            }
        }
        match page.next {
            Some(next) => start = next,
            None => return Ok(rows),
        }
    }
}

/// Does to the rows what a write of the catalog does that is not applied yet. Such a write puts and deletes rows if others are
/// as they were.
fn follow(rows: &mut Rows, at: Timestamp, write: &Write) -> Result<()> {
    let layout = Layout::system();
    // Rows of kinds that this version does not know need not be text, and are not among these.
    let text =
        |encoded: &[u8]| -> Result<Option<String>> { Ok(String::from_utf8(layout.decode(encoded)?.to_vec()).ok()) };
    for condition in &write.conditions {
        let version = text(&condition.key)?.and_then(|key| rows.get(&key)).map(|(version, _)| *version);
        let holds = match condition.test {
            Test::Version(wanted) => version == Some(wanted),
            Test::Absent => version.is_none(),
            _ => return Err(refused("the catalog's log has a write that this version does not know")),
        };
        if !holds {
            return Ok(());
        }
    }
    for operation in &write.operations {
        let Some(key) = text(&operation.key)? else { continue };
        match &operation.action {
            Action::Put { value, .. } => {
                if let Ok(value) = String::from_utf8(value.to_vec()) {
                    rows.insert(key, (at, value));
                }
            }
            Action::Delete => drop(rows.remove(&key)),
            Action::Increment { .. } | Action::Rollback { .. } => {
                return Err(refused("the catalog's log has a write that this version does not know"));
            }
        }
    }
    Ok(())
}

impl Replica {
    /// Whether it holds enough to go on from: a log and a configuration.
    pub fn holds_something(&self) -> bool {
        self.log.last.is_some() && !self.log.quorums.is_empty()
    }
}

/// Damage and the like, named for the operator.
pub(super) fn refused(why: impl Into<String>) -> Error {
    Error::new(Reason::InvalidRequest, why)
}
