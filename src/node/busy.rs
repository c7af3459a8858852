//! Which lengthy steps are under way here, so that none is begun twice.
//!
//! The reconciler looks at every shard again and again; what may take longer than a look runs beside it, and the next look
//! finds it busy. Nothing of this is stored: after a crash the step is simply begun again.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::types::ShardId;

/// A kind of step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The members of a group are brought nearer to what is wanted.
    Align,
    /// A replica that is wanted no more finds out whether it may go.
    Retire,
    /// A split is furthered.
    Split,
    /// A merge is furthered.
    Merge,
    /// The log from before a split is removed.
    Forget,
}

/// The steps under way.
#[derive(Clone, Default)]
pub struct Busy {
    steps: Arc<Mutex<HashSet<(Step, ShardId)>>>,
}

/// A step is under way until this is dropped.
pub struct Begun {
    busy: Busy,
    step: (Step, ShardId),
}

impl Busy {
    /// Begins a step for a shard; none if it is under way already.
    pub fn begin(&self, step: Step, shard: ShardId) -> Option<Begun> {
        let step = (step, shard);
        self.steps.lock().insert(step).then(|| Begun { busy: self.clone(), step })
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.busy.steps.lock().remove(&self.step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_begun_once_at_a_time() {
        let busy = Busy::default();
        let begun = busy.begin(Step::Align, ShardId(1)).expect("nothing is under way");
        assert!(busy.begin(Step::Align, ShardId(1)).is_none());
        let others = [busy.begin(Step::Align, ShardId(2)), busy.begin(Step::Split, ShardId(1))];
        assert!(others.iter().all(Option::is_some));
        drop(begun);
        assert!(busy.begin(Step::Align, ShardId(1)).is_some());
    }
}
