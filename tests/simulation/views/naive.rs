//! What the views must hold, told from the orders alone.
//!
//! Written a second time, from the documentation: no part of the product's projection is used, neither for keys nor for
//! sums. It is only made for the documents that clerks write: positive whole times, amounts in hundredths.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Value;

use super::ViewPlan;

/// Rows by their keys.
pub type Rows = BTreeMap<Bytes, Bytes>;

/// An order as the views take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Whose it is.
    pub user: String,
    /// When it was placed.
    pub placed: u64,
    /// How much it is, in hundredths.
    pub cents: u64,
    /// The write that made it.
    pub w: u64,
}

/// What a document is to the pages of users: whose it is, which part of the page (profiles are the first, orders the second), and what
/// is kept of it.
pub fn part(key: &Bytes, document: &[u8]) -> Option<(String, usize, Bytes)> {
    if super::table_of(key) == super::ORDERS {
        let Order { user, placed, w, .. } = order(document)?;
        return Some((user, 1, format!(r#"{{"placed":{placed},"w":{w}}}"#).into()));
    }
    let document: Value = serde_json::from_slice(document).ok()?;
    let (level, w) = (document.get("level")?.as_u64()?, document.get("w")?.as_u64()?);
    Some((document.get("user")?.as_str()?.to_owned(), 0, format!(r#"{{"level":{level},"w":{w}}}"#).into()))
}

/// The page of these parts; none without any.
pub fn page(who: Option<&Bytes>, first: Option<&Bytes>) -> Option<Bytes> {
    let parts = [("who", who), ("first", first)].into_iter();
    let parts = parts.filter_map(|(name, part)| Some(format!(r#""{name}":{}"#, String::from_utf8_lossy(part?))));
    let parts: Vec<String> = parts.collect();
    (!parts.is_empty()).then(|| format!("{{{}}}", parts.join(",")).into())
}

/// All pages of users, with the rows that nobody is shown.
pub fn pages(documents: &BTreeMap<&Bytes, &Bytes>) -> Rows {
    let mut rows = Rows::new();
    let mut users: BTreeMap<String, [Option<Bytes>; 2]> = BTreeMap::new();
    // The one with the smallest key is shown, and comes first.
    for (key, document) in documents {
        let Some((user, place, kept)) = part(key, document) else { continue };
        let member = format!("{{{user}}}\u{1}p{place}/{}", String::from_utf8_lossy(key));
        rows.insert(member.into(), kept.clone());
        users.entry(user).or_default()[place].get_or_insert(kept);
    }
    for (user, [who, first]) in users {
        rows.extend(page(who.as_ref(), first.as_ref()).map(|page| (super::user_key(&user), page)));
    }
    rows
}

/// The users that orders can have.
pub fn users(plan: &ViewPlan) -> Vec<String> {
    (0..plan.users).map(|user| format!("u{user}")).collect()
}

/// What an order's document is to the views; none if it is no part of them.
pub fn order(document: &[u8]) -> Option<Order> {
    let document: Value = serde_json::from_slice(document).ok()?;
    let user = document.get("user")?.as_str()?.to_owned();
    if document.get("state")?.as_str()? == "test" {
        return None;
    }
    let cents = (document.get("amount")?.as_f64()? * 100.0).round() as u64;
    Some(Order { user, placed: document.get("placed")?.as_u64()?, cents, w: document.get("w")?.as_u64()? })
}

/// Whether a document is one that its views should have taken and cannot: it is nobody's.
pub fn is_unfit(document: &[u8]) -> bool {
    let Ok(document) = serde_json::from_slice::<Value>(document) else { return true };
    let left_out = document.get("state").is_some_and(|state| state == "test");
    !left_out && document.get("user").is_none()
}

/// A positive number as hex digits in its order: what it is, its sign, the place of its point, its digits, an end.
fn ordering(number: u64, descending: bool) -> String {
    let digits = number.to_string();
    let mut bytes = vec![0x30, 3, 0x80, 0, 0, u8::try_from(digits.len()).expect("few digits")];
    bytes.extend(digits.trim_end_matches('0').bytes().map(|digit| digit - b'0' + 1));
    bytes.push(0);
    bytes.iter().map(|byte| format!("{:02x}", if descending { !byte } else { *byte })).collect()
}

/// Hundredths without zeros that say nothing.
fn sum(cents: u64) -> String {
    let (whole, rest) = (cents / 100, cents % 100);
    match (rest, rest % 10) {
        (0, _) => format!("{whole}"),
        (_, 0) => format!("{whole}.{}", rest / 10),
        _ => format!("{whole}.{rest:02}"),
    }
}

/// The row of an order in the list of its user.
pub fn row(key: &Bytes, order: &Order) -> (Bytes, Bytes) {
    let Order { user, placed, cents, w } = order;
    let row = format!("{{{user}}}:{}/{}", ordering(*placed, true), String::from_utf8_lossy(key));
    (row.into(), format!(r#"{{"amount":{}.{:02},"w":{w}}}"#, cents / 100, cents % 100).into())
}

/// The row of a user's totals; none without orders.
pub fn totals(user: &str, orders: u64, cents: u64, last: u64) -> Option<Bytes> {
    let spent = sum(cents);
    (orders > 0).then(|| format!(r#"{{"user":"{user}","orders":{orders},"spent":{spent},"last":{last}}}"#).into())
}

/// All rows of the lists of users.
pub fn by_user(orders: &BTreeMap<&Bytes, &Bytes>) -> Rows {
    orders.iter().filter_map(|(key, document)| Some(row(key, &order(document)?))).collect()
}

/// All rows of the totals of users, with those that nobody is shown.
pub fn stats(orders: &BTreeMap<&Bytes, &Bytes>) -> Rows {
    let mut rows = Rows::new();
    let mut users: BTreeMap<String, (u64, u64, u64)> = BTreeMap::new();
    for (key, document) in orders {
        let Some(Order { user, placed, cents, .. }) = order(document) else { continue };
        let key = String::from_utf8_lossy(key);
        rows.insert(format!("{{{user}}}\u{1}m2:{}/{key}", ordering(placed, false)).into(), placed.to_string().into());
        let (orders, spent, last) = users.entry(user).or_default();
        (*orders, *spent, *last) = (*orders + 1, *spent + cents, placed.max(*last));
    }
    for (user, (orders, cents, last)) in users {
        rows.insert(format!("{{{user}}}\u{1}t").into(), format!("{orders} {}", sum(cents)).into());
        rows.extend(totals(&user, orders, cents, last).map(|row| (super::user_key(&user), row)));
    }
    rows
}

/// Whether nobody is shown a row.
pub fn hidden(key: &Bytes) -> bool {
    key.contains(&1)
}

/// In what two sets of rows differ.
pub fn difference(found: &Rows, wanted: &Rows) -> String {
    let missing: Vec<_> = wanted.iter().filter(|(key, value)| found.get(*key) != Some(*value)).collect();
    let other: Vec<_> = found.iter().filter(|(key, value)| wanted.get(*key) != Some(*value)).collect();
    format!("of {} rows these are not there: {missing:?}; and these are: {other:?}", wanted.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_as_the_documentation_shows_them() {
        assert_eq!(ordering(1_177, false), "3003800000040202080800");
        assert_eq!(["0", "12.5", "0.05", "3.1"], [0, 1_250, 5, 310].map(sum)[..]);
        let document = Bytes::from(r#"{"user":"u1","placed":1177,"amount":2.50,"state":"paid","w":4}"#);
        let orders = BTreeMap::new();
        let key = Bytes::from("o1");
        let mut orders: BTreeMap<&Bytes, &Bytes> = orders;
        orders.insert(&key, &document);
        let text = |rows: Rows| rows.into_iter().map(|(key, value)| format!("{key:?} {value:?}")).collect::<Vec<_>>();
        assert_eq!(text(by_user(&orders)), [r#"b"{u1}:cffc7ffffffbfdfdf7f7ff/o1" b"{\"amount\":2.50,\"w\":4}""#]);
        assert_eq!(
            text(stats(&orders)),
            [
                r#"b"{u1}" b"{\"user\":\"u1\",\"orders\":1,\"spent\":2.5,\"last\":1177}""#,
                r#"b"{u1}\x01m2:3003800000040202080800/o1" b"1177""#,
                r#"b"{u1}\x01t" b"1 2.5""#,
            ]
        );
    }
}
