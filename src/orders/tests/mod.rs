//! Orders on a node in memory: every promise, with the calls cut short at every write.

mod archiving;
mod creating;
mod moving;
mod reading;
mod store;

use store::{Fault, NOW_MS, Store, refused};

use super::{Amount, Created, Item, Move, Moved, NewOrder, Status, Submission, TransitionWish};
use crate::types::Result;

/// A submission under this request id and business key.
fn new_order(request_id: &str, business_key: &str) -> NewOrder {
    NewOrder {
        request_id: request_id.to_owned(),
        submission: Submission {
            business_key: business_key.to_owned(),
            user_id: "42".to_owned(),
            amount: Amount::parse("12.50").expect("an amount"),
            items: vec![Item { product_id: "p-1".into(), quantity: 2, price: None }],
            created_ms: None,
        },
    }
}

/// The same with another content.
fn other_content(request_id: &str, business_key: &str) -> NewOrder {
    let mut new = new_order(request_id, business_key);
    new.submission.amount = Amount::parse("99").expect("an amount");
    new
}

fn step(order_id: &str, to: Status, request_id: &str) -> TransitionWish {
    let step = Move { to, who: "shop".into(), note: "a test".into(), request_id: request_id.to_owned() };
    TransitionWish { order_id: order_id.to_owned(), step, if_version: None }
}

impl Store {
    async fn create(&self, new: &NewOrder) -> Result<Created> {
        self.orders.create(new).await.map(|answer| answer.body)
    }

    async fn transition(&self, wish: &TransitionWish) -> Result<Moved> {
        self.orders.transition(wish).await.map(|answer| answer.body)
    }

    /// An order that came this way; its id.
    async fn order_that_went(&self, business_key: &str, way: &[Status]) -> String {
        let new = new_order(&format!("create {business_key}"), business_key);
        let id = self.create(&new).await.expect("created").found.order.order_id;
        for (to, number) in way.iter().zip(1..) {
            let wish = step(&id, *to, &format!("{business_key} {number}"));
            self.transition(&wish).await.expect("allowed");
        }
        id
    }
}
