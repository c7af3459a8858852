//! What a view is made of, as its creator declares it: TOML or JSON, checked for all that can be known without its
//! sources.

use std::fmt;
use std::str::FromStr;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::filter::Filter;
use crate::types::{Error, Result, check_table_name};

/// Bytes of the longest definition.
pub const DEFINITION_BYTES_MAX: usize = 64 << 10;
/// Most sources.
pub const SOURCES_MAX: usize = 8;
/// Most fields that order rows.
const ORDER_MAX: usize = 8;
/// Most fields that are included.
const INCLUDE_MAX: usize = 64;
/// Most aggregates.
pub const AGGREGATES_MAX: usize = 16;
/// Bytes of the longest path of a field.
pub const PATH_BYTES_MAX: usize = 256;
/// Shards when nothing is said.
const SHARDS_DEFAULT: u32 = 4;
/// Most shards that a view begins with.
const SHARDS_MAX: u32 = 1_024;

/// A declared view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// The name of the table that holds it.
    pub name: String,
    /// What its rows are.
    pub kind: Kind,
    /// How many shards it begins with.
    #[serde(default = "shards_default")]
    pub shards: u32,
    /// What upkeep does with a document that it cannot use.
    #[serde(default)]
    pub on_bad_document: BadDocuments,
    /// The tables that it is derived from.
    pub sources: Vec<Source>,
    /// What is told of each group: names and functions, in this order. Only of aggregates.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty", deserialize_with = "each_name_once")]
    pub aggregates: serde_json::Map<String, Value>,
}

/// What the rows of a view are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The documents of the sources under other keys.
    Rekeyed,
    /// One row for each group of documents, which counts and adds up.
    Aggregate,
    /// One document for each key, with a part from each source.
    Merged,
}

/// What upkeep does with a document that it cannot use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadDocuments {
    /// Goes on without it, and counts.
    #[default]
    Skip,
    /// Stops until it is gone.
    Stop,
}

/// A table that a view is derived from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Its name.
    pub table: String,
    /// A CEL expression: which documents belong to the view.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// The field whose value is the tag of the rows.
    pub partition_by: String,
    /// The fields by which rows of one tag are ordered; with `-` in front, descending. Only of re-keyed views.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub order_by: Vec<OrderBy>,
    /// The fields that rows hold; none: the whole document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include: Option<Vec<String>>,
    /// The name of the part that it adds to a merged document.
    #[serde(default, rename = "as", skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
}

/// A field that orders rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub struct OrderBy {
    /// The field.
    pub path: String,
    /// The greatest first.
    pub descending: bool,
}

impl From<String> for OrderBy {
    fn from(text: String) -> OrderBy {
        match text.strip_prefix('-') {
            Some(path) => OrderBy { path: path.to_owned(), descending: true },
            None => OrderBy { path: text, descending: false },
        }
    }
}

impl From<OrderBy> for String {
    fn from(order: OrderBy) -> String {
        format!("{}{}", if order.descending { "-" } else { "" }, order.path)
    }
}

/// What is told of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aggregate {
    /// Its name in the row.
    pub name: String,
    /// What it is.
    pub function: Function,
}

/// A function of the documents of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Function {
    /// How many there are.
    Count,
    /// The sum of a field.
    Sum(String),
    /// The least value of a field.
    Min(String),
    /// The greatest value of a field.
    Max(String),
}

impl FromStr for Function {
    type Err = Error;

    fn from_str(text: &str) -> Result<Function> {
        let text = text.trim();
        if text == "count" {
            return Ok(Function::Count);
        }
        let inside = text.strip_suffix(')').and_then(|text| text.split_once('('));
        let Some((name, path)) = inside else {
            let text = format!("'{text}' is no aggregate; there are count, sum(FIELD), min(FIELD) and max(FIELD)");
            return Err(Error::invalid(text));
        };
        let path = path.trim().to_owned();
        check_path("an aggregate", &path)?;
        match name.trim() {
            "sum" => Ok(Function::Sum(path)),
            "min" => Ok(Function::Min(path)),
            "max" => Ok(Function::Max(path)),
            other => Err(Error::invalid(format!("'{other}' is no aggregate; there are count, sum, min and max"))),
        }
    }
}

/// Reads a table of which no name stands twice: of two, JSON would silently drop one.
fn each_name_once<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<serde_json::Map<String, Value>, D::Error> {
    struct Named;

    impl<'de> Visitor<'de> for Named {
        type Value = serde_json::Map<String, Value>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a table of names and aggregates")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Self::Value, A::Error> {
            let mut read = serde_json::Map::new();
            while let Some((name, value)) = entries.next_entry::<String, Value>()? {
                if read.contains_key(&name) {
                    return Err(A::Error::custom(format!("the aggregate {} is named twice", shortened(&name))));
                }
                read.insert(name, value);
            }
            Ok(read)
        }
    }

    from.deserialize_map(Named)
}

fn shards_default() -> u32 {
    SHARDS_DEFAULT
}

impl Definition {
    /// Reads and checks a definition, TOML or JSON. `INVALID_REQUEST` says what is wrong with it.
    pub fn parse(text: &str) -> Result<Definition> {
        if text.len() > DEFINITION_BYTES_MAX {
            let text = format!("a definition of {} bytes; at most {DEFINITION_BYTES_MAX} are allowed", text.len());
            return Err(Error::invalid(text));
        }
        let refused =
            |error: String| Error::invalid(format!("the definition of the view cannot be read: {}", error.trim()));
        let definition: Definition = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|error| refused(error.to_string()))?
        } else {
            toml::from_str(text).map_err(|error| refused(error.to_string()))?
        };
        definition.check()?;
        Ok(definition)
    }

    /// The canonical form, which the catalog keeps: JSON on one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a definition is plain data")
    }

    /// The names of the tables that it is derived from, in the order of the sources.
    pub fn source_tables(&self) -> Vec<&str> {
        self.sources.iter().map(|source| source.table.as_str()).collect()
    }

    /// How rows of groups call the field that they are grouped by: as the first source does, without what it lies in.
    pub fn label(&self) -> &str {
        let path = self.sources.first().map_or("", |source| source.partition_by.as_str());
        path.rsplit('.').next().unwrap_or(path)
    }

    /// What is told of each group.
    pub fn functions(&self) -> Result<Vec<Aggregate>> {
        let read = |(name, function): (&String, &Value)| {
            let function = function.as_str().ok_or_else(|| {
                Error::invalid(format!(
                    "the aggregate {name} is no text; there are count, sum(FIELD), min(FIELD) and max(FIELD)"
                ))
            })?;
            Ok(Aggregate { name: name.clone(), function: function.parse()? })
        };
        self.aggregates.iter().map(read).collect()
    }

    fn check(&self) -> Result<()> {
        check_table_name(&self.name)?;
        if self.shards == 0 || self.shards > SHARDS_MAX {
            return Err(Error::invalid(format!("a view begins with 1 to {SHARDS_MAX} shards, not {}", self.shards)));
        }
        if self.sources.is_empty() || self.sources.len() > SOURCES_MAX {
            return Err(Error::invalid(format!("a view has 1 to {SOURCES_MAX} sources, not {}", self.sources.len())));
        }
        let functions = self.functions()?;
        match self.kind {
            Kind::Aggregate if functions.is_empty() || functions.len() > AGGREGATES_MAX => {
                let text =
                    format!("an aggregate view says 1 to {AGGREGATES_MAX} things of each group, under [aggregates]");
                return Err(Error::invalid(text));
            }
            Kind::Rekeyed | Kind::Merged if !functions.is_empty() => {
                return Err(Error::invalid("[aggregates] belong to a view of kind = \"aggregate\""));
            }
            _ => {}
        }
        for Aggregate { name, .. } in &functions {
            if name.is_empty() || name.len() > PATH_BYTES_MAX {
                return Err(Error::invalid(format!("the name of an aggregate has 1 to {PATH_BYTES_MAX} bytes")));
            }
            if self.label() == name {
                let text =
                    format!("the rows hold the value of partition_by as {name}: give the aggregate another name");
                return Err(Error::invalid(text));
            }
        }
        for (number, source) in self.sources.iter().enumerate() {
            if self.sources[..number].iter().any(|other| other.table == source.table) {
                return Err(Error::invalid(format!("{} is named twice among the sources", source.table)));
            }
            self.check_source(number, source)?;
        }
        Ok(())
    }

    fn check_source(&self, number: usize, source: &Source) -> Result<()> {
        let of = &source.table;
        check_table_name(of)?;
        check_path("partition_by", &source.partition_by)?;
        if let Some(filter) = &source.filter {
            Filter::compile(filter)?;
        }
        if !source.order_by.is_empty() && self.kind != Kind::Rekeyed {
            return Err(Error::invalid(
                "order_by belongs to a view of kind = \"rekeyed\": others have one row for each tag",
            ));
        }
        if source.order_by.len() > ORDER_MAX {
            return Err(Error::invalid(format!("rows are ordered by at most {ORDER_MAX} fields")));
        }
        source.order_by.iter().try_for_each(|order| check_path("order_by", &order.path))?;
        if let Some(include) = &source.include {
            if self.kind == Kind::Aggregate {
                return Err(Error::invalid(
                    "include does not belong to an aggregate view, whose rows hold the aggregates",
                ));
            }
            if include.is_empty() || include.len() > INCLUDE_MAX {
                let text = format!("include names 1 to {INCLUDE_MAX} fields; leave it out for the whole document");
                return Err(Error::invalid(text));
            }
            for (place, path) in include.iter().enumerate() {
                check_path("include", path)?;
                let twice = |other: &String| {
                    let inside =
                        |one: &str, other: &str| one.strip_prefix(other).is_some_and(|rest| rest.starts_with('.'));
                    other == path || inside(other, path) || inside(path, other)
                };
                if include[..place].iter().any(twice) {
                    return Err(Error::invalid(format!("include names {path} twice, or something that it is part of")));
                }
            }
        }
        match (&source.part, self.kind) {
            (None, Kind::Merged) => {
                Err(Error::invalid(format!("the source {of} of a merged view needs a name for its part: as = \"…\"")))
            }
            (Some(_), Kind::Rekeyed | Kind::Aggregate) => {
                Err(Error::invalid("as belongs to the sources of a view of kind = \"merged\""))
            }
            (Some(part), Kind::Merged) if part.is_empty() || part.len() > PATH_BYTES_MAX => {
                Err(Error::invalid(format!("the name of a part has 1 to {PATH_BYTES_MAX} bytes")))
            }
            (Some(part), Kind::Merged)
                if self.sources[..number].iter().any(|other| other.part.as_ref() == Some(part)) =>
            {
                Err(Error::invalid(format!("two sources are to be the part {part}")))
            }
            _ => Ok(()),
        }
    }
}

fn check_path(of: &str, path: &str) -> Result<()> {
    if path.is_empty() || path.len() > PATH_BYTES_MAX || path.split('.').any(str::is_empty) {
        let text =
            format!("{of} names a field like user.id, of 1 to {PATH_BYTES_MAX} bytes, not '{}'", shortened(path));
        return Err(Error::invalid(text));
    }
    Ok(())
}

fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}
