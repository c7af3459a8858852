//! etcd as a target of the same loop: linearizable Range, Put, and Txn for compare-and-swap and batches of ten.
//!
//! `--target etcd` spreads the workers over all endpoints, as a client that knows nothing does; `--target etcd-leader`
//! asks the members who leads and sends everything there, which is the best etcd can do.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tonic::transport::{Channel, Endpoint};

use super::record::{Done, Failure};
use super::workload::Op;

#[allow(missing_docs, clippy::all)]
mod proto {
    tonic::include_proto!("etcdserverpb");
}

use proto::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::kv_client::KvClient;
use proto::maintenance_client::MaintenanceClient;
use proto::request_op::Request;
use proto::{Compare, PutRequest, RangeRequest, RequestOp, StatusRequest, TxnRequest};

/// A worker's way to etcd.
#[derive(Clone, Debug)]
pub struct Etcd {
    client: KvClient<Channel>,
    deadline: Duration,
}

/// One connection each, `connections` per endpoint, over all members or at the leader alone.
pub async fn connect(
    endpoints: &[String],
    connections: usize,
    leader_only: bool,
    deadline: Duration,
) -> Result<Vec<Etcd>, String> {
    let mut members = Vec::new();
    for endpoint in endpoints {
        let address = Endpoint::from_shared(format!("http://{endpoint}"))
            .map_err(|error| format!("'{endpoint}' is no address: {error}"))?
            .connect_timeout(deadline)
            .tcp_nodelay(true);
        let mut channels = Vec::new();
        for _ in 0..connections {
            let channel =
                address.connect().await.map_err(|error| format!("cannot reach etcd at {endpoint}: {error}"))?;
            channels.push(channel);
        }
        members.push(channels);
    }
    if leader_only {
        let mut leading = None;
        for channels in members {
            let status = MaintenanceClient::new(channels[0].clone())
                .status(StatusRequest {})
                .await
                .map_err(|status| format!("etcd does not tell its leader: {}", status.code()))?
                .into_inner();
            let member = status.header.map(|header| header.member_id);
            if status.leader != 0 && member == Some(status.leader) {
                leading = Some(channels);
            }
        }
        members = vec![leading.ok_or("none of the endpoints is etcd's leader")?];
    }
    let channels = members.into_iter().flatten();
    Ok(channels.map(|channel| Etcd { client: KvClient::new(channel), deadline }).collect())
}

impl Etcd {
    /// Runs one operation.
    pub async fn call(&mut self, op: Op) -> Result<Done, Failure> {
        match trivet::runtime::timeout(self.deadline, self.run(op)).await {
            Some(result) => result.map_err(|status| format!("{:?}", status.code()).into()),
            None => Err("TIMEOUT".into()),
        }
    }

    async fn run(&mut self, op: Op) -> Result<Done, tonic::Status> {
        match op {
            Op::Read(key) => {
                self.client.range(RangeRequest { key, ..RangeRequest::default() }).await?;
                Ok(Done::Effect)
            }
            Op::Write(key, value) | Op::Order(key, value) => {
                self.client.put(PutRequest { key, value }).await?;
                Ok(Done::Effect)
            }
            Op::Cas(key, value) => {
                let read = self.client.range(RangeRequest { key: key.clone(), ..RangeRequest::default() }).await?;
                let revision = read.into_inner().kvs.first().map_or(0, |kv| kv.mod_revision);
                let unchanged = Compare {
                    result: CompareResult::Equal.into(),
                    target: CompareTarget::Mod.into(),
                    key: key.clone(),
                    target_union: Some(TargetUnion::ModRevision(revision)),
                };
                let swap = TxnRequest { compare: vec![unchanged], success: vec![put(key, value)], failure: vec![] };
                let answer = self.client.txn(swap).await?.into_inner();
                Ok(if answer.succeeded { Done::Effect } else { Done::Conflict })
            }
            Op::Batch(puts) => {
                let success = puts.into_iter().map(|(key, value)| put(key, value)).collect();
                self.client.txn(TxnRequest { compare: vec![], success, failure: vec![] }).await?;
                Ok(Done::Effect)
            }
            Op::Scan(tag, rows) => {
                let (key, range_end) = tag_range(&tag);
                let scan = RangeRequest { key, range_end, limit: rows as i64, serializable: false };
                self.client.range(scan).await?;
                Ok(Done::Effect)
            }
            Op::List(_) => Err(tonic::Status::unimplemented("etcd has no views")),
            Op::Incr(_) => Err(tonic::Status::unimplemented("etcd has no increment")),
        }
    }
}

fn put(key: Bytes, value: Bytes) -> RequestOp {
    RequestOp { request: Some(Request::RequestPut(PutRequest { key, value })) }
}

/// The keys `{tag}:…`: from `{tag}:` to `{tag};`, the next character.
fn tag_range(tag: &[u8]) -> (Bytes, Bytes) {
    let with = |end: &[u8]| {
        let mut key = BytesMut::with_capacity(tag.len() + 3);
        key.extend_from_slice(b"{");
        key.extend_from_slice(tag);
        key.extend_from_slice(end);
        key.freeze()
    };
    (with(b"}:"), with(b"};"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_one_range_of_etcd_keys() {
        let (from, to) = tag_range(b"scan7");
        assert!(from[..] <= b"{scan7}:00"[..] && b"{scan7}:99"[..] < to[..]);
        assert!(b"{scan70}:00"[..] < from[..] || b"{scan70}:00"[..] >= to[..]);
    }
}
