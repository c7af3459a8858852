//! Moving closed orders away: which, a crash at each write, runs that overlap, and what is found afterwards.

use std::time::Duration;

use super::*;
use crate::orders::{ArchiveWish, Archived, keys};
use crate::types::{ReadLevel, Reason};

const DAY_MS: u64 = 86_400_000;

fn older_than_a_day() -> ArchiveWish {
    ArchiveWish { older_than: Duration::from_millis(DAY_MS), ..ArchiveWish::default() }
}

async fn archive(store: &Store, wish: &ArchiveWish) -> Archived {
    store.orders.archive(wish).await.expect("archived").body
}

#[tokio::test]
async fn closed_orders_that_are_old_move_and_are_still_found() {
    let store = Store::start().await;
    let old = store.order_that_went("old", &[Status::Cancelled]).await;
    let open = store.order_that_went("open", &[Status::Paid]).await;
    store.pass_ms(DAY_MS);
    let young = store.order_that_went("young", &[Status::Cancelled]).await;
    let before = store.orders.get(&old, ReadLevel::Linearizable).await.expect("found").body;

    let planned = archive(&store, &ArchiveWish { dry_run: true, ..older_than_a_day() }).await;
    assert_eq!((planned.order_ids.as_slice(), planned.examined), (&[old.clone()][..], 3));
    assert!(store.direct(|tables| tables.order(&old)).is_some(), "a dry run moves nothing");

    let done = archive(&store, &older_than_a_day()).await;
    assert_eq!((done.order_ids.as_slice(), done.resumed, done.page_token), (&[old.clone()][..], 0, None));
    let found = store.orders.get(&old, ReadLevel::Any).await.expect("found").body;
    assert_eq!((&found.order, found.version, found.archived), (&before.order, before.version, true));
    for id in [&open, &young] {
        assert!(!store.orders.get(id, ReadLevel::Any).await.expect("found").body.archived);
    }
    assert_eq!(archive(&store, &older_than_a_day()).await.order_ids, Vec::<String>::new());
}

#[tokio::test]
async fn an_archived_order_does_not_change_and_is_not_made_again() {
    let store = Store::start().await;
    let id = store.order_that_went("cart-1", &[Status::Paid, Status::Shipped, Status::Completed]).await;
    store.pass_ms(DAY_MS);
    archive(&store, &older_than_a_day()).await;

    let message = refused(store.transition(&step(&id, Status::Refunding, "r")).await, Reason::PreconditionFailed);
    assert!(message.contains("archived as completed"), "{message}");
    let repeat = store.transition(&step(&id, Status::Completed, "cart-1 3")).await.expect("a repeat of its last step");
    assert!(repeat.repeated && repeat.found.archived);

    for wait_ms in [0, 2 * DAY_MS] {
        store.pass_ms(wait_ms);
        let again = store.create(&new_order("another", "cart-1")).await.expect("an answer");
        assert!(again.duplicate && again.found.archived);
        assert_eq!(again.found.order.order_id, id);
    }
    assert_eq!(store.direct(|tables| tables.keys("orders")), Vec::<String>::new(), "not even the fence is left");
}

/// Both writes, each lost and each unanswered.
#[tokio::test]
async fn whatever_write_a_crash_comes_at_the_next_run_finishes_it() {
    for at in 0..2 {
        for fault in [Fault::Lost, Fault::Unanswered] {
            let case = format!("write {at} {fault:?}");
            let store = Store::start().await;
            let id = store.order_that_went("cart-1", &[Status::Cancelled]).await;
            store.pass_ms(DAY_MS);
            store.fail(at, fault);
            store.orders.archive(&older_than_a_day()).await.expect_err(&case);
            let found = store.orders.get(&id, ReadLevel::Any).await.expect(&case).body;
            assert_eq!(found.archived, (at, fault) == (1, Fault::Unanswered), "{case}");

            let copied = (at, fault) == (0, Fault::Unanswered) || (at, fault) == (1, Fault::Lost);
            let done = archive(&store, &older_than_a_day()).await;
            assert_eq!(done.resumed, u32::from(copied), "{case}");
            let again = store.orders.get(&id, ReadLevel::Any).await.expect(&case).body;
            assert_eq!((again.order, again.archived), (found.order, true), "{case}");
        }
    }
}

#[tokio::test]
async fn a_copy_of_an_order_that_went_on_is_replaced() {
    let store = Store::start().await;
    let id = store.order_that_went("cart-1", &[Status::Paid, Status::Shipped, Status::Completed]).await;
    store.pass_ms(DAY_MS);
    store.fail(1, Fault::Lost);
    store.orders.archive(&older_than_a_day()).await.expect_err("copied, not deleted");
    for (to, request) in [(Status::Refunding, "ask"), (Status::Refunded, "grant")] {
        let moved = store.transition(&step(&id, to, request)).await.expect("the order itself wins over its copy");
        assert!(!moved.found.archived);
    }
    store.pass_ms(DAY_MS);
    let done = archive(&store, &older_than_a_day()).await;
    assert_eq!((done.order_ids.len(), done.resumed), (1, 0));
    let found = store.orders.get(&id, ReadLevel::Any).await.expect("found").body;
    assert_eq!((found.order.status, found.order.trace.len()), (Status::Refunded, 6));
}

#[tokio::test]
async fn an_order_that_changes_under_a_run_stays() {
    for at in 0..2 {
        let store = Store::start().await;
        let id = store.order_that_went("cart-1", &[Status::Paid, Status::Shipped, Status::Completed]).await;
        store.pass_ms(DAY_MS);
        let changing = id.clone();
        store.before_write(at, move |tables| {
            let mut order = tables.order(&changing).expect("there");
            order.status = Status::Refunding;
            tables.put("orders", changing.clone(), serde_json::to_vec(&order).expect("written"));
        });
        let done = archive(&store, &older_than_a_day()).await;
        assert_eq!((done.changed, done.order_ids.len()), (1, 0), "before write {at}");
        let found = store.orders.get(&id, ReadLevel::Any).await.expect("found").body;
        assert_eq!((found.order.status, found.archived), (Status::Refunding, false));
    }
}

/// A run that stood still after reading an order, while it went on and another run moved it.
#[tokio::test]
async fn a_run_that_lags_behind_does_not_put_old_content_back() {
    let store = Store::start().await;
    let id = store.order_that_went("cart-1", &[Status::Cancelled]).await;
    store.pass_ms(DAY_MS);
    let key = id.clone();
    store.before_write(0, move |tables| {
        let value = tables.get("orders", key.as_bytes()).expect("there");
        let order: serde_json::Value = serde_json::from_slice(&value).expect("JSON");
        let newer = serde_json::json!({"order": order, "version": u64::MAX.to_string(), "archived_ms": 1});
        tables.put("orders_archive", key.clone(), newer.to_string());
        tables.delete("orders", key.as_bytes());
    });
    let done = archive(&store, &older_than_a_day()).await;
    assert_eq!((done.changed, done.order_ids.len()), (1, 0));
    assert_eq!(store.orders.get(&id, ReadLevel::Any).await.expect("found").body.version.0, u64::MAX);
}

#[tokio::test]
async fn runs_that_overlap_move_every_order_once() {
    let store = Store::start().await;
    let mut ids = Vec::new();
    for number in 0..10 {
        ids.push(store.order_that_went(&format!("cart-{number}"), &[Status::Cancelled]).await);
    }
    store.pass_ms(DAY_MS);
    let wish = older_than_a_day();
    let (one, other) = futures::join!(archive(&store, &wish), archive(&store, &wish));
    let mut moved = [one.order_ids, other.order_ids].concat();
    moved.sort_unstable();
    ids.sort_unstable();
    assert_eq!(moved, ids);
    assert_eq!(store.direct(|tables| tables.keys("orders_archive")), ids);
}

#[tokio::test]
async fn a_run_goes_on_where_the_call_before_ended() {
    let store = Store::start().await;
    for number in 0..7 {
        store.order_that_went(&format!("cart-{number}"), &[Status::Cancelled]).await;
        store.order_that_went(&format!("open-{number}"), &[]).await;
    }
    store.direct(|tables| tables.put("orders", "o-zzz", "no order at all"));
    store.pass_ms(DAY_MS);
    for dry_run in [true, false] {
        let mut wish = ArchiveWish { limit: 2, dry_run, ..older_than_a_day() };
        let (mut moved, mut examined, mut unreadable) = (Vec::new(), 0, 0);
        loop {
            let done = archive(&store, &wish).await;
            assert!(done.order_ids.len() <= 2);
            moved.extend(done.order_ids);
            examined += done.examined;
            unreadable += done.unreadable;
            wish.page_token = done.page_token;
            if wish.page_token.is_none() {
                break;
            }
        }
        moved.sort_unstable();
        moved.dedup();
        assert_eq!((moved.len(), examined, unreadable), (7, 15, 1), "dry run: {dry_run}");
    }
    assert!(store.direct(|tables| tables.get("orders", b"o-zzz")).is_some(), "left alone");

    let wish = ArchiveWish { limit: 2, ..older_than_a_day() };
    store.order_that_went("more", &[Status::Cancelled]).await;
    let foreign = Some(keys::view_tag("foreign"));
    refused(store.orders.archive(&ArchiveWish { page_token: foreign, ..wish }).await, Reason::InvalidCursor);
}
