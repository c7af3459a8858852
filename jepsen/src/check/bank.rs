//! A bank: the total is constant, nobody is in debt, and what was acknowledged is not forgotten.
//!
//! Every scan that shows accounts shows all of them with the opening total. Scans at any replica and as of a version from
//! before the opening may be empty. A linearizable scan (`read`) shows of both accounts of a transfer, acknowledged before
//! it began, at least the version that the transfer made.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Finding, Verdict};
use crate::history::{History, Operation};

/// What a bank was opened with.
struct Opened {
    accounts: usize,
    total: i64,
    /// When it was known to be open.
    acknowledged: u64,
    version: Option<u64>,
}

/// Judges the operations `open`, `transfer`, `read`, `any` and `as-of`.
pub fn check(history: &History) -> Verdict {
    let mut banks: BTreeMap<&str, Opened> = BTreeMap::new();
    for (_, operation) in history.oks("open") {
        let number = |field: &str| operation.input.get(field).and_then(Value::as_i64);
        let (Some(accounts), Some(total), Some(end)) = (number("accounts"), number("total"), operation.end) else {
            return Verdict::Unknown { why: "a bank was opened without saying with what".into() };
        };
        let accounts = usize::try_from(accounts).unwrap_or(0);
        let opened = Opened { accounts, total, acknowledged: end, version: operation.version() };
        banks.entry(&operation.key).or_insert(opened);
    }
    let mut findings = Vec::new();
    let mut scans = 0;
    for (place, operation) in history.operations.iter().enumerate() {
        if !matches!(operation.f.as_str(), "read" | "any" | "as-of") || !operation.is_ok() {
            continue;
        }
        let Some(bank) = banks.get(operation.key.as_str()) else { continue };
        scans += 1;
        if let Some(what) = wrong(operation, bank) {
            findings.push(Finding { what, key: operation.key.clone(), operations: vec![place] });
        }
    }
    for bank in banks.keys() {
        forgotten(history, bank, &mut findings);
    }
    if !findings.is_empty() {
        Verdict::Invalid { findings }
    } else if scans == 0 {
        Verdict::Unknown { why: "no bank was looked at".into() }
    } else {
        Verdict::Valid { summary: format!("{scans} scans of {} banks show the whole total", banks.len()) }
    }
}

/// What a scan shows that no bank can be like.
fn wrong(operation: &Operation, bank: &Opened) -> Option<String> {
    let Some(balances) = operation.output.as_object() else { return Some("it shows no accounts".into()) };
    let may_be_empty = match operation.f.as_str() {
        "read" => operation.start <= bank.acknowledged,
        "as-of" => match (operation.number("at"), bank.version) {
            (Some(at), Some(opened)) => at < opened,
            _ => true,
        },
        _ => true,
    };
    if balances.is_empty() && may_be_empty {
        return None;
    }
    if balances.len() != bank.accounts {
        return Some(format!("{} accounts are there, not {}", balances.len(), bank.accounts));
    }
    let amounts: Option<Vec<i64>> = balances.values().map(Value::as_i64).collect();
    let Some(amounts) = amounts else { return Some("an account has no balance".into()) };
    if let Some(debt) = amounts.iter().find(|amount| **amount < 0) {
        return Some(format!("an account holds {debt}"));
    }
    let total: i64 = amounts.iter().sum();
    (total != bank.total).then(|| format!("the total is {total}, not {}", bank.total))
}

/// Transfers that a later linearizable scan does not know of.
fn forgotten(history: &History, bank: &str, findings: &mut Vec<Finding>) {
    // Per account: acknowledgements by time, with the newest version so far.
    let mut accounts: BTreeMap<String, Vec<(u64, u64, usize)>> = BTreeMap::new();
    for (place, operation) in history.oks("transfer").filter(|(_, operation)| operation.key == bank) {
        let (Some(end), Some(version)) = (operation.end, operation.version()) else { continue };
        for side in ["from", "to"] {
            if let Some(number) = operation.input.get(side).and_then(Value::as_u64) {
                accounts.entry(format!("a{number}")).or_default().push((end, version, place));
            }
        }
    }
    for acknowledged in accounts.values_mut() {
        acknowledged.sort_unstable();
        let mut best = (0, 0);
        for entry in acknowledged {
            if entry.1 >= best.0 {
                best = (entry.1, entry.2);
            }
            (entry.1, entry.2) = best;
        }
    }
    for (place, operation) in history.oks("read").filter(|(_, operation)| operation.key == bank) {
        let Some(versions) = operation.extra.get("versions").and_then(Value::as_object) else { continue };
        for (account, shown) in versions {
            let Some(acknowledged) = accounts.get(account) else { continue };
            let count = acknowledged.partition_point(|(end, ..)| *end < operation.start);
            let Some(&(_, newest, transfer)) = count.checked_sub(1).map(|last| &acknowledged[last]) else { continue };
            if shown.as_u64().is_some_and(|shown| shown < newest) {
                findings.push(Finding {
                    what: format!(
                        "account {account} is shown at version {shown}, after version {newest} was acknowledged"
                    ),
                    key: bank.to_owned(),
                    operations: vec![transfer, place],
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::testing::{Line, history, named};
    use serde_json::json;

    fn open() -> Line {
        let with = json!({"accounts": 2, "total": 40});
        Line::new("open", "b", with.clone()).ok(with).version(10).at(0, 10)
    }

    fn transfer(version: u64) -> Line {
        let asked = json!({"from": 0, "to": 1, "amount": 5});
        Line::new("transfer", "b", asked.clone()).ok(asked).version(version)
    }

    fn scan(f: &'static str, balances: Value) -> Line {
        Line::new(f, "b", Value::Null).ok(balances)
    }

    #[test]
    fn good_histories_pass() {
        let lines = [
            open(),
            scan("any", json!({})).at(11, 20),
            transfer(20).at(21, 30),
            scan("read", json!({"a0": 15, "a1": 25})).extra("versions", json!({"a0": 20, "a1": 20})).at(31, 40),
            scan("as-of", json!({"a0": 20, "a1": 20})).extra("at", 19).at(41, 50),
            scan("as-of", json!({})).extra("at", 9).at(41, 50),
            scan("any", json!({"a0": 20, "a1": 20})).at(51, 60),
        ];
        let verdict = check(&history(&lines));
        assert!(verdict.is_valid(), "{verdict:?}");
    }

    #[test]
    fn bad_histories_name_the_operations() {
        let old = json!({"a0": 10, "a1": 20});
        let bad: Vec<(&str, Line, Vec<usize>)> = vec![
            ("torn", scan("read", json!({"a0": 15, "a1": 20})), vec![2]),
            ("torn at a follower", scan("any", json!({"a0": 20, "a1": 25})), vec![2]),
            ("torn in the past", scan("as-of", json!({"a0": 15, "a1": 20})).extra("at", 15), vec![2]),
            ("debt", scan("read", json!({"a0": -5, "a1": 45})), vec![2]),
            ("an account is gone", scan("any", json!({"a0": 40})), vec![2]),
            ("all are gone", scan("read", json!({})), vec![2]),
            ("gone in the past", scan("as-of", json!({})).extra("at", 12), vec![2]),
            ("stale", scan("read", json!({"a0": 20, "a1": 20})).extra("versions", old), vec![1, 2]),
        ];
        for (name, scan, operations) in bad {
            let lines = [open(), transfer(20).at(11, 20), scan.at(30, 40)];
            assert!(named(check(&history(&lines))).contains(&operations), "{name}");
        }
    }

    #[test]
    fn a_bank_that_nobody_looked_at_is_unknown() {
        assert!(matches!(check(&history(&[open()])), Verdict::Unknown { .. }));
    }
}
