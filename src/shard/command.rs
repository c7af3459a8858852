//! Commands as they stand in the log: conversions between `types::Write` and the encoded `Proposal`.

use bytes::Bytes;
use prost::Message;

use super::intake::Upkeep;
use crate::types::{
    Action, Condition, Epoch, Error, Incarnation, NodeId, Operation, ReplicaId, RequestId, Result, ShardId, Test,
    Timestamp, Write,
};
use crate::wire::proto::internal as log;

/// A write on its way into the log: keys encoded, epoch noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The epoch of the shard under which it was routed.
    pub epoch: Epoch,
    /// The batch, over encoded keys.
    pub write: Write,
    /// Instead of a batch: upkeep of a view.
    pub upkeep: Option<Upkeep>,
}

impl Command {
    /// The form in the log.
    pub fn to_log(&self) -> log::Command {
        log::Command {
            request: self.write.request.map(|request| log::RequestId {
                client: request.client,
                sequence: request.sequence,
                issued_ms: request.issued_ms,
            }),
            epoch: self.epoch.0,
            conditions: self.write.conditions.iter().map(condition_to_log).collect(),
            operations: self.write.operations.iter().map(operation_to_log).collect(),
            upkeep: self.upkeep.as_ref().map(|upkeep| Box::new(upkeep.to_log())),
        }
    }

    /// Reads the form in the log. An error means the log holds what this version of Trivet never wrote.
    pub fn from_log(command: log::Command) -> Result<Command> {
        Ok(Command {
            epoch: Epoch(command.epoch),
            write: Write {
                request: command.request.map(|request| RequestId {
                    client: request.client,
                    sequence: request.sequence,
                    issued_ms: request.issued_ms,
                }),
                conditions: command.conditions.into_iter().map(condition_from_log).collect::<Result<_>>()?,
                operations: command.operations.into_iter().map(operation_from_log).collect::<Result<_>>()?,
            },
            upkeep: command.upkeep.map(|upkeep| Upkeep::from_log(*upkeep)).transpose()?,
        })
    }

    /// A number that differs (but for one chance in four billion) between commands that ask for different things.
    pub fn fingerprint(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        let mut part = |tag: u8, bytes: &[u8]| {
            hasher.update(&[tag]);
            hasher.update(&(bytes.len() as u64).to_be_bytes());
            hasher.update(bytes);
        };
        for condition in &self.write.conditions {
            part(1, &condition.key);
            match &condition.test {
                Test::Version(timestamp) => part(2, &timestamp.0.to_be_bytes()),
                Test::Absent => part(3, &[]),
                Test::Present => part(4, &[]),
                Test::Value(value) => part(5, value),
            }
        }
        for operation in &self.write.operations {
            part(6, &operation.key);
            match &operation.action {
                Action::Put { value, ttl_ms } => {
                    part(7, value);
                    part(8, &ttl_ms.unwrap_or(u64::MAX).to_be_bytes());
                }
                Action::Delete => part(9, &[]),
                Action::Increment { delta } => part(10, &delta.to_be_bytes()),
                Action::Rollback { to } => part(11, &to.0.to_be_bytes()),
            }
        }
        hasher.finalize()
    }
}

/// What one log entry asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proposal {
    /// The leader's clock when it proposed.
    pub stamped: Timestamp,
    /// The commands, in order.
    pub commands: Vec<Command>,
    /// Trim versions replaced before this.
    pub horizon: Option<Timestamp>,
    /// Note a checksum under this name.
    pub checksum: Option<u64>,
    /// No later version may lie at or before this.
    pub passed: Option<Timestamp>,
    /// The versions of single puts may carry the outcomes of their requests.
    pub versions_carry_outcomes: bool,
    /// Give the right part of the range away.
    pub split: Option<Split>,
    /// End, for the left neighbour to take over.
    pub seal: Option<Seal>,
    /// Take over the range of the right neighbour.
    pub absorb: Option<Absorb>,
    /// Do without a merge.
    pub abandon: Option<Abandon>,
}

/// The end of a merge that does not come about, as it stands in the log of either shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abandon {
    /// The epoch that it is meant for.
    pub epoch: Epoch,
    /// The epoch afterwards.
    pub next: Epoch,
}

impl Abandon {
    /// The form in the log.
    pub fn to_log(self) -> log::Abandon {
        log::Abandon { epoch: self.epoch.0, next: self.next.0 }
    }

    fn from_log(abandon: log::Abandon) -> Abandon {
        Abandon { epoch: Epoch(abandon.epoch), next: Epoch(abandon.next) }
    }
}

/// The first half of a merge as it stands in the log of the right shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The epoch that it is meant for.
    pub epoch: Epoch,
    /// The epoch afterwards: later than that of the left neighbour.
    pub sealed: Epoch,
    /// The left neighbour.
    pub into: ShardId,
    /// The entry that set the members when this was proposed.
    pub members_at: u64,
}

impl Seal {
    /// The form in the log.
    pub fn to_log(self) -> log::Seal {
        log::Seal { epoch: self.epoch.0, into: self.into.0, members_at: self.members_at, sealed: self.sealed.0 }
    }

    fn from_log(seal: log::Seal) -> Seal {
        Seal {
            epoch: Epoch(seal.epoch),
            sealed: Epoch(seal.sealed),
            into: ShardId(seal.into),
            members_at: seal.members_at,
        }
    }
}

/// The second half of a merge as it stands in the log of the left shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absorb {
    /// The epoch that it is meant for.
    pub epoch: Epoch,
    /// The right neighbour.
    pub right: ShardId,
    /// Its epoch since it was sealed. The two as one have the next.
    pub sealed: Epoch,
    /// The end of its range.
    pub end: Bytes,
    /// The entry that set the members when this was proposed.
    pub members_at: u64,
}

impl Absorb {
    /// The form in the log.
    pub fn to_log(&self) -> log::Absorb {
        log::Absorb {
            epoch: self.epoch.0,
            right: self.right.0,
            sealed: self.sealed.0,
            end: self.end.clone(),
            members_at: self.members_at,
        }
    }

    fn from_log(absorb: log::Absorb) -> Absorb {
        Absorb {
            epoch: Epoch(absorb.epoch),
            right: ShardId(absorb.right),
            sealed: Epoch(absorb.sealed),
            end: absorb.end,
            members_at: absorb.members_at,
        }
    }
}

/// A split as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// The parent's epoch that it is meant for.
    pub epoch: Epoch,
    /// First encoded key of the right part.
    pub at: Bytes,
    /// The shard that gets it.
    pub child: ShardId,
    /// The entry that set the parent's members when this was proposed.
    pub members_at: u64,
    /// The members that the child is born with.
    pub replicas: Vec<ChildReplica>,
}

/// A member that a child is born with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChildReplica {
    /// Its id.
    pub replica: ReplicaId,
    /// Where it is born.
    pub node: NodeId,
    /// In which data directory.
    pub incarnation: Incarnation,
    /// Whether it votes.
    pub voter: bool,
}

impl Split {
    /// The form in the log.
    pub fn to_log(&self) -> log::Split {
        let replica = |child: &ChildReplica| log::ChildReplica {
            replica: child.replica.0,
            node: child.node.0,
            voter: child.voter,
            incarnation: child.incarnation.0,
        };
        log::Split {
            epoch: self.epoch.0,
            at: self.at.clone(),
            child: self.child.0,
            members_at: self.members_at,
            replicas: self.replicas.iter().map(replica).collect(),
        }
    }

    fn from_log(split: log::Split) -> Split {
        let replica = |child: log::ChildReplica| ChildReplica {
            replica: ReplicaId(child.replica),
            node: NodeId(child.node),
            voter: child.voter,
            incarnation: Incarnation(child.incarnation),
        };
        Split {
            epoch: Epoch(split.epoch),
            at: split.at,
            child: ShardId(split.child),
            members_at: split.members_at,
            replicas: split.replicas.into_iter().map(replica).collect(),
        }
    }
}

impl Proposal {
    /// The payload of a log entry.
    pub fn encode(&self) -> Bytes {
        encode(log::Proposal {
            stamped: self.stamped.0,
            commands: self.commands.iter().map(Command::to_log).collect(),
            horizon: self.horizon.map(|timestamp| timestamp.0),
            checksum: self.checksum,
            passed: self.passed.map(|timestamp| timestamp.0),
            versions_carry_outcomes: self.versions_carry_outcomes,
            split: self.split.as_ref().map(Split::to_log),
            seal: self.seal.map(Seal::to_log),
            absorb: self.absorb.as_ref().map(Absorb::to_log),
            abandon: self.abandon.map(Abandon::to_log),
        })
    }

    /// Reads the payload of a log entry.
    pub fn decode(payload: Bytes) -> Result<Proposal> {
        let proposal = log::Proposal::decode(payload)
            .map_err(|error| Error::internal(format!("a log entry holds no proposal: {error}")))?;
        Ok(Proposal {
            stamped: Timestamp(proposal.stamped),
            commands: proposal.commands.into_iter().map(Command::from_log).collect::<Result<_>>()?,
            horizon: proposal.horizon.map(Timestamp),
            checksum: proposal.checksum,
            passed: proposal.passed.map(Timestamp),
            versions_carry_outcomes: proposal.versions_carry_outcomes,
            split: proposal.split.map(Split::from_log),
            seal: proposal.seal.map(Seal::from_log),
            absorb: proposal.absorb.map(Absorb::from_log),
            abandon: proposal.abandon.map(Abandon::from_log),
        })
    }
}

/// Encodes a proposal of commands already in their log form.
pub fn encode(proposal: log::Proposal) -> Bytes {
    proposal.encode_to_vec().into()
}

fn condition_to_log(condition: &Condition) -> log::Condition {
    use log::condition::Test as Form;
    let test = match &condition.test {
        Test::Version(timestamp) => Form::Version(timestamp.0),
        Test::Absent => Form::Absent(true),
        Test::Present => Form::Present(true),
        Test::Value(value) => Form::Value(value.clone()),
    };
    log::Condition { key: condition.key.clone(), test: Some(test) }
}

fn condition_from_log(condition: log::Condition) -> Result<Condition> {
    use log::condition::Test as Form;
    let test = match condition.test {
        Some(Form::Version(timestamp)) => Test::Version(Timestamp(timestamp)),
        Some(Form::Absent(_)) => Test::Absent,
        Some(Form::Present(_)) => Test::Present,
        Some(Form::Value(value)) => Test::Value(value),
        None => return Err(Error::internal("a condition in the log has no test")),
    };
    Ok(Condition { key: condition.key, test })
}

fn operation_to_log(operation: &Operation) -> log::Operation {
    use log::operation::Action as Form;
    let (action, ttl_ms) = match &operation.action {
        Action::Put { value, ttl_ms } => (Form::Put(value.clone()), *ttl_ms),
        Action::Delete => (Form::Delete(true), None),
        Action::Increment { delta } => (Form::Increment(*delta), None),
        Action::Rollback { to } => (Form::RollbackTo(to.0), None),
    };
    log::Operation { key: operation.key.clone(), action: Some(action), ttl_ms }
}

fn operation_from_log(operation: log::Operation) -> Result<Operation> {
    use log::operation::Action as Form;
    let action = match operation.action {
        Some(Form::Put(value)) => Action::Put { value, ttl_ms: operation.ttl_ms },
        Some(Form::Delete(_)) => Action::Delete,
        Some(Form::Increment(delta)) => Action::Increment { delta },
        Some(Form::RollbackTo(to)) => Action::Rollback { to: Timestamp(to) },
        None => return Err(Error::internal("an operation in the log has no action")),
    };
    Ok(Operation { key: operation.key, action })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        Command {
            epoch: Epoch(3),
            write: Write {
                request: Some(RequestId { client: 7, sequence: 9, issued_ms: 11 }),
                conditions: vec![
                    Condition { key: "a".into(), test: Test::Absent },
                    Condition { key: "b".into(), test: Test::Version(Timestamp(5)) },
                    Condition { key: "c".into(), test: Test::Value("v".into()) },
                    Condition { key: "d".into(), test: Test::Present },
                ],
                operations: vec![
                    Operation { key: "a".into(), action: Action::Put { value: "x".into(), ttl_ms: Some(4) } },
                    Operation { key: "b".into(), action: Action::Delete },
                    Operation { key: "c".into(), action: Action::Increment { delta: -2 } },
                    Operation { key: "d".into(), action: Action::Rollback { to: Timestamp(6) } },
                ],
            },
            upkeep: None,
        }
    }

    fn split() -> Split {
        let child = |id: u64| ChildReplica {
            replica: ReplicaId(20 + id),
            node: NodeId(id),
            incarnation: Incarnation(30 + id),
            voter: id < 3,
        };
        Split {
            epoch: Epoch(4),
            at: "m".into(),
            child: ShardId(9),
            members_at: 17,
            replicas: [1, 2, 3].map(child).into(),
        }
    }

    fn seal() -> Seal {
        Seal { epoch: Epoch(4), sealed: Epoch(6), into: ShardId(8), members_at: 17 }
    }

    fn absorb() -> Absorb {
        Absorb { epoch: Epoch(4), right: ShardId(9), sealed: Epoch(6), end: "z".into(), members_at: 18 }
    }

    #[test]
    fn a_proposal_comes_back_as_it_went() {
        let proposal = Proposal {
            stamped: Timestamp(77),
            commands: vec![command(), Command { epoch: Epoch(0), write: Write::default(), upkeep: None }],
            horizon: Some(Timestamp(5)),
            checksum: Some(1),
            passed: Some(Timestamp(6)),
            versions_carry_outcomes: true,
            split: Some(split()),
            seal: Some(seal()),
            absorb: Some(absorb()),
            abandon: Some(Abandon { epoch: Epoch(6), next: Epoch(7) }),
        };
        assert_eq!(Proposal::decode(proposal.encode()).unwrap(), proposal);
    }

    /// The bytes of a log entry are a format: a change here breaks the logs of running clusters.
    #[test]
    fn the_bytes_in_the_log_are_these() {
        let proposal = Proposal { stamped: Timestamp(77), commands: vec![command()], ..Proposal::default() }.encode();
        let hex: String = proposal.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("testdata/proposal.hex").trim());
        let proposal = Proposal { stamped: Timestamp(77), split: Some(split()), ..Proposal::default() }.encode();
        let hex: String = proposal.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("testdata/split.hex").trim());
        let (seal, absorb) = (Some(seal()), Some(absorb()));
        let abandon = Some(Abandon { epoch: Epoch(6), next: Epoch(7) });
        let proposal = Proposal { stamped: Timestamp(77), seal, absorb, abandon, ..Proposal::default() }.encode();
        let hex: String = proposal.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("testdata/merge.hex").trim());
    }

    #[test]
    fn a_cut_payload_is_refused() {
        let bytes = Proposal { stamped: Timestamp(77), commands: vec![command()], ..Proposal::default() }.encode();
        assert!(Proposal::decode(bytes.slice(..bytes.len() - 1)).is_err());
    }

    #[test]
    fn the_fingerprint_tells_payloads_apart_and_ignores_the_request_id() {
        let one = command();
        let mut same = one.clone();
        same.write.request = None;
        same.epoch = Epoch(9);
        assert_eq!(one.fingerprint(), same.fingerprint());
        let mut other = one.clone();
        other.write.operations[2].action = Action::Increment { delta: -3 };
        assert_ne!(one.fingerprint(), other.fingerprint());
        let mut shifted = one.clone();
        shifted.write.operations[0].key = "ax".into();
        shifted.write.operations[0].action = Action::Put { value: "".into(), ttl_ms: Some(4) };
        assert_ne!(one.fingerprint(), shifted.fingerprint());
    }
}
