//! Where somebody stands who follows the changes of a range of keys.

use bytes::Bytes;

use super::Timestamp;

/// Where somebody stands who follows one range.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Position {
    /// Every version up to this one was told.
    pub after: Timestamp,
    /// The step in which the versions are searched, if one is under way.
    pub step: Option<Step>,
}

/// A search through the versions of a range, between two pages.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    /// It covers the versions up to this one.
    pub upto: Timestamp,
    /// It goes from the last key to the first, and on before this one (an encoded key, or the data key of a version): from there
    /// to the end of the range, the versions up to `upto` were told.
    pub before: Bytes,
    /// What is told is not every version since [`Position::after`], which is the beginning of time, but the state as it was at
    /// `upto`: how somebody begins who wants to know all there is.
    pub whole: bool,
}

impl Position {
    /// Nothing was told yet.
    pub const BEGINNING: Position = Position { after: Timestamp::ZERO, step: None };

    /// Everything up to `after` was told.
    pub fn after(after: Timestamp) -> Position {
        Position { after, step: None }
    }

    /// What was told of a range that ends at `end` is being removed again. No step of another kind covers the versions up to none.
    pub fn removing(end: Bytes) -> Position {
        Position { after: Timestamp::ZERO, step: Some(Step { upto: Timestamp::ZERO, before: end, whole: true }) }
    }

    /// Whether it is one of [`Position::removing`].
    pub fn is_removing(&self) -> bool {
        self.step.as_ref().is_some_and(|step| step.whole && step.upto == Timestamp::ZERO)
    }

    /// Whether everything up to `moment` was told.
    pub fn covers(&self, moment: Timestamp) -> bool {
        self.after >= moment
    }
}
