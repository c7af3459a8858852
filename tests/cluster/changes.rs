//! Those who follow what changes in a table on real nodes, whatever happens to these.
//!
//! A [`Follower`] goes on from page to page by the Rust client. When it is to end it goes on until a page proves that nothing
//! acknowledged by then is still to come, and what it was told is compared with the histories of all keys.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use trivet::client::Table;
use trivet::types::{Change, ScanBounds, Timestamp};
use trivet::wire::proto::v1::{self, ChangesRequest};

use crate::harness::{Cluster, eventually, refused};
use crate::load::connect;

/// How long a follower may take to know that it was told everything.
const END_WITHIN: Duration = Duration::from_secs(60);
/// How often it hears when there is nothing to tell.
const EVERY: Duration = Duration::from_millis(200);
/// Versions of a key asked for at once.
const PAGE: usize = 1_000;

/// Somebody who follows a table.
pub struct Follower {
    table: Table,
    /// The version of each key when it began.
    begun: BTreeMap<Bytes, Timestamp>,
    stop: watch::Sender<Option<Instant>>,
    task: JoinHandle<Result<Vec<Change>, String>>,
}

impl Follower {
    /// Begins to follow; whatever is written after this is told.
    pub async fn start(table: &Table) -> Follower {
        let mut followed = table.changes(ScanBounds::All).with_previous().every(EVERY).follow();
        let first = eventually("a first page of changes comes", || async {
            // Asking again goes on where it was left.
            table.changes(ScanBounds::All).every(EVERY).follow().next_page().await
        });
        first.await;
        let first = followed.next_page().await;
        let rows = eventually("the table can be scanned", || table.scan(ScanBounds::All).collect()).await;
        let begun = rows.into_iter().map(|row| (row.key, row.timestamp)).collect();
        let (stop, stopped) = watch::channel(None::<Instant>);
        let task = tokio::spawn(async move {
            let mut told = first.map_err(|error| error.to_string())?.body.changes;
            loop {
                let page = followed.next_page().await.map_err(|error| error.to_string())?;
                told.extend(page.body.changes);
                let stopped = *stopped.borrow();
                let Some(stopped) = stopped else { continue };
                let proven = page.header.age.and_then(|age| Instant::now().checked_sub(age));
                if proven.is_some_and(|proven| proven > stopped) {
                    return Ok(told);
                }
                if stopped.elapsed() > END_WITHIN {
                    return Err(format!("it does not come to the end; the last page was {:?} old", page.header.age));
                }
            }
        });
        Follower { table: table.clone(), begun, stop, task }
    }

    /// Goes on to the end; what it was not told of these keys, or told wrongly.
    pub async fn finish(self, keys: &[String]) -> Vec<String> {
        self.stop.send_replace(Some(Instant::now()));
        let told = match self.task.await.expect("who follows does not panic") {
            Ok(told) => told,
            Err(error) => return vec![format!("who follows was told: {error}")],
        };
        let mut by_key: BTreeMap<Bytes, Vec<Change>> = BTreeMap::new();
        for change in told {
            by_key.entry(change.key.clone()).or_default().push(change);
        }
        let mut wrong = Vec::new();
        for key in keys {
            let begun = self.begun.get(key.as_bytes()).copied();
            let mut stored = versions(&self.table, key).await;
            stored.retain(|(version, _)| Some(*version) > begun);
            let mut told = by_key.remove(key.as_bytes()).unwrap_or_default();
            told.retain(|change| Some(change.timestamp) > begun);
            let seen: Vec<_> = told.iter().map(|change| (change.timestamp, change.value.clone())).collect();
            if seen != stored {
                let at = seen.iter().zip(&stored).position(|(one, other)| one != other);
                wrong.push(format!(
                    "of {} versions of {key} {} were told; they differ from number {:?} on",
                    stored.len(),
                    seen.len(),
                    at.unwrap_or(seen.len().min(stored.len()))
                ));
            }
            let replaced = told.iter().map(|change| change.previous.as_ref().map(|before| before.timestamp));
            let before =
                std::iter::once(None).chain(told.iter().map(|change| change.value.as_ref().map(|_| change.timestamp)));
            if !replaced.eq(before.take(told.len())) {
                wrong.push(format!("a change of {key} was told to have replaced something else than the one before"));
            }
        }
        wrong
    }
}

/// All versions of a key, oldest first.
async fn versions(table: &Table, key: &str) -> Vec<(Timestamp, Option<Bytes>)> {
    let mut all = Vec::new();
    let mut before = None;
    loop {
        let page = eventually("a history can be read", || table.history(key.to_owned(), before, PAGE)).await;
        let rows = page.body.rows;
        before = rows.last().map(|row| row.timestamp);
        let last = rows.len() < PAGE;
        all.extend(rows.into_iter().map(|row| (row.timestamp, row.value)));
        if last {
            all.reverse();
            return all;
        }
    }
}

/// The lines of a `watch` that ends by itself.
fn lines(said: &str) -> Vec<Value> {
    said.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_where_it_was_left_and_tells_what_was_replaced() {
    let cluster = Cluster::with_table(3).await;
    let table = connect(&cluster).await.table("t");
    table.put("before", "0").await.expect("written");
    let place = cluster.root().join("place");
    let place = place.to_str().expect("plain");
    for number in 1..=5 {
        table.put("k", number.to_string()).await.expect("written");
    }
    table.delete("k").await.expect("deleted");
    // From the beginning, so that no shard's clock matters; of some keys, since a prefix is a filter here.
    let all = ["watch", "t", "--after", "1", "--prefix", "k", "--previous", "--limit", "6", "-o", "json"];
    let told = lines(&cluster.trivet(&all).ok());
    let values: Vec<_> = told.iter().map(|line| line["value"].as_str().map(str::to_owned)).collect();
    assert_eq!(values[..5], [1, 2, 3, 4, 5].map(|number: u64| Some(number.to_string())));
    assert_eq!(told[0]["previous"], Value::Null);
    assert_eq!(told[4]["previous"]["value"], "4");
    assert_eq!((&told[5]["deleted"], &told[5]["previous"]["value"]), (&true.into(), &"5".into()));
    let deletions = ["watch", "t", "--after", "1", "--only", "deletes", "--limit", "1", "-o", "json"];
    assert_eq!(lines(&cluster.trivet(&deletions).ok())[0]["key"], "k");
    table.put("{a}x", "7").await.expect("written");
    let tagged = ["watch", "t", "--after", "1", "--tag", "a", "--only", "puts", "--limit", "1", "-o", "json"];
    assert_eq!(lines(&cluster.trivet(&tagged).ok())[0]["value"], "7");

    // The first run leaves its place; the second is told what came after it, also through another node, and no more.
    let kept = ["watch", "t", "--prefix", "k", "--checkpoint", place, "--after", "1", "--limit", "6", "-o", "json"];
    assert_eq!(lines(&cluster.trivet(&kept).ok()).len(), 6);
    table.put("k", "6").await.expect("written");
    let kept = ["watch", "t", "--prefix", "k", "--checkpoint", place, "--limit", "1", "-o", "json"];
    let told = lines(&cluster.trivet(&kept).ok());
    assert_eq!((told.len(), &told[0]["value"]), (1, &"6".into()));

    // Other keys than those the place is of, and a place that is none.
    for (arguments, complaint) in [
        (&["watch", "t", "--checkpoint", place, "--tag", "a"][..], "another job"),
        (&["watch", "t", "--resume", "0102"], "cursor"),
        (&["watch", "nothing"], "there is no table \"nothing\""),
    ] {
        let refused = cluster.trivet(arguments);
        assert!(refused.code != 0 && refused.err.contains(complaint), "{arguments:?}: {}", refused.said());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_a_table_that_is_dropped_is_told_so() {
    let cluster = Cluster::with_table(3).await;
    let table = connect(&cluster).await.table("t");
    let mut followed = table.changes(ScanBounds::All).every(EVERY).follow();
    followed.next_page().await.expect("it is there");
    cluster.trivet(&["table", "drop", "t", "--yes"]).ok();
    let begun = Instant::now();
    let error = loop {
        match followed.next_page().await {
            Err(error) => break error,
            Ok(_) => assert!(begun.elapsed() < END_WITHIN, "it is not told"),
        }
    };
    assert_eq!(error.reason, trivet::types::Reason::UnknownTable, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_changes_comes_from_any_node_and_is_gone_on_with_at_another() {
    let mut cluster = Cluster::with_table(3).await;
    let table = connect(&cluster).await.table("t");
    let asked = || ChangesRequest { table: "t".to_owned(), with_previous: true, wait_ms: 100, ..Default::default() };
    let mut stream = cluster.kv(2).changes(asked()).await.expect("it is there").into_inner();
    let first = stream.message().await.expect("it goes on").expect("a page comes although there is nothing to tell");
    assert!(first.changes.is_empty());
    for number in 0..40 {
        table.put(format!("k-{}", number % 10), number.to_string()).await.expect("written");
    }
    let mut told: Vec<v1::Change> = Vec::new();
    let mut cursor = first.cursor;
    while told.len() < 25 {
        let page = stream.message().await.expect("it goes on").expect("there is more");
        told.extend(page.changes);
        cursor = page.cursor;
    }
    // The node goes away, and the stream with it: another goes on from the cursor.
    cluster.kill(2);
    assert!(eventually_ends(stream).await, "the stream has ended");
    table.delete("k-0").await.expect("deleted");
    let mut stream = cluster.kv(3).changes(ChangesRequest { cursor, ..asked() }).await.expect("taken").into_inner();
    while told.len() < 41 {
        let page = stream.message().await.expect("it goes on").expect("there is more");
        told.extend(page.changes);
        assert!(page.header.is_some() && !page.cursor.is_empty());
    }
    for key in 0..10_u64 {
        let key = format!("k-{key}");
        let of: Vec<_> = told.iter().filter(|change| change.key == key.as_bytes()).collect();
        let values: Vec<_> = of.iter().filter_map(|change| change.value.as_ref()).map(|value| number(value)).collect();
        assert!(values.len() == 4 && values.is_sorted_by(|one, next| one + 10 == *next), "{key}: {values:?}");
        let replaced = of.iter().map(|change| change.previous.as_ref().map(|before| before.version));
        let before = std::iter::once(None).chain(of.iter().map(|change| Some(change.version)));
        assert!(replaced.eq(before.take(of.len())), "{key}: {of:?}");
    }
    let deletions: Vec<_> = told.iter().filter(|change| change.value.is_none()).collect();
    assert!(matches!(&deletions[..], [only] if only.key == "k-0"), "{deletions:?}");
    let unknown = cluster.kv(3).changes(ChangesRequest { table: "nothing".to_owned(), ..asked() }).await;
    refused(unknown, "UNKNOWN_TABLE");
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).expect("a number was written")
}

/// Whether a stream ends, for whatever reason.
async fn eventually_ends(mut stream: tonic::Streaming<v1::ChangesResponse>) -> bool {
    let ends = async { while let Ok(Some(_)) = stream.message().await {} };
    tokio::time::timeout(END_WITHIN, ends).await.is_ok()
}
