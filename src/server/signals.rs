//! A process around a node: its runtime, its signals, its end.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Config, Error, Flags, load, print, running};
use crate::ops::logs;
use crate::runtime;

/// The exit code of a process ended by a second signal.
const IMPATIENT: i32 = 1;

/// The whole life of `trivet serve`: reads the configuration, and runs a node on a runtime of its own until it is
/// told to stop. With `--check-config` it prints the configuration in effect instead.
pub fn serve(flags: &Flags) -> Result<(), Error> {
    let config = load(flags, &|name| std::env::var_os(name))?;
    if flags.check_config {
        print!("{}", print(&config));
        return Ok(());
    }
    // Checked with the configuration.
    let _ = logs::install(&config.log.level, config.log.format);
    raise_descriptor_limit();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.workers(cores))
        .thread_name("trivet")
        .enable_all()
        .build()
        .map_err(|source| Error::System { what: "the runtime cannot start".into(), source })?;
    runtime.block_on(run(config))
}

/// Runs a node until SIGTERM or SIGINT tells it to stop, or until it cannot go on.
pub async fn run(config: Config) -> Result<(), Error> {
    let system = |source| Error::System { what: "signals cannot be received".into(), source };
    let mut signals = Signals::new().map_err(system)?;
    let running = tokio::select! {
        running = running::start(config) => running?,
        name = signals.next() => {
            tracing::info!(signal = name, "stopped while starting");
            return Ok(());
        }
    };
    let mut fatal = running.node().fatal();
    let cause = tokio::select! {
        name = signals.next() => {
            tracing::info!(signal = name, "stopping; a second signal ends the process at once");
            None
        }
        Ok(error) = fatal.wait_for(Option::is_some) => error.clone(),
    };
    // Other nodes may be quick to ask again, an operator with a second signal is not.
    let impatient = runtime::spawn(async move {
        let name = signals.next().await;
        tracing::warn!(signal = name, "ended at once by a second signal");
        std::process::exit(IMPATIENT);
    });
    running.stop().await;
    impatient.abort();
    match cause {
        Some(error) => Err(Error::Node(error)),
        None => {
            tracing::info!("stopped");
            Ok(())
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Every connection and every table file is a descriptor; the limit a shell gives by default is meant for programs
/// that use select(2), which we do not.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, "the limit on open files stays at {:?}", limit.current);
    }
}
