//! Upkeep of views, where what must come about depends on who hears of what.

use bytes::Bytes;

use super::*;
use crate::shard::{Clearing, PageRequest, Shard, Upkeep};
use crate::wire::admin::NewView;

const DEFINITION: &str =
    r#"{"name": "v", "kind": "rekeyed", "shards": 1, "sources": [{"table": "t", "partition_by": "user"}]}"#;
const DOCUMENTS: u64 = 40;
const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// How long news gather beside clients.
const GATHER: Duration = Duration::from_millis(50);
/// Entries of a view's log that are not upkeep, and pages before it is noticed that there are clients.
const OTHER_ENTRIES: u64 = 60;

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

/// A table with documents and a view of it in one shard that is ready and holds them all: who leads that, and how many rows it has.
fn house_with_a_view() -> (House, u64, Arc<Shard>, usize) {
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
    let before = eventually("it holds everything", || whole(&house, leader, &shard));
    (house, leader, shard, before)
}

/// How many rows it has if these can be all.
fn whole(house: &House, leader: u64, shard: &Shard) -> Option<usize> {
    rows(house, leader, shard).ok().filter(|rows| *rows as u64 >= DOCUMENTS)
}

/// What has a shard of a view begin anew, as where it stands now.
fn clear(shard: &Shard) -> Upkeep {
    let state = shard.state();
    let section = state.watermarks.sections(&state.start, &state.end).remove(0);
    let part = section.parts[0].clone();
    let stood = part.position.expect("it has taken everything in");
    Upkeep::Clear(Clearing { view: (section.start, section.end), source: (part.start, part.end), stood })
}

/// Whether nothing is left to do.
fn keep_up(house: &House, leader: u64, shard: &Shard, upkeep: &Upkeep) -> bool {
    let deadline = house.node(leader).clock().now() + PATIENCE;
    let runtime = &house.life(leader).expect("it runs").runtime;
    let kept_up = runtime.block_on(shard.keep_up(shard.state().epoch, upkeep.clone(), deadline));
    kept_up.expect("it is done").applied
}

/// A worker that finds changes gone has the view's shards begin anew. The workers of the other shards of the source are not told;
/// and when nobody writes there, nothing that they are sent is refused either.
#[test]
fn workers_who_hear_of_nothing_fill_a_shard_again_that_has_begun_anew() {
    let (house, leader, shard, before) = house_with_a_view();
    // Workers have heard by then that it is ready, have looked up where its shard stands, and wait for news. None of that shows.
    std::thread::sleep(SETTLED_AFTER);
    // Each removes some rows; the last one finds none, and has the shard begin anew.
    let clear = clear(&shard);
    while !keep_up(&house, leader, &shard, &clear) {}
    let after = eventually("all that the table holds is there again", || whole(&house, leader, &shard));
    assert_eq!(after, before);
}

/// Whoever has a shard begin anew may die between two of its commands: the rows are gone then, and nothing else would ever say so
/// to those who wait for news of sources in which nothing happens.
#[test]
fn what_is_half_removed_is_removed_by_whoever_finds_it_and_filled_again() {
    let (house, leader, shard, before) = house_with_a_view();
    std::thread::sleep(SETTLED_AFTER);
    assert!(!keep_up(&house, leader, &shard, &clear(&shard)), "rows were removed, and the watermark is there yet");
    let after = eventually("all that the table holds is there again", || whole(&house, leader, &shard));
    assert_eq!(after, before);
}

/// A view whose source nobody can ask comes to nothing; that is its own affair.
#[test]
fn a_view_whose_source_is_gone_keeps_no_other_from_being_ready() {
    let mut house = House::founded();
    house.create(3, "t", 1);
    // A table with one replica, on a node that may go.
    let (table, lost) = (0..)
        .find_map(|number| {
            let name = format!("lone{number}");
            let new = NewTable { replication: Some(1), ..NewTable::hash(name.clone(), 1) };
            let created = house.ask(3, async |control| control.create_table(new).await).expect("created");
            let node = created.shards[0].replicas[0].node.0;
            (node != 3).then_some((name, node))
        })
        .expect("some node other than 3");
    house.crash(lost);
    let definition = DEFINITION.replace("\"v\"", "\"first\"").replace("\"t\"", &format!("\"{table}\""));
    let create = |definition: &str| house.ask(3, async |control| control.create_view(NewView::of(definition)).await);
    eventually("the first is created", || create(&definition).ok());
    eventually("the second is created", || create(DEFINITION).ok());
    eventually("the second is ready", || view_shard(&house));
    let directory = house.node(3).directory();
    let first = directory.table_by_name("first").expect("it was created").descriptor.view.clone();
    assert!(first.is_some_and(|view| !view.ready), "nobody knows what it should hold");
}

/// The leaders of all shards of the source.
fn sources(house: &House) -> Vec<Arc<Shard>> {
    let leader = |shard: &Arc<ShardDescriptor>| house.node(house.leader_of(shard.id)).replicas().get(shard.id);
    house.shards().iter().map(|shard| leader(shard).expect("it leads")).collect()
}

/// A page of one change makes the nodes of a view as much work as one of many.
#[test]
fn beside_clients_news_gather() {
    let (house, _, shard, _) = house_with_a_view();
    let sources = sources(&house);
    let before = shard.group().applied();
    let began = Instant::now();
    for number in 0..800 {
        // As if there were many, however slow this machine is.
        sources.iter().for_each(|source| (0..100).for_each(|_| source.load().count(&source.state().start)));
        house.put("k0", format!(r#"{{"user": "u{}"}}"#, number % 7), None);
    }
    let newest = house.put("k0", r#"{"user": "last"}"#.to_owned(), None).body.timestamp;
    let entries = shard.group().applied() - before;
    let gathered = u64::try_from(began.elapsed().as_millis() / GATHER.as_millis()).expect("not that long");
    assert!(entries <= gathered + OTHER_ENTRIES, "{entries} entries in {:?}", began.elapsed());
    eventually("all of them are there", || {
        let state = shard.state();
        let sections = state.watermarks.sections(&state.start, &state.end);
        let last = sections.iter().flat_map(|section| &section.parts).filter_map(|part| part.position.clone());
        last.into_iter().any(|position| position.covers(newest)).then_some(())
    });
}

/// Whoever waits for a view is not to wait while news gather, whichever node is asked and wherever the sources are led.
#[test]
fn upkeep_hears_of_who_waits_for_a_view() {
    let (house, ..) = house_with_a_view();
    let read = |id: u64, level| {
        let node = house.node(id);
        let context = Context { deadline: node.clock().now() + PATIENCE, forwarded: true, table: None };
        let read = Read { keys: vec!["{u1}k1".into()], level, any_replica: true };
        let runtime = &house.life(id).expect("it runs").runtime;
        runtime.block_on(node.execute("v", Request::Read(read), context)).ok()
    };
    let heard = |since| {
        let heard = |source: &Arc<Shard>| {
            let runtime = &house.life(1).expect("it runs").runtime;
            runtime.block_on(source.awaited().since(since, since))
        };
        sources(&house).iter().map(heard).collect::<Vec<_>>()
    };
    let now = || house.node(1).clock().now();
    for id in 1..=3 {
        let began = now();
        eventually("it answers", || read(id, ReadLevel::Linearizable));
        assert_eq!(heard(began), [true; 4], "node {id}");
    }
    // Who takes what is there waits for nobody.
    std::thread::sleep(LOOK_EVERY * 3);
    let began = now();
    for id in 1..=3 {
        eventually("it answers", || read(id, ReadLevel::Any));
    }
    // A proof of its age is asked for in the background.
    std::thread::sleep(SETTLED_AFTER / 4);
    assert_eq!(heard(began), [false; 4]);
}
