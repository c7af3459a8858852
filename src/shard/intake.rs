//! Upkeep of a view as commands of its shard: rows and watermark change together, or nothing does.
//!
//! An [`Intake`] carries what happened in a range of a source between two positions, as effects on rows of the view
//! (`projection`). It takes effect only if the view's keys stand at the first position in that range, and then they stand at
//! the second. That is exactly once, whatever is repeated, late or doubled on the way: the second of two attempts finds the
//! watermark moved on, and so does a former leader of the source that wakes up. A refusal is an ordinary answer
//! (`applied = false`), after which the sender reads the watermark again.
//!
//! A [`Mending`] sets rows right that were found to differ from what the sources say. It was computed from the view as it was at
//! one version, so of each row it changes nothing if that has changed since: then upkeep was there, and whoever verifies looks again.
//!
//! A view that has fallen behind what its sources remember begins anew. [`Upkeep::Clear`] removes rows, a bounded number at a time.
//! With the first of them the range stands nowhere any more but is *being removed*: no read takes what is left for what it was,
//! nothing is taken in, and whoever finds it so goes on. When there are no rows left, the watermark goes with them, in one step:
//! then all sources are taken in from the beginning. The first says where the view was found to stand, before changes that are
//! gone, and nothing is done where it stands elsewhere: one that was held up on its way, or is sent again, must not remove what
//! has been taken in since.
//!
//! Every row that upkeep touches gets a version, deletions of what was not there included: so a row whose version is old is one
//! that nothing has concerned since.

use std::cell::RefCell;

use bytes::Bytes;
use prost::Message;

use super::evaluate::Scratch;
use super::outcomes::Verdict;
use super::state::State;
use crate::keyspace::{Layout, Part, prefix_end};
use crate::projection::{self, Effect, Members};
use crate::runtime::planted::{self, Bug};
use crate::storage;
use crate::storage::mvcc::Version;
use crate::types::{Error, Outcome, Partitioning, Position, Reason, Result, ScanBounds, Step, TableId, Timestamp};
use crate::wire::proto::internal as log;

/// Rows removed by one command.
const CLEARED_ROWS: usize = 2_000;
/// About how large their deletions are.
const CLEARED_BYTES: usize = CLEARED_ROWS * 64;

/// What happened in a range of a source between two positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intake {
    /// The range of the view's encoded keys that it is for: all effects in it, and no others.
    pub view: (Bytes, Bytes),
    /// The range of the source's encoded keys.
    pub source: (Bytes, Bytes),
    /// Where the view must stand.
    pub from: Position,
    /// Where it stands afterwards.
    pub to: Position,
    /// What is to be done, in their stored form ([`Effect`]).
    pub effects: Vec<Bytes>,
}

/// Rows that were found to be wrong, and what they are to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mending {
    /// The version of the shard at which they were seen.
    pub seen: Timestamp,
    /// Encoded keys of the view and their values; none: there is to be no such row.
    pub rows: Vec<(Bytes, Option<Bytes>)>,
}

/// One command of a view's upkeep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upkeep {
    /// Take changes in.
    Intake(Intake),
    /// Set rows right.
    Mend(Mending),
    /// Remove some rows of a range, or its watermarks if it has no rows any more. `applied` means that nothing is left to do: the
    /// watermarks went, or the range does not stand there.
    Clear(Clearing),
}

/// A range of a view that needs changes which are gone, and begins anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clearing {
    /// The range of the view's encoded keys.
    pub view: (Bytes, Bytes),
    /// The range of the source's encoded keys whose changes are gone.
    pub source: (Bytes, Bytes),
    /// Where the view must stand in it, if it is not being removed already.
    pub stood: Position,
}

impl Upkeep {
    /// The form in the log and between nodes.
    pub fn to_log(&self) -> log::Upkeep {
        use log::upkeep::What;
        let what = match self {
            Upkeep::Intake(intake) => What::Intake(log::Intake {
                view_start: intake.view.0.clone(),
                view_end: intake.view.1.clone(),
                source_start: intake.source.0.clone(),
                source_end: intake.source.1.clone(),
                from: Some(position_to_log(&intake.from)),
                to: Some(position_to_log(&intake.to)),
                effects: intake.effects.clone(),
            }),
            Upkeep::Mend(mending) => What::Mend(log::Mending {
                seen: mending.seen.0,
                rows: (mending.rows.iter())
                    .map(|(key, value)| log::MendedRow { key: key.clone(), value: value.clone() })
                    .collect(),
            }),
            Upkeep::Clear(clearing) => What::Clear(log::Clearing {
                view_start: clearing.view.0.clone(),
                view_end: clearing.view.1.clone(),
                source_start: clearing.source.0.clone(),
                source_end: clearing.source.1.clone(),
                stood: Some(position_to_log(&clearing.stood)),
            }),
        };
        log::Upkeep { what: Some(what) }
    }

    /// Reads the form in the log.
    pub fn from_log(upkeep: log::Upkeep) -> Result<Upkeep> {
        use log::upkeep::What;
        let lacks = |what: &str| Error::internal(format!("an upkeep of a view has no {what}"));
        Ok(match upkeep.what.ok_or_else(|| lacks("content"))? {
            What::Intake(intake) => Upkeep::Intake(Intake {
                view: (intake.view_start, intake.view_end),
                source: (intake.source_start, intake.source_end),
                from: position_from_log(intake.from.ok_or_else(|| lacks("position to begin at"))?),
                to: position_from_log(intake.to.ok_or_else(|| lacks("position to come to"))?),
                effects: intake.effects,
            }),
            What::Mend(mending) => Upkeep::Mend(Mending {
                seen: Timestamp(mending.seen),
                rows: mending.rows.into_iter().map(|row| (row.key, row.value)).collect(),
            }),
            What::Clear(clearing) => Upkeep::Clear(Clearing {
                view: (clearing.view_start, clearing.view_end),
                source: (clearing.source_start, clearing.source_end),
                stood: position_from_log(clearing.stood.ok_or_else(|| lacks("position where it stood"))?),
            }),
        })
    }

    /// The form between nodes.
    pub fn encode(&self) -> Bytes {
        self.to_log().encode_to_vec().into()
    }

    /// Reads the form between nodes.
    pub fn decode(bytes: Bytes) -> Result<Upkeep> {
        let upkeep = log::Upkeep::decode(bytes);
        Upkeep::from_log(
            upkeep.map_err(|_| Error::invalid("an upkeep of a view cannot be read; do the versions match?"))?,
        )
    }

    /// About how large it is.
    pub fn bytes(&self) -> usize {
        match self {
            Upkeep::Intake(intake) => {
                let effects: usize = intake.effects.iter().map(Bytes::len).sum();
                128 + effects
            }
            Upkeep::Mend(mending) => {
                let row = |(key, value): &(Bytes, Option<Bytes>)| key.len() + value.as_ref().map_or(0, Bytes::len);
                mending.rows.iter().map(row).sum()
            }
            Upkeep::Clear(_) => CLEARED_BYTES,
        }
    }

    /// Whether every key that it can touch is the shard's own.
    pub fn lies_within(&self, state: &State) -> bool {
        match self {
            Upkeep::Intake(Intake { view: (start, end), .. }) | Upkeep::Clear(Clearing { view: (start, end), .. }) => {
                start < end && state.owns_all(start, end)
            }
            Upkeep::Mend(mending) => mending.rows.iter().all(|(key, _)| state.owns(key)),
        }
    }
}

fn position_to_log(position: &Position) -> log::Position {
    let step = position.step.as_ref().map(|step| log::PositionStep {
        upto: step.upto.0,
        before: step.before.clone(),
        whole: step.whole,
    });
    log::Position { after: position.after.0, step }
}

fn position_from_log(position: log::Position) -> Position {
    let step = position.step.map(|step| Step { upto: Timestamp(step.upto), before: step.before, whole: step.whole });
    Position { after: Timestamp(position.after), step }
}

/// Decides one command of upkeep at `timestamp`: the answer and the versions it makes. An `Err` is a failure of this machine's
/// storage.
pub fn decide(
    upkeep: &Upkeep,
    timestamp: Timestamp,
    state: &mut State,
    scratch: &mut Scratch<'_>,
) -> storage::Result<(Verdict, Vec<(Bytes, Version)>)> {
    let outcome = |applied| Outcome { applied, timestamp, ..Outcome::default() };
    let version = |value| Version { timestamp, value, expires_ms: None };
    match upkeep {
        Upkeep::Clear(Clearing { view: (start, end), source, stood }) => {
            let stands = |at| state.watermarks.stands((start, end), (&source.0, &source.1), at);
            if source.0 >= source.1 || !(stands(stood) || stands(&Position::removing(source.1.clone()))) {
                return Ok((Ok(outcome(true)), Vec::new()));
            }
            let mut versions = Vec::new();
            for key in scratch.first_keys(start, end, CLEARED_ROWS)? {
                versions.push((key, version(None)));
            }
            match versions.is_empty() {
                true => state.watermarks.forget(start, end),
                false => state.watermarks.remove(start, end),
            }
            Ok((Ok(outcome(versions.is_empty())), versions))
        }
        Upkeep::Mend(mending) => {
            if mending.seen < state.horizon {
                // What has changed since may have been trimmed.
                return Ok((Ok(outcome(false)), Vec::new()));
            }
            let mut versions = Vec::new();
            for (key, value) in &mending.rows {
                let newest = scratch.newest(key, Timestamp::MAX, Timestamp::ZERO)?;
                if newest.is_none_or(|newest| newest.timestamp <= mending.seen) {
                    versions.push((key.clone(), version(value.clone())));
                }
            }
            Ok((Ok(outcome(versions.len() == mending.rows.len())), versions))
        }
        Upkeep::Intake(intake) => {
            let (view, source) = (&intake.view, &intake.source);
            let mut moved = state.watermarks.clone();
            let ordered = source.0 < source.1;
            let mut advance = |from| moved.advance((&view.0, &view.1), (&source.0, &source.1), from, &intake.to);
            let mut taken = ordered && advance(&intake.from);
            if planted::is(Bug::IntakeTwice) {
                taken |= ordered && advance(&intake.to);
            }
            if planted::is(Bug::WatermarkFallsBack) && ordered && !taken {
                for section in state.watermarks.sections(&view.0, &view.1) {
                    for Part { start, end, position } in section.within(&source.0, &source.1) {
                        let from = position.unwrap_or_default();
                        moved.advance((&section.start, &section.end), (&start, &end), &from, &intake.to);
                    }
                }
                taken = true;
            }
            if !taken {
                return Ok((Ok(outcome(false)), Vec::new()));
            }
            let mut effects = Vec::with_capacity(intake.effects.len());
            for encoded in &intake.effects {
                match Effect::decode(encoded.clone()) {
                    Ok(effect) => effects.push(effect),
                    Err(error) => return Ok((Err(error), Vec::new())),
                }
            }
            let rows = Rows::new(state, scratch);
            let changed = projection::apply(&effects, &rows);
            if let Some(error) = rows.failed.into_inner() {
                return Err(error);
            }
            let layout = rows.layout;
            let changed = match changed {
                Ok(changed) => changed,
                Err(error) => return Ok((Err(error), Vec::new())),
            };
            let mut versions = Vec::with_capacity(changed.len());
            for (key, value) in changed {
                let key = layout.encode(&key);
                if key < view.0 || view.1 <= key {
                    let text = "an effect on a view lies outside of the range that it was sent to";
                    return Ok((Err(Error::new(Reason::InvalidRequest, text)), Vec::new()));
                }
                versions.push((key, version(value)));
            }
            state.watermarks = moved;
            Ok((Ok(outcome(true)), versions))
        }
    }
}

/// The rows of the view as the commands before have left them.
struct Rows<'a, 'b> {
    layout: Layout,
    horizon: Timestamp,
    scratch: RefCell<&'a mut Scratch<'b>>,
    failed: RefCell<Option<storage::Error>>,
}

impl<'a, 'b> Rows<'a, 'b> {
    fn new(state: &State, scratch: &'a mut Scratch<'b>) -> Rows<'a, 'b> {
        let layout = layout(state.table);
        Rows { layout, horizon: state.horizon, scratch: RefCell::new(scratch), failed: RefCell::default() }
    }

    /// A failure of storage ends the replica, not the command: it is kept for the caller.
    fn found<T>(&self, found: storage::Result<T>) -> Result<T> {
        found.map_err(|error| {
            let told = Error::internal("a row of the view cannot be read");
            *self.failed.borrow_mut() = Some(error);
            told
        })
    }

    fn edge(&self, prefix: &[u8], last: bool, beyond: Option<&[u8]>) -> Result<Option<(Bytes, Bytes)>> {
        let plan = self.layout.scan_range(&ScanBounds::Prefix(Bytes::copy_from_slice(prefix)))?;
        let [(start, end)] = plan.ranges.as_slice() else {
            return Err(Error::internal("the rows of a group lie in one place"));
        };
        let (mut start, mut end) = (start.clone(), end.clone());
        match beyond.map(|key| self.layout.encode(key)) {
            Some(key) if last => end = key,
            // Behind all of its versions; no other encoded key begins with it.
            Some(key) => start = prefix_end(&key).unwrap_or(end.clone()),
            None => {}
        }
        let found = self.found(self.scratch.borrow_mut().edge(&start, &end, last, self.horizon))?;
        found.map(|(key, value)| Ok((self.layout.decode(&key)?, value))).transpose()
    }
}

/// How a view's keys are encoded: views are hash tables.
pub fn layout(table: TableId) -> Layout {
    Layout { table, partitioning: Partitioning::Hash }
}

impl Members for Rows<'_, '_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let encoded = self.layout.encode(key);
        let found = self.found(self.scratch.borrow_mut().newest(&encoded, Timestamp::MAX, self.horizon))?;
        Ok(found.and_then(|version| version.value))
    }

    fn first(&self, prefix: &[u8], beyond: Option<&[u8]>) -> Result<Option<(Bytes, Bytes)>> {
        self.edge(prefix, false, beyond)
    }

    fn last(&self, prefix: &[u8], before: Option<&[u8]>) -> Result<Option<(Bytes, Bytes)>> {
        self.edge(prefix, true, before)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::keyspace::Watermarks;
    use crate::projection::{Definition, Projector, Recompute, coalesce, hides};
    use crate::raft::{Entry, Machine};
    use crate::runtime::Clock;
    use crate::shard::command::{Command, Proposal};
    use crate::shard::division::Home;
    use crate::shard::machine::ShardMachine;
    use crate::storage::{Engine, Memory};
    use crate::types::{Epoch, Incarnation, NodeId, Outcomes, ShardId};

    const NOW_MS: u64 = 1_700_000_000_000;
    const STATS: &str = r#"{"name":"stats","kind":"aggregate","sources":[{"table":"t","partition_by":"u"}],
        "aggregates":{"n":"count","sum":"sum(a)","least":"min(a)","most":"max(a)"}}"#;

    fn key(number: u8) -> Bytes {
        Bytes::copy_from_slice(&[number])
    }

    fn at(after: u64) -> Position {
        Position::after(Timestamp(after))
    }

    struct View {
        machine: ShardMachine,
        engine: Arc<dyn Engine>,
        index: u64,
        projector: Projector,
    }

    impl View {
        fn new() -> View {
            let engine: Arc<dyn Engine> = Memory::new().expect("a temporary directory");
            let (start, end) = layout(TableId(7)).table_range();
            let fresh = State::fresh(TableId(7), start, end, Epoch(1));
            let home = Home { node: NodeId(1), incarnation: Incarnation(1), news: tokio::sync::mpsc::channel(1).0 };
            let machine = ShardMachine::open(ShardId(9), engine.clone(), fresh, Clock::system(), home).expect("opens");
            let definition = Definition::parse(STATS).expect("a definition");
            View { machine, engine, index: 0, projector: Projector::new(&definition).expect("a definition") }
        }

        fn state(&self) -> Arc<State> {
            self.machine.shared().state.load_full()
        }

        fn apply(&mut self, upkeeps: Vec<Upkeep>) -> Outcomes {
            self.index += 1;
            let command = |upkeep| Command { epoch: Epoch(1), write: Default::default(), upkeep: Some(upkeep) };
            let commands = upkeeps.into_iter().map(command).collect();
            let proposal = Proposal { stamped: Timestamp::from_millis(NOW_MS), commands, ..Proposal::default() };
            let entry = Entry { index: self.index, payload: Some(proposal.encode()), members_at: 0 };
            self.machine
                .apply(vec![entry], Bytes::from(format!("mark {}", self.index)))
                .expect("storage works")
                .remove(0)
        }

        fn intake(&self, (from, to): (u64, u64), changes: &[(&str, Option<&str>, Option<&str>)]) -> Upkeep {
            let effects = changes.iter().flat_map(|(key, before, after)| {
                let (before, after) = (before.map(str::as_bytes), after.map(str::as_bytes));
                self.projector.effects(0, key.as_bytes(), before, after).effects
            });
            Upkeep::Intake(Intake {
                view: layout(TableId(7)).table_range(),
                source: (key(1), key(9)),
                from: if from == 0 { Position::BEGINNING } else { at(from) },
                to: at(to),
                effects: coalesce(effects.collect()).iter().map(Effect::encode).collect(),
            })
        }

        fn rows(&self) -> BTreeMap<String, String> {
            let layout = layout(TableId(7));
            let (start, end) = layout.table_range();
            let limits = crate::storage::mvcc::ScanLimits { rows_max: 1_000, bytes_max: usize::MAX, count_only: false };
            let page = crate::storage::mvcc::scan(&*self.engine, &start, &end, Timestamp::MAX, 0, false, limits);
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let rows = page.expect("storage works").rows.into_iter().map(|(key, version)| {
                (text(&layout.decode(&key).expect("a key")), text(&version.value.expect("a value")))
            });
            rows.collect()
        }

        fn shown(&self) -> Vec<(String, String)> {
            self.rows().into_iter().filter(|(key, _)| !hides(key.as_bytes())).collect()
        }
    }

    fn applied(outcomes: Outcomes) -> Vec<bool> {
        outcomes.into_iter().map(|outcome| outcome.expect("decided").applied).collect()
    }

    #[test]
    fn what_has_happened_is_taken_in_once_and_in_order() {
        let mut view = View::new();
        let first =
            view.intake((0, 5), &[("a", None, Some(r#"{"u":1,"a":2}"#)), ("b", None, Some(r#"{"u":1,"a":3}"#))]);
        let second = view.intake((5, 8), &[("b", Some(r#"{"u":1,"a":3}"#), Some(r#"{"u":2,"a":4.5}"#))]);
        // Too early, then twice in one entry and once more: only one of each counts.
        assert_eq!(applied(view.apply(vec![second.clone()])), [false]);
        assert_eq!(applied(view.apply(vec![first.clone(), first.clone(), second.clone()])), [true, false, true]);
        assert_eq!(applied(view.apply(vec![second.clone(), first])), [false, false]);
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let expected = [
            pair("{1}", r#"{"u":"1","n":1,"sum":2,"least":2,"most":2}"#),
            pair("{2}", r#"{"u":"2","n":1,"sum":4.5,"least":4.5,"most":4.5}"#),
        ];
        assert_eq!(view.shown(), expected);
        let stands =
            view.state().watermarks.sections(&layout(TableId(7)).table_range().0, &layout(TableId(7)).table_range().1);
        assert_eq!(stands.len(), 1);
        assert_eq!(stands[0].within(&key(1), &key(9)).remove(0).position, Some(at(8)));
        // What is stored says the same after a restart.
        assert_eq!(State::decode(view.state().encode()).expect("it reads back"), *view.state());
        // All members leave in one batch: the least is looked for above what is stored.
        let third =
            view.intake((8, 9), &[("a", Some(r#"{"u":1,"a":2}"#), None), ("c", None, Some(r#"{"u":1,"a":7}"#))]);
        assert_eq!(applied(view.apply(vec![third])), [true]);
        assert_eq!(view.shown()[0].1, r#"{"u":"1","n":1,"sum":7,"least":7,"most":7}"#);
        let mut computed = Recompute::new(&Definition::parse(STATS).expect("one")).expect("one");
        computed.add(0, b"b", br#"{"u":2,"a":4.5}"#).expect("memory");
        computed.add(0, b"c", br#"{"u":1,"a":7}"#).expect("memory");
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let computed = computed.rows().expect("memory");
        assert_eq!(view.rows(), computed.iter().map(|(key, value)| (text(key), text(value))).collect());
    }

    #[test]
    fn rows_are_mended_only_if_nothing_has_concerned_them_since() {
        let mut view = View::new();
        let first =
            view.intake((0, 5), &[("a", None, Some(r#"{"u":1,"a":2}"#)), ("b", None, Some(r#"{"u":2,"a":3}"#))]);
        assert_eq!(applied(view.apply(vec![first])), [true]);
        let seen = view.state().last_timestamp;
        let row = |tag: &str| layout(TableId(7)).encode(format!("{{{tag}}}").as_bytes());
        let mend = |seen, tag: &str, value: Option<&str>| {
            let value = value.map(|value| Bytes::copy_from_slice(value.as_bytes()));
            Upkeep::Mend(Mending { seen, rows: vec![(row(tag), value)] })
        };
        let second = view.intake((5, 6), &[("a", Some(r#"{"u":1,"a":2}"#), None)]);
        assert_eq!(applied(view.apply(vec![second])), [true]);
        // The row of 1 has gone since, and stays gone.
        let outcomes =
            view.apply(vec![mend(seen, "1", Some("old")), mend(seen, "2", Some("new")), mend(seen, "3", None)]);
        assert_eq!(applied(outcomes), [false, true, true]);
        assert_eq!(view.shown(), [("{2}".to_owned(), "new".to_owned())]);
    }

    #[test]
    fn a_view_begins_anew_only_where_it_was_found_to_stand() {
        let mut view = View::new();
        let clear =
            |stood| Upkeep::Clear(Clearing { view: layout(TableId(7)).table_range(), source: (key(1), key(9)), stood });
        let first = view.intake((0, 5), &[("a", None, Some(r#"{"u":1,"a":2}"#))]);
        let second = view.intake((5, 8), &[("b", None, Some(r#"{"u":2,"a":3}"#))]);
        assert_eq!(applied(view.apply(vec![first.clone()])), [true]);
        // Rows go first, and the range stands nowhere then: it does not say that it holds what it has taken in, and takes nothing in.
        assert_eq!(applied(view.apply(vec![clear(at(5))])), [false]);
        let (start, end) = layout(TableId(7)).table_range();
        let parts = view.state().watermarks.sections(&start, &end)[0].within(&key(1), &key(9));
        let position = parts[0].position.clone().expect("it is known");
        assert!(view.rows().is_empty() && parts.len() == 1 && position.is_removing() && !position.covers(Timestamp(1)));
        let again = view.intake((0, 5), &[("a", None, Some(r#"{"u":1,"a":2}"#))]);
        assert_eq!(applied(view.apply(vec![second.clone(), again])), [false, false]);
        // The watermark goes with the next one, whether it knows of the first or not; then there is nothing left that stands there.
        let kept = view.state().watermarks.clone();
        assert_eq!(Watermarks::decode(kept.encode()), Some(kept), "it is stored as well");
        assert_eq!(applied(view.apply(vec![clear(position)])), [true]);
        assert!(view.state().watermarks.is_empty());
        assert_eq!(applied(view.apply(vec![first.clone(), clear(at(5)), clear(at(5))])), [true, false, true]);
        assert!(view.state().watermarks.is_empty());
        // One that was held up until the view has taken everything in again, and has gone on, removes nothing, however often it is sent.
        assert_eq!(applied(view.apply(vec![first, second])), [true, true]);
        let (rows, watermarks) = (view.rows(), view.state().watermarks.clone());
        assert_eq!(applied(view.apply(vec![clear(at(5)), clear(at(5)), clear(Position::BEGINNING)])), [true; 3]);
        assert_eq!((view.rows(), &view.state().watermarks), (rows, &watermarks));
    }

    #[test]
    fn what_lies_outside_or_cannot_be_read_changes_nothing() {
        let mut view = View::new();
        let Upkeep::Intake(intake) = view.intake((0, 5), &[("a", None, Some(r#"{"u":1,"a":2}"#))]) else {
            panic!("one")
        };
        let (start, end) = intake.view.clone();
        let anchor = layout(TableId(7)).encode(b"{1}");
        let elsewhere = Intake { view: (start, anchor), ..intake.clone() };
        let broken = Intake { effects: vec!["x".into()], ..intake.clone() };
        let foreign = Intake { view: (end.clone(), [&end[..], b"x"].concat().into()), ..intake.clone() };
        let empty = Intake { source: (key(9), key(1)), ..intake.clone() };
        let outcomes = view.apply([elsewhere, broken, foreign, empty].map(Upkeep::Intake).into());
        let reasons: Vec<_> = outcomes
            .into_iter()
            .map(|outcome| outcome.map(|outcome| outcome.applied).map_err(|error| error.reason))
            .collect();
        assert_eq!(
            reasons,
            [Err(Reason::InvalidRequest), Err(Reason::InvalidRequest), Err(Reason::WrongEpoch), Ok(false)]
        );
        assert!(view.rows().is_empty() && view.state().watermarks.is_empty());
    }

    #[test]
    fn the_bytes_of_an_upkeep_are_these() {
        let step = Some(Step { upto: Timestamp(9), before: key(4), whole: true });
        let intake = Upkeep::Intake(Intake {
            view: (key(1), key(2)),
            source: (key(3), key(5)),
            from: Position { after: Timestamp::ZERO, step },
            to: at(9),
            effects: vec!["e".into()],
        });
        let mend = Upkeep::Mend(Mending {
            seen: Timestamp(7),
            rows: vec![("k".into(), Some("v".into())), ("l".into(), None)],
        });
        let hex = |bytes: Bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let clear = Upkeep::Clear(Clearing { view: (key(1), key(2)), source: (key(3), key(5)), stood: at(9) });
        let all = [&intake, &mend, &clear].map(|upkeep| hex(upkeep.encode())).join("\n");
        assert_eq!(all, include_str!("testdata/upkeep.hex").trim());
        for upkeep in [intake, mend, clear] {
            assert_eq!(Upkeep::decode(upkeep.encode()), Ok(upkeep));
        }
        assert!(Upkeep::decode(Bytes::from_static(b"\x0a\x01x")).is_err() && Upkeep::decode(Bytes::new()).is_err());
    }
}
