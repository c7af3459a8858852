//! Shards that are being split or merged when their quorum is lost.

use super::*;
use crate::catalog::{Directory, RecoveryRow};
use crate::types::{MergeIntent, SplitIntent};

const LEFT: ShardId = ShardId(1);
const RIGHT: ShardId = ShardId(2);
/// The epoch in which the right shard of a merge ends.
const SEALED: Epoch = Epoch(2);

/// Two neighbours of which the first is to take over the second, as the catalog has them.
fn merging(left: &[u64], right: &[u64]) -> [ShardDescriptor; 2] {
    let (mut one, mut other) = (shard(LEFT.0, left), shard(RIGHT.0, right));
    one.merge = Some(MergeIntent { right: RIGHT, sealed: SEALED });
    other.merging_into = Some(LEFT);
    [one, other]
}

/// The directory as it is when the recovery is noted in it.
struct Catalog {
    directory: Directory,
    recovery: RecoveryRow,
}

impl Catalog {
    fn of(store: &Store, plan: &Plan) -> Catalog {
        let directory = store.collected().directory().expect("a catalog");
        let mut catalog = Catalog { directory, recovery: plan.recovery.clone() };
        let noted = change::note_recovery(&catalog.directory, &catalog.recovery).expect("it can be noted");
        catalog.write(&noted.expect("it is news"));
        catalog
    }

    fn write(&mut self, write: &Write) {
        let version = self.directory.revision().next();
        let rows = write.operations.iter().map(|operation| match &operation.action {
            Action::Put { value, .. } => (operation.key.clone(), version, Some(value.clone())),
            _ => (operation.key.clone(), version, None),
        });
        self.directory = self.directory.apply(rows).expect("rows that make sense");
    }

    /// Whether the shard's row could be told that it goes on from one replica, which has this epoch.
    fn adopt(&mut self, shard: ShardId, epoch: u64) -> bool {
        let write = change::adopt_survivor(&self.directory, shard, Epoch(epoch)).expect("it fits");
        write.inspect(|write| self.write(write)).is_some()
    }

    fn row(&self, shard: ShardId) -> &ShardDescriptor {
        self.directory.shard(shard).expect("it has a row")
    }

    /// Every key from the first shard's first to the second's last belongs to one shard, and nothing is under way.
    fn assert_whole(&self) {
        let rows: Vec<_> = self.directory.shards().filter(|row| row.table == TableId(1)).collect();
        assert_eq!(rows.first().expect("a shard").start, shard(LEFT.0, &[1]).start);
        assert_eq!(rows.last().expect("a shard").end, shard(RIGHT.0, &[1]).end);
        assert!(rows.windows(2).all(|pair| pair[0].end == pair[1].start), "{rows:?}");
        let still = |row: &ShardDescriptor| row.split.is_some() || row.merge.is_some() || row.merging_into.is_some();
        assert!(!rows.iter().any(|row| still(row)), "{rows:?}");
    }
}

impl Store {
    /// Changes what a replica has applied.
    fn shape(&self, shard: ShardId, change: impl FnOnce(&mut State)) -> &Store {
        let survivor = self.survivor(shard);
        let mut state = survivor.state.expect("it has applied something");
        change(&mut state);
        let mut batch = Batch::new();
        batch.put(Family::Data, side::applied(shard), state.encode());
        self.memory.write(batch).expect("written");
        self.memory.sync().expect("synced");
        self
    }

    fn survivor(&self, shard: ShardId) -> Survivor {
        let all = Survivor::load_all(&*self.memory).expect("they can be read");
        all.into_iter().find(|survivor| survivor.record.shard == shard).expect("it is there")
    }
}

fn seal(state: &mut State) {
    (state.epoch, state.sealed_for) = (SEALED, Some(LEFT));
}

fn fates(plan: &Plan) -> Vec<(u64, Fate)> {
    plan.shards.iter().map(|shard| (shard.shard.0, shard.fate)).collect()
}

#[test]
fn a_shard_that_was_sealed_stays_so_until_its_left_neighbour_has_said_that_the_merge_is_off() {
    let shards = merging(&[1, 2, 3], &[1, 2, 3]);
    let one = Store::new(1);
    one.add(&shards[0], &[1]).add(&shards[1], &[1]).catalog(&shards, &[1]).shape(RIGHT, seal);
    let plan = make(&[&one], &[2, 3, 4, 5]).expect("a plan");
    assert_eq!(fates(&plan), [(0, Fate::Recovered), (1, Fate::Recovered), (2, Fate::Recovered)]);
    assert_eq!(plan.merges, [(LEFT, RIGHT)], "it is said that the merge is given up");
    assert!(plan.recovery.shards.iter().all(|shard| !shard.released), "that is not for the right one to say");
    let catalog = one.collected().directory().expect("a catalog");
    apply(&*one.memory, &plan, PLANNED_MS, false).expect("applied");
    assert_eq!((one.survivor(RIGHT).end.sealed_for, one.survivor(RIGHT).end.epoch), (Some(LEFT), SEALED));
    assert_eq!(one.survivor(LEFT).end.epoch, Epoch(1), "its epoch tells how far the merge has come");

    // The rows wait for that too: whoever leads the left one knows by them what to do.
    let mut catalog = Catalog { directory: catalog, recovery: plan.recovery.clone() };
    let noted = change::note_recovery(&catalog.directory, &catalog.recovery).expect("it can be noted");
    catalog.write(&noted.expect("it is news"));
    let row = catalog.directory.recovery().expect("noted");
    assert!(row.concerns(LEFT) && row.concerns(RIGHT) && !row.concerns(ShardId(3)));
    assert!(!catalog.adopt(LEFT, 1) && !catalog.adopt(RIGHT, 2));
    let off = change::abandon_merge(&catalog.directory, LEFT, Epoch(1)).expect("it is off").expect("it is news");
    catalog.write(&off);
    // A report from before the end of the merge comes late.
    assert!(catalog.adopt(LEFT, 2) && catalog.adopt(RIGHT, 2));
    assert_eq!((catalog.row(LEFT).epoch, catalog.row(RIGHT).epoch), (Epoch(2), Epoch(3)));
    catalog.assert_whole();
}

#[test]
fn a_merge_that_has_happened_is_not_undone() {
    let shards = merging(&[1, 2, 3], &[1, 2, 3]);
    let one = Store::new(1);
    // Of the right one, a node that was behind has a replica left.
    let two = Store::new(2);
    one.add(&shards[0], &[1]).catalog(&shards, &[1, 1]).shape(LEFT, |state| {
        state.end = shards[1].end.clone().into();
        state.epoch = Epoch(SEALED.0 + 1);
        state.absorbed = vec![RIGHT];
    });
    two.add(&shards[1], &[1]).catalog(&shards, &[1]).shape(RIGHT, seal);
    let plan = make(&[&one, &two], &[3, 4, 5]).expect("a plan");
    assert_eq!(fates(&plan), [(0, Fate::Recovered), (1, Fate::Recovered)], "nobody goes on from the right one");
    assert!(plan.merges.is_empty() && plan.recovery.gone.is_empty());
    let mut catalog = Catalog::of(&one, &plan);
    assert!(!catalog.adopt(LEFT, 3), "the merge is noted first");
    let done = change::finish_merge(&catalog.directory, LEFT, Epoch(1)).expect("it fits").expect("it is news");
    catalog.write(&done);
    assert!(catalog.adopt(LEFT, 3));
    catalog.assert_whole();

    // A replica that was taken over, whose end a crash has cut short, is over.
    one.add(&shards[1], &[1]);
    assert_eq!(one.collected().replica(RIGHT), None);
}

#[test]
fn a_merge_with_a_shard_of_which_nothing_is_left_is_let_go() {
    // The right one is gone: the left one's leader will say that the merge is off, and has nobody to tell.
    let shards = merging(&[1, 2, 3], &[3, 4, 5]);
    let one = Store::new(1);
    one.add(&shards[0], &[1]).catalog(&shards, &[1]);
    let plan = make(&[&one], &[2, 3, 4, 5]).expect("a plan");
    assert_eq!((&plan.merges, &plan.recovery.gone), (&vec![(LEFT, RIGHT)], &vec![RIGHT]));
    let catalog = Catalog::of(&one, &plan);
    assert_eq!(catalog.row(LEFT).merge, shards[0].merge);
    assert!(catalog.directory.recovery().expect("noted").concerns(RIGHT));

    // The left one is gone: nobody will ever take the right one over.
    let shards = merging(&[3, 4, 5], &[1, 2, 3]);
    let one = Store::new(1);
    one.add(&shards[1], &[1]).catalog(&shards, &[1]);
    let plan = make(&[&one], &[2, 3, 4, 5]).expect("a plan");
    assert_eq!((&plan.merges, &plan.recovery.gone), (&vec![(LEFT, RIGHT)], &vec![LEFT]));
    let mut catalog = Catalog::of(&one, &plan);
    assert!(catalog.adopt(RIGHT, 1));
    catalog.assert_whole();

    // Even if it is sealed: it goes on by itself.
    let one = Store::new(1);
    one.add(&shards[1], &[1]).catalog(&shards, &[1]).shape(RIGHT, seal);
    let plan = make(&[&one], &[2, 3, 4, 5]).expect("a plan");
    let mut catalog = Catalog::of(&one, &plan);
    apply(&*one.memory, &plan, PLANNED_MS, false).expect("applied");
    let end = one.survivor(RIGHT).end;
    assert_eq!((end.sealed_for, end.epoch), (None, Epoch(SEALED.0 + 1)));
    assert!(catalog.adopt(RIGHT, 3));
    assert_eq!(catalog.row(RIGHT).epoch, Epoch(3));
    catalog.assert_whole();

    // But not if it has a majority, whose log is not to be touched.
    let (one, two) = (Store::new(1), Store::new(2));
    one.add(&shards[1], &[1]).catalog(&shards, &[1]).shape(RIGHT, seal);
    two.add(&shards[1], &[1]).catalog(&shards, &[1]).shape(RIGHT, seal);
    assert!(refusal(make(&[&one, &two], &[3, 4, 5])).contains("s2 has its majority, but is sealed"));
}

#[test]
fn a_shard_sealed_for_a_merge_that_the_surviving_catalog_has_not_heard_of_is_refused() {
    let shards = [shard(LEFT.0, &[1, 2, 3]), shard(RIGHT.0, &[1, 2, 3])];
    let one = Store::new(1);
    one.add(&shards[0], &[1]).add(&shards[1], &[1]).catalog(&shards, &[1]).shape(RIGHT, seal);
    assert!(refusal(make(&[&one], &[2, 3, 4, 5])).contains("s2 is sealed to be taken over by s1"));
}

#[test]
fn a_split_goes_on_if_the_log_has_it_and_is_forgotten_if_not() {
    let mut parent = shard(LEFT.0, &[1, 2, 3]);
    parent.end = shard(RIGHT.0, &[1]).end;
    let child = ShardDescriptor { epoch: Epoch(2), ..shard(RIGHT.0, &[1, 2, 3]) };
    let replicas = child.replicas.clone();
    parent.split = Some(SplitIntent { at: child.start.clone(), child: RIGHT, replicas, unasked: false });
    let listed = std::slice::from_ref(&parent);

    let one = Store::new(1);
    one.add(&parent, &[1]).catalog(listed, &[1]);
    let plan = make(&[&one], &[2, 3, 4, 5]).expect("a plan");
    let mut catalog = Catalog::of(&one, &plan);
    assert!(catalog.adopt(LEFT, 1));
    catalog.assert_whole();

    // It has happened, on both sides.
    let one = Store::new(1);
    one.add(&parent, &[1]).add(&child, &[1]).catalog(listed, &[1]).shape(LEFT, |state| {
        (state.end, state.epoch) = (child.start.clone().into(), Epoch(2));
    });
    let plan = make(&[&one], &[2, 3, 4, 5]).expect("a plan");
    assert_eq!(fates(&plan), [(0, Fate::Recovered), (1, Fate::Recovered), (2, Fate::Recovered)]);
    let mut catalog = Catalog::of(&one, &plan);
    assert!(!catalog.adopt(RIGHT, 2), "it has no row yet");
    assert!(!catalog.adopt(LEFT, 2), "its row has to be told of the split first");
    let done = change::finish_split(&catalog.directory, LEFT, Epoch(1)).expect("it fits").expect("it is news");
    catalog.write(&done);
    assert!(catalog.adopt(RIGHT, 2) && catalog.adopt(LEFT, 2));
    catalog.assert_whole();
}

#[test]
fn what_is_left_from_before_a_split_that_the_catalog_knows_is_refused() {
    let (mut parent, child) = (shard(LEFT.0, &[1, 4, 5]), shard(RIGHT.0, &[1, 2, 3]));
    parent.epoch = Epoch(2);
    let listed = [parent.clone(), ShardDescriptor { epoch: Epoch(2), ..child.clone() }];
    let before = ShardDescriptor { epoch: Epoch(1), end: child.end, ..parent };
    let (one, two) = (Store::new(1), Store::new(2));
    one.add(&before, &[1]).catalog(&listed, &[1]);
    two.add(&listed[1], &[1]).catalog(&listed, &[1]);
    let why = refusal(make(&[&one, &two], &[3, 4, 5]));
    assert!(why.contains("what is left of s1 on n1 ends before a change of its range"), "{why}");
}

#[test]
fn what_an_earlier_recovery_left_undone_is_not_forgotten_by_the_next() {
    let shards = [shard(LEFT.0, &[1, 2, 3]), shard(RIGHT.0, &[1, 2, 3])];
    let one = Store::new(1);
    one.add(&shards[0], &[1]).add(&shards[1], &[1]).catalog(&shards, &[1]);
    let first = make(&[&one], &[2, 3, 4, 5]).expect("a plan");
    apply(&*one.memory, &first, PLANNED_MS, false).expect("applied");
    // The catalog has not heard of the first when the next is made; all shards consist of their heirs, and so are healthy.
    let mut collected = one.collected();
    assert!(
        refusal(Plan::make(std::slice::from_ref(&collected), &lost(&[2, 3, 4, 5]), PLANNED_MS + 1, 7))
            .contains("nothing to")
    );
    let right = collected.replicas.iter_mut().find(|replica| replica.shard == RIGHT).expect("there");
    right.log.quorums = vec![[ReplicaId(1), ReplicaId(2)].into()];
    let lost = lost(&[2, 3, 4, 5]);
    let second = Plan::make(std::slice::from_ref(&collected), &lost, PLANNED_MS + 1, 7).expect("a plan");
    let heir = |plan: &Plan, shard: ShardId| plan.recovery.of(shard).expect("recovered").heir.id;
    assert_eq!(heir(&second, LEFT), heir(&first, LEFT));
    assert_eq!(heir(&second, ShardId::SYSTEM), heir(&first, ShardId::SYSTEM));
    assert!(heir(&second, RIGHT) > heir(&first, RIGHT));
}
