//! Leaders change under load: nothing acknowledged is lost, nothing happens twice, nothing refused happens at all.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::{Cluster, On, index, timers};
use crate::raft::{Group, LogBounds, ProposeError};
use crate::runtime;

#[derive(Default)]
struct Seen {
    acknowledged: HashMap<Bytes, u64>,
    refused: HashSet<Bytes>,
    open: HashSet<Bytes>,
}

/// Proposes payloads that are all different, to whoever may lead, until told to end.
async fn client(number: usize, groups: Vec<Group>, end: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen::default();
    let (mut at, mut count) = (number, 0);
    while !end.load(Ordering::Relaxed) {
        let payload = Bytes::from(format!("client {number}, proposal {count}"));
        count += 1;
        match groups[at % groups.len()].propose(payload.clone()).await {
            Ok(outcomes) => {
                seen.acknowledged.insert(payload, index(&outcomes));
            }
            Err(ProposeError::NotLeader { .. }) => {
                seen.refused.insert(payload);
                at += 1;
                runtime::sleep(Duration::from_millis(5)).await;
            }
            Err(ProposeError::Undetermined | ProposeError::Stopped) => {
                seen.open.insert(payload);
                at += 1;
            }
        }
    }
    seen
}

async fn a_leader_change_under_load_loses_and_doubles_nothing(on: On, disturbances: usize) {
    let cluster = Cluster::new(
        on,
        3,
        0,
        LogBounds { bytes_max: 40_000, keep_bytes: 20_000, held_bytes_max: 20_000, held_keep_bytes: 5_000 },
    )
    .await;
    let end = Arc::new(AtomicBool::new(false));
    let groups: Vec<Group> = cluster.hosts.iter().map(|host| host.group.clone()).collect();
    let clients: Vec<_> = (0..8).map(|number| runtime::spawn(client(number, groups.clone(), end.clone()))).collect();
    let (mut cut_off, mut handed_over) = (0, 0);
    for round in 0..disturbances {
        runtime::sleep(Duration::from_millis(150)).await;
        let leader = cluster.leader().await;
        if round % 2 == 0 {
            cluster.isolate(leader);
            cut_off += 1;
            let others = cluster.others(leader);
            cluster.leader_among(&others).await;
            runtime::sleep(timers().election_min).await;
            cluster.net.heal();
        } else {
            let to = cluster.hosts[(leader + 1) % 3].replica;
            handed_over += usize::from(cluster.hosts[leader].group.transfer_leader(to).await.is_ok());
        }
    }
    end.store(true, Ordering::Relaxed);
    let mut all = Seen::default();
    for client in clients {
        let seen =
            runtime::timeout(super::PATIENCE, client).await.expect("every proposal is answered").expect("no panic");
        all.acknowledged.extend(seen.acknowledged);
        all.refused.extend(seen.refused);
        all.open.extend(seen.open);
    }
    assert!(
        cut_off > 0 && handed_over > 0 && all.acknowledged.len() > 100,
        "a vacuous run: {}",
        all.acknowledged.len()
    );
    let last = cluster.write("the last").await;
    let applied = cluster.agree_all(last).await;
    let mut places: BTreeMap<&Bytes, Vec<u64>> = BTreeMap::new();
    for (index, payload) in &applied {
        places.entry(payload).or_default().push(*index);
    }
    for (payload, index) in &all.acknowledged {
        assert_eq!(places.get(payload), Some(&vec![*index]), "acknowledged: {payload:?}");
    }
    for payload in &all.refused {
        assert_eq!(places.get(payload), None, "refused: {payload:?}");
    }
    for payload in &all.open {
        assert!(places.get(payload).is_none_or(|places| places.len() == 1), "undetermined: {payload:?}");
    }
    let known = all.acknowledged.len() + all.open.iter().filter(|payload| places.contains_key(payload)).count();
    assert_eq!(places.len(), known + 1, "nothing else was applied");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_change_under_load_loses_and_doubles_nothing_in_memory() {
    a_leader_change_under_load_loses_and_doubles_nothing(On::Memory, 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_change_under_load_loses_and_doubles_nothing_on_rocksdb() {
    a_leader_change_under_load_loses_and_doubles_nothing(On::Rocks, 4).await;
}
