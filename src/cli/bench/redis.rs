//! Redis Cluster (or Valkey) as a target of the same loop.
//!
//! By default an answer means what the servers' `appendfsync` says, at the master alone. `--wait N` sends `WAIT N` after
//! every write (N replicas have it, in memory), `--wait-aof` sends `WAITAOF 1 1` (Redis 7.2, Valkey: fsynced at the
//! master and one replica), the only mode of this family whose durability compares with a quorum's. Both block their
//! connection until the replicas answer, so every worker then gets connections of its own.

use std::time::Duration;

use ::redis::cluster::ClusterClientBuilder;
use ::redis::cluster_async::ClusterConnection;
use ::redis::cluster_routing::{Route, SingleNodeRoutingInfo, SlotAddr};
use ::redis::{Pipeline, RedisError, Value, cmd, pipe};
use bytes::Bytes;

use super::record::{Done, Failure};
use super::workload::Op;

/// Slots of a Redis Cluster.
const SLOTS: u16 = 16_384;
/// Milliseconds that WAIT and WAITAOF wait before they give up: the client's deadline decides earlier.
const WAIT_MS: u64 = 60_000;

/// What a write waits for beyond the master's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Nothing.
    No,
    /// So many replicas that have it in memory.
    Replicas(u64),
    /// Fsync at the master and one replica.
    Aof,
}

/// A worker's way to the cluster.
#[derive(Clone)]
pub struct Redis {
    connection: ClusterConnection,
    wait: Wait,
    deadline: Duration,
}

/// So many connections (each to all nodes).
pub async fn connect(
    endpoints: &[String],
    connections: usize,
    wait: Wait,
    deadline: Duration,
) -> Result<Vec<Redis>, String> {
    let nodes = endpoints.iter().map(|endpoint| format!("redis://{endpoint}"));
    let client = ClusterClientBuilder::new(nodes)
        .connection_timeout(deadline)
        .response_timeout(deadline)
        .build()
        .map_err(|error| format!("these are no addresses of a Redis Cluster: {error}"))?;
    let mut targets = Vec::new();
    for _ in 0..connections {
        let connection =
            client.get_async_connection().await.map_err(|error| format!("cannot reach the cluster: {error}"))?;
        targets.push(Redis { connection, wait, deadline });
    }
    Ok(targets)
}

impl Redis {
    /// Runs one operation.
    pub async fn call(&mut self, op: Op) -> Result<Done, Failure> {
        match trivet::runtime::timeout(self.deadline, self.run(op)).await {
            Some(result) => result.map(|()| Done::Effect).map_err(name),
            None => Err("TIMEOUT".into()),
        }
    }

    async fn run(&mut self, op: Op) -> Result<(), RedisError> {
        match op {
            Op::Read(key) => {
                cmd("GET").arg(&key[..]).query_async::<Value>(&mut self.connection).await?;
                Ok(())
            }
            Op::Write(key, value) | Op::Order(key, value) => {
                let mut pipeline = pipe();
                pipeline.cmd("SET").arg(&key[..]).arg(&value[..]);
                self.write(key, pipeline).await
            }
            Op::Incr(key) => {
                let mut pipeline = pipe();
                pipeline.cmd("INCR").arg(&key[..]);
                self.write(key, pipeline).await
            }
            Op::Batch(puts) => {
                let mut pipeline = pipe();
                let key = puts.first().map(|(key, _)| key.clone()).unwrap_or_default();
                let set = pipeline.cmd("MSET");
                for (key, value) in &puts {
                    set.arg(&key[..]).arg(&value[..]);
                }
                self.write(key, pipeline).await
            }
            Op::Cas(..) | Op::Scan(..) | Op::List(_) => unreachable!("refused before the run: Redis Cluster has none"),
        }
    }

    async fn write(&mut self, key: Bytes, mut pipeline: Pipeline) -> Result<(), RedisError> {
        let enough = |answered: &Value, wanted: u64| match answered {
            Value::Int(replicas) => *replicas >= wanted as i64,
            Value::Array(both) => both.iter().all(|one| matches!(one, Value::Int(count) if *count >= 1)),
            _ => false,
        };
        let wanted = match self.wait {
            Wait::No => 0,
            Wait::Replicas(replicas) => {
                pipeline.cmd("WAIT").arg(replicas).arg(WAIT_MS);
                replicas
            }
            Wait::Aof => {
                pipeline.cmd("WAITAOF").arg(1).arg(1).arg(WAIT_MS);
                1
            }
        };
        let commands = pipeline.len();
        let route = SingleNodeRoutingInfo::SpecificNode(Route::new(slot(&key), SlotAddr::Master));
        let answers = self.connection.route_pipeline(pipeline, 0, commands, route).await?;
        for answer in &answers {
            if let Value::ServerError(error) = answer {
                return Err(error.clone().into());
            }
        }
        match answers.last() {
            Some(last) if self.wait != Wait::No && !enough(last, wanted) => {
                Err((::redis::ErrorKind::UnexpectedReturnType, "the write did not reach the replicas asked for").into())
            }
            _ => Ok(()),
        }
    }
}

/// The reason of a failure, without the text of the server.
fn name(error: RedisError) -> Failure {
    match error.code() {
        Some(code) => code.to_owned().into(),
        None => format!("{:?}", error.kind()).into(),
    }
}

/// Redis Cluster's slot of a key: CRC-16/XMODEM of its tag.
fn slot(key: &[u8]) -> u16 {
    let tag = match key.iter().position(|byte| *byte == b'{') {
        Some(open) => match key[open + 1..].iter().position(|byte| *byte == b'}') {
            Some(length) if length > 0 => &key[open + 1..open + 1 + length],
            _ => key,
        },
        None => key,
    };
    let mut crc: u16 = 0;
    for byte in tag {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
        }
    }
    crc % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of the CRC and an example of the Redis Cluster specification.
    #[test]
    fn slots_are_redis_s() {
        assert_eq!(slot(b"123456789"), 0x31C3);
        assert_eq!(slot(b"{user1000}.following"), slot(b"user1000"));
        assert_eq!(slot(b"foo{}{bar}"), slot(b"foo{}{bar}"));
        assert_ne!(slot(b"foo{}{bar}"), slot(b"bar"));
    }
}
