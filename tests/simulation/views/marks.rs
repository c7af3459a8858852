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

#[cfg(test)]
mod tests {
    use trivet::types::Timestamp;

    use super::*;

    #[test]
    fn a_watermark_that_stands_before_where_it_stood_has_fallen() {
        let key = |key: &'static str| Bytes::from(key);
        let step = |upto, before, whole| Some(Step { upto: Timestamp(upto), before: key(before), whole });
        let at = |after, step| Position { after: Timestamp(after), step };
        let mut known = Watermarks::default();
        let source = (&key("a"), &key("z"));
        let on = |known: &mut Watermarks, view: (&Bytes, &Bytes), from: &Position, to: &Position| {
            let older = known.sections(view.0, view.1);
            assert!(known.advance(view, source, from, to));
            (older, known.clone())
        };
        let view = (&key("1"), &key("9"));
        let way = [
            Position::BEGINNING,
            at(0, step(5, "m", true)),
            at(0, step(5, "c", true)),
            at(5, None),
            at(5, step(9, "m", false)),
            at(5, step(9, "c", false)),
            at(9, None),
        ];
        let mut all = vec![known.clone()];
        for pair in way.windows(2) {
            let (older, newer) = on(&mut known, view, &pair[0], &pair[1]);
            assert_eq!(fallen(&older, &newer), None);
            all.push(newer);
        }
        for (place, newer) in all.iter().enumerate() {
            for older in &all[place + 1..] {
                assert!(fallen(&older.sections(view.0, view.1), newer).is_some());
            }
        }
        // One part of the view, cut off, does not hide that the other one has fallen.
        let mut other = all[3].clone();
        other.advance((&key("1"), &key("4")), source, &way[3], &way[6]);
        assert!(fallen(&known.sections(view.0, view.1), &other).is_some());
        assert_eq!(fallen(&all[3].sections(view.0, view.1), &other), None);
        // Nor does a cut of the source.
        let mut cut = all[1].clone();
        cut.advance(view, (&key("m"), &key("z")), &at(5, None), &at(7, None));
        assert_eq!(fallen(&all[1].sections(view.0, view.1), &cut), None);
        assert!(fallen(&cut.sections(view.0, view.1), &all[1]).is_some());
    }
}
