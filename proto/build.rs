//! Compiles the protobuf files with protox, so that no protoc is needed.

use std::{env, error::Error, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // RocksDB's debug information is half a gigabyte in each binary; names of functions, for backtraces, stay.
    println!("cargo:rustc-link-arg=-Wl,--strip-debug");

    let public =
        ["trivet/v1/kv.proto", "trivet/v1/admin.proto", "trivet/v1/errors.proto", "trivet/orders/v1/orders.proto"];
    let internal = ["trivet/internal/log.proto", "trivet/internal/peer.proto"];
    let set = protox::compile(public.iter().chain(&internal).map(|file| root.join(file)), [&root])?;
    let mut served = set.clone();
    served.file.retain(|file| file.package() != "trivet.internal");
    std::fs::write(out.join("trivet_v1.bin"), served.encode_to_vec())?;
    // Few commands are upkeep of a view, and all others are to stay small.
    let boxed = ".trivet.internal.Command.upkeep";
    tonic_prost_build::configure().bytes(".").boxed(boxed).build_transport(true).compile_fds(set)?;

    if env::var_os("CARGO_FEATURE_PEERS").is_some() {
        let etcd = protox::compile([root.join("peers/etcd.proto")], [&root])?;
        tonic_prost_build::configure().bytes(".").build_transport(true).build_server(false).compile_fds(etcd)?;
    }
    Ok(())
}
