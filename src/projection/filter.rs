//! `where`: a CEL expression over a document (<https://cel.dev>), true for those that belong to the view.
//!
//! An expression comes from a user, is kept in the catalog and runs beside the base, so it is looked at before it is
//! taken:
//! - It speaks of `doc` and `key` only, and of what `exists` and its like name themselves.
//! - It is shallow. Parsing and evaluating go down with the depth of an expression, and a stack that overflows ends the
//!   process: some thousand characters of `1+1+1…` are enough. Brackets and chains are counted before anything is
//!   parsed, the depth of the tree after.
//! - It walks over a list but once at a time: `exists` within `exists` takes the square of a document's size, and
//!   further ones more.
//! - It makes no lists: those that `map` and `filter` make of an object have the order of a hash table, which is
//!   another one on each node, and a document must belong to the view everywhere or nowhere.
//!
//! Left out: what an expression may cost on one walk (`in` searches a list at each step).

use cel::common::ast::{EntryExpr, Expr, IdedExpr};
use cel::parser::Parser;
use cel::{Context, Value};

use crate::types::{Error, Result};

/// Bytes of the longest expression.
pub const EXPRESSION_BYTES_MAX: usize = 4 << 10;
/// Brackets within brackets. The parser goes down a dozen calls for each, so few are enough for any stack.
pub const NESTING_MAX: usize = 8;
/// Parts within parts: each operator, field and index is one further down than what it is applied to. `&&` and `||` are
/// balanced.
pub const DEPTH_MAX: usize = 32;
/// Operators, fields and indexes in a chain, before it is known how deep they lie. More than [`DEPTH_MAX`], since it is
/// a guess.
const LINKS_MAX: usize = 256;
/// Names that are neither variables nor ours to refuse: those of CEL's types.
const TYPES: &[&str] = &["bool", "bytes", "double", "dyn", "int", "list", "map", "null_type", "string", "type", "uint"];

/// A compiled expression.
pub struct Filter {
    expression: IdedExpr,
}

impl Filter {
    /// Compiles an expression over `doc` and `key`; an error says what is wrong with it.
    pub fn compile(expression: &str) -> Result<Filter> {
        if expression.len() > EXPRESSION_BYTES_MAX {
            let text = format!("`where` has {} bytes; at most {EXPRESSION_BYTES_MAX} are allowed", expression.len());
            return Err(Error::invalid(text));
        }
        let (nesting, links) = shape(expression);
        if nesting > NESTING_MAX {
            let text = format!("`where` has brackets in brackets, more than {NESTING_MAX} deep");
            return Err(Error::invalid(text));
        }
        if links > LINKS_MAX {
            let text = format!("`where` has more than {LINKS_MAX} operators, fields and indexes in a chain");
            return Err(Error::invalid(text));
        }
        let expression = Parser::default().parse(expression).map_err(|error| {
            let error = error.to_string();
            let line = error.lines().next().unwrap_or_default();
            Error::invalid(format!("`where` is no CEL expression: {line}"))
        })?;
        Looking::default().at(&expression)?;
        Ok(Filter { expression })
    }

    /// Whether a document belongs to the view; an error if the expression cannot say.
    pub fn passes(&self, key: &[u8], value: &[u8]) -> std::result::Result<bool, String> {
        // The document itself was read before. What this does not read is a number beyond all floating-point ones.
        let document: serde_json::Value = serde_json::from_slice(value)
            .map_err(|_| "`where` cannot look at it: a number is too large, or it is nested too deeply".to_owned())?;
        let mut context = Context::default();
        context.add_variable_from_value("doc", value_of(document));
        context.add_variable_from_value("key", String::from_utf8_lossy(key).into_owned());
        match Value::resolve(&self.expression, &context) {
            Ok(Value::Bool(passes)) => Ok(passes),
            Ok(_) => Err("`where` is neither true nor false of it".to_owned()),
            // The error may hold values of users.
            Err(_) => Err("`where` cannot be told of it: a field may be missing or of another type".to_owned()),
        }
    }
}

/// A document as CEL sees it. Integers are `int`, as those in an expression are, so that `doc.n + 1` can be told; only
/// those that are too large for it are `uint`.
fn value_of(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::Int(number),
            (None, Some(number)) => Value::UInt(number),
            (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text),
        Json::Array(items) => Value::from(items.into_iter().map(value_of).collect::<Vec<_>>()),
        Json::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| (name, value_of(value)));
            Value::from(fields.collect::<std::collections::HashMap<_, _>>())
        }
    }
}

/// How deep brackets stand in brackets, and how many operators, fields and indexes can be a chain of which each part
/// holds the one before. Those in texts count too: better one too many than one overlooked.
fn shape(expression: &str) -> (usize, usize) {
    let (mut nesting, mut links) = (0, 0);
    // Links so far, outside of all brackets and in each that is open.
    let mut open = vec![0_usize];
    for byte in expression.bytes() {
        match byte {
            b')' | b']' | b'}' if open.len() > 1 => {
                open.pop();
            }
            // What stands beside something else is not part of its chain.
            b'&' | b'|' | b',' => open.last_mut().into_iter().for_each(|links| *links = 0),
            b'+' | b'-' | b'*' | b'/' | b'%' | b'<' | b'>' | b'=' | b'!' | b'.' | b'?' | b':' | b'(' | b'[' | b'{' => {
                open.last_mut().into_iter().for_each(|links| *links += 1);
                links = links.max(open.iter().sum());
                if matches!(byte, b'(' | b'[' | b'{') {
                    open.push(0);
                }
            }
            _ => {}
        }
        nesting = nesting.max(open.len() - 1);
    }
    (nesting, links)
}

/// A walk over an expression that refuses what is said above.
#[derive(Default)]
struct Looking<'a> {
    depth: usize,
    /// What the expression itself names where the walk is.
    named: Vec<&'a str>,
    walks: bool,
}

impl<'a> Looking<'a> {
    fn at(&mut self, part: &'a IdedExpr) -> Result<()> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            let text = format!("`where` is more than {DEPTH_MAX} operators, fields or indexes deep");
            return Err(Error::invalid(text));
        }
        match &part.expr {
            Expr::Unspecified | Expr::Literal(_) => {}
            Expr::Ident(name) => self.name(name)?,
            Expr::Select(select) => self.at(&select.operand)?,
            Expr::List(list) => list.elements.iter().try_for_each(|element| self.at(element))?,
            Expr::Call(call) => {
                call.target.iter().try_for_each(|target| self.at(target))?;
                call.args.iter().try_for_each(|argument| self.at(argument))?;
            }
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| self.entry(&entry.expr))?,
            Expr::Struct(made) => made.entries.iter().try_for_each(|entry| self.entry(&entry.expr))?,
            Expr::Comprehension(walk) => {
                if self.walks {
                    let text = "`where` walks over a list within a walk, which takes the square of its size; \
                                one exists, exists_one or all cannot stand in another";
                    return Err(Error::invalid(text));
                }
                if matches!(walk.accu_init.expr, Expr::List(_)) {
                    let text = "`where` makes a list with map or filter; say it with exists, exists_one or all";
                    return Err(Error::invalid(text));
                }
                self.at(&walk.iter_range)?;
                self.at(&walk.accu_init)?;
                let known = self.named.len();
                self.named.extend([walk.iter_var.as_str(), walk.accu_var.as_str()]);
                self.named.extend(walk.iter_var2.as_deref());
                self.walks = true;
                [&walk.loop_cond, &walk.loop_step, &walk.result].into_iter().try_for_each(|part| self.at(part))?;
                self.walks = false;
                self.named.truncate(known);
            }
        }
        self.depth -= 1;
        Ok(())
    }

    fn entry(&mut self, entry: &'a EntryExpr) -> Result<()> {
        match entry {
            EntryExpr::StructField(field) => self.at(&field.value),
            EntryExpr::MapEntry(entry) => self.at(&entry.key).and_then(|()| self.at(&entry.value)),
        }
    }

    fn name(&self, name: &str) -> Result<()> {
        if matches!(name, "doc" | "key") || TYPES.contains(&name) || self.named.contains(&name) {
            return Ok(());
        }
        let text = format!("`where` speaks of '{name}'; there are `doc`, the document, and `key`, its key");
        Err(Error::invalid(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"{"status":"paid","amount":7,"owed":-7,"share":1.5,"large":18446744073709551615,
        "tags":["new","red"],"lines":[{"n":1},{"n":5}],"by":{"a":1,"b":"x","c":5}}"#;

    fn told(expression: &str) -> std::result::Result<bool, String> {
        Filter::compile(expression).unwrap_or_else(|error| panic!("{error}")).passes(b"o1", DOCUMENT.as_bytes())
    }

    #[test]
    fn documents_pass_or_do_not_or_cannot_be_told() {
        for (expression, passes) in [
            ("doc.status != 'test' && doc.amount > 5 && !key.startsWith('x')", true),
            ("doc.status == 'test'", false),
            ("key == 'o1'", true),
            ("has(doc.missing) && doc.missing > 5", false),
            ("!has(doc.missing)", true),
            ("doc.missing == 1 || doc.amount == 7", true),
            ("doc['status'] in ['paid', 'sent']", true),
            ("doc.status.matches('^p')", true),
            ("doc.large > 0 && doc.large == 18446744073709551615u", true),
            ("type(doc.amount) == int && type(doc.share) == double", true),
            ("'red' in doc.tags && size(doc.tags) == 2", true),
        ] {
            assert_eq!(told(expression), Ok(passes), "{expression}");
        }
        for expression in ["doc.missing == 1", "doc.amount", "doc.status > 5", "1 / 0 == 1", "doc.status.matches('(')"]
        {
            assert!(told(expression).is_err(), "{expression}");
        }
        let filter = Filter::compile("true").expect("CEL");
        assert!(filter.passes(b"o", br#"{"n":1e400}"#).expect_err("beyond").contains("too large"));
        assert!(filter.passes(b"o", b"{").is_err());
    }

    #[test]
    fn whole_numbers_of_documents_are_those_of_expressions() {
        for expression in
            ["doc.amount + 1 == 8", "doc.amount * 2 - 1 == 13", "doc.owed + doc.amount == 0", "-doc.amount < 0"]
        {
            assert_eq!(told(expression), Ok(true), "{expression}");
        }
    }

    #[test]
    fn lists_and_objects_are_walked_over_once() {
        for (expression, passes) in [
            ("doc.tags.exists(tag, tag == 'red')", true),
            ("doc.lines.all(line, line.n > 1)", false),
            ("doc.lines.exists_one(line, line.n > 1)", true),
            ("doc.lines.all(line, line.n > 0) && doc.tags.exists(line, line == doc.tags[0])", true),
        ] {
            assert_eq!(told(expression), Ok(passes), "{expression}");
        }
        // An object is walked over in any order, and the answer is one.
        for _ in 0..100 {
            assert_eq!(told("doc.by.exists(name, doc.by[name] > 3)"), Ok(true));
            assert!(told("doc.by.all(name, doc.by[name] > 0)").is_err());
            assert_eq!(told("doc.by.all(name, doc.by[name] != 5)"), Ok(false));
            assert!(told("doc.by.exists_one(name, doc.by[name] > 3)").is_err());
        }
    }

    #[test]
    fn what_is_wrong_with_an_expression_is_said() {
        let deep = |open: &str, inside: &str, close: &str, times: usize| {
            format!("{}{inside}{}", open.repeat(times), close.repeat(times))
        };
        for (bad, says) in [
            ("", "no CEL"),
            ("doc.a ==", "no CEL"),
            ("dok.a == 1", "'dok'"),
            ("doc.tags.exists(tag, tog == 'x')", "'tog'"),
            ("doc.tags.exists(tag, true) && tag == 'x'", "'tag'"),
            ("{'a': b}.a == 1", "'b'"),
            ("doc.a.all(x, doc.b.exists(y, x == y))", "square"),
            ("doc.a.map(x, x)[0] == 1", "makes a list"),
            ("doc.a.filter(x, x > 1).size() == 1", "makes a list"),
            (&format!("doc.a == '{}'", "x".repeat(EXPRESSION_BYTES_MAX)), "bytes"),
            (&deep("(", "true", ")", NESTING_MAX + 1), "brackets in brackets"),
            (&deep("[", "1", "]", NESTING_MAX + 1), "brackets in brackets"),
            (&deep("(", "", "", 4_000), "brackets in brackets"),
            (&deep("", "1", "+1", DEPTH_MAX), "32 operators"),
            (&deep("", "1", "+1", LINKS_MAX - 1), "32 operators"),
            (&deep("", "1", " in 1", 800), "32 operators"),
            (&deep("!-", "1", "", 2_000), "in a chain"),
            (&deep("(1+1+1+", "1", "+1+1+1)", NESTING_MAX), "32 operators"),
            (&deep("", "1", "+1", 2_040), "in a chain"),
            (&deep("", "1", "<1", 2_040), "in a chain"),
            (&deep("", "doc", "[0]", 1_300), "in a chain"),
            (&deep("", "doc", ".a", 2_000), "in a chain"),
            (&deep("true?true:", "true", "", DEPTH_MAX), "32 operators"),
        ] {
            let error = Filter::compile(bad).err().unwrap_or_else(|| panic!("taken: {bad:.60}"));
            assert!(error.message.contains(says), "{bad:.60}: {error}");
        }
    }

    /// On the stack of a thread as the tests have it, which is the usual one.
    #[test]
    fn the_deepest_expressions_are_told() {
        let chain = format!("1{} == {DEPTH_MAX} - 1", "+1".repeat(DEPTH_MAX - 2));
        assert_eq!(told(&chain), Ok(true));
        let brackets = format!("{}true{}", "(".repeat(NESTING_MAX), ")".repeat(NESTING_MAX));
        assert_eq!(told(&brackets), Ok(true));
        let both = format!("{}1{} == 22", "(1+1+1+".repeat(NESTING_MAX - 1), ")".repeat(NESTING_MAX - 1));
        assert_eq!(told(&both), Ok(true));
        let wide = format!("true{}", " && doc.amount == 7".repeat(200));
        assert_eq!(told(&wide), Ok(true));
    }
}
