//! Replica records: which replicas exist on this node, and which never may again.
//!
//! A replica exists when its record is stored. Destroying one replaces the record by a tombstone first, so that no
//! late message and no crash can bring its id back with an empty log.

use bytes::Bytes;
use prost::Message;

use super::division;
use super::state::State;
use crate::keyspace::side;
use crate::storage::{self, Batch, Engine, Family, Lookup, Reader, Tier, log_keys};
use crate::types::{Epoch, Error, Reason, ReplicaId, Result, ShardDescriptor, ShardId, TableId};
use crate::wire::proto::internal::ReplicaRecord;

/// What is stored of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The shard.
    pub shard: ShardId,
    /// The member.
    pub replica: ReplicaId,
    /// The table.
    pub table: TableId,
    /// The range it began with.
    pub start: Bytes,
    /// Its end.
    pub end: Bytes,
    /// The epoch it began with.
    pub epoch: Epoch,
    /// Destroyed.
    pub tombstone: bool,
}

impl Record {
    /// The record of a new replica.
    pub fn of(descriptor: &ShardDescriptor, replica: ReplicaId) -> Record {
        Record {
            shard: descriptor.id,
            replica,
            table: descriptor.table,
            start: descriptor.start.clone().into(),
            end: descriptor.end.clone().into(),
            epoch: descriptor.epoch,
            tombstone: false,
        }
    }

    fn encode(&self) -> Bytes {
        let record = ReplicaRecord {
            shard: self.shard.0,
            replica: self.replica.0,
            table: self.table.0,
            start: self.start.clone(),
            end: self.end.clone(),
            epoch: self.epoch.0,
            tombstone: self.tombstone,
        };
        record.encode_to_vec().into()
    }

    fn decode(bytes: Bytes) -> Result<Record> {
        let record = ReplicaRecord::decode(bytes)
            .map_err(|error| Error::new(Reason::Corruption, format!("a replica record cannot be decoded: {error}")))?;
        Ok(Record {
            shard: ShardId(record.shard),
            replica: ReplicaId(record.replica),
            table: TableId(record.table),
            start: record.start,
            end: record.end,
            epoch: Epoch(record.epoch),
            tombstone: record.tombstone,
        })
    }

    /// The record of a shard's newest replica here.
    pub fn load(engine: &dyn Reader, shard: ShardId) -> Result<Option<Record>> {
        match engine.get(Family::Raft, &log_keys::replica(shard), Tier::Disk)? {
            Lookup::Found(bytes) => Record::decode(bytes).map(Some),
            Lookup::Missing | Lookup::NeedsDisk => Ok(None),
        }
    }

    /// All records, tombstones included.
    pub fn load_all(engine: &dyn Reader) -> Result<Vec<Record>> {
        let (start, end) = log_keys::replicas_range();
        let mut cursor = engine.cursor(Family::Raft, &start, &end);
        let mut records = Vec::new();
        cursor.seek_first();
        while let Some((_, value)) = cursor.entry() {
            records.push(Record::decode(Bytes::copy_from_slice(value))?);
            cursor.next();
        }
        cursor.status()?;
        Ok(records)
    }

    /// Stores the record of a new replica, durably. A newer replica may follow an older one that was destroyed.
    pub fn store(&self, engine: &dyn Engine) -> Result<()> {
        if let Some(before) = Record::load(engine, self.shard)? {
            assert!(
                before.tombstone && before.replica < self.replica,
                "{} of {} would come back over {before:?}",
                self.replica,
                self.shard
            );
        }
        let mut batch = Batch::new();
        self.put(&mut batch);
        engine.write(batch)?;
        Ok(engine.sync()?)
    }

    /// Adds it to a batch.
    pub fn put(&self, batch: &mut Batch) {
        batch.put(Family::Raft, log_keys::replica(self.shard), self.encode());
    }

    /// Adds the end of a replica to a batch whose range belongs to another here: a tombstone, and none of its data.
    pub fn entomb(&self, batch: &mut Batch) {
        let tombstone = Record { tombstone: true, ..self.clone() };
        batch.put(Family::Raft, log_keys::replica(self.shard), tombstone.encode());
        batch.delete(Family::Data, side::applied(self.shard));
    }

    /// Removes what is left of a replica that has ended and was stopped: its log, its vote, its position.
    pub fn remove_traces(&self, engine: &dyn Engine) -> storage::Result<()> {
        assert!(self.tombstone, "{} of {} lives", self.replica, self.shard);
        let purged = engine.get(Family::Raft, &log_keys::purged(self.shard), Tier::Disk)?;
        let vote = engine.get(Family::Raft, &log_keys::vote(self.shard), Tier::Disk)?;
        if matches!((purged, vote), (Lookup::Missing, Lookup::Missing)) {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.delete(Family::Data, side::applied(self.shard));
        self.delete_log(&mut batch);
        engine.write(batch)
    }

    fn delete_log(&self, batch: &mut Batch) {
        let (start, end) = log_keys::entries_range(self.shard, 0, u64::MAX);
        batch.delete_range(Family::Log, start, end);
        for key in [log_keys::vote(self.shard), log_keys::committed(self.shard), log_keys::purged(self.shard)] {
            batch.delete(Family::Raft, key);
        }
    }

    /// Removes everything a stopped replica stored, leaving a tombstone. `start` and `end` are the range it owned last.
    pub fn destroy(&self, engine: &dyn Engine, start: &Bytes, end: &Bytes) -> storage::Result<()> {
        // Two replicas on one node never own overlapping ranges; to be wrong about that here would cost the other its data.
        let owned = State::fresh(self.table, start.clone(), end.clone(), self.epoch);
        let other = division::overlapping(engine, self.shard, &owned)?;
        assert_eq!(other, None, "what {} of {} would remove is another's", self.replica, self.shard);
        let mut batch = Batch::new();
        self.erase(start, end, &mut batch);
        let tombstone = Record { tombstone: true, ..self.clone() };
        tombstone.put(&mut batch);
        engine.write(batch)?;
        engine.sync()
    }

    /// Adds to a batch the removal of everything a replica stored but its record.
    pub(super) fn erase(&self, start: &Bytes, end: &Bytes, batch: &mut Batch) {
        for (start, end) in [(start.clone(), end.clone()), side::outcome_range(start, end)] {
            batch.delete_range(Family::Data, start, end);
        }
        batch.delete(Family::Data, side::applied(self.shard));
        self.delete_log(batch);
    }
}
