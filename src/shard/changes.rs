//! What has changed in one shard, page by page, for those who follow it.
//!
//! Promise: whoever asks again and again, each time with the position that the last page gave, is told of every version of the
//! range once, a key's in the order in which they came to be. A position is a timestamp: everything up to it was told. Timestamps in
//! a shard only grow, over all its replicas and also in what it is split into or taken over by, so no version appears behind a
//! position, and any replica may be asked.
//!
//! How a page comes to be: from the tail (`tail`) if that reaches back to the position; then it is in the order of time. Else the
//! versions are searched for it (`storage::changes`), up to the newest one of now: such a step may take several pages, and within
//! it changes are ordered by key, from the last to the first. Between its pages the position names the step too. If nothing
//! has changed, the page waits for something, or says at last that nothing has. A replica that has not yet come as far
//! as a position says nothing to it and takes nothing back.
//!
//! What is no longer there is not passed over: a position before something that may have been trimmed is refused
//! (`CURSOR_TRIMMED`), also if it is trimmed while the page is read. That the horizon has passed a position where nothing was
//! written since is no reason: then there is nothing to be told.
//!
//! Left out: which shards a range lies in, and what becomes of positions when these change (node).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::evaluate::is_settled;
use super::handle::{Served, Shard};
use super::tail::Applied;
use crate::keyspace::version;
use crate::runtime::planted::{self, Bug};
use crate::runtime::{Instant, spawn_blocking, timeout_at};
use crate::storage::changes::{self, Change, Interval, PageLimits};
use crate::storage::mvcc::Version;
use crate::types::{Epoch, Error, Position, Reason, Result, Step, Timestamp};

/// While a shard is followed, a proof of its age is asked for this often, so that those who are told nothing know that there
/// was nothing to tell.
const FOLLOWED_PROVEN: Duration = Duration::from_millis(500);

/// What is asked for.
#[derive(Clone, Debug)]
pub struct FollowRequest {
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
    /// Tell nothing beyond this version.
    pub until: Option<Timestamp>,
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
    /// A page, perhaps an empty one, and whether there is more already.
    Page(ShardChanges, bool),
    /// The versions must be searched, from here.
    Search(Step),
    /// This replica has not come as far as the position.
    Behind,
}

/// What there is beyond a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// Nothing: it tells all that was applied when it was looked for.
    None,
    /// More, here.
    Here,
    /// Perhaps more, but this replica has yet to come as far as the position.
    Elsewhere,
}

impl Shard {
    /// The changes after a position, or nothing if there are none until the deadline; then the position has moved on as far as
    /// the state had come. The age of the answer, if there is a proof of one, says how old that position can be.
    ///
    /// Errors: `WRONG_EPOCH`, `CURSOR_TRIMMED`, `SHARD_NOT_HERE`.
    pub async fn changes(
        &self,
        epoch: Epoch,
        mut request: FollowRequest,
        deadline: Instant,
    ) -> Result<Served<ShardChanges>> {
        let mut applied = self.applied();
        self.prove_again_after(FOLLOWED_PROVEN);
        loop {
            applied.borrow_and_update();
            // Before the state is looked at, which is then at least as new as the proof says.
            let proof = self.proofs.known(epoch);
            let (page, rest) = match self.look(epoch, &request)? {
                Look::Page(page, more) if request.with_replaced => {
                    let told = page.position.clone();
                    let page = self.with_replaced(page, &request).await?;
                    let rest = if more || page.position != told { Rest::Here } else { Rest::None };
                    (page, rest)
                }
                Look::Page(page, true) => (page, Rest::Here),
                Look::Page(page, false) => (page, Rest::None),
                Look::Search(step) => (self.search(step, &request).await?, Rest::Here),
                Look::Behind => {
                    (ShardChanges { changes: Vec::new(), position: request.position.clone() }, Rest::Elsewhere)
                }
            };
            // Only now: what is gone by now may have been gone when it was looked for.
            self.can_go_on(epoch, &request)?;
            request.position = page.position.clone();
            let nothing = page.changes.is_empty();
            if !nothing || self.clock.now() >= deadline {
                let as_of = self.state().last_timestamp;
                // Only who was told everything that the proof speaks of is as young as that.
                let proof = proof.filter(|_| rest == Rest::None);
                return Ok(self.served(page, as_of, proof, epoch));
            }
            if rest != Rest::Here {
                // That nothing comes is told by the page that is returned then. An error means that the replica stops, which the
                // next look finds out.
                let _ = timeout_at(deadline, applied.changed()).await;
            }
        }
    }

    /// Whether this replica is known to keep up with its leader: whether there is a proof of its age, not older than this. Asks for
    /// one that is.
    pub fn keeps_up(&self, age: Duration) -> bool {
        self.prove_again_after(FOLLOWED_PROVEN);
        let proof = self.proofs.known(self.state().epoch);
        proof.is_some_and(|proof| self.clock.now().saturating_duration_since(proof.asked) <= age)
    }

    /// Refuses a position from which it cannot be gone on, and a range that is another shard's.
    fn can_go_on(&self, epoch: Epoch, request: &FollowRequest) -> Result<()> {
        if self.has_ended() {
            let why = format!("the replica of {} that was asked has gone; ask another", self.id());
            return Err(Error::new(Reason::ShardNotHere, why));
        }
        let state = self.state();
        if state.epoch != epoch || !state.owns_all(&request.start, &request.end) {
            return Err(self.wrong_epoch());
        }
        let gone = state.trimmed.within(&request.start, &request.end);
        if request.position.after < gone && !planted::is(Bug::SilentTrim) {
            let why = format!(
                "the changes after {} are not all there any more: the history reaches back to {gone}; read the whole range anew \
                 and follow it from then on",
                request.position.after
            );
            return Err(Error::new(Reason::CursorTrimmed, why));
        }
        Ok(())
    }

    /// What can be told at once.
    fn look(&self, epoch: Epoch, request: &FollowRequest) -> Result<Look> {
        self.can_go_on(epoch, request)?;
        let Position { after, step } = &request.position;
        if let Some(step) = step {
            let reached = self.state().last_timestamp >= step.upto || planted::is(Bug::ChangesOfALaggard);
            return Ok(if reached { Look::Search(step.clone()) } else { Look::Behind });
        }
        let mut tail = self.shared.tail.lock();
        // Under the lock: the state of here and the tail are of one moment.
        let newest = self.state().last_timestamp;
        if newest < *after {
            return Ok(Look::Behind);
        }
        let now = self.clock.now();
        let known = tail.after(*after, newest, now, request.limits.bytes_max);
        let newest = request.until.map_or(newest, |until| until.clamp(*after, newest));
        Ok(match known {
            Some((mut commands, more)) => {
                let wanted = commands.partition_point(|command| command.timestamp <= newest);
                let more = more && wanted == commands.len();
                commands.truncate(wanted);
                page_of(&commands, more, newest, request)
            }
            None if newest == *after => {
                Look::Page(ShardChanges { changes: Vec::new(), position: request.position.clone() }, false)
            }
            None => Look::Search(Step { upto: newest, before: request.end.clone(), whole: false }),
        })
    }

    /// One page of a search through the versions.
    async fn search(&self, step: Step, request: &FollowRequest) -> Result<ShardChanges> {
        let (engine, start) = (self.engine.clone(), request.start.clone());
        let (after, limits, with_replaced) = (request.position.after, request.limits, request.with_replaced);
        let horizon = self.state().horizon;
        let Step { upto, before, whole: false } = step else {
            return Err(Error::internal("a whole state is read, not searched for"));
        };
        let found = spawn_blocking(move || {
            let interval = Interval { after, upto };
            changes::page(&*engine, (&start, &before), interval, with_replaced, limits)
        });
        let mut found = found.await.map_err(|_| Error::internal("a search for changes was cancelled"))??;
        for change in &mut found.changes {
            change.replaced.take_if(|replaced| is_settled(replaced, horizon));
        }
        let position = match found.next {
            Some(before) => Position { after, step: Some(Step { upto, before, whole: false }) },
            None => Position::after(upto),
        };
        Ok(ShardChanges { changes: found.changes, position })
    }

    /// Looks up what the changes of a page from the tail have replaced, as far as they fit into a page then.
    async fn with_replaced(&self, mut page: ShardChanges, request: &FollowRequest) -> Result<ShardChanges> {
        if page.changes.is_empty() {
            return Ok(page);
        }
        let (engine, horizon, bytes_max) = (self.engine.clone(), self.state().horizon, request.limits.bytes_max);
        let looked_up = spawn_blocking(move || {
            let mut bytes = 0;
            for at in 0..page.changes.len() {
                if bytes >= bytes_max {
                    page.cut(at);
                    break;
                }
                let change = &mut page.changes[at];
                let replaced = changes::replaced_by(&*engine, &change.key, change.version.timestamp)?;
                change.replaced = replaced.filter(|replaced| !is_settled(replaced, horizon));
                bytes += change.bytes();
            }
            Ok(page)
        });
        looked_up.await.map_err(|_| Error::internal("a look at what was replaced was cancelled"))?
    }
}

impl ShardChanges {
    /// Leaves out what a page from the tail tells from this change on, not the first. What is left of a command is found
    /// among the versions, as a step of its own.
    fn cut(&mut self, at: usize) {
        let (last, first_left) = (&self.changes[at - 1], &self.changes[at]);
        let upto = first_left.version.timestamp;
        let within = last.version.timestamp == upto;
        let step = within.then(|| Step { upto, before: version::key(&last.key, upto), whole: false });
        self.position = Position { after: upto.previous(), step };
        self.changes.truncate(at);
    }
}

/// The part of the tail that lies in the range; the state is at `newest`, and these commands lead there unless there are `more`.
/// What one command did is told in the order of a step, so that it can be gone on within it.
fn page_of(commands: &[Arc<Applied>], more: bool, newest: Timestamp, request: &FollowRequest) -> Look {
    let mut page = ShardChanges { changes: Vec::new(), position: Position::after(newest) };
    let limits = request.limits;
    let mut bytes = 0;
    for command in commands {
        let in_range = |(key, _): &&(Bytes, Version)| *key >= request.start && *key < request.end;
        let mut versions: Vec<_> = command.versions.iter().filter(in_range).collect();
        versions.sort_by(|(one, _), (other, _)| other.cmp(one));
        for (key, version) in versions {
            page.changes.push(Change { key: key.clone(), version: version.clone(), replaced: None });
            if page.changes.len() > limits.changes_max || bytes >= limits.bytes_max {
                // One more than fits.
                page.cut(page.changes.len() - 1);
                return Look::Page(page, true);
            }
            bytes += page.changes.last().map_or(0, Change::bytes);
        }
    }
    if more && let Some(last) = commands.last() {
        page.position = Position::after(last.timestamp);
    }
    Look::Page(page, more)
}
