//! All metrics of a node by name.

use crate::{client, node, ops, raft, service, shard, storage};

/// Declares the metrics of every module, in floor order.
pub fn describe() {
    storage::metrics::describe();
    client::metrics::describe();
    raft::metrics::describe();
    shard::metrics::describe();
    node::metrics::describe();
    ops::metrics::describe();
    service::metrics::describe();
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Write;

    use metrics::{
        Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit, with_local_recorder,
    };
    use parking_lot::Mutex;

    /// Notes what is declared.
    #[derive(Default)]
    struct Declared {
        names: Mutex<BTreeMap<String, (&'static str, String)>>,
        twice: Mutex<Vec<String>>,
    }

    impl Declared {
        fn note(&self, kind: &'static str, name: KeyName, description: SharedString) {
            let name = name.as_str().to_owned();
            if self.names.lock().insert(name.clone(), (kind, description.into_owned())).is_some() {
                self.twice.lock().push(name);
            }
        }
    }

    impl Recorder for Declared {
        fn describe_counter(&self, name: KeyName, _: Option<Unit>, description: SharedString) {
            self.note("counter", name, description);
        }

        fn describe_gauge(&self, name: KeyName, _: Option<Unit>, description: SharedString) {
            self.note("gauge", name, description);
        }

        fn describe_histogram(&self, name: KeyName, _: Option<Unit>, description: SharedString) {
            self.note("histogram", name, description);
        }

        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
            Counter::noop()
        }

        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::noop()
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    /// Dashboards and alerts are built on these names: a change here is a change for operators. To accept one, run
    /// the test with UPDATE_GOLDENFILES=1.
    #[test]
    fn the_names_of_metrics_are_golden() {
        let declared = Declared::default();
        with_local_recorder(&declared, super::describe);
        assert_eq!(*declared.twice.lock(), [] as [String; 0], "declared twice");
        let mut text = String::new();
        for (name, (kind, description)) in &*declared.names.lock() {
            let suffix = name.ends_with("_total") || *kind != "counter";
            assert!(suffix, "the counter {name} should end in _total");
            assert!(name.starts_with("trivet_") || name.starts_with("process_"), "{name}");
            assert!(!description.is_empty(), "{name} has no description");
            writeln!(text, "{kind:<9} {name}").expect("a string takes text");
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/server/testdata/metrics");
        if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
            std::fs::create_dir_all(std::path::Path::new(path).parent().expect("a directory")).expect("it can be made");
            std::fs::write(path, &text).expect("it can be written");
        }
        let golden = std::fs::read_to_string(path).expect("the golden file is there");
        assert_eq!(text, golden, "the names of metrics have changed");
    }
}
