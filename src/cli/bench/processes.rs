//! What the server processes cost: CPU time and resident memory, read from /proc before and after a measurement.

use std::time::Duration;

/// Clock ticks per second in /proc (USER_HZ); a constant of Linux's interface on every machine this runs on.
const TICKS_PER_SECOND: u64 = 100;

/// A process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// The process.
    pub pid: u32,
    /// CPU time it and its threads have used, in ticks.
    #[serde(skip)]
    pub ticks: u64,
    /// Resident memory in bytes.
    pub rss_bytes: u64,
}

/// Reads a process's use so far.
pub fn usage(pid: u32) -> Result<Usage, String> {
    let read = |what: &str| {
        std::fs::read_to_string(format!("/proc/{pid}/{what}"))
            .map_err(|error| format!("cannot read /proc/{pid}/{what}: {error}"))
    };
    let ticks = parse_stat(&read("stat")?).ok_or_else(|| format!("/proc/{pid}/stat has a form not known here"))?;
    let rss_bytes = parse_status(&read("status")?).ok_or_else(|| format!("/proc/{pid}/status has no VmRSS"))?;
    Ok(Usage { pid, ticks, rss_bytes })
}

/// CPU time between two readings of the same processes.
pub fn cpu_between(before: &[Usage], after: &[Usage]) -> Duration {
    let ticks: u64 = before.iter().zip(after).map(|(before, after)| after.ticks.saturating_sub(before.ticks)).sum();
    Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND)
}

/// utime + stime. The command's name, in parentheses, may hold spaces and parentheses: fields are counted after it.
fn parse_stat(text: &str) -> Option<u64> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

fn parse_status(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_lines_are_understood() {
        let stat = "12 (odd ) name) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1 0 100 1000 200";
        assert_eq!(parse_stat(stat), Some(300));
        assert_eq!(parse_stat("12"), None);
        assert_eq!(parse_status("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(parse_status("Name:\tx\n"), None);
    }

    #[test]
    fn this_process_can_be_read() {
        let own = usage(std::process::id()).expect("this process lives");
        assert!(own.rss_bytes > 1 << 20);
        assert!(usage(u32::MAX).is_err());
        let later = Usage { ticks: own.ticks + 150, ..own };
        assert_eq!(cpu_between(&[own], &[later]), Duration::from_millis(1_500));
    }
}
