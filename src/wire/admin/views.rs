//! Views as they are wished for and told of: what they are derived from, how far they are, and what a comparison with their
//! sources has found.
//!
//! A definition is text here. What it says is known to those who keep views up, not to a client that asks for one.

use super::TableDetails;
use crate::types::{Error, Result};
use crate::wire::proto::v1;

/// Longest definition, in bytes: it stands in the catalog, which every node holds in memory.
pub const DEFINITION_BYTES_MAX: usize = 64 << 10;

/// A view that someone wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewView {
    /// Its definition, TOML or JSON.
    pub definition: String,
    /// Voters per shard; none: as the view that it replaces, or as for a table.
    pub replication: Option<u32>,
    /// How long replaced versions stay readable, in milliseconds; none: as that, or as for a table.
    pub history_ms: Option<u64>,
    /// Say what would be done and do nothing.
    pub dry_run: bool,
    /// It is another form of the view of its name, whose place it takes when it is ready.
    pub replace: bool,
}

impl NewView {
    /// A view of this definition, everything else as for a table.
    pub fn of(definition: &str) -> NewView {
        let definition = definition.to_owned();
        NewView { definition, replication: None, history_ms: None, dry_run: false, replace: false }
    }

    /// Reads a request to create a view and checks its size.
    pub fn decode(request: v1::CreateViewRequest) -> Result<NewView> {
        if request.definition.trim().is_empty() {
            return Err(Error::invalid("the definition is empty: it names the view, its kind and its sources"));
        }
        let bytes = request.definition.len();
        if bytes > DEFINITION_BYTES_MAX {
            return Err(Error::invalid(format!(
                "a definition of {bytes} bytes; at most {DEFINITION_BYTES_MAX} are allowed"
            )));
        }
        Ok(NewView {
            definition: request.definition,
            replication: Some(request.replication).filter(|&voters| voters != 0),
            history_ms: request.history_ms,
            dry_run: request.dry_run,
            replace: request.replace,
        })
    }

    /// The request that asks for this view.
    pub fn encode(self) -> v1::CreateViewRequest {
        v1::CreateViewRequest {
            definition: self.definition,
            replication: self.replication.unwrap_or(0),
            history_ms: self.history_ms,
            dry_run: self.dry_run,
            replace: self.replace,
        }
    }
}

/// Where a view is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewState {
    /// It takes in what its sources hold, and was not compared with them yet.
    Building,
    /// It follows its sources.
    Ready,
    /// It has fallen behind what its sources remember, and is made anew.
    Rebuilding,
    /// Its upkeep rests because somebody said so.
    Paused,
}

impl ViewState {
    /// Its name, as people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            ViewState::Building => "BUILDING",
            ViewState::Ready => "READY",
            ViewState::Rebuilding => "REBUILDING",
            ViewState::Paused => "PAUSED",
        }
    }

    fn encode(self) -> v1::ViewState {
        match self {
            ViewState::Building => v1::ViewState::Building,
            ViewState::Ready => v1::ViewState::Ready,
            ViewState::Rebuilding => v1::ViewState::Rebuilding,
            ViewState::Paused => v1::ViewState::Paused,
        }
    }

    fn decode(number: i32) -> Result<ViewState> {
        match v1::ViewState::try_from(number) {
            Ok(v1::ViewState::Building) => Ok(ViewState::Building),
            Ok(v1::ViewState::Ready) => Ok(ViewState::Ready),
            Ok(v1::ViewState::Rebuilding) => Ok(ViewState::Rebuilding),
            Ok(v1::ViewState::Paused) => Ok(ViewState::Paused),
            Ok(v1::ViewState::Unspecified) | Err(_) => {
                Err(Error::internal(format!("a view in state {number}, which is unknown here; do the versions match?")))
            }
        }
    }
}

/// A view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewDetails {
    /// The table that holds its rows.
    pub table: TableDetails,
    /// Its definition in canonical form, JSON.
    pub definition: String,
    /// Names of the tables that it is derived from.
    pub sources: Vec<String>,
    /// Where it is in its life.
    pub state: ViewState,
    /// The sources of which it had not taken everything in when it was asked; none if that was not asked.
    pub lags: Option<Vec<ViewLag>>,
}

/// A source that a view lags behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewLag {
    /// The source.
    pub table: String,
    /// It is still taking in what the source held when the view was created.
    pub building: bool,
    /// Documents of it at which the view has stopped, some of them.
    pub stopped_at: Vec<UnfitDocument>,
}

/// A document of a source that a view cannot use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnfitDocument {
    /// The source.
    pub table: String,
    /// Its key there.
    pub key: bytes::Bytes,
    /// Why it does not fit; names fields and holds no values.
    pub why: String,
}

/// One row of a view that differs from what its sources say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowDifference {
    /// The view lacks it.
    Missing,
    /// No source says so.
    Invented,
    /// The view holds something else.
    Other,
}

impl RowDifference {
    /// Its name, as people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            RowDifference::Missing => "missing",
            RowDifference::Invented => "invented",
            RowDifference::Other => "other",
        }
    }

    fn encode(self) -> v1::RowDifference {
        match self {
            RowDifference::Missing => v1::RowDifference::Missing,
            RowDifference::Invented => v1::RowDifference::Invented,
            RowDifference::Other => v1::RowDifference::Other,
        }
    }

    fn decode(number: i32) -> Result<RowDifference> {
        match v1::RowDifference::try_from(number) {
            Ok(v1::RowDifference::Missing) => Ok(RowDifference::Missing),
            Ok(v1::RowDifference::Invented) => Ok(RowDifference::Invented),
            Ok(v1::RowDifference::Other) => Ok(RowDifference::Other),
            Ok(v1::RowDifference::Unspecified) | Err(_) => Err(Error::internal(format!(
                "a row differs in manner {number}, which is unknown here; do the versions match?"
            ))),
        }
    }
}

/// What a comparison of a view with its sources has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ViewVerification {
    /// Rows that the sources say there are, hidden ones included.
    pub rows: u64,
    /// Rows that the view lacks.
    pub missing: u64,
    /// Rows that no source says there are.
    pub invented: u64,
    /// Rows that hold something else.
    pub other: u64,
    /// Of those, how many were set right.
    pub repaired: u64,
    /// The first of them by key.
    pub samples: Vec<(bytes::Bytes, RowDifference)>,
    /// Documents that do not fit the view, and so are not in it: that is no difference.
    pub unfit: u64,
    /// Some of them.
    pub unfit_samples: Vec<UnfitDocument>,
}

impl ViewVerification {
    /// Rows that differ, or did before they were set right.
    pub fn differing(&self) -> u64 {
        self.missing + self.invented + self.other
    }
}

impl From<ViewLag> for v1::ViewLag {
    fn from(lag: ViewLag) -> v1::ViewLag {
        let stopped_at = lag.stopped_at.into_iter().map(Into::into).collect();
        v1::ViewLag { table: lag.table, building: lag.building, stopped_at }
    }
}

impl From<v1::ViewLag> for ViewLag {
    fn from(lag: v1::ViewLag) -> ViewLag {
        let stopped_at = lag.stopped_at.into_iter().map(Into::into).collect();
        ViewLag { table: lag.table, building: lag.building, stopped_at }
    }
}

impl From<UnfitDocument> for v1::UnfitDocument {
    fn from(document: UnfitDocument) -> v1::UnfitDocument {
        v1::UnfitDocument { table: document.table, key: document.key, why: document.why }
    }
}

impl From<v1::UnfitDocument> for UnfitDocument {
    fn from(document: v1::UnfitDocument) -> UnfitDocument {
        UnfitDocument { table: document.table, key: document.key, why: document.why }
    }
}

impl From<ViewDetails> for v1::ViewInfo {
    fn from(view: ViewDetails) -> v1::ViewInfo {
        v1::ViewInfo {
            table: Some(view.table.into()),
            definition: view.definition,
            sources: view.sources,
            state: view.state.encode().into(),
            lags_known: view.lags.is_some(),
            lags: view.lags.into_iter().flatten().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::ViewInfo> for ViewDetails {
    type Error = Error;

    fn try_from(info: v1::ViewInfo) -> Result<ViewDetails> {
        let table = info.table.ok_or_else(|| Error::internal("the answer names no table; do the versions match?"))?;
        let lags = info.lags.into_iter().map(Into::into).collect();
        Ok(ViewDetails {
            table: table.try_into()?,
            definition: info.definition,
            sources: info.sources,
            state: ViewState::decode(info.state)?,
            lags: info.lags_known.then_some(lags),
        })
    }
}

impl From<ViewVerification> for v1::VerifyViewResponse {
    fn from(found: ViewVerification) -> v1::VerifyViewResponse {
        let sample =
            |(key, difference): (_, RowDifference)| v1::RowSample { key, difference: difference.encode().into() };
        v1::VerifyViewResponse {
            rows: found.rows,
            missing: found.missing,
            invented: found.invented,
            other: found.other,
            repaired: found.repaired,
            samples: found.samples.into_iter().map(sample).collect(),
            unfit: found.unfit,
            unfit_samples: found.unfit_samples.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::VerifyViewResponse> for ViewVerification {
    type Error = Error;

    fn try_from(found: v1::VerifyViewResponse) -> Result<ViewVerification> {
        let sample = |sample: v1::RowSample| Ok((sample.key, RowDifference::decode(sample.difference)?));
        Ok(ViewVerification {
            rows: found.rows,
            missing: found.missing,
            invented: found.invented,
            other: found.other,
            repaired: found.repaired,
            samples: found.samples.into_iter().map(sample).collect::<Result<_>>()?,
            unfit: found.unfit,
            unfit_samples: found.unfit_samples.into_iter().map(Into::into).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tables::view_told;
    use super::*;
    use crate::types::{Partitioning, Reason, TableDescriptor, TableId, TableState};

    fn view(state: ViewState, lags: Option<Vec<ViewLag>>) -> ViewDetails {
        let table = TableDescriptor {
            id: TableId(7),
            name: "orders_by_user".to_owned(),
            partitioning: Partitioning::Hash,
            replication: 3,
            read_replicas: 0,
            read_replica_zone: None,
            history_ms: 60_000,
            state: TableState::Ready,
            view: Some(view_told()),
        };
        ViewDetails {
            table: TableDetails { table, shards: vec![] },
            definition: r#"{"name":"orders_by_user"}"#.to_owned(),
            sources: vec!["orders".to_owned(), "orders_archive".to_owned()],
            state,
            lags,
        }
    }

    fn unfit(key: &'static str) -> UnfitDocument {
        UnfitDocument { table: "orders".to_owned(), key: key.into(), why: format!("{key} has no field") }
    }

    #[test]
    fn views_survive_the_wire() {
        let lag = |building, stopped_at| ViewLag { table: "orders".to_owned(), building, stopped_at };
        for view in [
            view(ViewState::Building, Some(vec![lag(true, vec![]), lag(false, vec![unfit("o-1"), unfit("o-2")])])),
            view(ViewState::Ready, Some(vec![])),
            view(ViewState::Rebuilding, None),
            view(ViewState::Paused, None),
        ] {
            assert_eq!(ViewDetails::try_from(v1::ViewInfo::from(view.clone())), Ok(view));
        }
    }

    #[test]
    fn a_table_is_told_from_a_view() {
        let mut table = view(ViewState::Ready, None).table;
        table.table.view = Some(crate::types::ViewDescriptor { sources: vec![TableId(3)], ready: true, ..view_told() });
        let told = TableDetails::try_from(v1::TableInfo::from(table.clone())).expect("decodes");
        assert_eq!(told.table.view, Some(view_told()), "the definition is not told to those who only route");
        table.table.view = None;
        assert_eq!(TableDetails::try_from(v1::TableInfo::from(table.clone())), Ok(table));
    }

    #[test]
    fn wishes_survive_the_wire_and_nonsense_does_not() {
        let plain = NewView {
            definition: "name = 'v'".to_owned(),
            replication: None,
            history_ms: None,
            dry_run: false,
            replace: false,
        };
        for wish in [
            plain.clone(),
            NewView { replication: Some(1), history_ms: Some(0), dry_run: true, replace: true, ..plain.clone() },
            NewView { definition: "x".repeat(DEFINITION_BYTES_MAX), ..plain.clone() },
        ] {
            assert_eq!(NewView::decode(wish.clone().encode()), Ok(wish));
        }
        for definition in [String::new(), " \n".to_owned(), "x".repeat(DEFINITION_BYTES_MAX + 1)] {
            let refused = NewView::decode(NewView { definition, ..plain.clone() }.encode()).expect_err("refused");
            assert_eq!(refused.reason, Reason::InvalidRequest);
        }
    }

    #[test]
    fn findings_survive_the_wire_and_unknown_words_do_not() {
        let sample = |key: &'static [u8], difference| (bytes::Bytes::from_static(key), difference);
        let found = ViewVerification {
            rows: 9,
            missing: 1,
            invented: 2,
            other: 3,
            repaired: 5,
            samples: vec![
                sample(b"{a}", RowDifference::Missing),
                sample(b"{a}\x01\xff", RowDifference::Invented),
                sample(b"{b}", RowDifference::Other),
            ],
            unfit: 7,
            unfit_samples: vec![unfit("o-3"), unfit("o-4")],
        };
        assert_eq!(found.differing(), 6);
        assert_eq!(ViewVerification::try_from(v1::VerifyViewResponse::from(found.clone())), Ok(found));

        for difference in [0, 9] {
            let samples = vec![v1::RowSample { key: "{a}".into(), difference }];
            ViewVerification::try_from(v1::VerifyViewResponse { samples, ..Default::default() }).expect_err("unknown");
        }
        for state in [0, 9] {
            let info = v1::ViewInfo { state, ..view(ViewState::Ready, None).into() };
            ViewDetails::try_from(info).expect_err("unknown");
        }
        assert!(ViewDetails::try_from(v1::ViewInfo::default()).is_err());
    }
}
