//! What each view makes of its sources, said once more, and compared when all is quiet.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Document, Found, Truth, is_note};
use crate::history::History;

/// The tables and views, as final reads name them.
pub const ORDERS: &str = "vorders";
pub const NOTES: &str = "vnotes";
pub const BY_USER: &str = "vorders_by_user";
pub const SUMS: &str = "vuser_sums";
pub const MERGED: &str = "vorders_noted";

/// Rows as a history has them: key and document.
pub fn rows_of(rows: &Value) -> Vec<(&str, &Value)> {
    let rows = rows.as_array().map(Vec::as_slice).unwrap_or_default();
    rows.iter().filter_map(|row| Some((row.get(0)?.as_str()?, row.get(1)?))).collect()
}

/// What a list is ordered by: status, then the largest amount first.
pub fn order(document: &Value) -> (&str, std::cmp::Reverse<u64>) {
    let amount = document["amount"].as_u64().unwrap_or(0);
    (document["status"].as_str().unwrap_or_default(), std::cmp::Reverse(amount))
}

/// A text as keys of views have it.
pub fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"%{}/".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// The key of the one row that a view has for this.
pub fn tagged(text: &str) -> String {
    format!("{{{}}}", encoded(text))
}

/// Whether a row of the lists is that of a source's row in the list of this user.
pub fn is_key_of(row: &str, user: &str, key: &str) -> bool {
    let rest = row.strip_prefix(&tagged(user)).and_then(|rest| rest.strip_suffix(&encoded(key)));
    rest.is_some_and(|order| order.starts_with(':') && order.ends_with('/'))
}

/// Compares every final read of every table with what the sources held at last, and how many documents comparisons say do not
/// fit; how many rows were as they should be.
pub fn check(history: &History, truth: &Truth<'_>, found: Found<'_>) -> usize {
    let last: BTreeMap<&str, Document<'_>> =
        truth.rows.iter().filter_map(|(key, row)| Some((*key, row.versions.last()?.document?))).collect();
    let mut as_told = 0;
    for (place, read) in history.oks("final") {
        let rows = rows_of(&read.output);
        let expected = expected(&read.key, &last);
        let shown = if read.key == BY_USER { lists(&rows) } else { plain(&rows) };
        if shown == expected && rows.len() == expected.values().map(Vec::len).sum::<usize>() {
            as_told += rows.len();
            continue;
        }
        let mut keys: Vec<&String> = expected.keys().chain(shown.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        let wrong: Vec<_> = keys.into_iter().filter(|key| expected.get(*key) != shown.get(*key)).collect();
        let Some(first) = wrong.first() else {
            found(format!("{} rows, some of them twice", rows.len()), &read.key, vec![place]);
            continue;
        };
        let text = |rows: Option<&Vec<Value>>| rows.map_or("nothing".to_owned(), |rows| json!(rows).to_string());
        let what = format!(
            "{} of {} keys are not as the sources say when all is quiet; {first} is {} instead of {}",
            wrong.len(),
            expected.len(),
            text(shown.get(*first)),
            text(expected.get(*first))
        );
        found(what, &read.key, vec![place]);
    }
    // Orders are put together with notes whatever they lack.
    let unfit = last.values().filter(|document| document.is_unfit()).count() as u64;
    for (place, compared) in history.oks("verify").filter(|(_, compared)| compared.number("quiet").is_some()) {
        let expected = if compared.key == MERGED { 0 } else { unfit };
        let told = compared.output["unfit"].as_u64();
        if told != Some(expected) {
            let what = format!("a comparison has counted {told:?} documents that do not fit, {expected} there are");
            found(what, &compared.key, vec![place]);
        }
    }
    as_told
}

/// Rows by their keys; two of one key stand there together.
fn plain(rows: &[(&str, &Value)]) -> BTreeMap<String, Vec<Value>> {
    let mut by_key: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (key, document) in rows {
        by_key.entry((*key).to_owned()).or_default().push((*document).clone());
    }
    by_key
}

/// Rows by the tag of their keys, in the order in which they stand there.
fn lists(rows: &[(&str, &Value)]) -> BTreeMap<String, Vec<Value>> {
    let mut by_tag: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (key, document) in rows {
        let tag = key.split_inclusive('}').next().unwrap_or_default();
        by_tag.entry(tag.to_owned()).or_default().push((*document).clone());
    }
    by_tag
}

fn expected(table: &str, last: &BTreeMap<&str, Document<'_>>) -> BTreeMap<String, Vec<Value>> {
    let orders = || last.iter().filter(|(key, _)| !is_note(key));
    let mut rows: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    match table {
        ORDERS | NOTES => {
            for (key, document) in last.iter().filter(|(key, _)| is_note(key) == (table == NOTES)) {
                rows.insert((*key).to_owned(), vec![document.whole.clone()]);
            }
        }
        BY_USER | SUMS => {
            for (_, document) in orders() {
                let user = document.whole["user"].as_str().unwrap_or_default();
                if document.is_listed(user) {
                    rows.entry(tagged(user)).or_default().push(document.whole.clone());
                }
            }
            for orders in rows.values_mut() {
                orders.sort_by(|one, other| order(one).cmp(&order(other)));
                if table == SUMS {
                    let amounts: Vec<u64> = orders.iter().filter_map(|order| order["amount"].as_u64()).collect();
                    let (sum, newest) = (amounts.iter().sum::<u64>(), amounts.iter().max());
                    let user = &orders[0]["user"];
                    let row = json!({"user": user, "orders": amounts.len(), "amount": sum, "newest": newest});
                    *orders = vec![row];
                }
            }
        }
        MERGED => {
            let mut merged: BTreeMap<String, Value> = BTreeMap::new();
            for (key, document) in orders() {
                merged.insert((*key).to_owned(), json!({"order": document.whole}));
            }
            // The one with the smaller key comes last here, and is shown.
            for (key, document) in last.iter().rev().filter(|(key, _)| is_note(key)) {
                let order = key.split('/').next().unwrap_or_default();
                merged.entry(order.to_owned()).or_insert_with(|| json!({}))["note"] = document.whole.clone();
            }
            rows.extend(merged.into_iter().map(|(order, row)| (tagged(&order), vec![row])));
        }
        _ => {}
    }
    rows
}
