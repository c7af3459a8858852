//! Where the metrics of all modules come together, and their Prometheus text.
//!
//! Modules declare and count through the `metrics` facade and know nothing of Prometheus. One recorder per process
//! collects them; it has no HTTP listener of its own, `http.rs` renders it. Histograms keep every sample until they
//! are folded into buckets, so somebody must fold them regularly whether or not anybody scrapes: [`Recorder::upkeep`].

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Unit, describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::process;
use crate::runtime;

/// A gauge that is always 1 and whose labels say what is running.
pub const BUILD_INFO: &str = "trivet_build_info";

/// How often samples are folded. At a hundred thousand calls a second this keeps less than a megabyte waiting.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Upper bounds of the buckets of durations, in seconds: a cached read takes tens of microseconds, a write waits for
/// a disk or two, and what takes longer than the longest deadline is all the same.
const SECONDS_BUCKETS: [f64; 16] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 5.0, 30.0];
/// Upper bounds of the buckets of everything else that is counted in a histogram (entries, calls, bytes): powers of 4.
const COUNT_BUCKETS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

static PROCESS: OnceLock<Recorder> = OnceLock::new();

/// The recorder of this process.
#[derive(Clone, Debug)]
pub struct Recorder {
    handle: PrometheusHandle,
}

/// Names and descriptions of the metrics of `ops`.
pub fn describe() {
    describe_gauge!(BUILD_INFO, Unit::Count, "Always 1; the labels say which build runs.");
    process::describe();
}

impl Recorder {
    /// Makes the facade count into this process's recorder from now on; the first call makes it.
    pub fn install() -> Recorder {
        PROCESS
            .get_or_init(|| {
                let recorder = builder().build_recorder();
                let handle = recorder.handle();
                if metrics::set_global_recorder(recorder).is_err() {
                    tracing::warn!("another metrics recorder is in place: /metrics will be empty");
                }
                Recorder { handle }
            })
            .clone()
    }

    /// The Prometheus text of all metrics, those of the process brought up to date.
    pub fn render(&self) -> String {
        process::observe();
        gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        self.handle.render()
    }

    /// Folds samples for ever; run it on a task of its own.
    pub async fn upkeep(self) {
        loop {
            runtime::sleep(UPKEEP_INTERVAL).await;
            self.handle.run_upkeep();
        }
    }
}

fn builder() -> PrometheusBuilder {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS_BUCKETS)
        .and_then(|builder| builder.set_buckets(&COUNT_BUCKETS))
        .expect("the lists of buckets are not empty")
}

#[cfg(test)]
mod tests {
    use metrics::{counter, describe_histogram, histogram};

    use super::*;

    #[test]
    fn text_has_names_descriptions_and_buckets() {
        let recorder = builder().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            describe();
            describe_histogram!("x_seconds", Unit::Seconds, "How long x took.");
            histogram!("x_seconds").record(0.003);
            histogram!("x_entries").record(5.0);
            counter!("x_total", "kind" => "a").increment(2);
            let text = Recorder { handle: handle.clone() }.render();
            for line in [
                "# HELP x_seconds How long x took.",
                "# TYPE x_seconds histogram",
                "x_seconds_bucket{le=\"0.002\"} 0",
                "x_seconds_bucket{le=\"0.004\"} 1",
                "x_entries_bucket{le=\"4\"} 0",
                "x_entries_bucket{le=\"16\"} 1",
                "x_total{kind=\"a\"} 2",
                &format!("trivet_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")),
            ] {
                assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
            }
            assert!(
                text.contains("# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes "),
                "{text}"
            );
        });
    }
}
