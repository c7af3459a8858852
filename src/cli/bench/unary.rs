//! Trivet without its own client: plain unary gRPC calls, as any language's generated code makes them.
//!
//! The workers are spread over the endpoints and know nothing of shards; a node that does not hold the key forwards. Writes
//! carry request ids, but nothing is retried here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tonic::transport::{Channel, Endpoint};
use trivet::runtime::{Clock, random_u64};
use trivet::types::ReadLevel;
use trivet::wire::proto::v1 as proto;

use proto::kv_client::KvClient;

use super::record::{Done, Failure};
use super::workload::Op;

/// A worker's way to one node.
#[derive(Clone, Debug)]
pub struct Unary {
    client: KvClient<Channel>,
    table: String,
    level: Option<proto::ReadLevel>,
    deadline: Duration,
    clock: Clock,
    id: u64,
    sequence: Arc<AtomicU64>,
}

/// One target for each of `connections` connections per endpoint.
pub async fn connect(
    endpoints: &[String],
    connections: usize,
    table: &str,
    level: ReadLevel,
    deadline: Duration,
    clock: &Clock,
) -> Result<Vec<Unary>, String> {
    let (id, sequence) = (random_u64(), Arc::new(AtomicU64::new(0)));
    use proto::read_level::Level;
    let level = match level {
        ReadLevel::Linearizable => None,
        ReadLevel::Any => Some(Level::Any(true)),
        ReadLevel::MaxAge(age) => Some(Level::MaxAgeMs(age.as_millis() as u64)),
        ReadLevel::AtLeast(token) => Some(Level::AtLeast(token.timestamp.0)),
        ReadLevel::AsOf(at) => Some(Level::AsOf(at.0)),
    };
    let level = level.map(|level| proto::ReadLevel { level: Some(level), any_replica: false });
    let mut targets = Vec::new();
    for endpoint in endpoints {
        let address = Endpoint::from_shared(format!("http://{endpoint}"))
            .map_err(|error| format!("'{endpoint}' is no address: {error}"))?
            .connect_timeout(deadline)
            .tcp_nodelay(true);
        for _ in 0..connections {
            let channel = address.connect().await.map_err(|error| format!("cannot reach {endpoint}: {error}"))?;
            targets.push(Unary {
                client: KvClient::new(channel),
                table: table.to_owned(),
                level,
                deadline,
                clock: clock.clone(),
                id,
                sequence: sequence.clone(),
            });
        }
    }
    Ok(targets)
}

impl Unary {
    /// Runs one operation.
    pub async fn call(&mut self, op: Op) -> Result<Done, Failure> {
        match trivet::runtime::timeout(self.deadline, self.run(op)).await {
            Some(result) => {
                result.map_err(|status| trivet::wire::error_of_status(&status, true).reason.as_str().into())
            }
            None => Err("DEADLINE_EXCEEDED".into()),
        }
    }

    async fn run(&mut self, op: Op) -> Result<Done, tonic::Status> {
        let table = self.table.clone();
        match op {
            Op::Read(key) => {
                self.client.get(proto::GetRequest { table, key, level: self.level }).await?;
                Ok(Done::Effect)
            }
            Op::Write(key, value) | Op::Order(key, value) => {
                let request = self.request();
                let put = proto::PutRequest { table, key, value, ttl_ms: None, request };
                done(self.client.put(put).await?)
            }
            Op::Cas(key, value) => {
                let get = proto::GetRequest { table: table.clone(), key: key.clone(), level: self.level };
                let found = self.client.get(get).await?.into_inner().found;
                use proto::compare_and_swap_request::Expected;
                let expected = found.map_or(Expected::Absent(true), |found| Expected::Version(found.version));
                let (expected, request) = (Some(expected), self.request());
                let swap = proto::CompareAndSwapRequest { table, key, expected, new_value: Some(value), request };
                done(self.client.compare_and_swap(swap).await?)
            }
            Op::Incr(key) => {
                let request = self.request();
                done(self.client.increment(proto::IncrementRequest { table, key, delta: 1, request }).await?)
            }
            Op::Scan(tag, rows) => {
                let bounds = Some(proto::scan_request::Bounds::Tag(tag));
                let level = self.level;
                let scan = proto::ScanRequest { table, bounds, limit: rows, level, ..proto::ScanRequest::default() };
                self.client.scan_page(scan).await?;
                Ok(Done::Effect)
            }
            Op::List(_) => Err(tonic::Status::unimplemented("lists are made by clients that route")),
            Op::Batch(puts) => {
                let operations = puts.into_iter().map(|(key, value)| put(key, value)).collect();
                let request = self.request();
                done(self.client.batch(proto::WriteRequest { table, request, conditions: vec![], operations }).await?)
            }
        }
    }

    fn request(&self) -> Option<proto::RequestId> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        Some(proto::RequestId { client: self.id, sequence, issued_ms: self.clock.wall_ms() })
    }
}

fn put(key: Bytes, value: Bytes) -> proto::Operation {
    proto::Operation { key, action: Some(proto::operation::Action::Put(proto::Put { value, ttl_ms: None })) }
}

fn done(answer: tonic::Response<proto::WriteResponse>) -> Result<Done, tonic::Status> {
    Ok(if answer.into_inner().applied { Done::Effect } else { Done::Conflict })
}
