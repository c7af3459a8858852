//! Nodes, tables, shards, and how they are.

use serde_json::{Value, json};
use trivet::keyspace::Layout;
use trivet::types::{Partitioning, TableDescriptor};
use trivet::wire::admin::{BalanceReport, ChecksumReport, ClusterStatus, NodeDetails, ShardDetails, TableDetails};

use super::Table;
use crate::cli::text;
use crate::cli::time::show_duration_ms;

fn partitioning(table: &TableDescriptor) -> String {
    match &table.partitioning {
        Partitioning::Hash => "hash".to_owned(),
        Partitioning::Range { group_delimiter: None } => "range".to_owned(),
        Partitioning::Range { group_delimiter: Some(delimiter) } => format!("range, groups by '{delimiter}'"),
    }
}

/// How it is partitioned, and whether it is a view.
fn kind(table: &TableDescriptor) -> String {
    format!("{}{}", partitioning(table), if table.view.is_some() { " (view)" } else { "" })
}

/// What a shard owns, in the user's terms: slots of a hash table, keys of a range table.
pub fn owned(table: &TableDescriptor, shard: &ShardDetails) -> String {
    Layout::of(table).describe(&shard.start, &shard.end)
}

fn node_list(shard: &ShardDetails) -> String {
    let names: Vec<String> = shard
        .replicas
        .iter()
        .map(|replica| format!("{}{}", replica.node, if replica.voter { "" } else { " (learner)" }))
        .collect();
    names.join(" ")
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A shard as JSON.
pub fn shard_json(table: Option<&TableDescriptor>, shard: &ShardDetails) -> Value {
    let replicas: Vec<Value> = shard
        .replicas
        .iter()
        .map(|replica| json!({"id": replica.id.0, "node": replica.node.0, "voter": replica.voter}))
        .collect();
    json!({
        "id": shard.id.0,
        "table": table.map(|table| table.name.clone()),
        "owns": table.map(|table| owned(table, shard)),
        "start_hex": text::hex(&shard.start),
        "end_hex": text::hex(&shard.end),
        "epoch": shard.epoch.0,
        "leader": shard.leader.map(|node| node.0),
        "term": shard.term,
        "last_log": shard.last_log,
        "applied": shard.applied,
        "settled": shard.settled,
        "replicas": replicas,
    })
}

/// A table as JSON.
pub fn table_json(details: &TableDetails) -> Value {
    let table = &details.table;
    let delimiter = match &table.partitioning {
        Partitioning::Range { group_delimiter } => group_delimiter.clone(),
        Partitioning::Hash => None,
    };
    json!({
        "id": table.id.0,
        "name": table.name,
        "partitioning": if matches!(table.partitioning, Partitioning::Hash) { "hash" } else { "range" },
        "group_delimiter": delimiter,
        "replication": table.replication,
        "read_replicas": table.read_replicas,
        "read_replica_zone": table.read_replica_zone,
        "history_ms": table.history_ms,
        "view": table.view.is_some(),
        "shards": details.shards.iter().map(|shard| shard_json(Some(table), shard)).collect::<Vec<_>>(),
    })
}

/// The list of tables.
pub fn tables(list: &[TableDetails]) -> String {
    let mut table = Table::new(&["name", "id", "keys", "shards", "replication", "history"]);
    for details in list {
        table.row(vec![
            details.table.name.clone(),
            details.table.id.0.to_string(),
            kind(&details.table),
            details.shards.len().to_string(),
            details.table.replication.to_string(),
            show_duration_ms(details.table.history_ms),
        ]);
    }
    table.render()
}

/// One table with its shards.
pub fn table(details: &TableDetails) -> String {
    let table = &details.table;
    format!(
        "{} {} (id {}): {}, {}, {}{} each, history {}\n\n{}",
        if table.view.is_some() { "view" } else { "table" },
        table.name,
        table.id.0,
        partitioning(table),
        text::count(details.shards.len(), "shard"),
        text::count(table.replication, "voter"),
        read_replicas(table),
        show_duration_ms(table.history_ms),
        shards(std::slice::from_ref(details))
    )
}

/// What is said of a table's read replicas, if it has some.
fn read_replicas(table: &TableDescriptor) -> String {
    let zone = table.read_replica_zone.as_ref().map(|zone| format!(" (zone {zone} first)")).unwrap_or_default();
    match table.read_replicas {
        0 => String::new(),
        count => format!(" and {}{zone}", text::count(count, "read replica")),
    }
}

/// The shards of some tables.
pub fn shards(list: &[TableDetails]) -> String {
    let mut table = Table::new(&["shard", "table", "owns", "epoch", "leader", "replicas"]);
    for details in list {
        for shard in &details.shards {
            table.row(vec![
                shard.id.0.to_string(),
                details.table.name.clone(),
                owned(&details.table, shard),
                shard.epoch.0.to_string(),
                or_dash(shard.leader),
                node_list(shard),
            ]);
        }
    }
    table.render()
}

/// One shard as its leader sees it.
pub fn shard(of: Option<&TableDescriptor>, shard: &ShardDetails) -> String {
    let mut table = Table::new(&[]);
    let mut line = |name: &str, value: String| table.row(vec![name.to_owned(), value]);
    line("shard", shard.id.0.to_string());
    line("table", of.map_or_else(|| "(system)".to_owned(), |table| table.name.clone()));
    line("owns", of.map_or_else(|| "the catalog".to_owned(), |table| owned(table, shard)));
    line("epoch", shard.epoch.0.to_string());
    line("leader", or_dash(shard.leader));
    line("term", or_dash(shard.term));
    line("last log", or_dash(shard.last_log));
    line("applied", or_dash(shard.applied));
    line(
        "members",
        match shard.settled {
            Some(true) => "as wanted".to_owned(),
            Some(false) => "changing".to_owned(),
            None => "-".to_owned(),
        },
    );
    for replica in &shard.replicas {
        let part = if replica.voter { "voter" } else { "learner" };
        line("replica", format!("{} on {}, {part}", replica.id, replica.node));
    }
    table.render()
}

/// The checksums of a shard's replicas.
pub fn checksum(report: &ChecksumReport) -> String {
    let mut table = Table::new(&["replica", "node", "applied", "versions", "checksum"]);
    for replica in &report.replicas {
        let (applied, versions, checksum) = match &replica.content {
            Ok(content) => {
                (content.applied.to_string(), content.versions.to_string(), format!("{:08x}", content.checksum))
            }
            Err(error) => ("-".to_owned(), "-".to_owned(), error.to_string()),
        };
        table.row(vec![replica.replica.to_string(), replica.node.to_string(), applied, versions, checksum]);
    }
    let verdict = if report.equal { "all replicas hold the same" } else { "the replicas DIFFER or did not all answer" };
    format!("shard {}: {verdict}\n{}", report.shard.0, table.render())
}

/// The checksums of a shard's replicas as JSON.
pub fn checksum_json(report: &ChecksumReport) -> Value {
    let replicas: Vec<Value> = report
        .replicas
        .iter()
        .map(|replica| match &replica.content {
            Ok(content) => json!({
                "replica": replica.replica.0, "node": replica.node.0, "applied": content.applied,
                "versions": content.versions, "checksum": format!("{:08x}", content.checksum),
            }),
            Err(error) => json!({"replica": replica.replica.0, "node": replica.node.0, "error": error.to_string()}),
        })
        .collect();
    json!({"shard": report.shard.0, "equal": report.equal, "replicas": replicas})
}

/// A node as JSON.
pub fn node_json(node: &NodeDetails) -> Value {
    json!({
        "id": node.id.0, "address": node.address, "http_address": node.http_address, "zone": node.zone,
        "alive": node.alive, "version": node.version, "incarnation": node.incarnation.to_string(),
        "standing": node.standing, "replicas": node.replicas, "leaders": node.leaders,
    })
}

/// The list of nodes.
pub fn nodes(list: &[NodeDetails]) -> String {
    let mut table = Table::new(&["node", "state", "replicas", "leads", "address", "http", "zone", "version"]);
    for node in list {
        let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        table.row(vec![
            node.id.0.to_string(),
            match (node.alive, node.standing.as_str()) {
                (false, _) => "DOWN".to_owned(),
                (true, "serving" | "") => "alive".to_owned(),
                (true, standing) => standing.to_owned(),
            },
            or_dash(node.replicas),
            or_dash(node.leaders),
            node.address.clone(),
            dash(&node.http_address),
            dash(&node.zone),
            dash(&node.version),
        ]);
    }
    table.render()
}

/// How evenly the cluster is spread.
pub fn balance(report: &BalanceReport) -> String {
    let verdict = match (report.paused, report.settled) {
        (true, true) => "as it should be; balancing is paused",
        (true, false) => "not as it should be, and balancing is paused",
        (false, true) => "as it should be",
        (false, false) => "on its way",
    };
    let mut table = Table::new(&["node", "standing", "replicas", "share", "leads", "share", "requests/s", "share"]);
    for node in &report.nodes {
        let standing = if node.lost { "LOST" } else { &node.standing };
        table.row(vec![
            node.node.0.to_string(),
            standing.to_owned(),
            node.replicas.to_string(),
            format!("{:.1}", node.replicas_fair),
            node.leaders.to_string(),
            format!("{:.1}", node.leaders_fair),
            node.load.to_string(),
            format!("{:.0}", node.load_fair),
        ]);
    }
    let mut text = format!("the cluster is {verdict}; {} are changing\n", text::count(report.moving.len(), "shard"));
    for step in &report.steps {
        text.push_str(&format!("  next: {step}\n"));
    }
    for stuck in &report.stuck {
        text.push_str(&format!("  stuck: {stuck}\n"));
    }
    text.push('\n');
    text.push_str(&table.render());
    text
}

/// What is said of balancing that was paused or resumed; with `dry_run`, of what that would do to a cluster that looks so.
pub fn balancing(paused: bool, dry_run: Option<&BalanceReport>) -> String {
    let Some(report) = dry_run else {
        return match paused {
            true => {
                "nothing is moved about any more, not even from draining and lost nodes; `trivet cluster resume` ends \
                 that\n"
            }
            false => "replicas and leaderships are moved about again; `trivet cluster balance` shows it\n",
        }
        .to_owned();
    };
    match (paused, report.paused) {
        (true, true) => "nothing would change: balancing is paused\n".to_owned(),
        (false, false) => "nothing would change: balancing is not paused\n".to_owned(),
        (true, false) => format!(
            "nothing would be moved about any more, not even from draining and lost nodes; moves to be finished: {}\n",
            report.moving.len()
        ),
        (false, true) => {
            let steps = report.steps.iter().map(|step| format!("  next: {step}\n"));
            format!("replicas and leaderships would be moved about again\n{}", steps.collect::<String>())
        }
    }
}

/// The same as JSON.
pub fn balancing_json(paused: bool, dry_run: Option<&BalanceReport>) -> Value {
    let mut said = json!({"paused": paused, "dry_run": dry_run.is_some()});
    if let Some(report) = dry_run {
        said["balance"] = balance_json(report);
    }
    said
}

/// How evenly the cluster is spread, as JSON.
pub fn balance_json(report: &BalanceReport) -> Value {
    let shards: Vec<u64> = report.moving.iter().map(|shard| shard.0).collect();
    let nodes: Vec<Value> = (report.nodes.iter())
        .map(|node| {
            json!({
                "node": node.node.0, "standing": node.standing, "lost": node.lost,
                "replicas": node.replicas, "replicas_fair": node.replicas_fair,
                "leaders": node.leaders, "leaders_fair": node.leaders_fair,
                "load": node.load, "load_fair": node.load_fair,
                "silent_ms": node.silent.map(|silent| silent.as_millis() as u64),
                "replaced_in_ms": node.replaced_in.map(|left| left.as_millis() as u64),
            })
        })
        .collect();
    json!({
        "paused": report.paused, "settled": report.settled, "moving": shards, "steps": report.steps,
        "stuck": report.stuck, "nodes": nodes,
    })
}

/// The state of the cluster.
pub fn status(status: &ClusterStatus) -> String {
    let shards: usize = status.tables.iter().map(|table| table.shards.len()).sum();
    let alive = status.nodes.iter().filter(|node| node.alive).count();
    let mut text = format!(
        "cluster {}: {}, as {} sees it\n{alive} of {} alive, {}, {}, catalog led by {}\n",
        status.cluster,
        if status.healthy { "healthy" } else { "NOT HEALTHY" },
        status.node,
        text::count(status.nodes.len(), "node"),
        text::count(status.tables.len(), "table"),
        text::count(shards, "shard"),
        or_dash(status.system.as_ref().and_then(|shard| shard.leader)),
    );
    for problem in &status.problems {
        text.push_str(&format!("  problem: {problem}\n"));
    }
    for note in &status.notes {
        text.push_str(&format!("  note: {note}\n"));
    }
    text.push('\n');
    text.push_str(&nodes(&status.nodes));
    if !status.tables.is_empty() {
        text.push('\n');
        text.push_str(&tables(&status.tables));
    }
    text
}

/// The state of the cluster as JSON.
pub fn status_json(status: &ClusterStatus) -> Value {
    json!({
        "cluster": status.cluster.to_string(),
        "node": status.node.0,
        "healthy": status.healthy,
        "problems": status.problems,
        "notes": status.notes,
        "nodes": status.nodes.iter().map(node_json).collect::<Vec<_>>(),
        "tables": status.tables.iter().map(table_json).collect::<Vec<_>>(),
        "system": status.system.as_ref().map(|shard| shard_json(None, shard)),
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use trivet::types::{
        ClusterId, Epoch, Error, Incarnation, NodeId, Reason, ReplicaId, ShardId, TableId, TableState, ViewDescriptor,
    };
    use trivet::wire::admin::{Content, NodeShare, ReplicaChecksum, ReplicaDetails};

    use super::*;
    use crate::cli::golden;

    fn table_details(id: u32, name: &str, partitioning: Partitioning, cuts: &[Bytes]) -> TableDetails {
        let table = TableDescriptor {
            id: TableId(id),
            name: name.to_owned(),
            partitioning,
            replication: 3,
            read_replicas: 0,
            read_replica_zone: None,
            history_ms: 3_600_000,
            state: TableState::Ready,
            view: None,
        };
        let shards = u32::try_from(cuts.len() + 1).expect("few");
        let layout = Layout::of(&table);
        let (shards, cuts) =
            if matches!(table.partitioning, Partitioning::Hash) { (4, &[][..]) } else { (shards, cuts) };
        let ranges = layout.initial_ranges(shards, cuts).expect("ranges");
        let shard = |(at, (start, end)): (usize, (Bytes, Bytes))| ShardDetails {
            id: ShardId(u64::from(id) * 10 + at as u64),
            table: table.id,
            start,
            end,
            epoch: Epoch(1),
            replicas: (1..=3)
                .map(|n| ReplicaDetails { id: ReplicaId(n), node: NodeId(n), voter: n < 3 || at > 0 })
                .collect(),
            leader: (at != 2).then_some(NodeId(1 + at as u64 % 3)),
            term: (at == 0).then_some(4),
            last_log: (at == 0).then_some(1_208),
            applied: (at == 0).then_some(1_207),
            settled: (at == 0).then_some(true),
        };
        let shards = ranges.into_iter().enumerate().map(shard).collect();
        TableDetails { table, shards }
    }

    fn all_tables() -> Vec<TableDetails> {
        let groups = Partitioning::Range { group_delimiter: Some("/".to_owned()) };
        let plain = Partitioning::Range { group_delimiter: None };
        vec![
            table_details(1, "orders", Partitioning::Hash, &[]),
            table_details(2, "names", plain, &["g".into(), Bytes::from_static(b"p\0\xff")]),
            table_details(3, "events", groups, &[]),
        ]
    }

    fn cluster(healthy: bool) -> ClusterStatus {
        let node = |id: u64| NodeDetails {
            id: NodeId(id),
            address: format!("127.0.0.1:740{id}"),
            http_address: if id == 2 { String::new() } else { format!("127.0.0.1:750{id}") },
            zone: if id == 2 { String::new() } else { "zone-a".to_owned() },
            incarnation: Incarnation(0xfeed + id),
            alive: healthy || id != 3,
            version: "0.1.0".to_owned(),
            standing: if id == 2 { "draining" } else { "serving" }.to_owned(),
            replicas: (healthy || id != 3).then_some(9),
            leaders: (healthy || id != 3).then_some(3),
        };
        ClusterStatus {
            cluster: ClusterId(0xabc),
            node: NodeId(1),
            healthy,
            problems: if healthy { vec![] } else { vec!["node n3 has not been heard from for 12 s".to_owned()] },
            notes: vec!["node 2 drains: 8 replicas are still to move".to_owned()],
            nodes: (1..=3).map(node).collect(),
            tables: if healthy { all_tables() } else { vec![] },
            system: all_tables().remove(0).shards.into_iter().next(),
        }
    }

    /// The smallest cluster there is.
    fn of_one() -> ClusterStatus {
        let mut tables = vec![all_tables().remove(2)];
        tables[0].table.replication = 1;
        let nodes = cluster(true).nodes.into_iter().take(1).collect();
        ClusterStatus { nodes, tables, ..cluster(true) }
    }

    fn a_view() -> TableDetails {
        let mut details = table_details(4, "orders_by_user", Partitioning::Hash, &[]);
        let told = ViewDescriptor::default();
        details.table.view = Some(told);
        details
    }

    fn pretty(value: &Value) -> String {
        serde_json::to_string_pretty(value).expect("JSON") + "\n"
    }

    #[test]
    fn the_cluster_is_shown() {
        let tables_of = all_tables();
        let first = &tables_of[0].shards[0];
        let text = [
            status(&cluster(true)),
            status(&cluster(false)),
            status(&of_one()),
            table(&tables_of[0]),
            table(&tables_of[1]),
            table(&of_one().tables[0]),
            tables(&[a_view()]),
            table(&a_view()),
            shards(&tables_of),
            shard(Some(&tables_of[0].table), first),
            shard(None, first),
        ];
        golden::check("cluster", &text.join("----\n"));
        let json = [status_json(&cluster(false)), table_json(&tables_of[2])];
        golden::check("cluster_json", &json.iter().map(pretty).collect::<String>());
    }

    #[test]
    fn the_balance_is_shown() {
        let node = |id: u64, lost: bool| NodeShare {
            node: NodeId(id),
            standing: if id == 2 { "draining" } else { "serving" }.to_owned(),
            lost,
            replicas: 9 + id,
            replicas_fair: 10.5,
            leaders: id,
            leaders_fair: 2.0,
            load: 1_000 * id,
            load_fair: 2_000.25,
            silent: lost.then_some(std::time::Duration::from_secs(700)),
            replaced_in: lost.then_some(std::time::Duration::ZERO),
        };
        let report = BalanceReport {
            paused: false,
            settled: false,
            moving: vec![ShardId(4)],
            steps: vec!["move r17 of s4 to n3: its node drains".to_owned()],
            stuck: vec!["s5 has a replica on n2, which drains, and no node can take it: add a node".to_owned()],
            nodes: vec![node(1, false), node(2, false), node(3, true)],
        };
        let even =
            BalanceReport { settled: true, paused: true, nodes: vec![node(1, false)], ..BalanceReport::default() };
        let text = [balance(&report), balance(&even), pretty(&balance_json(&report))];
        golden::check("balance", &text.join("----\n"));
        let paused = BalanceReport { paused: true, ..report.clone() };
        let mut text = String::new();
        for wanted in [true, false] {
            for dry_run in [None, Some(&report), Some(&paused)] {
                text += &balancing(wanted, dry_run);
            }
            text += &format!("{}\n", balancing_json(wanted, None));
            text += &pretty(&balancing_json(wanted, Some(&even)));
        }
        golden::check("balancing", &text);
    }

    #[test]
    fn checksums_are_shown() {
        let replica = |id, content| ReplicaChecksum { replica: ReplicaId(id), node: NodeId(id), content };
        let good = Ok(Content { applied: 77, checksum: 0x1234_abcd, versions: 69_659 });
        let mut report = ChecksumReport {
            shard: ShardId(3),
            equal: true,
            replicas: vec![replica(1, good.clone()), replica(2, good)],
        };
        let mut text = checksum(&report);
        report.replicas.push(replica(3, Err(Error::new(Reason::NotReady, "the node is stopping"))));
        report.equal = false;
        text.push_str(&checksum(&report));
        text.push_str(&pretty(&checksum_json(&report)));
        golden::check("checksum", &text);
    }
}
