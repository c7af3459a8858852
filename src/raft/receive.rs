//! Messages from other replicas.
//!
//! A message is given to openraft's core right where it arrives, by polling its handler once: the handlers' first act
//! is to queue it there, so messages are queued in the order of arrival, without a task or a queue of our own before
//! it. Only then does a task wait for the answer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt;
use openraft::raft::TransferLeaderError;
use tokio::sync::oneshot;

use super::codec::{self, CodecError};
use super::group::Inner;
use super::transport::Kind;
use super::types::{AppendResponse, VoteResponse};
use crate::runtime;

type Handler = Pin<Box<dyn Future<Output = Result<Bytes, String>> + Send>>;

/// Hands a message to the core and sees to its answer.
pub fn dispatch(inner: &Inner, kind: Kind, payload: Bytes, answer: oneshot::Sender<Result<Bytes, String>>) {
    let handler = match handler(inner, kind, payload) {
        Ok(handler) => handler,
        Err(error) => {
            let _ = answer.send(Err(error.to_string()));
            return;
        }
    };
    // Unconstrained: a task whose budget is used up would be told "not yet" before anything was queued.
    let mut handler = tokio::task::unconstrained(handler);
    match handler.poll_unpin(&mut Context::from_waker(futures::task::noop_waker_ref())) {
        Poll::Ready(done) => {
            let _ = answer.send(done);
        }
        // When the core's queue is full, the handler now has its place in the line before it.
        Poll::Pending => {
            runtime::spawn(async move {
                let _ = answer.send(handler.await);
            });
        }
    }
}

/// Whether a message would make the log of its receiver longer. (A heartbeat does not.)
pub fn carries_entries(kind: Kind, payload: &Bytes) -> bool {
    kind == Kind::Append && codec::decode_append(payload.clone()).is_ok_and(|(request, _)| !request.entries.is_empty())
}

/// Whether a message holds the first entries of a log. (An empty log refuses all others by itself, and so lets the leader
/// find out what it lacks.)
pub fn is_the_beginning(kind: Kind, payload: &Bytes) -> bool {
    let begins = |request: super::types::AppendRequest| request.prev_log_id.is_none() && !request.entries.is_empty();
    kind == Kind::Append && codec::decode_append(payload.clone()).is_ok_and(|(request, _)| begins(request))
}

/// What to do about a message. A question for a confirmed index is not one for the core: whoever owns the group answers
/// it, so that all who wait share one confirmation.
fn handler(inner: &Inner, kind: Kind, payload: Bytes) -> Result<Handler, CodecError> {
    let raft = inner.raft.clone();
    Ok(match kind {
        Kind::Append => {
            // Entries stay in the cache as slices of what they came in. The connection's buffer also holds the frames
            // of other groups and must not be kept for the sake of a few of them.
            let (request, held) = codec::decode_append(Bytes::copy_from_slice(&payload))?;
            inner.log.note_held(held);
            let heard = inner.heard.clone();
            Box::pin(async move {
                let response = raft.append_entries(request).await.map_err(|error| error.to_string())?;
                if !matches!(response, AppendResponse::HigherVote(_)) {
                    heard.note();
                }
                Ok(codec::encode_append_response(&response))
            })
        }
        Kind::Vote => {
            let request = codec::decode_vote_request(payload)?;
            Box::pin(async move {
                let response = raft.vote(request).await.map_err(|error| error.to_string())?;
                Ok(codec::encode_vote_response(&response))
            })
        }
        Kind::PreVote => {
            let request = codec::decode_vote_request(payload)?;
            Box::pin(async move {
                let response = raft.pre_vote(request).await.map_err(|error| error.to_string())?;
                Ok(codec::encode_vote_response(&response))
            })
        }
        Kind::ReadIndex => Box::pin(async { Err("this question is answered by the owner of the group".to_owned()) }),
        Kind::Transfer => {
            let request = codec::decode_transfer(payload)?;
            Box::pin(async move {
                let from = *request.from_leader();
                let taken = raft.handle_transfer_leader(request).await.map_err(|error| error.to_string())?;
                // Answered like a request for a vote: granted, or the vote or the log that stands against it.
                Ok(codec::encode_vote_response(&match taken {
                    Ok(()) => VoteResponse::new(from, None, true),
                    Err(TransferLeaderError::VoteChanged { actual, .. }) => VoteResponse::new(actual, None, false),
                    Err(TransferLeaderError::LogNotFlushed { actual, .. }) => VoteResponse::new(from, actual, false),
                }))
            })
        }
    })
}
