//! What a benchmark reports: one JSON document for programs, a few lines for a person. Rendering is pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::processes::Usage;
use super::record::Figures;
use super::view::{Spread, ViewFigures};

/// The result of one run.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    /// What was measured: `trivet`, `trivet-unary`, `etcd`, …
    pub target: String,
    /// The settings of the run, as they were understood.
    pub settings: Settings,
    /// Seconds of the measured window.
    pub window_s: f64,
    /// All operations together.
    pub all: Figures,
    /// Each kind of operation.
    pub by_operation: BTreeMap<&'static str, Figures>,
    /// Failed operations by reason.
    pub errors: BTreeMap<String, u64>,
    /// Longest time in the window without an acknowledged operation.
    pub longest_stall_ms: f64,
    /// What the server processes used, when their ids were given.
    pub servers: Option<Servers>,
    /// What was seen of a view meanwhile, if that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub view: Option<ViewFigures>,
    /// CPU seconds of this process in the window.
    pub client_cpu_s: f64,
}

/// The settings of a run.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Settings {
    /// The operations and their shares.
    pub mix: String,
    /// Workers.
    pub concurrency: usize,
    /// Operations per second offered; none: a closed loop.
    pub rate: Option<f64>,
    /// Keys.
    pub keys: u64,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// How keys are chosen.
    pub distribution: String,
    /// How fresh reads are.
    pub level: String,
    /// Which replica answers them.
    pub read_from: String,
    /// Seconds before the window.
    pub warm_up_s: f64,
    /// The seed.
    pub seed: u64,
}

/// What the server processes used in the window.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Servers {
    /// Their CPU seconds together.
    pub cpu_s: f64,
    /// The same as cores busy.
    pub cores: f64,
    /// Operations per CPU second: the figure to compare machines and stores by.
    pub ops_per_cpu_s: f64,
    /// Each process at the end of the window.
    pub processes: Vec<Usage>,
}

impl Report {
    /// Failed operations.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// The report for a person.
    pub fn render(&self) -> String {
        let settings = &self.settings;
        let loop_kind = match settings.rate {
            Some(rate) => format!("open loop at {rate}/s, {} workers", settings.concurrency),
            None => format!("closed loop, {} workers", settings.concurrency),
        };
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{}: {}, {loop_kind}, {} keys {}, values of {} bytes, reads {} ({}), {:.1} s",
            self.target,
            settings.mix,
            settings.keys,
            settings.distribution,
            settings.value_bytes,
            settings.level,
            settings.read_from,
            self.window_s
        );
        let mut table = crate::cli::render::Table::new(&[
            "operation",
            "ops/s",
            "mean ms",
            "p50 ms",
            "p90 ms",
            "p99 ms",
            "p99.9 ms",
            "max ms",
            "conflicts",
        ]);
        let mut row = |name: &str, figures: &Figures| {
            let ms = |us: f64| format!("{:.2}", us / 1_000.0);
            table.row(vec![
                name.to_owned(),
                format!("{:.0}", figures.ops_per_s),
                ms(figures.mean_us),
                ms(figures.p50_us as f64),
                ms(figures.p90_us as f64),
                ms(figures.p99_us as f64),
                ms(figures.p99_9_us as f64),
                ms(figures.max_us as f64),
                figures.conflicts.to_string(),
            ]);
        };
        for (name, figures) in &self.by_operation {
            row(name, figures);
        }
        if self.by_operation.len() != 1 {
            row("all", &self.all);
        }
        text.push_str(&table.render());
        let errors: Vec<String> = self.errors.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        let errors = if errors.is_empty() { "none".to_owned() } else { errors.join(", ") };
        let _ = writeln!(
            text,
            "failed: {errors} · longest stall {:.1} ms · client CPU {:.2} s",
            self.longest_stall_ms, self.client_cpu_s
        );
        if let Some(servers) = &self.servers {
            let rss: Vec<String> =
                servers.processes.iter().map(|process| format!("{:.0}", process.rss_bytes as f64 / 1e6)).collect();
            let _ = writeln!(
                text,
                "servers: {:.0} ops per CPU-second · {:.2} cores · resident {} MB",
                servers.ops_per_cpu_s,
                servers.cores,
                rss.join(" + ")
            );
        }
        if let Some(view) = &self.view {
            let spread = |spread: &Spread| {
                let ms = |us: u64| us as f64 / 1_000.0;
                let (p50, p99, max) = (ms(spread.p50_us), ms(spread.p99_us), ms(spread.max_us));
                format!("p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms ({} times)", spread.samples)
            };
            let _ = writeln!(text, "view {}: age {}", view.view, spread(&view.age));
            let _ = writeln!(text, "  an order of one's own is in the list after {}", spread(&view.own));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::golden;

    #[test]
    fn reports_read_well() {
        let figures = |ops| Figures {
            ops,
            ops_per_s: ops as f64 / 8.0,
            conflicts: 3,
            mean_us: 5_812.4,
            p50_us: 5_120,
            p90_us: 9_000,
            p99_us: 18_900,
            p99_9_us: 31_000,
            max_us: 64_250,
        };
        let mut report = Report {
            target: "trivet".to_owned(),
            settings: Settings {
                mix: "read=95,write=5".to_owned(),
                concurrency: 64,
                rate: None,
                keys: 100_000,
                value_bytes: 256,
                distribution: "zipfian:0.99".to_owned(),
                level: "linearizable".to_owned(),
                read_from: "leader".to_owned(),
                warm_up_s: 1.5,
                seed: 1,
            },
            window_s: 8.0,
            all: figures(80_000),
            by_operation: BTreeMap::from([("read", figures(76_000)), ("write", figures(4_000))]),
            errors: BTreeMap::from([("NO_QUORUM".to_owned(), 2), ("OVERLOADED".to_owned(), 1)]),
            longest_stall_ms: 12.5,
            servers: Some(Servers {
                cpu_s: 8.0,
                cores: 1.0,
                ops_per_cpu_s: 10_000.0,
                processes: [7, 8].map(|pid| Usage { pid, ticks: 0, rss_bytes: 104_857_600 }).to_vec(),
            }),
            view: None,
            client_cpu_s: 4.25,
        };
        let mut text = report.render();
        text.push_str(&serde_json::to_string_pretty(&report).expect("a report is JSON"));
        report.by_operation.remove("read");
        report.settings.rate = Some(1_000.0);
        report.errors.clear();
        report.servers = None;
        let spread = Spread { samples: 400, p50_us: 4_100, p99_us: 23_800, max_us: 61_000 };
        report.view = Some(ViewFigures { view: "orders_by_user".to_owned(), age: spread, own: spread });
        text.push('\n');
        text.push_str(&report.render());
        golden::check("bench_report", &text);
        assert_eq!(report.failed(), 0);
    }
}
