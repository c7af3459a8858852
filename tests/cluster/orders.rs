//! Orders on a real cluster: by the command line and by bare gRPC through any node, while nodes are killed.

use tonic::transport::Channel;
use trivet::wire::proto::orders::v1::orders_client::OrdersClient;
use trivet::wire::proto::orders::v1::{CreateOrderRequest, GetOrderRequest, OrderStatus, TransitionRequest};

use crate::harness::{Cluster, eventually, refused, rounds};

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
                assert_eq!(paid.into_inner().order.expect("an order").trace.len(), 2);
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
