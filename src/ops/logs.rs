//! The log: one line per event on standard error, as text for people or as JSON for machines.
//!
//! What is logged carries ids (node, shard, replica, request) and never keys or values of users. Libraries below are
//! held to warnings unless the level says otherwise: a stray connection or a peer that is down is not their news to
//! tell a hundred times. Debug and trace events are compiled out of release builds.

use std::io;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;

/// The shape of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Time, level, module, message, fields.
    Text,
    /// The same as one JSON object.
    Json,
}

/// Libraries whose own news are only noise at `info`. openraft warns once per election and peer while a node is down,
/// and its handles (`openraft::raft`) complain of every message to a replica that has been stopped on purpose, of every question
/// that it could not answer any more, and of a change of members that a change of leader overtook; and its heartbeats of one that
/// came back to such a replica. All that is told by `raft` and `node`.
const QUIET: &str = "h2=warn,hyper=warn,tonic=warn,tower=warn,openraft=error,openraft::raft=off,\
                     openraft::core::heartbeat::worker=off";

/// Whether `level` can be understood; if not, why.
pub fn check(level: &str) -> Result<(), String> {
    filter(level).map(|_| ()).map_err(|error| format!("`{level}` is not a log level or filter: {error}"))
}

/// Sends the log of this process to standard error from now on. Only the first call has an effect, so that several
/// nodes in one test process share one log.
pub fn install(level: &str, format: Format) -> Result<(), String> {
    let filter = filter(level).map_err(|error| format!("`{level}` is not a log level or filter: {error}"))?;
    // A second subscriber is refused by tracing; the first one stays, which is what is promised.
    let _ = tracing::subscriber::set_global_default(subscriber(filter, format, io::stderr));
    Ok(())
}

fn filter(level: &str) -> Result<EnvFilter, ParseError> {
    // What the operator says comes later and so overrides.
    EnvFilter::builder().parse(format!("{QUIET},{level}"))
}

fn subscriber<W>(filter: EnvFilter, format: Format, writer: W) -> Box<dyn tracing::Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    match format {
        Format::Text => Box::new(lines.finish()),
        Format::Json => {
            Box::new(lines.json().flatten_event(true).with_current_span(false).with_span_list(false).finish())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Sink {
        type Writer = Sink;

        fn make_writer(&'a self) -> Sink {
            self.clone()
        }
    }

    fn logged(level: &str, format: Format) -> String {
        let sink = Sink::default();
        tracing::subscriber::with_default(subscriber(filter(level).expect("a level"), format, sink.clone()), || {
            tracing::info!(node = 3, "it is up");
            tracing::warn!("it is slow");
            tracing::info!(target: "h2::server", "chatter");
            tracing::error!(target: "openraft::raft", "stopped on purpose");
            tracing::error!(target: "openraft::core::raft_core", "broken");
        });
        let bytes = sink.0.lock().clone();
        String::from_utf8(bytes).expect("a log is text")
    }

    #[test]
    fn levels_filter_and_libraries_are_quiet() {
        let text = logged("info", Format::Text);
        assert!(text.contains("it is up node=3") && text.contains("it is slow"), "{text}");
        assert!(!text.contains("chatter") && !text.contains('\x1b'), "{text}");
        assert!(text.contains("broken") && !text.contains("on purpose"), "{text}");
        assert!(!logged("warn", Format::Text).contains("it is up"));
        assert!(logged("info,h2=info", Format::Text).contains("chatter"));
    }

    #[test]
    fn json_lines_are_objects() {
        let text = logged("info", Format::Json);
        let line: serde_json::Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
        assert_eq!((line["level"].as_str(), line["message"].as_str()), (Some("INFO"), Some("it is up")));
        assert_eq!(line["node"], 3);
        assert!(line["timestamp"].is_string());
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(check("info").is_ok() && check("warn,trivet::raft=error").is_ok());
        assert!(check("trivet=loud").expect_err("no such level").starts_with("`trivet=loud` is not a log level"));
    }
}
