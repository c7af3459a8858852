//! What the replicas of a shard say of their content.

use crate::types::{NodeId, ReplicaId, Result, ShardId};
use crate::wire::errors::{error_of_failure, to_failure};
use crate::wire::proto::v1;

/// What one replica says of its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaChecksum {
    /// The replica.
    pub replica: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// What it found, or why it could not look.
    pub content: Result<Content>,
}

/// The content of a replica at one applied position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Index of the last log entry applied.
    pub applied: u64,
    /// CRC-32 of the logical content.
    pub checksum: u32,
    /// Versions counted.
    pub versions: u64,
}

/// The checksums of all replicas of a shard at one applied position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChecksumReport {
    /// The shard.
    pub shard: ShardId,
    /// Whether every replica answered and all agree.
    pub equal: bool,
    /// One per replica.
    pub replicas: Vec<ReplicaChecksum>,
}

impl From<ChecksumReport> for v1::ChecksumResponse {
    fn from(report: ChecksumReport) -> v1::ChecksumResponse {
        let replicas = report.replicas.into_iter().map(|replica| {
            let told = v1::ReplicaChecksum { replica: replica.replica.0, node: replica.node.0, ..Default::default() };
            match replica.content {
                Ok(content) => v1::ReplicaChecksum {
                    applied: content.applied,
                    checksum: content.checksum,
                    versions: content.versions,
                    ..told
                },
                Err(error) => v1::ReplicaChecksum { failure: Some(to_failure(&error)), ..told },
            }
        });
        v1::ChecksumResponse { shard: report.shard.0, equal: report.equal, replicas: replicas.collect() }
    }
}

impl From<v1::ChecksumResponse> for ChecksumReport {
    fn from(report: v1::ChecksumResponse) -> ChecksumReport {
        let replicas = report.replicas.into_iter().map(|replica| ReplicaChecksum {
            replica: ReplicaId(replica.replica),
            node: NodeId(replica.node),
            content: match replica.failure {
                Some(failure) => Err(error_of_failure(failure, false)),
                None => {
                    Ok(Content { applied: replica.applied, checksum: replica.checksum, versions: replica.versions })
                }
            },
        });
        ChecksumReport { shard: ShardId(report.shard), equal: report.equal, replicas: replicas.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Error, Reason};

    #[test]
    fn checksums_survive_the_wire() {
        let content = Ok(Content { applied: 5, checksum: 0xfeed, versions: 12 });
        let replica = |id, content| ReplicaChecksum { replica: ReplicaId(id), node: NodeId(id), content };
        let failed = Err(Error::new(Reason::Corruption, "a block failed its checksum"));
        let report =
            ChecksumReport { shard: ShardId(3), equal: false, replicas: vec![replica(1, content), replica(2, failed)] };
        assert_eq!(ChecksumReport::from(v1::ChecksumResponse::from(report.clone())), report);
    }
}
