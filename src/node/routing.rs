//! The way of one request from this node to a replica that can answer it: attempt after attempt until the deadline.
//!
//! Where: a replica of this node that leads, or, if the request lets copies answer, whatever part it plays; else the node
//! that leads. A copy here is asked once. If it cannot prove what is wanted, the leader is asked as if there were none.
//!
//! Promise: a refusal that says "nothing happened" is true of *all* attempts of the call, not only of the last. So an
//! attempt at a write that may have had an effect is remembered ([`Attempts`]), and from then on only an answer, or a
//! refusal that the shard decided under the request's id, is passed on as it is; everything else is told as
//! `RESULT_UNDETERMINED` ([`Error::of_repeat`]). The client keeps the same rule over its own attempts (`client::retry`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::door::Context;
use super::host::Node;
use super::metrics;
use crate::catalog::TableEntry;
use crate::raft::Status;
use crate::runtime::planted::{self, Bug};
use crate::runtime::{Instant, random_u64, timeout_at};
use crate::shard::{Served, Shard};
use crate::types::{
    Error, Kind, NodeId, ReadLevel, Reason, ReplicaId, Request, Response, Result, ShardDescriptor, ShardId, TableRef,
};

/// Between attempts of which nothing better is known: an election takes about a second, so asking again sooner than this only
/// makes noise. A hand-over, the first election of a new shard, or one that follows the end of a process take a few
/// milliseconds, and are not waited out: see [`another_leads`].
const RETRY_WAIT: Duration = Duration::from_millis(40);
/// How long one forwarded attempt may take when it can be repeated safely: a node that hangs must not use up the whole
/// deadline.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Where an attempt can be made.
enum Place {
    Here(Arc<Shard>),
    There(NodeId),
    Nowhere,
}

/// An answer, and by whom.
pub(super) enum Routed<T> {
    /// A replica of this node.
    Here(Served<T>, Arc<ShardDescriptor>),
    /// Another node.
    There(Response),
}

/// Whether a replica that does not lead may answer a read, if it can. A linearizable one costs the leader a question in
/// any case and teaches whoever sent it here nothing of where the leader is, so that is done only when asked for.
pub(super) fn copies_may_answer(level: ReadLevel, any_replica: bool) -> bool {
    any_replica || level != ReadLevel::Linearizable
}

/// What the failed attempts of one call, before its last, leave to be said at its end.
#[derive(Debug, Default)]
struct Attempts {
    /// One of them may have taken effect.
    open: bool,
    /// What a leader gave as its reason.
    told: Option<Error>,
}

impl Attempts {
    /// Takes note of a failed attempt that another follows.
    fn note(&mut self, error: &Error) {
        self.open |= error.kind().leaves_open();
        if error.reason == Reason::DiskFull {
            self.told = Some(error.clone());
        }
    }

    /// What to report when `error` was the last attempt's.
    fn last_word(self, error: Error) -> Error {
        // That time ran out, or that nobody was there at the end, says less than what a leader gave as its reason.
        let says_little = matches!(error.reason, Reason::DeadlineExceeded | Reason::NoQuorum | Reason::NotLeader);
        let error = self.told.filter(|_| says_little).unwrap_or(error);
        if self.open && !planted::is(Bug::ForgottenAttempt) { error.of_repeat() } else { error }
    }
}

impl Node {
    /// Finds the replica that can answer for `anchor` and asks it, again and again as long as nothing has happened and
    /// the deadline allows it. What concerns more than `anchor` was made for the shard as it was: when that is another, the
    /// caller is told so (`WRONG_EPOCH`) and plans anew.
    #[allow(clippy::too_many_arguments)]
    pub(super) async fn route<T, L, F, R>(
        &self,
        entry: &Arc<TableEntry>,
        anchor: &[u8],
        copies: bool,
        repeatable: bool,
        only_anchor: bool,
        context: Context,
        local: L,
        remote: R,
    ) -> Result<Routed<T>>
    where
        L: Fn(Arc<Shard>, Arc<ShardDescriptor>) -> F,
        F: Future<Output = Result<Served<T>>>,
        R: Fn() -> Request,
    {
        // Another table may get the name meanwhile.
        let table = TableRef { name: &entry.descriptor.name, id: Some(entry.descriptor.id) };
        let mut entry = entry.clone();
        let mut hint: Option<NodeId> = None;
        let mut failed: Option<NodeId> = None;
        let mut attempts = Attempts::default();
        let mut copies = copies;
        // The shard whose leader here was waited for already.
        let mut leads: Option<ShardId> = None;
        loop {
            let descriptor = entry.shards.locate(anchor).clone();
            let believed = self.replicas().get(descriptor.id).and_then(|shard| shard.leader());
            let error = match self.place(&descriptor, copies, hint.take(), failed.take(), context.forwarded) {
                Place::Here(shard) => match local(shard, descriptor.clone()).await {
                    Ok(served) => return Ok(Routed::Here(served, descriptor)),
                    Err(error) => {
                        copies &= error.kind() != Kind::Redirect;
                        error
                    }
                },
                Place::There(node) => {
                    ::metrics::counter!(metrics::FORWARDED).increment(1);
                    let now = self.clock().now();
                    let patience = if repeatable { ATTEMPT_TIMEOUT } else { context.deadline.duration_since(now) };
                    let deadline = context.deadline.min(now + patience);
                    let asked = match self.connection(node) {
                        Ok(connection) => connection.call(table, &remote(), deadline, true).await,
                        Err(error) => Err(error),
                    };
                    match asked {
                        Ok(response) => return Ok(Routed::There(response)),
                        Err(error) => {
                            // A leader whose disk is full is still the one to ask, until it has handed over.
                            let answered = error.kind() == Kind::Redirect || error.reason == Reason::DiskFull;
                            if error.leader != Some(node) && !answered {
                                failed = Some(node);
                            }
                            error
                        }
                    }
                }
                Place::Nowhere => Error::new(
                    Reason::NoQuorum,
                    format!("no leader of {} is known to this node right now; try again in a moment", descriptor.id),
                )
                .with_retry_after(RETRY_WAIT),
            };
            let again = match error.kind() {
                // It was waited for as long as there is time.
                _ if error.reason == Reason::ViewBehind => false,
                Kind::Redirect | Kind::Refresh | Kind::Unavailable => true,
                Kind::Undetermined => repeatable,
                _ => false,
            };
            let redirect = error.leader.filter(|&leader| leader != self.id());
            let wait = if redirect.is_some() && error.kind() == Kind::Redirect {
                Duration::ZERO
            } else {
                RETRY_WAIT + Duration::from_millis(random_u64() % 20)
            };
            let now = self.clock().now();
            if !again || context.forwarded || now + wait >= context.deadline {
                return Err(attempts.last_word(error));
            }
            attempts.note(&error);
            hint = redirect;
            match self.replicas().get(descriptor.id) {
                Some(hosted) if error.reason != Reason::WrongEpoch => {
                    let until = self.clock().now() + wait;
                    // Once: what a leader refuses for another reason it refuses again.
                    let begins = hosted.is_leader() && leads.replace(descriptor.id) != Some(descriptor.id);
                    timeout_at(until, async {
                        tokio::select! {
                            () = another_leads(hosted.group().watch(), believed) => {}
                            () = may_write(&hosted, until), if begins => {}
                        }
                    })
                    .await;
                }
                // Without a replica here, because its left neighbour's has just taken it over or as ever, only the catalog
                // has news.
                _ => self.range_news(&entry, anchor, &descriptor, wait).await,
            }
            // The range may have moved on meanwhile.
            if let Some(newer) = self.directory().table(entry.descriptor.id) {
                entry = newer.clone();
                if !only_anchor && entry.shards.locate(anchor).epoch != descriptor.epoch {
                    return Err(
                        attempts.last_word(Error::new(Reason::WrongEpoch, "the range of the shard has changed"))
                    );
                }
            }
        }
    }

    /// Waits until the catalog says that the range around `anchor` is another, but no longer than this: a shard that was
    /// just split knows it some milliseconds before the catalog does.
    async fn range_news(&self, entry: &TableEntry, anchor: &[u8], known: &ShardDescriptor, patience: Duration) {
        let mut changes = self.directory_changes();
        let deadline = self.clock().now() + patience;
        loop {
            changes.borrow_and_update();
            let directory = self.directory();
            let now = directory.table(entry.descriptor.id).map(|table| table.shards.locate(anchor).epoch);
            if now != Some(known.epoch) || timeout_at(deadline, changes.changed()).await.is_none() {
                return;
            }
        }
    }

    /// Where to make the next attempt.
    fn place(
        &self,
        descriptor: &ShardDescriptor,
        copies: bool,
        hint: Option<NodeId>,
        failed: Option<NodeId>,
        forwarded: bool,
    ) -> Place {
        let hosted = self.replicas().get(descriptor.id);
        // A leader that hands over refuses and names another before it knows itself that it leads no more: to ask it
        // again at once would go round in circles until the other leads.
        if let Some(shard) = &hosted
            && (forwarded || copies || (shard.is_leader() && hint.is_none()))
        {
            return Place::Here(shard.clone());
        }
        if forwarded {
            return Place::Nowhere;
        }
        let known = match &hosted {
            Some(shard) => shard.leader().map(|(_, node)| node),
            // Any replica knows the leader better than a node without one.
            None => descriptor.replicas.iter().map(|replica| replica.node).find(|&node| self.hears(node)),
        };
        let elsewhere = |node: &NodeId| *node != self.id();
        match hint.or(known).filter(elsewhere).filter(|node| Some(*node) != failed) {
            Some(node) => Place::There(node),
            None if hosted.is_some() => Place::Nowhere,
            None => {
                let mut others = descriptor.replicas.iter().map(|replica| replica.node).filter(elsewhere);
                others.find(|node| Some(*node) != failed).map_or(Place::Nowhere, Place::There)
            }
        }
    }
}

/// Waits until a replica here knows of another leader than it `believed` in before the attempt that failed. (Not: than the
/// one that was asked. That may have been named by the leader believed in, and the two would be asked in turn without a
/// pause.)
async fn another_leads(mut status: watch::Receiver<Status>, believed: Option<(ReplicaId, NodeId)>) {
    if status.wait_for(|status| status.leader.is_some() && status.leader != believed).await.is_err() {
        // The replica stops: whoever waits does so until the end of its patience.
        std::future::pending::<()>().await;
    }
}

/// Waits until a replica that has just begun to lead has heard from a majority: it takes no writes before that.
async fn may_write(shard: &Shard, until: Instant) {
    if shard.confirm(until).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::members::tests::real;
    use crate::runtime::timeout;

    fn last_word(reasons: &[Reason]) -> Reason {
        let mut attempts = Attempts::default();
        let error = |reason: &Reason| Error::new(*reason, "for a test");
        let (last, before) = reasons.split_last().expect("an attempt");
        before.iter().for_each(|reason| attempts.note(&error(reason)));
        attempts.last_word(error(last)).reason
    }

    #[test]
    fn nothing_happened_is_said_only_when_no_attempt_can_have_had_an_effect() {
        use Reason::*;
        for last in [NotLeader, NoQuorum, DeadlineExceeded, DiskFull, NotReady, ShardNotHere, WrongEpoch, Overloaded] {
            assert_eq!(last_word(&[NotLeader, last]), last);
            assert_eq!(last_word(&[ResultUndetermined, last]), ResultUndetermined, "{last:?}");
            assert_eq!(last_word(&[ResultUndetermined, NotLeader, last]), ResultUndetermined, "{last:?}");
        }
        for last in [RequestExpired, ValueTooLarge, InvalidRequest, WrongCluster, Internal] {
            assert_eq!(last_word(&[ResultUndetermined, last]), ResultUndetermined, "{last:?}");
            assert_eq!(last_word(&[last]), last);
        }
        assert_eq!(last_word(&[ResultUndetermined]), ResultUndetermined);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_goes_on_as_soon_as_another_leads_and_not_before() {
        let at = |node: u64| Status { leader: Some((ReplicaId(node), NodeId(node))), ..real(1, &[1, 2, 3], &[], &[]) };
        let unled = Status { leader: None, ..at(1) };
        let (sender, status) = watch::channel(at(1));
        let patience = Duration::from_secs(1);
        let waits = |believed: Option<u64>| {
            let believed = believed.map(|node| (ReplicaId(node), NodeId(node)));
            timeout(patience, another_leads(status.clone(), believed))
        };
        assert_eq!(waits(Some(2)).await, Some(()), "that is news");
        assert_eq!(waits(None).await, Some(()), "a shard that was just born had no leader");
        assert_eq!(waits(Some(1)).await, None, "it is still the one that refused, or named one that did");
        let (told, ()) = tokio::join!(waits(Some(1)), async {
            sender.send_replace(unled.clone());
            tokio::task::yield_now().await;
            sender.send_replace(at(3));
        });
        assert_eq!(told, Some(()));
        sender.send_replace(unled);
        drop(sender);
        assert_eq!(waits(Some(1)).await, None, "a replica that stops is no news of a leader");
    }

    #[test]
    fn what_the_shard_decided_stays_as_it_is() {
        use Reason::*;
        assert_eq!(last_word(&[ResultUndetermined, NotAnInteger]), NotAnInteger);
        assert_eq!(last_word(&[ResultUndetermined, RequestMismatch]), RequestMismatch);
    }

    #[test]
    fn a_full_disk_says_more_than_that_nobody_leads() {
        use Reason::*;
        assert_eq!(last_word(&[DiskFull, NotLeader]), DiskFull);
        assert_eq!(last_word(&[DiskFull, DeadlineExceeded]), DiskFull);
        assert_eq!(last_word(&[DiskFull, NotReady]), NotReady);
        assert_eq!(last_word(&[DiskFull, ResultUndetermined, NoQuorum]), ResultUndetermined);
    }
}
