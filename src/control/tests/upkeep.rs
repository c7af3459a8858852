//! Upkeep of views, where what must come about depends on who hears of what.

use bytes::Bytes;

use super::*;
use crate::shard::{Clearing, PageRequest, Shard, Upkeep};
use crate::wire::admin::NewView;

const DEFINITION: &str =
    r#"{"name": "v", "kind": "rekeyed", "shards": 1, "sources": [{"table": "t", "partition_by": "user"}]}"#;
const DOCUMENTS: u64 = 40;
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// The leader of the view's only shard and the node that it is on.
fn view_shard(house: &House) -> Option<(u64, Arc<Shard>)> {
    let directory = house.node(3).directory();
    let entry = directory.table_by_name("v")?;
    let shard = entry.descriptor.view.as_ref().filter(|view| view.ready).and(entry.shards.iter().next())?.id;
    let leader = house.leader_now(shard)?;
    Some((leader, house.node(leader).replicas().get(shard)?))
}

/// How many rows a shard holds.
fn rows(house: &House, leader: u64, shard: &Shard) -> Result<usize> {
    let state = shard.state();
    let (start, end) = (state.start.clone(), state.end.clone());
    let page = PageRequest {
        start,
        end,
        reverse: false,
        count_only: false,
        rows_max: 1_000,
        bytes_max: 1 << 20,
        level: ReadLevel::Any,
    };
    let deadline = house.node(leader).clock().now() + PATIENCE;
    let runtime = &house.life(leader).expect("it runs").runtime;
    Ok(runtime.block_on(shard.scan(state.epoch, page, deadline))?.body.rows.len())
}

fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// A worker that finds changes gone has the view's shards begin anew. The workers of the other shards of the source are not told;
/// and when nobody writes there, nothing that they are sent is refused either.
#[test]
fn workers_who_hear_of_nothing_fill_a_shard_again_that_has_begun_anew() {
    let mut house = House::founded();
    house.create(3, "t", 4);
    for number in 0..DOCUMENTS {
        let value = Bytes::from(format!(r#"{{"user": "u{}"}}"#, number % 5));
        let key = format!("k{number}").leak();
        let put = Operation { key: (&*key).into(), action: Action::Put { value, ttl_ms: None } };
        let issued_ms = house.node(3).clock().wall_ms();
        let request = RequestId { client: number + 1, sequence: 1, issued_ms };
        let write = Write { request: Some(request), operations: vec![put], ..Write::default() };
        house.ask_leader(key, &Request::Write(write)).expect("written");
    }
    house.ask(3, async |control| control.create_view(NewView::of(DEFINITION)).await).expect("created");
    let (leader, shard) = eventually("the view is ready", || view_shard(&house));
    let whole = || rows(&house, leader, &shard).ok().filter(|rows| *rows as u64 >= DOCUMENTS);
    let before = eventually("it holds everything", whole);

    // Workers have heard by then that it is ready, have looked up where its shard stands, and wait for news. None of that shows.
    std::thread::sleep(SETTLED_AFTER);
    let state = shard.state();
    let (start, end) = (state.start.clone(), state.end.clone());
    let section = state.watermarks.sections(&start, &end).remove(0);
    let part = section.parts[0].clone();
    let stood = part.position.expect("it has taken everything in");
    let clear = Upkeep::Clear(Clearing { view: (section.start, section.end), source: (part.start, part.end), stood });
    let deadline = house.node(leader).clock().now() + PATIENCE;
    let runtime = &house.life(leader).expect("it runs").runtime;
    // Each removes some rows; the last one finds none, and has the shard begin anew.
    while !runtime.block_on(shard.keep_up(state.epoch, clear.clone(), deadline)).expect("cleared").applied {}
    let after = eventually("all that the table holds is there again", whole);
    assert_eq!(after, before);
}
