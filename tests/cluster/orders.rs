//! Orders on a real cluster: by the command line and by bare gRPC through any node, while nodes are killed.

use tonic::transport::Channel;
use trivet::wire::proto::orders::v1::orders_client::OrdersClient;
use trivet::wire::proto::orders::v1::{
    CreateOrderRequest, GetOrderRequest, GetProductRequest, ListUserOrdersRequest, ListUserOrdersResponse, OrderStatus,
    TransitionRequest, UserStatsRequest,
};
use trivet::wire::proto::v1::{ReadLevel, read_level::Level};

use crate::harness::{Cluster, eventually, put, refused, rounds};

async fn with_orders() -> Cluster {
    let cluster = Cluster::of(3).await;
    cluster.trivet(&["order", "setup", "--shards", "3"]).ok();
    cluster
}

fn orders(cluster: &Cluster, node: u64) -> OrdersClient<Channel> {
    OrdersClient::new(cluster.bare(node))
}

fn submission(request: &str, key: &str, amount: &str) -> CreateOrderRequest {
    CreateOrderRequest {
        request_id: request.into(),
        business_key: key.into(),
        user_id: "42".into(),
        amount: amount.into(),
        ..Default::default()
    }
}

fn step(order: &str, to: OrderStatus, request: &str) -> TransitionRequest {
    TransitionRequest {
        order_id: order.into(),
        to: to.into(),
        who: "test".into(),
        request_id: request.into(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_leads_an_order_from_its_setup_to_the_archive() {
    let cluster = Cluster::of(3).await;
    let early = cluster.trivet(&["order", "create", "--user", "42", "--key", "cart-17", "--amount", "12.50"]);
    assert_eq!(early.code, 3, "{early:?}");
    assert!(early.err.contains("trivet order setup"), "{}", early.err);
    let planned = cluster.trivet(&["order", "setup", "--dry-run"]).ok();
    assert_eq!(planned.matches("missing").count(), planned.lines().count() - 1, "{planned}");
    let made = cluster.trivet(&["order", "setup", "--shards", "3"]).ok();
    assert!(made.contains("orders_archive") && !made.contains("missing"), "{made}");
    let again = cluster.trivet(&["order", "setup"]).ok();
    assert!(!again.contains("created"), "{again}");

    let create = |amount: &str, extra: &[&str]| {
        let fixed = ["order", "create", "--user", "42", "--key", "cart-17", "--item", "p-1:2:6.25", "--amount", amount];
        cluster.trivet(&[&fixed[..], extra].concat())
    };
    let created = create("12.50", &["-o", "json"]).json();
    let id = created["order"]["order_id"].as_str().expect("an id").to_owned();
    assert_eq!(created["duplicate"], false);
    assert_eq!(create("12.50", &["-o", "json"]).json()["duplicate"], true);
    let taken = create("13", &[]);
    assert_eq!(taken.code, 1, "{taken:?}");
    assert!(taken.err.contains("KEY_TAKEN") && taken.err.contains(&id), "{}", taken.err);

    let forbidden = cluster.trivet(&["order", "transition", &id, "completed"]);
    assert_eq!(forbidden.code, 3, "{forbidden:?}");
    assert!(forbidden.err.contains("from awaiting_payment it can go to paid, cancelled"), "{}", forbidden.err);
    for to in ["paid", "shipped", "completed"] {
        cluster.trivet(&["order", "transition", &id, to, "--who", "till", "--request", to]).ok();
    }
    let repeat = cluster.trivet(&["order", "transition", &id, "paid", "--who", "till", "--request", "paid"]).ok();
    assert!(repeat.starts_with("had moved to paid: "), "{repeat}");
    let trace = cluster.trivet(&["order", "trace", &id]).ok();
    assert_eq!(trace.lines().count(), 5, "{trace}");

    let kept = cluster.trivet(&["order", "archive", "--older-than", "1h", "-o", "json"]).json();
    assert_eq!((kept["examined"].as_u64(), kept["order_ids"].as_array().map(Vec::len)), (Some(1), Some(0)));
    let moved = cluster.trivet(&["order", "archive", "--older-than", "0s"]).ok();
    assert!(moved.starts_with("archived 1 order of 1 looked at"), "{moved}");
    let found = cluster.trivet(&["order", "get", &id, "-o", "json"]).json();
    assert_eq!((found["archived"].as_bool(), found["order"]["status"].as_str()), (Some(true), Some("completed")));
    assert_eq!(found["order"]["trace"].as_array().map(Vec::len), Some(4));
    assert_eq!(create("12.50", &["-o", "json"]).json()["archived"], true);
    assert_eq!(cluster.trivet(&["order", "transition", &id, "refunding"]).code, 3);
    assert_eq!(cluster.trivet(&["order", "get", "o-none"]).code, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_serves_orders_to_bare_grpc() {
    let cluster = with_orders().await;
    let created = orders(&cluster, 1).create_order(submission("r-1", "cart-1", "5")).await.expect("created");
    let created = created.into_inner();
    let id = created.order.clone().expect("an order").order_id;
    for (node, (to, number)) in cluster
        .ids()
        .into_iter()
        .zip([OrderStatus::Paid, OrderStatus::Shipped, OrderStatus::Completed].into_iter().zip(1..))
    {
        let moved = orders(&cluster, node).transition(step(&id, to, &format!("s-{number}"))).await.expect("allowed");
        assert!(moved.into_inner().header.expect("a header").as_of > created.version);
        let question = GetOrderRequest { order_id: id.clone(), level: None };
        let found = orders(&cluster, node % 3 + 1).get_order(question).await.expect("found").into_inner();
        assert_eq!(found.order.expect("an order").status(), to, "asked of the next node");
    }
    let other = orders(&cluster, 2).create_order(submission("r-1", "cart-1", "6")).await;
    refused(other, "REQUEST_MISMATCH");
    refused(orders(&cluster, 3).create_order(submission("r-2", "cart-1", "6")).await, "KEY_TAKEN");
    refused(orders(&cluster, 1).create_order(submission("r-3", "cart-3", "-6")).await, "INVALID_REQUEST");
    refused(orders(&cluster, 2).transition(step(&id, OrderStatus::Paid, "s-9")).await, "PRECONDITION_FAILED");
    refused(orders(&cluster, 2).transition(step(&id, OrderStatus::Unspecified, "s-9")).await, "INVALID_REQUEST");
    let question = GetOrderRequest { order_id: "o-none".into(), level: None };
    refused(orders(&cluster, 3).get_order(question).await, "UNKNOWN_DOCUMENT");
}

fn at(level: Level) -> Option<ReadLevel> {
    Some(ReadLevel { level: Some(level), any_replica: false })
}

/// The statuses of a user's orders by their ids, in the order of the list, read page by page.
async fn list(
    client: &mut OrdersClient<Channel>,
    user: &str,
    statuses: &[OrderStatus],
    page_size: u32,
    version: u64,
) -> Result<Vec<(String, OrderStatus)>, tonic::Status> {
    let mut all = Vec::new();
    let mut token = None;
    loop {
        let wish = ListUserOrdersRequest {
            user_id: user.to_owned(),
            statuses: statuses.iter().map(|&status| status.into()).collect(),
            page_size,
            page_token: token.unwrap_or_default(),
            level: at(Level::AtLeast(version)),
        };
        let ListUserOrdersResponse { orders, page_token, unreadable, .. } =
            client.list_user_orders(wish).await?.into_inner();
        assert_eq!(unreadable, 0);
        assert!(orders.len() <= page_size as usize);
        for order in orders.into_iter().filter_map(|listed| listed.order) {
            assert_eq!(order.user_id, user);
            all.push((order.order_id.clone(), order.status()));
        }
        token = page_token;
        if token.is_none() {
            return Ok(all);
        }
    }
}

/// Names as people have them, and one that means to break out of its key.
const USERS: [&str; 4] = ["42", "Jane Doe", "Zoë/{x}%", "a b"];

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_totals_show_what_their_reader_has_done_whatever_the_user_is_called() {
    let cluster = with_orders().await;
    for (user, number) in USERS.into_iter().zip(0_u64..) {
        let (mut writer, mut reader) = (orders(&cluster, 1 + number % 3), orders(&cluster, 1 + (number + 1) % 3));
        let mut expected: Vec<(String, OrderStatus)> = Vec::new();
        let mut version = 0;
        for cart in 0..5 {
            let key = format!("{user} {cart}");
            let submission = CreateOrderRequest {
                user_id: user.into(),
                created_ms: Some(1_000 + cart),
                ..submission(&key, &key, "2.5")
            };
            let made = eventually("created", || {
                let (mut writer, submission) = (writer.clone(), submission.clone());
                async move { writer.create_order(submission).await }
            })
            .await
            .into_inner();
            version = made.version;
            expected.insert(0, (made.order.expect("an order").order_id, OrderStatus::AwaitingPayment));
            // Its own order is in the list, at once and at another node, and nothing of another user's is.
            let listed = list(&mut reader, user, &[], 50, version).await.expect("listed");
            assert_eq!(listed, expected, "{user}");
        }
        let id = expected[2].0.clone();
        version = version
            .max(writer.transition(step(&id, OrderStatus::Paid, "pay")).await.expect("paid").into_inner().version);
        expected[2].1 = OrderStatus::Paid;
        let id = expected[4].0.clone();
        let cancelled =
            writer.transition(step(&id, OrderStatus::Cancelled, "no")).await.expect("cancelled").into_inner();
        version = version.max(cancelled.version);
        expected[4].1 = OrderStatus::Cancelled;
        for page_size in [1, 2, 5] {
            assert_eq!(list(&mut reader, user, &[], page_size, version).await.expect("listed"), expected, "{user}");
        }
        let paid = list(&mut reader, user, &[OrderStatus::Paid], 2, version).await.expect("listed");
        assert_eq!(paid, [expected[2].clone()]);
        let wish = UserStatsRequest { user_id: user.into(), level: at(Level::AtLeast(version)) };
        let stats = reader.user_stats(wish).await.expect("told").into_inner();
        assert_eq!((stats.orders, stats.spent.as_str()), (4, "10.00"), "the cancelled one does not count: {user}");
        assert_eq!((stats.first_ms, stats.last_ms), (Some(1_001), Some(1_004)));
    }
    // A token is good for its own question.
    let page = |user: &str, page_token| ListUserOrdersRequest {
        user_id: user.into(),
        page_size: 2,
        page_token,
        ..Default::default()
    };
    let first = orders(&cluster, 1).list_user_orders(page("42", Vec::new().into())).await.expect("a page").into_inner();
    let token = first.page_token.expect("there is more");
    refused(orders(&cluster, 2).list_user_orders(page("a b", token)).await, "INVALID_CURSOR");
    refused(orders(&cluster, 2).list_user_orders(page("42", vec![7; 9].into())).await, "INVALID_CURSOR");
    let said = cluster.trivet(&["view", "verify", "orders_by_user"]);
    assert_eq!(said.code, 0, "{}", said.said());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_is_answered_with_its_age_when_its_sources_do_not() {
    let mut cluster = with_orders().await;
    let product = "Tea & Co/7";
    let document = |field: &str| format!(r#"{{"product_id":"{product}",{field}}}"#);
    let (base, price) = (document(r#""name":"Tea""#), document(r#""amount":6.25"#));
    let kv = cluster.kv(1);
    for (table, key, value) in [("product_base", "b", &base), ("product_price", "x", &price)] {
        eventually("written", || {
            let (mut kv, put) = (kv.clone(), put(table, key, value));
            async move { kv.put(put).await }
        })
        .await;
    }
    let wish = |level| GetProductRequest { product_id: product.into(), level };
    let whole = orders(&cluster, 2).get_product(wish(None)).await.expect("answered").into_inner();
    assert_eq!((whole.base.as_deref(), whole.spec, whole.price.as_deref()), (Some(&*base), None, Some(&*price)));
    // Everybody has it, and can tell how old it is.
    for id in cluster.ids() {
        eventually("the node's copy has it", || {
            let (mut client, wish) = (orders(&cluster, id), wish(at(Level::Any(true))));
            async move {
                let answer = client.get_product(wish).await.map_err(|status| status.to_string())?.into_inner();
                let header = answer.header.unwrap_or_default();
                // Which of the copies is asked changes from call to call.
                let its_own = header.node == id && header.age_us.is_some() && answer.price.is_some();
                if its_own { Ok(()) } else { Err(format!("{header:?}")) }
            }
        })
        .await;
    }
    cluster.kill(1);
    cluster.kill(2);
    let mut last = orders(&cluster, 3);
    let old = eventually("the node that is left answers", || {
        let (mut client, wish) = (last.clone(), wish(at(Level::Any(true))));
        async move { client.get_product(wish).await }
    })
    .await
    .into_inner();
    assert_eq!((old.base.as_deref(), old.price.as_deref()), (Some(&*base), Some(&*price)));
    println!("  its age is {:?} us", old.header.as_ref().and_then(|header| header.age_us));
    assert!(old.header.and_then(|header| header.age_us).is_some(), "it says how old it can be");
    let mut strict = tonic::Request::new(wish(None));
    strict.set_timeout(std::time::Duration::from_secs(3));
    let strict = last.get_product(strict).await;
    assert!(strict.is_err(), "the newest cannot be known: {strict:?}");
    let mut young = tonic::Request::new(wish(at(Level::MaxAgeMs(1))));
    young.set_timeout(std::time::Duration::from_secs(3));
    let young = last.get_product(young).await;
    assert!(young.is_err(), "nobody can prove that it is so young: {young:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_made_once_while_nodes_are_killed() {
    let mut cluster = with_orders().await;
    for round in 0..rounds(3) {
        let victim = u64::from(round) % 3 + 1;
        let asked = victim % 3 + 1;
        // Calls are under way when the node goes, and are repeated under their ids until they are answered.
        let (clients, numbers) = (orders(&cluster, asked), 0..20);
        let calls = numbers.map(|number| {
            let (mut client, key) = (clients.clone(), format!("cart-{round}-{number}"));
            tokio::spawn(async move {
                let created = eventually("created", || {
                    let (mut client, submission) = (client.clone(), submission(&key, &key, "5"));
                    async move { client.create_order(submission).await }
                })
                .await
                .into_inner();
                assert!(!created.duplicate, "only this request submits {key}");
                let id = created.order.expect("an order").order_id;
                let paid = eventually("paid", || {
                    let (mut client, step) = (client.clone(), step(&id, OrderStatus::Paid, "pay"));
                    async move { client.transition(step).await }
                })
                .await;
                let paid = paid.into_inner();
                assert_eq!(paid.order.expect("an order").trace.len(), 2);
                let listed = eventually("listed", || {
                    let mut client = client.clone();
                    async move { list(&mut client, "42", &[], 100, paid.version).await }
                })
                .await;
                assert!(listed.contains(&(id.clone(), OrderStatus::Paid)), "{id} is not paid in its user's list");
                client.create_order(submission(&format!("{key} again"), &key, "5")).await.map(|again| {
                    let again = again.into_inner();
                    assert!(again.duplicate);
                    assert_eq!(again.order.expect("an order").order_id, id);
                })
            })
        });
        let calls: Vec<_> = calls.collect();
        cluster.crash(victim);
        for call in calls {
            // The last submission is made once only: it may meet the election.
            let _ = call.await.expect("no panic");
        }
        cluster.healthy().await;
    }
    let expected = 20 * rounds(3) as usize;
    let rows = cluster.trivet(&["scan", "orders", "--count"]).ok();
    assert_eq!(rows.trim(), expected.to_string(), "an order for each business key");
    cluster.checksums_equal("orders").await;
}
