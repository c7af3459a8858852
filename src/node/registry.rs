//! The replicas hosted here, by shard.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::shard::Shard;
use crate::types::ShardId;

/// The hosted replicas. Reads take no lock; changes copy the map, they are rare.
#[derive(Default)]
pub struct Registry {
    replicas: ArcSwap<HashMap<ShardId, Arc<Shard>>>,
    changed: watch::Sender<u64>,
}

impl Registry {
    /// The replica of a shard.
    pub fn get(&self, shard: ShardId) -> Option<Arc<Shard>> {
        self.replicas.load().get(&shard).cloned()
    }

    /// All replicas, in order of their shards.
    pub fn all(&self) -> Vec<Arc<Shard>> {
        let mut all: Vec<_> = self.replicas.load().values().cloned().collect();
        all.sort_by_key(|shard| shard.id());
        all
    }

    /// Adds a replica. There must be none of this shard.
    pub fn insert(&self, shard: Arc<Shard>) {
        self.replicas.rcu(|replicas| {
            assert!(!replicas.contains_key(&shard.id()), "a node hosts one replica of {}", shard.id());
            let mut replicas = HashMap::clone(replicas);
            replicas.insert(shard.id(), shard.clone());
            replicas
        });
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// Takes a replica out.
    pub fn remove(&self, shard: ShardId) {
        self.replicas.rcu(|replicas| {
            let mut replicas = HashMap::clone(replicas);
            replicas.remove(&shard);
            replicas
        });
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// The replica of a shard, once there is one.
    pub async fn wait_for(&self, shard: ShardId) -> Arc<Shard> {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(found) = self.get(shard) {
                return found;
            }
            // The sender lives as long as self.
            let _ = changed.changed().await;
        }
    }
}
