//! Where somebody stands who follows the changes of a table: an opaque mark, good for these keys only.
//!
//! It is a list of ranges of encoded keys, together all that is followed, each with the position that was reached there. It says
//! nothing of shards, so it survives splits, merges and moves: whoever owns a range next goes on from its position, for
//! timestamps only grow also from a shard to what it becomes. Ranges beside each other that stand at the same place are one.
//!
//! The checksum is against accidents. A forged cursor can at most tell its forger less, or the same twice.

use bytes::{Buf, BufMut, Bytes};

use super::Layout;
use super::cursor::fingerprint;
use crate::types::{Error, Position, Reason, Result, ScanBounds, Step, Timestamp};

const FORMAT: u8 = 1;
/// Bytes of the longest cursor: several thousand ranges, each with two or three long keys.
pub const CHANGES_CURSOR_BYTES_MAX: usize = 4 << 20;

/// A range of encoded keys and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// First encoded key.
    pub start: Bytes,
    /// First encoded key that is no longer part of it.
    pub end: Bytes,
    /// The position reached; none: it begins with what is new.
    pub position: Option<Position>,
}

impl Part {
    /// The same range at another position.
    pub fn at(self, position: Position) -> Part {
        Part { position: Some(position), ..self }
    }

    /// Parts it at a key inside it. Of a step under way, what lies behind the place where it goes on is done with.
    pub fn cut(self, at: &Bytes) -> (Part, Part) {
        assert!(self.start < *at && *at < self.end, "a part is cut inside");
        let (mut left, mut right) = (self.position.clone(), self.position);
        for (position, start, end) in [(&mut left, &self.start, at), (&mut right, at, &self.end)] {
            let Some(Position { after, step }) = position else { continue };
            let Some(Step { upto, before, .. }) = step else { continue };
            if *before > *end {
                // It has not come here yet.
                *before = end.clone();
            } else if *before <= *start {
                *after = *upto;
                *step = None;
            }
        }
        let right = Part { start: at.clone(), end: self.end, position: right };
        (Part { start: self.start, end: at.clone(), position: left }, right)
    }
}

/// The parts of what is followed, ascending and apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangesCursor {
    /// The parts.
    pub parts: Vec<Part>,
}

impl ChangesCursor {
    /// The beginning: what these bounds cover, from `after` on, or from now on.
    pub fn begin(layout: &Layout, bounds: &ScanBounds, after: Option<Timestamp>) -> Result<ChangesCursor> {
        let plan = layout.scan_range(bounds)?;
        let parts =
            plan.ranges.into_iter().map(|(start, end)| Part { start, end, position: after.map(Position::after) });
        Ok(ChangesCursor { parts: parts.collect() })
    }

    /// Makes one of parts beside each other that stand at the same place between two steps.
    pub fn join(&mut self) {
        let mut joined: Vec<Part> = Vec::with_capacity(self.parts.len());
        for part in self.parts.drain(..) {
            let still = |part: &Part| part.position.as_ref().is_none_or(|position| position.step.is_none());
            match joined.last_mut() {
                Some(last) if last.end == part.start && last.position == part.position && still(&part) => {
                    last.end = part.end;
                }
                _ => joined.push(part),
            }
        }
        self.parts = joined;
    }

    /// The bytes handed to the user, good for changes of the same keys only.
    pub fn encode(&self, layout: &Layout, bounds: &ScanBounds) -> Bytes {
        let mut out = Vec::with_capacity(16 + 48 * self.parts.len());
        out.put_u8(FORMAT);
        out.put_u32(fingerprint(layout, bounds, false));
        put_number(&mut out, self.parts.len() as u64);
        let mut before: &[u8] = &[];
        for part in &self.parts {
            // Parts lie side by side nearly always.
            let beside = before == &part.start[..];
            let kind = match &part.position {
                None => 0,
                Some(Position { step: None, .. }) => 1,
                Some(Position { step: Some(_), .. }) => 2,
            };
            out.put_u8(kind | if beside { 4 } else { 0 });
            if !beside {
                put_bytes(&mut out, &part.start);
            }
            put_bytes(&mut out, &part.end);
            if let Some(Position { after, step }) = &part.position {
                out.put_u64(after.0);
                if let Some(Step { upto, before, .. }) = step {
                    out.put_u64(upto.0);
                    put_bytes(&mut out, before);
                }
            }
            before = &part.end;
        }
        out.put_u32(crc32fast::hash(&out));
        Bytes::from(out)
    }

    /// The position in these bytes. `INVALID_CURSOR` if they were altered, belong to other keys or are no position among
    /// these; `INVALID_REQUEST` if the bounds themselves are wrong.
    pub fn decode(bytes: &Bytes, layout: &Layout, bounds: &ScanBounds) -> Result<ChangesCursor> {
        let refuse = |what: &str| {
            let text = format!("the cursor {what}: follow the changes from the beginning again");
            Error::new(Reason::InvalidCursor, text)
        };
        let Some((body, checksum)) = bytes.split_last_chunk::<4>() else { return Err(refuse("is too short")) };
        if u32::from_be_bytes(*checksum) != crc32fast::hash(body) {
            return Err(refuse("was altered"));
        }
        let mut rest = bytes.slice(..body.len());
        if rest.try_get_u8().ok() != Some(FORMAT) {
            return Err(refuse("is of another version"));
        }
        let whose = rest.try_get_u32().map_err(|_| refuse("is too short"))?;
        if whose != fingerprint(layout, bounds, false) {
            return Err(refuse("belongs to another table or to other bounds"));
        }
        let parts = read_parts(&mut rest).filter(|_| rest.is_empty()).ok_or_else(|| refuse("is no list of parts"))?;
        let plan = layout.scan_range(bounds)?;
        let inside = |part: &Part| {
            let covers = |(start, end): &(Bytes, Bytes)| *start <= part.start && part.end <= *end;
            plan.ranges.iter().any(covers)
        };
        let mut before = Bytes::new();
        for part in &parts {
            let step = part.position.as_ref().and_then(|position| Some((position.after, position.step.as_ref()?)));
            let step_fits = |(after, step): (Timestamp, &Step)| {
                after <= step.upto && part.start < step.before && step.before <= part.end
            };
            if part.start >= part.end || part.start < before || !inside(part) || !step.is_none_or(step_fits) {
                return Err(refuse("names keys outside of what is followed"));
            }
            before.clone_from(&part.end);
        }
        Ok(ChangesCursor { parts })
    }
}

fn read_parts(rest: &mut Bytes) -> Option<Vec<Part>> {
    let count = take_number(rest)?;
    // Each takes some bytes, so a count that is only claimed reserves nothing.
    let mut parts = Vec::with_capacity(usize::try_from(count).ok()?.min(rest.len() / 2));
    let mut before = Bytes::new();
    for _ in 0..count {
        let kind = rest.try_get_u8().ok()?;
        let start = if kind & 4 != 0 { before } else { take_bytes(rest)? };
        let end = take_bytes(rest)?;
        let position = match kind & 3 {
            0 => None,
            kind @ (1 | 2) => {
                let after = Timestamp(rest.try_get_u64().ok()?);
                let step = match kind {
                    1 => None,
                    _ => {
                        let (upto, before) = (Timestamp(rest.try_get_u64().ok()?), take_bytes(rest)?);
                        Some(Step { upto, before, whole: false })
                    }
                };
                Some(Position { after, step })
            }
            _ => return None,
        };
        if kind > 7 {
            return None;
        }
        before = end.clone();
        parts.push(Part { start, end, position });
    }
    Some(parts)
}

/// Seven bits to a byte, the lowest first.
fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

fn take_number(rest: &mut Bytes) -> Option<u64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let byte = rest.try_get_u8().ok()?;
        number |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.put_slice(bytes);
}

fn take_bytes(rest: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(take_number(rest)?).ok()?;
    (length <= rest.len()).then(|| rest.split_to(length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Partitioning, TableId};

    fn layout() -> Layout {
        Layout { table: TableId(3), partitioning: Partitioning::Range { group_delimiter: None } }
    }

    fn key(text: &str) -> Bytes {
        layout().encode(text.as_bytes())
    }

    fn part(start: &str, end: &str, position: Option<Position>) -> Part {
        Part { start: key(start), end: key(end), position }
    }

    fn step(after: u64, upto: u64, at: &str) -> Option<Position> {
        Some(Position {
            after: Timestamp(after),
            step: Some(Step { upto: Timestamp(upto), before: key(at), whole: false }),
        })
    }

    fn at(after: u64) -> Option<Position> {
        Some(Position::after(Timestamp(after)))
    }

    #[test]
    fn a_cursor_is_golden_and_reads_back() {
        let cursor =
            ChangesCursor { parts: vec![part("a", "c", at(9)), part("c", "e", step(3, 9, "d")), part("k", "m", None)] };
        let bytes = cursor.encode(&layout(), &ScanBounds::All);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let (body, checksum) = hex.split_at(hex.len() - 8);
        assert_eq!(
            body,
            "01b3841ffa03010700000003610001070000000363000100000000000000090607000000036500010000000000000003\
             000000000000000907000000036400010007000000036b000107000000036d0001"
        );
        assert_eq!(checksum, "3dfabbf9");
        assert_eq!(ChangesCursor::decode(&bytes, &layout(), &ScanBounds::All), Ok(cursor));
    }

    #[test]
    fn a_cursor_of_other_keys_or_of_none_is_refused() {
        let cursor = ChangesCursor { parts: vec![part("aa", "ab", at(9))] };
        let prefix = ScanBounds::Prefix("a".into());
        let bytes = cursor.encode(&layout(), &prefix);
        assert_eq!(ChangesCursor::decode(&bytes, &layout(), &prefix), Ok(cursor.clone()));
        let other = Layout { table: TableId(4), ..layout() };
        let refused = |bytes: &Bytes, layout: &Layout, bounds: &ScanBounds| {
            ChangesCursor::decode(bytes, layout, bounds).expect_err("refused").reason
        };
        assert_eq!(refused(&bytes, &other, &prefix), Reason::InvalidCursor);
        assert_eq!(refused(&bytes, &layout(), &ScanBounds::All), Reason::InvalidCursor);
        for parts in [
            vec![part("b", "c", None)],
            vec![part("ab", "aa", None)],
            vec![part("ab", "ac", None), part("aa", "ab", None)],
            vec![part("aa", "ac", None), part("ab", "ad", None)],
            vec![part("aa", "ab", step(3, 9, "ac"))],
            vec![part("aa", "ab", step(3, 9, "aa"))],
            vec![part("aa", "ab", step(10, 9, "ab"))],
        ] {
            let forged = ChangesCursor { parts }.encode(&layout(), &prefix);
            assert_eq!(refused(&forged, &layout(), &prefix), Reason::InvalidCursor);
        }
    }

    #[test]
    fn parts_that_stand_at_the_same_place_are_one() {
        let mut cursor = ChangesCursor {
            parts: vec![
                part("a", "b", at(9)),
                part("b", "c", at(9)),
                part("d", "e", at(9)),
                part("e", "f", at(8)),
                part("f", "g", step(8, 9, "g")),
                part("g", "h", step(8, 9, "g")),
                part("h", "i", None),
                part("i", "j", None),
            ],
        };
        cursor.join();
        let ends: Vec<Bytes> = cursor.parts.iter().map(|part| part.end.clone()).collect();
        assert_eq!(ends, ["c", "e", "f", "g", "h", "j"].map(key));
    }

    #[test]
    fn a_part_is_cut_with_the_step_in_it() {
        let whole = |position| part("b", "h", position);
        for (position, left, right) in [
            (None, None, None),
            (at(9), at(9), at(9)),
            (step(3, 9, "c"), step(3, 9, "c"), at(9)),
            (step(3, 9, "e"), step(3, 9, "e"), at(9)),
            (step(3, 9, "f"), step(3, 9, "e"), step(3, 9, "f")),
            (step(3, 9, "h"), step(3, 9, "e"), step(3, 9, "h")),
        ] {
            assert_eq!(whole(position).cut(&key("e")), (part("b", "e", left), part("e", "h", right)));
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_in_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let mut sealed = vec![FORMAT];
            sealed.put_u32(fingerprint(&layout(), &ScanBounds::All, false));
            sealed.extend_from_slice(&bytes);
            sealed.put_u32(crc32fast::hash(&sealed));
            for bytes in [Bytes::from(sealed), Bytes::from(bytes)] {
                match ChangesCursor::decode(&bytes, &layout(), &ScanBounds::All) {
                    Ok(cursor) => {
                        let again = cursor.encode(&layout(), &ScanBounds::All);
                        prop_assert_eq!(ChangesCursor::decode(&again, &layout(), &ScanBounds::All), Ok(cursor));
                    }
                    Err(error) => prop_assert_eq!(error.reason, Reason::InvalidCursor),
                }
            }
        }
    }
}
