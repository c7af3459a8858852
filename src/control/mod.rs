//! Floor 6: decides what the catalog should want.
//!
//! Every node has a control; what changes the cluster is done by the one beside shard 0's leader, the others pass it
//! on. A change is computed from a fresh picture of the catalog and written by compare-and-swap, so two that believe
//! to lead can never both win; a lost race is computed again.
//!
//! - `tables`: create and drop tables, with placement.
//! - `members`: nodes that join, come back with new addresses, or come back wiped; `standing`: what is wanted of them.
//! - `shards`: leaders, checksums, descriptions of shards; `splits`, `merges` and `moves`: what is wanted of them by hand.
//! - `status`: what the nodes report, and what is wrong with it.
//! - `recovery`: what a recovery from a lost quorum leaves to be done.
//! - `duties`: what the leader of shard 0 does unasked: writes a new cluster's first rows, mends, finishes drops;
//!   `balance`: moves replicas and leaderships where they should be; `sizes`: splits what holds or serves too much, and merges
//!   it again.
//!
//! Left out: carrying it out (node reconciles), what should be moved (placement).

mod balance;
mod duties;
mod members;
mod merges;
mod moves;
mod recovery;
mod shards;
mod sizes;
mod splits;
mod standing;
mod status;
mod tables;
#[cfg(test)]
mod tests;
mod views;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::catalog::Directory;
use crate::keyspace::Layout;
use crate::node::{AskHandler, JoinAsk, Node, ask};
use crate::runtime::{Instant, Task, spawn, timeout_at};
use crate::types::{Error, Outcome, Reason, Result, Write};

/// How often a change that lost a race is computed again.
const CHANGE_TRIES: usize = 8;
/// How long one step of a change may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a verb of the cluster may take from the node that was asked: it may wait for elections.
const VERB_TIMEOUT: Duration = Duration::from_secs(20);

const CREATE_TABLE: &str = "create_table";
const DROP_TABLE: &str = "drop_table";
const SPLIT: &str = "split";
const MERGE: &str = "merge";
const MOVE: &str = "move";
const STANDING: &str = "standing";
const DECOMMISSION: &str = "decommission";
const BALANCING: &str = "balancing";
const BALANCE: &str = "balance";

/// The control of one node.
pub struct Control {
    node: Arc<Node>,
    /// Changes of the catalog are made one after the other; a race with another leader is still possible and safe.
    changing: tokio::sync::Mutex<()>,
    duties: parking_lot::Mutex<Vec<Task<()>>>,
    /// What balancing remembers.
    balancing: parking_lot::Mutex<balance::Memory>,
}

impl Control {
    /// Starts beside a node: answers questions for it and looks after its duties.
    pub fn start(node: Arc<Node>) -> Arc<Control> {
        let control = Arc::new(Control {
            node: node.clone(),
            changing: tokio::sync::Mutex::new(()),
            duties: parking_lot::Mutex::default(),
            balancing: parking_lot::Mutex::default(),
        });
        node.set_handler(control.clone());
        *control.duties.lock() = vec![
            spawn(duties::run(control.clone())),
            spawn(duties::look_after_views(control.clone())),
            spawn(balance::run(control.clone())),
        ];
        control
    }

    /// Waits until the duties have ended, which they do when the node hands over.
    pub async fn stop(&self) {
        let duties = std::mem::take(&mut *self.duties.lock());
        for duty in duties {
            let _ = duty.await;
        }
    }

    /// The picture of the catalog with everything in it that was acknowledged before the call. Only on shard 0's
    /// leader.
    async fn fresh_directory(&self, deadline: Instant) -> Result<Arc<Directory>> {
        let system = self.node.system_shard()?;
        system.confirm(deadline).await?;
        let newest = system.state().last_timestamp;
        timeout_at(deadline, self.node.wait_for_revision(newest))
            .await
            .ok_or_else(|| Error::new(Reason::DeadlineExceeded, "the catalog could not be read in time"))?;
        Ok(self.node.directory())
    }

    /// Writes to the system table. The outcome says whether the conditions held.
    async fn write(&self, mut write: Write, deadline: Instant) -> Result<Outcome> {
        let layout = Layout::system();
        for condition in &mut write.conditions {
            condition.key = layout.encode(&condition.key);
        }
        for operation in &mut write.operations {
            operation.key = layout.encode(&operation.key);
        }
        let system = self.node.system_shard()?;
        let epoch = system.state().epoch;
        Ok(system.write(epoch, write, deadline).await?.body)
    }

    /// Computes a change from a fresh picture and writes it, until it took effect or cannot. `None` from `build` means
    /// that there is nothing to do.
    async fn change<T>(&self, build: impl Fn(&Directory) -> Result<Option<(T, Write)>>) -> Result<Option<T>> {
        let _one_at_a_time = self.changing.lock().await;
        for _ in 0..CHANGE_TRIES {
            let deadline = self.node.clock().now() + STEP_TIMEOUT;
            let directory = self.fresh_directory(deadline).await?;
            let Some((result, write)) = build(&directory)? else { return Ok(None) };
            if self.write(write, deadline).await?.applied {
                // The caller may look at this node's picture next.
                self.fresh_directory(deadline).await?;
                return Ok(Some(result));
            }
        }
        Err(Error::new(Reason::Conflict, "the cluster's state kept changing while it was being changed; try again"))
    }

    fn must_lead(&self) -> Result<()> {
        if self.node.leads_system() {
            return Ok(());
        }
        Err(Error::new(Reason::NotLeader, "this node does not lead the system table")
            .with_leader(self.node.system_leader()))
    }
}

impl AskHandler for Control {
    fn answer<'a>(&'a self, kind: &'a str, body: Bytes) -> BoxFuture<'a, Result<Bytes>> {
        Box::pin(async move {
            match kind {
                ask::JOIN => {
                    let mut question: JoinAsk = ask::decode(&body)?;
                    // A newcomer may ask anyone; members know whom to ask, and so does who passes a question on.
                    if question.cluster.is_some() || question.passed_on {
                        self.must_lead()?;
                    }
                    if self.node.leads_system() {
                        return Ok(ask::encode(&self.join(question).await?));
                    }
                    question.passed_on = true;
                    let answer: crate::node::JoinAnswer =
                        self.node.ask_system_leader_for(ask::JOIN, &question, VERB_TIMEOUT).await?;
                    Ok(ask::encode(&answer))
                }
                CREATE_TABLE => {
                    self.must_lead()?;
                    Ok(ask::encode(&self.create_here(ask::decode(&body)?).await?))
                }
                DROP_TABLE => {
                    self.must_lead()?;
                    Ok(ask::encode(&self.drop_here(ask::decode(&body)?).await?))
                }
                crate::node::CHANGE_VIEW => {
                    self.must_lead()?;
                    Ok(ask::encode(&self.change_view_here(ask::decode(&body)?).await?))
                }
                SPLIT => {
                    self.must_lead()?;
                    Ok(ask::encode(&self.split_here(ask::decode(&body)?).await?))
                }
                MERGE => {
                    self.must_lead()?;
                    Ok(ask::encode(&self.merge_here(ask::decode(&body)?).await?))
                }
                MOVE => {
                    self.must_lead()?;
                    Ok(ask::encode(&self.move_here(ask::decode(&body)?).await?))
                }
                STANDING => {
                    self.must_lead()?;
                    Ok(ask::encode(&self.set_standing_here(ask::decode(&body)?).await?))
                }
                DECOMMISSION => {
                    self.must_lead()?;
                    Ok(ask::encode(&self.decommission_here(ask::decode(&body)?).await?))
                }
                BALANCE => {
                    self.must_lead()?;
                    Ok(ask::encode(&self.balance_here(ask::decode(&body)?).await?))
                }
                BALANCING => {
                    self.must_lead()?;
                    Ok(ask::encode(&self.set_balancing_here(ask::decode(&body)?).await?))
                }
                ask::SPLIT_NEWS => {
                    self.must_lead()?;
                    Ok(ask::encode(&self.note_split(ask::decode(&body)?).await?))
                }
                ask::MERGE_NEWS => {
                    self.must_lead()?;
                    Ok(ask::encode(&self.note_merge(ask::decode(&body)?).await?))
                }
                _ => Err(Error::invalid(format!("the question '{kind}' is unknown to this version"))),
            }
        })
    }
}
