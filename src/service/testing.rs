//! Doors for tests of the edge: what stands behind them answers from memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::door::Door;
use crate::types::{
    Answer, ChangesPage, ClusterId, Epoch, Header, NodeId, Outcome, Page, Read, ReadLevel, Request, Response, Role,
    Row, ShardId, Timestamp, Versioned,
};

/// A read of one key.
pub fn read(key: &str) -> Request {
    Request::Read(Read { keys: vec![key.to_owned().into()], level: ReadLevel::Any, any_replica: false })
}

fn header() -> Header {
    Header {
        cluster: ClusterId(1),
        node: NodeId(1),
        shard: ShardId(1),
        epoch: Epoch(1),
        role: Role::Leader,
        as_of: Timestamp(9),
        age: None,
        degraded: false,
    }
}

/// Rows a scan of the echoing door finds.
pub const ROWS: u64 = 10;

fn echo(request: Request, value: Option<&Bytes>) -> Response {
    match request {
        Request::Read(read) => {
            let found = |key: Bytes| {
                let value = value.cloned().unwrap_or(key);
                Answer { header: header(), body: Some(Versioned { timestamp: Timestamp(9), value, expires_ms: None }) }
            };
            Response::Values(read.keys.into_iter().map(found).collect())
        }
        Request::Write(write) => {
            let integers = write.operations.iter().map(|_| None).collect();
            let body = Outcome { applied: true, timestamp: Timestamp(10), integers, observed: None };
            Response::Written(Answer { header: header(), body })
        }
        Request::Scan(scan) => {
            // Three rows a page at most; the cursor is the number of the next row.
            let from: u64 = scan.cursor.map_or(0, |c| String::from_utf8_lossy(&c).parse().expect("our cursor"));
            let to = (from + scan.rows_max.min(3) as u64).min(ROWS);
            let row =
                |n: u64| Row { key: n.to_string().into(), timestamp: Timestamp(n), value: None, expires_ms: None };
            let cursor = (to < ROWS).then(|| Bytes::from(to.to_string()));
            Response::Page(Answer {
                header: header(),
                body: Page { rows: (from..to).map(row).collect(), count: to - from, cursor },
            })
        }
        Request::Changes(_) => Response::Changes(Answer { header: header(), body: ChangesPage::default() }),
        Request::History { .. } => Response::Page(Answer { header: header(), body: Page::default() }),
    }
}

/// Every value is its key; every write applies; every table has [`ROWS`] rows.
pub fn echo_door() -> Door {
    Door::Fake(Arc::new(|request, _| Box::pin(async move { Ok(echo(request, None)) })))
}

/// Every value is this one.
pub fn constant_door(value: Bytes) -> Door {
    Door::Fake(Arc::new(move |request, _| {
        let response = echo(request, Some(&value));
        Box::pin(async move { Ok(response) })
    }))
}

/// A gate in front of an echo.
pub struct Gate {
    open: Semaphore,
    entered: Semaphore,
    inside: AtomicUsize,
}

impl Gate {
    /// Lets everybody through, now and later.
    pub fn open(&self) {
        self.open.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// Waits until somebody stands at the gate.
    pub async fn entered(&self) {
        self.entered.acquire().await.expect("never closed").forget();
    }

    /// How many have come to the gate.
    pub fn inside(&self) -> usize {
        self.inside.load(Ordering::SeqCst)
    }
}

/// As [`echo_door`], but whoever does not read the key `quick` waits at the gate, until the call's deadline at most.
pub fn gated_door() -> (Door, Arc<Gate>) {
    let gate = Arc::new(Gate { open: Semaphore::new(0), entered: Semaphore::new(0), inside: AtomicUsize::new(0) });
    let held = gate.clone();
    let door = Door::Fake(Arc::new(move |request, context| {
        let gate = held.clone();
        Box::pin(async move {
            if request != read_linearizable("quick") {
                gate.inside.fetch_add(1, Ordering::SeqCst);
                gate.entered.add_permits(1);
                let passed = crate::runtime::timeout_at(context.deadline, gate.open.acquire()).await;
                passed.ok_or_else(deadline_exceeded)?.expect("never closed").forget();
            }
            Ok(echo(request, None))
        })
    }));
    (door, gate)
}

fn deadline_exceeded() -> crate::types::Error {
    crate::types::Error::new(crate::types::Reason::DeadlineExceeded, "the deadline passed")
}

fn read_linearizable(key: &str) -> Request {
    Request::Read(Read { keys: vec![key.to_owned().into()], level: ReadLevel::Linearizable, any_replica: false })
}
