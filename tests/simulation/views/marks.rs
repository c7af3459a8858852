//! Watermarks of views go on and never back.
//!
//! What a shard of a view has come to is part of its state, which is the same on all replicas after the same entry. So it is enough to
//! compare, over all replicas together, with the newest entry that any was seen to have applied: for every key of the view that the
//! shard had then and has now, and every key of the sources, it must stand there or further. Only a view that is made
//! anew, which the catalog says first, may begin again.

use std::collections::BTreeMap;

use bytes::Bytes;
use trivet::keyspace::{Part, Watermark, Watermarks};
use trivet::shard::State;
use trivet::types::{Position, ShardId, Step};

/// What was seen of one shard: after which entry, its range, and its watermarks.
struct Mark {
    applied: u64,
    range: (Bytes, Bytes),
    marks: Watermarks,
}

/// What was seen of all shards of views.
#[derive(Default)]
pub struct Marks(BTreeMap<ShardId, Mark>);

/// How much has been taken in: by the last step, and how far within the one under way. Less of a key that steps go on before is more.
fn rank(position: &Position) -> (u64, std::cmp::Reverse<Option<&Bytes>>) {
    let before = position.step.as_ref().map(|Step { before, .. }| before);
    (position.after.0, std::cmp::Reverse(before))
}

fn has_fallen(was: &Position, is: &Position) -> bool {
    match (&was.step, &is.step) {
        (None, Some(_)) => is.after < was.after,
        (Some(_), None) => is.after <= was.after,
        _ => rank(is) < rank(was),
    }
}

impl Marks {
    /// Looks at the state of a replica after an entry. An error if the shard has fallen back.
    pub fn look(
        &mut self,
        shard: ShardId,
        applied: u64,
        state: &State,
        made_anew: impl Fn() -> bool,
    ) -> Result<(), String> {
        let known = self.0.get(&shard);
        if state.watermarks.is_empty() && known.is_none() || known.is_some_and(|known| known.applied >= applied) {
            return Ok(());
        }
        if let Some(known) = known {
            let start = known.range.0.clone().max(state.start.clone());
            let end = known.range.1.clone().min(state.end.clone());
            if start < end
                && let Some(fallen) = fallen(&known.marks.sections(&start, &end), &state.watermarks)
                && !made_anew()
            {
                return Err(format!(
                    "its watermark falls back between entries {} and {applied}: {fallen}",
                    known.applied
                ));
            }
        }
        let range = (state.start.clone(), state.end.clone());
        self.0.insert(shard, Mark { applied, range, marks: state.watermarks.clone() });
        Ok(())
    }
}

/// Where the newer one stands before the older one.
fn fallen(older: &[Watermark], newer: &Watermarks) -> Option<String> {
    for section in older {
        for Watermark { parts: now, start, end } in newer.sections(&section.start, &section.end) {
            for part in &section.parts {
                let now = Watermark { parts: now.clone(), start: start.clone(), end: end.clone() };
                for Part { start, end, position } in now.within(&part.start, &part.end) {
                    // Cut in the same way as the newer one was, if it was.
                    let was = section.within(&start, &end).into_iter().next().and_then(|part| part.position);
                    let (was, is) = (was.unwrap_or_default(), position.unwrap_or_default());
                    if has_fallen(&was, &is) {
                        return Some(format!("it stood at {was:?} and stands at {is:?} in {start:?} to {end:?}"));
                    }
                }
            }
        }
    }
    None
}
