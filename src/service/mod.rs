//! Floor 7: the gRPC edge, where the network ends and the node begins.
//!
//! Promise: nothing unchecked passes inwards, every call is answered or refused by its deadline, and what is refused
//! at the edge has had no effect.
//!
//! How a call passes: `listen` lets a connection in that speaks HTTP/2; tonic decodes its messages; `kv` and
//! `pipeline` turn each into a plain request (checked in `wire`) with a deadline (`deadline`); the `edge` admits
//! it, up to a bound, and hands it through the `door` to the node, which answers from a replica of its own or asks
//! the node that has one. What tonic refuses by itself gets its reason on the way out (`explain`). Administration goes the same way to `control` (`admin`). The service of orders is a client of the cluster like any other, behind this port (`orders`). Beside them the port serves
//! grpc.health.v1, reflection, and the traffic between nodes, which is the node's own affair.
//!
//! Stopping: [`Grpc::drain`] refuses new calls one by one and waits for those in flight, then [`Grpc::close`] ends
//! the connections.
//!
//! Left out: routing and retries (node and client), who may call what.

mod admin;
mod deadline;
mod door;
mod edge;
mod explain;
mod follow;
mod grpc;
mod kv;
mod listen;
pub mod metrics;
mod orders;
mod pipeline;
#[cfg(test)]
mod testing;

pub use deadline::{DEFAULT as DEADLINE_DEFAULT, MAX as DEADLINE_MAX};
pub use door::Door;
pub use grpc::{Grpc, Health, services};
