//! The metrics of clients (a node is one too: it forwards through them).

/// Calls sent, by connection mode.
pub const CALLS: &str = "trivet_client_calls_total";
/// Messages that carried pipelined calls.
pub const FLUSHES: &str = "trivet_client_flushes_total";
/// Attempts made again.
pub const RETRIES: &str = "trivet_client_retries_total";
/// Retries put off because the budget was spent.
pub const THROTTLED: &str = "trivet_client_retries_throttled_total";
/// Attempts given up because no answer came in time.
pub const TIMED_OUT: &str = "trivet_client_attempts_timed_out_total";
/// Topologies fetched.
pub const REFRESHES: &str = "trivet_client_topology_refreshes_total";
/// Connections made.
pub const CONNECTED: &str = "trivet_client_connections_made_total";
/// Connections that broke or could not be made.
pub const BROKEN: &str = "trivet_client_connections_broken_total";

/// Declares them.
pub fn describe() {
    metrics::describe_counter!(CALLS, "Calls sent to nodes");
    metrics::describe_counter!(FLUSHES, "Messages that carried the calls of pipelined streams");
    metrics::describe_counter!(RETRIES, "Attempts of calls made again");
    metrics::describe_counter!(THROTTLED, "Retries put off because the retry budget was spent");
    metrics::describe_counter!(TIMED_OUT, "Attempts given up because no answer came in time");
    metrics::describe_counter!(REFRESHES, "Topologies fetched");
    metrics::describe_counter!(CONNECTED, "Connections to nodes made");
    metrics::describe_counter!(BROKEN, "Connections to nodes that broke or could not be made");
}
