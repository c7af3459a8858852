//! What must hold at every moment, seen from outside: in the replicas' reports and in their storage.
//!
//! - Entries that any replica has applied are the same bytes at the same place on every other, for ever.
//! - Who leads in a newer term than anyone before has everything that was committed before.
//! - Replicas that have applied equally much hold equal content, outcomes of requests included.
//! - A replica's stored state is never ahead of its stored log.
//! - No replica fails.
//! - A watermark of a view never falls back ([`super::views::marks`]).
//! - A crash leaves no key without an owner on a node where each had one: a split is there whole or not at all.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use trivet::keyspace::{Layout, side};
use trivet::shard::{Shard, State};
use trivet::storage::{Engine, Family, Lookup, Memory, Reader, Tier, log_keys, mvcc};
use trivet::types::{Partitioning, ShardId, TableId, Timestamp};
use trivet::wire::proto::internal as proto;

use super::cluster::{Cluster, Member};
use super::network::Host;
use super::run::Report;
use super::views::marks::Marks;

/// What is known of one shard, from all its replicas together.
#[derive(Default)]
struct Known {
    /// The checksum of each applied entry, who was seen to apply it first, and the entry.
    entries: BTreeMap<u64, (u32, Host, Bytes)>,
    /// The checksum of the content after each entry at which it was looked at.
    contents: BTreeMap<u64, (u32, Host)>,
    committed: u64,
    /// The newest term anyone has led in, and who.
    led: (u64, Host),
}

/// Watches a cluster.
pub struct Watch {
    report: Report,
    shards: BTreeMap<ShardId, Known>,
    /// Up to where the applied entries of a replica were compared, by node, its start and shard.
    compared: BTreeMap<(Host, u64, ShardId), u64>,
    summed: BTreeMap<(Host, u64, ShardId), u64>,
    installs: BTreeMap<Host, u64>,
    marks: Marks,
}

impl Watch {
    /// Nothing seen yet.
    pub fn new(report: Report) -> Watch {
        Watch {
            report,
            shards: BTreeMap::new(),
            compared: BTreeMap::new(),
            summed: BTreeMap::new(),
            installs: BTreeMap::new(),
            marks: Marks::default(),
        }
    }

    /// Looks at all nodes that run.
    pub fn look(&mut self, cluster: &Cluster) {
        for member in &cluster.members {
            let Some(node) = member.node() else { continue };
            let installs = member.engine().installs();
            let seen = self.installs.insert(member.id, installs).unwrap_or(0);
            (seen..installs).for_each(|_| self.report.count("snapshots installed"));
            for shard in node.replicas().all() {
                if let Err(violation) = self.look_at(cluster, member, &shard) {
                    self.report.violation(format!("node {}, {}: {violation}", member.id, shard.id()));
                }
            }
        }
    }

    fn look_at(&mut self, cluster: &Cluster, member: &Member, shard: &Shard) -> Result<(), String> {
        let status = shard.group().status();
        let engine: &dyn Engine = &**member.engine();
        let place = (member.id, member.starts, shard.id());
        let known = self.shards.entry(shard.id()).or_default();
        if let Some(failure) = &status.failure {
            return Err(format!("the replica failed: {failure}"));
        }

        if status.is_leader() && status.term > known.led.0 {
            if status.last_log < known.committed {
                return Err(format!(
                    "it leads in term {} with a log up to {}, but {} was committed before",
                    status.term, status.last_log, known.committed
                ));
            }
            known.led = (status.term, member.id);
            self.report.count("leaders");
            self.report.event(format_args!("node {} leads {} in term {}", member.id, shard.id(), status.term));
        }

        let compared = self.compared.entry(place).or_insert(0);
        // What a snapshot covers counts no more, though another tail than the committed one may still lie there.
        *compared = (*compared).max(status.purged.unwrap_or(0)).max(status.snapshot.unwrap_or(0));
        // What is reported as committed may still have to be cut off here and written anew; what was applied was
        // written before.
        let (applied, state) = applied(engine, shard.id())?;
        if let Some(state) = state {
            let made_anew = || {
                let nodes = cluster.members.iter().filter_map(Member::node);
                let mut views = nodes.filter_map(|node| node.directory().descriptor(state.table)?.view.clone());
                views.any(|view| view.rebuilding)
            };
            self.marks.look(shard.id(), applied, &state, made_anew)?;
        }
        let certain = applied.min(member.written(shard.id()));
        while *compared < certain {
            let index = *compared + 1;
            let Some(entry) = stored(engine, Family::Log, &log_keys::entry(shard.id(), index)) else { break };
            let sum = crc32fast::hash(&entry);
            let (first, by, seen) = known.entries.entry(index).or_insert_with(|| (sum, member.id, entry.clone()));
            if *first != sum {
                return Err(format!(
                    "the applied entry {index} is {}, but {} was applied on node {by} ({status:?})",
                    identity(&entry),
                    identity(seen)
                ));
            }
            *compared = index;
        }
        known.committed = known.committed.max(status.committed);

        let summed = self.summed.entry(place).or_insert(0);
        if applied > *summed {
            *summed = applied;
            let sum = content(engine, shard.id())?;
            let (first, by) = *known.contents.entry(applied).or_insert((sum, member.id));
            if by != member.id {
                self.report.count("contents compared");
            }
            if first != sum {
                return Err(format!("its content after entry {applied} differs from that of node {by}"));
            }
        }
        Ok(())
    }
}

/// The leader that made an entry, and its kind.
fn identity(entry: &Bytes) -> String {
    match proto::Entry::decode(entry.clone()) {
        Ok(proto::Entry { id, payload }) => {
            let kind = match payload {
                Some(proto::entry::Payload::Blank(_)) => "blank",
                Some(proto::entry::Payload::Normal(_)) => "a proposal",
                Some(proto::entry::Payload::Membership(_)) => "a membership",
                None => "nothing",
            };
            format!("{id:?} ({kind}, {} bytes)", entry.len())
        }
        Err(error) => format!("{} bytes that cannot be decoded ({error})", entry.len()),
    }
}

fn stored(reader: &dyn Reader, family: Family, key: &[u8]) -> Option<Bytes> {
    match reader.get(family, key, Tier::Disk) {
        Ok(Lookup::Found(value)) => Some(value),
        _ => None,
    }
}

/// The last entry applied by a replica, and its applied state.
fn applied(engine: &dyn Engine, shard: ShardId) -> Result<(u64, Option<State>), String> {
    let Some(bytes) = stored(engine, Family::Data, &side::applied(shard)) else { return Ok((0, None)) };
    let state = State::decode(bytes).map_err(|error| error.to_string())?;
    let mark = proto::RaftMark::decode(state.mark.clone().unwrap_or_default()).map_err(|error| error.to_string())?;
    Ok((mark.applied.map_or(0, |id| id.index), Some(state)))
}

/// The checksum of all that a replica holds: versions, outcomes, applied state.
pub fn content(engine: &dyn Engine, shard: ShardId) -> Result<u32, String> {
    let (_, state) = applied(engine, shard)?;
    let Some(state) = state else { return Ok(0) };
    let mut sum = crc32fast::Hasher::new();
    for (start, end) in [(state.start.clone(), state.end.clone()), side::outcome_range(&state.start, &state.end)] {
        let mut cursor = engine.cursor(Family::Data, &start, &end);
        cursor.seek_first();
        while let Some((key, value)) = cursor.entry() {
            sum.update(key);
            sum.update(value);
            cursor.next();
        }
    }
    sum.update(&state.encode());
    Ok(sum.finalize())
}

/// The rows of a range of a table as a replica stores them, hidden ones included.
pub fn rows(engine: &dyn Engine, layout: &Layout, start: &Bytes, end: &Bytes) -> BTreeMap<Bytes, Bytes> {
    let limits = mvcc::ScanLimits { rows_max: usize::MAX, bytes_max: usize::MAX, count_only: false };
    let page = mvcc::scan(engine, start, end, Timestamp::MAX, 0, false, limits).expect("a memory can be read");
    let rows = page
        .rows
        .into_iter()
        .map(|(key, version)| (layout.decode(&key).expect("a key of the table"), version.value.unwrap_or_default()));
    rows.collect()
}

/// A stored state must not be ahead of the stored log, or the log would go on from another place.
pub fn log_holds_state(engine: &Memory) -> Result<(), String> {
    if engine.installs() > 0 {
        // A snapshot puts the state ahead; the log follows when it is purged.
        return Ok(());
    }
    let (start, end) = log_keys::replicas_range();
    let mut records = engine.cursor(Family::Raft, &start, &end);
    records.seek_first();
    while let Some((_, value)) = records.entry() {
        let record = proto::ReplicaRecord::decode(value).map_err(|error| error.to_string())?;
        let shard = ShardId(record.shard);
        let (applied, _) = applied(engine, shard)?;
        let (from, to) = log_keys::entries_range(shard, 0, u64::MAX);
        let mut entries = engine.cursor(Family::Log, &from, &to);
        entries.seek_last();
        let last = entries.entry().and_then(|(key, _)| log_keys::entry_split(key)).map_or(0, |(_, index)| index);
        let purged = stored(engine, Family::Raft, &log_keys::purged(shard));
        let purged = purged.map(proto::LogId::decode).transpose().map_err(|error| error.to_string())?;
        let purged = purged.map_or(0, |id| id.index);
        if applied > last.max(purged) {
            return Err(format!("the state of {shard} is at {applied}, its log ends at {last}"));
        }
        records.next();
    }
    Ok(())
}

/// How many replicas are stored, those that were destroyed included.
pub fn replicas_stored(engine: &Memory) -> usize {
    let (start, end) = log_keys::replicas_range();
    let mut records = engine.cursor(Family::Raft, &start, &end);
    let mut count = 0;
    records.seek_first();
    while records.entry().is_some() {
        count += 1;
        records.next();
    }
    count
}

/// Whether a replica of this shard is stored here, and sealed.
pub fn is_sealed(engine: &Memory, shard: ShardId) -> bool {
    matches!(applied(engine, shard), Ok((_, Some(state))) if state.sealed_for.is_some())
}

/// Whether the replicas stored here own, together, every key of the tables that they belong to.
pub fn every_key_is_owned(engine: &Memory) -> Result<bool, String> {
    let (start, end) = log_keys::replicas_range();
    let mut records = engine.cursor(Family::Raft, &start, &end);
    let mut owned: BTreeMap<TableId, Vec<(Bytes, Bytes)>> = BTreeMap::new();
    records.seek_first();
    while let Some((_, value)) = records.entry() {
        let record = proto::ReplicaRecord::decode(value).map_err(|error| error.to_string())?;
        records.next();
        if record.tombstone {
            continue;
        }
        let range = match applied(engine, ShardId(record.shard))? {
            (_, Some(state)) => (state.start, state.end),
            (_, None) => (record.start, record.end),
        };
        owned.entry(TableId(record.table)).or_default().push(range);
    }
    let whole = |(table, mut ranges): (TableId, Vec<(Bytes, Bytes)>)| {
        let (first, last) = Layout { table, partitioning: Partitioning::Hash }.table_range();
        ranges.sort();
        let mut covered = first;
        for (start, end) in ranges {
            if start > covered {
                return false;
            }
            covered = covered.max(end);
        }
        covered == last
    };
    Ok(owned.into_iter().all(whole))
}
