//! Workloads: clients that use the cluster in one way, and what they may count on.
//!
//! Promise: a workload asks through the public client alone, writes down everything it asked and was told, and its
//! check holds whatever faults are at work. All workloads run at once on one cluster, each in tables of its own; half
//! of each workload's clients are bound to one node (which forwards), half route by themselves, so that nodes which
//! have fallen behind are asked too.
//!
//! A run passes three stages: [`Workload::run`] until the stop signal, under faults; after everything is healed
//! [`Workload::finish`], which reads through every node what must be there; then [`Workload::check`] on the history
//! alone, so that a stored history can be checked again elsewhere. A history below its [`Floors`] says nothing and
//! fails as vacuous.

pub mod access;
mod ages;
mod append;
mod bank;
mod catalog;
mod changes;
mod counter;
mod follower;
mod past;
mod register;
mod scan;
mod set;
mod ttl;
mod views;
pub mod worker;

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::watch;
use trivet::wire::admin::NewTable;

use crate::check::Verdict;
use crate::history::{History, Kind, Recorder, Stopwatch};

/// Address of a node's client port: `host:port`.
pub type Endpoint = String;

/// What a workload works with.
#[derive(Clone)]
pub struct Context {
    /// Every node of the cluster.
    pub nodes: Vec<Endpoint>,
    /// Where the workload writes its history.
    pub history: Arc<Recorder>,
    /// Everything random in the workload derives from it.
    pub seed: u64,
    /// Becomes true when [`Workload::run`] shall end; operations under way are finished first.
    pub stop: watch::Receiver<bool>,
    /// The clock of all histories.
    pub clock: Stopwatch,
    /// Operations per second that the workload tries to make, all its clients together.
    pub rate: f64,
}

/// One way of using the cluster.
pub trait Workload: Send + Sync {
    /// Its name, which is also that of its history.
    fn name(&self) -> &'static str;

    /// What must hold, in one sentence.
    fn promise(&self) -> &'static str;

    /// Tables to be created before it starts.
    fn tables(&self) -> Vec<NewTable>;

    /// Definitions of views to be created then. They need not be ready when it starts.
    fn views(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// Drives all its clients until the stop signal.
    fn run(&self, context: Context) -> BoxFuture<'_, anyhow::Result<()>>;

    /// After everything is healed: reads what must be there, through every node. Errors: it could not be read.
    fn finish(&self, context: Context) -> BoxFuture<'_, anyhow::Result<()>>;

    /// Judges a history.
    fn check(&self, history: &History) -> Verdict;

    /// What a history must hold at least to say something; `short` for a run of about a minute.
    fn floors(&self, short: bool) -> Floors;
}

/// Least content of a history that says something.
#[derive(Clone, Debug, PartialEq)]
pub struct Floors {
    /// Operations with an answer, by verb.
    pub ok: Vec<(&'static str, usize)>,
    /// Largest share of operations whose outcome is unknown.
    pub info_share_max: f64,
}

impl Floors {
    /// What a history lacks; empty if nothing.
    pub fn shortfalls(&self, history: &History) -> Vec<String> {
        let mut shortfalls = Vec::new();
        for &(f, least) in &self.ok {
            let seen = history.oks(f).count();
            if seen < least {
                shortfalls.push(format!("{seen} answered {f} operations, at least {least} are needed"));
            }
        }
        let all = history.operations.len();
        let unknown = history.operations.iter().filter(|operation| operation.outcome == Kind::Info).count();
        if unknown as f64 > self.info_share_max * all as f64 {
            shortfalls.push(format!(
                "{unknown} of {all} operations have an unknown outcome, at most {:.0} % may",
                self.info_share_max * 100.0
            ));
        }
        shortfalls
    }
}

/// Every workload there is.
pub fn all() -> Vec<Box<dyn Workload>> {
    vec![
        Box::new(register::Registers),
        Box::new(counter::Counters),
        Box::new(set::Sets),
        Box::new(append::Appends),
        Box::new(bank::Bank),
        Box::new(scan::Scans),
        Box::new(ttl::Lives),
        Box::new(past::Past),
        Box::new(ages::Ages),
        Box::<changes::Changes>::default(),
        Box::new(views::Views),
        Box::new(catalog::Catalog),
    ]
}
