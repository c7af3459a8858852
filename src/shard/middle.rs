//! Where a shard would be cut into halves.

use bytes::Bytes;

use super::handle::Shard;
use crate::keyspace::version;
use crate::runtime::spawn_blocking;
use crate::storage::{self, Family, Reader};
use crate::types::{Error, Result};

/// Keys remembered on the way through a shard: enough to find its middle to a thousandth.
const SAMPLES_MAX: usize = 2_048;

impl Shard {
    /// The encoded key before and after which about the same number of bytes lies, all versions counted; none if the
    /// shard is empty. Reads the whole shard.
    pub async fn middle(&self) -> Result<Option<Bytes>> {
        let state = self.state();
        let engine = self.engine.clone();
        let found = spawn_blocking(move || middle(&*engine, &state.start, &state.end)).await;
        Ok(found.map_err(|_| Error::internal("looking for the middle of a shard was cancelled"))??)
    }
}

fn middle(reader: &dyn Reader, start: &Bytes, end: &Bytes) -> storage::Result<Option<Bytes>> {
    let mut samples: Vec<(Bytes, u64)> = Vec::new();
    let (mut bytes, mut seen, mut every) = (0_u64, 0_u64, 1_u64);
    let mut cursor = reader.cursor(Family::Data, start, end);
    cursor.seek_first();
    while let Some((key, value)) = cursor.entry() {
        if seen.is_multiple_of(every) {
            if let Some((encoded, _)) = version::split(key) {
                samples.push((Bytes::copy_from_slice(encoded), bytes));
            }
            if samples.len() >= SAMPLES_MAX {
                let mut at = 0;
                samples.retain(|_| {
                    at += 1;
                    at % 2 == 1
                });
                every *= 2;
            }
        }
        seen += 1;
        bytes += (key.len() + value.len()) as u64;
        cursor.next();
    }
    cursor.status()?;
    let half = bytes / 2;
    let before_half = samples.partition_point(|(_, before)| *before < half);
    Ok(samples.get(before_half.min(samples.len().saturating_sub(1))).map(|(key, _)| key.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Batch, Engine, Memory};
    use crate::types::Timestamp;

    #[test]
    fn the_middle_is_where_half_of_the_bytes_lie_before() {
        let engine = Memory::new().expect("a directory");
        let (start, end) = (Bytes::from_static(b"k"), Bytes::from_static(b"l"));
        assert_eq!(middle(&*engine, &start, &end).expect("reads"), None);
        let mut batch = Batch::new();
        for number in 0..10_000_u32 {
            // Keys from 7,500 on are as heavy as all before them.
            let length = if number < 7_500 { 100 } else { 340 };
            let key = version::key(format!("k{number:06}").as_bytes(), Timestamp(1));
            batch.put(Family::Data, key, vec![7; length]);
        }
        engine.write(batch).expect("writes");
        let found = middle(&*engine, &start, &end).expect("reads").expect("it is not empty");
        let number: u32 = std::str::from_utf8(&found[1..]).expect("text").parse().expect("a number");
        assert!((7_480..7_540).contains(&number), "{number}");
    }
}
