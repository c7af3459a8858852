//! The command line of the fault tests; `jepsen/run` builds what is needed and calls it.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use jepsen::run::{self, Arguments, Treatment};

/// Runs workloads against a cluster of the shipped binary while faults strike it, and checks what the clients saw.
#[derive(Parser)]
#[command(name = "jepsen/run", args_conflicts_with_subcommands = true)]
struct Line {
    #[command(flatten)]
    arguments: Arguments,
    #[command(subcommand)]
    inner: Option<Inner>,
}

/// What else it does.
#[derive(Subcommand)]
enum Inner {
    /// Judges the stored histories of a run again
    Check {
        /// Where they lie
        directory: std::path::PathBuf,
    },
    /// Treats the packets of the network namespace it is started in
    #[command(hide = true)]
    Packets(Treatment),
}

/// 0: all runs passed. 1: something was found, or a run showed nothing. 2: a run could not be made.
fn main() -> ExitCode {
    let line = Line::parse();
    let done = match line.inner {
        Some(Inner::Packets(treatment)) => run::treat_packets(treatment).map(|()| true),
        Some(Inner::Check { directory }) => jepsen::report::judge_again(&directory),
        None => run::start(&line.arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
