//! Files of a snapshot on this node's disk, between the network and storage.

use std::path::{Path, PathBuf};

/// A staging directory and the files of a snapshot in it, in order. It belongs to whoever still needs the files, and goes
/// with its owner: while a group installs them, that is the group and not the call that brought them, which may be given
/// up at any moment.
#[derive(Debug)]
pub struct Staged {
    directory: PathBuf,
    files: Vec<PathBuf>,
}

impl Staged {
    /// Makes the directory. Blocks on the disk.
    pub fn create(directory: PathBuf) -> std::io::Result<Staged> {
        std::fs::create_dir_all(&directory)?;
        Ok(Staged { directory, files: Vec::new() })
    }

    /// Where the files lie.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The files so far.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Takes note of a file in the directory that follows the others.
    pub fn push(&mut self, file: PathBuf) {
        assert!(file.starts_with(&self.directory), "{} does not lie in {}", file.display(), self.directory.display());
        self.files.push(file);
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // What storage took in is gone already. What cannot be removed now is removed when the engine is opened next.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
