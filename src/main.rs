//! The `trivet` binary: a node, and every tool to talk to a cluster. All of it is in `cli`.

mod cli;

use std::process::ExitCode;

use clap::Parser;

/// RocksDB and the server allocate from many threads at once; jemalloc keeps that quick and what is resident small.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::Cli::parse().run().into()
}
