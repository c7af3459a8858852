//! A pulse on every shard: one small write after the other to a shard of a table of its own, and who leads it.
//!
//! The workloads show whether answers are right; the pulse shows for how long there were none, shard by shard, whatever
//! the workloads do, and how soon after a fault every shard takes writes again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use trivet::client::{Client, Options};
use trivet::wire::admin::NewTable;

use crate::history::Stopwatch;

/// The table.
const TABLE: &str = "pulse";
/// As many shards as give each node some to lead.
const SHARDS: u32 = 6;
/// Between two beats of a shard.
const BETWEEN: Duration = Duration::from_millis(100);
/// Longest time for one beat: all its attempts.
const PATIENCE: Duration = Duration::from_secs(2);
/// How much later than its deadline a call may end.
const LATE: Duration = Duration::from_secs(1);
/// Between two looks at who leads.
const LOOK: Duration = Duration::from_millis(500);
/// Keys that are tried to find one of every shard. Six shards of equal size are missed by 1,000 keys never.
const KEYS_MAX: u32 = 1_000;

/// One write.
#[derive(Clone, Copy)]
struct Beat {
    start: u64,
    end: u64,
    ok: bool,
}

#[derive(Default)]
struct State {
    beats: BTreeMap<u64, Vec<Beat>>,
    leader_changes: u64,
}

/// The pulse of a cluster.
pub(super) struct Pulse {
    state: Arc<Mutex<State>>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// What the pulse has shown.
pub(super) struct Shown {
    /// The longest time without an answered write, by shard, in milliseconds.
    pub gaps_ms: BTreeMap<u64, u64>,
    /// How long after the healing the first write was answered, on the slowest shard; none if one never was.
    pub recovered_ms: Option<u64>,
    /// How often another node was seen leading a shard than before.
    pub leader_changes: u64,
    /// Calls that took longer than their deadline allows: how long, in milliseconds.
    pub late_ms: Vec<u64>,
}

/// The table of the pulse.
pub(super) fn table() -> NewTable {
    NewTable::hash(TABLE, SHARDS)
}

impl Pulse {
    /// Begins to beat. The table must be there.
    pub(super) async fn start(endpoints: &[String], clock: Stopwatch) -> Result<Pulse> {
        let options = Options { deadline: PATIENCE, ..Options::default() };
        let client = Client::connect(endpoints, options).await.context("the pulse cannot connect")?;
        let mut keys = BTreeMap::new();
        for number in 0..KEYS_MAX {
            let key = format!("beat-{number}");
            if let Some((shard, ..)) = client.locate(TABLE, key.as_bytes()) {
                keys.entry(shard.0).or_insert(key);
            }
        }
        anyhow::ensure!(keys.len() == SHARDS as usize, "the client knows {} shards of the pulse", keys.len());
        let (stop, stopped) = watch::channel(false);
        let state = Arc::new(Mutex::new(State::default()));
        let mut tasks = Vec::new();
        for (shard, key) in keys {
            tasks.push(tokio::spawn(beat(client.clone(), shard, key, clock, state.clone(), stopped.clone())));
        }
        tasks.push(tokio::spawn(look(client, state.clone(), stopped)));
        Ok(Pulse { state, stop, tasks })
    }

    /// Waits until every shard has answered a write that was begun after this moment, at most this long.
    pub(super) async fn all_answer(&self, after_ns: u64, within: Duration) -> bool {
        let patience = tokio::time::Instant::now() + within;
        while tokio::time::Instant::now() < patience {
            if self.recovered(after_ns).is_some() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    fn recovered(&self, after_ns: u64) -> Option<u64> {
        let state = self.state.lock().expect("no holder panics");
        recovered(&state, after_ns)
    }

    /// Ends the pulse and says what it has shown.
    pub(super) async fn end(self, healed_ns: u64) -> Shown {
        self.stop.send_replace(true);
        for task in self.tasks {
            let _ = task.await;
        }
        let state = self.state.lock().expect("no holder panics");
        let late = (PATIENCE + LATE).as_nanos() as u64;
        let all = state.beats.values().flatten();
        let late_ms = all.map(|beat| beat.end - beat.start).filter(|&took| took > late).map(ms).collect();
        Shown {
            gaps_ms: state.beats.iter().map(|(&shard, beats)| (shard, ms(gap(beats)))).collect(),
            recovered_ms: recovered(&state, healed_ns).map(ms),
            leader_changes: state.leader_changes,
            late_ms,
        }
    }
}

fn ms(ns: u64) -> u64 {
    ns / 1_000_000
}

/// How long after this moment the slowest shard answered a write that was begun after it.
fn recovered(state: &State, after_ns: u64) -> Option<u64> {
    let first = |beats: &Vec<Beat>| beats.iter().find(|beat| beat.ok && beat.start >= after_ns).map(|beat| beat.end);
    let firsts: Option<Vec<u64>> = state.beats.values().map(first).collect();
    firsts?.into_iter().max().map(|last| last.saturating_sub(after_ns))
}

/// The longest time between two answered writes; from the last of them to the end counts too.
fn gap(beats: &[Beat]) -> u64 {
    let Some((first, last)) = beats.first().zip(beats.last()) else { return 0 };
    let (mut since, mut longest) = (first.start, 0);
    for beat in beats.iter().filter(|beat| beat.ok) {
        longest = longest.max(beat.end.saturating_sub(since));
        since = beat.end;
    }
    longest.max(last.end.saturating_sub(since))
}

async fn beat(
    client: Client,
    shard: u64,
    key: String,
    clock: Stopwatch,
    state: Arc<Mutex<State>>,
    stopped: watch::Receiver<bool>,
) {
    let table = client.table(TABLE);
    let mut number = 0_u64;
    while !*stopped.borrow() {
        number += 1;
        let start = clock.now_ns();
        let ok = table.put(key.clone(), number.to_string()).await.is_ok();
        let beat = Beat { start, end: clock.now_ns(), ok };
        state.lock().expect("no holder panics").beats.entry(shard).or_default().push(beat);
        tokio::time::sleep(BETWEEN).await;
    }
}

/// Counts changes of leadership, over all tables.
async fn look(client: Client, state: Arc<Mutex<State>>, stopped: watch::Receiver<bool>) {
    let admin = client.admin().within(Duration::from_secs(2));
    let mut leaders = BTreeMap::new();
    while !*stopped.borrow() {
        if let Ok(tables) = admin.tables().await {
            for shard in tables.into_iter().flat_map(|table| table.shards) {
                let Some(leader) = shard.leader else { continue };
                let before = leaders.insert(shard.id, leader);
                if before.is_some_and(|before| before != leader) {
                    state.lock().expect("no holder panics").leader_changes += 1;
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(start: u64, end: u64, ok: bool) -> Beat {
        Beat { start, end, ok }
    }

    #[test]
    fn gaps_reach_from_answer_to_answer_and_to_the_end() {
        assert_eq!(gap(&[beat(0, 1, true), beat(2, 3, false), beat(4, 9, true), beat(10, 11, true)]), 8);
        assert_eq!(gap(&[beat(0, 1, true), beat(2, 30, false)]), 29);
        assert_eq!(gap(&[beat(5, 30, false)]), 25, "never an answer");
    }

    #[test]
    fn recovery_is_that_of_the_slowest_shard() {
        let mut state = State::default();
        state.beats.insert(1, vec![beat(0, 1, true), beat(10, 12, true)]);
        assert_eq!(recovered(&state, 10), Some(2));
        state.beats.insert(2, vec![beat(0, 20, true), beat(21, 25, true)]);
        assert_eq!(recovered(&state, 10), Some(15), "one that began before says nothing");
        state.beats.insert(3, vec![beat(11, 12, false)]);
        assert_eq!(recovered(&state, 10), None);
    }
}
