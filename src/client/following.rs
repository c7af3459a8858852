//! Following the changes of a table for as long as somebody wants to know: one question under way for each piece.
//!
//! The first question is answered at once, with the pieces into which the followed keys are cut now, one for each shard. From then
//! on each piece is asked for by itself, again and again, and waits at its shard until there is news: nothing is asked
//! in vain because another piece had something to tell. Pieces are cut further where shards are split, and told as one where
//! they stand at the same place; merges leave them as they are.
//!
//! Promise: the cursor of a page covers what was given out up to and with that page, and nothing that was not. Dropping a
//! future of [`Following::next`] loses nothing. An error that passes is waited out (the age of the pages says how
//! long); what cannot be gone on from ([`is_final`]) is returned, and again if the caller asks again.
//!
//! Bounds: each piece holds one answer at most that was not given out; a slow reader costs that and no more, since nothing is
//! asked for while nobody waits for the next page.
//!
//! Used by the client, and by the edge of a node for those who follow by a stream of gRPC.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;

use super::backoff::Backoff;
use crate::keyspace::{ChangesCursor, Layout, Part};
use crate::runtime::{self, Clock, Instant};
use crate::types::{Answer, ChangesPage, ChangesRequest, Error, Header, Kind, Reason, Result};

/// How long a piece waits at its shard for news: half of what an attempt may take.
const WAIT: Duration = Duration::from_millis(500);
/// Pauses before a piece is asked for again whose shard could not be reached.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_LONGEST: Duration = Duration::from_millis(500);

/// Whom to ask.
pub trait Ask: Send {
    /// Asks for one page, by whatever way; may be asked again before it has answered.
    fn ask(&self, request: ChangesRequest) -> BoxFuture<'static, Result<Answer<ChangesPage>>>;
    /// How the keys of the table are encoded, once something was answered.
    fn layout(&self) -> Result<Layout>;
}

/// An answer to the question for one piece.
struct Told {
    number: usize,
    asked: Instant,
    result: Result<Answer<ChangesPage>>,
}

/// A piece of what is followed.
struct Piece {
    part: Part,
    /// Everything acknowledged before this moment was given out.
    proven: Option<Instant>,
    pauses: Backoff,
}

/// Somebody who follows.
pub struct Following<A> {
    ask: A,
    clock: Clock,
    /// What was asked for; the cursor is that of the beginning.
    request: ChangesRequest,
    layout: Option<Layout>,
    pieces: Vec<Option<Piece>>,
    asked: FuturesUnordered<BoxFuture<'static, Told>>,
    /// The header of the last answer.
    header: Option<Header>,
}

/// Whether an error means that it cannot be gone on, rather than that somebody is away.
fn is_final(error: &Error) -> bool {
    let passes =
        matches!(error.kind(), Kind::Redirect | Kind::Refresh | Kind::Unavailable | Kind::Undetermined | Kind::BackOff);
    !passes || error.reason == Reason::WrongCluster
}

impl<A: Ask> Following<A> {
    /// Follows what the request names. Its `wait` is how often a page comes though there is nothing to tell.
    pub fn new(ask: A, clock: Clock, request: ChangesRequest) -> Following<A> {
        let (layout, header) = (None, None);
        Following { ask, clock, request, layout, pieces: Vec::new(), asked: FuturesUnordered::new(), header }
    }

    /// The next page: as soon as there is something to tell, else after the wait, with nothing but its cursor and its age.
    pub async fn next(&mut self) -> Result<Answer<ChangesPage>> {
        if self.layout.is_none() {
            let page = self.begin().await?;
            if !page.body.changes.is_empty() {
                return Ok(page);
            }
        }
        let until = self.clock.now() + self.request.wait;
        loop {
            // Biased: what is there is told even if the time is over.
            let Some(told) = runtime::timeout_at(until, self.asked.next()).await else { break };
            let Some(Told { number, asked, result }) = told else {
                // Nothing is followed: no key lies within the bounds.
                runtime::sleep_until(until).await;
                break;
            };
            match result {
                Ok(page) => {
                    let changes = self.take(number, asked, page)?;
                    if !changes.is_empty() {
                        return self.page(changes);
                    }
                }
                Err(error) => {
                    let last = is_final(&error);
                    self.ask_again(number, !last);
                    if last {
                        return Err(error);
                    }
                }
            }
        }
        self.page(Vec::new())
    }

    /// Asks for what is followed as a whole, at once.
    async fn begin(&mut self) -> Result<Answer<ChangesPage>> {
        let asked = self.clock.now();
        let first = self.ask.ask(ChangesRequest { wait: Duration::ZERO, ..self.request.clone() }).await?;
        let layout = self.ask.layout()?;
        let cursor = ChangesCursor::decode(&first.body.cursor, &layout, &self.request.bounds)?;
        self.layout = Some(layout);
        let proven = first.header.age.and_then(|age| asked.checked_sub(age));
        self.header = Some(first.header);
        for part in cursor.parts {
            self.follow(part, proven);
        }
        self.page(first.body.changes)
    }

    /// A page of these changes, and the cursor that goes with it.
    fn page(&self, changes: Vec<crate::types::Change>) -> Result<Answer<ChangesPage>> {
        let unbegun = || Error::internal("a page before the first answer");
        let (layout, mut header) =
            (self.layout.as_ref().ok_or_else(unbegun)?, self.header.clone().ok_or_else(unbegun)?);
        let mut pieces: Vec<&Piece> = self.pieces.iter().flatten().collect();
        pieces.sort_by(|one, other| one.part.start.cmp(&other.part.start));
        // The oldest of all; unknown if that of one is.
        let oldest = pieces.iter().map(|piece| piece.proven).min().flatten();
        header.age = oldest.map(|oldest| self.clock.now().saturating_duration_since(oldest));
        let mut cursor = ChangesCursor { parts: pieces.into_iter().map(|piece| piece.part.clone()).collect() };
        cursor.join();
        let cursor: Bytes = cursor.encode(layout, &self.request.bounds);
        Ok(Answer { header, body: ChangesPage { changes, cursor } })
    }

    /// Takes in the answer for a piece; what it tells.
    fn take(&mut self, number: usize, asked: Instant, page: Answer<ChangesPage>) -> Result<Vec<crate::types::Change>> {
        let layout = self.layout.as_ref().ok_or_else(|| Error::internal("an answer before the first"))?;
        let cursor = ChangesCursor::decode(&page.body.cursor, layout, &self.request.bounds)?;
        // Of that moment no more is known than that it did not lie before the question.
        let proven = page.header.age.and_then(|age| asked.checked_sub(age));
        self.header = Some(page.header);
        let same = matches!(&cursor.parts[..], [_]);
        let Some(before) = self.pieces[number].take() else { return Ok(Vec::new()) };
        for part in cursor.parts {
            let proven = proven.max(before.proven);
            if same {
                let pauses = Backoff::new(PAUSE_FIRST, PAUSE_LONGEST);
                self.pieces[number] = Some(Piece { part, proven, pauses });
                self.ask_again(number, false);
            } else {
                self.follow(part, proven);
            }
        }
        Ok(page.body.changes)
    }

    fn follow(&mut self, part: Part, proven: Option<Instant>) {
        let free = self.pieces.iter().position(Option::is_none);
        let piece = Some(Piece { part, proven, pauses: Backoff::new(PAUSE_FIRST, PAUSE_LONGEST) });
        let number = match free {
            Some(free) => {
                self.pieces[free] = piece;
                free
            }
            None => {
                self.pieces.push(piece);
                self.pieces.len() - 1
            }
        };
        self.ask_again(number, false);
    }

    /// Puts the next question for a piece, after a pause if the last one failed.
    fn ask_again(&mut self, number: usize, failed: bool) {
        let (Some(layout), Some(piece)) = (&self.layout, &mut self.pieces[number]) else { return };
        let alone = ChangesCursor { parts: vec![piece.part.clone()] };
        let cursor = Some(alone.encode(layout, &self.request.bounds));
        let wait = WAIT.min(self.request.wait);
        let question = self.ask.ask(ChangesRequest { cursor, after: None, wait, ..self.request.clone() });
        let pause = if failed { piece.pauses.next() } else { Duration::ZERO };
        let clock = self.clock.clone();
        self.asked.push(Box::pin(async move {
            if !pause.is_zero() {
                runtime::sleep(pause).await;
            }
            let asked = clock.now();
            Told { number, asked, result: question.await }
        }));
    }
}
