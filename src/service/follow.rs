//! `Kv.Changes`: a stream of pages for as long as the caller wants to know what changes.
//!
//! Each page is asked for when the one before has been taken by the connection, so a slow reader costs what `following` bounds.
//! The stream ends when its caller goes away, at the caller's deadline if it named one, when it cannot be gone on (the error
//! says why), and with NOT_READY when the node stops: the caller then goes on at another node from its last cursor.

use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{self, Stream};
use tonic::{Request, Status};

use super::deadline;
use super::edge::{Edge, stopping_error};
use super::metrics::Method;
use crate::client::following::{Ask, Following};
use crate::keyspace::Layout;
use crate::node::Context;
use crate::runtime::{self, Instant};
use crate::types::{self, Answer, ChangesPage, ChangesRequest, Error, Reason, Response, Result};
use crate::wire::proto::v1;
use crate::wire::{Question, to_status};

/// How often a page comes though there is nothing to tell, if the caller does not say.
const EVERY: Duration = Duration::from_secs(1);
/// The most often it may ask for.
const EVERY_MIN: Duration = Duration::from_millis(10);

/// Asks the node behind an edge.
struct Behind {
    edge: Edge,
    table: String,
}

/// Somebody who follows by a stream.
pub struct Follower {
    edge: Edge,
    following: Following<Behind>,
    /// When the caller stops waiting for the whole, if it said so.
    deadline: Option<Instant>,
}

impl Follower {
    /// What the call asks for; refused when it lacks something or exceeds the limits.
    pub fn open(edge: Edge, request: Request<v1::ChangesRequest>) -> Result<Follower> {
        let asked = deadline::asked(request.metadata());
        let deadline = asked.and_then(|asked| edge.clock().now().checked_add(asked));
        let (table, question) = request.into_inner().decode(edge.limits())?;
        let types::Request::Changes(mut changes) = question else {
            return Err(Error::internal("a question about changes decodes to one"));
        };
        changes.wait = if changes.wait.is_zero() { EVERY } else { changes.wait.max(EVERY_MIN) };
        let behind = Behind { edge: edge.clone(), table };
        let following = Following::new(behind, edge.clock().clone(), changes);
        Ok(Follower { edge, following, deadline })
    }

    /// The next page; none at the caller's deadline.
    pub async fn next(&mut self) -> Result<Option<v1::ChangesResponse>> {
        let started = self.edge.clock().now();
        let next = self.edge.stopping().run_until_cancelled(self.following.next());
        let page = match self.deadline {
            Some(deadline) => match runtime::timeout_at(deadline, next).await {
                Some(page) => page,
                None => return Ok(None),
            },
            None => next.await,
        };
        let page = page.ok_or_else(stopping_error)??;
        self.edge.answered(Method::Changes, started);
        v1::ChangesResponse::try_from(Response::Changes(page)).map(Some)
    }

    /// The pages from here on.
    pub fn pages(self) -> impl Stream<Item = std::result::Result<v1::ChangesResponse, Status>> + Send {
        stream::try_unfold(self, |mut follower| async move {
            let page = follower.next().await.map_err(|error| to_status(&error))?;
            Ok(page.map(|page| (page, follower)))
        })
    }
}

impl Ask for Behind {
    fn ask(&self, request: ChangesRequest) -> BoxFuture<'static, Result<Answer<ChangesPage>>> {
        let (edge, table) = (self.edge.clone(), self.table.clone());
        async move {
            let context = Context { deadline: edge.clock().now() + deadline::DEFAULT, forwarded: false, table: None };
            match edge.answer(&table, types::Request::Changes(request), context).await? {
                Response::Changes(answer) => Ok(answer),
                _ => Err(Error::internal("a question about changes was answered by something else")),
            }
        }
        .boxed()
    }

    fn layout(&self) -> Result<Layout> {
        let node = self.edge.door().node();
        let entry = node.and_then(|(node, _)| node.directory().table_by_name(&self.table).cloned());
        let gone = || Error::new(Reason::UnknownTable, format!("there is no table '{}'", self.table));
        entry.map(|entry| entry.layout.clone()).ok_or_else(gone)
    }
}
