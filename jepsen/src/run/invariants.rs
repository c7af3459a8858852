//! What holds in every run, whatever its workloads: quiet logs, live nodes, bounded calls, equal replicas.

use std::time::Duration;

use trivet::client::{Client, Options};

use crate::cluster::{Cluster, HEALTHY_WITHIN};
use crate::history::History;
use crate::nemesis::Nemesis;

/// Every shard takes a write this soon after the last fault has ended.
pub(super) const RECOVERED_WITHIN: Duration = Duration::from_secs(10);
/// The longest operation: two calls of four seconds (a read and what hangs on it), and a second.
const OPERATION_MAX: Duration = Duration::from_secs(9);
/// Lines of one kind shown of each log.
const SHOWN: usize = 3;
/// Verbs that go through many calls, each with a deadline of its own, in any history or in one: a set is read page by
/// page, a view that comes after likewise, and compared shard by shard; the rows of a scan are put one by one, each until it is there.
const MANY_CALLS: [(Option<&str>, &str); 6] = [
    (None, "scan"),
    (None, "final"),
    (Some("scan"), "load"),
    (Some("set"), "read"),
    (Some("views"), "settle"),
    (Some("views"), "verify"),
];

/// I1: no panic and no ERROR in any log that the faults do not explain.
pub(super) fn logs(cluster: &Cluster, nemeses: &[std::sync::Arc<dyn Nemesis>]) -> Vec<String> {
    let excuses: Vec<&str> = nemeses.iter().flat_map(|nemesis| nemesis.excuses().iter().copied()).collect();
    let mut problems = Vec::new();
    for node in &cluster.fixed {
        let text = node.logged();
        let bad: Vec<&str> = text.lines().filter(|line| is_bad(line, &excuses)).collect();
        for line in bad.iter().take(SHOWN) {
            problems.push(format!("I1: the log of n{} says: {line}", node.id));
        }
        if bad.len() > SHOWN {
            problems.push(format!("I1: and {} more such lines in the log of n{}", bad.len() - SHOWN, node.id));
        }
    }
    problems
}

fn is_bad(line: &str, excuses: &[&str]) -> bool {
    let crashed = ["panicked at", "SIGSEGV", "SIGABRT", "AddressSanitizer", "stack overflow"];
    let is_error = line.contains(" ERROR ") && !excuses.iter().any(|excuse| line.contains(excuse));
    is_error || crashed.iter().any(|crash| line.contains(crash))
}

/// I1: no node ended by itself. (Those that must, do so in the hands of their nemesis and are not counted here.)
pub(super) fn exits(cluster: &Cluster) -> Vec<String> {
    let exits = cluster.exits();
    exits
        .iter()
        .map(|exit| {
            let seconds = exit.at_ns as f64 / 1e9;
            format!("I1: n{} ended by itself with {} at {seconds:.1} s; it said: {}", exit.node, exit.code, exit.said)
        })
        .collect()
}

/// I7: no operation outlives its deadlines.
pub(super) fn deadlines(history: &History) -> Vec<String> {
    let many_calls =
        |f: &str| MANY_CALLS.iter().any(|(name, verb)| *verb == f && name.is_none_or(|name| name == history.name));
    let single = history.operations.iter().filter(|operation| !many_calls(&operation.f));
    let took = single.filter_map(|operation| Some((operation, operation.end?.checked_sub(operation.start)?)));
    let late: Vec<_> = took.filter(|(_, took)| *took > OPERATION_MAX.as_nanos() as u64).collect();
    late.first()
        .map(|(first, took)| {
            format!(
                "I7: {} operations of {} took longer than {OPERATION_MAX:?}, the first {:.1} s: {first}",
                late.len(),
                history.name,
                *took as f64 / 1e9
            )
        })
        .into_iter()
        .collect()
}

/// I3: all replicas of every shard hold the same at one applied position.
pub(super) async fn checksums(endpoints: &[String]) -> Vec<String> {
    let patience = tokio::time::Instant::now() + HEALTHY_WITHIN;
    let mut problems = vec!["I3: nobody says which shards there are".to_owned()];
    while tokio::time::Instant::now() < patience {
        problems = match Client::connect(endpoints, Options::default()).await {
            Ok(client) => unequal(&client).await,
            Err(error) => vec![format!("I3: {error}")],
        };
        if problems.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    problems
}

async fn unequal(client: &Client) -> Vec<String> {
    let admin = client.admin().within(Duration::from_secs(15));
    let tables = match admin.tables().await {
        Ok(tables) => tables,
        Err(error) => return vec![format!("I3: {error}")],
    };
    let mut problems = Vec::new();
    for table in tables {
        for shard in &table.shards {
            match admin.checksum(shard.id).await {
                Err(error) => problems.push(format!("I3: {} {}: {error}", table.table.name, shard.id)),
                Ok(report) if report.equal && report.replicas.len() >= shard.replicas.len() => {}
                Ok(report) => {
                    problems.push(format!("I3: replicas of {} {} differ: {report:?}", table.table.name, shard.id));
                }
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::history::{Extra, Kind, Operation};

    #[test]
    fn errors_are_bad_unless_a_fault_explains_them_and_panics_always() {
        let line = "2026-01-01T00:00:00Z ERROR trivet::storage: cannot make the log durable";
        assert!(is_bad(line, &[]));
        assert!(!is_bad(line, &["cannot make the log durable"]));
        assert!(is_bad("thread 'main' panicked at src/x.rs: cannot make the log durable", &["cannot make"]));
        assert!(!is_bad("2026-01-01T00:00:00Z  INFO trivet: no ERROR here".replace(" ERROR ", "-").as_str(), &[]));
    }

    #[test]
    fn one_call_has_one_deadline_and_a_set_is_read_by_many() {
        let late = |name: &str, f: &str, seconds: u64| {
            let operation = Operation {
                process: 1,
                f: f.to_owned(),
                key: "k".to_owned(),
                input: Value::Null,
                output: Value::Null,
                start: 5,
                end: Some(5 + seconds * 1_000_000_000),
                outcome: Kind::Ok,
                extra: Extra::new(),
            };
            !deadlines(&History { name: name.to_owned(), operations: vec![operation], faults: vec![] }).is_empty()
        };
        assert!(late("register", "read", 10) && !late("register", "read", 9));
        assert!(late("set", "add", 10) && !late("set", "read", 10));
        assert!(!late("scan", "scan", 10) && !late("register", "final", 10));
    }
}
