//! What the process itself costs: memory, CPU, file descriptors, threads; read from /proc when metrics are asked for.

use std::fs;

use metrics::{Unit, describe_gauge, gauge};

/// Resident memory.
pub const RESIDENT_BYTES: &str = "process_resident_memory_bytes";
/// User and system time. A gauge to the facade, since its counters hold whole numbers only; it never falls.
pub const CPU_SECONDS: &str = "process_cpu_seconds_total";
/// Open file descriptors.
pub const OPEN_FDS: &str = "process_open_fds";
/// The limit on them.
pub const MAX_FDS: &str = "process_max_fds";
/// Threads.
pub const THREADS: &str = "process_threads";

/// Linux reports CPU times in this unit to programs, on every architecture it runs on today (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// Names and descriptions. The names are those every Prometheus client uses, so that common dashboards find them.
pub fn describe() {
    describe_gauge!(RESIDENT_BYTES, Unit::Bytes, "Resident memory of the process.");
    describe_gauge!(CPU_SECONDS, Unit::Seconds, "CPU time of the process, user and system.");
    describe_gauge!(OPEN_FDS, "Open file descriptors.");
    describe_gauge!(MAX_FDS, "Most file descriptors the process may open.");
    describe_gauge!(THREADS, "Threads of the process.");
}

/// Brings the gauges up to date; what the system does not say is left out.
pub fn observe() {
    let usage = Usage::read();
    for (name, value) in [
        (RESIDENT_BYTES, usage.resident_bytes),
        (CPU_SECONDS, usage.cpu_seconds),
        (OPEN_FDS, usage.open_fds),
        (MAX_FDS, usage.max_fds),
        (THREADS, usage.threads),
    ] {
        if let Some(value) = value {
            gauge!(name).set(value);
        }
    }
}

/// One reading.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Resident memory in bytes.
    pub resident_bytes: Option<f64>,
    /// User and system time in seconds.
    pub cpu_seconds: Option<f64>,
    /// Open file descriptors.
    pub open_fds: Option<f64>,
    /// The limit on them.
    pub max_fds: Option<f64>,
    /// Threads.
    pub threads: Option<f64>,
}

impl Usage {
    /// Reads /proc/self.
    pub fn read() -> Usage {
        let text = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        let mut usage = Usage::parse(&text("status"), &text("stat"), &text("limits"));
        // Reading the directory opens one descriptor more.
        usage.open_fds = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1) as f64);
        usage
    }

    fn parse(status: &str, stat: &str, limits: &str) -> Usage {
        let field = |name: &str| -> Option<f64> {
            status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
        };
        // The name of the program stands in parentheses and may hold anything; the fields after it are plain.
        let after: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks = |at: usize| after.get(at)?.parse::<f64>().ok();
        // Counted from the third field: utime is the 14th, stime the 15th.
        let cpu_seconds = ticks(11).zip(ticks(12)).map(|(user, system)| (user + system) / TICKS_PER_SECOND);
        let max_fds = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        Usage {
            resident_bytes: field("VmRSS:").map(|kib| kib * 1024.0),
            cpu_seconds,
            open_fds: None,
            max_fds: max_fds.and_then(|rest| rest.split_whitespace().next()?.parse().ok()),
            threads: field("Threads:"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_understood() {
        let status = "Name:\ttrivet\nVmRSS:\t    2048 kB\nThreads:\t9\n";
        let stat = "42 (tri) vet) S 1 42 42 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 9 0 1000 1 1";
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 524288               files\n";
        let usage = Usage::parse(status, stat, limits);
        let expected = Usage {
            resident_bytes: Some(2_097_152.0),
            cpu_seconds: Some(4.0),
            open_fds: None,
            max_fds: Some(1024.0),
            threads: Some(9.0),
        };
        assert_eq!(usage, expected);
        assert_eq!(Usage::parse("", "", ""), Usage::default());
        assert_eq!(Usage::parse("VmRSS:\tmuch", "1 (x", "Max open files unlimited"), Usage::default());
    }

    #[test]
    fn this_process_has_a_size() {
        let usage = Usage::read();
        assert!(usage.resident_bytes.is_some_and(|bytes| bytes > 1e6), "{usage:?}");
        assert!(usage.open_fds.is_some_and(|fds| fds >= 3.0), "{usage:?}");
        assert!(usage.cpu_seconds.is_some() && usage.max_fds.is_some() && usage.threads.is_some(), "{usage:?}");
    }
}
