//! Documents that a view cannot use: at which of them its upkeep has stopped.
//!
//! A view whose definition says so takes nothing more in of a part of its source while a document there does not fit it. It is the
//! document as it is now that counts: versions that were replaced meanwhile, or deleted, hold up nobody, or a view that met one of
//! them could never go on, whatever was done about it. So a worker that comes across a version that does not fit looks whether it
//! is still the newest of its key ([`Stops`] tells of it then, while the worker finds it again and again); else it is as if it were not there.
//!
//! Which documents do not fit a view that goes on without them is counted by comparisons (`verify`), exactly.

use std::collections::HashMap;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;

use super::super::host::Node;
use crate::catalog::TableEntry;
use crate::projection::{BadDocuments, Definition};
use crate::runtime::Instant;
use crate::types::{Error, Reason, Result, ShardId, TableId};

/// At which document of a shard of its source a view stops: [`StopsAsk`] to that shard's leader, `Option<Unfit>` back.
pub(in crate::node) const VIEW_STOPS: &str = "view_stops";
/// Between two looks of a worker that has stopped.
pub(super) const STOPPED_WAIT: Duration = Duration::from_secs(1);
/// What was not found again for so long is over. A look takes its time, too.
const TOLD_FOR: Duration = Duration::from_secs(5);
/// Documents told of one source.
const TOLD_MAX: usize = 20;

/// A document that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Unfit {
    /// The source that it stands in.
    pub source: TableId,
    /// Its key.
    pub key: Vec<u8>,
    /// Why it does not fit. Names fields and holds no values.
    pub why: String,
}

/// Asks where a view stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(in crate::node) struct StopsAsk {
    view: TableId,
    /// Of the source.
    shard: ShardId,
}

/// Where workers of a node have stopped, by view and shard of the source.
#[derive(Default)]
pub struct Stops(Mutex<HashMap<(TableId, ShardId), (Instant, Unfit)>>);

impl Stops {
    /// A worker has found that it cannot go on; whether that is news.
    pub(super) fn note(&self, view: TableId, shard: ShardId, now: Instant, unfit: Unfit) -> bool {
        let mut stops = self.0.lock();
        stops.retain(|_, (found, _)| now.saturating_duration_since(*found) <= TOLD_FOR);
        let before = stops.insert((view, shard), (now, unfit.clone()));
        before.is_none_or(|(_, before)| before != unfit)
    }

    /// Where the worker of a shard stands still.
    fn of(&self, view: TableId, shard: ShardId, now: Instant) -> Option<Unfit> {
        let stops = self.0.lock();
        let (found, unfit) = stops.get(&(view, shard))?;
        (now.saturating_duration_since(*found) <= TOLD_FOR).then(|| unfit.clone())
    }
}

/// Whether a view stops at documents that do not fit.
pub(super) fn stops_at_some(entry: &TableEntry) -> bool {
    let definition = entry.descriptor.view.as_ref().map(|view| Definition::parse(&view.definition));
    matches!(definition, Some(Ok(Definition { on_bad_document: BadDocuments::Stop, .. })))
}

impl Node {
    /// Where a view stops in a shard that this node leads.
    pub(super) fn stops_here(&self, question: StopsAsk) -> Result<Option<Unfit>> {
        let replica = self.hosted(question.shard)?;
        if !replica.is_leader() {
            return Err(replica.not_leader());
        }
        Ok(self.stops.of(question.view, question.shard, self.clock().now()))
    }

    /// At which documents of a source the upkeep of a view stands still, as far as the leaders of its shards say: asks them.
    ///
    /// Errors: `UNKNOWN_TABLE` if the source was dropped.
    pub async fn where_view_stops(&self, entry: &TableEntry, source: TableId) -> Result<Vec<Unfit>> {
        if !stops_at_some(entry) {
            return Ok(Vec::new());
        }
        let directory = self.directory();
        let source = directory.table(source).ok_or_else(|| {
            Error::new(Reason::UnknownTable, format!("a source of {} was dropped", entry.descriptor.name))
        })?;
        let asked = source.shards.iter().map(|shard| async move {
            let question = StopsAsk { view: entry.descriptor.id, shard: shard.id };
            self.ask_shard_leader::<_, Option<Unfit>>(shard, VIEW_STOPS, &question).await
        });
        // Who does not answer is no reason to keep back what the others say.
        let told = join_all(asked).await.into_iter().filter_map(|answer| answer.ok().flatten());
        Ok(told.take(TOLD_MAX).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Clock;

    #[test]
    fn a_stop_is_told_while_it_is_found_again_and_is_news_once() {
        let (stops, began) = (Stops::default(), Clock::system().now());
        let unfit = |key: &str| Unfit { source: TableId(3), key: key.into(), why: "no field".to_owned() };
        let (view, shard) = (TableId(7), ShardId(40));
        assert_eq!(stops.of(view, shard, began), None);
        assert!(stops.note(view, shard, began, unfit("a")));
        assert!(!stops.note(view, shard, began + STOPPED_WAIT, unfit("a")), "the same once more");
        assert!(stops.note(view, shard, began + STOPPED_WAIT, unfit("b")));
        assert!(stops.note(view, ShardId(41), began + STOPPED_WAIT, unfit("b")), "of another shard");
        let latest = began + STOPPED_WAIT + TOLD_FOR;
        assert_eq!(stops.of(view, shard, latest), Some(unfit("b")));
        assert_eq!(stops.of(TableId(8), shard, latest), None);
        assert_eq!(stops.of(view, shard, latest + Duration::from_millis(1)), None);
        // And what is over takes no room.
        stops.note(TableId(8), shard, latest + Duration::from_millis(1), unfit("c"));
        assert_eq!(stops.0.lock().len(), 1);
    }
}
