//! What changes in a table, followed from page to page.
//!
//! Every version is told once, a key's in their order. Whoever stores the cursor of a page together with what it did about the
//! page is told neither twice nor too little, whatever becomes of it, of the nodes or of the shards in between: it goes
//! on from that cursor, in this process or another. How it is done: `following`.

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use futures::{Stream, stream};
use std::time::Duration;

use super::Table;
use super::following::{Ask, Following};
use super::map::Anchor;
use crate::keyspace::Layout;
use crate::types::{
    Answer, Change, ChangeKind, ChangesPage, ChangesRequest, Error, Reason, Request, Response, Result, ScanBounds,
    Timestamp,
};

/// A page comes at least this often, also if it has nothing to tell, unless said otherwise.
const EVERY: Duration = Duration::from_secs(1);

/// What is to be followed. Made by [`Table::changes`].
#[derive(Clone)]
pub struct Changes {
    table: Table,
    request: ChangesRequest,
}

/// What is followed.
pub struct Followed {
    following: Following<Questions>,
}

struct Questions {
    table: Table,
}

impl Changes {
    pub(super) fn new(table: Table, bounds: ScanBounds) -> Changes {
        Changes { table, request: ChangesRequest { bounds, wait: EVERY, ..ChangesRequest::default() } }
    }

    /// Goes on behind the page that this is the cursor of.
    pub fn resume(mut self, cursor: Bytes) -> Changes {
        (self.request.cursor, self.request.after) = (Some(cursor), None);
        self
    }

    /// Begins behind this version or moment instead of now. It must lie within the history window (`CURSOR_TRIMMED`).
    pub fn after(mut self, version: Timestamp) -> Changes {
        (self.request.cursor, self.request.after) = (None, Some(version));
        self
    }

    /// Tells with each change what it has replaced.
    pub fn with_previous(mut self) -> Changes {
        self.request.with_previous = true;
        self
    }

    /// Tells changes of this kind only.
    pub fn only(mut self, kind: ChangeKind) -> Changes {
        self.request.only = Some(kind);
        self
    }

    /// Pages of at most so many changes of each shard.
    pub fn page(mut self, changes: usize) -> Changes {
        self.request.changes_max = changes;
        self
    }

    /// A page comes at least this often, also if it has nothing to tell but its age.
    pub fn every(mut self, interval: Duration) -> Changes {
        self.request.wait = interval;
        self
    }

    /// Begins to follow; the first page says whether it can.
    pub fn follow(self) -> Followed {
        let clock = self.table.core.clock.clone();
        Followed { following: Following::new(Questions { table: self.table }, clock, self.request) }
    }
}

impl Followed {
    /// The next page, as soon as there is something to tell, else after the interval. It waits out what passes (a leader that
    /// is away): its age says how old it can be. After an error the same can be asked for again.
    ///
    /// Errors: `CURSOR_TRIMMED`, `INVALID_CURSOR`, `UNKNOWN_TABLE`, also when the table is dropped.
    pub async fn next_page(&mut self) -> Result<Answer<ChangesPage>> {
        self.following.next().await
    }

    /// The changes one by one, without their cursors; ends after the first error.
    pub fn each(self) -> impl Stream<Item = Result<Change>> + Send {
        let pages = stream::try_unfold(self, |mut followed| async move {
            let page = followed.next_page().await?;
            Ok::<_, Error>(Some((page.body.changes, followed)))
        });
        futures::TryStreamExt::try_flatten(futures::TryStreamExt::map_ok(pages, |changes| {
            stream::iter(changes.into_iter().map(Ok))
        }))
    }
}

impl Ask for Questions {
    fn ask(&self, request: ChangesRequest) -> BoxFuture<'static, Result<Answer<ChangesPage>>> {
        let table = self.table.clone();
        async move {
            let request = Request::Changes(request);
            let Request::Changes(asked) = &request else { return Err(Error::internal("a request of another kind")) };
            match table.execute(&request, Anchor::Changes(asked)).await? {
                Response::Changes(answer) => Ok(answer),
                _ => Err(Error::internal("the answer does not fit the question: no changes")),
            }
        }
        .boxed()
    }

    fn layout(&self) -> Result<Layout> {
        let map = self.table.core.topologies.current();
        let entry = map.as_ref().and_then(|map| map.table(&self.table.name).cloned());
        let gone = || Error::new(Reason::UnknownTable, format!("there is no table '{}'", self.table.name));
        entry.map(|entry| entry.layout.clone()).ok_or_else(gone)
    }
}
