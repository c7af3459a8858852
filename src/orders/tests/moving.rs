//! Steps: allowed and forbidden ones, repeats, races, and a model that no sequence of calls may leave.

use proptest::prelude::*;

use super::*;
use crate::orders::{EDGES, Order, REFUNDS_MAX, Way};
use crate::types::{ReadLevel, Reason, Timestamp};

#[tokio::test]
async fn an_order_goes_its_way_and_its_trace_tells() {
    let store = Store::start().await;
    let id = store.order_that_went("cart-1", &[]).await;
    for (to, number) in
        [Status::Paid, Status::Shipped, Status::Refunding, Status::Shipped, Status::Completed].into_iter().zip(1..)
    {
        store.pass_ms(1_000);
        let moved = store.transition(&step(&id, to, &format!("r-{number}"))).await.expect("allowed");
        assert_eq!((moved.found.order.status, moved.step.to, moved.repeated), (to, to, false));
        assert_eq!(moved.found.order.updated_ms, NOW_MS + number * 1_000);
    }
    let found = store.orders.get(&id, ReadLevel::Linearizable).await.expect("found").body;
    let way: Vec<&str> = found.order.trace.iter().map(|step| step.to.as_str()).collect();
    assert_eq!(way, ["awaiting_payment", "paid", "shipped", "refunding", "shipped", "completed"]);
    let last = found.order.trace.last().expect("steps");
    assert_eq!((last.who.as_str(), last.note.as_str(), last.request_id.as_str()), ("shop", "a test", "r-5"));
}

#[tokio::test]
async fn forbidden_steps_are_refused_with_those_allowed() {
    let store = Store::start().await;
    let id = store.order_that_went("cart-1", &[Status::Paid, Status::Shipped, Status::Refunding]).await;
    let before = store.direct(|tables| tables.order(&id));
    for to in [Status::AwaitingPayment, Status::Paid, Status::Completed, Status::Cancelled, Status::Refunding] {
        let message = refused(store.transition(&step(&id, to, "r")).await, Reason::PreconditionFailed);
        assert!(message.ends_with("from refunding it can go to refunded, shipped"), "{message}");
    }
    assert_eq!(store.direct(|tables| tables.order(&id)), before);
}

#[tokio::test]
async fn a_repeat_is_answered_and_makes_no_second_step() {
    let store = Store::start().await;
    let id = store.order_that_went("cart-1", &[]).await;
    let first = store.transition(&step(&id, Status::Paid, "pay")).await.expect("allowed");
    let writes = store.writes();
    let again = store.transition(&step(&id, Status::Paid, "pay")).await.expect("a repeat");
    assert_eq!((again.step, again.found, again.repeated), (first.step.clone(), first.found, true));
    assert_eq!(store.writes(), writes);

    store.transition(&step(&id, Status::Shipped, "ship")).await.expect("allowed");
    let later = store.transition(&step(&id, Status::Paid, "pay")).await.expect("a late repeat");
    assert_eq!((later.step, later.found.order.status), (first.step, Status::Shipped));

    refused(store.transition(&step(&id, Status::Completed, "pay")).await, Reason::RequestMismatch);
    let mut by_another = step(&id, Status::Paid, "pay");
    by_another.step.who = "thief".into();
    refused(store.transition(&by_another).await, Reason::RequestMismatch);
    refused(store.transition(&step(&id, Status::Completed, "create cart-1")).await, Reason::RequestMismatch);
}

#[tokio::test]
async fn an_answer_that_was_lost_is_found_again() {
    for fault in [Fault::Lost, Fault::Unanswered] {
        let store = Store::start().await;
        let id = store.order_that_went("cart-1", &[]).await;
        store.fail(0, fault);
        store.transition(&step(&id, Status::Paid, "pay")).await.expect_err("cut short");
        let moved = store.transition(&step(&id, Status::Paid, "pay")).await.expect("finished");
        assert_eq!(moved.repeated, fault == Fault::Unanswered);
        assert_eq!(moved.found.order.trace.len(), 2, "{fault:?}");
    }
}

#[tokio::test]
async fn a_version_can_be_asked_for() {
    let store = Store::start().await;
    let created = store.create(&new_order("r-1", "cart-1")).await.expect("created");
    let id = created.found.order.order_id;
    let wish = |version| TransitionWish { if_version: Some(version), ..step(&id, Status::Paid, "pay") };
    let message = refused(store.transition(&wish(Timestamp(1))).await, Reason::PreconditionFailed);
    assert!(message.contains(&format!("version {}", created.found.version)), "{message}");
    store.transition(&wish(created.found.version)).await.expect("the version it has");
    store.transition(&wish(created.found.version)).await.expect("a repeat, though the version has changed");
}

#[tokio::test]
async fn steps_that_race_are_taken_one_by_one() {
    let store = Store::start().await;
    let id = store.order_that_went("cart-1", &[]).await;
    let intruding = id.clone();
    store.before_write(0, move |tables| {
        let mut order = tables.order(&intruding).expect("there");
        order.items.clear();
        tables.put("orders", intruding.clone(), serde_json::to_vec(&order).expect("written"));
    });
    let moved = store.transition(&step(&id, Status::Paid, "pay")).await.expect("tried again");
    assert!(moved.found.order.items.is_empty(), "it stands on what the other wrote");

    let rivals = ["a", "b", "c", "d"].map(|name| step(&id, Status::Shipped, name));
    let answers = futures::future::join_all(rivals.iter().map(|wish| store.transition(wish))).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    for answer in answers.into_iter().filter(|answer| answer.is_err()) {
        refused(answer, Reason::PreconditionFailed);
    }
}

#[tokio::test]
async fn nonsense_is_refused() {
    let store = Store::start().await;
    refused(store.transition(&step("o-none", Status::Paid, "r")).await, Reason::UnknownDocument);
    for id in ["", "{o-1}", "o 1"] {
        refused(store.transition(&step(id, Status::Paid, "r")).await, Reason::InvalidRequest);
    }
    refused(store.transition(&step("o-1", Status::Paid, "")).await, Reason::InvalidRequest);
    let mut long = step("o-1", Status::Paid, "r");
    long.step.note = "n".repeat(1_025);
    refused(store.transition(&long).await, Reason::InvalidRequest);
    store.direct(|tables| tables.put("orders", "o-1", "not an order, and it holds a secret"));
    let message = refused(store.transition(&step("o-1", Status::Paid, "r")).await, Reason::PreconditionFailed);
    assert!(message.contains("table orders") && !message.contains("secret"), "{message}");
}

/// That the trace begins as every order does, that each step follows on the one before along an edge, and that it ends
/// where the order is.
fn check_trace(order: &Order) -> std::result::Result<(), TestCaseError> {
    let mut at = None;
    let mut origin = None;
    let mut time = 0;
    for step in &order.trace {
        prop_assert_eq!(step.from, at);
        match step.from {
            None => prop_assert_eq!(step.to, Status::AwaitingPayment),
            Some(from) => {
                let edge = EDGES.iter().find(|(start, end, _)| (*start, *end) == (from, step.to));
                let Some((_, _, way)) = edge else {
                    return Err(TestCaseError::fail(format!("a forbidden step: {step:?}")));
                };
                prop_assert!(*way != Way::Back || origin == Some(step.to), "back to where it did not come from");
                origin = (step.to == Status::Refunding).then_some(from);
            }
        }
        prop_assert!(step.at_ms >= time);
        (at, time) = (Some(step.to), step.at_ms);
    }
    prop_assert_eq!(at, Some(order.status));
    prop_assert_eq!(time, order.updated_ms);
    prop_assert!(order.trace.len() <= 2 * REFUNDS_MAX + 6);
    let mut requests: Vec<&str> = order.trace.iter().map(|step| step.request_id.as_str()).collect();
    requests.sort_unstable();
    requests.dedup();
    prop_assert_eq!(requests.len(), order.trace.len(), "a request made two steps");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is called in whatever order, repeats and failures among it: after each call the trace explains the status,
    /// and what was answered is there.
    #[test]
    fn no_sequence_of_calls_leaves_the_table(
        calls in proptest::collection::vec((0_usize..7, 0_u32..30, 0_u32..6, 0_u64..5_000), 1..60)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let store = Store::start().await;
            let id = store.order_that_went("cart-1", &[]).await;
            for (to, request, fault, pass_ms) in calls {
                store.pass_ms(pass_ms);
                match fault {
                    0 => store.fail(0, Fault::Lost),
                    1 => store.fail(0, Fault::Unanswered),
                    _ => {}
                }
                let to = Status::ALL[to];
                let answer = store.transition(&step(&id, to, &format!("r-{request}"))).await;
                let order = store.direct(|tables| tables.order(&id)).expect("there");
                check_trace(&order)?;
                if let Ok(moved) = answer {
                    prop_assert_eq!(&moved.found.order, &order);
                    prop_assert!(order.trace.contains(&moved.step));
                    prop_assert_eq!(moved.step.to, to);
                }
            }
            Ok(())
        })?;
    }
}
