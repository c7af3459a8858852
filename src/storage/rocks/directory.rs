//! What lies in a store's directory, and whether it is ours to open.
//!
//! ```text
//! LOCK      held for as long as the store is open
//! FORMAT    "trivet storage 1": written last when a store is created, so without it creation did not finish
//! SYNCED    the mark (`mark.rs`)
//! db/       RocksDB's files
//! staging/  files on their way in or out; emptied at open
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::super::{Error, Result};
use super::mark::Mark;

const FORMAT: &str = "trivet storage 1\n";

/// An exclusively held directory.
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
    /// Whether a store was created here before.
    pub(super) is_new: bool,
    pub(super) mark: Mark,
}

impl Directory {
    /// Takes the directory for this process, or says precisely why not.
    pub(super) fn open(path: &Path) -> Result<Directory> {
        fs::create_dir_all(path).map_err(|error| Error::io("cannot create", path, error))?;
        let lock = lock(path)?;
        let format = path.join("FORMAT");
        let foreign = |why: String| Error::Foreign { directory: path.to_owned(), why };
        let is_new = match fs::read_to_string(&format) {
            Ok(text) if text == FORMAT => false,
            Ok(text) => {
                let found = text.lines().next().unwrap_or_default().chars().take(40).collect::<String>();
                return Err(foreign(format!(
                    "its format is {found:?}, this build knows {:?}; use the build that wrote it",
                    FORMAT.trim_end()
                )));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                return Err(foreign("its FORMAT file is not text".to_owned()));
            }
            Err(error) => return Err(Error::io("cannot read", &format, error)),
        };
        let database = path.join("db");
        let mark = if is_new {
            if Mark::exists(path) && Mark::open(path)?.sequence() > 0 {
                return Err(Error::Corruption(format!(
                    "{} was written to but has lost its FORMAT file",
                    path.display()
                )));
            }
            // Both are ours to overwrite and to empty only in a directory of ours.
            if !Mark::exists(path) && (database.exists() || path.join("staging").exists()) {
                return Err(foreign(
                    "it holds files that are not of a store of ours; use an empty directory".to_owned(),
                ));
            }
            Mark::create(path)?
        } else {
            if !Mark::exists(path) {
                return Err(Error::Corruption(format!("{} has lost its SYNCED file", path.display())));
            }
            if !database.join("CURRENT").exists() {
                return Err(Error::Corruption(format!("{} has lost its database", path.display())));
            }
            Mark::open(path)?
        };
        let directory = Directory { path: path.to_owned(), _lock: lock, is_new, mark };
        directory.empty_staging()?;
        Ok(directory)
    }

    /// Where RocksDB's files lie.
    pub(super) fn database(&self) -> PathBuf {
        self.path.join("db")
    }

    /// Where files on their way lie.
    pub(super) fn staging(&self) -> PathBuf {
        self.path.join("staging")
    }

    /// The store is complete: from now on it must be found whole.
    pub(super) fn finish_creation(&mut self) -> Result<()> {
        if !self.is_new {
            return Ok(());
        }
        let path = self.path.join("FORMAT");
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&path)?;
            file.write_all(FORMAT.as_bytes())?;
            file.sync_all()?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|error| Error::io("cannot write", &path, error))?;
        self.is_new = false;
        Ok(())
    }

    fn empty_staging(&self) -> Result<()> {
        let path = self.staging();
        let empty = || -> std::io::Result<()> {
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => fs::create_dir(&path),
            }
        };
        empty().map_err(|error| Error::io("cannot empty", &path, error))
    }
}

fn lock(directory: &Path) -> Result<File> {
    let path = directory.join("LOCK");
    let file = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| Error::io("cannot open", &path, error))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Locked(directory.to_owned())),
        Err(error) => Err(Error::io("cannot lock", &path, error.into())),
    }
}
