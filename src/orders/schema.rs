//! The tables and views that orders are made of, and the one function that creates them.
//!
//! The definitions of the views are texts, as anybody would write them for `trivet view create`. They read documents by
//! the names that `document` writes, and pass over the fences of archived orders, whose keys begin with a brace.

use crate::client::{Admin, Client};
use crate::types::{Error, Partitioning, Reason, Result, TableDescriptor};
use crate::wire::admin::{NewTable, NewView};

/// Orders that are not archived, by order id.
pub const ORDERS: &str = "orders";
/// Business keys and request ids that were used.
pub const ORDER_KEYS: &str = "order_keys";
/// Orders that were closed long ago, by order id.
pub const ORDERS_ARCHIVE: &str = "orders_archive";
/// What products are.
pub const PRODUCT_BASE: &str = "product_base";
/// What products are like.
pub const PRODUCT_SPEC: &str = "product_spec";
/// What products cost.
pub const PRODUCT_PRICE: &str = "product_price";
/// All tables.
pub const TABLES: [&str; 6] = [ORDERS, ORDER_KEYS, ORDERS_ARCHIVE, PRODUCT_BASE, PRODUCT_SPEC, PRODUCT_PRICE];

/// Orders by their user, newest first.
pub const ORDERS_BY_USER: &str = "orders_by_user";
/// What the orders of each user come to.
pub const USER_STATS: &str = "user_stats";
/// Products, each with all its parts.
pub const PRODUCTS: &str = "products";

/// The views and their definitions.
pub const VIEWS: [(&str, &str); 3] = [
    (
        ORDERS_BY_USER,
        r#"name = "orders_by_user"
kind = "rekeyed"
shards = 8

[[sources]]
table = "orders"
where = "!key.startsWith('{')"
partition_by = "user_id"
order_by = ["-created_ms"]
include = ["order_id", "business_key", "user_id", "status", "amount", "items", "created_ms", "updated_ms"]
"#,
    ),
    (
        USER_STATS,
        r#"name = "user_stats"
kind = "aggregate"

[[sources]]
table = "orders"
where = "!key.startsWith('{') && doc.status != 'cancelled' && doc.status != 'refunded'"
partition_by = "user_id"

[aggregates]
orders = "count"
spent = "sum(amount)"
first = "min(created_ms)"
last = "max(created_ms)"
"#,
    ),
    (
        PRODUCTS,
        r#"name = "products"
kind = "merged"

[[sources]]
table = "product_base"
partition_by = "product_id"
as = "base"

[[sources]]
table = "product_spec"
partition_by = "product_id"
as = "spec"

[[sources]]
table = "product_price"
partition_by = "product_id"
as = "price"
"#,
    ),
];

/// How to set up.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SetUp {
    /// Shards of each table; 0: one for each node.
    pub shards: u32,
    /// Tell what would be created, and create nothing.
    pub dry_run: bool,
}

/// What became of one table or view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// It was created.
    Created,
    /// It was there.
    Present,
    /// It would be created.
    Missing,
}

impl Made {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Made::Created => "created",
            Made::Present => "present",
            Made::Missing => "missing",
        }
    }
}

/// Creates the tables and views that are not there; what is there stays as it is. Repeat it when it was cut short.
///
/// Errors: `TABLE_EXISTS` when something else has one of the names, and those of creating tables.
pub async fn set_up(client: &Client, wish: &SetUp) -> Result<Vec<(&'static str, Made)>> {
    let mut made = Vec::new();
    for name in TABLES {
        made.push((name, table(client, name, wish).await?));
    }
    for (name, definition) in VIEWS {
        made.push((name, view(client, name, definition, wish).await?));
    }
    Ok(made)
}

async fn table(client: &Client, name: &'static str, wish: &SetUp) -> Result<Made> {
    let admin = client.admin();
    let fits = |table: &TableDescriptor| table.partitioning == Partitioning::Hash && table.view.is_none();
    if let Some(made) = there(&admin, name, "hash table", fits, wish).await? {
        return Ok(made);
    }
    made(admin.create_table(NewTable::hash(name, wish.shards)).await)
}

/// Creates one view by its definition.
async fn view(client: &Client, name: &'static str, definition: &str, wish: &SetUp) -> Result<Made> {
    let admin = client.admin();
    if let Some(made) = there(&admin, name, "view", |table| table.view.is_some(), wish).await? {
        return Ok(made);
    }
    made(admin.create_view(NewView::of(definition)).await)
}

/// What is there under a name, if it fits; none if nothing is, and it is to be created.
async fn there(
    admin: &Admin,
    name: &str,
    wanted: &str,
    fits: impl FnOnce(&TableDescriptor) -> bool,
    wish: &SetUp,
) -> Result<Option<Made>> {
    match admin.table(name).await {
        Ok(details) if fits(&details.table) => Ok(Some(Made::Present)),
        Ok(_) => {
            let text = format!("{name} is there and is no {wanted}, which orders need under this name: drop it first");
            Err(Error::new(Reason::TableExists, text))
        }
        Err(error) if error.reason == Reason::UnknownTable => Ok(wish.dry_run.then_some(Made::Missing)),
        Err(error) => Err(error),
    }
}

fn made<T>(created: Result<T>) -> Result<Made> {
    match created {
        Ok(_) => Ok(Made::Created),
        // Somebody else sets up as well.
        Err(error) if error.reason == Reason::TableExists => Ok(Made::Present),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_name_themselves_and_tables_that_there_are() {
        for (name, definition) in VIEWS {
            assert!(definition.starts_with(&format!("name = \"{name}\"\n")), "{definition}");
            let sources: Vec<&str> = definition.lines().filter_map(|line| line.strip_prefix("table = ")).collect();
            assert!(!sources.is_empty());
            for source in sources {
                assert!(TABLES.contains(&source.trim_matches('"')), "{source}");
            }
        }
    }
}
