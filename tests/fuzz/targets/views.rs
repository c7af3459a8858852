//! Definitions of views, and documents that are projected by them.
//!
//! An input is the text of a definition, TOML or JSON, and behind a line `---` documents, one a line. What must hold: a
//! definition or an error that a user can read; what was taken reads back as the same from the form that the catalog
//! keeps; effects come back as they went, touch keys that may be, and are the same the next time; and whatever documents
//! follow one another under a key, folded or one by one, the rows are those that the last of them makes alone.
#![no_main]

mod support;

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use trivet::projection::{
    Definition, Effect, Members, Projector, Recompute, VIEW_KEY_BYTES_MAX, apply, coalesce, hides,
};
use trivet::types::{Reason, Result};

/// Expressions are trees, and a document is read in several forms.
const CONSTANT: usize = 16 << 20;
/// Documents of one input; each is projected once for each source.
const DOCUMENTS_MAX: usize = 6;
/// A key with all that is written in another way in keys of views.
const KEY: &[u8] = b"o/1 {%}\xff";

fuzz_target!(|data: &[u8]| support::frugally(data, CONSTANT, check));

fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (definition, documents) = text.split_once("\n---\n").unwrap_or((&text, ""));
    let definition = match Definition::parse(definition) {
        Ok(definition) => definition,
        Err(error) => {
            assert!(error.reason == Reason::InvalidRequest && !error.to_string().is_empty(), "{error:?}");
            return;
        }
    };
    let kept = definition.to_json();
    assert!(!kept.contains('\n'), "one line: {kept}");
    assert_eq!(Definition::parse(&kept).as_ref(), Ok(&definition), "{kept}");
    assert!(!definition.source_tables().is_empty());
    let projector = Projector::new(&definition).expect("what was taken can be made ready");
    let documents: Vec<&[u8]> = documents.lines().take(DOCUMENTS_MAX).map(str::as_bytes).collect();
    for source in 0..definition.sources.len() {
        follow(&definition, &projector, source, &documents);
    }
    // Of a source that is none, nothing is said.
    let nothing = projector.effects(definition.sources.len(), KEY, None, documents.first().copied());
    assert!(nothing.effects.is_empty() && nothing.bad.is_none());
}

/// Documents that follow one another under one key, and in the end none.
fn follow(definition: &Definition, projector: &Projector, source: usize, documents: &[&[u8]]) {
    let (mut rows, mut gathered) = (Rows::default(), Vec::new());
    let mut before = None;
    for after in documents.iter().copied().map(Some).chain([None]) {
        let projected = projector.effects(source, KEY, before, after);
        assert_eq!(projected, projector.effects(source, KEY, before, after), "the same the next time");
        assert!(projected.bad.is_none() || after.is_some());
        if let Some(after) = after {
            let alone = projector.effects(source, KEY, None, Some(after));
            let tag = projector.tag_of(source, KEY, after);
            assert_eq!(matches!(tag, Ok(Some(_))), !alone.effects.is_empty());
            assert_eq!(tag.err(), alone.bad, "the same is said of what does not fit");
            assert!(alone.bad.is_none() || alone.effects.is_empty());
        }
        for effect in &projected.effects {
            assert_eq!(Effect::decode(effect.encode()).as_ref(), Ok(effect));
            let key = effect.key();
            assert!(key.starts_with(b"{") && key.len() <= VIEW_KEY_BYTES_MAX, "{key:?}");
            assert!(!hides(&[b"{", &effect.tag[..], b"}"].concat()));
        }
        rows.carry_out(&projected.effects);
        gathered.extend(projected.effects);
        let mut alone = Recompute::new(definition).expect("what was taken can be made ready");
        after.into_iter().for_each(|after| alone.add(source, KEY, after).expect("memory"));
        assert_eq!(rows.0, alone.rows().expect("memory"), "{:?} after {:?}", after, before);
        before = after;
    }
    let mut folded = Rows::default();
    folded.carry_out(&coalesce(gathered));
    assert_eq!(folded.0, BTreeMap::new(), "nothing is left");
}

/// Rows of a view in memory.
#[derive(Default)]
struct Rows(BTreeMap<Bytes, Bytes>);

impl Rows {
    fn carry_out(&mut self, effects: &[Effect]) {
        for (key, value) in apply(effects, self).expect("memory") {
            match value {
                Some(value) => self.0.insert(key, value),
                None => self.0.remove(&key),
            };
        }
    }
}

impl Members for Rows {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.0.get(key).cloned())
    }

    fn first(&self, prefix: &[u8], beyond: Option<&[u8]>) -> Result<Option<(Bytes, Bytes)>> {
        let from = beyond.map_or(Bound::Included(prefix), Bound::Excluded);
        let found = self.0.range::<[u8], _>((from, Bound::Unbounded)).find(|(key, _)| key.starts_with(prefix));
        Ok(found.map(|(key, value)| (key.clone(), value.clone())))
    }

    fn last(&self, prefix: &[u8], before: Option<&[u8]>) -> Result<Option<(Bytes, Bytes)>> {
        let to = before.map_or(Bound::Unbounded, Bound::Excluded);
        let mut found = self.0.range::<[u8], _>((Bound::Unbounded, to)).rev();
        Ok(found.find(|(key, _)| key.starts_with(prefix)).map(|(key, value)| (key.clone(), value.clone())))
    }
}
