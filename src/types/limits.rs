//! The bounds on what one request may carry.

/// Bounds on requests, checked at the edge and again by the state machine. All sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Longest key.
    pub key_bytes_max: usize,
    /// Longest value.
    pub value_bytes_max: usize,
    /// Most operations and conditions in one batch, together.
    pub batch_operations_max: usize,
    /// Most bytes of keys and values in one batch.
    pub batch_bytes_max: usize,
    /// Most rows in one page of a scan or history.
    pub page_rows_max: usize,
    /// Bytes after which a page of a scan ends.
    pub page_bytes_max: usize,
    /// Most keys in one BatchGet.
    pub batch_get_keys_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            key_bytes_max: 4 << 10,
            value_bytes_max: 1 << 20,
            batch_operations_max: 1_024,
            batch_bytes_max: 4 << 20,
            page_rows_max: 4_096,
            page_bytes_max: 1 << 20,
            batch_get_keys_max: 1_024,
        }
    }
}
