//! Submitting: repeats, duplicates, other payloads, and a crash at each of the three writes.

use super::*;
use crate::orders::keys;
use crate::types::{ReadLevel, Reason};

#[tokio::test]
async fn an_order_is_made_once_however_often_it_is_submitted() {
    let store = Store::start().await;
    let first = store.create(&new_order("r-1", "cart-1")).await.expect("created");
    assert!(!first.duplicate);
    let order = &first.found.order;
    assert_eq!((order.status, order.created_ms, order.updated_ms), (Status::AwaitingPayment, NOW_MS, NOW_MS));
    assert_eq!((order.trace.len(), order.trace[0].from), (1, None));
    assert_eq!(store.direct(|tables| tables.order(&order.order_id)).as_ref(), Some(order));

    store.pass_ms(5_000);
    assert_eq!(store.create(&new_order("r-1", "cart-1")).await.expect("a repeat"), first);
    let duplicate = store.create(&new_order("r-2", "cart-1")).await.expect("a duplicate");
    assert_eq!((duplicate.duplicate, &duplicate.found), (true, &first.found));
    assert_eq!(store.direct(|tables| tables.keys("orders")).len(), 1);

    let other = store.create(&new_order("r-3", "cart-2")).await.expect("another order");
    assert_ne!(other.found.order.order_id, order.order_id);
}

#[tokio::test]
async fn every_answer_says_where_it_came_from() {
    let store = Store::start().await;
    let answer = store.orders.create(&new_order("r-1", "cart-1")).await.expect("created");
    assert_eq!(answer.header.as_of, answer.body.found.version);
    assert!(answer.header.age.is_some());
    let read = store.orders.get(&answer.body.found.order.order_id, ReadLevel::Any).await.expect("found");
    assert_eq!(read.body.version, answer.body.found.version);
}

#[tokio::test]
async fn another_payload_is_refused() {
    let store = Store::start().await;
    let id = store.create(&new_order("r-1", "cart-1")).await.expect("created").found.order.order_id;
    refused(store.create(&other_content("r-1", "cart-1")).await, Reason::RequestMismatch);
    refused(store.create(&new_order("r-1", "cart-2")).await, Reason::RequestMismatch);
    let taken = refused(store.create(&other_content("r-2", "cart-1")).await, Reason::KeyTaken);
    assert!(taken.contains(&id), "{taken}");
    assert_eq!(store.direct(|tables| tables.keys("orders")), [id]);
    assert_eq!(store.direct(|tables| tables.get("order_keys", &keys::reservation("cart-2"))), None);
}

#[tokio::test]
async fn nonsense_is_refused_before_anything_is_written() {
    let store = Store::start().await;
    let mut new = new_order("r-1", "cart-1");
    new.submission.user_id.clear();
    refused(store.create(&new).await, Reason::InvalidRequest);
    new = new_order("", "cart-1");
    refused(store.create(&new).await, Reason::InvalidRequest);
    assert_eq!(store.writes(), 0);
}

/// The three writes, each lost and each unanswered, each met again by the same request and by another.
#[tokio::test]
async fn whatever_write_a_crash_comes_at_the_next_submission_finishes_it() {
    for again in ["r-1", "r-2"] {
        for at in 0..3 {
            for fault in [Fault::Lost, Fault::Unanswered] {
                let case = format!("write {at} {fault:?}, then {again}");
                let store = Store::start().await;
                store.fail(at, fault);
                store.create(&new_order("r-1", "cart-1")).await.expect_err(&case);
                let reserved = at == 2 || (at == 1 && fault == Fault::Unanswered);
                store.pass_ms(60_000);

                let finished = store.create(&new_order(again, "cart-1")).await.expect(&case);
                assert_eq!(finished.duplicate, reserved && again == "r-2", "{case}");
                let order = finished.found.order;
                let made_ms = if reserved { NOW_MS } else { NOW_MS + 60_000 };
                assert_eq!(order.created_ms, made_ms, "{case}: what is reserved stays as it was submitted");
                let maker = if reserved { "r-1" } else { again };
                assert_eq!(order.trace[0].request_id, maker, "{case}");
                assert_eq!(store.direct(|tables| tables.keys("orders")), [order.order_id.as_str()], "{case}");
                assert_eq!(store.create(&new_order(again, "cart-1")).await.expect(&case).found.order, order, "{case}");
            }
        }
    }
}

#[tokio::test]
async fn a_crash_in_between_keeps_other_payloads_out_all_the_same() {
    let store = Store::start().await;
    store.fail(2, Fault::Lost);
    store.create(&new_order("r-1", "cart-1")).await.expect_err("cut short");
    refused(store.create(&other_content("r-1", "cart-1")).await, Reason::RequestMismatch);
    refused(store.create(&other_content("r-2", "cart-1")).await, Reason::KeyTaken);
    assert_eq!(store.direct(|tables| tables.keys("orders")).len(), 0);
}

#[tokio::test]
async fn submissions_that_race_make_one_order() {
    let store = Store::start().await;
    let submissions: Vec<NewOrder> = (0..20).map(|number| new_order(&format!("r-{number}"), "cart-1")).collect();
    let made = futures::future::join_all(submissions.iter().map(|new| store.create(new))).await;
    let made: Vec<Created> = made.into_iter().map(|created| created.expect("an answer")).collect();
    assert!(made.iter().all(|created| created.found.order == made[0].found.order));
    assert_eq!(made.iter().filter(|created| !created.duplicate).count(), 1);
}

#[tokio::test]
async fn a_resumed_order_that_has_gone_on_is_answered_as_it_is() {
    let store = Store::start().await;
    store.fail(2, Fault::Unanswered);
    store.create(&new_order("r-1", "cart-1")).await.expect_err("cut short");
    let id = store.direct(|tables| tables.keys("orders")).remove(0);
    store.transition(&step(&id, Status::Paid, "pay")).await.expect("allowed");
    let created = store.create(&new_order("r-1", "cart-1")).await.expect("a repeat");
    assert_eq!((created.found.order.status, created.duplicate), (Status::Paid, false));
}

/// A writer that stood still between its look and its write, while the order was made by another, closed and archived.
#[tokio::test]
async fn a_late_writer_does_not_bring_an_archived_order_back() {
    let store = Store::start().await;
    store.fail(2, Fault::Lost);
    store.create(&new_order("r-1", "cart-1")).await.expect_err("reserved, not written");
    // Writes of the call below: claim, reservation, and then the order.
    store.before_write(2, |tables| {
        let row = tables.keys("order_keys").into_iter().find(|key| key.starts_with("key/")).expect("reserved");
        let row = tables.get("order_keys", row.as_bytes()).expect("reserved");
        let reserved: serde_json::Value = serde_json::from_slice(&row).expect("JSON");
        let id = reserved["order_id"].as_str().expect("an id").to_owned();
        let order = serde_json::json!({
            "order_id": id, "business_key": "cart-1", "user_id": "42", "status": "cancelled", "amount": 12.5,
            "items": [], "created_ms": NOW_MS, "updated_ms": NOW_MS,
        });
        let copy = serde_json::json!({"order": order, "version": "7", "archived_ms": NOW_MS});
        tables.put("orders_archive", id.clone(), copy.to_string());
        tables.put("orders", keys::fence(&id), "{}");
    });
    let created = store.create(&new_order("r-2", "cart-1")).await.expect("an answer");
    assert!(created.duplicate && created.found.archived);
    assert_eq!((created.found.order.status, created.found.version.0), (Status::Cancelled, 7));
    assert!(store.direct(|tables| tables.order(&created.found.order.order_id)).is_none(), "it stays archived");
}

#[tokio::test]
async fn a_request_id_is_forgotten_after_a_week_and_a_business_key_never() {
    let store = Store::start().await;
    let id = store.create(&new_order("r-1", "cart-1")).await.expect("created").found.order.order_id;
    store.pass_ms(8 * 86_400_000);
    store.create(&new_order("r-1", "cart-2")).await.expect("a new use of the id");
    let duplicate = store.create(&new_order("r-9", "cart-1")).await.expect("a duplicate");
    assert_eq!((duplicate.found.order.order_id, duplicate.duplicate), (id, true));
}

#[tokio::test]
async fn who_has_no_tables_hears_how_to_get_them() {
    let store = Store::with(&["t"]).await;
    let message = refused(store.create(&new_order("r-1", "cart-1")).await, Reason::UnknownTable);
    assert!(message.ends_with("`trivet order setup` creates the tables and views of orders"), "{message}");
}
