//! What has changed in one shard, page by page, for those who follow it.
//!
//! Promise: whoever asks again and again, each time with the position that the last page gave, is told of every version of the
//! range once, a key's in the order in which they came to be. A position is a timestamp: everything up to it was told. Timestamps in
//! a shard only grow, over all its replicas and also in what it is split into or taken over by, so no version appears behind a
//! position, and any replica may be asked.
//!
//! How a page comes to be: from the tail (`tail`) if that reaches back to the position; then it is in the order of time. Else the
//! versions are searched for it (`storage::changes`), up to the newest one of now: such a step may take several pages, and within
//! it changes are in the order of keys. Between its pages the position names the step too. If nothing has changed, the
//! page waits for something, or says at last that nothing has.
//!
//! What is no longer there is not passed over: a position before the horizon is refused (`CURSOR_TRIMMED`), also if the horizon
//! passes it while the page is read.
//!
//! Left out: which shards a range lies in, and what becomes of positions when these change (node).

use std::sync::Arc;

use bytes::Bytes;

use super::evaluate::is_settled;
use super::handle::{Served, Shard};
use super::tail::Applied;
use crate::runtime::{Instant, spawn_blocking, timeout_at};
use crate::storage::changes::{self, Change, Interval, PageLimits};
use crate::storage::{Engine, Lookup, Tier, mvcc};
use crate::types::{Epoch, Error, Reason, Result, Timestamp};

/// Where somebody stands who follows a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Every version up to this one was told.
    pub after: Timestamp,
    /// The step in which the versions are searched, if one is under way.
    pub step: Option<Step>,
}

/// A search through the versions of a range, between two pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// It covers the versions up to this one.
    pub upto: Timestamp,
    /// The encoded key with which it goes on: of those before, the versions up to `upto` were told.
    pub key: Bytes,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct ChangesRequest {
    /// The encoded range, within the shard.
    pub start: Bytes,
    /// Its end.
    pub end: Bytes,
    /// Where the follower stands.
    pub position: Position,
    /// Whether each change is to say what it replaced.
    pub with_replaced: bool,
    /// How much a page may hold.
    pub limits: PageLimits,
}

/// A page of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardChanges {
    /// The changes; none if nothing has changed for as long as was to be waited.
    pub changes: Vec<Change>,
    /// Where the follower stands now.
    pub position: Position,
}

/// What one look has found.
enum Look {
    /// A page, perhaps an empty one.
    Page(ShardChanges),
    /// The versions must be searched, from here.
    Search(Step),
}

impl Shard {
    /// The changes after a position, or nothing if there are none until the deadline; then the position has moved on as far as
    /// the state had come. The age of the answer, if there is a proof of one, says how old that position can be.
    ///
    /// Errors: `WRONG_EPOCH`, `CURSOR_TRIMMED`, `SHARD_NOT_HERE`.
    pub async fn changes(
        &self,
        epoch: Epoch,
        mut request: ChangesRequest,
        deadline: Instant,
    ) -> Result<Served<ShardChanges>> {
        let mut applied = self.applied();
        loop {
            applied.borrow_and_update();
            // Before the state is looked at, which is then at least as new as the proof says.
            let proof = self.proofs.known(epoch);
            let page = match self.look(epoch, &request)? {
                Look::Page(page) if request.with_replaced => self.with_replaced(page).await?,
                Look::Page(page) => page,
                Look::Search(step) => self.search(step, &request).await?,
            };
            // Only now: what is gone by now may have been gone when it was looked for.
            self.can_go_on(epoch, &request)?;
            request.position = page.position.clone();
            let nothing = page.changes.is_empty();
            if !nothing || self.clock.now() >= deadline {
                let as_of = self.state().last_timestamp;
                return Ok(self.served(page, as_of, proof, epoch));
            }
            if request.position.step.is_none() {
                // That nothing comes is told by the page that is returned then. An error means that the replica stops, which the
                // next look finds out.
                let _ = timeout_at(deadline, applied.changed()).await;
            }
        }
    }

    /// Refuses a position from which it cannot be gone on, and a range that is another shard's.
    fn can_go_on(&self, epoch: Epoch, request: &ChangesRequest) -> Result<()> {
        if self.has_ended() {
            let why = format!("the replica of {} that was asked has gone; ask another", self.id());
            return Err(Error::new(Reason::ShardNotHere, why));
        }
        let state = self.state();
        if state.epoch != epoch || !state.owns_all(&request.start, &request.end) {
            return Err(self.wrong_epoch());
        }
        if request.position.after < state.horizon {
            let why = format!(
                "the changes after {} are not all there any more: the history reaches back to {}; read the whole range anew and \
                 follow it from then on",
                request.position.after, state.horizon
            );
            return Err(Error::new(Reason::CursorTrimmed, why));
        }
        Ok(())
    }

    /// What can be told at once.
    fn look(&self, epoch: Epoch, request: &ChangesRequest) -> Result<Look> {
        self.can_go_on(epoch, request)?;
        let Position { after, step } = &request.position;
        if let Some(step) = step {
            return Ok(Look::Search(step.clone()));
        }
        let mut tail = self.shared.tail.lock();
        // Under the lock: the state of here and the tail are of one moment.
        let newest = self.state().last_timestamp;
        let now = self.clock.now();
        Ok(match tail.after(*after, newest, now, request.limits.bytes_max) {
            Some((commands, more)) => Look::Page(page_of(&commands, more, newest, request)),
            None => Look::Search(Step { upto: newest, key: request.start.clone() }),
        })
    }

    /// One page of a search through the versions.
    async fn search(&self, step: Step, request: &ChangesRequest) -> Result<ShardChanges> {
        let (engine, end) = (self.engine.clone(), request.end.clone());
        let (after, limits, with_replaced) = (request.position.after, request.limits, request.with_replaced);
        let horizon = self.state().horizon;
        let Step { upto, key } = step;
        let found = spawn_blocking(move || {
            let interval = Interval { after, upto };
            changes::page(&*engine, (&key, &end), interval, with_replaced, limits)
        });
        let mut found = found.await.map_err(|_| Error::internal("a search for changes was cancelled"))??;
        for change in &mut found.changes {
            change.replaced.take_if(|replaced| is_settled(replaced, horizon));
        }
        let position = match found.next {
            Some(key) => Position { after, step: Some(Step { upto, key }) },
            None => Position { after: upto.max(after), step: None },
        };
        Ok(ShardChanges { changes: found.changes, position })
    }

    /// Looks up what the changes of a page from the tail have replaced.
    async fn with_replaced(&self, mut page: ShardChanges) -> Result<ShardChanges> {
        if page.changes.is_empty() {
            return Ok(page);
        }
        let (engine, horizon) = (self.engine.clone(), self.state().horizon);
        let looked_up = spawn_blocking(move || {
            for change in &mut page.changes {
                change.replaced = before(&engine, change)?.filter(|replaced| !is_settled(replaced, horizon));
            }
            Ok(page)
        });
        looked_up.await.map_err(|_| Error::internal("a look at what was replaced was cancelled"))?
    }
}

fn before(engine: &Arc<dyn Engine>, change: &Change) -> Result<Option<mvcc::Version>> {
    match mvcc::newest(&**engine, &change.key, change.version.timestamp.previous(), Tier::Disk)? {
        Lookup::Found(version) => Ok(Some(version)),
        Lookup::Missing | Lookup::NeedsDisk => Ok(None),
    }
}

/// The part of the tail that lies in the range. Commands are told whole; the state is at `newest`, and these lead there unless
/// there are `more`.
fn page_of(commands: &[Arc<Applied>], more: bool, newest: Timestamp, request: &ChangesRequest) -> ShardChanges {
    // A replica that lags behind the one that told the position has nothing new, and takes nothing back.
    let after = newest.max(request.position.after);
    let mut page = ShardChanges { changes: Vec::new(), position: Position { after, step: None } };
    let mut bytes = 0;
    for (told, command) in commands.iter().enumerate() {
        let in_range = |key: &Bytes| *key >= request.start && *key < request.end;
        for (key, version) in command.versions.iter().filter(|(key, _)| in_range(key)) {
            bytes += key.len() + version.value.as_ref().map_or(0, Bytes::len);
            page.changes.push(Change { key: key.clone(), version: version.clone(), replaced: None });
        }
        let full = page.changes.len() >= request.limits.changes_max || bytes >= request.limits.bytes_max;
        let last = told + 1 == commands.len();
        if if last { more } else { full } {
            page.position.after = command.timestamp;
            return page;
        }
    }
    page
}
