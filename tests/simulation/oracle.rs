//! Judges what clients were answered by what is in the end found in the table: the history of every key.
//!
//! Versions are the order. Every version found must be explained by one write, every write that was answered must be
//! found at its version, and running all of them in that order through a model of a few lines must give the very
//! answers that clients got: conditions, sums, what a failed condition saw, several keys at once. A write that failed
//! for good is never found, one whose fate is unknown at most once. Then real time: of two writes to one key, or to one
//! shard under one epoch, the one answered before the other began has the lower version; an answer of a linearizable read is as of at least every write answered before it
//! began; what a read or a scan returned is the state at its position or later, never a mixture; and no answer is older
//! than it says: it is as of at least every write to its key that was answered, in true time, that long before the read
//! began, whichever replica gave it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use trivet::types::{Action, Outcome, ReadLevel, Test, Timestamp, Versioned};

use super::follow;
use super::plan::Plan;
use super::walk;
use super::workload::{self, Done, Fate, History, Reading, Scanning, Writing};

/// One version of a key as found in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The value, none for a deletion.
    pub value: Option<Bytes>,
    /// When it runs out.
    pub expires_ms: Option<u64>,
}

/// All versions of all keys.
pub type Versions = BTreeMap<Bytes, BTreeMap<Timestamp, Found>>;

/// What the clocks did, in milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// True time at the beginning.
    pub began_ms: u64,
    /// The least and the most a node's clock was ever off.
    pub skews_ms: (i64, i64),
}

/// Judges a whole run.
pub fn judge(plan: &Plan, history: &History, versions: &Versions, clocks: Clocks) -> Result<(), String> {
    let mut replay =
        Replay { history, versions, state: BTreeMap::new(), used: BTreeSet::new(), made_at: BTreeMap::new() };
    replay.run()?;
    let made_at = replay.made_at;
    real_time(history)?;
    for reading in &history.reads {
        judge_read(reading, versions, &made_at, history, clocks).map_err(|why| format!("{why}: {reading:?}"))?;
    }
    for scanning in &history.scans {
        judge_scan(plan, scanning, versions, &made_at, history).map_err(|why| format!("{why}: {scanning:?}"))?;
    }
    for walking in &history.walks {
        walk::judge(plan, walking, versions, &made_at, history, clocks).map_err(|why| format!("{why}: {walking:?}"))?;
    }
    for (number, following) in history.followings.iter().enumerate() {
        follow::judge(following, versions, &made_at, history)
            .map_err(|why| format!("follower {number}, since {} us: {why}", following.begun))?;
    }
    linearizable_reads(history)?;
    ages(history)
}

/// The write that made each version.
pub type MadeAt = BTreeMap<(Bytes, Timestamp), u64>;

struct Replay<'a> {
    history: &'a History,
    versions: &'a Versions,
    state: BTreeMap<Bytes, (Timestamp, Found)>,
    used: BTreeSet<u64>,
    made_at: MadeAt,
}

/// A key's state as a write at `now_ms` sees it.
fn live(state: Option<&(Timestamp, Found)>, now_ms: u64) -> Option<(Timestamp, Bytes)> {
    let (timestamp, found) = state?;
    let alive = found.expires_ms.is_none_or(|expires| expires > now_ms);
    found.value.clone().filter(|_| alive).map(|value| (*timestamp, value))
}

impl Replay<'_> {
    fn run(&mut self) -> Result<(), String> {
        // What was found, by version; one version may stand in two shards, which have different keys.
        let mut groups: BTreeMap<Timestamp, BTreeMap<Bytes, Found>> = BTreeMap::new();
        for (key, versions) in self.versions {
            for (timestamp, found) in versions {
                groups.entry(*timestamp).or_default().insert(key.clone(), found.clone());
            }
        }
        let mut decided: BTreeMap<Timestamp, Vec<(&Writing, &Outcome)>> = BTreeMap::new();
        for writing in &self.history.writes {
            if let Fate::Acked(done) = &writing.fate {
                decided.entry(done.body.timestamp).or_default().push((writing, &done.body));
            }
        }
        let times: BTreeSet<Timestamp> = groups.keys().chain(decided.keys()).copied().collect();
        for timestamp in times {
            let mut found = groups.remove(&timestamp).unwrap_or_default();
            for (writing, outcome) in decided.remove(&timestamp).unwrap_or_default() {
                self.acked(timestamp, writing, outcome, &mut found)?;
            }
            while let Some(key) = found.keys().next().cloned() {
                self.unknown(timestamp, &key, &mut found)?;
            }
        }
        Ok(())
    }

    fn acked(
        &mut self,
        timestamp: Timestamp,
        writing: &Writing,
        outcome: &Outcome,
        found: &mut BTreeMap<Bytes, Found>,
    ) -> Result<(), String> {
        let (expected, made) = self.model(timestamp, writing);
        if expected != *outcome {
            return Err(format!(
                "write {} at {timestamp:?} was answered {outcome:?}; by the order of versions it is {expected:?}: {:?}",
                writing.id, writing.write
            ));
        }
        self.take(timestamp, writing, made, found)
    }

    /// Finds the write of unknown fate that made a version.
    fn unknown(&mut self, timestamp: Timestamp, key: &Bytes, found: &mut BTreeMap<Bytes, Found>) -> Result<(), String> {
        let open = self.history.writes.iter().filter(|writing| !self.used.contains(&writing.id));
        let open = open.filter(|writing| writing.write.operations.iter().any(|operation| operation.key == *key));
        for writing in open.filter(|writing| matches!(writing.fate, Fate::Unknown)) {
            let (outcome, made) = self.model(timestamp, writing);
            if outcome.applied && made.get(key) == found.get(key) {
                return self.take(timestamp, writing, made, found);
            }
        }
        let failed =
            self.history.writes.iter().filter(|writing| matches!(writing.fate, Fate::Failed(_) | Fate::Refused(_)));
        let failed = failed.filter(|writing| self.model(timestamp, writing).1.get(key) == found.get(key));
        let failed: Vec<u64> = failed.map(|writing| writing.id).collect();
        let before = self.state.get(key);
        let found = &found[key];
        Err(format!(
            "nothing that may have taken effect explains {key:?} at {timestamp:?}: {found:?} after {before:?} (writes that \
             failed for good and would: {failed:?})"
        ))
    }

    /// Takes what a write made out of what was found.
    fn take(
        &mut self,
        timestamp: Timestamp,
        writing: &Writing,
        made: BTreeMap<Bytes, Found>,
        found: &mut BTreeMap<Bytes, Found>,
    ) -> Result<(), String> {
        if !self.used.insert(writing.id) {
            return Err(format!("write {} took effect twice, again at {timestamp:?}", writing.id));
        }
        for (key, version) in made {
            match found.remove(&key) {
                Some(there) if there == version => {}
                there => {
                    return Err(format!(
                        "write {} made {key:?} {version:?} at {timestamp:?}, but there is {there:?}",
                        writing.id
                    ));
                }
            }
            self.made_at.insert((key.clone(), timestamp), writing.id);
            self.state.insert(key, (timestamp, version));
        }
        Ok(())
    }

    /// What a write does and is answered at this version.
    fn model(&self, timestamp: Timestamp, writing: &Writing) -> (Outcome, BTreeMap<Bytes, Found>) {
        let now_ms = timestamp.millis();
        let refused = |condition, current| {
            let observed = Some(trivet::types::Observed { condition, current });
            (Outcome { applied: false, timestamp, integers: Vec::new(), observed }, BTreeMap::new())
        };
        for (at, condition) in (0u32..).zip(&writing.write.conditions) {
            let current = live(self.state.get(&condition.key), now_ms);
            let holds = match (&condition.test, &current) {
                (Test::Absent, current) => current.is_none(),
                (Test::Present, current) => current.is_some(),
                (Test::Version(version), Some((timestamp, _))) => timestamp == version,
                (Test::Value(expected), Some((_, value))) => value == expected,
                (Test::Version(_) | Test::Value(_), None) => false,
            };
            if !holds {
                let expires_ms = self.state.get(&condition.key).and_then(|(_, found)| found.expires_ms);
                let current =
                    current.map(|(timestamp, value)| trivet::types::Versioned { timestamp, value, expires_ms });
                return refused(at, current);
            }
        }
        let (mut made, mut integers) = (BTreeMap::<Bytes, Found>::new(), Vec::new());
        for operation in &writing.write.operations {
            let key = &operation.key;
            let mut integer = None;
            match &operation.action {
                Action::Put { value, ttl_ms } => {
                    let expires_ms = ttl_ms.map(|ttl| now_ms + ttl);
                    made.insert(key.clone(), Found { value: Some(value.clone()), expires_ms });
                }
                Action::Delete => {
                    if self.state.get(key).is_some_and(|(_, found)| found.value.is_some()) {
                        made.insert(key.clone(), Found { value: None, expires_ms: None });
                    }
                }
                Action::Increment { delta } => {
                    let before = live(self.state.get(key), now_ms);
                    let number = before
                        .as_ref()
                        .map_or(Some(0), |(_, value)| std::str::from_utf8(value).ok()?.parse::<i64>().ok());
                    let sum = number.unwrap_or(i64::MIN).wrapping_add(*delta);
                    let expires_ms = before.and_then(|_| self.state.get(key)?.1.expires_ms);
                    made.insert(key.clone(), Found { value: Some(sum.to_string().into()), expires_ms });
                    integer = Some(sum);
                }
                Action::Rollback { .. } => unreachable!("clients here do not roll back"),
            }
            integers.push(integer);
        }
        if integers.iter().all(Option::is_none) {
            integers.clear();
        }
        (Outcome { applied: true, timestamp, integers, observed: None }, made)
    }
}

/// The newest version answered before a moment, of all that have something in common.
struct Frontier<K> {
    acked: BTreeMap<K, Vec<(u64, Timestamp, u64)>>,
}

impl<K: Ord> Frontier<K> {
    fn new(history: &History, common: impl Fn(&Writing, &Done<Outcome>) -> Vec<K>) -> Frontier<K> {
        let mut acked: BTreeMap<K, Vec<(u64, Timestamp, u64)>> = BTreeMap::new();
        for writing in &history.writes {
            if let Fate::Acked(done) = &writing.fate {
                for common in common(writing, done) {
                    acked.entry(common).or_default().push((done.at, done.body.timestamp, writing.id));
                }
            }
        }
        for acked in acked.values_mut() {
            acked.sort_unstable();
            let mut newest = (Timestamp::ZERO, 0);
            for (_, timestamp, id) in acked.iter_mut() {
                newest = newest.max((*timestamp, *id));
                (*timestamp, *id) = newest;
            }
        }
        Frontier { acked }
    }

    /// The newest version answered before `moment`, and the write that made it.
    fn before(&self, common: &K, moment: u64) -> Option<(Timestamp, u64)> {
        let acked = self.acked.get(common)?;
        let end = acked.partition_point(|(at, ..)| *at < moment);
        acked[..end].last().map(|(_, timestamp, id)| (*timestamp, *id))
    }
}

/// Versions of one key, and of one shard while its range stays the same, grow as time goes on. Over a merge the latter says
/// nothing: what the right shard decided may be answered again by the left one, which has given out later ones before.
fn real_time(history: &History) -> Result<(), String> {
    grow(history, |_, done| vec![(done.shard, done.epoch)])?;
    grow(history, |writing, _| writing.write.operations.iter().map(|operation| operation.key.clone()).collect())
}

fn grow<K: Ord>(history: &History, common: impl Fn(&Writing, &Done<Outcome>) -> Vec<K>) -> Result<(), String> {
    let frontier = Frontier::new(history, &common);
    for writing in &history.writes {
        let Fate::Acked(done) = &writing.fate else { continue };
        for common in common(writing, done) {
            let Some((before, by)) = frontier.before(&common, writing.from) else { continue };
            if before >= done.body.timestamp {
                return Err(format!(
                    "write {} began after write {by} was answered and yet has version {:?}, not after {before:?}",
                    writing.id, done.body.timestamp
                ));
            }
        }
    }
    Ok(())
}

fn linearizable_reads(history: &History) -> Result<(), String> {
    let frontier = Frontier::new(history, |_, done| vec![done.shard]);
    let reads = history.reads.iter().map(|read| (read.from, read.found.shard, read.found.as_of, read.level));
    let scans =
        history.scans.iter().map(|scan| (scan.from, scan.found.shard, scan.found.as_of, ReadLevel::Linearizable));
    let pages = walk::pages_of_now(history).map(|(from, shard, as_of)| (from, shard, as_of, ReadLevel::Linearizable));
    for (from, shard, as_of, level) in reads.chain(scans).chain(pages) {
        let least = match level {
            ReadLevel::Linearizable => frontier.before(&shard, from),
            // A token of the shard that the key was in before a split says little of the shard that answered; a leader that
            // has confirmed may then answer as of less, and must show all that was written.
            ReadLevel::AtLeast(token) if as_of < token.timestamp => frontier.before(&shard, from),
            _ => None,
        };
        if let Some((least, by)) = least
            && as_of < least
        {
            return Err(format!(
                "a read ({level:?}) of {shard} that began at {from} is as of {as_of:?}; write {by} was answered before, with \
                 version {least:?}"
            ));
        }
    }
    Ok(())
}

/// The states that a key had from its position as of an answer on, as far as they can have been there when it came.
pub fn candidates<'a>(
    key: &Bytes,
    (as_of, at): (Timestamp, u64),
    versions: &'a Versions,
    made_at: &MadeAt,
    history: &History,
) -> Vec<Option<(Timestamp, &'a Found)>> {
    let all = versions.get(key);
    let before = all.and_then(|all| all.range(..=as_of).next_back()).map(|(timestamp, found)| (*timestamp, found));
    let began = |timestamp: Timestamp| {
        let id = made_at[&(key.clone(), timestamp)];
        history.writes[usize::try_from(id - 1).expect("an index")].from
    };
    let later = all.into_iter().flat_map(|all| all.range(as_of.next()..));
    let later = later.filter(|(timestamp, _)| began(**timestamp) < at);
    [before].into_iter().chain(later.map(|(timestamp, found)| Some((*timestamp, found)))).collect()
}

pub fn judge_read(
    reading: &Reading,
    versions: &Versions,
    made_at: &MadeAt,
    history: &History,
    clocks: Clocks,
) -> Result<(), String> {
    let Reading { from, key, level, found: Done { at, as_of, body, .. }, .. } = reading;
    if let ReadLevel::AsOf(moment) = level {
        return judge_past(*moment, body.as_ref(), versions.get(key));
    }
    let candidates = candidates(key, (*as_of, *at), versions, made_at, history);
    let wall = |micros: u64, skew: i64| clocks.began_ms.saturating_add_signed(skew) + micros / 1_000;
    // The node's clock was at least and at most this while it answered.
    let (least_ms, most_ms) = (wall(*from, clocks.skews_ms.0), wall(*at, clocks.skews_ms.1) + 1);
    let (least_ms, most_ms) = (least_ms.max(as_of.millis()), most_ms.max(as_of.millis()));
    let newest_ms = candidates.iter().flatten().map(|(timestamp, _)| timestamp.millis()).max().unwrap_or(0);
    let most_ms = most_ms.max(newest_ms);
    let fits = |candidate: &Option<(Timestamp, &Found)>| match (candidate, body) {
        (None, None) => true,
        (Some((_, Found { value: None, .. })), None) => true,
        (Some((_, Found { expires_ms: Some(expires), .. })), None) => *expires <= most_ms,
        (Some((timestamp, state)), Some(body)) => {
            *timestamp == body.timestamp
                && state.value.as_ref() == Some(&body.value)
                && state.expires_ms == body.expires_ms
                && state.expires_ms.is_none_or(|expires| expires > least_ms)
        }
        _ => false,
    };
    if candidates.iter().any(fits) {
        return Ok(());
    }
    Err(format!("a read returned what was not there: the key was one of {candidates:?}"))
}

/// A read in the past finds what stands there in the end, to the moment: nothing was written behind it later.
pub fn judge_past(
    moment: Timestamp,
    body: Option<&Versioned>,
    all: Option<&BTreeMap<Timestamp, Found>>,
) -> Result<(), String> {
    let state =
        all.and_then(|all| all.range(..=moment).next_back()).map(|(timestamp, found)| (*timestamp, found.clone()));
    let there = live(state.as_ref(), moment.millis());
    if there == body.map(|found| (found.timestamp, found.value.clone())) {
        return Ok(());
    }
    Err(format!("a read in the past did not find what was there: {there:?}"))
}

/// No answer is older than it says, or than it was allowed to be, and a token's owner finds all that it had seen.
fn ages(history: &History) -> Result<(), String> {
    // The newest version of each key answered up to a moment, as for shards.
    let mut acked: BTreeMap<&Bytes, Vec<(u64, Timestamp, u64)>> = BTreeMap::new();
    for writing in &history.writes {
        if let Fate::Acked(Done { at, body, .. }) = &writing.fate
            && body.applied
        {
            // Whether a deletion found something to delete, and so made a version, is not told.
            let made = writing.write.operations.iter().filter(|operation| operation.action != Action::Delete);
            for operation in made {
                acked.entry(&operation.key).or_default().push((*at, body.timestamp, writing.id));
            }
        }
    }
    for reading in &history.reads {
        let Reading { from, key, level, least, age, found: Done { as_of, .. } } = reading;
        let newest = |before: u64| {
            let answered = acked.get(key).into_iter().flatten().filter(|(at, ..)| *at < before);
            answered.map(|(_, version, id)| (*version, *id)).max()
        };
        let allowed = match level {
            ReadLevel::Linearizable => Some(0),
            ReadLevel::MaxAge(age) => u64::try_from(age.as_micros()).ok(),
            _ => None,
        };
        for (what, limit) in [("it says", *age), ("it may be", allowed)] {
            let Some(limit) = limit else { continue };
            if let Some((version, id)) = newest(from.saturating_sub(limit))
                && version > *as_of
            {
                return Err(format!(
                    "an answer is older than {what}, {limit} us: write {id} was answered before that, with version \
                     {version:?}: {reading:?}"
                ));
            }
        }
        if *least > *as_of {
            return Err(format!("a token's owner had seen {least:?} of the key, and then: {reading:?}"));
        }
    }
    Ok(())
}

fn judge_scan(
    plan: &Plan,
    scanning: &Scanning,
    versions: &Versions,
    made_at: &MadeAt,
    history: &History,
) -> Result<(), String> {
    let Scanning { tag, found: Done { at, as_of, body, .. }, .. } = scanning;
    assert!(*tag < plan.tags, "clients scan the tags there are");
    let keys = workload::keys_of(*tag);
    // The moments at which the tag may have been looked at: as of the answer, or after any write that came later.
    let mut moments = BTreeSet::from([*as_of]);
    for key in &keys {
        moments.extend(
            candidates(key, (*as_of, *at), versions, made_at, history).into_iter().flatten().map(|(moment, _)| moment),
        );
    }
    let rows: BTreeMap<&Bytes, (Timestamp, &Bytes)> =
        body.iter().map(|(key, timestamp, value)| (key, (*timestamp, value))).collect();
    if rows.len() != body.len() || !body.is_sorted_by(|one, next| one.0 < next.0) {
        return Err("the rows of a scan are not in order, or not each there once".to_owned());
    }
    let fits = |moment: &Timestamp| {
        keys.iter().all(|key| {
            let state = versions.get(key).and_then(|all| all.range(..=*moment).next_back());
            let there = state.and_then(|(timestamp, found)| Some((*timestamp, found.value.as_ref()?)));
            rows.get(key).copied() == there
        })
    };
    if moments.iter().filter(|moment| **moment >= *as_of).any(fits) {
        return Ok(());
    }
    Err("a scan of one tag saw what never was at one moment".to_owned())
}
