//! Views: creating them over tables, telling how far they are, pausing, comparing, and saying when a new one is ready.
//!
//! A view is a table whose rows nobody writes but its upkeep, so it is created, placed, split, moved and dropped as any
//! table. What is more is its definition, which stands in its row of the catalog; workers beside the leaders of its sources
//! find it there (`node::views`). A new view serves no reads that promise anything until shard 0's leader has seen it come as
//! far as its sources and compared it with them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::tables::CreateAsk;
use super::{Control, VERB_TIMEOUT};
use crate::catalog::TableEntry;
use crate::catalog::change;
use crate::keyspace::Watermark;
use crate::node::{
    CHANGE_VIEW, ChangeViewAsk, Difference, StandingAnswer, Unfit, VERIFY, VERIFY_TIMEOUT, VerifyAsk, ViewCheck,
};
use crate::projection::{Definition, Projector};
use crate::types::{
    Error, NodeId, Reason, Result, ShardDescriptor, ShardId, TableId, Timestamp, ViewDescriptor, check_table_name,
};
use crate::wire::admin::{
    NewTable, NewView, RowDifference, TableDetails, UnfitDocument, ViewDetails, ViewLag, ViewState, ViewVerification,
};

impl Control {
    /// Creates a view; returns when its shards have leaders. It takes in what its sources hold from then on. If it is to
    /// replace the view of its name it is built beside that, as `NAME.next`, and takes its name when it is ready.
    ///
    /// Errors: `INVALID_REQUEST` for a definition that is none, `TABLE_EXISTS`, `UNKNOWN_TABLE` for a source or for the view
    /// that is to be replaced.
    pub async fn create_view(&self, wish: NewView) -> Result<ViewDetails> {
        let definition = Definition::parse(&wish.definition)?;
        check_table_name(&definition.name)?;
        Projector::new(&definition)?;
        let table = NewTable {
            replication: wish.replication,
            dry_run: wish.dry_run,
            ..NewTable::hash(definition.name.clone(), definition.shards)
        };
        let sources = definition.source_tables().into_iter().map(str::to_owned).collect();
        let question = CreateAsk::of(table).deriving(definition.to_json(), sources, wish.history_ms, wish.replace);
        let table = self.create_asked(question).await?;
        Ok(self.view_details(table, ViewState::Building))
    }

    /// A view, and what it lags behind.
    pub async fn describe_view(&self, name: &str) -> Result<ViewDetails> {
        let (entry, view) = self.view_named(name).await?;
        let mut details = self.view_details(self.table_details(&entry), state_of(&view));
        let sections =
            self.sections_of(&entry).await?.into_iter().flat_map(|(_, sections)| sections).collect::<Vec<_>>();
        let mut lags = Vec::new();
        for lag in self.node.view_is_behind(&entry, &sections).await? {
            let Some(table) = self.name_of(lag.table) else { continue };
            let stops = self.node.where_view_stops(&entry, lag.table).await?;
            let stopped_at = stops.into_iter().filter_map(|unfit| self.unfit_document(unfit)).collect();
            lags.push(ViewLag { table, building: lag.building, stopped_at });
        }
        details.lags = Some(lags);
        Ok(details)
    }

    /// All views, without what they lag behind.
    pub fn views(&self) -> Vec<ViewDetails> {
        let details = |table: TableDetails| {
            let state = state_of(table.table.view.as_ref()?);
            Some(self.view_details(table, state))
        };
        self.tables(false).into_iter().filter_map(details).collect()
    }

    /// Has the upkeep of a view rest, or go on.
    pub async fn pause_view(&self, name: &str, paused: bool) -> Result<ViewDetails> {
        self.view_named(name).await?;
        let question = ChangeViewAsk { paused: Some(paused), ..ChangeViewAsk::of(name) };
        let revision = self.node.ask_system_leader_for(CHANGE_VIEW, &question, VERB_TIMEOUT).await?;
        self.hear_of(revision).await?;
        let (entry, view) = self.view_named(name).await?;
        Ok(self.view_details(self.table_details(&entry), state_of(&view)))
    }

    /// Changes the row of a view, on shard 0's leader.
    pub(super) async fn change_view_here(&self, wish: ChangeViewAsk) -> Result<Timestamp> {
        let apply = |view: &mut ViewDescriptor| {
            view.paused = wish.paused.unwrap_or(view.paused);
            view.ready = wish.ready.unwrap_or(view.ready);
            view.rebuilding = wish.rebuilding.unwrap_or(view.rebuilding);
        };
        let changed = self
            .change(|directory| {
                let (table, write) = change::change_view(directory, &wish.name, apply)?;
                Ok(write.map(|write| (table, write)))
            })
            .await?;
        if let Some(table) = changed {
            tracing::info!(view = table.name, ready = ?wish.ready, paused = ?wish.paused, "a view was changed");
        }
        Ok(self.node.directory().revision())
    }

    /// Compares a view with its sources, all of it or one shard, and sets right what differs if that is wanted.
    ///
    /// Errors: `VIEW_BEHIND` while it is being built, `UNKNOWN_SHARD`.
    pub async fn verify_view(&self, name: &str, shard: Option<ShardId>, repair: bool) -> Result<ViewVerification> {
        let (entry, _) = self.view_named(name).await?;
        let shards: Vec<_> = entry.shards.iter().filter(|known| shard.is_none_or(|shard| known.id == shard)).collect();
        if shards.is_empty() {
            let text = format!("{name} has no such shard; `trivet view describe {name}` shows them");
            return Err(Error::new(Reason::UnknownShard, text));
        }
        let all = self.verify_shards(entry.descriptor.id, &shards, (repair, false)).await?;
        let samples = all.samples.into_iter().map(|(key, difference)| {
            let difference = match difference {
                Difference::Missing => RowDifference::Missing,
                Difference::Invented => RowDifference::Invented,
                Difference::Other => RowDifference::Other,
            };
            (Bytes::from(key), difference)
        });
        let unfit_samples = all.unfit_samples.into_iter().filter_map(|unfit| self.unfit_document(unfit));
        Ok(ViewVerification {
            unfit: all.unfit,
            unfit_samples: unfit_samples.collect(),
            rows: all.rows,
            missing: all.missing,
            invented: all.invented,
            other: all.other,
            repaired: all.repaired,
            samples: samples.collect(),
        })
    }

    /// Has the leaders of shards compare them, each all of its own together: then it reads the sources once for them. Whether what
    /// differs is set right, and whether clients come first.
    async fn verify_shards(
        &self,
        view: TableId,
        shards: &[&Arc<ShardDescriptor>],
        (repair, gently): (bool, bool),
    ) -> Result<ViewCheck> {
        let mut by_leader: BTreeMap<Option<NodeId>, Vec<&Arc<ShardDescriptor>>> = BTreeMap::new();
        for shard in shards {
            let leader = self.node.replicas().get(shard.id).and_then(|replica| replica.leader());
            by_leader.entry(leader.map(|(_, node)| node)).or_default().push(shard);
        }
        let mut all = ViewCheck::default();
        for (leader, shards) in by_leader {
            if let Some(node) = leader.filter(|_| shards.len() > 1) {
                let ids = shards.iter().map(|shard| shard.id).collect();
                let question = VerifyAsk { view, shards: ids, repair, gently };
                match self.node.ask_for(node, VERIFY, &question, VERIFY_TIMEOUT).await {
                    Ok(check) => {
                        all.add(check);
                        continue;
                    }
                    // Some have other leaders by now: each is looked for.
                    Err(error) if is_elsewhere(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            for shard in shards {
                all.add(self.verify_shard(view, shard, (repair, gently)).await?);
            }
        }
        Ok(all)
    }

    /// Has the leader of one shard compare it.
    async fn verify_shard(
        &self,
        view: TableId,
        shard: &ShardDescriptor,
        (repair, gently): (bool, bool),
    ) -> Result<ViewCheck> {
        let question = VerifyAsk { view, shards: vec![shard.id], repair, gently };
        let mut left: Vec<NodeId> = shard.replicas.iter().map(|replica| replica.node).collect();
        let known = self.node.replicas().get(shard.id).and_then(|replica| replica.leader());
        let mut next = known.map(|(_, node)| node).or_else(|| left.pop());
        let mut last = Error::new(Reason::NoQuorum, format!("{} has no leader right now", shard.id));
        while let Some(node) = next {
            left.retain(|&other| other != node);
            match self.node.ask_for(node, VERIFY, &question, VERIFY_TIMEOUT).await {
                Ok(check) => return Ok(check),
                Err(error) if is_elsewhere(&error) => {
                    next = error.leader.filter(|leader| left.contains(leader)).or_else(|| left.pop());
                    last = error;
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// Views that are being built, or made anew.
    pub(super) fn unready_views(&self) -> Vec<TableId> {
        let directory = self.node.directory();
        let unready =
            |entry: &&Arc<TableEntry>| entry.descriptor.view.as_ref().is_some_and(|view| !view.ready && !view.paused);
        directory.tables().filter(unready).map(|entry| entry.descriptor.id).collect()
    }

    /// Looks after such a view: says that it is ready if it has come as far as its sources and holds what those say. Clients come first:
    /// the comparison takes its time where they ask for much.
    pub(super) async fn look_after_view(&self, id: TableId) -> Result<()> {
        let directory = self.node.directory();
        let Some(entry) = directory.table(id) else { return Ok(()) };
        let name = &entry.descriptor.name;
        if self.is_being_filled(entry).await? {
            return Ok(());
        }
        let shards: Vec<_> = entry.shards.iter().collect();
        let check = self.verify_shards(id, &shards, (true, true)).await?;
        if check.differing() > 0 {
            let ViewCheck { missing, invented, other, .. } = check;
            tracing::error!(view = name, missing, invented, other, "a new view was not as its sources");
            return Err(Error::new(Reason::ViewBehind, format!("{name} was not as its sources")));
        }
        // A comparison takes its time; a range that was made anew already may have begun once more.
        if self.is_being_filled(entry).await? {
            return Ok(());
        }
        let ready = self.change(|directory| change::say_ready(directory, &entry.descriptor)).await?;
        if let Some(name) = ready {
            tracing::info!(view = name, table = %id, "a view is ready");
        }
        Ok(())
    }

    /// Whether some range of a view has yet to come as far as its sources.
    async fn is_being_filled(&self, entry: &TableEntry) -> Result<bool> {
        let shards = self.sections_of(entry).await?;
        let sections: Vec<Watermark> = shards.into_iter().flat_map(|(_, sections)| sections).collect();
        Ok(self.node.view_is_behind(entry, &sections).await?.iter().any(|lag| lag.building))
    }

    /// Where each shard of a view stands.
    async fn sections_of(&self, entry: &TableEntry) -> Result<Vec<(StandingAnswer, Vec<Watermark>)>> {
        let asked = entry.shards.iter().map(|shard| async move {
            let (start, end) = (Bytes::copy_from_slice(&shard.start), Bytes::copy_from_slice(&shard.end));
            let answer = self.node.standing(entry, &start).await?;
            let sections = answer.sections(&start, &end)?;
            Ok((answer, sections))
        });
        futures::future::try_join_all(asked).await
    }

    async fn view_named(&self, name: &str) -> Result<(Arc<TableEntry>, ViewDescriptor)> {
        self.hear_newest().await?;
        let entry = self.node.table(name, self.node.clock().now() + VERB_TIMEOUT).await.map_err(|error| {
            let text = format!("there is no view '{name}'; `trivet view list` shows them");
            if error.reason == Reason::UnknownTable { Error::new(Reason::UnknownTable, text) } else { error }
        })?;
        let view = entry.descriptor.view.clone();
        let view = view.ok_or_else(|| Error::invalid(format!("{name} is a table, not a view")))?;
        Ok((entry, view))
    }

    fn name_of(&self, table: TableId) -> Option<String> {
        Some(self.node.directory().descriptor(table)?.name.clone())
    }

    /// A document that does not fit, by the name of its source; none if that was dropped meanwhile.
    fn unfit_document(&self, unfit: Unfit) -> Option<UnfitDocument> {
        let Unfit { source, key, why } = unfit;
        Some(UnfitDocument { table: self.name_of(source)?, key: key.into(), why })
    }

    fn view_details(&self, table: TableDetails, state: ViewState) -> ViewDetails {
        let view = table.table.view.clone();
        let sources = view.iter().flat_map(|view| &view.sources).filter_map(|source| self.name_of(*source)).collect();
        let definition = view.map(|view| view.definition).unwrap_or_default();
        ViewDetails { table, definition, sources, state, lags: None }
    }
}

/// Whether another node is to be asked.
fn is_elsewhere(error: &Error) -> bool {
    matches!(error.reason, Reason::NotLeader | Reason::ShardNotHere | Reason::NotReady)
}

fn state_of(view: &ViewDescriptor) -> ViewState {
    match view {
        ViewDescriptor { paused: true, .. } => ViewState::Paused,
        ViewDescriptor { ready: true, .. } => ViewState::Ready,
        ViewDescriptor { rebuilding: true, .. } => ViewState::Rebuilding,
        _ => ViewState::Building,
    }
}
