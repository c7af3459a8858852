//! Sessions: reads that see the session's own writes and never go back in time.
//!
//! A session keeps, per shard, the newest version any of its answers proved to be there, and asks reads to see at
//! least that. Leaders are asked first; when a leader is away, a follower that has come as far may answer instead.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Table;
use super::core::Core;
use crate::types::{Epoch, Header, ShardId, Timestamp, Token};

/// Most shards remembered one by one. Beyond it one token stands for all: still right, but a replica of a quiet shard
/// may then seem to lag when it does not.
const SHARDS_MAX: usize = 4_096;
/// The epoch of a shard that came with its table; one that was split off has a later one.
const FIRST_EPOCH: Epoch = Epoch(1);

/// A session over any tables of one client. Clones are the same session.
#[derive(Clone)]
pub struct Session {
    core: Arc<Core>,
    seen: Arc<Seen>,
}

impl Session {
    pub(super) fn new(core: Arc<Core>) -> Session {
        Session { core, seen: Arc::default() }
    }

    /// A table whose calls belong to this session.
    pub fn table(&self, name: impl Into<Arc<str>>) -> Table {
        Table::new(self.core.clone(), name.into(), Some(self.seen.clone()))
    }

    /// What to hand to another process (in an `at_least` read) so that it sees all that this session has seen.
    pub fn token(&self) -> Token {
        self.seen.token(None)
    }

    /// Takes over what another session has seen.
    pub fn catch_up(&self, token: Token) {
        self.seen.state.lock().floor(token.timestamp);
    }
}

/// What a session has seen.
#[derive(Default)]
pub(super) struct Seen {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    shards: HashMap<ShardId, (Epoch, Timestamp)>,
    /// At least this was seen of every shard.
    floor: Timestamp,
    newest: Timestamp,
}

impl State {
    fn floor(&mut self, timestamp: Timestamp) {
        self.floor = self.floor.max(timestamp);
        self.newest = self.newest.max(timestamp);
    }
}

impl Seen {
    /// Notes an answer.
    pub(super) fn note(&self, header: &Header) {
        let mut state = self.state.lock();
        state.newest = state.newest.max(header.as_of);
        let room = state.shards.len() < SHARDS_MAX;
        match state.shards.get_mut(&header.shard) {
            Some((epoch, seen)) => {
                *epoch = header.epoch.max(*epoch);
                *seen = header.as_of.max(*seen);
            }
            None if room => {
                state.shards.insert(header.shard, (header.epoch, header.as_of));
            }
            None => {
                let newest = state.newest;
                state.floor(newest);
            }
        }
    }

    /// What a read of this shard must see at least; of any shard, if none is named.
    pub(super) fn token(&self, shard: Option<(ShardId, Epoch)>) -> Token {
        let state = self.state.lock();
        let timestamp = match shard {
            None => state.newest,
            Some((shard, epoch)) => match state.shards.get(&shard) {
                Some(&(seen, timestamp)) if seen == epoch => timestamp.max(state.floor),
                // A shard that was created as it is now has taken over nothing from another.
                None if epoch == FIRST_EPOCH => state.floor,
                // Its range has changed: keys in it may have been seen in another shard.
                _ => state.newest,
            },
        };
        Token { timestamp }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ClusterId, NodeId, Role};

    fn header(shard: u64, epoch: u64, as_of: u64) -> Header {
        Header {
            cluster: ClusterId(1),
            node: NodeId(1),
            shard: ShardId(shard),
            epoch: Epoch(epoch),
            role: Role::Follower,
            as_of: Timestamp(as_of),
            age: None,
            degraded: false,
        }
    }

    fn token(seen: &Seen, shard: u64, epoch: u64) -> u64 {
        seen.token(Some((ShardId(shard), Epoch(epoch)))).timestamp.0
    }

    #[test]
    fn each_shard_has_its_own_token_and_never_goes_back() {
        let seen = Seen::default();
        seen.note(&header(1, 1, 100));
        seen.note(&header(2, 1, 50));
        seen.note(&header(1, 1, 80));
        assert_eq!(token(&seen, 1, 1), 100);
        assert_eq!(token(&seen, 2, 1), 50);
        assert_eq!(token(&seen, 3, 1), 0, "nothing was seen of it");
        assert_eq!(seen.token(None).timestamp, Timestamp(100));
    }

    #[test]
    fn a_shard_whose_range_has_changed_must_show_all_that_was_seen() {
        let seen = Seen::default();
        seen.note(&header(1, 1, 100));
        seen.note(&header(2, 1, 50));
        assert_eq!(token(&seen, 7, 2), 100, "it may have split off from shard 1");
        assert_eq!(token(&seen, 2, 2), 100, "it may have taken in shard 1");
        seen.note(&header(2, 2, 120));
        assert_eq!(token(&seen, 2, 2), 120);
        assert_eq!(token(&seen, 1, 1), 100);
    }

    #[test]
    fn what_another_session_has_seen_counts_for_every_shard() {
        let seen = Seen::default();
        seen.note(&header(1, 1, 100));
        seen.state.lock().floor(Timestamp(90));
        assert_eq!(token(&seen, 1, 1), 100);
        assert_eq!(token(&seen, 2, 1), 90);
    }

    #[test]
    fn a_session_over_very_many_shards_stays_right() {
        let seen = Seen::default();
        for shard in 0..SHARDS_MAX as u64 + 10 {
            seen.note(&header(shard, 1, shard));
        }
        assert_eq!(seen.state.lock().shards.len(), SHARDS_MAX);
        let last = SHARDS_MAX as u64 + 9;
        assert!(token(&seen, last, 1) >= last);
    }
}
