//! Documents as a view reads them: fields by their paths, with the text of each value exactly as it was written.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::value::RawValue;

/// A document with its fields, as yet unread.
pub struct Document<'a> {
    fields: HashMap<String, &'a RawValue>,
}

/// A value that is no list and no object.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar<'a> {
    /// Null, or absent.
    Nothing,
    /// True or false.
    Bool(bool),
    /// A number, as it was written.
    Number(&'a str),
    /// A text.
    Text(Cow<'a, str>),
}

impl<'a> Document<'a> {
    /// Reads a value; an error if it is no JSON object.
    pub fn parse(value: &'a [u8]) -> Result<Document<'a>, String> {
        match serde_json::from_slice(value) {
            Ok(fields) => Ok(Document { fields }),
            Err(_) => Err("it is no JSON object".to_owned()),
        }
    }

    /// What stands at a path, as it was written; none if nothing does.
    pub fn raw(&self, path: &str) -> Option<&'a str> {
        let mut steps = path.split('.');
        let mut found: &'a RawValue = self.fields.get(steps.next()?)?;
        for step in steps {
            let inner: HashMap<String, &'a RawValue> = serde_json::from_str(found.get()).ok()?;
            found = inner.get(step)?;
        }
        Some(found.get())
    }

    /// The scalar at a path; an error if it is a list or an object.
    pub fn scalar(&self, path: &str) -> Result<Scalar<'a>, String> {
        let Some(raw) = self.raw(path) else { return Ok(Scalar::Nothing) };
        scalar_of(raw).ok_or_else(|| format!("the field {path} is neither a text nor a number nor true or false"))
    }
}

/// The scalar of a JSON text.
pub fn scalar_of(raw: &str) -> Option<Scalar<'_>> {
    Some(match raw.as_bytes().first()? {
        b'n' => Scalar::Nothing,
        b't' => Scalar::Bool(true),
        b'f' => Scalar::Bool(false),
        b'"' => Scalar::Text(serde_json::from_str(raw).map(Cow::Owned).ok()?),
        b'[' | b'{' => return None,
        _ => Scalar::Number(raw),
    })
}

/// An object of some fields, in this order, each as it was written. Fields at longer paths are nested again.
pub fn including(document: &Document<'_>, paths: &[String]) -> String {
    let split: Vec<(Vec<&str>, &str)> =
        paths.iter().filter_map(|path| Some((path.split('.').collect(), document.raw(path)?))).collect();
    let mut out = String::new();
    nest(&split, 0, &mut out);
    out
}

fn nest(fields: &[(Vec<&str>, &str)], depth: usize, out: &mut String) {
    out.push('{');
    let mut done: Vec<&str> = Vec::new();
    for (path, raw) in fields {
        let name = path[depth];
        if done.contains(&name) {
            continue;
        }
        if !done.is_empty() {
            out.push(',');
        }
        done.push(name);
        out.push_str(&text(name));
        out.push(':');
        if path.len() == depth + 1 {
            out.push_str(raw);
        } else {
            let inside: Vec<_> =
                fields.iter().filter(|(path, _)| path[depth] == name && path.len() > depth + 1).cloned().collect();
            nest(&inside, depth + 1, out);
        }
    }
    out.push('}');
}

/// A text as JSON writes it.
pub fn text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_as_they_were_written() {
        let document = Document::parse(br#"{"a":1.50,"b":{"c":"x\u0041","d":[1, 2]},"n":null}"#).expect("a document");
        assert_eq!(document.raw("a"), Some("1.50"));
        assert_eq!(document.scalar("b.c"), Ok(Scalar::Text("xA".into())));
        assert_eq!(document.scalar("n"), Ok(Scalar::Nothing));
        assert_eq!(document.scalar("b.x"), Ok(Scalar::Nothing));
        assert_eq!(document.scalar("a.x"), Ok(Scalar::Nothing));
        assert!(document.scalar("b").is_err() && document.scalar("b.d").is_err());
        let paths = ["b.d", "a", "b.c", "z"].map(str::to_owned);
        assert_eq!(including(&document, &paths), r#"{"b":{"d":[1, 2],"c":"x\u0041"},"a":1.50}"#);
        assert_eq!(including(&document, &[]), "{}");
        for bad in ["", "5", "[]", "{\"a\":", "{}x", "\u{1}"] {
            assert!(Document::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
