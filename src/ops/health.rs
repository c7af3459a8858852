//! Named checks: what must hold for this process to be left alone, and for this node to be sent requests.
//!
//! A check is a function that looks at state already at hand and says in one sentence what is wrong; it must neither
//! block nor wait, since probes come often and a probe that hangs is worse than one that fails.

use std::sync::Arc;

use parking_lot::RwLock;

type Test = dyn Fn() -> Result<(), String> + Send + Sync;
type Named = Vec<(&'static str, Arc<Test>)>;

/// A growing list of named checks; clones share it.
#[derive(Clone, Default)]
pub struct Checks {
    named: Arc<RwLock<Named>>,
}

/// What one check said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The check.
    pub name: &'static str,
    /// What is wrong, if anything.
    pub problem: Option<String>,
}

impl Checks {
    /// No checks: passes.
    pub fn new() -> Checks {
        Checks::default()
    }

    /// Adds a check, or replaces the one of this name.
    pub fn set(&self, name: &'static str, test: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        let mut named = self.named.write();
        match named.iter_mut().find(|(existing, _)| *existing == name) {
            Some(slot) => slot.1 = Arc::new(test),
            None => named.push((name, Arc::new(test))),
        }
    }

    /// Makes the check of this name fail from now on, for this reason.
    pub fn fail(&self, name: &'static str, problem: impl Into<String>) {
        let problem = problem.into();
        self.set(name, move || Err(problem.clone()));
    }

    /// What every check says, in the order they were added.
    pub fn run(&self) -> Vec<Finding> {
        let named = self.named.read().clone();
        named.into_iter().map(|(name, test)| Finding { name, problem: test().err() }).collect()
    }

    /// Whether every check passes.
    pub fn pass(&self) -> bool {
        self.run().iter().all(|finding| finding.problem.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_must_pass_and_names_are_unique() {
        let checks = Checks::new();
        assert!(checks.pass());
        checks.set("disk", || Ok(()));
        checks.set("catalog", || Err("not read yet".into()));
        assert!(!checks.pass());
        checks.set("catalog", || Ok(()));
        assert!(checks.pass());
        checks.fail("serving", "stopping");
        let problem = Some("stopping".to_owned());
        let all = [("disk", None), ("catalog", None), ("serving", problem)];
        assert_eq!(checks.run(), all.map(|(name, problem)| Finding { name, problem }));
    }
}
