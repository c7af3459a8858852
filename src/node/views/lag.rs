//! For how long views have been behind, as a metric.
//!
//! A worker notes where the last of its strands stands; that is compared, a few times a second, with what its shard of the source
//! had written at the looks before ([`Behind`]). It lags since the first look whose newest version it has not come to, and of all
//! workers of a view here the longest lag counts. How old a copy of a view is, is another question, which reads have answered
//! exactly (`freshness`).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::super::host::Node;
use super::super::metrics;
use crate::runtime::Instant;
use crate::shard::Shard;
use crate::types::{Position, ShardId, TableId};

/// Where a worker stands: the version before which it has nothing left to do.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Notes where the strands of a worker stand; none while it has yet to ask.
    pub fn note<'a>(&self, positions: impl Iterator<Item = &'a Position>) {
        // One that is between two versions counts as being at the former.
        self.0.store(positions.map(|position| position.after.0).min().unwrap_or(0), Ordering::Relaxed);
    }
}

/// Looks remembered of one worker. Of who is far behind they are as many, and further apart.
const LOOKS_MAX: usize = 64;

/// What had been written, look by look, that a worker has not come to yet.
#[derive(Default)]
struct Behind {
    looks: VecDeque<(Instant, u64)>,
    /// From one that is remembered to the next.
    apart: Duration,
}

impl Behind {
    /// Another look; how long the worker has been behind.
    fn look(&mut self, now: Instant, reached: u64, newest: u64) -> Duration {
        while self.looks.front().is_some_and(|(_, newest)| *newest <= reached) {
            self.looks.pop_front();
        }
        match self.looks.back() {
            None if reached < newest => {
                self.apart = Duration::ZERO;
                self.looks.push_back((now, newest));
            }
            Some((at, before)) if *before < newest && now - *at >= self.apart => self.looks.push_back((now, newest)),
            _ => {}
        }
        let lag = self.looks.front().map_or(Duration::ZERO, |(since, _)| now - *since);
        if self.looks.len() > LOOKS_MAX {
            let mut number = 0;
            self.looks.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            self.apart = lag / (LOOKS_MAX / 2) as u32;
        }
        lag
    }
}

/// How workers lag, and which views have been told of.
#[derive(Default)]
pub(super) struct Lags {
    behind: HashMap<(TableId, ShardId), Behind>,
    told: HashMap<TableId, String>,
}

impl Lags {
    /// Sets the metric of every view that workers are at work for here.
    pub fn measure<'a>(&mut self, node: &Node, workers: impl Iterator<Item = (TableId, &'a Arc<Shard>, &'a Progress)>) {
        let now = node.clock().now();
        let directory = node.directory();
        let (mut lags, mut behind) = (HashMap::new(), HashMap::new());
        for (view, shard, progress) in workers {
            let lag = lags.entry(view).or_insert(0.0_f64);
            // In this order: what it has come to was there before.
            let (reached, newest) = (progress.0.load(Ordering::Relaxed), shard.state().last_timestamp.0);
            let key = (view, shard.id());
            let mut looks = self.behind.remove(&key).unwrap_or_default();
            *lag = lag.max(looks.look(now, reached, newest).as_secs_f64());
            behind.insert(key, looks);
        }
        self.behind = behind;
        // What is looked after elsewhere now is not behind here.
        self.told.retain(|view, name| {
            let stays = lags.contains_key(view);
            if !stays {
                ::metrics::gauge!(metrics::VIEW_LAG, "view" => name.clone()).set(0.0);
            }
            stays
        });
        for (view, lag) in lags {
            let Some(entry) = directory.table(view) else { continue };
            let name = self.told.entry(view).or_insert_with(|| entry.descriptor.name.clone());
            ::metrics::gauge!(metrics::VIEW_LAG, "view" => name.clone()).set(lag);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Clock;

    #[test]
    fn a_worker_lags_since_the_first_look_that_it_has_not_come_to() {
        let began = Clock::system().now();
        let ms = Duration::from_millis;
        let mut behind = Behind::default();
        assert_eq!(behind.look(began, 10, 10), ms(0));
        assert_eq!(behind.look(began + ms(200), 10, 20), ms(0));
        assert_eq!(behind.look(began + ms(400), 19, 30), ms(200));
        // Never at the end, and never far from it.
        assert_eq!(behind.look(began + ms(600), 29, 40), ms(200));
        assert_eq!(behind.look(began + ms(800), 39, 50), ms(200));
        // Where nothing more is written there is nothing to come to.
        assert_eq!(behind.look(began + ms(1_000), 50, 50), ms(0));
        assert_eq!(behind.look(began + ms(9_000), 50, 50), ms(0));
        assert_eq!(behind.look(began + ms(9_200), 50, 60), ms(0));
        assert_eq!(behind.look(began + ms(9_400), 50, 60), ms(200));
    }

    #[test]
    fn who_is_far_behind_is_remembered_by_few_looks() {
        let began = Clock::system().now();
        let mut behind = Behind::default();
        let at = |look: u64| began + Duration::from_millis(200 * look);
        for look in 1..=10_000 {
            let lag = behind.look(at(look), 0, look);
            assert_eq!(lag, at(look) - at(1), "the first one is kept");
            assert!(behind.looks.len() <= LOOKS_MAX);
        }
        // Half way through, as exactly as the looks allow that are left.
        let lag = behind.look(at(10_000), 5_000, 10_000);
        let exact = at(10_000) - at(5_001);
        assert!(lag <= exact && lag >= exact * 9 / 10, "{lag:?}, exactly {exact:?}");
    }
}
