//! How far an import or export has come, in a small file beside the data, so that a run that was cut short goes on.
//!
//! The file is replaced as a whole (written beside it, then renamed), so it is always one checkpoint or the other. It
//! carries a fingerprint of what was asked; another job never goes on from it.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a data file that go into its fingerprint: its beginning, besides its length.
const FINGERPRINT_BYTES: u64 = 64 << 10;

/// A checkpoint file.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
    fingerprint: String,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Stored<P> {
    fingerprint: String,
    position: P,
}

impl Checkpoint {
    /// The checkpoint at `path` of the job that `fingerprint` describes.
    pub fn new(path: PathBuf, fingerprint: String) -> Checkpoint {
        Checkpoint { path, fingerprint }
    }

    /// The position to go on from; none if there is no checkpoint. One of another job or a damaged one is an error.
    pub fn load<P: DeserializeOwned>(&self) -> Result<Option<P>, String> {
        let advice = || format!("remove {} to start from the beginning", self.path.display());
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("cannot read the checkpoint {}: {error}", self.path.display())),
        };
        let stored: Stored<P> = serde_json::from_slice(&text)
            .map_err(|_| format!("the checkpoint {} is damaged; {}", self.path.display(), advice()))?;
        if stored.fingerprint != self.fingerprint {
            return Err(format!(
                "the checkpoint {} belongs to another job (other data, table or options); {}",
                self.path.display(),
                advice()
            ));
        }
        Ok(Some(stored.position))
    }

    /// Replaces the checkpoint.
    pub fn save<P: Serialize>(&self, position: &P) -> Result<(), String> {
        let fail = |error: io::Error| {
            format!(
                "cannot write the checkpoint {}: {error}; name another place with --checkpoint",
                self.path.display()
            )
        };
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let beside = self.path.with_file_name(name);
        let text = serde_json::to_vec(&Stored { fingerprint: self.fingerprint.clone(), position })
            .map_err(|error| fail(error.into()))?;
        fs::write(&beside, text).and_then(|()| fs::rename(&beside, &self.path)).map_err(fail)
    }

    /// Removes it: the job is done.
    pub fn remove(&self) -> Result<(), String> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(format!("cannot remove the checkpoint {}: {error}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// What tells one data file from another: its length and a checksum of its beginning.
pub fn fingerprint_file(path: &Path) -> io::Result<String> {
    let mut start = Vec::new();
    let file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.take(FINGERPRINT_BYTES).read_to_end(&mut start)?;
    Ok(format!("{length}-{:08x}", crc32fast::hash(&start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_only_for_its_own_job() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |fingerprint: &str| Checkpoint::new(directory.path().join("c"), fingerprint.to_owned());
        assert_eq!(at("a").load::<u64>(), Ok(None));
        at("a").save(&7u64).expect("saved");
        at("a").save(&8u64).expect("saved again");
        assert_eq!(at("a").load::<u64>(), Ok(Some(8)));
        assert!(at("b").load::<u64>().is_err_and(|error| error.contains("another job")));
        fs::write(directory.path().join("c"), b"{").expect("written");
        assert!(at("a").load::<u64>().is_err_and(|error| error.contains("damaged")));
        at("a").remove().expect("removed");
        at("a").remove().expect("removing nothing is fine");
        assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 0);
    }

    #[test]
    fn fingerprints_see_length_and_beginning() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("data");
        let mut seen = std::collections::HashSet::new();
        for data in ["", "a", "b", "aa"] {
            fs::write(&path, data).expect("written");
            assert!(seen.insert(fingerprint_file(&path).expect("read")), "{data}");
        }
    }
}
