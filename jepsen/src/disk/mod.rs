//! Disks that can be cut off, filled, slowed, hung and damaged.
//!
//! With root, each node's data lies on a file system of its own: an ext4 image in memory, on a loop device, mounted so
//! that it writes nothing back by itself for minutes. Shut down without flushing its journal it keeps what was synced
//! and loses everything else, as a disk does when the power goes; the harness proves that each time with two files of
//! its own, one synced and one not. Single calls of a node are made to fail or lag by a shim that is preloaded into it.

pub mod damage;
pub mod image;
pub mod shim;
