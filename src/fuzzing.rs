//! Floor 9: what the fuzz targets (`tests/fuzz`) call.
//!
//! Most of what reads bytes of others is public, and its targets need nothing from here. The readers of the log are
//! their modules' own affair: for each there is one function that takes any bytes and panics if a property does not
//! hold. The properties stand beside the readers. Only there with the cargo feature `fuzzing`, which nothing else
//! turns on; not an interface.

/// Bytes where something of a shard's log or its side records should be.
pub fn commands(bytes: &[u8]) {
    crate::shard::fuzz::check(bytes);
}

/// Bytes where something of Raft's should be, from the disk or from another node.
pub fn raft(bytes: &[u8]) {
    crate::raft::fuzz::check(bytes);
}
