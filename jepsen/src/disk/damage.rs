//! Damage to the files of a stopped node.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rand::RngExt;
use rand::rngs::SmallRng;

/// Bits flipped in one file: enough that a checksum of 32 bits finds them, and few enough to look like a real fault.
const FLIPS: usize = 3;

/// The files of a directory and those below it with this kind of name, in the order of their names, which for logs and
/// table files is that of their making.
pub fn files(directory: &Path, is: impl Fn(&str) -> bool + Copy) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, is));
        } else if path.file_name().is_some_and(|name| is(&name.to_string_lossy())) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Files of tables.
pub fn is_table(name: &str) -> bool {
    name.ends_with(".sst")
}

/// Files of the write-ahead log.
pub fn is_log(name: &str) -> bool {
    name.strip_suffix(".log").is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The list of live files.
pub fn is_manifest(name: &str) -> bool {
    name.starts_with("MANIFEST-")
}

/// Flips some bits of a file where it holds something, between two shares of its length. Proof: it reads differently.
pub fn flip(path: &Path, from: f64, to: f64, random: &mut SmallRng) -> Result<String> {
    let before = fs::read(path)?;
    let used = used(path, &before);
    let (low, high) = ((used as f64 * from) as usize, (used as f64 * to) as usize);
    ensure!(low < high, "{} holds too little to damage", path.display());
    let file = OpenOptions::new().write(true).open(path)?;
    let mut places = Vec::new();
    for _ in 0..FLIPS {
        let place = random.random_range(low..high);
        let byte = before[place] ^ (1 << random.random_range(0..8));
        file.write_all_at(&[byte], place as u64)?;
        places.push(place.to_string());
    }
    file.sync_all()?;
    ensure!(fs::read(path)? != before, "{} reads as before", path.display());
    Ok(format!("{} at {}", name_of(path), places.join(", ")))
}

/// The length of what means something in a file.
pub fn length(path: &Path) -> Result<u64> {
    Ok(used(path, &fs::read(path)?) as u64)
}

/// How much of a file means something. A write-ahead log lies in a file that may have been another log before: what
/// follows its last record is old, or room that was set aside, and to damage it is no damage.
fn used(path: &Path, bytes: &[u8]) -> usize {
    match name_of(path).strip_suffix(".log").and_then(|number| number.parse().ok()) {
        Some(number) => log_end(bytes, number),
        None => bytes.len(),
    }
}

/// Where the last record of a log of this number ends, by RocksDB's format: blocks of 32 KiB, a record is a CRC (4
/// bytes), its length (2), its type and, as logs are written over others, the number of its log (4).
fn log_end(bytes: &[u8], log: u32) -> usize {
    const BLOCK: usize = 32 << 10;
    const HEADER: usize = 11;
    const TYPES: [u8; 6] = [5, 6, 7, 8, 11, 131];
    let (mut at, mut end) = (0, 0);
    loop {
        let left = BLOCK - at % BLOCK;
        if left < HEADER {
            at += left;
            continue;
        }
        let Some(header) = bytes.get(at..at + HEADER) else { return end };
        let length = usize::from(u16::from_le_bytes([header[4], header[5]]));
        let number = u32::from_le_bytes([header[7], header[8], header[9], header[10]]);
        if !TYPES.contains(&header[6]) || number != log || HEADER + length > left {
            return end;
        }
        at += HEADER + length;
        if at > bytes.len() {
            return end;
        }
        end = at;
    }
}

/// Cuts the end off a file, so many bytes before the last that was written. Proof: it is shorter.
pub fn truncate(path: &Path, bytes: u64) -> Result<String> {
    let before = fs::read(path)?;
    let used = used(path, &before) as u64;
    ensure!(used > bytes, "{} has only {used} bytes", path.display());
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(used - bytes)?;
    file.sync_all()?;
    ensure!(fs::metadata(path)?.len() == used - bytes, "{} is as long as before", path.display());
    Ok(format!("{} from {used} to {} bytes", name_of(path), used - bytes))
}

/// Copies a directory as it is; the copy takes the place of what is there.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(to);
    let done = Command::new("cp").arg("-a").arg(from).arg(to).output().context("cannot run cp")?;
    ensure!(done.status.success(), "cp: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// The file's name.
pub fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(log: u32, length: usize) -> Vec<u8> {
        let mut bytes = vec![1, 2, 3, 4];
        bytes.extend((length as u16).to_le_bytes());
        bytes.push(5);
        bytes.extend(log.to_le_bytes());
        bytes.extend(vec![9; length]);
        bytes
    }

    #[test]
    fn a_log_ends_where_its_own_records_do() {
        // Filled but for five bytes, in which no header fits: the next record begins with the next block.
        let mut bytes = record(14, (32 << 10) - 11 - 5);
        bytes.extend([0; 5]);
        bytes.extend(record(14, 100));
        let end = bytes.len();
        assert_eq!(log_end(&bytes, 14), end);
        bytes.extend(record(9, 700));
        bytes.extend([0; 4096]);
        assert_eq!(log_end(&bytes, 14), end, "what another log has left does not count");
        assert_eq!(log_end(&bytes[..end - 1], 14), (32 << 10) - 5, "half a record is none");
        assert_eq!(log_end(&[], 14), 0);
    }
}
