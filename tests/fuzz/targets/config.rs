//! Configuration files, with variables and settings above them.
//!
//! An input is the text of a file. Its comments of the form `#set key=value` are given as `--set`, those of the form
//! `#env NAME=value` as variables. What must hold: a configuration, or errors of one line each that name a place; a
//! configuration keeps what is promised of one, and printed it is a file that makes the same again.
#![no_main]

mod support;

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use trivet::server::{Config, ConfigError, Flags, load, print};

/// A filter of log levels is compiled to automata.
const CONSTANT: usize = 16 << 20;

fuzz_target!(|data: &[u8]| support::frugally(data, CONSTANT, check));

/// A file without a name, written anew for each input: in memory where there is such a place.
fn file() -> &'static Path {
    static FILE: OnceLock<(File, PathBuf)> = OnceLock::new();
    let (_, path) = FILE.get_or_init(|| {
        let file = tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile()).expect("a temporary file");
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        (file, path)
    });
    path
}

fn load_text(text: &[u8], set: Vec<String>, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    std::fs::write(file(), text).expect("the place takes a file");
    let flags = Flags { config: Some(file().to_owned()), set, ..Flags::default() };
    load(&flags, &|name| {
        let found = variables.iter().rfind(|(known, _)| *known == name);
        found.map(|(_, value)| OsString::from(value))
    })
}

fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let set = text.lines().filter_map(|line| line.strip_prefix("#set ")).map(str::to_owned).collect();
    let variables: Vec<(&str, &str)> =
        text.lines().filter_map(|line| line.strip_prefix("#env ")?.split_once('=')).collect();
    match load_text(data, set, &variables) {
        Ok(config) => stands(&config),
        Err(error) => {
            assert!(!error.problems.is_empty());
            for problem in &error.problems {
                assert!(!problem.contains(char::is_control), "more than one line: {problem:?}");
                assert!(problem.contains(": "), "no place is named: {problem:?}");
            }
        }
    }
}

fn stands(config: &Config) {
    assert!(config.id.0 > 0 && !config.data.as_os_str().is_empty() && !config.advertise.is_empty());
    assert!([1, 2, 64].into_iter().all(|cores| config.workers(cores) > 0));
    let founders = config.founders();
    assert_eq!(founders.len(), config.found.len());
    assert!(founders.is_empty() || config.join.is_empty());
    if !founders.is_empty() {
        assert_eq!(founders.get(&config.id), Some(&config.advertise));
    }
    let timers = &config.timers;
    assert!(3 * timers.heartbeat_ms <= 2 * timers.election_min_ms && timers.election_min_ms < timers.election_max_ms);
    let limits = &config.limits;
    assert!(limits.key_bytes_max.max(limits.value_bytes_max) <= limits.batch_bytes_max);

    let printed = print(config);
    let again = load_text(printed.as_bytes(), Vec::new(), &[]);
    assert_eq!(again.as_ref(), Ok(config), "{printed}");
    assert_eq!(print(&again.expect("it was just compared")), printed);
}
