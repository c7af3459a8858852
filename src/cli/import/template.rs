//! Templates that make a key out of a row, such as `{user_id}/{date}/{order_id}`.
//!
//! `{name}` stands for a field; `{{` and `}}` are braces themselves, so a key with a tag is `{{{user_id}}}:cart`.

use bytes::{BufMut, Bytes, BytesMut};

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(String),
}

impl Template {
    /// Parses a template; it must name at least one field, else all rows would have one key.
    pub fn parse(text: &str) -> Result<Template, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '{' | '}' if chars.peek() == Some(&c) => {
                    chars.next();
                    literal.push(c);
                }
                '{' => {
                    let mut name = String::new();
                    loop {
                        match chars.next() {
                            Some('}') => break,
                            Some(inside) if inside != '{' => name.push(inside),
                            _ => return Err(format!("the field '{{{name}' of the template '{text}' is not closed")),
                        }
                    }
                    if name.is_empty() {
                        return Err(format!("the template '{text}' has a field without a name"));
                    }
                    if !literal.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut literal)));
                    }
                    parts.push(Part::Field(name));
                }
                '}' => {
                    return Err(format!(
                        "the template '{text}' has a '}}' that closes nothing; write '}}}}' for a brace"
                    ));
                }
                _ => literal.push(c),
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        let template = Template { parts };
        if template.fields().next().is_none() {
            return Err(format!("the template '{text}' names no field; write one in braces, such as '{{order_id}}'"));
        }
        Ok(template)
    }

    /// The names of its fields, in order.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Field(name) => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    /// The key of a row whose fields `field` looks up; a field that is missing or empty is an error.
    pub fn key<'a>(&self, field: impl Fn(&str) -> Result<std::borrow::Cow<'a, str>, String>) -> Result<Bytes, String> {
        let mut key = BytesMut::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => key.put_slice(text.as_bytes()),
                Part::Field(name) => {
                    let value = field(name)?;
                    if value.is_empty() {
                        return Err(format!("the field '{name}' of the key is empty"));
                    }
                    key.put_slice(value.as_bytes());
                }
            }
        }
        Ok(key.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(template: &str) -> Result<String, String> {
        let row = [("user", "42"), ("order", "o7"), ("none", "")];
        let bytes = Template::parse(template)?.key(|name| {
            let found = row.iter().find(|(field, _)| *field == name);
            found.map(|(_, value)| (*value).into()).ok_or(format!("no field '{name}'"))
        })?;
        Ok(String::from_utf8(bytes.to_vec()).expect("text in, text out"))
    }

    #[test]
    fn fields_and_text_alternate() {
        assert_eq!(key("{order}").as_deref(), Ok("o7"));
        assert_eq!(key("u/{user}/{order}!").as_deref(), Ok("u/42/o7!"));
        assert_eq!(key("{{{user}}}:cart").as_deref(), Ok("{42}:cart"));
        assert_eq!(key("{{{user}}}:{order}").as_deref(), Ok("{42}:o7"));
    }

    #[test]
    fn templates_that_cannot_work_are_refused() {
        for wrong in ["", "orders", "{", "{user", "{}", "user}", "{a{b}}", "{{user}}"] {
            assert!(Template::parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(key("{absent}"), Err("no field 'absent'".to_owned()));
        assert_eq!(key("{none}"), Err("the field 'none' of the key is empty".to_owned()));
    }
}
