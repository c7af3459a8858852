//! Cutting a shard's content into files for a replica that fell too far behind.
//!
//! The cut is lazy: it holds a storage snapshot and writes one file at a time, in key order: versions, then outcome
//! records, then the applied state. The position (`mark`) is read inside the same storage snapshot, so meta and data
//! are of one moment, and it travels inside the last file, so whoever ingests the files whole has both or neither. The
//! applied state also goes ahead as the cut's summary: a cut that covers keys of another replica is refused before its
//! files are touched.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::division;
use super::machine;
use super::merging;
use super::record::Record;
use super::state::State;
use crate::keyspace::side;
use crate::raft::{Cut, Cutter};
use crate::runtime::planted::{self, Bug};
use crate::storage::{self, Engine, Family, Ranges, Reader, TableWriter};
use crate::types::ShardId;

/// Bytes of keys and values after which a file ends: few files for a large shard, little disk for a slow receiver.
const FILE_BYTES_MAX: usize = 16 << 20;

/// The ranges of family `Data` that are a shard's content: versions, outcome records, the applied state.
pub fn ranges(shard: ShardId, start: &Bytes, end: &Bytes) -> Ranges {
    let applied = side::applied(shard);
    let mut after = applied.to_vec();
    after.push(0);
    vec![(start.clone(), end.clone()), side::outcome_range(start, end), (applied, after.into())]
}

/// Makes cuts of one shard, from any thread.
pub struct ShardCutter {
    engine: Arc<dyn Engine>,
    shard: ShardId,
}

impl ShardCutter {
    /// A cutter over the engine that holds the shard.
    pub fn new(engine: Arc<dyn Engine>, shard: ShardId) -> ShardCutter {
        ShardCutter { engine, shard }
    }
}

impl Cutter for ShardCutter {
    fn mark(&self) -> storage::Result<Option<Bytes>> {
        Ok(machine::load(&*self.engine, self.shard)?.and_then(|state| state.mark))
    }

    fn may_install(&self, summary: &Bytes) -> storage::Result<Result<(), String>> {
        let coming = match State::decode(summary.clone()) {
            Ok(state) => state,
            Err(error) => return Ok(Err(error.message)),
        };
        if coming.start >= coming.end {
            return Ok(Err("it does not say what range it is of; do the versions match?".to_owned()));
        }
        if Record::load(&*self.engine, self.shard).map_err(storage::Error::from)?.is_some_and(|record| record.tombstone)
        {
            return Ok(Err("this replica has ended".to_owned()));
        }
        if let Some(ours) = machine::load(&*self.engine, self.shard)?
            && !merging::may_replace(&*self.engine, &ours, &coming)?
        {
            return Ok(Err(
                "this replica is sealed: it has all there is, and another is about to take it over".to_owned()
            ));
        }
        let other = division::overlapping(&*self.engine, self.shard, &coming)?;
        Ok(match other {
            None => Ok(()),
            // Its sender has not applied a split yet that has been applied here; it will, and then send another.
            Some(other) => Err(format!("it covers keys that {other} owns here: it is of a time before a split")),
        })
    }

    fn cut(&self, directory: &Path) -> storage::Result<Box<dyn Cut>> {
        let reader = self.engine.snapshot();
        let state = machine::load(&*reader, self.shard)?
            .ok_or_else(|| storage::Error::corruption("a shard that has applied nothing has no snapshot"))?;
        let mark = state.mark.clone().unwrap_or_default();
        let mut ranges = ranges(self.shard, &state.start, &state.end);
        if planted::is(Bug::OutcomesLostInSnapshot) {
            ranges.remove(1);
        }
        ranges.reverse();
        Ok(Box::new(ShardCut {
            engine: self.engine.clone(),
            reader,
            mark,
            summary: state.encode(),
            directory: directory.to_owned(),
            ranges,
            files: 0,
        }))
    }
}

/// One cut: the ranges still to be written, last first.
struct ShardCut {
    engine: Arc<dyn Engine>,
    reader: Arc<dyn Reader>,
    mark: Bytes,
    summary: Bytes,
    directory: PathBuf,
    ranges: Vec<(Bytes, Bytes)>,
    files: u32,
}

impl Cut for ShardCut {
    fn mark(&self) -> &Bytes {
        &self.mark
    }

    fn summary(&self) -> Bytes {
        self.summary.clone()
    }

    fn next_file(&mut self) -> storage::Result<Option<PathBuf>> {
        let path = self.directory.join(format!("{:06}.sst", self.files));
        let mut file: Option<Box<dyn TableWriter>> = None;
        let mut bytes = 0;
        while let Some((start, end)) = self.ranges.pop() {
            let mut cursor = self.reader.cursor(Family::Data, &start, &end);
            cursor.seek_first();
            let mut rest = None;
            while let Some((key, value)) = cursor.entry() {
                if bytes >= FILE_BYTES_MAX {
                    rest = Some(Bytes::copy_from_slice(key));
                    break;
                }
                let writer = match &mut file {
                    Some(writer) => writer,
                    None => file.insert(self.engine.table_writer(&path)?),
                };
                writer.add(key, value)?;
                bytes += key.len() + value.len();
                cursor.next();
            }
            cursor.status()?;
            if let Some(rest) = rest {
                drop(cursor);
                self.ranges.push((rest, end));
                break;
            }
        }
        match file {
            Some(writer) => {
                writer.finish()?;
                self.files += 1;
                Ok(Some(path))
            }
            None => Ok(None),
        }
    }
}
