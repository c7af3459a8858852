//! openraft's own tests of storage, on both engines.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::super::apply::Applier;
use super::super::log::LogStore;
use super::super::types::TypeConfig;
use super::{Base, On, SHARD, TestMachine, writer};
use crate::raft::LogBounds;
use crate::storage::{Engine, LogWriter};

struct Builder(On);

/// What must outlive a store under test.
struct Guard {
    _base: Base,
    writer: LogWriter,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.writer.stop();
    }
}

impl StoreBuilder<TypeConfig, LogStore, Applier, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, LogStore, Applier), StorageError<TypeConfig>> {
        let base = Base::new(self.0);
        let engine: Arc<dyn Engine> = base.engine();
        let writer = writer(engine.clone());
        let log = LogStore::open(SHARD, engine.clone(), writer.clone(), LogBounds::default()).expect("an empty log");
        // The suite applies entries that are in no log, so the machine must not wait for them.
        let machine = Box::new(TestMachine::open(SHARD, engine.clone()));
        let (applier, _) = Applier::open(SHARD, machine, engine, None).expect("a new machine");
        Ok((Guard { _base: base, writer }, log, applier))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_passes_the_suite_of_openraft_in_memory() {
    Suite::test_all(Builder(On::Memory)).await.expect("the suite passes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_passes_the_suite_of_openraft_on_rocksdb() {
    Suite::test_all(Builder(On::Rocks)).await.expect("the suite passes");
}
