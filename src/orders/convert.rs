//! Between the service's messages and the plain values inside. What a message cannot say rightly is refused here, with the
//! name of the field; what is out of bounds is refused by the wish itself.

use std::time::Duration;

use super::archive::{ArchiveWish, Archived};
use super::create::Created;
use super::document::{Item, Move, NewOrder, Order, Step, Submission};
use super::read::{Found, ListWish, Listed, ListedOrder, Product, ReadWish, UserStats};
use super::state::Status;
use super::transition::{Moved, TransitionWish};
use super::{Amount, ITEMS_MAX};
use crate::types::{Answer, Error, Result, Timestamp};
use crate::wire::proto::orders::v1::{self, OrderStatus};
use crate::wire::{encode_header, read_level};

/// Most statuses in a filter: all there are, and room for saying one twice.
const STATUSES_MAX: usize = 32;

impl TryFrom<v1::CreateOrderRequest> for NewOrder {
    type Error = Error;

    fn try_from(asked: v1::CreateOrderRequest) -> Result<NewOrder> {
        if asked.items.len() > ITEMS_MAX {
            let text = format!("the order has {} items, at most {ITEMS_MAX} are taken", asked.items.len());
            return Err(Error::invalid(text));
        }
        if asked.amount.is_empty() {
            return Err(Error::invalid("the amount is missing: say a decimal number such as 12.50"));
        }
        let submission = Submission {
            business_key: asked.business_key,
            user_id: asked.user_id,
            amount: Amount::parse(&asked.amount)?,
            items: asked.items.into_iter().map(item).collect::<Result<_>>()?,
            created_ms: asked.created_ms,
        };
        Ok(NewOrder { request_id: asked.request_id, submission })
    }
}

fn item(asked: v1::Item) -> Result<Item> {
    let price = Some(asked.price).filter(|price| !price.is_empty());
    let price = price.map(|price| Amount::parse(&price)).transpose()?;
    Ok(Item { product_id: asked.product_id, quantity: asked.quantity, price })
}

impl TryFrom<v1::TransitionRequest> for TransitionWish {
    type Error = Error;

    fn try_from(asked: v1::TransitionRequest) -> Result<TransitionWish> {
        let to = status("to", asked.to)?;
        let step = Move { to, who: asked.who, note: asked.note, request_id: asked.request_id };
        Ok(TransitionWish { order_id: asked.order_id, step, if_version: asked.if_version.map(Timestamp) })
    }
}

impl TryFrom<v1::ListUserOrdersRequest> for ListWish {
    type Error = Error;

    fn try_from(asked: v1::ListUserOrdersRequest) -> Result<ListWish> {
        if asked.statuses.len() > STATUSES_MAX {
            return Err(Error::invalid("the filter names more statuses than there are"));
        }
        Ok(ListWish {
            user_id: asked.user_id,
            statuses: asked.statuses.into_iter().map(|number| status("statuses", number)).collect::<Result<_>>()?,
            page_size: asked.page_size,
            page_token: Some(asked.page_token).filter(|token| !token.is_empty()),
            level: read_level(asked.level)?,
        })
    }
}

impl TryFrom<v1::ArchiveRequest> for ArchiveWish {
    type Error = Error;

    fn try_from(asked: v1::ArchiveRequest) -> Result<ArchiveWish> {
        Ok(ArchiveWish {
            older_than: Duration::from_millis(asked.older_than_ms),
            dry_run: asked.dry_run,
            limit: asked.limit,
            page_token: Some(asked.page_token).filter(|token| !token.is_empty()),
        })
    }
}

macro_rules! read_wish {
    ($($message:ident: $id:ident;)*) => {$(
        impl TryFrom<v1::$message> for ReadWish {
            type Error = Error;

            fn try_from(asked: v1::$message) -> Result<ReadWish> {
                Ok(ReadWish { id: asked.$id, level: read_level(asked.level)? })
            }
        }
    )*};
}

read_wish! {
    GetOrderRequest: order_id;
    UserStatsRequest: user_id;
    GetProductRequest: product_id;
}

fn status(field: &str, number: i32) -> Result<Status> {
    let known = OrderStatus::try_from(number).ok().and_then(|status| match status {
        OrderStatus::Unspecified => None,
        OrderStatus::AwaitingPayment => Some(Status::AwaitingPayment),
        OrderStatus::Paid => Some(Status::Paid),
        OrderStatus::Shipped => Some(Status::Shipped),
        OrderStatus::Completed => Some(Status::Completed),
        OrderStatus::Cancelled => Some(Status::Cancelled),
        OrderStatus::Refunding => Some(Status::Refunding),
        OrderStatus::Refunded => Some(Status::Refunded),
    });
    known.ok_or_else(|| Error::invalid(format!("{field} is no status that this server knows: {number}")))
}

fn status_number(status: Status) -> i32 {
    let status = match status {
        Status::AwaitingPayment => OrderStatus::AwaitingPayment,
        Status::Paid => OrderStatus::Paid,
        Status::Shipped => OrderStatus::Shipped,
        Status::Completed => OrderStatus::Completed,
        Status::Cancelled => OrderStatus::Cancelled,
        Status::Refunding => OrderStatus::Refunding,
        Status::Refunded => OrderStatus::Refunded,
    };
    status.into()
}

impl From<Step> for v1::Step {
    fn from(step: Step) -> v1::Step {
        v1::Step {
            from: step.from.map_or(OrderStatus::Unspecified.into(), status_number),
            to: status_number(step.to),
            at_ms: step.at_ms,
            who: step.who,
            note: step.note,
            request_id: step.request_id,
        }
    }
}

impl From<Order> for v1::Order {
    fn from(order: Order) -> v1::Order {
        let items = order.items.into_iter().map(|item| v1::Item {
            product_id: item.product_id,
            quantity: item.quantity,
            price: item.price.map(|price| price.to_string()).unwrap_or_default(),
        });
        v1::Order {
            order_id: order.order_id,
            business_key: order.business_key,
            user_id: order.user_id,
            status: status_number(order.status),
            amount: order.amount.to_string(),
            items: items.collect(),
            created_ms: order.created_ms,
            updated_ms: order.updated_ms,
            trace: order.trace.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<Answer<Created>> for v1::CreateOrderResponse {
    fn from(Answer { header, body: Created { found, duplicate } }: Answer<Created>) -> v1::CreateOrderResponse {
        v1::CreateOrderResponse {
            header: Some(encode_header(header)),
            order: Some(found.order.into()),
            version: found.version.0,
            duplicate,
            archived: found.archived,
        }
    }
}

impl From<Answer<Moved>> for v1::TransitionResponse {
    fn from(Answer { header, body }: Answer<Moved>) -> v1::TransitionResponse {
        v1::TransitionResponse {
            header: Some(encode_header(header)),
            order: Some(body.found.order.into()),
            version: body.found.version.0,
            step: Some(body.step.into()),
            repeated: body.repeated,
        }
    }
}

impl From<Answer<Found>> for v1::GetOrderResponse {
    fn from(Answer { header, body }: Answer<Found>) -> v1::GetOrderResponse {
        v1::GetOrderResponse {
            header: Some(encode_header(header)),
            order: Some(body.order.into()),
            version: body.version.0,
            archived: body.archived,
        }
    }
}

impl From<Answer<Listed>> for v1::ListUserOrdersResponse {
    fn from(Answer { header, body }: Answer<Listed>) -> v1::ListUserOrdersResponse {
        let listed = |ListedOrder { order, version }| v1::ListedOrder { order: Some(order.into()), version: version.0 };
        v1::ListUserOrdersResponse {
            header: Some(encode_header(header)),
            orders: body.orders.into_iter().map(listed).collect(),
            page_token: body.page_token,
            unreadable: body.unreadable,
        }
    }
}

impl From<Answer<UserStats>> for v1::UserStatsResponse {
    fn from(Answer { header, body }: Answer<UserStats>) -> v1::UserStatsResponse {
        v1::UserStatsResponse {
            header: Some(encode_header(header)),
            user_id: body.user_id,
            orders: body.orders,
            spent: body.spent,
            first_ms: body.first_ms,
            last_ms: body.last_ms,
            version: body.version.map(|version| version.0),
        }
    }
}

impl From<Answer<Archived>> for v1::ArchiveResponse {
    fn from(Answer { header, body }: Answer<Archived>) -> v1::ArchiveResponse {
        v1::ArchiveResponse {
            header: Some(encode_header(header)),
            examined: body.examined,
            order_ids: body.order_ids,
            resumed: body.resumed,
            changed: body.changed,
            unreadable: body.unreadable,
            page_token: body.page_token,
        }
    }
}

impl From<Answer<Product>> for v1::GetProductResponse {
    fn from(Answer { header, body }: Answer<Product>) -> v1::GetProductResponse {
        v1::GetProductResponse {
            header: Some(encode_header(header)),
            product_id: body.product_id,
            version: body.version.0,
            base: body.base,
            spec: body.spec,
            price: body.price,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ReadLevel, Reason};
    use crate::wire::proto::v1::{ReadLevel as Level, read_level::Level as Kind};

    fn asked() -> v1::CreateOrderRequest {
        v1::CreateOrderRequest {
            request_id: "r-1".into(),
            business_key: "cart-17".into(),
            user_id: "42".into(),
            amount: "12.5".into(),
            items: vec![v1::Item { product_id: "p-1".into(), quantity: 2, price: "6.25".into() }],
            created_ms: None,
        }
    }

    #[test]
    fn statuses_have_the_same_names_on_the_wire() {
        for status in Status::ALL {
            let number = status_number(status);
            let proto = OrderStatus::try_from(number).expect("known");
            assert_eq!(proto.as_str_name(), format!("ORDER_STATUS_{}", status.as_str().to_uppercase()));
            assert_eq!(super::status("to", number), Ok(status));
        }
        for number in [0, 8, -1] {
            let refused = super::status("to", number).expect_err("unknown");
            assert_eq!(refused.message, format!("to is no status that this server knows: {number}"));
        }
    }

    #[test]
    fn submissions_are_understood_or_refused() {
        let new = NewOrder::try_from(asked()).expect("a submission");
        assert_eq!((new.request_id.as_str(), new.submission.amount.to_string()), ("r-1", "12.50".into()));
        assert_eq!(new.submission.items[0].price.map(Amount::hundredths), Some(625));
        assert_eq!(new.check(1), Ok(()));
        let refused = |change: fn(&mut v1::CreateOrderRequest)| {
            let mut asked = asked();
            change(&mut asked);
            let error = NewOrder::try_from(asked).and_then(|new| new.check(1)).expect_err("refused");
            assert_eq!(error.reason, Reason::InvalidRequest);
            error.message
        };
        assert_eq!(refused(|asked| asked.user_id.clear()), "the user id is missing");
        assert_eq!(refused(|asked| asked.business_key.clear()), "the business key is missing");
        assert_eq!(refused(|asked| asked.request_id.clear()), "the request id is missing");
        assert_eq!(
            refused(|asked| asked.user_id = "u".repeat(300)),
            "the user id has 300 bytes, at most 256 are taken"
        );
        assert!(refused(|asked| asked.amount.clear()).starts_with("the amount is missing"));
        assert!(refused(|asked| asked.amount = "-1".into()).starts_with("an amount cannot be negative"));
        assert!(refused(|asked| asked.amount = "1.999".into()).contains("at most two places"));
        assert!(refused(|asked| asked.items[0].price = "free".into()).contains("at most two places"));
        assert!(refused(|asked| asked.items[0].quantity = 0).starts_with("item 1 has a quantity of 0"));
        assert_eq!(refused(|asked| asked.items[0].product_id.clear()), "the product id of item 1 is missing");
        assert!(refused(|asked| asked.items = vec![asked.items[0].clone(); 201]).contains("201 items, at most 200"));
        assert!(refused(|asked| asked.created_ms = Some(0)).starts_with("created_ms is 0"));
        assert!(refused(|asked| asked.created_ms = Some(86_400_002)).contains("more than a day ahead"));
    }

    #[test]
    fn the_other_wishes_are_understood_or_refused() {
        let step = v1::TransitionRequest {
            order_id: "o-1".into(),
            to: OrderStatus::Paid.into(),
            who: "shop".into(),
            request_id: "r".into(),
            if_version: Some(7),
            note: String::new(),
        };
        let wish = TransitionWish::try_from(step.clone()).expect("a wish");
        assert_eq!((wish.step.to, wish.if_version), (Status::Paid, Some(Timestamp(7))));
        assert!(TransitionWish::try_from(v1::TransitionRequest { to: 99, ..step }).is_err());

        let level = Some(Level { level: Some(Kind::MaxAgeMs(5)), any_replica: false });
        let list = v1::ListUserOrdersRequest { user_id: "42".into(), level, ..Default::default() };
        let wish = ListWish::try_from(list.clone()).expect("a wish");
        assert_eq!((wish.level, wish.page_token), (ReadLevel::MaxAge(Duration::from_millis(5)), None));
        let unknown = v1::ListUserOrdersRequest { statuses: vec![2, 0], ..list.clone() };
        assert!(ListWish::try_from(unknown).is_err());
        let many = v1::ListUserOrdersRequest { statuses: vec![2; STATUSES_MAX + 1], ..list };
        assert!(ListWish::try_from(many).is_err());
    }
}
