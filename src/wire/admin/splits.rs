//! Splits of shards, as they are asked for and answered.

use bytes::Bytes;

use super::tables::ShardDetails;
use crate::types::{Error, Result, Slot};
use crate::wire::proto::v1;

/// Where a shard is to be split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SplitPoint {
    /// Where half of the bytes lie before.
    Middle,
    /// Before this key of a user (its slot, or its group).
    Key(Bytes),
    /// Before this slot of a hash table.
    Slot(Slot),
}

impl SplitPoint {
    /// Reads it from a request.
    pub fn decode(at: Option<v1::split_shard_request::At>) -> Result<SplitPoint> {
        use v1::split_shard_request::At;
        Ok(match at {
            None => SplitPoint::Middle,
            Some(At::Key(key)) if key.is_empty() => return Err(Error::invalid("the key to split at is empty")),
            Some(At::Key(key)) => SplitPoint::Key(key),
            Some(At::Slot(slot)) => SplitPoint::Slot(Slot(
                u16::try_from(slot)
                    .map_err(|_| Error::invalid(format!("there is no slot {slot}: 0 to {}", u16::MAX)))?,
            )),
        })
    }

    /// The form in a request.
    pub fn encode(self) -> Option<v1::split_shard_request::At> {
        use v1::split_shard_request::At;
        match self {
            SplitPoint::Middle => None,
            SplitPoint::Key(key) => Some(At::Key(key)),
            SplitPoint::Slot(slot) => Some(At::Slot(slot.0.into())),
        }
    }
}

/// Both parts of a shard that was split, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitReport {
    /// The parent, smaller.
    pub left: ShardDetails,
    /// The child.
    pub right: ShardDetails,
}

impl From<SplitReport> for v1::SplitShardResponse {
    fn from(report: SplitReport) -> v1::SplitShardResponse {
        v1::SplitShardResponse { left: Some(report.left.into()), right: Some(report.right.into()) }
    }
}

impl TryFrom<v1::SplitShardResponse> for SplitReport {
    type Error = Error;

    fn try_from(response: v1::SplitShardResponse) -> Result<SplitReport> {
        let lacking = || Error::internal("the answer names no parts; do the versions match?");
        let left = response.left.ok_or_else(lacking)?.into();
        Ok(SplitReport { left, right: response.right.ok_or_else(lacking)?.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Reason;

    #[test]
    fn a_place_survives_the_wire_and_nonsense_does_not() {
        for at in [SplitPoint::Middle, SplitPoint::Key("k".into()), SplitPoint::Slot(Slot(7))] {
            assert_eq!(SplitPoint::decode(at.clone().encode()), Ok(at));
        }
        use v1::split_shard_request::At;
        for at in [At::Key(Bytes::new()), At::Slot(65_536)] {
            assert_eq!(SplitPoint::decode(Some(at)).expect_err("nonsense").reason, Reason::InvalidRequest);
        }
        assert!(SplitReport::try_from(v1::SplitShardResponse::default()).is_err());
    }
}
