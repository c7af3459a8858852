//! One line of a history.
//!
//! The form is the one that checkers of the Jepsen family read: `process`, `type`, `f`, `key`, `value`, `time`. What a
//! checker of ours needs beyond that (`error`, `observed`, `version`, `node`, …) are further fields of the same object,
//! which other readers may ignore. Numbers stay numbers: versions are integers of 64 bits and fit.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Further fields of a line, by name.
pub type Extra = Map<String, Value>;

/// What a line says of its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It is about to be sent.
    Invoke,
    /// It took effect.
    Ok,
    /// It had no effect.
    Fail,
    /// It may have had, or may still have, an effect.
    Info,
}

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Who: one thing at a time, and nothing more after an `info`.
    pub process: u64,
    /// What the line says.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The verb.
    pub f: String,
    /// The key it concerns; for verbs of many keys whatever names them all (a tag, a table).
    pub key: String,
    /// What was asked (`invoke`) or answered.
    pub value: Value,
    /// Nanoseconds since the harness started, by a monotonic clock.
    pub time: u64,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_have_the_form_that_other_checkers_read() {
        let mut extra = Extra::new();
        extra.insert("error".into(), json!("mismatch"));
        extra.insert("observed".into(), Value::Null);
        let event = Event {
            process: 3,
            kind: Kind::Fail,
            f: "cas".into(),
            key: "k".into(),
            value: json!([1, 2]),
            time: 17,
            extra,
        };
        let line = serde_json::to_string(&event).expect("plain data");
        assert_eq!(
            line,
            r#"{"process":3,"type":"fail","f":"cas","key":"k","value":[1,2],"time":17,"error":"mismatch","observed":null}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&line).expect("our own line"), event, "null is kept: it means absent");
    }

    #[test]
    fn versions_of_64_bits_survive() {
        let line = format!(
            r#"{{"process":0,"type":"ok","f":"read","key":"k","value":null,"time":1,"version":{}}}"#,
            u64::MAX - 1
        );
        let event: Event = serde_json::from_str(&line).expect("a line");
        assert_eq!(event.extra["version"].as_u64(), Some(u64::MAX - 1));
        assert_eq!(serde_json::to_string(&event).expect("plain data"), line);
    }
}
