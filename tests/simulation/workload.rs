//! The clients: each on the routing client of its own, one call after another, everything noted.
//!
//! Some writes go to one node instead, once: what it says after its own attempts is then all that is known of them.
//! Values are unique and so are the deltas of increments, so that whatever is found in the end names the call that put
//! it there. A third of the calls read, at every level, some of them at one node, whatever part its replica plays. A finished write is now and then sent again under its request id, by this client or
//! another, sometimes while it is still running. Scans of the whole table, page by page, are in [`super::walk`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use trivet::client::{Client, Connection, Table};
use trivet::runtime::{Clock, sleep};
use trivet::types::{
    Action, Answer, Condition, Epoch, Error, Operation, Outcome, Read, ReadLevel, Reason, Request, RequestId, Response,
    Role, ScanBounds, ShardId, Test, Timestamp, Token, Versioned, Write,
};

use super::entropy::Random;
use super::follow::Following;
use super::plan::{Fault, Plan};
use super::run::Report;
use super::walk::Walking;

/// The table that the clients use.
pub const TABLE: &str = "t";
/// Keys of each kind in one tag.
const KEYS_PER_TAG: u64 = 3;

/// What a call was answered, and when, in microseconds of true time.
#[derive(Clone, Debug)]
pub struct Done<T> {
    /// When the answer came.
    pub at: u64,
    /// The shard that answered, and its epoch.
    pub shard: ShardId,
    pub epoch: Epoch,
    /// The newest version applied where it was answered.
    pub as_of: Timestamp,
    /// The answer.
    pub body: T,
}

/// What became of a write.
#[derive(Clone, Debug)]
pub enum Fate {
    /// It was answered.
    Acked(Done<Outcome>),
    /// It was refused by the shard's machine, without effect.
    Refused(Reason),
    /// It failed, without effect.
    Failed(Reason),
    /// Nobody knows.
    Unknown,
}

/// A write.
#[derive(Clone, Debug)]
pub struct Writing {
    /// Its number, which its values and deltas contain.
    pub id: u64,
    /// When it was first sent.
    pub from: u64,
    /// What was sent.
    pub write: Write,
    /// Whether it was sent more than once, so that one sending that fails says nothing of the others.
    pub repeated: bool,
    /// What became of it.
    pub fate: Fate,
}

/// A read of one key.
#[derive(Clone, Debug)]
pub struct Reading {
    /// When it was sent.
    pub from: u64,
    /// The key.
    pub key: Bytes,
    /// How fresh.
    pub level: ReadLevel,
    /// The newest version of the key that the token's owner had seen, if the read was to see that.
    pub least: Timestamp,
    /// How old the answer said to be at most, in microseconds.
    pub age: Option<u64>,
    /// What was found.
    pub found: Done<Option<Versioned>>,
}

/// A scan of one tag.
#[derive(Clone, Debug)]
pub struct Scanning {
    /// When it was sent.
    pub from: u64,
    /// The tag.
    pub tag: u64,
    /// What was found.
    pub found: Done<Vec<(Bytes, Timestamp, Bytes)>>,
}

/// Everything that clients did.
#[derive(Default)]
pub struct History {
    /// Writes, by their number less one.
    pub writes: Vec<Writing>,
    /// Reads that were answered.
    pub reads: Vec<Reading>,
    /// Scans that were answered.
    pub scans: Vec<Scanning>,
    /// Scans of the whole table that came to their end.
    pub walks: Vec<Walking>,
    /// What those were told who follow.
    pub followings: Vec<Following>,
}

/// The history that clients share.
pub type Shared = Arc<Mutex<History>>;

/// The keys of one tag that are kept for ever.
pub fn keys_of(tag: u64) -> Vec<Bytes> {
    let keys = (0..KEYS_PER_TAG).flat_map(|key| [format!("{{{tag}}}r{key}"), format!("{{{tag}}}c{key}")]);
    keys.map(Bytes::from).collect()
}

/// All keys of a run. Those with a time to live have tags of their own.
pub fn all_keys(plan: &Plan) -> Vec<Bytes> {
    let lasting = (0..plan.tags).flat_map(keys_of);
    let passing = (0..plan.tags).map(|tag| Bytes::from(format!("{{x{tag}}}c")));
    lasting.chain(passing).collect()
}

/// One client's work.
pub struct Worker {
    /// The number of the client.
    pub id: u64,
    /// How it reaches the cluster.
    pub client: Client,
    /// How it reaches the cluster when it says something again.
    pub other: Client,
    /// Ways to single nodes.
    pub doors: Vec<Connection>,
    /// The run.
    pub plan: Plan,
    /// What is noted.
    pub history: Shared,
    /// Whether to go on.
    pub report: Report,
    /// Its choices.
    pub random: Random,
    /// When to stop, by the run.
    pub stop: Arc<std::sync::atomic::AtomicBool>,
    /// The newest version it has seen, by shard.
    pub seen: std::collections::BTreeMap<ShardId, Timestamp>,
    /// The newest version it has seen or made, by key.
    pub versions: std::collections::BTreeMap<Bytes, Timestamp>,
    /// The keys whose version it knows.
    pub known: std::collections::BTreeMap<Bytes, Versioned>,
    /// Counts its writes.
    pub sequence: u64,
}

impl Worker {
    /// Works until told to stop.
    pub async fn run(mut self) {
        let table = self.client.table(TABLE);
        while !self.stop.load(std::sync::atomic::Ordering::Relaxed) {
            let think = self.random.span(Duration::ZERO, self.plan.think);
            sleep(think).await;
            match self.random.below(100) {
                0..25 => self.read(&table).await,
                25..31 => self.scan(&table).await,
                31..34 => self.walk(&table).await,
                34..46 => self.repeat(&table).await,
                _ => self.write(&table).await,
            }
        }
    }

    fn tag(&mut self) -> u64 {
        self.random.below(self.plan.tags)
    }

    fn register(&mut self, tag: u64) -> Bytes {
        format!("{{{tag}}}r{}", self.random.below(KEYS_PER_TAG)).into()
    }

    fn counter(&mut self, tag: u64) -> Bytes {
        format!("{{{tag}}}c{}", self.random.below(KEYS_PER_TAG)).into()
    }

    fn any_key(&mut self) -> Bytes {
        let keys = all_keys(&self.plan);
        self.random.pick(&keys).clone()
    }

    /// The write of a number.
    fn compose(&mut self, id: u64) -> Write {
        let put =
            |key: Bytes, ttl_ms| Operation { key, action: Action::Put { value: format!("v{id}").into(), ttl_ms } };
        let add = |key: Bytes| Operation { key, action: Action::Increment { delta: id as i64 } };
        let tag = self.tag();
        let mut write = Write::default();
        match self.random.below(100) {
            0..20 => write.operations.push(put(self.register(tag), None)),
            20..38 => {
                let key = self.register(tag);
                let known = self.known.get(&key).cloned();
                let test = match (known, self.random.below(4)) {
                    (Some(known), 0 | 1) => Test::Version(known.timestamp),
                    (Some(known), 2) => Test::Value(known.value),
                    (_, 3) => Test::Present,
                    _ => Test::Absent,
                };
                write.conditions.push(Condition { key: key.clone(), test });
                write.operations.push(put(key, None));
            }
            38..45 => write.operations.push(Operation { key: self.register(tag), action: Action::Delete }),
            45..65 => write.operations.push(add(self.counter(tag))),
            65..80 => {
                // Some keys of one tag change together, if none of them is what it should not be.
                let (one, other, counter) = (self.register(tag), self.register(tag), self.counter(tag));
                if self.random.per_mille(300) {
                    write.conditions.push(Condition { key: one.clone(), test: Test::Present });
                }
                write.operations.push(put(one.clone(), None));
                if other != one {
                    write.operations.push(put(other, None));
                }
                write.operations.push(add(counter));
            }
            choice => {
                // A counter that runs out and begins anew.
                let key = Bytes::from(format!("{{x{tag}}}c"));
                if choice < 90 {
                    let ttl_ms = Some(self.random.within(50, 2_000));
                    let value = format!("{}", 1_000_000_000_000 + id).into();
                    write.operations.push(Operation { key, action: Action::Put { value, ttl_ms } });
                } else {
                    write.operations.push(add(key));
                }
            }
        }
        write
    }

    async fn write(&mut self, table: &Table) {
        let id = self.history.lock().writes.len() as u64 + 1;
        let mut write = self.compose(id);
        self.sequence += 1;
        let request = RequestId { client: self.id, sequence: self.sequence, issued_ms: Clock::system().wall_ms() };
        write.request = Some(request);
        let (from, twice) = (self.report.micros(), self.random.per_mille(80));
        let writing = Writing { id, from, write: write.clone(), repeated: twice, fate: Fate::Unknown };
        self.history.lock().writes.push(writing);
        if twice {
            // The same request by two ways at once has one effect and one answer.
            let other = self.other.table(TABLE);
            let (one, again) = futures::future::join(table.batch(write.clone()), other.batch(write)).await;
            self.note(id, one);
            self.note(id, again);
            self.report.count("writes sent twice at once");
        } else if self.random.per_mille(300) {
            let result = self.write_at_one_node(write).await;
            self.report.count("writes at one node");
            self.note(id, result);
        } else {
            let result = table.batch(write).await;
            self.note(id, result);
        }
    }

    /// Asks one node, whether it leads or not, and leaves it at that.
    async fn write_at_one_node(&mut self, write: Write) -> trivet::types::Result<Answer<Outcome>> {
        let door = self.random.pick(&self.doors).clone();
        let patience = self.random.span(Duration::from_secs(1), Duration::from_secs(5));
        let deadline = Clock::system().now() + patience;
        match door.call(TABLE, &Request::Write(write), deadline, false).await? {
            Response::Written(answer) => Ok(answer),
            other => Err(Error::internal(format!("a write was answered with {other:?}"))),
        }
    }

    /// Sends a write again whose fate is known, or not.
    async fn repeat(&mut self, table: &Table) {
        let again = {
            let mut history = self.history.lock();
            let recent = history.writes.len().min(60) as u64;
            if recent == 0 {
                return;
            }
            let at = history.writes.len() - 1 - usize::try_from(self.random.below(recent)).expect("small");
            let writing = &mut history.writes[at];
            writing.repeated |= matches!(writing.fate, Fate::Unknown);
            // What failed without effect may be sent again, of course, but would no longer be the same call.
            matches!(writing.fate, Fate::Acked(_) | Fate::Unknown).then(|| (writing.id, writing.write.clone()))
        };
        if let Some((id, write)) = again {
            self.report.count("repeats");
            let result = table.batch(write).await;
            self.note(id, result);
        }
    }

    fn note(&mut self, id: u64, result: trivet::types::Result<Answer<Outcome>>) {
        let at = self.report.micros();
        let mut history = self.history.lock();
        let writing = &mut history.writes[usize::try_from(id - 1).expect("an index")];
        match result {
            Ok(answer) => {
                let (shard, as_of) = (answer.header.shard, answer.header.as_of);
                let seen = self.seen.entry(shard).or_default();
                *seen = (*seen).max(as_of);
                if answer.body.applied {
                    for operation in &writing.write.operations {
                        let newest = self.versions.entry(operation.key.clone()).or_default();
                        // Deleting what is not there makes no version.
                        if operation.action != Action::Delete {
                            *newest = (*newest).max(answer.body.timestamp);
                        }
                    }
                }
                self.report.event(format_args!("write {id} -> {} {:?}", answer.body.timestamp, answer.body.integers));
                match &writing.fate {
                    Fate::Acked(first) if first.body != answer.body => self
                        .report
                        .violation(format!("write {id} was answered {:?} and then {:?}", first.body, answer.body)),
                    Fate::Acked(_) => {}
                    Fate::Refused(reason) | Fate::Failed(reason) => self.report.violation(format!(
                        "write {id} failed for good ({}) and was answered {:?}",
                        reason.as_str(),
                        answer.body
                    )),
                    Fate::Unknown => {
                        self.report.count(if answer.body.applied {
                            "writes applied"
                        } else {
                            "writes refused by a condition"
                        });
                        if let [Operation { key, action: Action::Put { value, ttl_ms: None } }] =
                            &writing.write.operations[..]
                            && answer.body.applied
                        {
                            let timestamp = answer.body.timestamp;
                            self.known
                                .insert(key.clone(), Versioned { timestamp, value: value.clone(), expires_ms: None });
                        }
                        let epoch = answer.header.epoch;
                        writing.fate = Fate::Acked(Done { at, shard, epoch, as_of, body: answer.body });
                    }
                }
            }
            Err(error) => {
                self.report.event(format_args!("write {id} -> {}", error.reason.as_str()));
                let unknown = error.kind().leaves_open();
                match &writing.fate {
                    Fate::Unknown if unknown => self.report.count("undetermined writes"),
                    Fate::Unknown if error.reason == Reason::NotAnInteger => writing.fate = Fate::Refused(error.reason),
                    Fate::Unknown if !writing.repeated => {
                        self.report.count("failed writes");
                        writing.fate = Fate::Failed(error.reason);
                    }
                    _ => {}
                }
            }
        }
    }

    async fn read(&mut self, table: &Table) {
        let key = self.any_key();
        let from = self.report.micros();
        let level = self.level(&key);
        let answer = match self.random.below(10) {
            0..3 => self.read_at_one_node(key.clone(), level).await,
            // Whatever this client has seen must be there for the other, too.
            3 => self.other.table(TABLE).get_with(key.clone(), level).await,
            _ => table.get_with(key.clone(), level).await,
        };
        let Ok(answer) = answer else {
            self.report.count("failed reads");
            return;
        };
        self.report.count("reads");
        let (shard, as_of, age) = (answer.header.shard, answer.header.as_of, answer.header.age);
        let at = self.report.micros();
        self.report.event(format_args!(
            "read {key:?} {level:?} -> {:?} as of {as_of} by {} ({:?}, {age:?})",
            answer.body, answer.header.node, answer.header.role
        ));
        if answer.header.role != Role::Leader {
            self.report.count(match level {
                ReadLevel::Linearizable => "linearizable reads of copies",
                ReadLevel::AtLeast(_) => "reads of copies with a token",
                ReadLevel::MaxAge(_) => "reads of copies of a greatest age",
                ReadLevel::AsOf(_) => "reads of copies in the past",
                ReadLevel::Any => "reads of copies of any age",
            });
            if answer.header.role == Role::Learner {
                self.report.count("reads of learners");
            }
            if age.is_some() {
                self.report.count("ages told by copies");
            }
        }
        let least = match level {
            ReadLevel::AtLeast(_) => self.versions.get(&key).copied().unwrap_or_default(),
            _ => Timestamp::ZERO,
        };
        // What was read in the past is no news.
        if !matches!(level, ReadLevel::AsOf(_)) {
            let seen = self.seen.entry(shard).or_default();
            *seen = (*seen).max(as_of);
            if let Some(found) = &answer.body {
                self.saw(&key, found.timestamp);
                self.known.insert(key.clone(), found.clone());
            }
        }
        let age = age.map(|age| u64::try_from(age.as_nanos().div_ceil(1_000)).expect("a run is short"));
        let found = Done { at, shard, epoch: answer.header.epoch, as_of, body: answer.body };
        self.history.lock().reads.push(Reading { from, key, level, least, age, found });
    }

    /// How fresh a read is to be.
    fn level(&mut self, key: &Bytes) -> ReadLevel {
        let shard = self.client.locate(TABLE, key).map(|(shard, ..)| shard);
        let all = self.seen.values().copied().max();
        // Of a shard that nothing was seen of, all that was seen may have come from the one it was split off from.
        let token = shard.and_then(|shard| self.seen.get(&shard).copied()).filter(|_| self.shards_stand()).or(all);
        match (self.random.below(20), token) {
            (0..3, _) => ReadLevel::Any,
            (3..7, Some(timestamp)) => ReadLevel::AtLeast(Token { timestamp }),
            (7..11, _) => ReadLevel::MaxAge(self.random.span(Duration::ZERO, Duration::from_secs(2))),
            (11..13, Some(timestamp)) => {
                let back = self.random.below(3_000);
                ReadLevel::AsOf(Timestamp::from_millis(timestamp.millis().saturating_sub(back)))
            }
            _ => ReadLevel::Linearizable,
        }
    }

    /// Whether no shard is split or merged in this run: then a token of each is enough.
    fn shards_stand(&self) -> bool {
        !self.plan.faults.iter().any(|fault| matches!(fault, Fault::Split | Fault::Merge))
    }

    fn saw(&mut self, key: &Bytes, version: Timestamp) {
        let newest = self.versions.entry(key.clone()).or_default();
        *newest = (*newest).max(version);
    }

    /// Asks one node, whatever part its replica plays: to answer itself or refuse, or to have it answered by whoever can.
    async fn read_at_one_node(
        &mut self,
        key: Bytes,
        level: ReadLevel,
    ) -> trivet::types::Result<Answer<Option<Versioned>>> {
        let door = self.random.pick(&self.doors).clone();
        let patience = self.random.span(Duration::from_millis(200), Duration::from_secs(3));
        let deadline = Clock::system().now() + patience;
        let (alone, any_replica) = (self.random.per_mille(600), self.random.per_mille(700));
        let read = Read { keys: vec![key], level, any_replica };
        match door.call(TABLE, &Request::Read(read), deadline, alone).await? {
            Response::Values(mut values) if values.len() == 1 => Ok(values.remove(0)),
            other => Err(Error::internal(format!("a read was answered with {other:?}"))),
        }
    }

    async fn scan(&mut self, table: &Table) {
        let tag = self.tag();
        let from = self.report.micros();
        let mut scan = table.scan(ScanBounds::Tag(tag.to_string().into()));
        let Ok(Some(page)) = scan.next_page().await else {
            self.report.count("failed scans");
            return;
        };
        self.report.count("scans");
        if page.body.cursor.is_some() {
            return self.report.violation(format!("a scan of the few keys of tag {tag} has a second page"));
        }
        let at = self.report.micros();
        let rows = page.body.rows.into_iter().map(|row| (row.key, row.timestamp, row.value.unwrap_or_default()));
        let header = page.header;
        let found = Done { at, shard: header.shard, epoch: header.epoch, as_of: header.as_of, body: rows.collect() };
        self.report.event(format_args!("scan {tag} -> {:?}", found.body));
        self.history.lock().scans.push(Scanning { from, tag, found });
    }
}
