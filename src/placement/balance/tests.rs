//! Plans as properties, as single cases, and as golden runs of clusters.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use goldenscript::{Command, Context};
use proptest::collection::vec;
use proptest::prelude::*;

use super::simulation::{Cluster, Run};
use super::*;
use crate::types::TableId;

/// Equal nodes 1, 2, … over these zones in turn, and one table.
fn cluster(nodes: u64, zones: &[&str], shards: u64, replication: usize) -> Cluster {
    let mut cluster = Cluster::default();
    for node in 0..nodes {
        cluster.add_node(node + 1, zones[node as usize % zones.len()], 1, false);
    }
    cluster.add_table(1, shards, replication).expect("nodes enough");
    cluster
}

fn settled(cluster: &mut Cluster) -> Run {
    cluster.run().unwrap_or_else(|fault| panic!("{fault}"))
}

fn steps_of(cluster: &Cluster) -> Vec<String> {
    plan(&cluster.picture, &cluster.bounds).steps.iter().map(Step::to_string).collect()
}

#[test]
fn a_new_table_is_left_where_it_was_placed() {
    for (nodes, zones, shards) in [(3, vec!["a", "b", "c"], 8), (5, vec!["a", "b", "c"], 40), (7, vec!["z"], 100)] {
        let cluster = cluster(nodes, &zones, shards, 3);
        let plan = plan(&cluster.picture, &cluster.bounds);
        assert!(plan.settled && plan.steps.is_empty(), "{nodes} nodes: {:?}", plan.steps);
    }
}

#[test]
fn a_silent_node_is_waited_for() {
    let mut cluster = cluster(4, &["z"], 12, 3);
    cluster.silence(2, Standing::Serving);
    let steps = plan(&cluster.picture, &cluster.bounds).steps;
    assert!(steps.iter().all(|step| matches!(step, Step::Transfer { .. })), "{steps:?}");
    settled(&mut cluster);
    let held = cluster.picture.shards.iter().filter(|shard| shard.replicas.iter().any(|at| at.node == NodeId(2)));
    assert_eq!(held.count(), 9);
    // A new node gets only what others have too much: nothing of the silent one's, and no shard that misses a voter.
    cluster.add_node(5, "z", 1, false);
    for step in plan(&cluster.picture, &cluster.bounds).steps {
        let shard = cluster.shard(step.shard()).clone();
        assert!(shard.replicas.iter().all(|replica| replica.node != NodeId(2)), "{step}");
    }
}

#[test]
fn a_shard_that_lost_its_majority_is_reported_and_takes_no_place() {
    let mut cluster = cluster(5, &["z"], 1, 3);
    let nodes: Vec<u64> = cluster.picture.shards[0].replicas.iter().map(|replica| replica.node.0).collect();
    cluster.silence(nodes[0], Standing::Lost);
    cluster.silence(nodes[1], Standing::Lost);
    let plan = plan(&cluster.picture, &cluster.bounds);
    assert_eq!(plan.steps, []);
    assert!(plan.settled);
    let mut names = [nodes[0], nodes[1]];
    names.sort_unstable();
    assert_eq!(
        plan.stuck,
        [format!(
            "s1 has lost a majority of voters, those on n{} and n{}, and without it members cannot be changed: bring one \
             of these nodes back",
            names[0], names[1]
        )]
    );
}

#[test]
fn those_that_could_lose_the_fewest_more_are_repaired_first() {
    let mut cluster = cluster(6, &["z"], 6, 5);
    cluster.add_table(2, 12, 3).expect("nodes enough");
    cluster.bounds.moves_max = 2;
    cluster.silence(1, Standing::Lost);
    let threes: BTreeSet<ShardId> =
        cluster.picture.shards.iter().filter(|shard| shard.replicas.len() == 3).map(|shard| shard.shard).collect();
    let moves: Vec<ShardId> = plan(&cluster.picture, &cluster.bounds)
        .steps
        .iter()
        .filter(|step| matches!(step, Step::Move { .. }))
        .map(Step::shard)
        .collect();
    assert_eq!(moves.len(), 2);
    assert!(moves.iter().all(|shard| threes.contains(shard)), "{moves:?}");
}

#[test]
fn what_is_under_way_counts_and_is_left_alone() {
    let mut cluster = cluster(3, &["z"], 30, 3);
    cluster.add_node(4, "z", 1, false);
    cluster.bounds.moves_max = 3;
    cluster.bounds.moves_per_node_max = 2;
    cluster.bounds.transfers_max = 0;
    let first = cluster.picture.shards[0].replicas[2];
    cluster.picture.shards[0].moving = Some(Moving { replica: first.replica, to: NodeId(4) });
    // The newcomer is listed as well, as while it catches up.
    let newcomer = cluster.replica(NodeId(4), false);
    cluster.picture.shards[0].replicas.push(newcomer);
    assert_eq!(steps_of(&cluster).len(), 1, "node 4 may take part in two moves");
    cluster.picture.shards[1].busy = true;
    assert_eq!(steps_of(&cluster).len(), 1, "three shards may move");
    cluster.picture.shards[2].busy = true;
    let plan = plan(&cluster.picture, &cluster.bounds);
    assert_eq!(plan.steps, [], "three shards are moving");
    assert!(!plan.settled);
    assert_eq!(plan.nodes[3].replicas.count, 1);
}

#[test]
fn without_room_for_moves_nothing_is_settled_that_is_not_even() {
    let mut cluster = cluster(3, &["z"], 30, 3);
    cluster.bounds.moves_max = 0;
    assert!(plan(&cluster.picture, &cluster.bounds).settled);
    cluster.add_node(4, "z", 1, false);
    let plan = plan(&cluster.picture, &cluster.bounds);
    assert_eq!((plan.steps.len(), plan.settled), (0, false));
}

#[test]
fn a_shard_hotter_than_what_is_too_much_stays_and_others_go() {
    let mut cluster = cluster(2, &["z"], 2, 2);
    for (shard, load) in cluster.picture.shards.iter_mut().zip([700, 500]) {
        shard.leader = Some(NodeId(1));
        shard.load = load;
    }
    // Node 1 has 450 requests a second above its share. The first shard would take 525 of them along, the second 375.
    cluster.bounds.load_min = 0;
    assert_eq!(steps_of(&cluster), ["let n2 lead s2: its node serves too many requests"]);
    settled(&mut cluster);
    assert_eq!(cluster.shard(ShardId(1)).leader, Some(NodeId(1)));
}

#[test]
fn the_system_shard_is_left_out() {
    let mut cluster = cluster(3, &["z"], 3, 3);
    let mut system = cluster.picture.shards[0].clone();
    system.shard = ShardId::SYSTEM;
    system.table = TableId::SYSTEM;
    system.leader = Some(NodeId(1));
    cluster.picture.shards.push(system);
    cluster.node(1).standing = Standing::Draining;
    cluster.add_node(4, "z", 1, false);
    let run = settled(&mut cluster);
    assert!(run.moves[&Why::NodeDrains] == 3, "{:?}", run.moves);
    assert!(cluster.shard(ShardId::SYSTEM).replicas.iter().any(|replica| replica.node == NodeId(1)));
}

#[test]
fn read_replicas_leave_too_and_never_lead() {
    let mut cluster = cluster(5, &["z"], 10, 2);
    for at in 0..10 {
        let shard = cluster.picture.shards[at].clone();
        let free = (1..=5).map(NodeId).find(|&node| shard.replicas.iter().all(|replica| replica.node != node));
        let learner = cluster.replica(free.expect("five nodes"), false);
        cluster.picture.shards[at].replicas.push(learner);
    }
    cluster.silence(1, Standing::Lost);
    cluster.node(3).standing = Standing::Draining;
    settled(&mut cluster);
    for shard in &cluster.picture.shards {
        let nodes: BTreeSet<NodeId> = shard.replicas.iter().map(|replica| replica.node).collect();
        assert_eq!(nodes.len(), 3, "{shard:?}");
        let leader = shard.replicas.iter().find(|replica| Some(replica.node) == shard.leader);
        if shard.replicas.iter().filter(|replica| replica.voter).all(|replica| replica.node != NodeId(1)) {
            assert!(nodes.is_disjoint(&BTreeSet::from([NodeId(1), NodeId(3)])), "{shard:?}");
            assert!(leader.is_some_and(|leader| leader.voter), "{shard:?}");
        }
    }
}

#[test]
fn many_small_tables_are_spread_over_nodes_of_unequal_capacity() {
    let mut cluster = Cluster::default();
    for node in 1..=3 {
        cluster.add_node(node, "z", if node == 3 { 2 } else { 1 }, false);
    }
    for table in 1..=40 {
        cluster.add_table(table, 1, 1).expect("nodes enough");
        // All of them where nobody has much.
        let shard = cluster.picture.shards.last_mut().expect("just added");
        shard.replicas[0].node = NodeId(3);
        shard.leader = Some(NodeId(3));
    }
    settled(&mut cluster);
    let held = |node: usize| plan(&cluster.picture, &cluster.bounds).nodes[node].replicas.count;
    assert!((9..=11).contains(&held(0)) && (9..=11).contains(&held(1)), "{} {} {}", held(0), held(1), held(2));
}

/// A cluster in any state: uneven, partly lost or draining, with hot shards and read replicas.
fn clusters() -> impl Strategy<Value = Cluster> {
    let node = (0usize..4, 1u32..4, 0u32..14, any::<bool>());
    let shard = (1u32..4, vec(any::<prop::sample::Index>(), 1..6), any::<bool>(), 0u64..6, 0u64..40);
    (vec(node, 1..10), vec(shard, 0..40), 1usize..6, 1usize..4, 1usize..9).prop_map(
        |(nodes, shards, moves_max, moves_per_node_max, transfers_max)| {
            let mut cluster = Cluster::default();
            cluster.bounds = Bounds { moves_max, moves_per_node_max, transfers_max, load_min: 10, ..Bounds::default() };
            for (id, (zone, capacity, _, spare)) in (1..).zip(&nodes) {
                cluster.add_node(id, &format!("z{zone}"), *capacity, *spare && nodes.len() > 4);
            }
            for (id, (table, places, learner, heat, bytes)) in (1..).zip(shards) {
                let mut on: Vec<u64> = places.iter().map(|place| place.index(nodes.len()) as u64 + 1).collect();
                let mut seen = BTreeSet::new();
                on.retain(|&node| seen.insert(node));
                let voters = if learner { on.len().div_ceil(2) } else { on.len() };
                let replicas: Vec<ReplicaPicture> =
                    (on.iter().enumerate()).map(|(at, &node)| cluster.replica(NodeId(node), at < voters)).collect();
                cluster.picture.shards.push(ShardPicture {
                    shard: ShardId(id),
                    table: TableId(table),
                    leader: Some(replicas[0].node),
                    replicas,
                    bytes: bytes << 20,
                    load: if heat == 5 { 300 } else { heat * 7 },
                    busy: false,
                    moving: None,
                });
            }
            for (id, (_, _, fate, _)) in (1..).zip(&nodes) {
                match fate {
                    0 => cluster.silence(id, Standing::Lost),
                    1 => cluster.node(id).standing = Standing::Draining,
                    2 => cluster.node(id).capacity = 0,
                    _ => {}
                }
            }
            cluster
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_makes_something_better_and_planning_ends(mut cluster in clusters()) {
        let run = cluster.run();
        prop_assert!(run.is_ok(), "{}", run.err().unwrap_or_default());
        let again = plan(&cluster.picture, &cluster.bounds);
        prop_assert!(again.settled && again.steps.is_empty());
        for shard in &cluster.picture.shards {
            let nodes: BTreeSet<NodeId> = shard.replicas.iter().map(|replica| replica.node).collect();
            prop_assert_eq!(nodes.len(), shard.replicas.len());
            let Some(leader) = shard.leader else { continue };
            prop_assert!(shard.replicas.iter().any(|replica| replica.node == leader && replica.voter));
        }
    }

    #[test]
    fn what_need_not_stay_on_a_node_that_goes_is_gone(mut cluster in clusters()) {
        let run = cluster.run().map_err(TestCaseError::fail)?;
        let takers: Vec<NodeId> = (cluster.picture.nodes.iter())
            .filter(|node| node.standing == Standing::Serving && node.capacity > 0)
            .map(|node| node.node)
            .collect();
        let standing = |id: NodeId| {
            let node = cluster.picture.nodes.iter().find(|node| node.node == id).expect("a known node");
            if node.capacity == 0 && node.standing == Standing::Serving { Standing::Draining } else { node.standing }
        };
        for shard in &cluster.picture.shards {
            let voters: Vec<NodeId> =
                shard.replicas.iter().filter(|replica| replica.voter).map(|replica| replica.node).collect();
            let alive = voters.iter().filter(|&&node| standing(node) != Standing::Lost).count();
            let goes = shard.replicas.iter().any(|replica| standing(replica.node) != Standing::Serving);
            let room = takers.iter().any(|&node| shard.replicas.iter().all(|replica| replica.node != node));
            if goes {
                prop_assert!(alive <= voters.len() / 2 || !room, "{shard:?}");
                prop_assert!(!run.stuck.is_empty(), "nothing said of {shard:?}");
            }
        }
    }

    #[test]
    fn voters_lie_in_as_many_zones_as_there_are(mut cluster in clusters()) {
        for shard in &mut cluster.picture.shards {
            for replica in &mut shard.replicas {
                replica.voter = true;
            }
        }
        cluster.run().map_err(TestCaseError::fail)?;
        let zones: BTreeSet<&str> = (cluster.picture.nodes.iter())
            .filter(|node| node.standing == Standing::Serving && node.capacity > 0 && !node.spare)
            .map(|node| node.zone.as_str())
            .collect();
        for shard in &cluster.picture.shards {
            let stays = |node: &NodePicture| node.standing == Standing::Serving && node.capacity > 0;
            let serving = |id: NodeId| cluster.picture.nodes.iter().any(|node| node.node == id && stays(node));
            if shard.leader.is_some() && shard.replicas.iter().all(|replica| serving(replica.node)) {
                let (distinct, voters) = cluster.zones_of(shard);
                prop_assert!(distinct >= voters.min(zones.len()), "{distinct} zones for {shard:?}");
            }
        }
    }

    #[test]
    fn the_order_of_the_picture_does_not_matter(cluster in clusters(), turn in 0usize..50) {
        let mut turned = cluster.picture.clone();
        let (nodes, shards) = (turned.nodes.len(), turned.shards.len());
        turned.nodes.rotate_left(turn % nodes);
        turned.shards.rotate_left(turn % shards.max(1));
        prop_assert_eq!(plan(&cluster.picture, &cluster.bounds), plan(&turned, &cluster.bounds));
    }

    #[test]
    fn a_new_node_gets_its_share_and_little_else_moves(
        nodes in 3u64..12, apart: bool, tables in vec((1u64..60, 1usize..4), 1..4), capacity in 1u32..3,
    ) {
        let mut cluster = Cluster::default();
        for node in 1..=nodes {
            cluster.add_node(node, &if apart { node.to_string() } else { "z".to_owned() }, 1, false);
        }
        for (table, &(shards, replication)) in (1..).zip(&tables) {
            cluster.add_table(table, shards, replication).expect("nodes enough");
        }
        cluster.run().map_err(TestCaseError::fail)?;
        cluster.add_node(nodes + 1, if apart { "new" } else { "z" }, capacity, false);
        let run = cluster.run().map_err(TestCaseError::fail)?;
        prop_assert_eq!(run.returned, 0);
        // What the new node's share of each table comes to; and one move of each may be for rounding.
        let capacity = u64::from(capacity);
        let share = |&(shards, replication): &(u64, usize)| shards * replication as u64 * capacity;
        let least: u64 = tables.iter().map(|table| share(table).div_ceil(nodes + capacity)).sum();
        let most = 1.2 * least as f64 + tables.len() as f64;
        prop_assert!(run.moved() as f64 <= most, "{} moves, {least} needed", run.moved());
        for part in plan(&cluster.picture, &cluster.bounds).nodes {
            let Part { count, fair } = part.replicas;
            let off = (count as f64 - fair).abs();
            prop_assert!(off <= (0.1 * fair).max(1.0) + 1e-6, "{count} of {fair} on {}", part.node);
        }
    }

    #[test]
    fn leaders_are_even_where_everyone_holds_everything(nodes in 2u64..6, tables in vec(1u64..20, 1..5)) {
        let mut cluster = Cluster::default();
        for node in 1..=nodes {
            cluster.add_node(node, "z", 1, false);
        }
        for (table, &shards) in (1..).zip(&tables) {
            cluster.add_table(table, shards, nodes as usize).expect("nodes enough");
        }
        for shard in &mut cluster.picture.shards {
            shard.leader = Some(NodeId(1));
        }
        let run = cluster.run().map_err(TestCaseError::fail)?;
        prop_assert_eq!(run.moved(), 0);
        let spread = |of: &dyn Fn(&ShardPicture) -> bool| {
            let led = |node| {
                let leads = |shard: &&ShardPicture| of(shard) && shard.leader == Some(NodeId(node));
                cluster.picture.shards.iter().filter(leads).count()
            };
            let counts: Vec<usize> = (1..=nodes).map(led).collect();
            counts.iter().max().unwrap_or(&0) - counts.iter().min().unwrap_or(&0)
        };
        for (table, _) in (1..).zip(&tables) {
            prop_assert!(spread(&|shard| shard.table == TableId(table)) <= 1);
        }
        prop_assert!(spread(&|_| true) <= 1);
    }
}

/// The commands of the scripts:
/// `add node N zone=Z [capacity=C] [spare=true]` · `add nodes A..B zones=Z,Z,…` · `add table T shards=N replication=R`
/// `lose|drain|silence|wake|remove node N` · `remove table T` · `heat shard|table|leader N load=L` · `bounds [moves=N]
/// [per_node=N] [transfers=N]`
/// `plan`: the next steps · `show`: how it is spread · `run`: does what is planned until it is settled
#[derive(Default)]
struct Script {
    cluster: Cluster,
}

impl Script {
    fn add(
        &mut self,
        kind: &str,
        args: &mut goldenscript::ArgumentConsumer<'_>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let which = args.next_pos().ok_or("which?")?.to_owned();
        match kind {
            "node" => {
                let capacity = args.take_key("capacity").unwrap_or("1").parse()?;
                let spare = args.take_key("spare").unwrap_or("false").parse()?;
                self.cluster.add_node(which.parse()?, args.take_key("zone").unwrap_or("z"), capacity, spare);
            }
            "nodes" => {
                let (first, last) = which.split_once("..").ok_or("from which to which?")?;
                let zones: Vec<&str> = args.take_key("zones").unwrap_or("z").split(',').collect();
                for (at, id) in (first.parse()?..=last.parse()?).enumerate() {
                    self.cluster.add_node(id, zones[at % zones.len()], 1, false);
                }
            }
            "table" => {
                let shards = args.take_key("shards").ok_or("shards?")?.parse()?;
                let replication = args.take_key("replication").unwrap_or("3").parse()?;
                self.cluster.add_table(which.parse()?, shards, replication)?;
            }
            other => return Err(format!("a {other} cannot be added").into()),
        }
        Ok(())
    }

    fn heat(
        &mut self,
        kind: &str,
        args: &mut goldenscript::ArgumentConsumer<'_>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let which = args.next_pos().ok_or("which?")?.parse()?;
        let load = args.take_key("load").ok_or("load?")?.parse()?;
        match kind {
            "shard" => self.cluster.shard(ShardId(which)).load = load,
            "table" | "leader" => {
                for shard in &mut self.cluster.picture.shards {
                    let led = shard.leader == Some(NodeId(which));
                    if if kind == "leader" { led } else { u64::from(shard.table.0) == which } {
                        shard.load = load;
                    }
                }
            }
            other => return Err(format!("a {other} has no load").into()),
        }
        Ok(())
    }
}

impl goldenscript::Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn std::error::Error>> {
        let mut args = command.consume_args();
        let mut out = String::new();
        match command.name.as_str() {
            "plan" => {
                let plan = plan(&self.cluster.picture, &self.cluster.bounds);
                for step in &plan.steps {
                    writeln!(out, "{step}")?;
                }
                for stuck in &plan.stuck {
                    writeln!(out, "stuck: {stuck}")?;
                }
                if plan.settled {
                    writeln!(out, "settled")?;
                }
            }
            "show" => out = self.cluster.describe(None),
            "run" => {
                let run = self.cluster.run()?;
                if run.returned > 0 {
                    return Err(format!("{} replicas came back", run.returned).into());
                }
                out = self.cluster.describe(Some(&run));
            }
            "bounds" => {
                let bounds = &mut self.cluster.bounds;
                for (key, bound) in [
                    ("moves", &mut bounds.moves_max),
                    ("per_node", &mut bounds.moves_per_node_max),
                    ("transfers", &mut bounds.transfers_max),
                ] {
                    if let Some(value) = args.take_key(key) {
                        *bound = value.parse()?;
                    }
                }
            }
            verb => {
                let kind = args.next_pos().ok_or("what?")?.to_owned();
                match verb {
                    "add" => self.add(&kind, &mut args)?,
                    "heat" => self.heat(&kind, &mut args)?,
                    _ => {
                        let which: u64 = args.next_pos().ok_or("which?")?.parse()?;
                        match verb {
                            "lose" => self.cluster.silence(which, Standing::Lost),
                            "silence" => self.cluster.silence(which, Standing::Serving),
                            "drain" => self.cluster.node(which).standing = Standing::Draining,
                            "wake" => {
                                let node = self.cluster.node(which);
                                (node.standing, node.reachable) = (Standing::Serving, true);
                            }
                            "remove" if kind == "table" => {
                                self.cluster.picture.shards.retain(|shard| u64::from(shard.table.0) != which);
                            }
                            "remove" => self.cluster.picture.nodes.retain(|node| node.node != NodeId(which)),
                            other => return Err(format!("{other}?").into()),
                        }
                    }
                }
            }
        }
        args.reject_next()?;
        Ok(out)
    }
}

#[test]
fn runs_are_golden() {
    for script in ["grow", "lose", "drain", "zones", "heat", "spare", "large"] {
        let path = format!("{}/src/placement/testscripts/{script}", env!("CARGO_MANIFEST_DIR"));
        goldenscript::run(&mut Script::default(), path).expect(script);
    }
}
