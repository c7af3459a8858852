//! A definition made ready: what a change of one row of a source does to rows of the view.

use bytes::Bytes;

use super::decimal::Decimal;
use super::definition::{Definition, Function, Kind, Source};
use super::document::{Document, Scalar, including};
use super::effect::{Change, Effect, Telling, Told};
use super::filter::Filter;
use super::key::{self, VIEW_KEY_BYTES_MAX};
use super::order::ordering;
use crate::types::{Result, percent_encoded};

/// A definition made ready.
pub struct Projector {
    kind: Kind,
    sources: Vec<Ready>,
    functions: Vec<Function>,
    told: Vec<Told>,
    parts: Vec<String>,
    /// How rows of groups call the tag: as the first source does.
    label: String,
}

struct Ready {
    source: Source,
    filter: Option<Filter>,
}

/// What a change of a source does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Projected {
    /// To rows of the view.
    pub effects: Vec<Effect>,
    /// Why the document as it is now is not taken in, if it is not usable. Names fields and holds no values.
    pub bad: Option<String>,
}

/// What one document is to a view.
struct Part {
    tag: Bytes,
    /// The rows that it makes by itself: what stands behind the tag, and the value.
    rows: Vec<(Bytes, Bytes)>,
    sums: Vec<Decimal>,
}

impl Projector {
    /// Makes a definition ready.
    pub fn new(definition: &Definition) -> Result<Projector> {
        let mut sources = Vec::with_capacity(definition.sources.len());
        for source in &definition.sources {
            let filter = source.filter.as_deref().map(Filter::compile).transpose()?;
            sources.push(Ready { source: source.clone(), filter });
        }
        let aggregates = definition.functions()?;
        let told = aggregates.iter().map(|aggregate| Told {
            name: aggregate.name.clone(),
            what: match aggregate.function {
                Function::Count => Telling::Count,
                Function::Sum(_) => Telling::Sum,
                Function::Min(_) => Telling::Min,
                Function::Max(_) => Telling::Max,
            },
        });
        Ok(Projector {
            label: definition.label().to_owned(),
            kind: definition.kind,
            told: told.collect(),
            functions: aggregates.into_iter().map(|aggregate| aggregate.function).collect(),
            parts: definition.sources.iter().filter_map(|source| source.part.clone()).collect(),
            sources,
        })
    }

    /// What a change of one row of source number `source` does; a value that is absent is none. A document that cannot
    /// be used is as good as absent.
    pub fn effects(&self, source: usize, key: &[u8], before: Option<&[u8]>, after: Option<&[u8]>) -> Projected {
        let mut projected = Projected::default();
        let was = before.and_then(|value| self.part(source, key, value).ok().flatten());
        let is = match after.map(|value| self.part(source, key, value)) {
            None => None,
            Some(Ok(part)) => part,
            Some(Err(bad)) => {
                projected.bad = Some(bad);
                None
            }
        };
        let effects = &mut projected.effects;
        let kept = |rest: &Bytes, tag: &Bytes| {
            is.as_ref().is_some_and(|is| is.tag == *tag && is.rows.iter().any(|(other, _)| other == rest))
        };
        if let Some(was) = &was {
            for (rest, _) in was.rows.iter().filter(|(rest, _)| !kept(rest, &was.tag)) {
                effects.push(Effect { tag: was.tag.clone(), change: Change::Delete { rest: rest.clone() } });
            }
        }
        if let Some(is) = &is {
            for (rest, value) in &is.rows {
                let change = Change::Put { rest: rest.clone(), value: value.clone() };
                effects.push(Effect { tag: is.tag.clone(), change });
            }
        }
        match self.kind {
            Kind::Rekeyed => {}
            Kind::Aggregate => {
                let mut group = |part: &Part, sign: i64| {
                    let sums = part.sums.iter().map(|&sum| if sign < 0 { sum.negated() } else { sum }).collect();
                    let change =
                        Change::Group { label: self.label.clone(), told: self.told.clone(), count: sign, sums };
                    effects.push(Effect { tag: part.tag.clone(), change });
                };
                if let Some(was) = &was {
                    group(was, -1);
                }
                if let Some(is) = &is {
                    group(is, 1);
                }
            }
            Kind::Merged => {
                let mut tags: Vec<&Bytes> = was.iter().chain(&is).map(|part| &part.tag).collect();
                tags.dedup();
                for tag in tags {
                    effects.push(Effect { tag: tag.clone(), change: Change::Merge { parts: self.parts.clone() } });
                }
            }
        }
        projected
    }

    /// The tag of the rows that a document is part of, if it is part of any; or why it does not fit, without its values.
    pub fn tag_of(&self, source: usize, key: &[u8], value: &[u8]) -> std::result::Result<Option<Bytes>, String> {
        Ok(self.part(source, key, value)?.map(|part| part.tag))
    }

    /// What a document is to the view: nothing if it does not belong to it, an error if that cannot be told.
    fn part(&self, source: usize, key: &[u8], value: &[u8]) -> std::result::Result<Option<Part>, String> {
        let Some(Ready { source: declared, filter, .. }) = self.sources.get(source) else { return Ok(None) };
        let document = Document::parse(value)?;
        if let Some(filter) = filter
            && !filter.passes(key, value)?
        {
            return Ok(None);
        }
        let tag = key::tag_of(&document.scalar(&declared.partition_by)?);
        let tag = tag.ok_or_else(|| format!("the field {} is missing or empty", declared.partition_by))?;
        let number = if self.sources.len() > 1 { format!("/{source}") } else { String::new() };
        let mut part = Part { tag: tag.into(), rows: Vec::new(), sums: Vec::new() };
        let row = || match &declared.include {
            None => Bytes::copy_from_slice(value),
            Some(paths) => including(&document, paths).into(),
        };
        match self.kind {
            Kind::Rekeyed => {
                let mut rest = String::new();
                for order in &declared.order_by {
                    rest.push(':');
                    rest.push_str(&order_of(&document.scalar(&order.path)?, order.descending, &order.path)?);
                }
                rest.push_str(&format!("{number}/{}", percent_encoded(key)));
                part.rows.push((rest.into(), row()));
            }
            Kind::Aggregate => {
                for (place, function) in self.functions.iter().enumerate() {
                    match function {
                        Function::Count => {}
                        Function::Sum(path) => part.sums.push(match document.scalar(path)? {
                            Scalar::Nothing => Decimal::default(),
                            Scalar::Number(text) => Decimal::parse(text)
                                .ok_or_else(|| format!("the field {path} is too large or too exact to be added up"))?,
                            _ => return Err(format!("the field {path} is no number")),
                        }),
                        Function::Min(path) | Function::Max(path) => {
                            let scalar = document.scalar(path)?;
                            if scalar == Scalar::Nothing {
                                continue;
                            }
                            let order = order_of(&scalar, false, path)?;
                            let place_of = [&key::members_of(place)[..], order.as_bytes(), number.as_bytes()].concat();
                            let rest = [&place_of[..], b"/", key].concat();
                            let raw = document.raw(path).unwrap_or("null");
                            part.rows.push((rest.into(), Bytes::copy_from_slice(raw.as_bytes())));
                        }
                    }
                }
            }
            Kind::Merged => {
                let rest = [&key::members_of_part(source)[..], key].concat();
                part.rows.push((rest.into(), row()));
            }
        }
        // A group has its totals beside its members.
        let longest = part.rows.iter().map(|(rest, _)| rest.len()).max().unwrap_or(0).max(key::totals().len());
        if part.tag.len() + 2 + longest > VIEW_KEY_BYTES_MAX {
            return Err(format!("its key in the view would be longer than {VIEW_KEY_BYTES_MAX} bytes"));
        }
        Ok(Some(part))
    }
}

fn order_of(scalar: &Scalar<'_>, descending: bool, path: &str) -> std::result::Result<String, String> {
    ordering(scalar, descending).ok_or_else(|| format!("the field {path} has too many digits to be put in order"))
}
