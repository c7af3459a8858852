//! How far the log is known to have been durable.
//!
//! RocksDB's recovery drops what follows a bad record, as it must after a torn write; so a flipped bit in the middle of
//! the log would make acknowledged entries vanish without a word. The mark is the newest sequence number that a
//! finished sync had covered. It is written after each sync but not synced each time: it survives the end of the
//! process always, and a power failure up to the last few hundred syncs, which only makes it less sharp, never wrong.
//!
//! ```text
//! file SYNCED = two slots of 512 bytes, written in turn, so that a torn write leaves the other one
//! slot        = "TRIVMARK" ‖ sequence (u64 BE) ‖ CRC-32 of the 16 bytes before (u32 BE) ‖ zeros
//! ```

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::super::{Error, Result};

const NAME: &str = "SYNCED";
const MAGIC: &[u8; 8] = b"TRIVMARK";
const SLOT_BYTES: usize = 512;
/// After so many updates the mark itself is synced: a fraction of a percent of the syncs there are.
const UPDATES_PER_SYNC: u32 = 512;

/// The mark of an open store.
pub(super) struct Mark {
    path: PathBuf,
    file: File,
    sequence: u64,
    slot: u64,
    updates: u32,
}

impl Mark {
    /// Whether a store's directory has one.
    pub(super) fn exists(directory: &Path) -> bool {
        directory.join(NAME).exists()
    }

    /// The mark of a new store, durable at sequence 0.
    pub(super) fn create(directory: &Path) -> Result<Mark> {
        let path = directory.join(NAME);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(|error| Error::io("cannot create", &path, error))?;
        let mut mark = Mark { path, file, sequence: 0, slot: 0, updates: 0 };
        mark.write(0)?;
        mark.write(0)?;
        mark.sync()?;
        Ok(mark)
    }

    /// The mark of a store that was there before.
    pub(super) fn open(directory: &Path) -> Result<Mark> {
        let path = directory.join(NAME);
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| Error::io("cannot open", &path, error))?;
        let newest = (0..2).filter_map(|slot| read_slot(&file, slot).map(|sequence| (sequence, slot))).max();
        let Some((sequence, slot)) = newest else {
            return Err(Error::Corruption(format!("{} holds no readable mark", path.display())));
        };
        Ok(Mark { path, file, sequence, slot: 1 - slot, updates: 0 })
    }

    /// The newest sequence number known to be durable.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Everything up to `sequence` is durable now.
    pub(super) fn raise(&mut self, sequence: u64) -> Result<()> {
        if sequence <= self.sequence {
            return Ok(());
        }
        self.write(sequence)?;
        self.updates += 1;
        if self.updates >= UPDATES_PER_SYNC {
            self.sync()?;
        }
        Ok(())
    }

    /// Makes the mark itself durable.
    pub(super) fn sync(&mut self) -> Result<()> {
        self.updates = 0;
        self.file.sync_data().map_err(|error| Error::io("cannot sync", &self.path, error))
    }

    fn write(&mut self, sequence: u64) -> Result<()> {
        let mut slot = [0; SLOT_BYTES];
        slot[..8].copy_from_slice(MAGIC);
        slot[8..16].copy_from_slice(&sequence.to_be_bytes());
        let sum = crc32fast::hash(&slot[..16]);
        slot[16..20].copy_from_slice(&sum.to_be_bytes());
        self.file
            .write_all_at(&slot, self.slot * SLOT_BYTES as u64)
            .map_err(|error| Error::io("cannot write", &self.path, error))?;
        self.sequence = sequence;
        self.slot = 1 - self.slot;
        Ok(())
    }
}

fn read_slot(file: &File, slot: u64) -> Option<u64> {
    let mut bytes = [0; 20];
    file.read_exact_at(&mut bytes, slot * SLOT_BYTES as u64).ok()?;
    let (body, sum) = bytes.split_at(16);
    let (magic, sequence) = body.split_at(8);
    let intact = magic == MAGIC && crc32fast::hash(body).to_be_bytes() == sum;
    intact.then(|| u64::from_be_bytes(sequence.try_into().expect("sixteen less eight is eight")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_outlives_its_process_and_one_torn_slot() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!Mark::exists(directory.path()));
        let mut mark = Mark::create(directory.path()).unwrap();
        for sequence in [3, 9, 4, 9, 12] {
            mark.raise(sequence).unwrap();
        }
        drop(mark);
        assert_eq!(Mark::open(directory.path()).unwrap().sequence(), 12);

        // The newest slot torn: the one before it counts. Twelve was the third write after two at the creation.
        let path = directory.path().join(NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[10] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let mut mark = Mark::open(directory.path()).unwrap();
        assert_eq!(mark.sequence(), 9);
        mark.raise(20).unwrap();
        assert_eq!(Mark::open(directory.path()).unwrap().sequence(), 20);

        std::fs::write(&path, vec![0; 1024]).unwrap();
        assert!(matches!(Mark::open(directory.path()), Err(Error::Corruption(_))));
    }
}
