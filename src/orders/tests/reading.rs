//! Reading: by id, by user page by page, totals, products. The rows of views stand here as upkeep writes them.

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::orders::{ListWish, Listed, keys};
use crate::types::{ReadLevel, Reason, Request, Timestamp, Token};

/// Rows of the view `orders_by_user`: `{USER}:ORDER/ID`, newest first, without traces.
fn fill_view(store: &Store, user: &str, statuses: &[Status]) {
    store.direct(|tables| {
        for (status, number) in statuses.iter().zip(0_u64..) {
            let created_ms = NOW_MS + number;
            let order = serde_json::json!({
                "order_id": format!("o-{number}"), "business_key": format!("cart-{number}"), "user_id": user,
                "status": status, "amount": 1.5, "items": [], "created_ms": created_ms, "updated_ms": created_ms,
            });
            let key = format!("{{{}}}:{:016x}/o-{number}", String::from_utf8_lossy(&keys::view_tag(user)), !created_ms);
            tables.put("orders_by_user", key, order.to_string());
        }
    });
}

fn wish(user: &str, page_size: u32) -> ListWish {
    ListWish { user_id: user.to_owned(), page_size, ..ListWish::default() }
}

fn ids(listed: &Listed) -> Vec<&str> {
    listed.orders.iter().map(|listed| listed.order.order_id.as_str()).collect()
}

/// All pages of a list.
async fn all(store: &Store, mut wish: ListWish) -> (Vec<String>, usize) {
    let (mut found, mut pages) = (Vec::new(), 0);
    loop {
        let page = store.orders.list(&wish).await.expect("a page").body;
        assert!(page.orders.len() <= wish.page_size as usize);
        found.extend(ids(&page).into_iter().map(str::to_owned));
        pages += 1;
        wish.page_token = page.page_token;
        if wish.page_token.is_none() {
            return (found, pages);
        }
    }
}

#[tokio::test]
async fn a_users_orders_are_listed_newest_first_page_by_page() {
    let store = Store::start().await;
    fill_view(&store, "4{2}/ü", &[Status::Paid; 7]);
    fill_view(&store, "43", &[Status::Paid; 2]);
    let (found, pages) = all(&store, wish("4{2}/ü", 3)).await;
    assert_eq!(found, ["o-6", "o-5", "o-4", "o-3", "o-2", "o-1", "o-0"]);
    assert_eq!(pages, 3);
    assert_eq!(all(&store, wish("43", 2)).await, (vec!["o-1".into(), "o-0".into()], 1));
    assert_eq!(all(&store, wish("nobody", 2)).await, (vec![], 1));
}

#[tokio::test]
async fn a_filter_passes_over_the_others_and_loses_nothing() {
    let store = Store::start().await;
    let statuses: Vec<Status> =
        (0..100).map(|at| if at % 10 == 0 { Status::Refunding } else { Status::Paid }).collect();
    fill_view(&store, "42", &statuses);
    let expected: Vec<String> = (0..10).rev().map(|at| format!("o-{}", at * 10)).collect();
    for page_size in [1, 2, 3, 10, 50] {
        let filtered = ListWish { statuses: vec![Status::Refunding, Status::Refunded], ..wish("42", page_size) };
        assert_eq!(all(&store, filtered).await.0, expected, "pages of {page_size}");
    }
}

#[tokio::test]
async fn a_page_ends_though_nothing_is_found() {
    let store = Store::start().await;
    fill_view(&store, "42", &[Status::Paid; 100]);
    let filtered = ListWish { statuses: vec![Status::Cancelled], ..wish("42", 1) };
    let page = store.orders.list(&filtered).await.expect("a page").body;
    assert!(page.orders.is_empty() && page.page_token.is_some(), "short, and not the last");
    assert_eq!(all(&store, filtered).await, (vec![], 100_usize.div_ceil(32)));
}

#[tokio::test]
async fn a_token_of_another_question_is_refused() {
    let store = Store::start().await;
    fill_view(&store, "42", &[Status::Paid; 5]);
    fill_view(&store, "43", &[Status::Paid; 5]);
    let token = store.orders.list(&wish("42", 2)).await.expect("a page").body.page_token.expect("there is more");
    let with = |wish: ListWish| ListWish { page_token: Some(token.clone()), ..wish };
    let next = store.orders.list(&with(wish("42", 3))).await.expect("the next page, of another size").body;
    assert_eq!(ids(&next), ["o-2", "o-1", "o-0"]);
    let filtered = ListWish { statuses: vec![Status::Paid], ..wish("42", 2) };
    for other in [wish("43", 2), filtered] {
        refused(store.orders.list(&with(other)).await, Reason::InvalidCursor);
    }
    for altered in [token.slice(1..), Bytes::from_static(b"x"), [&token[..], b"x"].concat().into()] {
        let wish = ListWish { page_token: Some(altered), ..wish("42", 2) };
        refused(store.orders.list(&wish).await, Reason::InvalidCursor);
    }
}

#[tokio::test]
async fn rows_that_are_no_orders_are_counted_and_left_out() {
    let store = Store::start().await;
    fill_view(&store, "42", &[Status::Paid; 2]);
    store.direct(|tables| tables.put("orders_by_user", "{42}:0/broken", "{\"order_id\":"));
    let page = store.orders.list(&wish("42", 10)).await.expect("a page").body;
    assert_eq!((ids(&page), page.unreadable), (vec!["o-1", "o-0"], 1));
    refused(store.orders.list(&wish("", 1)).await, Reason::InvalidRequest);
}

#[tokio::test]
async fn freshness_goes_on_to_the_view() {
    let store = Store::start().await;
    let levels = [
        ReadLevel::Linearizable,
        ReadLevel::AtLeast(Token { timestamp: Timestamp(7) }),
        ReadLevel::MaxAge(Duration::from_secs(2)),
        ReadLevel::Any,
    ];
    for level in levels {
        store.orders.list(&ListWish { level, ..wish("42", 1) }).await.expect("a page");
        store.orders.user_stats("42", level).await.expect("totals");
    }
    let seen = store.node.seen().into_iter().map(|seen| match seen.request {
        Request::Scan(scan) => ("scan", seen.table, scan.level),
        Request::Read(read) => ("read", seen.table, read.level),
        other => panic!("{other:?}"),
    });
    let expected = levels
        .into_iter()
        .flat_map(|level| [("scan", "orders_by_user".to_owned(), level), ("read", "user_stats".to_owned(), level)]);
    assert_eq!(seen.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
}

#[tokio::test]
async fn totals_are_exact_and_nobody_has_none() {
    let store = Store::start().await;
    let row = r#"{"user_id":"a/b","orders":3,"spent":9007199254740993.50,"first":17,"last":19}"#;
    store.direct(|tables| tables.put("user_stats", keys::view_row("a/b"), row));
    let stats = store.orders.user_stats("a/b", ReadLevel::Any).await.expect("totals").body;
    assert_eq!((stats.orders, stats.spent.as_str()), (3, "9007199254740993.50"));
    assert_eq!((stats.first_ms, stats.last_ms), (Some(17), Some(19)));
    let none = store.orders.user_stats("c", ReadLevel::Any).await.expect("totals").body;
    assert_eq!((none.orders, none.spent.as_str(), none.version), (0, "0.00", None));
    store.direct(|tables| tables.put("user_stats", "{c}", "{}"));
    refused(store.orders.user_stats("c", ReadLevel::Any).await, Reason::PreconditionFailed);
}

#[tokio::test]
async fn a_product_has_the_parts_that_were_written() {
    let store = Store::start().await;
    let row = r#"{"base":{"name":"Tea"},"price":{"amount":4.10}}"#;
    store.direct(|tables| tables.put("products", "{p-1}", row));
    let product = store.orders.product("p-1", ReadLevel::Any).await.expect("found").body;
    assert_eq!(product.base.as_deref(), Some(r#"{"name":"Tea"}"#));
    assert_eq!((product.spec, product.price.as_deref()), (None, Some(r#"{"amount":4.10}"#)));
    refused(store.orders.product("p-2", ReadLevel::Any).await, Reason::UnknownDocument);
    refused(store.orders.product("", ReadLevel::Any).await, Reason::InvalidRequest);
}

#[tokio::test]
async fn an_order_that_is_nowhere_is_said_to_be() {
    let store = Store::start().await;
    refused(store.orders.get("o-1", ReadLevel::Linearizable).await, Reason::UnknownDocument);
    refused(store.orders.get("{o-1}/archived", ReadLevel::Any).await, Reason::InvalidRequest);
}
