//! Documents that do not fit a view: it goes on without them and says which, or stops there, says where, and goes on when they were
//! corrected or are gone.

use std::time::Duration;

use serde_json::Value;
use trivet::client::Client;
use trivet::types::{ReadLevel, ScanBounds};
use trivet::wire::proto::v1::{CreateTableRequest, Partitioning};

use crate::harness::{Cluster, eventually};
use crate::load::connect;

fn definition(name: &str, on_bad_document: &str) -> String {
    format!(
        "name = \"{name}\"\nkind = \"rekeyed\"\nshards = 2\non_bad_document = \"{on_bad_document}\"\n\n[[sources]]\n\
         table = \"orders\"\nwhere = \"!has(doc.status) || doc.status != 'test'\"\npartition_by = \"user_id\"\n"
    )
}

/// Has a view created, and does not wait.
fn create(cluster: &Cluster, name: &str, on_bad_document: &str) {
    let file = cluster.root().join(format!("{name}.toml"));
    std::fs::write(&file, definition(name, on_bad_document)).expect("a file is written");
    cluster.trivet(&["view", "create", &file.to_string_lossy()]).ok();
}

fn described(cluster: &Cluster, name: &str) -> Value {
    cluster.trivet(&["view", "describe", name, "-o", "json"]).json()
}

/// Waits until a view has stopped at a document, and only there.
async fn stops_at(cluster: &Cluster, name: &str, key: &str, why: &str) {
    eventually("the view says where it has stopped", || async {
        let described = described(cluster, name);
        let lags = described["lags"].as_array().cloned().unwrap_or_default();
        let stops: Vec<Value> =
            lags.iter().flat_map(|lag| lag["stopped_at"].as_array().cloned().unwrap_or_default()).collect();
        let told = stops.len() == 1
            && stops[0]["table"] == "orders"
            && stops[0]["key"] == key
            && stops[0]["why"].as_str().is_some_and(|said| said.contains(why));
        if told { Ok(()) } else { Err(described["lags"].to_string()) }
    })
    .await;
}

/// Waits until a view is ready and has everything in that fits.
async fn in_step(cluster: &Cluster, client: &Client, name: &str, keys: &[&str]) {
    eventually("the view is ready", || async {
        let described = described(cluster, name);
        if described["state"] == "READY" { Ok(()) } else { Err(described.to_string()) }
    })
    .await;
    eventually("the view holds what fits", || async {
        let rows = client.table(name).scan(ScanBounds::All).collect().await.map_err(|error| error.to_string())?;
        let text = |key: &[u8]| String::from_utf8_lossy(key).rsplit('/').next().unwrap_or_default().to_owned();
        let mut seen: Vec<String> = rows.iter().map(|row| text(&row.key)).collect();
        seen.sort();
        if seen == keys { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_stops_at_what_does_not_fit_and_goes_on_when_that_was_corrected() {
    let mut cluster = Cluster::of(3).await;
    cluster.create_hash_table("orders", 3).await;
    let client = connect(&cluster).await;
    let orders = client.table("orders");
    for (key, document) in [
        ("a", r#"{"user_id": 1}"#),
        ("b", r#"{"user_id": null}"#),
        ("test", r#"{"status": "test"}"#),
        ("c", r#"{"user_id": 2}"#),
    ] {
        orders.put(key, document).await.expect("written");
    }

    // While it takes in what is there: it is not ready before all of that fits.
    create(&cluster, "strict", "stop");
    stops_at(&cluster, "strict", "b", "the field user_id is missing or empty").await;
    assert_eq!(described(&cluster, "strict")["state"], "BUILDING");
    let said = cluster.trivet(&["view", "describe", "strict"]).ok();
    assert!(said.contains("STOPPED at b of orders"), "{said}");
    orders.put("b", r#"{"user_id": 3}"#).await.expect("corrected");
    in_step(&cluster, &client, "strict", &["a", "b", "c"]).await;

    // What was corrected before its upkeep came to it has stopped nobody, though every version is told.
    cluster.trivet(&["view", "pause", "strict"]).ok();
    orders.put("c", "no JSON").await.expect("written");
    orders.put("c", r#"{"user_id": 4}"#).await.expect("corrected");
    cluster.trivet(&["view", "resume", "strict"]).ok();
    in_step(&cluster, &client, "strict", &["a", "b", "c"]).await;

    // A view that is ready: who asks for what is new is told, the rest is readable and right, whoever leads.
    orders.put("d", "no JSON").await.expect("written");
    stops_at(&cluster, "strict", "d", "no JSON object").await;
    let view = client.table("strict").within(Duration::from_secs(2));
    let refused = view.scan(ScanBounds::All).collect().await.expect_err("it is behind").to_string();
    assert!(refused.contains("VIEW_BEHIND") && refused.contains("trivet view describe strict"), "{refused}");
    let rows = view.at(ReadLevel::Any).scan(ScanBounds::All).collect().await.expect("of any age it can be read");
    assert_eq!(rows.len(), 3);
    let leads = cluster.shards("orders").await[0].leader.unwrap_or(1);
    cluster.kill(leads);
    cluster.start(leads);
    cluster.healthy().await;
    stops_at(&cluster, "strict", "d", "no JSON object").await;
    orders.delete("d").await.expect("deleted");
    in_step(&cluster, &client, "strict", &["a", "b", "c"]).await;
    eventually("nothing is left to take in", || async {
        let lags = described(&cluster, "strict")["lags"].clone();
        if lags.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(lags.to_string()) }
    })
    .await;
    cluster.trivet(&["view", "verify", "strict"]).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_a_view_goes_on_without_are_counted_and_shown() {
    let cluster = Cluster::of(3).await;
    // The source keeps its keys in order: what a view is derived from may be of either kind.
    let request = CreateTableRequest {
        name: "orders".into(),
        partitioning: Partitioning::Range.into(),
        split_points: vec!["odd-07".into()],
        ..Default::default()
    };
    cluster.tables(1).create(request).await.expect("a range table");
    let client = connect(&cluster).await;
    let orders = client.table("orders");
    orders.put("a", r#"{"user_id": 1}"#).await.expect("written");
    orders.put("odd-before", "[]").await.expect("written");
    create(&cluster, "lenient", "skip");
    in_step(&cluster, &client, "lenient", &["a"]).await;
    for number in 0..30 {
        orders.put(format!("odd-{number:02}"), r#"{"user_id": {"id": 7}}"#).await.expect("written");
    }
    let last = cluster.shards("orders").await.last().expect("a table has shards").id.to_string();
    cluster.trivet(&["shard", "split", &last, "--at", "odd-20"]).ok();
    orders.put("odd-00", r#"{"user_id": 7}"#).await.expect("corrected");
    orders.delete("odd-01").await.expect("deleted");
    orders.put("test", r#"{"status": "test"}"#).await.expect("left out by the definition, which is no fault of it");
    in_step(&cluster, &client, "lenient", &["a", "odd-00"]).await;

    let verified = cluster.trivet(&["view", "verify", "lenient", "-o", "json"]).json();
    assert_eq!(verified["equal"], true, "to be without them is no difference: {verified}");
    assert_eq!(verified["unfit"], 29, "those there are now, each once: {verified}");
    let shards = verified["shards"].as_array().cloned().unwrap_or_default();
    let samples: Vec<Value> =
        shards.iter().flat_map(|shard| shard["unfit_samples"].as_array().cloned().unwrap_or_default()).collect();
    let mut keys: Vec<&str> = samples.iter().filter_map(|sample| sample["key"].as_str()).collect();
    keys.sort_unstable();
    keys.dedup();
    assert!(keys.len() == samples.len() && keys.len() >= 15, "{samples:?}");
    assert!(keys.iter().all(|key| key.starts_with("odd-") && !["odd-00", "odd-01"].contains(key)), "{keys:?}");
    let said = cluster.trivet(&["view", "verify", "lenient"]).ok();
    assert!(said.contains("29 documents of its sources do not fit"), "{said}");
    let counted = async {
        let mut counted = 0.0;
        for id in cluster.ids() {
            counted += cluster.metric(id, "trivet_view_bad_documents_total").await;
        }
        counted
    };
    let counted = counted.await;
    assert!(counted >= 31.0, "{counted} were met");
    let described = described(&cluster, "lenient");
    assert_eq!(described["lags"], serde_json::json!([]), "it has stopped nowhere");
}
