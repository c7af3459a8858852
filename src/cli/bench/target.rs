//! What a benchmark can talk to: Trivet through its own client, Trivet by plain unary calls, and (with the cargo feature
//! `peers`) other stores. One enum and no boxed futures, so that choosing costs a branch.

use trivet::client::Table;
use trivet::orders::{ListWish, Orders};
use trivet::types::{Action, Error, Operation, ReadLevel, ScanBounds, Test, Write};

#[cfg(feature = "peers")]
use super::etcd::Etcd;
use super::record::{Done, Failure};
#[cfg(feature = "peers")]
use super::redis::Redis;
use super::unary::Unary;
use super::workload::Op;

/// Orders in a list: one page of what a person looks at.
const LIST_ORDERS: u32 = 20;

/// A worker's way to a store.
#[derive(Clone)]
pub enum Target {
    /// Trivet, by its client.
    Trivet(Trivet),
    /// Trivet, by unary calls.
    Unary(Unary),
    /// etcd.
    #[cfg(feature = "peers")]
    Etcd(Etcd),
    /// Redis Cluster.
    #[cfg(feature = "peers")]
    Redis(Redis),
}

impl Target {
    /// Runs one operation.
    pub async fn call(&mut self, op: Op) -> Result<Done, Failure> {
        match self {
            Target::Trivet(trivet) => trivet.call(op).await.map_err(|error| error.reason.as_str().into()),
            Target::Unary(unary) => unary.call(op).await,
            #[cfg(feature = "peers")]
            Target::Etcd(etcd) => etcd.call(op).await,
            #[cfg(feature = "peers")]
            Target::Redis(redis) => redis.call(op).await,
        }
    }
}

/// Trivet by its routing, pipelining client.
#[derive(Clone)]
pub struct Trivet {
    /// The table, reading at the level of the run.
    pub table: Table,
    /// The orders of the same cluster, and how fresh lists of them are to be.
    pub orders: (Orders, ReadLevel),
}

impl Trivet {
    async fn call(&self, op: Op) -> Result<Done, Error> {
        match op {
            Op::Read(key) => {
                self.table.get(key).await?;
                Ok(Done::Effect)
            }
            Op::Write(key, value) | Op::Order(key, value) => {
                self.table.put(key, value).await?;
                Ok(Done::Effect)
            }
            Op::Cas(key, value) => {
                let found = self.table.get(key.clone()).await?.body;
                let test = found.map_or(Test::Absent, |found| Test::Version(found.timestamp));
                let answer = self.table.compare_and_swap(key, test, Some(value)).await?;
                Ok(if answer.body.applied { Done::Effect } else { Done::Conflict })
            }
            Op::Incr(key) => {
                self.table.increment(key, 1).await?;
                Ok(Done::Effect)
            }
            Op::Scan(tag, rows) => {
                let mut scan = self.table.scan(ScanBounds::Tag(tag)).limit(rows);
                while scan.next_page().await?.is_some() {}
                Ok(Done::Effect)
            }
            Op::Batch(puts) => {
                let put = |(key, value)| Operation { key, action: Action::Put { value, ttl_ms: None } };
                let operations = puts.into_iter().map(put).collect();
                self.table.batch(Write { request: None, conditions: vec![], operations }).await?;
                Ok(Done::Effect)
            }
            Op::List(user) => {
                let (orders, level) = &self.orders;
                let wish = ListWish {
                    user_id: String::from_utf8_lossy(&user).into_owned(),
                    statuses: Vec::new(),
                    page_size: LIST_ORDERS,
                    page_token: None,
                    level: *level,
                };
                orders.list(&wish).await?;
                Ok(Done::Effect)
            }
        }
    }
}
