//! Orders, their traces, lists of them, and what is derived from them.
//!
//! JSON is written from the documents themselves, so that amounts keep their digits.

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use trivet::orders::schema::{Made, VIEWS};
use trivet::orders::{Archived, Created, Found, Listed, Moved, Order, Product, Step, UserStats};
use trivet::types::{Answer, Header};

use super::Table;
use super::data::header_json;
use crate::cli::exit::{Ended, Stop};
use crate::cli::text;
use crate::cli::time::show_time_ms;

/// An order in an answer. Fields that do not belong to it are left out.
#[derive(Serialize)]
struct Told<'a> {
    order: &'a Order,
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    archived: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duplicate: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<&'a Step>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repeated: Option<bool>,
    header: Value,
}

impl<'a> Told<'a> {
    fn of(found: &'a Found, header: &Header) -> Told<'a> {
        Told {
            order: &found.order,
            version: found.version.to_string(),
            archived: Some(found.archived),
            duplicate: None,
            step: None,
            repeated: None,
            header: header_json(header),
        }
    }
}

fn json_text(value: &impl Serialize) -> Ended<String> {
    serde_json::to_string(value).map_err(|error| Stop::error(error.to_string()))
}

/// The answer of `order get`.
pub fn found_json(answer: &Answer<Found>) -> Ended<String> {
    json_text(&Told::of(&answer.body, &answer.header))
}

/// The answer of `order create`.
pub fn created_json(answer: &Answer<Created>) -> Ended<String> {
    let told = Told::of(&answer.body.found, &answer.header);
    json_text(&Told { duplicate: Some(answer.body.duplicate), ..told })
}

/// The answer of `order transition`.
pub fn moved_json(answer: &Answer<Moved>) -> Ended<String> {
    let told = Told::of(&answer.body.found, &answer.header);
    json_text(&Told { step: Some(&answer.body.step), repeated: Some(answer.body.repeated), ..told })
}

/// A page of `order list`, an order a line.
pub fn listed_json(answer: &Answer<Listed>) -> Ended<String> {
    let mut lines = String::new();
    for listed in &answer.body.orders {
        let header = header_json(&answer.header);
        let (version, (archived, duplicate, step, repeated)) = (listed.version.to_string(), (None, None, None, None));
        let told = Told { order: &listed.order, version, archived, duplicate, step, repeated, header };
        lines.push_str(&json_text(&told)?);
        lines.push('\n');
    }
    Ok(lines)
}

/// How old an answer can be, in words.
pub fn age(header: &Header) -> String {
    match header.age {
        Some(age) => format!("at most {:.1} ms old", age.as_micros() as f64 / 1_000.0),
        None => "of unproven age".to_owned(),
    }
}

/// An order in a line.
pub fn order_line(found: &Found) -> String {
    let Found { order, version, archived } = found;
    let archived = if *archived { ", archived" } else { "" };
    format!(
        "{} {} ({} for user {}{archived}), version {version}",
        order.order_id,
        order.status,
        order.amount,
        shown(&order.user_id)
    )
}

fn shown(text: &str) -> String {
    text::show(text.as_bytes())
}

/// The answer of `order get`.
pub fn order(answer: &Answer<Found>) -> String {
    let Found { order, version, archived } = &answer.body;
    let mut table = Table::new(&[]);
    let mut row = |name: &str, value: String| table.row(vec![name.to_owned(), value]);
    row("order", order.order_id.clone());
    row("status", format!("{}{}", order.status, if *archived { " (archived)" } else { "" }));
    row("user", shown(&order.user_id));
    row("amount", order.amount.to_string());
    for (item, number) in order.items.iter().zip(1_u32..) {
        let price = item.price.map(|price| format!(" at {price}")).unwrap_or_default();
        let name = if number == 1 { "items" } else { "" };
        row(name, format!("{} x {}{price}", item.quantity, shown(&item.product_id)));
    }
    row("key", shown(&order.business_key));
    row("created", show_time_ms(order.created_ms));
    let step = if order.trace.is_empty() { String::new() } else { format!(", step {}", order.trace.len()) };
    row("updated", format!("{}{step}", show_time_ms(order.updated_ms)));
    row("version", format!("{version}, {}", age(&answer.header)));
    table.render()
}

/// The answer of `order trace`.
pub fn trace(order: &Order) -> String {
    let mut table = Table::new(&["time", "from", "to", "who", "note", "request"]);
    for step in &order.trace {
        table.row(vec![
            show_time_ms(step.at_ms),
            step.from.map_or_else(|| "-".to_owned(), |from| from.to_string()),
            step.to.to_string(),
            shown(&step.who),
            if step.note.is_empty() { "-".to_owned() } else { shown(&step.note) },
            shown(&step.request_id),
        ]);
    }
    table.render()
}

/// A page of `order list`.
pub fn listed(answer: &Answer<Listed>, with_header: bool) -> String {
    let header: &[&str] = if with_header { &["order", "status", "amount", "items", "created", "key"] } else { &[] };
    let mut table = Table::new(header);
    for listed in &answer.body.orders {
        let order = &listed.order;
        table.row(vec![
            order.order_id.clone(),
            order.status.to_string(),
            order.amount.to_string(),
            order.items.len().to_string(),
            show_time_ms(order.created_ms),
            shown(&order.business_key),
        ]);
    }
    if answer.body.orders.is_empty() { String::new() } else { table.render() }
}

/// The answer of `order stats`.
pub fn stats_json(answer: &Answer<UserStats>) -> Value {
    let stats = &answer.body;
    json!({
        "user_id": stats.user_id,
        "orders": stats.orders,
        "spent": stats.spent,
        "first_ms": stats.first_ms,
        "last_ms": stats.last_ms,
        "version": stats.version.map(|version| version.to_string()),
        "header": header_json(&answer.header),
    })
}

/// The answer of `order stats`.
pub fn stats(answer: &Answer<UserStats>) -> String {
    let stats = &answer.body;
    let moment = |at: Option<u64>| at.map_or_else(|| "-".to_owned(), show_time_ms);
    let mut table = Table::new(&[]);
    table.row(vec!["user".to_owned(), shown(&stats.user_id)]);
    table.row(vec!["orders".to_owned(), stats.orders.to_string()]);
    table.row(vec!["spent".to_owned(), stats.spent.clone()]);
    table.row(vec!["first".to_owned(), moment(stats.first_ms)]);
    table.row(vec!["last".to_owned(), moment(stats.last_ms)]);
    table.row(vec!["answer".to_owned(), age(&answer.header)]);
    table.render()
}

/// The answer of `order archive`.
pub fn archived_json(done: &Archived, dry_run: bool) -> Value {
    json!({
        "examined": done.examined,
        "order_ids": done.order_ids,
        "resumed": done.resumed,
        "changed": done.changed,
        "unreadable": done.unreadable,
        "dry_run": dry_run,
        "complete": done.page_token.is_none(),
    })
}

/// The answer of `order archive`.
pub fn archived(done: &Archived, dry_run: bool) -> String {
    let orders = text::count(done.order_ids.len() as u64, "order");
    let examined = done.examined;
    let mut said = match dry_run {
        true => format!("would archive {orders} of {examined} looked at (--dry-run; nothing done)\n"),
        false => format!("archived {orders} of {examined} looked at\n"),
    };
    let mut note = |count: u32, what: &str| {
        if count > 0 {
            said.push_str(&format!("  {count} {what}\n"));
        }
    };
    note(done.resumed, "had been copied by an earlier run that was cut short");
    note(done.changed, "changed meanwhile and stayed");
    note(done.unreadable, "are no order documents and were left alone");
    if done.page_token.is_some() {
        said.push_str("  not all orders have been looked at: run it again for the rest\n");
    }
    said
}

/// The answer of `order product`.
pub fn product_json(answer: &Answer<Product>) -> Ended<String> {
    #[derive(Serialize)]
    struct Told<'a> {
        product_id: &'a str,
        base: Option<Box<RawValue>>,
        spec: Option<Box<RawValue>>,
        price: Option<Box<RawValue>>,
        version: String,
        header: Value,
    }
    let product = &answer.body;
    let raw = |part: &Option<String>| -> Ended<Option<Box<RawValue>>> {
        part.clone().map(RawValue::from_string).transpose().map_err(|error| Stop::error(error.to_string()))
    };
    json_text(&Told {
        product_id: &product.product_id,
        base: raw(&product.base)?,
        spec: raw(&product.spec)?,
        price: raw(&product.price)?,
        version: product.version.to_string(),
        header: header_json(&answer.header),
    })
}

/// The answer of `order product`.
pub fn product(answer: &Answer<Product>) -> String {
    let product = &answer.body;
    let part = |part: &Option<String>| part.as_deref().map_or_else(|| "-".to_owned(), shown);
    let mut table = Table::new(&[]);
    table.row(vec!["product".to_owned(), shown(&product.product_id)]);
    table.row(vec!["base".to_owned(), part(&product.base)]);
    table.row(vec!["spec".to_owned(), part(&product.spec)]);
    table.row(vec!["price".to_owned(), part(&product.price)]);
    table.row(vec!["version".to_owned(), format!("{}, {}", product.version, age(&answer.header))]);
    table.render()
}

fn kind(name: &str) -> &'static str {
    if VIEWS.iter().any(|(view, _)| *view == name) { "view" } else { "table" }
}

/// The answer of `order setup`.
pub fn set_up_json(made: &[(&str, Made)]) -> Value {
    made.iter().map(|(name, made)| json!({"name": name, "kind": kind(name), "state": made.as_str()})).collect()
}

/// The answer of `order setup`.
pub fn set_up(made: &[(&str, Made)]) -> String {
    let mut table = Table::new(&["name", "kind", "state"]);
    for (name, made) in made {
        table.row(vec![(*name).to_owned(), kind(name).to_owned(), made.as_str().to_owned()]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use trivet::orders::{Amount, Item, ListedOrder, Status};
    use trivet::types::{ClusterId, Epoch, NodeId, Role, ShardId, Timestamp};

    use super::*;
    use crate::cli::golden;

    const AT_MS: u64 = 1_795_000_000_123;

    fn answer<T>(body: T) -> Answer<T> {
        let header = Header {
            cluster: ClusterId(0xabc),
            node: NodeId(2),
            shard: ShardId(7),
            epoch: Epoch(3),
            role: Role::Follower,
            as_of: Timestamp::from_millis(AT_MS),
            age: Some(Duration::from_micros(12_300)),
            degraded: false,
        };
        Answer { header, body }
    }

    fn found() -> Found {
        let step = |from, to, at_ms, note: &str| Step {
            from,
            to,
            at_ms,
            who: "till".into(),
            note: note.into(),
            request_id: format!("r-{at_ms}"),
        };
        let order = Order {
            order_id: "o-9z3k".into(),
            business_key: "cart-17".into(),
            user_id: "42".into(),
            status: Status::Paid,
            amount: Amount::parse("12.50").expect("an amount"),
            items: vec![
                Item { product_id: "p-1".into(), quantity: 2, price: Amount::parse("6.25").ok() },
                Item { product_id: "p\n2".into(), quantity: 1, price: None },
            ],
            created_ms: AT_MS,
            updated_ms: AT_MS + 5_000,
            trace: vec![
                step(None, Status::AwaitingPayment, AT_MS, ""),
                step(Some(Status::AwaitingPayment), Status::Paid, AT_MS + 5_000, "in cash"),
            ],
        };
        Found { order, version: Timestamp::from_millis(AT_MS + 5_000), archived: false }
    }

    #[test]
    fn orders_look_like_this() {
        let found = found();
        let step = found.order.trace[1].clone();
        let archived = Found { archived: true, ..found.clone() };
        let mut said = String::new();
        let mut say = |text: &str| {
            said.push_str(text.trim_end());
            said.push_str("\n\n");
        };
        say(&order(&answer(found.clone())));
        say(&trace(&found.order));
        say(&order_line(&archived));
        say(&found_json(&answer(archived)).expect("JSON"));
        say(&created_json(&answer(Created { found: found.clone(), duplicate: true })).expect("JSON"));
        say(&moved_json(&answer(Moved { found: found.clone(), step, repeated: false })).expect("JSON"));

        let one = ListedOrder { order: Order { trace: vec![], ..found.order }, version: found.version };
        let page = answer(Listed { orders: vec![one.clone(), one], page_token: None, unreadable: 0 });
        say(&listed(&page, true));
        say(&listed(&page, false));
        say(&listed_json(&page).expect("JSON"));
        say(&age(&Header { age: None, ..page.header }));

        let some = UserStats {
            user_id: "42".into(),
            orders: 3,
            spent: "37.50".into(),
            first_ms: Some(AT_MS),
            last_ms: None,
            version: Some(found.version),
        };
        say(&stats(&answer(some.clone())));
        say(&stats_json(&answer(some)).to_string());
        let product_of = Product {
            product_id: "p-1".into(),
            base: Some(r#"{"name":"Tea"}"#.into()),
            spec: None,
            price: Some(r#"{"amount":4.10}"#.into()),
            version: found.version,
        };
        say(&product(&answer(product_of.clone())));
        say(&product_json(&answer(product_of)).expect("JSON"));

        let ids = vec!["o-1".to_owned(), "o-2".to_owned()];
        let done = Archived { examined: 9, order_ids: ids, resumed: 1, changed: 2, unreadable: 3, page_token: None };
        say(&super::archived(&done, false));
        say(&archived_json(&done, false).to_string());
        let part = Archived { page_token: Some("x".into()), ..Archived::default() };
        say(&super::archived(&part, true));
        let made = [("orders", Made::Created), ("order_keys", Made::Present), ("orders_by_user", Made::Missing)];
        say(&set_up(&made));
        say(&set_up_json(&made).to_string());
        golden::check("orders", &said);
    }
}
