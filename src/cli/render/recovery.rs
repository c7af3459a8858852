//! A plan to recover from a lost quorum, as a person should read it before agreeing: the losses first.

use trivet::recover::{Applied, Fate, Plan, PlannedShard};
use trivet::types::{NodeId, ShardId};

use super::Table;
use crate::cli::time::show_time_ms;

/// "node 3", "nodes 3 and 4", "nodes 3, 4 and 5".
fn nodes(ids: impl IntoIterator<Item = u64>) -> String {
    let ids: Vec<String> = ids.into_iter().map(|id| id.to_string()).collect();
    match ids.split_last() {
        None => "no node".to_owned(),
        Some((only, [])) => format!("node {only}"),
        Some((last, rest)) => format!("nodes {} and {last}", rest.join(", ")),
    }
}

fn shards(count: usize) -> String {
    if count == 1 { "1 shard".to_owned() } else { format!("{count} shards") }
}

/// The report of a plan.
pub fn recovery_plan(plan: &Plan) -> String {
    let of = |fate: Fate| plan.shards.iter().filter(move |shard| shard.fate == fate).collect::<Vec<_>>();
    let (healthy, recovered, gone) = (of(Fate::Healthy), of(Fate::Recovered), of(Fate::Gone));
    let lost = nodes(plan.recovery.lost.iter().map(|lost| lost.node.0));
    let here = nodes(plan.nodes.iter().map(|node| node.node.0));
    let s = if plan.nodes.len() == 1 { "s" } else { "" };
    let mut text = format!("cluster {}: {here} survive{s}, {lost} lost for good\n\n", plan.cluster);
    if !gone.is_empty() {
        text += &format!(
            "GONE: nothing is left of {}. What {} held is lost, and this does not bring it back: that part of the table will not be\n\
             served, until the table is dropped.\n\n",
            shards(gone.len()),
            if gone.len() == 1 { "it" } else { "they" },
        );
        let mut table = Table::new(&["shard", "table", "was on"]);
        for shard in &gone {
            let was = nodes(shard.lost.iter().map(|node| node.0));
            table.row(vec![shard.shard.0.to_string(), shard.table.clone(), was]);
        }
        text += &table.render();
        text.push('\n');
    }
    text += &format!(
        "{} lost {} majority and would go on from one replica. Of each, what was acknowledged up to its newest write is there;\n\
         what was acknowledged later may be lost. Its uncertain entries, which nobody knows to be committed, take effect.\n\n",
        shards(recovered.len()),
        if recovered.len() == 1 { "its" } else { "their" },
    );
    let mut table = Table::new(&[
        "shard",
        "table",
        "goes on from",
        "log end",
        "term",
        "uncertain",
        "newest write",
        "others, entries behind",
    ]);
    for shard in &recovered {
        table.row(recovered_row(shard));
    }
    text += &table.render();
    text.push('\n');
    if recovered.iter().any(|shard| shard.shard == ShardId::SYSTEM) {
        text += "Shard 0 is the catalog: tables, splits and moves after its newest write are forgotten.\n";
    }
    if !plan.unknown.is_empty() {
        let ids = plan.unknown.iter().map(|shard| shard.0.to_string()).collect::<Vec<_>>().join(", ");
        text += &format!("REMOVED: shards {ids}, whose tables were made after that and are forgotten too.\n");
    }
    for (left, right) in &plan.merges {
        text += &format!(
            "The merge of shards {} and {} is given up, if it has not happened: ask for it again.\n",
            left.0, right.0
        );
    }
    text += &format!(
        "{} {} a majority and {} left alone.\n",
        shards(healthy.len()),
        if healthy.len() == 1 { "has" } else { "have" },
        if healthy.len() == 1 { "is" } else { "are" },
    );
    text += &format!("\nNothing has been changed. To go on, apply the plan on {here}, then start what survives.\n");
    text += &format!("The data of {lost} must be destroyed and never be served again.\n");
    text
}

fn recovered_row(shard: &PlannedShard) -> Vec<String> {
    let first = &shard.rests[0];
    let end = first.last.map_or((0, 0), |last| (last.term, last.index));
    let others: Vec<String> = shard.rests[1..]
        .iter()
        .map(|rest| {
            let (term, index) = rest.last.map_or((0, 0), |last| (last.term, last.index));
            // What follows in an older term was never acknowledged, or the leader of the later one would have it.
            let behind = if term < end.0 { "older term".to_owned() } else { (end.1 - index.min(end.1)).to_string() };
            format!("n{}: {behind}", rest.node.0)
        })
        .collect();
    vec![
        shard.shard.0.to_string(),
        shard.table.clone(),
        format!("n{}", first.node.0),
        end.1.to_string(),
        end.0.to_string(),
        first.unapplied.to_string(),
        if first.newest.0 == 0 { "-".to_owned() } else { show_time_ms(first.newest.millis()) },
        if others.is_empty() { "-".to_owned() } else { others.join(", ") },
    ]
}

/// What became of one node.
pub fn recovery_applied(node: NodeId, applied: &Applied, dry_run: bool) -> String {
    let Applied::Now(changes) = applied else {
        return format!("the plan has been carried out on node {} before\n", node.0);
    };
    let mut text = String::new();
    for change in changes {
        let what = if change.heir { "is its only replica now" } else { "begins empty and will be sent everything" };
        text += &format!("  shard {}: {}, formerly {}, {what}\n", change.shard.0, change.to, change.from);
    }
    if dry_run {
        format!("would be done on node {}:\n{text}  the recovery is noted\nnothing has been changed\n", node.0)
    } else {
        format!("done on node {}:\n{text}  the recovery is noted\nstart the node when all others are done\n", node.0)
    }
}

#[cfg(test)]
mod tests {
    use trivet::recover::Change;
    use trivet::types::ReplicaId;

    use super::*;
    use crate::cli::golden;

    #[test]
    fn the_report_says_what_is_lost() {
        let mut plan = Plan::from_json(include_str!("../../recover/testdata/plan.json")).expect("a plan");
        plan.merges.push((ShardId(2), ShardId(3)));
        plan.unknown.push(ShardId(12));
        let change = |shard: u64, from: u64, to: u64, heir: bool| Change {
            shard: ShardId(shard),
            from: ReplicaId(from),
            to: ReplicaId(to),
            heir,
        };
        let applied = Applied::Now(vec![change(0, 2, 1_032, false), change(3, 8, 1_033, true)]);
        let text = [
            recovery_plan(&plan),
            recovery_applied(NodeId(2), &applied, true),
            recovery_applied(NodeId(2), &applied, false),
            recovery_applied(NodeId(2), &Applied::Before, false),
        ];
        golden::check("recovery", &text.join("----\n"));
    }
}
