//! How far a part of a view has come: for each range of its own keys, the position it stands at in each range of its sources.
//!
//! A shard of a view keeps this beside its rows and changes both in one step, which is what makes upkeep exact: rows and
//! positions are never of two moments. It says nothing of shards, on either side. When a shard of the view is split, each part
//! keeps the sections over its own keys; when two become one, their sections lie side by side, each with its own positions,
//! and become one again when they stand at the same. When a shard of a source is split or merged, its positions are cut where
//! the new range begins, as those of any follower.
//!
//! Invariants
//! - Sections are ascending and apart, and so are the parts of a section; none is empty.
//! - What no part covers stands at the beginning: nothing of it has been taken in.
//! - A position only moves on by [`Watermarks::advance`], from where it stands.

use bytes::{Buf, BufMut, Bytes};

use super::Part;
use crate::types::{Position, Step, Timestamp};

const FORMAT: u8 = 1;

/// How far one range of a view has come in its sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// First encoded key of the view.
    pub start: Bytes,
    /// First encoded key that is no longer part of the section.
    pub end: Bytes,
    /// Ranges of encoded keys of the sources, each with its position.
    pub parts: Vec<Part>,
}

impl Watermark {
    /// Where this section stands in `[start, end)` of a source: that range, cut where positions change.
    pub fn within(&self, start: &Bytes, end: &Bytes) -> Vec<Part> {
        let beginning = |start: &Bytes, end: &Bytes| Part {
            start: start.clone(),
            end: end.clone(),
            position: Some(Position::BEGINNING),
        };
        let mut found = Vec::new();
        let mut reached = start.clone();
        for part in self.parts.iter().filter(|part| part.start < *end && *start < part.end) {
            let part = trimmed(part.clone(), start, end);
            if reached < part.start {
                found.push(beginning(&reached, &part.start));
            }
            reached = part.end.clone();
            found.push(part);
        }
        if reached < *end {
            found.push(beginning(&reached, end));
        }
        found
    }

    /// Replaces what it says of `[start, end)`.
    fn set(&mut self, start: &Bytes, end: &Bytes, position: &Position) {
        let mut parts = Vec::with_capacity(self.parts.len() + 2);
        let mut put = Some(Part { start: start.clone(), end: end.clone(), position: Some(position.clone()) });
        for part in self.parts.drain(..) {
            if part.end <= *start {
                parts.push(part);
                continue;
            }
            if part.start < *start {
                parts.push(trimmed(part.clone(), &part.start, start));
            }
            if part.end > *end {
                parts.extend(put.take());
                parts.push(if part.start < *end { trimmed(part.clone(), end, &part.end) } else { part });
            }
        }
        parts.extend(put);
        // Neighbours between two steps at the same place are one.
        for part in parts {
            let still = part.position.as_ref().is_some_and(|position| position.step.is_none());
            match self.parts.last_mut() {
                Some(last) if still && last.end == part.start && last.position == part.position => last.end = part.end,
                _ => self.parts.push(part),
            }
        }
    }
}

/// A part, made narrower.
fn trimmed(mut part: Part, start: &Bytes, end: &Bytes) -> Part {
    if part.start < *start {
        part = part.cut(start).1;
    }
    if *end < part.end {
        part = part.cut(end).0;
    }
    part
}

/// How far a shard of a view has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watermarks {
    sections: Vec<Watermark>,
}

impl Watermarks {
    /// Whether nothing has been taken in.
    pub fn is_empty(&self) -> bool {
        self.sections.is_empty()
    }

    /// What it says of `[start, end)` of the view: that range, cut where sections begin.
    pub fn sections(&self, start: &Bytes, end: &Bytes) -> Vec<Watermark> {
        let mut found = Vec::new();
        let mut reached = start.clone();
        let nothing =
            |start: &Bytes, end: &Bytes| Watermark { start: start.clone(), end: end.clone(), parts: Vec::new() };
        for section in self.sections.iter().filter(|section| section.start < *end && *start < section.end) {
            let from = section.start.clone().max(start.clone());
            let to = section.end.clone().min(end.clone());
            if reached < from {
                found.push(nothing(&reached, &from));
            }
            reached = to.clone();
            found.push(Watermark { start: from, end: to, parts: section.parts.clone() });
        }
        if reached < *end {
            found.push(nothing(&reached, end));
        }
        found
    }

    /// Whether all of `[view.0, view.1)` of the view stands at a position in all of `[source.0, source.1)` of a source.
    pub fn stands(&self, view: (&Bytes, &Bytes), source: (&Bytes, &Bytes), at: &Position) -> bool {
        let within = |section: &Watermark| section.within(source.0, source.1);
        self.sections(view.0, view.1).iter().flat_map(within).all(|part| part.position.as_ref() == Some(at))
    }

    /// Moves `[view.0, view.1)` of the view on over `[source.0, source.1)` of a source. Whether all of it stood at `from`; if
    /// not, nothing happens.
    pub fn advance(
        &mut self,
        view: (&Bytes, &Bytes),
        source: (&Bytes, &Bytes),
        from: &Position,
        to: &Position,
    ) -> bool {
        if !self.stands(view, source, from) {
            return false;
        }
        let mut moved = self.sections(view.0, view.1);
        moved.iter_mut().for_each(|section| section.set(source.0, source.1, to));
        let mut left = std::mem::take(self);
        let right = left.split_off(view.1);
        left.split_off(view.0);
        left.sections.extend(moved);
        *self = left;
        self.append(right);
        true
    }

    /// From now on, what `[start, end)` of the view has taken in of sources is being removed ([`Position::removing`]).
    pub fn remove(&mut self, start: &Bytes, end: &Bytes) {
        let right = self.split_off(end);
        let mut removed = self.split_off(start);
        for part in removed.sections.iter_mut().flat_map(|section| &mut section.parts) {
            part.position = Some(Position::removing(part.end.clone()));
        }
        self.append(removed);
        self.append(right);
    }

    /// Forgets what it says of `[start, end)` of the view: nothing of it has been taken in.
    pub fn forget(&mut self, start: &Bytes, end: &Bytes) {
        let right = self.split_off(end);
        self.split_off(start);
        self.append(right);
    }

    /// Gives away what it says of the view from `at` on.
    pub fn split_off(&mut self, at: &Bytes) -> Watermarks {
        let first = self.sections.partition_point(|section| section.start < *at);
        let mut right = self.sections.split_off(first);
        if let Some(last) = self.sections.last_mut()
            && last.end > *at
        {
            right.insert(0, Watermark { start: at.clone(), ..last.clone() });
            last.end = at.clone();
        }
        Watermarks { sections: right }
    }

    /// Takes over what is said of the keys behind its own. Sections that stand at the same become one.
    pub fn append(&mut self, right: Watermarks) {
        for section in std::mem::take(&mut self.sections).into_iter().chain(right.sections) {
            match self.sections.last_mut() {
                Some(last) if last.end == section.start && last.parts == section.parts => last.end = section.end,
                _ => self.sections.push(section),
            }
        }
    }

    /// The stored form.
    pub fn encode(&self) -> Bytes {
        if self.sections.is_empty() {
            return Bytes::new();
        }
        let mut out = vec![FORMAT];
        put_count(&mut out, self.sections.len());
        for section in &self.sections {
            put_bytes(&mut out, &section.start);
            put_bytes(&mut out, &section.end);
            put_count(&mut out, section.parts.len());
            for part in &section.parts {
                put_bytes(&mut out, &part.start);
                put_bytes(&mut out, &part.end);
                put_position(&mut out, part.position.as_ref().unwrap_or(&Position::BEGINNING));
            }
        }
        out.into()
    }

    /// Reads the stored form; none if it is none.
    pub fn decode(bytes: Bytes) -> Option<Watermarks> {
        let mut rest = bytes;
        if rest.is_empty() {
            return Some(Watermarks::default());
        }
        if rest.try_get_u8().ok()? != FORMAT {
            return None;
        }
        let count = take_count(&mut rest)?;
        let mut sections: Vec<Watermark> = Vec::with_capacity(count);
        for _ in 0..count {
            let (start, end) = take_range(&mut rest, sections.last().map(|last| &last.end))?;
            let count = take_count(&mut rest)?;
            let mut parts: Vec<Part> = Vec::with_capacity(count);
            for _ in 0..count {
                let (start, end) = take_range(&mut rest, parts.last().map(|last| &last.end))?;
                let position = take_position(&mut rest)?;
                let inside = |step: &Step| position.after <= step.upto && start < step.before && step.before <= end;
                if !position.step.as_ref().is_none_or(inside) {
                    return None;
                }
                parts.push(Part { start, end, position: Some(position) });
            }
            sections.push(Watermark { start, end, parts });
        }
        rest.is_empty().then_some(Watermarks { sections })
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.put_u32(u32::try_from(count).expect("fewer than four billion ranges"));
}

/// Never more than there are bytes, so what is only claimed reserves nothing.
fn take_count(rest: &mut Bytes) -> Option<usize> {
    usize::try_from(rest.try_get_u32().ok()?).ok().filter(|&count| count <= rest.len())
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.put_slice(bytes);
}

fn take_bytes(rest: &mut Bytes) -> Option<Bytes> {
    let length = take_count(rest)?;
    Some(rest.split_to(length))
}

fn take_range(rest: &mut Bytes, before: Option<&Bytes>) -> Option<(Bytes, Bytes)> {
    let (start, end) = (take_bytes(rest)?, take_bytes(rest)?);
    (start < end && before.is_none_or(|before| *before <= start)).then_some((start, end))
}

fn put_position(out: &mut Vec<u8>, position: &Position) {
    out.put_u64(position.after.0);
    match &position.step {
        None => out.put_u8(0),
        Some(Step { upto, before, whole }) => {
            out.put_u8(1 + u8::from(*whole));
            out.put_u64(upto.0);
            put_bytes(out, before);
        }
    }
}

fn take_position(rest: &mut Bytes) -> Option<Position> {
    let after = Timestamp(rest.try_get_u64().ok()?);
    let step = match rest.try_get_u8().ok()? {
        0 => None,
        kind @ (1 | 2) => {
            let (upto, before) = (Timestamp(rest.try_get_u64().ok()?), take_bytes(rest)?);
            Some(Step { upto, before, whole: kind == 2 })
        }
        _ => return None,
    };
    Some(Position { after, step })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> Bytes {
        Bytes::copy_from_slice(&[number])
    }

    fn at(after: u64) -> Position {
        Position::after(Timestamp(after))
    }

    fn advance(marks: &mut Watermarks, view: (u8, u8), source: (u8, u8), from: &Position, to: &Position) -> bool {
        marks.advance((&key(view.0), &key(view.1)), (&key(source.0), &key(source.1)), from, to)
    }

    /// Per key of the view and of the source, the position.
    fn grid(marks: &Watermarks) -> Vec<Position> {
        let mut all = Vec::new();
        for view in 0..8 {
            for section in marks.sections(&key(view), &key(view + 1)) {
                for source in 0..8 {
                    let parts = section.within(&key(source), &key(source + 1));
                    assert_eq!(parts.len(), 1);
                    all.push(parts[0].position.clone().expect("known"));
                }
            }
        }
        all
    }

    proptest! {
        /// Against a table of every key: what was moved stands where it was moved to, all else where it stood.
        #[test]
        fn moving_on_is_exact(moves in prop::collection::vec(((0..7u8, 1..8u8), (0..7u8, 1..8u8), 0..4u64, 1..5u64), 1..40)) {
            let mut marks = Watermarks::default();
            let mut model = vec![Position::BEGINNING; 64];
            for ((vs, ve), (ss, se), from, to) in moves {
                let (ve, se) = (ve.max(vs + 1), se.max(ss + 1));
                let (from, to) = (at(from), at(to));
                let cells = || (vs..ve).flat_map(|view| (ss..se).map(move |source| usize::from(view) * 8 + usize::from(source)));
                let expected = cells().all(|cell| model[cell] == from);
                prop_assert_eq!(advance(&mut marks, (vs, ve), (ss, se), &from, &to), expected);
                if expected {
                    cells().for_each(|cell| model[cell] = to.clone());
                }
                prop_assert_eq!(grid(&marks), model.clone());
                prop_assert_eq!(Watermarks::decode(marks.encode()), Some(marks.clone()));
                let mut without = marks.clone();
                without.forget(&key(2), &key(5));
                let kept = |cell: usize| if (16..40).contains(&cell) { Position::BEGINNING } else { model[cell].clone() };
                prop_assert_eq!(grid(&without), (0..64).map(kept).collect::<Vec<_>>());
                let mut removed = marks.clone();
                removed.remove(&key(2), &key(5));
                let left = |cell: usize| match (16..40).contains(&cell) && model[cell] != Position::BEGINNING {
                    true => Position::removing(key(cell as u8 % 8 + 1)),
                    false => model[cell].clone(),
                };
                prop_assert_eq!(grid(&removed), (0..64).map(left).collect::<Vec<_>>());
                prop_assert_eq!(Watermarks::decode(removed.encode()), Some(removed));
                // A split and the merge of its parts change nothing.
                for cut in 1..8 {
                    let mut left = marks.clone();
                    let right = left.split_off(&key(cut));
                    left.append(right);
                    prop_assert_eq!(grid(&left), model.clone());
                }
            }
        }

        #[test]
        fn any_bytes_are_watermarks_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = Watermarks::decode(bytes.into());
        }
    }

    #[test]
    fn the_parts_of_a_step_go_their_own_ways() {
        let mut marks = Watermarks::default();
        let step = |before: u8| Position {
            after: Timestamp::ZERO,
            step: Some(Step { upto: Timestamp(9), before: key(before), whole: true }),
        };
        assert!(advance(&mut marks, (0, 8), (0, 8), &Position::BEGINNING, &step(5)));
        let section = marks.sections(&key(0), &key(8)).remove(0);
        let positions = |start, end| section.within(&key(start), &key(end)).remove(0).position.expect("known");
        assert_eq!(positions(5, 8), at(9), "done with");
        assert_eq!(positions(2, 7), step(5), "under way");
        assert_eq!(positions(0, 3), step(3), "has not come here yet");
        // The child of a source's split goes on from its own.
        assert!(advance(&mut marks, (0, 8), (0, 3), &step(3), &step(1)));
        assert!(!advance(&mut marks, (0, 8), (0, 3), &step(3), &step(1)), "once");
        assert!(advance(&mut marks, (0, 8), (3, 8), &step(5), &at(9)));
        assert!(advance(&mut marks, (0, 8), (0, 3), &step(1), &at(9)));
        assert_eq!(marks.sections(&key(0), &key(8)).remove(0).parts.len(), 1);
    }

    #[test]
    fn the_stored_form_is_golden() {
        let mut marks = Watermarks::default();
        let step = Some(Step { upto: Timestamp(9), before: key(4), whole: true });
        assert!(advance(&mut marks, (1, 2), (3, 5), &Position::BEGINNING, &Position { after: Timestamp::ZERO, step }));
        let hex: String = marks.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "0100000001000000010100000001020000000100000001030000000105000000000000000002000000000000000900000001\
             04"
        );
        assert!(Watermarks::default().encode().is_empty());
    }
}
