//! Views, how far they are, and what comparisons have found.

use serde_json::{Map, Value, json};
use trivet::types::ShardId;
use trivet::wire::admin::{UnfitDocument, ViewDetails, ViewLag, ViewState, ViewVerification};

use super::Table;
use super::cluster::{shards, table_json};
use crate::cli::text;
use crate::cli::time::show_duration_ms;

/// Rows that differ shown of a view, all its shards together.
const SAMPLES_SHOWN: usize = 20;

/// What the comparison of one shard has found.
pub struct Finding {
    /// The shard.
    pub shard: ShardId,
    /// What was found.
    pub check: ViewVerification,
}

/// The definition as a value; none if it is no JSON, which only a newer server would send.
fn parsed(view: &ViewDetails) -> Option<Value> {
    serde_json::from_str(&view.definition).ok()
}

/// The definition in the form in which people write it.
fn definition(view: &ViewDetails) -> String {
    let toml = parsed(view).and_then(|definition| toml::to_string(&definition).ok());
    let mut text = toml.unwrap_or_else(|| view.definition.clone());
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

fn kind(view: &ViewDetails) -> String {
    let kind = parsed(view).and_then(|definition| Some(definition.get("kind")?.as_str()?.to_owned()));
    kind.unwrap_or_else(|| "-".to_owned())
}

/// The list of views.
pub fn views(list: &[ViewDetails]) -> String {
    let mut table = Table::new(&["name", "id", "state", "kind", "sources", "shards", "replication", "history"]);
    for view in list {
        table.row(vec![
            view.table.table.name.clone(),
            view.table.table.id.0.to_string(),
            view.state.as_str().to_owned(),
            kind(view),
            view.sources.join(" "),
            view.table.shards.len().to_string(),
            view.table.table.replication.to_string(),
            show_duration_ms(view.table.table.history_ms),
        ]);
    }
    table.render()
}

/// One view: its state, what it lags behind, its definition and its shards.
pub fn view(view: &ViewDetails) -> String {
    let table = &view.table.table;
    format!(
        "view {} (id {}): {}, {} from {}, {}, {} each, history {}\n{}\n{}\n{}",
        table.name,
        table.id.0,
        view.state.as_str(),
        kind(view),
        view.sources.join(", "),
        text::count(view.table.shards.len(), "shard"),
        text::count(table.replication, "voter"),
        show_duration_ms(table.history_ms),
        lags(view),
        definition(view),
        shards(std::slice::from_ref(&view.table))
    )
}

/// What it lags behind: lines, none if that was not asked.
fn lags(view: &ViewDetails) -> String {
    let Some(lags) = &view.lags else { return String::new() };
    if lags.is_empty() {
        return "  it has taken in everything that its sources held when it was asked\n".to_owned();
    }
    let mut said = String::new();
    for lag in lags {
        said.push_str(&match lag.building {
            true => format!("  still to take in: what {} held when the view was created\n", lag.table),
            false => format!("  still to take in: the newest changes of {}\n", lag.table),
        });
        for document in &lag.stopped_at {
            said.push_str(&format!("  STOPPED at {}\n", unfit(document)));
        }
    }
    if lags.iter().any(|lag| !lag.stopped_at.is_empty()) {
        said.push_str("  it goes on by itself once such a document is corrected or deleted\n");
    }
    said
}

/// A document that does not fit, in one line.
fn unfit(document: &UnfitDocument) -> String {
    format!("{} of {}: {}", text::show(&document.key), document.table, document.why)
}

/// Where a view is that is waited for, in one line.
pub fn view_progress(view: &ViewDetails) -> String {
    let name = &view.table.table.name;
    let named = |building: bool| {
        let lags = view.lags.iter().flatten().filter(|lag| lag.building == building);
        lags.map(|lag| lag.table.as_str()).collect::<Vec<_>>().join(", ")
    };
    let stops = view.lags.iter().flatten().find_map(|lag| lag.stopped_at.first());
    let does = match (view.state, &view.lags, stops) {
        (ViewState::Paused, ..) => format!("rests; `trivet view resume {name}` has it go on"),
        (_, None, _) => "begins".to_owned(),
        (_, Some(_), Some(document)) => format!("has STOPPED at {}", unfit(document)),
        (_, Some(lags), None) if lags.iter().any(|lag| lag.building) => format!("takes in {}", named(true)),
        (_, Some(lags), None) if lags.is_empty() => "is compared with its sources".to_owned(),
        (_, Some(_), None) => format!("catches up with {}", named(false)),
    };
    format!("{name} is {}: it {does}", view.state.as_str())
}

/// A view as JSON.
pub fn view_json(view: &ViewDetails) -> Value {
    let lag = |lag: &ViewLag| {
        let stopped_at = lag.stopped_at.iter().map(unfit_json).collect::<Vec<_>>();
        json!({"table": lag.table, "building": lag.building, "stopped_at": stopped_at})
    };
    let definition = parsed(view).unwrap_or_else(|| Value::from(view.definition.clone()));
    json!({
        "name": view.table.table.name,
        "state": view.state.as_str(),
        "sources": view.sources,
        "lags": view.lags.as_ref().map(|lags| lags.iter().map(lag).collect::<Vec<_>>()),
        "definition": definition,
        "table": table_json(&view.table),
    })
}

fn unfit_json(document: &UnfitDocument) -> Value {
    let mut said = Map::new();
    said.insert("table".to_owned(), document.table.clone().into());
    text::insert(&mut said, "key", &document.key);
    said.insert("why".to_owned(), document.why.clone().into());
    Value::from(said)
}

/// What is said of a view whose upkeep was paused or resumed; with `dry_run`, of what that would do to it as it is.
pub fn view_pausing(view: &ViewDetails, paused: bool, dry_run: bool) -> String {
    let name = &view.table.table.name;
    let is_paused = view.state == ViewState::Paused;
    match (dry_run, paused) {
        (false, true) => {
            format!("the upkeep of view {name} rests and it grows older; `trivet view resume {name}` ends that\n")
        }
        (false, false) => format!("the upkeep of view {name} goes on; it is {}\n", view.state.as_str()),
        (true, _) if paused == is_paused => {
            format!("nothing would change: view {name} is {}\n", view.state.as_str())
        }
        (true, true) => format!("the upkeep of view {name} would rest and it would grow older\n"),
        (true, false) => format!("the upkeep of view {name} would go on\n"),
    }
}

fn sum(findings: &[Finding], of: impl Fn(&ViewVerification) -> u64) -> u64 {
    findings.iter().map(|finding| of(&finding.check)).sum()
}

/// What a comparison has found; `left` is what was found once more in shards that were repaired.
pub fn verification(name: &str, findings: &[Finding], left: Option<&[Finding]>) -> String {
    let rows = text::count(sum(findings, |check| check.rows), "row");
    let differing = sum(findings, ViewVerification::differing);
    let shards = text::count(findings.len(), "shard");
    let verdict = match (differing, left.map(|left| sum(left, ViewVerification::differing))) {
        (0, _) => format!("{rows} in {shards}, all as its sources say"),
        (_, None) => format!("{rows} in {shards}, and {differing} DIFFER; --repair sets them right"),
        (_, Some(0)) => format!("{rows} in {shards}; {differing} differed and were set right"),
        (_, Some(left)) => {
            format!("{rows} in {shards}; {differing} differed, and {left} DIFFER after the repair; repair again")
        }
    };
    let mut table = Table::new(&["shard", "rows", "missing", "invented", "other", "repaired"]);
    for Finding { shard, check } in findings {
        let numbers = [check.rows, check.missing, check.invented, check.other, check.repaired];
        table.row([shard.0].into_iter().chain(numbers).map(|number| number.to_string()).collect());
    }
    let mut said = format!("view {name}: {verdict}\n\n{}", table.render());
    let samples: Vec<_> = findings.iter().flat_map(|finding| &finding.check.samples).collect();
    if !samples.is_empty() {
        let mut table = Table::new(&["difference", "key"]);
        for (key, difference) in samples.iter().take(SAMPLES_SHOWN) {
            table.row(vec![difference.as_str().to_owned(), text::show(key)]);
        }
        said.push_str(&format!("\n{}", table.render()));
        let more = differing.saturating_sub(samples.len().min(SAMPLES_SHOWN) as u64);
        if more > 0 {
            said.push_str(&format!("and {more} more\n"));
        }
    }
    said.push_str(&unfit_documents(findings));
    said
}

/// What is said of documents that are not in a view because they do not fit.
fn unfit_documents(findings: &[Finding]) -> String {
    let unfit = sum(findings, |check| check.unfit);
    if unfit == 0 {
        return String::new();
    }
    let (documents, do_not) = (text::count(unfit, "document"), if unfit == 1 { "does not" } else { "do not" });
    let mut table = Table::new(&["document", "of", "does not fit because"]);
    let samples: Vec<_> =
        findings.iter().flat_map(|finding| &finding.check.unfit_samples).take(SAMPLES_SHOWN).collect();
    for document in &samples {
        table.row(vec![text::show(&document.key), document.table.clone(), document.why.clone()]);
    }
    let mut said =
        format!("\n{documents} of its sources {do_not} fit, and so the view is without:\n\n{}", table.render());
    let more = unfit.saturating_sub(samples.len() as u64);
    if more > 0 {
        said.push_str(&format!("and {more} more\n"));
    }
    said
}

/// The same as JSON.
pub fn verification_json(name: &str, findings: &[Finding], left: Option<&[Finding]>) -> Value {
    let differing = sum(findings, ViewVerification::differing);
    let still = left.map(|left| sum(left, ViewVerification::differing));
    json!({
        "view": name,
        "equal": still.unwrap_or(differing) == 0,
        "rows": sum(findings, |check| check.rows),
        "missing": sum(findings, |check| check.missing),
        "invented": sum(findings, |check| check.invented),
        "other": sum(findings, |check| check.other),
        "repaired": sum(findings, |check| check.repaired),
        "differ_after_repair": still,
        "unfit": sum(findings, |check| check.unfit),
        "shards": findings.iter().map(finding_json).collect::<Vec<_>>(),
        "again": left.map(|left| left.iter().map(finding_json).collect::<Vec<_>>()),
    })
}

fn finding_json(Finding { shard, check }: &Finding) -> Value {
    let samples = check.samples.iter().map(|(key, difference)| {
        let mut sample = Map::new();
        text::insert(&mut sample, "key", key);
        sample.insert("difference".to_owned(), difference.as_str().into());
        Value::from(sample)
    });
    json!({
        "shard": shard.0, "rows": check.rows, "missing": check.missing, "invented": check.invented,
        "other": check.other, "repaired": check.repaired, "samples": samples.collect::<Vec<_>>(),
        "unfit": check.unfit, "unfit_samples": check.unfit_samples.iter().map(unfit_json).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use trivet::keyspace::Layout;
    use trivet::types::{Epoch, NodeId, Partitioning, ReplicaId, TableDescriptor, TableId, TableState, ViewDescriptor};
    use trivet::wire::admin::{ReplicaDetails, RowDifference, ShardDetails, TableDetails};

    use super::*;
    use crate::cli::golden;

    const DEFINITION: &str = r#"{"name":"orders_by_user","kind":"rekeyed","shards":2,"on_bad_document":"skip","sources":[{"table":"orders","where":"doc.status != 'test'","partition_by":"user_id","order_by":["-created_ms"],"include":["status","amount"]}]}"#;

    fn view_in(state: ViewState, lags: Option<Vec<ViewLag>>) -> ViewDetails {
        let told = ViewDescriptor::default();
        let table = TableDescriptor {
            id: TableId(4),
            name: "orders_by_user".to_owned(),
            partitioning: Partitioning::Hash,
            replication: 3,
            read_replicas: 0,
            read_replica_zone: None,
            history_ms: 3_600_000,
            state: TableState::Ready,
            view: Some(told),
        };
        let ranges = Layout::of(&table).initial_ranges(2, &[]).expect("ranges");
        let shard = |(at, (start, end)): (u64, (Bytes, Bytes))| ShardDetails {
            id: ShardId(40 + at),
            table: table.id,
            start,
            end,
            epoch: Epoch(1),
            replicas: (1..=3).map(|n| ReplicaDetails { id: ReplicaId(n), node: NodeId(n), voter: true }).collect(),
            leader: Some(NodeId(1 + at)),
            term: None,
            last_log: None,
            applied: None,
            settled: None,
        };
        let shards = (0..).zip(ranges).map(shard).collect();
        ViewDetails {
            table: TableDetails { table, shards },
            definition: DEFINITION.to_owned(),
            sources: vec!["orders".to_owned()],
            state,
            lags,
        }
    }

    fn unfit_at(key: &str) -> UnfitDocument {
        let why = "the field user_id is missing or empty".to_owned();
        UnfitDocument { table: "orders".to_owned(), key: Bytes::copy_from_slice(key.as_bytes()), why }
    }

    fn pretty(value: &Value) -> String {
        serde_json::to_string_pretty(value).expect("JSON") + "\n"
    }

    #[test]
    fn views_are_shown() {
        let lag = |table: &str, building| ViewLag { table: table.to_owned(), building, stopped_at: vec![] };
        let stops = [unfit_at("ord-17"), unfit_at("ord-18")];
        let stopped = ViewLag { stopped_at: stops.to_vec(), ..lag("orders", false) };
        let stopped = view_in(ViewState::Ready, Some(vec![stopped]));
        let building = view_in(ViewState::Building, Some(vec![lag("orders", true), lag("archive", false)]));
        let late = view_in(ViewState::Ready, Some(vec![lag("orders", false)]));
        let ready = view_in(ViewState::Ready, Some(vec![]));
        let resting = view_in(ViewState::Paused, None);
        let odd = ViewDetails { definition: "of another time".to_owned(), ..view_in(ViewState::Rebuilding, None) };
        let mut text = vec![
            views(&[view_in(ViewState::Building, None), resting.clone(), odd.clone()]),
            views(&[]),
            view(&building),
            view(&ready),
            view(&odd),
            view(&stopped),
            pretty(&view_json(&stopped)["lags"]),
            pretty(&view_json(&late)),
            pretty(&view_json(&odd)["definition"]),
        ];
        let compared = view_in(ViewState::Building, Some(vec![]));
        let seen = [&view_in(ViewState::Building, None), &building, &late, &compared, &resting, &stopped];
        text.push(seen.map(|view| view_progress(view) + "\n").concat());
        let mut said = String::new();
        for view in [&ready, &resting] {
            for paused in [true, false] {
                said += &view_pausing(view, paused, true);
            }
        }
        said += &view_pausing(&resting, true, false);
        said += &view_pausing(&ready, false, false);
        text.push(said);
        golden::check("views", &text.join("----\n"));
    }

    #[test]
    fn the_definition_shown_makes_the_same_view() {
        let shown = definition(&view_in(ViewState::Ready, None));
        let read: Value = toml::from_str(&shown).expect("TOML");
        assert_eq!(read, serde_json::from_str::<Value>(DEFINITION).expect("JSON"));
    }

    #[test]
    fn findings_are_shown() {
        let finding = |shard, rows, samples: Vec<(Bytes, RowDifference)>, repaired| {
            let count = |of| samples.iter().filter(|(_, difference)| *difference == of).count() as u64;
            let check = ViewVerification {
                rows,
                missing: count(RowDifference::Missing),
                invented: count(RowDifference::Invented),
                other: count(RowDifference::Other),
                repaired,
                samples,
                unfit: 0,
                unfit_samples: vec![],
            };
            Finding { shard: ShardId(shard), check }
        };
        let samples = || {
            vec![
                (Bytes::from_static(b"{17}:80ab/o-5"), RowDifference::Missing),
                (Bytes::from_static(b"{17}\x01m\xff"), RowDifference::Invented),
                (Bytes::from_static(b"{18}:80ac/o-6"), RowDifference::Other),
            ]
        };
        let clean = [finding(40, 3_461, vec![], 0), finding(41, 1, vec![], 0)];
        let wrong = [finding(40, 3_461, samples(), 0), finding(41, 3_458, vec![], 0)];
        let mended = [finding(40, 3_461, samples(), 3), finding(41, 3_458, vec![], 0)];
        let again = [finding(40, 3_461, vec![], 0)];
        let still = [finding(40, 3_461, samples().split_off(2), 0)];
        let mut many = finding(40, 3_461, (0..12).flat_map(|_| samples()).collect(), 0);
        many.check.missing += 1_000;
        let mut odd = [finding(40, 3_461, vec![], 0), finding(41, 1, vec![], 0)];
        odd[1].check.unfit = 1;
        odd[1].check.unfit_samples = vec![unfit_at("ord-17")];
        let mut odder = [finding(40, 3_461, samples(), 0)];
        odder[0].check.unfit = 1_200;
        odder[0].check.unfit_samples = vec![unfit_at("ord-17"), unfit_at("ord-18")];
        let text = [
            verification("v", &odd, None),
            verification("v", &odder, None),
            pretty(&verification_json("v", &odd, None)),
            verification("v", &clean, None),
            verification("v", &clean, Some(&[])),
            verification("v", &wrong, None),
            verification("v", &mended, Some(&again)),
            verification("v", &mended, Some(&still)),
            verification("v", &[many], None),
            pretty(&verification_json("v", &mended, Some(&again))),
            pretty(&verification_json("v", &clean, None)),
        ];
        golden::check("view_verification", &text.join("----\n"));
    }
}
