//! The generated protobuf types.
#![allow(missing_docs, clippy::all)]

/// The public interface, `trivet.v1`.
pub mod v1 {
    tonic::include_proto!("trivet.v1");
}

/// The service of orders, `trivet.orders`.
pub mod orders {
    /// Its first version, which uses words of `trivet.v1`.
    pub mod v1 {
        tonic::include_proto!("trivet.orders.v1");
    }
}

/// What nodes keep and say among themselves, `trivet.internal`.
pub mod internal {
    tonic::include_proto!("trivet.internal");
}

/// The descriptors of `trivet.v1` and `trivet.orders.v1`, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/trivet_v1.bin"));
