//! What a worker moves on together: ranges of a view that stand at the same place in a part of a source.
//!
//! Strands that have come to the same place are one from then on, so that a page is read and projected once for all of them.

use bytes::Bytes;

use crate::runtime::Instant;
use crate::types::Position;

/// Ranges of the view that stand at the same position in the same part of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Strand {
    pub source: (Bytes, Bytes),
    pub position: Position,
    pub views: Vec<(Bytes, Bytes)>,
    /// It has much to catch up with, and rests in between: nobody waits for it.
    pub far: bool,
    /// When its last page was read.
    pub read: Option<Instant>,
}

impl Strand {
    /// Gives up so many of its ranges of the view, from one of them on and round in a ring: those, and what is left of it.
    pub fn give_up(mut self, first: u64, some: usize) -> (Vec<Lost>, Option<Strand>) {
        let count = self.views.len();
        let first = usize::try_from(first % count.max(1) as u64).expect("less than the number of ranges");
        self.views.rotate_left(first);
        let rest = self.views.split_off(some.min(count));
        let lost = std::mem::replace(&mut self.views, rest);
        let lost = lost.into_iter().map(|view| Lost { view, source: self.source.clone() }).collect();
        (lost, (!self.views.is_empty()).then_some(self))
    }
}

/// A range of the view and one of the source, of which it must be asked where the one stands in the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    pub view: (Bytes, Bytes),
    pub source: (Bytes, Bytes),
}

/// Makes one of strands that stand at the same place: of several ranges of the view, or of neighbouring parts of the source.
pub(super) fn join(strands: &mut Vec<Strand>) {
    let mut joined: Vec<Strand> = Vec::with_capacity(strands.len());
    for strand in strands.drain(..) {
        let same = joined.iter_mut().find(|known| known.source == strand.source && known.position == strand.position);
        match same {
            Some(known) => {
                known.views.extend(strand.views);
                known.far &= strand.far;
                known.read = known.read.max(strand.read);
            }
            None => joined.push(strand),
        }
    }
    joined.iter_mut().for_each(|strand| strand.views.sort());
    joined.sort_by(|one, other| one.source.cmp(&other.source));
    for strand in joined {
        let beside = strands.iter_mut().find(|known| {
            let between_steps = strand.position.step.is_none() && strand.position != Position::BEGINNING;
            known.source.1 == strand.source.0
                && known.position == strand.position
                && between_steps
                && known.views == strand.views
        });
        match beside {
            Some(known) => known.source.1 = strand.source.1,
            None => strands.push(strand),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Timestamp;

    fn strand(source: (&'static str, &'static str), after: u64, views: &[(&'static str, &'static str)]) -> Strand {
        Strand {
            source: (source.0.into(), source.1.into()),
            position: Position::after(Timestamp(after)),
            views: views.iter().map(|&(start, end)| (start.into(), end.into())).collect(),
            far: false,
            read: None,
        }
    }

    #[test]
    fn ranges_are_given_up_round_in_a_ring_and_the_others_kept() {
        const NAMES: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
        let whole = strand(("", ""), 7, &NAMES.map(|name| (name, name)));
        let mut asked = std::collections::BTreeSet::new();
        for first in [0, 3, 6, u64::MAX - 6] {
            let (lost, rest) = whole.clone().give_up(first, 3);
            assert_eq!(lost.len(), 3);
            let mut all: Vec<_> = lost.iter().map(|lost| lost.view.clone()).collect();
            asked.extend(all.clone());
            all.extend(rest.expect("seven are left").views);
            all.sort();
            assert_eq!(all, whole.views, "none is lost, none twice");
        }
        assert_eq!(asked.len(), whole.views.len());
        let (lost, rest) = whole.give_up(5, usize::MAX);
        assert_eq!((lost.len(), rest), (10, None));
    }

    #[test]
    fn what_stands_at_the_same_place_is_one() {
        let mut strands = vec![
            strand(("m", "z"), 5, &[("2", "3"), ("1", "2")]),
            strand(("a", "m"), 5, &[("1", "2")]),
            strand(("a", "m"), 5, &[("2", "3")]),
            strand(("a", "m"), 4, &[("3", "4")]),
        ];
        join(&mut strands);
        assert_eq!(
            strands,
            [strand(("a", "m"), 5, &[("1", "2"), ("2", "3")]), strand(("a", "m"), 4, &[("3", "4")])].map(
                |mut strand| {
                    if strand.position.after == Timestamp(5) {
                        strand.source.1 = "z".into();
                    }
                    strand
                }
            )
        );
    }
}
